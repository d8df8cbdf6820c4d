"""Report, README and figures, made of real runs and of hostile records."""

import asyncio
import base64
import csv
import hashlib
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import duckdb
import nbformat
import pytest
from commands import Pidgin, pidgin
from pages import CASES, HOSTILE, Page, all_done, end, made, rendered, talk
from runs import make, start
from support import Run, converse, experiment

from pidgin_cli.cli.database import open_store
from pidgin_cli.cli.reports import post_process
from pidgin_cli.core.events import (
    MessageCompleteEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.metrics.statistics import wilson
from pidgin_cli.metrics.words import stop_words, word_table
from pidgin_cli.reports.figures import FIGURES, draw
from pidgin_cli.reports.study import Study
from pidgin_cli.reports.text import visible

__all__ = ["pidgin"]

notebooks: Any = nbformat
"""It comes without types."""


@pytest.mark.parametrize("case", CASES)
def test_no_record_is_too_odd(case: str, tmp_path: Path) -> None:
    """Every step is done for every kind of record, and every text stands whole in transcript and report."""
    root, folder = CASES[case](tmp_path)
    all_done(post_process(root, folder))
    notebooks.validate(notebooks.read(folder.path / "notebook.ipynb", as_version=4))
    page = Page(folder.path / "report.html")
    for conversation_id, log in folder.logs().items():
        texts = [e.message.content for e in read_record(log).events if isinstance(e, MessageCompleteEvent)]
        assert [visible(text) for text in texts if text] == [words for words in page.words if words][1:][
            : len(texts)
        ] or (len(folder.logs()) > 1)
        _, shown = rendered((folder.path / "transcripts" / f"conv_{conversation_id}.md").read_text())
        for text in texts:
            assert "".join(visible(text).split()) in shown
    drawn = {path.stem for path in (folder.path / "figures").glob("*.svg")}
    for name in FIGURES:
        files = {path.suffix for path in (folder.path / "figures").glob(f"{name}.*")}
        assert files == ({".svg", ".png", ".csv"} if name in drawn else set())
    assert not re.search(r"<td[^>]*>[\d.]+e\+", (folder.path / "report.html").read_text())
    absent = sum(tag == "p" and attrs.get("class") == "absent" for tag, attrs in page.tags)
    assert absent == len(FIGURES) - len(drawn) + (not folder.logs())


def test_the_report_needs_nothing_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    """Hostile texts make no element in the page, the one script is the one its policy allows, and nothing is loaded."""
    root, folder = made(tmp_path, talk(*HOSTILE), name="</title><script>alert(0)</script>")
    post_process(root, folder)
    page = Page(folder.path / "report.html")
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
    events = talk("Hello.", "{{ 7 * 7 }}")
    hostile = "{{ 7 * 7 }}{% raw %}<i>x</i> | a\n# b"
    events[0] = start(turns=1, arm=hostile, names=(hostile, "Finch"))
    root, folder = made(tmp_path, events, name=hostile)
    all_done(post_process(root, folder))
    for page in ("README.md", "transcripts/summary.md"):
        text = (folder.path / page).read_text()
        assert "{{ 7 \\* 7 }}" in text
        assert "49" not in re.sub(r"\d{2}:\d{2}|\d{4}-\d{2}", "", text)
        assert "<i>" not in text
        kinds, _ = rendered(text)
        assert not kinds & {"html_inline", "image"}


async def test_figures_say_what_the_record_says(tmp_path: Path) -> None:
    """The CSV beside a figure holds the published word table and Wilson's intervals, as computed from the record."""
    spec = experiment("local:test?words=30", "local:test?words=30", repetitions=4, metrics="live")
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


BROKEN = "local:test?fail=auth@2"
"""Says a message and fails: not complete, and not invalid."""


@pytest.fixture(scope="module")
def broken_arm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three arms of two conversations each, one of which fails wholly, with all its pages."""
    sweep = {"a.model": [BROKEN, "local:test?words=20", "local:test?words=40"]}
    spec = experiment("local:test", "local:test", sweep=sweep, repetitions=2, max_turns=2, metrics="live")
    run = asyncio.run(converse(tmp_path_factory.mktemp("broken"), spec))
    all_done(post_process(run.root, run.folder))
    return run


def _table(run: Run, name: str) -> list[dict[str, str]]:
    with (run.folder.path / "figures" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_page_takes_means_over_the_same_conversations(broken_arm: Run) -> None:
    """README and every figure with means or tests leave out what did not complete, as the views do, and count it."""
    with open_store(broken_arm.root) as store:
        path = store.path
    with duckdb.connect(str(path), read_only=True) as con:
        rows = con.execute("SELECT DISTINCT conversation_id FROM conversation_measures WHERE valid").fetchall()
    counted = {str(row[0]) for row in rows}
    assert len(counted) == 4
    readme = (broken_arm.folder.path / "README.md").read_text()
    said = "n = 4 conversations, complete and valid; left out: 2 failed"
    assert said in readme
    assert set(re.findall(r"^\| (?:messages|words per message|turns) \| (\d+) ", readme, re.MULTILINE)) == {"4"}
    assert "Complete: 4 of 6, 67%" in readme
    page = (broken_arm.folder.path / "report.html").read_text()
    captions = {name: page.partition(f'id="figure-{name}"')[2].partition("</figure>")[0] for name in FIGURES}
    over_means = {
        "words", "message_lengths", "vocabulary_growth", "convergence", "survival", "end_states", "similarity",
        "effects", "influence", "semantic_path",
    }  # fmt: skip
    assert {name for name, caption in captions.items() if said in caption} == over_means
    for name in ("message_lengths", "vocabulary_growth", "similarity", "influence", "semantic_path"):
        assert {row["conversation_id"] for row in _table(broken_arm, name)} == counted
    for name in ("words", "convergence", "survival", "end_states", "effects"):
        assert not any(BROKEN in row["arm"] for row in _table(broken_arm, name))
    assert "no conversation goes on after the 3 turns" in captions["metrics_by_turn"]
    assert {row["conversations"] for row in _table(broken_arm, "end_reasons") if BROKEN in row["arm"]} == {"0", "2"}


def test_where_nothing_is_complete_the_pages_say_so(tmp_path: Path) -> None:
    """Of an experiment that was broken off there are headline figures still, over what there is, and that is said."""
    root, folder = made(tmp_path, talk("One.", "Two.", ended=False), status=Status.INTERRUPTED)
    post_process(root, folder, only=("readme",))
    assert "n = 1 conversation, none of them complete" in (folder.path / "README.md").read_text()


_LEGEND = re.compile(
    r'role-legend-symbol"[^>]*><path[^>]*?(?:stroke|fill)="(#\w+)".*?role-legend-label"[^>]*><text[^>]*>([^<]*)<'
)


def test_an_arm_has_one_colour_on_all_figures(broken_arm: Run) -> None:
    """Where an arm has nothing to draw the others keep their colours, and the legend names those drawn alone."""
    colours: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for name in FIGURES:
        drawn = broken_arm.folder.path / "figures" / f"{name}.svg"
        for colour, label in _LEGEND.findall(drawn.read_text() if drawn.exists() else ""):
            if label.startswith("a.model="):
                arm = label.partition(" (n = ")[0]
                colours.setdefault(arm, set()).add(colour)
                named.setdefault(name, set()).add(arm)
    assert len(colours) == 3
    assert all(len(found) == 1 for found in colours.values()), colours
    assert len(set().union(*colours.values())) == 3
    assert {name for name, arms in named.items() if f"a.model={BROKEN}" in arms} == {"end_reasons", "cost"}
    assert {len(named[name]) for name in ("convergence", "survival", "message_lengths", "end_states")} == {2}


_AXIS = re.compile(r'role-axis-label"((?:(?!role-axis-label).)*?)role-axis-title"[^>]*><text[^>]*>(turn|message)<')


def _whole_ticks(svg: str) -> list[list[int]]:
    """The labels of the axes that count turns or messages. Fails on one that is not a whole number."""
    return [[int(label) for label in re.findall(r">([^<>]+)</text>", found)] for found, _ in _AXIS.findall(svg)]


@pytest.mark.parametrize("turns", [1, 2, 3, 12, 40])
def test_turns_are_counted_in_whole_numbers(turns: int, tmp_path: Path) -> None:
    """An axis of turns has every label once, and of few turns all of them."""
    root, folder = made(tmp_path, talk(*["One two."] * 2 * turns))
    with open_store(root) as store:
        store.import_experiments([folder])
        (ticks,) = _whole_ticks(draw(Study.load(store, folder.experiment_id), "message_lengths").svg or "")
    assert ticks == sorted(set(ticks))
    assert ticks == list(range(1, turns + 1)) if turns <= 12 else len(ticks) > 3


def test_axes_of_a_short_run_are_right(broken_arm: Run) -> None:
    """Two turns are two ticks, and four messages four, in the figures that are drawn from live metrics."""
    for name, expected in (("survival", [0, 1, 2]), ("convergence", [1, 2]), ("state_raster", [0, 1, 2, 3, 4])):
        assert _whole_ticks((broken_arm.folder.path / "figures" / f"{name}.svg").read_text()) == [expected]


def test_invalid_conversations_are_counted_aloud_and_left_out(tmp_path: Path) -> None:
    """An invalid conversation is named in the README and its words are in no table; a notable one stays in."""
    bad = [*talk("wrongword", "wrongword", ended=False), end(invalid=("wrong_model_served",))]
    odd = [*talk("rightword", "", ended=False), end(notable={"empty": 1})]
    root, folder = made(tmp_path, bad, odd)
    all_done(post_process(root, folder))
    words = (folder.path / "figures" / "words.csv").read_text()
    assert "rightword" in words
    assert "wrongword" not in words
    text = (folder.path / "README.md").read_text()
    assert "**1 are invalid**" in text
    assert "**1 are notable**" in text
    assert "wrong\\_model\\_served" in text


def test_without_metrics_the_figures_say_why_they_are_not_there(tmp_path: Path) -> None:
    """A record without live metrics gets every figure that needs none, and for each other one the reason."""
    root, folder = made(tmp_path, talk("One two.", "Three four."), talk("Five.", "Six."))
    outcomes = post_process(root, folder)
    all_done(outcomes)
    page = (folder.path / "report.html").read_text()
    assert "without live metrics" in page
    assert {path.stem for path in (folder.path / "figures").glob("*.svg")} == {
        "words", "end_reasons", "message_lengths", "vocabulary_growth", "self_recurrence", "similarity", "cost",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("local:test?fail=auth@1", "local:test"), {"end_reasons": "all conversations are invalid"}),
        (("local:silent", "local:silent"), {"convergence": "no two agents have said what can be compared"}),
    ],
)
async def test_a_figure_that_is_not_there_gives_the_right_reason(
    models: tuple[str, str], said: dict[str, str], tmp_path: Path
) -> None:
    """A live run that failed at once, or in which nobody said a word, is not said to lack live metrics."""
    run = await converse(tmp_path, experiment(*models, metrics="live"))
    await asyncio.to_thread(post_process, run.root, run.folder, only=("import", "metrics"))
    with open_store(run.root) as store:
        study = Study.load(store, run.folder.experiment_id)
    absent = {name: draw(study, name).absent or "" for name in FIGURES}
    assert "without live metrics" not in " ".join(absent.values())
    assert all(absent[name].startswith(reason) for name, reason in said.items())


def test_a_damaged_log_is_told_of(tmp_path: Path) -> None:
    """A broken line is left out, and transcript, summary, README and report say so."""
    root, folder = made(tmp_path, talk("One.", "Two."))
    with folder.log("abcdefgh-1").open("ab") as file:
        file.write(b"{broken\n")
    all_done(post_process(root, folder))
    assert "Damaged record" in (folder.path / "transcripts" / "conv_abcdefgh-1.md").read_text()
    for page in ("transcripts/summary.md", "README.md", "report.html"):
        assert "could not be read" in (folder.path / page).read_text()


def test_hostile_replies_of_a_real_run(pidgin: Pidgin) -> None:
    """What a model replies through the whole program stands in transcript and report, inert."""
    text = HOSTILE[0] + " {{ 7 * 7 }} `x` \x07"
    model = f"local:test?reply={quote_plus(text)}"
    assert pidgin("chat", "-a", model, "-b", "local:silent", "-t", "2", "--display", "quiet").status == 0
    (folder,) = OutputRoot(Path("pidgin_output")).folders()
    assert pidgin("report", folder.experiment_id).status == 0
    page = Page(folder.path / "report.html")
    assert page.words.count(visible(text)) == 2
    assert len(page.scripts) == 1
    printed = pidgin("transcript", f"{folder.experiment_id}-1").out
    assert "\x07" not in printed
    assert "<script" not in printed
    assert "*(empty: nothing was said)*" in printed


def test_the_commands_of_the_readme_run(pidgin: Pidgin) -> None:
    """What the README of an experiment with two arms says to go on with, works as it stands."""
    root = OutputRoot(Path("pidgin_output"))
    arms = [[start(turns=1, arm=arm), *talk("One two.", "Three.")[1:]] for arm in ("x", "x", "y", "y")]
    folder = make(root, "abcdefgh", arms, status=Status.COMPLETED)
    all_done(post_process(root, folder))
    commands = (folder.path / "README.md").read_text().rpartition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 6
    for command in commands:
        name, *words = shlex.split(command)
        assert (name, pidgin(*words).status) == ("pidgin", 0), command


def test_an_outlier_does_not_flatten_the_convergence(tmp_path: Path) -> None:
    """Corrected values far below -1 are cut off in the drawing, which says how many; the table keeps their mean."""
    root, folder = made(tmp_path, *(talk(*["One", "two.", "Three", "four."]) for _ in range(5)))
    with open_store(root) as store:
        store.import_experiments([folder])
        study = Study.load(store, folder.experiment_id)
    for place, each in enumerate(study.all):
        each.metrics = {index: {"convergence_index_pooled": -20.0 if place == 0 else 0.5} for index in range(4)}
    study.columns = [*study.columns, "convergence_index_pooled"]
    figure = draw(study, "convergence")
    assert figure.svg is not None
    assert "values below -1 are cut off" in figure.caption
    assert figure.rows[0][3] == pytest.approx((-20.0 + 4 * 0.5) / 5)
    heights = [float(text) for text in re.findall(r">−?(\d+\.\d)</text>", figure.svg)]
    assert max(heights) == 1.0
