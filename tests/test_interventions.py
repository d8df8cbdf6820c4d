"""What a script does to a running conversation: DESIGN 6.1, 6.2."""

from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, pidgin
from forked_cli import ForkedCli, KillWhen, logs_in
from held import hold
from msgspec.structs import replace
from support import Scripted, ScriptedPool, check_record, conversation, messages, of_type, story, texts

from pidgin_cli.conversation.conductor import speaking_order
from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    ContextTruncationEvent,
    ConversationEndEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageRequestEvent,
    TokenUsageEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import Delta, Finish, Message, Role, Status, TextDelta, ThinkingDelta
from pidgin_cli.eventlog.codec import decode
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.spec.conversation import ConversationSpec, Injection, Intervention

__all__ = ["pidgin"]

MODEL = "local:test?words=12"


def scripted(*interventions: Intervention, **keys: Any) -> ConversationSpec:
    spec = conversation(*keys.pop("models", (MODEL, MODEL)), **{"max_turns": 4} | keys)
    return replace(spec, interventions=interventions)


def done(events: list[Event]) -> list[InterventionEvent]:
    return [event for event in of_type(events, InterventionEvent) if event.source == "script"]


def replies(*said: str) -> list[list[Delta]]:
    return [[TextDelta(text), Finish()] for text in said]


def sent(provider: Scripted, number: int) -> list[tuple[str, str]]:
    """What the n-th request held, as roles and texts."""
    return [(message.role.value, message.content) for message in provider.requests[number].messages]


# Exactly once, whatever happens

EVERYTHING = (
    Intervention(2, "inject", ("a", "b"), "Speak of rivers."),
    Intervention(2, "inject", ("a", "b"), "Be brief.", placement="system"),
    Intervention(2, "edit", ("a",), "I never said that."),
    Intervention(3, "mute", ("b",), turns=1),
    Intervention(3, "swap_model", ("a",), model="local:test?words=5"),
    Intervention(4, "swap_system_prompt", ("a", "b"), "You are somebody else now."),
    Intervention(4, "edit", ("b", "a"), ""),
    Intervention(5, "swap_system_prompt", ("a",)),
    Intervention(5, "inject", ("b",), "Speak of rivers."),
    Intervention(5, "inject", ("b",), "Speak of rivers."),
)
ALONE = {f"{item.kind}-{number}": (item,) for number, item in enumerate(EVERYTHING) if item.kind != "inject"}
SCRIPTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "window": {"context": {"policy": "window", "limit_tokens": 160, "reserve_tokens": 20}, "max_turns": 7},
    "summaries": {"context": {"policy": "summarise", "limit_tokens": 300, "reserve_tokens": 20}, "max_turns": 7},
    "random order": {"order": "random", "models": (MODEL, MODEL, f"{MODEL}&thinking=1")},
}


def the_script(name: str) -> ConversationSpec:
    keys = dict(SCRIPTS[name])
    if name in ("window", "summaries"):
        keys["models"] = ("local:test?words=25", "local:test?words=25")
    return scripted(*EVERYTHING, **{"max_turns": 6} | keys)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_cut_behind_any_line_every_intervention_is_done_once(tmp_path: Path, name: str) -> None:
    """However a run dies, resumed it does what is left of the script and no more, and ends as the whole one did."""
    spec = the_script(name)
    whole = await hold(tmp_path / "whole.jsonl", spec)
    check_record(whole.events)
    assert whole.outcome.status is Status.COMPLETED, whole.outcome
    if name == "window":
        assert of_type(whole.events, ContextTruncationEvent)
    if name == "summaries":
        assert of_type(whole.events, HistoryCompactedEvent)
    lines = whole.log.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        log = tmp_path / f"{number}.jsonl"
        log.write_bytes(b"".join(lines[:number]) + lines[number][: 7 * (number % 3)])
        again = await hold(log, spec)
        check_record(again.events)
        paid_twice = len(of_type(again.events, TokenUsageEvent)) != len(of_type(whole.events, TokenUsageEvent))
        assert story(again.events, totals=not paid_twice) == story(whole.events, totals=not paid_twice)
        assert [plain(event) for event in done(again.events)] == [plain(event) for event in done(whole.events)]
        digests = {event.message_index: event.digest for event in of_type(again.events, MessageRequestEvent)}
        assert digests == {event.message_index: event.digest for event in of_type(whole.events, MessageRequestEvent)}


def plain(event: InterventionEvent) -> InterventionEvent:
    unstamped = InterventionEvent(turn_number=0, source="", audience=())
    return replace(event, event_id="", seq=-1, timestamp=unstamped.timestamp)


async def test_a_record_that_lost_what_the_script_did_is_refused(tmp_path: Path) -> None:
    """A lost intervention is noticed by what was sent after it."""
    spec = scripted(
        Intervention(2, "edit", ("a",), "I never said that."), Intervention(3, "inject", ("b",), "Rivers."), max_turns=4
    )
    whole = await hold(tmp_path / "whole.jsonl", spec)
    for event in done(whole.events):
        lines = whole.log.read_bytes().splitlines(keepends=True)[:-1]
        lines[event.seq] = b"{}\n"
        log = tmp_path / f"{event.seq}.jsonl"
        log.write_bytes(b"".join(lines))
        with pytest.raises(LogError, match="cannot go on"):
            await hold(log, spec)


# What each of them does


async def test_an_injection_stands_before_the_reply_of_its_turn(tmp_path: Path) -> None:
    """Text of the script is tagged user text for its addressee alone, at its turn, and the record tells its source."""
    one, other = Scripted(*replies("a1", "a2", "a3")), Scripted(*replies("b1", "b2", "b3"))
    spec = scripted(Intervention(2, "inject", ("b",), "Psst."), models=("openai:one", "openai:other"), max_turns=3)
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one, other=other))
    check_record(held.events)
    (event,) = done(held.events)
    assert (event.kind, event.turn_number, event.audience, event.text) == ("inject", 2, ("b",), "Psst.")
    assert (event.placement, event.message_index) == ("user", 2)
    assert sent(other, 1)[-1] == ("user", "a2\n\n[HUMAN]: Psst.")
    assert not any("Psst." in message.content for request in one.requests for message in request.messages)


async def test_an_edit_changes_what_everybody_reads_from_there_on(tmp_path: Path) -> None:
    """The last message of the agent reads otherwise in its own view and in all others; its event stays as it was."""
    one, other = Scripted(*replies("a1", "a2", "a3")), Scripted(*replies("b1", "b2", "b3"))
    spec = scripted(Intervention(3, "edit", ("a",), "Edited."), models=("openai:one", "openai:other"), max_turns=3)
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one, other=other))
    check_record(held.events)
    (event,) = done(held.events)
    assert (event.before, event.after, event.edited_index, event.agent_id) == ("a2", "Edited.", 2, "a")
    assert texts(held.events) == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert sent(one, 2) == [
        ("user", "[HUMAN]: Good morning."),
        ("assistant", "a1"),
        ("user", "b1"),
        ("assistant", "Edited."),
        ("user", "b2"),
    ]
    assert ("user", "Edited.") in sent(other, 2)
    assert ("user", "a2") in sent(other, 1), "what was sent before stays as it was"


async def test_nobody_can_edit_what_was_not_said(tmp_path: Path) -> None:
    """An agent that has been silent so far has no message to edit: nothing is recorded that was not done."""
    spec = scripted(Intervention(1, "mute", ("b",)), Intervention(2, "edit", ("b", "a"), "Edited."))
    held = await hold(tmp_path / "log.jsonl", spec)
    check_record(held.events)
    assert [(event.kind, event.agent_id) for event in done(held.events)] == [("mute", "b"), ("edit", "a")]


async def test_a_muted_agent_is_silent_and_comes_back(tmp_path: Path) -> None:
    """It is left out of the turns' speakers, hears everything, and its next request holds what it missed."""
    one, other = Scripted(*replies("a1", "a2", "a3", "a4")), Scripted(*replies("b1", "b4"))
    spec = scripted(Intervention(2, "mute", ("b",), turns=2), models=("openai:one", "openai:other"))
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one, other=other))
    check_record(held.events)
    assert [event.speakers for event in of_type(held.events, TurnStartEvent)] == [
        ("a", "b"),
        ("a",),
        ("a",),
        ("a", "b"),
    ]
    (event,) = done(held.events)
    assert (event.kind, event.agent_id, event.turns, event.turn_number) == ("mute", "b", 2, 2)
    assert texts(held.events) == ["a1", "b1", "a2", "a3", "a4", "b4"]
    assert sent(other, 1)[-1] == ("user", "a2\n\na3\n\na4")


async def test_an_agent_muted_throughout_is_no_fault(tmp_path: Path) -> None:
    """Only a speaker that was to speak and never did makes a conversation invalid."""
    held = await hold(tmp_path / "log.jsonl", scripted(Intervention(1, "mute", ("b",), turns=4)))
    check_record(held.events)
    assert of_type(held.events, ConversationEndEvent)[-1].invalid == ()


async def test_another_model_takes_the_seat(tmp_path: Path) -> None:
    """From its turn on the new model is asked: with its own window, without signatures, and with checks begun anew."""
    thought: list[Delta] = [
        ThinkingDelta("Hm.", "signature"),
        TextDelta("a"),
        Finish(model="one-2026", fingerprint="f1"),
    ]
    one, two = Scripted(thought), Scripted([TextDelta("c"), Finish(model="two", fingerprint="f2")])
    spec = scripted(
        Intervention(3, "swap_model", ("a",), model="openai:two"),
        models=("openai:one", MODEL),
        agents={"a": {"thinking_visible": "own"}},
        lenient=True,
    )
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one, two=two))
    check_record(held.events)
    assert held.outcome.status is Status.COMPLETED
    asked = [(event.turn_number, event.model_requested) for event in messages(held.events) if event.agent_id == "a"]
    assert asked == [(1, "openai:one"), (2, "openai:one"), (3, "openai:two"), (4, "openai:two")]
    (event,) = done(held.events)
    assert (event.before, event.after, event.agent_id) == ("openai:one", "openai:two", "a")
    end = of_type(held.events, ConversationEndEvent)[-1]
    assert end.invalid == ()
    assert "served_model" not in end.notable
    assert "fingerprint" not in end.notable
    own = [message for message in one.requests[1].messages if message.role is Role.ASSISTANT]
    assert [block.signature for message in own for block in message.thinking] == ["signature"]
    later = [block for request in two.requests for message in request.messages for block in message.thinking]
    assert {block.text for block in later} == {"Hm."}
    assert all(block.signature is None for block in later), "a signature is its own model's"


async def test_the_window_of_the_new_model_counts(tmp_path: Path) -> None:
    """A model that is swapped in with a smaller window has turns left out at once."""
    spec = scripted(
        Intervention(4, "swap_model", ("a",), model="anthropic:claude-sonnet-4-5"),
        models=("openai:one", "local:test?words=40"),
        context={"policy": "window"},
        max_turns=5,
    )
    one = Scripted(*replies("word " * 80_000))
    two = Scripted(*replies("short"))
    pool = ScriptedPool(one=one, **{"claude-sonnet-4-5": two})
    held = await hold(tmp_path / "log.jsonl", spec, pool)
    left_out = [event for event in of_type(held.events, ContextTruncationEvent) if event.agent_id == "a"]
    (swap,) = done(held.events)
    before = [event for event in left_out if event.seq < swap.seq]
    assert held.outcome.status is Status.COMPLETED, held.outcome
    assert not before
    assert left_out, "nothing was left out for the smaller window"


async def test_another_system_prompt_takes_effect_and_nothing_else_changes(tmp_path: Path) -> None:
    """From its turn on the new text is the system prompt, or there is none; the conversation's own words stay."""
    one = Scripted(*replies("a1", "a2", "a3", "a4"))
    spec = scripted(
        Intervention(2, "swap_system_prompt", ("a",), "Be a river."),
        Intervention(4, "swap_system_prompt", ("a",)),
        models=("openai:one", MODEL),
        agents={"a": {"system_prompt": "Be a stone."}},
    )
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one))
    check_record(held.events)
    assert [request.system for request in one.requests] == ["Be a stone.", "Be a river.", "Be a river.", None]
    assert [(event.before, event.after) for event in done(held.events)] == [
        ("Be a stone.", "Be a river."),
        ("Be a river.", None),
    ]
    assert sent(one, 1)[:2] == [("user", "[HUMAN]: Good morning."), ("assistant", "a1")]
    assert [event.placement for event in done(held.events)] == ["system message", ""]


# Where text stands


@pytest.mark.parametrize(
    ("model", "placement"),
    [
        ("openai:one", "message"),
        ("xai:one", "message"),
        ("anthropic:one", "parameter"),
        ("google:one", "parameter"),
        ("ollama:one", "parameter"),
        ("vllm:one", "parameter"),
    ],
)
async def test_system_text_gets_the_strongest_place_of_its_family(tmp_path: Path, model: str, placement: str) -> None:
    """Awareness and script placed `system` stand where the model's family has a place, and it is recorded."""
    one = Scripted(*replies("a1", "a2", "a3"))
    spec = scripted(
        Intervention(2, "inject", ("a",), "Be brief.", placement="system"),
        models=(model, MODEL),
        max_turns=3,
        agents={"a": {"system_prompt": "Be kind."}},
    )
    spec = replace(spec, injections=(Injection(3, "a", "Be sad.", "awareness:x", "system"),))
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one))
    check_record(held.events)
    assert {event.placement for event in of_type(held.events, InterventionEvent)} == {placement}
    first, second, third = one.requests
    assert first.system == "Be kind."
    system = [message.content for message in third.messages if message.role is Role.SYSTEM]
    if placement == "message":
        assert system == ["Be brief.", "Be sad."]
        assert second.messages[-1] == Message(role=Role.SYSTEM, content="Be brief.")
        assert third.messages[-1] == Message(role=Role.SYSTEM, content="Be sad.")
        assert third.system == "Be kind."
    else:
        assert system == []
        assert second.system == "Be kind.\n\nBe brief."
        assert third.system == "Be kind.\n\nBe brief.\n\nBe sad."
    assert not any("HUMAN" in text for text in (*system, third.system or ""))


async def test_a_new_model_gets_system_text_where_its_own_family_has_a_place(tmp_path: Path) -> None:
    """A system message that the old model was sent stands behind the system prompt for one that takes none."""
    one, two = Scripted(*replies("a1", "a2")), Scripted(*replies("a3", "a4"))
    spec = scripted(
        Intervention(2, "inject", ("a",), "Be brief.", placement="system"),
        Intervention(3, "swap_model", ("a",), model="anthropic:two"),
        models=("openai:one", MODEL),
    )
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one, two=two))
    check_record(held.events)
    assert [message.content for message in one.requests[1].messages if message.role is Role.SYSTEM] == ["Be brief."]
    assert all(request.system == "Be brief." for request in two.requests)
    assert not any(message.role is Role.SYSTEM for request in two.requests for message in request.messages)


async def test_system_text_stays_when_its_turn_is_left_out(tmp_path: Path) -> None:
    """What was put behind a system prompt holds for good, also when the window drops the turn that it came in."""
    one = Scripted(*replies("word " * 60))
    spec = scripted(
        Intervention(1, "inject", ("a",), "Be brief.", placement="system"),
        models=("anthropic:one", "local:test?words=25"),
        context={"policy": "window", "limit_tokens": 300, "reserve_tokens": 20},
        max_turns=8,
    )
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one))
    check_record(held.events)
    assert of_type(held.events, ContextTruncationEvent)
    assert {request.system for request in one.requests} == {"Be brief."}


def test_old_lines_read_as_injections() -> None:
    """A line of an earlier version, which knows no kinds, is text put in."""
    event = decode(b'{"event_type":"InterventionEvent","turn_number":1,"source":"person","audience":["a"],"text":"x"}')
    assert isinstance(event, InterventionEvent)
    assert (event.kind, event.agent_id, event.edited_index) == ("inject", None, None)


def test_turn_order_and_silence_are_a_function_of_the_spec() -> None:
    """With a random order, who is silent changes nothing for the others."""
    spec = scripted(order="random", models=(MODEL, MODEL, MODEL), max_turns=20)
    muted = replace(spec, interventions=(Intervention(3, "mute", ("b",), turns=5),))
    for turn in range(1, 21):
        order = speaking_order(spec, turn)
        silent = {"b"} if 3 <= turn < 8 else set()
        assert speaking_order(muted, turn) == tuple(agent_id for agent_id in order if agent_id not in silent)


SPEC = """
agents:
  - {id: a, model: "local:test?words=12&latency_ms=10"}
  - {id: b, model: "local:test?words=12&latency_ms=10"}
max_turns: 5
seed: 4
interventions:
  - {turn: 2, inject: Speak of rivers.}
  - {turn: 2, inject: Be brief., placement: system}
  - {turn: 3, edit: I never said that., agent: a}
  - {turn: 3, mute: b}
  - {turn: 4, swap_model: "local:test?words=3", agent: a}
  - {turn: 4, swap_system_prompt: Be somebody., agent: b}
"""


def test_killed_processes_do_the_script_once(tmp_path: Path) -> None:
    """Kill -9 of `pidgin run` around every intervention, then `pidgin resume`: as if nothing had been."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    with ForkedCli() as cli:
        done = cli.run(["run", str(spec), "--display", "quiet", "-o", str(tmp_path / "whole")])
        assert done.status == 0, done.output
        (log,) = logs_in(tmp_path / "whole")
        whole = read_record(log).events
        check_record(whole)
        assert len(done_by_script(whole)) == 7
        for number, kind in enumerate(("inject", "edit", "mute", "swap_model", "swap_system_prompt")):
            root = tmp_path / str(number)
            shows = "InterventionEvent" if kind == "inject" else f'"kind":"{kind}","agent_id"'
            killed = cli.run(["run", str(spec), "--display", "quiet", "-o", str(root)], KillWhen(root, shows=shows))
            assert killed.killed, killed.output
            (log,) = logs_in(root)
            name = log.name.split("_")[1].partition("-")[0]
            again = cli.run(["resume", name, "--display", "quiet", "-o", str(root)])
            assert again.status == 0, again.output
            events = read_record(log).events
            check_record(events)
            assert texts(events) == texts(whole)
            assert done_by_script(events) == done_by_script(whole)


def done_by_script(events: list[Event]) -> list[tuple[Any, ...]]:
    return [
        (event.kind, event.turn_number, event.agent_id, event.audience, event.text, event.before, event.after)
        for event in done(events)
    ]


def test_people_see_what_the_script_does(pidgin: Pidgin) -> None:
    """Read out, every intervention says what it did to whom."""
    Path("spec.yaml").write_text(SPEC)
    assert pidgin("run", "spec.yaml", "--display", "quiet").status == 0
    (log,) = logs_in(Path("pidgin_output"))
    said = pidgin("show", log.name.split("_")[1], "--show-system-prompts")
    for line in (
        "script to everyone:\nSpeak of rivers.",
        "script: message 2 of test-a now reads:\nI never said that.",
        "script: test-b is silent for 1 turn",
        "script: test-a is local:test?words=3 from here on",
        "script: test-b has another system prompt now\nBe somebody.",
    ):
        assert line in "\n".join(text.strip() for text in said.out.splitlines()), line


@pytest.mark.parametrize(
    "change",
    [
        Intervention(3, "edit", ("b",), text="I never said that."),
        Intervention(3, "swap_system_prompt", ("a",), text="You are tired."),
        Intervention(3, "inject", ("a",), text="Be brief.", placement="system"),
    ],
    ids=lambda change: change.kind,
)
async def test_signatures_of_another_beginning_are_dropped(tmp_path: Path, change: Intervention) -> None:
    """Once something before a thought reads otherwise its signature is sent no more; those made since are."""
    thought: list[Delta] = [ThinkingDelta("Hm.", "signature"), TextDelta("a"), Finish(model="one")]
    one = Scripted(thought)
    spec = scripted(change, models=("anthropic:one", MODEL), agents={"a": {"thinking_visible": "own"}})
    held = await hold(tmp_path / "log.jsonl", spec, ScriptedPool(one=one))
    check_record(held.events)
    signed = [
        [block.signature for message in request.messages for block in message.thinking] for request in one.requests
    ]
    assert signed == [[], ["signature"], [None, None], [None, None, "signature"]]
