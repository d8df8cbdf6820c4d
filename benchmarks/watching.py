"""The monitor before an output root of a study: how long one look at everything takes, the drawing included."""

import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from pidgin_cli.core.events import (
    ConversationStartEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    TurnCompleteEvent,
    TurnStartEvent,
    View,
)
from pidgin_cli.core.types import Agent, EndReason, FinishReason, Message, Role, Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest
from pidgin_cli.experiments.watch import Watch
from pidgin_cli.monitor.dashboard import Dashboard

__all__ = ["main"]

EXPERIMENTS = 1_000
EACH = 10
RUNNING = 10
TURNS = 10
WIDTH, HEIGHT = 140, 40
BUDGET_MS = 100.0
WORDS = "the quiet harbour keeps its lamps alight while every ship goes home again and nobody asks why " * 8
"""About 120 words."""


class Row(NamedTuple):
    """One line of the table, as in `benchmarks.__main__`."""

    what: str
    measured: str
    budget: str = ""
    ok: bool | None = None


def _turn(conversation_id: str, turn: int, seq: Iterator[int], when: datetime) -> bytes:
    lines = []
    for event in (
        TurnStartEvent(turn_number=turn, speakers=("a", "b")),
        *itertools.chain.from_iterable(
            (
                MessageRequestEvent(
                    agent_id=agent, turn_number=turn, message_index=0, view=View(0, 0, 0, 1), digest="0" * 32
                ),
                MessageCompleteEvent(
                    agent_id=agent,
                    turn_number=turn,
                    message_index=0,
                    message=Message(Role.ASSISTANT, WORDS),
                    finish_reason=FinishReason.STOP,
                    model_requested="local:test",
                ),
            )
            for agent in "ab"
        ),
        TurnCompleteEvent(turn_number=turn),
    ):
        stamped = msgspec.structs.replace(event, conversation_id=conversation_id, seq=next(seq), timestamp=when)
        lines.append(encode(stamped) + b"\n")
    return b"".join(lines)


def _log(conversation_id: str, turns: int, when: datetime) -> bytes:
    agents = tuple(Agent(name, "local:test", name) for name in "ab")
    start = ConversationStartEvent(
        conversation_id=conversation_id,
        timestamp=when,
        seq=0,
        schema_version=1,
        pidgin_version="0",
        spec={"max_turns": TURNS},
        spec_hash="",
        agents=agents,
        opening="Hello.",
        prompt_tag="",
        seed=1,
        arm="",
        repetition=1,
    )
    seq = itertools.count(1)
    return encode(start) + b"\n" + b"".join(_turn(conversation_id, turn, seq, when) for turn in range(1, turns + 1))


def _manifest(experiment_id: str, number: int, turns: int, status: Status, when: datetime) -> Manifest:
    manifest = Manifest(
        experiment_id=experiment_id, name=f"study {experiment_id}", status=status, created_at=when, started_at=when
    )
    over = status is Status.COMPLETED
    for place in range(1, number + 1):
        name = f"{experiment_id}-{place}"
        manifest.conversations[name] = ConversationEntry(
            status=status,
            arm=f"a.temperature={place / 10}",
            repetition=1,
            turns=turns,
            messages=2 * turns,
            tokens=turns * 300,
            cost_usd=0.01 * turns,
            last_seq=1 + turns * 6,
            end_reason=EndReason.TURN_LIMIT if over else None,
            convergence=None,
            log=f"conv_{name}_events.jsonl",
            updated_at=when,
        )
    manifest.add_up()
    return manifest


def _make(root: OutputRoot, experiment_id: str, number: int, status: Status, logs: int) -> ExperimentFolder:
    when = datetime.now(UTC) - timedelta(minutes=5)
    turns = TURNS if status is Status.COMPLETED else TURNS // 2
    files = {"manifest.json": _manifest(experiment_id, number, turns, status, when).encode()}
    for place in range(1, logs + 1):
        name = f"{experiment_id}-{place}"
        files[f"conv_{name}_events.jsonl"] = _log(name, turns, when)
    folder = root.create(experiment_id, None, date(2026, 1, 1), files)
    if status is Status.RUNNING:
        claim = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        root.pid_file(experiment_id).write_bytes(msgspec.json.encode(claim))
    return folder


def _go_on(folder: ExperimentFolder, number: int, turn: int) -> None:
    """A turn more in every log, and a new manifest, as a runner writes them."""
    now = datetime.now(UTC)
    for name, path in itertools.islice(folder.logs().items(), EACH):
        with path.open("ab") as file:
            file.write(_turn(name, turn, itertools.count(turn * 6), now))
    making = folder.path / ".manifest"
    making.write_bytes(_manifest(folder.experiment_id, number, turn, Status.RUNNING, now).encode())
    making.replace(folder.manifest)


def _look(watch: Watch, dashboard: Dashboard) -> float:
    """Milliseconds for one look at the disk and the drawing."""
    gc.collect()
    began = time.perf_counter()
    watch.refresh()
    dashboard.draw(WIDTH, HEIGHT)
    watch.follow(dashboard.looked_at())
    dashboard.draw(WIDTH, HEIGHT)
    return (time.perf_counter() - began) * 1000


def _measured(root: OutputRoot, running: list[ExperimentFolder], number: int, rounds: int, *keys: str) -> list[float]:
    watch = Watch(root)
    dashboard = Dashboard(watch)
    first = _look(watch, dashboard)
    for key in keys:
        dashboard.press(key)
    idle = statistics.median([_look(watch, dashboard) for _ in range(rounds)])
    busy = []
    for turn in range(TURNS, TURNS + rounds):
        for folder in running:
            _go_on(folder, number, turn)
        busy.append(_look(watch, dashboard))
    finished_read = [watched.reads for watched in watch.experiments if watched.status is Status.COMPLETED]
    assert set(finished_read) <= {1}, "a finished experiment was read again"
    return [first, idle, statistics.median(busy), max(busy)]


def main(*, quick: bool) -> Iterator[Row]:
    """Many small experiments, then one large one."""
    rounds = 5 if quick else 20
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        root = OutputRoot(Path(scratch) / "many")
        running = [_make(root, f"running{number}", EACH, Status.RUNNING, EACH) for number in range(RUNNING)]
        for number in range(EXPERIMENTS - RUNNING):
            _make(root, f"{number:08d}", EACH, Status.COMPLETED, EACH)
        what = f"monitor refresh at {EXPERIMENTS:,} experiments with {EXPERIMENTS * EACH:,} conversations"
        yield from _rows(f"{what}, {RUNNING} × {EACH} running", _measured(root, running, EACH, rounds))
        root = OutputRoot(Path(scratch) / "one")
        number = EXPERIMENTS * EACH
        large = _make(root, "large000", number, Status.RUNNING, EACH)
        what = f"monitor refresh at one experiment of {number:,} conversations, opened"
        yield from _rows(what, _measured(root, [large], number, rounds, "enter"))


def _rows(what: str, times: list[float]) -> Iterator[Row]:
    first, idle, busy, worst = times
    yield Row(f"{what}: first look", f"{first:.0f} ms")
    yield Row("… later, nothing changed", f"{idle:.1f} ms", f"at most {BUDGET_MS:g} ms", idle <= BUDGET_MS)
    name = f"… later, everything that runs went on (worst {worst:.0f} ms)"
    yield Row(name, f"{busy:.1f} ms", f"at most {BUDGET_MS:g} ms", busy <= BUDGET_MS)
