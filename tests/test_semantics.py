"""Embeddings by choice, and what is computed of them and of other conversations after the run."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from commands import Pidgin, error_of, pidgin
from hypothesis import given
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply, loopback_in_thread
from runs import append, make, said, turn_start
from support import conversation
from test_database import talk

from pidgin_cli.core.errors import AuthenticationFailed, Overloaded, ProviderError, SpecError
from pidgin_cli.core.events import ConversationResumedEvent, Event
from pidgin_cli.core.types import Retries
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.detectors import lexical_hash
from pidgin_cli.metrics.semantics import hashed, semantics, topics
from pidgin_cli.providers.embeddings import BATCH_TEXTS, EmbeddingModel, VectorCache, check_choice, open_model

__all__ = ["pidgin"]

CHOICES = ("openai:text-embedding-3-small", "google:gemini-embedding-001", "ollama:nomic-embed-text")
ID = "abcdefgh"


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with loopback_in_thread() as found:
        found.installed.append("nomic-embed-text:latest")
        yield found


@pytest.fixture
def there(server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackServer:
    """The server, to which all SDKs of this process go, and a cache of its own."""
    for name, value in (server.env | {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    return server


def asked(server: LoopbackServer) -> list[list[str]]:
    """The texts of each request for vectors."""
    return [texts for request in server.requests if (texts := request.embedded) is not None]


async def vectors(model: EmbeddingModel, *texts: str) -> list[Any]:
    try:
        return [None if vector is None else list(vector) for vector in await model.vectors(texts)]
    finally:
        await model.aclose()


# Vectors


@pytest.mark.parametrize("choice", CHOICES)
async def test_each_api_gives_vectors_and_no_text_is_sent_twice(there: LoopbackServer, choice: str) -> None:
    """Real SDKs: in order, once per text, blank texts never; the next process has them from the cache."""
    model = open_model(choice)
    found = await vectors(model, "One.", "Three!", " ", "One.", "")
    assert found == [[4, 1, 0.5], [6, 1, 0.5], None, [4, 1, 0.5], None]
    assert asked(there) == [["One.", "Three!"]]
    assert (model.spent.sent, model.spent.cached) == (2, 0)
    assert model.spent.tokens == {"openai": 20, "google": None, "ollama": 2}[choice.partition(":")[0]]
    again = open_model(choice)
    assert await vectors(again, "Three!", "One.", "New") == [[6, 1, 0.5], [4, 1, 0.5], [3, 1, 0.5]]
    assert asked(there)[1:] == [["New"]]
    assert (again.spent.sent, again.spent.cached) == (1, 2)


async def test_the_cache_tells_models_and_servers_apart(there: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model or address is another vector, never the cached one."""
    await vectors(open_model(CHOICES[0]), "One.")
    await vectors(open_model("openai:text-embedding-3-large"), "One.")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{there.url}/v1/")
    await vectors(open_model(CHOICES[0]), "One.")
    assert asked(there) == [["One."]] * 3


async def test_many_texts_go_in_batches(there: LoopbackServer) -> None:
    """No request has more texts than the APIs take, and a long text goes alone."""
    texts = [f"text {n}" for n in range(BATCH_TEXTS + 3)]
    await vectors(open_model(CHOICES[0]), *texts, "x" * 150_000)
    assert [len(batch) for batch in asked(there)] == [BATCH_TEXTS, 3, 1]


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[2]])
async def test_a_text_that_is_too_long_costs_no_other_its_vector(there: LoopbackServer, choice: str) -> None:
    """It is found by halving, has no vector, and is counted."""
    there.embed = lambda text: None if len(text) > 100 else [1.0, float(len(text))]
    model = open_model(choice)
    found = await vectors(model, "a", "bb", "c" * 101, "dddd")
    assert found == [[1, 1], [1, 2], None, [1, 4]]
    assert model.spent.too_long == 1


@pytest.mark.parametrize("choice", CHOICES)
async def test_refusals_are_retried_by_their_class(there: LoopbackServer, choice: str) -> None:
    """Overload is tried again after the wait that the server asks for; a wrong key is not, and is one clear line."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    there.script(Reply(status=503, headers={"Retry-After": "7"}), Reply(status=429, headers={"Retry-After": "2"}))
    assert await vectors(open_model(choice, sleep=sleep), "One.") == [[4, 1, 0.5]]
    assert waits == [7, 2]
    there.script(Reply(status=401, body={"error": {"message": "bad key sk-loopback", "code": 401}}))
    with pytest.raises(AuthenticationFailed) as refused:
        await vectors(open_model(choice, sleep=sleep), "Two.")
    assert "sk-loopback" not in str(refused.value)
    assert len(waits) == 2


async def test_what_arrived_before_a_failure_is_kept(there: LoopbackServer) -> None:
    """The next try asks only for what is missing."""
    texts = [f"text {n}" for n in range(BATCH_TEXTS + 2)]
    there.script(Reply(), Reply(status=400, body={"error": {"message": "no", "type": "invalid_request_error"}}))
    with pytest.raises(ProviderError):
        await vectors(open_model(CHOICES[0]), *texts)
    await vectors(open_model(CHOICES[0]), *texts)
    assert [len(batch) for batch in asked(there)] == [BATCH_TEXTS, 2, 2]


async def test_attempts_come_to_an_end(there: LoopbackServer) -> None:
    """As many as replies have, then the error goes up."""

    async def sleep(_: float) -> None:
        pass

    there.script(*(Reply(status=503) for _ in range(Retries().attempts)))
    with pytest.raises(Overloaded):
        await vectors(open_model(CHOICES[0], sleep=sleep), "One.")
    assert len(asked(there)) == Retries().attempts


@pytest.mark.parametrize("damage", ["no database", "newer", "short"])
async def test_a_broken_cache_is_left_out(
    there: LoopbackServer, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is asked as if there were none, with one warning for a file that cannot be used."""
    path = tmp_path / "cache" / "embeddings.db"
    await vectors(open_model(CHOICES[0]), "One.")
    if damage == "no database":
        path.write_bytes(b"rubbish" * 1000)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99" if damage == "newer" else "UPDATE vectors SET vector = x'010203'")
        db.close()
    with caplog.at_level(logging.WARNING):
        assert await vectors(open_model(CHOICES[0]), "One.", "Two") == [[4, 1, 0.5], [3, 1, 0.5]]
    assert len(caplog.records) == (damage != "short")


async def test_the_cache_holds_neither_text_nor_key(there: LoopbackServer, tmp_path: Path) -> None:
    """What others could read of the file says nothing of what was said."""
    await vectors(open_model(CHOICES[0]), "A secret sentence.")
    held = (tmp_path / "cache" / "embeddings.db").read_bytes()
    assert b"secret" not in held
    assert b"sk-loopback" not in held
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("choice", ["", "openai", "openai:", "nobody:x", "anthropic:claude", "local:test", "replay:x"])
def test_what_is_no_embedding_model_is_refused(choice: str) -> None:
    """A name that gives no vectors is wrong use, said before anything is asked."""
    with pytest.raises(SpecError, match="embedding model"):
        check_choice(choice)


def test_the_offline_model_knows_meaning_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights come with its package: sentences of one meaning are nearer than others, with every socket closed."""
    pytest.importorskip("wordllama")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = open_model("wordllama", cache=VectorCache(tmp_path / "e.db"))
    texts = ("The kitten slept on the sofa.", "A cat was sleeping on the couch.", "Share prices fell in Tokyo.")
    kitten, cat, shares = map(np.array, asyncio.run(vectors(model, *texts)))
    near, far = (a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ((kitten, cat), (kitten, shares)))
    assert near > far + 0.2
    assert model.model_id == "wordllama:l2_supercat_256"


def test_the_hash_is_that_of_the_detectors() -> None:
    """`lexical_hash` is 512 numbers of unit length; equal words give equal vectors, none gives zero."""
    assert hashed("One two.").tolist() == lexical_hash(["one", "two"]).tolist()
    assert np.linalg.norm(hashed("One two.")) == pytest.approx(1)
    assert not hashed("…").any()
    assert hashed("x").shape == (512,)


# What they tell


CLUSTERED = {
    f"{number}": [np.eye(9)[(number + place) % 3 + 6 * (place % 7 == 3)] for place in range(12)] for number in range(6)
}


def test_topics_are_what_lies_together() -> None:
    """Equal directions have one topic, others another; numbers go by size; switches count the changes."""
    found, switches = topics(CLUSTERED)
    of_vector: dict[int, set[int | None]] = {}
    for name, each in CLUSTERED.items():
        for vector, topic in zip(each, found[name], strict=True):
            of_vector.setdefault(int(vector.argmax()), set()).add(topic)
    assert all(len(seen) == 1 for seen in of_vector.values())
    assert len(set.union(*of_vector.values())) == len(of_vector)
    counts = [sum(topic == number for each in found.values() for topic in each) for number in range(8)]
    assert counts == sorted(counts, reverse=True)
    assert switches["0"] == sum(a != b for a, b in zip(found["0"], found["0"][1:], strict=False))


@given(st.permutations(sorted(CLUSTERED)))
def test_topics_do_not_know_the_order(order: list[str]) -> None:
    """Conversations in another order get the same topics."""
    assert topics({name: CLUSTERED[name] for name in order}) == topics(CLUSTERED)


def test_few_messages_have_no_topics() -> None:
    """Below 40 vectors there is nothing to put into eight clusters."""
    assert topics({"x": [np.eye(3)[0]] * 39 + [None]}) == ({"x": [None] * 40}, {"x": None})


_VECTOR = st.none() | st.lists(st.floats(-1, 1, width=16), min_size=3, max_size=3)
_PATH = st.lists(st.tuples(st.sampled_from("ab"), _VECTOR), max_size=12)


@given(_PATH, st.integers(0, 12))
def test_appending_vectors_never_changes_the_past(path: list[tuple[str, Any]], cut: int) -> None:
    """The semantic metrics of a message do not depend on what comes after it."""
    whole, _ = semantics(path, seed=[1, 0, 0])
    assert semantics(path[:cut], seed=[1, 0, 0])[0] == whole[:cut]


@given(_PATH)
def test_swapping_the_speakers_swaps_nothing_else(path: list[tuple[str, Any]]) -> None:
    """Who is called a and who b changes no value of a message, and swaps those of the agents."""
    swapped = [("ba"["ab".index(agent)], vector) for agent, vector in path]
    rows, summaries = semantics(path)
    other_rows, others = semantics(swapped)
    assert rows == other_rows
    assert {s.agent_id: s.value for s in summaries} == {{"a": "b", "b": "a"}[str(s.agent_id)]: s.value for s in others}


# In the database


def spoken(*texts: str) -> list[Event]:
    """The log of a conversation whose spec can be taken in again."""
    spec = msgspec.to_builtins(conversation("local:test", "local:test"))
    return [msgspec.structs.replace(talk()[0], spec=spec), *talk(*texts)[1:]]


@pytest.fixture
def talked(there: LoopbackServer, pidgin: Pidgin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six conversations on disk; the environment is that of `pidgin`, and leads to the server."""
    for name, value in (there.env | {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    logs = [
        spoken(*(f"The {w} of {n} is {w}, said {i}." for i, w in enumerate(["one", "two", "six", "ten"])))
        for n in range(6)
    ]
    make(OutputRoot(), ID, logs)
    return ID


def ask(pidgin: Pidgin, sql: str) -> list[Any]:
    told = pidgin("query", sql, "--json")
    assert told.status == 0, told.err
    return list(json.loads(told.out))


def test_without_a_choice_nothing_is_sent_and_null_says_why(pidgin: Pidgin, talked: str, there: LoopbackServer) -> None:
    """All other metrics are there; the semantic ones are NULL, with the reason and what to type."""
    assert pidgin("import", talked).status == 0
    assert there.requests == []
    (row,) = ask(
        pidgin,
        "SELECT count(*) AS n, count(char3_cosine) AS others, count(sem_step_self) AS steps, "
        "count(convergence_index) AS corrected, count(embedding_model) AS models, count(ttr) AS live "
        "FROM message_metrics",
    )
    assert row == {"n": 24, "others": 18, "steps": 0, "corrected": 18, "models": 0, "live": 24}
    whys = ask(pidgin, "SELECT DISTINCT part, missing FROM computed_metrics WHERE missing IS NOT NULL")
    assert [why["part"] for why in whys] == ["semantics"]
    assert "--embeddings MODEL" in whys[0]["missing"]


def test_a_choice_fills_the_columns_and_names_the_model(pidgin: Pidgin, talked: str, there: LoopbackServer) -> None:
    """Values, model and what it took; a second time nothing is asked; another model replaces all values."""
    told = pidgin("import", talked, "--embeddings", CHOICES[0])
    assert told.status == 0
    assert "25 texts, 0 from the cache, 250 tokens, cost not known" in told.out  # not at home, so no listed price
    assert "sk-loopback" not in told.out + told.err
    sql = "SELECT DISTINCT embedding_model AS m, count(sem_sim_partner) AS n FROM message_metrics GROUP BY ALL"
    assert ask(pidgin, sql) == [{"m": CHOICES[0], "n": 18}]
    assert ask(pidgin, "SELECT count(*) AS n FROM conversation_metrics WHERE name = 'path_efficiency_a'") == [{"n": 0}]
    requests = len(there.requests)
    before = ask(pidgin, "FROM message_metrics ORDER BY ALL")
    assert pidgin("import", talked, "--embeddings", CHOICES[0]).status == 0
    assert pidgin("import", talked).status == 0
    assert len(there.requests) == requests
    assert ask(pidgin, "FROM message_metrics ORDER BY ALL") == before
    assert pidgin("import", talked, "--embeddings", "lexical_hash").status == 0
    assert ask(pidgin, sql) == [{"m": "lexical_hash", "n": 18}]
    (told_json,) = json.loads(pidgin("import", talked, "--embeddings", CHOICES[0], "--json").out)
    assert told_json["metrics"]["spent"] == {"sent": 0, "cached": 25, "tokens": 0, "too_long": 0}
    assert told_json["metrics"]["cost_usd"] == 0


def test_a_failure_is_one_line_and_costs_nothing_else(pidgin: Pidgin, talked: str, there: LoopbackServer) -> None:
    """Exit status 1 and why; the other metrics are there, and the database says why these are not."""
    there.script(Reply(status=401, body={"error": {"message": "Incorrect API key sk-loopback", "type": "x"}}))
    told = pidgin("import", talked, "--embeddings", CHOICES[0])
    assert told.status == 1
    assert told.out.count(CHOICES[0]) == 1
    assert "sk-loopback" not in told.out + told.err
    (row,) = ask(pidgin, "SELECT count(vendi_w8) AS v, count(sem_step_self) AS s, count(ttr) AS t FROM message_metrics")
    assert row == {"v": 0, "s": 0, "t": 24}
    (why,) = ask(pidgin, "SELECT DISTINCT missing FROM computed_metrics WHERE part = 'semantics'")
    assert why["missing"].startswith(CHOICES[0])
    assert pidgin("import", talked, "--embeddings", CHOICES[0]).status == 0
    assert ask(pidgin, "SELECT DISTINCT missing FROM computed_metrics WHERE part = 'semantics'") == [{"missing": None}]
    there.script(Reply(status=401))
    assert pidgin("import", talked, "--embeddings", "openai:other").status == 1
    assert ask(pidgin, "SELECT DISTINCT embedding_model AS m FROM message_metrics") == [{"m": CHOICES[0]}]


def test_a_conversation_that_grew_is_computed_anew(pidgin: Pidgin, talked: str, there: LoopbackServer) -> None:
    """Its old values go with its old rows; without a choice its new ones are NULL, and no model is mixed in."""
    pidgin("import", talked, "--embeddings", CHOICES[0])
    folder = OutputRoot().find(talked)
    append(folder, 1, ConversationResumedEvent(by="person", turn_number=3, message_index=4))
    append(folder, 1, turn_start(3), said("More.", "a", 3, 4))
    requests = len(there.requests)
    assert pidgin("import", talked).status == 0
    assert len(there.requests) == requests
    sql = (
        "SELECT conversation_id AS c, embedding_model AS m, count(sem_drift_seed) AS n FROM message_metrics "
        "GROUP BY ALL ORDER BY c"
    )
    found = ask(pidgin, sql)
    assert found[0] == {"c": f"{ID}-1", "m": None, "n": 0}
    assert {row["m"] for row in found[1:]} == {CHOICES[0]}
    assert pidgin("import", talked, "--embeddings", CHOICES[0]).status == 0
    assert {(row["m"], row["n"]) for row in ask(pidgin, sql)} == {(CHOICES[0], 4), (CHOICES[0], 5)}
    assert asked(there)[-1] == ["More."]


def test_records_only(pidgin: Pidgin, talked: str) -> None:
    """`--no-metrics` takes the records and computes nothing; with --embeddings it makes no sense."""
    assert pidgin("import", talked, "--no-metrics").status == 0
    assert ask(pidgin, "SELECT count(*) AS n FROM message_metrics") == [{"n": 0}]
    assert "--no-metrics" in error_of(pidgin("import", talked, "--no-metrics", "--embeddings", "lexical_hash"))
    assert "embedding model" in error_of(pidgin("import", talked, "--embeddings", "gpt"))


def test_the_surrogates_are_of_the_arm(pidgin: Pidgin, talked: str) -> None:
    """n stands beside each value; an arm of four has none and says so; a conversation has mean and slope."""
    others = [[msgspec.structs.replace(events[0], arm="other"), *events[1:]] for events in [spoken("Yes.", "No.")] * 4]
    make(OutputRoot(), "zzzzzzzz", others)
    assert pidgin("import", "--all").status == 0
    rows = ask(
        pidgin,
        "SELECT experiment_id AS e, message_index AS i, min(convergence_surrogates) AS n, "
        "count(convergence_index) AS c FROM message_metrics GROUP BY ALL ORDER BY ALL",
    )
    assert [(row["i"], row["n"], row["c"]) for row in rows if row["e"] == ID] == [
        (0, None, 0), (1, 5, 6), (2, 5, 6), (3, 5, 6)
    ]  # fmt: skip
    assert {(row["n"], row["c"]) for row in rows if row["e"] != ID} == {(None, 0)}
    why = ask(
        pidgin, "SELECT DISTINCT missing FROM computed_metrics WHERE part = 'others' AND experiment_id <> 'abcdefgh'"
    )
    assert "4 valid conversations" in why[0]["missing"]
    sql = "SELECT name, count(number) AS n FROM conversation_metrics WHERE name LIKE 'convergence_index%' GROUP BY ALL"
    assert {row["name"]: row["n"] for row in ask(pidgin, sql)} == {
        "convergence_index_mean": 6,
        "convergence_index_pooled_mean": 6,
        "convergence_index_pooled_slope": 6,
        "convergence_index_slope": 6,
    }


SPEC = """
agents: [{id: a, model: "local:test?words=30"}, {id: b, model: "local:test?words=30"}]
max_turns: 4
repetitions: 2
seed: 7
"""


def test_import_computes_what_a_live_run_writes(pidgin: Pidgin, tmp_path: Path) -> None:
    """With `metrics: off` the same words get the same numbers, by message, turn and conversation."""
    found = []
    for metrics in ("live", "off"):
        (tmp_path / "spec.yaml").write_text(f"{SPEC}metrics: {metrics}\n")
        assert pidgin("run", "spec.yaml", "-o", metrics, "--display", "quiet").status == 0
        assert pidgin("import", "--all", "-o", metrics).status == 0
        rows = {}
        for name, sql in {
            "messages": "SELECT c.repetition, m.* EXCLUDE (conversation_id, experiment_id, computed, latency_ms, "
            "ttft_ms, tokens_per_s) FROM message_metrics m JOIN conversations c USING (conversation_id) ORDER BY ALL",
            "turns": "SELECT repetition, turn_number, convergence, detectors FROM turns "
            "JOIN conversations USING (conversation_id) ORDER BY ALL",
            "pairs": "SELECT repetition, turn_number, t.metrics FROM turn_metrics t "
            "JOIN conversations USING (conversation_id) ORDER BY ALL",
            "conversations": "SELECT repetition, m.name, value FROM conversation_metrics m "
            "JOIN conversations USING (conversation_id) ORDER BY ALL",
        }.items():
            told = pidgin("query", sql, "--json", "-o", metrics)
            rows[name] = json.loads(told.out)
        found.append(rows)
        told = pidgin("query", "SELECT DISTINCT computed FROM message_metrics", "--json", "-o", metrics)
        assert json.loads(told.out) == [{"computed": True if metrics == "off" else None}]
    live, off = found
    assert len(live["messages"]) == 16
    assert live == off


def test_the_spec_names_the_model(pidgin: Pidgin, tmp_path: Path) -> None:
    """`embeddings:` is heard when the pages are made; a model that gives no vectors is told before anything runs."""
    (tmp_path / "spec.yaml").write_text(f"{SPEC}embeddings: lexical_hash\n")
    assert pidgin("run", "spec.yaml", "--display", "quiet").status == 0
    (row,) = json.loads(pidgin("list", "--json").out)
    told = pidgin("report", row["experiment_id"], "--only", "import", "--only", "metrics")
    assert "semantic metrics by lexical_hash" in told.out
    assert ask(pidgin, "SELECT DISTINCT embedding_model AS m FROM message_metrics") == [{"m": "lexical_hash"}]
    (tmp_path / "wrong.yaml").write_text(f"{SPEC}embeddings: anthropic:claude\n")
    assert "anthropic has no embedding models" in error_of(pidgin("run", "wrong.yaml"))
