"""What was said, and what each agent gets to see of it.

One `ConversationHistory` holds typed turns for all agents. A `ConversationView` is one agent's side of it: its own
messages as assistant, everyone else's as user. A view is a fold over the history and grows with it, so that asking
for the next request costs the same however long the conversation is.
"""

import bisect
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.events import View
from pidgin_cli.core.types import Agent, Message, Role, ThinkingBlock, ToolCall, ToolResult, text_of
from pidgin_cli.providers.registry import late_system
from pidgin_cli.spec.conversation import ConversationSpec

__all__ = ["ConversationHistory", "ConversationState", "ConversationTurn", "ConversationView", "Sent"]


class ConversationTurn(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One entry of the history.

    Role user: text from outside (opening, naming notice, interventions). Role assistant: what an agent said, or, with
    `tool_call`, a tool it called. Role tool: the answer to that call. Role system: an agent's system prompt.
    """

    role: Role
    content: str
    turn_number: int
    """0: before the first turn."""
    agent_id: str | None = None
    """Who spoke; None: somebody outside."""
    audience: tuple[str, ...] | None = None
    """Agent ids that see it; None: all."""
    message_index: int | None = None
    """Only utterances have one."""
    placement: str = "user"
    """Of text from outside: see `InterventionEvent.placement`."""
    model: str | None = None
    """Who thought, where `thinking` holds anything: signatures go back to the same model only."""
    thinking: tuple[ThinkingBlock, ...] = ()
    tool_call: ToolCall | None = None
    tool_result: ToolResult | None = None


class ConversationHistory:
    """Everything that was said, in order. Appended to, but that an edit changes how a message reads."""

    def __init__(self) -> None:
        self.turns: list[ConversationTurn] = []
        self.messages = 0
        """Utterances so far, which is the index of the next one."""
        self.spoken: dict[str, int] = {}
        """Utterances by agent."""
        self._starts: dict[int, int] = {}
        self._turn_of: list[int] = []

    def append(self, turn: ConversationTurn) -> None:
        self._starts.setdefault(turn.turn_number, len(self.turns))
        self.turns.append(turn)
        if turn.message_index is not None and turn.agent_id is not None:
            self.messages += 1
            self._turn_of.append(turn.turn_number)
            self.spoken[turn.agent_id] = self.spoken.get(turn.agent_id, 0) + 1

    def edit(self, message_index: int, text: str) -> None:
        """Let a message read otherwise. Views that have taken it in have to `reread`."""
        for place in reversed(range(len(self.turns))):
            if self.turns[place].message_index == message_index:
                self.turns[place] = replace(self.turns[place], content=text)
                return
        raise IndexError(message_index)

    def last_message_of(self, agent_id: str) -> ConversationTurn | None:
        """What an agent said last."""
        said = (entry for entry in reversed(self.turns) if entry.message_index is not None)
        return next((entry for entry in said if entry.agent_id == agent_id), None)

    def turn_of(self, message_index: int) -> int:
        """The turn that a message belongs to."""
        return self._turn_of[message_index]

    def first_message(self, turn_number: int) -> int:
        """The index of the first message of a turn or of one after it."""
        return bisect.bisect_left(self._turn_of, turn_number)

    def since(self, turn_number: int) -> Sequence[ConversationTurn]:
        """The entries from the start of a turn on."""
        start = self._starts.get(turn_number)
        return self.turns[start:] if start is not None else []

    def before_first_turn(self) -> Sequence[ConversationTurn]:
        """System prompts, opening, and what was given with it."""
        return self.turns[: self._end_of_opening()]

    def between(self, turn_number: int) -> Sequence[ConversationTurn]:
        """The entries from the first turn up to, not including, `turn_number`."""
        return self.turns[self._end_of_opening() : self._starts.get(turn_number, len(self.turns))]

    def _end_of_opening(self) -> int:
        return next((place for place, entry in enumerate(self.turns) if entry.turn_number), len(self.turns))


class ConversationState(Struct, frozen=True):
    """What one agent still knows of the turns that are no longer in its view."""

    first_turn: int = 1
    """The oldest turn that is still in the view."""
    first_message: int = 0
    """The oldest message that is still in the view."""
    summary: str | None = None
    pinned: tuple[str, ...] = ()


class Sent(NamedTuple):
    """One request's share of the history."""

    system: str | None
    messages: tuple[Message, ...]
    view: View
    digest: str
    placeholders: int
    size: int
    """Bytes of text, system prompt included."""


class _End(NamedTuple):
    """What an agent has not answered yet, as the end of its list."""

    messages: tuple[Message, ...]
    hash: "hashlib.blake2b"
    """Of the whole list, this end included."""
    size: int
    """Bytes of its text."""


class ConversationView:
    """What one agent is sent.

    Rules, the same for every agent and provider:
    the list starts with user and alternates; neighbouring user texts are merged with a blank line; text from outside
    carries the prompt tag; an intervention stands just before its addressee's next reply; blank text shows as the
    declared placeholder; with `speaker_label` the others are named; tools are seen only by the agent that called them;
    thinking is seen by whom the thinker's `thinking_visible` names. Text placed as a system message stands, untagged,
    behind the user's and before the reply; text placed behind the system prompt stays there for good. Where the agent's
    model takes neither, the next weaker place is used.
    """

    def __init__(
        self,
        agent: Agent,
        spec: ConversationSpec,
        history: ConversationHistory,
        names: dict[str, str],
        state: ConversationState | None = None,
        signed_from: int = 0,
    ) -> None:
        """`names` maps agent ids to the names that labels show; it may still change until the first turn."""
        self.agent = agent
        self._spec = spec
        self._history = history
        self._names = names
        self._prompt_swapped = False
        self.signed_from = signed_from
        """The first message whose signatures of thinking still hold."""
        self._rebuild(state or ConversationState(pinned=spec.context.pinned))

    def _rebuild(self, state: ConversationState) -> None:
        self.state = state
        self._system: list[str] = []
        """The system prompt, and what was put behind it since."""
        self._closed: list[Message] = []
        self._open: list[str] = []
        self._held: list[str] = []
        self._held_system: list[str] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._size = 0
        self._extra = 0
        self._placeholders = 0
        self._seen = 0
        self._end: _End | None = None
        """As long as nothing was added since it was put together."""
        self._sent: Sent | None = None
        """As long as the history holds nothing new."""
        if self._prompt_swapped and self.agent.system_prompt is not None:
            self._add_to_system(self.agent.system_prompt)
        if state.first_turn > 1:
            for entry in self._history.before_first_turn():
                self._take(entry)
            for entry in self._history.between(state.first_turn):
                if entry.role is Role.USER and self._placement(entry) == "parameter":
                    self._take(entry)
            self._remember(state)
            for entry in self._history.since(state.first_turn):
                self._take(entry)
            self._seen = len(self._history.turns)

    def compact(self, state: ConversationState) -> None:
        """Leave out the turns before `state.first_turn`, with a summary in their place if there is one."""
        self._begin_anew(state)

    def _begin_anew(self, state: ConversationState) -> None:
        # Vendors sign thoughts together with all that came before them, and refuse signatures of another beginning.
        self.signed_from = self._history.messages
        self._rebuild(state)

    def reread(self) -> None:
        """Take the history in anew, since something in it reads otherwise now, or stands before it all."""
        self._begin_anew(self.state)

    def swap(self, agent: Agent) -> None:
        """Go on as another `agent` in the same seat: with another model or system prompt."""
        self._prompt_swapped = self._prompt_swapped or agent.system_prompt != self.agent.system_prompt
        self.agent = agent
        self._begin_anew(self.state)

    def sent(self) -> Sent:
        """The request that the agent would get now."""
        turns = self._history.turns
        if self._sent is None or self._seen < len(turns):
            for entry in turns[self._seen :]:
                self._take(entry)
                self._seen += 1
            self._sent = self._put_together()
        return self._sent

    def digest(self) -> str:
        """The digest of the request that the agent would get now."""
        return self.sent().digest

    def size(self) -> int:
        """Bytes of text that the agent would be sent now."""
        return self.sent().size

    def _put_together(self) -> Sent:
        end = self._ending()
        state = self.state
        return Sent(
            system="\n\n".join(self._system) if self._system else None,
            messages=(*self._closed, *end.messages),
            view=View(
                start=state.first_message,
                end=self._history.messages,
                omitted=state.first_message,
                extra=self._extra,
            ),
            digest=end.hash.hexdigest(),
            placeholders=self._placeholders + self._nothing_new(),
            size=self._size + end.size,
        )

    def _ending(self) -> _End:
        """The end of the list; without messages where that ends with a tool's result."""
        if self._end is None:
            texts = [*self._open, *self._held]
            if self._nothing_new():
                texts.append(self._spec.placeholders.nothing_new)
            messages = [Message(role=Role.USER, content="\n\n".join(texts))] if texts else []
            messages += [Message(role=Role.SYSTEM, content=text) for text in self._held_system]
            digest = self._hash.copy()
            size = sum(_digest(digest, message) for message in messages)
            self._end = _End(tuple(messages), digest, size)
        return self._end

    def _nothing_new(self) -> bool:
        """Whether a placeholder has to stand for the user's text; after a tool's result the list may go on without."""
        return not (self._open or self._held or (self._closed and self._closed[-1].role is Role.TOOL))

    def _take(self, entry: ConversationTurn) -> None:
        if entry.audience is not None and self.agent.id not in entry.audience:
            return
        match entry.role:
            case Role.SYSTEM:
                if not self._prompt_swapped:
                    self._add_to_system(entry.content)
            case Role.USER:
                self._extra += 1
                placement = self._placement(entry)
                if placement == "user":
                    text = self._spec.tagged(entry.content).content if entry.content else ""
                    (self._held if entry.turn_number else self._open).append(self._visible(text))
                elif placement == "message":
                    self._held_system.append(self._visible(entry.content))
                else:
                    self._add_to_system(self._visible(entry.content))
            case Role.ASSISTANT if entry.agent_id == self.agent.id:
                self._own(entry)
            case Role.ASSISTANT if entry.tool_call is None:
                text = self._visible(entry.content)
                if self._spec.speaker_label is not None:
                    text = self._labelled(self._spec.speaker_label, entry, text)
                if entry.thinking and self._spec.agent(entry.agent_id or "").thinking_visible == "partner":
                    thought = text_of(entry.thinking)
                    if thought.strip():  # blank where a block is a signature only
                        text = f"{self._labelled(self._spec.thinking_label, entry, thought)}\n\n{text}"
                self._open.append(text)
            case Role.TOOL if entry.agent_id == self.agent.id:
                self._close(Message(role=Role.TOOL, content=entry.content, tool_result=entry.tool_result))
        self._end = None

    def _own(self, entry: ConversationTurn) -> None:
        if entry.tool_call is not None and self._closed and (last := self._closed[-1]).tool_calls:
            # Calls made together are one message, which their results follow.
            content = "\n\n".join(text for text in (last.content, entry.content) if text)
            self._closed[-1] = replace(last, content=content, tool_calls=(*last.tool_calls, entry.tool_call))
            self._size += _feed(self._hash, "together", entry.content)
            _digest_call(self._hash, entry.tool_call)
            return
        self._close_end()
        if entry.tool_call is not None:
            self._close(Message(role=Role.ASSISTANT, content=entry.content, tool_calls=(entry.tool_call,)))
        else:
            thinking = self._own_thinking(entry) if self.agent.thinking_visible == "own" else ()
            self._close(Message(role=Role.ASSISTANT, content=self._visible(entry.content), thinking=thinking))

    def _close_end(self) -> None:
        """The agent has answered what stood at the end."""
        end = self._ending()
        self._placeholders += self._nothing_new()
        self._closed += end.messages
        self._hash = end.hash
        self._size += end.size
        self._open, self._held, self._held_system = [], [], []

    def _own_thinking(self, entry: ConversationTurn) -> tuple[ThinkingBlock, ...]:
        if entry.model in (None, self.agent.model) and (entry.message_index or 0) >= self.signed_from:
            return entry.thinking
        return tuple(ThinkingBlock(block.text) for block in entry.thinking if block.text and not block.redacted)

    def _placement(self, entry: ConversationTurn) -> str:
        """Where the text of an entry stands, as far as the agent's model allows it."""
        if entry.placement == "user":
            return "user"
        allowed = late_system(self.agent.model)
        return entry.placement if allowed == "message" else allowed

    def _add_to_system(self, text: str) -> None:
        self._system.append(text)
        self._size += _feed(self._hash, "system", text)

    def _labelled(self, label: str, entry: ConversationTurn, text: str) -> str:
        name = self._names[entry.agent_id or ""]
        return text.join(piece.replace("{name}", name) for piece in label.split("{text}"))

    def _visible(self, text: str) -> str:
        if text.strip():
            return text
        self._placeholders += 1
        return self._spec.placeholders.blank

    def _close(self, message: Message) -> None:
        self._closed.append(message)
        self._size += _digest(self._hash, message)

    def _remember(self, state: ConversationState) -> None:
        if state.summary is None:
            return
        texts = [f"Summary of the earlier conversation: {state.summary}"]
        texts += [f"Remember: {fact}" for fact in state.pinned]
        for text in texts:
            self._open.append(self._spec.tagged(text).content)
            self._extra += 1


def _digest(state: "hashlib.blake2b", message: Message) -> int:
    size = _feed(state, message.role, message.content)
    for block in message.thinking:
        _feed(state, "thinking", block.text)
        _feed(state, "redacted" if block.redacted else "signature", block.signature or "")
    for call in message.tool_calls:
        _digest_call(state, call)
    if (result := message.tool_result) is not None:
        _feed(state, "error" if result.is_error else "result", result.call_id)
    return size


def _digest_call(state: "hashlib.blake2b", call: ToolCall) -> None:
    _feed(state, "call", call.id)
    _feed(state, "name", call.name)
    _feed(state, "arguments", call.arguments)


def _feed(state: "hashlib.blake2b", kind: str, text: str) -> int:
    """Kind and length stand before the text, so that no two lists of texts run together into one."""
    data = text.encode()
    state.update(b"%s\0%d\0" % (kind.encode(), len(data)))
    state.update(data)
    return len(data)
