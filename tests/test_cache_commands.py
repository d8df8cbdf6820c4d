"""`pidgin cache` and the vectors that are kept beside the replies."""

import json
import sqlite3
from array import array
from pathlib import Path

import pytest
from commands import Pidgin, error_of, pidgin

from pidgin_cli.core.types import Finish, FinishReason, Message, ModelResponse, Role, Usage
from pidgin_cli.providers.cache import ResponseCache
from pidgin_cli.providers.embeddings import VectorCache

__all__ = ["pidgin"]

FOLDER = Path("cache")
REPLY = ModelResponse(Message(Role.ASSISTANT, "Hi."), Finish(FinishReason.STOP), Usage())


@pytest.fixture
def filled(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> Pidgin:
    """Command lines in a folder whose caches hold two replies and 3,000 vectors of a kilobyte."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(FOLDER))
    replies, vectors = ResponseCache(), VectorCache()
    for number in range(2):
        replies.put(bytes([number]), REPLY)
    vectors.put({number.to_bytes(4): array("f", [1.0] * 256) for number in range(3000)})
    replies.close()
    vectors.close()
    return pidgin


def entries(pidgin: Pidgin) -> dict[str, int]:
    return {stats["kept"]: stats["entries"] for stats in json.loads(pidgin("cache", "stats", "--json").out)}


def test_both_caches_are_told_and_emptied(filled: Pidgin) -> None:
    """`stats` tells both with their size and age, `clear` forgets both or the one that is named, and frees the room."""
    told = filled("cache", "stats").out.splitlines()
    assert [line.partition("cache/")[2].partition(",")[0] for line in told if not line.startswith("from ")] == [
        "responses.db: 2 replies",
        "embeddings.db: 3",
    ]
    assert "embeddings.db: 3,000 vectors, 4.2 MB" in told[2]
    assert sum(line.startswith("from ") for line in told) == 2
    assert filled("cache", "clear", "--only", "replies").out == "forgot 2 replies\n"
    assert entries(filled) == {"replies": 0, "vectors": 3000}
    assert filled("cache", "clear").out == "forgot 0 replies and 3,000 vectors\n"
    assert entries(filled) == {"replies": 0, "vectors": 0}
    assert (FOLDER / "embeddings.db").stat().st_size < 50_000


def test_vectors_are_pruned_by_age_and_size(filled: Pidgin) -> None:
    """The oldest go first; a size is kept by each cache; what was asked for less is left alone."""
    with sqlite3.connect(FOLDER / "embeddings.db") as db:
        db.execute("UPDATE vectors SET stored = stored - 864000 WHERE hex(key) < '000003E8'")
        db.execute("UPDATE vectors SET stored = stored + 60 WHERE hex(key) = '00000BB7'")
    db.close()
    assert filled("cache", "prune", "--older-than-days", "5").out == "forgot 0 replies and 1,000 vectors\n"
    assert filled("cache", "prune", "--max-mb", "1", "--only", "replies").out == "forgot 0 replies\n"
    assert filled("cache", "prune", "--max-mb", "1").status == 0
    left = entries(filled)
    assert left["replies"] == 2
    assert 500 < left["vectors"] < 1000
    assert (FOLDER / "embeddings.db").stat().st_size <= 1_000_000
    kept = VectorCache()
    assert kept.get({"newest": (2999).to_bytes(4)}) == {"newest": array("f", [1.0] * 256)}
    kept.close()


def test_a_broken_cache_of_vectors_is_replaced(filled: Pidgin) -> None:
    """`stats` says what is wrong, `prune` cannot, `clear` begins a new one, which works."""
    (FOLDER / "embeddings.db").write_bytes(b"rubbish" * 1000)
    assert "it cannot be used: file is not a database" in filled("cache", "stats").out
    assert "the embedding cache" in error_of(filled("cache", "prune", "--max-mb", "1"), 1)
    assert filled("cache", "clear", "--only", "vectors").out == "forgot 0 vectors\n"
    assert "it cannot be used" not in filled("cache", "stats").out
    assert entries(filled) == {"replies": 2, "vectors": 0}


def test_nothing_is_made_by_looking(pidgin: Pidgin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was ever kept there is nothing to tell, to forget or to create."""
    monkeypatch.setenv("PIDGIN_CACHE_DIR", str(FOLDER))
    assert entries(pidgin) == {"replies": 0, "vectors": 0}
    assert pidgin("cache", "prune", "--older-than-days", "0").out == "forgot 0 replies and 0 vectors\n"
    assert pidgin("cache", "clear").out == "forgot 0 replies and 0 vectors\n"
    assert not FOLDER.exists()
