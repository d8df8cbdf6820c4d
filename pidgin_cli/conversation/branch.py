"""What a branch shares with the conversation it leaves, and in what it differs from it."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pidgin_cli.core.events import (
    AgentNamedEvent,
    ContextTruncationEvent,
    ConversationStartEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ThinkingCompleteEvent,
    ToolCallEvent,
    ToolResultEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.spec.conversation import spec_hash

__all__ = ["SHARED", "differences", "prefix_digest", "up_to_turn"]

SHARED: tuple[type[Event], ...] = (
    ConversationStartEvent,
    AgentNamedEvent,
    TurnStartEvent,
    InterventionEvent,
    MessageRequestEvent,
    ContextTruncationEvent,
    HistoryCompactedEvent,
    ThinkingCompleteEvent,
    MessageCompleteEvent,
    MessageAbandonedEvent,
    ToolCallEvent,
    ToolResultEvent,
    TurnCompleteEvent,
)
"""Events of a conversation that decide what its branches show their agents."""


def up_to_turn(events: Iterable[Event], turn: int) -> list[Event] | None:
    """The events that a branch at the end of `turn` shares; None when the conversation has not got that far.

    Turn 0 is what stands before the first turn: the opening, the names, and what was given with it.
    """
    found: list[Event] = []
    for event in events:
        if turn == 0 and isinstance(event, TurnStartEvent):
            return found
        if isinstance(event, SHARED):
            found.append(event)
        if isinstance(event, TurnCompleteEvent) and event.turn_number == turn:
            return found
    return None


def prefix_digest(prefix: Sequence[Event]) -> str:
    """A digest of all that was said, put in or left out in a prefix; times, costs and settings do not count."""
    facts: list[list[Any]] = []
    for event in prefix:
        match event:
            case ConversationStartEvent() if not facts:
                facts.append(["opening", event.opening])
            case AgentNamedEvent():
                facts.append(["name", event.agent_id, event.name])
            case InterventionEvent(kind="edit"):
                facts.append(["edit", event.edited_index, event.after])
            case InterventionEvent(kind="inject"):
                facts.append(["inject", event.turn_number, list(event.audience), event.text, event.placement])
            case ContextTruncationEvent():
                facts.append(["left out", event.agent_id, event.view.start])
            case HistoryCompactedEvent():
                facts.append(["summary", event.agent_id, event.view.start, event.summary])
            case ThinkingCompleteEvent():
                facts.append(["thought", event.agent_id, event.content, event.signature])
            case MessageCompleteEvent():
                facts.append(["message", event.message_index, event.turn_number, event.agent_id, event.message.content])
            case ToolCallEvent():
                facts.append(["call", event.agent_id, event.call_id, event.name, event.arguments])
            case ToolResultEvent():
                facts.append(["result", event.agent_id, event.call_id, event.content, event.is_error])
    return spec_hash(facts)


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which two conversation specs (as JSON) differ, by dotted name, each with both values.

    Agents go by their ids: `agents.a.settings.temperature`. What merely says which draw of which experiment it is
    (origin, arm, repetition, …) is left out.
    """
    flat = [_flat(spec) for spec in (one, other)]
    names = dict.fromkeys((*flat[0], *flat[1]))
    return {name: (flat[0].get(name), flat[1].get(name)) for name in names if flat[0].get(name) != flat[1].get(name)}


_BOOKKEEPING = ("origin", "arm", "variables", "seating", "repetition")


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                take(f"{name}.{key}", inner)
        else:
            found[name] = value

    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))  # as a record holds it
    for name, value in plain.items():
        if name == "agents":
            for agent in value:
                take(f"agents.{agent['id']}", {key: inner for key, inner in agent.items() if key != "id"})
        elif name not in _BOOKKEEPING:
            take(name, value)
    return found
