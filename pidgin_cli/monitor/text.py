"""Model output on its way to a terminal."""

import re
from collections.abc import Callable

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
    used = end = 0
    for index, char in enumerate(flat):
        used += _cells(char)
        if used < width:
            end = index + 1
        if used > width:
            return flat[:end].rstrip() + "…" if width > 0 else ""
    return flat


class Wrapper:
    """Breaks a stream of text into lines, word by word, as it arrives.

    A word is written once it is whole, so that it never has to be taken back to the next line; one that fits on no line
    is cut where the line ends. The result does not depend on how the text was cut into pieces.
    """

    def __init__(self, write: Callable[[str], None], width: int | None, indent: str = "") -> None:
        """`width` in cells, indentation included; None: break only where the text does."""
        self._write = write
        self._indent = indent
        self._room = None if width is None else max(width - cell_len(indent), 2)  # one wide character
        self._column = 0
        self._empty = True
        """Nothing stands on this line yet."""
        self._fresh = True
        """The line is empty and the text began it, so that blanks are its indentation."""
        self._word: list[str] = []
        self._word_cells = 0
        self._cut = False
        """The beginning of this word filled whole lines already."""
        self._gap = ""
        self._ready: list[str] = []

    def feed(self, text: str) -> None:
        """Take more text."""
        if self._room is None:
            self._write(text)
            return
        for match in _WORDS.finditer(text):
            piece = match[0]
            if piece == "\n":
                self._end_word()
                self._break()
                self._fresh = True
            elif piece.isspace():
                self._end_word()
                self._gap += piece
            else:
                for part in _WIDE.split(piece):
                    if _WIDE.match(part):
                        self._end_word()
                        self._put(part, _cells(part))
                    elif part:
                        self._add(part)
        self._hand_over()

    def close(self) -> None:
        """Write what is still held back."""
        self._end_word()
        self._hand_over()
        self._gap = ""
        self._column = 0
        self._empty = self._fresh = True

    def _add(self, part: str) -> None:
        """More of the word under way."""
        assert self._room is not None
        self._word.append(part)
        self._word_cells += _cells(part)
        if self._word_cells <= self._room:
            return
        if not self._cut and not self._empty:
            self._break()
        self._cut, self._gap = True, ""
        word, start, used = "".join(self._word), 0, 0
        for index, char in enumerate(word):
            cells = _cells(char)
            if used + cells > self._room:
                self._out(word[start:index], used)
                self._break()
                start, used = index, 0
            used += cells
        self._word, self._word_cells = [word[start:]], used

    def _end_word(self) -> None:
        if not self._word:
            return
        word, cells, cut = "".join(self._word), self._word_cells, self._cut
        self._word, self._word_cells, self._cut = [], 0, False
        if cut:
            self._out(word, cells)
        else:
            self._put(word, cells)

    def _put(self, word: str, cells: int) -> None:
        assert self._room is not None
        gap, self._gap = self._gap, ""
        before = _cells(gap)
        if self._column + before + cells > self._room:
            if not self._empty:
                self._break()
        elif self._fresh or not self._empty:
            self._out(gap, before)
        self._out(word, cells)

    def _out(self, text: str, cells: int) -> None:
        if not text:
            return
        if self._empty:
            self._ready.append(self._indent)
        self._ready.append(text)
        self._column += cells
        self._empty = self._fresh = False

    def _break(self) -> None:
        self._ready.append("\n")
        self._column = 0
        self._gap = ""
        self._empty = True
        self._fresh = False

    def _hand_over(self) -> None:
        if self._ready:
            self._write("".join(self._ready))
            self._ready.clear()


def _cells(text: str) -> int:
    """Cells that `text` takes at most: a sum over its characters, so that it is the same however the text is cut."""
    if text.isascii():
        return len(text)
    return sum(map(cell_len, text)) + text.count("\ufe0f")
