"""Adaptive limits against servers with hard limits: share of the possible rate, and number of 429s.

The wrappers are the real ones (`Retrying` around `Limited`). Most servers and their clock are simulated, so that an
hour takes seconds and every run gives the same figures. Two are real: HTTP on loopback, asked through the OpenAI SDK.
"""

import asyncio
import json
import random
import selectors
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from pidgin_cli.core.errors import ProviderError, RateLimited
from pidgin_cli.core.events import Event, LimitChangedEvent
from pidgin_cli.core.types import (
    Delta,
    Finish,
    Message,
    ModelRequest,
    Retries,
    Role,
    TextDelta,
    Timeouts,
    Usage,
    UsageDelta,
)
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.limits import Limited, Limiter
from pidgin_cli.providers.registry import endpoint
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


class HttpServer:
    """Chat completions over real HTTP, at most `places` at once and `per_minute` a minute; more is a 429.

    Its first minute ends after `first_s`, and others used all but `left` of it; the headers of each answer tell.
    """

    def __init__(self, places: int, reply_s: float, per_minute: int | None = None, left: int = 0, first_s: float = 0.0):
        self._places = places
        self._reply_s = reply_s
        self._per_minute = per_minute
        self._left = left
        self._ends = time.monotonic() + first_s
        self._under_way = 0
        self.connections = 0
        self.idle = asyncio.Event()
        self.served: list[float] = []
        self.refused: list[float] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other."""
        self.connections += 1
        self.idle.clear()
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            if not self.connections:
                self.idle.set()
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        now = time.monotonic()
        told = ""
        over = self._under_way >= self._places
        if self._per_minute is not None:
            while now >= self._ends:
                self._ends, self._left = self._ends + 60, self._per_minute
            over = over or self._left <= 0
            self._left -= not over
            told = (
                f"x-ratelimit-limit-requests: {self._per_minute}\r\nx-ratelimit-remaining-requests: {self._left}\r\n"
                f"x-ratelimit-reset-requests: {self._ends - now:.3f}s\r\n"
            )
        if over:
            self.refused.append(now)
            writer.write(f"HTTP/1.1 429 Slow down\r\n{told}content-length: 0\r\n\r\n".encode())
            return
        self._under_way += 1
        try:
            writer.write(f"HTTP/1.1 200 OK\r\n{told}content-type: text/event-stream\r\n".encode())
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            writer.write(_piece({"role": "assistant", "content": "Well,"}))
            await asyncio.sleep(self._reply_s)
            end = b"data: [DONE]\n\n"
            writer.write(_piece({}, "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))
            self.served.append(time.monotonic())
        finally:
            self._under_way -= 1


def _piece(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    data = f"data: {json.dumps(chunk)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _over_http(server: HttpServer, conversations: int, seconds: float) -> float:
    """Keep so many conversations asking through the OpenAI SDK; gives when that began."""
    from pidgin_cli.providers.openai import OpenAIProvider

    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    adapter = OpenAIProvider(Timeouts(), endpoint("bench", url))
    limiter = Limiter()

    async def converse() -> None:
        def unheard(_: Event) -> None:
            """Only the server counts here."""

        policy = RetryPolicy(Retries(attempts=1000, base_s=0.2), "bench", unheard, asyncio.sleep)
        provider: Provider = Retrying(Limited(adapter, limiter, unheard), policy)
        while True:
            async with aclosing(provider.stream_response(REQUEST)) as stream:  # type: ignore[type-var]
                async for _ in stream:
                    pass

    began = time.monotonic()
    tasks = [asyncio.create_task(converse()) for _ in range(conversations)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await adapter.aclose()
    listening.close()
    await server.idle.wait()
    return began


def over_http(quick: bool) -> list[Row]:
    """The real servers; no budgets, since a busy machine decides as well."""
    places, reply_s, seconds = 8, 0.1, 2.5 if quick else 20.0
    server = HttpServer(places, reply_s)
    began = asyncio.run(_over_http(server, 40, seconds))
    half = began + seconds / 2
    served = sum(half <= at < began + seconds for at in server.served)
    share = served / (places * (seconds / 2) / reply_s)
    refused = sum(at >= half for at in server.refused)
    what = f"loopback HTTP, {places} places, limit unknown"
    rows = [
        Row(f"{what}: share of the possible rate", f"{share:.1%}"),
        Row("… 429s per reply", f"{refused / max(1, served):.2%} ({refused}, {len(server.refused) - refused} before)"),
    ]
    limit, left, first_s = 300, 20, 1.0
    server = HttpServer(64, 0.02, limit, left, first_s)
    asyncio.run(_over_http(server, 40, first_s + 1.5))
    share = len(server.served) / (left + limit)
    what = f"loopback HTTP, {limit} requests a minute, told by headers, {left} left of the first"
    rows.append(Row(f"{what}: share of the possible", f"{share:.1%}"))
    rows.append(Row("… 429s", f"{len(server.refused)}"))
    return rows


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
    return rows + over_http(quick)


def _rows(what: str, found: Result, share: float, least: float, most: float) -> list[Row]:
    refused = found.refused / max(found.served, 1)
    first = f", {found.refused_at_first} until it was found" if found.refused_at_first else ""
    gave_up = f", {found.given_up} given up" if found.given_up else ""
    return [
        Row(f"simulated: {what}: share of the possible rate", f"{share:.1%}", f"at least {least:.0%}", share >= least),
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
