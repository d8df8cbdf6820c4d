"""Specs with `branch:` before they run: where they leave from, and texts that they come too late for."""

from pathlib import Path

import pytest
from commands import Pidgin, Said, error_of, pidgin, read
from forked_cli import logs_in

from pidgin_cli import run_experiment
from pidgin_cli.core.errors import SpecError

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
PROBE = "name: probe\nprompts:\n  0: {both: You are being watched.}\n  2: {both: Still watched.}\n"


@pytest.fixture
def parent(pidgin: Pidgin) -> str:
    """The id of a conversation of four turns that was told nothing."""
    talk = ("chat", "-a", "local:test?words=4", "-b", "local:test?words=4", "-t", "4", "--seed", "3")
    assert pidgin(*talk, "--display", "quiet").status == 0
    (log,) = logs_in(ROOT)
    found: str = read(log).events[0]["conversation_id"]
    return found


def refused(said: Said) -> str:
    """The one line that a check says of a spec."""
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def written(of: str, *, turn: int = 3, awareness: str = "probe.yaml", more: str = "") -> Path:
    """A flat spec that branches off a conversation."""
    path = Path("branch.yaml")
    path.write_text(
        f"agent_a: local:test?words=3\nagent_b: local:test?words=3\nbranch: {{of: {of}, turn: {turn}}}\n"
        f"max_turns: 5\nname: late\nawareness_a: {awareness}\n{more}"
    )
    return path


def test_awareness_that_comes_too_late_is_refused(pidgin: Pidgin, parent: str) -> None:
    """Texts that are all for turns before the fork can never be said: an error with key and line, before the start."""
    Path("probe.yaml").write_text(PROBE)
    spec = written(parent)
    before = logs_in(ROOT)
    told = (
        "branch.yaml, line 6: awareness_a: awareness probe: nothing of it is ever said: its texts are for turns 0, 2, "
    )
    assert refused(pidgin("spec", "check", spec)).startswith(told)
    for flags in ((), ("--dry-run",)):
        assert told in error_of(pidgin("run", spec, *flags))
    swept = written(parent, awareness="none", more="sweep: {all.awareness: [none, probe.yaml]}\n")
    swept.write_text(swept.read_text().replace("awareness_a: none\n", ""))
    assert "line 6: sweep.all.awareness: awareness probe: nothing of it" in refused(pidgin("spec", "check", swept))
    assert "agents.0.awareness: awareness probe: nothing of it" in error_of(
        pidgin("branch", parent, "--turn", "3", "--awareness-a", "probe.yaml")
    )
    assert logs_in(ROOT) == before


def test_texts_before_the_fork_are_named(pidgin: Pidgin, parent: str) -> None:
    """Where something of an awareness can still be said, or its system prompt is given, a note names what is not."""
    late = "awareness probe: text at turn {} is not said: the branch begins after turn 3"
    for text, turns in ((PROBE + "  5: {both: Now.}\n", (0, 2)), ("base: basic\n" + PROBE, (0, 2))):
        Path("probe.yaml").write_text(text)
        for command in (("spec", "check"), ("run", "--dry-run")):
            done = pidgin(*command, written(parent))
            assert done.status == 0
            assert [line.partition(": ")[2] for line in done.err.splitlines()] == [late.format(turn) for turn in turns]


def test_what_the_origin_said_is_not_missed(pidgin: Pidgin) -> None:
    """The file that the recorded conversation had keeps its name in the branch, without a word about what was said."""
    Path("probe.yaml").write_text(PROBE)
    talk = ("chat", "-a", "local:test?words=4", "-b", "local:test?words=4", "-t", "4", "--display", "quiet")
    assert pidgin(*talk, "-w", "probe.yaml").status == 0
    (log,) = logs_in(ROOT)
    parent = read(log).events[0]["conversation_id"]
    for command in (("spec", "check"), ("run", "--display", "quiet")):
        done = pidgin(*command, written(parent))
        assert (done.status, done.err) == (0, "")
    (branch,) = set(logs_in(ROOT)) - {log}
    assert [agent.get("awareness") for agent in read(branch).start["agents"]] == ["probe", None]
    again = pidgin("branch", parent, "--turn", "3", "--display", "quiet")
    assert (again.status, again.err) == (0, "")


def test_a_check_looks_up_what_a_branch_leaves(pidgin: Pidgin, parent: str) -> None:
    """`spec check` refuses what `run` would, with the same words and the line; `-o` says where to look."""
    for of, turn, more in (("zzzzzzzz-1", 1, ""), (parent, 4, "choose_names: true\n"), (parent, 9, "")):
        spec = written(of, turn=turn, awareness="none", more=more)
        spec.write_text(spec.read_text().replace("max_turns: 5", "max_turns: 12"))
        said = error_of(pidgin("run", spec)).strip().removeprefix("Error: ")
        told = refused(pidgin("spec", "check", spec))
        assert said in told
        assert told.startswith(f"branch.yaml, line {7 if more else 3}: ")
    fine = written(parent, awareness="none")
    assert (done := pidgin("spec", "check", fine)).status == 0
    assert done.err == ""
    ROOT.rename("elsewhere")
    assert pidgin("spec", "check", "-o", "elsewhere", fine).err == ""


def test_a_check_without_records_says_what_it_did_not_check(pidgin: Pidgin, parent: str) -> None:
    """Where there is no output root a spec is checked as far as that goes, and a note says what was left."""
    Path("probe.yaml").write_text(PROBE)
    done = pidgin("spec", "check", "-o", "nowhere", written(parent))
    assert done.status == 0
    assert "1 conversation" in done.out
    assert f"branch: whether {parent} got to turn 3 is not checked: there are no records in" in done.err
    assert "awareness probe: text at turn 2 is not said, unless" in done.err
    assert not Path("nowhere").exists()


async def test_from_python_it_is_refused_as_well(tmp_path: Path) -> None:
    """`run_experiment` looks up what a branch leaves before it makes a folder."""
    agents = [{"id": agent_id, "model": "local:test"} for agent_id in "ab"]
    with pytest.raises(SpecError, match="there is nothing in"):
        await run_experiment({"agents": agents, "branch": {"of": "zzzzzzzz-1", "turn": 1}, "name": "x"}, tmp_path)
    assert list(tmp_path.glob("experiments/experiment_*")) == []
