"""Word lists as one matcher: all lists are counted in a single walk over the tokens of a message.

The lists are data, `lexicons/<language>/*.txt`: one word or phrase a line, cut by the same tokeniser as messages. A
cue that begins with `^` counts only at the beginning of a sentence. Each list states its version in its first line.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from .tokens import tokenize, word_list

__all__ = ["CUE_LISTS", "LEXICON_VERSION", "LSM_CATEGORIES", "Lexicon", "english"]

LEXICON_VERSION = "en_1"
"""Changes whenever a packaged list does."""

LSM_CATEGORIES = ("ppron", "ipron", "article", "auxverb", "adverb", "prep", "conj", "negate", "quant")
"""The nine closed classes of language style matching. Words in two lists count in both, as in LIWC."""

CUE_LISTS = (
    *("hedges", "boosters", "agreement", "disagreement", "gratitude", "farewell", "apology", "praise", "politeness"),
    *("first_singular", "first_plural", "second_person", "negations", "modals", "discourse_markers"),
    *("meta_conversation", "ending_questions", "ai_self_reference", "bliss_terms", "affect_positive"),
    *("affect_negative", "acknowledgements"),
)
"""Lists of cues, of one word or several."""


_Cues = dict[str | None, list[tuple[str, tuple[str, ...], bool]]]
"""By the second word (None: there is none) the cues that begin with a word: list, tokens, only at an opening."""


class Lexicon:
    """Word lists of one language.

    Args:
        lists: the words and phrases of each list, by its name (`LSM_CATEGORIES` and `CUE_LISTS`).
        version: what is stored beside every number that depends on it.
        script: the script of the language. Messages mostly in another script get NULL.
    """

    def __init__(self, lists: Mapping[str, Iterable[str]], version: str, script: str = "Latin") -> None:
        self.version = version
        self.script = script
        self._classes: dict[str, tuple[int, ...]] = {}
        for number, name in enumerate(LSM_CATEGORIES):
            for word in lists.get(name, ()):
                self._classes[word] = (*self._classes.get(word, ()), number)
        self.function_words = frozenset(self._classes)
        """Every word of a closed class."""
        self.names = tuple(name for name in CUE_LISTS if name in lists)
        self._words: dict[str, tuple[str, ...]] = {}
        self._phrases: dict[str, _Cues] = {}
        for name in self.names:
            cues = {(tuple(tokenize(cue)), cue.startswith("^")) for cue in lists[name]}
            # A list with no phrase needs no walk: it is counted by word. In the others the longest cue comes first.
            if all(len(tokens) == 1 and not first for tokens, first in cues):
                for (word,), _ in cues:
                    self._words[word] = (*self._words.get(word, ()), name)
                continue
            for tokens, first in sorted(cues, key=lambda cue: (-len(cue[0]), cue)):
                following = self._phrases.setdefault(tokens[0], {})
                following.setdefault(tokens[1] if len(tokens) > 1 else None, []).append((name, tokens, first))

    def class_counts(self, counts: Mapping[str, int]) -> tuple[list[int], int]:
        """How many tokens each of `LSM_CATEGORIES` has, and how many are in any of them.

        Args:
            counts: how often each token occurs.
        """
        found, total = [0] * len(LSM_CATEGORIES), 0
        for word in counts.keys() & self.function_words:
            times = counts[word]
            total += times
            for number in self._classes[word]:
                found[number] += times
        return found, total

    def cue_counts(
        self, tokens: Sequence[str], counts: Mapping[str, int], openings: Collection[int] = (0,)
    ) -> Counter[str]:
        """How often cues of each list occur. The longest cue wins, and a token counts once for each list.

        Args:
            tokens: those of one message.
            counts: how often each of them occurs.
            openings: the positions at which a sentence begins.
        """
        found: Counter[str] = Counter()
        for word in counts.keys() & self._words.keys():
            for name in self._words[word]:
                found[name] += counts[word]
        free: dict[str, int] = {}
        phrases = self._phrases
        for at, token in enumerate(tokens):
            if token not in phrases:
                continue
            following = phrases[token]
            longer = following.get(tokens[at + 1], ()) if at + 1 < len(tokens) else ()
            for name, cue, first in (*longer, *following.get(None, ())):
                size = len(cue)
                if free.get(name, 0) > at or (first and at not in openings):
                    continue
                if size < 3 or tuple(tokens[at : at + size]) == cue:
                    found[name] += 1
                    free[name] = at + size
        return found

    def opens_with(self, tokens: Sequence[str], names: Collection[str]) -> bool:
        """Whether the message begins with a cue of one of the lists."""
        if not tokens:
            return False
        if any(name in names for name in self._words.get(tokens[0], ())):
            return True
        return any(
            name in names and tuple(tokens[: len(cue)]) == cue
            for cues in self._phrases.get(tokens[0], {}).values()
            for name, cue, _ in cues
        )


@lru_cache(maxsize=1)
def english() -> Lexicon:
    """The packaged English lists."""
    return Lexicon({name: word_list(f"en/{name}") for name in (*LSM_CATEGORIES, *CUE_LISTS)}, LEXICON_VERSION)
