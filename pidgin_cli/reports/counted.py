"""Which conversations enter means, intervals and tests, and what is said of those that do not."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from pidgin_cli.core.types import Status

from .text import count

__all__ = ["Counted", "Standing", "counted", "why_left_out"]

T = TypeVar("T")


class Standing(NamedTuple):
    """What decides whether a conversation counts."""

    status: str
    invalid: Sequence[str]
    """Why it is to be left out of statistics; empty: it is not."""
    spoke: bool
    """Whether a message was said in it."""


class Counted(NamedTuple, Generic[T]):
    """Those that count, and a sentence about all: `n = 4 conversations, complete and valid; left out: 2 failed`."""

    conversations: list[T]
    basis: str


def counted(conversations: Iterable[tuple[T, Standing]]) -> Counted[T]:
    """Those that are complete and valid; where none is, the valid ones that hold a message, so that there is a page."""
    every = list(conversations)
    complete = [place for place, (_, each) in enumerate(every) if why_left_out(each.status, each.invalid) is None]
    kept = complete or [place for place, (_, each) in enumerate(every) if not each.invalid and each.spoke]
    inside = set(kept)
    standings = [each for place, (_, each) in enumerate(every) if place not in inside]
    outside = Counter(why_left_out(each.status, each.invalid) or "" for each in standings)
    basis = f"n = {count(len(kept), 'conversation')}, {'complete and valid' if complete else 'none of them complete'}"
    if outside:
        basis += "; left out: " + ", ".join(f"{number:,} {why}" for why, number in sorted(outside.items()))
    return Counted([every[place][0] for place in kept], basis)


def why_left_out(status: str, invalid: Iterable[str]) -> str | None:
    """What keeps a conversation out of statistics; None: nothing does."""
    if reasons := sorted(invalid):
        return f"invalid ({', '.join(reasons)})"
    return None if status == Status.COMPLETED else status
