"""The metrics of one conversation that are computed after the run, from what was said alone: no database, no others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pidgin_cli.core.errors import LogError, SpecError
from pidgin_cli.core.events import AttractorEvent, ConversationStartEvent, MessageCompleteEvent, TurnCompleteEvent
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.metrics.catalogue import Value, message_metrics
from pidgin_cli.metrics.engine import wide
from pidgin_cli.metrics.offline import Messages, offline, read
from pidgin_cli.metrics.others import Profile, profile

from .transcript import Lineage

__all__ = ["LiveMetrics", "RecordTask", "TextMetrics", "of_record", "of_texts"]


class TextMetrics(NamedTuple):
    """What takes time by the square of something, and what others need of the conversation."""

    messages: list[dict[str, Value]]
    """Of each message; empty where only the profile was wanted."""
    conversation: dict[str, Value]
    profile: Profile


def of_texts(task: tuple[Messages, bool]) -> TextMetrics:
    """`task` is the conversation, and whether more than the profile is wanted."""
    messages, all_of_it = task
    texts = read(messages)
    rows, summaries = offline(texts.readings) if all_of_it else ([], [])
    return TextMetrics(rows, wide(summaries), profile(texts))


class RecordTask(NamedTuple):
    """A conversation whose record lacks metrics."""

    root: OutputRoot
    log: Path
    lineage: Lineage
    names: Mapping[str, str]
    """Display names by agent id."""
    opening: str
    recorded: frozenset[int]
    """Those whose metrics the record has."""


class LiveMetrics(NamedTuple):
    """Live metrics that a record has not."""

    messages: dict[int, dict[str, Any]]
    """By message index."""
    turns: dict[int, dict[str, Any]]
    """By turn number."""
    conversation: Mapping[str, Any]
    """Of all of it."""
    attractors: tuple[Mapping[str, Any], ...] = ()
    """What detectors found that the record does not tell, as `Computed` has it."""
    missing: str | None = None
    """Why there are none."""


def of_record(task: RecordTask) -> LiveMetrics:
    """What a live run would have written."""
    # Not for texts alone: it brings the whole language of specs.
    from pidgin_cli.conversation.watching import Watcher
    from pidgin_cli.spec.conversation import ConversationSpec

    names = dict.fromkeys(message_metrics("live"))
    try:
        events = read_record(task.log).events
        whole, missing = task.lineage(task.root, events)
        if missing is not None:
            return LiveMetrics({}, {}, {}, missing=missing)
        start = next(event for event in whole if isinstance(event, ConversationStartEvent))
        watcher = Watcher(ConversationSpec.from_json(start.spec), task.names, task.opening)
    except (LogError, SpecError, ValueError, KeyError, StopIteration, msgspec.MsgspecError) as error:
        return LiveMetrics({}, {}, {}, missing=f"the record cannot be taken in again: {error}")
    own = {event.message_index for event in events if isinstance(event, MessageCompleteEvent)}
    told_elsewhere = any(isinstance(event, ConversationStartEvent) and "source" in event.spec for event in events)
    wanted = own - task.recorded
    told = {(event.message_index, event.detector) for event in events if isinstance(event, AttractorEvent)}
    attractors: list[Mapping[str, Any]] = []
    found = LiveMetrics({}, {}, {})
    for event in whole:
        if isinstance(event, MessageCompleteEvent):
            step = watcher.take(event)
            index = event.message_index
            if index in wanted:
                attractors += (
                    {"turn_number": event.turn_number, **msgspec.structs.asdict(firing)}
                    for firing in step.fired
                    if (index, firing.detector) not in told
                )
                found.messages[index] = names | watcher.turn_metrics(event.turn_number)["messages"][str(index)]
                if told_elsewhere:  # such records do not say which attempt it was
                    found.messages[index]["retries"] = None
        elif isinstance(event, TurnCompleteEvent) and not event.metrics and event.convergence is None:
            found.turns[event.turn_number] = {
                "convergence": watcher.convergence(),
                "detectors": watcher.detectors(),
                "pairs": watcher.turn_metrics(event.turn_number)["turn"],
            }
    return found._replace(conversation=watcher.conversation_metrics(), attractors=tuple(attractors))
