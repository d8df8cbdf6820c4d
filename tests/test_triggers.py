"""Interventions that wait for a metric, a detector or a state: decided from the record, done once, resumed alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, pidgin
from forked_cli import ForkedCli, KillWhen, logs_in
from held import Held, hold, hold_in
from msgspec.structs import replace
from support import check_record, conversation, experiment, messages, of_type, story, texts

from pidgin_cli.conversation.replay import rebuild_requests
from pidgin_cli.conversation.watching import check_watch
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import (
    AttractorEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.spec.conversation import ConversationSpec, Origin
from pidgin_cli.spec.experiment import check, expand, to_yaml

__all__ = ["pidgin"]

TALK = "local:test?words=14"
LOOPS = "local:test?words=14&loop_at=3"
SHORT = "local:test?reply=Yes."
MUTE = "local:test?reply="


def waiting(*interventions: dict[str, Any], models: tuple[str, ...] = (TALK, TALK), **keys: Any) -> ConversationSpec:
    return conversation(*models, **{"metrics": "live", "max_turns": 6, "interventions": list(interventions)} | keys)


def done(events: list[Event]) -> list[InterventionEvent]:
    return [event for event in of_type(events, InterventionEvent) if event.source == "script"]


def turns(events: list[Event]) -> list[int]:
    return [event.turn_number for event in done(events)]


async def held(where: Path, spec: ConversationSpec) -> Held:
    where.mkdir(exist_ok=True)
    found = await hold(where / "log.jsonl", spec)
    check_record(found.events)
    assert found.outcome.status is Status.COMPLETED, found.outcome
    return found


def values(events: list[Event], name: str) -> list[list[float | None]]:
    """By turn, the recorded values of its messages."""
    said = of_type(events, TurnCompleteEvent)
    return [[each.get(name) for each in event.metrics["messages"].values()] for event in said]


# What meets a condition


@pytest.mark.parametrize(
    ("when", "turn", "value"),
    [
        ({"metric": "tokens", "above": 0}, 2, 14.0),
        ({"metric": "tokens", "below": 2}, 2, 1.0),
        ({"metric": "tokens", "above": 1, "agent": "b"}, None, None),
        ({"metric": "tokens", "above": 1, "agent": "a"}, 2, 14.0),
        ({"metric": "tokens", "above": 1, "agent": "all"}, None, None),
        ({"metric": "tokens", "above": 0, "agent": "all"}, 2, 1.0),
        ({"metric": "tokens", "below": 15, "agent": "all", "for_turns": 3}, 4, 14.0),
        ({"metric": "tokens", "above": 14}, None, None),
        ({"metric": "ends_with_question", "below": 1, "agent": "b"}, 2, 0.0),
        ({"metric": "sentence_length_sd", "above": -1, "agent": "b"}, None, None),
        ({"metric": "exact_repeat_lag", "below": 5, "agent": "b"}, 3, 2.0),
        ({"metric": "exact_repeat_lag", "below": 5, "for_turns": 2}, 4, 2.0),
    ],
    ids=str,
)
async def test_a_metric_is_judged_by_whose_message_it_is(
    tmp_path: Path, when: dict[str, Any], turn: int | None, value: float | None
) -> None:
    """Any message by default, one agent's, or all; strictly above or below; what is NULL never counts."""
    long = "local:test?reply=" + "+".join(f"word{number}" for number in range(14))
    spec = waiting({"when": when, "inject": "Stop."}, models=(long, SHORT), max_turns=5)
    run = await held(tmp_path, spec)
    assert turns(run.events) == ([] if turn is None else [turn])
    assert [event.value for event in done(run.events)] == ([] if turn is None else [value])


async def test_the_score_of_the_turn_is_the_mean_of_all_pairs(tmp_path: Path) -> None:
    """`convergence` without an agent is what the turn's event says; the event of the deed names trigger and value."""
    spec = waiting({"when": {"metric": "convergence", "above": 0.1}, "inject": "Stop."}, models=(TALK, TALK, SHORT))
    run = await held(tmp_path, spec)
    scores = {event.turn_number: event.convergence for event in of_type(run.events, TurnCompleteEvent)}
    first = next(turn for turn, score in scores.items() if score is not None and score > 0.1)
    (event,) = done(run.events)
    assert (event.turn_number, event.value, event.trigger) == (first + 1, scores[first], "convergence above 0.1")
    never = waiting({"when": {"metric": "convergence", "above": 0.999}, "inject": "Stop."})
    assert not done((await held(tmp_path / "never", never)).events)


async def test_how_often_and_for_how_long(tmp_path: Path) -> None:
    """Once by default; with times more often, and the turns in a row are counted anew each time."""
    often = {"when": {"metric": "tokens", "above": 0, "for_turns": 2}, "inject": "Again.", "times": 2}
    run = await held(tmp_path / "often", waiting(often, models=(SHORT, SHORT), max_turns=9))
    assert turns(run.events) == [3, 5]
    every = {"when": {"metric": "tokens", "above": 0}, "inject": "Again.", "times": 3}
    assert turns((await held(tmp_path / "every", waiting(every, models=(SHORT, SHORT)))).events) == [2, 3, 4]
    once = {"when": {"metric": "tokens", "above": 0}, "inject": "Again."}
    assert turns((await held(tmp_path / "once", waiting(once, models=(SHORT, SHORT)))).events) == [2]


async def test_detectors_and_states(tmp_path: Path) -> None:
    """A detector counts from the turn in which it fires and while it is active; a state at the end of a turn."""
    spec = waiting(
        {"when": {"detector": "cycle"}, "inject": "Enough."},
        {"when": {"state": "cycle", "for_turns": 2}, "inject": "Really."},
        models=(LOOPS, LOOPS),
        max_turns=9,
    )
    run = await held(tmp_path, spec)
    fired = next(event for event in of_type(run.events, AttractorEvent) if event.detector == "cycle")
    assert fired.action == "intervene", "what is done about it is recorded"
    enough, really = done(run.events)
    assert (enough.turn_number, enough.value, enough.trigger) == (fired.turn_number + 1, fired.value, "detector cycle")
    states = [event.detectors.get("state") for event in of_type(run.events, TurnCompleteEvent)]
    assert (really.turn_number, really.value) == (states.index("cycle") + 3, None)
    assert [event.text for event in of_type(run.events, InterventionEvent)] == ["Enough.", "Really."], "no empty text"


async def test_a_mute_leaves_the_agent_out_of_the_very_next_turns(tmp_path: Path) -> None:
    """Whom a trigger silences does not speak in the turn it names, and comes back."""
    mute = {"when": {"metric": "tokens", "above": 0}, "mute": "b", "turns": 2}
    run = await held(tmp_path, waiting(mute, models=(TALK, TALK, TALK), order="random"))
    speakers = [sorted(event.speakers) for event in of_type(run.events, TurnStartEvent)]
    assert speakers == [["a", "b", "c"], ["a", "c"], ["a", "c"], *[["a", "b", "c"]] * 3]
    assert of_type(run.events, ConversationEndEvent)[-1].invalid == ()


async def test_one_who_is_silenced_before_its_first_word_is_no_fault(tmp_path: Path) -> None:
    """An agent that the script and then a trigger keep silent throughout was not forgotten by the harness."""
    script = [
        {"turn": 1, "mute": "b"},
        {"when": {"metric": "tokens", "above": 0}, "mute": "b", "turns": 9},
    ]
    run = await held(tmp_path, waiting(*script))
    assert {event.agent_id for event in messages(run.events)} == {"a"}
    assert of_type(run.events, ConversationEndEvent)[-1].invalid == ()


async def test_nothing_is_done_after_the_last_turn_or_of_empty_messages(tmp_path: Path) -> None:
    """A condition that only the last turn meets does nothing; empty messages have no ratios that could meet one."""
    late = {"when": {"metric": "tokens", "above": 0, "for_turns": 3}, "inject": "Too late."}
    run = await held(tmp_path / "late", waiting(late, max_turns=3))
    assert done(run.events) == []
    empty = [
        {"when": {"metric": "ttr", "below": 2}, "inject": "ttr"},
        {"when": {"metric": "convergence", "below": 2}, "inject": "score"},
        {"when": {"metric": "tokens", "below": 1, "agent": "all"}, "inject": "none"},
    ]
    run = await held(tmp_path / "empty", waiting(*empty, models=(MUTE, MUTE), max_turns=3))
    assert {event.text for event in done(run.events)} <= {"none", "score"}
    assert "ttr" not in {event.text for event in done(run.events)}
    assert "none" in {event.text for event in done(run.events)}


# The record decides

EVERYTHING = (
    {"when": {"metric": "tokens", "above": 0}, "inject": "Speak of rivers.", "times": 2},
    {"when": {"metric": "tokens", "above": 0}, "inject": "Be brief.", "placement": "system"},
    {"turn": 3, "inject": "At its turn."},
    {"when": {"metric": "tokens", "above": 0, "for_turns": 2}, "edit": "I never said that.", "agent": "a"},
    {"when": {"metric": "tokens", "above": 0, "agent": "b", "for_turns": 2}, "mute": "b"},
    {"when": {"state": "cycle"}, "swap_model": "local:test?words=5", "agent": "a"},
    {
        "when": {"metric": "exact_repeat_lag", "above": 0, "agent": "b"},
        "swap_system_prompt": "You are somebody else.",
        "agent": "b",
    },
    {"when": {"detector": "cycle"}, "inject": "Enough.", "to": "b"},
)


def everything() -> ConversationSpec:
    return waiting(*EVERYTHING, models=(LOOPS, LOOPS), max_turns=9, detectors={"cycle": "mark"})


async def test_cut_behind_any_line_the_same_is_done_again(tmp_path: Path) -> None:
    """However a run dies, resumed its triggers decide as they did, once, and every request is what it was."""
    spec = everything()
    whole = await held(tmp_path / "whole", spec)
    assert {event.kind for event in done(whole.events)} == {
        "inject", "edit", "mute", "swap_model", "swap_system_prompt"
    }  # fmt: skip
    assert of_type(whole.events, ConversationEndEvent)[-1].notable["attractor:cycle"] == 1
    assert "Enough." in {event.text for event in done(whole.events)}
    lines = whole.log.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        log = tmp_path / f"{number}.jsonl"
        log.write_bytes(b"".join(lines[:number]) + lines[number][: 7 * (number % 3)])
        again = await hold(log, spec)
        check_record(again.events)
        assert story(again.events, totals=False) == story(whole.events, totals=False)
        assert [what(event) for event in done(again.events)] == [what(event) for event in done(whole.events)]
    rebuilt = rebuild_requests(spec, (), whole.events, lambda _, recorded: recorded)
    assert (rebuilt.requests, rebuilt.differences, rebuilt.unchecked) == (len(messages(whole.events)), [], 0)


def what(event: InterventionEvent) -> tuple[Any, ...]:
    return (event.turn_number, event.kind, event.agent_id, event.text, event.after, event.trigger, event.value)


async def test_a_branch_goes_by_what_it_shares(tmp_path: Path) -> None:
    """Turns in a row count across the fork, so that an unchanged branch is done to as its origin was."""
    root = OutputRoot(tmp_path)
    root.prepare()
    repeat = {"when": {"metric": "tokens", "above": 0, "for_turns": 2}, "inject": "Again.", "times": 9}
    spec = waiting(repeat, models=(SHORT, SHORT), max_turns=9)
    whole = await hold_in(root, "aaaaaaaa-1", spec)
    assert turns(whole.events) == [3, 5, 7, 9]
    for turn in range(1, 8):
        branch = await hold_in(root, f"bbbbbbb{turn}-1", replace(spec, origin=Origin("aaaaaaaa-1", turn)))
        check_record(branch.events)
        assert turns(branch.events) == [one for one in (3, 5, 7, 9) if one > turn]


SPEC = """
agents:
  - {id: a, model: "local:test?words=12&loop_at=3&latency_ms=5"}
  - {id: b, model: "local:test?words=12&loop_at=3&latency_ms=5"}
max_turns: 8
seed: 4
interventions:
  - when: {detector: cycle}
    inject: Speak of rivers.
  - when: {metric: tokens, above: 0, for_turns: 2}
    mute: b
"""


def test_killed_around_a_trigger_and_resumed(tmp_path: Path) -> None:
    """Kill -9 of `pidgin run` when a detector fires, or when the deed is done; `pidgin resume` ends as if not."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    with ForkedCli() as cli:
        assert cli.run(["run", str(spec), "--display", "quiet", "-o", str(tmp_path / "whole")]).status == 0
        (log,) = logs_in(tmp_path / "whole")
        whole = read_record(log).events
        check_record(whole)
        assert [event.kind for event in done(whole)] == ["mute", "inject"]
        moments = ('"detector":"cycle"', '"trigger":"detector cycle"')
        for number, shows in enumerate(moments):
            root = tmp_path / str(number)
            killed = cli.run(["run", str(spec), "--display", "quiet", "-o", str(root)], KillWhen(root, shows=shows))
            assert killed.killed, killed.output
            (log,) = logs_in(root)
            name = log.name.split("_")[1].partition("-")[0]
            assert cli.run(["resume", name, "--display", "quiet", "-o", str(root)]).status == 0
            events = read_record(log).events
            check_record(events)
            assert texts(events) == texts(whole)
            assert [what(event) for event in done(events)] == [what(event) for event in done(whole)]


# Twins


def _run(pidgin: Pidgin, spec: str) -> list[list[Event]]:
    Path("spec.yaml").write_text(spec)
    ran = pidgin("run", "spec.yaml", "--display", "quiet")
    assert ran.status == 0, ran.err
    found = [read_record(log).events for log in sorted(logs_in(Path("pidgin_output")))]
    for events in found:
        check_record(events)
    return found


def test_a_twin_parts_where_the_trigger_acts(pidgin: Pidgin) -> None:
    """The twin shares all turns up to the first thing done, goes on without triggers, and its plan is its spec's."""
    parent, twin = _run(pidgin, SPEC.replace("for_turns: 2", "for_turns: 3") + "twins: true\nrepetitions: 1\n")
    first = done(parent)[0]
    start = of_type(twin, ConversationStartEvent)[0]
    assert start.branch_of is not None
    assert start.branch_of["turn"] == first.turn_number - 1
    assert not of_type(twin, InterventionEvent)
    assert messages(twin)[0].turn_number == first.turn_number
    assert messages(twin)[-1].turn_number == 8
    assert {event.action for event in of_type(twin, AttractorEvent)} == {"record"}


def test_the_twin_of_a_conversation_in_which_nothing_was_done_says_nothing(pidgin: Pidgin) -> None:
    """Where no trigger was met the twin shares everything and is complete without a word of its own."""
    never = SPEC.replace("for_turns: 2", "for_turns: 8").replace("loop_at=3&", "")
    parent, twin = _run(pidgin, never + "twins: true\n")
    assert not done(parent)
    assert messages(twin) == []
    end = of_type(twin, ConversationEndEvent)[-1]
    assert (end.status, end.end_reason, end.invalid) == (Status.COMPLETED, EndReason.TURN_LIMIT, ())
    assert of_type(twin, ConversationStartEvent)[0].branch_of["turn"] == 8  # type: ignore[index]


def test_a_twin_leaves_out_what_detectors_put_in(pidgin: Pidgin) -> None:
    """Text that a detector puts in is an intervention as well: the twin goes without, from the turn before."""
    spec = SPEC.partition("interventions:")[0] + (
        "detectors: {cycle: {action: intervene, text: Enough.}}\ntwins: true\n"
    )
    parent, twin = _run(pidgin, spec)
    (put_in,) = of_type(parent, InterventionEvent)
    assert not of_type(twin, InterventionEvent)
    assert messages(twin)[0].turn_number == put_in.turn_number


def test_a_branch_command_keeps_what_is_left_of_the_triggers(pidgin: Pidgin) -> None:
    """`pidgin branch` leaves out what was done before the fork, keeps who is silent, and waits for the rest."""
    _run(pidgin, SPEC.replace("mute: b", "mute: b\n    turns: 3"))
    (log,) = logs_in(Path("pidgin_output"))
    name = log.name.split("_")[1]
    muted_at = done(read_record(log).events)[0].turn_number
    saved = pidgin("branch", name, "--turn", str(muted_at), "--save-spec", "branch.yaml")
    assert saved.status == 0, saved.err
    text = Path("branch.yaml").read_text()
    assert "detector: cycle" in text
    assert "for_turns" not in text, "it was done"
    after = pidgin("run", "branch.yaml", "--display", "quiet")
    assert after.status == 0, after.err
    events = next(
        record for other in logs_in(Path("pidgin_output")) if other != log and (record := read_record(other).events)
    )
    check_record(events)
    started = of_type(events, TurnStartEvent)
    assert [event.speakers for event in started[:3]] == [("a",), ("a",), ("a", "b")]
    late = pidgin("branch", name, "--turn", "7", "--save-spec", "late.yaml")
    assert late.status == 0, late.err
    assert "detector: cycle" not in Path("late.yaml").read_text()
    assert pidgin("run", "late.yaml", "--display", "quiet", "-n", "late").status == 0


# What a spec says


def test_a_spec_with_triggers_is_written_out_as_it_is_read() -> None:
    """Resolved and saved, the triggers come back the same; the conversation's own form is JSON-able and complete."""
    spec = experiment(TALK, TALK, metrics="live", max_turns=9, interventions=list(EVERYTHING))
    import yaml

    assert check(yaml.safe_load(to_yaml(spec))) == spec
    found = next(iter(expand(spec).values()))
    assert ConversationSpec.from_json(found.to_json()) == found
    assert [str(item.when) for item in found.interventions if item.when][-1] == "detector cycle"


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"metric": "tokns", "below": 3}, "no metric 'tokns'. Did you mean tokens?"),
        ({"metric": "message_class", "below": 3}, "message_class is a text"),
        ({"metric": "recurrence_rate", "below": 3}, "not known while the conversation runs"),
        ({"detector": "cylce"}, "Did you mean cycle?"),
        ({"state": "cylce"}, "Did you mean cycle?"),
    ],
    ids=str,
)
def test_what_nothing_can_wait_for_is_refused(when: dict[str, Any], said: str) -> None:
    """A misspelt metric, detector or state is a fault before the start, with the nearest name."""
    with pytest.raises(SpecError, match=said.replace("?", r"\?")):
        check_watch([waiting({"when": when, "inject": "x"})])


def test_triggers_are_seen_and_judged_before_anything_runs(pidgin: Pidgin) -> None:
    """A dry run shows what waits for what, and where a twin parts; spec check names a metric that there is not."""
    Path("spec.yaml").write_text(SPEC + "twins: true\n")
    shown = pidgin("run", "spec.yaml", "--dry-run").out
    assert "inject of a, b: when detector cycle" in shown
    assert "mute of b: when tokens above 0 for 2 turns" in shown
    assert "branches from -1 before the first intervention" in shown
    assert pidgin("spec", "check", "spec.yaml").status == 0
    Path("spec.yaml").write_text(SPEC.replace("tokens", "tokns"))
    wrong = pidgin("spec", "check", "spec.yaml")
    assert (wrong.status, "interventions.1.when.metric: no metric 'tokns'. Did you mean tokens?" in wrong.err) == (
        2,
        True,
    )


def test_all_that_is_wrong_with_triggers_is_said_at_once(pidgin: Pidgin) -> None:
    """Each misspelt name is told once, with its line, beside the faults of other keys, in a check and before a run."""
    Path("spec.yaml").write_text(
        "agents: [{id: a, model: 'local:test', temprature: 1}, {id: b, model: 'local:test'}]\n"
        "detectors: {cylce: stop, echo_: stop, cycle: {thresholds: {similarty: 0.5}}}\n"
        "interventions:\n"
        "  - {when: {detector: farewel_loop}, inject: x}\n"
        "  - {when: {metric: tokns, above: 3}, inject: x}\n"
        "  - {when: {state: blis}, inject: x, turn: 3}\n"
    )
    places = [
        *("line 1: unknown key 'agents.0.temprature'", "line 2: detectors.cylce", "line 2: detectors.echo_"),
        *("line 2: detectors.cycle.thresholds", "line 4: interventions.0.when.detector"),
        *("line 5: interventions.1.when.metric", "line 6: interventions.2.when.state", "line 6: interventions.2: "),
    ]
    for argv in (("spec", "check", "spec.yaml"), ("run", "spec.yaml"), ("run", "spec.yaml", "--dry-run")):
        said = pidgin(*argv)
        assert said.status == 2
        told = said.err.removeprefix("Error: ").splitlines()
        assert len(told) == len(places), told
        assert [place for place in places if not any(f"spec.yaml, {place}" in line for line in told)] == []


def test_people_see_what_a_trigger_did(pidgin: Pidgin) -> None:
    """Read out, in transcript, report and database, an intervention names its trigger."""
    _run(pidgin, SPEC)
    (log,) = logs_in(Path("pidgin_output"))
    said = pidgin("show", log.name.split("_")[1]).out
    assert "script (detector cycle) to everyone:" in said
    assert "script (tokens above 0 for 2 turns): " in said
    assert (
        pidgin(
            "report", "--only", "import", "--only", "transcripts", "--only", "report", log.name.split("_")[1][:8]
        ).status
        == 0
    )
    folder = log.parent
    (transcript,) = folder.glob("transcripts/conv_*.md")
    for page in (transcript, folder / "report.html"):
        assert "by script (detector cycle), turn" in page.read_text(encoding="utf-8")
    asked = pidgin("query", "SELECT trigger, value FROM interventions ORDER BY seq", "--json")
    rows = json.loads(asked.out)
    assert {row["trigger"] for row in rows} == {"detector cycle", "tokens above 0 for 2 turns"}
    assert all(row["value"] is not None for row in rows)
