"""What cannot be reached is named by the address that was really tried, wherever that was set."""

import os
import socket
from pathlib import Path

import pytest
from commands import Pidgin, pidgin, process  # noqa: F401  the fixture
from loopback import loopback_in_thread

from pidgin_cli.cli import doctor
from pidgin_cli.core.errors import ProviderUnavailable, SpecError
from pidgin_cli.core.types import ModelRequest, Timeouts
from pidgin_cli.providers.ollama import OllamaProvider
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.providers.residency import Residency, loaded_models

TALK = ("chat", "-a", "ollama:tiny", "-b", "local:test", "-t", "1", "-p", "Hi.")
COMMANDS = {"chat": TALK, "ask": ("ask", "Hi.", "-m", "ollama:tiny"), "models": ("models", "--loaded")}


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("OLLAMA_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def nobody() -> str:
    """An address on this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def settings_with(folder: Path, base_url: str) -> dict[str, str]:
    """An environment without Ollama on PATH whose settings say where it is."""
    config = folder / "config"
    config.mkdir()
    (config / "config.toml").write_text(f'[providers.ollama]\nbase_url = "{base_url}"\n')
    return {"PIDGIN_CONFIG_DIR": str(config), "PATH": str(folder), "NO_PROXY": "127.0.0.1"}


def said_wrong(*argv: str, cwd: Path, env: dict[str, str]) -> str:
    """The one line that a command failed with, which is no fault of Pidgin's."""
    said = process(*argv, cwd=cwd, env=env)
    assert said.status in (1, 2)
    [line] = said.err.splitlines()
    assert line.startswith("Error: ")
    assert "fault in pidgin" not in line
    return line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("url", ["http://{}", "{}", "http://me:secret@{}/"])
def test_an_address_of_the_settings_that_does_not_answer(
    url: str, command: tuple[str, ...], nobody: str, tmp_path: Path
) -> None:
    """The error names it, without what stands before the @."""
    error = said_wrong(*command, cwd=tmp_path, env=settings_with(tmp_path, url.format(nobody)))
    assert f"does not answer at {nobody}" in error
    assert "secret" not in error
    assert "11434" not in error


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("url", ["http://me:secret@here:there", "http://", "ftp://gpu:1", "http:/gpu:1", "gpu box:1"])
def test_an_address_of_the_settings_that_is_none(url: str, command: tuple[str, ...], tmp_path: Path) -> None:
    """It is the settings that are wrong, not what is installed, nor a variable that nobody set."""
    error = said_wrong(*command, cwd=tmp_path, env=settings_with(tmp_path, url))
    assert "base_url of ollama is not an address like 127.0.0.1:11434" in error
    for wrong in ("installed", "OLLAMA_HOST", "secret"):
        assert wrong not in error


def test_the_doctor_names_the_address(nobody: str, tmp_path: Path) -> None:
    """Also where it is only looked at."""
    said = process("doctor", cwd=tmp_path, env=settings_with(tmp_path, f"http://{nobody}"))
    assert f"Ollama does not answer at {nobody}" in said.out


def test_the_doctor_names_a_server_that_keeps_silent(
    pidgin: Pidgin,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that takes the connection and says nothing is told by its address too."""
    monkeypatch.setattr(doctor, "OLLAMA_ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OLLAMA_HOST", where)
        assert f"no answer within 0.2 s at {where}" in pidgin("doctor").out


def test_the_environment_wins_over_the_settings(nobody: str, tmp_path: Path) -> None:
    """The address that counts is the one that is asked and named."""
    env = settings_with(tmp_path, f"http://{nobody}")
    with loopback_in_thread() as server:
        said = process("models", "--loaded", cwd=tmp_path, env=env | {"OLLAMA_HOST": server.url})
        assert said.status == 0, said.err
    error = said_wrong("models", "--loaded", cwd=tmp_path, env=env | {"OLLAMA_HOST": "here:there"})
    assert "OLLAMA_HOST is not an address" in error


async def test_every_part_names_the_server_it_asked(nobody: str) -> None:
    """Adapter and residency are given a server, and tell of that one."""
    info = PROVIDERS["ollama"]._replace(base_url=f"http://{nobody}")
    adapter = OllamaProvider(Timeouts(), info)
    try:
        with pytest.raises(ProviderUnavailable, match=f"does not answer at {nobody}"):
            [delta async for delta in adapter.stream_response(ModelRequest(model="m", messages=()))]
    finally:
        await adapter.aclose()
    with pytest.raises(ProviderUnavailable, match=f"does not answer at {nobody}"):
        await loaded_models(info)
    broken = info._replace(base_url="here:there")
    for part in (lambda: OllamaProvider(Timeouts(), broken), lambda: Residency(broken)):
        with pytest.raises(SpecError, match="base_url of ollama"):
            part()
