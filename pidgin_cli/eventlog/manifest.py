"""`manifest.json`: what the logs say, in one small file that others may read at any time.

It is a projection. It can be thrown away and built again from the logs (`rebuild`), and every change replaces the
whole file by a rename, so that no reader sees half of one.
"""

import asyncio
import contextlib
import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    PostProcessingCompleteEvent,
    PostProcessingStartEvent,
)
from pidgin_cli.core.types import EndReason, Status

from .folder import ExperimentFolder
from .log import read_record
from .state import RunState, advance, run_state

__all__ = [
    "UNFINISHED",
    "ConversationEntry",
    "Manifest",
    "ManifestTotals",
    "ManifestWriter",
    "read_manifest",
    "rebuild",
    "stored_manifest",
    "tell_post_processing",
]

UNFINISHED = "unfinished"
"""The outcome of a task of post-processing that has begun and of whose end nothing is known."""

Moment = Annotated[datetime, Meta(tz=True)]
"""One that can be compared with others."""


class ConversationEntry(Struct, omit_defaults=True):
    """One conversation as its events tell it."""

    status: Status
    arm: str
    repetition: int
    turns: int
    messages: int
    tokens: int | None
    cost_usd: float | None
    last_seq: int
    end_reason: EndReason | None
    convergence: float | None
    log: str
    updated_at: Moment | None
    error: str | None = None

    @classmethod
    def of(cls, state: RunState, log: str) -> "ConversationEntry":
        return cls(
            status=state.status,
            arm=state.arm,
            repetition=state.repetition,
            turns=state.turns,
            messages=state.messages,
            tokens=state.tokens,
            cost_usd=state.cost_usd,
            last_seq=state.last_seq,
            end_reason=state.end_reason,
            convergence=state.convergence,
            log=log,
            updated_at=state.updated_at,
            error=state.error,
        )


class ManifestTotals(Struct):
    """Sums over all conversations; `cost_usd` and `tokens` are null as soon as one part is not known."""

    conversations: int = 0
    completed: int = 0
    failed: int = 0
    running: int = 0
    messages: int = 0
    turns: int = 0
    tokens: int | None = 0
    cost_usd: float | None = 0.0


class Manifest(Struct, kw_only=True):
    """The contents of `manifest.json`."""

    experiment_id: str
    name: str | None = None
    status: Status = Status.CREATED
    created_at: Moment
    started_at: Moment | None = None
    completed_at: Moment | None = None
    pid: int | None = None
    host: str | None = None
    versions: dict[str, str] = {}
    spec_hash: str = ""
    totals: ManifestTotals = msgspec.field(default_factory=ManifestTotals)
    conversations: dict[str, ConversationEntry] = {}
    post_processing: dict[str, str] | None = None
    """Outcome by task, the last of each; `unfinished`: it was begun. Null: none since the experiment was last run."""

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def add_up(self) -> None:
        """Make `totals` the sum over `conversations`."""
        entries = self.conversations.values()
        tokens = [entry.tokens for entry in entries]
        costs = [entry.cost_usd for entry in entries if entry.messages or entry.tokens or entry.cost_usd is not None]
        self.totals = ManifestTotals(
            conversations=len(self.conversations),
            completed=sum(entry.status is Status.COMPLETED for entry in entries),
            failed=sum(entry.status is Status.FAILED for entry in entries),
            running=sum(entry.status in (Status.RUNNING, Status.PAUSED) for entry in entries),
            messages=sum(entry.messages for entry in entries),
            turns=sum(entry.turns for entry in entries),
            tokens=None if None in tokens else sum(count for count in tokens if count is not None),
            cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        )


def read_manifest(folder: ExperimentFolder) -> Manifest:
    """The manifest of an experiment. Where it is missing or damaged, it is derived from the logs instead."""
    stored = stored_manifest(folder)
    return rebuild(folder) if stored is None else stored


def stored_manifest(folder: ExperimentFolder) -> Manifest | None:
    """What `manifest.json` holds; None where it is missing or damaged."""
    try:
        return msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _write(path: Path, manifest: Manifest) -> None:
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.write_bytes(manifest.encode())
        making.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            making.unlink()
        raise LogError(f"{path} cannot be written: {error.strerror}") from error


def rebuild(folder: ExperimentFolder, *, write: bool = False) -> Manifest:
    """The manifest as the logs alone tell it; with `write` it replaces the file."""
    starts: list[ExperimentStartEvent] = []
    end: ExperimentCompleteEvent | None = None
    processed: dict[str, str] | None = None
    if folder.events.exists():
        for event in read_record(folder.events).events:
            if isinstance(event, ExperimentStartEvent):
                starts.append(event)
                end = processed = None
            elif isinstance(event, ExperimentCompleteEvent):
                end = event
            elif isinstance(event, PostProcessingStartEvent):
                processed = (processed or {}) | dict.fromkeys(event.tasks, UNFINISHED)
            elif isinstance(event, PostProcessingCompleteEvent):
                processed = (processed or {}) | event.outcomes
    created = datetime.fromtimestamp(folder.path.stat().st_mtime).astimezone()
    manifest = Manifest(experiment_id=folder.experiment_id, name=folder.slug or None, created_at=created)
    if starts:
        last = starts[-1]
        manifest.name = last.name
        manifest.created_at = manifest.started_at = starts[0].timestamp
        manifest.pid, manifest.host, manifest.versions = last.pid, last.host, last.versions
        manifest.spec_hash = last.spec_hash
        manifest.status = Status.RUNNING
    if end is not None:
        manifest.status = end.status
        manifest.completed_at = end.timestamp
    for number in range(1, (starts[-1].conversations if starts else 0) + 1):
        conversation_id = f"{folder.experiment_id}-{number}"
        manifest.conversations[conversation_id] = ConversationEntry.of(RunState(), folder.log(conversation_id).name)
    for conversation_id, log in folder.logs().items():
        manifest.conversations[conversation_id] = ConversationEntry.of(run_state(read_record(log).events), log.name)
    manifest.post_processing = processed
    manifest.add_up()
    if write:
        _write(folder.manifest, manifest)
    return manifest


def tell_post_processing(folder: ExperimentFolder, outcomes: Mapping[str, str]) -> None:
    """Write outcomes of post-processing into the manifest, beside those of other tasks.

    For whoever holds the log of the experiment. Raises LogError when the disk does not take it.
    """
    manifest = read_manifest(folder)
    manifest.post_processing = (manifest.post_processing or {}) | dict(outcomes)
    _write(folder.manifest, manifest)


def host() -> str:
    return platform.node()


class ManifestWriter:
    """Keeps `manifest.json` in step with the events, at most two writes a second whatever the load."""

    INTERVAL_S = 0.55
    COSTS_AT_MOST = 50
    """A write is followed by so many times its duration without one."""

    def __init__(self, path: Path, manifest: Manifest, report: Callable[[LogError], None]) -> None:
        """`report` takes the error when a write fails: a full disk must not end a run whose logs still go through."""
        self.manifest = manifest
        self.writes = 0
        self._path = path
        self._report = report
        self._states: dict[str, RunState] = {}
        self._dirty: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_write = float("-inf")
        self._interval_s = self.INTERVAL_S

    def seed(self, conversation_id: str, state: RunState) -> None:
        """Where a conversation stands before its next event."""
        self._states[conversation_id] = state
        self._dirty.add(conversation_id)

    def take(self, event: Event) -> None:
        """A subscriber of the bus."""
        conversation_id = event.conversation_id
        if conversation_id is None:
            return
        self._states[conversation_id] = advance(self._states.get(conversation_id) or RunState(), event)
        self._dirty.add(conversation_id)
        self.touch()

    def touch(self) -> None:
        """Something changed; write it soon."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._last_write + self._interval_s), self._due)

    def _due(self) -> None:
        self._timer = None
        try:
            self.write()
        except LogError as error:
            self._report(error)

    def write(self) -> None:
        """Write now. Raises LogError when the disk does not take it; a later write makes up for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        clock = asyncio.get_running_loop().time
        self._last_write = clock()
        self.catch_up()
        _write(self._path, self.manifest)
        self.writes += 1
        # A manifest of many thousands of conversations takes its time, which the conversations have to wait.
        self._interval_s = max(self.INTERVAL_S, self.COSTS_AT_MOST * (clock() - self._last_write))

    def catch_up(self) -> None:
        """Bring `manifest` in step with the events without writing it."""
        for conversation_id in self._dirty:
            log = f"conv_{conversation_id}_events.jsonl"
            state = self._states[conversation_id]
            self.manifest.conversations[conversation_id] = ConversationEntry.of(state, log)
            if state.status not in (Status.CREATED, Status.RUNNING, Status.PAUSED):
                del self._states[conversation_id]  # ended; one that goes on is seeded again
        self._dirty.clear()
        self.manifest.add_up()

    def close(self) -> None:
        """The last write."""
        self.write()
