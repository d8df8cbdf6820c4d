"""Records from elsewhere: the earlier Pidgin's logs and plain transcripts."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, error_of, pidgin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import TEXT
from support import check_record, messages

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import ConversationEndEvent, ConversationStartEvent
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.database.foreign import adopt
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record

__all__ = ["pidgin"]


def transcript(*said: str, names: tuple[str, str] = ("Claude", "GPT4o"), style: str = "{name} {number}:") -> str:
    """As their writer makes one: an empty line, the mark, the words, a newline."""
    return "".join(
        f"\n{style.format(name=names[place % 2], number=place % 2 + 1)}\n{text}\n" for place, text in enumerate(said)
    )


def earlier(*said: str, nested: bool = False, **end: Any) -> str:
    """A log in the dialect of the earlier Pidgin; `nested`: as its first versions wrote it."""
    zone = "" if nested else "+00:00"
    lines: list[dict[str, Any]] = [
        {
            "event_type": "ConversationStartEvent",
            "agent_a_model": "claude-3-5-haiku-20241022",
            "agent_b_model": "local:test",
            "initial_prompt": "Hello there.",
            "max_turns": 9,
            "agent_a_display_name": "Haiku",
            "agent_b_display_name": "Test",
            "temperature_a": 0.0,
            "temperature_b": None,
        },
        {"event_type": "SystemPromptEvent", "agent_id": "agent_a", "prompt": "Be yourself."},
    ]
    for place, text in enumerate(said):
        agent = f"agent_{'ab'[place % 2]}"
        turn = place // 2
        if place % 2 == 0:
            lines.append({"event_type": "TurnStartEvent", "turn_number": turn})
        lines.append({"event_type": "MessageRequestEvent", "agent_id": agent, "turn_number": turn})
        message = {"role": "assistant", "content": text, "agent_id": agent}
        lines.append(
            {
                "event_type": "MessageCompleteEvent",
                "agent_id": agent,
                "message": message,
                "tokens_used": 5,
                "duration_ms": 7,
            }
        )
        if place % 2:
            pair = {"agent_a_message": {"content": said[place - 1]}, "agent_b_message": message}
            lines.append(
                {
                    "event_type": "TurnCompleteEvent",
                    "turn_number": turn,
                    "turn": pair,
                    "convergence_score": 0.5 + turn / 10,
                }
            )
    lines.append({"event_type": "ConversationEndEvent", "reason": "max_turns_reached", "total_turns": 1} | end)
    out = []
    for second, line in enumerate(lines):
        kind, when = line.pop("event_type"), f"2025-08-08T03:45:{second % 60:02}.5{zone}"
        line["conversation_id"] = "conv_1"
        out.append(
            {"timestamp": when, "event_type": kind, "data": line}
            if nested
            else {**line, "timestamp": when, "event_type": kind, "experiment_id": None}
        )
    return "".join(json.dumps(line) + "\n" for line in out)


def taken(root: OutputRoot, path: Path) -> tuple[list[Any], dict[str, Any], EventStore]:
    """The events and the row of the one conversation that a file becomes, and the open store."""
    (adopted,) = adopt(root, path)
    (log,) = adopted.folder.logs().values()
    store = EventStore(root)
    done = store.import_experiment(adopted.folder)
    assert (done.damage, done.failed) == ((), None)
    (row,) = store.conversations.of(adopted.folder.experiment_id)
    return list(read_record(log).events), row, store


@pytest.mark.parametrize("style", ["{name} {number}:", "### {name} {number} ###"])
def test_a_transcript(tmp_path: Path, style: str) -> None:
    """Words, speakers and their order are kept; models as the file's name has them; all else is NULL."""
    path = tmp_path / "opus_o1-preview_cli_20241018_213842.txt"
    said = ("ls -la", "total 42\n\n  Step 2:\nnot a mark\n\nStep 1:\nneither", "", "  spaces stay  ", "last\n")
    path.write_text(transcript(*said, style=style))
    root = OutputRoot(tmp_path / "out")
    events, row, store = taken(root, path)
    with store:
        check_record([event for event in events if type(event).__name__ != "MessageRequestEvent"][:1], ended=False)
        assert [event.message.content for event in messages(events)] == list(said)
        assert [event.agent_id for event in messages(events)] == ["a", "b", "a", "b", "a"]
        assert (row["status"], row["end_reason"], row["turns"], row["messages"]) == ("completed", "unknown", 2, 5)
        assert (row["seed"], row["prompt_tokens"], row["cost_usd"], row["max_turns"]) == (None, None, None, None)
        assert (row["arm"], row["repetition"], row["empty_messages"]) == ("opus_o1-preview_cli", 1, 1)
        assert (row["started_at"], row["ended_at"]) == (None, None)
        said_at = store.messages.of(row["conversation_id"])
        assert {message["completed_at"] for message in said_at} == {None}
        source = json.loads(row["source"])
        assert (source["format"], source["file"], source["dated"]) == ("transcript", path.name, "20241018_213842")
        agents = store.conversations.agents(row["experiment_id"])
        assert [(agent["model"], agent["name"], agent["temperature"]) for agent in agents] == [
            ("unknown:opus", "Claude 1", None),
            ("unknown:o1-preview", "GPT4o 2", None),
        ]


@pytest.mark.parametrize(
    ("second", "inside", "speakers"),
    [
        ("Claude", ["Part 2:"] * 3, ["Claude 1", "Claude 2"]),
        ("Claude", ["Option 2:"], ["Claude 1", "Claude 2"]),
        ("GPT4o", ["Claude 2:"], ["Claude 1", "GPT4o 2"]),
        ("GPT4o", ["Part 2:"], ["Claude 1", "GPT4o 2"]),
        ("GPT4o", ["Part 2:"] * 3, None),
    ],
)
def test_a_heading_in_a_message_is_no_speaker(
    tmp_path: Path, second: str, inside: list[str], speakers: list[str] | None
) -> None:
    """Turns go to those who speak; where nobody can tell who that is, the file is named and not taken."""
    path = tmp_path / "talk.txt"
    first = "Some parts.\n\n" + "\n\n".join(f"{mark}\nof it" for mark in inside)
    said = [first, "I see.", "Go on.", "No.", "Yes.", "Well."]
    blocks = [f"{('Claude 1', f'{second} 2')[place % 2]}:\n{text}\n" for place, text in enumerate(said)]
    path.write_text("\n".join(blocks))
    root = OutputRoot(tmp_path / "out")
    if speakers is None:
        with pytest.raises(SpecError, match="who is 2 in it cannot be told: `Part 2` 3 times, `GPT4o 2` 3"):
            adopt(root, path)
        return
    events, row, store = taken(root, path)
    with store:
        assert [event.message.content for event in messages(events)] == said
        assert [agent["name"] for agent in store.conversations.agents(row["experiment_id"])] == speakers


@given(said=st.lists(TEXT.map(lambda text: text.replace("\r", "")), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_of_a_transcript_are_those_of_the_file(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> None:
    """Whatever stands between two marks is a message, unchanged."""
    place = tmp_path_factory.mktemp("foreign")
    path = place / "talk.txt"
    path.write_bytes(transcript(*said).encode())
    (adopted,) = adopt(OutputRoot(place / "out"), path)
    (log,) = adopted.folder.logs().values()
    assert [event.message.content for event in messages(read_record(log).events)] == said


@pytest.mark.parametrize("nested", [False, True])
def test_a_log_of_the_earlier_pidgin(tmp_path: Path, nested: bool) -> None:
    """Both generations: words, models, names, prompts, temperature 0.0, times, durations, convergence, end."""
    path = tmp_path / "conv_1_events.jsonl"
    path.write_text(earlier("Hello.", "Hi.", "So.", "Well.", nested=nested))
    events, row, store = taken(OutputRoot(tmp_path / "out"), path)
    with store:
        assert [event.message.content for event in messages(events)] == ["Hello.", "Hi.", "So.", "Well."]
        assert [event.turn_number for event in messages(events)] == [1, 1, 2, 2]
        assert (row["opening"], row["end_reason"], row["turns"], row["max_turns"]) == (
            "Hello there.",
            "turn_limit",
            2,
            9,
        )
        assert row["started_at"].isoformat() == "2025-08-08T03:45:00.500000"
        a, b = store.conversations.agents(row["experiment_id"])
        assert (a["model"], a["name"], a["system_prompt"], a["temperature"]) == (
            "unknown:claude-3-5-haiku-20241022",
            "Haiku",
            "Be yourself.",
            0.0,
        )
        assert (b["model"], b["system_prompt"], b["temperature"]) == ("local:test", None, None)
        said = store.messages.of(row["conversation_id"])
        assert [m["duration_ms"] for m in said] == [7.0] * 4
        assert {m["completion_tokens"] for m in said} == {None}  # `tokens_used` does not say of what
        con = store.connect()
        assert con.execute("SELECT convergence FROM turns ORDER BY turn_number").fetchall() == [(0.5,), (0.6,)]
        con.close()
        assert ("zone" in json.loads(row["source"])) == nested


def test_messages_that_stand_only_in_turns(tmp_path: Path) -> None:
    """Where a log holds no message events, the messages nested under `turn` are taken, and the record says so."""
    path = tmp_path / "x_events.jsonl"
    lines = earlier("Hello.", "Hi.").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "MessageCompleteEvent" not in line))
    events, row, store = taken(OutputRoot(tmp_path / "out"), path)
    with store:
        assert [event.message.content for event in messages(events)] == ["Hello.", "Hi."]
        assert json.loads(row["source"])["messages_from"] == "TurnCompleteEvent"


@pytest.mark.parametrize(
    ("said", "end", "status", "reason", "invalid"),
    [
        (("a", "b"), {"reason": "high_convergence"}, Status.COMPLETED, EndReason.CONVERGENCE, ()),
        (("a", "b"), {"status": "failed", "reason": "error"}, Status.FAILED, EndReason.PROVIDER_ERROR, ()),
        (("a", "b"), {"reason": "interrupted"}, Status.STOPPED, EndReason.STOP_REQUEST, ()),
        (("a", "b"), {"reason": "who knows"}, Status.COMPLETED, EndReason.UNKNOWN, ()),
        (("[API error: no]", "b"), {}, Status.COMPLETED, EndReason.TURN_LIMIT, ("harness_fault",)),
    ],
)
def test_how_an_earlier_conversation_ended(
    tmp_path: Path, said: tuple[str, ...], end: dict[str, Any], status: Status, reason: EndReason, invalid: Any
) -> None:
    """Ends are told in our words; errors that agents were made to say leave the conversation out of statistics."""
    path = tmp_path / "x_events.jsonl"
    path.write_text(earlier(*said, **end))
    events, _, store = taken(OutputRoot(tmp_path / "out"), path)
    store.close()
    last = events[-1]
    assert isinstance(last, ConversationEndEvent)
    assert (last.status, last.end_reason, last.invalid) == (status, reason, invalid)


def test_a_folder_becomes_one_experiment_and_only_once(pidgin: Pidgin, tmp_path: Path) -> None:
    """Its files are its conversations, same names are repetitions of one arm; what cannot be read is named."""
    place = tmp_path / "my talks"
    place.mkdir()
    for name, said in (
        ("a_b_cli_20241018_000001", "One"),
        ("a_b_cli_20241018_000002", "Two"),
        ("a_c_x_20241018_000003", "3"),
    ):
        (place / f"{name}.txt").write_text(transcript(said, "yes"))
    (place / "notes.txt").write_text("just notes")
    (place / "latin.txt").write_bytes(b"\nClaude 1:\nna\xefve\n")
    first = pidgin("import", place)
    assert (first.status, "3 conversations, 6 messages" in first.out) == (0, True)
    assert "left out: notes.txt: no line in it says who speaks" in first.err
    assert "left out: latin.txt: it is not UTF-8 text" in first.err
    again = pidgin("import", place)
    assert ("taken before" in again.out, "3 conversations unchanged" in again.out) == (True, True)
    rows = json.loads(pidgin("query", "SELECT arm, repetition FROM conversations ORDER BY ALL", "--json").out)
    assert [(row["arm"], row["repetition"]) for row in rows] == [("a_b_cli", 1), ("a_b_cli", 2), ("a_c_x", 1)]
    assert len(json.loads(pidgin("list", "--json").out)) == 1
    assert pidgin("verify").status == 0
    # What its pages say is what is known: neither a seed nor a time, and no file that is not there.
    assert pidgin("report", "my-talks", "--only", "transcripts", "--only", "readme").status == 0
    (folder,) = OutputRoot(Path("pidgin_output")).folders()
    readme = (folder.path / "README.md").read_text()
    assert "when they were held is not known" in readme
    assert "(spec.yaml)" not in readme
    page = (folder.path / "transcripts" / f"conv_{folder.experiment_id}-1.md").read_text()
    assert "| taken in from | a\\_b\\_cli\\_20241018\\_000001.txt |" in page
    assert "| dated | 20241018\\_000001 |" in page
    assert "| seed |" not in page
    assert " UTC" not in page


def test_folders_of_the_earlier_pidgin(pidgin: Pidgin, tmp_path: Path) -> None:
    """Each folder of logs is an experiment; a damaged line is named and the rest of its log taken."""
    for name in ("calm-field_1a2b3c4d", "bold-grid_5e6f7a8b"):
        (tmp_path / "old" / name).mkdir(parents=True)
        (tmp_path / "old" / name / "conv_1_events.jsonl").write_text(earlier("Hello.", name))
    log = tmp_path / "old/bold-grid_5e6f7a8b/conv_1_events.jsonl"
    log.write_text(log.read_text() + '{"event_type": "Conv')
    done = pidgin("import", tmp_path / "old")
    assert done.status == 0
    assert "left out: conv_1_events.jsonl, line 10 is broken" in done.err
    listed = json.loads(pidgin("list", "--json").out)
    assert {row["name"] for row in listed} == {"calm-field-1a2b3c4d", "bold-grid-5e6f7a8b"}
    assert all(row["status"] == "completed" for row in listed)


@pytest.mark.parametrize("content", ["", "\n\n", "hello\n", '{"event_type": "Other"}\n'])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_what_is_no_record(pidgin: Pidgin, tmp_path: Path, content: str, suffix: str) -> None:
    """One clear line, and no experiment."""
    path = tmp_path / f"x{suffix}"
    path.write_text(content)
    assert "can be read as a conversation" in error_of(pidgin("import", path))
    assert not Path("pidgin_output/experiments").exists()


def test_an_adopted_record_is_a_record(pidgin: Pidgin, tmp_path: Path) -> None:
    """`show`, `list` and `resume` treat it like any other that is finished."""
    path = tmp_path / "talk.txt"
    path.write_text(transcript("One", "Two"))
    assert pidgin("import", path).status == 0
    (row,) = json.loads(pidgin("list", "--json").out)
    assert (row["status"], row["totals"]["messages"], row["totals"]["tokens"]) == ("completed", 2, None)
    shown = pidgin("show", row["experiment_id"])
    assert (shown.status, "One" in shown.out, "Two" in shown.out) == (0, True, True)
    start = json.loads(pidgin("show", f"{row['experiment_id']}-1", "--json").out)[0]
    assert start["event_type"] == ConversationStartEvent.__name__
    assert "placeholders" not in start["spec"]  # nothing is said of what nobody knows
