"""Thinking that Anthropic keeps to itself is recorded as such and goes back to the model that thought it, unread."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply
from support import check_record, conversation, converse, cut_copy, experiment, go_on, of_type

from pidgin_cli.conversation.history import ConversationHistory, ConversationTurn, ConversationView
from pidgin_cli.core.events import MessageCompleteEvent, ThinkingCompleteEvent
from pidgin_cli.core.types import Delta, Finish, Role, TextDelta, ThinkingBlock, ThinkingDelta, fold

MODEL = "anthropic:claude-opus-5"
DATA = "EmwKAhgBEgy3va3pzix"
REPLY = Reply("Yes.", redacted=DATA, thinking=["Hm."], signature="sig")
BLOCKS = [
    {"type": "redacted_thinking", "data": DATA},
    {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
    {"type": "text", "text": "Yes."},
]


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer(lambda request: REPLY if request.api == "anthropic" else Reply("I see.")) as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


def said_by_model(server: LoopbackServer) -> list[Any]:
    """What the last request to Anthropic has as the model's own messages."""
    last = [request for request in server.chats if request.api == "anthropic"][-1]
    return [message["content"] for message in last.body["messages"] if message["role"] == "assistant"]


@pytest.mark.parametrize("cache", ["off", "on"])
async def test_it_goes_back_as_it_came(cache: str, server: LoopbackServer, tmp_path: Path) -> None:
    """In its place before the thinking that can be read: live, from the cache, and after a resume from the file."""
    agents = {"a": {"thinking_visible": "own"}}
    spec = experiment(MODEL, "local:test", max_turns=2, agents=agents, cache=cache)
    for name in ("first", "again"):
        run = await converse(tmp_path / name, spec)
        check_record(run.events)
        blocks = [
            (event.content, event.signature, event.redacted) for event in of_type(run.events, ThinkingCompleteEvent)
        ]
        assert blocks == [("", DATA, True), ("Hm.", "sig", False)] * 2
        assert said_by_model(server) == [BLOCKS]
    assert len(server.chats) == (4 if cache == "off" else 2)
    whole = [request.body for request in server.chats][-1]
    server.requests.clear()
    until = run.log.read_bytes().rindex(b"TurnStartEvent")
    resumed = await go_on(*cut_copy(run, tmp_path / "cut", run.log.read_bytes().rindex(b"\n", 0, until) + 1))
    check_record(resumed.events)
    assert [request.body for request in server.chats] == ([whole] if cache == "off" else [])


@pytest.mark.parametrize("visible", ["partner", "nobody"])
async def test_nobody_else_is_sent_it(visible: str, server: LoopbackServer, tmp_path: Path) -> None:
    """There is nothing in it that could be read: it is recorded, and in no request."""
    agents = {"a": {"thinking_visible": visible, "name": "Ann"}}
    run = await converse(tmp_path, experiment(MODEL, "openai:gpt-5.1", max_turns=2, agents=agents))
    check_record(run.events)
    assert DATA in run.log.read_text()
    assert DATA not in str([request.body for request in server.chats])
    assert said_by_model(server) == ["Yes."]


async def test_a_reply_of_nothing_else_is_whole(server: LoopbackServer, tmp_path: Path) -> None:
    """Redacted thinking without any other goes back before the text."""
    server.reply = lambda _: Reply("Yes.", redacted=DATA)
    agents = {"a": {"thinking_visible": "own"}}
    run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=2, agents=agents))
    check_record(run.events)
    assert of_type(run.events, MessageCompleteEvent)[0].message.content == "Yes."
    assert said_by_model(server) == [[BLOCKS[0], BLOCKS[2]]]


def test_it_is_a_block_of_its_own() -> None:
    """What was thought before it without a signature stays readable and apart."""
    deltas: list[Delta] = [
        ThinkingDelta("a"),
        ThinkingDelta("", DATA, redacted=True),
        ThinkingDelta("b", "s"),
        TextDelta("c"),
        Finish(),
    ]
    blocks = (ThinkingBlock("a"), ThinkingBlock("", DATA, redacted=True), ThinkingBlock("b", "s"))
    assert fold(deltas).message.thinking == blocks


def test_the_digest_tells_it_from_a_signature() -> None:
    """Two requests that differ in this alone are two."""
    spec = conversation(MODEL, "local:test", agents={"a": {"thinking_visible": "own"}})
    digests = set()
    for redacted in (True, False):
        history = ConversationHistory()
        thinking = (ThinkingBlock("", DATA, redacted),)
        turn = ConversationTurn(
            role=Role.ASSISTANT, content="Yes.", turn_number=1, agent_id="a", message_index=0, thinking=thinking
        )
        history.append(turn)
        digests.add(ConversationView(spec.agents[0], spec, history, {"a": "a", "b": "b"}).digest())
    assert len(digests) == 2
