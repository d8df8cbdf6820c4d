"""Metrics and detectors beside a running conversation: what is recorded, and what they lead to, resumed or not."""

from pathlib import Path
from typing import Any

import pytest
from support import Run, bus_watch, check_record, conversation, converse, cut_copy, experiment, go_on, messages, of_type

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.conversation.watching import check_watch
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import (
    AttractorEvent,
    ConvergenceWarningEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    Event,
    InterventionEvent,
    TurnCompleteEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.metrics.engine import Engine, Reply

TALK = "local:test?words=14"
LOOPS = "local:test?words=14&loop_at=3"
PARROT = "local:test?reply=The+river+is+always+the+same+river+my+friend+and+so+are+we"


async def watched(where: Path, *models: str, **keys: Any) -> Run:
    run = await converse(where, experiment(*models, metrics="live", **keys))
    check_record(run.events)
    return run


def found(events: list[Event]) -> list[Any]:
    """What metrics and detectors said, without ids and times; latencies differ from run to run."""
    told: list[Any] = []
    for event in events:
        match event:
            case TurnCompleteEvent():
                values = {
                    index: {name: value for name, value in each.items() if not _timed(name)}
                    for index, each in event.metrics["messages"].items()
                }
                told.append((event.turn_number, values, event.metrics["turn"], event.convergence, event.detectors))
            case AttractorEvent():
                told.append((event.message_index, event.detector, event.value, event.onset, event.period, event.action))
            case ConvergenceWarningEvent():
                told.append((event.turn_number, event.score, event.value, event.action))
    return told


def _timed(name: str) -> bool:
    return any(word in name for word in ("latency", "ms", "per_s", "attempt", "ttft"))


async def test_live_values_are_those_of_the_engine(tmp_path: Path) -> None:
    """Every turn carries the values of its messages, as the engine gives them for the recorded words."""
    run = await watched(tmp_path, TALK, TALK, max_turns=4)
    engine = Engine({agent.id: agent.name for agent in conversation(TALK, TALK).agents}, opening="Good morning.")
    turns = of_type(run.events, TurnCompleteEvent)
    assert len(turns) == 4
    said = messages(run.events)
    for event in said:
        reply = Reply(event.usage, event.timing, event.finish_reason, event.cost, event.attempt)
        values = engine.add(event.agent_id, event.message.content, reply=reply)
        recorded = turns[event.turn_number - 1].metrics["messages"][str(event.message_index)]
        assert recorded == pytest.approx({name: value for name, value in values.items() if value is not None})
    assert turns[-1].convergence is not None
    assert turns[-1].detectors["state"] == "normal"
    assert of_type(run.events, ConversationEndEvent)[-1].metrics["floor_share_a"] > 0


async def test_off_computes_nothing(tmp_path: Path) -> None:
    """With metrics: off the record has none."""
    run = await converse(tmp_path, experiment(TALK, TALK))
    assert [event.metrics for event in of_type(run.events, TurnCompleteEvent)] == [{}] * 3
    assert of_type(run.events, ConversationEndEvent)[-1].metrics == {}


@pytest.mark.parametrize(
    ("models", "keys"),
    [
        ((TALK, TALK), {"max_turns": 3}),
        ((LOOPS, LOOPS), {"max_turns": 6, "detectors": {"cycle": "mark"}}),
        ((LOOPS, LOOPS), {"max_turns": 8, "detectors": {"cycle": "stop"}}),
        ((LOOPS, LOOPS), {"max_turns": 6, "detectors": {"cycle": {"action": "intervene", "text": "Enough."}}}),
        ((PARROT, PARROT), {"max_turns": 3, "convergence": {"threshold": 0.9, "action": "stop"}}),
    ],
    ids=["plain", "mark", "stop", "intervene", "convergence"],
)
async def test_resumed_after_every_line_all_is_found_once(tmp_path: Path, models: tuple[str, ...], keys: Any) -> None:
    """Cut behind any line and resumed, the record says of metrics, detectors and actions what a whole one does."""
    run = await watched(tmp_path / "whole", *models, **keys)
    size = 0
    for number, line in enumerate(run.log.read_bytes().splitlines(keepends=True)):
        size += len(line)
        root, folder = cut_copy(run, tmp_path / str(number), size)
        again = await go_on(root, folder)
        assert found(again.events) == found(run.events)
        put_in = [(event.source, event.text) for event in of_type(run.events, InterventionEvent)]
        assert [(event.source, event.text) for event in of_type(again.events, InterventionEvent)] == put_in
        ends = [of_type(events, ConversationEndEvent)[-1] for events in (run.events, again.events)]
        assert len({(end.status, end.end_reason, str(end.notable)) for end in ends}) == 1


async def test_a_detector_ends_the_conversation(tmp_path: Path) -> None:
    """A loop that stops is an event with its onset, and a completed conversation with the reason detector."""
    run = await watched(tmp_path, LOOPS, LOOPS, max_turns=20, detectors={"cycle": "stop"})
    (end,) = of_type(run.events, ConversationEndEvent)
    assert (end.status, end.end_reason) == (Status.COMPLETED, EndReason.DETECTOR)
    fired = next(event for event in of_type(run.events, AttractorEvent) if event.detector == "cycle")
    assert fired.action == "stop"
    assert fired.onset is not None
    assert fired.onset < fired.message_index == len(messages(run.events)) - 1


async def test_a_marked_conversation_is_notable(tmp_path: Path) -> None:
    """mark leaves the talk as it is and counts in the end event's notable marks."""
    plain = await watched(tmp_path / "plain", LOOPS, LOOPS, max_turns=8)
    marked = await watched(tmp_path / "marked", LOOPS, LOOPS, max_turns=8, detectors={"cycle": "mark"})
    assert [m.message.content for m in messages(plain.events)] == [m.message.content for m in messages(marked.events)]
    assert "attractor:cycle" not in of_type(plain.events, ConversationEndEvent)[-1].notable
    assert of_type(marked.events, ConversationEndEvent)[-1].notable["attractor:cycle"] == 1


async def test_a_detector_pauses(tmp_path: Path) -> None:
    """pause holds the conversation before the next request; whoever resumes it lets it go on."""
    spec = experiment(LOOPS, LOOPS, max_turns=8, metrics="live", detectors={"cycle": "pause"})

    def go_ahead(conductor: Conductor, event: ConversationPausedEvent) -> None:
        assert event.by == "detector:cycle"
        conductor.control.resume()

    run = await converse(tmp_path, spec, watch=bus_watch(ConversationPausedEvent, go_ahead))
    assert of_type(run.events, ConversationPausedEvent)
    assert of_type(run.events, ConversationEndEvent)[-1].end_reason is EndReason.TURN_LIMIT


async def test_a_detector_intervenes(tmp_path: Path) -> None:
    """intervene puts the spec's text before everybody's next reply, with the detector as its source."""
    policy = {"cycle": {"action": "intervene", "text": "Something else, please."}}
    run = await watched(tmp_path, LOOPS, LOOPS, max_turns=8, detectors=policy)
    (put_in,) = [event for event in of_type(run.events, InterventionEvent) if event.source == "detector:cycle"]
    assert put_in.text == "Something else, please."
    assert put_in.audience == ("a", "b")


async def test_thresholds_have_their_effect(tmp_path: Path) -> None:
    """A detector told to wait longer fires later."""
    short = await watched(tmp_path / "short", LOOPS, LOOPS, max_turns=12, detectors={"cycle": "stop"})
    long = {"cycle": {"action": "stop", "thresholds": {"similarity": 1.0, "run": 6}}}
    late = await watched(tmp_path / "long", LOOPS, LOOPS, max_turns=12, detectors=long)
    assert len(messages(late.events)) > len(messages(short.events))


async def test_convergence_notifies_once_and_stops(tmp_path: Path) -> None:
    """At the threshold there is one warning with the score; with stop the conversation completes with that reason."""
    told = await watched(tmp_path / "told", PARROT, PARROT, max_turns=4, convergence={"threshold": 0.9})
    (warning,) = of_type(told.events, ConvergenceWarningEvent)
    assert (warning.turn_number, warning.score, warning.action) == (1, "balanced", "notify")
    assert warning.value == pytest.approx(1.0)
    assert of_type(told.events, ConversationEndEvent)[-1].end_reason is EndReason.TURN_LIMIT
    stop = {"threshold": 0.9, "action": "stop"}
    ended = await watched(tmp_path / "ended", PARROT, PARROT, max_turns=4, convergence=stop)
    end = of_type(ended.events, ConversationEndEvent)[-1]
    assert (end.status, end.end_reason) == (Status.COMPLETED, EndReason.CONVERGENCE)
    never = await watched(tmp_path / "never", TALK, TALK, max_turns=2, convergence={"threshold": 1.0})
    assert not of_type(never.events, ConvergenceWarningEvent)


async def test_convergence_pauses(tmp_path: Path) -> None:
    """pause holds the conversation after the turn that reached the threshold; without a threshold nothing happens."""

    def go_ahead(conductor: Conductor, event: ConversationPausedEvent) -> None:
        assert (event.by, event.message_index) == ("convergence", 2)
        conductor.control.resume()

    spec = experiment(PARROT, PARROT, metrics="live", convergence={"threshold": 0.9, "action": "pause"})
    run = await converse(tmp_path / "paused", spec, watch=bus_watch(ConversationPausedEvent, go_ahead))
    check_record(run.events)
    assert len(of_type(run.events, ConversationPausedEvent)) == 1
    assert of_type(run.events, ConversationEndEvent)[-1].end_reason is EndReason.TURN_LIMIT
    for action in ("pause", "stop"):
        off = await watched(tmp_path / action, PARROT, PARROT, max_turns=2, convergence={"action": action})
        assert not of_type(off.events, ConvergenceWarningEvent)
        assert of_type(off.events, ConversationEndEvent)[-1].end_reason is EndReason.TURN_LIMIT


async def test_a_stop_by_a_detector_is_final(tmp_path: Path) -> None:
    """Run again, a conversation of three that a detector has ended stays as it is: nothing fires or is asked twice."""
    run = await watched(tmp_path, LOOPS, LOOPS, LOOPS, max_turns=8, detectors={"cycle": "stop"})
    assert of_type(run.events, ConversationEndEvent)[-1].end_reason is EndReason.DETECTOR
    again = await go_on(run.root, run.folder)
    assert again.events == run.events


async def test_a_stop_in_the_last_turn_is_the_reason(tmp_path: Path) -> None:
    """A detector that fires at the very last message ends the conversation, not the turn limit."""
    long = await watched(tmp_path / "long", LOOPS, LOOPS, max_turns=8, detectors={"cycle": "stop"})
    last = messages(long.events)[-1]
    short = await watched(
        tmp_path / "short", LOOPS, LOOPS, max_turns=last.turn_number, detectors={"cycle": {"action": "stop"}}
    )
    assert len(messages(short.events)) == len(messages(long.events))
    assert of_type(short.events, ConversationEndEvent)[-1].end_reason is EndReason.DETECTOR


async def test_profiles_and_weights_have_their_effect(tmp_path: Path) -> None:
    """Every profile, and weights of one's own, give scores of their own for the same words."""
    choices: list[dict[str, Any]] = [{"profile": name} for name in ("balanced", "structural", "semantic", "strict")]
    choices += [{"weights": {"length": 1.0}}, {"weights": {"content": 0.5, "punctuation": 0.5}}]
    scores = []
    for number, choice in enumerate(choices):
        run = await watched(tmp_path / str(number), TALK, TALK, max_turns=1, convergence=choice)
        scores.append(of_type(run.events, TurnCompleteEvent)[0].convergence)
    assert len(set(scores)) == len(choices)


def test_unknown_detectors_and_thresholds_are_refused() -> None:
    """A misspelt detector or threshold is a fault before the start, with the nearest name."""
    with pytest.raises(SpecError, match="Did you mean cycle"):
        check_watch([conversation(TALK, TALK, metrics="live", detectors={"cylce": "stop"})])
    wrong = {"cycle": {"thresholds": {"similarty": 0.5}}}
    with pytest.raises(SpecError, match="similarty"):
        check_watch([conversation(TALK, TALK, metrics="live", detectors=wrong)])
    with pytest.raises(SpecError, match="leaves nothing"):
        conversation(TALK, TALK, detectors={"cycle": "stop"})
