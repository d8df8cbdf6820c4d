"""Telling a person, or a command of theirs, that an experiment is over."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from pidgin_cli.eventlog.manifest import Manifest

__all__ = ["notify_command", "notify_desktop"]

PATIENCE_S = 30.0

_log = logging.getLogger(__name__)


def notify_desktop(manifest: Manifest) -> bool:
    """Show a notification on the desktop; False where there is none to show it on."""
    title = f"Pidgin: {manifest.name or manifest.experiment_id} {manifest.status.value}"
    totals = manifest.totals
    text = f"{totals.completed} of {totals.conversations} conversations complete, {totals.failed} failed"
    if sys.platform == "darwin" and (osascript := shutil.which("osascript")):
        script = "on run argv\ndisplay notification (item 2 of argv) with title (item 1 of argv)\nend run"
        return _run([osascript, "-e", script, title, text])
    if (notify_send := shutil.which("notify-send")) and (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return _run([notify_send, "--app-name=pidgin", "--", title, text])
    return False


def notify_command(command: Sequence[str], manifest: Manifest, folder: str) -> bool:
    """Run a person's command, never through a shell; what happened is in its environment.

    `PIDGIN_EXPERIMENT`, `PIDGIN_NAME`, `PIDGIN_STATUS`, `PIDGIN_FOLDER`, `PIDGIN_COMPLETED`, `PIDGIN_FAILED` and
    `PIDGIN_CONVERSATIONS`.
    """
    totals = manifest.totals
    facts = {
        "PIDGIN_EXPERIMENT": manifest.experiment_id,
        "PIDGIN_NAME": manifest.name or "",
        "PIDGIN_STATUS": manifest.status.value,
        "PIDGIN_FOLDER": folder,
        "PIDGIN_COMPLETED": str(totals.completed),
        "PIDGIN_FAILED": str(totals.failed),
        "PIDGIN_CONVERSATIONS": str(totals.conversations),
    }
    return _run(list(command), {name: value.replace("\0", "") for name, value in facts.items()})


def _run(command: list[str], facts: dict[str, str] | None = None) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - what the person told us to run, without a shell
            command,
            env=os.environ | (facts or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        _log.warning("the notification %s failed: %s", command[0], error)
        return False
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        _log.warning("the notification %s ended with status %d: %s", command[0], done.returncode, said[:500])
    return done.returncode == 0
