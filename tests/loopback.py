"""A server on 127.0.0.1 that speaks the vendors' wire formats, so that the real SDKs can be tested.

These are the Anthropic Messages API, OpenAI's chat completions and Responses, the Gemini API, and Ollama's chat; and
the embeddings of the last three vendors.

    async with LoopbackServer() as server:
        server.script(Reply(["Hello", " there"]), Reply(status=429, headers={"Retry-After": "2"}))
        server.reply = lambda request: Reply(f"You said: {request.messages[-1][1]}")   # once the script is used up
        ...
        assert server.requests[0].system == "Be brief."

Every request is kept in `requests`, as it came in. `loopback_in_thread()` is the same for tests that are not
asynchronous, or that run Pidgin in another process with `env=os.environ | server.env`.
"""

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from itertools import islice
from typing import Any, Literal, Self

__all__ = ["LoopbackServer", "Reply", "Request", "Tokens", "loopback_in_thread"]

PATHS = {
    "/v1/messages": "anthropic",
    "/v1/chat/completions": "openai",
    "/v1/responses": "responses",
    "/api/chat": "ollama",
}
EMBEDDING_PATHS = re.compile(r"/v1/embeddings|/api/embed|/v1beta/models/.+:batchEmbedContents")
GEMINI_PATH = re.compile(r"/v1beta/(?:models/)?(.+):streamGenerateContent")


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: Any
    """The JSON body, or None."""

    @property
    def api(self) -> str:
        """`anthropic`, `openai`, `responses`, `google`, `ollama`, or empty for a path that is no chat."""
        return "google" if GEMINI_PATH.fullmatch(self.path) else PATHS.get(self.path, "")

    @property
    def embedded(self) -> list[str] | None:
        """The texts for which vectors are asked; None for any other request."""
        if not EMBEDDING_PATHS.fullmatch(self.path):
            return None
        if "requests" in self.body:
            return [_text(each["content"]["parts"]) for each in self.body["requests"]]
        return list(self.body["input"])

    @property
    def model(self) -> str:
        found = GEMINI_PATH.fullmatch(self.path)
        return found[1] if found else self.body["model"]

    @property
    def system(self) -> str | None:
        """The system prompt, wherever this API has it."""
        match self.api:
            case "anthropic":
                return self.body.get("system")
            case "responses":
                return self.body.get("instructions")
            case "google":
                found = self.body.get("systemInstruction")
                return found and _text(found["parts"])
        return next((m["content"] for m in self.body["messages"] if m["role"] == "system"), None)

    @cached_property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of every message but the system prompt; blocks that are not text are left out.

        Roles are `user` and `assistant`, whatever the API calls them.
        """
        match self.api:
            case "google":
                names = {"model": "assistant"}
                return [(names.get(c["role"], c["role"]), _text(c["parts"])) for c in self.body["contents"]]
            case "responses":
                return [(item["role"], _text(item["content"])) for item in self.body["input"] if "role" in item]
        return [(m["role"], _text(m["content"])) for m in self.body["messages"] if m["role"] != "system"]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(block.get("text", "") for block in content)
    return content or ""


@dataclass(frozen=True)
class Tokens:
    """What the server says it counted; None is left out. `prompt` is all input, the cached part included."""

    prompt: int | None = 20
    completion: int | None = 5
    thinking: int | None = None
    cached: int | None = None
    cache_write: int | None = None


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. Events are counted from 1: each piece of a stream is one."""

    text: str | Sequence[str] = ("Hello", " from", " the loopback.")
    """One piece of the stream each; a plain string is one piece."""
    thinking: Sequence[str] = ()
    signature: str | None = None
    """Closes the thinking (Anthropic), or comes with the first call or after the text (Google, base64)."""
    redacted: str | None = None
    """Anthropic: a block of thinking of which there is only this, encrypted, comes before the rest."""
    reasoning_field: str = "reasoning_content"
    """Where an OpenAI-compatible server puts its thinking."""
    refusal: str | None = None
    """OpenAI's own field for a refusal."""
    block_reason: str | None = None
    """Google: the prompt was blocked, and nothing else comes."""
    tool_calls: Sequence[tuple[str, str, str]] = ()
    """Id, name, arguments as JSON text."""
    usage: Tokens | None = Tokens()
    finish: str | None = None
    """The stop reason in the words of the API; None: its word for a natural end. "" leaves the terminal events out.

    Responses: a word other than `completed` is the reason why the reply is incomplete.
    """
    model: str | None = None
    """The model that says it served; None: the one asked for."""
    fingerprint: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """Sent as it is (text, bytes) or as JSON, instead of a stream."""
    empty_choices: bool = False
    """OpenAI: a chunk without choices comes first, as from Azure. Google: one without candidates."""
    insert: tuple[int, Any] | None = None
    """After so many events, this one: a dict is an event of the API (an error, say), a string goes out raw."""
    cut_after: Literal["request"] | int | None = None
    """After so many events the connection breaks, or before any byte of an answer (`request`)."""
    hang: Literal["request"] | int | None = None
    """Nothing comes any more: not even a status line (`request`), or after so many events (0: after the headers)."""


ReplyTo = Callable[[Request], Reply]


class LoopbackServer:
    """See the module."""

    def __init__(self, reply: ReplyTo | None = None) -> None:
        self.requests: list[Request] = []
        self.reply: ReplyTo = reply or (lambda _request: Reply())
        self.installed = ["llama3.2:latest"]
        """What Ollama has; asking for another model is its 404, and a pull adds to it."""
        self.context_length: int | None = 131_072
        """What Ollama says its models can read; None: nothing."""
        self.modelfile = ""
        """Parameters of Ollama's models as their Modelfile sets them."""
        self.served = ["served-one", "served-two"]
        """What the others say they have."""
        self.embed: Callable[[str], list[float] | None] = lambda text: [float(len(text)), 1.0, 0.5]
        """The vector of a text; None: it is too long for the model."""
        self.received = asyncio.Event()
        """A request has come in; clear it to wait for the next."""
        self.hung_up = asyncio.Event()
        """A client closed its connection while an answer was under way."""
        self._script: deque[Reply] = deque()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def script(self, *replies: Reply) -> None:
        """The next chat requests are answered with these, in order; then `reply` decides."""
        self._script.extend(replies)

    @property
    def chats(self) -> list[Request]:
        """The requests for a reply, without those about models."""
        return [request for request in self.requests if request.api]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment that sends all SDKs here."""
        return {
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-ant-loopback",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "sk-loopback",
            "GOOGLE_GEMINI_BASE_URL": self.url,
            "GEMINI_API_KEY": "AIza-loopback",
            "OLLAMA_HOST": self.url,
            "NO_PROXY": "127.0.0.1",
        }

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.received.set()
                if not await self._answer(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would log a cancelled connection as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can take another request."""
        if (texts := request.embedded) is not None:
            refused = self._script.popleft() if self._script else None
            status, body, headers = (
                (refused.status, "" if refused.body is None else refused.body, refused.headers)
                if refused is not None and (refused.status != HTTPStatus.OK or refused.body is not None)
                else (*self._vectors(request, texts), {})
            )
            await _respond(writer, status, body, headers)
            return True
        if not request.api:
            await _respond(writer, *self._about_models(request))
            return True
        reply = self._script.popleft() if self._script else self.reply(request)
        if reply.hang == "request":
            return await self._hang(reader)
        if reply.cut_after == "request":
            return False
        if request.api == "ollama" and not self._is_installed(request.model):
            reply = Reply(status=404, body={"error": f"model '{request.model}' not found"})
        if reply.body is not None or reply.status != HTTPStatus.OK:
            await _respond(writer, reply.status, "" if reply.body is None else reply.body, reply.headers)
            return True
        kind = "application/x-ndjson" if request.api == "ollama" else "text/event-stream; charset=utf-8"
        own = {"request-id": "req_loopback"} if request.api == "anthropic" else {"x-request-id": "req_loopback"}
        _head(writer, 200, {"Content-Type": kind, "Transfer-Encoding": "chunked"} | own | reply.headers)
        count = 0
        for event in _with_insert(_EVENTS[request.api](request, reply), reply, request.api):
            if reply.cut_after == count:
                await writer.drain()
                return False
            if reply.hang == count:
                return await self._hang(reader)
            _chunk(writer, event.encode())
            await writer.drain()
            count += 1
        if reply.cut_after == count:
            return False
        if reply.hang == count:
            return await self._hang(reader)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _hang(self, reader: asyncio.StreamReader) -> bool:
        await reader.read(1)
        self.hung_up.set()
        return False

    def _is_installed(self, model: str) -> bool:
        return model in self.installed or f"{model}:latest" in self.installed

    def _vectors(self, request: Request, texts: list[str]) -> tuple[int, Any]:
        found = [self.embed(text) for text in texts]
        api = request.path.partition("/")[2].partition("/")[0]
        if None in found:
            said = "the input length exceeds the maximum context length"
            return 400, {"error": said if api == "api" else {"message": said, "type": "invalid_request_error"}}
        match api:
            case "api":
                if not self._is_installed(request.body["model"]):
                    return 404, {"error": f"model '{request.body['model']}' not found"}
                return 200, {"embeddings": found, "model": request.body["model"], "prompt_eval_count": len(texts)}
            case "v1beta":
                return 200, {"embeddings": [{"values": vector} for vector in found]}
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(found)]
        usage = {"prompt_tokens": 10 * len(texts), "total_tokens": 10 * len(texts)}
        # Nobody promises an order; the index counts.
        return 200, {"object": "list", "data": data[::-1], "model": request.body["model"], "usage": usage}

    def _about_models(self, request: Request) -> tuple[int, Any]:
        match request.path:
            case "/v1/models":  # as both OpenAI and Anthropic have it
                more = {"object": "model", "type": "model", "created": 1_767_225_600, "owned_by": "loopback"}
                more |= {"created_at": "2026-01-01T00:00:00Z"}
                data = [{"id": name, "display_name": name} | more for name in self.served]
                return 200, {"object": "list", "data": data, "has_more": False, "first_id": None, "last_id": None}
            case "/v1beta/models":
                return 200, {"models": [{"name": f"models/{name}"} for name in self.served]}
            case "/api/version":
                return 200, {"version": "0.12.0"}
            case "/api/tags":
                return 200, {"models": [{"name": name, "model": name, "size": 2_000_000} for name in self.installed]}
            case "/api/ps":
                return 200, {"models": []}
            case "/api/show" if self._is_installed(request.model):
                about = _given(**{"general.architecture": "llama", "llama.context_length": self.context_length})
                return 200, {"model_info": about, "parameters": self.modelfile}
            case "/api/show":
                return 404, {"error": f"model '{request.model}' not found"}
            case "/api/pull" if request.model.startswith("no-such"):
                return 200, _lines(
                    {"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}
                )
            case "/api/pull":
                self.installed.append(request.model if ":" in request.model else f"{request.model}:latest")
                layer = {"status": "pulling 6a0746a1ec1a", "digest": "sha256:6a0746a1ec1a", "total": 1000}
                return 200, _lines(
                    {"status": "pulling manifest"},
                    layer,
                    layer | {"completed": 400},
                    layer | {"completed": 1000},
                    {"status": "success"},
                )
            case "/":
                return 200, "Ollama is running"
        return 404, {"error": {"message": f"no such path: {request.path}", "type": "not_found_error"}}


@contextmanager
def loopback_in_thread(
    reply: ReplyTo | None = None, kind: type[LoopbackServer] = LoopbackServer
) -> Iterator[LoopbackServer]:
    """A server in a thread of its own, while the block runs."""
    started = threading.Event()
    server = kind(reply)
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            started.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="loopback", daemon=True)
    thread.start()
    assert started.wait(10), "the loopback server did not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None when the client is through with it."""
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split()
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path.partition("?")[0], headers, json.loads(body) if body else None)


def _head(writer: asyncio.StreamWriter, status: int, headers: dict[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _respond(writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    if isinstance(body, str):
        data = body.encode()
        kind = "text/html" if body.startswith("<") else "text/plain"
    elif isinstance(body, bytes):
        data, kind = body, "application/octet-stream"
    else:
        data, kind = json.dumps(body).encode(), "application/json"
    _head(writer, status, {"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {}))
    writer.write(data)
    await writer.drain()


def _with_insert(events: Iterator[str], reply: Reply, api: str) -> Iterator[str]:
    if reply.insert is None:
        yield from events
        return
    at, extra = reply.insert
    yield from islice(events, at)
    yield extra if isinstance(extra, str) else _WRITERS[api](extra)
    yield from events


def _lines(*values: Any) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


def _sse(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _named_sse(value: Any) -> str:
    return f"event: {value['type']}\n{_sse(value)}"


_WRITERS: dict[str, Callable[[Any], str]] = {
    "anthropic": _named_sse,
    "openai": _sse,
    "responses": _named_sse,
    "google": _sse,
    "ollama": _lines,
}


def _pieces(reply: Reply) -> Sequence[str]:
    return ((reply.text,) if reply.text else ()) if isinstance(reply.text, str) else reply.text


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _anthropic(request: Request, reply: Reply) -> Iterator[str]:
    tokens = reply.usage or Tokens(None, None)
    fresh = None if tokens.prompt is None else tokens.prompt - (tokens.cached or 0) - (tokens.cache_write or 0)
    usage = _given(
        input_tokens=fresh, cache_read_input_tokens=tokens.cached, cache_creation_input_tokens=tokens.cache_write
    )
    message = {
        "id": "msg_loopback",
        "type": "message",
        "role": "assistant",
        "model": reply.model or request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if reply.usage is not None:
        message["usage"] = usage | {"output_tokens": 1}
    yield _named_sse({"type": "message_start", "message": message})
    yield _named_sse({"type": "ping"})
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.redacted is not None:
        blocks.append(({"type": "redacted_thinking", "data": reply.redacted}, []))
    if reply.thinking or reply.signature:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in reply.thinking]
        if reply.signature:
            deltas.append({"type": "signature_delta", "signature": reply.signature})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if pieces := _pieces(reply):
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]))
    for call_id, name, arguments in reply.tool_calls:
        half = len(arguments) // 2
        parts = [
            {"type": "input_json_delta", "partial_json": part} for part in ("", arguments[:half], arguments[half:])
        ]
        blocks.append(({"type": "tool_use", "id": call_id, "name": name, "input": {}}, parts))
    for index, (block, deltas) in enumerate(blocks):
        yield _named_sse({"type": "content_block_start", "index": index, "content_block": block})
        for delta in deltas:
            yield _named_sse({"type": "content_block_delta", "index": index, "delta": delta})
        yield _named_sse({"type": "content_block_stop", "index": index})
    if reply.finish == "":
        return
    end: dict[str, Any] = {
        "type": "message_delta",
        "delta": {"stop_reason": reply.finish or ("tool_use" if reply.tool_calls else "end_turn")},
    }
    if reply.usage is not None:
        details = None if tokens.thinking is None else {"thinking_tokens": tokens.thinking}
        end["usage"] = _given(output_tokens=tokens.completion, output_tokens_details=details)
    yield _named_sse(end)
    yield _named_sse({"type": "message_stop"})


def _openai(request: Request, reply: Reply) -> Iterator[str]:
    def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _sse(
            _given(
                id="chatcmpl-loopback",
                object="chat.completion.chunk",
                created=1_767_225_600,
                model=reply.model or request.model,
                system_fingerprint=reply.fingerprint,
                choices=choices,
                **more,
            )
        )

    if reply.empty_choices:
        yield chunk(None)
    yield chunk({"role": "assistant", "content": ""})
    for piece in reply.thinking:
        yield chunk({reply.reasoning_field: piece})
    if reply.refusal is not None:
        yield chunk({"refusal": reply.refusal})
    for piece in _pieces(reply):
        yield chunk({"content": piece})
    for index, (call_id, name, arguments) in enumerate(reply.tool_calls):
        half = len(arguments) // 2
        start = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        yield chunk({"tool_calls": [start]})
        for part in (arguments[:half], arguments[half:]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    if reply.finish == "":
        return
    yield chunk({}, reply.finish or ("tool_calls" if reply.tool_calls else "stop"))
    wanted = (request.body.get("stream_options") or {}).get("include_usage")
    if (tokens := reply.usage) is not None and wanted:
        prompt = _given(cached_tokens=tokens.cached, cache_write_tokens=tokens.cache_write)
        completion = _given(reasoning_tokens=tokens.thinking)
        yield chunk(
            None,
            usage=_given(
                prompt_tokens=tokens.prompt,
                completion_tokens=tokens.completion,
                total_tokens=(tokens.prompt or 0) + (tokens.completion or 0),
                prompt_tokens_details=prompt or None,
                completion_tokens_details=completion or None,
            ),
        )
    yield "data: [DONE]\n\n"


def _responses(request: Request, reply: Reply) -> Iterator[str]:
    number = -1
    response: dict[str, Any] = {
        "id": "resp_loopback",
        "object": "response",
        "created_at": 1_767_225_600,
        "status": "in_progress",
        "model": reply.model or request.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
    }

    def event(kind: str, **more: Any) -> str:
        nonlocal number
        number += 1
        return _named_sse({"type": f"response.{kind}", "sequence_number": number} | more)

    def item(index: int, kind: str, **more: Any) -> dict[str, Any]:
        return {"output_index": index, "item": {"id": f"item_{index}", "type": kind} | more}

    yield event("created", response=response)
    yield event("in_progress", response=response)
    index = 0
    if reply.thinking:
        yield event("output_item.added", **item(index, "reasoning", summary=[]))
        place: dict[str, Any] = {"item_id": f"item_{index}", "output_index": index, "summary_index": 0}
        for piece in reply.thinking:
            yield event("reasoning_summary_text.delta", delta=piece, **place)
        yield event("reasoning_summary_text.done", text="".join(reply.thinking), **place)
        index += 1
    if (pieces := _pieces(reply)) or reply.refusal is not None:
        yield event("output_item.added", **item(index, "message", role="assistant", content=[], status="in_progress"))
        place = {"item_id": f"item_{index}", "output_index": index, "content_index": 0}
        for piece in pieces:
            yield event("output_text.delta", delta=piece, logprobs=[], **place)
        if pieces:
            yield event("output_text.done", text="".join(pieces), logprobs=[], **place)
        if reply.refusal is not None:
            yield event("refusal.delta", delta=reply.refusal, **place)
        index += 1
    for call_id, name, arguments in reply.tool_calls:
        yield event("output_item.added", **item(index, "function_call", call_id=call_id, name=name, arguments=""))
        half = len(arguments) // 2
        for part in (arguments[:half], arguments[half:]):
            yield event("function_call_arguments.delta", item_id=f"item_{index}", output_index=index, delta=part)
        index += 1
    if reply.finish == "":
        return
    if (tokens := reply.usage) is not None:
        response["usage"] = _given(
            input_tokens=tokens.prompt,
            output_tokens=tokens.completion,
            total_tokens=(tokens.prompt or 0) + (tokens.completion or 0),
            input_tokens_details=_given(cached_tokens=tokens.cached, cache_write_tokens=tokens.cache_write) or None,
            output_tokens_details=_given(reasoning_tokens=tokens.thinking) or None,
        )
    if reply.finish in (None, "completed"):
        yield event("completed", response=response | {"status": "completed"})
    else:
        why = {"status": "incomplete", "incomplete_details": {"reason": reply.finish}}
        yield event("incomplete", response=response | why)


def _google(request: Request, reply: Reply) -> Iterator[str]:
    def chunk(*parts: dict[str, Any], **more: Any) -> str:
        candidate = {"content": {"parts": list(parts), "role": "model"}, "index": 0} | more
        return whole(candidates=[candidate])

    def whole(**more: Any) -> str:
        end = {"usageMetadata": usage, "modelVersion": reply.model or request.model, "responseId": "resp_loopback"}
        return f"data: {json.dumps(more | _given(**end))}\r\n\r\n"

    usage: dict[str, Any] | None = None
    if (tokens := reply.usage) is not None:
        thoughts = tokens.thinking or 0
        usage = _given(
            promptTokenCount=tokens.prompt,
            candidatesTokenCount=None if tokens.completion is None else tokens.completion - thoughts,
            thoughtsTokenCount=tokens.thinking,
            cachedContentTokenCount=tokens.cached,
            totalTokenCount=(tokens.prompt or 0) + (tokens.completion or 0),
        )
    if reply.block_reason is not None:
        yield whole(promptFeedback={"blockReason": reply.block_reason})
        return
    if reply.empty_choices:
        yield whole()
    for piece in reply.thinking:
        yield chunk({"text": piece, "thought": True})
    for piece in _pieces(reply):
        yield chunk({"text": piece})
    signature = _given(thoughtSignature=reply.signature)
    for call_id, name, arguments in reply.tool_calls:
        call = {"name": name, "args": json.loads(arguments)} | ({"id": call_id} if call_id else {})
        yield chunk({"functionCall": call} | signature)
        signature = {}
    if reply.finish != "":
        yield chunk({"text": ""} | signature, finishReason=reply.finish or "STOP")


def _ollama(request: Request, reply: Reply) -> Iterator[str]:
    def line(message: dict[str, Any], **more: Any) -> str:
        start = {"model": reply.model or request.model, "created_at": "2026-01-01T00:00:00Z"}
        return _lines(start | {"message": {"role": "assistant", "content": ""} | message, "done": False} | more)

    for piece in reply.thinking:
        yield line({"thinking": piece})
    for piece in _pieces(reply):
        yield line({"content": piece})
    for _, name, arguments in reply.tool_calls:
        yield line({"tool_calls": [{"function": {"name": name, "arguments": json.loads(arguments)}}]})
    if reply.finish == "":
        return
    tokens = reply.usage or Tokens(None, None)
    counts = _given(prompt_eval_count=tokens.prompt, eval_count=tokens.completion)
    yield line({}, done=True, done_reason=reply.finish or "stop", total_duration=1, **counts)


_EVENTS: dict[str, Callable[[Request, Reply], Iterator[str]]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "responses": _responses,
    "google": _google,
    "ollama": _ollama,
}
