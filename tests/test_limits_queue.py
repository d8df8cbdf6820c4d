"""Whose turn it is in the queue of a limit, and what is told while somebody waits. In simulated time."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_limits import now, settle, simulated

from pidgin_cli.core.events import Event, RateLimitEvent
from pidgin_cli.core.types import Delta, Finish, Message, ModelRequest, Role, TextDelta
from pidgin_cli.providers.limits import PASSED_OVER, TELL_AFTER_S, Limited, Limiter, Place
from pidgin_cli.providers.registry import PROVIDERS

CACHE_S = 300.0


async def served_in_order(limiter: Limiter, waiting: list[tuple[str, asyncio.Task[Place]]]) -> list[str]:
    """Let those who wait go one by one, and say in which order they went."""
    order: list[str] = []
    while waiting:
        (done,) = [entry for entry in waiting if entry[1].done()]
        waiting.remove(done)
        order.append(done[0])
        limiter.release(done[1].result())
        await settle()
    return order


async def queue(limiter: Limiter, *names: str) -> list[tuple[str, asyncio.Task[Place]]]:
    """Each asks for a place, in this order; "-" belongs to no conversation."""
    waiting = []
    for name in names:
        conversation = None if name == "-" else name
        waiting.append((name, asyncio.create_task(limiter.acquire(conversation=conversation))))
        await settle()
    return waiting


def test_conversations_that_the_cache_knows_go_first() -> None:
    """First the one that would be forgotten soonest, then those that never asked, in the order in which they came."""

    async def run() -> list[str]:
        limiter = Limiter(1, prompt_cache_s=CACHE_S)
        for name in ("forgotten", "long ago", "lately"):
            limiter.release(await limiter.acquire(conversation=name))
            await asyncio.sleep(140.0)
        holder = await limiter.acquire()
        waiting = await queue(limiter, "new", "-", "forgotten", "lately", "long ago", "new too")
        limiter.release(holder)
        await settle()
        return await served_in_order(limiter, waiting)

    assert simulated(run()) == ["long ago", "lately", "new", "-", "forgotten", "new too"]


def test_without_a_cache_they_go_in_the_order_in_which_they_came() -> None:
    """A provider that remembers no prompts has no favourites."""

    async def run() -> list[str]:
        limiter = Limiter(1)
        limiter.release(await limiter.acquire(conversation="running"))
        holder = await limiter.acquire()
        waiting = await queue(limiter, "new", "running")
        limiter.release(holder)
        await settle()
        return await served_in_order(limiter, waiting)

    assert simulated(run()) == ["new", "running"]


def test_the_gap_between_turns_stays_within_the_life_of_the_cache() -> None:
    """Sixty conversations where ten can be kept warm: those that run hardly ever find their prompt forgotten."""

    async def run(cache_s: float | None) -> tuple[int, int, int]:
        limiter = Limiter(1, prompt_cache_s=cache_s)
        last: dict[int, float] = {}
        warm = cold = 0

        async def talk(number: int) -> None:
            nonlocal warm, cold
            for _ in range(20):
                place = await limiter.acquire(conversation=number)
                if number in last:
                    known = now() - last[number] < CACHE_S
                    warm, cold = warm + known, cold + (not known)
                last[number] = now()
                await asyncio.sleep(30.0)
                limiter.release(place)

        await asyncio.gather(*(talk(number) for number in range(60)))
        return warm, cold, len(last)

    warm, cold, talked = simulated(run(CACHE_S))
    assert (warm + cold, talked) == (60 * 19, 60)
    assert warm > 0.75 * (warm + cold)
    assert simulated(run(None))[0] == 0, "taking turns, every one of them would be forgotten each time"


class Asking(NamedTuple):
    """One who asks, at a time, for a conversation."""

    after_s: float
    conversation: int
    takes_s: float


ASKING = st.lists(
    st.builds(
        Asking,
        st.sampled_from([0.0, 0.0, 0.0, 1.0, 20.0, 400.0]),
        st.integers(0, 6),
        st.sampled_from([0.0, 1.0, 10.0]),
    ),
    max_size=120,
)


@settings(max_examples=100, deadline=None)
@given(asking=ASKING, places=st.integers(1, 3))
def test_nobody_is_passed_over_for_ever(asking: list[Asking], places: int) -> None:
    """Whoever has n before it is let through after at most (n + 1) · (PASSED_OVER + 1) requests, and all are."""
    grants = 0
    ahead: list[tuple[int, int]] = []

    async def run() -> None:
        limiter = Limiter(places, prompt_cache_s=CACHE_S, start=places)

        async def one(ask: Asking) -> None:
            nonlocal grants
            before, asked = limiter.waiting, grants
            place = await limiter.acquire(conversation=ask.conversation)
            ahead.append((before, place.number - 1 - asked))
            grants = max(grants, place.number)
            await asyncio.sleep(ask.takes_s)
            limiter.release(place)

        async with asyncio.TaskGroup() as tasks:
            for ask in asking:
                await asyncio.sleep(ask.after_s)
                tasks.create_task(one(ask))
        assert (limiter.waiting, limiter.in_flight) == (0, 0)

    simulated(run())
    assert len(ahead) == len(asking)
    assert all(waited <= (before + 1) * (PASSED_OVER + 1) for before, waited in ahead)


def test_a_conversation_that_never_asked_comes_in_time() -> None:
    """However many run already, one that is new is let through after `PASSED_OVER` of them."""

    async def run() -> int:
        limiter = Limiter(1, prompt_cache_s=CACHE_S)

        async def talk(name: int) -> None:
            while True:
                place = await limiter.acquire(conversation=name)
                await asyncio.sleep(1.0)
                limiter.release(place)

        tasks = [asyncio.create_task(talk(name)) for name in range(5)]
        await asyncio.sleep(100.5)  # until all of them run
        before = limiter._let_through
        new = await limiter.acquire(conversation="new")
        assert not any(task.done() for task in tasks)
        return new.number - 1 - before

    assert PASSED_OVER <= simulated(run()) <= PASSED_OVER + 4, "and those that came before it"


def test_what_the_cache_has_forgotten_takes_no_room() -> None:
    """The list of conversations holds no more than the cache may know."""

    async def run() -> int:
        limiter = Limiter(prompt_cache_s=CACHE_S)
        for number in range(1000):
            limiter.release(await limiter.acquire(conversation=number))
            await asyncio.sleep(10.0)
        return len(limiter._asked)

    assert simulated(run()) <= 31


def test_which_providers_remember_prompts() -> None:
    """Those that say for how long: the others have no favourites."""
    known = {name: info.prompt_cache_s for name, info in PROVIDERS.items() if info.prompt_cache_s is not None}
    assert known == {"anthropic": 300.0, "openai": 300.0}


# --- what is told


class Slow:
    """Answers after so many seconds."""

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        await asyncio.sleep(self._takes_s)
        yield TextDelta("Well.")
        yield Finish()

    async def aclose(self) -> None:
        pass


def request(number: int, **fields: object) -> ModelRequest:
    known = {"conversation_id": f"c-{number}", "agent_id": "a", "turn_number": 2, "message_index": number}
    return ModelRequest(model="m", messages=(Message(Role.USER, "Hello."),), **(known | fields))  # type: ignore[arg-type]


class Told(list[tuple[float, RateLimitEvent]]):
    """Keeps what is reported, and when."""

    def __call__(self, event: Event) -> None:
        assert isinstance(event, RateLimitEvent)
        self.append((now(), event))


async def ask(limiter: Limiter, told: Told, number: int, takes_s: float, **fields: object) -> float:
    """When the reply was whole."""
    async for _ in Limited(Slow(takes_s), limiter, told).stream_response(request(number, **fields)):
        pass
    return now()


def test_a_wait_of_known_length_is_told_before_it_begins() -> None:
    """What it waits for and how long at least; once, though it may wait for several things."""

    async def run() -> None:
        limiter, told = Limiter(provider="openai", requests_per_minute=2), Told()
        began = now()
        for number in range(2):
            await ask(limiter, told, number, 1.0)
        ended = await ask(limiter, told, 2, 1.0, attempt=3)
        assert ended > began + 60
        ((at, event),) = told
        assert at == began + 2.0
        assert event == RateLimitEvent(
            agent_id="a",
            turn_number=2,
            message_index=2,
            provider="openai",
            attempt=3,
            reason="limit",
            wait_s=59.0,
            message="no more than 2 requests per minute",
        )

    simulated(run())


def test_a_wait_for_a_place_is_told_after_a_second() -> None:
    """Nobody knows how long others take, so that it says who they are and nothing of the time."""

    async def run() -> None:
        limiter, told = Limiter(2, provider="openai"), Told()
        began = now()
        await asyncio.gather(*(ask(limiter, told, number, 3.0) for number in range(3)))
        ((at, event),) = told
        assert at == began + TELL_AFTER_S
        assert (event.message_index, event.reason, event.wait_s) == (2, "limit", None)
        assert event.message == "2 requests are under way and no more are let through at once"

    simulated(run())


@pytest.mark.parametrize("takes_s", [0.2, 0.99])
def test_a_short_wait_stays_out_of_the_record(takes_s: float) -> None:
    """Nothing is told of what nobody feels."""

    async def run() -> None:
        limiter, told = Limiter(1), Told()
        await asyncio.gather(*(ask(limiter, told, number, takes_s) for number in range(2)))
        assert told == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulated(run())


def test_whoever_leaves_while_it_waits_is_not_told_of() -> None:
    """A cancellation within the first second leaves the queue as it was, and no event behind."""

    async def run() -> None:
        limiter, told = Limiter(1), Told()
        holder = await limiter.acquire()
        task = asyncio.create_task(ask(limiter, told, 0, 1.0))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(5.0)
        assert (told, limiter.waiting) == ([], 0)
        limiter.release(holder)
        await ask(limiter, told, 1, 1.0)
        assert told == []

    simulated(run())


def test_a_record_that_cannot_be_written_frees_the_queue() -> None:
    """When the report fails, the request leaves the queue and the error goes up."""

    async def run() -> None:
        limiter = Limiter(1)
        holder = await limiter.acquire()

        def full(_: Event) -> None:
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            await anext(Limited(Slow(1.0), limiter, full).stream_response(request(0)))
        assert limiter.waiting == 0
        limiter.release(holder)
        assert limiter.in_flight == 0

    simulated(run())
