"""What happens when an agent's next request would not fit into its model's context window."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import (
    Run,
    Scripted,
    ScriptedPool,
    check_record,
    conversation,
    converse,
    experiment,
    messages,
    of_type,
    requests_per_message,
    texts,
)

from pidgin_cli.conversation.context import Room, first_turn_that_fits
from pidgin_cli.conversation.history import Sent
from pidgin_cli.conversation.progress import Progress
from pidgin_cli.core.errors import ContextLengthExceeded
from pidgin_cli.core.events import (
    APIErrorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import (
    Delta,
    EndReason,
    Finish,
    FinishReason,
    Message,
    Role,
    Status,
    TextDelta,
    Usage,
    UsageDelta,
)
from pidgin_cli.spec.conversation import ConversationSpec

WORDY = "local:test?words=25"
LIMIT, RESERVE = 400, 60
FULL = (Status.STOPPED, EndReason.CONTEXT_LIMIT, None)
COMPLETED = (Status.COMPLETED, EndReason.TURN_LIMIT, None)


def sent_for(events: list[Event]) -> list[tuple[MessageRequestEvent, Sent]]:
    """Each request with what it carried, rebuilt from the record alone."""
    start = events[0]
    assert isinstance(start, ConversationStartEvent)
    progress = Progress(ConversationSpec.from_json(start.spec))
    found = []
    for event in events:
        if isinstance(event, MessageRequestEvent):
            sent = progress.views[event.agent_id].sent()
            assert (sent.digest, sent.view) == (event.digest, event.view), "the record says what was sent"
            found.append((event, sent))
        progress.advance(event)
    return found


def text_of(sent: Sent) -> str:
    return "\n".join(message.content for message in sent.messages)


def check_views(run: Run) -> None:
    """Lists are legal, what was left out is gone, what was kept is there, and all of it fits."""
    said = texts(run.events)
    for event, sent in sent_for(run.events):
        roles = [message.role for message in sent.messages]
        assert roles[0] is roles[-1] is Role.USER
        assert all(one is not other for one, other in pairwise(roles))
        text = text_of(sent)
        for index in range(event.message_index):
            assert (said[index] in text) == (index >= event.view.start), f"message {index} at {event.message_index}"
        assert sum(message.role is Role.ASSISTANT for message in sent.messages) == sum(
            message.agent_id == event.agent_id
            for message in messages(run.events)
            if event.view.start <= message.message_index < event.message_index
        )
        assert "Good morning." in text, "the opening stays"


def prompt_tokens(run: Run) -> list[int]:
    return [event.usage.prompt_tokens or 0 for event in messages(run.events)]


async def small(tmp_path: Path, policy: str, *models: str, **keys: Any) -> Run:
    context = {"policy": policy, "limit_tokens": LIMIT, "reserve_tokens": RESERVE} | keys.pop("context", {})
    spec = experiment(*(models or (WORDY, WORDY)), context=context, **({"max_turns": 14} | keys))
    run = await converse(tmp_path, spec)
    check_record(run.events)
    return run


async def test_stop_ends_before_the_request_that_would_not_fit(tmp_path: Path) -> None:
    """The conversation is stopped, not failed; the event has both numbers; nothing was left out before."""
    run = await small(tmp_path, "stop")
    assert run.outcome == FULL
    (limit,) = of_type(run.events, ContextLimitEvent)
    assert limit.estimated_tokens is not None
    assert limit.limit_tokens == LIMIT - RESERVE
    assert limit.estimated_tokens > limit.limit_tokens
    assert max(prompt_tokens(run)) <= LIMIT - RESERVE
    assert all(event.view.omitted == 0 for event in of_type(run.events, MessageRequestEvent))
    assert not of_type(run.events, APIErrorEvent)


@pytest.mark.parametrize("agents", [2, 3])
async def test_window_leaves_out_oldest_whole_turns(tmp_path: Path, agents: int) -> None:
    """Views stay legal and within the limit; each application is an event; the same policy serves every side."""
    run = await small(tmp_path, "window", *[WORDY] * agents)
    assert run.outcome == COMPLETED
    check_views(run)
    applied = of_type(run.events, ContextTruncationEvent)
    assert {event.agent_id for event in applied} == set("abc"[:agents])
    assert all(event.view.start % agents == 0 for event in applied), "whole turns go"
    assert all(event.estimated_tokens > event.limit_tokens == LIMIT - RESERVE for event in applied)
    for agent_id in "abc"[:agents]:
        starts = [event.view.start for event in applied if event.agent_id == agent_id]
        assert starts == sorted(set(starts)), "the window only ever moves on"
    assert max(prompt_tokens(run)) <= LIMIT - RESERVE, "room for the reply is kept"
    later = of_type(run.events, MessageRequestEvent)[-1]
    assert later.view.omitted == later.view.start > 0


async def test_the_room_for_the_reply_is_max_tokens_where_it_is_set(tmp_path: Path) -> None:
    """`max_tokens` of an agent takes the place of the general reserve."""
    run = await small(tmp_path, "window", agents={"a": {"max_tokens": 150}})
    limits = {event.agent_id: event.limit_tokens for event in of_type(run.events, ContextTruncationEvent)}
    assert limits == {"a": LIMIT - 150, "b": LIMIT - RESERVE}


async def test_summarise_puts_a_summary_in_the_place_of_turns(tmp_path: Path) -> None:
    """The summary and the pinned facts stand in the view; usage is counted apart; a later one replaces the first."""
    run = await small(tmp_path, "summarise", context={"pinned": ["It rains.", "Ada is tall."]})
    assert run.outcome == COMPLETED
    check_views(run)
    made = of_type(run.events, HistoryCompactedEvent)
    assert {event.agent_id for event in made} == {"a", "b"}
    paid = [event for event in of_type(run.events, TokenUsageEvent) if event.purpose == "summary"]
    assert len(paid) == len(made)
    assert all(event.model == WORDY for event in made)
    mine = [event for event in made if event.agent_id == "a"]
    assert len(mine) > 1
    last = [(event, sent) for event, sent in sent_for(run.events) if event.agent_id == "a"][-1][1]
    assert f"[HUMAN]: Summary of the earlier conversation: {mine[-1].summary}" in text_of(last)
    assert text_of(last).count("Summary of the earlier conversation") == 1
    assert [text_of(last).count(fact) for fact in ("[HUMAN]: Remember: It rains.", "Remember: Ada is tall.")] == [1, 1]


async def test_the_writer_of_a_summary_sees_what_its_agent_saw_and_no_more(tmp_path: Path) -> None:
    """A named model gets the agent's own lines as You, the others by name, its injections, and the earlier summary."""
    file = tmp_path / "aware.yaml"
    file.write_text("prompts:\n  1: {a: told to a, b: told to b}\n")
    writer = Scripted([TextDelta("They spoke."), Finish()])
    context = {"policy": "summarise", "limit_tokens": LIMIT, "reserve_tokens": RESERVE, "model": "openai:writer"}
    agents = {i: {"awareness": str(file), "name": f"Name{i}"} for i in "ab"}
    spec = experiment(WORDY, WORDY, max_turns=14, context=context, agents=agents)
    run = await converse(tmp_path / "run", spec, pool=ScriptedPool(writer=writer))
    check_record(run.events)
    assert run.outcome == COMPLETED
    made = of_type(run.events, HistoryCompactedEvent)
    assert {(event.summary, event.model) for event in made} == {("They spoke.", "openai:writer")}
    said = texts(run.events)
    seen: set[str] = set()
    for request in writer.requests:
        (message,) = request.messages
        other = "b" if request.agent_id == "a" else "a"
        assert f"told to {other}" not in message.content
        assert f"Name{request.agent_id}: " not in message.content
        assert f"Name{other}: " in message.content
        if request.agent_id in seen:
            assert "Summary of what came before: They spoke." in message.content
            assert said[0] not in message.content
        else:
            assert f"[HUMAN]: told to {request.agent_id}" in message.content
            you, them = (said[0], said[1]) if request.agent_id == "a" else (said[1], said[0])
            assert f"You: {you}" in message.content
            assert f"Name{other}: {them}" in message.content
        seen.add(request.agent_id)


async def test_when_too_little_would_be_left_it_stops(tmp_path: Path) -> None:
    """Where the last turn alone does not fit, leaving out turns does not help: it is stopped, and says so."""
    for policy in ("window", "summarise"):
        run = await small(tmp_path / policy, policy, "local:test?words=400", "local:test?words=400")
        assert run.outcome == FULL
        assert len(of_type(run.events, ContextLimitEvent)) == 1


async def test_a_provider_that_refuses_the_length_is_believed(tmp_path: Path) -> None:
    """With `stop`, its own words are recorded and the conversation is stopped, not failed; no turn is made up."""
    run = await converse(tmp_path, experiment("local:test?fail=context@2", "local:test"))
    check_record(run.events)
    assert run.outcome == FULL
    (limit,) = of_type(run.events, ContextLimitEvent)
    assert limit.reported == "the prompt is longer than this model reads"
    assert [event.error for event in of_type(run.events, APIErrorEvent)] == ["ContextLengthExceeded"]
    assert len(messages(run.events)) == 2
    end = run.events[-1]
    assert isinstance(end, ConversationEndEvent)
    assert end.error is None


@pytest.mark.parametrize("policy", ["window", "summarise"])
async def test_a_window_smaller_than_anybody_knew_is_found_out(tmp_path: Path, policy: str) -> None:
    """When the provider refuses, at least half is left out and the message asked for again, until it is taken."""
    spec = experiment(f"{WORDY}&context=1200", WORDY, max_turns=36, context=policy)
    run = await converse(tmp_path, spec)
    check_record(run.events)
    assert run.outcome == COMPLETED
    check_views(run)
    refused = [event.message_index for event in of_type(run.events, APIErrorEvent)]
    assert refused
    counts = requests_per_message(run.events)
    assert {index for index, count in counts.items() if count > 1} == set(refused)
    applied = of_type(run.events, ContextTruncationEvent if policy == "window" else HistoryCompactedEvent)
    assert [event.agent_id for event in applied] == ["a"] * len(refused)
    assert max(prompt_tokens(run)[0::2]) <= 1200


async def test_a_declared_limit_that_is_too_high_is_corrected(tmp_path: Path) -> None:
    """Where the provider reads less than was declared, its refusal outranks the declaration."""
    context = {"policy": "window", "limit_tokens": 5000, "reserve_tokens": 100}
    run = await converse(tmp_path, experiment(f"{WORDY}&context=600", WORDY, max_turns=20, context=context))
    check_record(run.events)
    assert run.outcome == COMPLETED
    check_views(run)
    refused = [event.message_index for event in of_type(run.events, APIErrorEvent)]
    assert refused
    assert all(prompt_tokens(run)[index] < 330 for index in refused), "more than half goes, not just a little"


def test_what_others_were_told_does_not_count() -> None:
    """How much goes is reckoned by what the agent itself was sent, not by texts for somebody else."""
    progress = Progress(conversation(WORDY, WORDY))
    progress.advance(progress_start(progress.spec))
    for turn in range(1, 9):
        progress.advance(TurnStartEvent(turn_number=turn, speakers=("a", "b")))
        said = InterventionEvent(turn_number=turn, source="person", audience=("b",), text="long " * 400)
        progress.advance(said)
        for agent_id in "ab":
            message = Message(Role.ASSISTANT, "word " * 40)
            progress.advance(
                MessageCompleteEvent(
                    agent_id=agent_id,
                    turn_number=turn,
                    message_index=progress.history.messages,
                    message=message,
                    finish_reason=FinishReason.STOP,
                    model_requested=WORDY,
                )
            )
        progress.advance(TurnCompleteEvent(turn_number=turn))
    needed = {agent_id: progress.views[agent_id].size() // 4 for agent_id in "ab"}
    assert needed["b"] > 5 * needed["a"]
    for agent_id in "ab":
        first = first_turn_that_fits(progress, agent_id, Room(needed[agent_id], needed[agent_id] * 3 // 5))
        assert first == 6, "five of eight turns go, to fill three quarters of the room"


def progress_start(spec: ConversationSpec) -> ConversationStartEvent:
    return ConversationStartEvent(
        schema_version=1,
        pidgin_version="0",
        spec=spec.to_json(),
        spec_hash="",
        agents=spec.agents,
        opening=spec.opening,
        prompt_tag=spec.prompt_tag,
        seed=0,
        arm="",
        repetition=1,
    )


async def test_a_summary_that_cannot_be_written_ends_as_a_full_window(tmp_path: Path) -> None:
    """When what is to be summarised is itself too long for its writer, the conversation is stopped, not failed."""
    writer = Scripted([ContextLengthExceeded("at most 5 tokens", provider="openai", status=400)])
    context = {"policy": "summarise", "limit_tokens": LIMIT, "reserve_tokens": RESERVE, "model": "openai:writer"}
    run = await converse(
        tmp_path, experiment(WORDY, WORDY, max_turns=14, context=context), pool=ScriptedPool(writer=writer)
    )
    check_record(run.events)
    assert run.outcome == FULL
    assert of_type(run.events, ContextLimitEvent)[-1].reported == "at most 5 tokens"


NO_SUMMARIES = {
    "empty": ([[Finish()]], "wrote an empty summary", 1),
    "refused": ([[TextDelta("I cannot."), Finish(reason=FinishReason.REFUSAL)]], "(finish reason: refusal)", 1),
    "cut": ([[TextDelta("You and B began to"), Finish(reason=FinishReason.LENGTH)]], "(finish reason: length)", 2),
}


@pytest.mark.parametrize(("scripts", "why", "asked"), NO_SUMMARIES.values(), ids=NO_SUMMARIES)
async def test_what_is_no_summary_replaces_no_turns(
    tmp_path: Path, scripts: list[list[Delta]], why: str, asked: int
) -> None:
    """An empty, refused or cut summary becomes nobody's memory: the conversation is stopped, and says why."""
    writer = Scripted(*scripts)
    context = {"policy": "summarise", "limit_tokens": LIMIT, "reserve_tokens": RESERVE, "model": "openai:writer"}
    spec = experiment(WORDY, WORDY, max_turns=14, context=context)
    run = await converse(tmp_path, spec, pool=ScriptedPool(writer=writer))
    check_record(run.events)
    assert run.outcome == FULL
    assert len(writer.requests) == asked
    assert not of_type(run.events, HistoryCompactedEvent)
    assert why in (of_type(run.events, ContextLimitEvent)[-1].reported or "")


async def test_a_summary_that_was_cut_is_asked_for_again_with_more_room(tmp_path: Path) -> None:
    """A writer that spends its first tokens on thinking gets four times as many; what both took is counted."""
    usage = UsageDelta(Usage(prompt_tokens=10, completion_tokens=5))
    cut = [TextDelta("They be"), usage, Finish(reason=FinishReason.LENGTH)]
    writer = Scripted(cut, [TextDelta("They spoke."), usage, Finish()])
    context = {"policy": "summarise", "limit_tokens": LIMIT, "reserve_tokens": RESERVE, "model": "openai:writer"}
    spec = experiment(WORDY, WORDY, max_turns=14, context=context)
    run = await converse(tmp_path, spec, pool=ScriptedPool(writer=writer))
    check_record(run.events)
    assert run.outcome == COMPLETED
    assert [request.settings.max_tokens for request in writer.requests[:2]] == [1024, 4096]
    assert {event.summary for event in of_type(run.events, HistoryCompactedEvent)} == {"They spoke."}
    paid = [event for event in of_type(run.events, TokenUsageEvent) if event.purpose == "summary"]
    assert len(paid) == len(writer.requests)


async def test_a_provider_that_refuses_everything_ends_as_a_full_window(tmp_path: Path) -> None:
    """If nothing more can be left out, the conversation is stopped by the context limit, in the provider's words."""
    wall = Scripted(
        [TextDelta("One."), Finish()],
        [TextDelta("Two."), Finish()],
        [ContextLengthExceeded("at most 5 tokens", provider="openai", status=400)],
    )
    spec = experiment("openai:m1", "local:test", max_turns=9, context="window")
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=wall))
    check_record(run.events)
    assert run.outcome == FULL
    assert of_type(run.events, ContextLimitEvent)[-1].reported == "at most 5 tokens"
    assert len(messages(run.events)) == 4


async def test_estimates_follow_what_the_provider_reports(tmp_path: Path) -> None:
    """A model that counts four tokens where we guessed one is kept within its window all the same."""

    class Greedy(Scripted):
        """Reports a token per byte, and refuses what is longer than it says it reads."""

        async def stream_response(self, request: Any) -> Any:
            self.requests.append(request)
            size = sum(len(message.content) for message in request.messages)
            assert size <= 4000, "more was sent than fits"
            yield TextDelta("Some words, and then some more of them. " * 10)
            yield UsageDelta(Usage(prompt_tokens=size, completion_tokens=10))
            yield Finish()

    context = {"policy": "window", "limit_tokens": 4000, "reserve_tokens": 500}
    greedy = Greedy([])
    spec = experiment("openai:m1", WORDY, max_turns=30, context=context)
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=greedy))
    check_record(run.events)
    assert run.outcome == COMPLETED
    assert of_type(run.events, ContextTruncationEvent)
