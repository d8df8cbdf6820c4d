"""Text that models and people wrote, on its way into Markdown and HTML.

What a renderer acts on is escaped, what nobody can see is made visible, and nothing is left out: every word of the
record can be read back from what stands here.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

__all__ = ["Markdown", "count", "fenced", "inline", "prose", "quoted", "readable", "table", "visible"]

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_NAMED = (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0xFFF9, 0xFFFC))
_VISIBLE = _PICTURES | {code: f"⟨U+{code:04X}⟩" for code in _NAMED} | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")

# What Unicode lets a font show nothing for. What is written with such characters keeps them, one after each letter:
# a run of them says something that no reader would see.
_JOINED = "".join(
    rf"\p{{Script={script}}}"
    for script in (
        *("Arabic", "Syriac", "Nko", "Mandaic", "Mongolian", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya"),
        *("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Myanmar", "Khmer", "Tibetan"),
    )
)
_UNSPACED = r"\p{Script=Khmer}\p{Script=Lao}\p{Script=Myanmar}\p{Script=Thai}\p{Script=Tibetan}"

_SPECIAL = re.compile(r"[\\`*_\[\]#|~$^]")
_BEGINNING = re.compile(r"(?P<mark>[-+=]|(?P<number>\d{1,9})(?P<after>[.)]))")
_LINK = re.compile(r"(?P<scheme>https?|ftp):(?=//)|(?P<www>www)\.", re.IGNORECASE)
_MOST_PLACES = 12
_BLANKS = {" ": "&nbsp;", "\t": "&emsp;"}
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<rest>.*)")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def count(number: int, what: str) -> str:
    """A number of things as people read it: `1 turn`, `2 turns`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@cache
def _unseen() -> Any:
    """A character that Unicode lets a font show nothing for; the group `needed` where writing needs it."""
    import regex  # together they take longer than a command that only counts

    return regex.compile(
        r"(?=\p{Default_Ignorable_Code_Point})(?:(?P<needed>"
        r"(?<=\p{Extended_Pictographic}[\U0001F3FB-\U0001F3FF]?\uFE0F?)\u200D(?=\p{Extended_Pictographic})"
        r"|(?<=\U0001F3F4)\U000E0067\U000E0062(?:\U000E0065\U000E006E\U000E0067|\U000E0073\U000E0063\U000E0074|"
        r"\U000E0077\U000E006C\U000E0073)\U000E007F"
        rf"|(?<=[{_JOINED}])(?<!\p{{Default_Ignorable_Code_Point}})[\u200C\u200D]"
        rf"|(?<=[{_UNSPACED}])\u200B(?=[{_UNSPACED}])"
        r"|(?<=\p{Script=Mongolian})(?<!\p{Default_Ignorable_Code_Point})[\u180B-\u180F]"
        r"|(?<=[\p{L}\p{N}\p{P}\p{S}])[\uFE00-\uFE0F]"
        r"|(?<=\p{Script=Han})[\U000E0100-\U000E01EF]"
        r")|.)",
        regex.DOTALL,
    )


def visible(text: str) -> str:
    """`text` with nothing in it that cannot be seen.

    Control characters other than line ends and tabs show as their pictures (U+2400 block); those without one, the
    marks that turn the direction of writing, and characters without width show as ⟨U+…⟩. Of the last, those stay that
    writing needs: in emoji sequences and flags, joiners in scripts whose letters join, spaces without width where words
    are not set apart, and variation selectors after what they vary.
    """
    if not text.isascii():
        text = _unseen().sub(lambda found: found["needed"] or f"⟨U+{ord(found[0]):04X}⟩", text)
    return text.translate(_VISIBLE)


def readable(value: float, digits: int = 4) -> str:
    """A number as people read it: thousands set off, of a fraction so many digits that count."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > _MOST_PLACES:
        return f"{value:.{digits}g}"
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def _escaped(line: str) -> str:
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\g<0>", line)
    return _LINK.sub(lambda found: f"{found['scheme']}&#58;" if found["scheme"] else f"{found['www']}&#46;", line)


def inline(text: str) -> Markdown:
    """`text` within a line of Markdown: a heading, a cell of a table. Line ends show as ⏎."""
    return Markdown(_begun(_flat(text)))


def _flat(text: str) -> str:
    return _escaped(visible(text).replace("\n", " ⏎ ").replace("\t", " "))


def _begun(line: str) -> str:
    if found := _BEGINNING.match(line):
        if found["number"] is not None:
            return f"{found['number']}\\{found['after']}{line[found.end() :]}"
        return "\\" + line
    return line


def _line(line: str) -> str:
    words = line.lstrip(" \t")
    indent = "".join(_BLANKS[char] for char in line[: len(line) - len(words)])
    return indent + (_escaped(words) if indent else _begun(_escaped(words)))


def fenced(text: str, language: str = "") -> Markdown:
    """`text` as a block of code. Its fence is longer than anything in it that looks like one."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall("`{3,}", shown)), default=2)
    fence = "`" * (longest + 1)
    return Markdown(f"{fence}{language}\n{shown}\n{fence}")


def prose(text: str) -> Markdown:
    """`text` as Markdown that renders as what was written, line by line; blocks of code stay blocks of code."""
    return Markdown("\n".join(_blocks(visible(text).split("\n"))))


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        if opening is not None and not ("`" in opening["rest"] and opening["fence"].startswith("`")):
            end = _closing(lines, at + 1, opening["fence"])
            if at:
                yield ""
            yield fenced("\n".join(lines[at:end]))
            if end < len(lines):
                yield ""
            at = end
            continue
        line = _line(lines[at])
        at += 1
        more = at < len(lines) and lines[at].strip() and line.strip()
        yield line + "  " if more else line


def _closing(lines: Sequence[str], at: int, fence: str) -> int:
    """The line after the block that `fence` opens; without a closing fence it goes on to the end."""
    closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
    for place in range(at, len(lines)):
        if closing.fullmatch(lines[place]):
            return place + 1
    return len(lines)


def quoted(markdown: str) -> Markdown:
    """Markdown within a block quote."""
    return Markdown("\n".join(f"> {line}" if line else ">" for line in markdown.split("\n")))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Markdown:
    """A table. Cells are escaped unless they are `Markdown`; None is empty. The first `left` columns are flush left."""
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join(" --- " if place < left else " ---: " for place in range(len(head))) + "|",
    ]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return Markdown("\n".join(lines))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, Markdown) else _flat(str(value))
