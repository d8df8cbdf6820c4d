"""What a person may write: every key of an experiment, and what contradicts what."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import Fault, Place, nearest

__all__ = [
    "ALL",
    "AgentSpec",
    "AwarenessSpec",
    "BudgetSpec",
    "ContextSpec",
    "ExperimentSpec",
    "InterventionSpec",
    "seat_ids",
]

DEFAULT_PROMPT = "Hello! You are free to talk about whatever you like."
ALL = "all"
"""Stands for every agent."""
SPECIAL_OPENERS = ("random", "balanced")
PAIRED = 2


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AwarenessSpec(_Checked):
    """Awareness with its texts in the spec itself, as a resolved spec holds it."""

    name: str = Field(description="Stands in the record")
    base: str = Field("none", description="Preset that the system prompt comes from")
    system_prompt: str | None = Field(
        None, description="Text instead of the preset's own; `$model` and the like are filled in for each agent"
    )
    prompts: dict[int, str | dict[str, str]] = Field(
        default_factory=dict, description="Texts by turn, for this agent or by agent id; 0: with the opening"
    )
    placement: Literal["user", "system"] = Field(
        "user",
        description="How the texts are sent: as tagged user text, or as the provider's family places system text",
    )


class AgentSpec(_Checked):
    """One agent."""

    id: str = Field(pattern=r"^[a-z][a-z0-9]{0,15}$", description="Letters and digits; `a`, `b`, `c`, … by custom")
    model: str = Field("", description="`provider:model` or an alias; left out where `pairs` or a sweep says it")
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
    extra: dict[str, Any] | None = Field(
        None, description="Sent as it is beside everything else; refused for what Pidgin sends or has a key for"
    )
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


_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """Seconds as a number, of a text such as `90m` or `1h30m`."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d+(?:\.\d+)?", value.strip()):
        return float(value)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", value)
    if not parts or re.sub(r"\d+(?:\.\d+)?\s*[smhd]\s*", "", value.strip()):
        raise ValueError(f"{value!r} is no length of time; write seconds, or such as 90m, 2h, 1d or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


_Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, allow_inf_nan=False),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]


class BudgetLimits(_Checked):
    """What one conversation may use; nothing is begun that could overrun it."""

    usd: float | None = Field(None, gt=0, allow_inf_nan=False, description="US dollars")
    tokens: int | None = Field(None, ge=1, description="Prompt and reply together")
    wall_time: _Duration | None = Field(None, description="Seconds, or such as `90m`, `2h`, `1d`")


class BudgetSpec(BudgetLimits):
    """What the experiment may use, all runs together; nothing is begun that could overrun it."""

    per_conversation: BudgetLimits | None = Field(None, description="The same for each conversation")


_ConvergencePart = Literal["content", "structure", "sentences", "length", "punctuation"]


class ConvergenceSpec(_Checked):
    """How alike the last messages are, as a score from 0 to 1, and what happens when it reaches a threshold."""

    threshold: float | None = Field(None, ge=0, le=1, description="Unset: the score is recorded and nothing else")
    action: Literal["notify", "pause", "stop"] = Field(
        "notify", description="At the threshold: an event, a pause as well, or the end of the conversation"
    )
    profile: Literal["balanced", "structural", "semantic", "strict"] = Field(
        "balanced", description="Which parts of the score count how much"
    )
    weights: dict[_ConvergencePart, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Weights of your own instead of a profile's; their sum is 1"
    )

    @model_validator(mode="after")
    def _weights_are_whole(self) -> Self:
        if self.weights and abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"the weights must sum to 1, not {sum(self.weights.values()):g}")
        return self


class DetectorSpec(_Checked):
    """What happens when an attractor detector fires."""

    action: Literal["record", "mark", "pause", "stop", "intervene"] = Field(
        "record",
        description="An event in the record; besides, the conversation is marked, pauses, ends, or is told `text`. "
        "With interventions that wait for this detector, `record` means `intervene`",
    )
    text: str | None = Field(None, min_length=1, description="What all agents are told at once by `intervene`")
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="Instead of the detector's own; see the reference of detectors"
    )

    @model_validator(mode="after")
    def _intervenes_with_words(self) -> Self:
        if self.text is not None and self.action != "intervene":
            raise ValueError("text is what action: intervene puts in; give both or neither")
        return self


def _detector(value: object) -> object:
    return {"action": value} if isinstance(value, str) else value


class BranchSpec(_Checked):
    """Where every conversation leaves a recorded one. What comes before is taken over from there."""

    of: str = Field(pattern=r"^[a-z0-9]{8}-\d+$", description="Id of the recorded conversation")
    turn: int = Field(ge=0, description="Last turn that is shared; 0: the opening alone")


Action = Literal["inject", "edit", "mute", "swap_model", "swap_system_prompt"]
ACTIONS: tuple[Action, ...] = ("inject", "edit", "mute", "swap_model", "swap_system_prompt")
_TAKES = {
    "inject": {"to", "placement"},
    "edit": {"agent"},
    "mute": {"turns"},
    "swap_model": {"agent"},
    "swap_system_prompt": {"agent"},
}


def _one_of(*names: str) -> ConfigDict:
    """Of these keys exactly one is given; for editors, as pydantic's own schema does not say it."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


class TriggerSpec(_Checked):
    """What must be so at the end of a turn for an intervention to be done when the next one begins. Each has exactly
    one of metric, detector and state. What is NULL never meets a condition."""

    model_config = _one_of("metric", "detector", "state")

    metric: str | None = Field(
        None,
        description="Of the turn's messages, with `above` or `below`; `convergence` without `agent`: the turn's score",
    )
    above: float | None = Field(None, allow_inf_nan=False, description="The value must be greater than this")
    below: float | None = Field(None, allow_inf_nan=False, description="The value must be less than this")
    agent: str | None = Field(
        None, description="Whose message: an agent id, or `all` for every message of the turn; default: any of them"
    )
    detector: str | None = Field(None, description="It fired in the turn, or is active at its end")
    state: str | None = Field(None, description="The fused state of the detectors at the end of the turn")
    for_turns: int = Field(1, ge=1, description="So many turns in a row")

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        given = [name for name in ("metric", "detector", "state") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a trigger has one of metric, detector, state: not {' and '.join(given) or 'none'}")
        if self.metric is None:
            if surplus := [name for name in ("above", "below", "agent") if getattr(self, name) is not None]:
                raise ValueError(f"{surplus[0]} means nothing beside {given[0]}; leave it out")
        elif (self.above is None) == (self.below is None):
            raise ValueError("a metric needs above or below: give one of them")
        return self


class InterventionSpec(_Checked):
    """What is done when a turn begins. Each has a turn or a trigger (`when`), and exactly one of inject, edit, mute,
    swap_model and swap_system_prompt."""

    model_config = _one_of("turn", "when")

    turn: int | None = Field(None, ge=1, description="Before anybody speaks in this turn")
    when: TriggerSpec | None = Field(None, description="Before anybody speaks in the turn after one that met this")
    times: int = Field(1, ge=1, description="How often at most, with `when`; `for_turns` is counted anew each time")
    inject: str | None = Field(None, min_length=1, description="Text that is put in")
    to: str | tuple[str, ...] = Field(ALL, description="Who is given it: an agent id, several, or `all`")
    placement: Literal["user", "system"] = Field(
        "user", description="As tagged user text, or as the provider's family places system text"
    )
    edit: str | None = Field(None, description="What the agent's last message before this turn reads from now on")
    mute: str | tuple[str, ...] | None = Field(None, description="Who is silent: an agent id or several")
    turns: int = Field(1, ge=1, description="For how many turns, with `mute`")
    swap_model: str | None = Field(None, min_length=1, description="Model of the agent from this turn on")
    swap_system_prompt: str | None = Field(None, description="System prompt of the agent from this turn on; null: none")
    agent: str | None = Field(None, description="Whom edit, swap_model or swap_system_prompt concern")

    @property
    def action(self) -> Action:
        """Which of the five it is."""
        return next(name for name in ACTIONS if name in self.model_fields_set)

    @property
    def agents(self) -> tuple[str, ...]:
        """The ids it names; `all` as it is."""
        named = {"inject": self.to, "mute": self.mute}.get(self.action, self.agent)
        return (named,) if isinstance(named, str) else named or ()

    @model_validator(mode="after")
    def _does_one_thing(self) -> Self:
        given = [name for name in ACTIONS if name in self.model_fields_set]
        if len(given) != 1:
            said = f"not {' and '.join(given)} at once; make them two" if given else "give one of them"
            raise ValueError(f"an intervention does one of {', '.join(ACTIONS)}: {said}")
        action = given[0]
        if action != "swap_system_prompt" and getattr(self, action) is None:
            raise ValueError(f"{action} is empty")
        for name in sorted(self.model_fields_set - _TAKES[action] - {"turn", "when", "times", action}):
            raise ValueError(f"{name} means nothing beside {action}; leave it out")
        if (self.turn is None) == (self.when is None):
            raise ValueError("an intervention needs turn or when: give one of them")
        if self.times != 1 and self.when is None:
            raise ValueError("times means nothing beside turn; leave it out")
        if "agent" in _TAKES[action] and self.agent is None:
            raise ValueError(f"{action} needs agent: the id of whom it concerns")
        if action in ("inject", "mute") and not self.agents:
            raise ValueError(f"{action} names no agent")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        # An explicit null is an action, so that defaults cannot simply be left out.
        return {
            name: self.when.model_dump(exclude_defaults=True) if name == "when" and self.when else getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name == self.action or getattr(self, name) != field.default
        }


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{value!r} cannot be split into words: {str(error).lower()}") from None


def _labels(value: object) -> object:
    """YAML reads some labels as numbers or truth values."""
    if not isinstance(value, Mapping):
        return value
    found = {key if isinstance(key, str) else str(key).lower(): text for key, text in value.items()}
    for label in found:
        if not label.strip() or ", " in label or len(label.splitlines()) > 1:
            raise ValueError(f"{label!r} cannot be a label: one line without a comma and a space behind it")
    return found


def _label_table(value: object) -> object:
    if isinstance(value, Mapping):
        for values in value.values():
            _labels(values)
        return {key: _labels(values) for key, values in value.items()}
    return value


_Levels = list[Any] | dict[str, Any]
_Table = Annotated[dict[str, _Levels], BeforeValidator(_label_table)]


class ExperimentSpec(_Checked):
    """An experiment as a person writes it."""

    name: str | None = Field(None, min_length=1, max_length=300, description="For finding it again")
    agents: tuple[AgentSpec, ...] = Field(
        (), min_length=2, description="Who talks; with `pairs` their two seats, or left out"
    )
    models: Annotated[list[str] | dict[str, str], BeforeValidator(_labels)] | None = Field(
        None, description="Models that `pairs` puts together: a list, or names of your own for them"
    )
    pairs: Literal["all", "unordered", "ordered", "self"] | None = Field(
        None,
        description="Of `models`: `unordered`, each two different ones, seats counterbalanced over repetitions; "
        "`ordered`, both ways in every repetition; `self`, each with itself; `all`, unordered and self",
    )
    prompt: str = Field(DEFAULT_PROMPT, description="The opening, given to every agent")
    openings: Annotated[str | list[str] | dict[str, str], BeforeValidator(_labels)] | None = Field(
        None,
        description="Several openings, each an arm of its own: texts, texts by label, a text or YAML file, or a folder "
        "of text files; in a text file, lines of `---` stand between them",
    )
    prompt_tag: str = Field("HUMAN", max_length=60, description="Stands before the opening; empty: nothing does")
    max_turns: int = Field(10, ge=1, description="Rounds in which every agent speaks once")
    repetitions: int = Field(1, ge=1, description="Conversations per arm")
    seed: int | None = Field(None, description="All draws derive from it; unset: drawn and recorded")
    order: Literal["alternate", "random"] = Field("alternate", description="Who speaks when within a turn")
    first: str | None = Field(
        None,
        description="Who opens: an agent id, `random`, or `balanced` (each equally often over the repetitions of an "
        "arm); default: the first agent",
    )
    choose_names: bool = Field(False, description="Agents choose their names before they talk")
    sweep: _Table = Field(
        default_factory=dict,
        description="Values to try, every combination an arm: `a.temperature`, `all.awareness` (every agent) or a key "
        "such as `max_turns`, to a list of values or to values by label",
    )
    zip: _Table = Field(
        default_factory=dict, description="Like `sweep`, but the lists are of equal length and are walked together"
    )
    exclude: tuple[dict[str, Any], ...] = Field(
        (), description="Arms to leave out: mappings of what is swept, `pair` or `opening` to a value or several"
    )
    interventions: tuple[InterventionSpec, ...] = Field(
        (), description="What is done at given turns, or when a metric or a detector says so"
    )
    twins: bool = Field(
        False, description="Beside every conversation another one from the same prefix without the interventions"
    )
    branch: BranchSpec | None = Field(None, description="Every conversation goes on from a recorded one")
    metrics: Literal["live", "off"] = Field(
        "live", description="Compute metrics and detectors while it runs, or leave that to the import"
    )
    embeddings: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="What semantic metrics are computed from when the experiment is over, such as "
        "`openai:text-embedding-3-small` (which is sent every message), `wordllama` (offline, an extra) or "
        "`lexical_hash`; default: there are none",
    )
    convergence: ConvergenceSpec = Field(ConvergenceSpec(), description="How alike the last messages are")
    detectors: dict[str, Annotated[DetectorSpec, BeforeValidator(_detector)]] = Field(
        default_factory=dict,
        description="What happens when an attractor is found: detector to action (`record`, `mark`, `pause`, `stop`), "
        "or to a mapping",
    )
    context: Literal["stop", "window", "summarise"] | ContextSpec = Field(
        ContextSpec(), description="When the context window is full: end, drop oldest turns, or summarise them"
    )
    timeouts: TimeoutSpec = Field(TimeoutSpec(), description="Seconds a request may take")
    retries: RetrySpec = Field(RetrySpec(), description="How failed requests are tried again")
    concurrency: int | None = Field(None, ge=1, description="Requests to one provider at a time")
    max_parallel: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="Conversations at a time; `auto`: as many as the providers' limits let through"
    )
    budget: BudgetSpec | None = Field(None, description="What the experiment may use")
    notify: bool = Field(False, description="Show a notification on the desktop when the experiment ends")
    notify_command: Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)] | None = Field(
        None,
        description="Program that is run when the experiment ends, with its arguments: a list, or a text that is split "
        "at blanks; never through a shell",
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "null"},
            ]
        },
    )
    durability: Literal["message", "strict", "none"] = Field("message", description="When the record is synced to disk")
    lenient: bool = Field(False, description="Leave out, with a recorded warning, settings that a model does not take")
    cache: Literal["off", "on", "shared"] = Field(
        "off", description="Reuse replies: of the same draw when it is run again, or `shared` with every experiment"
    )

    @field_validator("cache", "metrics", mode="before")
    @classmethod
    def _switch(cls, value: object, info: ValidationInfo) -> object:
        # YAML reads a bare on or off as a truth value.
        if info.field_name == "metrics":
            return "off" if value is False else value
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("agents")
    @classmethod
    def _ids_differ(cls, agents: tuple[AgentSpec, ...]) -> tuple[AgentSpec, ...]:
        ids = [agent.id for agent in agents]
        if twice := {agent_id for agent_id in ids if ids.count(agent_id) > 1}:
            raise ValueError(f"two agents have the id {', '.join(sorted(twice))}")
        if reserved := {"both", ALL, *SPECIAL_OPENERS} & set(ids):
            raise ValueError(f"{', '.join(sorted(reserved))} cannot be the id of an agent")
        return agents

    def contradictions(self) -> Iterator[Fault]:
        """What cannot be true of one arm at once. The keys that make arms are judged apart from it."""
        ids = seat_ids(self)
        if not self.agents and self.pairs is None:
            yield Fault(("agents",), "Field required")
        for index, agent in enumerate(self.agents):
            if not agent.model and self.pairs is None:
                yield Fault(("agents", str(index), "model"), "Field required")
        if self.first not in (None, *SPECIAL_OPENERS, *ids):
            yield Fault(("first",), f"no agent {self.first!r}; there are {', '.join(ids)}, or random, or balanced")
        if self.metrics == "off" and (self.convergence.threshold is not None or self.detectors):
            yield Fault(("metrics",), "metrics: off leaves nothing for convergence and detectors to go by")
        if self.metrics == "off" and any(one.when is not None for one in self.interventions):
            yield Fault(("metrics",), "metrics: off leaves nothing for interventions to wait for")
        if self.twins and not self.interventions and not any(each.text for each in self.detectors.values()):
            yield Fault(("twins",), "there are no interventions that a twin could go without")
        if self.branch is not None and "prompt" in self.model_fields_set:
            yield Fault(("prompt",), f"a branch begins with the opening of {self.branch.of}; leave this out")
        if self.branch is not None and self.max_turns <= self.branch.turn:
            yield Fault(
                ("max_turns",),
                f"turns count from the start of {self.branch.of}, so there must be more than the "
                f"{self.branch.turn} before the branch",
            )
        yield from self._wrong_interventions(ids)
        yield from self._wrong_ties(ids)

    def _wrong_ties(self, ids: tuple[str, ...]) -> Iterator[Fault]:
        """What detectors and the interventions that wait for them do not agree on."""
        tied: set[str] = set()
        for index, intervention in enumerate(self.interventions):
            if (when := intervention.when) is None:
                continue
            place = ("interventions", str(index), "when")
            if when.agent is not None and when.agent not in (ALL, *ids):
                yield Fault(
                    (*place, "agent"),
                    f"no agent {when.agent!r}; there are {', '.join(ids)}, or all.{nearest(when.agent, ids)}",
                )
            first = 0 if self.branch is None else self.branch.turn
            if self.max_turns < 2 or self.max_turns <= first:
                yield Fault(place, f"there is no turn after one that could meet it: max_turns is {self.max_turns}")
            if when.detector is not None:
                tied.add(when.detector)
                policy = self.detectors.get(when.detector)
                if policy is not None and policy.action == "stop":
                    yield Fault(
                        (*place, "detector"),
                        f"{when.detector} ends the conversation, so nothing comes after it; give it another action",
                    )
        for name, policy in self.detectors.items():
            if policy.action == "intervene" and policy.text is None and name not in tied:
                yield Fault(
                    ("detectors", name),
                    "intervene puts in text, or does what interventions with `when: {detector: "
                    f"{name}}}` say; there is neither",
                )

    def _wrong_interventions(self, ids: tuple[str, ...]) -> Iterator[Fault]:
        silent: dict[int, set[str]] = {}
        # Nobody knows beforehand when a trigger silences an agent, so at any time.
        any_time = {name for one in self.interventions if one.when and one.action == "mute" for name in one.agents}
        told = False
        for index, intervention in enumerate(self.interventions):
            place = ("interventions", str(index))
            turn, action = intervention.turn, intervention.action
            if turn is not None:
                yield from self._wrong_turn((*place, "turn"), turn, action)
            for agent_id in intervention.agents:
                if agent_id not in ids and not (action == "inject" and agent_id == ALL):
                    key = {"inject": "to", "mute": "mute"}.get(action, "agent")
                    yield Fault(
                        (*place, key), f"no agent {agent_id!r}; there are {', '.join(ids)}.{nearest(agent_id, ids)}"
                    )
            if action == "mute" and turn is None and any_time.issuperset(ids) and not told:
                told = True
                yield Fault((*place, "mute"), "triggers may silence everybody at once, so that nobody would speak")
            if action == "mute" and turn is not None:
                for each in range(turn, min(turn + intervention.turns, self.max_turns + 1)):
                    before = len(silent.setdefault(each, set(any_time)))
                    silent[each].update(intervention.agents)
                    if before < len(ids) and silent[each].issuperset(ids):
                        also = ", if a trigger silences the others" if any_time - set(intervention.agents) else ""
                        yield Fault((*place, "mute"), f"in turn {each} nobody would speak{also}")
                        break

    def _wrong_turn(self, place: Place, turn: int, action: Action) -> Iterator[Fault]:
        if turn > self.max_turns:
            yield Fault(place, f"turn {turn} never comes: max_turns is {self.max_turns}")
        if self.branch is not None and turn <= self.branch.turn:
            yield Fault(place, f"turn {turn} is before the branch; it begins after {self.branch.turn}")
        if action == "edit" and turn == 1:
            yield Fault(place, "before turn 1 there is no message to edit")


def seat_ids(spec: ExperimentSpec) -> tuple[str, ...]:
    """The ids of the agents, given or not."""
    return tuple(agent.id for agent in spec.agents) or (("a", "b") if spec.pairs is not None else ())
