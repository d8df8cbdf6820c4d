"""Where things lie on disk: the output root, the folder of an experiment, and how to find one again."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import string
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import msgspec
from msgspec import Struct

from pidgin_cli.core.errors import LogError, NotFound, SpecError

__all__ = ["ExperimentFolder", "OutputRoot", "new_id", "same_name", "slug"]

_ALPHABET = string.ascii_lowercase + string.digits
_FOLDER = re.compile(r"experiment_(?P<id>[a-z0-9]{8})(?:(?:_(?P<name>.*))?_(?P<date>\d{8})|_(?P<renamed>[a-z0-9-]+))?")
"""The date is always there at first, and may be lost where a person renames a folder."""


def new_id() -> str:
    """A random experiment id."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def slug(name: str) -> str:
    """`name` as it may stand in a file name: ASCII letters, digits and hyphens, at most 60."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")


_UNREADABLE = (OSError, msgspec.DecodeError, UnicodeDecodeError)


class _Named(Struct):
    name: str | None = None


def same_name(one: str | None, other: str) -> bool:
    """Whether two names are the same, however their accents are encoded."""
    return one is not None and unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


class ExperimentFolder:
    """One experiment on disk; see DESIGN 5.1 for the layout."""

    def __init__(self, path: Path) -> None:
        match = _FOLDER.fullmatch(path.name)
        if match is None:
            raise LogError(f"{path} is not the folder of an experiment")
        self.path = path
        self.experiment_id: str = match["id"]
        self.slug: str = match["name"] or match["renamed"] or ""
        self.is_dated = match["date"] is not None

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def events(self) -> Path:
        """The log of the experiment itself."""
        return self.path / "experiment_events.jsonl"

    def name(self) -> str | None:
        """The name as it was given, from a file: the folder's own has only what `slug` leaves of it."""
        with contextlib.suppress(*_UNREADABLE):
            return msgspec.json.decode(self.manifest.read_bytes(), type=_Named).name
        with contextlib.suppress(*_UNREADABLE), self.events.open("rb") as log:
            return msgspec.json.decode(log.readline(), type=_Named).name
        return self.slug or None

    def log(self, conversation_id: str) -> Path:
        return self.path / f"conv_{conversation_id}_events.jsonl"

    def logs(self) -> dict[str, Path]:
        """The logs of the conversations that have begun, by conversation id, in order of their number."""
        found = {
            path.name[len("conv_") : -len("_events.jsonl")]: path for path in self.path.glob("conv_*_events.jsonl")
        }
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


class OutputRoot:
    """The folder that holds everything Pidgin writes: `-o`, or `PIDGIN_OUTPUT`, or `./pidgin_output`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or Path(os.environ.get("PIDGIN_OUTPUT") or "pidgin_output")).absolute()

    @property
    def experiments(self) -> Path:
        return self.path / "experiments"

    @property
    def active(self) -> Path:
        return self.experiments / "active"

    @property
    def run_logs(self) -> Path:
        return self.experiments / "logs"

    def pid_file(self, experiment_id: str) -> Path:
        return self.active / f"exp_{experiment_id}.pid"

    def prepare(self) -> None:
        """Make the folders. Raises SpecError when that is not possible here."""
        for folder in (self.experiments, self.active, self.run_logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise SpecError(f"{folder} is not a folder; choose another with -o") from None
            except NotADirectoryError:
                raise SpecError(f"{self.path} is not a folder; choose another with -o") from None
            except OSError as error:
                raise SpecError(f"{self.path} cannot be written: {error.strerror}; choose another with -o") from None
        if not os.access(self.experiments, os.W_OK | os.X_OK):
            raise SpecError(f"{self.experiments} cannot be written: Permission denied; choose another with -o")

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Keep other processes from giving a name meanwhile, so that one name does not come to stand for two."""
        self.prepare()
        held = os.open(self.experiments, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then as well as may be
                fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def create(self, experiment_id: str, name: str | None, today: date, files: dict[str, bytes]) -> ExperimentFolder:
        """Make an experiment's folder with its first files in it; it appears by one rename.

        Raises:
            SpecError: the root is not writable, or the disk is full.
        """
        self.prepare()
        stem = "_".join(part for part in ("experiment", experiment_id, slug(name or ""), f"{today:%Y%m%d}") if part)
        path = self.experiments / stem
        making = self.experiments / f".{stem}.making"
        try:
            making.mkdir()
            for file_name, content in files.items():
                (making / file_name).write_bytes(content)
            making.rename(path)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            raise SpecError(f"{self.experiments} cannot be written: {what}; choose another with -o") from None
        return ExperimentFolder(path)

    def folders(self) -> Iterator[ExperimentFolder]:
        """Every experiment, newest first."""
        found: list[tuple[float, Path]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in self.experiments.iterdir():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    if _FOLDER.fullmatch(path.name) and path.is_dir():
                        found.append((path.stat().st_mtime, path))
        folders = [ExperimentFolder(path) for _, path in sorted(found, reverse=True)]
        dated = {folder.experiment_id for folder in folders if folder.is_dated}
        # Beside the folder itself, one that has lost its date is a copy of it.
        yield from (folder for folder in folders if folder.is_dated or folder.experiment_id not in dated)

    def named(self, wanted: str) -> list[ExperimentFolder]:
        """The experiments that are found by this name, newest first.

        These are those with this very name; where there are none, those whose folders show it, as long as nothing but
        capitals and blanks of `wanted` is missing there.
        """
        return _named(wanted, self.folders())

    def find(self, wanted: str) -> ExperimentFolder:
        """The experiment with this id, unique prefix of an id, name, folder, or conversation id.

        Raises:
            NotFound: nothing or more than one thing fits; the text lists what is near.
        """
        folders = list(self.folders())
        as_path = Path(wanted).absolute()
        if _FOLDER.fullmatch(as_path.name) and os.path.isdir(as_path):  # noqa: PTH112 - never raises
            return ExperimentFolder(as_path)
        experiment_id = wanted.rpartition("-")[0] if re.fullmatch(r"[a-z0-9]{8}-\d+", wanted) else wanted
        for folder in folders:
            if folder.experiment_id == experiment_id:
                return folder
        fitting = _named(wanted, folders) or [f for f in folders if wanted and f.experiment_id.startswith(wanted)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise NotFound(f"{wanted!r} is ambiguous: {_listed(fitting)}; use the id")
        if not folders:
            raise NotFound(f"no experiment {wanted!r}: there is nothing in {self.experiments} yet")
        raise NotFound(f"no experiment {wanted!r} in {self.experiments}; the newest are {_listed(folders)}")


def _named(wanted: str, folders: Iterable[ExperimentFolder]) -> list[ExperimentFolder]:
    if not wanted.strip():
        return []
    plain = slug(wanted)
    alike = [folder for folder in folders if folder.slug == plain]
    same = [folder for folder in alike if same_name(folder.name(), wanted)]
    shown = bool(plain) and plain == "-".join(wanted.lower().split())
    return same or (alike if shown else [])


def _listed(folders: list[ExperimentFolder]) -> str:
    names = [(folder.experiment_id, folder.name()) for folder in folders[:5]]
    shown = ", ".join(experiment_id + (f" ({' '.join(name.split())})" if name else "") for experiment_id, name in names)
    return shown + (", …" if len(folders) > 5 else "")
