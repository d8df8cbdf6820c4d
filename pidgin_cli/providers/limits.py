"""How many requests an account bears: places, requests and tokens per minute, shared by all conversations of a process.

How many requests may be under way at once is found out. The window starts small and doubles as long as the server takes
whatever it is given (slow start). After the first push-back it is cut to a part, rests, and grows by one place per
window of accepted requests. It rests again, longer every time, just below where the push-back came, so that a strict
server is asked for more than it bears only now and then. It grows only while somebody waits for a place.

What an account may use per minute is set by the person, or learned from the headers of replies. Others may use the same
account, so that what the headers say to remain counts for more than what was counted here.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, suppress

from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.errors import Overloaded, ProviderError, ProviderTimeout, ProviderUnavailable, RateLimited
from pidgin_cli.core.events import LimitChangedEvent, RateLimitEvent
from pidgin_cli.core.types import (
    Delta,
    Finish,
    LimitsDelta,
    ModelRequest,
    RateLimit,
    Timing,
    Usage,
    UsageDelta,
    add_usage,
)

from .base import Provider, Report

__all__ = ["Limited", "Limiter", "Place", "Tell", "Wait", "estimated_tokens"]

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
TELL_AFTER_S = 1.0
"""A wait for a place that is shorter stays out of the record."""
PASSED_OVER = 16
"""So many requests in a row may go before the one that came first."""

Tell = Callable[[str, float | None], None]
"""Takes why a request has to wait, and for at least how many seconds, where that is known."""


class _Taken(Struct):
    at: float
    amount: int
    counted: bool = False
    """The server's answer has come, so that what it says of its own count holds this."""


class _Minute:
    """What was taken in the last minute, of something that is limited per minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: deque[_Taken] = deque()
        self._sum = 0
        self._counted = 0
        """What the server is known to have counted, of all that."""
        self._others = 0
        """Taken by others who use the same account, as it seems, and here, as far as it is not answered."""
        self._others_until = -math.inf
        self._used = 0
        """By the server's last count."""
        self._heard_at = 0
        """Requests let through when that was heard."""

    def earliest(self, amount: int, now: float) -> float:
        """When `amount` may be taken; for more than the limit, when nothing else was taken in the last minute."""
        while self._taken and self._taken[0].at + MINUTE_S <= now:
            gone = self._taken.popleft()
            self._sum -= gone.amount
            self._counted -= gone.amount * gone.counted
        others = [(self._others_until, self._others)] if self._others_until > now else []
        free = self.limit - amount - self._sum - sum(count for _, count in others)
        if free >= 0:
            return now
        when = now
        for end, freed in heapq.merge(((taken.at + MINUTE_S, taken.amount) for taken in self._taken), others):
            free += freed
            when = end
            if free >= 0:
                break
        return when

    def take(self, amount: int, now: float) -> "_Taken":
        taken = _Taken(now, amount)
        self._taken.append(taken)
        self._sum += taken.amount
        return taken

    def compare(self, taken: "_Taken", used: int, now: float, reset_s: float, number: int, let_through: int) -> None:
        """Take into account that `used` was taken, by the server's count, when it counted `taken`.

        Args:
            reset_s: until all of it will be there again.
            number: of the request.
            let_through: requests let through by now.
        """
        if not taken.counted and taken.at + MINUTE_S > now:
            taken.counted = True
            self._counted += taken.amount
        if used < self._used and number <= self._heard_at:
            return  # answers overtake each other, and this one is older
        self._used, self._heard_at = used, let_through
        self._others, self._others_until = max(0, used - self._counted), now + reset_s

    def correct(self, taken: "_Taken", amount: int, now: float) -> None:
        if taken.at + MINUTE_S > now:
            self._sum += amount - taken.amount
            self._counted += (amount - taken.amount) * taken.counted
            taken.amount = amount


class Place:
    """One request's place under a limit, or its place in the queue."""

    __slots__ = ("accepted", "asked_at", "conversation", "granted", "number", "ready", "released", "reserved", "tokens")

    def __init__(
        self, tokens: int, ready: "asyncio.Future[None]", conversation: Hashable = None, asked_at: float | None = None
    ) -> None:
        self.tokens = tokens
        """Of the prompt, estimated."""
        self.ready = ready
        self.conversation = conversation
        self.asked_at = asked_at
        """When the same conversation was let through before, if it was."""
        self.number = 0
        """Counts the requests let through."""
        self.reserved: dict[str, _Taken] = {}
        """By what it is taken of."""
        self.granted = self.accepted = self.released = False


class Limiter:
    """The limit of one provider account and model. Its window moves within 1 and `max_concurrency`.

    Requests are let through in the order in which they came. Where the provider keeps a cache of prompts, conversations
    that it still knows go first, those that it would forget soonest before the others; but no more than `PASSED_OVER`
    requests in a row go before the one that came first, so that everybody's turn comes. Times are those of the running
    event loop.
    """

    def __init__(
        self,
        concurrency: int | None = None,
        *,
        provider: str = "",
        model: str = "",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        prompt_cache_s: float | None = None,
        start: int = START,
        max_concurrency: int = MAX_CONCURRENCY,
    ) -> None:
        """
        Args:
            concurrency: at most so many at once, whatever the server bears.
            provider, model: for the record.
            requests_per_minute, tokens_per_minute: instead of what the provider says; None: learned from replies.
            prompt_cache_s: so long the provider remembers a prompt that nobody asks for; None: it has no such cache.
            start: the first window.
        """
        self.concurrency = concurrency
        self.provider = provider
        self.model = model
        self.max_concurrency = max_concurrency if concurrency is None else min(concurrency, max_concurrency)
        self.limit = min(start, self.max_concurrency)
        """The window: how many requests may be under way now."""
        self.in_flight = 0
        self._minutes: dict[str, _Minute] = {}
        self._given: set[str] = set()
        """What the person's own limits are about."""
        if requests_per_minute is not None:
            self._minutes["requests"] = _Minute(requests_per_minute)
            self._given.add("requests")
        if tokens_per_minute is not None:
            self._minutes["tokens"] = _Minute(tokens_per_minute)
            self._given |= {"tokens", "input tokens", "output tokens"}
        self._spent: dict[str, float] = {}
        """Of what nothing remains, and until when."""
        self._per_estimate = {"tokens": 1.0, "input tokens": 1.0}
        self._typical_output = 0.0
        self._prompt_cache_s = prompt_cache_s
        self._asked: dict[Hashable, float] = {}
        """When each conversation was let through last, as long as the cache may know it; the oldest first."""
        self._passed_over = 0
        """Requests in a row that went before the one that came first."""
        self._waiting: deque[Place] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._let_through = 0
        self._under_way: set[Place] = set()
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

    async def acquire(
        self, tokens: int = 0, wait: Wait | None = None, *, conversation: Hashable = None, tell: Tell | None = None
    ) -> Place:
        """Wait for a place. It must be given to `release` in the end.

        Whoever waits may be cancelled at any time, or leave through an exception of `wait` or `tell`: the place in the
        queue, or the place that was granted in the same moment, goes to the next.

        Args:
            tokens: of the prompt, estimated.
            conversation: requests of one conversation begin alike, so that they profit from the cache of prompts.
            tell: called once if the wait takes longer than `TELL_AFTER_S`: at once where that is known, else then.
        """
        loop = asyncio.get_running_loop()
        place = Place(tokens, loop.create_future(), conversation, self._asked.get(conversation))
        self._waiting.append(place)
        self._admit()
        if not place.granted:
            try:
                if tell is not None:
                    await self._tell_of_long_wait(place, wait, tell)
                if not place.granted:
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

    async def _tell_of_long_wait(self, place: Place, wait: Wait | None, tell: Tell) -> None:
        """Return when the place is granted or the wait has been told of."""
        why, at_least = self._outlook(place)
        if at_least is None or at_least <= TELL_AFTER_S:
            loop = asyncio.get_running_loop()
            long_enough: asyncio.Future[None] = loop.create_future()

            def wake(_: object = None) -> None:
                if not long_enough.done():
                    long_enough.set_result(None)

            timer = loop.call_later(TELL_AFTER_S, wake)
            place.ready.add_done_callback(wake)
            try:
                await (long_enough if wait is None else wait(long_enough))
            finally:
                timer.cancel()
                place.ready.remove_done_callback(wake)
            if place.granted:
                return
            why, at_least = self._outlook(place)
        tell(why, at_least)

    def _outlook(self, place: Place) -> tuple[str, float | None]:
        """Why a place in the queue has to wait, and for at least how many seconds, where that is known."""
        now = _now()
        when, why = max(self._holds(place, now), default=(now, ""))
        if when > now:
            return why, when - now
        if self.in_flight >= self.limit:
            return f"{self.in_flight} requests are under way and no more are let through at once", None
        return "others come first", None

    def learn(
        self,
        place: Place,
        limits: Sequence[RateLimit],
        report: Report | None = None,
        *,
        back_in_s: float | None = None,
    ) -> None:
        """Take what the provider said in its answer to a request; the person's own limits stay as they are.

        Args:
            back_in_s: when it said that one may come back. It outranks the resets, which may be of the full allowance.
        """
        now = _now()
        if back_in_s is not None:
            limits = [
                told if told.reset_s is None else replace(told, reset_s=min(told.reset_s, back_in_s)) for told in limits
            ]
        apart = any(told.what == "input tokens" and told.limit is not None for told in limits)
        for told in limits:
            what = told.what
            if told.remaining == 0 and told.reset_s is not None:
                self._spent[what] = max(self._spent.get(what, now), now + told.reset_s)
            # What is read from the cache of prompts may count for all tokens but not for the input's limit.
            if told.limit is None or what in self._given or (what == "tokens" and apart):
                continue
            minute = self._minutes.get(what)
            if minute is None:
                minute = self._minutes[what] = _Minute(told.limit)
                for one in self._under_way:  # this one among them
                    one.reserved[what] = minute.take(self._amount(what, one), now)
                self._tell_limit(what, told.limit, None, report)
            elif minute.limit != told.limit:
                before, minute.limit = minute.limit, told.limit
                self._tell_limit(what, told.limit, before, report)
            if told.remaining is not None:
                reset_s = MINUTE_S if told.reset_s is None else told.reset_s
                used = told.limit - told.remaining
                minute.compare(place.reserved[what], used, now, reset_s, place.number, self._let_through)
        self._admit()

    def _tell_limit(self, what: str, limit: int, before: int | None, report: Report | None) -> None:
        if report is not None:
            report(
                LimitChangedEvent(
                    provider=self.provider,
                    model=self.model,
                    what=f"{what} per minute",
                    limit=limit,
                    before=before,
                    why="told by the provider",
                )
            )

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
        self._under_way.discard(place)
        self._holding -= place.accepted
        if usage is not None and usage.prompt_tokens is not None:
            self._count(place, usage, usage.prompt_tokens)
        self._admit()

    def _count(self, place: Place, usage: Usage, prompt: int) -> None:
        output = usage.completion_tokens or 0
        self._typical_output += (output - self._typical_output) * (0.2 if self._typical_output else 1.0)
        used = {
            "tokens": prompt + output,
            "input tokens": prompt - (usage.cached_tokens or 0),
            "output tokens": output,
        }
        for what, taken in place.reserved.items():
            if what == "requests":
                continue
            estimated = taken.amount
            self._minutes[what].correct(taken, used[what], _now())
            if what in self._per_estimate and used[what] > 0 and estimated:
                # Replies and other alphabets make the estimate too small, and the cache too large; the next ones learn.
                self._per_estimate[what] *= (used[what] / estimated) ** 0.2

    def _amount(self, what: str, place: Place) -> int:
        """How much of something a request will take, as far as that can be told before."""
        if what == "requests":
            return 1
        return math.ceil(self._typical_output if what == "output tokens" else place.tokens * self._per_estimate[what])

    def _admit(self) -> None:
        """Let through whoever may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        while self._waiting and self.in_flight < self.limit:
            place = self._next(now)
            when = max((when for when, _ in self._holds(place, now)), default=now)
            if when > now:
                self._timer = asyncio.get_running_loop().call_at(when, self._admit)
                return
            first = place is self._waiting[0]
            self._waiting.remove(place)
            if place.ready.cancelled():  # its owner is about to leave, too late to be in the queue
                continue
            self._passed_over = 0 if first else self._passed_over + 1
            self._grant(place, now)

    def _next(self, now: float) -> Place:
        """Whose turn it is."""
        first = self._waiting[0]
        if self._prompt_cache_s is None or self._passed_over >= PASSED_OVER or len(self._waiting) == 1:
            return first
        since = now - self._prompt_cache_s
        known = (place for place in self._waiting if place.asked_at is not None and place.asked_at > since)
        return min(known, key=_asked_at, default=first)

    def _holds(self, place: Place, now: float) -> Iterator[tuple[float, str]]:
        """What keeps a request from being sent whatever the window, until when, and how to say it."""
        if self._paused_until > now:
            yield self._paused_until, "the provider asked for a pause"
        for what, until in self._spent.items():
            if until > now:
                yield until, f"nothing remains of the {what} that the provider allows"
        for what, minute in self._minutes.items():
            if (when := minute.earliest(self._amount(what, place), now)) > now:
                yield when, f"no more than {minute.limit:,} {what} per minute"

    def _grant(self, place: Place, now: float) -> None:
        self.in_flight += 1
        self._let_through += 1
        place.number = self._let_through
        self._under_way.add(place)
        place.granted = True
        for what, minute in self._minutes.items():
            place.reserved[what] = minute.take(self._amount(what, place), now)
        if self._prompt_cache_s is not None and place.conversation is not None:
            self._remember(place.conversation, now)
        place.ready.set_result(None)

    def _remember(self, conversation: Hashable, now: float) -> None:
        assert self._prompt_cache_s is not None
        self._asked.pop(conversation, None)
        self._asked[conversation] = now
        while self._asked[oldest := next(iter(self._asked))] <= now - self._prompt_cache_s:
            del self._asked[oldest]

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


def _asked_at(place: Place) -> float:
    assert place.asked_at is not None
    return place.asked_at


def estimated_tokens(request: ModelRequest) -> int:
    """Tokens of a request's text, as far as its length tells."""
    chars = len(request.system or "") + sum(len(message.content) for message in request.messages)
    return math.ceil(1 + chars / CHARS_PER_TOKEN)


class Limited:
    """Waits for a place under a limit, says how long it waited, and tells the limit how the server took it.

    A wait that is felt is reported while it lasts.
    """

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
        place = await limiter.acquire(
            estimated_tokens(request),
            self._wait,
            # Names and summaries are asked for with prompts of their own.
            conversation=(request.conversation_id, request.agent_id) if request.purpose == "message" else None,
            tell=None if self._report is None else lambda why, at_least: self._tell(request, why, at_least),
        )
        queued = round((_now() - asked) * 1000, 3)
        usage = Usage()
        try:
            async with aclosing(self._inner.stream_response(request)) as stream:  # type: ignore[type-var]
                async for delta in stream:
                    if isinstance(delta, LimitsDelta):
                        limiter.learn(place, delta.limits, self._report)
                        continue
                    limiter.accepted(place, self._report)
                    if isinstance(delta, UsageDelta):
                        usage = add_usage(usage, delta.usage)
                    elif isinstance(delta, Finish):
                        timing = delta.timing or Timing()
                        # What is inside may have waited as well, for a model to be loaded.
                        delta = replace(delta, timing=replace(timing, queued_ms=queued + (timing.queued_ms or 0)))
                    yield delta
        except ProviderError as error:
            limiter.learn(place, error.limits, self._report, back_in_s=error.retry_after_s)
            limiter.failed(place, error, self._report)
            raise
        finally:
            limiter.release(place, usage)

    def _tell(self, request: ModelRequest, why: str, at_least_s: float | None) -> None:
        assert self._report is not None
        self._report(
            RateLimitEvent(
                agent_id=request.agent_id,
                turn_number=request.turn_number,
                message_index=request.message_index,
                provider=self._limiter.provider,
                attempt=request.attempt,
                reason="limit",
                wait_s=None if at_least_s is None else round(at_least_s, 3),
                message=why,
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()
