"""How alike the last messages of one agent are: Self-BLEU and the Vendi score of a sliding window.

All windows are computed together, because neighbouring ones share all but one message: what a message has is counted
once, as a row of a table, and a window is some rows of it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import formulas as f
from .reading import Reading

__all__ = ["OWN_WINDOW", "self_bleu4", "vendi", "vendi_score"]

OWN_WINDOW = 8
"""Messages of one agent that `self_bleu4_w8` and `vendi_w8` look at."""
LEAST = 3
"""Messages that a window needs."""
TABLE_CELLS = 2_000_000
"""About what a table may hold; a window of huge messages takes more."""

Table = NDArray[np.int64]
"""Messages by what they contain: how often."""


def self_bleu4(own: Sequence[Reading]) -> list[float | None]:
    """Mean BLEU-4 of each of the last 8 messages against all others of them, at each message of one agent.

    Messages below 4 tokens are left out; None below 3 others.
    """
    found: list[float | None] = []
    for first, ends in _blocks([len(reading.tokens) for reading in own]):
        block = own[first : ends.stop]
        tables = [_counts([reading.sorted_grams[order] for reading in block]) for order in range(4)]
        # What only one message has matches nothing.
        tables = [table[:, np.count_nonzero(table, axis=0) > 1] for table in tables]
        bounds = np.cumsum([0, *(table.shape[1] for table in tables)]).tolist()
        every = np.hstack(tables)
        sizes = [len(reading.tokens) for reading in block]
        for end in ends:
            rows = range(max(first, end - OWN_WINDOW + 1) - first, end + 1 - first)
            long = [row for row in rows if sizes[row] >= 4]
            if len(long) < LEAST:
                found.append(None)
                continue
            matched = _matched(every[long], bounds)
            found.append(_mean_bleu4(matched, [sizes[row] for row in long]))
    return found


def _matched(counts: Table, bounds: Sequence[int]) -> list[list[int]]:
    """For each text and n = 1 to 4 the n-grams that others have, none more often than in the one that has most."""
    rising = np.maximum.accumulate(counts, axis=0)
    falling = np.maximum.accumulate(counts[::-1], axis=0)[::-1]
    others = np.empty_like(counts)
    others[0], others[-1] = falling[1], rising[-2]
    np.maximum(rising[:-2], falling[2:], out=others[1:-1])
    shared = np.minimum(counts, others)
    orders = [shared[:, start:end].sum(axis=1) for start, end in itertools.pairwise(bounds)]
    found: list[list[int]] = np.stack(orders, axis=1).tolist()
    return found


def _mean_bleu4(matched: Sequence[Sequence[int]], sizes: Sequence[int]) -> float:
    scores = []
    for place, size in enumerate(sizes):
        others = [other for number, other in enumerate(sizes) if number != place]
        closest = min(others, key=lambda other: (abs(other - size), other))
        scores.append(f.bleu4(matched[place], size, closest) or 0.0)
    return sum(scores) / len(scores)


def vendi(own: Sequence[Reading]) -> list[float | None]:
    """How many different texts the last 8 are in effect, by the cosine of word counts, at each message of one agent.

    Messages without a word are left out; None below 3 others.
    """
    found: list[float | None] = []
    for first, ends in _blocks([len(reading.type_ids) for reading in own]):
        block = own[first : ends.stop]
        kernel = _cosines(block)
        for end in ends:
            rows = range(max(first, end - OWN_WINDOW + 1) - first, end + 1 - first)
            full = [row for row in rows if len(block[row].type_ids)]
            found.append(vendi_score(kernel[np.ix_(full, full)]) if len(full) >= LEAST else None)
    return found


def vendi_score(kernel: NDArray[np.float64]) -> float:
    """exp of the entropy of the eigenvalues of K / n, for similarities K with ones on the diagonal."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(math.exp(-(values * np.log(values)).sum()))


def _cosines(block: Sequence[Reading]) -> NDArray[np.float64]:
    """Of the word counts of messages that one window can hold; of those without a word nothing that means anything."""
    table = _counts([reading.type_ids for reading in block], [reading.type_counts for reading in block])
    squares = np.einsum("ij,ij->i", table, table).astype(np.float64)
    found = np.eye(len(block))
    for lag in range(1, min(OWN_WINDOW, len(block))):
        # By whole numbers: a matrix product would keep threads busy that other work has more use for.
        shared = np.einsum("ij,ij->i", table[lag:], table[:-lag])
        norms = np.sqrt(squares[lag:] * squares[:-lag])
        values = np.minimum(1.0, np.divide(shared, norms, out=np.zeros_like(norms), where=norms > 0))
        rows = np.arange(len(values))
        found[rows, rows + lag] = found[rows + lag, rows] = values
    return found


def _counts(keys: Sequence[NDArray[np.generic]], times: Sequence[NDArray[np.int64]] | None = None) -> Table:
    """How often each message, a row, has each key.

    Args:
        keys: of each message, each as often as it occurs.
        times: how often each of the keys occurs, where every key stands there once.
    """
    distinct, columns = np.unique(np.concatenate(keys), return_inverse=True)
    rows = np.repeat(np.arange(len(keys)), [len(each) for each in keys])
    weights = np.concatenate(times) if times is not None else None
    flat = np.bincount(rows * len(distinct) + columns, weights, minlength=len(keys) * len(distinct))
    return flat.astype(np.int64).reshape(len(keys), len(distinct))


def _blocks(sizes: Sequence[int]) -> Iterator[tuple[int, range]]:
    """The messages at which windows end in stretches of bounded size, each with the first message that it needs."""
    start = 0
    while start < len(sizes):
        first = max(0, start - OWN_WINDOW + 1)
        stop, total = start + 1, sum(sizes[first : start + 1])
        while stop < len(sizes) and (total + sizes[stop]) * (stop + 1 - first) <= TABLE_CELLS:
            total += sizes[stop]
            stop += 1
        yield first, range(start, stop)
        start = stop
