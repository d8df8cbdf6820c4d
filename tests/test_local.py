"""The models that need nothing: `local:test` and `local:silent`."""

import asyncio
import math
import re
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
    SpecError,
)
from pidgin_cli.core.types import (
    AgentSettings,
    Delta,
    Finish,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
    ResponseFold,
    Role,
    TextDelta,
    ThinkingDelta,
    fold,
)
from pidgin_cli.providers import local
from pidgin_cli.providers.base import Provider, Timeouts
from pidgin_cli.providers.local import LocalProvider, check_model
from pidgin_cli.providers.registry import PROVIDERS


def view(*texts: str) -> tuple[Message, ...]:
    return tuple(Message((Role.USER, Role.ASSISTANT)[i % 2], text) for i, text in enumerate(texts))


def ask(model: str = "test", **changes: Any) -> ModelRequest:
    defaults: dict[str, Any] = {"messages": view("Good morning."), "seed": 5, "agent_id": "a"}
    return ModelRequest(model=model, **(defaults | changes))


def run(request: ModelRequest) -> tuple[list[Delta], ProviderError | None]:
    """Deltas and error of a reply that awaits nothing, and so needs no event loop."""
    deltas: list[Delta] = []

    async def collect() -> None:
        async for delta in LocalProvider(Timeouts()).stream_response(request):
            deltas.append(delta)  # noqa: PERF401 (what arrived before an error is wanted)

    step = collect()
    try:
        step.send(None)
    except StopIteration:
        return deltas, None
    except ProviderError as error:
        return deltas, error
    step.close()
    raise AssertionError("the reply awaited something")


def reply(model: str = "test", **changes: Any) -> ModelResponse:
    deltas, error = run(ask(model, **changes))
    assert error is None
    return fold(deltas)


def text(model: str = "test", **changes: Any) -> str:
    return reply(model, **changes).message.content


def failure(model: str, **changes: Any) -> ProviderError | None:
    return run(ask(model, **changes))[1]


def vocabulary(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_is_a_provider() -> None:
    """It keeps to the seam, and the registry knows where it is."""
    provider: Provider = LocalProvider(Timeouts())
    assert PROVIDERS["local"].adapter == f"{type(provider).__module__}:{type(provider).__name__}"


texts = st.text(max_size=200)
requests = st.builds(
    ModelRequest,
    model=st.sampled_from(
        ["test", "test?seed=3&words=20", "test?thinking=1&chunk=2", "test?echo=0.7", "test?loop_at=3", "silent"]
    ),
    messages=st.lists(texts, min_size=1, max_size=5).map(lambda parts: view(*parts)),
    system=st.none() | texts,
    seed=st.integers(0, 2**64),
    agent_id=st.sampled_from(["a", "b", "c", "somebody"]),
    own_number=st.integers(1, 500),
    attempt=st.integers(1, 3),
    purpose=st.sampled_from(["message", "name", "summary"]),
    conversation_id=st.text(max_size=10),
    digest=st.text("0123456789abcdef", max_size=16),
)


@settings(max_examples=150, deadline=None)
@given(requests, st.text(max_size=10), st.integers(0, 99))
def test_is_a_pure_function(request: ModelRequest, conversation_id: str, number: int) -> None:
    """The same request gets the same deltas, whatever was asked before and wherever it is asked."""
    first, error = run(request)
    run(msgspec.structs.replace(request, seed=request.seed + 1))
    moved = msgspec.structs.replace(request, conversation_id=conversation_id, turn_number=number, message_index=number)
    assert run(moved) == (first, None)
    assert error is None
    assert isinstance(first[-1], Finish)
    assert sum(isinstance(delta, Finish) for delta in first) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from("abc"), texts, st.integers(1, 400))
def test_different_draws_differ(seed: int, agent_id: str, last: str, number: int) -> None:
    """Another seed, agent, number, system prompt, view or last text gives another text."""
    base = {"seed": seed, "agent_id": agent_id, "messages": view(last), "own_number": number}
    others: list[dict[str, Any]] = [
        {"seed": seed + 1},
        {"agent_id": agent_id + "x"},
        {"messages": view(last + "!")},
        {"messages": view("x", "y", last)},
        {"own_number": number + 1},
        {"system": "You are an artist."},
    ]
    written = {text(**(base | other)) for other in [{}, *others]}
    assert len(written) == 1 + len(others)
    assert text("test?seed=1", **base) != text("test?seed=2", **base)


def test_text_is_known() -> None:
    """The text does not depend on the machine, the Python or its hash seed."""
    assert text("test?words=12") == "An elastic giant is more clumsy than each poet."


def test_attempts_write_the_same() -> None:
    """A message that was retried has the text it would have had anyway."""
    assert text("test?fail=timeout@1", attempt=2) == text("test")
    assert reply(attempt=1).finish.request_id != reply(attempt=2).finish.request_id


def test_delivery_does_not_change_text() -> None:
    """Parameters about time and pieces leave the text alone."""
    assert text("test?chunk=3&thinking=1") == text("test")


def test_odd_views() -> None:
    """Lone surrogates, 1 MB and an empty list are taken."""
    for messages in (view("\ud800"), view("long " * 200_000), view(""), ()):
        assert text("test?echo=0.5", messages=messages, system="\udfff", agent_id="\ud800")


def test_silent() -> None:
    """`local:silent` says nothing, calls that a whole reply, and is named Silence."""
    deltas, error = run(ask("silent"))
    response = fold(deltas)
    assert error is None
    assert not [delta for delta in deltas if isinstance(delta, TextDelta)]
    assert (response.message.content, response.finish.reason) == ("", FinishReason.STOP)
    assert response.usage.completion_tokens == 0
    assert text("silent", purpose="name") == "Silence"
    assert text("silent", purpose="summary") == ""


@pytest.mark.parametrize("words", [5, 20, 60, 200])
def test_length(words: int) -> None:
    """`words` is the mean length, and lengths vary around it."""
    lengths = [len(text(f"test?words={words}", own_number=n).split()) for n in range(1, 300)]
    assert sum(lengths) / len(lengths) == pytest.approx(words, rel=0.1)
    assert min(lengths) < 0.7 * words
    assert max(lengths) > 1.3 * words
    assert max(lengths) <= 1.5 * words + 1


def test_sentences() -> None:
    """Texts are sentences; they begin with a capital and end with a mark, and long ones have paragraphs."""
    written = [text(own_number=n) for n in range(1, 200)]
    for sentence in re.split(r"(?<=[.?!])\s+", " ".join(written)):
        assert re.fullmatch(r"[A-Z][\w',:; ]*[.?!]", sentence), sentence
    joined = " ".join(written)
    assert all(joined.count(mark) > 10 for mark in ".,?!")
    assert "\n\n" in text("test?words=300")
    assert not re.search(r"\b(an [^aeiouh\W]|a [aeio])", joined)


def test_vocabulary_is_zipf_like() -> None:
    """Over a long sample there are more than 2,000 types, and frequency falls about as 1 / rank."""
    counts = Counter(word for n in range(3000) for word in vocabulary(local._message(str(n), 60)))
    assert len(counts) > 2000
    top = [count for _, count in counts.most_common(1000)]
    points = [(math.log(rank), math.log(count)) for rank, count in enumerate(top, 1)]
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    assert -1.4 < slope < -0.7


def test_echo_takes_up_the_partner() -> None:
    """The more `echo`, the more of the words are the partner's, for its own texts and for foreign ones."""
    foreign = (
        "Bioluminescent krill navigate Antarctic fjords; glaciologists tabulate albedo, salinity and plankton blooms."
    )

    def overlap(echo: float, partner: str) -> float:
        shares = []
        for number in range(1, 60):
            said = partner or text(agent_id="b", own_number=number)
            mine = vocabulary(text(f"test?echo={echo}", own_number=number, messages=view(said)))
            shares.append(sum(word in set(vocabulary(said)) for word in mine) / len(mine))
        return sum(shares) / len(shares)

    for partner in ("", foreign):
        none, half, full = (overlap(echo, partner) for echo in (0, 0.5, 1))
        assert none + 0.1 < half < full - 0.1


def test_echo_of_nothing() -> None:
    """A partner without words leaves the agent its own."""
    assert text("test?echo=1", messages=view("…")) == text("test", messages=view("…"))


def test_loop() -> None:
    """From `loop_at` on, messages come around after `loop_period`, whatever is said to the agent."""

    def said(number: int) -> str:
        return text("test?loop_at=4&loop_period=3", own_number=number, messages=view(f"message {number}"))

    texts = {number: said(number) for number in range(1, 16)}
    assert all(texts[n] == texts[n + 3] for n in range(4, 13))
    assert len({texts[n] for n in range(1, 7)}) == 6
    assert texts[3] != texts[6]
    assert text("test?loop_at=1", own_number=1) == text("test?loop_at=1", own_number=2)
    assert text("test?loop_at=1", agent_id="b") != text("test?loop_at=1")


def test_reply_and_name() -> None:
    """`reply` and `name` are said as they stand, decoded."""
    assert text("test?reply=Good%20night+%26+bye") == "Good night & bye"
    assert text("test?reply=") == ""
    assert text("test?name=Old%20Tom", purpose="name") == "Old Tom"


def test_names_and_summaries() -> None:
    """Agents of one conversation choose different names of one word; a summary is a few sentences."""
    names = {text(purpose="name", agent_id=agent_id) for agent_id in "abcdefgh"}
    assert len(names) == 8
    assert all(name.isalpha() for name in names)
    assert text(purpose="name") == text(purpose="name", own_number=9, messages=view("x", "y", "z"))
    assert 5 < len(text(purpose="summary").split()) < 80


def test_thinking() -> None:
    """Thinking comes before the text, by parameter or by the agent's settings, and is counted."""
    for request in (ask("test?thinking=1"), ask(settings=AgentSettings(think=True))):
        deltas, _ = run(request)
        assert isinstance(deltas[0], ThinkingDelta)
        assert isinstance(deltas[1], TextDelta)
        response = fold(deltas)
        thought = len(response.message.thinking[0].text.split())
        assert response.usage.thinking_tokens == thought > 3
        assert response.usage.completion_tokens == thought + len(response.message.content.split())
    assert reply().message.thinking == ()
    assert reply().usage.thinking_tokens is None


def test_usage() -> None:
    """Completion tokens are words; prompt tokens are a quarter of the characters of what is sent."""
    response = reply(system="x" * 40, messages=view("a" * 100, "b" * 100, "c" * 60))
    assert response.usage.completion_tokens == len(response.message.content.split())
    assert response.usage.prompt_tokens == 76
    assert not response.usage.estimated
    assert response.finish.model == "test"
    assert reply("silent").finish.model == "silent"
    assert response.finish.request_id != reply(own_number=2).finish.request_id


def test_pieces() -> None:
    """`chunk` words make a piece; without it and without `chunk_ms` the text is one."""
    deltas, _ = run(ask("test?chunk=2"))
    pieces = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
    assert [len(piece.split()) for piece in pieces[:-1]] == [2] * (len(pieces) - 1)
    assert "".join(pieces) == text()
    assert sum(isinstance(delta, TextDelta) for delta in run(ask())[0]) == 1


async def test_delivery_at_absolute_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are due at latency + k x chunk from the start: a slow reader does not shift the later ones."""
    now = 100.0
    naps = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += seconds

    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    arrived = []
    request = ask("test?latency_ms=200&chunk_ms=50&reply=one+two+three+four+five+six")
    async for delta in LocalProvider().stream_response(request):
        if isinstance(delta, TextDelta):
            arrived.append(round(now - 100, 6))
            if delta.text == "two ":
                now += 0.12
    monkeypatch.undo()
    assert arrived == [0.2, 0.25, 0.37, 0.37, 0.4, 0.45]
    assert min(naps) > 0


async def test_errors_wait_for_the_latency() -> None:
    """An error, like an empty reply, takes `latency_ms`."""
    loop = asyncio.get_running_loop()
    for model in ("test?latency_ms=30&fail=server_error@1", "test?latency_ms=30&reply="):
        start = loop.time()
        try:
            async for _ in LocalProvider().stream_response(ask(model)):
                pass
        except Overloaded:
            pass
        assert loop.time() - start >= 0.03


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("rate_limit", RateLimited, 429),
        ("server_error", Overloaded, 500),
        ("timeout", ProviderTimeout, None),
        ("disconnect", ProviderUnavailable, None),
        ("auth", AuthenticationFailed, 401),
        ("bad_request", RequestRejected, 400),
        ("content_filter", ContentFiltered, 400),
        ("context", ContextLengthExceeded, 400),
    ],
)
def test_error_kinds(kind: str, error: type[ProviderError], status: int | None) -> None:
    """Each kind raises its error, at its message, on the first attempt, and in messages only."""
    raised = failure(f"test?fail={kind}@3", own_number=3)
    assert type(raised) is error
    assert (raised.provider, raised.status, raised.attempt) == ("local", status, 1)
    for changes in ({"own_number": 2}, {"own_number": 4}, {"attempt": 2}, {"purpose": "name"}, {"purpose": "summary"}):
        assert failure(f"test?fail={kind}@3", **({"own_number": 3} | changes)) is None


def test_rate_limit_says_when() -> None:
    """A rate limit says when to come back."""
    raised = failure("test?fail=rate_limit@1")
    assert raised is not None
    assert raised.retry_after_s == 0.05


def test_several_attempts() -> None:
    """`kind@nxK` fails K attempts."""
    outcomes = [failure("test?fail=server_error@2x3", own_number=2, attempt=k) is None for k in (1, 2, 3, 4)]
    assert outcomes == [False, False, False, True]


def test_probability() -> None:
    """`kind:p` strikes about that share of attempts, drawn from seed, agent, message and attempt."""

    def struck(**changes: Any) -> list[bool]:
        return [failure("test?fail=timeout:0.2", own_number=n, **changes) is not None for n in range(1, 400)]

    base = struck()
    assert 0.14 < sum(base) / len(base) < 0.26
    assert struck(conversation_id="other", messages=view("other")) == base
    for changes in ({"seed": 6}, {"agent_id": "b"}, {"attempt": 2}):
        assert struck(**changes) != base
    assert failure("test?fail=timeout:1") is not None
    assert failure("test?fail=timeout:0") is None


def test_first_failure_of_the_list() -> None:
    """Several failures can be given; the first that applies is taken."""
    model = "test?fail=auth@2,timeout@1,disconnect:1"
    assert type(failure(model)) is ProviderTimeout
    assert type(failure(model, own_number=2)) is AuthenticationFailed
    assert type(failure(model, own_number=3)) is ProviderUnavailable


@pytest.mark.parametrize("more", ["", "&chunk=1", "&reply=Hello", "&thinking=1"])
def test_disconnect_comes_after_text(more: str) -> None:
    """A disconnect loses the reply after some of its text has arrived."""
    deltas, error = run(ask("test?fail=disconnect@1" + more))
    whole = text("test?" + more)
    state = ResponseFold()
    for delta in deltas:
        state.add(delta)
    assert isinstance(error, ProviderUnavailable)
    assert whole.startswith(state.text)
    assert state.text
    assert state.finish is None


@pytest.mark.parametrize(("kind", "pieces"), [("hang", 1), ("hang_start", 0)])
async def test_hang(kind: str, pieces: int) -> None:
    """A hanging reply stays silent after, or before, its first piece; closing and cancelling end it."""
    stream = LocalProvider().stream_response(ask(f"test?fail={kind}@1"))
    for _ in range(pieces):
        assert isinstance(await anext(stream), TextDelta)
    waiting = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([waiting], timeout=0.02)
    assert not done
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_legal_but_odd_replies() -> None:
    """Empty, refused and cut replies are whole replies, marked as what they are."""
    empty = reply("test?fail=empty@1")
    assert (empty.message.content, empty.finish.reason) == ("", FinishReason.STOP)
    assert empty.usage.completion_tokens == 0
    refusal = reply("test?fail=refusal@1")
    assert refusal.message.content in local.REFUSALS
    assert refusal.finish.reason is FinishReason.REFUSAL
    cut = reply("test?fail=length@1")
    assert cut.finish.reason is FinishReason.LENGTH
    assert text().startswith(cut.message.content)
    assert cut.message.content[-1].isalpha()


def test_context_window() -> None:
    """With `context`, a prompt of more tokens is refused as too long."""
    assert failure("test?context=26", messages=view("x" * 100)) is None
    assert isinstance(failure("test?context=25", messages=view("x" * 100)), ContextLengthExceeded)


@pytest.mark.parametrize(
    "model",
    [
        "test",
        "test?",
        "silent",
        "test?seed=7&words=40&latency_ms=200&chunk_ms=5&thinking=1&loop_at=12&loop_period=2&fail=rate_limit@3",
        "test?fail=" + ",".join(f"{kind}@{n}" for n, kind in enumerate(local.FAULTS, 1)),
        "test?chunk_ms=0.5&echo=1&fail=timeout:.25",
    ],
)
def test_good_models(model: str) -> None:
    """What the documentation shows is taken."""
    check_model(model)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("tset", "'local:tset'; did you mean 'test'?"),
        ("zzz", "known are test, silent"),
        ("silent?words=3", "local:silent takes no parameters"),
        ("test?wrods=3", "'wrods'; did you mean 'words'?"),
        ("test?latency=3", "'latency'; did you mean 'latency_ms'?"),
        ("test?zzz=3", "known are seed, words"),
        ("test?words=0", "words='0' is not a whole number from 1"),
        ("test?words=many", "words='many'"),
        ("test?words=1_0", "words='1_0'"),
        ("test?words", "words=''"),
        ("test?seed=" + "9" * 5000, "seed='999"),
        ("test?latency_ms=-1", "latency_ms='-1' is not a number from 0"),
        ("test?latency_ms=nan", "latency_ms='nan'"),
        ("test?echo=1.5", "echo='1.5' is not a number from 0 to 1"),
        ("test?thinking=yes", "thinking='yes'"),
        ("test?name=+", "name=' ' is not a name"),
        ("test?words=3&words=4", "'words' twice"),
        ("test?loop_period=2", "loop_period needs loop_at"),
        ("test?fail=ratelimit@3", "did you mean 'rate_limit'?"),
        ("test?fail=rate_limit", "fail='rate_limit' is not a list of kind@3"),
        ("test?fail=rate_limit@0", "fail="),
        ("test?fail=rate_limit@3x0", "fail="),
        ("test?fail=rate_limit:2", "fail='rate_limit:2' is not a number from 0 to 1"),
        ("test?fail=", "fail=''"),
        ("test?words=%0A3", r"words='\n3'"),
    ],
)
def test_bad_models(model: str, says: str) -> None:
    """A wrong id says in one line which part is wrong and what is near; asked all the same, it is a refused request."""
    with pytest.raises(SpecError) as error:
        check_model(model)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(failure(model), RequestRejected)


def test_documentation_names_everything() -> None:
    """The module's text has a row for every parameter and every kind of failure."""
    rows = re.findall(r"^\| `(\w+)`", local.__doc__ or "", re.MULTILINE)
    assert sorted(rows) == sorted([*local._READERS, *local.FAULTS])


# Settings


def test_max_tokens_cuts_the_reply() -> None:
    """It ends after so many words, thinking first, marked as cut for length; the limit itself is no cut."""
    model = "test?reply=One+two+three+four."
    whole = reply(model, settings=AgentSettings(max_tokens=4))
    assert (whole.message.content, whole.finish.reason) == ("One two three four.", FinishReason.STOP)
    cut = reply(model, settings=AgentSettings(max_tokens=3))
    assert (cut.message.content, cut.finish.reason) == ("One two three", FinishReason.LENGTH)
    assert cut.usage.completion_tokens == 3
    thought = reply(model, settings=AgentSettings(think=True, max_tokens=2))
    assert (thought.message.content, thought.finish.reason) == ("", FinishReason.LENGTH)
    (block,) = thought.message.thinking
    assert len(block.text.split()) == thought.usage.completion_tokens == thought.usage.thinking_tokens == 2


def test_stop_ends_the_reply() -> None:
    """The text ends before the first of the texts in it, as a whole reply does."""
    model = "test?reply=One+two+three+four."
    for stop, text in ((("four", "three"), "One two "), (("One",), ""), (("five",), "One two three four.")):
        found = reply(model, settings=AgentSettings(stop=stop))
        assert (found.message.content, found.finish.reason) == (text, FinishReason.STOP)
