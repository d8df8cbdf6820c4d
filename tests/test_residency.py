"""Which models a local server holds: the real Ollama SDK over HTTP, against a server that has memory."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from loopback import Reply
from ollama_server import GB, OllamaServer

from pidgin_cli.core.errors import ProviderError, ProviderUnavailable, RequestRejected
from pidgin_cli.core.events import Event, ModelLoadEvent
from pidgin_cli.core.types import Delta, Finish, Message, ModelRequest, Role, Timeouts, fold
from pidgin_cli.providers import residency as module
from pidgin_cli.providers.ollama import OllamaProvider
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.providers.residency import (
    Memory,
    Residency,
    Resident,
    context_bytes,
    free_memory,
    full_name,
    loaded_models,
)
from pidgin_cli.providers.wrappers import Timed

A, B, C, D = "a:latest", "b:latest", "c:latest", "d:latest"


class Bench:
    """One server, one residency, and conversations over both."""

    def __init__(self, server: OllamaServer, **options: Any) -> None:
        self.server = server
        self.now = 0.0
        self.events: list[ModelLoadEvent] = []
        self.adapter = OllamaProvider(Timeouts())
        options = {"probe": server.memory, "clock": lambda: self.now, "linger_s": 0.0} | options
        self.residency = Residency(**options)

    def report(self, event: Event) -> None:
        assert isinstance(event, ModelLoadEvent)
        self.events.append(event)

    def stream(self, model: str) -> AsyncIterator[Delta]:
        timed = Timed(self.adapter, Timeouts(), "ollama")
        request = ModelRequest(model=model.removesuffix(":latest"), messages=(Message(Role.USER, "Hello?"),))
        return Resident(timed, self.residency, self.report, self.adapter.effective_parameters).stream_response(request)

    async def ask(self, model: str) -> Finish:
        return fold([delta async for delta in self.stream(model)]).finish

    async def converse(self, models: Sequence[str], turns: int, between_s: float = 0.0) -> None:
        """`between_s`: seconds that recording a message takes before the next is asked for."""
        for _ in range(turns):
            for model in models:
                await self.ask(model)
                await asyncio.sleep(between_s)

    async def looked(self) -> None:
        """Return when the server has been asked what is loaded once more."""
        before = self.server.looks
        while self.server.looks == before:
            self.server.received.clear()
            await self.server.received.wait()

    def told(self, action: str) -> list[ModelLoadEvent]:
        return [event for event in self.events if event.action == action]

    async def aclose(self) -> None:
        await self.residency.aclose()
        await self.adapter.aclose()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OllamaServer]:
    """Room for one large model, or for two small ones."""
    sizes = {A: 6 * GB, B: 5 * GB, C: 3 * GB, D: 2 * GB}
    async with OllamaServer(sizes, capacity=8 * GB) as server:
        monkeypatch.delenv("OLLAMA_API_KEY", raising=False)
        for variable, value in server.env.items():
            if variable in ("OLLAMA_HOST", "NO_PROXY"):
                monkeypatch.setenv(variable, value)
        yield server


@pytest.fixture
async def bench(server: OllamaServer) -> AsyncIterator[Bench]:
    bench = Bench(server)
    yield bench
    await bench.aclose()


def smooth(server: OllamaServer) -> bool:
    """Nobody waited for a load within a reply, the server never had to choose, and no reply was broken."""
    return not [entry for entry in server.log if entry[0] in ("surprise", "evict", "broken")]


# Enough room


async def test_models_that_fit_together_stay(server: OllamaServer, bench: Bench) -> None:
    """Two models that fit are loaded once each and never unloaded, however many conversations use them."""
    await asyncio.gather(*(bench.converse([A, D], 4) for _ in range(5)))
    assert sorted(server.happened("load")) == [A, D]
    assert server.happened("unload") == []
    assert len(server.happened("chat")) == 40
    assert [event.action for event in bench.events] == ["load", "load"]
    assert smooth(server)


async def test_a_load_event_says_what_it_took(server: OllamaServer, bench: Bench) -> None:
    """The event of a load carries the size as the server reports it and what was free before."""
    await bench.ask(A)
    (event,) = bench.events
    assert (event.provider, event.model, event.action) == ("ollama", A, "load")
    assert (event.size_bytes, event.free_bytes) == (6 * GB, 8 * GB)
    assert event.duration_ms is not None


async def test_a_load_is_no_latency(server: OllamaServer) -> None:
    """Time spent loading stands in the event and in the waiting time, not in time to first token or duration."""
    server.load_s = 0.6
    bench = Bench(server, clock=asyncio.get_running_loop().time)
    timing = (await bench.ask(A)).timing
    assert timing is not None
    assert timing.ttft_ms is not None
    assert timing.duration_ms is not None
    assert timing.queued_ms is not None
    assert timing.ttft_ms <= timing.duration_ms < 600 <= timing.queued_ms
    (event,) = bench.events
    assert event.duration_ms is not None
    assert 600 <= event.duration_ms <= timing.queued_ms
    assert smooth(server)
    await bench.aclose()


async def test_a_load_is_reported_before_the_reply_begins(server: OllamaServer, bench: Bench) -> None:
    """The event stands in the record between the request and the first piece of the reply."""
    async with aclosing(bench.stream(A)) as stream:  # type: ignore[type-var]
        await anext(stream)
        assert [event.action for event in bench.events] == ["load"]


async def test_a_loaded_model_is_not_asked_about_at_every_request(server: OllamaServer, bench: Bench) -> None:
    """Within a second one look at the server serves all requests; later it is looked at again."""
    await bench.ask(A)
    before = server.looks
    for _ in range(5):
        await bench.ask(A)
    assert server.looks == before
    bench.now += 2
    await bench.ask(A)
    assert server.looks == before + 1


async def test_what_the_server_dropped_is_loaded_again(server: OllamaServer, bench: Bench) -> None:
    """A model that ran out of its time is loaded ahead of the next request, not within it."""
    await bench.ask(A)
    server.loaded.clear()
    bench.now += 2
    await bench.ask(A)
    assert server.happened("load") == [A, A]
    assert smooth(server)


async def test_a_load_uses_the_options_of_the_request(server: OllamaServer, bench: Bench) -> None:
    """Options that a model is loaded with go with the load, so that it is not loaded twice; others do not."""
    options = {"num_ctx": 8192, "temperature": 0.5}
    timed = Timed(bench.adapter, Timeouts(), "ollama")
    found = Resident(timed, bench.residency, bench.report, lambda _: {"options": options, "think": True})
    request = ModelRequest(model="a", messages=(Message(Role.USER, "Hello?"),))
    assert fold([delta async for delta in found.stream_response(request)]).message.content
    (load,) = [request for request in server.requests if request.path == "/api/generate"]
    assert load.body["options"] == {"num_ctx": 8192}
    assert load.body["keep_alive"] > 0


# Too little room


async def test_models_that_do_not_fit_take_turns(server: OllamaServer, bench: Bench) -> None:
    """One conversation of two models that exclude each other costs one switch a message, and no more."""
    await bench.converse([A, B], 3)
    assert server.happened("load") == [A, B] * 3
    assert server.happened("unload") == [A, B, A, B, A]
    assert [event.action for event in bench.events] == ["load", *["unload", "switch"] * 5]
    assert smooth(server)


@pytest.mark.parametrize("conversations", [2, 7, 30])
async def test_many_conversations_switch_as_rarely_as_one(server: OllamaServer, conversations: int) -> None:
    """Conversations that run at once over two such models share every switch."""
    bench = Bench(server, linger_s=0.2, clock=asyncio.get_running_loop().time)
    await asyncio.gather(*(bench.converse([A, B], 3) for _ in range(conversations)))
    assert len(server.happened("chat")) == 6 * conversations
    assert server.happened("load") == [A, B] * 3
    assert smooth(server)
    await bench.aclose()


async def test_seats_the_other_way_round_share_the_switches_too(server: OllamaServer) -> None:
    """Counterbalanced seats (half of the conversations begin with the other model) cost at most one switch more."""
    bench = Bench(server, linger_s=0.2, clock=asyncio.get_running_loop().time)
    await asyncio.gather(*(bench.converse(pair, 3) for pair in ([A, B], [B, A]) for _ in range(4)))
    assert len(server.happened("load")) <= 7
    assert smooth(server)
    await bench.aclose()


async def test_self_play_holds_its_model_for_a_while(server: OllamaServer) -> None:
    """A conversation's next message comes a moment after the last: its model is kept for it although another waits."""
    bench = Bench(server, linger_s=0.2, clock=asyncio.get_running_loop().time)
    await asyncio.gather(bench.converse([A], 10, between_s=0.002), bench.converse([B], 10, between_s=0.002))
    assert server.happened("load") == [A, B]
    assert smooth(server)
    await bench.aclose()


async def test_nobody_starves(server: OllamaServer) -> None:
    """Requests for the loaded model go first, but only for as long as the patience lasts."""
    bench = Bench(server, patience_s=10.0, linger_s=0.2)
    served: list[str] = []

    def reply(request: Any) -> Reply:
        served.append(request.model)
        bench.now += 1.0
        return Reply()

    server.reply = reply
    started = asyncio.create_task(bench.converse([A, A], 20))
    await server.loading.wait()
    other = asyncio.create_task(bench.ask(B))
    await asyncio.gather(started, other)
    assert 5 <= served.index("b") <= 12
    assert server.happened("load") == [A, B, A]
    assert smooth(server)
    await bench.aclose()


async def test_one_who_waited_long_is_not_overtaken(server: OllamaServer, bench: Bench) -> None:
    """Small models that fit beside the loaded one go first, but not once the patience of a large one is over."""
    server.models = {A: 5 * GB, B: 6 * GB, C: 3 * GB, D: GB}
    bench.residency._patience_s = 100.0
    stream = bench.stream(A)
    await anext(stream)
    bench.now += 2
    large = asyncio.create_task(bench.ask(B))
    await bench.looked()
    await bench.ask(D)
    bench.now += 200
    small = asyncio.create_task(bench.ask(C))
    await bench.looked()
    for _ in range(6):
        await loaded_models()
    assert fold([delta async for delta in stream]).finish
    await asyncio.gather(large, small)
    assert server.happened("load") == [A, D, B, C]
    assert smooth(server)


async def test_each_model_gets_its_share_however_slow_loads_are(server: OllamaServer) -> None:
    """Patience counts from the last switch, so that loads which take longer than it do not leave one message each."""
    bench = Bench(server, patience_s=5.0, linger_s=0.2)

    def reply(request: Any) -> Reply:
        bench.now += 1.0
        return Reply()

    server.reply = reply
    slow = server._load

    async def load(model: str, request: Any) -> None:
        bench.now += 100.0
        await slow(model, request)

    server._load = load  # type: ignore[method-assign]
    await asyncio.gather(bench.converse([A], 12), bench.converse([B], 12))
    assert len(server.happened("load")) <= 6
    await bench.aclose()


async def test_the_least_recently_used_goes(server: OllamaServer, bench: Bench) -> None:
    """Of several loaded models the one goes that was asked longest ago."""
    for model in (C, D, C):
        bench.now += 1
        await bench.ask(model)
    await bench.ask(B)
    assert server.happened("unload") == [D]
    assert sorted(server.loaded) == [B, C]
    assert smooth(server)


async def test_only_as_many_go_as_must(server: OllamaServer, bench: Bench) -> None:
    """When a large model has to go anyway, a small one that was used longer ago may stay."""
    server.models = {A: 5 * GB, B: 6 * GB, C: GB}
    for model in (C, A):
        bench.now += 1
        await bench.ask(model)
    await bench.ask(B)
    assert server.happened("unload") == [A]
    assert smooth(server)


async def test_models_of_running_conversations_go_last(server: OllamaServer, bench: Bench) -> None:
    """A model of a running conversation stays, although one that nobody needs any more was used later."""
    with bench.residency.running(["c"]):
        for model in (C, D):
            bench.now += 1
            await bench.ask(model)
        await bench.ask(B)
        assert server.happened("unload") == [D]
    await bench.ask(A)
    assert C in server.happened("unload")


async def test_foreign_models_make_room(server: OllamaServer, bench: Bench) -> None:
    """What others left in memory is unloaded when it is in the way, and only then."""
    server.loaded = [C]
    await bench.ask(D)
    assert server.happened("unload") == []
    await bench.ask(B)
    assert server.happened("unload") == [C]


async def test_a_reply_is_never_cut(server: OllamaServer, bench: Bench) -> None:
    """A model is not unloaded while a reply of it is under way, whoever waits, and however long."""
    bench.residency._patience_s = 0.0
    stream = bench.stream(A)
    await anext(stream)
    bench.now += 1000
    waiting = asyncio.create_task(bench.ask(B))
    await bench.looked()
    for _ in range(3):
        assert [model.name for model in await loaded_models()] == [A]
    assert not waiting.done()
    assert fold([delta async for delta in stream]).message.content
    server.log.append(("read", A))
    await waiting
    assert server.log == [("load", A), ("chat", A), ("read", A), ("unload", A), ("load", B), ("chat", B)]


async def test_a_model_that_is_going_is_not_asked(server: OllamaServer, bench: Bench) -> None:
    """A request for a model that is just being replaced waits for its return instead of loading it unawares."""
    await bench.ask(A)
    server.loading.clear()
    server.go_on.clear()
    other = asyncio.create_task(bench.ask(B))
    await server.loading.wait()
    back = asyncio.create_task(bench.ask(A))
    await loaded_models()
    await loaded_models()
    server.go_on.set()
    await asyncio.gather(other, back)
    assert server.happened("load") == [A, B, A]
    assert smooth(server)


async def test_one_who_gives_up_changes_nothing_for_others(server: OllamaServer, bench: Bench) -> None:
    """A request that is cancelled while it waits leaves no claim: nothing is swapped for it."""
    stream = bench.stream(A)
    await anext(stream)
    bench.now += 2
    waiting = asyncio.create_task(bench.ask(B))
    await bench.looked()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert fold([delta async for delta in stream]).finish
    await bench.ask(A)
    assert server.happened("load") == [A]
    assert not bench.residency._queue
    assert not +bench.residency._in_use


async def test_one_who_gives_up_during_the_load(server: OllamaServer, bench: Bench) -> None:
    """When the one for whom a model is loaded gives up, the load ends in peace and is told of in the next record."""
    server.go_on.clear()
    waiting = asyncio.create_task(bench.ask(A))
    await server.loading.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bench.events == []
    server.go_on.set()
    await bench.ask(A)
    assert server.happened("load") == [A]
    assert [event.action for event in bench.events] == ["load"]
    assert not +bench.residency._in_use


async def test_one_who_gives_up_in_the_moment_of_admission(server: OllamaServer, bench: Bench) -> None:
    """A request that is let in and cancelled at once does not keep its model busy."""
    server.go_on.clear()
    waiting = asyncio.create_task(bench.ask(A))
    await server.loading.wait()
    bench.residency._admit(lambda _: True)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not +bench.residency._in_use
    server.go_on.set()
    await bench.ask(B)
    assert server.happened("chat") == [B]


async def test_closing_ends_everybody_who_waits(server: OllamaServer, bench: Bench) -> None:
    """Closing during a load leaves no task and nobody waiting."""
    server.go_on.clear()
    waiting = asyncio.create_task(bench.ask(A))
    await server.loading.wait()
    await bench.residency.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not +bench.residency._in_use


async def test_a_failing_record_does_not_hold_a_model(server: OllamaServer, bench: Bench) -> None:
    """When the event cannot be recorded the request fails, and the model is free for others."""

    def broken(event: Event) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        async with bench.residency.holding("a", broken):
            pass
    await bench.ask(B)
    assert server.happened("unload") == [A]


# When nothing helps


async def test_a_server_that_does_not_tell(server: OllamaServer, bench: Bench) -> None:
    """When it cannot be known what is loaded, requests go out all the same, with one warning in all."""
    server.failing = {"/api/ps"}
    await asyncio.gather(*(bench.converse([A, D], 3) for _ in range(3)))
    (event,) = bench.events
    assert event.action == "degraded"
    assert "out of order" in event.why
    assert len(server.happened("chat")) == 18
    server.failing = set()
    await bench.ask(C)
    assert bench.events[-1].action in ("load", "switch")


async def test_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch, server: OllamaServer, bench: Bench) -> None:
    """When nothing listens, the request's own error says what to do."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    lost = Bench(server)
    with pytest.raises(ProviderUnavailable, match="ollama serve"):
        await lost.ask(A)
    assert [event.action for event in lost.events] == ["degraded"]
    await lost.aclose()


async def test_memory_that_is_not_known(server: OllamaServer) -> None:
    """Without a look at the memory nothing is unloaded on suspicion, with one warning; what the server itself does

    is learnt: models of which it dropped one for the other take turns from then on.
    """
    bench = Bench(server, probe=lambda: None)
    await bench.converse([A, B], 3)
    assert [event.why for event in bench.told("degraded")] == [
        "how much memory is free is not known, so the server alone decides what stays loaded"
    ]
    assert server.happened("evict") == [A]
    assert server.happened("unload") == [B, A, B, A]
    assert server.happened("surprise") == []
    await bench.aclose()


async def test_limits_of_the_server_are_learnt(server: OllamaServer, bench: Bench) -> None:
    """A server that holds fewer models than fit (OLLAMA_MAX_LOADED_MODELS) is served in the fewest switches, too."""
    server.most_models = 1
    await bench.converse([C, D], 1)
    assert server.happened("evict") == [C]
    await asyncio.gather(*(bench.converse([C, D], 2) for _ in range(4)))
    assert server.happened("evict") == [C]
    assert server.happened("surprise") == []


async def test_a_model_whose_time_is_up_teaches_nothing(server: OllamaServer, bench: Bench) -> None:
    """A model that the server dropped because nobody had asked it for long may stand beside the other next time."""
    server.most_models, server.expires_at = 1, "2001-01-01T00:00:00Z"
    await bench.converse([C, D], 1)
    assert server.happened("evict") == [C]
    server.most_models = 2
    await bench.converse([C, D], 2)
    assert server.happened("load") == [C, D, C]
    assert server.happened("unload") == []


async def test_a_size_that_is_not_known(server: OllamaServer, bench: Bench) -> None:
    """A model of unknown size is loaded without unloading others, with one warning."""
    server.failing = {"/api/tags"}
    await bench.converse([C, D], 2)
    assert server.happened("unload") == []
    assert len(bench.told("degraded")) == 1
    assert len(bench.told("load")) == 2


async def test_a_model_larger_than_all_memory(server: OllamaServer, bench: Bench) -> None:
    """It gets all the room there is, with one warning that names both numbers."""
    server.models[B] = 20 * GB
    await bench.converse([A, B], 2)
    (event,) = bench.told("degraded")
    assert event.model == B
    assert "20.0 GB" in event.why
    assert "8.0 GB" in event.why
    assert len(server.happened("chat")) == 4
    assert smooth(server)


async def test_a_model_that_will_not_go(server: OllamaServer, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an unloading does nothing, the request goes on after a while, with one warning."""
    monkeypatch.setattr(module, "UNLOAD_S", 0.05)
    server.stubborn = True
    await bench.converse([A, B], 2)
    assert [event.model for event in bench.told("degraded")] == [A]
    assert len(server.happened("chat")) == 4


async def test_an_unloading_that_fails(server: OllamaServer, bench: Bench) -> None:
    """When loading and unloading fail, requests go out all the same, with one warning for each."""
    await bench.ask(A)
    server.failing = {"/api/generate"}
    await bench.converse([B, A], 2)
    assert [event.model for event in bench.told("degraded")] == [A, B]
    assert len(server.happened("chat")) == 5


async def test_a_load_that_never_ends(server: OllamaServer) -> None:
    """A load that hangs does not hang the conversation: after its time the request goes out."""
    bench = Bench(server, load_timeout_s=0.05)
    server.go_on.clear()
    waiting = asyncio.create_task(bench.ask(A))
    while ("surprise", A) not in server.log:
        server.received.clear()
        await server.received.wait()
        await loaded_models()
    server.go_on.set()
    await waiting
    assert [event.action for event in bench.events] == ["degraded"]
    await bench.aclose()


async def test_a_model_that_is_not_there(server: OllamaServer, bench: Bench) -> None:
    """A model that is not installed is the request's own error, without a warning about memory."""
    with pytest.raises(RequestRejected, match="ollama pull nobody"):
        await bench.ask("nobody")
    assert bench.events == []


async def test_models_of_the_vendor_need_no_room(server: OllamaServer, bench: Bench) -> None:
    """A cloud model takes no memory here: nothing is looked at, loaded or unloaded for it."""
    server.installed.append("big:120b-cloud")
    await bench.ask("big:120b-cloud")
    assert {request.path for request in server.requests} == {"/api/chat"}


# Memory and sizes


async def test_memory_in_use_by_models_does_not_count_as_free(server: OllamaServer) -> None:
    """RAM that the system calls available although models are mapped there is not given away twice."""
    server.gpu = False
    bench = Bench(server, probe=lambda: Memory(8 * GB, 8 * GB, gpu=False))
    await bench.converse([A, B], 1)
    assert server.happened("unload") == [A]
    await bench.aclose()


async def test_a_server_elsewhere_has_memory_that_is_not_ours(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of this machine says nothing about that of a server on another."""
    here = Residency()
    monkeypatch.setenv("OLLAMA_HOST", "gpu-box:11434")
    there = Residency()
    assert here._probe is free_memory
    assert there._probe() is None
    await here.aclose()
    await there.aclose()


def test_ram_is_looked_at_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVML library, driver or device the memory of the machine counts."""
    for nvml in (None, nvml_with(), nvml_with(error_at="nvmlInit"), nvml_with(8, error_at="nvmlDeviceGetMemoryInfo")):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        memory = free_memory()
        assert memory is not None
        assert not memory.gpu
        assert 0 < memory.free <= memory.total


def test_gpus_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are spread over all GPUs, so their memory is added up."""
    nvml = nvml_with(10, 14)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert free_memory() == Memory(free=24, total=48, gpu=True)
    assert nvml.opened == 0


def nvml_with(*free: int, error_at: str = "") -> Any:
    """A library that knows GPUs with so many bytes free, and raises in one of its calls."""
    nvml: Any = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.opened = 0

    def call(name: str, value: Any, opened: int = 0) -> None:
        def run(*args: Any) -> Any:
            if name == error_at:
                raise nvml.NVMLError(name)
            nvml.opened += opened
            return value(*args)

        setattr(nvml, name, run)

    call("nvmlInit", lambda: None, 1)
    call("nvmlShutdown", lambda: None, -1)
    call("nvmlDeviceGetCount", lambda: len(free))
    call("nvmlDeviceGetHandleByIndex", lambda index: index)
    call("nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(free=free[index], total=free[index] * 2))
    return nvml


def test_a_context_takes_what_its_keys_and_values_take() -> None:
    """The share of the context is computed from the model's own shape, and is 0 where it has none."""
    llama = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.embedding_length": 4096,
        "llama.context_length": 8192,
    }
    assert context_bytes(llama, 4096) == 2 * 2 * 32 * 8 * 128 * 4096 == math.prod([512, 1024, 1024])
    assert context_bytes(llama, 1_000_000) == 2 * context_bytes(llama, 4096)
    assert context_bytes(llama | {"llama.attention.head_count_kv": [8, 2, None]}, 4096) == context_bytes(llama, 4096)
    assert context_bytes({}, 4096) == 0
    assert context_bytes({"general.architecture": None, "None.block_count": "x"}, 4096) == 0


@pytest.mark.parametrize(
    ("given", "full"),
    [("a", A), ("A:LATEST", A), ("llama3.2:1b", "llama3.2:1b"), ("hub.io:443/me/x", "hub.io:443/me/x:latest")],
)
def test_names_are_compared_as_ollama_does(given: str, full: str) -> None:
    """A missing tag is `latest`, a port is no tag, and case does not count."""
    assert full_name(given) == full


async def test_loaded_models_tells_what_is_loaded(server: OllamaServer) -> None:
    """Name, size, share on the GPU and time of expiry, as the server reports them."""
    server.loaded = [A, D]
    found = await loaded_models(PROVIDERS["ollama"])
    assert [(model.name, model.size_bytes, model.vram_share) for model in found] == [(A, 6 * GB, 1.0), (D, 2 * GB, 1.0)]
    assert found[0].expires_at is not None
    assert found[0].expires_at.year == 2199
    server.failing = {"/api/ps"}
    with pytest.raises(ProviderError, match="out of order"):
        await loaded_models()
