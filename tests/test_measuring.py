"""Metrics after the run: in several processes as in one, kept as they come, gone on with, and left behind by nobody."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
from runs import logged, make
from support import conversation
from test_database import talk

from pidgin_cli.cli.database import open_store
from pidgin_cli.core.events import Event
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.reports import measuring
from pidgin_cli.reports.measuring import Measured, measure
from pidgin_cli.reports.workers import workers

ID = "abcdefgh"
CONVERSATIONS = 6
DEADLINE_S = 60

WORDS = "we say so and the old gate is open again but nobody knows why it was ever closed at all good bad".split()  # noqa: SIM905


def _spoken(seed: int, turns: int = 3) -> list[Event]:
    """A log without live metrics whose spec can be taken in again."""
    draw = random.Random(seed)
    spec = msgspec.to_builtins(conversation("local:test", "local:test"))
    events = talk(*(" ".join(draw.choices(WORDS, k=20)) + "." for _ in range(2 * turns)))
    return [msgspec.structs.replace(events[0], spec=spec), *events[1:]]


def _study(path: Path) -> tuple[OutputRoot, ExperimentFolder]:
    root = OutputRoot(path)
    return root, make(root, ID, [_spoken(seed) for seed in range(CONVERSATIONS)])


def _copy(root: OutputRoot, path: Path) -> tuple[OutputRoot, ExperimentFolder]:
    shutil.copytree(root.path, path)
    copy = OutputRoot(path)
    return copy, copy.find(ID)


def _measure(
    root: OutputRoot, folder: ExperimentFolder, progress: Callable[[str], None] = lambda _: None
) -> tuple[Measured, dict[str, Any]]:
    """Import and measure; what was computed, and all that the database has of it but the times."""
    with open_store(root) as store:
        store.import_experiment(folder)
        measured = measure(store, root, folder, lineage=whole, progress=progress)
        rows = {"messages": store.metrics.by_message(ID), "turns": store.metrics.by_turn(ID)}
        computed = [dict(row, computed_at=None) for row in store.metrics.computed(ID)]
    return measured, {**rows, "computed": computed}


class Whole(NamedTuple):
    """A study, what measuring it gave, and a copy from before that."""

    copy: OutputRoot
    measured: Measured
    rows: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """In one process, without interruption."""
    path = tmp_path_factory.mktemp("whole")
    root, folder = _study(path / "one")
    copy, _ = _copy(root, path / "copy")
    return Whole(copy, *_measure(root, folder))


# Processes


def _square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def _dies_of_seven(number: int) -> int:
    if number == 7 and os.getpid() != int(os.environ["PIDGIN_TEST_PARENT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _refuses(number: int) -> int:
    raise ValueError(f"not {number}")


def test_in_processes() -> None:
    """Results come in the order of the items, from other processes, and these are gone at the end."""
    with workers(2) as pool:
        found = list(pool.map(_square, range(40)))
    assert [number for number, _ in found] == [number * number for number in range(40)]
    pids = {pid for _, pid in found}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with workers(1) as pool:
        assert {pid for _, pid in pool.map(_square, range(3))} == {os.getpid()}


def test_what_no_process_can_do_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies costs no result; a fault is raised as it is; what cannot be handed over is computed here."""
    monkeypatch.setenv("PIDGIN_TEST_PARENT", str(os.getpid()))
    with workers(2) as pool:
        assert list(pool.map(_dies_of_seven, range(12))) == list(range(12))
        with pytest.raises(ValueError, match="not 3"):
            list(pool.map(_refuses, [3]))
        assert list(pool.map(lambda number: -number, range(3))) == [0, -1, -2]


_PROGRAM = """
import os, time
from pidgin_cli.reports.workers import workers
import test_measuring
with workers(2) as pool:
    results = pool.map(test_measuring._square, iter(int, 1))
    pids = set()
    while len(pids) < 2:
        pids.add(next(results)[1])
    print(*pids, flush=True)
    for _ in results:
        pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nobody_stays_behind(how: signal.Signals) -> None:
    """Killed or interrupted from the keyboard, a program leaves no process, and only it says anything."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent,
        start_new_session=True,
        text=True,
    ) as program:
        assert program.stdout is not None
        children = [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]
        assert len(children) == 2
        os.killpg(program.pid, how)  # the group in front, as the terminal does
        _, errors = program.communicate(timeout=DEADLINE_S)
    assert psutil.wait_procs(children, timeout=DEADLINE_S)[1] == []
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == (how == signal.SIGINT)


# Metrics


def test_processes_change_no_number(undisturbed: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is the same whether one process computes it or several, and a second time nothing is computed."""
    study = _copy(undisturbed.copy, tmp_path / "several")
    _, alone, expected = undisturbed
    assert alone == Measured(CONVERSATIONS, 6 * CONVERSATIONS)
    assert all(row["convergence_index"] is not None for row in expected["messages"] if row["message_index"])
    monkeypatch.setattr(measuring, "LEAST_FOR_PROCESSES", 1)
    monkeypatch.setattr("pidgin_cli.reports.workers.processors", lambda: 2)
    assert _measure(*study) == (alone, expected)
    told: list[str] = []
    assert _measure(*study, told.append) == (Measured(), expected)
    assert told == []


def _times(root: OutputRoot) -> dict[tuple[str, str], Any]:
    with open_store(root) as store:
        return {(row["conversation_id"], row["part"]): row["computed_at"] for row in store.metrics.computed(ID)}


def test_more_repetitions_leave_the_texts_alone(tmp_path: Path) -> None:
    """Of an experiment that was extended only the new texts are gone through; surrogates change for all."""
    root, folder = _study(tmp_path)
    _, before = _measure(root, folder)
    old = _times(root)
    name = f"{ID}-{CONVERSATIONS + 1}"
    folder.log(name).write_bytes(b"".join(encode(event) + b"\n" for event in logged(name, _spoken(99))))
    _, after = _measure(root, folder)
    anew = {key for key, time in _times(root).items() if old.get(key) != time}
    everyone = {(f"{ID}-{number}", "others") for number in range(1, CONVERSATIONS + 2)}
    assert anew == {(name, part) for part in ("live", "texts", "semantics")} | everyone
    indices = [
        [row["convergence_index"] for row in rows["messages"] if row["conversation_id"] == f"{ID}-1"]
        for rows in (before, after)
    ]
    assert indices[0][0] is indices[1][0] is None
    assert all(one != two for one, two in zip(indices[0][1:], indices[1][1:], strict=True))


_MEASURE = """
import os, signal, sys
from pathlib import Path
from pidgin_cli.cli.database import open_store
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.reports import measuring
measuring.KEEP_EVERY_S = measuring.LEAST_FOR_PROCESSES = 0
measuring.SHARE_OF_KEEPING = 1e9
def progress(told):
    if told.startswith("4 of"):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
root = OutputRoot(Path(sys.argv[1]))
with open_store(root) as store:
    store.import_experiment(root.find("abcdefgh"))
    measuring.measure(store, root, root.find("abcdefgh"), lineage=whole, progress=progress)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_going_on(undisturbed: Whole, tmp_path: Path, how: str) -> None:
    """A process that ends in the middle loses nothing but what was under way; the next computes only the rest."""
    root, folder = _copy(undisturbed.copy, tmp_path / "broken")
    program = [sys.executable, "-c", _MEASURE, str(root.path), how]
    assert subprocess.run(program, check=False, capture_output=True, timeout=DEADLINE_S).returncode != 0
    told: list[str] = []
    with open_store(root) as store:
        there = [row["conversation_id"] for row in store.metrics.computed(ID) if row["part"] == "texts"]
    assert len(there) == 3
    measured, found = _measure(root, folder, told.append)
    assert found == undisturbed.rows
    assert measured.live == 0
    assert f"{CONVERSATIONS} of {CONVERSATIONS} conversations" in told
