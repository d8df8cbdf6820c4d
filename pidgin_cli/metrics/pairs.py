"""A message against another one, as a rule the partner's last: shared words, shared sequences, shared style."""

import numpy as np

from . import formulas as f
from .catalogue import Value
from .convergence import Weights, convergence
from .lexicon import LSM_CATEGORIES
from .reading import SEQUENCE_LIMIT, Reading, held, matches

__all__ = ["LSM_LEAST", "against_partner", "parts", "token_indel", "trigram_jaccard"]

LSM_LEAST = 25
"""Tokens that each side needs for a style comparison."""


def trigram_jaccard(now: Reading, other: Reading) -> float | None:
    shared = int(np.count_nonzero(held(other.shingles, now.shingles)))
    return f.jaccard(shared, len(now.shingles), len(other.shingles))


def _matches(now: Reading, other: Reading) -> list[int]:
    return [matches(mine, theirs) for mine, theirs in zip(now.sorted_grams, other.sorted_grams, strict=True)]


def _comparable(now: Reading, other: Reading) -> bool:
    # A conversation of more types than there are characters cannot be coded.
    return all(len(each.coded) == len(each.tokens) <= SEQUENCE_LIMIT for each in (now, other))


def token_indel(now: Reading, other: Reading) -> float | None:
    return f.indel(now.coded, other.coded) if _comparable(now, other) else None


def _copied(now: Reading, partner: Reading) -> tuple[list[tuple[int, int]], int]:
    """Spans of 4 tokens or more that the partner's message holds, greedily longest, and the longest span of all."""
    own, source = now.coded, partner.coded
    found = np.flatnonzero(held(partner.sorted_grams[3], now.four_grams)).tolist()
    if not found:
        shorter = zip((3, 2, 1), now.sorted_grams[2::-1], partner.sorted_grams[2::-1], strict=True)
        return [], next((size for size, mine, theirs in shorter if held(theirs, mine).any()), 0)
    spans, longest, free = [], 4, 0
    for at in found:
        # Within a span already taken only a longer one is of interest.
        if at < free and (at + longest >= len(own) or own[at : at + longest + 1] not in source):
            continue
        size = _span(own, source, at)
        longest = max(longest, size)
        if at >= free:
            spans.append((at, at + size))
            free = at + size
    return spans, longest


def _span(own: str, source: str, at: int) -> int:
    """Length of the longest run from `at` that the source holds."""
    low, high = 1, 8
    while at + high <= len(own) and own[at : at + high] in source:
        low, high = high, 2 * high
    high = min(high, len(own) - at + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if own[at : at + middle] in source:
            low = middle
        else:
            high = middle
    return low


def _copying(now: Reading, partner: Reading) -> dict[str, Value]:
    if not _comparable(now, partner):
        return dict.fromkeys(("copied_span_share", "longest_copied_span", "quoted_share"))
    n = len(now.tokens)
    spans, longest = _copied(now, partner)
    quoted = 0
    if spans and any(mark in now.text for mark in '"“«「『'):
        inside = now.quoted()
        quoted = sum(sum(inside[start:end]) for start, end in spans)
    return {
        "copied_span_share": sum(end - start for start, end in spans) / n if n >= 4 else None,
        "longest_copied_span": longest if n and partner.tokens else None,
        "quoted_share": quoted / n if n >= 4 else None,
    }


def parts(now: Reading, other: Reading) -> dict[str, float | None]:
    """The parts of `convergence`."""
    sentences = len(now.sentence_lengths), len(other.sentence_lengths)
    tokens = len(now.tokens), len(other.tokens)
    return {
        "content": f.cosine(now.counts, other.counts),
        "structure": f.vector_cosine(now.structure, other.structure),
        "sentences": min(sentences) / max(sentences) if max(sentences) else None,
        "length": min(tokens) / max(tokens) if max(tokens) else None,
        "punctuation": f.cosine(now.punct, other.punct),
    }


_PAIR_METRICS = (
    "vocab_jaccard", "vocab_overlap_coef", "cosine_tf", "cosine_content", "jsd", "jaccard3", "bleu4_partner",
    "rouge_l_partner", "indel_partner", "copied_span_share", "longest_copied_span", "quoted_share", "lla",
    "length_ratio", "structure_cosine", "convergence", "lsm", "lsm_nz", "punct_cosine", "emoji_jaccard", "ncd_partner",
    *(f"lsm_{name}" for name in LSM_CATEGORIES),
)  # fmt: skip


def against_partner(now: Reading, partner: Reading | None, weights: Weights) -> dict[str, Value]:
    if partner is None:
        return dict.fromkeys(_PAIR_METRICS)
    shared = len(now.counts.keys() & partner.counts.keys())
    smaller = min(len(now.counts), len(partner.counts))
    shares = parts(now, partner)
    indel = token_indel(now, partner)
    words = len(now.words) > 0 and len(partner.words) > 0
    long = min(len(now.tokens), len(partner.tokens))
    content = now.content is not None and partner.content is not None
    emoji = now.emoji_counts.keys() & partner.emoji_counts.keys()
    return {
        "vocab_jaccard": f.jaccard(shared, len(now.counts), len(partner.counts)),
        "vocab_overlap_coef": shared / smaller if smaller else None,
        "cosine_tf": shares["content"],
        "cosine_content": f.cosine(now.content or {}, partner.content or {}) if content else None,
        "jsd": f.jsd(now.counts, partner.counts),
        "jaccard3": trigram_jaccard(now, partner) if long >= 6 else None,
        "bleu4_partner": f.bleu4(_matches(now, partner), len(now.tokens), len(partner.tokens)) if long >= 4 else None,
        "rouge_l_partner": indel if words else None,
        "indel_partner": indel,
        **_copying(now, partner),
        "lla": f.lla(now.counts, partner.counts),
        "length_ratio": shares["length"],
        "structure_cosine": shares["structure"],
        "convergence": convergence(shares, weights),
        **_style(now, partner),
        "punct_cosine": shares["punctuation"],
        "emoji_jaccard": f.jaccard(len(emoji), len(now.emoji_counts), len(partner.emoji_counts)),
        "ncd_partner": (
            f.ncd(partner.data, now.data, partner.zlib_size, now.zlib_size)
            if min(len(now.data), len(partner.data)) >= 100
            else None
        ),
    }


def _lsm(now: Reading, other: Reading) -> tuple[float | None, float | None]:
    few = min(len(now.words), len(other.words)) < LSM_LEAST
    if few or not (now.has_lexicon and other.has_lexicon):
        return None, None
    return f.lsm(now.class_percent, other.class_percent)


def _style(now: Reading, partner: Reading) -> dict[str, Value]:
    names = [f"lsm_{name}" for name in LSM_CATEGORIES]
    whole, present = _lsm(now, partner)
    if whole is None:
        return dict.fromkeys(("lsm", "lsm_nz", *names))
    own, other = now.class_percent, partner.class_percent
    each = (f.lsm_category(p, q) if p + q else None for p, q in zip(own, other, strict=True))
    return {"lsm": whole, "lsm_nz": present, **dict(zip(names, each, strict=True))}
