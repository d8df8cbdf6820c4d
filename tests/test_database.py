"""From records to the database: what is taken, what is told, and that the words stay the same."""

import contextlib
import json
import re
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
import scipy.stats
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import append, make, said, start, turn_start
from strategies import TEXT, filled
from support import converse, experiment, messages

from pidgin_cli.cli.database import open_store
from pidgin_cli.conversation.watching import Watcher
from pidgin_cli.core.errors import StoreError
from pidgin_cli.core.events import (
    EVENT_TYPES,
    APIErrorEvent,
    AttractorEvent,
    ConvergenceWarningEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    Event,
    InterventionEvent,
    QuestionAbandonedEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    ToolCallEvent,
    ToolResultEvent,
    Totals,
    TurnCompleteEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.database import schema
from pidgin_cli.database.schema import MIGRATIONS, MetricColumn, described, migrate, set_up
from pidgin_cli.database.store import EventStore
from pidgin_cli.database.verify import verify
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION
from pidgin_cli.spec.conversation import ConversationSpec

METRICS = [
    MetricColumn("ttr", "message"),
    MetricColumn("tokens", "message", "BIGINT"),
    MetricColumn("truncated", "message", "BOOLEAN"),
    MetricColumn("message_class", "message", "VARCHAR"),
    MetricColumn("overlap", "turn"),
]


def end(status: Status = Status.COMPLETED, **keys: Any) -> ConversationEndEvent:
    reason = EndReason.TURN_LIMIT if status is Status.COMPLETED else EndReason.PROVIDER_ERROR
    return ConversationEndEvent(status=status, end_reason=reason, totals=Totals(turns=1, messages=2), **keys)


def talk(*texts: str, **keys: Any) -> list[Event]:
    """A whole conversation of one turn per two texts."""
    found: list[Event] = [start(**keys)]
    for place, text in enumerate(texts):
        if place % 2 == 0:
            found.append(turn_start(place // 2 + 1))
        found.append(said(text, "ab"[place % 2], place // 2 + 1, place))
        if place % 2:
            found.append(TurnCompleteEvent(turn_number=place // 2 + 1, convergence=0.25 * place))
    return [*found, end()]


def contents(store: EventStore, conversation_id: str) -> list[str]:
    return [row["content"] for row in store.messages.of(conversation_id)]


# The words


@given(talks=st.lists(st.tuples(st.lists(TEXT, min_size=1, max_size=6), TEXT), min_size=3, max_size=6))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_in_the_database_are_those_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, talks: list[tuple[list[str], str]]
) -> None:
    """Whatever models say, and however agents are called, the database says the same words as the file."""
    root = OutputRoot(tmp_path_factory.mktemp("root"))
    folder = make(root, "abcdefgh", [talk(*texts, names=(name, name + "x")) for texts, name in talks])
    with EventStore(root) as store:
        assert store.import_experiment(folder).messages == sum(len(texts) for texts, _ in talks)
        names = [(row["conversation_id"], row["name"]) for row in store.conversations.agents("abcdefgh")]
        for number, (texts, name) in enumerate(talks, 1):
            talk_id = f"abcdefgh-{number}"
            record = read_record(folder.log(talk_id)).events
            assert contents(store, talk_id) == [event.message.content for event in messages(record)] == texts
            assert [own for whose, own in names if whose == talk_id] == [name, name + "x"]


HOSTILE = [
    "\x00 in the middle \x00",
    "\u2028line\u2029separators\x85",
    "x" * 1_000_000,
    "'); DROP TABLE messages; --",
    "\x1b[2J\x1b]0;title\x07",
    '{"event_type":"MessageCompleteEvent"}\n{"event_type":"ConversationEndEvent"}',
    "\ud800 half a pair",
    "",
    " \u3000\u2009",
    "\u202eoverride\u202c",
]


def test_hostile_texts_survive(tmp_path: Path) -> None:
    """NUL, U+2028, a megabyte, SQL, terminal codes and halves of pairs stand in the database as in the log."""
    root = OutputRoot(tmp_path / "a [b]* 'c")
    folder = make(root, "abcdefgh", [talk(*HOSTILE)], name="Robert'); DROP TABLE messages;--")
    with EventStore(root) as store:
        store.import_experiment(folder)
        record = messages(read_record(folder.log("abcdefgh-1")).events)
        assert contents(store, "abcdefgh-1") == [event.message.content for event in record]
        rows = store.messages.of("abcdefgh-1")
        assert rows[6]["content"] == "\ufffd half a pair"
        assert rows[6]["text_replaced"]
        assert [row["message_index"] for row in rows if row["empty"]] == [7, 8]


@given(events=st.tuples(*map(filled, EVENT_TYPES)))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_event_is_an_event_to_the_importer(
    tmp_path_factory: pytest.TempPathFactory, events: tuple[Event, ...]
) -> None:
    """What the one decoder reads, the importer reads as well: every type, every field set, no line taken for damage."""
    root = OutputRoot(tmp_path_factory.mktemp("root"))
    folder = make(root, "abcdefgh", [[start(), _small(event)] for event in events])
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        assert (done.damage, done.unknown, done.failed) == ((), 0, None)
        for number, event in enumerate(events, 1):
            assert store.events.counts(f"abcdefgh-{number}")[type(event).__name__] >= 1


def _small(event: Event) -> Event:
    """With whole numbers that a log of ours could hold: places and counts are no larger than 64 bits with a sign."""

    def shrink(value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value % 2**31
        if isinstance(value, dict):
            return {key: shrink(inner) for key, inner in value.items()}
        return [shrink(inner) for inner in value] if isinstance(value, list) else value

    return msgspec.convert(shrink(msgspec.to_builtins(event)), type(event))


# A real record


async def test_a_run_is_taken_whole(tmp_path: Path) -> None:
    """Seats, settings, awareness, seed, usage and times of a real run are columns, and its totals are those told."""
    spec = experiment(
        "local:test?words=9",
        "local:test?words=7&thinking=1",
        agents={"a": {"temperature": 0.3, "awareness": "basic"}, "b": {"system_prompt": "Be brief."}},
        max_turns=3,
        seed=5,
        sweep={"a.top_p": [0.5]},
    )
    run = await converse(tmp_path, spec)
    with open_store(run.root) as store:
        assert store.import_experiment(run.folder).failed is None
        (row,) = store.conversations.of(run.folder.experiment_id)
        a, b = store.conversations.agents(run.folder.experiment_id)
        said_ = store.messages.of(row["conversation_id"])
        assert (row["status"], row["end_reason"], row["turns"], row["messages"]) == ("completed", "turn_limit", 3, 6)
        assert row["seed"] == run.events[0].seed  # type: ignore[attr-defined]
        assert json.loads(row["variables"]) == {"a.top_p": 0.5}
        assert (a["temperature"], a["top_p"], a["awareness"], a["opens"]) == (0.3, 0.5, "basic", True)
        assert (b["temperature"], b["system_prompt"], b["think"], b["opens"]) == (None, "Be brief.", None, False)
        assert a["system_prompt"]
        ended = [event for event in run.events if isinstance(event, ConversationEndEvent)][-1]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (
            ended.totals.prompt_tokens,
            ended.totals.completion_tokens,
        )
        assert [m["content"] for m in said_] == [event.message.content for event in messages(run.events)]
        assert all(m["view_digest"] and m["duration_ms"] is not None and m["requested_at"] for m in said_)
        thoughts = [event.content for event in run.events if isinstance(event, ThinkingCompleteEvent)]
        assert [t["content"] for t in store.messages.thinking(row["conversation_id"])] == thoughts
        assert thoughts
        (dashboard,) = store.experiments.all()
        assert (dashboard["status"], dashboard["messages"], dashboard["arms"]) == ("completed", 6, 1)
        words = {use["word"]: use["uses"] for use in store.messages.words(run.folder.experiment_id)}
        assert words
        assert sum(words.values()) <= sum(len(m["content"].split()) * 2 for m in said_)


def test_things_beside_the_messages(tmp_path: Path) -> None:
    """Tools, interventions, errors, usage and invalid or notable marks have rows and columns of their own."""
    root = OutputRoot(tmp_path)
    at: dict[str, Any] = {"agent_id": "a", "turn_number": 1, "message_index": 0}
    folder = make(
        root,
        "abcdefgh",
        [
            [
                start(),
                turn_start(),
                InterventionEvent(turn_number=1, source="person", audience=("a", "b"), text="Hm.", placement="user"),
                QuestionAbandonedEvent(
                    agent_id="a", turn_number=1, purpose="summary", why="gone", partial="They", attempt=1
                ),
                APIErrorEvent(
                    **at, error="Overloaded", provider="x", status=529, retryable=True, attempt=1, message="!"
                ),
                ToolCallEvent(**at, call_id="c1", name="clock", arguments="{}"),
                ToolResultEvent(**at, call_id="c1", content="12:00", duration_ms=3.0),
                said("It is twelve."),
                TokenUsageEvent(agent_id="a", provider="x", model="m", prompt_tokens=3, completion_tokens=4, cost=0.5),
                said("Is it?", "b", 1, 1),
                TokenUsageEvent(agent_id="b", provider="x", model="m", prompt_tokens=5, completion_tokens=None),
                end(invalid=("wrong_model_served",), notable={"empty": 2, "refused": 1}),
            ]
        ],
    )
    with EventStore(root) as store:
        store.import_experiment(folder)
        con = store.connect()
        (row,) = store.conversations.of("abcdefgh")
        assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == (8, None, None)
        assert (row["invalid"], row["invalid_reasons"]) == (True, ["wrong_model_served"])
        assert (row["notable"], row["empty_messages"], row["refused_messages"], row["truncated_messages"]) == (
            True,
            2,
            1,
            0,
        )
        assert store.conversations.of("abcdefgh", invalid=False) == []
        assert con.execute("SELECT name, arguments, result, is_error FROM tool_calls").fetchall() == [
            ("clock", "{}", "12:00", False)
        ]
        assert con.execute("SELECT source, kind, audience, text FROM interventions").fetchall() == [
            ("person", "inject", ["a", "b"], "Hm.")
        ]
        given_up, error = store.events.errors("abcdefgh")
        assert (given_up["event_type"], given_up["message"], given_up["partial"]) == (
            *("QuestionAbandonedEvent", "gone", "They"),
        )
        assert (error["error"], error["status"], error["retryable"]) == ("Overloaded", 529, True)
        con.close()


STEPS = [
    said("x"),
    ConversationPausedEvent(by="person", turn_number=1, message_index=0),
    ConversationResumedEvent(by="person", turn_number=1, message_index=0),
    end(),
    end(Status.FAILED, error="Overloaded: no"),
    end(Status.STOPPED),
]


@given(talks=st.lists(st.lists(st.sampled_from(STEPS), max_size=6), min_size=4, max_size=8), live=st.booleans())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_status_is_that_of_the_fold(
    tmp_path_factory: pytest.TempPathFactory, talks: list[list[Event]], live: bool
) -> None:
    """The status in the database is what `run_state` makes of the events; running without a runner is interrupted."""
    root = OutputRoot(tmp_path_factory.mktemp("root"))
    logs = []
    for steps in talks:
        events: list[Event] = [start()]
        for step in steps:
            if isinstance(events[-1], ConversationEndEvent):  # nothing else may follow an end
                events.append(ConversationResumedEvent(by="person", turn_number=1, message_index=0))
            events.append(step)
        logs.append(events)
    folder = make(root, "abcdefgh", logs)
    with EventStore(root) as store:
        store.import_experiment(folder, live=live)
        rows = {row["conversation_id"]: row for row in store.conversations.of("abcdefgh")}
    for number, events in enumerate(logs, 1):
        state = run_state(events)
        unended = state.status in (Status.RUNNING, Status.PAUSED)
        row = rows[f"abcdefgh-{number}"]
        assert row["status"] == ("interrupted" if unended and not live else state.status)
        assert row["end_reason"] == state.end_reason


# Metrics


def metric_turn(metrics: dict[str, Any], turn: int = 1) -> TurnCompleteEvent:
    return TurnCompleteEvent(turn_number=turn, metrics=metrics)


def test_metrics_in_the_log_become_columns(tmp_path: Path) -> None:
    """Values have the type of their column, what is absent or null is NULL and never 0, strange names are left out."""
    root = OutputRoot(tmp_path)
    metrics = {
        "version": "7",
        "messages": {
            "0": {"ttr": 0.5, "tokens": 4, "truncated": True, "message_class": "normal", "; DROP": 1},
            "1": {"ttr": None, "tokens": 0},
        },
        "turn": {"overlap": 0.25, "convergence_ab": 0.5},
    }
    events = [start(), turn_start(), said("Yes."), said("No.", "b", 1, 1), metric_turn(metrics), end()]
    folder = make(root, "abcdefgh", [events])
    with EventStore(root, METRICS) as store:
        store.import_experiment(folder)
        one, two = store.metrics.by_message("abcdefgh")
        assert {name: one[name] for name in ("ttr", "tokens", "truncated", "message_class", "metrics_version")} == {
            "ttr": 0.5,
            "tokens": 4,
            "truncated": True,
            "message_class": "normal",
            "metrics_version": "7",
        }
        assert (two["agent_id"], two["ttr"], two["tokens"], two["truncated"]) == ("b", None, 0, None)
        (turn,) = store.metrics.by_turn("abcdefgh")
        assert (turn["overlap"], json.loads(turn["metrics"])) == (0.25, {"overlap": 0.25, "convergence_ab": 0.5})
        assert store.metrics.names() == ["ttr", "tokens", "truncated", "message_class"]
        (ttr,) = store.experiments.statistics("abcdefgh", "ttr")
        assert (ttr["n"], ttr["mean"]) == (1, 0.5)


def test_metrics_of_a_whole_conversation_are_rows(tmp_path: Path) -> None:
    """What the end of a conversation says of it as a whole is one row per name, for any number of agents."""
    root = OutputRoot(tmp_path)
    last = end(metrics={"heaps_beta": 0.5, "adoption_rate_ab": 0.25, "end_state": "echo"})
    folder = make(root, "abcdefgh", [[start(), said("Yes."), last]])
    with EventStore(root) as store:
        store.import_experiment(folder)
        con = store.connect()
        assert con.execute("SELECT name, value, number FROM conversation_metrics ORDER BY name").fetchall() == [
            ("adoption_rate_ab", "0.25", 0.25),
            ("end_state", "echo", None),
            ("heaps_beta", "0.5", 0.5),
        ]
        con.close()


def test_a_log_without_metrics_has_none(tmp_path: Path) -> None:
    """Where the log carries no metrics, there is no row, and no zeros anywhere."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("Yes.", "No.")])
    with EventStore(root, METRICS) as store:
        store.import_experiment(folder)
        assert store.metrics.by_message("abcdefgh") == []


def test_new_metrics_are_read_from_logs_that_were_taken(tmp_path: Path) -> None:
    """A metric that was unknown at the last import gets its column and its values at the next one."""
    root = OutputRoot(tmp_path)
    events = [start(), turn_start(), said("Yes."), metric_turn({"messages": {"0": {"ttr": 0.5, "tokens": 4}}}), end()]
    folder = make(root, "abcdefgh", [events])
    with EventStore(root, METRICS[:1]) as store:
        store.import_experiment(folder)
        assert store.metrics.names() == ["ttr"]
    with EventStore(root, METRICS) as store:
        assert store.import_experiment(folder).conversations == 1
        assert [row["tokens"] for row in store.metrics.by_message("abcdefgh", ["tokens"])] == [4]


def test_a_metric_cannot_smuggle_sql(tmp_path: Path) -> None:
    """The name of a metric is a plain identifier or an error."""
    with (
        pytest.raises(StoreError, match="cannot be the name"),
        EventStore(OutputRoot(tmp_path), [MetricColumn('x" DOUBLE); DROP TABLE messages; --', "message")]) as store,
    ):
        store.import_experiments([])


# Again, and side by side


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    """A second import takes no conversation and doubles no row; `again` gives the same rows."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two."), talk("Three.", "Four.")])
    with EventStore(root, METRICS) as store:
        first = store.import_experiment(folder)
        assert (first.conversations, first.unchanged, first.messages) == (2, 0, 4)
        before = everything(store)
        second = store.import_experiment(folder)
        assert (second.conversations, second.unchanged) == (0, 2)
        assert everything(store) == before
        store.import_experiments([folder], again=True)
        assert everything(store) == before


async def test_an_unchanged_database_is_not_written(tmp_path: Path) -> None:
    """Importing a finished run again leaves the very same file."""
    run = await converse(tmp_path, experiment("local:test?words=4", "local:test?words=4"))
    with EventStore(run.root) as store:
        store.import_experiment(run.folder)
        before = store.path.stat()
        assert not store.import_experiment(run.folder).changed
        after = store.path.stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def everything(store: EventStore) -> dict[str, list[tuple[Any, ...]]]:
    con = store.connect()
    try:
        columns = {"experiments": "* EXCLUDE (imported_at)"}
        return {
            table.name: con.execute(f"SELECT {columns.get(table.name, '*')} FROM {table.name} ORDER BY ALL").fetchall()
            for table in described(con)
        }
    finally:
        con.close()


def test_a_grown_log_is_read_again_and_others_are_not(tmp_path: Path) -> None:
    """Of two conversations only the one that went on is replaced."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One."), talk("Three.", "Four.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        append(
            folder, 1, ConversationResumedEvent(by="person", turn_number=1, message_index=1), said("More.", "b", 1, 1)
        )
        done = store.import_experiment(folder)
        assert (done.conversations, done.unchanged) == (1, 1)
        assert contents(store, "abcdefgh-1") == ["One.", "More."]
        assert contents(store, "abcdefgh-2") == ["Three.", "Four."]


def test_rows_stay_when_a_log_is_gone(tmp_path: Path) -> None:
    """An import never deletes what it cannot replace."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One."), talk("Two.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        folder.log("abcdefgh-1").unlink()
        folder.log("abcdefgh-2").unlink()
        folder.log("abcdefgh-2").mkdir()  # cannot be read, whoever runs the test
        done = store.import_experiment(folder)
        assert [damage.why for damage in done.damage] == ["unreadable"]
        assert contents(store, "abcdefgh-1") == ["One."]
        assert contents(store, "abcdefgh-2") == ["Two."]


def test_readers_keep_what_they_have_open(tmp_path: Path) -> None:
    """A reader that is open during an import goes on with its rows; the next one has the new ones."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        reader = store.connect()
        append(
            folder, 1, ConversationResumedEvent(by="person", turn_number=1, message_index=1), said("Two.", "b", 1, 1)
        )
        store.import_experiment(folder)
        assert reader.execute("SELECT content FROM messages").fetchall() == [("One.",)]
        with pytest.raises(duckdb.Error, match="read-only"):
            reader.execute("DELETE FROM messages")
        reader.close()
        assert contents(store, "abcdefgh-1") == ["One.", "Two."]


READER = """
import sys
from pathlib import Path
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import OutputRoot
with EventStore(OutputRoot(Path(sys.argv[1]))) as store:
    for _ in sys.stdin:
        print(len(store.messages.of("abcdefgh-1")), flush=True)
"""
IMPORTER = """
import sys
from pathlib import Path
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import OutputRoot
root = OutputRoot(Path(sys.argv[1]))
def taken(done):
    print("taken", flush=True)
    sys.stdin.readline()
with EventStore(root) as store:
    store.import_experiments(root.folders(), report=taken)
"""


def test_readers_are_undisturbed_while_another_process_imports(tmp_path: Path) -> None:
    """Readers that opened before an import or in the middle of it keep the old rows; later ones have the new."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
    append(folder, 1, ConversationResumedEvent(by="person", turn_number=1, message_index=1), said("Two.", "b", 1, 1))
    with contextlib.ExitStack() as stack:

        def process(code: str) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", code, str(tmp_path)]
            return stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1))

        def ask(process: subprocess.Popen[str]) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            return process.stdout.readline().strip()

        before = process(READER)
        assert ask(before) == "1"
        importing = process(IMPORTER)
        assert importing.stdout is not None
        assert importing.stdout.readline() == "taken\n"
        during = process(READER)
        assert [ask(before), ask(during)] == ["1", "1"]
        importing.communicate("\n", timeout=60)
        assert importing.returncode == 0
        assert [ask(before), ask(during), ask(process(READER))] == ["1", "1", "2"]


def test_importers_queue(tmp_path: Path) -> None:
    """Two processes that import at once both succeed, and nothing of either is missing."""
    root = OutputRoot(tmp_path)
    folders = [make(root, name, [talk("One.", "Two.")]) for name in ("abcdefgh", "ijklmnop")]
    code = "import sys; from pidgin_cli.cli.app import run; sys.exit(run(sys.argv[1:]))"
    lock = FileLock(root.experiments / ".experiments.duckdb.lock")
    with lock:
        waiting = [
            subprocess.Popen(
                [sys.executable, "-c", code, "import", folder.experiment_id, "-o", str(tmp_path)],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for folder in folders
        ]
        for process in waiting:
            assert process.stderr is not None
            assert "another import is under way" in process.stderr.readline()
    for process in waiting:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with EventStore(root) as store:
        assert {row["experiment_id"] for row in store.experiments.all()} == {"abcdefgh", "ijklmnop"}
        assert [contents(store, f"{name}-1") for name in ("abcdefgh", "ijklmnop")] == [["One.", "Two."]] * 2


def test_a_killed_import_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle: the old rows are there, the next import takes all, and nothing is left lying about."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
    append(folder, 1, ConversationResumedEvent(by="person", turn_number=1, message_index=1), said("Two.", "b", 1, 1))
    code = (
        "import os, signal; from pathlib import Path; from pidgin_cli.eventlog.folder import OutputRoot; "
        "from pidgin_cli.database.store import EventStore; "
        f"root = OutputRoot(Path({str(tmp_path)!r})); "
        "EventStore(root).import_experiments(root.folders(), again=True, "
        "report=lambda done: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with EventStore(root) as store:
        assert contents(store, "abcdefgh-1") == ["One."]
        store.import_experiment(folder)
        assert contents(store, "abcdefgh-1") == ["One.", "Two."]
    left = {path.name for path in root.experiments.iterdir() if path.is_file()}
    assert left == {"experiments.duckdb", ".experiments.duckdb.lock"}


# Damage


def test_damage_is_told_and_the_rest_is_taken(tmp_path: Path) -> None:
    """A torn end, a broken line, bytes that are no UTF-8, an unknown type: each told with its line, all else taken."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two.") for _ in range(5)])
    logs = [folder.log(f"abcdefgh-{number}") for number in range(1, 6)]
    lines = logs[0].read_bytes().splitlines(keepends=True)
    logs[0].write_bytes(b"".join([*lines[:3], b'{"event_type":"MessageComp\x00\n', *lines[4:]]))
    logs[1].write_bytes(logs[1].read_bytes() + b'{"event_type":"ConversationRes')
    lines = logs[2].read_bytes().splitlines(keepends=True)
    logs[2].write_bytes(b"".join([*lines[:2], lines[2].replace(b"One.", b"O\xffe."), *lines[3:]]))
    lines = logs[3].read_bytes().splitlines(keepends=True)
    logs[3].write_bytes(b"".join([*lines[:1], b'{"event_type":"MoonPhaseEvent","seq":1,"phase":"new"}\n', *lines[2:]]))
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        assert done.conversations == 5
        assert [(damage.log[5:15], damage.line, damage.why) for damage in done.damage] == [
            ("abcdefgh-1", 4, "broken"),
            ("abcdefgh-2", 7, "torn"),
            ("abcdefgh-3", 3, "broken"),
        ]
        assert done.unknown == 1
        for number, log in enumerate(logs, 1):
            kept = [event.message.content for event in messages(read_record(log).events)]
            assert contents(store, f"abcdefgh-{number}") == kept
        assert [row["damaged_lines"] for row in store.conversations.of("abcdefgh")] == [1, 1, 1, 0, 0]
        assert len(store.events.damaged("abcdefgh")) == 3
        (moon,) = store.events.of("abcdefgh-4", "MoonPhaseEvent")
        assert (moon["known"], json.loads(moon["data"])["phase"]) == (False, "new")


@pytest.mark.parametrize(
    "line",
    [
        b'{"event_type":"MessageCompleteEvent","seq":3}',
        b'{"event_type":"MessageCompleteEvent","agent_id":"a","turn_number":1,"message_index":0,"message":{"role":'
        b'"assistant"},"finish_reason":"stop","model_requested":"m"}',
        b'{"event_type":"TurnStartEvent","turn_number":"x","speakers":["a"]}',
        b"[1, 2]",
        b"7",
        b"null",
        b"{}",
        b'{"event_type":5}',
        b"}{",
        b"{" * 3000,
        b'{"event_type":"ErrorEvent","error":"\\ud800","message":"","where":""}',
    ],
)
def test_a_line_that_is_no_event_is_told(tmp_path: Path, line: bytes) -> None:
    """What the decoder calls broken, the importer calls broken, and goes on behind it."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two.")])
    log = folder.log("abcdefgh-1")
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))
    (skipped,) = read_record(log).skipped
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        if skipped.why == "unknown":
            assert done.unknown == 1
        else:
            assert [(damage.line, damage.why) for damage in done.damage] == [(3, "broken")]
        assert contents(store, "abcdefgh-1") == ["One.", "Two."]


def test_numbers_that_no_column_can_hold(tmp_path: Path) -> None:
    """A number beyond 64 bits makes its line a damaged one; everything around it is taken."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two."), talk("Three.", "Four."), talk("Five.", "Six.")])
    for number, (field, place) in enumerate(((rb'"turn_number":\d+', 4), (rb'"notable":{"empty":\d+', 5)), 1):
        log = folder.log(f"abcdefgh-{number}")
        lines = log.read_bytes().splitlines(keepends=True)
        if not re.search(field, lines[place]):
            lines[place] = lines[place].replace(b'"totals"', b'"notable":{"empty":0},"totals"')
        lines[place] = re.sub(rb"(?<=%s)\d+" % field.removesuffix(rb"\d+"), b"1" + b"0" * 25, lines[place])
        log.write_bytes(b"".join(lines))
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        assert (done.failed, done.conversations) == (None, 3)
        assert [(damage.log, damage.line, damage.why) for damage in done.damage] == [
            ("conv_abcdefgh-1_events.jsonl", 5, "broken"),
            ("conv_abcdefgh-2_events.jsonl", 6, "broken"),
        ]
        assert contents(store, "abcdefgh-1") == ["One.", "Two."]
        assert contents(store, "abcdefgh-3") == ["Five.", "Six."]


def test_a_log_that_cannot_be_taken_keeps_no_other_back(tmp_path: Path) -> None:
    """Where the database refuses what a log says, that log is named, its old rows stay, and all others are taken."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One."), talk("Two.")])
    usage = TokenUsageEvent(agent_id="a", provider="x", model="m", prompt_tokens=2**62, completion_tokens=1)
    with EventStore(root) as store:
        store.import_experiment(folder)
        append(folder, 1, usage, usage, usage)  # their sum is beyond 64 bits
        append(folder, 2, said("More.", "b", 1, 1))
        done = store.import_experiment(folder)
        assert (done.conversations, done.failed) == (1, None)
        (damage,) = done.damage
        assert (damage.log, damage.line) == ("conv_abcdefgh-1_events.jsonl", 0)
        assert "what was imported of it before is still there" in str(damage)
        assert contents(store, "abcdefgh-1") == ["One."]
        assert contents(store, "abcdefgh-2") == ["Two.", "More."]


UNUSUAL = {
    "empty": ["", ""],
    "emoji": ["\U0001f600\U0001f600", "\U0001f44d\U0001f3fd"],
    "chinese": ["\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u518d\u89c1"],
    "right to left": ["\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627"],
    "code": ["```python\nprint('x')\n```", "`y`"],
    "questions": ["Why? " * 10_000, "What?"],
    "NUL": ["\x00", "a\x00b"],
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_conversations(tmp_path: Path, kind: str) -> None:
    """Empty, emoji only, Chinese, right to left, code, 10,000 questions: words, metrics, word counts and every view."""
    root = OutputRoot(tmp_path)
    texts = UNUSUAL[kind]
    watcher = Watcher(ConversationSpec(agents=start().agents, opening=""), {"a": "Wren", "b": "Finch"}, "")
    replies = [said(text, "ab"[place], 1, place) for place, text in enumerate(texts)]
    for reply in replies:
        watcher.take(reply)
    turn = TurnCompleteEvent(turn_number=1, metrics=watcher.turn_metrics(1))
    folder = make(root, "abcdefgh", [[start(), turn_start(), *replies, turn, end()]])
    with open_store(root) as store:
        assert store.import_experiment(folder).damage == ()
        assert contents(store, "abcdefgh-1") == texts
        rows = store.metrics.by_message("abcdefgh", ["chars", "question_share", "tokenizer_version", "lexicon_version"])
        assert [row["chars"] for row in rows] == [len(text) for text in texts]
        versions = {(row["tokenizer_version"], row["lexicon_version"]) for row in rows}
        assert versions == {(TOKENIZER_VERSION, LEXICON_VERSION)}
        uses = {(use["word"], use["uses"]) for use in store.messages.words("abcdefgh")}
        if kind == "questions":
            assert rows[0]["question_share"] == 1.0
            assert ("why", 10_000) in uses
        if kind == "emoji":
            assert uses == set()
            assert {use["uses"] for use in store.messages.words("abcdefgh", "emoji")} == {1, 2}
        assert verify(store, folder).faults == ()
        everything(store)


def test_what_stands_twice_is_taken_once(tmp_path: Path) -> None:
    """A message whose line was copied counts once, and the copy is told."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [[start(), turn_start(), said("One."), said("Other."), said("Two.", "b", 1, 1)]])
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        assert [(damage.line, damage.why) for damage in done.damage] == [(4, "repeated")]
        assert contents(store, "abcdefgh-1") == ["One.", "Two."]


def test_a_log_without_its_beginning_is_not_taken(tmp_path: Path) -> None:
    """Emptied, or without the start of the conversation: named, its rows stay, none are made, all others are taken."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two.", arm="x") for _ in range(5)])
    logs = [folder.log(f"abcdefgh-{number}") for number in range(1, 6)]
    lines = logs[0].read_bytes().splitlines(keepends=True)
    damaged = [
        b"",
        b"".join(lines[1:]),
        b"rubbish\n" + b"".join(lines[1:]),
        b'{"event_type":"MoonPhaseEvent","seq":0}\n',
    ]
    why = ["it holds no events any more", *["it does not begin with the start of the conversation"] * 3]
    kept = "; what was imported of it before is still there"
    with EventStore(root) as store:
        store.import_experiment(folder)
        before = everything(store)
        for log, content in zip(logs, damaged, strict=False):
            log.write_bytes(content)
        append(folder, 5, ConversationResumedEvent(by="person", turn_number=1, message_index=2))
        for _ in range(2):
            done = store.import_experiment(folder)
            assert (done.conversations + done.unchanged, done.failed) == (1, None)
            assert [str(damage) for damage in done.damage] == [
                f"{log.name}: {reason}{kept}" for log, reason in zip(logs, why, strict=False)
            ]
            now = everything(store)
            for table in ("conversations", "messages", "agents", "turns"):
                assert [r for r in now[table] if "abcdefgh-5" not in r] == [
                    r for r in before[table] if "abcdefgh-5" not in r
                ]
        store.path.unlink()
        done = store.import_experiment(folder)
        assert [str(damage) for damage in done.damage] == [
            f"{log.name}: {reason}" for log, reason in zip(logs, why, strict=False)
        ]
        assert [row["conversation_id"] for row in store.conversations.of("abcdefgh")] == ["abcdefgh-5"]


@pytest.mark.parametrize("live", [True, False])
def test_a_log_that_has_only_just_begun(tmp_path: Path, live: bool) -> None:
    """An empty file or half of the first line are no damage; while a runner lives, whatever the manifest says."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [[], []], last_seq=4 if live else -1)
    folder.log("abcdefgh-1").touch()
    folder.log("abcdefgh-2").write_bytes(b'{"event_type":"Conversat')
    with EventStore(root) as store:
        done = store.import_experiment(folder, live=live)
        assert (done.conversations, [damage.why for damage in done.damage]) == (2, ["torn"])
        assert {row["status"] for row in store.conversations.of("abcdefgh")} == {"created"}
        append(folder, 1, start(), turn_start())
        folder.log("abcdefgh-1").write_bytes(folder.log("abcdefgh-1").read_bytes()[:-9])
        store.import_experiment(folder, live=live)
        row, _ = store.conversations.of("abcdefgh")
        assert (row["status"], row["damaged_lines"]) == ("running" if live else "interrupted", 1)


def test_gaps_are_told_with_their_place(tmp_path: Path) -> None:
    """Lines that are gone are named, and counted as damaged ones; the log's other lines are taken."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.", "Two.", "Three.", "Four.") for _ in range(2)])
    for number, (place, gone) in enumerate(((2, 1), (4, 3)), 1):
        log = folder.log(f"abcdefgh-{number}")
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:place] + lines[place + gone :]))
    with EventStore(root) as store:
        done = store.import_experiment(folder)
        assert [str(damage) for damage in done.damage] == [
            "conv_abcdefgh-1_events.jsonl: 1 event is missing before line 3",
            "conv_abcdefgh-2_events.jsonl: 3 events are missing before line 5",
        ]
        assert [row["damaged_lines"] for row in store.conversations.of("abcdefgh")] == [1, 3]
        told = [(row["line"], row["why"], row["beginning"]) for row in store.events.damaged("abcdefgh")]
        assert told == [(3, "missing", "1 event is missing"), (5, "missing", "3 events are missing")]
        assert contents(store, "abcdefgh-1") == ["Two.", "Three.", "Four."]
        assert contents(store, "abcdefgh-2") == ["One.", "Two.", "Four."]


CHANGES = st.lists(
    st.tuples(st.sampled_from(["delete", "break", "unknown", "copy", "swap", "add"]), st.integers(1, 13)), max_size=4
)


@given(changes=st.lists(CHANGES, min_size=12, max_size=12))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gaps_are_those_of_the_decoder(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[tuple[str, int]]]
) -> None:
    """Beside broken, unknown, copied and exchanged lines the import misses the same events as the reader of logs."""
    root = OutputRoot(tmp_path_factory.mktemp("root"))
    folder = make(root, "abcdefgh", [talk("One", "Two", "Three", "Four", "Five", "Six") for _ in changes])
    expected = []
    for number, todo in enumerate(changes, 1):
        log = folder.log(f"abcdefgh-{number}")
        lines = log.read_bytes().splitlines()
        for change, place in todo:
            at = min(place, len(lines) - 1)
            line = {"break": b"{rubbish", "unknown": b'{"event_type":"MoonEvent"}', "add": b"7"}.get(change)
            if change == "delete":
                del lines[at]
            elif change == "swap":
                lines[at:] = [*lines[at + 1 : at + 2], lines[at], *lines[at + 2 :]]
            elif change in ("copy", "add"):
                lines.insert(at, line or lines[at])
            else:
                lines[at] = line or b""
        log.write_bytes(b"".join(line + b"\n" for line in lines))
        expected += [(log.name, gap.line, gap.events) for gap in read_record(log).gaps]
    with EventStore(root) as store:
        missing = [damage for damage in store.import_experiment(folder).damage if damage.why == "missing"]
    assert [(each.log, each.line, int(each.beginning.split()[0])) for each in missing] == expected


@pytest.mark.parametrize("logs", [[], [[]], [[start()]], [[start(), end(Status.FAILED, error="no")]]], ids=len)
def test_experiments_with_next_to_nothing_in_them(tmp_path: Path, logs: list[list[Event]]) -> None:
    """No conversation, an empty one, one that failed at once: a row for the experiment, and views that work."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", logs)
    if logs == [[]]:
        folder.log("abcdefgh-1").touch()
    with EventStore(root, METRICS) as store:
        assert store.import_experiment(folder).failed is None
        (row,) = store.experiments.all()
        assert (row["conversations"], row["messages"]) == (len(logs), 0)
        everything(store)


# The file itself


def test_a_root_that_duckdb_cannot_open(tmp_path: Path) -> None:
    """A question mark in the path is refused in one line, before anything is written."""
    root = OutputRoot(tmp_path / "what?")
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store, pytest.raises(StoreError, match="use another output root"):
        store.import_experiment(folder)
    assert not list(root.experiments.glob("*duckdb*"))


def test_without_a_database(tmp_path: Path) -> None:
    """Reading before anything was imported says what to type."""
    with EventStore(OutputRoot(tmp_path)) as store, pytest.raises(StoreError, match="pidgin import --all"):
        store.experiments.all()


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"", b"SQLite format 3\x00" + b"\x00" * 5000])
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """One clear line, for readers and importers, and the file stays what it was."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    path = root.experiments / "experiments.duckdb"
    path.write_bytes(content)
    with EventStore(root) as store:
        for ask in (store.experiments.all, lambda: store.import_experiment(folder)):
            with pytest.raises(StoreError, match="move it away"):
                ask()
    assert path.read_bytes() == content


def test_a_database_that_another_program_writes_to(tmp_path: Path) -> None:
    """Neither readers nor importers go past the lock of another program; both say what is the matter."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        code = (
            f"import duckdb, sys; c = duckdb.connect({str(store.path)!r}); print('open', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            store.close()
            for ask in (store.experiments.all, lambda: store.import_experiment(folder)):
                with pytest.raises(StoreError, match="open for writing in another program"):
                    ask()
            other.communicate("")
        assert contents(store, "abcdefgh-1") == ["One."]


def test_times_are_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the import runs, every moment in the database is UTC."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    created = read_manifest(folder).created_at.astimezone(UTC).replace(tzinfo=None)
    began = read_record(folder.log("abcdefgh-1")).events[0].timestamp.astimezone(UTC).replace(tzinfo=None)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        with EventStore(root) as store:
            store.import_experiment(folder)
            assert store.experiments.get("abcdefgh")["created_at"] == created
            assert store.conversations.of("abcdefgh")[0]["started_at"] == began
    time.tzset()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A database with more migrations than this version knows is neither read nor written."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [talk("One.")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        store.close()
        con = duckdb.connect(str(store.path))
        con.execute("INSERT INTO migrations VALUES (999, 'm999', NULL)")
        con.close()
        for ask in (store.experiments.all, lambda: store.import_experiment(folder)):
            with pytest.raises(StoreError, match="newer Pidgin"):
                ask()


def test_migrations_are_applied_once_and_in_order() -> None:
    """A migration that is appended is applied to what is there; nothing is applied twice."""

    def add_mood(con: duckdb.DuckDBPyConnection) -> None:
        con.execute("ALTER TABLE messages ADD COLUMN mood VARCHAR")

    con = duckdb.connect()
    migrate(con)
    con.execute("INSERT INTO messages (conversation_id, message_index, content) VALUES ('x-1', 0, 'Hm.')")
    for _ in range(2):
        set_up(con, METRICS, (*MIGRATIONS, add_mood))
    assert con.execute("SELECT content, mood FROM messages").fetchall() == [("Hm.", None)]
    applied = con.execute("SELECT number, name FROM migrations ORDER BY number").fetchall()
    assert applied == [(n, step.__name__) for n, step in enumerate((*MIGRATIONS, add_mood), 1)]
    con.close()


def test_a_failing_migration_leaves_nothing_behind() -> None:
    """A migration is one transaction."""

    def fail(con: duckdb.DuckDBPyConnection) -> None:
        con.execute("CREATE TABLE half (x INTEGER)")
        raise RuntimeError

    con = duckdb.connect()
    with pytest.raises(RuntimeError):
        migrate(con, (*MIGRATIONS, fail))
    assert schema.version_of(con) == len(MIGRATIONS)
    assert con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'").fetchone() == (0,)
    con.close()


def test_a_database_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """A database as the first version made it keeps its rows and gets every column and view of today."""
    root = OutputRoot(tmp_path)
    folder = make(root, "ijklmnop", [talk("New.")])
    with EventStore(root) as store:
        con = duckdb.connect(str(store.path))
        con.execute((Path(__file__).parent / "first_schema.sql").read_text())
        con.execute("INSERT INTO messages (conversation_id, message_index, content) VALUES ('abcdefgh-1', 0, 'Old.')")
        con.close()
        assert contents(store, "abcdefgh-1") == ["Old."]  # reading is enough
        store.import_experiment(folder)
        assert contents(store, "abcdefgh-1") == ["Old."]
        assert contents(store, "ijklmnop-1") == ["New."]
        fresh, con = duckdb.connect(), store.connect()
        set_up(fresh)
        assert columns(con) == columns(fresh)
        con.close()
        fresh.close()


def columns(con: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[str, str]]]:
    return {table.name: [column[:2] for column in table.columns] for table in described(con)}


def test_everything_is_described() -> None:
    """Every table, view and column of a table says what it means."""
    con = duckdb.connect()
    set_up(con)
    for table in described(con):
        assert table.meaning, table.name
        if not table.view and table.name != "migrations":
            assert all(meaning for _, _, meaning in table.columns), table.name
    con.close()


# Views


def test_a_branch_shows_what_it_shares(tmp_path: Path) -> None:
    """`conversation_messages` has the shared prefix through all ancestors, and own messages once."""
    root = OutputRoot(tmp_path)
    origin = make(root, "aaaaaaaa", [talk("A0", "A1", "A2", "A3")])

    def leaving(whom: str, turn: int, index: int, *texts: str) -> list[Event]:
        first = msgspec.structs.replace(
            start(), branch_of={"conversation_id": whom, "turn": turn, "message_index": index, "digest": "d"}
        )
        return [
            first,
            *(said(text, "ab"[(index + n) % 2], (index + n) // 2 + 1, index + n) for n, text in enumerate(texts)),
            end(),
        ]

    child = make(root, "bbbbbbbb", [leaving("aaaaaaaa-1", 1, 2, "B2", "B3", "B4")])
    grandchild = make(root, "cccccccc", [leaving("bbbbbbbb-1", 2, 4, "C4"), leaving("bbbbbbbb-1", 0, 0, "D0")])
    with EventStore(root) as store:
        store.import_experiments([grandchild, child])
        assert store.conversations.missing_origins() == ["aaaaaaaa-1"]
        store.import_experiment(origin)
        shown = {
            name: [(row["content"], row["own"]) for row in store.messages.of(name, shared=True)]
            for name in ("aaaaaaaa-1", "bbbbbbbb-1", "cccccccc-1", "cccccccc-2")
        }
    assert shown["aaaaaaaa-1"] == [("A0", True), ("A1", True), ("A2", True), ("A3", True)]
    assert shown["bbbbbbbb-1"] == [("A0", False), ("A1", False), ("B2", True), ("B3", True), ("B4", True)]
    assert shown["cccccccc-1"] == [("A0", False), ("A1", False), ("B2", False), ("B3", False), ("C4", True)]
    assert shown["cccccccc-2"] == [("D0", True)]


async def test_a_measure_is_one_thing(tmp_path: Path) -> None:
    """No two values of a conversation go by one name, a package's metric included; n is that of the conversations."""
    run = await converse(tmp_path, experiment("local:test", "local:test", max_turns=2, metrics="live"))
    folder = make(run.root, "abcdefgh", [talk(*["word"] * (2 + number % 5), arm="x") for number in range(40)])
    own = MetricColumn("turns", "message", "DOUBLE", "A package's.")
    with EventStore(run.root, metrics=(*open_store(run.root)._metrics, own)) as store:
        store.import_experiments([run.folder, folder])
        con = store.connect()
        sql = "SELECT measure FROM conversation_measures GROUP BY conversation_id, measure HAVING count(*) > 1"
        assert con.execute(sql).fetchall() == []
        con.close()
        measures = {row["measure"]: row["n"] for row in store.experiments.statistics(run.folder.experiment_id)}
        (row,) = store.experiments.statistics("abcdefgh", "messages")
    assert {"total_tokens", "tokens", "turns", "message:turns", "median_ttft_ms", "ttft_ms"} <= measures.keys()
    assert set(measures.values()) == {0, 1}
    low, high = scipy.stats.t.interval(0.95, 39, row["mean"], row["sd"] / 40**0.5)
    assert row["n"] == 40
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_conversations_that_branch_off_each_other_do_not_hang(tmp_path: Path) -> None:
    """A circle of origins, which only damage can make, ends."""
    root = OutputRoot(tmp_path)

    def off(whom: str) -> list[Event]:
        origin = {"conversation_id": whom, "turn": 1, "message_index": 1, "digest": ""}
        return [msgspec.structs.replace(start(), branch_of=origin), said("X"), said("Y", "b", 1, 1)]

    folder = make(root, "abcdefgh", [off("abcdefgh-2"), off("abcdefgh-1")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        assert store.messages.of("abcdefgh-1", shared=True)


def test_statistics_of_arms(tmp_path: Path) -> None:
    """n, mean, sd, median and interval are over valid conversations; the others are counted."""
    root = OutputRoot(tmp_path)
    logs = [talk(*["word"] * count, arm="x") for count in (2, 4, 6, 12)]
    invalid = [*talk("a", "b", arm="x")[:-1], end(invalid=("harness_fault",))]
    failed = [*talk("a", "b", arm="x")[:-1], end(Status.FAILED)]
    folder = make(root, "abcdefgh", [*logs, invalid, failed, talk("only", arm="y")])
    with EventStore(root) as store:
        store.import_experiment(folder)
        x, y = store.experiments.statistics("abcdefgh", "messages")
        assert (x["n"], x["mean"], x["median"], x["left_out"]) == (4, 6.0, 5.0, 2)
        assert x["sd"] == pytest.approx(4.320493798938574)
        # t of 3 degrees of freedom times sd / sqrt(4)
        low, high = scipy.stats.t.interval(0.95, 3, 6.0, x["sd"] / 2)
        assert (x["ci_low"], x["ci_high"]) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))
        assert (y["n"], y["mean"], y["sd"], y["ci_low"]) == (1, 1.0, None, None)
        trend = store.metrics.convergence("abcdefgh")
        assert [(row["turn_number"], row["n"], row["mean"]) for row in trend] == [
            (1, 4, 0.25),
            (2, 3, 0.75),
            (3, 2, 1.25),
            (4, 1, 1.75),
            (5, 1, 2.25),
            (6, 1, 2.75),
        ]


@pytest.mark.parametrize(("n", "t"), [(32, 2.0395), (61, 2.0003), (121, 1.9799), (1001, 1.9623)])
def test_intervals_of_many(n: int, t: float) -> None:
    """Beyond the table the interval follows Student's t to three decimals."""
    con = duckdb.connect()
    row = con.execute(f"SELECT {schema._spread('x')} FROM (SELECT range::DOUBLE AS x FROM range({n}))").fetchone()
    assert row is not None
    _, mean, sd, _, _, high = row
    assert (high - mean) / sd * n**0.5 == pytest.approx(t, abs=1e-3)
    con.close()


def test_every_swept_variable_is_a_column_of_the_conditions(tmp_path: Path) -> None:
    """`conditions` has a column for each variable of any experiment: numbers as such, whatever names they have."""
    root = OutputRoot(tmp_path)
    hostile = "x/~\"'); --"

    def under(variables: dict[str, Any]) -> list[Event]:
        return [msgspec.structs.replace(start(arm="x"), spec={"variables": variables}), said("x"), end()]

    one = [
        under({"a.temperature": 0.5, "seed": "s", hostile: "it's"}),
        under({"a.temperature": 1, "A.Temperature": True}),
    ]
    two = [under({"opening": "Hi."}), [start(), said("x")]]
    with EventStore(root) as store:
        store.import_experiment(make(root, "aaaaaaaa", one))
        store.import_experiment(make(root, "bbbbbbbb", two))
        con = store.connect()
        names = ["a.temperature_2", "seed_2", hostile, "A.Temperature", "opening", "valid"]
        columns = ", ".join(schema.quoted(name) for name in names)
        rows = con.execute(f"SELECT conversation_id, {columns} FROM conditions ORDER BY ALL").fetchall()
        con.close()
    assert rows == [
        ("aaaaaaaa-1", 0.5, "s", "it's", None, None, True),
        ("aaaaaaaa-2", 1.0, None, None, "true", None, True),
        ("bbbbbbbb-1", None, None, None, None, "Hi.", True),
        ("bbbbbbbb-2", None, None, None, None, None, False),
    ]


def test_what_detectors_and_scores_found_are_rows(tmp_path: Path) -> None:
    """`attractors` and `convergence_warnings` have a row per finding, with the arm."""
    root = OutputRoot(tmp_path)
    found = AttractorEvent(
        turn_number=1, message_index=1, detector="echo", value=0.9, threshold=0.8, onset=0, period=2, action="mark"
    )
    crossed = ConvergenceWarningEvent(turn_number=1, score="convergence", value=0.9, threshold=0.5, action="notify")
    folder = make(root, "abcdefgh", [[start(arm="x"), said("x"), said("x", "b", 1, 1), found, crossed, end()]])
    with EventStore(root) as store:
        store.import_experiment(folder)
        con = store.connect()
        rows = con.execute("SELECT * EXCLUDE (experiment_id, seq, happened_at) FROM attractors").fetchall()
        assert rows == [("abcdefgh-1", "x", 1, 1, "echo", 0.9, 0.8, 0, 2, "mark", False)]
        rows = con.execute("SELECT * EXCLUDE (experiment_id, seq, happened_at) FROM convergence_warnings").fetchall()
        assert rows == [("abcdefgh-1", "x", 1, "convergence", 0.9, 0.5, None, "notify")]
        con.close()


def test_swept_values_are_rows(tmp_path: Path) -> None:
    """`arm_variables` and `conversation_variables` give each swept value by name, as text and as a number."""
    root = OutputRoot(tmp_path)
    first = msgspec.structs.replace(
        start(arm="a.temperature=0.2, opening=it's"),
        spec={
            "variables": {"a.temperature": 0.2, "opening": "it's"},
            "first": "b",
            "order": "random",
            "seating": "m|n",
        },
    )
    folder = make(root, "abcdefgh", [[first, said("x"), end()]])
    with EventStore(root) as store:
        store.import_experiment(folder)
        con = store.connect()
        for view in ("arm_variables", "conversation_variables"):
            assert con.execute(f"SELECT name, value, number FROM {view} ORDER BY name").fetchall() == [
                ("a.temperature", "0.2", 0.2),
                ("opening", "it's", None),
            ]
        con.close()
        (row,) = store.conversations.of("abcdefgh")
        assert (row["first_speaker"], row["speaking_order"], row["seating"]) == ("b", "random", "m|n")
        assert [agent["opens"] for agent in store.conversations.agents("abcdefgh")] == [False, True]
