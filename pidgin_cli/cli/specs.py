"""`spec` and `init`: specs looked at before they run, and specs to start from."""

import json
from pathlib import Path

import click

from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.conversation.watching import check_watch, watch_faults
from pidgin_cli.core.errors import LogError, NotFound, PidginError, SpecError
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.preflight import check_origin
from pidgin_cli.monitor.text import visible
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.reports.text import count
from pidgin_cli.spec.awareness import templates_folder
from pidgin_cli.spec.errors import Fault, nearest
from pidgin_cli.spec.experiment import ExperimentSpec, expand, json_schema, load, located, resolve, too_late
from pidgin_cli.spec.plan import calls

from .records import existing_root

__all__ = ["check_specs", "print_schema", "template_names", "write_template"]

FIRST = "first-experiment"


def check_specs(files: tuple[Path, ...], output: Path | None) -> int:
    """Say what each spec makes, and all that is wrong with it. Gives the exit status.

    Args:
        output: where the records are that branches leave; where there are none, a note says so.
    """
    use_person_settings()
    root = existing_root(output)
    faulty = False
    for file in files:
        try:
            spec, notices = resolve(load(file, PROVIDERS, watch_faults), PROVIDERS)
        except PidginError as error:
            faulty = True
            click.echo(visible(str(error)), err=True)
            continue
        plan = expand(spec)
        try:
            notices += _origin(root, spec, file)
        except PidginError as error:
            faulty = True
            click.echo(visible(str(error)), err=True)
            continue
        try:
            check_watch(plan.values())
        except SpecError as error:
            faulty = True
            for line in str(error).splitlines():
                click.echo(visible(f"{file}: {line}"), err=True)
            continue
        arms = len({conversation.arm for conversation in plan.values()})
        asked = sum(calls(conversation) for conversation in plan.values())
        click.echo(visible(f"{file}: {count(arms, 'arm')}, {count(len(plan), 'conversation')}, {count(asked, 'call')}"))
        for notice in notices:
            click.echo(visible(f"{file}: {notice}"), err=True)
    return SpecError.exit_code if faulty else 0


def _origin(root: OutputRoot, spec: ExperimentSpec, file: Path) -> list[str]:
    """What is to be noticed of what a spec branches off. Raises as `check_origin` does, with the line."""
    if (branch := spec.branch) is None:
        return []
    if not root.experiments.is_dir():
        missing = f"there are no records in {root.path}; -o ROOT says where they are"
        return [
            f"branch: whether {branch.of} got to turn {branch.turn} is not checked: {missing}",
            *too_late(spec, None)[1],
        ]
    try:
        return check_origin(root, spec, file)
    except (NotFound, LogError) as error:
        raise SpecError(located([Fault(("branch",), str(error))], file)) from None


def print_schema() -> None:
    """Print the JSON Schema of a spec."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _templates() -> dict[str, Path]:
    return {path.stem: path for path in sorted((templates_folder() / "specs").glob("*.yaml"))}


def template_names() -> list[str]:
    """The templates that `init` writes."""
    return list(_templates())


def write_template(name: str | None, to: Path | None, *, listing: bool, as_json: bool, force: bool) -> None:
    """Write a template where the person wants it, or list them.

    Raises:
        SpecError: there is no such template, or the file is there already or cannot be written.
    """
    templates = _templates()
    if as_json:
        listed = [{"name": each, "about": _summary(path)} for each, path in templates.items()]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    if listing:
        width = max(map(len, templates))
        for each, path in templates.items():
            click.echo(f"{each:{width}}  {_summary(path)}")
        return
    name = name or FIRST
    if name not in templates:
        raise SpecError(f"there is no template {name!r}.{nearest(name, templates)} Templates: {', '.join(templates)}")
    target = to or Path(f"{name}.yaml")
    if target.is_dir():
        target /= f"{name}.yaml"
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(templates[name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise SpecError(f"{target} is there already; --to FILE writes another, --force writes over it") from None
    except OSError as error:
        raise SpecError(f"{target}: {error.strerror}") from None
    click.echo(visible(f"Wrote {target}: {_summary(templates[name])}"))
    click.echo(visible(f"Look at what it makes with: pidgin run {target} --dry-run"))


def _summary(path: Path) -> str:
    """The first line of a template, which says what it studies."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip().removesuffix(".")
