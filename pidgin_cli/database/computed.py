"""Metrics that are computed after the run, put beside those of the record."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import duckdb

from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION

from .schema import MetricColumn, literal, quoted

__all__ = ["Computed", "Part", "write_computed"]

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
            _write_parts(con, part, of_part)
    return len(kept)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _write_messages(
    con: duckdb.DuckDBPyConnection, part: str, computed: Sequence[Computed], types: Mapping[str, str]
) -> None:
    names = [name for name in next((first for one in computed for first in one.messages.values()), {}) if name in types]
    fields = ", ".join(["c VARCHAR", "i BIGINT", "v VARCHAR", "m VARCHAR", *(f"{quoted(n)} {types[n]}" for n in names)])
    rows = [
        _json({"c": one.conversation_id, "i": index, "v": one.metrics_version, "m": one.model} | _finite(values))
        for one in computed
        for index, values in one.messages.items()
    ]
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE given AS "
        f"SELECT unnest(from_json(row, {literal(_json(f'STRUCT({fields})'))})) "
        "FROM (SELECT unnest($1::VARCHAR[]) AS row)",
        [rows],
    )
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
    turns = [(one.conversation_id, one.metrics_version, *turn) for one in computed for turn in one.turns.items()]
    for conversation_id, version, number, values in turns:
        con.execute(
            "UPDATE turns SET convergence = ?, detectors = ? WHERE conversation_id = ? AND turn_number = ?",
            [values["convergence"], _json(values["detectors"]), conversation_id, number],
        )
        con.execute("DELETE FROM turn_metrics WHERE conversation_id = ? AND turn_number = ?", [conversation_id, number])
        con.execute(
            "INSERT INTO turn_metrics BY NAME SELECT conversation_id, experiment_id, turn_number, "
            "$version AS metrics_version, $pairs::JSON AS metrics FROM turns "
            "WHERE conversation_id = $conversation AND turn_number = $number",
            {
                "version": version,
                "pairs": _json(values["pairs"]),
                "conversation": conversation_id,
                "number": number,
            },
        )


def _write_parts(con: duckdb.DuckDBPyConnection, part: str, computed: Sequence[Computed]) -> None:
    con.execute(
        "DELETE FROM computed_metrics WHERE part = ? AND conversation_id IN (SELECT unnest(?::VARCHAR[]))",
        [part, [one.conversation_id for one in computed]],
    )
    for one in computed:
        con.execute(
            """
            INSERT INTO computed_metrics BY NAME
            SELECT conversation_id, experiment_id, $part AS part, $metrics::JSON AS metrics, $missing AS missing,
                $model AS model, $version AS metrics_version, $computed_with AS computed_with,
                now() AT TIME ZONE 'UTC' AS computed_at
            FROM conversations WHERE conversation_id = $conversation
            """,
            {
                "part": part,
                "metrics": _json(
                    {name: value for name, value in _finite(one.conversation).items() if value is not None}
                ),
                "missing": one.missing,
                "model": one.model,
                "version": one.metrics_version,
                "computed_with": one.computed_with,
                "conversation": one.conversation_id,
            },
        )
