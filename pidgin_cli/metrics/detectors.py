"""Attractor detectors: which loop, collapse or ritual a conversation is in, since when, and what to do about it.

They work online and look back only: what was said about a message never changes when others follow. Work per message
does not grow with the conversation. Every detector confirms before it fires and lets go after `clear_after` messages
without its sign; the fused state is the first active one in the order of `DETECTORS`.
"""

import hashlib
import re
import statistics
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray
from rapidfuzz.distance import Indel

from .formulas import deflate_bytes
from .lexicon import LEXICON_VERSION, Lexicon
from .reading import GramSet, distinct
from .tokens import MessageClass, char_script, classify, clean, emoji_in, normalise, split_code, tokenize, word_list

__all__ = [
    "ACTIONS",
    "DETECTORS",
    "NORMAL",
    "STATES",
    "Action",
    "Detector",
    "Detectors",
    "Firing",
    "Read",
    "Response",
    "Signals",
    "Step",
    "Thresholds",
    "detect",
    "lexical_hash",
    "read",
    "respond",
]

LAGS = 12
"""How many messages back a cycle is looked for; the longest period that can be found."""
WINDOW = 6
"""Messages that the collapses and rituals look at."""
SPEAKER_WINDOW = 5
"""Messages of one speaker that stationarity looks at."""
COMPARED_TOKENS = 4096
"""Longer messages are compared with others by their first so many tokens, so that work stays bounded."""
DICTIONARY_BYTES = 32_000
"""The stretch of the conversation that `cond_bits_per_byte` may refer back to."""
LONGEST_TANDEM = 50
"""The longest phrase, in tokens, whose immediate repetition is looked for."""
LEAST_BYTES = 24
"""Of a message that has `cond_bits_per_byte`, whatever the detector that goes by it is told to pass over."""
HASH_DIMENSIONS = 512

NORMAL = "normal"

Floats = NDArray[np.float64]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
OfWindow = Annotated[int, Meta(ge=1, le=WINDOW)]
Smoothing = Annotated[float, Meta(gt=0, le=1)]


# Thresholds


class ExactRecurrenceThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the same text counts as a recurrence."""

    repeats: Count = 1
    """How often the same normalised text was said before."""


class CycleThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a repetition counts as a cycle."""

    similarity: Share = 0.6
    """Trigram Jaccard with the message `k` before."""
    run: Count = 2
    """Messages in a row at that lag; at least `k` of them."""


class SoftCycleThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a near-repetition counts as a cycle."""

    similarity: Share = 0.6
    """Token Indel similarity with the message `k` before."""
    run: Count = 3
    """Messages in a row at that lag; at least `k` of them."""


class NoveltyThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When too little is new."""

    below: Share = 0.35
    """Smoothed share of 4-grams that nobody has used before."""
    alpha: Smoothing = 0.3
    """Weight of the newest message in the moving average."""
    run: Count = 3
    """Messages in a row."""


class CompressionThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the conversation so far predicts too much of a message."""

    below: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """Smoothed bits per byte, as a share of the median of the first messages."""
    alpha: Smoothing = 0.3
    """Weight of the newest message in the moving average."""
    run: Count = 3
    """Messages in a row."""
    baseline: Count = 6
    """How many first messages make the median."""
    min_bytes: Count = 24
    """Shorter messages say nothing and are passed over."""


class StationaryThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a speaker stands still."""

    at_least: Share = 0.6
    """Mean pairwise cosine of the speaker's last five vectors, whatever it was early on."""
    gap: Share = 0.5
    """The part of the way from the speaker's early similarity to 1 that must be gone."""
    run: Count = 3
    """Messages in a row, of everyone or of one speaker."""
    early: Count = 3
    """How many first windows make the speaker's early median."""


class CollapseThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When words have gone."""

    count: OfWindow = 5
    """Messages of the last six."""


class LengthThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When only scraps are left."""

    count: OfWindow = 6
    """Messages of the last six."""


class FarewellThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When goodbyes have become a loop."""

    count: OfWindow = 4
    """Messages of the last six with a farewell cue."""
    max_tokens: Count | None = None
    """Longer messages do not count; 80 leaves out talks about farewells. Absent: any length."""


class GratitudeThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When thanks have become a spiral."""

    count: OfWindow = 5
    """Messages of the last six."""
    per_100_tokens: Annotated[float, Meta(gt=0)] = 3.0
    """Gratitude cues in each of them."""


class MetaThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the conversation is about its own end."""

    count: OfWindow = 4
    """Messages of the last six."""
    per_100_tokens: Annotated[float, Meta(gt=0)] = 2.0
    """Cues about the conversation in each of them, of which one is about ending it."""


class InnerLoopThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a message repeats itself."""

    rep_4: Share = 0.5
    """Share of its 4-grams that are repetitions."""
    min_tokens: Count = 20
    """Shorter messages are not judged by `rep_4`."""
    copies: Annotated[int, Meta(ge=3)] = 3
    """Copies of one phrase in a row at the end of the message."""
    min_span: Count = 9
    """Tokens that those copies make up: three words said thrice, or one word nine times."""


class Thresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the detectors go by. `msgspec.convert(mapping, Thresholds)` checks the ranges and names a wrong key."""

    clear_after: Count = 3
    """Messages without the sign after which a detector lets go."""
    silence_collapse: CollapseThresholds = field(default_factory=CollapseThresholds)
    emoji_collapse: CollapseThresholds = field(default_factory=CollapseThresholds)
    inner_loop: InnerLoopThresholds = field(default_factory=InnerLoopThresholds)
    cycle: CycleThresholds = field(default_factory=CycleThresholds)
    soft_cycle: SoftCycleThresholds = field(default_factory=SoftCycleThresholds)
    farewell_loop: FarewellThresholds = field(default_factory=FarewellThresholds)
    gratitude_spiral: GratitudeThresholds = field(default_factory=GratitudeThresholds)
    meta_loop: MetaThresholds = field(default_factory=MetaThresholds)
    stationary: StationaryThresholds = field(default_factory=StationaryThresholds)
    length_collapse: LengthThresholds = field(default_factory=LengthThresholds)
    exact_recurrence: ExactRecurrenceThresholds = field(default_factory=ExactRecurrenceThresholds)
    novelty_collapse: NoveltyThresholds = field(default_factory=NoveltyThresholds)
    compression_collapse: CompressionThresholds = field(default_factory=CompressionThresholds)


# What is said about a message


class Firing(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A detector has become active."""

    detector: str
    message_index: int
    value: float
    threshold: float
    """What `value` had to reach; for the two that smooth, what it had to fall below."""
    onset: int
    """Index of the first message that belongs to what was found."""
    period: int | None = None
    """For recurrences and cycles: how many messages back the same was said. For inner loops: tokens of the phrase."""


class Signals(Struct, kw_only=True, omit_defaults=True):
    """What the detectors measured at one message. Absent: not computable."""

    exact_repeat_lag: int | None = None
    """Messages since the same normalised text."""
    max_jaccard3_lag12: float | None = None
    """The greatest trigram Jaccard with one of the last twelve messages."""
    best_lag: int | None = None
    """The lag of that maximum; the smallest of equals."""
    cycle_period: int | None = None
    """Smallest lag with a full run of repetitions."""
    cycle_run: int | None = None
    """Length of that run, messages."""
    soft_cycle_period: int | None = None
    """Smallest lag with a full run of near-repetitions."""
    novelty_4gram: float | None = None
    """Share of 4-grams never seen in an earlier message. Under four tokens: 1 for a new text, else 0."""
    novelty_ewma: float | None = None
    """Moving average of `novelty_4gram`."""
    cond_bits_per_byte: float | None = None
    """Deflated bits per byte with the last 32,000 bytes of the conversation as dictionary."""
    compression_ewma: float | None = None
    """Moving average of `cond_bits_per_byte`, relative to the first messages."""
    stationarity: float | None = None
    """How far the speaker's last five vectors have gone from their early similarity to identity, which is 1."""
    nonverbal_share_w6: float = 0.0
    """Share of the last six messages that are emoji only, empty or punctuation only."""
    farewell_share_w6: float | None = None
    """Share of the last six messages with a farewell cue; of those whose language has a word list."""
    gratitude_share_w6: float | None = None
    """Share of the last six messages dense with thanks."""
    meta_share_w6: float | None = None
    """Share of the last six messages about the conversation and its end."""
    rep_4: float | None = None
    """Share of the message's 4-grams that are repetitions."""
    tandem_repeat_period: int | None = None
    """Tokens of the phrase that the message ends in, said three times or more."""
    tandem_repeat_count: int | None = None
    """How often it is said in a row."""


class Step(Struct, frozen=True, kw_only=True):
    """What the detectors say at one message."""

    message_index: int
    agent_id: str
    state: str
    """The fused state: one of `STATES`."""
    period: int | None
    """Of a `cycle` or `near_cycle`, messages."""
    onset: int | None
    """Message index at which the state began, as far as it can be dated; absent in `normal`."""
    age: int | None
    """Messages since the onset."""
    active: tuple[str, ...]
    """Detectors that are active, in the order of `DETECTORS`."""
    fired: tuple[Firing, ...]
    """Detectors that became active at this message."""
    signals: Signals


# What is read from a message, once


class Read(Protocol):
    """What detectors need to know of a text. Metrics read a message far more closely; theirs serves as well."""

    @property
    def tokens(self) -> Sequence[str]:
        """Of the whole text, code included."""

    @property
    def words(self) -> Sequence[str]:
        """Tokens outside code, what cue rates refer to."""

    @property
    def normalised(self) -> str:
        """The text as `tokens.normalise` gives it."""

    @property
    def message_class(self) -> MessageClass:
        """Judged on the whole text: code is not silence."""

    @property
    def has_lexicon(self) -> bool:
        """Whether the word lists are for the script of the message."""

    @property
    def cues(self) -> Mapping[str, int]:
        """How often farewell, gratitude, meta_conversation and ending_questions occur outside code."""


class _Glance(NamedTuple):
    """A reading that has no more than `Read` asks for."""

    tokens: list[str]
    words: list[str]
    normalised: str
    message_class: MessageClass
    has_lexicon: bool
    cues: Mapping[str, int]


# A hurried look: what it lets pass has no letter but Latin ones. The micro sign and most letterlike symbols are none.
_BEYOND_LATIN = re.compile("[^\x00-\xb4\xb6-\u02b8\u1e00-\u1eff\u2000-\u20ff\u2190-\u2bff\ufe0f]")
_CUES = ("farewell", "gratitude", "meta_conversation", "ending_questions")


@lru_cache(maxsize=1)
def _lexicon() -> Lexicon:
    return Lexicon({name: word_list(f"en/{name}") for name in _CUES}, LEXICON_VERSION)


def _is_latin(text: str) -> bool:
    if text.isascii() or _BEYOND_LATIN.search(text) is None:
        return True
    letters = {char: times for char, times in Counter(text).items() if char.isalpha()}
    foreign = sum(times for char, times in letters.items() if char_script(char) != "Latin")
    return foreign <= 0.2 * sum(letters.values())


def read(text: str) -> Read:
    """Cut a text up for the detectors. Takes any string, lone surrogates included."""
    text = clean(text)
    tokens = tokenize(text)
    prose = split_code(text).prose if "`" in text or "~~~" in text else text
    words = tokens if prose is text else tokenize(prose)
    has_lexicon = _is_latin(prose)
    return _Glance(
        tokens=tokens,
        words=words,
        normalised=normalise(text),
        message_class=classify(text, len(tokens), 0 if tokens else len(emoji_in(text))),
        has_lexicon=has_lexicon,
        cues=_lexicon().cue_counts(words, Counter(words)) if has_lexicon else {},
    )


def lexical_hash(tokens: Sequence[str]) -> Floats:
    """Words and bigrams hashed with signs into a vector of 512: the stand-in for an embedding, unit length or zero."""
    words = _encoded(tokens)
    vector = _hashed(words, list(map(zlib.crc32, words)))
    return np.zeros(HASH_DIMENSIONS) if vector is None else vector


def _encoded(tokens: Sequence[str]) -> list[bytes]:
    """Each token as UTF-8. No token holds a blank."""
    return " ".join(tokens).encode("utf-8", "replace").split(b" ") if tokens else []


def _hashed(words: Sequence[bytes], codes: Sequence[int]) -> Floats | None:
    if not words:
        return None
    # The CRC of "a b" continues the one of "a".
    bigrams = map(zlib.crc32, words[1:], map(zlib.crc32, repeat(b" "), codes))
    hashes = np.frombuffer(array("I", (*codes, *bigrams)), dtype=np.uint32)
    signs = 1.0 - 2.0 * (hashes >> 31)
    return _unit(np.bincount(hashes % HASH_DIMENSIONS, signs, HASH_DIMENSIONS).astype(np.float64))


def _unit(vector: Floats) -> Floats | None:
    """The direction of a vector; None for a zero vector, which has none."""
    length = float(np.sqrt(vector @ vector))
    return vector / length if length > 0 else None


_FACTOR, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


class _Heard:
    """One message as the detectors see it.

    Words are numbered by their CRC-32 rather than by a vocabulary, which would take more memory than everything else
    that is kept of a conversation. Two words of one number are as rare as one chance repetition in a million.
    """

    __slots__ = (
        *("agent_id", "codes", "coded", "data", "distinct", "four_grams", "index", "reading", "shingles", "vector"),
        "words",
    )

    def __init__(self, index: int, agent_id: str, text: str, reading: Read) -> None:
        self.index = index
        self.agent_id = agent_id
        self.reading = reading
        self.data = text.encode()
        self.words = _encoded(reading.tokens)
        self.codes = array("I", map(zlib.crc32, self.words))
        self.vector: Floats | None = None
        """Unit length; None when the message says nothing."""
        ids = np.array(self.codes, dtype=np.uint64)
        self.coded = (ids % 0x110000).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        """One character per token."""
        two = ids[:-1] * _FACTOR + ids[1:]
        three = two[:-1] * _FACTOR + ids[2:]
        four = three[:-1] * _FACTOR + ids[3:]
        self.shingles: set[int | str]
        if len(ids) >= 6:
            self.shingles = set(three[: COMPARED_TOKENS - 2].tolist())
        else:
            self.shingles = {*self.codes, reading.normalised}
        self.four_grams = np.sort((four * _FACTOR >> _HALF).astype(np.uint32))
        """Hashes of 32 bits, in order. After a million, a new one is taken for an old one once in 4,000 times."""
        self.distinct = int(distinct(self.four_grams).sum())
        """How many of them differ."""


# Detectors


class Detector:
    """One rule with its memory. `sign` looks at a message; the rest is the same for all.

    `sign` gives whether the rule holds at the message, or None when the message says nothing about it; when it
    holds, `value`, `threshold`, `onset` and `period` tell what was found.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    """The number in the catalogue."""
    state: ClassVar[str | None] = None
    """What the conversation is said to be in; None for those that only fire."""

    def __init__(self, clear_after: int) -> None:
        self._clear_after = clear_after
        self._clear = 0
        self.active = False
        self.value = 0.0
        self.threshold = 0.0
        self.onset = 0
        self.period: int | None = None
        self.since = 0
        """The onset that was given when it fired."""

    def sign(self, heard: _Heard, signals: Signals) -> bool | None:
        raise NotImplementedError

    def let_go(self) -> None:
        """Called when the detector is no longer active."""

    def step(self, heard: _Heard, signals: Signals) -> Firing | None:
        """Take a message. Gives a firing when this message makes the detector active."""
        holds = self.sign(heard, signals)
        if holds is None:
            return None
        if holds:
            self._clear = 0
            if self.active:
                return None
            self.active = True
            self.since = self.onset
            return Firing(
                detector=self.name,
                message_index=heard.index,
                value=self.value,
                threshold=self.threshold,
                onset=self.onset,
                period=self.period,
            )
        if self.active:
            self._clear += 1
            if self._clear >= self._clear_after:
                self.active = False
                self._clear = 0
                self.let_go()
        return None


class ExactRecurrence(Detector):
    """A text that was said before, by anyone: equal after NFKC, case folding and collapsed white space."""

    name = "exact_recurrence"
    label = "D1"

    def __init__(self, thresholds: ExactRecurrenceThresholds, clear_after: int) -> None:
        super().__init__(clear_after)
        self.threshold = float(thresholds.repeats)
        self._said: dict[bytes, tuple[int, int]] = {}

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        key = hashlib.blake2b(heard.reading.normalised.encode("utf-8", "replace"), digest_size=16).digest()
        times, last = self._said.get(key, (0, 0))
        self._said[key] = (times + 1, heard.index)
        if not times:
            return False
        signals.exact_repeat_lag = self.period = heard.index - last
        self.value, self.onset = float(times), heard.index
        return times >= self.threshold


class _Lagged(Detector):
    """A similarity with the messages 1 to 12 before, and for each lag the run of those that reach the threshold."""

    def __init__(self, thresholds: CycleThresholds | SoftCycleThresholds, clear_after: int) -> None:
        super().__init__(clear_after)
        self.threshold = thresholds.similarity
        self._min_run = thresholds.run
        self._runs = [0] * (LAGS + 1)

    def _longest(self, index: int, similarities: Sequence[float]) -> int:
        """Count on with the similarities at lags 1, 2, …; gives the smallest lag with a full run, or 0."""
        runs, found = self._runs, 0
        for lag, similarity in enumerate(similarities, 1):
            if similarity >= self.threshold:
                runs[lag] += 1
                if not found and runs[lag] >= max(lag, self._min_run):
                    found = lag
            else:
                runs[lag] = 0
        if found:
            self.value, self.period = similarities[found - 1], found
            # The first of the messages that were repeated belongs to the loop, so the run is dated back by its lag.
            self.onset = index - runs[found] + 1 - found
        return found


class Cycle(_Lagged):
    """Verbatim or nearly verbatim repetition with a period of 1 to 12 messages, whoever speaks.

    Period 1 is mutual echo; with two agents, 2 is each of them repeating itself. Trigram Jaccard; messages under six
    tokens are compared by their words and the whole normalised text.
    """

    name = "cycle"
    label = "D2"
    state = "cycle"

    def __init__(self, thresholds: CycleThresholds, clear_after: int) -> None:
        super().__init__(thresholds, clear_after)
        self._last: deque[frozenset[int | str]] = deque(maxlen=LAGS)

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        own, similarities = heard.shingles, []
        size = len(own)
        for other in self._last:
            shared = len(own & other)
            similarities.append(shared / (size + len(other) - shared))
        # The copy takes half the room of the set as it grew.
        self._last.appendleft(frozenset(own))
        if not similarities:
            return False
        best = max(similarities)
        signals.max_jaccard3_lag12 = best
        signals.best_lag = similarities.index(best) + 1
        found = self._longest(heard.index, similarities)
        if found:
            signals.cycle_period, signals.cycle_run = found, self._runs[found]
        return found > 0


class SoftCycle(_Lagged):
    """Repetition with words replaced, with a period of 1 to 12 messages: token Indel similarity.

    It does not see a paraphrase that shares no words.
    """

    name = "soft_cycle"
    label = "D3"
    state = "near_cycle"

    def __init__(self, thresholds: SoftCycleThresholds, clear_after: int) -> None:
        super().__init__(thresholds, clear_after)
        self._last: deque[tuple[str, str]] = deque(maxlen=LAGS)

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        own, text = heard.coded[:COMPARED_TOKENS], heard.reading.normalised
        # Without a word on either side edit similarity is 1 by definition; only equal texts are then a repetition.
        similarities = [
            Indel.normalized_similarity(own, other, score_cutoff=self.threshold)
            if own or other
            else float(text == other_text)
            for other, other_text in self._last
        ]
        self._last.appendleft((own, "" if own else text))
        found = self._longest(heard.index, similarities)
        if found:
            signals.soft_cycle_period = found
        return found > 0


class _Smoothed(Detector):
    """A moving average that falls below a threshold and stays there for some messages.

    It is dated by the minimum of the cumulative sum of (threshold - value): the last message up to which there was no
    evidence of a fall.
    """

    def __init__(self, below: float, alpha: float, run: int, clear_after: int) -> None:
        super().__init__(clear_after)
        self.threshold = below
        self._alpha = alpha
        self._needed = run
        self._run = 0
        self._evidence = 0.0
        self.average: float | None = None

    def _smooth(self, value: float) -> float:
        self.average = value if self.average is None else self._alpha * value + (1 - self._alpha) * self.average
        return self.average

    def _falls(self, index: int, value: float, average: float) -> bool:
        if self._evidence <= 0:
            self.onset = index
        self._evidence = max(0.0, self._evidence + self.threshold - value)
        self.value = average
        self._run = self._run + 1 if average < self.threshold else 0
        return self._run >= self._needed

    def let_go(self) -> None:
        self._evidence = 0.0


class NoveltyCollapse(_Smoothed):
    """Hardly a 4-gram that was not used before in the conversation. Says nothing about new ideas in old words."""

    name = "novelty_collapse"
    label = "D4"

    def __init__(self, thresholds: NoveltyThresholds, clear_after: int) -> None:
        super().__init__(thresholds.below, thresholds.alpha, thresholds.run, clear_after)
        self._seen = GramSet(np.uint32)

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        if size := len(heard.four_grams):
            novelty = self._seen.add(heard.four_grams) / size
        else:
            novelty = float(signals.exact_repeat_lag is None)
        signals.novelty_4gram = novelty
        signals.novelty_ewma = self._smooth(novelty)
        return self._falls(heard.index, novelty, signals.novelty_ewma)


class CompressionCollapse(_Smoothed):
    """A message can be written as references to the last 32,000 bytes of the conversation."""

    name = "compression_collapse"
    label = "D5"

    def __init__(self, thresholds: CompressionThresholds, clear_after: int) -> None:
        super().__init__(thresholds.below, thresholds.alpha, thresholds.run, clear_after)
        self._min_bytes = thresholds.min_bytes
        self._first = thresholds.baseline
        self._early: list[float] = []
        self._baseline: float | None = None
        self._history = b""

    def sign(self, heard: _Heard, signals: Signals) -> bool | None:
        data = heard.data
        bits = None
        if len(data) >= min(self._min_bytes, LEAST_BYTES):
            bits = 8 * deflate_bytes(data, self._history) / len(data)
        self._history = b"\n".join((self._history, data))[-DICTIONARY_BYTES:]
        if bits is not None and len(data) >= LEAST_BYTES:
            signals.cond_bits_per_byte = bits
        if bits is None or len(data) < self._min_bytes:
            return None
        average = self._smooth(bits)
        if self._baseline is None:
            self._early.append(bits)
            if len(self._early) == self._first:
                self._baseline = statistics.median(self._early)
            return False
        signals.compression_ewma = average / self._baseline
        return self._falls(heard.index, bits / self._baseline, signals.compression_ewma)


class Stationary(Detector):
    """A speaker's last five messages are much more alike than the speaker's first ones were.

    Judged on vectors of hashed words and bigrams, whatever embedding model was chosen, so that a live run and a later
    import agree; a program of your own may hand in embeddings instead. Mild contraction is left alone on purpose. A
    talk that never moved is not found: there is nothing to compare with.
    """

    name = "stationary"
    label = "D6"
    state = "stationary"

    def __init__(self, thresholds: StationaryThresholds, clear_after: int) -> None:
        super().__init__(clear_after)
        self._limits = thresholds
        self._windows: dict[str, deque[tuple[int, NDArray[np.float32]]]] = {}
        self._sums: dict[str, Floats] = {}
        self._early: dict[str, list[float]] = {}
        self._runs: dict[str, int] = {}
        self._begun: dict[str, int] = {}
        self._run = 0
        self._confirmed: set[str] = set()

    def sign(self, heard: _Heard, signals: Signals) -> bool | None:
        who = heard.agent_id
        if heard.vector is None:
            return None
        # Half the memory. The sum is kept in full precision, so what leaves it is exactly what entered.
        vector = heard.vector.astype(np.float32)
        window = self._windows.setdefault(who, deque(maxlen=SPEAKER_WINDOW))
        full = len(window) == SPEAKER_WINDOW
        before = self._sums.get(who)
        self._sums[who] = total = vector.astype(np.float64) if before is None else before + vector
        if full:
            total -= window[0][1]
        window.append((heard.index, vector))
        size = SPEAKER_WINDOW
        if len(window) < size:
            return None
        similarity = (float(total @ total) - size) / (size * (size - 1))
        early = self._early.setdefault(who, [])
        if len(early) < self._limits.early:
            early.append(similarity)
            return None
        usual = statistics.median(early)
        threshold = max(self._limits.at_least, usual + self._limits.gap * (1 - usual))
        signals.stationarity = min(1.0, (similarity - usual) / (1 - usual)) if usual < 1 - 1e-6 else None
        if similarity < threshold or usual >= 1 - 1e-6:
            self._run = self._runs[who] = 0
            self._confirmed.discard(who)
            return bool(self._confirmed)
        self.value, self.threshold = similarity, threshold
        self._run += 1
        self._runs[who] = self._runs.get(who, 0) + 1
        if self._runs[who] == 1:
            alike = (index for index, other in window if float(vector @ other) >= threshold)
            self._begun[who] = next(alike, heard.index)
        if self._runs[who] >= self._limits.run:
            self._confirmed.add(who)
        self.onset = min(self._begun[name] for name, run in self._runs.items() if run)
        return self._run >= self._limits.run or bool(self._confirmed)


class _Windowed(Detector):
    """So many of the last six messages are of a kind."""

    def __init__(self, count: int, clear_after: int) -> None:
        super().__init__(clear_after)
        self.threshold = float(count)
        self._last: deque[tuple[int, str]] = deque(maxlen=WINDOW)
        """Index and speaker of the messages of the kind; an empty speaker for the others."""

    def _enough(self, heard: _Heard, *, kind: bool) -> bool:
        self._last.append((heard.index, heard.agent_id if kind else ""))
        self.value = float(sum(1 for _, who in self._last if who))
        if self.value < self.threshold:
            return False
        self.onset = next(index for index, who in self._last if who)
        return True


class EmojiCollapse(_Windowed):
    """Messages of nothing but emoji."""

    name = "emoji_collapse"
    label = "D7"
    state = "emoji_collapse"

    def __init__(self, thresholds: CollapseThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        holds = self._enough(heard, kind=heard.reading.message_class is MessageClass.EMOJI_ONLY)
        signals.nonverbal_share_w6 += self.value / len(self._last)
        return holds


class SilenceCollapse(_Windowed):
    """Messages that are empty or nothing but punctuation."""

    name = "silence_collapse"
    label = "D7"
    state = "silence"

    def __init__(self, thresholds: CollapseThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        kind = heard.reading.message_class
        holds = self._enough(heard, kind=kind is MessageClass.EMPTY or kind is MessageClass.PUNCT_ONLY)
        signals.nonverbal_share_w6 += self.value / len(self._last)
        return holds


class LengthCollapse(_Windowed):
    """Messages of at most five tokens, emoji and silence included."""

    name = "length_collapse"
    label = "D8"
    state = "length_collapse"

    def __init__(self, thresholds: LengthThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)

    def sign(self, heard: _Heard, signals: Signals) -> bool:  # noqa: ARG002
        return self._enough(heard, kind=heard.reading.message_class is not MessageClass.NORMAL)


class _Ritual(_Windowed):
    """Messages with cues of a word list. Those in a script without one do not count."""

    def __init__(self, count: int, clear_after: int) -> None:
        super().__init__(count, clear_after)
        self._readable: deque[bool] = deque(maxlen=WINDOW)

    def _share(self, heard: _Heard, *, kind: bool) -> tuple[bool, float | None]:
        self._readable.append(heard.reading.has_lexicon)
        holds = self._enough(heard, kind=kind)
        readable = sum(self._readable)
        return holds, self.value / readable if readable else None


class FarewellLoop(_Ritual):
    """Goodbyes, by two speakers or more."""

    name = "farewell_loop"
    label = "D9"
    state = "farewell_loop"

    def __init__(self, thresholds: FarewellThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)
        self._max_tokens = thresholds.max_tokens

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        reading = heard.reading
        short = self._max_tokens is None or len(reading.words) <= self._max_tokens
        kind = short and reading.cues.get("farewell", 0) > 0
        holds, signals.farewell_share_w6 = self._share(heard, kind=kind)
        return holds and len({who for _, who in self._last if who}) > 1


class GratitudeSpiral(_Ritual):
    """Messages dense with thanks."""

    name = "gratitude_spiral"
    label = "D10"
    state = "gratitude_spiral"

    def __init__(self, thresholds: GratitudeThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)
        self._rate = thresholds.per_100_tokens

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        holds, signals.gratitude_share_w6 = self._share(heard, kind=_rate(heard, "gratitude") >= self._rate)
        return holds


class MetaLoop(_Ritual):
    """Talk about the conversation itself that asks about ending it or quotes last words. It may stay inventive."""

    name = "meta_loop"
    label = "D11"
    state = "meta_loop"

    def __init__(self, thresholds: MetaThresholds, clear_after: int) -> None:
        super().__init__(thresholds.count, clear_after)
        self._rate = thresholds.per_100_tokens

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        kind = _rate(heard, "meta_conversation") >= self._rate and _rate(heard, "ending_questions") > 0
        holds, signals.meta_share_w6 = self._share(heard, kind=kind)
        return holds


def _rate(heard: _Heard, cue: str) -> float:
    """Cues per 100 tokens outside code."""
    reading = heard.reading
    return 100 * reading.cues.get(cue, 0) / len(reading.words) if reading.words else 0.0


class InnerLoop(Detector):
    """One message repeats itself: half of its 4-grams, or one phrase again and again at its end."""

    name = "inner_loop"
    label = "D12"
    state = "inner_loop"

    def __init__(self, thresholds: InnerLoopThresholds, clear_after: int) -> None:
        super().__init__(clear_after)
        self._limits = thresholds

    def sign(self, heard: _Heard, signals: Signals) -> bool:
        limits, repeated = self._limits, 0.0
        self.period, self.onset = None, heard.index
        if size := len(heard.four_grams):
            signals.rep_4 = repeated = 1 - heard.distinct / size
        phrase, copies = _tandem(heard.coded)
        if copies:
            signals.tandem_repeat_period, signals.tandem_repeat_count = phrase, copies
        if copies >= limits.copies and copies * phrase >= limits.min_span:
            self.value, self.threshold, self.period = float(copies), float(limits.copies), phrase
            return True
        self.value, self.threshold = repeated, limits.rep_4
        return len(heard.reading.tokens) >= limits.min_tokens and repeated >= limits.rep_4


def _tandem(coded: str) -> tuple[int, int]:
    """The smallest phrase the text ends in three times or more, and how often: (tokens, copies) or (0, 0)."""
    size = len(coded)
    for phrase in range(1, min(LONGEST_TANDEM, size // 3) + 1):
        if coded[-1] != coded[-1 - phrase]:
            continue
        last = coded[-phrase:]
        if coded.endswith(last * 3):
            copies = 3
            while coded.endswith(last, 0, size - copies * phrase):
                copies += 1
            return phrase, copies
    return 0, 0


DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector
    for detector in (
        SilenceCollapse,
        EmojiCollapse,
        InnerLoop,
        Cycle,
        SoftCycle,
        FarewellLoop,
        GratitudeSpiral,
        MetaLoop,
        Stationary,
        LengthCollapse,
        ExactRecurrence,
        NoveltyCollapse,
        CompressionCollapse,
    )
}
"""Every detector by its name. The first active one that has a state gives the state of the conversation."""

ECHO = "echo"
STATES = (NORMAL, ECHO, *(detector.state for detector in DETECTORS.values() if detector.state))
"""Every fused state. `echo` is a cycle of period 1."""


class Detectors:
    """All detectors over one conversation, one message at a time.

    Args:
        agents: ids of those who speak, any number.
        thresholds: what the detectors go by.
        embedded: each message comes with its embedding, all of one model; those without one say nothing to
            `stationary`. Otherwise `lexical_hash` of the tokens stands in.
    """

    def __init__(self, agents: Iterable[str], thresholds: Thresholds | None = None, *, embedded: bool = False) -> None:
        limits = thresholds or Thresholds()
        self.agents = tuple(agents)
        self.thresholds = limits
        self._detectors = [
            kind(getattr(limits, name), limits.clear_after)  # type: ignore[call-arg]
            for name, kind in DETECTORS.items()
        ]
        # Novelty of a short message asks whether its text is new.
        self._order = sorted(self._detectors, key=lambda detector: detector.name != ExactRecurrence.name)
        self._embedded = embedded
        self._count = 0

    def add(
        self,
        agent_id: str,
        text: str,
        reading: Read | None = None,
        vector: Sequence[float] | Floats | None = None,
    ) -> Step:
        """Take the next message. Costs the same at any point of the conversation.

        Args:
            agent_id: who said it.
            text: what was said, any string.
            reading: what is known of the text already, such as the metrics' reading; `read(text)` when absent.
            vector: its embedding, in a conversation that is `embedded`.

        Raises:
            ValueError: the agent is not one of the conversation, or a vector comes where none is expected.
        """
        if agent_id not in self.agents:
            raise ValueError(f"no agent {agent_id!r} in this conversation, there are: {', '.join(self.agents)}")
        if vector is not None and not self._embedded:
            raise ValueError("an embedding for detectors that were not made for embeddings")
        text = clean(text)
        heard = _Heard(self._count, agent_id, text, read(text) if reading is None else reading)
        if not self._embedded:
            heard.vector = _hashed(heard.words, heard.codes)
        elif vector is not None:
            heard.vector = _unit(np.asarray(vector, dtype=np.float64))
        signals = Signals()
        fired = {
            detector.name: firing for detector in self._order if (firing := detector.step(heard, signals)) is not None
        }
        self._count += 1
        active = [detector for detector in self._detectors if detector.active]
        leading = next((detector for detector in active if detector.state), None)
        state, period, onset = NORMAL, None, None
        if leading is not None and leading.state is not None:
            onset = leading.since
            state = leading.state
            if isinstance(leading, _Lagged):
                period = leading.period
                if state == Cycle.state and period == 1:
                    state = ECHO
        return Step(
            message_index=heard.index,
            agent_id=agent_id,
            state=state,
            period=period,
            onset=onset,
            age=None if onset is None else heard.index - onset,
            active=tuple(detector.name for detector in active),
            fired=tuple(fired[name] for name in DETECTORS if name in fired) if fired else (),
            signals=signals,
        )


def detect(messages: Iterable[tuple[str, str]], thresholds: Thresholds | None = None) -> list[Step]:
    """The steps of a whole conversation, given as (agent id, text): the same as adding them one by one."""
    said = list(messages)
    detectors = Detectors(dict.fromkeys(agent_id for agent_id, _ in said), thresholds)
    return [detectors.add(agent_id, text) for agent_id, text in said]


# What is to be done

Action = Literal["record", "mark", "pause", "stop", "intervene"]

ACTIONS: dict[Action, str] = {
    "record": "An event in the record, and nothing else.",
    "mark": "The conversation is marked as well.",
    "pause": "The conversation pauses.",
    "stop": "The conversation ends with the end reason `detector`.",
    "intervene": "The text that the spec gives is put in.",
}
"""What each action means."""


class Response(Struct, frozen=True, kw_only=True):
    """What is to be done about the firings of one message."""

    actions: tuple[tuple[Firing, Action], ...]
    """Each firing with what is done because of it, as it is recorded."""
    mark: tuple[Firing, ...] = ()
    intervene: tuple[Firing, ...] = ()
    pause: Firing | None = None
    stop: Firing | None = None


def respond(firings: Sequence[Firing], policy: Mapping[str, Action]) -> Response:
    """What a policy asks for. Detectors it does not name are recorded.

    The first firing that stops or pauses is the reason. A conversation that stops neither pauses nor is talked to,
    so those firings are recorded and no more; otherwise everything asked for is done.

    Args:
        firings: of one message.
        policy: the action of each detector by its name.
    """
    asked: list[tuple[Firing, Action]] = [(firing, policy.get(firing.detector, "record")) for firing in firings]
    stop = next((firing for firing, action in asked if action == "stop"), None)
    if stop is not None:
        asked = [(firing, "record" if action in ("pause", "intervene") else action) for firing, action in asked]
    return Response(
        actions=tuple(asked),
        mark=tuple(firing for firing, action in asked if action == "mark"),
        intervene=tuple(firing for firing, action in asked if action == "intervene"),
        pause=next((firing for firing, action in asked if action == "pause"), None),
        stop=stop,
    )
