"""Thinking that a model wrote into its text is told apart from it, however the text arrives."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply
from support import check_record, converse, experiment, of_type, texts

from pidgin_cli.core.events import MessageAbandonedEvent, MessageCompleteEvent, ThinkingCompleteEvent
from pidgin_cli.core.types import FinishReason, ModelRequest, TextDelta, ThinkingDelta, fold
from pidgin_cli.providers.base import Timeouts
from pidgin_cli.providers.inline_thinking import MOST_BEFORE, ThinkingSplitter
from pidgin_cli.providers.openai import OpenAIProvider
from pidgin_cli.providers.registry import PROVIDERS, add_provider, endpoint


def split(pieces: list[str]) -> tuple[str, str]:
    """Thinking and text that the pieces add up to."""
    splitter = ThinkingSplitter()
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)] + splitter.end()
    assert all(delta.text for delta in deltas)
    thinking = "".join(delta.text for delta in deltas if isinstance(delta, ThinkingDelta))
    return thinking, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


TABLE = [
    ("<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("\n <think>\nHm.\n</think>\n\nYes.\n", "Hm.\n", "Yes.\n"),
    ("<think>\n\n</think>\n\nYes.", "", "Yes."),
    ("<think></think>", "", ""),
    ("<think>", "", ""),
    ("<think>Hm", "Hm", ""),
    ("<think>Hm </thi", "Hm </thi", ""),
    ("<think>a</thin</think>b", "a</thin", "b"),
    ("<think>a<think>b</think>c<think>d</think>", "a<think>b", "c<think>d</think>"),
    ("Yes <think>no</think>", "", "Yes <think>no</think>"),
    ("<thinking>a</thinking>b", "", "<thinking>a</thinking>b"),
    ("<thin", "", "<thin"),
    ("<", "", "<"),
    ("a</think>b", "", "a</think>b"),
    ("  \n ", "", "  \n "),
    ("  Yes", "", "  Yes"),
    ("", "", ""),
    (" " * MOST_BEFORE + "<think>a</think>b", "a", "b"),
    (" " * (MOST_BEFORE + 1) + "<think>a</think>b", "", " " * (MOST_BEFORE + 1) + "<think>a</think>b"),
]


@pytest.mark.parametrize(("whole", "thinking", "text"), TABLE)
def test_what_is_thinking_and_what_is_text(whole: str, thinking: str, text: str) -> None:
    """The same for the whole at once and for one character at a time."""
    assert split([whole]) == (thinking, text)
    assert split(list(whole)) == (thinking, text)


TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "<th", "ink>", "think", ">", " ", "\n", "a", "ä"]), max_size=12
).map("".join)


@given(TAGGED, st.data())
def test_how_the_text_is_cut_makes_no_difference(whole: str, data: st.DataObject) -> None:
    """Any pieces of a text give the thinking and the text that the whole gives; nothing but tags and blanks goes."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    thinking, text = split(pieces)
    assert (thinking, text) == split([whole])
    if not whole.lstrip().startswith("<think>"):
        assert (thinking, text) == ("", whole)
    else:
        assert "</think>" not in thinking
        inner, closed, after = whole.lstrip().removeprefix("<think>").partition("</think>")
        assert (thinking, text) == (inner.lstrip(), after.lstrip() if closed else "")


def test_text_is_handed_on_at_once_when_it_is_decided() -> None:
    """From the first character that can be no tag on nothing is kept, and the adapter may do without the splitter."""
    splitter = ThinkingSplitter()
    assert splitter.feed("Yes") == [TextDelta("Yes")]
    assert splitter.decided
    splitter = ThinkingSplitter()
    assert splitter.feed("<think>Hm") == [ThinkingDelta("Hm")]
    assert splitter.feed(", well") == [ThinkingDelta(", well")]
    assert not splitter.decided
    assert splitter.feed(".</think>Yes") == [ThinkingDelta("."), TextDelta("Yes")]
    assert splitter.decided


# Over the wire


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith(("OPENAI_", "XAI_", "OLLAMA_", "OPENROUTER_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    yield
    PROVIDERS.pop("my-vllm", None)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for name in ("VLLM", "LLAMACPP", "LMSTUDIO", "OPENROUTER", "GROQ", "OPENAI", "XAI"):
            monkeypatch.setenv(f"{name}_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        add_provider(endpoint("my-vllm", f"{server.url}/v1"))
        yield server


SERVERS = ["vllm:m", "llamacpp:m", "lmstudio:m", "openrouter:m", "groq:m", "my-vllm:m", "openai:m", "ollama:llama3.2"]
TAGS = ["<th", "ink>\nTwo and", " two.", "</thi", "nk>", "\n\n", "So: ", "4."]


@pytest.mark.parametrize("model", SERVERS)
async def test_inline_thinking_is_recorded_as_thinking(model: str, server: LoopbackServer, tmp_path: Path) -> None:
    """Its tags are in no message, it is an event of its own, and the others read the text alone."""
    server.reply = lambda _: Reply(TAGS)
    run = await converse(tmp_path, experiment(model, model, max_turns=1))
    check_record(run.events)
    assert texts(run.events) == ["So: 4."] * 2
    assert [event.content for event in of_type(run.events, ThinkingCompleteEvent)] == ["Two and two."] * 2
    assert server.chats[1].messages[-1][1].endswith("So: 4.")
    assert "think" not in str(server.chats[1].messages)


@pytest.mark.parametrize("model", ["vllm:m", "ollama:llama3.2"])
async def test_thinking_that_does_not_end_is_no_text(model: str, server: LoopbackServer, tmp_path: Path) -> None:
    """A reply that was cut while the model thought is an empty message with its own reason; the thinking is kept."""
    server.script(Reply(["<think>", "On and on </"], finish="length"))
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=1))
    check_record(run.events)
    first = of_type(run.events, MessageCompleteEvent)[0]
    assert (first.message.content, first.finish_reason) == ("", FinishReason.LENGTH)
    assert [event.content for event in of_type(run.events, ThinkingCompleteEvent)] == ["On and on </"]


@pytest.mark.parametrize("model", ["vllm:m", "ollama:llama3.2"])
@pytest.mark.parametrize("text", [["The tag ", "<think>", "x</think>"], [" ", "<", "b>"], ["<thin"], ["\n"]])
async def test_what_only_looks_like_a_tag_stays(
    model: str, text: list[str], server: LoopbackServer, tmp_path: Path
) -> None:
    """Text that mentions the tag, begins like it or is blank arrives whole."""
    server.script(Reply(text))
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=1))
    check_record(run.events)
    assert texts(run.events)[0] == "".join(text)
    assert not of_type(run.events, ThinkingCompleteEvent)


@pytest.mark.parametrize("model", ["vllm:m", "ollama:llama3.2"])
async def test_where_thinking_has_a_field_the_text_is_left_alone(
    model: str, server: LoopbackServer, tmp_path: Path
) -> None:
    """A server that sends thinking apart means what it sends as text."""
    server.script(Reply(["<think>", " is a tag"], thinking=["Which tag?"]))
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=1))
    check_record(run.events)
    assert texts(run.events)[0] == "<think> is a tag"
    assert [event.content for event in of_type(run.events, ThinkingCompleteEvent)] == ["Which tag?"]


@pytest.mark.parametrize("name", ["openai", "xai"])
async def test_vendors_that_never_write_it_are_left_alone(
    name: str, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At OpenAI and xAI themselves what looks like a tag is what the model wanted to say."""
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "sk-loopback")
    info = PROVIDERS[name]._replace(home="127.0.0.1")  # the vendor's own, as far as the adapter can tell
    adapter = OpenAIProvider(Timeouts(), info)
    server.script(Reply(TAGS))
    try:
        request = ModelRequest(model="m", messages=())
        reply = fold([delta async for delta in adapter.stream_response(request)])
    finally:
        await adapter.aclose()
    assert (reply.message.content, reply.message.thinking) == ("".join(TAGS), ())


async def test_thinking_of_a_broken_reply_is_not_joined_with_the_next(server: LoopbackServer, tmp_path: Path) -> None:
    """A stream that dies while the model thinks is abandoned, and its tag is not remembered."""
    server.script(Reply(["<think>", "lost"], cut_after=3), Reply(["Yes."]))
    run = await converse(tmp_path, experiment("vllm:m", "local:test", max_turns=1))
    check_record(run.events)
    assert len(of_type(run.events, MessageAbandonedEvent)) == 1
    assert texts(run.events)[0] == "Yes."
    assert not of_type(run.events, ThinkingCompleteEvent)
