"""`EventStore`: the only door to the database."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import duckdb
from filelock import FileLock, Timeout

from pidgin_cli.core.errors import LogError, StoreError
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot

from .computed import Computed, write_computed
from .importer import Imported, import_into
from .repositories import (
    ConversationRepository,
    EventRepository,
    ExperimentRepository,
    MessageRepository,
    MetricsRepository,
    Rows,
)
from .schema import MIGRATIONS, MetricColumn, literal, make_views, set_up, version_of
from .word_uses import WordCounter

__all__ = ["FILE_NAME", "EventStore"]

FILE_NAME = "experiments.duckdb"
_OFFLINE: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_SILENT = "SET enable_progress_bar = false"
"""DuckDB would draw one of its own between what is printed."""


class EventStore:
    """The database of an output root: imports records into it, and answers questions from it.

    Readers attach the file read-only. An import works on a copy and puts it in the place of the file at the end, so
    that readers are never disturbed; they see the new rows when they open a store again. Imports queue on a lock.
    """

    def __init__(
        self, root: OutputRoot, metrics: Sequence[MetricColumn] = (), words: WordCounter | None = None
    ) -> None:
        """`metrics`: columns of `message_metrics` and `turn_metrics`. `words`: the tokeniser that fills `word_uses`."""
        self.path = root.experiments / FILE_NAME
        self.words = words
        self._metrics = tuple(metrics)
        self._con: duckdb.DuckDBPyConnection | None = None

    # Reading

    def __enter__(self) -> "EventStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._con is not None:
            self._con.close()
            self._con = None

    @property
    def experiments(self) -> ExperimentRepository:
        return ExperimentRepository(self._rows)

    @property
    def conversations(self) -> ConversationRepository:
        return ConversationRepository(self._rows)

    @property
    def messages(self) -> MessageRepository:
        return MessageRepository(self._rows)

    @property
    def metrics(self) -> MetricsRepository:
        return MetricsRepository(self._rows)

    @property
    def events(self) -> EventRepository:
        return EventRepository(self._rows)

    def _rows(self, sql: str, *values: object) -> Rows:
        if self._con is None:
            self._con = self.connect()
        with _understood(self.path):
            self._con.execute(sql, list(values))
            names = [column[0] for column in self._con.description or ()]
            return [dict(zip(names, row, strict=True)) for row in self._con.fetchall()]

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A connection of one's own on which the tables go by their bare names; nothing in them can be changed.

        A database of an older version is brought up to date first.

        Raises:
            StoreError: there is none yet, it is damaged, or another program has it open for writing.
        """
        if self._sound_version() < len(MIGRATIONS):
            with self._rewriting(None):
                pass
        return self._attached()

    def _check_path(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise StoreError(f"{self.path} is no file; move it away")
        if "?" in str(self.path):  # DuckDB takes what follows for options
            raise StoreError(f"{self.path} has a ? in it, which DuckDB cannot open; use another output root")

    def _attached(self) -> duckdb.DuckDBPyConnection:
        self._check_path()
        if not self.path.exists():
            raise StoreError(f"nothing has been imported into {self.path} yet; run: pidgin import --all")
        con = duckdb.connect(config=_OFFLINE | {"temp_directory": str(self.path.with_name(".duckdb_tmp"))})
        try:
            con.execute(_SILENT)
            with _understood(self.path):
                con.execute(f"ATTACH {literal(str(self.path))} AS store (READ_ONLY, TYPE duckdb)")
                con.execute("USE store")
        except BaseException:
            con.close()
            raise
        return con

    @contextlib.contextmanager
    def beside_a_fresh_import(
        self, folder: ExperimentFolder, *, live: bool = False, compute: Callable[["EventStore"], None] | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection on which the database is `store`, and what an import of one experiment gives now is `fresh`.

        Args:
            live: a runner is at work on the experiment.
            compute: given another store with the experiment in it; what it makes of that is `again`.

        Raises StoreError as `connect` does, and where the logs cannot be imported.
        """
        self.connect().close()
        with tempfile.TemporaryDirectory(prefix="pidgin-") as scratch, _understood(self.path):
            con = duckdb.connect(config=_OFFLINE | {"temp_directory": str(self.path.with_name(".duckdb_tmp"))})
            try:
                con.execute(_SILENT)
                con.execute("ATTACH ':memory:' AS fresh")
                con.execute("USE fresh")
                set_up(con, self._metrics)
                try:
                    import_into(con, folder, live=live, metrics=self._metrics, words=self.words)
                except (LogError, OSError) as error:
                    raise StoreError(_first_line(error)) from error
                con.execute(f"ATTACH {literal(str(self.path))} AS store (READ_ONLY, TYPE duckdb)")
                if compute is not None:
                    with EventStore(OutputRoot(Path(scratch)), self._metrics, self.words) as again:
                        again.import_experiment(folder, live=live)
                        compute(again)
                    con.execute(f"ATTACH {literal(str(again.path))} AS again (READ_ONLY, TYPE duckdb)")
                yield con
            finally:
                con.close()

    # Importing

    def import_experiment(self, folder: ExperimentFolder, *, live: bool = False) -> Imported:
        """Take one experiment; see `import_experiments`."""
        (found,) = self.import_experiments([folder], is_live=lambda _: live)
        return found

    def import_experiments(
        self,
        folders: Iterable[ExperimentFolder],
        *,
        is_live: Callable[[str], bool] = lambda _: False,
        again: bool = False,
        report: Callable[[Imported], None] = lambda _: None,
        waiting: Callable[[], None] | None = None,
    ) -> list[Imported]:
        """Take experiments, each in one transaction; what has not changed since the last time is left as it is.

        Args:
            is_live: whether a runner is at work on an experiment; without one, what has no end is interrupted.
            again: take everything anew, also what has not changed.
            report: called after each experiment.
            waiting: called once when another import has to be waited for.

        Raises:
            StoreError: the database cannot be read or written. What was in it before is still there.
        """
        self.close()
        found = []
        with self._rewriting(waiting) as working:
            for folder in folders:
                try:
                    done = import_into(
                        working.con,
                        folder,
                        live=is_live(folder.experiment_id),
                        metrics=self._metrics,
                        words=self.words,
                        again=again,
                    )
                except (duckdb.Error, LogError, OSError) as error:
                    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.FatalException):
                        raise
                    done = Imported(folder.experiment_id, folder.slug or None, failed=_first_line(error))
                working.changed = working.changed or (done.changed and done.failed is None)
                found.append(done)
                report(done)
        return found

    def keep_computed(self, computed: Sequence[Computed], *, waiting: Callable[[], None] | None = None) -> int:
        """Put metrics that were computed after the run beside those of the record, in one transaction.

        Conversations whose logs have been read anew since are passed over; gives how many were kept.

        Raises:
            StoreError: the database cannot be read or written. What was in it before is still there.
        """
        self.close()
        if not computed:
            return 0
        with self._rewriting(waiting) as working:
            working.con.begin()
            try:
                kept = write_computed(working.con, computed, self._metrics)
                working.con.commit()
            except BaseException:
                working.con.rollback()
                raise
            working.changed = working.changed or kept > 0
        return kept

    @contextlib.contextmanager
    def _rewriting(self, waiting: Callable[[], None] | None) -> Iterator["_Working"]:
        """A working copy at the newest schema; at the end it takes the place of the file, if it has changed."""
        self._check_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path.parent} cannot be written: {error.strerror}") from error
        copy = self.path.with_name(f".{FILE_NAME}.importing")
        with self._locked(waiting), _understood(self.path):
            _remove(copy)  # of an import that was killed
            version = 0
            if self.path.is_file():
                version = self._sound_version()
                shutil.copyfile(self.path, copy)
                with contextlib.suppress(FileNotFoundError):  # of another program that died
                    shutil.copyfile(_wal(self.path), _wal(copy))
            con = None
            try:
                con = duckdb.connect(str(copy), config=_OFFLINE | {"temp_directory": f"{copy}.tmp"})
                con.execute(_SILENT)
                set_up(con, self._metrics)
                working = _Working(con, changed=version < len(MIGRATIONS))
                yield working
                if working.changed:
                    make_views(con)
                con.execute("CHECKPOINT")
                con.close()
                if working.changed:
                    _wal(self.path).unlink(missing_ok=True)
                    copy.replace(self.path)
                    _sync_folder(self.path.parent)
            finally:
                if con is not None:
                    con.close()
                _remove(copy)

    def _sound_version(self) -> int:
        """The version of the file. Raises where it is damaged, newer, not ours, or open for writing elsewhere."""
        con = self._attached()
        try:
            version = version_of(con)
        finally:
            con.close()
        if version == 0:
            raise StoreError(f"{self.path} is not a database of Pidgin; move it away, then run: pidgin import --all")
        if version > len(MIGRATIONS):
            raise StoreError(f"{self.path} was made by a newer Pidgin; install that, or use another output root")
        return version

    @contextlib.contextmanager
    def _locked(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{FILE_NAME}.lock"))
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting is not None:
                    waiting()
                lock.acquire()
        except OSError as error:
            raise StoreError(f"{self.path.parent} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


@dataclasses.dataclass
class _Working:
    con: duckdb.DuckDBPyConnection
    changed: bool


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _remove(copy: Path) -> None:
    for path in (copy, _wal(copy)):
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(f"{copy}.tmp", ignore_errors=True)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Raises what DuckDB says about the file as a StoreError that says what to do."""
    try:
        yield
    except duckdb.Error as error:
        said = _first_line(error)
        if "Could not set lock" in said or "Conflicting lock" in said:
            raise StoreError(f"{path} is open for writing in another program; close it there and try again") from error
        if "not a valid DuckDB database file" in said or "Corrupt" in said or "checksum" in said.lower():
            raise StoreError(
                f"{path} is damaged or no database; move it away, then run: pidgin import --all (the records hold all)"
            ) from error
        raise StoreError(f"{path}: {said}") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
