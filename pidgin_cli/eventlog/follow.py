"""Reading a log that another process writes: only what has been added since the last time."""

import os
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import Event

from .codec import Skipped, decode

__all__ = ["Follower"]

LINE_STEP_BYTES = 8192


class _Seen(NamedTuple):
    """What tells whether a file has changed."""

    inode: int
    size: int
    modified_ns: int


class Follower:
    """Hands out the events of a log in order, each once; asks the file system first and reads only what is new.

    A line without its newline waits until it is whole. A log that does not exist yet, or any more, gives nothing. One
    that was replaced by another or cut short before what has been read is read from its beginning, and `generation`
    tells: what was made of its events has to be thrown away.
    """

    def __init__(self, path: Path, *, last_bytes: int | None = None) -> None:
        """`last_bytes`: begin with the first whole line of so many bytes at the end, not with the first line."""
        self.path = path
        self.generation = 0
        self._last_bytes = last_bytes
        self._position = 0
        self._lines = 0
        self._seen: _Seen | None = None
        self._unread = 0
        self._amid_line = False
        """The reading begins at a place that need not be the beginning of a line."""

    @property
    def position(self) -> int:
        """Bytes up to the end of the last line that has been handed out."""
        return self._position

    @property
    def unread(self) -> int:
        """Bytes that `read` left because of its `most`."""
        return self._unread

    def read(self, most: int | None = None) -> list[Event | Skipped]:
        """What is new, of at most about `most` bytes: one line is never divided.

        Raises:
            LogError: the file is there and cannot be read.
        """
        try:
            status = os.stat(self.path)  # noqa: PTH116 - a third of the time of Path.stat, and this runs for every log
            seen = _Seen(status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen and not self._unread:
                return []
            self._place(seen)
            with self.path.open("rb") as file:
                lines = self._whole_lines(file, seen.size, most)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LogError(f"{self.path} cannot be read: {error.strerror}") from error
        self._seen = seen
        found = []
        for line in lines:
            self._lines += 1
            if line.strip():
                found.append(decode(line, self._lines))
        return found

    def _place(self, seen: _Seen) -> None:
        before = self._seen
        if before is None:
            if self._last_bytes is not None:
                self._position = max(0, seen.size - self._last_bytes)
                self._amid_line = self._position > 0
        elif seen.inode != before.inode or seen.size < self._position:
            self.generation += 1
            self._position = self._lines = 0
            self._amid_line = False

    def _whole_lines(self, file: BufferedReader, size: int, most: int | None) -> list[bytes]:
        if self._amid_line:
            file.seek(self._position - 1)
            self._amid_line = file.read(1) != b"\n"
        file.seek(self._position)
        left = max(0, size - self._position)
        data = file.read(left if most is None else min(left, most))
        end = data.rfind(b"\n") + 1
        while not end and len(data) < left:  # a line longer than `most`
            more = file.read(min(LINE_STEP_BYTES, left - len(data)))
            if not more:
                break
            end = len(data) + more.rfind(b"\n") + 1 if b"\n" in more else 0
            data += more
        lines = data[:end].split(b"\n")[:-1]
        if self._amid_line and lines:
            del lines[0]
            self._amid_line = False
        self._position += end
        self._unread = left - end if len(data) < left else 0
        return lines
