"""What each agent is sent, over random histories: the rules of DESIGN 6.1."""

import gc
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.conversation.history import (
    ConversationHistory,
    ConversationState,
    ConversationTurn,
    ConversationView,
    Sent,
)
from pidgin_cli.conversation.progress import Progress
from pidgin_cli.core.events import InterventionEvent, MessageCompleteEvent, TurnCompleteEvent, TurnStartEvent
from pidgin_cli.core.types import (
    Agent,
    FinishReason,
    Message,
    Role,
    ThinkingBlock,
    ToolCall,
    ToolResult,
)
from pidgin_cli.spec.conversation import ConversationSpec

BLANKS = ("", " ", "\n\t ", "\u2003")


VISIBLE = ("own", "partner", "nobody")


def a_spec(
    count: int = 2, opening: str = "Hello.", thinking_visible: Sequence[Any] = ("nobody",) * 5, **changes: Any
) -> ConversationSpec:
    agents = tuple(
        Agent(id=i, model="local:test", name=f"name-{i}", thinking_visible=visible)
        for i, visible in zip("abcde"[:count], thinking_visible, strict=False)
    )
    return ConversationSpec(agents=agents, opening=opening, **changes)


class Bench:
    """A history that grows, with the view of every agent beside it."""

    def __init__(self, spec: ConversationSpec) -> None:
        self.spec = spec
        self.history = ConversationHistory()
        self.names = {agent.id: agent.name for agent in spec.agents}
        self.views = {agent.id: self.fresh(agent) for agent in spec.agents}
        self.turn = 0

    def fresh(self, agent: Agent, like: ConversationView | None = None) -> ConversationView:
        given = (like.state, like.signed_from) if like else ()
        return ConversationView(agent, self.spec, self.history, self.names, *given)

    def add(self, role: Role, content: str, **fields: Any) -> None:
        self.history.append(ConversationTurn(role=role, content=content, **({"turn_number": self.turn} | fields)))

    def open(self) -> None:
        self.add(Role.USER, self.spec.opening)

    def say(self, agent_id: str, text: str, *thinking: ThinkingBlock) -> None:
        index = self.history.messages
        self.add(Role.ASSISTANT, text, agent_id=agent_id, message_index=index, thinking=thinking)

    def inject(self, text: str, *audience: str) -> None:
        self.add(Role.USER, text, audience=audience)

    def call(self, agent_id: str, arguments: str, result: str) -> None:
        call_id = f"call-{len(self.history.turns)}"
        call = ToolCall(call_id, "look", arguments)
        self.add(Role.ASSISTANT, "", agent_id=agent_id, tool_call=call)
        self.add(Role.TOOL, result, agent_id=agent_id, tool_result=ToolResult(call_id, result))

    def sent(self, agent_id: str) -> Sent:
        return self.views[agent_id].sent()


# Random histories. A step is a function that does one thing to a bench; every text that is not blank has a mark of its
# own, so that it can be found again wherever it goes.

Step = Callable[[Bench], None]
TEXTS = st.one_of(st.sampled_from(BLANKS), st.text(st.characters(codec="utf-8"), max_size=12), st.just("word"))


def marked(bench: Bench, text: str) -> str:
    return f"{text}<{len(bench.history.turns)}>" if text.strip() else text


@st.composite
def benches(draw: st.DrawFn) -> tuple[Bench, list[Step]]:
    count = draw(st.integers(2, 5))
    spec = a_spec(
        count,
        opening=draw(TEXTS.map(lambda text: f"{text}<opening>" if text.strip() else text)),
        prompt_tag=draw(st.sampled_from(["HUMAN", "", "X Y"])),
        speaker_label=draw(st.sampled_from([None, "[{name}]: {text}", "{text} (said {name})"])),
        thinking_label=draw(st.sampled_from(["[{name} thinks]: {text}", "{text} (thought {name})"])),
        thinking_visible=draw(st.lists(st.sampled_from(VISIBLE), min_size=count, max_size=count)),
    )
    ids = st.sampled_from([agent.id for agent in spec.agents])
    audiences = st.lists(ids, min_size=1, unique=True)
    bench = Bench(spec)
    for agent in spec.agents:
        if draw(st.booleans()):
            bench.add(Role.SYSTEM, f"{draw(TEXTS)}<system of {agent.id}>", audience=(agent.id,))
    bench.open()

    def say(who: str, text: str, thoughts: list[tuple[str, str | None]]) -> Step:
        def step(bench: Bench) -> None:
            mark = f"<t{len(bench.history.turns)}>"
            blocks = [ThinkingBlock(f"{text}{mark}" if text else "", signature) for text, signature in thoughts]
            bench.say(who, marked(bench, text), *blocks)

        return step

    def inject(who: list[str], text: str) -> Step:
        return lambda bench: bench.inject(marked(bench, text), *who)

    def call(who: str, text: str) -> Step:
        return lambda bench: bench.call(who, marked(bench, text), f"result <r{len(bench.history.turns)}>")

    def next_turn(bench: Bench) -> None:
        bench.turn += 1

    early = draw(st.lists(st.builds(inject, audiences, TEXTS), max_size=2))
    thoughts = st.lists(st.tuples(st.sampled_from(["", "hm ", "oh {name} {text}"]), st.sampled_from([None, "sig"])))
    step = st.one_of(
        st.builds(say, ids, TEXTS, thoughts),
        st.builds(say, ids, TEXTS, thoughts),
        st.builds(inject, audiences, TEXTS),
        st.builds(call, ids, TEXTS),
        st.just(next_turn),
    )
    return bench, [*early, next_turn, *draw(st.lists(step, max_size=25))]


def visible(spec: ConversationSpec, text: str) -> str:
    return text if text.strip() else spec.placeholders.blank


def expected(bench: Bench, agent: Agent) -> tuple[str | None, list[tuple[Role, str]]]:
    """The rules of a view, written down a second time and from the other end: reply by reply, nothing kept."""
    spec, system = bench.spec, None
    said: list[tuple[Role, str]] = []

    def before(segment: list[ConversationTurn]) -> list[str]:
        others, outside = [], []
        for entry in segment:
            if entry.role is Role.USER:
                tag = f"[{spec.prompt_tag}]: " if spec.prompt_tag and entry.content else ""
                (outside if entry.turn_number else others).append(visible(spec, tag + entry.content))
            elif entry.role is Role.ASSISTANT and entry.tool_call is None:
                text = visible(spec, entry.content)
                if spec.speaker_label is not None:
                    text = spec.speaker_label.format(name=bench.names[str(entry.agent_id)], text=text)
                thought = "\n\n".join(block.text for block in entry.thinking if block.text)
                if thought and spec.agent(str(entry.agent_id)).thinking_visible == "partner":
                    label = spec.thinking_label.format(name=bench.names[str(entry.agent_id)], text=thought)
                    text = f"{label}\n\n{text}"
                others.append(text)
        return [*others, *outside]

    segment: list[ConversationTurn] = []
    for entry in bench.history.turns:
        if entry.audience is not None and agent.id not in entry.audience:
            continue
        if entry.role is Role.SYSTEM:
            system = entry.content
        elif entry.agent_id != agent.id:
            segment.append(entry)
        elif entry.role is Role.TOOL:
            said.append((Role.TOOL, entry.content))
        else:
            texts = before(segment)
            if texts or not (said and said[-1][0] is Role.TOOL):
                said.append((Role.USER, "\n\n".join(texts or [spec.placeholders.nothing_new])))
            said.append((Role.ASSISTANT, "" if entry.tool_call else visible(spec, entry.content)))
            segment = []
    texts = before(segment)
    if texts or not (said and said[-1][0] is Role.TOOL):
        said.append((Role.USER, "\n\n".join(texts or [spec.placeholders.nothing_new])))
    return system, said


def grown(case: tuple[Bench, list[Step]]) -> Iterator[Bench]:
    bench, steps = case
    yield bench
    for step in steps:
        step(bench)
        yield bench


def shape(sent: Sent) -> list[tuple[Role, str]]:
    return [(message.role, message.content) for message in sent.messages]


@settings(deadline=None)
@given(benches())
def test_a_view_that_grew_equals_one_built_anew_and_the_rules(case: tuple[Bench, list[Step]]) -> None:
    """At every step a view that grew with the history is the view built from scratch, and what the rules say."""
    for bench in grown(case):
        for agent in bench.spec.agents:
            sent = bench.sent(agent.id)
            assert sent == bench.fresh(agent).sent()
            assert (sent.system, shape(sent)) == expected(bench, agent)
            assert bench.views[agent.id].digest() == sent.digest
            assert bench.sent(agent.id) == sent, "asking twice changes nothing"


@settings(deadline=None)
@given(benches())
def test_thinking_is_shown_to_whom_the_thinker_shows_it(case: tuple[Bench, list[Step]]) -> None:
    """`own`: every block beside its own words and nowhere else; `partner`: its text in front of them; else nothing."""
    *_, bench = grown(case)
    thoughts = [(number, turn) for number, turn in enumerate(bench.history.turns) if turn.thinking]
    for agent in bench.spec.agents:
        sent = bench.sent(agent.id)
        own = [turn.thinking for _, turn in thoughts if turn.agent_id == agent.id]
        kept = [message.thinking for message in sent.messages if message.thinking]
        assert kept == (own if agent.thinking_visible == "own" else [])
        assert all(message.role is Role.ASSISTANT for message in sent.messages if message.thinking)
        for role in Role:
            text = "\n".join(message.content for message in sent.messages if message.role is role)
            for number, turn in thoughts:
                shown = bench.spec.agent(str(turn.agent_id)).thinking_visible == "partner"
                told = role is Role.USER and shown and turn.agent_id != agent.id
                assert text.count(f"<t{number}>") == told * sum(bool(block.text) for block in turn.thinking)


@settings(deadline=None)
@given(benches())
def test_nobody_sees_or_says_what_is_not_theirs(case: tuple[Bench, list[Step]]) -> None:
    """Own words are always assistant, nobody else's ever are, and nothing is in a view that is not addressed to it."""
    *_, bench = grown(case)
    for agent in bench.spec.agents:
        sent = bench.sent(agent.id)
        own = "\n".join(m.content for m in sent.messages if m.role is Role.ASSISTANT)
        own += "\n".join(call.arguments for m in sent.messages for call in m.tool_calls)
        own += "\n".join(m.content for m in sent.messages if m.role is Role.TOOL)
        foreign = "\n".join(m.content for m in sent.messages if m.role is Role.USER)
        for other in bench.spec.agents:
            assert (f"<system of {other.id}>" in (sent.system or "")) == (other is agent and sent.system is not None)
            assert f"<system of {other.id}>" not in own + foreign
        assert foreign.count("<opening>") == bench.spec.opening.count("<opening>")
        for entry in bench.history.turns:
            if entry.role is Role.SYSTEM or entry.content == bench.spec.opening:
                continue
            text = entry.tool_call.arguments if entry.tool_call else entry.content
            marks = re.findall(r"<r?\d+>$", text)
            mine = entry.agent_id == agent.id
            tool = entry.tool_call is not None or entry.tool_result is not None
            addressed = agent.id in (entry.audience or ()) or (entry.audience is None and not mine and not tool)
            for mark in marks:
                assert own.count(mark) == int(mine), (mark, own)
                assert foreign.count(mark) == int(addressed), (mark, foreign)


@settings(deadline=None)
@given(benches())
def test_every_list_is_legal_for_every_provider(case: tuple[Bench, list[Step]]) -> None:
    """It starts with user, alternates but for tools, ends with user or a tool's result, and holds no blank text."""
    for bench in grown(case):
        for agent in bench.spec.agents:
            sent = bench.sent(agent.id)
            roles = [message.role for message in sent.messages]
            assert roles[0] is Role.USER
            assert roles[-1] in (Role.USER, Role.TOOL)
            for (one, message), (other, _) in pairwise(zip(roles, sent.messages, strict=True)):
                follows = {
                    Role.USER: (Role.ASSISTANT,),
                    Role.ASSISTANT: (Role.TOOL,) if message.tool_calls else (Role.USER,),
                    Role.TOOL: (Role.USER, Role.ASSISTANT),
                }
                assert other in follows[one], roles
            assert all(m.content.strip() or m.tool_calls or m.role is Role.TOOL for m in sent.messages)
            shown = sum(m.content.count(bench.spec.placeholders.blank) for m in sent.messages)
            shown += sum(m.content == bench.spec.placeholders.nothing_new for m in sent.messages)
            assert sent.placeholders == shown, "placeholders are counted"


# Digests

SMALL = st.sampled_from(["x", "y", "x\n\ny", "[go on]", "user\0001\0x", "", "assistant\0001\0y", "call\0x", "x\0\0"])


@st.composite
def small_benches(draw: st.DrawFn) -> Bench:
    bench = Bench(a_spec(2, opening=draw(SMALL), prompt_tag=""))
    for agent in bench.spec.agents:
        if draw(st.booleans()):
            bench.add(Role.SYSTEM, draw(SMALL), audience=(agent.id,))
    bench.open()
    bench.turn = 1
    for _ in range(draw(st.integers(0, 5))):
        who = draw(st.sampled_from("ab"))
        match draw(st.sampled_from(["say", "say", "inject", "call", "think"])):
            case "say":
                bench.say(who, draw(SMALL))
            case "think":
                bench.say(who, draw(SMALL), ThinkingBlock(draw(SMALL), draw(SMALL)))
            case "inject":
                bench.inject(draw(SMALL), who)
            case "call":
                bench.call(who, draw(SMALL), draw(SMALL))
    return bench


@settings(max_examples=200, deadline=None)
@given(st.lists(small_benches(), min_size=2, max_size=6))
def test_digests_are_equal_exactly_where_the_texts_are(cases: list[Bench]) -> None:
    """Two requests have one digest if and only if their system prompts and lists of messages are equal."""
    sent = [bench.sent(agent.id) for bench in cases for agent in bench.spec.agents]
    for one in sent:
        for other in sent:
            same = (one.system, one.messages) == (other.system, other.messages)
            assert (one.digest == other.digest) == same


@pytest.mark.parametrize("glue", ["{role}\0{text}", "{role}\0{size}\0{text}", "{role}{text}"])
def test_a_system_prompt_cannot_imitate_messages(glue: str) -> None:
    """Where one text ends and the next begins is part of the digest, however the texts are put together."""
    talk, monologue = Bench(a_spec(opening="x", prompt_tag="")), Bench(a_spec(opening="z", prompt_tag=""))
    said = glue.format(role="user", size=1, text="x") + glue.format(role="assistant", size=1, text="y")
    talk.add(Role.SYSTEM, "S", audience=("a",))
    monologue.add(Role.SYSTEM, f"S{said}", audience=("a",))
    talk.open()
    monologue.open()
    talk.turn = 1
    talk.say("a", "y")
    talk.say("b", "z")
    assert talk.sent("a").messages[-1] == monologue.sent("a").messages[-1] == user("z")
    assert talk.sent("a").digest != monologue.sent("a").digest


@pytest.mark.parametrize(("visible", "differing"), [("own", (5, 1)), ("partner", (1, 4)), ("nobody", (1, 1))])
def test_thinking_that_is_sent_is_part_of_the_digest(visible: str, differing: tuple[int, int]) -> None:
    """Thinking changes the digest for the one it is sent to, its signature for the thinker; for nobody else."""
    thoughts: list[tuple[ThinkingBlock, ...]] = [
        (),
        (ThinkingBlock("hm", "one"),),
        (ThinkingBlock("hm", "two"),),
        (ThinkingBlock("oh", "one"),),
        (ThinkingBlock("hm", "one"), ThinkingBlock("hm", "one")),
    ]
    own, others = set(), set()
    for thinking in thoughts:
        bench = Bench(a_spec(thinking_visible=[visible, "nobody"]))
        bench.open()
        bench.turn = 1
        bench.say("a", "Yes.", *thinking)
        own.add(bench.sent("a").digest)
        others.add(bench.sent("b").digest)
    assert (len(own), len(others)) == differing


# The declared forms, by example


def user(text: str) -> Message:
    return Message(Role.USER, text)


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


@pytest.mark.parametrize(("tag", "shown"), [("HUMAN", "[HUMAN]: Hello."), ("", "Hello."), ("Q", "[Q]: Hello.")])
def test_the_opening_goes_to_everyone_with_its_tag(tag: str, shown: str) -> None:
    """Every agent gets the opening as `[TAG]: text`; without a tag the text alone."""
    bench = Bench(a_spec(3, prompt_tag=tag))
    bench.open()
    assert {bench.sent(i).messages for i in "abc"} == {(user(shown),)}


def test_the_second_speaker_gets_opening_and_first_words_in_one() -> None:
    """The first user message of b is the opening, a blank line, and the words of a."""
    bench = Bench(a_spec())
    bench.open()
    bench.turn = 1
    bench.say("a", "I begin.")
    assert bench.sent("b").messages == (user("[HUMAN]: Hello.\n\nI begin."),)
    assert bench.sent("a").messages == (user("[HUMAN]: Hello."), assistant("I begin."), user("[go on]"))


def test_an_injection_stands_just_before_the_reply_and_stays() -> None:
    """It comes after the other's message of that turn, in the addressee's view only, and is still there later."""
    bench = Bench(a_spec())
    bench.open()
    bench.turn = 1
    bench.inject("Be brief.", "b")
    bench.say("a", "I begin.")
    before_reply = bench.sent("b").messages
    bench.say("b", "Well.")
    bench.turn = 2
    bench.say("a", "Go on.")
    assert before_reply == (user("[HUMAN]: Hello.\n\nI begin.\n\n[HUMAN]: Be brief."),)
    assert bench.sent("b").messages == (*before_reply, assistant("Well."), user("Go on."))
    assert "brief" not in str(bench.sent("a").messages)


def test_text_with_the_opening_stands_with_the_opening() -> None:
    """Key 0 puts a text right behind the opening, before anybody's words."""
    bench = Bench(a_spec())
    bench.open()
    bench.inject("You are b.", "b")
    bench.turn = 1
    bench.say("a", "I begin.")
    assert bench.sent("b").messages == (user("[HUMAN]: Hello.\n\n[HUMAN]: You are b.\n\nI begin."),)


def test_three_agents_are_told_apart_in_one_way() -> None:
    """Each of the others is named by the same label, also where names and texts look like the label itself."""
    bench = Bench(a_spec(3, speaker_label="[{name}]: {text}", prompt_tag=""))
    bench.names["b"] = "{text} {name}"
    bench.open()
    bench.turn = 1
    bench.say("a", "One {name}.")
    bench.say("b", "Two.")
    assert bench.sent("c").messages == (user("Hello.\n\n[name-a]: One {name}.\n\n[{text} {name}]: Two."),)
    assert bench.sent("a").messages[-1] == user("[{text} {name}]: Two.")
    assert bench.sent("b").messages[-2:] == (assistant("Two."), user("[go on]"))


def test_tools_are_seen_by_their_caller_only() -> None:
    """A call and its result stand in the caller's list as such, and in nobody else's in any form."""
    bench = Bench(a_spec())
    bench.open()
    bench.turn = 1
    bench.call("a", '{"q": "sun"}', "It shines.")
    seen = bench.sent("a").messages
    assert [message.role for message in seen] == [Role.USER, Role.ASSISTANT, Role.TOOL]
    assert seen[1].tool_calls[0].arguments == '{"q": "sun"}'
    assert seen[2].tool_result == ToolResult(seen[1].tool_calls[0].id, "It shines.")
    bench.say("a", "Sunny.")
    assert bench.sent("b").messages == (user("[HUMAN]: Hello.\n\nSunny."),)


# Left-out turns


@settings(deadline=None)
@given(benches(), st.data())
def test_a_compacted_view_grows_like_one_built_anew(case: tuple[Bench, list[Step]], data: st.DataObject) -> None:
    """After turns were left out, with or without a summary, the list stays legal and still equals one built anew."""
    bench, steps = case
    for step in steps:
        step(bench)
        if bench.turn > 1 and bench.history.messages and data.draw(st.booleans()):
            agent = data.draw(st.sampled_from(bench.spec.agents))
            first = data.draw(st.integers(0, bench.history.messages - 1))
            state = ConversationState(
                first_turn=bench.history.turn_of(first),
                first_message=bench.history.first_message(bench.history.turn_of(first)),
                summary=data.draw(st.sampled_from([None, "They met."])),
                pinned=("It rains.",),
            )
            bench.views[agent.id].compact(state)
        for agent in bench.spec.agents:
            view = bench.views[agent.id]
            sent = view.sent()
            assert sent == bench.fresh(agent, view).sent()
            assert sent.messages[0].role is Role.USER
            assert all(
                other.role is not one.role or Role.TOOL in (one.role, other.role)
                for one, other in pairwise(sent.messages)
            )
            if view.state.first_turn > 1:
                summed = any("They met." in message.content for message in sent.messages)
                assert summed == (view.state.summary is not None)
                assert any("It rains." in message.content for message in sent.messages) == summed
                for entry in bench.history.turns:
                    gone = 0 < entry.turn_number < view.state.first_turn and entry.content.endswith(">")
                    assert not (gone and any(entry.content in message.content for message in sent.messages))


# Cost


def calls_made(work: Callable[[], object]) -> int:
    """How many Python and C functions `work` calls."""
    count = 0

    def profile(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # somebody may listen to it
    old = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(old)
        gc.enable()
    return count


def test_a_step_costs_the_same_at_message_400_as_at_message_40() -> None:
    """Taking a message in and building the next request makes as many calls however long the conversation is."""
    spec = a_spec()
    progress = Progress(spec)

    def turn(number: int) -> None:
        progress.advance(TurnStartEvent(turn_number=number, speakers=("a", "b")))
        progress.advance(InterventionEvent(turn_number=number, source="person", audience=("a",), text="psst"))
        for agent_id in "ab":
            progress.views[agent_id].sent()
            event = MessageCompleteEvent(
                agent_id=agent_id,
                turn_number=number,
                message_index=progress.history.messages,
                message=Message(Role.ASSISTANT, "Some words. " * 10),
                finish_reason=FinishReason.STOP,
                model_requested="local:test",
            )
            progress.advance(event)
        progress.advance(TurnCompleteEvent(turn_number=number))

    costs = [calls_made(lambda number=number: turn(number)) for number in range(1, 202)]  # type: ignore[misc]
    assert costs[20] == costs[200]
    assert len(set(costs[2:])) == 1
