"""`export`: experiments as folders that other programs read."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click

from pidgin_cli.core.errors import LogError, SpecError
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.experiments.registry import living_runner
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import visible
from pidgin_cli.reports.export import Exported, export
from pidgin_cli.reports.export_redaction import Redactor
from pidgin_cli.reports.text import count

from .database import open_store, origins
from .records import existing_root

__all__ = ["export_records"]

_SECRET = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE)(?:_ID)?$", re.IGNORECASE)


def export_records(
    targets: Sequence[str],
    output: Path | None,
    *,
    kind: str,
    to: Path | None,
    everything: bool,
    redact: bool,
    force: bool,
) -> None:
    """Import what is new in the records of some experiments and export them."""
    if bool(targets) == everything:
        raise click.UsageError("Name experiments, or give --all.")
    root = existing_root(output)
    folders = list(root.folders()) if everything else [_experiment(root, target) for target in targets]
    folders = list({folder.experiment_id: folder for folder in folders}.values())
    if not folders:
        raise SpecError(f"there is nothing in {root.experiments} yet")
    ids = [folder.experiment_id for folder in folders]
    target = to or Path(f"export_{ids[0] if len(ids) == 1 else len(ids)}_{kind}")
    with open_store(root) as store:
        with _shown("Importing"):
            _import(store, root, folders)
        with _shown("Exporting"):
            redactor = _redactor(store, root, ids) if redact else None
            done = export(store, ids, target, kind, version=version("pidgin-cli"), redactor=redactor, force=force)
    _print(done, len(ids))


def _experiment(root: OutputRoot, target: str) -> ExperimentFolder:
    folder = root.find(target)
    if target.startswith(f"{folder.experiment_id}-") and target not in (folder.slug, folder.path.name):
        raise SpecError(
            f"{target} is one conversation; whole experiments are exported, this one: {folder.experiment_id}"
        )
    return folder


@contextmanager
def _shown(what: str) -> Iterator[None]:
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _import(store: EventStore, root: OutputRoot, folders: Sequence[ExperimentFolder]) -> None:
    """Take what is new in the records, also in those that branches begin in."""
    taken: set[str] = set()
    while folders:
        for imported in store.import_experiments(
            folders,
            is_live=lambda experiment_id: living_runner(root, experiment_id) is not None,
            waiting=lambda: _note("another import is under way; this one waits for it"),
        ):
            if imported.failed:
                raise LogError(f"{imported.experiment_id} could not be imported: {imported.failed}")
            for damage in imported.damage:
                _note(f"damaged: {damage}")
        taken |= {folder.experiment_id for folder in folders}
        folders = origins(store, root, taken)


def _redactor(store: EventStore, root: OutputRoot, ids: Sequence[str]) -> Redactor:
    keys = {value for name, value in os.environ.items() if _SECRET.search(name)}
    folders = {str(Path.home()), str(root.path), str(root.path.resolve()), str(Path.cwd())} - {"/"}
    hosts = {os.uname().nodename, *(host for each in ids for host in store.experiments.hosts(each))} - {""}
    return Redactor(keys, folders, hosts)


def _print(done: Exported, experiments: int) -> None:
    what = f"{count(experiments, 'experiment')}, {count(done.conversations, 'conversation')}, "
    click.echo(f"{visible(str(done.path))}: {what}{count(done.messages, 'message')}")
    if done.invalid_total:
        why = ", ".join(f"{reason} {n}" for reason, n in done.invalid.items()) or "no reason given"
        _note(f"invalid, and marked so: {count(done.invalid_total, 'conversation')} ({why})")
    if done.notable:
        _note(f"notable, and marked so: {count(done.notable, 'conversation')}")
    if done.unfinished:
        _note(f"without an end: {count(done.unfinished, 'conversation')}")
    if done.with_nul:
        _note(
            f"NUL characters, which stand as they are: {count(done.with_nul, 'message')}; "
            "the default engine of pandas before 3 cuts texts there, engine='python' does not"
        )
    if done.redactions is not None:
        found = ", ".join(f"{rule} {n}" for rule, n in done.redactions.items())
        click.echo(f"redacted: {found}")
        click.echo("Read it before you pass it on: what has no such form is not found.")


def _note(text: str) -> None:
    click.echo(f"Note: {visible(text)}", err=True)
