"""The values a conversation is made of.

Everything here is frozen, comparable and encodable by msgspec. The same value travels from a provider to the log, and
back from the log on resume. None of them knows where it is stored.

What every message brings anew has `gc=False`: such values hold no reference back to themselves, so that the collector
of reference cycles need not look at them.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Literal, assert_never

import msgspec
from msgspec import Struct

__all__ = [
    "Agent",
    "AgentSettings",
    "Delta",
    "EndReason",
    "Finish",
    "FinishReason",
    "LimitsDelta",
    "Message",
    "ModelRequest",
    "ModelResponse",
    "Purpose",
    "RateLimit",
    "ResponseFold",
    "Retries",
    "Role",
    "Status",
    "TextDelta",
    "ThinkingBlock",
    "ThinkingDelta",
    "Timeouts",
    "Timing",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "Usage",
    "UsageDelta",
    "add_usage",
    "clean_text",
    "fold",
    "text_of",
]


class Role(StrEnum):
    """Who a piece of text speaks as, seen from one agent."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Status(StrEnum):
    """Where a conversation or an experiment stands."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """No end event and a dead runner."""
    STOPPED = "stopped"
    """By a person, a budget or the context limit."""


class EndReason(StrEnum):
    """Why a conversation ended."""

    TURN_LIMIT = "turn_limit"
    STOP_PHRASE = "stop_phrase"
    STOP_REQUEST = "stop_request"
    BUDGET = "budget"
    CONTEXT_LIMIT = "context_limit"
    CONVERGENCE = "convergence"
    DETECTOR = "detector"
    PROVIDER_ERROR = "provider_error"
    HARNESS_ERROR = "harness_error"
    """A fault of ours; the conversation is marked invalid."""
    UNKNOWN = "unknown"
    """A record from elsewhere does not say."""


class FinishReason(StrEnum):
    """Why a model stopped writing, in one vocabulary for all vendors."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    UNKNOWN = "unknown"


Purpose = Literal["message", "name", "summary"]
"""What a request is for: a message of the conversation, the choice of a name, or a summary of what is left out."""


class Usage(Struct, frozen=True, omit_defaults=True, gc=False):
    """Tokens of one reply, as the provider reported them. None: not reported."""

    prompt_tokens: int | None = None
    """All input tokens, those read from a cache included."""
    completion_tokens: int | None = None
    """All output tokens, thinking included."""
    thinking_tokens: int | None = None
    cached_tokens: int | None = None
    """Input tokens read from the provider's cache."""
    cache_write_tokens: int | None = None
    """Input tokens written to the provider's cache."""
    estimated: bool = False


class Timing(Struct, frozen=True, omit_defaults=True, gc=False):
    """Times of one reply in milliseconds."""

    queued_ms: float | None = None
    """Waiting for a place under a limit; not part of the model's latency."""
    ttft_ms: float | None = None
    """Request to first streamed piece (text, thinking or tool call)."""
    duration_ms: float | None = None
    """Request to last byte of the attempt that succeeded."""
    tokens_per_s: float | None = None
    """Completion tokens / (duration - time to first token)."""


class ToolCall(Struct, frozen=True, gc=False):
    """A model's request to run a tool; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class ToolResult(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a tool gave back to the agent that called it."""

    call_id: str
    content: str
    is_error: bool = False


class ThinkingBlock(Struct, frozen=True, omit_defaults=True, gc=False):
    """A piece of a model's thinking. `signature` belongs to the vendor and goes back to the same model only."""

    text: str
    signature: str | None = None
    redacted: bool = False
    """The vendor keeps the text to itself: `signature` holds it encrypted."""


class Message(Struct, frozen=True, omit_defaults=True, gc=False):
    """One utterance, or one entry of the list a model is sent.

    An utterance in the record has an `id` and the role assistant; the entries of a request have none.
    """

    role: Role
    content: str
    id: str = ""
    thinking: tuple[ThinkingBlock, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_result: ToolResult | None = None
    text_replaced: bool = False
    """The model sent lone surrogates, in whatever part; they stand here as U+FFFD."""


class AgentSettings(Struct, frozen=True, omit_defaults=True):
    """Sampling and limits of one agent. An unset parameter is None, is not sent, and is recorded as NULL."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    """Sent to the provider, unlike the conversation's own seed."""
    think: bool | None = None
    think_budget: int | None = None
    """Thinking tokens at most."""
    effort: str | None = None
    extra: dict[str, Any] | None = None
    """Sent as it is, beside everything else, in the provider's own words."""


class Agent(Struct, frozen=True, omit_defaults=True):
    """A seat in a conversation."""

    id: str
    model: str
    """`provider:model`."""
    name: str
    """As displays show it and, where speakers are labelled, as the others read it."""
    system_prompt: str | None = None
    awareness: str | None = None
    """The preset or file that the system prompt came from."""
    settings: AgentSettings = AgentSettings()
    thinking_visible: Literal["own", "partner", "nobody"] = "nobody"
    """Who is sent what it thought: itself, in its later requests; the others, before its words; or nobody."""

    @property
    def provider(self) -> str:
        return self.model.partition(":")[0]


class Timeouts(Struct, frozen=True, omit_defaults=True):
    """Seconds a request may take. None: no limit. A reply that streams steadily never runs into `gap_s`."""

    connect_s: float | None = 15.0
    first_token_s: float | None = 300.0
    gap_s: float | None = 120.0
    """Between two pieces of one reply."""
    total_s: float | None = None


class Retries(Struct, frozen=True, omit_defaults=True):
    """How often and how patiently a failed request is tried again."""

    attempts: int = 6
    """At one message, the first included."""
    base_s: float = 1.0
    """Upper end of the first wait; doubles with every attempt, and the wait is drawn from 0 up to it."""
    max_wait_s: float = 60.0


class ModelRequest(Struct, frozen=True, kw_only=True, gc=False):
    """Everything one model is asked, and which draw it is.

    `messages` is a legal list: it starts with user, alternates, and holds no blank text. The fields after
    `context_window` are not sent; they identify the draw (for seeded models, caches and events).
    """

    model: str
    """The provider's own name of the model, without `provider:`."""
    messages: tuple[Message, ...]
    system: str | None = None
    settings: AgentSettings = AgentSettings()
    context_window: int | None = None
    """Tokens that the model is to read at most, prompt and reply together; for servers that have to be told."""
    conversation_id: str = ""
    seed: int = 0
    """The conversation's seed."""
    agent_id: str = ""
    turn_number: int = 0
    message_index: int = 0
    own_number: int = 1
    """This agent's n-th message, counted from 1."""
    attempt: int = 1
    purpose: Purpose = "message"
    digest: str = ""
    """Chained digest of what is sent; equal digests mean equal system prompt and messages."""


class TextDelta(Struct, frozen=True, tag=True, gc=False):
    text: str


class ThinkingDelta(Struct, frozen=True, tag=True, gc=False):
    text: str
    signature: str | None = None
    """Closes the current thinking block."""
    redacted: bool = False
    """A block of its own, whose text the vendor keeps to itself; `signature` holds it encrypted."""


class ToolCallDelta(Struct, frozen=True, tag=True, gc=False):
    """A piece of a tool call; pieces with one index belong together."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class UsageDelta(Struct, frozen=True, tag=True, gc=False):
    """Usage so far; fields that are set replace earlier ones."""

    usage: Usage


class RateLimit(Struct, frozen=True, omit_defaults=True):
    """What a provider says of one of an account's limits per minute."""

    what: Literal["requests", "tokens", "input tokens", "output tokens"]
    limit: int | None = None
    remaining: int | None = None
    """Left of it at the moment."""
    reset_s: float | None = None
    """Seconds until all of it is there again."""


class LimitsDelta(Struct, frozen=True, tag=True, gc=False):
    """What a reply's headers say of the account's limits; comes before anything else.

    It is meant for `Limited`, which hands on everything but this.
    """

    limits: tuple[RateLimit, ...]


class Finish(Struct, frozen=True, tag=True, gc=False):
    """The last delta of every complete reply. Wrappers fill in what they know."""

    reason: FinishReason = FinishReason.STOP
    model: str | None = None
    """The model that served the reply, as the provider names it."""
    request_id: str | None = None
    fingerprint: str | None = None
    timing: Timing | None = None
    attempt: int = 1
    cached: bool = False


Delta = TextDelta | ThinkingDelta | ToolCallDelta | UsageDelta | LimitsDelta | Finish


class ModelResponse(Struct, frozen=True, gc=False):
    """A whole reply: the fold of its deltas."""

    message: Message
    finish: Finish
    usage: Usage = Usage()


def clean_text(text: str) -> tuple[str, bool]:
    """Text that UTF-8 can carry, and whether anything had to be replaced.

    Surrogate pairs that arrived in two pieces are joined; lone surrogates become U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return joined, joined.count("�") > text.count("�")
    return text, False


def add_usage(old: Usage, new: Usage) -> Usage:
    """`old` with the fields replaced that `new` reports."""
    if old == Usage():
        return new
    changes = {
        name: value
        for name in ("prompt_tokens", "completion_tokens", "thinking_tokens", "cached_tokens", "cache_write_tokens")
        if (value := getattr(new, name)) is not None
    }
    return msgspec.structs.replace(old, **changes, estimated=new.estimated)


class ResponseFold:
    """Folds deltas into a `ModelResponse`, in time proportional to their text.

    `text` and `thinking` give what has arrived so far, also when the stream died.
    """

    __slots__ = ("_begun", "_calls", "_signed", "_text", "_thinking", "_thinking_replaced", "finish", "usage")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._signed: list[ThinkingBlock] = []
        self._thinking_replaced = False
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self.usage = Usage()
        self.finish: Finish | None = None
        self._begun = False

    def add(self, delta: Delta) -> None:
        if isinstance(delta, LimitsDelta):
            return
        self._begun = True
        match delta:
            case TextDelta(text=text):
                self._text.append(text)
            case ThinkingDelta(text=text, signature=signature, redacted=redacted):
                if redacted and "".join(self._thinking):
                    self._close_thinking(None)
                self._thinking.append(text)
                if signature is not None:
                    self._close_thinking(signature, redacted=redacted)
            case ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments):
                old_id, old_name, pieces = self._calls.get(index, ("", "", []))
                pieces.append(arguments)
                self._calls[index] = (old_id or call_id, old_name or name, pieces)
            case UsageDelta(usage=usage):
                self.usage = add_usage(self.usage, usage)
            case Finish():
                self.finish = delta
            case _:
                assert_never(delta)

    def _close_thinking(self, signature: str | None, *, redacted: bool = False) -> None:
        block, lost = clean_text("".join(self._thinking))
        self._signed.append(ThinkingBlock(block, signature, redacted))
        self._thinking_replaced = self._thinking_replaced or lost
        self._thinking.clear()

    @property
    def text(self) -> str:
        return clean_text("".join(self._text))[0]

    @property
    def thinking(self) -> tuple[ThinkingBlock, ...]:
        if not (text := clean_text("".join(self._thinking))[0]):
            return tuple(self._signed)
        return (*self._signed, ThinkingBlock(text))

    @property
    def started(self) -> bool:
        """Whether anything has arrived. Usage counts: it is paid for, so the attempt must be told of."""
        return self._begun

    def response(self) -> ModelResponse:
        """The reply. Raises ValueError when no `Finish` came: such a reply is not complete."""
        if self.finish is None:
            raise ValueError("the stream ended without a finish")
        text, replaced = clean_text("".join(self._text))
        calls = []
        for _, (call_id, name, pieces) in sorted(self._calls.items()):
            arguments, lost = clean_text("".join(pieces))
            calls.append(ToolCall(call_id, name, arguments))
            replaced = replaced or lost
        message = Message(
            role=Role.ASSISTANT,
            content=text,
            thinking=self.thinking,
            tool_calls=tuple(calls),
            text_replaced=replaced or self._thinking_replaced or clean_text("".join(self._thinking))[1],
        )
        return ModelResponse(message=message, finish=self.finish, usage=self.usage)


def fold(deltas: Iterable[Delta]) -> ModelResponse:
    """The response that a finished stream of deltas adds up to. Raises ValueError without a `Finish`."""
    state = ResponseFold()
    for delta in deltas:
        state.add(delta)
    return state.response()


def text_of(blocks: Sequence[ThinkingBlock]) -> str:
    """The readable text of thinking blocks."""
    return "\n\n".join(block.text for block in blocks if block.text)
