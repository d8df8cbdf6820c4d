"""Folders of experiments that somebody has copied or renamed."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from commands import Pidgin, pidgin
from runs import logged, make, said, start, turn_start

from pidgin_cli.core.events import ConversationEndEvent, Totals
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import OutputRoot

__all__ = ["pidgin"]


def test_a_copied_folder_is_resumed(pidgin: Pidgin, tmp_path: Path) -> None:
    """An experiment that was copied alone into another root goes on there, though nothing else is in that root."""
    spec = tmp_path / "study.yaml"
    spec.write_text("name: study\nagents: [{id: a, model: 'local:test'}, {id: b, model: 'local:test'}]\nmax_turns: 1\n")
    assert pidgin("run", spec, "--no-post-processing", "--display", "quiet").status == 0
    (folder,) = OutputRoot().folders()
    copy = tmp_path / "elsewhere/experiments" / folder.path.name
    shutil.copytree(folder.path, copy)
    (log,) = copy.glob("conv_*_events.jsonl")
    whole = log.read_bytes()
    log.write_bytes(whole[: whole.index(b"\n") + 1])
    events = copy / "experiment_events.jsonl"
    events.write_bytes(events.read_bytes().partition(b"\n")[0] + b"\n")
    (copy / "manifest.json").unlink()
    done = pidgin("resume", folder.experiment_id, "-o", tmp_path / "elsewhere", "--display", "quiet")
    assert done.status == 0
    assert b"ConversationEndEvent" in log.read_bytes()


@pytest.mark.parametrize("renamed", ["experiment_abcdefgh_mine", "experiment_abcdefgh"])
def test_a_folder_without_a_date_is_found(pidgin: Pidgin, renamed: str) -> None:
    """A folder that somebody renamed is still the experiment; beside one that has the date, it is a copy."""
    root = OutputRoot()
    folder = make(root, "abcdefgh", [[start(), turn_start(), said("One.")]], name="study")
    folder.path.rename(root.experiments / renamed)
    assert [row["experiment_id"] for row in json.loads(pidgin("list", "--json").out)] == ["abcdefgh"]
    assert pidgin("show", "abcdefgh").status == 0
    shutil.copytree(root.experiments / renamed, folder.path)
    assert [each.path.name for each in root.folders()] == [folder.path.name]


def test_an_old_record_is_dated_to_when_it_was_held(pidgin: Pidgin) -> None:
    """The README of an import tells when it was taken in and when it was held, and takes neither for the other."""
    root = OutputRoot()
    source = {"source": {"format": "earlier pidgin", "file": "conv_1_events.jsonl", "sha256": "0"}}
    events = [
        msgspec.structs.replace(start(), spec=source),
        turn_start(),
        said("One."),
        ConversationEndEvent(
            status=Status.COMPLETED, end_reason=EndReason.TURN_LIMIT, totals=Totals(turns=1, messages=1)
        ),
    ]
    taken_in = datetime(2026, 11, 21, 9, tzinfo=UTC)
    folder = make(root, "abcdefgh", [events], created=taken_in, status=Status.COMPLETED)
    for when, told in (
        (datetime(2025, 3, 4, 10, 30, tzinfo=UTC), "held 2025-03-04 10:30 UTC"),
        (taken_in, "when they were held is not known"),
    ):
        old = logged("abcdefgh-1", events, when=when)
        folder.log("abcdefgh-1").write_bytes(b"".join(encode(event) + b"\n" for event in old))
        assert pidgin("report", "abcdefgh", "--only", "readme").status == 0
        page = (folder.path / "README.md").read_text().replace("\\", "")
        assert f"Taken in from elsewhere 2026-11-21 09:00 UTC; {told}." in page
        assert "Begun" not in page
