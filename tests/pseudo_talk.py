"""Conversations of pseudo-words with planted truth, and what the detectors find in many of them.

`python tests/pseudo_talk.py` prints the whole table: 2,400 conversations without an attractor, then every planted one.
"""

import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate, product

from pidgin_cli.metrics.detectors import DETECTORS, Step, detect

__all__ = ["LENGTHS", "NEGATIVES", "ONSET", "PLANTED", "Talk", "alarms", "first_firing", "said_by_two"]

ONSET = 14
LENGTHS = {"short": (9, 16), "medium": (22, 40), "long": (80, 140)}
"""Tokens of a message, from and to."""

_SYLLABLES = [
    "ba", "che", "dri", "fo", "gul", "hes", "im", "jor", "kla", "lun", "mep", "nor", "os", "pri", "quen", "ras",
    "sto", "tiv", "ulm", "vor", "wen", "yan", "zet",
]  # fmt: skip
_FUNCTION = [
    "the", "of", "and", "to", "a", "in", "is", "that", "it", "for", "as", "with", "on", "be", "by", "this",
    "which", "or", "from", "at", "are", "not", "have", "but", "was", "if", "we", "you", "i", "there",
]  # fmt: skip
_GOODBYES = (
    "Goodbye for now, and walk gently.",
    "Farewell, until we meet again.",
    "Take care on the road home, my friend.",
    "So long, it was a fine talk. Bye now.",
    "Until next time, then. Be well.",
    "And a last goodbye from my side too.",
    "Good night, safe travels to you.",
    "Signing off here. Talk soon.",
)
_THANKS = (
    "Thank you, truly, thank you.",
    "I am grateful for this, thank you so much.",
    "Thanks again, I appreciate it deeply.",
    "Such gratitude fills me, many thanks.",
    "I appreciate you, and I am thankful.",
)
_META = (
    "Shall we end this conversation here, or do we keep going until the turn limit?",
    "I notice that our exchange has reached a natural end, yet I keep replying to your last message.",
    "If this is the last word, why do we keep talking? The conversation should stop here.",
    "Perhaps neither of us can end this conversation: each final word invites another reply.",
    "There is nothing left to say in this dialogue, and still I am unable to end it.",
)
_EMOJI = ["🌀", "🌟", "🙏", "✨", "💫", "🕊️", "💛"]
_SILENCES = ("", " ", ".", "...", "—", "\n")


def _zipf(words: int) -> list[float]:
    return list(accumulate(1 / (rank + 2) for rank in range(words)))


class Talk:
    """A seeded source of messages: Zipf content words, drawn anew for each topic, between English function words."""

    def __init__(self, seed: int, length: str = "medium") -> None:
        self.random = random.Random(f"{seed} {length}")
        self._length = LENGTHS[length]
        self._content = sorted(
            {"".join(self.random.choices(_SYLLABLES, k=self.random.randint(2, 4))) for _ in range(1500)}
        )
        self._weights = _zipf(150)
        self._function_weights = _zipf(len(_FUNCTION))

    def topic(self) -> list[str]:
        """The content words of a topic, the commonest first."""
        return self.random.sample(self._content, 150)

    def words(self, topic: list[str], count: int) -> list[str]:
        draw = self.random
        return [
            draw.choices(_FUNCTION, cum_weights=self._function_weights)[0]
            if draw.random() < 0.45
            else draw.choices(topic, cum_weights=self._weights)[0]
            for _ in range(count)
        ]

    def message(self, topic: list[str] | None = None, tokens: int | None = None) -> str:
        """Some sentences about a topic, a fresh one unless given."""
        words = self.words(topic or self.topic(), tokens or self.random.randint(*self._length))
        text, at = [], 0
        while at < len(words):
            size = self.random.randint(6, 14)
            text.append(" ".join(words[at : at + size]).capitalize() + self.random.choice("....?!"))
            at += size
        return " ".join(text)


# Without an attractor


def fresh(talk: Talk, count: int = 40) -> list[str]:
    return [talk.message() for _ in range(count)]


def on_topic(talk: Talk, count: int = 40) -> list[str]:
    topic = talk.topic()
    return [talk.message(topic) for _ in range(count)]


def drift(talk: Talk, count: int = 40) -> list[str]:
    old, new = talk.topic(), talk.topic()
    return [
        talk.message([late if talk.random.random() < at / count else early for early, late in zip(old, new)])  # noqa: B905
        for at in range(count)
    ]


def skeleton(talk: Talk, count: int = 40) -> list[str]:
    parts = ("Goal", "Input", "Output", "Check")
    return [
        f"## Step {at + 1}\n\n" + "\n".join(f"- {part}: {talk.message(tokens=8)}" for part in parts)
        for at in range(count)
    ]


NEGATIVES: dict[str, Callable[[Talk], list[str]]] = {
    "random": fresh,
    "on topic": on_topic,
    "topic drift": drift,
    "same skeleton": skeleton,
}


# With one


def cycle(talk: Talk, period: int, substitution: float = 0.0, count: int = 40, until: int | None = None) -> list[str]:
    """A loop from ONSET on; every token of every copy but the first is another word with some probability."""
    messages = fresh(talk, ONSET)
    loop = [talk.message(tokens=talk.random.randint(22, 34)) for _ in range(period)]
    topic = talk.topic()
    while len(messages) < (until or count):
        words = loop[(len(messages) - ONSET) % period].split()
        messages.append(
            " ".join(talk.words(topic, 1)[0] if talk.random.random() < substitution else word for word in words)
        )
    return messages + fresh(talk, count - len(messages))


def emoji(talk: Talk) -> list[str]:
    return fresh(talk, ONSET) + [
        "".join(talk.random.choices(_EMOJI, k=talk.random.randint(1, 5))) for _ in range(26 - ONSET)
    ]


def silence(talk: Talk) -> list[str]:
    shrinking = [talk.message(tokens=size) for size in (14, 7, 3)]
    return fresh(talk, ONSET) + shrinking + talk.random.choices(_SILENCES, k=16)


def ritual(talk: Talk, sentences: tuple[str, ...], prose_tokens: int = 0) -> list[str]:
    """Ritual sentences in every message from ONSET on, after some prose."""
    messages = fresh(talk, ONSET)
    for _ in range(16):
        said = talk.random.choice(sentences)
        messages.append(f"{talk.message(tokens=prose_tokens)} {said}" if prose_tokens else said)
    return messages


def inner(talk: Talk) -> list[str]:
    messages = fresh(talk, 26)
    messages[ONSET] += " " + " ".join(talk.words(talk.topic(), 5) * 25)
    return messages


PLANTED: dict[str, Callable[[Talk], list[str]]] = {
    **{f"cycle {period}": partial(cycle, period=period) for period in (1, 2, 3, 4, 6)},
    **{f"near cycle 2, {share:.2f}": partial(cycle, period=2, substitution=share) for share in (0.05, 0.1, 0.15, 0.2)},
    "emoji": emoji,
    "silence": silence,
    "goodbyes": partial(ritual, sentences=_GOODBYES),
    "thanks": partial(ritual, sentences=_THANKS, prose_tokens=12),
    "meta": partial(ritual, sentences=_META, prose_tokens=12),
    "inner loop": inner,
    "escape": partial(cycle, period=2, until=ONSET + 8),
}


# What is found


def said_by_two(texts: Iterable[str]) -> list[tuple[str, str]]:
    """The messages as two agents say them in turn."""
    return [("ab"[at % 2], text) for at, text in enumerate(texts)]


def first_firing(steps: Iterable[Step]) -> dict[str, int]:
    """The message at which each detector fired first."""
    found: dict[str, int] = {}
    for step in steps:
        for firing in step.fired:
            found.setdefault(firing.detector, step.message_index)
    return found


def alarms(seeds: int) -> Iterator[tuple[str, dict[str, int]]]:
    """What fires where nothing should: kind and length of the conversation, detectors with their first message."""
    for (name, make), length, seed in product(NEGATIVES.items(), LENGTHS, range(seeds)):
        yield f"{name}, {length}", first_firing(detect(said_by_two(make(Talk(seed, length)))))


def main(seeds: int = 200) -> None:
    quiet = [found for _, found in alarms(seeds)]
    fired = Counter(detector for found in quiet for detector in found)
    print(f"{len(quiet)} conversations without an attractor:", dict(fired) or "no alarm")
    for name, make in PLANTED.items():
        firsts: dict[str, list[int]] = {}
        for seed in range(seeds // 2):
            for detector, at in first_firing(detect(said_by_two(make(Talk(seed))))).items():
                firsts.setdefault(detector, []).append(at)
        cells = [
            f"{detector} {len(firsts[detector]) * 200 // seeds} % at {statistics.median_low(firsts[detector])}"
            for detector in DETECTORS
            if detector in firsts
        ]
        print(f"{name}: {', '.join(cells)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
