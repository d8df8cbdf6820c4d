"""A conversation against others: of its condition, for what chance alone gives, and of its experiment."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from . import formulas as f
from .offline import Messages, Texts
from .pairs import LSM_LEAST
from .reading import SEQUENCE_LIMIT, Reading, Vocabulary

__all__ = [
    "LEAST_CONVERSATIONS",
    "Corrected",
    "Features",
    "Profile",
    "between_conversation_similarity",
    "burrows_delta",
    "convergence_index",
    "profile",
]

SURROGATES = 20
"""Partners from other conversations that each pair of messages is held against."""
LEAST_SURROGATES = 2
"""Below so many there is no mean to speak of."""
LEAST_CONVERSATIONS = 5
IDENTICAL = 1e-12
"""What rounding may leave of 1 - s where all strangers are identical: there is nothing beyond them."""
LEAST_ROOM = 0.25
"""What chance has to leave open over all parts of the pooled index: below it, a small difference becomes any number."""
LENGTHS = 0.25
"""By what share a surrogate partner may be longer or shorter than the real one."""

CODE_POINTS = 0x110000


class Features(NamedTuple):
    """What there has to be known of a message to hold it against those of other conversations; some 2 kB."""

    agent_id: str
    text: str
    tokens: str | list[int]
    """The number of each token, as characters as long as they reach."""
    types: NDArray[np.int64]
    """The number of each type outside code."""
    times: NDArray[np.int64]
    """How often each of the types occurs."""
    structure: NDArray[np.int64]
    """Paragraphs, list items, headings, code blocks, questions, emphasis."""
    percent: NDArray[np.float64] | None
    """Of the words in each of `LSM_CATEGORIES`; None where style cannot be compared."""


class Profile(NamedTuple):
    """The features of all messages of a conversation."""

    types: list[str]
    """By the numbers that the features have for them, from 0."""
    messages: list[Features]


def profile(texts: Texts) -> Profile:
    """What others need of a conversation."""
    return Profile(list(texts.vocabulary), [_features(reading) for reading in texts.readings])


def _features(reading: Reading) -> Features:
    comparable = reading.has_lexicon and len(reading.words) >= LSM_LEAST
    return Features(
        reading.agent_id,
        reading.text,
        _sequence(reading.ids.astype(np.int64) - 1),
        reading.type_ids - 1,
        reading.type_counts,
        np.array(reading.structure, dtype=np.int64),
        np.array(reading.class_percent) if comparable else None,
    )


def _sequence(numbers: NDArray[np.int64]) -> str | list[int]:
    if len(numbers) and numbers.max() >= CODE_POINTS:
        return list(map(int, numbers))
    return numbers.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _numbers(sequence: str | list[int]) -> NDArray[np.int64]:
    if isinstance(sequence, str):
        return np.frombuffer(sequence.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
    return np.array(sequence, dtype=np.int64)


def _in_common(profiles: Mapping[str, Profile]) -> tuple[dict[str, list[Features]], int]:
    """The features with the same number for the same type in all conversations, and how many types there are."""
    vocabulary = Vocabulary()
    found = {}
    for name, (types, messages) in profiles.items():
        number = np.array([vocabulary[word] for word in types], dtype=np.int64)
        found[name] = [
            each._replace(tokens=_sequence(number[_numbers(each.tokens)]), types=number[each.types])
            for each in messages
        ]
    return found, len(vocabulary)


class Corrected(NamedTuple):
    """`convergence_index` and `convergence_index_pooled` of one message."""

    value: float | None
    pooled: float | None
    surrogates: int | None
    """Partners from other conversations that there were for it; None: nobody was looked for."""


class _Bags:
    """Cosines of one bag of words to many, by a table of the whole vocabulary that is written and wiped each time."""

    def __init__(self, types: int) -> None:
        self._table = np.zeros(types + 1, dtype=np.int64)

    def cosines(self, now: Features, others: Sequence[Features]) -> list[float | None]:
        """cosine_tf."""
        types = np.concatenate([each.types for each in others])
        times = np.concatenate([each.times for each in others])
        ends = np.cumsum([len(each.types) for each in others])
        self._table[now.types] = now.times
        products = self._table[types] * times
        self._table[now.types] = 0
        return _of_products(_sums(products, ends), int(now.times @ now.times), _sums(times * times, ends))


class _Place:
    """The messages that one agent has at one place of the conversations."""

    def __init__(self, names: Sequence[str], messages: Sequence[Features], shared: Mapping[str, int], at: int) -> None:
        self.messages = messages
        self._names = {name: number for number, name in enumerate(names)}
        self._sizes = np.array([len(each.tokens) for each in messages])
        self._own = np.array([at >= shared.get(name, 0) for name in names])

    def strangers(self, name: str, *, is_shared: bool) -> list[int]:
        """Those of other conversations that are about as long as the one of this conversation.

        Args:
            name: the conversation.
            is_shared: its message is that of the conversation that it branches off, where it stands, too.
        """
        me = self._names[name]
        size = self._sizes[me]
        fits = self._own & (np.abs(self._sizes - size) <= LENGTHS * size)
        fits[me] = False
        found: list[int] = np.flatnonzero(fits).tolist()
        if is_shared:
            return [each for each in found if self.messages[each].text != self.messages[me].text]
        return found


def convergence_index(
    profiles: Mapping[str, Profile],
    seed: int = 0,
    shared: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, list[Corrected]]:
    """`convergence_index` of every message: likeness to the partner's last message beyond that of strangers.

    For each of cosine_tf, lsm_nz, indel_partner and structure_cosine, s is the mean over up to 20 surrogate partners:
    messages at the same place in other conversations, by an agent of the same id, of nearly the same length. The
    index is the mean of (x - s) / (1 - s): 1 for identical messages. A part in which strangers are nearly identical,
    such as the structure of plain prose, may rule it: one message of another shape then is far below -1, and unrelated
    conversations are below 0 on average. The pooled index weights the parts by 1 - s, which gives the sum of x - s
    over that of 1 - s: 1 for identical messages, and about 0 for unrelated ones. The order of the conversations
    changes nothing.

    Args:
        profiles: of the conversations of one condition, by id.
        seed: of the draw of surrogates; the same seed gives the same numbers.
        shared: how many messages at the beginning of a branch are another conversation's. They are no strangers.
        progress: told how many conversations are done, of how many.

    Returns:
        Both values for each message of each conversation. None for all below 5 conversations and below 2 surrogates;
        parts in which all strangers are identical are left out; the pooled one is None where the sum of 1 - s is
        below 0.25.
    """
    if len(profiles) < LEAST_CONVERSATIONS:
        return {name: [Corrected(None, None, None)] * len(each.messages) for name, each in profiles.items()}
    conversations, types = _in_common(dict(sorted(profiles.items())))
    bags = _Bags(types)
    shared = shared or {}
    there: dict[tuple[int, str], list[str]] = {}
    for name, messages in conversations.items():
        for at, each in enumerate(messages):
            there.setdefault((at, each.agent_id), []).append(name)
    places = {
        (at, agent): _Place(names, [conversations[name][at] for name in names], shared, at)
        for (at, agent), names in there.items()
    }
    found: dict[str, list[Corrected]] = {}
    for done, name in enumerate(profiles):
        progress(done, len(profiles))
        mine = conversations[name]
        found[name] = []
        for index, now in enumerate(mine):
            at = next((at for at in range(index - 1, -1, -1) if mine[at].agent_id != now.agent_id), -1)
            if at < 0:
                found[name].append(Corrected(None, None, None))
                continue
            place = places[at, mine[at].agent_id]
            strangers = place.strangers(name, is_shared=at < shared.get(name, 0))
            if len(strangers) > SURROGATES:
                strangers = random.Random(f"{seed}/{name}/{index}").sample(strangers, SURROGATES)
            found[name].append(_corrected(now, mine[at], [place.messages[each] for each in strangers], bags))
    return found


def _corrected(now: Features, partner: Features, strangers: Sequence[Features], bags: _Bags) -> Corrected:
    if len(strangers) < LEAST_SURROGATES:
        return Corrected(None, None, len(strangers))
    shares = []
    beyond = room = 0.0
    others = [partner, *strangers]
    likeness = bags.cosines(now, others), _styles(now, others), _indels(now, others), _shapes(now, others)
    for value, *baseline in likeness:
        known = [each for each in baseline if each is not None]
        if value is not None and known:
            mean = sum(known) / len(known)
            beyond += value - mean
            room += 1 - mean
            if mean < 1 - IDENTICAL:
                shares.append((value - mean) / (1 - mean))
    return Corrected(
        sum(shares) / len(shares) if shares else None,
        beyond / room if room >= LEAST_ROOM else None,
        len(strangers),
    )


# Likeness of a message to each of some others


def _sums(values: NDArray[np.int64], ends: NDArray[np.int64]) -> list[int]:
    """Of the stretches of values that end there."""
    so_far = np.concatenate(([0], np.cumsum(values)))[ends]
    found: list[int] = np.diff(so_far, prepend=0).tolist()
    return found


def _of_products(products: Sequence[int], square: int, squares: Sequence[int]) -> list[float | None]:
    return [
        min(1.0, product / math.sqrt(square * other)) if square and other else None
        for product, other in zip(products, squares, strict=True)
    ]


def _styles(now: Features, others: Sequence[Features]) -> list[float | None]:
    """lsm_nz."""
    known = [each.percent for each in others if each.percent is not None]
    if now.percent is None or not known:
        return [None] * len(others)
    theirs = np.stack(known)
    whole = now.percent + theirs
    # As `formulas.lsm` has it, to the last bit: what neither uses adds nothing.
    each = np.where(whole > 0, 1 - np.abs(now.percent - theirs) / (whole + 0.0001), 0.0)
    counts = np.count_nonzero(whole > 0, axis=1).tolist()
    values = iter([sum(row) / count if count else None for row, count in zip(each.tolist(), counts, strict=True)])
    return [next(values) if other.percent is not None else None for other in others]


def _indels(now: Features, others: Sequence[Features]) -> list[float | None]:
    """indel_partner."""
    own, size = now.tokens, len(now.tokens)
    if size > SEQUENCE_LIMIT:
        return [None] * len(others)
    return [
        (2 * LCSseq.similarity(own, other) / (size + len(other)) if size + len(other) else 1.0)
        if len(other) <= SEQUENCE_LIMIT
        else None
        for other in (each.tokens for each in others)
    ]


def _shapes(now: Features, others: Sequence[Features]) -> list[float | None]:
    """structure_cosine."""
    theirs = np.stack([each.structure for each in others])
    squares = (theirs * theirs).sum(axis=1).tolist()
    return _of_products((theirs @ now.structure).tolist(), int(now.structure @ now.structure), squares)


# Of an experiment


def burrows_delta(
    profiles: Sequence[Profile], top: int = 100, least: int = 300, shared: Sequence[int] | None = None
) -> list[dict[tuple[str, str], float | None]]:
    """`burrows_delta` of every two agents of each conversation of an experiment.

    The rates of the experiment's commonest words are scaled by their mean and standard deviation over all agents of
    all conversations that have enough tokens.

    Args:
        profiles: of all conversations of the experiment.
        top: how many of the commonest words.
        least: tokens that an agent needs.
        shared: how many messages at the beginning of each are another conversation's; they count there.
    """
    vocabulary = Vocabulary()
    bags: list[dict[str, Counter[int]]] = []
    for (types, messages), skipped in zip(profiles, shared or [0] * len(profiles), strict=True):
        number = np.array([vocabulary[word] for word in types], dtype=np.int64)
        bags.append({})
        spoken: dict[str, list[Features]] = {}
        for each in messages[skipped:]:
            spoken.setdefault(each.agent_id, []).append(each)
        for agent, said in spoken.items():
            ids = np.concatenate([each.types for each in said])
            times = np.bincount(ids, np.concatenate([each.times for each in said]), minlength=len(types))
            used = np.flatnonzero(times)
            bags[-1][agent] = Counter(
                dict(zip(number[used].tolist(), times[used].astype(np.int64).tolist(), strict=True))
            )
    total: Counter[int] = Counter()
    for of_agents in bags:
        for bag in of_agents.values():
            total.update(bag)
    words = list(vocabulary)
    commonest = sorted(total, key=lambda number: (-total[number], words[number - 1]))[:top]
    rates = {
        (place, agent): np.array([bag[number] for number in commonest]) / bag.total()
        for place, of_agents in enumerate(bags)
        for agent, bag in of_agents.items()
        if bag.total() >= least
    }
    known = len(rates) >= 3
    if known:
        table = np.array(list(rates.values()))
        mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1)
        varies = spread > 0
        rates = {place: (rate[varies] - mean[varies]) / spread[varies] for place, rate in rates.items()}
    return [
        {
            (one, two): (
                float(np.abs(rates[place, one] - rates[place, two]).mean())
                if known and (place, one) in rates and (place, two) in rates and len(rates[place, one])
                else None
            )
            for seat, one in enumerate(of_agents)
            for two in list(of_agents)[seat + 1 :]
        }
        for place, of_agents in enumerate(bags)
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
