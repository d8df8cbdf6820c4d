"""`import pidgin_cli` in a notebook: an output folder as data frames."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas  # type: ignore[import-untyped]
import polars
import pyarrow  # type: ignore[import-untyped]
import pytest
from runs import append, make, said, start, turn_start

import pidgin_cli
from pidgin_cli.core.errors import NotFound, SpecError
from pidgin_cli.core.events import ConversationEndEvent, Totals
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot

TEXTS = ["one \x00 two", "", "three\r\n"]

Read = Callable[[pidgin_cli.Frame], list[dict[str, Any]]]


def talk() -> list[Any]:
    messages = [said(text, "aba"[place], place // 2 + 1, place) for place, text in enumerate(TEXTS)]
    ended = ConversationEndEvent(
        status=Status.COMPLETED, end_reason=EndReason.TURN_LIMIT, totals=Totals(turns=1, messages=3)
    )
    return [start(), turn_start(), *messages, ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ExperimentFolder:
    return make(OutputRoot(tmp_path_factory.mktemp("root")), "abcdefgh", [talk(), [start()]], name="A study")


@pytest.fixture(scope="module")
def output(folder: ExperimentFolder) -> pidgin_cli.Output:
    return pidgin_cli.open_output(folder.path.parent.parent)


def by_pandas(frame: pidgin_cli.Frame) -> list[dict[str, Any]]:
    found = frame.pandas()
    assert isinstance(found, pandas.DataFrame)
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def by_polars(frame: pidgin_cli.Frame) -> list[dict[str, Any]]:
    found = frame.polars()
    assert isinstance(found, polars.DataFrame)
    return found.to_dicts()


def by_arrow(frame: pidgin_cli.Frame) -> list[dict[str, Any]]:
    found = frame.arrow()
    assert isinstance(found, pyarrow.Table)
    return list(found.to_pylist())


READERS = [pytest.param(read, id=read.__name__) for read in (pidgin_cli.Frame.rows, by_pandas, by_polars, by_arrow)]


@pytest.mark.parametrize("read", READERS)
def test_every_library_gets_the_words_and_the_types(read: Read, output: pidgin_cli.Output) -> None:
    """Words as in the record, NULL as nothing, whole numbers whole, moments in UTC, lists as lists."""
    rows = read(output.messages("a-study"))
    assert [row["content"] for row in rows] == TEXTS
    assert [row["message_index"] for row in rows] == [0, 1, 2]
    assert {type(row["message_index"]) for row in rows} == {int}
    for row in rows:
        assert row["prompt_tokens"] is None
        assert row["fingerprint"] is None
        assert (row["arm"], row["repetition"], row["seat"]) == ("", 1, "ab".index(row["agent_id"]))
        moment = row["completed_at"]
        assert (moment.utcoffset().total_seconds(), abs((datetime.now(UTC) - moment).total_seconds()) < 3600) == (
            0,
            True,
        )
    (turn,) = read(output.turns("abcdefgh"))
    assert list(turn["speakers"]) == ["a", "b"]
    assert turn["completed_at"] is None
    ended = [row["ended_at"] is None for row in read(output.conversations())]
    assert ended == [False, True]


@pytest.mark.parametrize("read", READERS)
def test_any_query(read: Read, output: pidgin_cli.Output) -> None:
    """SQL over tables and views gives a frame; big whole numbers beside NULL keep every bit, moments come in UTC."""
    rows = read(
        output.sql(
            "SELECT * FROM (VALUES (9007199254740993, true, TIMESTAMPTZ '2026-01-02 03:04:05+01', ['x', NULL]), "
            "(NULL, NULL, NULL, NULL)) t(n, b, moment, list) ORDER BY n"
        )
    )
    assert rows == [
        {"n": 9007199254740993, "b": True, "moment": datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC), "list": ["x", None]},
        {"n": None, "b": None, "moment": None, "list": None},
    ]


def test_pandas_gets_types_that_know_null(output: pidgin_cli.Output) -> None:
    """Columns of whole numbers and truth values are of nullable types whether or not anything is missing."""
    kinds = output.messages().pandas().dtypes.astype(str)
    assert (kinds["message_index"], kinds["prompt_tokens"], kinds["empty"]) == ("Int64", "Int64", "boolean")
    assert (kinds["temperature"], kinds["completed_at"]) == ("float64", "datetime64[us, UTC]")


@pytest.mark.parametrize(
    "name", ["experiments", "arms", "conversations", "agents", "turns", "messages", "metrics", "events"]
)
def test_the_usual_tables_have_names(name: str, output: pidgin_cli.Output) -> None:
    """There is a method for each table that people ask for; `table` gives all, and names them when one is wrong."""
    counts = {"experiments": 1, "conversations": 2, "agents": 4, "turns": 1, "messages": 3, "arms": 1, "metrics": 0}
    rows = getattr(output, name)().rows()
    assert len(rows) == counts.get(name, 7)
    if name == "experiments":
        assert (rows[0]["experiment_id"], rows[0]["name"]) == ("abcdefgh", "A study")
    if name == "events":
        assert rows[0]["data"]["event_type"] == "ConversationStartEvent"


def test_what_is_not_there_is_named(output: pidgin_cli.Output, tmp_path: Path) -> None:
    """A wrong table, experiment, query or folder raises an error that says so in one line."""
    with pytest.raises(NotFound, match="there are experiments, arms, conversations"):
        output.table("message")
    with pytest.raises(NotFound, match="no experiment 'zzz'"):
        output.messages("zzz")
    with pytest.raises(SpecError, match="read the database and nothing else"):
        output.sql("DROP TABLE messages").rows()
    with pytest.raises(SpecError, match="nothing else"):
        output.sql("FROM read_text('/etc/hostname')").pandas()
    with pytest.raises(NotFound, match="there are no experiments in"):
        pidgin_cli.open_output(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_new_is_there(tmp_path: Path) -> None:
    """Opening takes what is new, `refresh` what has come since; without it the answers are those of the last import."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [[start(), turn_start(), said("one")]])
    output = pidgin_cli.open_output(tmp_path)
    append(folder, 1, said("two", "b", 1, 1))
    assert len(output.messages().rows()) == 1
    assert len(pidgin_cli.open_output(tmp_path, refresh=False).messages().rows()) == 1
    output.refresh()
    assert [row["content"] for row in output.messages().rows()] == ["one", "two"]


def test_what_cannot_be_taken_is_told(tmp_path: Path) -> None:
    """A damaged log is told of in a warning, and so is a database that cannot be written and says what it said."""
    root = OutputRoot(tmp_path)
    folder = make(root, "abcdefgh", [[start(), turn_start(), said("one")]])
    with folder.log("abcdefgh-1").open("ab") as file:
        file.write(b"{broken\n")
    with pytest.warns(UserWarning, match="abcdefgh is damaged"):
        output = pidgin_cli.open_output(tmp_path)
    lock = next(path for path in root.experiments.iterdir() if path.name.endswith(".lock"))
    lock.unlink()
    lock.mkdir()
    with pytest.warns(UserWarning, match="may be older than the records"):
        output.refresh()
    assert len(output.messages().rows()) == 1


SCRIPT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pandas", "polars", "pyarrow"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pidgin_cli
loaded = sorted({name.partition(".")[0] for name in sys.modules})
output = pidgin_cli.open_output(sys.argv[1])
found = {"loaded": loaded, "rows": len(output.messages().rows())}
for name in ("pandas", "polars", "arrow"):
    try:
        getattr(output.messages(), name)()
    except pidgin_cli.core.errors.SpecError as error:
        found[name] = str(error)
json.dump(found, sys.stdout)
"""


def test_libraries_are_needed_only_when_asked_for(folder: ExperimentFolder) -> None:
    """Importing `pidgin_cli` loads nothing; without libraries there are rows, and an error says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder.path.parent.parent)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert not {"click", "duckdb", "msgspec", "numpy", "rich", "pandas", "polars", "pyarrow"} & set(found["loaded"])
    assert found["rows"] == 3
    for name, module in (("pandas", "pandas"), ("polars", "polars"), ("arrow", "pyarrow")):
        assert found[name] == f"this needs {module}: pip install 'pidgin-cli[{name}]'"
