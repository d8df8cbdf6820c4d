"""What was paid for once and is given again: the files it is kept in, and the replies.

A cache is a convenience: when its file is broken, locked or cannot be written it is left out, with one warning, and
the models are asked as if there were none.
"""

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import platformdirs
from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.errors import StoreError
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    ModelRequest,
    ModelResponse,
    ResponseFold,
    TextDelta,
    ThinkingDelta,
    Timing,
    UsageDelta,
)

from .base import Provider

__all__ = ["CacheFile", "CacheStats", "Cached", "OtherSchema", "ResponseCache", "cache_key", "default_cache_path"]

SCHEMA_VERSION = 1
"""Of the table. An older file is emptied, a newer one is left alone."""
KEY_VERSION = 1
"""Raised when the same request begins to mean something else."""
LOCK_WAIT_S = 0.05
"""At most so long the event loop waits for another process."""
LOCKED_PAUSE_S = 1.0
"""So long nothing is tried after a wait in vain."""
ADMIN_WAIT_S = 5.0

_NOT_SENT = {
    "context_window",  # where it is sent it stands among the parameters
    "conversation_id",
    "seed",
    "agent_id",
    "turn_number",
    "message_index",
    "own_number",
    "attempt",
    "purpose",
    "digest",
}
_TEXT = ("system", "messages")
_SENT = tuple(name for name in ModelRequest.__struct_fields__ if name not in _NOT_SENT and name not in _TEXT)
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL)

_log = logging.getLogger(__name__)
_reply = msgspec.msgpack.Decoder(ModelResponse)

T = TypeVar("T")


def cache_key(
    request: ModelRequest, *, provider: str, base_url: str, parameters: Mapping[str, Any], draw: tuple[object, ...]
) -> bytes:
    """What two requests share exactly when one may be answered with the other's reply.

    The request's digest stands for its text where there is one, which costs the same however long the conversation is.

    Args:
        parameters: what is sent besides the text. The settings of the request are in the key anyway.
        draw: experiment, arm, repetition, branch, agent and message index; empty where all of them share replies.
    """
    text = ("digest", request.digest) if request.digest else ("text", *(getattr(request, name) for name in _TEXT))
    sent = {name: getattr(request, name) for name in _SENT}
    whole = (KEY_VERSION, provider, base_url, parameters, sent, draw, text)
    encoded = msgspec.json.encode(whole, enc_hook=repr, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=20).digest()


def default_cache_path() -> Path:
    """`responses.db` in `PIDGIN_CACHE_DIR`, or where this system keeps a user's caches."""
    return Path(os.environ.get("PIDGIN_CACHE_DIR") or platformdirs.user_cache_dir("pidgin")) / "responses.db"


class CacheStats(Struct, frozen=True, kw_only=True):
    """What a cache holds, and what this process had from it."""

    path: str
    kept: str = "replies"
    """What its entries are: `replies` or `vectors`."""
    entries: int = 0
    bytes: int = 0
    """On disk."""
    hits: int = 0
    misses: int = 0
    oldest: datetime | None = None
    """When the oldest entry was stored, UTC."""
    newest: datetime | None = None
    problem: str | None = None
    """Why the file cannot be used, if so."""


class CacheFile(ABC):
    """One SQLite file of a cache, as a person who looks at it or empties it sees it.

    Its table has, beside what is kept, the columns `key` and `stored` (seconds since the epoch).
    """

    _name: ClassVar[str]
    """In messages."""
    kept: ClassVar[str]
    """What its entries are: `replies` or `vectors`; the name of their table, too."""
    _value: ClassVar[str]
    """The column of what is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hits = 0
        self.misses = 0

    @abstractmethod
    def close(self) -> None:
        """Close the file. It is opened again when it is used again."""

    @abstractmethod
    def _open(self, wait_s: float) -> sqlite3.Connection:
        """A connection to the file, which is made where there is none. Raises sqlite3.Error or OSError."""

    @abstractmethod
    def _begin_anew(self) -> None:
        """Forget what was wrong with the file."""

    def stats(self) -> CacheStats:
        """What is there now. Creates nothing; what is wrong with the file stands in `problem`."""
        found = CacheStats(path=str(self.path), kept=self.kept, hits=self.hits, misses=self.misses)
        try:
            if not self.path.exists():
                return found
            with self._admin() as db:
                told = db.execute(f"SELECT count(*), min(stored), max(stored) FROM {self.kept}")  # noqa: S608
                entries, oldest, newest = told.fetchone()
            return replace(found, entries=entries, bytes=self._disk_bytes(), oldest=_utc(oldest), newest=_utc(newest))
        except (sqlite3.Error, OSError) as error:
            return replace(found, bytes=self._disk_bytes(), problem=str(error))

    def clear(self) -> int:
        """Forget everything and say how many entries that were; a broken file is replaced. Raises StoreError."""
        try:
            if not self.path.exists():
                return 0
            try:
                with self._admin() as db:
                    removed = db.execute(f"DELETE FROM {self.kept}").rowcount  # noqa: S608
                    _shrink(db)
            except sqlite3.DatabaseError as error:
                if not isinstance(error, OtherSchema) and _code(error) not in _BROKEN:
                    raise
                removed = 0
                self.close()
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the {self._name} {self.path} cannot be cleared: {error}") from error
        self._begin_anew()
        return removed

    def prune(self, *, max_bytes: int | None = None, older_than_s: float | None = None) -> int:
        """Forget what is older than so many seconds, then the oldest until the file has at most `max_bytes`.

        Returns how many entries were forgotten. Raises StoreError.
        """
        removed = 0
        try:
            if not self.path.exists():
                return 0
            with self._admin() as db:
                if older_than_s is not None:
                    cut = time.time() - older_than_s
                    old = db.execute(f"DELETE FROM {self.kept} WHERE stored < ?", (cut,))  # noqa: S608
                    removed += old.rowcount
                while max_bytes is not None and (over := _used_bytes(db) / max(max_bytes, 1)) > 1:
                    gone = db.execute(
                        _FORGET_OLDEST.format(kept=self.kept, value=self._value), {"share": 1 / over}
                    ).rowcount
                    if gone == 0:
                        break
                    removed += gone
                _shrink(db)
        except (sqlite3.Error, OSError) as error:
            text = f"the {self._name} {self.path} cannot be pruned: {error}; `pidgin cache clear` starts a new one"
            raise StoreError(text) from error
        return removed

    @contextlib.contextmanager
    def _admin(self) -> Iterator[sqlite3.Connection]:
        """A connection that waits for others as a person would."""
        with contextlib.closing(self._open(ADMIN_WAIT_S)) as db:
            db.isolation_level = None
            yield db

    def _disk_bytes(self) -> int:
        found = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                found += self.path.with_name(self.path.name + suffix).stat().st_size
        return found


class ResponseCache(CacheFile):
    """Finished replies by key, in one SQLite file that any number of processes use at once.

    `get` and `put` never raise: whatever is wrong with the file, the reply counts as not there. Nothing is opened or
    created before the first use. All methods may be called from any thread.
    """

    _name = "response cache"
    kept = "replies"
    _value = "reply"
    _warned: ClassVar[set[Path]] = set()

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path or default_cache_path())
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._off = False
        self._read_only = False
        self._paused_until = 0.0

    def get(self, key: bytes) -> ModelResponse | None:
        """The reply stored under `key`."""
        row = self._try(lambda db: db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone())
        found = None
        if row is not None:
            try:
                found = _reply.decode(row[0])
            except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
                self._warn(f"holds a reply that cannot be read ({error})")
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: bytes, response: ModelResponse) -> None:
        """Store a whole reply."""
        if not self._read_only:
            row = (key, msgspec.msgpack.encode(response), time.time())
            self._try(lambda db: db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", row))

    def close(self) -> None:
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        with self._lock:
            if self._off or time.monotonic() < self._paused_until:
                return None
            try:
                if self._db is None:
                    self._db = self._open(LOCK_WAIT_S)
                return work(self._db)
            except (sqlite3.Error, OSError) as error:
                self._skip(error)
                return None

    def _skip(self, error: Exception) -> None:
        code = _code(error)
        if code in _LOCKED:
            self._paused_until = time.monotonic() + LOCKED_PAUSE_S
        elif code in _READ_ONLY and self._db is not None:
            self._read_only = True
        else:
            self._off = True
        self._warn(f"is left out ({error})")

    def _warn(self, what: str) -> None:
        if self.path not in self._warned:
            self._warned.add(self.path)
            _log.warning("the response cache %s %s; `pidgin cache clear` starts a new one", self.path, what)

    def _begin_anew(self) -> None:
        self._off = self._read_only = False
        self._paused_until = 0.0

    def _open(self, wait_s: float) -> sqlite3.Connection:
        # The replies may be private: others than the owner have no way into a folder that is made here.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            if _version(db) < SCHEMA_VERSION:
                _create(db, wait_s)
            if _version(db) > SCHEMA_VERSION:
                raise OtherSchema("it was written by a newer Pidgin")
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db


class OtherSchema(sqlite3.DatabaseError):
    """The file is a newer Pidgin's."""


_FORGET_OLDEST = """
DELETE FROM {kept} WHERE key IN (
    SELECT key FROM (
        SELECT key, sum(length({value})) OVER (ORDER BY stored DESC, key) AS up_to_here FROM {kept}
    ) WHERE up_to_here > :share * (SELECT sum(length({value})) FROM {kept})
)
"""


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _create(db: sqlite3.Connection, wait_s: float) -> None:
    # SQLite does not wait for others while it changes the mode of a file, so that is done here.
    until = time.monotonic() + wait_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if _code(error) not in _LOCKED or time.monotonic() > until:
                raise
            time.sleep(0.002)
    db.execute("BEGIN IMMEDIATE")
    if _version(db) < SCHEMA_VERSION:  # nobody else was quicker
        db.execute("DROP TABLE IF EXISTS replies")
        db.execute("CREATE TABLE replies (key BLOB PRIMARY KEY, reply BLOB NOT NULL, stored REAL NOT NULL)")
        db.execute("CREATE INDEX by_age ON replies (stored)")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")


def _code(error: Exception) -> int:
    """SQLite's primary error code; 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _used_bytes(db: sqlite3.Connection) -> int:
    pages, free, size = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _shrink(db: sqlite3.Connection) -> None:
    """Give the room of what was deleted back to the system."""
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _utc(stored: float | None) -> datetime | None:
    return None if stored is None else datetime.fromtimestamp(stored, UTC)


class Cached:
    """Answers from the cache where it can, and stores what is worth keeping.

    A reply from the cache has `Finish.cached` set, the usage it had when it was paid for, and costs nothing. Stored is
    only what ended of its own accord, without tool calls: no errors, refusals, filtered or truncated replies, nothing
    that was broken off.
    """

    def __init__(
        self,
        inner: Provider,
        cache: ResponseCache,
        *,
        provider: str,
        base_url: str,
        parameters: Mapping[str, Any],
        draw: tuple[object, ...] | None,
    ) -> None:
        """
        Args:
            parameters: what is sent besides the text, as the adapter says (`registry.effective_parameters`).
            draw: experiment, arm, repetition and branch of the conversation; None: replies are shared by all draws.
        """
        self._inner = inner
        self._cache = cache
        self._provider = provider
        self._base_url = base_url
        self._parameters = parameters
        self._draw = draw

    def key(self, request: ModelRequest) -> bytes:
        """The key under which the reply to `request` is stored."""
        draw = () if self._draw is None else (*self._draw, request.agent_id, request.purpose, request.message_index)
        return cache_key(
            request, provider=self._provider, base_url=self._base_url, parameters=self._parameters, draw=draw
        )

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        began = time.perf_counter()
        key = self.key(request)
        found = self._cache.get(key)
        if found is not None:
            took = round((time.perf_counter() - began) * 1000, 3)
            for delta in _deltas(found, request.attempt, took):
                yield delta
            return
        fold = ResponseFold()
        async with aclosing(self._inner.stream_response(request)) as stream:  # type: ignore[type-var]
            async for delta in stream:
                fold.add(delta)
                if isinstance(delta, Finish) and _worth_keeping(response := fold.response()):
                    self._cache.put(key, response)
                yield delta

    async def aclose(self) -> None:
        await self._inner.aclose()


def _deltas(response: ModelResponse, attempt: int, took_ms: float) -> Iterator[Delta]:
    message = response.message
    for block in message.thinking:
        yield ThinkingDelta(block.text, block.signature, block.redacted)
    if message.content:
        yield TextDelta(message.content)
    yield UsageDelta(response.usage)
    timing = Timing(ttft_ms=took_ms, duration_ms=took_ms)
    yield replace(response.finish, timing=timing, attempt=attempt, cached=True)


def _worth_keeping(response: ModelResponse) -> bool:
    message, finish = response.message, response.finish
    return (
        finish.reason is FinishReason.STOP
        and not finish.cached
        and not message.tool_calls
        and not message.text_replaced  # the mark would be lost on the way back
    )
