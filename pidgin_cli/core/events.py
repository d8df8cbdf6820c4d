"""Every fact that can stand in a record, as one tagged union.

An event is a completed fact and one line of JSON. The envelope comes first; absent optionals are left out. New fields
get defaults, so that old records stay readable; a field is never given a second meaning.

`event_id`, `seq`, `timestamp`, `experiment_id` and `conversation_id` are set by the log that writes the event
(`eventlog.EventLog`), never by the code that reports it.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct, field

from .types import Agent, EndReason, FinishReason, Message, Status, Timing, Usage

__all__ = ["EVENT_TYPES", "SCHEMA_VERSION", "Event", "View"]

SCHEMA_VERSION = 1

_UNSTAMPED = datetime(1970, 1, 1, tzinfo=UTC)


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event_type", tag=True, gc=False):
    """The envelope that every line begins with."""

    event_id: str = ""
    """`<conversation or experiment id>:<seq>`."""
    seq: int = -1
    """Counts from 0 without gaps in each file."""
    timestamp: datetime = _UNSTAMPED
    """UTC, when the event was handed to the log."""
    experiment_id: str = ""
    conversation_id: str | None = None
    """Absent in experiment-level events."""
    text_replaced: bool = False
    """Text in this event held lone surrogates; they stand as U+FFFD."""


class View(Struct, frozen=True, rename={"start": "from", "end": "to"}, gc=False):
    """Which part of the history a request carried, as message indexes `from` (included) to `to` (excluded)."""

    start: int
    end: int
    omitted: int
    """Messages before `from` that were left out or summarised."""
    extra: int
    """Texts without an index: opening, naming notice, interventions, summary and pinned facts."""


class ConversationStartEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Always line 1 of a conversation's log, exactly once."""

    schema_version: int
    pidgin_version: str
    spec: dict[str, Any]
    """The resolved conversation spec."""
    spec_hash: str
    agents: tuple[Agent, ...]
    opening: str
    prompt_tag: str
    seed: int
    arm: str
    repetition: int
    branch_of: dict[str, Any] | None = None
    """Where a branch leaves another conversation: `conversation_id`, `turn`, `message_index` of the first message of
    its own, and `digest` of what it shares with that conversation."""


class SystemPromptEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The system prompt of one agent; text absent where it has none."""

    agent_id: str
    text: str | None = None
    placement: str | None = None
    """How this provider receives it, such as `system parameter` or `system message`."""


class AgentNamedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent chose its name."""

    agent_id: str
    name: str
    reply: str
    """What the model answered, whole."""
    chosen: bool = True
    """False: no name could be read from the reply, so the agent keeps the one it had."""


class TurnStartEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A round begins."""

    turn_number: int
    speakers: tuple[str, ...]


class MessageRequestEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A model is asked. Says what it is sent by index ranges and a digest, never by the text itself."""

    agent_id: str
    turn_number: int
    message_index: int
    view: View
    digest: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """What is sent besides the text, as far as it is set."""
    placeholders: int = 0
    """Blank texts among those sent, which the agent sees as the declared placeholder."""
    reserved: dict[str, int | float] | None = None
    """Under a budget the most that an attempt can use, `tokens` and `usd`; one that breaks off counts as so much."""


class ThinkingCompleteEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One block of what a model thought before its message; never part of the message."""

    agent_id: str
    turn_number: int
    message_index: int
    content: str
    tokens: int | None = None
    """Of all blocks of the reply; stands on the last one."""
    signature: str | None = None
    """The vendor's, which goes back to the same model."""
    redacted: bool = False
    """The vendor keeps the text to itself: `signature` holds it encrypted."""


class MessageCompleteEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent has spoken."""

    agent_id: str
    turn_number: int
    message_index: int
    message: Message
    finish_reason: FinishReason
    usage: Usage = Usage()
    cost: float | None = None
    """USD; absent when the price is not known."""
    timing: Timing = Timing()
    model_requested: str
    model_served: str | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    cached: bool = False
    attempt: int = 1


class MessageAbandonedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A reply that began and was not finished; not part of the conversation."""

    agent_id: str
    turn_number: int
    message_index: int
    why: str
    partial: str | None = None
    """What had arrived; absent where the process did not live to know it."""
    attempt: int | None = None


class QuestionEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A model is asked what becomes no message: a name, or a summary. Each attempt after a broken one is one more."""

    agent_id: str
    turn_number: int
    purpose: str
    """`name` or `summary`."""
    model: str
    """Who is asked, as `provider:model`."""
    digest: str
    """Of the system prompt and the question."""
    reserved: dict[str, int | float] | None = None
    """Under a budget the most that an attempt can use, `tokens` and `usd`; one that breaks off counts as so much."""


class QuestionAbandonedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An answer to a question beside the conversation began and was not finished."""

    agent_id: str
    turn_number: int
    purpose: str
    why: str
    partial: str | None = None
    attempt: int | None = None


class TokenUsageEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """What a reply used, with the conversation's running totals."""

    agent_id: str
    provider: str
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    thinking_tokens: int | None = None
    cached_tokens: int | None = None
    estimated: bool = False
    cost: float | None = None
    purpose: Literal["message", "name", "summary", "abandoned"] = "message"
    """`abandoned`: what a reply used that broke off, as far as it was reported; a lower bound, marked estimated."""
    cached: bool = False
    """The reply came from the response cache: the tokens are those of when it was paid for; no budget counts them."""
    total_tokens: int | None = None
    """Prompt and completion tokens of the conversation so far; absent as soon as one reply did not report them."""
    total_cost: float | None = None
    """USD so far; absent as soon as one price is not known."""


class TurnCompleteEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Every scheduled agent has spoken."""

    turn_number: int
    metrics: dict[str, Any] = field(default_factory=dict)
    convergence: float | None = None
    detectors: dict[str, Any] = field(default_factory=dict)


class ConvergenceWarningEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A convergence score crossed its threshold."""

    turn_number: int
    score: str
    value: float
    threshold: float
    onset: int | None = None
    action: str


class AttractorEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A detector found the conversation in an attractor state."""

    turn_number: int
    message_index: int
    detector: str
    value: float
    threshold: float
    onset: int | None = None
    """Index of the first message that belongs to it."""
    period: int | None = None
    """For recurrences and cycles: how many messages back the same was said. For inner loops: tokens of the phrase."""
    action: str


class InterventionEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something done to the conversation from outside."""

    turn_number: int
    """0: with the opening."""
    source: str
    """`person`, `script`, `awareness:<name>`, `naming` or `delegate`."""
    audience: tuple[str, ...]
    """Agent ids that see it."""
    kind: Literal["inject", "edit", "mute", "swap_model", "swap_system_prompt"] = "inject"
    """`inject`: text put in. `edit`: `edited_index` reads otherwise from here on. `mute`: the agent is silent.
    `swap_…`: the agent has another model or system prompt from here on."""
    agent_id: str | None = None
    """Whom it concerns; absent for `inject`, which has an audience."""
    text: str | None = None
    """What was put in."""
    before: str | None = None
    """The message, the model or the system prompt that `after` takes the place of; absent: there was none."""
    after: str | None = None
    """Absent: none."""
    edited_index: int | None = None
    """The message that was edited; its `MessageCompleteEvent` stays as it is."""
    turns: int | None = None
    """How many turns the agent is silent."""
    trigger: str | None = None
    """What the turn before had to meet for it, where it is not tied to a turn."""
    value: float | None = None
    """Of the metric or detector that did; absent for a state."""
    placement: str = ""
    """Where the text stands. `user`: as user text with the prompt tag, in every family. `message`: as a system message
    at this place. `parameter`: behind the system prompt from here on. Of a new system prompt as of any other."""
    message_index: int = 0
    """The index of the message that came next when it was put in."""


class ContextTruncationEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Oldest turns were left out of one agent's view."""

    agent_id: str
    turn_number: int
    policy: str
    view: View
    estimated_tokens: int
    limit_tokens: int


class HistoryCompactedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Oldest turns of one agent's view were replaced by a summary."""

    agent_id: str
    turn_number: int
    policy: str
    view: View
    summary: str
    model: str
    estimated_tokens: int
    limit_tokens: int


class ContextLimitEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The next request would not fit, and the policy is to stop, or nothing could be left out."""

    agent_id: str
    turn_number: int
    policy: str
    estimated_tokens: int | None = None
    limit_tokens: int | None = None
    reported: str | None = None
    """The provider's own words, where it was the one to refuse; or why there is no summary."""


class ToolCallEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent asked for a tool."""

    agent_id: str
    turn_number: int
    message_index: int
    call_id: str
    name: str
    arguments: str


class ToolResultEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A tool answered."""

    agent_id: str
    turn_number: int
    message_index: int
    call_id: str
    content: str
    is_error: bool = False
    duration_ms: float | None = None


class SafetyDecisionEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A safety rule decided."""

    rule: str
    decision: str
    subject: str
    agent_id: str | None = None
    turn_number: int | None = None
    reason: str | None = None


class RateLimitEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A provider or a limit of our own makes a request wait; written when the wait begins to be felt, not after it."""

    agent_id: str
    turn_number: int
    message_index: int
    provider: str
    status: int | None = None
    attempt: int
    """The one that was refused, or that waits to be made."""
    reason: Literal["refused", "limit"] = "refused"
    """`refused`: the provider refused the attempt, and another follows. `limit`: the attempt waits in our own queue,
    for more than a second, so that it will not be refused."""
    wait_s: float | None = None
    """Always set when refused. In the queue: at least so long from now on, absent where that cannot be told."""
    message: str = ""


class ModelLoadEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A local server's memory changed for the sake of a request, or could not be looked after."""

    provider: str
    model: str
    action: Literal["load", "unload", "switch", "degraded"]
    """`switch`: a load for which others had to go, their unloading included in its time."""
    duration_ms: float | None = None
    """Not part of any model's latency. Absent when degraded."""
    size_bytes: int | None = None
    """What the model takes, as the server reports it."""
    free_bytes: int | None = None
    """What was free just before."""
    why: str = ""


class LimitChangedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A limit shared by all conversations of the process changed, after what a request of this one met."""

    provider: str
    model: str
    what: str = "requests at once"
    """What is limited: also `requests per minute`, `tokens per minute`, `input tokens per minute` and
    `output tokens per minute`."""
    limit: int
    """Of requests to this model, from now on."""
    before: int | None = None
    """Absent: not known until now."""
    why: str
    """`slow start`, `growth` or `rate limit`; per minute `told by the provider`."""


class APIErrorEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A request failed. `wait_s` absent: it will not be tried again."""

    agent_id: str
    turn_number: int
    message_index: int
    error: str
    """The class of the error, as in `core.errors`."""
    provider: str
    status: int | None = None
    retryable: bool
    attempt: int
    wait_s: float | None = None
    may_be_billed: bool = False
    """The provider may have answered what never arrived: the attempt counts with all that was set aside for it."""
    message: str


class WarningEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something that was asked for has no effect; the conversation goes on without it, as `lenient` allows."""

    agent_id: str | None = None
    what: str
    """The setting, such as `seed`."""
    reason: str


class ErrorEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something of ours failed: a delegate, a subscriber, the harness."""

    error: str
    message: str
    where: str


class ConversationPausedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing is asked until it goes on."""

    by: str
    turn_number: int
    message_index: int


class ConversationResumedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """It goes on: after a pause, or in a new process."""

    by: str
    turn_number: int
    message_index: int
    torn_bytes: int = 0
    """Length of a torn last line that was moved to `<log>.torn`."""


class ConversationBranchedEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """This conversation shares a prefix with another."""

    origin: str
    """The other conversation's id."""
    turn_number: int
    """The last turn that both share."""
    message_index: int
    """The first message of its own."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings in which it differs, by name, as [there, here]; absent ones are null."""


class Totals(Struct, frozen=True, omit_defaults=True):
    """Sums over a conversation."""

    turns: int
    """Rounds in which every scheduled agent has spoken. Of a branch, this and all else here is what is its own."""
    messages: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """Absent as soon as one price is not known."""


class ConversationEndEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The conversation is over. After a resume a second one may follow: the last counts."""

    status: Status
    end_reason: EndReason
    totals: Totals
    error: str | None = None
    """The class of the error and its text, where one ended it."""
    invalid: tuple[str, ...] = ()
    """Reasons to leave it out of statistics: `speaker_never_called`, `wrong_model_served`, `harness_fault`."""
    notable: dict[str, int] = field(default_factory=dict)
    """Counts of messages that are `empty`, `refused`, `truncated`, `filtered`, had `text_replaced`, or came from
    another `served_model` or `fingerprint` than the agent's first, and of detectors that were to `mark`: kept in."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the conversation as a whole, agents as suffixes; what cannot be computed is absent."""


class ExperimentStartEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A runner begins or goes on with an experiment."""

    name: str | None = None
    spec_hash: str
    conversations: int
    pid: int
    host: str
    versions: dict[str, str]
    resumed: bool = False
    todo: int = 0
    """Conversations that this run begins or goes on with."""
    max_parallel: int = 1
    budget: dict[str, float | None] | None = None
    """Caps in force: USD, tokens and seconds of the experiment, and, as `each_…`, of one conversation."""
    estimate: dict[str, Any] | None = None
    """What `todo` was expected to take when it was begun: calls, and lower and upper end of tokens and of USD."""


class ExperimentCompleteEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The runner is done with an experiment."""

    status: Status
    conversations: dict[str, int]
    """Number of conversations by status."""


class PostProcessingStartEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Post-processing begins."""

    tasks: tuple[str, ...]


class PostProcessingCompleteEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Post-processing is done; one outcome per task."""

    outcomes: dict[str, str]


EVENT_TYPES: tuple[type[Event], ...] = tuple(
    sorted(
        (
            kind
            for kind in globals().values()
            if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
        ),
        key=lambda kind: kind.__name__,
    )
)
"""Every member of the union, by name."""
__all__ += ["Totals", *(kind.__name__ for kind in EVENT_TYPES)]
