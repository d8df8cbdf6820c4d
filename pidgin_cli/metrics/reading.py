"""One message, looked at once: everything that the metrics share about it."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate, chain
from operator import mul
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import formulas
from .lexicon import LSM_CATEGORIES, Lexicon
from .tokens import (
    Split,
    char_script,
    classify,
    clean,
    count_graphemes,
    emoji_in,
    fold_skin_tone,
    graphemes,
    normalise,
    prepare,
    quoted_spans,
    sentences,
    split_code,
    token_spans,
    tokens_in,
)

__all__ = ["SEQUENCE_LIMIT", "Grams", "Reading", "Vocabulary", "distinct", "grams", "held", "matches"]

SEQUENCE_LIMIT = 20_000
"""Tokens of a message above which nothing that compares whole sequences is computed: it would take seconds."""

FOREIGN_SHARE = 0.2
"""Share of letters in another script above which the word lists do not apply."""

Grams = NDArray[np.uint64]
Numbers = NDArray[np.unsignedinteger[Any]]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def grams(ids: Grams, size: int) -> Grams:
    """A 64-bit number for each run of `size` tokens, the same in every process and on every machine."""
    count = len(ids) - size + 1
    if count <= 0:
        return ids[:0]
    found = ids[:count]
    for shift in range(1, size):
        found = found * _FACTOR + ids[shift : shift + count]
    return found * _FACTOR


def distinct(ordered: Numbers) -> NDArray[np.bool_]:
    """Which of the numbers in order differ from the one before."""
    found = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=found[1:])
    return found


def held(ordered: Numbers, keys: Numbers) -> NDArray[np.bool_]:
    """Which of `keys` are among the numbers in order."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=np.bool_)
    at = ordered.searchsorted(keys)
    at[at == len(ordered)] = 0
    found: NDArray[np.bool_] = ordered[at] == keys
    return found


def matches(own: Grams, other: Grams) -> int:
    """How many n-grams two lists in order share, each as often as in the list that has fewer of it."""
    shared = own[held(other, own)]
    first = distinct(shared)
    if first.all():
        return len(shared)
    keys = shared[first]
    times = shared.searchsorted(keys, "right") - shared.searchsorted(keys)
    others = other.searchsorted(keys, "right") - other.searchsorted(keys)
    return int(np.minimum(times, others).sum())


class GramSet:
    """A set of numbers as they are in arrays: those in order, and some newer ones that are still to join them."""

    __slots__ = ("_newer", "_older")

    MOST = 4096
    """Newer ones; putting one more in takes time by their number."""

    def __init__(self, dtype: type[np.unsignedinteger[Any]] = np.uint64) -> None:
        self._older = np.empty(0, dtype=dtype)
        self._newer = self._older

    def add(self, keys: Numbers) -> int:
        """Put them in; returns how many of them were not there before, equal ones counted each."""
        new = keys[~held(self._older, keys)]
        new = np.sort(new[~held(self._newer, new)])
        if len(new):
            self._newer = np.sort(np.concatenate((self._newer, new[distinct(new)])))
            if len(self._newer) > min(self.MOST, max(256, len(self._older) // 8)):
                self._older = np.insert(self._older, self._older.searchsorted(self._newer), self._newer)
                self._newer = self._older[:0].copy()
        return len(new)


class Vocabulary(dict[str, int]):
    """Gives every type of a conversation a number, in the order of first use."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self) + 1
        return number


# Characters

_INVISIBLE = frozenset(
    [0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
) | frozenset(range(0xE0000, 0xE0080))


class _Char(NamedTuple):
    """What a code point is."""

    kind: str
    """The first letter of its Unicode category; a blank for white space."""
    upper: bool
    lower: bool
    invisible: bool
    script: str
    """Of a letter; else empty."""


@lru_cache(maxsize=8192)
def _char(char: str) -> _Char:
    kind = " " if char.isspace() else unicodedata.category(char)[0]
    script = char_script(char) if kind == "L" else ""
    return _Char(kind, char.isupper(), char.islower(), ord(char) in _INVISIBLE, script)


# Markdown

_HEADING = re.compile(r"\s*#{1,6}(?:\s|\Z)")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+\S")
_QUOTE = re.compile(r"\s*>")
_TABLE = re.compile(r"\s*\|.*\|\s*\Z")
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})\Z")
_STAGE = re.compile(r"\s*(?:\*(?![*\s])[^*]+\*|\[[^\[\]]+\]|\([^()]+\))\s*\Z")
_STARS = re.compile(r"\s*\*")
_EMPHASIS = re.compile(
    r"\*\*(?![\s*])[^*\n]*[^*\s]\*\*|(?<![*\w])\*(?![\s*])[^*\n]*[^*\s]\*(?!\*)"
    r"|(?<!\w)__(?![\s_])[^_\n]*[^_\s]__(?!\w)|(?<![\w_])_(?![\s_])[^_\n]*[^_\s]_(?![\w_])"
)
_URL = re.compile(r"https?://[^\s<>]+|(?<![\w.])www\.[^\s<>]+", re.IGNORECASE)
_ARROW = re.compile("[\u2190-\u21ff\u27f0-\u27ff\u2900-\u297f](?!\ufe0f)|->|=>|<-")
_UPPER = "".join(chr(code) for code in range(0x2D00) if chr(code).isupper())
_CAPITALS = re.compile(rf"[{_UPPER}](?<![^\W_].)(?:[{_UPPER}\d]|['’](?=[{_UPPER}]))+(?!['’]?[^\W_])")


class _Shape:
    """The markdown of a message: a letter for each block, and how many of each kind there are."""

    __slots__ = ("headings", "list_items", "stage_directions", "starred", "text")

    def __init__(self, parts: Sequence[str]) -> None:
        self.headings = self.list_items = self.stage_directions = self.starred = 0
        self.text = "C".join(self._letters(part) for part in parts)

    def _letters(self, part: str) -> str:
        letters: list[str] = []
        in_paragraph = False
        for line in part.split("\n"):
            if not line or line.isspace():
                in_paragraph = False
                continue
            first = line.lstrip()[0]
            letter = "P"
            if first == "#" and _HEADING.match(line):
                letter = "H"
                self.headings += 1
            elif first in "-*_" and _RULE.match(line):
                letter = "R"
            elif first in "*[(" and _STAGE.match(line):
                letter = "S"
                self.stage_directions += 1
                self.starred += _STARS.match(line) is not None
            elif (first in "-*+•" or first.isdigit()) and _LIST_ITEM.match(line):
                letter = "L"
                self.list_items += 1
            elif first == ">" and _QUOTE.match(line):
                letter = "Q"
            elif first == "|" and _TABLE.match(line):
                letter = "T"
            if letter != "P" or not in_paragraph:
                letters.append(letter)
            in_paragraph = letter == "P"
        return "".join(letters)


# The message


def _scripts(counts: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for char, times in counts.items():
        if script := _char(char).script:
            found[script] += times
    return found


_ACKNOWLEDGING = ("agreement", "gratitude", "praise", "acknowledgements")


def _longest_run(text: str, clusters: int) -> int:
    """Of one grapheme that is not white space; the text has so many graphemes, and one that is visible."""
    if len(text) == clusters:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        changes = np.flatnonzero(codes[1:] != codes[:-1])
        ends = np.concatenate((changes, [len(codes) - 1]))
        lengths = ends.copy()
        lengths[0] += 1
        lengths[1:] -= changes
        longer = np.flatnonzero(lengths > 1)
        order = longer[np.argsort(-lengths[longer])].tolist()
        return next((int(lengths[at]) for at in order if not text[ends[at]].isspace()), 1)
    longest = run = 1
    before = ""
    for cluster in graphemes(text):
        if cluster != before:
            run, before = 1, cluster
        elif not cluster.isspace():
            run += 1
            longest = max(run, longest)
    return longest


class Reading:
    """What there is to know about one message by itself.

    `tokens` and all n-grams come from the full text; `words`, `counts`, sentences and cues from the text without code.
    Without code they are the same.

    Args:
        text: any string.
        agent_id: who said it.
        index: its place in the conversation, from 0.
        vocabulary: that of the conversation; it grows.
        lexicon: word lists, or None where there are none for the language.
    """

    def __init__(
        self, text: str, agent_id: str, index: int, vocabulary: Vocabulary, lexicon: Lexicon | None = None
    ) -> None:
        self.text = clean(text)
        self.agent_id = agent_id
        self.index = index
        self.data = self.text.encode()
        """UTF-8."""
        self.normalised = normalise(self.text)
        split = split_code(self.text)
        self.code_chars, self.code_blocks = split.code_chars, split.blocks
        self._read_words(split, vocabulary)
        self._read_characters(split)
        self._read_lines(split)
        self.message_class = classify(self.text, len(self.tokens), len(self.emoji))
        self._read_cues(lexicon)

    def _read_words(self, split: Split, vocabulary: Vocabulary) -> None:
        prepared = prepare(split.prose)
        found = sentences(prepared)
        self.sentence_lengths = [len(sentence.tokens) for sentence in found]
        """Tokens of each sentence."""
        self.distinct_sentences = len({tuple(sentence.tokens) for sentence in found})
        self.questions = sum(sentence.is_question for sentence in found)
        self.exclamations = sum(sentence.is_exclamation for sentence in found)
        self.ends_with_question = found[-1].is_question if found else None
        # One copy of each word serves all conversations for as long as any of them uses it.
        self.words = list(map(sys.intern, chain.from_iterable([sentence.tokens for sentence in found])))
        """Tokens outside code."""
        self._prepared = prepare(self.text) if self.code_chars else prepared
        self.tokens = list(map(sys.intern, tokens_in(self._prepared))) if self.code_chars else self.words
        """Tokens of the whole text."""
        self.counts = Counter(self.words)
        """How often each type occurs outside code."""
        self.type_ids = np.array([vocabulary[word] for word in self.counts], dtype=np.int64)
        self.type_counts = np.fromiter(self.counts.values(), dtype=np.int64, count=len(self.counts))
        numbers = [vocabulary[token] for token in self.tokens]
        self.ids: Grams = np.array(numbers, dtype=np.uint64)
        """The number of each token."""
        self.word_ids = (
            np.array([vocabulary[word] for word in self.words], dtype=np.uint64) if self.code_chars else self.ids
        )
        self.coded = "".join(map(chr, numbers)) if len(vocabulary) < 0x110000 else ""
        """One character for each token, which is what sequence comparison is quick on."""
        self.four_grams = grams(self.ids, 4)
        self.sorted_grams = [np.sort(grams(self.ids, size)) for size in (1, 2, 3)] + [np.sort(self.four_grams)]
        """N-grams in order, for n = 1 to 4."""
        if len(numbers) >= 6:
            shingles = self.sorted_grams[2]
        else:
            whole = np.frombuffer(blake2b(self.normalised.encode(), digest_size=8).digest(), dtype="<u8")
            shingles = np.sort(np.concatenate([self.sorted_grams[0], whole.astype(np.uint64)]))
        self.shingles = shingles[distinct(shingles)]
        """Distinct trigrams in order; below 6 tokens the types and the whole text."""

    def _read_characters(self, split: Split) -> None:
        text = self.text
        self.char_counts = Counter(text)
        emoji = emoji_in(text)
        self.emoji = [fold_skin_tone(each) for each in emoji]
        self.emoji_counts = Counter(self.emoji)
        self.graphemes = count_graphemes(text)
        self.spaces = self.uppers = self.lowers = self.symbols = self.digits = self.invisible = 0
        self.punct: dict[str, int] = {}
        self.scripts: Counter[str] = Counter()
        plain = self.char_counts - Counter("".join(emoji)) if emoji else self.char_counts
        for char, times in plain.items():
            kind, upper, lower, invisible, script = _char(char)
            if kind == "L":
                self.scripts[script] += times
                self.uppers += times * upper
                self.lowers += times * lower
            elif kind == " ":
                self.spaces += times
            elif kind == "P":
                self.punct[char] = times
            elif kind == "S":
                self.symbols += times
            elif kind == "N":
                self.digits += times
            if invisible:
                self.invisible += times
        self.visible = self.graphemes - self.spaces + (text.count("\r\n") if "\r" in text else 0)
        """Graphemes that are not white space."""
        self.prose_scripts = _scripts(Counter(split.prose)) if self.code_chars else self.scripts
        self.longest_run = _longest_run(text, self.graphemes) if self.visible else None
        """Of one grapheme that is not white space."""

    def _read_lines(self, split: Split) -> None:
        self.shape = _Shape(split.parts)
        lines = [" ".join(line.split()) for line in self.text.split("\n")]
        self.paragraphs = sum(bool(line) and not before for before, line in zip(("", *lines), lines, strict=False))
        self.lines = [line for line in lines if line]
        """White space collapsed, blank ones left out."""
        self.emphasis = 0
        if "*" in split.prose or "_" in split.prose:
            self.emphasis = max(0, sum(1 for _ in _EMPHASIS.finditer(split.prose)) - self.shape.starred)
        self.urls = len(_URL.findall(self.text)) if "://" in self.text or "www." in self.normalised else 0
        prose = split.prose
        drawn = self.symbols or "->" in prose or "<-" in prose
        self.arrows = len(_ARROW.findall(prose)) if drawn else 0
        self.capitals = len(_CAPITALS.findall(self.text)) if self.uppers > 1 else 0

    def _read_cues(self, lexicon: Lexicon | None) -> None:
        letters = self.prose_scripts.total()
        script = lexicon.script if lexicon is not None else "Latin"
        self.is_foreign = letters - self.prose_scripts[script] > FOREIGN_SHARE * letters
        """Whether too much of the prose is in another script than the word lists."""
        self.has_lexicon = lexicon is not None and not self.is_foreign
        self.class_counts = [0] * len(LSM_CATEGORIES)
        self.function_words = 0
        self.cues: Counter[str] = Counter()
        self.starts_with_ack = False
        self._function_words: frozenset[str] | None = None
        if lexicon is None or self.is_foreign:
            return
        self._function_words = lexicon.function_words
        self.class_counts, self.function_words = lexicon.class_counts(self.counts)
        starts = frozenset(accumulate(self.sentence_lengths, initial=0))
        self.cues = lexicon.cue_counts(self.words, self.counts, starts)
        self.starts_with_ack = lexicon.opens_with(self.words, _ACKNOWLEDGING)

    # Computed on first use: offline work needs little of it, and pairs need it twice.

    @cached_property
    def spectrum(self) -> formulas.Spectrum:
        """What the counts of the words amount to."""
        return formulas.spectrum(self.counts.values())

    @cached_property
    def structure(self) -> tuple[int, ...]:
        """Paragraphs, list items, headings, code blocks, questions, emphasis."""
        shape = self.shape
        return self.paragraphs, shape.list_items, shape.headings, self.code_blocks, self.questions, self.emphasis

    @cached_property
    def content(self) -> dict[str, int] | None:
        """Counts of the words that are not function words; None without word lists."""
        if self._function_words is None:
            return None
        return {word: self.counts[word] for word in self.counts.keys() - self._function_words}

    @cached_property
    def class_percent(self) -> list[float]:
        """Percent of the words in each of `LSM_CATEGORIES`; needs a word."""
        return [100 * count / len(self.words) for count in self.class_counts]

    @cached_property
    def zlib_size(self) -> int:
        """Bytes of the text compressed by itself."""
        return formulas.zlib_bytes(self.data)

    @property
    def token_graphemes(self) -> int:
        """Graphemes of all tokens."""
        return count_graphemes("\n".join(self.tokens)) - max(0, len(self.tokens) - 1)

    @property
    def syllables(self) -> int:
        """Syllables of the words."""
        return sum(map(mul, map(formulas.syllables, self.counts), self.counts.values()))

    @property
    def word_letters(self) -> int:
        """Letters outside code."""
        return self.prose_scripts.total()

    def quoted(self) -> list[bool]:
        """For each token, whether it stands within quotation marks."""
        spans = quoted_spans(self._prepared)
        inside, at = [], 0
        for start in token_spans(self._prepared):
            while at < len(spans) and spans[at][1] <= start:
                at += 1
            inside.append(at < len(spans) and spans[at][0] <= start)
        return inside
