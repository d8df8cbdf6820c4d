"""What to leave out when an agent's next request would not fit into its model's context window."""

from typing import NamedTuple

from pidgin_cli.core.types import Role
from pidgin_cli.spec.conversation import ConversationSpec

from .history import ConversationTurn, Sent
from .progress import Progress

__all__ = ["Room", "first_turn_that_fits", "room", "summary_text"]

KEEP_SHARE = 0.75
"""Of the room, after turns were left out: the prefix then stays the same for a while and can be cached."""


class Room(NamedTuple):
    """Tokens an agent's next request needs and may have."""

    needed: int
    limit: int
    """The window less the room kept for the reply."""

    @property
    def enough(self) -> bool:
        return self.needed <= self.limit


def room(progress: Progress, agent_id: str, sent: Sent, window: int | None) -> Room | None:
    """How the next request of an agent fits; None when its window is not known.

    Of the conversation's own limit and what the server gives the model, the smaller one counts.
    Tokens are estimated as bytes times the ratio that the agent's last reply reported, 0.25 before the first.
    """
    spec = progress.spec
    window = min((each for each in (spec.context.limit_tokens, window) if each is not None), default=None)
    if window is None:
        return None
    reserve = spec.agent(agent_id).settings.max_tokens or spec.context.reserve_tokens
    needed = int(sent.size * progress.tokens_per_byte[agent_id]) + 4 * len(sent.messages)
    return Room(needed, max(window - reserve, window // 2))


def first_turn_that_fits(progress: Progress, agent_id: str, found: Room, *, harder: bool = False) -> int | None:
    """The oldest turn that may stay so that the request fits well; None when too little would be left.

    Whole turns go, oldest first; the last complete turn and the open one always stay.
    `harder`: the provider itself refused the length, so that the estimate was too low: leave out at least half.
    """
    per_byte = progress.tokens_per_byte[agent_id]
    target = min(found.limit, found.needed // 2 if harder else found.limit) * KEEP_SHARE
    needed = float(found.needed)
    turn = progress.views[agent_id].state.first_turn
    last = max(progress.turns_complete, 1)
    while needed > target and turn < last:
        needed -= _bytes_in_turn(progress, agent_id, turn) * per_byte
        turn += 1
    if turn == progress.views[agent_id].state.first_turn or (needed > found.limit and not harder):
        return None
    return turn


def _turn(progress: Progress, turn_number: int) -> list[ConversationTurn]:
    found = []
    for entry in progress.history.since(turn_number):
        if entry.turn_number != turn_number:
            break
        found.append(entry)
    return found


def _bytes_in_turn(progress: Progress, agent_id: str, turn_number: int) -> int:
    return sum(
        len(entry.content.encode()) + 4
        for entry in _turn(progress, turn_number)
        if entry.audience is None or agent_id in entry.audience
    )


def summary_text(progress: Progress, agent_id: str, from_turn: int, to_turn: int) -> str:
    """What the agent saw in the turns from `from_turn` up to, not including, `to_turn`, with speakers named."""
    spec: ConversationSpec = progress.spec
    lines = []
    for number in range(from_turn, to_turn):
        for entry in _turn(progress, number):
            if entry.audience is not None and agent_id not in entry.audience:
                continue
            if entry.role is Role.ASSISTANT and entry.message_index is not None:
                name = "You" if entry.agent_id == agent_id else progress.names[entry.agent_id or ""]
                lines.append(f"{name}: {entry.content or spec.placeholders.blank}")
            elif entry.role is Role.USER and entry.placement != "parameter":  # which stays in the system prompt
                lines.append(spec.tagged(entry.content).content)
    return "\n\n".join(lines)
