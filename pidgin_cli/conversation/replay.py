"""Whether today's code would send what a record says was sent, and whether a record contradicts itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    MessageRequestEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import Agent
from pidgin_cli.spec.conversation import ConversationSpec

from .conductor import as_taken, speaking_order
from .progress import Progress

__all__ = ["Difference", "Parameters", "Rebuilt", "rebuild_requests"]

Parameters = Callable[[Agent, dict[str, Any]], dict[str, Any] | None]
"""What an agent would be asked with besides the text, given what is recorded; None: cannot be told here."""


class Difference(NamedTuple):
    """Something that would be sent otherwise than the record says."""

    turn_number: int
    """0: of the conversation as a whole."""
    message_index: int | None
    """None: about the turn as a whole."""
    agent_id: str | None
    field: str
    """`text` (by its digest), `view.from`, `view.to`, …, `placeholders`, `parameters.<name>` or `speakers`. In turn 0:
    what the first line tells beside the spec, such as `opening` or `agents.a.model`."""
    recorded: Any
    rebuilt: Any


class Rebuilt(NamedTuple):
    """What became of the attempt to rebuild every recorded request."""

    requests: int
    """Rebuilt and compared."""
    differences: list[Difference]
    unchecked: int
    """Recorded requests that could not be rebuilt."""
    why: str | None
    """Why not."""
    parameters_unknown: list[str]
    """Agents whose parameters could not be compared."""


def rebuild_requests(
    spec: ConversationSpec, prefix: Sequence[Event], events: Iterable[Event], parameters: Parameters
) -> Rebuilt:
    """Rebuild every recorded request from what stands before it in the record, and compare.

    Stops where the record itself is not whole: what was sent after a gap cannot be rebuilt.

    Args:
        prefix: of a branch, what it shares.
    """
    events = list(events)
    progress = Progress(spec)
    found: list[Difference] = []
    unknown: dict[str, None] = {}
    requests = 0
    try:
        if prefix:
            progress.share(prefix)
        for event in events:
            if isinstance(event, MessageRequestEvent):
                _in_place(progress, event)
                found += _compare(progress, event)
                agent, _ = as_taken(spec, progress.agents[event.agent_id])
                sent = parameters(agent, event.parameters)
                if sent is None:
                    unknown[event.agent_id] = None
                else:
                    found += _fields(event, "parameters", event.parameters, sent)
                requests += 1
            elif isinstance(event, ConversationStartEvent):
                found += _told_at_the_start(spec, progress.opening, event)
            elif isinstance(event, TurnStartEvent):
                speakers = speaking_order(spec, event.turn_number, progress.triggers.silent(event.turn_number))
                if speakers != event.speakers:
                    found.append(
                        Difference(event.turn_number, None, None, "speakers", list(event.speakers), list(speakers))
                    )
            if not isinstance(event, ConversationEndEvent):
                progress.advance(event)
    except (LogError, KeyError, IndexError) as error:
        why = str(error) if isinstance(error, LogError) else f"the record names what it does not hold: {error}"
        left = sum(isinstance(event, MessageRequestEvent) for event in events) - requests
        return Rebuilt(requests, found, left, why, list(unknown))
    return Rebuilt(requests, found, 0, None, list(unknown))


def _told_at_the_start(spec: ConversationSpec, opening: str, event: ConversationStartEvent) -> list[Difference]:
    """What the first line says in fields of its own, which are what people and the database read, against the spec."""
    recorded, rebuilt = (
        {
            "opening": words,
            "prompt_tag": told.prompt_tag,
            "seed": told.seed,
            "arm": told.arm,
            "repetition": told.repetition,
            "agents": {agent.id: msgspec.to_builtins(agent) for agent in told.agents},
        }
        for told, words in ((event, event.opening), (spec, opening))
    )
    return [Difference(0, None, None, *each) for each in _apart("", recorded, rebuilt)]


def _in_place(progress: Progress, event: MessageRequestEvent) -> None:
    if event.message_index != progress.history.messages or event.turn_number != progress.turn:
        raise LogError(
            f"the record has a gap before message {event.message_index} (turn {event.turn_number}): what was sent from "
            f"there on cannot be rebuilt"
        )


def _compare(progress: Progress, event: MessageRequestEvent) -> list[Difference]:
    sent = progress.views[event.agent_id].sent()
    found = _fields(event, "view", msgspec.to_builtins(event.view), msgspec.to_builtins(sent.view))
    place = (event.turn_number, event.message_index, event.agent_id)
    if sent.digest != event.digest:
        found.append(Difference(*place, "text", event.digest, sent.digest))
    if sent.placeholders != event.placeholders:
        found.append(Difference(*place, "placeholders", event.placeholders, sent.placeholders))
    return found


def _fields(event: MessageRequestEvent, name: str, recorded: Any, rebuilt: Any) -> list[Difference]:
    place = (event.turn_number, event.message_index, event.agent_id)
    return [Difference(*place, *each) for each in _apart(name, recorded, rebuilt)]


def _apart(name: str, recorded: Any, rebuilt: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ, by dotted names, each with both."""
    if isinstance(recorded, dict) and isinstance(rebuilt, dict):
        for key in dict.fromkeys((*recorded, *rebuilt)):
            yield from _apart(f"{name}.{key}" if name else key, recorded.get(key), rebuilt.get(key))
    elif recorded != rebuilt:
        yield name, recorded, rebuilt
