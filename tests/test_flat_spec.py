"""The flat form of a spec: the same conversations as the full form, and faults in the keys that a person wrote."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import SpecError
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.experiment import check, expand, json_schema, load, resolve
from pidgin_cli.spec.flat import AGENT_KEYS, SHARED_KEYS

VALUES: dict[str, Any] = {
    "name": "Ada",
    "system_prompt": "Be brief.",
    "awareness": "basic",
    "temperature": 0.0,
    "top_p": 0.5,
    "max_tokens": 7,
    "stop": ["x"],
    "seed": 4,
    "think": True,
    "think_budget": 9,
    "effort": "low",
    "extra": {"k": [1]},
    "thinking_visible": "own",
    "stop_phrase": "bye",
}


def test_every_key_of_an_agent_has_a_value_here() -> None:
    """A new key of an agent must be tried in both forms."""
    assert set(VALUES) == set(AGENT_KEYS)


@settings(deadline=None)
@given(
    st.sets(st.sampled_from(sorted(VALUES))),
    st.sets(st.sampled_from(sorted(VALUES))),
    st.sets(st.sampled_from(sorted(SHARED_KEYS))),
)
def test_both_forms_make_the_same_conversations(of_a: set[str], of_b: set[str], shared: set[str]) -> None:
    """Every key of an agent may be written with its id behind, or once for all; its own outranks the shared one."""
    flat: dict[str, Any] = {"agent_b": "silent", "agent_a": "test", "seed": 1}
    agents: list[dict[str, Any]] = [{"id": "a", "model": "test"}, {"id": "b", "model": "silent"}]
    for key in shared:
        flat[key] = VALUES[key]
        for agent in agents:
            agent[key] = VALUES[key]
    for agent, keys in zip(agents, (of_a, of_b), strict=True):
        for key in keys:
            flat[f"{key}_{agent['id']}"] = VALUES[key]
            agent[key] = VALUES[key]
    assert check(flat) == check({"agents": agents, "seed": 1})


def test_a_spec_that_people_already_have(tmp_path: Path) -> None:
    """All of the flat form's keys at once, from a file, with three agents in the order of their ids."""
    file = tmp_path / "old.yaml"
    file.write_text(
        """\
name: old friends
agent_c: "local:test?seed=3"
agent_a: test
agent_b: silent
temperature: 0.5
temperature_b: 1.5
awareness_a: firm
think_a: true
think_budget_a: 100
system_prompt_b: Listen.
name_c: Third
max_turns: 4
repetitions: 2
prompt: Hello.
prompt_tag: MODERATOR
max_parallel: 2
choose_names: true
allow_truncation: true
seed: 9
"""
    )
    spec = resolve(load(file, PROVIDERS), PROVIDERS).spec
    assert (spec.name, spec.repetitions, spec.max_parallel, spec.seed) == ("old friends", 2, 2, 9)
    one, _ = expand(spec).values()
    assert [agent.id for agent in one.agents] == ["a", "b", "c"]
    assert [agent.settings.temperature for agent in one.agents] == [0.5, 1.5, 0.5]
    assert [agent.name for agent in one.agents] == ["test-a", "silent", "Third"]
    assert [agent.settings.think_budget for agent in one.agents] == [100, None, None]
    assert one.agents[1].system_prompt == "Listen."
    assert (one.max_turns, one.opening, one.prompt_tag, one.choose_names) == (4, "Hello.", "MODERATOR", True)
    assert (one.context.policy, one.first) == ("window", "a")


AGENTS = "agents: [{id: a, model: test}, {id: b, model: test}]\n"
FLAT = "agent_a: test\nagent_b: test\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{FLAT}temperature_b: 3\n", ["line 3: temperature_b: Input should be less than or equal to 2"]),
        (f"{FLAT}temperature: 3\n", ["line 3: temperature: Input should be less than or equal to 2"]),
        (f"{FLAT}temprature_b: 1\n", ["line 3: unknown key 'temprature_b'. Did you mean temperature_b?"]),
        (f"{FLAT}allow_truncaton: true\n", ["line 3: unknown key 'allow_truncaton'. Did you mean allow_truncation?"]),
        (f"{FLAT}temperature_c: 1\n", ["line 3: temperature_c: there is no agent_c"]),
        (f"{FLAT}model_a: x\n", ["line 3: model_a: the model of an agent is agent_a"]),
        ("agent_a: test\n", ["line 1: agent_a: a conversation needs two agents; give agent_b as well"]),
        ("agent_a: test\nagent_b: 5\n", ["line 2: agent_b: Input should be a valid string"]),
        ("agent_a: test\nagent_b: cluade\n", ["line 2: agent_b: unknown model 'cluade'"]),
        (f"{FLAT}awareness: bsic\n", ["line 3: awareness: no awareness preset 'bsic'; did you mean basic?"]),
        (f"{FLAT}awareness_b:\n  name: x\n  base: y\n", ["line 3: awareness_b: base: no preset 'y'"]),
        ("prompt: hi\n", [": agents: Field required"]),
        (f"{AGENTS}agent_c: test\n", ["line 2: agent_c: agents gives the agents in full"]),
        (f"{AGENTS}temperature: 1\n", ["line 2: temperature: agents gives the agents in full"]),
        (f"{AGENTS}temperature_a: 1\n", ["line 2: temperature_a: agents gives the agents in full"]),
        (f"{FLAT}context: stop\nallow_truncation: true\n", ["line 4: allow_truncation: context says what happens"]),
        (f"{FLAT}allow_truncation: 5\n", ["line 3: allow_truncation: Input should be true or false"]),
        (
            f"{FLAT}models: [test, silent]\npairs: all\n",
            ["line 1: agent_a: pairs says which model", "line 2: agent_b: pairs says which model"],
        ),
        (f"{FLAT}convergence_profile: x\n", ["line 3: convergence_profile"]),
        (f"{FLAT}safety: {{}}\n", ["line 3: safety: is not there yet; leave it out for now"]),
        (f"{FLAT}tools: []\n", ["line 3: tools: is not there yet; leave it out for now"]),
    ],
)
def test_faults_name_what_was_written(tmp_path: Path, text: str, said: list[str]) -> None:
    """The key and the line of the person's own file, and nothing about a form that is not theirs."""
    lines = _faults(tmp_path, text)
    assert len(lines) == len(said), lines
    for line, wanted in zip(lines, said, strict=True):
        assert wanted in line


def _faults(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as error:
        load(file, PROVIDERS)
    return [line.removeprefix(str(file)) for line in str(error.value).splitlines()]


def test_truncation_may_be_declined() -> None:
    """`allow_truncation: false` is what happens anyway, and no fault."""
    spec = check({"agent_a": "test", "agent_b": "test", "allow_truncation": False})
    assert spec == check({"agent_a": "test", "agent_b": "test"})


def test_ten_mistakes_are_ten_lines(tmp_path: Path) -> None:
    """Every fault at once, of whatever kind, in the order of the file, whatever else is wrong beside it."""
    lines = _faults(
        tmp_path,
        """\
agent_a: cluade
agent_b: test
temperature_a: 3
temprature_b: 1
awareness_b: bsaic
convergence_threshold: 1.5
first: q
max_turns: 5
max_turns: 6
budget: {usd: 0, per_conversation: {tokns: 3}}
interventions:
  - {turn: 99, inject: hello, to: z}
  - {turn: 2, mute: [a, b]}
  - {when: {metric: tokens}, inject: q}
sweep:
  a.top_p: [0.2, 5]
  b.tmperature: [1]
openings: nowhere.txt
""",
    )
    wanted = [
        (1, "agent_a: unknown model 'cluade'"),
        (3, "temperature_a: "),
        (4, "unknown key 'temprature_b'. Did you mean temperature_b?"),
        (5, "awareness_b: no awareness preset 'bsaic'; did you mean basic?"),
        (6, "convergence_threshold: "),
        (7, "first: no agent 'q'"),
        (9, "the key 'max_turns' stands in line 8 already"),
        (10, "budget.usd: "),
        (10, "unknown key 'budget.per_conversation.tokns'. Did you mean tokens?"),
        (12, "interventions.0.turn: turn 99 never comes: max_turns is 6"),
        (12, "interventions.0.to: no agent 'z'"),
        (13, "interventions.1.mute: in turn 2 nobody would speak"),
        (14, "interventions.2.when: a metric needs above or below"),
        (16, "sweep.a.top_p.1: Input should be less than or equal to 1"),
        (17, "Did you mean b.temperature?"),
        (18, "openings nowhere.txt: No such file"),
    ]
    assert len(lines) == len(wanted), "\n".join(lines)
    for said, (line, words) in zip(lines, wanted, strict=True):
        assert said.startswith(f", line {line}: ")
        assert words in said


# JSON Schema


def _violations(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> list[str]:
    """What of `value` the schema refuses, by as much of JSON Schema as ours uses."""
    import re

    if "$ref" in schema:
        rest = {key: node for key, node in schema.items() if key != "$ref"}
        return _violations(root["$defs"][schema["$ref"].rpartition("/")[2]] | rest, value, root)
    found = []
    if "anyOf" in schema and all(_violations(one, value, root) for one in schema["anyOf"]):
        found.append(f"{value!r} is none of {schema['anyOf']}")
    if "oneOf" in schema and sum(not _violations(one, value, root) for one in schema["oneOf"]) != 1:
        found.append(f"{value!r} is not one of {schema['oneOf']}")
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    kinds |= {"object": dict, "array": (list, tuple)}
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{value!r} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += [f"{value} < minimum" for _ in "x" if value < schema.get("minimum", value)]
        found += [f"{value} > maximum" for _ in "x" if value > schema.get("maximum", value)]
    if isinstance(value, dict):
        found += [f"no {key}" for key in schema.get("required", ()) if key not in value]
        for key, inner in value.items():
            nodes = [schema["properties"][key]] if key in schema.get("properties", {}) else []
            nodes += [node for pattern, node in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
            more = schema.get("additionalProperties", True)
            if not nodes and more is False:
                found.append(f"unknown {key}")
            nodes += [more] if not nodes and isinstance(more, dict) else []
            found += [fault for node in nodes for fault in _violations(node, inner, root)]
    if isinstance(value, list | tuple):
        found += [f for one in value for f in _violations(schema.get("items", {}), one, root)]
    return found


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (AGENTS, True),
        (FLAT, True),
        (f"{FLAT}think_budget: 5\nthink_budget_a: 6\nthink: true\nstop_phrase: x\n", True),
        (f"{FLAT}agent_c: test\ntemperature_c: 1\nthink_budget_c: 8\n", True),
        ("models: [test]\npairs: self\ntemperature: 0.5\n", True),
        (f"{FLAT}sweep: {{a.temperature: [1], max_turns: {{x: 2}}}}\nopenings: {{a: b}}\n", True),
        (f"{FLAT}budget: {{usd: 5, wall_time: 2h}}\nmax_parallel: auto\nnotify_command: say hi\n", True),
        (f"{FLAT}interventions: [{{turn: 2, swap_system_prompt: null, agent: a}}]\n", True),
        (f"{FLAT}temprature_b: 1\n", False),
        (f"{FLAT}temperature_c: 3\n", False),
        (f"{FLAT}think_budget: much\n", False),
        (f"{FLAT}max_parallel: 0\n", False),
        ("prompt: x\n", False),
        (f"{FLAT}interventions: [{{inject: x}}]\n", False),
        (f"{FLAT}interventions: [{{when: {{metric: tokens, below: 3}}, times: 2, mute: a}}]\n", True),
        (f"{FLAT}interventions: [{{when: {{detector: cycle, for_turns: 2}}, inject: x}}]\n", True),
        (f"{FLAT}interventions: [{{when: {{detector: cycle, state: echo}}, inject: x}}]\n", False),
        (f"{FLAT}interventions: [{{turn: 2, when: {{state: echo}}, inject: x}}]\n", False),
    ],
)
def test_the_schema_takes_what_loading_takes(text: str, *, right: bool) -> None:
    """Both forms are right by the published JSON Schema; a wrong key or value is not."""
    schema, data = json_schema(), yaml.safe_load(text)
    assert (_violations(schema, data, schema) == []) is right
    if right:
        check(data)
    else:
        with pytest.raises(SpecError):
            check(data)


def test_what_agents_and_pairs_have_wrong_hides_nothing_else(tmp_path: Path) -> None:
    """An id that stands twice and pairs of no kind are told beside the faults of keys that depend on them."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "agents: [{id: a}, {id: a}]\npairs: sideways\nmodels: [local:test, local:silent]\nmax_turns: 3\n"
        "sweep: {b.temperatur: [1, 2]}\ninterventions: [{turn: 900, inject: x, to: [zed]}]\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError) as caught:
        load(path)
    assert {line.removeprefix(f"{path}, ") for line in str(caught.value).splitlines()} == {
        "line 1: agents: two agents have the id a",
        "line 2: pairs: Input should be 'all', 'unordered', 'ordered' or 'self'",
        "line 5: sweep.b.temperatur: nothing of this name can be swept. Did you mean b.temperature?",
        "line 6: interventions.0.turn: turn 900 never comes: max_turns is 3",
        "line 6: interventions.0.to: no agent 'zed'; there are a, b.",
    }
