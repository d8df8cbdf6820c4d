"""Where branches come from: what they share with other conversations, and the tree they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from pidgin_cli.conversation.branch import prefix_digest, up_to_turn
from pidgin_cli.conversation.progress import SCRIPT, Progress
from pidgin_cli.core.errors import LogError, NotFound
from pidgin_cli.core.events import (
    ConversationEndEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    TurnCompleteEvent,
)
from pidgin_cli.core.types import Agent, Status
from pidgin_cli.eventlog.codec import decode
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import Record, read_record
from pidgin_cli.spec.conversation import ConversationSpec, Origin
from pidgin_cli.spec.errors import Fault
from pidgin_cli.spec.experiment import ExperimentSpec, too_late

__all__ = [
    "Branch",
    "Fork",
    "branches",
    "fork",
    "log_of",
    "origin_of",
    "prefix",
    "shared_by",
    "twin_fork",
    "unfit",
    "whole",
]


def log_of(root: OutputRoot, conversation_id: str) -> Path:
    """The log of a conversation. Raises NotFound where there is none."""
    try:
        log = root.find(conversation_id).log(conversation_id)
    except NotFound:
        raise NotFound(f"there is no conversation {conversation_id} in {root.experiments}") from None
    if not log.is_file():
        raise NotFound(f"there is no conversation {conversation_id} that has begun")
    return log


class Fork(NamedTuple):
    """A point at which a conversation can be left."""

    spec: ConversationSpec
    """Of the conversation that is left."""
    agents: dict[str, Agent]
    """As they are at that point: they may have chosen names, or a script swapped models and system prompts."""
    events: list[Event]
    """What is shared from there on, from the first opening on, through all ancestors."""


def prefix(root: OutputRoot, origin: Origin) -> list[Event]:
    """What a branch shares with the conversation it leaves, from the first opening on, through all its ancestors.

    Whether that is still what it was when the branch began is told by the digest in the branch's own first line, which
    the conductor compares.

    Raises:
        NotFound: there is no such conversation, or it has not got as far as that turn.
        LogError: its record is damaged before the end of that turn.
    """
    return fork(root, origin).events


def shared_by(root: OutputRoot, log: Path) -> list[Event]:
    """What the conversation of a log shares with others, as `prefix` has it; nothing where it is no branch.

    Raises:
        NotFound: a conversation that it comes from is not there.
        LogError: that one's record is damaged, or is not what it was when the branch began.
    """
    start = _first_line(log)
    origin = None if start is None else origin_of([start])
    if start is None or start.branch_of is None or origin is None:
        return []
    shared = prefix(root, origin)
    if prefix_digest(shared) != start.branch_of.get("digest"):
        raise LogError(
            f"the record of {origin.conversation_id}, which {start.conversation_id} branches off, is not what it was"
        )
    return shared


def fork(root: OutputRoot, origin: Origin) -> Fork:
    """The point that `origin` names. Raises as `prefix` does."""
    return _fork(root, origin, ())


def unfit(spec: ExperimentSpec, left: Fork) -> tuple[list[Fault], list[str]]:
    """What a resolved spec asks of its branch that cannot be, and what is only to be noticed.

    Args:
        left: the point where the branch begins.
    """
    told = {
        (event.turn_number, agent_id, event.text)
        for event in left.events
        if isinstance(event, InterventionEvent) and event.source.startswith("awareness:") and event.text is not None
        for agent_id in event.audience
    }
    faults, notices = too_late(spec, told)
    if spec.branch is not None and spec.choose_names and not left.spec.choose_names:
        faults.append(Fault(("choose_names",), f"nobody chose a name in {spec.branch.of}; leave it out"))
    return faults, notices


def _fork(root: OutputRoot, origin: Origin, seen: tuple[str, ...]) -> Fork:
    name = origin.conversation_id
    if name in seen:
        raise LogError(f"{name} branches off itself")
    try:
        record = read_record(log_of(root, name))
    except NotFound as error:
        raise NotFound(f"{error}, from which this one branches") from None
    start, spec = _start(record, name)
    above = [] if spec.origin is None else _fork(root, spec.origin, (*seen, name)).events
    if spec.origin is not None and origin.turn <= spec.origin.turn:
        earlier = _fork(root, Origin(spec.origin.conversation_id, origin.turn), (*seen, name)).events
        return Fork(spec, {agent.id: agent for agent in spec.agents}, [*earlier, start])
    shared = up_to_turn(record.events, origin.turn)
    if shared is None:
        far = f"come to the end of turn {origin.turn}" if origin.turn else "begun its first turn"
        raise NotFound(f"{name} has not {far}, so nothing can branch off there")
    progress = Progress(spec)
    try:
        if above:
            progress.share(above)
        progress.replay(_until(record, shared[-1]))
    except LogError as error:
        raise LogError(f"{name}: {error}") from None
    agents = {name: replace(agent, name=progress.names[name]) for name, agent in progress.agents.items()}
    return Fork(spec, agents, [*above, *shared])


def _until(record: Record, last: Event) -> Sequence[Event]:
    return record.events[: record.events.index(last) + 1]


def _start(record: Record, name: str) -> tuple[ConversationStartEvent, ConversationSpec]:
    start = next((event for event in record.events if isinstance(event, ConversationStartEvent)), None)
    if start is None:
        raise LogError(f"the record of {name} does not begin with the start of the conversation")
    try:
        return start, ConversationSpec.from_json(start.spec)
    except msgspec.ValidationError as error:
        raise LogError(f"the record of {name} was made by another version of Pidgin: {error}") from None


def origin_of(events: Sequence[Event]) -> Origin | None:
    """Where a conversation branches off, by its own record."""
    start = next((event for event in events if isinstance(event, ConversationStartEvent)), None)
    if start is None or start.branch_of is None:
        return None
    try:
        return msgspec.convert(
            {"conversation_id": start.branch_of.get("conversation_id"), "turn": start.branch_of.get("turn")}, Origin
        )
    except msgspec.ValidationError:
        return None


def whole(root: OutputRoot, events: Sequence[Event]) -> tuple[list[Event], str | None]:
    """A conversation as its agents know it: what it shares, then its own events; and why the former is not there."""
    origin = origin_of(events)
    if origin is None:
        return list(events), None
    try:
        return [*prefix(root, origin), *events], None
    except (LogError, NotFound) as error:
        return list(events), str(error)


def twin_fork(events: Sequence[Event]) -> tuple[int, bool] | None:
    """The last turn that a twin shares with a conversation whose triggers decide, and whether anything was done to it.

    That is the turn before the first thing done; where nothing was, the last whole turn, and such a twin has nothing of
    its own to say. None while it cannot be told yet.
    """
    turns, ended = 0, False
    for event in events:
        match event:
            case InterventionEvent() if event.source == SCRIPT or event.source.startswith("detector:"):
                return event.turn_number - 1, True
            case TurnCompleteEvent():
                turns = event.turn_number
            case ConversationEndEvent():
                ended = event.status is Status.COMPLETED
            case ConversationResumedEvent():
                ended = False
    return (turns, False) if ended else None


class Branch(NamedTuple):
    """A conversation and what branches off it."""

    conversation_id: str
    turn: int | None
    """Where it leaves its own origin; None: it has none."""
    label: str
    """Its agents' models."""
    there: bool
    """Its record still exists."""
    children: tuple["Branch", ...]


def branches(root: OutputRoot) -> list[Branch]:
    """The trees of all conversations under the root that branch off another or have branches, oldest id first.

    Reads the first line of every log.
    """
    starts: dict[str, ConversationStartEvent] = {}
    for folder in root.folders():
        for conversation_id, log in folder.logs().items():
            if (start := _first_line(log)) is not None:
                starts[conversation_id] = start
    children: dict[str, list[tuple[int, str]]] = {}
    for conversation_id, start in starts.items():
        if (origin := origin_of([start])) is not None:
            children.setdefault(origin.conversation_id, []).append((origin.turn, conversation_id))

    def grown(conversation_id: str, turn: int | None, seen: frozenset[str]) -> Branch:
        start = starts.get(conversation_id)
        below = sorted(children.get(conversation_id, ())) if conversation_id not in seen else []
        return Branch(
            conversation_id,
            turn,
            " · ".join(agent.model for agent in start.agents) if start is not None else "",
            start is not None,
            tuple(grown(name, at, seen | {conversation_id}) for at, name in below),
        )

    below = {name for found in children.values() for _, name in found}
    roots = sorted(name for name in children if name not in below)
    return [grown(name, None, frozenset()) for name in roots]


def _first_line(log: Path) -> ConversationStartEvent | None:
    try:
        with log.open("rb") as file:
            event = decode(file.readline())
    except OSError:
        return None
    return event if isinstance(event, ConversationStartEvent) else None
