"""Tables and views of the database, and how an older database becomes a newer one.

A migration is a function that is applied once and never changed afterwards; new ones are appended. Views hold nothing,
so they are made anew each time. What a table or column means stands beside it, goes into the database as its comment,
and from there into the reference page.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import duckdb

from pidgin_cli.core.errors import StoreError

__all__ = [
    "CONVERSATION_TABLES",
    "MIGRATIONS",
    "Described",
    "MetricColumn",
    "described",
    "literal",
    "make_views",
    "migrate",
    "quoted",
    "set_up",
    "version_of",
]


class MetricColumn(NamedTuple):
    """The column that one metric has in `message_metrics` or `turn_metrics`."""

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


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


# Migrations


_COLUMN = re.compile(r"\s*(?P<name>\w+) (?P<type>[A-Z][A-Z\[\](), ]*?) +-- (?P<meaning>.+)")


def _table(con: duckdb.DuckDBPyConnection, name: str, meaning: str, columns: str) -> None:
    """Make a table from lines of `name TYPE -- meaning`."""
    found = [match for line in columns.strip().splitlines() if (match := _COLUMN.fullmatch(line))]
    assert len(found) == len(columns.strip().splitlines()), f"a column of {name} is not described"
    con.execute(f"CREATE TABLE {name} ({', '.join(f'{c[1]} {c[2]}' for c in found)})")
    con.execute(f"COMMENT ON TABLE {name} IS {literal(meaning)}")
    for column in found:
        con.execute(f"COMMENT ON COLUMN {name}.{column['name']} IS {literal(column['meaning'])}")


def m001_first_tables(con: duckdb.DuckDBPyConnection) -> None:
    _table(
        con,
        "experiments",
        "One row per experiment.",
        """
        experiment_id VARCHAR -- Eight letters and digits.
        name VARCHAR -- As given; NULL without one.
        status VARCHAR -- Where it stood when it was imported; `interrupted`: no end and no living runner.
        created_at TIMESTAMP -- When it first ran, or was made.
        completed_at TIMESTAMP -- When its last run ended; NULL while it runs.
        conversations_planned BIGINT -- Conversations the spec makes; NULL when it has never run.
        spec_hash VARCHAR -- Equal for experiments that ask the same.
        spec VARCHAR -- `spec.yaml`, word for word.
        versions JSON -- What the results may depend on: Pidgin, Python, SDKs, prices.
        host VARCHAR -- The machine of the last run.
        folder VARCHAR -- Name of its folder in `experiments/`.
        log_sha256 VARCHAR -- Of `experiment_events.jsonl` as it was imported; NULL without one.
        imported_at TIMESTAMP -- When rows of it were last replaced.
        """,
    )
    _table(
        con,
        "arms",
        "One row per arm (condition) of an experiment.",
        """
        experiment_id VARCHAR -- The experiment.
        arm VARCHAR -- Its label; empty where nothing is swept.
        variables JSON -- The swept values by name; see the view `arm_variables`.
        conversations BIGINT -- Conversations of this arm that have begun.
        """,
    )
    _table(
        con,
        "conversations",
        "One row per conversation that has begun.",
        """
        conversation_id VARCHAR -- `<experiment_id>-<number>`.
        experiment_id VARCHAR -- The experiment.
        arm VARCHAR -- Label of its arm; NULL where the conversation has not begun.
        variables JSON -- The swept values by name; see the view `conversation_variables`.
        seating VARCHAR -- Who sits where, as models by seat, where a spec puts pairs of models together.
        first_speaker VARCHAR -- Id of the agent that opens.
        speaking_order VARCHAR -- `alternate` or `random`.
        repetition BIGINT -- Which draw of its arm, counted from 1.
        seed BIGINT -- All draws derive from it; NULL where none is known.
        opening VARCHAR -- The prompt that starts it.
        prompt_tag VARCHAR -- What stands in brackets before text from outside.
        max_turns BIGINT -- Rounds planned.
        status VARCHAR -- As in the manifest; `interrupted`: no end and no living runner.
        end_reason VARCHAR -- Why it ended; NULL while it has not.
        error VARCHAR -- What ended it, where an error did.
        turns BIGINT -- Rounds of its own in which every scheduled agent has spoken.
        messages BIGINT -- Messages of its own.
        prompt_tokens BIGINT -- Sum over all replies; NULL as soon as one did not report them.
        completion_tokens BIGINT -- Likewise.
        cost_usd DOUBLE -- Likewise; NULL as soon as one price is not known.
        started_at TIMESTAMP -- Time of the first event; NULL where a record from elsewhere tells no times.
        ended_at TIMESTAMP -- Time of the last end; NULL without one.
        invalid BOOLEAN -- To be left out of statistics.
        invalid_reasons VARCHAR[] -- Why: `speaker_never_called`, `wrong_model_served`, `harness_fault`.
        notable BOOLEAN -- Something below is not 0; kept in statistics.
        empty_messages BIGINT -- Messages without text. These counts are NULL until it has ended.
        refused_messages BIGINT -- Refusals.
        truncated_messages BIGINT -- Replies cut at their length limit.
        filtered_messages BIGINT -- Replies cut by the provider's filter.
        text_replaced_messages BIGINT -- Replies with lone surrogates, which stand as U+FFFD.
        other_model_messages BIGINT -- Replies served by another model than the agent's first.
        other_fingerprint_messages BIGINT -- Replies from another system fingerprint than the agent's first.
        origin_conversation_id VARCHAR -- The conversation that it branches off; NULL: none.
        origin_turn BIGINT -- The last turn that both share.
        origin_message_index BIGINT -- The first message of its own.
        origin_digest VARCHAR -- Of what it shares.
        metrics JSON -- Values of the whole conversation; see the view `conversation_metrics`.
        source JSON -- Where it came from, if not from Pidgin itself: format, file, sha256, and what is known beside.
        pidgin_version VARCHAR -- Of the program that began it.
        schema_version BIGINT -- Of its event lines.
        spec_hash VARCHAR -- Of its resolved spec.
        spec JSON -- Its resolved spec.
        log VARCHAR -- Name of its log.
        log_sha256 VARCHAR -- Of the log as it was imported.
        log_bytes BIGINT -- Its length.
        log_lines BIGINT -- Its lines, damaged ones included.
        damaged_lines BIGINT -- Lines that could not be read, or are missing; see `damaged_lines`.
        imported_with VARCHAR -- Digest of schema and metric columns; with another one the log is read again.
        """,
    )
    _table(
        con,
        "agents",
        "One row per agent of a conversation.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        agent_id VARCHAR -- `a`, `b`, `c`, …
        seat BIGINT -- Its place at the table, counted from 0.
        opens BOOLEAN -- It speaks first, where the order is fixed.
        model VARCHAR -- `provider:model`.
        provider VARCHAR -- The part before the colon.
        name VARCHAR -- As displays show it: the chosen name, else the given one.
        chose_name BOOLEAN -- It chose that name itself.
        system_prompt VARCHAR -- NULL: none.
        system_prompt_placement VARCHAR -- How its provider receives it.
        awareness VARCHAR -- The preset or file that the system prompt came from.
        temperature DOUBLE -- NULL: not sent. This holds for all settings.
        top_p DOUBLE -- Nucleus sampling.
        max_tokens BIGINT -- Upper end of a reply.
        stop VARCHAR[] -- Stop sequences.
        seed BIGINT -- Sent to the provider.
        think BOOLEAN -- Asked to think.
        think_budget BIGINT -- Thinking tokens at most.
        effort VARCHAR -- Reasoning effort.
        extra JSON -- Sent as it is, beside everything else.
        thinking_visible VARCHAR -- Who is sent what it thought: `own`, `partner` or `nobody`.
        """,
    )
    _table(
        con,
        "turns",
        "One row per turn that has begun.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        turn_number BIGINT -- Counted from 1.
        speakers VARCHAR[] -- Agents scheduled, in order.
        complete BOOLEAN -- All of them have spoken.
        convergence DOUBLE -- The live score; NULL where it was not computed.
        detectors JSON -- What the detectors said.
        started_at TIMESTAMP -- When it began.
        completed_at TIMESTAMP -- When it was complete.
        """,
    )
    _table(
        con,
        "messages",
        "One row per message. A branch has its own only; the view `conversation_messages` has all.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        message_index BIGINT -- Counted from 0 over the whole conversation, all agents.
        turn_number BIGINT -- Counted from 1.
        agent_id VARCHAR -- Who speaks.
        message_id VARCHAR -- `<conversation_id>:m<index>`.
        content VARCHAR -- The words, exactly as in the log.
        finish_reason VARCHAR -- Why the model stopped writing.
        empty BOOLEAN -- Nothing but white space.
        refused BOOLEAN -- The model refused.
        truncated BOOLEAN -- Cut at its length limit.
        filtered BOOLEAN -- Cut by the provider's filter.
        text_replaced BOOLEAN -- Lone surrogates stand as U+FFFD.
        prompt_tokens BIGINT -- As reported; NULL: not reported.
        completion_tokens BIGINT -- Thinking included.
        thinking_tokens BIGINT -- Of these, thinking.
        cached_tokens BIGINT -- Input tokens read from the provider's cache.
        cache_write_tokens BIGINT -- Input tokens written to it.
        usage_estimated BOOLEAN -- The tokens are an estimate.
        cost_usd DOUBLE -- NULL: the price is not known.
        queued_ms DOUBLE -- Waiting under a limit; no part of the model's latency.
        ttft_ms DOUBLE -- Request to first piece.
        duration_ms DOUBLE -- Request to last byte.
        tokens_per_s DOUBLE -- Completion tokens by the time after the first piece.
        model_requested VARCHAR -- The model asked.
        model_served VARCHAR -- The model that answered, as the provider names it.
        fingerprint VARCHAR -- Of the provider's system.
        request_id VARCHAR -- The provider's.
        cached BOOLEAN -- Came from the response cache.
        attempt BIGINT -- Counted from 1.
        view_digest VARCHAR -- Digest of what the agent was sent.
        requested_at TIMESTAMP -- When it was last asked for.
        completed_at TIMESTAMP -- When it was complete.
        seq BIGINT -- Of its event.
        """,
    )
    _table(
        con,
        "thinking",
        "One row per block of what a model thought.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        message_index BIGINT -- The message it came before.
        block BIGINT -- Counted from 0.
        turn_number BIGINT -- Counted from 1.
        agent_id VARCHAR -- Who thought.
        content VARCHAR -- The text; empty where the vendor keeps it.
        tokens BIGINT -- Of all blocks of the reply; stands on the last one.
        redacted BOOLEAN -- The vendor keeps the text.
        seq BIGINT -- Of its event.
        """,
    )
    _table(
        con,
        "tool_calls",
        "One row per tool call, with what came back.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        message_index BIGINT -- The message that it belongs to.
        call_id VARCHAR -- The model's.
        turn_number BIGINT -- Counted from 1.
        agent_id VARCHAR -- Who called.
        name VARCHAR -- The tool.
        arguments VARCHAR -- JSON, as the model wrote it.
        result VARCHAR -- NULL: none came.
        is_error BOOLEAN -- The tool failed.
        duration_ms DOUBLE -- How long it took.
        seq BIGINT -- Of the call's event.
        """,
    )
    _table(
        con,
        "token_usage",
        "One row per reply that was paid for: messages, names, summaries and replies that broke off.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        seq BIGINT -- Of its event.
        happened_at TIMESTAMP -- When.
        agent_id VARCHAR -- Whose reply.
        purpose VARCHAR -- `message`, `name`, `summary` or `abandoned`.
        provider VARCHAR -- Who was asked.
        model VARCHAR -- The provider's name of the model.
        prompt_tokens BIGINT -- As reported; NULL: not reported.
        completion_tokens BIGINT -- Thinking included.
        thinking_tokens BIGINT -- Of these, thinking.
        cached_tokens BIGINT -- Input tokens read from a cache.
        estimated BOOLEAN -- The tokens are an estimate.
        cost_usd DOUBLE -- NULL: the price is not known.
        total_tokens BIGINT -- Of the conversation so far.
        total_cost_usd DOUBLE -- Of the conversation so far.
        """,
    )
    _table(
        con,
        "interventions",
        "One row per thing done to a conversation from outside.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        seq BIGINT -- Of its event.
        happened_at TIMESTAMP -- When.
        turn_number BIGINT -- 0: with the opening.
        message_index BIGINT -- The message that came next.
        source VARCHAR -- `person`, `script`, `awareness:<name>`, `naming` or `delegate`.
        kind VARCHAR -- `inject`, `edit`, `mute`, `swap_model` or `swap_system_prompt`.
        audience VARCHAR[] -- Agents that see it.
        agent_id VARCHAR -- Whom it concerns; NULL for `inject`.
        text VARCHAR -- What was put in.
        before VARCHAR -- What `after` takes the place of.
        after VARCHAR -- What stands there from then on.
        edited_index BIGINT -- The message that was edited; its row stays as it was said.
        turns BIGINT -- How many turns the agent is silent.
        placement VARCHAR -- Where the text stands.
        """,
    )
    _table(
        con,
        "errors",
        "One row per thing that went wrong or had to wait.",
        """
        experiment_id VARCHAR -- The experiment.
        conversation_id VARCHAR -- NULL: of the experiment as a whole.
        seq BIGINT -- Of its event.
        happened_at TIMESTAMP -- When.
        event_type VARCHAR -- That of API errors, rate limits, abandoned messages or answers, errors or warnings.
        agent_id VARCHAR -- Whose request.
        turn_number BIGINT -- Counted from 1.
        message_index BIGINT -- The message that was asked for.
        error VARCHAR -- Class of the error; `refused` or `limit` of a wait; the setting a warning is about.
        provider VARCHAR -- Who was asked.
        status BIGINT -- HTTP status.
        retryable BOOLEAN -- Worth another attempt.
        attempt BIGINT -- Counted from 1.
        wait_s DOUBLE -- Seconds until the next attempt.
        message VARCHAR -- What was said about it.
        partial VARCHAR -- What had arrived of an abandoned reply.
        place VARCHAR -- Where in the program.
        """,
    )
    _table(
        con,
        "events",
        "One row per line of every log, also of types that this version does not know.",
        """
        experiment_id VARCHAR -- The experiment.
        conversation_id VARCHAR -- NULL: the log of the experiment itself.
        line BIGINT -- Counted from 1.
        seq BIGINT -- Counted from 0.
        event_type VARCHAR -- As in the line.
        happened_at TIMESTAMP -- When.
        known BOOLEAN -- This version knows the type.
        data JSON -- The whole line; NULL for messages, thinking and complete turns, which have tables of their own.
        """,
    )
    _table(
        con,
        "damaged_lines",
        "One row per line that could not be read, and per gap where lines are missing.",
        """
        experiment_id VARCHAR -- The experiment.
        conversation_id VARCHAR -- NULL: the log of the experiment itself.
        line BIGINT -- Counted from 1; of a gap, the line that follows it.
        why VARCHAR -- `torn`: last line, cut short. `broken`: no event. `repeated`: said before. `missing`: a gap.
        beginning VARCHAR -- Its first 80 characters; of a gap, how many events are missing.
        """,
    )
    _table(
        con,
        "message_metrics",
        "One row per message whose metrics are in the record; a value that could not be computed is NULL.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        message_index BIGINT -- Counted from 0.
        metrics_version VARCHAR -- Of the definitions.
        """,
    )
    _table(
        con,
        "turn_metrics",
        "One row per complete turn whose metrics are in the record.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        turn_number BIGINT -- Counted from 1.
        metrics_version VARCHAR -- Of the definitions.
        metrics JSON -- All values of the turn by name, such as `convergence_ab` for a pair of agents.
        """,
    )
    _table(
        con,
        "word_uses",
        "How often each agent used each word or emoji in a conversation.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        agent_id VARCHAR -- Who used it.
        kind VARCHAR -- `word` or `emoji`.
        word VARCHAR -- As the tokeniser gives it.
        uses BIGINT -- How often.
        messages BIGINT -- In how many messages.
        """,
    )


def m002_computed_metrics(con: duckdb.DuckDBPyConnection) -> None:
    for name, kind, meaning in (
        ("computed", "BOOLEAN", "Its live metrics were computed after the run; NULL: they are those of the record."),
        ("embedding_model", "VARCHAR", "What the vectors of its semantic metrics come from; NULL: it has none."),
    ):
        con.execute(f"ALTER TABLE message_metrics ADD COLUMN {name} {kind}")
        con.execute(f"COMMENT ON COLUMN message_metrics.{name} IS {literal(meaning)}")
    _table(
        con,
        "computed_metrics",
        "One row per conversation and part of the metrics that are computed after the run, and why what is NULL is.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        part VARCHAR -- Computed from: `live` what was said, `texts` all of it, `others` its arm, `semantics` vectors.
        metrics JSON -- Values of the whole conversation; see the view `conversation_metrics`.
        missing VARCHAR -- Why values of this part are NULL; NULL: those that are cannot be computed for the text.
        model VARCHAR -- The embedding model.
        metrics_version VARCHAR -- Of the definitions.
        computed_with VARCHAR -- Digest of what went in; with another one they are computed again.
        computed_at TIMESTAMP -- When.
        """,
    )


def m003_versions_of_metrics(con: duckdb.DuckDBPyConnection) -> None:
    for name, meaning in (
        ("tokenizer_version", "Of the rules that cut texts into words; NULL: the record does not say."),
        ("lexicon_version", "Of the word lists; NULL: the record does not say."),
    ):
        con.execute(f"ALTER TABLE message_metrics ADD COLUMN {name} VARCHAR")
        con.execute(f"COMMENT ON COLUMN message_metrics.{name} IS {literal(meaning)}")


def m004_triggers_of_interventions(con: duckdb.DuckDBPyConnection) -> None:
    for name, kind, meaning in (
        ("trigger", "VARCHAR", "What the turn before had met for it; NULL: it was tied to a turn, or done by hand."),
        ("value", "DOUBLE", "Of the metric or detector that did; NULL for a state."),
    ):
        con.execute(f"ALTER TABLE interventions ADD COLUMN {name} {kind}")
        con.execute(f"COMMENT ON COLUMN interventions.{name} IS {literal(meaning)}")


def m005_attractors_found_after_the_run(con: duckdb.DuckDBPyConnection) -> None:
    _table(
        con,
        "computed_attractors",
        "One row per finding of the attractor detectors that is not in the record; the view `attractors` has all.",
        """
        conversation_id VARCHAR -- The conversation.
        experiment_id VARCHAR -- The experiment.
        turn_number BIGINT -- Counted from 1.
        message_index BIGINT -- The message at which the detector became active.
        detector VARCHAR -- Its name.
        value DOUBLE -- What it measured.
        threshold DOUBLE -- What that had to reach, or to fall below.
        onset BIGINT -- The first message that belongs to what was found.
        period BIGINT -- How many messages back the same was said; of inner loops, tokens of the phrase.
        """,
    )


def m006_what_is_not_known(con: duckdb.DuckDBPyConnection) -> None:
    for table, column, meaning in (
        ("conversations", "refused_messages", "Refusals; NULL as soon as it is not known of one why it ended."),
        ("conversations", "truncated_messages", "Replies cut at their length limit; NULL likewise."),
        ("conversations", "filtered_messages", "Replies cut by the provider's filter; NULL likewise."),
        (
            "conversations",
            "other_model_messages",
            "Replies served by another model than the agent's first; NULL for records from elsewhere.",
        ),
        (
            "conversations",
            "other_fingerprint_messages",
            "Replies from another system fingerprint than the agent's first; NULL likewise.",
        ),
        ("messages", "finish_reason", "Why the model stopped writing; `unknown` where nobody says."),
        ("messages", "refused", "The model refused; NULL where it is not known why it stopped."),
        ("messages", "truncated", "Cut at its length limit; NULL likewise."),
        ("messages", "filtered", "Cut by the provider's filter; NULL likewise."),
        ("messages", "attempt", "Counted from 1; NULL for records from elsewhere, which do not say."),
    ):
        con.execute(f"COMMENT ON COLUMN {table}.{column} IS {literal(meaning)}")
    elsewhere = "conversation_id IN (SELECT conversation_id FROM conversations WHERE source IS NOT NULL)"
    untold = "SELECT conversation_id FROM messages WHERE finish_reason = 'unknown'"
    con.execute(
        "UPDATE conversations SET refused_messages = NULL, truncated_messages = NULL, filtered_messages = NULL "
        f"WHERE conversation_id IN ({untold})"
    )
    con.execute(
        "UPDATE conversations SET other_model_messages = NULL, other_fingerprint_messages = NULL "
        "WHERE source IS NOT NULL"
    )
    con.execute("UPDATE messages SET refused = NULL, truncated = NULL, filtered = NULL WHERE finish_reason = 'unknown'")
    con.execute(f"UPDATE messages SET attempt = NULL WHERE {elsewhere}")
    metrics = con.execute(
        "SELECT column_name FROM duckdb_columns() "
        "WHERE table_name = 'message_metrics' AND column_name IN ('truncated', 'retries')"
    ).fetchall()
    for (name,) in metrics:
        con.execute(f"UPDATE message_metrics SET {name} = NULL WHERE {elsewhere}")


MIGRATIONS: tuple[Callable[[duckdb.DuckDBPyConnection], None], ...] = (
    m001_first_tables,
    m002_computed_metrics,
    m003_versions_of_metrics,
    m004_triggers_of_interventions,
    m005_attractors_found_after_the_run,
    m006_what_is_not_known,
)
"""In the order in which they are applied; the number of those applied is the version of a database."""

CONVERSATION_TABLES = (
    "conversations",
    "agents",
    "turns",
    "messages",
    "thinking",
    "tool_calls",
    "token_usage",
    "interventions",
    "errors",
    "events",
    "damaged_lines",
    "message_metrics",
    "turn_metrics",
    "computed_metrics",
    "computed_attractors",
    "word_uses",
)
"""Tables whose rows come from the log of one conversation, and are replaced together when it is read again."""


def version_of(con: duckdb.DuckDBPyConnection) -> int:
    """How many migrations a database has seen; 0: it is none of ours, or empty."""
    row = con.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'migrations' AND NOT internal"
    ).fetchone()
    if row is None or not row[0]:
        return 0
    applied = con.execute("SELECT count(*) FROM migrations").fetchone()
    return 0 if applied is None else int(applied[0])


def migrate(
    con: duckdb.DuckDBPyConnection,
    migrations: Sequence[Callable[[duckdb.DuckDBPyConnection], None]] = MIGRATIONS,
) -> None:
    """Apply the migrations that a database has not seen, each in a transaction.

    Raises:
        StoreError: the database was made by a newer version.
    """
    con.execute("CREATE TABLE IF NOT EXISTS migrations (number BIGINT, name VARCHAR, applied_at TIMESTAMP)")
    con.execute("COMMENT ON TABLE migrations IS 'The steps that made the schema what it is.'")
    done = version_of(con)
    if done > len(migrations):
        raise StoreError("the database was made by a newer Pidgin; install that, or import into another output root")
    for number, step in enumerate(migrations[done:], done + 1):
        con.begin()
        try:
            step(con)
            con.execute("INSERT INTO migrations VALUES (?, ?, now() AT TIME ZONE 'UTC')", [number, step.__name__])
            con.commit()
        except BaseException:
            con.rollback()
            raise


def set_up(
    con: duckdb.DuckDBPyConnection,
    metrics: Sequence[MetricColumn] = (),
    migrations: Sequence[Callable[[duckdb.DuckDBPyConnection], None]] = MIGRATIONS,
) -> None:
    """Bring a database to the newest schema, with a column for each metric, and make the views."""
    migrate(con, migrations)
    rows = con.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE table_name IN ('message_metrics', 'turn_metrics') AND NOT internal"
    ).fetchall()
    there = {(table, name): (kind, comment) for table, name, kind, comment in rows}
    changes = []
    for metric in metrics:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", metric.name):
            raise StoreError(f"{metric.name!r} cannot be the name of a metric's column")
        kind, comment = there.get((metric.table, metric.name), (None, None))
        column = quoted(metric.name)
        if kind is None:
            changes.append(f"ALTER TABLE {metric.table} ADD COLUMN {column} {metric.type}")
        elif kind != metric.type:
            changes.append(
                f"ALTER TABLE {metric.table} ALTER COLUMN {column} "
                f"TYPE {metric.type} USING try_cast({column} AS {metric.type})"
            )
        if comment != metric.meaning:
            changes.append(f"COMMENT ON COLUMN {metric.table}.{column} IS {literal(metric.meaning)}")
    if changes:
        con.execute("; ".join(["BEGIN", *changes, "COMMIT"]))  # one by one, the first import would take twice as long
    make_views(con)


def make_views(con: duckdb.DuckDBPyConnection) -> None:
    """Make all views anew, after what they depend on: the columns of metrics, and the variables that are swept."""
    for name, meaning, select in _views(con):
        con.execute(f"CREATE OR REPLACE VIEW {name} AS {select}")
        con.execute(f"COMMENT ON VIEW {name} IS {literal(meaning)}")


# Views


_T_95 = (
    "[12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139, "
    "2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963, "
    "2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272]"
)
"""97.5 % points of Student's t for 1 to 30 degrees of freedom."""

_NOT_MEASURES = ("conversation_id", "experiment_id", "message_index", "turn_number", "metrics_version", "computed")


def _spread(value: str) -> str:
    """n, mean, sd, median and the 95 % interval of the mean over the rows of a group."""
    n = f"count({value})"
    df = f"({n} - 1)"
    # Beyond 30 degrees of freedom four terms of the expansion in 1/df are right to 1e-7.
    more = f"(2.37227123 + (2.82249862 + (2.55584968 + 1.58953405 / {df}) / {df}) / {df}) / {df}"
    t = f"CASE WHEN {df} <= 30 THEN {_T_95}[{df}] ELSE 1.95996398 + {more} END"
    half = f"({t}) * stddev_samp({value}) / sqrt({n})"
    return (
        f"{n} AS n, avg({value}) AS mean, stddev_samp({value}) AS sd, median({value}) AS median, "
        f"CASE WHEN {n} > 1 THEN avg({value}) - {half} END AS ci_low, "
        f"CASE WHEN {n} > 1 THEN avg({value}) + {half} END AS ci_high"
    )


def _numeric(con: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    rows = con.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND NOT internal "
        "AND data_type IN ('DOUBLE', 'BIGINT', 'BOOLEAN') ORDER BY column_index",
        [table],
    ).fetchall()
    return [name for (name,) in rows if name not in _NOT_MEASURES]


_VALID = "NOT coalesce(c.invalid, false) AND c.status = 'completed'"

_OWN_MEASURES = {
    "turns": "c.turns",
    "messages": "c.messages",
    "total_tokens": "c.prompt_tokens + c.completion_tokens",
    "total_cost_usd": "c.cost_usd",
    "message_chars": "(SELECT avg(length(m.content)) FROM messages m WHERE m.conversation_id = c.conversation_id)",
    "median_ttft_ms": "(SELECT median(m.ttft_ms) FROM messages m WHERE m.conversation_id = c.conversation_id)",
    "final_convergence": (
        "(SELECT max_by(t.convergence, t.turn_number) FROM turns t "
        "WHERE t.conversation_id = c.conversation_id AND t.complete)"
    ),
}
"""Of the conversation itself, under names that no metric has."""


def _measures(con: duckdb.DuckDBPyConnection) -> str:
    """One value per conversation and measure: the conversation is the unit of every statistic."""
    who = "c.experiment_id, c.arm, c.conversation_id"
    own = ", ".join(f"({value})::DOUBLE AS {quoted(name)}" for name, value in _OWN_MEASURES.items())
    parts = [
        f"FROM (SELECT {who}, {own} FROM conversations c) "
        f"UNPIVOT INCLUDE NULLS (value FOR measure IN ({', '.join(map(quoted, _OWN_MEASURES))}))"
    ]
    for table, mark in (("message_metrics", ""), ("turn_metrics", "turn:")):
        # A package's metric may be called as one of our own measures.
        taken = {} if mark else dict.fromkeys(_OWN_MEASURES, "message:")
        names = {name: taken.get(name, mark) + name for name in _numeric(con, table)}
        if names:
            means = ", ".join(f"avg(m.{quoted(name)}::DOUBLE) AS {quoted(shown)}" for name, shown in names.items())
            listed = ", ".join(map(quoted, names.values()))
            parts.append(
                f"FROM (SELECT {who}, {means} FROM conversations c JOIN {table} m USING (conversation_id) "
                "GROUP BY ALL) "
                f"UNPIVOT INCLUDE NULLS (value FOR measure IN ({listed}))"
            )
    return " UNION ALL ".join(f"(SELECT experiment_id, arm, conversation_id, measure, value {part})" for part in parts)


_CONDITIONS = ("conversation_id", "experiment_id", "arm", "repetition", "seed", "seating", "first_speaker", "valid")


def _conditions(con: duckdb.DuckDBPyConnection) -> str:
    """A column for each variable that any experiment in the database sweeps."""
    rows = con.execute(
        "SELECT v.key, bool_and(v.type IN ('DOUBLE', 'BIGINT', 'UBIGINT')) "
        "FROM conversations c, json_each(c.variables) v WHERE v.type <> 'NULL' GROUP BY v.key ORDER BY v.key"
    ).fetchall()
    taken = set(_CONDITIONS)
    columns = []
    for key, numeric in rows:
        name, number = key, 1
        while name.lower() in taken:  # the names of columns are the same in capitals
            number += 1
            name = f"{key}_{number}"
        taken.add(name.lower())
        value = f"(c.variables->>{literal(_pointer(key))})"
        columns.append(f"{f'try_cast({value} AS DOUBLE)' if numeric else value} AS {quoted(name)}")
    return (
        f"SELECT {', '.join([*(f'c.{name}' for name in _CONDITIONS[:-1]), f'{_VALID} AS valid', *columns])} "
        "FROM conversations c"
    )


def _pointer(key: str) -> str:
    """A key of an object, whatever is in it, as a JSON pointer."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


_EVENTS = {
    "attractors": (
        "What the attractor detectors found, one row per finding. `onset`: the first message that belongs to it. "
        "`computed`: it was found after the run, in what the record has no live metrics of; then there is no `action`.",
        "AttractorEvent",
        {
            "turn_number": "BIGINT",
            "message_index": "BIGINT",
            "detector": "VARCHAR",
            "value": "DOUBLE",
            "threshold": "DOUBLE",
            "onset": "BIGINT",
            "period": "BIGINT",
            "action": "VARCHAR",
        },
    ),
    "convergence_warnings": (
        "Where a convergence score crossed its threshold, one row each.",
        "ConvergenceWarningEvent",
        {
            "turn_number": "BIGINT",
            "score": "VARCHAR",
            "value": "DOUBLE",
            "threshold": "DOUBLE",
            "onset": "BIGINT",
            "action": "VARCHAR",
        },
    ),
}
"""Views of events that people ask for: meaning, type and fields."""


def _views(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str]]:
    return [
        (
            "conversation_messages",
            "All messages of a conversation in order; of a branch also those that it shares, `own` false, from the "
            "conversations it branches off, as far as these are imported.",
            """
            WITH RECURSIVE lineage(conversation_id, holder, before, path) AS (
                SELECT conversation_id, conversation_id, NULL::BIGINT, [conversation_id] FROM conversations
                UNION ALL
                SELECT l.conversation_id, c.origin_conversation_id,
                       least(l.before, c.origin_message_index), list_append(l.path, c.origin_conversation_id)
                FROM lineage l JOIN conversations c ON c.conversation_id = l.holder
                WHERE c.origin_conversation_id IS NOT NULL AND NOT list_contains(l.path, c.origin_conversation_id)
            )
            SELECT l.conversation_id, m.message_index, m.turn_number, m.agent_id, m.content,
                   l.holder = l.conversation_id AS own, l.holder AS said_in, m.finish_reason, m.completed_at
            FROM lineage l JOIN messages m ON m.conversation_id = l.holder
            WHERE l.before IS NULL OR m.message_index < l.before
            """,
        ),
        (
            "arm_variables",
            "The swept values of each arm, one row per name; `number` where the value is one.",
            """
            SELECT a.experiment_id, a.arm, v.key AS name, v.value->>'$' AS value,
                   try_cast(v.value->>'$' AS DOUBLE) AS number
            FROM arms a, json_each(a.variables) v
            """,
        ),
        (
            "conversation_variables",
            "The swept values of each conversation, one row per name; `number` where the value is one.",
            """
            SELECT c.experiment_id, c.conversation_id, c.arm, v.key AS name, v.value->>'$' AS value,
                   try_cast(v.value->>'$' AS DOUBLE) AS number
            FROM conversations c, json_each(c.variables) v
            """,
        ),
        (
            "conversation_metrics",
            "The values of each conversation as a whole, one row per name, with agents as suffixes; `number` where the "
            "value is one.",
            """
            WITH told AS (
                SELECT conversation_id, metrics FROM conversations
                UNION ALL SELECT conversation_id, metrics FROM computed_metrics
            )
            SELECT c.experiment_id, c.conversation_id, c.arm, m.key AS name, m.value->>'$' AS value,
                   try_cast(m.value->>'$' AS DOUBLE) AS number
            FROM conversations c JOIN told USING (conversation_id), json_each(told.metrics) m
            """,
        ),
        (
            "dashboard",
            "One row per experiment: how far it is, what it took, what has to be looked at.",
            """
            SELECT e.experiment_id, e.name, e.status, e.created_at, e.completed_at, e.conversations_planned,
                   count(c.conversation_id) AS conversations,
                   count(DISTINCT c.arm) AS arms,
                   count(*) FILTER (c.status = 'completed') AS completed,
                   count(*) FILTER (c.status = 'failed') AS failed,
                   count(*) FILTER (c.status IN ('running', 'paused')) AS running,
                   count(*) FILTER (c.invalid) AS invalid,
                   count(*) FILTER (c.notable) AS notable,
                   count(*) FILTER (c.damaged_lines > 0) AS damaged,
                   coalesce(sum(c.messages), 0)::BIGINT AS messages,
                   coalesce(sum(c.turns), 0)::BIGINT AS turns,
                   CASE WHEN count(c.conversation_id) = count(c.prompt_tokens + c.completion_tokens)
                        THEN coalesce(sum(c.prompt_tokens + c.completion_tokens), 0)::BIGINT END AS tokens,
                   CASE WHEN count(c.conversation_id) = count(c.cost_usd)
                        THEN coalesce(sum(c.cost_usd), 0) END AS cost_usd
            FROM experiments e LEFT JOIN conversations c USING (experiment_id)
            GROUP BY ALL
            """,
        ),
        (
            "conversation_measures",
            "One value per conversation and measure: totals, and the mean of each metric over its messages "
            "(`turn:<name>`: over its turns). `valid`: completed and not invalid.",
            f"SELECT x.*, {_VALID} AS valid FROM ({_measures(con)}) x "
            "JOIN conversations c USING (experiment_id, conversation_id)",
        ),
        (
            "arm_statistics",
            "Per arm and measure, over its valid conversations: n, mean, sd, median and the 95 % interval of the mean "
            "(Student's t). `left_out` counts the conversations that are invalid or did not complete.",
            f"SELECT experiment_id, arm, measure, "
            f"{_spread('(CASE WHEN valid THEN value END)')}, count(*) FILTER (NOT valid) AS left_out "
            "FROM conversation_measures GROUP BY ALL",
        ),
        (
            "convergence_trends",
            "Per arm and turn, over its valid conversations: n, mean, sd, median and 95 % interval of convergence.",
            f"SELECT t.experiment_id, c.arm, t.turn_number, {_spread('t.convergence')} "
            f"FROM turns t JOIN conversations c USING (experiment_id, conversation_id) "
            f"WHERE t.complete AND {_VALID} GROUP BY ALL",
        ),
        (
            "conditions",
            "One row per conversation with what it was put under: a column for each variable that any experiment here "
            "sweeps, as a number where all its values are; NULL where it is not swept. `valid`: completed and not "
            "invalid.",
            _conditions(con),
        ),
        *((name, meaning, _of_events(name, kind, fields)) for name, (meaning, kind, fields) in _EVENTS.items()),
    ]


def _of_events(name: str, kind: str, fields: Mapping[str, str]) -> str:
    told = (
        "SELECT e.experiment_id, e.conversation_id, c.arm, e.seq, e.happened_at, "
        f"unnest(from_json(e.data, {literal(json.dumps(fields))})) "
        "FROM events e JOIN conversations c USING (experiment_id, conversation_id) "
        f"WHERE e.event_type = {literal(kind)}"
    )
    if name != "attractors":
        return told
    return (
        f"SELECT *, false AS computed FROM ({told}) UNION ALL BY NAME "
        "SELECT x.*, c.arm, true AS computed FROM computed_attractors x "
        "JOIN conversations c USING (experiment_id, conversation_id)"
    )


# What there is


class Described(NamedTuple):
    """A table or view, as the reference page shows it."""

    name: str
    meaning: str
    columns: tuple[tuple[str, str, str], ...]
    """Name, type, meaning."""
    view: bool


def described(con: duckdb.DuckDBPyConnection) -> list[Described]:
    """All tables and then all views of a database, the most general first."""
    found = []
    order = ("experiments", "arms", *CONVERSATION_TABLES, *(name for name, _, _ in _views(con)), "migrations")
    for kind in ("table", "view"):
        rows = con.execute(f"SELECT {kind}_name, comment FROM duckdb_{kind}s() WHERE NOT internal").fetchall()
        for name, meaning in rows:
            columns = con.execute(
                "SELECT column_name, data_type, coalesce(comment, '') FROM duckdb_columns() "
                "WHERE table_name = ? AND NOT internal ORDER BY column_index",
                [name],
            ).fetchall()
            found.append(Described(name, meaning or "", tuple(columns), kind == "view"))
    return sorted(found, key=lambda each: (each.view, order.index(each.name) if each.name in order else -1, each.name))
