"""`list`, `show` and `rebuild`: what is on the disk."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pidgin_cli.core.errors import LogError, NotFound, PidginError, SpecError
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import Record, read_record
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest, rebuild
from pidgin_cli.experiments.registry import current_manifest, living_runner
from pidgin_cli.experiments.runner import find_log
from pidgin_cli.monitor.chat import ChatDisplay, cost_text, status_style
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.text import count

__all__ = [
    "existing_root",
    "list_records",
    "manifest_of",
    "note_broken",
    "rebuild_manifests",
    "short_path",
    "show_record",
]

SHOWN_ERRORS = 5


def _as_json(rows: list[Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def existing_root(output: Path | None) -> OutputRoot:
    """Where the records are. Raises SpecError when a file is in its place."""
    root = OutputRoot(output)
    if root.path.exists() and not root.path.is_dir():
        raise SpecError(f"{root.path} is not a folder; choose another with -o")
    return root


def short_path(path: Path) -> str:
    """As seen from the current folder, if it lies below that."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _note(text: str) -> None:
    click.echo(f"Note: {visible(text)}", err=True)


def manifest_of(root: OutputRoot, folder: ExperimentFolder) -> Manifest:
    """The manifest as it is now, with a note where it had to come from the logs."""
    return current_manifest(root, folder, lambda: note_broken(folder))


def note_broken(folder: ExperimentFolder) -> None:
    """Say that the manifest of an experiment is gone."""
    anew = f"pidgin rebuild {folder.experiment_id} writes it anew"
    if folder.manifest.is_dir():
        what, then = "is a folder", f"move that away, then {anew}"
    else:
        what, then = "is broken" if folder.manifest.exists() else "is missing", anew
    _note(f"manifest.json of {folder.experiment_id} {what}; what is shown comes from the logs ({then})")


def _status(status: Status) -> Text:
    return Text(status.value, status_style(status))


def _tokens(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _age(when: datetime) -> str:
    seconds = (datetime.now(UTC) - when).total_seconds()
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return "just now"


def list_records(output: Path | None, *, as_json: bool) -> None:
    """Print a line for every experiment under the output root, newest first."""
    root = existing_root(output)
    manifests = []
    for folder in root.folders():
        try:
            manifests.append(manifest_of(root, folder))
        except PidginError as error:
            _note(f"{folder.experiment_id} is left out: {error}")
    manifests.sort(key=lambda found: found.created_at, reverse=True)
    if as_json:
        _as_json(manifests)
        return
    console = make_console()
    if not manifests:
        console.print(
            f"Nothing in {visible(str(root.experiments))} yet; begin with: pidgin chat -a local:test -b local:test"
        )
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("id", no_wrap=True, min_width=8)
    for column in ("name", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("done", "messages", "tokens", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("begun", no_wrap=True)
    for manifest in manifests:
        totals = manifest.totals
        table.add_row(
            manifest.experiment_id,
            one_line(manifest.name or "", 24),
            _status(manifest.status),
            f"{totals.completed}/{totals.conversations}",
            f"{totals.messages:,}",
            _tokens(totals.tokens),
            cost_text(totals.cost_usd),
            _age(manifest.created_at),
        )
    console.print(table)


def show_record(
    target: str, output: Path | None, *, as_json: bool, show_thinking: bool, show_system_prompts: bool
) -> None:
    """Print an experiment's summary, or read out a conversation. One conversation alone is read out at once."""
    root = existing_root(output)
    log = _conversation(root, target)
    if log is not None:
        if as_json:
            record = read_record(log)
            _as_json([msgspec.Raw(encode(event)) for event in record.events])
            _note_skipped(log, record)
            return
        _read_out(log, show_thinking=show_thinking, show_system_prompts=show_system_prompts)
        return
    folder = root.find(target)
    manifest = manifest_of(root, folder)
    if as_json:
        _as_json([manifest])
        return
    _summary(folder, manifest)
    logs = list(folder.logs().values())
    if len(logs) == 1:
        click.echo()
        _read_out(logs[0], show_thinking=show_thinking, show_system_prompts=show_system_prompts)


def _conversation(root: OutputRoot, target: str) -> Path | None:
    """The log, where a conversation is meant and not an experiment."""
    if target.endswith(".jsonl"):
        return find_log(root, target)
    if re.fullmatch(r"[a-z0-9]{8}-\d+", target):
        folder = root.find(target)
        if folder.experiment_id == target.partition("-")[0]:  # else it is a name that looks like one
            logs = folder.logs()
            if target not in logs:
                raise NotFound(f"no conversation {target!r}; there are {', '.join(list(logs)[:5]) or 'none yet'}")
            return logs[target]
    return None


def _summary(folder: ExperimentFolder, manifest: Manifest) -> None:
    console = make_console()
    head = Text(manifest.experiment_id, "bold")
    if manifest.name:
        head.append(f"  {visible(manifest.name)}")
    head.append("  ").append_text(_status(manifest.status))
    console.print(head)
    totals = manifest.totals
    console.print(
        f"{totals.completed} of {count(totals.conversations, 'conversation')} complete · "
        f"{count(totals.messages, 'message')} · "
        f"{_tokens(totals.tokens)} tokens · {cost_text(totals.cost_usd)}",
        style="dim",
    )
    console.print(visible(str(folder.path)), style="dim", soft_wrap=True)
    if len(manifest.conversations) == 1:
        return
    arms = _by_arm(manifest)
    if len(arms) == 1:
        console.print(_conversations(manifest))
    else:
        labels = {arm: one_line(arm, 200) or "(no values)" for arm in arms}
        shown = labels
        room = console.width - Measurement.get(console, console.options, _conversations(manifest)).maximum
        if max(map(cell_len, labels.values())) + 2 > room:  # numbers stand for them, which the first table explains
            shown = {arm: f"#{number}" for number, arm in enumerate(arms, 1)}
            labels = {arm: f"{shown[arm]} {label}" for arm, label in labels.items()}
        console.print(_arms(arms, labels))
        console.print()
        console.print(_conversations(manifest, shown))
    failed = [(name, entry) for name, entry in manifest.conversations.items() if entry.error]
    for name, entry in failed[:SHOWN_ERRORS]:
        console.print(f"{name}: {one_line(entry.error or '', 500)}", style="red", markup=False, highlight=False)
    if len(failed) > SHOWN_ERRORS:
        console.print(f"… {len(failed) - SHOWN_ERRORS} more with errors", style="dim")


def _conversations(manifest: Manifest, arms: Mapping[str, str] | None = None) -> Table:
    """A row for each conversation, with what stands for its arm where there are several."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("conversation", "status", "end"):
        table.add_column(column, no_wrap=True)
    for column in ("turns", "messages", "tokens", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    if arms is not None:
        table.add_column("arm", no_wrap=True, overflow="ellipsis")
    for conversation_id, entry in manifest.conversations.items():
        table.add_row(
            conversation_id,
            _status(entry.status),
            (entry.end_reason or "").replace("_", " "),
            str(entry.turns),
            str(entry.messages),
            _tokens(entry.tokens),
            cost_text(entry.cost_usd),
            *([] if arms is None else [arms[entry.arm]]),
        )
    return table


def _by_arm(manifest: Manifest) -> dict[str, list[ConversationEntry]]:
    arms: dict[str, list[ConversationEntry]] = {}
    for entry in manifest.conversations.values():
        arms.setdefault(entry.arm, []).append(entry)
    return arms


def _arms(arms: Mapping[str, list[ConversationEntry]], labels: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm", overflow="fold")
    for column in ("complete", "failed", "messages", "tokens", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm, entries in arms.items():
        tokens = [entry.tokens for entry in entries]
        costs = [entry.cost_usd for entry in entries if entry.messages]
        table.add_row(
            labels[arm],
            f"{sum(entry.status is Status.COMPLETED for entry in entries)}/{len(entries)}",
            f"{sum(entry.status is Status.FAILED for entry in entries) or ''}",
            f"{sum(entry.messages for entry in entries):,}",
            _tokens(None if None in tokens else sum(number for number in tokens if number is not None)),
            cost_text(None if None in costs else sum(cost for cost in costs if cost is not None)),
        )
    return table


def _read_out(log: Path, *, show_thinking: bool, show_system_prompts: bool) -> None:
    record = read_record(log)
    display = ChatDisplay(
        make_console(), show_thinking=show_thinking, show_system_prompts=show_system_prompts, following=False
    )
    for event in record.events:
        display.take(event)
    display.finish()
    _note_skipped(log, record)


def _note_skipped(log: Path, record: Record) -> None:
    for skipped in record.skipped:
        _note(f"{log.name}, {skipped}")


def rebuild_manifests(target: str | None, output: Path | None, *, everything: bool) -> None:
    """Write `manifest.json` anew from the logs, for one experiment or all."""
    root = existing_root(output)
    if (target is None) == (not everything):
        raise click.UsageError("Name an experiment, or give --all.")
    for folder in list(root.folders()) if target is None else [root.find(target)]:
        if living_runner(root, folder.experiment_id) is not None:
            running = f"{folder.experiment_id} is running; its runner keeps the manifest"
            if target is not None:
                raise LogError(f"{running}; wait for it")
            _note(running)
            continue
        totals = rebuild(folder, write=True).totals
        facts = f"{count(totals.conversations, 'conversation')}, {count(totals.messages, 'message')}"
        click.echo(f"{visible(str(folder.manifest))}: {facts}")
