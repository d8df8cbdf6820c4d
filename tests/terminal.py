"""`pidgin` in a terminal: a pseudo-terminal, what is on it, and keys to press."""

import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["DEADLINE_S", "ENVIRONMENT", "Terminal", "plain"]

DEADLINE_S = 45.0
"""How long anything may take before a test gives up."""

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not re.search(r"_API_KEY|_AUTH_TOKEN|_BASE_URL|^OLLAMA|^PIDGIN|COLOR|^COLUMNS$|^LINES$|^TTY_", name)
} | {
    "TERM": "xterm-256color",
    "PYTHONWARNINGS": "error::ResourceWarning",
    "PIDGIN_CONFIG_DIR": "/nonexistent",
    "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    "PIDGIN_POST_PROCESSING": "off",
}
"""Of a child: nothing in it that decides what Pidgin does or shows, neither a person's settings nor their keys.

Pages are made only where a test is about them: they would take most of the suite's time.
"""

# The child makes the pseudo-terminal its controlling one, so that Ctrl-C reaches it as from a keyboard; tests that run
# in the background may have been told to ignore that.
_LAUNCH = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


def plain(text: str) -> str:
    """Terminal output without the escape sequences in it."""
    return _ESCAPE.sub("", text)


class Terminal:
    """A process on a pseudo-terminal of its own.

    `expect` looks at what came after the last thing it found, so that a test reads like the talk it watches.
    """

    def __init__(self, *argv: str, cwd: Path, columns: int = 80, env: dict[str, str] | None = None) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        command = [sys.executable, "-m", "pidgin_cli", *argv]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=ENVIRONMENT | (env or {}),
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.raw = b""
        self._seen = 0
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self.hang_up()

    @property
    def text(self) -> str:
        """Everything so far, without escape sequences."""
        return plain(self.raw.decode("utf-8", "replace")).replace("\r\n", "\n")

    def expect(self, wanted: str) -> str:
        """Wait until `wanted` shows; gives what came before it since the last time."""
        end = time.monotonic() + DEADLINE_S
        while (found := self.text.find(wanted, self._seen)) < 0:
            if not self._read(end):
                raise AssertionError(f"{wanted!r} never showed; on the screen:\n{self.text}")
        before = self.text[self._seen : found]
        self._seen = found + len(wanted)
        return before

    def type(self, text: str) -> None:
        """Press keys; a newline is Enter."""
        os.write(self._master, text.encode())

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal, as a window is closed."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def wait(self) -> int:
        """Read to the end; gives the exit status."""
        end = time.monotonic() + DEADLINE_S
        while self._master >= 0 and self._read(end):
            pass
        if self._master >= 0 and not self._ended:
            raise AssertionError(f"the process never ended; on the screen:\n{self.text}")
        return self.process.wait(DEADLINE_S)

    def _read(self, end: float) -> bool:
        """Take what is there, waiting for it until `end`. False: there is nothing more, or the time is up."""
        if self._ended or not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # how Linux says that nobody has the other side any more
            data = b""
        self._ended = not data
        self.raw += data
        return bool(data)
