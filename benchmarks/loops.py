"""The two things that are compared: Pidgin's conversations, and a bare loop that makes the same calls and writes."""

import asyncio
import ctypes
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from pidgin_cli.core.events import (
    Event,
    MessageCompleteEvent,
    MessageRequestEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
    TurnStartEvent,
    View,
)
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    EndReason,
    Finish,
    FinishReason,
    Message,
    ModelRequest,
    Role,
    TextDelta,
    Timeouts,
    Timing,
    Usage,
    UsageDelta,
)
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import Durability, Syncer
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.spec.experiment import check, resolve

__all__ = ["Run", "Scripted", "bare", "pidgin"]

WORDS = 120
TEXT = " ".join(f"word{number % 10}" for number in range(WORDS))
USAGE = Usage(prompt_tokens=400, completion_tokens=160)
EXPERIMENT = "bench000"


class Scripted:
    """A model that says 120 words, in `pieces`, the last of them `latency_s` after the request; always the same ones
    unless `say` gives others.

    Every piece has its time counted from the request, so that a late one does not delay the next. Without latency it
    still answers through the event loop, as everything does that is really awaited.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        pieces: int = 1,
        on_request: Callable[[], None] | None = None,
        say: Callable[[], str] | None = None,
    ) -> None:
        self._latency = latency_s
        self._on_request = on_request
        self._say = say
        step = len(TEXT) // pieces
        cuts = [number * step for number in range(pieces)] + [len(TEXT)]
        self._pieces = [TEXT[start:end] for start, end in itertools.pairwise(cuts)]

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        if self._on_request is not None:
            self._on_request()
        clock = asyncio.get_running_loop().time
        began = clock()
        pieces = self._pieces if self._say is None else [self._say()]
        for number, piece in enumerate(pieces, 1):
            await asyncio.sleep(max(0.0, began + self._latency * number / len(pieces) - clock()))
            yield TextDelta(piece[:-1] + piece[-1])  # a string of its own, as every real reply is
        yield UsageDelta(USAGE)
        yield Finish(model="test")

    async def aclose(self) -> None:
        """Nothing is open."""


class _Pool(ProviderPool):
    def __init__(self, provider: Provider) -> None:
        super().__init__()
        self._scripted = provider

    def adapter(self, model_id: str, timeouts: Timeouts, settings: AgentSettings | None = None) -> Provider:
        return self._scripted


class Run(NamedTuple):
    """What a run of several conversations took."""

    messages: int
    wall_s: float
    cpu_s: float
    """Of all threads of the process."""
    manifest_writes: int = 0

    @property
    def rate(self) -> float:
        return self.messages / self.wall_s


async def pidgin(
    folder: Path,
    provider: Provider,
    conversations: int,
    messages: int,
    durability: Durability = "message",
    at_once: int | None = None,
    metrics: Literal["live", "off"] = "off",
) -> Run:
    """Run an experiment of conversations of two agents below `folder`, all at once or so many."""
    data = {
        "agents": [
            {"id": "a", "model": "local:test", "name": "one"},
            {"id": "b", "model": "local:test", "name": "two"},
        ],
        "prompt": "Hello!",
        "max_turns": messages // 2,
        "repetitions": conversations,
        "durability": durability,
        "metrics": metrics,
        "seed": 1,
    }
    root = OutputRoot(folder)
    experiment = create_experiment(root, resolve(check(data), PROVIDERS).spec)
    runner = Runner(root, experiment, _Pool(provider), max_parallel=at_once or conversations)
    began, cpu = time.perf_counter(), time.process_time()
    outcomes = await runner.run()
    took = time.perf_counter() - began, time.process_time() - cpu
    assert {outcome.end_reason for outcome in outcomes.values()} == {EndReason.TURN_LIMIT}
    assert len(outcomes) == conversations
    return Run(conversations * messages, *took, runner.manifest_writes)


class Line(msgspec.Struct):
    """The least that a loop can write down of a message."""

    conversation: int
    index: int
    agent: str
    text: str


async def bare(
    folder: Path,
    provider: Provider,
    conversations: int,
    messages: int,
    *,
    fsync: bool = False,
    text_only: bool = False,
) -> Run:
    """The same model asked the same and as often, the same lines encoded and written, and nothing else done.

    Args:
        fsync: wait for the disk after every message.
        text_only: write one short line per message instead of the record's lines.
    """
    folder.mkdir()
    encode = msgspec.json.Encoder().encode
    group = _Group() if fsync else None
    began, cpu = time.perf_counter(), time.process_time()

    async def converse(number: int) -> None:
        name = f"{EXPERIMENT}-{number}"
        views: dict[str, list[Message]] = {"a": [_OPENING], "b": [_OPENING]}
        fd = os.open(folder / f"{number}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for index in range(messages):
            speaker = "ab"[index % 2]
            request = ModelRequest(model="test", messages=tuple(views[speaker]), agent_id=speaker)
            deltas = [delta async for delta in provider.stream_response(request)]
            text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
            for agent_id, view in views.items():
                view.append(Message(role=Role.ASSISTANT if agent_id == speaker else Role.USER, content=text))
            if text_only:
                os.write(fd, encode(Line(number, index, speaker, text)) + b"\n")
            else:
                os.write(fd, b"\n".join(map(encode, _lines(name, index, speaker, text))) + b"\n")
            if group is not None:
                await group.synced(fd)
        os.close(fd)

    await asyncio.gather(*(converse(number) for number in range(conversations)))
    if group is not None:
        group.close()
    return Run(conversations * messages, time.perf_counter() - began, time.process_time() - cpu)


_OPENING = Message(role=Role.USER, content="Hello!")


def _lines(name: str, index: int, speaker: str, text: str) -> list[Event]:
    """The lines of one message, and of the turn around it."""
    turn = index // 2 + 1
    now = datetime.now(UTC)
    envelope: dict[str, Any] = {
        "event_id": f"{name}:{index}",
        "seq": index,
        "timestamp": now,
        "experiment_id": EXPERIMENT,
        "conversation_id": name,
    }
    at: dict[str, Any] = {**envelope, "agent_id": speaker, "turn_number": turn, "message_index": index}
    lines: list[Event] = [
        MessageRequestEvent(**at, view=View(0, index, 0, 1), digest="0" * 32),
        MessageCompleteEvent(
            **at,
            message=Message(role=Role.ASSISTANT, content=text, id=f"{name}:m{index}"),
            finish_reason=FinishReason.STOP,
            usage=USAGE,
            cost=0.0,
            timing=Timing(ttft_ms=0.012, duration_ms=0.031),
            model_requested="local:test",
            model_served="test",
        ),
        TokenUsageEvent(
            **envelope,
            agent_id=speaker,
            provider="local",
            model="test",
            prompt_tokens=USAGE.prompt_tokens,
            completion_tokens=USAGE.completion_tokens,
            cost=0.0,
            total_tokens=560 * (index + 1),
            total_cost=0.0,
        ),
    ]
    if index % 2:
        return [*lines, TurnCompleteEvent(**envelope, turn_number=turn)]
    return [TurnStartEvent(**envelope, turn_number=turn, speakers=("a", "b")), *lines]


class _Group:
    """Grouped fsyncs and nothing else: who comes while one is under way waits for the next."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._syncfs = getattr(ctypes.CDLL(None), "syncfs", None)

    async def synced(self, fd: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = fd
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await waiter

    async def _run(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, {}
            await asyncio.get_running_loop().run_in_executor(self._pool, self._sync, set(group.values()))
            for waiter in group:
                waiter.set_result(None)
        self._task = None

    def _sync(self, fds: set[int]) -> None:
        if self._syncfs is not None and len(fds) >= Syncer.SYNCFS_FROM:
            self._syncfs(next(iter(fds)))
        else:
            for fd in fds:
                os.fdatasync(fd)

    def close(self) -> None:
        self._pool.shutdown()
