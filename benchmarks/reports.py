"""The pages of a study: what passes between the end of the last of 200 conversations of 30 turns and its report."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pidgin_cli.cli.reports import post_process
from pidgin_cli.database.schema import MetricColumn
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.catalogue import message_metrics
from pidgin_cli.reports.post_processing import FAILED, STEPS

from .importing import CONVERSATIONS, TURNS, Row, study

__all__ = ["main"]

BUDGET_S = 60.0
"""DESIGN gives none for the pages; this is what a person in front of them waits without going away."""
REPORT_BUDGET_S = 10.0
"""Of figures and report.html alone, as after a change that touches nothing else."""
SIZE_BUDGET_MB = 40.0
"""Of the page: what browsers open and mail takes."""

_TYPES: dict[str, Literal["DOUBLE", "BIGINT", "BOOLEAN", "VARCHAR"]] = {
    "float": "DOUBLE",
    "int": "BIGINT",
    "bool": "BOOLEAN",
    "text": "VARCHAR",
}


def main(*, quick: bool) -> Iterator[Row]:
    """Rows for `make bench`."""
    conversations = CONVERSATIONS // 5 if quick else CONVERSATIONS
    share = conversations / CONVERSATIONS
    columns = [MetricColumn(name, "message", _TYPES[m.kind]) for name, m in message_metrics().items()]
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        root = OutputRoot(Path(scratch))
        folder = study(root, conversations, columns)
        began: dict[str, float] = {}

        def note(told: str) -> None:
            began.setdefault(told.partition(":")[0], time.perf_counter())

        outcomes = post_process(root, folder, note)
        ends = [*list(began.values())[1:], time.perf_counter()]
        took = dict(zip(began, (end - start for end, start in zip(ends, began.values(), strict=True)), strict=True))
        what = f"all pages of {conversations} conversations of {TURNS} turns, import and metrics included"
        yield _at_most(what, sum(took.values()), BUDGET_S * share)
        yield _at_most("… figures and report.html", took["figures"] + took["report"], REPORT_BUDGET_S)
        for name in STEPS:
            yield Row(f"… {name}", f"{took[name]:.2f} s")
        size = (folder.path / "report.html").stat().st_size / 1e6
        yield Row("… size of report.html", f"{size:.0f} MB", f"at most {SIZE_BUDGET_MB:g} MB", size <= SIZE_BUDGET_MB)
        failed = [name for name, outcome in outcomes.items() if outcome.startswith(FAILED)]
        if failed:
            yield Row(f"… {', '.join(failed)} failed", "", "none", ok=False)


def _at_most(what: str, seconds: float, budget: float) -> Row:
    return Row(what, f"{seconds:.1f} s", f"at most {budget:g} s", seconds <= budget)
