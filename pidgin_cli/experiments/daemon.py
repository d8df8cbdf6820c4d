"""Running an experiment in a process of its own, which outlives the terminal it was started from."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import ExperimentStartEvent
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record

from .registry import living_runner

__all__ = ["detach", "starting"]

CLAIM_WITHIN_S = 60.0
"""Importing the SDKs of several vendors on a busy machine takes its time."""
_LOOK_EVERY_S = 0.02
_SHOWN_LINES = 5
_ERROR = "Error: "


@contextlib.contextmanager
def starting(folder: ExperimentFolder) -> Iterator[None]:
    """Keep other commands from starting an experiment, or changing how it is run, until this one has started it.

    Waits for one that is at it.
    """
    held = os.open(folder.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the lock on the log is left to try
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def detach(root: OutputRoot, folder: ExperimentFolder, arguments: Sequence[str] = ()) -> int:
    """Start a runner for an experiment and return its process id as soon as it has claimed the experiment.

    The process gets a session of its own and no terminal. What it is to run crosses as an id and a path, each an
    argument of its own; keys travel in the environment.

    Args:
        arguments: more of the hidden command's options.

    Raises:
        LogError: it ended before it got that far; the text is its own error, or the last lines of its log.
    """
    before = len(_starts(folder))
    log = root.run_logs / f"experiment_{folder.experiment_id}.log"
    command = [sys.executable, "-m", "pidgin_cli", "_runner", folder.experiment_id, "-o", str(root.path), *arguments]
    with log.open("ab") as output:
        began = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own interpreter; nothing is read as code
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    end = time.monotonic() + CLAIM_WITHIN_S
    while time.monotonic() < end:
        status = process.poll()
        runner = living_runner(root, folder.experiment_id)
        if runner is not None and runner.pid == process.pid:
            break
        if status is not None:
            # A short experiment may be over by now; its log tells whether this process ever ran it.
            if process.pid in _starts(folder)[before:]:
                break
            with log.open("rb") as file:
                file.seek(began)
                last = file.read().decode("utf-8", "replace").strip().splitlines()
            errors = [line.removeprefix(_ERROR) for line in last if line.startswith(_ERROR)]
            why = " / ".join(errors or last[-_SHOWN_LINES:])
            raise LogError(why or f"the runner ended with status {status} before it began; see {log}")
        time.sleep(_LOOK_EVERY_S)
    else:
        raise LogError(f"the runner, process {process.pid}, has not begun within {CLAIM_WITHIN_S:g} s; see {log}")
    process.returncode = 0  # it is on its own now: no warning that it still runs when this object goes
    return process.pid


def _starts(folder: ExperimentFolder) -> list[int | None]:
    """The processes that have begun to run an experiment, one after the other."""
    if not folder.events.is_file():
        return []
    return [event.pid for event in read_record(folder.events).events if isinstance(event, ExperimentStartEvent)]
