"""Sweeps, pairs and openings: which conversations a spec makes, in which order, and that its design is sound."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import SpecError
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.conversation import ConversationSpec, Intervention, Origin
from pidgin_cli.spec.experiment import check, experiment_hash, load, models_of, resolve, to_yaml
from pidgin_cli.spec.plan import calls, expand, plan_order

TWO = [{"id": "a", "model": "local:test"}, {"id": "b", "model": "local:test?seed=2"}]
MODELS = ["local:test", "local:silent", "local:test?words=9"]
Plan = dict[str, ConversationSpec]


def resolved(**keys: Any) -> Any:
    if "pairs" not in keys:
        keys = {"agents": TWO} | keys
    return resolve(check({"seed": 1} | keys, providers=PROVIDERS), PROVIDERS).spec


def plan(**keys: Any) -> Plan:
    return expand(resolved(**keys), "e")


def faults(**keys: Any) -> list[str]:
    with pytest.raises(SpecError) as error:
        resolved(**keys)
    return [line.removeprefix("spec: ") for line in str(error.value).splitlines()]


def arms_of(conversations: Plan) -> list[str]:
    return sorted({conversation.arm for conversation in conversations.values()})


# Arms


def test_a_sweep_is_the_product_and_each_arm_is_set_as_its_label_says() -> None:
    """Every combination once per repetition; what the label says is what the agents are given."""
    made = plan(sweep={"a.temperature": [0.2, 1, None], "all.max_tokens": [5, 6], "max_turns": [2]}, repetitions=2)
    assert len(made) == 12
    for conversation in made.values():
        a, b = (agent.settings for agent in conversation.agents)
        temperature = "null" if a.temperature is None else f"{a.temperature:g}"
        assert conversation.arm == f"a.temperature={temperature}, all.max_tokens={a.max_tokens}, max_turns=2"
        assert b.temperature is None
        assert a.max_tokens == b.max_tokens
        assert conversation.max_turns == 2
        assert conversation.variables == {
            "a.temperature": a.temperature,
            "all.max_tokens": a.max_tokens,
            "max_turns": 2,
        }
    assert len({conversation.seed for conversation in made.values()}) == 12


def test_zip_walks_its_lists_together() -> None:
    """The first with the first, the second with the second, and all of that times the sweep."""
    made = plan(zip={"a.temperature": [0, 1], "b.temperature": [1, 0.5]}, sweep={"max_turns": [1, 2]})
    found = {tuple(agent.settings.temperature for agent in c.agents) for c in made.values()}
    assert found == {(0, 1), (1, 0.5)}
    assert len(arms_of(made)) == 4
    assert "max_turns=1, a.temperature=0, b.temperature=1" in arms_of(made)


def test_awareness_and_names_follow_the_models_of_the_arm(tmp_path: Path) -> None:
    """A preset that speaks of the models speaks of those of each arm, and a file's texts reach whom they are for."""
    file = tmp_path / "probe.yaml"
    file.write_text("base: research\nplacement: system\nprompts:\n  2: {a: to a, agent_b: to b, both: to both}\n")
    spec = resolved(sweep={"all.awareness": ["none", str(file)], "b.model": ["test", "silent"]})
    file.unlink()
    made = expand(spec)
    assert arms_of(made) == sorted(
        f"all.awareness={one}, b.model={model}" for one in ("none", "probe") for model in ("test", "silent")
    )
    for conversation in made.values():
        a, b = conversation.agents
        assert b.model == ("local:test" if "b.model=test" in conversation.arm else "local:silent")
        assert [agent.name for agent in (a, b)] == (
            ["test-a", "test-b"] if b.model == "local:test" else ["test", "silent"]
        )
        if "none" in conversation.arm:
            assert (a.system_prompt, conversation.injections) == (None, ())
        else:
            assert f"talking with {b.model.partition(':')[2]}" in (a.system_prompt or "")
            texts = {one.agent_id: (one.text, one.placement) for one in conversation.injections}
            assert texts == {"a": ("to a\n\nto both", "system"), "b": ("to b\n\nto both", "system")}


LONG = "Let us talk about the weather, the tides and the moon, each for as long as it takes."


def test_long_values_get_short_labels_of_their_own() -> None:
    """Prompts that begin alike are told apart; a label stays what it is in the written spec."""
    spec = resolved(sweep={"prompt": [LONG, f"{LONG} Go.", "Hi."]})
    assert arms_of(expand(spec)) == sorted(
        ["prompt=Hi.", "prompt=Let us talk about the we…", "prompt=Let us talk about the we…~2"]
    )
    named = resolved(sweep={"prompt": {"short": "Hi.", "long": LONG}})
    assert {c.arm: c.opening for c in expand(named).values()} == {"prompt=short": "Hi.", "prompt=long": LONG}


def test_openings_come_from_lists_mappings_files_and_folders(tmp_path: Path) -> None:
    """Each is an arm with its label; the resolved spec holds the texts."""
    (tmp_path / "many.md").write_text("One.\nStill one.\n---\nTwo.\n---\n")
    (tmp_path / "named.yaml").write_text("x: Hello.\n3: Bye.\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "calm.txt").write_text("Breathe.\n")
    (folder / "loud.md").write_text("SHOUT")
    (folder / "notes.pdf").write_text("not an opening")
    for written, wanted in [
        (["p", "q"], {"1": "p", "2": "q"}),
        ({"u": "p", "v": "q"}, {"u": "p", "v": "q"}),
        (str(tmp_path / "many.md"), {"1": "One.\nStill one.", "2": "Two."}),
        (str(tmp_path / "named.yaml"), {"x": "Hello.", "3": "Bye."}),
        (str(folder), {"calm": "Breathe.", "loud": "SHOUT"}),
    ]:
        spec = resolved(openings=written)
        assert spec.openings == wanted
        assert {c.variables["opening"]: c.opening for c in expand(spec).values()} == wanted
        assert {c.arm for c in expand(spec).values()} == {f"opening={label}" for label in wanted}
    only = expand(resolved(openings=["alone"]))
    assert [(c.arm, c.opening) for c in only.values()] == [("", "alone")]


def test_files_lie_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a spec names is looked for beside it, whatever folder the person is in."""
    (tmp_path / "o.txt").write_text("From beside.")
    (tmp_path / "w.yaml").write_text("prompts: {1: {both: hm}}\n")
    (tmp_path / "s.yaml").write_text(
        "agent_a: test\nagent_b: test\nopenings: o.txt\nsweep: {all.awareness: [none, w.yaml]}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = expand(resolve(load(tmp_path / "s.yaml", PROVIDERS), PROVIDERS).spec)
    assert {c.opening for c in made.values()} == {"From beside."}
    assert arms_of(made) == ["all.awareness=none", "all.awareness=w"]


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ("unordered", {"x+y", "x+z", "y+z"}),
        ("ordered", {"x+y", "x+z", "y+z"}),
        ("self", {"x+x", "y+y", "z+z"}),
        ("all", {"x+y", "x+z", "y+z", "x+x", "y+y", "z+z"}),
    ],
)
def test_pairs_seat_every_model(pairs: str, wanted: set[str]) -> None:
    """The arms are the pairs; who sits where is no part of them, and over two repetitions both ways are equal."""
    made = plan(models=dict(zip("xyz", MODELS, strict=True)), pairs=pairs, repetitions=2, temperature_a=0.5)
    assert set(arms_of(made)) == {f"pair={pair}" for pair in wanted}
    seatings = Counter((c.arm, c.seating) for c in made.values())
    for pair in wanted:
        one, two = pair.split("+")
        if one == two:
            assert seatings[f"pair={pair}", f"{one},{one}"] == 2
        else:
            each = 2 if pairs == "ordered" else 1
            assert seatings[f"pair={pair}", f"{one},{two}"] == seatings[f"pair={pair}", f"{two},{one}"] == each
    for conversation in made.values():
        models = dict(zip("xyz", MODELS, strict=True))
        assert [agent.model for agent in conversation.agents] == [models[m] for m in conversation.seating.split(",")]
        assert [agent.settings.temperature for agent in conversation.agents] == [0.5, None]
        assert conversation.first == "a"
    assert len({c.seed for c in made.values()}) == len(made)


def test_exclude_leaves_arms_out() -> None:
    """An arm that meets all of one mapping is gone; pairs are named either way round, lists mean any of them."""
    keys: dict[str, Any] = {
        "models": dict(zip("xyz", MODELS, strict=True)),
        "pairs": "unordered",
        "openings": {"u": "U", "v": "V"},
        "sweep": {"a.temperature": [0.2, 0.8]},
    }
    assert len(arms_of(plan(**keys))) == 12
    left = arms_of(plan(**keys, exclude=[{"pair": "y+x"}, {"opening": "v", "a.temperature": [0.2, 0.8]}]))
    assert left == sorted(f"a.temperature={t}, pair={pair}, opening=u" for t in (0.2, 0.8) for pair in ("x+z", "y+z"))


# Design


@st.composite
def designs(draw: st.DrawFn) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**31)),
        "repetitions": draw(st.integers(1, 6)),
        "first": draw(st.sampled_from([None, "balanced", "random"])),
    }
    if draw(st.booleans()):
        keys["sweep"] = {"a.temperature": draw(st.lists(st.sampled_from([0, 0.5, 1.5]), min_size=1, unique=True))}
    if draw(st.booleans()):
        keys["openings"] = draw(st.lists(st.sampled_from(["p", "q", "r"]), min_size=1, unique=True))
    if draw(st.booleans()):
        keys["pairs"] = draw(st.sampled_from(["all", "unordered", "ordered", "self"]))
        keys["models"] = MODELS
    if draw(st.booleans()):
        keys["interventions"] = [{"turn": 2, "inject": "x"}]
        keys["twins"] = draw(st.booleans())
    return keys


@settings(deadline=None, max_examples=60)
@given(designs(), st.integers(1, 5))
def test_the_design_of_any_spec_is_sound(keys: dict[str, Any], more: int) -> None:
    """Every beginning of the order is balanced, seats and openers are, and more repetitions only append."""
    made = plan(**keys)
    arms, in_order = arms_of(made), [c.arm for c in made.values()]
    assert list(made) == [f"e-{n}" for n in range(1, len(made) + 1)]
    counted = Counter(dict.fromkeys(arms, 0))
    for arm in in_order:
        counted[arm] += 1
        assert max(counted.values()) - min(counted.values()) <= 1
    assert len(set(counted.values())) == 1
    longer = plan(**keys | {"repetitions": keys["repetitions"] + more})
    assert list(longer.items())[: len(made)] == list(made.items())
    assert plan(**keys) == made
    assert experiment_hash(resolved(**keys)) == experiment_hash(resolved(**keys | {"repetitions": 99}))
    for shuffle in (1, 2):
        order = plan_order(made, shuffle_seed=shuffle)
        assert sorted(order) == sorted(made)
        counted = Counter(dict.fromkeys(arms, 0))
        for name in order:
            counted[made[name].arm] += 1
            assert max(counted.values()) - min(counted.values()) <= 1
    for (name, parent), (_, twin) in itertools.pairwise(made.items()):
        if "twin" in twin.variables:
            assert twin.origin == Origin(name, 1)
            assert (twin.seed, twin.first, twin.seating, twin.interventions) == (
                parent.seed,
                parent.first,
                parent.seating,
                (),
            )
            assert twin.arm == (f"{parent.arm}, twin" if parent.arm else "twin")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["unordered", "ordered", "self", "all"]))
def test_seats_and_openers_are_counterbalanced(seed: int, rounds: int, pairs: str) -> None:
    """Over four repetitions each model opens equally often from each seat; agents open equally often over any two."""
    keys: dict[str, Any] = {"seed": seed, "models": MODELS, "pairs": pairs, "first": "balanced"}
    for repetitions in (2 * rounds, 4 * rounds):
        made = plan(**keys, repetitions=repetitions)
        for arm in arms_of(made):
            those = [c for c in made.values() if c.arm == arm]
            openers = Counter(c.first for c in those)
            assert openers["a"] == openers["b"]
            seatings = Counter(c.seating for c in those)
            assert len(set(seatings.values())) == 1
            if repetitions % 4 == 0:
                models = Counter(c.agent(c.first).model for c in those)
                assert len(set(models.values())) == 1
                assert len(set(Counter((c.first, c.seating) for c in those).values())) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 7), st.sampled_from(["unordered", "all"]))
def test_many_openings_once_are_counterbalanced_too(seed: int, repetitions: int, openings: int, pairs: str) -> None:
    """Over the arms of a pair, each way to sit and each model to open comes equally often, give or take one."""
    keys: dict[str, Any] = {"seed": seed, "models": MODELS, "pairs": pairs, "first": "balanced"}
    made = plan(repetitions=repetitions, openings=[f"Opening {number}." for number in range(openings)], **keys)
    for repetition in range(1, repetitions + 1):
        ways: dict[frozenset[str], Counter[tuple[str, str]]] = {}
        for conversation in made.values():
            models = [agent.model for agent in conversation.agents]
            if conversation.repetition == repetition and len(set(models)) == 2:
                opener = conversation.agent(conversation.first).model
                ways.setdefault(frozenset(models), Counter())[models[0], opener] += 1
        for pair, counted in ways.items():
            every = [counted[first, opener] for first in sorted(pair) for opener in sorted(pair)]
            assert max(every) - min(every) <= 1
            for place in range(2):
                one, other = (sum(n for way, n in counted.items() if way[place] == model) for model in pair)
                assert abs(one - other) <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_openers_take_turns(seed: int, rounds: int) -> None:
    """`first: balanced` with three agents: each opens once in every three repetitions of an arm."""
    agents = [*TWO, {"id": "c", "model": "local:silent"}]
    made = plan(seed=seed, agents=agents, first="balanced", repetitions=3 * rounds, sweep={"max_turns": [1, 2]})
    for arm in arms_of(made):
        openers = [c.first for c in made.values() if c.arm == arm]
        assert all(sorted(openers[n : n + 3]) == ["a", "b", "c"] for n in range(0, len(openers), 3))


def test_seeds_shuffle_and_draw() -> None:
    """Another seed is another order and other draws, with the same arms."""
    keys: dict[str, Any] = {"sweep": {"max_turns": list(range(1, 9))}, "repetitions": 3}
    one, two = plan(**keys, seed=1), plan(**keys, seed=2)
    assert [c.arm for c in one.values()] != [c.arm for c in two.values()]
    assert arms_of(one) == arms_of(two)
    blocks = [[c.arm for c in list(one.values())[n : n + 8]] for n in (0, 8, 16)]
    assert len({tuple(block) for block in blocks}) == 3, "each repetition has an order of its own"


@settings(deadline=None, max_examples=40)
@given(designs())
def test_any_design_comes_back_from_its_file(keys: dict[str, Any]) -> None:
    """The written spec makes the same conversations, has the same hash, and resolves to itself."""
    spec = resolved(**keys)
    import yaml

    back = check(yaml.safe_load(to_yaml(spec)), providers=PROVIDERS)
    assert expand(back, "e") == expand(spec, "e")
    assert experiment_hash(back) == experiment_hash(spec)
    again = resolve(back, PROVIDERS)
    assert to_yaml(again.spec) == to_yaml(spec)
    assert again.notices == []


def test_the_order_of_a_sweep_is_part_of_the_experiment() -> None:
    """Labels follow the order in which a sweep is written, so that another order is another experiment."""
    one = resolved(sweep={"a.temperature": [0, 1], "max_turns": [1, 2]})
    two = resolved(sweep={"max_turns": [1, 2], "a.temperature": [0, 1]})
    assert experiment_hash(one) != experiment_hash(two)


@pytest.mark.parametrize(
    "keys",
    [{"budget": {"usd": 3}}, {"max_parallel": "auto"}, {"notify": True}, {"notify_command": "say it"}, {"name": "n"}],
)
def test_how_it_runs_is_no_part_of_what_it_is(keys: dict[str, Any]) -> None:
    """Budget, parallelism, notification and name may change between two runs of one experiment."""
    assert experiment_hash(resolved(**keys)) == experiment_hash(resolved())
    assert expand(resolved(**keys)) == expand(resolved())


def test_every_model_is_listed_once() -> None:
    """Whoever checks keys and prices hears of models in seats, sweeps, pairs, swaps and summaries."""
    spec = resolved(
        agents=[{"id": "a", "model": "claude"}, TWO[1]],
        sweep={"a.model": ["silent", "test"]},
        interventions=[{"turn": 2, "swap_model": "local:test?words=3", "agent": "a"}],
        context={"policy": "summarise", "model": "local:test?words=4"},
    )
    assert set(models_of(spec)) == {
        "local:silent",
        "local:test",
        "local:test?seed=2",
        "local:test?words=3",
        "local:test?words=4",
    }
    assert models_of(resolved(models=MODELS, pairs="all")) == MODELS


# What runs of it


def test_filters_choose_among_the_arms() -> None:
    """Values of one key are alternatives, keys add up; ids and order stay; a limit takes the first."""
    made = plan(
        models=dict(zip("xyz", MODELS, strict=True)),
        pairs="unordered",
        sweep={"a.temperature": [0.2, 0.8]},
        repetitions=3,
        interventions=[{"turn": 2, "inject": "x"}],
        twins=True,
    )
    found = plan_order(made, filters=["a.temperature=0.2", "pair=x+y", "pair=y+z", "twin=false", "repetition=2"])
    assert found == [
        name
        for name, c in made.items()
        if c.variables["a.temperature"] == 0.2
        and c.variables["pair"] != "x+z"
        and "twin" not in c.variables
        and c.repetition == 2
    ]
    assert len(found) == 2
    assert plan_order(made, limit=5) == list(made)[:5]
    assert (
        plan_order(made, filters=["arm=a.temperature=0.8, pair=x+z, twin"], limit=2)
        == [name for name, c in made.items() if c.arm == "a.temperature=0.8, pair=x+z, twin"][:2]
    )
    assert plan_order(made, shuffle_seed=3) != plan_order(made, shuffle_seed=4)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["a.temprature=1"], "Did you mean a.temperature?"),
        (["a.temperature=3"], "there are 0, 1"),
        (["nonsense"], "is not KEY=VALUE"),
        (["a.temperature=0", "arm=a.temperature=1"], "no conversation has"),
    ],
)
def test_a_filter_that_nothing_meets_is_refused(wanted: list[str], said: str) -> None:
    """With what there is instead."""
    with pytest.raises(SpecError) as error:
        plan_order(plan(sweep={"a.temperature": [0, 1]}), filters=wanted)
    assert said in str(error.value)


# Interventions, twins and branches


def test_interventions_become_what_the_conversation_obeys() -> None:
    """All five kinds, in the order of their turns, with models resolved and agents by id."""
    (made,) = plan(
        interventions=[
            {"turn": 5, "swap_system_prompt": None, "agent": "b"},
            {"turn": 2, "inject": "Hm.", "placement": "system"},
            {"turn": 3, "edit": "I never said so.", "agent": "b"},
            {"turn": 3, "mute": "a", "turns": 2},
            {"turn": 4, "swap_model": "silent", "agent": "a"},
            {"turn": 6, "inject": "Psst.", "to": ["b"]},
        ]
    ).values()
    assert made.interventions == (
        Intervention(2, "inject", ("a", "b"), "Hm.", placement="system"),
        Intervention(3, "edit", ("b",), "I never said so."),
        Intervention(3, "mute", ("a",), turns=2),
        Intervention(4, "swap_model", ("a",), model="local:silent"),
        Intervention(5, "swap_system_prompt", ("b",)),
        Intervention(6, "inject", ("b",), "Psst."),
    )
    assert calls(made) == 10 * 2 - 2


def test_a_branch_goes_on_from_a_recorded_conversation() -> None:
    """Every conversation has the origin; calls are counted from there; a twin leaves its parent before the change."""
    made = plan(
        branch={"of": "k3v9x2ab-7", "turn": 4},
        max_turns=6,
        interventions=[{"turn": 6, "mute": "a"}],
        twins=True,
        repetitions=2,
    )
    assert [c.origin for c in made.values()] == [
        Origin("k3v9x2ab-7", 4),
        Origin("e-1", 5),
        Origin("k3v9x2ab-7", 4),
        Origin("e-3", 5),
    ]
    assert [calls(c) for c in made.values()] == [3, 2, 3, 2]


# Faults


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sweep": {"a.temperature": [0.2, 3]}}, "sweep.a.temperature.1: Input should be less than or equal to 2"),
        ({"sweep": {"a.temprature": [1]}}, "Did you mean a.temperature?"),
        ({"sweep": {"c.temperature": [1]}}, "no agent 'c'; there are a, b, or all"),
        ({"sweep": {"temperature": [1]}}, "whose? Write all.temperature, or a.temperature"),
        ({"sweep": {"temperature_b": [1]}}, "write b.temperature"),
        ({"sweep": {"repetitions": [1]}}, "arms cannot differ in this"),
        ({"sweep": {"budget": [1]}}, "arms cannot differ in this"),
        ({"sweep": {"a.id": ["q"]}}, "nothing of this name can be swept"),
        ({"sweep": {"a.temperature": []}}, "there are no values"),
        ({"sweep": {"a.temperature": [1, 1.0]}}, "1 stands twice"),
        ({"sweep": {"a.temperature": [1], "all.temperature": [0]}}, "a.temperature says that already"),
        ({"sweep": {"a.temperature": 1}}, "sweep.a.temperature: Input should be a valid list"),
        ({"sweep": {"a.model": ["cluade"]}}, "sweep.a.model.0: unknown model 'cluade'; the nearest are claude"),
        ({"sweep": {"b.awareness": ["none", "no.yaml"]}}, "sweep.b.awareness.1: awareness file no.yaml: No such file"),
        ({"sweep": {"max_turns": [3, 9]}, "interventions": [{"turn": 5, "inject": "x"}]}, "(in the arm max_turns=3)"),
        ({"sweep": {"a.think": [False, True], "a.effort": ["high"]}}, "think: false leaves nothing"),
        (
            {"zip": {"a.temperature": [1, 2], "b.temperature": [1]}},
            "length: a.temperature 2, b.temperature 1",
        ),
        ({"zip": {"a.temperature": [1, 1], "b.temperature": [0, 0]}}, "zip: 1, 0 stands twice"),
        ({"exclude": [{"pair": "x"}]}, "there is nothing that arms differ in"),
        ({"sweep": {"max_turns": [1]}, "exclude": [{"max_turn": 1}]}, "Did you mean max_turns?"),
        ({"sweep": {"max_turns": [1, 2]}, "exclude": [{"max_turns": 3}]}, "exclude.0: no arm is like this"),
        ({"sweep": {"max_turns": [1, 2]}, "exclude": [{"max_turns": [1, 2]}]}, "exclude: nothing is left"),
        ({"sweep": {"a.seed": list(range(400)), "b.seed": list(range(400))}}, "these are 160,000 arms"),
        ({"models": MODELS}, "give pairs (all, unordered, ordered or self) as well"),
        ({"pairs": "all"}, "pairs of what? Give models"),
        ({"pairs": "unordered", "models": ["test"]}, "too few models"),
        ({"pairs": "all", "models": ["test", "local:test"]}, "test and local:test are the same model"),
        (
            {"pairs": "all", "models": ["test", "silent"], "agents": TWO},
            "agents.1.model: pairs says which model",
        ),
        ({"pairs": "all", "models": ["test", "slient"]}, "models.1: unknown model 'slient'"),
        ({"openings": ["x"], "prompt": "y"}, "prompt: openings says how conversations begin"),
        ({"openings": "nowhere.txt"}, "openings nowhere.txt: No such file"),
        ({"openings": []}, "openings: there are none"),
        ({"openings": ["x", "y"], "branch": {"of": "k3v9x2ab-1", "turn": 1}}, "a branch begins with the opening of"),
        ({"twins": True}, "twins: there are no interventions"),
        ({"branch": {"of": "k3v9x2ab-1", "turn": 10}}, "there must be more than the 10 before the branch"),
        ({"branch": {"of": "k3v9x2ab", "turn": 1}}, "branch.of: String should match"),
        ({"first": "c"}, "first: no agent 'c'; there are a, b, or random, or balanced"),
        ({"interventions": [{"turn": 11, "inject": "x"}]}, "turn 11 never comes: max_turns is 10"),
        ({"interventions": [{"turn": 1, "edit": "x", "agent": "a"}]}, "before turn 1 there is no message to edit"),
        ({"interventions": [{"turn": 2, "inject": "x", "to": "c"}]}, "interventions.0.to: no agent 'c'"),
        ({"interventions": [{"turn": 2, "inject": "x", "mute": "a"}]}, "not inject and mute at once"),
        ({"interventions": [{"turn": 2}]}, "give one of them"),
        ({"interventions": [{"turn": 2, "edit": "x"}]}, "edit needs agent"),
        ({"interventions": [{"turn": 2, "inject": "x", "agent": "a"}]}, "agent means nothing beside inject"),
        (
            {"interventions": [{"turn": 2, "mute": "a", "turns": 3}, {"turn": 4, "mute": "b"}]},
            "interventions.1.mute: in turn 4 nobody would speak",
        ),
        ({"interventions": [{"turn": 2, "swap_model": "cluade", "agent": "a"}]}, "swap_model: unknown model 'cluade'"),
        ({"interventions": [{"inject": "x"}]}, "an intervention needs turn or when"),
        ({"interventions": [{"turn": 2, "when": {"state": "echo"}, "inject": "x"}]}, "needs turn or when"),
        ({"interventions": [{"turn": 2, "times": 2, "inject": "x"}]}, "times means nothing beside turn"),
        ({"interventions": [{"when": {}, "inject": "x"}]}, "a trigger has one of metric, detector, state"),
        ({"interventions": [{"when": {"metric": "tokens"}, "inject": "x"}]}, "a metric needs above or below"),
        ({"interventions": [{"when": {"state": "echo", "below": 1}, "inject": "x"}]}, "below means nothing beside"),
        (
            {"interventions": [{"when": {"metric": "tokens", "below": 1, "agent": "c"}, "inject": "x"}]},
            "interventions.0.when.agent: no agent 'c'; there are a, b, or all",
        ),
        (
            {"interventions": [{"when": {"state": "echo"}, "mute": "a"}, {"when": {"state": "echo"}, "mute": "b"}]},
            "interventions.0.mute: triggers may silence everybody at once",
        ),
        (
            {"interventions": [{"when": {"state": "echo"}, "mute": "a"}, {"turn": 4, "mute": "b"}]},
            "interventions.1.mute: in turn 4 nobody would speak, if a trigger silences the others",
        ),
        (
            {"interventions": [{"when": {"detector": "cycle"}, "inject": "x"}], "detectors": {"cycle": "stop"}},
            "cycle ends the conversation",
        ),
        ({"interventions": [{"when": {"state": "echo"}, "inject": "x"}], "metrics": "off"}, "metrics: metrics: off"),
        ({"detectors": {"cycle": "intervene"}}, "detectors.cycle: intervene puts in text, or does what"),
        ({"max_turns": 1, "interventions": [{"when": {"state": "echo"}, "inject": "x"}]}, "no turn after one"),
        (
            {"interventions": [{"turn": 3, "inject": "x"}], "branch": {"of": "k3v9x2ab-1", "turn": 3}},
            "before the branch",
        ),
        ({"budget": {"wall_time": "soon"}}, "write seconds, or such as 90m"),
        ({"max_parallel": "fast"}, "max_parallel: Input should be"),
        ({"notify_command": []}, "notify_command: "),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, Any], said: str) -> None:
    """One fault, once, in words that say where it is and what to do."""
    lines = faults(**keys)
    assert sum(said in line for line in lines) == 1, lines
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("text", "seconds"), [(90, 90.0), ("90m", 5400.0), ("2h", 7200.0), ("1d", 86400.0), ("1h30m", 5400.0), (0.5, 0.5)]
)
def test_wall_time_is_read_in_the_units_of_people(text: object, seconds: float) -> None:
    """Seconds as a number, or a number with s, m, h or d."""
    spec = resolved(budget={"wall_time": text, "per_conversation": {"tokens": 5}})
    assert spec.budget.wall_time == seconds
    assert spec.budget.per_conversation.tokens == 5


def test_a_notification_is_a_list_of_words() -> None:
    """A text is split once and never meets a shell; a list stays as it is."""
    assert resolved(notify_command="say 'all done' $HOME").notify_command == ("say", "all done", "$HOME")
    assert resolved(notify_command=["x; y", "z"]).notify_command == ("x; y", "z")
