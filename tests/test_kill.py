"""Exactly once, whatever happens: real processes, killed with SIGKILL at 100 seeded points and taken up again.

Every test holds conversations that it kills up to four times each, at points that go in turn through start-up, the
first requests, any byte of the record, back-offs and the end; sometimes the last lines are cut off as well, as a
computer that stops would leave them. What stands in the record at the end is compared with an uninterrupted run of
the same seed.
"""

import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
from forked_cli import Done, ForkedCli, KillWhen, logs_in, run_plain
from support import check_record

from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    ConversationEndEvent,
    ConversationResumedEvent,
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
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.eventlog.codec import Skipped, decode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import read_manifest, rebuild
from pidgin_cli.experiments.registry import living_runner

Cli = Callable[..., Done]

MODEL = "local:test?words=12&latency_ms=10&chunk_ms=1"
FIRST_TOKEN_S = 0.01
PAIR = ("-a", MODEL, "-b", f"{MODEL}&seed=2")
AWARENESS = """
name: nudges
base: basic
prompts:
  0: {both: Be kind to each other.}
  1: {agent_a: Only you should bring up rivers.}
  3: {both: "Three turns in."}
  4: {a: Ask a question., b: Answer with one sentence.}
  9: {b: Say goodbye soon.}
"""


class Scenario(NamedTuple):
    """A conversation to kill."""

    flags: tuple[str, ...]
    moments: tuple[str, ...]
    """What the record shows just before it is killed, beside the moments that every conversation has."""
    ends: str = "turn_limit"


EVERYWHERE = (
    "",
    "",
    "SystemPromptEvent",
    "MessageRequestEvent",
    "any",
    "any",
    "TurnCompleteEvent",
    "any",
    "ConversationEndEvent",
    "any",
)
"""Moments to kill at: after some milliseconds, just after an event, anywhere in the bytes of the record."""

SCENARIOS = {
    "two": Scenario((*PAIR, "-t", "10"), ()),
    "three": Scenario(
        (
            *PAIR,
            "--agent",
            f"c={MODEL}&name=Wren",
            "-t",
            "6",
            "--order",
            "random",
            "--first",
            "random",
            "--choose-names",
        ),
        ("AgentNamedEvent", "AgentNamedEvent"),
    ),
    "failures": Scenario(
        (
            *("-a", f"{MODEL}&fail=rate_limit@2x2,disconnect@4"),
            *("-b", f"{MODEL}&fail=rate_limit:0.3,disconnect@6"),
            *("-t", "8"),
        ),
        ("RateLimitEvent", "MessageAbandonedEvent", "RateLimitEvent", "APIErrorEvent"),
    ),
    "thinking": Scenario((*PAIR, "-t", "8", "--think"), ("ThinkingCompleteEvent",)),
    "awareness": Scenario((*PAIR, "-t", "9", "-w", "nudges.yaml"), ("InterventionEvent", "InterventionEvent")),
    "window": Scenario(
        (*PAIR, "-t", "10", "--max-tokens", "60", "--context-limit", "220", "--context", "window"),
        ("ContextTruncationEvent",),
    ),
    "summaries": Scenario(
        (*PAIR, "-t", "10", "--max-tokens", "60", "--context-limit", "220", "--context", "summarise"),
        ("HistoryCompactedEvent", "HistoryCompactedEvent"),
    ),
    "strict": Scenario(
        (*PAIR, "-t", "8", "--durability", "strict", "--stop-phrase", "The estate returns"),
        ("ConversationEndEvent",) * 3,
        ends="stop_phrase",
    ),
}

FORKED_KILLS = 12
PLAIN_KILLS = 2
PLAIN = ("two", "three")
assert len(SCENARIOS) * FORKED_KILLS + len(PLAIN) * PLAIN_KILLS == 100


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedCli]:
    with ForkedCli() as cli:
        yield cli


def chat_args(name: str, root: Path) -> list[str]:
    awareness = root.parent / "nudges.yaml"
    awareness.write_text(AWARENESS)
    flags = [str(awareness) if flag == "nudges.yaml" else flag for flag in SCENARIOS[name].flags]
    return ["chat", *flags, "--seed", "11", "--json", "-o", str(root)]


def the_folder(root: Path) -> ExperimentFolder | None:
    folders = list(OutputRoot(root).folders())
    assert len(folders) <= 1
    return folders[0] if folders else None


def the_log(root: Path) -> Path:
    (log,) = logs_in(root)
    return log


def events_in(log: Path) -> list[Event]:
    record = read_record(log)
    assert not record.skipped
    return record.events


def of_kind(events: Sequence[Event], *kinds: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kinds)]


# What an interruption may not change

OWN_TO_A_RUN = {"event_id", "seq", "timestamp", "experiment_id", "conversation_id", "timing", "request_id", "attempt"}
MEASURED_TIMES = {"latency_ms", "ttft_ms", "tokens_per_s"}
"""The metrics of a message that are taken with a clock; all others come from what was said."""


def plain(event: Event) -> dict[str, Any]:
    """An event without ids, times and attempts."""
    fields = {name: value for name, value in msgspec.to_builtins(event).items() if name not in OWN_TO_A_RUN}
    if "message" in fields:
        fields["message"].pop("id")
    if isinstance(event, TurnCompleteEvent):
        for values in fields["metrics"]["messages"].values():
            assert values.keys() >= MEASURED_TIMES
            for name in MEASURED_TIMES:
                del values[name]
    return fields


SUMS = {"totals", "total_tokens", "total_cost"}
"""What a question that had to be put once more is added to, rightly: `check_record` has added them up."""


def without_sums(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in SUMS}


def said(events: Sequence[Event], *, totals: bool = True) -> list[dict[str, Any]]:
    """The sequence that equals that of an uninterrupted run."""
    found = of_kind(events, MessageCompleteEvent, TurnCompleteEvent)
    fields = [plain(event) for event in (*found, *of_kind(events, ConversationEndEvent)[-1:])]
    return fields if totals else [without_sums(each) for each in fields]


def facts(events: Sequence[Event], *, totals: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Everything else that is there once, in its order: openings, names, injections, what was sent."""
    once = (ConversationStartEvent, SystemPromptEvent, AgentNamedEvent, TurnStartEvent, InterventionEvent)
    found = {kind.__name__: [plain(event) for event in of_kind(events, kind)] for kind in once}
    last_asked = {event.message_index: plain(event) for event in of_kind(events, MessageRequestEvent)}
    thoughts: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, MessageRequestEvent | MessageAbandonedEvent):
            thoughts.pop(event.message_index, None)
        elif isinstance(event, ThinkingCompleteEvent):
            thoughts.setdefault(event.message_index, []).append(event.content)
    usage = [plain(event) for event in of_kind(events, TokenUsageEvent) if event.purpose == "message"]
    if not totals:
        usage = [without_sums(each) for each in usage]
    return found | {"requests": list(last_asked.values()), "thoughts": [thoughts], "usage": usage}


def check_whole(events: list[Event]) -> None:
    """Nothing is twice and nothing is missing, by the record alone."""
    check_record(events)
    assert [event.seq for event in events] == list(range(len(events)))
    assert [type(event) for event in events].count(ConversationStartEvent) == 1
    assert isinstance(events[0], ConversationStartEvent)
    assert isinstance(events[-1], ConversationEndEvent)
    assert len(of_kind(events, ConversationEndEvent)) == 1
    messages = of_kind(events, MessageCompleteEvent)
    assert [event.message_index for event in messages] == list(range(len(messages)))
    for kind in (TurnStartEvent, TurnCompleteEvent):
        turns = [event.turn_number for event in of_kind(events, kind)]
        assert turns == list(range(1, len(turns) + 1))
    stored = 0
    counted = 0
    for event in events:
        match event:
            case MessageRequestEvent():
                assert event.message_index == stored, "a stored message was asked for again"
                assert counted == stored, "a message was never counted"
            case MessageCompleteEvent():
                stored += 1
            case TokenUsageEvent(purpose="message"):
                counted += 1
    assert counted == stored


def check_manifest(root: Path, events: list[Event]) -> None:
    """The manifest says what the logs say, and no runner is left."""
    folder = the_folder(root)
    assert folder is not None
    manifest = read_manifest(folder)
    assert json.loads(folder.manifest.read_bytes())["conversations"]
    assert manifest == rebuild(folder)
    (entry,) = manifest.conversations.values()
    assert entry.last_seq == events[-1].seq
    assert entry.messages == len(of_kind(events, MessageCompleteEvent))
    assert living_runner(OutputRoot(root), folder.experiment_id) is None


def status_in_list(cli: Cli, root: Path) -> str:
    listed = cli(["list", "--json", "-o", str(root)])
    assert listed.status == 0, listed.output
    (row,) = json.loads(listed.output)
    return row["status"]


# The killing


class Killer:
    """Chooses the points, does the killing, and looks at what is left."""

    def __init__(self, seed: str, scenario: Scenario, total_bytes: int, start_s: float) -> None:
        self._start_s = start_s
        self._draw = random.Random(seed)
        moments = [*EVERYWHERE, *scenario.moments]
        self._draw.shuffle(moments)
        self._moments = itertools.cycle(moments)
        self._moment = next(self._moments)
        self._total = total_bytes
        self.kills = 0
        self.stages: Counter[str] = Counter()
        self.torn: list[bytes] = []
        self.asked_again = False
        """A question was answered and paid for, and the kill took the answer: it is put and paid for once more."""

    def new_conversation(self) -> int:
        """How often to kill it at most."""
        self.torn = []
        self.asked_again = False
        return self._draw.randint(1, 4)

    def point(self, root: Path) -> KillWhen:
        draw = self._draw
        match self._moment:
            case "":
                return KillWhen(root, then_s=draw.uniform(0, self._start_s))
            case "any":
                there = sum(log.stat().st_size for log in logs_in(root))
                size = draw.randint(there, max(there, self._total))
                return KillWhen(root, grown_to=size, then_s=draw.uniform(0, 0.02))
            case "ConversationEndEvent":
                return KillWhen(root, shows="ConversationEndEvent", then_s=draw.uniform(0, 0.004))
            case "RateLimitEvent" | "APIErrorEvent" | "MessageAbandonedEvent" as kind:
                return KillWhen(root, shows=kind, then_s=draw.uniform(0, 0.05))
            case kind:
                return KillWhen(root, shows=kind, then_s=draw.uniform(0, 0.02))

    def killed(self, done: Done, root: Path, cli: Cli) -> None:
        """Take note of a kill: where it struck, and what `pidgin list` says about it."""
        self.kills += 1
        self._moment = next(self._moments)
        logs = logs_in(root)
        events = read_record(logs[0]).events if logs else []
        if logs:
            self._note_torn(logs[0])
        if events and _is_question_paid(events[-1]):
            self.asked_again = True
        stored = {event.seq for event in of_kind(events, MessageCompleteEvent)}
        shown = [line["seq"] for line in _shown(done) if line["event_type"] == "MessageCompleteEvent"]
        assert len(set(shown) - stored) <= 1, "more than the message under way is gone"
        self.stages[_stage(events, done.killed_at - logs[0].stat().st_mtime if logs else 0.0)] += 1
        if the_folder(root) is None:
            return
        status = status_in_list(cli, root)
        assert status == "interrupted" or (status == "completed" and of_kind(events, ConversationEndEvent))
        if status == "interrupted" and len(events) > 1 and self._draw.random() < 0.6:
            self._tear(logs[0])

    def _note_torn(self, log: Path) -> None:
        """A kill can cut a line by itself: the kernel leaves a write at the end of a page for it."""
        tail = log.read_bytes().rpartition(b"\n")[2]
        if tail and isinstance(decode(tail), Skipped):
            self.torn.append(tail)

    def _tear(self, log: Path) -> None:
        """Cut the record within its last lines, be it a newline alone, as a computer that stops would leave it."""
        data = log.read_bytes()
        if not data.endswith(b"\n"):
            return  # killed again before the last cut was mended
        lines = data.splitlines(keepends=True)
        kept = max(1, len(lines) - self._draw.randint(1, 7))
        line = lines[kept]
        size = self._draw.choice([0, self._draw.randint(1, len(line) - 1), len(line) - 1])
        last = decode(line if size == len(line) - 1 else lines[kept - 1])  # without its newline, a line still counts
        if _is_question_paid(last):
            self.asked_again = True
        log.write_bytes(b"".join(lines[:kept]) + line[:size])
        if 0 < size < len(line) - 1:
            self.torn.append(line[:size])

    def check_torn(self, log: Path, events: list[Event]) -> None:
        """What was torn lies beside the record, byte by byte, and the record tells how much it was.

        A resume may itself be killed: after it put the piece there, so that the next one does that again, or before
        the record tells of it.
        """
        beside = log.with_name(log.name + ".torn")
        pieces = beside.read_bytes().split(b"\n")[:-1] if beside.exists() else []
        assert [piece for piece, _ in itertools.groupby(pieces)] == [piece for piece, _ in itertools.groupby(self.torn)]
        told = [event.torn_bytes for event in of_kind(events, ConversationResumedEvent) if event.torn_bytes]
        sizes = iter([len(piece) for piece in self.torn])
        assert all(size in sizes for size in told)


def _shown(done: Done) -> list[dict[str, Any]]:
    """The events that a process printed before it was killed."""
    lines = [line for line in done.output.split("\n")[:-1] if line.startswith("{")]
    return [json.loads(line) for line in lines]


def _is_question_paid(event: Event | Skipped) -> bool:
    return isinstance(event, TokenUsageEvent) and event.purpose != "message"


def _stage(events: Sequence[Event], since_s: float) -> str:
    """Where in its life a process was killed, by its last event and the time since then."""
    match events[-1] if events else None:
        case None:
            return "start-up"
        case MessageRequestEvent():
            return "waiting for the first token" if since_s < FIRST_TOKEN_S else "streaming"
        case RateLimitEvent() | APIErrorEvent() | MessageAbandonedEvent():
            return "back-off"
        case ConversationEndEvent():
            return "end"
        case SystemPromptEvent() | AgentNamedEvent() | ConversationResumedEvent():
            return "before the first request"
    return "between requests"


def uninterrupted(name: str, root: Path, cli: Cli) -> list[Event]:
    done = cli(chat_args(name, root))
    assert done.status == 0, done.output
    events = events_in(the_log(root))
    check_whole(events)
    check_manifest(root, events)
    assert of_kind(events, ConversationEndEvent)[-1].end_reason == SCENARIOS[name].ends
    assert not list(OutputRoot(root).active.iterdir())
    return events


def kill_and_resume(name: str, wanted: int, folder: Path, cli: Cli, start_s: float) -> Killer:
    """Hold conversations and kill them `wanted` times in all; every one of them ends as if nothing had been."""
    scenario = SCENARIOS[name]
    reference = uninterrupted(name, folder / "whole", cli)
    for moment in set(scenario.moments):
        assert any(type(event).__name__ == moment for event in reference), f"the scenario has no {moment}"
    killer = Killer(f"{name} {wanted}", scenario, the_log(folder / "whole").stat().st_size, start_s)
    for number in itertools.count():
        root = folder / str(number)
        left = killer.new_conversation()
        resumes = 0
        while True:
            going_on = the_folder(root)
            resumes += going_on is not None
            argv = (
                chat_args(name, root)
                if going_on is None
                else ["resume", going_on.experiment_id, "--json", "-o", str(root)]
            )
            done = cli(argv, killer.point(root) if left and killer.kills < wanted else None)
            if not done.killed:
                break
            left -= 1
            killer.killed(done, root, cli)
        assert done.status == 0, done.output
        log = the_log(root)
        events = events_in(log)
        check_whole(events)
        assert said(events, totals=not killer.asked_again) == said(reference, totals=not killer.asked_again)
        assert facts(events, totals=not killer.asked_again) == facts(reference, totals=not killer.asked_again)
        assert len(of_kind(events, ConversationResumedEvent)) <= resumes
        killer.check_torn(log, events)
        check_manifest(root, events)
        assert status_in_list(cli, root) == "completed"
        if killer.kills == wanted:
            break
    print(name, dict(killer.stages))
    return killer


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_conversation_ends_as_if_it_had_not_been(name: str, forked: ForkedCli, tmp_path: Path):
    """Kill -9 at 12 points each, in start-up, requests, streams, back-offs, between and at the end: exactly once."""
    killer = kill_and_resume(name, FORKED_KILLS, tmp_path, forked.run, start_s=0.02)
    assert killer.kills == FORKED_KILLS
    # Which stage a point strikes is the machine's: a slow one is longest in the stage before it. It cannot be in one.
    assert len(killer.stages) >= 2, "the points are not spread"


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_holds_for_ordinary_processes(name: str, tmp_path: Path):
    """Kill -9 of `python -m pidgin_cli` itself at 2 points each, then `pidgin resume`: exactly once."""
    assert kill_and_resume(name, PLAIN_KILLS, tmp_path, run_plain, start_s=0.5).kills == PLAIN_KILLS


# Whose experiment is it


def killed_record(root: Path, cli: ForkedCli) -> ExperimentFolder:
    """A conversation that died between two messages."""
    kill = KillWhen(root, shows="TurnCompleteEvent")
    assert cli.run(chat_args("two", root), kill).killed
    folder = the_folder(root)
    assert folder is not None
    assert status_in_list(cli.run, root) == "interrupted"
    return folder


def claim(root: Path, folder: ExperimentFolder, content: str) -> None:
    OutputRoot(root).pid_file(folder.experiment_id).write_text(content)


def test_a_recycled_pid_is_not_mistaken_for_the_runner(forked: ForkedCli, tmp_path: Path):
    """A PID file that names a living process which began at another time blocks nothing."""
    root = tmp_path / "out"
    folder = killed_record(root, forked)
    me = psutil.Process()
    claim(root, folder, json.dumps({"pid": me.pid, "started": me.create_time() - 3600}))
    assert status_in_list(forked.run, root) == "interrupted"
    assert forked.run(["resume", folder.experiment_id, "-o", str(root)]).status == 0
    check_whole(events_in(the_log(root)))
    assert status_in_list(forked.run, root) == "completed"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"started": 1.0}'])
def test_a_damaged_pid_file_blocks_nothing(content: str, forked: ForkedCli, tmp_path: Path):
    """Whatever stands in a PID file, only a living runner keeps others away."""
    root = tmp_path / "out"
    folder = killed_record(root, forked)
    claim(root, folder, content)
    assert status_in_list(forked.run, root) == "interrupted"
    assert forked.run(["resume", folder.experiment_id, "-o", str(root)]).status == 0
    check_whole(events_in(the_log(root)))


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a conversation in `tmp_path` and waits for its third message for ever."""
    argv = ["chat", "-a", f"{MODEL}&fail=hang_start@2", "-b", MODEL, "--display", "quiet", "-o", str(tmp_path)]
    command = [sys.executable, "-m", "pidgin_cli", *argv]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not any(b'"message_index":2' in log.read_bytes() for log in logs_in(tmp_path)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def test_a_living_runner_keeps_others_away(runner: subprocess.Popen[bytes], forked: ForkedCli, tmp_path: Path):
    """While its runner lives, `resume` refuses, names the process, and leaves the record as it is."""
    folder = the_folder(tmp_path)
    assert folder is not None
    before = {path: path.read_bytes() for path in folder.path.glob("*.jsonl")}
    assert status_in_list(forked.run, tmp_path) == "running"
    refused = forked.run(["resume", folder.experiment_id, "-o", str(tmp_path)])
    assert refused.status == 1
    assert f"is being run by process {runner.pid}" in refused.output
    assert forked.run(["resume", "--all", "-o", str(tmp_path)]).status == 0
    assert before == {path: path.read_bytes() for path in folder.path.glob("*.jsonl")}
    assert status_in_list(forked.run, tmp_path) == "running"
    runner.kill()
    runner.wait()
    assert status_in_list(forked.run, tmp_path) == "interrupted"


def test_two_writers_are_kept_apart_without_a_pid_file(
    runner: subprocess.Popen[bytes], forked: ForkedCli, tmp_path: Path
):
    """Even when somebody removed the PID file, nobody else writes into a log that is being written."""
    folder = the_folder(tmp_path)
    assert folder is not None
    before = {path: path.read_bytes() for path in folder.path.glob("*.jsonl")}
    OutputRoot(tmp_path).pid_file(folder.experiment_id).unlink()
    refused = forked.run(["resume", folder.experiment_id, "-o", str(tmp_path)])
    assert refused.status == 1
    assert "is being written by another process" in refused.output
    assert "Traceback" not in refused.output
    assert before == {path: path.read_bytes() for path in folder.path.glob("*.jsonl")}


def test_what_is_complete_stays_as_it_is(forked: ForkedCli, tmp_path: Path):
    """`resume` of a finished record does nothing and exits 0."""
    root = tmp_path / "out"
    uninterrupted("two", root, forked.run)
    folder = the_folder(root)
    assert folder is not None
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert forked.run(["resume", folder.experiment_id, "-o", str(root)]).status == 0
    assert forked.run(["resume", "--all", "-o", str(root)]).status == 0
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
