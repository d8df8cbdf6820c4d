"""Tool calls that a model made in one reply go back as one message, with their results behind it, on every family."""

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from loopback import LoopbackServer
from support import conversation

from pidgin_cli.conversation.history import Sent
from pidgin_cli.conversation.progress import Progress
from pidgin_cli.core.events import Event, InterventionEvent, ToolCallEvent, ToolResultEvent
from pidgin_cli.core.types import Message, ModelRequest, Role, Timeouts, ToolCall, ToolResult
from pidgin_cli.providers.registry import ProviderPool, split_model

MODELS = {
    "anthropic": "anthropic:claude-opus-5",
    "openai": "openai:gpt-5.1",
    "google": "google:gemini-2.5-pro",
    "ollama": "ollama:llama3.2",
}
WHERE: dict[str, Any] = {"agent_id": "a", "turn_number": 1, "message_index": 0}
CALLS = [("c1", "look", '{"at":"sun"}'), ("c2", "look", '{"at":"moon"}'), ("c3", "now", "{}")]


def calls() -> list[Event]:
    return [ToolCallEvent(call_id=i, name=name, arguments=text, **WHERE) for i, name, text in CALLS]


def results() -> list[Event]:
    return [ToolResultEvent(call_id=i, content=f"result of {i}", **WHERE) for i, _, _ in CALLS]


def seen(*events: Event) -> Sent:
    """What agent a would be sent after these events."""
    progress = Progress(conversation("local:test", "local:test"))
    progress._outside("Hello.", 0, None)
    for event in events:
        progress.advance(event)
    return progress.views["a"].sent()


TOGETHER = (
    Message(role=Role.ASSISTANT, content="", tool_calls=tuple(ToolCall(*call) for call in CALLS)),
    *(
        Message(role=Role.TOOL, content=f"result of {i}", tool_result=ToolResult(i, f"result of {i}"))
        for i, _, _ in CALLS
    ),
)


def test_calls_together_are_one_message() -> None:
    """No placeholder stands between them, and what somebody says meanwhile comes behind the results."""
    sent = seen(*calls(), *results())
    assert sent.messages[1:] == TOGETHER
    assert sent.placeholders == 0
    said = InterventionEvent(turn_number=1, source="user", audience=("a",), text="Wait.", placement="user")
    one, *rest = calls()
    assert seen(one, said, *rest, *results()).messages[1:-1] == TOGETHER
    assert seen(one, said, *rest, *results()).messages[-1] == Message(role=Role.USER, content="[HUMAN]: Wait.")


def test_calls_after_one_another_stay_so() -> None:
    """A call that follows on a result is a message of its own."""
    sent = seen(*(event for pair in zip(calls(), results(), strict=True) for event in pair))
    roles = [message.role for message in sent.messages]
    assert roles == [Role.USER, *[Role.ASSISTANT, Role.TOOL] * 3]
    assert sent.digest != seen(*calls(), *results()).digest


def test_the_digest_knows_every_call() -> None:
    """Requests that differ in one of the calls are two, and a view that was asked meanwhile says the same."""
    whole = seen(*calls(), *results()).digest
    first, second, third = calls()
    assert len({whole, seen(first, second, *results()).digest, seen(second, first, third, *results()).digest}) == 3
    progress = Progress(conversation("local:test", "local:test"))
    progress._outside("Hello.", 0, None)
    for event in (*calls(), *results()):
        progress.advance(event)
        progress.views["a"].sent()
    assert progress.views["a"].sent() == seen(*calls(), *results())


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "OLLAMA_", "GOOGLE_", "GEMINI_")):
            monkeypatch.delenv(variable)
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


@pytest.mark.parametrize("family", MODELS)
async def test_every_family_is_sent_them_together(family: str, server: LoopbackServer) -> None:
    """One message of the model with all calls; all results behind it, in one message where the vendor wants that."""
    pool = ProviderPool()
    sent = seen(*calls(), *results())
    try:
        request = ModelRequest(model=split_model(MODELS[family])[1], messages=sent.messages)
        async for _ in pool.adapter(MODELS[family], Timeouts()).stream_response(request):
            pass
    finally:
        await pool.aclose()
    [body] = [request.body for request in server.chats]
    assert "[go on]" not in str(body)
    messages = body["contents"] if family == "google" else body["messages"]
    roles = [message["role"] for message in messages]
    assert (
        roles
        == {
            "anthropic": ["user", "assistant", "user"],
            "openai": ["user", "assistant", "tool", "tool", "tool"],
            "google": ["user", "model", "user"],
            "ollama": ["user", "assistant", "tool", "tool", "tool"],
        }[family]
    )
    parts = {"anthropic": "content", "google": "parts"}.get(family, "tool_calls")
    assert len(messages[1][parts]) == 3
    if len(messages) == 3:
        assert len(messages[2][parts]) == 3
