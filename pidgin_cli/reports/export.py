"""Experiments as folders that other programs read: tables, a Hugging Face dataset, logs of Inspect.

Everything comes from the database, and each folder says what is in it: `schema.json` tells what the columns are,
`manifest.json` has the hash of every file.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pidgin_cli.core.errors import SpecError
from pidgin_cli.database.store import EventStore
from pidgin_cli.database.tables import WRITTEN, Extract, FileKind
from pidgin_cli.metrics.catalogue import METRICS_VERSION

from .export_dataset import write_dataset
from .export_inspect import write_logs
from .export_redaction import RULES, Redactor

__all__ = ["EXPORTERS", "Exported", "export"]

FORMAT = 1
"""Of `manifest.json`."""


class Written(NamedTuple):
    """What an exporter has put into the folder."""

    rows: dict[str, int]
    """Of each file, by its name in the folder: the rows of a table, the samples of a log."""
    schema: dict[str, Any]
    """For `schema.json`."""


Exporter = Callable[[Extract, Path], Written]


def _as_tables(kind: FileKind) -> Exporter:
    def write(extract: Extract, folder: Path) -> Written:
        rows = {f"{name}.{kind}": extract.write(name, folder / f"{name}.{kind}", kind) for name in extract.tables}
        return Written(rows, {"values": WRITTEN[kind], "tables": described(extract)})

    return write


def described(extract: Extract) -> dict[str, Any]:
    """The tables with their columns, for `schema.json`."""
    return {
        table.name: {"meaning": table.meaning, "columns": [column._asdict() for column in table.columns]}
        for table in extract.tables.values()
    }


def _as_dataset(extract: Extract, folder: Path) -> Written:
    rows, transcripts = write_dataset(extract, folder)
    return Written(rows, {"values": WRITTEN["parquet"], "tables": {"transcripts": transcripts} | described(extract)})


def _as_logs(extract: Extract, folder: Path) -> Written:
    rows, told = write_logs(extract, folder)
    return Written(rows, told)


EXPORTERS: dict[str, Exporter] = {
    "parquet": _as_tables("parquet"),
    "csv": _as_tables("csv"),
    "jsonl": _as_tables("jsonl"),
    "hf": _as_dataset,
    "inspect": _as_logs,
}
"""By the name of the format."""


class Exported(NamedTuple):
    """An export that has been made."""

    path: Path
    rows: dict[str, int]
    """Rows of each file."""
    conversations: int
    messages: int
    """Own messages; those that branches share are not counted again."""
    unfinished: int
    """Conversations that have no end yet."""
    invalid: dict[str, int]
    """Invalid conversations by reason; those with two reasons count in both."""
    invalid_total: int
    notable: int
    with_nul: int
    """Messages with NUL characters in a format that some readers cut there."""
    redactions: dict[str, int] | None
    """By rule; None: nothing was looked for."""


def export(
    store: EventStore,
    experiments: Sequence[str],
    target: Path,
    kind: str,
    *,
    version: str,
    redactor: Redactor | None = None,
    force: bool = False,
) -> Exported:
    """Export experiments that are in the database into a folder, which appears whole or not at all.

    Args:
        kind: one of `EXPORTERS`.
        version: that of Pidgin.
        redactor: what is done to every text; with its counts the manifest tells how much it found.
        force: put the export into the place of an earlier one.

    Raises:
        SpecError: the folder is not empty, or cannot be made.
        StoreError: the database cannot be read.
    """
    target = target.absolute()
    _check(target, force=force)
    making = target.with_name(f".{target.name}.making")
    try:
        shutil.rmtree(making, ignore_errors=True)  # of an export that was killed
        making.mkdir(parents=True)
        with Extract(store, experiments, redactor) as extract:
            written = EXPORTERS[kind](extract, making)
            done = _counted(extract, target, kind, written, redactor)
            _put_json(making / "schema.json", {"format": FORMAT, "kind": kind} | written.schema)
            _put_json(making / "manifest.json", _manifest(extract, making, kind, version, done))
        _into_place(making, target)
    except OSError as error:
        raise SpecError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return done


def _check(target: Path, *, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise SpecError(f"{target} is no folder; choose another with --to")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not _is_export(target):
        raise SpecError(f"{target} is not empty and no export; choose another with --to")
    if not force:
        raise SpecError(f"{target} holds an export already; --force puts this one in its place")


def _is_export(folder: Path) -> bool:
    """Whether nothing but an earlier export is lost with a folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        listed = {Path(entry["path"]).parts[0] for entry in manifest["files"]}
        return "pidgin_version" in manifest and {path.name for path in folder.iterdir()} <= listed | {"manifest.json"}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _into_place(making: Path, target: Path) -> None:
    if not target.is_dir():
        making.rename(target)
        return
    before = target.with_name(f".{target.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    target.rename(before)
    making.rename(target)
    shutil.rmtree(before, ignore_errors=True)


def _counted(extract: Extract, target: Path, kind: str, written: Written, redactor: Redactor | None) -> Exported:
    (totals,) = extract.rows(
        "SELECT count(*) AS conversations, count(*) FILTER (ended_at IS NULL) AS unfinished, "
        "count(*) FILTER (invalid) AS invalid, count(*) FILTER (notable) AS notable FROM extract.main.conversations"
    )
    reasons = extract.rows(
        "SELECT reason, count(*) AS n FROM (SELECT unnest(invalid_reasons) AS reason FROM extract.main.conversations "
        "WHERE invalid) GROUP BY reason ORDER BY reason"
    )
    (nul,) = extract.rows("SELECT count(*) AS n FROM extract.main.messages WHERE contains(content, chr(0))")
    return Exported(
        target,
        written.rows,
        totals["conversations"],
        extract.count("messages"),
        totals["unfinished"],
        {row["reason"]: row["n"] for row in reasons},
        totals["invalid"],
        totals["notable"],
        nul["n"] if kind == "csv" else 0,
        None if redactor is None else dict(redactor.counts),
    )


def _manifest(extract: Extract, folder: Path, kind: str, version: str, done: Exported) -> dict[str, Any]:
    versions = extract.rows(
        "SELECT DISTINCT metrics_version AS v FROM extract.main.message_metrics WHERE metrics_version IS NOT NULL "
        "ORDER BY v"
    )
    experiments = extract.rows(
        "SELECT e.experiment_id, e.name, e.status, e.spec_hash, count(c.conversation_id) AS conversations, "
        "count(*) FILTER (c.invalid) AS invalid, count(*) FILTER (c.notable) AS notable "
        "FROM extract.main.experiments e LEFT JOIN extract.main.conversations c USING (experiment_id) GROUP BY ALL "
        "ORDER BY e.experiment_id"
    )
    redaction = None
    if done.redactions is not None:
        redaction = {rule: {"found": n, "what": RULES[rule]} for rule, n in done.redactions.items()}
    return {
        "format": FORMAT,
        "kind": kind,
        "pidgin_version": version,
        "metrics_version": METRICS_VERSION,
        "metrics_versions_of_the_rows": [row["v"] for row in versions],
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "experiments": experiments,
        "redaction": redaction,
        "files": [
            {
                "path": path.relative_to(folder).as_posix(),
                "sha256": _sha256(path),
                "bytes": path.stat().st_size,
                "rows": done.rows.get(path.relative_to(folder).as_posix()),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
