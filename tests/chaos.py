"""Every fault a provider can have, in the middle of a whole conversation, with the real SDKs over loopback.

    python tests/chaos.py --write docs/reference/chaos.json

writes what happens, which `docs/reference/failures.md` shows and `test_chaos.py` holds Pidgin to. In each conversation
an agent at the provider talks with `local:test`; its first reply is fine, and its second request meets the fault:
`once`, or `always`.
"""

import asyncio
import json
import logging
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from loopback import LoopbackServer, Reply
from support import Run, check_record, converse, experiment, messages, of_type

from pidgin_cli.core.events import APIErrorEvent, ConversationEndEvent, MessageAbandonedEvent, RateLimitEvent
from pidgin_cli.core.types import Timeouts
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.registry import ProviderInfo, ProviderPool

__all__ = ["COMMITTED", "FAULTS", "PROVIDERS", "dump", "observe"]

COMMITTED = Path(__file__).parent.parent / "docs" / "reference" / "chaos.json"
PATIENCE_S = 25.0
"""No conversation may take longer, whatever the fault."""
ATTEMPTS = 3
RETRY_AFTER_S = 0.05

PROVIDERS = {
    "anthropic": "anthropic:claude-opus-5",
    "openai": "openai:gpt-5.1",
    "openai (Responses)": "openai:gpt-5-pro",
    "google": "google:gemini-3-pro",
    "xai": "xai:grok-4",
    "ollama": "ollama:llama3.2",
}
PIECES = ["Half ", "of ", "this ", "reply ", "may ", "be ", "lost ", "on ", "the ", "way."]
EVENT_BEFORE_TEXT = {"anthropic": 4, "openai": 3, "openai (Responses)": 5, "google": 2, "xai": 3, "ollama": 2}
"""So many events of a stream hold the first words."""


class Fault(NamedTuple):
    """Something that goes wrong."""

    replies: Callable[[str], Reply | None]
    """What each provider's server does; None: there is no such thing there."""
    first_token_s: float = 20.0
    gap_s: float = 20.0
    down: bool = False
    """Nothing listens at the address at all, so the conversation does not get as far as a first reply."""


def refused(**by_provider: tuple[int, Any]) -> Callable[[str], Reply | None]:
    """Status and error body of each provider; those of `openai` hold for Responses too."""

    def reply(provider: str) -> Reply | None:
        given = by_provider.get(provider.partition(" ")[0])
        return None if given is None else Reply(status=given[0], body=given[1])

    return reply


def anthropic_error(kind: str, text: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": text}}


def openai_error(text: str, kind: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


def google_error(code: int, status: str, text: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": text, "status": status, "details": list(details)}}


def xai_error(code: str, text: str) -> dict[str, Any]:
    return {"code": code, "error": text}


def busy(status: int, text: str, kind: str, **headers: str) -> Callable[[str], Reply]:
    """The same status from all."""

    def reply(provider: str) -> Reply:
        bodies = {
            "anthropic": anthropic_error(kind, text),
            "google": google_error(status, kind.upper(), text),
            "xai": xai_error(kind, text),
            "ollama": {"error": text},
        }
        body = bodies.get(provider, openai_error(text, kind))
        return Reply(
            status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return reply


def everywhere(**fields: Any) -> Callable[[str], Reply]:
    return lambda _: Reply(**({"text": PIECES} | fields))


def after_first_words(**fields: Any) -> Callable[[str], Reply]:
    """`fields` may hold the count of events as None, or as the first of a pair."""

    def reply(provider: str) -> Reply:
        at = EVENT_BEFORE_TEXT[provider]
        return Reply(PIECES, **{name: at if value is None else (at, value) for name, value in fields.items()})

    return reply


def stream(*events: Any) -> Reply:
    """A stream of these events and nothing else."""
    text = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    return Reply(body=text.encode(), headers={"Content-Type": "text/event-stream"})


def no_choices(provider: str) -> Reply | None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}
    match provider:
        case "google":
            return stream({"candidates": [], "modelVersion": "gemini-3-pro"})
        case "openai" | "xai":
            return stream(chunk, "[DONE]")
    return None


def broken_json(provider: str) -> Reply:
    lines = {"ollama": '{"half": \n', "anthropic": 'event: content_block_delta\ndata: {"half": \n\n'}
    return Reply(PIECES, insert=(EVENT_BEFORE_TEXT[provider], lines.get(provider, 'data: {"half": \n\n')))


def number_for_text(provider: str) -> Reply:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    chunk |= {"choices": [{"index": 0, "delta": {"content": 5}, "finish_reason": None}]}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 5}}
    place = {"item_id": "i", "output_index": 0, "content_index": 0}
    events: dict[str, dict[str, Any]] = {
        "anthropic": delta,
        "openai (Responses)": {"type": "response.output_text.delta", "delta": 5} | place,
        "google": {"candidates": [{"content": {"parts": [{"text": 5}], "role": "model"}, "index": 0}]},
        "ollama": {"model": "m", "message": {"role": "assistant", "content": 5}, "done": False},
    }
    return Reply(PIECES, insert=(EVENT_BEFORE_TEXT[provider], events.get(provider, chunk)))


def filtered(provider: str) -> Reply | None:
    if provider in ("anthropic", "ollama"):
        return None
    return Reply(PIECES, finish="SAFETY" if provider == "google" else "content_filter")


def refusing(provider: str) -> Reply | None:
    match provider:
        case "anthropic":
            return Reply(PIECES, finish="refusal")
        case "openai" | "openai (Responses)":
            return Reply("", refusal="I will not.")
    return None


def blocked(provider: str) -> Reply | None:
    if provider == "google":
        return Reply(block_reason="PROHIBITED_CONTENT")
    policy = "Invalid prompt: your prompt was flagged as potentially violating our usage policy."
    return refused(
        anthropic=(400, anthropic_error("invalid_request_error", "Output blocked by content filtering policy")),
        openai=(400, openai_error(policy, "invalid_request_error", "invalid_prompt")),
        xai=(
            403,
            xai_error(
                "The caller does not have permission to execute the specified operation",
                "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO",
            ),
        ),
    )(provider)


XAI_BAD = "Client specified an invalid argument"

FAULTS: dict[str, Fault] = {
    "wrong key": Fault(
        refused(
            anthropic=(401, anthropic_error("authentication_error", "invalid x-api-key")),
            openai=(
                401,
                openai_error("Incorrect API key provided: sk-w****rong.", "invalid_request_error", "invalid_api_key"),
            ),
            google=(
                400,
                google_error(
                    400,
                    "INVALID_ARGUMENT",
                    "API key not valid. Please pass a valid API key.",
                    {"reason": "API_KEY_INVALID"},
                ),
            ),
            xai=(400, xai_error(XAI_BAD, "Incorrect API key provided: xa***ng.")),
            ollama=(401, {"error": "unauthorized"}),
        )
    ),
    "unknown model": Fault(
        refused(
            anthropic=(404, anthropic_error("not_found_error", "model: claude-opus-5")),
            openai=(404, openai_error("The model does not exist.", "invalid_request_error", "model_not_found")),
            google=(404, google_error(404, "NOT_FOUND", "models/gemini-3-pro is not found for API version v1beta.")),
            xai=(404, xai_error("Some requested entity was not found", "The model grok-4 does not exist.")),
            ollama=(404, {"error": "model 'llama3.2' not found"}),
        )
    ),
    "refused parameter": Fault(
        refused(
            anthropic=(400, anthropic_error("invalid_request_error", "temperature: this model takes none")),
            openai=(
                400,
                openai_error("Unsupported parameter: 'temperature'.", "invalid_request_error", "unsupported_parameter"),
            ),
            google=(400, google_error(400, "INVALID_ARGUMENT", "Temperature is not supported by this model.")),
            xai=(400, xai_error(XAI_BAD, "Argument not supported on this model: stop")),
            ollama=(400, {"error": '"llama3.2" does not support thinking'}),
        )
    ),
    "request longer than the context": Fault(
        refused(
            anthropic=(
                400,
                anthropic_error("invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
            ),
            openai=(
                400,
                openai_error(
                    "Your input exceeds the context window.", "invalid_request_error", "context_length_exceeded"
                ),
            ),
            google=(
                400,
                google_error(
                    400,
                    "INVALID_ARGUMENT",
                    "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
                ),
            ),
            xai=(
                400,
                xai_error(
                    XAI_BAD,
                    "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
                ),
            ),
            ollama=(400, {"error": "the input length exceeds the context length"}),
        )
    ),
    "prompt blocked by the filter": Fault(blocked),
    "429 with Retry-After": Fault(
        busy(429, "Too many requests.", "rate_limit_error", Retry_After=str(RETRY_AFTER_S)),
    ),
    "500": Fault(busy(500, "Internal error.", "api_error")),
    "503": Fault(busy(503, "Service unavailable.", "unavailable")),
    "529": Fault(busy(529, "Overloaded.", "overloaded_error")),
    "HTML with 502 from a proxy": Fault(
        everywhere(status=502, body="<html><head><title>502 Bad Gateway</title></head><h1>nginx</h1></html>")
    ),
    "HTML with 200 from a proxy": Fault(everywhere(body="<html><body>Please log in.</body></html>")),
    "error as JSON with 200": Fault(
        refused(
            anthropic=(200, anthropic_error("billing_error", "Your credit balance is too low.")),
            openai=(200, openai_error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota")),
            google=(200, google_error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.")),
            xai=(200, xai_error("Some requested entity was not found", "Your team has no credits.")),
            ollama=(200, {"error": "the model runner has stopped"}),
        )
    ),
    "endpoint down": Fault(everywhere(), down=True),
    "closed before the first byte": Fault(everywhere(cut_after="request")),
    "cut in mid-reply": Fault(after_first_words(cut_after=None)),
    "stream ends without its end": Fault(everywhere(finish="")),
    "malformed line in the stream": Fault(after_first_words(insert="evnt; no such field\n\x07\n\n")),
    "invalid JSON in the stream": Fault(broken_json),
    "number in place of a text": Fault(number_for_text),
    "empty list of choices": Fault(no_choices),
    "hang before the first byte": Fault(everywhere(hang="request"), first_token_s=0.3),
    "hang in mid-reply": Fault(after_first_words(hang=None), gap_s=0.3),
    "model refuses": Fault(refusing),
    "filter ends the reply": Fault(filtered),
    "empty reply": Fault(everywhere(text="")),
    "a million tokens": Fault(everywhere(text=["word " * 500] * 2000)),
}


class _Pool(ProviderPool):
    """Takes the Responses adapter for the models that need it, although they are not asked at OpenAI itself."""

    def __init__(self, responses: bool) -> None:
        super().__init__()
        self._responses = responses

    def _open(self, info: ProviderInfo, path: str, timeouts: Timeouts) -> Provider:
        if self._responses and info.name == "openai":
            path = "pidgin_cli.providers.responses:ResponsesProvider"
        return super()._open(info, path, timeouts)


async def observe(name: str, provider: str) -> dict[str, Any] | None:
    """What happens at this fault, seen in two conversations; None: this provider does not have it."""
    fault = FAULTS[name]
    reply = fault.replies(provider)
    if reply is None:
        return None
    always = await _run(fault, provider, reply, once=False)
    found: dict[str, Any] = _failures(always)
    found["always"] = _end(always)
    # What is over at the first failure, or no failure at all, is no different when it comes once.
    if found.get("retried") and not fault.down:
        found["once"] = _end(await _run(fault, provider, reply, once=True))
    return found


async def _run(fault: Fault, provider: str, reply: Reply, *, once: bool) -> Run:
    spec = experiment(
        PROVIDERS[provider],
        "local:test?words=3",
        max_turns=2,
        retries={"attempts": ATTEMPTS, "base_s": 0.001, "max_wait_s": 0.002},
        timeouts={"connect_s": 20, "first_token_s": fault.first_token_s, "gap_s": fault.gap_s},
    )

    async with LoopbackServer() as server:

        def answer(_: object) -> Reply:
            number = len(server.chats)
            return reply if number == 2 or (number > 2 and not once) else Reply()

        server.reply = answer
        environment = server.env | {"XAI_BASE_URL": f"{server.url}/v1", "XAI_API_KEY": "xai-loopback"}
        if fault.down:
            port = _closed_port()
            environment = {name: value.replace(f":{server.port}", f":{port}") for name, value in environment.items()}
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            patch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
            async with asyncio.timeout(PATIENCE_S):
                run = await converse(Path(folder), spec, pool=_Pool(provider == "openai (Responses)"))
    check_record(run.events)
    return run


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _failures(run: Run) -> dict[str, Any]:
    """The errors of the record, all of one kind, or the length of the reply where there are none."""
    errors = [event for event in run.events if isinstance(event, APIErrorEvent | RateLimitEvent)]
    abandoned = of_type(run.events, MessageAbandonedEvent)
    if not errors:
        return {"characters": len(messages(run.events)[2].message.content)}
    last = errors[-1]
    assert isinstance(last, APIErrorEvent), "the last error is final"
    found: dict[str, Any] = {"error": last.error, "message": _stable(last.message), "retried": len(errors) > 1}
    if last.status is not None:
        found["status"] = last.status
    if len(errors) > 1 and all(event.wait_s == RETRY_AFTER_S for event in errors[:-1]):
        found["waits"] = "as told"
    if any(event.partial for event in abandoned):
        found["partial"] = "recorded as abandoned"
    return found


def _stable(text: str) -> str:
    """Without what differs from run to run: ports, and links to one version of a library's manual."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return re.sub(r"\s*For further information visit \S+", "", text)


def _end(run: Run) -> str:
    end = of_type(run.events, ConversationEndEvent)[-1]
    notable = sorted(kind for kind, count in end.notable.items() if count)
    return f"{end.status.value}: {end.end_reason.value}" + (f"; notable: {', '.join(notable)}" if notable else "")


def dump(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each provider, so that a change is easy to see."""
    faults = []
    for fault, by_provider in outcomes.items():
        lines = [
            f"  {json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}" for name, found in by_provider.items()
        ]
        faults.append(f"{json.dumps(fault)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(faults) + "\n}\n"


async def _observe_all() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fault in FAULTS:
        found[fault] = {provider: await observe(fault, provider) for provider in PROVIDERS}
    return found


if __name__ == "__main__":
    logging.disable()
    outcomes = asyncio.run(_observe_all())
    if sys.argv[1:2] == ["--write"]:
        Path(sys.argv[2]).write_text(dump(outcomes), encoding="utf-8")
    else:
        print(dump(outcomes), end="")
