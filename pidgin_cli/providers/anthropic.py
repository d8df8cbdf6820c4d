"""Claude, and any server that speaks the Anthropic Messages API, through the official SDK."""

import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import anthropic as sdk
import httpx2
from anthropic.types import MessageDeltaUsage, RawMessageStreamEvent
from anthropic.types import Usage as MessageUsage

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
    Role,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageDelta,
)

from .base import Timeouts
from .instead import keep_json, kept_json
from .model_rules import default_max_tokens, thinks_adaptively, without_thinking
from .registry import PROVIDERS, ProviderInfo
from .validation import token_count
from .wire import (
    CUT_OFF,
    api_key,
    arguments_of,
    base_url,
    begun_again,
    error_class,
    message_in,
    one_line,
    rate_limits,
    read_out,
    retry_after_s,
    unfinished,
    what_came,
)

__all__ = ["AnthropicProvider", "default_max_tokens"]

INFO = PROVIDERS["anthropic"]
DEFAULT_THINK_BUDGET = 4096
SAMPLING = frozenset({"temperature", "top_p", "top_k"})
SAMPLING_VERSION = "2023-06-01"
"""The newest version of the API, as its header names them, that takes sampling parameters."""

# Advice of the SDK to programmers, which would land in the middle of a conversation on the screen.
warnings.filterwarnings("ignore", message="Using Claude with .* is deprecated", category=UserWarning)

FINISH_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.REFUSAL,
}

ERRORS: dict[type[Exception], type[ProviderError]] = {
    sdk.AnthropicError: ProviderUnavailable,
    sdk.RetryableError: ProviderUnavailable,
    sdk.CredentialsError: AuthenticationFailed,
    sdk.IdentityTokenFileError: AuthenticationFailed,
    sdk.WorkloadIdentityError: AuthenticationFailed,
    sdk.APIError: ProviderUnavailable,
    sdk.APIConnectionError: ProviderUnavailable,
    sdk.APITimeoutError: ProviderTimeout,
    sdk.APIResponseValidationError: ProviderUnavailable,
    sdk.APIWebhookValidationError: RequestRejected,
    sdk.APIStatusError: RequestRejected,  # refined by status, or by type within a stream
    sdk.BadRequestError: RequestRejected,
    sdk.ClaudeCodeKeyCreatorNotMemberError: RequestRejected,
    sdk.ClaudeCodeVersionTooOldError: RequestRejected,
    sdk.CMEKKeyDisabledError: RequestRejected,
    sdk.CMEKKeyNetworkBlockedError: RequestRejected,
    sdk.OrganizationOnHoldError: AuthenticationFailed,
    sdk.OrganizationTypeNotSupportedError: AuthenticationFailed,
    sdk.ParentOrganizationRequiredError: AuthenticationFailed,
    sdk.RequestBodyEncodingInvalidError: RequestRejected,
    sdk.RequestBodyEncodingUnsupportedError: RequestRejected,
    sdk.AuthenticationError: AuthenticationFailed,
    # Without money the key may not use the model, and asking again does not help.
    sdk.PaymentRequiredError: AuthenticationFailed,
    sdk.LinkedOrganizationBillingUnavailableError: AuthenticationFailed,
    sdk.LinkedOrganizationSpendLimitReachedError: AuthenticationFailed,
    sdk.ContractSpendLimitReachedError: AuthenticationFailed,
    sdk.EnforcedSpendLimitReachedError: AuthenticationFailed,
    sdk.PermissionDeniedError: AuthenticationFailed,
    sdk.SandboxEgressRestrictedError: AuthenticationFailed,
    sdk.NotFoundError: RequestRejected,
    sdk.RequestTimeoutError: ProviderTimeout,
    sdk.ConflictError: Overloaded,
    sdk.PreconditionFailedError: RequestRejected,
    sdk.ContentTooLargeError: ContextLengthExceeded,
    sdk.RequestBodyTooLargeAfterDecodingError: ContextLengthExceeded,
    sdk.UnprocessableEntityError: RequestRejected,
    sdk.RateLimitError: RateLimited,
    sdk.RampLimitExceededError: RateLimited,
    sdk.RequestHeaderFieldsTooLargeError: RequestRejected,
    sdk.ClientClosedRequestError: ProviderUnavailable,
    sdk.InternalServerError: Overloaded,
    sdk.HTTPNotImplementedError: RequestRejected,
    sdk.ServiceUnavailableError: Overloaded,
    sdk.CMEKContextUnavailableError: Overloaded,
    sdk.CMEKKeyUnreachableError: Overloaded,
    sdk.GatewayTimeoutError: Overloaded,
    sdk.OverloadedError: Overloaded,
    # A stream that is cut midway leaves the SDK as it comes from the HTTP library.
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

STREAM_ERRORS: dict[str, type[ProviderError]] = {
    "invalid_request_error": RequestRejected,
    "authentication_error": AuthenticationFailed,
    "billing_error": AuthenticationFailed,
    "permission_error": AuthenticationFailed,
    "not_found_error": RequestRejected,
    "request_too_large": ContextLengthExceeded,
    "rate_limit_error": RateLimited,
    "timeout_error": ProviderTimeout,
    "api_error": Overloaded,
    "overloaded_error": Overloaded,
    "conflict_error": Overloaded,
}
"""`error.type` of an error event; the HTTP status was 200 by then."""


class AnthropicProvider:
    """Asks Claude.

    Key and address come from `ANTHROPIC_API_KEY` (or `ANTHROPIC_AUTH_TOKEN`) and `ANTHROPIC_BASE_URL`.
    """

    def __init__(self, timeouts: Timeouts, info: ProviderInfo = INFO) -> None:
        url = base_url(info)
        token = os.environ.get("ANTHROPIC_AUTH_TOKEN")
        key = None if token and not os.environ.get("ANTHROPIC_API_KEY") else api_key(info)
        self._secrets = (key or "", token or "")
        self._client = sdk.AsyncAnthropic(
            api_key=key,
            auth_token=None if key else token,
            base_url=url,
            timeout=httpx2.Timeout(None, connect=timeouts.connect_s),
            max_retries=0,
        )

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names, defaults of ours included."""
        settings = request.settings
        max_tokens = settings.max_tokens if settings.max_tokens is not None else default_max_tokens(request.model)
        # The beginning of every request is the one before: read from the cache it costs a tenth.
        parameters: dict[str, Any] = {"max_tokens": max_tokens, "cache_control": {"type": "ephemeral"}}
        for name in ("temperature", "top_p"):
            if (value := getattr(settings, name)) is not None:
                parameters[name] = value
        if settings.stop is not None:
            parameters["stop_sequences"] = list(settings.stop)
        if settings.effort is not None:
            parameters["output_config"] = {"effort": settings.effort}
        if settings.think is False:
            parameters["thinking"] = {"type": without_thinking(request.model) or "disabled"}
        elif settings.think_budget is not None:
            # A budget that was asked for is sent; a model that takes none says so.
            parameters["thinking"] = {"type": "enabled", "budget_tokens": settings.think_budget}
        elif settings.think and thinks_adaptively(request.model):
            # Newer models keep their thinking to themselves unless asked.
            parameters["thinking"] = {"type": "adaptive", "display": "summarized"}
        elif settings.think:
            budget = min(DEFAULT_THINK_BUDGET, max_tokens - 1)
            parameters["thinking"] = {"type": "enabled", "budget_tokens": budget}
        if settings.extra:
            parameters["extra"] = settings.extra
        return parameters

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        parameters = self.effective_parameters(request)
        # SDK 2 has no arguments for these.
        extra = {name: parameters.pop(name) for name in ("temperature", "top_p") if name in parameters}
        extra |= parameters.pop("extra", {})
        # The version of the API that SDK 2 names refuses them for every model, whatever their value.
        version = {"anthropic-version": SAMPLING_VERSION} if SAMPLING & extra.keys() else None
        with self._translating():
            stream = await self._client.messages.create(
                model=request.model,
                messages=_messages(request.messages),
                system=request.system or sdk.omit,
                stream=True,
                extra_headers=version,
                extra_body=extra or None,
                **parameters,
            )
            keep_json(stream.response)
            async with stream, aclosing(_deltas(stream)) as deltas:
                if limits := rate_limits(stream.response.headers):
                    yield LimitsDelta(limits)
                async for delta in deltas:
                    yield delta

    async def served_models(self) -> list[str]:
        """Names of the models that the account may use."""
        with self._translating():
            return [model.id async for model in self._client.models.list()]

    async def aclose(self) -> None:
        await self._client.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except ProviderError:
            raise
        except tuple(ERRORS) as exc:
            raise translate(exc, *self._secrets) from exc


def translate(exc: Exception, *secrets: str) -> ProviderError:
    """The SDK's exception as ours, by its type."""
    kind = next(ERRORS[cls] for cls in type(exc).__mro__ if cls in ERRORS)
    text, status, retry_after = str(exc), None, None
    limits: tuple[RateLimit, ...] = ()
    sent = True
    match exc:
        case sdk.APIStatusError():
            text = message_in(exc.body) or f"the server answered with status {exc.status_code}"
            retry_after, limits = retry_after_s(exc.response.headers), rate_limits(exc.response.headers)
            if exc.status_code < 400:
                kind = STREAM_ERRORS.get(str(exc.type), Overloaded)
            else:
                status = exc.status_code
                if type(exc) is sdk.APIStatusError:
                    kind = error_class(status)
            if kind is RequestRejected:
                # The vendor has one code, invalid_request_error, for all of these; only the wording tells.
                if "prompt is too long" in text or "exceed context limit" in text:
                    kind = ContextLengthExceeded
                elif "content filtering policy" in text:
                    kind = ContentFiltered
        case sdk.APIConnectionError():
            cause = exc.__cause__ or exc
            sent = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            what = CUT_OFF if sent else f"no connection to {exc.request.url.host}"
            text = f"{what}: {str(cause) or type(cause).__name__}"
        case httpx2.HTTPError() | httpx2.StreamError():
            text = f"{CUT_OFF}: {text or type(exc).__name__}"
        case UnicodeEncodeError():
            text = "the request holds text that UTF-8 cannot carry"
        case ValueError() | TypeError() | AttributeError() | RecursionError():
            text = f"the server sent what the Anthropic API does not: {what_came(exc)}"
    return kind(
        one_line(text, *secrets),
        provider=INFO.name,
        status=status,
        retry_after_s=retry_after,
        limits=limits,
        sent=sent,
    )


def _messages(messages: Sequence[Message]) -> list[Any]:
    sent: list[Any] = []
    for message in messages:
        if message.tool_result is not None:
            result = message.tool_result
            block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id, "content": result.content}
            if result.is_error:
                block["is_error"] = True
            # The results of calls made together belong into one message.
            if sent and sent[-1]["role"] == "user" and isinstance(sent[-1]["content"], list):
                sent[-1]["content"].append(block)
            else:
                sent.append({"role": "user", "content": [block]})
            continue
        blocks: list[Any] = [
            {"type": "redacted_thinking", "data": thought.signature}
            if thought.redacted
            else {"type": "thinking", "thinking": thought.text, "signature": thought.signature}
            for thought in message.thinking
            if thought.signature is not None and message.role is Role.ASSISTANT
        ]
        if message.tool_calls or blocks:
            if message.content.strip():
                blocks.append({"type": "text", "text": message.content})
            blocks += (
                {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call.arguments)}
                for call in message.tool_calls
            )
        sent.append({"role": str(message.role), "content": blocks or message.content})
    return sent


async def _deltas(stream: sdk.AsyncStream[RawMessageStreamEvent]) -> AsyncGenerator[Delta]:
    reason: str | None = None
    model = request_id = None
    counted: dict[str, int] = {}
    said = whole = False
    events = aiter(stream)
    async for event in events:
        match event.type:
            case "message_start":
                if said:
                    raise begun_again(INFO.name)
                model, request_id = event.message.model, event.message.id
                # Its count of output tokens is that of a reply just begun.
                if usage := _usage(event.message.usage, counted, output=False):
                    yield UsageDelta(usage)
            case "content_block_start":
                said = True
                block = event.content_block
                if block.type == "text" and block.text:
                    yield TextDelta(block.text)
                elif block.type == "thinking" and block.thinking:
                    yield ThinkingDelta(block.thinking)
                elif block.type == "redacted_thinking":
                    yield ThinkingDelta("", signature=block.data, redacted=True)
                elif block.type == "tool_use":
                    yield ToolCallDelta(event.index, id=block.id, name=block.name)
            case "content_block_delta":
                delta = event.delta
                if delta.type == "text_delta" and delta.text:
                    yield TextDelta(delta.text)
                elif delta.type == "thinking_delta" and delta.thinking:
                    yield ThinkingDelta(delta.thinking)
                elif delta.type == "signature_delta":
                    yield ThinkingDelta("", signature=delta.signature)
                elif delta.type == "input_json_delta":
                    yield ToolCallDelta(event.index, arguments=delta.partial_json)
            case "message_delta":
                reason = event.delta.stop_reason or reason
                if usage := _usage(event.usage, counted, output=True):
                    yield UsageDelta(usage)
            case "message_stop":
                whole = True
                break
    if not whole:
        body = kept_json(stream.response)
        if text := message_in(body):
            raise sdk.APIStatusError(text, response=stream.response, body=body)
        raise unfinished(stream.response.headers, INFO.name)
    await read_out(events)
    yield Finish(
        reason=FINISH_REASONS.get(reason or "", FinishReason.UNKNOWN),
        model=model,
        request_id=stream.response.headers.get("request-id") or request_id,
    )


def _usage(reported: MessageUsage | MessageDeltaUsage | None, counted: dict[str, int], *, output: bool) -> Usage | None:
    """All that was reported so far; `counted` keeps the parts of the input, which the API does not repeat."""
    if reported is None:
        return None
    for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        if (count := token_count(getattr(reported, name, None), "a count of input tokens", INFO.name)) is not None:
            counted[name] = count
    details = reported.output_tokens_details
    return Usage(
        prompt_tokens=sum(counted.values()) if "input_tokens" in counted else None,
        completion_tokens=reported.output_tokens if output else None,
        thinking_tokens=details.thinking_tokens if output and details is not None else None,
        cached_tokens=counted.get("cache_read_input_tokens"),
        cache_write_tokens=counted.get("cache_creation_input_tokens"),
    )
