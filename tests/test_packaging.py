"""The wheel works where the repository is not."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_all_that_is_needed(wheel: Path) -> None:
    """Templates, word list, model list and license are inside; tests and docs are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in (ROOT / "pidgin_cli").rglob("*") if path.suffix in (".txt", ".yaml", ".py")]
    templates = [path for path in (ROOT / "templates").rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in data}
    wanted |= {f"pidgin_cli/{path.relative_to(ROOT).as_posix()}" for path in templates}
    assert templates
    assert sorted(wanted - names) == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pidgin_cli"}


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, it holds a conversation in an empty folder, with a preset from its own templates."""
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--target", target, wheel),
        cwd=empty,
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    environment.pop("PIDGIN_OUTPUT", None)
    where = _run(sys.executable, "-c", "import pidgin_cli; print(pidgin_cli.__file__)", cwd=empty, env=environment)
    assert Path(where.strip()).is_relative_to(target)

    pidgin = (sys.executable, "-m", "pidgin_cli")
    assert _run(*pidgin, "--version", cwd=empty, env=environment).startswith("pidgin")
    talk = ("chat", "-a", "local:test", "-b", "local:test", "-t", "2", "-w", "research", "--display", "quiet")
    _run(*pidgin, *talk, cwd=empty, env=environment)
    (log,) = (empty / "pidgin_output" / "experiments").glob("experiment_*/conv_*_events.jsonl")
    lines = log.read_text(encoding="utf-8")
    assert lines.count('"event_type":"MessageCompleteEvent"') == 4
    assert "taking part in a research study" in lines
