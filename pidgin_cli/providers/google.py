"""Gemini, and any server that speaks the Gemini API, through the official SDK."""

import warnings
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, cast

import httpx2
import msgspec
from google import genai as sdk
from google.genai import errors, types

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RequestRejected,
)
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    Message,
    ModelRequest,
    Role,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageDelta,
)

from .base import Embedded, Timeouts
from .instead import keep_json, kept_json
from .registry import PROVIDERS, ProviderInfo
from .wire import (
    CUT_OFF,
    ReplyId,
    api_key,
    arguments_of,
    base_url,
    begun_again,
    error_class,
    message_in,
    one_line,
    retry_after_s,
    unfinished,
    what_came,
)

__all__ = ["GoogleProvider"]

INFO = PROVIDERS["google"]
API_VERSION = "v1beta"

# A word of the API that is newer than the SDK; it is passed on, and we have a reason UNKNOWN.
warnings.filterwarnings("ignore", message=".* is not a valid ", category=UserWarning, module=r"google\.genai\._common")

FINISH_REASONS = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "CONTINUATION": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
    "BLOCKLIST": FinishReason.CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "SPII": FinishReason.CONTENT_FILTER,
    "ESCALATION": FinishReason.CONTENT_FILTER,
    "MODEL_ARMOR": FinishReason.CONTENT_FILTER,
}

ERRORS: dict[type[Exception], type[ProviderError]] = {
    errors.APIError: RequestRejected,  # refined by status
    errors.ClientError: RequestRejected,
    errors.ServerError: Overloaded,
    errors.UnknownApiResponseError: ProviderUnavailable,
    errors.ContinuationInterruptedError: ProviderUnavailable,
    errors.UnknownFunctionCallArgumentError: RequestRejected,
    errors.UnsupportedFunctionError: RequestRejected,
    errors.FunctionInvocationError: RequestRejected,
    # The SDK passes on what the HTTP library raises.
    httpx2.TimeoutException: ProviderTimeout,
    httpx2.HTTPError: ProviderUnavailable,
    httpx2.StreamError: ProviderUnavailable,
    UnicodeEncodeError: RequestRejected,
    # JSON of another shape (a proxy, another server); pydantic's error is a ValueError.
    ValueError: ProviderUnavailable,
    TypeError: ProviderUnavailable,
    AttributeError: ProviderUnavailable,
    RecursionError: ProviderUnavailable,
}
"""Every class the SDK exports. The nearest one along an exception's own ancestry counts."""

_opened: ContextVar[list[httpx2.Response]] = ContextVar("opened")
"""Where the request that the running task is about to send puts its response."""


class GoogleProvider:
    """Asks Gemini.

    Key and address come from `GEMINI_API_KEY` (or `GOOGLE_API_KEY`) and `GOOGLE_GEMINI_BASE_URL`.
    """

    def __init__(self, timeouts: Timeouts, info: ProviderInfo = INFO) -> None:
        url = base_url(info)
        key = api_key(info)
        self._secrets = (key,)
        self._connect_s = timeouts.connect_s
        # With a client of ours the SDK speaks httpx2 whatever else is installed, and never tries again by itself.
        self._http = httpx2.AsyncClient(
            follow_redirects=True,
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
            event_hooks={"request": [self._limit_connecting], "response": [_keep]},
        )
        self._client = sdk.Client(
            vertexai=False,  # which an environment variable would switch on
            api_key=key,
            http_options=types.HttpOptions(base_url=url, api_version=API_VERSION, httpx_async_client=self._http),
        )

    async def _limit_connecting(self, request: httpx2.Request) -> None:
        # The SDK switches all time-outs off, request by request.
        request.extensions["timeout"]["connect"] = self._connect_s

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names."""
        settings = request.settings
        config: dict[str, Any] = {}
        for name, theirs in (
            ("temperature", "temperature"),
            ("top_p", "topP"),
            ("max_tokens", "maxOutputTokens"),
            ("seed", "seed"),
        ):
            if (value := getattr(settings, name)) is not None:
                config[theirs] = value
        if settings.stop is not None:
            config["stopSequences"] = list(settings.stop)
        thinking: dict[str, Any] = {}
        if settings.think is False:
            thinking["thinkingBudget"] = 0
        else:
            if settings.think or settings.think_budget:
                thinking["includeThoughts"] = True
            if settings.think_budget is not None:
                thinking["thinkingBudget"] = settings.think_budget
            if settings.effort is not None:
                thinking["thinkingLevel"] = settings.effort.upper()
        if thinking:
            config["thinkingConfig"] = thinking
        extra = dict(settings.extra or {})
        if isinstance(more := extra.get("generationConfig"), dict):
            # Beside what the settings say, and not instead of it.
            extra["generationConfig"] = config | more
        return ({"generationConfig": config} if config else {}) | extra

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        opened: list[httpx2.Response] = []
        _opened.set(opened)
        with self._translating(opened):
            chunks = cast(
                "AsyncGenerator[types.GenerateContentResponse]",
                await self._client.aio.models.generate_content_stream(
                    model=request.model, contents=_contents(request.messages), config=self._config(request)
                ),
            )
            try:
                async with aclosing(chunks), aclosing(_deltas(chunks, opened)) as deltas:
                    async for delta in deltas:
                        yield delta
            finally:
                # Closing the SDK's stream alone would leave the connection to the garbage collector.
                for response in opened:
                    await response.aclose()

    def _config(self, request: ModelRequest) -> types.GenerateContentConfig:
        return types.GenerateContentConfig(
            system_instruction=request.system or None,
            # Both would send further requests on their own.
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            # The SDK's own fields change the spelling of some, and know only the levels of the day.
            http_options=types.HttpOptions(extra_body=self.effective_parameters(request)),
        )

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """See `base.Embeds`. The API reports no tokens, and some of its models cut what is too long for them."""
        opened: list[httpx2.Response] = []
        _opened.set(opened)
        with self._translating(opened):
            found = await self._client.aio.models.embed_content(
                model=model, contents=[types.Content(parts=[types.Part(text=text)]) for text in texts]
            )
            return Embedded([each.values or [] for each in found.embeddings or ()])

    async def served_models(self) -> list[str]:
        """Names of the models that the key may use."""
        opened: list[httpx2.Response] = []
        _opened.set(opened)
        with self._translating(opened):
            models = await self._client.aio.models.list()
            return [(model.name or "").removeprefix("models/") async for model in models]

    async def aclose(self) -> None:
        await self._http.aclose()
        self._client.close()

    @contextmanager
    def _translating(self, opened: Sequence[httpx2.Response]) -> Iterator[None]:
        try:
            yield
        except ProviderError:
            raise
        except tuple(ERRORS) as exc:
            said = message_in(kept_json(opened[-1])) if opened else ""
            raise translate(exc, *self._secrets, answered=bool(opened), said=said) from exc


async def _keep(response: httpx2.Response) -> None:
    keep_json(response)
    _opened.get().append(response)


def translate(exc: Exception, *secrets: str, answered: bool = True, said: str = "") -> ProviderError:
    """The SDK's exception as ours, by its type and then by what Google attaches to it.

    Args:
        answered: whether the server has sent anything; before that, a ValueError is about the request.
        said: the text of an error that came in place of a stream. The SDK fails at one whose code is not Google's.
    """
    kind = next(ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS)
    text, status, retry_after = str(exc), None, None
    sent = True
    match exc:
        case errors.APIError():
            text = message_in(exc.details) or f"the server answered with status {exc.code}"
            kind = error_class(exc.code)
            attached = _attached(exc.details)
            # Within a stream the response is the SDK's own, and the HTTP status was 200.
            if isinstance(exc.response, httpx2.Response):
                status = exc.code
                retry_after = retry_after_s(exc.response.headers)
            if retry_after is None:
                retry_after = retry_after_s({"retry-after": str(attached.get("retryDelay", "")).removesuffix("s")})
            if kind is RequestRejected:
                if attached.get("reason") == "API_KEY_INVALID":
                    kind = AuthenticationFailed
                # There is no code for this; only the wording tells.
                elif "exceeds the maximum number of tokens allowed" in text:
                    kind = ContextLengthExceeded
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            sent, text = False, f"no connection to {exc.request.url.host}: {text or type(exc).__name__}"
        case httpx2.HTTPError() | httpx2.StreamError():
            text = f"{CUT_OFF}: {text or type(exc).__name__}"
        case UnicodeEncodeError():
            text = "the request holds text that UTF-8 cannot carry"
        case ValueError() | TypeError() | AttributeError() | RecursionError() if said:
            kind, text = Overloaded, said
        case ValueError() | TypeError() | AttributeError() | RecursionError() if answered:
            text = f"the server sent what the Gemini API does not: {what_came(exc)}"
        case ValueError() | TypeError() | AttributeError() | RecursionError():
            kind = RequestRejected
            text = f"the SDK does not take this request: {text}"
    return kind(one_line(text, *secrets), provider=INFO.name, status=status, retry_after_s=retry_after, sent=sent)


def _attached(body: object) -> dict[str, Any]:
    """What stands in the `details` of an error, all in one: the `reason` of one entry, the `retryDelay` of another."""
    found: dict[str, Any] = {}
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for entry in details if isinstance(details, list) else ():
        if isinstance(entry, dict):
            found |= entry
    return found


def _contents(messages: Sequence[Message]) -> list[Any]:
    sent: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        role, parts = "model" if message.role is Role.ASSISTANT else "user", _parts(message, names)
        # The results of calls made together, and what was said after them, belong into one content.
        if sent and sent[-1]["role"] == role:
            sent[-1]["parts"] += parts
        else:
            sent.append({"role": role, "parts": parts})
    return sent


def _parts(message: Message, names: dict[str, str]) -> list[dict[str, Any]]:
    """The parts of a message; `names` keeps what each call was called, for its result."""
    message.content.encode()  # the SDK would send half a surrogate pair as it is
    if (result := message.tool_result) is not None:
        answer = {"error" if result.is_error else "output": result.content}
        name = names.get(result.call_id, "")
        return [{"function_response": {"id": result.call_id, "name": name, "response": answer}}]
    parts: list[dict[str, Any]] = []
    if message.content.strip() or not message.tool_calls:
        parts.append({"text": message.content})
    for call in message.tool_calls:
        names[call.id] = call.name
        parts.append({"function_call": {"id": call.id, "name": call.name, "args": arguments_of(call.arguments)}})
    signatures = [block.signature for block in message.thinking if block.signature is not None]
    if signatures and message.role is Role.ASSISTANT:
        # It came with the first call, or else at the end of the text. Thoughts themselves do not go back.
        signed = next((part for part in parts if "function_call" in part), parts[-1])
        signed["thought_signature"] = b64decode(signatures[-1])
    return parts


async def _deltas(
    chunks: AsyncIterator[types.GenerateContentResponse], opened: Sequence[httpx2.Response]
) -> AsyncGenerator[Delta]:
    reason: types.FinishReason | None = None
    model = request_id = None
    usage = Usage()
    calls = 0
    reply_id = ReplyId()
    async for chunk in chunks:
        if reply_id.is_another(chunk.response_id) and reason is None:
            raise begun_again(INFO.name)
        ended = reason is not None
        model, request_id = chunk.model_version or model, chunk.response_id or request_id
        # Every chunk counts anew what there is so far.
        if chunk.usage_metadata is not None and (now := _usage(chunk.usage_metadata)) != usage:
            usage = now
            yield UsageDelta(usage)
        if (feedback := chunk.prompt_feedback) is not None and feedback.block_reason is not None:
            why = feedback.block_reason_message or f"the prompt was blocked: {feedback.block_reason.value}"
            raise ContentFiltered(one_line(why), provider=INFO.name)
        for candidate in chunk.candidates or ():
            if candidate.index:
                continue  # another reply to the same request
            if ended and candidate.finish_reason is None:
                continue  # some models have a reason in every chunk; after the only one nothing counts
            reason = candidate.finish_reason or reason
            for part in (candidate.content and candidate.content.parts) or ():
                if part.text:
                    yield ThinkingDelta(part.text) if part.thought else TextDelta(part.text)
                if part.thought_signature:
                    yield ThinkingDelta("", signature=b64encode(part.thought_signature).decode())
                if (call := part.function_call) is not None:
                    # A call comes whole.
                    arguments = msgspec.json.encode(call.args or {}).decode()
                    yield ToolCallDelta(calls, id=call.id or f"call_{calls}", name=call.name or "", arguments=arguments)
                    calls += 1
    if reason is None:
        raise unfinished(opened[-1].headers, INFO.name)
    kind = FINISH_REASONS.get(reason.value, FinishReason.UNKNOWN)
    if calls and kind is FinishReason.STOP:
        kind = FinishReason.TOOL_CALLS
    yield Finish(reason=kind, model=model, request_id=request_id)


def _usage(reported: types.GenerateContentResponseUsageMetadata) -> Usage:
    written = (reported.candidates_token_count, reported.thoughts_token_count)
    return Usage(
        prompt_tokens=reported.prompt_token_count,
        completion_tokens=sum(count or 0 for count in written) if written != (None, None) else None,
        thinking_tokens=reported.thoughts_token_count,
        cached_tokens=reported.cached_content_token_count,
    )
