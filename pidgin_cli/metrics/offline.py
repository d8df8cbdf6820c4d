"""What is not computed while people wait: at import, from all texts of a conversation."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import formulas as f
from .catalogue import Value
from .engine import Summary
from .lexicon import Lexicon, english
from .reading import Reading, Vocabulary, held
from .windows import self_bleu4, vendi

__all__ = ["Messages", "Texts", "determinism", "offline", "read", "recurrence", "states", "summarise"]

Messages = Sequence[tuple[str, str]]
"""A conversation as (agent id, text), in order."""

RECURRENT = 0.6
"""Trigram Jaccard from which two messages count as the same."""

VADER_LIMIT = 5_000
"""Tokens above which VADER is not asked: it takes time by their square."""


class Texts(NamedTuple):
    """A conversation that has been looked at."""

    readings: list[Reading]
    """Of its messages, in order."""
    vocabulary: Vocabulary
    """The number of each type in it."""


def read(messages: Messages, lexicon: Lexicon | str | None = "english") -> Texts:
    """Look at a conversation.

    Args:
        messages: all of it.
        lexicon: as `Engine` takes it.
    """
    lists = english() if isinstance(lexicon, str) else lexicon
    vocabulary = Vocabulary()
    readings = [Reading(text, agent, index, vocabulary, lists) for index, (agent, text) in enumerate(messages)]
    return Texts(readings, vocabulary)


def offline(readings: Sequence[Reading]) -> tuple[list[dict[str, Value]], list[Summary]]:
    """The metrics that `METRICS` marks offline and that one conversation is enough for; embeddings aside.

    Args:
        readings: of all its messages, in order.

    Returns:
        Values for each message, and values of the conversation.
    """
    own: dict[str, list[Reading]] = {}
    last: dict[str, tuple[int, _Trigrams | None]] = {}
    rows: list[dict[str, Value]] = []
    for now in readings:
        own.setdefault(now.agent_id, []).append(now)
        trigrams = _trigrams(now.normalised)
        _, partner = max(
            (other for agent, other in last.items() if agent != now.agent_id),
            key=lambda other: other[0],
            default=(None, None),
        )
        rows.append(
            {
                "self_bleu4_w8": None,
                "vendi_w8": None,
                "char3_cosine": _cosine(trigrams, partner) if trigrams is not None and partner is not None else None,
                "sentiment_vader": _vader(now) if now.has_lexicon and 0 < len(now.words) <= VADER_LIMIT else None,
            }
        )
        last[now.agent_id] = now.index, trigrams
    points = recurrence([reading.shingles for reading in readings])
    count = len(readings)
    found = [
        Summary("bigram_cond_entropy", _bigram_cond_entropy(readings)),
        Summary("zipf_s", f.zipf_s(Counter(chain.from_iterable(reading.words for reading in readings)).values())),
        Summary("recurrence_rate", 2 * int(np.count_nonzero(points)) / (count * (count - 1)) if count >= 4 else None),
        Summary("determinism", determinism(points)),
    ]
    for agent, said in own.items():
        for reading, bleu, effective in zip(said, self_bleu4(said), vendi(said), strict=True):
            rows[reading.index] |= {"self_bleu4_w8": bleu, "vendi_w8": effective}
        words = [word for reading in said for word in reading.words]
        found += [
            Summary("cum_mtld", f.mtld(words), agent),
            Summary("cum_hdd_42", f.hdd(Counter(words).values()), agent),
        ]
    return rows, found


# Of two messages, and of one


class _Trigrams(NamedTuple):
    """The character trigrams of a message."""

    keys: NDArray[np.uint64]
    """Each once, in order."""
    times: NDArray[np.int64]
    squares: int
    """Sum of the squared `times`."""


def _trigrams(text: str) -> _Trigrams | None:
    if len(text) < 10:
        return None
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    # A code point has 21 bits.
    keys, times = np.unique(codes[:-2] << 42 | codes[1:-1] << 21 | codes[2:], return_counts=True)
    return _Trigrams(keys, times, int(times @ times))


def _cosine(first: _Trigrams, second: _Trigrams) -> float:
    shared = held(second.keys, first.keys)
    product = int(first.times[shared] @ second.times[second.keys.searchsorted(first.keys[shared])])
    return min(1.0, product / math.sqrt(first.squares * second.squares))


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None

    class Local(SentimentIntensityAnalyzer):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """Shows VADER only the words around the one that it weighs: for each it would go through the whole text."""

        def _negation_check(self, valence: float, words: list[str], before: int, at: int) -> Any:
            first = max(0, at - 3)
            return super()._negation_check(valence, words[first : at + 1], before, at - first)

        def _special_idioms_check(self, valence: float, words: list[str], at: int) -> Any:
            first = max(0, at - 3)
            return super()._special_idioms_check(valence, words[first : at + 3], at - first)

    return Local()


def _vader(now: Reading) -> float | None:
    analyzer = _analyzer()
    return float(analyzer.polarity_scores(now.text)["compound"]) if analyzer is not None else None


def _bigram_cond_entropy(readings: Sequence[Reading]) -> float | None:
    pairs = Counter(pair for now in readings for pair in itertools.pairwise(now.words))
    if pairs.total() < 100:
        return None
    firsts: Counter[str] = Counter()
    for (first, _), times in pairs.items():
        firsts[first] += times
    joint, single = f.entropy(pairs.values()), f.entropy(firsts.values())
    return max(0.0, joint - single) if joint is not None and single is not None else None


# Recurrence


def recurrence(shingles: Sequence[NDArray[np.uint64]], threshold: float = RECURRENT) -> NDArray[np.bool_]:
    """Which messages (row) are nearly the same as a later one (column): Jaccard of their trigrams at the threshold."""
    count = len(shingles)
    found = np.zeros((count, count), dtype=np.bool_)
    if not count:
        return found
    sizes = np.array([len(each) for each in shingles], dtype=np.int64)
    keys = np.concatenate(shingles)
    order = np.argsort(keys, kind="stable")
    owners = np.repeat(np.arange(count), sizes)[order]
    # For each shingle, where in the order the messages stand that have it later on, and how many they are.
    starts = np.empty(len(keys), dtype=np.int64)
    starts[order] = np.arange(1, len(keys) + 1)
    later = keys[order].searchsorted(keys, "right") - starts
    at = 0
    for row, size in enumerate(sizes.tolist()):
        repeated = np.flatnonzero(later[at : at + size]) + at
        at += size
        if len(repeated):
            many = later[repeated]
            places = np.repeat(starts[repeated] - (np.cumsum(many) - many), many) + np.arange(many.sum())
            shared = np.bincount(owners[places], minlength=count)
            found[row] = (shared >= threshold * (size + sizes - shared)) & (shared > 0)
    return found


def determinism(points: NDArray[np.bool_]) -> float | None:
    """Share of the recurrent pairs that continue one: that lie on a diagonal of 2 or more. None without any."""
    count = int(np.count_nonzero(points))
    if not count:
        return None
    goes_on = points[:-1, :-1] & points[1:, 1:]
    line = np.zeros_like(points)
    line[:-1, :-1] |= goes_on
    line[1:, 1:] |= goes_on
    return int(np.count_nonzero(line)) / count


# One metric over a conversation


def summarise(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """What became of one metric over the turns of a conversation; turns without a value are passed over.

    Returns:
        `mean`, `first3`, `last3`, `delta` (last3 - first3), `slope` (Theil-Sen, per turn), `auc` (trapezoids over
        turns), `peak`, `peak_turn` (from 1) and `lag1_autocorr`. None where there are too few values.
    """
    known = [(turn, float(value)) for turn, value in enumerate(values, start=1) if value is not None]
    ys = [value for _, value in known]
    first3 = sum(ys[:3]) / 3 if len(ys) >= 3 else None
    last3 = sum(ys[-3:]) / 3 if len(ys) >= 3 else None
    steps = list(itertools.pairwise(known))
    slopes = [(b - a) / (later - turn) for place, (turn, a) in enumerate(known) for later, b in known[place + 1 :]]
    peak = max(ys, default=None)
    neighbours = [(a, b) for (turn, a), (later, b) in steps if later == turn + 1]
    return {
        "mean": sum(ys) / len(ys) if ys else None,
        "first3": first3,
        "last3": last3,
        "delta": last3 - first3 if first3 is not None and last3 is not None else None,
        "slope": float(np.median(slopes)) if slopes else None,
        "auc": sum((a + b) / 2 * (later - turn) for (turn, a), (later, b) in steps) if steps else None,
        "peak": peak,
        "peak_turn": next((turn for turn, value in known if value == peak), None),
        "lag1_autocorr": f.pearson(*zip(*neighbours, strict=True)) if neighbours else None,
    }


def states(named: Sequence[str | None], onsets: Sequence[int | None], normal: str = "normal") -> dict[str, Value]:
    """What became of `state` over the messages of a conversation.

    Args:
        named: the state at each message; None where it is not known.
        onsets: first message of that state, as the detectors date it back.

    Returns:
        `end_state`, `n_state_entries` (of states other than normal), `recovered` (out of the last of them; None when
        there was none), and for each state that was entered `first_passage_<state>` (message index of its first onset)
        and `dwell_<state>` (messages). A state without a first passage was never entered: the time is censored.
    """
    known = [(state, onset) for state, onset in zip(named, onsets, strict=True) if state is not None]
    if not known:
        return {}
    entered = [
        (state, onset)
        for before, (state, onset) in zip([(normal, None), *known[:-1]], known, strict=True)
        if state != normal and before[0] != state
    ]
    found: dict[str, Value] = {
        "end_state": known[-1][0],
        "n_state_entries": len(entered),
        "recovered": known[-1][0] == normal if entered else None,
    }
    for state, onset in reversed(entered):
        found[f"first_passage_{state}"] = onset
        found[f"dwell_{state}"] = sum(each == state for each, _ in known)
    return found
