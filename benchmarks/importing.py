"""The import of a study: 12,000 messages whose logs carry all metrics, and what comes after it."""

import gc
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from pidgin_cli.core.events import (
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    MessageCompleteEvent,
    MessageRequestEvent,
    TokenUsageEvent,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
    View,
)
from pidgin_cli.core.types import Agent, EndReason, FinishReason, Message, Role, Status, Timing, Usage
from pidgin_cli.database.query import ask
from pidgin_cli.database.schema import MetricColumn
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import Manifest
from pidgin_cli.metrics.catalogue import message_metrics
from pidgin_cli.metrics.tokens import emoji_in, tokenize

__all__ = ["Row", "main", "study"]

CONVERSATIONS = 200
TURNS = 30
WORDS = 120
BUDGET_S = 3.0

_TYPES: dict[str, Literal["DOUBLE", "BIGINT", "BOOLEAN", "VARCHAR"]] = {
    "float": "DOUBLE",
    "int": "BIGINT",
    "bool": "BOOLEAN",
    "text": "VARCHAR",
}


class Row(NamedTuple):
    """One line of the table, as in `benchmarks.__main__`."""

    what: str
    measured: str
    budget: str = ""
    ok: bool | None = None


def main(*, quick: bool) -> Iterator[Row]:
    """Rows for `make bench`."""
    conversations = CONVERSATIONS // 5 if quick else CONVERSATIONS
    messages = conversations * TURNS * 2
    columns = [MetricColumn(name, "message", _TYPES[m.kind]) for name, m in message_metrics().items()]
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        root = OutputRoot(Path(scratch))
        folder = study(root, conversations, columns)
        size = sum(log.stat().st_size for log in folder.logs().values())
        best = float("inf")
        for _ in range(3):
            (root.experiments / "experiments.duckdb").unlink(missing_ok=True)
            best = min(best, _timed(lambda: EventStore(root, columns).import_experiment(folder)))
        what = f"import of {messages:,} messages, {len(columns)} metrics each ({size / 1e6:.0f} MB of logs)"
        budget = BUDGET_S * messages / (CONVERSATIONS * TURNS * 2)
        yield Row(what, f"{best:.2f} s", f"at most {budget:g} s", best <= budget)
        store = EventStore(root, columns, _words)
        yield Row(
            "… with every word and emoji counted besides", f"{_timed(lambda: store.import_experiment(folder)):.2f} s"
        )
        yield Row("… again, nothing has changed", f"{_timed(lambda: store.import_experiment(folder)):.2f} s")
        yield Row("… size of the database", f"{store.path.stat().st_size / 1e6:.0f} MB")

        def statistics() -> None:
            with ask(store, "FROM arm_statistics") as answer:
                assert len(list(answer.rows)) > len(columns) / 2

        yield Row("… statistics of every metric by arm", f"{_timed(statistics):.2f} s")
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        root = OutputRoot(Path(scratch))
        folder = study(root, conversations, [])
        took = float("inf")
        for _ in range(3):
            (root.experiments / "experiments.duckdb").unlink(missing_ok=True)
            took = min(took, _timed(lambda: EventStore(root, columns).import_experiment(folder)))
        yield Row(
            f"import of {messages:,} messages without metrics", f"{took:.2f} s", f"at most {budget:g} s", took <= budget
        )


def _timed(call: Any) -> float:
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _words(text: str) -> dict[Literal["word", "emoji"], list[str]]:
    return {"word": tokenize(text), "emoji": emoji_in(text)}


def study(root: OutputRoot, conversations: int, columns: list[MetricColumn]) -> ExperimentFolder:
    """An experiment of 30 turns by two agents whose logs carry all these metrics, in four arms."""
    draw = random.Random(7)
    words = [f"{draw.choice('bcdfglmnprst')}{draw.choice('aeiou')}{n:x}" for n in range(3000)]
    files = {}
    for number in range(1, conversations + 1):
        conversation_id = f"abcdefgh-{number}"
        events = _conversation(conversation_id, draw, words, columns)
        files[f"conv_{conversation_id}_events.jsonl"] = b"".join(encode(event) + b"\n" for event in events)
    files["manifest.json"] = Manifest(experiment_id="abcdefgh", created_at=datetime.now(UTC)).encode()
    return root.create("abcdefgh", "bench", date(2026, 1, 2), files)


def _value(draw: random.Random, kind: str) -> Any:
    if draw.random() < 0.1:
        return None
    return {"DOUBLE": draw.random(), "BIGINT": draw.randrange(300), "BOOLEAN": True, "VARCHAR": "normal"}[kind]


def _conversation(
    conversation_id: str, draw: random.Random, words: list[str], columns: list[MetricColumn]
) -> Iterator[Event]:
    now = datetime.now(UTC)
    agents = tuple(Agent(i, "local:test", i) for i in "ab")

    def bare() -> Iterator[Event]:
        yield ConversationStartEvent(
            schema_version=1,
            pidgin_version="0",
            spec={"max_turns": TURNS, "variables": {"x": draw.randrange(4)}},
            spec_hash="",
            agents=agents,
            opening="Hello.",
            prompt_tag="",
            seed=1,
            arm=f"x={draw.randrange(4)}",
            repetition=1,
        )
        index = 0
        for turn in range(1, TURNS + 1):
            yield TurnStartEvent(turn_number=turn, speakers=("a", "b"))
            metrics = {}
            for agent in "ab":
                at: dict[str, Any] = {"agent_id": agent, "turn_number": turn, "message_index": index}
                yield MessageRequestEvent(**at, view=View(0, index, 0, 1), digest="0" * 32)
                yield MessageCompleteEvent(
                    **at,
                    message=Message(
                        Role.ASSISTANT, " ".join(draw.choices(words, k=WORDS)), f"{conversation_id}:m{index}"
                    ),
                    finish_reason=FinishReason.STOP,
                    usage=Usage(1000, 160),
                    cost=0.001,
                    timing=Timing(0.0, 300.0, 4000.0, 40.0),
                    model_requested="local:test",
                    model_served="test",
                )
                yield TokenUsageEvent(
                    agent_id=agent,
                    provider="local",
                    model="test",
                    prompt_tokens=1000,
                    completion_tokens=160,
                    cost=0.001,
                )
                metrics[str(index)] = {column.name: _value(draw, column.type) for column in columns}
                index += 1
            yield TurnCompleteEvent(
                turn_number=turn, metrics={"version": "1", "messages": metrics, "turn": {}}, convergence=draw.random()
            )
        yield ConversationEndEvent(
            status=Status.COMPLETED, end_reason=EndReason.TURN_LIMIT, totals=Totals(turns=TURNS, messages=index)
        )

    for seq, event in enumerate(bare()):
        yield replace(event, seq=seq, timestamp=now, experiment_id="abcdefgh", conversation_id=conversation_id)
