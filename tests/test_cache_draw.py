"""What a cached reply may be used for again: the same draw, however long and carefully it runs, and no other."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from forked_cli import run_plain
from loopback import LoopbackServer, Reply, loopback_in_thread
from msgspec.structs import replace
from support import conversation, converse, experiment, messages

from pidgin_cli.core.types import Retries, Timeouts
from pidgin_cli.providers.cache import ResponseCache
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.conversation import (
    NO_PART_OF_THE_DRAW,
    ConvergencePolicy,
    ConversationSpec,
    DetectorPolicy,
    Origin,
)

OPENAI = "openai:gpt-x"

SAME_DRAW: dict[str, Any] = {
    "max_turns": 99,
    "durability": "strict",
    "retries": Retries(attempts=1),
    "timeouts": Timeouts(total_s=1.0),
    "concurrency": 3,
    "lenient": True,
    "cache": "shared",
    "metrics": "live",
    "convergence": ConvergencePolicy(threshold=0.5),
    "detectors": {"cycle": DetectorPolicy(action="mark")},
}
OTHER_DRAW: dict[str, Any] = {
    "seed": 1,
    "arm": "a.temperature=1",
    "repetition": 2,
    "opening": "Good night.",
    "first": "b",
    "order": "random",
    "origin": Origin("abcd1234-1", 2),
}


def spec() -> ConversationSpec:
    return conversation(OPENAI, OPENAI)


@pytest.mark.parametrize("name", SAME_DRAW)
def test_how_long_and_carefully_it_runs_is_no_part_of_the_draw(name: str) -> None:
    """Such a key may change, also between the experiments of two folders, and the replies are found again."""
    changed = replace(spec(), **{name: SAME_DRAW[name]})
    assert changed != spec()
    assert changed.draw("zzzz9999-7") == spec().draw("abcd1234-1")


@pytest.mark.parametrize("name", OTHER_DRAW)
def test_everything_else_is(name: str) -> None:
    """Another seed, arm, repetition, opening, order or origin is another draw."""
    assert replace(spec(), **{name: OTHER_DRAW[name]}).draw("c-1") != spec().draw("c-1")


def test_a_new_key_is_part_of_the_draw_until_somebody_decides() -> None:
    """The exceptions are named, and each of them is a key."""
    assert set(SAME_DRAW) == NO_PART_OF_THE_DRAW
    assert {field.name for field in msgspec.structs.fields(ConversationSpec)} > NO_PART_OF_THE_DRAW


def test_two_branches_with_equal_settings_are_two_draws() -> None:
    """Even at one turn of one parent; a branch that is resumed is the same."""
    branch = replace(spec(), origin=Origin("abcd1234-1", 2))
    assert branch.draw("abcd1234-1:b1") != branch.draw("abcd1234-1:b2")
    assert branch.draw("abcd1234-1:b1") == replace(branch, max_turns=50).draw("abcd1234-1:b1")


async def test_more_turns_begin_with_the_cached_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns, then four: only what is new is asked. Another seed shares nothing."""
    async with LoopbackServer() as server:
        count = 0

        def reply(_: object) -> Reply:
            nonlocal count
            count += 1
            return Reply(f"Reply {count}.")

        server.reply = reply
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)

        async def held(name: str, **keys: Any) -> list[tuple[str, bool]]:
            pool = ProviderPool(cache=ResponseCache(tmp_path / "responses.db"))
            run = await converse(tmp_path / name, experiment(OPENAI, OPENAI, cache="on", **keys), pool=pool)
            return [(event.message.content, event.cached) for event in messages(run.events)]

        first = await held("first", max_turns=2)
        assert [cached for _, cached in first] == [False] * 4
        longer = await held("longer", max_turns=4, durability="strict", lenient=True, concurrency=2)
        assert longer[:4] == [(text, True) for text, _ in first]
        assert [cached for _, cached in longer[4:]] == [False] * 4
        assert len(server.chats) == 8
        other = await held("other", max_turns=2, seed=12)
        assert not any(cached for _, cached in other)


def test_a_drawn_seed_is_told_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --seed nothing would be found again: `chat` says which one to give, and giving it helps."""
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(tmp_path / "cache"))
    with loopback_in_thread() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        flags = ["chat", "-a", OPENAI, "-b", OPENAI, "-t", "1", "-p", "Hello.", "--cache", "--display", "quiet"]

        def chat(name: str, *more: str) -> str:
            done = run_plain([*flags, "-o", str(tmp_path / name), *more])
            assert done.status == 0, done.output
            return done.output

        told = chat("1")
        assert "Note: the cache finds these replies again with --seed" in told
        assert len(server.chats) == 2
        seed = told.partition("--seed ")[2].split()[0]
        assert "--seed" not in chat("2", "--seed", seed)
        assert len(server.chats) == 2, "all of it came from the cache"
