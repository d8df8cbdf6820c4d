"""Money, tokens and time that an experiment may use: nothing is begun that could overrun it.

Every request reserves the most that it can use before it goes out, and gives back what it did not use when its reply is
there. What is spent and what is in flight together never exceed a cap, whatever runs at the same time. A prompt has at
most as many tokens as bytes (and a few for each message's frame), a reply at most `max_tokens`.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from pidgin_cli.conversation.control import Amount, Stop, Until
from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    QuestionAbandonedEvent,
    QuestionEvent,
    RateLimitEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import EndReason, ModelRequest, Usage
from pidgin_cli.providers.registry import ProviderPool, at_home, effective_parameters, split_model
from pidgin_cli.spec.catalogue import cost_usd
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import ExperimentSpec

__all__ = ["Budget", "Caps", "ConversationPurse", "Spent", "caps_of", "check_caps", "run_time", "spent_so_far"]

_NOTHING = Amount(0, 0.0)


class Caps(NamedTuple):
    """Upper ends; None: no limit."""

    usd: float | None = None
    tokens: int | None = None
    """Prompt and completion together."""
    seconds: float | None = None
    """Wall time of running; breaks between runs do not count."""

    def hold(self, usd: float, tokens: int) -> bool:
        """Whether so much is within them."""
        # Sums of thousands of prices carry rounding errors; a nanodollar is none.
        return (self.usd is None or usd <= self.usd + 1e-9) and (self.tokens is None or tokens <= self.tokens)


class Spent(NamedTuple):
    """What was used so far."""

    usd: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def spent_so_far(events: Iterable[Event]) -> Spent:
    """What a conversation has used, as its record tells it.

    An attempt at a message, a name or a summary that broke off or was not waited for any longer, or was under way when
    the process died, counts with all that was set aside for it, as it did while it ran.
    """
    usd, tokens, seconds = 0.0, 0, 0.0
    began = last = None
    most = _NOTHING
    """What the latest request set aside."""
    under_way = broke_off = False
    question = False
    """The request under way is for a name or a summary, after whose loss nothing is said of it."""
    for event in events:
        if question and under_way and isinstance(event, MessageRequestEvent | QuestionEvent | ConversationResumedEvent):
            usd, tokens = usd + most.usd, tokens + most.tokens
            under_way = False
        if isinstance(event, MessageRequestEvent | QuestionEvent):
            most, under_way, broke_off = _reserved(event), True, False
            question = isinstance(event, QuestionEvent)
        elif isinstance(event, MessageAbandonedEvent | QuestionAbandonedEvent):
            usd, tokens = usd + most.usd, tokens + most.tokens
            broke_off = True
            under_way = under_way and not question
        elif isinstance(event, APIErrorEvent | RateLimitEvent):
            billed = isinstance(event, APIErrorEvent) and event.may_be_billed
            if billed and under_way and not broke_off:
                usd, tokens = usd + most.usd, tokens + most.tokens
            broke_off = False
        elif isinstance(event, MessageCompleteEvent | ConversationEndEvent):
            under_way = False
        elif isinstance(event, TokenUsageEvent):
            is_part_of_most = event.purpose == "abandoned" and most != _NOTHING
            if not event.cached and not is_part_of_most:
                known = event.prompt_tokens is not None and event.completion_tokens is not None
                usd += most.usd if event.cost is None else event.cost
                tokens += (event.prompt_tokens or 0) + (event.completion_tokens or 0) if known else most.tokens
            under_way = under_way and not question
        elif isinstance(event, ConversationStartEvent | ConversationResumedEvent):
            if began is not None and last is not None:
                seconds += max(0.0, (last - began).total_seconds())
            began = event.timestamp
        last = event.timestamp
    if began is not None and last is not None:
        seconds += max(0.0, (last - began).total_seconds())
    if under_way:
        usd, tokens = usd + most.usd, tokens + most.tokens
    return Spent(usd, tokens, seconds)


def _reserved(event: MessageRequestEvent | QuestionEvent) -> Amount:
    found = event.reserved or {}
    return Amount(int(found.get("tokens", 0)), float(found.get("usd", 0.0)))


def run_time(events: Iterable[Event], seen: Iterable[datetime] = ()) -> float:
    """Seconds that earlier runs of an experiment took, as its own log tells it.

    Args:
        seen: when something was recorded in the conversations' logs, in any order. A run that was killed lasted at
            least as long as it recorded anything.
    """
    times = sorted(seen)
    seconds = 0.0
    began: datetime | None = None

    def killed(until: datetime | None) -> float:
        known = len(times) if until is None else bisect_left(times, until)
        return 0.0 if began is None or not known else max(0.0, (times[known - 1] - began).total_seconds())

    for event in events:
        if isinstance(event, ExperimentStartEvent):
            seconds += killed(event.timestamp)
            began = event.timestamp
        elif isinstance(event, ExperimentCompleteEvent) and began is not None:
            seconds += max(0.0, (event.timestamp - began).total_seconds())
            began = None
    return seconds + killed(None)


def caps_of(spec: ExperimentSpec) -> tuple[Caps, Caps]:
    """What a spec caps: for the whole experiment, and for each conversation."""
    budget = spec.budget
    if budget is None:
        return Caps(), Caps()
    each = budget.per_conversation
    whole = Caps(budget.usd, budget.tokens, budget.wall_time)
    return whole, Caps() if each is None else Caps(each.usd, each.tokens, each.wall_time)


class Budget:
    """What an experiment has spent, what its requests under way may still use, and the caps on both together."""

    def __init__(self, caps: Caps, per_conversation: Caps, spent: Spent) -> None:
        self.caps = caps
        self.per_conversation = per_conversation
        self.usd = spent.usd
        self.tokens = spent.tokens
        self.held_usd = 0.0
        self.held_tokens = 0
        self.ended_by: Literal["usd", "tokens", "wall_time"] | None = None
        """The cap that was reached; nothing is begun from then on."""
        self._waiting: deque[tuple[Amount, asyncio.Future[None]]] = deque()

    @property
    def exhausted(self) -> bool:
        return self.ended_by is not None

    def purse(self, spent: Spent) -> "ConversationPurse":
        """The share of one conversation, which has spent so much already."""
        return ConversationPurse(self, spent)

    async def reserve(self, most: Amount, until: Until) -> None:
        """Set `most` aside, after waiting for others to give back what they do not need.

        Raises:
            Stop: it cannot fit any more, whatever the others give back.
        """
        if self.exhausted or not self.caps.hold(self.usd + most.usd, self.tokens + most.tokens):
            self.exhaust(self._too_small_for(most))
            raise _stop()
        if not self._waiting and self._fits(most):
            self._hold(most)
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, ready))
        try:
            await until(ready)
            ready.result()
        except BaseException:
            if ready.done() and not ready.cancelled() and ready.exception() is None:
                self.settle(most, Amount(0, 0.0))
            else:
                ready.cancel()
            raise

    def settle(self, most: Amount, used: Amount) -> None:
        """Give back what was set aside, less what was used."""
        self.held_usd = max(0.0, self.held_usd - most.usd)
        self.held_tokens -= most.tokens
        self.usd += used.usd
        self.tokens += used.tokens
        while self._waiting and not self.exhausted:
            wanted, ready = self._waiting[0]
            if not ready.done():
                if not self.caps.hold(self.usd + wanted.usd, self.tokens + wanted.tokens):
                    self.exhaust(self._too_small_for(wanted))
                    return
                if not self._fits(wanted):
                    return
                self._hold(wanted)
                ready.set_result(None)
            self._waiting.popleft()

    def _fits(self, most: Amount) -> bool:
        return self.caps.hold(self.usd + self.held_usd + most.usd, self.tokens + self.held_tokens + most.tokens)

    def _hold(self, most: Amount) -> None:
        self.held_usd += most.usd
        self.held_tokens += most.tokens

    def _too_small_for(self, most: Amount) -> Literal["usd", "tokens"]:
        return "tokens" if self.caps.hold(self.usd + most.usd, 0) else "usd"

    def exhaust(self, cap: Literal["usd", "tokens", "wall_time"]) -> None:
        """A cap is reached: whoever waits for room, or asks for it later, is told to stop."""
        self.ended_by = self.ended_by or cap
        while self._waiting:
            _, ready = self._waiting.popleft()
            if not ready.done():
                ready.set_exception(_stop())


class ConversationPurse:
    """What one conversation may still use, within its own caps and those of the experiment."""

    def __init__(self, budget: Budget, spent: Spent) -> None:
        self._budget = budget
        self._usd = spent.usd
        self._tokens = spent.tokens

    async def reserve(self, most: Amount, until: Until) -> None:
        """See `Budget.reserve`."""
        if not self._budget.per_conversation.hold(self._usd + most.usd, self._tokens + most.tokens):
            raise _stop()
        await self._budget.reserve(most, until)

    def settle(self, most: Amount, used: Amount) -> None:
        """See `Budget.settle`."""
        self._usd += used.usd
        self._tokens += used.tokens
        self._budget.settle(most, used)


def _stop() -> Stop:
    return Stop("budget", EndReason.BUDGET)


def check_caps(
    caps: Caps, per_conversation: Caps, conversations: Iterable[ConversationSpec], pool: ProviderPool
) -> list[str]:
    """Why these caps could not be kept: a price that is not known, or a request without an upper bound."""
    money = caps.usd is not None or per_conversation.usd is not None
    tokens = caps.tokens is not None or per_conversation.tokens is not None
    if not money and not tokens:
        return []
    faults: dict[str, None] = {}
    seen = set()
    summarisers = set()
    for spec in conversations:
        asked = [(agent.id, agent.model, agent.settings) for agent in spec.agents]
        for change in spec.interventions:
            if change.model is not None:
                asked += [(name, change.model, spec.agent(name).settings) for name in change.agents]
        for agent_id, model_id, settings in asked:
            if (key := (agent_id, model_id, settings.max_tokens)) in seen:
                continue
            seen.add(key)
            info, model = split_model(model_id)
            price = cost_usd(model_id, Usage(prompt_tokens=1, completion_tokens=1), at_home=at_home(info))
            if money and price is None:
                faults[
                    f"agent {agent_id}: the price of {model_id} is not known, so a cap in USD cannot be kept; give its "
                    f"prices in the settings ([models.{model_id!r}] input_price, output_price), or cap tokens"
                ] = None
            if tokens or price:
                request = ModelRequest(model=model, messages=(), settings=settings)
                parameters = effective_parameters(pool.adapter(model_id, spec.timeouts, settings), request)
                most = parameters.get("max_tokens")
                if most is not None:
                    usage = Usage(prompt_tokens=1, completion_tokens=most)
                    cost = cost_usd(model_id, usage, at_home=at_home(info)) or 0.0
                    if not (caps.hold(cost, most + 1) and per_conversation.hold(cost, most + 1)):
                        faults[
                            f"agent {agent_id}: one reply of {model_id} may take {most:,} tokens"
                            f"{f' (${cost:,.2f})' if cost else ''}, more than a cap allows; set a smaller max_tokens, "
                            f"or a larger cap"
                        ] = None
                else:
                    faults[
                        f"agent {agent_id}: a reply of {model_id} has no upper bound, so a cap on "
                        f"{'tokens' if tokens else 'USD'} cannot be kept; set max_tokens"
                    ] = None
        summariser = spec.context.model if spec.context.policy == "summarise" else None
        if money and summariser is not None and summariser not in summarisers:
            summarisers.add(summariser)
            at_vendor = at_home(split_model(summariser)[0])
            if cost_usd(summariser, Usage(prompt_tokens=1, completion_tokens=1), at_home=at_vendor) is None:
                faults[f"the summaries: the price of {summariser} is not known, so a cap in USD cannot be kept"] = None
    return list(faults)
