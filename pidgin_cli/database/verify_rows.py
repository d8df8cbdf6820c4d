"""Every row of an experiment in the database, held against what its logs give now.

What a fresh import gives has to stand there as it is. Metrics that were computed after the run can be held against the
same computed again, if that is wanted: where nothing says how they were computed, there may be none.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import duckdb

from pidgin_cli.eventlog.folder import ExperimentFolder
from pidgin_cli.metrics.catalogue import METRICS, message_metrics

from .computed import Part
from .schema import CONVERSATION_TABLES, quoted
from .store import EventStore

__all__ = ["Recompute", "RowDifferences", "row_differences"]

Recompute = Callable[[EventStore], None]
"""Computes the metrics that are for afterwards, in a store that holds an experiment as it was just imported."""

RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""How far values that are computed again may lie apart: another processor rounds otherwise."""

_FRESH = "differ from what its log gives"
_AGAIN = "differ from what is computed from its log"

_PARTS: tuple[Part, ...] = get_args(Part)
_OTHERS = ("convergence_index", "convergence_index_pooled", "convergence_surrogates")
_BOOKKEEPING = ("metrics_version", "computed", "tokenizer_version", "lexicon_version")
_LIVE_TABLES = ("turn_metrics", "computed_attractors")
"""Tables all of whose rows are of the live metrics of a conversation."""
_ORDER = {
    "turns": "turn_number",
    "turn_metrics": "turn_number",
    "computed_attractors": "message_index, detector, turn_number",
    "computed_metrics": "part",
}


class RowDifferences(NamedTuple):
    """What was found."""

    faults: tuple[tuple[str, str], ...]
    """Conversation (or experiment) and what is wrong with it."""
    notes: tuple[tuple[str, str], ...]
    """The same, of what could not be compared."""
    computed: int
    """Parts of the metrics of conversations that were computed after the run."""
    recomputed: int
    """Of these, parts that were computed again and compared."""


def row_differences(
    store: EventStore, folder: ExperimentFolder, *, live: bool, recompute: Recompute | None
) -> RowDifferences:
    """Compare every row of an imported experiment. `live`: it is being run. Raises as `beside_a_fresh_import` does."""
    with store.beside_a_fresh_import(folder, live=live, compute=recompute) as con:
        return _Rows(con, folder, live=live, again=recompute is not None).compare()


class _Rows:
    """The database `store` beside `fresh` and, where metrics were computed again, `again`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, folder: ExperimentFolder, *, live: bool, again: bool) -> None:
        self._con = con
        self._folder = folder
        self._id = folder.experiment_id
        self._live = live
        self._again = "again" if again else "fresh"  # in which nothing is computed
        self._faults: list[tuple[str, str]] = []
        self._notes: list[tuple[str, str]] = []

    def compare(self) -> RowDifferences:
        self._compare_experiment()
        self._compare_arms()
        self._find_strays()
        self._choose_references()
        for table in CONVERSATION_TABLES:
            if table == "message_metrics":
                self._compare_message_metrics()
            elif table != "computed_metrics":
                self._blame(self._changed(table), f"rows of {table} {_FRESH}")
        for table in _ORDER:
            self._compare_again(table)
        ((computed,),) = self._all("SELECT count(*) FROM store.computed_metrics WHERE experiment_id = ?", self._id)
        ((recomputed,),) = self._all("SELECT count(*) FROM parts WHERE reference = 'again'")
        return RowDifferences(tuple(self._faults), tuple(self._notes), computed, recomputed)

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._con.execute(sql, list(values)).fetchall()

    def _blame(self, sql: str, what: str) -> None:
        rows = self._all(f"SELECT DISTINCT conversation_id FROM ({sql}) ORDER BY length(conversation_id), 1")
        self._faults += [(name, what) for (name,) in rows]

    def _columns(self, table: str) -> dict[str, str]:
        rows = self._all(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = 'fresh' AND table_name = ? "
            "ORDER BY column_index",
            table,
        )
        return dict(rows)

    # The experiment

    def _compare_experiment(self) -> None:
        """The row of the experiment and what its own log gives, which may have grown by its pages since the import."""
        ((stored,),) = self._all("SELECT log_sha256 FROM store.experiments WHERE experiment_id = ?", self._id)
        taken = _lines_with(self._folder.events, stored)
        more = "NULL" if taken is None else str(taken)
        grown = self._all(
            f"SELECT 1 FROM fresh.events WHERE conversation_id IS NULL AND line > {more} "
            "AND event_type NOT LIKE 'PostProcessing%'"
        )
        if taken is None or grown:
            where = self._notes if self._live else self._faults
            where.append((self._id, "its own log has changed since it was imported; import it again"))
            return
        of_manifest = not self._all(
            "SELECT 1 FROM fresh.events WHERE conversation_id IS NULL AND event_type = 'ExperimentStartEvent'"
        )
        left_out = {"log_sha256", "imported_at"}
        if of_manifest:  # it may be made anew from the logs, which then say less
            left_out |= {"name", "host", "spec_hash", "created_at", "status"}
        names = [name for name in self._columns("experiments") if name not in left_out]
        # What has no end is running or interrupted, as it was when it was imported.
        instead = {"status": "CASE WHEN status NOT IN ('created', 'running', 'paused', 'interrupted') THEN status END"}
        columns = ", ".join(instead.get(name, quoted(name)) for name in names)
        (fresh, held) = (
            self._all(f"SELECT {columns} FROM {side}.experiments WHERE experiment_id = ?", self._id)[0]
            for side in ("fresh", "store")
        )
        if differing := [name for name, *pair in zip(names, fresh, held, strict=True) if pair[0] != pair[1]]:
            verb = "differs" if len(differing) == 1 else "differ"
            self._faults.append((self._id, f"{', '.join(differing)} of the experiment {verb} from its record"))
        for table, upto in (
            ("events", f"line <= {taken}"),
            ("damaged_lines", f"line <= {taken}"),
            ("errors", f"seq <= (SELECT max(seq) FROM fresh.events WHERE conversation_id IS NULL AND line <= {taken})"),
        ):
            here, there = (
                f"SELECT * FROM {side}.{table} WHERE conversation_id IS NULL AND experiment_id = $1"
                for side in ("fresh", "store")
            )
            if self._all(_unlike(f"FROM ({here}) WHERE {upto}", there), self._id):
                self._faults.append((self._id, f"rows of {table} differ from what its own log gives"))

    def _compare_arms(self) -> None:
        rows = self._all(
            """
            WITH own AS (
                SELECT arm, count(*) AS conversations, list(variables::VARCHAR) AS every
                FROM store.conversations WHERE experiment_id = $1 AND arm IS NOT NULL GROUP BY arm
            )
            SELECT 1 FROM own FULL JOIN (FROM store.arms WHERE experiment_id = $1) a USING (arm)
            GROUP BY arm HAVING count(*) > 1 OR any_value(own.conversations) IS DISTINCT FROM any_value(a.conversations)
                OR NOT coalesce(list_contains(any_value(every), any_value(a.variables::VARCHAR)), false)
            """,
            self._id,
        )
        if rows:
            self._faults.append((self._id, "rows of arms differ from what its conversations give"))

    def _find_strays(self) -> None:
        for table in CONVERSATION_TABLES:
            stray = (
                f"SELECT 1 FROM store.{table} x ANTI JOIN store.conversations c USING (conversation_id, experiment_id) "
                "WHERE x.conversation_id IS NOT NULL AND (x.experiment_id = $1 OR x.conversation_id LIKE $1 || '-%')"
            )
            if self._all(f"{stray} LIMIT 1", self._id):
                self._faults.append((self._id, f"rows of {table} belong to no conversation"))

    # Conversations

    def _choose_references(self) -> None:
        """Make `same`, the conversations that can be compared, with what each part of their metrics is held against.

        `fresh`: nothing says that it was computed, so that there is what the log gives. `again`: what was computed
        again from the same. NULL: nothing.
        """
        self._con.execute(
            """
            CREATE TEMP TABLE imported AS
            SELECT s.conversation_id, s.imported_with = f.imported_with AS alike
            FROM store.conversations s JOIN fresh.conversations f USING (conversation_id, log_sha256)
            """
        )
        self._con.execute(
            f"""
            CREATE TEMP TABLE parts AS
            SELECT conversation_id, p.part, s.part IS NOT NULL AS is_there, a.part IS NOT NULL AS is_again,
                CASE WHEN a.computed_with = s.computed_with AND a.model IS NOT DISTINCT FROM s.model THEN 'again'
                     WHEN s.part IS NULL OR (s.part = 'semantics' AND s.model IS NULL) THEN 'fresh' END AS reference
            FROM (FROM imported WHERE alike) CROSS JOIN (SELECT unnest(?::VARCHAR[]) AS part) p
            LEFT JOIN store.computed_metrics s USING (conversation_id, part)
            LEFT JOIN {self._again}.computed_metrics a USING (conversation_id, part)
            """,
            [list(_PARTS)],
        )
        pivot = ", ".join(f"max(reference) FILTER (part = '{part}') AS {part}" for part in _PARTS)
        self._con.execute(f"CREATE TEMP TABLE same AS SELECT conversation_id, {pivot} FROM parts GROUP BY ALL")
        ((others,),) = self._all("SELECT count(*) FROM imported WHERE NOT alike")
        if others:
            what = "conversations that another version imported, so that only their words were compared"
            self._notes.append((self._id, f"{what}: {others}; run: pidgin import {self._id}"))
        for part, number in self._all(
            "SELECT part, count(*) FROM parts WHERE is_there AND is_again AND reference IS NULL "
            "GROUP BY part ORDER BY part"
        ):
            what = f"conversations whose metrics ({part}) come from something else than is there now"
            self._notes.append((self._id, f"{what}: {number}; run: pidgin import {self._id}"))

    def _changed(self, table: str) -> str:
        """A query for the conversations that have other rows in a table than a fresh import gives."""
        instead = {
            # What has no end is running or interrupted, as it was when it was imported.
            "conversations": {"status": "CASE WHEN ended_at IS NOT NULL THEN status END"},
            "turns": {name: f"CASE WHEN live = 'fresh' THEN {name} END" for name in ("convergence", "detectors")},
        }.get(table, {})
        columns = ", ".join(f"{instead.get(name, quoted(name))} AS {quoted(name)}" for name in self._columns(table))
        which = "WHERE live = 'fresh'" if table in _LIVE_TABLES else ""
        fresh, held = (
            f"SELECT {columns} FROM {side}.{table} JOIN same USING (conversation_id) {which}"
            for side in ("fresh", "store")
        )
        return _unlike(fresh, held)

    def _compare_message_metrics(self) -> None:
        self._blame(
            "SELECT conversation_id FROM store.message_metrics SEMI JOIN same USING (conversation_id) "
            "GROUP BY conversation_id, message_index HAVING count(*) > 1",
            "rows of message_metrics stand there more than once",
        )
        joined = (
            "same r JOIN (SELECT conversation_id, message_index FROM store.message_metrics UNION "
            "SELECT conversation_id, message_index FROM fresh.messages UNION "
            "SELECT conversation_id, message_index FROM fresh.message_metrics) k USING (conversation_id)"
        ) + "".join(
            f" LEFT JOIN {side}.{table} {alias} USING (conversation_id, message_index)"
            for side, table, alias in (
                ("fresh", "messages", "m"),
                ("fresh", "message_metrics", "f"),
                ("store", "message_metrics", "s"),
                (self._again, "message_metrics", "a"),
            )
        )
        # Each of these parts has a value, or NULL, for every message.
        whole = "(r.texts IS DISTINCT FROM 'fresh' OR r.others IS DISTINCT FROM 'fresh')"
        some = " OR ".join(f"r.{part} IS DISTINCT FROM 'fresh'" for part in _PARTS)
        lost = f"s.message_index IS NULL AND (f.message_index IS NOT NULL OR {whole})"
        added = f"s.message_index IS NOT NULL AND f.message_index IS NULL AND (m.message_index IS NULL OR NOT ({some}))"
        fresh, again = [], []
        for name, kind in self._columns("message_metrics").items():
            if name in ("conversation_id", "message_index"):
                continue
            column, part = quoted(name), _part_of(name)
            other = f"f.{column} IS DISTINCT FROM s.{column}"
            known = "f.message_index" if name in _BOOKKEEPING else "1"
            fresh.append(f"(r.{part} = 'fresh' AND {known} IS NOT NULL AND {other})")
            fresh.append(f"(r.{part} IS NULL AND f.{column} IS NOT NULL AND {other})")
            near = ""
            if kind == "DOUBLE":
                margin = f"{ABSOLUTE} + {RELATIVE} * abs(a.{column})"
                near = f" AND NOT coalesce(abs(a.{column} - s.{column}) <= {margin}, false)"
            again.append(f"(r.{part} = 'again' AND a.{column} IS DISTINCT FROM s.{column}{near})")
        held = "s.message_index IS NOT NULL AND"
        self._blame(
            f"SELECT r.conversation_id FROM {joined} WHERE ({lost}) OR ({added}) OR ({held} ({' OR '.join(fresh)}))",
            f"rows of message_metrics {_FRESH}",
        )
        self._blame(
            f"SELECT r.conversation_id FROM {joined} WHERE {held} ({' OR '.join(again)})",
            f"rows of message_metrics {_AGAIN}",
        )

    def _compare_again(self, table: str) -> None:
        """Rows whose values may lie apart a little, also within JSON."""
        names = ", ".join(quoted(name) for name in self._columns(table) if name not in ("computed_at", "computed_with"))
        same = "same ON x.conversation_id = same.conversation_id AND live = 'again'"
        if table == "computed_metrics":
            same = "parts ON x.conversation_id = parts.conversation_id AND x.part = parts.part AND reference = 'again'"
        sides: list[dict[str, list[tuple[Any, ...]]]] = []
        for side in (self._again, "store"):
            found: dict[str, list[tuple[Any, ...]]] = {}
            for row in self._all(f"SELECT {names} FROM {side}.{table} x SEMI JOIN {same} ORDER BY {_ORDER[table]}"):
                found.setdefault(row[0], []).append(row)
            sides.append(found)
        again, held = sides
        for name in sorted(again.keys() | held.keys(), key=lambda name: (len(name), name)):
            if not _alike(again.get(name), held.get(name)):
                self._faults.append((name, f"rows of {table} {_AGAIN}"))


def _part_of(name: str) -> Part:
    """The part of the metrics that a column of `message_metrics` belongs to."""
    if name in _OTHERS:
        return "others"
    if name == "embedding_model" or (name in METRICS and METRICS[name].language == "model"):
        return "semantics"
    return "texts" if name in METRICS and name not in message_metrics("live") else "live"


def _unlike(first: str, second: str) -> str:
    """A query for the rows that only one of two queries gives, or one gives more often."""
    return f"WITH f AS ({first}), s AS ({second}) (FROM f EXCEPT ALL FROM s) UNION ALL (FROM s EXCEPT ALL FROM f)"


def _lines_with(path: Path, sha256: str | None) -> int | None:
    """How many first lines of a log have this digest; None: there are no such ones."""
    if sha256 is None:
        return 0
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if digest.hexdigest() == sha256:
                    return number
    except OSError:
        return None
    return None if sha256 != digest.hexdigest() else 0


def _alike(one: object, other: object) -> bool:
    """Whether two values are the same but for rounding; texts that are JSON by what they say."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case int() | float(), int() | float():
            return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        case str(), str():
            return one == other or _alike_json(one, other)
        case dict(), dict():
            return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
        case list() | tuple(), list() | tuple():
            return _each_alike(one, other)
    return one == other


def _each_alike(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(_alike(*pair) for pair in zip(one, other, strict=True))


def _alike_json(one: str, other: str) -> bool:
    if not one.startswith(("{", "[")):
        return False
    try:
        return _alike(json.loads(one), json.loads(other))
    except ValueError:
        return False
