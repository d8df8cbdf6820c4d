"""`import`, `query` and `verify` as people type them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from commands import Pidgin, error_of, pidgin
from runs import append, claim, make, said, start, turn_start
from test_database import end, talk

from pidgin_cli.core.events import ConversationResumedEvent
from pidgin_cli.eventlog.folder import OutputRoot

__all__ = ["pidgin"]

ROOT = Path("pidgin_output")


@pytest.fixture
def talked(pidgin: Pidgin) -> str:
    """The id of a small real conversation that has been imported."""
    for argv in (
        ["chat", "-a", "local:test?words=5", "-b", "local:test?words=5", "-t", "2", "-p", "Hi", "--display", "quiet"],
        ["import", "--all"],
    ):
        assert pidgin(*argv).status == 0
    rows = json.loads(pidgin("list", "--json").out)
    return str(rows[0]["experiment_id"])


# Import


def test_import_tells_what_it_took(pidgin: Pidgin, talked: str) -> None:
    """One line per experiment: what was new, what had not changed."""
    assert pidgin("import", talked).out == f"{talked}: 1 conversation unchanged\n"
    assert pidgin("import", talked, "--again").out == f"{talked}: 1 conversation, 4 messages\n"
    (told,) = json.loads(pidgin("import", "--all", "--json").out)
    assert (told["experiment_id"], told["unchanged"], told["damage"]) == (talked, 1, [])


def test_import_of_nothing(pidgin: Pidgin) -> None:
    """Without a target it is wrong use; an empty output root is no error; a name that nothing has is one line."""
    assert "--all" in error_of(pidgin("import"))
    assert pidgin("import", "--all").status == 0
    assert pidgin("import", "--all", "--json").out == "[]\n"
    assert "no experiment 'nothere'" in error_of(pidgin("import", "nothere"))


def test_import_tells_damage_and_exits_with_1(pidgin: Pidgin) -> None:
    """The damaged line is named, the rest is taken, and the exit status says that something was wrong."""
    folder = make(OutputRoot(), "abcdefgh", [talk("One.", "Two."), talk("Three.", "Four.")])
    log = folder.log("abcdefgh-2")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"\x1b[31mrubbish\n", *lines[3:]]))
    done = pidgin("import", "abcdefgh")
    assert done.status == 1
    assert "2 conversations, 3 messages" in done.out
    assert "damaged: conv_abcdefgh-2_events.jsonl, line 3: broken" in done.out
    assert "\x1b" not in done.out


def test_import_of_a_log_that_lost_something_exits_with_1(pidgin: Pidgin, talked: str) -> None:
    """An emptied log and one without its start are named and nothing of them is lost; so is a gap, beside the rest."""
    (log,) = (ROOT / "experiments").glob("*/conv_*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    said_ = "SELECT status, arm, messages FROM conversations"
    before = pidgin("query", said_, "--json").out
    for content, told in (
        (b"", "it holds no events any more; what was imported of it before is still there"),
        (b"".join(lines[1:]), "it does not begin with the start of the conversation; what was imported of it before"),
    ):
        log.write_bytes(content)
        done = pidgin("import", "--all")
        assert (done.status, done.out.splitlines()[0]) == (1, f"{talked}: 1 log not taken")
        assert f"damaged: {log.name}: {told}" in done.out
        assert pidgin("query", said_, "--json").out == before
    log.write_bytes(b"".join(lines[:3] + lines[4:]))
    done = pidgin("import", "--all")
    assert (done.status, f"{talked}: 1 conversation, 4 messages\n" in done.out) == (1, True)
    assert f"damaged: {log.name}: 1 event is missing before line 4" in done.out


def test_a_reader_that_has_gone_undoes_no_import(pidgin: Pidgin) -> None:
    """With its output closed, as by `| head -1`, everything is in the database all the same."""
    make(OutputRoot(), "abcdefgh", [talk("One.", "Two.")])
    make(OutputRoot(), "bbbbbbbb", [talk("Three.", "Four.")])
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as unread:
        done = subprocess.run(
            [sys.executable, "-m", "pidgin_cli", "import", "--all"],
            stdout=unread,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.stderr == b""
    assert json.loads(pidgin("query", "SELECT count(*) AS n FROM messages", "--json").out) == [{"n": 4}]


def test_a_torn_end_is_no_failure(pidgin: Pidgin) -> None:
    """A line that was being written when the process died is told, and the exit status is 0."""
    folder = make(OutputRoot(), "abcdefgh", [[start(), turn_start(), said("One.")]])
    with folder.log("abcdefgh-1").open("ab") as file:
        file.write(b'{"event_type":"Tok')
    done = pidgin("import", "abcdefgh")
    assert (done.status, "torn" in done.out) == (0, True)


def test_a_running_experiment_is_taken_as_it_stands(pidgin: Pidgin) -> None:
    """With a living runner a conversation without an end is running, afterwards interrupted."""
    root = OutputRoot()
    make(root, "abcdefgh", [[start(), turn_start(), said("One.")]])
    claimed = claim(root, "abcdefgh")
    statuses = []
    for _ in range(2):
        assert pidgin("import", "abcdefgh").status == 0
        (row,) = json.loads(pidgin("query", "SELECT status FROM conversations", "--json").out)
        statuses.append(row["status"])
        claimed.unlink(missing_ok=True)
    assert statuses == ["running", "interrupted"]


def test_origins_come_along(pidgin: Pidgin, talked: str) -> None:
    """Importing a branch imports the conversation that it leaves, so that what they share is there."""
    assert pidgin("branch", f"{talked}-1", "--turn", "1", "-t", "2", "-n", "fork", "--display", "quiet").status == 0
    for path in (ROOT / "experiments").glob("*.duckdb"):
        path.unlink()
    assert pidgin("import", "fork").status == 0
    rows = json.loads(
        pidgin(
            "query",
            "SELECT message_index, own FROM conversation_messages JOIN conversations USING (conversation_id) "
            "WHERE origin_turn IS NOT NULL ORDER BY message_index",
            "--json",
        ).out
    )
    assert rows == [{"message_index": n, "own": n >= 2} for n in range(4)]
    assert pidgin("verify").status == 0


def test_an_experiment_of_another_root_is_copied_here(pidgin: Pidgin, talked: str) -> None:
    """The folder of an experiment elsewhere becomes one of this output root; what is here already is not replaced."""
    (folder,) = (ROOT / "experiments").glob("experiment_*")
    assert pidgin("import", folder, "-o", "other").status == 0
    assert (Path("other/experiments") / folder.name / "spec.yaml").is_file()
    assert pidgin("verify", "-o", "other").status == 0
    assert "already" in error_of(pidgin("import", Path("other/experiments") / folder.name))


def test_it_cannot_be_written(pidgin: Pidgin) -> None:
    """A folder where the database should be is one clear line."""
    make(OutputRoot(), "abcdefgh", [talk("One.")])
    (ROOT / "experiments/experiments.duckdb").mkdir()
    assert "experiments.duckdb" in error_of(pidgin("import", "--all"), 1)


# Query


def test_query_as_table_json_and_csv(pidgin: Pidgin, talked: str) -> None:
    """The same answer in three forms; NULL is empty or null."""
    sql = "SELECT message_index AS i, length(content) > 0 AS said, temperature FROM messages "
    sql += "JOIN agents USING (conversation_id, agent_id) ORDER BY i"
    rows = json.loads(pidgin("query", sql, "--json").out)
    assert rows == [{"i": n, "said": True, "temperature": None} for n in range(4)]
    assert list(csv.reader(io.StringIO(pidgin("query", sql, "--csv").out))) == [
        ["i", "said", "temperature"],
        *([str(n), "true", ""] for n in range(4)),
    ]
    table = pidgin("query", sql).out.splitlines()
    assert table[0].split() == ["i", "said", "temperature"]
    assert len(table) == 5
    assert json.loads(pidgin("query", "FROM messages LIMIT 0", "--json").out) == []
    assert pidgin("query", "-", "--json", stdin=b"SELECT 1 AS one").out == '[\n{"one": 1}\n]\n'


def test_csv_tells_null_from_the_empty_text(pidgin: Pidgin, talked: str) -> None:
    """NULL is an empty field, the empty text one in quotes, as DuckDB and the exports write them."""
    sql = """SELECT * FROM (VALUES (1, NULL, ''), (2, '', NULL), (3, 'a,b', 'q"'), (4, e'x\\ny', ' z'),
        (5, NULL, e'\\r'), (6, '-', '0')) AS t(i, one, "two, too")"""
    told = pidgin("query", sql, "--csv").out
    assert told.startswith('i,one,"two, too"\n1,,""\n2,"",\n3,"a,b","q"""\n')
    assert pidgin("query", sql, "--csv", "--to", "x.csv").status == 0
    assert Path("x.csv").read_bytes().decode() == told
    columns = "columns = {'i': 'BIGINT', 'one': 'VARCHAR', 'two': 'VARCHAR'}"
    read = f"FROM read_csv('x.csv', header = true, quote = '\"', allow_quoted_nulls = false, {columns})"
    rows = duckdb.connect().execute(read).fetchall()
    assert rows == [(1, None, ""), (2, "", None), (3, "a,b", 'q"'), (4, "x\ny", " z"), (5, None, "\r"), (6, "-", "0")]
    one_column = pidgin("query", "SELECT unnest([NULL, '', 'a']) AS x", "--csv").out
    assert one_column == 'x\n""\n""\na\n', "an empty line would be skipped by whoever reads it"


def test_query_values_of_every_kind(pidgin: Pidgin, talked: str) -> None:
    """Moments, lists, maps, JSON, large numbers and what is no number come out as JSON can say them."""
    sql = """SELECT 'nan'::DOUBLE AS a, TIMESTAMP '2026-01-02 03:04:05' AS b, [1, NULL] AS c, MAP {'k': 1.5} AS d,
        '{"x": [1]}'::JSON AS e, 170141183460469231731687303715884105727::HUGEINT AS f, 'ab'::BLOB AS g, 1 AS h, 2 AS h,
        TIMESTAMPTZ '2026-01-02 03:04:05+00' AS i, 12.50::DECIMAL(4, 2) AS j"""
    (row,) = json.loads(pidgin("query", sql, "--json").out)
    assert row.pop("i").startswith("2026-01-0")
    assert row == {
        "a": None,
        "b": "2026-01-02T03:04:05",
        "c": [1, None],
        "d": {"k": 1.5},
        "e": {"x": [1]},
        "f": 2**127 - 1,
        "g": "6162",
        "h": 1,
        "h_2": 2,
        "j": 12.5,
    }
    assert pidgin("query", sql, "--csv").status == pidgin("query", sql).status == 0


def test_query_writes_files_whole_or_not_at_all(pidgin: Pidgin, talked: str) -> None:
    """Parquet, JSON and CSV go to a file; a query that fails leaves the old one."""
    said_ = pidgin("query", "FROM messages", "--parquet", "--to", "it's.parquet")
    assert said_.out == "it's.parquet: 4 rows\n"
    assert duckdb.connect().execute("SELECT count(content) FROM 'it''s.parquet'").fetchone() == (4,)
    assert pidgin("query", "SELECT 1 AS a", "--json", "--to", "a.json").out == ""
    assert json.loads(Path("a.json").read_text()) == [{"a": 1}]
    assert pidgin("query", "SELECT CAST(content AS INT) FROM messages", "--json", "--to", "a.json").status != 0
    assert json.loads(Path("a.json").read_text()) == [{"a": 1}]
    assert "--to" in error_of(pidgin("query", "SELECT 1", "--parquet"))
    assert "--csv" in error_of(pidgin("query", "SELECT 1", "--to", "x"))
    assert "no such folder" in error_of(pidgin("query", "SELECT 1", "--csv", "--to", "no/x.csv"))
    assert "choose one" in error_of(pidgin("query", "SELECT 1", "--csv", "--json"))
    assert sorted(path.name for path in Path().iterdir()) == ["a.json", "it's.parquet", "pidgin_output"]


FORBIDDEN = [
    "COPY messages TO 'stolen.csv'",
    "COPY (SELECT 1) TO 'stolen.parquet' (FORMAT parquet)",
    "EXPORT DATABASE 'stolen'",
    "ATTACH 'other.duckdb' AS other",
    "ATTACH 'pidgin_output/experiments/experiments.duckdb' AS again",
    "USE memory; DETACH store; ATTACH 'pidgin_output/experiments/experiments.duckdb' AS again (READ_WRITE)",
    "DETACH store",
    "USE memory",
    "EXPLAIN ANALYZE DELETE FROM messages",
    "SELECT 1; SELECT 2",
    "INSTALL httpfs",
    "LOAD httpfs",
    "FROM read_text('secret.txt')",
    "FROM read_csv('secret.txt')",
    "FROM glob('*')",
    "FROM 'secret.txt'",
    "FROM 'https://127.0.0.1:1/x.csv'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "DELETE FROM messages",
    "UPDATE messages SET content = ''",
    "CREATE TABLE mine AS SELECT 1",
    "DROP VIEW dashboard",
    "SELECT 1; DELETE FROM messages; SELECT 2",
    "CALL pragma_version()",
    "CHECKPOINT",
    "FROM force_checkpoint()",
    "PRAGMA database_list",
    "VACUUM",
    "SET VARIABLE x = 1",
    "FROM read_blob('secret.txt')",
    "FROM read_json('secret.txt')",
    "FROM read_parquet('*')",
    "FROM sniff_csv('secret.txt')",
    "FROM read_duckdb('other.duckdb', table_name = 'messages')",
    "FROM query('FROM secret')",
    "FROM query_table('secret.txt')",
    "SELECT getenv('HOME')",
    "FROM 'file:///etc/passwd'",
    "FROM sqlite_scan('secret.txt', 'x')",
    "SELECT * FROM postgres_query('', '')",
    "COMMENT ON TABLE messages IS 'mine'",
    "CREATE SECRET s (TYPE http)",
    "CREATE MACRO m() AS 1",
    "FROM sql",
    "FROM relation",
    "SELECT nothing FROM messages",
    "SELEC 1",
    "",
    "-- only a comment",
    "PREPARE x AS SELECT 1",
]


def test_a_query_reads_the_database_and_nothing_else(pidgin: Pidgin, talked: str) -> None:
    """No files, no network, no extensions, no Python objects, no change: one line and exit status 2."""
    Path("secret.txt").write_text("secret")
    path = ROOT / "experiments/experiments.duckdb"
    before = path.read_bytes()
    Path("other.duckdb").write_bytes(before)
    for sql in FORBIDDEN:
        error_of(pidgin("query", sql))
        assert path.read_bytes() == before, sql
    assert sorted(path.name for path in Path().iterdir()) == ["other.duckdb", "pidgin_output", "secret.txt"]


def test_hostile_text_in_a_table(pidgin: Pidgin) -> None:
    """What models say cannot move the cursor of whoever looks at a table, nor what a column is called."""
    make(OutputRoot(), "abcdefgh", [talk("\x1b[2J\x9b31m\u202eevil [bold]x[/bold] :smile:", "Two.")])
    assert pidgin("import", "--all").status == 0
    for argv in (["query", 'SELECT content AS "\x1b[31m" FROM messages'], ["query", "FROM messages", "--json"]):
        out = pidgin(*argv).out
        assert not {"\x1b", "\x9b", "\u202e"} & set(out)
    assert "[bold]x[/bold] :smile:" in pidgin("query", "SELECT content FROM messages").out


def test_queries_of_readers_run_beside_each_other(pidgin: Pidgin, talked: str) -> None:
    """Several processes read at once."""
    command = [sys.executable, "-m", "pidgin_cli", "query", "SELECT count(*) AS n FROM messages", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert [json.loads(process.communicate(timeout=60)[0]) for process in running] == [[{"n": 4}]] * 3


def test_a_query_without_a_database(pidgin: Pidgin) -> None:
    """It says what to type first."""
    assert "pidgin import --all" in error_of(pidgin("query", "FROM dashboard"), 1)


# Verify


def test_verify_says_that_all_is_well(pidgin: Pidgin, talked: str) -> None:
    """Words, counts and digests agree: exit status 0 and how much was compared."""
    done = pidgin("verify")
    assert (done.status, done.out) == (
        0,
        f"{talked}: ok; 1 conversation, 4 messages compared, 4 digests replayed; "
        "metrics computed after the run not checked (--metrics computes them again)\n",
    )
    (told,) = json.loads(pidgin("verify", talked, "--json").out)
    assert (told["messages"], told["digests"], told["faults"]) == (4, 4, [])


CHANGES = {
    "several": [
        ("UPDATE messages SET content = content || '.' WHERE message_index = 1", "message 1 differs from character"),
        ("DELETE FROM messages WHERE message_index = 3", "message 3 is missing"),
        ("INSERT INTO messages SELECT * REPLACE (9 AS message_index) FROM messages LIMIT 1", "message 9 is in the"),
        ("UPDATE messages SET prompt_tokens = 0 WHERE message_index = 0", "prompt_tokens of message 0 differs"),
        ("UPDATE conversations SET messages = 5", "counts 5 messages"),
        ("DELETE FROM token_usage WHERE agent_id = 'b'", "token usage differ"),
        ("DELETE FROM events WHERE event_type = 'TurnStartEvent'", "counts 0 TurnStartEvent"),
        ("INSERT INTO experiments (experiment_id) VALUES ('zzzzzzzz')", "its folder is gone"),
        (
            "INSERT INTO conversations SELECT * REPLACE (experiment_id || '-9' AS conversation_id) FROM conversations",
            "its log is gone",
        ),
    ],
    "a speaker": [("UPDATE messages SET agent_id = 'a'", "agent_id of message 1 differs")],
    "a digest": [("UPDATE conversations SET log_sha256 = 'x'", "has changed since it was imported")],
    "a conversation": [("DELETE FROM conversations", "is not in the database")],
    "an experiment": [("DELETE FROM experiments", "is not in the database")],
}


def test_verify_finds_what_was_changed_in_the_database(pidgin: Pidgin, talked: str) -> None:
    """Whatever is changed in the database behind Pidgin's back is found and named; exit status 1."""
    path = ROOT / "experiments/experiments.duckdb"
    before = path.read_bytes()
    for what, changes in CHANGES.items():
        path.write_bytes(before)
        con = duckdb.connect(str(path))
        for change, _ in changes:
            con.execute(change)
        con.close()
        done = pidgin("verify")
        assert done.status == 1, what
        assert [told for _, told in changes if told not in done.out] == []


AT_ONCE = [
    ("UPDATE messages SET thinking_tokens = 9 WHERE message_index = 2", "rows of messages differ"),
    ("UPDATE agents SET temperature = 2 WHERE agent_id = 'b'", "rows of agents differ"),
    ("UPDATE conversations SET seed = 7", "rows of conversations differ"),
    ("UPDATE turns SET speakers = ['b', 'a']", "rows of turns differ"),
    ("UPDATE events SET data = '{}' WHERE event_type = 'TurnStartEvent'", "rows of events differ"),
    ("UPDATE message_metrics SET ttr = 0.123 WHERE message_index = 1", "rows of message_metrics differ"),
    ("UPDATE message_metrics SET tokens = NULL WHERE message_index = 1", "rows of message_metrics differ"),
    ("DELETE FROM message_metrics WHERE message_index = 2", "rows of message_metrics differ"),
    ("DELETE FROM turn_metrics", "rows of turn_metrics differ"),
    ("UPDATE word_uses SET uses = uses + 1", "rows of word_uses differ"),
    (
        "INSERT INTO errors (experiment_id, conversation_id) FROM (SELECT experiment_id, conversation_id FROM agents)",
        "rows of errors differ",
    ),
]


def test_verify_compares_every_table(pidgin: Pidgin, talked: str) -> None:
    """A value that no count and no word depends on is found as well, in whatever table it was changed."""
    con = duckdb.connect(str(ROOT / "experiments/experiments.duckdb"))
    for change, _ in AT_ONCE:
        con.execute(change)
    con.close()
    done = pidgin("verify")
    assert done.status == 1
    assert [told for _, told in AT_ONCE if told not in done.out] == []


def test_verify_finds_a_changed_record(pidgin: Pidgin, talked: str) -> None:
    """A word changed in the log shows in the digests, even after it was imported anew."""
    (log,) = (ROOT / "experiments").glob("*/conv_*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"MessageCompleteEvent"' in line)
    event = json.loads(lines[place])
    event["message"]["content"] += " Or not."
    lines[place] = json.dumps(event).encode() + b"\n"
    log.write_bytes(b"".join(lines))
    assert "has changed since it was imported" in pidgin("verify", talked).out
    assert pidgin("import", talked).status == 0
    done = pidgin("verify", talked)
    assert done.status == 1
    assert "is not what the agents were sent, from message 1 on (3 digests differ)" in done.out


def test_verify_finds_damage_and_gaps(pidgin: Pidgin) -> None:
    """Broken lines and missing events are faults, torn ends and unknown types notes."""
    folder = make(OutputRoot(), "abcdefgh", [talk("One.", "Two.") for _ in range(4)])
    logs = [folder.log(f"abcdefgh-{number}") for number in range(1, 5)]
    lines = [log.read_bytes().splitlines(keepends=True) for log in logs]
    logs[0].write_bytes(b"".join([*lines[0][:4], b"rubbish\n", *lines[0][5:]]))
    logs[1].write_bytes(b"".join([*lines[1][:4], *lines[1][5:]]))
    logs[2].write_bytes(b"".join([*lines[2][:4], b'{"event_type":"MoonEvent","seq":4}\n', *lines[2][5:]]))
    logs[3].write_bytes(b"".join(lines[3]) + b'{"event')
    assert pidgin("import", "--all").status == 1
    (told,) = json.loads(pidgin("verify", "--json").out)
    assert [(fault["where"], fault["what"]) for fault in told["faults"]] == [
        ("abcdefgh-1", "line 5 of its log is broken"),
        ("abcdefgh-2", "1 event is missing from its log"),
    ]
    notes = {(note["where"], note["what"].partition(":")[0]) for note in told["notes"]}
    assert ("abcdefgh-3", "1 events of types that this version does not know") in notes
    assert ("abcdefgh-4", "line 7, the last one, is torn") in notes


def test_verify_of_a_running_experiment(pidgin: Pidgin) -> None:
    """That a log has grown under a living runner is a note and no fault."""
    root = OutputRoot()
    folder = make(root, "abcdefgh", [[start(), turn_start(), said("One.")]])
    claim(root, "abcdefgh")
    assert pidgin("import", "abcdefgh").status == 0
    append(folder, 1, said("Two.", "b", 1, 1))
    done = pidgin("verify", "abcdefgh")
    assert (done.status, "note: abcdefgh-1: its log has changed" in done.out) == (0, True)
    append(folder, 1, end(), ConversationResumedEvent(by="person", turn_number=1, message_index=2))
