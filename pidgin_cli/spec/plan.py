"""The plan of an experiment: which conversations there are, and in which order they run.

Arms, order and seeds follow from the spec alone. The order goes by repetition: a block of every arm once, shuffled,
then the next. So any beginning of it has each arm equally often, give or take one, and more repetitions only append.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Agent, AgentSettings, Retries, Timeouts

from .conversation import (
    ContextPolicy,
    ConvergencePolicy,
    ConversationSpec,
    DetectorPolicy,
    Injection,
    Intervention,
    Origin,
    Placeholders,
    Trigger,
    derive_seed,
)
from .errors import nearest
from .schema import ALL, AgentSpec, AwarenessSpec, ContextSpec, ExperimentSpec, InterventionSpec
from .seats import seated, texts_for
from .sweep import Cell, arms, has_factors, label_of, one_arm

__all__ = ["calls", "expand", "plan_order"]

SPEAKER_LABEL = "[{name}]: {text}"


class _Place(NamedTuple):
    """One conversation of the plan, apart from its twin."""

    repetition: int
    cell: int
    swapped: bool
    """The models of a pair sit the other way round."""
    opens: int = 0
    """Which model of a pair opens, where they take turns at that."""


def expand(spec: ExperimentSpec, experiment_id: str = "") -> dict[str, ConversationSpec]:
    """The conversations of a resolved spec by id (`<experiment_id>-<n>`, n from 1), in the order in which they run."""
    cells = arms(spec)
    seats: dict[tuple[int, bool], ConversationSpec] = {}
    found: dict[str, ConversationSpec] = {}
    for place in _order(spec, cells):
        kind = (place.cell, place.swapped)
        if kind not in seats:
            seats[kind] = _of_arm(spec, cells[place.cell], swapped=place.swapped)
        conversation_id = f"{experiment_id}-{len(found) + 1}"
        found[conversation_id] = conversation = _drawn(spec, seats[kind], place, cells[place.cell])
        if spec.twins:
            found[f"{experiment_id}-{len(found) + 1}"] = _twin(conversation, conversation_id)
    return found


def _order(spec: ExperimentSpec, cells: Sequence[Cell]) -> Iterator[_Place]:
    both = spec.pairs == "ordered"
    lots: dict[str, tuple[int, int]] = {}
    for repetition in range(1, spec.repetitions + 1):
        block, turn = divmod(repetition - 1, 4)
        if spec.pairs in ("unordered", "all") and turn == 0:
            lots = _lots(spec, cells, block)
        for half in range(2 if both else 1):
            places = [
                _Place(repetition, index, *_seats(spec, cell, lots, repetition, half))
                for index, cell in enumerate(cells)
            ]
            yield from sorted(
                places, key=lambda place: derive_seed(spec.seed, "order", place.repetition, half, cells[place.cell].arm)
            )


def _lots(spec: ExperimentSpec, cells: Sequence[Cell], block: int) -> dict[str, tuple[int, int]]:
    """By arm, for the first of four repetitions: 1 where a pair sits the other way round, and which model opens.

    The arms of one pair are drawn without putting back, so that also with a single repetition each way of it comes
    equally often over the openings and whatever else is swept.
    """
    of_pair: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.models is not None:
            of_pair.setdefault(cell.models, []).append(cell.arm)
    found = {}
    for pair, names in of_pair.items():
        seat, opens = (_lot(spec, what, *pair, block) for what in ("seats", "opens"))
        for rank, arm in enumerate(sorted(names, key=lambda arm: derive_seed(spec.seed, "seats", arm, block))):
            found[arm] = (seat ^ rank & 1, opens ^ (rank ^ rank >> 1) & 1)
    return found


def _seats(
    spec: ExperimentSpec, cell: Cell, lots: Mapping[str, tuple[int, int]], repetition: int, half: int
) -> tuple[bool, int]:
    """Whether a pair sits the other way round, and which of its models opens: all four ways in four repetitions."""
    if cell.models is None or cell.models[0] == cell.models[1]:
        return False, 0
    if spec.pairs == "ordered":
        return bool(_lot(spec, "seats", cell.arm, repetition) ^ half), 0
    seat, opens = lots[cell.arm]
    turn = (repetition - 1) % 4
    return bool(seat ^ turn & 1), opens ^ turn >> 1


def _lot(spec: ExperimentSpec, *parts: object) -> int:
    return derive_seed(spec.seed, *parts, bits=1)


def _of_arm(spec: ExperimentSpec, cell: Cell, *, swapped: bool) -> ConversationSpec:
    """A conversation of an arm, with everything but what its repetition decides."""
    arm = one_arm(spec, cell, swapped=swapped)
    agents = seated(arm.agents) if has_factors(spec) else arm.agents
    context = arm.context if isinstance(arm.context, ContextSpec) else ContextSpec(policy=arm.context)
    models = cell.models or ()
    return ConversationSpec(
        agents=tuple(_agent(agent) for agent in agents),
        opening=arm.prompt,
        prompt_tag=arm.prompt_tag,
        max_turns=arm.max_turns,
        order=arm.order,
        first=arm.first or agents[0].id,
        arm=cell.arm,
        variables=dict(cell.variables),
        seating=",".join(reversed(models) if swapped else models),
        origin=None if arm.branch is None else Origin(arm.branch.of, arm.branch.turn),
        injections=tuple(
            Injection(turn, agent.id, text, f"awareness:{agent.awareness.name}", agent.awareness.placement)
            for agent in agents
            if isinstance(agent.awareness, AwarenessSpec)
            for turn, text in texts_for(agent.awareness, agent.id).items()
        ),
        interventions=tuple(
            _intervention(one, [agent.id for agent in agents])
            for one in sorted(arm.interventions, key=lambda one: (one.turn is None, one.turn or 0))
        ),
        choose_names=arm.choose_names,
        stop_phrases={agent.id: agent.stop_phrase for agent in agents if agent.stop_phrase is not None},
        context=ContextPolicy(**context.model_dump()),
        speaker_label=SPEAKER_LABEL if len(agents) > 2 or arm.choose_names else None,
        placeholders=Placeholders(),
        timeouts=Timeouts(**arm.timeouts.model_dump()),
        retries=Retries(**arm.retries.model_dump()),
        concurrency=arm.concurrency,
        durability=arm.durability,
        lenient=arm.lenient,
        metrics=arm.metrics,
        convergence=ConvergencePolicy(**arm.convergence.model_dump()),
        detectors=_policies(arm),
        cache=arm.cache,
    )


def _agent(agent: AgentSpec) -> Agent:
    assert agent.name is not None, "a resolved spec"
    assert not isinstance(agent.awareness, str), "a resolved spec"
    return Agent(
        id=agent.id,
        model=agent.model,
        name=agent.name,
        system_prompt=_visible(agent.system_prompt),
        awareness=agent.awareness.name if agent.awareness else None,
        settings=AgentSettings(
            temperature=agent.temperature,
            top_p=agent.top_p,
            max_tokens=agent.max_tokens,
            stop=agent.stop,
            seed=agent.seed,
            think=agent.think,
            think_budget=agent.think_budget,
            effort=agent.effort,
            extra=agent.extra,
        ),
        thinking_visible=agent.thinking_visible,
    )


def _visible(prompt: str | None) -> str | None:
    return prompt if (prompt or "").strip() else None


def _policies(arm: ExperimentSpec) -> dict[str, DetectorPolicy]:
    """What detectors lead to. Where an intervention waits for one, that is what it leads to."""
    found = {name: DetectorPolicy(**each.model_dump()) for name, each in arm.detectors.items()}
    for one in arm.interventions:
        if one.when is not None and (name := one.when.detector) is not None:
            policy = found.get(name, DetectorPolicy())
            found[name] = replace(policy, action="intervene") if policy.action == "record" else policy
    return found


def _intervention(one: InterventionSpec, ids: Sequence[str]) -> Intervention:
    action = one.action
    agents = tuple(ids) if ALL in one.agents else tuple(dict.fromkeys(one.agents))
    text = {"inject": one.inject, "edit": one.edit, "swap_system_prompt": _visible(one.swap_system_prompt)}.get(action)
    return Intervention(
        turn=one.turn or 0,
        kind=action,
        agents=agents,
        text=text,
        model=one.swap_model,
        turns=one.turns,
        placement=one.placement,
        when=None if one.when is None else Trigger(**one.when.model_dump()),
        times=one.times,
    )


def _drawn(spec: ExperimentSpec, conversation: ConversationSpec, place: _Place, cell: Cell) -> ConversationSpec:
    """The conversation of one repetition, with its seeds and whoever opens it."""
    # Only where both seatings stand in one repetition must the seating tell their draws apart.
    draw = [conversation.arm, place.repetition, *([conversation.seating] if spec.pairs == "ordered" else [])]
    seed = derive_seed(spec.seed, *draw)
    ids = [agent.id for agent in conversation.agents]
    first = conversation.first
    if first == "random":
        first = random.Random(f"{seed}:first").choice(ids)
    elif first == "balanced":
        first = _opener(spec, cell, place, ids)
    agents = tuple(
        replace(agent, settings=replace(agent.settings, seed=derive_seed(agent.settings.seed, *draw, bits=31)))
        if agent.settings.seed is not None
        else agent
        for agent in conversation.agents
    )
    return replace(conversation, agents=agents, seed=seed, first=first, repetition=place.repetition)


def _opener(spec: ExperimentSpec, cell: Cell, place: _Place, ids: Sequence[str]) -> str:
    """Who opens: the agents take turns within an arm, in an order that is drawn anew for each round.

    Where pairs change seats, both the seats and the models take turns: over four repetitions each model opens from
    each seat.
    """
    if spec.pairs in ("unordered", "all") and len(set(cell.models or ())) > 1:
        return ids[int(place.swapped) ^ place.opens]
    round_, position = divmod(place.repetition - 1, len(ids))
    drawn = random.Random(f"{spec.seed}:opens:{cell.arm}:{round_}").sample(ids, len(ids))
    return drawn[position]


def _twin(conversation: ConversationSpec, conversation_id: str) -> ConversationSpec:
    """The same conversation without its interventions, from the same prefix."""
    turns = [one.turn for one in conversation.interventions if one.when is None]
    at_once = any(policy.text is not None for policy in conversation.detectors.values())
    triggered = at_once or len(turns) < len(conversation.interventions)
    # A detector may put its text into the first turn; what waits for the end of one cannot be done before the second.
    earliest = conversation.origin.turn if conversation.origin is not None else 0 if at_once else 1
    unknown = triggered and min(turns, default=conversation.max_turns + 1) - 1 > earliest
    fork = min([earliest] if unknown else [one - 1 for one in turns] or [earliest])
    return replace(
        conversation,
        arm=f"{conversation.arm}, twin" if conversation.arm else "twin",
        variables=conversation.variables | {"twin": True},
        origin=Origin(conversation_id, fork, until_intervention=unknown),
        interventions=(),
        detectors={
            name: replace(policy, action="record", text=None) if policy.action == "intervene" else policy
            for name, policy in conversation.detectors.items()
        },
    )


def calls(conversation: ConversationSpec) -> int:
    """How many messages and names a conversation asks for itself, retries and summaries aside."""
    shared = conversation.origin.turn if conversation.origin is not None else 0
    silent = {
        (turn, agent_id)
        for one in conversation.interventions
        if one.kind == "mute" and one.when is None
        for turn in range(max(one.turn, shared + 1), min(one.turn + one.turns, conversation.max_turns + 1))
        for agent_id in one.agents
    }
    names = len(conversation.agents) if conversation.choose_names and conversation.origin is None else 0
    return (conversation.max_turns - shared) * len(conversation.agents) - len(silent) + names


# What runs of it


def plan_order(
    plan: Mapping[str, ConversationSpec],
    *,
    filters: Iterable[str] = (),
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> list[str]:
    """The ids of what shall run, in order.

    Args:
        plan: what `expand` gives.
        filters: `KEY=VALUE` with a swept value by its path, `pair`, `opening`, `seating`, `repetition`, `twin` or
            `arm`. Of several with one key any may be true; of different keys all must be.
        limit: the first so many of the order.
        shuffle_seed: another order, with the same balance.

    Raises:
        SpecError: a filter that names nothing, or that nothing meets.
    """
    wanted = _wanted(plan, filters)
    found = _shuffled(plan, shuffle_seed) if shuffle_seed is not None else list(plan)
    met = [name for name in found if all(_filtered(plan[name], key) in values for key, values in wanted.items())]
    if wanted and not met:
        said = " and ".join(f"{key}={'|'.join(sorted(values))}" for key, values in wanted.items())
        raise SpecError(f"no conversation has {said}")
    return met[:limit]


def _wanted(plan: Mapping[str, ConversationSpec], filters: Iterable[str]) -> dict[str, set[str]]:
    known = ["arm", "repetition", "seating", "twin"]
    known += list(dict.fromkeys(key for conversation in plan.values() for key in conversation.variables))
    wanted: dict[str, set[str]] = {}
    for one in filters:
        key, equals, value = one.partition("=")
        if not equals or key not in known:
            what = f"nothing is called {key!r}" if equals else f"{one!r} is not KEY=VALUE"
            there = ", ".join(dict.fromkeys(known))
            raise SpecError(f"filter: {what}; there are {there}.{nearest(key, known)}")
        values = {_filtered(conversation, key) for conversation in plan.values()}
        if value not in values:
            there = ", ".join(sorted(values)[:10])
            raise SpecError(f"filter: no conversation has {key}={value}; there are {there}.{nearest(value, values)}")
        wanted.setdefault(key, set()).add(value)
    return wanted


def _filtered(conversation: ConversationSpec, key: str) -> str:
    if key in ("arm", "seating", "repetition"):
        return str(getattr(conversation, key))
    return label_of(conversation.variables.get(key, False if key == "twin" else None))


def _shuffled(plan: Mapping[str, ConversationSpec], seed: int) -> list[str]:
    units: list[tuple[tuple[int, int, int], list[str]]] = []
    seen: Counter[tuple[int, str]] = Counter()
    for name, conversation in plan.items():
        if conversation.variables.get("twin") and units:
            units[-1][1].append(name)  # stays behind the one that it shares its prefix with
            continue
        block = (conversation.repetition, conversation.arm)
        lot = derive_seed(seed, conversation.repetition, conversation.arm, conversation.seating)
        units.append(((conversation.repetition, seen[block], lot), [name]))
        seen[block] += 1
    return [name for _, names in sorted(units, key=lambda unit: unit[0]) for name in names]
