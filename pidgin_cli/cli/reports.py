"""`report`, `transcript` and `notebook`: pages made from records."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.experiments.registry import current_manifest, living_runner
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.post_processing import FAILED, STEPS, PostProcessor, Progress, missing
from pidgin_cli.reports.transcript import transcript, write_file

from .chat import EXIT_INTERRUPTED, command_line
from .records import existing_root

__all__ = [
    "PAGES_OF_A_CHAT",
    "STEPS",
    "make_missing",
    "make_pages",
    "post_process",
    "report",
    "write_notebook",
    "write_transcript",
]

OUTCOME_CELLS = 300
REPORT = "report.html"
PAGES_OF_A_CHAT = ("transcripts", "readme")
"""What a single conversation in front of a person ends with: steps that take no time worth mentioning."""


def _open_store(root: OutputRoot) -> Any:
    from .database import open_store  # not before a step needs it: it takes longer than a transcript

    return open_store(root)


def _processor(
    root: OutputRoot, folder: ExperimentFolder, progress: Progress | None, embeddings: str | None = None
) -> PostProcessor:
    return PostProcessor(
        root,
        folder,
        store=_open_store,
        lineage=whole,
        is_live=lambda experiment_id: living_runner(root, experiment_id) is not None,
        manifest=current_manifest,
        progress=progress,
        embeddings=embeddings,
    )


def post_process(
    root: OutputRoot, folder: ExperimentFolder, progress: Progress | None = None, only: Collection[str] = ()
) -> dict[str, str]:
    """All that is done with an experiment when it has ended, or some steps of it; gives the outcome of each.

    Call it from a thread in which no event loop is running. Raises LogError when the disk takes nothing.
    """
    return _processor(root, folder, progress).run(only)


def make_pages(
    root: OutputRoot,
    folder: ExperimentFolder,
    options: dict[str, Any],
    steps: Collection[str] = STEPS,
    *,
    shown: bool = True,
) -> int:
    """What follows a run. Gives 1 where a step failed, 130 where the person did not want to wait, else 0.

    Args:
        shown: show progress, and at the end where the report is.
    """
    again = command_line("report", folder.experiment_id, options)
    try:
        with _shown(quiet=not shown) as progress:
            outcomes = _processor(root, folder, progress).run(steps)
    except KeyboardInterrupt:
        click.echo(f"The pages are not finished; make them with: {again}", err=True)
        return EXIT_INTERRUPTED
    except LogError as error:
        click.echo(f"Error: {visible(str(error))}", err=True)
        return 1
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.startswith(FAILED)}
    for name, outcome in failed.items():
        click.echo(f"Error: {name} {one_line(outcome, OUTCOME_CELLS)}; try again with: {again}", err=True)
    if shown and "report" in outcomes and "report" not in failed:
        click.echo(f"report: {visible(str(folder.path / REPORT))}")
    return int(bool(failed))


def make_missing(
    root: OutputRoot, folder: ExperimentFolder, options: dict[str, Any], steps: Collection[str] = STEPS
) -> int:
    """`make_pages` where a process died over it, or some of it failed, or it was never begun."""
    left = missing(current_manifest(root, folder), steps) if options["post_processing"] else ()
    if not left:
        return 0
    return make_pages(root, folder, options, left, shown=not options["as_json"] and options["display"] != "quiet")


def _experiment(root: OutputRoot, target: str) -> ExperimentFolder:
    folder = root.find(target)
    if target.startswith(f"{folder.experiment_id}-") and target not in (folder.slug, folder.path.name):
        raise SpecError(f"{target} is one conversation; this is made of the experiment {folder.experiment_id}")
    return folder


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    console = make_console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda text: status.update(one_line(text, console.width - 4))


def report(
    target: str, output: Path | None, *, only: Sequence[str], embeddings: str | None = None, as_json: bool = False
) -> int:
    """Run the queue, or some of its steps. Gives 1 where one of them failed."""
    if embeddings is not None:
        from pidgin_cli.reports.measuring import check_embeddings

        check_embeddings(embeddings)
        if only and "metrics" not in only:
            raise click.UsageError("--embeddings is for the step metrics; name that, too.")
    root = existing_root(output)
    folder = _experiment(root, target)
    with _shown(quiet=as_json) as progress:
        outcomes = _processor(root, folder, progress, embeddings).run(only)
    if as_json:
        rows = [{"step": name, "outcome": outcome} for name, outcome in outcomes.items()]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    else:
        for name, outcome in outcomes.items():
            click.echo(f"{name + ':':<13}{one_line(outcome, OUTCOME_CELLS)}")
        if "report" in outcomes and not outcomes["report"].startswith(FAILED):
            click.echo(f"Open it: {visible(str(folder.path / REPORT))}")
    return int(any(outcome.startswith(FAILED) for outcome in outcomes.values()))


def write_notebook(target: str, output: Path | None, to: Path | None) -> int:
    """Import an experiment and make its notebook. Gives 1 where that failed."""
    root = existing_root(output)
    folder = _experiment(root, target)
    with _shown(quiet=False) as progress:
        outcomes = _processor(root, folder, progress).run(("import", "notebook"))
    for name, outcome in outcomes.items():
        if outcome.startswith(FAILED):
            raise LogError(f"{name} {outcome}")
    made = folder.path / "notebook.ipynb"
    if to is not None:
        _target(to)
        shutil.copyfile(made, to)
    click.echo(visible(str(to or made)))
    return 0


def _target(to: Path) -> None:
    if to.is_dir() or not to.absolute().parent.is_dir():
        raise SpecError(f"{to} cannot be written: {'it is a folder' if to.is_dir() else 'there is no such folder'}")


def write_transcript(target: str, output: Path | None, to: Path | None) -> int:
    """Print one conversation as Markdown, or make the transcripts of an experiment. Gives 1 where one failed."""
    root = existing_root(output)
    folder = root.find(target)
    logs = folder.logs()
    if target.startswith(f"{folder.experiment_id}-") and target not in logs:
        raise NotFound(f"no conversation {target!r}; there are {', '.join(list(logs)[:5]) or 'none yet'}")
    if target in logs or (len(logs) == 1 and to is not None and not to.is_dir()):
        conversation_id = target if target in logs else next(iter(logs))
        text = transcript(root, read_record(logs[conversation_id]), whole)
        if to is None:
            click.echo(text, nl=False)
            return 0
        _target(to)
        write_file(to.absolute(), text)
        click.echo(visible(str(to)), err=True)
        return 0
    with _shown(quiet=False) as progress:
        outcome = _processor(root, folder, progress).run(("transcripts",))["transcripts"]
    made = folder.path / "transcripts"
    if to is not None:
        _copied(made, to)
    click.echo(visible(str(to or made)))
    if outcome.startswith(FAILED):
        raise LogError(outcome.partition(": ")[2])
    return 0


def _copied(made: Path, to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise SpecError(f"{to} is a file; transcripts of several conversations go into a folder")
    try:
        shutil.copytree(made, to, dirs_exist_ok=True)
    except OSError as error:
        raise SpecError(f"{to} cannot be written: {error.strerror or error}") from None
