"""Pausing, resuming, stopping and speaking into a running conversation, from any thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from pidgin_cli.core.types import EndReason

__all__ = ["Amount", "Control", "Injected", "Pause", "Purse", "Stop", "Until"]

Until = Callable[[asyncio.Future[None]], Awaitable[None]]
"""Waits for something, unless the conversation is told to end: then raises `Stop`."""


class Amount(NamedTuple):
    """What a request uses, or can use at most."""

    tokens: int
    """Prompt and completion together."""
    usd: float


class Purse(Protocol):
    """What a conversation may still use."""

    async def reserve(self, most: Amount, until: Until) -> None:
        """Set `most` aside before a request goes out. Raises Stop when it may not be used."""

    def settle(self, most: Amount, used: Amount) -> None:
        """Give back what was set aside, less what was used."""


class Stop(Exception):
    """The conversation ends, as planned by somebody. A control signal, not an error; a delegate may raise it."""

    def __init__(self, by: str = "delegate", reason: EndReason = EndReason.STOP_REQUEST) -> None:
        super().__init__(f"stopped by {by}")
        self.by = by
        self.reason = reason


class Pause(Exception):
    """The conversation pauses before its next request. A control signal, not an error; a delegate may raise it."""

    def __init__(self, by: str = "delegate") -> None:
        super().__init__(f"paused by {by}")
        self.by = by


class Injected(NamedTuple):
    """Text that somebody puts into the conversation."""

    text: str
    audience: tuple[str, ...] | None
    """Agent ids; None: all."""
    source: str


class Control:
    """What others may ask of a running conversation. It is looked at before every request.

    All methods may be called from any thread and return at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pausers: list[str] = []
        self._with_everybody: set[str] = set()
        """Those of them that have paused all conversations."""
        self._resumed_by = "person"
        self._stop: Stop | None = None
        self._now = False
        self._injected: deque[Injected] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False
        self._changed = asyncio.Event()

    def pause(self, by: str = "person", *, everybody: bool = False) -> None:
        """Ask for nothing more until `resume`; the message under way is finished.

        Args:
            everybody: all conversations pause, so that one may keep a place that it waited for: nobody else wants it.
        """
        with self._lock:
            if by in self._pausers:
                return
            self._pausers.append(by)
            if everybody:
                self._with_everybody.add(by)
        self._wake()

    def resume(self, by: str | None = None) -> None:
        """Go on. With `by`, only that party's pause ends."""
        with self._lock:
            left = [name for name in self._pausers if by is not None and name != by]
            if left == self._pausers:
                return
            self._pausers = left
            self._with_everybody &= set(left)
            self._resumed_by = by or "person"
        self._wake()

    def stop(self, by: str = "person", reason: EndReason = EndReason.STOP_REQUEST, *, now: bool = False) -> None:
        """End after the message under way; with `now`, drop that message (its text so far is recorded)."""
        with self._lock:
            self._stop = self._stop or Stop(by, reason)
            self._now = self._now or now
        self._wake()

    def inject(self, text: str, audience: tuple[str, ...] | None = None, source: str = "person") -> None:
        """Put `text` before the next reply of each agent in `audience`."""
        with self._lock:
            self._injected.append(Injected(text, audience, source))
        self._wake()

    @property
    def paused_by(self) -> str | None:
        return self._pausers[0] if self._pausers else None

    @property
    def resumed_by(self) -> str:
        """Who ended the last pause."""
        return self._resumed_by

    @property
    def stopping(self) -> Stop | None:
        return self._stop

    @property
    def stopping_now(self) -> bool:
        return self._now

    def take_injected(self) -> list[Injected]:
        """What has been put in since the last call."""
        if not self._injected:
            return []
        with self._lock:
            found = list(self._injected)
            self._injected.clear()
        return found

    def attach(self) -> None:
        """Called by the conversation's own task: `stop(now=True)` will cancel what it awaits."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        if self._now:
            self._wake()

    def detach(self) -> None:
        self._loop = self._task = None

    def stopped_now(self) -> Stop | None:
        """The stop behind the cancellation that just arrived, which is taken back; None when it was somebody else's."""
        task = asyncio.current_task()
        if self._cancelled and task is not None:
            self._cancelled = False
            if task.uncancel() == 0:
                return self._stop
        return None

    async def changed(self, timeout_s: float | None = None) -> None:
        """Return when somebody asked for something, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    async def sleep(self, seconds: float) -> None:
        """Wait, and then for as long as anybody wants a pause. Raises `Stop` when the conversation is told to end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._stop is None and ((left := end - loop.time()) > 0 or self._pausers):
            try:
                await self.changed(left if left > 0 else None)
            except asyncio.CancelledError:
                if (stop := self.stopped_now()) is None:
                    raise
                raise stop from None
        if self._stop is not None:
            raise self._stop

    async def until(self, ready: "asyncio.Future[None]") -> None:
        """Wait for a place under a limit, and until no pause of everybody is left. Raises `Stop` when the conversation
        is told to end."""
        ready.add_done_callback(lambda _: self._changed.set())
        while not ready.done() or self._with_everybody:
            if self._stop is not None:
                raise self._stop
            try:
                await self.changed()
            except asyncio.CancelledError:
                if (stop := self.stopped_now()) is None:
                    raise
                raise stop from None

    def _wake(self) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._notice)
        except RuntimeError:  # the loop closed in between: there is nobody left to wake
            return

    def _notice(self) -> None:
        self._changed.set()
        if self._now and self._task is not None:
            self._cancelled = True
            self._task.cancel()
            self._task = None
