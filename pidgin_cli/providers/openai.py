"""OpenAI, and any server that speaks its chat completions API (vLLM, llama.cpp, Groq, …), through the official SDK."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai as sdk
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

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
)
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    LimitsDelta,
    Message,
    ModelRequest,
    RateLimit,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageDelta,
)

from .base import Embedded, Timeouts
from .inline_thinking import ThinkingSplitter
from .instead import keep_json, kept_json
from .registry import PROVIDERS, ProviderInfo, at_home
from .wire import (
    CUT_OFF,
    ReplyId,
    api_key,
    base_url,
    begun_again,
    error_class,
    message_in,
    one_line,
    rate_limits,
    retry_after_s,
    unfinished,
    what_came,
)

__all__ = ["OpenAIProvider"]

INFO = PROVIDERS["openai"]

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}

ERRORS: dict[type[Exception], type[ProviderError]] = {
    sdk.OpenAIError: ProviderUnavailable,
    sdk.APIError: Overloaded,  # within a stream; refined by its code
    sdk.APIConnectionError: ProviderUnavailable,
    sdk.APITimeoutError: ProviderTimeout,
    sdk.APIResponseValidationError: ProviderUnavailable,
    sdk.APIStatusError: RequestRejected,  # refined by status
    sdk.BadRequestError: RequestRejected,
    sdk.AuthenticationError: AuthenticationFailed,
    sdk.OAuthError: AuthenticationFailed,
    sdk.PermissionDeniedError: AuthenticationFailed,
    sdk.NotFoundError: RequestRejected,
    sdk.ConflictError: Overloaded,
    sdk.UnprocessableEntityError: RequestRejected,
    sdk.RateLimitError: RateLimited,
    sdk.InternalServerError: Overloaded,
    sdk.LengthFinishReasonError: ProviderUnavailable,
    sdk.ContentFilterFinishReasonError: ContentFiltered,
    sdk.WebSocketConnectionClosedError: ProviderUnavailable,
    sdk.WebSocketQueueFullError: ProviderUnavailable,
    # The SDK wraps these; named in case one slips through.
    httpx2.TimeoutException: ProviderTimeout,
    httpx2.HTTPError: ProviderUnavailable,
    httpx2.StreamError: ProviderUnavailable,
    UnicodeEncodeError: RequestRejected,
    # The SDK builds its models unchecked, so JSON of another shape (a proxy, another server) shows up as one of these.
    ValueError: ProviderUnavailable,
    TypeError: ProviderUnavailable,
    AttributeError: ProviderUnavailable,
    RecursionError: ProviderUnavailable,
}
"""Every class the SDK exports. The nearest one along an exception's own ancestry counts."""

CODES: dict[str, type[ProviderError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "exceed_context_size_error": ContextLengthExceeded,  # llama.cpp
    "string_above_max_length": ContextLengthExceeded,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "invalid_prompt": ContentFiltered,  # against the usage policy, that is
    "bio_policy": ContentFiltered,
    "misalignment_policy_violation": ContentFiltered,
    "data_residency_mismatch": RequestRejected,
    # Without money the key may not use the model, and asking again does not help.
    "insufficient_quota": AuthenticationFailed,
    "invalid_api_key": AuthenticationFailed,
    "authentication_error": AuthenticationFailed,
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "server_error": Overloaded,
    "overloaded_error": Overloaded,
    "timeout": ProviderTimeout,
    "invalid_request_error": RequestRejected,
    "model_not_found": RequestRejected,
}
"""What `error.code`, or else `error.type`, says more exactly than the HTTP status, or alone within a stream."""

WORDINGS: dict[type[ProviderError], dict[str, type[ProviderError]]] = {
    RequestRejected: {
        "maximum context length": ContextLengthExceeded,
        "maximum prompt length": ContextLengthExceeded,  # xAI, as are the next two
        "Incorrect API key": AuthenticationFailed,  # with status 400
    },
    AuthenticationFailed: {"violates usage guidelines": ContentFiltered},  # with status 403
}
"""What an error of some class is when its text holds certain words."""


class OpenAIProvider:
    """Asks GPT, or a server that speaks the same API. Key and address come from the variables that `info` names."""

    def __init__(self, timeouts: Timeouts, info: ProviderInfo = INFO) -> None:
        url = base_url(info)
        key = api_key(info)
        self._info = info
        self._secrets = (key,)
        # These two never write their thinking into the text; what looks like it is text.
        self._splits = not (info.name in ("openai", "xai") and at_home(info))
        # OpenAI's newer models refuse the old name of the limit, many other servers do not know the new one.
        host = f".{urlsplit(url).hostname}"
        self._limit_name = "max_completion_tokens" if host.endswith((".openai.com", ".azure.com")) else "max_tokens"
        self._client = sdk.AsyncOpenAI(
            api_key=key,
            base_url=url,
            timeout=httpx2.Timeout(None, connect=timeouts.connect_s),
            max_retries=0,
        )

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names. A thinking budget has none here."""
        settings = request.settings
        parameters: dict[str, Any] = {}
        for name, theirs in (("temperature", "temperature"), ("top_p", "top_p"), ("seed", self._info.seed_name)):
            if (value := getattr(settings, name)) is not None:
                parameters[theirs] = value
        if settings.max_tokens is not None:
            parameters[self._limit_name] = settings.max_tokens
        if settings.stop is not None:
            parameters["stop"] = list(settings.stop)
        if settings.think is False:
            parameters["reasoning_effort"] = "none"
        elif settings.effort is not None or settings.think:
            parameters["reasoning_effort"] = settings.effort or "medium"
        if settings.extra:
            parameters["extra"] = settings.extra
        return parameters

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        parameters = self.effective_parameters(request)
        extra = parameters.pop("extra", None)
        if (seed := self._info.seed_name) != "seed" and seed in parameters:
            extra = {seed: parameters.pop(seed)} | (extra or {})  # the SDK has no argument for it
        with self._translating():
            stream = await self._client.chat.completions.create(
                model=request.model,
                messages=_messages(request),
                stream=True,
                stream_options={"include_usage": True} if self._info.asked_for_usage else sdk.omit,
                extra_body=extra,
                **parameters,
            )
            keep_json(stream.response)
            async with stream, aclosing(_deltas(stream, ThinkingSplitter() if self._splits else None)) as deltas:
                if limits := rate_limits(stream.response.headers):
                    yield LimitsDelta(limits)
                async for delta in deltas:
                    yield delta

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """See `base.Embeds`."""
        with self._translating():
            # Not every server knows base64, which the SDK would ask for.
            found = await self._client.embeddings.create(model=model, input=list(texts), encoding_format="float")
            tokens = getattr(getattr(found, "usage", None), "prompt_tokens", None)
            return Embedded(_in_order(getattr(found, "data", found)), tokens)

    async def served_models(self) -> list[str]:
        """Names of the models that the server has."""
        with self._translating():
            return [model.id async for model in self._client.models.list()]

    async def aclose(self) -> None:
        await self._client.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except ProviderError as error:
            error.provider = self._info.name
            raise
        except tuple(ERRORS) as exc:
            translated = translate(exc, *self._secrets)
            translated.provider = self._info.name
            raise translated from exc


def _in_order(data: Any) -> Any:
    """The vectors as their indices say; whatever else the server sent as it is."""
    if not isinstance(data, list):
        return data
    indices: list[Any] = [getattr(each, "index", None) for each in data]
    if all(index is None for index in indices):  # not every server has them
        indices = list(range(len(data)))
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(data))):
        raise ProviderUnavailable(f"the server sent {len(data)} vectors with other indices than 0 to {len(data) - 1}")
    vectors = dict(zip(indices, (getattr(each, "embedding", each) for each in data), strict=True))
    return [vectors[index] for index in range(len(data))]


def translate(exc: Exception, *secrets: str) -> ProviderError:
    """The SDK's exception as ours, by its type and then by the code it carries."""
    kind = next(ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS)
    text, status, retry_after = str(exc), None, None
    limits: tuple[RateLimit, ...] = ()
    sent = True
    match exc:
        case sdk.APIConnectionError():
            cause = exc.__cause__ or exc
            sent = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            what = CUT_OFF if sent else f"no connection to {exc.request.url.host}"
            text = f"{what}: {str(cause) or type(cause).__name__}"
        case sdk.APIResponseValidationError():
            pass
        case sdk.APIError():
            text = message_in(exc.body) or exc.message
            if isinstance(exc, sdk.APIStatusError):
                status = exc.status_code
                retry_after, limits = retry_after_s(exc.response.headers), rate_limits(exc.response.headers)
                text = message_in(exc.body) or f"the server answered with status {status}"
                if type(exc) is sdk.APIStatusError:
                    kind = error_class(status)
            elif str(exc.code).isdecimal():
                kind = error_class(int(str(exc.code)))  # OpenRouter and vLLM put an HTTP status there
            if known := CODES.get(str(exc.code)) or CODES.get(str(exc.type)):
                # `invalid_request_error` is also the type of authentication and quota errors.
                kind = known if status is None or known is not RequestRejected else kind
            # vLLM, Together, xAI and others have no codes for these; only the wording tells.
            kind = next((meant for words, meant in WORDINGS.get(kind, {}).items() if words in text), kind)
        case httpx2.HTTPError() | httpx2.StreamError():
            text = f"{CUT_OFF}: {text or type(exc).__name__}"
        case UnicodeEncodeError():
            text = "the request holds text that UTF-8 cannot carry"
        case ValueError() | TypeError() | AttributeError() | RecursionError():
            text = f"the server sent what the OpenAI API does not: {what_came(exc)}"
    return kind(
        one_line(text, *secrets),
        provider=INFO.name,
        status=status,
        retry_after_s=retry_after,
        limits=limits,
        sent=sent,
    )


def _messages(request: ModelRequest) -> list[Any]:
    sent: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
    sent += map(_message, request.messages)
    return sent


def _message(message: Message) -> dict[str, Any]:
    if message.tool_result is not None:
        return {"role": "tool", "tool_call_id": message.tool_result.call_id, "content": message.tool_result.content}
    sent: dict[str, Any] = {"role": str(message.role), "content": message.content}
    if message.tool_calls:
        sent["content"] = message.content if message.content.strip() else None
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
    return sent


def broken_off(stream: sdk.AsyncStream[Any]) -> Exception:
    """The error for a stream that ended before the reply did; what the server said in place of it is within it."""
    said = kept_json(stream.response)
    if not (text := message_in(said)):
        return unfinished(stream.response.headers, INFO.name)
    error = said.get("error")
    return sdk.APIError(text, stream.response.request, body=error if isinstance(error, dict) else said)


async def _deltas(
    stream: sdk.AsyncStream[ChatCompletionChunk], splitter: ThinkingSplitter | None
) -> AsyncGenerator[Delta]:
    """`splitter`: for text that may begin with thinking; it is dropped as soon as that is decided."""
    reason: str | None = None
    model = request_id = fingerprint = None
    refused = False
    reply_id = ReplyId()
    async for chunk in stream:
        # Some servers have a role in every chunk, and some an id of its own for every one.
        if (
            reply_id.is_another(chunk.id)
            and reason is None
            and any(getattr(choice.delta, "role", None) for choice in chunk.choices or ())
        ):
            raise begun_again(INFO.name)
        ended = reason is not None
        model, request_id = chunk.model or model, chunk.id or request_id
        fingerprint = chunk.system_fingerprint or fingerprint
        if chunk.usage is not None:
            yield UsageDelta(_usage(chunk.usage))
        for choice in chunk.choices or ():
            if choice.index:
                continue  # another reply to the same request
            if ended and not choice.finish_reason:
                continue  # some servers have a reason in every chunk; after the only one nothing counts
            reason = choice.finish_reason or reason
            delta = choice.delta
            if delta is None:
                continue
            # Not in OpenAI's own API; vLLM, DeepSeek and OpenRouter use either name, some both for the same text.
            # `getattr` would do, but in every chunk without them it costs more than all the rest of ours.
            if (more := delta.model_extra) and (thought := more.get("reasoning_content") or more.get("reasoning")):
                if splitter is not None:
                    for kept in splitter.end():
                        yield kept
                    splitter = None  # a server that has a field for it leaves none in the text
                yield ThinkingDelta(thought)
            content: Any = delta.content
            if content:
                if type(content) is list:
                    if splitter is not None:
                        for kept in splitter.end():
                            yield kept
                        splitter = None  # thinking has parts of its own
                    for piece in _parts(content):
                        yield piece
                elif splitter is None or not isinstance(content, str):
                    yield TextDelta(content)  # what is no text is refused further up
                else:
                    for piece in splitter.feed(content):
                        yield piece
                    if splitter.decided:
                        splitter = None
            if delta.refusal:
                refused = True
                yield TextDelta(delta.refusal)
            for call in delta.tool_calls or ():
                function = call.function
                yield ToolCallDelta(
                    call.index or 0,  # some servers leave it out of the only call
                    id=call.id or "",
                    name=(function and function.name) or "",
                    arguments=(function and function.arguments) or "",
                )
    if splitter is not None:
        for kept in splitter.end():
            yield kept
    if reason is None:
        raise broken_off(stream)
    yield Finish(
        reason=FinishReason.REFUSAL if refused else FINISH_REASONS.get(reason, FinishReason.UNKNOWN),
        model=model,
        request_id=stream.response.headers.get("x-request-id") or request_id,
        fingerprint=fingerprint,
    )


def _parts(content: Iterable[Any]) -> Iterator[Delta]:
    """What stands in a list of parts, as Mistral's thinking models send it; parts of other kinds have no text."""
    for part in content:
        if part.get("type") == "thinking":
            thought = part.get("thinking")
            for piece in thought if isinstance(thought, list) else ({"text": thought},):
                if text := piece.get("text"):
                    yield ThinkingDelta(text)
        elif text := part.get("text"):
            yield TextDelta(text)


def _usage(reported: CompletionUsage) -> Usage:
    prompt, completion = reported.prompt_tokens_details, reported.completion_tokens_details
    read, written = reported.prompt_tokens, reported.completion_tokens
    thought = completion.reasoning_tokens if completion is not None else None
    # xAI counts what was thought beside the reply, the others within it; only the total tells which.
    if thought and None not in (read, written) and reported.total_tokens == read + written + thought:
        written += thought
    return Usage(
        prompt_tokens=read,
        completion_tokens=written,
        thinking_tokens=thought,
        cached_tokens=prompt.cached_tokens if prompt is not None else None,
        cache_write_tokens=prompt.cache_write_tokens if prompt is not None else None,
    )
