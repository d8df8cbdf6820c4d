"""`pidgin init` and `pidgin spec`: specs to start from, and specs looked at before they run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Pidgin, error_of, pidgin
from support import QUICK
from test_flat_spec import _violations

from pidgin_cli.cli.specs import template_names
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.spec.awareness import templates_folder
from pidgin_cli.spec.experiment import check, expand, json_schema, load, resolve, to_yaml
from pidgin_cli.spec.plan import calls

__all__ = ["pidgin"]

TEMPLATES = {
    "first-experiment",
    "temperature-study",
    "awareness-study",
    "self-talk",
    "attractor-grid",
    "backrooms",
    "meditation",
    "local-models",
    "branch-study",
}


def template(name: str) -> Path:
    return templates_folder() / "specs" / f"{name}.yaml"


def test_there_is_a_template_for_each_kind_of_study() -> None:
    """No more and no fewer than are promised."""
    assert set(template_names()) == TEMPLATES


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_makes_the_calls_that_it_says(name: str) -> None:
    """It is right in every key and model, resolves without a word, and its comment counts its calls."""
    path = template(name)
    spec, notices = resolve(load(path, PROVIDERS), PROVIDERS)
    plan = expand(spec)
    assert notices == []
    assert plan == expand(check(yaml.safe_load(to_yaml(spec))))
    text = path.read_text(encoding="utf-8")
    asked = list(plan.values())
    silent = sum(c.max_turns for c in asked for agent in c.agents if agent.model == "local:silent")
    comment = re.search(r"([\d,]+) calls", text)
    assert comment is not None
    assert int(comment[1].replace(",", "")) == sum(calls(c) for c in asked) - silent
    assert f"pidgin run {name}.yaml" in text
    assert text.startswith("# ")
    schema = json_schema()
    assert _violations(schema, yaml.safe_load(text), schema) == []


def _small(name: str) -> dict[str, Any]:
    """A template on models that pretend, two turns and the fewest conversations with all of its arms."""
    data: dict[str, Any] = yaml.safe_load(template(name).read_text(encoding="utf-8"))
    for number, agent in enumerate(data.get("agents", ())):
        if agent["model"] != "local:silent":
            agent["model"] = f"local:test?words=5&seed={number}"
    if "models" in data:
        data["models"] = {model: f"local:test?words=5&seed={n}" for n, model in enumerate(data["models"])}
    return data | {"repetitions": 1, "max_turns": 2, "retries": QUICK, "durability": "none", "max_parallel": 4}


@pytest.mark.parametrize("name", sorted(TEMPLATES - {"branch-study"}))
async def test_a_template_runs(name: str, tmp_path: Path) -> None:
    """Every conversation of it is held to its end, with other models in the seats."""
    spec = resolve(check(_small(name)), PROVIDERS).spec
    root = OutputRoot(tmp_path)
    folder = create_experiment(root, spec)
    pool = ProviderPool()
    try:
        outcomes = await Runner(root, folder, pool).run()
    finally:
        await pool.aclose()
    assert len(outcomes) == len(expand(spec))
    assert {outcome.status for outcome in outcomes.values()} == {Status.COMPLETED}


# Commands


def test_init_writes_what_spec_check_takes(pidgin: Pidgin) -> None:
    """Every template lands where it was wanted, and is a right spec there."""
    said = pidgin("init", "--list")
    assert [line.split()[0] for line in said.out.splitlines()] == sorted(TEMPLATES)
    for name in sorted(TEMPLATES):
        assert pidgin("init", name).status == 0
        assert Path(f"{name}.yaml").read_text() == template(name).read_text()
    said = pidgin("spec", "check", *sorted(f"{name}.yaml" for name in TEMPLATES))
    assert said.status == 0
    assert "attractor-grid.yaml: 30 arms, 120 conversations, 7,200 calls\n" in said.out
    assert "self-talk.yaml: 1 arm, 200 conversations, 12,000 calls\n" in said.out


def test_init_never_loses_what_is_there(pidgin: Pidgin) -> None:
    """Without a name it is the first experiment; a file stays as it is unless --force is given."""
    assert pidgin("init", "--to", "mine.yaml").status == 0
    assert Path("mine.yaml").read_text() == template("first-experiment").read_text()
    Path("mine.yaml").write_text("precious")
    assert "mine.yaml is there already" in error_of(pidgin("init", "--to", "mine.yaml"))
    assert Path("mine.yaml").read_text() == "precious"
    assert pidgin("init", "backrooms", "--to", "mine.yaml", "--force").status == 0
    assert Path("mine.yaml").read_text() == template("backrooms").read_text()
    Path("folder").mkdir()
    assert pidgin("init", "backrooms", "--to", "folder").status == 0
    assert Path("folder/backrooms.yaml").exists()
    assert "Did you mean backrooms?" in error_of(pidgin("init", "backroms"))
    assert "No such file" in error_of(pidgin("init", "--to", "nowhere/x.yaml"))


def test_spec_check_tells_all_faults_of_all_files(pidgin: Pidgin) -> None:
    """Right files are counted, wrong ones told, each line with its place; the status is that of wrong use."""
    Path("right.yaml").write_text(
        "agent_a: test\nagent_b: test\nmax_turns: 3\nawareness: {name: x, prompts: {9: late}}\n"
    )
    Path("wrong.yaml").write_text("agent_a: tset\nagent_b: test\nmax_turns: 0\n")
    said = pidgin("spec", "check", "right.yaml", "wrong.yaml", "missing.yaml")
    assert said.status == 2
    assert said.out == "right.yaml: 1 arm, 1 conversation, 6 calls\n"
    lines = said.err.splitlines()
    assert lines[0] == "right.yaml: awareness x: text at turn 9 is never reached: the conversation has 3 turns"
    assert lines[1].startswith("wrong.yaml, line 1: agent_a: unknown model 'tset'")
    assert lines[2].startswith("wrong.yaml, line 3: max_turns: ")
    assert lines[3] == "missing.yaml: No such file or directory"
    assert len(lines) == 4


def test_spec_schema_is_json(pidgin: Pidgin) -> None:
    """What the command prints is the schema, and nothing else."""
    said = pidgin("spec", "schema")
    assert (said.status, said.err) == (0, "")
    assert json.loads(said.out) == json.loads(json.dumps(json_schema()))
