"""Adapters and whole conversations against a mock server that nobody here wrote: npm's `@copilotkit/aimock`.

It is looked for in the folder that `PIDGIN_AIMOCK` names, or in the repository, where `make test` puts it. Its gaps: no
usage in the shapes of Anthropic and Ollama, and Ollama's thinking in a field that the SDK does not read.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import check_record, converse, experiment, messages, of_type

from pidgin_cli.core.errors import Overloaded, ProviderUnavailable, RateLimited
from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
)
from pidgin_cli.core.types import FinishReason, Message, ModelRequest, ModelResponse, Role, TextDelta, Timeouts, fold
from pidgin_cli.providers import anthropic, google, ollama, openai
from pidgin_cli.spec.conversation import ConversationSpec

ADAPTERS: dict[str, Callable[[Timeouts], Any]] = {
    "anthropic": anthropic.AnthropicProvider,
    "openai": openai.OpenAIProvider,
    "google": google.GoogleProvider,
    "ollama": ollama.OllamaProvider,
}
ALL = pytest.mark.parametrize("name", ADAPTERS)
MODELS = {
    "anthropic": "anthropic:claude-opus-5",
    "openai": "openai:gpt-5.1",
    "google": "google:gemini-3-pro",
    "ollama": "ollama:llama3.2",
}
SAID = "A reply that takes more than one piece, from a stranger's server."


def _once(words: str, **fixture: Any) -> list[dict[str, Any]]:
    """What comes for the first request that holds these words and the provider's name; the next one is answered."""
    return [
        {"match": {"userMessage": f"{words} {name}", "sequenceIndex": 0}, "response": {"content": SAID}} | fixture
        for name in ADAPTERS
    ]


def _error(status: int, text: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, "type": kind}, "status": status} | more


FIXTURES = [
    *_once("once too fast", response=_error(429, "Slow down, please.", "rate_limit_error", retryAfter=1)),
    *_once("once busy", response=_error(529, "Overloaded", "overloaded_error")),
    *_once(
        "once cut", truncateAfterChunks=4, latency=20
    ),  # without it, what was written is dropped with the connection
    *_once("once malformed", chaos={"malformedRate": 1.0}),
    *_once("once dropped", chaos={"disconnectRate": 1.0}),
    *(
        {"match": {"userMessage": f"once {what}"}, "response": {"content": SAID}}
        for what in ["too fast", "busy", "cut", "malformed", "dropped"]
    ),
    {
        "match": {"userMessage": "too fast"},
        "response": {
            "error": {"message": "Slow down, please.", "type": "rate_limit_error"},
            "status": 429,
            "retryAfter": 3,
        },
    },
    {
        "match": {"userMessage": "busy"},
        "response": {"error": {"message": "Overloaded", "type": "overloaded_error"}, "status": 529},
    },
    {"match": {"userMessage": "cut"}, "response": {"content": SAID}, "truncateAfterChunks": 3},
    {"match": {"userMessage": "think"}, "response": {"content": SAID, "reasoning": "Let me see."}},
    {"match": {"endpoint": "chat"}, "response": {"content": SAID}},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server, or a skip that names what is absent."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    root = os.environ.get("PIDGIN_AIMOCK") or Path(__file__).parent.parent
    program = Path(root) / "node_modules" / ".bin" / "llmock"
    if not program.exists():
        pytest.skip("npm package @copilotkit/aimock is not installed; make test installs it")
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": FIXTURES}))
    command = [node, str(program), "-p", "0", "-h", "127.0.0.1", "-f", str(fixtures), "--validate-on-load", "-c", "12"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            found = next((m for line in process.stdout if (m := re.search(r"listening on (http://\S+)", line))), None)
            assert found is not None, "aimock ended before it listened"
            yield found[1]
        finally:
            process.terminate()
            process.stdout.read()


@pytest.fixture
def _sent_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All providers are at the server."""
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "GOOGLE_", "GEMINI_", "OLLAMA_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    monkeypatch.setenv("OLLAMA_HOST", url)


@pytest.fixture
async def ask(_sent_there: None) -> AsyncIterator[Callable[..., Any]]:
    """Asks the server a question through an adapter."""
    providers = {name: adapter(Timeouts()) for name, adapter in ADAPTERS.items()}

    async def ask(name: str, text: str, **more: Any) -> ModelResponse:
        request = ModelRequest(model="claude-opus-5", messages=(Message(Role.USER, text),), **more)
        deltas = [delta async for delta in providers[name].stream_response(request)]
        assert sum(isinstance(delta, TextDelta) for delta in deltas) > 1
        return fold(deltas)

    yield ask
    for provider in providers.values():
        await provider.aclose()


def journal(url: str) -> list[dict[str, Any]]:
    """The bodies of all requests for a reply that the server received, in the shape that it gives to them all."""
    with urllib.request.urlopen(f"{url}/__aimock/journal", timeout=10) as answer:
        return [entry["body"] for entry in json.load(answer) if (entry["body"] or {}).get("messages")]


@ALL
async def test_a_reply_is_streamed(name: str, ask: Callable[..., Any], url: str):
    """Text in pieces, a natural end, and the server's own journal shows the prompts it was sent."""
    response = await ask(name, f"Hello through {name}.", system="Be brief.")
    assert response.message.content == SAID
    assert response.finish.reason is FinishReason.STOP
    last = (await asyncio.to_thread(journal, url))[-1]
    assert _spoken(last) == [("system", "Be brief."), ("user", f"Hello through {name}.")]


@pytest.mark.parametrize("name", ["anthropic", "openai"])
async def test_thinking_is_kept_apart(name: str, ask: Callable[..., Any]):
    """Another implementation's thinking lands beside the text. (Its Ollama shape has a field the SDK does not know.)"""
    response = await ask(name, "Please think.")
    assert "".join(block.text for block in response.message.thinking) == "Let me see."
    assert response.message.content == SAID


@ALL
async def test_a_rate_limit_says_when_to_come_back(name: str, ask: Callable[..., Any]):
    """429 with Retry-After, in each vendor's own error shape."""
    with pytest.raises(RateLimited, match=r"Slow down, please\.") as caught:
        await ask(name, "too fast")
    assert caught.value.retry_after_s == 3


@ALL
async def test_overload_is_overload(name: str, ask: Callable[..., Any]):
    """529 is the provider's trouble and can be tried again."""
    with pytest.raises(Overloaded, match="Overloaded"):
        await ask(name, "busy")


@ALL
async def test_a_truncated_stream_is_no_reply(name: str, ask: Callable[..., Any]):
    """The connection dies after a few pieces."""
    with pytest.raises(ProviderUnavailable, match="the stream ended before the reply was whole"):
        await ask(name, "cut")


# Whole conversations


def _spoken(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each message of a journal entry."""
    return [
        (
            message["role"],
            content if isinstance(content := message["content"], str) else "".join(b["text"] for b in content),
        )
        for message in body["messages"]
    ]


def _told_by_the_record(events: list[Event]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Model and messages of every request, attempts included, as they follow from the record alone."""
    start = events[0]
    assert isinstance(start, ConversationStartEvent)
    models = {agent.id: agent.model.partition(":")[2] for agent in start.agents}
    opening = ConversationSpec.from_json(start.spec).tagged(start.opening).content
    systems = {event.agent_id: event.text for event in of_type(events, SystemPromptEvent)}
    history: list[tuple[str, str]] = []
    told: list[tuple[str, list[tuple[str, str]]]] = []
    for event in events:
        match event:
            case MessageRequestEvent(agent_id=me):
                sent = [("system", systems[me] or ""), ("user", opening)]
                for agent_id, text in history:
                    if agent_id == me:
                        sent.append(("assistant", text))
                    elif sent[-1][0] == "user":
                        sent[-1] = ("user", f"{sent[-1][1]}\n\n{text}")
                    else:
                        sent.append(("user", text))
                told.append((models[me], sent))
            case RateLimitEvent() | APIErrorEvent(wait_s=float()):
                told.append(told[-1])
            case MessageCompleteEvent():
                history.append((event.agent_id, event.message.content))
    return told


async def _converse_and_compare(url: str, where: Path, name: str, other: str, **keys: Any) -> list[Event]:
    """A conversation that completes, its record legal, and the journal equal to what the record says was sent."""
    before = len(await asyncio.to_thread(journal, url))
    agents = {"a": {"system_prompt": "You are first."}, "b": {"system_prompt": "You are second."}}
    spec = experiment(MODELS[name], MODELS[other], agents=agents, **keys)
    run = await converse(where, spec)
    check_record(run.events)
    end = of_type(run.events, ConversationEndEvent)[-1]
    assert (end.status, end.end_reason, end.error) == ("completed", "turn_limit", None)
    received = (await asyncio.to_thread(journal, url))[before:]
    assert [(body["model"], _spoken(body)) for body in received] == _told_by_the_record(run.events)
    return run.events


@pytest.mark.usefixtures("_sent_there")
@pytest.mark.parametrize(
    ("name", "other"),
    [("openai", "anthropic"), ("anthropic", "google"), ("google", "ollama"), ("ollama", "openai")],
)
async def test_a_conversation_is_what_its_record_says(name: str, other: str, url: str, tmp_path: Path):
    """Six messages between two vendors; a stranger's journal of what arrived equals what follows from the record."""
    events = await _converse_and_compare(url, tmp_path, name, other)
    assert [event.message.content for event in messages(events)] == [SAID] * 6
    assert [event.model_requested for event in messages(events)] == [MODELS[name], MODELS[other]] * 3


@pytest.mark.usefixtures("_sent_there")
@ALL
async def test_a_conversation_waits_out_a_rate_limit(name: str, url: str, tmp_path: Path):
    """429 with Retry-After: the wait is the one that was asked for, and the request is made again unchanged."""
    events = await _converse_and_compare(url, tmp_path, name, name, prompt=f"once too fast {name}", max_turns=1)
    [limit] = of_type(events, RateLimitEvent)
    assert (limit.message, limit.status, limit.wait_s) == ("Slow down, please.", 429, 1.0)


@pytest.mark.usefixtures("_sent_there")
@ALL
@pytest.mark.parametrize(
    ("fault", "error", "partial"),
    [
        ("busy", "Overloaded", False),
        ("cut", "ProviderUnavailable", True),
        ("malformed", "ProviderUnavailable", False),
        ("dropped", "ProviderUnavailable", False),
    ],
)
async def test_a_conversation_survives_a_fault(
    fault: str, error: str, partial: bool, name: str, url: str, tmp_path: Path
):
    """529, a cut stream, malformed JSON, a dropped connection: tried again, and no partial text in a message."""
    events = await _converse_and_compare(url, tmp_path, name, name, prompt=f"once {fault} {name}", max_turns=1)
    assert [event.error for event in of_type(events, APIErrorEvent)] == [error]
    assert [bool(event.partial) for event in of_type(events, MessageAbandonedEvent)] == [True] * partial
    assert [event.message.content for event in messages(events)] == [SAID] * 2
