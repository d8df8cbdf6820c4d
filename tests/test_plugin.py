"""A package by others brings a provider: the example in `docs/plugins`, installed and talked to."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import record

SOURCE = Path(__file__).parent.parent / "docs" / "plugins" / "pidgin-echo"

Pidgin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pidgin(tmp_path_factory: pytest.TempPathFactory) -> Pidgin:
    """Runs command lines in a process of their own that has the package on its path."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, work / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    target = ["--target", str(work / "packages"), str(work / "source")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *target], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(work / "packages"), "PIDGIN_CONFIG_DIR": str(work / "settings")}

    def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "pidgin_cli", *map(str, args)]
        return subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=100)

    return call


def test_a_conversation_with_a_provider_by_others(pidgin: Pidgin, tmp_path: Path):
    """`echo:…` is a model like any other: it talks, and its words, usage and name are in the record."""
    done = pidgin("chat", "-a", "echo:again", "-b", "echo:loud", "-t", "1", "-p", "Good morning.", "-o", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = record(tmp_path).of("MessageComplete")
    assert first["message"]["content"] == "[HUMAN]: Good morning."
    assert second["message"]["content"] == "[HUMAN]: GOOD MORNING. [HUMAN]: GOOD MORNING."
    assert (first["model_requested"], first["model_served"]) == ("echo:again", "again")
    assert first["usage"] == {"prompt_tokens": 3, "completion_tokens": 3}


def test_its_errors_are_typed(pidgin: Pidgin, tmp_path: Path):
    """What the adapter refuses ends the conversation like a refusal of any vendor."""
    done = pidgin("chat", "-a", "echo:backwards", "-b", "local:silent", "-t", "1", "-o", tmp_path)
    assert done.returncode == 1
    [error] = record(tmp_path).of("APIError")
    assert error["error"] == "RequestRejected"
    assert error["provider"] == "echo"
    assert error["message"] == "no model 'backwards'; there are again, loud"


def test_it_is_listed(pidgin: Pidgin):
    """An unknown provider's error names the one that the package brought."""
    done = pidgin("chat", "-a", "ecko:again", "-b", "local:silent", "-t", "1")
    assert done.returncode == 2
    assert "echo" in done.stderr


def test_the_example_is_as_short_as_it_says():
    """An adapter takes about forty lines."""
    code = (SOURCE / "pidgin_echo.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) < 50
