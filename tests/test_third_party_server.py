"""The adapters against a mock server that nobody here wrote: npm's `@copilotkit/aimock`.

It is looked for in the folder that `PIDGIN_AIMOCK` names, or in the current one, where `npm install` puts it.
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

from pidgin_cli.core.errors import Overloaded, ProviderUnavailable, RateLimited
from pidgin_cli.core.types import FinishReason, Message, ModelRequest, ModelResponse, Role, TextDelta, Timeouts, fold
from pidgin_cli.providers import anthropic, ollama, openai

ADAPTERS: dict[str, Callable[[Timeouts], Any]] = {
    "anthropic": anthropic.AnthropicProvider,
    "openai": openai.OpenAIProvider,
    "ollama": ollama.OllamaProvider,
}
ALL = pytest.mark.parametrize("name", ADAPTERS)
SAID = "A reply that takes more than one piece, from a stranger's server."

FIXTURES = [
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
    program = Path(os.environ.get("PIDGIN_AIMOCK", ".")) / "node_modules" / ".bin" / "llmock"
    if not program.exists():
        pytest.skip("npm package @copilotkit/aimock is neither in ./node_modules nor where PIDGIN_AIMOCK points")
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
async def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """Asks the server a question through an adapter."""
    for variable in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OLLAMA_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OLLAMA_HOST", url)
    providers = {name: adapter(Timeouts()) for name, adapter in ADAPTERS.items()}

    async def ask(name: str, text: str, **more: Any) -> ModelResponse:
        request = ModelRequest(model="claude-opus-5", messages=(Message(Role.USER, text),), **more)
        deltas = [delta async for delta in providers[name].stream_response(request)]
        assert sum(isinstance(delta, TextDelta) for delta in deltas) > 1
        return fold(deltas)

    yield ask
    for provider in providers.values():
        await provider.aclose()


def journal(url: str) -> list[str]:
    """The bodies of all requests that the server received, as text."""
    with urllib.request.urlopen(f"{url}/__aimock/journal", timeout=10) as answer:
        return [json.dumps(entry["body"]) for entry in json.load(answer)]


@ALL
async def test_a_reply_is_streamed(name: str, ask: Callable[..., Any], url: str):
    """Text in pieces, a natural end, and the server's own journal shows the prompts it was sent."""
    response = await ask(name, f"Hello through {name}.", system="Be brief.")
    assert response.message.content == SAID
    assert response.finish.reason is FinishReason.STOP
    last = (await asyncio.to_thread(journal, url))[-1]
    assert "Be brief." in last
    assert f"Hello through {name}." in last


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
