"""One model, one question: `Dialogue` for programs, `pidgin ask` and `pidgin cache` for people."""

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
from commands import Pidgin, error_of, pidgin, process
from keyring_stand_in import KeyringStandIn
from loopback import LoopbackServer, Reply, Tokens, loopback_in_thread
from terminal import ENVIRONMENT, Terminal

import pidgin_cli
from pidgin_cli.conversation.dialogue import (
    CompleteEvent,
    Dialogue,
    DialogueEvent,
    ErrorEvent,
    RestartEvent,
    ThinkingEvent,
    TokenEvent,
)
from pidgin_cli.core.errors import AuthenticationFailed, ProviderUnavailable, SpecError
from pidgin_cli.core.events import APIErrorEvent, Event
from pidgin_cli.core.types import AgentSettings, FinishReason, Retries
from pidgin_cli.providers.cache import ResponseCache
from pidgin_cli.providers.registry import ProviderPool

__all__ = ["pidgin"]

QUICK = Retries(attempts=3, base_s=0.001, max_wait_s=0.002)


@pytest.fixture(autouse=True)
def _nothing_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no keyring of whoever runs the tests."""
    for name in ("PIDGIN_CONFIG_DIR", "PYTHON_KEYRING_BACKEND"):
        monkeypatch.setenv(name, ENVIRONMENT[name])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> "type[Served]":
    Served.monkeypatch = monkeypatch
    return Served


class Served(LoopbackServer):
    """The loopback server, to which this process's environment leads."""

    monkeypatch: pytest.MonkeyPatch

    async def __aenter__(self) -> "Served":
        await super().__aenter__()
        for name, value in self.env.items():
            self.monkeypatch.setenv(name, value)
        return self


# The facade


async def test_tokens_then_the_whole(at: type[Served]) -> None:
    """A stream yields the pieces as they come, then one event with the whole reply and its figures."""
    async with at() as server, Dialogue("openai:gpt-4o", system="Be brief.") as dialogue:
        events = [event async for event in dialogue.process_stream("Why?")]
    assert [event.type for event in events] == ["token", "token", "token", "complete"]
    *tokens, done = events
    assert isinstance(done, CompleteEvent)
    pieces = [event.text for event in tokens if isinstance(event, TokenEvent)]
    assert pieces == ["Hello", " from", " the loopback."]
    assert done.response == "".join(pieces)
    assert not done.from_cache
    assert set(asdict(done.metrics)) == {"ttft", "total_time", "tokens", "tokens_per_second", "cost_usd"}
    assert done.metrics.tokens == 5
    assert done.metrics.ttft is not None
    assert 0 < done.metrics.ttft <= done.metrics.total_time
    assert done.metrics.cost_usd is None  # not the vendor's own server
    (request,) = server.chats
    assert (request.system, request.messages) == ("Be brief.", [("user", "Why?")])


async def test_simple_question(at: type[Served]) -> None:
    """`process` gives the whole reply; the model may come with the question, and settings are sent."""
    settings = AgentSettings(temperature=0.0, max_tokens=7)
    async with at() as server, Dialogue(settings=settings) as dialogue:
        server.script(Reply("Because.", thinking=("Let me", " see."), usage=Tokens(20, 5)))
        done = await dialogue.process("Why?", "anthropic:claude-sonnet-4-6")
    assert (done.response, done.thinking) == ("Because.", "Let me see.")
    body = server.chats[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("claude-sonnet-4-6", 0.0, 7)


async def test_which_model() -> None:
    """Without a model, or with one that nobody knows, nothing is asked."""
    async with Dialogue() as dialogue:
        for model in ("nonsens", "nobody:x"):
            with pytest.raises(SpecError, match=r"the (nearest|providers) are"):
                await dialogue.process("Why?", model)
        with pytest.raises(SpecError, match="no model is named"):
            await dialogue.process("Why?")
    async with Dialogue("test") as dialogue:
        assert (await dialogue.process("Why?")).metrics.cost_usd == 0.0


async def test_a_missing_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its key a provider is not asked, and the error names the variable."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    async with Dialogue("openai:gpt-4o") as dialogue:
        with pytest.raises(SpecError, match="OPENAI_API_KEY"):
            await dialogue.process("Why?")


PROGRAM = """
import asyncio, json
from pidgin_cli import Dialogue

async def main():
    async with Dialogue("mine") as dialogue:
        first = (await dialogue.process("Why?")).response
    async with Dialogue("keyed:m") as dialogue:
        print(json.dumps([first, (await dialogue.process("Why?")).response]))

asyncio.run(main())
"""


def test_a_program_has_what_the_person_set_up(tmp_path: Path) -> None:
    """Without a pool of its own a `Dialogue` knows the aliases and endpoints of `config.toml`, and the keyring."""
    with loopback_in_thread() as server, KeyringStandIn() as keyring:
        keyring.held["pidgin", "KEYED_KEY"] = "sk-of-the-keyring"
        (tmp_path / "config.toml").write_text(
            f'[aliases]\nmine = "open:m"\n[endpoints.open]\nbase_url = "{server.url}/v1"\n'
            f'[endpoints.keyed]\nbase_url = "{server.url}/v1"\napi_key_env = "KEYED_KEY"\n'
        )
        env = ENVIRONMENT | keyring.env | {"PIDGIN_CONFIG_DIR": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60
        )
        assert (json.loads(done.stdout or "[]"), done.stderr) == (["Hello from the loopback."] * 2, "")
        assert server.chats[1].headers["authorization"] == "Bearer sk-of-the-keyring"


async def test_a_pool_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool given nothing of the person's is read: a file that is wrong does not matter."""
    (tmp_path / "config.toml").write_text("wrong = ")
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path))
    async with Dialogue("local:test?reply=Yes", pool=ProviderPool()) as dialogue:
        assert (await dialogue.process("Hi")).response == "Yes"


async def test_every_setting_that_is_refused_is_named() -> None:
    """One line each."""
    settings = AgentSettings(think=True, effort="low")
    async with Dialogue("local:silent", settings=settings) as dialogue:
        with pytest.raises(SpecError) as caught:
            await dialogue.process("Hi")
    assert str(caught.value).splitlines() == ["local:silent does not think; leave it out"] * 2


async def test_an_error_is_an_event(at: type[Served]) -> None:
    """A refusal of the provider ends the stream with its class and words; `process` raises it."""
    wrong = Reply(status=401, body={"error": {"message": "no such key"}})
    async with at() as server, Dialogue("openai:gpt-4o") as dialogue:
        server.script(wrong, wrong)
        (event,) = [event async for event in dialogue.process_stream("Why?")]
        assert isinstance(event, ErrorEvent)
        assert (event.type, event.error) == ("error", "AuthenticationFailed")
        assert "no such key" in event.message
        with pytest.raises(AuthenticationFailed, match="no such key"):
            await dialogue.process("Why?")


async def test_what_may_be_tried_again_is(at: type[Served]) -> None:
    """A server that is busy is asked again, and the reply shows nothing of it; after the last try it is an error."""
    busy = Reply(status=503, body={"error": {"message": "busy"}})
    async with at() as server, Dialogue("openai:gpt-4o", retries=QUICK) as dialogue:
        server.script(busy, busy)
        assert (await dialogue.process("Why?")).response == "Hello from the loopback."
        server.script(busy, busy, busy)
        (event,) = [event async for event in dialogue.process_stream("Why?")]
        assert isinstance(event, ErrorEvent)
        assert event.error == "Overloaded"
    assert len(server.chats) == 6


async def test_a_stream_that_dies(at: type[Served]) -> None:
    """When the connection breaks half-way, what came stands void, and the question is asked again."""
    said: list[Event] = []
    async with at() as server, Dialogue("openai:gpt-4o", retries=QUICK, report=said.append) as dialogue:
        server.script(Reply(("One", " two", " three"), cut_after=3))
        events = [event async for event in dialogue.process_stream("Why?")]
        assert [event.type for event in events] == [*["token"] * 2, "restart", *["token"] * 3, "complete"]
        assert isinstance(events[2], RestartEvent)
        assert events[2].why
        assert isinstance(events[-1], CompleteEvent)
        assert events[-1].response == "Hello from the loopback."
    (failed,) = said
    assert isinstance(failed, APIErrorEvent)
    assert (failed.attempt, failed.message) == (1, events[2].why)
    assert failed.wait_s is not None
    assert len(server.chats) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("Whole."), "stop"),
        (Reply("Cut", finish="length"), "length"),
        (Reply("", refusal="I will not."), "refusal"),
        (Reply("", finish="content_filter"), "content_filter"),
        (Reply("?", finish="new_reason"), "unknown"),
    ],
)
async def test_why_a_reply_ended(at: type[Served], reply: Reply, reason: str) -> None:
    """The last event says why the model stopped, so that a cut or refused reply is not taken for a whole one."""
    async with at() as server, Dialogue("openai:gpt-4o") as dialogue:
        server.script(reply)
        assert (await dialogue.process("Why?")).finish_reason == FinishReason(reason)


_ONE_LOOP_AFTER_ANOTHER = """
import asyncio, sys
from pidgin_cli import Dialogue

asked = Dialogue(sys.argv[1], cache=sys.argv[2] == "cache")
for question in ("One?", "Two?", "One?"):
    print(asyncio.run(asked.process(question)).response)
asyncio.run(asked.aclose())
"""


@pytest.mark.parametrize(
    "model", ["openai:gpt-4o", "openai:gpt-5-pro", "anthropic:claude-sonnet-4-6", "google:gemini-2.5-flash", "ollama:m"]
)
def test_one_event_loop_after_another(model: str, tmp_path: Path) -> None:
    """A `Dialogue` made once answers in every `asyncio.run`, whatever SDK it asks with."""
    with loopback_in_thread() as server:
        server.installed = ["m:latest"]
        done = subprocess.run(
            [sys.executable, "-c", _ONE_LOOP_AFTER_ANOTHER, model, "cache" if model == "openai:gpt-4o" else "none"],
            env=ENVIRONMENT | server.env | {"PIDGIN_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("Hello from the loopback.\n" * 3, "")
        assert len(server.chats) == (2 if model == "openai:gpt-4o" else 3)


_LOOPS_BY_HAND = """
import asyncio, sys
from pidgin_cli import Dialogue

asked = Dialogue(sys.argv[1])
for question in ("One?", "Two?"):
    loop = asyncio.new_event_loop()
    print(loop.run_until_complete(asked.process(question)).response)
    loop.close()
asyncio.run(asked.aclose())
"""


def test_event_loops_that_ended_without_order() -> None:
    """Loops that were closed with connections open cost neither the next answer nor `aclose`."""
    with loopback_in_thread() as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _LOOPS_BY_HAND, "openai:gpt-4o"],
            env=ENVIRONMENT | server.env,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, "Hello from the loopback.\n" * 2)


async def test_streams_that_die_to_the_last(at: type[Served]) -> None:
    """All attempts count together, however they failed; after the last an error ends the stream."""
    dies = Reply(("One", " two", " three"), cut_after=3)
    busy = Reply(status=503, body={"error": {"message": "busy"}})
    async with at() as server, Dialogue("openai:gpt-4o", retries=QUICK) as dialogue:
        server.script(dies, busy, dies)
        *events, last = [event async for event in dialogue.process_stream("Why?")]
        assert [event.type for event in events] == ["token", "token", "restart", "token", "token"]
        assert isinstance(last, ErrorEvent)
        assert last.error == "ProviderUnavailable"
        server.script(dies, dies, dies)
        with pytest.raises(ProviderUnavailable):
            await dialogue.process("Why?")
    assert len(server.chats) == 6


async def test_settings_that_a_model_does_not_take() -> None:
    """They are refused before anything is asked, not dropped."""
    async with Dialogue("silent", settings=AgentSettings(think=True)) as dialogue:
        with pytest.raises(SpecError, match="local:silent does not think"):
            await dialogue.process("Why?")


async def test_leaving_midway_ends_the_request(at: type[Served]) -> None:
    """Closing the stream, or cancelling whoever reads it, hangs up on the server."""
    async with at() as server, Dialogue("openai:gpt-4o") as dialogue:
        server.script(Reply(("One", " two"), hang=2))
        async with aclosing(dialogue.process_stream("Why?")) as events:  # type: ignore[type-var]
            async for event in events:
                assert isinstance(event, TokenEvent)
                break
        await asyncio.wait_for(server.hung_up.wait(), 5)
        server.hung_up.clear()
        server.received.clear()
        server.script(Reply(hang="request"))
        asking = asyncio.create_task(dialogue.process("Why?"))
        await server.received.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_cached_replies(at: type[Served], tmp_path: Path) -> None:
    """The same request again comes from the cache, marked and free; another parameter or prompt is asked anew."""
    cache = ResponseCache(tmp_path / "replies.db")
    async with at() as server, Dialogue("openai:gpt-4o", cache=cache) as dialogue:
        first = await dialogue.process("Why?")
        again = await dialogue.process("Why?")
        assert (first.from_cache, again.from_cache) == (False, True)
        assert (again.response, again.metrics.tokens, again.metrics.cost_usd) == (first.response, 5, 0.0)
        assert not (await dialogue.process("Why not?")).from_cache
        stats = dialogue.cache_stats()
        assert (stats["entries"], stats["hits"], stats["misses"]) == (2, 1, 2)
        async with Dialogue("openai:gpt-4o", cache=cache, settings=AgentSettings(temperature=1.0)) as other:
            assert not (await other.process("Why?")).from_cache
    assert len(server.chats) == 3


async def test_failures_are_not_cached(at: type[Served], tmp_path: Path) -> None:
    """A reply that was cut for length, or broke off, is never given again."""
    cache, once = ResponseCache(tmp_path / "replies.db"), Retries(attempts=1)
    async with at() as server, Dialogue("openai:gpt-4o", cache=cache, retries=once) as dialogue:
        server.script(Reply("Cut", finish="length"), Reply(("Half", "way"), cut_after=2))
        assert (await dialogue.process("Why?")).response == "Cut"
        with pytest.raises(ProviderUnavailable):
            await dialogue.process("Why?")
        assert (await dialogue.process("Why?")).response == "Hello from the loopback."
        assert dialogue.cache_stats()["entries"] == 1


async def test_figures_of_cache_and_memory() -> None:
    """Without a cache its figures are empty; memory is that of this process, and what is left."""
    async with Dialogue("test") as dialogue:
        assert dialogue.cache_stats() == {}
        memory = dialogue.memory_stats()
    assert set(memory) == {"process_bytes", "available_bytes"}
    assert all(value > 1_000_000 for value in memory.values())


# As the package offers it


def test_the_package_offers_it() -> None:
    """`from pidgin_cli import Dialogue` and the events work, and `__all__` tells no lies."""
    assert pidgin_cli.Dialogue is Dialogue
    assert {getattr(pidgin_cli, name).__name__ for name in pidgin_cli.__all__} == set(pidgin_cli.__all__)
    assert {CompleteEvent, Dialogue, ErrorEvent, RestartEvent, ThinkingEvent, TokenEvent} <= {
        getattr(pidgin_cli, name) for name in pidgin_cli.__all__
    }
    assert set(get_args(DialogueEvent)) <= {getattr(pidgin_cli, name) for name in pidgin_cli.__all__}
    assert set(pidgin_cli.__all__) <= set(dir(pidgin_cli))
    with pytest.raises(AttributeError, match="no attribute 'Monologue'"):
        _ = pidgin_cli.Monologue


_LOADED = """
import sys
import pidgin_cli
cheap = sorted(name for name in sys.modules if name.startswith("pidgin_cli") or name in ("asyncio", "msgspec"))
from pidgin_cli import Dialogue
Dialogue("test").memory_stats()
print(cheap, sorted({"anthropic", "openai", "ollama", "google.genai"} & set(sys.modules)))
"""


def test_what_is_loaded() -> None:
    """`import pidgin_cli` loads nothing but itself; `Dialogue` and its figures load no vendor's SDK."""
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "['pidgin_cli'] []\n"


# pidgin ask


def test_ask_in_a_pipe(pidgin: Pidgin) -> None:
    """Piped, the answer comes bare with one newline at its end, and nothing else."""
    assert pidgin("ask", "Hi", "-m", "local:test?reply=Exactly+so.") == (0, "Exactly so.\n", "")
    assert pidgin("ask", "Hi", "-m", "local:test?reply=Two%0Alines%0A") == (0, "Two\nlines\n", "")
    assert pidgin("ask", "Hi", "-m", "silent") == (0, "\n", "")
    assert list(Path().iterdir()) == []


def test_ask_again_in_a_pipe(pidgin: Pidgin) -> None:
    """Piped, nothing of an attempt that broke off is printed; the wait for the next is told on standard error."""
    said = pidgin("ask", "Hi", "-m", "local:test?reply=One+two+three+four.&fail=disconnect@1")
    assert (said.status, said.out) == (0, "One two three four.\n")
    assert said.err.startswith("the connection was cut (asked for by fail=disconnect); trying again in ")
    assert said.err.count("\n") == 1


def test_ask_from_a_file_and_standard_input(pidgin: Pidgin) -> None:
    """@FILE and - give the question; a system prompt goes with it."""
    Path("question.txt").write_text("From a file?\n")
    with loopback_in_thread() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        flags = ("-m", "openai:gpt-4o", "-s", "Be brief.", "--temperature", "0", "--max-tokens", "9")
        assert pidgin("ask", "@question.txt", *flags).status == 0
        assert pidgin("ask", "-", *flags, stdin=b"From a pipe?\n").status == 0
        first, second = server.chats
    assert first.messages == [("user", "From a file?")]
    assert second.messages == [("user", "From a pipe?")]
    assert first.system == "Be brief."
    assert first.body["temperature"] == 0
    assert 9 in (first.body.get("max_tokens"), first.body.get("max_completion_tokens"))


def test_ask_as_json(pidgin: Pidgin) -> None:
    """--json prints every event as a line, an error included; what was thought comes with the whole reply."""
    said = pidgin("ask", "Hi", "-m", "local:test?reply=Yes", "--json", "--think")
    thought, token, done = (json.loads(line) for line in said.out.splitlines())
    assert (thought["type"], thought["text"]) == ("thinking", done["thinking"])
    assert token == {"type": "token", "text": "Yes"}
    assert (done["type"], done["response"], done["from_cache"]) == ("complete", "Yes", False)
    assert done["thinking"]
    said = pidgin("ask", "Hi", "-m", "local:test?fail=auth@1", "--json")
    assert (said.status, said.err) == (1, "")
    assert json.loads(said.out)["error"] == "AuthenticationFailed"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("Cut", finish="length"), (0, "Cut\n", "the answer is not whole: cut at the token limit\n")),
        (Reply("", refusal="I will not."), (0, "I will not.\n", "the answer is not whole: refused by the model\n")),
        (Reply(""), (0, "\n", "")),
        (
            Reply("", finish="content_filter"),
            (1, "\n", "Error: no answer: stopped by the provider's filter\n"),
        ),
    ],
    ids=["cut", "refused", "empty", "filtered"],
)
def test_ask_tells_how_an_answer_ended(
    pidgin: Pidgin, reply: Reply, said: tuple[int, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piped, one line on standard error says that an answer is not whole; one that was withheld is a failure."""
    with loopback_in_thread() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.script(reply, reply)
        assert pidgin("ask", "Hi", "-m", "openai:gpt-4o") == said
        as_json = pidgin("ask", "Hi", "-m", "openai:gpt-4o", "--json")
        assert (as_json.status, as_json.err) == (said[0], "")
        assert json.loads(as_json.out.splitlines()[-1])["finish_reason"] == (
            "refusal" if reply.refusal else reply.finish or "stop"
        )


def test_ask_tells_how_an_answer_ended_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal it stands among the figures; an answer that was withheld is an error as well."""
    ask = ("ask", "Hi", "-m", "openai:gpt-4o")
    with loopback_in_thread() as server:
        server.script(Reply("Cut", finish="length"), Reply("", finish="content_filter"))
        with Terminal(*ask, cwd=tmp_path, env=server.env) as terminal:
            assert terminal.wait() == 0
            assert " · cut at the token limit" in terminal.text
            assert "not whole" not in terminal.text
        with Terminal(*ask, cwd=tmp_path, env=server.env) as terminal:
            assert terminal.wait() == 1
            assert " · stopped by the provider's filter" in terminal.text
            assert "Error: no answer: stopped by the provider's filter" in terminal.text


def test_ask_shows_thinking(pidgin: Pidgin, tmp_path: Path) -> None:
    """Piped, what was thought is on stderr and the answer alone on stdout; with --json the flag is wrong use."""
    ask = ("ask", "Hi", "-m", "local:test?reply=Yes&thinking=1")
    said = pidgin(*ask)
    assert (said.out, said.err) == ("Yes\n", "")
    (thought,) = [
        event["thinking"]
        for event in map(json.loads, pidgin(*ask, "--json").out.splitlines())
        if event["type"] == "complete"
    ]
    said = pidgin(*ask, "--show-thinking")
    assert (said.status, said.out, said.err) == (0, "Yes\n", f"{thought}\n")
    assert "leave --show-thinking out" in error_of(pidgin(*ask, "--show-thinking", "--json"))
    with Terminal(*ask, "--show-thinking", cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
        before, _, after = terminal.text.partition("\nYes\n")
        assert " ".join(before.split()) == thought
        assert "tokens · $0" in after
        assert b"\x1b[2m" in terminal.raw.partition(b"Yes")[0]


def test_ask_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal the answer is wrapped, and its figures stand below."""
    with Terminal("ask", "Hi", "-m", "local:test?reply=Exactly+so.", cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
        assert terminal.text.startswith("Exactly so.\n")
        assert "2 tokens · $0 · first token 0." in terminal.text


def test_ask_again_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal a line says that the answer begins again, and the new one stands below it, whole."""
    model = "local:test?reply=One+two+three+four.&fail=disconnect@1"
    with Terminal("ask", "Hi", "-m", model, cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
        assert "\nthe answer broke off and begins again:\nOne two three four.\n" in terminal.text
        assert "trying again in" in terminal.text


def test_ask_shows_no_commands_to_the_terminal(tmp_path: Path) -> None:
    """Control characters of a model's answer do not reach the terminal."""
    with Terminal("ask", "Hi", "-m", "local:test?reply=a%1b]0;title%07b", cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
        assert b"\x1b]0;" not in terminal.raw


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (("Hi", "-m", "local:test?fail=auth@1"), 1, "AuthenticationFailed: "),
        (("Hi", "-m", "local:test?fail=context@1"), 1, "ContextLengthExceeded: "),
        (("Hi", "-m", "openai:gpt-4o"), 2, "needs a key: export OPENAI_API_KEY=…"),
        (("Hi", "-m", "sonet"), 2, "the nearest are sonnet"),
        (("Hi", "-m", "local:tset"), 2, "no model 'local:tset'; did you mean 'test'"),
        (("Hi",), 2, "Missing option '-m'"),
        (("-m", "test"), 2, "Missing argument 'PROMPT'"),
        ((" ", "-m", "test"), 2, "the text is empty; give some"),
        (("@none.txt", "-m", "test"), 2, "none.txt: No such file"),
        (("Hi", "-m", "test", "--temperature", "3"), 2, "--temperature"),
        (("Hi", "-m", "silent", "--think"), 2, "local:silent does not think; leave it out"),
    ],
)
def test_ask_that_goes_wrong(pidgin: Pidgin, argv: tuple[str, ...], status: int, told: str) -> None:
    """What fails while asking is 1, wrong use is 2; one line says what it was, and nothing else is printed."""
    assert told in error_of(pidgin("ask", *argv), status)


# The cache


def test_ask_and_cache_commands(tmp_path: Path) -> None:
    """--cache answers the second time from the cache; `cache stats` counts, `prune` and `clear` forget."""
    cached = {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}
    assert "responses.db: 0 replies, 0.0 MB\n" in process("cache", "stats", cwd=tmp_path, env=cached).out
    with loopback_in_thread() as server:
        env = cached | server.env
        first = process("ask", "Hi", "-m", "openai:gpt-4o", "--cache", cwd=tmp_path, env=env)
        again = process("ask", "Hi", "-m", "openai:gpt-4o", "--cache", "--json", cwd=tmp_path, env=env)
        assert len(server.chats) == 1
        with Terminal("ask", "Hi", "-m", "openai:gpt-4o", "--cache", cwd=tmp_path, env=env) as terminal:
            assert terminal.wait() == 0
            assert "from the cache" in terminal.text
        assert len(server.chats) == 1
        assert process("ask", "Hi", "-m", "openai:gpt-4o", cwd=tmp_path, env=env).status == 0
        assert len(server.chats) == 2
    done = json.loads(again.out.splitlines()[-1])
    assert (first.out, done["response"], done["from_cache"]) == (f"{done['response']}\n", done["response"], True)
    stats, _ = json.loads(process("cache", "stats", "--json", cwd=tmp_path, env=cached).out)
    assert (stats["entries"], stats["path"]) == (1, str(tmp_path / "cache" / "responses.db"))
    assert ": 1 replies, 0.0 MB\nfrom " in process("cache", "stats", cwd=tmp_path, env=cached).out
    rest = "replies and 0 vectors\n"
    assert process("cache", "prune", "--older-than-days", "1", cwd=tmp_path, env=cached).out == f"forgot 0 {rest}"
    assert process("cache", "prune", "--older-than-days", "0", cwd=tmp_path, env=cached).out == f"forgot 1 {rest}"
    assert process("cache", "clear", cwd=tmp_path, env=cached).out == f"forgot 0 {rest}"


def test_cache_commands_that_go_wrong(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune` wants to know what may go; a broken file is told by `stats` and replaced by `clear`."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", "cache")
    assert "--older-than-days N, --max-mb N, or both" in error_of(pidgin("cache", "prune"))
    assert error_of(pidgin("cache", "prune", "--max-mb", "0"))
    Path("cache").mkdir()
    Path("cache/responses.db").write_bytes(b"no database at all" * 100)
    assert "it cannot be used: " in pidgin("cache", "stats").out
    assert error_of(pidgin("cache", "prune", "--max-mb", "1"), 1)
    assert pidgin("cache", "clear") == (0, "forgot 0 replies and 0 vectors\n", "")
    assert "it cannot be used" not in pidgin("cache", "stats").out
