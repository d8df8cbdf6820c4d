"""Something else than Ollama at its address: a proxy's page, another server. It is told, whatever is installed."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import process

from pidgin_cli.core.errors import ProviderUnavailable
from pidgin_cli.providers.ollama_setup import ensure_running, found_instead
from pidgin_cli.providers.registry import PROVIDERS

TALK = ("chat", "-a", "ollama:tiny", "-b", "local:test", "-t", "1", "-p", "Hi.")
PAGE = b"<html><head><title>Proxy</title></head><body><h1>Please sign in</h1>\n<p>to the proxy</p></body></html>"


@contextmanager
def answering(status: int, body: bytes, kind: str) -> Iterator[str]:
    """The address of a server that has one answer to everything."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def ollama_on_path(folder: Path) -> Path:
    """A folder with an `ollama` that leaves a mark when it is called."""
    program = folder / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n/usr/bin/touch '{folder}/called'\n")
    program.chmod(0o755)
    return program.parent


@pytest.mark.parametrize(
    ("command", "installed"),
    [((*TALK, "--yes"), True), (("ask", "Hi.", "-m", "ollama:tiny"), False)],
    ids=["chat, installed", "ask, not installed"],
)
def test_a_page_in_its_place_is_told(command: tuple[str, ...], installed: bool, tmp_path: Path) -> None:
    """The error says where, what was found there and what to look at; nothing is started or said to be missing."""
    path = ollama_on_path(tmp_path) if installed else tmp_path
    with answering(200, PAGE, "text/html") as where:
        env = {"OLLAMA_HOST": where, "PATH": str(path), "NO_PROXY": "127.0.0.1"}
        said = process(*command, cwd=tmp_path, env=env)
    assert said.status == 2
    assert said.err == (
        f"Error: what answers at {where} is not Ollama (status 200): Proxy Please sign in to the proxy; "
        "OLLAMA_HOST says where Ollama is\n"
    )
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (502, b"<h1>Bad Gateway</h1>", "text/html", "(status 502): Bad Gateway"),
        (200, b'{"hello": 1}', "application/json", '(status 200): {"hello": 1}'),
        (401, b"", "text/plain", "(status 401)"),
        (200, b"\x1b[31mred\xff" + b"x" * 5000, "text/plain", "(status 200): "),
    ],
)
async def test_other_servers(
    status: int, body: bytes, kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status and what it says, on one line of bounded length; nobody is asked whether to start Ollama."""
    with answering(status, body, kind) as where:
        monkeypatch.setenv("OLLAMA_HOST", where)
        with pytest.raises(ProviderUnavailable) as caught:
            await ensure_running(tmp_path / "log", lambda: pytest.fail("asked"))
    assert f"what answers at {where} is not Ollama {told}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 800


async def test_an_address_of_the_settings_is_named_as_such(tmp_path: Path) -> None:
    """Where the address comes from decides what a person has to look at; nobody there is nothing found."""
    with answering(200, PAGE, "text/html") as where:
        info = PROVIDERS["ollama"]._replace(base_url=f"http://{where}")
        with pytest.raises(ProviderUnavailable, match="base_url of ollama says where Ollama is"):
            await ensure_running(tmp_path / "log", lambda: True, info=info)
    assert await found_instead(info) is None
