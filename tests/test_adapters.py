"""The real SDKs over real HTTP, against a loopback server that keeps what it was sent."""

import asyncio
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anthropic as anthropic_sdk
import httpx2
import ollama as ollama_sdk
import openai as openai_sdk
import pytest
from loopback import LoopbackServer, Reply, Request, Tokens, loopback_in_thread

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
    SpecError,
)
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
    Role,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCall,
    ToolResult,
    Usage,
    fold,
)
from pidgin_cli.providers import anthropic, google, ollama, openai, responses, wire
from pidgin_cli.providers.base import Timeouts
from pidgin_cli.providers.wrappers import Timed

ADAPTERS: dict[str, Callable[[Timeouts], Any]] = {
    "anthropic": anthropic.AnthropicProvider,
    "openai": openai.OpenAIProvider,
    "responses": responses.ResponsesProvider,
    "google": google.GoogleProvider,
    "ollama": ollama.OllamaProvider,
}
MODELS = {
    "anthropic": "claude-opus-5",
    "openai": "gpt-5.1",
    "responses": "gpt-5-pro",
    "google": "gemini-3-pro",
    "ollama": "llama3.2",
}
VARIABLES = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "responses": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "google": ("GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"),
}
"""Where key and address come from."""
ALL = pytest.mark.parametrize("name", MODELS)
KEYED = pytest.mark.parametrize("name", VARIABLES)

Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "GOOGLE_", "GEMINI_", "OLLAMA_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


@pytest.fixture
async def open_provider() -> AsyncIterator[Open]:
    """Opens adapters by name, and closes them."""
    opened: list[Any] = []

    def open_one(name: str, timeouts: Timeouts | None = None) -> Any:
        opened.append(ADAPTERS[name](timeouts or Timeouts()))
        return opened[-1]

    yield open_one
    for provider in opened:
        await provider.aclose()


def request_for(name: str, *messages: Message, **more: Any) -> ModelRequest:
    sent = messages or (Message(Role.USER, "Hi."),)
    return ModelRequest(model=more.pop("model", MODELS[name]), messages=sent, **more)


def with_settings(name: str, model: str | None = None, **settings: Any) -> ModelRequest:
    return request_for(name, model=model or MODELS[name], settings=AgentSettings(**settings))


async def ask(provider: Any, request: ModelRequest) -> ModelResponse:
    return fold([delta async for delta in provider.stream_response(request)])


async def failure(provider: Any, request: ModelRequest) -> ProviderError:
    """The error that asking ends with; it comes from the vendor's exception and is typed."""
    with pytest.raises(ProviderError) as caught:
        await ask(provider, request)
    error = caught.value
    assert error.provider in MODELS
    assert "\n" not in str(error)
    assert 0 < len(str(error)) <= 500
    return error


# What a whole reply brings


@ALL
async def test_text_arrives_in_the_pieces_the_server_sent(name: str, server: LoopbackServer, open_provider: Open):
    """Nothing is joined, split or dropped on the way, and the last delta is the one Finish."""
    server.script(Reply(["Hel", "lo ", "wörld 🌍", "\n"]))
    deltas = [delta async for delta in open_provider(name).stream_response(request_for(name))]
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == ["Hel", "lo ", "wörld 🌍", "\n"]
    response = fold(deltas)
    assert deltas[-1] == response.finish
    assert response.finish.reason is FinishReason.STOP
    assert response.finish.model == MODELS[name]


@ALL
async def test_an_empty_reply_is_whole(name: str, server: LoopbackServer, open_provider: Open):
    """A model may say nothing; that is no error."""
    server.script(Reply(""))
    response = await ask(open_provider(name), request_for(name))
    assert response.message.content == ""
    assert response.finish.reason is FinishReason.STOP


@ALL
async def test_the_served_model_is_recorded(name: str, server: LoopbackServer, open_provider: Open):
    """The model that answered counts, not the alias that was asked for."""
    server.script(Reply(model="really-this-20260101"))
    assert (await ask(open_provider(name), request_for(name))).finish.model == "really-this-20260101"


@KEYED
async def test_the_request_id_is_recorded(name: str, server: LoopbackServer, open_provider: Open):
    """The vendor can be asked about a reply."""
    expected = "resp_loopback" if name == "google" else "req_loopback"
    assert (await ask(open_provider(name), request_for(name))).finish.request_id == expected


async def test_openai_fingerprint_is_recorded(server: LoopbackServer, open_provider: Open):
    """A change of the backend under one model name shows."""
    server.script(Reply(fingerprint="fp_1"))
    assert (await ask(open_provider("openai"), request_for("openai"))).finish.fingerprint == "fp_1"


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        (
            "anthropic",
            Tokens(prompt=100, completion=30, thinking=12, cached=60, cache_write=15),
            Usage(prompt_tokens=100, completion_tokens=30, thinking_tokens=12, cached_tokens=60, cache_write_tokens=15),
        ),
        ("anthropic", Tokens(prompt=25, completion=7), Usage(prompt_tokens=25, completion_tokens=7)),
        ("anthropic", None, Usage()),
        (
            "openai",
            Tokens(prompt=100, completion=30, thinking=12, cached=60, cache_write=15),
            Usage(prompt_tokens=100, completion_tokens=30, thinking_tokens=12, cached_tokens=60, cache_write_tokens=15),
        ),
        ("openai", Tokens(prompt=25, completion=7), Usage(prompt_tokens=25, completion_tokens=7)),
        ("openai", None, Usage()),
        (
            "responses",
            Tokens(prompt=100, completion=30, thinking=12, cached=60, cache_write=15),
            Usage(prompt_tokens=100, completion_tokens=30, thinking_tokens=12, cached_tokens=60, cache_write_tokens=15),
        ),
        ("responses", Tokens(prompt=25, completion=7), Usage(prompt_tokens=25, completion_tokens=7)),
        ("responses", None, Usage()),
        (
            "google",
            Tokens(prompt=100, completion=30, thinking=12, cached=60),
            Usage(prompt_tokens=100, completion_tokens=30, thinking_tokens=12, cached_tokens=60),
        ),
        ("google", Tokens(prompt=25, completion=7), Usage(prompt_tokens=25, completion_tokens=7)),
        ("google", Tokens(prompt=25, completion=None), Usage(prompt_tokens=25)),
        ("google", None, Usage()),
        ("ollama", Tokens(prompt=25, completion=7), Usage(prompt_tokens=25, completion_tokens=7)),
        ("ollama", Tokens(prompt=None, completion=7), Usage(completion_tokens=7)),
        ("ollama", None, Usage()),
    ],
)
async def test_usage_is_what_was_reported(
    name: str, tokens: Tokens | None, expected: Usage, server: LoopbackServer, open_provider: Open
):
    """Input includes what was cached, output includes thinking, and what was not reported is None, never 0."""
    server.script(Reply(usage=tokens))
    assert (await ask(open_provider(name), request_for(name))).usage == expected


@pytest.mark.parametrize(
    ("name", "word", "reason"),
    [
        ("anthropic", "end_turn", FinishReason.STOP),
        ("anthropic", "stop_sequence", FinishReason.STOP),
        ("anthropic", "max_tokens", FinishReason.LENGTH),
        ("anthropic", "model_context_window_exceeded", FinishReason.LENGTH),
        ("anthropic", "tool_use", FinishReason.TOOL_CALLS),
        ("anthropic", "refusal", FinishReason.REFUSAL),
        ("anthropic", "something_new", FinishReason.UNKNOWN),
        ("openai", "stop", FinishReason.STOP),
        ("openai", "length", FinishReason.LENGTH),
        ("openai", "tool_calls", FinishReason.TOOL_CALLS),
        ("openai", "content_filter", FinishReason.CONTENT_FILTER),
        ("openai", "something_new", FinishReason.UNKNOWN),
        ("responses", "completed", FinishReason.STOP),
        ("responses", "max_output_tokens", FinishReason.LENGTH),
        ("responses", "content_filter", FinishReason.CONTENT_FILTER),
        ("responses", "something_new", FinishReason.UNKNOWN),
        ("google", "STOP", FinishReason.STOP),
        ("google", "MAX_TOKENS", FinishReason.LENGTH),
        ("google", "CONTINUATION", FinishReason.LENGTH),
        ("google", "SAFETY", FinishReason.CONTENT_FILTER),
        ("google", "PROHIBITED_CONTENT", FinishReason.CONTENT_FILTER),
        ("google", "BLOCKLIST", FinishReason.CONTENT_FILTER),
        ("google", "RECITATION", FinishReason.CONTENT_FILTER),
        ("google", "MALFORMED_FUNCTION_CALL", FinishReason.UNKNOWN),
        ("google", "SOMETHING_NEW", FinishReason.UNKNOWN),
        ("ollama", "stop", FinishReason.STOP),
        ("ollama", "length", FinishReason.LENGTH),
        ("ollama", "load", FinishReason.UNKNOWN),
    ],
)
@pytest.mark.filterwarnings("ignore:SOMETHING_NEW is not a valid FinishReason:UserWarning")
async def test_stop_reasons_have_one_vocabulary(
    name: str, word: str, reason: FinishReason, server: LoopbackServer, open_provider: Open
):
    """Each vendor's word becomes one of ours, and one we do not know says so."""
    server.script(Reply(finish=word))
    assert (await ask(open_provider(name), request_for(name))).finish.reason is reason


@pytest.mark.parametrize("name", ["openai", "responses"])
async def test_openai_refusal_is_text_and_a_reason(name: str, server: LoopbackServer, open_provider: Open):
    """A refusal in its own field is what the model said, and is marked."""
    server.script(Reply("", refusal="I will not."))
    response = await ask(open_provider(name), request_for(name))
    assert response.message.content == "I will not."
    assert response.finish.reason is FinishReason.REFUSAL


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("anthropic", Reply("So: 4.", thinking=["Two and ", "two."], signature="sig")),
        ("openai", Reply("So: 4.", thinking=["Two and ", "two."])),
        ("openai", Reply("So: 4.", thinking=["Two and ", "two."], reasoning_field="reasoning")),
        ("responses", Reply("So: 4.", thinking=["Two and ", "two."])),
        ("google", Reply("So: 4.", thinking=["Two and ", "two."])),
        ("google", Reply("So: 4.", thinking=["Two and ", "two."], signature="c2lnbmVk")),
        ("ollama", Reply("So: 4.", thinking=["Two and ", "two."])),
    ],
)
async def test_thinking_is_kept_apart_from_text(name: str, reply: Reply, server: LoopbackServer, open_provider: Open):
    """Thinking arrives as thinking, before the text, with the vendor's signature where there is one."""
    server.script(reply)
    deltas = [delta async for delta in open_provider(name).stream_response(request_for(name))]
    assert [delta.text for delta in deltas if isinstance(delta, ThinkingDelta) and delta.text] == ["Two and ", "two."]
    message = fold(deltas).message
    assert message.content == "So: 4."
    assert message.thinking == (ThinkingBlock("Two and two.", reply.signature),)


@ALL
async def test_tool_calls_are_put_together(name: str, server: LoopbackServer, open_provider: Open):
    """The pieces of each call, and no other's, make its arguments."""
    calls = [("c1", "add", '{"a":1,"b":2}'), ("c2", "now", "{}")]
    server.script(Reply("", tool_calls=calls))
    response = await ask(open_provider(name), request_for(name))
    assert [(call.name, call.arguments) for call in response.message.tool_calls] == [call[1:] for call in calls]
    assert len({call.id for call in response.message.tool_calls}) == 2
    assert response.finish.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("name", ["openai", "google"])
async def test_chunks_without_choices_are_passed_over(name: str, server: LoopbackServer, open_provider: Open):
    """Azure and others begin with a chunk that holds nothing; nothing but such chunks is no reply."""
    server.script(Reply("Hi", empty_choices=True), Reply("", empty_choices=True, finish=""))
    provider = open_provider(name)
    assert (await ask(provider, request_for(name))).message.content == "Hi"
    assert type(await failure(provider, request_for(name))) is ProviderUnavailable


@ALL
async def test_a_very_long_reply_arrives_whole(name: str, server: LoopbackServer, open_provider: Open):
    """Megabytes in few or in many pieces are passed on as they come."""
    for pieces in (["x" * 2_000_000, "end"], ["word "] * 5_000):
        server.script(Reply(pieces))
        assert (await ask(open_provider(name), request_for(name))).message.content == "".join(pieces)


# What is sent


@ALL
async def test_system_prompt_and_messages_are_sent_as_they_are(name: str, server: LoopbackServer, open_provider: Open):
    """Every text goes to the model in its role, once, and nothing else does."""
    said = [(Role.USER, "One."), (Role.ASSISTANT, "Two."), (Role.USER, "Three — “ünd” 🌍")]
    await ask(open_provider(name), request_for(name, *(Message(*one) for one in said), system="Be brief."))
    [sent] = server.requests
    assert sent.system == "Be brief."
    assert sent.messages == [(str(role), text) for role, text in said]
    assert sent.model == MODELS[name]


@ALL
async def test_without_a_system_prompt_none_is_sent(name: str, server: LoopbackServer, open_provider: Open):
    """No prompt is not an empty prompt."""
    await ask(open_provider(name), request_for(name))
    assert server.requests[0].system is None
    assert server.requests[0].body.keys().isdisjoint({"system", "instructions", "systemInstruction"})
    assert len(server.requests[0].messages) == 1


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("anthropic", {"model", "messages", "max_tokens", "stream", "cache_control"}),
        ("openai", {"model", "messages", "stream", "stream_options"}),
        ("responses", {"model", "input", "stream", "store"}),
        ("google", {"contents", "generationConfig"}),
        ("ollama", {"model", "messages", "stream", "tools", "options", "keep_alive"}),
    ],
)
async def test_unset_settings_are_not_sent(name: str, fields: set[str], server: LoopbackServer, open_provider: Open):
    """The vendor's defaults stay the vendor's."""
    await ask(open_provider(name), request_for(name))
    assert set(server.requests[0].body) == fields


EVERY_SETTING = AgentSettings(
    temperature=0.0, top_p=0.5, max_tokens=100, stop=("END",), seed=7, think=True, think_budget=50, effort="low"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "anthropic",
            {
                "temperature": 0.0,
                "top_p": 0.5,
                "max_tokens": 100,
                "cache_control": {"type": "ephemeral"},
                "stop_sequences": ["END"],
                "thinking": {"type": "enabled", "budget_tokens": 50},
                "output_config": {"effort": "low"},
            },
        ),
        (
            "openai",
            {
                "temperature": 0.0,
                "top_p": 0.5,
                "max_tokens": 100,
                "stop": ["END"],
                "seed": 7,
                "reasoning_effort": "low",
            },
        ),
        (
            "responses",
            {
                "store": False,
                "temperature": 0.0,
                "top_p": 0.5,
                "max_output_tokens": 100,
                "stop": ["END"],
                "seed": 7,
                "reasoning": {"effort": "low", "summary": "auto"},
            },
        ),
        (
            "google",
            {
                "generationConfig": {
                    "temperature": 0.0,
                    "topP": 0.5,
                    "maxOutputTokens": 100,
                    "stopSequences": ["END"],
                    "seed": 7,
                    "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 50, "thinkingLevel": "LOW"},
                },
            },
        ),
        (
            "ollama",
            {
                "options": {
                    "num_ctx": 16_384,
                    "temperature": 0.0,
                    "top_p": 0.5,
                    "num_predict": 100,
                    "stop": ["END"],
                    "seed": 7,
                },
                "keep_alive": 1800.0,
                "think": "low",
            },
        ),
    ],
)
async def test_settings_are_sent_and_reported_alike(
    name: str, expected: dict[str, Any], server: LoopbackServer, open_provider: Open
):
    """What `effective_parameters` says is what goes over the wire, a temperature of 0 included."""
    provider = open_provider(name)
    request = request_for(name, settings=EVERY_SETTING)
    await ask(provider, request)
    body = server.requests[0].body
    assert provider.effective_parameters(request) == expected
    assert {key: body[key] for key in expected} == expected
    assert set(body) - set(expected) <= {"model", "messages", "input", "contents", "stream", "stream_options", "tools"}


@pytest.mark.parametrize(
    ("model", "settings", "thinking"),
    [
        ("claude-sonnet-4-5", {"think": True}, {"type": "enabled", "budget_tokens": 4096}),
        ("claude-3-7-sonnet-20250219", {"think": True}, {"type": "enabled", "budget_tokens": 4096}),
        ("claude-opus-4-20250514", {"think": True}, {"type": "enabled", "budget_tokens": 4096}),
        ("claude-sonnet-4-5", {"think": True, "max_tokens": 2000}, {"type": "enabled", "budget_tokens": 1999}),
        ("claude-sonnet-4-5", {"think_budget": 9000}, {"type": "enabled", "budget_tokens": 9000}),
        ("claude-opus-4-6", {"think": True}, {"type": "adaptive", "display": "summarized"}),
        ("claude-sonnet-5", {"think": True}, {"type": "adaptive", "display": "summarized"}),
        ("claude-haiku-5-5-20260901", {"think": True}, {"type": "adaptive", "display": "summarized"}),
        ("claude-mythos-preview", {"think": True}, {"type": "adaptive", "display": "summarized"}),
        ("claude-opus-5", {"think_budget": 9000}, {"type": "enabled", "budget_tokens": 9000}),
        ("claude-opus-5", {"think": False}, {"type": "disabled"}),
        ("claude-haiku-5-5", {"think": False}, {"type": "disabled"}),
        ("claude-sonnet-5", {"think": False}, {"type": "disabled"}),
        ("claude-sonnet-5-5", {"think": False}, {"type": "between_tools"}),
        ("another-model", {"think": True}, {"type": "enabled", "budget_tokens": 4096}),
        ("claude-opus-5", {"effort": "low"}, None),
        ("claude-opus-5", {}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")
async def test_anthropic_thinking_suits_the_model(
    model: str, settings: dict[str, Any], thinking: Any, server: LoopbackServer, open_provider: Open
):
    """Older models get a budget below the limit, newer ones decide themselves; what was asked for is never changed."""
    await ask(open_provider("anthropic"), with_settings("anthropic", model, **settings))
    assert server.requests[0].body.get("thinking") == thinking


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("claude-3-5-haiku-latest", 8192),
        ("claude-3-7-sonnet-latest", 64_000),
        ("claude-opus-4-1-20250805", 32_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-sonnet-4-6", 64_000),
        ("claude-opus-4-6", 128_000),
        ("claude-sonnet-5-5", 128_000),
        ("claude-mythos-preview", 64_000),
        ("another-model", 8192),
    ],
)
def test_anthropic_default_limit(model: str, limit: int):
    """The limit that the API demands is the model's own, or less where that is not sure."""
    assert anthropic.default_max_tokens(model) == limit


@pytest.mark.parametrize(
    ("name", "settings", "field", "value"),
    [
        ("openai", {"think": True}, "reasoning_effort", "medium"),
        ("openai", {"think": False}, "reasoning_effort", "none"),
        ("responses", {"think": True}, "reasoning", {"summary": "auto"}),
        ("responses", {"think": False}, "reasoning", {"effort": "none"}),
        ("google", {"think": True}, "generationConfig", {"thinkingConfig": {"includeThoughts": True}}),
        ("google", {"think": False}, "generationConfig", {"thinkingConfig": {"thinkingBudget": 0}}),
        ("ollama", {"think": True}, "think", True),
        ("ollama", {"think": False}, "think", False),
    ],
)
async def test_thinking_can_be_switched(
    name: str, settings: dict[str, Any], field: str, value: Any, server: LoopbackServer, open_provider: Open
):
    """On, off and unset are three things."""
    provider = open_provider(name)
    await ask(provider, with_settings(name, **settings))
    assert server.requests[0].body[field] == value
    await ask(provider, request_for(name))
    assert not server.requests[1].body.get(field)


async def test_openai_itself_gets_the_new_name_of_the_limit(monkeypatch: pytest.MonkeyPatch, open_provider: Open):
    """OpenAI's newer models refuse `max_tokens`; other servers may know nothing else."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    request = with_settings("openai", max_tokens=9)
    assert open_provider("openai").effective_parameters(request) == {"max_completion_tokens": 9}
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert open_provider("openai").effective_parameters(request) == {"max_tokens": 9}


TOOL_TALK = (
    Message(Role.USER, "What is 1+2, and the time?"),
    Message(
        Role.ASSISTANT,
        "",
        thinking=(ThinkingBlock("Use tools.", "c2lnMQ=="), ThinkingBlock("unsigned")),
        tool_calls=(ToolCall("c1", "add", '{"a":1}'), ToolCall("c2", "now", "")),
    ),
    Message(Role.TOOL, "", tool_result=ToolResult("c1", "3")),
    Message(Role.TOOL, "", tool_result=ToolResult("c2", "no clock", is_error=True)),
    Message(Role.ASSISTANT, "Three.", thinking=(ThinkingBlock("Say it.", "c2lnMg=="),)),
    Message(Role.USER, "Thanks."),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "anthropic",
            [
                {"role": "user", "content": "What is 1+2, and the time?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Use tools.", "signature": "c2lnMQ=="},
                        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                        {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": "3"},
                        {"type": "tool_result", "tool_use_id": "c2", "content": "no clock", "is_error": True},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Say it.", "signature": "c2lnMg=="},
                        {"type": "text", "text": "Three."},
                    ],
                },
                {"role": "user", "content": "Thanks."},
            ],
        ),
        (
            "openai",
            [
                {"role": "user", "content": "What is 1+2, and the time?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
                        {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
                {"role": "tool", "tool_call_id": "c2", "content": "no clock"},
                {"role": "assistant", "content": "Three."},
                {"role": "user", "content": "Thanks."},
            ],
        ),
        (
            "responses",
            [
                {"role": "user", "content": "What is 1+2, and the time?"},
                {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'},
                {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "3"},
                {"type": "function_call_output", "call_id": "c2", "output": "no clock"},
                {"role": "assistant", "content": "Three."},
                {"role": "user", "content": "Thanks."},
            ],
        ),
        (
            "google",
            [
                {"role": "user", "parts": [{"text": "What is 1+2, and the time?"}]},
                {
                    "role": "model",
                    "parts": [
                        {
                            "functionCall": {"id": "c1", "name": "add", "args": {"a": 1}},
                            "thoughtSignature": "c2lnMQ==",
                        },
                        {"functionCall": {"id": "c2", "name": "now", "args": {}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"id": "c1", "name": "add", "response": {"output": "3"}}},
                        {"functionResponse": {"id": "c2", "name": "now", "response": {"error": "no clock"}}},
                    ],
                },
                {"role": "model", "parts": [{"text": "Three.", "thoughtSignature": "c2lnMg=="}]},
                {"role": "user", "parts": [{"text": "Thanks."}]},
            ],
        ),
        (
            "ollama",
            [
                {"role": "user", "content": "What is 1+2, and the time?"},
                {
                    "role": "assistant",
                    "thinking": "Use tools.\n\nunsigned",
                    "tool_calls": [
                        {"function": {"name": "add", "arguments": {"a": 1}}},
                        {"function": {"name": "now", "arguments": {}}},
                    ],
                },
                {"role": "tool", "tool_name": "add", "content": "3"},
                {"role": "tool", "tool_name": "now", "content": "no clock"},
                {"role": "assistant", "content": "Three.", "thinking": "Say it."},
                {"role": "user", "content": "Thanks."},
            ],
        ),
    ],
)
async def test_tool_calls_results_and_signed_thinking_go_back_in_the_vendors_shape(
    name: str, expected: list[Any], server: LoopbackServer, open_provider: Open
):
    """A tool trace is legal for each API; signed thinking goes back to Anthropic whole, to Google as its signature."""
    await ask(open_provider(name), request_for(name, *TOOL_TALK))
    [sent] = [value for key, value in server.requests[0].body.items() if key in ("messages", "input", "contents")]
    assert sent == expected


# Keys and addresses


@KEYED
async def test_a_server_elsewhere_needs_no_key(
    name: str, server: LoopbackServer, open_provider: Open, monkeypatch: pytest.MonkeyPatch
):
    """Local servers rarely have keys, so the SDK gets a placeholder."""
    monkeypatch.delenv(VARIABLES[name][0])
    assert (await ask(open_provider(name), request_for(name))).message.content


async def test_anthropic_takes_a_token_instead_of_a_key(
    server: LoopbackServer, open_provider: Open, monkeypatch: pytest.MonkeyPatch
):
    """`ANTHROPIC_AUTH_TOKEN` is the SDK's other variable."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token")
    await ask(open_provider("anthropic"), request_for("anthropic"))
    assert server.requests[0].headers["authorization"] == "Bearer token"
    assert "x-api-key" not in server.requests[0].headers


@KEYED
@pytest.mark.parametrize("key", ["", "sk-line\nend", "sk-schlüssel", " sk-blank"])
def test_a_missing_or_broken_key_is_named_but_not_shown(name: str, key: str, monkeypatch: pytest.MonkeyPatch):
    """The variable to mend is in the text; the key is not."""
    variable = VARIABLES[name][0]
    monkeypatch.setenv(variable, key)
    with pytest.raises(SpecError, match=variable) as caught:
        ADAPTERS[name](Timeouts())
    assert not key or key.strip() not in str(caught.value)


@KEYED
@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://there/v1", "http://", "http://u:secret@x:port"])
def test_a_broken_address_is_named_but_not_shown(name: str, url: str, monkeypatch: pytest.MonkeyPatch):
    """People put passwords into addresses."""
    monkeypatch.setenv(VARIABLES[name][0], "sk-x")
    monkeypatch.setenv(VARIABLES[name][1], url)
    with pytest.raises(SpecError, match=VARIABLES[name][1]) as caught:
        ADAPTERS[name](Timeouts())
    assert "secret" not in str(caught.value)


def test_a_broken_ollama_host_is_named(monkeypatch: pytest.MonkeyPatch):
    """The SDK would fail with a bare ValueError, when it is imported already."""
    code = (
        "import sys\nfrom pidgin_cli.core.errors import SpecError\n"
        "try: import pidgin_cli.providers.ollama\n"
        "except SpecError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OLLAMA_HOST": "here:there"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"OLLAMA_HOST is not an address.*\n", done.stderr)
    monkeypatch.setenv("OLLAMA_HOST", "here:there")
    with pytest.raises(SpecError, match="OLLAMA_HOST"):
        ADAPTERS["ollama"](Timeouts())


# Errors


def vendor_error(name: str, text: str, kind: str | None = None, code: Any = None) -> dict[str, Any]:
    """An error body as this vendor writes it."""
    if name == "ollama":
        return {"error": text}
    if name == "google":
        return {"error": {"code": code, "message": text, "status": kind}}
    if name == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_1"}
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


@ALL
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RequestRejected),
        (401, AuthenticationFailed),
        (402, AuthenticationFailed),
        (403, AuthenticationFailed),
        (408, ProviderTimeout),
        (409, Overloaded),
        (413, ContextLengthExceeded),
        (418, RequestRejected),
        (422, RequestRejected),
        (429, RateLimited),
        (500, Overloaded),
        (502, Overloaded),
        (503, Overloaded),
        (504, Overloaded),
        (529, Overloaded),
    ],
)
async def test_status_becomes_a_typed_error(
    name: str, status: int, expected: type[ProviderError], server: LoopbackServer, open_provider: Open
):
    """Each status has one meaning, its text is the provider's own, and the SDK does not try again by itself."""
    server.script(Reply(status=status, body=vendor_error(name, "What the provider says.", "some_error")))
    error = await failure(open_provider(name), request_for(name))
    assert type(error) is expected
    assert (str(error), error.status, error.retry_after_s) == ("What the provider says.", status, None)
    assert len(server.requests) == 1
    assert error.__cause__ is not None


@KEYED
async def test_unknown_model_is_a_rejected_request(name: str, server: LoopbackServer, open_provider: Open):
    """404 is about the request, not about the connection."""
    server.script(Reply(status=404, body=vendor_error(name, "no such model", "not_found_error", "model_not_found")))
    assert type(await failure(open_provider(name), request_for(name))) is RequestRejected


@ALL
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"retry-after": "1.5"}, 1.5, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25, 0.25),
        ({"Retry-After": "in 30 s"}, 25, 30),
        ({"Retry-After": "an hour ago"}, 0, 0),
    ],
)
async def test_retry_after_is_read(
    name: str,
    status: int,
    headers: dict[str, str],
    low: float,
    high: float,
    server: LoopbackServer,
    open_provider: Open,
):
    """Seconds, milliseconds and dates say when to come back."""
    for words, seconds in (("in 30 s", 30), ("an hour ago", -3600)):
        if headers.get("Retry-After") == words:
            headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)}
    server.script(Reply(status=status, headers=headers, body=vendor_error(name, "slow down")))
    error = await failure(open_provider(name), request_for(name))
    assert error.retry_after_s is not None
    assert low <= error.retry_after_s <= high


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "", "Thu, 99 Foo 2026"])
def test_a_retry_after_that_says_nothing_is_none(value: str):
    """A broken header is no reason to fail, nor to wait for ever."""
    assert wire.retry_after_s({"retry-after": value}) is None


@pytest.mark.parametrize(
    ("name", "status", "text", "kind", "code", "expected"),
    [
        ("anthropic", 400, "prompt is too long: 9 > 8", "invalid_request_error", None, ContextLengthExceeded),
        (
            "anthropic",
            400,
            "input length and `max_tokens` exceed context limit: 9 + 1 > 8",
            "invalid_request_error",
            None,
            ContextLengthExceeded,
        ),
        (
            "anthropic",
            400,
            "Output blocked by content filtering policy",
            "invalid_request_error",
            None,
            ContentFiltered,
        ),
        ("openai", 400, "too long", "invalid_request_error", "context_length_exceeded", ContextLengthExceeded),
        ("openai", 400, "This model's maximum context length is 8", "BadRequestError", 400, ContextLengthExceeded),
        ("openai", 400, "context size", "exceed_context_size_error", 400, ContextLengthExceeded),
        ("openai", 400, "filtered", None, "content_filter", ContentFiltered),
        (
            "openai",
            429,
            "You exceeded your current quota",
            "insufficient_quota",
            "insufficient_quota",
            AuthenticationFailed,
        ),
        ("openai", 429, "slow down", "invalid_request_error", "rate_limit_exceeded", RateLimited),
        ("openai", 401, "wrong key", "invalid_request_error", "invalid_api_key", AuthenticationFailed),
        ("responses", 400, "too long", "invalid_request_error", "context_length_exceeded", ContextLengthExceeded),
        ("responses", 400, "against our policy", "invalid_request_error", "invalid_prompt", ContentFiltered),
        ("responses", 429, "no money", "insufficient_quota", "insufficient_quota", AuthenticationFailed),
        (
            "google",
            400,
            "The input token count (2) exceeds the maximum number of tokens allowed (1).",
            "INVALID_ARGUMENT",
            400,
            ContextLengthExceeded,
        ),
        ("ollama", 400, "the input length exceeds the context length", None, None, ContextLengthExceeded),
    ],
)
async def test_codes_say_more_than_the_status(
    name: str,
    status: int,
    text: str,
    kind: str | None,
    code: Any,
    expected: type[ProviderError],
    server: LoopbackServer,
    open_provider: Open,
):
    """A full context, a filter and an empty purse are told from other refusals."""
    server.script(Reply(status=status, body=vendor_error(name, text, kind, code)))
    assert type(await failure(open_provider(name), request_for(name))) is expected


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, "Incorrect API key provided: xa***ng. You can obtain one.", AuthenticationFailed),
        (400, "This model's maximum prompt length is 131072 but the request contains 136973.", ContextLengthExceeded),
        (403, "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO", ContentFiltered),
        (403, "Your team is blocked.", AuthenticationFailed),
        (400, "Argument not supported on this model: stop", RequestRejected),
    ],
)
async def test_xai_tells_by_words_alone(
    status: int, text: str, expected: type[ProviderError], server: LoopbackServer, open_provider: Open
):
    """xAI puts a sentence where others have a code; a half-masked key in it is masked whole."""
    server.script(Reply(status=status, body={"code": "Some sentence", "error": text}))
    error = await failure(open_provider("openai"), request_for("openai"))
    assert (type(error), str(error)) == (expected, text.replace("xa***ng", "[key]"))


async def test_an_error_of_another_ollama_is_its_words(server: LoopbackServer, open_provider: Open):
    """Servers that only speak Ollama's API may put an object where Ollama has a text."""
    server.script(Reply(status=429, body={"error": {"message": "Slow down.", "type": "rate_limit_error"}}))
    error = await failure(open_provider("ollama"), request_for("ollama"))
    assert (type(error), str(error)) == (RateLimited, "Slow down.")


@pytest.mark.parametrize(
    ("name", "event", "expected"),
    [
        ("anthropic", vendor_error("anthropic", "Overloaded", "overloaded_error"), Overloaded),
        ("anthropic", vendor_error("anthropic", "Internal", "api_error"), Overloaded),
        ("anthropic", vendor_error("anthropic", "Slow", "rate_limit_error"), RateLimited),
        ("anthropic", vendor_error("anthropic", "prompt is too long", "invalid_request_error"), ContextLengthExceeded),
        ("anthropic", vendor_error("anthropic", "New", "something_new"), Overloaded),
        ("openai", vendor_error("openai", "Broke", "server_error"), Overloaded),
        ("openai", vendor_error("openai", "Slow", None, "rate_limit_exceeded"), RateLimited),
        ("openai", vendor_error("openai", "Bad gateway", None, 502), Overloaded),
        ("openai", vendor_error("openai", "Bad", "BadRequestError", 400), RequestRejected),
        ("openai", {"error": "something broke"}, Overloaded),
        ("responses", {"type": "error"} | vendor_error("responses", "Broke", "server_error"), Overloaded),
        ("responses", {"type": "error"} | vendor_error("responses", "Slow", None, "rate_limit_exceeded"), RateLimited),
        ("google", vendor_error("google", "Internal", "INTERNAL", 500), Overloaded),
        ("google", vendor_error("google", "Slow", "RESOURCE_EXHAUSTED", 429), RateLimited),
        ("google", vendor_error("google", "Bad", "INVALID_ARGUMENT", 400), RequestRejected),
        ("ollama", {"error": "model runner has unexpectedly stopped"}, Overloaded),
    ],
)
async def test_an_error_within_a_stream_is_typed(
    name: str, event: dict[str, Any], expected: type[ProviderError], server: LoopbackServer, open_provider: Open
):
    """The status was 200 by then; the event's own type counts, and the text so far has been passed on."""
    after_hello = {"anthropic": 4, "openai": 2, "responses": 4, "google": 1, "ollama": 1}[name]
    server.script(Reply(["Hello", "never"], insert=(after_hello, event)))
    seen: list[Delta] = []
    with pytest.raises(ProviderError) as caught:
        seen.extend([delta async for delta in open_provider(name).stream_response(request_for(name))])
    text = event["error"] if isinstance(event["error"], str) else event["error"]["message"]
    assert (type(caught.value), str(caught.value), caught.value.status) == (expected, text, None)


@ALL
@pytest.mark.parametrize("events", range(8))
async def test_a_cut_connection_is_never_a_reply(name: str, events: int, server: LoopbackServer, open_provider: Open):
    """Wherever the connection breaks before the end, the reply is not whole."""
    server.script(Reply(["a", "b", "c", "d", "e", "f", "g", "h"], cut_after=events))
    error = await failure(open_provider(name), request_for(name))
    assert type(error) is ProviderUnavailable
    assert str(error).startswith("the stream ended before the reply was whole")


@ALL
async def test_a_stream_without_its_end_is_not_a_reply(name: str, server: LoopbackServer, open_provider: Open):
    """HTTP may end well while the reply did not."""
    server.script(Reply(finish=""))
    error = await failure(open_provider(name), request_for(name))
    assert type(error) is ProviderUnavailable
    assert str(error) == "the stream ended before the reply was whole"


@ALL
async def test_html_from_a_proxy_is_one_line(name: str, server: LoopbackServer, open_provider: Open):
    """An error page becomes its words, without markup, and cut short."""
    page = f"<html><head><title>502 Bad Gateway</title><style>b {{}}</style></head><h1>502</h1>\n{'x ' * 900}</html>"
    server.script(Reply(status=502, body=page))
    error = await failure(open_provider(name), request_for(name))
    assert type(error) is Overloaded
    assert str(error).startswith("502 Bad Gateway 502 x x")
    assert "<" not in str(error)
    assert len(str(error)) == 500


@ALL
async def test_html_in_place_of_a_stream_is_typed(name: str, server: LoopbackServer, open_provider: Open):
    """A login page with status 200 is not a reply."""
    server.script(Reply(body="<html><body>Please log in.</body></html>"))
    assert type(await failure(open_provider(name), request_for(name))) is ProviderUnavailable


@ALL
@pytest.mark.parametrize(
    "data", ["{not json", "5", '"text"', "[]", "null", "\udcff", '{"type": "message_start", "message": 5, "error": 5}']
)
async def test_what_is_not_the_api_is_typed(name: str, data: str, server: LoopbackServer, open_provider: Open):
    """JSON of another shape, or none, is a ProviderError and never a bug's exception."""
    raw = {"anthropic": f"event: message_start\ndata: {data}\n\n", "ollama": f"{data}\n"}
    # Google's SDK passes over chunks in which it knows nothing, so there the end is missed.
    finish = "" if name == "google" else None
    server.script(Reply(insert=(0, raw.get(name, f"data: {data}\n\n")), finish=finish))
    assert isinstance(await failure(open_provider(name), request_for(name)), ProviderUnavailable | Overloaded)


@KEYED
async def test_a_key_is_in_no_error_text(
    name: str, server: LoopbackServer, open_provider: Open, monkeypatch: pytest.MonkeyPatch
):
    """Vendors quote keys back, whole or half masked."""
    monkeypatch.setenv(VARIABLES[name][0], "my-own-secret")
    text = "Incorrect API key provided: my-own-secret, sk-proj-****abcd. See there."
    server.script(Reply(status=401, body=vendor_error(name, text, "authentication_error")))
    error = await failure(open_provider(name), request_for(name))
    assert str(error) == "Incorrect API key provided: [key], [key] See there."


@ALL
async def test_no_server_is_unavailable(name: str, server: LoopbackServer, open_provider: Open):
    """A refused connection names the host, or for Ollama says how to start it."""
    provider = open_provider(name)
    await server.__aexit__()
    error = await failure(provider, request_for(name))
    assert type(error) is ProviderUnavailable
    assert "127.0.0.1" in str(error)
    assert ("start it with: ollama serve" in str(error)) == (name == "ollama")
    await server.__aenter__()


@pytest.mark.parametrize("name", ["anthropic", "openai", "responses", "ollama"])
async def test_only_connecting_has_a_time_out(name: str, open_provider: Open, server: LoopbackServer):
    """A reply may stream for as long as it likes: reading has no limit in the SDK."""
    client: Any = open_provider(name, Timeouts(connect_s=3.5))._client
    http = client._client
    limits = http.timeout if name == "ollama" else client.timeout
    assert (limits.connect, limits.read, limits.write, limits.pool) == (3.5, None, None, None)


def test_sdk_time_outs_are_time_outs():
    """What the SDKs or their HTTP libraries call a time-out is one."""
    request = httpx2.Request("POST", "http://127.0.0.1/")
    assert type(anthropic.translate(anthropic_sdk.APITimeoutError(request))) is ProviderTimeout
    assert type(anthropic.translate(httpx2.ReadTimeout("slow"))) is ProviderTimeout
    assert type(openai.translate(openai_sdk.APITimeoutError(request))) is ProviderTimeout
    assert type(ollama.translate(ollama.httpx.ReadTimeout("slow"), netloc="127.0.0.1:1")) is ProviderTimeout


@ALL
async def test_text_that_cannot_be_encoded_is_a_rejected_request(
    name: str, server: LoopbackServer, open_provider: Open
):
    """A lone surrogate never reaches a server; asking again would not help."""
    error = await failure(open_provider(name), request_for(name, Message(Role.USER, "\ud800")))
    assert type(error) is RequestRejected
    assert server.requests == []


@pytest.mark.parametrize(
    ("sdk", "base", "adapter"),
    [
        (anthropic_sdk, anthropic_sdk.AnthropicError, anthropic),
        (openai_sdk, openai_sdk.OpenAIError, openai),
        (ollama_sdk, Exception, ollama),
    ],
    ids=["anthropic", "openai", "ollama"],
)
def test_every_exception_of_the_sdk_is_mapped(sdk: Any, base: type[Exception], adapter: Any):
    """An SDK that gains an exception class fails here until someone decides what it means."""
    exported = {
        value
        for name, value in list(vars(sdk).items())  # looking at them loads more
        if not name.startswith("_") and isinstance(value, type) and issubclass(value, base)
    }
    assert len(exported) >= 2
    assert exported <= set(adapter.ERRORS)


# Stopping


@ALL
@pytest.mark.parametrize(
    ("hang", "limits", "what"),
    [
        ("request", Timeouts(first_token_s=0.1), "the first token"),
        (0, Timeouts(first_token_s=0.1), "the first token"),
        (5, Timeouts(gap_s=0.1), "the next piece"),
        (5, Timeouts(total_s=0.1), "the whole reply"),
    ],
)
async def test_a_server_that_hangs_is_a_time_out(
    name: str, hang: Any, limits: Timeouts, what: str, server: LoopbackServer, open_provider: Open
):
    """Before the first byte or in the middle: the request ends in time and says which part of it took so long."""
    server.script(Reply(["a", "b", "c", "d", "e", "f"], hang=hang))
    async with asyncio.timeout(30):
        error = await failure(Timed(open_provider(name, limits), limits, name), request_for(name))
    assert type(error) is ProviderTimeout
    assert str(error).startswith(f"{name}: {what} took longer than")


@ALL
@pytest.mark.parametrize("hang", ["request", 0, 5])
async def test_a_cancelled_request_hangs_up(name: str, hang: Any, server: LoopbackServer, open_provider: Open):
    """Cancelling closes the connection, whether before the first byte or in the middle."""
    server.script(Reply(["a", "b", "c", "d", "e", "f"], hang=hang))
    arrived = asyncio.Event()
    provider = open_provider(name)

    async def listen() -> None:
        async for _ in provider.stream_response(request_for(name)):
            arrived.set()

    async with asyncio.timeout(30):
        task = asyncio.create_task(listen())
        await (arrived.wait() if hang == 5 else server.received.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.hung_up.wait()


@ALL
async def test_closing_the_stream_hangs_up(name: str, server: LoopbackServer, open_provider: Open):
    """A reader who has enough stops the model, and the adapter goes on to serve others."""
    server.script(Reply(["a", "b", "c", "d", "e", "f"], hang=5))
    provider = open_provider(name)
    async with asyncio.timeout(30):
        async with aclosing(provider.stream_response(request_for(name))) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break
        await server.hung_up.wait()
        assert (await ask(provider, request_for(name))).message.content == "Hello from the loopback."


@ALL
async def test_many_requests_at_once_do_not_mix(name: str, server: LoopbackServer, open_provider: Open):
    """One adapter serves many conversations; each gets its own reply."""
    server.reply = lambda request: Reply(["echo: ", request.messages[-1][1]])
    provider = open_provider(name)
    asked = [request_for(name, Message(Role.USER, f"n{number}")) for number in range(40)]
    replies = await asyncio.gather(*(ask(provider, request) for request in asked))
    assert [reply.message.content for reply in replies] == [f"echo: n{number}" for number in range(40)]


# Ollama's own


async def test_ollama_is_up_or_not(server: LoopbackServer, open_provider: Open):
    """An answer is up, a refused connection is down."""
    provider = open_provider("ollama")
    assert await provider.is_up()
    await server.__aexit__()
    assert not await provider.is_up()
    await server.__aenter__()


async def test_ollama_that_does_not_answer_is_not_up(open_provider: Open, monkeypatch: pytest.MonkeyPatch):
    """A port that accepts and stays silent does not hold anyone up."""
    silent = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    writers: list[asyncio.StreamWriter] = []
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}")
    assert not await open_provider("ollama", Timeouts(connect_s=0.2)).is_up()
    for writer in writers:
        writer.close()
    silent.close()
    await silent.wait_closed()


async def test_ollama_missing_model_says_how_to_get_it(server: LoopbackServer, open_provider: Open):
    """The text holds the command to type, and nothing is pulled meanwhile."""
    error = await failure(open_provider("ollama"), request_for("ollama", model="gemma3:1b"))
    assert type(error) is RequestRejected
    assert str(error) == "model 'gemma3:1b' not found; get the model with: ollama pull gemma3:1b"
    assert [request.path for request in server.requests] == ["/api/chat"]


async def test_ollama_pull_tells_how_far_it_is(server: LoopbackServer, open_provider: Open):
    """Progress in bytes, and afterwards the model is there."""
    provider = open_provider("ollama")
    assert await provider.installed_models() == ["llama3.2:latest"]
    steps = [step async for step in provider.pull("gemma3:1b")]
    assert steps[0] == ollama.PullProgress("pulling manifest")
    assert [(step.completed, step.total) for step in steps[1:-1]] == [(None, 1000), (400, 1000), (1000, 1000)]
    assert steps[-1].status == "success"
    assert await provider.installed_models() == ["llama3.2:latest", "gemma3:1b"]


async def test_ollama_pull_of_nothing_is_an_error(server: LoopbackServer, open_provider: Open):
    """A name that no registry has fails with Ollama's words, and is named."""
    with pytest.raises(ProviderError, match=r"^Ollama could not get no-such-model: .*file does not exist"):
        [step async for step in open_provider("ollama").pull("no-such-model")]


# The loopback server itself


def test_loopback_runs_in_a_thread():
    """Tests that are not asynchronous, and other processes, can use it."""
    seen: list[Request] = []
    with loopback_in_thread(lambda request: seen.append(request) or Reply("hi")) as server:
        body = b'{"model":"llama3.2","messages":[{"role":"user","content":"Hello"}]}'
        with urllib.request.urlopen(f"{server.url}/api/chat", body, timeout=10) as answer:
            lines = answer.read().splitlines()
    assert len(lines) == 2
    assert seen == server.chats
    assert seen[0].messages == [("user", "Hello")]
