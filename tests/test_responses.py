"""What only OpenAI's Responses API has, with the real SDK over real HTTP; what all promise is in `test_adapters`."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import pytest
from loopback import LoopbackServer, Reply
from openai.types.responses import ResponseError
from openai.types.shared import ChatModel, ResponsesModel
from test_adapters import ask, failure, request_for, with_settings

from pidgin_cli.core.errors import (
    ContentFiltered,
    Overloaded,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
)
from pidgin_cli.core.types import FinishReason, Message, Role, ThinkingDelta, Timeouts, ToolCall, Usage
from pidgin_cli.providers import openai
from pidgin_cli.providers.responses import ResponsesProvider, needs_responses

REQUEST = request_for("responses")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


@pytest.fixture
async def provider(server: LoopbackServer) -> AsyncIterator[ResponsesProvider]:
    provider = ResponsesProvider(Timeouts())
    yield provider
    await provider.aclose()


# Which models


def names(kind: Any) -> Iterator[str]:
    """The model names in a type of the SDK."""
    for member in get_args(kind):
        if isinstance(member, str):
            yield member
        else:
            yield from names(member)


def test_every_model_that_the_sdk_has_for_responses_only_needs_them():
    """A family that the SDK gains fails here until the rule knows it."""
    only = set(names(ResponsesModel)) - set(names(ChatModel))
    assert len(only) > 10
    assert [model for model in only if not needs_responses(model)] == []


def test_models_for_chat_need_none():
    """The others stay with chat completions; the SDK's list there is a little too long."""
    found = {model for model in names(ChatModel) if needs_responses(model)}
    # They answer with 404: "This model is only supported in v1/responses and not in v1/chat/completions."
    assert found == {"gpt-5.1-codex", "gpt-5.2-pro", "gpt-5.2-pro-2025-12-11", "codex-mini-latest"}


@pytest.mark.parametrize(
    "model", ["gemini-3-pro", "grok-4-pro", "deepseek-pro", "gpt-oss-120b", "gpt-5-prompt", "ft:gpt-4o:acme-pro:x:1"]
)
def test_the_rule_is_about_openais_families(model: str):
    """`pro` in other names means nothing."""
    assert not needs_responses(model)


# What is sent


async def test_nothing_is_stored_or_kept_encrypted(server: LoopbackServer, provider: ResponsesProvider):
    """The conversation lives in our record, and every request carries all of it."""
    await ask(provider, request_for("responses", system="Be brief."))
    [sent] = server.requests
    assert sent.path == "/v1/responses"
    assert sent.body == {
        "model": "gpt-5-pro",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "Hi."}],
        "store": False,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("model", "settings", "reasoning"),
    [
        ("gpt-5-pro", {"think": True}, {"summary": "auto"}),
        ("gpt-5.1", {"think": True}, {"summary": "auto", "effort": "medium"}),
        ("gpt-5.1", {"effort": "high"}, {"summary": "auto", "effort": "high"}),
        ("gpt-5.1", {"think": False, "effort": "high"}, {"effort": "none"}),
        ("gpt-5.1", {}, None),
    ],
)
async def test_thinking_suits_the_model(
    model: str, settings: dict[str, Any], reasoning: Any, server: LoopbackServer, provider: ResponsesProvider
):
    """Models that always think keep the effort of their own, of which some take no other; the rest is told one."""
    await ask(provider, with_settings("responses", model, **settings))
    assert server.requests[0].body.get("reasoning") == reasoning


async def test_text_and_call_of_one_message_are_two_items(server: LoopbackServer, provider: ResponsesProvider):
    """What a model said beside a call stands before it; a blank is left out."""
    call = ToolCall("c1", "look", "")
    said = (Message(Role.ASSISTANT, "I look.", tool_calls=(call,)), Message(Role.ASSISTANT, " ", tool_calls=(call,)))
    await ask(provider, request_for("responses", Message(Role.USER, "Hi."), *said))
    item = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    assert server.requests[0].body["input"][1:] == [{"role": "assistant", "content": "I look."}, item, item]


# What comes back


def summary(text: str, part: int) -> dict[str, Any]:
    return {
        "type": "response.reasoning_summary_text.delta",
        "delta": text,
        "item_id": "rs",
        "output_index": 0,
        "summary_index": part,
        "sequence_number": 1,
    }


async def test_parts_of_a_summary_are_kept_apart(server: LoopbackServer, provider: ResponsesProvider):
    """The API sends nothing between them, and a title would run into the text before it."""
    server.reply = lambda _request: Reply(thinking=["One ", "thought."], insert=(5, summary("Another.", 1)))
    deltas = [delta async for delta in provider.stream_response(REQUEST)]
    thoughts = [delta.text for delta in deltas if isinstance(delta, ThinkingDelta)]
    assert thoughts == ["One ", "thought.", "\n\n", "Another."]


async def test_reasoning_of_open_models_is_thinking(server: LoopbackServer, provider: ResponsesProvider):
    """vLLM and others send the reasoning itself instead of a summary."""
    event = {
        "type": "response.reasoning_text.delta",
        "delta": "Hm.",
        "item_id": "rs",
        "output_index": 0,
        "content_index": 0,
        "sequence_number": 1,
    }
    server.script(Reply("Yes.", insert=(2, event)))
    message = (await ask(provider, REQUEST)).message
    assert (message.content, [block.text for block in message.thinking]) == ("Yes.", ["Hm."])


@pytest.mark.parametrize("kind", ["response.something_new", "response.web_search_call.in_progress", "keepalive"])
async def test_events_that_say_nothing_are_passed_over(kind: str, server: LoopbackServer, provider: ResponsesProvider):
    """The API gains events; those we have no use for do no harm."""
    server.script(Reply("Yes.", insert=(2, {"type": kind, "sequence_number": 2})))
    assert (await ask(provider, REQUEST)).message.content == "Yes."


async def test_usage_without_details_is_usage(server: LoopbackServer, provider: ResponsesProvider):
    """Compatible servers leave the details out."""
    done = {"id": "r", "object": "response", "model": "m", "status": "completed", "output": []}
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    event = {"type": "response.completed", "sequence_number": 9, "response": done | {"usage": usage}}
    server.script(Reply(finish="", insert=(7, event)))
    response = await ask(provider, REQUEST)
    assert response.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert response.finish.reason is FinishReason.STOP


# Errors


def failed(error: Any) -> dict[str, Any]:
    response = {"id": "r", "object": "response", "model": "m", "status": "failed", "output": [], "error": error}
    return {"type": "response.failed", "sequence_number": 5, "response": response}


@pytest.mark.parametrize(
    ("event", "expected", "text"),
    [
        (failed({"code": "server_error", "message": "It broke."}), Overloaded, "It broke."),
        (failed({"code": "rate_limit_exceeded", "message": "Slow."}), RateLimited, "Slow."),
        (failed({"code": "invalid_prompt", "message": "No."}), ContentFiltered, "No."),
        (failed({"code": "of_a_new_kind", "message": "Odd."}), Overloaded, "Odd."),
        (failed(None), Overloaded, "the reply failed"),
        (failed({}), Overloaded, "the reply failed"),
        ({"type": "error", "code": "server_error", "message": "It broke.", "param": None}, Overloaded, "It broke."),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "Slow."}, RateLimited, "Slow."),
        ({"type": "error", "code": None, "message": "Odd."}, Overloaded, "Odd."),
        ({"type": "error"}, Overloaded, "the reply failed"),
        (
            {"type": "error", "error": {"type": "invalid_request_error", "code": None, "message": "Bad."}},
            RequestRejected,
            "Bad.",
        ),
        ({"type": "response.failed"}, ProviderUnavailable, "the server sent what the OpenAI API does not: "),
        ({"type": "response.completed"}, ProviderUnavailable, "the server sent what the OpenAI API does not: "),
    ],
)
async def test_a_reply_that_failed_is_a_typed_error(
    event: dict[str, Any],
    expected: type[ProviderError],
    text: str,
    server: LoopbackServer,
    provider: ResponsesProvider,
):
    """Both events for errors are typed by their code and have the vendor's words."""
    server.script(Reply(insert=(4, event)))
    error = await failure(provider, REQUEST)
    assert (type(error), error.status) == (expected, None)
    assert str(error).startswith(text)


def test_every_code_of_a_failed_reply_is_known():
    """Those about images cannot come; any other that the SDK gains fails here until someone decides what it means."""
    codes = set(get_args(ResponseError.model_fields["code"].annotation))
    mine = {code for code in codes if "image" not in code and code != "vector_store_timeout"}
    assert len(mine) >= 5
    assert mine <= set(openai.CODES)
