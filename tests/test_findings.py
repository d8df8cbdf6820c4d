"""What detectors find, in the view `attractors`: while a conversation ran, or when its record was imported."""

import json
from pathlib import Path
from typing import Any

from commands import Pidgin, pidgin
from forked_cli import logs_in

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
FOUND = "SELECT detector, turn_number, message_index, value, threshold, onset, period FROM attractors ORDER BY ALL"
SILENT = ("chat", "-a", "local:silent", "-b", "local:silent", "-t", "3", "--seed", "1", "--display", "quiet")


def ask(pidgin: Pidgin, sql: str, root: Path = ROOT) -> list[dict[str, Any]]:
    told = pidgin("query", sql, "--json", "-o", root)
    assert told.status == 0, told.err
    found: list[dict[str, Any]] = json.loads(told.out)
    return found


def taken(pidgin: Pidgin, root: Path = ROOT) -> None:
    assert pidgin("import", "--all", "-o", root).status == 0


def test_a_record_without_live_metrics_has_the_same_findings(pidgin: Pidgin) -> None:
    """What is found after the run is what would have been found in it: marked, without an action, never twice."""
    assert pidgin(*SILENT).status == 0
    spec = json.dumps(
        {"agents": [{"id": i, "model": "local:silent"} for i in "ab"], "max_turns": 3, "seed": 1, "metrics": "off"}
    )
    Path("off.yaml").write_text(spec)
    assert pidgin("run", "off.yaml", "-o", "off", "--display", "quiet").status == 0
    taken(pidgin)
    taken(pidgin, Path("off"))
    live, off = ask(pidgin, FOUND), ask(pidgin, FOUND, Path("off"))
    assert live == off
    assert {row["detector"] for row in live} >= {"silence_collapse"}
    how = "SELECT DISTINCT computed, action, seq IS NULL AS s, happened_at IS NULL AS h FROM attractors"
    assert ask(pidgin, how) == [{"computed": False, "action": "record", "s": False, "h": False}]
    assert ask(pidgin, how, Path("off")) == [{"computed": True, "action": None, "s": True, "h": True}]
    assert pidgin("import", "--all", "-o", "off", "--again").status == 0
    assert ask(pidgin, FOUND, Path("off")) == off
    assert pidgin("verify", "-o", "off").status == 0


def test_a_transcript_from_elsewhere_has_findings(pidgin: Pidgin) -> None:
    """What is imported as plain text is looked through as a live run is; the findings go with the exports."""
    texts = ["The river runs down to the sea and never asks the way.", "Stones are patient, they wait for the water."]
    said = "\n\n".join(f"### Name {n % 2 + 1} ###\n{texts[n % 2]}" for n in range(10))
    Path("talk.txt").write_text(said)
    assert pidgin("import", "talk.txt").status == 0
    rows = ask(pidgin, "SELECT detector, onset, period, computed, arm FROM attractors WHERE detector = 'cycle'")
    assert rows == [{"detector": "cycle", "onset": 0, "period": 2, "computed": True, "arm": ""}]
    (row,) = json.loads(pidgin("list", "--json").out)
    assert pidgin("export", row["experiment_id"], "--format", "csv", "--to", "out").status == 0
    (table,) = Path("out").rglob("computed_attractors.csv")
    assert '"cycle"' in table.read_text()


def test_what_the_record_tells_is_not_told_twice(pidgin: Pidgin) -> None:
    """A turn that broke off has its findings once: those of the record, and computed ones only where it has none."""
    assert pidgin(*SILENT).status == 0
    (log,) = logs_in(ROOT)
    lines = log.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"AttractorEvent"' in line and b'"silence_collapse"' in line)
    while b'"AttractorEvent"' in lines[at + 1]:
        at += 1
    log.write_bytes(b"".join(lines[: at + 1]))
    taken(pidgin)
    with_event = ask(pidgin, FOUND)
    marks = "SELECT computed FROM attractors WHERE detector = 'silence_collapse'"
    assert ask(pidgin, marks) == [{"computed": False}]
    cut = at
    while b'"AttractorEvent"' in lines[cut]:
        cut -= 1
    log.write_bytes(b"".join(lines[: cut + 1]))
    taken(pidgin)
    assert ask(pidgin, marks) == [{"computed": True}]
    assert ask(pidgin, FOUND) == with_event
