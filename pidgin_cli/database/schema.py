"""Tables and views of the database, and how an older database becomes a newer one.

A migration is a function that is applied once and never changed afterwards; new ones are appended. Views hold nothing,
so they are made anew each time. What a table or column means stands beside it, goes into the database as its comment,
and from there into the reference page.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import duckdb

from pidgin_cli.core.errors import StoreError

__all__ = ["MIGRATIONS", "MetricColumn", "described", "migrate", "newest", "quoted", "set_up", "version_of"]


class MetricColumn(NamedTuple):
    """A column that one metric has in `message_metrics` or `turn_metrics`."""

    name: str
    """Lower-case letters, digits and underscores."""
    level: Literal["message", "turn"]
    type: Literal["DOUBLE", "BIGINT", "BOOLEAN", "VARCHAR"] = "DOUBLE"
    meaning: str = ""

    @property
    def table(self) -> str:
        return f"{self.level}_metrics"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# Migrations


_COLUMN = re.compile(r"^\s*(?P<name>\w+) (?P<type>[A-Z][\w\[\](), ]*?)\s*-- (?P<meaning>.+)$")


def _table(con: duckdb.DuckDBPyConnection, name: str, meaning: str, columns: str) -> None:
    """Make a table from lines of `name TYPE -- meaning`."""
    found = []
    for line in columns.strip().splitlines():
        match = _COLUMN.match(line)
        assert match is not None, line
        found.append(match)
    con.execute(f"CREATE TABLE {name} ({', '.join(f'{column["name"]} {column["type"]}' for column in found)})"
                if False else "CREATE TABLE " + name + " (" + ", ".join(c["name"] + " " + c["type"] for c in found) + ")")
    con.execute(f"COMMENT ON TABLE {name} IS {_literal(meaning)}")
    for column in found:
        con.execute(f"COMMENT ON COLUMN {name}.{column['name']} IS {_literal(column['meaning'].strip())}")
