"""`pidgin replay`: whether today's code would send what the record says was sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, pidgin
from held import hold_in
from msgspec.structs import replace
from support import Scripted, ScriptedPool, conversation

from pidgin_cli.core.types import Delta, Finish, TextDelta
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.spec.conversation import Injection, Intervention, Origin

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
MODEL = "local:test?words=8"
ID = "parent00-1"


def replies(*said: str) -> list[list[Delta]]:
    return [[TextDelta(text), Finish()] for text in said]


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().splitlines()]


def rewrite(log: Path, lines: list[dict[str, Any]]) -> None:
    log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


async def everything(root: OutputRoot) -> Path:
    """A conversation in which much happens."""
    spec = conversation(
        *("local:test?words=25", "local:test?words=25&thinking=1&fail=disconnect@2", MODEL),
        max_turns=7,
        order="random",
        choose_names=True,
        agents={"a": {"awareness": "basic", "temperature": 0.3}, "b": {"thinking_visible": "partner"}},
        context={"policy": "summarise", "limit_tokens": 500, "reserve_tokens": 20},
    )
    script = (
        Intervention(2, "inject", ("a", "b"), "Rivers.", placement="system"),
        Intervention(3, "edit", ("a",), "I never said that."),
        Intervention(3, "mute", ("b",)),
        Intervention(4, "swap_model", ("a",), model="local:test?words=3"),
        Intervention(5, "swap_system_prompt", ("c",), "Be a stone."),
    )
    spec = replace(spec, interventions=script, injections=(Injection(0, "a", "First.", "awareness:x"),))
    return (await hold_in(root, ID, spec)).log


async def test_what_was_recorded_is_rebuilt_to_the_letter(tmp_path: Path, pidgin: Pidgin) -> None:
    """Requests of every kind, of a branch too, come out as recorded: exit 0, and an empty array of differences."""
    log = await everything(OutputRoot(ROOT.absolute()))
    asked = sum(line["event_type"] == "MessageRequestEvent" for line in lines_of(log))
    said = await threaded(pidgin, "replay", ID)
    assert said.status == 0, said.out + said.err
    assert f"{asked} requests rebuilt: all as recorded" in said.out
    said = await threaded(pidgin, "replay", ID, "--json")
    assert json.loads(said.out) == []
    spec = replace(conversation(MODEL, MODEL, "local:test", max_turns=6), origin=Origin(ID, 3))
    await hold_in(OutputRoot(ROOT.absolute()), "child000-1", spec)
    said = await threaded(pidgin, "replay", "child000-1")
    assert said.status == 0, said.out + said.err
    log.unlink()
    said = await threaded(pidgin, "replay", "child000-1")
    assert said.status == 1
    assert ID in said.err


async def test_a_branch_whose_opening_was_changed_is_told(pidgin: Pidgin) -> None:
    """The first line of a branch has the opening that it shares; another one there is a difference of its own."""
    root = OutputRoot(ROOT.absolute())
    await hold_in(root, ID, conversation(MODEL, MODEL, max_turns=2))
    child = await hold_in(root, "child000-1", replace(conversation(MODEL, MODEL, max_turns=3), origin=Origin(ID, 1)))
    lines = lines_of(child.log)
    shared, lines[0]["opening"] = lines[0]["opening"], "Another."
    rewrite(child.log, lines)
    said = await threaded(pidgin, "replay", "child000-1")
    assert said.status == 1
    assert f'turn 0: opening was "Another.", would be "{shared}"' in said.out
    assert "4 requests rebuilt: 1 difference" in said.out
    assert (await threaded(pidgin, "import", "--all", "--no-metrics")).status == 0
    told = await threaded(pidgin, "verify")
    assert told.status == 1
    assert "its first line contradicts the spec in it: opening" in told.out


async def threaded(pidgin: Pidgin, *args: str) -> Any:
    """A command that has an event loop of its own."""
    import asyncio

    return await asyncio.to_thread(pidgin, *args)


@pytest.mark.parametrize(
    ("kind", "change", "fields"),
    [
        ("MessageCompleteEvent", lambda e: e["message"].update(content="Something else."), {"text"}),
        ("MessageRequestEvent", lambda e: e.update(digest="0" * 32), {"text"}),
        ("MessageRequestEvent", lambda e: e["view"].update({"extra": 9}), {"view.extra"}),
        ("MessageRequestEvent", lambda e: e["parameters"].update({"temperature": 1.9}), {"parameters.temperature"}),
        ("MessageRequestEvent", lambda e: e.update(placeholders=3), {"placeholders"}),
        ("TurnStartEvent", lambda e: e.update(speakers=["b", "a"]), {"speakers"}),
        ("SystemPromptEvent", lambda e: e.update(text="Be somebody else."), {"text"}),
        ("ConversationStartEvent", lambda e: e.update(opening="What was never asked."), {"opening", "text"}),
        ("ConversationStartEvent", lambda e: e.update(arm="y", seed=99), {"arm", "seed"}),
        ("ConversationStartEvent", lambda e: e.update(arm="x", repetition=7), {"arm", "repetition"}),
        (
            "ConversationStartEvent",
            lambda e: e["agents"][1].update(model="local:silent", name="Else"),
            {"agents.b.model", "agents.b.name"},
        ),
        ("ConversationStartEvent", lambda e: e["agents"][0]["settings"].clear(), {"agents.a.settings.temperature"}),
    ],
)
async def test_any_difference_names_turn_and_field(pidgin: Pidgin, kind: str, change: Any, fields: set[str]) -> None:
    """A record that was changed in any part that decides what is sent, or says what was: exit 1, and where."""
    spec = conversation(MODEL, MODEL, agents={"a": {"temperature": 0.3}, "b": {"temperature": 0.3}}, max_turns=3)
    held = await hold_in(OutputRoot(ROOT.absolute()), ID, spec)
    lines = lines_of(held.log)
    at = [number for number, line in enumerate(lines) if line["event_type"] == kind][1 if kind[0] in "MT" else 0]
    change(lines[at])
    rewrite(held.log, lines)
    said = await threaded(pidgin, "replay", ID, "--json")
    assert said.status == 1, said.out
    found = json.loads(said.out)
    assert {each["field"] for each in found} == fields
    assert {each["turn_number"] == 0 for each in found if each["field"] != "text"} <= {kind[0] == "C"}
    turn = lines[at].get("turn_number", 0)
    assert found[0]["turn_number"] >= turn
    told = await threaded(pidgin, "replay", ID)
    assert told.status == 1
    assert f"turn {found[0]['turn_number']}" in told.out
    assert found[0]["field"] in told.out


async def test_a_damaged_record_is_checked_as_far_as_it_goes(pidgin: Pidgin) -> None:
    """Behind a lost message nothing can be rebuilt: that is said with its number, and what came before is checked."""
    held = await hold_in(OutputRoot(ROOT.absolute()), ID, conversation(MODEL, MODEL, max_turns=4))
    lines = held.log.read_bytes().splitlines(keepends=True)
    lost = next(event.seq for event in held.events if getattr(event, "message_index", None) == 3) + 1
    held.log.write_bytes(b"".join([*lines[:lost], b'{"event_type": "Mess\n', *lines[lost + 1 :]]))
    said = await threaded(pidgin, "replay", ID)
    assert said.status == 1
    assert f"line {lost + 1}: broken" in said.err
    assert "4 requests rebuilt: all as recorded" in said.out
    assert "4 requests could not be checked" in said.out
    # A torn end costs nothing that was asked.
    held.log.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    said = await threaded(pidgin, "replay", ID)
    assert said.status == 0, said.out
    assert "torn" in said.err


async def test_no_key_is_needed(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, so parameters of vendors' models are compared without their keys."""
    spec = conversation(
        "anthropic:claude-sonnet-4-5",
        "openai:gpt-4o",
        max_turns=2,
        agents={"a": {"temperature": 0.5}, "b": {"max_tokens": 50}},
    )
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "test-key")
    from pidgin_cli.providers.registry import ProviderPool

    real = ProviderPool()
    answers = {}
    for agent in spec.agents:
        adapter = real.adapter(agent.model, spec.timeouts, agent.settings)
        scripted = Scripted(*replies("hello"))
        scripted.effective_parameters = adapter.effective_parameters  # type: ignore[attr-defined]
        answers[agent.model.partition(":")[2]] = scripted
    await hold_in(OutputRoot(ROOT.absolute()), ID, spec, ScriptedPool(**answers))
    await real.aclose()
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name)
    said = await threaded(pidgin, "replay", ID)
    assert said.status == 0, said.out
    assert "could not be checked" not in said.out
    assert "4 requests rebuilt: all as recorded" in said.out
