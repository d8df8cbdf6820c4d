"""Many conversations in one process: order, isolation, control, budgets, and what the record says of them."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Scripted, ScriptedPool, check_record, experiment, messages, of_type, story

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.conversation.control import Amount, Stop
from pidgin_cli.conversation.delegates import ENGINE_CONTROLS, ENGINE_NOTIFICATIONS
from pidgin_cli.core.errors import LogError, ProviderUnavailable
from pidgin_cli.core.events import (
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import Delta, EndReason, Finish, FinishReason, Status, TextDelta
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import Manifest, read_manifest
from pidgin_cli.experiments.budget import Budget, Caps, Spent, caps_of, check_caps, spent_so_far
from pidgin_cli.experiments.library import save_spec
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.catalogue import use_settings
from pidgin_cli.spec.experiment import ExperimentSpec, expand, load
from pidgin_cli.spec.settings import Settings

QUICK = "local:test?words=8"
PRICED = "local:test?words=30&latency_ms=1"


class Ran:
    """An experiment that has been run, read back from its files."""

    def __init__(self, root: OutputRoot, folder: ExperimentFolder, runner: Runner) -> None:
        self.root, self.folder, self.runner = root, folder, runner

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    def events(self, number: int) -> list[Event]:
        return read_record(self.folder.log(f"{self.folder.experiment_id}-{number}")).events

    @property
    def all(self) -> dict[str, list[Event]]:
        return {name: read_record(log).events for name, log in self.folder.logs().items()}

    @property
    def own(self) -> list[Event]:
        return read_record(self.folder.events).events


async def run(
    where: Path | Ran,
    spec: ExperimentSpec | None = None,
    *,
    pool: ProviderPool | None = None,
    watch: Callable[[Runner], None] = lambda _: None,
    **how: Any,
) -> Ran:
    """Run an experiment from its beginning, or the one of an earlier run from where it stands."""
    if isinstance(where, Ran):
        root, folder = where.root, where.folder
    else:
        assert spec is not None
        root = OutputRoot(where)
        folder = create_experiment(root, spec)
    pool = pool or ProviderPool()
    runner = Runner(root, folder, pool, **how)
    watch(runner)
    try:
        await runner.run()
    finally:
        await pool.aclose()
    return Ran(root, folder, runner)


def stories(ran: Ran) -> list[Any]:
    """What was said, without ids and times."""
    return [
        [line[:4] + line[5:] if line[0] == "message" else line for line in story(events)] for events in ran.all.values()
    ]


@pytest.fixture
def prices() -> Iterator[None]:
    """The embedded model costs 10 USD a million tokens in and 20 out."""
    use_settings(Settings.model_validate({"models": {PRICED: {"input_price": 10, "output_price": 20}}}))
    yield
    use_settings(Settings())


# Many at a time


async def test_parallel_runs_say_what_sequential_ones_do(tmp_path: Path) -> None:
    """Eight at a time say the same words, per conversation, as one after the other; every record is legal."""
    spec = experiment(QUICK, QUICK, repetitions=12, sweep={"a.temperature": [0.0, 1.0]})
    one = await run(tmp_path / "one", spec)
    eight = await run(tmp_path / "eight", spec, max_parallel=8)
    assert stories(one) == stories(eight)
    assert len(eight.all) == 24
    for events in eight.all.values():
        check_record(events)
    assert eight.manifest.status is Status.COMPLETED
    assert eight.manifest.totals.completed == 24


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    """With max_parallel 3 exactly three conversations are under way together; by default one is."""
    for limit, spec in ((3, experiment("local:x", "local:y", repetitions=7, max_parallel=3, max_turns=1)), (1, None)):
        spec = spec or experiment("local:x", "local:y", repetitions=7, max_turns=1)
        reply = (0.005, TextDelta("yes"), Finish(FinishReason.STOP))
        pool = ScriptedPool(x=Scripted(reply), y=Scripted(reply))
        most = 0

        def count(conductor: Conductor, ran: list[Runner]) -> None:
            nonlocal most
            most = max(most, len(ran[0].running) + 1)

        runners: list[Runner] = []
        await run(
            tmp_path / str(limit),
            spec,
            pool=pool,
            watch=runners.append,
            on_conversation=lambda conductor, ran=runners: count(conductor, ran),  # type: ignore[misc]
        )
        assert most == limit


async def test_one_failure_harms_nobody(tmp_path: Path) -> None:
    """Where some conversations fail for good, the others say what they would have said; the experiment is failed."""
    arms = {"a.model": [QUICK, f"{QUICK}&fail=auth@2"]}
    ran = await run(tmp_path / "mixed", experiment(QUICK, QUICK, repetitions=5, sweep=arms), max_parallel=10)
    ended = {name: entry.status for name, entry in ran.manifest.conversations.items()}
    assert sorted(ended.values()) == [Status.COMPLETED] * 5 + [Status.FAILED] * 5
    for events in ran.all.values():
        check_record(events)
    assert ran.manifest.status is Status.FAILED
    assert (ran.manifest.totals.completed, ran.manifest.totals.failed) == (5, 5)


async def test_a_damaged_log_stops_its_own_conversation_only(tmp_path: Path) -> None:
    """A record that cannot be gone on with is named and left as it is; all others are run."""
    first = await run(tmp_path, experiment(QUICK, QUICK, repetitions=3), only=[])
    log = first.folder.log(f"{first.folder.experiment_id}-2")
    log.write_text('{"event_type":"TurnCompleteEvent","event_id":"x","seq":0,"turn_number":1}\n')
    before = log.read_bytes()
    ran = await run(first, max_parallel=3)
    assert list(ran.runner.refused) == [f"{ran.folder.experiment_id}-2"]
    assert log.read_bytes() == before
    assert ran.manifest.totals.completed == 2
    assert ran.manifest.status is Status.STOPPED, "something is left to do"
    (error,) = of_type(ran.own, ErrorEvent)
    assert f"{ran.folder.experiment_id}-2" in error.where


async def test_what_cannot_be_run_at_all_is_an_error(tmp_path: Path) -> None:
    """When no conversation could go on, the run raises with the reason."""
    first = await run(tmp_path, experiment(QUICK, QUICK), only=[])
    first.folder.log(f"{first.folder.experiment_id}-1").write_text(
        '{"event_type":"TurnCompleteEvent","event_id":"x","seq":0,"turn_number":1}\n'
    )
    with pytest.raises(LogError, match="does not begin with the start"):
        await run(first)


async def test_failed_ones_are_tried_again_when_asked(tmp_path: Path) -> None:
    """Failed conversations stay as they are unless they are to be retried; then they go on where they failed."""
    script = [TextDelta("yes"), Finish(FinishReason.STOP)]
    down = ProviderUnavailable("down", provider="local")
    spec = experiment("local:x", "local:y", max_turns=2, retries={"attempts": 1})
    ran = await run(tmp_path, spec, pool=ScriptedPool(x=Scripted(script, [down]), y=Scripted(script)))
    assert ran.manifest.status is Status.FAILED
    before = ran.events(1)
    same = await run(ran, retry_failed=False)
    assert same.events(1) == before
    again = await run(ran, pool=ScriptedPool(x=Scripted(script), y=Scripted(script)))
    assert again.manifest.status is Status.COMPLETED
    assert len(messages(again.events(1))) == 4
    assert again.events(1)[: len(before)] == before


async def test_more_repetitions_extend(tmp_path: Path) -> None:
    """With more repetitions in the spec the new conversations are run and the old logs do not change by a byte."""
    spec = experiment(QUICK, QUICK, repetitions=2, sweep={"a.temperature": [0.0, 1.0]})
    ran = await run(tmp_path / "grows", spec)
    before = {name: log.read_bytes() for name, log in ran.folder.logs().items()}
    save_spec(ran.folder, load(ran.folder.spec).model_copy(update={"repetitions": 3}))
    more = await run(ran)
    after = {name: log.read_bytes() for name, log in more.folder.logs().items()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 6
    at_once = await run(tmp_path / "at once", spec.model_copy(update={"repetitions": 3}))
    assert stories(more) == stories(at_once)


async def test_the_plan_stands_in_the_record(tmp_path: Path) -> None:
    """Each start says arm, repetition and values; the experiment's says how many, how, and what was expected."""
    ran = await run(
        tmp_path, experiment(QUICK, QUICK, repetitions=2, sweep={"a.temperature": [0.0, 1.0]}), max_parallel=2
    )
    starts = [of_type(events, ConversationStartEvent)[0] for events in ran.all.values()]
    assert sorted((start.arm, start.repetition) for start in starts) == [
        ("a.temperature=0", 1),
        ("a.temperature=0", 2),
        ("a.temperature=1", 1),
        ("a.temperature=1", 2),
    ]
    for start in starts:
        assert start.spec["variables"] == {"a.temperature": start.agents[0].settings.temperature}
    (begun,) = of_type(ran.own, ExperimentStartEvent)
    assert (begun.conversations, begun.todo, begun.max_parallel) == (4, 4, 2)
    assert begun.estimate is not None
    assert begun.estimate["calls"] == 4 * 3 * 2
    (end,) = of_type(ran.own, ExperimentCompleteEvent)
    assert end.conversations == {"completed": 4}


# Control


async def test_stop_and_go_on(tmp_path: Path) -> None:
    """A stop ends every conversation under way after its message and begins no other; going on completes all."""
    spec = experiment(QUICK, QUICK, repetitions=6, max_turns=4)
    whole = await run(tmp_path / "whole", spec)

    runners: list[Runner] = []

    def stop_at_third(conductor: Conductor) -> None:
        def look(event: Event) -> None:
            assert isinstance(event, MessageCompleteEvent)
            if event.message_index == 3 and event.conversation_id and event.conversation_id.endswith("-2"):
                runners[0].stop()

        conductor.bus.subscribe(look, MessageCompleteEvent)

    ran = await run(tmp_path / "cut", spec, max_parallel=2, watch=runners.append, on_conversation=stop_at_third)
    assert ran.manifest.status is Status.STOPPED
    assert len(ran.all) < 6, "nothing was begun after the stop"
    for events in ran.all.values():
        assert not of_type(events, MessageAbandonedEvent)
        check_record(events)
    again = await run(ran, max_parallel=3)
    assert again.manifest.status is Status.COMPLETED
    assert stories(again) == stories(whole)


async def test_stop_now_drops_what_is_under_way(tmp_path: Path) -> None:
    """Stopped at once, every message under way is recorded as abandoned with its text so far."""
    runners: list[Runner] = []
    arrived = []

    def live(_: str, delta: Delta | None) -> None:
        if isinstance(delta, TextDelta):
            arrived.append(delta)
            if len(arrived) == 3:
                runners[0].stop(now=True)

    ran = await run(
        tmp_path,
        experiment("local:x", "local:x", repetitions=3),
        pool=ScriptedPool(x=Scripted([TextDelta("so far"), asyncio.Event()])),
        max_parallel=3,
        live=live,
        watch=runners.append,
    )
    assert len(ran.all) == 3
    for events in ran.all.values():
        (abandoned,) = of_type(events, MessageAbandonedEvent)
        assert abandoned.partial == "so far"
        assert of_type(events, ConversationEndEvent)[-1].end_reason is EndReason.STOP_REQUEST


async def test_pause_holds_all_and_resume_goes_on(tmp_path: Path) -> None:
    """While it is paused nothing is asked or begun and the manifest says so; then all goes on as if never held."""
    spec = experiment(QUICK, QUICK, repetitions=4, max_turns=5)
    whole = await run(tmp_path / "whole", spec)
    runners: list[Runner] = []
    all_held = asyncio.Event()
    held: list[Event] = []

    def look(conductor: Conductor) -> None:
        def pause(event: Event) -> None:
            assert isinstance(event, MessageCompleteEvent)
            if event.message_index == 4 and not held:
                runners[0].pause("test")

        def hold(event: Event) -> None:
            held.append(event)
            if len(held) == len(runners[0].running):
                all_held.set()

        conductor.bus.subscribe(pause, MessageCompleteEvent)
        conductor.bus.subscribe(hold, ConversationPausedEvent)

    def asked() -> list[int]:
        logs = runners[0].folder.logs().values()
        return [len(of_type(read_record(log).events, MessageRequestEvent)) for log in logs]

    task = asyncio.create_task(run(tmp_path / "held", spec, max_parallel=2, watch=runners.append, on_conversation=look))
    await all_held.wait()
    before = asked()
    for _ in range(200):
        await asyncio.sleep(0)
    assert asked() == before
    assert len(before) == 2
    assert runners[0].manifest is not None
    assert runners[0].manifest.status is Status.PAUSED
    runners[0].resume()
    ran = await task
    assert stories(ran) == stories(whole)


async def test_delegates_of_the_runner(tmp_path: Path) -> None:
    """Delegates hear when the engine and each task begin and end, and of errors; controls hold it and end it."""
    heard: list[tuple[str, dict[str, Any]]] = []
    answers = iter([True, True, False, False, False, False])

    def watch(runner: Runner) -> None:
        manager = runner.get_delegate_manager()
        manager.register(lambda sender, kind, **payload: heard.append((kind, payload)))
        manager.register(lambda *_, **__: next(answers, False), controls=["engine_request_pause"])
        manager.register(lambda *_, **__: len(heard) > 8, controls=["engine_request_stop"])
        with pytest.raises(ValueError, match="no such type"):
            manager.register(print, events=["ai_loop_started"])

    arms = {"a.model": [QUICK, f"{QUICK}&fail=auth@1"]}
    ran = await run(tmp_path, experiment(QUICK, QUICK, repetitions=5, sweep=arms), watch=watch)
    kinds = [kind for kind, _ in heard]
    assert kinds[0] == "engine_started"
    assert kinds[-1] == "engine_stopped"
    assert set(kinds) <= ENGINE_NOTIFICATIONS.keys()
    assert {"task_execution_started", "task_execution_completed", "engine_error_occurred"} <= set(kinds)
    assert set(ENGINE_CONTROLS) == {"engine_request_pause", "engine_request_stop"}
    assert ran.manifest.status is Status.STOPPED
    assert kinds.count("task_execution_started") == kinds.count("task_execution_completed") < 10
    completed = [payload for kind, payload in heard if kind == "task_execution_completed"]
    assert {payload["status"] for payload in completed} == {"completed", "failed"}


# Budgets


async def test_the_budget_holds_at_every_event(tmp_path: Path, prices: None) -> None:
    """With 64 at a time, spent plus in flight never exceeds the cap in USD, and the record's sum is what was spent."""
    cap = 0.05
    spec = experiment(
        PRICED,
        PRICED,
        agents={"a": {"max_tokens": 40}, "b": {"max_tokens": 40}},
        repetitions=64,
        max_turns=20,
        max_parallel=64,
        budget={"usd": cap},
    )
    runners: list[Runner] = []
    looked = 0

    def watch(conductor: Conductor) -> None:
        def look(_: Event) -> None:
            nonlocal looked
            looked += 1
            budget = runners[0].budget
            assert budget.usd + budget.held_usd <= cap + 1e-9

        conductor.bus.subscribe(look, essential=True)

    ran = await run(tmp_path, spec, watch=runners.append, on_conversation=watch)
    assert looked > 300
    assert ran.manifest.status is Status.STOPPED
    spent = sum(event.cost or 0.0 for events in ran.all.values() for event in of_type(events, TokenUsageEvent))
    assert spent == pytest.approx(ran.runner.budget.usd)
    assert 0.5 * cap < spent <= cap, "most of it was used, and not more"
    for events in ran.all.values():
        check_record(events)
        assert not of_type(events, MessageAbandonedEvent)
    ended = [of_type(events, ConversationEndEvent)[-1] for events in ran.all.values()]
    assert {end.end_reason for end in ended} <= {EndReason.BUDGET, EndReason.TURN_LIMIT}


async def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    """Stopped by its cap in tokens and given more, the experiment says what one without a cap says."""
    limits = {"a": {"max_tokens": 20}, "b": {"max_tokens": 20}}
    free = experiment(QUICK, QUICK, agents=limits, repetitions=3, max_turns=6)
    whole = await run(tmp_path / "free", free)
    used = whole.manifest.totals.tokens
    assert used is not None
    capped = experiment(QUICK, QUICK, agents=limits, repetitions=3, max_turns=6, budget={"tokens": used // 2})
    ran = await run(tmp_path / "capped", capped, max_parallel=2)
    assert ran.manifest.status is Status.STOPPED
    assert ran.manifest.totals.tokens is not None
    assert ran.manifest.totals.tokens <= used // 2
    assert ran.runner.budget.exhausted
    spec = load(ran.folder.spec)
    assert spec.budget is not None
    save_spec(ran.folder, spec.model_copy(update={"budget": spec.budget.model_copy(update={"tokens": 10 * used})}))
    again = await run(ran, max_parallel=2)
    assert again.manifest.status is Status.COMPLETED
    assert stories(again) == stories(whole)


async def test_a_conversation_has_a_cap_of_its_own(tmp_path: Path) -> None:
    """A conversation that has used what one may use ends alone; the others are run all the same."""
    limits = {"a": {"max_tokens": 20}, "b": {"max_tokens": 20}}
    arms = {"max_turns": [1, 40]}
    spec = experiment(QUICK, QUICK, agents=limits, sweep=arms, budget={"per_conversation": {"tokens": 900}})
    ran = await run(tmp_path, spec)
    ends = {
        of_type(events, ConversationStartEvent)[0].arm: of_type(events, ConversationEndEvent)[-1].end_reason
        for events in ran.all.values()
    }
    assert ends == {"max_turns=1": EndReason.TURN_LIMIT, "max_turns=40": EndReason.BUDGET}
    for entry in ran.manifest.conversations.values():
        assert entry.tokens is not None
        assert entry.tokens <= 900


async def test_wall_time_is_a_budget(tmp_path: Path) -> None:
    """When its time is over the experiment ends cleanly after the messages under way."""
    slow = "local:test?words=3&latency_ms=30"
    ran = await run(tmp_path / "all", experiment(slow, slow, max_turns=200, repetitions=2, budget={"wall_time": 0.3}))
    assert ran.manifest.status is Status.STOPPED
    assert of_type(ran.events(1), ConversationEndEvent)[-1].end_reason is EndReason.BUDGET
    each = {"per_conversation": {"wall_time": 0.2}}
    ran = await run(
        tmp_path / "each", experiment(slow, slow, max_turns=200, repetitions=2, budget=each), max_parallel=2
    )
    assert [of_type(events, ConversationEndEvent)[-1].end_reason for events in ran.all.values()] == [
        EndReason.BUDGET
    ] * 2
    assert spent_so_far(ran.events(1)).seconds == pytest.approx(0.2, abs=0.15)


async def test_a_broken_attempt_counts_whole(tmp_path: Path, prices: None) -> None:
    """Nobody knows what an attempt that broke off used, so all that it could have used counts as spent."""
    spec = experiment(
        f"{PRICED}&fail=disconnect@1", PRICED, agents={"a": {"max_tokens": 50}, "b": {"max_tokens": 50}}, max_turns=1,
        budget={"tokens": 100_000},
    )  # fmt: skip
    ran = await run(tmp_path, spec)
    reported = sum((e.prompt_tokens or 0) + (e.completion_tokens or 0) for e in of_type(ran.events(1), TokenUsageEvent))
    assert ran.runner.budget.tokens >= reported + 50


async def test_caps_that_cannot_be_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap in USD with an unknown price, and any cap with a reply without an upper end, is a fault that names both."""
    for vendor in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{vendor}_API_KEY", "sk-none")
    pool = ProviderPool()
    spec = experiment("openai:no-such-model", "anthropic:claude-opus-4-5", budget={"usd": 5})
    faults = check_caps(*caps_of(spec), expand(spec).values(), pool)
    assert any("price of openai:no-such-model is not known" in fault for fault in faults)
    spec = experiment("local:test", "local:test", budget={"tokens": 5000}, agents={"b": {"max_tokens": 5}})
    (fault,) = check_caps(*caps_of(spec), expand(spec).values(), pool)
    assert "agent a" in fault
    assert "max_tokens" in fault
    small = {i: {"max_tokens": 500} for i in "ab"}
    spec = experiment("local:test", "local:test", agents=small, budget={"tokens": 400})
    faults = check_caps(*caps_of(spec), expand(spec).values(), pool)
    assert ["500 tokens" in fault and "smaller max_tokens" in fault for fault in faults] == [True, True]
    spec = experiment("local:test", "local:test", budget={"usd": 1, "wall_time": 9})
    assert check_caps(*caps_of(spec), expand(spec).values(), pool) == [], "what costs nothing needs no bound"
    await pool.aclose()


@settings(deadline=None, max_examples=200)
@given(
    cap=st.integers(10, 400),
    sizes=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=60),
    workers=st.integers(1, 16),
)
def test_reservations_never_exceed_the_cap(cap: int, sizes: list[tuple[int, float]], workers: int) -> None:
    """Whatever is reserved and used in whatever order, spent and held together stay within; nobody waits forever."""

    async def scenario() -> None:
        budget = Budget(Caps(tokens=cap), Caps(), Spent())
        queue = list(sizes)

        async def until(ready: "asyncio.Future[None]") -> None:
            await asyncio.wait([ready])

        async def work() -> None:
            while queue:
                most, share = queue.pop()
                try:
                    await budget.reserve(Amount(most, 0.0), until)
                except Stop:
                    return
                assert budget.tokens + budget.held_tokens <= cap
                await asyncio.sleep(0)
                budget.settle(Amount(most, 0.0), Amount(int(most * share), 0.0))
                assert budget.tokens + budget.held_tokens <= cap

        async with asyncio.timeout(5):
            await asyncio.gather(*(work() for _ in range(workers)))
        assert budget.held_tokens == 0

    asyncio.run(scenario())


# Branches beside their origin


async def test_twins_share_the_prefix_and_go_their_own_way(tmp_path: Path) -> None:
    """A twin takes over all turns before the first intervention and is then left alone; both are legal records."""
    spec = experiment(
        QUICK,
        QUICK,
        max_turns=4,
        repetitions=2,
        interventions=[{"turn": 3, "inject": "Talk about boats.", "to": "a"}],
        twins=True,
    )
    ran = await run(tmp_path, spec, max_parallel=4)
    assert ran.manifest.status is Status.COMPLETED
    assert len(ran.all) == 4
    alone = await run(tmp_path / "alone", experiment(QUICK, QUICK, max_turns=4, repetitions=2))
    for number in (1, 3):
        parent, twin = ran.events(number), ran.events(number + 1)
        origin = of_type(twin, ConversationStartEvent)[0].branch_of
        assert origin is not None
        assert origin["conversation_id"] == f"{ran.folder.experiment_id}-{number}"
        assert [event.message_index for event in messages(twin)] == [4, 5, 6, 7]
        untouched = messages(alone.events((number + 1) // 2))
        assert [m.message.content for m in messages(parent)[:4]] == [m.message.content for m in untouched[:4]]
        assert [m.message.content for m in messages(twin)] == [m.message.content for m in untouched[4:]]
        assert [m.message.content for m in messages(parent)[4:]] != [m.message.content for m in messages(twin)]


async def test_a_twin_whose_origin_ended_early_is_named(tmp_path: Path) -> None:
    """Where the conversation never gets as far as the fork, its twin is not run, and that is said."""
    spec = experiment(
        f"{QUICK}&fail=auth@1",
        QUICK,
        max_turns=4,
        interventions=[{"turn": 3, "inject": "Talk about boats.", "to": "a"}],
        twins=True,
    )
    ran = await run(tmp_path, spec)
    assert list(ran.runner.refused) == [f"{ran.folder.experiment_id}-2"]
    assert not ran.folder.log(f"{ran.folder.experiment_id}-2").exists()


def test_usage_is_counted_from_the_record() -> None:
    """What a record says was used is the sum of its usage events."""
    used = TokenUsageEvent(agent_id="a", provider="p", model="m", prompt_tokens=3, completion_tokens=4, cost=0.5)
    assert spent_so_far([used] * 3) == Spent(1.5, 21, 0.0)
