"""Models that run in Ollama, through the official SDK. Nothing here starts, installs or pulls anything by itself."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import httpx
import msgspec
from msgspec import Struct

from pidgin_cli.core.errors import (
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RequestRejected,
    SpecError,
)
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageDelta,
    text_of,
)

from .base import Embedded, Timeouts
from .inline_thinking import ThinkingSplitter
from .ollama_setup import EXAMPLE, place
from .registry import PROVIDERS, ProviderInfo, address
from .wire import (
    CUT_OFF,
    arguments_of,
    bad_address,
    error_class,
    message_in,
    one_line,
    read_out,
    retry_after_s,
    what_came,
)

try:
    import ollama as sdk
except ValueError as bad_host:
    # The SDK opens a client when it is imported, and so reads OLLAMA_HOST then.
    raise SpecError(f"OLLAMA_HOST is not an address like {EXAMPLE}; correct or unset it") from bad_host

__all__ = ["DEFAULT_CONTEXT", "KEEP_ALIVE_S", "OllamaProvider", "PullProgress"]

INFO = PROVIDERS["ollama"]
DEFAULT_CONTEXT = 16_384
"""Tokens of context where nobody says otherwise; memory grows with them."""
DEFAULT_REPLY = 4096
"""Tokens that a reply may take where no limit is set, for the size of the context that one question needs."""
KEEP_ALIVE_S = 1800.0
"""Seconds after its last request until the server may unload a model on its own. Ollama's 300 are shorter than many a
pause between two messages."""
SHOW_S = 10.0
"""Seconds a server may take to say what a model is."""
FIELDS = ("format", "keep_alive", "logprobs", "options", "think", "top_logprobs")
"""Words of `extra` that stand in the request itself; all others are options."""

BLANKS = " \t\r\n"
"""Those of JSON."""

FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}

ERRORS: dict[type[Exception], type[ProviderError]] = {
    sdk.ResponseError: Overloaded,  # refined by status; within a stream it has none
    sdk.RequestError: RequestRejected,
    ConnectionError: ProviderUnavailable,
    # In streams the SDK passes on what the HTTP library raises.
    httpx.TimeoutException: ProviderTimeout,
    httpx.HTTPError: ProviderUnavailable,
    httpx.StreamError: ProviderUnavailable,
    UnicodeEncodeError: RequestRejected,
    # JSON of another shape, or none (a proxy, another server); pydantic's error is a ValueError.
    ValueError: ProviderUnavailable,
    TypeError: ProviderUnavailable,
    AttributeError: ProviderUnavailable,
    RecursionError: ProviderUnavailable,
}
"""Both classes of the SDK and what it lets through. The nearest one along an exception's own ancestry counts."""


class PullProgress(Struct, frozen=True):
    """How far a pull is. Sizes are bytes of the layer under way; None where the step has none."""

    status: str
    completed: int | None = None
    total: int | None = None


class _Shown(NamedTuple):
    """What Ollama says of a model's context, in tokens. None: nothing."""

    length: int | None = None
    """The most the model can have."""
    num_ctx: int | None = None
    """What its Modelfile sets."""


class OllamaProvider:
    """Asks a model in Ollama, at `OLLAMA_HOST`, where the settings say, or on this machine."""

    def __init__(self, timeouts: Timeouts, info: ProviderInfo = INFO) -> None:
        self._connect_s = timeouts.connect_s
        self._secret = os.environ.get("OLLAMA_API_KEY", "")
        self._shown: dict[str, _Shown] = {}
        self._netloc = place(info).netloc
        try:
            self._client = sdk.AsyncClient(
                address(info),
                timeout=httpx.Timeout(None, connect=timeouts.connect_s),
                event_hooks={"response": [_part_lines]},
            )
        except (ValueError, httpx.InvalidURL) as exc:
            raise bad_address(info, EXAMPLE) from exc

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names. A thinking budget has none here.

        The context is always sent: Ollama's own is small, and it drops what does not fit without a word.
        """
        settings = request.settings
        options: dict[str, Any] = {"num_ctx": request.context_window or DEFAULT_CONTEXT}
        for name, theirs in (
            ("temperature", "temperature"),
            ("top_p", "top_p"),
            ("seed", "seed"),
            ("max_tokens", "num_predict"),
        ):
            if (value := getattr(settings, name)) is not None:
                options[theirs] = value
        if settings.stop is not None:
            options["stop"] = list(settings.stop)
        extra = settings.extra or {}
        options |= {name: value for name, value in extra.items() if name not in FIELDS}
        if isinstance(more := extra.get("options"), dict):
            options |= more
        parameters: dict[str, Any] = {"options": options, "keep_alive": KEEP_ALIVE_S}
        if settings.think is False:
            parameters["think"] = False
        elif settings.effort is not None or settings.think:
            parameters["think"] = settings.effort or True
        return parameters | {name: extra[name] for name in FIELDS if name in extra and name != "options"}

    async def served_window(self, request: ModelRequest) -> int:
        """Tokens of context that the model will have for `request`: what is asked for, as far as the model has it.

        Where nobody asks for a number it is the one of the model's Modelfile, else all that a model in Ollama's cloud
        has, else `DEFAULT_CONTEXT` or the next power of two times it into which the request's own text fits.
        """
        shown = await self._show(request.model)
        wanted = _own_context(request) or request.context_window or shown.num_ctx
        if wanted is None and request.model.endswith(("-cloud", ":cloud")):
            wanted = shown.length
        if wanted is None:
            wanted = DEFAULT_CONTEXT
            size = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
            while wanted < size // 2 + (request.settings.max_tokens or DEFAULT_REPLY) and size:
                wanted *= 2
        return wanted if shown.length is None else min(wanted, shown.length)

    async def _show(self, model: str) -> _Shown:
        """What the server says of a model; nothing where it does not answer, for the request itself will tell why."""
        if model not in self._shown:
            try:
                async with asyncio.timeout(SHOW_S):
                    with self._translating(model):
                        about = await self._client.show(model)
            except (ProviderError, TimeoutError):
                return _Shown()
            facts = about.modelinfo or {}
            length = facts.get(f"{facts.get('general.architecture')}.context_length")
            set_in_file = re.search(r"^num_ctx\s+(\d+)\s*$", about.parameters or "", re.MULTILINE)
            self._shown[model] = _Shown(
                length if isinstance(length, int) and length > 0 else None,
                int(set_in_file[1]) if set_in_file else None,
            )
        return self._shown[model]

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        with self._translating(request.model):
            parts = await self._client.chat(
                request.model, _messages(request), stream=True, **self.effective_parameters(request)
            )
            async with aclosing(cast("AsyncGenerator[sdk.ChatResponse]", parts)), aclosing(_deltas(parts)) as deltas:
                async for delta in deltas:
                    yield delta

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """See `base.Embeds`."""
        with self._translating(model):
            found = await self._client.embed(model, list(texts), truncate=False, keep_alive=KEEP_ALIVE_S)
            return Embedded(found.embeddings, found.prompt_eval_count)

    async def is_up(self) -> bool:
        """Whether an Ollama server answers. Takes no longer than the time-out for connecting."""
        try:
            async with asyncio.timeout(self._connect_s):
                await self.installed_models()
        except TimeoutError:
            return False
        except ProviderError as error:
            return error.status is not None  # it answered, if only to refuse
        return True

    async def installed_models(self) -> list[str]:
        """Names of the models that can be asked at once, as Ollama writes them, such as `llama3.2:latest`."""
        with self._translating():
            return [model.model for model in (await self._client.list()).models if model.model]

    async def served_models(self) -> list[str]:
        """The same, under the name that other adapters have for it."""
        return await self.installed_models()

    async def pull(self, model: str) -> AsyncIterator[PullProgress]:
        """Download `model`, telling how far it is. Only to be called after a person said yes; ends when it is there."""
        done = False
        try:
            with self._translating(model):
                steps = await self._client.pull(model, stream=True)
                async with aclosing(cast("AsyncGenerator[sdk.ProgressResponse]", steps)):
                    async for step in steps:
                        done = step.status == "success"
                        yield PullProgress(step.status or "", step.completed, step.total)
                if not done:
                    raise ProviderUnavailable("the download ended before it was whole; the next try goes on from there")
        except ProviderError as error:
            error.args = (f"Ollama could not get {model}: {error}",)
            raise

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    @contextmanager
    def _translating(self, model: str = "") -> Iterator[None]:
        try:
            yield
        except ProviderError:
            raise
        except tuple(ERRORS) as exc:
            raise translate(exc, self._secret, model=model, netloc=self._netloc) from exc


async def _part_lines(response: httpx.Response) -> None:
    """Have the SDK part a stream as JSON lines are parted."""
    # The library's own lines end wherever Unicode has a line end, and the strings of JSON may hold those as they are.
    response.aiter_lines = partial(_lines, response)  # type: ignore[method-assign]


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    pieces: list[bytes] = []
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as parts:
        async for part in parts:
            *ended, rest = part.split(b"\n")
            for end in ended:
                line = b"".join((*pieces, end)).decode("utf-8-sig")
                if line.strip(BLANKS):
                    yield line
                pieces.clear()
            pieces.append(rest)
    if (last := b"".join(pieces).decode("utf-8-sig")).strip(BLANKS):
        yield last


def _own_context(request: ModelRequest) -> int | None:
    """The context that the agent's `extra` asks for, in either of its places."""
    extra = request.settings.extra or {}
    nested = extra.get("options")
    found = nested.get("num_ctx") if isinstance(nested, dict) and "num_ctx" in nested else extra.get("num_ctx")
    return found if isinstance(found, int) and found > 0 else None


def translate(exc: Exception, *secrets: str, netloc: str, model: str = "") -> ProviderError:
    """The SDK's exception as ours, by its type, with what to type next where a person can mend it.

    Args:
        netloc: host and port of the server that was asked.
    """
    kind = next(ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS)
    text, status, retry_after = str(exc), None, None
    sent = True
    match exc:
        case sdk.ResponseError():
            # Other servers of this API put an object there, as OpenAI does, whatever the SDK's types say.
            text = message_in(exc.error) or f"the server answered with status {exc.status_code}"
            # The SDK keeps neither headers nor response, except as what it was handling.
            if isinstance(exc.__context__, httpx.HTTPStatusError):
                retry_after = retry_after_s(exc.__context__.response.headers)
            if exc.status_code > 0:
                status = exc.status_code
                kind = error_class(status)
            if status == 404 and model:
                text = f"{one_line(text)}; get the model with: ollama pull {model}"
            # Ollama has no codes; only the wording tells.
            elif kind is RequestRejected and "context length" in text:
                kind = ContextLengthExceeded
        case ConnectionError() | httpx.ConnectError() | httpx.ConnectTimeout():
            sent, text = False, f"Ollama does not answer at {netloc}; start it with: ollama serve"
        case httpx.HTTPError() | httpx.StreamError():
            text = f"{CUT_OFF}: {text or type(exc).__name__}"
        case UnicodeEncodeError():
            text = "the request holds text that UTF-8 cannot carry"
        case ValueError() | TypeError() | AttributeError() | RecursionError():
            text = f"the server sent what the Ollama API does not: {what_came(exc)}"
    return kind(one_line(text, *secrets), provider=INFO.name, status=status, retry_after_s=retry_after, sent=sent)


def _messages(request: ModelRequest) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    names: dict[str, str] = {}
    for message in request.messages:
        if message.tool_result is not None:
            result = message.tool_result
            sent.append({"role": "tool", "tool_name": names.get(result.call_id, ""), "content": result.content})
            continue
        sent.append({"role": str(message.role), "content": message.content})
        if thought := text_of(message.thinking):
            sent[-1]["thinking"] = thought
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            sent[-1]["tool_calls"] = [
                {"function": {"name": call.name, "arguments": arguments_of(call.arguments)}}
                for call in message.tool_calls
            ]
    return sent


async def _deltas(parts: AsyncIterator[sdk.ChatResponse]) -> AsyncGenerator[Delta]:
    finish: Finish | None = None
    calls = 0
    splitter: ThinkingSplitter | None = ThinkingSplitter()
    lines = aiter(parts)
    async for part in lines:
        message = part.message
        if message.thinking:
            if splitter is not None:
                for kept in splitter.end():
                    yield kept
                splitter = None  # a server that has a field for it leaves none in the text
            yield ThinkingDelta(message.thinking)
        if message.content:
            if splitter is None:
                yield TextDelta(message.content)
            else:
                for piece in splitter.feed(message.content):
                    yield piece
                if splitter.decided:
                    splitter = None
        for call in message.tool_calls or ():
            # A call comes whole and without an id.
            arguments = msgspec.json.encode(call.function.arguments).decode()
            yield ToolCallDelta(calls, id=f"call_{calls}", name=call.function.name, arguments=arguments)
            calls += 1
        if part.done:
            if part.prompt_eval_count is not None or part.eval_count is not None:
                yield UsageDelta(Usage(prompt_tokens=part.prompt_eval_count, completion_tokens=part.eval_count))
            reason = FINISH_REASONS.get(part.done_reason or "", FinishReason.UNKNOWN)
            if calls and reason is FinishReason.STOP:
                reason = FinishReason.TOOL_CALLS
            finish = Finish(reason=reason, model=part.model)
            break
    if splitter is not None:
        for kept in splitter.end():
            yield kept
    if finish is None:
        raise ProviderUnavailable(CUT_OFF, provider=INFO.name)
    await read_out(lines)
    yield finish
