"""How often which words are used: counted by DuckDB, cut by a tokeniser that it is given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import duckdb

__all__ = ["WordCounter", "count_words"]

_AT_ONCE = 1000
"""Messages whose words are counted at a time."""

WordCounter = Callable[[str], Mapping[Literal["word", "emoji"], Sequence[str]]]
"""Every word and every emoji of a text; none of them holds white space."""


def count_words(con: duckdb.DuckDBPyConnection, said: str, words: WordCounter) -> None:
    """Make the temporary table `counted`, with the columns of `word_uses` but `experiment_id`.

    Args:
        said: a SELECT of conversation id, agent id, a number of the message within its conversation, and its text.
    """
    # Counted by DuckDB: one long text takes a hundredth of the time to hand over that a list of its words does.
    con.execute(
        "CREATE OR REPLACE TEMP TABLE uttered (id VARCHAR, agent_id VARCHAR, n BIGINT, kind VARCHAR, words VARCHAR)"
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE spoken AS SELECT row_number() OVER () AS place, x.* "
        f"FROM ({said}) x(id, agent_id, n, content)"
    )
    (messages,) = con.execute("SELECT count(*) FROM spoken").fetchone() or (0,)
    for first in range(0, messages, _AT_ONCE):
        rows = con.execute(
            "SELECT id, agent_id, n, content FROM spoken WHERE place > ? AND place <= ?", [first, first + _AT_ONCE]
        ).fetchall()
        uttered = [
            (*whose, kind, "\n".join(found))
            for *whose, content in rows
            for kind, found in words(content).items()
            if found
        ]
        if uttered:
            con.execute(
                "INSERT INTO uttered SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[]), unnest($3::BIGINT[]), "
                "unnest($4::VARCHAR[]), unnest($5::VARCHAR[])",
                [list(column) for column in zip(*uttered, strict=True)],
            )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE counted AS SELECT id AS conversation_id, agent_id, kind, word, "
        "count(*) AS uses, count(DISTINCT n) AS messages "
        "FROM (SELECT id, agent_id, n, kind, unnest(string_split(words, chr(10))) AS word FROM uttered) GROUP BY ALL"
    )
