"""How often words and emoji are used: the table that published work on model conversations reports.

A use is counted per transcript: all that was said in one conversation. Because a few transcripts can hold nearly all
uses of a word, the mean never stands alone.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from statistics import median
from typing import Literal, NamedTuple

from .tokens import emoji_in, fold_skin_tone, tokenize, word_list

__all__ = ["STOP_WORDS_VERSION", "WordUse", "stop_words", "word_table"]

_LEFT_OUT = ("ppron", "ipron", "article", "auxverb", "prep", "conj")

STOP_WORDS_VERSION = "stop_en_1"
"""Changes with the words that `stop_words` gives."""


@lru_cache
def stop_words() -> frozenset[str]:
    """English pronouns, articles, auxiliary verbs, prepositions and conjunctions.

    Adverbs, negations and quantifiers stay in the table: "always", "never" and "every" are among the published words.
    """
    kept = {word for name in ("adverb", "negate", "quant") for word in word_list(f"en/{name}")}
    return frozenset(word for name in _LEFT_OUT for word in word_list(f"en/{name}")) - kept


class WordUse(NamedTuple):
    """One row of the table."""

    word: str
    mean: float
    """Uses per transcript, over all transcripts."""
    present: float
    """Share of transcripts in which it occurs, 0 to 1."""
    median: float
    """Uses per transcript."""
    max: int
    """Most uses in one transcript."""
    uses: int
    """In all transcripts."""


Order = Literal["mean", "present", "median", "max"]


def word_table(
    transcripts: Iterable[Iterable[str]],
    kind: Literal["word", "emoji"] = "word",
    *,
    leave_out: Collection[str] = frozenset(),
    order: Order = "mean",
) -> list[WordUse]:
    """The table over transcripts, each the texts of its messages, by falling `order`; then by falling use, by word.

    Words are tokens of `tok_uni_v1` over the whole text, code included. Emoji are grapheme clusters without skin tones.
    """
    cut: Callable[[str], Iterable[str]] = tokenize if kind == "word" else _emoji
    uses: dict[str, list[int]] = {}
    n = 0
    for texts in transcripts:
        n += 1
        counts = Counter(word for text in texts for word in cut(text))
        for word, count in counts.items():
            if word not in leave_out:
                uses.setdefault(word, []).append(count)
    rows = [
        WordUse(
            word,
            sum(found) / n,
            len(found) / n,
            float(median(found + [0] * (n - len(found)))) if 2 * len(found) >= n else 0.0,
            max(found),
            sum(found),
        )
        for word, found in uses.items()
    ]
    rows.sort(key=lambda row: (-getattr(row, order), -row.uses, row.word))
    return rows


def _emoji(text: str) -> Iterable[str]:
    return map(fold_skin_tone, emoji_in(text))
