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
        (("local:test", "anthropic:claude-sonnet-4-6"), ("--temp-b", "1.5"), "agent b: anthropic models take a temper"),
        (("openai:gpt-5", "local:test"), ("--top-p-a", "0.5"), "agent a: gpt-5 takes no top_p but 1"),
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
    """Every agent that cannot is named, one to a line."""
    said = pidgin("chat", "-a", "local:silent", "-b", "local:silent", "--think")
    assert said.status == 2
    assert said.err.splitlines() == [
        "Error: agent a: local:silent does not think; leave it out, or give --lenient",
        "agent b: local:silent does not think; leave it out, or give --lenient",
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
    stats, _ = json.loads(pidgin("cache", "stats", "--json").out)
    assert stats["entries"] == 2


def test_settings_of_one_agent(pidgin: Pidgin) -> None:
    """Each flag that ends in an id sets that agent's alone, over what all are given; all are recorded."""
    all_flags = ("--top-p", "0.9", "--max-tokens", "40", "--stop", "x1", "--stop", "x2", "--effort", "low")
    one = ("--top-p-b", "0.5", "--max-tokens-b=30", "--stop-b", "y", "--stop-b=z", "--effort-b", "high")
    more = ("--think-budget-b", "7", "--thinking-visible-b", "own")
    found = talk(pidgin, "-a", "local:test", "-b", "local:test", *all_flags, *one, *more)
    assert found.settings == [
        {"top_p": 0.9, "max_tokens": 40, "stop": ["x1", "x2"], "effort": "low"},
        {"top_p": 0.5, "max_tokens": 30, "stop": ["y", "z"], "effort": "high", "think": True, "think_budget": 7},
    ]
    assert [agent.get("thinking_visible", "nobody") for agent in found.start["agents"]] == ["nobody", "own"]


def test_anything_by_set(pidgin: Pidgin, server: LoopbackServer) -> None:
    """--set puts any key of an agent into the spec, as YAML, parts of `extra` among them, and it reaches the model."""
    flags = ("a.seed=7", "a.extra.top_k=5", "a.extra.metadata.who={is: [me, 1.5]}", "a.temperature=0", "b.name=Bo")
    argv = [part for flag in flags for part in ("--set", flag)]
    found = talk(pidgin, "-a", "openai:gpt-4o", "-b", "local:test", "--temperature", "0.5", *argv)
    body = server.chats[0].body
    assert (body["temperature"], body["top_k"], body["metadata"]) == (0, 5, {"who": {"is": ["me", 1.5]}})
    assert body["seed"] == found.settings[0]["seed"]
    assert [agent["name"] for agent in found.start["agents"]] == ["gpt-4o", "Bo"]
    assert found.settings[1]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--set", "a.seed"), "is not ID.KEY=VALUE"),
        (("--set", "a.sed=7"), "agents have no 'sed'. Did you mean seed?"),
        (("--set", "c.seed=7"), "--set c.seed: there is no agent 'c', only a, b."),
        (("--set", "a.model=gpt"), "model is said with -a, -b or --agent"),
        (("--set", "a.seed.x=7"), "seed has no parts; only extra has"),
        (("--set", "a.seed=7", "--set", "a.seed=8"), "a.seed is given twice"),
        (("--set", "a.extra=5", "--set", "a.extra.x=8"), "say different things"),
        (("--set", "a.extra={"), "is not YAML"),
        (("--set", "a.extra={x: 1, x: 2}"), "x"),
        (("--set", "a.seed=soon"), "agents.0.seed"),
        (("--set", "a.temperature=1", "--temp-a", "0"), "--temp-a and --set a.temperature say the same"),
        (("--max-tokens-a", "0"), "--max-tokens-a: 0 is not in the range x>=1"),
        (("--max-tokens-a", "few"), "--max-tokens-a: 'few' is not a valid integer"),
        (("--top-p-b", "0"), "--top-p-b: 0.0 is not in the range"),
        (("--thinking-visible-b", "me"), "--thinking-visible-b: 'me' is not one of"),
        (("--effort-c", "low"), "--effort-c: there is no agent 'c', only a, b."),
    ],
)
def test_flags_of_agents_that_are_wrong(pidgin: Pidgin, flags: tuple[str, ...], told: str) -> None:
    """One line says which flag, and why."""
    assert told in error_of(pidgin("chat", "-a", "local:test", "-b", "local:test", *flags))


def test_silence_takes_no_flags(pidgin: Pidgin) -> None:
    """With --meditation agent b has no settings of its own, whatever the flag."""
    for flags in (("--stop-b", "x"), ("--set", "b.seed=1")):
        said = pidgin("chat", "-a", "local:test", "--meditation", *flags)
        assert "with --meditation agent b is silence" in error_of(said)


def test_what_tail_shows_whole(pidgin: Pidgin) -> None:
    """In tail the two flags put whole texts below their lines; the lines themselves are there anyway."""
    models = ("-a", "local:test?thinking=1&words=8", "-b", "local:test?words=8", "-t", "1", "-w", "basic", "--tail")
    plain = pidgin("chat", *models, "-o", "plain").out
    shown = pidgin("chat", *models, "-o", "shown", "--show-thinking", "--show-system-prompts").out
    found = record(Path("shown"))
    (thought,) = [event["content"] for event in found.of("ThinkingComplete")]
    texts = [thought, *(event["text"] for event in found.of("SystemPrompt"))]
    for text in texts:
        whole = "".join(f"\n  {line}" for line in text.splitlines()) + "\n"
        assert whole in shown
        assert whole not in plain


@pytest.mark.parametrize("flag", ["--show-thinking", "--show-system-prompts"])
@pytest.mark.parametrize(("how", "why"), [("--json", "anyway"), ("--display=quiet", "shows nothing")])
def test_nothing_to_show_on(pidgin: Pidgin, flag: str, how: str, why: str) -> None:
    """Where there is no display the flags are wrong use, with the reason, for chat and resume."""
    for command in (("chat", "-a", "local:test", "-b", "local:test"), ("resume", "x")):
        error = error_of(pidgin(*command, how, flag))
        assert why in error
        assert f"leave {flag} out" in error
