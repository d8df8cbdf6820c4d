"""A conversation, and all of an experiment side by side, as Markdown for people. Made from the record alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    AttractorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConvergenceWarningEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    QuestionAbandonedEvent,
    RateLimitEvent,
    SafetyDecisionEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    ToolCallEvent,
    ToolResultEvent,
    TurnStartEvent,
    WarningEvent,
)
from pidgin_cli.core.types import Agent, FinishReason
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import Record, read_record
from pidgin_cli.eventlog.manifest import Manifest

from .text import Markdown, count, fenced, inline, prose, quoted, table

__all__ = ["Lineage", "said", "summary", "transcript", "write_file"]

Lineage = Callable[[OutputRoot, Sequence[Event]], tuple[list[Event], str | None]]
"""Gives a conversation's events with what it shares with those it branches off in front, and why that is not there."""


def write_file(path: Path, content: str | bytes) -> None:
    """Put a file in its place whole or not at all. Raises LogError when the disk does not take it."""
    making = path.with_name(f".{path.name}.making")
    try:
        path.parent.mkdir(exist_ok=True)
        making.write_bytes(content.encode() if isinstance(content, str) else content)
        making.replace(path)
    except OSError as error:
        making.unlink(missing_ok=True)
        raise LogError(f"{path} cannot be written: {error.strerror}") from error


def said(text: str) -> Markdown:
    """What somebody said; of a text without anything to be seen it is told what it is made of."""
    if text == "":
        return Markdown("*(empty: nothing was said)*")
    if not text.strip():
        return Markdown(f"*({len(text)} white-space characters)*\n\n{fenced(text)}")
    return prose(text)


def _number(value: float | None, form: str = ",.0f") -> str | None:
    return None if value is None else format(value, form)


def money(usd: float | None) -> str:
    return "not known" if usd is None else f"${usd:,.4f}".rstrip("0").rstrip(".")


def when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _settings(agent: Agent) -> str:
    values = msgspec.to_builtins(agent.settings)
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "as the provider has them"


class _Transcript:
    """Reads events in order and writes what they are to a reader."""

    def __init__(self, shared: Sequence[Event], own: Sequence[Event]) -> None:
        self.shared = shared
        self.own = own
        self.names: dict[str, str] = {}
        self.parts: list[str] = []
        self.turn = 0
        self.is_shared = False
        self.is_dated = True
        self.tells_attempts = True
        self.edited: dict[int, int] = {}

    def name(self, agent_id: str) -> Markdown:
        return inline(f"{self.names.get(agent_id) or agent_id} ({agent_id})")

    def put(self, *parts: str) -> None:
        self.parts.extend(parts)

    def mark(self, kind: str, text: str, body: str | None = None) -> None:
        """Something that nobody said, set off as a block quote."""
        told = f"**{kind}** {text}".rstrip()
        self.put(quoted(told if body is None else f"{told}\n\n{body}"))

    def write(self, skipped: Sequence[object], missing: str | None) -> str:
        starts = [event for event in self.own if isinstance(event, ConversationStartEvent)]
        for event in (*self.shared, *self.own):
            if isinstance(event, InterventionEvent) and event.edited_index is not None:
                self.edited[event.edited_index] = event.turn_number
        if not starts:
            self.put("# A conversation whose record does not begin with its start")
        else:
            self._head(starts[0])
        if skipped:
            lines = ", ".join(str(item).partition(": ")[0] for item in skipped)
            self.mark("Damaged record.", f"Left out of this page: {inline(lines)}.")
        if missing is not None:
            self.mark("Incomplete.", f"What this branch shares with others could not be read: {inline(missing)}.")
        self.put("## Conversation")
        if self.shared:
            origin = starts[0].branch_of if starts else None
            where = inline(str(origin.get("conversation_id"))) if origin else "another conversation"
            self.mark("Shared.", f"From here on as in {where}.")
        self.is_shared = True
        for event in self.shared:
            self.take(event)
        self.is_shared = False
        if self.shared:
            self.put("---")
            self.mark("Branch.", "From here on this conversation is its own.")
        for event in self.own:
            if self.shared and isinstance(event, ConversationStartEvent):
                continue  # its opening stands above, with what is shared
            self.take(event)
        self._end()
        self._tables()
        return "\n\n".join(self.parts) + "\n"

    def _head(self, start: ConversationStartEvent) -> None:
        self.names = {agent.id: agent.name for agent in start.agents}
        self.put(f"# Conversation {inline(start.conversation_id or '')}")
        source = start.spec.get("source")
        self.is_dated = not isinstance(source, dict) or source.get("format") != "transcript"
        self.tells_attempts = source is None
        facts: list[tuple[str, object]] = [
            ("experiment", start.experiment_id),
            ("arm", start.arm or None),
            ("repetition", start.repetition),
        ]
        if isinstance(source, dict):  # what a record from elsewhere does not say was filled in when it was taken in
            facts += [("taken in from", source.get("file")), ("dated", source.get("dated"))]
        else:
            facts.append(("seed", start.seed))
        facts += [
            ("turns planned", start.spec.get("max_turns")),
            ("begun", when(start.timestamp) if self.is_dated else None),
            ("made with" if source is None else "taken in with", f"Pidgin {start.pidgin_version}"),
        ]
        if start.branch_of:
            facts.append(("branch of", f"{start.branch_of.get('conversation_id')}, turn {start.branch_of.get('turn')}"))
        self.put(table(("", ""), [fact for fact in facts if fact[1] is not None], left=2))
        rows = [(agent.id, agent.name, agent.model, agent.awareness, _settings(agent)) for agent in start.agents]
        self.put("## Agents", table(("agent", "name", "model", "awareness", "settings"), rows, left=5))
        for event in self.own:
            if isinstance(event, SystemPromptEvent):
                if event.text is None:
                    self.put(f"{self.name(event.agent_id)} has no system prompt.")
                else:
                    how = inline(event.placement or "")
                    self.put(f"System prompt of {self.name(event.agent_id)}, sent as {how}:", quoted(said(event.text)))

    def take(self, event: Event) -> None:
        match event:
            case ConversationStartEvent():
                tag = f"[{event.prompt_tag}] " if event.prompt_tag else ""
                self.put(f"### Opening {inline(tag)}".rstrip(), said(event.opening))
            case AgentNamedEvent():
                self.names[event.agent_id] = event.name
                verb = "chose the name" if event.chosen else "chose no name and keeps"
                self.mark("Name.", f"Agent {inline(event.agent_id)} {verb} {inline(event.name)}.", said(event.reply))
            case TurnStartEvent():
                self.turn = event.turn_number
                self.put(f"## Turn {event.turn_number}" + (" (shared)" if self.is_shared else ""))
            case ThinkingCompleteEvent():
                text = "*(the vendor keeps the text to itself)*" if event.redacted else said(event.content)
                tokens = f", {event.tokens:,} tokens" if event.tokens is not None else ""
                self.mark("Thinking", f"of {self.name(event.agent_id)}{tokens}, not part of the message:", text)
            case MessageCompleteEvent():
                self._message(event)
            case InterventionEvent():
                self._intervention(event)
            case ToolCallEvent():
                text = f"{self.name(event.agent_id)} calls {inline(event.name)}:"
                self.mark("Tool.", text, fenced(event.arguments, "json"))
            case ToolResultEvent():
                kind = "Tool failed:" if event.is_error else "Tool answered:"
                self.mark(kind, "", fenced(event.content))
            case MessageAbandonedEvent():
                body = said(event.partial) if event.partial is not None else None
                self.mark("Abandoned", f"reply of {self.name(event.agent_id)}: {inline(event.why)}.", body)
            case _:
                self._incident(event)

    def _message(self, event: MessageCompleteEvent) -> None:
        marks = ["shared"] if self.is_shared else []
        if event.message_index in self.edited:
            marks.append(f"edited in turn {self.edited[event.message_index]}")
        if event.finish_reason not in (FinishReason.STOP, FinishReason.UNKNOWN):
            marks.append(f"finish: {event.finish_reason.value}")
        if event.cached:
            marks.append("from the cache")
        if event.message.text_replaced:
            marks.append("lone surrogates stand as U+FFFD")
        head = f"### {event.message_index} · {self.name(event.agent_id)}"
        self.put(head + (f" · {inline(', '.join(marks))}" if marks else ""), said(event.message.content))

    def _intervention(self, event: InterventionEvent) -> None:
        whom = self.name(event.agent_id) if event.agent_id is not None else Markdown("")
        why = "" if event.trigger is None else f" ({inline(event.trigger)})"
        by = f"by {inline(event.source)}{why}, turn {event.turn_number}"
        before = said(event.before) if event.before is not None else Markdown("*(none)*")
        after = said(event.after) if event.after is not None else Markdown("*(none)*")
        change = f"before:\n\n{quoted(before)}\n\nfrom here on:\n\n{quoted(after)}"
        match event.kind:
            case "inject":
                seen = ", ".join(str(self.name(agent_id)) for agent_id in event.audience) or "nobody"
                self.mark("Intervention", f"{by}, seen by {seen}:", said(event.text or ""))
            case "edit":
                what = f"message {event.edited_index}"
                self.mark("Edit", f"{by}: {what} reads otherwise from here on. {change}")
            case "mute":
                self.mark("Muted", f"{by}: {whom} is silent for {count(event.turns or 1, 'turn')}.")
            case "swap_model":
                self.mark("Model changed", f"{by}, of {whom}. {change}")
            case "swap_system_prompt":
                self.mark("System prompt changed", f"{by}, of {whom}. {change}")

    def _incident(self, event: Event) -> None:
        match event:
            case ContextTruncationEvent():
                self.mark("Context.", f"{self.name(event.agent_id)} no longer sees messages before {event.view.start}.")
            case QuestionAbandonedEvent():
                what = (
                    f"answer of {self.name(event.agent_id)}, asked for a {inline(event.purpose)}: {inline(event.why)}."
                )
                self.mark("Abandoned", what, None if event.partial is None else said(event.partial))
            case HistoryCompactedEvent():
                text = f"{self.name(event.agent_id)} sees this summary instead of messages before {event.view.start}:"
                self.mark("Context.", text, said(event.summary))
            case ContextLimitEvent():
                self.mark("Context limit", f"of {self.name(event.agent_id)} reached.")
            case ConvergenceWarningEvent():
                text = f"{inline(event.score)} is {event.value:.3f}, threshold {event.threshold:g}: {event.action}."
                self.mark("Convergence.", text)
            case AttractorEvent():
                self.mark("Attractor.", f"{inline(event.detector)} at message {event.message_index}: {event.action}.")
            case SafetyDecisionEvent():
                text = f"{inline(event.rule)}: {inline(event.decision)}. {inline(event.reason or '')}"
                self.mark("Safety.", text)
            case APIErrorEvent():
                wait = "" if event.wait_s is None else f" Tried again after {event.wait_s:.1f} s."
                who = self.name(event.agent_id)
                self.mark("Error", f"asking {who}: {inline(event.error)}, {inline(event.message)}.{wait}")
            case RateLimitEvent() if event.reason == "refused":
                wait = "" if event.wait_s is None else f", {event.wait_s:.1f} s"
                self.mark("Rate limit", f"for {self.name(event.agent_id)}{wait}.")
            case ConversationPausedEvent():
                self.mark("Paused", f"by {inline(event.by)}, {when(event.timestamp)}.")
            case ConversationResumedEvent():
                self.mark("Resumed", f"by {inline(event.by)}, {when(event.timestamp)}.")
            case WarningEvent():
                self.mark("Warning.", f"{inline(event.what)}: {inline(event.reason)}")
            case ErrorEvent():
                self.mark("Fault", f"in {inline(event.where)}: {inline(event.error)}, {inline(event.message)}")
            case _:
                return

    def _end(self) -> None:
        end = next((event for event in reversed(self.own) if isinstance(event, ConversationEndEvent)), None)
        self.put("## End")
        if end is None:
            self.put("The record does not say that it has ended.")
            return
        why = inline(end.end_reason.value.replace("_", " "))
        at = f", {when(end.timestamp)}" if self.is_dated else ""
        self.put(f"Status {inline(end.status.value)}, because of: {why}{at}.")
        if end.error:
            self.put(quoted(prose(end.error)))
        if end.invalid:
            self.put(f"**Invalid**, left out of statistics: {inline(', '.join(end.invalid))}.")
        if end.notable:
            told = ", ".join(f"{kind} {count}" for kind, count in end.notable.items())
            self.put(f"Notable, kept in statistics: {inline(told)}.")

    def _tables(self) -> None:
        own = [event for event in self.own if isinstance(event, MessageCompleteEvent)]
        self.put("## Messages", "Those of its own." if self.shared else "")
        if not own:
            self.parts[-1] = "None of its own." if self.shared else "None."
        else:
            self.parts = [part for part in self.parts if part]
            self.put(table(_MESSAGE_HEAD, (self._row(event) for event in own), left=3))
        usage = [event for event in self.own if isinstance(event, TokenUsageEvent)]
        if usage:
            head = ("agent", "for", "replies", "prompt", "completion", "thinking", "cost USD")
            self.put("## Tokens and cost", table(head, _by_agent(usage), left=2))
            if any(event.estimated for event in usage):
                self.put("Some of these counts are estimates, because the provider reported none.")

    def _row(self, event: MessageCompleteEvent) -> tuple[object, ...]:
        usage, timing = event.usage, event.timing
        return (
            event.message_index,
            event.turn_number,
            self.name(event.agent_id),
            len(event.message.content),
            _number(usage.prompt_tokens),
            _number(usage.completion_tokens),
            _number(usage.thinking_tokens),
            _number(event.cost, ".6f"),
            _number(timing.queued_ms),
            _number(timing.ttft_ms),
            _number(timing.duration_ms),
            _number(timing.tokens_per_s, ",.1f"),
            event.finish_reason.value,
            event.attempt if self.tells_attempts else None,
        )


_MESSAGE_HEAD = (
    "message",
    "turn",
    "speaker",
    "characters",
    "prompt tokens",
    "completion tokens",
    "of these thinking",
    "cost USD",
    "queued ms",
    "first token ms",
    "duration ms",
    "tokens/s",
    "finish",
    "attempt",
)


def _total(values: Iterable[float | None], form: str = ",.0f") -> str:
    """A sum; unknown as soon as one part is."""
    found = list(values)
    return "not known" if None in found else format(sum(value or 0 for value in found), form)


def _by_agent(usage: Sequence[TokenUsageEvent]) -> Iterator[tuple[object, ...]]:
    groups: dict[tuple[str, str], list[TokenUsageEvent]] = {}
    for event in usage:
        groups.setdefault((event.agent_id, event.purpose), []).append(event)
    for (agent_id, purpose), events in [*sorted(groups.items()), (("all", ""), list(usage))]:
        thinking = [event.thinking_tokens for event in events if event.thinking_tokens is not None]
        yield (
            agent_id,
            purpose,
            len(events),
            _total(event.prompt_tokens for event in events),
            _total(event.completion_tokens for event in events),
            f"{sum(thinking):,}" if thinking else None,
            _total((event.cost for event in events), ".6f"),
        )


def transcript(root: OutputRoot, record: Record, lineage: Lineage) -> str:
    """A conversation as Markdown: settings, what was said, thought and put in, and a table of every message."""
    whole, missing = lineage(root, record.events)
    shared = whole[: len(whole) - len(record.events)]
    return _Transcript(shared, record.events).write(record.skipped, missing)


def summary(folder: ExperimentFolder, manifest: Manifest) -> str:
    """`summary.md`: one row per conversation, with a link to its transcript."""
    parts = [f"# Conversations of {inline(manifest.name or manifest.experiment_id)}"]
    rows = []
    damaged = []
    for conversation_id, entry in manifest.conversations.items():
        log = folder.log(conversation_id)
        begun = log.is_file()
        link = f"[{conversation_id}](conv_{conversation_id}.md)" if begun else conversation_id
        record = read_record(log) if begun else None
        ends = [event for event in record.events if isinstance(event, ConversationEndEvent)] if record else []
        notable = ends[-1].notable if ends else {}
        if record is not None and record.skipped:
            damaged.append(f"{conversation_id}: {len(record.skipped)} lines could not be read")
        rows.append(
            (
                Markdown(link),
                entry.arm or None,
                entry.status.value,
                entry.end_reason.value.replace("_", " ") if entry.end_reason is not None else None,
                ", ".join(ends[-1].invalid) if ends else None,
                ", ".join(f"{kind} {number}" for kind, number in notable.items()),
                entry.turns,
                f"{entry.messages:,}",
                _number(entry.tokens),
                _number(entry.cost_usd, ".6f"),
            )
        )
    head = (
        "conversation",
        "arm",
        "status",
        "ended by",
        "invalid",
        "notable",
        "turns",
        "messages",
        "tokens",
        "cost USD",
    )
    parts.append(table(head, rows, left=6) if rows else "There are none yet.")
    totals = manifest.totals
    tokens = "not known" if totals.tokens is None else f"{totals.tokens:,}"
    held = [count(totals.conversations, "conversation"), count(totals.turns, "turn"), count(totals.messages, "message")]
    parts.append(
        f"In all {', '.join(held)}; {totals.completed:,} complete, {totals.failed:,} failed; {tokens} tokens, "
        f"cost {money(totals.cost_usd)}. An empty cell: not reported."
    )
    parts += [f"- {inline(line)}" for line in damaged]
    return "\n\n".join(parts) + "\n"
