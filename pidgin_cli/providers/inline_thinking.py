"""Thinking that a model writes into its text, between `<think>` and `</think>`, told apart while it streams.

Servers that know a model's template send thinking in a field of its own. Others pass on what the model wrote.

    splitter: ThinkingSplitter | None = ThinkingSplitter()
    for piece in pieces:
        for delta in splitter.feed(piece): ...
    for delta in splitter.end(): ...
"""

from pidgin_cli.core.types import TextDelta, ThinkingDelta

__all__ = ["ThinkingSplitter"]

OPEN, CLOSE = "<think>", "</think>"
MOST_BEFORE = 256
"""Characters of whitespace that may stand before the tag; some models write whitespace without end."""


class ThinkingSplitter:
    """Takes one reply's text piece by piece and gives it back as thinking and text; the tags are in neither.

    Only a reply that begins with the tag, whitespace before it aside, has such thinking: a tag further on is text. The
    whitespace after either tag goes with it. Without a closing tag everything is thinking. However the text is cut into
    pieces, the thinking adds up to the same, and so does the text.
    """

    def __init__(self) -> None:
        self._state = "begin"
        self._held = ""

    @property
    def decided(self) -> bool:
        """Whether all that may still come is text, so that there is nothing left to split."""
        return self._state == "text"

    def feed(self, piece: str) -> list[TextDelta | ThinkingDelta]:
        """What can be said by now; a few characters that may be the beginning of a tag are kept for the next piece."""
        found: list[TextDelta | ThinkingDelta] = []
        rest = self._held + piece
        self._held = ""
        if self._state == "begin":
            start = rest.lstrip()
            if len(rest) - len(start) > MOST_BEFORE:
                self._state = "text"
            elif start.startswith(OPEN):
                self._state, rest = "opened", start[len(OPEN) :]
            elif OPEN.startswith(start):
                self._held = rest
                return found
            else:
                self._state = "text"
        if self._state == "opened" and (rest := rest.lstrip()):
            self._state = "thinking"
        if self._state == "thinking":
            thought, closed, after = rest.partition(CLOSE)
            if closed:
                self._state, rest = "closed", after
            else:
                kept = _beginning_of_tag(thought)
                thought, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
                rest = ""
            if thought:
                found.append(ThinkingDelta(thought))
        if self._state == "closed" and (rest := rest.lstrip()):
            self._state = "text"
        if self._state == "text" and rest:
            found.append(TextDelta(rest))
        return found

    def end(self) -> list[TextDelta | ThinkingDelta]:
        """What was kept, now that nothing more comes."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ThinkingDelta(held) if self._state == "thinking" else TextDelta(held)]


def _beginning_of_tag(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag."""
    return next((size for size in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:size])), 0)
