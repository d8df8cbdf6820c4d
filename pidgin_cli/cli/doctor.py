"""`doctor`: what is here and what is missing."""

import asyncio
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import click
import msgspec
from rich.text import Text

from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import PidginError, SpecError
from pidgin_cli.core.types import Timeouts
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import visible
from pidgin_cli.providers.keys import find_key
from pidgin_cli.providers.registry import PROVIDERS, at_home, missing_key

__all__ = ["examine", "offer_ollama"]

PACKAGES = ("anthropic", "openai", "google-genai", "ollama", "genai-prices", "msgspec", "pydantic", "rich")
LOW_DISK_BYTES = 1_000_000_000
OLLAMA_ANSWER_S = 5.0


class Finding(NamedTuple):
    """One line of the examination."""

    check: str
    status: Literal["ok", "missing", "problem"]
    """`missing`: fine unless you want it. `problem`: Pidgin cannot work like this."""
    detail: str


def examine(output: Path | None, *, as_json: bool) -> int:
    """Print what was found. Gives 1 when there is a problem, else 0."""
    findings = [_python(), *_packages(), *_settings(), *_keys()]
    findings += [asyncio.run(_ollama()), *_output(OutputRoot(output))]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([finding._asdict() for finding in findings]), indent=2))
    else:
        console = make_console()
        marks = {"ok": ("✓", "green"), "missing": ("·", "dim"), "problem": ("✗", "red")}
        for finding in findings:
            mark, style = marks[finding.status]
            console.print(Text.assemble((f"{mark} ", style), f"{finding.check:<22}", (visible(finding.detail), "dim")))
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def offer_ollama() -> int:
    """Show the vendor's own install command and run it on an explicit yes at a terminal. Gives the exit status."""
    from pidgin_cli.providers.ollama_setup import DOWNLOAD_PAGE, install_command, is_installed, run_install

    if is_installed():
        click.echo("Ollama is installed; start it with: ollama serve")
        return 0
    command = install_command()
    click.echo(f"Ollama's own command for this system: {command}" if command else f"Get Ollama at {DOWNLOAD_PAGE}")
    if command is None:
        return 1
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("Run it yourself; Pidgin runs it only when told so at a terminal.")
        return 1
    try:
        done = run_install(lambda shown: asyncio.run(_agrees(f"Run {shown}? [y/N]: ")))
    except (click.Abort, KeyboardInterrupt):
        click.echo()  # Ctrl-C or Ctrl-D left the line open
        raise
    return 0 if done else 1


async def _agrees(question: str) -> bool:
    """Whether the person says yes. Raises Abort at the end of the input."""
    from .chat import read_line  # `input` may miss a Ctrl-C that comes with the question

    click.echo(question, nl=False)
    answer = await read_line()
    if answer is None:
        raise click.Abort
    return answer.strip().lower() in ("y", "yes")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()}")


def _packages() -> list[Finding]:
    found = [Finding("pidgin", "ok", version("pidgin-cli"))]
    for package in PACKAGES:
        try:
            found.append(Finding(package, "ok", version(package)))
        except PackageNotFoundError:
            found.append(Finding(package, "problem", f"not installed; pip install {package}"))
    return found


def _settings() -> list[Finding]:
    """What is wrong with `config.toml`, if anything is."""
    try:
        use_person_settings()
    except PidginError as error:
        return [Finding("settings", "problem", line) for line in str(error).splitlines()]
    return []


def _keys() -> list[Finding]:
    found = []
    for info in PROVIDERS.values():
        if not info.key_env:
            continue
        present = find_key(info)
        moved = bool(info.base_url_env and os.environ.get(info.base_url_env))
        source = f"the server that {info.base_url_env} names" if moved else "a server of your own"
        where = "" if at_home(info) else f", asking {source}"
        if present is not None:
            held = "is set" if present.source == "environment" else "is in the keyring"
            found.append(Finding(f"{info.name} key", "ok", f"{present.variable} {held}{where}"))
        elif missing_key(info) is None:
            found.append(Finding(f"{info.name} key", "ok", f"none{where}"))
        else:
            found.append(
                Finding(f"{info.name} key", "missing", f"export {info.key_env[0]}=… to use {info.name} models")
            )
    return found


async def _ollama() -> Finding:
    try:
        from pidgin_cli.providers.ollama import OllamaProvider
        from pidgin_cli.providers.ollama_setup import place

        ollama = OllamaProvider(Timeouts(connect_s=2.0))
        try:
            async with asyncio.timeout(OLLAMA_ANSWER_S):
                models = await ollama.installed_models()
        finally:
            await ollama.aclose()
    except (PidginError, ImportError) as error:
        return Finding("ollama server", "missing", str(error))
    except TimeoutError:
        return Finding("ollama server", "missing", f"no answer within {OLLAMA_ANSWER_S:g} s at {place().netloc}")
    if not models:
        return Finding("ollama server", "ok", "up, without a model; get one with: ollama pull qwen3:4b")
    return Finding("ollama server", "ok", f"up, with {', '.join(models[:6])}{', …' if len(models) > 6 else ''}")


def _output(root: OutputRoot) -> list[Finding]:
    """Whether records can be written. Nothing is made for that: the folders come with the first record."""
    place = next((path for path in (root.experiments, *root.experiments.parents) if path.exists()), root.path)
    try:
        if not place.is_dir():
            raise SpecError(f"{place} is not a folder; choose another with -o")
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except PidginError as error:
        return [Finding("output", "problem", str(error))]
    except OSError as error:
        return [Finding("output", "problem", f"{place} cannot be written: {error.strerror}; choose another with -o")]
    there = "" if place == root.experiments else ", and is made with the first record"
    return [
        Finding("output", "ok", f"{root.path} can be written{there}"),
        Finding("disk", "ok" if free > LOW_DISK_BYTES else "problem", f"{free / 1e9:.1f} GB free"),
    ]
