"""Which experiments have a living runner, and how to ask it for something."""

import contextlib
import fcntl
import os
import platform
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from pidgin_cli.core.errors import LogError, NotFound
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import Manifest, rebuild, stored_manifest

__all__ = ["HEARTBEAT_S", "SIGNALS", "PidFile", "Wish", "ask_runner", "current_manifest", "living_runner"]

HEARTBEAT_S = 5.0
SILENT_AFTER_S = 6 * HEARTBEAT_S
"""A runner on another machine that has not been heard of for so long is taken for dead."""


class Wish(StrEnum):
    """What may be asked of a runner from another process."""

    STOP = "stop"
    """Finish the messages under way, then end."""
    STOP_NOW = "stop_now"
    """End at once; what has arrived of the messages under way is recorded as abandoned."""
    PAUSE = "pause"
    RESUME = "resume"


SIGNALS = {
    Wish.STOP: signal.SIGTERM,
    Wish.STOP_NOW: signal.SIGQUIT,
    Wish.PAUSE: signal.SIGUSR1,
    Wish.RESUME: signal.SIGUSR2,
}


class Runner(NamedTuple):
    """A living process that runs an experiment."""

    pid: int
    started: float
    """Creation time of the process, seconds since the epoch: a recycled PID has another."""


class PidFile:
    """`active/exp_<id>.pid`, there while a runner lives; its modification time is the heartbeat."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse_others(self) -> None:
        """Raise LogError when a living runner has the experiment."""
        if (other := living(self.path)) is not None and other.pid != os.getpid():
            raise LogError(f"the experiment is being run by process {other.pid}; stop it first")

    def write(self) -> None:
        """Say that this process runs the experiment. Raises LogError when the disk does not take it."""
        started = psutil.Process().create_time()
        making = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(exist_ok=True)  # an experiment may have been copied here alone
            making.write_bytes(msgspec.json.encode({"pid": os.getpid(), "started": started}))
            making.replace(self.path)
        except OSError as error:
            raise LogError(f"{self.path} cannot be written: {error.strerror}; free some room, then resume") from error

    def beat(self) -> None:
        """Show that the process lives. A file that somebody deleted is written anew, or nobody could stop the run."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            with contextlib.suppress(OSError, LogError):
                self.write()
        except OSError:
            pass  # the next beat may be luckier

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def living(pid_file: Path) -> Runner | None:
    """The runner that a PID file names, if that very process still lives on this machine."""
    try:
        data = msgspec.json.decode(pid_file.read_bytes(), type=dict[str, float])
        pid, started = int(data["pid"]), data["started"]
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # A step of the clock moves the creation times of all processes, but takes no lock away.
        if abs(process.create_time() - started) > 1.0 and not _is_written(pid_file):
            return None
    except (OSError, msgspec.DecodeError, KeyError, psutil.Error):
        return None
    return Runner(pid, started)


def _is_written(pid_file: Path) -> bool:
    """Whether some process holds the log of the experiment that a PID file belongs to."""
    experiment_id = pid_file.stem.removeprefix("exp_")
    for log in pid_file.parent.parent.glob(f"experiment_{experiment_id}*/experiment_events.jsonl"):
        with log.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def living_runner(root: OutputRoot, experiment_id: str) -> Runner | None:
    """The process that runs an experiment now, on this machine."""
    return living(root.pid_file(experiment_id))


def _heard_of(root: OutputRoot, manifest: Manifest) -> bool:
    """Whether a runner on another machine, with which the output root is shared, still shows signs of life."""
    if manifest.host in (None, platform.node()):
        return False
    try:
        return time.time() - root.pid_file(manifest.experiment_id).stat().st_mtime < SILENT_AFTER_S
    except OSError:
        return False


def ask_runner(root: OutputRoot, experiment_id: str, wish: Wish) -> Runner:
    """Ask the process that runs an experiment for something. Gives that process; it does what it is asked soon after.

    Raises:
        NotFound: no process on this machine runs it.
        LogError: it is another user's.
    """
    runner = living_runner(root, experiment_id)
    if runner is None:
        raise NotFound(f"{experiment_id} is not running here")
    try:
        os.kill(runner.pid, SIGNALS[wish])
    except ProcessLookupError:
        raise NotFound(f"{experiment_id} is not running any more") from None
    except PermissionError:
        raise LogError(f"process {runner.pid}, which runs {experiment_id}, belongs to another user") from None
    return runner


def current_manifest(root: OutputRoot, folder: ExperimentFolder, broken: Callable[[], None] = lambda: None) -> Manifest:
    """The manifest with its status as it is now: what seems to run without a living runner is interrupted.

    Args:
        broken: called where `manifest.json` is missing or damaged and the logs alone tell.
    """
    stored = stored_manifest(folder)
    if stored is None:
        broken()
    manifest = rebuild(folder) if stored is None else stored
    unfinished = (Status.CREATED, Status.RUNNING, Status.PAUSED)
    dead = living_runner(root, folder.experiment_id) is None and not _heard_of(root, manifest)
    if manifest.status in unfinished and dead:
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
