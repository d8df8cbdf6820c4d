"""Which models a local server holds in memory, so that a conversation never waits for a load unawares.

One `Residency` per local server and process, shared by all conversations. A request waits in `holding` until its model
is loaded, and the model stays while the request is under way. Models that fit together stay together. Those that do not
take turns: while anybody asks for the loaded ones they stay, up to `patience_s`, and then all who wait for another go
together, so that many conversations at once cost as few loads as one.

    found = Resident(Timed(adapter, …), residency, report)
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import httpx
import psutil
from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.errors import ProviderError
from pidgin_cli.core.events import Event, ModelLoadEvent
from pidgin_cli.core.types import Delta, Finish, ModelRequest, Timing

from .base import Provider, Report
from .ollama import DEFAULT_CONTEXT, ERRORS, KEEP_ALIVE_S, translate
from .ollama_setup import is_here, place
from .registry import PROVIDERS, ProviderInfo, address

__all__ = ["LoadedModel", "Memory", "MemoryProbe", "Residency", "Resident", "free_memory", "loaded_models"]

FRESH_S = 1.0
"""So long a look at what is loaded holds good; others may use the same server."""
ANSWER_S = 10.0
"""Seconds a server may take to say what it has."""
UNLOAD_S = 30.0
"""Seconds an unloading may take; another program's reply may have to end first."""
POLL_S = 0.02
FILE_TO_MEMORY = 1.2
"""What a model takes in memory, as a multiple of its file; the context comes on top."""
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
"""Options that a model is loaded with. Ollama loads it again for a request with others."""


class LoadedModel(Struct, frozen=True):
    """A model in a local server's memory. Sizes in bytes."""

    name: str
    size_bytes: int
    vram_bytes: int
    """Of `size_bytes`, what is in GPU memory."""
    expires_at: datetime | None
    """When the server unloads it unless it is asked before."""
    context: int | None = None
    """Tokens it was loaded for; None: the server does not say."""

    @property
    def vram_share(self) -> float | None:
        """From 0 (all in RAM) to 1 (all on the GPU); None where the server gives no size."""
        return self.vram_bytes / self.size_bytes if self.size_bytes else None


class Memory(NamedTuple):
    """The memory that models are loaded into, in bytes."""

    free: int
    total: int
    gpu: bool


MemoryProbe = Callable[[], Memory | None]
"""None: not known. Called in a thread."""


def free_memory() -> Memory | None:
    """That of the GPUs where NVML knows some, else RAM."""
    return gpu_memory() or ram()


def gpu_memory() -> Memory | None:
    """All GPUs together; None without GPU, driver or library."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        found = [
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    if not found:
        return None
    return Memory(sum(int(each.free) for each in found), sum(int(each.total) for each in found), gpu=True)


def ram() -> Memory:
    memory = psutil.virtual_memory()
    return Memory(memory.available, memory.total, gpu=False)


async def loaded_models(info: ProviderInfo = PROVIDERS["ollama"]) -> list[LoadedModel]:
    """What a local server holds in memory now. Raises ProviderError when it does not answer."""
    server = _Server(info)
    try:
        return list((await server.loaded()).values())
    finally:
        await server.aclose()


class Resident:
    """Waits until the request's model is loaded. Stands outside `Timed`, so that a load is never the model's latency.

    The wait is added to `queued_ms`; loads and unloads are reported as events.
    """

    def __init__(
        self,
        inner: Provider,
        residency: "Residency",
        report: Report,
        parameters: Callable[[ModelRequest], Mapping[str, Any]] | None = None,
    ) -> None:
        """`parameters`: the adapter's `effective_parameters`, of which some options belong to the load."""
        self._inner = inner
        self._residency = residency
        self._report = report
        self._parameters = parameters

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        clock = asyncio.get_running_loop().time
        asked = clock()
        options = {} if self._parameters is None else self._parameters(request).get("options") or {}
        async with (
            self._residency.holding(request.model, self._report, options),
            aclosing(self._inner.stream_response(request)) as stream,  # type: ignore[type-var]
        ):
            waited = (clock() - asked) * 1000
            async for delta in stream:
                if isinstance(delta, Finish):
                    timing = delta.timing or Timing()
                    delta = replace(
                        delta, timing=replace(timing, queued_ms=round((timing.queued_ms or 0.0) + waited, 3))
                    )
                yield delta

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Waiter(NamedTuple):
    model: str
    options: dict[str, Any]
    since: float
    admitted: asyncio.Future[None]


class _Plan(NamedTuple):
    """How room is made for a model."""

    waiter: _Waiter
    """The one who has waited longest for it."""
    victims: tuple[str, ...]
    free: int | None
    doubt: str | None
    """Why there may not be room even so."""


class Residency:
    """What one local server holds in memory, and whose turn it is. See the module."""

    def __init__(
        self,
        info: ProviderInfo = PROVIDERS["ollama"],
        *,
        probe: MemoryProbe | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 60.0,
        linger_s: float = 0.05,
        keep_alive_s: float = KEEP_ALIVE_S,
        load_timeout_s: float = 900.0,
    ) -> None:
        """Open no connection yet.

        Args:
            info: the server.
            probe: memory of the machine it runs on; the default looks at this one, and knows nothing of others.
            clock: seconds, for ages and durations.
            patience_s: seconds in which requests for a loaded model may go before one that waits for another.
            linger_s: seconds in which a model without work is kept although another is waited for: the next message
                of a conversation comes a moment after the last.
            keep_alive_s: seconds after its last request until the server may unload a model on its own.
            load_timeout_s: seconds a load may take before the request goes out all the same.
        """
        self._provider = info.name
        self._server = _Server(info)
        self._probe = probe or (free_memory if is_here(info) else lambda: None)
        self._clock = clock
        self._patience_s = patience_s
        self._linger_s = linger_s
        self._keep_alive_s = keep_alive_s
        self._load_timeout_s = load_timeout_s

        self._loaded: dict[str, LoadedModel] = {}
        self._looked_at = -math.inf
        self._memory: Memory | None = None
        self._seen: dict[str, int] = {}
        """Bytes, as last reported of a loaded model."""
        self._estimates: dict[str, int] = {}
        self._contexts: dict[str, int] = {}
        """The context that a model was last loaded with by us; the server may say another number for the same."""
        self._aside: dict[str, LoadedModel] = {}
        """Loaded, but not with the context that is wanted, so that they have to be loaded again."""
        self._apart: set[frozenset[str]] = set()
        """Pairs of which the server itself unloaded one to load the other."""

        self._in_use: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._queue: deque[_Waiter] = deque()
        self._leaving: frozenset[str] = frozenset()
        self._leaving_for: _Waiter | None = None
        self._moving = False
        self._moved_at = -math.inf

        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unreported: list[Event] = []
        self._warned: set[str] = set()

    @contextmanager
    def running(self, models: Iterable[str]) -> Iterator[None]:
        """While the block runs a conversation needs these models: others are unloaded before them."""
        names = [full_name(model) for model in models]
        self._running.update(names)
        try:
            yield
        finally:
            self._running.subtract(names)

    @asynccontextmanager
    async def holding(
        self, model: str, report: Report, options: Mapping[str, Any] | None = None
    ) -> AsyncIterator[None]:
        """In the block the model is loaded and is not unloaded by us.

        Never raises for a fault of the server: the request that follows shows it. `options` are the request's; some
        of them belong to the load.
        """
        name = full_name(model)
        if name.endswith(("-cloud", ":cloud")):  # runs at the vendor's
            yield
            return
        fresh = self._clock() - self._looked_at < FRESH_S
        wanted = {key: value for key, value in (options or {}).items() if key in RUNNER_OPTIONS}
        if (self._in_use[name] or fresh) and self._is_open(name) and self._suits(name, wanted):
            self._in_use[name] += 1
        else:
            await self._wait(name, wanted)
        try:
            while self._unreported:
                report(self._unreported.pop(0))
            yield
        finally:
            self._in_use[name] -= 1
            self._used[name] = self._clock()
            self._changed.set()

    async def aclose(self) -> None:
        """Stop what is under way and close the connections. Models stay loaded until their time is up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiter in self._queue:
            waiter.admitted.cancel()
        await self._server.aclose()

    # Waiting

    async def _wait(self, model: str, options: dict[str, Any]) -> None:
        waiter = _Waiter(model, options, self._clock(), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif waiter.admitted.done() and not waiter.admitted.cancelled():
                self._in_use[model] -= 1  # admitted in the moment of its cancellation
            self._changed.set()
            raise

    def _admit(self, may_go: Callable[[str], bool]) -> None:
        for waiter in [each for each in self._queue if may_go(each.model)]:
            self._queue.remove(waiter)
            if not waiter.admitted.done():
                self._in_use[waiter.model] += 1
                waiter.admitted.set_result(None)

    def _is_open(self, model: str) -> bool:
        """Whether a request for it may start now: it is loaded, and nobody has waited too long for it to go."""
        if model not in self._loaded and not self._in_use[model]:
            return False
        if model not in self._leaving:
            return True
        return not self._moving and self._leaving_for is not None and not self._overdue(self._leaving_for)

    def _suits(self, model: str, options: Mapping[str, Any]) -> bool:
        """Whether the model has the context that is wanted, as far as that can be told."""
        wanted, loaded = options.get("num_ctx"), self._loaded.get(model)
        has = self._contexts.get(model) or (loaded and loaded.context)
        return wanted is None or has is None or has == wanted

    def _overdue(self, waiter: _Waiter) -> bool:
        return self._clock() - max(waiter.since, self._moved_at) >= self._patience_s

    # Serving those who wait

    async def _serve(self) -> None:
        try:
            while self._queue:
                self._changed.clear()
                if not await self._look(self._queue[0].model):
                    self._admit(lambda _: True)
                    break
                self._set_aside()
                self._admit(self._is_open)
                await self._step()
        except Exception as error:  # a fault of ours must not leave anybody waiting
            for waiter in self._queue:
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(error)
            self._queue.clear()
        finally:
            self._leaving, self._leaving_for = frozenset(), None

    def _set_aside(self) -> None:
        """Take models that wait for another context as not loaded, once nobody uses them with the one they have."""
        for waiter in self._queue:
            if waiter.model in self._loaded and not self._in_use[waiter.model]:
                if self._suits(waiter.model, waiter.options):
                    continue
                self._aside[waiter.model] = self._loaded.pop(waiter.model)

    async def _step(self) -> None:
        """Load the next model, or wait until something changes."""
        oldest: dict[str, _Waiter] = {}
        for waiter in self._queue:
            if waiter.model not in self._loaded:
                oldest.setdefault(waiter.model, waiter)
        if not oldest:
            self._leaving, self._leaving_for = frozenset(), None
            self._admit(self._is_open)
            return
        late = self._overdue(next(iter(oldest.values())))
        first: _Plan | None = None
        for waiter in oldest.values():
            plan = await self._plan(waiter)
            first = first or plan
            if not self._busy(plan):
                if not await self._lingers(plan, late=late) and not self._busy(plan):
                    await self._move(plan)
                return
            if late:
                break  # nobody overtakes it any more
        assert first is not None
        self._leaving, self._leaving_for = frozenset(first.victims), first.waiter
        await self._changed.wait()

    def _busy(self, plan: _Plan) -> bool:
        return any(self._in_use[victim] for victim in plan.victims)

    async def _lingers(self, plan: _Plan, *, late: bool) -> bool:
        """Whether something came up while a model that has just become idle was kept for a moment."""
        idle_since = max((self._used.get(victim, -math.inf) for victim in plan.victims), default=-math.inf)
        rest = self._linger_s - (self._clock() - idle_since)
        if late or rest <= 0:
            return False
        try:
            async with asyncio.timeout(rest):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _look(self, model: str) -> bool:
        """Whether it is known what is loaded."""
        if self._clock() - self._looked_at < FRESH_S:
            return True
        try:
            async with asyncio.timeout(ANSWER_S):
                self._loaded = await self._server.loaded()
        except (ProviderError, TimeoutError) as error:
            self._loaded, self._looked_at = {}, -math.inf
            self._warn("look", model, f"what is loaded is not known: {_said(error)}")
            return False
        self._memory = await asyncio.to_thread(self._probe)
        self._looked_at = self._clock()
        self._aside = {}
        self._contexts = {name: context for name, context in self._contexts.items() if name in self._loaded}
        self._seen.update({name: model.size_bytes for name, model in self._loaded.items() if model.size_bytes})
        return True

    # Making room

    async def _plan(self, waiter: _Waiter) -> _Plan:
        model = waiter.model
        apart = tuple(other for other in self._loaded if frozenset((model, other)) in self._apart)
        memory, need = self._memory, await self._need(waiter)
        if memory is None or need is None:
            what = "how much memory is free" if memory is None else "how large it is"
            free = None if memory is None else memory.free
            return _Plan(waiter, apart, free, f"{what} is not known, so the server alone decides what stays loaded")
        loaded = self._loaded | self._aside
        sizes = {name: each.vram_bytes if memory.gpu else each.size_bytes for name, each in loaded.items()}
        # Files mapped into memory count as available RAM although a model needs them there.
        free = max(0, min(memory.free, memory.total - sum(sizes.values())))
        victims, room = list(apart), free + sum(sizes[name] for name in apart) + sizes.get(model, 0)
        others = [name for name in self._loaded if name not in apart]
        for name in sorted(others, key=self._rank):
            if room >= need:
                break
            victims.append(name)
            room += sizes[name]
        doubt = None
        if room < need:
            doubt = f"it needs about {_gb(need)} and there is room for {_gb(room)}; it may be slow or refused"
        # A large one that came last may have made small ones needless.
        for name in victims[len(apart) :]:
            if room - sizes[name] >= need:
                victims.remove(name)
                room -= sizes[name]
        return _Plan(waiter, tuple(victims), free, doubt)

    def _rank(self, model: str) -> tuple[bool, bool, float]:
        """Models that go first come first: idle, of no running conversation, least recently used."""
        return self._in_use[model] > 0, self._running[model] > 0, self._used.get(model, -math.inf)

    async def _need(self, waiter: _Waiter) -> int | None:
        """Bytes the model will take; None where nothing is known."""
        model = waiter.model
        if model in self._seen:
            return self._seen[model]
        if model not in self._estimates:
            try:
                async with asyncio.timeout(ANSWER_S):
                    estimate = await self._server.estimate(model, waiter.options.get("num_ctx"))
            except (ProviderError, TimeoutError):
                estimate = None
            if estimate is None:
                return None
            self._estimates[model] = estimate
        return self._estimates[model]

    async def _move(self, plan: _Plan) -> None:
        """Unload the victims, load the model, and let in all who wait for it."""
        model, before = plan.waiter.model, self._loaded
        why = "it was loaded with another context" if model in self._aside else "it was not loaded"
        self._leaving, self._leaving_for, self._moving = frozenset(plan.victims), plan.waiter, True
        started = self._clock()
        error: ProviderError | TimeoutError | None = None
        try:
            for victim in plan.victims:
                await self._unload(victim, plan)
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await self._server.load(model, plan.waiter.options, self._keep_alive_s)
                if "num_ctx" in plan.waiter.options:
                    self._contexts[model] = plan.waiter.options["num_ctx"]
            except (ProviderError, TimeoutError) as exc:
                error = exc
        finally:
            self._leaving, self._leaving_for, self._moving = frozenset(), None, False
        took = self._clock() - started
        self._moved_at, self._looked_at = self._clock(), -math.inf
        looked = await self._look(model)
        if error is None:
            if looked:
                self._learn(model, before, plan)
            found = self._loaded.get(model)
            self._report(
                "switch" if plan.victims else "load",
                model,
                f"in the place of {', '.join(plan.victims)}" if plan.victims else why,
                took,
                found.size_bytes if found else None,
                plan.free,
            )
            if plan.doubt:
                self._warn("memory", model, plan.doubt)
        elif getattr(error, "status", None) != 404:  # what is not installed is the request's own error
            self._warn("load", model, f"it could not be loaded ahead of the request: {_said(error)}")
        self._admit(lambda name: name == model)

    async def _unload(self, victim: str, plan: _Plan) -> None:
        started = self._clock()
        try:
            async with asyncio.timeout(UNLOAD_S):
                await self._server.unload(victim)
                while victim in await self._server.loaded():  # noqa: ASYNC110  the answer comes before the deed
                    await asyncio.sleep(POLL_S)
        except (ProviderError, TimeoutError) as error:
            self._warn("unload", victim, f"it could not be unloaded for {plan.waiter.model}: {_said(error)}")
            return
        size = self._loaded[victim].size_bytes if victim in self._loaded else None
        took = self._clock() - started
        self._report("unload", victim, f"to make room for {plan.waiter.model}", took, size, plan.free)

    def _learn(self, model: str, before: dict[str, LoadedModel], plan: _Plan) -> None:
        """Remember what the server itself unloaded: its limits are not ours to see."""
        now = datetime.now(UTC)
        for name, other in before.items():
            ran_out = other.expires_at is not None and other.expires_at <= now
            if name not in self._loaded and name not in plan.victims and not ran_out:
                self._apart.add(frozenset((model, name)))

    # Telling

    def _report(
        self,
        action: Literal["load", "unload", "switch", "degraded"],
        model: str,
        why: str,
        took_s: float | None = None,
        size: int | None = None,
        free: int | None = None,
    ) -> None:
        """Keep the event for the record of whoever is let in next, which is the one who waited longest."""
        self._unreported.append(
            ModelLoadEvent(
                provider=self._provider,
                model=model,
                action=action,
                duration_ms=None if took_s is None else round(took_s * 1000, 3),
                size_bytes=size,
                free_bytes=free,
                why=why,
            )
        )

    def _warn(self, fault: str, model: str, why: str) -> None:
        """Say once that memory cannot be looked after in this respect."""
        if fault not in self._warned:
            self._warned.add(fault)
            self._report("degraded", model, why)


class _Server:
    """The part of Ollama's API that is about memory."""

    def __init__(self, info: ProviderInfo) -> None:
        from ollama import AsyncClient  # our adapter, imported above, says it clearly when the SDK cannot be

        self._netloc = place(info).netloc
        self._client = AsyncClient(address(info), timeout=httpx.Timeout(None, connect=ANSWER_S))

    async def loaded(self) -> dict[str, LoadedModel]:
        with self._translating():
            models = (await self._client.ps()).models
        found = (
            LoadedModel(
                full_name(each.model or each.name or ""),
                int(each.size or 0),
                int(each.size_vram or 0),
                each.expires_at,
                each.context_length or None,
            )
            for each in models
        )
        return {model.name: model for model in found}

    async def estimate(self, model: str, num_ctx: int | None) -> int | None:
        """Bytes that a model will probably take; None when it is not there or has no size."""
        with self._translating():
            sizes = {full_name(each.model or ""): each.size for each in (await self._client.list()).models}
        size = sizes.get(model)
        if not size:
            return None
        with self._translating():
            about = await self._client.show(model)
        return int(size * FILE_TO_MEMORY) + context_bytes(about.modelinfo or {}, num_ctx or DEFAULT_CONTEXT)

    async def load(self, model: str, options: dict[str, Any], keep_alive_s: float) -> None:
        with self._translating():
            await self._client.generate(model, prompt="", options=options or None, keep_alive=keep_alive_s)

    async def unload(self, model: str) -> None:
        """Ask for it; the server does so as soon as no request uses the model."""
        with self._translating():
            await self._client.generate(model, prompt="", keep_alive=0)

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except tuple(ERRORS) as error:
            raise translate(error, netloc=self._netloc) from error


def full_name(model: str) -> str:
    """A model's name as Ollama lists it: names know no case, and a missing tag is `latest`."""
    name = model.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def context_bytes(about: Mapping[str, Any], tokens: int) -> int:
    """What keys and values of a context take, at two bytes each; 0 where the model does not say how wide they are."""
    family = about.get("general.architecture", "")

    def number(name: str) -> int:
        value = about.get(f"{family}.{name}")
        if isinstance(value, list):  # one for each layer
            return max((each for each in value if isinstance(each, int)), default=0)
        return value if isinstance(value, int) else 0

    heads = number("attention.head_count")
    width = number("embedding_length") // heads if heads else 0
    keys, values = number("attention.key_length") or width, number("attention.value_length") or width
    shared = number("attention.head_count_kv") or heads
    return number("block_count") * shared * (keys + values) * 2 * min(tokens, number("context_length") or tokens)


def _said(error: Exception) -> str:
    return str(error) or "no answer in time"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
