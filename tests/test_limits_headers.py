"""Limits per minute as replies tell them: what the headers mean, what follows, and how it goes with the real SDKs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from forked_cli import KillWhen, logs_in, run_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply, Request, loopback_in_thread
from support import check_record, converse, experiment, messages, of_type
from test_limits import now, simulated

from pidgin_cli.core.errors import RateLimited
from pidgin_cli.core.events import (
    Event,
    LimitChangedEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
)
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    Finish,
    LimitsDelta,
    Message,
    ModelRequest,
    RateLimit,
    Role,
    TextDelta,
    Timeouts,
    Usage,
    fold,
)
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.providers.limits import MINUTE_S, Limited, Limiter
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.providers.wire import rate_limits
from pidgin_cli.providers.wrappers import Timed

REQUEST = ModelRequest(model="m", messages=(Message(Role.USER, "Hello."),))
ANTHROPIC = "anthropic:claude-opus-5"
OPENAI = "openai:gpt-5.1"


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


# --- what the headers mean


def openai_headers(what: str, limit: object, remaining: object, reset: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": reset,
    }


def anthropic_headers(what: str, limit: int, remaining: int, reset: str) -> dict[str, str]:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{what}-{field}": str(value) for field, value in values.items()}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("2m59.56s", 179.56), ("1h2m", 3720.0), ("7", 7.0), ("0.5", 0.5)],
)
def test_how_long_until_all_is_there_again(reset: str, seconds: float) -> None:
    """Durations in every shape that OpenAI, Groq and others use."""
    (found,) = rate_limits(openai_headers("requests", 60, 59, reset))
    assert (found.what, found.limit, found.remaining) == ("requests", 60, 59)
    assert found.reset_s == pytest.approx(seconds)


@pytest.mark.parametrize("shape", ["iso", "seconds", "milliseconds"])
def test_when_all_is_there_again(shape: str) -> None:
    """Moments are compared with the clock of the server, so that ours may be wrong."""
    there = datetime(2031, 5, 4, 12, 0, 0, tzinfo=UTC)
    moment = there + timedelta(seconds=40)
    text = {
        "iso": moment.isoformat().replace("+00:00", "Z"),
        "seconds": str(int(moment.timestamp())),
        "milliseconds": str(int(moment.timestamp() * 1000)),
    }[shape]
    headers = anthropic_headers("input-tokens", 50_000, 0, text) | {"date": "Sun, 04 May 2031 12:00:00 GMT"}
    assert rate_limits(headers) == (RateLimit("input tokens", 50_000, 0, 40.0),)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        openai_headers("requests", 0, 0, "1s"),
        openai_headers("requests", -1, -1, "0s"),
        openai_headers("requests", "many", "some", "later"),
        {"x-ratelimit-limit": "10", "x-ratelimit-reset": "1"},
        {"x-ratelimit-reset-tokens": "1s"},
    ],
    ids=str,
)
def test_what_cannot_be_used_is_left_out(headers: dict[str, str]) -> None:
    """No limit, one of 0 or less, and what is no number say nothing."""
    assert rate_limits(headers) == ()


@given(
    st.dictionaries(
        st.sampled_from([*openai_headers("requests", 1, 1, ""), *anthropic_headers("output-tokens", 1, 1, ""), "date"]),
        st.text(max_size=12) | st.floats().map(str) | st.integers().map(str),
    )
)
def test_no_header_breaks_anything(headers: dict[str, str]) -> None:
    """Whatever a server sends: numbers that make sense, or nothing."""
    for found in rate_limits(headers):
        assert found.limit is None or found.limit > 0
        assert found.remaining is None or found.remaining >= 0
        assert found.reset_s is None or found.reset_s >= 0


# --- what follows, in simulated time


class Account:
    """A server that counts requests in fixed minutes, in the first of them also those of others, and says so."""

    def __init__(self, limit: int, used: int, minute_s: float = 60.0) -> None:
        self.limit = limit
        self.minute_s = minute_s
        self.used = used
        self.ends = -1.0
        self.served: list[float] = []

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        if self.ends < 0:
            self.ends = now() + 20.0
        while now() >= self.ends:
            self.ends, self.used = self.ends + self.minute_s, 0
        self.used += self.used < self.limit
        told = (RateLimit("requests", self.limit, self.limit - self.used, self.ends - now()),)
        self.served.append(now())
        yield LimitsDelta(told)
        await asyncio.sleep(0.5)
        yield TextDelta("Well.")
        yield Finish()

    async def aclose(self) -> None:
        pass


class Changes(list[LimitChangedEvent]):
    def __call__(self, event: Event) -> None:
        if isinstance(event, LimitChangedEvent):
            self.append(event)

    @property
    def per_minute(self) -> list[tuple[str, int | None, int]]:
        return [(event.what, event.before, event.limit) for event in self if event.what != "requests at once"]


async def ask(limiter: Limiter, inner: Account, report: Changes | None = None) -> list[Delta]:
    return [delta async for delta in Limited(inner, limiter, report).stream_response(REQUEST)]


def test_a_learned_limit_is_obeyed_and_recorded() -> None:
    """Sixty conversations, thirty requests a minute of which others used ten: never more, and told once."""

    async def run() -> None:
        account, limiter, changes = Account(30, used=10), Limiter(provider="openai", model="m"), Changes()
        began = now()
        found = await asyncio.gather(*(ask(limiter, account, changes) for _ in range(60)))
        assert all(isinstance(delta, TextDelta | Finish) for deltas in found for delta in deltas)
        first = [at for at in account.served if at < began + 19.9]
        assert len(first) == 20, "all that others had left, and no more"
        times = account.served
        assert all(later - at >= 60 for at, later in zip(times, times[30:], strict=False))
        assert times[-1] < began + 20 + 2 * MINUTE_S, "as soon as it could be"
        assert changes.per_minute == [("requests per minute", None, 30)]
        event = next(event for event in changes if event.what == "requests per minute")
        assert (event.provider, event.model, event.why) == ("openai", "m", "told by the provider")

    simulated(run())


def test_a_limit_that_changes_is_told_again() -> None:
    """Both numbers stand in the record."""

    async def run() -> None:
        account, limiter, changes = Account(30, used=0), Limiter(), Changes()
        await ask(limiter, account, changes)
        account.limit = 50
        await ask(limiter, account, changes)
        await ask(limiter, account, changes)
        assert changes.per_minute == [("requests per minute", None, 30), ("requests per minute", 30, 50)]

    simulated(run())


def test_own_limits_win() -> None:
    """What the person set is neither widened nor narrowed by what the provider says."""

    async def run() -> None:
        changes = Changes()
        wide = Limiter(100, requests_per_minute=40, start=100)
        began = now()
        await ask(wide, Account(30, used=29), changes)
        for _ in range(39):
            await wide.acquire()
        assert now() < began + 61, "those who set more know better than the header, once its minute is over"
        narrow = Limiter(100, requests_per_minute=5, tokens_per_minute=100, start=100)
        place = await narrow.acquire(10)
        told = (RateLimit("requests", 1000, 999), RateLimit("tokens", 10**6, 5), RateLimit("input tokens", 10**6, 5))
        narrow.learn(place, told, changes)
        began = now()
        for _ in range(4):
            await narrow.acquire(20)
        assert now() == began
        await narrow.acquire(20)
        assert now() == pytest.approx(began + MINUTE_S)
        assert changes.per_minute == []

    simulated(run())


@pytest.mark.parametrize("what", ["requests", "tokens", "input tokens", "output tokens"])
def test_nothing_remains_until_the_reset(what: str) -> None:
    """Before the reset nothing is sent, whatever an answer says that was under way at the time."""

    async def run() -> None:
        limiter = Limiter(4, start=4)
        first, second = await limiter.acquire(1), await limiter.acquire(1)
        began = now()
        limiter.learn(second, (RateLimit(what, 1000, 0, 7.5),))  # type: ignore[arg-type]
        limiter.learn(first, (RateLimit(what, 1000, 1, 7.5),))  # type: ignore[arg-type]
        await limiter.acquire(1)
        assert now() == began + 7.5

    simulated(run())


def test_input_and_output_are_counted_apart() -> None:
    """Input read from the cache of prompts does not count, output counts as long as usual replies are."""

    async def run() -> None:
        limiter = Limiter(100, start=100)
        told = (
            RateLimit("tokens", 12_000, 12_000, 0.0),
            RateLimit("input tokens", 10_000, 10_000, 0.0),
            RateLimit("output tokens", 2_000, 2_000, 0.0),
        )
        began = now()
        place = await limiter.acquire(1000)
        limiter.learn(place, told)
        assert set(limiter._minutes) == {"input tokens", "output tokens"}
        limiter.release(place, Usage(prompt_tokens=1000, completion_tokens=400, cached_tokens=900))
        place = await limiter.acquire(1000)
        assert place.reserved["output tokens"].amount == 400
        limiter.release(place, Usage(prompt_tokens=9000, completion_tokens=400, cached_tokens=8900))
        for _ in range(3):
            await limiter.acquire(10)
        assert now() == began, "2000 of 2000"
        await limiter.acquire(10)
        assert now() == began + MINUTE_S

    simulated(run())


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 40),
    used=st.integers(0, 40),
    crowd=st.integers(1, 60),
    minute_s=st.sampled_from([60.0, 3600.0]),
)
def test_a_learned_limit_is_never_passed(limit: int, used: int, crowd: int, minute_s: float) -> None:
    """Once an answer has come, no request goes out of which the server's own count says that it is one too many."""

    async def run() -> None:
        account, limiter = Account(limit, used=min(used, limit - 1), minute_s=minute_s), Limiter(start=1)
        over: list[float] = []
        inner = account.stream_response

        async def counted(request: ModelRequest) -> AsyncIterator[Delta]:
            if account.ends > now() + 0.001 and account.used >= limit:
                over.append(now())
            async for delta in inner(request):
                yield delta

        account.stream_response = counted  # type: ignore[method-assign]
        await asyncio.gather(*(ask(limiter, account) for _ in range(crowd)))
        assert len(account.served) == crowd
        assert over == []

    simulated(run())


def test_the_headers_are_no_first_token() -> None:
    """`ttft_ms` is the time to the first piece of the reply, whatever was said of limits before."""

    async def run() -> None:
        timed = Timed(Account(30, used=0), Timeouts(), "openai")
        finish = [delta async for delta in timed.stream_response(REQUEST)][-1]
        assert isinstance(finish, Finish)
        assert (timing := finish.timing) is not None
        assert (timing.ttft_ms, timing.duration_ms) == (500.0, 500.0)

    simulated(run())


def test_limits_are_no_part_of_a_reply() -> None:
    """A fold with them equals one without."""
    deltas: list[Delta] = [TextDelta("Well."), Finish()]
    assert fold([LimitsDelta((RateLimit("requests", 3),)), *deltas]) == fold(deltas)


# --- through the real SDKs

SDKS = pytest.mark.parametrize(
    ("model", "settings", "headers"),
    [
        (ANTHROPIC, AgentSettings(), anthropic_headers("requests", 50, 49, "2031-05-04T12:00:01Z")),
        (OPENAI, AgentSettings(), openai_headers("requests", 50, 49, "1s")),
        ("openai:gpt-5-pro", AgentSettings(), openai_headers("requests", 50, 49, "1s")),
    ],
    ids=["anthropic", "openai", "responses"],
)
DATE = {"date": "Sun, 04 May 2031 12:00:00 GMT"}


def asked_at_home(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Some models have an API of their own, at the vendor's only."""
    if model == "openai:gpt-5-pro":
        monkeypatch.setitem(PROVIDERS, "openai", PROVIDERS["openai"]._replace(home="127.0.0.1"))


@SDKS
async def test_limits_come_with_a_reply(
    model: str,
    settings: AgentSettings,
    headers: dict[str, str],
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each SDK's stream gives them first, and a conversation's record tells them once."""
    asked_at_home(monkeypatch, model)
    server.reply = lambda _: Reply("Hello.", headers=headers | DATE)
    pool = ProviderPool()
    try:
        adapter = pool.adapter(model, Timeouts(), settings)
        request = ModelRequest(model=model.partition(":")[2], messages=REQUEST.messages)
        deltas = [delta async for delta in adapter.stream_response(request)]
    finally:
        await pool.aclose()
    assert deltas[0] == LimitsDelta((RateLimit("requests", 50, 49, 1.0),))
    assert not any(isinstance(delta, LimitsDelta) for delta in deltas[1:])
    assert fold(deltas).message.content == "Hello."


@SDKS
async def test_limits_come_with_a_refusal(
    model: str,
    settings: AgentSettings,
    headers: dict[str, str],
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 429 tells them as well as a reply does."""
    asked_at_home(monkeypatch, model)
    server.reply = lambda _: Reply(status=429, headers=headers | DATE, body={"error": {"message": "Slow down."}})
    pool = ProviderPool()
    try:
        adapter = pool.adapter(model, Timeouts(), settings)
        with pytest.raises(RateLimited) as caught:
            await anext(adapter.stream_response(ModelRequest(model=model.partition(":")[2], messages=REQUEST.messages)))
    finally:
        await pool.aclose()
    assert caught.value.limits == (RateLimit("requests", 50, 49, 1.0),)


@pytest.mark.parametrize("model", [ANTHROPIC, OPENAI])
async def test_a_conversation_waits_for_the_reset_instead_of_a_429(
    model: str, server: LoopbackServer, tmp_path: Path
) -> None:
    """Nothing remains after the first reply: the second request comes after the reset, and the record says why."""
    arrived: list[float] = []
    reset_s = 1.6

    def reply(_: Request) -> Reply:
        arrived.append(time.monotonic())
        if len(arrived) > 1 and arrived[-1] - arrived[0] < reset_s:
            return Reply(status=429, body={"error": {"message": "Slow down."}})
        moment = (datetime.now(UTC) + timedelta(seconds=reset_s)).isoformat()
        headers = (
            anthropic_headers("requests", 60, 0, moment)
            if model == ANTHROPIC
            else openai_headers("requests", 60, 0, f"{reset_s}s")
        )
        return Reply("Hello.", headers=headers if len(arrived) == 1 else {})

    server.reply = reply
    run = await converse(tmp_path, experiment(model, model, max_turns=1))
    check_record(run.events)
    assert [message.message.content for message in messages(run.events)] == ["Hello.", "Hello."]
    assert len(arrived) == 2
    (wait,) = of_type(run.events, RateLimitEvent)
    assert (wait.reason, wait.agent_id, wait.message_index, wait.attempt) == ("limit", "b", 1, 1)
    assert wait.message == "nothing remains of the requests that the provider allows"
    assert wait.wait_s is not None
    assert 1.0 < wait.wait_s <= reset_s
    (change,) = of_type(run.events, LimitChangedEvent)
    assert (change.what, change.limit, change.before) == ("requests per minute", 60, None)
    assert run.events.index(wait) < run.events.index(messages(run.events)[1]), "told while it waits"
    queued_ms = messages(run.events)[1].timing.queued_ms
    assert queued_ms is not None
    assert queued_ms > 1000


# --- killed while it waits


@pytest.fixture
def thread_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    with loopback_in_thread() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


def test_a_kill_while_waiting_in_the_queue_loses_nothing(thread_server: LoopbackServer, tmp_path: Path) -> None:
    """SIGKILL in the middle of a wait: `resume` asks what was not asked, once, and what was answered not again."""
    spent = openai_headers("requests", 60, 0, "10m0s")
    thread_server.script(Reply("One."), Reply("Two.", headers=spent))
    flags = ["-a", OPENAI, "-b", OPENAI, "-t", "2", "-p", "Hello.", "-o", str(tmp_path), "--display", "quiet"]
    killed = run_plain(["chat", *flags], kill=KillWhen(tmp_path, shows='"reason":"limit"', then_s=0.05))
    assert killed.killed, killed.output
    assert len(thread_server.chats) == 2, "the third was not sent"
    (log,) = logs_in(tmp_path)
    before = read_record(log).events
    (wait,) = of_type(before, RateLimitEvent)
    assert (wait.message_index, wait.reason) == (2, "limit")
    assert wait.wait_s == pytest.approx(600, abs=5)
    thread_server.script(Reply("Three."), Reply("Four."))
    done = run_plain(["resume", "--all", "-o", str(tmp_path), "--display", "quiet"])
    assert done.status == 0, done.output
    events = read_record(log).events
    check_record(events)
    assert events[: len(before)] == before
    said = [event.message.content for event in of_type(events, MessageCompleteEvent)]
    assert said == ["One.", "Two.", "Three.", "Four."]
    assert len(thread_server.chats) == 4
    asked = [event.message_index for event in of_type(events, MessageRequestEvent)]
    assert asked == [0, 1, 2, 2, 3]
    (abandoned,) = of_type(events, MessageAbandonedEvent)
    assert (abandoned.message_index, abandoned.partial) == (2, None)


async def test_retry_after_outranks_the_reset_of_the_full_allowance() -> None:
    """A 429 that says come back in 0.1 s is obeyed, though its headers say that all is restored in six minutes only."""
    limiter = Limiter(None, provider="p", model="m")
    place = await limiter.acquire(10)
    spent = RateLimit("tokens", 150_000, 0, 360.0)
    limiter.learn(place, [spent], back_in_s=0.1)
    limiter.release(place)
    async with asyncio.timeout(5):
        limiter.release(await limiter.acquire(10))
