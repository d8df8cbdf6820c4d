"""What groups of conversations are compared in when nobody names anything, here and in `pidgin compare`."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["BASE", "HEADLINE", "SERIES", "TOTALS", "series", "totals"]

SERIES = {
    "words": "tokens of a message",
    "completion_tokens": "completion tokens of a message, as reported",
    "duration_ms": "time of a reply, cached ones apart",
    "ttft_ms": "time to its first piece",
}
"""Measures of messages that every record has, without any metric being stored."""
TOTALS = ("turns", "total_words", "total_tokens", "cost_usd")
"""Those of conversations."""
BASE = (*SERIES, *TOTALS)

HEADLINE = (
    *(
        "convergence_index",
        "convergence_index_pooled",
        "convergence",
        "cosine_tf",
        "copied_span_share",
        "lsm",
        "mattr_50",
        "rep_4",
        "novelty_4gram",
        "history_gain",
    ),
    *("sem_step_self", "sentiment"),
)
"""Metrics of messages, as far as they are stored."""


def series(messages: Sequence[Mapping[str, Any]], words: Sequence[int]) -> dict[str, list[float | None]]:
    """The `SERIES` of a conversation, given its rows of the table `messages` and the tokens of each."""
    return {
        "words": list(map(float, words)),
        "completion_tokens": [message["completion_tokens"] for message in messages],
        "duration_ms": [None if message["cached"] else message["duration_ms"] for message in messages],
        "ttft_ms": [None if message["cached"] else message["ttft_ms"] for message in messages],
    }


def totals(row: Mapping[str, Any], words: Sequence[int]) -> dict[str, float | None]:
    """The `TOTALS` of a conversation, given its row of the table `conversations` and the tokens of its messages."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    return {
        "turns": row["turns"],
        "total_words": sum(words),
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
        "cost_usd": row["cost_usd"],
    }
