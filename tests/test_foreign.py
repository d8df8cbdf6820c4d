"""Records from elsewhere: the earlier Pidgin's logs and plain transcripts."""

import json
import re
from pathlib import Path
from typing import Any

import duckdb
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
from pidgin_cli.database.schema import MIGRATIONS, MetricColumn, migrate, set_up
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
    (adopted,) = adopt(root, path).experiments
    (log,) = adopted.folder.logs().values()
    store = EventStore(root)
    done = store.import_experiment(adopted.folder)
    assert (done.damage, done.failed) == ((), None)
    (row,) = store.conversations.of(adopted.folder.experiment_id)
    return list(read_record(log).events), row, store


def adopted_events(tmp_path: Path, path: Path) -> list[Any]:
    """Those of the one conversation that a file becomes."""
    (adopted,) = adopt(OutputRoot(tmp_path / "out"), path).experiments
    (log,) = adopted.folder.logs().values()
    return list(read_record(log).events)


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


def talk(*turns: tuple[str, str]) -> str:
    """Mark and words of each message, with an empty line between messages."""
    return "\n".join(f"{mark}\n{words}\n" for mark, words in turns)


def turns(one: str, other: str, first: str, times: int = 3) -> str:
    said = [first, "I see.", "Go on.", "No.", "Yes.", "Well."]
    return talk(*((one if place % 2 == 0 else other, said[place]) for place in range(2 * times)))


STEPS = "My plan.\n\nStep 1:\nwood\n\nStep 2:\nlight it\n\nStep 3:\ndance\n\nStep 4:\nsleep"
PARTS = "Some parts.\n\nPart 2:\nof it\n\nPart 2:\nof it\n\nPart 2:\nof it"


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        (turns("Claude 1:", "Claude 2:", PARTS), ["Claude 1", "Claude 2"], {0: PARTS, 1: "I see."}),
        (turns("Claude 1:", "Claude 2:", STEPS), ["Claude 1", "Claude 2"], {0: STEPS, 1: "I see."}),
        (turns("Claude 1:", "GPT4o 2:", STEPS), ["Claude 1", "GPT4o 2"], {0: STEPS, 1: "I see."}),
        (turns("Claude 1:", "GPT4o 2:", PARTS), ["Claude 1", "GPT4o 2"], {0: PARTS, 1: "I see."}),
        ("Claude 1:\nhello\nyou\nClaude 2:\nhi\nClaude 1:\nbye", ["Claude 1", "Claude 2"], {0: "hello\nyou", 2: "bye"}),
        ("### A 1 ###\nhello\n### B 2 ###\nhi\n", ["A 1", "B 2"], {0: "hello", 1: "hi"}),
        ("Claude 1: hello\n\nyou\n\nClaude 2: hi\n", ["Claude 1", "Claude 2"], {0: "hello\n\nyou", 1: "hi"}),
        (turns("Claude 1:", "GPT 1:", "hello", 2), ["Claude 1", "GPT 1"], {0: "hello", 1: "I see.", 3: "No."}),
        (talk(*((f"X {n}:", str(n)) for n in range(1, 12))), [f"X {n}" for n in range(1, 12)], {9: "10", 10: "11"}),
        ("Alice: hi\nthere\nBob: yo\nAlice: so\nBob: yes\n", ["Alice", "Bob"], {0: "hi\nthere", 3: "yes"}),
        ("Human:\nhi\n\nAI:\nyo\n\nHuman:\nso\n\nAI:\nyes\n", ["Human", "AI"], {0: "hi", 3: "yes"}),
        ("\ufeffClaude 1:\r\nhello\r\n\r\nGPT 2:\r\nhi\r\n", ["Claude 1", "GPT 2"], {0: "hello", 1: "hi"}),
        (talk(("A 1:", "x"), ("A 2:", "y"), ("A 2:", "z"), ("A 1:", "")), ["A 1", "A 2"], {2: "z", 3: ""}),
        (talk(*[("A 1:", "x"), ("B 2:", "y"), ("C 3:", "z")] * 2), ["A 1", "B 2", "C 3"], {2: "z", 5: "z"}),
        ("\nClaude 1:\nI will not.\n", ["Claude 1"], {0: "I will not."}),
        ("Log of a talk\n\n" + turns("A 1:", "B 2:", "x", 2), ["A 1", "B 2"], {0: "x", 3: "No."}),
    ],
)
def test_who_speaks(tmp_path: Path, text: str, names: list[str], said: dict[int, str]) -> None:
    """However a transcript marks its turns, each goes to the one who speaks; headings stay in their message."""
    path = tmp_path / "talk.txt"
    path.write_bytes(text.encode())
    events = adopted_events(tmp_path, path)
    assert [agent.name for agent in events[0].agents] == names
    found = messages(events)
    assert {place: found[place].message.content for place in said} == said
    ids = [agent.id for agent in events[0].agents]
    if len(names) != 2 or "z" not in said.values():  # all but one speak by turns
        assert [event.agent_id for event in found] == [ids[place % len(ids)] for place in range(len(found))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        # Nobody can tell a heading with a number that no speaker has from one who seldom speaks.
        (talk(("A 1:", "x\n\nStep 3:\nof it"), ("A 2:", "y")), "`Step 3` once (line 4)"),
        (talk(("A 1:", "x"), ("B 2:", "y"), ("C 3:", "z"), ("A 1:", "q")), "`C 3` once (line 7)"),
        (talk(("A 1:", "x"), ("B 2:", "y"), ("A 1:", "q"), ("C 3:", "z"), ("B 2:", "y"), ("A 1:", "")), "`C 3` once"),
        # One speaks, and headings stand where the other would.
        (talk(("A 1:", "x\n\nStep 2:\ny"), ("A 1:", "z\n\nStep 2:\nw\n\nStep 2:\nv"), ("C 2:", "u")), "`Step 2` 3 tim"),
        (talk(("A 1:", "x"), ("A 1:", "y")), "only `A 1` speaks in it (line 1), and 2 times"),
        # Who is quoted cannot be told from who speaks.
        (turns("A 1:", "B 2:", "x\n\nA 2:\ny"), "`A 2` once (line 4)"),
        (turns("A 1:", "A 2:", "x\nA 2:\ny\nA 1:\nz"), "is an empty line (line 8) or none (line 3)"),
        # A mark that is not like the others.
        (talk(("A 1:", "x"), ("a 2:", "y"), ("A 1:", "z"), ("A 2:", "")), "`a 2` once (line 4)"),
        (talk(("A 1:", "x"), ("A 2:", "y\n  a 1:  \nz")), "line 6 may be a mark"),
        ("A 1:\nx\n\nA 2: y\n\nA 1:\nz\n\nA 2: w\n", "line 4 may be a mark"),
        ("### A 1 ###\nx\n\nA 2:\ny\n\n### A 1 ###\nz\n", "line 4 may be a mark"),
        ("A 1:\nx\n\nA 2:\ny\n\n**A 1:**\nz\n", "line 7 may be a mark"),
        ("A 1:\nx\n\nB 2:\ny\n\nA:\nz\n\nB:\nw\n", "line 7 may be a mark"),
        ("A 1:\nx\n\n**B 2:**\ny\n", "line 4 may be a mark"),
        # Names alone are as many headings as speakers, unless two of them take turns.
        ("Time: one hour\nServes: two\n", "no line in it says who speaks"),
        ("Alice: x\nBob: y\nNote: n\nAlice: z\nBob: w\n", "no line in it says who speaks"),
        ("Alice: x\nBob: y\nBob: n\nAlice: z\n", "no line in it says who speaks"),
        ("Steps of it\n\nStep 1:\nx\n\nStep 2:\ny\n", "who speaks in it cannot be told"),
    ],
)
def test_who_speaks_cannot_be_told(tmp_path: Path, text: str, why: str) -> None:
    """No words are put into a mouth that may be another: the file is refused, with the line that made it so."""
    path = tmp_path / "talk.txt"
    path.write_text(text)
    with pytest.raises(SpecError, match=re.escape(why)):
        adopt(OutputRoot(tmp_path / "out"), path)


def test_names_of_files_are_no_models(tmp_path: Path) -> None:
    """Models are read from names as the Backrooms gave them; `my_chat_log` holds none."""
    path = tmp_path / "my_chat_log_20241018_225415.txt"
    path.write_text(transcript("One", "Two"))
    start = adopted_events(tmp_path, path)[0]
    assert [agent.model for agent in start.agents] == ["unknown:Claude", "unknown:GPT4o"]


@given(said=st.lists(TEXT.map(lambda text: text.replace("\r", "")), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_of_a_transcript_are_those_of_the_file(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> None:
    """Whatever stands between two marks is a message, unchanged."""
    place = tmp_path_factory.mktemp("foreign")
    path = place / "talk.txt"
    path.write_bytes(transcript(*said).encode())
    (adopted,) = adopt(OutputRoot(place / "out"), path).experiments
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


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event_type": kind, "timestamp": "2025-01-01T00:00:00", **fields}


def said(agent: str | None, content: Any, **more: Any) -> dict[str, Any]:
    message = content if isinstance(content, str) and content.startswith("bare") else {"content": content}
    return event("MessageCompleteEvent", message=message, **({"agent_id": agent} if agent else {}), **more)


def in_turn(number: int, a: Any, b: Any, **more: Any) -> dict[str, Any]:
    turn = {"agent_a_message": {"content": a}, "agent_b_message": {"content": b}, **more}
    return event("TurnCompleteEvent", turn_number=number, turn=turn)


START = event("ConversationStartEvent", agent_a_model="m1", agent_b_model="m2", initial_prompt="hi")
END = event("ConversationEndEvent", reason="max_turns_reached")
FAILED = event("ConversationEndEvent", reason="error", status="failed")
OVERLOADED = event("APIErrorEvent", agent_id="agent_b", error_type="overloaded", error_message="boom", retry_count=3)


@pytest.mark.parametrize(
    ("told", "spoken", "left_out"),
    [
        # Only the turn tells of the second turn; the first one's messages stand twice and are taken once.
        ([said("agent_a", "a0"), said("agent_b", "b0"), in_turn(0, "a0", "b0"), in_turn(1, "a1", "b1")],
         ["a0", "b0", "a1", "b1"], ()),
        ([in_turn(0, "a0", "b0"), in_turn(0, "a0", "b0"), in_turn(1, "a0", "b0")], ["a0", "b0", "a0", "b0"], ()),
        ([said("agent_b", "b0"), in_turn(0, "a0", "b0")], ["a0", "b0"], ()),
        ([said("agent_a", "a0"), said("agent_b", "b0"), in_turn(0, "a0", "b?")],
         ["a0", "b0"], ("line 4: other words of agent b than in its message",)),
        # Whose a message is comes from the turn, or it is left out.
        ([said(None, "a0"), said(None, "b0"), in_turn(0, "a0", "b0")], ["a0", "b0"], ()),
        ([said("agent_a", "a0"), said(None, "b0")],
         ["a0"], ("line 3: a message without the agent it is of",)),
        ([said("Agent A", "a0"), said("AGENT_B", "b0")], ["a0", "b0"], ()),
        # Contents as providers give them.
        ([said("agent_a", [{"type": "text", "text": "a"}, {"type": "text", "text": "0"}]), said("agent_b", "bare b0")],
         ["a0", "bare b0"], ()),
        ([said("agent_a", [{"type": "image"}, {"type": "text", "text": "a0"}]), said("agent_b", 7)],
         ["a0"], ("line 2: parts of a message that are no text", "line 3: a message that is no text")),
        ([said("agent_a", "a0"), event("SystemPromptEvent", prompt="Be.")],
         ["a0"], ("line 3: a system prompt without the agent it is of",)),
        # What Python's own JSON writes and nobody else reads.
        ([said("agent_a", "a\ud8000", duration_ms=float("nan")), said("agent_b", "\ud83d\ude00")],
         ["a\ufffd0", "\U0001f600"], ()),
        # Without a word about turns, whoever speaks again begins the next.
        ([said("agent_a", "a0"), said("agent_b", "b0"), said("agent_a", "a1")], ["a0", "b0", "a1"], ()),
    ],
)  # fmt: skip
def test_messages_of_earlier_logs(
    tmp_path: Path, told: list[dict[str, Any]], spoken: list[str], left_out: tuple[str, ...]
) -> None:
    """Every message goes to the agent that said it, once and in order; what cannot be taken is named with its line."""
    lines = [json.dumps(line) for line in (START, *told, END)]
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as editors leave it
    adoption = adopt(OutputRoot(tmp_path / "out"), path)
    assert adoption.left_out == tuple(f"c.jsonl, {part}" for part in left_out)
    (log,) = adoption.experiments[0].folder.logs().values()
    events = read_record(log).events
    start = events[0]
    assert isinstance(start, ConversationStartEvent)
    assert [(agent.id, agent.model) for agent in start.agents] == [("a", "unknown:m1"), ("b", "unknown:m2")]
    found = messages(events)
    assert [each.message.content for each in found] == spoken
    seats = {"a": "a", "b": "b", "\U0001f600": "b", "bare b0": "b"}
    assert [each.agent_id for each in found] == [
        seats.get(each.message.content, each.message.content[0]) for each in found
    ]
    assert [each.turn_number for each in found] == [1 + place // 2 for place in range(len(found))]
    assert [each.message.text_replaced for each in found] == ["\ufffd" in text for text in spoken]


def test_what_ended_an_earlier_conversation(tmp_path: Path) -> None:
    """An error after the last message, and one before any, are in the record, and so is what a person put in."""
    place = tmp_path / "old"
    place.mkdir()
    failed = [START, event("TurnStartEvent", turn_number=0), said("agent_a", "x"), OVERLOADED, FAILED]
    at_once = [START, OVERLOADED, FAILED]
    put_in = [START, in_turn(0, "a0", "b0", intervention={"content": "Faster."}), in_turn(1, "a1", "b1"), END]
    counted = [
        START,
        said("agent_a", "x"),
        event("TokenUsageEvent", agent_id="agent_a", completion_tokens=3),
        OVERLOADED,
        END,
    ]
    for name, events in (("failed", failed), ("at_once", at_once), ("put_in", put_in), ("w", counted)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    root = OutputRoot(tmp_path / "out")
    (adopted,) = adopt(root, place).experiments
    with EventStore(root) as store:
        done = store.import_experiment(adopted.folder)
        assert (done.damage, done.failed) == ((), None)
        rows = {json.loads(row["source"])["file"]: row for row in store.conversations.of(adopted.folder.experiment_id)}
        assert [(row["messages"], row["status"], row["error"]) for row in rows.values()] == [
            (0, "failed", "overloaded: boom"),
            (1, "failed", "overloaded: boom"),
            (4, "completed", None),
            (1, "completed", None),
        ]
        con = store.connect()
        errors = con.execute("SELECT turn_number, message_index, attempt, message FROM errors ORDER BY ALL").fetchall()
        put = con.execute("SELECT turn_number, message_index, text, audience FROM interventions").fetchall()
        con.close()
        assert errors == [(1, 0, 4, "boom"), (1, 1, 4, "boom"), (1, 1, 4, "boom")]
        assert put == [(2, 2, "Faster.", ["a", "b"])]
        (used,) = store.messages.of(rows["w.jsonl"]["conversation_id"])
        assert (used["prompt_tokens"], used["completion_tokens"]) == (None, 3)


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
    last = adopted_events(tmp_path, path)[-1]
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
    assert (first.status, "3 conversations, 6 messages" in first.out) == (1, True)
    assert "left out: notes.txt: no line in it says who speaks" in first.err
    assert "left out: latin.txt: it is not UTF-8 text" in first.err
    again = pidgin("import", place)
    assert ("taken before" in again.out, "3 conversations unchanged" in again.out) == (True, True)

    def answer(sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(pidgin("query", sql, "--json").out)
        return found

    rows = answer("SELECT arm, repetition FROM conversations ORDER BY ALL")
    assert [(row["arm"], row["repetition"]) for row in rows] == [("a_b_cli", 1), ("a_b_cli", 2), ("a_c_x", 1)]
    assert len(json.loads(pidgin("list", "--json").out)) == 1
    # Why a reply ended and which attempt it was: neither false nor 0 nor 1, and no part of any statistic.
    names = ("refused", "truncated", "filtered", "attempt")
    assert answer(f"SELECT DISTINCT {', '.join(names)} FROM messages") == [dict.fromkeys(names)]
    kinds = ("refused", "truncated", "filtered", "other_model", "other_fingerprint")
    counts = dict.fromkeys(f"{name}_messages" for name in kinds) | {"empty_messages": 0}
    assert answer(f"SELECT DISTINCT {', '.join(counts)} FROM conversations") == [counts]
    statistics = "SELECT DISTINCT n, mean FROM arm_statistics WHERE measure IN ('truncated', 'retries')"
    assert answer(statistics) == [{"n": 0, "mean": None}]
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


def test_a_folder_that_has_grown(pidgin: Pidgin) -> None:
    """It goes on with the experiment that it became: what is new is added, what has changed replaced, nothing twice."""
    place = Path("br2")
    place.mkdir()
    for name in ("m", "n"):
        (place / f"{name}.txt").write_text(transcript(f"{name}0", "yes"))
    assert pidgin("import", "br2", "--no-metrics").status == 0
    (place / "n.txt").write_text(transcript("other", "words", "here"))
    (place / "a.txt").write_text(transcript("new", "yes"))
    (place / "m.txt").rename(place / "z.txt")
    grown = pidgin("import", "br2", "--no-metrics")
    assert (grown.status, "3 conversations, 1 of them new" in grown.out) == (0, True)
    assert "2 conversations, 5 messages; 1 conversation unchanged" in grown.out
    assert "n.txt has changed since it was taken; its conversation is replaced" in grown.err
    again = pidgin("import", place.absolute(), "--no-metrics")
    assert (again.status, "3 conversations, taken before" in again.out) == (0, True)
    assert "3 conversations unchanged" in again.out
    (listed,) = json.loads(pidgin("list", "--json").out)
    assert (listed["totals"]["messages"], listed["totals"]["completed"]) == (7, 3)
    rows = json.loads(
        pidgin("query", "SELECT content FROM messages ORDER BY conversation_id, message_index", "--json").out
    )
    assert [row["content"] for row in rows] == ["m0", "yes", "other", "words", "here", "new", "yes"]
    assert pidgin("verify").status == 0
    alone = pidgin("import", place / "a.txt", "--no-metrics")
    assert f"a.txt is in {listed['experiment_id']} as well" in alone.err


def test_what_a_folder_became_is_found_again(tmp_path: Path) -> None:
    """By its place, or by what is in it when it was moved; also where a process was killed on the way."""
    root = OutputRoot(tmp_path / "out")
    place = tmp_path / "talks"
    place.mkdir()
    (place / "m.txt").write_text(transcript("m0", "yes"))
    (first,) = adopt(root, place).experiments
    log = first.folder.events
    before = log.read_bytes()
    (place / "n.txt").write_text(transcript("n0", "yes"))
    (grown,) = adopt(root, place).experiments
    assert (grown.folder.path, grown.new, grown.changed) == (first.folder.path, 1, ())
    log.write_bytes(before)
    (mended,) = adopt(root, place).experiments
    assert (mended.new, read_record(log).events[-2].conversations) == (0, 2)  # type: ignore[attr-defined]
    moved = tmp_path / "elsewhere" / "talks"
    moved.parent.mkdir()
    place.rename(moved)
    (moved / "o.txt").write_text(transcript("o0", "yes"))
    (found,) = adopt(root, moved).experiments
    assert (found.folder.path, found.new) == (first.folder.path, 1)
    # The same words as it began with, but it is another by now: an id of its own, and told.
    (moved / "m.txt").write_text(transcript("m1", "yes"))
    adopt(root, moved)
    place.mkdir()
    (place / "m.txt").write_text(transcript("m0", "yes"))
    (other,) = adopt(root, place).experiments
    assert (other.new, other.elsewhere) == (1, ())
    assert other.folder.experiment_id != first.folder.experiment_id
    assert len(list(root.folders())) == 2
    numbers = [event.seq for event in read_record(log).events]
    assert numbers == list(range(len(numbers)))


def test_a_folder_goes_before_an_experiment_of_its_name(pidgin: Pidgin) -> None:
    """Where there are records in it that can be read; otherwise the name is that of the experiment."""
    file = Path("talks") / "m.txt"
    file.parent.mkdir()
    file.write_text(transcript("m0", "yes"))
    adopt(OutputRoot(), file.parent)
    file.write_text("notes\n")
    taken = pidgin("import", "talks", "--no-metrics")
    assert (taken.status, "1 conversation, 2 messages" in taken.out) == (0, True)
    assert "nothing in talks can be read" in taken.err


def test_what_was_not_known_becomes_null() -> None:
    """In a database of the first schema: for records from elsewhere, and replies that nobody knows the end of."""
    con = duckdb.connect()
    migrate(con, MIGRATIONS[:1])
    zeros = "0 AS refused_messages, 0 AS truncated_messages, 0 AS filtered_messages"
    con.execute(
        f"INSERT INTO conversations BY NAME SELECT *, {zeros}, 0 AS other_model_messages, "
        "0 AS other_fingerprint_messages FROM (VALUES ('x-1', '{}'), ('y-1', NULL), ('z-1', NULL)) "
        "v(conversation_id, source)"
    )
    con.execute(
        "INSERT INTO messages BY NAME SELECT *, false AS refused, false AS truncated, false AS filtered, 1 AS attempt "
        "FROM (VALUES ('x-1', 'unknown'), ('y-1', 'stop'), ('z-1', 'unknown')) v(conversation_id, finish_reason)"
    )
    con.execute("ALTER TABLE message_metrics ADD COLUMN retries BIGINT")
    con.execute("INSERT INTO message_metrics BY NAME SELECT conversation_id, 0 AS retries FROM conversations")
    set_up(con, [MetricColumn("retries", "message", "BIGINT"), MetricColumn("truncated", "message", "BOOLEAN")])
    found = con.execute(
        "SELECT refused_messages, truncated_messages, filtered_messages, other_model_messages, "
        "other_fingerprint_messages, m.refused, m.truncated, m.filtered, attempt, retries FROM conversations "
        "JOIN messages m USING (conversation_id) JOIN message_metrics USING (conversation_id) ORDER BY conversation_id"
    ).fetchall()
    con.close()
    assert found == [
        (None,) * 10,
        (0, 0, 0, 0, 0, False, False, False, 1, 0),
        (None, None, None, 0, 0, None, None, None, 1, 0),
    ]


def test_folders_of_the_earlier_pidgin(pidgin: Pidgin, tmp_path: Path) -> None:
    """Each folder of logs is an experiment; a damaged line is named and the rest of its log taken."""
    for name in ("calm-field_1a2b3c4d", "bold-grid_5e6f7a8b"):
        (tmp_path / "old" / name).mkdir(parents=True)
        (tmp_path / "old" / name / "conv_1_events.jsonl").write_text(earlier("Hello.", name))
    log = tmp_path / "old/bold-grid_5e6f7a8b/conv_1_events.jsonl"
    log.write_text(log.read_text() + '{"event_type": "Conv')
    done = pidgin("import", tmp_path / "old", "--no-metrics")
    assert (done.status, "bold-grid_5e6f7a8b/conv_1_events.jsonl, line 10 is torn" in done.err) == (0, True)
    log.write_text(log.read_text() + "\n")
    done = pidgin("import", tmp_path / "old", "--no-metrics")
    assert (done.status, "conv_1_events.jsonl has changed" in done.err) == (1, True)
    assert "left out: bold-grid_5e6f7a8b/conv_1_events.jsonl, line 10 is broken" in done.err
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
