"""What is checked about all models before anything starts, in one place for every command that runs conversations."""

import os
from pathlib import Path
from typing import Any

import pytest
from support import conversation, converse, experiment

from pidgin_cli.core.errors import SpecError
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.preflight import check_models
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.plan import expand


@pytest.fixture(autouse=True)
def _nothing_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.endswith(("_API_KEY", "_AUTH_TOKEN", "_BASE_URL")) or variable.startswith(("OLLAMA_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


def faults(root: Path, *specs: ConversationSpec) -> list[str]:
    with pytest.raises(SpecError) as caught:
        check_models(specs, OutputRoot(root))
    return str(caught.value).splitlines()


def test_every_fault_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, addresses, names, recordings and settings of all conversations: each fault on one line, and only once."""
    monkeypatch.setenv("GROQ_BASE_URL", "groq")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:")
    policy = {"policy": "summarise", "model": "openai:gpt-4o"}
    one = conversation("anthropic:claude-opus-5", "local:tset", agents={"a": {"temperature": 0.5}}, context=policy)
    two = conversation("replay:nothing", "groq:m", context=policy)
    three = conversation("ollama:m", "local:silent", agents={"b": {"think": True}})
    told = faults(tmp_path, one, one, two, three)
    assert [line.split(":")[0] for line in told] == [
        "agent a (anthropic",
        "agent b (local",
        "the summaries (openai",
        "agent a",
        "agent a (replay",
        "GROQ_BASE_URL is not an address like http",
        "OLLAMA_HOST is not an address like 127.0.0.1",
        "agent b",
    ]
    assert told[0] == "agent a (anthropic:claude-opus-5) needs a key: export ANTHROPIC_API_KEY=…"
    assert told[2] == "the summaries (openai:gpt-4o) needs a key: export OPENAI_API_KEY=…"
    assert told[3] == "agent a: claude-opus-5 takes no temperature but 1; leave it out, or give --lenient"
    assert told[7] == "agent b: local:silent does not think; leave it out, or give --lenient"


def test_a_lenient_spec_still_needs_keys(tmp_path: Path) -> None:
    """Settings are forgiven, and nothing else."""
    settings: dict[str, Any] = {"temperature": 0.5}
    spec = conversation("anthropic:claude-opus-5", "local:test", agents={"a": settings}, lenient=True)
    assert len(faults(tmp_path, spec)) == 1


async def test_recordings(tmp_path: Path) -> None:
    """A record can be replayed by the agents that are in it; for others the fault names who is."""
    run = await converse(tmp_path, experiment("local:test", "local:test", max_turns=1))
    good = conversation(f"replay:{run.log}", f"replay:{run.log}#a")
    check_models([good], OutputRoot(tmp_path))
    bad = conversation(f"replay:{run.log}#z", "local:test")
    (told,) = faults(tmp_path, bad)
    assert f"nothing of agent z is recorded there, only of a, b; write replay:{run.log}#AGENT" in told


def test_what_can_be_asked_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown models of known providers are taken, with a key or at an address of one's own."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    check_models([conversation("openai:next-year", "vllm:anything")], OutputRoot(tmp_path))


def test_a_swapped_model_is_checked_with_the_settings_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an agent's next model does not take of its settings is refused before the start, like its first one's."""
    for vendor in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{vendor}_API_KEY", "sk-none")
    spec = experiment(
        "openai:gpt-4o",
        "local:test",
        agents={"a": {"temperature": 0.5, "seed": 5}},
        interventions=[{"turn": 2, "swap_model": "anthropic:claude-sonnet-4-5", "agent": "a"}],
    )
    with pytest.raises(SpecError, match="take no seed"):
        check_models(expand(spec).values(), OutputRoot(tmp_path))
