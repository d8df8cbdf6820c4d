"""Live metrics and detectors: what a message costs early and late in a conversation, and what a conversation holds.

The text is made of words with a Zipf distribution and English function words, with punctuation, some markdown and now
and then an emoji; no phrase is said twice, so every message brings as many new n-grams as it can. Times are CPU of
the thread, so other programs matter little.
"""

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from itertools import accumulate

from pidgin_cli.metrics.engine import Engine

from .limits import Row

__all__ = ["main"]

AGENTS = ("a", "b")
EARLY, LATE, FAR = 40, 400, 5_000
BUDGET_MS = {120: 1.5, 400: 4.0}
GROWTH = 1.3
FAR_MS = 5.0
MEMORY_KB = 500.0
"""A conversation of 60 messages; 200 of them make the 100 MB by which metrics may raise the use of memory."""

_SMALL = (
    "the of and to a in is that it for as with was on be by this are or not but from at which we you i they have has"
    " had an all their there if would what so can when who will more no out up into them then some could"
)
_FUNCTION = _SMALL.split()
_ENDS = ("a", "e", "i", "o", "u", "ar", "en", "is", "ol", "um")
_SYLLABLES = [head + tail for head in "bdfgklmnprstv" for tail in _ENDS]


class Writer:
    """Makes messages; the same for the same seed."""

    def __init__(self, seed: int, types: int = 12_000) -> None:
        self._random = random.Random(seed)
        self._words = ["".join(self._random.choices(_SYLLABLES, k=self._random.randint(1, 4))) for _ in range(types)]
        self._weights = list(accumulate(1 / (rank + 2.7) for rank in range(types)))

    def message(self, words: int) -> str:
        """A message of so many words."""
        draw = self._random
        content = iter(draw.choices(self._words, cum_weights=self._weights, k=words))
        out: list[str] = []
        left = words
        while left:
            size = min(left, draw.randint(5, 24))
            left -= size
            sentence = [draw.choice(_FUNCTION) if draw.random() < 0.45 else next(content) for _ in range(size)]
            if size > 8:
                sentence[size // 2] += draw.choice([",", ",", " —", ";"])
            out.append(" ".join(sentence).capitalize() + draw.choice("....?!"))
            if draw.random() < 0.15:
                out.append(draw.choice(["\n\n", "\n\n- ", "\n\n## ", " *so* ", " ✨ "]))
        return " ".join(out)


def _times(seed: int, words: int, messages: int) -> list[float]:
    """Milliseconds of CPU for each message of one conversation."""
    writer = Writer(seed)
    texts = [writer.message(words) for _ in range(messages)]
    engine = Engine(AGENTS, opening="What would you like to talk about?")
    took = []
    gc.collect()
    for number, text in enumerate(texts):
        began = time.thread_time()
        engine.add(AGENTS[number % 2], text)
        took.append(1000 * (time.thread_time() - began))
    return took


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _held(conversations: int, messages: int) -> float:
    """Bytes that the engine of each of some conversations holds after so many messages of 120 words."""
    writer = Writer(1)
    texts = [[writer.message(120) for _ in range(messages)] for _ in range(conversations + 1)]
    _said(texts[0])  # what is loaded once does not count
    gc.collect()
    tracemalloc.start()
    engines = [_said(said) for said in texts[1:]]
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / len(engines)


def _said(texts: list[str]) -> Engine:
    engine = Engine(AGENTS)
    for number, text in enumerate(texts):
        engine.add(AGENTS[number % 2], text)
    return engine


def main(*, quick: bool) -> Iterator[Row]:
    """Cost of a message of two lengths, its growth, cost far into a conversation, memory."""
    rounds = 3 if quick else 10
    for words, budget in BUDGET_MS.items():
        runs = [_times(seed, words, LATE + 20) for seed in range(rounds)]
        steady = [took for run in runs for took in run[EARLY:]]
        p95 = _p95(steady)
        what = (
            f"live metrics and detectors, a message of {words} words: p95 (median {statistics.median(steady):.2f} ms)"
        )
        yield Row(what, f"{p95:.2f} ms", f"at most {budget:g} ms", p95 <= budget)
        typical = [statistics.median(column) for column in zip(*runs, strict=True)]
        early = statistics.mean(typical[EARLY - 20 : EARLY + 20])
        late = statistics.mean(typical[LATE - 20 : LATE + 20])
        what = f"… message {LATE} over message {EARLY}"
        yield Row(what, f"{late / early:.2f} ×", f"at most {GROWTH:g} ×", round(late / early, 2) <= GROWTH)
    far = _p95(_times(99, 120, FAR)[-200:])
    yield Row(f"… at message {FAR:,}, 120 words: p95", f"{far:.2f} ms", f"at most {FAR_MS:g} ms", far <= FAR_MS)
    held = _held(20, 60) / 1e3
    what = "… memory of each of 20 conversations of 60 messages"
    yield Row(what, f"{held:.0f} kB", f"at most {MEMORY_KB:g} kB", held <= MEMORY_KB)
    if not quick:
        few, many = _held(1, 1_000), _held(1, 2_000)
        yield Row("… bytes for each further word, messages 1,000 to 2,000", f"{(many - few) / 120_000:.0f} bytes")
