"""Metrics and findings that are computed after the run, put beside those of the record."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import duckdb

from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION

from .schema import MetricColumn, literal, quoted

__all__ = ["Computed", "Part", "write_computed"]

AT_ONCE = 1_000
"""Messages that one statement takes: DuckDB needs some 40 kB for each while it does."""

Part = Literal["live", "texts", "others", "semantics"]
"""live: what the record has not. texts: of one conversation. others: against others of its arm. semantics: of
embeddings. Each is computed anew when what it depends on has changed."""


class Computed(NamedTuple):
    """One part of the metrics of one conversation."""

    conversation_id: str
    part: Part
    log_sha256: str
    """Of the log as it was when this was computed."""
    computed_with: str
    """Digest of everything that went in."""
    metrics_version: str
    messages: Mapping[int, Mapping[str, Any]] = {}
    """Values by message index; every message of one part has the same names."""
    conversation: Mapping[str, Any] = {}
    """Values of the whole conversation."""
    turns: Mapping[int, Mapping[str, Any]] = {}
    """live: `convergence`, `detectors` and `pairs` (by name) of each turn without them."""
    attractors: Sequence[Mapping[str, Any]] = ()
    """live: what detectors found that the record has not, with the columns of `computed_attractors` but the ids."""
    model: str | None = None
    """The embedding model."""
    missing: str | None = None
    """Why values are NULL."""


def write_computed(
    con: duckdb.DuckDBPyConnection, computed: Sequence[Computed], columns: Sequence[MetricColumn]
) -> int:
    """Replace these parts. Gives how many were kept: those of conversations whose logs are still the same."""
    logs = dict(con.execute("SELECT conversation_id, log_sha256 FROM conversations").fetchall())
    kept = [one for one in computed if logs.get(one.conversation_id) == one.log_sha256]
    types = {column.name: column.type for column in columns if column.level == "message"}
    for part in ("live", "texts", "others", "semantics"):
        of_part = [one for one in kept if one.part == part]
        if of_part:
            _write_messages(con, part, of_part, types)
            _write_turns(con, of_part)
            if part == "live":
                _write_attractors(con, of_part)
            _write_parts(con, part, of_part)
    return len(kept)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _give(con: duckdb.DuckDBPyConnection, fields: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Make the table `given` of values by name, each of its type; one statement, however many rows."""
    row = ", ".join(f"{quoted(name)} {kind}" for name, kind in fields.items())
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE given AS SELECT unnest(from_json(row, {literal(_json(f'STRUCT({row})'))})) "
        "FROM (SELECT unnest($1::VARCHAR[]) AS row)",
        [[_json(row) for row in rows]],
    )


def _write_messages(
    con: duckdb.DuckDBPyConnection, part: str, computed: Sequence[Computed], types: Mapping[str, str]
) -> None:
    names = [name for name in next((first for one in computed for first in one.messages.values()), {}) if name in types]
    fields = {"c": "VARCHAR", "i": "BIGINT", "v": "VARCHAR", "m": "VARCHAR"} | {name: types[name] for name in names}
    rows = (
        {"c": one.conversation_id, "i": index, "v": one.metrics_version, "m": one.model} | _finite(values)
        for one in computed
        for index, values in one.messages.items()
    )
    while some := list(itertools.islice(rows, AT_ONCE)):
        _give(con, fields, some)
        _take_messages(con, part, names)


def _take_messages(con: duckdb.DuckDBPyConnection, part: str, names: Sequence[str]) -> None:
    """Put what is in `given` where it belongs."""
    con.execute(
        """
        INSERT INTO message_metrics BY NAME
        SELECT m.conversation_id, m.experiment_id, m.message_index, g.v AS metrics_version, true AS computed
        FROM given g JOIN messages m ON m.conversation_id = g.c AND m.message_index = g.i
        ANTI JOIN message_metrics x ON x.conversation_id = g.c AND x.message_index = g.i
        """
    )
    sets = [f"{quoted(name)} = g.{quoted(name)}" for name in names]
    if part == "live":
        sets += [
            "computed = true",
            "metrics_version = g.v",
            f"tokenizer_version = {literal(TOKENIZER_VERSION)}",
            f"lexicon_version = {literal(LEXICON_VERSION)}",
        ]
    if part == "semantics":
        sets.append("embedding_model = g.m")
    if sets:
        con.execute(
            f"UPDATE message_metrics x SET {', '.join(sets)} FROM given g "
            "WHERE x.conversation_id = g.c AND x.message_index = g.i"
        )


def _write_turns(con: duckdb.DuckDBPyConnection, computed: Sequence[Computed]) -> None:
    rows = [
        {
            "c": one.conversation_id,
            "t": number,
            "v": one.metrics_version,
            "convergence": values["convergence"],
            "detectors": _json(values["detectors"]),
            "pairs": _json(values["pairs"]),
        }
        for one in computed
        for number, values in one.turns.items()
    ]
    if not rows:
        return
    text = dict.fromkeys(("c", "v", "detectors", "pairs"), "VARCHAR")
    _give(con, text | {"t": "BIGINT", "convergence": "DOUBLE"}, rows)
    con.execute(
        "UPDATE turns SET convergence = g.convergence, detectors = g.detectors::JSON FROM given g "
        "WHERE turns.conversation_id = g.c AND turns.turn_number = g.t"
    )
    con.execute(
        "DELETE FROM turn_metrics USING given g "
        "WHERE turn_metrics.conversation_id = g.c AND turn_metrics.turn_number = g.t"
    )
    con.execute(
        "INSERT INTO turn_metrics BY NAME SELECT x.conversation_id, x.experiment_id, x.turn_number, "
        "g.v AS metrics_version, g.pairs::JSON AS metrics "
        "FROM given g JOIN turns x ON x.conversation_id = g.c AND x.turn_number = g.t"
    )


def _write_attractors(con: duckdb.DuckDBPyConnection, computed: Sequence[Computed]) -> None:
    con.execute(
        "DELETE FROM computed_attractors WHERE conversation_id IN (SELECT unnest(?::VARCHAR[]))",
        [[one.conversation_id for one in computed]],
    )
    rows = [{"c": one.conversation_id} | _finite(found) for one in computed for found in one.attractors]
    whole = dict.fromkeys(("turn_number", "message_index", "onset", "period"), "BIGINT")
    _give(con, {"c": "VARCHAR", "detector": "VARCHAR", "value": "DOUBLE", "threshold": "DOUBLE"} | whole, rows)
    con.execute(
        "INSERT INTO computed_attractors BY NAME SELECT c.conversation_id, c.experiment_id, g.* EXCLUDE (c) "
        "FROM given g JOIN conversations c ON c.conversation_id = g.c"
    )


def _write_parts(con: duckdb.DuckDBPyConnection, part: str, computed: Sequence[Computed]) -> None:
    con.execute(
        "DELETE FROM computed_metrics WHERE part = ? AND conversation_id IN (SELECT unnest(?::VARCHAR[]))",
        [part, [one.conversation_id for one in computed]],
    )
    names = ("c", "metrics", "missing", "model", "v", "computed_with")
    rows = [
        {
            "c": one.conversation_id,
            "metrics": _json({name: value for name, value in _finite(one.conversation).items() if value is not None}),
            "missing": one.missing,
            "model": one.model,
            "v": one.metrics_version,
            "computed_with": one.computed_with,
        }
        for one in computed
    ]
    _give(con, dict.fromkeys(names, "VARCHAR"), rows)
    con.execute(
        """
        INSERT INTO computed_metrics BY NAME
        SELECT c.conversation_id, c.experiment_id, $1 AS part, g.metrics::JSON AS metrics, g.missing, g.model,
            g.v AS metrics_version, g.computed_with, now() AT TIME ZONE 'UTC' AS computed_at
        FROM given g JOIN conversations c ON c.conversation_id = g.c
        """,
        [part],
    )
