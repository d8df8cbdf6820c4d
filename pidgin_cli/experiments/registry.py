"""Which experiments have a living runner."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import Manifest, read_manifest, rebuild

__all__ = ["HEARTBEAT_S", "PidFile", "current_manifest", "living_runner"]

HEARTBEAT_S = 5.0


class Runner(NamedTuple):
    """A living process that runs an experiment."""

    pid: int
    started: float
    """Creation time of the process, seconds since the epoch: a recycled PID has another."""


class PidFile:
    """`active/exp_<id>.pid`, there while a runner lives; its modification time is the heartbeat."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self) -> None:
        """Claim the experiment. Raises LogError when a living runner has it."""
        if (other := living(self.path)) is not None and other.pid != os.getpid():
            raise LogError(f"the experiment is being run by process {other.pid}; stop it first")
        started = psutil.Process().create_time()
        making = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            making.write_bytes(msgspec.json.encode({"pid": os.getpid(), "started": started}))
            making.replace(self.path)
        except OSError as error:
            raise LogError(f"{self.path} cannot be written: {error.strerror}; free some room, then resume") from error

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def living(pid_file: Path) -> Runner | None:
    """The runner that a PID file names, if that very process still lives."""
    try:
        data = msgspec.json.decode(pid_file.read_bytes(), type=dict[str, float])
        pid, started = int(data["pid"]), data["started"]
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - started) > 1.0:
            return None
    except (OSError, msgspec.DecodeError, KeyError, psutil.Error):
        return None
    return Runner(pid, started)


def living_runner(root: OutputRoot, experiment_id: str) -> Runner | None:
    """The process that runs an experiment now."""
    return living(root.pid_file(experiment_id))


def current_manifest(root: OutputRoot, folder: ExperimentFolder) -> Manifest:
    """The manifest with its status as it is now: what seems to run without a living runner is interrupted."""
    manifest = read_manifest(folder)
    unfinished = (Status.CREATED, Status.RUNNING, Status.PAUSED)
    if manifest.status in unfinished and living_runner(root, folder.experiment_id) is None:
        if _behind(folder):
            manifest = rebuild(folder)
        manifest.status = Status.INTERRUPTED
        for entry in manifest.conversations.values():
            if entry.status in (Status.RUNNING, Status.PAUSED):
                entry.status = Status.INTERRUPTED
        manifest.add_up()
    return manifest


def _behind(folder: ExperimentFolder) -> bool:
    """Whether the runner died between writing a log and writing the manifest."""
    try:
        written = folder.manifest.stat().st_mtime_ns
        return any(log.stat().st_mtime_ns > written for log in folder.logs().values())
    except OSError:
        return True
