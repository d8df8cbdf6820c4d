"""The reference pages say what the code does."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from pidgin_cli.cli.app import cli
from pidgin_cli.core.events import EVENT_TYPES
from pidgin_cli.spec.awareness import PRESETS, preset_text

ROOT = Path(__file__).parent.parent
GENERATE = ROOT / "docs" / "generate.py"


def _generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", GENERATE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["generate"] = module
    found.loader.exec_module(module)
    return module


def _commands(group: click.Group = cli, path: str = "") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        found.append((f"{path}{name}", command))
        if isinstance(command, click.Group):
            found += _commands(command, f"{path}{name} ")
    return found


def test_pages_are_in_step() -> None:
    """Every page is what `make docs` would write now."""
    assert _generator().stale() == []


def test_pages_do_not_depend_on_the_terminal_or_the_machine() -> None:
    """A narrow terminal, another language and another home leave the pages as they are."""
    environment = {
        **os.environ,
        "COLUMNS": "40",
        "LC_ALL": "C",
        "HOME": os.sep,
        "PIDGIN_OUTPUT": os.sep,
        "NO_COLOR": "1",
    }
    done = subprocess.run([sys.executable, GENERATE, "--check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_stale_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` fails and names a page that was changed, one that is missing, and one that nothing writes."""
    generator = _generator()
    monkeypatch.setattr(generator, "DOCS", tmp_path)
    generator.main([])
    (tmp_path / "reference" / "events.md").write_text("# Event lines\n")
    (tmp_path / "awareness.md").unlink()
    (tmp_path / "reference" / "old.md").write_text("# Old\n")
    assert generator.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert all(name in said for name in ("reference/events.md", "awareness.md", "reference/old.md"))
    assert "reference/models.md" not in said


@pytest.mark.parametrize(("path", "command"), _commands())
def test_every_command_has_help_with_an_example(path: str, command: click.Command) -> None:
    """The help of every command says what it does and shows how it is called."""
    help_text = command.help or ""
    summary, _, example = help_text.partition("Example")
    assert summary.strip(), "no summary"
    assert f"pidgin {path}" in example or isinstance(command, click.Group)


@pytest.mark.parametrize(("path", "command"), _commands())
def test_every_option_says_what_it_means(path: str, command: click.Command) -> None:
    """No option stands in the help without a word about it."""
    silent = [param.opts for param in command.params if isinstance(param, click.Option) and not param.help]
    assert silent == []


def test_every_event_and_preset_stands_in_the_docs() -> None:
    """Each event type has its section, and each preset is quoted word by word."""
    page = (ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+Event)$", page, re.MULTILINE)
    assert sorted(headings) == [kind.__name__ for kind in EVENT_TYPES]
    awareness = (ROOT / "docs" / "awareness.md").read_text(encoding="utf-8")
    assert all(preset_text(preset) in awareness for preset in PRESETS)


def test_links_lead_somewhere() -> None:
    """Every relative link in the README and the docs leads to a file, and to a heading in it where it names one."""
    broken = []
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if "://" in name:
                continue
            path = page.parent / name if name else page
            if not path.exists() or (anchor and anchor not in _anchors(path)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
