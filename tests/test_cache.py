"""The response cache: what is stored, under which key, and what becomes of a cache that is broken."""

import asyncio
import logging
import multiprocessing
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace
from strategies import TEXT

from pidgin_cli.core.errors import ProviderUnavailable, StoreError
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    Finish,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
    Role,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageDelta,
    fold,
)
from pidgin_cli.providers import cache as module
from pidgin_cli.providers.cache import Cached, ResponseCache, cache_key, default_cache_path

REQUEST = ModelRequest(
    model="m",
    messages=(Message(Role.USER, "Hello."),),
    system="Be brief.",
    settings=AgentSettings(temperature=0.5),
    conversation_id="abcd1234-1",
    agent_id="a",
    message_index=4,
)
REPLY = (TextDelta("Good "), TextDelta("morning."), UsageDelta(Usage(prompt_tokens=9, completion_tokens=3)))
WHOLE = (*REPLY, Finish(model="m-1", request_id="r1", fingerprint="f1", attempt=3))
RESPONSE = fold(WHOLE)


class Source:
    """A provider that gives the same deltas every time and counts how often it is asked."""

    def __init__(self, deltas: Sequence[Delta] = WHOLE, error: Exception | None = None) -> None:
        self.deltas = deltas
        self.error = error
        self.asked = 0
        self.handed_out = 0

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        self.asked += 1
        for delta in self.deltas:
            self.handed_out += 1
            yield delta
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseCache]:
    with closing(ResponseCache(tmp_path / "cache" / "responses.db")) as found:
        yield found


def cached(source: Source, store: ResponseCache, **changes: Any) -> Cached:
    known: dict[str, Any] = {"provider": "p", "base_url": "u", "parameters": {}, "draw": ("exp", "arm", 1, None)}
    return Cached(source, store, **(known | changes))


async def ask(provider: Cached, request: ModelRequest = REQUEST) -> list[Delta]:
    return [delta async for delta in provider.stream_response(request)]


def key(request: ModelRequest = REQUEST, **changes: Any) -> bytes:
    known: dict[str, Any] = {"provider": "p", "base_url": "u", "parameters": {"temperature": 0.5}, "draw": ("e", 1)}
    return cache_key(request, **(known | changes))


# --- hits and misses


async def test_a_reply_is_paid_for_once(store: ResponseCache) -> None:
    """The second time the model is not asked; text, usage, model and ids are those of the reply that was paid for."""
    source = Source()
    first = fold(await ask(cached(source, store)))
    second = fold(await ask(cached(source, store), replace(REQUEST, attempt=2)))
    assert source.asked == 1
    assert not first.finish.cached
    assert second.finish.cached
    assert (second.message, second.usage) == (first.message, first.usage)
    assert (second.finish.model, second.finish.request_id, second.finish.fingerprint) == ("m-1", "r1", "f1")
    assert second.finish.attempt == 2
    assert second.finish.timing is not None
    assert second.finish.timing.duration_ms is not None
    assert (store.hits, store.misses) == (1, 1)


async def test_a_miss_is_handed_on_live(store: ResponseCache) -> None:
    """Each piece goes out before the next one is asked for, the very objects that the model gave."""
    source = Source()
    stream = cached(source, store).stream_response(REQUEST)
    for number, expected in enumerate(WHOLE, 1):
        assert await anext(stream) is expected
        assert source.handed_out == number
    assert [delta async for delta in stream] == []


async def test_whoever_stops_reading_at_the_finish_still_fills_the_cache(store: ResponseCache) -> None:
    """The reply is stored before its last delta goes out."""
    stream = cached(Source(), store).stream_response(REQUEST)
    while not isinstance(await anext(stream), Finish):
        pass
    await stream.aclose()  # type: ignore[attr-defined]
    assert fold(await ask(cached(Source(), store))).finish.cached


BLOCKS = st.builds(ThinkingBlock, TEXT, TEXT)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXT, signed=st.lists(BLOCKS, max_size=3), last=TEXT, number=st.integers(0, 2**40))
def test_every_reply_comes_back_as_it_was(
    store: ResponseCache, text: str, signed: list[ThinkingBlock], last: str, number: int
) -> None:
    """Text, thinking with signatures, and usage of a hit fold into the same response."""
    thinking: list[Delta] = [ThinkingDelta(block.text, block.signature) for block in signed]
    usage = UsageDelta(Usage(prompt_tokens=number, thinking_tokens=0, estimated=bool(number % 2)))
    deltas = [*thinking, ThinkingDelta(last), TextDelta(text), usage, Finish(model=text)]
    request = replace(REQUEST, system=repr((text, signed, last, number)))
    first = fold(asyncio.run(ask(cached(Source(deltas), store), request)))
    again = fold(asyncio.run(ask(cached(Source(deltas), store), request)))
    assert again.finish.cached
    assert (again.message, again.usage) == (first.message, first.usage)


NOT_KEPT = {
    "refusal": (*REPLY, Finish(FinishReason.REFUSAL)),
    "content filter": (*REPLY, Finish(FinishReason.CONTENT_FILTER)),
    "truncated": (*REPLY, Finish(FinishReason.LENGTH)),
    "unknown": (*REPLY, Finish(FinishReason.UNKNOWN)),
    "tool call": (*REPLY, ToolCallDelta(0, "c1", "clock", "{}"), Finish(FinishReason.TOOL_CALLS)),
    "tool call, said to be done": (*REPLY, ToolCallDelta(0, "c1", "clock", "{}"), Finish()),
    "text replaced": (TextDelta("half a pair \ud83d"), Finish()),
    "cached further in": (*REPLY, Finish(cached=True)),
    "no finish": REPLY,
}


@pytest.mark.parametrize("deltas", NOT_KEPT.values(), ids=NOT_KEPT)
async def test_what_is_not_a_whole_plain_reply_is_not_stored(store: ResponseCache, deltas: Sequence[Delta]) -> None:
    """Refusals, filtered and truncated replies, tool calls and the like are asked for again."""
    source = Source(deltas)
    for _ in range(2):
        assert await ask(cached(source, store)) == list(deltas)
    assert source.asked == 2
    assert store.stats().entries == 0


async def test_errors_and_abandoned_streams_are_not_stored(store: ResponseCache) -> None:
    """A stream that breaks, or that its reader leaves, stores nothing; the error goes up as it is."""
    error = ProviderUnavailable("cut")
    with pytest.raises(ProviderUnavailable) as caught:
        await ask(cached(Source(REPLY, error), store))
    assert caught.value is error
    stream = cached(Source(), store).stream_response(REQUEST)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert store.stats().entries == 0


async def test_an_empty_reply_is_a_reply(store: ResponseCache) -> None:
    """Silence is stored like any other message."""
    source = Source((Finish(),))
    await ask(cached(source, store))
    again = fold(await ask(cached(source, store)))
    assert (again.message.content, again.finish.cached, source.asked) == ("", True, 1)


# --- keys

OTHER: dict[str, Any] = {
    "model": "n",
    "messages": (Message(Role.USER, "Hello!"),),
    "system": None,
    "settings": AgentSettings(temperature=0.0),
}
SAME: dict[str, Any] = {
    "context_window": 4096,  # where it is sent, it is a parameter
    "conversation_id": "other",
    "seed": 5,
    "agent_id": "b",
    "turn_number": 9,
    "message_index": 7,
    "own_number": 3,
    "attempt": 2,
    "purpose": "name",
}


def test_everything_that_is_sent_is_in_the_key() -> None:
    """Each field of a request that is sent changes the key, no other does, and every field is one or the other."""
    assert {*OTHER, *SAME, "digest"} == set(ModelRequest.__struct_fields__), "say whether the new field is sent"
    keys = [key(), *(key(replace(REQUEST, **{name: value})) for name, value in OTHER.items())]
    assert len(set(keys)) == len(keys)
    assert {key(replace(REQUEST, **{name: value})) for name, value in SAME.items()} == {key()}


@pytest.mark.parametrize(
    "changes",
    [{"provider": "q"}, {"base_url": "v"}, {"parameters": {}}, {"parameters": {"temperature": 0.0}}, {"draw": ()}],
    ids=str,
)
def test_where_and_how_it_is_sent_is_in_the_key(changes: dict[str, Any]) -> None:
    """Provider, address, parameters and draw each change the key."""
    assert key(**changes) != key()


def test_the_order_of_parameters_does_not_matter() -> None:
    """Two dictionaries that are equal give one key."""
    assert key(parameters={"a": 1, "b": [2]}) == key(parameters={"b": [2], "a": 1})


def test_a_zero_is_not_an_absent_value() -> None:
    """Temperature 0.0, 1.0 and unset are three settings."""
    found = {key(replace(REQUEST, settings=AgentSettings(temperature=value))) for value in (None, 0.0, 1.0)}
    assert len(found) == 3


def test_messages_do_not_run_together() -> None:
    """Who says what is in the key, and where one text ends and the next begins."""
    lists = [
        (Message(Role.USER, "ab"), Message(Role.ASSISTANT, "c")),
        (Message(Role.USER, "a"), Message(Role.ASSISTANT, "bc")),
        (Message(Role.ASSISTANT, "ab"), Message(Role.USER, "c")),
        (Message(Role.USER, "ab"), Message(Role.ASSISTANT, "c", thinking=(ThinkingBlock("t", "s"),))),
        (Message(Role.USER, "ab"), Message(Role.ASSISTANT, "c", tool_calls=(ToolCall("1", "n", "{}"),))),
    ]
    assert len({key(replace(REQUEST, messages=messages)) for messages in lists}) == len(lists)


def test_a_digest_stands_for_the_text() -> None:
    """With a digest the text is not looked at, and a digest is never taken for a text."""
    one, two = replace(REQUEST, digest="d1"), replace(REQUEST, digest="d2")
    assert key(one) == key(replace(one, messages=(), system="x"))
    assert len({key(one), key(two), key()}) == 3


DRAW = ("exp", "arm", 1, None)


@pytest.mark.parametrize("draw", [("ex2", "arm", 1, None), ("exp", "ar2", 1, None), ("exp", "arm", 2, None)], ids=str)
async def test_draws_do_not_share_replies(store: ResponseCache, draw: tuple[object, ...]) -> None:
    """Another experiment, arm, repetition, branch, agent or message is another draw: the model is asked."""
    source = Source()
    await ask(cached(source, store, draw=DRAW))
    assert not fold(await ask(cached(source, store, draw=draw))).finish.cached
    assert not fold(await ask(cached(source, store, draw=(*DRAW[:3], "branch")), REQUEST)).finish.cached
    for changed in ({"agent_id": "b"}, {"message_index": 5}):
        assert not fold(await ask(cached(source, store), replace(REQUEST, **changed))).finish.cached
    assert source.asked == 5


async def test_a_shared_cache_leaves_the_draw_out(store: ResponseCache) -> None:
    """Without a draw every agent, message and experiment gets the one reply to a request."""
    source = Source()
    await ask(cached(source, store, draw=None))
    other = replace(REQUEST, agent_id="b", message_index=9, conversation_id="other", seed=8)
    assert fold(await ask(cached(source, store, draw=None), other)).finish.cached
    assert not fold(await ask(cached(source, store), other)).finish.cached, "a draw never takes a shared reply"


# --- the file


def test_nothing_is_made_before_the_first_use(store: ResponseCache) -> None:
    """Opening a cache and asking for its figures leaves no file; the folder is the owner's alone."""
    assert store.stats().entries == 0
    assert (store.clear(), store.prune(max_bytes=0)) == (0, 0)
    assert not store.path.parent.exists()
    store.get(b"k")
    assert store.path.exists()
    assert store.path.parent.stat().st_mode & 0o077 == 0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`PIDGIN_CACHE_DIR` moves it; else it is in the user's cache folder."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(tmp_path))
    assert default_cache_path() == tmp_path / "responses.db" == ResponseCache().path
    monkeypatch.delenv("PIDGIN_CACHE_DIR")
    assert default_cache_path().name == "responses.db"
    assert "pidgin" in default_cache_path().parts


def test_replies_outlive_the_process(store: ResponseCache) -> None:
    """What one opener stored another reads, also after the first has closed, and a closed cache opens again."""
    store.put(b"k", RESPONSE)
    store.close()
    with closing(ResponseCache(store.path)) as other:
        assert other.get(b"k") == RESPONSE
        other.put(b"l", RESPONSE)
    assert store.get(b"l") == RESPONSE


def test_the_figures(store: ResponseCache) -> None:
    """Entries, bytes on disk, ages and this process's hits and misses are what was done."""
    store.get(b"1")
    for number in range(10):
        store.put(str(number).encode(), RESPONSE)
    store.get(b"1")
    found = store.stats()
    assert (found.entries, found.hits, found.misses, found.problem) == (10, 1, 1, None)
    assert found.bytes > 10 * len("Good morning.")
    assert found.oldest is not None
    assert found.newest is not None
    assert found.oldest <= found.newest
    names = {"path", "kept", "entries", "bytes", "hits", "misses", "oldest", "newest", "problem"}
    assert set(asdict(found)) == names
    assert found.kept == "replies"


def test_clearing_forgets_everything(store: ResponseCache) -> None:
    """Says how many there were, and gives the room back."""
    big = replace(RESPONSE, message=Message(Role.ASSISTANT, "x" * 5000))
    for number in range(100):
        store.put(str(number).encode(), big)
    assert store.stats().bytes > 500_000
    assert store.clear() == 100
    assert store.get(b"1") is None
    assert store.stats().bytes < 100_000


def test_pruning_by_size_keeps_the_newest(store: ResponseCache) -> None:
    """The file gets no larger than asked for, and what is left was stored last."""
    big = replace(RESPONSE, message=Message(Role.ASSISTANT, "x" * 5000))
    for number in range(100):
        store.put(str(number).encode(), big)
    removed = store.prune(max_bytes=300_000)
    assert store.stats().bytes <= 300_000
    left = [number for number in range(100) if store.get(str(number).encode()) is not None]
    assert len(left) == 100 - removed > 20
    assert left == list(range(removed, 100))
    assert store.prune(max_bytes=300_000) == 0
    store.prune(max_bytes=0)
    assert store.stats().entries == 0


def test_pruning_by_age(store: ResponseCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what is older than the given seconds goes."""
    now = 1_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    for number in range(10):
        now += 60
        store.put(str(number).encode(), RESPONSE)
    assert store.prune(older_than_s=150.0) == 7
    assert [number for number in range(10) if store.get(str(number).encode()) is not None] == [7, 8, 9]
    assert store.prune() == 0


def _fill(path: str, name: str, start: Any) -> None:
    store = ResponseCache(Path(path))
    start.wait()
    for number in range(50):
        store.put(f"{name}{number}".encode(), RESPONSE)
        assert store.get(f"{name}{number}".encode()) == RESPONSE
    assert not store._warned
    store.close()


def test_several_processes_use_it_at_once(store: ResponseCache) -> None:
    """Processes that make the file at the same moment and write together lose nothing and warn of nothing."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(4)
    processes = [spawn.Process(target=_fill, args=(str(store.path), name, start)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert store.stats().entries == 200


def test_several_threads_use_it_at_once(store: ResponseCache) -> None:
    """One cache may be used from any thread."""

    def fill(name: str) -> None:
        for number in range(50):
            store.put(f"{name}{number}".encode(), RESPONSE)

    threads = [threading.Thread(target=fill, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats().entries == 200


# --- a file that cannot be used


def not_a_database(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def damaged(path: Path) -> None:
    with closing(ResponseCache(path)) as store:
        for number in range(200):
            store.put(str(number).encode(), RESPONSE)
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40_000)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def a_folder(path: Path) -> None:
    path.mkdir()


UNUSABLE = [not_a_database, damaged, newer, a_folder]


@pytest.mark.parametrize("spoil", UNUSABLE)
async def test_an_unusable_cache_is_left_out_with_one_warning(
    tmp_path: Path, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The models are asked as if there were none; the process says so once, and the figures say why."""
    path = tmp_path / "responses.db"
    spoil(path)
    source = Source()
    for _ in range(2):  # a second cache of the same process stays silent
        with closing(ResponseCache(path)) as store:
            for _ in range(3):
                assert fold(await ask(cached(source, store))).message == RESPONSE.message
            assert (store.hits, store.misses) == (0, 3)
            assert store.stats().problem
    assert source.asked == 6
    (warning,) = caplog.records
    assert (warning.levelno, warning.name) == (logging.WARNING, "pidgin_cli.providers.cache")
    assert str(path) in warning.getMessage()
    assert "pidgin cache clear" in warning.getMessage()


@pytest.mark.parametrize("spoil", [not_a_database, damaged, newer])
def test_clearing_makes_an_unusable_cache_usable(tmp_path: Path, spoil: Any) -> None:
    """A broken file is replaced, and the same cache goes on with the new one."""
    path = tmp_path / "responses.db"
    spoil(path)
    with closing(ResponseCache(path)) as store:
        store.put(b"k", RESPONSE)
        assert store.get(b"k") is None
        store.clear()
        store.put(b"k", RESPONSE)
        assert store.get(b"k") == RESPONSE
        assert store.stats().problem is None


def test_commands_on_an_unusable_cache_say_why(tmp_path: Path) -> None:
    """What a person asks for outright fails with one clear line and is not passed over."""
    path = tmp_path / "responses.db"
    a_folder(path)
    store = ResponseCache(path)
    with pytest.raises(StoreError, match=r"responses\.db cannot be cleared"):
        store.clear()
    with pytest.raises(StoreError, match=r"responses\.db cannot be pruned"):
        store.prune(max_bytes=1)


def test_no_way_to_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache folder that cannot be made is left out with a warning."""
    (tmp_path / "file").write_text("in the way")
    store = ResponseCache(tmp_path / "file" / "responses.db")
    store.put(b"k", RESPONSE)
    assert store.get(b"k") is None
    assert len(caplog.records) == 1
    assert store.stats().entries == 0


def test_a_locked_cache_is_left_out_for_a_while(
    store: ResponseCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds the file nothing is stored, and nothing waits for long; later it is used again."""
    store.put(b"k", RESPONSE)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.get(b"k") == RESPONSE, "readers are not held up"
        store.put(b"l", RESPONSE)
        monkeypatch.setattr(module, "LOCK_WAIT_S", 1e9)
        store.put(b"m", RESPONSE)
        assert store.get(b"k") is None, "nothing is tried for a while"
        other.execute("ROLLBACK")
    store._paused_until = 0.0
    store.put(b"n", RESPONSE)
    assert [store.get(name) is not None for name in (b"k", b"l", b"m", b"n")] == [True, False, False, True]
    assert len(caplog.records) == 1


def test_a_full_disk_ends_storing_but_not_reading(store: ResponseCache, caplog: pytest.LogCaptureFixture) -> None:
    """What is there is still given out when nothing can be added."""
    store.put(b"k", RESPONSE)
    assert store._db is not None
    store._db.execute("PRAGMA max_page_count = 1")
    big = ModelResponse(Message(Role.ASSISTANT, "x" * 100_000), Finish())
    store.put(b"l", big)
    store.put(b"m", big)
    assert store.get(b"k") == RESPONSE
    assert len(caplog.records) == 1


def test_a_reply_that_cannot_be_read_is_asked_for_again(store: ResponseCache, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged entry is a miss, which the next reply mends."""
    store.put(b"k", RESPONSE)
    for damage in (b"", b"\xff\xff", b"\x93\x01\x02\x03", 7, "text"):
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("UPDATE replies SET reply = ?", (damage,))
        assert store.get(b"k") is None
    assert len(caplog.records) == 1
    store.put(b"k", RESPONSE)
    assert store.get(b"k") == RESPONSE


def test_an_older_file_is_emptied(store: ResponseCache) -> None:
    """A cache written by an older Pidgin is begun anew without a word."""
    store.put(b"k", RESPONSE)
    store.close()
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA user_version = 0")
    assert store.get(b"k") is None
    store.put(b"k", RESPONSE)
    assert store.get(b"k") == RESPONSE
