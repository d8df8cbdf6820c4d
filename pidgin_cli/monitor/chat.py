"""A conversation on screen: live while it runs, or read from its record."""

import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.status import Status as Spinner
from rich.style import Style
from rich.text import Text

from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConversationBranchedEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    LimitChangedEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ModelLoadEvent,
    QuestionAbandonedEvent,
    QuestionEvent,
    RateLimitEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TurnStartEvent,
    WarningEvent,
)
from pidgin_cli.core.types import Agent, Delta, FinishReason, Status, TextDelta, ThinkingDelta
from pidgin_cli.reports.text import count

from .console import PIPED_WIDTH
from .text import Wrapper, one_line, visible

__all__ = ["ChatDisplay", "TailDisplay", "cost_text", "count", "status_style"]

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")
DIM = Style(dim=True)
MAX_WIDTH = 100
"""Text in wider lines is hard to read."""
LONG_WAIT_MS = 1000
"""From here on the wait for a place under a limit is told."""

_STATUS_STYLES = {
    Status.COMPLETED: "green",
    Status.RUNNING: "cyan",
    Status.PAUSED: "yellow",
    Status.FAILED: "red",
    Status.INTERRUPTED: "red",
    Status.STOPPED: "yellow",
    Status.CREATED: "dim",
}


def status_style(status: Status) -> str:
    return _STATUS_STYLES[status]


def cost_text(cost: float | None) -> str:
    """USD as people read it; `?` when it is not known."""
    if cost is None:
        return "$?"
    if cost == 0:
        return "$0"
    return f"${cost:.2f}" if cost >= 1 else f"${cost:.4f}"


def _seconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


class _Waiting:
    """A text with the seconds since it first was shown."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._since = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seconds = int(time.monotonic() - self._since)
        yield Text(f"{self._text}{f' {seconds} s' if seconds >= 1 else ''}", style="dim")


class ChatDisplay:
    """Prints a conversation as a talk.

    `take` gets every event, `live` every piece of a reply. Without pieces (a record being read) whole messages are
    printed instead.
    """

    def __init__(
        self,
        console: Console,
        *,
        show_thinking: bool = False,
        show_system_prompts: bool = False,
        following: bool = True,
        pieces: bool = True,
    ) -> None:
        """
        Args:
            following: the conversation runs now, so that waiting is shown.
            pieces: replies come piece by piece; without, nothing is to be seen of one until it is whole.
        """
        self._console = console
        self._show_thinking = show_thinking
        self._show_system_prompts = show_system_prompts
        self._following = following
        self._pieces = pieces
        self._agents: dict[str, Agent] = {}
        self._names: dict[str, str] = {}
        self._colours: dict[str, str] = {}
        self._max_turns: int | None = None
        self._spinner: Spinner | None = None
        self._waiting: _Waiting | None = None
        self._wrapper: Wrapper | None = None
        self._writing: tuple[str, str] | None = None
        """Agent and kind (`text` or `thinking`) of what is on the open line."""
        self._headed: str | None = None
        """Agent whose name stands above what is being written."""
        self._told_text = False
        self._told_thinking = False
        self._told_error: str | None = None
        """The error on the screen after which nothing is tried again."""

    @property
    def _width(self) -> int | None:
        return min(self._console.width, MAX_WIDTH) if self._console.is_terminal else None

    # Pieces

    def live(self, agent_id: str, delta: Delta | None) -> None:
        """One piece of a reply, or None: what came so far is discarded."""
        if isinstance(delta, TextDelta) and delta.text:
            self._told_text = True
            self._write(agent_id, "text", delta.text)
        elif isinstance(delta, ThinkingDelta) and self._show_thinking and delta.text:
            self._told_thinking = True
            self._write(agent_id, "thinking", delta.text)

    def _write(self, agent_id: str, kind: str, text: str) -> None:
        self._quiet()
        if self._headed != agent_id:
            self._head(agent_id)
        if self._writing != (agent_id, kind):
            self._end_line()
            self._writing = (agent_id, kind)
            style = Style(dim=True, italic=True) if kind == "thinking" else Style()

            def put(piece: str) -> None:
                self._console.print(Text(piece, style), end="", soft_wrap=True)

            self._wrapper = Wrapper(put, self._width, "  ")
            if kind == "thinking" and not self._console.color_system:
                self._wrapper.feed("(thinking) ")
        assert self._wrapper is not None
        self._wrapper.feed(visible(text))

    def _end_line(self) -> None:
        if self._wrapper is not None:
            self._wrapper.close()
            self._console.print()
        self._wrapper = None
        self._writing = None

    def _head(self, agent_id: str) -> None:
        agent = self._agents.get(agent_id)  # None: the beginning of the record is lost
        head = Text(visible(self._name(agent_id)), Style(bold=True, color=self._colours.get(agent_id)))
        if agent is not None:
            head.append(f"  {visible(agent.model.partition('?')[0])}", DIM)
        self._line(head)
        self._headed = agent_id

    # Events

    def take(self, event: Event) -> None:
        """One event of the conversation."""
        match event:
            case ConversationStartEvent():
                self._start(event)
            case SystemPromptEvent(text=str() as text) if self._show_system_prompts:
                self._note(f"system prompt of {self._name(event.agent_id)}")
                self._block(text, DIM)
            case AgentNamedEvent():
                self._named(event)
            case TurnStartEvent():
                self._quiet()
                total = f"/{self._max_turns}" if self._max_turns else ""
                self._rule(f"turn {event.turn_number}{total}")
            case MessageRequestEvent():
                self._headed = None
                self._told_text = self._told_thinking = False
                self._told_error = None
                self._wait_for(event.agent_id)
            case ThinkingCompleteEvent() if self._show_thinking and not self._told_thinking:
                self._write(event.agent_id, "thinking", event.content)
            case MessageCompleteEvent():
                self._message(event)
            case MessageAbandonedEvent():
                self._abandoned(event)
            case RateLimitEvent(reason="limit"):
                self._queue(event)
            case RateLimitEvent():
                self._retry(
                    event.agent_id, f"rate limit of {event.provider}", event.message, event.attempt, event.wait_s
                )
            case APIErrorEvent():
                self._retry(event.agent_id, event.error, event.message, event.attempt, event.wait_s)
            case InterventionEvent():
                self._intervention(event)
            case ConversationBranchedEvent():
                self._note(f"branches off {event.origin} after turn {event.turn_number}")
            case ContextTruncationEvent():
                omitted = count(event.view.omitted, "message")
                self._note(f"{self._name(event.agent_id)} no longer sees the first {omitted}")
            case HistoryCompactedEvent():
                omitted = count(event.view.omitted, "message")
                self._note(f"{self._name(event.agent_id)} now has a summary of the first {omitted}:")
                self._block(event.summary, DIM)
            case ContextLimitEvent():
                needed = _needed(event)
                self._note(
                    f"the context window of {self._name(event.agent_id)} is full{needed and f': {needed}'}", "yellow"
                )
            case WarningEvent():
                who = "" if event.agent_id is None else f"{self._name(event.agent_id)}: "
                self._aside(f"{who}{_left_out(event)}", "yellow")
            case LimitChangedEvent():
                self._aside(_limit(event))
            case ModelLoadEvent():
                self._aside(_load(event), "yellow" if event.action == "degraded" else "dim")
            case ConversationPausedEvent():
                self._note(f"paused by {event.by}", "yellow")
            case ConversationResumedEvent():
                self._note("going on" if event.by == "control" else f"going on at turn {max(event.turn_number, 1)}")
            case ErrorEvent():
                self._note(f"✗ {event.where}: {event.error}: {event.message}", "red")
            case ConversationEndEvent():
                self._end(event)

    def finish(self) -> None:
        """Leave the screen in order, whatever happened."""
        self._quiet()
        self._end_line()

    def _start(self, event: ConversationStartEvent) -> None:
        self._max_turns = event.spec.get("max_turns")
        for number, agent in enumerate(event.agents):
            self._agents[agent.id] = agent
            self._names[agent.id] = agent.name
            self._colours[agent.id] = COLOURS[number % len(COLOURS)]
        for agent in event.agents:
            line = Text.assemble((f"{agent.id}  ", DIM))
            line.append(visible(agent.name), Style(bold=True, color=self._colours[agent.id]))
            line.append(f"  {visible(agent.model)}", DIM)
            self._line(line)
        tag = f"[{event.prompt_tag}] " if event.prompt_tag else ""
        self._block(f"{tag}{event.opening}", Style(italic=True))

    def _named(self, event: AgentNamedEvent) -> None:
        self._quiet()
        before = self._name(event.agent_id)
        self._names[event.agent_id] = event.name
        self._note(f"{before} chose the name {event.name}" if event.chosen else f"{before} keeps its name")

    def _message(self, event: MessageCompleteEvent) -> None:
        self._quiet()
        if not self._told_text and event.message.content:
            self._write(event.agent_id, "text", event.message.content)
        if self._headed != event.agent_id:
            self._head(event.agent_id)
        self._end_line()
        if not event.message.content.strip():
            self._line(Text("  (silence)", DIM))
        facts = []
        if event.usage.completion_tokens is not None:
            facts.append(count(event.usage.completion_tokens, "token"))
        if event.usage.thinking_tokens:
            facts.append(f"{event.usage.thinking_tokens:,} of them thinking")
        facts.append(cost_text(event.cost))
        if event.timing.queued_ms is not None and event.timing.queued_ms > LONG_WAIT_MS:
            facts.append(f"waited {_seconds(event.timing.queued_ms)}")
        if event.timing.ttft_ms is not None:
            facts.append(f"first token {_seconds(event.timing.ttft_ms)}")
        if event.timing.tokens_per_s is not None:
            facts.append(f"{event.timing.tokens_per_s:,.0f} tokens/s")
        if event.attempt > 1:
            facts.append(f"attempt {event.attempt}")
        if event.finish_reason is not FinishReason.STOP:
            facts.append(f"ended by {event.finish_reason}")
        if event.cached:
            facts.append("from the cache")
        self._block("  " * (self._width is None) + " · ".join(facts), DIM)
        self._line(Text())
        self._headed = None

    def _abandoned(self, event: MessageAbandonedEvent) -> None:
        self._quiet()
        if event.partial and not self._told_text:
            self._write(event.agent_id, "text", event.partial)
        self._end_line()
        self._headed = None
        self._told_text = self._told_thinking = False
        self._note(f"✗ {event.why}" + ("; the text above is discarded" if event.partial else ""), "yellow")

    def _retry(self, agent_id: str, what: str, message: str, attempt: int, wait_s: float | None) -> None:
        self._quiet()
        self._end_line()
        short = one_line(message, 300)
        if wait_s is None:
            self._note(f"✗ {what}: {short}", "red")
            self._told_error = f"{what}: {short}"
            return
        self._headed = None
        self._note(f"↻ {what}: {short}; attempt {attempt + 1} in {_seconds(wait_s * 1000)}", "yellow")
        self._wait(f"waiting to ask {self._name(agent_id)} again")

    def _queue(self, event: RateLimitEvent) -> None:
        """The attempt has not been made: what stands on the screen stays as it is."""
        self._aside(f"{self._name(event.agent_id)} {_queued(event)}", "yellow")
        self._wait(f"waiting to ask {self._name(event.agent_id)}")

    def _intervention(self, event: InterventionEvent) -> None:
        everyone = set(event.audience) == set(self._agents)
        whom = "everyone" if everyone else ", ".join(self._name(agent_id) for agent_id in event.audience)
        agent = self._name(event.agent_id or "")
        text = event.text if event.kind == "inject" else event.after
        source = event.source if event.trigger is None else f"{event.source} ({event.trigger})"
        match event.kind:
            case "inject":
                self._note(f"{source} to {whom}:")
            case "edit":
                self._note(f"{source}: message {event.edited_index} of {agent} now reads:")
            case "mute":
                self._note(f"{source}: {agent} is silent for {count(event.turns or 1, 'turn')}")
            case "swap_model":
                self._note(f"{source}: {agent} is {event.after} from here on")
            case "swap_system_prompt":
                self._note(f"{source}: {agent} has {'another' if event.after else 'no'} system prompt now")
        if event.kind in ("inject", "edit") or (event.kind == "swap_system_prompt" and self._show_system_prompts):
            self._block(text or "", Style(italic=True))

    def _end(self, event: ConversationEndEvent) -> None:
        self._quiet()
        self._end_line()
        self._rule(f"{event.status} · {event.end_reason.replace('_', ' ')}")
        totals = event.totals
        facts = [count(totals.turns, "turn"), count(totals.messages, "message")]
        if totals.prompt_tokens is not None:
            facts.append(f"{count(totals.prompt_tokens, 'token')} in")
        if totals.completion_tokens is not None:
            facts.append(f"{totals.completion_tokens:,} out")
        facts.append(cost_text(totals.cost_usd))
        self._line(Text(" · ".join(facts), DIM))
        if event.error and " ".join(event.error.split()) != self._told_error:
            self._note(f"✗ {event.error}", "red")
        if event.invalid:
            self._note(f"not valid for statistics: {', '.join(event.invalid)}", "yellow")
        if event.notable:
            self._note(f"notable messages: {', '.join(f'{n} {what}' for what, n in event.notable.items())}")

    def notice(self, text: str) -> None:
        """Something to the person, between two pieces of a reply if need be."""
        self._note(text, "yellow")

    # Writing

    def _name(self, agent_id: str) -> str:
        return self._names.get(agent_id, agent_id)

    def _line(self, text: RenderableType) -> None:
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _note(self, text: str, style: str = "dim") -> None:
        self._quiet()
        self._end_line()
        self._block(text, Style.parse(style))

    def _aside(self, text: str, style: str = "dim") -> None:
        """A note that may come while somebody is waited for, who is waited for still."""
        waiting = None if self._spinner is None else self._waiting
        if not (self._told_text or self._told_thinking):
            self._headed = None
        self._note(text, style)
        if waiting is not None:
            self._spin(waiting)

    def _block(self, text: str, style: Style) -> None:
        wrapper = Wrapper(
            lambda piece: self._console.print(Text(piece, style), end="", soft_wrap=True), self._width, "  "
        )
        wrapper.feed(visible(text))
        wrapper.close()
        self._console.print()

    def _rule(self, title: str) -> None:
        if self._width is None:
            self._line(Text(f"--- {title} ---"))
        else:
            self._console.print(Rule(Text(title, DIM), style="dim"), width=self._width)

    def _wait_for(self, agent_id: str) -> None:
        name = self._name(agent_id)
        self._wait(f"waiting for {name}" if self._pieces else f"… {name} is speaking")
        if self._following and self._console.is_terminal and self._spinner is None:
            self._head(agent_id)  # a line that cannot be taken back says who is waited for

    def _wait(self, text: str) -> None:
        self._quiet()
        if self._following and self._console.is_terminal and self._console.color_system:
            self._spin(_Waiting(visible(text)))

    def _spin(self, waiting: _Waiting) -> None:
        self._waiting = waiting
        self._spinner = self._console.status(waiting, spinner_style="dim")
        self._spinner.start()

    def _quiet(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


class TailDisplay:
    """One line per event."""

    def __init__(
        self,
        console: Console,
        *,
        show_thinking: bool = False,
        show_system_prompts: bool = False,
        conversations: bool = False,
    ) -> None:
        """With the flags, what models think and system prompts stand whole below their line.

        `conversations`: every line says which conversation it is of.
        """
        self._console = console
        self._conversations = conversations
        self._show_thinking = show_thinking
        self._show_system_prompts = show_system_prompts

    def take(self, event: Event) -> None:
        """One event of the conversation."""
        line = Text()
        line.append(f"{event.timestamp.astimezone():%H:%M:%S}  ", DIM)
        if self._conversations:
            line.append(f"{visible(event.conversation_id or event.experiment_id):<12} ")
        line.append(f"{type(event).__name__.removesuffix('Event'):<20}", _tail_style(event))
        agent_id = visible(getattr(event, "agent_id", None) or "")
        line.append(f" {agent_id:<3}")
        turn = getattr(event, "turn_number", None)
        line.append(f"{'' if turn is None else turn:>4}  ", DIM)
        width = self._console.width if self._console.is_terminal else PIPED_WIDTH
        line.append(one_line(_said(event), max(0, width - line.cell_len)))
        line.truncate(width, overflow="ellipsis")
        self._console.print(line, soft_wrap=True)
        match event:
            case ThinkingCompleteEvent(content=text) if self._show_thinking:
                self._whole(text)
            case SystemPromptEvent(text=str() as text) if self._show_system_prompts:
                self._whole(text)

    def _whole(self, text: str) -> None:
        for line in visible(text).splitlines():
            self._console.print(Text(f"  {line}", DIM), soft_wrap=True)

    def notice(self, text: str) -> None:
        """Something to the person."""
        self._console.print(Text(one_line(text, PIPED_WIDTH), "yellow"))

    def finish(self) -> None:
        """Nothing is left open."""


def _tail_style(event: Event) -> str:
    if isinstance(event, MessageCompleteEvent):
        return "bold"
    if isinstance(event, APIErrorEvent | ErrorEvent):
        return "red"
    if isinstance(event, RateLimitEvent | MessageAbandonedEvent | QuestionAbandonedEvent | WarningEvent):
        return "yellow"
    if isinstance(event, ModelLoadEvent) and event.action == "degraded":
        return "yellow"
    return "dim"


def _said(event: Event) -> str:
    match event:
        case MessageCompleteEvent():
            return event.message.content
        case ConversationStartEvent():
            return f"{_models(event.agents)}: {event.opening}"
        case MessageRequestEvent():
            return f"messages {event.view.start} to {event.view.end}, digest {event.digest[:8]}"
        case RateLimitEvent(reason="limit"):
            return _queued(event)
        case RateLimitEvent() | APIErrorEvent():
            wait = "" if event.wait_s is None else f"; again in {event.wait_s:.1f} s"
            return f"{event.message}{wait}"
        case QuestionEvent():
            return f"{event.model} for a {event.purpose}"
        case MessageAbandonedEvent() | QuestionAbandonedEvent():
            return event.why
        case ContextLimitEvent():
            return _needed(event)
        case WarningEvent():
            return _left_out(event)
        case LimitChangedEvent():
            return _limit(event)
        case ModelLoadEvent():
            return _load(event)
        case ConversationEndEvent():
            return f"{event.status}, {event.end_reason}" + (f": {event.error}" if event.error else "")
    for name in ("text", "content", "name", "message", "summary", "by", "total_tokens"):
        value = getattr(event, name, None)
        if value not in (None, ""):
            return f"{name} {value}" if name == "total_tokens" else str(value)
    return ""


def _needed(event: ContextLimitEvent) -> str:
    if event.estimated_tokens is None or event.limit_tokens is None:
        return ""
    return f"needs about {event.estimated_tokens:,} of {count(event.limit_tokens, 'token')}"


def _left_out(event: WarningEvent) -> str:
    return f"{event.what} left out: {event.reason}"


def _queued(event: RateLimitEvent) -> str:
    least = "" if event.wait_s is None else f", at least {_seconds(event.wait_s * 1000)}"
    return f"waits for {event.provider}{least}: {event.message}"


def _limit(event: LimitChangedEvent) -> str:
    before = "" if event.before is None else f"{event.before:,} → "
    return f"{event.what} of {event.provider} {event.model}: {before}{event.limit:,} ({event.why})"


def _load(event: ModelLoadEvent) -> str:
    model = f"{event.provider} {event.model}"
    what = {
        "load": f"loaded {model}",
        "unload": f"unloaded {model}",
        "switch": f"switched to {model}",
        "degraded": f"the memory for {model} is not looked after",
    }[event.action]
    took = "" if event.duration_ms is None else f" in {event.duration_ms / 1000:.1f} s"
    return f"{what}{took}{event.why and f': {event.why}'}"


def _models(agents: Sequence[Agent]) -> str:
    return " · ".join(f"{agent.name} ({agent.model})" for agent in agents)
