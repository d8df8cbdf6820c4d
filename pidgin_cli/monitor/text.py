"""Model output on its way to a terminal."""

import re
from collections.abc import Callable, Iterator

from rich.cells import cell_len

__all__ = ["Wrapper", "one_line", "visible"]

_SHOWN = {code: chr(0x2400 + code) for code in range(32)}
_SHOWN |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_SHOWN |= dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "")
_SHOWN |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_SHOWN |= {0x7F: "\u2421", ord("\t"): "    ", ord("\n"): "\n", ord("\r"): "", 0x0B: "\n", 0x0C: "\n"}
_SHOWN |= {0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
_WORDS = re.compile(r"\n|[^\S\n]+|[^\s]+")
_WIDE = re.compile(r"([\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uff60])")


def visible(text: str) -> str:
    """`text` with nothing in it that a terminal acts on.

    Control characters, escape included, show as their pictures (U+2400 block); bidirectional overrides vanish.
    """
    return text.translate(_SHOWN)


def one_line(text: str, width: int) -> str:
    """The beginning of `text` on one line of at most `width` cells."""
    flat = " ".join(visible(text).split())
    if cell_len(flat) <= width:
        return flat
    while cell_len(flat) > width - 1:
        flat = flat[: -max(1, (cell_len(flat) - width + 1) // 2)]
    return flat.rstrip() + "…"


class Wrapper:
    """Breaks a stream of text into lines, word by word, as it arrives.

    A word is written once it is whole, so that it never has to be taken back to the next line.
    """

    def __init__(self, write: Callable[[str], None], width: int | None, indent: str = "") -> None:
        """`width` in cells, indentation included; None: break only where the text does."""
        self._write = write
        self._width = width
        self._indent = indent
        self._column = 0
        self._word = ""
        self._gap = ""

    def feed(self, text: str) -> None:
        """Take more text."""
        if self._width is None:
            self._write(text)
            return
        for piece in _pieces(text):
            if piece == "\n":
                self._end_word()
                self._gap = ""
                self._break()
            elif piece.isspace():
                self._end_word()
                self._gap += piece
            else:
                for part in _WIDE.split(piece):
                    if _WIDE.match(part):
                        self._end_word()
                        self._put(part)
                    else:
                        self._word += part

    def close(self) -> None:
        """Write what is still held back."""
        self._end_word()
        self._gap = ""
        self._column = 0

    def _end_word(self) -> None:
        if self._word:
            word, self._word = self._word, ""
            self._put(word)

    def _put(self, word: str) -> None:
        assert self._width is not None
        room = self._width - len(self._indent)
        if self._column and self._column + cell_len(self._gap + word) > room:
            self._break()
        elif self._column or self._gap.strip(" "):
            self._out(self._gap)
        self._gap = ""
        while cell_len(word) > room - self._column:
            cut = _fitting(word, room - self._column)
            self._out(word[:cut])
            self._break()
            word = word[cut:]
        self._out(word)

    def _out(self, text: str) -> None:
        if not text:
            return
        if self._column == 0:
            self._write(self._indent)
        self._write(text)
        self._column += cell_len(text)

    def _break(self) -> None:
        self._write("\n")
        self._column = 0
        self._gap = ""


def _pieces(text: str) -> Iterator[str]:
    for match in _WORDS.finditer(text):
        yield match[0]


def _fitting(word: str, width: int) -> int:
    used = 0
    for index, char in enumerate(word):
        used += cell_len(char)
        if used > width and index:
            return index
    return len(word)
