"""OpenAI's Responses API, for the models that do not serve chat completions, through the official SDK.

Nothing is stored at OpenAI, so every request carries the whole conversation, as with chat completions.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import openai as sdk
from openai.types.responses import Response, ResponseStreamEvent, ResponseUsage

from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    LimitsDelta,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageDelta,
)

from .instead import keep_json
from .openai import INFO, OpenAIProvider, broken_off
from .registry import needs_responses
from .wire import begun_again, rate_limits, read_out

__all__ = ["ResponsesProvider", "needs_responses"]


APART = "\n\n"
"""Between two messages of a reply, and two parts of a summary."""
INCOMPLETE = {"max_output_tokens": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}


class ResponsesProvider(OpenAIProvider):
    """Asks GPT through the Responses API. Key and address are those of `OpenAIProvider`."""

    def effective_parameters(self, request: ModelRequest) -> dict[str, Any]:
        """What is sent besides model and text, under the API's own names.

        The API has no name for a thinking budget. It takes neither `stop` nor `seed`, and says so when it gets them.
        """
        settings = request.settings
        parameters: dict[str, Any] = {"store": False}
        for name, theirs in (
            ("temperature", "temperature"),
            ("top_p", "top_p"),
            ("max_tokens", "max_output_tokens"),
            ("seed", "seed"),
        ):
            if (value := getattr(settings, name)) is not None:
                parameters[theirs] = value
        if settings.stop is not None:
            parameters["stop"] = list(settings.stop)
        if settings.think is False:
            parameters["reasoning"] = {"effort": "none"}
        elif settings.effort is not None or settings.think:
            # The models that are only here always think, each with an effort of its own; others have to be told.
            effort = settings.effort or (None if needs_responses(request.model) else "medium")
            parameters["reasoning"] = {"summary": "auto"} | ({"effort": effort} if effort else {})
        if settings.extra:
            parameters["extra"] = settings.extra
        return parameters

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        parameters = self.effective_parameters(request)
        extra = {name: parameters.pop(name) for name in ("stop", "seed") if name in parameters}
        extra |= parameters.pop("extra", {})
        with self._translating():
            stream = await self._client.responses.create(
                model=request.model,
                instructions=request.system or sdk.omit,
                input=_items(request.messages),
                stream=True,
                extra_body=extra or None,
                **parameters,
            )
            keep_json(stream.response)
            async with stream, aclosing(_deltas(stream)) as deltas:
                if limits := rate_limits(stream.response.headers):
                    yield LimitsDelta(limits)
                async for delta in deltas:
                    yield delta


def _items(messages: Sequence[Message]) -> list[Any]:
    sent: list[Any] = []
    for message in messages:
        if (result := message.tool_result) is not None:
            sent.append({"type": "function_call_output", "call_id": result.call_id, "output": result.content})
            continue
        if message.content.strip() or not message.tool_calls:
            sent.append({"role": str(message.role), "content": message.content})
        sent += (
            {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments or "{}"}
            for call in message.tool_calls
        )
    return sent


async def _deltas(stream: sdk.AsyncStream[ResponseStreamEvent]) -> AsyncGenerator[Delta]:
    response: Response | None = None
    summary: tuple[int, int] | None = None
    message: int | None = None
    told: list[str] = []
    begun: set[str] = set()
    came = called = refused = False
    events = aiter(stream)
    async for event in events:
        match event.type:
            case "response.created":
                if came:
                    raise begun_again(INFO.name)
            case (
                "response.output_text.delta"
                | "response.output_text.done"
                | "response.refusal.delta"
                | "response.refusal.done"
            ):
                if said := _said(event, begun):
                    refused = refused or event.type.startswith("response.refusal")
                    index = getattr(event, "output_index", None)  # not every server has it
                    if told and index != message:
                        told.append(APART)
                        yield TextDelta(APART)
                    came, message = True, index
                    told.append(said)
                    yield TextDelta(said)
            case "response.reasoning_summary_text.delta" | "response.reasoning_summary_text.done":
                if said := _said(event, begun):
                    # A summary comes in parts, with nothing in between.
                    part = (event.output_index, event.summary_index)
                    if summary not in (None, part):
                        yield ThinkingDelta(APART)
                    came, summary = True, part
                    yield ThinkingDelta(said)
            case "response.reasoning_text.delta" | "response.reasoning_text.done":
                if said := _said(event, begun):
                    came = True
                    yield ThinkingDelta(said)
            case "response.output_item.added" if event.item.type == "function_call":
                came = called = True
                call = event.item
                yield ToolCallDelta(event.output_index, id=call.call_id, name=call.name, arguments=call.arguments)
            case "response.function_call_arguments.delta":
                yield ToolCallDelta(event.output_index, arguments=event.delta)
            case "response.completed" | "response.incomplete":
                response = event.response
                if response.usage is not None:
                    yield UsageDelta(_usage(response.usage))
                break
            case "response.failed":
                error = event.response.error
                raise _error(stream, error.message, error.code) if error else _error(stream, None, None)
            case "error":
                raise _error(stream, event.message, event.code)
    if response is None:
        raise broken_off(stream)
    await read_out(events)
    # Where a server streams nothing of a message, only this has it. One that tells of other messages than it has
    # streamed is taken by what it streamed.
    text, refusal = _text(response)
    if len(text) > (length := sum(map(len, told))) and text.startswith("".join(told)):
        refused = refused or refusal
        yield TextDelta(text[length:])
    reason = FinishReason.TOOL_CALLS if called else FinishReason.REFUSAL if refused else FinishReason.STOP
    if response.status == "incomplete":
        details = response.incomplete_details
        reason = INCOMPLETE.get((details and details.reason) or "", FinishReason.UNKNOWN)
    yield Finish(
        reason=reason,
        model=response.model,
        request_id=stream.response.headers.get("x-request-id") or response.id,
    )


def _said(event: Any, begun: set[str]) -> Any:
    """What an event adds to its part: a piece, or at its end all of it if it came without pieces.

    Args:
        begun: the kinds of parts of which pieces have come and no end.
    """
    kind, _, step = event.type.rpartition(".")
    if step == "delta":
        begun.add(kind)
        return event.delta
    if kind in begun:
        begun.discard(kind)
        return None
    return getattr(event, "refusal" if kind == "response.refusal" else "text", None)


def _text(response: Response) -> tuple[str, bool]:
    """What a response has in its messages, and whether it is a refusal."""
    messages: list[str] = []
    refused = False
    for item in response.output or ():
        parts: list[Any] = (getattr(item, "content", None) or []) if item.type == "message" else []
        texts = [getattr(part, "text", None) or getattr(part, "refusal", None) for part in parts]
        refused = refused or any(part.type == "refusal" for part in parts)
        messages.append("".join(text for text in texts if isinstance(text, str)))
    return APART.join(filter(None, messages)), refused


def _error(stream: sdk.AsyncStream[Any], message: str | None, code: str | None) -> sdk.APIError:
    """An error that came as an event, as the SDK raises those of chat completions."""
    message = message or "the reply failed"
    return sdk.APIError(message, stream.response.request, body={"message": message, "code": code})


def _usage(reported: ResponseUsage) -> Usage:
    # Compatible servers leave the details out, whatever the SDK's types say.
    read, written = reported.input_tokens_details, reported.output_tokens_details
    return Usage(
        prompt_tokens=reported.input_tokens,
        completion_tokens=reported.output_tokens,
        thinking_tokens=getattr(written, "reasoning_tokens", None),
        cached_tokens=getattr(read, "cached_tokens", None),
        cache_write_tokens=getattr(read, "cache_write_tokens", None),
    )
