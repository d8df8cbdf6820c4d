"""`list`, `show` and `rebuild`: what is on the disk."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import Manifest, rebuild
from pidgin_cli.experiments.registry import current_manifest
from pidgin_cli.experiments.runner import find_log
from pidgin_cli.monitor.chat import ChatDisplay, cost_text, status_style
from pidgin_cli.monitor.text import one_line, visible

__all__ = ["list_records", "rebuild_manifests", "show_record"]

PIPED_WIDTH = 400
"""Of a line that goes to a file or another program: tables are not cut there."""


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def _as_json(rows: list[Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def _status(status: Status) -> Text:
    return Text(status.value, status_style(status))


def _age(when: datetime) -> str:
    seconds = (datetime.now(UTC) - when).total_seconds()
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return "just now"


def list_records(output: Path | None, *, as_json: bool) -> None:
    """Print a line for every experiment under the output root, newest first."""
    root = OutputRoot(output)
    manifests = sorted(
        (current_manifest(root, folder) for folder in root.folders()), key=lambda found: found.created_at, reverse=True
    )
    if as_json:
        _as_json(manifests)
        return
    console = _console()
    if not manifests:
        console.print(f"Nothing in {root.experiments} yet; begin with: pidgin chat -a local:test -b local:test")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "name", "status"):
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
            f"{totals.tokens:,}",
            cost_text(totals.cost_usd),
            _age(manifest.created_at),
        )
    console.print(table)


def show_record(
    target: str, output: Path | None, *, as_json: bool, show_thinking: bool, show_system_prompts: bool
) -> None:
    """Print an experiment's summary, or read out a conversation. One conversation alone is read out at once."""
    root = OutputRoot(output)
    is_conversation = target.endswith(".jsonl") or re.fullmatch(r"[a-z0-9]{8}-\d+", target) is not None
    if is_conversation:
        log = find_log(root, target)
        if as_json:
            _as_json([msgspec.Raw(encode(event)) for event in read_record(log).events])
            return
        _read_out(log, show_thinking=show_thinking, show_system_prompts=show_system_prompts)
        return
    folder = root.find(target)
    manifest = current_manifest(root, folder)
    if as_json:
        _as_json([manifest])
        return
    _summary(folder, manifest)
    logs = list(folder.logs().values())
    if len(logs) == 1:
        click.echo()
        _read_out(logs[0], show_thinking=show_thinking, show_system_prompts=show_system_prompts)


def _summary(folder: ExperimentFolder, manifest: Manifest) -> None:
    console = _console()
    head = Text(manifest.experiment_id, "bold")
    if manifest.name:
        head.append(f"  {visible(manifest.name)}")
    head.append("  ").append_text(_status(manifest.status))
    console.print(head)
    totals = manifest.totals
    console.print(
        f"{totals.completed} of {totals.conversations} conversations complete · {totals.messages:,} messages · "
        f"{totals.tokens:,} tokens · {cost_text(totals.cost_usd)}",
        style="dim",
    )
    console.print(str(folder.path), style="dim", soft_wrap=True)
    if len(manifest.conversations) == 1:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("conversation", "status", "end", "turns", "messages", "tokens", "cost"):
        table.add_column(column, justify="left" if column in ("conversation", "status", "end") else "right")
    for conversation_id, entry in manifest.conversations.items():
        table.add_row(
            conversation_id,
            _status(entry.status),
            (entry.end_reason or "").replace("_", " "),
            str(entry.turns),
            str(entry.messages),
            f"{entry.tokens:,}",
            cost_text(entry.cost_usd),
        )
    console.print(table)


def _read_out(log: Path, *, show_thinking: bool, show_system_prompts: bool) -> None:
    record = read_record(log)
    display = ChatDisplay(
        _console(), show_thinking=show_thinking, show_system_prompts=show_system_prompts, following=False
    )
    for event in record.events:
        display.take(event)
    display.finish()
    for skipped in record.skipped:
        click.echo(f"Note: {log.name}, {visible(str(skipped))}", err=True)


def rebuild_manifests(target: str | None, output: Path | None, *, everything: bool) -> None:
    """Write `manifest.json` anew from the logs, for one experiment or all."""
    root = OutputRoot(output)
    if (target is None) == (not everything):
        raise click.UsageError("Name an experiment, or give --all.")
    for folder in list(root.folders()) if target is None else [root.find(target)]:
        if current_manifest(root, folder).status is Status.RUNNING:
            raise LogError(f"{folder.experiment_id} is running; its runner keeps the manifest")
        manifest = rebuild(folder, write=True)
        totals = manifest.totals
        click.echo(f"{folder.manifest}: {totals.conversations} conversations, {totals.messages} messages")
