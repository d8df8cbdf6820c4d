"""Exports: the words of the record, in files that the programs they are meant for can read."""

import asyncio
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pandas  # type: ignore[import-untyped]
import polars
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import yaml
from commands import Pidgin, error_of, pidgin, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inspect_ai.analysis import messages_df, samples_df
from inspect_ai.log import EvalLog, EvalSample, read_eval_log, read_eval_log_sample_summaries
from runs import logged, make, said, start, turn_start
from strategies import TEXT
from support import experiment
from terminal import DEADLINE_S, ENVIRONMENT

from pidgin_cli.cli.database import open_store
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ConversationEndEvent,
    ErrorEvent,
    Event,
    ExperimentStartEvent,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageRequestEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    ToolCallEvent,
    ToolResultEvent,
    Totals,
    TurnCompleteEvent,
    View,
    WarningEvent,
)
from pidgin_cli.core.types import AgentSettings, EndReason, Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.metrics.tokens import tokenize
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.reports.export import EXPORTERS, export
from pidgin_cli.reports.export_redaction import Redactor

__all__ = ["pidgin"]

HOSTILE = [
    'comma, "quotes", \'single\' and ""',
    "\r\n\n\r lines \r",
    "\x00 NUL \x00",
    "",
    "NA",
    "null",
    " \u2028\u2029\x85\x1b[2J ",
    "=cmd|' /C calc'!A0",
    "<think>not thought</think> <script>alert(1)</script>",
    "attachment://0123456789abcdef0123456789abcdef",
    "x" * 200_000,
    '---\nlicense: "mit"\n--- \\',
    "\ud800 half a pair",
]
TABLES = ("csv", "jsonl", "parquet")


def talk(*texts: str, thought: str | None = None, **keys: Any) -> list[Event]:
    found: list[Event] = [start(**keys)]
    for place, text in enumerate(texts):
        turn = place // 2 + 1
        if place % 2 == 0:
            found.append(turn_start(turn))
        if thought is not None and place == 0:
            found.append(ThinkingCompleteEvent(agent_id="a", turn_number=1, message_index=0, content=thought))
        found.append(said(text, "ab"[place % 2], turn, place))
        if place % 2:
            found.append(TurnCompleteEvent(turn_number=turn, convergence=0.25))
    return [*found, end()]


def end(status: Status = Status.COMPLETED, **keys: Any) -> ConversationEndEvent:
    reason = EndReason.TURN_LIMIT if status is Status.COMPLETED else EndReason.PROVIDER_ERROR
    return ConversationEndEvent(status=status, end_reason=reason, totals=Totals(turns=1, messages=2), **keys)


def exported(root: OutputRoot, kind: str, target: Path, redactor: Redactor | None = None) -> Path:
    with open_store(root) as store:
        store.import_experiments(root.folders())
        ids = sorted(folder.experiment_id for folder in root.folders())
        export(store, ids, target, kind, version="0", redactor=redactor)
    return target


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_bytes())


# The words


def by_csv(folder: Path) -> list[str]:
    csv.field_size_limit(1 << 30)
    with (folder / "messages.csv").open(newline="", encoding="utf-8") as file:
        return [row["content"] for row in csv.DictReader(file)]


def by_pandas(folder: Path) -> list[str]:
    # The C engine of pandas before 3 cuts texts at NUL.
    return list(pandas.read_csv(folder / "messages.csv", keep_default_na=False, dtype=str, engine="python")["content"])


def by_polars(folder: Path) -> list[str]:
    return polars.read_csv(folder / "messages.csv", infer_schema=False)["content"].to_list()


def by_duckdb(folder: Path) -> list[str]:
    file = str(folder / "messages.csv").replace("'", "''")
    rows = duckdb.execute(
        f"SELECT content FROM read_csv('{file}', header = true, delim = ',', quote = '\"', escape = '\"', "
        "allow_quoted_nulls = false, auto_detect = true, max_line_size = 10000000, sample_size = -1)"
    ).fetchall()
    return [row[0] for row in rows]


def by_json(folder: Path) -> list[str]:
    lines = (folder / "messages.jsonl").read_bytes().split(b"\n")
    return [json.loads(line)["content"] for line in lines if line]


def by_arrow(folder: Path) -> list[str]:
    return list(pyarrow.parquet.read_table(folder / "messages.parquet")["content"].to_pylist())


READERS: dict[str, list[Callable[[Path], list[str]]]] = {
    "csv": [by_csv, by_pandas, by_polars, by_duckdb],
    "jsonl": [by_json],
    "parquet": [by_arrow],
}


@given(texts=st.lists(TEXT, min_size=24, max_size=60))
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_in_exports_are_those_of_the_record(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever models say, every reader of every format finds the words that stand in the log."""
    where = tmp_path_factory.mktemp("words")
    root = OutputRoot(where)
    make(root, "abcdefgh", [talk(*texts)])
    with open_store(root) as store:
        store.import_experiments(root.folders())
        for kind in EXPORTERS:
            export(store, ["abcdefgh"], where / kind, kind, version="0")
    for kind, readers in READERS.items():
        for reader in readers:
            assert reader(where / kind) == texts, reader.__name__
    rows = pyarrow.parquet.read_table(where / "hf" / "data" / "transcripts.parquet").to_pylist()
    assert [message["content"] for message in rows[0]["transcript"]] == texts
    sample = only(logs(where / "inspect")[0])
    assert [message.content for message in sample.messages[1:]] == texts


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of each format of hostile texts, in a place with an awkward name."""
    where = tmp_path_factory.mktemp("hostile") / "a 'b' ü"
    root = OutputRoot(where / "root")
    make(
        root, "abcdefgh", [talk(*HOSTILE, thought="\x00 </think>", names=("---\n", '"'))], name='x"]\n---\nlicense: mit'
    )
    for kind in EXPORTERS:
        exported(root, kind, where / kind)
    return where


@pytest.mark.parametrize("kind", TABLES)
def test_hostile_texts_are_exported_as_they_are(kind: str, hostile: Path) -> None:
    """Quotes, carriage returns, NUL, formulas and 200 kB come back from each reader; halves of pairs are U+FFFD."""
    expected = [*HOSTILE[:-1], "\ufffd half a pair"]
    for reader in READERS[kind]:
        assert reader(hostile / kind) == expected, reader.__name__


def test_csv_tells_null_from_the_empty_text(hostile: Path) -> None:
    """NULL is an empty field without quotes, the empty text one with quotes, as `schema.json` says."""
    found = polars.read_csv(hostile / "csv" / "messages.csv", infer_schema=False)
    assert found["content"].null_count() == 0
    assert found["fingerprint"].null_count() == len(HOSTILE)
    assert (
        "NULL is an empty field without quotes" in json.loads((hostile / "csv" / "schema.json").read_bytes())["values"]
    )


# What goes with them


@pytest.mark.parametrize("kind", EXPORTERS)
def test_every_file_is_in_the_manifest_with_its_hash(kind: str, hostile: Path) -> None:
    """`manifest.json` lists all other files with the SHA-256 and the rows they have, and the versions."""
    manifest = manifest_of(hostile / kind)
    assert (manifest["kind"], manifest["pidgin_version"], manifest["metrics_version"]) == (kind, "0", "1")
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {path.relative_to(hostile / kind).as_posix() for path in (hostile / kind).rglob("*") if path.is_file()}
    assert set(listed) == there - {"manifest.json"}
    for name, entry in listed.items():
        content = (hostile / kind / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])
        if name.endswith(".parquet"):
            assert pyarrow.parquet.read_metadata(hostile / kind / name).num_rows == entry["rows"]
        if name.endswith(".jsonl"):
            assert content.count(b"\n") == entry["rows"]


@pytest.mark.parametrize("kind", TABLES)
def test_the_schema_tells_every_column(kind: str, hostile: Path) -> None:
    """`schema.json` has each table with its columns in their order, each with a meaning or the name of a metric."""
    tables = json.loads((hostile / kind / "schema.json").read_bytes())["tables"]
    assert {path.stem for path in (hostile / kind).glob(f"*.{kind}")} == set(tables)
    for name, table in tables.items():
        columns = [column["name"] for column in table["columns"]]
        with (hostile / "csv" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            head = next(csv.reader(file))
        assert columns == head
        assert table["meaning"]
    assert all(column["meaning"] for column in tables["messages"]["columns"])


def study(where: Path) -> OutputRoot:
    """Two arms of two conversations, run."""
    root = OutputRoot(where)
    spec = experiment(
        "local:test",
        "local:test",
        agents={"a": {"system_prompt": "Be brief."}},
        sweep={"a.temperature": [0.5, 1]},
        repetitions=2,
        metrics="live",
        max_turns=2,
        name="A study",
    )

    async def run() -> None:
        pool = ProviderPool()
        await Runner(root, create_experiment(root, spec), pool).run()
        await pool.aclose()

    asyncio.run(run())
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> OutputRoot:
    return study(tmp_path_factory.mktemp("study"))


def test_independent_variables_are_columns(root: OutputRoot, tmp_path: Path) -> None:
    """Arm, seat, seed, model, temperature and what is swept stand beside each message and its metrics, typed."""
    folder = exported(root, "parquet", tmp_path / "out")
    for name in ("messages", "message_metrics"):
        rows = pyarrow.parquet.read_table(folder / f"{name}.parquet").to_pylist()
        assert len(rows) == 16
        for row in rows:
            assert row["arm"] == f"a.temperature={row['var_a_temperature']:g}"
            assert row["temperature"] == (row["var_a_temperature"] if row["seat"] == 0 else None)
            assert (row["model"], row["invalid"]) == ("local:test", False)
            assert isinstance(row["seed"], int)
            assert row["agent_id"] == "ab"[row["seat"]]
    kind = pyarrow.parquet.read_schema(folder / "messages.parquet").field("completed_at").type
    assert str(kind) == "timestamp[us, tz=UTC]"


# Hugging Face


def front_matter(folder: Path) -> Any:
    _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head)


@pytest.mark.parametrize("which", ["study", "hostile"])
def test_the_data_card_names_every_file(which: str, root: OutputRoot, hostile: Path, tmp_path: Path) -> None:
    """The head of the card is YAML with a configuration for each Parquet file, however the experiment is called."""
    folder = hostile / "hf" if which == "hostile" else exported(root, "hf", tmp_path / "out")
    head = front_matter(folder)
    assert set(head) == {"pretty_name", "size_categories", "task_categories", "tags", "configs"}
    assert {config["data_files"] for config in head["configs"]} == {
        path.relative_to(folder).as_posix() for path in folder.glob("data/*.parquet")
    }
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == ["transcripts"]
    for config in head["configs"]:
        assert pyarrow.parquet.read_metadata(folder / config["data_files"]).num_rows > 0


# Inspect


def logs(folder: Path) -> list[EvalLog]:
    return [read_eval_log(str(path)) for path in sorted(folder.glob("*.eval"))]


def _models(log: EvalLog) -> dict[str, str]:
    found = {}
    for role, config in (log.eval.model_roles or {}).items():
        assert not isinstance(config, list)
        found[role] = config.model
    return found


def only(log: EvalLog) -> EvalSample:
    assert log.samples is not None
    (sample,) = log.samples
    return sample


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # Inspect's use of pandas
def test_inspect_reads_its_logs(root: OutputRoot, tmp_path: Path) -> None:
    """One log per arm, its values the task's arguments; samples with messages, scores, usage, events, metadata."""
    folder = exported(root, "inspect", tmp_path / "logs")
    found = logs(folder)
    assert sorted(log.eval.task_args["a.temperature"] for log in found) == [0.5, 1.0]
    with open_store(root) as store:
        for log in found:
            assert (log.status, log.eval.task, log.eval.dataset.samples) == ("success", "A study", 2)
            assert _models(log) == {"a": "local/test", "b": "local/test"}
            assert log.results is not None
            by_name = {score.name: score.metrics["mean"].value for score in log.results.scores}
            assert by_name["turns"] == 2
            header = read_eval_log(log.location, header_only=True)
            assert header.eval == log.eval
            for sample in log.samples or ():
                said_ = store.messages.of(str(sample.id))
                assert [message.role for message in sample.messages[:2]] == ["system", "user"]
                assert [message.text for message in sample.messages[2:]] == [row["content"] for row in said_]
                assert [message.role for message in sample.messages[2:]] == ["assistant", "user"] * 2
                assert [(message.metadata or {})["agent_id"] for message in sample.messages[2:]] == list("abab")
                assert [event.event for event in sample.events] == ["model"] * 4
                assert [event.role for event in sample.events if event.event == "model"] == list("abab")
                assert sample.model_usage["local/test"].output_tokens == sum(r["completion_tokens"] for r in said_)
                assert sample.metadata["arm"] == f"a.temperature={log.eval.task_args['a.temperature']:g}"
                assert (sample.scores or {})["messages"].value == 4
                turns = store.conversations.turns((log.eval.metadata or {})["experiment_id"])
                (*_, last) = [each["convergence"] for each in turns if each["conversation_id"] == sample.id]
                assert (sample.scores or {})["convergence"].value == last
                assert "mattr_50" in (sample.scores or {})
            ids = [summary.id for summary in read_eval_log_sample_summaries(log.location)]
            assert ids == [sample.id for sample in log.samples or ()]
    frame = samples_df(str(folder), quiet=True)
    assert len(frame) == 4
    assert len(messages_df(str(folder), quiet=True)) == 4 * 5  # it leaves system prompts out


def test_inspect_is_told_of_thinking_and_hostile_texts(hostile: Path) -> None:
    """What was thought stands as reasoning before the text; what looks like markup stays text."""
    (log,) = logs(hostile / "inspect")
    sample = only(log)
    first = sample.messages[1]
    assert not isinstance(first.content, str)
    assert [part.type for part in first.content] == ["reasoning", "text"]
    assert first.content[0].reasoning == "\x00 </think>"  # type: ignore[union-attr]
    assert [message.text for message in sample.messages[1:]] == [*HOSTILE[:-1], "\ufffd half a pair"]


def test_inspect_averages_over_what_statistics_count(tmp_path: Path) -> None:
    """Means are over complete and valid conversations, as everywhere; an invalid one is marked, a failed one told."""
    root = OutputRoot(tmp_path)
    good, bad = talk("a", "b"), talk("c", "d", "e", "f")[:-1]
    failed = [*talk("e", "f", "g", "h")[:-1], end(Status.FAILED, error="it broke")]
    make(root, "abcdefgh", [good, [*bad, end(invalid=("harness_fault",))], failed, talk("i")[:-1]])
    (log,) = logs(exported(root, "inspect", tmp_path / "logs"))
    samples = {str(sample.id): sample for sample in log.samples or ()}
    assert samples["abcdefgh-1"].invalidation is None
    assert (samples["abcdefgh-2"].invalidation or pytest.fail("not invalidated")).reason == "harness_fault"
    assert (samples["abcdefgh-3"].error or pytest.fail("no error")).message == "it broke"
    assert (log.invalidated, log.status) == (True, "cancelled")
    assert log.results is not None
    (messages,) = [score for score in log.results.scores if score.name == "messages"]
    assert (messages.metrics["mean"].value, messages.scored_samples, messages.unscored_samples) == (2, 1, 3)


# Branches


def test_a_branch_is_exported_whole(pidgin: Pidgin) -> None:
    """Transcripts and logs of a branch begin with what it shares, which tables keep apart."""
    assert pidgin("chat", "-a", "local:test", "-b", "local:test", "-t", "2", "--seed", "1", "-n", "origin").status == 0
    (origin,) = OutputRoot().folders()
    assert pidgin("branch", f"{origin.experiment_id}-1", "--turn", "1", "-n", "limb").status == 0
    for kind in ("hf", "inspect", "jsonl"):
        assert pidgin("export", "limb", "--format", kind, "--to", kind).status == 0
    (row,) = pyarrow.parquet.read_table("hf/data/transcripts.parquet").to_pylist()
    assert [message["shared"] for message in row["transcript"]] == [True, True, False, False]
    with open_store(OutputRoot()) as store:
        words = [each["content"] for each in store.messages.of(row["conversation_id"], shared=True)]
    assert [message["content"] for message in row["transcript"]] == words
    (log,) = logs(Path("inspect"))
    sample = only(log)
    assert [message.text for message in sample.messages if message.source == "generate"] == words
    assert len(sample.events) == 2
    shared = [json.loads(line) for line in Path("jsonl/shared_messages.jsonl").read_text().splitlines()]
    assert [each["said_in"] for each in shared] == [f"{origin.experiment_id}-1"] * 2


# Redaction

SECRETS = [
    ("key", "my key is sk-ant-api03-abcdefghijklmnop_-1234 ok", "my key is [key-1] ok"),
    ("key", "Authorization: Bearer abcdef0123456789abcdef==", "Authorization: Bearer [key-1]"),
    ("key", "https://bob:hunter2@db.example.org/x", "https://[key-1]@db.example.org/x"),
    ("key", "AIzaSyA1234567890abcdefghijklmnopqrstuv", "[key-1]"),
    ("key", "it is topsecretvalue, then", "it is [key-1], then"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----!", "[key-1]!"),
    ("email", "write to Ann.O+x@mail.example.co.uk.", "write to [email-1]."),
    ("email", "\nünal@example.org", "\n[email-1]"),
    ("path", 'File "/home/ann/my/x.py", line 3', 'File "[path-1]", line 3'),
    ("path", "file:///Users/ann/x and C:\\Users\\Ann\\y.txt", "file://[path-1] and [path-2]"),
    ("path", "in /data/lab/runs/one.", "in [path-1]"),
    ("key", r'{"t": "a\nsk-abcdefghijklmnop\tb"}', r'{"t": "a\n[key-1]\tb"}'),
    ("email", r'{"t": "a\nann@example.org"}', r'{"t": "a\n[email-1]"}'),
    ("path", r'{"t": "a\n/home/ann/x", "u": "C:\\\\Users\\\\ann"}', r'{"t": "a\n[path-1]", "u": "[path-2]"}'),
    ("path", r'{"t": "\/data\/lab\/runs\/one"}', r'{"t": "[path-1]"}'),
    ("host", "on lab-gpu-7: 10.0.0.12 and 192.168.1.4:80", "on [host-1]: [host-2] and [host-3]:80"),
]
KEPT = [
    "risk-free task-based disk-aaaaaaaaaaaaaaaaaaaaa",
    "Let us meet @home, at 3@ or @ann. a@b",
    "the /homestead and //home and and/or",
    "relab-gpu-7x and 8.8.8.8, version 110.0.0.12",
    "/data/lab/runs-of-old",
    "hf_ sk- AKIA",
]


@pytest.mark.parametrize(("rule", "text", "expected"), SECRETS)
def test_what_is_redacted(rule: str, text: str, expected: str) -> None:
    """Each form gets a mark with the name of its rule, and is counted under it."""
    redactor = Redactor(["topsecretvalue"], ["/data/lab/runs/"], ["lab-gpu-7"])
    assert redactor(text) == expected
    assert {name for name, n in redactor.counts.items() if n} == {rule}


@pytest.mark.parametrize("text", KEPT)
def test_what_is_not_redacted(text: str) -> None:
    """Words that only look like it stay."""
    assert Redactor(["short"], ["/data/lab/runs"], ["lab-gpu-7", "localhost", "abc"])(text) == text


def test_redacting_long_texts_takes_no_longer_than_reading_them() -> None:
    """No rule searches a long run of letters from each of its letters."""
    redactor = Redactor()
    for text in (
        "a" * 1_000_000,
        "a.b-" * 250_000,
        "/home" * 200_000,
        "a@" * 500_000,
        "sk-" * 300_000,
        "://" * 300_000,
    ):
        redactor(text)


@pytest.mark.parametrize("kind", EXPORTERS)
def test_no_secret_is_left_in_an_export(
    kind: str, tmp_path: Path, pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--redact` no file holds the secrets, wherever they stood; equal ones have equal marks, all are counted."""
    secret = "sk-proj-abcdefghijklmnopqrstuvwx"
    monkeypatch.setenv("MY_SERVICE_API_KEY", "plain-looking-value")
    text = f"{secret}\nann@example.org plain-looking-value {Path.home()}/x"
    arms = (f"file={Path.home()}/one.yaml", f"file={Path.home()}/two.yaml")
    make(
        OutputRoot(),
        "abcdefgh",
        [
            [*talk(text, "hello ann@example.org", thought=text, arm=arms[0], names=("ann@example.org", "B"))],
            [*talk("x", "y", arm=arms[1])[:-1], end(Status.FAILED, error=f"{Path.home()}/file: {secret}")],
        ],
        name="by ann@example.org",
    )
    said_ = pidgin("export", "abcdefgh", "--format", kind, "--to", "out", "--redact")
    assert said_.status == 0
    assert "redacted: key " in said_.out
    counts = {rule: each["found"] for rule, each in manifest_of(Path("out"))["redaction"].items()}
    assert counts["key"] >= 5
    assert counts["email"] >= 4
    assert counts["path"] >= 4
    everything = "".join(_all_text(Path("out")))
    assert "[email-1]" in everything
    for hidden in (secret, "ann@example.org", "plain-looking-value", str(Path.home()) + "/"):
        assert hidden not in everything
    if kind == "jsonl":
        rows = [json.loads(line) for line in Path("out/conversations.jsonl").read_text().splitlines()]
        assert len({row["arm"] for row in rows}) == 2
        first = json.loads(Path("out/messages.jsonl").read_text().splitlines()[0])
        assert first["content"].startswith("[key-")
        assert (first["agent_name"],) == (first["content"].split("\n")[1].split(" ")[0],)


HIDDEN = {
    "key": "sk-proj-WibbleWobble-abcdefghijkl",
    "AWS": "AKIAZORKZORK7EXAMPLE",
    "of ours": "plugh-looking-value",
    "email": "zorblat@quuxmail.org",
    "path": f"{Path.home()}/grumblefoo/x.yaml",
    "host": "snarkbox-7",
}
PIECES = ("wibble", "zork", "plugh", "zorblat", "quuxmail", "grumblefoo", "snarkbox")
"""Of each of them, whatever is done to it on the way."""


@pytest.fixture(scope="module")
def full_of_secrets(tmp_path_factory: pytest.TempPathFactory) -> OutputRoot:
    """A record with all of `HIDDEN` in every place that takes a text."""
    root = OutputRoot(tmp_path_factory.mktemp("secrets"))
    s = " ".join(HIDDEN.values())
    written = json.dumps({"text": f"see\n{f'{chr(10)}'.join(HIDDEN.values())}", s: s})
    at: dict[str, Any] = {"agent_id": "a", "turn_number": 1, "message_index": 0}
    began = start(arm=f"x={s}", names=(s, "B"))
    agent = msgspec.structs.replace(
        began.agents[0],
        model=f"local:{HIDDEN['path']}",
        system_prompt=s,
        awareness=HIDDEN["path"],
        settings=AgentSettings(stop=(s,), extra={s: [s]}),
    )
    variables = {"x": s, f"a.extra.{HIDDEN['email']}": s}
    spec = began.spec | {"variables": variables, "first": s, "seating": s, "source": {"file": s, s: s}}
    view = View(0, 1, 0, 1)
    events = [
        msgspec.structs.replace(began, agents=(agent, began.agents[1]), spec=spec, opening=s, prompt_tag=s),
        SystemPromptEvent(agent_id="a", text=s),
        AgentNamedEvent(agent_id="a", name=s, reply=s),
        InterventionEvent(turn_number=0, source=s, audience=(s,), text=s, before=s, after=s),
        turn_start(),
        MessageRequestEvent(**at, view=view, digest="0", parameters={s: s}),
        APIErrorEvent(**at, error=s, provider=s, retryable=True, attempt=1, message=s),
        MessageAbandonedEvent(**at, why=s, partial=s),
        ThinkingCompleteEvent(**at, content=s),
        ToolCallEvent(**at, call_id="1", name=s, arguments=written),
        ToolResultEvent(**at, call_id="1", content=written),
        said(f"{s} {written} {s}"),
        said(f"Escaped: {written}", "b", 1, 1),
        HistoryCompactedEvent(
            agent_id="a", turn_number=1, policy="x", view=view, summary=s, model=s, estimated_tokens=1, limit_tokens=1
        ),
        WarningEvent(what=s, reason=s),
        ErrorEvent(error=s, message=s, where=s),
        TurnCompleteEvent(turn_number=1, detectors={s: s}, metrics={"turn": {s: 1}}),
        end(Status.FAILED, error=s, metrics={s: s}, invalid=(s,)),
    ]
    # The first 80 characters of a line that cannot be read end within the key.
    lone = f"rubbish {'-' * 52}{HIDDEN['key']}"
    folder = make(root, "abcdefgh", [events], name=s)
    log = folder.log("abcdefgh-1")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:-1], f"{lone}\n".encode(), lines[-1]]))
    runs = [
        ExperimentStartEvent(name=s, spec_hash="", conversations=1, pid=1, host=host, versions={s: s}, estimate={s: s})
        for host in (HIDDEN["host"], "another")
    ]
    plan = [msgspec.structs.replace(event, conversation_id=None) for event in logged("abcdefgh-0", runs)]
    folder.events.write_bytes(b"".join(encode(event) + b"\n" for event in plan))
    folder.spec.write_text(f'name: "see\\n{HIDDEN["key"]}\\n{HIDDEN["path"]}"\n# {s}\n')
    return root


@pytest.mark.parametrize("kind", EXPORTERS)
def test_no_piece_of_a_secret_is_left_anywhere(
    kind: str, full_of_secrets: OutputRoot, pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a record has text, and whatever was cut out of it before, `--redact` leaves no piece of a secret."""
    monkeypatch.setenv("MY_SERVICE_API_KEY", HIDDEN["of ours"])
    done = pidgin("export", "abcdefgh", "-o", full_of_secrets.path, "--format", kind, "--to", "out", "--redact")
    assert done.status == 0
    for path in Path("out").rglob("*"):
        found = f"{path} {''.join(_text_of(path))}".lower()
        assert [piece for piece in PIECES if piece in found] == [], path.name
    if kind == "jsonl":
        messages = [json.loads(line) for line in Path("out/messages.jsonl").read_text().splitlines()]
        uses = [json.loads(line) for line in Path("out/word_uses.jsonl").read_text().splitlines()]
        counted = Counter((row["agent_id"], word) for row in messages for word in tokenize(row["content"]))
        assert {(row["agent_id"], row["word"]): row["uses"] for row in uses if row["kind"] == "word"} == counted
        assert {row["arm"] for row in uses} == {row["arm"] for row in messages}


def _all_text(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        yield from _text_of(path)


def _text_of(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield json.dumps(pyarrow.parquet.read_table(path).to_pylist(), default=str, ensure_ascii=False)
    elif path.suffix == ".eval":
        with zipfile.ZipFile(path) as log:
            yield from (log.read(name).decode() + name for name in log.namelist())
    elif path.is_file():
        yield path.read_text(encoding="utf-8") + path.name


# Command and folder


def test_invalid_and_unfinished_conversations_are_counted_aloud(pidgin: Pidgin) -> None:
    """They are in the export with their flags, and standard error says how many there are and why."""
    bad = [*talk("c", "d")[:-1], end(invalid=("harness_fault", "wrong_model_served"))]
    make(OutputRoot(), "abcdefgh", [talk("a", "b"), bad, talk("e", "f")[:-1]])
    said_ = pidgin("export", "--all", "--format", "csv", "--to", "out")
    assert (said_.status, said_.out.split(": ")[1]) == (0, "1 experiment, 3 conversations, 6 messages\n")
    assert "Note: invalid, and marked so: 1 conversation (harness_fault 1, wrong_model_served 1)" in said_.err
    assert "Note: without an end: 1 conversation" in said_.err
    with Path("out/conversations.csv").open(newline="") as file:
        assert [row["invalid"] for row in csv.DictReader(file)] == ["false", "true", ""]
    assert manifest_of(Path("out"))["experiments"][0]["invalid"] == 1


def test_a_folder_that_is_not_empty_is_left_alone(pidgin: Pidgin) -> None:
    """An earlier export goes only with --force, anything else never; an empty folder is taken."""
    make(OutputRoot(), "abcdefgh", [talk("a", "b")])
    Path("out").mkdir()
    assert pidgin("export", "abcdefgh", "--to", "out").status == 0
    before = manifest_of(Path("out"))
    assert "--force" in error_of(pidgin("export", "abcdefgh", "--to", "out", "--format", "csv"))
    assert manifest_of(Path("out")) == before
    assert pidgin("export", "abcdefgh", "--to", "out", "--format", "csv", "--force").status == 0
    assert manifest_of(Path("out"))["kind"] == "csv"
    assert not list(Path("out").glob("*.parquet"))
    Path("out/notes.txt").write_text("mine")
    assert "no export" in error_of(pidgin("export", "abcdefgh", "--to", "out", "--force"))
    assert Path("out/notes.txt").read_text() == "mine"
    assert "is no folder" in error_of(pidgin("export", "abcdefgh", "--to", "out/notes.txt"))
    assert sorted(path.name for path in Path().iterdir()) == ["out", "pidgin_output"]


def test_wrong_targets(pidgin: Pidgin) -> None:
    """No name, one conversation, or nothing there: one line says so."""
    error_of(pidgin("export"))
    assert "nothing in" in error_of(pidgin("export", "--all"))
    make(OutputRoot(), "abcdefgh", [talk("a", "b")])
    assert "whole experiments" in error_of(pidgin("export", "abcdefgh-1"))
    assert "no experiment" in error_of(pidgin("export", "zzz"))


@pytest.mark.parametrize("kind", EXPORTERS)
def test_an_experiment_without_words_is_exported(kind: str, tmp_path: Path) -> None:
    """No conversation, one that has only begun, and empty messages: whole folders come out."""
    root = OutputRoot(tmp_path / "root")
    make(root, "abcdefgh", [[]])
    nothing = exported(root, kind, tmp_path / "nothing")
    make(root, "bcdefghi", [[start()], talk("", "")])
    little = exported(root, kind, tmp_path / "little")
    if kind == "inspect":
        assert logs(nothing) == []
        assert [[len(sample.messages) for sample in log.samples or ()] for log in logs(little)] == [[1, 3]]
    if kind == "hf":
        assert front_matter(nothing)["configs"][0]["config_name"] == "experiments"
        assert front_matter(little)["configs"][0]["config_name"] == "transcripts"


def test_killed_in_the_middle_nothing_is_there(tmp_path: Path) -> None:
    """An export that dies leaves no folder under its name, and the next one takes its place."""
    root = OutputRoot(tmp_path / "pidgin_output")
    make(root, "abcdefgh", [talk(*(["word " * 20_000] * 20)) for _ in range(4)])
    argv = [sys.executable, "-m", "pidgin_cli", "export", "abcdefgh", "--format", "inspect", "--to", "out"]
    process = subprocess.Popen(argv, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
    until(lambda: list(tmp_path.glob(".out.making/*.eval")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    exported(root, "csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pidgin_output"]
