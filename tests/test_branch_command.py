"""`pidgin branch` and `pidgin show --tree`: from a command line to a record that says where it comes from."""

import json
import re
from pathlib import Path

import pytest
from commands import Pidgin, Record, error_of, pidgin, read
from forked_cli import ForkedCli, KillWhen, logs_in
from support import check_record

from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")
MODEL = "local:test?words=8"


def the_log(conversation_id: str, root: Path = ROOT) -> Path:
    (log,) = root.glob(f"experiments/experiment_*/conv_{conversation_id}_events.jsonl")
    return log


def held(pidgin: Pidgin, *flags: str) -> str:
    """The id of a conversation that was held."""
    before = set(logs_in(ROOT))
    said = pidgin("chat", "-a", MODEL, "-b", f"{MODEL}&seed=2", "-t", "4", "--seed", "3", "--display", "quiet", *flags)
    assert said.status == 0, said.err
    (log,) = set(logs_in(ROOT)) - before
    return read(log).events[0]["conversation_id"]


def branched(pidgin: Pidgin, of: str, turn: int, *flags: str) -> Record:
    before = set(logs_in(ROOT))
    said = pidgin("branch", of, "--turn", str(turn), "--display", "quiet", *flags)
    assert said.status == 0, said.err
    (log,) = set(logs_in(ROOT)) - before
    check_record(read_record(log).events)
    return read(log)


def test_a_branch_goes_on_from_the_turn_with_what_was_recorded(pidgin: Pidgin) -> None:
    """Without flags everything is as it was, but the draw; the first new message is the parent's next index."""
    parent = held(pidgin, "--temp-b", "0.2", "-w", "basic", "--stop-phrase", "never said", "--context", "window")
    found = branched(pidgin, parent, 2)
    one, other = (read(the_log(parent)).start["spec"], found.start["spec"])
    changed = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert changed == {"seed", "origin"}
    assert other["origin"] == {"conversation_id": parent, "turn": 2}
    assert [event["message_index"] for event in found.of("MessageComplete")] == [4, 5, 6, 7]
    (event,) = found.of("ConversationBranched")
    assert set(event["changes"]) == {"seed"}
    manifest = json.loads((found.folder / "manifest.json").read_bytes())
    (entry,) = manifest["conversations"].values()
    assert (entry["turns"], entry["messages"]) == (found.end["totals"]["turns"], 4) == (2, 4), "its own"
    assert (manifest["totals"]["turns"], manifest["totals"]["messages"]) == (2, 4)
    told = json.loads(pidgin("monitor", "--once", "--json").out)
    (sight,) = [each for one in told if one["experiment_id"] == found.id for each in one["conversations"]]
    assert (sight["turns"], sight["messages"]) == (2, 4)


def test_every_override_has_its_effect(pidgin: Pidgin) -> None:
    """Models, temperatures, awareness, prompts, turns, seed, name and what is done at the fork stand in the record."""
    parent = held(pidgin)
    found = branched(
        *(pidgin, parent, 2, "-a", "local:test?words=3", "--agent", "b=local:silent", "--temperature", "0.5"),
        *("--temp-b", "0.7", "-w", "basic", "--system-prompt-b", "Be terse.", "-t", "5", "--seed", "9", "-n", "fork"),
        *("--inject", "To all.", "--inject-a", "To a.", "--edit", "a=Never mind.", "--edit", "Nor this."),
    )
    a, b = found.start["agents"]
    assert [a["model"], b["model"]] == ["local:test?words=3", "local:silent"]
    assert [a["settings"]["temperature"], b["settings"]["temperature"]] == [0.5, 0.7]
    assert [a["awareness"], b["awareness"]] == ["basic", "basic"]
    assert b["system_prompt"] == "Be terse."
    assert a["system_prompt"]
    assert b["name"] != "test"
    assert found.start["spec"]["max_turns"] == 5
    assert json.loads((found.folder / "manifest.json").read_bytes())["name"] == "fork"
    done = [(e.get("kind", "inject"), e.get("text") or e["after"], e["audience"]) for e in found.of("Intervention")]
    assert done == [
        ("edit", "Never mind.", ["a", "b"]),
        ("edit", "Nor this.", ["a", "b"]),
        ("inject", "To all.", ["a", "b"]),
        ("inject", "To a.", ["a"]),
    ]
    edits = [event for event in found.of("Intervention") if event.get("kind") == "edit"]
    assert [event["edited_index"] for event in edits] == [2, 3]
    again = branched(pidgin, parent, 2, "--seed", "9", "--system-prompt", "")
    assert again.start["seed"] == found.start["seed"]


def test_a_written_branch_begins_as_the_recorded_conversation_did(pidgin: Pidgin) -> None:
    """The opening in the record is the one that was sent, not a default; one of its own, or names, are refused."""
    parent = held(pidgin)
    opening = read(the_log(parent)).start["opening"]
    spec = (
        f"branch: {{of: {parent}, turn: 2}}\nmax_turns: 4\nname: written\n"
        "agents: [{id: a, model: local:test}, {id: b, model: local:test}]\n"
    )
    Path("branch.yaml").write_text(spec)
    assert pidgin("run", "branch.yaml").status == 0
    (found,) = [record for log in logs_in(ROOT) if (record := read(log)).start["conversation_id"] != parent]
    assert found.start["spec"]["opening"] == found.start["opening"] == opening
    compared = pidgin("diff", parent, found.start["conversation_id"]).out
    assert "Hello! You are free" not in compared
    Path("branch.yaml").write_text(spec.replace("written", "named") + "choose_names: true\n")
    assert f"choose_names: nobody chose a name in {parent}" in error_of(pidgin("run", "branch.yaml", "--dry-run"))
    Path("branch.yaml").write_text(spec + "prompt: Another.\nsweep: {choose_names: [true, false]}\n")
    told = pidgin("spec", "check", "branch.yaml").err
    assert f"prompt: a branch begins with the opening of {parent}; leave this out" in told
    assert f"sweep.choose_names: a branch takes over the names of {parent}" in told


@pytest.mark.parametrize("more", [(), ("-r", "2")])
def test_a_name_in_use_is_refused(pidgin: Pidgin, more: tuple[str, ...]) -> None:
    """A branch cannot take the name of another experiment, whether it is run once or often; a spec may be saved."""
    parent = held(pidgin, "-n", "mine")
    told = error_of(pidgin("branch", parent, "--turn", "1", "-n", "mine", *more))
    assert re.search(rf"the name 'mine' is in use by experiment {parent[:8]} \(spec \w+\), and this spec \(\w+\)", told)
    assert len(list(OutputRoot(ROOT).folders())) == 1
    assert pidgin("branch", parent, "--turn", "1", "-n", "other", "--seed", "4", "--display", "quiet").status == 0
    (again,) = (folder for folder in OutputRoot(ROOT).folders() if folder.slug == "other")
    told = error_of(pidgin("branch", parent, "--turn", "1", "-n", "other", "--seed", "4"))
    assert f"the name 'other' is in use by experiment {again.experiment_id}, which is this very branch" in told
    assert f"pidgin resume {again.experiment_id}" in told


def test_an_edit_of_nobody_is_refused(pidgin: Pidgin) -> None:
    """A word that could be an agent's id and is none edits nothing; the text can be said with the agent's id."""
    parent = held(pidgin)
    told = error_of(pidgin("branch", parent, "--turn", "1", "--edit", "c=x"))
    assert "there is no agent 'c', only a, b" in told
    assert "--edit b=c=x" in told
    found = branched(pidgin, parent, 1, "--edit", "b=c=x", "--edit", "E=mc2", "--edit", "two words=x")
    after = [event["after"] for event in found.of("Intervention")]
    assert after == ["c=x", "E=mc2", "two words=x"]


def test_a_spec_goes_to_standard_output(pidgin: Pidgin) -> None:
    """`--save-spec -` prints the spec and nothing else, and makes no file of that name."""
    parent = held(pidgin)
    said = pidgin("branch", parent, "--turn", "1", "--save-spec", "-")
    assert (said.status, said.err) == (0, "")
    assert not Path("-").exists()
    Path("saved.yaml").write_text(said.out)
    assert pidgin("run", "saved.yaml", "--display", "quiet").status == 0


def test_repetitions_are_draws_of_their_own(pidgin: Pidgin) -> None:
    """`-r` makes as many branches as it says, from one fork, each with another seed."""
    parent = held(pidgin)
    said = pidgin("branch", parent, "--turn", "1", "-r", "3", "--display", "quiet")
    assert said.status == 0, said.err
    found = [read(log) for log in logs_in(ROOT)]
    ours = [record for record in found if record.start["conversation_id"] != parent]
    assert len(ours) == 3
    assert {record.start["branch_of"]["conversation_id"] for record in ours} == {parent}
    assert len({record.start["seed"] for record in ours}) == 3
    assert {record.end["status"] for record in ours} == {"completed"}


def test_a_saved_spec_runs_as_the_branch(pidgin: Pidgin) -> None:
    """`--save-spec` writes a spec that names the fork and runs nothing; `pidgin run` makes the branch of it."""
    parent = held(pidgin)
    before = logs_in(ROOT)
    said = pidgin("branch", parent, "--turn", "2", "--inject", "Rivers.", "--save-spec", "fork.yaml")
    assert said.status == 0, said.err
    assert logs_in(ROOT) == before
    assert f"of: {parent}" in Path("fork.yaml").read_text()
    assert "already" in error_of(pidgin("branch", parent, "--turn", "2", "--save-spec", "fork.yaml"))
    said = pidgin("run", "fork.yaml", "--display", "quiet")
    assert said.status == 0, said.err
    (log,) = set(logs_in(ROOT)) - set(before)
    found = read(log)
    check_record(read_record(log).events)
    assert found.start["branch_of"]["conversation_id"] == parent
    assert [event["text"] for event in found.of("Intervention")] == ["Rivers."]


def test_what_the_script_did_before_the_fork_is_kept_and_the_rest_still_comes(pidgin: Pidgin) -> None:
    """Swapped models and prompts stay swapped, who is silent stays silent, and later interventions still happen."""
    Path("spec.yaml").write_text(
        f"""
agents:
  - {{id: a, model: "{MODEL}"}}
  - {{id: b, model: "{MODEL}"}}
max_turns: 6
seed: 4
interventions:
  - {{turn: 1, mute: b, turns: 4}}
  - {{turn: 2, swap_model: "local:test?words=2", agent: a}}
  - {{turn: 2, swap_system_prompt: Be somebody., agent: b}}
  - {{turn: 5, inject: Rivers.}}
"""
    )
    assert pidgin("run", "spec.yaml", "--display", "quiet").status == 0
    (log,) = logs_in(ROOT)
    parent = read(log).start["conversation_id"]
    found = branched(pidgin, parent, 2)
    a, b = found.start["agents"]
    assert (a["model"], b["system_prompt"]) == ("local:test?words=2", "Be somebody.")
    assert [(e["turn_number"], e.get("kind", "inject")) for e in found.of("Intervention")] == [
        (3, "mute"),
        (5, "inject"),
    ]
    assert [event["speakers"] for event in found.of("TurnStart")] == [["a"], ["a"], ["a", "b"], ["a", "b"]]


def test_a_killed_branch_goes_on(tmp_path: Path) -> None:
    """Kill -9 in the middle of a branch, then `pidgin resume`: it ends with every message once."""
    slow = f"{MODEL}&latency_ms=10"
    with ForkedCli() as cli:
        root = tmp_path / "out"
        chat = ["chat", "-a", slow, "-b", slow, "-t", "6", "--seed", "1", "--display", "quiet", "-o", str(root)]
        assert cli.run(chat).status == 0
        (parent_log,) = logs_in(root)
        parent = read(parent_log).start["conversation_id"]
        for number, shows in enumerate(("ConversationBranchedEvent", "InterventionEvent", "TurnCompleteEvent")):
            before = set(logs_in(root))
            flags = ["--turn", "2", "--inject", "Rivers.", "--seed", str(number), "--display", "quiet", "-o", str(root)]
            done = cli.run(["branch", parent, *flags], kill=KillWhen(root, shows=shows))
            assert done.killed, done.output
            (log,) = set(logs_in(root)) - before
            again = cli.run(["resume", read(log).start["experiment_id"], "--display", "quiet", "-o", str(root)])
            assert again.status == 0, again.output
            events = read_record(log).events
            check_record(events)
            found = read(log)
            assert [event["message_index"] for event in found.of("MessageComplete")] == list(range(4, 12))
            assert len(found.of("Intervention")) == 1


# Wrong use


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--turn", "9"), "has not come to the end of turn 9"),
        (("--turn", "4"), "give -t 5 or more"),
        (("--turn", "2", "-t", "2"), "give -t 3 or more"),
        (("--turn", "2", "--agent", "c=gpt"), "there is no agent 'c'"),
        (("--turn", "2", "--agent", "gpt"), "is not ID=MODEL"),
        (("--turn", "2", "--temp-c", "0.1"), "--temp-c: there is no agent 'c'"),
        (("--turn", "2", "--system-prompt-c", "x"), "--system-prompt-c: there is no agent 'c'"),
        (("--turn", "2", "--inject-c", "x"), "--inject-c: there is no agent 'c'"),
        (("--turn", "2", "--temp-a", "3"), "is not between 0 and 2"),
        (("--turn", "0", "--edit", "x"), "there is no message to edit"),
        (("--turn", "2", "-a", "nobody:model"), "nobody"),
        ((), "--turn"),
    ],
)
def test_wrong_use_is_refused_in_a_line(pidgin: Pidgin, flags: tuple[str, ...], said: str) -> None:
    """What cannot be is named, and nothing is made."""
    parent = held(pidgin)
    before = logs_in(ROOT)
    folders = list(OutputRoot().folders())
    assert said in error_of(pidgin("branch", parent, *flags))
    assert logs_in(ROOT) == before
    assert [folder.path for folder in OutputRoot().folders()] == [folder.path for folder in folders]


# The tree


def test_the_tree_shows_parents_and_children_wherever_they_lie(pidgin: Pidgin) -> None:
    """From any of its members, `show --tree` draws the whole tree over all experiments."""
    parent = held(pidgin)
    child = branched(pidgin, parent, 2).start["conversation_id"]
    grandchild = branched(pidgin, child, 3).start["conversation_id"]
    alone = held(pidgin)
    for each in (parent, child, grandchild, parent.partition("-")[0]):
        said = pidgin("show", each, "--tree")
        assert said.status == 0
        lines = said.out.splitlines()
        assert [name in line for name, line in zip((parent, child, grandchild), lines, strict=True)] == [True] * 3
        assert "after turn 2" in lines[1]
        assert "after turn 3" in lines[2]
    (tree,) = json.loads(pidgin("show", parent, "--tree", "--json").out)
    assert tree["children"][0]["children"][0]["conversation_id"] == grandchild
    assert "branches off nothing" in pidgin("show", alone, "--tree").out
    the_log(parent).unlink()
    assert "(its record is gone)" in pidgin("show", child, "--tree").out


def test_a_branch_whose_parent_is_gone_can_still_be_read(pidgin: Pidgin) -> None:
    """`show` reads what the branch has; going on says what is missing."""
    parent = held(pidgin)
    found = branched(pidgin, parent, 2)
    name = found.start["conversation_id"]
    log = the_log(name)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:8]))
    the_log(parent).unlink()
    assert found.texts[0].split()[0] in pidgin("show", name).out
    manifest = found.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"completed"', '"running"'))  # as if its process had died
    said = pidgin("resume", found.id, "--display", "quiet")
    assert said.status != 0
    assert parent in said.err
    assert log.read_bytes() == b"".join(lines[:8])


def test_chosen_names_stay(pidgin: Pidgin) -> None:
    """Who has chosen a name in the shared part bears it in the branch's record, whatever model takes the seat."""
    parent = held(pidgin, "--choose-names")
    names = {event["agent_id"]: event["name"] for event in read(the_log(parent)).of("AgentNamed")}
    found = branched(pidgin, parent, 0, "-a", "local:test?words=3")
    assert {agent["id"]: agent["name"] for agent in found.start["agents"]} == names
    assert not found.of("AgentNamed")


def test_twins_part_from_each_other_before_the_script_acts(pidgin: Pidgin) -> None:
    """With `twins` an un-intervened branch runs beside every conversation, and shares what came before its script."""
    Path("spec.yaml").write_text(
        f"""
agents:
  - {{id: a, model: "{MODEL}"}}
  - {{id: b, model: "{MODEL}"}}
max_turns: 4
repetitions: 2
seed: 4
twins: true
interventions:
  - {{turn: 3, inject: Speak of rivers.}}
"""
    )
    said = pidgin("run", "spec.yaml", "--display", "quiet")
    assert said.status == 0, said.err
    found = {record.start["conversation_id"]: record for record in map(read, logs_in(ROOT))}
    for log in logs_in(ROOT):
        check_record(read_record(log).events)
    twins = [record for record in found.values() if record.start.get("branch_of")]
    assert len(found) == 4
    assert len(twins) == 2
    for twin in twins:
        origin = twin.start["branch_of"]
        assert origin["turn"] == 2
        other = found[origin["conversation_id"]]
        assert other.of("Intervention")
        assert not twin.of("Intervention")
        assert "rivers" not in "".join(twin.texts)
        assert [event["message_index"] for event in twin.of("MessageComplete")] == [4, 5, 6, 7]
        assert (twin.start["seed"], twin.start["repetition"]) == (other.start["seed"], other.start["repetition"])
