"""Where two conversations part, and what each says from there on."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pidgin_cli.core.events import (
    AgentNamedEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    MessageCompleteEvent,
)

__all__ = ["Row", "Said", "parting", "rows"]


class Said(NamedTuple):
    """Something that stands in a conversation."""

    kind: Literal["opening", "name", "intervention", "message", "end"]
    who: str
    """An agent's id, or who put it in; of the end: the status."""
    text: str


class Row(NamedTuple):
    """The same place in two conversations."""

    turn_number: int
    message_index: int | None
    """None: the opening, or the end."""
    one: tuple[Said, ...]
    other: tuple[Said, ...]

    @property
    def same(self) -> bool:
        return self.one == self.other


_Place = tuple[int, int]
"""Orders the places of a conversation: 0 opening, 1 messages by index, 2 end."""


def rows(one: Iterable[Event], other: Iterable[Event]) -> list[Row]:
    """Both conversations place by place: opening, every message with what was put in before it, end.

    Args:
        one: the events of a conversation, those that it shares with others included.
    """
    told = [_places(events) for events in (one, other)]
    found = []
    for place in sorted(told[0].keys() | told[1].keys()):
        (turn, mine), (turn_there, theirs) = (side.get(place, (0, [])) for side in told)
        index = place[1] if place[0] == 1 else None
        found.append(Row(turn or turn_there, index, tuple(mine), tuple(theirs)))
    return found


def parting(found: Sequence[Row]) -> int | None:
    """The place in `found` of the first row in which the two differ; None: they never do."""
    return next((number for number, row in enumerate(found) if not row.same), None)


def _places(events: Iterable[Event]) -> dict[_Place, tuple[int, list[Said]]]:
    found: dict[_Place, tuple[int, list[Said]]] = {}
    opened = False

    def add(place: _Place, turn: int, said: Said) -> None:
        before = found.get(place)
        found[place] = (turn, [*before[1], said] if before is not None else [said])

    for event in events:
        match event:
            case ConversationStartEvent() if not opened:
                opened = True
                add((0, 0), 0, Said("opening", "", event.opening))
            case AgentNamedEvent():
                add((0, 0), 0, Said("name", event.agent_id, event.name))
            case InterventionEvent():
                place = (1, event.message_index) if event.turn_number else (0, 0)
                add(place, event.turn_number, Said("intervention", event.source, _done(event)))
            case MessageCompleteEvent():
                text = event.message.content
                add((1, event.message_index), event.turn_number, Said("message", event.agent_id, text))
            case ConversationEndEvent():
                found[2, 0] = (0, [Said("end", event.status.value, event.end_reason.value.replace("_", " "))])
    return found


def _done(event: InterventionEvent) -> str:
    whom = ", ".join(event.audience)
    match event.kind:
        case "inject":
            where = "" if event.placement in ("", "user") else f" ({event.placement})"
            return f"to {whom}{where}: {event.text or ''}"
        case "edit":
            return f"message {event.edited_index} of {event.agent_id} now reads: {event.after or ''}"
        case "mute":
            turns = event.turns or 1
            return f"{event.agent_id} is silent for {turns} turn{'' if turns == 1 else 's'}"
        case "swap_model":
            return f"{event.agent_id} is {event.after} now, no longer {event.before}"
        case "swap_system_prompt":
            return f"{event.agent_id} has another system prompt: {event.after or 'none'}"
