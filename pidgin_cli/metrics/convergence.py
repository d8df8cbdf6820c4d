"""How alike two messages are, as one number to watch: a weighted mean of raw similarities, 1 for identical messages.

Raw similarity is not yet convergence: two strangers on one topic share words too. `others.convergence_index` subtracts
what messages of different conversations share; it needs other conversations and is computed afterwards.
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BALANCED", "PROFILES", "Weights", "convergence", "custom"]


class Weights(NamedTuple):
    """What each part of the score counts."""

    content: float
    """Cosine of word counts."""
    structure: float
    """Cosine of paragraphs, list items, headings, code blocks, questions, emphasis."""
    sentences: float
    """Fewer / more sentences."""
    length: float
    """Fewer / more tokens."""
    punctuation: float
    """Cosine of punctuation counts."""


BALANCED = Weights(0.40, 0.15, 0.20, 0.15, 0.10)
PROFILES: dict[str, Weights] = {
    "balanced": BALANCED,
    "structural": Weights(0.25, 0.35, 0.20, 0.10, 0.10),
    "semantic": Weights(0.60, 0.10, 0.15, 0.10, 0.05),
    "strict": Weights(0.50, 0.25, 0.15, 0.05, 0.05),
}


def custom(weights: Mapping[str, float]) -> Weights:
    """Weights by the name of the part; parts that are not named count nothing.

    Raises:
        ValueError: an unknown part, a negative weight, or a sum other than 1.
    """
    unknown = sorted(weights.keys() - set(Weights._fields))
    if unknown:
        raise ValueError(f"no part {unknown[0]!r} in the convergence score, there are: {', '.join(Weights._fields)}")
    if not all(0 <= weight <= 1 for weight in weights.values()):
        raise ValueError("the weights of the convergence score must lie between 0 and 1")
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"the weights of the convergence score must sum to 1, not {sum(weights.values()):g}")
    return Weights(**{name: float(weights.get(name, 0.0)) for name in Weights._fields})


def convergence(parts: Mapping[str, float | None], weights: Weights = BALANCED) -> float | None:
    """The weighted mean of the parts that can be computed. None when none of those that count can."""
    total = weight = 0.0
    for name, share in weights._asdict().items():
        value = parts[name]
        if value is not None and share:
            total += share * value
            weight += share
    return min(1.0, total / weight) if weight else None
