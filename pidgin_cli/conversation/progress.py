"""Where a conversation stands: a fold over its events.

The conductor advances it with every event it publishes; a resume advances it with every event of the log. There is no
other way to change it, so a resumed conversation cannot differ from one that was never interrupted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    AttractorEvent,
    ContextTruncationEvent,
    ConvergenceWarningEvent,
    ConversationBranchedEvent,
    ConversationEndEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    ToolCallEvent,
    ToolResultEvent,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
    WarningEvent,
)
from pidgin_cli.core.types import EndReason, FinishReason, Role, ThinkingBlock, ToolCall, ToolResult, Usage
from pidgin_cli.spec.catalogue import same_model
from pidgin_cli.spec.conversation import ConversationSpec

from .branch import SHARED, prefix_digest
from .history import ConversationHistory, ConversationState, ConversationTurn, ConversationView
from .triggers import Triggers

__all__ = ["SCRIPT", "Progress"]

NAME_NOTICE = "Your name in this conversation is {name}."
SCRIPT = "script"
"""The source of what a spec's `interventions` do."""
_TOKENS_PER_BYTE = 0.25
"""Before a model has counted anything."""
_CALIBRATE_FROM_BYTES = 400
"""Shorter requests say little about tokens per byte: templates and tags outweigh the text."""


class _Asked(NamedTuple):
    agent_id: str
    turn_number: int
    message_index: int
    size: int


class Progress:
    """The state of one conversation, as its events tell it."""

    def __init__(self, spec: ConversationSpec) -> None:
        self.spec = spec
        self.agents = {agent.id: agent for agent in spec.agents}
        """As they are now: interventions swap models and system prompts."""
        self.history = ConversationHistory()
        self.names = {agent.id: agent.name for agent in spec.agents}
        self.views = {agent.id: ConversationView(agent, spec, self.history, self.names) for agent in spec.agents}
        self.started = False
        self.prompted: set[str] = set()
        """Agents whose system prompt is recorded."""
        self.shared: str | None = None
        """Digest of what a branch shares with its origin."""
        self.shared_turns = self.shared_messages = 0
        self.opening = spec.opening
        """Of a branch, that of the conversation it leaves, whatever its own spec says."""
        self.branched = False
        """That the conversation is a branch is recorded, beyond its first line."""
        self.warned: set[tuple[str | None, str]] = set()
        """Agents and settings that a warning is recorded about."""
        self.named: set[str] = set()
        self.injected: Counter[tuple[int, str, str]] = Counter()
        """How many texts have been put in, by turn, agent and source."""
        self.scripted: Counter[int] = Counter()
        """How many interventions of the script are recorded, by turn."""
        self.triggers = Triggers(spec.interventions)
        self.turn = 0
        self.turns_complete = 0
        self.speakers: tuple[str, ...] = ()
        self.spoken: list[str] = []
        """Who has spoken in the open turn."""
        self.turn_open = False
        self.asked: _Asked | None = None
        """A request without its reply."""
        self.in_flight = False
        """An attempt at it may be under way."""
        self.last_message: MessageCompleteEvent | None = None
        self.uncounted: MessageCompleteEvent | None = None
        """A message whose usage event is still to come."""
        self.total_tokens: int | None = 0
        self.prompt_tokens: int | None = 0
        self.completion_tokens: int | None = 0
        self.cost: float | None = 0.0
        self.tokens_per_byte = {agent.id: _TOKENS_PER_BYTE for agent in spec.agents}
        self.wrong_model = False
        self.notable: dict[str, int] = {}
        self.ended: ConversationEndEvent | None = None
        self.alarms: set[tuple[int, str]] = set()
        """Detectors that fired, with the message at which they did."""
        self.convergence: float | None = None
        """After the last whole turn; `convergence_before`: after the one before it."""
        self.convergence_before: float | None = None
        self.warned_turn = 0
        """The last turn whose convergence was warned of."""
        self.ending: EndReason | None = None
        """A detector or a score ends the conversation."""
        self._thinking: list[ThinkingBlock] = []
        self._first_seen: dict[tuple[str, str], str] = {}
        """By agent: the model and the fingerprint that served its first message."""

    def replay(self, events: Iterable[Event]) -> None:
        """Take a record into account.

        Raises:
            LogError: something is missing from it, so that what was said or sent cannot be told.
        """
        for event in events:
            match event:
                case ConversationStartEvent() if not self.started:
                    if self.shared is not None and (event.branch_of or {}).get("digest") != self.shared:
                        origin = (event.branch_of or {}).get("conversation_id")
                        raise LogError(
                            f"the record of {origin}, which this conversation branches off, is not what it was: the "
                            f"branch can be read, but it cannot go on"
                        )
                case _ if not self.started:
                    raise LogError(
                        "the record does not begin with the start of the conversation: it can be read, but the "
                        "conversation cannot go on from it"
                    )
                case MessageRequestEvent() if event.message_index != self.history.messages or not self._in_turn(event):
                    raise _gap(self.history.messages, self.turn)
                case InterventionEvent() if event.turn_number and not (
                    self._in_turn(event) or self._before_turn(event)
                ):
                    raise _gap(self.history.messages, self.turn)
                case MessageRequestEvent() if self.views[event.agent_id].digest() != event.digest:
                    raise LogError(
                        f"the record does not show what agent {event.agent_id} was sent before message "
                        f"{event.message_index} (turn {event.turn_number}), since lines of it are missing or were "
                        f"changed: it can be read, but the conversation cannot go on from it"
                    )
                case TokenUsageEvent(purpose="message") if self.uncounted is None:
                    raise _gap(self.history.messages, self.turn)
                case TurnCompleteEvent() if not self.everyone_spoke():
                    raise _gap(self.history.messages, self.turn)
            self.advance(event)

    def share(self, prefix: Sequence[Event]) -> None:
        """Begin as a branch: take in what another conversation said before the two part, but none of its sums.

        Agents have the models and system prompts that the branch's own spec names.

        Raises:
            LogError: an agent of that conversation has no seat in this one, or something is missing from the prefix.
        """
        self.shared = prefix_digest(prefix)
        seated = self.agents.keys()
        for agent in self.spec.agents:
            self._prompt(agent.id, agent.system_prompt)
        opened = False
        for event in prefix:
            match event:
                case ConversationStartEvent():
                    if missing := [agent.id for agent in event.agents if agent.id not in seated]:
                        raise LogError(f"agent {missing[0]} of {event.conversation_id} has no seat in its branch")
                    if not opened:
                        self.opening = event.opening
                        self._outside(event.opening, 0, None)
                    opened = True
                case InterventionEvent(kind="mute" | "swap_model" | "swap_system_prompt"):
                    self.triggers.shared(event)
                case MessageCompleteEvent():
                    self._message(event)
                case TurnStartEvent():
                    self._begin_turn(event)
                case _ if isinstance(event, SHARED):
                    if isinstance(event, InterventionEvent):
                        self.triggers.shared(event)
                    self.advance(event)
        self.uncounted = self.last_message = None
        self.asked, self.in_flight = None, False
        self.notable, self.wrong_model, self._first_seen = {}, False, {}
        self.injected.clear()
        self.scripted.clear()
        self.shared_turns, self.shared_messages = self.turns_complete, self.history.messages

    def _in_turn(self, event: MessageRequestEvent | InterventionEvent) -> bool:
        return self.turn_open and event.turn_number == self.turn

    def _before_turn(self, event: InterventionEvent) -> bool:
        """Said between two turns, just before the conversation was stopped."""
        by_script = event.source == SCRIPT or event.source.startswith("awareness:")
        return not by_script and not self.turn_open and event.turn_number == self.turn + 1

    def advance(self, event: Event) -> None:
        """Take one more event into account."""
        match event:
            case MessageRequestEvent():
                size = self.views[event.agent_id].size()
                self.asked = _Asked(event.agent_id, event.turn_number, event.message_index, size)
                self.in_flight = True
            case MessageCompleteEvent():
                self._message(event)
            case TokenUsageEvent():
                self._usage(event)
            case TurnStartEvent():
                self._begin_turn(event)
                self.triggers.begin(event.turn_number)
            case TurnCompleteEvent():
                self.triggers.end(event)
                self.turns_complete, self.turn_open = event.turn_number, False
                self.convergence_before, self.convergence = self.convergence, event.convergence
            case AttractorEvent():
                self.alarms.add((event.message_index, event.detector))
                self.triggers.found(event)
                if event.action == "mark":
                    mark = f"attractor:{event.detector}"
                    self.notable[mark] = self.notable.get(mark, 0) + 1
                elif event.action == "stop":
                    self.ending = EndReason.DETECTOR
            case ConvergenceWarningEvent():
                self.warned_turn = event.turn_number
                if event.action == "stop":
                    self.ending = EndReason.CONVERGENCE
            case ThinkingCompleteEvent():
                self._thinking.append(ThinkingBlock(event.content, event.signature, event.redacted))
            case ConversationStartEvent():
                self.started = True
                if self.shared is None:
                    self._outside(event.opening, 0, None)
            case SystemPromptEvent():
                self.prompted.add(event.agent_id)
                if self.shared is None:
                    self._prompt(event.agent_id, event.text)
            case ConversationBranchedEvent():
                self.branched = True
            case WarningEvent():
                self.warned.add((event.agent_id, event.what))
            case AgentNamedEvent():
                self.named.add(event.agent_id)
                self.names[event.agent_id] = event.name
                self._outside(NAME_NOTICE.format(name=event.name), 0, (event.agent_id,))
            case InterventionEvent():
                self._intervention(event)
            case ContextTruncationEvent() | HistoryCompactedEvent():
                self._compact(event)
            case ToolCallEvent():
                call = ToolCall(event.call_id, event.name, event.arguments)
                self.history.append(
                    ConversationTurn(
                        role=Role.ASSISTANT,
                        content="",
                        turn_number=event.turn_number,
                        agent_id=event.agent_id,
                        tool_call=call,
                    )
                )
            case ToolResultEvent():
                result = ToolResult(event.call_id, event.content, event.is_error)
                self.history.append(
                    ConversationTurn(
                        role=Role.TOOL,
                        content=event.content,
                        turn_number=event.turn_number,
                        agent_id=event.agent_id,
                        tool_result=result,
                    )
                )
            case MessageAbandonedEvent():
                self._thinking = []
                self.in_flight = False
            case RateLimitEvent(reason="limit"):
                pass  # it may have been sent since
            case RateLimitEvent() | APIErrorEvent():
                self.in_flight = event.wait_s is not None
            case ConversationEndEvent():
                self.ended = event
                self.asked = None
            case ConversationResumedEvent():
                self.ended = None

    def _outside(self, text: str, turn_number: int, audience: tuple[str, ...] | None, placement: str = "user") -> None:
        self.history.append(
            ConversationTurn(
                role=Role.USER, content=text, turn_number=turn_number, audience=audience, placement=placement
            )
        )

    def _prompt(self, agent_id: str, text: str | None) -> None:
        if text is not None:
            self.history.append(ConversationTurn(role=Role.SYSTEM, content=text, turn_number=0, audience=(agent_id,)))

    def _begin_turn(self, event: TurnStartEvent) -> None:
        self.turn, self.speakers, self.spoken, self.turn_open = event.turn_number, event.speakers, [], True

    def _intervention(self, event: InterventionEvent) -> None:
        if event.source == SCRIPT:
            self.scripted[event.turn_number] += 1
        agent_id = event.agent_id or ""
        match event.kind:
            case "inject":
                self._outside(event.text or "", event.turn_number, event.audience, event.placement or "user")
                for addressee in event.audience:
                    self.injected[event.turn_number, addressee, event.source] += 1
                    if event.placement == "parameter" and event.turn_number:
                        self.views[addressee].reread()
            case "edit" if event.edited_index is not None:
                self.history.edit(event.edited_index, event.after or "")
                for view in self.views.values():
                    view.reread()
            case "swap_model" if event.after is not None:
                self._swap(agent_id, model=event.after)
                self.tokens_per_byte[agent_id] = _TOKENS_PER_BYTE
                self._first_seen = {mark: value for mark, value in self._first_seen.items() if mark[0] != agent_id}
            case "swap_system_prompt":
                self._swap(agent_id, system_prompt=event.after)

    def _swap(self, agent_id: str, **changes: str | None) -> None:
        agent = self.agents[agent_id] = replace(self.agents[agent_id], **changes)
        self.views[agent_id].swap(agent)

    def _message(self, event: MessageCompleteEvent) -> None:
        if event.message_index != self.history.messages or event.turn_number != self.turn:
            raise _gap(event.message_index, event.turn_number)
        asked, self.asked = self.asked, None
        prompt_tokens = event.usage.prompt_tokens
        still_its_model = event.model_requested == self.agents[event.agent_id].model
        if asked is not None and prompt_tokens is not None and still_its_model and asked.size >= _CALIBRATE_FROM_BYTES:
            self.tokens_per_byte[event.agent_id] = min(2.0, max(0.05, prompt_tokens / asked.size))
        self.history.append(
            ConversationTurn(
                role=Role.ASSISTANT,
                content=event.message.content,
                turn_number=event.turn_number,
                agent_id=event.agent_id,
                message_index=event.message_index,
                model=event.model_requested if self._thinking else None,
                thinking=tuple(self._thinking),
            )
        )
        self._thinking = []
        self.spoken.append(event.agent_id)
        self.triggers.said(event)
        self.uncounted = self.last_message = event
        for mark in _notable(event):
            self.notable[mark] = self.notable.get(mark, 0) + 1
        if not same_model(event.model_requested, event.model_served):
            self.wrong_model = True
        for mark, value in (("served_model", event.model_served), ("fingerprint", event.fingerprint)):
            if value is not None and self._first_seen.setdefault((event.agent_id, mark), value) != value:
                self.notable[mark] = self.notable.get(mark, 0) + 1

    def _usage(self, event: TokenUsageEvent) -> None:
        if event.purpose == "message":
            self.uncounted = None
        self.total_tokens = event.total_tokens
        self.cost = event.total_cost
        self.prompt_tokens = _plus(self.prompt_tokens, event.prompt_tokens)
        self.completion_tokens = _plus(self.completion_tokens, event.completion_tokens)

    def _compact(self, event: ContextTruncationEvent | HistoryCompactedEvent) -> None:
        view = self.views[event.agent_id]
        summary = event.summary if isinstance(event, HistoryCompactedEvent) else view.state.summary
        view.compact(
            ConversationState(
                first_turn=self.history.turn_of(event.view.start),
                first_message=event.view.start,
                summary=summary,
                pinned=view.state.pinned,
            )
        )

    def usage_event(self, event: MessageCompleteEvent) -> TokenUsageEvent:
        """The usage event that belongs to a message."""
        usage = self.count(event.agent_id, event.model_requested, event.usage, event.cost, "message")
        return replace(usage, cached=True) if event.cached else usage

    def count(self, agent_id: str, model_id: str, usage: Usage, cost: float | None, purpose: str) -> TokenUsageEvent:
        """A usage event with running totals after it."""
        return TokenUsageEvent(
            agent_id=agent_id,
            provider=model_id.partition(":")[0],
            model=model_id.partition(":")[2],
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            thinking_tokens=usage.thinking_tokens,
            cached_tokens=usage.cached_tokens,
            estimated=usage.estimated,
            cost=cost,
            purpose=purpose,  # type: ignore[arg-type]
            total_tokens=_plus(_plus(self.total_tokens, usage.prompt_tokens), usage.completion_tokens),
            total_cost=None if cost is None or self.cost is None else round(self.cost + cost, 12),
        )

    def totals(self) -> Totals:
        return Totals(
            turns=self.turns_complete - self.shared_turns,
            messages=self.history.messages - self.shared_messages,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost_usd=self.cost,
        )

    def everyone_spoke(self) -> bool:
        return self.turn_open and len(self.spoken) == len(self.speakers)


def _gap(message_index: int, turn_number: int) -> LogError:
    return LogError(
        f"the record has a gap before message {message_index} (turn {turn_number}): it can be read, but the "
        f"conversation cannot go on from it"
    )


def _plus(total: int | None, more: int | None) -> int | None:
    """None as soon as one part is not known: a partial sum is no total."""
    return None if total is None or more is None else total + more


def _notable(event: MessageCompleteEvent) -> list[str]:
    marks = []
    if not event.message.content.strip():
        marks.append("empty")
    if event.finish_reason is FinishReason.REFUSAL:
        marks.append("refused")
    elif event.finish_reason is FinishReason.CONTENT_FILTER:
        marks.append("filtered")
    elif event.finish_reason is FinishReason.LENGTH:
        marks.append("truncated")
    if event.message.text_replaced:
        marks.append("text_replaced")
    return marks
