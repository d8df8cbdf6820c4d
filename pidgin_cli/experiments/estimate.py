"""What an experiment will ask and may cost, before it does."""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

from pidgin_cli.core.types import Agent, Usage
from pidgin_cli.providers.registry import at_home, split_model
from pidgin_cli.spec.catalogue import context_window, cost_usd, facts
from pidgin_cli.spec.conversation import ConversationSpec

__all__ = ["ArmEstimate", "Estimate", "estimate"]

BYTES_PER_TOKEN = 4
MOST_TURNS = 1000
"""Of more turns every second, third, … is reckoned, and counted for those between."""
FRAME_TOKENS = 8
"""What a chat template puts around a message, roughly."""


class _Assumed(NamedTuple):
    """How long replies are, in tokens, and how much of a prompt is read from the provider's cache."""

    reply: int
    thinking: int
    """Where an agent thinks and no budget is set."""
    budget_share: float
    """Of a thinking budget, where one is set."""
    cached: bool
    """What an agent was sent before is read at the cached price, where there is one."""


SHORT = _Assumed(reply=80, thinking=100, budget_share=0.1, cached=True)
LONG = _Assumed(reply=700, thinking=4000, budget_share=1.0, cached=False)
"""The two ends of the range: most talks between models of our day lie between them. `max_tokens` cuts the upper end."""


class ArmEstimate(Struct):
    """One arm of the plan, all its repetitions together."""

    arm: str
    conversations: int
    turns: int
    calls: int
    """Replies asked for; names and summaries come on top."""
    tokens: tuple[int, int]
    """Prompt and completion tokens, lower and upper end."""
    cost_usd: tuple[float, float] | None
    """Lower and upper end; None where a price is not known."""


class Estimate(Struct):
    """The plan of an experiment in numbers."""

    conversations: int
    calls: int
    tokens: tuple[int, int]
    cost_usd: tuple[float, float] | None
    arms: list[ArmEstimate]


def estimate(conversations: Iterable[ConversationSpec]) -> Estimate:
    """Calls, tokens and cost of conversations.

    Prompts grow with everything said before, as each agent is sent all of it again, up to its context window. The lower
    end takes replies of 80 tokens, little thinking and a warm prompt cache; the upper end replies of 700 tokens (or
    `max_tokens`), all of the thinking budget and no cache.
    """
    arms: dict[str, ArmEstimate] = {}
    known: dict[tuple[object, ...], tuple[tuple[int, int], tuple[float, float] | None]] = {}
    for spec in conversations:
        fork = spec.origin.turn if spec.origin is not None else 0
        turns = max(0, spec.max_turns - fork)
        shape = tuple((agent.model, agent.settings.max_tokens, _thinks(agent), _size(agent)) for agent in spec.agents)
        changes = tuple((change.turn, change.kind, change.agents, change.model) for change in spec.interventions)
        key = (shape, spec.max_turns, fork, len(spec.opening), spec.context.limit_tokens, changes)
        if key not in known:
            known[key] = _range(spec, fork)
        tokens, cost = known[key]
        calls = turns * len(spec.agents) - sum(
            len(change.agents) * min(change.turns, spec.max_turns - change.turn + 1)
            for change in spec.interventions
            if change.kind == "mute" and change.when is None
        )
        arm = arms.get(spec.arm)
        if arm is None:
            arms[spec.arm] = ArmEstimate(spec.arm, 1, turns, calls, tokens, cost)
            continue
        arm.conversations += 1
        arm.turns += turns
        arm.calls += calls
        arm.tokens = (arm.tokens[0] + tokens[0], arm.tokens[1] + tokens[1])
        arm.cost_usd = _plus(arm.cost_usd, cost)
    total_cost: tuple[float, float] | None = (0.0, 0.0)
    for arm in arms.values():
        total_cost = _plus(total_cost, arm.cost_usd)
    return Estimate(
        conversations=sum(arm.conversations for arm in arms.values()),
        calls=sum(arm.calls for arm in arms.values()),
        tokens=(sum(arm.tokens[0] for arm in arms.values()), sum(arm.tokens[1] for arm in arms.values())),
        cost_usd=total_cost,
        arms=list(arms.values()),
    )


def _plus(one: tuple[float, float] | None, other: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


def _thinks(agent: Agent) -> tuple[object, ...]:
    return agent.settings.think, agent.settings.think_budget, agent.settings.effort


def _size(agent: Agent) -> int:
    return len(agent.system_prompt or "")


def _range(spec: ConversationSpec, fork: int) -> tuple[tuple[int, int], tuple[float, float] | None]:
    (low_tokens, low_cost), (high_tokens, high_cost) = (_sum(spec, fork, assumed) for assumed in (SHORT, LONG))
    cost = None if low_cost is None or high_cost is None else (min(low_cost, high_cost), max(low_cost, high_cost))
    return (min(low_tokens, high_tokens), max(low_tokens, high_tokens)), cost


def _sum(spec: ConversationSpec, fork: int, assumed: _Assumed) -> tuple[int, float | None]:
    """Tokens and cost of one conversation in which every reply is as long as assumed."""
    stride = max(1, (spec.max_turns - fork) // MOST_TURNS)
    said = len(spec.opening.encode()) // BYTES_PER_TOKEN + FRAME_TOKENS
    said += sum(_reply(agent, assumed) + FRAME_TOKENS for agent in spec.agents) * fork
    sent_before: dict[tuple[str, str], int] = {}
    tokens, cost = 0, 0.0
    priced = True
    for turn in range(fork + 1, spec.max_turns + 1, stride):
        times = min(stride, spec.max_turns + 1 - turn)
        muted: set[str] = set()
        models = {agent.id: agent.model for agent in spec.agents}
        for change in (one for one in spec.interventions if one.when is None):
            if change.kind == "mute" and change.turn <= turn < change.turn + change.turns:
                muted.update(change.agents)
            elif change.kind == "swap_model" and change.turn <= turn and change.model is not None:
                models.update(dict.fromkeys(change.agents, change.model))
        for agent in spec.agents:
            if agent.id in muted:
                continue
            model_id = models[agent.id]
            reply = _reply(agent, assumed)
            output = reply + _thinking(agent, assumed)
            window = spec.context.limit_tokens or context_window(model_id)
            prompt = len((agent.system_prompt or "").encode()) // BYTES_PER_TOKEN + said
            if window is not None:
                prompt = min(prompt, max(1, window - output))
            cached = sent_before.get((agent.id, model_id), 0) if assumed.cached and _has_cached_price(model_id) else 0
            sent_before[agent.id, model_id] = prompt
            usage = Usage(prompt_tokens=prompt, completion_tokens=output, cached_tokens=min(cached, prompt))
            price = cost_usd(model_id, usage, at_home=at_home(split_model(model_id)[0]))
            tokens += (prompt + output) * times
            cost, priced = (cost + price * times, priced) if price is not None else (cost, False)
            said += (reply + FRAME_TOKENS) * times
    return tokens, cost if priced else None


def _reply(agent: Agent, assumed: _Assumed) -> int:
    most = agent.settings.max_tokens
    return assumed.reply if most is None else min(assumed.reply, most)


def _thinking(agent: Agent, assumed: _Assumed) -> int:
    settings = agent.settings
    if not (settings.think or settings.think_budget or settings.effort):
        return 0
    if settings.think_budget is not None:
        return int(settings.think_budget * assumed.budget_share)
    most = settings.max_tokens
    return assumed.thinking if most is None else max(0, min(assumed.thinking, most - _reply(agent, assumed)))


def _has_cached_price(model_id: str) -> bool:
    return facts(model_id).cached_price is not None
