"""Metrics after the run: what a person waits for them at the end of a study of 200 conversations of 30 turns.

The texts are those of the live metrics' measurement: words with a Zipf distribution, function words, some markdown.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pidgin_cli.cli.database import open_store
from pidgin_cli.core.events import ConversationStartEvent, Event, MessageCompleteEvent, TurnCompleteEvent
from pidgin_cli.core.types import Agent
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.reports.measuring import measure
from pidgin_cli.spec.conversation import ConversationSpec

from .importing import CONVERSATIONS, TURNS, WORDS, Row, study
from .metrics import Writer

__all__ = ["main"]

BUDGET_S = 30.0
"""Two cores, full study; the live metrics are in the record."""
LIVE_BUDGET_S = 50.0
"""The same where the record has none."""
MEMORY_MB = 500.0
"""Of the process that a person sees, at its greatest."""
SHARE = 4
"""Of the conversations, one in so many with `--quick`; the budget of time with them."""


def main(*, quick: bool) -> Iterator[Row]:
    """Rows for `make bench`."""
    conversations = CONVERSATIONS // SHARE if quick else CONVERSATIONS
    messages = conversations * TURNS * 2
    for live, budget in ((True, BUDGET_S), (False, LIVE_BUDGET_S)):
        with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
            root = OutputRoot(Path(scratch))
            _write(root, conversations, live=live)
            command = [sys.executable, "-m", "benchmarks.measuring", scratch]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        took, again, memory = map(float, told)
        what = f"metrics after the run of {messages:,} messages" if live else "… where the record has no live ones"
        budget *= conversations / CONVERSATIONS
        yield Row(what, f"{took:.1f} s", f"at most {budget:g} s", took <= budget)
        yield Row("… memory at the most", f"{memory:.0f} MB", f"at most {MEMORY_MB:g} MB", memory <= MEMORY_MB)
        yield Row("… again, nothing has changed", f"{again:.2f} s")


def _write(root: OutputRoot, conversations: int, *, live: bool) -> None:
    """Records with texts as people and models write them; `live`: with the mark that metrics were computed."""
    folder = study(root, conversations, [])
    writer = Writer(7)
    agents = tuple(Agent(name, "local:test", name) for name in "ab")
    spec = msgspec.to_builtins(ConversationSpec(agents=agents, opening="Hello.", max_turns=TURNS))

    def rewritten(event: Event) -> Event:
        if isinstance(event, ConversationStartEvent):
            return msgspec.structs.replace(event, spec=spec)
        if isinstance(event, MessageCompleteEvent):
            said = msgspec.structs.replace(event.message, content=writer.message(WORDS))
            return msgspec.structs.replace(event, message=said)
        if isinstance(event, TurnCompleteEvent) and not live:
            return msgspec.structs.replace(event, metrics={}, convergence=None)
        return event

    for log in folder.logs().values():
        log.write_bytes(b"".join(encode(rewritten(event)) + b"\n" for event in read_record(log).events))
    with open_store(root) as store:
        store.import_experiment(folder)


def _measured(root: OutputRoot) -> float:
    (folder,) = root.folders()
    began = time.perf_counter()
    with open_store(root) as store:
        measure(store, root, folder, lineage=whole)
    return time.perf_counter() - began


def _most_memory_mb() -> float:
    """`ru_maxrss` would begin with what the process that started this one held."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    took = [_measured(OutputRoot(Path(sys.argv[1]))) for _ in range(2)]
    print(*took, _most_memory_mb())
