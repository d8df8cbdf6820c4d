"""Where a conversation goes in the space of an embedding model. The vectors come from outside.

Cosines of one model compare with each other and with those of surrogate pairs, never across models.
"""

import itertools
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .catalogue import METRICS, Value
from .detectors import lexical_hash
from .engine import Summary
from .tokens import tokenize

__all__ = ["LEXICAL_HASH", "SEMANTIC", "Semantics", "hashed", "semantics", "topics"]

Vector = NDArray[np.float64]

SEMANTIC = tuple(name for name, metric in METRICS.items() if metric.language == "model" and metric.level != "C")
"""The metrics of a message that need an embedding."""

LEXICAL_HASH = "lexical_hash"
"""Name of the stand-in for an embedding model: signed hashes of words and bigrams, which know no meaning."""

TOPICS = 8
"""Clusters that the messages of an experiment are put into."""
LEAST_PER_TOPIC = 5
"""Messages for each of them that an experiment needs."""
ROUNDS = 100
SPREAD_WINDOW = 5
CENTROID_LEAST = 3
VELOCITY_WEIGHT = 0.3


def _unit(vector: ArrayLike | None) -> Vector | None:
    """The direction of a vector; None for no vector, for zero, and for what is not finite."""
    if vector is None:
        return None
    values = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(values))
    return values / length if np.isfinite(length) and length > 0 else None


def _cos(first: Vector, second: Vector) -> float:
    return max(-1.0, min(1.0, float(first @ second)))


class _Path:
    """The vectors of one agent."""

    def __init__(self) -> None:
        self.first: Vector | None = None
        self.last: Vector | None = None
        self.window: deque[Vector] = deque(maxlen=SPREAD_WINDOW)
        self.count = 0
        self.length = 0.0
        self.velocity: float | None = None


class Semantics:
    """The semantic metrics over one conversation, one message at a time; all vectors of one model.

    Args:
        agents: ids of those who speak.
        seed: vector of the opening.
        personas: vectors of the system prompts, by agent.
    """

    def __init__(
        self, agents: Sequence[str], seed: ArrayLike | None = None, personas: Mapping[str, ArrayLike] | None = None
    ) -> None:
        self._paths = {agent: _Path() for agent in agents}
        self._seed = _unit(seed)
        self._personas = {
            agent: unit for agent, vector in (personas or {}).items() if (unit := _unit(vector)) is not None
        }
        self._spoken: list[str] = []

    def add(self, agent_id: str, vector: ArrayLike | None) -> dict[str, Value]:
        """Take the vector of the next message in; None when there is none.

        Returns:
            Every name of `SEMANTIC`.
        """
        path, now = self._paths[agent_id], _unit(vector)
        partner_id = next((agent for agent in reversed(self._spoken) if agent != agent_id), None)
        if agent_id in self._spoken:
            self._spoken.remove(agent_id)
        self._spoken.append(agent_id)
        found: dict[str, Value] = dict.fromkeys(SEMANTIC)
        if now is None:
            path.last = None
            return found
        partner = self._paths[partner_id] if partner_id is not None else None
        if path.last is not None:
            step = 1 - _cos(now, path.last)
            before = path.velocity
            path.velocity = step if before is None else (1 - VELOCITY_WEIGHT) * before + VELOCITY_WEIGHT * step
            found["sem_step_self"] = step
            found["sem_velocity"] = path.velocity
        if path.window:
            path.length += float(np.linalg.norm(now - path.window[-1]))
        path.first = now if path.first is None else path.first
        path.last = now
        path.window.append(now)
        path.count += 1
        if partner is not None and partner.last is not None:
            found["sem_sim_partner"] = _cos(now, partner.last)
        if self._seed is not None:
            found["sem_drift_seed"] = 1 - _cos(now, self._seed)
        if len(path.window) == SPREAD_WINDOW:
            found["sem_spread_w5"] = 1 - mean_cosine(list(path.window))
        if partner is not None and min(len(path.window), len(partner.window)) >= CENTROID_LEAST:
            centroids = [_unit(np.sum(agent.window, axis=0)) for agent in (path, partner)]
            if centroids[0] is not None and centroids[1] is not None:
                found["sem_centroid_gap"] = 1 - _cos(centroids[0], centroids[1])
        if partner_id in self._personas and agent_id in self._personas:
            found["persona_similarity"] = _cos(now, self._personas[agent_id]) - _cos(now, self._personas[partner_id])
        return found

    def conversation(self) -> list[Summary]:
        """`path_efficiency` of each agent: distance from first to last vector / length of the path between."""
        found = []
        for agent, path in self._paths.items():
            value = None
            if path.count >= 3 and path.length > 0 and path.first is not None:
                value = min(1.0, float(np.linalg.norm(path.window[-1] - path.first)) / path.length)
            found.append(Summary("path_efficiency", value, agent))
        return found


def mean_cosine(units: Sequence[Vector]) -> float:
    """Mean cosine of every two of some unit vectors: (|sum|² - n) / (n (n - 1))."""
    n, total = len(units), np.sum(units, axis=0)
    return (float(total @ total) - n) / (n * (n - 1))


def semantics(
    messages: Sequence[tuple[str, ArrayLike | None]],
    seed: ArrayLike | None = None,
    personas: Mapping[str, ArrayLike] | None = None,
) -> tuple[list[dict[str, Value]], list[Summary]]:
    """The semantic metrics of a whole conversation, given as (agent id, vector or None)."""
    path = Semantics(tuple(dict.fromkeys(agent for agent, _ in messages)), seed, personas)
    return [path.add(agent, vector) for agent, vector in messages], path.conversation()


def hashed(text: str) -> Vector:
    """The vector of a text for `LEXICAL_HASH`: 512 numbers, all zero where there is no token."""
    return np.asarray(lexical_hash(tokenize(text)), dtype=np.float64)


def topics(
    vectors: Mapping[str, Sequence[ArrayLike | None]],
) -> tuple[dict[str, list[int | None]], dict[str, int | None]]:
    """`topic_id` of every message and `topic_switches` of every conversation of an experiment.

    k-means on the sphere with 8 centroids, which begin as far from each other as they can, so that nothing is drawn
    and the order of the conversations changes nothing. Topics are numbered from 0 by how many messages they have.

    Args:
        vectors: of the messages in order, by conversation id; all of one model.

    Returns:
        The topic of each message, None without a vector; how often the topic differs from the one before, None below
        2 messages with a topic. All None below 40 messages with a vector.
    """
    units = {name: [_unit(vector) for vector in each] for name, each in vectors.items()}
    places = [(name, at) for name in sorted(units) for at, vector in enumerate(units[name]) if vector is not None]
    found: dict[str, list[int | None]] = {name: [None] * len(each) for name, each in units.items()}
    if len(places) >= TOPICS * LEAST_PER_TOPIC:
        labels = _spherical_k_means(np.array([units[name][at] for name, at in places]))
        for (name, at), label in zip(places, labels, strict=True):
            found[name][at] = label
    switches = {}
    for name, each in found.items():
        known = [topic for topic in each if topic is not None]
        changes = sum(one != two for one, two in itertools.pairwise(known))
        switches[name] = changes if len(known) >= 2 else None
    return found, switches


def _spherical_k_means(points: Vector) -> list[int]:
    """The cluster of each unit vector; 0 is the largest."""
    first = int(np.argmin(points @ points.sum(axis=0)))
    chosen = [first]
    nearest = points @ points[first]
    while len(chosen) < TOPICS:
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, points @ points[chosen[-1]])
    centroids = points[chosen]
    labels = np.argmax(points @ centroids.T, axis=1)
    for _ in range(ROUNDS):
        for topic in range(TOPICS):
            centre = _unit(points[labels == topic].sum(axis=0))
            if centre is not None:  # else nobody is there, or they cancel out
                centroids[topic] = centre
        moved = np.argmax(points @ centroids.T, axis=1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    sizes = np.bincount(labels, minlength=TOPICS)
    first_at = [int(np.flatnonzero(labels == topic)[0]) if sizes[topic] else len(labels) for topic in range(TOPICS)]
    order = sorted(range(TOPICS), key=lambda topic: (-int(sizes[topic]), first_at[topic]))
    number = {topic: place for place, topic in enumerate(order)}
    return [number[topic] for topic in labels.tolist()]
