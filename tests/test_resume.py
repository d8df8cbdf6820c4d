"""Going on after a death at any point: DESIGN 6.2."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import (
    Run,
    Scripted,
    ScriptedPool,
    bus_watch,
    check_record,
    converse,
    cut_copy,
    elsewhere,
    experiment,
    go_on,
    messages,
    of_type,
    requests_per_message,
    story,
    texts,
)

from pidgin_cli.conversation.recording import read_recording
from pidgin_cli.core.errors import ContentFiltered, LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    ConversationEndEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import EndReason, Finish, Status, TextDelta, ThinkingDelta
from pidgin_cli.eventlog.codec import Skipped, decode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.spec.experiment import ExperimentSpec

_HELLO = [TextDelta("Hello."), Finish()]

AWARE = """\
name: probe
base: basic
prompts:
  0: {agent_a: you are first}
  2: {both: two, agent_b: and you}
"""


def many(folder: Path) -> dict[str, ExperimentSpec]:
    """Conversations in which everything happens that a resume has to find its way through."""
    aware = folder / "aware.yaml"
    aware.write_text(AWARE)
    told = {"a": {"awareness": str(aware)}, "b": {"awareness": str(aware)}}
    small = {"limit_tokens": 160, "reserve_tokens": 20}
    model = "local:test?words=8"
    return {
        "plain": experiment(model, model, agents=told),
        "failures": experiment(
            f"{model}&chunk=2&fail=server_error@1x2,disconnect@2",
            f"{model}&thinking=1&fail=timeout@1,empty@2,disconnect@3x2",
        ),
        "random": experiment(
            model, f"{model}&thinking=1", "local:silent", order="random", first="random", choose_names=True
        ),
        "window": experiment(
            "local:test?words=25", "local:test?words=25", max_turns=6, context={"policy": "window", **small}
        ),
        "summarise": experiment(
            "local:test?words=25",
            "local:test?words=25&fail=server_error@4",
            max_turns=7,
            agents=told,
            context={"policy": "summarise", "pinned": ["It rains."], "limit_tokens": 300, "reserve_tokens": 20},
        ),
        "refused": experiment(
            "local:test?words=25&context=120", "local:test?words=25", max_turns=6, context={"policy": "window"}
        ),
        "stop phrase": experiment(model, f"{model}&loop_at=2&reply=BYE", agents={"b": {"stop_phrase": "BYE"}}),
        "failed": experiment(model, f"{model}&fail=auth@2"),
        "full": experiment("local:test?words=25", "local:test?words=25", context={"policy": "stop", **small}),
    }


NAMES = ("plain", "failures", "random", "window", "summarise", "refused", "stop phrase", "failed", "full")


async def whole(tmp_path: Path, name: str) -> Run:
    run = await converse(tmp_path / "whole", many(tmp_path)[name])
    check_record(run.events)
    return run


def asides(events: list[Event]) -> Counter[str]:
    """How often a name or a summary was paid for."""
    return Counter(event.purpose for event in of_type(events, TokenUsageEvent) if event.purpose != "message")


def seen(events: list[Event]) -> list[tuple[str, str]]:
    """What each message answered: the digest of its last request."""
    digests = {event.message_index: event.digest for event in of_type(events, MessageRequestEvent)}
    return [(event.agent_id, digests[event.message_index]) for event in messages(events)]


def check_resumed(run: Run, again: Run, kept: list[Event], torn: bytes) -> None:
    """That `again`, which went on from `kept`, is as good as `run`, which was never interrupted."""
    check_record(again.events)
    assert [event.seq for event in kept] == [event.seq for event in again.events[: len(kept)]], "nothing is rewritten"
    paid_twice = asides(run.events) != asides(again.events)
    assert story(again.events, totals=not paid_twice) == story(run.events, totals=not paid_twice)
    assert seen(again.events) == seen(run.events)
    for kind in (TurnStartEvent, AgentNamedEvent):
        assert len(of_type(again.events, kind)) == len(of_type(run.events, kind))
    compacted = [(event.agent_id, event.summary) for event in of_type(run.events, HistoryCompactedEvent)]
    assert [(event.agent_id, event.summary) for event in of_type(again.events, HistoryCompactedEvent)] == compacted
    put_in = [(e.turn_number, e.audience, e.text) for e in of_type(run.events, InterventionEvent)]
    assert [(e.turn_number, e.audience, e.text) for e in of_type(again.events, InterventionEvent)] == put_in
    stored = {event.message_index for event in messages(kept)}
    before, after = requests_per_message(kept), requests_per_message(again.events)
    assert all(after[index] == before[index] for index in stored), "a stored message was asked for again"
    assert len(of_type(again.events, ConversationStartEvent)) == 1
    file = again.log.with_name(again.log.name + ".torn")
    assert (file.read_bytes() if file.exists() else b"") == (torn + b"\n" if torn else b"")
    resumed = of_type(again.events, ConversationResumedEvent)
    if kept:
        assert resumed[0].torn_bytes == len(torn)
        assert resumed[0].by == "resume"
    else:
        assert not resumed, "nothing of it was there"


def completed(events: list[Event]) -> bool:
    """Ended for good: a window that is full stays full."""
    last = events[-1] if events else None
    return isinstance(last, ConversationEndEvent) and (
        last.status is Status.COMPLETED or last.end_reason is EndReason.CONTEXT_LIMIT
    )


async def cut_and_go_on(run: Run, where: Path, size: int) -> None:
    data = run.log.read_bytes()[:size]
    root, folder = cut_copy(run, where, size)
    kept = read_record(folder.log(f"{folder.experiment_id}-1")).events
    torn = data[data.rfind(b"\n") + 1 :]
    if torn and not isinstance(decode(torn), Skipped):
        torn = b""  # a whole event that lacks but its newline
    again = await go_on(root, folder)
    if completed(kept):
        assert again.events == kept
        return
    check_resumed(run, again, kept, torn)


@pytest.mark.parametrize("name", NAMES)
async def test_resume_after_every_line(tmp_path: Path, name: str) -> None:
    """Cut behind any line, the resumed run says, counts and ends exactly what the uninterrupted one did."""
    run = await whole(tmp_path, name)
    size = 0
    for number, line in enumerate(run.log.read_bytes().splitlines(keepends=True)):
        await cut_and_go_on(run, tmp_path / f"line-{number}", size)
        size += len(line)
    await cut_and_go_on(run, tmp_path / "all", size)


@pytest.mark.parametrize("name", ["failures", "summarise"])
async def test_resume_after_any_byte(tmp_path: Path, name: str) -> None:
    """Cut within a line, the torn piece is moved aside, whole, and the run is as good as an uninterrupted one."""
    run = await whole(tmp_path, name)
    data = run.log.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10]
    chance = random.Random(7)
    sizes = {1, ends[0] - 1, ends[0] + 1, len(data) - 1, *(end - 1 for end in ends[3:9])}
    sizes |= {chance.randrange(1, len(data)) for _ in range(20)}
    for size in sorted(sizes):
        await cut_and_go_on(run, tmp_path / f"byte-{size}", size)


async def test_dying_again_and_again(tmp_path: Path) -> None:
    """A run that dies after every few lines of progress ends like one that never died."""
    run = await whole(tmp_path, "random")
    size, kept = 0, b""
    for life in range(40):
        root, folder = cut_copy(run, tmp_path / f"life-{life}", 0)
        folder.log(f"{folder.experiment_id}-1").write_bytes(kept)
        again = await go_on(root, folder)
        check_record(again.events)
        data = again.log.read_bytes()
        lines = data.splitlines(keepends=True)
        done = kept.count(b"\n")
        if len(lines) <= done + 5:
            break
        kept = b"".join(lines[: done + 5]) + lines[done + 5][:20]
        size = len(kept)
    else:
        pytest.fail("it never came to its end")
    assert size
    assert story(again.events, totals=False) == story(run.events, totals=False)
    assert len(of_type(again.events, ConversationResumedEvent)) > 5


async def test_a_completed_conversation_is_left_alone(tmp_path: Path) -> None:
    """Resuming what is complete asks nobody and does not touch its log."""
    run = await whole(tmp_path, "plain")
    before = run.log.read_bytes()
    nobody = Scripted([ZeroDivisionError("asked")])
    again = await go_on(run.root, run.folder, pool=ScriptedPool(**{"test?words=8": nobody}))
    assert again.outcome is None
    assert run.log.read_bytes() == before
    assert nobody.requests == []


async def test_stop_then_resume_goes_on(tmp_path: Path) -> None:
    """A stopped conversation goes on in a new runner as if it had never been stopped; its last end counts."""
    spec = many(tmp_path)["plain"]

    def stop(conductor: Any, event: MessageCompleteEvent) -> None:
        if event.message_index == 2:
            elsewhere(conductor.control.stop, "person")

    stopped = await converse(tmp_path / "1", spec, watch=bus_watch(MessageCompleteEvent, stop))
    check_record(stopped.events)
    assert stopped.outcome == (Status.STOPPED, EndReason.STOP_REQUEST, None)
    assert len(messages(stopped.events)) == 3
    again = await go_on(stopped.root, stopped.folder)
    check_record(again.events)
    plain = await converse(tmp_path / "2", spec)
    assert texts(again.events) == texts(plain.events)
    assert again.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)
    assert len(of_type(again.events, ConversationEndEvent)) == 2
    assert set(requests_per_message(again.events).values()) == {1}


async def test_a_failed_conversation_goes_on_where_it_failed(tmp_path: Path) -> None:
    """When the cause is gone, only the message that failed is asked for again."""
    spec = experiment("openai:m1", "local:test")
    bad, good = (
        Scripted([TextDelta("Hello."), Finish()], [ContentFiltered("no", provider="openai")]),
        Scripted([TextDelta("Hello."), Finish()]),
    )
    failed = await converse(tmp_path, spec, pool=ScriptedPool(m1=bad))
    assert failed.outcome is not None
    assert failed.outcome.status is Status.FAILED
    again = await go_on(failed.root, failed.folder, pool=ScriptedPool(m1=good))
    check_record(again.events)
    assert again.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)
    assert requests_per_message(again.events) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert not of_type(again.events, MessageAbandonedEvent), "its failure is on record already"


async def test_a_cancelled_run_is_recorded_once_as_abandoned(tmp_path: Path) -> None:
    """A task cancelled from outside leaves its partial text and no end; a resume does not abandon it once more."""
    task: list[asyncio.Task[Any]] = []
    spec = experiment("local:test?chunk=2&fail=hang@2", "local:test")

    def cancel(agent_id: str, delta: Any) -> None:
        if agent_id == "a" and delta is not None and len(counted) == 1:
            asyncio.get_running_loop().call_soon(task[0].cancel)

    counted: list[int] = []
    watch = bus_watch(TurnCompleteEvent, lambda _, event: counted.append(event.turn_number))
    task.append(asyncio.create_task(converse(tmp_path, spec, live=cancel, watch=watch)))
    with pytest.raises(asyncio.CancelledError):
        await task[0]
    (log,) = tmp_path.glob("experiments/experiment_*/conv_*_events.jsonl")
    events = read_record(log).events
    check_record(events, ended=False)
    assert isinstance(events[-1], MessageAbandonedEvent)
    assert events[-1].partial
    root, folder = OutputRoot(tmp_path), ExperimentFolder(log.parent)
    again = await go_on(root, folder, pool=ScriptedPool(**{"test?chunk=2&fail=hang@2": Scripted(_HELLO)}))
    check_record(again.events)
    assert len(of_type(again.events, MessageAbandonedEvent)) == 1
    assert completed(again.events)


async def test_thoughts_of_a_lost_reply_do_not_come_back(tmp_path: Path) -> None:
    """Signed thinking of a reply that died behind it is not sent along with the message that took its place."""
    thinker = Scripted([ThinkingDelta("Hm.", "sig"), *_HELLO])
    spec = experiment("openai:m1", "local:test", agents={"a": {"thinking_visible": "own"}})
    run = await converse(tmp_path / "whole", spec, pool=ScriptedPool(m1=thinker))
    line = of_type(run.events, ThinkingCompleteEvent)[0].seq + 1
    size = len(b"".join(run.log.read_bytes().splitlines(keepends=True)[:line]))
    again = Scripted([ThinkingDelta("Hm.", "sig"), *_HELLO])
    root, folder = cut_copy(run, tmp_path / "cut", size)
    resumed = await go_on(root, folder, pool=ScriptedPool(m1=again))
    check_record(resumed.events)
    assert len(of_type(resumed.events, ThinkingCompleteEvent)) == 4
    assert [request.messages for request in again.requests] == [request.messages for request in thinker.requests]
    assert len(again.requests[-1].messages[1].thinking) == 1
    assert [len(reply.thinking) for reply in read_recording(resumed.log)["a"]] == [1, 1, 1]


# Damage in the middle


def damaged(run: Run, where: Path, line: int, upto: int) -> Any:
    """The record up to line `upto`, with line `line` broken."""
    root, folder = cut_copy(run, where, 0)
    lines = run.log.read_bytes().splitlines(keepends=True)[:upto]
    lines[line] = lines[line][: len(lines[line]) // 2] + b"\n"
    folder.log(f"{folder.experiment_id}-1").write_bytes(b"".join(lines))
    return root, folder


@pytest.mark.parametrize("kind", [MessageCompleteEvent, TurnStartEvent, ConversationStartEvent])
async def test_a_record_that_lost_a_message_is_refused(tmp_path: Path, kind: type[Event]) -> None:
    """A broken line in the middle without which nobody knows what was said ends the resume, in one clear line."""
    run = await whole(tmp_path, "plain")
    last = len(run.events) - 1
    for event in of_type(run.events, kind):
        for upto in sorted({event.seq + 2, event.seq + 4, last}):
            if upto > last:
                continue
            root, folder = damaged(run, tmp_path / f"{event.seq}-{upto}", event.seq, upto)
            log = folder.log(f"{folder.experiment_id}-1")
            before = log.read_bytes()
            with pytest.raises(LogError) as error:
                await go_on(root, folder)
            assert "cannot go on" in str(error.value), error.value
            assert "\n" not in str(error.value)
            assert log.read_bytes() == before, "a refused record is not touched"


async def test_a_record_that_lost_a_message_and_its_usage_is_refused(tmp_path: Path) -> None:
    """Also when only the end of the turn, or the next request, is left to show that somebody spoke."""
    run = await whole(tmp_path, "plain")
    for event in messages(run.events):
        upto = event.seq + 3
        if upto >= len(run.events):
            continue
        root, folder = damaged(run, tmp_path / str(event.seq), event.seq, upto)
        log = folder.log(f"{folder.experiment_id}-1")
        lines = log.read_bytes().splitlines(keepends=True)
        lines[event.seq + 1] = b"{}\n"
        log.write_bytes(b"".join(lines))
        with pytest.raises(LogError, match="cannot go on"):
            await go_on(root, folder)


async def test_a_record_that_lost_what_an_agent_was_told_is_refused(tmp_path: Path) -> None:
    """When an intervention is lost, the agent would be sent something else than the record says: no resume."""
    run = await whole(tmp_path, "plain")
    for event in of_type(run.events, InterventionEvent):
        root, folder = damaged(run, tmp_path / str(event.seq), event.seq, len(run.events) - 1)
        with pytest.raises(LogError, match="cannot go on"):
            await go_on(root, folder)


async def test_a_record_that_lost_only_a_sum_goes_on(tmp_path: Path) -> None:
    """A broken line that costs no text (a usage, the end of a turn) does not keep a conversation from going on."""
    run = await whole(tmp_path, "plain")
    usage = of_type(run.events, TokenUsageEvent)[1]
    root, folder = damaged(run, tmp_path / "usage", usage.seq, len(run.events) - 3)
    again = await go_on(root, folder)
    assert texts(again.events) == texts(run.events)
    assert completed(again.events)
