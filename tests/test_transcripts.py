"""Transcripts, and what is done to texts so that they can be rendered anywhere."""

import re
from pathlib import Path

import pytest
import regex
from commands import Pidgin, error_of, pidgin
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pages import HOSTILE, folder_of_look, look, made, rendered, talk
from strategies import TEXT
from support import converse, experiment

from pidgin_cli.core.events import (
    InterventionEvent,
    MessageCompleteEvent,
    ThinkingCompleteEvent,
)
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.reports.text import fenced, prose, readable, table, visible
from pidgin_cli.reports.transcript import transcript

__all__ = ["look", "pidgin"]


@given(
    TEXT
    | st.lists(st.sampled_from(HOSTILE), max_size=3).map("\n".join)
    | st.text("`~*_[]()<>#|-=+.1 \t\n\\", max_size=60)
)
@settings(max_examples=400)
def test_whatever_a_model_writes_renders_as_the_words_it_wrote_and_nothing_else(text: str) -> None:
    """Rendered, a text is paragraphs, line breaks and code, and holds every character that is not white space."""
    kinds, shown = rendered(prose(text))
    assert kinds <= {
        "paragraph_open", "paragraph_close", "inline", "text", "text_special", "softbreak", "hardbreak", "fence",
    }  # fmt: skip
    assert shown == "".join(visible(text).split())


@given(TEXT | st.text("`\n x", max_size=40))
def test_no_text_gets_out_of_its_fence(text: str) -> None:
    """A block of code stays one block, whatever is in it."""
    tokens = MarkdownIt("commonmark").parse(f"before\n\n{fenced(text)}\n\nafter")
    fences = [token for token in tokens if token.type == "fence"]
    assert len(fences) == 1
    assert "".join(fences[0].content.split()) == "".join(visible(text).split())


@given(st.lists(TEXT, min_size=2, max_size=2))
def test_a_cell_of_a_table_stays_a_cell(cells: list[str]) -> None:
    """No text adds a cell or a row to a table, or becomes anything but text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(table(("one", "two"), [cells]))
    assert sum(token.type == "td_open" for token in tokens) == 2
    children = {child.type for token in tokens for child in token.children or ()}
    assert children <= {"text", "text_special"}


_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}")
NEEDED = {
    "an emoji sequence": "👩🏽\u200d🚀 ❤\ufe0f\u200d🔥 👨\u200d👩\u200d👧 1\ufe0f\u20e3",
    "a flag": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "Persian": "می\u200cخواهم ه\u200d",
    "Hindi": "क्\u200dष क्\u200cष",
    "Sinhala": "ශ්\u200dරී",
    "Khmer, which breaks lines there": "ខ្ញុំ\u200bស្រលាញ់",
    "a variant of an ideograph": "葛\U000e0100 葛",
}
HIDDEN = {
    "pass\u200bword": "pass⟨U+200B⟩word",
    "a\u200cb\u200dc": "a⟨U+200C⟩b⟨U+200D⟩c",
    "a\u2060b\u00adc\ufeffd": "a⟨U+2060⟩b⟨U+00AD⟩c⟨U+FEFF⟩d",
    "🌀\u200d": "🌀⟨U+200D⟩",
    "م\u200c\u200d\u200c": "م\u200c⟨U+200D⟩⟨U+200C⟩",
    "😀\U000e0068\U000e0069": "😀⟨U+E0068⟩⟨U+E0069⟩",
    "😀\ufe0f\ufe01\U000e0110": "😀\ufe0f⟨U+FE01⟩⟨U+E0110⟩",
    "\u3164\u034f\u2063": "⟨U+3164⟩⟨U+034F⟩⟨U+2063⟩",
}


@pytest.mark.parametrize("what", NEEDED)
def test_what_writing_needs_stays_as_it_is(what: str) -> None:
    """Joiners within emoji sequences and in scripts that are written with them are not torn out of their words."""
    assert visible(NEEDED[what]) == NEEDED[what]


@pytest.mark.parametrize("text", HIDDEN)
def test_a_character_nobody_can_see_shows(text: str) -> None:
    """An invisible character that its neighbours have no use for shows as its number."""
    assert visible(text) == HIDDEN[text]


_SEEN_AND_UNSEEN = [*"aم ក葛😀🏴\n", *"\u200b\u200c\u200d\u2060\u00ad\ufeff\ufe0f", "\U000e0100"]


@given(st.text(st.sampled_from(_SEEN_AND_UNSEEN), max_size=12))
def test_what_is_made_visible_can_be_read_back(text: str) -> None:
    """From what is shown the text can be had again, it is shown once only, and nothing is hidden in plain letters."""
    shown = visible(text)
    assert regex.sub(r"⟨U\+([0-9A-F]+)⟩", lambda found: chr(int(found[1], 16)), shown) == text
    assert visible(shown) == shown
    assert visible("a" + text)[0] == "a"
    assert not _UNSEEN.search(visible(regex.sub(r"[^a \n\u2000-\u20ff\u00ad]", "", text)))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (25000.0, "25,000"), (200000, "200,000"), (1234567.8, "1,234,568"), (0.123456, "0.1235"), (12.5, "12.5"),
        (1.0, "1"), (0.0, "0"), (0.0000123456, "0.00001235"), (-1234.5, "-1,234"), (999.96, "1,000"), (1e-30, "1e-30"),
        (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers_of_a_table_have_one_form(value: float, told: str) -> None:
    """Four digits that count, thousands set off, and no power of ten for any size that occurs."""
    assert readable(value) == told


def test_transcripts_tell_what_was_put_in_thought_and_edited(tmp_path: Path) -> None:
    """Interventions, edits with both texts, thinking and unfinished ends are marked, and none of them is a message."""
    events = talk("First.", "Second.", ended=False)
    events[2:2] = [
        InterventionEvent(turn_number=1, source="person", audience=("a",), text="Be kind."),
        ThinkingCompleteEvent(agent_id="a", turn_number=1, message_index=0, content="Hm, *kind*.", tokens=3),
    ]
    edit = InterventionEvent(
        turn_number=1,
        source="script",
        audience=(),
        kind="edit",
        agent_id="a",
        before="First.",
        after="Last.",
        edited_index=0,
    )
    root, folder = made(tmp_path, [*events, edit])
    text = transcript(root, read_record(folder.log("abcdefgh-1")), whole)
    assert "**Intervention** by person, turn 1, seen by Wren (a):\n>\n> Be kind." in text
    assert "> **Thinking** of Wren (a), 3 tokens, not part of the message:\n>\n> Hm, \\*kind\\*." in text
    assert "### 0 · Wren (a) · edited in turn 1\n\nFirst." in text
    assert "> before:" in text.replace("**Edit** by script, turn 1: message 0 reads otherwise from here on. ", "> ")
    assert "> > Last." in text
    assert "The record does not say that it has ended." in text
    assert len(re.findall(r"^### \d", text, re.MULTILINE)) == 2


async def test_tables_are_right_message_by_message(tmp_path: Path) -> None:
    """Each row of a transcript's table is what its event says, and the sums are those of its rows."""
    run = await converse(tmp_path, experiment("local:test?thinking=1", "local:test", max_turns=2))
    text = transcript(run.root, read_record(run.log), whole)
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in text.partition("## Messages")[2].splitlines()
        if re.match(r"\| \d", line)
    ]
    events = [event for event in run.events if isinstance(event, MessageCompleteEvent)]
    assert len(rows) == len(events) == 4
    for row, event in zip(rows, events, strict=True):
        assert row[0] == str(event.message_index)
        assert row[3] == str(len(event.message.content))
        assert row[4] == f"{event.usage.prompt_tokens:,}"
        assert row[5] == f"{event.usage.completion_tokens:,}"
    total = sum(event.usage.prompt_tokens or 0 for event in events)
    assert f"| all |  | 4 | {total:,} |" in text


def test_a_branch_shows_what_it_shares(pidgin: Pidgin) -> None:
    """The shared turns of a branch stand in its transcript, marked, and its tables count its own messages alone."""
    assert pidgin("chat", "-a", "local:test", "-b", "local:test", "-t", "3", "--display", "quiet").status == 0
    root = OutputRoot(Path("pidgin_output"))
    (parent,) = root.folders()
    name = next(iter(parent.logs()))
    assert pidgin("branch", name, "--turn", "2", "-t", "3", "--display", "quiet").status == 0
    branch = next(folder for folder in root.folders() if folder.experiment_id != parent.experiment_id)
    made = pidgin("transcript", next(iter(branch.logs())))
    assert made.status == 0
    assert made.out.count(" · shared\n") == 4
    assert f"From here on as in {name}." in made.out
    assert "## Turn 2 (shared)" in made.out
    own = made.out.partition("## Messages")[2]
    assert re.findall(r"^\| (\d+) \| \d+ \| ", own, re.MULTILINE) == ["4", "5"]


def test_transcript_prints_a_conversation_or_writes_them_all(look: tuple[Pidgin, str]) -> None:
    """One conversation goes to the terminal or a file, an experiment into its folder or another one."""
    pidgin, name = look
    printed = pidgin("transcript", f"{name}-1")
    assert printed.out.startswith(f"# Conversation {name}-1\n")
    assert pidgin("transcript", f"{name}-1", "--to", "talk.md").status == 0
    assert Path("talk.md").read_text() == printed.out
    assert pidgin("transcript", name).status == 0
    assert (folder_of_look() / "transcripts" / f"conv_{name}-1.md").read_text() == printed.out
    Path("elsewhere").mkdir()
    assert pidgin("transcript", name, "--to", "elsewhere").status == 0
    assert {path.name for path in Path("elsewhere").iterdir()} == {"summary.md", f"conv_{name}-1.md"}
    assert not Path("pidgin_output/experiments/experiments.duckdb").exists()
    assert "no conversation" in error_of(pidgin("transcript", f"{name}-9"))
    assert "no such folder" in error_of(pidgin("transcript", f"{name}-1", "--to", "missing/talk.md"))
