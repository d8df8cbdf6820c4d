"""`pidgin models`: what can be asked, what it costs, and whether the key for it is there."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, Said, error_of, pidgin
from loopback import LoopbackServer, Request, loopback_in_thread

from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.catalogue import LISTED, aliases, known_models, use_settings
from pidgin_cli.spec.settings import Settings

__all__ = ["pidgin"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, pidgin: Pidgin) -> Iterator[LoopbackServer]:
    """One that this process's environment leads to."""
    with loopback_in_thread() as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def rows(said: Said) -> list[dict[str, Any]]:
    assert (said.status, said.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(said.out)
    return found


def test_short_names(pidgin: Pidgin) -> None:
    """Without a word to look for, all models that have a short name are listed with what is known of them."""
    found = rows(pidgin("models", "--json"))
    assert {alias: row["id"] for row in found for alias in row["aliases"]} == aliases()
    sonnet = next(row for row in found if "sonnet" in row["aliases"])
    assert {"id", "context", "input_price", "output_price", "cached_price", "thinks", "aliases", "key"} == set(sonnet)
    assert (sonnet["thinks"], sonnet["key"]) == (True, False)
    said = pidgin("models")
    assert "\x1b" not in said.out
    head, *lines = said.out.splitlines()
    assert head.split() == ["model", "short", "context", "$/M", "in", "$/M", "out", "thinks", "key"]
    assert len(lines) == len(found)
    line = next(line for line in lines if line.startswith("local:test "))
    assert line.split() == ["local:test", "test", "?", "0", "0", "yes", "-"]


def test_a_word_is_looked_for_in_names_and_short_names(pidgin: Pidgin) -> None:
    """QUERY finds ids and short names, whatever their case; ids of all that is listed."""
    by_id = {row["id"] for row in rows(pidgin("models", "SONNET", "--json"))}
    assert aliases()["sonnet"] in by_id
    assert "anthropic:claude-sonnet-4-5" in by_id
    assert all("sonnet" in model.lower() for model in by_id)
    assert aliases()["gpt"] in {row["id"] for row in rows(pidgin("models", "sol", "--json"))}


def test_of_one_provider_and_of_all(pidgin: Pidgin) -> None:
    """--provider lists one provider's models, --all everybody's, both together one's; nothing stands there twice."""
    everything = [row["id"] for row in rows(pidgin("models", "--all", "--json"))]
    assert set(everything) == {*known_models(), *aliases().values()}
    assert len(everything) == len(set(everything))
    assert {model.partition(":")[0] for model in everything} == {*LISTED, "local"}
    google = [row["id"] for row in rows(pidgin("models", "--provider", "google", "--json"))]
    assert google == [model for model in everything if model.startswith("google:")]
    assert [row["id"] for row in rows(pidgin("models", "--provider", "google", "--all", "--json"))] == google


def test_what_is_not_known_shows_as_such(pidgin: Pidgin) -> None:
    """An unknown window, price or ability is `?` on the screen and null in JSON, never 0."""
    (row,) = (row for row in rows(pidgin("models", "mistral-large-latest", "--json")) if row["aliases"])
    assert (row["context"], row["thinks"]) == (None, None)
    line = next(line for line in pidgin("models", "mistral-large-latest").out.splitlines() if " mistral " in line)
    assert line.split()[2] == "?"
    assert line.split()[-2:] == ["?", "missing"]


@pytest.mark.parametrize("argv", [("no-such-model",), ("--provider", "vllm"), ("gpt", "--provider", "google")])
def test_nothing_fits(pidgin: Pidgin, argv: tuple[str, ...]) -> None:
    """A search in vain says where to look, with 2; as JSON it is an empty array."""
    assert "no model fits; see all with: pidgin models --all" in error_of(pidgin("models", *argv))
    assert rows(pidgin("models", *argv, "--json")) == []


def test_the_key_column(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is there, missing, or not needed: for what runs here, and for a server of the person's own."""
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "sk-planted")
    monkeypatch.setenv("XAI_BASE_URL", "http://127.0.0.1:9/v1")
    said = pidgin("models", "--json")
    keys = {row["id"].partition(":")[0]: row["key"] for row in rows(said)}
    assert (keys["anthropic"], keys["openai"], keys["xai"], keys["local"]) == (True, False, None, None)
    marks = {line.split(":")[0]: line.split()[-1] for line in pidgin("models").out.splitlines()}
    assert (marks["anthropic"], marks["openai"], marks["xai"], marks["local"]) == ("✓", "missing", "-", "-")
    assert "planted" not in said.out


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
def test_what_a_provider_serves(pidgin: Pidgin, server: LoopbackServer, provider: str) -> None:
    """--remote asks the provider, and what it has is listed under its name, with QUERY as a filter."""
    found = rows(pidgin("models", "--provider", provider, "--remote", "--json"))
    assert [row["id"] for row in found] == [f"{provider}:served-one", f"{provider}:served-two"]
    assert {row["input_price"] for row in found} == {None}
    assert [row["key"] for row in found] == [True, True]
    out = pidgin("models", "two", "--provider", provider, "--remote").out
    assert [line.split()[0] for line in out.splitlines()] == ["model", f"{provider}:served-two"]
    assert {request.path for request in server.requests} == {"/v1beta/models" if provider == "google" else "/v1/models"}


def test_what_ollama_has(pidgin: Pidgin, server: LoopbackServer) -> None:
    """--provider ollama --remote lists what is installed, free of charge."""
    (row,) = rows(pidgin("models", "--provider", "ollama", "--remote", "--json"))
    assert (row["id"], row["input_price"], row["key"]) == ("ollama:llama3.2:latest", 0.0, None)


def test_what_an_endpoint_of_the_settings_serves(
    pidgin: Pidgin, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named endpoint can be asked as well, and its window counts."""
    Path("config.toml").write_text(f'[endpoints.gpu]\nbase_url = "{server.url}/v1"\ncontext = 777\n')
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", ".")
    try:
        found = rows(pidgin("models", "--provider", "gpu", "--remote", "--json"))
    finally:
        PROVIDERS.pop("gpu", None)
        use_settings(Settings())
    assert [(row["id"], row["context"]) for row in found] == [("gpu:served-one", 777), ("gpu:served-two", 777)]


def test_an_alias_of_an_alias(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short name that stands for another is listed with the model that both mean."""
    Path("config.toml").write_text('[aliases]\nmine = "sonnet"\n')
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", ".")
    try:
        (row,) = (row for row in rows(pidgin("models", "--json")) if "mine" in row["aliases"])
        assert row["id"] == aliases()["sonnet"]
    finally:
        use_settings(Settings())
    assert "sonnet" in row["aliases"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--provider", "opnai"), "no provider 'opnai'; there are anthropic, openai, "),
        (("--remote",), "--remote asks one provider: name it with --provider"),
        (("--remote", "--provider", "openai"), "openai needs a key: export OPENAI_API_KEY=…"),
        (("--remote", "--provider", "local"), "local cannot be asked what it serves"),
        (("--remote", "--provider", "replay"), "replay"),
        (("--loaded", "llama"), "--loaded tells what Ollama holds in memory, all of it; give only --json beside it"),
        (("--loaded", "--remote"), "--loaded tells what Ollama holds in memory, all of it; give only --json beside it"),
        (("--loaded", "--all"), "--loaded tells what Ollama holds in memory, all of it; give only --json beside it"),
        (("--loaded", "--provider", "openai"), "--loaded tells what Ollama holds in memory, all of it; give only"),
    ],
)
def test_wrong_use(pidgin: Pidgin, argv: tuple[str, ...], told: str) -> None:
    """What cannot be asked is refused in one line, with 2."""
    assert told in error_of(pidgin("models", *argv))


def test_a_provider_that_does_not_answer(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down is one line, with 1; for Ollama it says how to start it."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert error_of(pidgin("models", "--provider", "openai", "--remote"), 1)
    assert "ollama serve" in error_of(pidgin("models", "--provider", "ollama", "--remote"), 1)
    assert "ollama serve" in error_of(pidgin("models", "--loaded"), 1)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "ollama"])
def test_a_server_that_says_nothing(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """A server that takes the question and never answers is given up after a while, in one line, with 1."""
    monkeypatch.setattr("pidgin_cli.cli.models.ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in LoopbackServer().env.items():
            monkeypatch.setenv(name, url if name.endswith(("_URL", "_HOST")) else value)
        told = f"Error: {provider} did not answer within 0.3 s\n"
        assert error_of(pidgin("models", "--remote", "--provider", provider), 1) == told
        if provider == "ollama":
            assert error_of(pidgin("models", "--loaded"), 1) == told


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "ollama"])
def test_a_page_in_the_place_of_an_answer(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """A page for people, as a proxy sends it, is told in one line with its words."""

    class Proxy(LoopbackServer):
        def _about_models(self, request: Request) -> tuple[int, Any]:
            return 200, "<html><title>Hotel</title><style>p {}</style><p>Please log in.</p></html>"

    with loopback_in_thread(kind=Proxy) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        for argv in (("--remote", "--provider", provider), *([("--loaded",)] if provider == "ollama" else [])):
            told = error_of(pidgin("models", *argv), 1)
            assert told.startswith("Error: the server sent what the ")
            assert told.endswith(" API does not: Hotel Please log in.\n")


def test_what_is_in_memory(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """--loaded tells what Ollama holds: size, share on the GPU and until when; or that it holds nothing."""
    entry = {"name": "qwen3:4b", "model": "qwen3:4b", "size": 4_000_000_000, "size_vram": 3_000_000_000}
    loaded: list[dict[str, Any]] = []

    class Ollama(LoopbackServer):
        def _about_models(self, request: Request) -> tuple[int, Any]:
            return (200, {"models": loaded}) if request.path == "/api/ps" else super()._about_models(request)

    with loopback_in_thread(kind=Ollama) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert pidgin("models", "--loaded") == (0, "Ollama holds no model in memory\n", "")
        assert rows(pidgin("models", "--loaded", "--json")) == []
        loaded.append(entry | {"expires_at": "2199-01-01T00:00:00Z"})
        (row,) = rows(pidgin("models", "--loaded", "--json"))
        assert (row["name"], row["size_bytes"]) == ("qwen3:4b", 4_000_000_000)
        head, line = pidgin("models", "--loaded").out.splitlines()
        assert head.split() == ["model", "memory", "of", "it", "on", "the", "GPU", "until"]
        assert line.split()[:4] == ["qwen3:4b", "4.0", "GB", "75%"]
