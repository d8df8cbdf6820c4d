"""What the events say about a conversation: the one source of its status."""

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    MessageCompleteEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
)
from pidgin_cli.core.types import EndReason, Status

__all__ = ["RunState", "advance", "run_state"]


class RunState(Struct, frozen=True):
    """A conversation as its log tells it. A dead runner shows as `running`: see `experiments.registry`."""

    status: Status = Status.CREATED
    arm: str = ""
    repetition: int = 0
    turns: int = 0
    """Complete turns of its own; a branch does not count those that it shares, as with messages."""
    messages: int = 0
    tokens: int | None = 0
    """Prompt and completion tokens; None as soon as one reply did not report them."""
    cost_usd: float | None = None
    last_seq: int = -1
    end_reason: EndReason | None = None
    convergence: float | None = None
    error: str | None = None
    """The last error of a provider, or what ended the conversation."""
    updated_at: datetime | None = None


def advance(state: RunState, event: Event) -> RunState:
    """The state after one more event. Pure."""
    match event:
        case MessageCompleteEvent():
            return replace(state, messages=state.messages + 1, last_seq=event.seq, updated_at=event.timestamp)
        case TokenUsageEvent():
            return replace(
                state,
                tokens=event.total_tokens,
                cost_usd=event.total_cost,
                last_seq=event.seq,
                updated_at=event.timestamp,
            )
        case TurnCompleteEvent():
            return replace(
                state,
                turns=state.turns + 1,
                convergence=event.convergence,
                last_seq=event.seq,
                updated_at=event.timestamp,
            )
        case ConversationStartEvent():
            state = replace(state, status=Status.RUNNING, arm=event.arm, repetition=event.repetition)
        case ConversationPausedEvent():
            state = replace(state, status=Status.PAUSED)
        case ConversationResumedEvent():
            state = replace(state, status=Status.RUNNING, end_reason=None, error=None)
        case ConversationEndEvent():
            state = replace(state, status=event.status, end_reason=event.end_reason, error=event.error)
        case APIErrorEvent():
            state = replace(state, error=f"{event.error}: {event.message}")
    return replace(state, last_seq=event.seq, updated_at=event.timestamp)


def run_state(events: Iterable[Event], start: RunState | None = None) -> RunState:
    """The fold of `advance` over `events`."""
    state = start or RunState()
    for event in events:
        state = advance(state, event)
    return state
