"""Whether the database says what the records say: word by word, by count and by digest.

The records are read by the one decoder of `eventlog`, not by what imported them. Besides, `verify_rows` compares every
row with what a fresh import gives.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    Event,
    InterventionEvent,
    MessageCompleteEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
)
from pidgin_cli.eventlog.folder import ExperimentFolder
from pidgin_cli.eventlog.log import Record, read_record

from .store import EventStore
from .verify_rows import Recompute, row_differences

__all__ = ["Checked", "verify"]


class Checked(NamedTuple):
    """What was compared of one experiment."""

    experiment_id: str
    name: str | None
    conversations: int
    messages: int
    """Compared word by word."""
    faults: tuple[tuple[str, str], ...] = ()
    """Conversation (or experiment) and what is wrong with it."""
    notes: tuple[tuple[str, str], ...] = ()
    """The same, of what is worth knowing and no fault."""
    computed: int = 0
    """Parts of the metrics of conversations that were computed after the run."""
    recomputed: int = 0
    """Of these, parts that were computed again and compared."""


def verify(
    store: EventStore, folder: ExperimentFolder, *, live: bool = False, recompute: Recompute | None = None
) -> Checked:
    """Compare an experiment's records with its rows.

    Args:
        live: it is being run, so that its logs may have grown.
        recompute: computes the metrics that are for afterwards again; without it they are not compared.
    """
    faults: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    rows = {row["conversation_id"]: row for row in store.conversations.of(folder.experiment_id)}
    names = [row["name"] for row in store.experiments.all() if row["experiment_id"] == folder.experiment_id]
    logs = folder.logs()
    messages = 0
    if not names:
        faults.append((folder.experiment_id, f"it is not in the database; run: pidgin import {folder.experiment_id}"))
        rows = {}
    for conversation_id, log in logs.items():
        try:
            record = read_record(log)
        except LogError as error:
            faults.append((conversation_id, str(error)))
            continue
        faults += [(conversation_id, fault) for fault in _record_faults(record)]
        notes += [(conversation_id, note) for note in _record_notes(record)]
        row = rows.pop(conversation_id, None)
        if row is None:
            if names:
                where = notes if live else faults
                where.append((conversation_id, f"it is not in the database; run: pidgin import {folder.experiment_id}"))
        elif _sha256(log) != row["log_sha256"]:
            where = notes if live else faults
            where.append((conversation_id, "its log has changed since it was imported; import it again"))
        else:
            messages += int(row["messages"])
            faults += [(conversation_id, fault) for fault in _differences(store, conversation_id, record, row)]
    faults += [(name, "it is in the database, but its log is gone") for name in rows]
    computed = recomputed = 0
    if names:
        more, unsure, computed, recomputed = row_differences(store, folder, live=live, recompute=recompute)
        faults += more
        notes += unsure
    return Checked(
        folder.experiment_id,
        names[0] if names else folder.slug or None,
        len(logs),
        messages,
        tuple(faults),
        tuple(notes),
        computed,
        recomputed,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_faults(record: Record) -> list[str]:
    found = [f"line {skipped.line} of its log is broken" for skipped in record.skipped if skipped.why == "broken"]
    if missing := sum(gap.events for gap in record.gaps):
        found.append(f"{missing} {'event is' if missing == 1 else 'events are'} missing from its log")
    seen = Counter(event.message_index for event in record.events if isinstance(event, MessageCompleteEvent))
    found += [f"message {index} stands in its log {times} times" for index, times in seen.items() if times > 1]
    return found


def _record_notes(record: Record) -> list[str]:
    found = [f"line {skipped.line}, the last one, is torn" for skipped in record.skipped if skipped.why == "torn"]
    if unknown := sum(skipped.why == "unknown" for skipped in record.skipped):
        found.append(f"{unknown} events of types that this version does not know")
    return found


def _differences(store: EventStore, conversation_id: str, record: Record, row: dict[str, object]) -> list[str]:
    found: list[str] = []
    said: dict[int, MessageCompleteEvent] = {}
    for event in record.events:
        if isinstance(event, MessageCompleteEvent):
            said.setdefault(event.message_index, event)
    held = {message["message_index"]: message for message in store.messages.of(conversation_id)}
    for index in sorted(said.keys() | held.keys()):
        if index not in held:
            found.append(f"message {index} is missing from the database")
        elif index not in said:
            found.append(f"message {index} is in the database and not in its log")
        else:
            found += _message_differences(index, said[index], held[index])
    if row["messages"] != len(said):
        found.append(f"the database counts {row['messages']} messages, its log holds {len(said)}")
    thoughts = Counter(
        (event.message_index, event.content) for event in record.events if isinstance(event, ThinkingCompleteEvent)
    )
    if thoughts != Counter((r["message_index"], r["content"]) for r in store.messages.thinking(conversation_id)):
        found.append("what was thought differs")
    found += _text_differences(store, conversation_id, record.events)
    repeated = len([e for e in record.events if isinstance(e, MessageCompleteEvent)]) - len(said)
    counts = Counter(type(event).__name__ for event in record.events)
    counts["MessageCompleteEvent"] -= repeated
    in_store = store.events.counts(conversation_id)
    for kind, number in sorted((+counts).items()):
        if in_store.get(kind, 0) != number:
            found.append(f"the database counts {in_store.get(kind, 0)} {kind}, its log holds {number}")
    return found


def _message_differences(index: int, said: MessageCompleteEvent, held: dict[str, object]) -> list[str]:
    content = str(held["content"])
    if content != said.message.content:
        place = next(
            (at for at, pair in enumerate(zip(said.message.content, content, strict=False)) if pair[0] != pair[1]),
            min(len(said.message.content), len(content)),
        )
        there, here = said.message.content[place : place + 20], content[place : place + 20]
        return [f"message {index} differs from character {place} on: the log says {there!r}, the database {here!r}"]
    facts = {
        "agent_id": said.agent_id,
        "turn_number": said.turn_number,
        "finish_reason": said.finish_reason.value,
        "prompt_tokens": said.usage.prompt_tokens,
        "completion_tokens": said.usage.completion_tokens,
        "cost_usd": said.cost,
        "model_served": said.model_served,
    }
    return [
        f"{name} of message {index} differs: the log says {fact!r}, the database {held[name]!r}"
        for name, fact in facts.items()
        if held[name] != fact
    ]


def _text_differences(store: EventStore, conversation_id: str, events: Iterable[Event]) -> list[str]:
    told = Counter[tuple[object, ...]]()
    for event in events:
        match event:
            case InterventionEvent():
                told["interventions", event.turn_number, event.text, event.before, event.after] += 1
            case SystemPromptEvent(text=str()):
                told["system prompts", event.agent_id, event.text, None, None] += 1
            case TokenUsageEvent():
                told["token usage", event.agent_id, event.prompt_tokens, event.completion_tokens, event.cost] += 1
    held = Counter[tuple[object, ...]](
        ("interventions", row["turn_number"], row["text"], row["before"], row["after"])
        for row in store.conversations.interventions(conversation_id)
    )
    held.update(
        ("token usage", row["agent_id"], row["prompt_tokens"], row["completion_tokens"], row["cost_usd"])
        for row in store.conversations.token_usage(conversation_id)
    )
    held.update(
        ("system prompts", row["agent_id"], row["system_prompt"], None, None)
        for row in store.conversations.system_prompts(conversation_id)
    )
    return sorted({f"{what[0]!s} differ" for what in (told - held) + (held - told)})
