"""Command lines run in this process or in one of their own, and the records they leave."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from terminal import DEADLINE_S, ENVIRONMENT

from pidgin_cli.cli.app import run

__all__ = ["Pidgin", "Record", "Said", "error_of", "pidgin", "process", "read", "record", "until"]


class Said(NamedTuple):
    """What a command line gave back."""

    status: int
    out: str
    err: str


Pidgin = Callable[..., Said]


@pytest.fixture
def pidgin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Pidgin:
    """Runs command lines in this process, in an empty folder and an environment without keys."""
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    for name in ("PIDGIN_CONFIG_DIR", "PYTHON_KEYRING_BACKEND", "PIDGIN_POST_PROCESSING"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        status = run([str(arg) for arg in args])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Said(status, out, err)

    return call


class Record(NamedTuple):
    """The one experiment below an output root, as it lies on the disk."""

    folder: Path
    events: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event_type"] == f"{kind}Event"]

    @property
    def id(self) -> str:
        return self.events[0]["experiment_id"]

    @property
    def start(self) -> dict[str, Any]:
        return self.events[0]

    @property
    def end(self) -> dict[str, Any]:
        return self.of("ConversationEnd")[-1]

    @property
    def texts(self) -> list[str]:
        return [event["message"]["content"] for event in self.of("MessageComplete")]

    @property
    def settings(self) -> list[dict[str, Any]]:
        return [agent["settings"] for agent in self.start["agents"]]


def record(root: Path = Path("pidgin_output")) -> Record:
    """The only record below a root."""
    (log,) = root.glob("experiments/experiment_*/conv_*_events.jsonl")
    return read(log)


def read(log: Path) -> Record:
    """The whole lines of a log. The last may be on its way, or cut by a kill at the end of a page."""
    return Record(log.parent, [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]])


def error_of(said: Said, status: int = 2) -> str:
    """The one line that says what is wrong; nothing may have been printed besides."""
    assert (said.status, said.out) == (status, "")
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    return said.err


def process(*argv: str, cwd: Path, env: dict[str, str] | None = None, **how: Any) -> Said:
    """A command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pidgin_cli", *argv],
        cwd=cwd,
        env=ENVIRONMENT | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        **how,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err
    return Said(done.returncode, out, err)


def until(met: Callable[[], Any]) -> Any:
    """What `met` gives as soon as that is true."""
    end = time.monotonic() + DEADLINE_S
    while not (found := met()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)
    return found
