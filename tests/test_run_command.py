"""`pidgin run` and what goes with it, through real processes and files: detached, killed, paused, extended, refused."""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Pidgin, Said, error_of, pidgin, until
from forked_cli import logs_in
from support import check_record, messages, of_type, requests_per_message, story
from terminal import Terminal

from pidgin_cli.core.events import (
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    MessageAbandonedEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.experiments.registry import living_runner
from pidgin_cli.spec.experiment import load

__all__ = ["pidgin"]

SLOW = "local:test?words=6&latency_ms=40"


@pytest.fixture(autouse=True)
def _no_runner_survives(tmp_path: Path) -> Iterator[None]:
    yield
    for pid_file in tmp_path.glob("**/active/exp_*.pid"):
        with_pid = json.loads(pid_file.read_text() or "{}")
        if "pid" in with_pid and psutil.pid_exists(with_pid["pid"]):
            os.kill(with_pid["pid"], signal.SIGKILL)


def spec_file(folder: Path, **keys: Any) -> Path:
    """A small study on the embedded model."""
    data: dict[str, Any] = {
        "name": "study",
        "agents": [{"id": "a", "model": SLOW}, {"id": "b", "model": SLOW}],
        "max_turns": 3,
        "repetitions": 2,
        "seed": 5,
        "sweep": {"a.temperature": [0.2, 1.0]},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(data | keys))
    return path


def the_folder(root: Path) -> ExperimentFolder:
    (folder,) = OutputRoot(root).folders()
    return folder


def stories(folder: ExperimentFolder) -> dict[str, Any]:
    """What was said by conversation number, without ids, times and costs of asides."""
    return {
        name.rpartition("-")[2]: [
            line[:4] + line[5:] if line[0] == "message" else line for line in story(read_record(log).events)
        ]
        for name, log in folder.logs().items()
    }


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, without pages at the end."""
    argv = [sys.executable, "-m", "pidgin_cli", *map(str, args)]
    environment = os.environ | {"PIDGIN_POST_PROCESSING": "off"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment)


def gone(root: Path, folder: ExperimentFolder) -> bool:
    return living_runner(OutputRoot(root), folder.experiment_id) is None


# In the foreground


def test_a_run_from_a_file(pidgin: Pidgin, tmp_path: Path) -> None:
    """A spec is run to its end; every conversation is told in a line; the same command again asks nothing."""
    spec = spec_file(tmp_path)
    done = pidgin("run", spec, "--max-parallel", "4")
    assert done.status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    assert "4 of 4 conversations complete" in done.out
    assert all(f"{folder.experiment_id}-{number} completed" in done.out for number in range(1, 5))
    before = {log: log.read_bytes() for log in folder.logs().values()}
    again = pidgin("run", spec)
    assert again.status == 0
    assert "nothing left to run" in again.out
    assert {log: log.read_bytes() for log in folder.logs().values()} == before


def test_a_run_from_flags(pidgin: Pidgin, tmp_path: Path) -> None:
    """The flags of chat, with repetitions, are a spec: what is recorded is what they say."""
    done = pidgin("run", "-a", SLOW, "-b", SLOW, "-t", "2", "-r", "3", "--temp-b", "0.0", "-n", "flags", "--seed", "3")
    assert done.status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    assert len(folder.logs()) == 3
    for log in folder.logs().values():
        start = of_type(read_record(log).events, ConversationStartEvent)[0]
        assert start.agents[1].settings.temperature == 0.0
        assert start.agents[0].settings.temperature is None
    assert (
        len({of_type(read_record(log).events, ConversationStartEvent)[0].seed for log in folder.logs().values()}) == 3
    )


def test_quiet_and_json(pidgin: Pidgin, tmp_path: Path) -> None:
    """--display quiet prints where the record is and nothing else; --json the manifest."""
    done = pidgin("run", spec_file(tmp_path), "--display", "quiet")
    assert Path(done.out.strip()).name == the_folder(tmp_path / "pidgin_output").path.name
    assert done.err == ""
    told = json.loads(pidgin("run", spec_file(tmp_path, name="other"), "--json").out)
    assert told["totals"]["completed"] == 4


def test_a_dry_run_asks_nothing(pidgin: Pidgin, tmp_path: Path) -> None:
    """--dry-run shows arms, order, calls and cost, and makes no folder; --json gives the same as data."""
    spec = spec_file(tmp_path)
    shown = pidgin("run", spec, "--dry-run")
    assert shown.status == 0
    assert "a.temperature=0.2" in shown.out
    assert "$0" in shown.out
    (plan,) = json.loads(pidgin("run", spec, "--dry-run", "--json").out)
    assert plan["estimate"]["calls"] == 4 * 3 * 2
    assert [each["number"] for each in plan["order"]] == [1, 2, 3, 4]
    assert Counter(each["arm"] for each in plan["order"][:2]) == {"a.temperature=0.2": 1, "a.temperature=1": 1}
    assert not list((tmp_path / "pidgin_output").glob("experiments/experiment_*"))


def test_a_dry_run_needs_no_key(pidgin: Pidgin) -> None:
    """What a study would cost is shown without keys, which are named; the budget is then not vouched for."""
    flags = ("run", "-a", "claude", "-b", "gpt", "-t", "3", "--max-tokens", "100", "--budget", "5")
    shown = pidgin(*flags, "--dry-run", "--json")
    assert shown.status == 0
    assert re.findall("[A-Z]+_API_KEY", shown.err) == ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"]
    assert "budget" in shown.err
    (plan,) = json.loads(shown.out)
    assert plan["estimate"]["calls"] == 6
    refused = pidgin(*flags)
    assert refused.status == 2
    assert "agent a (anthropic:" in refused.err


def test_nothing_to_run(pidgin: Pidgin) -> None:
    """Without a spec and without models the error says where a spec comes from."""
    assert "pidgin init" in error_of(pidgin("run"))


def test_narrow_terminals(pidgin: Pidgin, tmp_path: Path) -> None:
    """At 80 columns no id is cut: arms too long for their column are numbered. Sentences wrap between words."""
    fast = {"agents": [{"id": name, "model": "local:test?words=6"} for name in "ab"], "metrics": "off", "max_turns": 1}
    spec = spec_file(tmp_path, **fast, sweep={"a.temperature": [0.2, 1.0], "b.temperature": [0.2]})
    assert pidgin("run", spec).status == 0
    experiment_id = the_folder(tmp_path / "pidgin_output").experiment_id
    for columns, of_first_arm in ((80, "#1"), (140, "a.temperature=")):
        with Terminal("show", "study", cwd=tmp_path, columns=columns) as terminal:
            assert terminal.wait() == 0
        rows = re.findall(rf"^({experiment_id}-\d) .* \$0  (\S.*)$", terminal.text, re.MULTILINE)
        assert [name for name, _ in rows] == [f"{experiment_id}-{number}" for number in range(1, 5)]
        assert rows[0][1].startswith(of_first_arm)
        assert max(map(len, terminal.text.splitlines()[3:])) <= columns
    with Terminal("power", "--n", "20", cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
    assert terminal.text.split() == pidgin("power", "--n", "20").out.split()
    assert max(map(len, terminal.text.splitlines())) <= 80


def test_a_part_of_the_plan(pidgin: Pidgin, tmp_path: Path) -> None:
    """--filter and --limit run a part; the experiment is stopped until the rest has been run, too."""
    spec = spec_file(tmp_path)
    assert pidgin("run", spec, "--filter", "a.temperature=0.2", "--limit", "1").status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    (log,) = folder.logs().values()
    assert of_type(read_record(log).events, ConversationStartEvent)[0].arm == "a.temperature=0.2"
    assert read_manifest(folder).status is Status.STOPPED
    assert pidgin("run", spec).status == 0
    assert read_manifest(folder).totals.completed == 4


def test_more_repetitions_by_flag(pidgin: Pidgin, tmp_path: Path) -> None:
    """The same name and spec with more repetitions extend the experiment; fewer take nothing away."""
    spec = spec_file(tmp_path)
    assert pidgin("run", spec).status == 0
    assert pidgin("run", spec, "-r", "3").status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    assert read_manifest(folder).totals.completed == 6
    assert "nothing left" in pidgin("run", spec).out
    assert len(folder.logs()) == 6


def test_a_name_in_use(pidgin: Pidgin, tmp_path: Path) -> None:
    """A name that another spec has is refused, naming the experiment and what differs; two of a name list their ids."""
    assert pidgin("run", spec_file(tmp_path)).status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    told = error_of(pidgin("run", spec_file(tmp_path, max_turns=4)), 2)
    assert folder.experiment_id in told
    assert "max_turns" in told
    for _ in range(2):
        assert pidgin("chat", "-a", SLOW, "-b", SLOW, "-t", "1", "-n", "twice").status == 0
    told = error_of(pidgin("run", spec_file(tmp_path, name="twice")), 2)
    assert told.count(",") >= 1
    assert "2 experiments" in told


def test_what_a_branch_leaves_is_looked_up_before_the_start(pidgin: Pidgin, tmp_path: Path) -> None:
    """A record that is not there, or not that long, is refused by runs and plans; nothing is left that has the name."""
    assert pidgin("chat", "-a", "local:test", "-b", "local:test", "-t", "2", "-n", "old", "--seed", "1").status == 0
    parent = f"{the_folder(tmp_path / 'pidgin_output').experiment_id}-1"
    for of, turn, why in (("zzzzzzzz-1", 1, r"no experiment 'zzzzzzzz-1'.* \(old\)"), (parent, 5, "has not come to")):
        spec = spec_file(tmp_path, branch={"of": of, "turn": turn}, max_turns=9)
        for flag in ("--dry-run", "-d", "-y"):
            assert re.search(why, error_of(pidgin("run", spec, flag)))
    the_folder(tmp_path / "pidgin_output")
    assert pidgin("run", spec_file(tmp_path, branch={"of": parent, "turn": 1}), "--dry-run").status == 0


def test_twins_take_their_originals_along(pidgin: Pidgin, tmp_path: Path) -> None:
    """Chosen alone, twins are planned and run with the conversations that they branch from, and a note says so."""
    spec = spec_file(tmp_path, twins=True, interventions=[{"turn": 2, "inject": "Well."}], max_turns=2, repetitions=1)
    planned = pidgin("run", spec, "--filter", "twin=true", "--limit", "1", "--dry-run", "--json")
    assert planned.status == 0
    assert "Note: 1 conversation more is run" in planned.err
    (plan,) = json.loads(planned.out)
    assert [each["variables"].get("twin", False) for each in plan["order"]] == [False, True]
    done = pidgin("run", spec, "--filter", "twin=true")
    assert (done.status, done.err.count("2 conversations more are run")) == (0, 1)
    assert read_manifest(the_folder(tmp_path / "pidgin_output")).totals.completed == 4


def test_failures_end_with_1(pidgin: Pidgin, tmp_path: Path) -> None:
    """A run in which something failed exits 1 and says how to try again; --retry-failed goes on with those alone."""
    models = [{"id": "a", "model": f"{SLOW}&fail=auth@2"}, {"id": "b", "model": SLOW}]
    done = pidgin("run", spec_file(tmp_path, agents=models))
    assert done.status == 1
    assert "4 failed" in done.out
    assert "--retry-failed" in done.out
    again = pidgin("run", spec_file(tmp_path, agents=models))
    assert again.status == 1
    assert "nothing left" in again.out
    folder = the_folder(tmp_path / "pidgin_output")
    pidgin("run", spec_file(tmp_path, agents=models), "--retry-failed")
    for log in folder.logs().values():
        assert requests_per_message(read_record(log).events) == {0: 1, 1: 1, 2: 2}, "only what failed is asked again"


def test_budgets_by_flag(pidgin: Pidgin, tmp_path: Path) -> None:
    """A cap that is reached ends the run cleanly and says so; resume --budget-tokens goes on to the end."""
    agents = [{"id": i, "model": SLOW, "max_tokens": 12} for i in "ab"]
    done = pidgin("run", spec_file(tmp_path, agents=agents), "--budget-tokens", "700")
    assert done.status == 0
    assert "budget is used up" in done.out
    folder = the_folder(tmp_path / "pidgin_output")
    tokens = read_manifest(folder).totals.tokens
    assert tokens is not None
    assert tokens <= 700
    assert pidgin("resume", "study", "--budget-tokens", "100000").status == 0
    assert read_manifest(folder).status is Status.COMPLETED
    refused = pidgin("run", spec_file(tmp_path, name="unbounded"), "--budget-tokens", "700")
    assert refused.status == 2
    assert refused.err.count("set max_tokens") == 2, "once for each agent"


def test_a_conversation_that_used_up_its_time_stays_so(pidgin: Pidgin, tmp_path: Path) -> None:
    """Going on asks for nothing more until the spec allows more time; the hint names the key and the file."""
    spec = spec_file(tmp_path, sweep={}, max_turns=12, budget={"per_conversation": {"wall_time": 0.4}})
    done = pidgin("run", spec)
    assert done.status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    hint = "2 conversations reached budget.per_conversation.wall_time; allow more in "
    assert hint in done.out
    assert f"spec.yaml, then: pidgin resume {folder.experiment_id}" in done.out
    assert "go on: " not in done.out
    said = read_manifest(folder).totals.messages
    for _ in range(2):
        again = pidgin("resume", folder.experiment_id)
        assert (again.status, hint in again.out) == (0, True)
        assert read_manifest(folder).totals.messages == said
    folder.spec.write_text(folder.spec.read_text().replace("wall_time: 0.4", "wall_time: 60"))
    assert pidgin("resume", folder.experiment_id).status == 0
    assert read_manifest(folder).totals.completed == 2


def test_a_talk_that_used_up_its_own_budget_is_told_so(pidgin: Pidgin, tmp_path: Path) -> None:
    """The same of one conversation alone, which is gone on with as a chat is."""
    each = {"per_conversation": {"tokens": 900}}
    agents = [{"id": name, "model": "local:test?words=6", "max_tokens": 40} for name in "ab"]
    spec = spec_file(tmp_path, sweep={}, repetitions=1, max_turns=40, budget=each, agents=agents)
    assert pidgin("run", spec).status == 0
    again = pidgin("resume", "study")
    assert "1 conversation reached budget.per_conversation.tokens; allow more in " in again.out
    assert "--budget" not in again.out


def test_what_is_left_beyond_the_choice_is_told(pidgin: Pidgin, tmp_path: Path) -> None:
    """Where the chosen conversations are done and others are not, that is said, and how to run them."""
    assert pidgin("run", spec_file(tmp_path), "--limit", "3").status == 0
    again = pidgin("resume", "study", "--limit", "3")
    assert again.status == 0
    assert "nothing left to run among the 3 conversations that were chosen; 1 more is left" in again.out


def test_a_file_and_flags_contradict(pidgin: Pidgin, tmp_path: Path) -> None:
    """What a spec file says cannot be said by flags beside it."""
    assert "--turns" in error_of(pidgin("run", spec_file(tmp_path), "-t", "4"), 2)


def test_ten_mistakes_at_once(pidgin: Pidgin, tmp_path: Path) -> None:
    """A spec with ten mistakes shows all ten, each with its line."""
    (tmp_path / "bad.yaml").write_text(
        "nam: x\nagents:\n  - {id: a, model: nope}\n  - {id: A, model: local:test, temperature: 9}\nmax_turn: 3\n"
        "repetitions: 0\norder: sideways\nmax_parallel: none\nbudget: {euro: 3}\nsweep: {c.temperature: [1]}\n"
        "interventions:\n  - {turn: 1}\n"
    )
    said = pidgin("run", tmp_path / "bad.yaml")
    assert said.status == 2
    told = said.err
    for what in (
        "nam",
        "nope",
        "id",
        "temperature",
        "max_turn",
        "repetitions",
        "order",
        "max_parallel",
        "euro",
        "turn",
    ):
        assert what in told
    assert told.count("line ") >= 9


def test_a_command_at_the_end(pidgin: Pidgin, tmp_path: Path) -> None:
    """notify_command is run without a shell, whatever stands in it, with what happened in its environment."""
    told = tmp_path / "told; touch hacked"
    script = "import os, sys; open(sys.argv[1], 'w').write(os.environ['PIDGIN_STATUS'] + os.environ['PIDGIN_NAME'])"
    spec = spec_file(tmp_path, name="$(touch hacked)", notify_command=[sys.executable, "-c", script, str(told)])
    assert pidgin("run", spec).status == 0
    assert told.read_text() == "completed$(touch hacked)"
    assert not (tmp_path / "hacked").exists()


# In a process of its own


def test_detached(tmp_path: Path) -> None:
    """-d returns with folder and process file there; the run goes on without the terminal and completes."""
    root = tmp_path / "out"
    done = command("run", spec_file(tmp_path), "-d", "-o", root)
    assert done.returncode == 0, done.stderr
    folder = the_folder(root)
    for verb in ("attach", "monitor", "stop", "logs"):
        assert f"pidgin {verb}" in done.stdout
    runner = living_runner(OutputRoot(root), folder.experiment_id)
    if runner is not None:  # it may be over by now
        assert psutil.Process(runner.pid).terminal() is None
        assert os.getsid(runner.pid) == runner.pid
    until(lambda: gone(root, folder))
    assert read_manifest(folder).status is Status.COMPLETED
    assert not list(OutputRoot(root).active.iterdir())


def test_paused_stopped_and_resumed_from_elsewhere(tmp_path: Path) -> None:
    """Another process pauses, resumes and stops a detached run by name; a second runner is refused meanwhile."""
    root = tmp_path / "out"
    spec = spec_file(tmp_path, repetitions=10, max_turns=300)
    assert command("run", spec, "-d", "-o", root).returncode == 0
    folder = the_folder(root)
    assert command("pause", "study", "-o", root).returncode == 0
    assert read_manifest(folder).status is Status.PAUSED
    refused = command("run", spec, "-o", root)
    assert refused.returncode == 1
    assert "is being run by process" in refused.stderr
    assert command("resume", "study", "-o", root).returncode == 0
    until(lambda: read_manifest(folder).status is Status.RUNNING)
    assert command("stop", folder.experiment_id[:5], "-o", root).returncode == 0
    assert gone(root, folder)
    assert read_manifest(folder).status is Status.STOPPED
    for log in folder.logs().values():
        check_record(read_record(log).events)
        assert not of_type(read_record(log).events, MessageAbandonedEvent)
    assert command("stop", "study", "-o", root).returncode == 2
    assert command("stop", "--all", "-o", root).returncode == 0


def test_detectors_that_pause_hold_nobody_else_up(tmp_path: Path) -> None:
    """Detached, one at a time: paused talks give their place to others, the run shows as paused, and resume goes on."""
    root = tmp_path / "out"
    loops = {"model": "local:test?words=6&loop_at=2"}
    agents = [{"id": "a", **loops}, {"id": "b", **loops}]
    more = {"detectors": {"cycle": "pause"}, "max_parallel": 1, "max_turns": 9}
    assert command("run", spec_file(tmp_path, agents=agents, repetitions=3, **more), "-d", "-o", root).returncode == 0
    folder = the_folder(root)
    until(lambda: read_manifest(folder).status is Status.PAUSED)
    assert {entry.status for entry in read_manifest(folder).conversations.values()} == {Status.PAUSED}
    assert len(folder.logs()) == 6
    done = command("resume", "study", "-o", root)
    assert (done.returncode, "goes on in process" in done.stdout) == (0, True)
    until(lambda: gone(root, folder))
    assert read_manifest(folder).status is Status.COMPLETED
    for log in folder.logs().values():
        events = read_record(log).events
        check_record(events)
        (paused,) = of_type(events, ConversationPausedEvent)
        (resumed,) = of_type(events, ConversationResumedEvent)
        assert (paused.by, resumed.by) == ("detector:cycle", "person")


def test_stop_now_from_elsewhere(tmp_path: Path) -> None:
    """stop --now does not wait for the message under way."""
    root = tmp_path / "out"
    hangs = "local:test?fail=hang@2"
    spec = spec_file(tmp_path, agents=[{"id": "a", "model": hangs}, {"id": "b", "model": SLOW}])
    assert command("run", spec, "-d", "-o", root).returncode == 0
    folder = the_folder(root)
    until(lambda: any('message_index":2' in log.read_text() for log in logs_in(root)))
    assert command("stop", "study", "--now", "-o", root).returncode == 0
    (log,) = folder.logs().values()
    assert len(of_type(read_record(log).events, MessageAbandonedEvent)) == 1


def test_a_daemon_that_cannot_begin_says_why(tmp_path: Path) -> None:
    """What keeps a detached run from beginning is told where it was started, exit 1."""
    root = tmp_path / "out"
    assert command("run", spec_file(tmp_path), "--limit", "1", "-o", root).returncode == 0
    folder = the_folder(root)
    folder.events.chmod(0o444)
    folder.events.rename(folder.events.with_suffix(".kept"))
    folder.events.mkdir()
    done = command("run", spec_file(tmp_path), "-d", "-o", root)
    assert done.returncode == 1
    assert "cannot be" in done.stderr


def _all_at_once(*lines: Sequence[str | Path]) -> list[Said]:
    """The same command lines as `command` runs, side by side."""
    environment = os.environ | {"PIDGIN_POST_PROCESSING": "off"}
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "pidgin_cli", *map(str, line)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for line in lines
    ]
    ended = [process.communicate(timeout=120) for process in begun]
    return [Said(process.returncode, *texts) for process, texts in zip(begun, ended, strict=True)]


def _winner(said: list[Said], root: Path, folder: ExperimentFolder) -> int:
    """Which of these started the experiment, after seeing that the others were refused, each with one line."""
    (number,) = (number for number, one in enumerate(said) if one.status == 0)
    runner = living_runner(OutputRoot(root), folder.experiment_id)
    assert runner is not None
    assert f"{folder.experiment_id} runs in process {runner.pid}:" in said[number].out
    for other in said[:number] + said[number + 1 :]:
        assert f"is being run by process {runner.pid}" in error_of(other, 1)
    return number


def test_of_many_starts_at_once_one_succeeds(tmp_path: Path) -> None:
    """Of detached runs and resumes that begin together one takes the experiment, with its flags; the others say so."""
    root = tmp_path / "out"
    spec = spec_file(tmp_path, repetitions=10, max_turns=300)
    said = _all_at_once(*[("run", spec, "-d", "-o", root)] * 3)
    folder = the_folder(root)
    _winner(said, root, folder)
    runner = living_runner(OutputRoot(root), folder.experiment_id)
    assert runner is not None
    os.kill(runner.pid, signal.SIGKILL)
    until(lambda: gone(root, folder))
    said = _all_at_once(*(("resume", "study", "-d", "--max-parallel", str(n), "-o", root) for n in (2, 3, 4)))
    wanted = _winner(said, root, folder) + 2
    assert load(folder.spec).max_parallel == wanted
    assert of_type(read_record(folder.events).events, ExperimentStartEvent)[-1].max_parallel == wanted
    assert command("stop", "study", "--now", "-o", root).returncode == 0
    log = OutputRoot(root).run_logs / f"experiment_{folder.experiment_id}.log"
    assert len(re.findall(r"process \d+ runs", log.read_text())) == 2


def test_a_run_at_a_terminal_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Who comes while another process runs the experiment is refused at once, not when that has ended."""
    root = tmp_path / "out"
    spec = spec_file(tmp_path, max_turns=300)
    line = [sys.executable, "-m", "pidgin_cli", "run", str(spec), "-o", str(root)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        until(lambda: logs_in(root))
        refused = command("run", spec, "-d", "--budget", "3", "-o", root)
        assert f"is being run by process {process.pid}" in error_of(Said(refused.returncode, "", refused.stderr), 1)
        assert load(the_folder(root).spec).budget is None
        process.send_signal(signal.SIGQUIT)
    assert process.returncode == 130


def test_what_another_process_records_is_no_success(tmp_path: Path) -> None:
    """A runner that could not claim the experiment is told of by its error alone, though the log grew meanwhile."""
    root = tmp_path / "out"
    assert command("run", spec_file(tmp_path), "--limit", "1", "-o", root).returncode == 0
    folder = the_folder(root)
    log = OutputRoot(root).run_logs / f"experiment_{folder.experiment_id}.log"
    log.unlink()
    with folder.events.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        first = other.readline()
        process = subprocess.Popen(
            [sys.executable, "-m", "pidgin_cli", "resume", "study", "-d", "-o", str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(log.exists)  # the runner is being started
        last = read_record(folder.events).events[-1]
        other.seek(0, os.SEEK_END)
        other.write(re.sub(rb'"seq":\d+', b'"seq":%d' % (last.seq + 1), first))
        other.flush()
        out, err = process.communicate(timeout=120)
    assert "another process" in error_of(Said(process.returncode, out, err), 1)
    assert "INFO" not in err
    assert "The record so far" not in err


def test_killed_five_times(tmp_path: Path) -> None:
    """3 arms × 2 seatings × 20 repetitions with failures, detached, killed five times at random: as if never killed.

    The record equals an uninterrupted run's, ids and times aside; each message was asked for once, but for those that
    were in flight when the process died.
    """

    def model(name: str) -> str:
        return f"local:test?words=6&latency_ms=30&seed={name}&fail=rate_limit:0.02,disconnect:0.02,server_error:0.02"

    spec = tmp_path / "grid.yaml"
    spec.write_text(
        json.dumps(
            {
                "name": "grid",
                "models": [model("1"), model("2"), model("3")],
                "pairs": "ordered",
                "max_turns": 3,
                "repetitions": 20,
                "seed": 9,
                "max_parallel": 16,
                "retries": {"base_s": 0.001, "max_wait_s": 0.01},
            }
        )
    )
    whole_root, root = tmp_path / "whole", tmp_path / "killed"
    assert command("run", spec, "-o", whole_root, "--display", "quiet").returncode == 0
    whole = the_folder(whole_root)
    size = sum(log.stat().st_size for log in whole.logs().values())

    draw = random.Random(20261121)
    assert command("run", spec, "-d", "-o", root).returncode == 0
    folder = the_folder(root)
    kills = 0
    for share in sorted(draw.uniform(0.05, 0.9) for _ in range(5)):
        until(lambda share=share: gone(root, folder) or bytes_in(root) >= share * size)  # type: ignore[misc]
        runner = living_runner(OutputRoot(root), folder.experiment_id)
        if runner is not None:
            os.kill(runner.pid, signal.SIGKILL)
            until(lambda: gone(root, folder))
            kills += 1
        assert command("resume", "grid", "-d", "-o", root).returncode == 0
    until(lambda: gone(root, folder))
    assert kills == 5

    assert read_manifest(folder).status is Status.COMPLETED
    assert stories(folder) == stories(whole)
    assert len(folder.logs()) == 120
    for log in folder.logs().values():
        events = read_record(log).events
        check_record(events)
        lost = [event for event in of_type(events, MessageAbandonedEvent) if event.partial is None]
        assert requests_per_message(events).total() <= len(messages(events)) + len(lost)
        assert Counter(event.turn_number for event in of_type(events, TurnStartEvent)).most_common(1)[0][1] == 1
    assert of_type(read_record(folder.events).events, ExperimentCompleteEvent)
    arms = Counter((start.arm, start.seating) for start in map(_start, folder.logs().values()))
    assert set(arms.values()) == {20}
    assert len(arms) == 6


def _start(log: Path) -> Any:
    first: Event = read_record(log).events[0]
    assert isinstance(first, ConversationStartEvent)
    start: Any = type("Start", (), {"arm": first.arm, "seating": first.spec["seating"]})
    return start


def bytes_in(root: Path) -> int:
    return sum(log.stat().st_size for log in logs_in(root))


# What people and machines do to a run


def test_a_manifest_destroyed_by_hand(pidgin: Pidgin, tmp_path: Path) -> None:
    """Overwritten or deleted, the manifest is made again from the logs, by listings as by a resume."""
    spec = spec_file(tmp_path)
    assert pidgin("run", spec, "--limit", "3").status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    for damage in (lambda: folder.manifest.write_text("{"), folder.manifest.unlink):
        damage()
        (listed,) = json.loads(pidgin("list", "--json").out)
        assert listed["totals"]["completed"] == 3
        assert listed["name"] == "study"
    assert pidgin("resume", folder.experiment_id).status == 0
    assert read_manifest(folder).totals.completed == 4


def test_a_destroyed_manifest_is_told_of(pidgin: Pidgin, tmp_path: Path) -> None:
    """What comes from the logs is the same, with one note on standard error per command; a run writes it anew."""
    assert pidgin("run", spec_file(tmp_path, repetitions=1), "--limit", "1").status == 0
    folder = the_folder(tmp_path / "pidgin_output")
    manifest, name = folder.manifest, folder.experiment_id
    whole = {verb: pidgin(*verb.split()) for verb in ("list --json", f"show {name} --json", "monitor --json")}
    assert not any(said.err for said in whole.values())
    for damage, what in (
        (lambda: manifest.write_text("{broken"), "is broken"),
        (lambda: manifest.write_text("[]"), "is broken"),
        (lambda: manifest.write_bytes(b""), "is broken"),
        (manifest.unlink, "is missing"),
        (manifest.mkdir, "is a folder"),
    ):
        damage()
        note = f"Note: manifest.json of {name} {what}; what is shown comes from the logs"
        for verb, before in whole.items():
            said = pidgin(*verb.split())
            assert said.err.count("\n") == 1
            assert said.err.startswith(note)
            assert len(json.loads(said.out)) == len(json.loads(before.out))
        assert note in pidgin("monitor", name, "--once").err
    assert pidgin("rebuild", name).status == 1
    manifest.rmdir()
    resumed = pidgin("resume", name)
    assert (resumed.status, resumed.err.count("manifest.json of")) == (0, 1)
    assert pidgin("show", name, "--json").err == ""
    assert json.loads(manifest.read_bytes())["totals"]["completed"] == 2


def test_a_step_of_the_clock(tmp_path: Path) -> None:
    """Where the clock was set meanwhile, so that creation times moved, a living runner still counts as one."""
    root = tmp_path / "out"
    assert command("run", spec_file(tmp_path, max_turns=100), "-d", "-o", root).returncode == 0
    folder = the_folder(root)
    pid_file = OutputRoot(root).pid_file(folder.experiment_id)
    data = json.loads(pid_file.read_text())
    pid_file.write_text(json.dumps(data | {"started": data["started"] - 3600}))
    assert living_runner(OutputRoot(root), folder.experiment_id) is not None
    assert command("stop", "study", "--now", "-o", root).returncode == 0
    assert gone(root, folder)


def test_a_disk_that_takes_nothing_more(tmp_path: Path) -> None:
    """Where the record cannot be written the run ends with the reason, exit 1; with room again it goes on."""
    whole, root = tmp_path / "whole", tmp_path / "out"
    spec = spec_file(tmp_path, max_parallel=4)
    assert command("run", spec, "-o", whole).returncode == 0
    script = (
        "import resource, sys; from pidgin_cli.cli.app import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); sys.exit(run(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", script, "run", str(spec), "-o", str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    folder = the_folder(root)
    assert command("list", "-o", root).returncode == 0
    assert command("resume", "study", "-o", root).returncode == 0
    assert stories(folder) == stories(the_folder(whole))
