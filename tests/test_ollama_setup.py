"""Finding, starting and installing Ollama, with a stand-in `ollama` on PATH: real processes, and nothing unasked."""

import asyncio
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from loopback import LoopbackServer, Request

from pidgin_cli.core.errors import ProviderUnavailable, SpecError
from pidgin_cli.providers import ollama_setup
from pidgin_cli.providers.ollama_setup import (
    DOWNLOAD_PAGE,
    StartedServer,
    ensure_running,
    install_command,
    is_here,
    is_installed,
    is_running,
    run_install,
    start_server,
)

STAND_IN = """
import http.server, json, os, pathlib, signal, sys

here = pathlib.Path(__file__).parent
mode = (here / "mode").read_text()
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
(here / "environment").write_text(json.dumps(dict(os.environ)))
print("stand-in says hello", flush=True)
if mode == "dies":
    print("Error: listen tcp 127.0.0.1: bind: address already in use\\n", file=sys.stderr)
    sys.exit(3)
if mode == "deaf":
    with (here / "started").open("w") as started:  # a pipe: opens when somebody reads
        started.write("yes")
    signal.pause()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {"/api/version": {"version": "0.12.0"}, "/api/tags": {"models": []}}.get(self.path)
        data = json.dumps(body).encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


class StandIn:
    """An `ollama` that is not one."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin of\u00a0the stand-in"
        self.bin.mkdir()
        self.program = self.bin / "ollama"
        self.pipe = self.bin / "started"
        self.log = folder / "logs" / "ollama.log"
        self.behave("answers")

    def install(self) -> None:
        script = self.bin / "stand_in.py"
        script.write_text(STAND_IN)
        self.program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
        self.program.chmod(0o755)

    def behave(self, mode: str) -> None:
        (self.bin / "mode").write_text(mode)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call."""
        calls = self.bin / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.bin / "environment").read_text())
        return found


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Not installed yet; OLLAMA_HOST is an address where nothing listens. Afterwards no process is left."""
    before = set(psutil.Process().children(recursive=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = StandIn(tmp_path)
    monkeypatch.setenv("PATH", f"{found.bin}:/usr/bin:/bin")
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    yield found
    left = set(psutil.Process().children(recursive=True)) - before
    for process in left:
        process.kill()
    assert not left, "a process was left behind"


def yes() -> bool:
    return True


def never(*_: object) -> bool:
    raise AssertionError("nobody was to be asked")


async def stop(server: StartedServer) -> None:
    await asyncio.to_thread(server.stop)


# Starting


async def test_a_server_is_started_and_stopped(stand_in: StandIn) -> None:
    """`ollama serve` runs in a session of its own and answers; stopping leaves nothing, not even a zombie."""
    stand_in.install()
    server = await start_server(stand_in.log)
    assert await is_running()
    assert server.status is None
    assert os.getsid(server.pid) == server.pid
    assert stand_in.calls == [["serve"]]
    assert stand_in.log.read_text() == "stand-in says hello\n"
    await stop(server)
    assert server.status == -signal.SIGTERM
    assert not psutil.pid_exists(server.pid)
    assert not await is_running()
    await stop(server)


async def test_its_log_grows(stand_in: StandIn) -> None:
    """A second start appends to the log of the first."""
    stand_in.install()
    for _ in range(2):
        await stop(await start_server(stand_in.log))
    assert stand_in.log.read_text() == "stand-in says hello\n" * 2


async def test_one_that_will_not_stop_is_made_to(stand_in: StandIn) -> None:
    """A server that ignores the polite request is killed."""
    stand_in.install()
    stand_in.behave("stubborn")
    server = await start_server(stand_in.log)
    await asyncio.to_thread(server.stop, 0.1)
    assert server.status == -signal.SIGKILL
    assert not psutil.pid_exists(server.pid)


async def test_one_that_ends_by_itself_is_no_zombie(stand_in: StandIn) -> None:
    """A server that dies later is reaped without anybody looking."""
    stand_in.install()
    server = await start_server(stand_in.log)
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(server._reaper.join)
    assert server.status == -signal.SIGKILL
    assert not psutil.pid_exists(server.pid)


async def test_one_that_cannot_start_says_why(stand_in: StandIn) -> None:
    """When `ollama serve` ends at once, the error holds its status, its last words and where to read on."""
    stand_in.install()
    stand_in.behave("dies")
    with pytest.raises(
        ProviderUnavailable, match=r"status 3: Error: listen tcp .*address already in use \(see .*log\)"
    ):
        await start_server(stand_in.log)


async def test_one_that_never_answers_is_stopped(stand_in: StandIn) -> None:
    """After the deadline the process is ended and the error says so."""
    stand_in.install()
    stand_in.behave("deaf")
    os.mkfifo(stand_in.pipe)
    with pytest.raises(ProviderUnavailable, match=r"did not answer within 0\.2 s"):
        await start_server(stand_in.log, deadline_s=0.2)


async def test_a_start_that_is_cancelled_leaves_nothing(stand_in: StandIn) -> None:
    """Ctrl-C while the server comes up ends it."""
    stand_in.install()
    stand_in.behave("deaf")
    os.mkfifo(stand_in.pipe)
    starting = asyncio.create_task(start_server(stand_in.log))
    assert await asyncio.to_thread(stand_in.pipe.read_text) == "yes"
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert stand_in.calls == [["serve"]]


async def test_it_gets_no_keys(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's environment is ours without the keys of other providers."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-planted")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("OLLAMA_MODELS", "/models")
    stand_in.install()
    await stop(await start_server(stand_in.log))
    assert "planted" not in json.dumps(stand_in.environment)
    assert stand_in.environment["OLLAMA_MODELS"] == "/models"
    assert stand_in.environment["OLLAMA_HOST"] == os.environ["OLLAMA_HOST"]


# Only when asked


async def test_a_running_server_is_left_alone(stand_in: StandIn) -> None:
    """Where Ollama answers, nobody is asked and nothing is started."""
    stand_in.install()
    server = await start_server(stand_in.log)
    assert await ensure_running(stand_in.log, never) is None
    assert stand_in.calls == [["serve"]]
    await stop(server)


async def test_it_is_started_when_that_is_allowed(stand_in: StandIn) -> None:
    """Installed, not running, and allowed: it is started, and nothing is pulled."""
    stand_in.install()
    server = await ensure_running(stand_in.log, yes)
    assert server is not None
    assert await is_running()
    assert stand_in.calls == [["serve"]]
    await stop(server)


@pytest.mark.parametrize("answer", [False, None, "yes"])
async def test_it_is_not_started_without_a_yes(stand_in: StandIn, answer: Any) -> None:
    """Without leave nothing is started, and the error says what to type."""
    stand_in.install()
    with pytest.raises(ProviderUnavailable, match="start it with: ollama serve"):
        await ensure_running(stand_in.log, lambda: answer)
    assert stand_in.calls == []
    assert not stand_in.log.exists()


async def test_what_is_not_installed_is_shown_not_installed(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ollama the error holds the vendor's own command; nobody is asked, nothing is run."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(
        ProviderUnavailable, match=r"not installed; get it with: curl -fsSL https://ollama.com/install.sh"
    ):
        await ensure_running(stand_in.log, never)
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    with pytest.raises(ProviderUnavailable, match=DOWNLOAD_PAGE):
        await ensure_running(stand_in.log, never)
    with pytest.raises(ProviderUnavailable, match="not installed"):
        await start_server(stand_in.log)


async def test_a_server_elsewhere_is_not_started_here(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address on another machine that does not answer is an error, whatever is installed here."""
    stand_in.install()
    monkeypatch.setenv("OLLAMA_HOST", "http://someone:secret@gpu-box.invalid:11434")
    with pytest.raises(ProviderUnavailable, match=r"does not answer at gpu-box\.invalid:11434") as caught:
        await ensure_running(stand_in.log, never)
    assert "secret" not in str(caught.value)
    assert stand_in.calls == []


async def test_an_address_is_no_command(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stands in OLLAMA_HOST never becomes words of a shell."""
    stand_in.install()
    monkeypatch.chdir(tmp_path)
    for host in ("127.0.0.1:1; touch bad", "127.0.0.1:$(touch bad)", "[::1", "127.0.0.1:99999"):
        monkeypatch.setenv("OLLAMA_HOST", host)
        with pytest.raises(SpecError, match="is not an address"):
            await ensure_running(stand_in.log, yes)
    assert not (tmp_path / "bad").exists()
    assert stand_in.calls == []


# Installing


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.fixture
def curl(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A `curl` on PATH that gives out an installer of our own. Tells what it was called with."""
    calls, program = stand_in.bin / "curl-calls", shlex.quote(str(stand_in.program))
    fake = stand_in.bin / "curl"
    fake.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {shlex.quote(str(calls))}\n"
        f"cat <<'END'\necho '#!/bin/sh' > {program}\nchmod +x {program}\nEND\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())


def test_a_yes_at_a_terminal_installs(
    stand_in: StandIn, curl: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an explicit yes the very command that was shown is run."""
    at_a_terminal(monkeypatch)
    shown: list[str] = []

    def agree(command: str) -> bool:
        assert curl() == []
        shown.append(command)
        return True

    assert run_install(agree) is True
    assert shown == ["curl -fsSL https://ollama.com/install.sh | sh"] == [install_command()]
    assert curl() == ["-fsSL https://ollama.com/install.sh"]
    assert is_installed()


@pytest.mark.parametrize("answer", [False, None, "y", 1])
def test_anything_but_a_yes_installs_nothing(
    stand_in: StandIn, curl: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    """No, silence, or an answer that is only like a yes: nothing is run."""
    at_a_terminal(monkeypatch)
    assert run_install(lambda _: answer) is False
    assert curl() == []
    assert not is_installed()


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_without_a_terminal_nobody_is_asked(
    stand_in: StandIn, curl: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """In a script nothing is asked and nothing is installed, whatever the answer would be."""
    at_a_terminal(monkeypatch)
    with open(os.devnull) as nothing:  # noqa: PTH123
        monkeypatch.setattr(sys, stream, nothing)
        assert run_install(never) is False
    assert curl() == []


def test_an_installer_that_fails_is_no_success(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is whether Ollama is there in the end."""
    at_a_terminal(monkeypatch)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (stand_in.bin / "curl").write_text("#!/bin/sh\nexit 22\n")
    (stand_in.bin / "curl").chmod(0o755)
    assert run_install(lambda _: True) is False


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("Linux", "curl -fsSL https://ollama.com/install.sh | sh"),
        ("Darwin", "curl -fsSL https://ollama.com/install.sh | sh"),
        ("Windows", "irm https://ollama.com/install.ps1 | iex"),
        ("Plan9", None),
    ],
)
def test_every_platform_has_the_vendors_command(system: str, command: str | None) -> None:
    """The command is the one the vendor's page gives for the platform; other platforms have none."""
    assert install_command(system) == command


# Where it is


@pytest.mark.parametrize(
    ("host", "here", "url"),
    [
        (None, True, "http://127.0.0.1:11434"),
        ("", True, "http://127.0.0.1:11434"),
        (":5000", True, "http://127.0.0.1:5000"),
        ("0.0.0.0", True, "http://127.0.0.1:11434"),
        ("0.0.0.0:80", True, "http://127.0.0.1:80"),
        ("localhost", True, "http://localhost:11434"),
        ("[::1]:7", True, "http://[::1]:7"),
        ("[::]", True, "http://[::1]:11434"),
        ("http://127.0.1.1", True, "http://127.0.1.1:80"),
        ("https://box.example/path/", False, "https://box.example:443/path"),
        ("192.168.0.7", False, "http://192.168.0.7:11434"),
        ("localhost.example:1", False, "http://localhost.example:1"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(
    host: str | None, here: bool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheme and port may be left out, and a server that listens everywhere is asked on this machine."""
    if host is None:
        monkeypatch.delenv("OLLAMA_HOST", raising=False)
    else:
        monkeypatch.setenv("OLLAMA_HOST", host)
    assert is_here() is here
    assert ollama_setup.place(ollama_setup.PROVIDERS["ollama"]).url == url


@pytest.mark.parametrize("answer", ["<html>Welcome</html>", [1], 7, {"error": "no"}, b"\xff"])
async def test_another_server_is_not_taken_for_ollama(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else that listens at the address does not count as Ollama."""

    class Other(LoopbackServer):
        def _about_models(self, request: Request) -> tuple[int, Any]:
            return 200, answer

    async with Other() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert not await is_running()
    async with LoopbackServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert await is_running()
