"""Specs: what is wrong with one, what it stands for, and that it comes back from its file as it was."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import SpecError
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.awareness import PRESETS, Seat, load_awareness, preset_text, system_prompt
from pidgin_cli.spec.catalogue import aliases, context_window, resolve_model
from pidgin_cli.spec.conversation import ConversationSpec, derive_seed, spec_hash
from pidgin_cli.spec.experiment import check, expand, experiment_hash, load, resolve, to_yaml

TWO = [{"id": "a", "model": "local:test"}, {"id": "b", "model": "local:silent"}]
SEATS = [Seat("a", "openai:gpt-x", "gpt-x"), Seat("b", "anthropic:claude-x", "claude-x"), Seat("c", "local:test", "t")]


def faults(text: str, tmp_path: Path) -> list[str]:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as error:
        load(file)
    assert error.value.exit_code == 2
    return [line.removeprefix(str(file)) for line in str(error.value).splitlines()]


# Faults


def test_all_faults_are_named_at_once_with_key_and_line(tmp_path: Path) -> None:
    """Every wrong key and value of a file is one line that names its place and what was probably meant."""
    text = """\
agents:
  - id: a
    model: test
    temprature: 0.5
  - id: b
    model: test
    temperature: 3
maxturns: 5
max_turns: 0
context:
  policy: window
  limt_tokens: 5
"""
    said = faults(text, tmp_path)
    assert said[0] == ", line 4: unknown key 'agents.0.temprature'. Did you mean temperature?"
    assert said[1].startswith(", line 7: agents.1.temperature: ")
    assert ", line 8: unknown key 'maxturns'. Did you mean max_turns?" in said
    assert any(line.startswith(", line 9: max_turns: ") for line in said)
    assert ", line 12: unknown key 'context.limt_tokens'. Did you mean limit_tokens?" in said
    assert len(said) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a spec"),
        ("just words", "is not a spec"),
        ("- a\n- b\n", "is not a spec"),
        ("agents: [", "is not valid YAML"),
        ("agents: !!python/object:os.system {}\n", "is not valid YAML"),
        ("agents: []\n", "line 1: agents: "),
        ("agents:\n  - {id: a, model: test}\n", "line 1: agents: "),
        ("agents:\n  - {id: a, model: test}\n  - {id: a, model: test}\n", "two agents have the id a"),
        ("agents:\n  - {id: both, model: test}\n  - {id: a, model: test}\n", "both cannot be the id of an agent"),
        ("agents:\n  - {id: A_1, model: test}\n  - {id: a, model: test}\n", "line 2: agents.0.id: "),
        ("agents:\n  - {id: a}\n  - {id: b, model: test}\n", "line 2: agents.0.model: Field required"),
        (
            "first: c\nagents:\n  - {id: a, model: test}\n  - {id: b, model: test}\n",
            ": first: no agent 'c'; there are a, b",
        ),
        ("1: x\nagents:\n  - {id: a, model: test}\n  - {id: b, model: test}\n", "line 1: "),
        (
            "context: windw\nagents:\n  - {id: a, model: test}\n  - {id: b, model: test}\n",
            "line 1: context: Input should",
        ),
        ("prompt: 5\nagents:\n  - {id: a, model: test}\n  - {id: b, model: test}\n", "line 1: prompt: "),
        ("x: &x [*x]\nagents: 1\n", "unknown key 'x'"),
    ],
)
def test_bad_files_are_told_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    """Whatever stands in a file, the answer is one line for each fault, never a traceback."""
    lines = faults(text, tmp_path)
    assert any(said in line for line in lines), lines
    assert not any(": :" in line or "  " in line for line in lines), lines


def test_one_wrong_word_is_one_fault(tmp_path: Path) -> None:
    """Where a key takes a word or a mapping, only the form that was used is complained about."""
    agents = "agents:\n  - {id: a, model: test}\n  - {id: b, model: test}\n"
    assert len(faults(f"{agents}context: windw\n", tmp_path)) == 1
    assert faults(f"{agents}context: {{polcy: stop}}\n", tmp_path) == [
        ", line 4: unknown key 'context.polcy'. Did you mean policy?"
    ]
    said = faults("agents:\n  - {id: a, model: test, awareness: {nam: x}}\n  - {id: b, model: test}\n", tmp_path)
    assert said == [
        ", line 2: agents.0.awareness.name: Field required",
        ", line 2: unknown key 'agents.0.awareness.nam'. Did you mean name?",
    ]


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe:")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Any) -> None:
    """Missing, a folder, not text: one line with the path."""
    file = tmp_path / "spec.yaml"
    make(file)
    with pytest.raises(SpecError, match=r"spec\.yaml") as error:
        load(file)
    assert "\n" not in str(error.value)


def test_text_that_no_file_can_hold_is_refused() -> None:
    """Lone surrogates, as an undecodable argument brings them, are a fault of the spec and not of the run."""
    with pytest.raises(SpecError, match="prompt"):
        check({"agents": TWO, "prompt": "half \ud800"})


# What a spec stands for


def resolved(**keys: Any) -> Any:
    return resolve(check({"agents": TWO, "seed": 1} | keys), PROVIDERS).spec


def test_resolving_writes_everything_out(tmp_path: Path) -> None:
    """Aliases, names, presets and files are replaced by what they stand for: the result needs none of them."""
    file = tmp_path / "aware.yaml"
    file.write_text("name: probe\nbase: full\nprompts:\n  0: {a: zero, b: nothing}\n  3: {both: three}\n")
    agents = [
        {"id": "a", "model": "test", "awareness": str(file)},
        {"id": "b", "model": "test", "awareness": "basic", "think_budget": 100, "system_prompt": "Mine."},
    ]
    spec = resolve(check({"agents": agents, "context": "window"}), PROVIDERS).spec
    file.unlink()
    one, two = spec.agents
    assert [agent.model for agent in spec.agents] == ["local:test"] * 2
    assert [agent.name for agent in spec.agents] == ["test-a", "test-b"]
    assert one.system_prompt == system_prompt("firm", Seat("a", "local:test", "test-a"), _seats(spec))
    assert two.system_prompt == "Mine.", "a prompt of one's own stands above the preset"
    assert two.think is True
    assert isinstance(spec.seed, int)
    (conversation,) = expand(spec).values()
    assert [(i.turn, i.agent_id, i.text, i.source) for i in conversation.injections] == [
        (0, "a", "zero", "awareness:probe"),
        (3, "a", "three", "awareness:probe"),
    ]
    assert conversation.context.policy == "window"


def _seats(spec: Any) -> list[Seat]:
    return [Seat(agent.id, agent.model, agent.name) for agent in spec.agents]


def test_seeds_derive_from_the_spec_alone() -> None:
    """The plan is the same however often it is made; repetitions differ; an agent's own seed is derived as well."""
    spec = resolved(repetitions=50, agents=[{**TWO[0], "seed": 4}, TWO[1]], order="random", first="random")
    assert expand(spec) == expand(resolve(spec, PROVIDERS).spec)
    plan = list(expand(spec).values())
    assert len({conversation.seed for conversation in plan}) == 50
    assert len({conversation.agents[0].settings.seed for conversation in plan}) == 50
    assert {conversation.agents[1].settings.seed for conversation in plan} == {None}
    assert {conversation.first for conversation in plan} == {"a", "b"}
    other = expand(resolved(repetitions=50, seed=2)).values()
    assert not {c.seed for c in plan} & {c.seed for c in other}


def test_more_repetitions_keep_the_first_ones() -> None:
    """Extending an experiment changes nothing about what it already holds, nor its hash."""
    few, many = resolved(repetitions=3), resolved(repetitions=9)
    assert list(expand(many).items())[:3] == list(expand(few).items())
    assert experiment_hash(few) == experiment_hash(many)
    assert experiment_hash(few) != experiment_hash(resolved(repetitions=3, prompt="Other."))


def test_derived_seeds_are_the_same_everywhere() -> None:
    """A seed is a fixed function of its parts: the same in another process, and where it was first written down."""
    assert derive_seed(1, "", 1) == 3317857649483408
    code = "from pidgin_cli.spec.conversation import derive_seed; print(derive_seed(1, '', 1))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == derive_seed(1, "", 1)
    assert derive_seed("a", "b") != derive_seed("ab", "") != derive_seed("", "ab")
    assert 0 <= derive_seed("x", bits=31) < 2**31


def test_labels_are_used_where_speakers_must_be_told_apart() -> None:
    """Two agents need no label unless they chose names; three always have the same one."""
    three = [*TWO, {"id": "c", "model": "local:test?seed=2"}]
    assert only(resolved()).speaker_label is None
    assert only(resolved(choose_names=True)).speaker_label == "[{name}]: {text}"
    assert only(resolved(agents=three)).speaker_label == "[{name}]: {text}"


def only(spec: Any) -> ConversationSpec:
    (conversation,) = expand(spec).values()
    return conversation


def test_an_unset_seed_is_drawn_and_kept() -> None:
    """Two experiments differ; one experiment stays what it is."""
    one, two = (resolve(check({"agents": TWO}), PROVIDERS).spec for _ in range(2))
    assert one.seed != two.seed
    assert resolve(one, PROVIDERS).spec.seed == one.seed


# There and back


AWKWARD = [
    "",
    " ",
    "trailing \t ",
    " leading",
    "two\nlines",
    "ends with newline\n",
    "\n\n  deep\n\tmixed  \n",
    "windows\r\nlines\r",
    "yes",
    "null",
    "~",
    "0x1F",
    "1e3",
    "2024-01-01",
    "- item",
    "key: value",
    "# no comment",
    "'single' \"double\"",
    "{text} $name %s \\n",
    "👩🏽‍🚀 🇦🇶 é ",
    "nul \x00 and \x07 and \x1b[31m",
    "next line \x85 separators \u2028 \u2029",
    "bom \ufeff and \ufffe\uffff",
    "\U0010ffff",
    "---",
    "...",
    "!!python/object:os.system",
    "&anchor *alias",
    "x" * 500 + " " + "y" * 500,
    ("word " * 60).strip() + "  double  spaces  " + "end " * 40,
]


def round_trip(spec: Any, folder: Path) -> None:
    file = folder / "spec.yaml"
    file.write_bytes(to_yaml(spec).encode())
    back = load(file)
    assert expand(back) == expand(spec)
    again = resolve(back, PROVIDERS)
    assert again.notices == []
    assert expand(again.spec) == expand(spec)
    assert experiment_hash(back) == experiment_hash(again.spec) == experiment_hash(spec)
    assert to_yaml(back) == to_yaml(spec)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_come_back_from_the_file(tmp_path: Path, text: str) -> None:
    """What a person says to a model reaches it to the letter, also through `spec.yaml`."""
    awareness = {"name": "n", "base": "none", "prompts": {0: text, 7: text}}
    agents = [{**TWO[0], "system_prompt": text, "awareness": awareness}, {**TWO[1], "stop": [text]}]
    spec = resolved(prompt=text, agents=agents, context={"policy": "summarise", "pinned": [text]})
    round_trip(spec, tmp_path)
    assert only(load(tmp_path / "spec.yaml")).opening == text


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.lists(st.sampled_from([" ", "\n", "a", "é", "\U0001f600", "\x00", "\x85", "\u2028", "'", '"', ":", "#", "\\"])),
)
def test_any_text_comes_back_from_the_file(one: str, two: list[str]) -> None:
    """No text that Unicode allows is changed by YAML."""
    text = one + "".join(two) * 3
    data = yaml.safe_load(to_yaml(resolved(prompt=text)))
    assert check(data).prompt == text


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"name": "null", "repetitions": 3, "max_turns": 99, "prompt_tag": "", "order": "random", "first": "random"},
        {"context": "window", "concurrency": 2, "durability": "strict", "choose_names": True},
        {"context": {"policy": "summarise", "model": "test", "limit_tokens": 9}},
        {"timeouts": {"connect_s": None, "total_s": 5.5}, "retries": {"attempts": 2, "base_s": 0.25}},
        {
            "agents": [
                {**TWO[0], "temperature": 0.0, "top_p": 0.5, "max_tokens": 7, "seed": -3, "think_budget": 9},
                {**TWO[1], "temperature": 2, "effort": "high", "awareness": "research"},
                {"id": "z9", "model": "openrouter:x/y:free", "name": "Ж", "awareness": "backrooms"},
            ]
        },
    ],
)
def test_every_setting_comes_back_from_the_file(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Load, resolve and expand the written spec: the same conversations, the same hash, the same file."""
    spec = resolve(check({"agents": TWO, "seed": 1} | keys), [*PROVIDERS, "openrouter"]).spec
    file = tmp_path / "spec.yaml"
    file.write_text(to_yaml(spec), encoding="utf-8")
    back = load(file)
    assert back == spec
    assert expand(back) == expand(spec)
    assert resolve(back, [*PROVIDERS, "openrouter"]).spec == spec


def test_a_conversation_spec_survives_json() -> None:
    """The spec in a record is the spec: equal after encoding, with the same hash whatever the order of keys."""
    spec = only(resolved(context={"policy": "window"}, agents=[{**TWO[0], "stop_phrase": "bye"}, TWO[1]]))
    data = spec.to_json()
    assert ConversationSpec.from_json(data) == spec
    assert spec_hash(dict(reversed(data.items()))) == spec_hash(data)


# Awareness


def aware(tmp_path: Path, text: str, serves: str | None = None) -> Any:
    file = tmp_path / "aware.yaml"
    file.write_text(text)
    return load_awareness(str(file), SEATS, serves=serves)


def test_all_ways_to_address_an_agent(tmp_path: Path) -> None:
    """`both`, `all`, an id and `agent_` with an id; a text of one's own comes behind the one for all."""
    found, notices = aware(
        tmp_path, "prompts:\n  0: {both: w}\n  2: {all: x, agent_a: y}\n  3: {c: z}\n  4: {agent_b: q, all: v}\n"
    )
    assert found.prompts == {
        0: {"a": "w", "b": "w", "c": "w"},
        2: {"a": "x\n\ny", "b": "x", "c": "x"},
        3: {"c": "z"},
        4: {"b": "q\n\nv", "a": "v", "c": "v"},
    }
    assert (found.name, found.base, notices) == ("aware", "none", [])


def test_a_file_for_one_agent_serves_only_that_one(tmp_path: Path) -> None:
    """Entries for others are passed over with a notice; those for all count for the one."""
    found, notices = aware(tmp_path, "prompts:\n  1: {both: x, b: y}\n  2: {agent_c: z}\n", serves="a")
    assert found.prompts == {1: {"a": "x"}}
    assert len(notices) == 2
    assert "serves agent a only" in notices[0]
    assert "b at turn 1" in notices[0]
    assert "c at turn 2" in notices[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts:\n  1: {d: x}\n", "no agent 'd'; there are both, a, b, c"),
        ("prompts:\n  1: {agent_d: x}\n", "no agent 'agent_d'"),
        ("prompts:\n  -1: {a: x}\n", "turn -1 is below 0"),
        ("prompts:\n  soon: {a: x}\n", "line 2: prompts.soon"),
        ("prompts:\n  1: x\n", "line 2: prompts.1: "),
        ("prompts:\n  1: {a: 5}\n", "line 2: prompts.1.a: "),
        ("promts:\n  1: {a: x}\n", "line 1: unknown key 'promts'. Did you mean prompts?"),
        ("base: bsic\n", "base: no preset 'bsic'"),
        ("[1, 2]\n", "aware.yaml: Input should be"),
        ("false\n", "aware.yaml: Input should be"),
        ("prompts: [\n", "is not valid YAML"),
    ],
)
def test_a_bad_awareness_file_is_an_error_before_anything_starts(tmp_path: Path, text: str, said: str) -> None:
    """The fault is named with the file, and its line where there is one; a spec with that file fails as a whole."""
    with pytest.raises(SpecError) as error:
        aware(tmp_path, text)
    assert said in str(error.value)
    assert "aware.yaml" in str(error.value)
    agents = [{**TWO[0], "awareness": str(tmp_path / "aware.yaml")}, TWO[1]]
    with pytest.raises(SpecError):
        resolve(check({"agents": agents}), PROVIDERS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("missing.yaml", "awareness file missing.yaml: No such file"),
        ("bsaic", "no awareness preset 'bsaic'; did you mean basic? Presets: none, basic"),
        ("zzz", "no awareness preset 'zzz'. Presets: none, basic"),
    ],
)
def test_an_unknown_preset_or_file_is_named(value: str, said: str) -> None:
    """With the nearest preset, or all of them."""
    with pytest.raises(SpecError) as error:
        load_awareness(value, SEATS)
    assert said in str(error.value)


def test_presets_are_what_their_files_say() -> None:
    """Each preset is a text file; `none` says nothing; `full` is `firm`; every field in them is filled in."""
    for preset in PRESETS:
        for seats in (SEATS, SEATS[:2]):
            text = system_prompt(preset, seats[0], seats)
            assert (text is None) == (preset == "none")
            assert text is None or "$" not in text
    assert load_awareness("full", SEATS)[0][:2] == ("full", "firm")
    assert "$" in preset_text("research")
    research = system_prompt("research", SEATS[0], SEATS) or ""
    assert "gpt-x" in research
    assert "claude-x and test" in research


# Models


def test_ids_and_aliases_resolve() -> None:
    """An alias stands for its id; any model of a known provider is taken as it is."""
    for alias, model in aliases().items():
        if model.partition(":")[0] in PROVIDERS:
            assert resolve_model(alias, PROVIDERS) == model
    assert resolve_model(" openai:whatever-9 ", PROVIDERS) == "openai:whatever-9"
    assert resolve_model("ollama:qwen3:0.6b", PROVIDERS) == "ollama:qwen3:0.6b"
    assert resolve_model("local:test?fail=auth@1", PROVIDERS) == "local:test?fail=auth@1"


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("cluade", "claude"),
        ("opnai:gpt-5", "openai:"),
        ("local:", "local:test"),
        ("openai:", "openai:"),
        ("tst", "test"),
        ("", ""),
        (":", ""),
        ("gpt6", "gpt"),
    ],
)
def test_unknown_models_show_the_nearest(wanted: str, near: str) -> None:
    """A wrong id is an error of the command that shows what was probably meant."""
    with pytest.raises(SpecError) as error:
        resolve_model(wanted, PROVIDERS)
    assert near in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_windows_of_local_models_are_unknown() -> None:
    """What nobody knows is None, never a guess."""
    assert context_window("local:test") is None
    assert context_window("openai:nobody-knows-it") is None


@pytest.mark.parametrize("keys", [{"effort": "high"}, {"think_budget": 100}])
def test_no_thinking_leaves_no_room_for_effort(keys: dict[str, object]) -> None:
    """`think: false` with an effort or a budget is a contradiction, not something to drop."""
    with pytest.raises(SpecError, match="think: false"):
        check({"agents": [{"id": "a", "model": "test", "think": False, **keys}, {"id": "b", "model": "test"}]})


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """No text is lost to a second one of the same key, whether in a spec or an awareness file."""
    said = faults(
        "agents:\n  - {id: a, model: test}\n  - id: b\n    model: test\n    id: c\nprompt: x\nprompt: y\n", tmp_path
    )
    assert said == [
        ", line 5: the key 'agents.1.id' stands in line 3 already",
        ", line 7: the key 'prompt' stands in line 6 already",
    ]
    with pytest.raises(SpecError, match=r"line 3: the key 'prompts\.1' stands in line 2 already"):
        aware(tmp_path, 'prompts:\n  1: {a: x}\n  "1": {a: y}\n')


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    """What an anchor brings in may be said again: that is what merging is for."""
    file = tmp_path / "spec.yaml"
    file.write_text("agents:\n  - &one {id: a, model: test}\n  - {<<: *one, id: b}\n")
    assert [(agent.id, agent.model) for agent in load(file).agents] == [("a", "test"), ("b", "test")]


def test_texts_that_are_never_reached_are_noticed(tmp_path: Path) -> None:
    """A text for a turn after the last one is told once, not passed over in silence."""
    file = tmp_path / "late.yaml"
    file.write_text("prompts:\n  2: {both: x}\n  99: {both: y}\n")
    agents = [agent | {"awareness": str(file)} for agent in TWO]
    found = resolve(check({"agents": agents, "max_turns": 2}), PROVIDERS)
    assert found.notices == [
        "awareness late: text at turn 99 is never reached: the conversation has 2 turns",
    ]


@pytest.mark.parametrize("keys", [{"pinned": ["It rains."]}, {"model": "test"}])
@pytest.mark.parametrize("policy", ["stop", "window"])
def test_only_summaries_have_facts_and_a_writer(policy: str, keys: dict[str, object]) -> None:
    """`pinned` and `model` of a context that is never summarised are refused, not dropped."""
    with pytest.raises(SpecError, match=f"{next(iter(keys))} is for policy: summarise; with {policy}"):
        check({"agents": TWO, "context": {"policy": policy, **keys}})
    check({"agents": TWO, "context": {"policy": "summarise", **keys}})


def test_an_unknown_provider_shows_the_providers() -> None:
    """Where no provider is near, no models are offered as near; a single near one is spoken of as one."""
    with pytest.raises(SpecError) as error:
        resolve_model("nobody:x", PROVIDERS)
    assert str(error.value) == f"unknown provider 'nobody' in 'nobody:x'; the providers are {', '.join(PROVIDERS)}"
    with pytest.raises(SpecError, match="the nearest is deepseek "):
        resolve_model("deepsek", ["local"])
