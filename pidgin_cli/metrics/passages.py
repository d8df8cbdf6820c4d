"""When a conversation entered a state of the detectors, and what became of one that never did."""

from collections.abc import Mapping, Sequence

from pidgin_cli.core.types import EndReason

from .detectors import NORMAL
from .statistics import Passage

__all__ = ["ATTRACTOR", "entered", "passage"]

ATTRACTOR = "attractor"
"""Any state but the normal one."""

_AT_THE_LIMIT = (None, EndReason.TURN_LIMIT, EndReason.UNKNOWN)
"""Ends that say nothing of what would have come: the time is censored there."""


def entered(
    turns: Mapping[int, int], states: Sequence[str | None], onsets: Sequence[int | None]
) -> dict[str, int] | None:
    """The turn at which each state began, as the detectors date it back.

    Args:
        turns: the turn of each message by its index, in order; of a branch, of those that are its own.
        states: the state at each of these messages, such as `cycle(2)`, which is a `cycle`; None where it is not known.
        onsets: the index of the first message of that state.

    Returns:
        By state, and under `ATTRACTOR` the first of any. None where no message has a state.
    """
    if all(state is None for state in states):
        return None
    first = min(turns.values())
    found: dict[str, int] = {}
    for turn, state, onset in zip(turns.values(), states, onsets, strict=True):
        name = (state or NORMAL).partition("(")[0]
        if name != NORMAL:
            # What a branch shares is not of its own: a state from there is entered with its first message.
            began = turn if onset is None else min(turn, turns.get(onset, first))
            for each in (name, ATTRACTOR):
                found[each] = min(began, found.get(each, began))
    return found


def passage(entered: Mapping[str, int] | None, state: str, last_turn: int, end_reason: str | None) -> Passage | None:
    """The turns until a state, or until nothing more was seen of it; None: not known.

    Args:
        entered: as `entered` gives it.
        last_turn: in which anybody spoke.
        end_reason: of the conversation. One that had not reached its turn limit ended otherwise.
    """
    if entered is None:
        return None
    if (turn := entered.get(state)) is not None:
        return Passage(turn, True)
    return Passage(last_turn, False, None if end_reason in _AT_THE_LIMIT else end_reason)
