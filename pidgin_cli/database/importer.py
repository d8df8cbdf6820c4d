"""From the logs of an experiment to rows, in one transaction.

The lines are cut and parsed inside DuckDB. Python reads the files, which gives their digests and lets any file name and
any damage pass, and never looks at what an event says.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import duckdb

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import EVENT_TYPES, ConversationStartEvent, TurnCompleteEvent
from pidgin_cli.eventlog.folder import ExperimentFolder
from pidgin_cli.eventlog.log import gaps_in
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION

from .schema import CONVERSATION_TABLES, MIGRATIONS, MetricColumn, literal, quoted
from .structs import ENVELOPE, out_of_range, required_paths, structure
from .word_uses import WordCounter, count_words

__all__ = ["Damage", "Imported", "import_into"]

BATCH_BYTES = 8_000_000
"""Of text that is handed over at a time; larger values are slower and take more memory."""

_EXPERIMENT = ""
"""Stands for the experiment's own log where logs go by conversation id."""


class Damage(NamedTuple):
    """A line that could not be read, lines that are missing, or a log that could not be taken."""

    log: str
    line: int
    """Counted from 1; of missing lines, the one that follows them; 0: the whole file."""
    why: str
    """As in the table `damaged_lines`; `unreadable`: the whole file."""
    beginning: str
    """Of the line; of missing ones, how many; of a whole file, what is wrong with it."""

    def __str__(self) -> str:
        if not self.line:
            return f"{self.log}: {self.beginning}"
        if self.why == "missing":
            return f"{self.log}: {self.beginning} before line {self.line}"
        return f"{self.log}, line {self.line}: {self.why}: {self.beginning!r}"


class Imported(NamedTuple):
    """What was taken of one experiment."""

    experiment_id: str
    name: str | None
    conversations: int = 0
    """Whose rows were replaced."""
    unchanged: int = 0
    """Conversations whose logs had not changed."""
    changed: bool = True
    """Something was written at all."""
    messages: int = 0
    """In the conversations whose rows were replaced."""
    unknown: int = 0
    """Lines of event types of another version; they are in `events`."""
    damage: tuple[Damage, ...] = ()
    failed: str | None = None
    """Why nothing was taken; what was there before is still there."""


def import_into(
    con: duckdb.DuckDBPyConnection,
    folder: ExperimentFolder,
    *,
    live: bool,
    metrics: Sequence[MetricColumn] = (),
    words: WordCounter | None = None,
    again: bool = False,
) -> Imported:
    """Replace the rows of the conversations whose logs have changed, in one transaction.

    Args:
        con: an open database at the newest schema.
        live: a runner is at work on the experiment; without one, what has no end is interrupted.
        metrics: the columns of metrics; what else the log holds is left out.
        words: fills `word_uses`.
        again: replace everything, whether or not it has changed.
    """
    job = partial(_Import, con, folder, live=live, metrics=metrics, words=words, again=again)
    try:
        return _attempt(con, job())
    except _OF_THE_CONTENT:
        refused = {name: why for name in folder.logs() if (why := _refusal(con, job(only=name))) is not None}
        if not refused:
            raise
        return _attempt(con, job(passed_over=refused))


_OF_THE_CONTENT = (duckdb.DataError, duckdb.ProgrammingError)
"""What DuckDB raises over values, as opposed to disks and memory."""


def _attempt(con: duckdb.DuckDBPyConnection, job: "_Import") -> Imported:
    con.begin()
    try:
        found = job.run()
        con.commit()
    except BaseException:
        con.rollback()
        raise
    return found


def _refusal(con: duckdb.DuckDBPyConnection, job: "_Import") -> str | None:
    """Why a log cannot be taken; None where it can. Leaves the database as it is."""
    con.begin()
    try:
        job.run()
    except _OF_THE_CONTENT as error:
        return str(error).strip().partition("\n")[0]
    finally:
        con.rollback()
    return None


def imported_with(metrics: Sequence[MetricColumn], words: WordCounter | None) -> str:
    """A digest of what rows depend on besides the log."""
    told = [len(MIGRATIONS), sorted(metric[:3] for metric in metrics), TOKENIZER_VERSION if words else None]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


class _Log(NamedTuple):
    conversation_id: str
    path: Path
    data: bytes
    sha256: str


class _Import:
    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        folder: ExperimentFolder,
        *,
        live: bool,
        metrics: Sequence[MetricColumn],
        words: WordCounter | None,
        again: bool,
        passed_over: Mapping[str, str] = MappingProxyType({}),
        only: str | None = None,
    ) -> None:
        """`passed_over`: logs that cannot be taken, and why. `only`: none but this log."""
        self.con = con
        self.folder = folder
        self.id = folder.experiment_id
        self.live = live
        self.metrics = {level: [metric for metric in metrics if metric.level == level] for level in ("message", "turn")}
        self.words = words
        self.again = again
        self.passed_over = passed_over
        self.only = only
        self.with_ = imported_with(metrics, words)
        self.unreadable: list[Damage] = []

    def run(self) -> Imported:
        self._make_temporary_tables()
        unchanged = 0
        known = self._known()
        there = known.keys() - {_EXPERIMENT}
        own_log_is_new = True
        batch: list[_Log] = []
        for log in self._logs(there):
            if known.get(log.conversation_id) == (log.sha256, True) and not self.again:
                unchanged += log.conversation_id != _EXPERIMENT
                own_log_is_new = own_log_is_new and log.conversation_id != _EXPERIMENT
                continue
            batch.append(log)
            if sum(len(each.data) for each in batch) > BATCH_BYTES:
                self._take(batch)
                batch = []
        self._take(batch)
        if own_log_is_new or self._one("SELECT count(*) FROM taken"):
            self._parse()
            if refused := self._without_a_beginning():
                self._pass_over(refused, there)
                self._parse()
        if not own_log_is_new and not self._one("SELECT count(*) FROM taken"):
            name = self._one("SELECT name FROM experiments WHERE experiment_id = ?", self.id)
            return Imported(self.id, name, unchanged=unchanged, changed=False, damage=tuple(self.unreadable))
        self._find_gaps()
        self._delete()
        for table, select in _SELECTS.items():
            self.con.execute(f"INSERT INTO {table} BY NAME {select}", self._named(select))
        self._insert_metrics()
        self._insert_words()
        if own_log_is_new:
            self._insert_experiment()
        self._insert_arms()
        return self._told(unchanged)

    def _one(self, sql: str, *values: object) -> Any:
        row = self.con.execute(sql, list(values)).fetchone()
        return None if row is None else row[0]

    def _named(self, select: str) -> dict[str, object]:
        values = {"experiment": self.id, "live": self.live, "with": self.with_}
        return {name: value for name, value in values.items() if f"${name}" in select}

    def _known(self) -> dict[str, tuple[str, bool]]:
        """Digest by conversation, and whether its rows are still right if that is the same."""
        rows = self.con.execute(
            """
            SELECT conversation_id, log_sha256,
                   imported_with = $with AND (ended_at IS NOT NULL AND status NOT IN ('running', 'paused')
                                              OR (status IN ('running', 'paused', 'created')) = $live)
            FROM conversations WHERE experiment_id = $experiment
            UNION ALL
            SELECT '', log_sha256, (status IN ('running', 'paused')) = $live AND status <> 'created'
            FROM experiments WHERE experiment_id = $experiment
            """,
            {"with": self.with_, "live": self.live, "experiment": self.id},
        ).fetchall()
        return {conversation_id: (sha256, right) for conversation_id, sha256, right in rows}

    def _logs(self, there: Collection[str]) -> Iterator[_Log]:
        """`there`: conversations of which the database has something."""
        paths = dict(self.folder.logs())
        if self.folder.events.exists():
            paths[_EXPERIMENT] = self.folder.events
        for conversation_id, path in paths.items():
            if self.only not in (None, conversation_id):
                continue
            if (why := self.passed_over.get(conversation_id)) is not None:
                self.unreadable.append(_not_taken(path.name, why, kept=conversation_id in there))
                continue
            try:
                data = path.read_bytes()
            except OSError as error:
                why = error.strerror or str(error)
                self.unreadable.append(_not_taken(path.name, why, kept=conversation_id in there))
                continue
            yield _Log(conversation_id, path, data, hashlib.sha256(data).hexdigest())

    # Lines

    def _make_temporary_tables(self) -> None:
        # Made anew each time: a table that has been rolled back is gone, one that has not is still full.
        envelope = ", ".join(f"{name} {kind}" for name, kind in ENVELOPE.items())
        for name, columns in (
            ("taken", "id VARCHAR, log VARCHAR, sha256 VARCHAR, bytes BIGINT"),
            ("lines", f"id VARCHAR, n BIGINT, torn BOOLEAN, line VARCHAR, {envelope}"),
            ("gaps", "id VARCHAR, n BIGINT, events BIGINT"),
        ):
            self.con.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")

    def _take(self, logs: Sequence[_Log]) -> None:
        if not logs:
            return
        self.con.execute(
            "INSERT INTO taken SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[]), unnest($3::VARCHAR[]), "
            "unnest($4::BIGINT[])",
            [
                [log.conversation_id for log in logs],
                [log.path.name for log in logs],
                [log.sha256 for log in logs],
                [len(log.data) for log in logs],
            ],
        )
        self.con.execute(
            f"""
            INSERT INTO lines
            SELECT id, n, n = last, line, unnest(try(from_json(line, {literal(json.dumps(ENVELOPE))})))
            FROM (
                SELECT id, len(pieces) AS last, unnest(pieces) AS line, generate_subscripts(pieces, 1) AS n
                FROM (SELECT id, string_split(log, chr(10)) AS pieces
                      FROM (SELECT unnest($1::VARCHAR[]) AS id, unnest($2::VARCHAR[]) AS log))
            )
            WHERE trim(line, chr(9) || chr(11) || chr(12) || chr(13) || ' ') <> ''
            """,
            [[log.conversation_id for log in logs], [_text(log.data) for log in logs]],
        )

    def _parse(self) -> None:
        """A temporary table for every type of event, with a column for each of its fields; `parsed` and `damage`."""
        self.con.execute("CREATE OR REPLACE TEMP TABLE damage (id VARCHAR, n BIGINT, why VARCHAR)")
        kinds = []
        for kind in EVENT_TYPES:
            special = {"metrics": self._metrics_type()} if kind is TurnCompleteEvent else {}
            whole = " AND ".join(
                [
                    *(f"{path} IS NOT NULL" for path in required_paths(kind)),
                    *(f"({test}) IS NOT TRUE" for test in out_of_range(kind)),
                ]
            )
            self.con.execute(
                f"""
                CREATE OR REPLACE TEMP TABLE {kind.__name__} AS
                SELECT * FROM (
                    SELECT id AS _id, n AS _n, seq AS _seq, timestamp AS _at,
                           unnest(from_json(line, {literal(structure(kind, special))}))
                    FROM lines WHERE event_type = '{kind.__name__}'
                ) WHERE {whole or "true"}
                """
            )
            kinds.append(kind.__name__)
        parsed = " UNION ALL ".join(f"SELECT _id AS id, _n AS n, _seq AS seq FROM {name}" for name in kinds)
        self.con.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {parsed}")
        for table, key in (("MessageCompleteEvent", "message_index"), ("TurnCompleteEvent", "turn_number")):
            self.con.execute(
                f"""
                INSERT INTO damage SELECT _id, _n, 'repeated' FROM {table}
                SEMI JOIN (SELECT _id, {key} FROM {table} GROUP BY ALL HAVING count(*) > 1) USING (_id, {key})
                ANTI JOIN (SELECT _id, min(_n) AS _n FROM {table} GROUP BY _id, {key}) USING (_id, _n)
                """
            )
            self.con.execute(f"DELETE FROM {table} WHERE (_id, _n) IN (SELECT (id, n) FROM damage)")
        self.con.execute(
            f"""
            INSERT INTO damage
            SELECT id, n, CASE WHEN torn THEN 'torn' ELSE 'broken' END
            FROM lines ANTI JOIN parsed USING (id, n)
            WHERE event_type IS NULL OR NOT regexp_full_match(event_type, '[A-Za-z]\\w*')
                OR event_type IN ({", ".join(f"'{name}'" for name in kinds)})
            """
        )

    def _without_a_beginning(self) -> dict[str, str]:
        """Logs of conversations that cannot be taken as they are, and why; what has not begun yet is none of them."""
        rows = self.con.execute(
            f"""
            SELECT t.id, l.id IS NULL FROM taken t
            LEFT JOIN (SELECT id, min(n) AS n FROM parsed GROUP BY id) p USING (id)
            LEFT JOIN {ConversationStartEvent.__name__} s ON s._id = t.id AND s._n = p.n
            LEFT JOIN (SELECT DISTINCT id FROM lines ANTI JOIN (FROM damage WHERE why = 'torn') USING (id, n)) l
                ON l.id = t.id
            WHERE t.id <> '' AND s._id IS NULL ORDER BY length(t.id), t.id
            """
        ).fetchall()
        begun = self._begun() if any(empty for _, empty in rows) else set()
        return {
            name: "it holds no events any more" if empty else "it does not begin with the start of the conversation"
            for name, empty in rows
            if not empty or name in begun
        }

    def _begun(self) -> set[str]:
        """Conversations that had events by the database or, while nobody writes it, by the manifest."""
        rows = self.con.execute("SELECT DISTINCT conversation_id FROM events WHERE experiment_id = ?", [self.id])
        begun = {name for (name,) in rows.fetchall()}
        if not self.live:  # a runner may have written the first events since the log was read
            with contextlib.suppress(LogError):
                entries = read_manifest(self.folder).conversations
                begun |= {name for name, entry in entries.items() if entry.last_seq >= 0}
        return begun

    def _pass_over(self, refused: Mapping[str, str], there: Collection[str]) -> None:
        for conversation_id, why in refused.items():
            log = self.folder.log(conversation_id).name
            self.unreadable.append(_not_taken(log, why, kept=conversation_id in there))
        for table in ("taken", "lines"):
            self.con.execute(f"DELETE FROM {table} WHERE id IN (SELECT unnest($1::VARCHAR[]))", [list(refused)])

    def _find_gaps(self) -> None:
        # Only of logs in which some number is not there: those of all others would take their time.
        rows = self.con.execute(
            """
            SELECT id, n, p.seq FROM lines LEFT JOIN parsed p USING (id, n)
            ANTI JOIN (FROM damage WHERE why = 'torn') USING (id, n)
            SEMI JOIN (SELECT id FROM parsed GROUP BY id
                       HAVING count(DISTINCT seq) FILTER (seq >= 0) <= max(seq)) USING (id)
            ORDER BY id, n
            """
        ).fetchall()
        found = [
            (conversation_id, gap.line, gap.events)
            for conversation_id, lines in groupby(rows, itemgetter(0))
            for gap in gaps_in((n, seq) for _, n, seq in lines)
        ]
        if found:
            self.con.executemany("INSERT INTO gaps VALUES (?, ?, ?)", found)

    def _columns_type(self, level: str) -> str:
        """One field for each metric; a STRUCT has to have one."""
        columns = [f"{quoted(metric.name)} {metric.type}" for metric in self.metrics[level]]
        return f"STRUCT({', '.join(['_none BOOLEAN', *columns])})"

    def _metrics_type(self) -> str:
        """What is read of `TurnCompleteEvent.metrics`."""
        messages = f"MAP(VARCHAR, {self._columns_type('message')})"
        return f"STRUCT(version VARCHAR, tokenizer VARCHAR, lexicon VARCHAR, messages {messages}, turn JSON)"

    # Rows

    def _delete(self) -> None:
        for table in CONVERSATION_TABLES:
            self.con.execute(
                f"DELETE FROM {table} WHERE experiment_id = ? "
                "AND coalesce(conversation_id, '') IN (SELECT id FROM taken)",
                [self.id],
            )

    def _insert_metrics(self) -> None:
        values = "".join(f", value.{quoted(metric.name)}" for metric in self.metrics["message"])
        if values:
            self.con.execute(
                f"""
                INSERT INTO message_metrics BY NAME
                SELECT _id AS conversation_id, $experiment AS experiment_id, message_index,
                    version AS metrics_version, tokenizer AS tokenizer_version, lexicon AS lexicon_version{values}
                FROM (SELECT * EXCLUDE (e), try_cast(e.key AS BIGINT) AS message_index, e.value
                      FROM (SELECT _id, metrics.version, metrics.tokenizer, metrics.lexicon,
                                unnest(map_entries(metrics.messages)) AS e
                            FROM TurnCompleteEvent))
                WHERE message_index IS NOT NULL
                """,
                {"experiment": self.id},
            )
        values = "".join(f", value.{quoted(metric.name)}" for metric in self.metrics["turn"])
        self.con.execute(
            f"""
            INSERT INTO turn_metrics BY NAME
            SELECT _id AS conversation_id, $experiment AS experiment_id, turn_number, version AS metrics_version,
                metrics{values}
            FROM (SELECT _id, turn_number, metrics.version AS version, metrics.turn AS metrics,
                      from_json(metrics.turn, {literal(json.dumps(self._columns_type("turn")))}) AS value
                  FROM TurnCompleteEvent)
            WHERE metrics IS NOT NULL AND json_type(metrics) = 'OBJECT' AND metrics <> '{{}}'
            """,
            {"experiment": self.id},
        )

    def _insert_words(self) -> None:
        if self.words is None:
            return
        said = "SELECT _id, agent_id, _n, message.content FROM MessageCompleteEvent"
        count_words(self.con, said, self.words)
        self.con.execute(
            "INSERT INTO word_uses BY NAME SELECT *, $experiment AS experiment_id FROM counted", {"experiment": self.id}
        )

    def _insert_experiment(self) -> None:
        starts = self.con.execute(
            "SELECT count(*), min_by(_at, _n), max_by(name, _n), max_by(spec_hash, _n), max_by(conversations, _n), "
            "max_by(versions::JSON::VARCHAR, _n), max_by(host, _n), max(_n) FROM ExperimentStartEvent WHERE _id = ''"
        ).fetchone()
        end = self.con.execute(
            "SELECT status, _at, _n FROM ExperimentCompleteEvent WHERE _id = '' ORDER BY _n DESC"
        ).fetchone()
        assert starts is not None
        begun, created_at, name, spec_hash, planned, versions, host, last_start = starts
        status, completed_at = "running" if self.live else "interrupted", None
        if not begun:
            manifest = read_manifest(self.folder)
            name, host, spec_hash = manifest.name, manifest.host, manifest.spec_hash or None
            created_at = manifest.created_at.astimezone(UTC).replace(tzinfo=None)
            status = manifest.status.value
        elif end is not None and end[2] > last_start:
            status, completed_at = end[0], end[1]
        try:
            spec = self.folder.spec.read_text("utf-8", "replace")
        except OSError:
            spec = None
        row = {
            "experiment_id": self.id,
            "name": name,
            "status": status,
            "created_at": created_at,
            "completed_at": completed_at,
            "conversations_planned": planned,
            "spec_hash": spec_hash,
            "spec": spec,
            "versions": versions,
            "host": host,
            "folder": self.folder.path.name,
        }
        self.con.execute("DELETE FROM experiments WHERE experiment_id = ?", [self.id])
        columns = ", ".join(f"${column} AS {column}" for column in row)
        self.con.execute(
            f"INSERT INTO experiments BY NAME SELECT {columns}, now() AT TIME ZONE 'UTC' AS imported_at, "
            "(SELECT sha256 FROM taken WHERE id = '') AS log_sha256",
            row,
        )

    def _insert_arms(self) -> None:
        self.con.execute("DELETE FROM arms WHERE experiment_id = ?", [self.id])
        self.con.execute(
            "INSERT INTO arms BY NAME SELECT experiment_id, arm, any_value(variables) AS variables, "
            "count(*) AS conversations FROM conversations WHERE experiment_id = ? AND arm IS NOT NULL GROUP BY ALL",
            [self.id],
        )

    def _told(self, unchanged: int) -> Imported:
        counts = self.con.execute(
            f"""
            SELECT (SELECT count(*) FROM taken WHERE id <> ''), (SELECT count(*) FROM MessageCompleteEvent),
                   (SELECT count(*) FROM lines ANTI JOIN damage USING (id, n) WHERE event_type NOT IN
                       ({", ".join(f"'{kind.__name__}'" for kind in EVENT_TYPES)})),
                   (SELECT name FROM experiments WHERE experiment_id = $experiment)
            """,
            {"experiment": self.id},
        ).fetchone()
        assert counts is not None
        rows = self.con.execute(
            f"SELECT t.log, d.n, d.why, d.beginning FROM ({_DAMAGE}) d JOIN taken t USING (id) "
            "ORDER BY length(t.log), t.log, d.n, d.why"
        ).fetchall()
        return Imported(
            experiment_id=self.id,
            name=counts[3],
            conversations=counts[0],
            unchanged=unchanged,
            messages=counts[1],
            unknown=counts[2],
            damage=(*self.unreadable, *(Damage(*row) for row in rows)),
        )


def _not_taken(log: str, why: str, *, kept: bool) -> Damage:
    return Damage(log, 0, "unreadable", f"{why}{'; what was imported of it before is still there' if kept else ''}")


def _text(data: bytes) -> str:
    """A log as text. A line that is not UTF-8 begins with U+FFFD and is no JSON, as its neighbours still are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        lines = []
        for line in data.split(b"\n"):
            try:
                lines.append(line.decode())
            except UnicodeDecodeError:
                lines.append("\ufffd" + line.decode("utf-8", "replace"))
        return "\n".join(lines)


_WHOSE = "_id AS conversation_id, $experiment AS experiment_id"
_ELSEWHERE = "(SELECT _id FROM ConversationStartEvent WHERE (spec->>'$.source') IS NOT NULL)"
"""Conversations of records that Pidgin did not write, which do not say which attempt a reply was."""

_UNDATED = "(SELECT _id FROM ConversationStartEvent WHERE spec->>'$.source.format' = 'transcript')"
"""Conversations that were taken in from plain text, whose events have the time of that and no other."""

_DAMAGE = """
    SELECT id, n, why, left(line, 80) AS beginning, 1 AS lines FROM damage JOIN lines USING (id, n)
    UNION ALL
    SELECT id, n, 'missing', events || if(events = 1, ' event is missing', ' events are missing'), events FROM gaps
"""

_SELECTS = {
    "conversations": """
        WITH marks AS (
            SELECT _id, _n, 'running' AS status, NULL AS end_n FROM ConversationStartEvent
            UNION ALL SELECT _id, _n, 'paused', NULL FROM ConversationPausedEvent
            UNION ALL SELECT _id, _n, 'running', NULL FROM ConversationResumedEvent
            UNION ALL SELECT _id, _n, status, _n FROM ConversationEndEvent
        ),
        standing AS (SELECT _id, max_by(status, _n) AS status, max_by(struct_pack(n := end_n), _n).n AS end_n
                     FROM marks GROUP BY _id),
        starts AS (
            SELECT *, from_json(spec, '{"variables": "JSON", "seating": "VARCHAR", "first": "VARCHAR",
                "order": "VARCHAR", "max_turns": "BIGINT", "source": "JSON"}') AS told,
                from_json(branch_of, '{"conversation_id": "VARCHAR", "turn": "BIGINT", "message_index": "BIGINT",
                "digest": "VARCHAR"}') AS origin
            FROM ConversationStartEvent QUALIFY row_number() OVER (PARTITION BY _id ORDER BY _n) = 1
        ),
        said AS (SELECT _id, count(*) AS messages FROM MessageCompleteEvent GROUP BY _id),
        untold AS (SELECT DISTINCT _id FROM MessageCompleteEvent WHERE finish_reason = 'unknown'),
        turned AS (SELECT _id, count(*) AS turns FROM TurnCompleteEvent GROUP BY _id),
        paid AS (
            SELECT _id, count(*) AS n, count(prompt_tokens) AS n_prompt, count(completion_tokens) AS n_completion,
                   count(cost) AS n_cost, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion,
                   sum(cost) AS cost
            FROM TokenUsageEvent GROUP BY _id
        ),
        counted AS (SELECT id AS _id, max(n) AS lines, min(timestamp) AS began FROM lines GROUP BY id),
        broken AS (SELECT id AS _id, sum(lines)::BIGINT AS damaged FROM ($$DAMAGE$$) GROUP BY id)
        SELECT t.id AS conversation_id, $experiment AS experiment_id, s.arm,
            coalesce(s.told.variables, CASE WHEN s.arm IS NOT NULL THEN '{}'::JSON END) AS variables,
            nullif(s.told.seating, '') AS seating, s.told.first AS first_speaker, s.told."order" AS speaking_order,
            s.repetition, CASE WHEN s.told.source IS NULL THEN try_cast(s.seed AS BIGINT) END AS seed,
            s.opening, s.prompt_tag, s.told.max_turns AS max_turns,
            CASE WHEN coalesce(x.status, 'created') IN ('running', 'paused') AND NOT $live THEN 'interrupted'
                 ELSE coalesce(x.status, 'created') END AS status,
            e.end_reason, e.error, coalesce(turned.turns, 0) AS turns, coalesce(said.messages, 0) AS messages,
            CASE WHEN paid.n IS NULL THEN 0 WHEN paid.n = paid.n_prompt THEN paid.prompt END AS prompt_tokens,
            CASE WHEN paid.n IS NULL THEN 0 WHEN paid.n = paid.n_completion THEN paid.completion END
                AS completion_tokens,
            CASE WHEN paid.n IS NULL THEN 0 WHEN paid.n = paid.n_cost THEN paid.cost END AS cost_usd,
            CASE WHEN t.id NOT IN $$UNDATED$$ THEN counted.began END AS started_at,
            CASE WHEN t.id NOT IN $$UNDATED$$ THEN e._at END AS ended_at,
            CASE WHEN e._n IS NOT NULL THEN len(coalesce(e.invalid, [])) > 0 END AS invalid,
            CASE WHEN e._n IS NOT NULL THEN coalesce(e.invalid, []) END AS invalid_reasons,
            CASE WHEN e._n IS NOT NULL THEN coalesce(cardinality(e.notable), 0) > 0 END AS notable,
            CASE WHEN e._n IS NOT NULL THEN coalesce(e.notable['empty'], 0) END AS empty_messages,
            CASE WHEN e._n IS NOT NULL AND untold._id IS NULL THEN coalesce(e.notable['refused'], 0) END
                AS refused_messages,
            CASE WHEN e._n IS NOT NULL AND untold._id IS NULL THEN coalesce(e.notable['truncated'], 0) END
                AS truncated_messages,
            CASE WHEN e._n IS NOT NULL AND untold._id IS NULL THEN coalesce(e.notable['filtered'], 0) END
                AS filtered_messages,
            CASE WHEN e._n IS NOT NULL THEN coalesce(e.notable['text_replaced'], 0) END AS text_replaced_messages,
            CASE WHEN e._n IS NOT NULL AND s.told.source IS NULL THEN coalesce(e.notable['served_model'], 0) END
                AS other_model_messages,
            CASE WHEN e._n IS NOT NULL AND s.told.source IS NULL THEN coalesce(e.notable['fingerprint'], 0) END
                AS other_fingerprint_messages,
            s.origin.conversation_id AS origin_conversation_id, s.origin.turn AS origin_turn,
            s.origin.message_index AS origin_message_index, s.origin.digest AS origin_digest,
            e.metrics AS metrics, s.told.source AS source, s.pidgin_version, s.schema_version, s.spec_hash, s.spec,
            t.log, t.sha256 AS log_sha256, t.bytes AS log_bytes, coalesce(counted.lines, 0) AS log_lines,
            coalesce(broken.damaged, 0) AS damaged_lines, $with AS imported_with
        FROM taken t
        LEFT JOIN standing x ON x._id = t.id
        LEFT JOIN starts s ON s._id = t.id
        LEFT JOIN ConversationEndEvent e ON e._id = t.id AND e._n = x.end_n
        LEFT JOIN said ON said._id = t.id
        LEFT JOIN untold ON untold._id = t.id
        LEFT JOIN turned ON turned._id = t.id
        LEFT JOIN paid ON paid._id = t.id
        LEFT JOIN counted ON counted._id = t.id
        LEFT JOIN broken ON broken._id = t.id
        WHERE t.id <> ''
        """.replace("$$UNDATED$$", _UNDATED).replace("$$DAMAGE$$", _DAMAGE),
    "agents": f"""
        WITH seats AS (
            SELECT _id, spec->>'first' AS first, unnest(agents) AS agent, generate_subscripts(agents, 1) - 1 AS seat
            FROM (FROM ConversationStartEvent QUALIFY row_number() OVER (PARTITION BY _id ORDER BY _n) = 1)
        ),
        prompts AS (SELECT _id, agent_id, min_by(text, _n) AS text, min_by(placement, _n) AS placement
                    FROM SystemPromptEvent GROUP BY ALL),
        names AS (SELECT _id, agent_id, max_by(name, _n) AS name, max_by(coalesce(chosen, true), _n) AS chosen
                  FROM AgentNamedEvent GROUP BY ALL)
        SELECT {_WHOSE.replace("_id AS", "s._id AS", 1)}, agent.id AS agent_id, seat, agent.id = first AS opens,
            agent.model AS model, split_part(agent.model, ':', 1) AS provider,
            coalesce(names.name, agent.name) AS name, coalesce(names.chosen, false) AS chose_name,
            coalesce(prompts.text, agent.system_prompt) AS system_prompt,
            prompts.placement AS system_prompt_placement, agent.awareness AS awareness,
            agent.settings.temperature AS temperature, agent.settings.top_p AS top_p,
            try_cast(agent.settings.max_tokens AS BIGINT) AS max_tokens, agent.settings.stop AS stop,
            try_cast(agent.settings.seed AS BIGINT) AS seed, agent.settings.think AS think,
            try_cast(agent.settings.think_budget AS BIGINT) AS think_budget, agent.settings.effort AS effort,
            agent.settings.extra AS extra, coalesce(agent.thinking_visible, 'nobody') AS thinking_visible
        FROM seats s
        LEFT JOIN prompts ON prompts._id = s._id AND prompts.agent_id = agent.id
        LEFT JOIN names ON names._id = s._id AND names.agent_id = agent.id
        """,
    "turns": f"""
        WITH begun AS (SELECT _id, turn_number, min_by(speakers, _n) AS speakers, min(_at) AS _at
                       FROM TurnStartEvent GROUP BY ALL)
        SELECT {_WHOSE}, turn_number, speakers, e._n IS NOT NULL AS complete, e.convergence, e.detectors,
            CASE WHEN _id NOT IN {_UNDATED} THEN b._at END AS started_at,
            CASE WHEN _id NOT IN {_UNDATED} THEN e._at END AS completed_at
        FROM begun b FULL JOIN TurnCompleteEvent e USING (_id, turn_number)
        """,
    "messages": r"""
        WITH asked AS (SELECT _id, message_index, max_by(digest, _n) AS digest, max(_at) AS at_
                       FROM MessageRequestEvent GROUP BY ALL)
        SELECT m._id AS conversation_id, $experiment AS experiment_id, message_index, m.turn_number, m.agent_id,
            m.message.id AS message_id, m.message.content AS content, m.finish_reason,
            regexp_full_match(m.message.content, '[\s\x0b\x1c-\x1f\x{85}\pZ]*') AS empty,
            nullif(m.finish_reason, 'unknown') = 'refusal' AS refused,
            nullif(m.finish_reason, 'unknown') = 'length' AS truncated,
            nullif(m.finish_reason, 'unknown') = 'content_filter' AS filtered,
            coalesce(m.text_replaced, false) OR coalesce(m.message.text_replaced, false) AS text_replaced,
            m.usage.prompt_tokens AS prompt_tokens, m.usage.completion_tokens AS completion_tokens,
            m.usage.thinking_tokens AS thinking_tokens, m.usage.cached_tokens AS cached_tokens,
            m.usage.cache_write_tokens AS cache_write_tokens, coalesce(m.usage.estimated, false) AS usage_estimated,
            m.cost AS cost_usd, m.timing.queued_ms AS queued_ms, m.timing.ttft_ms AS ttft_ms,
            m.timing.duration_ms AS duration_ms, m.timing.tokens_per_s AS tokens_per_s, m.model_requested,
            m.model_served, m.fingerprint, m.request_id, coalesce(m.cached, false) AS cached,
            CASE WHEN _id NOT IN $$ELSEWHERE$$ THEN coalesce(m.attempt, 1) END AS attempt,
            asked.digest AS view_digest, asked.at_ AS requested_at,
            CASE WHEN _id NOT IN $$UNDATED$$ THEN m._at END AS completed_at, m._seq AS seq
        FROM MessageCompleteEvent m LEFT JOIN asked USING (_id, message_index)
        """.replace("$$UNDATED$$", _UNDATED).replace("$$ELSEWHERE$$", _ELSEWHERE),
    "thinking": f"""
        SELECT {_WHOSE}, message_index, row_number() OVER (PARTITION BY _id, message_index ORDER BY _n) - 1 AS block,
            turn_number, agent_id, content, tokens, coalesce(redacted, false) AS redacted, _seq AS seq
        FROM ThinkingCompleteEvent
        """,
    "tool_calls": f"""
        WITH results AS (SELECT _id, message_index, call_id, min_by(content, _n) AS result,
                             min_by(coalesce(is_error, false), _n) AS is_error, min_by(duration_ms, _n) AS duration_ms
                         FROM ToolResultEvent GROUP BY ALL)
        SELECT {_WHOSE}, message_index, call_id, turn_number, agent_id, name, arguments, r.result, r.is_error,
            r.duration_ms, _seq AS seq
        FROM ToolCallEvent LEFT JOIN results r USING (_id, message_index, call_id)
        """,
    "token_usage": f"""
        SELECT {_WHOSE}, _seq AS seq, _at AS happened_at, agent_id, coalesce(purpose, 'message') AS purpose, provider,
            model, prompt_tokens, completion_tokens, thinking_tokens, cached_tokens,
            coalesce(estimated, false) AS estimated, cost AS cost_usd, total_tokens, total_cost AS total_cost_usd
        FROM TokenUsageEvent
        """,
    "interventions": f"""
        SELECT {_WHOSE}, _seq AS seq, _at AS happened_at, turn_number, coalesce(message_index, 0) AS message_index,
            source, coalesce(kind, 'inject') AS kind, audience, agent_id, text, before, after, edited_index, turns,
            nullif(placement, '') AS placement, trigger, value
        FROM InterventionEvent
        """,
    "errors": """
        SELECT nullif(_id, '') AS conversation_id, $experiment AS experiment_id, _seq AS seq, _at AS happened_at, x.*
        EXCLUDE (_id, _n, _seq, _at)
        FROM (
            SELECT _id, _n, _seq, _at, 'APIErrorEvent' AS event_type, agent_id, turn_number, message_index, error,
                provider, status, retryable, attempt, wait_s, message, NULL AS partial, NULL AS place FROM APIErrorEvent
            UNION ALL BY NAME
            SELECT _id, _n, _seq, _at, 'RateLimitEvent' AS event_type, agent_id, turn_number, message_index,
                coalesce(reason, 'refused') AS error, provider, status, true AS retryable, attempt, wait_s, message
            FROM RateLimitEvent
            UNION ALL BY NAME
            SELECT _id, _n, _seq, _at, 'MessageAbandonedEvent' AS event_type, agent_id, turn_number, message_index,
                attempt, why AS message, partial FROM MessageAbandonedEvent
            UNION ALL BY NAME
            SELECT _id, _n, _seq, _at, 'QuestionAbandonedEvent' AS event_type, agent_id, turn_number,
                attempt, why AS message, partial FROM QuestionAbandonedEvent
            UNION ALL BY NAME
            SELECT _id, _n, _seq, _at, 'ErrorEvent' AS event_type, error, message, "where" AS place FROM ErrorEvent
            UNION ALL BY NAME
            SELECT _id, _n, _seq, _at, 'WarningEvent' AS event_type, agent_id, what AS error, reason AS message
            FROM WarningEvent
        ) x
        """,
    "events": f"""
        SELECT nullif(id, '') AS conversation_id, $experiment AS experiment_id, n AS line, seq, event_type,
            timestamp AS happened_at,
            event_type IN ({", ".join(f"'{kind.__name__}'" for kind in EVENT_TYPES)}) AS known,
            CASE WHEN event_type NOT IN ('MessageCompleteEvent', 'ThinkingCompleteEvent', 'TurnCompleteEvent')
                 THEN line END AS data
        FROM lines WHERE event_type IS NOT NULL AND (id, n) NOT IN (SELECT (id, n) FROM damage)
        """,
    "damaged_lines": f"""
        SELECT nullif(id, '') AS conversation_id, $experiment AS experiment_id, n AS line, why, beginning
        FROM ({_DAMAGE})
        """,
}
"""What goes into each table, from the temporary tables of one import."""
