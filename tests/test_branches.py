"""Conversations that leave others: what they share, what they store, and what they never see."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from held import hold, hold_in
from msgspec.structs import replace
from support import Scripted, ScriptedPool, check_record, conversation, messages, of_type, story, texts

from pidgin_cli.conversation.branch import differences
from pidgin_cli.core.errors import LogError, NotFound
from pidgin_cli.core.events import (
    AgentNamedEvent,
    ContextTruncationEvent,
    ConversationBranchedEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    SystemPromptEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import Delta, Finish, Role, Status, TextDelta, ThinkingDelta
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.lineage import branches, prefix, whole
from pidgin_cli.experiments.preflight import check_models, recording
from pidgin_cli.providers.cache import ResponseCache
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.conversation import ConversationSpec, Injection, Intervention, Origin

MODEL = "local:test?words=12"
PARENT = "parent00-1"
CHILD = "child000-1"


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    return OutputRoot(tmp_path)


def the_spec(*models: str, **keys: Any) -> ConversationSpec:
    return conversation(*(models or (MODEL, MODEL)), **{"max_turns": 5} | keys)


def leaving(spec: ConversationSpec, turn: int, of: str = PARENT, **changes: Any) -> ConversationSpec:
    return replace(spec, origin=Origin(of, turn), **changes)


def replies(*said: str) -> list[list[Delta]]:
    return [[TextDelta(text), Finish()] for text in said]


def asked(events: list[Event]) -> dict[int, tuple[str, Any]]:
    """What every message answered."""
    return {event.message_index: (event.digest, event.view) for event in of_type(events, MessageRequestEvent)}


SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "named": {"choose_names": True, "order": "random", "first": "random"},
    "window": {"context": {"policy": "window", "limit_tokens": 240, "reserve_tokens": 20}, "max_turns": 8},
    "summaries": {"context": {"policy": "summarise", "limit_tokens": 300, "reserve_tokens": 20}, "max_turns": 8},
    "thinking": {"agents": {"a": {"thinking_visible": "own"}, "b": {"thinking_visible": "partner"}}},
    "prompts": {"agents": {"a": {"awareness": "basic"}, "b": {"awareness": "research"}}},
}


def kind(name: str) -> ConversationSpec:
    model = {"window": "local:test?words=25", "summaries": "local:test?words=25", "thinking": f"{MODEL}&thinking=1"}
    each = model.get(name, MODEL)
    spec = the_spec(each, each, **SPECS[name])
    told = (Injection(0, "a", "You are first.", "awareness:x"), Injection(2, "b", "Turn two.", "awareness:x"))
    later = (Injection(4, "a", "Turn four.", "awareness:x"),)
    script = (Intervention(2, "inject", ("a",), "Rivers."), Intervention(4, "edit", ("b",), "I never said that."))
    return replace(spec, injections=told + later, interventions=script)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("turn", [0, 1, 3])
async def test_a_branch_without_changes_says_what_its_origin_said(root: OutputRoot, name: str, turn: int) -> None:
    """From the fork on it is sent the very same, answers the same, and stores only what is new."""
    spec = kind(name)
    parent = await hold_in(root, PARENT, spec)
    assert parent.outcome.status is Status.COMPLETED
    child = await hold_in(root, CHILD, leaving(spec, turn))
    check_record(child.events)
    mine = [event for event in messages(parent.events) if event.turn_number > turn]
    assert [(e.message_index, e.turn_number, e.agent_id) for e in messages(child.events)] == [
        (e.message_index, e.turn_number, e.agent_id) for e in mine
    ]
    assert texts(child.events) == texts(mine)
    after = {index: said for index, said in asked(parent.events).items() if index >= mine[0].message_index}
    assert asked(child.events) == after
    end = of_type(child.events, ConversationEndEvent)[-1]
    assert (end.totals.messages, end.totals.turns) == (len(mine), spec.max_turns - turn)
    own = of_type(child.events, TokenUsageEvent)
    assert end.totals.prompt_tokens == sum(usage.prompt_tokens or 0 for usage in own)
    assert [e.turn_number for e in of_type(child.events, InterventionEvent)] == [
        e.turn_number for e in of_type(parent.events, InterventionEvent) if e.turn_number > turn
    ]
    assert not of_type(child.events, AgentNamedEvent)
    assert [event for event in child.heard if isinstance(event, MessageCompleteEvent)] == messages(child.events)
    if name == "window" and turn == 3:
        assert of_type(parent.events, ContextTruncationEvent)[0].turn_number <= 4


@pytest.mark.parametrize("name", SPECS)
async def test_a_branch_cut_behind_any_line_goes_on(root: OutputRoot, tmp_path: Path, name: str) -> None:
    """However a branch dies, resumed it says, counts and ends exactly what the uninterrupted one did."""
    spec = kind(name)
    await hold_in(root, PARENT, spec)
    mine = leaving(spec, 2, interventions=(*spec.interventions, Intervention(3, "swap_model", ("a",), model=MODEL)))
    assert mine.origin is not None
    shared = prefix(root, mine.origin)
    full = await hold(tmp_path / "whole.jsonl", mine, conversation_id=CHILD, shared=shared)
    check_record(full.events)
    lines = full.log.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        log = tmp_path / f"{number}.jsonl"
        log.write_bytes(b"".join(lines[:number]) + lines[number][: 9 * (number % 3)])
        again = await hold(log, mine, conversation_id=CHILD, shared=shared)
        check_record(again.events)
        paid_twice = len(of_type(again.events, TokenUsageEvent)) != len(of_type(full.events, TokenUsageEvent))
        assert story(again.events, totals=not paid_twice) == story(full.events, totals=not paid_twice)
        assert asked(again.events) == asked(full.events)
        for each in (InterventionEvent, ConversationBranchedEvent, ConversationStartEvent, SystemPromptEvent):
            assert len(of_type(again.events, each)) == len(of_type(full.events, each))


@pytest.mark.parametrize("name", ["plain", "named", "summaries", "thinking"])
async def test_a_branch_can_be_replayed_from_the_start(root: OutputRoot, name: str) -> None:
    """`replay:` of a branch, and of a branch of that, serves what they share with others and then their own words."""
    spec = kind(name)
    await hold_in(root, PARENT, spec)
    later = replace(spec, interventions=(*spec.interventions, Intervention(4, "inject", ("b",), "Mountains.")))
    child = await hold_in(root, CHILD, leaving(later, 2))
    last = replace(later, interventions=(*later.interventions, Intervention(5, "inject", ("a",), "Lakes.")))
    await hold_in(root, "grandson-1", leaving(last, 4, of=CHILD))
    for of, its in ((CHILD, later), ("grandson-1", last)):
        agents = tuple(replace(agent, model=f"replay:{of}") for agent in its.agents)
        pool = ProviderPool(lambda source: recording(root, source))
        again = await hold_in(root, f"again{of[:3]}-1", replace(its, agents=agents), pool)
        assert (again.outcome.status, again.outcome.error) == (Status.COMPLETED, None)
        said, _ = whole(root, read_record(root.find(of).log(of)).events)
        assert texts(again.events) == texts(said)
        assert asked(again.events) == asked(said)
    assert texts(again.events)[-1] not in texts(child.events)
    check_models([replace(spec, agents=agents)], root)


async def test_a_branch_is_not_replayed_without_what_it_shares(root: OutputRoot) -> None:
    """Where its origin is gone, or is not what it was, the fault says so; a part of a conversation is never served."""
    spec = the_spec()
    parent = await hold_in(root, PARENT, spec)
    await hold_in(root, CHILD, leaving(spec, 2))
    await hold_in(root, "grandson-1", leaving(spec, 4, of=CHILD))
    parent.log.write_bytes(parent.log.read_bytes().replace(texts(parent.events)[3].encode(), b"Never said."))
    for of in (CHILD, "grandson-1"):
        with pytest.raises(LogError, match="parent00-1.* is not what it was" if of == CHILD else "is not what it was"):
            recording(root, of)
    shutil.rmtree(parent.log.parent)
    for of in (CHILD, "grandson-1"):
        with pytest.raises(NotFound, match="there is no conversation parent00-1"):
            recording(root, of)


async def test_a_branch_says_where_it_comes_from_and_what_it_changes(root: OutputRoot) -> None:
    """The first line names the origin, the index goes on, and the changed settings stand there with both values."""
    spec = the_spec()
    await hold_in(root, PARENT, spec)
    agents = (replace(spec.agents[0], model="local:test?words=3", system_prompt="Be a river."), spec.agents[1])
    child = await hold_in(root, CHILD, leaving(spec, 2, agents=agents, max_turns=4))
    start, *prompts = child.events[:3]
    assert isinstance(start, ConversationStartEvent)
    assert start.branch_of is not None
    assert {**start.branch_of, "digest": ""} == {
        "conversation_id": PARENT,
        "turn": 2,
        "message_index": 4,
        "digest": "",
    }
    assert [type(event) for event in prompts] == [SystemPromptEvent] * 2
    branched = child.events[3]
    assert isinstance(branched, ConversationBranchedEvent)
    assert (branched.origin, branched.turn_number, branched.message_index) == (PARENT, 2, 4)
    assert branched.changes == {
        "agents.a.model": [MODEL, "local:test?words=3"],
        "agents.a.system_prompt": [None, "Be a river."],
        "max_turns": [5, 4],
    }
    assert messages(child.events)[0].message.id == f"{CHILD}:m4"


async def test_another_model_takes_over_with_the_branches_prompt_and_no_foreign_signature(root: OutputRoot) -> None:
    """It is sent the shared history under its own system prompt; what another model thought keeps no signature."""
    thinker = Scripted([ThinkingDelta("Hm.", "signature"), TextDelta("one"), Finish()])
    spec = the_spec(
        "anthropic:one", MODEL, agents={"a": {"thinking_visible": "own", "system_prompt": "Old."}}, max_turns=3
    )
    await hold_in(root, PARENT, spec, ScriptedPool(one=thinker))
    same, new = Scripted(*replies("same")), Scripted(*replies("new"))
    await hold_in(root, CHILD, leaving(spec, 2), ScriptedPool(one=same))
    agents = (replace(spec.agents[0], model="anthropic:two", system_prompt="New."), spec.agents[1])
    await hold_in(root, "child000-2", leaving(spec, 2, agents=agents), ScriptedPool(two=new))

    def signatures(provider: Scripted) -> list[str | None]:
        return [block.signature for message in provider.requests[0].messages for block in message.thinking]

    assert signatures(same) == ["signature", "signature"]
    assert signatures(new) == [None, None]
    assert [provider.requests[0].system for provider in (same, new)] == ["Old.", "New."]
    own = [message.content for message in new.requests[0].messages if message.role is Role.ASSISTANT]
    assert own == ["one", "one"]


async def test_a_branch_of_a_branch_shares_all_that_came_before(root: OutputRoot) -> None:
    """It knows what its parent and its parent's parent said, and can also leave before its parent did."""
    spec = the_spec()
    first = await hold_in(root, PARENT, spec)
    script = (Intervention(3, "inject", ("a", "b"), "Speak of rivers."),)
    second = await hold_in(root, CHILD, leaving(spec, 2, interventions=script))
    one = Scripted(*replies("end"))
    agents = (replace(spec.agents[0], model="openai:one"), spec.agents[1])
    third = await hold_in(root, "third000-1", leaving(spec, 3, CHILD, agents=agents), ScriptedPool(one=one))
    check_record(third.events)
    told = [said for message in one.requests[0].messages for said in [message.content]]
    everything = "\n".join(told)
    for event in (*messages(first.events)[:4], *messages(second.events)[:2]):
        assert event.message.content in everything
    assert "Speak of rivers." in everything
    assert messages(first.events)[4].message.content not in everything
    early = await hold_in(root, "third000-2", leaving(spec, 1, CHILD))
    check_record(early.events)
    assert texts(early.events) == texts(first.events)[2:]
    events, missing = whole(root, third.events)
    assert missing is None
    assert [event.message_index for event in messages(events)] == list(range(10))
    (tree,) = branches(root)
    assert (tree.conversation_id, [child.conversation_id for child in tree.children]) == (PARENT, [CHILD])
    assert [(child.conversation_id, child.turn) for child in tree.children[0].children] == [
        ("third000-2", 1),
        ("third000-1", 3),
    ]


async def test_what_the_parent_swapped_or_silenced_is_the_branches_own_affair(root: OutputRoot) -> None:
    """Models and system prompts are those of the branch's spec, whatever the parent's script did before the fork."""
    spec = the_spec(max_turns=4)
    script = (
        Intervention(2, "swap_model", ("a",), model="local:test?words=3"),
        Intervention(2, "swap_system_prompt", ("b",), "Be a stone."),
    )
    await hold_in(root, PARENT, replace(spec, interventions=script))
    child = await hold_in(root, CHILD, leaving(spec, 3))
    check_record(child.events)
    assert {event.model_requested for event in messages(child.events)} == {MODEL}


# When there is nothing to share


async def test_a_branch_of_nothing_is_refused(root: OutputRoot) -> None:
    """A parent that is not there, or has not got that far, is named; so is a seat that the branch does not have."""
    spec = the_spec(max_turns=2)
    with pytest.raises(NotFound, match=r"no conversation parent00-1 .*, from which this one branches"):
        await hold_in(root, CHILD, leaving(spec, 1))
    await hold_in(root, PARENT, spec)
    with pytest.raises(NotFound, match="has not come to the end of turn 3"):
        await hold_in(root, CHILD, leaving(spec, 3))
    lonely = the_spec(MODEL, MODEL)
    lonely = replace(lonely, agents=(lonely.agents[0], replace(lonely.agents[1], id="c")))
    with pytest.raises(LogError, match="agent b of parent00-1 has no seat"):
        await hold_in(root, CHILD, leaving(lonely, 1))


async def test_a_damaged_parent_is_refused_up_to_the_fork_only(root: OutputRoot) -> None:
    """A broken line before the fork that costs a text ends it; one behind the fork is none of the branch's business."""
    spec = the_spec()
    parent = await hold_in(root, PARENT, spec)
    lines = parent.log.read_bytes().splitlines(keepends=True)
    for event in messages(parent.events):
        parent.log.write_bytes(b"".join([*lines[: event.seq], b"{}\n", *lines[event.seq + 1 :]]))
        if event.turn_number <= 2:
            with pytest.raises(LogError, match=r"parent00-1: .*gap"):
                prefix(root, Origin(PARENT, 2))
        else:
            assert len(messages(prefix(root, Origin(PARENT, 2)))) == 4


@pytest.mark.parametrize("what", ["changed", "deleted"])
async def test_a_parent_that_is_no_longer_what_it_was(root: OutputRoot, what: str) -> None:
    """Going on says so and touches nothing; what the branch has can still be read."""
    spec = the_spec()
    parent = await hold_in(root, PARENT, spec)
    child = await hold_in(root, CHILD, leaving(spec, 2))
    lines = child.log.read_bytes().splitlines(keepends=True)
    child.log.write_bytes(b"".join(lines[:9]))
    before = child.log.read_bytes()
    if what == "deleted":
        shutil.rmtree(parent.log.parent)
    else:
        said = messages(parent.events)[-8].message.content
        # Rewritten as a whole: the digests of what was sent are gone with it.
        shutil.rmtree(parent.log.parent)
        other = replace(spec, opening="Good evening.")
        await hold_in(root, PARENT, other)
        assert said
    with pytest.raises((LogError, NotFound), match=PARENT) as refused:
        await hold_in(root, CHILD, leaving(spec, 2))
    assert "\n" not in str(refused.value)
    assert child.log.read_bytes() == before
    events, missing = whole(root, read_record(child.log).events)
    assert messages(events)[-1] == messages(read_record(child.log).events)[-1]
    assert (missing is None) == (what == "changed")


# Nobody sees what is not theirs


async def test_two_branches_never_see_each_others_text(root: OutputRoot, tmp_path: Path) -> None:
    """Not even through the cache: each is sent its own words alone, and asks for its own replies."""
    spec = replace(the_spec("openai:one", "openai:two", max_turns=4), cache="on")

    def pool(word: str, cache: ResponseCache) -> tuple[ScriptedPool, list[Scripted]]:
        providers = [Scripted(*replies(*(f"{word}-{who}-{n}" for n in range(9)))) for who in "ab"]
        made = ScriptedPool(one=providers[0], two=providers[1])
        made._cache = cache
        return made, providers

    said: dict[str, str] = {}
    for number, word in enumerate(("shared", "canary", "magpie", "wren")):
        # Every pool closes its cache with it; the file is the same.
        made, providers = pool(word, ResponseCache(tmp_path / "cache.sqlite"))
        if word == "shared":
            await hold_in(root, PARENT, spec, made)
        else:
            # Two of them are the same but for what is put in; the third does not even differ in that.
            script = (Intervention(3, "inject", ("a", "b"), f"Think of a {word}."),) if word != "wren" else ()
            held = await hold_in(root, f"child000-{number}", leaving(spec, 2, interventions=script), made)
            check_record(held.events)
            assert not any(event.cached for event in messages(held.events))
        sent = [message.content for provider in providers for each in provider.requests for message in each.messages]
        said[word] = "\n".join(sent)
    for word, text in said.items():
        for other in ("canary", "magpie", "wren"):
            assert (other in text) == (other == word)
    assert "shared-a-2" not in said["canary"]
    assert "shared-a-1" in said["canary"]


async def test_the_same_branch_run_again_is_answered_from_the_cache(tmp_path: Path) -> None:
    """The draw of a branch is its own, and the same when the very same branch is run again."""
    spec = replace(the_spec(max_turns=4), cache="on")
    mine = leaving(spec, 2, interventions=(Intervention(3, "inject", ("a",), "Rivers."),))
    held = []
    for place in ("one", "two"):
        root = OutputRoot(tmp_path / place)
        for name, each in ((PARENT, spec), (CHILD, mine)):
            pool = ProviderPool(cache=ResponseCache(tmp_path / "cache.sqlite"))
            held.append(await hold_in(root, name, each, pool))
    _, first, _, again = held
    assert not any(event.cached for event in messages(first.events))
    assert all(event.cached for event in messages(again.events))
    assert texts(first.events) == texts(again.events)


def test_differences_are_named_by_agent_and_setting() -> None:
    """Settings that differ are named with both values; what only tells draws apart is not a setting."""
    one = the_spec(agents={"a": {"temperature": 0.2}})
    other = replace(the_spec(agents={"a": {"temperature": 0.9}}), arm="x", repetition=3, origin=Origin(PARENT, 1))
    assert differences(one.to_json(), other.to_json()) == {"agents.a.settings.temperature": (0.2, 0.9)}


async def test_the_opening_is_the_shared_one_whatever_the_spec_says(root: OutputRoot) -> None:
    """A branch cannot have begun otherwise than its origin: record and requests hold the opening that was sent."""
    spec = the_spec("openai:one", MODEL, max_turns=2)
    await hold_in(root, PARENT, spec, ScriptedPool(one=Scripted(*replies("a1", "a2"))))
    one = Scripted(*replies("a2"))
    child = await hold_in(root, CHILD, leaving(spec, 1, opening="Something else."), ScriptedPool(one=one))
    start = child.events[0]
    assert isinstance(start, ConversationStartEvent)
    assert start.opening == spec.opening
    assert one.requests[0].messages[0].content == f"[HUMAN]: {spec.opening}"
    assert "opening" not in of_type(child.events, ConversationBranchedEvent)[0].changes


async def test_the_prefix_belongs_to_the_origin(root: OutputRoot, tmp_path: Path) -> None:
    """A branch without its prefix, or a prefix without a branch, is refused at once."""
    parent = await hold_in(root, PARENT, the_spec(max_turns=2))
    with pytest.raises(ValueError, match="a prefix belongs to"):
        await hold(tmp_path / "1.jsonl", leaving(the_spec(), 1))
    with pytest.raises(ValueError, match="a prefix belongs to"):
        await hold(tmp_path / "2.jsonl", the_spec(), shared=parent.events)
