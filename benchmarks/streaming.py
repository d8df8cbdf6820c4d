"""Streaming through the real OpenAI SDK: Pidgin's conversations beside a bare loop over the same SDK and server.

The server is a process of its own on loopback. It answers every request at once with the same reply in many chunks, so
that the client's work is all that takes time. The bare loop asks the same and keeps the same histories; it writes
nothing, limits nothing and watches over nothing.
"""

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai as sdk

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.core.types import Agent, EndReason
from pidgin_cli.eventlog.log import EventLog, Syncer
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, add_provider, endpoint
from pidgin_cli.spec.conversation import ConversationSpec

from .limits import Row
from .loops import EXPERIMENT, Run

__all__ = ["main"]

CHUNKS = 60
PIECES = [f" word{number % 10}" for number in range(CHUNKS)]
TEXT = "".join(PIECES)
PROVIDER = "bench"
MODEL = "streaming"
OPENING = "Hello!"
BUDGET = 0.80


class Load(NamedTuple):
    """How much is asked for."""

    conversations: int
    messages: int
    rounds: int
    """Ours and the bare loop take turns; the best of each counts."""


FULL = (Load(1, 40, 5), Load(32, 4, 5), Load(200, 4, 2))
QUICK = (Load(1, 20, 2), Load(32, 2, 2), Load(200, 2, 1))


# The server


class _Connection(asyncio.Protocol):
    """Takes requests, looks at nothing but their length, and sends `reply` piece by piece."""

    def __init__(self, reply: list[bytes]) -> None:
        self._reply = reply
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self._received[:end])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            del self._received[:whole]
            for piece in self._reply:
                self._transport.write(piece)


def _reply() -> list[bytes]:
    """Chat completions: the head, a role, the text, a reason, the usage, and the end."""

    def chunk(choices: list[Any], **more: Any) -> bytes:
        start = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_767_225_600, "model": MODEL}
        return _http_chunk(b"data: " + json.dumps(start | {"choices": choices} | more).encode() + b"\n\n")

    def delta(content: dict[str, Any], reason: str | None = None) -> bytes:
        return chunk([{"index": 0, "delta": content, "finish_reason": reason}])

    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [
        head.encode(),
        delta({"role": "assistant", "content": ""}),
        *(delta({"content": piece}) for piece in PIECES),
        delta({}, "stop"),
        chunk([], usage={"prompt_tokens": 400, "completion_tokens": CHUNKS, "total_tokens": 400 + CHUNKS}),
        _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    ]


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve() -> None:
    """Answer until standard input ends, which it does with the process that started this one."""
    loop = asyncio.get_running_loop()
    reply, ended = _reply(), asyncio.Event()
    server = await loop.create_server(lambda: _Connection(reply), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    server.close()


@contextmanager
def _server() -> Iterator[str]:
    """The base URL of a server that runs while the block does."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _known(url: str) -> Iterator[None]:
    """The server as a provider of this process, reached without a proxy."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ.update(dict.fromkeys(before, "127.0.0.1"))
    add_provider(endpoint(PROVIDER, url))
    try:
        yield
    finally:
        del PROVIDERS[PROVIDER]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# The two that are compared


class _Clock:
    wall_s = cpu_s = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s, self.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


async def pidgin(folder: Path, url: str, load: Load) -> Run:
    """Our conversations with log, limits, time-outs and retries, as they are held for a person."""
    folder.mkdir()
    model = f"{PROVIDER}:{MODEL}"
    spec = ConversationSpec(
        agents=(Agent(id="a", model=model, name="one"), Agent(id="b", model=model, name="two")),
        opening=OPENING,
        max_turns=load.messages // 2,
    )
    syncer, clock = Syncer(), _Clock()

    async def converse(number: int) -> None:
        conversation_id = f"{EXPERIMENT}-{number}"
        log, record = EventLog.resume(
            folder / f"conv_{conversation_id}_events.jsonl",
            experiment_id=EXPERIMENT,
            conversation_id=conversation_id,
            syncer=syncer,
        )
        conductor = Conductor(spec, conversation_id=conversation_id, providers=pool, log=log, record=record)
        outcome = await conductor.run()
        await log.aclose()
        assert outcome.end_reason is EndReason.TURN_LIMIT, outcome
        assert conductor.progress.last_message is not None
        assert conductor.progress.last_message.message.content == TEXT

    async with aclosing(ProviderPool()) as pool:
        pool.adapter(model, spec.timeouts)  # the client's certificates take a while; the bare loop's are not timed
        async with clock.running():
            await asyncio.gather(*map(converse, range(load.conversations)))
            await syncer.aclose()
    return Run(load.conversations * load.messages, clock.wall_s, clock.cpu_s)


async def bare(folder: Path, url: str, load: Load) -> Run:
    """The same requests through the same client, the same chunks taken apart, and nothing else done."""
    clock = _Clock()

    async def converse() -> None:
        views: dict[str, list[Any]] = {agent_id: [{"role": "user", "content": OPENING}] for agent_id in "ab"}
        for index in range(load.messages):
            speaker = "ab"[index % 2]
            pieces: list[str] = []
            usage = None
            stream = await client.chat.completions.create(
                model=MODEL, messages=views[speaker], stream=True, stream_options={"include_usage": True}
            )
            async with stream:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    pieces += [choice.delta.content or "" for choice in chunk.choices]
            text = "".join(pieces)
            assert usage is not None
            assert text == TEXT
            for agent_id, view in views.items():
                view.append({"role": "assistant" if agent_id == speaker else "user", "content": text})

    timeout = httpx2.Timeout(None, connect=10)
    client = sdk.AsyncOpenAI(api_key="none-needed", base_url=url, timeout=timeout, max_retries=0)
    async with client, clock.running():
        await asyncio.gather(*(converse() for _ in range(load.conversations)))
    return Run(load.conversations * load.messages, clock.wall_s, clock.cpu_s)


# The figures


def main(quick: bool = False) -> list[Row]:
    """The rows for `make bench`."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="pidgin-bench-") as scratch, _server() as url, _known(url):
        for measure in (bare, pidgin):
            asyncio.run(measure(Path(scratch) / "warm", url, Load(2, 4, 1)))
        for load in QUICK if quick else FULL:
            rows += _rows(load, *_taken_in_turns(Path(scratch), url, load))
    return rows


def _taken_in_turns(scratch: Path, url: str, load: Load) -> tuple[list[Run], list[Run]]:
    measures: tuple[Callable[[Path, str, Load], Coroutine[Any, Any, Run]], ...] = (bare, pidgin)
    theirs: list[Run] = []
    ours: list[Run] = []
    for number in range(load.rounds):
        for runs, measure in zip((theirs, ours), measures, strict=True):
            gc.collect()
            folder = scratch / f"{load.conversations}-{number}-{len(theirs)}-{len(ours)}"
            runs.append(asyncio.run(measure(folder, url, load)))
    return theirs, ours


def _rows(load: Load, theirs: list[Run], ours: list[Run]) -> list[Row]:
    our_rate, their_rate = (max(run.rate for run in runs) for runs in (ours, theirs))
    our_cpu, their_cpu = (min(run.cpu_s for run in runs) for runs in (ours, theirs))
    share = our_rate / their_rate
    chunks = load.conversations * load.messages * CHUNKS
    many = f"{load.conversations} conversations" if load.conversations > 1 else "1 conversation"
    what = f"streaming, {many} × {load.messages} messages of {CHUNKS} chunks, OpenAI SDK"
    over, base = (our_cpu - their_cpu) / chunks * 1e6, their_cpu / chunks * 1e6
    return [
        Row(what, f"{our_rate:,.0f} messages/s (bare: {their_rate:,.0f})"),
        Row("… of a bare loop over the same SDK", f"{share:.0%}", f"at least {BUDGET:.0%}", share >= BUDGET),
        Row("… the same in CPU time", f"{their_cpu / our_cpu:.0%}"),
        Row("… our CPU per chunk, the log and all else included", f"{over:.1f} µs (the SDK's: {base:.1f} µs)"),
    ]


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(_serve())
    else:
        for row in main("--quick" in sys.argv):
            print(
                row.what.ljust(75), row.measured.ljust(45), row.budget, {True: "ok", False: "MISSED", None: ""}[row.ok]
            )
