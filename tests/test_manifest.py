"""What is derived from the logs (run state, manifest), and where things lie (experiment folders, output root)."""

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import TEXT, events

from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.core.events import (
    EVENT_TYPES,
    AgentNamedEvent,
    APIErrorEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    MessageCompleteEvent,
    TokenUsageEvent,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import Agent, EndReason, FinishReason, Message, Role, Status
from pidgin_cli.eventlog.bus import EventBus
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, new_id, slug
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import (
    ConversationEntry,
    Manifest,
    ManifestTotals,
    ManifestWriter,
    read_manifest,
    rebuild,
)
from pidgin_cli.eventlog.state import RunState, advance, run_state
from pidgin_cli.experiments.registry import current_manifest

ID = "abcd1234"
TODAY = date(2026, 3, 4)


class QuickLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        real = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            ready = real(0 if timeout is not None else None)
            if not ready and timeout:
                self._now += timeout
            return ready

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def quickly(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        runner.run(story)


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    return OutputRoot(tmp_path / "out")


@pytest.fixture
def folder(root: OutputRoot) -> ExperimentFolder:
    return root.create(ID, "My Study", TODAY, {})


class Conversation:
    """A log with its bus, as a runner would have it."""

    def __init__(self, folder: ExperimentFolder, number: int | None, writer: ManifestWriter | None = None) -> None:
        self.id = None if number is None else f"{ID}-{number}"
        path = folder.events if self.id is None else folder.log(self.id)
        self.log, record = EventLog.resume(
            path, experiment_id=ID, conversation_id=self.id, syncer=Syncer(), durability="none"
        )
        self.state = run_state(record.events)
        self.bus = EventBus()
        self.bus.subscribe(self.log.append, essential=True)
        self.bus.subscribe(self._advance)
        if writer is not None and self.id is not None:
            writer.seed(self.id, self.state)
            self.bus.subscribe(writer.take)

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)

    def publish(self, *events: Event) -> "Conversation":
        for event in events:
            self.bus.publish(event)
        return self

    def close(self) -> None:
        self.log.flush()
        self.log._abandon()


def start(arm: str = "x", repetition: int = 1) -> ConversationStartEvent:
    return ConversationStartEvent(
        schema_version=1,
        pidgin_version="0",
        spec={},
        spec_hash="h",
        agents=(Agent("a", "local:test", "A"),),
        opening="",
        prompt_tag="",
        seed=1,
        arm=arm,
        repetition=repetition,
    )


def said(index: int = 0) -> MessageCompleteEvent:
    return MessageCompleteEvent(
        agent_id="a",
        turn_number=1,
        message_index=index,
        message=Message(Role.ASSISTANT, "words", id="m"),
        finish_reason=FinishReason.STOP,
        model_requested="local:test",
    )


def used(tokens: int, cost: float | None) -> TokenUsageEvent:
    return TokenUsageEvent(agent_id="a", provider="local", model="test", total_tokens=tokens, total_cost=cost)


def ended(status: Status, reason: EndReason, error: str | None = None) -> ConversationEndEvent:
    return ConversationEndEvent(status=status, end_reason=reason, totals=Totals(turns=1, messages=2), error=error)


def began(conversations: int, **changes: Any) -> ExperimentStartEvent:
    values: dict[str, Any] = {
        "name": "My Study",
        "spec_hash": "h",
        "pid": 4,
        "host": "here",
        "versions": {"pidgin": "0"},
    }
    return ExperimentStartEvent(conversations=conversations, **(values | changes))


PAUSED = ConversationPausedEvent(by="person", turn_number=1, message_index=1)
RESUMED = ConversationResumedEvent(by="person", turn_number=1, message_index=1)
REFUSED = APIErrorEvent(
    agent_id="a",
    turn_number=1,
    message_index=0,
    error="Overloaded",
    provider="openai",
    retryable=True,
    attempt=1,
    message="busy",
)

ANY_EVENT = st.sampled_from(EVENT_TYPES).flatmap(events)


# --- the run state


def test_a_state_is_a_fold_of_its_events() -> None:
    """Each event leaves its mark and nothing else: status, counts, tokens, cost, error, end."""
    story: list[tuple[Event, dict[str, Any]]] = [
        (start("warm", 3), {"status": Status.RUNNING, "arm": "warm", "repetition": 3}),
        (TurnStartEvent(turn_number=1, speakers=("a",)), {}),
        (REFUSED, {"error": "Overloaded: busy"}),
        (said(0), {"messages": 1}),
        (used(10, 0.5), {"tokens": 10, "cost_usd": 0.5}),
        (said(1), {"messages": 2}),
        (used(25, None), {"tokens": 25, "cost_usd": None}),
        (TurnCompleteEvent(turn_number=1, convergence=0.4), {"turns": 1, "convergence": 0.4}),
        (PAUSED, {"status": Status.PAUSED}),
        (RESUMED, {"status": Status.RUNNING, "error": None}),
        (
            ended(Status.FAILED, EndReason.PROVIDER_ERROR, "Overloaded: still busy"),
            {"status": Status.FAILED, "end_reason": EndReason.PROVIDER_ERROR, "error": "Overloaded: still busy"},
        ),
        (RESUMED, {"status": Status.RUNNING, "end_reason": None, "error": None}),
        (TurnCompleteEvent(turn_number=2), {"turns": 2, "convergence": None}),
        (
            ended(Status.COMPLETED, EndReason.TURN_LIMIT),
            {"status": Status.COMPLETED, "end_reason": EndReason.TURN_LIMIT},
        ),
        (ended(Status.STOPPED, EndReason.BUDGET), {"status": Status.STOPPED, "end_reason": EndReason.BUDGET}),
    ]
    expected = msgspec.structs.asdict(RunState())
    state = RunState()
    assert expected["status"] is Status.CREATED
    for seq, (event, changes) in enumerate(story):
        stamped = msgspec.structs.replace(event, seq=seq, timestamp=datetime(2026, 1, 1, 0, 0, seq, tzinfo=UTC))
        state = advance(state, stamped)
        expected |= {"last_seq": seq, "updated_at": stamped.timestamp, **changes}
        assert msgspec.structs.asdict(state) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ANY_EVENT, max_size=12), st.integers(0, 12))
def test_the_fold_is_pure_and_can_be_taken_up_anywhere(stream: list[Event], cut: int) -> None:
    """`advance` changes neither state nor event, and folding in two parts gives what folding at once gives."""
    state = RunState()
    for event in stream:
        before, event_before = copy.deepcopy(state), copy.deepcopy(event)
        after = advance(state, event)
        assert (state, event) == (before, event_before)
        assert advance(state, event) == after
        assert (after.last_seq, after.updated_at) == (event.seq, event.timestamp)
        state = after
    assert run_state(stream) == state
    assert run_state(stream[cut:], run_state(stream[:cut])) == state


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ANY_EVENT, max_size=12))
def test_the_live_state_is_the_recorded_one(folder: ExperimentFolder, stream: list[Event]) -> None:
    """A state that listens on the bus equals the one that is folded from the file afterwards."""
    folder.log(f"{ID}-1").unlink(missing_ok=True)
    conversation = Conversation(folder, 1).publish(*stream)
    conversation.close()
    assert run_state(read_record(folder.log(f"{ID}-1")).events) == conversation.state


# --- the manifest as a projection


def test_the_manifest_has_the_documented_fields(folder: ExperimentFolder) -> None:
    """`manifest.json` holds every field of the contract by its name, absent values as null."""
    Conversation(folder, 1).publish(start(), said()).close()
    written = json.loads(rebuild(folder).encode())
    assert set(written) == {
        *("experiment_id", "name", "status", "created_at", "started_at", "completed_at", "pid", "host", "versions"),
        *("spec_hash", "totals", "conversations", "post_processing"),
    }
    assert set(written["totals"]) == {
        *("conversations", "completed", "failed", "running", "messages", "turns", "tokens", "cost_usd"),
    }
    assert set(written["conversations"][f"{ID}-1"]) == {
        *("status", "arm", "repetition", "turns", "messages", "tokens", "cost_usd", "last_seq", "end_reason"),
        *("convergence", "log", "updated_at"),
    }
    assert written["conversations"][f"{ID}-1"]["log"] == f"conv_{ID}-1_events.jsonl"


def entry(**changes: Any) -> ConversationEntry:
    return ConversationEntry.of(msgspec.structs.replace(RunState(), **changes), "log")


def test_totals_are_the_sum_of_the_conversations() -> None:
    """Counts by status, messages, turns, tokens and cost add up; paused counts as running."""
    manifest = Manifest(experiment_id=ID, created_at=datetime.now(UTC))
    manifest.conversations = {
        "1": entry(status=Status.COMPLETED, messages=4, turns=2, tokens=10, cost_usd=0.25),
        "2": entry(status=Status.FAILED, messages=1, turns=0, tokens=5, cost_usd=0.5),
        "3": entry(status=Status.RUNNING, messages=2, turns=1, tokens=1, cost_usd=0.0),
        "4": entry(status=Status.PAUSED),
        "5": entry(status=Status.STOPPED),
        "6": entry(),
    }
    manifest.add_up()
    assert manifest.totals == ManifestTotals(6, 1, 1, 2, 7, 3, 16, 0.75)


def test_a_cost_that_is_not_known_is_null_and_one_that_is_counts() -> None:
    """One unknown price makes the sum unknown; money spent before the first message is money spent."""
    manifest = Manifest(experiment_id=ID, created_at=datetime.now(UTC))

    def cost(*entries: ConversationEntry) -> float | None:
        manifest.conversations = {str(place): entry for place, entry in enumerate(entries)}
        manifest.add_up()
        return manifest.totals.cost_usd

    assert cost() == 0.0
    assert cost(entry()) == 0.0
    assert cost(entry(messages=1, cost_usd=0.5), entry(messages=1)) is None
    assert cost(entry(messages=1, cost_usd=0.5), entry()) == 0.5
    assert cost(entry(messages=1, cost_usd=0.5), entry(tokens=9, cost_usd=0.25)) == 0.75  # chose names, then failed
    assert cost(entry(messages=1, cost_usd=0.5), entry(tokens=9)) is None


def test_a_rebuilt_manifest_equals_the_written_one(folder: ExperimentFolder) -> None:
    """The logs of an experiment give the very manifest that was kept while it ran, to the last field."""

    async def story() -> None:
        manifest = Manifest(experiment_id=ID, created_at=datetime.now(UTC))
        fresh = [f"{ID}-{number}" for number in range(1, 5)]
        manifest.conversations = {name: ConversationEntry.of(RunState(), folder.log(name).name) for name in fresh}
        writer = ManifestWriter(folder.manifest, manifest, pytest.fail)
        whole = Conversation(folder, None)
        first = began(4)
        whole.publish(first)
        manifest.name, manifest.spec_hash, manifest.versions = first.name, first.spec_hash, first.versions
        manifest.created_at = manifest.started_at = first.timestamp
        manifest.pid, manifest.host, manifest.status = first.pid, first.host, Status.RUNNING
        one = Conversation(folder, 1, writer).publish(start("x", 1), said(), used(3, 0.5), PAUSED)
        two = Conversation(folder, 2, writer).publish(start("y", 1), REFUSED, said(), used(3, 0.25))
        writer.write()
        for conversation in (one, two, whole):
            conversation.log.flush()
        assert rebuild(folder) == manifest
        assert read_manifest(folder) == manifest
        assert manifest.totals.running == 2

        one.publish(RESUMED, TurnCompleteEvent(turn_number=1), ended(Status.COMPLETED, EndReason.TURN_LIMIT)).close()
        two.publish(ended(Status.FAILED, EndReason.PROVIDER_ERROR, "Overloaded: busy")).close()
        Conversation(folder, 3, writer).publish(start("x", 2), said(), ended(Status.STOPPED, EndReason.BUDGET)).close()
        last = ExperimentCompleteEvent(status=Status.FAILED, conversations={"completed": 1, "failed": 1})
        whole.publish(last).close()
        manifest.status, manifest.completed_at = last.status, last.timestamp
        writer.close()
        assert read_manifest(folder) == rebuild(folder) == manifest
        assert manifest.totals.cost_usd is None

    quickly(story())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(1, 3), ANY_EVENT), max_size=15))
def test_any_stream_of_events_is_projected_alike(
    tmp_path_factory: pytest.TempPathFactory, stream: list[tuple[int, Event]]
) -> None:
    """Whatever conversations report, in any mixture: what was kept while it happened is what the logs give."""
    folder = OutputRoot(tmp_path_factory.mktemp("out")).create(ID, None, TODAY, {})

    async def story() -> None:
        writer = ManifestWriter(folder.manifest, Manifest(experiment_id=ID, created_at=datetime.now(UTC)), pytest.fail)
        conversations = {number: Conversation(folder, number, writer) for number in (1, 2, 3)}
        for number, event in stream:
            conversations[number].publish(event)
        for conversation in conversations.values():
            conversation.close()
        writer.close()
        rebuilt = rebuild(folder)
        assert read_manifest(folder).conversations == rebuilt.conversations == writer.manifest.conversations
        assert read_manifest(folder).totals == rebuilt.totals

    quickly(story())


def test_events_of_the_experiment_belong_to_no_conversation(folder: ExperimentFolder) -> None:
    """An event without a conversation leaves the entries alone and causes no write."""

    async def story() -> None:
        writer = ManifestWriter(folder.manifest, Manifest(experiment_id=ID, created_at=datetime.now(UTC)), pytest.fail)
        writer.take(began(1))
        await asyncio.sleep(10)
        assert (writer.writes, writer.manifest.conversations) == (0, {})

    quickly(story())


def test_rebuilding_from_what_is_left(folder: ExperimentFolder) -> None:
    """Torn, broken and unknown lines, `.torn` files and a second run do not keep the logs from telling the story."""
    Conversation(folder, None).publish(
        began(12, pid=1), ExperimentCompleteEvent(status=Status.STOPPED, conversations={}), began(12, pid=2)
    ).close()
    for number in (2, 10):
        Conversation(folder, number).publish(start("x", number), said(), used(7, 0.5)).close()
        with folder.log(f"{ID}-{number}").open("ab") as file:
            file.write(b'{"event_type":"TelepathyEvent"}\nrubbish\n{"event_type":"TurnSt')
    folder.log(f"{ID}-10").with_suffix(".jsonl.torn").write_bytes(b"x\n")
    manifest = rebuild(folder)
    assert list(manifest.conversations) == [f"{ID}-{number}" for number in range(1, 13)]
    assert {name for name, e in manifest.conversations.items() if e.messages} == {f"{ID}-2", f"{ID}-10"}
    assert manifest.conversations[f"{ID}-10"].repetition == 10
    assert manifest.conversations[f"{ID}-1"].status is Status.CREATED
    assert manifest.totals == ManifestTotals(12, 0, 0, 2, 2, 0, 14, 1.0)
    assert (manifest.status, manifest.pid, manifest.completed_at) == (Status.RUNNING, 2, None)
    assert manifest.started_at == read_record(folder.events).events[0].timestamp
    assert not folder.manifest.exists()
    assert rebuild(folder, write=True) == manifest
    assert msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest) == manifest


def test_an_experiment_without_any_log_has_a_manifest(folder: ExperimentFolder) -> None:
    """A folder in which nothing has begun is rebuilt as created, named by its folder."""
    manifest = rebuild(folder)
    assert (manifest.experiment_id, manifest.name, manifest.status) == (ID, "my-study", Status.CREATED)
    assert (manifest.conversations, manifest.totals) == ({}, ManifestTotals())


def test_a_damaged_or_missing_manifest_is_read_from_the_logs(folder: ExperimentFolder) -> None:
    """Missing, empty, cut at any place, or something else altogether: readers get what the logs say."""
    Conversation(folder, None).publish(began(1)).close()
    Conversation(folder, 1).publish(start(), said(), used(3, 0.1)).close()
    truth = rebuild(folder)
    whole = truth.encode()
    assert read_manifest(folder) == truth
    damaged = [b"", b"null", b"[]", b"{}", b"\xff\xfe\x00", b'{"experiment_id": 7}', whole + b"}", b"[" * 100_000]
    for content in [*damaged, *(whole[:cut] for cut in range(0, len(whole), 13))]:
        folder.manifest.write_bytes(content)
        assert read_manifest(folder) == truth
    folder.manifest.write_bytes(whole.replace(b'"words"', b'"WORDS"').replace(b'"name"', b'"later": [1], "name"'))
    assert read_manifest(folder) == truth  # unknown fields of a later version are ignored
    folder.manifest.unlink()
    folder.manifest.mkdir()
    assert read_manifest(folder) == truth


# --- the manifest on disk


def a_writer(folder: ExperimentFolder, report: Callable[[LogError], None] = pytest.fail) -> ManifestWriter:
    return ManifestWriter(folder.manifest, Manifest(experiment_id=ID, created_at=datetime.now(UTC)), report)


def message(seq: int, conversation: str = f"{ID}-1") -> Event:
    return msgspec.structs.replace(said(), seq=seq, conversation_id=conversation)


def most_in_a_second(times: list[float]) -> int:
    """The largest number of these moments in any second."""
    return max((sum(begin <= other < begin + 0.999 for other in times) for begin in times), default=0)


@pytest.mark.parametrize("gap_s", [0.0, 0.001, 0.3, 0.7])
def test_many_updates_make_few_writes(folder: ExperimentFolder, gap_s: float) -> None:
    """However fast events come, at most two writes fall into any second, and the last state is written soon."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        writer = a_writer(folder)
        times: list[float] = []

        def watch() -> None:
            if writer.writes > len(times):
                times.append(writer._last_write)

        updates = 10_000 if gap_s < 0.1 else 100
        for seq in range(updates):
            writer.take(message(seq))
            await asyncio.sleep(gap_s)
            watch()
        last = loop.time()
        while (left := read_manifest(folder).conversations.get(f"{ID}-1")) is None or left.last_seq < updates - 1:
            await asyncio.sleep(0.01)
            watch()
            assert loop.time() <= last + 0.6
        assert writer.writes == len(times)
        assert most_in_a_second(times) <= 2
        assert len(times) >= min(
            updates, loop.time() / ManifestWriter.INTERVAL_S - 2, loop.time() / gap_s / 2 if gap_s else 1
        )
        await asyncio.sleep(10)
        assert writer.writes == len(times)  # nothing new, nothing written

    quickly(story())


def test_a_write_at_once_counts_too(folder: ExperimentFolder) -> None:
    """After a write that somebody asked for, the next one by itself keeps its distance."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        writer = a_writer(folder)
        times: list[float] = []
        for seq in range(100):
            writer.take(message(seq))
            if seq == 53:
                writer.write()
                asked = loop.time()
                assert asked == writer._last_write
            if writer.writes > len(times):
                times.append(writer._last_write)
            await asyncio.sleep(0.05)
        assert writer.writes == len(times) >= 9
        assert most_in_a_second(times) <= 3  # the one that was asked for is the third
        assert min(time for time in times if time > asked) - asked >= 0.499

    quickly(story())


def test_a_full_disk_does_not_end_a_run(folder: ExperimentFolder) -> None:
    """A write that fails is reported, keeps the rhythm and leaves nothing lying about; the next good one has it all."""

    async def story() -> None:
        errors: list[LogError] = []
        writer = a_writer(folder, errors.append)
        writer.take(message(0))
        await asyncio.sleep(1)
        before = folder.manifest.read_bytes()
        folder.manifest.rename(folder.path / "aside")
        (folder.manifest / "in the way").mkdir(parents=True)
        for seq in range(1, 1001):
            writer.take(message(seq))
            await asyncio.sleep(0.002)
        assert writer.writes == 1
        assert 2 <= len(errors) <= 5
        for error in errors:
            assert re.fullmatch(r".*manifest\.json cannot be written: [\w ]+", str(error))
        assert {path.name for path in folder.path.iterdir()} == {"manifest.json", "aside"}
        with pytest.raises(LogError):
            writer.close()
        (folder.manifest / "in the way").rmdir()
        folder.manifest.rmdir()
        (folder.path / "aside").rename(folder.manifest)
        assert folder.manifest.read_bytes() == before
        writer.take(message(1001))
        await asyncio.sleep(1)
        assert read_manifest(folder).conversations[f"{ID}-1"].last_seq == 1001
        writer.close()

    quickly(story())


def test_closing_writes_and_leaves_no_timer(folder: ExperimentFolder) -> None:
    """`close` writes the last state at once, and nothing is written afterwards."""

    async def story() -> None:
        writer = a_writer(folder)
        for seq in range(3):
            writer.take(message(seq))
            await asyncio.sleep(0.1)
        writer.close()
        writes = writer.writes
        assert read_manifest(folder).conversations[f"{ID}-1"].last_seq == 2
        await asyncio.sleep(10)
        assert writer.writes == writes

    quickly(story())


def test_readers_never_see_half_a_manifest(folder: ExperimentFolder) -> None:
    """Another process that reads without pause while the file is replaced sees whole manifests only, never an older."""
    script = """
import json, os, sys
seen, last, news = 0, -1, 0
while True:
    with open(sys.argv[1], "rb") as file:
        manifest = json.load(file)
    entries = manifest["conversations"].values()
    assert manifest["totals"]["messages"] == sum(entry["messages"] for entry in entries)
    number = manifest["totals"]["tokens"]
    assert number >= last, "an older manifest came back"
    news += number > last
    last = number
    if news == 100:
        break
print("whole")
"""

    async def story() -> None:
        writer = a_writer(folder)
        writer.write()
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, folder.manifest), stdout=subprocess.PIPE
        )
        number = 0
        ending = asyncio.ensure_future(reader.communicate())
        while not ending.done():
            number += 1
            size = 37 * number % 100
            writer.manifest.conversations = {
                "clock": entry(tokens=number),
                **{f"{number}-{n}": entry(messages=number) for n in range(size)},
            }
            writer.write()
            await asyncio.sleep(0)
        assert (reader.returncode, (await ending)[0]) == (0, b"whole\n")
        assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]

    asyncio.run(story())


# --- folders


def test_ids_and_paths_are_as_documented(root: OutputRoot, folder: ExperimentFolder) -> None:
    """The folder, its files and the PID file have the names that people script against."""
    assert re.fullmatch("[a-z0-9]{8}", new_id())
    assert len({new_id() for _ in range(100)}) == 100
    assert folder.path == root.path / "experiments" / f"experiment_{ID}_my-study_20260304"
    assert (folder.experiment_id, folder.slug) == (ID, "my-study")
    assert folder.log(f"{ID}-3").name == f"conv_{ID}-3_events.jsonl"
    assert folder.manifest.name == "manifest.json"
    assert folder.spec.name == "spec.yaml"
    assert folder.events.name == "experiment_events.jsonl"
    assert root.pid_file(ID) == root.path / "experiments" / "active" / f"exp_{ID}.pid"
    assert root.run_logs == root.path / "experiments" / "logs"
    assert root.active.is_dir()
    assert root.run_logs.is_dir()


def test_the_root_is_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-o beats PIDGIN_OUTPUT, which beats ./pidgin_output; the root does not move with the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIDGIN_OUTPUT", raising=False)
    default = OutputRoot()
    assert default.path == tmp_path / "pidgin_output"
    monkeypatch.setenv("PIDGIN_OUTPUT", "")
    assert OutputRoot().path == tmp_path / "pidgin_output"
    monkeypatch.setenv("PIDGIN_OUTPUT", str(tmp_path / "env"))
    assert OutputRoot().path == tmp_path / "env"
    assert OutputRoot(tmp_path / "flag").path == tmp_path / "flag"
    assert not default.path.exists()
    assert list(default.folders()) == []


class Watched(Mapping[str, bytes]):
    """First files of an experiment; looks around before each of them is written."""

    def __init__(self, files: dict[str, bytes], look: Callable[[], None]) -> None:
        self._files = files
        self._look = look

    def __getitem__(self, name: str) -> bytes:
        return self._files[name]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        for name in self._files:
            self._look()
            yield name
        self._look()


def test_an_experiment_appears_whole(root: OutputRoot) -> None:
    """While it is being made nobody sees the folder; then it is there with all its files and nothing else."""
    looks: list[list[str]] = []
    files = Watched(
        {"spec.yaml": b"a: 1\n", "manifest.json": b"{}"},
        lambda: looks.append(
            [folder.path.name for folder in root.folders()] + [p.name for p in root.experiments.glob("exp*")]
        ),
    )
    made = root.create(ID, "n", TODAY, files)  # type: ignore[arg-type]
    assert looks == [[], [], []]
    assert {path.name: path.read_bytes() for path in made.path.iterdir()} == {
        "spec.yaml": b"a: 1\n",
        "manifest.json": b"{}",
    }
    assert {path.name for path in root.experiments.iterdir()} == {made.path.name, "active", "logs"}


def test_an_experiment_that_cannot_be_made_leaves_nothing(root: OutputRoot) -> None:
    """When a first file cannot be written: one clear line that says what to do, and no remains."""
    with pytest.raises(SpecError) as caught:
        root.create(ID, "n", TODAY, {"spec.yaml": b"", "no/such/folder": b""})
    assert "choose another with -o" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in root.experiments.iterdir()} == {"active", "logs"}
    root.create(ID, "n", TODAY, {})
    root.find(ID).spec.write_bytes(b"mine")
    with pytest.raises(SpecError, match="cannot be written"):  # an id is never used twice
        root.create(ID, "n", TODAY, {"spec.yaml": b"other"})
    assert root.find(ID).spec.read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["out", "out/experiments", "out/experiments/active", "out/experiments/logs", "."])
def test_a_file_in_place_of_a_folder(tmp_path: Path, where: str) -> None:
    """A file where a folder should be: one clear line that names the right path, exit 2, and the file is left alone."""
    blocked = tmp_path / "x" / where
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_bytes(b"mine")
    root = OutputRoot(tmp_path / "x" / "out")
    for attempt in (root.prepare, lambda: root.create(ID, None, TODAY, {})):
        with pytest.raises(SpecError) as caught:
            attempt()
        named = blocked if where != "." else root.path
        assert str(caught.value) == f"{named} is not a folder; choose another with -o"
        assert caught.value.exit_code == 2
    assert blocked.read_bytes() == b"mine"
    assert list(root.folders()) == []


def test_a_folder_that_takes_no_files() -> None:
    """Where the system refuses to make a folder, the message gives its reason."""
    readonly = Path("/proc")
    if not (readonly / "self").exists():
        pytest.skip("there is no folder that refuses everybody here")
    with pytest.raises(SpecError, match=r"cannot be written: .*; choose another with -o"):
        OutputRoot(readonly / "out").prepare()


def named(name: str | None) -> dict[str, bytes]:
    """The files of an experiment of this name."""
    return {"manifest.json": Manifest(experiment_id=ID, name=name, created_at=datetime.now(UTC)).encode()}


NAMES = [
    'it\'s "quoted"',
    "a/b\\c",
    "../../../etc/passwd",
    "..",
    ".",
    "",
    "   ",
    "x" * 300,
    "🦜🦜",
    "naïve Ångström ﬁle",
    "日本語",
    "a_b__c_20260101",
    "line\nbreak\x00nul",
    "-rf --output",
    "CON",
    "*?[a-z]",
    "$(reboot) `x` ;",
    "\ud83d lone",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_curious_names_become_slugs(root: OutputRoot, name: str) -> None:
    """Whatever a person calls it: the folder has a plain name inside the root, and is found by that name again."""
    made = root.create(ID, name, TODAY, named(name.encode("utf-8", "replace").decode()))
    assert made.path.parent == root.experiments
    assert re.fullmatch(rf"experiment_{ID}(_[a-z0-9-]{{1,60}})?_20260304", made.path.name)
    assert (made.experiment_id, made.slug) == (ID, slug(name))
    assert [path.name for path in root.path.parent.iterdir()] == [root.path.name]
    assert [f.path for f in root.folders()] == [made.path]
    assert root.find(ID).path == made.path
    if name.strip():
        assert root.find(name.encode("utf-8", "replace").decode()).path == made.path
    else:
        with pytest.raises(NotFound):
            root.find(name)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("中国 study", "aaaa0000"),
        ("日本", "aaaa0001"),
        ("日本x", "aaaa0002"),
        ("x" * 60 + "日", "aaaa0003"),
        ("x" * 60 + "本", "aaaa0004"),
        ("Cafe\u0301", "aaaa0005"),
        ("study", "aaaa0000"),
        ("STUDY", "aaaa0000"),
        ("日本 study", None),
        ("study!", None),
        ("x", "aaaa0002"),
        ("中国", None),
        ("x" * 60, None),
        ("x" * 61, None),
        ("cafe", "aaaa0005"),
    ],
    ids=ascii,
)
def test_a_name_is_found_as_it_was_given(root: OutputRoot, wanted: str, found: str | None) -> None:
    """The name itself goes first, in any alphabet; what is left of it in a folder's name counts only if typed so."""
    names = ["中国 study", "日本", "日本x", "x" * 60 + "日", "x" * 60 + "本", "Caf\u00e9", None]
    for number, name in enumerate(names):
        root.create(f"aaaa000{number}", name, TODAY, named(name))
    if found is None:
        with pytest.raises(NotFound):
            root.find(wanted)
    else:
        assert root.find(wanted).experiment_id == found


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"name": 1}', b"\xff"])
def test_a_name_survives_a_manifest_that_does_not(root: OutputRoot, content: bytes) -> None:
    """Where the manifest is damaged, the log of the experiment tells the name; without one the folder's own is left."""
    first = msgspec.json.encode({"event_type": "ExperimentStartEvent", "name": "日本 x"}) + b"\n{}\n"
    root.create(ID, "日本 x", TODAY, {"manifest.json": content, "experiment_events.jsonl": first})
    assert root.find("日本 x").name() == "日本 x"
    root.create("zzzz9999", "中国 y", TODAY, {"manifest.json": content, "experiment_events.jsonl": content})
    assert root.find("y").name() == "y"
    with pytest.raises(NotFound):
        root.find("中国 y")


@example("x" * 59 + " y")
@given(TEXT | st.text(st.sampled_from("aB1-_./ é"), max_size=200))
@settings(max_examples=200, deadline=None)
def test_slugs_are_plain_and_stable(name: str) -> None:
    """A slug has only a-z, 0-9 and single inner hyphens, at most 60, and is its own slug."""
    plain = slug(name)
    assert re.fullmatch("(?:[a-z0-9]+(?:-[a-z0-9]+)*)?", plain)
    assert len(plain) <= 60
    assert slug(plain) == plain


def test_a_folder_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    """Only folders with the documented name are experiments."""
    for name in ("notes", "experiment_short_20260101", "experiment_ABCD1234_20260101", f"experiment_{ID}_"):
        with pytest.raises(LogError, match="is not the folder of an experiment"):
            ExperimentFolder(tmp_path / name)


def test_logs_are_listed_in_order_of_their_number(folder: ExperimentFolder) -> None:
    """Conversation 10 comes after 9; torn ends, foreign files and the experiment's own log are no conversations."""
    for number in (10, 9, 1):
        folder.log(f"{ID}-{number}").touch()
    for other in ("experiment_events.jsonl", f"conv_{ID}-1_events.jsonl.torn", "conv_notes.txt"):
        (folder.path / other).touch()
    assert list(folder.logs()) == [f"{ID}-1", f"{ID}-9", f"{ID}-10"]
    assert folder.logs()[f"{ID}-9"] == folder.log(f"{ID}-9")


def test_odd_places_work(tmp_path: Path) -> None:
    """An apostrophe, blanks, brackets and stars in the path of the root disturb nothing."""
    root = OutputRoot(tmp_path / "it's [a] *test* née")
    folder = root.create(ID, "n", TODAY, {})
    Conversation(folder, 1).publish(start(), said()).close()
    assert list(root.find(ID).logs()) == [f"{ID}-1"]
    assert rebuild(folder).totals.messages == 1


# --- finding


@pytest.fixture
def three(root: OutputRoot) -> OutputRoot:
    """Three experiments, of which two share a name and two the beginning of their ids."""
    for experiment_id, name in (("abcd1111", "Twins"), ("abcd2222", "twins"), ("zzzz3333", "Solo run")):
        root.create(experiment_id, name, TODAY, {})
    return root


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("abcd1111", "abcd1111"),
        ("abcd2", "abcd2222"),
        ("z", "zzzz3333"),
        ("Solo run", "zzzz3333"),
        ("solo-run", "zzzz3333"),
        ("zzzz3333-7", "zzzz3333"),
        ("abcd1111-120", "abcd1111"),
    ],
)
def test_experiments_are_found(three: OutputRoot, wanted: str, found: str) -> None:
    """By id, unique beginning of an id, name, slug, or the id of one of its conversations."""
    assert three.find(wanted).experiment_id == found


def test_an_experiment_is_found_by_its_folder(three: OutputRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path works from anywhere, absolute or not, also for a folder outside the root."""
    path = three.find("zzzz3333").path
    assert three.find(str(path)).path == path
    monkeypatch.chdir(three.experiments)
    assert three.find(path.name).path == path
    assert three.find(f"./{path.name}/").path == path
    assert OutputRoot(three.path / "elsewhere").find(str(path)).path == path


@pytest.mark.parametrize("wanted", ["twins", "TWINS", "abcd"])
def test_an_ambiguous_name_lists_the_ids(three: OutputRoot, wanted: str) -> None:
    """Where several fit, none is taken, and all of them are named."""
    with pytest.raises(NotFound) as caught:
        three.find(wanted)
    text = str(caught.value)
    assert text.startswith(f"{wanted!r} is ambiguous")
    assert "abcd1111 (twins)" in text
    assert "abcd2222 (twins)" in text
    assert "zzzz3333" not in text
    assert text.endswith("use the id")


@pytest.mark.parametrize(
    "wanted",
    ["nothing", "", " ", "yyyy0000-1", "x" * 5000, "a/" * 3000, "..", "/", "nul\x00", "🦜", "*", "\udcff", "Z"],
)
def test_what_is_not_there_is_not_found(three: OutputRoot, wanted: str) -> None:
    """An unknown name, of whatever shape, is one clear line that lists the newest experiments."""
    with pytest.raises(NotFound) as caught:
        three.find(wanted)
    text = str(caught.value)
    assert "\n" not in text
    assert "; the newest are " in text
    assert all(name in text for name in ("abcd1111", "abcd2222", "zzzz3333 (solo-run)"))


def test_an_empty_root_says_so(tmp_path: Path) -> None:
    """Before the first experiment the message says that there is none."""
    with pytest.raises(NotFound, match=r"there is nothing in .*experiments yet"):
        OutputRoot(tmp_path).find("x")


def test_an_exact_id_beats_a_name(root: OutputRoot) -> None:
    """An experiment named like another's id does not hide that one; a name beats the beginning of an id."""
    root.create("abcd1111", None, TODAY, {})
    root.create("efgh2222", "abcd1111", TODAY, {})
    root.create("ijkl3333", "efgh", TODAY, {})
    assert root.find("abcd1111").experiment_id == "abcd1111"
    assert root.find("efgh").experiment_id == "ijkl3333"
    assert root.find("efgh2").experiment_id == "efgh2222"


def test_many_experiments_are_listed_newest_first(root: OutputRoot) -> None:
    """Listings begin with the newest; a message names five and says that there are more."""
    for number in range(8):
        path = root.create(f"aaaa000{number}", None, TODAY, {}).path
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    (root.experiments / "experiment_bbbb0000_20260304").write_bytes(b"a file, no folder")
    (root.experiments / ".experiment_cccc0000_20260304.making").mkdir()
    assert [f.experiment_id[-1] for f in root.folders()] == list("76543210")
    with pytest.raises(NotFound, match=r"the newest are aaaa0007, aaaa0006, aaaa0005, aaaa0004, aaaa0003, …$"):
        root.find("zz")


def test_a_folder_that_vanishes_while_listing_is_passed_over(three: OutputRoot) -> None:
    """Somebody else may delete an experiment at any moment; what is left is still listed."""
    listing = three.folders()
    first = next(listing)
    victim = next(folder for folder in three.folders() if folder.path != first.path)
    victim.path.rmdir()
    rest = [folder.path for folder in listing]
    assert len({first.path, *rest} - {victim.path}) == 2
    dangling = three.experiments / "experiment_dddd0000_20260304"
    dangling.symlink_to(three.path / "gone")
    assert {folder.experiment_id for folder in three.folders()} == {"abcd1111", "abcd2222", "zzzz3333"} - {
        victim.experiment_id
    }


def test_named_is_an_event_like_any_other(folder: ExperimentFolder) -> None:
    """Events without a mark of their own still move the place and the time of the state."""
    conversation = Conversation(folder, 1).publish(start(), AgentNamedEvent(agent_id="a", name="Ada", reply="Ada"))
    conversation.close()
    assert conversation.state.last_seq == 1
    assert conversation.state.updated_at == read_record(folder.log(f"{ID}-1")).events[1].timestamp


def test_a_dead_run_is_counted_by_its_logs(tmp_path: Path) -> None:
    """Where the runner died after a log was written and before the manifest was, lists show what the log says."""
    root = OutputRoot(tmp_path)
    folder = root.create("abcdefgh", None, date(2026, 1, 2), {"manifest.json": b"{}"})
    folder.manifest.write_bytes(
        Manifest(experiment_id="abcdefgh", status=Status.RUNNING, created_at=datetime.now(UTC)).encode()
    )
    before = folder.manifest.stat().st_mtime_ns
    syncer = Syncer()
    log = EventLog(
        folder.log("abcdefgh-1"),
        experiment_id="abcdefgh",
        conversation_id="abcdefgh-1",
        syncer=syncer,
        durability="none",
    )
    for turn in (1, 2, 3):
        log.append(TurnCompleteEvent(turn_number=turn))
    log.flush()
    os.utime(log.path, ns=(before + 1, before + 1))
    found = current_manifest(root, folder)
    assert (found.status, found.totals.turns) == (Status.INTERRUPTED, 3)
