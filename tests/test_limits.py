"""Limits shared by the conversations of a process: the window, the queue, and what is known per minute.

All of it runs on a clock that jumps to whatever comes next, so that an hour takes no time.
"""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
)
from pidgin_cli.core.events import Event, LimitChangedEvent, RateLimitEvent
from pidgin_cli.core.types import Delta, Finish, Message, ModelRequest, Role, TextDelta, Timing, Usage, UsageDelta
from pidgin_cli.providers.limits import (
    MAX_CONCURRENCY,
    MINUTE_S,
    PATIENCE_S,
    REST_S,
    START,
    Limited,
    Limiter,
    Place,
    estimated_tokens,
)

T = TypeVar("T")
REQUEST = ModelRequest(model="m", messages=(Message(Role.USER, "Hello."),))


class _Selector(selectors.SelectSelector):
    """Never waits: time jumps to what comes next."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everybody waits for nobody"
        if not ready:
            self.now += timeout or 0.0
        return ready


def simulated(work: Coroutine[Any, Any, T]) -> T:
    """Run in simulated time. Fails when everything hangs."""

    def loop() -> asyncio.AbstractEventLoop:
        selector = _Selector()
        found = asyncio.SelectorEventLoop(selector)
        found.time = lambda: selector.now  # type: ignore[method-assign]
        return found

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


class Watched(Limiter):
    """Notes who is let through and when, and that there was room."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.let_through: list[tuple[Place, float]] = []

    def _grant(self, place: Place, at: float) -> None:
        assert self.in_flight < self.limit <= self.max_concurrency
        assert at == now()
        super()._grant(place, at)
        self.let_through.append((place, at))


class Changes(list[LimitChangedEvent]):
    """A report that keeps the changes."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, RateLimitEvent):
            assert isinstance(event, LimitChangedEvent)
            self.append(event)

    @property
    def windows(self) -> list[int]:
        assert all(one.limit == other.before for one, other in pairwise(self))
        return [self[0].before or 0, *(event.limit for event in self)] if self else []


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(5):
        await asyncio.sleep(0)


async def crowd(limiter: Limiter, size: int) -> list[Place]:
    """Fill the window, with others waiting behind, who leave in the end with the loop."""
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(size)]
    await settle()
    return [task.result() for task in waiting if task.done()]


# --- the window


class Visit(NamedTuple):
    """One request of a random history."""

    after_s: float
    """Since the one before it."""
    takes_s: float
    ends: str
    patience_s: float
    """Leaves the queue after so long."""


VISITS = st.lists(
    st.builds(
        Visit,
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 1.0, 30.0]),
        st.sampled_from([0.0, 0.1, 0.5, 3.0]),
        st.sampled_from(["well", "well", "well", "429", "429 wait", "503", "529 wait", "400", "left"]),
        st.sampled_from([0.0, 0.1, 5.0, 1e6, 1e6, 1e6]),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    visits=VISITS,
    concurrency=st.none() | st.integers(1, 12),
    start=st.integers(1, 8),
    rpm=st.none() | st.integers(1, 30),
    tpm=st.none() | st.integers(1, 300),
)
def test_the_window_holds_whatever_happens(
    visits: list[Visit], concurrency: int | None, start: int, rpm: int | None, tpm: int | None
) -> None:
    """Never more than the window under way, first come first served, the window within its bounds, nobody forgotten."""
    limiter = Watched(concurrency, start=start, requests_per_minute=rpm, tokens_per_minute=tpm)
    changes = Changes()
    came: list[int] = []
    went: list[int] = []
    left = 0

    async def visit(number: int, one: Visit) -> None:
        nonlocal left
        came.append(number)
        try:
            async with asyncio.timeout(one.patience_s):
                place = await limiter.acquire(number)
        except TimeoutError:
            came.remove(number)
            left += 1
            return
        went.append(number)
        try:
            await asyncio.sleep(one.takes_s)
            if one.ends in ("well", "left"):
                limiter.accepted(place, changes)
            else:
                kind = {"429": RateLimited, "503": Overloaded, "529": Overloaded, "400": RequestRejected}[one.ends[:3]]
                error = kind("no", retry_after_s=2.0 if "wait" in one.ends else None)
                limiter.failed(place, error, changes)
        finally:
            limiter.release(place, Usage(prompt_tokens=number * 2) if one.ends == "well" else None)
        limiter.release(place)  # a second time counts for nothing

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, one in enumerate(visits):
                await asyncio.sleep(one.after_s)
                tasks.create_task(visit(number, one))

    simulated(all_of_them())
    assert went == came, "not in the order of coming"
    assert len(went) + left == len(visits)
    assert (limiter.in_flight, limiter.waiting, limiter._holding) == (0, 0, 0)
    most = MAX_CONCURRENCY if concurrency is None else concurrency
    assert all(1 <= window <= most for window in changes.windows)
    if rpm is not None:
        times = [at for _, at in limiter.let_through]
        assert all(later - first >= 60 for first, later in zip(times, times[rpm:], strict=False))


def test_slow_start_doubles_up_to_the_most_there_may_be() -> None:
    """A server that takes everything gets 4, 8, 16, … at once, as quickly as it begins to answer."""

    async def run() -> None:
        limiter, changes = Watched(provider="vllm", model="m", max_concurrency=100), Changes()

        async def one() -> None:
            place = await limiter.acquire()
            await asyncio.sleep(0.2)
            limiter.accepted(place, changes)
            await asyncio.sleep(100.0)
            limiter.release(place)

        began = now()
        tasks = [asyncio.create_task(one()) for _ in range(300)]
        await asyncio.sleep(1.1)
        assert limiter.in_flight == 100
        assert changes.windows == [4, 8, 16, 32, 64, 100]
        assert {event.why for event in changes} == {"slow start"}
        assert {(event.provider, event.model) for event in changes} == {("vllm", "m")}
        await asyncio.gather(*tasks)
        assert now() - began < 302, "three full batches"
        assert limiter.limit == 100

    simulated(run())


def test_the_window_grows_only_while_somebody_waits() -> None:
    """As many conversations as there are places leave the window as it is, however long they talk."""

    async def run() -> None:
        limiter, changes = Limiter(), Changes()

        async def talk() -> None:
            for _ in range(50):
                place = await limiter.acquire()
                limiter.accepted(place, changes)
                await asyncio.sleep(1.0)
                limiter.release(place)

        await asyncio.gather(*(talk() for _ in range(START)))
        assert (limiter.limit, changes) == (START, [])

    simulated(run())


def test_a_burst_of_refusals_cuts_once() -> None:
    """All 429s to requests made before a cut count as one; the next cut needs a request made after it."""

    async def run() -> None:
        limiter, changes = Limiter(start=16), Changes()
        for place in await crowd(limiter, 16):
            limiter.failed(place, RateLimited("slow down"), changes)
            limiter.release(place)
        assert changes.windows == [16, 8]
        (place,) = await crowd(limiter, 1)
        await asyncio.sleep(REST_S)
        limiter.failed(place, RateLimited("slow down"), changes)
        assert len(changes) == 2
        assert {event.why for event in changes} == {"rate limit"}

    simulated(run())


def test_how_deep_a_cut_goes() -> None:
    """Half in slow start, later a quarter, half if it follows at once; of what is under way, and never below one."""

    async def run() -> None:
        limiter, changes = Limiter(start=64), Changes()

        async def refuse(size: int) -> None:
            places = await crowd(limiter, size)
            limiter.failed(places[-1], RateLimited("slow down", retry_after_s=0.0), changes)
            for place in places:
                limiter.release(place)

        await refuse(64)
        await asyncio.sleep(REST_S)
        await refuse(32)
        await refuse(24)
        await asyncio.sleep(REST_S)
        await refuse(4)  # out of a window of 12
        for _ in range(4):
            await refuse(1)
        assert changes.windows == [64, 32, 24, 12, 3, 1]

    simulated(run())


def accept_all(limiter: Limiter, changes: Changes) -> Callable[[], Coroutine[Any, Any, None]]:
    """A conversation without end with a server that accepts at once and answers within a second."""

    async def talk() -> None:
        while True:
            place = await limiter.acquire()
            limiter.accepted(place, changes)
            await asyncio.sleep(1.0)
            limiter.release(place)

    return talk


def test_after_a_cut_the_window_rests_and_then_grows_by_one_per_round() -> None:
    """Nothing for the length of the rest, then one place more each time a whole window was accepted."""

    async def run() -> None:
        limiter, changes = Limiter(start=40), Changes()
        places = await crowd(limiter, 40)
        limiter.failed(places[0], RateLimited("slow down"), changes)
        for place in places:
            limiter.release(place)
        began, talk = now(), accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(60)]
        await asyncio.sleep(REST_S * 0.99)
        assert changes.windows == [40, 20]
        await asyncio.sleep(8.0)
        assert changes.windows[:5] == [40, 20, 21, 22, 23]
        assert {event.why for event in changes[1:]} == {"growth"}
        grown = changes.windows[-1] - 20
        assert grown <= now() - began - REST_S + 1, "more than one per round trip"
        assert grown >= 6
        assert all(not task.done() for task in tasks)

    simulated(run())


def test_requests_made_before_a_cut_say_nothing_about_the_window_after_it() -> None:
    """Their acceptances do not count for its growth: a whole new window has to be accepted."""

    async def run() -> None:
        limiter, changes = Limiter(start=16), Changes()
        first, *others = await crowd(limiter, 16)
        limiter.failed(first, RateLimited("slow down"), changes)
        limiter.release(first)
        for place in others:
            limiter.accepted(place, changes)
            limiter.release(place)
        await asyncio.sleep(REST_S)
        places = await crowd(limiter, 20)
        assert len(places) == 8
        for place in places[:7]:
            limiter.accepted(place, changes)
        assert changes.windows == [16, 8]
        limiter.accepted(places[7], changes)
        assert changes.windows == [16, 8, 9]

    simulated(run())


def test_the_window_is_patient_below_the_wall_and_passes_it_when_there_is_room() -> None:
    """It stays one below what was refused until its patience ends, then tries; what is borne is no wall any more."""

    async def run() -> None:
        limiter, changes = Limiter(start=4), Changes()
        places = await crowd(limiter, 4)
        limiter.failed(places[0], RateLimited("slow down"), changes)
        for place in places:
            limiter.release(place)
        talk = accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(20)]
        await asyncio.sleep(PATIENCE_S * 0.99)
        assert changes.windows == [4, 2, 3]
        await asyncio.sleep(30.0)
        assert changes.windows == [4, 2, *range(3, limiter.limit + 1)]
        assert limiter.limit == 20
        assert all(not task.done() for task in tasks)

    simulated(run())


@pytest.mark.parametrize("error", [Overloaded("503"), ProviderTimeout("slow"), ProviderUnavailable("cut")], ids=repr)
def test_trouble_of_the_server_only_stops_growth(error: ProviderError) -> None:
    """The window stays as it is for the length of a rest, and then grows on as before."""

    async def run() -> None:
        limiter, changes = Limiter(), Changes()
        places = await crowd(limiter, 4)
        limiter.failed(places[0], error, changes)
        for place in places:
            limiter.release(place)
        talk = accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(20)]
        await asyncio.sleep(REST_S * 0.99)
        assert changes == []
        assert limiter.in_flight == 4
        await asyncio.sleep(3.0)
        assert changes.windows == [4, 8, 16, 32]
        assert all(not task.done() for task in tasks)

    simulated(run())


@pytest.mark.parametrize(
    "error", [AuthenticationFailed("401"), RequestRejected("400"), ContentFiltered("no")], ids=repr
)
def test_what_is_wrong_with_a_request_says_nothing_about_the_limit(error: ProviderError) -> None:
    """Refusals for other reasons than load neither cut nor stop growth nor pause, whatever they carry."""

    async def run() -> None:
        limiter, changes = Limiter(), Changes()
        places = await crowd(limiter, 20)
        error.retry_after_s = 50.0
        limiter.failed(places[0], error, changes)
        for place in places:
            limiter.accepted(place, changes)
        assert changes.windows == [4, 8]
        assert limiter.in_flight == 8

    simulated(run())


@pytest.mark.parametrize(
    "error", [RateLimited("429", retry_after_s=10.0), Overloaded("529", retry_after_s=10.0)], ids=repr
)
def test_retry_after_holds_everybody_back(error: ProviderError) -> None:
    """Nobody is let through before the time the provider named, and then at once; requests under way go on."""

    async def run() -> None:
        limiter = Watched(8)
        (place,) = await crowd(limiter, 1)
        began = now()
        limiter.failed(place, error)
        limiter.release(place)
        await limiter.acquire()
        assert now() == pytest.approx(began + 10.0)

    simulated(run())


def test_the_longest_wait_that_was_named_counts() -> None:
    """A shorter Retry-After from the same burst does not end a longer one."""

    async def run() -> None:
        limiter = Watched(8, start=8)
        began = now()
        for place, wait_s in zip(await crowd(limiter, 3), (3.0, 30.0, 10.0), strict=True):
            limiter.failed(place, RateLimited("slow down", retry_after_s=wait_s))
            limiter.release(place)
        await limiter.acquire()
        assert now() == pytest.approx(began + 30.0)

    simulated(run())


def test_when_one_at_a_time_is_too_much_time_passes_between_requests() -> None:
    """Push-back without a hint at a window of one pauses all, twice as long each time, until something is accepted."""

    async def run() -> None:
        limiter = Watched(1)
        for _ in range(9):
            place = await limiter.acquire()
            limiter.failed(place, RateLimited("slow down"))
            limiter.release(place)
        times = [at for _, at in limiter.let_through]
        assert [round(later - one) for one, later in pairwise(times)] == [1, 2, 4, 8, 16, 32, 60, 60]
        limiter.accepted(place := await limiter.acquire())
        limiter.release(place)
        place, began = await limiter.acquire(), now()
        limiter.failed(place, RateLimited("slow down"))
        limiter.release(place)
        await limiter.acquire()
        assert now() == began + 1

    simulated(run())


def test_a_fixed_number_of_places_is_never_exceeded() -> None:
    """`Limiter(2)` lets two through at once, however gladly the server takes them."""

    async def run() -> None:
        limiter, changes = Watched(2), Changes()
        talk = accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(10)]
        await asyncio.sleep(100.0)
        assert limiter.in_flight == limiter.limit == limiter.concurrency == 2
        assert changes == []
        assert len(limiter.let_through) == pytest.approx(200, abs=2)
        assert all(not task.done() for task in tasks)

    simulated(run())


# --- per minute


def test_requests_per_minute_are_used_up_and_never_exceeded() -> None:
    """In any sixty seconds there are at most so many requests, and nearly so many when they are wanted."""

    async def run() -> None:
        limiter, changes = Watched(requests_per_minute=30), Changes()
        talk = accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(40)]
        await asyncio.sleep(1800.0)
        times = [at for _, at in limiter.let_through]
        assert all(later - one > 60 for one, later in zip(times, times[30:], strict=False))
        assert len(times) > 30 * 30 * 0.97
        assert all(not task.done() for task in tasks)

    simulated(run())


def test_waiting_for_the_minute_does_not_grow_the_window() -> None:
    """Those in the queue could not go with more places either."""

    async def run() -> None:
        limiter, changes = Limiter(start=2, requests_per_minute=1), Changes()
        talk = accept_all(limiter, changes)
        tasks = [asyncio.create_task(talk()) for _ in range(10)]
        await asyncio.sleep(1800.0)
        assert changes == []
        assert all(not task.done() for task in tasks)

    simulated(run())


def test_a_reply_that_takes_minutes_is_not_counted_twice() -> None:
    """What is reported after its minute is over changes nothing."""

    async def run() -> None:
        limiter = Watched(20, tokens_per_minute=1000, start=20)
        slow = await limiter.acquire(100)
        await asyncio.sleep(2 * MINUTE_S)
        began = now()
        await limiter.acquire(600)
        limiter.release(slow, Usage(prompt_tokens=900))
        await limiter.acquire(250)  # counts for more by now, but not for three times as much
        assert now() == began
        await limiter.acquire(100)
        assert now() > began

    simulated(run())


def test_whoever_leaves_the_head_of_the_queue_lets_the_next_go() -> None:
    """A small request behind a large one goes at once when the large one is given up."""

    async def run() -> None:
        limiter = Watched(20, tokens_per_minute=1000, start=20)
        began = now()
        await limiter.acquire(500)
        large = asyncio.create_task(limiter.acquire(900))
        small = asyncio.create_task(limiter.acquire(100))
        await settle()
        large.cancel()
        await small
        assert now() == began

    simulated(run())


def test_tokens_per_minute_are_reserved_and_corrected() -> None:
    """The estimate counts from the start; what the provider reports takes its place, and makes room or takes it."""

    async def run() -> None:
        limiter = Watched(20, tokens_per_minute=1000, start=20)
        began = now()
        first = await limiter.acquire(900)
        behind = asyncio.create_task(limiter.acquire(500))
        await settle()
        assert not behind.done()
        limiter.release(first, Usage(prompt_tokens=300, completion_tokens=100))
        assert (await behind, now()) == (behind.result(), began)
        limiter.release(behind.result(), Usage(prompt_tokens=5000))
        await limiter.acquire(1)
        assert now() == pytest.approx(began + MINUTE_S)

    simulated(run())


def test_a_request_larger_than_a_minute_allows_is_sent_alone() -> None:
    """It waits for an empty minute and does not wait for ever."""

    async def run() -> None:
        limiter = Watched(20, tokens_per_minute=1000, start=20)
        began = now()
        await limiter.acquire(1)
        await limiter.acquire(10**9)
        assert now() == pytest.approx(began + MINUTE_S)
        await limiter.acquire(1)
        assert now() == pytest.approx(began + 2 * MINUTE_S)

    simulated(run())


def test_the_estimate_learns_from_what_is_reported() -> None:
    """Longer texts count more; after some replies the estimate is near what they really used."""

    async def run() -> None:
        request = ModelRequest(model="m", messages=(Message(Role.USER, "word " * 400),), system="Be brief.")
        limiter = Limiter(tokens_per_minute=10**9)
        assert estimated_tokens(request) > 4 * estimated_tokens(REQUEST)
        for _ in range(40):
            place = await limiter.acquire(estimated_tokens(request))
            limiter.release(place, Usage(prompt_tokens=1500, completion_tokens=500))
        place = await limiter.acquire(estimated_tokens(request))
        assert place.reserved["tokens"].amount == pytest.approx(2000, rel=0.05)

    simulated(run())


# --- the queue


def test_whoever_waits_may_be_cancelled() -> None:
    """The others keep their order and miss nothing, also when the cancelled one was just granted its place."""

    async def run() -> None:
        limiter = Watched(1)
        holder = await limiter.acquire()
        first, second, third = (asyncio.create_task(limiter.acquire(number)) for number in (1, 2, 3))
        await settle()
        first.cancel()
        await settle()
        assert limiter.waiting == 2
        limiter.release(holder)  # which grants the second its place …
        second.cancel()  # … before it could take notice
        assert (await third).tokens == 3
        assert (limiter.in_flight, limiter.waiting) == (1, 0)
        fourth = asyncio.create_task(limiter.acquire(4))
        fifth = asyncio.create_task(limiter.acquire(5))
        await settle()
        fourth.cancel()
        limiter.release(third.result())  # in the moment between a cancellation and its arrival
        assert (await fifth).tokens == 5
        assert all(task.cancelled() for task in (first, second, fourth))

    simulated(run())


def test_a_conversation_that_is_told_to_stop_leaves_the_queue() -> None:
    """What its own way of waiting raises goes up, and its place goes to the next."""

    class Stop(Exception):
        pass

    async def run() -> None:
        limiter, stopping = Watched(1), asyncio.Event()

        async def until(ready: "asyncio.Future[None]") -> None:
            ready.add_done_callback(lambda _: stopping.set())
            await stopping.wait()
            if not ready.done():
                raise Stop

        holder = await limiter.acquire()
        stopped = asyncio.create_task(limiter.acquire(1, until))
        behind = asyncio.create_task(limiter.acquire(2))
        await settle()
        stopping.set()
        with pytest.raises(Stop):
            await stopped
        assert (limiter.waiting, behind.done()) == (1, False)
        limiter.release(holder)
        assert (await behind).tokens == 2
        stopping.clear()
        again = asyncio.create_task(limiter.acquire(3, until))
        await settle()
        limiter.release(behind.result())
        assert (await again).tokens == 3

    simulated(run())


def test_a_limiter_outlives_its_event_loop() -> None:
    """What one loop left waiting for a time that never came does not hold up the next."""
    limiter = Limiter(2, requests_per_minute=1)

    async def take() -> None:
        place = await limiter.acquire()
        behind = asyncio.create_task(limiter.acquire())
        await settle()
        behind.cancel()
        limiter.release(place)

    async def later() -> None:
        await asyncio.sleep(2 * MINUTE_S)
        limiter.release(await limiter.acquire())

    simulated(take())
    simulated(later())
    assert (limiter.in_flight, limiter.waiting) == (0, 0)


# --- the wrapper


class Source:
    """A provider that takes a second for its reply, or raises."""

    def __init__(self, *outcomes: Exception | Sequence[Delta]) -> None:
        self.outcomes = list(outcomes)
        self.open = 0
        self.most = 0

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0.5)
            outcome = self.outcomes.pop(0) if self.outcomes else WHOLE
            if isinstance(outcome, Exception):
                raise outcome
            for delta in outcome:
                yield delta
            await asyncio.sleep(0.5)
            yield Finish(timing=Timing(duration_ms=1000.0))
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        self.outcomes.clear()


WHOLE = (TextDelta("Hello."), UsageDelta(Usage(prompt_tokens=600, completion_tokens=150)))


async def ask(provider: Limited) -> Finish:
    found = [delta async for delta in provider.stream_response(REQUEST)]
    assert isinstance(found[-1], Finish)
    return found[-1]


def test_waiting_is_measured_apart_from_the_model() -> None:
    """`queued_ms` is the time in the queue; what the inner wrappers measured stays as it is."""

    async def run() -> None:
        source, limiter = Source(), Limiter(2)
        found = await asyncio.gather(*(ask(Limited(source, limiter)) for _ in range(6)))
        timings = [finish.timing for finish in found if finish.timing is not None]
        assert [timing.queued_ms for timing in timings] == [0.0, 0.0, 1000.0, 1000.0, 2000.0, 2000.0]
        assert {timing.duration_ms for timing in timings} == {1000.0}
        assert source.most == 2

    simulated(run())


def test_the_first_piece_already_tells_that_the_server_takes_it() -> None:
    """The window grows while the replies are still being written."""

    async def run() -> None:
        source, limiter, changes = Source(), Limiter(), Changes()
        tasks = [asyncio.create_task(ask(Limited(source, limiter, changes))) for _ in range(30)]
        await asyncio.sleep(0.6)
        assert (changes.windows, source.open) == ([4, 8], 8)
        await asyncio.gather(*tasks)
        assert limiter.in_flight == 0

    simulated(run())


def test_changes_go_to_the_conversation_whose_request_met_them() -> None:
    """A refusal is recorded where it happened and nowhere else; the error goes up as it is."""

    async def run() -> None:
        limiter, mine, theirs = Limiter(provider="openai", model="m"), Changes(), Changes()
        error = RateLimited("slow down", retry_after_s=3.0)
        refused = Limited(Source(error), limiter, mine)
        with pytest.raises(RateLimited) as caught:
            await asyncio.gather(ask(refused), ask(Limited(Source(), limiter, theirs)))
        assert caught.value is error
        (event,) = mine
        assert (event.provider, event.model, event.before, event.limit) == ("openai", "m", 4, 1)
        assert theirs == []

    simulated(run())


@pytest.mark.parametrize(
    "error", [RateLimited("429"), Overloaded("503"), RequestRejected("400"), ValueError("bug")], ids=repr
)
def test_every_way_out_frees_the_place(error: Exception) -> None:
    """An error, a reader that leaves, a cancellation: the next one is served."""

    async def run() -> None:
        source, limiter = Source(error), Limiter(1)
        provider = Limited(source, limiter)
        with pytest.raises(type(error)):
            await ask(provider)
        async with aclosing(provider.stream_response(REQUEST)) as stream:  # type: ignore[type-var]
            await anext(stream)
            assert limiter.in_flight == 1
        task = asyncio.create_task(ask(provider))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (limiter.in_flight, source.open) == (0, 0)
        await ask(provider)

    simulated(run())


def test_reported_usage_reaches_the_limit() -> None:
    """What a reply really used decides when the next one may go."""

    async def run() -> None:
        provider = Limited(Source(), Limiter(tokens_per_minute=1000))
        began = now()
        for _ in range(2):
            await ask(provider)
        assert now() - began == pytest.approx(2.0), "the first reply left room"
        await ask(provider)
        assert now() - began > MINUTE_S

    simulated(run())


def test_closing_goes_through() -> None:
    """Whoever closes the wrapper closes the provider."""
    source = Source(ValueError("never asked"))
    simulated(Limited(source, Limiter(1)).aclose())
    assert source.outcomes == []


# --- whole servers


@pytest.mark.parametrize("places", [1, 3, 8, 40])
def test_a_strict_server_is_held_just_under_its_limit(places: int) -> None:
    """Without being told, at least 85 % of what the server can do is used, at the price of few refusals."""
    luck = random.Random(places)
    served, refused, busy = 0, 0, 0

    async def run() -> None:
        nonlocal served, refused
        limiter = Limiter()

        async def talk() -> None:
            nonlocal served, refused, busy
            while True:
                place = await limiter.acquire()
                try:
                    if busy >= places:
                        raise RateLimited("slow down")
                    busy += 1
                    await asyncio.sleep(luck.uniform(0.1, 0.3))
                    limiter.accepted(place)
                    await asyncio.sleep(luck.uniform(1.0, 2.0))
                    busy -= 1
                    served += 1
                except RateLimited as error:
                    refused += 1
                    limiter.failed(place, error)
                finally:
                    limiter.release(place)

        tasks = [asyncio.create_task(talk()) for _ in range(60)]
        await asyncio.sleep(120.0)
        served = refused = 0
        await asyncio.sleep(1800.0)
        assert all(not task.done() for task in tasks)

    simulated(run())
    possible = places * 1800 / 1.7
    assert served > 0.85 * possible
    assert refused < 0.03 * served
