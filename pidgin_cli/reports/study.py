"""One experiment as its figures need it: read from the database once, with every text cut into words once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pidgin_cli.database.repositories import Rows
from pidgin_cli.database.store import EventStore
from pidgin_cli.metrics.tokens import tokenize

from .counted import Counted, Standing, counted

__all__ = ["NO_ARM", "Study", "Talk"]

NO_ARM = "(all)"
"""How the one arm is called of an experiment in which nothing is swept."""


class Talk:
    """A conversation with its messages."""

    def __init__(
        self,
        row: Mapping[str, Any],
        messages: Rows,
        agents: Rows,
        turns: Rows,
        metrics: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self.row = row
        self.id: str = row["conversation_id"]
        self.arm: str = row["arm"] or NO_ARM
        self.messages = messages
        """Its own: those that a branch shares are counted where they were said."""
        self.agents = {agent["agent_id"]: agent for agent in agents}
        self.turns = turns
        self.metrics = metrics
        """By message index."""

    @property
    def standing(self) -> Standing:
        reasons = self.row["invalid_reasons"] or (["invalid"] if self.row["invalid"] else [])
        return Standing(str(self.row["status"]), reasons, bool(self.messages))

    @property
    def texts(self) -> list[str]:
        return [message["content"] for message in self.messages]

    @cached_property
    def tokens(self) -> list[list[str]]:
        """The words of each message."""
        return [tokenize(text) for text in self.texts]

    def metric(self, name: str) -> list[Any]:
        """The values of a metric at each message; None where there is none."""
        return [self.metrics.get(message["message_index"], {}).get(name) for message in self.messages]


class Study:
    """An experiment with all its conversations."""

    METRICS = ("state", "state_onset", "convergence_index_pooled")
    """Those that figures are drawn from, as far as the database has a column for them."""

    def __init__(self, experiment: Mapping[str, Any], talks: Sequence[Talk], columns: Sequence[str]) -> None:
        self.experiment = experiment
        self.all = list(talks)
        self.valid = [talk for talk in talks if not talk.row["invalid"]]
        """Without those that are to be left out of statistics."""
        self.columns = columns
        """Which of `METRICS` have a column."""

    @classmethod
    def load(cls, store: EventStore, experiment_id: str) -> "Study":
        """Read an experiment. Raises NotFound when it has not been imported, StoreError when it cannot be read."""
        experiment = store.experiments.get(experiment_id)
        columns = [name for name in cls.METRICS if name in store.metrics.names("message")]
        metrics: dict[str, dict[int, Mapping[str, Any]]] = {}
        if columns:
            for row in store.metrics.by_message(experiment_id, columns):
                metrics.setdefault(row["conversation_id"], {})[row["message_index"]] = row
        agents: dict[str, Rows] = {}
        for row in store.conversations.agents(experiment_id):
            agents.setdefault(row["conversation_id"], []).append(row)
        turns: dict[str, Rows] = {}
        for row in store.conversations.turns(experiment_id):
            turns.setdefault(row["conversation_id"], []).append(row)
        talks = [
            Talk(
                row,
                store.messages.of(row["conversation_id"]),
                agents.get(row["conversation_id"], []),
                turns.get(row["conversation_id"], []),
                metrics.get(row["conversation_id"], {}),
            )
            for row in store.conversations.of(experiment_id)
        ]
        return cls(experiment, talks, columns)

    @cached_property
    def _counted(self) -> Counted[Talk]:
        return counted((talk, talk.standing) for talk in self.all)

    @property
    def compared(self) -> list[Talk]:
        """Those that enter means, intervals and tests."""
        return self._counted.conversations

    @property
    def basis(self) -> str:
        """Which conversations `compared` are, for a caption."""
        return self._counted.basis

    @cached_property
    def arms(self) -> list[str]:
        """All of them, with those of which nothing can be drawn: an arm has one place and one colour everywhere."""
        return list(dict.fromkeys(talk.arm for talk in self.all))

    def of_arm(self, arm: str, talks: Sequence[Talk]) -> list[Talk]:
        return [talk for talk in talks if talk.arm == arm]
