"""How many requests an account bears: places, requests and tokens per minute, shared by all conversations of a process.

How many requests may be under way at once is found out. The window starts small and doubles as long as the server takes
whatever it is given (slow start). After the first push-back it is cut to a part, rests, and grows by one place per
window of accepted requests. It rests again, longer every time, just below where the push-back came, so that a strict
server is asked for more than it bears only now and then. It grows only while somebody waits for a place.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress

from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.errors import Overloaded, ProviderError, ProviderTimeout, ProviderUnavailable, RateLimited
from pidgin_cli.core.events import LimitChangedEvent
from pidgin_cli.core.types import Delta, Finish, ModelRequest, Timing, Usage, UsageDelta, add_usage

from .base import Provider, Report

__all__ = ["Limited", "Limiter", "Place", "Wait"]

Wait = Callable[["asyncio.Future[None]"], Awaitable[object]]
"""Waits for a future that it does not cancel; may raise `Stop` when the conversation is told to end meanwhile."""

START = 4
MAX_CONCURRENCY = 512
CUT = 0.75
DEEP_CUT = 0.5
"""In slow start, which had come to twice what was known to be borne, and when a push-back follows another at once."""
REST_S = 2.0
PATIENCE_S = 5.0
MAX_PATIENCE_S = 120.0
MAX_PAUSE_S = 60.0
MINUTE_S = 61.0
"""A second longer, since requests do not all take the same time to arrive."""
CHARS_PER_TOKEN = 4.0


class _Taken(Struct):
    at: float
    amount: int


class _Minute:
    """What was taken in the last minute, of something that is limited per minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: deque[_Taken] = deque()
        self._sum = 0

    def earliest(self, amount: int, now: float) -> float:
        """When `amount` may be taken; for more than the limit, when nothing else was taken in the last minute."""
        while self._taken and self._taken[0].at + MINUTE_S <= now:
            self._sum -= self._taken.popleft().amount
        free = self._limit - amount - self._sum
        when = now
        for taken in self._taken:
            if free >= 0:
                break
            free += taken.amount
            when = taken.at + MINUTE_S
        return when

    def take(self, amount: int, now: float) -> "_Taken":
        taken = _Taken(now, amount)
        self._taken.append(taken)
        self._sum += taken.amount
        return taken

    def correct(self, taken: "_Taken", amount: int, now: float) -> None:
        if taken.at + MINUTE_S > now:
            self._sum += amount - taken.amount
            taken.amount = amount


class Place:
    """One request's place under a limit, or its place in the queue."""

    __slots__ = ("accepted", "granted", "number", "ready", "released", "reserved", "tokens")

    def __init__(self, tokens: int, ready: "asyncio.Future[None]") -> None:
        self.tokens = tokens
        """Estimated."""
        self.ready = ready
        self.number = 0
        """Counts the requests let through."""
        self.reserved: _Taken | None = None
        self.granted = self.accepted = self.released = False


class Limiter:
    """The limit of one provider account and model. Its window moves within 1 and `max_concurrency`.

    Requests are let through in the order in which they came. Times are those of the running event loop.
    """

    def __init__(
        self,
        concurrency: int | None = None,
        *,
        provider: str = "",
        model: str = "",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        start: int = START,
        max_concurrency: int = MAX_CONCURRENCY,
    ) -> None:
        """
        Args:
            concurrency: at most so many at once, whatever the server bears.
            provider, model: for the record.
            requests_per_minute, tokens_per_minute: as the account is known to allow; None: not known.
            start: the first window.
        """
        self.concurrency = concurrency
        self.provider = provider
        self.model = model
        self.max_concurrency = max_concurrency if concurrency is None else min(concurrency, max_concurrency)
        self.limit = min(start, self.max_concurrency)
        """The window: how many requests may be under way now."""
        self.in_flight = 0
        self._requests = None if requests_per_minute is None else _Minute(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else _Minute(tokens_per_minute)
        self._tokens_per_estimate = 1.0
        self._waiting: deque[Place] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._let_through = 0
        self._holding = 0
        """Requests under way that the server has begun to answer."""
        self._since_change = 0
        """Requests accepted since the window last changed; in slow start also those accepted then and under way."""
        self._slow_start = True
        self._last_cut = 0
        """Requests let through when the window was last cut."""
        self._cut_at = -math.inf
        self._wall: int | None = None
        """How many were under way when the server last pushed back."""
        self._patience_s = PATIENCE_S
        self._no_growth_before = 0.0
        self._no_probe_before = 0.0
        self._paused_until = 0.0
        self._cuts_at_one = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    async def acquire(self, tokens: int = 0, wait: Wait | None = None) -> Place:
        """Wait for a place. It must be given to `release` in the end.

        Whoever waits may be cancelled at any time, or leave through an exception of `wait`: the place in the queue, or
        the place that was granted in the same moment, goes to the next.
        """
        place = Place(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._admit()
        if not place.granted:
            try:
                await (place.ready if wait is None else wait(place.ready))
            except BaseException:
                if place.granted:
                    self.release(place)
                else:
                    with suppress(ValueError):  # `_admit` was quicker
                        self._waiting.remove(place)
                    self._admit()
                raise
        return place

    def estimate(self, request: ModelRequest) -> int:
        """Tokens that the request will count for, as far as that can be told before; 0 where nobody counts."""
        if self._tokens is None:
            return 0
        chars = len(request.system or "") + sum(len(message.content) for message in request.messages)
        return math.ceil((1 + chars / CHARS_PER_TOKEN) * self._tokens_per_estimate)

    def accepted(self, place: Place, report: Report | None = None) -> None:
        """The server has begun to answer. Only the first call counts."""
        if place.accepted or place.released:
            return
        place.accepted = True
        self._holding += 1
        if place.number > self._last_cut:
            self._cuts_at_one = 0
            self._since_change += 1
            if self._since_change >= self.limit:
                self._grow(report)

    def failed(self, place: Place, error: ProviderError, report: Report | None = None) -> None:
        """The request has failed. A rate limit cuts the window, once per burst; trouble of the server stops growth."""
        now = _now()
        if not isinstance(error, (RateLimited, Overloaded, ProviderTimeout, ProviderUnavailable)):
            return
        if error.retry_after_s is not None and isinstance(error, (RateLimited, Overloaded)):
            self._paused_until = max(self._paused_until, now + error.retry_after_s)
        if not isinstance(error, RateLimited):
            self._no_growth_before = max(self._no_growth_before, now + REST_S)
        elif place.number > self._last_cut:
            self._cut(now, report, pause=error.retry_after_s is None)

    def release(self, place: Place, usage: Usage | None = None) -> None:
        """Give the place to the next. Only the first call counts."""
        if place.released:
            return
        place.released = True
        self.in_flight -= 1
        self._holding -= place.accepted
        if place.reserved is not None and usage is not None and usage.prompt_tokens is not None:
            self._count(place, usage.prompt_tokens + (usage.completion_tokens or 0))
        self._admit()

    def _count(self, place: Place, tokens: int) -> None:
        assert self._tokens is not None
        assert place.reserved is not None
        self._tokens.correct(place.reserved, tokens, _now())
        # Replies and other alphabets make the estimate too small; the next ones learn from it.
        self._tokens_per_estimate *= (tokens / place.tokens) ** 0.2 if tokens and place.tokens else 1.0

    def _admit(self) -> None:
        """Let through whoever may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        while self._waiting and self.in_flight < self.limit:
            place = self._waiting[0]
            when = self._earliest(place, now)
            if when > now:
                self._timer = asyncio.get_running_loop().call_at(when, self._admit)
                return
            self._waiting.popleft()
            if place.ready.cancelled():  # its owner is about to leave, too late to be in the queue
                continue
            self._grant(place, now)

    def _earliest(self, place: Place, now: float) -> float:
        when = max(now, self._paused_until)
        if self._requests is not None:
            when = max(when, self._requests.earliest(1, now))
        if self._tokens is not None:
            when = max(when, self._tokens.earliest(place.tokens, now))
        return when

    def _grant(self, place: Place, now: float) -> None:
        self.in_flight += 1
        self._let_through += 1
        place.number = self._let_through
        place.granted = True
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            place.reserved = self._tokens.take(place.tokens, now)
        place.ready.set_result(None)

    def _grow(self, report: Report | None) -> None:
        now = _now()
        saturated = self._waiting and self.in_flight >= self.limit
        if not saturated or now < self._no_growth_before or self.limit >= self.max_concurrency:
            return
        if self._wall is not None and self.limit + 1 >= self._wall:
            if now < self._no_probe_before:
                return
            if self.limit >= self._wall:  # and was filled: there is more room than there was
                self._patience_s = PATIENCE_S
        if self._slow_start:
            self._change(min(2 * self.limit, self.max_concurrency), "slow start", report)
        else:
            self._change(self.limit + 1, "growth", report)

    def _cut(self, now: float, report: Report | None, *, pause: bool) -> None:
        level = min(self.in_flight, self.limit)
        deep = self._slow_start or now < self._cut_at + REST_S
        if self._wall is not None and level >= 0.9 * self._wall:
            self._patience_s = min(2 * self._patience_s, MAX_PATIENCE_S)
        else:
            self._patience_s = PATIENCE_S
        self._slow_start = False
        self._wall = level
        self._no_growth_before = now + REST_S
        self._no_probe_before = now + self._patience_s
        self._last_cut = self._let_through
        self._cut_at = now
        if level == 1 and pause:  # no window is small enough, so time has to pass between requests
            self._cuts_at_one += 1
            self._paused_until = max(self._paused_until, now + min(2.0 ** (self._cuts_at_one - 1), MAX_PAUSE_S))
        self._change(max(1, int(level * (DEEP_CUT if deep else CUT))), "rate limit", report)

    def _change(self, limit: int, why: str, report: Report | None) -> None:
        before, self.limit = self.limit, limit
        self._since_change = self._holding if self._slow_start else 0
        self._admit()
        if limit != before and report is not None:
            event = LimitChangedEvent(provider=self.provider, model=self.model, limit=limit, before=before, why=why)
            report(event)


def _now() -> float:
    return asyncio.get_running_loop().time()


class Limited:
    """Waits for a place under a limit, says how long it waited, and tells the limit how the server took it."""

    def __init__(
        self, inner: Provider, limiter: Limiter, report: Report | None = None, wait: Wait | None = None
    ) -> None:
        """
        Args:
            report: takes changes of the limit that come from requests made here.
            wait: how this conversation waits for its place; None: until it is granted or the task is cancelled.
        """
        self._inner = inner
        self._limiter = limiter
        self._report = report
        self._wait = wait

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        limiter = self._limiter
        asked = _now()
        place = await limiter.acquire(limiter.estimate(request), self._wait)
        queued = round((_now() - asked) * 1000, 3)
        usage = Usage()
        try:
            async with aclosing(self._inner.stream_response(request)) as stream:  # type: ignore[type-var]
                async for delta in stream:
                    limiter.accepted(place, self._report)
                    if isinstance(delta, UsageDelta):
                        usage = add_usage(usage, delta.usage)
                    elif isinstance(delta, Finish):
                        timing = delta.timing or Timing()
                        # What is inside may have waited as well, for a model to be loaded.
                        delta = replace(delta, timing=replace(timing, queued_ms=queued + (timing.queued_ms or 0)))
                    yield delta
        except ProviderError as error:
            limiter.failed(place, error, self._report)
            raise
        finally:
            limiter.release(place, usage)

    async def aclose(self) -> None:
        await self._inner.aclose()
