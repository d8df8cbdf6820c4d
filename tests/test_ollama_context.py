"""Ollama drops what does not fit into its context without a word, so that the context is always sent and kept to."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply, Request, Tokens
from msgspec.structs import replace
from ollama_server import GB, OllamaServer
from support import Run, check_record, converse, experiment, of_type, texts

from pidgin_cli.conversation.dialogue import Dialogue
from pidgin_cli.core.events import (
    ContextLimitEvent,
    ContextTruncationEvent,
    HistoryCompactedEvent,
    MessageRequestEvent,
    ModelLoadEvent,
)
from pidgin_cli.core.types import AgentSettings, EndReason, ModelRequest, Timeouts
from pidgin_cli.providers.ollama import DEFAULT_CONTEXT, KEEP_ALIVE_S
from pidgin_cli.providers.registry import ProviderPool, served_window
from pidgin_cli.providers.residency import Residency
from pidgin_cli.spec.catalogue import use_settings
from pidgin_cli.spec.settings import Settings

MODEL = "ollama:llama3.2"


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith(("OLLAMA_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    yield
    use_settings(Settings())


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def sent(server: LoopbackServer) -> list[int]:
    """The contexts that the models were loaded with and asked with."""
    return [each.body["options"]["num_ctx"] for each in server.requests if each.api or each.path == "/api/generate"]


def recorded(run: Run) -> list[dict[str, Any]]:
    return [event.parameters for event in of_type(run.events, MessageRequestEvent) if event.agent_id == "a"]


GIVEN: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": ({}, DEFAULT_CONTEXT),
    "the model has less": ({"length": 2048}, 2048),
    "the model says nothing of itself": ({"length": None}, DEFAULT_CONTEXT),
    "the Modelfile": ({"modelfile": 'stop    "<|eot|>"\nnum_ctx    6000'}, 6000),
    "the settings": ({"settings": 7000, "modelfile": "num_ctx 6000"}, 7000),
    "the conversation": ({"limit": 9000, "settings": 7000}, 9000),
    "the conversation, beyond the model": ({"limit": 9000, "length": 4096}, 4096),
    "the agent": ({"extra": {"num_ctx": 5000}, "limit": 9000, "settings": 7000}, 5000),
    "the agent, as an option": ({"extra": {"options": {"num_ctx": 5000}}, "limit": 9000}, 5000),
}
"""Who says how large the context is, and what comes of it."""


@pytest.mark.parametrize(("given", "expected"), GIVEN.values(), ids=GIVEN.keys())
async def test_the_context_is_sent_and_recorded(
    given: dict[str, Any], expected: int, server: LoopbackServer, tmp_path: Path
) -> None:
    """Agent, conversation, settings, Modelfile, default: the first that says something counts, up to what there is."""
    server.context_length = given.get("length", 131_072)
    server.modelfile = given.get("modelfile", "")
    if "settings" in given:
        use_settings(Settings.model_validate({"models": {MODEL: {"context": given["settings"]}}}))
    agents = {"a": {"extra": given["extra"]}} if "extra" in given else {}
    context = {"context": {"limit_tokens": given["limit"]}} if "limit" in given else {}
    run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=2, agents=agents, **context))
    check_record(run.events)
    assert set(sent(server)) == {expected}
    assert len(server.chats) == 2
    assert [parameters["options"] for parameters in recorded(run)] == [{"num_ctx": expected}] * 2


@pytest.mark.parametrize("given", [{"length": 600}, {"extra": {"num_ctx": 600}}, {"limit": 600}, {"settings": 600}])
@pytest.mark.parametrize("policy", ["stop", "window", "summarise"])
async def test_the_policy_acts_before_ollama_would_cut(
    policy: str, given: dict[str, Any], server: LoopbackServer, tmp_path: Path
) -> None:
    """Wherever the window comes from, no request is ever longer than what was sent as its context."""
    server.context_length = given.get("length", 131_072)
    if "settings" in given:
        use_settings(Settings.model_validate({"models": {MODEL: {"context": given["settings"]}}}))
    cut: list[int] = []

    def speak(request: Request) -> Reply:
        size = sum(len(text.encode()) // 4 + 4 for _, text in request.messages)
        if size > min(request.body["options"]["num_ctx"], server.context_length or 0):
            cut.append(size)
        return Reply("word " * 30, usage=Tokens(size, 40))

    server.reply = speak
    agents: dict[str, Any] = {"a": {"extra": given["extra"]} if "extra" in given else {}}
    context = {"policy": policy, "reserve_tokens": 60} | ({"limit_tokens": given["limit"]} if "limit" in given else {})
    spec = experiment(MODEL, "local:test?words=30", max_turns=20, agents=agents, context=context)
    run = await converse(tmp_path, spec)
    check_record(run.events)
    assert cut == []
    assert run.outcome is not None
    if policy == "stop":
        assert run.outcome.end_reason is EndReason.CONTEXT_LIMIT
        assert of_type(run.events, ContextLimitEvent)[0].limit_tokens == 540
        assert 2 < len(texts(run.events)) < 40
        return
    assert run.outcome.end_reason is EndReason.TURN_LIMIT
    cuts, summaries = of_type(run.events, ContextTruncationEvent), of_type(run.events, HistoryCompactedEvent)
    assert (not cuts, not summaries) == (policy == "summarise", policy == "window")
    applied: list[ContextTruncationEvent | HistoryCompactedEvent] = [*cuts, *summaries]
    assert {event.agent_id for event in applied} == ({"a", "b"} if "limit" in given else {"a"})
    assert {event.limit_tokens for event in applied if event.agent_id == "a"} == {540}
    # A request with another context, that of a summary say, would have Ollama load the model anew.
    assert set(sent(server)) == {600}


async def test_the_smaller_of_two_limits_counts(server: LoopbackServer, tmp_path: Path) -> None:
    """An agent with a larger context is sent it, and the conversation still ends at its own limit."""
    server.reply = lambda _: Reply("word " * 60, usage=Tokens(None, None))
    agents = {"a": {"extra": {"num_ctx": 5000}}}
    context = {"limit_tokens": 600, "reserve_tokens": 60}
    spec = experiment(MODEL, "local:test", max_turns=20, agents=agents, context=context)
    run = await converse(tmp_path, spec)
    check_record(run.events)
    assert set(sent(server)) == {5000}
    assert {event.limit_tokens for event in of_type(run.events, ContextLimitEvent)} == {540}


async def test_a_model_is_looked_at_once(server: LoopbackServer) -> None:
    """All conversations of a process share what the server said of a model; what it could not say is asked again."""
    pool = ProviderPool()
    request = ModelRequest(model="llama3.2", messages=(), context_window=9000)
    adapter = pool.adapter(MODEL, Timeouts())
    try:
        unknown = replace(request, model="later")
        assert await served_window(adapter, unknown) == 9000
        server.installed.append("later:latest")
        server.context_length = 4096
        for _ in range(3):
            assert await served_window(adapter, request) == 4096
            assert await served_window(adapter, unknown) == 4096
    finally:
        await pool.aclose()
    assert [each.path for each in server.requests] == ["/api/show"] * 3


async def test_a_server_that_says_nothing_of_its_models_is_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an answer the default stands, and the conversation goes on."""
    async with OllamaServer({"llama3.2:latest": 3 * GB}, capacity=8 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.failing.add("/api/show")
        run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=1))
        check_record(run.events)
        assert [parameters["options"]["num_ctx"] for parameters in recorded(run)] == [DEFAULT_CONTEXT]
        assert server.happened("chat") == ["llama3.2:latest"]


async def test_a_model_of_the_vendors_cloud_has_all_its_context(server: LoopbackServer, tmp_path: Path) -> None:
    """Its memory is not ours to spare."""
    server.installed.append("big:cloud")
    run = await converse(tmp_path, experiment("ollama:big:cloud", "local:test", max_turns=1))
    check_record(run.events)
    assert set(sent(server)) == {131_072}


@pytest.mark.parametrize(
    ("prompt", "length", "expected"),
    [
        ("Hi.", 131_072, DEFAULT_CONTEXT),
        ("word " * 10_000, 131_072, 2 * DEFAULT_CONTEXT),
        ("word " * 20_000, 131_072, 4 * DEFAULT_CONTEXT),
        ("word " * 20_000, 20_000, 20_000),
    ],
)
async def test_a_single_question_gets_the_context_it_needs(
    prompt: str, length: int, expected: int, server: LoopbackServer
) -> None:
    """A long prompt has a larger context, as far as the model goes; one that was asked for stays as it is."""
    server.context_length = length
    async with Dialogue(MODEL) as dialogue:
        await dialogue.process(prompt)
    async with Dialogue(MODEL, settings=AgentSettings(extra={"num_ctx": 3000})) as dialogue:
        await dialogue.process(prompt)
    assert [request.body["options"]["num_ctx"] for request in server.chats] == [expected, 3000]


# Staying loaded


async def test_a_model_stays_loaded_between_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Load and chats name the same time, longer than Ollama's own, and the record says so."""
    async with OllamaServer({"llama3.2:latest": 3 * GB}, capacity=8 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=2))
        check_record(run.events)
        asked = [each for each in server.requests if each.api or each.path == "/api/generate"]
        assert [each.body["keep_alive"] for each in asked] == [KEEP_ALIVE_S] * 3
        assert {parameters["keep_alive"] for parameters in recorded(run)} == {KEEP_ALIVE_S}
        assert KEEP_ALIVE_S > 300


async def test_extra_reaches_the_request_and_its_options(server: LoopbackServer, tmp_path: Path) -> None:
    """Ollama's own words stand where Ollama wants them: some in the request itself, all others among its options."""
    extra = {"keep_alive": "2h", "format": "json", "top_k": 7, "options": {"min_p": 0.1}}
    run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=1, agents={"a": {"extra": extra}}))
    check_record(run.events)
    body = server.chats[0].body
    assert (body["keep_alive"], body["format"]) == ("2h", "json")
    assert body["options"] == {"num_ctx": DEFAULT_CONTEXT, "top_k": 7, "min_p": 0.1}
    assert recorded(run) == [{"keep_alive": "2h", "format": "json", "options": body["options"]}]


async def test_a_model_that_others_loaded_with_another_context_is_loaded_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ollama would load it again within the reply; so it is a load of its own, once, and told as one."""
    async with OllamaServer({"llama3.2:latest": 3 * GB}, capacity=4 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.loaded.append("llama3.2:latest")
        server.contexts["llama3.2:latest"] = 4096
        run = await converse(tmp_path, experiment(MODEL, MODEL, max_turns=3), pool=Watched(server))
        check_record(run.events)
        assert server.happened("surprise") == []
        assert server.happened("load") == ["llama3.2:latest"]
        loads = [(event.action, event.why) for event in of_type(run.events, ModelLoadEvent)]
        assert loads == [("load", "it was loaded with another context")]


@pytest.mark.parametrize("told", [True, False])
async def test_agents_with_two_contexts_of_one_model_take_turns(
    told: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each change of the context is a load of its own, never a part of a reply, whether the server tells it or not."""
    async with OllamaServer({"llama3.2:latest": 3 * GB}, capacity=4 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.tells_contexts = told
        agents = {"a": {"extra": {"num_ctx": 5000}}, "b": {"extra": {"num_ctx": 6000}}}
        run = await converse(tmp_path, experiment(MODEL, MODEL, max_turns=2, agents=agents), pool=Watched(server))
        check_record(run.events)
        assert server.happened("surprise") == []
        assert [event.action for event in of_type(run.events, ModelLoadEvent)] == ["load"] * 4


async def test_a_context_that_the_server_counts_otherwise_is_loaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it says of a model that we loaded does not make us load it for ever."""

    class Otherwise(OllamaServer):
        def _entry(self, name: str) -> dict[str, Any]:
            return super()._entry(name) | {"context_length": 1234}

    async with Otherwise({"llama3.2:latest": 3 * GB}, capacity=4 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        run = await converse(tmp_path, experiment(MODEL, "local:test", max_turns=3), pool=Watched(server))
        check_record(run.events)
        assert len(of_type(run.events, ModelLoadEvent)) == 1


class Watched(ProviderPool):
    """A pool that knows the memory of the stand-in server instead of this machine's."""

    def __init__(self, server: OllamaServer) -> None:
        super().__init__()
        self._residencies["ollama"] = Residency(probe=server.memory, linger_s=0.0)
