"""The tables as analysts take them: of chosen experiments, in order, with the independent variables as columns.

Notebooks and exports read these, so that both say the same.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb

from pidgin_cli.eventlog.folder import slug

from .repositories import Rows
from .schema import CONVERSATION_TABLES, literal, quoted
from .store import EventStore
from .word_uses import WordCounter, count_words

__all__ = ["TABLES", "WRITTEN", "Column", "Extract", "FileKind", "Scrub", "Table", "tables"]

TABLES = ("experiments", "arms", *CONVERSATION_TABLES, "shared_messages")

FileKind = Literal["parquet", "csv", "jsonl"]
Scrub = Callable[[str], str]
"""What is done to every text on its way out."""


class Column(NamedTuple):
    """A column of a table."""

    name: str
    type: str
    meaning: str


class Table(NamedTuple):
    """A table as it is taken."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    sql: str
    """A SELECT, for a connection of `EventStore.connect`."""


# What comes to a table from elsewhere

_OF_CONVERSATION = ("arm", "repetition", "seed", "invalid", "notable")
_OF_AGENT = {
    "seat": "seat",
    "agent_name": "name",
    "model": "model",
    "awareness": "awareness",
    "temperature": "temperature",
}
_WITHOUT_VARIABLES = (
    "experiments",
    "arms",
    "tool_calls",
    "token_usage",
    "interventions",
    "errors",
    "events",
    "damaged_lines",
)
_WITH_AGENT = ("messages", "shared_messages", "message_metrics")
_SOURCES = {
    "shared_messages": "(SELECT x.* EXCLUDE (own), c.experiment_id FROM store.main.conversation_messages x "
    "JOIN store.main.conversations c ON c.conversation_id = x.conversation_id WHERE NOT x.own)",
    "message_metrics": "(SELECT x.*, m.turn_number, m.agent_id FROM store.main.message_metrics x LEFT JOIN "
    "store.main.messages m ON m.conversation_id = x.conversation_id AND m.message_index = x.message_index)",
}
_BY_CONVERSATION = "length(t.conversation_id) NULLS FIRST, t.conversation_id"
_ORDER = {"experiments": "t.experiment_id", "arms": "t.experiment_id, t.arm"}
_WITHIN = ("turn_number", "message_index", "block", "seat", "line", "seq", "agent_id", "kind", "word", "part")
"""What rows of a conversation are ordered by, as far as a table has it."""
_SHARED = "Messages of branches that were said in what they branch off; with `messages` they make whole conversations."


class _Variable(NamedTuple):
    """Something that arms differ in, and the column that it has."""

    name: str
    shown: str
    column: str
    type: str


def tables(
    con: duckdb.DuckDBPyConnection, experiments: Sequence[str] | None = None, scrub: Scrub | None = None
) -> list[Table]:
    """All tables of some experiments (None: of all), for `con`, a connection of `EventStore.connect`.

    What an experiment sweeps has a column `var_<name>` wherever there are conversations or what they consist of;
    `scrub` is done to these names.
    """
    chosen = "true"
    if experiments is not None:
        chosen = f"t.experiment_id IN ({', '.join(map(literal, experiments)) or 'NULL'})"
    variables = _variables(con, chosen, scrub or str)
    columns: dict[str, list[Column]] = {}
    for table, *told in con.execute(
        "SELECT table_name, column_name, data_type, coalesce(comment, '') FROM duckdb_columns() "
        "WHERE database_name = 'store' AND NOT internal ORDER BY table_name, column_index"
    ).fetchall():
        columns.setdefault(table, []).append(Column(*told))
    meanings = {"shared_messages": _SHARED}
    for name, meaning in con.execute(
        "SELECT table_name, comment FROM duckdb_tables() WHERE database_name = 'store' AND NOT internal"
    ).fetchall():
        meanings[name] = meaning or ""
    return [_table(name, meanings[name], columns, variables, chosen) for name in TABLES]


def _variables(con: duckdb.DuckDBPyConnection, chosen: str, scrub: Scrub) -> list[_Variable]:
    rows = con.execute(
        "SELECT v.key, list(DISTINCT v.type) FROM store.main.conversations t, json_each(t.variables) v "
        f"WHERE {chosen} AND v.type != 'NULL' GROUP BY v.key ORDER BY v.key"
    ).fetchall()
    found: list[_Variable] = []
    taken: set[str] = set()
    for name, kinds in rows:
        shown = scrub(name)
        column = base = "var_" + (re.sub(r"\W+", "_", shown, flags=re.ASCII).strip("_") or "x")
        number = 1
        while column.lower() in taken:
            number += 1
            column = f"{base}_{number}"
        taken.add(column.lower())
        found.append(_Variable(name, shown, column, _common(set(kinds))))
    return found


def _common(kinds: set[str]) -> str:
    if kinds <= {"BIGINT", "UBIGINT"}:
        return "BIGINT"
    if kinds <= {"BIGINT", "UBIGINT", "DOUBLE"}:
        return "DOUBLE"
    return "BOOLEAN" if kinds == {"BOOLEAN"} else "VARCHAR"


def _own_columns(name: str, columns: dict[str, list[Column]]) -> list[Column]:
    of_message = {column.name: column for column in columns["messages"]}
    if name == "message_metrics":
        return [*columns[name], of_message["turn_number"], of_message["agent_id"]]
    if name == "shared_messages":
        told = {"said_in": "The conversation in which it was said."}
        return [
            *(
                column._replace(
                    meaning=told.get(column.name) or of_message.get(column.name, column).meaning or column.meaning
                )
                for column in columns["conversation_messages"]
                if column.name != "own"
            ),
            of_message["experiment_id"],
        ]
    return columns[name]


def _table(
    name: str, meaning: str, columns: dict[str, list[Column]], variables: Sequence[_Variable], chosen: str
) -> Table:
    found = list(_own_columns(name, columns))
    own = {column.name for column in found}
    there = set(own)
    select = [f"t.{quoted(column.name)}" for column in found]
    joins = []

    def add(origins: dict[str, str], of: str, alias: str) -> None:
        known = {column.name: column for column in columns[of]}
        for column, origin in origins.items():
            if column not in there:
                there.add(column)
                select.append(f"{alias}.{quoted(origin)} AS {quoted(column)}")
                found.append(Column(column, known[origin].type, known[origin].meaning))

    if name in _WITH_AGENT:
        joins.append(
            "LEFT JOIN store.main.agents a ON a.conversation_id = t.conversation_id AND a.agent_id = t.agent_id"
        )
        add(_OF_AGENT, "agents", "a")
    if name not in _WITHOUT_VARIABLES:
        joins.append("LEFT JOIN store.main.conversations c ON c.conversation_id = t.conversation_id")
        add({column: column for column in _OF_CONVERSATION}, "conversations", "c")
        if variables:
            pivot = ", ".join(f"max(value) FILTER (name = {literal(v.name)}) AS {quoted(v.column)}" for v in variables)
            joins.append(
                f"LEFT JOIN (SELECT conversation_id, {pivot} FROM store.main.conversation_variables GROUP BY ALL) v "
                "ON v.conversation_id = t.conversation_id"
            )
        for variable in variables:
            column = quoted(variable.column)
            select.append(f"try_cast(v.{column} AS {variable.type}) AS {column}")
            found.append(Column(variable.column, variable.type, f"What arms differ in: {variable.shown}."))
    source = _SOURCES.get(name, f"store.main.{name}")
    order = _ORDER.get(name) or f"t.experiment_id, {_BY_CONVERSATION}" + "".join(
        f", t.{column}" for column in _WITHIN if column in own
    )
    sql = f"SELECT {', '.join(select)} FROM {source} t {' '.join(joins)} WHERE {chosen} ORDER BY {order}"
    return Table(name, meaning, tuple(found), sql)


# Taking them out


class Extract:
    """The tables of some experiments on their way into files, with one thing done to every text in them.

    Within `rows` they go by their names in the catalog `extract`, such as `extract.messages`.
    """

    def __init__(self, store: EventStore, experiments: Sequence[str], scrub: Scrub | None = None) -> None:
        """Raises StoreError as `EventStore.connect` does."""
        self._con = store.connect()
        try:
            self._con.execute("SET TimeZone = 'UTC'")
            self._con.execute("ATTACH ':memory:' AS extract")
            self.tables = {table.name: table for table in tables(self._con, experiments, scrub)}
            if scrub is None:
                for table in self.tables.values():
                    self._con.execute(f"CREATE TABLE extract.main.{table.name} AS {table.sql}")
            else:
                self._scrubbed(scrub, store.words)
        except BaseException:
            self._con.close()
            raise

    def _scrubbed(self, scrub: Scrub, words: WordCounter | None) -> None:
        self._con.execute("SET threads = 1")  # what numbers what it finds goes through the rows in their order
        for name, call, kind in (
            ("scrub", scrub, "VARCHAR"),
            ("scrub_json", lambda text: _through_json(text, scrub), "VARCHAR"),
            ("scrub_list", lambda texts: [text and scrub(text) for text in texts], "VARCHAR[]"),
        ):
            self._con.create_function(name, call, [kind], kind, side_effects=True)
        self._con.create_function("slug", slug, ["VARCHAR"], "VARCHAR")
        for table in self.tables.values():
            if table.name == "word_uses":
                self._count_words(table, words)
                continue
            columns = ", ".join(
                f"{_scrubbed_column(table.name, column)} AS {quoted(column.name)}" for column in table.columns
            )
            self._con.execute(f"CREATE TABLE extract.main.{table.name} AS SELECT {columns} FROM ({table.sql})")
        # The name of a folder has the experiment's, cut up.
        self._con.execute(
            "UPDATE extract.main.experiments SET folder = concat_ws('_', 'experiment', experiment_id, "
            "nullif(slug(name), ''), nullif(regexp_extract(folder, '[0-9]{8}$'), ''))"
        )

    def _count_words(self, table: Table, words: WordCounter | None) -> None:
        """Words of the scrubbed messages. One by one they could not be scrubbed: a key in small letters is a word."""
        said = "SELECT conversation_id, agent_id, message_index, content FROM extract.main.messages"
        count_words(self._con, said, words or (lambda _: {}))
        columns = ", ".join(
            f"{'n' if column.name in _COUNTED else 'm'}.{quoted(column.name)}" for column in table.columns
        )
        told = [quoted(column.name) for column in table.columns if column.name not in _COUNTED]
        # What goes with the words is scrubbed already, in the messages.
        self._con.execute(
            f"CREATE TABLE extract.main.word_uses AS SELECT {columns} FROM counted n JOIN "
            f"(SELECT conversation_id, min(rowid) AS place, {', '.join(told)} FROM extract.main.messages "
            "GROUP BY ALL) m USING (conversation_id) ORDER BY m.place, n.agent_id, n.kind, n.word"
        )

    def __enter__(self) -> "Extract":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._con.close()

    def rows(self, sql: str, *values: object) -> Rows:
        """The answer to a query; times are UTC without saying so."""
        self._con.execute(sql, list(values))
        names = [column[0] for column in self._con.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self._con.fetchall()]

    def each(self, sql: str, *values: object) -> Iterator[dict[str, Any]]:
        """Likewise, row by row, for what may not fit into memory; beside other queries."""
        with self._con.cursor() as con:
            con.execute(sql, list(values))
            names = [column[0] for column in con.description or ()]
            while rows := con.fetchmany(256):
                for row in rows:
                    yield dict(zip(names, row, strict=True))

    def count(self, name: str) -> int:
        """Rows of a table."""
        return int(self.rows(f"SELECT count(*) AS n FROM extract.main.{name}")[0]["n"])

    def write(self, name: str, target: Path, kind: FileKind) -> int:
        """Write a table as a file; gives the number of rows. How values stand in it is told by `WRITTEN`."""
        columns = self.tables[name].columns
        select = ", ".join(f"{_written(column, kind)} AS {quoted(column.name)}" for column in columns)
        return self.write_query(
            f"SELECT {select} FROM extract.main.{name}",
            target,
            kind,
            texts=[column.name for column in columns if column.type not in _BARE],
        )

    def write_query(self, sql: str, target: Path, kind: FileKind, texts: Sequence[str] = ()) -> int:
        """Write the answer to a query as a file; `texts`: columns that CSV has in quotes. Gives the number of rows."""
        how = {"parquet": "FORMAT parquet, COMPRESSION zstd", "jsonl": "FORMAT json", "csv": "FORMAT csv, HEADER"}[kind]
        if kind == "csv" and texts:
            how += f", FORCE_QUOTE ({', '.join(map(quoted, texts))})"
        told = self._con.execute(f"COPY ({sql}) TO {literal(str(target))} ({how})").fetchone()
        return 0 if told is None else int(told[0])


_COUNTED = ("conversation_id", "agent_id", "kind", "word", "uses", "messages")
"""Columns of `word_uses` that are its own."""

_BARE = ("BIGINT", "DOUBLE", "BOOLEAN")
"""Types whose values need no quotes in CSV."""

WRITTEN: dict[FileKind, str] = {
    "parquet": "Times are timestamps in UTC. Lists are lists; JSON is text.",
    "csv": (
        "UTF-8, comma, line feed. All text stands in double quotes, those within it doubled; line feeds, carriage "
        "returns and NUL stand in it as they are. NULL is an empty field without quotes, the empty text one with "
        "quotes. Times are ISO 8601 in UTC; lists and JSON are JSON text; true and false are spelled out."
    ),
    "jsonl": "One object per line, UTF-8. NULL is null, never left out. Times are ISO 8601 in UTC; JSON is nested.",
}


def _written(column: Column, kind: FileKind) -> str:
    name = quoted(column.name)
    if column.type == "TIMESTAMP":
        return f"timezone('UTC', {name})" if kind == "parquet" else f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%fZ')"
    if column.type == "JSON" and kind != "jsonl":
        return f"{name}::VARCHAR"
    if column.type.endswith("[]") and kind == "csv":
        return f"to_json({name})::VARCHAR"
    return name


def _scrubbed_column(table: str, column: Column) -> str:
    name = quoted(column.name)
    if (table, column.name) == ("damaged_lines", "beginning"):  # it may end within what is to be taken out
        return f"CASE WHEN why = 'missing' THEN {name} END"
    if column.type == "VARCHAR":
        return f"scrub({name})"
    if column.type == "JSON":
        return f"scrub_json({name}::VARCHAR)::JSON"
    return f"scrub_list({name})" if column.type == "VARCHAR[]" else name


def _through_json(text: str, scrub: Scrub) -> str:
    """`text` with every string in it changed; character by character as it was where there is nothing to change."""
    value = json.loads(text)
    changed = _through(value, scrub)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _through(value: Any, scrub: Scrub) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_through(inner, scrub) for inner in value]
    if isinstance(value, dict):
        return {scrub(key): _through(inner, scrub) for key, inner in value.items()}
    return value
