"""`import`, `query` and `verify`: the database and what it holds."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
from rich.table import Table

from pidgin_cli.conversation.replay import rebuild_requests
from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.core.events import ConversationStartEvent
from pidgin_cli.database.foreign import Adopted, Adoption, adopt
from pidgin_cli.database.importer import Imported
from pidgin_cli.database.query import Answer, ask, json_value, write_parquet
from pidgin_cli.database.schema import MetricColumn
from pidgin_cli.database.store import EventStore
from pidgin_cli.database.verify import Checked, verify
from pidgin_cli.database.verify_rows import Recompute
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.lineage import prefix, whole
from pidgin_cli.experiments.registry import living_runner
from pidgin_cli.metrics.catalogue import Kind, load_plugins, message_metrics
from pidgin_cli.metrics.tokens import emoji_in, tokenize
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.text import count
from pidgin_cli.spec.conversation import ConversationSpec

from .records import existing_root

if TYPE_CHECKING:
    from pidgin_cli.reports.measuring import Measured

__all__ = ["ask_database", "import_records", "open_store", "origins", "verify_records"]

SHOWN_ROWS = 1000
SHOWN_DAMAGE = 20
CELL_WIDTH = 60
PIPED_CELL_WIDTH = 300

_COLUMN_TYPES: dict[Kind, Literal["DOUBLE", "BIGINT", "BOOLEAN", "VARCHAR"]] = {
    "float": "DOUBLE",
    "int": "BIGINT",
    "bool": "BOOLEAN",
    "text": "VARCHAR",
}

# What a terminal acts on and JSON may hold unescaped; within JSON these stand in strings only.
_NEEDS_QUOTES = re.compile(r'[",\r\n]')
_ACTED_ON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def open_store(root: OutputRoot) -> EventStore:
    """The database of an output root, with everything that fills its columns."""
    return EventStore(root, metrics=_metric_columns(), words=_words)


def _metric_columns() -> list[MetricColumn]:
    load_plugins()
    return [
        MetricColumn(name, "message", _COLUMN_TYPES[metric.kind], metric.formula)
        for name, metric in message_metrics().items()
    ]


def _words(text: str) -> dict[Literal["word", "emoji"], list[str]]:
    return {"word": tokenize(text), "emoji": emoji_in(text)}


def _note(text: str) -> None:
    click.echo(f"Note: {visible(text)}", err=True)


def _safe_json(data: object) -> str:
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    return _ACTED_ON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# Import


def import_records(
    targets: Sequence[str],
    output: Path | None,
    *,
    everything: bool,
    again: bool,
    metrics: bool = True,
    embeddings: str | None = None,
    as_json: bool,
) -> int:
    """Take experiments, or records from elsewhere, into the database, and compute the metrics that are for afterwards.

    Gives 1 where something could not be read, or an embedding model that was asked for gave nothing.
    """
    if bool(targets) == everything:
        raise click.UsageError("Name experiments or files, or give --all.")
    if embeddings is not None:
        from pidgin_cli.reports.measuring import check_embeddings  # not for queries, which have no use for it

        check_embeddings(embeddings)
    root = existing_root(output)
    folders = list(root.folders()) if everything else []
    foreign: list[Adoption] = []
    for target in targets:
        found = _folders_of(root, target)
        if isinstance(found, Adoption):
            foreign.append(found)
            _print_adoption(found, quiet=as_json)
            folders += [adopted.folder for adopted in found.experiments]
        else:
            folders.append(found)
    folders = list({folder.experiment_id: folder for folder in folders}.values())
    if not folders:
        click.echo("[]" if as_json else f"There is nothing in {visible(str(root.experiments))} yet.")
        return 0
    told: list[Imported] = []
    measured: dict[str, Measured] = {}
    with open_store(root) as store:
        taken: dict[str, ExperimentFolder] = {}
        while folders:
            told += _import(store, root, folders, again=again, as_json=as_json)
            taken |= {folder.experiment_id: folder for folder in folders}
            folders = origins(store, root, taken)
        if metrics:
            there = {imported.experiment_id for imported in told if imported.failed is None}
            measured = _measure(
                store, root, [taken[name] for name in taken if name in there], embeddings, quiet=as_json
            )
    if as_json:
        rows = [
            i._asdict()
            | {"damage": [damage._asdict() for damage in i.damage]}
            | {"metrics": _as_row(measured.get(i.experiment_id))}
            for i in told
        ]
        click.echo(_safe_json(rows))
    refused = any(each.failed is not None for each in measured.values())
    lost = any(adoption.left_out for adoption in foreign)
    return int(refused or lost or any(imported.failed or _is_broken(imported) for imported in told))


def _measure(
    store: EventStore, root: OutputRoot, folders: Sequence[ExperimentFolder], embeddings: str | None, *, quiet: bool
) -> dict[str, "Measured"]:
    from pidgin_cli.reports.measuring import measure

    found = {}
    with _status("Computing metrics") as show:
        for folder in folders:
            found[folder.experiment_id] = measured = measure(
                store,
                root,
                folder,
                lineage=whole,
                embeddings=embeddings,
                progress=lambda what: show(f"Computing metrics: {one_line(what, CELL_WIDTH)}"),
            )
            if not quiet and (facts := measured.told()):
                click.echo(f"{folder.experiment_id}: {visible('; '.join(facts))}")
    return found


def _as_row(measured: "Measured | None") -> dict[str, Any] | None:
    if measured is None:
        return None
    return measured._asdict() | {"spent": None if measured.spent is None else measured.spent._asdict()}


def _is_broken(imported: Imported) -> bool:
    return any(damage.why != "torn" for damage in imported.damage)


def _import(
    store: EventStore, root: OutputRoot, folders: Sequence[ExperimentFolder], *, again: bool, as_json: bool
) -> list[Imported]:
    done = 0

    def report(_: Imported) -> None:
        nonlocal done
        done += 1
        show(f"Importing: {done} of {count(len(folders), 'experiment')}")

    with _status(f"Importing {count(len(folders), 'experiment')}") as show:
        found = store.import_experiments(
            folders,
            is_live=lambda experiment_id: living_runner(root, experiment_id) is not None,
            again=again,
            report=report,
            waiting=lambda: _note("another import is under way; this one waits for it"),
        )
    if not as_json:
        for imported in found:  # not before it is in the database: a reader that has gone must not undo it
            _print_imported(imported)
    return found


@contextmanager
def _status(text: str) -> Iterator[Any]:
    """A line that is written over, on a terminal; gives what changes it."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(text) as status:
        yield status.update


def _print_imported(imported: Imported) -> None:
    head = visible(" ".join(filter(None, (imported.experiment_id, imported.name))))
    if imported.failed:
        click.echo(f"{head}: nothing taken, {visible(imported.failed)}")
        return
    facts = []
    if imported.conversations:
        facts.append(f"{count(imported.conversations, 'conversation')}, {count(imported.messages, 'message')}")
    if imported.unchanged:
        facts.append(f"{count(imported.unchanged, 'conversation')} unchanged")
    if refused := sum(not damage.line for damage in imported.damage):
        facts.append(f"{count(refused, 'log')} not taken")
    click.echo(f"{head}: {'; '.join(facts) or 'no conversation has begun'}")
    for damage in imported.damage[:SHOWN_DAMAGE]:
        click.echo(f"  damaged: {visible(str(damage))}")
    if len(imported.damage) > SHOWN_DAMAGE:
        click.echo(f"  … and {len(imported.damage) - SHOWN_DAMAGE} more; they are in the table damaged_lines")
    if imported.unknown:
        click.echo(f"  {count(imported.unknown, 'line')} of types that this version does not know; kept in events")


def _folders_of(root: OutputRoot, target: str) -> ExperimentFolder | Adoption:
    path = Path(target)
    if not _is_own(path):
        if path.is_dir() and os.sep not in target and _holds_records(path):
            # It goes before an experiment of that name, which may be what it became when it was taken before.
            try:
                return adopt(root, path)
            except SpecError as error:
                if not root.named(target):
                    raise
                _note(str(error))
        elif path.is_file() or (path.is_dir() and os.sep in target):
            return _of_path(root, path)
    try:
        return _at_home(root, root.find(target))
    except NotFound:
        if not path.exists() or root.named(target):
            raise
    return _of_path(root, path)


def _of_path(root: OutputRoot, path: Path) -> ExperimentFolder | Adoption:
    if _is_own(path.absolute().parent) and path.is_file():
        return _at_home(root, ExperimentFolder(path.absolute().parent))
    return adopt(root, path)


def _holds_records(path: Path) -> bool:
    return any(file.suffix in (".jsonl", ".txt") for file in path.rglob("*"))


def _is_own(path: Path) -> bool:
    try:
        ExperimentFolder(path.absolute())
    except LogError:
        return False
    return path.is_dir()


def _at_home(root: OutputRoot, folder: ExperimentFolder) -> ExperimentFolder:
    """The experiment in this output root; one from another root is copied here, whole or not at all."""
    home = root.experiments / folder.path.name
    if home.exists() and home.samefile(folder.path):
        return folder
    if any(there.experiment_id == folder.experiment_id for there in root.folders()):
        raise SpecError(
            f"{folder.experiment_id} is in {root.experiments} already, so that {folder.path} is not taken; "
            "import that one by its id"
        )
    root.prepare()
    making = root.experiments / f".{folder.path.name}.making"
    shutil.rmtree(making, ignore_errors=True)
    try:
        shutil.copytree(folder.path, making)
        making.rename(home)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise SpecError(f"{folder.path} cannot be copied to {root.experiments}: {error.strerror or error}") from None
    return ExperimentFolder(home)


def _print_adoption(adoption: Adoption, *, quiet: bool) -> None:
    for adopted in adoption.experiments:
        if not quiet:
            _print_adopted(adopted)
        for name in adopted.changed:
            _note(f"{name} has changed since it was taken; its conversation is replaced")
        for name, experiment_id in adopted.elsewhere:
            _note(f"{name} is in {experiment_id} as well; a query over everything counts it twice")
    for part in adoption.torn:
        _note(part)
    for part in adoption.left_out:
        _note(f"left out: {part}")


def _print_adopted(adopted: Adopted) -> None:
    what = count(adopted.conversations, "conversation")
    if adopted.new == 0:
        what += ", taken before"
    elif adopted.new < adopted.conversations:
        what += f", {adopted.new} of them new"
    click.echo(f"{visible(str(adopted.folder.path))}: {what}")


def origins(store: EventStore, root: OutputRoot, taken: Iterable[str]) -> list[ExperimentFolder]:
    """Experiments that branches in the database come from, and that are not in it."""
    found: dict[str, ExperimentFolder] = {}
    for conversation_id in store.conversations.missing_origins():
        try:
            folder = root.find(conversation_id)
        except NotFound:
            _note(f"{conversation_id}, from which others branch, is not there; what they share with it is missing")
            continue
        if folder.experiment_id not in taken:
            found[folder.experiment_id] = folder
    return list(found.values())


# Query


def ask_database(
    sql: str, output: Path | None, *, kind: Literal["table", "json", "csv", "parquet"], to: Path | None
) -> None:
    """Print or write the answer to a query."""
    store = open_store(existing_root(output))
    if sql == "-":
        sql = sys.stdin.read()
    if kind == "parquet":
        if to is None:
            raise click.UsageError("--parquet needs --to FILE.")
        _checked_target(to)
        click.echo(f"{visible(str(to))}: {count(write_parquet(store, sql, to), 'row')}")
        return
    if to is not None:
        if kind == "table":
            raise click.UsageError("--to needs --json, --csv or --parquet.")
        _checked_target(to)
    with ask(store, sql) as answer:
        if kind == "table":
            _print_table(answer)
        elif to is not None:
            making = to.with_name(f".{to.name}.making")
            try:
                with making.open("w", encoding="utf-8", newline="") as file:
                    _write(answer, kind, file)
                making.replace(to)
            finally:
                making.unlink(missing_ok=True)
        elif sys.stdout.isatty():
            text = io.StringIO()
            _write(answer, kind, text)
            click.echo(visible(text.getvalue()), nl=False)
        else:
            _write(answer, kind, sys.stdout)


def _checked_target(to: Path) -> None:
    if to.is_dir() or not to.absolute().parent.is_dir():
        raise SpecError(f"{to} cannot be written: {'it is a folder' if to.is_dir() else 'there is no such folder'}")


def _write(answer: Answer, kind: str, file: Any) -> None:
    if kind == "csv":
        file.write(f"{','.join(map(_quoted, answer.columns))}\n")
        for row in answer.rows:
            fields = (_as_csv(value, type_) for value, type_ in zip(row, answer.types, strict=True))
            file.write(f"{','.join(fields) or _quoted('')}\n")  # an empty line would be lost on reading
        return
    names = _distinct(answer.columns)
    before = "[\n"
    for row in answer.rows:
        values = (json_value(value, type_) for value, type_ in zip(row, answer.types, strict=True))
        line = json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, allow_nan=False)
        file.write(before + _ACTED_ON.sub(lambda match: f"\\u{ord(match[0]):04x}", line))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")


def _as_csv(value: Any, kind: str) -> str:
    """A field: NULL has nothing in it, the empty text is in quotes. The `csv` of Python 3.11 writes both alike."""
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        return _quoted(json.dumps(json_value(value, kind), ensure_ascii=False))
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value.hex() if isinstance(value, bytes) else str(value))


def _quoted(text: str) -> str:
    """A text as a field of CSV, in quotes where it needs them."""
    return text if text and not _NEEDS_QUOTES.search(text) else f'"{text.replace(chr(34), chr(34) * 2)}"'


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of columns as keys of an object: `a`, `a_2` where two have the same."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found.append(unique)
    return found


def _print_table(answer: Answer) -> None:
    console = make_console()
    width = CELL_WIDTH if console.is_terminal else PIPED_CELL_WIDTH
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, kind in zip(answer.columns, answer.types, strict=True):
        numeric = kind in ("BIGINT", "INTEGER", "DOUBLE", "HUGEINT", "FLOAT") or kind.startswith("DECIMAL")
        table.add_column(one_line(name, width), justify="right" if numeric else "left")
    more = 0
    for place, row in enumerate(answer.rows):
        if place >= SHOWN_ROWS:
            more += 1
        else:
            table.add_row(*(_cell(value, width) for value in row))
    console.print(table)
    if more:
        click.echo(f"… and {count(more, 'row')} more; --csv and --json give all", err=True)


def _cell(value: Any, width: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list | tuple):
        value = json.dumps(json_value(value, ""), ensure_ascii=False)
    return one_line(str(value), width)


# Verify


def verify_records(target: str | None, output: Path | None, *, metrics: bool, as_json: bool) -> int:
    """Compare the records with the database. Gives 1 where they differ or a record is damaged.

    Args:
        metrics: compute those that were computed after the run again.
    """
    root = existing_root(output)
    folders = list(root.folders()) if target is None else [root.find(target)]
    rows: list[dict[str, Any]] = []
    with open_store(root) as store, _status("Verifying") as show:
        for place, folder in enumerate(folders, 1):
            show(f"Verifying: {place} of {count(len(folders), 'experiment')}")
            live = living_runner(root, folder.experiment_id) is not None
            again = _recompute(store, root, folder, show) if metrics else None
            checked = verify(store, folder, live=live, recompute=again)
            requests, faults, notes = _check_requests(root, folder, live=live)
            checked = checked._replace(faults=(*checked.faults, *faults), notes=(*checked.notes, *notes))
            rows.append(_row(checked, requests))
            if not as_json:
                _print_checked(checked, requests)
        if target is None:
            there = {folder.experiment_id for folder in folders}
            for gone in (row for row in store.experiments.all() if row["experiment_id"] not in there):
                fault = (gone["experiment_id"], "it is in the database, but its folder is gone")
                checked = Checked(gone["experiment_id"], gone["name"], 0, 0, (fault,))
                rows.append(_row(checked, 0))
                if not as_json:
                    _print_checked(checked, 0)
    if as_json:
        click.echo(_safe_json(rows))
    elif not rows:
        click.echo(f"There is nothing in {visible(str(root.experiments))} yet.")
    return int(any(row["faults"] for row in rows))


def _recompute(store: EventStore, root: OutputRoot, folder: ExperimentFolder, show: Callable[[str], None]) -> Recompute:
    """How the metrics of an experiment are computed again in another store."""
    from pidgin_cli.metrics.semantics import LEXICAL_HASH
    from pidgin_cli.reports.measuring import measure_again

    models = {row["model"] for row in store.metrics.computed(folder.experiment_id)}

    def compute(again: EventStore) -> None:
        # What branches share has to be there as it is in the database.
        held = {row["experiment_id"] for row in store.experiments.all()}
        taken = {folder.experiment_id}
        while shared := [each for each in origins(again, root, taken) if each.experiment_id in held]:
            again.import_experiments(shared)
            taken |= {each.experiment_id for each in shared}
        measure_again(
            again,
            root,
            folder,
            lineage=whole,
            lexical=LEXICAL_HASH in models,
            progress=lambda what: show(f"Computing metrics again: {one_line(what, CELL_WIDTH)}"),
        )

    return compute


def _check_requests(
    root: OutputRoot, folder: ExperimentFolder, *, live: bool
) -> tuple[int, list[tuple[str, str]], list[tuple[str, str]]]:
    """Replay what the agents were sent against the digests in the record: a changed word anywhere shows."""
    requests = 0
    faults: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    for conversation_id, log in folder.logs().items():
        try:
            record = read_record(log)
        except LogError:
            continue  # told by the comparison already
        start = next((event for event in record.events if isinstance(event, ConversationStartEvent)), None)
        if start is None:
            if not live:
                faults.append((conversation_id, "its log does not begin with the start of the conversation"))
            continue
        try:
            spec = ConversationSpec.from_json(start.spec)
            shared = prefix(root, spec.origin) if spec.origin is not None else []
        except (msgspec.ValidationError, LogError, NotFound) as error:
            notes.append((conversation_id, f"what was sent cannot be rebuilt: {error}"))
            continue
        rebuilt = rebuild_requests(spec, shared, record.events, lambda _agent, recorded: recorded)
        requests += rebuilt.requests
        if beside := [difference.field for difference in rebuilt.differences if not difference.turn_number]:
            faults.append((conversation_id, f"its first line contradicts the spec in it: {', '.join(beside)}"))
        wrong = sorted({d.message_index for d in rebuilt.differences if d.message_index is not None})
        if wrong:
            faults.append(
                (
                    conversation_id,
                    f"what its log holds is not what the agents were sent, from message {wrong[0]} on "
                    f"({count(len(wrong), 'digest')} {'differs' if len(wrong) == 1 else 'differ'})",
                )
            )
        if rebuilt.why is not None:
            notes.append((conversation_id, f"{count(rebuilt.unchecked, 'digest')} not checked: {rebuilt.why}"))
    return requests, faults, notes


def _row(checked: Checked, requests: int) -> dict[str, Any]:
    return {
        "experiment_id": checked.experiment_id,
        "name": checked.name,
        "conversations": checked.conversations,
        "messages": checked.messages,
        "digests": requests,
        "computed": checked.computed,
        "recomputed": checked.recomputed,
        "faults": [{"where": where, "what": what} for where, what in checked.faults],
        "notes": [{"where": where, "what": what} for where, what in checked.notes],
    }


def _told_of_metrics(checked: Checked) -> str:
    if not checked.computed:
        return ""
    if not checked.recomputed:
        return "; metrics computed after the run not checked (--metrics computes them again)"
    return f"; {checked.recomputed} of {count(checked.computed, 'part')} of the metrics computed again"


def _print_checked(checked: Checked, requests: int) -> None:
    head = visible(" ".join(filter(None, (checked.experiment_id, checked.name))))
    verdict = "DIFFERS" if checked.faults else "ok"
    click.echo(
        f"{head}: {verdict}; {count(checked.conversations, 'conversation')}, "
        f"{count(checked.messages, 'message')} compared, {count(requests, 'digest')} replayed"
        f"{_told_of_metrics(checked)}"
    )
    for kind, told in (("differs", checked.faults), ("note", checked.notes)):
        for where, what in told[:SHOWN_DAMAGE]:
            click.echo(f"  {kind}: {where}: {visible(what)}")
        if len(told) > SHOWN_DAMAGE:
            click.echo(f"  … and {len(told) - SHOWN_DAMAGE} more")
