"""Questions that the program itself asks of the database, by what they are about. Rows are plain dicts."""

from collections.abc import Sequence
from typing import Any, Protocol

from pidgin_cli.core.errors import NotFound

from .schema import quoted

__all__ = [
    "ConversationRepository",
    "EventRepository",
    "ExperimentRepository",
    "MessageRepository",
    "MetricsRepository",
    "Rows",
]

Rows = list[dict[str, Any]]


class _Ask(Protocol):
    def __call__(self, sql: str, *values: object) -> Rows: ...


class ExperimentRepository:
    """Experiments and their arms."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def all(self) -> Rows:
        """The view `dashboard`, newest first."""
        return self._ask("FROM dashboard ORDER BY created_at DESC, experiment_id")

    def get(self, experiment_id: str) -> dict[str, Any]:
        """One experiment. Raises NotFound."""
        found = self._ask("FROM experiments WHERE experiment_id = ?", experiment_id)
        if not found:
            raise NotFound(f"{experiment_id} is not in the database; run: pidgin import {experiment_id}")
        return found[0]

    def hosts(self, experiment_id: str) -> list[str]:
        """The machines that it ever ran on, as far as they are known."""
        rows = self._ask(
            "SELECT host FROM experiments WHERE experiment_id = $1 UNION SELECT data->>'$.host' FROM events "
            "WHERE experiment_id = $1 AND event_type = 'ExperimentStartEvent'",
            experiment_id,
        )
        return sorted(row["host"] for row in rows if row["host"])

    def arms(self, experiment_id: str) -> Rows:
        return self._ask("FROM arms WHERE experiment_id = ? ORDER BY arm", experiment_id)

    def statistics(self, experiment_id: str, measure: str | None = None) -> Rows:
        """n, mean, sd, median and interval by arm and measure, with the conversation as the unit."""
        return self._ask(
            "FROM arm_statistics WHERE experiment_id = ? AND (? IS NULL OR measure = ?) ORDER BY measure, arm",
            experiment_id,
            measure,
            measure,
        )


class ConversationRepository:
    """Conversations and who takes part in them."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def of(self, experiment_id: str, *, invalid: bool = True) -> Rows:
        """Those of an experiment by number; `invalid` false: without those to be left out of statistics."""
        return self._ask(
            "FROM conversations WHERE experiment_id = ? AND (? OR NOT coalesce(invalid, false)) "
            "ORDER BY length(conversation_id), conversation_id",
            experiment_id,
            invalid,
        )

    def agents(self, experiment_id: str) -> Rows:
        return self._ask(
            "FROM agents WHERE experiment_id = ? ORDER BY length(conversation_id), conversation_id, seat", experiment_id
        )

    def turns(self, experiment_id: str) -> Rows:
        return self._ask(
            "FROM turns WHERE experiment_id = ? ORDER BY length(conversation_id), conversation_id, turn_number",
            experiment_id,
        )

    def interventions(self, conversation_id: str) -> Rows:
        return self._ask("FROM interventions WHERE conversation_id = ? ORDER BY seq", conversation_id)

    def token_usage(self, conversation_id: str) -> Rows:
        return self._ask("FROM token_usage WHERE conversation_id = ? ORDER BY seq", conversation_id)

    def system_prompts(self, conversation_id: str) -> Rows:
        """Of the agents that have been told one by an event of its own."""
        return self._ask(
            "SELECT agent_id, system_prompt FROM agents WHERE conversation_id = ? "
            "AND system_prompt_placement IS NOT NULL ORDER BY seat",
            conversation_id,
        )

    def missing_origins(self) -> list[str]:
        """Conversations that others branch off, and that are not in the database."""
        rows = self._ask(
            "SELECT DISTINCT c.origin_conversation_id AS id FROM conversations c "
            "ANTI JOIN conversations o ON o.conversation_id = c.origin_conversation_id "
            "WHERE c.origin_conversation_id IS NOT NULL ORDER BY id"
        )
        return [row["id"] for row in rows]


class MessageRepository:
    """What was said and thought."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def of(self, conversation_id: str, *, shared: bool = False) -> Rows:
        """Those of a conversation in order; `shared`: with what a branch shares with others, in fewer columns."""
        view = "conversation_messages" if shared else "messages"
        return self._ask(f"FROM {view} WHERE conversation_id = ? ORDER BY message_index", conversation_id)

    def thinking(self, conversation_id: str) -> Rows:
        return self._ask("FROM thinking WHERE conversation_id = ? ORDER BY message_index, block", conversation_id)

    def words(self, experiment_id: str, kind: str = "word") -> Rows:
        """Uses of each word by conversation and agent."""
        return self._ask(
            "SELECT conversation_id, agent_id, word, uses, messages FROM word_uses "
            "WHERE experiment_id = ? AND kind = ? ORDER BY uses DESC, word, conversation_id, agent_id",
            experiment_id,
            kind,
        )


class MetricsRepository:
    """Metrics by message and by turn."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def names(self, level: str = "message") -> list[str]:
        """The metrics that have a column."""
        rows = self._ask(
            "SELECT column_name AS name FROM duckdb_columns() WHERE table_name = ? AND NOT internal "
            "AND column_name NOT IN ('conversation_id', 'experiment_id', 'message_index', 'turn_number', "
            "'metrics_version', 'tokenizer_version', 'lexicon_version', 'metrics', 'computed', 'embedding_model') "
            "ORDER BY column_index",
            f"{level}_metrics",
        )
        return [row["name"] for row in rows]

    def by_message(self, experiment_id: str, names: Sequence[str] | None = None) -> Rows:
        """One row per message with metrics, with who said it; `names`: only these metrics."""
        return self._ask(
            f"SELECT m.conversation_id, m.message_index, m.turn_number, m.agent_id, {self._columns('x', names)} "
            "FROM message_metrics x JOIN messages m USING (conversation_id, message_index) "
            "WHERE x.experiment_id = ? ORDER BY length(m.conversation_id), m.conversation_id, m.message_index",
            experiment_id,
        )

    def turn_means(self, experiment_id: str, names: Sequence[str]) -> Rows:
        """One row per conversation and turn: the mean of each of these metrics over its messages that have a value."""
        means = ", ".join(f"avg(x.{name}) AS {name}" for name in map(quoted, names))
        return self._ask(
            f"SELECT m.conversation_id, m.turn_number, {means} "
            "FROM message_metrics x JOIN messages m USING (conversation_id, message_index) "
            "WHERE x.experiment_id = ? GROUP BY m.conversation_id, m.turn_number "
            "ORDER BY length(m.conversation_id), m.conversation_id, m.turn_number",
            experiment_id,
        )

    def by_turn(self, experiment_id: str, names: Sequence[str] | None = None) -> Rows:
        """One row per turn with metrics; `metrics` has all of them as JSON."""
        return self._ask(
            f"SELECT x.conversation_id, x.turn_number, x.metrics, {self._columns('x', names, 'turn')} "
            "FROM turn_metrics x WHERE x.experiment_id = ? "
            "ORDER BY length(x.conversation_id), x.conversation_id, x.turn_number",
            experiment_id,
        )

    def computed(self, experiment_id: str) -> Rows:
        """What was computed after the run, by conversation and part, and why what is NULL is."""
        return self._ask(
            "FROM computed_metrics WHERE experiment_id = ? ORDER BY length(conversation_id), conversation_id, part",
            experiment_id,
        )

    def convergence(self, experiment_id: str) -> Rows:
        """The view `convergence_trends`."""
        return self._ask("FROM convergence_trends WHERE experiment_id = ? ORDER BY arm, turn_number", experiment_id)

    def _columns(self, table: str, names: Sequence[str] | None, level: str = "message") -> str:
        chosen = self.names(level) if names is None else names
        return ", ".join(f"{table}.{quoted(name)}" for name in ("metrics_version", *chosen))


class EventRepository:
    """Lines of the logs as such, and what was wrong with them."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def counts(self, conversation_id: str) -> dict[str, int]:
        """How many events of each type a conversation has."""
        rows = self._ask(
            "SELECT event_type, count(*) AS n FROM events WHERE conversation_id = ? GROUP BY ALL", conversation_id
        )
        return {row["event_type"]: row["n"] for row in rows}

    def of(self, conversation_id: str, event_type: str) -> Rows:
        return self._ask(
            "FROM events WHERE conversation_id = ? AND event_type = ? ORDER BY line", conversation_id, event_type
        )

    def errors(self, experiment_id: str) -> Rows:
        return self._ask("FROM errors WHERE experiment_id = ? ORDER BY happened_at, seq", experiment_id)

    def damaged(self, experiment_id: str) -> Rows:
        return self._ask("FROM damaged_lines WHERE experiment_id = ? ORDER BY conversation_id, line", experiment_id)
