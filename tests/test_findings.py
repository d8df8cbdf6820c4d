"""What detectors find, in the view `attractors`: while a conversation ran, or when its record was imported."""

import json
from pathlib import Path
from typing import Any

from commands import Pidgin, pidgin
from forked_cli import logs_in

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
FOUND = (
    "SELECT detector, turn_number, message_index, value, threshold, onset, period FROM attractors "
    "JOIN experiments USING (experiment_id) WHERE {} ORDER BY ALL"
)
SILENT = ("chat", "-a", "local:silent", "-b", "local:silent", "-t", "3", "--seed", "1", "--display", "quiet")


def ask(pidgin: Pidgin, sql: str) -> list[dict[str, Any]]:
    told = pidgin("query", sql, "--json")
    assert told.status == 0, told.err
    found: list[dict[str, Any]] = json.loads(told.out)
    return found


def taken(pidgin: Pidgin) -> None:
    assert pidgin("import", "--all").status == 0


def test_a_record_without_live_metrics_has_the_same_findings(pidgin: Pidgin) -> None:
    """What is found after the run is what would have been found in it: marked, without an action, never twice."""
    for metrics in ("live", "off"):
        spec = {"agents": [{"id": i, "model": "local:silent"} for i in "ab"], "max_turns": 3, "metrics": metrics}
        Path("spec.yaml").write_text(json.dumps(spec | {"name": metrics}))
        assert pidgin("run", "spec.yaml", "--display", "quiet").status == 0
    taken(pidgin)
    live, off = ask(pidgin, FOUND.format("name = 'live'")), ask(pidgin, FOUND.format("name = 'off'"))
    assert live == off
    assert {row["detector"] for row in live} >= {"silence_collapse"}
    how = "SELECT DISTINCT name, computed, action, seq IS NULL AS s, happened_at IS NULL AS h FROM attractors "
    assert ask(pidgin, f"{how} JOIN experiments USING (experiment_id) ORDER BY name") == [
        {"name": "live", "computed": False, "action": "record", "s": False, "h": False},
        {"name": "off", "computed": True, "action": None, "s": True, "h": True},
    ]
    assert pidgin("import", "off", "--again").status == 0
    assert ask(pidgin, FOUND.format("name = 'off'")) == off
    assert pidgin("verify", "off").status == 0


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
    for name in ("told", "untold"):
        assert pidgin(*SILENT, "-n", name).status == 0
    for log in logs_in(ROOT):
        lines = log.read_bytes().splitlines(keepends=True)
        end = next(n for n, line in enumerate(lines) if b'"silence_collapse"' in line)
        told = "_told_" in log.parent.name
        while b'"AttractorEvent"' in lines[end]:
            end += 1 if told else -1
        log.write_bytes(b"".join(lines[: end if told else end + 1]))
    taken(pidgin)
    silence = "SELECT name, computed FROM attractors JOIN experiments USING (experiment_id) "
    assert ask(pidgin, f"{silence} WHERE detector = 'silence_collapse' ORDER BY name") == [
        {"name": "told", "computed": False},
        {"name": "untold", "computed": True},
    ]
    assert ask(pidgin, FOUND.format("name = 'told'")) == ask(pidgin, FOUND.format("name = 'untold'"))
