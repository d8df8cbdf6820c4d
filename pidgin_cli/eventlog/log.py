"""Writing and reading one conversation's (or experiment's) `*.jsonl`."""

import asyncio
import ctypes
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

import aiofiles.threadpool
from msgspec.structs import force_setattr

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import Event

from .codec import Skipped, decode, encode_into

__all__ = ["Durability", "EventLog", "Gap", "Record", "Syncer", "gaps_in", "read_record", "tail"]

Durability = Literal["message", "strict", "none"]
"""`message`: written before the next request, fsynced within 0.2 s. `strict`: fsynced before it. `none`: no fsync."""

_now = datetime.now


class Syncer:
    """Groups the fsyncs of many logs: descriptors that become dirty while one group syncs form the next.

    One per process and event loop. A failed fsync is kept and raised to every log that writes afterwards: after it,
    nobody knows what is on the disk.
    """

    WAIT_S = 0.1
    """How long a write may wait for companions."""
    SYNCFS_FROM = 8
    """Files in a group from which one `syncfs` costs less than a `fdatasync` each."""

    def __init__(self) -> None:
        self._dirty: set[int] = set()
        self._group: set[int] = set()
        """Being synced in a thread at this moment."""
        self._closing: set[int] = set()
        """To be closed as soon as they are synced."""
        self._waiters: list[asyncio.Future[None]] = []
        self._launched: _Launched | None = None
        self._logs = 0
        """Open, and synced at all."""
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="pidgin-fsync")
        self.error: OSError | None = None

    def opened(self) -> None:
        """One more log will be synced."""
        self._logs += 1

    def mark(self, fd: int) -> None:
        """`fd` has been written to; sync it within 0.2 s."""
        self._dirty.add(fd)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def synced(self, fd: int) -> None:
        """Return when everything written to `fd` so far is on the disk. Raises LogError when that failed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.mark(fd)
        self._hurry.set()
        if self._launched is None and len(self._waiters) >= max(self.SYNCFS_FROM, self._logs // 2):
            # Half of them go ahead: while the disk works for these, the others do.
            self._launched = self._launch()
        await waiter
        self.check()

    def close(self, fd: int) -> None:
        """Unlock and close `fd`; if it is dirty or being synced, then only after that.

        A descriptor that is closed under the thread that syncs it, or names another file by then, would make a sync
        fail that concerns all logs.
        """
        self._logs -= 1
        if fd in self._dirty or fd in self._group:
            fcntl.flock(fd, fcntl.LOCK_UN)
            self._closing.add(fd)
        else:
            os.close(fd)

    def check(self) -> None:
        if self.error is not None:
            raise LogError(f"the disk did not take the record: {self.error.strerror}") from self.error

    async def _run(self) -> None:
        try:
            while self._dirty or self._launched is not None:
                await self._sync_group()
        finally:
            self._task = None

    async def _sync_group(self) -> None:
        loop = asyncio.get_running_loop()
        if self._launched is None and not self._hurry.is_set():
            timer = loop.call_later(self.WAIT_S, self._hurry.set)
            await self._hurry.wait()
            timer.cancel()
        launched = self._launched = self._launched or self._launch()
        failure = None
        try:
            await launched.done
        except OSError as error:
            self.error = error
        except BaseException:
            failure = LogError("the sync of the record was cut off")
            raise
        finally:
            self._launched = None
            for waiter in launched.waiters:
                if waiter.done():
                    continue
                if failure is not None:
                    waiter.set_exception(failure)
                else:
                    waiter.set_result(None)
        done, self._group = self._group - self._dirty, set()
        for fd in done & self._closing:
            self._closing.discard(fd)
            os.close(fd)

    def _launch(self) -> "_Launched":
        self._hurry.clear()
        self._group, self._dirty = self._dirty, set()
        waiters, self._waiters = self._waiters, []
        return _Launched(waiters, asyncio.get_running_loop().run_in_executor(self._pool, _sync, self._group))

    async def aclose(self) -> None:
        """Sync what is dirty and stop."""
        self._hurry.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()
        for fd in self._closing:
            os.close(fd)
        self._closing.clear()


class _Launched(NamedTuple):
    """A group on its way to the disk."""

    waiters: list[asyncio.Future[None]]
    done: asyncio.Future[None]


def _sync(group: set[int]) -> None:
    if len(group) >= Syncer.SYNCFS_FROM and (syncfs := _syncfs()) is not None:
        # One output root, one file system: syncing any of its descriptors syncs them all.
        fd = next(iter(group))
        if syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return
    for fd in group:
        os.fdatasync(fd)


@cache
def _syncfs() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None


class EventLog:
    """The one writer of one log file.

    `append` stamps an event and encodes it into a buffer; `flush` writes the buffer with one call. The conductor
    flushes before every request and whenever it waits, so a killed process loses at most the message in flight.
    """

    def __init__(
        self,
        path: Path,
        *,
        experiment_id: str,
        conversation_id: str | None,
        syncer: Syncer,
        durability: Durability = "message",
        next_seq: int = 0,
    ) -> None:
        """Open `path` for appending. Raises LogError when it cannot be opened or another process writes it."""
        self.path = path
        self.durability = durability
        self.seq = next_seq
        self._experiment_id = experiment_id
        self._conversation_id = conversation_id
        self._id = f"{conversation_id or experiment_id}:"
        self._syncer = syncer
        self._buffer = bytearray()
        self._fd: int | None = None
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            syncer.opened()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._begins_empty = os.fstat(self._fd).st_size == 0
        except BlockingIOError:
            self._abandon()
            raise LogError(f"{path.name} is being written by another process; wait for it or stop it first") from None
        except OSError as error:
            self._abandon()
            raise LogError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def resume(
        cls,
        path: Path,
        *,
        experiment_id: str,
        conversation_id: str | None,
        syncer: Syncer,
        durability: Durability = "message",
    ) -> tuple["EventLog", "Record"]:
        """Open a log that may hold something already, made whole: a torn last line is moved to `<log>.torn`.

        Raises:
            LogError: it cannot be read or written, or another process writes it.
        """
        log = cls(
            path, experiment_id=experiment_id, conversation_id=conversation_id, syncer=syncer, durability=durability
        )
        try:
            record = Record([], [], 0, 0, gaps=[]) if log._begins_empty else read_record(path)
            if record.total_bytes > record.whole_bytes:
                _move_tail(path, record.whole_bytes)
            if record.last_line_open:
                log._buffer += b"\n"
        except LogError:
            log._abandon()
            raise
        log.seq = record.next_seq
        return log, record

    def append(self, event: Event) -> None:
        """Give the event its place in the file. It is on its way, not yet written: see `flush`."""
        seq = self.seq
        force_setattr(event, "event_id", self._id + str(seq))
        force_setattr(event, "seq", seq)
        force_setattr(event, "timestamp", _now(UTC))
        force_setattr(event, "experiment_id", self._experiment_id)
        force_setattr(event, "conversation_id", self._conversation_id)
        encode_into(event, self._buffer)
        self.seq = seq + 1

    def flush(self) -> None:
        """Write what has been appended. Raises LogError when the disk does not take it."""
        if not self._buffer:
            return
        if self._fd is None:
            raise LogError(f"{self.path.name} is closed")
        self._syncer.check()
        try:
            while self._buffer:
                written = os.write(self._fd, self._buffer)
                del self._buffer[:written]
            deleted = os.fstat(self._fd).st_nlink == 0
        except OSError as error:
            raise LogError(
                f"the record cannot be written to {self.path}: {error.strerror}; free some room, then resume"
            ) from error
        if deleted:
            raise LogError(f"{self.path} was deleted while it was being written; what it held is lost")
        if self.durability != "none":
            self._syncer.mark(self._fd)

    async def commit(self) -> None:
        """`flush`, and with durability `strict` wait until the disk has it."""
        self.flush()
        if self.durability == "strict" and self._fd is not None:
            await self._syncer.synced(self._fd)

    async def aclose(self) -> None:
        """Write, sync and close."""
        if self._fd is None:
            return
        try:
            self.flush()
            if self.durability != "none":
                await self._syncer.synced(self._fd)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self._fd is not None:
            self._syncer.close(self._fd)
            self._fd = None


class Gap(NamedTuple):
    """Events whose lines are missing from a log."""

    line: int
    """The line that follows them, counted from 1."""
    events: int
    """How many are missing."""


def gaps_in(lines: Iterable[tuple[int, int | None]]) -> list[Gap]:
    """Where events are missing from a log.

    Args:
        lines: every whole line in order: its number, and the `seq` of its event; None where it holds no event that can
            be read. Such a line had a number too, so that it fills one.
    """
    places: dict[int, tuple[int, int]] = {}
    unread = 0
    for line, seq in lines:
        if seq is None or seq < 0:
            unread += 1
        else:
            places.setdefault(seq, (line, unread))
    found = []
    last, filled = -1, 0
    for seq, (line, unread_by_then) in sorted(places.items()):
        missing = seq - last - 1 - max(unread_by_then - filled, 0)
        if missing > 0:
            found.append(Gap(line, missing))
        last, filled = seq, unread_by_then
    return sorted(found)


class Record(NamedTuple):
    """What a log file holds."""

    events: list[Event]
    skipped: list[Skipped]
    whole_bytes: int
    """Length up to the end of the last whole line."""
    total_bytes: int
    last_line_open: bool = False
    """The last line is whole, but its newline is missing."""
    next_seq: int = 0
    """The number of the next event; lines that cannot be read had one too."""
    gaps: Sequence[Gap] = ()
    """Where lines are missing."""


def read_record(path: Path) -> Record:
    """Read a log. Damaged lines are reported in `skipped` and never stop the reading.

    Raises:
        LogError: there is no such file, or it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from error
    events: list[Event] = []
    skipped: list[Skipped] = []
    numbers: list[tuple[int, int | None]] = []
    counted = True
    whole = len(data)
    last_open = False
    next_seq = 0
    for number, line, complete in _lines(data):
        item = decode(line, number)
        if not isinstance(item, Skipped):
            counted = counted and item.seq == len(events)
            events.append(item)
            numbers.append((number, item.seq))
            next_seq = item.seq + 1
        elif complete or item.why == "unknown":
            skipped.append(item)
            numbers.append((number, None))
            next_seq += 1
        else:
            skipped.append(item._replace(why="torn"))
            whole -= len(line)
            continue
        last_open = not complete
    return Record(events, skipped, whole, len(data), last_open, next_seq, [] if counted else gaps_in(numbers))


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    pieces = data.split(b"\n")
    last = pieces.pop()
    for number, line in enumerate(pieces, 1):
        if line.strip():
            yield number, line, True
    if last:
        yield len(pieces) + 1, last, False


def _move_tail(path: Path, keep: int) -> None:
    try:
        with path.open("r+b") as file, path.with_name(path.name + ".torn").open("ab") as torn:
            file.seek(keep)
            torn.write(file.read() + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
            file.truncate(keep)
    except OSError as error:
        raise LogError(f"the torn end of {path} cannot be moved away: {error.strerror}") from error


def _opened(path: Path, position: int) -> BufferedReader:
    file = path.open("rb")  # on the loop: a file opened in a thread would stay open when the tailer is cancelled
    file.seek(position)
    return file


async def tail(
    path: Path, *, poll_s: float = 0.1, until: Callable[[], bool] = lambda: False
) -> AsyncIterator[Event | Skipped]:
    """Events of a log from its first line on, then new ones as they are written.

    A line without its newline is not handed out until it is whole; a file that shrinks (a torn tail moved away on
    resume) or does not exist yet is waited for. Ends when `until()` is true and everything whole has been read.
    """
    position = 0
    number = 0
    while True:
        ending = until()
        try:
            with _opened(path, position) as file:
                # What follows the last whole line is read anew each time: it may have been moved away since.
                new = os.fstat(file.fileno()).st_size - position
                data = await aiofiles.threadpool.wrap(file).read(max(new, 0))
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise LogError(f"{path} cannot be read: {error.strerror}") from error
        lines = data.split(b"\n")[:-1]
        for line in lines:
            number += 1
            position += len(line) + 1
            if line.strip():
                yield decode(line, number)
        if ending:
            return
        if not lines:
            await asyncio.sleep(poll_s)
