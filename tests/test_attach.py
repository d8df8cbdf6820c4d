"""Looking at a run from another process: its talk, its events, and what its runner logged."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Pidgin, error_of, pidgin, process, read, until
from runs import LOGS, SLOW, append, claim, in_background, make, put_manifest, said, start, turn_start
from support import converse, experiment
from terminal import DEADLINE_S, ENVIRONMENT, Terminal

from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ConversationResumedEvent,
    ErrorEvent,
    MessageAbandonedEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
    Totals,
    TurnCompleteEvent,
    View,
    WarningEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import OutputRoot

__all__ = ["pidgin"]

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil\x00"


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    found = OutputRoot(tmp_path / "pidgin_output")
    found.prepare()
    return found


def request(agent_id: str = "a", turn: int = 1, index: int = 0) -> MessageRequestEvent:
    return MessageRequestEvent(
        agent_id=agent_id, turn_number=turn, message_index=index, view=View(0, index, 0, 1), digest="0" * 32
    )


def end(status: Status = Status.COMPLETED) -> ConversationEndEvent:
    return ConversationEndEvent(status=status, end_reason=EndReason.TURN_LIMIT, totals=Totals(turns=3, messages=6))


def turns(*numbers: int) -> list:  # type: ignore[type-arg]
    """Whole turns, in each of which a speaks."""
    events: list = []  # type: ignore[type-arg]
    for number in numbers:
        events += [turn_start(number), request(turn=number), said(f"Words of turn {number}.", turn=number)]
        events.append(TurnCompleteEvent(turn_number=number))
    return events


@contextmanager
def attached(cwd: Path, *argv: str) -> Iterator["Attached"]:
    """`pidgin attach` without a terminal, in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pidgin_cli", "attach", *argv],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    found = Attached(child)
    try:
        yield found
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(DEADLINE_S)
        found.reader.join(DEADLINE_S)
        assert child.stdout is not None
        child.stdout.close()


class Attached:
    """What it has printed so far."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self.child = child
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.decode())

    def expect(self, *words: str) -> str:
        """The first line with all these words in it, as soon as there is one."""
        return until(lambda: next((line for line in self.lines if all(word in line for word in words)), None))  # type: ignore[no-any-return]

    def wait(self) -> int:
        status = self.child.wait(DEADLINE_S)
        self.reader.join(DEADLINE_S)
        return status


# One conversation


async def test_a_finished_record_is_shown_and_left(tmp_path: Path, pidgin: Pidgin) -> None:
    """Of a finished conversation all is shown: as lines without a terminal, as the talk or as JSON if asked for."""
    run = await converse(tmp_path / "pidgin_output", experiment("local:test", "local:test", max_turns=4))
    experiment_id = run.folder.experiment_id
    texts = read(run.log).texts
    for target in (experiment_id, f"{experiment_id}-1"):
        shown = pidgin("attach", target)
        assert (shown.status, shown.err) == (0, "")
        assert shown.out.count("MessageComplete") == len(texts) == 8
        assert re.search(r"ConversationEnd +completed, turn_limit", shown.out)
    talk = pidgin("attach", experiment_id, "--display", "chat")
    assert all(text in talk.out for text in texts)
    assert "turn 1/4" in talk.out
    assert pidgin("attach", experiment_id, "--display", "json").out.encode() == run.log.read_bytes()


def test_a_conversation_is_followed_to_its_end(tmp_path: Path) -> None:
    """While it runs every event comes once and in order; with the end of the conversation it is over, status 0."""
    quick = "local:test?words=20&chunk_ms=15"
    with in_background(tmp_path, "-a", quick, "-b", quick, "-t", "3") as runner:
        with attached(tmp_path, read(_log(tmp_path)).id, "--display", "json") as shown:
            assert shown.wait() == 0
        assert runner.wait(DEADLINE_S) == 0
    assert [json.loads(line) for line in shown.lines] == read(_log(tmp_path)).events


def _log(cwd: Path) -> Path:
    (log,) = cwd.glob(LOGS)
    return log


def test_in_a_terminal_q_leaves_and_the_run_goes_on(tmp_path: Path) -> None:
    """The talk with whoever is speaking; q leaves at once, says how to come back, and the runner lives on."""
    with in_background(tmp_path, "-a", SLOW, "-b", SLOW) as runner:
        experiment_id = read(_log(tmp_path)).id
        with Terminal("attach", experiment_id, cwd=tmp_path) as terminal:
            terminal.expect("turn 1/10")
            terminal.expect("… test-a is speaking")
            terminal.type("xq")
            terminal.expect(f"{experiment_id} was left as it is; look again with: pidgin attach {experiment_id}")
            assert terminal.wait() == 0
        with Terminal("attach", f"{experiment_id}-1", "--display", "tail", cwd=tmp_path) as terminal:
            terminal.expect("MessageRequest")
            terminal.press_ctrl_c()
            terminal.expect("was left as it is")
            assert terminal.wait() == 0
        assert runner.poll() is None
        assert "ConversationEnd" not in _log(tmp_path).read_text()


def test_the_last_turns_come_first(root: OutputRoot, tmp_path: Path) -> None:
    """Of a conversation under way the agents and the last two turns are shown, then what is new."""
    folder = make(root, "aaaa0001", [[start(), SystemPromptEvent(agent_id="a", text="Be brief."), *turns(1, 2, 3)]])
    claim(root, "aaaa0001")
    with attached(tmp_path, "aaaa0001", "--display", "chat") as shown:
        shown.expect("Words of turn 3.")
        append(folder, 1, *turns(4))
        shown.expect("Words of turn 4.")
        append(folder, 1, end())
        assert shown.wait() == 0
    text = "".join(shown.lines)
    assert "Wren" in text
    assert "Words of turn 1." not in text
    assert [text.count(f"Words of turn {turn}.") for turn in (2, 3, 4)] == [1, 1, 1]
    assert "completed · turn limit" in text
    assert "Be brief." not in text
    with attached(tmp_path, "aaaa0001", "--display", "chat", "--show-system-prompts") as shown:
        assert shown.wait() == 0
    assert "Be brief." in "".join(shown.lines)


def test_a_runner_that_dies_ends_the_view(tmp_path: Path) -> None:
    """When the runner is killed, that is said with what to do, and the view ends with status 0."""
    with in_background(tmp_path, "-a", SLOW, "-b", SLOW) as runner:
        experiment_id = read(_log(tmp_path)).id
        with attached(tmp_path, experiment_id) as shown:
            shown.expect("MessageRequest")
            runner.send_signal(signal.SIGKILL)
            runner.wait(DEADLINE_S)
            assert shown.wait() == 0
    assert shown.lines[-1] == f"interrupted: its process is gone; go on with: pidgin resume {experiment_id}\n"
    again = process("attach", experiment_id, cwd=tmp_path)
    assert again.status == 0
    assert "interrupted: its process is gone" in again.out


def test_one_that_has_not_begun_is_waited_for(root: OutputRoot, tmp_path: Path) -> None:
    """A conversation whose turn has not come is waited for while its runner lives, else refused with what to do."""
    folder = make(root, "aaaa0001", [[start(), *turns(1)], []])
    pid_file = claim(root, "aaaa0001")
    with attached(tmp_path, "aaaa0001-2", "--display", "tail") as shown:
        shown.expect("aaaa0001-2 waits for its turn")
        append(folder, 2, start(), *turns(1), end())
        shown.expect("MessageComplete", "Words of turn 1.")
        assert shown.wait() == 0
    make(root, "bbbb0002", [[]])
    pid_file.unlink()
    refused = process("attach", "bbbb0002-1", cwd=tmp_path)
    assert "bbbb0002-1 has not begun, and nobody runs it; begin with: pidgin resume bbbb0002" in error_of(refused)


def test_a_record_that_goes_away(root: OutputRoot, tmp_path: Path) -> None:
    """A record deleted meanwhile ends the view with a word."""
    folder = make(root, "aaaa0001", [[start(), *turns(1)]])
    claim(root, "aaaa0001")
    with attached(tmp_path, "aaaa0001") as shown:
        shown.expect("TurnComplete")
        shutil.rmtree(folder.path)
        assert shown.wait() == 0
    assert shown.lines[-1] == "the record is gone\n"


def test_damaged_lines_are_passed_over(root: OutputRoot, pidgin: Pidgin) -> None:
    """A broken line, an event of another version and a torn end do not stop the view."""
    folder = make(root, "aaaa0001", [[start(), *turns(1)]], status=Status.STOPPED)
    with folder.log("aaaa0001-1").open("ab") as file:
        file.write(b'\xff\x00\n{"event_type":"LaterEvent"}\n')
    append(folder, 1, *turns(2))
    with folder.log("aaaa0001-1").open("ab") as file:
        file.write(b'{"event_type":"TurnSta')
    shown = pidgin("attach", "aaaa0001")
    assert shown.status == 0
    assert "Words of turn 2." in shown.out


def test_hostile_text_does_nothing(root: OutputRoot, tmp_path: Path, pidgin: Pidgin) -> None:
    """Nothing that a model, a name or a provider says reaches the terminal as a command."""
    events = [start(names=(HOSTILE, HOSTILE)), turn_start(), request(), said(HOSTILE), refused(HOSTILE), end()]
    make(root, "aaaa0001", [events], name=HOSTILE, status=Status.COMPLETED)
    for display in ("chat", "tail"):
        for shown in (
            pidgin("attach", "aaaa0001", "--display", display).out,
            _in_terminal(tmp_path, "attach", "aaaa0001", "--display", display),
        ):
            assert "evil" in shown
            assert "\x1b[2J" not in shown
            assert "\x1b]0" not in shown
            assert "\u202e" not in shown
            assert "\x00" not in shown


def _in_terminal(cwd: Path, *argv: str) -> str:
    with Terminal(*argv, cwd=cwd) as terminal:
        assert terminal.wait() == 0
        return terminal.raw.decode()


def refused(message: str, wait_s: float | None = None) -> APIErrorEvent:
    return APIErrorEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        error="Overloaded",
        provider="anthropic",
        status=529,
        retryable=wait_s is not None,
        attempt=1,
        wait_s=wait_s,
        message=message,
    )


# Several conversations


def test_all_conversations_of_an_experiment(root: OutputRoot, tmp_path: Path) -> None:
    """Every line says which conversation it is of; those that begin later come too; it ends with the experiment."""
    done = [start(), *turns(1), end()]
    folder = make(root, "aaaa0001", [[start(), *turns(1, 2, 3, 4, 5, 6)], done, []])
    pid_file = claim(root, "aaaa0001")
    with attached(tmp_path, "aaaa0001") as shown:
        shown.expect("aaaa0001-1", "MessageComplete", "Words of turn 6.")
        append(folder, 3, start(), *turns(1))
        put_manifest(folder, 3)
        shown.expect("aaaa0001-3", "MessageComplete", "Words of turn 1.")
        append(folder, 1, *turns(7))
        shown.expect("aaaa0001-1", "MessageComplete", "Words of turn 7.")
        append(folder, 2, ConversationResumedEvent(by="resume", turn_number=1, message_index=1), *turns(2))
        put_manifest(folder, 3)
        shown.expect("aaaa0001-2", "MessageComplete", "Words of turn 2.")
        for number in (1, 2, 3):
            append(folder, number, end())
        put_manifest(folder, 3, status=Status.COMPLETED)
        pid_file.unlink()
        assert shown.wait() == 0
    for number in (1, 3):
        assert sum(f"aaaa0001-{number} " in line and "ConversationEnd" in line for line in shown.lines) == 1
    assert not any("aaaa0001-1 " in line and "Words of turn 1." in line for line in shown.lines)  # only the last lines
    assert shown.lines[-1] == "completed: 3 of 3 conversations complete\n"


def test_the_end_of_a_finished_experiment(root: OutputRoot, pidgin: Pidgin) -> None:
    """Of an experiment that is over the last lines are shown, and how it ended."""
    logs = [[start(), *turns(*range(1, 9)), end()], [start(), *turns(1, 2), end()]]
    make(root, "aaaa0001", logs, status=Status.COMPLETED)
    shown = pidgin("attach", "aaaa0001")
    lines = shown.out.splitlines()
    assert (shown.status, len(lines)) == (0, 21)
    assert re.search(r"aaaa0001-2 +ConversationEnd ", lines[-2])
    assert lines[-1] == "completed: 2 of 2 conversations complete"


def test_all_events_of_an_experiment_as_json(root: OutputRoot, pidgin: Pidgin) -> None:
    """JSON gives every event of every conversation once, those of the finished ones included."""
    logs = [[start(), *turns(1), end()], [start(), *turns(1, 2), end()], [start(), *turns(1, 2, 3), end()]]
    folder = make(root, "aaaa0001", logs, status=Status.COMPLETED)
    shown = pidgin("attach", "aaaa0001", "--display", "json")
    assert shown.status == 0
    assert shown.out.encode() == b"".join(log.read_bytes() for log in folder.logs().values())


def test_what_cannot_be_attached_to(root: OutputRoot, pidgin: Pidgin) -> None:
    """One talk of many has to be named; what does not exist is said with what there is."""
    make(root, "aaaa0001", [[start()], [start()]])
    several = error_of(pidgin("attach", "aaaa0001", "--display", "chat"))
    assert "2 conversations of aaaa0001" in several
    assert "aaaa0001-1" in several
    assert "no conversation 'aaaa0001-9'" in error_of(pidgin("attach", "aaaa0001-9"))
    assert "no experiment 'zzzz'" in error_of(pidgin("attach", "zzzz"))


# logs

RUN_LOG = """\
2026-01-02 10:00:00,001 INFO pidgin_cli.cli.chat: process 7 runs experiment_aaaa0001
2026-01-02 10:00:01,500 ERROR pidgin_cli.eventlog.bus: a subscriber failed
Stack of the thread:
  File "x.py", line 1, in f
ValueError: \x1b[2Jno
2026-01-02 10:00:02,000 WARNING pidgin_cli.experiments.runner: the last one
"""


def test_the_log_of_a_runner(root: OutputRoot, pidgin: Pidgin) -> None:
    """Its last entries, and what stands below an entry belongs to it; as JSON one array."""
    make(root, "aaaa0001", [[start()]])
    (root.run_logs / "experiment_aaaa0001.log").write_text(RUN_LOG)
    shown = pidgin("logs", "aaaa0001")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out == RUN_LOG.replace("\x1b", "␛")
    assert pidgin("logs", "aaaa0001", "-n", "1").out == RUN_LOG.splitlines(keepends=True)[-1]
    assert pidgin("logs", "aaaa0001", "-n", "0").out == ""
    entries = json.loads(pidgin("logs", "aaaa0001", "--json").out)
    assert [(entry["time"], entry["level"]) for entry in entries] == [
        ("2026-01-02 10:00:00,001", "INFO"),
        ("2026-01-02 10:00:01,500", "ERROR"),
        ("2026-01-02 10:00:02,000", "WARNING"),
    ]
    assert entries[1]["where"] == "pidgin_cli.eventlog.bus"
    assert entries[1]["text"].endswith("ValueError: \x1b[2Jno")


def test_the_log_of_a_real_run(tmp_path: Path) -> None:
    """What `pidgin chat` logged is what `pidgin logs` prints."""
    assert process("chat", "-a", "local:test", "-b", "local:test", "-t", "1", cwd=tmp_path).status == 0
    experiment_id = read(_log(tmp_path)).id
    shown = process("logs", experiment_id, cwd=tmp_path)
    assert re.search(r"INFO pidgin_cli\.experiments\.runner: process \d+ runs ", shown.out)
    assert shown.out == (tmp_path / f"pidgin_output/experiments/logs/experiment_{experiment_id}.log").read_text()


def test_the_log_outlives_its_experiment(root: OutputRoot, pidgin: Pidgin) -> None:
    """Of an experiment whose folder was deleted the log is still found, by its id or a conversation's; no records."""
    shutil.rmtree(make(root, "aaaa0001", [[start()]]).path)
    assert "no experiment 'aaaa0001'" in error_of(pidgin("logs", "aaaa0001"))
    (root.run_logs / "experiment_aaaa0001.log").write_text(RUN_LOG)
    for target in ("aaaa0001", "aaaa0001-2"):
        for flags in ((), ("-f",)):
            shown = pidgin("logs", target, *flags)
            assert (shown.status, shown.out) == (0, RUN_LOG.replace("\x1b", "␛"))
            assert shown.err == "Note: the folder of aaaa0001 is gone; this is the log that its runner left\n"
    assert "no experiment 'aaaa0001'" in error_of(pidgin("logs", "aaaa0001", "--events"))


def test_without_a_log_the_records_tell(root: OutputRoot, pidgin: Pidgin) -> None:
    """Where the runner has no log, or with --events, errors and warnings come from the records in order of time."""
    limit = RateLimitEvent(
        agent_id="b", turn_number=1, message_index=1, provider="openai", attempt=1, wait_s=2.0, message="slow down"
    )
    given_up = MessageAbandonedEvent(agent_id="b", turn_number=1, message_index=1, why="the connection was cut")
    folder = make(root, "aaaa0001", [[start(), refused("busy", 1.5)], [start(), limit, given_up]])
    append(folder, 1, WarningEvent(agent_id="a", what="seed", reason="not taken by this model"))
    append(folder, 2, ErrorEvent(error="ValueError", message=HOSTILE, where="delegate x"))
    append(folder, 1, refused("no key"))
    shown = pidgin("logs", "aaaa0001")
    assert (shown.status, shown.err) == (0, "Note: its runner has no log; this is what the records say went wrong\n")
    lines = [re.sub(r"^[\d-]+ [\d:,]+ ", "", line) for line in shown.out.splitlines()]
    assert lines == [
        "WARNING aaaa0001-1 a: anthropic Overloaded (529): busy; attempt 2 in 1.5 s",
        "WARNING aaaa0001-2 b: openai rate limit: slow down; waits 2.0 s",
        "WARNING aaaa0001-2 b: message 1 was given up: the connection was cut",
        "WARNING aaaa0001-1 a: seed left out: not taken by this model",
        "ERROR aaaa0001-2: delegate x: ValueError: ␛[2J␛]0;owned␇evil␀",
        "ERROR aaaa0001-1 a: anthropic Overloaded (529): no key",
    ]
    (root.run_logs / "experiment_aaaa0001.log").write_text(RUN_LOG)
    events = pidgin("logs", "aaaa0001", "--events", "-n", "2", "--json")
    assert events.err == ""
    assert [entry["where"] for entry in json.loads(events.out)] == ["aaaa0001-2", "aaaa0001-1 a"]


def test_a_log_is_followed_until_its_runner_ends(root: OutputRoot, tmp_path: Path) -> None:
    """-f prints what is added, whole lines only, and ends with the runner; with --json an object a line."""
    folder = make(root, "aaaa0001", [[start()]])
    pid_file = claim(root, "aaaa0001")
    log = root.run_logs / "experiment_aaaa0001.log"
    log.write_text(RUN_LOG)
    with subprocess.Popen(
        [sys.executable, "-m", "pidgin_cli", "logs", "aaaa0001", "-f", "-n", "1", "--json"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["text"] == "the last one"
        with log.open("a") as file:
            file.write("2026-01-02 10:00:03,000 INFO pidgin_cli.x: one more")
            file.write(" in two pieces\n")
        assert json.loads(child.stdout.readline())["text"] == "one more in two pieces"
        append(folder, 1, end())
        put_manifest(folder, 1, status=Status.COMPLETED)
        pid_file.unlink()
        assert child.stdout.read() == b""
        assert child.wait(DEADLINE_S) == 0
