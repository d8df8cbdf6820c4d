"""The log on disk: writer, reader, tailer, fsyncs, and what is left after every kind of accident."""

import asyncio
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    ConversationResumedEvent,
    Event,
    MessageCompleteEvent,
    SystemPromptEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import FinishReason, Message, Role
from pidgin_cli.eventlog import log as log_module
from pidgin_cli.eventlog.codec import Skipped, decode, encode
from pidgin_cli.eventlog.log import Durability, EventLog, Syncer, read_record, tail

UNKNOWN = b'{"event_type":"TelepathyEvent","event_id":"abcd1234-1:9","seq":9,"thought":"\xe2\x80\xa6"}'
BROKEN = b'{"event_type":"TurnStartEvent","turn_number":'
NAME = "conv_abcd1234-1_events.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


@pytest.fixture
async def syncer() -> AsyncIterator[Syncer]:
    syncer = Syncer()
    yield syncer
    await syncer.aclose()


def opened(path: Path, syncer: Syncer | None = None, durability: Durability = "none", **changes: Any) -> EventLog:
    return EventLog(
        path,
        experiment_id="abcd1234",
        conversation_id="abcd1234-1",
        syncer=syncer or Syncer(),
        durability=durability,
        **changes,
    )


def resumed(path: Path, syncer: Syncer | None = None, durability: Durability = "none") -> tuple[EventLog, Any]:
    return EventLog.resume(
        path,
        experiment_id="abcd1234",
        conversation_id="abcd1234-1",
        syncer=syncer or Syncer(),
        durability=durability,
    )


def turn(number: int = 1) -> TurnStartEvent:
    return TurnStartEvent(turn_number=number, speakers=("a", "b"))


def said(text: str, agent: str = "a") -> MessageCompleteEvent:
    return MessageCompleteEvent(
        agent_id=agent,
        turn_number=1,
        message_index=0,
        message=Message(Role.ASSISTANT, text, id="m0"),
        finish_reason=FinishReason.STOP,
        model_requested="local:test",
    )


def write(path: Path, *events: Event) -> list[Event]:
    """Append events through a log of their own and close it."""
    log, _ = resumed(path)
    for event in events:
        log.append(event)
    log.flush()
    log._abandon()
    return list(events)


def turns(events: Iterable[Event | Skipped]) -> list[int]:
    return [event.turn_number for event in events if isinstance(event, TurnStartEvent)]


async def reached(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return when a condition holds; fail when it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came to hold"
        await asyncio.sleep(0.001)


@contextmanager
def process(script: str, *arguments: object, under: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Another Python process with pipes, ended at the end."""
    command = [*under, sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


PRELUDE = """
import asyncio, json, os, resource, sys
from pathlib import Path
from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import TurnStartEvent
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
path = Path(sys.argv[1])
ids = {"experiment_id": "abcd1234", "conversation_id": "abcd1234-1"}
def turn(number):
    return TurnStartEvent(turn_number=number, speakers=("a", "b"))
def say(*words):
    print(*words, flush=True)
"""


# --- writing


def test_events_wait_in_the_buffer_until_flush(path: Path) -> None:
    """`append` does not touch the file; `flush` writes all of it; a second flush has nothing to do."""
    log = opened(path)
    for number in range(3):
        log.append(turn(number))
    assert path.read_bytes() == b""
    log.flush()
    size = path.stat().st_size
    assert turns(read_record(path).events) == [0, 1, 2]
    log.flush()
    assert path.stat().st_size == size
    log._abandon()


def test_one_flush_is_one_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many events wait, the kernel is called once."""
    log = opened(path)
    real, calls = os.write, list[int]()

    def counting(fd: int, data: Any) -> int:
        if fd == log._fd:
            calls.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", counting)
    for number in range(500):
        log.append(said("x" * number))
    log.flush()
    assert calls == [path.stat().st_size]
    log._abandon()


def test_a_short_write_is_carried_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel takes only a part, the rest follows, in order and once."""
    log = opened(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7] if fd == log._fd else data))
    for number in range(3):
        log.append(turn(number))
    log.flush()
    log._abandon()
    assert turns(read_record(path).events) == [0, 1, 2]


def test_the_log_stamps_what_it_writes(path: Path) -> None:
    """seq counts without gaps, ids and times are the log's own, and the caller's event carries them too."""
    reported = [turn(number) for number in range(50)]
    log = opened(path)
    for event in reported:
        log.append(event)
    log.flush()
    log._abandon()
    found = read_record(path).events
    assert found == reported
    assert [event.seq for event in found] == list(range(50))
    assert [event.event_id for event in found] == [f"abcd1234-1:{n}" for n in range(50)]
    assert [event.timestamp for event in found] == sorted(event.timestamp for event in found)


def test_an_event_that_cannot_be_encoded_takes_no_number(path: Path) -> None:
    """A refused event leaves neither half a line nor a gap."""
    log = opened(path)
    log.append(turn(0))
    with pytest.raises(TypeError):
        log.append(TurnStartEvent(turn_number=1, speakers=("a", object())))  # type: ignore[arg-type]
    log.append(turn(2))
    log.flush()
    log._abandon()
    record = read_record(path)
    assert (turns(record.events), [event.seq for event in record.events]) == ([0, 2], [0, 1])
    assert record.skipped == []


async def test_a_closed_log_says_so(path: Path, syncer: Syncer) -> None:
    """Closing writes what waits; afterwards a flush of something is an error, closing again is not."""
    log = opened(path, syncer, "message")
    log.append(turn(0))
    await log.aclose()
    await log.aclose()
    assert turns(read_record(path).events) == [0]
    log.flush()
    log.append(turn(1))
    with pytest.raises(LogError, match="is closed"):
        log.flush()
    assert turns(read_record(path).events) == [0]


@pytest.mark.parametrize("kind", ["folder", "missing"])
def test_what_cannot_be_opened_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    """A folder in place of the file, or no folder to put it in: a LogError that names the path."""
    path = tmp_path / "gone" / NAME if kind == "missing" else tmp_path
    for attempt in (opened, resumed):
        with pytest.raises(LogError) as caught:
            attempt(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(LogError, match="cannot be read"):
        read_record(path)


# --- one writer


def test_a_second_writer_in_the_same_process_is_refused(path: Path) -> None:
    """Two logs on one file never write at once; when the first has closed, the second may."""
    first = opened(path)
    for attempt in (opened, resumed):
        with pytest.raises(LogError, match="being written by another process"):
            attempt(path)
    first._abandon()
    opened(path)._abandon()


def test_a_second_process_is_refused_and_touches_nothing(path: Path) -> None:
    """While a real process holds the log, another can neither open nor repair it; after its death it can."""
    script = """
log = EventLog(path, **ids, syncer=Syncer(), durability="none")
log.append(turn(0)); log.flush()
os.write(log._fd, b'{"event_type":"Tur')
say("held")
sys.stdin.read()
"""
    with process(script, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = path.read_bytes()
        for attempt in (opened, resumed):
            with pytest.raises(LogError) as caught:
                attempt(path)
            assert NAME in str(caught.value)
            assert "wait for it or stop it first" in str(caught.value)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == [NAME]
        assert turns(read_record(path).events) == [0]  # readers are never locked out
        holder.kill()
        holder.wait()
    log, record = resumed(path)
    assert (record.total_bytes - record.whole_bytes, log.seq) == (18, 1)
    log._abandon()


# --- the disk refuses


def test_a_full_disk_is_one_clear_line(syncer: Syncer) -> None:
    """Writing to a device that is always full raises LogError with path, reason and what to do."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no device that is always full here")
    log = opened(full)
    log.append(turn(0))
    for _ in range(2):  # nothing was lost: the same flush fails again
        with pytest.raises(LogError) as caught:
            log.flush()
        assert str(caught.value) == (
            "the record cannot be written to /dev/full: No space left on device; free some room, then resume"
        )
    log._abandon()


FULL = """
kind = sys.argv[2]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
if kind == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    def make_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
else:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path.parent), b"tmpfs", 0, b"size=64k") != 0:
        say(json.dumps("no mount"))
        sys.exit()
    ballast = path.with_name("ballast")
    ballast.write_bytes(bytes(32 * 1024))
    make_room = ballast.unlink

async def main():
    syncer = Syncer()
    log = EventLog(path, **ids, syncer=syncer)
    said = []
    for number in range(100_000):
        log.append(turn(number))
        try:
            log.flush()
        except LogError as error:
            said.append(str(error))
            break
    full = read_record(path)
    if sys.argv[3] == "close":
        try:
            await log.aclose()
        except LogError as error:
            said.append(str(error))
        make_room()
        log, record = EventLog.resume(path, **ids, syncer=syncer)
    else:
        make_room()
    log.append(turn(-1))
    log.flush()
    await log.aclose()
    await syncer.aclose()
    after = read_record(path)
    torn = path.with_name(path.name + ".torn")
    say(json.dumps({
        "said": said, "flushed": number, "full": [event.turn_number for event in full.events],
        "damaged": [skipped.why for skipped in full.skipped], "lost": full.total_bytes - full.whole_bytes,
        "after": [(event.seq, event.turn_number) for event in after.events], "clean": not after.skipped,
        "torn": torn.stat().st_size if torn.exists() else 0,
    }))
asyncio.run(main())
"""


@pytest.mark.parametrize("then", ["close", "go on"])
@pytest.mark.parametrize("kind", ["limit", "small disk"])
def test_a_disk_that_fills_up_loses_nothing_that_was_written(path: Path, kind: str, then: str) -> None:
    """All flushed events stay readable, the torn end is found, and with room again the record goes on clean."""
    under: tuple[str, ...] = ()
    if kind == "small disk":
        if shutil.which("unshare") is None or os.geteuid() != 0:
            pytest.skip("a small disk needs root and unshare")
        under = ("unshare", "--mount")
    with process(FULL, path, kind, then, under=under) as child:
        out, _ = child.communicate(timeout=60)
    if kind == "small disk" and (not out or json.loads(out) == "no mount"):
        pytest.skip("no file system may be mounted here")
    found = json.loads(out)
    assert len(found["said"]) == (2 if then == "close" else 1)
    for text in found["said"]:
        assert re.fullmatch(r"the record cannot be written to .*: .*; free some room, then resume", text)
    flushed = found["flushed"]
    assert flushed > 20
    assert found["full"] == list(range(flushed))
    assert found["damaged"] == (["torn"] if found["lost"] else [])
    assert found["clean"]
    assert [seq for seq, _ in found["after"]] == list(range(len(found["after"])))
    numbers = [number for _, number in found["after"]]
    if then == "close":  # the event that did not fit went with the process
        assert numbers == [*range(flushed), -1]
        assert found["torn"] == (found["lost"] + 1 if found["lost"] else 0)
    else:  # the same process still has it and finishes its line
        assert numbers == [*range(flushed + 1), -1]
        assert found["torn"] == 0


# --- durability


class Disk:
    """Stands before the real sync: sees every group with the sizes of its files, and can hold it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = log_module._sync
        self.begun: list[dict[int, int]] = []
        self.done: list[dict[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        monkeypatch.setattr(log_module, "_sync", self)

    def __call__(self, group: set[int]) -> None:
        sizes = {fd: os.fstat(fd).st_size for fd in group}
        self.begun.append(sizes)
        assert self.gate.wait(30)
        self._real(group)
        self.done.append(sizes)

    def has(self, log: EventLog) -> int:
        """Bytes of a log that are surely on the disk."""
        return max((sizes.get(log._fd or -1, 0) for sizes in self.done), default=0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.gate.set()


@pytest.mark.parametrize("durability", ["message", "strict", "none"])
def test_flushed_events_survive_the_death_of_the_process(path: Path, durability: str) -> None:
    """What was flushed is read by another process after kill -9 at any moment, and at most the tail is torn."""
    script = """
async def main():
    log = EventLog(path, **ids, syncer=Syncer(), durability=sys.argv[2])
    for number in range(1_000_000):
        for part in range(3):
            log.append(turn(3 * number + part))
        log.flush()
        os.write(1, b"%d\\n" % (3 * number + 2))
        await asyncio.sleep(0)
asyncio.run(main())
"""
    with process(script, path, durability) as writer:
        assert writer.stdout is not None
        for _ in range(40):
            promised = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        *_, promised = [promised, *map(int, writer.stdout.read().split()[:-1])]
    record = read_record(path)
    found = turns(record.events)
    assert found == list(range(len(found)))
    assert found[-1] >= promised
    assert {skipped.why for skipped in record.skipped} <= {"torn"}


async def test_strict_waits_for_a_sync_that_covers_the_write(path: Path, syncer: Syncer, disk: Disk) -> None:
    """With `strict`, `commit` returns only when a sync that began after the write has ended."""
    log = opened(path, syncer, "strict")
    for number in range(5):
        log.append(turn(number))
        disk.gate.clear()
        commit = asyncio.create_task(log.commit())
        await reached(lambda number=number: len(disk.begun) == number + 1)
        assert turns(read_record(path).events) == list(range(number + 1))
        assert not commit.done()
        assert disk.has(log) < path.stat().st_size
        disk.gate.set()
        await commit
        assert disk.has(log) == path.stat().st_size
    await log.aclose()


async def test_a_sync_under_way_does_not_count(tmp_path: Path, syncer: Syncer, disk: Disk) -> None:
    """A commit that comes while a group is being synced waits for the next one, also on the same file."""
    one, two = (opened(tmp_path / f"{n}.jsonl", syncer, "strict") for n in "12")
    disk.gate.clear()
    one.append(turn(0))
    first = asyncio.create_task(one.commit())
    await reached(lambda: disk.begun)
    one.append(turn(1))
    two.append(turn(0))
    later = [asyncio.create_task(log.commit()) for log in (one, two)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in later)
    begun = len(disk.begun)
    disk.gate.set()
    await asyncio.gather(first, *later)
    assert (begun, len(disk.done)) == (1, 2)  # one group for both that came late
    assert disk.has(one) == one.path.stat().st_size
    assert disk.has(two) == two.path.stat().st_size
    await one.aclose()
    await two.aclose()


async def test_message_is_synced_soon_without_anybody_waiting(path: Path, syncer: Syncer, disk: Disk) -> None:
    """With `message`, `commit` does not wait, and the disk has the write a moment later by itself."""
    assert Syncer.WAIT_S <= 0.2
    log = opened(path, syncer, "message")
    disk.gate.clear()
    log.append(turn(0))
    await log.commit()
    assert disk.done == []
    disk.gate.set()
    await reached(lambda: disk.has(log) == path.stat().st_size)
    await log.aclose()


async def test_none_never_syncs(path: Path, syncer: Syncer, disk: Disk) -> None:
    """With `none` the disk is left to the system, at commit and at the end."""
    log = opened(path, syncer, "none")
    log.append(turn(0))
    await log.commit()
    await log.aclose()
    await syncer.aclose()
    assert disk.begun == []
    assert turns(read_record(path).events) == [0]


@pytest.mark.parametrize("durability", ["strict", "message"])
@pytest.mark.parametrize("logs", [3, 40])
async def test_syncs_are_grouped(tmp_path: Path, syncer: Syncer, disk: Disk, logs: int, durability: Durability) -> None:
    """Many logs that become dirty at once are synced in a few groups, and each is covered."""
    many = [opened(tmp_path / f"{n}.jsonl", syncer, durability) for n in range(logs)]
    rounds = 5
    for number in range(rounds):
        for log in many:
            log.append(turn(number))
        await asyncio.gather(*(log.commit() for log in many))
        await reached(lambda: all(disk.has(log) == log.path.stat().st_size for log in many))
    assert len(disk.done) <= 2 * rounds
    await asyncio.gather(*(log.aclose() for log in many))
    assert len(disk.done) <= 2 * rounds + 2


async def test_closing_waits_for_the_disk(path: Path, syncer: Syncer, disk: Disk) -> None:
    """`aclose` returns when the disk has everything, and only then gives up the lock."""
    log = opened(path, syncer, "message")
    log.append(turn(0))
    disk.gate.clear()
    closing = asyncio.create_task(log.aclose())
    await reached(lambda: disk.begun)
    assert not closing.done()
    with pytest.raises(LogError):
        opened(path)
    disk.gate.set()
    await closing
    assert list(disk.done[-1].values()) == [path.stat().st_size]
    opened(path)._abandon()


async def test_a_hurried_close_spoils_no_other_log(tmp_path: Path, syncer: Syncer, disk: Disk) -> None:
    """A close that is cancelled while its file is being synced leaves the other logs and the lock in order."""
    hurried, other = (opened(tmp_path / f"{n}.jsonl", syncer, "message") for n in "12")
    disk.gate.clear()
    hurried.append(turn(0))
    closing = asyncio.create_task(hurried.aclose())
    await reached(lambda: disk.begun)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    again, record = resumed(hurried.path, syncer, "message")  # the lock is free at once
    assert turns(record.events) == [0]
    disk.gate.set()
    await reached(lambda: disk.done)
    for log in (again, other):
        log.append(turn(1))
        log.flush()
        await log.aclose()
    assert syncer.error is None
    assert turns(read_record(again.path).events) == [0, 1]


async def test_descriptors_are_given_back(tmp_path: Path, disk: Disk) -> None:
    """Whether closed in peace, cancelled, or refused: no descriptor stays open."""

    def open_files() -> list[Path]:
        listed = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in listed if link.readlink().name.endswith(NAME)]

    if not Path("/proc/self/fd").exists():
        pytest.skip("open files cannot be listed here")
    syncer = Syncer()
    logs = [opened(tmp_path / f"{n}{NAME}", syncer, "message") for n in range(3)]
    assert len(open_files()) == 3
    with pytest.raises(LogError):
        opened(tmp_path / f"0{NAME}", syncer)
    disk.gate.clear()
    for log in logs:
        log.append(turn(0))
        log.flush()
    closing = [asyncio.create_task(log.aclose()) for log in logs[:2]]
    await reached(lambda: disk.begun)
    closing[0].cancel()
    disk.gate.set()
    await asyncio.gather(*closing, return_exceptions=True)
    await logs[2].aclose()
    await reached(lambda: open_files() == [])  # while the run goes on, not only at its end
    await syncer.aclose()


async def test_closing_while_a_commit_waits_hangs_nobody(path: Path, syncer: Syncer, disk: Disk) -> None:
    """A commit that waits for the next group comes back also when its log is closed meanwhile."""
    log = opened(path, syncer, "strict")
    disk.gate.clear()
    log.append(turn(0))
    first = asyncio.create_task(log.commit())
    await reached(lambda: disk.begun)
    log.append(turn(1))
    second = asyncio.create_task(log.commit())
    await asyncio.sleep(0)
    log._abandon()
    disk.gate.set()
    await asyncio.wait_for(asyncio.gather(first, second), 20)


async def test_a_sync_that_was_cut_off_is_no_success(path: Path, syncer: Syncer, disk: Disk) -> None:
    """When the syncing task is cancelled, a waiting commit fails; a later one is synced as ever."""
    log = opened(path, syncer, "strict")
    disk.gate.clear()
    log.append(turn(0))
    commit = asyncio.create_task(log.commit())
    await reached(lambda: disk.begun)
    assert syncer._task is not None
    syncer._task.cancel()
    with pytest.raises(LogError):
        await asyncio.wait_for(commit, 20)
    disk.gate.set()
    log.append(turn(1))
    await asyncio.wait_for(log.commit(), 20)
    assert disk.has(log) == path.stat().st_size
    await log.aclose()


@contextmanager
def unsyncable(tmp_path: Path) -> Iterator[Path]:
    """A file that takes writes and refuses every sync: a named pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield pipe
    finally:
        os.close(reader)


async def test_a_failed_sync_is_an_error_for_every_log(tmp_path: Path, path: Path) -> None:
    """After a sync failed nobody knows what the disk has: commit, and every later flush, raise LogError."""
    syncer = Syncer()
    good = opened(path, syncer, "message")
    good.append(turn(0))
    good.flush()
    with unsyncable(tmp_path) as pipe:
        bad = opened(pipe, syncer, "strict")
        bad.append(turn(0))
        with pytest.raises(LogError, match="the disk did not take the record: Invalid argument"):
            await asyncio.wait_for(bad.commit(), 20)
        for log in (bad, good):
            log.append(turn(1))
            with pytest.raises(LogError, match="the disk did not take the record"):
                log.flush()
            with pytest.raises(LogError, match="the disk did not take the record"):
                await asyncio.wait_for(log.aclose(), 20)
    await syncer.aclose()
    assert turns(read_record(path).events) == [0]
    opened(path)._abandon()  # and the lock is free


async def test_a_failed_sync_in_the_background_surfaces_at_the_next_flush(tmp_path: Path) -> None:
    """With `message` nobody waits for the sync; its failure meets the next flush."""
    syncer = Syncer()
    with unsyncable(tmp_path) as pipe:
        log = opened(pipe, syncer, "message")
        log.append(turn(0))
        await log.commit()
        await reached(lambda: syncer.error is not None)
        log.append(turn(1))
        with pytest.raises(LogError, match="the disk did not take the record"):
            await log.commit()
        log._abandon()
    await syncer.aclose()


# --- reading


@pytest.fixture
def small(path: Path) -> tuple[list[Event], bytes]:
    """A small log with strange text and a line of another version in it."""
    events = write(path, turn(0), AgentNamedEvent(agent_id="a", name="Žofie\u2028", reply="\x00😀"))
    with path.open("ab") as file:
        file.write(UNKNOWN + b"\n")
    events += write(path, said("“née”"))
    return events, path.read_bytes()


def test_an_empty_log_is_an_empty_record(path: Path) -> None:
    """A file without a byte, or of blank lines, holds nothing and is not damaged."""
    for content in (b"", b"\n", b"\n \n\r\n"):
        path.write_bytes(content)
        record = read_record(path)
        assert (record.events, record.skipped, record.whole_bytes) == ([], [], len(content))


def test_bad_lines_in_the_middle_are_reported_with_their_number(path: Path) -> None:
    """Broken and unknown lines stop nobody: everything else is read, and each of them is named."""
    lines = [encode(turn(n)) for n in range(4)]
    noise = [BROKEN, b"", UNKNOWN, b"\xff\x00", b"[]"]
    path.write_bytes(
        b"\n".join([lines[0], noise[0], lines[1], noise[1], noise[2], noise[3], lines[2], noise[4], lines[3], b""])
    )
    record = read_record(path)
    assert turns(record.events) == [0, 1, 2, 3]
    assert record.skipped == [
        Skipped(2, "broken", BROKEN),
        Skipped(5, "unknown", UNKNOWN),
        Skipped(6, "broken", b"\xff\x00"),
        Skipped(8, "broken", b"[]"),
    ]
    assert record.whole_bytes == record.total_bytes == path.stat().st_size


def test_windows_line_ends_are_read(path: Path) -> None:
    """A record that went through a foreign editor is still a record."""
    path.write_bytes(b"\r\n".join([encode(turn(0)), encode(turn(1)), b""]))
    assert turns(read_record(path).events) == [0, 1]
    assert read_record(path).skipped == []


def test_cut_at_every_byte(path: Path, small: tuple[list[Event], bytes]) -> None:
    """A log cut anywhere reads as a prefix; resume moves the torn end away, and the record goes on clean."""
    events, data = small
    ends = [at for at, byte in enumerate(data) if byte == ord("\n")]  # a line is whole from here on
    torn = path.with_name(NAME + ".torn")
    kinds: set[str] = set()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        torn.unlink(missing_ok=True)
        whole = sum(end <= cut for end in ends)
        expected = events[: whole - (whole >= 3)]  # line 3 is the unknown one
        record = read_record(path)
        assert record.events == expected
        start = ends[whole - 1] + 1 if whole else 0
        tail_bytes = data[start:cut]
        assert [skipped.why for skipped in record.skipped] == ["unknown"] * (whole >= 3) + ["torn"] * bool(tail_bytes)
        assert record.total_bytes == cut
        assert record.whole_bytes == cut - len(tail_bytes)
        kinds.add("torn" if tail_bytes else "open" if whole and cut == ends[whole - 1] else "clean")
        assert record.last_line_open == bool(whole and cut == ends[whole - 1])

        log, same = resumed(path)
        assert same == record
        assert log.seq == whole
        assert (torn.read_bytes() if torn.exists() else b"") == (tail_bytes + b"\n" if tail_bytes else b"")
        log.append(ConversationResumedEvent(by="test", turn_number=0, message_index=0, torn_bytes=len(tail_bytes)))
        log.append(turn(9))
        log.flush()
        log._abandon()
        after = read_record(path)
        assert after.events[:-2] == expected
        assert [event.seq for event in after.events[-2:]] == [whole, whole + 1]
        assert [skipped.why for skipped in after.skipped] == ["unknown"] * (whole >= 3)
        assert path.read_bytes().count(b"\n") == whole + 2
    assert kinds == {"torn", "open", "clean"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_damaged_place_costs_one_line(path: Path, small: tuple[list[Event], bytes], data: st.DataObject) -> None:
    """Whatever bytes are overwritten inside a line, every other line is still read."""
    events, whole = small
    lines = whole.splitlines(keepends=True) if b"\r" not in whole else []
    place = data.draw(st.sampled_from([0, 1, 3]))
    line = lines[place]
    at = data.draw(st.integers(0, len(line) - 2))
    junk = data.draw(st.binary(min_size=1, max_size=5))
    damaged = line[:at] + junk + line[at + len(junk) : -1] + b"\n"
    path.write_bytes(b"".join([*lines[:place], damaged, *lines[place + 1 :]]))
    record = read_record(path)
    others = [event for event in events if event is not events[min(place, 2)]]
    assert [event for event in record.events if event in others] == others
    log, _ = resumed(path)
    log.append(turn(9))
    log.flush()
    log._abandon()
    assert turns(read_record(path).events)[-1] == 9


def test_a_torn_end_is_moved_and_kept(path: Path) -> None:
    """Two accidents later both torn ends stand in `<log>.torn`, each on its own line."""
    write(path, turn(0))
    torn = path.with_name(NAME + ".torn")
    for number, end in enumerate([BROKEN, b"\x00" * 100], 1):
        with path.open("ab") as file:
            file.write(end)
        log, record = resumed(path)
        assert record.skipped == [Skipped(number + 1, "torn", end)]
        log.append(turn(number))
        log.flush()
        log._abandon()
    assert torn.read_bytes() == BROKEN + b"\n" + b"\x00" * 100 + b"\n"
    record = read_record(path)
    assert (turns(record.events), record.skipped) == ([0, 1, 2], [])
    assert [event.seq for event in record.events] == [0, 1, 2]


def test_an_unknown_last_line_is_kept_and_counted(path: Path) -> None:
    """An event of a later version at the end stays where it is, with or without its newline, and has its number."""
    for newline in (b"\n", b""):
        path.unlink(missing_ok=True)
        write(path, *(turn(n) for n in range(9)))
        with path.open("ab") as file:
            file.write(UNKNOWN + newline)
        log, record = resumed(path)
        assert record.skipped == [Skipped(10, "unknown", UNKNOWN)]
        log.append(turn(10))
        log.flush()
        log._abandon()
        assert path.read_bytes().splitlines()[9] == UNKNOWN
        assert [json.loads(line)["seq"] for line in path.read_bytes().splitlines()] == list(range(11))
        assert not path.with_name(NAME + ".torn").exists()


def test_numbers_go_on_behind_lines_that_cannot_be_read(path: Path) -> None:
    """A broken line had a number too: no later event is given it again."""
    write(path, turn(0), turn(1))
    with path.open("ab") as file:
        file.write(BROKEN + b"\n" + BROKEN + b"\n")
    write(path, turn(4))
    assert [event.seq for event in read_record(path).events] == [0, 1, 4]
    path.write_bytes(BROKEN + b"\n")
    write(path, turn(1))
    assert [event.seq for event in read_record(path).events] == [1]


def test_resuming_what_is_not_there_begins_it(path: Path) -> None:
    """Resume on no file is a new log, on an empty file too."""
    for _ in range(2):
        log, record = resumed(path)
        assert (log.seq, record.events, record.skipped) == (0, [], [])
        log._abandon()
    assert path.read_bytes() == b""


def test_a_long_record_is_read_in_one_go(path: Path) -> None:
    """Ten thousand events and a megabyte in one of them come back in order."""
    log = opened(path)
    for number in range(10_000):
        log.append(turn(number))
        if number == 5000:
            log.append(said("x" * 1_000_000))
    log.flush()
    log._abandon()
    record = read_record(path)
    assert turns(record.events) == list(range(10_000))
    assert [event.seq for event in record.events] == list(range(10_001))


# --- following


def steps(*actions: Callable[[], object]) -> Callable[[], bool]:
    """An `until` that does one thing before each look at the file, and then ends."""
    left = iter(actions)

    def until() -> bool:
        action = next(left, None)
        if action is None:
            return True
        action()
        return False

    return until


async def followed(path: Path, *actions: Callable[[], object]) -> list[Event | Skipped]:
    return [item async for item in tail(path, poll_s=0, until=steps(*actions))]


def raw(path: Path, data: bytes) -> Callable[[], object]:
    """An action: these bytes are appended."""

    def append() -> None:
        with path.open("ab") as file:
            file.write(data)

    return append


async def test_following_a_file_that_does_not_exist_yet(path: Path) -> None:
    """The tailer waits for the file, and ends without it when told so."""
    assert await followed(path) == []
    assert await followed(path, lambda: None, lambda: None) == []
    wait = lambda: None  # noqa: E731
    assert turns(
        await followed(path, wait, wait, lambda: write(path, turn(0)), wait, lambda: write(path, turn(1)))
    ) == [0, 1]


async def test_a_line_is_handed_out_when_it_is_whole(path: Path) -> None:
    """A line that comes in pieces, cut inside a letter, is one event, and not before its newline."""
    line = encode(said("née 😀"))
    seen: list[int] = []
    items: list[Event | Skipped] = []
    pieces = [line[i : i + 1] for i in range(len(line))]
    actions: list[Callable[[], object]] = []
    for piece in pieces:
        actions += [raw(path, piece), lambda: seen.append(len(items))]
    async for item in tail(path, poll_s=0, until=steps(*actions, raw(path, b"\n"), raw(path, line[:50]))):
        items.append(item)  # noqa: PERF401 (the steps look at it meanwhile)
    assert items == [decode(line)]
    assert set(seen) == {0}


async def test_bad_lines_do_not_stop_the_tailer(path: Path) -> None:
    """Unknown and broken lines are handed out as such with their number; blank ones are counted and passed over."""
    lines = [encode(turn(0)), BROKEN, b"", UNKNOWN, encode(turn(1)), b"\xff", encode(turn(2))]
    items = await followed(path, *(raw(path, line + b"\n") for line in lines))
    assert turns(items) == [0, 1, 2]
    assert [item for item in items if isinstance(item, Skipped)] == [
        Skipped(2, "broken", BROKEN),
        Skipped(4, "unknown", UNKNOWN),
        Skipped(6, "broken", b"\xff"),
    ]


@pytest.mark.parametrize("more", [0, 1, 5])
async def test_a_torn_end_that_is_moved_away_while_following(path: Path, more: int) -> None:
    """The writer dies inside a line, the next one repairs the log: the follower sees each event once, whole."""
    write(path, turn(0))
    items = await followed(
        path,
        raw(path, encode(said("lost for ever"))[:-20]),
        lambda: write(path, *(turn(n) for n in range(1, 1 + more))),
        lambda: write(path, turn(9)),
    )
    assert items == read_record(path).events
    assert turns(items) == [0, *range(1, 1 + more), 9]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_follower_sees_what_a_reader_sees(path: Path, data: st.DataObject) -> None:
    """Through any story of writes, deaths and repairs, followed at any moments, the outcome is the record."""
    path.unlink(missing_ok=True)
    numbers = count()

    def event() -> Callable[[], object]:
        return lambda: write(path, turn(next(numbers)), said("x" * (next(numbers) % 7) * 40))

    def death() -> Callable[[], object]:
        line = encode(said("y" * data.draw(st.integers(0, 300))))
        return raw(path, line[: data.draw(st.integers(1, len(line)))])

    def both(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], object]:
        return lambda: (first(), second())

    kinds: dict[str, Callable[[], Callable[[], object]]] = {
        "event": event,
        "death": death,
        "quick death": lambda: both(death(), event()),
        "nothing": lambda: lambda: None,
    }
    chosen = data.draw(st.lists(st.sampled_from(list(kinds)), max_size=8))
    actions = [kinds[name]() for name in chosen]
    items = asyncio.run(followed(path, *actions, event()))
    record = read_record(path)
    assert items == record.events
    assert record.skipped == []


async def test_following_another_process(path: Path) -> None:
    """A real process writes in ragged pieces, with noise and a torn end; everything whole arrives in order."""
    script = """
import random
log = EventLog(path, **ids, syncer=Syncer(), durability="none")
pick = random.Random(4)
for number in range(300):
    log.append(turn(number))
    if number % 50 == 7:
        log._buffer += b'{"event_type":"TelepathyEvent"}\\n'
    if number % 50 == 9:
        log._buffer += b'nonsense\\n'
    whole = bytes(log._buffer)
    log._buffer.clear()
    while whole:
        at = pick.randint(1, 400)
        os.write(log._fd, whole[:at])
        whole = whole[at:]
os.write(log._fd, b'{"event_type":"TurnSta')
"""
    with process(script, path) as writer:
        over = asyncio.get_running_loop().run_in_executor(None, writer.wait)
        async with asyncio.timeout(60):
            items = [item async for item in tail(path, poll_s=0.001, until=over.done)]
        assert await over == 0
    assert turns(items) == list(range(300))
    assert [item.why for item in items if isinstance(item, Skipped)] == ["unknown", "broken"] * 6
    record = read_record(path)
    assert [item for item in items if isinstance(item, Event)] == record.events
    assert [item for item in items if isinstance(item, Skipped)] == record.skipped[:-1]
    assert record.skipped[-1].why == "torn"


async def test_a_follower_may_leave(path: Path) -> None:
    """Leaving in the middle of the file, or while waiting for more, leaves nothing open and warns of nothing."""
    write(path, *(turn(n) for n in range(10)))
    async with aclosing(tail(path)) as items:
        assert turns([await anext(items)]) == [0]
    for patience in range(12):  # cancelled at every point of opening, reading and waiting
        async with aclosing(tail(path, poll_s=1000)) as items:
            for _ in range(10):
                await anext(items)
            waiting = asyncio.ensure_future(anext(items))
            for _ in range(patience):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        gc.collect()


async def test_what_cannot_be_followed_is_one_clear_line(tmp_path: Path) -> None:
    """A folder in place of the log is a LogError, not a traceback."""
    with pytest.raises(LogError, match="cannot be read"):
        await followed(tmp_path)


# --- with the tools people use


async def test_tail_f(path: Path) -> None:
    """`tail -f` shows every event as soon as it is flushed, one JSON object per line."""
    command = shutil.which("tail")
    if command is None:
        pytest.skip("tail is not installed")
    log = opened(path)
    log.append(said("before\nand\u2028after"))
    log.flush()
    following = await asyncio.create_subprocess_exec(command, "-n", "+1", "-f", str(path), stdout=subprocess.PIPE)
    assert following.stdout is not None
    try:
        for number in range(5):
            line = await asyncio.wait_for(following.stdout.readline(), 20)
            assert json.loads(line)["seq"] == number
            log.append(SystemPromptEvent(agent_id="a", text=f"{number}"))
            log.flush()
    finally:
        following.kill()
        await following.communicate()
        log._abandon()


def test_the_jq_line_of_the_manual(path: Path) -> None:
    """The jq line that the documentation gives prints who said what, whatever was said and whatever else is there."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")
    texts = ["Hello.", "", "née \u2028 😀", 'quotes " and \\ and\nlines', "\x1b[31m"]
    log = opened(path)
    log.append(turn(1))
    for place, text in enumerate(texts):
        log.append(said(text, "ab"[place % 2]))
        log.append(SystemPromptEvent(agent_id="a"))
    log.append(said("\ud83d"))
    log.flush()
    log._abandon()
    line = r'select(.event_type=="MessageCompleteEvent") | "\(.agent_id): \(.message.content)"'
    shown = subprocess.run([jq, "-r", line, str(path)], capture_output=True, check=True).stdout.decode()
    expected = [f"{'ab'[place % 2]}: {text}" for place, text in enumerate(texts)] + ["a: \ufffd"]
    assert shown == "\n".join(expected) + "\n"


def test_grep_finds_a_message(path: Path) -> None:
    """`grep` finds words as they were written, accents and emoji too: text is UTF-8, not escapes."""
    grep = shutil.which("grep")
    if grep is None:
        pytest.skip("grep is not installed")
    write(path, said("nothing here"), said("the naïve 🦜 speaks"))
    shown = subprocess.run([grep, "-c", "naïve 🦜", str(path)], capture_output=True, check=True).stdout
    assert shown == b"1\n"
