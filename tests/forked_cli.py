"""Runs command lines of pidgin, each in a process of its own, and kills them where a test wants.

    with ForkedCli() as cli:
        done = cli.run(["list", "-o", str(root)])
        cut = cli.run(["resume", "--all", "-o", str(root)], kill=KillWhen(root, grown_to=4000, then_s=0.002))
        assert cut.killed

The processes are forked from one that has imported everything already, which makes a start forty times as quick.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

__all__ = ["Done", "ForkedCli", "KillWhen", "logs_in", "run_plain"]

DEADLINE_S = 60.0
POLL_S = 0.0002


@dataclass(frozen=True)
class KillWhen:
    """SIGKILL `then_s` after the logs of all conversations under `root` have grown or show something.

    Without a condition the time counts from the start of the process.
    """

    root: Path
    grown_to: int | None = None
    """Bytes, of all conversations together."""
    shows: str | None = None
    """This text stands in what is new since the process began."""
    then_s: float = 0.0


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    status: int
    """Exit status; -9: killed."""
    output: str
    """Of both streams."""
    killed_at: float = 0.0
    """Seconds since the epoch."""

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def logs_in(root: Path) -> list[Path]:
    """The logs of all conversations under an output root."""
    return list(root.glob("experiments/experiment_*/conv_*_events.jsonl"))


class _Watch:
    """Whether the moment to kill has come."""

    def __init__(self, when: KillWhen) -> None:
        self._when = when
        self._old = {log: log.stat().st_size for log in logs_in(when.root)}
        self._due: float | None = None

    def now(self) -> bool:
        if self._due is None and self._met():
            self._due = time.monotonic() + self._when.then_s
        return self._due is not None and time.monotonic() >= self._due

    def _met(self) -> bool:
        when = self._when
        if when.grown_to is not None:
            return sum(log.stat().st_size for log in logs_in(when.root)) >= when.grown_to
        if when.shows is not None:
            wanted = when.shows.encode()
            return any(wanted in log.read_bytes()[self._old.get(log, 0) :] for log in logs_in(when.root))
        return True


class ForkedCli:
    """The process from which the others are forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipes()[0].close()
        self._process.wait(DEADLINE_S)
        self._pipes()[1].close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def run(self, argv: Sequence[str], kill: KillWhen | None = None) -> Done:
        """Run to the end, or to the point where it is to be killed, whichever comes first."""
        order = {"argv": list(argv), "kill": None if kill is None else asdict(kill) | {"root": str(kill.root)}}
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the process that forks the others is gone"
        return Done(**json.loads(answer))


def run_plain(argv: Sequence[str], kill: KillWhen | None = None) -> Done:
    """The same in an ordinary `python -m pidgin_cli`."""
    command = [sys.executable, "-m", "pidgin_cli", *argv]
    watch = None if kill is None else _Watch(kill)
    with tempfile.TemporaryFile("w+") as said:  # a pipe would fill up while nobody reads it
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PIDGIN_POST_PROCESSING": "off"},
        )
        deadline = time.monotonic() + DEADLINE_S
        while watch is not None and process.poll() is None and not watch.now() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        killed_at = time.time()
        if watch is not None:
            process.kill()
        process.wait(timeout=DEADLINE_S)
        said.seek(0)
        output = said.read()
    return Done(process.returncode, output, killed_at)


def _forked(argv: list[str], kill: dict[str, Any] | None, output: Path) -> tuple[int, float]:
    """The exit status of one command line, as `subprocess` counts it, and when it was killed."""
    from pidgin_cli.cli.app import run

    watch = None if kill is None else _Watch(KillWhen(**kill | {"root": Path(kill["root"])}))
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            code = run(argv)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    deadline = time.monotonic() + DEADLINE_S
    killed_at = 0.0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG if watch is not None else 0)
        if ended:
            return os.waitstatus_to_exitcode(status), killed_at
        assert watch is not None
        if watch.now() or time.monotonic() > deadline:
            killed_at = time.time()
            os.kill(pid, signal.SIGKILL)
            watch = None
        else:
            time.sleep(POLL_S)


def main() -> None:
    """Import everything, then fork for every line on standard input."""
    import tempfile

    import pidgin_cli.cli.chat
    import pidgin_cli.cli.records  # noqa: F401 - what the children would import
    from pidgin_cli.core.types import ModelRequest, fold
    from pidgin_cli.providers.local import LocalProvider

    async def warm_up() -> None:
        """Make the vocabulary once, before the first fork."""
        fold([delta async for delta in LocalProvider().stream_response(ModelRequest(model="test", messages=()))])

    import asyncio

    asyncio.run(warm_up())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        for line in sys.stdin:
            output.write_text("")
            status, killed_at = _forked(output=output, **json.loads(line))
            answer = Done(status, output.read_text(errors="replace"), killed_at)
            print(json.dumps(asdict(answer)), flush=True)


if __name__ == "__main__":
    main()
