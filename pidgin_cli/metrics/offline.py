"""What is not computed while people wait: at import, from all texts of a conversation or of an experiment."""

import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import formulas as f
from .catalogue import Value
from .engine import Summary
from .lexicon import Lexicon, english
from .pairs import likeness
from .reading import Reading, Vocabulary

__all__ = [
    "Corrected",
    "between_conversation_similarity",
    "burrows_delta",
    "convergence_index",
    "determinism",
    "offline",
    "recurrence",
    "self_bleu4",
    "states",
    "summarise",
    "vendi",
]

Messages = Sequence[tuple[str, str]]
"""A conversation as (agent id, text), in order."""

OWN_WINDOW = 8
"""Messages of one agent that `self_bleu4_w8` and `vendi_w8` look at."""
RECURRENT = 0.6
"""Trigram Jaccard from which two messages count as the same."""

VADER_LIMIT = 5_000
"""Tokens above which VADER is not asked: it takes time by their square."""


def offline(
    messages: Messages, lexicon: Lexicon | str | None = "english"
) -> tuple[list[dict[str, Value]], list[Summary]]:
    """The metrics that `METRICS` marks offline and that one conversation is enough for; embeddings aside.

    Args:
        messages: the conversation.
        lexicon: as `Engine` takes it.

    Returns:
        Values for each message, and values of the conversation.
    """
    lists = english() if isinstance(lexicon, str) else lexicon
    vocabulary = Vocabulary()
    readings = [Reading(text, agent, index, vocabulary, lists) for index, (agent, text) in enumerate(messages)]
    windows: dict[str, deque[Reading]] = {}
    last: dict[str, Reading] = {}
    rows: list[dict[str, Value]] = []
    for now in readings:
        window = windows.setdefault(now.agent_id, deque(maxlen=OWN_WINDOW))
        window.append(now)
        partner = max(
            (other for agent, other in last.items() if agent != now.agent_id),
            key=lambda other: other.index,
            default=None,
        )
        rows.append(
            {
                "self_bleu4_w8": self_bleu4([own.tokens for own in window]),
                "vendi_w8": vendi([own.counts for own in window]),
                "char3_cosine": _char3_cosine(now.normalised, partner.normalised) if partner is not None else None,
                "sentiment_vader": _vader(now) if now.has_lexicon and 0 < len(now.words) <= VADER_LIMIT else None,
            }
        )
        last[now.agent_id] = now
    points = recurrence([reading.shingles for reading in readings])
    count = len(readings)
    found = [
        Summary("bigram_cond_entropy", _bigram_cond_entropy(readings)),
        Summary("zipf_s", f.zipf_s(sum((reading.counts for reading in readings), Counter()).values())),
        Summary("recurrence_rate", 2 * int(np.count_nonzero(points)) / (count * (count - 1)) if count >= 4 else None),
        Summary("determinism", determinism(points)),
    ]
    for agent in windows:
        own = [reading for reading in readings if reading.agent_id == agent]
        total: Counter[str] = sum((reading.counts for reading in own), Counter())
        found += [
            Summary("cum_mtld", f.mtld([word for reading in own for word in reading.words]), agent),
            Summary("cum_hdd_42", f.hdd(total.values()), agent),
        ]
    return rows, found


# Of one agent's last messages


def self_bleu4(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text against all others. Texts below 4 tokens are left out; None below 3 texts."""
    long = [text for text in texts if len(text) >= 4]
    if len(long) < 3:
        return None
    grams = [
        [Counter(zip(*(text[shift:] for shift in range(size)), strict=False)) for size in (1, 2, 3, 4)] for text in long
    ]
    matched = [[0] * 4 for _ in long]
    for order in range(4):
        # Of each gram the greatest count with its text, and the greatest of all other texts.
        most: dict[tuple[str, ...], tuple[int, int, int]] = {}
        for place, counts in enumerate(each[order] for each in grams):
            for gram, count in counts.items():
                first, holder, second = most.get(gram, (0, -1, 0))
                if count > first:
                    most[gram] = (count, place, first)
                elif count > second:
                    most[gram] = (first, holder, count)
        for gram, (first, holder, second) in most.items():
            if second:
                for place, each in enumerate(grams):
                    if count := each[order].get(gram, 0):
                        matched[place][order] += min(count, second if place == holder else first)
    scores = []
    for place, text in enumerate(long):
        lengths = [len(other) for number, other in enumerate(long) if number != place]
        closest = min(lengths, key=lambda size: (abs(size - len(text)), size))
        scores.append(f.bleu4(matched[place], len(text), closest) or 0.0)
    return sum(scores) / len(scores)


def vendi(bags: Sequence[Mapping[str, int]]) -> float | None:
    """How many different texts there are in effect, by the cosine of word counts. None below 3 texts with a word."""
    full = [bag for bag in bags if bag]
    if len(full) < 3:
        return None
    return vendi_score(np.array([[1.0 if one is two else f.cosine(one, two) for two in full] for one in full]))


def vendi_score(kernel: NDArray[np.float64]) -> float:
    """exp of the entropy of the eigenvalues of K / n, for similarities K with ones on the diagonal."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(math.exp(-(values * np.log(values)).sum()))


# Of two messages, and of one


def _char3_cosine(first: str, second: str) -> float | None:
    if min(len(first), len(second)) < 10:
        return None
    bags = [Counter(zip(text, text[1:], text[2:], strict=False)) for text in (first, second)]
    return f.cosine(*bags)


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return SentimentIntensityAnalyzer()


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
    sizes = np.array([len(each) for each in shingles], dtype=np.int64)
    shared = np.zeros((len(shingles), len(shingles)), dtype=np.int32)
    places: dict[int, list[int]] = {}
    for place, each in enumerate(shingles):
        for key in each.tolist():
            places.setdefault(key, []).append(place)
    for where in places.values():
        if len(where) > 1:
            shared[np.ix_(where, where)] += 1
    return np.triu(shared >= threshold * (sizes[:, None] + sizes[None, :] - shared), 1)


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


# Against other conversations


SURROGATES = 20
"""Partners from other conversations that each pair of messages is held against."""
LEAST_SURROGATES = 2
"""Below so many there is no mean to speak of."""
LEAST_CONVERSATIONS = 5
LENGTHS = 0.25
"""By what share a surrogate partner may be longer or shorter than the real one."""


class Corrected(NamedTuple):
    """`convergence_index` of one message."""

    value: float | None
    surrogates: int | None
    """Partners from other conversations that there were for it; None: nobody was looked for."""


def convergence_index(
    conversations: Mapping[str, Messages],
    seed: int = 0,
    lexicon: Lexicon | None = None,
    shared: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, list[Corrected]]:
    """`convergence_index` of every message: likeness to the partner's last message beyond that of strangers.

    For each of cosine_tf, lsm_nz, indel_partner and structure_cosine, s is the mean over up to 20 surrogate partners:
    messages at the same place in other conversations, by an agent of the same id, of nearly the same length. The
    index is the mean of (x - s) / (1 - s): 1 for identical messages, about 0 for unrelated ones. The order of the
    conversations changes nothing.

    Args:
        conversations: of one condition by id, each as (agent id, text) in order.
        seed: of the draw of surrogates; the same seed gives the same numbers.
        lexicon: word lists for lsm_nz; without them that part drops out.
        shared: how many messages at the beginning of a branch are another conversation's. They are no strangers.
        progress: told how many conversations are done, of how many.

    Returns:
        A value for each message of each conversation. None for all below 5 conversations, and below 2 surrogates.
    """
    if len(conversations) < LEAST_CONVERSATIONS:
        return {name: [Corrected(None, None)] * len(messages) for name, messages in conversations.items()}
    vocabulary = Vocabulary()
    readings = {
        name: [Reading(text, agent, index, vocabulary, lexicon) for index, (agent, text) in enumerate(messages)]
        for name, messages in sorted(conversations.items())
    }
    found = {}
    for done, name in enumerate(conversations):
        progress(done, len(conversations))
        found[name] = [
            _index(readings, shared or {}, name, index, random.Random(f"{seed}/{name}/{index}"))
            for index in range(len(readings[name]))
        ]
    return found


def _index(
    readings: Mapping[str, Sequence[Reading]], shared: Mapping[str, int], name: str, index: int, draw: random.Random
) -> Corrected:
    mine = readings[name]
    now = mine[index]
    at = next((at for at in range(index - 1, -1, -1) if mine[at].agent_id != now.agent_id), None)
    if at is None:
        return Corrected(None, None)
    partner = mine[at]
    size = len(partner.tokens)
    strangers = [
        other[at]
        for whose, other in readings.items()
        if whose != name
        and shared.get(whose, 0) <= at < len(other)
        and other[at].agent_id == partner.agent_id
        and abs(len(other[at].tokens) - size) <= LENGTHS * size
        # What a branch shares stands in the conversation that it comes from, too.
        and not (at < shared.get(name, 0) and other[at].text == partner.text)
    ]
    if len(strangers) < LEAST_SURROGATES:
        return Corrected(None, len(strangers))
    chosen = draw.sample(strangers, SURROGATES) if len(strangers) > SURROGATES else strangers
    beyond = []
    baselines = [likeness(now, stranger) for stranger in chosen]
    for part, value in likeness(now, partner).items():
        known = [other for baseline in baselines if (other := baseline[part]) is not None]
        if value is not None and known:
            mean = sum(known) / len(known)
            if mean < 1 - 1e-12:
                beyond.append((value - mean) / (1 - mean))
    return Corrected(sum(beyond) / len(beyond) if beyond else None, len(chosen))


def burrows_delta(
    conversations: Sequence[Messages], top: int = 100, least: int = 300
) -> list[dict[tuple[str, str], float | None]]:
    """`burrows_delta` of every two agents of each conversation of an experiment.

    The rates of the experiment's commonest words are scaled by their mean and standard deviation over all agents of
    all conversations that have enough tokens.

    Args:
        conversations: all of the experiment.
        top: how many of the commonest words.
        least: tokens that an agent needs.
    """
    vocabulary = Vocabulary()
    bags: list[dict[str, Counter[str]]] = []
    for messages in conversations:
        said: dict[str, Counter[str]] = {}
        for index, (agent, text) in enumerate(messages):
            said.setdefault(agent, Counter()).update(Reading(text, agent, index, vocabulary).counts)
        bags.append(said)
    total: Counter[str] = Counter()
    for said in bags:
        for bag in said.values():
            total.update(bag)
    words = [word for word, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:top]]
    rates = {
        (number, agent): np.array([bag[word] for word in words]) / bag.total()
        for number, said in enumerate(bags)
        for agent, bag in said.items()
        if bag.total() >= least
    }
    known = len(rates) >= 3
    if known:
        table = np.array(list(rates.values()))
        spread = table.std(axis=0, ddof=1)
        varies = spread > 0
        rates = {place: (rate[varies] - table.mean(axis=0)[varies]) / spread[varies] for place, rate in rates.items()}
    return [
        {
            (one, two): (
                float(np.abs(rates[number, one] - rates[number, two]).mean())
                if known and (number, one) in rates and (number, two) in rates and len(rates[number, one])
                else None
            )
            for place, one in enumerate(said)
            for two in list(said)[place + 1 :]
        }
        for number, said in enumerate(bags)
    ]


def between_conversation_similarity(conversations: Sequence[Messages], last_third: bool = False) -> float | None:
    """Mean cosine of word counts over every two conversations. None below 2 with a word.

    Args:
        conversations: of one condition.
        last_third: look only at the last third of the messages of each.
    """
    vocabulary = Vocabulary()
    bags = []
    for messages in conversations:
        part = messages[-max(1, len(messages) // 3) :] if last_third else messages
        bag: Counter[str] = Counter()
        for index, (agent, text) in enumerate(part):
            bag.update(Reading(text, agent, index, vocabulary).counts)
        if bag:
            bags.append(bag)
    found = [f.cosine(one, two) or 0.0 for place, one in enumerate(bags) for two in bags[place + 1 :]]
    return sum(found) / len(found) if found else None


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
