"""What the settings of agents and the cache do, in whole conversations through the vendors' SDKs over real HTTP."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply, Request, Tokens
from ollama_server import GB, OllamaServer
from support import Run, check_record, conversation, converse, cut_copy, experiment, go_on, messages, of_type, texts

from pidgin_cli.core.events import (
    ConversationEndEvent,
    MessageRequestEvent,
    ModelLoadEvent,
    TokenUsageEvent,
    WarningEvent,
)
from pidgin_cli.core.types import Agent, AgentSettings, ModelRequest, Timeouts
from pidgin_cli.providers.cache import ResponseCache
from pidgin_cli.providers.registry import (
    INSIDE,
    PROVIDERS,
    SETTINGS,
    ProviderPool,
    effective_parameters,
    split_model,
    unsupported,
)
from pidgin_cli.providers.residency import Residency
from pidgin_cli.spec.catalogue import use_settings
from pidgin_cli.spec.settings import Settings

MODELS = {
    "anthropic": "anthropic:claude-sonnet-4-6",
    "openai": "openai:gpt-5.4",
    "google": "google:gemini-2.5-pro",
    "ollama": "ollama:llama3.2",
}
EACH = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
GIVEN: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 0.5,
    "max_tokens": 4000,
    "stop": ("END",),
    "seed": 0,
    "think": True,
    "think_budget": 2000,
    "effort": "high",
    "extra": {"top_k": 7},
}
"""A value of every setting; 0 is one too."""
SENT: dict[str, dict[str, tuple[str, Any]]] = {
    "anthropic": {
        "temperature": ("temperature", 0.0),
        "top_p": ("top_p", 0.5),
        "max_tokens": ("max_tokens", 4000),
        "stop": ("stop_sequences", ["END"]),
        "think": ("thinking.type", "adaptive"),
        "think_budget": ("thinking.budget_tokens", 2000),
        "effort": ("output_config.effort", "high"),
        "extra": ("top_k", 7),
    },
    "openai": {
        "temperature": ("temperature", 0.0),
        "top_p": ("top_p", 0.5),
        "max_tokens": ("max_tokens", 4000),
        "stop": ("stop", ["END"]),
        "seed": ("seed", 0),
        "think": ("reasoning_effort", "medium"),
        "effort": ("reasoning_effort", "high"),
        "extra": ("top_k", 7),
    },
    "google": {
        "temperature": ("generationConfig.temperature", 0.0),
        "top_p": ("generationConfig.topP", 0.5),
        "max_tokens": ("generationConfig.maxOutputTokens", 4000),
        "stop": ("generationConfig.stopSequences", ["END"]),
        "seed": ("generationConfig.seed", 0),
        "think": ("generationConfig.thinkingConfig.includeThoughts", True),
        "think_budget": ("generationConfig.thinkingConfig.thinkingBudget", 2000),
        "effort": ("generationConfig.thinkingConfig.thinkingLevel", "HIGH"),
        "extra": ("top_k", 7),
    },
    "ollama": {
        "temperature": ("options.temperature", 0.0),
        "top_p": ("options.top_p", 0.5),
        "max_tokens": ("options.num_predict", 4000),
        "stop": ("options.stop", ["END"]),
        "seed": ("options.seed", 0),
        "think": ("think", True),
        "effort": ("think", "high"),
        "extra": ("options.top_k", 7),
    },
}
"""Where each setting stands in the body; what is not here its API has nothing for."""


SIGNED = "c2lnbmVk"


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "OLLAMA_", "GOOGLE_", "GEMINI_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(tmp_path / "cache"))
    yield
    use_settings(Settings())


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer(reply=Counting()) as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


class Counting:
    """No two replies are the same."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Request) -> Reply:
        self.count += 1
        return Reply(f"reply {self.count}")


def at(body: Any, path: str) -> Any:
    """What stands at `a.b` of a body; None if nothing does."""
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


async def one_message(where: Path, model: str, settings: dict[str, Any], **keys: Any) -> Run:
    """Two agents, one of them embedded; the other has the settings."""
    run = await converse(where, experiment(model, "local:test", max_turns=1, agents={"a": settings}, **keys))
    check_record(run.events)
    return run


# Settings


@EACH
async def test_every_setting_that_an_api_has_something_for_is_sent(
    model: str, server: LoopbackServer, tmp_path: Path
) -> None:
    """Each setting alone, `extra` among them, stands in the body where the API wants it and in the record; 0 counts."""
    family = model.partition(":")[0]
    assert SENT[family].keys() == PROVIDERS[family].takes
    for name, (path, value) in SENT[family].items():
        server.requests.clear()
        run = await one_message(tmp_path / name, model, {name: GIVEN[name]})
        if name == "seed":  # every repetition has one of its own
            value = conversation(model, "local:test", agents={"a": {"seed": value}}).agents[0].settings.seed
        assert at(server.chats[0].body, path) == value, name
        recorded = of_type(run.events, MessageRequestEvent)[0].parameters
        assert str(value) in str(recorded), name


@EACH
async def test_what_is_not_set_is_not_sent(model: str, server: LoopbackServer, tmp_path: Path) -> None:
    """Without settings nothing stands in the body but what the API demands."""
    await one_message(tmp_path, model, {})
    family = model.partition(":")[0]
    body = server.chats[0].body
    demanded = {"max_tokens"} if family == "anthropic" else set()
    assert {name for name, (path, _) in SENT[family].items() if at(body, path) is not None} == demanded


async def test_extra_stands_beside_the_settings(server: LoopbackServer, tmp_path: Path) -> None:
    """Extra words inside Google's `generationConfig` leave the settings there as they are."""
    extra = {"generationConfig": {"topK": 7}, "labels": {"a": "b"}}
    await one_message(tmp_path, MODELS["google"], {"temperature": 0.5, "extra": extra})
    body = server.chats[0].body
    assert body["generationConfig"] == {"temperature": 0.5, "topK": 7}
    assert body["labels"] == {"a": "b"}


@pytest.mark.parametrize("provider", sorted(PROVIDERS.keys() - INSIDE))
async def test_providers_take_what_their_adapters_send(
    provider: str, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting in `takes` changes the effective parameters; one that is not changes nothing and is `unsupported`."""
    for variable in PROVIDERS[provider].key_env:
        monkeypatch.setenv(variable, "a-key")
    model = MODELS.get(provider, f"{provider}:some-model")
    pool = ProviderPool()
    try:
        adapter = pool.adapter(model, Timeouts())

        def parameters(settings: AgentSettings) -> dict[str, Any]:
            request = ModelRequest(model=split_model(model)[1], messages=(), settings=settings)
            return effective_parameters(adapter, request)

        plain = parameters(AgentSettings())
        for name in SETTINGS:
            given = AgentSettings(**{name: GIVEN[name]})
            taken = name in PROVIDERS[provider].takes
            assert (parameters(given) != plain) == taken, name
            agent = Agent(id="a", name="A", model=model, settings=given)
            assert (name not in unsupported(PROVIDERS[provider], agent, thinks=None)) == taken, name
    finally:
        await pool.aclose()


def test_models_of_the_responses_api_take_neither_stop_nor_seed() -> None:
    """A model that OpenAI serves there alone is listed with `stop` and `seed`; others of OpenAI are not."""
    settings = AgentSettings(stop=("END",), seed=0, temperature=0.0)
    for model, listed in (("openai:gpt-5-pro", {"stop", "seed"}), ("openai:gpt-5.1", set())):
        agent = Agent(id="a", name="A", model=model, settings=settings)
        assert unsupported(PROVIDERS["openai"], agent, thinks=True).keys() == listed


@pytest.mark.parametrize(
    ("provider", "can"), [("anthropic", True), ("google", True), ("ollama", True), ("openai", False), ("local", True)]
)
def test_thinking_is_given_back_only_where_that_can_be(provider: str, can: bool) -> None:
    """`own` is unsupported where the API has no place for earlier thinking; what is thought on request can be shown."""
    asked = AgentSettings(think=True)
    for visible in ("own", "partner", "nobody"):
        agent = Agent(id="a", name="A", model=f"{provider}:m", settings=asked, thinking_visible=visible)
        found = unsupported(PROVIDERS[provider], agent, thinks=None)
        assert ("thinking_visible" in found) == (visible == "own" and not can)


def test_a_model_that_does_not_think_is_asked_for_no_thinking() -> None:
    """Every way to ask for thinking is listed for a model that is known not to think; `think: false` is no such way."""
    for settings, listed in (
        (AgentSettings(think=True, think_budget=2000, effort="high"), {"think", "think_budget", "effort"}),
        (AgentSettings(think=False), set()),
    ):
        agent = Agent(id="a", name="A", model="anthropic:claude-2", settings=settings)
        assert unsupported(PROVIDERS["anthropic"], agent, thinks=False).keys() == listed


UNTAKEN = {"anthropic": {"seed": 5}, "openai": {"think_budget": 2000}, "ollama": {"think_budget": 2000}}


@pytest.mark.parametrize("family", UNTAKEN)
async def test_a_lenient_spec_drops_what_is_not_taken_and_says_so_once(
    family: str, server: LoopbackServer, tmp_path: Path
) -> None:
    """One warning per setting, also when the conversation is resumed after any event; the rest is sent."""
    settings = UNTAKEN[family] | {"temperature": 0.0}
    run = await one_message(tmp_path / "whole", MODELS[family], settings, lenient=True)
    warnings = of_type(run.events, WarningEvent)
    assert [(event.agent_id, event.what) for event in warnings] == [("a", *UNTAKEN[family])]
    assert family in warnings[0].reason
    body = server.chats[0].body
    assert at(body, SENT[family]["temperature"][0]) == 0.0
    assert "2000" not in str(body)
    assert "seed" not in str(body)
    sizes = [len(line) for line in run.log.read_bytes().splitlines(keepends=True)]
    for count in range(1, len(sizes)):
        again = await go_on(*cut_copy(run, tmp_path / str(count), sum(sizes[:count])))
        check_record(again.events)
        assert [event.what for event in of_type(again.events, WarningEvent)] == list(UNTAKEN[family])


async def test_a_strict_spec_has_no_warnings(server: LoopbackServer, tmp_path: Path) -> None:
    """What is taken is not warned about, lenient or not."""
    for lenient in (True, False):
        keys = {"lenient": lenient}
        run = await one_message(tmp_path / str(lenient), MODELS["google"], GIVEN | {"think_budget": None}, **keys)
        assert of_type(run.events, WarningEvent) == []


# Who is sent thinking


@pytest.mark.parametrize("visible", ["own", "partner", "nobody"])
@pytest.mark.parametrize("family", ["anthropic", "google", "ollama"])
async def test_thinking_is_sent_to_whom_the_spec_says(
    family: str, visible: str, server: LoopbackServer, tmp_path: Path
) -> None:
    """Back to its model with its signature, before its words to the partner, or nowhere; the same after a resume."""

    def speak(request: Request) -> Reply:
        if request.api == "openai":
            return Reply("I see.")
        signed = family != "ollama"
        return Reply("Yes.", thinking=["canary"] if family != "google" else (), signature=SIGNED if signed else None)

    server.reply = speak
    agents = {"a": {"thinking_visible": visible, "name": "Ann"}}
    run = await converse(tmp_path / "whole", experiment(MODELS[family], MODELS["openai"], max_turns=3, agents=agents))
    check_record(run.events)

    def found(api: str) -> list[int]:
        bodies = [str(request.body) for request in server.chats if request.api == api]
        return [body.count("canary") + body.count(SIGNED) for body in bodies]

    each = {"anthropic": 2, "google": 1, "ollama": 1}[family]  # words and signature, or one of them
    back = each if visible == "own" else 0
    told = visible == "partner" and family != "google"  # of which there is only a signature here
    assert found(family) == [0, back, 2 * back]
    assert found("openai") == [told, 2 * told, 3 * told]
    if told:
        openai = next(request for request in server.chats if request.api == "openai")
        assert openai.messages[-1][1].endswith("[Ann thinks]: canary\n\nYes.")
    whole = [request.body for request in server.chats]
    server.requests.clear()
    until = run.log.read_bytes().rindex(b"TurnStartEvent")
    again = await go_on(*cut_copy(run, tmp_path / "cut", until))
    check_record(again.events)
    assert [request.body for request in server.chats] == whole[-2:]


# Prompt cache and served models


async def test_anthropic_marks_every_request_for_its_cache(server: LoopbackServer, tmp_path: Path) -> None:
    """Every request carries the mark, and each list of messages begins with the whole one before it."""
    spec = experiment(MODELS["anthropic"], "local:test", max_turns=4)
    check_record((await converse(tmp_path, spec)).events)
    assert [request.body["cache_control"] for request in server.chats] == [{"type": "ephemeral"}] * 4
    for one, other in zip(server.chats, server.chats[1:], strict=False):
        assert other.messages[: len(one.messages)] == one.messages


async def test_tokens_read_from_the_cache_are_recorded_and_cheaper(server: LoopbackServer, tmp_path: Path) -> None:
    """Cached tokens stand in the usage of their message and cost their own price."""
    model = MODELS["anthropic"]
    prices = {"input_price": 10.0, "cached_price": 1.0, "output_price": 50.0}
    use_settings(Settings.model_validate({"models": {model: prices}}))
    server.script(Reply("One.", usage=Tokens(1000, 10)), Reply("Two.", usage=Tokens(1000, 10, cached=900)))
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=2))
    check_record(run.events)
    used = [event for event in of_type(run.events, TokenUsageEvent) if event.agent_id == "a"]
    assert [event.cached_tokens or 0 for event in used] == [0, 900]
    assert [event.cost for event in used] == [pytest.approx(0.0105), pytest.approx(0.0024)]


@pytest.mark.parametrize(
    ("second", "notable"),
    [
        (Reply("Two.", model="gpt-5.1-2026"), {"served_model": 1}),
        (Reply("Two.", fingerprint="fp_2"), {"fingerprint": 1}),
        (Reply("Two.", fingerprint="fp_1"), {}),
        (Reply("Two."), {}),
    ],
    ids=["model", "fingerprint", "same", "none"],
)
async def test_a_change_of_what_served_is_notable(
    second: Reply, notable: dict[str, int], server: LoopbackServer, tmp_path: Path
) -> None:
    """Another served model or fingerprint than an agent's first is counted, after a resume too; none is no change."""
    server.script(Reply("One.", fingerprint="fp_1"), second)
    run = await converse(tmp_path / "whole", experiment(MODELS["openai"], "local:test", max_turns=2))
    check_record(run.events)
    assert of_type(run.events, ConversationEndEvent)[-1].notable == notable
    server.script(second)
    until = run.log.read_bytes().index(b"TurnCompleteEvent")
    again = await go_on(*cut_copy(run, tmp_path / "cut", until))
    check_record(again.events)
    assert of_type(again.events, ConversationEndEvent)[-1].notable == notable


# The response cache


def cached(run: Run, agent: str = "a") -> list[bool]:
    return [event.cached for event in messages(run.events) if event.agent_id == agent]


@EACH
async def test_the_same_draw_is_answered_from_the_cache(model: str, server: LoopbackServer, tmp_path: Path) -> None:
    """Run again it says the same, marked and for nothing, and no request reaches the server; another seed asks anew."""
    spec = experiment(model, "local:test", cache="on")
    first = await converse(tmp_path / "1", spec)
    asked = len(server.chats)
    assert (asked, cached(first)) == (3, [False] * 3)
    again = await converse(tmp_path / "2", spec)
    check_record(again.events)
    assert len(server.chats) == asked
    assert texts(again.events) == texts(first.events)
    assert (cached(again), cached(again, "b")) == ([True] * 3, [True] * 3)
    assert {event.cost for event in messages(again.events)} == {0.0}
    assert of_type(again.events, ConversationEndEvent)[-1].totals.cost_usd == 0.0
    other = await converse(tmp_path / "3", experiment(model, "local:test", cache="on", seed=12))
    assert cached(other) == [False] * 3
    assert len(server.chats) == 2 * asked


async def test_the_cache_is_off_by_default(server: LoopbackServer, tmp_path: Path) -> None:
    """The same spec twice asks twice, and no cache file comes to be."""
    spec = experiment(MODELS["openai"], "local:test", max_turns=1)
    for number in range(2):
        assert cached(await converse(tmp_path / str(number), spec)) == [False]
    assert len(server.chats) == 2
    assert not (tmp_path / "cache").exists()


async def test_a_shared_cache_is_across_seeds(server: LoopbackServer, tmp_path: Path) -> None:
    """`shared` answers another seed's request for the same text; the embedded model is asked for every seed."""
    keys: dict[str, Any] = {"cache": "shared", "max_turns": 1}
    for number, seed in enumerate((11, 12)):
        run = await converse(tmp_path / str(number), experiment(MODELS["openai"], "local:test", seed=seed, **keys))
        check_record(run.events)
        assert (cached(run), cached(run, "b")) == ([bool(number)], [False])
    assert len(server.chats) == 1


async def test_repetitions_are_draws_of_their_own(server: LoopbackServer, tmp_path: Path) -> None:
    """Two repetitions of one spec share no reply under `on`."""
    run = await converse(tmp_path, experiment(MODELS["openai"], "local:test", repetitions=2, max_turns=1, cache="on"))
    assert cached(run) == [False]
    assert len(server.chats) == 2


@pytest.mark.parametrize(
    "bad",
    [
        Reply(finish="length"),
        Reply(finish="content_filter"),
        Reply(text=(), refusal="I will not."),
        Reply(status=400, body={"error": {"message": "no"}}),
    ],
    ids=["truncated", "filtered", "refused", "error"],
)
async def test_only_whole_replies_are_kept(bad: Reply, server: LoopbackServer, tmp_path: Path) -> None:
    """Errors, refusals, filtered and truncated replies are never stored: the next run asks again."""
    spec = experiment(MODELS["openai"], "local:test", max_turns=1, cache="on")
    server.script(bad)
    await converse(tmp_path / "1", spec)
    run = await converse(tmp_path / "2", spec)
    assert cached(run) == [False]
    assert len(server.chats) == 2
    assert cached(await converse(tmp_path / "3", spec)) == [True]


async def test_a_spoilt_cache_is_left_out(server: LoopbackServer, tmp_path: Path) -> None:
    """A file that is no database costs the conversation nothing."""
    path = tmp_path / "cache" / "responses.db"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    spec = experiment(MODELS["openai"], "local:test", max_turns=1, cache="on")
    run = await converse(tmp_path / "out", spec, pool=ProviderPool(cache=ResponseCache(path)))
    check_record(run.events)
    assert cached(run) == [False]


# Local servers


async def test_a_conversation_of_two_local_models_swaps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two models that do not fit together take turns: each load and switch is an event before the reply it was for."""
    async with OllamaServer({"a:latest": 6 * GB, "b:latest": 6 * GB}, capacity=8 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        run = await converse(tmp_path, experiment("ollama:a", "ollama:b", max_turns=2), pool=Watched(server))
        check_record(run.events)
        assert server.happened("chat") == ["a:latest", "b:latest"] * 2
        assert not server.happened("surprise") + server.happened("broken") + server.happened("evict")
        loads = [event.model for event in of_type(run.events, ModelLoadEvent) if event.action in ("load", "switch")]
        assert [name.removesuffix(":latest") for name in loads] == ["a", "b", "a", "b"]


async def test_models_that_fit_are_loaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With room for both every model is loaded once, and an answer from the cache loads none."""
    async with OllamaServer({"a:latest": 3 * GB, "b:latest": 3 * GB}, capacity=8 * GB) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        spec = experiment("ollama:a", "ollama:b", cache="on")
        run = await converse(tmp_path / "1", spec, pool=Watched(server))
        check_record(run.events)
        assert [event.action for event in of_type(run.events, ModelLoadEvent)] == ["load", "load"]
        assert server.log.count(("chat", "a:latest")) == 3
        before = len(server.requests)
        again = await converse(tmp_path / "2", spec, pool=Watched(server))
        check_record(again.events)
        assert (cached(again), of_type(again.events, ModelLoadEvent)) == ([True] * 3, [])
        assert {request.path for request in server.requests[before:]} == {"/api/show"}  # the context is in the key


class Watched(ProviderPool):
    """A pool that knows the memory of the stand-in server instead of this machine's."""

    def __init__(self, server: OllamaServer) -> None:
        super().__init__()
        self._residencies["ollama"] = Residency(probe=server.memory, linger_s=0.0)


async def test_a_model_without_thoughts_is_not_told_to_have_none(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`think: false` is not sent to a model that never thinks: some of these refuse it."""
    run = await converse(
        tmp_path, experiment("openai:gpt-4o", "local:test", agents={"a": {"think": False}}, max_turns=1)
    )
    check_record(run.events)
    assert "reasoning_effort" not in server.chats[0].body
