"""Concerns that cut across providers, each as a provider around another.

Outermost first: `Cached` (in `cache`) → `Retrying` → `Limited` (in `limits`) → `Resident` (in `residency`) → `Timed` →
adapter. A back-off then holds no slot, and waiting is never
mistaken for the model's latency.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec.structs import replace

from pidgin_cli.core.errors import ProviderError, ProviderTimeout, ProviderUnavailable, RateLimited
from pidgin_cli.core.events import APIErrorEvent, Event, RateLimitEvent
from pidgin_cli.core.types import (
    Delta,
    Finish,
    LimitsDelta,
    ModelRequest,
    Retries,
    TextDelta,
    Timeouts,
    Timing,
    UsageDelta,
)

from .base import Provider, Report
from .limits import Limited, Limiter
from .validation import checked

__all__ = ["Limited", "Limiter", "RetryPolicy", "Retrying", "Sleep", "Timed", "close", "retry_wait"]

Sleep = Callable[[float], Awaitable[None]]
"""Waits that many seconds; may raise `Stop` when the conversation is told to end meanwhile."""


class _Watch:
    """Cancels the running task when a stretch of waiting gets too long.

    Used only around awaits inside one generator, so that it never interrupts the code that consumes the reply. Its
    timer is left running between stretches and looks then whether there is anything to watch, so that a reply usually
    costs none.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._expired = False

    def start(self, deadline: float | None) -> None:
        self._deadline = deadline
        if deadline is None:
            return
        self._task = asyncio.current_task(self.loop)  # which it would find out by a system call
        if self._handle is None or self._handle.when() > deadline:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self.loop.call_at(deadline, self._check)

    def stop(self) -> None:
        if self._expired:
            self.expired()  # the wait ended on its own in the moment in which it was cut short
        self._deadline = None
        self._task = None

    def _check(self) -> None:
        self._handle = None
        if self._deadline is None or self._task is None:
            return
        if self.loop.time() < self._deadline:
            self._handle = self.loop.call_at(self._deadline, self._check)
        else:
            self._expired = True
            self._task.cancel()

    def expired(self) -> bool:
        """Whether the cancellation that just arrived was this watch's own, and takes it back."""
        if self._expired and (task := asyncio.current_task()) is not None:
            self._expired = False
            return task.uncancel() == 0
        return False


class Timed:
    """Measures a reply, and raises `ProviderTimeout` when a part of it takes too long.

    As the first to look into what an adapter hands out it also raises what `validation.checked` does.
    """

    def __init__(self, inner: Provider, timeouts: Timeouts, provider: str) -> None:
        self._inner = inner
        self._timeouts = timeouts
        self._provider = provider
        self._idle: list[_Watch] = []

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        loop = asyncio.get_running_loop()
        clock = loop.time
        limits = self._timeouts
        started = clock()
        end = None if limits.total_s is None else started + limits.total_s
        first: float | None = None
        tokens: int | None = None
        watch = self._idle.pop() if self._idle and self._idle[-1].loop is loop else _Watch()
        stream = self._inner.stream_response(request)
        limit, phase = limits.first_token_s, "the first token"
        try:
            while True:
                deadline = end
                if limit is not None:
                    deadline = (started if first is None else clock()) + limit
                    if end is not None and end < deadline:
                        deadline = end
                watch.start(deadline)
                try:
                    delta = await anext(stream)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    if not watch.expired():
                        raise
                    whole = end is not None and clock() >= end
                    took = limits.total_s if whole else limit
                    what = "the whole reply" if whole else phase
                    raise ProviderTimeout(
                        f"{self._provider}: {what} took longer than {took:g} s", provider=self._provider
                    ) from None
                finally:
                    watch.stop()
                # Nearly every piece is text, of which nothing more has to be asked.
                if type(delta) is not TextDelta or type(delta.text) is not str:
                    delta = checked(delta, self._provider)
                    if isinstance(delta, UsageDelta):
                        tokens = delta.usage.completion_tokens or tokens
                    elif isinstance(delta, Finish):
                        delta = replace(delta, timing=_timing(started, first, clock(), tokens))
                if first is None and not isinstance(delta, UsageDelta | Finish | LimitsDelta):
                    first = clock()
                    limit, phase = limits.gap_s, "the next piece"
                yield delta
        finally:
            watch.stop()
            self._idle.append(watch)
            await close(stream)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _timing(started: float, first: float | None, now: float, tokens: int | None) -> Timing:
    writing = now - first if first is not None else 0.0
    return Timing(
        ttft_ms=None if first is None else round((first - started) * 1000, 3),
        duration_ms=round((now - started) * 1000, 3),
        tokens_per_s=round(tokens / writing, 2) if tokens and writing > 0.001 else None,
    )


async def close(stream: AsyncIterator[Delta]) -> None:
    """End a stream that may not have been read to its end; what it holds is let go of now, not some time later."""
    if (aclose := getattr(stream, "aclose", None)) is not None:
        await aclose()


def retry_wait(retries: Retries, error: ProviderError, attempt: int) -> float | None:
    """Seconds to wait after an attempt (from 1) has failed; None: it is not to be tried again."""
    if not error.retryable or attempt >= retries.attempts:
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s
    return random.uniform(0, min(retries.max_wait_s, retries.base_s * 2.0 ** min(attempt - 1, 60)))


class RetryPolicy:
    """Decides what follows a failed attempt, says so in the record, and waits."""

    def __init__(self, retries: Retries, provider: str, report: Report, sleep: Sleep) -> None:
        self._retries = retries
        self._provider = provider
        self.report = report
        self._sleep = sleep
        self.attempt = 1
        """The attempt under way."""
        self.on_unanswered: Callable[[ProviderError], Awaitable[None]] | None = None
        """Is told of an attempt that brought nothing at all, before the next one is made."""

    async def wait(self, error: ProviderError, request: ModelRequest) -> None:
        """Return when the request may be tried again; raise the error when it may not."""
        error.attempt = request.attempt
        wait = retry_wait(self._retries, error, request.attempt)
        self.report(self._event(error, request, wait))
        if wait is None:
            raise error
        await self._sleep(wait)
        self.attempt = request.attempt + 1

    def _event(self, error: ProviderError, request: ModelRequest, wait: float | None) -> Event:
        if isinstance(error, RateLimited) and wait is not None:
            return RateLimitEvent(
                agent_id=request.agent_id,
                turn_number=request.turn_number,
                message_index=request.message_index,
                provider=self._provider,
                status=error.status,
                attempt=request.attempt,
                wait_s=round(wait, 3),
                message=str(error),
            )
        return APIErrorEvent(
            agent_id=request.agent_id,
            turn_number=request.turn_number,
            message_index=request.message_index,
            error=type(error).__name__,
            provider=self._provider,
            status=error.status,
            retryable=error.retryable,
            attempt=request.attempt,
            wait_s=None if wait is None else round(wait, 3),
            may_be_billed=error.may_be_billed,
            message=str(error),
        )


class Retrying:
    """Starts a request again as long as nothing of its reply has been handed out.

    An error after the first delta goes up: whoever has the partial text must record it as abandoned before a new
    attempt begins (under the same `RetryPolicy`), so that attempts are never run together.
    """

    def __init__(self, inner: Provider, policy: RetryPolicy) -> None:
        self._inner = inner
        self._policy = policy

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        while True:
            handed_out = False
            stream = self._inner.stream_response(request)
            try:
                async for delta in stream:
                    if isinstance(delta, Finish):
                        yield replace(delta, attempt=request.attempt) if request.attempt > 1 else delta
                        return
                    handed_out = True
                    yield delta
                raise ProviderUnavailable("the stream ended before the reply was whole")
            except ProviderError as error:
                error.attempt = request.attempt
                if handed_out:
                    raise
                await self._policy.wait(error, request)
                if self._policy.on_unanswered is not None:
                    await self._policy.on_unanswered(error)
            finally:
                await close(stream)
            request = replace(request, attempt=request.attempt + 1)

    async def aclose(self) -> None:
        await self._inner.aclose()
