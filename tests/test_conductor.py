"""Whole conversations with local models, judged by their records: DESIGN 5.2 and 6."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support import (
    Scripted,
    ScriptedPool,
    bus_watch,
    check_record,
    conversation,
    converse,
    experiment,
    messages,
    of_type,
    requests_per_message,
    texts,
)

from pidgin_cli.conversation.conductor import parse_name, speaking_order
from pidgin_cli.core.errors import AuthenticationFailed, LogError, ProviderTimeout, SpecError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    ErrorEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    EndReason,
    Finish,
    FinishReason,
    Status,
    TextDelta,
    ThinkingDelta,
    Timeouts,
    Usage,
    UsageDelta,
)
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.catalogue import same_model

SHORT = {"first_token_s": 0.05, "gap_s": 0.05}
WHOLE = (TextDelta("Hello."), UsageDelta(Usage(prompt_tokens=3, completion_tokens=1)), Finish())


def names_of(events: Any) -> list[str]:
    return [type(event).__name__ for event in events]


async def test_a_plain_conversation_has_exactly_these_events(tmp_path: Path) -> None:
    """Start, system prompts; per turn its start, each speaker's request, message and usage, and its end; the end."""
    agents = {"a": {"awareness": "basic"}}
    run = await converse(tmp_path, experiment("local:test", "local:test?thinking=1", agents=agents, max_turns=2))
    turn = ["TurnStartEvent", "MessageRequestEvent", "MessageCompleteEvent", "TokenUsageEvent", "MessageRequestEvent"]
    turn += ["ThinkingCompleteEvent", "MessageCompleteEvent", "TokenUsageEvent", "TurnCompleteEvent"]
    begin = ["ConversationStartEvent", "SystemPromptEvent", "SystemPromptEvent"]
    assert names_of(run.events) == [*begin, *turn, *turn, "ConversationEndEvent"]
    check_record(run.events)
    start, prompt, no_prompt = run.events[:3]
    assert isinstance(start, ConversationStartEvent)
    assert (start.opening, start.prompt_tag, start.repetition) == ("Good morning.", "HUMAN", 1)
    assert isinstance(prompt, SystemPromptEvent)
    assert prompt.text
    assert isinstance(no_prompt, SystemPromptEvent)
    assert no_prompt.text is None
    assert run.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)


KINDS = {
    "rate_limit@2": (RateLimitEvent, None),
    "rate_limit@2x3": (RateLimitEvent, None),
    "server_error@2": (APIErrorEvent, "Overloaded"),
    "server_error@1x5": (APIErrorEvent, "Overloaded"),
    "timeout@3": (APIErrorEvent, "ProviderTimeout"),
    "hang_start@2": (APIErrorEvent, "ProviderTimeout"),
}


@pytest.mark.parametrize("fail", KINDS)
async def test_failures_before_the_first_word_are_retried_and_recorded(tmp_path: Path, fail: str) -> None:
    """Each failed attempt is one event with its number and wait; the message is the one that needed no retry."""
    kind, error = KINDS[fail]
    failing = await converse(tmp_path / "1", experiment(f"local:test?fail={fail}", "local:test", timeouts=SHORT))
    plain = await converse(tmp_path / "2", experiment("local:test", "local:test"))
    check_record(failing.events)
    number, _, attempts = fail.partition("@")[2].partition("x")
    index = 2 * (int(number) - 1)
    failures = of_type(failing.events, kind)
    assert len(failures) == int(attempts or 1)
    assert [event.attempt for event in failures] == list(range(1, len(failures) + 1))
    assert {event.message_index for event in failures} == {index}
    assert all(event.wait_s is not None for event in failures)
    assert error is None or {event.error for event in of_type(failing.events, APIErrorEvent)} == {error}
    assert messages(failing.events)[index].attempt == len(failures) + 1
    assert texts(failing.events) == texts(plain.events)
    assert not of_type(failing.events, MessageAbandonedEvent)
    assert failing.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)


@pytest.mark.parametrize(("fail", "error"), [("disconnect@2", "ProviderUnavailable"), ("hang@2", "ProviderTimeout")])
async def test_a_reply_cut_half_way_is_abandoned_and_asked_again(tmp_path: Path, fail: str, error: str) -> None:
    """The text that had arrived is recorded as abandoned, once, and is no part of the message or of any view."""
    model = f"local:test?words=30&chunk=3&fail={fail}"
    shown: list[Delta | None] = []
    cut = await converse(
        tmp_path / "1", experiment(model, "local:test", timeouts=SHORT), live=lambda _, d: shown.append(d)
    )
    plain = await converse(tmp_path / "2", experiment("local:test?words=30&chunk=3", "local:test"))
    check_record(cut.events)
    (abandoned,) = of_type(cut.events, MessageAbandonedEvent)
    assert abandoned.partial
    assert (abandoned.message_index, abandoned.attempt) == (2, 1)
    (failed,) = of_type(cut.events, APIErrorEvent)
    assert (failed.error, failed.attempt) == (error, 1)
    assert texts(cut.events) == texts(plain.events)
    assert messages(cut.events)[2].attempt == 2
    assert messages(cut.events)[2].message.content.startswith(abandoned.partial)
    digests = [event.digest for event in of_type(cut.events, MessageRequestEvent)]
    assert digests == [event.digest for event in of_type(plain.events, MessageRequestEvent)]
    discarded = shown.index(None)
    streamed = "".join(delta.text for delta in shown[:discarded] if isinstance(delta, TextDelta))
    assert streamed.endswith(abandoned.partial), "the display is told to discard what came"


@pytest.mark.parametrize(
    ("fail", "error", "status"),
    [
        ("auth@2", "AuthenticationFailed", 401),
        ("bad_request@2", "RequestRejected", 400),
        ("content_filter@2", "ContentFiltered", 400),
    ],
)
async def test_what_cannot_be_retried_fails_and_keeps_everything(
    tmp_path: Path, fail: str, error: str, status: int
) -> None:
    """One error event, then the end as failed with the reason; everything said before stays, nothing is made up."""
    run = await converse(tmp_path, experiment("local:test", f"local:test?fail={fail}", max_turns=5))
    plain = await converse(tmp_path / "2", experiment("local:test", "local:test", max_turns=5))
    check_record(run.events)
    (failed,) = of_type(run.events, APIErrorEvent)
    assert (failed.error, failed.status, failed.retryable, failed.wait_s) == (error, status, False, None)
    end = run.events[-1]
    assert isinstance(end, ConversationEndEvent)
    assert (end.status, end.end_reason) == (Status.FAILED, EndReason.PROVIDER_ERROR)
    assert end.error is not None
    assert end.error.startswith(f"{error}: ")
    assert texts(run.events) == texts(plain.events)[:3]
    assert (end.totals.turns, end.totals.messages, end.invalid) == (1, 3, ())
    assert requests_per_message(run.events) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert read_manifest(run.folder).status is Status.FAILED


async def test_retries_end_after_the_last_attempt(tmp_path: Path) -> None:
    """When every attempt fails, each is an event, only the last one without a wait, and the end is failed."""
    retries = {"attempts": 3, "base_s": 0.001}
    run = await converse(tmp_path, experiment("local:test?fail=server_error@1x9", "local:test", retries=retries))
    check_record(run.events)
    failures = of_type(run.events, APIErrorEvent)
    assert [event.attempt for event in failures] == [1, 2, 3]
    assert [event.wait_s is None for event in failures] == [False, False, True]
    assert run.outcome is not None
    assert run.outcome.status is Status.FAILED
    assert texts(run.events) == []
    assert run.events[-1].invalid == ("speaker_never_called",)  # type: ignore[attr-defined]


async def test_the_policy_covers_attempts_before_and_after_the_first_word(tmp_path: Path) -> None:
    """Errors before and after the first piece count as attempts of one message, in one row of numbers."""
    first = Scripted(
        [RuntimeTimeout],
        [TextDelta("Half"), RuntimeTimeout],
        [ThinkingDelta("hm"), RuntimeTimeout],
        WHOLE,
    )
    pool = ScriptedPool(m1=first)
    run = await converse(tmp_path, experiment("openai:m1", "local:test", max_turns=1), pool=pool)
    check_record(run.events)
    assert [request.attempt for request in first.requests] == [1, 2, 3, 4]
    assert [event.attempt for event in of_type(run.events, APIErrorEvent)] == [1, 2, 3]
    assert [event.partial for event in of_type(run.events, MessageAbandonedEvent)] == ["Half", ""]
    assert texts(run.events)[0] == "Hello."
    assert not of_type(run.events, ThinkingCompleteEvent), "the thinking of a lost attempt is not the message's"


RuntimeTimeout = ProviderTimeout("slow", provider="openai")


@pytest.mark.parametrize(
    ("fail", "mark", "reason"),
    [
        ("empty@2", "empty", FinishReason.STOP),
        ("refusal@2", "refused", FinishReason.REFUSAL),
        ("length@2", "truncated", FinishReason.LENGTH),
    ],
)
async def test_empty_refused_and_cut_replies_are_messages(
    tmp_path: Path, fail: str, mark: str, reason: FinishReason
) -> None:
    """They stand in the record as they came, are never asked again, and are counted as notable, not invalid."""
    run = await converse(tmp_path, experiment(f"local:test?fail={fail}", "local:test"))
    check_record(run.events)
    said = messages(run.events)[2]
    assert said.finish_reason is reason
    assert (said.message.content == "") == (mark == "empty")
    assert set(requests_per_message(run.events).values()) == {1}
    end = run.events[-1]
    assert isinstance(end, ConversationEndEvent)
    assert (end.notable, end.invalid, end.status) == ({mark: 1}, (), Status.COMPLETED)


async def test_silence_is_shown_by_a_declared_placeholder(tmp_path: Path) -> None:
    """Meditation: `local:silent` says nothing, all its messages are empty, and the other is sent the placeholder."""
    run = await converse(tmp_path, experiment("local:test", "local:silent", prompt="", max_turns=3))
    check_record(run.events)
    assert texts(run.events)[1::2] == ["", "", ""]
    asked = of_type(run.events, MessageRequestEvent)
    assert [event.placeholders for event in asked[0::2]] == [1, 2, 3], "the empty opening and each silence"
    assert run.events[-1].notable == {"empty": 3}  # type: ignore[attr-defined]


@pytest.mark.parametrize("visible", ["own", "nobody"])
async def test_thinking_is_recorded_apart_from_the_text(visible: str, tmp_path: Path) -> None:
    """Each block is an event before its message, which holds none of it; back to its model it goes only as `own`."""
    thinker = Scripted(
        [
            ThinkingDelta("One, "),
            ThinkingDelta("two.", "sig-1"),
            ThinkingDelta("Three."),
            TextDelta("Done."),
            UsageDelta(Usage(prompt_tokens=5, completion_tokens=9, thinking_tokens=7)),
            Finish(model="m1-2026"),
        ]
    )
    spec = experiment("openai:m1", "local:test", max_turns=2, agents={"a": {"thinking_visible": visible}})
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=thinker))
    check_record(run.events)
    blocks = of_type(run.events, ThinkingCompleteEvent)
    assert [(b.content, b.signature, b.tokens) for b in blocks[:2]] == [
        ("One, two.", "sig-1", None),
        ("Three.", None, 7),
    ]
    assert texts(run.events)[0] == "Done."
    assert "Three" not in texts(run.events)[0]
    own = thinker.requests[1].messages[1]
    sent = [("One, two.", "sig-1"), ("Three.", None)] if visible == "own" else []
    assert [(block.text, block.signature) for block in own.thinking] == sent


# Who speaks


@pytest.mark.parametrize(("order", "first"), [("alternate", "b"), ("random", "c"), ("random", "random")])
async def test_orders_are_those_of_the_spec(tmp_path: Path, order: str, first: str) -> None:
    """Who speaks when depends on the spec alone: the same twice, everybody once a turn, the opener first."""
    keys: dict[str, Any] = {"order": order, "first": first, "max_turns": 6}
    one = await converse(tmp_path / "1", experiment("local:test", "local:test", "local:test", **keys))
    two = await converse(tmp_path / "2", experiment("local:test", "local:test", "local:test", **keys))
    check_record(one.events)
    speakers = [event.speakers for event in of_type(one.events, TurnStartEvent)]
    assert speakers == [event.speakers for event in of_type(two.events, TurnStartEvent)]
    assert [event.agent_id for event in messages(one.events)] == list(itertools.chain(*speakers))
    if first != "random":
        assert speakers[0][0] == first
    if order == "alternate":
        assert set(speakers) == {("b", "c", "a")}
    else:
        assert len(set(speakers)) > 1


def test_random_orders_are_fair_and_pure() -> None:
    """Over many turns each agent speaks first about equally often; the process's own random state plays no part."""
    spec = conversation("local:test", "local:test", "local:test", order="random")
    random.seed(1)
    one = [speaking_order(spec, turn) for turn in range(2, 602)]
    random.seed(2)
    assert one == [speaking_order(spec, turn) for turn in range(2, 602)]
    for first in "abc":
        opened = replace(spec, first=first)
        for seed in range(20):
            assert speaking_order(replace(opened, seed=seed), 1)[0] == first
        assert [speaking_order(opened, turn) for turn in range(2, 602)] == one, "only the opening is given"
    for agent_id in "abc":
        assert 150 < sum(speakers[0] == agent_id for speakers in one) < 250


# Names


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("Nova", "Nova"),
        ("  Nova.  \n", "Nova"),
        ("**Nova**", "Nova"),
        ('"Nova"', "Nova"),
        ("“Nova”", "Nova"),
        ("`Nova`", "Nova"),
        ("Name: Nova", "Nova"),
        ("My name is Nova.", "Nova"),
        ("**My name is Nova.**", "Nova"),
        ("I'll be called Nova", "Nova"),
        ("I’ll go by Nova!", "Nova"),
        ("I'll go with Nova.", "Nova"),
        ("I would like to be called Nova", "Nova"),
        ("I choose Nova.", "Nova"),
        ("I choose the name Nova.", "Nova"),
        ("I am Nova.", "Nova"),
        ("I'm Nova", "Nova"),
        ("Call me Nova", "Nova"),
        ("Please call me Nova.", "Nova"),
        ("You can call me Nova", "Nova"),
        ("Here is my name:\n\nNova", "Nova"),
        ("Sure! I'll go with **Nova**.", "Nova"),
        ('I would like the name "Quiet Rain", since I like it.', "Quiet Rain"),
        ("Nova\n\nIt means new.", "Nova"),
        ("The Quiet Rain", "The Quiet Rain"),
        ("Dr. Nova", "Dr. Nova"),
        ("O'Brien", "O'Brien"),
        ("Ada-7", "Ada-7"),
        ("雨", "雨"),
        ("🌧", "🌧"),
        ("{text}", "{text}"),
        ("\x1b[1mNova\x1b[0m", "Nova"),
        ("\u202eNova\u202c", "Nova"),
        ("", None),
        (" \n\t", None),
        ("...", None),
        ("***", None),
        ("As an AI I have no name, and I would rather not choose one.", None),
        ("Sure! What about something shorter?", None),
        ("x" * 41, None),
    ],
)
def test_names_are_read_from_odd_replies(reply: str, name: str | None) -> None:
    """A name is found behind quotes, marks and polite phrases; where there is none, none is made up."""
    assert parse_name(reply) == name


async def test_chosen_names_are_recorded_unique_and_used(tmp_path: Path) -> None:
    """Two agents with one idea get two names; the labels show the names; one without a name keeps its own."""
    models = ["local:test?name=Nova", "local:test?name=Nova", "local:test?name=Nova+2", "openai:m1"]
    mute = Scripted([TextDelta("I would rather not have one, if that is all right."), *WHOLE[1:]], WHOLE)
    agents = {"d": {"name": "Nova 3"}}
    spec = experiment(*models, choose_names=True, max_turns=1, agents=agents)
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=mute))
    check_record(run.events)
    named = of_type(run.events, AgentNamedEvent)
    assert [(event.agent_id, event.name, event.chosen) for event in named] == [
        ("a", "Nova", True),
        ("b", "Nova 2", True),
        ("c", "Nova 2 2", True),
        ("d", "Nova 3", False),
    ]
    assert [event.reply for event in named][:3] == ["Nova", "Nova", "Nova 2"]
    assert [event.purpose for event in of_type(run.events, TokenUsageEvent)][:4] == ["name"] * 4
    opening = mute.requests[1].messages[0].content
    assert [label in opening for label in ("[Nova]: ", "[Nova 2]: ", "[Nova 2 2]: ")] == [True] * 3
    assert "Your name in this conversation is Nova 3." in opening
    assert "Your name in this conversation is Nova." not in opening


async def test_a_name_that_another_has_by_default_is_made_unique(tmp_path: Path) -> None:
    """An agent that finds no name does not end up with the one that somebody has chosen before."""
    mute = Scripted([TextDelta("No name for me, thank you very much indeed."), *WHOLE[1:]], WHOLE)
    spec = experiment(
        "local:test?name=Rain", "openai:m1", choose_names=True, max_turns=1, agents={"b": {"name": "Rain"}}
    )
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=mute))
    assert [event.name for event in of_type(run.events, AgentNamedEvent)] == ["Rain", "Rain 2"]


# Ends


@pytest.mark.parametrize(("who", "said", "turns"), [("a", 1, 0), ("b", 2, 1)])
async def test_a_stop_phrase_ends_the_conversation(tmp_path: Path, who: str, said: int, turns: int) -> None:
    """The agent that declared it ends by saying it; a turn in which all have spoken is complete."""
    models = {"a": "local:test", "b": "local:test"} | {who: "local:test?reply=So+GOODBYE+then"}
    agents = {who: {"stop_phrase": "GOODBYE"}}
    run = await converse(tmp_path, experiment(*models.values(), agents=agents))
    check_record(run.events)
    end = run.events[-1]
    assert isinstance(end, ConversationEndEvent)
    assert (end.status, end.end_reason) == (Status.COMPLETED, EndReason.STOP_PHRASE)
    assert (end.totals.messages, end.totals.turns) == (said, turns)
    assert len(of_type(run.events, TurnCompleteEvent)) == turns


async def test_only_the_agent_that_declared_the_phrase_ends_by_it(tmp_path: Path) -> None:
    """The other may say the phrase as often as it likes."""
    run = await converse(
        tmp_path,
        experiment("local:test?reply=GOODBYE", "local:test?reply=no", agents={"b": {"stop_phrase": "GOODBYE"}}),
    )
    assert run.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)


async def test_a_wrong_model_makes_the_conversation_invalid(tmp_path: Path) -> None:
    """A reply served by another model than the one asked for is kept, and the end event says so."""
    for served, invalid in [("m1", ()), ("m1-2026-05-01", ()), (None, ()), ("m2", ("wrong_model_served",))]:
        provider = Scripted([TextDelta("Yes."), Finish(model=served)])
        spec = experiment("openai:m1", "local:test", max_turns=1)
        run = await converse(tmp_path / str(served), spec, pool=ScriptedPool(m1=provider))
        check_record(run.events)
        assert run.events[-1].invalid == invalid  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("requested", "served"),
    [
        ("openai:gpt-4o", "gpt-4o-2024-08-06"),
        ("openai:gpt-4", "gpt-4-0613"),
        ("anthropic:claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("anthropic:claude-opus-4-0", "claude-opus-4-20250514"),
        ("google:gemini-2.0-flash", "gemini-2.0-flash-001"),
        ("google:gemini-2.5-flash", "models/gemini-2.5-flash-preview-05-20"),
        ("mistral:mistral-large-latest", "mistral-large-2411"),
        ("xai:grok-4-fast", "grok-4-fast-reasoning"),
        ("openrouter:meta-llama/llama-3.3-70b-instruct:free", "meta-llama/llama-3.3-70b-instruct"),
        ("llamacpp:qwen2.5-7b-instruct", "/models/Qwen2.5-7B-Instruct-Q4_K_M.gguf"),
        ("ollama:llama3.2", "llama3.2:latest"),
        ("google:gemini-flash-latest", "gemini-2.5-flash-preview-09-2025"),
        ("openrouter:anthropic/claude-sonnet-4", "anthropic/claude-4-sonnet-20250522"),
        ("vllm:m1", ""),
    ],
)
def test_a_model_may_answer_with_its_full_name(requested: str, served: str) -> None:
    """A date, a snapshot, a path or how the file is made does not make it another model."""
    assert same_model(requested, served)


@pytest.mark.parametrize(
    ("requested", "served"),
    [
        ("openai:gpt-5", "gpt-5-nano"),
        ("openai:gpt-4", "gpt-4o-mini-2024-07-18"),
        ("openai:gpt-4.1-mini", "gpt-4.1"),
        ("openai:gpt-4", "gpt-4.1"),
        ("openai:o1", "o1-mini"),
        ("google:gemini-2.5-flash", "gemini-2.5-flash-lite"),
        ("google:gemini-flash-latest", "gemini-2.5-flash-lite"),
        ("google:gemini-2.5-pro", "gemini-3-pro"),
        ("anthropic:claude-opus-4", "claude-opus-4-5"),
        ("my-gateway:m1", "m1-mini"),
        ("my-gateway:m1", "m1" + "-123456" * 5_000 + "x"),
    ],
)
def test_a_model_of_the_same_family_is_another_one(requested: str, served: str) -> None:
    """What gateways serve in place of a busy model is told from it, though one name begins with the other."""
    assert not same_model(requested, served)


async def test_replaced_text_is_counted_as_notable(tmp_path: Path) -> None:
    """Lone surrogates from a model are replaced, flagged on the message and counted."""
    provider = Scripted([TextDelta("broken \ud800 half"), Finish()])
    run = await converse(tmp_path, experiment("openai:m1", "local:test", max_turns=1), pool=ScriptedPool(m1=provider))
    check_record(run.events)
    assert messages(run.events)[0].message.content == "broken � half"
    assert messages(run.events)[0].message.text_replaced
    assert run.events[-1].notable == {"text_replaced": 1}  # type: ignore[attr-defined]


async def test_a_fault_of_ours_is_recorded_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that no provider may raise ends as failed, invalid, with an error event; nothing is lost."""
    provider = Scripted(WHOLE, [ZeroDivisionError("boom")])
    run = await converse(tmp_path, experiment("openai:m1", "local:test"), pool=ScriptedPool(m1=provider))
    check_record(run.events)
    assert run.outcome == (Status.FAILED, EndReason.HARNESS_ERROR, "ZeroDivisionError: boom")
    assert [event.error for event in of_type(run.events, ErrorEvent)] == ["ZeroDivisionError"]
    assert run.events[-1].invalid == ("harness_fault",)  # type: ignore[attr-defined]
    assert len(messages(run.events)) == 2
    assert "boom" in caplog.text


@pytest.mark.parametrize("error", [AuthenticationFailed("no key", provider="openai"), SpecError("no such endpoint")])
async def test_a_provider_that_cannot_be_opened_leaves_a_whole_record(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Even when no model can be asked, the record begins with its start and ends with its end."""

    class Closed(ProviderPool):
        def adapter(self, model_id: str, timeouts: Timeouts, settings: AgentSettings | None = None) -> Provider:
            raise error

    run = await converse(tmp_path, experiment("openai:m1", "local:test"), pool=Closed())
    check_record(run.events)
    assert run.outcome is not None
    assert run.outcome.status is Status.FAILED
    assert str(error) in str(run.outcome.error)


async def test_a_failing_subscriber_is_reported_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever listens on the bus and raises stands in the record as an error; the conversation is complete."""

    def fail(_conductor: Any, _event: Any) -> None:
        raise ValueError("cannot show this")

    run = await converse(tmp_path, experiment("local:test", "local:test"), watch=bus_watch(TurnStartEvent, fail))
    check_record(run.events)
    assert run.outcome == (Status.COMPLETED, EndReason.TURN_LIMIT, None)
    assert [event.message for event in of_type(run.events, ErrorEvent)] == ["cannot show this"] * 3


async def test_an_unknown_price_makes_totals_unknown(tmp_path: Path) -> None:
    """Costs are summed as long as all are known, and absent from the first unknown one on: never a wrong sum."""
    run = await converse(
        tmp_path,
        experiment("openai:nobody-knows-it", "local:test"),
        pool=ScriptedPool(**{"nobody-knows-it": Scripted(WHOLE)}),
    )
    check_record(run.events)
    assert [event.total_cost for event in of_type(run.events, TokenUsageEvent)] == [None] * 6
    assert run.events[-1].totals.cost_usd is None  # type: ignore[attr-defined]
    assert run.events[-1].totals.completion_tokens  # type: ignore[attr-defined]


# What agents are told


async def test_awareness_texts_reach_their_agent_at_their_turn(tmp_path: Path) -> None:
    """Each text is one intervention at its turn, seen by its agent only, from then on; key 0 comes with the opening."""
    file = tmp_path / "aware.yaml"
    file.write_text("name: probe\nprompts:\n  0: {a: zero}\n  2: {both: two, agent_b: extra}\n  3: {a: three}\n")
    heard = Scripted(WHOLE)
    agents = {"a": {"awareness": str(file)}, "b": {"awareness": str(file)}}
    spec = experiment("openai:m1", "local:test", agents=agents)
    run = await converse(tmp_path, spec, pool=ScriptedPool(m1=heard))
    check_record(run.events)
    put_in = of_type(run.events, InterventionEvent)
    assert [(e.turn_number, e.audience, e.text, e.source) for e in put_in] == [
        (0, ("a",), "zero", "awareness:probe"),
        (2, ("a",), "two", "awareness:probe"),
        (2, ("b",), "two\n\nextra", "awareness:probe"),
        (3, ("a",), "three", "awareness:probe"),
    ]
    first, second, third = ["\n".join(m.content for m in r.messages) for r in heard.requests]
    assert first == "[HUMAN]: Good morning.\n\n[HUMAN]: zero"
    assert second.endswith("[HUMAN]: two")
    assert third.endswith("[HUMAN]: three")
    assert "[HUMAN]: two" in third
    assert "extra" not in third


async def test_system_prompts_reach_their_owner_only(tmp_path: Path) -> None:
    """An agent's system prompt is in its own requests, as such, and nowhere in anybody else's."""
    one, two = Scripted(WHOLE), Scripted(WHOLE)
    agents = {"a": {"system_prompt": "secret of a"}, "b": {"system_prompt": ""}}
    run = await converse(
        tmp_path, experiment("openai:m1", "openai:m2", agents=agents), pool=ScriptedPool(m1=one, m2=two)
    )
    check_record(run.events)
    assert {request.system for request in one.requests} == {"secret of a"}
    assert {request.system for request in two.requests} == {None}, "an empty system prompt is none"
    assert "secret" not in str([request.messages for request in (*one.requests, *two.requests)])


async def test_the_record_alone_gives_status_and_totals(tmp_path: Path) -> None:
    """The fold of the events, the end event and the manifest agree."""
    run = await converse(tmp_path, experiment("local:test", "local:test?thinking=1"))
    state = run_state(run.events)
    end = run.events[-1]
    assert isinstance(end, ConversationEndEvent)
    entry = next(iter(read_manifest(run.folder).conversations.values()))
    assert (state.status, state.turns, state.messages) == (end.status, end.totals.turns, end.totals.messages)
    assert (entry.status, entry.turns, entry.messages) == (end.status, end.totals.turns, end.totals.messages)
    assert state.tokens == (end.totals.prompt_tokens or 0) + (end.totals.completion_tokens or 0)


async def test_one_full_window_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    """A conversation that ends at its context limit ends alone: the next repetition runs."""
    spec = experiment("local:test?fail=context@2", "local:test", repetitions=2)
    run = await converse(tmp_path, spec)
    assert run.outcome is not None
    assert run.outcome.end_reason is EndReason.CONTEXT_LIMIT
    states = [entry.status for entry in read_manifest(run.folder).conversations.values()]
    assert states == [Status.STOPPED, Status.STOPPED]


async def test_two_processes_cannot_write_one_record(tmp_path: Path) -> None:
    """While a conversation runs, its log cannot be opened by another writer."""
    seen: list[str] = []

    def intrude(conductor: Any, _event: Any) -> None:
        from pidgin_cli.eventlog.log import EventLog, Syncer

        with pytest.raises(LogError) as error:
            EventLog(conductor._log.path, experiment_id="x", conversation_id="x-1", syncer=Syncer())
        seen.append(str(error.value))

    await converse(
        tmp_path, experiment("local:test", "local:test", max_turns=1), watch=bus_watch(TurnStartEvent, intrude)
    )
    assert "being written by another process" in seen[0]
