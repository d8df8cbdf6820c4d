"""Experiments to be watched: made by hand, or run by another process."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psutil
from commands import until
from terminal import DEADLINE_S, ENVIRONMENT

from pidgin_cli.core.events import ConversationStartEvent, Event, MessageCompleteEvent, TurnStartEvent
from pidgin_cli.core.types import Agent, FinishReason, Message, Role, Status
from pidgin_cli.eventlog.codec import decode, encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest
from pidgin_cli.eventlog.state import run_state

__all__ = ["LOGS", "SLOW", "append", "claim", "in_background", "logged", "make", "put_manifest", "said", "start"]

SLOW = "local:test?words=4000&chunk_ms=20"
"""Does not end of itself within a test."""
LOGS = "pidgin_output/experiments/experiment_*/conv_*_events.jsonl"
"""Below the working directory of a process."""


def start(turns: int = 5, arm: str = "", names: Sequence[str] = ("Wren", "Finch")) -> ConversationStartEvent:
    return ConversationStartEvent(
        schema_version=1,
        pidgin_version="0",
        spec={"max_turns": turns},
        spec_hash="",
        agents=tuple(Agent(i, "local:test", name) for i, name in zip("ab", names, strict=True)),
        opening="Hello.",
        prompt_tag="",
        seed=1,
        arm=arm,
        repetition=1,
    )


def said(text: str, agent_id: str = "a", turn: int = 1, index: int = 0) -> MessageCompleteEvent:
    return MessageCompleteEvent(
        agent_id=agent_id,
        turn_number=turn,
        message_index=index,
        message=Message(Role.ASSISTANT, text),
        finish_reason=FinishReason.STOP,
        model_requested="local:test",
    )


def turn_start(turn: int = 1) -> TurnStartEvent:
    return TurnStartEvent(turn_number=turn, speakers=("a", "b"))


def logged(
    conversation_id: str, events: Sequence[Event], *, first: int = 0, when: datetime | None = None
) -> list[Event]:
    """The events as a log holds them, numbered from `first`; `when`: the time of all of them, else now."""
    return [
        msgspec.structs.replace(
            event,
            conversation_id=conversation_id,
            experiment_id=conversation_id.partition("-")[0],
            seq=seq,
            timestamp=when or datetime.now(UTC),
        )
        for seq, event in enumerate(events, first)
    ]


def _lines(events: Sequence[Event]) -> bytes:
    return b"".join(encode(event) + b"\n" for event in events)


def make(
    root: OutputRoot,
    experiment_id: str,
    logs: Sequence[Sequence[Event]],
    *,
    name: str | None = None,
    status: Status = Status.RUNNING,
    created: datetime | None = None,
    **entry: Any,
) -> ExperimentFolder:
    """An experiment on disk with one log per list of events; `entry` overrides fields of all conversations."""
    created = created or datetime.now(UTC) - timedelta(hours=1)
    files = {
        f"conv_{experiment_id}-{number}_events.jsonl": _lines(logged(f"{experiment_id}-{number}", events))
        for number, events in enumerate(logs, 1)
        if events
    }
    folder = root.create(experiment_id, name, date(2026, 1, 2), files)
    put_manifest(folder, len(logs), name=name, status=status, created=created, **entry)
    return folder


def put_manifest(
    folder: ExperimentFolder,
    number: int,
    *,
    name: str | None = None,
    status: Status = Status.RUNNING,
    created: datetime | None = None,
    **entry: Any,
) -> Manifest:
    """Write the manifest that the logs add up to, as a runner does."""
    created = created or datetime.now(UTC)
    manifest = Manifest(
        experiment_id=folder.experiment_id, name=name, status=status, created_at=created, started_at=created
    )
    for place in range(1, number + 1):
        conversation_id = f"{folder.experiment_id}-{place}"
        log = folder.log(conversation_id)
        lines = log.read_bytes().splitlines() if log.exists() else []
        events = [event for event in map(decode, lines) if isinstance(event, Event)]
        manifest.conversations[conversation_id] = ConversationEntry.of(run_state(events), log.name)
        for key, value in entry.items():
            setattr(manifest.conversations[conversation_id], key, value)
    manifest.add_up()
    making = folder.path / ".making"
    making.write_bytes(manifest.encode())
    making.replace(folder.manifest)
    return manifest


def append(folder: ExperimentFolder, number: int, *events: Event) -> None:
    """Write more events to the log of the n-th conversation."""
    conversation_id = f"{folder.experiment_id}-{number}"
    log = folder.log(conversation_id)
    first = log.read_bytes().count(b"\n") if log.exists() else 0
    with log.open("ab") as file:
        file.write(_lines(logged(conversation_id, events, first=first)))


def claim(root: OutputRoot, experiment_id: str, process: psutil.Process | None = None) -> Path:
    """A PID file as the runner of an experiment writes it; without `process` that of this test."""
    process = process or psutil.Process()
    path = root.pid_file(experiment_id)
    path.write_text(json.dumps({"pid": process.pid, "started": process.create_time()}))
    return path


@contextmanager
def in_background(cwd: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """`pidgin chat` in a process of its own, from the moment that its first request is under way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pidgin_cli", "chat", *argv, "--display", "quiet"],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: any(b"MessageRequestEvent" in log.read_bytes() for log in cwd.glob(LOGS)))
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)
