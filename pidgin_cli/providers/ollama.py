"""Models that run in Ollama, through the official SDK. Nothing here starts, installs or pulls anything by itself."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

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

from .base import Timeouts
from .registry import PROVIDERS, ProviderInfo, address
from .wire import CUT_OFF, arguments_of, error_class, message_in, one_line, retry_after_s

try:
    import ollama as sdk
except ValueError as bad_host:
    # The SDK opens a client when it is imported, and so reads OLLAMA_HOST then.
    raise SpecError("OLLAMA_HOST is not an address like 127.0.0.1:11434; correct or unset it") from bad_host

__all__ = ["OllamaProvider", "PullProgress"]

INFO = PROVIDERS["ollama"]

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
}
"""Both classes of the SDK and what it lets through. The nearest one along an exception's own ancestry counts."""


class PullProgress(Struct, frozen=True):
    """How far a pull is. Sizes are bytes of the layer under way; None where the step has none."""

    status: str
    completed: int | None = None
    total: int | None = None


class OllamaProvider:
    """Asks a model in Ollama, at `OLLAMA_HOST` or on this machine."""

    def __init__(self, timeouts: Timeouts, info: ProviderInfo = INFO) -> None:
        self._connect_s = timeouts.connect_s
        self._secret = os.environ.get("OLLAMA_API_KEY", "")
        try:
            self._client = sdk.AsyncClient(address(info), timeout=httpx.Timeout(None, connect=timeouts.connect_s))
        except (ValueError, httpx.InvalidURL) as exc:
            raise SpecError("OLLAMA_HOST is not an address like 127.0.0.1:11434; correct or unset it") from exc

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names. A thinking budget has none here."""
        settings = request.settings
        options: dict[str, Any] = {}
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
        options |= settings.extra or {}
        parameters: dict[str, Any] = {"options": options} if options else {}
        if settings.think is False:
            parameters["think"] = False
        elif settings.effort is not None or settings.think:
            parameters["think"] = settings.effort or True
        return parameters

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        with self._translating(request.model):
            parts = await self._client.chat(
                request.model, _messages(request), stream=True, **self.effective_parameters(request)
            )
            async with aclosing(cast("AsyncGenerator[sdk.ChatResponse]", parts)), aclosing(_deltas(parts)) as deltas:
                async for delta in deltas:
                    yield delta

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
        with self._translating(model):
            steps = await self._client.pull(model, stream=True)
            async with aclosing(cast("AsyncGenerator[sdk.ProgressResponse]", steps)):
                async for step in steps:
                    done = step.status == "success"
                    yield PullProgress(step.status or "", step.completed, step.total)
            if not done:
                raise ProviderUnavailable("the download ended before it was whole; the next try goes on from there")

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    @contextmanager
    def _translating(self, model: str = "") -> Iterator[None]:
        try:
            yield
        except ProviderError:
            raise
        except tuple(ERRORS) as exc:
            raise translate(exc, self._secret, model=model) from exc


def translate(exc: Exception, *secrets: str, model: str = "") -> ProviderError:
    """The SDK's exception as ours, by its type, with what to type next where a person can mend it."""
    kind = next(ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS)
    text, status, retry_after = str(exc), None, None
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
            host = (os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434").rpartition("@")[2]
            text = f"Ollama does not answer at {host}; start it with: ollama serve"
        case httpx.HTTPError() | httpx.StreamError():
            text = f"{CUT_OFF}: {text or type(exc).__name__}"
        case UnicodeEncodeError():
            text = "the request holds text that UTF-8 cannot carry"
        case ValueError() | TypeError() | AttributeError():
            text = f"the server sent what the Ollama API does not: {exc}"
    return kind(one_line(text, *secrets), provider=INFO.name, status=status, retry_after_s=retry_after)


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
    async for part in parts:
        message = part.message
        if message.thinking:
            yield ThinkingDelta(message.thinking)
        if message.content:
            yield TextDelta(message.content)
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
    if finish is None:
        raise ProviderUnavailable(CUT_OFF, provider=INFO.name)
    yield finish
