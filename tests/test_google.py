"""What only Google has, with the real SDK over real HTTP; what all adapters promise is in `test_adapters`."""

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from google.genai import errors
from loopback import LoopbackServer, Reply, Tokens
from test_adapters import ask, failure, request_for, with_settings

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
)
from pidgin_cli.core.types import (
    FinishReason,
    Message,
    Role,
    ThinkingBlock,
    Timeouts,
    ToolCall,
    ToolResult,
    Usage,
    UsageDelta,
)
from pidgin_cli.providers import google
from pidgin_cli.providers.google import GoogleProvider

REQUEST = request_for("google")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_API_VERSION"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


@pytest.fixture
async def provider(server: LoopbackServer) -> AsyncIterator[GoogleProvider]:
    provider = GoogleProvider(Timeouts(connect_s=3.5))
    yield provider
    await provider.aclose()


def google_error(text: str, status: str, *details: dict[str, Any], code: int = 400) -> dict[str, Any]:
    return {"error": {"code": code, "message": text, "status": status, "details": list(details)}}


# What is sent


async def test_the_request_goes_to_the_path_and_with_the_key_of_the_api(
    server: LoopbackServer, provider: GoogleProvider
):
    """The version that has thinking is asked, not the SDK's default, and the key stands in a header."""
    await ask(provider, REQUEST)
    [sent] = server.requests
    assert sent.path == "/v1beta/models/gemini-3-pro:streamGenerateContent"
    assert sent.headers["x-goog-api-key"] == "AIza-loopback"


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({"GEMINI_API_KEY": "one", "GOOGLE_API_KEY": "two"}, "one"),
        ({"GEMINI_API_KEY": "", "GOOGLE_API_KEY": "two"}, "two"),
        ({"GEMINI_API_KEY": "", "GOOGLE_API_KEY": ""}, "none-needed"),
    ],
)
async def test_either_variable_holds_the_key(
    keys: dict[str, str], sent: str, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
):
    """The recommended variable comes first, whatever the SDK would take, and elsewhere none is needed."""
    for variable, value in keys.items():
        monkeypatch.setenv(variable, value)
    provider = GoogleProvider(Timeouts())
    await ask(provider, REQUEST)
    await provider.aclose()
    assert server.requests[0].headers["x-goog-api-key"] == sent


async def test_the_environment_does_not_lead_to_another_service(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
):
    """Variables of the SDK that mean Google Cloud change nothing."""
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    provider = GoogleProvider(Timeouts())
    assert (await ask(provider, REQUEST)).message.content == "Hello from the loopback."
    await provider.aclose()


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"think": True}, {"includeThoughts": True}),
        ({"think_budget": 512}, {"includeThoughts": True, "thinkingBudget": 512}),
        ({"think_budget": 0}, {"thinkingBudget": 0}),
        ({"think": False, "effort": "low"}, {"thinkingBudget": 0}),
        ({"effort": "high"}, {"thinkingLevel": "HIGH"}),
        ({"effort": "of a new kind", "think": True}, {"includeThoughts": True, "thinkingLevel": "OF A NEW KIND"}),
    ],
)
async def test_thinking_is_asked_for_in_the_words_of_the_api(
    settings: dict[str, Any], sent: dict[str, Any], server: LoopbackServer, provider: GoogleProvider
):
    """Budget and level go as they were asked for; a model that takes none says so."""
    await ask(provider, with_settings("google", **settings))
    assert server.requests[0].body["generationConfig"] == {"thinkingConfig": sent}


async def test_words_after_a_result_join_it(server: LoopbackServer, provider: GoogleProvider):
    """Roles take turns: what others said after a tool's result stands in one content with it."""
    await ask(
        provider,
        request_for(
            "google",
            Message(Role.USER, "Look."),
            Message(Role.ASSISTANT, "I look.", tool_calls=(ToolCall("c1", "look", "not JSON"),)),
            Message(Role.TOOL, "", tool_result=ToolResult("c1", "nothing")),
            Message(Role.USER, "Well?"),
        ),
    )
    assert server.requests[0].body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "I look."},
                {"functionCall": {"id": "c1", "name": "look", "args": {"text": "not JSON"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "look", "response": {"output": "nothing"}}},
                {"text": "Well?"},
            ],
        },
    ]


async def test_only_connecting_has_a_time_out(provider: GoogleProvider):
    """The SDK would set none at all; a reply may stream for as long as it likes."""
    seen: list[Any] = []

    async def look(request: httpx2.Request) -> None:
        seen.append(request.extensions["timeout"])

    provider._http.event_hooks["request"].append(look)
    await ask(provider, REQUEST)
    assert seen == [{"connect": 3.5, "read": None, "write": None, "pool": None}]


@pytest.mark.parametrize(("model", "text"), [("a?b", "invalid model parameter"), ("", "model is required")])
async def test_what_the_sdk_refuses_is_a_rejected_request(
    model: str, text: str, server: LoopbackServer, provider: GoogleProvider
):
    """An error of the SDK before anything was sent is about the request, and is not tried again."""
    error = await failure(provider, request_for("google", model=model))
    assert type(error) is RequestRejected
    assert text in str(error)
    assert server.requests == []


# What comes back


async def test_a_signature_comes_with_a_call_and_goes_back_with_it(server: LoopbackServer, provider: GoogleProvider):
    """Without it the API refuses the next request; it is kept even where no thought was shown."""
    server.script(Reply("", tool_calls=[("c1", "look", "{}"), ("c2", "look", "{}")], signature="c2lnbmVk"))
    response = await ask(provider, REQUEST)
    assert response.message.thinking == (ThinkingBlock("", "c2lnbmVk"),)
    result = Message(Role.TOOL, "", tool_result=ToolResult("c1", "sun"))
    await ask(provider, request_for("google", Message(Role.USER, "Hi."), response.message, result))
    parts = server.requests[1].body["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == ["c2lnbmVk", None]


async def test_calls_without_an_id_get_one(server: LoopbackServer, provider: GoogleProvider):
    """Older models give none; results still find their calls."""
    server.script(Reply("", tool_calls=[("", "look", "{}"), ("", "now", "{}")]))
    calls = (await ask(provider, REQUEST)).message.tool_calls
    assert [(call.id, call.name) for call in calls] == [("call_0", "look"), ("call_1", "now")]


async def test_a_blocked_prompt_is_an_error(server: LoopbackServer, provider: GoogleProvider):
    """The filter refused the request; nobody said anything."""
    server.script(Reply(block_reason="PROHIBITED_CONTENT"))
    error = await failure(provider, REQUEST)
    assert type(error) is ContentFiltered
    assert str(error) == "the prompt was blocked: PROHIBITED_CONTENT"


async def test_a_blocked_reply_is_a_reply(server: LoopbackServer, provider: GoogleProvider):
    """What came before the filter struck is what the model said, and the reason is kept."""
    server.script(Reply(["Once upon "], finish="SAFETY"))
    response = await ask(provider, REQUEST)
    assert response.message.content == "Once upon "
    assert response.finish.reason is FinishReason.CONTENT_FILTER


async def test_usage_is_reported_when_it_changes(server: LoopbackServer, provider: GoogleProvider):
    """Every chunk repeats the count; thoughts alone are output too."""
    server.script(Reply(["a", "b"], usage=Tokens(prompt=9, completion=4, thinking=4)))
    deltas = [delta async for delta in provider.stream_response(REQUEST)]
    usage = Usage(prompt_tokens=9, completion_tokens=4, thinking_tokens=4)
    assert [delta for delta in deltas if isinstance(delta, UsageDelta)] == [UsageDelta(usage)]


def test_a_word_newer_than_the_sdk_warns_nobody():
    """The SDK's advice would land in the middle of a conversation on the screen."""
    code = "import pidgin_cli.providers.google, google.genai as g; print(g.types.FinishReason('BRAND_NEW').value)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("BRAND_NEW\n", "")


# Errors

INVALID_KEY = google_error(
    "API key not valid. Please pass a valid API key.",
    "INVALID_ARGUMENT",
    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"},
    {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": "API key not valid."},
)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, INVALID_KEY, AuthenticationFailed),
        (400, google_error("Thinking level is not supported for this model.", "INVALID_ARGUMENT"), RequestRejected),
        (403, google_error("Method doesn't allow unregistered callers.", "PERMISSION_DENIED"), AuthenticationFailed),
        (404, google_error("models/x is not found for API version v1beta.", "NOT_FOUND"), RequestRejected),
        (503, google_error("The model is overloaded. Please try again later.", "UNAVAILABLE"), Overloaded),
        (400, [google_error("In a list of one.", "INVALID_ARGUMENT")], RequestRejected),
    ],
)
async def test_the_vendors_words_and_their_meaning(
    status: int, body: Any, expected: type[ProviderError], server: LoopbackServer, provider: GoogleProvider
):
    """A wrong key is told from a bad request, though the status is the same, and the text is Google's own."""
    server.script(Reply(status=status, body=body))
    error = await failure(provider, REQUEST)
    first = body[0] if isinstance(body, list) else body
    assert (type(error), str(error), error.status) == (expected, first["error"]["message"], status)


@pytest.mark.parametrize(
    "details", [5, "text", [5, None, ["x"]], {"reason": 5}, [{"retryDelay": None}, {"reason": []}]]
)
@pytest.mark.parametrize("status", [400, 429])
async def test_details_of_another_shape_do_no_harm(
    details: Any, status: int, server: LoopbackServer, provider: GoogleProvider
):
    """What a server attaches to an error is not to be trusted."""
    server.script(Reply(status=status, body={"error": {"message": "No.", "details": details}}))
    error = await failure(provider, REQUEST)
    assert (type(error), str(error)) == (RateLimited if status == 429 else RequestRejected, "No.")


@pytest.mark.parametrize("body", ['"text"', "5", "null", "[]", '{"error": "text"}', "{}", "", "{not json"])
async def test_an_error_without_a_message_has_its_status(body: str, server: LoopbackServer, provider: GoogleProvider):
    """Whatever the body, the error is typed by its status and says something."""
    server.script(Reply(status=503, body=body.encode()))
    error = await failure(provider, REQUEST)
    assert (type(error), error.status) == (Overloaded, 503)


@pytest.mark.parametrize(
    ("delay", "headers", "expected"),
    [
        ("34.07s", {}, 34.07),
        ("34.07s", {"Retry-After": "7"}, 7),
        ("soon", {}, None),
        ("", {}, None),
    ],
)
async def test_google_says_in_the_body_when_to_come_back(
    delay: str, headers: dict[str, str], expected: float | None, server: LoopbackServer, provider: GoogleProvider
):
    """There is no Retry-After; a proxy's, if there is one, counts before the body."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    body = google_error("You exceeded your current quota.", "RESOURCE_EXHAUSTED", info, code=429)
    server.script(Reply(status=429, headers=headers, body=body), Reply(insert=(1, body)))
    error = await failure(provider, REQUEST)
    assert (type(error), error.retry_after_s) == (RateLimited, expected)
    if not headers:
        error = await failure(provider, REQUEST)
        assert (type(error), error.retry_after_s, error.status) == (RateLimited, expected, None)


@pytest.mark.parametrize("code", [None, "text", 0, 200, []])
async def test_an_error_event_with_a_strange_code_is_typed(code: Any, server: LoopbackServer, provider: GoogleProvider):
    """The SDK compares the code with numbers, whatever it is."""
    server.script(Reply(insert=(1, {"error": {"code": code, "message": "Broke."}})))
    assert type(await failure(provider, REQUEST)) in (ProviderUnavailable, RequestRejected)


def test_time_outs_are_time_outs():
    """What the HTTP library calls a time-out is one."""
    assert type(google.translate(httpx2.ReadTimeout("slow"))) is ProviderTimeout


def test_every_exception_of_the_sdk_is_mapped():
    """An SDK that gains an exception class fails here until someone decides what it means."""
    exported = {
        value
        for name, value in vars(errors).items()
        if not name.startswith("_")
        and isinstance(value, type)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
    }
    assert len(exported) >= 8
    assert exported <= set(google.ERRORS)
