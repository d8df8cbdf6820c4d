"""What the README, the docs and the help show can be done: no example is refused before its first request."""

import importlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from pidgin_cli.cli.app import cli
from pidgin_cli.cli.chat import spec_from_flags
from pidgin_cli.conversation.dialogue import check_settings
from pidgin_cli.core.types import AgentSettings
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.preflight import check_models
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.awareness import templates_folder
from pidgin_cli.spec.catalogue import resolve_model
from pidgin_cli.spec.experiment import ExperimentSpec, expand, load, resolve

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMAND = re.compile(r"^\s*(?:\w+=\S+ )?pidgin ((?:chat|ask|run) .*-[am] .*)$", re.MULTILINE)
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _all_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every key is there, every provider at its vendor's own address, and the example package is installed."""
    for variable in list(os.environ):
        if variable.endswith("_BASE_URL") or variable.startswith(("OLLAMA_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    for info in list(PROVIDERS.values()):
        for variable in info.key_env:
            monkeypatch.setenv(variable, "a key")
    monkeypatch.syspath_prepend(ROOT / "docs" / "plugins" / "pidgin-echo")
    monkeypatch.setitem(PROVIDERS, "echo", importlib.import_module("pidgin_echo").INFO)
    monkeypatch.chdir(tmp_path)
    Path("opening.txt").write_text("Hello")


def check(spec: ExperimentSpec, where: Path) -> None:
    check_models(expand(resolve(spec, PROVIDERS).spec).values(), OutputRoot(where))


def commands() -> list[str]:
    shown = (page.read_text(encoding="utf-8") for page in PAGES)
    found = (line for text in shown for line in COMMAND.findall(text))
    return sorted({re.split(r"\s[#|]\s", line)[0].strip() for line in found})


def specs() -> list[str]:
    """YAML in the docs that says who talks; pieces of specs do not."""
    found = [block for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if re.search(r"^agent(?:s|_a):", block, re.MULTILINE)]


def test_there_is_something_shown() -> None:
    """The patterns of this file find what they are for."""
    assert {line.split()[0] for line in commands()} == {"chat", "ask", "run"}
    assert len(commands()) >= 10
    assert len(specs()) >= 3


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_is_taken(line: str, tmp_path: Path) -> None:
    """Its flags are right, its models are known, and they take what it asks of them."""
    name, *argv = shlex.split(line)
    with cli.commands[name].make_context(name, argv, parent=click.Context(cli)) as context:
        options: dict[str, Any] = context.params
        if name == "ask":
            settings = AgentSettings(temperature=options["temperature"], think=options["think"] or None)
            check_settings(resolve_model(options["model"], PROVIDERS), settings)
        else:
            check(spec_from_flags(options), tmp_path)


@pytest.mark.parametrize("text", specs())
def test_a_spec_that_is_shown_is_taken(text: str, tmp_path: Path) -> None:
    """It loads, and its models take what it asks of them."""
    path = tmp_path / "shown.yaml"
    path.write_text(text, encoding="utf-8")
    check(load(path, PROVIDERS), tmp_path)


@pytest.mark.parametrize("path", sorted((templates_folder() / "specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_template_asks_nothing_that_its_models_do_not_take(path: Path, tmp_path: Path) -> None:
    """Whoever has the keys can run it as it is."""
    check(load(path, PROVIDERS), tmp_path)
