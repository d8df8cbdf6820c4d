"""A person's own SQL: it can read the database and nothing else on the machine."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from pidgin_cli.core.errors import SpecError, StoreError

from .schema import literal, quoted
from .store import EventStore

__all__ = ["Answer", "answered", "ask", "json_value", "write_parquet"]


class Answer(NamedTuple):
    """The rows of a query, as they come."""

    columns: list[str]
    types: list[str]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def ask(store: EventStore, sql: str) -> Iterator[Answer]:
    """The answer to a query.

    Raises:
        SpecError: the SQL is wrong, or would do more than read the database.
        StoreError: there is no database, or it cannot be read.
    """
    with _locked_down(store) as con, _explained():
        relation = _without_zones(_relation(con, sql))
        yield Answer(list(relation.columns), [str(kind) for kind in relation.types], iter(relation.iter_rows()))


@contextlib.contextmanager
def answered(store: EventStore, sql: str) -> Iterator[duckdb.DuckDBPyRelation]:
    """The answer to a query, for what can take it as DuckDB has it. Raises as `ask` does."""
    with _locked_down(store) as con, _explained():
        yield _relation(con, sql)


def write_parquet(store: EventStore, sql: str, target: Path) -> int:
    """Write the answer as a Parquet file, whole or not at all. Gives the number of rows. Raises as `ask` does."""
    with tempfile.TemporaryDirectory(prefix=".pidgin-", dir=target.absolute().parent) as scratch:
        making = Path(scratch) / "answer.parquet"
        with _locked_down(store, making) as con, _explained():
            _relation(con, sql).to_parquet(str(making))
            told = con.execute(f"SELECT count(*) FROM read_parquet({literal(str(making))})").fetchone()
        making.replace(target)
        return 0 if told is None else int(told[0])


def json_value(value: Any, kind: str) -> Any:
    """A value as JSON can say it: NULL for what is no number, nested where a column holds JSON."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return json.loads(value) if kind == "JSON" else value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {str(key): json_value(inner, "") for key, inner in value.items()}
        case list() | tuple():
            return [json_value(inner, "") for inner in value]
    return str(value)


@contextlib.contextmanager
def _locked_down(store: EventStore, *files: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the database, `files` and nothing else, and that cannot be opened up again."""
    con = store.connect()
    try:
        con.execute("SET python_enable_replacements = false")
        if files:
            con.execute(f"SET allowed_paths = [{', '.join(literal(str(file)) for file in files)}]")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
        yield con
    finally:
        con.close()


def _relation(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    statements = con.extract_statements(sql)
    if not statements:
        raise SpecError('there is nothing in the query; try: pidgin query "FROM dashboard"')
    # What is attached read-only could be detached and attached again for writing, so nothing but SELECT passes.
    if any(statement.type != duckdb.StatementType.SELECT for statement in statements):
        raise SpecError("a query can read the database and nothing else: only SELECT, FROM, DESCRIBE and the like")
    if len(statements) > 1:
        raise SpecError("one query at a time; there are several, divided by ;")
    relation = con.sql(statements[0].query)
    if relation is None:
        raise SpecError("the query gives no rows")
    return relation


def _without_zones(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Moments with a time zone as text: Python would need a package for them that nothing else here needs."""
    if not any("TIME ZONE" in str(kind) for kind in relation.types):
        return relation
    return relation.project(
        ", ".join(
            f"#{place}{'::VARCHAR' if 'TIME ZONE' in str(kind) else ''} AS {quoted(name)}"
            for place, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), 1)
        )
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (duckdb.PermissionException, duckdb.TransactionException) as error:
        raise SpecError("a query can read the database and nothing else: no files, no extensions") from error
    except duckdb.InvalidInputException as error:
        said = _told(error)
        if "read-only" in said or "locked" in said:
            raise SpecError("a query can read the database and nothing else: it changes no table or setting") from error
        raise SpecError(said) from error
    except (duckdb.ProgrammingError, duckdb.NotSupportedError, duckdb.DataError) as error:
        raise SpecError(_told(error)) from error
    except duckdb.Error as error:
        raise StoreError(_told(error)) from error


def _told(error: BaseException) -> str:
    """What DuckDB says, on one line, without the query that it repeats."""
    said = str(error).partition("\n\nLINE ")[0]
    return " ".join(said.split())
