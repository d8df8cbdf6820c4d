"""Whole conversations through the vendors' SDKs over real HTTP: what each agent was really sent, and what was kept.

The server speaks as three vendors at once; every agent of a conversation has a model of its own, by which its traffic
is told apart.
"""

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply, Request, Tokens, loopback_in_thread
from support import Run, bus_watch, check_record, converse, experiment, go_on, messages, of_type, texts

from pidgin_cli.conversation.conductor import NAME_QUESTION, Conductor
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import Agent, Delta, EndReason, FinishReason, Status, TextDelta, Usage
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record

ANTHROPIC = "anthropic:claude-opus-5"
OPENAI = "openai:gpt-5.1"
OLLAMA = "ollama:llama3.2"
CASTS = pytest.mark.parametrize(
    "cast",
    [(ANTHROPIC, OPENAI), (OPENAI, OLLAMA), (OLLAMA, ANTHROPIC), (ANTHROPIC, OPENAI, OLLAMA)],
    ids=["anthropic-openai", "openai-ollama", "ollama-anthropic", "three-vendors"],
)
VENDORS = pytest.mark.parametrize("model", [ANTHROPIC, OPENAI, OLLAMA], ids=["anthropic", "openai", "ollama"])

KEYS = {
    "ANTHROPIC_API_KEY": "sk-ant-canary-0123456789abcdef",
    "OPENAI_API_KEY": "canary-of-another-shape-42",
}


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "OLLAMA_", "PIDGIN_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer(reply=Voices()) as server:
        for variable, value in (server.env | KEYS).items():
            monkeypatch.setenv(variable, value)
        yield server


class Voices:
    """Every model says something else every time: `claude-opus-5 says 1`, `claude-opus-5 says 2`, …"""

    def __init__(self) -> None:
        self.served: dict[str, list[str]] = {}
        self.instead: dict[tuple[str, int], Reply] = {}
        """By model and how often it was asked for a message, counted from 1: what it does then."""
        self._asked: dict[str, int] = {}

    def __call__(self, request: Request) -> Reply:
        if NAME_QUESTION in request.messages[-1][1]:
            return Reply(f"{request.model[:3].title()}")
        number = self._asked[request.model] = self._asked.get(request.model, 0) + 1
        reply = self.instead.get((request.model, number))
        if reply is not None:
            return reply
        said = self.served.setdefault(request.model, [])
        said.append(f"{request.model} says {len(said) + 1}. Ünïcode 🌍")
        half = len(said[-1]) // 2
        return Reply([said[-1][:half], said[-1][half:]])


def voices(server: LoopbackServer) -> Voices:
    assert isinstance(server.reply, Voices)
    return server.reply


def own_name(model: str) -> str:
    return model.partition(":")[2]


def asked(server: LoopbackServer, model: str) -> list[Request]:
    """What one model was asked for, messages only."""
    chats = [request for request in server.chats if request.model == own_name(model)]
    return [request for request in chats if NAME_QUESTION not in request.messages[-1][1]]


def everything(server: LoopbackServer, model: str) -> str:
    """All that was ever sent for one model."""
    requests = [request.body for request in server.chats if request.model == own_name(model)]
    return json.dumps(requests, ensure_ascii=False)


def agents_of(events: Sequence[Event]) -> tuple[Agent, ...]:
    return of_type(events, ConversationStartEvent)[0].agents


# What an agent should have been sent, worked out from the record alone


def expected(me: str, events: Sequence[Event]) -> list[tuple[str, str]]:
    """The messages that an agent is to be sent after `events`."""
    start = of_type(events, ConversationStartEvent)[0]
    names = {agent.id: agent.name for agent in start.agents}
    names |= {event.agent_id: event.name for event in of_type(events, AgentNamedEvent)}
    labelled = len(names) > 2 or bool(of_type(events, AgentNamedEvent))

    def tagged(text: str) -> str:
        return f"[{start.prompt_tag}]: {text}" if start.prompt_tag else text

    view: list[tuple[str, str]] = []
    heard = [tagged(start.opening)]
    late: list[str] = []
    for event in events:
        match event:
            case AgentNamedEvent() if event.agent_id == me:
                heard.append(tagged(f"Your name in this conversation is {event.name}."))
            case InterventionEvent() if me in event.audience:
                (late if event.turn_number else heard).append(tagged(event.text or ""))
            case MessageCompleteEvent():
                text = event.message.content or "[silence]"
                if event.agent_id == me:
                    view += [("user", "\n\n".join([*heard, *late])), ("assistant", text)]
                    heard, late = [], []
                else:
                    heard.append(f"[{names[event.agent_id]}]: {text}" if labelled else text)
    return [*view, ("user", "\n\n".join([*heard, *late]))]


def check_traffic(server: LoopbackServer, events: Sequence[Event]) -> None:
    """Every request that reached a vendor is the one that the record says, and legal for everyone."""
    prompts = {event.agent_id: event.text for event in of_type(events, SystemPromptEvent)}
    for agent in agents_of(events):
        if agent.provider == "local":
            continue
        places = [
            place
            for place, event in enumerate(events)
            if isinstance(event, MessageRequestEvent) and event.agent_id == agent.id
        ]
        views = {}
        for place in places:
            view = expected(agent.id, events[:place])
            views[sum(role == "assistant" for role, _ in view)] = view
        sent = asked(server, agent.model)
        assert {sum(role == "assistant" for role, _ in request.messages) for request in sent} == set(views)
        for request in sent:
            assert request.messages == views[sum(role == "assistant" for role, _ in request.messages)]
            assert request.system == prompts[agent.id]
            check_legal(request)


def check_legal(request: Request) -> None:
    roles = [role for role, _ in request.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert all(text.strip() for _, text in request.messages)
    raw = [message["role"] for message in request.body["messages"]]
    if request.api == "anthropic":
        assert "system" not in raw
    else:
        assert "system" not in raw[1:]


def check_words(server: LoopbackServer, events: Sequence[Event]) -> None:
    """The record holds what was served, word for word, message by message."""
    for agent in agents_of(events):
        kept = [event.message.content for event in messages(events) if event.agent_id == agent.id]
        assert kept == voices(server).served[own_name(agent.model)]


def check(server: LoopbackServer, run: Run) -> None:
    check_record(run.events)
    check_traffic(server, run.events)


# Who is sent what


@CASTS
@pytest.mark.parametrize("tag", ["HUMAN", "NARRATOR", ""])
async def test_each_agent_is_sent_its_own_side(cast: tuple[str, ...], tag: str, server: LoopbackServer, tmp_path: Path):
    """Roles alternate from user on, own words are assistant's and nobody else's are, in every request there is."""
    run = await converse(tmp_path, experiment(*cast, prompt_tag=tag, max_turns=4))
    check(server, run)
    check_words(server, run.events)
    assert run.outcome is not None
    assert run.outcome[:2] == (Status.COMPLETED, EndReason.TURN_LIMIT)
    assert len(server.chats) == 4 * len(cast)
    first = asked(server, cast[0])[0]
    assert first.messages == [("user", f"[{tag}]: Good morning." if tag else "Good morning.")]
    for model in cast:
        said = voices(server).served[own_name(model)]
        for request in asked(server, model):
            own = [text for role, text in request.messages if role == "assistant"]
            assert own == said[: len(own)]
            heard = "".join(text for role, text in request.messages if role == "user")
            assert own_name(model) + " says" not in heard


@CASTS
@pytest.mark.parametrize("preset", ["research", "firm", "basic", "backrooms"])
async def test_a_preset_reaches_every_agent_as_its_system_prompt(
    cast: tuple[str, ...], preset: str, server: LoopbackServer, tmp_path: Path
):
    """Each vendor gets the agent's own prompt in its own place for it, in every request."""
    agents = {"abc"[place]: {"awareness": preset} for place in range(len(cast))}
    run = await converse(tmp_path, experiment(*cast, agents=agents, max_turns=2))
    check(server, run)
    prompts = {event.agent_id: event.text for event in of_type(run.events, SystemPromptEvent)}
    for agent in agents_of(run.events):
        text = prompts[agent.id]
        assert text
        if preset == "research":
            others = [own_name(other.model) for other in agents_of(run.events) if other.id != agent.id]
            assert text.startswith(f"You are {own_name(agent.model)},")
            assert all(other in text for other in others)
        assert {request.system for request in asked(server, agent.model)} == {text}


@CASTS
async def test_no_prompt_means_none(cast: tuple[str, ...], server: LoopbackServer, tmp_path: Path):
    """Without awareness no vendor is sent a system prompt, not even an empty one."""
    await converse(tmp_path, experiment(*cast, agents={"a": {"awareness": "none"}}, max_turns=1))
    for request in server.chats:
        assert not request.body.get("system")
        assert all(message["role"] != "system" for message in request.body["messages"])


NUDGES = """
name: nudges
base: basic
prompts:
  0: {a: INJECTION-a-0}
  2: {both: INJECTION-both-2, a: INJECTION-a-2}
  3: {agent_a: INJECTION-a-3}
"""


@CASTS
async def test_what_one_agent_is_told_never_reaches_another(
    cast: tuple[str, ...], server: LoopbackServer, tmp_path: Path
):
    """Neither system prompts nor injections ever stand in another agent's traffic, in whatever field."""
    file = tmp_path / "nudges.yaml"
    file.write_text(NUDGES)
    others = "abc"[1 : len(cast)]
    agents: dict[str, dict[str, Any]] = {"a": {"awareness": str(file), "system_prompt": "SECRET-of-a"}}
    agents |= {other: {"system_prompt": f"SECRET-of-{other}"} for other in others}
    run = await converse(tmp_path, experiment(*cast, agents=agents, max_turns=4))
    check(server, run)
    for agent in agents_of(run.events):
        traffic = everything(server, agent.model)
        assert set(re.findall(r"SECRET-of-\w", traffic)) == {f"SECRET-of-{agent.id}"}
        found = set(re.findall(r"INJECTION-\w+-\d", traffic))
        mine = {"INJECTION-a-0", "INJECTION-both-2", "INJECTION-a-2", "INJECTION-a-3"}
        assert found == (mine if agent.id == "a" else set())
    assert all(event.audience == ("a",) for event in of_type(run.events, InterventionEvent))


async def test_an_injection_stands_just_before_the_reply_and_stays(server: LoopbackServer, tmp_path: Path):
    """It is the last thing its addressee hears before it speaks in that turn, and is in all its later requests."""
    file = tmp_path / "nudges.yaml"
    file.write_text("prompts:\n  2: {b: INJECTION}\n")
    run = await converse(tmp_path, experiment(ANTHROPIC, OPENAI, agents={"b": {"awareness": str(file)}}, max_turns=4))
    check(server, run)
    before, *after = asked(server, OPENAI)
    said = voices(server).served["claude-opus-5"]
    assert "INJECTION" not in json.dumps(before.body)
    assert after[0].messages[-1] == ("user", f"{said[1]}\n\n[HUMAN]: INJECTION")
    for request in after[1:]:
        assert request.messages[2] == ("user", f"{said[1]}\n\n[HUMAN]: INJECTION")
        assert json.dumps(request.body).count("INJECTION") == 1


@CASTS
async def test_agents_choose_names(cast: tuple[str, ...], server: LoopbackServer, tmp_path: Path):
    """Each is asked alone, told its own name only, and named to the others in front of what it says."""
    agents = {"a": {"system_prompt": "SECRET-of-a"}}
    run = await converse(tmp_path, experiment(*cast, agents=agents, choose_names=True, max_turns=2))
    check(server, run)
    names = [own_name(model)[:3].title() for model in cast]
    assert [event.name for event in of_type(run.events, AgentNamedEvent)] == names
    for model, name in zip(cast, names, strict=True):
        chats = [request for request in server.chats if request.model == own_name(model)]
        assert chats[0].messages == [("user", f"[HUMAN]: {NAME_QUESTION}")]
        assert (chats[0].system == "SECRET-of-a") == (model == cast[0])
        assert all(NAME_QUESTION not in text for request in chats[1:] for _, text in request.messages)
        traffic = everything(server, model)
        for other in names:
            assert (f"Your name in this conversation is {other}." in traffic) == (other == name)
            assert (f"[{other}]: " in traffic) == (other != name)


@CASTS
@pytest.mark.parametrize("blank", ["", " \n"])
async def test_an_empty_reply_in_the_middle(cast: tuple[str, ...], blank: str, server: LoopbackServer, tmp_path: Path):
    """It is a message like any other, is never asked for again, and no vendor is ever sent a blank text for it."""
    silent = cast[-1]
    voices(server).instead[own_name(silent), 2] = Reply(blank)
    run = await converse(tmp_path, experiment(*cast, max_turns=4))
    check_record(run.events)
    place = 2 * len(cast) - 1
    assert texts(run.events)[place] == blank
    assert messages(run.events)[place].attempt == 1
    assert len(asked(server, silent)) == 4
    for request in server.chats:
        check_legal(request)
    assert asked(server, silent)[-1].messages[3] == ("assistant", "[silence]")
    listener = asked(server, cast[0])[2].messages[-1][1]
    assert listener.endswith("[silence]")
    assert of_type(run.events, ConversationEndEvent)[-1].notable == {"empty": 1}
    assert of_type(run.events, ConversationStartEvent)[0].spec["placeholders"]["blank"] == "[silence]"


@pytest.mark.parametrize("audience", [None, ("a",), ("b",)], ids=["all", "a", "b"])
async def test_a_person_speaks_into_a_running_conversation(
    audience: tuple[str, ...] | None, server: LoopbackServer, tmp_path: Path
):
    """What is put in after the third message reaches those it is for, before their next reply, and nobody else."""

    def act(conductor: Conductor, event: MessageCompleteEvent) -> None:
        if event.message_index == 2:
            conductor.control.inject("Stop for a moment.", audience)

    spec = experiment(ANTHROPIC, OLLAMA, max_turns=4)
    run = await converse(tmp_path, spec, watch=bus_watch(MessageCompleteEvent, act))
    check(server, run)
    (event,) = of_type(run.events, InterventionEvent)
    assert (event.source, event.audience, event.message_index) == ("person", audience or ("a", "b"), 3)
    for agent_id, model in (("a", ANTHROPIC), ("b", OLLAMA)):
        told = ["Stop for a moment." in json.dumps(request.body) for request in asked(server, model)]
        first = {"a": 2, "b": 1}[agent_id]
        assert told == [agent_id in event.audience and number >= first for number in range(4)]


# Thinking


async def think_aloud(server: LoopbackServer, where: Path, visible: str) -> Run:
    """A conversation of three in which each thinks before its first message."""
    talk = voices(server)
    talk.instead["claude-opus-5", 1] = Reply("Aloud by a.", thinking=["THOUGHT", "-of-a"], signature="SIGNED")
    talk.instead["gpt-5.1", 1] = Reply("Aloud by b.", thinking=["THOUGHT-of-b"])
    talk.instead["llama3.2", 1] = Reply("Aloud by c.", thinking=["THOUGHT-of-c"])
    agents = {agent_id: {"think": True, "thinking_visible": visible} for agent_id in "abc"}
    run = await converse(where, experiment(ANTHROPIC, OPENAI, OLLAMA, agents=agents, max_turns=3))
    check_record(run.events)
    assert texts(run.events)[:3] == ["Aloud by a.", "Aloud by b.", "Aloud by c."]
    thoughts = of_type(run.events, ThinkingCompleteEvent)
    assert [(event.agent_id, event.message_index, event.content, event.signature) for event in thoughts] == [
        ("a", 0, "THOUGHT-of-a", "SIGNED"),
        ("b", 1, "THOUGHT-of-b", None),
        ("c", 2, "THOUGHT-of-c", None),
    ]
    return run


async def test_thinking_is_kept_and_sent_to_nobody(server: LoopbackServer, tmp_path: Path):
    """It stands beside the message in the record, and in nobody's traffic; asking for it is each vendor's own way."""
    run = await think_aloud(server, tmp_path, "nobody")
    check_traffic(server, run.events)
    assert "THOUGHT" not in json.dumps([request.body for request in server.chats])
    assert "SIGNED" not in json.dumps([request.body for request in server.chats])
    assert asked(server, ANTHROPIC)[0].body["thinking"]["type"] == "adaptive"
    assert asked(server, OLLAMA)[0].body["think"] is True
    assert asked(server, OPENAI)[0].body["reasoning_effort"] == "medium"


async def test_thinking_goes_back_to_its_owner_only(server: LoopbackServer, tmp_path: Path):
    """With `thinking_visible: own` it is returned with its signature to Claude, and shown to no other agent."""
    run = await think_aloud(server, tmp_path, "own")
    check_traffic(server, run.events)
    block = {"type": "thinking", "thinking": "THOUGHT-of-a", "signature": "SIGNED"}
    for request in asked(server, ANTHROPIC)[1:]:
        own = request.body["messages"][1]
        assert own["role"] == "assistant"
        assert own["content"] == [block, {"type": "text", "text": "Aloud by a."}]
    for agent_id, model in (("a", ANTHROPIC), ("b", OPENAI), ("c", OLLAMA)):
        assert set(re.findall(r"THOUGHT-of-\w", everything(server, model))) <= {f"THOUGHT-of-{agent_id}"}


async def test_thinking_that_partners_may_see_is_not_its_owners_words(server: LoopbackServer, tmp_path: Path):
    """With `thinking_visible: partner` the others read it as user text before the words, and as nobody's own."""
    await think_aloud(server, tmp_path, "partner")
    for agent_id, model in (("a", ANTHROPIC), ("b", OPENAI), ("c", OLLAMA)):
        last = asked(server, model)[-1]
        check_legal(last)
        heard = "".join(text for role, text in last.messages if role == "user")
        for other in set("abc") - {agent_id}:
            assert heard.index(f"THOUGHT-of-{other}") < heard.index(f"Aloud by {other}.")
        assert "THOUGHT" not in "".join(text for role, text in last.messages if role == "assistant")
        assert f"THOUGHT-of-{agent_id}" not in everything(server, model)
        assert "SIGNED" not in everything(server, model)


# Parameters


def temperature_in(request: Request) -> Any:
    place = request.body.get("options", {}) if request.api == "ollama" else request.body
    return place.get("temperature")


async def test_parameters_are_sent_when_set_and_only_then(server: LoopbackServer, tmp_path: Path):
    """0.0 is a temperature; what is unset is neither sent nor recorded; the record holds what was sent."""
    agents = {"a": {"temperature": 0.0}, "c": {"temperature": 1.5, "max_tokens": 99}}
    run = await converse(tmp_path, experiment(ANTHROPIC, OPENAI, OLLAMA, agents=agents, max_turns=1))
    claude, gpt, llama = server.chats
    assert temperature_in(claude) == 0.0
    assert "temperature" not in json.dumps(gpt.body)
    assert temperature_in(llama) == 1.5
    assert llama.body["options"]["num_predict"] == 99
    assert not {"max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "reasoning_effort"} & set(gpt.body)
    recorded = {event.agent_id: event.parameters for event in of_type(run.events, MessageRequestEvent)}
    text = {"model", "messages", "system", "stream"}
    assert recorded["a"] == {name: value for name, value in claude.body.items() if name not in text}
    assert recorded["a"]["max_tokens"] == 128_000
    assert recorded["b"] == {}
    assert "seed" not in json.dumps([claude.body, gpt.body, llama.body])


# What is kept

STRANGE = ["  leading ", "Ünïcode 🌍‍", "\u202e\x1b[31mred", "\r\n\ttabs\n\n", "\x00 and </s>", "end  "]


@VENDORS
async def test_the_record_keeps_the_words_as_served(model: str, server: LoopbackServer, tmp_path: Path):
    """Text, usage, served model, request id and finish are what the vendor sent, and the words go on unchanged."""
    counted = Tokens(prompt=321, completion=54)
    served = f"{own_name(model)}-2026-05-01"
    voices(server).instead[own_name(model), 1] = Reply(STRANGE, usage=counted, model=served)
    other = OPENAI if model != OPENAI else ANTHROPIC
    run = await converse(tmp_path, experiment(model, other, max_turns=2))
    check(server, run)
    event = messages(run.events)[0]
    assert event.message.content == "".join(STRANGE)
    assert not event.message.text_replaced
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (321, 54)
    assert (event.model_requested, event.model_served) == (model, served)
    assert event.finish_reason is FinishReason.STOP
    assert event.attempt == 1
    assert (event.request_id is None) == (model == OLLAMA)
    assert (event.timing.ttft_ms or 0) > 0
    usage = of_type(run.events, TokenUsageEvent)[0]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (321, 54, 375)
    assert asked(server, other)[0].messages[-1][1].endswith("".join(STRANGE))
    assert asked(server, model)[1].messages[1] == ("assistant", "".join(STRANGE))
    assert of_type(run.events, ConversationEndEvent)[-1].invalid == ()


@VENDORS
async def test_another_model_than_the_one_asked_for_is_told(model: str, server: LoopbackServer, tmp_path: Path):
    """A reply served by another model makes the conversation invalid, and says which it was."""
    voices(server).instead[own_name(model), 1] = Reply("Hello.", model="something-else")
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=1))
    assert messages(run.events)[0].model_served == "something-else"
    assert of_type(run.events, ConversationEndEvent)[-1].invalid == ("wrong_model_served",)


@VENDORS
async def test_a_vendor_that_counts_nothing_leaves_nothing(model: str, server: LoopbackServer, tmp_path: Path):
    """Usage that was not reported is absent, never 0."""
    voices(server).instead[own_name(model), 1] = Reply("Hello.", usage=None)
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=1))
    assert messages(run.events)[0].usage == Usage()
    assert '"prompt_tokens":0' not in run.log.read_text().partition('"message_index":1')[0]


# When something fails


@VENDORS
async def test_a_rate_limit_is_waited_for(model: str, server: LoopbackServer, tmp_path: Path):
    """429 with Retry-After: the wait is the vendor's, it is recorded, and the same request is made again."""
    too_fast = Reply(status=429, headers={"Retry-After": "0.05"}, body={"error": {"message": "Slow down."}})
    voices(server).instead |= {(own_name(model), 2): too_fast, (own_name(model), 3): too_fast}
    began = time.monotonic()
    run = await converse(tmp_path, experiment("local:test", model, max_turns=3))
    assert time.monotonic() - began >= 0.1
    check_traffic(server, run.events)
    limits = of_type(run.events, RateLimitEvent)
    assert [(event.agent_id, event.message_index, event.attempt, event.wait_s) for event in limits] == [
        ("b", 3, 1, 0.05),
        ("b", 3, 2, 0.05),
    ]
    sent = asked(server, model)
    assert [request.body for request in sent[1:4]] == [sent[1].body] * 3
    assert messages(run.events)[3].attempt == 3
    assert [event.attempt for event in messages(run.events) if event.message_index != 3] == [1] * 5
    assert len(of_type(run.events, MessageRequestEvent)) == 6


@VENDORS
async def test_a_broken_server_is_asked_again(model: str, server: LoopbackServer, tmp_path: Path):
    """500: recorded as a failed attempt, no message of anybody, and the next attempt counts."""
    voices(server).instead[own_name(model), 1] = Reply(status=500, body={"error": {"message": "BROKEN-INSIDE"}})
    run = await converse(tmp_path, experiment(model, "local:test", max_turns=2))
    check(server, run)
    (error,) = of_type(run.events, APIErrorEvent)
    assert (error.error, error.status, error.retryable, error.attempt) == ("Overloaded", 500, True, 1)
    assert "BROKEN-INSIDE" in error.message
    assert messages(run.events)[0].attempt == 2
    assert "BROKEN-INSIDE" not in everything(server, model) + "".join(texts(run.events))
    assert not of_type(run.events, MessageAbandonedEvent)


CUT_AFTER = {ANTHROPIC: 5, OPENAI: 3, OLLAMA: 2}
"""Events of each API's stream after which two pieces of text have been sent."""
PIECES = ("PARTIAL-one ", "PARTIAL-two ", "three ", "four.")


@VENDORS
async def test_a_cut_stream_leaves_no_words_in_a_message(model: str, server: LoopbackServer, tmp_path: Path):
    """What had come before the cut is recorded as abandoned, shown as discarded, and never joined or sent on."""
    voices(server).instead[own_name(model), 1] = Reply(PIECES, cut_after=CUT_AFTER[model])
    pieces: list[str | None] = []

    def live(agent_id: str, delta: Delta | None) -> None:
        if agent_id == "a" and (delta is None or isinstance(delta, TextDelta)):
            pieces.append(None if delta is None else delta.text)

    run = await converse(tmp_path, experiment(model, "local:test", max_turns=2), live=live)
    check(server, run)
    (abandoned,) = of_type(run.events, MessageAbandonedEvent)
    assert (abandoned.agent_id, abandoned.message_index, abandoned.attempt) == ("a", 0, 1)
    assert abandoned.partial == "PARTIAL-one PARTIAL-two "
    assert [event.error for event in of_type(run.events, APIErrorEvent)] == ["ProviderUnavailable"]
    assert texts(run.events)[0] == voices(server).served[own_name(model)][0]
    assert messages(run.events)[0].attempt == 2
    assert "PARTIAL" not in "".join(texts(run.events)) + everything(server, model)
    assert pieces[:3] == ["PARTIAL-one ", "PARTIAL-two ", None]
    assert "".join(piece or "" for piece in pieces[3:5]) == texts(run.events)[0]


@VENDORS
async def test_a_stream_that_stalls_is_given_up(model: str, server: LoopbackServer, tmp_path: Path):
    """No piece for longer than the gap allows: the attempt is abandoned, its connection closed, another one made."""
    voices(server).instead[own_name(model), 1] = Reply(PIECES, hang=CUT_AFTER[model])
    spec = experiment(model, "local:test", max_turns=1, timeouts={"gap_s": 0.1})
    run = await converse(tmp_path, spec)
    check(server, run)
    (abandoned,) = of_type(run.events, MessageAbandonedEvent)
    assert abandoned.partial == "PARTIAL-one PARTIAL-two "
    assert [event.error for event in of_type(run.events, APIErrorEvent)] == ["ProviderTimeout"]
    assert texts(run.events)[0] == voices(server).served[own_name(model)][0]
    await asyncio.wait_for(server.hung_up.wait(), 10)


REFUSED_KEY = {
    ANTHROPIC: {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}},
    OPENAI: {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}},
    OLLAMA: {"error": "unauthorized"},
}


@VENDORS
async def test_a_refused_key_ends_the_conversation_and_keeps_it(model: str, server: LoopbackServer, tmp_path: Path):
    """401: not tried again; failed with provider_error; all that was said stays; a resume asks only for the rest."""
    voices(server).instead[own_name(model), 2] = Reply(status=401, body=REFUSED_KEY[model])
    spec = experiment("local:test?words=8", model, max_turns=3)
    run = await converse(tmp_path, spec)
    check(server, run)
    assert run.outcome is not None
    assert run.outcome[:2] == (Status.FAILED, EndReason.PROVIDER_ERROR)
    assert (run.outcome.error or "").startswith("AuthenticationFailed: ")
    assert len(messages(run.events)) == 3
    assert len(asked(server, model)) == 2
    (error,) = of_type(run.events, APIErrorEvent)
    assert (error.status, error.retryable, error.wait_s) == (401, False, None)
    end = of_type(run.events, ConversationEndEvent)[-1]
    assert (end.status, end.end_reason, end.totals.messages) == (Status.FAILED, EndReason.PROVIDER_ERROR, 3)

    resumed = await go_on(run.root, run.folder)
    check(server, resumed)
    assert resumed.outcome is not None
    assert resumed.outcome.status is Status.COMPLETED
    assert texts(resumed.events)[:3] == texts(run.events)
    assert len(asked(server, model)) == 4
    assert asked(server, model)[1].body == asked(server, model)[2].body


TOO_LONG = {
    ANTHROPIC: {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
    },
    OPENAI: {"error": {"message": "too many tokens", "code": "context_length_exceeded"}},
    OLLAMA: {"error": "the prompt exceeds the context length"},
}


@VENDORS
async def test_a_full_context_window_stops_the_conversation(model: str, server: LoopbackServer, tmp_path: Path):
    """The vendor refuses the length and the policy is to stop: stopped by the context limit, in the vendor's words."""
    voices(server).instead[own_name(model), 3] = Reply(status=400, body=TOO_LONG[model])
    run = await converse(tmp_path, experiment("local:test", model, max_turns=5))
    check(server, run)
    assert run.outcome is not None
    assert run.outcome[:2] == (Status.STOPPED, EndReason.CONTEXT_LIMIT)
    (limit,) = of_type(run.events, ContextLimitEvent)
    assert limit.agent_id == "b"
    assert limit.reported
    assert len(messages(run.events)) == 5


@VENDORS
async def test_a_full_context_window_drops_the_oldest_turns(model: str, server: LoopbackServer, tmp_path: Path):
    """With the window policy the same message is asked for with fewer turns, still legal, and only on that side."""
    voices(server).instead[own_name(model), 4] = Reply(status=400, body=TOO_LONG[model])
    other = OPENAI if model != OPENAI else ANTHROPIC
    spec = experiment(other, model, max_turns=5, context="window", agents={"b": {"system_prompt": "SECRET-of-b"}})
    run = await converse(tmp_path, spec)
    check_record(run.events)
    assert run.outcome is not None
    assert run.outcome.status is Status.COMPLETED
    (cut,) = of_type(run.events, ContextTruncationEvent)
    assert cut.agent_id == "b"
    refused, shorter, last = asked(server, model)[3:]
    full = expected("b", [event for event in run.events if event.seq < cut.seq])
    assert refused.messages == full
    dropped = len(full) - len(shorter.messages)
    assert dropped >= 2
    assert shorter.messages[1:] == full[dropped + 1 :]
    heard = full[dropped][1]
    assert shorter.messages[0] == ("user", f"[HUMAN]: Good morning.\n\n{heard}")
    assert last.messages[: len(shorter.messages)] == shorter.messages
    for request in server.chats:
        check_legal(request)
    assert {request.system for request in asked(server, model)} == {"SECRET-of-b"}
    a_side = asked(server, other)[-1].messages
    assert len(a_side) == 9, "the other side keeps everything"


# As it happens


@VENDORS
async def test_the_first_words_are_shown_before_the_rest_is_sent(model: str, server: LoopbackServer, tmp_path: Path):
    """While the server holds the rest of a reply back, what it has sent is already handed on."""
    voices(server).instead[own_name(model), 1] = Reply(PIECES, hang=CUT_AFTER[model])
    shown: list[str] = []
    second = asyncio.Event()
    conductors: list[Conductor] = []

    def live(_: str, delta: Delta | None) -> None:
        if isinstance(delta, TextDelta):
            shown.append(delta.text)
            if len(shown) == 2:
                second.set()

    spec = experiment(model, "local:test", max_turns=1)
    task = asyncio.create_task(converse(tmp_path, spec, live=live, watch=conductors.append))
    try:
        await asyncio.wait_for(second.wait(), 10)
        assert shown == list(PIECES[:2])
        assert not task.done()
        conductors[0].control.stop(now=True)
        run = await asyncio.wait_for(task, 10)
    finally:
        task.cancel()
    check_record(run.events)
    assert run.outcome is not None
    assert run.outcome[:2] == (Status.STOPPED, EndReason.STOP_REQUEST)
    assert [event.partial for event in of_type(run.events, MessageAbandonedEvent)] == ["".join(PIECES[:2])]
    assert not messages(run.events)
    await asyncio.wait_for(server.hung_up.wait(), 10)


# The command itself


@pytest.fixture
def threaded(tmp_path: Path) -> Iterator[LoopbackServer]:
    with loopback_in_thread(Voices()) as server:
        yield server


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pidgin_cli", *args]


def environment(server: LoopbackServer) -> dict[str, str]:
    return os.environ | server.env | KEYS


def pidgin(server: LoopbackServer, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*args),
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def the_record(root: Path) -> list[Event]:
    (log,) = root.glob("experiments/experiment_*/conv_*_events.jsonl")
    return read_record(log).events


def check_no_key(root: Path, *outputs: str) -> None:
    """No file below the root, nor anything on the screen, holds a key or a piece of one."""
    kept = [path.read_bytes().decode(errors="replace") for path in root.rglob("*") if path.is_file()]
    assert kept
    for key in KEYS.values():
        assert not [text for text in (*kept, *outputs) if key in text or key[-12:] in text]


def test_the_command_holds_a_conversation_of_three_vendors(threaded: LoopbackServer, tmp_path: Path):
    """`pidgin chat` with flags alone: everyone is sent its own side, the words are kept, and it exits 0."""
    root = tmp_path / "out"
    nudges = tmp_path / "nudges.yaml"
    nudges.write_text(NUDGES)
    args = ["chat", "-a", ANTHROPIC, "-b", OPENAI, "--agent", f"c={OLLAMA}", "-t", "3", "-p", "Good morning."]
    args += ["--awareness-a", str(nudges), "--awareness-b", "research", "--temp-c", "0", "--prompt-tag", ""]
    done = pidgin(threaded, *args, "-o", str(root))
    assert done.returncode == 0, done.stderr
    events = the_record(root)
    check_record(events)
    check_traffic(threaded, events)
    check_words(threaded, events)
    assert [temperature_in(request) for request in threaded.chats[:3]] == [None, None, 0]
    assert "INJECTION" not in everything(threaded, OPENAI) + everything(threaded, OLLAMA)
    for text in texts(events):
        assert text in done.stdout
    check_no_key(root, done.stdout, done.stderr)


@pytest.mark.parametrize("model", [ANTHROPIC, OPENAI], ids=["anthropic", "openai"])
def test_a_refused_key_is_told_and_kept_nowhere(model: str, threaded: LoopbackServer, tmp_path: Path):
    """401, though the vendor quotes the key: exit 1, one clear line, everything said is kept, the key is not."""
    root = tmp_path / "out"
    key = KEYS["ANTHROPIC_API_KEY" if model == ANTHROPIC else "OPENAI_API_KEY"]
    body = {"type": "error", "error": {"type": "authentication_error", "message": f"Incorrect key: {key}."}}
    voices(threaded).instead[own_name(model), 2] = Reply(status=401, body=body)
    done = pidgin(threaded, "chat", "-a", OLLAMA, "-b", model, "-t", "3", "-o", str(root))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "AuthenticationFailed" in done.stdout + done.stderr
    events = the_record(root)
    check_record(events)
    assert len(messages(events)) == 3
    assert of_type(events, ConversationEndEvent)[-1].end_reason is EndReason.PROVIDER_ERROR
    (folder,) = OutputRoot(root).folders()
    assert json.loads(folder.manifest.read_bytes())["status"] == "failed"
    check_no_key(root, done.stdout, done.stderr)
    resumed = pidgin(threaded, "resume", folder.experiment_id, "-o", str(root))
    assert resumed.returncode == 0, resumed.stderr
    assert texts(the_record(root))[:3] == texts(events)
    assert len(texts(the_record(root))) == 6
    check_no_key(root, resumed.stdout, resumed.stderr)


@VENDORS
def test_the_first_words_are_on_the_screen_while_the_rest_is_to_come(
    model: str, threaded: LoopbackServer, tmp_path: Path
):
    """A reader of the command's output has the first piece before the server sends the rest; Ctrl-C twice keeps all."""
    voices(threaded).instead[own_name(model), 1] = Reply(PIECES, hang=CUT_AFTER[model])
    args = command("chat", "-a", model, "-b", "local:test", "-t", "1", "-o", str(tmp_path))
    with subprocess.Popen(args, env=environment(threaded), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            shown = read_until(process.stdout.fileno(), b"PARTIAL-two")
            assert shown.index(b"PARTIAL-one") < shown.index(b"PARTIAL-two")
            assert b"three" not in shown
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)  # the message under way is to be finished
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
    events = the_record(tmp_path)
    check_record(events)
    assert [event.partial for event in of_type(events, MessageAbandonedEvent)] == ["".join(PIECES[:2])]
    assert not messages(events)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """What comes through a pipe, up to and with `wanted`."""
    found = b""
    deadline = time.monotonic() + 30
    while wanted not in found:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"{wanted!r} did not come; so far: {found!r}"
        piece = os.read(descriptor, 4096)
        assert piece, f"the output ended without {wanted!r}: {found!r}"
        found += piece
    return found


async def test_a_reply_that_broke_off_is_paid_for(server: LoopbackServer, tmp_path: Path) -> None:
    """What an abandoned attempt used, as far as it was reported, is in the record and in the totals."""
    server.script(
        Reply("This one dies half-way.", usage=Tokens(prompt=1000, completion=7), cut_after=2),
        Reply("This one lives.", usage=Tokens(prompt=1000, completion=5)),
    )
    spec = experiment(ANTHROPIC, "local:test", max_turns=1, retries={"base_s": 0.001})
    run = await converse(tmp_path, spec)
    check_record(run.events)
    assert len(of_type(run.events, MessageAbandonedEvent)) == 1
    (lost,) = (event for event in of_type(run.events, TokenUsageEvent) if event.purpose == "abandoned")
    assert (lost.prompt_tokens, lost.estimated) == (1000, True)
    (end,) = of_type(run.events, ConversationEndEvent)
    assert end.totals.prompt_tokens is not None
    assert end.totals.prompt_tokens >= 2000


async def test_a_total_with_an_unknown_part_is_unknown(server: LoopbackServer, tmp_path: Path) -> None:
    """Where a server reports no usage, the totals are absent instead of the sum of the rest."""
    server.script(Reply("No numbers here.", usage=None))
    run = await converse(tmp_path, experiment(OPENAI, "local:test", max_turns=1))
    check_record(run.events)
    (end,) = of_type(run.events, ConversationEndEvent)
    assert (end.totals.prompt_tokens, end.totals.completion_tokens) == (None, None)
    assert of_type(run.events, TokenUsageEvent)[-1].total_tokens is None
