"""When the interventions of a script that wait for something are due.

Decided at the end of every turn from what is recorded of it, and from nothing else, so that a resumed conversation and
a replay decide as the first run did.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pidgin_cli.core.events import AttractorEvent, InterventionEvent, MessageCompleteEvent, TurnCompleteEvent
from pidgin_cli.spec.conversation import Intervention, Trigger

__all__ = ["Due", "Triggers"]


class Due(NamedTuple):
    """An intervention that is to be done, and why."""

    intervention: Intervention
    trigger: str | None = None
    """None: its turn has come."""
    value: float | None = None
    """What met the trigger; None: a state, which has none, or a detector that fired before the last turn."""


class Triggers:
    """The triggers of one script, as the turns of one conversation meet them or not."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self._all = interventions
        waiting = {number: item for number, item in enumerate(interventions) if item.when is not None}
        self._left = {number: item.times for number, item in waiting.items()}
        self._held = dict.fromkeys(waiting, 0)
        """For how many turns each has been met, up to the last one."""
        self._met: dict[int, float | None] = {}
        """Those that the next turn begins with, with the value that met them."""
        self._next = 0
        """Its number."""
        self._now: dict[int, float | None] = {}
        """Those that the open turn began with."""
        self._silent: list[tuple[int, int, tuple[str, ...]]] = []
        """First and last turn in which a trigger silences agents."""
        self._speakers: dict[str, str] = {}
        """Of the open turn: agent by message index."""
        self._fired: dict[str, float] = {}
        """Of the open turn: value by detector."""

    def due(self, turn: int) -> list[Due]:
        """What is to be done at the beginning of the open turn, in the order of the script."""
        found = []
        for number, item in enumerate(self._all):
            if item.when is None and item.turn == turn:
                found.append(Due(item))
            elif item.when is not None and number in self._now:
                found.append(Due(item, str(item.when), self._now[number]))
        return found

    def silent(self, turn: int) -> set[str]:
        """Agents that triggers keep silent in a turn, the next one at the latest."""
        coming = [self._all[number] for number in self._met] if turn == self._next else []
        return {name for first, last, names in self._silent if first <= turn <= last for name in names}.union(
            *(item.agents for item in coming if item.kind == "mute")
        )

    # What the record says

    def said(self, event: MessageCompleteEvent) -> None:
        self._speakers[str(event.message_index)] = event.agent_id

    def found(self, event: AttractorEvent) -> None:
        self._fired[event.detector] = event.value

    def begin(self, turn: int) -> None:
        """A turn of this conversation has begun: what was due is spent."""
        self._now, self._met = self._met, {}
        for number in self._now:
            item = self._all[number]
            self._left[number] -= 1
            self._held[number] = 0
            if item.kind == "mute":
                self._silent.append((turn, turn + item.turns - 1, item.agents))

    def shared(self, event: InterventionEvent) -> None:
        """Done in the conversation that this one branches off: from there on turns are counted anew."""
        for number in self._held:
            if str(self._all[number].when) == event.trigger:
                self._held[number] = 0

    def end(self, event: TurnCompleteEvent) -> None:
        """A turn has ended, be it of this conversation or of the one that it branches off."""
        self._met, self._next = {}, event.turn_number + 1
        for number in self._held:
            when = self._all[number].when
            assert when is not None, "the others wait for nothing"
            met, value = self._judge(when, event)
            self._held[number] = self._held[number] + 1 if met else 0
            if self._left[number] and self._held[number] >= when.for_turns:
                self._met[number] = value
        self._speakers, self._fired = {}, {}

    def _judge(self, when: Trigger, event: TurnCompleteEvent) -> tuple[bool, float | None]:
        """Whether the turn meets the condition, and the value that does."""
        if when.state is not None:
            return event.detectors.get("state") == when.state, None
        if when.detector is not None:
            fired = self._fired.get(when.detector)
            return fired is not None or when.detector in event.detectors.get("active", ()), fired
        values = self._values(when, event)
        known = [value for value in values if value is not None]
        if not known or (when.agent == "all" and len(known) < len(values)):
            return False, None
        # Of several the one that decides: any of them is enough, but for `all` the last to meet it.
        if when.above is not None:
            value = min(known) if when.agent == "all" else max(known)
            return value > when.above, value
        assert when.below is not None, "a metric has one of the two"
        value = max(known) if when.agent == "all" else min(known)
        return value < when.below, value

    def _values(self, when: Trigger, event: TurnCompleteEvent) -> list[float | None]:
        if when.metric == "convergence" and when.agent is None:
            return [event.convergence]
        messages = event.metrics.get("messages", {})
        wanted = [index for index, name in self._speakers.items() if when.agent in (None, "all", name)]
        found = [messages.get(index, {}).get(when.metric) for index in wanted]
        return [None if value is None or isinstance(value, str) else float(value) for value in found]
