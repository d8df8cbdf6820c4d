"""Adaptive limits against simulated servers, in simulated time: share of the possible rate, and number of 429s.

The wrappers are the real ones (`Retrying` around `Limited`); only the server and the clock are made up, so that an hour
takes seconds and every run gives the same figures.
"""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from pidgin_cli.core.errors import ProviderError, RateLimited
from pidgin_cli.core.events import Event, LimitChangedEvent
from pidgin_cli.core.types import Delta, Finish, Message, ModelRequest, Retries, Role, TextDelta, Usage, UsageDelta
from pidgin_cli.providers.limits import Limited, Limiter
from pidgin_cli.providers.wrappers import Retrying, RetryPolicy

__all__ = ["main"]

CONVERSATIONS = 200
ROUND_TRIP_S = 0.05
FIRST_TOKEN_S = 0.4
REPLY_S = 2.0
REQUEST = ModelRequest(model="simulated", messages=(Message(Role.USER, "Go on."),))


class Row(NamedTuple):
    """One line of the table, as in `benchmarks.__main__`."""

    what: str
    measured: str
    budget: str = ""
    ok: bool | None = None


class _Selector(selectors.SelectSelector):
    """Never waits: time jumps to what comes next."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


def simulated_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose clock moves only when there is nothing to do."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    return loop


class Server:
    """Answers after a while what it admits; everything else is a 429 after one round trip."""

    def __init__(self, admits: Callable[["Server", float], float | None]) -> None:
        """`admits` returns None, or the seconds that go into Retry-After (negative: none is sent)."""
        self._admits = admits
        self._luck = random.Random(1)
        self.under_way = 0
        self.served: list[float] = []
        self.refused: list[float] = []

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(ROUND_TRIP_S * self._luck.uniform(0.5, 1.5))
        wait_s = self._admits(self, loop.time())
        if wait_s is not None:
            self.refused.append(loop.time())
            raise RateLimited("429", status=429, retry_after_s=wait_s if wait_s >= 0 else None)
        self.under_way += 1
        try:
            pace = self._luck.uniform(0.7, 1.3)
            await asyncio.sleep(FIRST_TOKEN_S * pace)
            yield TextDelta("Well,")
            await asyncio.sleep((REPLY_S - FIRST_TOKEN_S) * pace)
            yield UsageDelta(Usage(prompt_tokens=10, completion_tokens=10))
            self.served.append(loop.time())
            yield Finish()
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        pass


def at_once(places: int) -> Callable[[Server, float], float | None]:
    """So many at a time, without a hint when to come back."""
    return lambda server, now: -1.0 if server.under_way >= places else None


def per_minute(requests: int) -> Callable[[Server, float], float | None]:
    """So many in any 60 seconds; says when the next one fits."""
    taken: deque[float] = deque()

    def admits(server: Server, now: float) -> float | None:
        while taken and taken[0] <= now - 60:
            taken.popleft()
        if len(taken) >= requests:
            return taken[0] + 60 - now
        taken.append(now)
        return None

    return admits


def bucket(requests: int, capacity: int) -> Callable[[Server, float], float | None]:
    """A bucket of `capacity` that is filled with so many a minute; says when there is one again."""
    level, seen = float(capacity), 0.0

    def admits(server: Server, now: float) -> float | None:
        nonlocal level, seen
        level, seen = min(capacity, level + (now - seen) * requests / 60), now
        if level < 1:
            return (1 - level) * 60 / requests
        level -= 1
        return None

    return admits


class Result(NamedTuple):
    """What a run came to, the time in which the limit was found left out."""

    per_s: float
    refused: int
    refused_at_first: int
    given_up: int
    served: int
    changes: list[LimitChangedEvent]


async def _run(server: Server, limiter: Limiter, seconds: float, warm_up_s: float) -> Result:
    events: list[Event] = []
    given_up = 0

    async def converse() -> None:
        nonlocal given_up
        policy = RetryPolicy(Retries(), "simulated", events.append, asyncio.sleep)
        provider = Retrying(Limited(server, limiter, events.append), policy)
        while True:
            try:
                async with aclosing(provider.stream_response(REQUEST)) as stream:  # type: ignore[type-var]
                    async for _ in stream:
                        pass
            except ProviderError:
                given_up += 1

    tasks = [asyncio.create_task(converse()) for _ in range(CONVERSATIONS)]
    await asyncio.sleep(warm_up_s + seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Result(
        per_s=sum(at >= warm_up_s for at in server.served) / seconds,
        refused=sum(at >= warm_up_s for at in server.refused),
        refused_at_first=sum(at < warm_up_s for at in server.refused),
        given_up=given_up,
        served=len(server.served),
        changes=[event for event in events if isinstance(event, LimitChangedEvent)],
    )


def measure(server: Server, limiter: Limiter, seconds: float, warm_up_s: float = 60.0) -> Result:
    """Keep `CONVERSATIONS` asking for so many simulated seconds."""
    random.seed(1)  # back-off draws from it
    with asyncio.Runner(loop_factory=simulated_loop) as runner:
        return runner.run(_run(server, limiter, seconds, warm_up_s))


def main(quick: bool = False) -> list[Row]:
    """The rows for `make bench`."""
    seconds = 600.0 if quick else 3600.0
    reply_s = ROUND_TRIP_S + REPLY_S
    rows = []
    for places in (8, 40):
        found = measure(Server(at_once(places)), Limiter(), seconds)
        rows += _rows(f"a server with {places} places, limit unknown", found, found.per_s * REPLY_S / places, 0.9, 0.02)
    found = measure(Server(bucket(600, 600)), Limiter(), seconds, 180.0)
    rows += _rows("a bucket of 600 requests a minute, limit unknown", found, found.per_s / 10, 0.9, 0.05)
    found = measure(Server(per_minute(600)), Limiter(), seconds, 180.0)
    rows += _rows("600 requests in any minute, limit unknown", found, found.per_s / 10, 0.9, 0.05)
    found = measure(Server(per_minute(600)), Limiter(requests_per_minute=600), seconds)
    rows += _rows("600 requests in any minute, limit known", found, found.per_s / 10, 0.95, 0.0)
    found = measure(Server(at_once(CONVERSATIONS)), Limiter(), 60.0, 5.0)
    rows += _rows(
        f"a local server that batches {CONVERSATIONS}", found, found.per_s * reply_s / CONVERSATIONS, 0.97, 0.0
    )
    return rows


def _rows(what: str, found: Result, share: float, least: float, most: float) -> list[Row]:
    refused = found.refused / max(found.served, 1)
    first = f", {found.refused_at_first} until it was found" if found.refused_at_first else ""
    gave_up = f", {found.given_up} given up" if found.given_up else ""
    return [
        Row(f"{what}: share of the possible rate", f"{share:.1%}", f"at least {least:.0%}", share >= least),
        Row(
            "… 429s per reply",
            f"{refused:.2%} ({found.refused}{first}{gave_up})",
            f"at most {most:.0%}",
            refused <= most,
        ),
    ]


if __name__ == "__main__":
    for row in main():
        print(row.what.ljust(80), row.measured.ljust(45), row.budget, {True: "ok", False: "MISSED", None: ""}[row.ok])
