"""The engine: every metric of a message as soon as it is said, in work that does not grow with the conversation.

Live use and import feed the same messages to the same code, so they give the same numbers. What was said about a
message never changes when others follow. Per agent and for the conversation it keeps counters by type, sets of n-gram
hashes, and one or two messages; memory grows with distinct words and n-grams and by some bytes for each message.
"""

import math
import statistics
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pidgin_cli.core.types import FinishReason, Timing, Usage

from . import formulas as f
from .catalogue import METRICS, PLUGINS, RATES, Measure, Value
from .convergence import BALANCED, Weights, convergence
from .detectors import Detectors, Step, Thresholds
from .lexicon import LSM_CATEGORIES, Lexicon, english
from .pairs import against_partner, parts, token_indel, trigram_jaccard
from .reading import SEQUENCE_LIMIT, GramSet, Reading, Vocabulary, distinct, grams
from .tokens import tokenize

__all__ = ["Engine", "Reply", "Summary", "measure", "wide"]

Ids = NDArray[np.int64]

REPLIES = 10
"""Replies that `length_corr_w10` looks at."""
LEAST_PROMPTS = 5
"""Prompts with and without a category that coordination needs."""


class Reply(NamedTuple):
    """What the provider says about a message. Whatever is left out makes the metrics of it NULL."""

    usage: Usage = Usage()
    timing: Timing = Timing()
    finish_reason: FinishReason | None = None
    cost_usd: float | None = None
    attempt: int | None = None
    context_limit: int | None = None
    """Tokens that fit into the model's context."""
    logprobs: Sequence[float] = ()
    """Natural log-probability of each output token."""
    alternatives: Sequence[Sequence[float]] = ()
    """For each output token the log-probabilities of the alternatives returned."""


class Summary(NamedTuple):
    """A value of the whole conversation."""

    name: str
    value: Value
    agent_id: str | None = None
    """Whose value it is; of a pair the first, of a direction the one who is copied."""
    other_id: str | None = None
    """Of a pair the second, of a direction the one who copies."""


def wide(summaries: Iterable[Summary]) -> dict[str, Value]:
    """The same with agents as suffixes: `floor_share_a`, `adoption_rate_ab` (b takes over from a)."""
    return {"_".join([s.name, *(["".join(filter(None, s[2:]))] if s.agent_id else [])]): s.value for s in summaries}


class _Counts:
    """How often each type was used, and what the richness formulas need of that."""

    __slots__ = ("by_type", "spectrum")

    def __init__(self) -> None:
        self.by_type = np.zeros(256, dtype=np.int32)
        self.spectrum = f.Spectrum()

    def add(self, ids: Ids, times: Ids) -> NDArray[np.int32]:
        """Count a message's types; returns how often each was used before."""
        before = self.before(ids)
        now = before + times
        self.by_type[ids] = now
        unused, once, twice, _ = np.bincount(np.minimum(before, 3), minlength=4).tolist()
        _, now_once, now_twice, _ = np.bincount(np.minimum(now, 3), minlength=4).tolist()
        s = self.spectrum
        self.spectrum = f.Spectrum(
            s.n + int(times.sum()),
            s.v + unused,
            s.v1 + now_once - once,
            s.v2 + now_twice - twice,
            s.sum_f2 + int(times @ (now + before)),
        )
        return before

    def before(self, ids: Ids) -> NDArray[np.int32]:
        """How often each of the types was used so far."""
        top = int(ids.max(initial=0))
        if top >= len(self.by_type):
            self.by_type = np.concatenate([self.by_type, np.zeros(max(top, len(self.by_type)), dtype=np.int32)])
        return self.by_type[ids]


class _Stream:
    """Windows and segments of 50 tokens over all that an agent has said."""

    __slots__ = ("_segment", "_segment_size", "_segment_types", "_segments", "_tail", "_types", "_windows")

    SIZE = 50

    def __init__(self) -> None:
        self._tail = np.empty(0, dtype=np.uint64)
        self._types = self._windows = 0
        self._segment: set[int] = set()
        self._segment_size = self._segment_types = self._segments = 0

    def add(self, ids: NDArray[np.uint64]) -> None:
        joined = np.concatenate([self._tail, ids])
        types, windows = f.window_types(joined, self.SIZE)
        self._types += types
        self._windows += windows
        self._tail = joined[-(self.SIZE - 1) :].copy()
        at, numbers = 0, ids.tolist()
        while at < len(numbers):
            part = numbers[at : at + self.SIZE - self._segment_size]
            self._segment.update(part)
            self._segment_size += len(part)
            at += len(part)
            if self._segment_size == self.SIZE:
                self._segment_types += len(self._segment)
                self._segments += 1
                self._segment, self._segment_size = set(), 0

    def mattr(self, spectrum: f.Spectrum) -> float | None:
        return self._types / (self.SIZE * self._windows) if self._windows else f.ttr(spectrum)

    def msttr(self, spectrum: f.Spectrum) -> float | None:
        return self._segment_types / (self.SIZE * self._segments) if self._segments else f.ttr(spectrum)


class _Speaker:
    """What is kept of one agent."""

    def __init__(self, agent_id: str, name: str | None) -> None:
        self.agent_id = agent_id
        self.name = tuple(tokenize(name)) if name else ()
        self.counts = _Counts()
        self.stream = _Stream()
        self.four_grams = GramSet()
        self.texts: set[bytes] = set()
        self.last: Reading | None = None
        self.classes = [0] * len(LSM_CATEGORIES)
        self.class_tokens = 0
        self.tokens = 0
        self.lengths = array("I")
        self.replies: deque[tuple[float, float]] = deque(maxlen=REPLIES)
        self.introduced = 0


class _Direction:
    """What is kept about one agent's replies to another."""

    def __init__(self) -> None:
        self.copied = 0.0
        self.replies = 0
        self.latencies: Counter[int] = Counter()
        self.with_prompt = [[0, 0] for _ in LSM_CATEGORIES]
        """For each category: prompts that had it, and replies to those that had it."""
        self.without_prompt = [[0, 0] for _ in LSM_CATEGORIES]


class _Regression:
    """Least squares of ln V(n) on ln n, a message at a time."""

    def __init__(self) -> None:
        self.n = 0
        self._x = self._y = self._xx = self._xy = 0.0

    def add(self, types: NDArray[np.int64]) -> None:
        """`types`: how many there are after each token of a message."""
        x = np.log(np.arange(self.n + 1, self.n + len(types) + 1))
        y = np.log(types)
        self.n += len(types)
        self._x += float(x.sum())
        self._y += float(y.sum())
        self._xx += float(x @ x)
        self._xy += float(x @ y)

    def slope(self) -> float | None:
        spread = self.n * self._xx - self._x * self._x
        return (self.n * self._xy - self._x * self._y) / spread if self.n >= 200 and spread else None


class Engine:
    """All live metrics over one conversation, one message at a time.

    Args:
        agents: ids of those who speak, or display names by id (None: no name), which `partner_address` looks for.
        opening: the prompt that started the conversation; its words are nobody's.
        lexicon: word lists of the language; None makes what depends on them NULL.
        weights: of the parts of `convergence`.
        thresholds: what the attractor detectors go by.
        embedded: every message comes with an embedding, which the `stationary` detector then goes by.
    """

    def __init__(
        self,
        agents: Iterable[str] | Mapping[str, str | None],
        *,
        opening: str = "",
        lexicon: Lexicon | str | None = "english",
        weights: Weights = BALANCED,
        thresholds: Thresholds | None = None,
        embedded: bool = False,
    ) -> None:
        names = dict(agents) if isinstance(agents, Mapping) else dict.fromkeys(agents)
        self._lexicon = english() if isinstance(lexicon, str) else lexicon
        self._weights = weights
        self._vocabulary = Vocabulary()
        function_words = sorted(self._lexicon.function_words) if self._lexicon is not None else []
        self._function_words = max([self._vocabulary[word] for word in function_words], default=0)
        self._first = array("h", [_OPENING]) * 1
        """Who brought each type in, as the number of the speaker."""
        self._first_at = array("i", [0])
        opened = {self._vocabulary[word] for word in tokenize(opening)}
        self._grow(len(self._vocabulary), _NOBODY)
        for number in opened:
            self._first[number] = _OPENING
        self._speakers = {agent_id: _Speaker(agent_id, name) for agent_id, name in names.items()}
        self._numbers = {agent_id: number for number, agent_id in enumerate(names)}
        self._named = any(speaker.name for speaker in self._speakers.values())
        self._directions = {pair: _Direction() for pair in permutations(names, 2)}
        self._shared_types = dict.fromkeys((frozenset(pair) for pair in combinations(names, 2)), 0)
        self._history = _Counts()
        self._heaps = _Regression()
        self._five_grams = GramSet()
        self._detectors = Detectors(names, thresholds, embedded=embedded)
        self._heard_bytes = False
        self._plugins: dict[str, Measure] = {name: plugin.measure() for name, plugin in PLUGINS.items()}
        self.faults: dict[str, str] = {}
        """What went wrong in a metric that a package brought, by its name. Its values are NULL from there on."""
        self.step: Step | None = None
        """What the attractor detectors said at the last message."""
        self.last: Reading | None = None
        """The last message."""
        self.count = 0
        """Messages so far."""

    def add(
        self,
        agent_id: str,
        text: str,
        *,
        reply: Reply | None = None,
        vector: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> dict[str, Value]:
        """Take the next message in.

        Args:
            agent_id: who said it.
            text: what was said, any string.
            reply: what the provider said about it.
            vector: its embedding, in a conversation that is `embedded`.

        Returns:
            Every live metric of level M, P and W by its name, in the order of `METRICS`.

        Raises:
            ValueError: the agent is not one of the conversation, or a vector comes where none is expected.
        """
        if agent_id not in self._speakers:
            raise ValueError(f"no agent {agent_id!r} in this conversation, there are: {', '.join(self._speakers)}")
        speaker = self._speakers[agent_id]
        now = Reading(text, agent_id, self.count, self._vocabulary, self._lexicon)
        self._grow(len(self._vocabulary), _NOBODY)
        partner = self._partner(speaker)
        values: dict[str, Value] = {}
        values |= _size(now)
        values |= _richness(now)
        values |= _information(now)
        values |= _markers(now)
        values |= _symbols(now)
        values |= _of_reply(reply)
        values |= self._vocabulary_metrics(now, speaker)
        values |= self._repetition(now, speaker)
        values |= self._detected(now, vector)
        values |= against_partner(now, partner.last if partner else None, self._weights)
        values |= self._kept_of_pair(now, speaker, partner, values)
        values["partner_address"] = self._addresses(now, agent_id)
        for name, measure_it in self._plugins.items():
            values[name] = self._of_plugin(name, measure_it, now, partner.last if partner else None)
        speaker.last = self.last = now
        speaker.lengths.append(len(now.tokens))
        speaker.tokens += len(now.tokens)
        speaker.classes = [total + more for total, more in zip(speaker.classes, now.class_counts, strict=True)]
        speaker.class_tokens += len(now.words) if now.has_lexicon else 0
        self.count += 1
        return {name: values[name] for name in METRICS if name in values}

    def turn_convergence(self) -> dict[tuple[str, str], float | None]:
        """`convergence` of the last messages of every two agents who have both spoken."""
        spoken = [speaker for speaker in self._speakers.values() if speaker.last is not None]
        return {
            (one.agent_id, two.agent_id): convergence(parts(one.last, two.last), self._weights)
            for one, two in combinations(spoken, 2)
            if one.last is not None and two.last is not None
        }

    def conversation(self) -> list[Summary]:
        """The values of the conversation as it stands: those that `METRICS` marks as computed at the end."""
        found = [Summary("heaps_beta", self._heaps.slope())]
        total = sum(speaker.tokens for speaker in self._speakers.values())
        for agent_id, speaker in self._speakers.items():
            logs = np.log1p(speaker.lengths).tolist()
            found += [
                Summary("floor_share", speaker.tokens / total if total else None, agent_id),
                Summary("length_trend", f.theil_sen(logs, 8), agent_id),
                Summary("half_length_turn", _half_length(speaker.lengths), agent_id),
            ]
        for one, two in combinations(self._speakers.values(), 2):
            pair = (one.agent_id, two.agent_id)
            there, back = self._directions[pair], self._directions[pair[::-1]]
            pulled = (
                there.copied / there.replies - back.copied / back.replies if there.replies and back.replies else None
            )
            found += [
                Summary("lsm_cum", _lsm_of_totals(one, two), *pair),
                Summary("pull_asymmetry", pulled, *pair),
            ]
        for (source, copier), direction in self._directions.items():
            introduced = self._speakers[source].introduced
            latencies = direction.latencies
            found += [
                Summary("adoption_rate", latencies.total() / introduced if introduced else None, source, copier),
                Summary(
                    "adoption_latency",
                    float(statistics.median(latencies.elements())) if latencies else None,
                    source,
                    copier,
                ),
            ]
            for number, name in enumerate(LSM_CATEGORIES):
                with_it, without = direction.with_prompt[number], direction.without_prompt[number]
                found += [
                    Summary(f"coordination_{name}", _coordination(with_it, without), source, copier),
                    Summary(f"alignment_logodds_{name}", _log_odds(with_it, without), source, copier),
                ]
        return found

    # What each message changes

    def _grow(self, types: int, value: int) -> None:
        more = types + 1 - len(self._first)
        if more > 0:
            self._first.extend([value] * more)
            self._first_at.extend([0] * more)

    def _partner(self, speaker: _Speaker) -> _Speaker | None:
        """Whoever else spoke last."""
        others = [other for other in self._speakers.values() if other is not speaker and other.last is not None]
        return max(others, key=lambda other: other.last.index if other.last else -1, default=None)

    def _vocabulary_metrics(self, now: Reading, speaker: _Speaker) -> dict[str, Value]:
        ids, times = now.type_ids, now.type_counts
        history = self._history
        surprisal = _surprisal(history, ids, times)
        known_types = history.spectrum.v
        used_before = history.add(ids, times)
        own_before = speaker.counts.add(ids, times)
        speaker.stream.add(now.word_ids)
        new_here = ids[used_before == 0]
        me = self._numbers[speaker.agent_id]
        adopted = 0
        fresh = [number for number in new_here.tolist() if self._first[number] != _OPENING]
        for number in fresh:
            self._first[number] = me
            self._first_at[number] = now.index
            speaker.introduced += number > self._function_words
        order = list(self._speakers)
        for number in ids[(own_before == 0) & (used_before != 0)].tolist():
            source = self._first[number]
            if source >= 0 and source != me and number > self._function_words:
                adopted += 1
                direction = self._directions[order[source], speaker.agent_id]
                direction.latencies[now.index - self._first_at[number]] += 1
        for other in self._speakers.values():
            if other is not speaker:
                newly = ids[own_before == 0]
                both = frozenset((other.agent_id, speaker.agent_id))
                self._shared_types[both] += int(np.count_nonzero(other.counts.before(newly)))
        if now.words:
            self._heaps.add(known_types + _growth(now.word_ids.tolist(), set(new_here.tolist())))
        s = speaker.counts.spectrum
        entropy = f.entropy(now.counts.values())
        cumulated = {
            "cum_ttr": f.ttr(s),
            "cum_root_ttr": f.root_ttr(s),
            "cum_herdan_c": f.herdan_c(s),
            "cum_maas_a2": f.maas_a2(s),
            "cum_mattr_50": speaker.stream.mattr(s),
            "cum_msttr_50": speaker.stream.msttr(s),
            "cum_yule_k": f.yule_k(s),
            "cum_simpson_d": f.simpson_d(s),
            "cum_hapax_ratio": f.hapax_ratio(s),
            "cum_honore_r": f.honore_r(s),
            "cum_sichel_s": f.sichel_s(s),
        }
        return {
            "new_types_self": int(np.count_nonzero(own_before == 0)),
            "new_types_conv": len(fresh),
            "adopted_types": adopted,
            "cum_types": s.v,
            "surprisal_running": surprisal,
            "kl_from_history": max(0.0, surprisal - entropy) if surprisal is not None and entropy is not None else None,
            **cumulated,
        }

    def _repetition(self, now: Reading, speaker: _Speaker) -> dict[str, Value]:
        key = blake2b(now.normalised.encode(), digest_size=8).digest()
        four, five = now.four_grams, grams(now.ids, 5)
        new = speaker.four_grams.add(four)
        novelty = new / len(four) if len(four) else float(key not in speaker.texts)
        speaker.texts.add(key)
        repeated = len(five) - self._five_grams.add(five) if len(five) else None
        return {"novelty_4gram_self": novelty, "repeated_5gram_count": repeated, **_against_self(now, speaker.last)}

    def _detected(self, now: Reading, vector: Sequence[float] | NDArray[np.float64] | None) -> dict[str, Value]:
        self.step = step = self._detectors.add(now.agent_id, now.text, now, vector)
        signals = step.signals
        self._heard_bytes, before = self._heard_bytes or bool(now.data), self._heard_bytes
        bits = signals.cond_bits_per_byte
        gain = None
        if bits is not None and before:
            gain = 1 - bits * len(now.data) / (8 * f.deflate_bytes(now.data))
        return {
            **{name: getattr(signals, name) for name in _SIGNALS},
            "history_gain": gain,
            "state": step.state if step.period is None or step.state == "echo" else f"{step.state}({step.period})",
            "state_onset": step.onset,
            "state_age": step.age,
        }

    def _kept_of_pair(
        self, now: Reading, speaker: _Speaker, partner: _Speaker | None, values: Mapping[str, Value]
    ) -> dict[str, Value]:
        if partner is None or partner.last is None:
            return {"cum_vocab_jaccard": None, "length_corr_w10": None}
        said = partner.last
        shared = self._shared_types[frozenset((speaker.agent_id, partner.agent_id))]
        speaker.replies.append((math.log1p(len(said.tokens)), math.log1p(len(now.tokens))))
        direction = self._directions[partner.agent_id, speaker.agent_id]
        copied = values["copied_span_share"]
        if isinstance(copied, float):
            direction.copied += copied
            direction.replies += 1
        if said.has_lexicon and now.has_lexicon and said.words and now.words:
            for number, (prompt, mine) in enumerate(zip(said.class_counts, now.class_counts, strict=True)):
                cell = (direction.with_prompt if prompt else direction.without_prompt)[number]
                cell[0] += 1
                cell[1] += mine > 0
        return {
            "cum_vocab_jaccard": f.jaccard(shared, speaker.counts.spectrum.v, partner.counts.spectrum.v),
            "length_corr_w10": f.pearson(*zip(*speaker.replies, strict=True)),
        }

    def _addresses(self, now: Reading, agent_id: str) -> float | None:
        others = [other.name for other in self._speakers.values() if other.name and other.agent_id != agent_id]
        if not others or not now.words:
            return None
        found = 0
        for name in others:
            if all(part in now.counts for part in name):
                size = len(name)
                found += sum(tuple(now.words[at : at + size]) == name for at in range(len(now.words) - size + 1))
        return 100 * found / len(now.words)

    def _of_plugin(self, name: str, measure_it: Measure, now: Reading, partner: Reading | None) -> Value:
        if name in self.faults:
            return None
        try:
            return measure_it(now, partner)
        except Exception as error:  # whatever code by others raises must not end a conversation
            self.faults[name] = f"{type(error).__name__}: {error}"
            return None


_NOBODY, _OPENING = -1, -2
_SIGNALS = (
    "exact_repeat_lag", "max_jaccard3_lag12", "best_lag", "novelty_4gram", "cond_bits_per_byte",
    "tandem_repeat_period", "tandem_repeat_count", "cycle_period", "cycle_run", "soft_cycle_period", "novelty_ewma",
    "compression_ewma", "stationarity", "nonverbal_share_w6", "farewell_share_w6", "gratitude_share_w6",
    "meta_share_w6",
)  # fmt: skip
"""What the detectors measure and the catalogue lists under the same name."""


def measure(
    messages: Iterable[tuple[str, str]], agents: Iterable[str] | Mapping[str, str | None] | None = None, **options: Any
) -> tuple[list[dict[str, Value]], list[Summary]]:
    """The metrics of a whole conversation, given as (agent id, text): the same as adding them one by one.

    Args:
        messages: in the order in which they were said.
        agents: as `Engine` takes them; absent: those who speak, in the order in which they do.
        options: what else `Engine` takes.
    """
    said = list(messages)
    engine = Engine(agents if agents is not None else dict.fromkeys(agent for agent, _ in said), **options)
    return [engine.add(agent_id, text) for agent_id, text in said], engine.conversation()


# Of a message by itself


def _per(count: int, size: int) -> float | None:
    return count / size if size else None


def _size(now: Reading) -> dict[str, Value]:
    lengths = now.sentence_lengths
    tokens = now.tokens
    return {
        "chars": len(now.text),
        "graphemes": now.graphemes,
        "bytes_utf8": len(now.data),
        "tokens": len(tokens),
        "types": int(np.count_nonzero(distinct(now.sorted_grams[0]))),
        "sentences": len(lengths),
        "paragraphs": now.paragraphs,
        "lines": len(now.lines),
        "mean_token_length": now.token_graphemes / len(tokens) if tokens else None,
        "mean_sentence_length": _per(len(now.words), len(lengths)),
        "sentence_length_sd": f.sample_sd(lengths),
        "max_sentence_length": max(lengths, default=None),
        "headings": now.shape.headings,
        "list_items": now.shape.list_items,
        "emphasis_spans": now.emphasis,
        "stage_directions": now.shape.stage_directions,
        "code_blocks": now.code_blocks,
        "code_char_share": _per(now.code_chars, len(now.text)),
        "urls": now.urls,
        "numbers": sum(token.isdigit() for token in tokens) if now.digits else 0,
        "message_class": now.message_class.value,
    }


def _richness(now: Reading) -> dict[str, Value]:
    s = now.spectrum
    words = now.words
    return {
        "ttr": f.ttr(s),
        "root_ttr": f.root_ttr(s),
        "herdan_c": f.herdan_c(s),
        "maas_a2": f.maas_a2(s),
        "mattr_50": f.mattr(now.word_ids),
        "msttr_50": f.msttr(words),
        "mtld": f.mtld(words),
        "hdd_42": f.hdd(now.counts.values()),
        "yule_k": f.yule_k(s),
        "simpson_d": f.simpson_d(s),
        "hapax_ratio": f.hapax_ratio(s),
        "honore_r": f.honore_r(s),
        "sichel_s": f.sichel_s(s),
    }


def _information(now: Reading) -> dict[str, Value]:
    entropy = f.entropy(now.counts.values())
    tokens = now.tokens
    found: dict[str, Value] = {
        "word_entropy": entropy,
        "word_evenness": entropy / math.log2(len(now.counts)) if entropy is not None and len(now.counts) > 1 else None,
        "char_entropy": f.entropy(now.char_counts.values()),
        "zlib_ratio": now.zlib_size / len(now.data) if len(now.data) >= 100 else None,
        "adjacent_duplicates": (
            int(np.count_nonzero(now.ids[1:] == now.ids[:-1])) / (len(tokens) - 1) if len(tokens) > 1 else None
        ),
        "dup_sentence_share": _repeated(now.distinct_sentences, len(now.sentence_lengths)),
        "dup_line_share": _repeated(len({line.casefold() for line in now.lines}), len(now.lines)),
        "max_grapheme_run": now.longest_run,
    }
    for size, ordered in enumerate(now.sorted_grams, start=1):
        share = _per(int(np.count_nonzero(distinct(ordered))), len(ordered))
        if size < 4:
            found[f"distinct_{size}"] = share
        if size > 1:
            found[f"rep_{size}"] = 1 - share if share is not None else None
    return found


def _repeated(different: int, size: int) -> float | None:
    return 1 - different / size if size > 1 else None


def _markers(now: Reading) -> dict[str, Value]:
    words, cues = len(now.words), now.cues
    known = now.has_lexicon and words > 0
    rate = {name: 100 * cues[name] / words if known else None for name in RATES}
    felt = cues["affect_positive"] + cues["affect_negative"]
    readable = words > 0 and not now.is_foreign and 2 * now.code_chars <= len(now.text)
    sizes = (words, len(now.sentence_lengths))
    syllables = now.syllables if readable else 0
    return {
        **rate,
        "function_word_share": now.function_words / words if known else None,
        "question_share": _per(now.questions, len(now.sentence_lengths)),
        "exclamation_share": _per(now.exclamations, len(now.sentence_lengths)),
        "ends_with_question": now.ends_with_question,
        "starts_with_ack": now.starts_with_ack if known else None,
        "sentiment": (cues["affect_positive"] - cues["affect_negative"]) / felt if known and felt else None,
        "flesch_ease": f.flesch_ease(*sizes, syllables) if readable else None,
        "fk_grade": f.fk_grade(*sizes, syllables) if readable else None,
        "coleman_liau": f.coleman_liau(*sizes, now.word_letters) if readable else None,
    }


def _symbols(now: Reading) -> dict[str, Value]:
    letters = now.scripts.total()
    tokens = len(now.tokens)
    emoji = len(now.emoji)
    return {
        "emoji_count": emoji,
        "emoji_types": len(now.emoji_counts),
        "emoji_share": _per(emoji, now.visible),
        "emoji_entropy": f.entropy(now.emoji_counts.values()) if emoji > 1 else None,
        "symbol_share": _per(now.symbols, now.visible),
        "arrow_count": now.arrows,
        "punct_share": _per(sum(now.punct.values()), now.visible),
        "punct_types": len(now.punct),
        "dash_rate": 100 * now.punct.get("—", 0) / tokens if tokens else None,
        "uppercase_share": _per(now.uppers, now.uppers + now.lowers),
        "allcaps_tokens": now.capitals,
        "nonlatin_share": _per(letters - now.scripts["Latin"], letters),
        "script_entropy": f.entropy(now.scripts.values()),
        "whitespace_share": _per(now.spaces, len(now.text)),
        "invisible_chars": now.invisible,
    }


def _of_reply(reply: Reply | None) -> dict[str, Value]:
    known = reply or Reply()
    usage, timing = known.usage, known.timing
    writing = (timing.duration_ms or 0) - (timing.ttft_ms or 0)
    speed = timing.tokens_per_s
    if speed is None and usage.completion_tokens is not None and timing.ttft_ms is not None and writing > 0:
        speed = 1000 * usage.completion_tokens / writing
    limit, taken = known.context_limit, usage.prompt_tokens
    spread = [entropy for each in known.alternatives if (entropy := _of_logprobs(each)) is not None]
    return {
        "truncated": (
            known.finish_reason is FinishReason.LENGTH
            if known.finish_reason not in (None, FinishReason.UNKNOWN)
            else None
        ),
        "token_logprob_mean": sum(known.logprobs) / len(known.logprobs) if known.logprobs else None,
        "token_entropy_mean": sum(spread) / len(spread) if spread else None,
        "latency_ms": timing.duration_ms,
        "ttft_ms": timing.ttft_ms,
        "tokens_per_s": speed,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.thinking_tokens,
        "cost_usd": known.cost_usd,
        "retries": known.attempt - 1 if known.attempt is not None else None,
        "context_share": taken / limit if taken is not None and limit else None,
    }


def _of_logprobs(logprobs: Sequence[float]) -> float | None:
    odds = [math.exp(logprob) for logprob in logprobs]
    total = sum(odds)
    return -sum(p / total * math.log2(p / total) for p in odds if p) if total else None


# Against what was said before


def _surprisal(history: _Counts, ids: Ids, times: Ids) -> float | None:
    n = history.spectrum.n
    if not n or not len(ids):
        return None
    before = history.before(ids)
    types = history.spectrum.v + int(np.count_nonzero(before == 0))
    bits = -np.log2((before + 0.5) / (n + 0.5 * types))
    return float(times @ bits) / float(times.sum())


def _growth(numbers: Sequence[int], new: set[int]) -> NDArray[np.int64]:
    """How many of the new types there are up to each token of a message."""
    grown, found = 0, []
    for number in numbers:
        if number in new:
            new.remove(number)
            grown += 1
        found.append(grown)
    return np.array(found, dtype=np.int64)


def _against_self(now: Reading, before: Reading | None) -> dict[str, Value]:
    if before is None:
        return dict.fromkeys(
            ("self_jaccard3", "self_cosine", "self_indel", "opening_repeat", "closing_repeat", "skeleton_similarity")
        )
    ends = len(now.tokens) >= 5 and len(before.tokens) >= 5
    shapes = now.shape.text, before.shape.text
    return {
        "self_jaccard3": trigram_jaccard(now, before),
        "self_cosine": f.cosine(now.counts, before.counts),
        "self_indel": token_indel(now, before),
        "opening_repeat": now.tokens[:5] == before.tokens[:5] if ends else None,
        "closing_repeat": now.tokens[-5:] == before.tokens[-5:] if ends else None,
        "skeleton_similarity": f.indel(*shapes) if all(shapes) and max(map(len, shapes)) <= SEQUENCE_LIMIT else None,
    }


# Of the conversation


def _lsm_of_totals(one: _Speaker, two: _Speaker) -> float | None:
    if not one.class_tokens or not two.class_tokens:
        return None
    percents = [[100 * count / agent.class_tokens for count in agent.classes] for agent in (one, two)]
    return f.lsm(*percents)[0]


def _half_length(lengths: Sequence[int]) -> int | None:
    """The first message, counted from 1, at which the mean of the last 3 is below half of that of the first 3."""
    first = sum(lengths[:3])
    return next((end for end in range(4, len(lengths) + 1) if 2 * sum(lengths[end - 3 : end]) < first), None)


def _coordination(with_it: Sequence[int], without: Sequence[int]) -> float | None:
    if min(with_it[0], without[0]) < LEAST_PROMPTS:
        return None
    return with_it[1] / with_it[0] - (with_it[1] + without[1]) / (with_it[0] + without[0])


def _log_odds(with_it: Sequence[int], without: Sequence[int]) -> float | None:
    if min(with_it[0], without[0]) < LEAST_PROMPTS:
        return None
    with_odds = (with_it[1] + 0.5) / (with_it[0] - with_it[1] + 0.5)
    return math.log(with_odds / ((without[1] + 0.5) / (without[0] - without[1] + 0.5)))
