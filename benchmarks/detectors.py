"""What all detectors cost: time for a message early and late in a conversation, and the memory of one."""

import random
import statistics
import time
import tracemalloc
from collections.abc import Iterator

from pidgin_cli.metrics.detectors import Detectors

from .limits import Row

__all__ = ["main"]

WORDS = 120
BUDGET_MS = 0.4
STRETCH = 500
"""Messages that a percentile is taken over."""


def main(*, quick: bool) -> Iterator[Row]:
    """Run it and give the rows of the table."""
    last = 1_500 if quick else 5_000
    text = _talk(last + STRETCH)
    rounds = [_times(text) for _ in range(1 if quick else 3)]
    early, late = ([times[first : first + STRETCH] for times in rounds] for first in (40, last))
    for where, stretches in ((40, early), (last, late)):
        p95 = min(statistics.quantiles(stretch, n=20)[-1] for stretch in stretches)
        what = f"all detectors, a message of {WORDS} words from message {where:,} on, p95"
        yield Row(what, f"{p95:.2f} ms", f"≤ {BUDGET_MS} ms", p95 <= BUDGET_MS)
    growth = min(map(statistics.median, late)) / min(map(statistics.median, early))
    yield Row(f"detectors at message {last:,} over message 40, median", f"{growth:.2f} ×", "≤ 1.3 ×", growth <= 1.3)
    yield Row("memory of the detectors of one conversation of 60 messages", f"{_memory(text[:60]):.0f} kB")


def _times(text: list[str]) -> list[float]:
    """Milliseconds of processor time for each message of one conversation; what other programs take is not ours."""
    times = []
    detectors = Detectors(("a", "b"))
    for at, message in enumerate(text):
        began = time.thread_time()
        detectors.add("ab"[at % 2], message)
        times.append((time.thread_time() - began) * 1000)
    return times


def _talk(messages: int) -> list[str]:
    """Pseudo-words with the frequencies of words, in sentences."""
    draw = random.Random(1)
    words = ["".join(draw.choices("aeioulnrstmdkp", k=draw.randint(2, 9))) for _ in range(8_000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    sentences = WORDS // 15
    return [
        " ".join(f"{' '.join(draw.choices(words, weights, k=15)).capitalize()}." for _ in range(sentences))
        for _ in range(messages)
    ]


def _memory(text: list[str]) -> float:
    Detectors(("a", "b")).add("a", "so that the word lists are not counted")
    tracemalloc.start()
    detectors = Detectors(("a", "b"))
    for at, message in enumerate(text):
        detectors.add("ab"[at % 2], message)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / 1000
