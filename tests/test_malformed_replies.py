"""Servers that send JSON of another type than their API has: never a bug's exception, never an unreadable record."""

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply
from support import Run, check_record, converse, experiment, messages, of_type, texts

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    Overloaded,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
)
from pidgin_cli.core.events import APIErrorEvent, ConversationEndEvent, MessageAbandonedEvent, ThinkingCompleteEvent
from pidgin_cli.core.types import (
    AgentSettings,
    Finish,
    Message,
    ModelRequest,
    ModelResponse,
    Role,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Timeouts,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageDelta,
    fold,
)
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.providers.validation import checked
from pidgin_cli.providers.wrappers import Timed

MODELS = {
    "anthropic": "anthropic:claude-opus-5",
    "openai": "openai:gpt-5.1",
    "responses": "openai:gpt-5-pro",
    "google": "google:gemini-3-pro",
    "ollama": "ollama:llama3.2",
    "mistral": "mistral:magistral-medium-latest",
}
ALL = pytest.mark.parametrize("name", [name for name in MODELS if name != "mistral"])


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        for provider in ("MISTRAL", "XAI", "DEEPSEEK"):
            monkeypatch.setenv(f"{provider}_BASE_URL", f"{server.url}/v1")
            monkeypatch.setenv(f"{provider}_API_KEY", "loopback")
        monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
        yield server


@asynccontextmanager
async def asked(
    name: str, timeouts: Timeouts | None = None, **settings: Any
) -> AsyncIterator[Callable[[], Awaitable[ModelResponse]]]:
    """What gives the reply of one request, as it leaves what all adapters are asked through."""
    from pidgin_cli.providers.responses import ResponsesProvider

    provider, _, model = MODELS[name].partition(":")
    timeouts = timeouts or Timeouts()
    pool = ProviderPool()
    request = ModelRequest(model=model, messages=(Message(Role.USER, "Hi."),), settings=AgentSettings(**settings))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.aclose)
        adapter = pool.adapter(MODELS[name], timeouts)
        if name == "responses":
            adapter = ResponsesProvider(timeouts)
            stack.push_async_callback(adapter.aclose)
        timed = Timed(adapter, timeouts, provider)

        async def reply() -> ModelResponse:
            return fold([delta async for delta in timed.stream_response(request)])

        yield reply


async def ask(name: str, **settings: Any) -> ModelResponse:
    """The reply of one request."""
    async with asked(name, **settings) as reply:
        return await reply()


def sse(*events: Any, escaped: bool = True) -> Reply:
    """A stream of these events: JSON, or text that goes out as it is."""
    parts = []
    for event in events:
        named = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
        parts.append(event if isinstance(event, str) else f"{named}data: {json.dumps(event, ensure_ascii=escaped)}\n\n")
    return Reply(body="".join(parts).encode(), headers={"Content-Type": "text/event-stream"})


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of chat completions."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    start = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m1", "choices": choices}
    return start | more


HELLO, STOP, DONE = chunk({"role": "assistant", "content": "Hello"}), chunk({}, "stop"), "data: [DONE]\n\n"


def openai(**more: Any) -> Reply:
    """A whole reply, each chunk of which has these fields."""
    return sse(HELLO | more, STOP | more, DONE)


def counted(**usage: Any) -> Reply:
    count = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25} | usage
    return sse(HELLO, STOP, chunk(usage=count), DONE)


def anthropic(
    *blocks: dict[str, Any], read: Any = 20, written: Any = 5, model: Any = "m1", message_id: Any = "msg_1", **more: Any
) -> Reply:
    """A whole reply of these pieces; `more` is the rest of what was counted at its beginning."""
    usage = {"input_tokens": read, "output_tokens": 1} | more
    message = {"id": message_id, "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage}
    pieces = blocks or ({"type": "text_delta", "text": "Hello"},)
    return sse(
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": piece} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": written}},
        {"type": "message_stop"},
    )


def responded(delta: Any = "Hello", **more: Any) -> Reply:
    """A whole reply of the Responses API; `more` is what its response says of itself."""
    response = {"id": "r1", "object": "response", "status": "completed", "model": "m1", "output": []} | more
    return sse(
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "i", "delta": delta},
        {"type": "response.completed", "response": response},
    )


DEEP = "[" * 200_000
WRONG: dict[str, tuple[str, Reply]] = {
    "id is a fraction": ("openai", openai(id=1.5)),
    "model is a number": ("openai", openai(model=4)),
    "fingerprint is a list": ("openai", openai(system_fingerprint=["fp"])),
    "model is half a surrogate pair": ("openai", openai(model="m\ud83d")),
    "count is a fraction": ("openai", counted(completion_tokens=5.5)),
    # Without a total the SDK no longer makes numbers of these.
    "count is a truth": ("openai", sse(HELLO, STOP, chunk(usage={"completion_tokens": True}), DONE)),
    "count is a text": ("openai", sse(HELLO, STOP, chunk(usage={"completion_tokens": "20"}), DONE)),
    "count is too large": ("openai", counted(prompt_tokens=2**70)),
    "count is infinite": ("openai", counted(prompt_tokens=float("inf"))),
    "count is negative": ("openai", counted(completion_tokens=-1)),
    "count in a detail": ("openai", counted(completion_tokens_details={"reasoning_tokens": [1]})),
    "counts are a list": ("openai", sse(HELLO, STOP, chunk(usage=[1]), DONE)),
    "text is a number": ("openai", sse(chunk({"content": 5}), STOP, DONE)),
    "text is an object": ("openai", sse(chunk({"content": {"text": "Hi"}}), STOP, DONE)),
    "parts are numbers": ("openai", sse(chunk({"content": [5]}), STOP, DONE)),
    "part of a number": ("openai", sse(chunk({"content": [{"type": "text", "text": 5}]}), STOP, DONE)),
    "thinking is a number": ("openai", sse(chunk({"reasoning_content": 5}), HELLO, STOP, DONE)),
    "thinking is an object": ("openai", sse(chunk({"reasoning": {"a": 1}}), HELLO, STOP, DONE)),
    "refusal is a number": ("openai", sse(chunk({"refusal": 5}), STOP, DONE)),
    "call has a number for a name": (
        "openai",
        sse(chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": 5}}]}), STOP, DONE),
    ),
    "choice is a number": ("openai", sse(HELLO | {"choices": [5]}, DONE)),
    "finish is a list": ("openai", sse(HELLO, chunk({}, finish=["stop"]), DONE)),  # type: ignore[arg-type]
    "anthropic: count is a fraction": ("anthropic", anthropic(written=5.5)),
    "anthropic: count is a list": ("anthropic", anthropic(written=[1])),
    "anthropic: parts that add up to a whole": ("anthropic", anthropic(read=2.5, cache_read_input_tokens=2.5)),
    "anthropic: model is a number": ("anthropic", anthropic(model=4)),
    "anthropic: text is a number": ("anthropic", anthropic({"type": "text_delta", "text": 5})),
    "anthropic: thinking is an object": ("anthropic", anthropic({"type": "thinking_delta", "thinking": {"a": 1}})),
    "anthropic: signature is a number": ("anthropic", anthropic({"type": "signature_delta", "signature": 7})),
    "responses: text is a number": ("responses", responded(5)),
    "responses: model is a number": ("responses", responded(model=5)),
    "responses: count is a fraction": (
        "responses",
        responded(usage={"input_tokens": 1.5, "output_tokens": 2, "total_tokens": 3}),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_json_of_another_type_is_a_typed_error(wrong: str, server: LoopbackServer) -> None:
    """What the API has no such type for is an error that may pass, in plain words, and never part of a reply."""
    name, reply = WRONG[wrong]
    server.script(reply)
    with pytest.raises(ProviderUnavailable, match=r"^the server sent ") as caught:
        await ask(name)
    assert caught.value.provider == MODELS[name].partition(":")[0]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@ALL
async def test_json_too_deep_to_read_is_a_typed_error(name: str, server: LoopbackServer) -> None:
    """Brackets without end are no reply and no bug of ours."""
    line = {"ollama": f"{DEEP}\n", "anthropic": f"event: message_start\ndata: {DEEP}\n\n"}
    server.script(Reply(insert=(1, line.get(name, f"data: {DEEP}\n\n"))))
    with pytest.raises(ProviderUnavailable, match=r"^the server sent what the .* API does not: ") as caught:
        await ask(name)
    assert len(str(caught.value)) < 200


async def test_whole_counts_may_be_written_with_a_point(server: LoopbackServer) -> None:
    """JSON has one kind of number; 5.0 tokens are 5."""
    server.script(counted(prompt_tokens=20.0, completion_tokens=5.0), anthropic(read=20.0, written=5.0))
    for name in ("openai", "anthropic"):
        usage = (await ask(name)).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (20, 5)
        assert (type(usage.prompt_tokens), type(usage.completion_tokens)) == (int, int)


async def test_a_reply_may_be_numbered(server: LoopbackServer) -> None:
    """An id that is a whole number is kept as its digits: the reply is as good as any."""
    server.script(openai(id=123))
    assert (await ask("openai")).finish.request_id == "123"


async def test_fields_that_are_null_or_missing_are_none(server: LoopbackServer) -> None:
    """A server may say nothing of itself; that is no error."""
    chunks = (HELLO, STOP, chunk(usage={"prompt_tokens": 3}))
    quiet = [{key: value for key, value in each.items() if key not in ("id", "model")} for each in chunks]
    server.script(sse(*quiet, DONE), openai(id=None, model=None))
    first, second = await ask("openai"), await ask("openai")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (3, None)
    assert (first.finish.model, second.finish.model, second.finish.request_id) == (None, None, None)
    assert (first.message.content, second.message.content) == ("Hello", "Hello")


async def test_an_only_call_needs_no_index(server: LoopbackServer) -> None:
    """Some servers leave it out."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    server.script(sse(chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), DONE))
    assert (await ask("openai")).message.tool_calls == (ToolCall("c", "look", "{}"),)


@pytest.mark.parametrize(
    "delta",
    [
        TextDelta("Hello"),
        ThinkingDelta("Hm", signature="s"),
        ToolCallDelta(0, id="c", name="n", arguments="{}"),
        UsageDelta(Usage(prompt_tokens=0, completion_tokens=2**63 - 1)),
        Finish(model="m", request_id="r", fingerprint="f"),
    ],
)
def test_what_is_right_is_not_copied(delta: Any) -> None:
    """A check that finds nothing hands out the very piece it was given."""
    assert checked(delta, "openai") is delta


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        (TextDelta(5), "a number as the text"),  # type: ignore[arg-type]
        (ThinkingDelta(None), "nothing as the thinking"),  # type: ignore[arg-type]
        (ThinkingDelta("", signature="\ud83d"), "half a surrogate pair as the signature"),
        (ToolCallDelta(None), "nothing as the number of a tool call"),  # type: ignore[arg-type]
        (ToolCallDelta(0, id=7), "a number as the id of a tool call"),  # type: ignore[arg-type]
        (ToolCallDelta(0, arguments={}), "an object as the arguments of a tool call"),  # type: ignore[arg-type]
        (UsageDelta(Usage(cached_tokens=True)), "true as the count of cached tokens"),
        (UsageDelta(Usage(thinking_tokens=0.5)), "0.5 as the count of thinking tokens"),  # type: ignore[arg-type]
        (UsageDelta(Usage(cache_write_tokens=-3)), "-3 as the count of tokens written to the cache"),
        (UsageDelta(Usage(prompt_tokens=2**63)), "9223372036854775808 as the count of prompt tokens"),
        (UsageDelta(Usage(prompt_tokens=10**30)), "a very large number as the count of prompt tokens"),
        (Finish(model=["m"]), "a list as the name of the model"),  # type: ignore[arg-type]
        (Finish(fingerprint=1.5), "a number as the fingerprint"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_named(delta: Any, text: str) -> None:
    """The error says which field it is and what stood there, in JSON's words."""
    with pytest.raises(ProviderUnavailable) as caught:
        checked(delta, "openai")
    assert (str(caught.value), caught.value.provider) == (f"the server sent {text}", "openai")


# The same within a conversation


async def run_of(where: Path, server: LoopbackServer, model: str, bad: Reply, *, once: bool) -> Run:
    """Three turns with `local:test`; the second reply of `model` is bad, once or always."""

    def answer(_: object) -> Reply:
        number = len(server.chats)
        return bad if number == 2 or (number > 2 and not once) else Reply("Fine.")

    server.reply = answer
    run = await converse(where, experiment(model, "local:test?words=3", max_turns=3))
    check_record(run.events)
    return run


@pytest.mark.parametrize(
    ("wrong", "partial"),
    [
        ("id is a fraction", "Hello"),
        ("count is a fraction", "Hello"),
        ("count is too large", "Hello"),
        ("anthropic: count is a list", "Hello"),
        ("anthropic: signature is a number", ""),
        ("thinking is an object", None),
    ],
)
async def test_the_attempt_is_abandoned_and_made_again(
    wrong: str, partial: str | None, server: LoopbackServer, tmp_path: Path
) -> None:
    """What had come is recorded as abandoned, every line of the record can be read, and the next attempt counts."""
    name, reply = WRONG[wrong]
    run = await run_of(tmp_path, server, MODELS[name], reply, once=True)
    assert [event.partial for event in of_type(run.events, MessageAbandonedEvent)] == (
        [] if partial is None else [partial]
    )
    (error,) = of_type(run.events, APIErrorEvent)
    assert (error.error, error.retryable) == ("ProviderUnavailable", True)
    assert of_type(run.events, ConversationEndEvent)[-1].status.value == "completed"
    assert texts(run.events)[::2] == ["Fine."] * 3
    assert messages(run.events)[2].attempt == 2


async def test_a_server_that_is_always_wrong_fails_the_conversation(server: LoopbackServer, tmp_path: Path) -> None:
    """It ends as the provider's fault and not as ours, with what was said before kept."""
    run = await run_of(tmp_path, server, MODELS["openai"], WRONG["model is a number"][1], once=False)
    end = of_type(run.events, ConversationEndEvent)[-1]
    assert (end.status.value, end.end_reason.value) == ("failed", "provider_error")
    assert len(messages(run.events)) == 2


# Several replies in one


async def test_of_several_choices_one_is_the_reply(server: LoopbackServer) -> None:
    """Alternatives to a reply are no part of it, whichever comes first."""
    other = {"index": 1, "delta": {"content": "SECOND"}, "finish_reason": None}
    last = {"index": 1, "delta": {}, "finish_reason": "length"}
    server.script(
        sse(HELLO | {"choices": [other]}, HELLO, HELLO | {"choices": [other]}, STOP, STOP | {"choices": [last]}, DONE)
    )
    response = await ask("openai")
    assert (response.message.content, response.finish.reason.value) == ("Hello", "stop")


async def test_of_several_candidates_one_is_the_reply(server: LoopbackServer) -> None:
    """The same of Gemini; a candidate without an index is the only one."""

    def candidate(text: str, finish: str, **index: int) -> dict[str, Any]:
        return {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": finish} | index

    server.script(
        sse({"candidates": [candidate("SECOND", "MAX_TOKENS", index=1), candidate("Hello", "STOP", index=0)]}),
        sse({"candidates": [candidate("Alone", "STOP")]}),
    )
    both, alone = await ask("google"), await ask("google")
    assert (both.message.content, both.finish.reason.value) == ("Hello", "stop")
    assert alone.message.content == "Alone"


# Mistral


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return chunk({"content": list(content)})


def thought(*texts: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text} for text in texts]}


async def test_mistral_thinks_in_parts_of_the_content(server: LoopbackServer, tmp_path: Path) -> None:
    """Its thinking and its text are told apart, whatever parts they come in; parts without text are passed over."""
    reply = sse(
        parts(thought("The user ", "greets")),
        parts(thought(" me.")),
        parts({"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "<think>Hel"}),
        chunk({"content": "lo"}),
        parts({"type": "something_new", "text": "!"}, {"type": "image_url", "image_url": "x"}),
        parts({"type": "thinking", "thinking": "Said."}),
        STOP | {"usage": {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60}},
        DONE,
    )
    server.script(reply, reply)
    response = await ask("mistral")
    assert response.message.content == "<think>Hello!"
    assert response.message.thinking == (ThinkingBlock("The user greets me.Said."),)
    run = await converse(tmp_path, experiment(MODELS["mistral"], "local:test", max_turns=1))
    check_record(run.events)
    assert texts(run.events)[0] == "<think>Hello!"
    assert [event.content for event in of_type(run.events, ThinkingCompleteEvent)] == ["The user greets me.Said."]


async def test_mistral_is_asked_in_its_own_words(server: LoopbackServer) -> None:
    """It refuses a name that it does not know: its seed has another, and it counts tokens without being asked to."""
    await ask("mistral", seed=3, extra={"safe_prompt": True})
    await ask("openai", seed=3)
    mistral, openai = (request.body for request in server.chats)
    assert (mistral["random_seed"], mistral["safe_prompt"]) == (3, True)
    assert "seed" not in mistral
    assert "stream_options" not in mistral
    assert (openai["seed"], openai["stream_options"]) == (3, {"include_usage": True})
    pool = ProviderPool()
    request = ModelRequest(model="m", messages=(), settings=AgentSettings(seed=3))
    adapter: Any = pool.adapter(MODELS["mistral"], Timeouts())
    assert adapter.effective_parameters(request) == {"random_seed": 3}
    assert PROVIDERS["mistral"].seed_name == "random_seed"
    await pool.aclose()


# JSON in place of a stream

QUOTA = {"error": {"message": "quota gone", "code": "insufficient_quota"}}


@pytest.mark.parametrize(
    ("name", "body", "expected", "text"),
    [
        ("openai", QUOTA, AuthenticationFailed, "quota gone"),
        ("responses", QUOTA, AuthenticationFailed, "quota gone"),
        ("mistral", QUOTA, AuthenticationFailed, "quota gone"),
        ("openai", {"error": {"message": "slow down", "code": 429}}, RateLimited, "slow down"),
        ("openai", {"error": "it broke"}, Overloaded, "it broke"),
        ("openai", {"code": "invalid_request_error", "error": "no such thing"}, RequestRejected, "no such thing"),
        ("openai", {"detail": "try later"}, Overloaded, "try later"),
        (
            "anthropic",
            {"type": "error", "error": {"type": "billing_error", "message": "no credit"}},
            AuthenticationFailed,
            "no credit",
        ),
        ("anthropic", {"message": "try later"}, Overloaded, "try later"),
        ("google", {"error": {"code": 429, "message": "slow down", "status": "X"}}, RateLimited, "slow down"),
        ("google", QUOTA, Overloaded, "quota gone"),
        ("ollama", {"error": "slow down"}, Overloaded, "slow down"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
async def test_an_error_in_place_of_a_stream_is_what_it_says(
    name: str, body: Any, expected: type[ProviderError], text: str, indent: int | None, server: LoopbackServer
) -> None:
    """The status says that all is well; the body has the provider's own words, and what they mean."""
    # Ollama's API has one JSON value a line.
    data = json.dumps(body, indent=None if name == "ollama" else indent).encode()
    server.script(Reply(body=data, headers={"Content-Type": "application/json; charset=utf-8"}))
    with pytest.raises(ProviderError) as caught:
        await ask(name)
    assert (type(caught.value), str(caught.value), caught.value.status) == (expected, text, None)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_such_an_error_may_be_compressed(name: str, server: LoopbackServer) -> None:
    """The SDKs ask for that; a body that is not what its headers say is no error that can be read."""
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps({"error": {"message": "quota gone"}}).encode())
    server.script(Reply(body=body, headers=headers), Reply(body=b"no gzip", headers=headers))
    with pytest.raises(Overloaded, match=r"^quota gone$"):
        await ask(name)
    with pytest.raises(ProviderUnavailable, match=r"^the stream ended before the reply was whole: "):
        await ask(name)


@pytest.mark.parametrize("name", ["openai", "responses", "anthropic"])
@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"id": "x", "object": "chat.completion", "choices": []}),
        json.dumps({"error": {"message": "x" * 100_000}}),
        "[]",
        "{not json",
        '{"error":' * 5000,
        "",
    ],
    ids=["whole reply", "too long", "list", "broken", "deep", "nothing"],
)
async def test_json_without_an_error_is_no_reply(name: str, body: str, server: LoopbackServer) -> None:
    """A server that does not stream, or says nothing that can be read, is told by the type of its answer."""
    server.script(Reply(body=body.encode(), headers={"Content-Type": "application/json"}))
    with pytest.raises(ProviderUnavailable) as caught:
        await ask(name)
    assert str(caught.value) == "the stream ended before the reply was whole: the server answered with application/json"


@ALL
async def test_a_stream_under_a_wrong_type_is_a_reply(name: str, server: LoopbackServer) -> None:
    """Some gateways call everything JSON."""
    server.script(Reply("Hello", headers={"Content-Type": "application/json"}))
    assert (await ask(name)).message.content == "Hello"


async def test_a_key_that_such_an_error_quotes_is_masked(server: LoopbackServer) -> None:
    """As in every other error."""
    server.script(Reply(body={"error": {"message": "bad key sk-loopback here"}}))
    with pytest.raises(ProviderError, match=r"^bad key \[key\] here$"):
        await ask("openai")


# A reply that begins again, or goes on after its end


def begun(message_id: str, *pieces: str) -> tuple[dict[str, Any], ...]:
    """The events of a message of Anthropic's that is not yet at its end."""
    usage = {"input_tokens": 20, "output_tokens": 1}
    message = {"id": message_id, "type": "message", "role": "assistant", "model": "m1", "content": [], "usage": usage}
    deltas = ({"type": "text_delta", "text": piece} for piece in pieces)
    return (
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
    )


ENDED = ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"})
CREATED: dict[str, Any] = {"type": "response.created", "response": {"id": "r1", "object": "response", "output": []}}
COMPLETED: dict[str, Any] = {
    "type": "response.completed",
    "response": {"id": "r1", "status": "completed", "model": "m1", "output": []},
}


def said(text: str, index: int = 0, kind: str = "output_text.delta", **more: Any) -> dict[str, Any]:
    """An event of the Responses API with a piece of text; `index` is that of its message."""
    word = "delta" if kind.endswith("delta") else "refusal" if kind.startswith("refusal") else "text"
    place = {"output_index": index, "content_index": 0, "summary_index": 0, "item_id": f"i{index}"}
    return {"type": f"response.{kind}", word: text} | place | more


def gemini(text: str, response_id: str = "r1", **candidate: Any) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0} | candidate],
        "responseId": response_id,
        "modelVersion": "m1",
    }


def ndjson(*lines: dict[str, Any]) -> Reply:
    """A stream of Ollama's."""
    body = "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in lines)
    return Reply(body=body.encode(), headers={"Content-Type": "application/x-ndjson"})


def line(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "message": {"role": "assistant", "content": text}, "done": False} | more


DONE_LINE = line("", done=True, done_reason="stop")
AGAIN: dict[str, tuple[str, Reply]] = {
    "anthropic": ("anthropic", sse(*begun("m1", "One"), *begun("m2", "Two"), *ENDED)),
    "openai": ("openai", sse(HELLO, chunk({"content": "One"}), HELLO | {"id": "c2"}, STOP | {"id": "c2"}, DONE)),
    "responses": ("responses", sse(CREATED, said("One"), CREATED, said("Two"), COMPLETED)),
    "google": ("google", sse(gemini("One"), gemini("Two"), gemini("Three", "r2", finishReason="STOP"))),
}


@pytest.mark.parametrize("case", AGAIN)
async def test_a_reply_that_begins_again_is_not_one_reply(case: str, server: LoopbackServer) -> None:
    """A gateway that asks its own server once more in the middle of a stream: the attempt is over, and typed."""
    name, reply = AGAIN[case]
    server.script(reply)
    with pytest.raises(ProviderUnavailable, match=r"^the server began the reply again before it was whole$"):
        await ask(name)


async def test_what_came_before_a_reply_began_again_is_abandoned(server: LoopbackServer, tmp_path: Path) -> None:
    """Nothing of it gets into the message, and the next attempt counts."""
    run = await run_of(tmp_path, server, MODELS["anthropic"], AGAIN["anthropic"][1], once=True)
    assert [event.partial for event in of_type(run.events, MessageAbandonedEvent)] == ["One"]
    assert texts(run.events)[::2] == ["Fine."] * 3


LATE: dict[str, tuple[str, Reply]] = {
    "anthropic": ("anthropic", sse(*begun("m1", "Hello"), *ENDED, *begun("m2", "LATE")[1:])),
    "anthropic again": ("anthropic", sse(*begun("m1", "Hello"), *ENDED, *begun("m2", "LATE"), *ENDED)),
    "anthropic error": ("anthropic", sse(*begun("m1", "Hello"), *ENDED, {"type": "error", "error": {"type": "x"}})),
    "openai": ("openai", sse(HELLO, STOP, chunk({"content": "LATE"}), DONE)),
    "openai again": ("openai", sse(HELLO, STOP, HELLO | {"id": "c2"}, chunk({"content": "x"}), STOP, DONE)),
    "responses": ("responses", sse(said("Hello"), COMPLETED, said("LATE"), CREATED, said("LATE"), COMPLETED)),
    "google": ("google", sse(gemini("Hello", finishReason="STOP"), gemini("LATE", "r2"), gemini("LATE", "r2"))),
    "ollama": ("ollama", ndjson(line("Hello"), DONE_LINE, line("LATE"), {"error": "late"})),
}


@pytest.mark.parametrize("case", LATE)
async def test_nothing_after_the_end_of_a_reply_is_part_of_it(case: str, server: LoopbackServer) -> None:
    """What the provider called the end is the end."""
    name, reply = LATE[case]
    server.script(reply)
    response = await ask(name)
    assert (response.message.content, response.finish.reason.value) == ("Hello", "stop")


PECULIAR: dict[str, tuple[str, Reply]] = {
    "anthropic: twice begun, nothing said": ("anthropic", sse(begun("m0")[0], *begun("m1", "Hel", "lo"), *ENDED)),
    "openai: every chunk its own id and role": (
        "openai",
        sse(*(chunk({"role": "assistant", "content": c}, id=f"c{i}") for i, c in enumerate("Hello")), STOP, DONE),
    ),
    "openai: a role in every chunk": (
        "openai",
        sse(*(chunk({"role": "assistant", "content": c}) for c in "Hello"), STOP, DONE),
    ),
    "openai: another id at the end": ("openai", sse(HELLO, chunk({"content": ""}), STOP | {"id": "c2"}, DONE)),
    "openai: no id": ("openai", sse(HELLO | {"id": ""}, chunk({"content": ""}, id=None), STOP, DONE)),
    "openai: every chunk the last": ("openai", sse(*(chunk({"content": c}, "stop") for c in "Hello"), DONE)),
    "google: every chunk its own id": (
        "google",
        sse(*(gemini(c, f"r{i}") for i, c in enumerate("Hell")), gemini("o", "r9", finishReason="STOP")),
    ),
    "google: every chunk the last": ("google", sse(*(gemini(c, finishReason="STOP") for c in "Hello"))),
}


@pytest.mark.parametrize("case", PECULIAR)
async def test_peculiar_servers_keep_their_whole_replies(case: str, server: LoopbackServer) -> None:
    """Ids, roles and reasons that say nothing are not taken for an end or another beginning."""
    name, reply = PECULIAR[case]
    server.script(reply)
    response = await ask(name)
    assert (response.message.content, response.finish.reason.value) == ("Hello", "stop")


@pytest.mark.parametrize("name", ["anthropic", "responses", "ollama"])
async def test_a_whole_reply_does_not_wait_for_the_line_to_close(name: str, server: LoopbackServer) -> None:
    """A server that says the reply is at its end and then nothing more is not timed out, nor asked again."""
    server.script(Reply("Hello", hang={"anthropic": 7, "responses": 6, "ollama": 2}[name]))
    async with asked(name, Timeouts(gap_s=5)) as reply:
        assert (await reply()).message.content == "Hello"


class Counting(LoopbackServer):
    """Counts the connections that are made to it."""

    connections = 0

    async def _connected(self, *streams: Any) -> None:
        self.connections += 1
        await super()._connected(*streams)


@ALL
async def test_a_whole_reply_leaves_its_connection_to_the_next(
    name: str, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after the end is read all the same, for else every request would have to connect anew."""
    async with Counting() as counting:
        for variable, value in counting.env.items():
            monkeypatch.setenv(variable, value)
        async with asked(name) as ask_again:
            for _ in range(3):
                assert (await ask_again()).message.content == "Hello from the loopback."
        assert counting.connections == 1


# Replies of several messages, and those that come whole


MESSAGE = {"type": "message", "id": "i0", "role": "assistant", "status": "completed"}


def output(*contents: list[dict[str, Any]]) -> dict[str, Any]:
    """The end of a reply of the Responses API with these messages."""
    items = [{"type": "reasoning", "id": "t", "summary": []}, *(MESSAGE | {"content": each} for each in contents)]
    return COMPLETED | {"response": COMPLETED["response"] | {"output": items}}


def whole_text(text: str) -> list[dict[str, Any]]:
    return [{"type": "output_text", "text": text, "annotations": []}]


@pytest.mark.parametrize(
    ("events", "text", "reason"),
    [
        ([said("A."), said("B.", 1), COMPLETED], "A.\n\nB.", "stop"),
        ([said("A"), said(".", content_index=1), said("B.", 2), COMPLETED], "A.\n\nB.", "stop"),
        ([said("A."), said("", 1), COMPLETED], "A.", "stop"),
        ([said("A.", kind="output_text.done"), said("B.", 1, "output_text.done"), COMPLETED], "A.\n\nB.", "stop"),
        (
            [said("A."), *(said(t, i, "output_text.done") for i, t in enumerate(("A.", "B."))), COMPLETED],
            "A.\n\nB.",
            "stop",
        ),
        ([said("No.", kind="refusal.done"), COMPLETED], "No.", "refusal"),
        ([output(whole_text("A."), whole_text("B."))], "A.\n\nB.", "stop"),
        ([said("A."), output(whole_text("A."), whole_text("B."))], "A.\n\nB.", "stop"),
        ([said("A."), said("B.", 1), output(whole_text("A."), whole_text("B."))], "A.\n\nB.", "stop"),
        ([said("A."), said("B."), output(whole_text("A."), whole_text("B."))], "A.B.", "stop"),
        ([output([{"type": "refusal", "refusal": "No."}])], "No.", "refusal"),
        ([COMPLETED | {"response": COMPLETED["response"] | {"output": None}}], "", "stop"),
    ],
)
async def test_a_reply_of_the_responses_api_is_whole(
    events: list[dict[str, Any]], text: str, reason: str, server: LoopbackServer
) -> None:
    """What comes only at the end is not lost, nothing comes twice, and a blank line is between two messages."""
    server.script(sse(*events))
    response = await ask("responses")
    assert (response.message.content, response.finish.reason.value) == (text, reason)


@pytest.mark.parametrize("kind", ["reasoning_summary_text", "reasoning_text"])
async def test_thinking_of_the_responses_api_may_come_whole(kind: str, server: LoopbackServer) -> None:
    """The same of thinking."""
    parts = [said("One.", kind=f"{kind}.delta"), said("One.", kind=f"{kind}.done")]
    server.script(sse(*parts, said("Two.", 1, f"{kind}.done"), said("Hello", 2), COMPLETED))
    response = await ask("responses")
    apart = "\n\n" if "summary" in kind else ""
    assert [block.text for block in response.message.thinking] == [f"One.{apart}Two."]
    assert response.message.content == "Hello"


# Line ends within a line

ODD = "a\x85b\u2028c\u2029d\u00e9\U0001f99ce"


@ALL
async def test_line_ends_of_unicode_are_letters_of_a_reply(name: str, server: LoopbackServer) -> None:
    """JSON may hold them as they are, and then no stream ends a line there."""
    server.script(
        {
            "anthropic": sse(*begun("m1", ODD), *ENDED, escaped=False),
            "openai": sse(chunk({"content": ODD}), STOP, DONE, escaped=False),
            "responses": sse(said(ODD), COMPLETED, escaped=False),
            "google": sse(gemini(ODD, finishReason="STOP"), escaped=False),
            "ollama": ndjson(line(ODD), DONE_LINE),
        }[name]
    )
    assert (await ask(name)).message.content == ODD


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"", b""), (b"\n", b"\r\n"), (b"\n", b"\n\n"), (b"\n", b"\n \r\n"), (b'{"model', b'\xef\xbb\xbf{"model')],
    ids=["plain", "crlf", "blank lines", "blanks", "byte order mark"],
)
@pytest.mark.parametrize("ended", [True, False], ids=["line end", "none at the last"])
async def test_lines_of_ollama_may_be_parted_in_other_ways(
    old: bytes, new: bytes, ended: bool, server: LoopbackServer
) -> None:
    """As servers of the kind do; compressed as well, for the SDK offers that."""
    body: bytes = ndjson(line(ODD), DONE_LINE).body.replace(old, new, 1 if b"model" in old else -1)
    body = body if ended else body.rstrip()
    headers = {"Content-Type": "application/x-ndjson"}
    server.script(
        Reply(body=body, headers=headers),
        Reply(body=gzip.compress(body), headers=headers | {"Content-Encoding": "gzip"}),
    )
    for _ in range(2):
        assert (await ask("ollama")).message.content == ODD


async def test_bytes_that_are_no_text_are_no_reply(server: LoopbackServer) -> None:
    """Nothing is put in their place."""
    server.script(Reply(body=ndjson(line("a?b"), DONE_LINE).body.replace(b"?", b"\xff")))
    with pytest.raises(ProviderUnavailable, match="the server sent what the Ollama API does not"):
        await ask("ollama")
