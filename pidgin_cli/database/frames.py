"""The database of an output root as data frames, for notebooks and scripts."""

import importlib
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy

from pidgin_cli.core.errors import NotFound, SpecError, StoreError
from pidgin_cli.eventlog.folder import OutputRoot

from .query import answered, json_value
from .repositories import Rows
from .schema import quoted
from .store import EventStore
from .tables import TABLES, tables

__all__ = ["Frame", "Output"]


class Frame:
    """A question to the database. Each method asks it anew and gives the answer in another form.

    Everywhere NULL stays NULL (`None`, `pandas.NA`, `NaT`, and `NaN` where a column has fractions), whole numbers stay
    whole, times are in UTC and say so, lists are lists, and JSON is text.

    Every method raises SpecError where the SQL is wrong or would do more than read the database, and where the library
    that it needs is not installed; StoreError where the database cannot be read.
    """

    def __init__(self, store: EventStore, sql: str) -> None:
        self._store = store
        self.sql = sql
        """What is asked."""

    def __repr__(self) -> str:
        return f"Frame({self.sql!r})"

    def rows(self) -> Rows:
        """A list of dicts, with JSON read. Needs no library."""
        with answered(self._store, self.sql) as relation:
            plain = _in_utc(relation)
            kinds = [str(kind) for kind in plain.types]
            return [
                {name: _value(value, kind) for name, value, kind in zip(plain.columns, row, kinds, strict=True)}
                for row in plain.fetchall()
            ]

    def pandas(self) -> Any:
        """A `pandas.DataFrame` of nullable types."""
        pandas = _library("pandas", "pandas")
        with answered(self._store, self.sql) as relation:
            plain = _in_utc(relation)
            kinds = [str(kind) for kind in plain.types]
            names = list(plain.columns)
            numbered = plain.project(", ".join(f"#{place} AS c{place}" for place in range(1, len(names) + 1)))
            found = numbered.fetchnumpy()
        series = [_series(pandas, found[f"c{place}"], kind) for place, kind in enumerate(kinds, 1)]
        frame = pandas.DataFrame(dict(enumerate(series)))
        frame.columns = names
        return frame

    def polars(self) -> Any:
        """A `polars.DataFrame`."""
        polars = _library("polars", "polars")
        with answered(self._store, self.sql) as relation:
            plain = _in_utc(relation)
            frame = polars.DataFrame(plain)
        return frame.with_columns(polars.selectors.datetime(time_zone=None).dt.replace_time_zone("UTC"))

    def arrow(self) -> Any:
        """A `pyarrow.Table`."""
        arrow = _library("pyarrow", "arrow")
        with answered(self._store, self.sql) as relation:
            table = _in_utc(relation).to_arrow_table()
        schema = arrow.schema(
            [
                field.with_type(arrow.timestamp(field.type.unit, "UTC"))
                if arrow.types.is_timestamp(field.type)
                else field
                for field in table.schema
            ]
        )
        return table.cast(schema)


class Output:
    """An output folder: what `pidgin_cli.open_output` gives."""

    def __init__(
        self, root: OutputRoot, store: EventStore, *, is_live: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`is_live`: whether a runner is at work on an experiment; without one, what has no end is interrupted."""
        self.path = root.path
        self._root = root
        self._store = store
        self._is_live = is_live

    def __repr__(self) -> str:
        return f"Output({str(self.path)!r})"

    def refresh(self) -> None:
        """Take what is new in the records into the database; every later question sees it.

        What cannot be taken is told of in a warning. So is a database that cannot be written: it says what it said
        before.

        Raises:
            StoreError: there is no database yet, and none can be made.
        """
        try:
            found = self._store.import_experiments(self._root.folders(), is_live=self._is_live)
        except StoreError as error:
            if not self._store.path.is_file():
                raise
            warnings.warn(f"the database may be older than the records: {error}", UserWarning, stacklevel=2)
            return
        for imported in found:
            if imported.failed:
                warnings.warn(f"{imported.experiment_id} is not up to date: {imported.failed}", stacklevel=2)
            for damage in imported.damage:
                warnings.warn(f"{imported.experiment_id} is damaged: {damage}", stacklevel=2)

    def sql(self, query: str) -> Frame:
        """Any query; it can read the tables and views of the database and nothing else."""
        return Frame(self._store, query)

    def table(self, name: str, *experiments: str) -> Frame:
        """A table of some experiments (ids, names or beginnings of one), or of all.

        Beside the columns of the database it has those that its conversation or its agent differ from others in, and
        `var_<name>` for what is swept.

        Raises:
            NotFound: there is no such table or experiment.
        """
        if name not in TABLES:
            raise NotFound(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        ids = [self._root.find(each).experiment_id for each in experiments] or None
        con = self._store.connect()
        try:
            (found,) = (table for table in tables(con, ids) if table.name == name)
        finally:
            con.close()
        return Frame(self._store, found.sql)

    def experiments(self) -> Frame:
        """One row per experiment, newest first: how far it is, what it took, what has to be looked at."""
        return self.sql("FROM dashboard ORDER BY created_at DESC, experiment_id")

    def arms(self, *experiments: str) -> Frame:
        """One row per arm; see `table`."""
        return self.table("arms", *experiments)

    def conversations(self, *experiments: str) -> Frame:
        """One row per conversation; see `table`."""
        return self.table("conversations", *experiments)

    def agents(self, *experiments: str) -> Frame:
        """One row per agent of a conversation; see `table`."""
        return self.table("agents", *experiments)

    def turns(self, *experiments: str) -> Frame:
        """One row per turn; see `table`."""
        return self.table("turns", *experiments)

    def messages(self, *experiments: str) -> Frame:
        """One row per message; see `table`."""
        return self.table("messages", *experiments)

    def metrics(self, *experiments: str) -> Frame:
        """One row per message with a column for each metric; see `table`."""
        return self.table("message_metrics", *experiments)

    def turn_metrics(self, *experiments: str) -> Frame:
        """One row per turn with a column for each metric; see `table`."""
        return self.table("turn_metrics", *experiments)

    def events(self, *experiments: str) -> Frame:
        """One row per line of the logs; see `table`."""
        return self.table("events", *experiments)


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SpecError(f"this needs {module}: pip install 'pidgin-cli[{extra}]'") from None


def _in_utc(relation: Any) -> Any:
    """Moments with a zone as UTC without one, as all other times in the database are."""
    kinds = [str(kind) for kind in relation.types]
    if "TIMESTAMP WITH TIME ZONE" not in kinds:
        return relation
    return relation.project(
        ", ".join(
            (f"timezone('UTC', #{place})" if kind == "TIMESTAMP WITH TIME ZONE" else f"#{place}")
            + f" AS {quoted(name)}"
            for place, (name, kind) in enumerate(zip(relation.columns, kinds, strict=True), 1)
        )
    )


def _value(value: Any, kind: str) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    return json_value(value, kind) if kind == "JSON" and value is not None else value


def _series(pandas: Any, values: Any, kind: str) -> Any:
    """A column of DuckDB, a masked array where it has NULLs, as pandas has such a column with all its bits."""
    data, missing = numpy.ma.getdata(values), numpy.ma.getmaskarray(values)
    if kind in _WHOLE:
        return pandas.Series(pandas.arrays.IntegerArray(data, missing))
    if kind == "BOOLEAN":
        return pandas.Series(pandas.arrays.BooleanArray(data, missing))
    if kind.startswith("TIMESTAMP"):
        return pandas.Series(data).where(~missing).dt.tz_localize("UTC")
    if kind in ("DOUBLE", "FLOAT"):
        return pandas.Series(data).where(~missing)
    return pandas.Series(
        [None if gone else _listed(value) for value, gone in zip(data, missing, strict=True)], dtype=object
    )


_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")


def _listed(value: Any) -> Any:
    """Lists as Python has them, where DuckDB gives arrays."""
    return numpy.ma.asarray(value).tolist() if isinstance(value, numpy.ndarray) else value
