"""Transcripts, README, notebook, figures and report, made of real runs and of hostile records."""

import asyncio
import base64
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import nbformat
import pytest
from commands import Pidgin, error_of, pidgin, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from runs import append, make, said, start
from strategies import TEXT
from support import Run, converse, experiment, go_on
from terminal import DEADLINE_S, ENVIRONMENT

from pidgin_cli.cli.database import open_store
from pidgin_cli.cli.reports import post_process
from pidgin_cli.core.events import (
    ConversationEndEvent,
    Event,
    InterventionEvent,
    MessageCompleteEvent,
    PostProcessingCompleteEvent,
    PostProcessingStartEvent,
    ThinkingCompleteEvent,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import UNFINISHED, read_manifest, rebuild
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.experiments.runner import create_experiment
from pidgin_cli.metrics.statistics import wilson
from pidgin_cli.metrics.words import stop_words, word_table
from pidgin_cli.reports.figures import FIGURES
from pidgin_cli.reports.post_processing import STEPS
from pidgin_cli.reports.text import fenced, prose, table, visible
from pidgin_cli.reports.transcript import transcript

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


def _end(**keys: Any) -> ConversationEndEvent:
    totals = Totals(turns=1, messages=1)
    return ConversationEndEvent(
        **{"status": Status.COMPLETED, "end_reason": EndReason.TURN_LIMIT, "totals": totals} | keys
    )


def _talk(*texts: str, end: bool = True) -> list[Event]:
    """A record in which two agents say these texts, a turn for every two."""
    events: list[Event] = [start(turns=(len(texts) + 1) // 2)]
    for index, text in enumerate(texts):
        if index % 2 == 0:
            events.append(TurnStartEvent(turn_number=index // 2 + 1, speakers=("a", "b")))
        events.append(said(text, "ab"[index % 2], index // 2 + 1, index))
        if index % 2:
            events.append(TurnCompleteEvent(turn_number=index // 2 + 1))
    return [*events, _end()] if end else events


def _made(tmp_path: Path, *talks: Sequence[Event], **how: Any) -> tuple[OutputRoot, ExperimentFolder]:
    root = OutputRoot(tmp_path / "out")
    return root, make(root, "abcdefgh", talks, **{"status": Status.COMPLETED} | how)


def _all_done(outcomes: dict[str, str]) -> None:
    assert list(outcomes) == list(STEPS)
    assert all(outcome.startswith("done") for outcome in outcomes.values()), outcomes


class _Page(HTMLParser):
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


def _rendered(markdown: str) -> tuple[set[str], str]:
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


# Text


@given(
    TEXT
    | st.lists(st.sampled_from(HOSTILE), max_size=3).map("\n".join)
    | st.text("`~*_[]()<>#|-=+.1 \t\n\\", max_size=60)
)
@settings(max_examples=400)
def test_whatever_a_model_writes_renders_as_the_words_it_wrote_and_nothing_else(text: str) -> None:
    """Rendered, a text is paragraphs, line breaks and code, and holds every character that is not white space."""
    kinds, shown = _rendered(prose(text))
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


# The queue over whole experiments


async def test_a_run_ends_in_pages_figures_and_events(tmp_path: Path) -> None:
    """After a real run every step is done, every file is there, and event and manifest say so."""
    spec = experiment("local:test?words=20&thinking=1", "local:test?words=20", repetitions=3, metrics="on")
    run = await converse(tmp_path, spec)
    told: list[str] = []
    outcomes = await asyncio.to_thread(post_process, run.root, run.folder, told.append)
    _all_done(outcomes)
    path = run.folder.path
    for name in ("README.md", "notebook.ipynb", "report.html", "post_processing.log", "transcripts/summary.md"):
        assert (path / name).stat().st_size
    assert {each.name for each in (path / "transcripts").glob("conv_*.md")} == {
        f"conv_{name}.md" for name in run.folder.logs()
    }
    assert {step.partition(":")[0] for step in told} >= set(STEPS)
    events = read_record(run.folder.events).events
    assert isinstance(events[-2], PostProcessingStartEvent)
    assert isinstance(events[-1], PostProcessingCompleteEvent)
    assert events[-1].outcomes == outcomes
    assert [event.seq for event in events] == list(range(len(events)))
    assert read_manifest(run.folder).post_processing == outcomes == rebuild(run.folder).post_processing
    log = (path / "post_processing.log").read_text()
    assert all(f"{name}: done" in log for name in STEPS)
    assert not list(path.rglob(".*.making"))


async def test_running_it_again_makes_the_same_files(tmp_path: Path) -> None:
    """Post-processing twice leaves every page and figure as it was, byte for byte."""
    run = await converse(tmp_path, experiment("local:test?words=12", "local:test?words=12", repetitions=2))

    def made() -> dict[str, bytes]:
        _all_done(post_process(run.root, run.folder))
        return {
            str(path.relative_to(run.folder.path)): path.read_bytes()
            for path in run.folder.path.rglob("*")
            if path.is_file() and path.suffix != ".jsonl" and path.name not in ("manifest.json", "post_processing.log")
        }

    first = await asyncio.to_thread(made)
    assert await asyncio.to_thread(made) == first
    assert len(first) > 20


async def test_an_experiment_goes_on_after_its_post_processing(tmp_path: Path) -> None:
    """A resumed experiment starts again without the old outcomes, and its events still count without a gap."""
    run = await converse(tmp_path, experiment("local:test?fail=auth@2", "local:test"))
    await asyncio.to_thread(post_process, run.root, run.folder)
    assert read_manifest(run.folder).post_processing
    await go_on(run.root, run.folder)
    assert read_manifest(run.folder).post_processing is None
    await asyncio.to_thread(post_process, run.root, run.folder)
    events = read_record(run.folder.events).events
    assert [event.seq for event in events] == list(range(len(events)))
    assert sum(isinstance(event, PostProcessingCompleteEvent) for event in events) == 2


def _blank(tmp_path: Path) -> tuple[OutputRoot, ExperimentFolder]:
    root = OutputRoot(tmp_path / "out")
    return root, create_experiment(root, experiment("local:test", "local:test"))


CASES: dict[str, Any] = {
    "never run": _blank,
    "one message": lambda path: _made(path, _talk("Hello.", end=False), status=Status.INTERRUPTED),
    "one turn": lambda path: _made(path, _talk("Hello.", "Hello to you.")),
    "failed at once": lambda path: _made(
        path,
        [start(), _end(status=Status.FAILED, end_reason=EndReason.PROVIDER_ERROR, error="AuthenticationFailed: <b>no")],
        status=Status.FAILED,
    ),
    "nothing but a start": lambda path: _made(path, [start()], status=Status.INTERRUPTED),
    "all empty": lambda path: _made(path, _talk("", "", "", "")),
    "white space": lambda path: _made(path, _talk(" ", "\n\n", "\t", "   ")),
    "emoji only": lambda path: _made(path, _talk("🌀🌀🌀", "🙏🏽", "🌀", "✨"), _talk("🙏", "🙏")),
    "hostile": lambda path: _made(path, _talk(*HOSTILE), name="<script>{{ 7*7 }}</script> | *x*"),
    "a megabyte": lambda path: _made(path, _talk("word and " * 116_000, "short")),
    "invalid": lambda path: _made(path, [*_talk("One.", "Two.", end=False), _end(invalid=("harness_fault",))]),
    "questions": lambda path: _made(path, _talk("Why? " * 10_000, "Because.")),
}


@pytest.mark.parametrize("case", CASES)
def test_no_record_is_too_odd(case: str, tmp_path: Path) -> None:
    """Every step is done for every kind of record, and every text stands whole in transcript and report."""
    root, folder = CASES[case](tmp_path)
    _all_done(post_process(root, folder))
    nbformat.validate(nbformat.read(folder.path / "notebook.ipynb", as_version=4))
    page = _Page(folder.path / "report.html")
    for conversation_id, log in folder.logs().items():
        texts = [e.message.content for e in read_record(log).events if isinstance(e, MessageCompleteEvent)]
        assert [visible(text) for text in texts if text] == [words for words in page.words if words][1:][
            : len(texts)
        ] or (len(folder.logs()) > 1)
        _, shown = _rendered((folder.path / "transcripts" / f"conv_{conversation_id}.md").read_text())
        for text in texts:
            assert "".join(visible(text).split()) in shown
    drawn = {path.stem for path in (folder.path / "figures").glob("*.svg")}
    for name in FIGURES:
        files = {path.suffix for path in (folder.path / "figures").glob(f"{name}.*")}
        assert files == ({".svg", ".png", ".csv"} if name in drawn else set())
    absent = sum(tag == "p" and attrs.get("class") == "absent" for tag, attrs in page.tags)
    assert absent == len(FIGURES) - len(drawn) + (not folder.logs())


def test_the_report_needs_nothing_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    """Hostile texts make no element in the page, the one script is the one its policy allows, and nothing is loaded."""
    root, folder = _made(tmp_path, _talk(*HOSTILE), name="</title><script>alert(0)</script>")
    post_process(root, folder)
    page = _Page(folder.path / "report.html")
    assert len(page.scripts) == 1
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "iframe", "link", "object", "embed", "base", "b"}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert not attrs.get("src")
        link = attrs.get("href") or attrs.get("xlink:href") or "#"
        assert link.startswith(("#", "data:text/csv;", "transcripts/conv_")), link
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [visible(text) for text in HOSTILE] == page.words[1:]


def test_names_and_arms_are_never_templates_or_markup(tmp_path: Path) -> None:
    """A template in a name, an arm or an opening stands in the README as it was written."""
    events = _talk("Hello.", "{{ 7 * 7 }}")
    hostile = "{{ 7 * 7 }}{% raw %}<i>x</i> | a\n# b"
    events[0] = start(turns=1, arm=hostile, names=(hostile, "Finch"))
    root, folder = _made(tmp_path, events, name=hostile)
    _all_done(post_process(root, folder))
    for page in ("README.md", "transcripts/summary.md"):
        text = (folder.path / page).read_text()
        assert "{{ 7 \\* 7 }}" in text
        assert "49" not in re.sub(r"\d{2}:\d{2}|\d{4}-\d{2}", "", text)
        assert "<i>" not in text
        kinds, _ = _rendered(text)
        assert not kinds & {"html_inline", "image"}


def test_transcripts_tell_what_was_put_in_thought_and_edited(tmp_path: Path) -> None:
    """Interventions, edits with both texts, thinking and unfinished ends are marked, and none of them is a message."""
    events = _talk("First.", "Second.", end=False)
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
    root, folder = _made(tmp_path, [*events, edit])
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


async def test_a_branch_shows_what_it_shares(pidgin: Pidgin) -> None:
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


# Numbers


async def test_figures_say_what_the_record_says(tmp_path: Path) -> None:
    """The CSV beside a figure holds the published word table and Wilson's intervals, as computed from the record."""
    spec = experiment("local:test?words=30", "local:test?words=30", repetitions=4, metrics="on")
    run = await converse(tmp_path, spec)
    await asyncio.to_thread(post_process, run.root, run.folder)

    def rows(name: str) -> list[dict[str, str]]:
        with (run.folder.path / "figures" / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    transcripts = [
        [event.message.content for event in read_record(log).events if isinstance(event, MessageCompleteEvent)]
        for log in run.folder.logs().values()
    ]
    expected = word_table(transcripts, leave_out=stop_words())
    found = rows("words")
    assert [(row["word"], int(row["max_uses"]), int(row["uses"])) for row in found] == [
        (use.word, use.max, use.uses) for use in expected
    ]
    assert [float(row["mean_uses"]) for row in found] == pytest.approx([use.mean for use in expected])
    assert [float(row["percent_of_transcripts"]) for row in found] == pytest.approx([100 * u.present for u in expected])
    (ends,) = rows("end_reasons")
    interval = wilson(4, 4)
    assert interval is not None
    assert (ends["end"], ends["conversations"], float(ends["ci_low"])) == ("completed: turn limit", "4", interval.low)
    assert len(rows("message_lengths")) == sum(map(len, transcripts))
    last = [row for row in rows("vocabulary_growth") if row["conversation_id"].endswith("-1")][-1]
    assert int(last["types"]) <= int(last["tokens"])
    assert all(0 <= float(row["cosine"]) <= 1 for row in rows("similarity"))
    assert {row["n"] for row in rows("convergence")} == {"4"}
    assert {row["state"] for row in rows("state_raster")} >= {"normal"}


def test_invalid_conversations_are_counted_aloud_and_left_out(tmp_path: Path) -> None:
    """An invalid conversation is named in the README and its words are in no table; a notable one stays in."""
    bad = [*_talk("wrongword", "wrongword", end=False), _end(invalid=("wrong_model_served",))]
    odd = [*_talk("rightword", "", end=False), _end(notable={"empty": 1})]
    root, folder = _made(tmp_path, bad, odd)
    _all_done(post_process(root, folder))
    words = (folder.path / "figures" / "words.csv").read_text()
    assert "rightword" in words
    assert "wrongword" not in words
    text = (folder.path / "README.md").read_text()
    assert "**1 are invalid**" in text
    assert "**1 are notable**" in text
    assert "wrong\\_model\\_served" in text


def test_without_metrics_the_figures_say_why_they_are_not_there(tmp_path: Path) -> None:
    """A record without live metrics gets every figure that needs none, and for each other one the reason."""
    root, folder = _made(tmp_path, _talk("One two.", "Three four."), _talk("Five.", "Six."))
    outcomes = post_process(root, folder)
    _all_done(outcomes)
    page = (folder.path / "report.html").read_text()
    assert "without live metrics" in page
    assert {path.stem for path in (folder.path / "figures").glob("*.svg")} == {
        "words", "end_reasons", "message_lengths", "vocabulary_growth", "self_recurrence", "similarity",
    }  # fmt: skip


# The notebook


async def test_the_notebook_runs_as_it_is(tmp_path: Path) -> None:
    """A fresh kernel executes every cell of the notebook without an error, and it draws figures."""
    spec = experiment("local:test", "local:test", repetitions=3, metrics="on")
    spec = spec.model_copy(update={"name": "x $y$ {z}"})
    run = await converse(tmp_path, spec)
    await asyncio.to_thread(post_process, run.root, run.folder)
    outputs = await asyncio.to_thread(_executed, run.folder)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert any(next(iter(run.folder.logs())) in output.get("text", "") for output in outputs)


@pytest.mark.parametrize("case", ["never run", "failed at once"])
def test_the_notebook_runs_where_there_is_nothing_to_show(case: str, tmp_path: Path) -> None:
    """Without a message the notebook still goes through."""
    root, folder = CASES[case](tmp_path)
    post_process(root, folder)
    _executed(folder)


def _executed(folder: ExperimentFolder) -> list[dict[str, Any]]:
    """The outputs of a notebook that a process of its own has executed: the kernel's sockets stay out of this one."""
    program = (
        "import json, sys, nbformat; from nbclient import NotebookClient\n"
        "book = nbformat.read('notebook.ipynb', 4)\n"
        "NotebookClient(book, timeout=90, kernel_name='python3').execute()\n"
        "json.dump([output for cell in book.cells for output in cell.get('outputs', [])], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.path,
        env=ENVIRONMENT | {"HOME": str(folder.path)},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# What goes wrong


def test_a_step_that_fails_holds_up_no_other(tmp_path: Path) -> None:
    """With a folder in the place of the README, that step says so and all others are done."""
    root, folder = _made(tmp_path, _talk("One.", "Two."))
    (folder.path / "README.md" / "x").mkdir(parents=True)
    outcomes = post_process(root, folder)
    assert outcomes.pop("readme").startswith("failed: ")
    assert all(outcome.startswith("done") for outcome in outcomes.values())
    assert "readme: failed" in (folder.path / "post_processing.log").read_text()


def test_without_the_database_there_are_still_pages(tmp_path: Path) -> None:
    """A file that is no database fails import and figures; transcripts, README, notebook and report are made."""
    root, folder = _made(tmp_path, _talk("One.", "Two."))
    (root.experiments / "experiments.duckdb").write_bytes(b"nonsense" * 1000)
    outcomes = post_process(root, folder)
    failed = {name for name, outcome in outcomes.items() if outcome.startswith("failed")}
    assert failed == {"import", "metrics", "figures"}
    assert "without figures" in outcomes["report"]
    assert "There are no figures" in (folder.path / "report.html").read_text()
    assert "move it away" in outcomes["import"]


def test_a_damaged_log_is_told_of(tmp_path: Path) -> None:
    """A broken line is left out, and transcript, summary, README and report say so."""
    root, folder = _made(tmp_path, _talk("One.", "Two."))
    with folder.log("abcdefgh-1").open("ab") as file:
        file.write(b"{broken\n")
    _all_done(post_process(root, folder))
    assert "Damaged record" in (folder.path / "transcripts" / "conv_abcdefgh-1.md").read_text()
    for page in ("transcripts/summary.md", "README.md", "report.html"):
        assert "could not be read" in (folder.path / page).read_text()


async def test_nothing_is_written_into_a_log_that_a_runner_holds(tmp_path: Path) -> None:
    """While a runner has the experiment's log, pages are made and neither log nor manifest is touched."""
    run = await converse(tmp_path, experiment("local:test", "local:test"))
    syncer = Syncer()
    log, _ = EventLog.resume(
        run.folder.events, experiment_id=run.folder.experiment_id, conversation_id=None, syncer=syncer
    )
    before = run.folder.events.read_bytes(), run.folder.manifest.read_bytes()
    _all_done(await asyncio.to_thread(post_process, run.root, run.folder))
    assert (run.folder.events.read_bytes(), run.folder.manifest.read_bytes()) == before
    assert "is not in the record" in (run.folder.path / "post_processing.log").read_text()
    await log.aclose()
    await syncer.aclose()


async def test_killed_in_the_middle_it_is_done_by_the_next(tmp_path: Path) -> None:
    """After SIGKILL the manifest says that it is unfinished, and running it again completes it."""
    run = await converse(tmp_path / "pidgin_output", experiment("local:test", "local:test", repetitions=6))
    journal = run.folder.path / "post_processing.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "pidgin_cli", "report", run.folder.experiment_id],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await asyncio.to_thread(until, lambda: journal.exists() and "notebook: done" in journal.read_text())
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    events = read_record(run.folder.events).events
    assert isinstance(events[-1], PostProcessingStartEvent)
    assert read_manifest(run.folder).post_processing == dict.fromkeys(STEPS, UNFINISHED)
    assert read_manifest(run.folder).post_processing == rebuild(run.folder).post_processing
    _all_done(await asyncio.to_thread(post_process, run.root, run.folder))
    assert (run.folder.path / "report.html").exists()
    manifest = read_manifest(run.folder)
    assert manifest.status is Status.COMPLETED
    assert manifest.post_processing is not None
    _all_done(manifest.post_processing)


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    """A second process waits for the first; both end well."""
    _, folder = _made(tmp_path / "x", _talk("One.", "Two."))
    command = [sys.executable, "-m", "pidgin_cli", "report", "abcdefgh", "-o", str(tmp_path / "x" / "out")]
    both = [subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    text = (folder.path / "post_processing.log").read_text()
    first, second = (match.start() for match in re.finditer("post-processing: ", text))
    assert text.index("report: done") < second
    assert first < text.index("import: ")


# Commands


@pytest.fixture
def look(pidgin: Pidgin) -> tuple[Pidgin, str]:
    said = pidgin("chat", "-a", "local:test", "-b", "local:test", "-t", "2", "-n", "look", "--display", "quiet")
    assert said.status == 0
    (folder,) = OutputRoot(Path("pidgin_output")).folders()
    return pidgin, folder.experiment_id


def _folder() -> Path:
    (path,) = Path("pidgin_output/experiments").glob("experiment_*")
    return path


def test_report_runs_all_steps_or_the_named_ones(look: tuple[Pidgin, str]) -> None:
    """`report` gives a line for each step; `--only` runs that one alone; a step that fails makes exit status 1."""
    pidgin, name = look
    only = pidgin("report", name, "--only", "readme", "--json")
    assert (only.status, json.loads(only.out)) == (0, [{"step": "readme", "outcome": "done"}])
    assert (_folder() / "README.md").exists()
    assert not (_folder() / "report.html").exists()
    done = pidgin("report", "look")
    assert done.status == 0
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [*STEPS, "Open it"]
    (_folder() / "report.html").unlink()
    (_folder() / "report.html" / "x").mkdir(parents=True)
    assert pidgin("report", name, "--only", "report").status == 1
    assert "Invalid value for '--only'" in error_of(pidgin("report", name, "--only", "everything"))
    assert "no experiment" in error_of(pidgin("report", "nothing"))
    assert "is one conversation" in error_of(pidgin("report", f"{name}-1"))


def test_the_steps_of_the_flag_are_the_steps_there_are() -> None:
    """The command tree names the steps without loading what runs them; both lists are one."""
    from pidgin_cli.cli import app

    assert app._STEPS == tuple(STEPS)


def test_transcript_prints_a_conversation_or_writes_them_all(look: tuple[Pidgin, str]) -> None:
    """One conversation goes to the terminal or a file, an experiment into its folder or another one."""
    pidgin, name = look
    printed = pidgin("transcript", f"{name}-1")
    assert printed.out.startswith(f"# Conversation {name}-1\n")
    assert pidgin("transcript", f"{name}-1", "--to", "talk.md").status == 0
    assert Path("talk.md").read_text() == printed.out
    assert pidgin("transcript", name).status == 0
    assert (_folder() / "transcripts" / f"conv_{name}-1.md").read_text() == printed.out
    Path("elsewhere").mkdir()
    assert pidgin("transcript", name, "--to", "elsewhere").status == 0
    assert {path.name for path in Path("elsewhere").iterdir()} == {"summary.md", f"conv_{name}-1.md"}
    assert not Path("pidgin_output/experiments/experiments.duckdb").exists()
    assert "no conversation" in error_of(pidgin("transcript", f"{name}-9"))
    assert "no such folder" in error_of(pidgin("transcript", f"{name}-1", "--to", "missing/talk.md"))


def test_notebook_makes_the_notebook_and_what_it_reads(look: tuple[Pidgin, str]) -> None:
    """`notebook` imports the experiment and prints where the notebook is; `--to` gives a copy."""
    pidgin, name = look
    made = pidgin("notebook", name)
    assert (made.status, Path(made.out.strip())) == (0, _folder().absolute() / "notebook.ipynb")
    with open_store(OutputRoot(Path("pidgin_output"))) as store:
        assert store.experiments.get(name)["name"] == "look"
    assert pidgin("notebook", name, "--to", "copy.ipynb").status == 0
    assert Path("copy.ipynb").read_bytes() == (_folder() / "notebook.ipynb").read_bytes()


def test_hostile_replies_of_a_real_run(pidgin: Pidgin) -> None:
    """What a model replies through the whole program stands in transcript and report, inert."""
    text = HOSTILE[0] + " {{ 7 * 7 }} `x` \x07"
    model = f"local:test?reply={quote_plus(text)}"
    assert pidgin("chat", "-a", model, "-b", "local:silent", "-t", "2", "--display", "quiet").status == 0
    (folder,) = OutputRoot(Path("pidgin_output")).folders()
    assert pidgin("report", folder.experiment_id).status == 0
    page = _Page(folder.path / "report.html")
    assert page.words.count(visible(text)) == 2
    assert len(page.scripts) == 1
    printed = pidgin("transcript", f"{folder.experiment_id}-1").out
    assert "\x07" not in printed
    assert "<script" not in printed
    assert "*(empty: nothing was said)*" in printed
