"""The formulas, one place for each: counts and sequences in, a number or None out.

None means that the number cannot be computed; it is never 0. The same formula serves one message and the whole of
what an agent has said. Entropies are in bits.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

__all__ = [
    "Spectrum",
    "bleu4",
    "coleman_liau",
    "cosine",
    "entropy",
    "fk_grade",
    "flesch_ease",
    "hapax_ratio",
    "hdd",
    "herdan_c",
    "honore_r",
    "indel",
    "jaccard",
    "jsd",
    "lla",
    "lsm",
    "lsm_category",
    "maas_a2",
    "mattr",
    "median_slope",
    "msttr",
    "mtld",
    "ncd",
    "pearson",
    "root_ttr",
    "sample_sd",
    "sichel_s",
    "simpson_d",
    "slope",
    "spectrum",
    "syllables",
    "theil_sen",
    "ttr",
    "yule_k",
    "zipf_s",
    "zlib_bytes",
]

Number = float | int
Ids = NDArray[np.integer[Any]]
"""A text as the numbers of its types."""
Counts = Mapping[Any, int]


# Richness: how many words, how many different ones, how often each


class Spectrum(NamedTuple):
    """All that the richness formulas need to know about a bag of words."""

    n: int = 0
    """Tokens."""
    v: int = 0
    """Types."""
    v1: int = 0
    """Types that occur once."""
    v2: int = 0
    """Types that occur twice."""
    sum_f2: int = 0
    """Sum of the squared frequencies."""


def spectrum(frequencies: Iterable[int]) -> Spectrum:
    """What the frequencies of the types amount to."""
    of_each = Counter(frequencies)
    return Spectrum(
        sum([f * types for f, types in of_each.items()]),
        of_each.total(),
        of_each[1],
        of_each[2],
        sum([f * f * types for f, types in of_each.items()]),
    )


def ttr(s: Spectrum) -> float | None:
    """Type-token ratio V/N."""
    return s.v / s.n if s.n else None


def root_ttr(s: Spectrum) -> float | None:
    """Guiraud's V / √N."""
    return s.v / math.sqrt(s.n) if s.n else None


def herdan_c(s: Spectrum) -> float | None:
    """ln V / ln N."""
    return math.log(s.v) / math.log(s.n) if s.n > 1 else None


def maas_a2(s: Spectrum) -> float | None:
    """(ln N - ln V) / (ln N)², natural logarithms."""
    return (math.log(s.n) - math.log(s.v)) / math.log(s.n) ** 2 if s.n > 1 else None


def yule_k(s: Spectrum) -> float | None:
    """10⁴ (Σ f² - N) / N²."""
    return 1e4 * (s.sum_f2 - s.n) / (s.n * s.n) if s.n else None


def simpson_d(s: Spectrum) -> float | None:
    """Σ f (f - 1) / (N (N - 1))."""
    return (s.sum_f2 - s.n) / (s.n * (s.n - 1)) if s.n > 1 else None


def hapax_ratio(s: Spectrum) -> float | None:
    """V₁ / V."""
    return s.v1 / s.v if s.v else None


def sichel_s(s: Spectrum) -> float | None:
    """V₂ / V."""
    return s.v2 / s.v if s.v else None


def honore_r(s: Spectrum) -> float | None:
    """100 ln N / (1 - V₁ / V)."""
    return 100 * math.log(s.n) / (1 - s.v1 / s.v) if s.v > s.v1 else None


def hdd(frequencies: Iterable[int], sample: int = 42) -> float | None:
    """HD-D: Σ over types of (1 - P(type absent from `sample` draws)) / `sample`. None below `sample` tokens."""
    of_each = Counter(frequencies)
    n = sum(f * types for f, types in of_each.items())
    if n < sample:
        return None
    draws = math.comb(n, sample)
    return sum(types * (1 - math.comb(n - f, sample) / draws) for f, types in of_each.items()) / sample


def window_types(ids: Ids, window: int) -> tuple[int, int]:
    """The sum of the numbers of types in all full windows of a text, and how many windows there are."""
    n = len(ids)
    if n < window:
        return 0, 0
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    since = np.zeros(n, dtype=np.int64)
    since[order[again + 1]] = order[again] + 1
    # A token counts as new in every window that begins after its previous occurrence and reaches it.
    places = np.arange(n)
    begins = np.maximum(since, places - (window - 1))
    total = np.maximum(np.minimum(places, n - window) - begins + 1, 0).sum()
    return int(total), n - window + 1


def mattr(ids: Ids, window: int = 50) -> float | None:
    """Mean type-token ratio of all windows; of the text itself when it is shorter than one."""
    if len(ids) < window:
        return len(set(ids.tolist())) / len(ids) if len(ids) else None
    total, windows = window_types(ids, window)
    return total / (window * windows)


def msttr(tokens: Sequence[Hashable], segment: int = 50) -> float | None:
    """Mean type-token ratio of the full segments; of the text itself when it is shorter than one."""
    if len(tokens) < segment:
        return len(set(tokens)) / len(tokens) if tokens else None
    full = len(tokens) // segment
    return sum(len(set(tokens[at * segment : (at + 1) * segment])) for at in range(full)) / (segment * full)


def mtld(tokens: Sequence[Hashable], threshold: float = 0.72, shortest: int = 10) -> float | None:
    """Tokens per factor, the mean of both directions. None below `shortest` tokens or where no factor begins."""
    if len(tokens) < shortest:
        return None
    there, back = _factors(tokens, threshold, shortest), _factors(tokens[::-1], threshold, shortest)
    return (len(tokens) / there + len(tokens) / back) / 2 if there and back else None


def _factors(tokens: Sequence[Hashable], threshold: float, shortest: int) -> float:
    factors, size, last = 0, 0, len(tokens) - 1
    types: set[Hashable] = set()
    for at, token in enumerate(tokens):
        types.add(token)
        size += 1
        if at < last and size >= shortest and len(types) / size < threshold:
            factors, size = factors + 1, 0
            types.clear()
    return factors + (1 - len(types) / size) / (1 - threshold) if size else float(factors)


def zipf_s(frequencies: Iterable[int]) -> float | None:
    """Minus the slope of ln frequency on ln rank. None below 50 types."""
    ordered = np.sort(np.fromiter(frequencies, dtype=np.float64))[::-1]
    if len(ordered) < 50:
        return None
    found = slope(np.log(np.arange(1, len(ordered) + 1)), np.log(ordered))
    return -found if found is not None else None


# Information


def entropy(counts: Iterable[int]) -> float | None:
    """Shannon entropy of a distribution given as counts, in bits. None without any."""
    of_each = Counter(counts)
    n = sum([f * times for f, times in of_each.items()])
    weighted = sum([f * times * math.log2(f) for f, times in of_each.items()])
    return max(0.0, math.log2(n) - weighted / n) if n else None


def zlib_bytes(data: bytes) -> int:
    """Bytes of the zlib stream at level 9."""
    return len(zlib.compress(data, 9))


def deflate_bytes(data: bytes, before: bytes = b"") -> int:
    """Bytes of the raw deflate stream at level 6, given what the reader has already."""
    if before:
        squeeze = zlib.compressobj(6, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, before)
    else:
        squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    return len(squeeze.compress(data)) + len(squeeze.flush())


def ncd(first: bytes, second: bytes, first_size: int, second_size: int) -> float:
    """Normalised compression distance: (C(xy) - min) / max, with the sizes C(x) and C(y) already known."""
    return (zlib_bytes(first + second) - min(first_size, second_size)) / max(first_size, second_size)


# Two bags or two sequences


def jaccard(shared: int, first: int, second: int) -> float | None:
    """Shared elements over all elements of two sets. None when both are empty."""
    union = first + second - shared
    return shared / union if union else None


def cosine(first: Mapping[Any, Number], second: Mapping[Any, Number]) -> float | None:
    """Cosine of two bags. None when either is empty."""
    squares = sum([f * f for f in first.values()]) * sum([f * f for f in second.values()])
    if not squares:
        return None
    return min(1.0, sum([first[key] * second[key] for key in first.keys() & second.keys()]) / math.sqrt(squares))


def vector_cosine(first: Sequence[Number], second: Sequence[Number]) -> float | None:
    """Cosine of two vectors. None when either is zero."""
    norm = math.sqrt(sum(x * x for x in first) * sum(y * y for y in second))
    return min(1.0, sum(x * y for x, y in zip(first, second, strict=True)) / norm) if norm else None


def jsd(first: Counts, second: Counts) -> float | None:
    """Jensen-Shannon divergence in bits (the divergence, not its root). None when either bag is empty."""
    n, m = sum(first.values()), sum(second.values())
    if not n or not m:
        return None
    shared = [key for key in first if key in second]  # in this order in every process, so to the last bit the same
    total = 2.0 - sum(first[key] for key in shared) / n - sum(second[key] for key in shared) / m
    for key in shared:
        p, q = first[key] / n, second[key] / m
        total += p * math.log2(2 * p / (p + q)) + q * math.log2(2 * q / (p + q))
    return min(1.0, max(0.0, total / 2))


def indel(first: str, second: str) -> float:
    """2 LCS / (length + length): Indel similarity and ROUGE-L F at once. 1 when both are empty."""
    size = len(first) + len(second)
    return 2 * LCSseq.similarity(first, second) / size if size else 1.0


def lla(own: Counts, partner: Counts) -> float | None:
    """Own tokens that the partner's message has / (own length x partner's length)."""
    n, m = sum(own.values()), sum(partner.values())
    return sum(own[key] for key in own.keys() & partner.keys()) / (n * m) if n and m else None


def bleu4(matched: Sequence[int], length: int, reference: int) -> float | None:
    """BLEU-4 with smoothing method 1 (0.1 for an n-gram order without a match). None below 4 tokens.

    Args:
        matched: for n = 1 to 4 the n-grams that a reference has, none more often than in the reference.
        length: tokens of the text that is judged.
        reference: tokens of the reference closest in length.
    """
    if length < 4:
        return None
    if not matched[0]:
        return 0.0
    logs = sum(math.log((match or 0.1) / (length - order)) for order, match in enumerate(matched)) / 4
    return math.exp(min(0.0, 1 - reference / length) + logs)


# Style


def lsm_category(first: float, second: float) -> float:
    """Matching of one category: 1 - |p - q| / (p + q + 0.0001), in percent of all words."""
    return 1 - abs(first - second) / (first + second + 0.0001)


def lsm(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None]:
    """Language style matching of two lists of percentages: over all categories, and over those present at all."""
    each = [lsm_category(p, q) for p, q in zip(first, second, strict=True)]
    present = [value for value, p, q in zip(each, first, second, strict=True) if p + q > 0]
    return sum(each) / len(each), sum(present) / len(present) if present else None


# Readability

_VOWELS = re.compile(r"[aeiouyáàâäéèêëíìîïóòôöúùûü]+")
_SILENT_END = re.compile(r"(?:[^laeiouy]e|[^aeiouydt]ed|[^aeiouycgszx]es|[aeiouy][^aeiouy]+les)\Z")
_SPLIT_VOWELS = re.compile(r"ia(?!l\Z|n\Z)|io(?!us|n)|[^q]ua|eo(?!us)|iu|[aeiouy]ing|ier\Z|creat")


@lru_cache(maxsize=20_000)
def syllables(word: str) -> int:
    """Syllables of an English word, estimated from its vowels; at least 1."""
    found = len(_VOWELS.findall(word))
    found -= _SILENT_END.search(word) is not None
    found += len(_SPLIT_VOWELS.findall(word))
    return max(1, found)


def flesch_ease(words: int, of_sentences: int, of_syllables: int) -> float | None:
    """206.835 - 1.015 words/sentence - 84.6 syllables/word."""
    if not words or not of_sentences:
        return None
    return 206.835 - 1.015 * words / of_sentences - 84.6 * of_syllables / words


def fk_grade(words: int, of_sentences: int, of_syllables: int) -> float | None:
    """0.39 words/sentence + 11.8 syllables/word - 15.59."""
    if not words or not of_sentences:
        return None
    return 0.39 * words / of_sentences + 11.8 * of_syllables / words - 15.59


def coleman_liau(words: int, of_sentences: int, letters: int) -> float | None:
    """0.0588 letters/100 words - 0.296 sentences/100 words - 15.8."""
    return 5.88 * letters / words - 29.6 * of_sentences / words - 15.8 if words else None


# Numbers in a row


def sample_sd(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1. None below 2 values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum([(value - mean) ** 2 for value in values]) / (n - 1))


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation. None below 3 pairs or where either side is constant."""
    n = len(first)
    if n < 3 or min(first) == max(first) or min(second) == max(second):
        return None
    a, b = sum(first) / n, sum(second) / n
    xy = sum((x - a) * (y - b) for x, y in zip(first, second, strict=True))
    return max(-1.0, min(1.0, xy / math.sqrt(sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second))))


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Least-squares slope of y on x. None below two different x."""
    if len(x) < 2:
        return None
    spread = x - x.mean()
    square = float(spread @ spread)
    return float(spread @ (y - y.mean())) / square if square else None


def median_slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Theil and Sen's slope of points with different x, in order. None below two of them."""
    if len(points) < 2:
        return None
    x, y = np.array(points, dtype=np.float64).T
    one, other = np.triu_indices(len(points), 1)
    return float(np.median((y[other] - y[one]) / (x[other] - x[one])))


def theil_sen(y: Sequence[float], least: int = 2) -> float | None:
    """Median slope over all pairs of equally spaced points. None below `least` of them."""
    if len(y) < least:
        return None
    values = np.asarray(y, dtype=np.float64)
    return float(np.median(np.concatenate([(values[lag:] - values[:-lag]) / lag for lag in range(1, len(values))])))
