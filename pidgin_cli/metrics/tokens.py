"""How text is cut up: code points, graphemes, emoji, tokens, sentences, and what kind of message it makes.

Everything that counts words counts these words. The cut is versioned (`TOKENIZER_VERSION`), because no two numbers
compare across two of them. Text is taken as `clean` leaves it, so nothing here can fail on what a model wrote, and
every function takes time linear in the length of the text.
"""

import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import regex

from pidgin_cli.core.types import clean_text

__all__ = [
    "TOKENIZER_VERSION",
    "MessageClass",
    "Sentence",
    "Split",
    "char_script",
    "classify",
    "clean",
    "count_graphemes",
    "emoji_in",
    "fold_skin_tone",
    "graphemes",
    "is_emoji",
    "normalise",
    "prepare",
    "quoted_spans",
    "sentences",
    "split_code",
    "token_spans",
    "tokenize",
    "tokens_in",
    "word_list",
]

TOKENIZER_VERSION = "tok_uni_v1"

_KANA_HAN = r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}ー"
_TOKEN = regex.compile(
    rf"[{_KANA_HAN}]|[[\p{{L}}\p{{N}}]--[{_KANA_HAN}]][[\p{{L}}\p{{M}}\p{{N}}]--[{_KANA_HAN}]]*"
    r"(?:'[\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*",
    regex.V1,
)
_EMOJI = regex.compile(r"\p{Emoji_Presentation}|\p{Emoji}\uFE0F|\p{Regional_Indicator}|\u20E3", regex.V1)
_CLUSTER = regex.compile(r"\X")
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff]")

# Most text has only characters that are a grapheme each, are in NFC, and are neither emoji nor marks. For those the
# standard `re` gives the same answers at a fraction of the time. U+000D makes one grapheme with U+000A after it, and
# U+0130 gains a mark when lowered, so both are left out.
_PLAIN_CLASS = r"\x00-\x0c\x0e-\u012f\u0131-\u02ff\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2190-\u2211"
_PLAIN = re.compile(rf"[{_PLAIN_CLASS}]*")
_PLAIN_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_NOT_PLAIN = re.compile(rf"[{_PLAIN_CLASS}]?[^{_PLAIN_CLASS}]+(?:[{_PLAIN_CLASS}][^{_PLAIN_CLASS}]+)*[{_PLAIN_CLASS}]?")


def clean(text: str) -> str:
    """Text that UTF-8 can carry: joined halves of a surrogate pair are one character, lone ones become U+FFFD."""
    return clean_text(text)[0]


def _is_plain(text: str) -> bool:
    return (text.isascii() and "\r" not in text) or _PLAIN.fullmatch(text) is not None


# Graphemes and emoji


def graphemes(text: str) -> list[str]:
    """The extended grapheme clusters of a text, in order."""
    return list(text) if _is_plain(text) else _CLUSTER.findall(text)


def count_graphemes(text: str) -> int:
    """How many extended grapheme clusters there are."""
    if _is_plain(text):
        return len(text)
    # A plain character never attaches to a plain one, so only stretches around the others need the full rules.
    surplus = 0
    for match in _NOT_PLAIN.finditer(text):
        surplus += match.end() - match.start() - len(_CLUSTER.findall(match[0]))
    return len(text) - surplus


def is_emoji(cluster: str) -> bool:
    """Whether a grapheme cluster is shown as an emoji. Bare ❤ ☀ © ↔ without U+FE0F are symbols."""
    return _EMOJI.search(cluster) is not None


def emoji_in(text: str) -> list[str]:
    """The emoji of a text in order, one string for each sequence."""
    if _is_plain(text) or _EMOJI.search(text) is None:
        return []
    return [
        cluster
        for match in _NOT_PLAIN.finditer(text)
        for cluster in _CLUSTER.findall(match[0])
        if (len(cluster) > 1 or cluster > "\xff") and is_emoji(cluster)
    ]


def fold_skin_tone(emoji: str) -> str:
    """The emoji without its skin tones, so that 🙏🏽 and 🙏 are one type."""
    return _SKIN_TONE.sub("", emoji)


def _without_emoji(text: str) -> str:
    if _EMOJI.search(text) is None:
        return text
    return _NOT_PLAIN.sub(
        lambda match: "".join(
            " " if (len(cluster) > 1 or cluster > "\xff") and is_emoji(cluster) else cluster
            for cluster in _CLUSTER.findall(match[0])
        ),
        text,
    )


# Tokens


def prepare(text: str) -> str:
    """What `tok_uni_v1` looks for tokens in: NFC, a space for each emoji, U+2019 as apostrophe, lower case."""
    if not _is_plain(text):
        text = _without_emoji(unicodedata.normalize("NFC", text))
    return text.replace("’", "'").lower()


def tokens_in(prepared: str) -> list[str]:
    """The tokens of text that has been through `prepare`."""
    return (_PLAIN_TOKEN if _is_plain(prepared) else _TOKEN).findall(prepared)


def tokenize(text: str) -> list[str]:
    """The words of a text, `tok_uni_v1`: runs of letters and numbers with inner apostrophes, lower case.

    A Han or kana character is a token of its own. Emoji, symbols, hyphens and punctuation are none.
    """
    return tokens_in(prepare(text))


def token_spans(prepared: str) -> Iterator[int]:
    """Where each token of text that has been through `prepare` begins."""
    return (match.start() for match in (_PLAIN_TOKEN if _is_plain(prepared) else _TOKEN).finditer(prepared))


_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』")


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Where text stands within double quotation marks of any style, on one line."""
    return [match.span() for match in _QUOTED.finditer(text)]


def normalise(text: str) -> str:
    """The form in which two messages count as the same: NFKC, case folded, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


# Code


class Split(NamedTuple):
    """A message with its code cut out."""

    prose: str
    """The rest, a line end where a block stood and a space where inline code stood."""
    code_chars: int
    """Code points cut out, fences and backticks included."""
    parts: tuple[str, ...]
    """The texts before, between and after the fenced blocks, inline code still in them."""

    @property
    def blocks(self) -> int:
        """Fenced blocks. One that is never closed reaches to the end."""
        return len(self.parts) - 1


_FENCE = re.compile(r"^[^\S\n]*(`{3,}|~{3,})", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)(?:`[^`\n]+`|``[^`\n]+``)(?!`)")


def split_code(text: str) -> Split:
    """Separate fenced and inline code from prose."""
    cut = 0
    parts: tuple[str, ...] = (text,)
    if "```" in text or "~~~" in text:
        parts, cut = _outside_fences(text)
        text = "\n".join(parts)
    if "`" in text:
        cut += sum(len(code) for code in _INLINE.findall(text))
        text = _INLINE.sub(" ", text)
    return Split(text, cut, parts)


def _outside_fences(text: str) -> tuple[tuple[str, ...], int]:
    parts, start, fence, cut = [], 0, "", 0
    for match in _FENCE.finditer(text):
        mark = match[1]
        if not fence:
            parts.append(text[start : match.start()])
            start, fence = match.start(), mark
        elif mark[0] == fence[0] and len(mark) >= len(fence):
            end = text.find("\n", match.end())
            end = len(text) if end < 0 else end
            if not text[match.end() : end].strip():
                cut += end - start
                start, fence = end, ""
    if fence:
        cut += len(text) - start
        start = len(text)
    return (*parts, text[start:]), cut


# Sentences


class Sentence(NamedTuple):
    """One sentence that holds at least one token."""

    tokens: list[str]
    end: str
    """The marks it ends with; empty at a line's end."""

    @property
    def is_question(self) -> bool:
        """It ends with a question mark of any script."""
        return "?" in self.end or (not self.end.isascii() and ("？" in self.end or "؟" in self.end))

    @property
    def is_exclamation(self) -> bool:
        """It ends with an exclamation mark of any script."""
        return "!" in self.end or "！" in self.end


_WIDE = "。！？؟।"
_END = re.compile(rf"([.!?…{_WIDE}]+)[\"'”’»)\]*_]*|\n+")
_LIST_NUMBER = re.compile(r"(?:\A|\n)[^\S\n]*\d{1,3}\Z")
_LAST_WORD = re.compile(r"[^\s(]*\Z")


def word_list(name: str) -> tuple[str, ...]:
    """The entries of a packaged word list, as `lexicons/<name>.txt` has them: one a line, `#` begins a comment."""
    text = (files("pidgin_cli.metrics") / "lexicons" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(entry for line in text.splitlines() if (entry := line.partition("#")[0].strip()))


@lru_cache(maxsize=1)
def _abbreviations() -> frozenset[str]:
    return frozenset(word_list("en/abbreviations"))


def sentences(prepared: str) -> list[Sentence]:
    """The sentences of text that has been through `prepare`: ended by . ! ? … 。！？؟ । or a line's end.

    A full stop within a word or number, after an abbreviation, an initial or the number of a list item ends nothing.
    """
    found, start = [], 0
    cut = _PLAIN_TOKEN if _is_plain(prepared) else _TOKEN
    for match in _END.finditer(prepared):
        marks = match[1] or ""
        if marks and not _ends_here(prepared, start, match.start(), match.end(), marks):
            continue
        if tokens := cut.findall(prepared, start, match.start()):
            found.append(Sentence(tokens, marks))
        start = match.end()
    if tokens := cut.findall(prepared, start):
        found.append(Sentence(tokens, ""))
    return found


def _ends_here(text: str, start: int, mark_at: int, after: int, marks: str) -> bool:
    if not marks.isascii() and any(mark in _WIDE for mark in marks):
        return True
    if after < len(text) and not text[after].isspace():
        return False
    if marks != ".":
        return True
    before = _LAST_WORD.search(text[max(start, mark_at - 24) : mark_at])
    word = before[0] if before else ""
    if word in _abbreviations() or (len(word) == 1 and word.isalpha() and word != "i"):
        return after >= len(text)
    return not (word.isdigit() and _LIST_NUMBER.search(text, max(0, mark_at - 24), mark_at))


# What kind of message


class MessageClass(StrEnum):
    """What a message consists of; the first that fits."""

    EMPTY = "empty"
    """Nothing, or white space and invisible characters."""
    PUNCT_ONLY = "punct_only"
    """Neither a token nor an emoji."""
    EMOJI_ONLY = "emoji_only"
    ONE_WORD = "one_word"
    SHORT = "short"
    """Two to five tokens."""
    NORMAL = "normal"


def classify(text: str, tokens: int, emoji: int) -> MessageClass:
    """The class of a message with so many tokens and emoji."""
    if tokens > 5:
        return MessageClass.NORMAL
    if tokens > 1:
        return MessageClass.SHORT
    if tokens == 1:
        return MessageClass.ONE_WORD
    if emoji:
        return MessageClass.EMOJI_ONLY
    if all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in set(text)):
        return MessageClass.EMPTY
    return MessageClass.PUNCT_ONLY


# Scripts

_SCRIPTS = (
    *("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari"),
    *("Bengali", "Tamil", "Telugu", "Thai", "Lao", "Khmer", "Myanmar", "Georgian", "Armenian", "Ethiopic", "Tibetan"),
)
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in _SCRIPTS))


@lru_cache(maxsize=4096)
def char_script(char: str) -> str:
    """The script of a letter; `Other` for those that are not told apart."""
    match = _SCRIPT.match(char)
    return match.lastgroup if match is not None and match.lastgroup else "Other"
