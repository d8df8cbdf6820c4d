"""Ollama from the command line, with a stand-in `ollama` on a PATH that has nothing else: what is started, and when."""

import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commands import error_of, process, record
from terminal import Terminal

COMMAND = "curl -fsSL https://ollama.com/install.sh | sh"

SERVER = """
import asyncio, json, os, pathlib, sys

here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
sys.path.insert(0, {tests!r})
from loopback import LoopbackServer


class Here(LoopbackServer):
    async def __aenter__(self):
        self.port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        return self


async def serve():
    async with Here() as server:
        server.installed = []
        await asyncio.Event().wait()

asyncio.run(serve())
"""


class StandIn:
    """An `ollama` that is not one, and a place where it would be."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.env = {"PATH": str(folder), "OLLAMA_HOST": f"127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}

    def install(self) -> None:
        script = self.bin / "stand_in.py"
        script.write_text(SERVER.replace("{tests!r}", repr(str(Path(__file__).parent))))
        self._program("ollama", f'exec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"')

    def make_shell(self) -> None:
        """A `sh` that notes what it is to do, and leaves an `ollama` as an installer would."""
        ollama = shlex.quote(str(self.bin / "ollama"))
        noted = shlex.quote(str(self.bin / "shell calls"))
        body = f"printf '%s\\n' \"$*\" >> {noted}\nprintf '#!/bin/sh\\n' > {ollama}\n/bin/chmod +x {ollama}"
        self._program("sh", body)

    def _program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call of `ollama`."""
        return [call[1:] for call in self._calls()]

    @property
    def shell_calls(self) -> list[str]:
        noted = self.bin / "shell calls"
        return noted.read_text().splitlines() if noted.exists() else []

    def _calls(self) -> list[list[str]]:
        calls = self.bin / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def end(self) -> None:
        for pid, *_ in self._calls():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    found = StandIn(tmp_path_factory.mktemp("bin"))
    yield found
    found.end()


TALK = ("chat", "-a", "ollama:tiny", "-b", "local:silent", "-t", "1", "--display", "quiet")


def nothing_made(cwd: Path) -> bool:
    return not list(cwd.glob("**/experiment_*"))


def test_yes_starts_pulls_and_talks(ollama: StandIn, tmp_path: Path) -> None:
    """Installed but not running, with --yes: it is started, the model pulled, the talk held, and the server stays."""
    ollama.install()
    said = process(*TALK, "--yes", cwd=tmp_path, env=ollama.env)
    assert said.status == 0, said.err
    assert said.err.splitlines() == ["Ollama is running now, and stays so", "Ollama has tiny now"]
    assert record(tmp_path / "pidgin_output").texts[0] == "Hello from the loopback."
    assert ollama.calls == [["serve"]]
    asked = process("ask", "Hello", "-m", "ollama:tiny", cwd=tmp_path, env=ollama.env)
    assert asked == (0, "Hello from the loopback.\n", "")
    assert ollama.calls == [["serve"]]


def test_ask_starts_and_pulls_as_well(ollama: StandIn, tmp_path: Path) -> None:
    """`ask --yes` does the same for one question; the answer alone is on the standard output."""
    ollama.install()
    refused = process("ask", "Hello", "-m", "ollama:tiny", cwd=tmp_path, env=ollama.env)
    assert "start it with: ollama serve" in error_of(refused)
    assert ollama.calls == []
    said = process("ask", "Hello", "-m", "ollama:tiny", "-y", cwd=tmp_path, env=ollama.env)
    assert (said.status, said.out) == (0, "Hello from the loopback.\n")
    assert ollama.calls == [["serve"]]


def test_without_a_yes_nothing_is_started(ollama: StandIn, tmp_path: Path) -> None:
    """Where nobody can be asked the error says what to type; nothing is started and nothing recorded."""
    ollama.install()
    said = process(*TALK, cwd=tmp_path, env=ollama.env)
    assert "start it with: ollama serve" in error_of(said)
    assert ollama.calls == []
    assert nothing_made(tmp_path)


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04"])
def test_a_no_at_the_terminal(ollama: StandIn, tmp_path: Path, answer: str) -> None:
    """Anything but a yes starts nothing."""
    ollama.install()
    with Terminal(*TALK, cwd=tmp_path, env=ollama.env) as terminal:
        terminal.expect("Ollama is installed but not running. Start it now? [y/N]: ")
        terminal.type(answer)
        terminal.expect("start it with: ollama serve")
        assert terminal.wait() == 2
    assert ollama.calls == []
    assert nothing_made(tmp_path)


def test_a_yes_at_the_terminal(ollama: StandIn, tmp_path: Path) -> None:
    """Each step is asked for on its own: to start it, then to download the model."""
    ollama.install()
    with Terminal("chat", *TALK[1:-2], cwd=tmp_path, env=ollama.env) as terminal:
        terminal.expect("Start it now? [y/N]: ")
        assert ollama.calls == []
        terminal.type("y\n")
        terminal.expect("Ollama is running now, and stays so")
        terminal.expect("Ollama does not have tiny. Download it now? [y/N]: ")
        terminal.type("yes\n")
        terminal.expect("Hello from the loopback.")
        assert terminal.wait() == 0
    assert ollama.calls == [["serve"]]


@pytest.mark.skipif(sys.platform != "linux", reason="the command is another one elsewhere")
@pytest.mark.parametrize("flags", [(), ("--yes",)])
def test_not_installed(ollama: StandIn, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Without Ollama the vendor's own command is shown, exit 2, and nothing is run, --yes or not."""
    ollama.make_shell()
    error = error_of(process(*TALK, *flags, cwd=tmp_path, env=ollama.env))
    assert re.search(r"Ollama does not answer at 127\.0\.0\.1:\d+ and is not installed", error)
    assert COMMAND in error
    assert ollama.shell_calls == []
    assert nothing_made(tmp_path)


def test_a_server_elsewhere_is_not_started_here(ollama: StandIn, tmp_path: Path) -> None:
    """An address of another machine that does not answer is told before anything starts, and nothing is started."""
    ollama.install()
    env = ollama.env | {"OLLAMA_HOST": "http://elsewhere.invalid:9"}
    error_of(process(*TALK, "--yes", cwd=tmp_path, env=env))
    assert ollama.calls == []
    assert nothing_made(tmp_path)


# pidgin doctor --install-ollama


@pytest.mark.skipif(sys.platform != "linux", reason="the command is another one elsewhere")
def test_installing_after_a_yes(ollama: StandIn, tmp_path: Path) -> None:
    """The command is shown, and that very one is run after a yes at a terminal."""
    ollama.make_shell()
    with Terminal("doctor", "--install-ollama", cwd=tmp_path, env=ollama.env, columns=120) as terminal:
        terminal.expect(f"Ollama's own command for this system: {COMMAND}")
        terminal.expect(f"Run {COMMAND}? [y/N]: ")
        assert ollama.shell_calls == []
        terminal.type("y\n")
        assert terminal.wait() == 0
    assert ollama.shell_calls == [f"-c {COMMAND}"]
    again = process("doctor", "--install-ollama", cwd=tmp_path, env=ollama.env)
    assert again == (0, "Ollama is installed; start it with: ollama serve\n", "")
    assert len(ollama.shell_calls) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the command is another one elsewhere")
@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("\x04", 130), ("\x03", 130)])
def test_installing_without_a_yes(ollama: StandIn, tmp_path: Path, answer: str, status: int) -> None:
    """No, Enter, Ctrl-D and Ctrl-C run nothing, and leave the cursor on a line of its own."""
    ollama.make_shell()
    with Terminal("doctor", "--install-ollama", cwd=tmp_path, env=ollama.env, columns=120) as terminal:
        terminal.expect("? [y/N]: ")
        terminal.type(answer)
        assert terminal.wait() == status
        assert terminal.text.endswith("\n")
        assert "Traceback" not in terminal.text
    assert ollama.shell_calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="the command is another one elsewhere")
def test_installing_without_a_terminal(ollama: StandIn, tmp_path: Path) -> None:
    """In a script the command is shown and never run."""
    ollama.make_shell()
    said = process("doctor", "--install-ollama", cwd=tmp_path, env=ollama.env)
    assert (said.status, said.err) == (1, "")
    first, second = said.out.splitlines()
    assert first.endswith(COMMAND)
    assert "Run it yourself" in second
    assert ollama.shell_calls == []
