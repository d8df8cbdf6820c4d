"""Time-outs and timing, retries, and limits, around a provider that does what a script says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from support import Scripted, ScriptedPool, check_record, converse, experiment

from pidgin_cli.conversation.control import Stop
from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
)
from pidgin_cli.core.events import APIErrorEvent, Event, MessageCompleteEvent, RateLimitEvent
from pidgin_cli.core.types import (
    Delta,
    Finish,
    ModelRequest,
    ModelResponse,
    ResponseFold,
    Retries,
    TextDelta,
    ThinkingDelta,
    Timeouts,
    Timing,
    ToolCallDelta,
    Usage,
    UsageDelta,
)
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.providers.wrappers import Limited, Limiter, Retrying, RetryPolicy, Timed

ASK = ModelRequest(model="m1", messages=(), agent_id="a", turn_number=3, message_index=5)
HELLO = TextDelta("Hello")
END = Finish()


async def reply(provider: Provider, request: ModelRequest = ASK, fold: ResponseFold | None = None) -> ModelResponse:
    fold = fold or ResponseFold()
    async for delta in provider.stream_response(request):
        fold.add(delta)
    return fold.response()


def timed(*script: Any, **limits: float | None) -> Timed:
    unlimited: dict[str, float | None] = {"first_token_s": None, "gap_s": None, "total_s": None}
    return Timed(Scripted(script), Timeouts(**(unlimited | limits)), "maker")


# Timed


async def test_timing_tells_waiting_from_writing() -> None:
    """Time to first token ends with the first piece of any kind; speed is tokens over the time from there on."""
    for first in (HELLO, ThinkingDelta("hm"), ToolCallDelta(0, "id", "look")):
        usage = UsageDelta(Usage(completion_tokens=8))
        answer = await reply(timed(UsageDelta(Usage(prompt_tokens=1)), 0.04, first, 0.08, usage, END))
        timing = answer.finish.timing
        assert timing is not None
        assert timing.ttft_ms is not None
        assert timing.duration_ms is not None
        assert timing.tokens_per_s is not None
        assert timing.ttft_ms >= 35
        assert timing.duration_ms >= timing.ttft_ms + 75
        seconds = (timing.duration_ms - timing.ttft_ms) / 1000
        assert timing.tokens_per_s == pytest.approx(8 / seconds, rel=0.01)
        assert timing.queued_ms is None


async def test_what_cannot_be_measured_is_absent() -> None:
    """Without text there is no time to first token, without a token count no speed: absent, never 0."""
    empty = (await reply(timed(UsageDelta(Usage(completion_tokens=0)), END))).finish.timing
    assert empty is not None
    assert (empty.ttft_ms, empty.tokens_per_s) == (None, None)
    uncounted = (await reply(timed(HELLO, 0.01, END))).finish.timing
    assert uncounted is not None
    assert uncounted.tokens_per_s is None
    sudden = (await reply(timed(HELLO, UsageDelta(Usage(completion_tokens=9)), END))).finish.timing
    assert sudden is not None
    assert sudden.tokens_per_s is None, "all at once has no speed"


@pytest.mark.parametrize(
    ("script", "limits", "said", "got"),
    [
        ([3600.0], {"first_token_s": 0.03}, "the first token took longer than 0.03 s", ""),
        ([HELLO, 3600.0], {"gap_s": 0.03}, "the next piece took longer than 0.03 s", "Hello"),
        ([HELLO, 3600.0], {"total_s": 0.03}, "the whole reply took longer than 0.03 s", "Hello"),
        ([3600.0], {"total_s": 0.03, "first_token_s": 60.0}, "the whole reply took longer than 0.03 s", ""),
        ([HELLO, 3600.0], {"total_s": 0.05, "gap_s": 0.02}, "the next piece took longer than 0.02 s", "Hello"),
        ([HELLO, HELLO, 3600.0], {"gap_s": 0.03, "first_token_s": 60.0}, "the next piece", "HelloHello"),
    ],
)
async def test_each_time_out_says_which_it_is(script: list[Any], limits: dict[str, float], said: str, got: str) -> None:
    """What took longer than what stands in the error; the request is given up; the text so far has been handed out."""
    inner = Scripted(script)
    provider = Timed(inner, Timeouts(**({"first_token_s": None, "gap_s": None} | limits)), "maker")
    fold = ResponseFold()
    with pytest.raises(ProviderTimeout) as error:
        await reply(provider, fold=fold)
    assert str(error.value).startswith(f"maker: {said}")
    assert error.value.provider == "maker"
    assert fold.text == got
    assert inner.open == 0
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_reports_of_usage_do_not_put_off_the_first_token() -> None:
    """The limit for the first token counts from the request, whatever else arrives meanwhile."""
    pings = [UsageDelta(Usage(prompt_tokens=1)), 0.03] * 20
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ProviderTimeout, match="the first token"):
        await reply(timed(*pings, HELLO, END, first_token_s=0.08))
    assert loop.time() - began < 0.5


async def test_a_steady_stream_never_times_out() -> None:
    """A reply many times longer than the limits for first token and gap is fine as long as pieces come."""
    answer = await reply(timed(*[HELLO, 0.01] * 60, END, first_token_s=0.4, gap_s=0.4))
    assert answer.message.content == "Hello" * 60
    assert answer.finish.timing is not None
    assert answer.finish.timing.duration_ms is not None
    assert answer.finish.timing.duration_ms > 590


async def test_the_consumer_may_take_its_time() -> None:
    """Time-outs measure the model: whoever consumes a reply may wait between two pieces as long as it likes."""
    got = []
    async for delta in timed(HELLO, HELLO, END, first_token_s=0.02, gap_s=0.02).stream_response(ASK):
        got.append(delta)
        await asyncio.sleep(0.06)
    assert len(got) == 3


async def test_a_cancellation_from_outside_stays_one() -> None:
    """When somebody else cancels, the time-outs keep out of it, and the request is given up."""
    inner = Scripted([HELLO, 3600.0])
    provider = Timed(inner, Timeouts(), "maker")
    arrived = asyncio.Event()

    async def consume() -> None:
        async for _ in provider.stream_response(ASK):
            arrived.set()

    task = asyncio.create_task(consume())
    await arrived.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.open == 0


class Stubborn:
    """Turns a cancellation into something of its own, as clumsy SDKs do."""

    def __init__(self, instead: ProviderError | None) -> None:
        self.instead = instead

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if self.instead is not None:
                raise self.instead from None
        yield HELLO
        yield END

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("instead", [None, ProviderUnavailable("cut")])
async def test_a_time_out_that_was_swallowed_leaves_no_mark(instead: ProviderError | None) -> None:
    """Whatever becomes of the cancellation within an adapter, the task it ran in is not cancelled afterwards."""
    provider = Timed(Stubborn(instead), Timeouts(first_token_s=0.02), "maker")
    if instead is None:
        assert (await reply(provider)).message.content == "Hello"
    else:
        with pytest.raises(ProviderUnavailable):
            await reply(provider)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


# Retrying


class Notes:
    """What a retry policy reports and how long it waits, without waiting."""

    def __init__(self, **retries: Any) -> None:
        self.events: list[Event] = []
        self.waits: list[float] = []
        self.policy = RetryPolicy(Retries(**retries), "maker", self.events.append, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.mark.parametrize("kind", [RateLimited, Overloaded, ProviderTimeout, ProviderUnavailable])
async def test_passing_errors_are_tried_again(kind: type[ProviderError]) -> None:
    """Each attempt has its number, in the requests, the events and the reply."""
    notes = Notes(attempts=4)
    inner = Scripted([kind("no")], [kind("no")], [HELLO, END])
    answer = await reply(Retrying(inner, notes.policy))
    assert answer.message.content == "Hello"
    assert answer.finish.attempt == 3
    assert [request.attempt for request in inner.requests] == [1, 2, 3]
    expected = RateLimitEvent if kind is RateLimited else APIErrorEvent
    assert [type(event) for event in notes.events] == [expected, expected]
    for number, (event, wait) in enumerate(zip(notes.events, notes.waits, strict=True), 1):
        assert isinstance(event, RateLimitEvent | APIErrorEvent)
        assert (event.agent_id, event.turn_number, event.message_index) == ("a", 3, 5)
        assert (event.provider, event.attempt, event.message) == ("maker", number, "no")
        assert event.wait_s == pytest.approx(wait, abs=0.001)


@pytest.mark.parametrize("kind", [AuthenticationFailed, ContextLengthExceeded, RequestRejected, ContentFiltered])
async def test_lasting_errors_are_not(kind: type[ProviderError]) -> None:
    """They go up at once, after one event that says there is no next attempt."""
    notes = Notes()
    inner = Scripted([kind("no", status=400)])
    with pytest.raises(kind):
        await reply(Retrying(inner, notes.policy))
    (event,) = notes.events
    assert isinstance(event, APIErrorEvent)
    assert (event.error, event.status, event.retryable, event.wait_s) == (kind.__name__, 400, False, None)
    assert len(inner.requests) == 1
    assert notes.waits == []


async def test_the_last_attempt_is_the_last() -> None:
    """After as many attempts as allowed the error goes up with its number; a rate limit is then an error as well."""
    notes = Notes(attempts=3)
    inner = Scripted([RateLimited("slow down")])
    with pytest.raises(RateLimited) as error:
        await reply(Retrying(inner, notes.policy))
    assert error.value.attempt == 3
    assert len(inner.requests) == 3
    assert [type(event) for event in notes.events] == [RateLimitEvent, RateLimitEvent, APIErrorEvent]


async def test_the_provider_may_say_when_to_come_back() -> None:
    """Retry-After is honoured to the letter, also beyond the longest wait of our own."""
    notes = Notes(attempts=3, max_wait_s=2.0)
    errors = [RateLimited("no", retry_after_s=123.4)], [Overloaded("no", retry_after_s=0.0)]
    await reply(Retrying(Scripted(*errors, [HELLO, END]), notes.policy))
    assert notes.waits == [123.4, 0.0]


async def test_waits_are_drawn_from_all_of_a_growing_range() -> None:
    """Full jitter: uniform from 0 to base · 2^(n-1), at most `max_wait_s`; and no number of attempts breaks it."""
    draws: list[list[float]] = []
    for _ in range(300):
        notes = Notes(attempts=8, base_s=1.0, max_wait_s=10.0)
        with pytest.raises(Overloaded):
            await reply(Retrying(Scripted([Overloaded("no")]), notes.policy))
        draws.append(notes.waits)
    for attempt, waits in enumerate(zip(*draws, strict=True)):
        top = min(10.0, 2.0**attempt)
        assert 0 <= min(waits) < 0.1 * top
        assert 0.9 * top < max(waits) <= top
        assert sum(waits) / len(waits) == pytest.approx(top / 2, rel=0.2)
    patient = Notes(attempts=5000, base_s=1.0, max_wait_s=10.0)
    with pytest.raises(Overloaded):
        await reply(Retrying(Scripted([Overloaded("no")]), patient.policy))
    assert len(patient.waits) == 4999
    assert max(patient.waits) <= 10.0


@pytest.mark.parametrize("first", [HELLO, ThinkingDelta("hm"), ToolCallDelta(0, "id", "look"), TextDelta("")])
async def test_nothing_restarts_after_the_first_piece(first: Delta) -> None:
    """Once something was handed out, the error goes up with its number and no event: two attempts never mix."""
    notes = Notes()
    inner = Scripted([Overloaded("no")], [first, ProviderUnavailable("cut")], [HELLO, END])
    fold, alone = ResponseFold(), ResponseFold()
    with pytest.raises(ProviderUnavailable) as error:
        await reply(Retrying(inner, notes.policy), fold=fold)
    for delta in (first, END):
        alone.add(delta)
    fold.add(END)
    assert fold.response() == alone.response()
    assert error.value.attempt == 2
    assert len(notes.events) == 1
    assert len(inner.requests) == 2


async def test_usage_alone_is_handed_out() -> None:
    """An error after a usage report goes up: what was used is paid for and has to be recorded before a new attempt."""
    notes = Notes()
    inner = Scripted([UsageDelta(Usage(prompt_tokens=9)), Overloaded("no")], [HELLO, END])
    with pytest.raises(Overloaded):
        await reply(Retrying(inner, notes.policy))
    assert len(inner.requests) == 1


@pytest.mark.parametrize("script", [[], [HELLO]])
async def test_a_stream_without_an_end_is_no_reply(script: list[Delta]) -> None:
    """A stream that just stops was cut: tried again if nothing had come, an error if something had."""
    notes = Notes()
    provider = Retrying(Scripted(script, [HELLO, END]), notes.policy)
    if script:
        with pytest.raises(ProviderUnavailable):
            await reply(provider)
    else:
        assert (await reply(provider)).finish.attempt == 2


async def test_a_stop_while_waiting_ends_the_request() -> None:
    """What the sleeping raises goes up as it is; no further attempt is made."""

    async def sleep(_: float) -> None:
        raise Stop("person")

    inner = Scripted([Overloaded("no")], [HELLO, END])
    policy = RetryPolicy(Retries(), "maker", lambda _: None, sleep)
    with pytest.raises(Stop):
        await reply(Retrying(inner, policy))
    assert len(inner.requests) == 1


# Limited


async def test_never_more_than_the_limit_at_once() -> None:
    """Of many requests only as many run as there are places, all come to their end, and places come back."""
    gate = asyncio.Event()
    inner = Scripted([gate, HELLO, END])
    provider = Limited(inner, Limiter(3))
    tasks = [asyncio.create_task(reply(provider)) for _ in range(10)]
    await inner.opened.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert inner.open == 3
    gate.set()
    assert len(await asyncio.gather(*tasks)) == 10
    assert inner.most_open == 3
    assert inner.open == 0


async def test_waiting_for_a_place_is_not_the_models_time() -> None:
    """`queued_ms` counts the wait for a place, `duration_ms` begins after it; without a wait it is about 0."""
    inner = Scripted([0.1, HELLO, END])
    provider = Limited(Timed(inner, Timeouts(), "maker"), Limiter(1))
    loop = asyncio.get_running_loop()
    began = loop.time()
    first, second = await asyncio.gather(reply(provider), reply(provider))
    took = loop.time() - began
    one, two = first.finish.timing, second.finish.timing
    assert isinstance(one, Timing)
    assert isinstance(two, Timing)
    assert one.queued_ms is not None
    assert two.queued_ms is not None
    assert one.duration_ms is not None
    assert two.duration_ms is not None
    assert one.queued_ms < 90 <= two.queued_ms
    assert two.duration_ms >= 95
    assert two.queued_ms + two.duration_ms <= 1000 * took + 1
    assert two.ttft_ms is not None
    assert two.ttft_ms <= two.duration_ms


async def test_a_place_comes_back_whatever_happens() -> None:
    """After an error, a cancellation, and a reply that was given up half-way, the place is free again."""
    limiter = Limiter(1)
    inner = Scripted([Overloaded("no")], [HELLO, 3600.0], [3600.0], [HELLO, END])
    provider = Limited(inner, limiter)
    with pytest.raises(Overloaded):
        await reply(provider)
    async with aclosing(provider.stream_response(ASK)) as stream:  # type: ignore[type-var]
        assert await anext(stream) == HELLO
    task = asyncio.create_task(reply(provider))
    inner.opened.clear()
    await inner.opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await asyncio.wait_for(reply(provider), 5)).message.content == "Hello"


async def test_a_back_off_holds_no_place() -> None:
    """While one request waits for its next attempt, another gets the place."""
    waits, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        waits.set()
        await go_on.wait()

    limiter = Limiter(1)
    failing = Retrying(
        Limited(Scripted([Overloaded("no")], [HELLO, END]), limiter),
        RetryPolicy(Retries(), "maker", lambda _: None, sleep),
    )
    first = asyncio.create_task(reply(failing))
    await waits.wait()
    other = Limited(Scripted([HELLO, END]), limiter)
    assert (await asyncio.wait_for(reply(other), 5)).message.content == "Hello"
    go_on.set()
    assert (await first).finish.attempt == 2


# Together


async def test_a_pool_wraps_every_provider_in_one_order() -> None:
    """Retrying around Limited around Timed; one limit and one adapter for all that use one model."""
    inner = Scripted([0.01, HELLO, END])
    pool = ScriptedPool(m1=inner)
    notes = Notes()
    one = pool.provider("openai:m1", Timeouts(), notes.policy, 1)
    two = pool.provider("openai:m1", Timeouts(), Notes().policy, 1)
    answers = await asyncio.gather(reply(one), reply(two), reply(one))
    assert inner.most_open == 1
    for answer in answers:
        timing = answer.finish.timing
        assert timing is not None
        assert timing.queued_ms is not None
        assert timing.ttft_ms is not None
        assert answer.finish.attempt == 1
    free = ProviderPool()
    adapter = free.adapter("local:test", Timeouts())
    assert free.adapter("local:silent", Timeouts()) is adapter
    assert isinstance(free.provider("local:test", Timeouts(), notes.policy), Retrying)
    await free.aclose()


async def test_timing_reaches_the_record(tmp_path: Any) -> None:
    """Wait for a place, time to first token, duration and speed stand beside the message they belong to."""
    spec = experiment("local:test?latency_ms=30&chunk_ms=2&words=20", "local:test", max_turns=2, concurrency=1)
    run = await converse(tmp_path, spec)
    check_record(run.events)
    first = next(e for e in run.events if isinstance(e, MessageCompleteEvent) and e.message_index == 2)
    assert first.timing.ttft_ms is not None
    assert first.timing.duration_ms is not None
    assert first.timing.queued_ms is not None
    assert 25 <= first.timing.ttft_ms < first.timing.duration_ms
    assert first.timing.queued_ms < first.timing.ttft_ms
    assert first.timing.tokens_per_s
