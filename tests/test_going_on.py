"""What a stop in a pause, a kill, a lost process file and a larger budget leave for the next run."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, pidgin, until
from support import Scripted, ScriptedPool, experiment, of_type

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.core.errors import LogError, ProviderUnavailable
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ErrorEvent,
    Event,
    ExperimentCompleteEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    QuestionAbandonedEvent,
    QuestionEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import EndReason, Finish, FinishReason, Status, TextDelta, Usage, UsageDelta
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.experiments.budget import run_time, spent_so_far
from pidgin_cli.experiments.library import save_spec
from pidgin_cli.experiments.registry import PidFile, living_runner
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.experiment import ExperimentSpec, load
from pidgin_cli.spec.schema import BudgetSpec

__all__ = ["pidgin"]

QUICK = "local:test?words=8"
SLOW = "local:test?words=6&latency_ms=40"


class Begun:
    """An experiment with a runner that is yet to run."""

    def __init__(self, where: Path, spec: ExperimentSpec, pool: ProviderPool | None = None, **how: Any) -> None:
        self.root = OutputRoot(where)
        self.folder: ExperimentFolder = create_experiment(self.root, spec)
        self.pool = pool or ProviderPool()
        self.runner = Runner(self.root, self.folder, self.pool, **how)

    async def run(self) -> None:
        try:
            async with asyncio.timeout(20):
                await self.runner.run()
        finally:
            await self.pool.aclose()

    def events(self, number: int = 1) -> list[Event]:
        return read_record(self.folder.log(f"{self.folder.experiment_id}-{number}")).events


# A pause


async def test_a_stop_in_a_pause_ends_the_run(tmp_path: Path) -> None:
    """Stopped while it is paused, a run ends at once: its conversations have an end event and its process file goes."""
    begun: list[Begun] = []

    def look(conductor: Conductor) -> None:
        conductor.bus.subscribe(lambda _: begun[0].runner.pause("test"), MessageCompleteEvent)
        conductor.bus.subscribe(lambda _: begun[0].runner.stop(), ConversationPausedEvent)

    begun.append(Begun(tmp_path, experiment(QUICK, QUICK, repetitions=3), on_conversation=look))
    await begun[0].run()
    assert read_manifest(begun[0].folder).status is Status.STOPPED
    assert not begun[0].root.pid_file(begun[0].folder.experiment_id).exists()


async def test_a_pause_that_comes_with_the_last_message_holds_nothing(tmp_path: Path) -> None:
    """Where nothing is left to hold back, a paused run completes."""
    begun: list[Begun] = []

    def look(conductor: Conductor) -> None:
        def pause(event: Event) -> None:
            assert isinstance(event, MessageCompleteEvent)
            if event.message_index == 5:
                begun[0].runner.pause("test")

        conductor.bus.subscribe(pause, MessageCompleteEvent)

    begun.append(Begun(tmp_path, experiment(QUICK, QUICK), on_conversation=look))
    await begun[0].run()
    assert read_manifest(begun[0].folder).status is Status.COMPLETED


async def test_a_pause_outlasts_a_back_off(tmp_path: Path) -> None:
    """A message that waits to be tried again is not asked for while the run is paused; afterwards it is."""
    begun: list[Begun] = []
    busy = ProviderUnavailable("busy", provider="local")
    busy.retry_after_s = 0.02
    model = Scripted([busy], [TextDelta("yes"), Finish(FinishReason.STOP)])
    begun.append(
        Begun(
            tmp_path,
            experiment("local:x", "local:x", max_turns=1, retries={"attempts": 3, "base_s": 1, "max_wait_s": 1}),
            ScriptedPool(x=model),
        )
    )
    task = asyncio.create_task(begun[0].run())
    await model.opened.wait()
    begun[0].runner.pause("test")
    await asyncio.sleep(0.2)  # ten times the wait: were it not held, it would be asked
    assert len(model.requests) == 1
    begun[0].runner.resume()
    await task
    assert len(model.requests) == 3
    assert read_manifest(begun[0].folder).status is Status.COMPLETED


async def test_a_pause_holds_those_that_wait_for_a_place(tmp_path: Path) -> None:
    """With one request at a time, a paused run finishes that one and asks for nothing that was waiting behind it."""
    gate = asyncio.Event()
    model = Scripted([gate, TextDelta("yes"), Finish(FinishReason.STOP)])
    spec = experiment("local:x", "local:x", max_turns=1, repetitions=3, max_parallel=3, concurrency=1)
    begun = Begun(tmp_path, spec, ScriptedPool(x=model))
    task = asyncio.create_task(begun.run())
    await model.opened.wait()
    begun.runner.pause("test")
    gate.set()
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(model.requests) == 1
    assert model.open == 0
    begun.runner.resume()
    await task
    assert len(model.requests) == 6
    assert read_manifest(begun.folder).status is Status.COMPLETED


async def test_one_paused_conversation_holds_no_place(tmp_path: Path) -> None:
    """A pause of one conversation alone keeps no other from being asked for, even where there is but one place."""
    gate = asyncio.Event()
    model = Scripted([gate, TextDelta("yes"), Finish(FinishReason.STOP)])
    spec = experiment("local:x", "local:x", max_turns=1, repetitions=3, max_parallel=3, concurrency=1)
    begun = Begun(tmp_path, spec, ScriptedPool(x=model))
    task = asyncio.create_task(begun.run())
    await model.opened.wait()
    second = begun.runner.running[f"{begun.folder.experiment_id}-2"]
    second.control.pause("delegate")
    gate.set()
    async with asyncio.timeout(10):
        while len(begun.runner.outcomes) < 2:  # noqa: ASYNC110 - nobody tells of each that ends
            await asyncio.sleep(0)
    second.control.resume()
    await task
    assert read_manifest(begun.folder).status is Status.COMPLETED


# Budgets


def test_a_larger_cap_leaves_the_other_caps(pidgin: Pidgin, tmp_path: Path) -> None:
    """A cap by flag changes that cap alone: those on tokens, time and each conversation stay, of a file as of a run."""
    (tmp_path / "s.yaml").write_text(
        f"name: caps\nagent_a: {QUICK}\nagent_b: {QUICK}\nmax_tokens: 20\nmax_turns: 2\nseed: 1\n"
        "budget: {usd: 1, tokens: 50, wall_time: 1h, per_conversation: {tokens: 3000}}\n"
    )

    def caps() -> dict[str, Any]:
        (folder,) = OutputRoot(tmp_path / "pidgin_output").folders()
        budget = load(folder.spec).budget
        assert budget is not None
        return budget.model_dump(exclude_none=True)

    kept = {"wall_time": 3600.0, "per_conversation": {"tokens": 3000}}
    assert pidgin("run", "s.yaml", "--budget", "2").status == 0
    assert caps() == {"usd": 2, "tokens": 50, **kept}
    assert pidgin("resume", "caps", "--budget-tokens", "90").status == 0
    assert caps() == {"usd": 2, "tokens": 90, **kept}
    assert pidgin("run", "s.yaml", "--budget-tokens", "5000").status == 0
    assert caps() == {"usd": 1, "tokens": 5000, **kept}


def test_time_that_is_over_ends_as_other_budgets_do(pidgin: Pidgin, tmp_path: Path) -> None:
    """A run whose wall time is over exits 0 and names the flag that goes on, as with the other caps; so it does
    where no time was left from the start."""
    (tmp_path / "s.yaml").write_text(
        f"name: timed\nagent_a: {SLOW}\nagent_b: {SLOW}\nmax_turns: 400\nseed: 1\nrepetitions: 2\n"
        "budget: {wall_time: 0.2}\n"
    )
    for command in (("run", "s.yaml"), ("resume", "timed")):
        done = pidgin(*command)
        assert done.status == 0
        assert "budget is used up" in done.out
        assert "--budget-time" in done.out


async def test_a_killed_run_has_used_its_time(tmp_path: Path) -> None:
    """A run without an end in the record counts up to the last event that any of its logs holds."""
    begun = Begun(tmp_path, experiment(SLOW, SLOW, max_turns=4, budget={"wall_time": 60}))
    await begun.run()
    own = read_record(begun.folder.events).events
    killed = [event for event in own if not isinstance(event, ExperimentCompleteEvent)]
    lasted = (begun.events()[-1].timestamp - own[0].timestamp).total_seconds()
    assert lasted > 0.3
    seen = [event.timestamp for event in begun.events()]
    assert run_time(killed, seen) == pytest.approx(lasted)
    assert run_time([*killed, *own], seen) == pytest.approx(run_time(own, seen), abs=1e-6), "nothing between the two"
    begun.folder.events.write_text(
        "".join(
            line
            for line in begun.folder.events.read_text().splitlines(keepends=True)
            if "ExperimentCompleteEvent" not in line
        )
    )
    spec = load(begun.folder.spec)
    assert spec.budget is not None
    over = spec.budget.model_copy(update={"wall_time": lasted / 2})
    save_spec(begun.folder, spec.model_copy(update={"budget": over, "repetitions": 2}))
    await Runner(begun.root, begun.folder, begun.pool).run()
    assert read_manifest(begun.folder).status is Status.STOPPED
    assert not begun.folder.log(f"{begun.folder.experiment_id}-2").exists(), "nothing more was begun"


@pytest.mark.parametrize(("written", "seconds"), [("4", 4.0), ("4.5", 4.5), ("90m", 5400.0), ("1h30m", 5400.0)])
def test_seconds_need_no_unit(written: str, seconds: float, pidgin: Pidgin) -> None:
    """A length of time on the command line is seconds unless it says otherwise, as in a spec."""
    flags = ("-a", "local:test", "-b", "local:test", "-t", "1", "-n", "short")
    assert pidgin("run", *flags, "--budget-time", written).status == 0
    (spec,) = Path("pidgin_output").glob("experiments/*/spec.yaml")
    budget = load(spec).budget
    assert budget is not None
    assert budget.wall_time == seconds


BOUND = {"a": {"max_tokens": 40}, "b": {"max_tokens": 40}}


async def test_what_broke_off_is_spent_in_the_next_run_too(tmp_path: Path) -> None:
    """The record says what a request set aside, so that the next run counts what broke off as this one did."""
    flaky = f"{QUICK}&fail=disconnect@1x2,disconnect@2"
    spec = experiment(flaky, QUICK, agents=BOUND, budget={"tokens": 100_000}, repetitions=2)
    begun = Begun(tmp_path, spec)
    await begun.run()
    found = [spent_so_far(begun.events(number)) for number in (1, 2)]
    assert len(of_type(begun.events(), MessageAbandonedEvent)) == 3
    assert sum(spent.tokens for spent in found) == begun.runner.budget.tokens
    assert all(spent.tokens > 3 * 40 for spent in found)


@pytest.mark.parametrize("sent", [True, False])
async def test_what_broke_off_before_its_first_word_is_spent(sent: bool, tmp_path: Path) -> None:
    """A connection that breaks counts with all that its request may have used, then and later; one never made, not."""
    broken = ProviderUnavailable("cut off", provider="openai", sent=sent)
    fine = [TextDelta("Yes."), UsageDelta(Usage(prompt_tokens=10, completion_tokens=5)), Finish()]
    retries = {"base_s": 0.001, "max_wait_s": 0.001}
    spec = experiment("openai:m1", QUICK, agents=BOUND, budget={"tokens": 100_000}, max_turns=1, retries=retries)
    begun = Begun(tmp_path, spec, ScriptedPool(m1=Scripted([broken], [broken], fine)))
    await begun.run()
    asked = of_type(begun.events(), MessageRequestEvent)[0]
    assert [event.may_be_billed for event in of_type(begun.events(), APIErrorEvent)] == [sent, sent]
    assert asked.reserved is not None
    used = sum(event.prompt_tokens + event.completion_tokens for event in of_type(begun.events(), TokenUsageEvent))  # type: ignore[operator]
    assert begun.runner.budget.tokens == used + 2 * sent * asked.reserved["tokens"]
    assert spent_so_far(begun.events()).tokens == begun.runner.budget.tokens


async def test_what_the_cache_answers_is_spent_in_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies, names and summaries from the cache use nothing up, by the run that gets them and by the next."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(tmp_path / "cache"))
    talk = {"max_turns": 8, "choose_names": True, "context": {"policy": "summarise", "limit_tokens": 220}}
    agents = {i: {"max_tokens": 60} for i in "ab"}
    spec = experiment(QUICK, QUICK, agents=agents, budget={"tokens": 100_000}, cache="shared", **talk)
    first, again = Begun(tmp_path / "first", spec), Begun(tmp_path / "again", spec)
    await first.run()
    await again.run()
    assert spent_so_far(first.events()).tokens == first.runner.budget.tokens > 0
    used = of_type(again.events(), TokenUsageEvent)
    assert {event.purpose for event in used} == {"message", "name", "summary"}
    assert {event.cached for event in used} == {True}
    assert spent_so_far(again.events()).tokens == again.runner.budget.tokens == 0


async def test_what_was_in_flight_at_a_kill_is_spent(tmp_path: Path) -> None:
    """Cut off right behind any request, a record counts all that the request may have used, resumed or not."""
    begun = Begun(tmp_path, experiment(QUICK, QUICK, agents=BOUND, budget={"tokens": 100_000}))
    await begun.run()
    log = begun.folder.log(f"{begun.folder.experiment_id}-1")
    lines = log.read_bytes().splitlines(keepends=True)
    events = begun.events()
    whole = spent_so_far(events)
    for number, event in enumerate(events):
        if isinstance(event, MessageRequestEvent):
            before = spent_so_far(events[:number])
            after = spent_so_far(events[: number + 1])
            assert event.reserved is not None
            assert after.tokens - before.tokens == event.reserved["tokens"] > 40
            log.write_bytes(b"".join(lines[: number + 1]))
            pool = ProviderPool()
            await Runner(begun.root, begun.folder, pool).run()
            await pool.aclose()
            assert spent_so_far(begun.events()).tokens == whole.tokens + event.reserved["tokens"]


ASKED_BESIDE = {
    "names": {"choose_names": True},
    "summaries": {"context": {"policy": "summarise", "limit_tokens": 220}, "max_turns": 8},
}


@pytest.mark.parametrize("keys", ASKED_BESIDE.values(), ids=ASKED_BESIDE)
async def test_questions_in_flight_at_a_kill_are_spent(keys: dict[str, Any], tmp_path: Path) -> None:
    """What asks for a name or a summary stands in the record before it goes out, with all that it may use."""
    begun = Begun(tmp_path, experiment(QUICK, QUICK, agents=BOUND, budget={"tokens": 100_000}, **keys))
    await begun.run()
    log = begun.folder.log(f"{begun.folder.experiment_id}-1")
    lines = log.read_bytes().splitlines(keepends=True)
    events = begun.events()
    whole = spent_so_far(events)
    assert whole.tokens == begun.runner.budget.tokens
    asked = [number for number, event in enumerate(events) if isinstance(event, QuestionEvent)]
    assert len(asked) >= 2
    assert len(asked) == sum(event.purpose in ("name", "summary") for event in of_type(events, TokenUsageEvent))
    for number in asked:
        event = events[number]
        assert isinstance(event, QuestionEvent)
        before, after = spent_so_far(events[:number]), spent_so_far(events[: number + 1])
        assert event.reserved is not None
        assert after.tokens - before.tokens == event.reserved["tokens"] > 40
        log.write_bytes(b"".join(lines[: number + 1]))
        pool = ProviderPool()
        await Runner(begun.root, begun.folder, pool).run()
        await pool.aclose()
        assert spent_so_far(begun.events()).tokens == whole.tokens + event.reserved["tokens"]


async def test_questions_that_broke_off_are_spent_and_recorded(tmp_path: Path) -> None:
    """Half an answer is kept as abandoned, counts with all that was set aside, and is never a name."""
    name = [UsageDelta(Usage(30, 1)), TextDelta("Gul"), ProviderUnavailable("gone")]
    model = Scripted(name, [TextDelta("Wren"), UsageDelta(Usage(30, 2)), Finish(FinishReason.STOP)])
    keys = {"agents": BOUND, "max_turns": 1, "choose_names": True, "retries": {"base_s": 0.001}}
    begun = Begun(tmp_path, experiment("local:x", QUICK, budget={"tokens": 100_000}, **keys), ScriptedPool(x=model))
    await begun.run()
    events = begun.events()
    (broken,) = of_type(events, QuestionAbandonedEvent)
    assert (broken.agent_id, broken.purpose, broken.partial) == ("a", "name", "Gul")
    assert [event.name for event in of_type(events, AgentNamedEvent) if event.agent_id == "a"] == ["Wren"]
    assert [event.agent_id for event in of_type(events, QuestionEvent)] == ["a", "a", "b"]
    assert not of_type(events, MessageAbandonedEvent)
    assert spent_so_far(events).tokens == begun.runner.budget.tokens


async def test_requests_that_nobody_answered_cost_nothing(tmp_path: Path) -> None:
    """What failed before its first piece, and a reply from the cache, take nothing of a budget; without one the record
    does not speak of reservations."""
    begun = Begun(tmp_path, experiment(f"{QUICK}&fail=auth@2", QUICK, agents=BOUND, budget={"tokens": 100_000}))
    await begun.run()
    assert spent_so_far(begun.events()).tokens == begun.runner.budget.tokens
    assert not of_type(begun.events(), MessageAbandonedEvent)
    free = Begun(tmp_path / "free", experiment(QUICK, QUICK))
    await free.run()
    assert all(event.reserved is None for event in of_type(free.events(), MessageRequestEvent))


async def test_replies_that_nobody_waited_for_are_spent(tmp_path: Path) -> None:
    """Whatever timed out before its first piece may be billed, so it counts whole and the cap holds; one in the middle
    counts once."""
    keys = {"agents": BOUND, "max_turns": 2, "timeouts": {"first_token_s": 0.05, "gap_s": 0.05}}
    spec = experiment(f"{QUICK}&fail=hang_start@1x2,hang@2", QUICK, budget={"tokens": 100_000}, **keys)
    begun = Begun(tmp_path, spec)
    await begun.run()
    events = begun.events()
    assert [e.error for e in of_type(events, APIErrorEvent)] == ["ProviderTimeout"] * 3
    whole = [e for e in of_type(events, TokenUsageEvent) if e.purpose == "message"]
    reported = sum((e.prompt_tokens or 0) + (e.completion_tokens or 0) for e in whole)
    first, later = (e.reserved for e in of_type(events, MessageRequestEvent) if e.agent_id == "a")
    assert first is not None
    assert later is not None
    assert spent_so_far(events).tokens == reported + 2 * first["tokens"] + later["tokens"]
    assert spent_so_far(events).tokens == begun.runner.budget.tokens

    capped = Begun(tmp_path / "capped", spec.model_copy(update={"budget": BudgetSpec(tokens=first["tokens"] + 20)}))
    await capped.run()
    assert of_type(capped.events(), ConversationEndEvent)[-1].end_reason is EndReason.BUDGET
    assert spent_so_far(capped.events()).tokens == capped.runner.budget.tokens == first["tokens"]


async def test_usage_that_is_not_reported_is_all_that_was_set_aside(tmp_path: Path) -> None:
    """A reply whose provider does not count counts whole, in this run and in the next."""
    model = Scripted([TextDelta("yes"), Finish(FinishReason.STOP)])
    spec = experiment("local:x", "local:x", agents=BOUND, max_turns=1, budget={"tokens": 100_000})
    begun = Begun(tmp_path, spec, ScriptedPool(x=model))
    await begun.run()
    reserved = [event.reserved for event in of_type(begun.events(), MessageRequestEvent)]
    assert sum(one["tokens"] for one in reserved if one) == begun.runner.budget.tokens
    assert spent_so_far(begun.events()).tokens == begun.runner.budget.tokens


@pytest.mark.parametrize("cap", [9_000, 23_000, 61_000])
async def test_the_cap_holds_whatever_is_asked(tmp_path: Path, cap: int) -> None:
    """Names, summaries, swapped models, injections, broken attempts and stops in the middle, run after run: at every
    event what is spent and in flight is within the cap, and so is what the record says was spent."""
    flaky = "local:test?words=20&fail=disconnect:0.1,rate_limit:0.05,hang:0.02"
    spec = experiment(
        flaky,
        flaky,
        agents={"a": {"max_tokens": 30}, "b": {"max_tokens": 30}},
        repetitions=12,
        max_turns=12,
        max_parallel=12,
        choose_names=True,
        context={"policy": "summarise", "limit_tokens": 1500, "reserve_tokens": 100},
        interventions=[
            {"turn": 2, "inject": "Speak of rivers.", "to": "a"},
            {"turn": 3, "swap_model": "local:test?words=10", "agent": "b"},
            {"turn": 4, "edit": "I never said that.", "agent": "a"},
        ],
        twins=True,
        timeouts={"gap_s": 0.05},
        budget={"tokens": cap},
    )
    begun: list[Begun] = []
    runners: list[Runner] = []
    looked = 0

    def watch(conductor: Conductor) -> None:
        def look(_: Event) -> None:
            nonlocal looked
            looked += 1
            budget = runners[-1].budget
            assert budget.tokens + budget.held_tokens <= cap
            if looked in (300, 800):
                runners[-1].stop(now=looked == 300)

        conductor.bus.subscribe(look, essential=True)

    begun.append(Begun(tmp_path, spec, on_conversation=watch))
    runners.append(begun[0].runner)
    await begun[0].run()
    for _ in range(2):
        runners.append(Runner(begun[0].root, begun[0].folder, begun[0].pool, on_conversation=watch))
        await runners[-1].run()
    records = [read_record(log).events for log in begun[0].folder.logs().values()]
    assert sum(spent_so_far(events).tokens for events in records) <= cap
    assert not any(of_type(events, ErrorEvent) for events in records)
    assert runners[-1].budget.exhausted
    assert looked > 150


# Names


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who waits for a lock is told by Linux alone")
def test_a_name_that_is_taken_in_the_same_moment(tmp_path: Path) -> None:
    """Whoever is about to take a name looks again when it is their turn: one name never comes to stand for two."""
    root = OutputRoot(tmp_path / "pidgin_output")
    (tmp_path / "s.yaml").write_text(f"name: same\nagent_a: {QUICK}\nagent_b: {QUICK}\nseed: 1\n")
    with root.naming():
        argv = [sys.executable, "-m", "pidgin_cli", "run", "s.yaml"]
        process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        until(lambda: process.poll() is not None or _waits(process.pid))
        assert process.poll() is None
        create_experiment(root, experiment(QUICK, QUICK, name="same"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is in use by experiment" in said
    assert len(list(root.folders())) == 1


def _waits(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


# Deleted files


async def test_a_log_deleted_while_it_is_written_is_no_complete_conversation(tmp_path: Path) -> None:
    """What is written to a file that is gone is lost: the conversation is not called complete, the others are not
    touched, and the next run makes it anew."""
    begun: list[Begun] = []

    def look(conductor: Conductor) -> None:
        def delete(event: Event) -> None:
            assert isinstance(event, MessageCompleteEvent)
            if event.message_index == 2 and conductor.conversation_id.endswith("-1"):
                begun[0].folder.log(conductor.conversation_id).unlink()

        conductor.bus.subscribe(delete, MessageCompleteEvent)

    begun.append(Begun(tmp_path, experiment(QUICK, QUICK, repetitions=3), on_conversation=look, max_parallel=3))
    folder = begun[0].folder
    await begun[0].run()
    first = f"{folder.experiment_id}-1"
    assert "deleted" in begun[0].runner.refused[first]
    entries = read_manifest(folder).conversations
    assert entries.pop(first).status is Status.INTERRUPTED
    assert all(entry.status is Status.COMPLETED for entry in entries.values())
    await Runner(begun[0].root, folder, begun[0].pool).run()
    assert read_manifest(folder).status is Status.COMPLETED
    assert len(of_type(begun[0].events(), MessageCompleteEvent)) == 6


async def test_a_folder_deleted_in_the_middle_ends_the_run(tmp_path: Path) -> None:
    """Where the record has no place any more nothing more is asked, and the run says what happened."""
    model = Scripted([TextDelta("yes"), Finish(FinishReason.STOP)])
    begun: list[Begun] = []

    def look(conductor: Conductor) -> None:
        def delete(_: Event) -> None:
            if begun[0].folder.path.exists() and len(model.requests) >= 4:
                shutil.rmtree(begun[0].folder.path)

        conductor.bus.subscribe(delete, MessageCompleteEvent)

    spec = experiment("local:x", "local:x", repetitions=9, max_turns=50)
    begun.append(Begun(tmp_path, spec, ScriptedPool(x=model), on_conversation=look, max_parallel=2))
    with pytest.raises(LogError):
        await begun[0].run()
    assert len(model.requests) <= 6


# Process files


async def test_a_second_runner_leaves_the_first_ones_process_file(tmp_path: Path) -> None:
    """Who loses the race for an experiment is refused and takes away nothing: the runner that has it stays known."""
    begun = Begun(tmp_path, experiment(QUICK, QUICK))
    pid_file = begun.root.pid_file(begun.folder.experiment_id)
    syncer = Syncer()
    held, _ = EventLog.resume(  # as a runner holds it that has not written its process file yet
        begun.folder.events, experiment_id=begun.folder.experiment_id, conversation_id=None, syncer=syncer
    )
    PidFile(pid_file).write()
    with pytest.raises(LogError, match="another process"):
        await begun.run()
    assert pid_file.exists()
    assert living_runner(begun.root, begun.folder.experiment_id) is not None
    await held.aclose()
    await syncer.aclose()


def test_a_lost_process_file_comes_back_with_the_next_beat(tmp_path: Path) -> None:
    """A runner whose process file somebody deleted, folder and all, is known again after a heartbeat."""
    root = OutputRoot(tmp_path)
    root.prepare()
    pid_file = PidFile(root.pid_file("abcd1234"))
    pid_file.write()
    pid_file.path.unlink()
    pid_file.path.parent.rmdir()
    assert living_runner(root, "abcd1234") is None
    pid_file.beat()
    found = living_runner(root, "abcd1234")
    assert found is not None
    assert found.pid == os.getpid()


# Looking at it


def test_logs_say_which_conversations_failed(pidgin: Pidgin, tmp_path: Path) -> None:
    """The runner's log, which a detached run names for what went wrong, holds every failed conversation and why."""
    (tmp_path / "s.yaml").write_text(
        f"name: failing\nagent_a: {QUICK}&fail=auth@1\nagent_b: {QUICK}\nrepetitions: 2\nseed: 1\n"
    )
    done = pidgin("run", "s.yaml")
    assert done.status == 1
    assert (done.out + done.err).count("AuthenticationFailed") == 2, "on the screen once each"
    logged = pidgin("logs", "failing").out
    assert len([line for line in logged.splitlines() if "failed: AuthenticationFailed" in line]) == 2


def test_the_trees_of_all(pidgin: Pidgin) -> None:
    """`show --tree` without a name draws every tree under the root; `show` alone still needs one."""
    assert "no branches" in pidgin("show", "--tree").out
    for name in ("one", "two"):
        chat = ("chat", "-a", QUICK, "-b", QUICK, "-t", "2", "-n", name, "--display", "quiet")
        assert pidgin(*chat).status == 0
        assert pidgin("branch", name, "--turn", "1", "--display", "quiet").status == 0
    said = pidgin("show", "--tree")
    assert said.status == 0
    assert said.out.count("after turn 1") == 2
    assert len(json.loads(pidgin("show", "--tree", "--json").out)) == 2
    assert pidgin("show").status == 2


def test_templates_as_data(pidgin: Pidgin) -> None:
    """`init --list --json` gives what the list says as data."""
    listed = pidgin("init", "--list").out
    for one in json.loads(pidgin("init", "--list", "--json").out):
        assert one["name"] in listed
        assert one["about"] in listed
