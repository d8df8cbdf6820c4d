"""`pidgin diff`: two conversations side by side, from where they part."""

import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, pidgin
from held import hold_in
from msgspec.structs import replace
from rich.cells import cell_len
from support import Scripted, ScriptedPool, conversation

from pidgin_cli.core.types import Delta, Finish, TextDelta
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.spec.conversation import ConversationSpec, Intervention, Origin

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
A, B = "one00000-1", "other000-1"


def replies(*said: str) -> list[list[Delta]]:
    return [[TextDelta(text), Finish()] for text in said]


async def spoken(name: str, a: list[str], b: list[str], **changes: Any) -> None:
    spec: ConversationSpec = replace(conversation("openai:one", "openai:two", max_turns=len(a)), **changes)
    pool = ScriptedPool(one=Scripted(*replies(*a)), two=Scripted(*replies(*b)))
    await hold_in(OutputRoot(ROOT.absolute()), name, spec, pool)


async def call(pidgin: Pidgin, *args: str) -> Any:
    return await asyncio.to_thread(pidgin, *args)


async def test_two_conversations_are_shown_from_where_they_part(pidgin: Pidgin) -> None:
    """What is the same before is left out; settings that differ stand above; `--all` shows everything."""
    await spoken(A, ["same-1", "left-2"], ["same-2", "left-3"])
    await spoken(B, ["same-1", "right-2"], ["same-2", "right-3"], prompt_tag="NOTE", max_turns=2)
    said = await call(pidgin, "diff", A, B)
    assert said.status == 0
    assert "They part at message 2 (turn 2)." in said.out
    assert re.search(r"prompt_tag +HUMAN +NOTE", said.out)
    assert re.search(r"a: left-2 .* a: right-2", said.out)
    assert "same-1" not in said.out
    assert "same-1" in (await call(pidgin, "diff", A, B, "--all")).out
    same = await call(pidgin, "diff", A, A)
    assert "They say the same from beginning to end." in same.out
    rows = json.loads((await call(pidgin, "diff", A, B, "--json")).out)
    assert rows[0] == {"kind": "setting", "name": "prompt_tag", "a": "HUMAN", "b": "NOTE"}
    assert [row["message_index"] for row in rows if row["kind"] == "row" and not row["same"]] == [2, 3]
    assert json.loads((await call(pidgin, "diff", A, A, "--json")).out) == []


async def test_silence_is_counted_as_people_do(pidgin: Pidgin) -> None:
    """One turn is no turns, side by side and in a transcript."""
    silence = Intervention(turn=2, kind="mute", agents=("b",), turns=1)
    await spoken(A, ["same-1", "left-2"], ["same-2", "left-3"])
    await spoken(B, ["same-1", "right-2"], ["same-2"], interventions=(silence,))
    assert "b is silent for 1 turn " in " ".join((await call(pidgin, "diff", A, B)).out.split())
    assert "is silent for 1 turn." in (await call(pidgin, "transcript", B)).out


async def test_a_branch_parts_from_its_origin_at_the_fork(pidgin: Pidgin) -> None:
    """What a branch shares counts as its own; what was done to it at the fork is the first difference."""
    await spoken(A, ["a1", "a2", "a3"], ["b1", "b2", "b3"])
    script = (Intervention(3, "inject", ("a",), "Speak of rivers."), Intervention(3, "edit", ("b",), "No."))
    await spoken(B, ["x3"], ["y3"], origin=Origin(A, 2), interventions=script, max_turns=3)
    said = await call(pidgin, "diff", A, B)
    assert "They part at message 4 (turn 3)." in said.out
    assert "Speak of rivers." in said.out
    assert "message 3 of b now reads: No." in said.out
    assert "a2" not in said.out
    (log,) = ROOT.glob(f"experiments/*/conv_{A}_events.jsonl")
    text = log.read_text()
    log.write_text(text.replace('"b2"', '"b-changed"').replace("a1", "a9"))
    again = await call(pidgin, "diff", A, B)
    assert "not there" in again.out


async def test_conversations_of_different_length(pidgin: Pidgin) -> None:
    """Where one has ended the other goes on alone."""
    await spoken(A, ["a1"], ["b1"])
    await spoken(B, ["a1", "a2"], ["b1", "b2"])
    said = await call(pidgin, "diff", A, B)
    assert "They part at message 2 (turn 2)." in said.out
    assert "(nothing)" in said.out


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202eoverride <script>alert(1)</script> {{7*7}} [bold]x[/] </p><img src=x>"


async def test_hostile_text_is_harmless_in_the_terminal(pidgin: Pidgin, tmp_path: Path) -> None:
    """No control character of a model reaches the terminal; at 80 columns no line is longer."""
    await spoken(A, [HOSTILE * 5], ["界" * 200])
    await spoken(B, ["calm"], ["word" * 60])
    command = ["diff", A, B, "-o", str(ROOT.absolute())]
    said = await call(pidgin, *command)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said.out)
    assert "[bold]x[/]" in said.out
    screen = await asyncio.to_thread(shown_at, 80, command)
    assert "override" in screen
    assert max(cell_len(line) for line in screen.splitlines()) <= 80


def shown_at(columns: int, command: list[str]) -> str:
    """What a console of that width prints."""
    import io

    from rich.console import Console

    from pidgin_cli.conversation.parting import rows
    from pidgin_cli.eventlog.log import read_record
    from pidgin_cli.monitor.diff import Compared, print_diff

    logs = [next(ROOT.glob(f"experiments/*/conv_{name}_events.jsonl")) for name in (A, B)]
    found = rows(*(read_record(log).events for log in logs))
    console = Console(file=io.StringIO(), width=columns, force_terminal=False, markup=False, highlight=False)
    print_diff(console, Compared((A, B), {"agents.a.model": ("x" * 200, None)}, found))
    return console.file.getvalue()  # type: ignore[attr-defined]


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


async def test_the_page_is_self_contained_and_escapes_everything(pidgin: Pidgin) -> None:
    """Nothing of a model's text becomes markup, nothing is loaded from elsewhere, and it suits light and dark."""
    await spoken(A, [HOSTILE], ["b1"], opening=HOSTILE)
    await spoken(B, ["calm"], ["b1"], opening="Good evening.")
    said = await call(pidgin, "diff", A, B, "--html", "--to", "diff.html")
    assert said.status == 0, said.err
    html = Path("diff.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "a", "object"}
    assert not any(name in ("src", "href") or name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script> {{7*7}}" in "".join(page.text)
    assert "prefers-color-scheme: dark" in html
    assert "url(" not in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert (await call(pidgin, "diff", A, B, "--html")).out == html
    refused = await call(pidgin, "diff", A, B, "--html", "--to", "diff.html")
    assert refused.status == 2
    assert "exists already" in refused.err


@pytest.mark.parametrize("flags", [("--html", "--json"), ("--to", "x.html")])
async def test_contradictions_are_refused(pidgin: Pidgin, flags: tuple[str, ...]) -> None:
    """Two forms at once, or a file for none, is wrong use."""
    await spoken(A, ["a1"], ["b1"])
    assert (await call(pidgin, "diff", A, A, *flags)).status == 2
