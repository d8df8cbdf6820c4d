"""Random conversations as every provider family gets them: legal for its API, and nothing for other eyes."""

import json
import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pidgin_cli.conversation.history import ConversationHistory, ConversationTurn, ConversationView
from pidgin_cli.core.types import Agent, ModelRequest, Role, ThinkingBlock, ToolCall, ToolResult
from pidgin_cli.providers import anthropic, google, ollama, openai, responses
from pidgin_cli.spec.conversation import ConversationSpec

# Conversations. Every text that is not blank ends in a mark of its own, by which it is found again.

MARK = re.compile(r"<(?:[ctr]?\d+|system-[a-e])>")

TEXTS = st.one_of(
    st.sampled_from(["", " ", "\n\t ", "\u2003", "word"]),
    st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12),
)
ARGUMENTS = st.sampled_from(["", "{}", '{"q": 1}', '{"q"', "[1]", "null"])


class Talk(NamedTuple):
    spec: ConversationSpec
    history: ConversationHistory

    def request(self, agent: Agent, family: str) -> ModelRequest:
        names = {each.id: each.name for each in self.spec.agents}
        seated = replace(agent, model=f"{MODELS[family]}:some-model")
        sent = ConversationView(seated, self.spec, self.history, names).sent()
        return ModelRequest(model="some-model", messages=sent.messages, system=sent.system)


MODELS = {"anthropic": "anthropic", "openai": "openai", "responses": "openai", "google": "google", "ollama": "ollama"}
"""The provider of each family's models."""


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    visible = st.sampled_from(["own", "partner", "nobody"])
    agents = tuple(
        Agent(id=i, model="local:test", name=f"name-{i}", thinking_visible=draw(visible))
        for i in "abcde"[: draw(st.integers(2, 5))]
    )
    label = draw(st.sampled_from([None, "[{name}]: {text}"]))
    tag = draw(st.sampled_from(["HUMAN", ""]))
    spec = ConversationSpec(agents=agents, opening=draw(TEXTS), speaker_label=label, prompt_tag=tag)
    history = ConversationHistory()
    turn = 0

    def marked(text: str) -> str:
        return f"{text}<{len(history.turns)}>" if text.strip() else text

    def add(role: Role, content: str, **fields: Any) -> None:
        history.append(ConversationTurn(role=role, content=content, turn_number=turn, **fields))

    def thinking() -> tuple[ThinkingBlock, ...]:
        signatures = st.none() | st.binary(min_size=1, max_size=9).map(lambda data: b64encode(data).decode())
        words = st.sampled_from([f"thought<t{len(history.turns)}>", f"more<t{len(history.turns)}>"])
        blocks = st.builds(ThinkingBlock, words, signatures) | st.just(ThinkingBlock("", b64encode(b"bare").decode()))
        return tuple(draw(st.lists(blocks, max_size=2)))

    for agent in agents:
        if draw(st.booleans()):
            add(Role.SYSTEM, f"be {agent.id}<system-{agent.id}>", audience=(agent.id,))
    add(Role.USER, spec.opening)
    turn = 1
    ids = st.sampled_from([agent.id for agent in agents])
    for _ in range(draw(st.integers(0, 15))):
        who = draw(ids)
        match draw(st.sampled_from(["say", "say", "inject", "call", "turn", "edit"])):
            case "say":
                index = history.messages
                add(Role.ASSISTANT, marked(draw(TEXTS)), agent_id=who, message_index=index, thinking=thinking())
            case "inject":
                placement = draw(st.sampled_from(["user", "user", "message", "parameter"]))
                audience = tuple(draw(st.lists(ids, min_size=1, unique=True)))
                add(Role.USER, marked(draw(TEXTS)), audience=audience, placement=placement)
            case "edit" if (last := history.last_message_of(who)) is not None:
                place = history.turns.index(last)
                text = draw(TEXTS)
                assert last.message_index is not None
                history.edit(last.message_index, f"{text}<{place}>" if text.strip() else text)
            case "call":
                call = ToolCall(f"call-{len(history.turns)}", f"look<c{len(history.turns)}>", draw(ARGUMENTS))
                add(Role.ASSISTANT, draw(st.just("") | TEXTS.map(marked)), agent_id=who, tool_call=call)
                result = ToolResult(call.id, f"<r{len(history.turns)}>", is_error=draw(st.booleans()))
                add(Role.TOOL, result.content, agent_id=who, tool_result=result)
            case "turn":
                turn += 1
    return Talk(spec, history)


# Families. Each reads what its adapter would send into pieces, checking the shape that its API wants on the way.


class Piece(NamedTuple):
    kind: str
    """`text`, `thinking`, `call` or `result`."""
    text: str
    id: str = ""


class Entry(NamedTuple):
    """A message of an API."""

    role: str
    """`user` or `assistant`; `system` for instructions in the middle, where a family takes them."""
    pieces: list[Piece]


class Rendered(NamedTuple):
    system: str | None
    entries: list[Entry]


def as_anthropic(request: ModelRequest) -> Rendered:
    entries: list[Entry] = []
    for message in anthropic._messages(request.messages):
        assert message.keys() == {"role", "content"}
        blocks = message["content"]
        pieces: list[Piece] = []
        for block in [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks:
            match block:
                case {"type": "text", "text": text}:
                    pieces.append(Piece("text", text))
                case {"type": "thinking", "thinking": text, "signature": str()}:
                    assert message["role"] == "assistant"
                    assert all(piece.kind == "thinking" for piece in pieces), "thinking comes first"
                    pieces.append(Piece("thinking", text))
                case {"type": "tool_use", "id": call_id, "name": name, "input": dict()}:
                    assert message["role"] == "assistant"
                    pieces.append(Piece("call", name, call_id))
                case {"type": "tool_result", "tool_use_id": call_id, "content": text}:
                    assert message["role"] == "user"
                    pieces.append(Piece("result", text, call_id))
                case _:
                    raise AssertionError(block)
        # The API itself joins neighbours of one role; results have to stand first in what comes of it.
        if entries and entries[-1].role == message["role"] == "user":
            assert entries[-1].pieces[0].kind == "result"
            entries[-1].pieces.extend(pieces)
        else:
            entries.append(Entry(message["role"], pieces))
    return Rendered(request.system, entries)


def as_google(request: ModelRequest) -> Rendered:
    signatures = {
        b64decode(block.signature) for message in request.messages for block in message.thinking if block.signature
    }
    entries: list[Entry] = []
    for content in google._contents(request.messages):
        assert content.keys() == {"role", "parts"}
        assert content["parts"], "no content is empty"
        pieces: list[Piece] = []
        for part in content["parts"]:
            signature = part.pop("thought_signature", None)
            assert signature is None or (content["role"] == "model" and signature in signatures)
            match part:
                case {"text": text, **rest} if not rest:
                    pieces.append(Piece("text", text))
                case {"function_call": {"id": call_id, "name": name, "args": dict()}}:
                    assert content["role"] == "model"
                    pieces.append(Piece("call", name, call_id))
                case {"function_response": {"id": call_id, "name": name, "response": dict(response)}}:
                    assert content["role"] == "user"
                    assert Piece("call", name, call_id) in entries[-1].pieces, "a result names its call"
                    pieces.append(Piece("result", *response.values(), call_id))
                case _:
                    raise AssertionError(part)
        entries.append(Entry({"model": "assistant", "user": "user"}[content["role"]], pieces))
    return Rendered(request.system, entries)


def as_openai(request: ModelRequest) -> Rendered:
    system, *messages = openai._messages(request) if request.system else (None, *openai._messages(request))
    assert system is None or (system.keys(), system["role"]) == ({"role", "content"}, "system")
    return Rendered(system and system["content"], [_chat_entry(message) for message in messages])


def as_ollama(request: ModelRequest) -> Rendered:
    system, *messages = ollama._messages(request) if request.system else (None, *ollama._messages(request))
    assert system is None or (system.keys(), system["role"]) == ({"role", "content"}, "system")
    # There are no ids here: results belong to calls by their order, and by the tool's name.
    ids = iter([message.tool_result.call_id for message in request.messages if message.tool_result])
    named = iter([call.id for message in request.messages for call in message.tool_calls])
    for message in messages:
        if "tool_calls" in message and not message["content"].strip():
            message["content"] = ""  # Ollama takes blanks
        for call in message.get("tool_calls", ()):
            call["id"] = next(named)
            assert isinstance(call["function"]["arguments"], dict)
        if message["role"] == "tool":
            message["tool_call_id"] = next(ids)
    entries = [_chat_entry(message) for message in messages]
    for one, other in pairwise(messages):
        if other["role"] == "tool":
            assert other["tool_name"] == one["tool_calls"][0]["function"]["name"]
    return Rendered(system and system["content"], entries)


def _chat_entry(message: dict[str, Any]) -> Entry:
    match message:
        case {"role": "tool", "tool_call_id": call_id, "content": str(text)}:
            return Entry("user", [Piece("result", text, call_id)])
        case {"role": "assistant", "tool_calls": [*calls]}:
            text = [Piece("text", message["content"])] if message["content"] else []
            return Entry("assistant", [*text, *(Piece("call", call["function"]["name"], call["id"]) for call in calls)])
        case {"role": "assistant", "content": str(text), "thinking": str(thought), **rest} if thought and not rest:
            return Entry("assistant", [Piece("thinking", thought), Piece("text", text)])  # Ollama's own
        case {"role": "user" | "assistant" | "system" as role, "content": str(text), **rest} if not rest:
            return Entry(role, [Piece("text", text)])
    raise AssertionError(message)


def as_responses(request: ModelRequest) -> Rendered:
    entries: list[Entry] = []
    for item in responses._items(request.messages):
        match item:
            case {"role": "user" | "assistant" | "system" as role, "content": str(text), **rest} if not rest:
                entries.append(Entry(role, [Piece("text", text)]))
            case {"type": "function_call", "call_id": call_id, "name": name, "arguments": str()}:
                call = Piece("call", name, call_id)
                if entries[-1].role == "assistant":  # said in the same breath
                    entries[-1].pieces.append(call)
                else:
                    entries.append(Entry("assistant", [call]))
            case {"type": "function_call_output", "call_id": call_id, "output": str(text), **rest} if not rest:
                entries.append(Entry("user", [Piece("result", text, call_id)]))
            case _:
                raise AssertionError(item)
    return Rendered(request.system, entries)


FAMILIES: dict[str, Callable[[ModelRequest], Rendered]] = {
    "anthropic": as_anthropic,
    "openai": as_openai,
    "responses": as_responses,
    "google": as_google,
    "ollama": as_ollama,
}


@settings(deadline=None)  # machines differ
@given(talk=talks())
def test_every_request_is_legal_for_its_family(talk: Talk):
    """The user speaks first and last, roles take turns, no text is blank, and results stand right after their calls."""
    for agent in talk.spec.agents:
        for family, render in FAMILIES.items():
            _, entries = render(talk.request(agent, family))
            late = [entry for entry in entries if entry.role == "system"]
            assert not late or family in ("openai", "responses"), "nowhere else is a system message taken here"
            assert all(piece.kind == "text" and piece.text.strip() for entry in late for piece in entry.pieces)
            entries = [entry for entry in entries if entry.role != "system"]
            assert entries[0].role == entries[-1].role == "user", family
            assert entries[0].pieces[0].kind == "text", family
            for one, other in pairwise(entries):
                result = one.pieces[-1].kind == "result"
                assert one.role != other.role or (result and family not in ("anthropic", "google")), (
                    family,
                    one,
                    other,
                )
                calls = [piece.id for piece in one.pieces if piece.kind == "call"]
                assert [piece.id for piece in other.pieces if piece.kind == "result"] == calls, (family, one, other)
            for entry in entries:
                assert entry.pieces, family
                # A signature may stand alone, as Anthropic itself sends it where thinking is not displayed.
                blank = {"result", "thinking"} if family == "anthropic" else {"result"}
                assert all(piece.text.strip() for piece in entry.pieces if piece.kind not in blank), (family, entry)


@settings(deadline=None)  # machines differ
@given(talk=talks())
def test_no_family_shows_an_agent_what_is_not_for_it(talk: Talk):
    """Own words are the assistant's, nobody else's are, and each text is where it is addressed to and nowhere else."""
    for agent in talk.spec.agents:
        for family, render in FAMILIES.items():
            system, entries = render(talk.request(agent, family))
            assert system == expected_system(talk, agent, family), family
            found: Counter[tuple[str, str, str]] = Counter()
            for entry in entries:
                for piece in entry.pieces:
                    found.update((mark, entry.role, piece.kind) for mark in MARK.findall(piece.text))
            assert found == expected(talk, agent, family), family


@settings(deadline=None)  # machines differ
@given(talk=talks())
def test_signatures_go_back_only_to_an_agent_that_keeps_its_thinking(talk: Talk):
    """Without `own` no family sends a signature; with it Anthropic sends its own blocks', Google the last of each."""
    for agent in talk.spec.agents:
        own = [turn.thinking for turn in talk.history.turns if turn.agent_id == agent.id]
        signed = [[block.signature for block in thinking if block.signature] for thinking in own]
        if agent.thinking_visible != "own":
            signed = []
        contents = [message["content"] for message in anthropic._messages(talk.request(agent, "anthropic").messages)]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        assert [block["signature"] for block in blocks if "signature" in block] == list(chain(*signed))
        of_google = google._contents(talk.request(agent, "google").messages)
        parts = [part for content in of_google for part in content["parts"]]
        sent = [b64encode(part["thought_signature"]).decode() for part in parts if "thought_signature" in part]
        assert sent == [signatures[-1] for signatures in signed if signatures]
        everything = json.dumps(
            [
                openai._messages(talk.request(agent, "openai")),
                ollama._messages(talk.request(agent, "ollama")),
                responses._items(talk.request(agent, "responses").messages),
            ]
        )
        assert "signature" not in everything


def place(turn: ConversationTurn, family: str) -> str:
    """Where text from outside stands in a family."""
    if turn.placement == "message" and MODELS[family] != "openai":
        return "parameter"
    return turn.placement


def expected_system(talk: Talk, agent: Agent, family: str) -> str | None:
    """The system prompt, and all that was ever put behind it."""
    texts = [turn.content for turn in talk.history.turns if turn.role is Role.SYSTEM and agent.id in turn.audience]
    texts += [
        turn.content if turn.content.strip() else talk.spec.placeholders.blank
        for turn in talk.history.turns
        if turn.role is Role.USER and agent.id in (turn.audience or ()) and place(turn, family) == "parameter"
    ]
    return "\n\n".join(texts) if texts else None


def expected(talk: Talk, agent: Agent, family: str) -> Counter[tuple[str, str, str]]:
    """Which marks the agent is sent, in which role, as what kind of piece."""
    marks: Counter[tuple[str, str, str]] = Counter()
    for number, turn in enumerate(talk.history.turns):
        mine = turn.agent_id == agent.id
        if mine and turn.tool_call is not None:
            marks[f"<c{number}>", "assistant", "call"] += 1
        if mine and turn.tool_result is not None:
            marks[turn.content, "user", "result"] += 1
        elif mine and turn.content.endswith(f"<{number}>"):
            marks[f"<{number}>", "assistant", "text"] += 1
        elif turn.content.endswith(f"<{number}>"):
            private = turn.tool_call is not None or turn.agent_id is None
            where = {"message": "system", "parameter": None}.get(place(turn, family), "user")
            if where is not None and (agent.id in (turn.audience or ()) or not private):
                marks[f"<{number}>", where, "text"] += 1
        texts = [block for block in turn.thinking if block.text]
        visible = talk.spec.agent(turn.agent_id).thinking_visible if turn.agent_id else "nobody"
        if mine and visible == "own":
            back = {
                "anthropic": [block for block in texts if block.signature],  # signed blocks only
                "ollama": texts,
            }  # Google gets the signature, the others nothing
            marks[f"<t{number}>", "assistant", "thinking"] += len(back.get(family, ()))
        elif not mine and visible == "partner":
            marks[f"<t{number}>", "user", "text"] += len(texts)
    return +marks
