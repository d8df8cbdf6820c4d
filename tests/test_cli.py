"""The command line as users and scripts meet it: flags, exit statuses, errors, and what is left on the disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Pidgin, Record, Said, error_of, pidgin, process, read, record, until
from loopback import Reply, Request, loopback_in_thread
from terminal import DEADLINE_S, ENVIRONMENT

from pidgin_cli.cli.app import cli
from pidgin_cli.conversation.control import Control
from pidgin_cli.core.events import MessageCompleteEvent
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.spec.awareness import PRESETS

__all__ = ["pidgin"]

TEST = ("-a", "local:test?words=8", "-b", "local:test?words=8")


def clean() -> None:
    shutil.rmtree("pidgin_output", ignore_errors=True)


@pytest.fixture
def held(pidgin: Pidgin) -> Callable[..., Record]:
    """Holds a conversation that has to go well, and gives its record. The next one starts on a clean disk."""

    def hold(*flags: str | Path, models: tuple[str, ...] = TEST, stdin: bytes = b"") -> Record:
        clean()
        said = pidgin("chat", *models, "-t", "1", "--display", "quiet", *flags, stdin=stdin)
        assert (said.status, said.err) == (0, "")
        return record()

    return hold


def nothing_made() -> None:
    assert not list(Path().glob("**/experiment_*"))


# Flags that shape a conversation


def test_every_agent_gets_its_model(held: Callable[..., Record]) -> None:
    """-a, -b and --agent seat agents in this order, and each speaks once in a turn."""
    found = held("--agent", "c=local:test?words=5", "--agent", "d=local:silent")
    assert [(agent["id"], agent["model"]) for agent in found.start["agents"]] == [
        ("a", "local:test?words=8"),
        ("b", "local:test?words=8"),
        ("c", "local:test?words=5"),
        ("d", "local:silent"),
    ]
    assert [event["agent_id"] for event in found.of("MessageComplete")] == ["a", "b", "c", "d"]


def test_self_play_has_two_names(held: Callable[..., Record]) -> None:
    """The same model twice gives two agents that can be told apart."""
    assert len({agent["name"] for agent in held().start["agents"]}) == 2


def test_opening_from_text_file_and_standard_input(held: Callable[..., Record]) -> None:
    """-p TEXT, -p @FILE and -p - record the same opening; the newline at the end of a file is not part of it."""
    text = "Wie geht es?\r\n\tÄ \u2028 \x00 end \u202e 🐦  "
    Path("opening file.txt").write_bytes(text.encode() + b"\n")
    assert held("-p", text.replace("\x00", "")).start["opening"] == text.replace("\x00", "")
    assert held("-p", "@opening file.txt").start["opening"] == text
    assert held("-p", "-", stdin=text.encode() + b"\r\n").start["opening"] == text
    assert held("-p", "-", stdin=b"\xef\xbb\xbfHello").start["opening"] == "Hello"


def test_opening_of_a_megabyte(held: Callable[..., Record]) -> None:
    """A megabyte from standard input comes whole into the record."""
    text = "Ein langer Text – und noch mehr davon. " * 25_000
    assert len(text.encode()) > 1_000_000
    assert held("-p", "-", stdin=text.encode()).start["opening"] == text


def test_a_value_that_looks_like_a_flag_is_a_value(held: Callable[..., Record]) -> None:
    """What follows -p is the opening, even if it reads like one of the options for single agents."""
    assert held("-p", "--think-a").start["opening"] == "--think-a"
    assert held("--stop-phrase", "--temp-a").start["spec"]["stop_phrases"]["a"] == "--temp-a"


def test_turns_and_name(held: Callable[..., Record]) -> None:
    """-t is the number of rounds; -n names record and folder."""
    found = held("-t", "3", "-n", "First try!")
    assert [event["turn_number"] for event in found.of("TurnComplete")] == [1, 2, 3]
    assert re.fullmatch(rf"experiment_{found.id}_first-try_\d{{8}}", found.folder.name)
    assert json.loads((found.folder / "manifest.json").read_text())["name"] == "First try!"


def test_output_flag_outranks_the_variable(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIDGIN_OUTPUT moves the records, -o moves them again, and what to type next says so."""
    monkeypatch.setenv("PIDGIN_OUTPUT", "by variable")
    said = pidgin("chat", *TEST, "-t", "1")
    assert said.out.endswith(f"pidgin show {record(Path('by variable')).id}\n")
    said = pidgin("chat", *TEST, "-t", "1", "-o", "by flag")
    found = record(Path("by flag"))
    assert said.out.endswith(f"pidgin show {found.id} -o 'by flag'\n")
    assert not Path("pidgin_output").exists()
    assert pidgin("show", found.id, "-o", "by flag").status == 0
    assert pidgin("show", found.id).status == 2


@pytest.mark.parametrize("preset", [*PRESETS, "full"])
def test_awareness_preset(held: Callable[..., Record], preset: str) -> None:
    """-w gives every agent the preset's system prompt; --awareness-ID gives it to one."""
    found = held("-w", preset)
    texts = [event.get("text") for event in found.of("SystemPrompt")]
    assert [text is None for text in texts] == [preset == "none"] * 2
    assert [agent["awareness"] for agent in found.start["agents"]] == [preset] * 2
    if preset not in ("none", "firm", "full"):
        assert held("-w", preset, "--awareness-b", "firm").of("SystemPrompt")[1]["text"] != texts[1]


AWARENESS = """
name: lab notes
base: basic
prompts:
  0: {agent_b: before you speak}
  1: {both: to you both, a: to a alone}
"""


def test_awareness_file(pidgin: Pidgin) -> None:
    """A YAML file gives each agent its texts at their turn, and the system prompt of its base."""
    Path("own.yaml").write_text(AWARENESS)
    assert pidgin("chat", *TEST, "-t", "1", "-w", "own.yaml", "--display", "quiet").status == 0
    found = record()
    said = [(event["turn_number"], event["audience"], event["text"]) for event in found.of("Intervention")]
    assert sorted(said) == [
        (0, ["b"], "before you speak"),
        (1, ["a"], "to you both\n\nto a alone"),
        (1, ["b"], "to you both"),
    ]
    assert {event["source"] for event in found.of("Intervention")} == {"awareness:lab notes"}
    assert all("AI" in event["text"] for event in found.of("SystemPrompt"))


def test_awareness_file_for_one_agent(pidgin: Pidgin) -> None:
    """A file given to one agent says nothing to the others, and tells what of it is passed over."""
    Path("own.yaml").write_text(AWARENESS)
    said = pidgin("chat", *TEST, "-t", "1", "--awareness-b", "own.yaml", "--display", "quiet")
    assert said.err == "Note: own.yaml serves agent b only: its text for a at turn 1 is not used\n"
    assert {tuple(event["audience"]) for event in record().of("Intervention")} == {("b",)}
    assert record().of("SystemPrompt")[0].get("text") is None


def test_temperature(held: Callable[..., Record]) -> None:
    """--temperature is everybody's, --temp-ID one agent's; 0 is a value, and what is not set is absent."""
    assert held().settings == [{}, {}]
    assert held("--temperature", "0").settings == [{"temperature": 0.0}] * 2
    found = held("--temperature", "0.5", "--temp-b", "0.0", "--temp-c=2", "--agent", "c=local:test")
    assert [settings["temperature"] for settings in found.settings] == [0.5, 0.0, 2.0]
    assert found.of("MessageRequest")[1]["parameters"]["temperature"] == 0.0


def test_max_tokens_and_thinking(held: Callable[..., Record]) -> None:
    """--max-tokens, --think, --think-ID and --think-budget reach the agents that they are for, and no others."""
    assert held("--max-tokens", "99").settings == [{"max_tokens": 99}] * 2
    assert held("--think").settings == [{"think": True}] * 2
    found = held("--think-b")
    assert found.settings == [{}, {"think": True}]
    assert [event["agent_id"] for event in found.of("ThinkingComplete")] == ["b"]
    assert held("--think-budget", "500").settings == [{"think": True, "think_budget": 500}] * 2
    assert held("--think-a", "--think-budget", "500").settings == [{"think": True, "think_budget": 500}, {}]


def test_choose_names(pidgin: Pidgin) -> None:
    """--choose-names: the names that agents pick are recorded, shown and used."""
    models = ("-a", "local:test?name=Wren&words=5", "-b", "local:test?name=Finch&words=5")
    said = pidgin("chat", *models, "-t", "1", "--choose-names")
    assert [(event["agent_id"], event["name"]) for event in record().of("AgentNamed")] == [
        ("a", "Wren"),
        ("b", "Finch"),
    ]
    assert "test-a chose the name Wren\n" in said.out
    assert "\nFinch  local:test\n" in said.out


def test_who_speaks_when(held: Callable[..., Record]) -> None:
    """--order and --first decide who speaks; random ones by the seed."""
    assert held("--first", "b", "-t", "2").of("TurnStart")[1]["speakers"] == ["b", "a"]
    flags = ("--order", "random", "-t", "12", "--agent", "c=local:test?words=8", "--seed", "5")
    orders = [tuple(event["speakers"]) for event in held(*flags).of("TurnStart")]
    assert len(set(orders)) > 2
    assert orders == [tuple(event["speakers"]) for event in held(*flags).of("TurnStart")]
    openers = {held("--first", "random", "--seed", str(seed)).of("MessageComplete")[0]["agent_id"] for seed in range(8)}
    assert openers == {"a", "b"}


def test_stop_phrase_ends_the_conversation(held: Callable[..., Record]) -> None:
    """--stop-phrase: whoever says it ends the conversation, which is then complete."""
    models = ("-a", "local:test", "-b", "local:test?reply=So+GOOD+BYE+then")
    found = held("--stop-phrase", "GOOD BYE", "-t", "9", models=models)
    assert (found.end["status"], found.end["end_reason"], len(found.texts)) == ("completed", "stop_phrase", 2)


def test_seed(held: Callable[..., Record]) -> None:
    """The same seed gives the same texts, another one gives others; one that was drawn is recorded."""
    first, again, other = held("--seed", "7"), held("--seed", "7"), held("--seed", "8")
    assert first.texts == again.texts
    assert first.texts != other.texts
    drawn = held()
    seed = re.search(r"^seed: (\d+)$", (drawn.folder / "spec.yaml").read_text(), re.MULTILINE)
    assert seed is not None
    assert held("--seed", seed[1]).texts == drawn.texts


@pytest.mark.parametrize(
    ("flags", "kind", "status"),
    [
        ((), "ContextLimit", "stopped"),
        (("--context", "window"), "ContextTruncation", "completed"),
        (("--allow-truncation",), "ContextTruncation", "completed"),
        (("--context", "summarise"), "HistoryCompacted", "completed"),
    ],
)
def test_context_policies(held: Callable[..., Record], flags: tuple[str, ...], kind: str, status: str) -> None:
    """--context says what happens when --context-limit is reached; --allow-truncation is its `window`."""
    models = ("-a", "local:test?words=30", "-b", "local:test?words=30")
    found = held("-t", "8", "--context-limit", "400", "--max-tokens", "60", *flags, models=models)
    assert found.of(kind)
    assert found.end["status"] == status


def test_meditation(pidgin: Pidgin) -> None:
    """--meditation seats agent a before a partner that says nothing, and the screen says so."""
    said = pidgin("chat", "-a", "local:test?words=5", "--meditation", "-t", "2")
    assert said.out.count("(silence)") == 2
    assert record().texts[1::2] == ["", ""]
    assert pidgin("chat", *TEST, "--meditation").status == 2


def test_silence_gets_no_settings(pidgin: Pidgin) -> None:
    """What is asked of all models is asked of agent a only where the other is silence."""
    flags = ("--think", "--think-budget", "64", "--effort", "low", "--temperature", "1", "--max-tokens", "50")
    said = pidgin("chat", "-a", "local:test?words=5", "--meditation", "-t", "1", "--lenient", *flags)
    assert (said.status, said.err) == (0, "")
    a, b = record().of("MessageRequest")
    assert "think" in a["parameters"]
    assert not {"think", "think_budget", "effort", "temperature", "max_tokens"} & set(b.get("parameters", {}))


def test_a_contradiction_that_is_none(pidgin: Pidgin) -> None:
    """A short flag beside the long one that says the same is fine."""
    flags = ("--tail", "--display", "tail", "--allow-truncation", "--context", "window")
    assert pidgin("chat", *TEST, "-t", "1", *flags).status == 0
    assert "--display tail" in error_of(pidgin("resume", record().id, "--tail", "--display", "quiet"))


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        ("local:test?fail=hang_start@1", "--timeout-first-token"),
        ("local:test?fail=hang@1", "--timeout-gap"),
        ("local:test?chunk_ms=20&words=60", "--timeout-total"),
    ],
)
def test_timeouts(pidgin: Pidgin, model: str, flag: str) -> None:
    """A reply that takes longer than allowed fails the conversation: exit 1, the record kept, how to go on."""
    said = pidgin("chat", "-a", "local:test", "-b", model, flag, "0.1", "--retries", "0", "--display", "quiet")
    found = record()
    assert said.status == 1
    assert said.out == f"pidgin_output/experiments/{found.folder.name}\n"
    assert said.err.startswith("Error: ProviderTimeout: ")
    assert said.err.endswith(f"; go on with: pidgin resume {found.id}\n")
    assert (found.end["status"], len(found.texts)) == ("failed", 1)


def test_timeouts_are_recorded(held: Callable[..., Record]) -> None:
    """Every time-out can be set; 0 lifts it."""
    flags = ("--timeout-connect", "3", "--timeout-first-token", "0", "--timeout-gap", "4.5", "--timeout-total", "99")
    assert held(*flags).start["spec"]["timeouts"] == {
        "connect_s": 3.0,
        "first_token_s": None,
        "gap_s": 4.5,
        "total_s": 99.0,
    }


@pytest.mark.parametrize(("retries", "status"), [("1", 1), ("2", 0)])
def test_retries(pidgin: Pidgin, retries: str, status: int) -> None:
    """--retries is how often a failed request is tried again; the waits are shown."""
    models = ("-a", "local:test?words=8&fail=rate_limit@1x2", "-b", "local:test?words=8")
    said = pidgin("chat", *models, "-t", "1", "--retries", retries)
    assert said.status == status
    assert re.search(r"↻ rate limit of local: .*; attempt 2 in 50 ms\n", said.out)
    if status == 0:
        assert record().of("MessageComplete")[0]["attempt"] == 3


@pytest.mark.parametrize("durability", ["message", "strict", "none"])
def test_durability(held: Callable[..., Record], durability: str) -> None:
    """--durability is part of what is recorded."""
    assert held("--durability", durability).start["spec"]["durability"] == durability


def test_what_models_are_sent(tmp_path: Path) -> None:
    """Temperature, limits, tag and openings of the flags are in the requests that go out."""
    with loopback_in_thread() as server:
        flags = ("-t", "1", "--temperature", "0", "--max-tokens", "77", "--prompt-tag", "", "-p", "Hello you")
        done = process("chat", "-a", "openai:gpt-x", "-b", "ollama:llama3.2", *flags, cwd=tmp_path, env=server.env)
        assert done.status == 0
        (openai, ollama) = server.chats
    assert openai.body["temperature"] == 0
    assert 77 in (openai.body.get("max_tokens"), openai.body.get("max_completion_tokens"))
    assert openai.messages == [("user", "Hello you")]
    assert (ollama.body["options"]["temperature"], ollama.body["options"]["num_predict"]) == (0, 77)
    assert ollama.messages[0] == ("user", "Hello you\n\nHello from the loopback.")


def test_prompt_tag(held: Callable[..., Record]) -> None:
    """--prompt-tag stands before the opening; an empty one is recorded as such."""
    assert held().start["prompt_tag"] == "HUMAN"
    assert held("--prompt-tag", "Gast").start["prompt_tag"] == "Gast"
    assert held("--prompt-tag", "").start["prompt_tag"] == ""


# Displays


def test_display_chat_in_a_pipe(pidgin: Pidgin) -> None:
    """Piped, the talk is plain text with the whole messages, facts, totals, and what to type next."""
    said = pidgin("chat", *TEST, "-t", "1", "-p", "Say it")
    found = record()
    assert "\x1b" not in said.out
    for text in found.texts:
        assert f"\n{text}\n" in said.out
    for shown in ("[HUMAN] Say it", "--- turn 1/1 ---", " tokens · $0 · first token ", "1 turn · 2 messages · "):
        assert shown in said.out
    assert said.out.endswith(
        f"record: pidgin_output/experiments/{found.folder.name}\nread it again: pidgin show {found.id}\n"
    )


@pytest.mark.parametrize("flag", [("--tail",), ("--display", "tail")])
def test_display_tail(pidgin: Pidgin, flag: tuple[str, ...]) -> None:
    """tail shows every event on one line."""
    said = pidgin("chat", *TEST, "-t", "1", *flag)
    kinds = [line.split()[1] for line in said.out.splitlines()[:-2]]
    assert kinds == [event["event_type"].removesuffix("Event") for event in record().events]


def test_display_quiet(pidgin: Pidgin) -> None:
    """quiet prints one line: where the record is."""
    said = pidgin("chat", *TEST, "-t", "1", "--display", "quiet")
    assert said.out == f"pidgin_output/experiments/{record().folder.name}\n"


def test_json_is_the_record(pidgin: Pidgin) -> None:
    """--json prints the lines of the record, to the byte, and nothing else."""
    said = pidgin("chat", *TEST, "-t", "2", "--json")
    (log,) = record().folder.glob("conv_*")
    assert said.out == log.read_text()
    assert said.err == ""


def test_thinking_is_shown_on_request(pidgin: Pidgin) -> None:
    """Thinking is recorded anyway and shown with --show-thinking or --think; system prompts with their flag."""
    models = ("-a", "local:test?thinking=1&words=8", "-b", "local:test?words=8", "-t", "1", "-w", "basic")
    said = pidgin("chat", *models)
    found = record()
    (thought,) = [event["content"] for event in found.of("ThinkingComplete")]
    prompt = found.of("SystemPrompt")[0]["text"]
    assert thought not in said.out
    assert prompt not in said.out
    shown = pidgin("show", found.id, "--show-thinking", "--show-system-prompts").out
    assert f"(thinking) {thought}\n" in shown
    assert f"system prompt of test-a\n{prompt}\n" in shown
    for flag in ("--show-thinking", "--think-b"):
        assert "(thinking) " in pidgin("chat", *models, flag).out


# list, show, rebuild, doctor, completion


@pytest.fixture
def two(pidgin: Pidgin) -> tuple[str, str]:
    """Ids of two records named `first` and `second`."""
    for name in ("first", "second"):
        assert pidgin("chat", *TEST, "-t", "1", "-n", name, "--display", "quiet").status == 0
    newest, oldest = (entry["experiment_id"] for entry in json.loads(pidgin("list", "--json").out))
    return oldest, newest


def test_list(pidgin: Pidgin, two: tuple[str, str]) -> None:
    """list has a line for every record, newest first; --json is one array of manifests."""
    lines = pidgin("list").out.splitlines()
    assert lines[0].split() == ["id", "name", "status", "done", "messages", "tokens", "cost", "begun"]
    assert [line.split()[:5] for line in lines[1:]] == [
        [two[1], "second", "completed", "1/1", "2"],
        [two[0], "first", "completed", "1/1", "2"],
    ]
    entries = json.loads(pidgin("list", "--json").out)
    assert [entry["name"] for entry in entries] == ["second", "first"]
    assert json.loads(pidgin("show", "first", "--json").out) == [entries[1]]


def test_list_of_nothing(pidgin: Pidgin) -> None:
    """Without records, list says how to begin, or prints an empty array; it makes no folder."""
    assert "pidgin chat -a local:test -b local:test" in pidgin("list").out
    assert json.loads(pidgin("list", "--json").out) == []
    assert not Path("pidgin_output").exists()


def test_show_finds_by_id_prefix_name_and_path(pidgin: Pidgin, two: tuple[str, str]) -> None:
    """An experiment is found by id, by the beginning of one, by name, by folder; a conversation by id and by path."""
    (folder,) = Path().glob("pidgin_output/experiments/*_first_*")
    (log,) = folder.glob("conv_*")
    message = read(log).texts[0]
    for target in (two[0], two[0][:5], "first", "First", folder):
        said = pidgin("show", target)
        assert said.out.startswith(f"{two[0]}  first  completed\n1 of 1 conversation complete · 2 messages · ")
        assert message in said.out
    for target in (f"{two[0]}-1", log):
        assert pidgin("show", target).out.splitlines()[0].startswith("a  test-a")
        assert json.loads(pidgin("show", target, "--json").out) == read(log).events


def test_names_that_are_not_there(pidgin: Pidgin, two: tuple[str, str]) -> None:
    """A name that nothing has is wrong use and lists what there is; an ambiguous one lists the ids."""
    assert pidgin("chat", *TEST, "-t", "1", "-n", "first", "--display", "quiet").status == 0
    for target in ("nothing", "", "x" * 400, "../..", "first.jsonl"):
        for verb in ("show", "resume", "rebuild"):
            assert two[0] in error_of(pidgin(verb, target))
    assert "there are" in error_of(pidgin("show", f"{two[0]}-9"))
    ambiguous = error_of(pidgin("resume", "first"))
    assert two[0] in ambiguous
    assert two[1] not in ambiguous
    assert "ambiguous" in ambiguous


def test_a_name_that_looks_like_a_conversation(pidgin: Pidgin) -> None:
    """An experiment whose name has the form of a conversation's id is shown as the experiment."""
    assert pidgin("chat", *TEST, "-t", "1", "-n", "painting-1", "--display", "quiet").status == 0
    assert json.loads(pidgin("show", "painting-1", "--json").out)[0]["name"] == "painting-1"


def test_damaged_records(pidgin: Pidgin, two: tuple[str, str]) -> None:
    """Broken and torn lines, a lost beginning and a lost manifest are reported; what is left is read."""
    (folder,) = Path().glob("pidgin_output/experiments/*_first_*")
    (log,) = folder.glob("conv_*")
    lines = log.read_bytes().splitlines(keepends=True)
    text = read(log).texts[1]
    log.write_bytes(b"".join([b'{"broken\n', *lines[1:], b'{"torn']))
    (folder / "manifest.json").write_text("{")
    said = pidgin("show", "first")
    assert said.status == 0
    assert text in said.out
    assert "line 1: broken" in said.err
    assert f"line {len(lines) + 1}: torn" in said.err
    assert "first" in pidgin("list").out
    assert pidgin("rebuild", "--all").status == 0
    assert json.loads((folder / "manifest.json").read_text())["totals"]["messages"] == 2
    log.unlink()
    log.mkdir()
    (folder / "manifest.json").unlink()
    said = pidgin("list")
    assert said.status == 0
    assert "second" in said.out
    assert two[0] in said.err


def test_rebuild_gives_the_same_manifest(pidgin: Pidgin, two: tuple[str, str]) -> None:
    """A manifest that was lost comes back from the logs as it was."""
    (manifest,) = Path().glob("pidgin_output/experiments/*_first_*/manifest.json")
    before = json.loads(manifest.read_text())
    manifest.unlink()
    assert pidgin("rebuild", "first").status == 0
    after = json.loads(manifest.read_text())
    assert after == before
    assert pidgin("rebuild").status == 2


def test_layout_on_disk(held: Callable[..., Record]) -> None:
    """A record lies where DESIGN 5.1 says, with nothing left over from making it."""
    found = held("-n", "lay out")
    root = Path("pidgin_output/experiments")
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == [
        "active",
        found.folder.name,
        f"{found.folder.name}/conv_{found.id}-1_events.jsonl",
        f"{found.folder.name}/experiment_events.jsonl",
        f"{found.folder.name}/manifest.json",
        f"{found.folder.name}/spec.yaml",
        "logs",
        f"logs/experiment_{found.id}.log",
    ]
    assert re.fullmatch(r"[a-z0-9]{8}", found.id)


def test_doctor(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """doctor says what is there without showing keys or making anything; a place that cannot be used is a problem."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-planted-secret")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    findings = json.loads(pidgin("doctor", "--json").out)
    by_check = {finding["check"]: finding for finding in findings}
    assert by_check["anthropic key"]["detail"] == "ANTHROPIC_API_KEY is set"
    assert by_check["openai key"]["status"] == "missing"
    assert "ollama serve" in by_check["ollama server"]["detail"]
    assert by_check["output"]["status"] == "ok"
    said = pidgin("doctor")
    assert said.status == any(finding["status"] == "problem" for finding in findings)
    assert "secret" not in said.out + json.dumps(findings)
    assert list(Path().iterdir()) == []
    Path("pidgin_output").write_text("")
    said = pidgin("doctor")
    assert said.status == 1
    assert re.search(r"✗ output .*not a folder; choose another with -o", said.out)


def test_version_and_help(pidgin: Pidgin) -> None:
    """--version prints it; help lists every command once, in one whole line; each has help with an example."""
    assert re.fullmatch(r"pidgin, version \d+\.\d+\.\d+\n", pidgin("--version").out)
    listed = re.findall(r"^  (\w+)  +(\S.*)", pidgin("--help").out, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(n for n, command in cli.commands.items() if not command.hidden)
    assert [text for _, text in listed if text.endswith("...")] == []
    for command, _ in listed:
        assert re.search(r"Example:\s+\S*.*pidgin", pidgin(command, "--help").out), command


@pytest.mark.parametrize("group", [(), ("keys",), ("cache",), ("spec",)])
def test_groups_without_a_command(pidgin: Pidgin, group: tuple[str, ...]) -> None:
    """Without a command its help is shown, which is no error message, and none of its lines is cut."""
    said = pidgin(*group)
    assert said == Said(2, "", pidgin(*group, "--help").out)
    assert "..." not in said.err.replace("[ARGS]...", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(pidgin: Pidgin, shell: str) -> None:
    """The completion script of every shell names the variable that asks for completions."""
    assert f"_PIDGIN_COMPLETE={shell}_complete" in pidgin("completion", shell).out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pidgin re", {"resume", "rebuild"}),
        ("pidgin chat -a cla", {"claude"}),
        ("pidgin chat --dur", {"--durability"}),
        ("pidgin show FIRST", {"FIRST"}),
    ],
)
def test_completions(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch, words: str, wanted: set[str]) -> None:
    """Commands, flags, models and records complete."""
    assert pidgin("chat", *TEST, "-t", "1", "--display", "quiet").status == 0
    words, wanted = words.replace("FIRST", record().id), {word.replace("FIRST", record().id) for word in wanted}
    monkeypatch.setenv("_PIDGIN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert wanted <= {line.partition(",")[2] for line in pidgin().out.splitlines()}


# Bad input


WRONG = {
    "no agents": ((), "-a local:test"),
    "one agent": (("-a", "local:test"), "For self-play"),
    "unknown alias": (("-a", "cluade", "-b", "local:test"), "claude"),
    "unknown provider": (("-a", "antropic:claude-3", "-b", "local:test"), "anthropic:"),
    "no model": (("-a", "openai:", "-b", "local:test"), "openai:"),
    "agent twice": ((*TEST, "--agent", "b=local:test"), "already"),
    "agent without model": ((*TEST, "--agent", "c"), "c=gpt"),
    "bad agent id": ((*TEST, "--agent", "C=local:test"), "such as c=gpt"),
    "reserved agent id": ((*TEST, "--agent", "both=local:test"), "both"),
    "temperature of nobody": ((*TEST, "--temp-c", "1"), "only a, b"),
    "awareness of nobody": ((*TEST, "--awareness-z", "basic"), "only a, b"),
    "thinking of nobody": ((*TEST, "--think-z"), "only a, b"),
    "too hot": ((*TEST, "--temperature", "2.1"), "0<=x<=2"),
    "too hot for one": ((*TEST, "--temp-a", "2.1"), "--temp-a"),
    "too cold for one": ((*TEST, "--temp-b=-1"), "--temp-b"),
    "not a number": ((*TEST, "--temperature", "nan"), "--temperature"),
    "no number for one": ((*TEST, "--temp-b", "warm"), "--temp-b"),
    "no value": ((*TEST, "--temp-b"), "--temp-b"),
    "a value too many": ((*TEST, "--think-b=no"), "--think-b"),
    "no turns": ((*TEST, "-t", "0"), "x>=1"),
    "turns in words": ((*TEST, "-t", "many"), "-t"),
    "who opens": ((*TEST, "--first", "c"), "a, b; or random"),
    "order": ((*TEST, "--order", "wild"), "alternate"),
    "display": ((*TEST, "--display", "huge"), "quiet"),
    "endless time-out": ((*TEST, "--timeout-gap", "inf"), "--timeout-gap"),
    "negative time-out": ((*TEST, "--timeout-total", "-1"), "--timeout-total"),
    "contradiction": ((*TEST, "--allow-truncation", "--context", "summarise"), "--context window"),
    "contradiction to the default": ((*TEST, "--allow-truncation", "--context", "stop"), "--context window"),
    "two displays": ((*TEST, "--tail", "--display", "chat"), "--display tail"),
    "two outputs": ((*TEST, "--tail", "--json"), "--json and --tail"),
    "a setting of silence": (("-a", "local:test", "--meditation", "--think-b"), "--think-b: with --meditation"),
    "unknown flag": ((*TEST, "--temprature", "1"), "--temperature"),
    "preset": ((*TEST, "-w", "basik"), "did you mean basic?"),
    "awareness file that is not there": ((*TEST, "-w", "none.yaml"), "No such file"),
    "awareness file that is a folder": ((*TEST, "-w", "."), "Is a directory"),
    "awareness that is no YAML": ((*TEST, "-w", "torn.yaml"), "not valid YAML"),
    "awareness with a wrong key": ((*TEST, "-w", "key.yaml"), "promts"),
    "awareness for a stranger": ((*TEST, "--awareness-a", "stranger.yaml"), "both, a, b"),
    "parameter of local:test": (("-a", "local:test?wrods=3", "-b", "local:test"), "did you mean 'words'?"),
    "value of local:test": (("-a", "local:test?words=x", "-b", "local:test"), "words='x'"),
    "local model": (("-a", "local:tset", "-b", "local:test"), "test"),
    "recording": (("-a", "replay:nothing", "-b", "local:test"), "nothing"),
    "long name": ((*TEST, "-n", "x" * 301), "300"),
    "empty name": ((*TEST, "-n", ""), "-n"),
    "name that is not UTF-8": ((*TEST, "-n", "caf\udce9"), "UTF-8"),
    "long tag": ((*TEST, "--prompt-tag", "x" * 61), "60"),
    "empty stop phrase": ((*TEST, "--stop-phrase", ""), "--stop-phrase"),
    "empty opening": ((*TEST, "-p", ""), "-p"),
    "opening without text": ((*TEST, "-p", " \n"), "-p"),
    "nothing on standard input": ((*TEST, "-p", "-"), "-p -"),
    "opening that is not UTF-8": ((*TEST, "-p", "caf\udce9"), "UTF-8"),
    "opening from nowhere": ((*TEST, "-p", "@nowhere"), "No such file"),
    "opening from a folder": ((*TEST, "-p", "@."), "Is a directory"),
    "opening in Latin-1": ((*TEST, "-p", "@latin.txt"), "position 3"),
    "opening in UTF-16": ((*TEST, "-p", "@wide.txt"), "not UTF-8"),
    "a file for the output": ((*TEST, "-o", "latin.txt"), "choose another with -o"),
    "below a file": ((*TEST, "-o", "latin.txt/below"), "choose another with -o"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(pidgin: Pidgin, case: str) -> None:
    """Wrong use: exit 2, one line on standard error that says what is right, and nothing made."""
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Path("wide.txt").write_bytes("wide".encode("utf-16"))
    Path("torn.yaml").write_text("prompts: {1: [oh")
    Path("key.yaml").write_text("promts: {1: {both: hi}}")
    Path("stranger.yaml").write_text("prompts: {1: {c: hi}}")
    flags, hint = WRONG[case]
    assert hint in error_of(pidgin("chat", *flags))
    assert not Path("pidgin_output").exists()
    nothing_made()


def test_wrong_commands(pidgin: Pidgin) -> None:
    """An unknown command names the nearest; commands that need a record say so."""
    assert "Did you mean resume?" in error_of(pidgin("resum"))
    assert "--all" in error_of(pidgin("resume"))
    assert "TARGET" in error_of(pidgin("show"))
    Path("file").write_text("")
    for command in (("list",), ("show", "x"), ("resume", "--all"), ("rebuild", "--all")):
        assert "not a folder" in error_of(pidgin(*command, "-o", "file"))


def test_missing_keys_are_named_all_at_once(pidgin: Pidgin) -> None:
    """Before anything starts: which variable, for which agent, for all of them."""
    said = pidgin("chat", "-a", "claude", "-b", "local:test", "--agent", "c=openai:gpt-x")
    assert (said.status, said.out) == (2, "")
    assert re.fullmatch(
        r"Error: agent a \(anthropic:\S+\) needs a key: export ANTHROPIC_API_KEY=…\n"
        r"agent c \(openai:gpt-x\) needs a key: export OPENAI_API_KEY=…\n",
        said.err,
    )
    assert not Path("pidgin_output").exists()


@pytest.mark.parametrize(
    ("variable", "model", "address"),
    [
        ("OPENAI_BASE_URL", "openai:x", "http://[bad"),
        ("ANTHROPIC_BASE_URL", "anthropic:x", "no address"),
        ("OLLAMA_HOST", "ollama:x", "http://host:port:7"),
    ],
)
def test_bad_addresses(tmp_path: Path, variable: str, model: str, address: str) -> None:
    """An address that is none is named by its variable before anything starts."""
    done = process("chat", "-a", "local:test", "-b", model, cwd=tmp_path, env={variable: address})
    assert variable in error_of(done)
    assert not list(tmp_path.glob("**/experiment_*"))


def test_ollama_is_down(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts, and the line says how to start Ollama."""
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    assert "ollama serve" in error_of(pidgin("chat", "-a", "local:test", "-b", "ollama:llama3.2"))
    nothing_made()


def test_ollama_model_is_missing(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nobody is asked: the line says how to get it. --yes gets it and goes on."""
    with loopback_in_thread() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        models = ("-a", "local:test", "-b", "ollama:tiny[red]", "-t", "1", "--display", "quiet")
        error = error_of(pidgin("chat", *models))
        assert "ollama pull tiny[red] (or give --yes)" in error
        Path("file").write_text("")
        assert "not a folder" in error_of(pidgin("chat", *models, "--yes", "-o", "file"))
        assert not [request for request in server.requests if request.path == "/api/pull"]
        nothing_made()
        said = pidgin("chat", *models, "--yes")
        assert (said.status, said.err) == (0, "Ollama has tiny[red] now\n")
        assert record().texts[1] == "Hello from the loopback."
        assert "does not exist" in error_of(pidgin("chat", "-a", "ollama:no-such", "-b", "local:test", "--yes"))


NAMES = [
    "a'b\"c",
    "../../etc/passwd",
    "a/b\\c",
    "x" * 300,
    "🐦",
    "-n",
    "$(touch pwned); `id`",
    "a\nb",
    "\x1b[31mred",
    ".",
]


@pytest.mark.parametrize("name", NAMES)
def test_strange_names(pidgin: Pidgin, name: str) -> None:
    """Any name up to 300 characters is recorded as it is; folder and screen get a harmless form of it."""
    assert pidgin("chat", *TEST, "-t", "1", "--display", "quiet", f"--name={name}").status == 0
    assert [path.name for path in Path().iterdir()] == ["pidgin_output"]
    found = record()
    assert re.fullmatch(r"experiment_[a-z0-9]{8}(_[a-z0-9-]{1,60})?_\d{8}", found.folder.name)
    assert json.loads(pidgin("list", "--json").out)[0]["name"] == name
    said = pidgin("list")
    assert len(said.out.splitlines()) == 2
    assert "\x1b" not in said.out + pidgin("show", found.id).out


def test_working_directory_with_an_apostrophe(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, apostrophes and umlauts on the way to the record do no harm."""
    place = Path('it\'s a "dir" – ä')
    place.mkdir()
    monkeypatch.chdir(place)
    assert pidgin("chat", *TEST, "-t", "1", "-o", "o'ut put").out.endswith("""-o 'o'"'"'ut put'\n""")
    assert pidgin("show", record(Path("o'ut put")).id, "-o", "o'ut put").status == 0


# Failures while it runs


def test_a_failure_ends_with_one(pidgin: Pidgin) -> None:
    """An error of a model fails the conversation: what was said is kept, the line says how to go on, exit 1."""
    models = ("-a", "local:test?words=8", "-b", "local:test?fail=auth@2")
    for flags in ((), ("--display", "quiet"), ("--json",), ("--tail",)):
        clean()
        said = pidgin("chat", *models, *flags)
        found = record()
        assert said.status == 1
        assert re.fullmatch(rf"Error: AuthenticationFailed: .*; go on with: pidgin resume {found.id}\n", said.err)
        assert (len(found.texts), found.end["status"]) == (3, "failed")
    assert json.loads(pidgin("list", "--json").out)[0]["status"] == "failed"


def test_keys_stay_secret(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is in nothing that is printed or written, not even when a server puts it into its error."""
    key = "sk-planted-0123456789"
    with loopback_in_thread(lambda _: Reply(status=401, body={"error": {"message": f"bad key {key}"}})) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, key if name.endswith("_KEY") else value)
        for model in ("openai:gpt-x", "anthropic:claude-x"):
            for flags in ((), ("--json",), ("--tail",)):
                said = pidgin("chat", "-a", "local:test", "-b", model, *flags)
                assert said.status == 1
                assert key not in said.out + said.err
        assert any(key in str(request.headers) for request in server.chats), "the key was never used"
    for command in (("list", "--json"), ("doctor",)):
        assert key not in pidgin(*command).out
    written = [path for path in Path().rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if key.encode() in path.read_bytes()]


def test_a_fault_of_ours_is_one_line(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody expected is told in one line with how to see more; the log has the traceback."""
    from pidgin_cli.providers.local import LocalProvider

    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody expected this") from ValueError(key)

    key = "sk-planted-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with monkeypatch.context() as patch:
        patch.setattr(LocalProvider, "stream_response", broken)
        said = pidgin("chat", *TEST, "--display", "quiet")
    assert said.status == 1
    assert said.err.startswith("Error: ZeroDivisionError: nobody expected this; go on with: pidgin resume ")
    assert record().end["end_reason"] == "harness_error"
    (log,) = Path().glob("pidgin_output/experiments/logs/*.log")
    assert "Traceback" in log.read_text()
    assert "ValueError: …" in log.read_text()
    assert key not in log.read_text()
    monkeypatch.setattr("pidgin_cli.cli.records.list_records", broken)
    assert "PIDGIN_DEBUG=1" in error_of(pidgin("list"), 1)


def test_a_broken_display_does_not_harm_the_conversation(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the display breaks, the conversation is completed without it."""
    from pidgin_cli.monitor.chat import ChatDisplay

    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(ChatDisplay, "live", broken)
    assert pidgin("chat", *TEST, "-t", "2").status == 0
    assert (record().end["status"], len(record().texts)) == ("completed", 4)
    assert record().of("Error") == []


# Going on


class Trip:
    """Answers like a model, and does something at its n-th request, while the reply is under way."""

    def __init__(self, at: int, act: Callable[[], Reply | None]) -> None:
        self.at = at
        self.act = act
        self.asked = 0

    def __call__(self, request: Request) -> Reply:
        self.asked += 1
        done = self.act() if self.asked == self.at else None
        return done or Reply(f"Answer {self.asked}.")


OPENAI = ("-a", "openai:gpt-x", "-b", "openai:gpt-y", "-t", "3")


def test_resume_of_a_failed_conversation(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that failed goes on where it was, and nothing stored is asked again."""
    with loopback_in_thread(Trip(4, lambda: Reply(status=400, body={"error": {"message": "no"}}))) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        assert pidgin("chat", *OPENAI).status == 1
        assert len(record().texts) == 3
        before = record().texts
        said = pidgin("resume", record().id)
        assert said.status == 0
        assert "going on at turn 2" in said.out
        assert before[-1] in said.out
        found = record()
        assert found.texts[:3] == before
        assert (len(found.texts), found.end["status"]) == (6, "completed")
        assert len(server.chats) == 7
    said = pidgin("resume", found.id)
    assert (said.status, said.err) == (0, "")
    assert said.out == f"{found.id} is complete; read it with: pidgin show {found.id}\n"
    assert pidgin("resume", "--all").status == 0


def test_resume_shows_where_the_talk_was(pidgin: Pidgin) -> None:
    """Before it goes on, the last two turns are shown again, and nothing from before."""
    models = ("-a", "local:test?words=8", "-b", "local:test?fail=auth@6")
    assert pidgin("chat", *models).status == 1
    texts = record().texts
    recalled = pidgin("resume", record().id).out.partition("going on at turn 6")[0]
    assert [text for text in texts if text in recalled] == texts[8:]
    recalled = pidgin("resume", record().id, "--tail").out.partition("ConversationResumed")[0]
    assert re.findall(r"(?:TokenUsage|MessageComplete) +([ab])", recalled) == ["a", "a", "b", "b", "a", "a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_without_a_terminal_stops_after_the_message(
    pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM finish the message and save: exit 130, no process file left, and resume goes on."""
    taken = threading.Event()
    stop = Control.stop

    def stopping(*args: Any, **how: Any) -> None:
        stop(*args, **how)
        taken.set()

    def interrupt() -> None:
        os.kill(os.getpid(), number)
        assert taken.wait(DEADLINE_S)

    monkeypatch.setattr(Control, "stop", stopping)

    with loopback_in_thread(Trip(2, interrupt)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        said = pidgin("chat", *OPENAI)
        found = record()
        assert said.status == 130
        assert said.err == ""
        assert "stopping after this message" in said.out
        assert (found.end["status"], found.end["end_reason"]) == ("stopped", "stop_request")
        assert found.texts == ["Answer 1.", "Answer 2."]
        assert said.out.endswith(f"go on: pidgin resume {found.id}\n")
        assert not list(Path().glob("**/*.pid"))
        assert json.loads(pidgin("list", "--json").out)[0]["status"] == "stopped"
        assert pidgin("resume", "--all", "--display", "quiet").status == 0
        assert record().texts == [f"Answer {n}." for n in range(1, 7)]


def test_resume_all_stops_at_an_interrupt(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """resume --all passes over what is complete or broken, and Ctrl-C ends all of it."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    failing = ("-a", "local:test", "-b", "local:test?fail=bad_request@1")
    assert pidgin("chat", *failing, "-n", "without spec").status == 1
    (record().folder / "spec.yaml").unlink()
    with loopback_in_thread(Trip(1, interrupt)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        for name in ("one", "two"):
            server.script(Reply(status=400, body="no"))
            assert pidgin("chat", *OPENAI, "-n", name).status == 1
        said = pidgin("resume", "--all")
        assert said.status == 130
        assert sorted(entry["status"] for entry in json.loads(pidgin("list", "--json").out)) == [
            "failed",
            "failed",
            "stopped",
        ]
        said = pidgin("resume", "--all", "--display", "quiet")
        assert said.status == 2
        assert said.err.count("\n") == 1
        assert "spec.yaml" in said.err
        assert len(said.out.splitlines()) == 2


# Processes


@contextmanager
def running(cwd: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """`pidgin` in the background, waiting for ever inside the first message of agent b."""
    command = [sys.executable, "-m", "pidgin_cli", "chat", "-a", "local:test", "-b", "local:test?fail=hang@1", *argv]
    with (cwd / "screen").open("wb") as screen:
        child = subprocess.Popen(
            command, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=screen, stderr=subprocess.STDOUT
        )
    with child:
        try:
            until(lambda: [log for log in cwd.glob("**/conv_*.jsonl") if b'"message_index":1' in log.read_bytes()])
            yield child
        finally:
            child.kill()


def test_a_running_conversation(pidgin: Pidgin, tmp_path: Path) -> None:
    """While it runs there is its process file and nobody else may run it; killed, it shows as interrupted."""
    with running(tmp_path) as child:
        found = record()
        (pid_file,) = Path("pidgin_output/experiments/active").iterdir()
        assert pid_file.name == f"exp_{found.id}.pid"
        content = json.loads(pid_file.read_text())
        assert content == {"pid": child.pid, "started": pytest.approx(psutil.Process(child.pid).create_time(), abs=1)}
        until(lambda: json.loads(pidgin("list", "--json").out)[0]["status"] == "running")
        assert found.texts[0] in pidgin("show", found.id).out
        assert f"pidgin stop {found.id}" in error_of(pidgin("resume", found.id), 1)
        assert pidgin("resume", "--all").status == 0
        assert "running" in error_of(pidgin("rebuild", found.id), 1)
        assert child.poll() is None
        assert record().events == found.events
        child.kill()
        child.wait()
        assert pidgin("list").out.splitlines()[1].split()[1] == "interrupted"
        assert json.loads(pidgin("show", found.id, "--json").out)[0]["status"] == "interrupted"


def test_two_signals_stop_now(tmp_path: Path) -> None:
    """A second SIGTERM does not wait for the message: its text so far is recorded, exit 130, no process file."""
    with running(tmp_path) as child:
        (log,) = tmp_path.glob("**/conv_*.jsonl")
        child.send_signal(signal.SIGTERM)
        until(lambda: "stopping after this message" in (tmp_path / "screen").read_text())
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 130
    (abandoned,) = read(log).of("MessageAbandoned")
    assert abandoned["partial"]
    assert read(log).end["status"] == "stopped"
    assert "the text above is discarded" in (tmp_path / "screen").read_text()
    assert not list(tmp_path.glob("**/*.pid"))


def test_a_pipe_that_closes(tmp_path: Path) -> None:
    """When the reader leaves, a listing just ends, and a conversation stops, saved; nobody complains."""
    script = """
    "$@" chat -a 'local:test?chunk_ms=1' -b 'local:test?chunk_ms=1' -t 500 | head -n 1
    "$@" show "$(basename pidgin_output/experiments/experiment_* | cut -c 12-19)" --json | head -n 1
    "$@" chat -a 'local:test?chunk_ms=1' -b 'local:test?chunk_ms=1' -t 500 --json | head -n 1 | cut -c -15
    "$@" list | head -n 1 | cut -c -2
    """
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "pidgin_cli"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=2 * DEADLINE_S,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["a  test-a  local:test?chunk_ms=1", "[", '{"event_type":"', "id"]
    logs = list(tmp_path.glob("**/conv_*.jsonl"))
    assert len(logs) == 2
    for log in logs:
        assert read(log).end["end_reason"] == "stop_request"
        assert read(log).of("Error") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_an_output_that_is_full(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Where nothing can be shown the conversation stops, saved, and says so once."""
    script = '"$@" > /dev/full'
    command = [sys.executable, "-m", "pidgin_cli", "chat", *TEST, *flags]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=DEADLINE_S
    )
    assert done.returncode == 1
    err = done.stderr.decode()
    assert re.fullmatch(
        r"Error: the output cannot be written: No space left on device; go on with: pidgin resume \w+\n", err
    )
    (log,) = tmp_path.glob("**/conv_*.jsonl")
    assert read(log).end["status"] == "stopped"
    listing = [sys.executable, "-m", "pidgin_cli", "list"]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *listing], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr.decode()) == (1, "Error: No space left on device\n")


def test_closed_streams_and_narrow_encodings(tmp_path: Path) -> None:
    """A process without standard streams, or with one that knows ASCII only, holds its conversation all the same."""
    env = ENVIRONMENT | {"PYTHONWARNINGS": ""}  # what stands for a closed stream is never closed
    script = '"$@" <&- >&- && PYTHONIOENCODING=ascii "$@"'
    command = [sys.executable, "-m", "pidgin_cli", "chat", "-a", "local:test?reply=%F0%9F%90%A6", *TEST[2:], "-t", "1"]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], cwd=tmp_path, env=env, capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\n?\n" in done.stdout
    logs = list(tmp_path.glob("**/conv_*.jsonl"))
    assert [read(log).end["status"] for log in logs] == ["completed"] * 2


# No room


def test_the_record_outgrows_its_limit(tmp_path: Path) -> None:
    """A file that may not grow ends the run with 1 and one line; what was written reads, and goes on later."""

    command = [sys.executable, "-c", _LIMITED, "12000", "chat", *TEST, "-t", "30", "--display", "quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=DEADLINE_S)
    _check_goes_on(done, tmp_path)


_LIMITED = """
import resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from pidgin_cli.cli.app import run
sys.exit(run(sys.argv[2:]))
"""


def _check_goes_on(done: "subprocess.CompletedProcess[bytes]", cwd: Path, root: str = "pidgin_output") -> None:
    assert done.returncode == 1
    err = done.stderr.decode()
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: the record cannot be written to ")
    assert err.splitlines()[-1].endswith("; free some room, then resume")
    (log,) = (cwd / root).glob("experiments/experiment_*/conv_*.jsonl")
    shown = process("show", str(log), cwd=cwd)
    assert shown.status == 0
    assert "local:test" in shown.out
    before = [event for event in read_record(log).events if isinstance(event, MessageCompleteEvent)]
    assert 0 < len(before) < 60


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting takes root")
def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk ends the run with 1 and one line; with more room, resume completes the conversation."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        flags = ("-t", "30", "--display", "quiet", "-o", "disk/out", "--seed", "3")
        done = subprocess.run(
            [sys.executable, "-m", "pidgin_cli", "chat", *TEST, *flags],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
        )
        _check_goes_on(done, tmp_path, "disk/out")
        (log,) = disk.glob("out/experiments/experiment_*/conv_*.jsonl")
        name = log.name.split("_")[1].split("-")[0]
        again = process("chat", *TEST, "-t", "1", "-o", "disk/other", cwd=tmp_path)
        assert "No space left" in again.err or "the disk is full" in again.err
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        said = process("resume", name, "--display", "quiet", "-o", "disk/out", cwd=tmp_path)
        assert said.status == 0
        found = read(log)
        assert (len(found.texts), found.end["status"]) == (60, "completed")
        reference = process("chat", *TEST, *flags[:4], "-o", "free", "--seed", "3", cwd=tmp_path)
        assert reference.status == 0
        assert found.texts == record(tmp_path / "free").texts
        assert not list(disk.glob("**/*.pid"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting takes root")
def test_an_output_that_is_read_only(tmp_path: Path) -> None:
    """Where nothing can be written, chat says so before anything starts, and doctor calls it a problem."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=48k", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        assert "Read-only file system; choose another with -o" in error_of(
            process("chat", *TEST, "-o", "disk", cwd=tmp_path)
        )
        said = process("doctor", "-o", "disk", cwd=tmp_path)
        assert said.status == 1
        assert "Read-only file system" in said.out
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
