"""Watching experiments: what is read and how often, what stands on the screen, and what its keys do."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psutil
import pytest
from commands import Pidgin, error_of, pidgin, read, until
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from runs import LOGS, SLOW, append, claim, in_background, logged, make, put_manifest, said, start, turn_start
from support import converse, experiment
from terminal import Terminal

from pidgin_cli.cli.watch import keys_in
from pidgin_cli.core.events import (
    APIErrorEvent,
    AttractorEvent,
    ConversationEndEvent,
    Event,
    LimitChangedEvent,
    MessageRequestEvent,
    RateLimitEvent,
    Totals,
    TurnCompleteEvent,
    View,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.follow import Follower
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.registry import Wish
from pidgin_cli.experiments.watch import Fault, Limit, Watch, Watched
from pidgin_cli.monitor.dashboard import Ask, Dashboard, Open, Quit

__all__ = ["pidgin"]

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r\nnext\tline\x00" + "漢" * 30
IN_A_MINUTE = 60.0


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    found = OutputRoot(tmp_path / "out")
    found.prepare()
    return found


def request(agent_id: str = "a", turn: int = 1, index: int = 0) -> MessageRequestEvent:
    return MessageRequestEvent(
        agent_id=agent_id, turn_number=turn, message_index=index, view=View(0, index, 0, 1), digest="0" * 32
    )


def refused(wait_s: float | None = IN_A_MINUTE, message: str = "slow down") -> APIErrorEvent:
    return APIErrorEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        error="Overloaded",
        provider="anthropic",
        status=529,
        retryable=True,
        attempt=1,
        wait_s=wait_s,
        message=message,
    )


def end(status: Status = Status.COMPLETED, reason: EndReason = EndReason.TURN_LIMIT) -> ConversationEndEvent:
    return ConversationEndEvent(status=status, end_reason=reason, totals=Totals(turns=1, messages=2))


def look(watch: Watch, *, everything: bool = False) -> Watched:
    """The only experiment, as a watch sees it now."""
    watch.refresh()
    (watched,) = watch.experiments
    names = list(watched.entries()) if everything else watched.active(datetime.now(UTC))
    watch.follow({watched.key: names})
    return watched


def screen(dashboard: Dashboard, watch: Watch, width: int = 140, height: int = 40) -> str:
    """What is drawn after a look at the disk, as the loop of the command does it."""
    watch.refresh()
    dashboard.draw(width, height)
    watch.follow(dashboard.looked_at())
    return dashboard.draw(width, height).plain


def press(dashboard: Dashboard, keys: str) -> None:
    for key in keys:
        assert dashboard.press(key) is None


# Following a log


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_followed_log_gives_each_event_once(data: st.DataObject) -> None:
    """However a log grows and however little is read at a time, the events are those of the whole file."""
    events = logged("abcd1234-1", [start(), *(said("x" * (7 * n), index=n) for n in range(8))])
    lines = [encode(event) + b"\n" for event in events]
    lines[3] = b'{"event_type":"MessageCompleteEvent"\n'  # broken
    lines.insert(5, b"\n")
    whole = b"".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(_folder())) / "log.jsonl"
        follower = Follower(path)
        assert follower.read() == []
        found = []
        for before, after in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            with path.open("ab") as file:
                file.write(whole[before:after])
            found += follower.read(data.draw(st.one_of(st.none(), st.integers(1, 900))))
        while follower.unread:
            found += follower.read(data.draw(st.integers(1, 900)))
        record = read_record(path)
    assert [event for event in found if isinstance(event, Event)] == record.events
    assert [item for item in found if not isinstance(item, Event)] == record.skipped


@contextlib.contextmanager
def _folder():  # type: ignore[no-untyped-def]
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 150, 10**6])
def test_the_end_of_a_log_begins_with_a_whole_line(tmp_path: Path, size: int) -> None:
    """Whoever begins near the end gets whole lines only, then all that comes; never the beginning."""
    events = logged("abcd1234-1", [said(f"text {n}", index=n) for n in range(9)])
    lines = [encode(event) + b"\n" for event in events]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(lines[:8]))
    follower = Follower(path, last_bytes=size)
    first = follower.read()
    assert first == (events[8 - len(first) : 8])
    assert sum(map(len, lines[8 - len(first) : 8])) <= size
    with path.open("ab") as file:
        file.write(lines[8])
    assert follower.read() == [events[8]]


def test_a_log_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """A shorter file, or another in its place, is read from its beginning, and the generation says so."""
    events = logged("abcd1234-1", [said(f"text {n}", index=n) for n in range(4)])
    lines = [encode(event) + b"\n" for event in events]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(lines))
    follower = Follower(path)
    assert len(follower.read()) == 4
    path.write_bytes(lines[0])
    assert (follower.read(), follower.generation) == ([events[0]], 1)
    other = tmp_path / "other"
    other.write_bytes(b"".join(lines[:3]))
    other.replace(path)
    assert (follower.read(), follower.generation) == (events[:3], 2)
    path.unlink()
    assert follower.read() == []


# What is read


def test_only_what_changed_is_read(root: OutputRoot) -> None:
    """A manifest is read once, and once more for every time that it was replaced; of a finished one never again."""
    running = make(root, "aaaa0001", [[start(), said("one")]])
    make(root, "aaaa0002", [[start(), said("one"), end()]], status=Status.COMPLETED)
    claim(root, "aaaa0001")
    watch = Watch(root)
    for _ in range(4):
        watch.refresh()
    reads = {watched.folder.experiment_id: watched.reads for watched in watch.experiments}
    assert reads == {"aaaa0001": 1, "aaaa0002": 1}
    append(running, 1, said("two", "b", index=1))
    put_manifest(running, 1)
    for _ in range(4):
        watch.refresh()
    reads = {watched.folder.experiment_id: watched.reads for watched in watch.experiments}
    assert reads == {"aaaa0001": 2, "aaaa0002": 1}
    assert [watched.experiment(datetime.now(UTC)).messages for watched in watch.experiments] == [2, 1]


def test_one_look_reads_only_so_much(root: OutputRoot) -> None:
    """A look takes about as many bytes as it may, says that something is left, and the next ones catch up."""
    texts = [said("word " * 100, index=n) for n in range(50)]
    folder = make(root, "aaaa0001", [[start(), *texts, refused()]] * 3)
    claim(root, "aaaa0001")
    watch = Watch(root)
    watch.refresh()
    looked_at = {folder.path.name: [f"aaaa0001-{n}" for n in (1, 2, 3)]}
    assert watch.follow(looked_at, most=20_000)
    (watched,) = watch.experiments
    now = datetime.now(UTC)
    assert watched.conversation("aaaa0001-1", now).errors is None  # not yet known, not none
    looks = 2  # with the last one, which leaves nothing
    while watch.follow(looked_at, most=20_000):
        looks += 1
    size = sum(log.stat().st_size for log in folder.logs().values())
    assert size / 30_000 <= looks <= size / 16_000 + 3
    assert [watched.conversation(f"aaaa0001-{n}", now).errors for n in (1, 2, 3)] == [1, 1, 1]


def test_a_dead_runner_is_recognised(root: OutputRoot) -> None:
    """What seems to run is interrupted once its process is gone or its PID belongs to another process."""
    make(root, "aaaa0001", [[start(), said("one")]])
    watch = Watch(root)
    assert look(watch).status is Status.INTERRUPTED
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it is Python by now, not a fork of this process
        path = claim(root, "aaaa0001", psutil.Process(child.pid))
        watched = look(watch)
        sight = watched.experiment(datetime.now(UTC))
        assert (sight.status, sight.pid) == (Status.RUNNING, child.pid)
        assert sight.memory_bytes is not None
        assert sight.memory_bytes > 1_000_000
        child.kill()
        child.wait()
        sight = look(watch).experiment(datetime.now(UTC))
        assert (sight.status, sight.pid, sight.cpu_percent, sight.memory_bytes) == (Status.INTERRUPTED,) + (None,) * 3
        conversation = watched.conversation("aaaa0001-1", datetime.now(UTC))
        assert (conversation.status, conversation.speaking) == (Status.INTERRUPTED, False)
    path.write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time() - 1000}))
    assert look(watch).status is Status.INTERRUPTED
    claim(root, "aaaa0001")
    assert look(watch).status is Status.RUNNING


def _damage_manifest(folder: ExperimentFolder) -> None:
    folder.manifest.write_bytes(b'{"experiment_id": "\xff')


def _empty_manifest(folder: ExperimentFolder) -> None:
    folder.manifest.write_bytes(b"")


def _naive_times(folder: ExperimentFolder) -> None:
    folder.manifest.write_bytes(re.sub(rb'(_at": "[^"Z]*)Z"', rb'\1"', folder.manifest.read_bytes()))


def _no_manifest(folder: ExperimentFolder) -> None:
    folder.manifest.unlink()


def _empty_log(folder: ExperimentFolder) -> None:
    folder.log(f"{folder.experiment_id}-1").write_bytes(b"")


def _rubbish_in_log(folder: ExperimentFolder) -> None:
    with folder.log(f"{folder.experiment_id}-1").open("ab") as file:
        file.write(b'\x00\xff\n{"event_type":"NoSuchEvent"}\n[]\n{"half')


def _naive_log(folder: ExperimentFolder) -> None:
    log = folder.log(f"{folder.experiment_id}-1")
    log.write_bytes(re.sub(rb'("timestamp":"[^"Z]*)Z"', rb'\1"', log.read_bytes()))


def _log_is_folder(folder: ExperimentFolder) -> None:
    folder.log(f"{folder.experiment_id}-1").unlink()
    folder.log(f"{folder.experiment_id}-1").mkdir()


def _gone(folder: ExperimentFolder) -> None:
    shutil.rmtree(folder.path)


def _file_instead(folder: ExperimentFolder) -> None:
    shutil.rmtree(folder.path)
    folder.path.write_bytes(b"")


DAMAGES = [
    _damage_manifest,
    _empty_manifest,
    _naive_times,
    _no_manifest,
    _empty_log,
    _rubbish_in_log,
    _naive_log,
    _log_is_folder,
    _gone,
    _file_instead,
]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_while_it_is_shown(root: OutputRoot, damage, opened: bool) -> None:  # type: ignore[no-untyped-def]
    """Whatever happens to an experiment on the screen, the screen goes on, and the others stand as they were."""
    folder = make(root, "aaaa0001", [[start(), request(), refused()], [start(), said("two")]])
    make(root, "bbbb0002", [[start(), said("x"), end()]], name="sound", status=Status.COMPLETED)
    claim(root, "aaaa0001")
    watch = Watch(root)
    dashboard = Dashboard(watch, opened=folder.path.name if opened else None)
    assert "aaaa0001" in screen(dashboard, watch)
    damage(folder)
    for _ in range(2):
        shown = screen(dashboard, watch)
    for key in ("down", "up", "enter", "?", "o", "escape", "escape"):
        dashboard.press(key)
        screen(dashboard, watch)
    shown = screen(dashboard, watch)
    assert "sound" in shown
    assert ("aaaa0001" in shown) == (damage not in (_gone, _file_instead))


def test_an_experiment_that_cannot_be_read_says_so(root: OutputRoot, pidgin: Pidgin) -> None:
    """A row, the reason, and null for everything that cannot be known."""
    folder = make(root, "aaaa0001", [[start(), said("one")]], name="locked")
    _log_is_folder(folder)
    _damage_manifest(folder)
    watch = Watch(root)
    shown = screen(Dashboard(watch), watch)
    assert "unreadable" in shown
    assert "cannot be read" in shown
    (found,) = json.loads(pidgin("monitor", "--json", "-o", root.path).out)
    assert found["status"] is found["messages"] is found["tokens"] is found["with_errors"] is None
    assert "cannot be read" in found["problem"]


# What is seen


async def test_errors_of_a_real_run(tmp_path: Path) -> None:
    """Errors are counted from the record and the last one comes with provider, kind and text."""
    spec = experiment("local:test", "local:test?fail=server_error@1x2,auth@2", max_turns=4)
    run = await converse(tmp_path, spec)
    watched = look(Watch(run.root))
    now = datetime.now(UTC)
    sight = watched.conversation(f"{run.folder.experiment_id}-1", now)
    fault = sight.last_error
    assert (sight.errors, sight.status, sight.turns, sight.messages) == (3, Status.FAILED, 1, 3)
    assert fault is not None
    assert (fault.agent_id, fault.provider, fault.kind, fault.status) == ("b", "local", "AuthenticationFailed", 401)
    assert fault.text in run.events[-1].error  # type: ignore[attr-defined]
    whole = watched.experiment(now)
    assert (whole.with_errors, whole.failed, whole.ended, whole.total) == (1, 1, 1, 1)
    assert whole.last_error == fault


def test_waits_and_limits(root: OutputRoot) -> None:
    """A wait lasts until its time is over or somebody speaks; of each limit the newest counts."""
    change = {"provider": "anthropic", "model": "claude", "why": "growth"}
    first = [start(), request(), LimitChangedEvent(limit=4, before=2, **change), refused()]  # type: ignore[arg-type]
    folder = make(root, "aaaa0001", [first, [start(), request()]])
    claim(root, "aaaa0001")
    watch = Watch(root)
    append(folder, 2, LimitChangedEvent(limit=2, before=4, **change))  # type: ignore[arg-type]
    watched = look(watch)
    now = datetime.now(UTC)
    sight = watched.experiment(now)
    assert sight.limits == [Limit("anthropic", "claude", "requests at once", 2)]
    (wait,) = sight.waits
    assert (wait.conversation_id, wait.agent_id, wait.provider, wait.why) == (
        "aaaa0001-1",
        "a",
        "anthropic",
        "Overloaded",
    )
    assert wait.until is not None
    assert 55 < (wait.until - now).total_seconds() <= IN_A_MINUTE
    assert watched.experiment(now + timedelta(seconds=61)).waits == []
    queue = RateLimitEvent(
        agent_id="a", turn_number=1, message_index=0, provider="anthropic", attempt=1, reason="limit", message="full"
    )
    append(folder, 2, queue)
    assert [wait.until is None for wait in look(watch).experiment(now).waits] == [False, True]
    append(folder, 1, said("at last"))
    assert [wait.conversation_id for wait in look(watch).experiment(now).waits] == ["aaaa0001-2"]


def test_who_speaks_and_what_detectors_say(root: OutputRoot) -> None:
    """The speaker by name, now or last; convergence and detectors as recorded, unknown while there are none."""
    folder = make(root, "aaaa0001", [[start(), turn_start(), request()], []])
    claim(root, "aaaa0001")
    watch = Watch(root)
    dashboard = Dashboard(watch)
    screen(dashboard, watch)
    dashboard.press("enter")
    sight = look(watch).conversation("aaaa0001-1", datetime.now(UTC))
    assert (sight.speaker, sight.speaking, sight.max_turns) == ("a", True, 5)
    assert (sight.convergence, sight.detectors) == (None, None)
    assert re.search(r"> aaaa0001-1 +0/5 > Wren +running", screen(dashboard, watch))
    assert re.search(r"  aaaa0001-2 +0/– – +created", screen(dashboard, watch))
    append(folder, 1, said("one"), request("b", index=1), said("two", "b", index=1))
    append(folder, 1, TurnCompleteEvent(turn_number=1, convergence=0.75, detectors={"lock_in": {"state": "watching"}}))
    put_manifest(folder, 2)
    assert re.search(r"aaaa0001-1 +1/5 Finch +running +.* 0\.75 lock in watching", screen(dashboard, watch))
    found = AttractorEvent(turn_number=1, message_index=1, detector="lock_in", value=1.0, threshold=0.5, action="note")
    append(folder, 1, found)
    assert "! lock in, lock in watching" in screen(dashboard, watch)


def test_rate_and_what_is_left(root: OutputRoot) -> None:
    """Messages of the last minute, and the time that the rest takes at this rate."""
    now = datetime.now(UTC)
    spoken = [said(f"{n}", index=n) for n in range(6)]
    folder = make(root, "aaaa0001", [[start(turns=10)], []], created=now - timedelta(hours=1))
    log = folder.log("aaaa0001-1")
    old = logged("aaaa0001-1", spoken[:2], first=1, when=now - timedelta(minutes=2))
    new = logged("aaaa0001-1", spoken[2:], first=3, when=now - timedelta(seconds=30))
    with log.open("ab") as file:
        file.write(b"".join(encode(event) + b"\n" for event in [*old, *new]))
    put_manifest(folder, 2, created=now - timedelta(hours=1))
    claim(root, "aaaa0001")
    sight = look(Watch(root)).experiment(now)
    assert sight.messages_per_minute == pytest.approx(4)
    left = (20 - 6) + 20  # the one that has not begun counts as long as the other
    assert sight.eta_s == pytest.approx(60 * left / 4)


def test_rate_from_manifests(root: OutputRoot) -> None:
    """While it is watched, the rate is what the manifests grew by; a record that shrank starts it anew."""
    folder = make(root, "aaaa0001", [[start()]], messages=100)
    watched = Watched(folder)
    runner = None
    claim(root, "aaaa0001")
    for at, messages in ((0, 100), (3, 103), (6, 106), (100, 206), (106, 212)):
        put_manifest(folder, 1, messages=messages)
        watched.look(root, runner, None, 1e9 + at)
    assert watched.experiment(datetime.now(UTC)).messages_per_minute == pytest.approx(60 * (212 - 106) / 100)
    for at, messages in ((110, 5), (120, 10)):
        put_manifest(folder, 1, messages=messages)
        watched.look(root, runner, None, 1e9 + at)
    assert watched.experiment(datetime.now(UTC)).messages_per_minute == pytest.approx(30)


# The screen


@pytest.fixture(scope="module")
def hostile_watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    root = OutputRoot(tmp_path_factory.mktemp("hostile"))
    root.prepare()
    first = [start(arm=HOSTILE, names=(HOSTILE, HOSTILE)), request(), refused(message=HOSTILE * 500)]
    make(root, "aaaa0001", [first, [start(), said(HOSTILE), end()]], name=HOSTILE, error=HOSTILE)
    make(root, "bbbb0002", [[]] * 300, name="many")
    claim(root, "aaaa0001")
    claim(root, "bbbb0002")
    (root.experiments / "experiment_not_one").mkdir()
    watch = Watch(root)
    watch.refresh()
    return watch


KEYS = st.sampled_from(
    [*"jkGgfo?psyn漢 \u202e", "enter", "escape", "up", "down", "pageup", "pagedown", "home", "end", "backspace", "left"]
)


@given(st.integers(1, 200), st.integers(1, 60), st.lists(KEYS, max_size=12))
@example(80, 24, [])
@example(80, 24, ["enter"])
@example(80, 24, ["down", "enter", "G"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_screen_fits_and_is_harmless(hostile_watch: Watch, width: int, height: int, keys: list[str]) -> None:
    """Any size, any keys, hostile text everywhere: as many lines as asked for, none too wide, no control characters."""
    dashboard = Dashboard(hostile_watch)
    for key in ["", *keys]:
        dashboard.press(key)
        dashboard.draw(width, height)
        hostile_watch.follow(dashboard.looked_at())
        lines = dashboard.draw(width, height).plain.split("\n")
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(lines))


def test_the_usual_terminal_shows_what_matters(root: OutputRoot) -> None:
    """At 80×24 name, status, progress, cost and errors have room, and the line below has the rest."""
    folder = make(
        root, "aaaa0001", [[start(), request(), refused()]], name="temperature study", cost_usd=1.25, tokens=9
    )
    claim(root, "aaaa0001")
    watch = Watch(root)
    shown = screen(Dashboard(watch), watch, 80, 24)
    head, titles, row, *rest = shown.split("\n")
    assert head.startswith("pidgin monitor  1 running of 1 experiment")
    assert titles.split() == ["id", "name", "status", "done", "messages", "cost", "msg/min", "errors"]
    assert re.fullmatch(r"> aaaa0001 temperature s… +running +░{10} +0/1 +0 \$1\.25 +0 +1 *", row)
    below = " ".join(" ".join(rest).split())
    assert f"process {os.getpid()}" in below
    assert "1 conversation with errors; last: aaaa0001-1 a anthropic Overloaded (529): slow down" in below
    assert re.search(r"1 waiting: aaaa0001-1 a waits \d+ s: anthropic Overloaded", below)
    assert folder.path.is_dir()


def test_what_runs_comes_first_and_the_choice_stays(root: OutputRoot) -> None:
    """The chosen row stays chosen when the order changes or rows appear above it; if it goes, a neighbour is chosen."""
    now = datetime.now(UTC)
    for number in range(1, 5):
        make(
            root,
            f"aaaa000{number}",
            [[start(), end()]],
            status=Status.COMPLETED,
            created=now - timedelta(days=number),
            messages=number,
        )
    watch = Watch(root)
    dashboard = Dashboard(watch)

    def rows() -> list[str]:
        return re.findall(r"^(?:> |  )(\w{4}000\d)", screen(dashboard, watch).partition("─")[0], re.MULTILINE)

    def chosen() -> str:
        found = re.search(r"^> (\w+)", screen(dashboard, watch).partition("─")[0], re.MULTILINE)
        assert found
        return found[1]

    assert rows() == ["aaaa0001", "aaaa0002", "aaaa0003", "aaaa0004"]
    press(dashboard, "jj")
    assert chosen() == "aaaa0003"
    make(root, "bbbb0009", [[start()]], created=now - timedelta(days=9))
    claim(root, "bbbb0009")
    assert rows() == ["bbbb0009", "aaaa0001", "aaaa0002", "aaaa0003", "aaaa0004"]
    assert chosen() == "aaaa0003"
    press(dashboard, "oooo")  # newest, name, status, messages
    assert rows()[:3] == ["aaaa0004", "aaaa0003", "aaaa0002"]
    assert "by messages" in screen(dashboard, watch)
    assert chosen() == "aaaa0003"
    shutil.rmtree(next(root.experiments.glob("experiment_aaaa0003_*")))
    assert chosen() == "aaaa0002"


def test_the_filter(root: OutputRoot) -> None:
    """Words narrow the list by name, id and status; Enter keeps the filter, Esc drops it; keys are text meanwhile."""
    make(root, "aaaa0001", [[start(), end()]], name="cold quest", status=Status.COMPLETED)
    make(root, "aaaa0002", [[start(), end()]], name="warm quest", status=Status.FAILED)
    make(root, "aaaa0003", [[start(), end()]], name="other", status=Status.FAILED)
    watch = Watch(root)
    dashboard = Dashboard(watch)

    def rows() -> set[str]:
        return set(re.findall(r"^(?:> |  )(aaaa000\d)", screen(dashboard, watch, height=12), re.MULTILINE))

    press(dashboard, "fQuest fail")
    assert rows() == {"aaaa0002"}
    assert "filter: Quest fail_" in screen(dashboard, watch)
    assert dashboard.press("q") is None  # a letter, not the command
    assert rows() == set()
    dashboard.press("backspace")
    dashboard.press("enter")
    assert rows() == {"aaaa0002"}
    assert "1 of 3 fit: Quest fail" in screen(dashboard, watch)
    dashboard.press("escape")
    assert len(rows()) == 3
    press(dashboard, "f0003")
    dashboard.press("escape")
    assert len(rows()) == 3


def test_conversations_are_filtered_and_sorted(root: OutputRoot) -> None:
    """In an experiment the same keys work on its conversations, by arm, status, end and error."""
    folder = make(
        root,
        "aaaa0001",
        [
            [start(arm="t=0"), said("x"), end()],
            [start(arm="t=1"), refused(None, "no key")],
            [start(arm="t=1"), said("y")],
        ],
    )
    claim(root, "aaaa0001")
    watch = Watch(root)
    dashboard = Dashboard(watch, opened=folder.path.name)

    def rows() -> list[str]:
        return re.findall(r"^(?:> |  )aaaa0001-(\d)", screen(dashboard, watch, height=12), re.MULTILINE)

    assert rows() == ["2", "3", "1"]  # running first
    for words, fit in (("t=1", "23"), ("turn limit", "1"), ("no key", "2"), ("running t=1", "23")):
        press(dashboard, f"f{words}")
        assert rows() == list(fit), words
        dashboard.press("escape")
    press(dashboard, "o")
    assert rows() == ["1", "2", "3"]
    assert "by number" in screen(dashboard, watch)
    dashboard.press("escape")
    assert "pidgin monitor" in screen(dashboard, watch)


def test_keys_that_ask_for_something(root: OutputRoot) -> None:
    """p asks for a pause or for going on, s stops only after y, Enter opens, q leaves; nothing is asked of the dead."""
    folder = make(root, "aaaa0001", [[start(), said("one")]])
    pid_file = claim(root, "aaaa0001")
    watch = Watch(root)
    dashboard = Dashboard(watch)
    screen(dashboard, watch)
    assert dashboard.press("p") == Ask("aaaa0001", Wish.PAUSE)
    put_manifest(folder, 1, status=Status.PAUSED)
    screen(dashboard, watch)
    assert dashboard.press("p") == Ask("aaaa0001", Wish.RESUME)
    assert dashboard.press("s") is None
    assert "Stop aaaa0001 after the messages under way? y: yes" in screen(dashboard, watch)
    assert dashboard.press("n") is None
    assert dashboard.press("y") is None
    dashboard.press("s")
    assert dashboard.press("y") == Ask("aaaa0001", Wish.STOP)
    assert dashboard.press("enter") is None
    screen(dashboard, watch)
    (watched,) = watch.experiments
    assert dashboard.press("enter") == Open(watched, "aaaa0001-1")
    assert dashboard.press("q") == Quit()
    pid_file.unlink()
    screen(dashboard, watch)
    assert dashboard.press("p") is None
    assert "aaaa0001 is not running here" in screen(dashboard, watch)
    assert dashboard.press("s") is None
    assert "Stop" not in screen(dashboard, watch)
    dashboard.press("?")
    assert "sort by something else" in screen(dashboard, watch)


# Keys of a terminal


@given(
    st.lists(st.sampled_from(["\x1b[A", "\x1bOB", "\x1b[6~", "\x1b[1;5C", "\n", "\x7f", "q", "é", "漢", "🐦"])),
    st.data(),
)
def test_keys_do_not_depend_on_how_they_arrive(pressed: list[str], data: st.DataObject) -> None:
    """Sequences and characters cut anywhere on their way give the same keys as whole ones."""
    names = {
        "\x1b[A": "up",
        "\x1bOB": "down",
        "\x1b[6~": "pagedown",
        "\x1b[1;5C": "",
        "\n": "enter",
        "\x7f": "backspace",
    }
    sent = "".join(pressed).encode()
    cut = data.draw(st.integers(0, len(sent)))
    first, held = keys_in(sent[:cut], more=True)
    second, nothing = keys_in(held + sent[cut:], more=True)
    assert nothing == b""
    assert first + second == [name for key in pressed if (name := names.get(key, key))]


@given(st.binary(max_size=30))
def test_any_bytes_are_taken(data: bytes) -> None:
    """Nothing that arrives stops the reader or stays behind."""
    keys, held = keys_in(data, more=False)
    assert held == b""
    assert all(key.isprintable() for key in keys)
    assert keys_in(b"\x1b", more=False) == (["escape"], b"")


# Without a terminal


def test_once_prints_and_returns(root: OutputRoot, pidgin: Pidgin) -> None:
    """Without a terminal the view is printed, with or without --once; for one experiment with all its conversations."""
    assert "Nothing in" in pidgin("monitor", "-o", root.path).out
    make(root, "aaaa0001", [[start(arm="t=0"), request()], []], name=HOSTILE)
    make(root, "bbbb0002", [[start(), end()]], name="done", status=Status.COMPLETED)
    claim(root, "aaaa0001")
    for flags in ((), ("--once",)):
        said_ = pidgin("monitor", *flags, "-o", root.path)
        assert said_.status == 0
        assert re.search(r"aaaa0001 .* running .* 0/2 ", said_.out)
        assert re.search(r"bbbb0002 done .* completed .* 1/1 ", said_.out)
        assert "\x1b" not in said_.out
        assert "\u202e" not in said_.out
    one = pidgin("monitor", "aaaa0001", "--once", "-o", root.path).out
    assert re.search(r"aaaa0001-1 +t=0 +0/5 > Wren +running", one)
    assert "aaaa0001-2" in one
    assert "bbbb0002" not in one
    assert "no experiment 'zzzz'" in error_of(pidgin("monitor", "zzzz", "--once", "-o", root.path))


def test_done_is_what_is_complete(root: OutputRoot, pidgin: Pidgin) -> None:
    """Conversations that were cut off, stopped or failed are not done, in numbers and bars; failures stand apart."""
    broken, stopped = end(Status.FAILED, EndReason.PROVIDER_ERROR), end(Status.STOPPED, EndReason.STOP_REQUEST)
    make(root, "aaaa0001", [[start(), last] for last in (end(), broken, stopped)] + [[start()], []])  # nobody runs it
    listed = pidgin("list", "-o", root.path).out
    assert " 1/5 " in listed
    row = pidgin("monitor", "--once", "-o", root.path).out.splitlines()[1]
    details = pidgin("monitor", "aaaa0001", "--once", "-o", root.path).out
    assert " 1/5 " in row
    assert (row.count("█") or row.count("#")) == 2
    assert "1 of 5 conversations complete" in details
    assert "1 failed" in details
    watch = Watch(root)
    dashboard = Dashboard(watch, opened=next(root.folders()).path.name)
    head = screen(dashboard, watch).splitlines()[0]
    assert "  1/5  1 failed" in head
    (sight,) = json.loads(pidgin("monitor", "--json", "-o", root.path).out)
    assert (sight["ended"], sight["completed"], sight["failed"]) == (3, 1, 1)


def test_a_broken_manifest_leaves_the_screen_alone(root: OutputRoot) -> None:
    """Live, what comes from the logs is told when the screen is gone."""
    make(root, "aaaa0001", [[start(), end()]], status=Status.COMPLETED).manifest.write_text("{")
    with Terminal("monitor", "-o", str(root.path), cwd=root.path) as terminal:
        terminal.expect("0 running of 1 experiment")
        terminal.type("q")
        assert "manifest.json" not in terminal.expect("Note: ")
        assert terminal.wait() == 0
        assert terminal.text.count("manifest.json of aaaa0001 is broken") == 1


def test_every_line_of_the_help_fits(root: OutputRoot) -> None:
    """On a terminal of 80 columns no line of the help is cut."""
    watch = Watch(root)
    dashboard = Dashboard(watch)
    press(dashboard, "?")
    wide, narrow = (screen(dashboard, watch, width) for width in (200, 80))
    told = [line.rstrip() for line in wide.splitlines() if line.startswith("  ")]
    assert len(told) >= 10
    assert told == [line.rstrip() for line in narrow.splitlines() if line.startswith("  ")]


def test_json_is_what_is_on_the_disk(root: OutputRoot, pidgin: Pidgin) -> None:
    """One array; sums as in the manifests, conversations within, null for what is not known."""
    folder = make(root, "aaaa0001", [[start(arm="t=0"), request(), refused()], []], name=HOSTILE, tokens=None)
    make(root, "bbbb0002", [[start(), end()]], status=Status.COMPLETED)
    claim(root, "aaaa0001")
    first, second = json.loads(pidgin("monitor", "--json", "-o", root.path).out)
    assert (first["experiment_id"], first["name"], first["status"]) == ("aaaa0001", HOSTILE, "running")
    assert (first["total"], first["ended"], first["tokens"], first["pid"]) == (2, 0, None, os.getpid())
    assert first["folder"] == str(folder.path)
    assert first["cpu_percent"] >= 0
    (wait,) = first["waits"]
    assert (wait["provider"], wait["why"]) == ("anthropic", "Overloaded")
    assert msgspec.convert(first["last_error"], Fault).text == "slow down"
    begun, not_begun = first["conversations"]
    assert (begun["arm"], begun["speaker"], begun["speaking"], begun["max_turns"], begun["errors"]) == (
        "t=0",
        "a",
        True,
        5,
        1,
    )
    assert not_begun["speaker"] is not_begun["max_turns"] is not_begun["convergence"] is None
    assert (second["status"], second["messages_per_minute"], second["eta_s"], second["pid"]) == ("completed",) + (
        None,
    ) * 3
    (only,) = json.loads(pidgin("monitor", "bbbb0002", "--json", "-o", root.path).out)
    assert only["conversations"][0]["max_turns"] == 5  # of one experiment all logs are read


# In a terminal


def test_watching_opening_and_leaving(tmp_path: Path) -> None:
    """From the list to the conversations to the live transcript and back; q leaves, the terminal is as before."""
    with (
        in_background(tmp_path, "-a", SLOW, "-b", SLOW, "-n", "in the lab") as runner,
        Terminal("monitor", cwd=tmp_path) as terminal,
    ):
        terminal.expect("1 running of 1 experiment")
        terminal.expect("in the lab")
        terminal.type("\n")
        terminal.expect("0/10 > test-a")
        terminal.type("\n")
        terminal.expect("q goes back to the monitor")
        terminal.expect("turn 1/10")
        terminal.expect("test-a is speaking")
        terminal.type("q")
        terminal.expect("0/10 > test-a")
        terminal.type("\x1b")
        terminal.expect("pidgin monitor")
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") == 2
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
        assert termios.tcgetattr(terminal._master)[3] & termios.ICANON
        assert runner.poll() is None


def test_pausing_and_stopping_from_the_screen(tmp_path: Path) -> None:
    """p and s reach the runner: it pauses, goes on, and stops after a yes; the record says so."""
    quick = "local:test?words=20&chunk_ms=10"
    with (
        in_background(tmp_path, "-a", quick, "-b", quick, "-t", "1000") as runner,
        Terminal("monitor", cwd=tmp_path) as terminal,
    ):
        (log,) = tmp_path.glob(LOGS)
        terminal.expect("1 running of 1 experiment")
        terminal.type("p")
        terminal.expect("pauses after the messages under way")
        until(lambda: b"ConversationPausedEvent" in log.read_bytes())
        terminal.expect("paused")
        terminal.type("p")
        until(lambda: b"ConversationResumedEvent" in log.read_bytes())
        terminal.expect("running")
        terminal.type("s")
        terminal.expect("y: yes, any other key: no")
        terminal.type("y")
        terminal.expect("stopped")
        assert runner.wait(20) in (0, 130)
        terminal.press_ctrl_c()
        assert terminal.wait() == 0
    assert read(log).end["end_reason"] == "stop_request"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_signal_leaves_the_terminal_in_order(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Whatever ends the monitor, the screen and the modes of the terminal are put back."""
    with Terminal("monitor", cwd=tmp_path) as terminal:
        terminal.expect("Nothing in")
        assert not termios.tcgetattr(terminal._master)[3] & termios.ICANON
        terminal.signal(number)
        until(lambda: termios.tcgetattr(terminal._master)[3] & termios.ICANON)
        assert terminal.wait() == status
        assert b"\x1b[?1049l" in terminal.raw


def test_a_terminal_that_is_resized_or_closed(root: OutputRoot, tmp_path: Path) -> None:
    """A new size is drawn soon; a window that is closed ends the monitor without a word."""
    make(root, "aaaa0001", [[start(), end()]], status=Status.COMPLETED, name="study")
    with Terminal("monitor", "-o", str(root.path), cwd=tmp_path) as terminal:
        terminal.expect("study")
        assert "memory" not in terminal.text
        termios.tcsetwinsize(terminal._master, (40, 160))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.expect("memory")
        terminal.hang_up()
        assert terminal.process.wait(20) in (0, 1, 129)


def test_no_colour(root: OutputRoot, tmp_path: Path) -> None:
    """With NO_COLOR nothing is styled, and the chosen row is still marked."""
    make(root, "aaaa0001", [[start(), end()]], status=Status.FAILED, name="study")
    with Terminal("monitor", "-o", str(root.path), cwd=tmp_path, env={"NO_COLOR": "1"}) as terminal:
        terminal.expect("> aaaa0001")
        terminal.type("q")
        assert terminal.wait() == 0
        assert not re.search(rb"\x1b\[[\d;]*m", terminal.raw)


def test_a_dumb_terminal_gets_the_printed_view(root: OutputRoot, tmp_path: Path) -> None:
    """Where a screen cannot be drawn the view is printed once."""
    make(root, "aaaa0001", [[start(), end()]], status=Status.COMPLETED, name="study")
    with Terminal("monitor", "-o", str(root.path), cwd=tmp_path, env={"TERM": "dumb"}) as terminal:
        terminal.expect("aaaa0001 study")
        assert terminal.wait() == 0
        assert b"\x1b[?1049h" not in terminal.raw
