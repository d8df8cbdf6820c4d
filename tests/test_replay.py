"""A recorded conversation served again, word for word, and every drift from it an error."""

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
    story,
    texts,
)

from pidgin_cli.conversation.recording import read_recording
from pidgin_cli.core.errors import LogError, RequestRejected
from pidgin_cli.core.events import (
    AgentNamedEvent,
    ConversationEndEvent,
    HistoryCompactedEvent,
    MessageAbandonedEvent,
    MessageRequestEvent,
    ThinkingCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import (
    EndReason,
    Finish,
    FinishReason,
    ModelRequest,
    Status,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Usage,
    UsageDelta,
    fold,
)
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.providers.replay import RecordedReply, ReplayProvider

MODELS = ("local:test?words=20&thinking=1", "local:test?words=20", "local:test?words=20")


async def replay(run: Run, where: Path, count: int = 2, **changes: Any) -> Run:
    """The same conversation with every agent served from the record of `run`."""
    names = {agent.id: agent.name for agent in run.events[0].agents}  # type: ignore[attr-defined]
    agents = {i: {"name": names[i]} | changes.get("agents", {}).get(i, {}) for i in "abc"[:count]}
    keys = changes | {"agents": agents}
    pool = ProviderPool(lambda source: read_recording(Path(source)))
    again = await converse(where, experiment(*[f"replay:{run.log}"] * count, **keys), pool=pool)
    check_record(again.events)
    return again


KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (2, {}),
    "three": (3, {"order": "random", "first": "random"}),
    "names": (2, {"choose_names": True, "agents": {"a": {"awareness": "basic"}}}),
    "window": (2, {"max_turns": 9, "context": {"policy": "window", "limit_tokens": 300, "reserve_tokens": 60}}),
    "summarise": (2, {"max_turns": 9, "context": {"policy": "summarise", "limit_tokens": 400, "reserve_tokens": 60}}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_replay_says_what_was_said(tmp_path: Path, kind: str) -> None:
    """Texts, thinking, names, summaries, requests and end are those of the record, whatever the conversation did."""
    count, keys = KINDS[kind]
    run = await converse(tmp_path / "1", experiment(*MODELS[:count], **keys))
    again = await replay(run, tmp_path / "2", count, **keys)
    assert run.outcome == again.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)
    assert story(again.events)[:-1] == _renamed(story(run.events)[:-1], run, again)
    for event_type, fields in (
        (AgentNamedEvent, ("agent_id", "name", "reply", "chosen")),
        (HistoryCompactedEvent, ("agent_id", "turn_number", "summary", "view")),
        (ThinkingCompleteEvent, ("agent_id", "message_index", "content", "signature")),
        (MessageRequestEvent, ("agent_id", "message_index", "digest", "view")),
        (TurnStartEvent, ("turn_number", "speakers")),
    ):
        told = [[[getattr(e, f) for f in fields] for e in of_type(r.events, event_type)] for r in (run, again)]
        assert told[0] == told[1]
    if kind == "summarise":
        assert len(of_type(again.events, HistoryCompactedEvent)) > 2
    ends = [of_type(r.events, ConversationEndEvent)[-1] for r in (run, again)]
    assert ends[0].totals == ends[1].totals
    assert ends[0].invalid == ends[1].invalid == ()


def _renamed(told: list[Any], run: Run, again: Run) -> list[Any]:
    ids = (run.folder.experiment_id, again.folder.experiment_id)
    return [tuple(str(x).replace(*ids) if f"{ids[0]}-" in str(x) else x for x in entry) for entry in told]


@pytest.mark.parametrize(
    ("changes", "turn", "agent"),
    [
        ({"prompt": "Good morning!"}, 1, "a"),
        ({"prompt_tag": ""}, 1, "a"),
        ({"agents": {"b": {"system_prompt": "Be brief."}}}, 1, "b"),
        ({"agents": {"a": {"awareness": {"name": "x", "prompts": {2: "now"}}}}}, 2, "a"),
        ({"first": "b"}, 1, "b"),
    ],
)
async def test_any_drift_is_an_error_that_names_the_turn(
    tmp_path: Path, changes: dict[str, Any], turn: int, agent: str
) -> None:
    """One character of difference in what an agent would be sent ends the replay as failed, at that turn."""
    run = await converse(tmp_path / "1", experiment(*MODELS[:2]))
    again = await replay(run, tmp_path / "2", **changes)
    assert again.outcome is not None
    assert again.outcome.status is Status.FAILED
    assert again.outcome.error is not None
    assert f"in turn {turn}, agent {agent} " in again.outcome.error
    assert "something else than in the record" in again.outcome.error


async def test_a_record_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    """Where the record ends, nothing is made up: the error names turn, agent and how much there is."""
    run = await converse(tmp_path / "1", experiment(*MODELS[:2], max_turns=2))
    again = await replay(run, tmp_path / "2", max_turns=4)
    assert again.outcome is not None
    assert again.outcome.status is Status.FAILED
    assert "has no message 3 of agent a (turn 3); it ends after 2" in str(again.outcome.error)
    assert texts(again.events) == texts(run.events)


async def test_one_agent_may_be_served_by_the_words_of_another(tmp_path: Path) -> None:
    """`#b` names the agent of the record; a live partner that says something else is a drift."""
    run = await converse(tmp_path / "1", experiment(*MODELS[:2]))
    pool = ProviderPool(lambda source: read_recording(Path(source)))
    spec = experiment(f"replay:{run.log}", f"replay:{run.log}#a")
    again = await converse(tmp_path / "2", spec, pool=pool)
    assert "agent b would be sent something else" in str(again.outcome and again.outcome.error)
    assert texts(again.events) == texts(run.events)[:1]
    mixed = await converse(tmp_path / "3", experiment(f"replay:{run.log}", "local:test?reply=Other"), pool=pool)
    assert "in turn 2, agent a " in str(mixed.outcome and mixed.outcome.error)
    assert texts(mixed.events) == [texts(run.events)[0], "Other"]


async def test_a_recording_holds_what_was_kept_and_nothing_else(tmp_path: Path) -> None:
    """Abandoned attempts are no replies; each reply has the digest of its last request, its own thinking and usage."""
    thinker = Scripted(
        [ThinkingDelta("lost", "s0"), TextDelta("half"), RequestRejected("no")],
        [
            ThinkingDelta("kept", "s1"),
            ThinkingDelta("and this"),
            TextDelta("Whole."),
            UsageDelta(Usage(prompt_tokens=4, completion_tokens=2, thinking_tokens=1)),
            Finish(FinishReason.LENGTH, model="m1-x", request_id="r1", fingerprint="f1"),
        ],
    )
    spec = experiment("openai:m1", "local:test?fail=disconnect@1,empty@2", max_turns=2)
    failed = await converse(tmp_path, spec, pool=ScriptedPool(m1=thinker))
    run = await go_on(failed.root, failed.folder, pool=ScriptedPool(m1=thinker))
    check_record(run.events)
    assert len(of_type(run.events, MessageAbandonedEvent)) == 2
    recording = read_recording(run.log)
    digests = {event.message_index: event.digest for event in of_type(run.events, MessageRequestEvent)}
    assert recording["a"][0] == RecordedReply(
        purpose="message",
        turn_number=1,
        text="Whole.",
        digest=digests[0],
        thinking=(ThinkingBlock("kept", "s1"), ThinkingBlock("and this")),
        reason=FinishReason.LENGTH,
        usage=Usage(prompt_tokens=4, completion_tokens=2, thinking_tokens=1),
        model="m1-x",
        request_id="r1",
        fingerprint="f1",
    )
    assert [reply.text for reply in recording["b"]] == [m.message.content for m in messages(run.events)[1::2]]
    assert recording["b"][1].text == ""
    assert [reply.digest for reply in recording["b"]] == [digests[1], digests[3]]


async def test_names_are_recorded_with_the_whole_reply(tmp_path: Path) -> None:
    """The reply to the question for a name is replayed whole, also where no name was found in it."""
    run = await converse(tmp_path, experiment("local:test?name=Ada", "local:silent", choose_names=True))
    recording = read_recording(run.log)
    names = {i: [reply for reply in replies if reply.purpose == "name"] for i, replies in recording.items()}
    assert [(i, [reply.text for reply in replies]) for i, replies in names.items()] == [
        ("a", ["Ada"]),
        ("b", ["Silence"]),
    ]
    assert all(reply.usage.prompt_tokens for replies in names.values() for reply in replies)


async def test_a_stopped_and_resumed_record_replays_as_one(tmp_path: Path) -> None:
    """Ends and resumes in the middle of a record leave no trace in its replay."""
    stop = bus_watch(
        MessageRequestEvent, lambda conductor, e: e.message_index == 3 and elsewhere(conductor.control.stop)
    )
    spec = experiment(*MODELS[:2])
    stopped = await converse(tmp_path / "1", spec, watch=stop)
    run = await go_on(stopped.root, stopped.folder)
    assert len(of_type(run.events, ConversationEndEvent)) == 2
    again = await replay(run, tmp_path / "2")
    assert again.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)
    assert texts(again.events) == texts(run.events)


async def test_a_torn_tail_costs_only_itself_and_a_broken_line_is_refused(tmp_path: Path) -> None:
    """A record may end in the middle of a line; one that is broken in the middle may have lost a reply."""
    run = await converse(tmp_path / "1", experiment(*MODELS[:2]))
    data = run.log.read_bytes()
    _, folder = cut_copy(run, tmp_path / "torn", len(data) - 10)
    torn = folder.log(f"{folder.experiment_id}-1")
    assert read_recording(torn) == read_recording(run.log)
    lines = data.splitlines(keepends=True)
    lines[6] = lines[6][:30] + b"\n"
    torn.write_bytes(b"".join(lines))
    with pytest.raises(LogError, match="line 7 is broken"):
        read_recording(torn)
    with pytest.raises(LogError, match="cannot be read"):
        read_recording(tmp_path / "nothing.jsonl")


async def test_the_provider_keeps_no_count_of_its_own() -> None:
    """Which reply is served depends on the request alone, so that many conversations may be served at once."""
    replies = [RecordedReply("message", n, f"text {n}", digest=f"d{n}") for n in (1, 2, 3)]
    replies += [RecordedReply("summary", n, f"summary {n}") for n in (5, 8)]
    reads: list[str] = []

    def read(source: str) -> dict[str, list[RecordedReply]]:
        reads.append(source)
        return {"a": replies}

    provider = ReplayProvider(read)

    async def ask(**fields: Any) -> str:
        request = ModelRequest(model="rec", messages=(), agent_id="a", **fields)
        return fold([delta async for delta in provider.stream_response(request)]).message.content

    for number in (3, 1, 2, 3):
        assert await ask(own_number=number, digest=f"d{number}") == f"text {number}"
    assert await ask(own_number=2) == "text 2", "a request without a digest is not compared"
    assert await ask(purpose="summary", turn_number=8, own_number=8) == "summary 8"
    assert await ask(purpose="summary", turn_number=5, own_number=5) == "summary 5"
    for wrong in ({"own_number": 4}, {"own_number": 2, "digest": "d1"}, {"purpose": "name"}, {"purpose": "summary"}):
        with pytest.raises(RequestRejected):
            await ask(**wrong)
    assert reads == ["rec"]
