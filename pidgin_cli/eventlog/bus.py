"""Carries events from where they happen to whoever listens. It never waits for an answer."""

import logging
from collections import deque
from collections.abc import Callable

from pidgin_cli.core.events import ErrorEvent, Event

__all__ = ["EventBus", "Subscriber"]

Subscriber = Callable[[Event], None]

_log = logging.getLogger(__name__)


class EventBus:
    """Synchronous publishing to typed subscribers, in the order in which they subscribed.

    An essential subscriber (the log) may refuse: its error goes to the publisher, and nobody after it sees the event.
    Any other subscriber that raises is reported as an `ErrorEvent` and the run goes on. What a subscriber publishes in
    its turn is logged at once and handed to the others after the event that they are being handed now, so that
    everybody hears the events in the order of the record.
    """

    def __init__(self) -> None:
        self._subscribers: list[tuple[tuple[type[Event], ...], Subscriber, bool]] = []
        self._routes: dict[type[Event], tuple[tuple[Subscriber, ...], tuple[Subscriber, ...]]] = {}
        self._waiting: deque[tuple[Event, tuple[Subscriber, ...]]] = deque()
        self._delivering = False

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event], essential: bool = False) -> None:
        """Call `subscriber` with every event of these types; without types, with every event.

        Essential subscribers come before all others: nobody hears of what the log did not take.
        """
        self._subscribers.append((kinds or (Event,), subscriber, essential))
        self._routes.clear()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers = [entry for entry in self._subscribers if entry[1] != subscriber]
        self._routes.clear()

    def publish(self, event: Event) -> None:
        essential, others = self._routes.get(type(event)) or self._route(type(event))
        for subscriber in essential:
            subscriber(event)
        if self._delivering:
            self._waiting.append((event, others))
            return
        self._delivering = True
        try:
            self._deliver(event, others)
            while self._waiting:
                self._deliver(*self._waiting.popleft())
        finally:
            self._delivering = False

    def _route(self, kind: type[Event]) -> tuple[tuple[Subscriber, ...], tuple[Subscriber, ...]]:
        fitting = [entry[1:] for entry in self._subscribers if issubclass(kind, entry[0])]
        essential = tuple(subscriber for subscriber, first in fitting if first)
        route = self._routes[kind] = essential, tuple(subscriber for subscriber, first in fitting if not first)
        return route

    def _deliver(self, event: Event, subscribers: tuple[Subscriber, ...]) -> None:
        failures = None
        for subscriber in subscribers:
            try:
                subscriber(event)
            except Exception as error:
                failures = [*(failures or ()), (subscriber, error)]
        for failed, failure in failures or ():  # only now, so that everybody sees this event before the reports
            self._report(failed, event, failure)

    def _report(self, subscriber: Subscriber, event: Event, error: Exception) -> None:
        name = getattr(subscriber, "__qualname__", repr(subscriber))
        _log.error("subscriber %s failed on %s", name, type(event).__name__, exc_info=error)
        if not isinstance(event, ErrorEvent):  # a subscriber that fails on errors must not make more of them
            self.publish(
                ErrorEvent(
                    error=type(error).__name__, message=str(error), where=f"subscriber {name} on {event.event_id}"
                )
            )
