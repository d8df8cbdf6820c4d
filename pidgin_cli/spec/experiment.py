"""What a person writes, as a model that checks it, and its expansion into conversations."""

import random
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Agent, AgentSettings, Retries, Timeouts

from .awareness import Awareness, Seat, load_awareness, system_prompt
from .catalogue import resolve_model
from .conversation import (
    ContextPolicy,
    ConversationSpec,
    Injection,
    Placeholders,
    derive_seed,
    spec_hash,
)
from .errors import explain, refuse_half_characters, safe_load

__all__ = [
    "AgentSpec",
    "ExperimentSpec",
    "Resolved",
    "check",
    "expand",
    "experiment_hash",
    "load",
    "resolve",
    "to_yaml",
]

DEFAULT_PROMPT = "Hello! You are free to talk about whatever you like."
SPEAKER_LABEL = "[{name}]: {text}"


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AwarenessSpec(_Checked):
    """Awareness with its texts in the spec itself, as a resolved spec holds it."""

    name: str
    base: str = "none"
    prompts: dict[int, str] = Field(
        default_factory=dict, description="Texts for this agent by turn; 0: with the opening"
    )


class AgentSpec(_Checked):
    """One agent."""

    id: str = Field(pattern=r"^[a-z][a-z0-9]{0,15}$", description="Letters and digits; `a`, `b`, `c`, … by custom")
    model: str = Field(description="`provider:model` or an alias")
    name: str | None = Field(
        None, min_length=1, max_length=60, description="As displays show it; default: from the model"
    )
    system_prompt: str | None = Field(None, description="Given instead of the awareness preset's text")
    awareness: str | AwarenessSpec | None = Field(None, description="Preset, YAML file, or the texts themselves")
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; 0.0 is a value")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling")
    max_tokens: int | None = Field(None, ge=1, description="Upper end of one reply")
    stop: tuple[str, ...] | None = Field(None, description="Texts at which the provider ends a reply")
    seed: int | None = Field(None, description="Sent to the provider, derived per conversation")
    think: bool | None = Field(None, description="Ask the model to think before it speaks")
    think_budget: int | None = Field(None, ge=1, description="Thinking tokens at most; implies `think`")
    effort: str | None = Field(None, description="Reasoning effort, in the provider's words")
    extra: dict[str, Any] | None = Field(None, description="Sent as it is beside everything else")
    thinking_visible: Literal["own", "partner", "nobody"] = Field(
        "nobody", description="Who is sent what the agent thought: itself, the others, or nobody"
    )
    stop_phrase: str | None = Field(None, min_length=1, description="The agent ends the conversation by saying it")

    @model_validator(mode="after")
    def _thinks_or_not(self) -> Self:
        if self.think is False and (self.effort is not None or self.think_budget is not None):
            raise ValueError("think: false leaves nothing for effort or think_budget to do; leave one of them out")
        return self


class ContextSpec(_Checked):
    """What happens when the context window is full."""

    policy: Literal["stop", "window", "summarise"] = "stop"
    limit_tokens: int | None = Field(None, ge=1, description="Instead of the models' own windows")
    reserve_tokens: int = Field(4096, ge=0, description="Room kept for the reply where `max_tokens` is not set")
    model: str | None = Field(None, description="Who writes the summaries; default: the agent itself")
    pinned: tuple[str, ...] = Field((), description="Facts that stand beside every summary")

    @model_validator(mode="after")
    def _summarises_or_not(self) -> Self:
        if self.policy != "summarise":
            for name in ("model", "pinned"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for policy: summarise; with {self.policy} leave it out")
        return self


class TimeoutSpec(_Checked):
    """Seconds a request may take; null: no limit."""

    connect_s: float | None = Field(15.0, gt=0, description="Until connected")
    first_token_s: float | None = Field(300.0, gt=0, description="Until the first piece")
    gap_s: float | None = Field(120.0, gt=0, description="Between two pieces")
    total_s: float | None = Field(None, gt=0, description="For the whole reply")


class RetrySpec(_Checked):
    """How failed requests are tried again."""

    attempts: int = Field(6, ge=1, description="Attempts at one message, the first included")
    base_s: float = Field(1.0, gt=0, description="Upper end of the first wait; doubles each time")
    max_wait_s: float = Field(60.0, gt=0, description="Longest wait, unless the provider names a longer one")


class ExperimentSpec(_Checked):
    """An experiment as a person writes it."""

    name: str | None = Field(None, min_length=1, max_length=300, description="For finding it again")
    agents: tuple[AgentSpec, ...] = Field(min_length=2, description="Who talks")
    prompt: str = Field(DEFAULT_PROMPT, description="The opening, given to every agent")
    prompt_tag: str = Field("HUMAN", max_length=60, description="Stands before the opening; empty: nothing does")
    max_turns: int = Field(10, ge=1, description="Rounds in which every agent speaks once")
    repetitions: int = Field(1, ge=1, description="Conversations per arm")
    seed: int | None = Field(None, description="All draws derive from it; unset: drawn and recorded")
    order: Literal["alternate", "random"] = Field("alternate", description="Who speaks when within a turn")
    first: str | None = Field(None, description="Who opens: an agent id or `random`; default: the first agent")
    choose_names: bool = Field(False, description="Agents choose their names before they talk")
    context: Literal["stop", "window", "summarise"] | ContextSpec = Field(
        ContextSpec(), description="When the context window is full: end, drop oldest turns, or summarise them"
    )
    timeouts: TimeoutSpec = Field(TimeoutSpec(), description="Seconds a request may take")
    retries: RetrySpec = Field(RetrySpec(), description="How failed requests are tried again")
    concurrency: int | None = Field(None, ge=1, description="Requests to one provider at a time")
    durability: Literal["message", "strict", "none"] = Field("message", description="When the record is synced to disk")
    lenient: bool = Field(False, description="Leave out, with a recorded warning, settings that a model does not take")
    cache: Literal["off", "on", "shared"] = Field(
        "off", description="Reuse replies: of the same draw when it is run again, or `shared` with every experiment"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        # YAML reads a bare on or off as a truth value.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("agents")
    @classmethod
    def _ids_differ(cls, agents: tuple[AgentSpec, ...]) -> tuple[AgentSpec, ...]:
        ids = [agent.id for agent in agents]
        if twice := {agent_id for agent_id in ids if ids.count(agent_id) > 1}:
            raise ValueError(f"two agents have the id {', '.join(sorted(twice))}")
        if reserved := {"both", "all", "random"} & set(ids):
            raise ValueError(f"{', '.join(sorted(reserved))} cannot be the id of an agent")
        return agents

    @model_validator(mode="after")
    def _first_exists(self) -> Self:
        ids = [agent.id for agent in self.agents]
        if self.first not in (None, "random", *ids):
            raise ValueError(f"first: no agent {self.first!r}; there are {', '.join(ids)}, or random")
        return self


class Resolved(NamedTuple):
    """A spec in which aliases, presets, files and the seed are written out, and what was noticed on the way."""

    spec: ExperimentSpec
    notices: list[str]


def check(data: Mapping[str, Any], source: str = "spec", text: str = "") -> ExperimentSpec:
    """The spec in `data`. Raises SpecError that names every fault, one to a line."""
    try:
        spec = ExperimentSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, source, text, ExperimentSpec)) from None
    refuse_half_characters(spec.model_dump(), source)
    return spec


def load(path: Path) -> ExperimentSpec:
    """The spec in a YAML file. Raises SpecError that names every fault with its line."""
    try:
        text = path.read_text(encoding="utf-8")
        data = safe_load(text, str(path))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path} is not a spec: it should hold keys such as agents and prompt")
    return check(data, str(path), text)


def resolve(spec: ExperimentSpec, providers: Collection[str]) -> Resolved:
    """Write out everything that a name stands for, so that the spec runs the same anywhere and later.

    Raises:
        SpecError: an unknown model, preset or file.
    """
    models = [resolve_model(agent.model, providers) for agent in spec.agents]
    names = _names(spec.agents, models)
    seats = [Seat(agent.id, model, name) for agent, model, name in zip(spec.agents, models, names, strict=True)]
    notices: list[str] = []
    agents = []
    for agent, seat in zip(spec.agents, seats, strict=True):
        awareness = agent.awareness
        prompt = agent.system_prompt
        if isinstance(awareness, str):
            # A file that is given for everybody speaks to everybody.
            alone = any(other.awareness != awareness for other in spec.agents)
            found, said = load_awareness(awareness, seats, serves=agent.id if alone else None)
            notices += [notice for notice in said if notice not in notices]
            awareness = _inline(found, agent.id)
        if awareness is not None:
            notices += [notice for notice in _never_reached(awareness, spec.max_turns) if notice not in notices]
        if prompt is None and awareness is not None:
            prompt = system_prompt(awareness.base, seat, seats)
        think = True if agent.think_budget is not None and agent.think is None else agent.think
        changes = {
            "model": seat.model,
            "name": seat.name,
            "system_prompt": prompt,
            "awareness": awareness,
            "think": think,
        }
        agents.append(agent.model_copy(update=changes))
    context = ContextSpec(policy=spec.context) if isinstance(spec.context, str) else spec.context
    if context.model is not None:
        context = context.model_copy(update={"model": resolve_model(context.model, providers)})
    seed = spec.seed if spec.seed is not None else secrets.randbits(31)
    return Resolved(spec.model_copy(update={"agents": tuple(agents), "context": context, "seed": seed}), notices)


def _inline(awareness: Awareness, agent_id: str) -> AwarenessSpec:
    prompts = {turn: texts[agent_id] for turn, texts in sorted(awareness.prompts.items()) if agent_id in texts}
    return AwarenessSpec(name=awareness.name, base=awareness.base, prompts=prompts)


def _never_reached(awareness: AwarenessSpec, turns: int) -> list[str]:
    has = f"the conversation has {turns} turn{'s' if turns > 1 else ''}"
    late = sorted(turn for turn in awareness.prompts if turn > turns)
    return [f"awareness {awareness.name}: text at turn {turn} is never reached: {has}" for turn in late]


def _names(agents: tuple[AgentSpec, ...], models: list[str]) -> list[str]:
    """Display names: as given, else from the model; self-play gets the agent's id behind it."""
    plain = [(model.partition(":")[2].partition("?")[0].rpartition("/")[2] or model)[:40] for model in models]
    return [
        agent.name or (name if plain.count(name) == 1 else f"{name}-{agent.id}")
        for agent, name in zip(agents, plain, strict=True)
    ]


def expand(spec: ExperimentSpec) -> list[ConversationSpec]:
    """The conversations of a resolved spec, in the order in which they run."""
    return [_conversation(spec, repetition) for repetition in range(1, spec.repetitions + 1)]


def _conversation(spec: ExperimentSpec, repetition: int, arm: str = "") -> ConversationSpec:
    seed = derive_seed(spec.seed, arm, repetition)
    ids = [agent.id for agent in spec.agents]
    first = spec.first or ids[0]
    if first == "random":
        first = random.Random(f"{seed}:first").choice(ids)
    context = spec.context
    assert isinstance(context, ContextSpec), "a resolved spec"
    return ConversationSpec(
        agents=tuple(_agent(agent, arm, repetition) for agent in spec.agents),
        opening=spec.prompt,
        prompt_tag=spec.prompt_tag,
        max_turns=spec.max_turns,
        order=spec.order,
        first=first,
        seed=seed,
        arm=arm,
        repetition=repetition,
        injections=tuple(
            Injection(turn, agent.id, text, f"awareness:{agent.awareness.name}")
            for agent in spec.agents
            if isinstance(agent.awareness, AwarenessSpec)
            for turn, text in agent.awareness.prompts.items()
        ),
        choose_names=spec.choose_names,
        stop_phrases={agent.id: agent.stop_phrase for agent in spec.agents if agent.stop_phrase is not None},
        context=ContextPolicy(**context.model_dump()),
        speaker_label=SPEAKER_LABEL if len(ids) > 2 or spec.choose_names else None,
        placeholders=Placeholders(),
        timeouts=Timeouts(**spec.timeouts.model_dump()),
        retries=Retries(**spec.retries.model_dump()),
        concurrency=spec.concurrency,
        durability=spec.durability,
        lenient=spec.lenient,
        cache=spec.cache,
    )


def _agent(agent: AgentSpec, arm: str, repetition: int) -> Agent:
    assert agent.name is not None, "a resolved spec"
    assert not isinstance(agent.awareness, str), "a resolved spec"
    return Agent(
        id=agent.id,
        model=agent.model,
        name=agent.name,
        system_prompt=agent.system_prompt if (agent.system_prompt or "").strip() else None,
        awareness=agent.awareness.name if agent.awareness else None,
        settings=AgentSettings(
            temperature=agent.temperature,
            top_p=agent.top_p,
            max_tokens=agent.max_tokens,
            stop=agent.stop,
            seed=None if agent.seed is None else derive_seed(agent.seed, arm, repetition, bits=31),
            think=agent.think,
            think_budget=agent.think_budget,
            effort=agent.effort,
            extra=agent.extra,
        ),
        thinking_visible=agent.thinking_visible,
    )


def experiment_hash(spec: ExperimentSpec) -> str:
    """What makes two resolved specs the same experiment: all but the name and the number of repetitions."""
    return spec_hash(spec.model_dump(mode="json", exclude={"name", "repetitions"}))


def to_yaml(spec: ExperimentSpec) -> str:
    """The spec as a file that runs as it stands; defaults are left out."""
    data = spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Keeps every text as it is: unquoted, YAML takes some characters for plain line breaks."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, '"' if set(text) & set("\x85\u2028\u2029") else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)
