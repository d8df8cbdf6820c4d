"""The queue of steps after an experiment: in what order, what survives what, and who starts it."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Pidgin, error_of, pidgin, process, until
from pages import all_done, folder_of_look, look, made, talk
from runs import SLOW
from support import converse, experiment, go_on
from terminal import DEADLINE_S, ENVIRONMENT, Terminal

from pidgin_cli.cli.reports import PAGES_OF_A_CHAT, post_process
from pidgin_cli.core.events import (
    PostProcessingCompleteEvent,
    PostProcessingStartEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import UNFINISHED, read_manifest, rebuild
from pidgin_cli.reports.figures import FIGURES
from pidgin_cli.reports.post_processing import STEPS

__all__ = ["look", "pidgin"]


async def test_a_run_ends_in_pages_figures_and_events(tmp_path: Path) -> None:
    """After a real run every step is done, every file is there, and event and manifest say so."""
    spec = experiment("local:test?words=20&thinking=1", "local:test?words=20", repetitions=3, metrics="live")
    run = await converse(tmp_path, spec)
    told: list[str] = []
    outcomes = await asyncio.to_thread(post_process, run.root, run.folder, told.append)
    all_done(outcomes)
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
        all_done(post_process(run.root, run.folder))
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
    await asyncio.to_thread(post_process, run.root, run.folder, only=PAGES_OF_A_CHAT)
    assert set(read_manifest(run.folder).post_processing or {}) == set(PAGES_OF_A_CHAT)
    await go_on(run.root, run.folder)
    assert read_manifest(run.folder).post_processing is None
    await asyncio.to_thread(post_process, run.root, run.folder, only=PAGES_OF_A_CHAT)
    events = read_record(run.folder.events).events
    assert [event.seq for event in events] == list(range(len(events)))
    assert sum(isinstance(event, PostProcessingCompleteEvent) for event in events) == 2


def test_a_step_that_fails_holds_up_no_other(tmp_path: Path) -> None:
    """With a folder in the place of the README, that step says so and all others are done."""
    root, folder = made(tmp_path, talk("One.", "Two."))
    (folder.path / "README.md" / "x").mkdir(parents=True)
    outcomes = post_process(root, folder)
    assert outcomes.pop("readme").startswith("failed: ")
    assert all(outcome.startswith("done") for outcome in outcomes.values())
    assert "readme: failed" in (folder.path / "post_processing.log").read_text()


def test_a_log_that_cannot_be_taken_keeps_no_metrics_from_the_others(tmp_path: Path) -> None:
    """A conversation whose log was emptied is named, whether or not it is in the database, and the others measured."""
    root, folder = made(tmp_path, *[talk("One.", "Two.")] * 3)
    folder.log(f"{folder.experiment_id}-1").write_bytes(b"")
    steps = ("import", "metrics")
    first = post_process(root, folder, only=steps)
    assert "it holds no events any more" in first["import"]
    assert first["metrics"].startswith(
        "done: 4 of 4 messages have metrics; the database and the record differ in the messages of abcdefgh-1"
    )
    for number in (2, 3):
        folder.log(f"abcdefgh-{number}").write_bytes(b"")
    taken_before = post_process(root, folder, only=steps)
    assert "abcdefgh-1_events.jsonl: it holds no events any more, and 2 other faults" in taken_before["import"]
    assert taken_before["metrics"] == first["metrics"]
    (root.experiments / "experiments.duckdb").unlink()
    assert post_process(root, folder, only=steps)["metrics"].startswith("failed: the database and the record differ")


def test_without_the_database_there_are_still_pages(tmp_path: Path) -> None:
    """A file that is no database fails import and figures; transcripts, README, notebook and report are made."""
    root, folder = made(tmp_path, talk("One.", "Two."))
    (root.experiments / "experiments.duckdb").write_bytes(b"nonsense" * 1000)
    outcomes = post_process(root, folder)
    failed = {name for name, outcome in outcomes.items() if outcome.startswith("failed")}
    assert failed == {"import", "metrics", "figures"}
    assert "without figures" in outcomes["report"]
    assert "There are no figures" in (folder.path / "report.html").read_text()
    assert "move it away" in outcomes["import"]


async def test_nothing_is_written_into_a_log_that_a_runner_holds(tmp_path: Path) -> None:
    """While a runner has the experiment's log, pages are made and neither log nor manifest is touched."""
    run = await converse(tmp_path, experiment("local:test", "local:test"))
    syncer = Syncer()
    log, _ = EventLog.resume(
        run.folder.events, experiment_id=run.folder.experiment_id, conversation_id=None, syncer=syncer
    )
    before = run.folder.events.read_bytes(), run.folder.manifest.read_bytes()
    outcomes = await asyncio.to_thread(post_process, run.root, run.folder, only=PAGES_OF_A_CHAT)
    assert outcomes == {"transcripts": "done: 1 conversation", "readme": "done"}
    assert (run.folder.events.read_bytes(), run.folder.manifest.read_bytes()) == before
    assert "is not in the record" in (run.folder.path / "post_processing.log").read_text()
    await log.aclose()
    await syncer.aclose()


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    """A second process waits for the first; both end well."""
    _, folder = made(tmp_path / "x", talk("One.", "Two."))
    command = [sys.executable, "-m", "pidgin_cli", "report", "abcdefgh", "-o", str(tmp_path / "x" / "out")]
    both = [subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) for _ in range(2)]
    for each in both:
        each.communicate(timeout=DEADLINE_S)
        assert each.returncode == 0
    text = (folder.path / "post_processing.log").read_text()
    first, second = (match.start() for match in re.finditer("post-processing: ", text))
    assert text.index("report: done") < second
    assert first < text.index("import: ")


def test_report_runs_all_steps_or_the_named_ones(look: tuple[Pidgin, str]) -> None:
    """`report` gives a line for each step; `--only` runs that one alone; a step that fails makes exit status 1."""
    pidgin, name = look
    only = pidgin("report", name, "--only", "readme", "--json")
    assert (only.status, json.loads(only.out)) == (0, [{"step": "readme", "outcome": "done"}])
    assert (folder_of_look() / "README.md").exists()
    assert not (folder_of_look() / "report.html").exists()
    done = pidgin("report", "look")
    assert done.status == 0
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [*STEPS, "Open it"]
    (folder_of_look() / "report.html").unlink()
    (folder_of_look() / "report.html" / "x").mkdir(parents=True)
    assert pidgin("report", name, "--only", "report").status == 1
    assert "Invalid value for '--only'" in error_of(pidgin("report", name, "--only", "everything"))
    assert "no experiment" in error_of(pidgin("report", "nothing"))
    assert "is one conversation" in error_of(pidgin("report", f"{name}-1"))


def test_the_steps_of_the_flag_are_the_steps_there_are() -> None:
    """The command tree names the steps without loading what runs them; both lists are one."""
    from pidgin_cli.cli import app

    assert tuple(STEPS) == app._STEPS


def test_a_figure_that_cannot_be_drawn_is_told_of_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in one figure fails that step after all others are drawn, and the report says why that one is missing."""

    def broken(_: object) -> None:
        raise ZeroDivisionError("by nothing")

    assert isinstance(FIGURES, dict)
    monkeypatch.setitem(FIGURES, "words", ("Words per transcript", broken))
    root, folder = made(tmp_path, talk("One two.", "Three four."))
    outcomes = post_process(root, folder)
    assert outcomes["figures"].startswith("failed: ")
    assert f"1 of {len(FIGURES)} could not be drawn" in outcomes["figures"]
    assert outcomes["report"] == "done"
    assert (folder.path / "figures" / "end_reasons.svg").exists()
    assert "it could not be drawn: ZeroDivisionError: by nothing" in (folder.path / "report.html").read_text()
    assert 'raise ZeroDivisionError("by nothing")' in (folder.path / "post_processing.log").read_text()


# Who starts it

TALKERS = ("-a", "local:test?words=8", "-b", "local:test?words=8", "-t", "2")
PAGES = {"PIDGIN_POST_PROCESSING": "on"}


def only_folder(where: Path) -> ExperimentFolder:
    (folder,) = OutputRoot(where / "pidgin_output").folders()
    return folder


def pages_done(folder: ExperimentFolder) -> bool:
    outcomes = read_manifest(folder).post_processing or {}
    return set(outcomes) == set(STEPS) and all(outcome.startswith("done") for outcome in outcomes.values())


def test_a_run_ends_with_its_pages(tmp_path: Path) -> None:
    """`run` waits for the pages, says where the report is, and the manifest that it prints tells their outcomes."""
    run = process("run", *TALKERS, "-r", "2", "-n", "x", cwd=tmp_path, env=PAGES)
    folder = only_folder(tmp_path)
    assert run.status == 0
    assert run.out.endswith(f"report: {folder.path / 'report.html'}\n")
    assert pages_done(folder)
    more = process("run", *TALKERS, "-r", "3", "-n", "x", "--json", cwd=tmp_path, env=PAGES)
    assert (more.status, json.loads(more.out)["post_processing"]) == (0, read_manifest(folder).post_processing)
    assert len(list((folder.path / "transcripts").glob("conv_*"))) == 3
    last = process("run", *TALKERS, "-r", "4", "-n", "x", "--no-post-processing", cwd=tmp_path, env=PAGES)
    assert (last.status, "report:" in last.out) == (0, False)
    assert read_manifest(folder).post_processing is None


def test_a_detached_run_makes_its_pages_too(tmp_path: Path) -> None:
    """A runner of its own makes the pages, with nobody watching, also when it has been stopped."""
    assert process("run", *TALKERS, "-d", cwd=tmp_path, env=PAGES).status == 0
    until(lambda: pages_done(only_folder(tmp_path)))
    (tmp_path / "slow").mkdir()
    slow = ("-a", SLOW, "-b", "local:test", "-t", "50")
    assert process("run", *slow, "-d", cwd=tmp_path / "slow", env=PAGES).status == 0
    folder = only_folder(tmp_path / "slow")
    assert process("stop", folder.experiment_id, "--now", cwd=tmp_path / "slow").status == 0
    assert read_manifest(folder).post_processing is None  # nobody wanted to wait


def test_pages_survive_sigkill(tmp_path: Path) -> None:
    """Killed over its pages, a run leaves them unfinished in log and manifest; whatever is called next makes them.

    No model is asked for that, and no line of a conversation changes.
    """
    again = (("run", *TALKERS, "-n", "x", "-r", "2"), ("resume", "--all"), ("report", "x"))
    first = tmp_path / "first"
    first.mkdir()
    running = subprocess.Popen(
        [sys.executable, "-m", "pidgin_cli", *again[0]],
        cwd=first,
        env=ENVIRONMENT | PAGES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: list(first.glob("pidgin_output/*/*/transcripts/summary.md")))
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait(DEADLINE_S)
    folder = only_folder(first)
    assert isinstance(read_record(folder.events).events[-1], PostProcessingStartEvent)
    assert read_manifest(folder).post_processing == dict.fromkeys(STEPS, UNFINISHED)
    assert read_manifest(folder).post_processing == rebuild(folder).post_processing
    before = {log.name: log.read_bytes() for log in folder.logs().values()}
    for place, line in enumerate(again):
        where = tmp_path / str(place)
        shutil.copytree(first, where)
        assert process(*line, cwd=where, env=PAGES).status == 0
        folder = only_folder(where)
        assert pages_done(folder)
        assert read_manifest(folder).status is Status.COMPLETED
        assert {log.name: log.read_bytes() for log in folder.logs().values()} == before


def test_ctrl_c_leaves_the_pages_for_later(tmp_path: Path) -> None:
    """At a terminal the pages show how far they are; Ctrl-C over them says how to go on, and nothing is lost."""
    with Terminal("run", *TALKERS, "-r", "2", cwd=tmp_path, env=PAGES, columns=100) as terminal:
        terminal.expect("completed: 2 of 2 conversations")
        terminal.expect("figures: ")
        terminal.press_ctrl_c()
        terminal.expect("The pages are not finished; make them with: pidgin report")
        assert terminal.wait() == 130
    folder = only_folder(tmp_path)
    assert read_manifest(folder).status is Status.COMPLETED
    assert not pages_done(folder)


def test_a_chat_ends_with_its_transcript(pidgin: Pidgin) -> None:
    """A chat leaves transcript and README and nothing that takes long; a step that fails makes exit status 1."""
    assert pidgin("chat", *TALKERS, "--display", "quiet", "--post-processing").status == 0
    folder = only_folder(Path())
    assert set(read_manifest(folder).post_processing or {}) == {"transcripts", "readme"}
    assert (folder.path / "transcripts" / f"conv_{folder.experiment_id}-1.md").exists()
    assert not (folder.path / "report.html").exists()
    (folder.path / "README.md").unlink()
    assert pidgin("resume", folder.experiment_id, "--post-processing").status == 0
    assert not (folder.path / "README.md").exists()  # it was done
    (folder.path / "README.md").mkdir()
    assert pidgin("report", folder.experiment_id, "--only", "readme").status == 1
    failed = pidgin("resume", folder.experiment_id, "--post-processing")
    assert failed.status == 1
    assert f"try again with: pidgin report {folder.experiment_id}" in failed.err
    (folder.path / "README.md").rmdir()
    assert pidgin("resume", folder.experiment_id, "--post-processing").status == 0
    assert (folder.path / "README.md").is_file()
