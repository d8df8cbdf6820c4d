"""Records that pages are made of, and what a reader would see of those pages."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin
from markdown_it import MarkdownIt
from runs import make, said, start
from support import experiment

from pidgin_cli.core.events import (
    ConversationEndEvent,
    Event,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.experiments.runner import create_experiment
from pidgin_cli.reports.post_processing import STEPS

__all__ = ["CASES", "HOSTILE", "Page", "all_done", "end", "folder_of_look", "look", "made", "rendered", "talk"]

HOSTILE = [
    "</div></details><script>alert(1)</script><img src=x onerror=alert(2)>",
    "# A heading\n\n- a list\n1. numbers\n> a quote\n\n| a | table |\n|---|---|\n\n---\nsetext\n===\n[x]: http://a.example",
    "```python\nprint('code')\n```\n````\nan unclosed fence with ``` in it\n## 9 · somebody else",
    "{{ 7 * 7 }} {% for x in ().__class__.__mro__ %}{{ x }}{% endfor %} {# gone #} {{ undefined_name }}",
    "\x1b[31mred\x1b]0;title\x07 \x00NUL \x7f\x85\u202eoverride\u202c \u2028 \r\n and a tab\tin between",
    "=cmd|' /C calc'!A0, +1 and -1, $x^2$ ~~struck~~ *stars* _under_ <b>bold</b> &amp; &#60; \\ ![i](http://a.example/i)",
    "https://a.example and www.a.example, :smile: @someone #1 <http://a.example>",
    "   indented\n\n\n\n\ttab\n  ",
    "🌀🌀🌀 🙏🏽",
    "مرحبا עברית 你好",
]


def end(**keys: Any) -> ConversationEndEvent:
    given: dict[str, Any] = {
        "status": Status.COMPLETED,
        "end_reason": EndReason.TURN_LIMIT,
        "totals": Totals(turns=1, messages=1),
    }
    return ConversationEndEvent(**given | keys)


def talk(*texts: str, ended: bool = True) -> list[Event]:
    """A record in which two agents say these texts, a turn for every two."""
    events: list[Event] = [start(turns=(len(texts) + 1) // 2)]
    for index, text in enumerate(texts):
        if index % 2 == 0:
            events.append(TurnStartEvent(turn_number=index // 2 + 1, speakers=("a", "b")))
        events.append(said(text, "ab"[index % 2], index // 2 + 1, index))
        if index % 2:
            events.append(TurnCompleteEvent(turn_number=index // 2 + 1))
    return [*events, end()] if ended else events


def made(tmp_path: Path, *talks: Sequence[Event], **how: Any) -> tuple[OutputRoot, ExperimentFolder]:
    root = OutputRoot(tmp_path / "out")
    return root, make(root, "abcdefgh", talks, **{"status": Status.COMPLETED} | how)


def all_done(outcomes: dict[str, str]) -> None:
    assert list(outcomes) == list(STEPS)
    assert all(outcome.startswith("done") for outcome in outcomes.values()), outcomes


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._in = ""
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = "words" if dict(attrs).get("class") == "words" else "script" if tag == "script" else ""
        if self._in == "words":
            self.words.append("")
        elif self._in == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "words":
            self.words[-1] += data
        elif self._in == "script":
            self.scripts[-1] += data


def rendered(markdown: str) -> tuple[set[str], str]:
    """The kinds of things that rendering makes of Markdown, and the text in them without white space."""
    kinds: set[str] = set()
    text = ""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        kinds.add(token.type)
        if token.type == "fence":
            text += token.content
        for child in token.children or ():
            kinds.add(child.type)
            text += child.content
    return kinds, "".join(text.split())


def _blank(tmp_path: Path) -> tuple[OutputRoot, ExperimentFolder]:
    root = OutputRoot(tmp_path / "out")
    return root, create_experiment(root, experiment("local:test", "local:test"))


CASES: dict[str, Any] = {
    "never run": _blank,
    "one message": lambda path: made(path, talk("Hello.", ended=False), status=Status.INTERRUPTED),
    "one turn": lambda path: made(path, talk("Hello.", "Hello to you.")),
    "failed at once": lambda path: made(
        path,
        [start(), end(status=Status.FAILED, end_reason=EndReason.PROVIDER_ERROR, error="AuthenticationFailed: <b>no")],
        status=Status.FAILED,
    ),
    "nothing but a start": lambda path: made(path, [start()], status=Status.INTERRUPTED),
    "all empty": lambda path: made(path, talk("", "", "", "")),
    "white space": lambda path: made(path, talk(" ", "\n\n", "\t", "   ")),
    "emoji only": lambda path: made(path, talk("🌀🌀🌀", "🙏🏽", "🌀", "✨"), talk("🙏", "🙏")),
    "hostile": lambda path: made(path, talk(*HOSTILE), name="<script>{{ 7*7 }}</script> | *x*"),
    "a megabyte": lambda path: made(path, talk("word and " * 116_000, "short")),
    "invalid": lambda path: made(path, [*talk("One.", "Two.", ended=False), end(invalid=("harness_fault",))]),
    "questions": lambda path: made(path, talk("Why? " * 10_000, "Because.")),
}


@pytest.fixture
def look(pidgin: Pidgin) -> tuple[Pidgin, str]:
    """A chat of two turns named look, and its id."""
    said = pidgin("chat", "-a", "local:test", "-b", "local:test", "-t", "2", "-n", "look", "--display", "quiet")
    assert said.status == 0
    (folder,) = OutputRoot(Path("pidgin_output")).folders()
    return pidgin, folder.experiment_id


def folder_of_look() -> Path:
    """Where the record of `look` is."""
    (path,) = Path("pidgin_output/experiments").glob("experiment_*")
    return path
