"""Flags of `pidgin chat` that decide what models are sent: lenient, effort, who sees thinking, the cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Pidgin, Record, error_of, pidgin, record
from loopback import LoopbackServer, Reply, loopback_in_thread

__all__ = ["pidgin"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, pidgin: Pidgin) -> Iterator[LoopbackServer]:
    """One that this process's environment leads to."""
    with loopback_in_thread() as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def talk(pidgin: Pidgin, *args: str, root: str = "pidgin_output") -> Record:
    said = pidgin("chat", *args, "-t", "1", "--display", "quiet", "-o", root)
    assert said.status == 0, said.err
    return record(Path(root))


@pytest.mark.parametrize(
    ("models", "flags", "told"),
    [
        (("local:test", "local:silent"), ("--think",), "agent b: local:silent does not think"),
        (("openai:gpt-4o", "local:test"), ("--effort", "low"), "agent a: openai:gpt-4o does not think"),
        (("openai:gpt-5", "local:test"), ("--think-budget", "9"), "agent a: openai models take no think budget"),
        (("local:test", "openai:gpt-5"), ("--thinking-visible", "own"), "agent b: openai models cannot be given back"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    pidgin: Pidgin, server: LoopbackServer, models: tuple[str, str], flags: tuple[str, ...], told: str
) -> None:
    """Before anything is asked the agent is named, with the reason and with --lenient as a way out, which works."""
    argv = ("-a", models[0], "-b", models[1], *flags)
    error = error_of(pidgin("chat", *argv))
    assert told in error
    assert "; leave it out, or give --lenient" in error
    assert server.requests == []
    assert not list(Path().glob("**/experiment_*"))
    found = talk(pidgin, *argv, "--lenient")
    assert found.start["spec"]["lenient"] is True
    warnings = [json.dumps(event) for event in found.of("Warning")]
    assert any(told.partition(": ")[2] in text for text in warnings), warnings
    assert found.end["status"] == "completed"


def test_several_refusals_are_told_together(pidgin: Pidgin) -> None:
    """Every agent that cannot is named, in one line."""
    said = pidgin("chat", "-a", "local:silent", "-b", "local:silent", "--think")
    assert said.status == 2
    assert said.err.splitlines() == [
        "Error: agent a: local:silent does not think; leave it out, or give --lenient; "
        "agent b: local:silent does not think; leave it out, or give --lenient"
    ]


def test_effort(pidgin: Pidgin, server: LoopbackServer) -> None:
    """--effort is recorded for every agent and sent in the provider's own place."""
    found = talk(pidgin, "-a", "openai:gpt-5", "-b", "anthropic:claude-opus-5-5", "--effort", "low")
    assert [settings["effort"] for settings in found.settings] == ["low", "low"]
    openai, anthropic = server.chats
    assert openai.body["reasoning_effort"] == "low"
    assert anthropic.body["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(("visible", "seen"), [("partner", True), ("nobody", False)])
def test_thinking_that_the_partner_may_see(pidgin: Pidgin, server: LoopbackServer, visible: str, seen: bool) -> None:
    """--thinking-visible partner sends one agent's thinking to the other, and nobody to no one; both are recorded."""
    server.script(Reply("Said aloud.", thinking=("A silent thought.",)))
    found = talk(pidgin, "-a", "openai:gpt-5", "-b", "openai:gpt-5", "--thinking-visible", visible)
    assert [agent.get("thinking_visible", "nobody") for agent in found.start["agents"]] == [visible] * 2
    assert [event["agent_id"] for event in found.of("ThinkingComplete")] == ["a"]
    sent = json.dumps(server.chats[1].body)
    assert "Said aloud." in sent
    assert ("A silent thought." in sent) is seen


def test_cache(pidgin: Pidgin, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """--cache is recorded and keeps the replies; without it no cache is made."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", "cache")
    models = ("-a", "openai:gpt-5", "-b", "local:test")
    found = talk(pidgin, *models, root="off")
    assert found.start["spec"].get("cache", "off") == "off"
    assert not Path("cache").exists()
    found = talk(pidgin, *models, "--cache", root="on")
    assert "cache: 'on'" in (found.folder / "spec.yaml").read_text()
    (stats,) = json.loads(pidgin("cache", "stats", "--json").out)
    assert stats["entries"] == 2
