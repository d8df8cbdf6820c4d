"""How far an experiment is, as a person in front of it sees it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ErrorEvent,
    Event,
    MessageCompleteEvent,
    RateLimitEvent,
    WarningEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.manifest import Manifest
from pidgin_cli.reports.text import count

from .chat import cost_text, status_style
from .text import one_line, visible

__all__ = ["RunProgress", "duration_text"]

RATE_OVER_S = 60.0
LISTENS_TO = (MessageCompleteEvent, ConversationEndEvent, RateLimitEvent, APIErrorEvent, ErrorEvent, WarningEvent)


def duration_text(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), following in zip(units, (*units[1:], None), strict=True):
        if whole >= size or size == 1:
            rest = 0 if following is None else whole % size // following[1]
            more = f" {rest} {following[0]}" if rest and following is not None else ""
            return f"{whole // size} {name}{more}"
    return "0 s"


class Allowance(Protocol):
    """What an experiment may use."""

    held_usd: float
    held_tokens: int

    @property
    def caps(self) -> tuple[float | None, int | None, float | None]:
        """USD, tokens, seconds."""


class RunProgress:
    """A renderable: conversations and turns done, tokens, cost, rate, time left, what waits and what failed.

    It takes events from every conversation's bus, and looks at the runner's own manifest when it is drawn.
    """

    def __init__(
        self,
        manifest: Callable[[], Manifest | None],
        *,
        turns: int,
        conversations: int,
        budget: Callable[[], Allowance],
        paused: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            turns: planned, over all conversations.
            conversations: planned.
            paused: by whom, if so.
        """
        self._manifest = manifest
        self._turns = turns
        self._conversations = conversations
        self._budget = budget
        self._paused = paused
        self._clock = clock
        self._began = clock()
        self._first_turns: int | None = None
        self._recent: deque[float] = deque()
        self._waiting: dict[str, tuple[float, str]] = {}
        self.errors = 0
        self.last_error = ""
        self.note = ""

    def take(self, event: Event) -> None:
        """A subscriber of the bus of every conversation, for the events of `LISTENS_TO`."""
        now = self._clock()
        where = event.conversation_id or ""
        match event:
            case MessageCompleteEvent():
                self._recent.append(now)
                self._waiting.pop(where, None)
            case ConversationEndEvent():
                self._waiting.pop(where, None)
                if event.error is not None and event.status is Status.FAILED:
                    self.last_error = f"{where} ended: {event.error}"
            case RateLimitEvent():
                # How long it waits in our own queue depends on others; its message or its end shows that it is over.
                self._waiting[where] = (now + (event.wait_s or RATE_OVER_S), event.provider)
            case APIErrorEvent():
                self.errors += 1
                self.last_error = f"{where} {event.agent_id}: {event.provider}: {event.error}: {event.message}"
                if event.wait_s is not None:
                    self._waiting[where] = (now + event.wait_s, event.provider)
            case ErrorEvent():
                self.errors += 1
                self.last_error = f"{where}: {event.error}: {event.message}"
            case WarningEvent():
                self.note = f"{where} {event.agent_id or ''}: {event.what}: {event.reason}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        manifest = self._manifest()
        if manifest is None:
            yield Text("starting …", "dim")
            return
        yield Group(*self._lines(manifest, options.max_width))

    def _lines(self, manifest: Manifest, width: int) -> list[Text | Table]:
        now = self._clock()
        totals = manifest.totals
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(manifest.experiment_id, "bold")
        if manifest.name:
            head.append(f"  {one_line(manifest.name, 40)}")
        by = self._paused()
        status = Status.PAUSED if by else manifest.status
        head.append("  ").append(status.value, status_style(status))
        head.append(f"  {duration_text(now - self._began)}", "dim")
        if totals.running:
            head.append(f"  {totals.running} at a time", "dim")

        ended = sum(
            entry.status not in (Status.CREATED, Status.RUNNING, Status.PAUSED)
            for entry in manifest.conversations.values()
        )
        bars = Table.grid(padding=(0, 1))
        bars.add_column(no_wrap=True)
        bars.add_column(width=max(10, min(48, width - 44)))
        bars.add_column(justify="right", no_wrap=True)
        bars.add_column(no_wrap=True, overflow="ellipsis")
        failed = Text(f"{totals.failed} failed", "bold red") if totals.failed else Text("")
        bars.add_row(
            "conversations",
            ProgressBar(max(1, self._conversations), ended),
            f"{ended:,}/{self._conversations:,}",
            failed,
        )
        bars.add_row(
            "turns", ProgressBar(max(1, self._turns), totals.turns), f"{totals.turns:,}/{self._turns:,}", Text("")
        )
        lines: list[Text | Table] = [head, bars, self._spent_line(manifest), self._rate_line(totals.turns, now)]
        waiting = {name: provider for name, (until, provider) in self._waiting.items() if until > now}
        if waiting:
            providers = ", ".join(sorted(set(waiting.values())))
            lines.append(Text(f"{count(len(waiting), 'conversation')} waiting for {visible(providers)}", "yellow"))
        if self.last_error:
            lines.append(Text(f"{count(self.errors, 'error')}; last: {one_line(self.last_error, 2 * width)}", "red"))
        if self.note:
            lines.append(Text(one_line(self.note, width), "yellow"))
        return lines

    def _spent_line(self, manifest: Manifest) -> Text:
        budget = self._budget()
        usd_cap, token_cap, _ = budget.caps
        totals = manifest.totals
        tokens = "?" if totals.tokens is None else f"{totals.tokens:,}"
        line = Text(f"tokens {tokens}")
        if token_cap is not None:
            line.append(f" of {token_cap:,} (up to {budget.held_tokens:,} in flight)", "dim")
        line.append(f" · cost {cost_text(totals.cost_usd)}")
        if usd_cap is not None:
            line.append(f" of ${usd_cap:,.2f} (up to ${budget.held_usd:,.2f} in flight)", "dim")
        return line

    def _rate_line(self, turns: int, now: float) -> Text:
        while self._recent and self._recent[0] < now - RATE_OVER_S:
            self._recent.popleft()
        ran_s = now - self._began
        rate = len(self._recent) / max(1.0, min(RATE_OVER_S, ran_s)) * 60
        if self._first_turns is None:
            self._first_turns = turns
        done = turns - self._first_turns
        left = self._turns - turns
        line = Text(f"{rate:,.0f} messages a minute")
        if left > 0 and done > 0:
            line.append(f" · about {duration_text(ran_s / done * left)} left")
        return line
