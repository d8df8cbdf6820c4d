"""One conversation, resolved: nothing in it has to be looked up any more."""

import hashlib
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pidgin_cli.core.types import Agent, Message, Retries, Role, Timeouts

__all__ = [
    "NO_PART_OF_THE_DRAW",
    "ContextPolicy",
    "ConvergencePolicy",
    "ConversationSpec",
    "DetectorPolicy",
    "Injection",
    "Intervention",
    "Origin",
    "Placeholders",
    "Trigger",
    "derive_seed",
    "spec_hash",
]


class Injection(Struct, frozen=True, omit_defaults=True):
    """Text that one agent is given at the start of a turn; turn 0: with the opening."""

    turn: int
    agent_id: str
    text: str
    source: str
    placement: Literal["user", "system"] = "user"
    """`user`: as tagged user text, alike in every family. `system`: as the family of the agent's model allows."""


class Trigger(Struct, frozen=True, omit_defaults=True):
    """What must be so at the end of a turn for an intervention to be done when the next one begins.

    Exactly one of `metric`, `detector` and `state` is given.
    """

    metric: str | None = None
    """Of the turn's messages; `convergence` without an agent is the score of the turn."""
    above: float | None = None
    """The value must be greater."""
    below: float | None = None
    """The value must be less."""
    agent: str | None = None
    """Whose message; `all`: every message of the turn; None: any of them."""
    detector: str | None = None
    """It fired in the turn, or is active at its end."""
    state: str | None = None
    """The fused state at the end of the turn."""
    for_turns: int = 1
    """So many turns in a row."""

    def __str__(self) -> str:
        what = f"detector {self.detector}" if self.detector is not None else f"state {self.state}"
        if self.metric is not None:
            whose = {None: "", "all": " of all"}.get(self.agent, f" of {self.agent}")
            bound = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
            what = f"{self.metric}{whose} {bound}"
        return what if self.for_turns == 1 else f"{what} for {self.for_turns} turns"


class Intervention(Struct, frozen=True, omit_defaults=True):
    """What a script does when a turn begins, before anybody speaks in it."""

    turn: int
    """Counted from 1; 0: whenever the turn before met `when`."""
    kind: Literal["inject", "edit", "mute", "swap_model", "swap_system_prompt"]
    agents: tuple[str, ...]
    """Whom it concerns: who is given the text (inject), whose last message is changed (edit), who is silent (mute), who
    gets another model or system prompt from here on (swap)."""
    text: str | None = None
    """The words put in, the message as it shall read, or the new system prompt (None: none)."""
    model: str | None = None
    """`provider:model` from this turn on."""
    turns: int = 1
    """How many turns the agent is silent."""
    placement: Literal["user", "system"] = "user"
    when: Trigger | None = None
    times: int = 1
    """How often at most, of one with a trigger."""


class ConvergencePolicy(Struct, frozen=True, omit_defaults=True):
    """How alike the last messages are, and what happens when they are too much so."""

    threshold: float | None = None
    """From 0 to 1; None: none."""
    action: Literal["notify", "pause", "stop"] = "notify"
    profile: str = "balanced"
    weights: dict[str, float] = {}
    """Of the parts of the score, instead of a profile's."""


class DetectorPolicy(Struct, frozen=True, omit_defaults=True):
    """What happens when an attractor detector fires."""

    action: Literal["record", "mark", "pause", "stop", "intervene"] = "record"
    text: str | None = None
    """What is put in, to all agents, by `intervene`; None: what the interventions do that wait for this detector."""
    thresholds: dict[str, float] = {}
    """Instead of the detector's own."""


class Origin(Struct, frozen=True, omit_defaults=True):
    """Where a branch leaves another conversation. What comes before is that conversation's, and stays in its log."""

    conversation_id: str
    turn: int
    """The last turn that both share; 0: what stands before the first one."""
    until_intervention: bool = False
    """Only in a plan, where triggers decide: both share everything up to the turn before the first intervention, which
    cannot be before the end of `turn`. A conversation that has begun has a `turn` of its own."""


class ContextPolicy(Struct, frozen=True, omit_defaults=True):
    """What happens when an agent's next request would not fit into its model's context window."""

    policy: Literal["stop", "window", "summarise"] = "stop"
    limit_tokens: int | None = None
    """Instead of the model's own window."""
    reserve_tokens: int = 4096
    """Room kept for the reply where the agent has no `max_tokens`."""
    model: str | None = None
    """Who writes the summary; None: the agent's own model."""
    pinned: tuple[str, ...] = ()
    """Facts that stand beside every summary."""


class Placeholders(Struct, frozen=True):
    """Texts that stand in a view where a provider takes no blank text. They are never part of a message."""

    blank: str = "[silence]"
    """For an utterance without a visible character."""
    nothing_new: str = "[go on]"
    """Where an agent speaks again before anybody else did."""


class ConversationSpec(Struct, frozen=True, kw_only=True):
    """Everything that decides how one conversation runs."""

    agents: tuple[Agent, ...]
    opening: str
    prompt_tag: str = "HUMAN"
    max_turns: int = 10
    order: Literal["alternate", "random"] = "alternate"
    first: str = "a"
    """The agent that opens."""
    seed: int = 0
    arm: str = ""
    """Label of the swept values, such as `a.temperature=0.2`."""
    variables: dict[str, Any] = {}
    """The swept values by name, as the arm's label shows them."""
    seating: str = ""
    """Who sits where, as models by seat, where a spec puts pairs of models together."""
    repetition: int = 1
    origin: Origin | None = None
    injections: tuple[Injection, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    choose_names: bool = False
    stop_phrases: dict[str, str] = {}
    """By agent id: the agent ends the conversation by saying it."""
    context: ContextPolicy = ContextPolicy()
    speaker_label: str | None = None
    """How the words of others are named in a view, such as `[{name}]: {text}`; None: not at all."""
    placeholders: Placeholders = Placeholders()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    concurrency: int | None = None
    """Requests to one provider at a time, over all conversations of a process."""
    durability: Literal["message", "strict", "none"] = "message"
    lenient: bool = False
    """Leave out, with a recorded warning, settings that a model does not take."""
    thinking_label: str = "[{name} thinks]: {text}"
    """How thinking that others may see stands before the words."""
    metrics: Literal["live", "off"] = "live"
    """Whether metrics and detectors are computed while it runs."""
    convergence: ConvergencePolicy = ConvergencePolicy()
    detectors: dict[str, DetectorPolicy] = {}
    """By the detector's name; those that are not named are recorded."""
    cache: Literal["off", "on", "shared"] = "off"
    """`on`: replies of this very draw are reused when it is run again. `shared`: of any draw, in any experiment."""

    def agent(self, agent_id: str) -> Agent:
        return next(agent for agent in self.agents if agent.id == agent_id)

    def tagged(self, text: str) -> Message:
        """Text from outside, as a view shows it."""
        return Message(role=Role.USER, content=f"[{self.prompt_tag}]: {text}" if self.prompt_tag else text)

    def draw(self, conversation_id: str) -> str:
        """What tells this conversation's draws from all others: equal when the same conversation is run again.

        Everything in the spec counts but `NO_PART_OF_THE_DRAW`, which leaves what is asked as it is, so that more turns
        begin like fewer. A branch is another draw every time it is made, even with the same origin and settings.
        """
        told = {name: value for name, value in self.to_json().items() if name not in NO_PART_OF_THE_DRAW}
        return spec_hash([told, None if self.origin is None else conversation_id])

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ConversationSpec":
        return msgspec.convert(data, cls)


NO_PART_OF_THE_DRAW = frozenset(
    {
        "max_turns",
        "durability",
        "retries",
        "timeouts",
        "concurrency",
        "lenient",
        "cache",
        "metrics",
        "convergence",
        "detectors",
    }
)
"""Keys of a `ConversationSpec` that decide how long and how carefully it runs, but not what a model is asked."""


def spec_hash(data: object) -> str:
    """A digest of any JSON-able value, independent of the order of its keys."""
    return hashlib.blake2b(msgspec.json.encode(data, order="deterministic"), digest_size=12).hexdigest()


def derive_seed(*parts: object, bits: int = 52) -> int:
    """A seed that depends on `parts` alone; the same on every machine and in every run."""
    digest = hashlib.blake2b(msgspec.json.encode([str(part) for part in parts]), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
