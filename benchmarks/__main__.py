"""Measures what Pidgin costs and prints it beside the budgets. Exits 0 whatever it finds: a figure is not a test."""

import argparse
import asyncio
import gc
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from pidgin_cli.experiments.runner import spare_collector

from .loops import Run, Scripted, bare, pidgin

CONVERSATIONS = 200
MESSAGES = 60


class Row(NamedTuple):
    """One line of the table."""

    what: str
    measured: str
    budget: str = ""
    ok: bool | None = None
    """None: there is no budget, the figure is for orientation."""


class Size(NamedTuple):
    """How much is run."""

    rounds: int
    """Ours and the bare loop take turns; the best of each counts."""
    slow_messages: int
    starts: int
    many: int
    """Short conversations in one run."""


FULL = Size(rounds=7, slow_messages=MESSAGES, starts=20, many=20_000)
QUICK = Size(rounds=1, slow_messages=8, starts=7, many=4_000)


def main() -> None:
    """Run all measurements, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="one group of measurements")
    parser.add_argument("--raw-memory", choices=("off", "live"), help=argparse.SUPPRESS)
    parser.add_argument("--raw-many", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    spare_collector()  # as `pidgin run` does once all is imported
    if args.raw_memory is not None:
        print(*asyncio.run(_memory_growth(args.raw_memory)))
        return
    if args.raw_many is not None:
        print(*asyncio.run(_many_growth(args.raw_many)))
        return
    size = QUICK if args.quick else FULL
    chosen = [args.only] if args.only else list(MEASUREMENTS)
    rows = [row for name in chosen for row in _told(name, MEASUREMENTS[name], size)]
    _print(rows)


def _told(name: str, measure: Callable[[Size], Iterator[Row]], size: Size) -> list[Row]:
    print(f"… {name}", file=sys.stderr, flush=True)
    return list(measure(size))


def _print(rows: list[Row]) -> None:
    verdicts = {True: "ok", False: "MISSED", None: ""}
    table = [("what", "measured", "budget", ""), *((r.what, r.measured, r.budget, verdicts[r.ok]) for r in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for number, line in enumerate(table):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths[:3]))


def _at_least(what: str, value: float, budget: float) -> Row:
    return Row(what, f"{value:.0%}", f"at least {budget:.0%}", value >= budget)


def _at_most(what: str, value: float, budget: float, unit: str = "", digits: int = 2) -> Row:
    return Row(what, f"{value:.{digits}f}{unit}", f"at most {budget:g}{unit}", round(value, digits) <= budget)


def _best(size: Size, *measures: Callable[[Path], Coroutine[Any, Any, Run]]) -> list[Run]:
    """The fastest run of each, taken in turns so that a change of the machine's speed strikes all of them."""
    found: list[list[Run]] = [[] for _ in measures]
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        for number in range(size.rounds):
            for place, measure in enumerate(measures):
                gc.collect()
                gc.freeze()
                found[place].append(asyncio.run(measure(Path(scratch) / f"{number}-{place}")))
    return [max(runs, key=lambda run: run.rate) for runs in found]


def rate(size: Size) -> Iterator[Row]:
    """The zero-latency model, metrics off."""
    amount = (Scripted(), CONVERSATIONS, MESSAGES)
    same, least, ours = _best(
        size,
        lambda folder: bare(folder, *amount),
        lambda folder: bare(folder, *amount, text_only=True),
        lambda folder: pidgin(folder, *amount),
    )
    yield Row(f"zero-latency model, {CONVERSATIONS} × {MESSAGES} messages, metrics off", f"{ours.rate:,.0f} messages/s")
    yield _at_least("… of a bare loop that writes the same lines", ours.rate / same.rate, 0.20)
    yield Row("… the same in CPU time", f"{same.cpu_s / ours.cpu_s:.0%}")
    yield Row("… of a bare loop that writes only the text", f"{ours.rate / least.rate:.0%}")
    if ours.cpu_s < 0.9 * ours.wall_s:
        yield Row("(other programs are using this machine: rates are too low, their ratios uncertain)", "")
    same, ours = _best(
        size,
        lambda folder: bare(folder, *amount, fsync=True),
        lambda folder: pidgin(folder, *amount, "strict"),
    )
    yield Row("the same, strict durability", f"{ours.rate:,.0f} messages/s")
    yield _at_least("… of a bare loop with grouped fsync", ours.rate / same.rate, 0.50)


def latency(size: Size) -> Iterator[Row]:
    """The 500 ms model, many at once."""
    amount = (Scripted(latency_s=0.5, pieces=10), CONVERSATIONS, size.slow_messages)
    theirs, ours = _best(
        size._replace(rounds=1),
        lambda folder: bare(folder, *amount),
        lambda folder: pidgin(folder, *amount, metrics="live"),
    )
    what = f"500 ms model in 10 pieces, {CONVERSATIONS} at once × {size.slow_messages} messages, metrics live"
    yield _at_most(what, 100 * (ours.wall_s / theirs.wall_s - 1), 5, " %", 1)
    # The last write comes at once, whenever the one before it was.
    yield _at_most("… manifest writes per second", (ours.manifest_writes - 1) / ours.wall_s, 2)


def growth(size: Size) -> Iterator[Row]:
    """One conversation, message 400 against message 40."""
    cpu: list[list[float]] = []
    per_turn: list[list[int]] = []
    for _ in range(4 * size.rounds):
        marks: list[float] = []
        provider = Scripted(on_request=lambda marks=marks: marks.append(time.thread_time()))  # type: ignore[misc]
        with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
            folder = Path(scratch) / "run"
            gc.collect()
            asyncio.run(pidgin(folder, provider, 1, 820))
            per_turn.append(_turn_bytes(next(folder.rglob("conv_*")).read_bytes()))
        cpu.append([after - before for before, after in itertools.pairwise(marks)])
    typical = [statistics.median(column) for column in zip(*cpu, strict=True)]
    early, late = statistics.mean(typical[20:60]), statistics.mean(typical[380:420])
    what = f"one conversation: CPU of message 400 ({late * 1e6:.0f} µs) over message 40 ({early * 1e6:.0f} µs)"
    yield _at_most(what, late / early, 1.3, " ×")
    bytes_early, bytes_late = (statistics.median(turns[turn - 1] for turns in per_turn) for turn in (4, 400))
    what = "… log bytes of turn 400 over turn 4, the length of numbers aside"
    yield _at_most(what, bytes_late / bytes_early, 1.0, " ×", 3)


def _turn_bytes(log: bytes) -> list[int]:
    """Bytes of each turn, with every number (counters and times get longer) and every digest of one length."""
    _, *turns = log.split(b'{"event_type":"TurnStartEvent"')
    return [len(re.sub(rb"[0-9]+(\.[0-9]+)?", b"0", re.sub(rb'"[0-9a-f]{32}"', b'""', turn))) for turn in turns]


def memory(size: Size) -> Iterator[Row]:
    """What 200 conversations hold, measured in a process of its own."""
    del size
    for metrics, budget in (("off", 100), ("live", 200)):
        command = [sys.executable, "-m", "benchmarks", "--raw-memory", metrics]
        first, second = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        what = f"memory of {CONVERSATIONS} × {MESSAGES} messages of 120 words, all at once, metrics {metrics}"
        yield _at_most(what, first, budget, " MB", 0)
        yield _at_most("… growth by as many again, once these are finished", second, 10, " MB", 0)


async def _memory_growth(metrics: Literal["off", "live"]) -> tuple[float, float]:
    from .metrics import Writer  # only now, so that its imports are no part of what others measure

    writer = Writer(3)
    provider = Scripted(latency_s=0.05, say=lambda: writer.message(120))
    process = psutil.Process()
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.02)

    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        await pidgin(Path(scratch) / "warm", provider, 2, 4, metrics=metrics)
        marks = [process.memory_info().rss]
        watcher = asyncio.create_task(watch())
        for name in ("first", "second"):
            await pidgin(Path(scratch) / name, provider, CONVERSATIONS, MESSAGES, metrics=metrics)
            marks.append(peak)
            gc.collect()
        watcher.cancel()
    return (marks[1] - marks[0]) / 1e6, (marks[2] - marks[1]) / 1e6


def many(size: Size) -> Iterator[Row]:
    """Thousands of short conversations in one run, measured in a process of its own."""
    number = size.many
    command = [sys.executable, "-m", "benchmarks", "--raw-many", str(number)]
    took = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    early, late, rate = map(float, took)
    yield Row(f"{number:,} conversations × 2 messages, 100 at once", f"{rate:,.0f} conversations/s")
    per_conversation = (late - early) / (number / 2) * 1e6
    yield _at_most("… memory at the end", late, 200, " MB", 0)
    yield Row("… growth from the half to the end, for each conversation", f"{per_conversation:,.0f} bytes")


async def _many_growth(number: int) -> tuple[float, float, float]:
    """Memory in MB at half of the conversations and at the end, beyond that at the start; conversations a second."""
    process = psutil.Process()
    marks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch:
        await pidgin(Path(scratch) / "warm", Scripted(), 2, 2)
        before = process.memory_info().rss

        asked = 0

        def on_request() -> None:
            nonlocal asked
            asked += 1
            if asked in (number, 2 * number):
                marks.append((process.memory_info().rss - before) / 1e6)

        run = await pidgin(Path(scratch) / "many", Scripted(on_request=on_request), number, 2, at_once=100)
    return marks[0], marks[1], number / run.wall_s


def start(size: Size) -> Iterator[Row]:
    """`pidgin --help`."""
    ours = "import sys; sys.argv = ['pidgin', '--help']; from pidgin_cli.__main__ import main; main()"
    times: dict[str, float] = {"import click": math.inf, ours: math.inf}
    for _ in range(size.starts):
        for code in times:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=os.sep)
            times[code] = min(times[code], time.perf_counter() - began)
    click, ours_took = times.values()
    what = f"`pidgin --help` ({ours_took * 1000:.0f} ms) over `import click` ({click * 1000:.0f} ms)"
    yield _at_most(what, ours_took / click, 1.5, " ×")


def streaming(size: Size) -> Iterator[Row]:
    """Many streams at once through a real SDK."""
    from .streaming import main  # only now, so that the SDK's import is not part of what comes before

    yield from (Row(*row) for row in main(quick=size is QUICK))


def limits(size: Size) -> Iterator[Row]:
    """Adaptive concurrency against servers with hard limits."""
    from .limits import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def watching(size: Size) -> Iterator[Row]:
    """The monitor at 10,000 conversations."""
    from .watching import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def detectors(size: Size) -> Iterator[Row]:
    """All detectors at the beginning and late in a conversation."""
    from .detectors import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def metrics(size: Size) -> Iterator[Row]:
    """Live metrics and detectors."""
    from .metrics import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def importing(size: Size) -> Iterator[Row]:
    """12,000 messages with their metrics into the database."""
    from .importing import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def reports(size: Size) -> Iterator[Row]:
    """The pages of 200 conversations of 30 turns."""
    from .reports import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


def measuring(size: Size) -> Iterator[Row]:
    """What is computed after the run."""
    from .measuring import main

    yield from (Row(*row) for row in main(quick=size is QUICK))


MEASUREMENTS = {
    "rate": rate,
    "latency": latency,
    "growth": growth,
    "memory": memory,
    "many": many,
    "start": start,
    "streaming": streaming,
    "limits": limits,
    "watching": watching,
    "importing": importing,
    "reports": reports,
    "metrics": metrics,
    "measuring": measuring,
    "detectors": detectors,
}

if __name__ == "__main__":
    main()
