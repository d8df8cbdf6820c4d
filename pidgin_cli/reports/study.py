"""One experiment as its figures need it: read from the database once, with every text cut into words once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pidgin_cli.database.repositories import Rows
from pidgin_cli.database.store import EventStore
from pidgin_cli.metrics.tokens import tokenize

from .counted import Counted, Standing, counted
from .measures import HEADLINE

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
        by_turn: Mapping[int, NDArray[np.float64]],
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
        self.by_turn = by_turn
        """By turn number, the means of `Study.charted` over its messages; NaN: no message has a value."""

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

    METRICS = tuple(dict.fromkeys(("state", "state_onset", "embedding_model", "convergence_index_pooled", *HEADLINE)))
    """Those that figures are drawn from, as far as the database has a column for them."""

    CHARTED = (
        "tokens", "mean_sentence_length", "emphasis_spans",
        "mattr_50", "yule_k", "new_types_conv",
        "word_entropy", "surprisal_running", "history_gain",
        "rep_4", "self_cosine", "novelty_4gram", "max_jaccard3_lag12",
        "cosine_tf", "jsd", "copied_span_share", "length_ratio", "structure_cosine", "lsm",
        "hedges", "agreement", "praise", "gratitude", "farewell", "first_plural", "question_share", "meta_conversation",
        "bliss_terms", "sentiment", "flesch_ease",
        "emoji_share", "punct_share",
        "sem_drift_seed", "sem_sim_partner",
    )  # fmt: skip
    """Those that are charted turn by turn, some of each section of the catalogue that is about texts."""

    def __init__(
        self, experiment: Mapping[str, Any], talks: Sequence[Talk], columns: Sequence[str], charted: Sequence[str] = ()
    ) -> None:
        self.experiment = experiment
        self.all = list(talks)
        self.valid = [talk for talk in talks if not talk.row["invalid"]]
        """Without those that are to be left out of statistics."""
        self.columns = columns
        """Which of `METRICS` have a column."""
        self.charted = list(charted)
        """Which of `CHARTED` have one."""

    @classmethod
    def load(cls, store: EventStore, experiment_id: str) -> "Study":
        """Read an experiment. Raises NotFound when it has not been imported, StoreError when it cannot be read."""
        experiment = store.experiments.get(experiment_id)
        there = {*store.metrics.names("message"), "embedding_model"}
        columns = [name for name in cls.METRICS if name in there]
        charted = [name for name in cls.CHARTED if name in there]
        metrics: dict[str, dict[int, Mapping[str, Any]]] = {}
        if columns:
            for row in store.metrics.by_message(experiment_id, columns):
                metrics.setdefault(row["conversation_id"], {})[row["message_index"]] = row
        means: dict[str, dict[int, NDArray[np.float64]]] = {}
        if charted:
            for row in store.metrics.turn_means(experiment_id, charted):
                values = np.array([row[name] for name in charted], dtype=np.float64)  # NULL becomes NaN
                means.setdefault(row["conversation_id"], {})[row["turn_number"]] = values
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
                means.get(row["conversation_id"], {}),
            )
            for row in store.conversations.of(experiment_id)
        ]
        return cls(experiment, talks, columns, charted)

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
