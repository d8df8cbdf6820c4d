"""Carries events from where they happen to whoever listens. It never waits for an answer."""

import logging
from collections.abc import Callable

from pidgin_cli.core.events import ErrorEvent, Event

__all__ = ["EventBus", "Subscriber"]

Subscriber = Callable[[Event], None]

_log = logging.getLogger(__name__)


class EventBus:
    """Synchronous publishing to typed subscribers, in the order in which they subscribed.

    An essential subscriber (the log) may refuse: its error goes to the publisher, and nobody after it sees the event.
    Any other subscriber that raises is reported as an `ErrorEvent` and the run goes on.
    """

    def __init__(self) -> None:
        self._subscribers: list[tuple[tuple[type[Event], ...], Subscriber, bool]] = []
        self._routes: dict[type[Event], tuple[tuple[Subscriber, bool], ...]] = {}

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event], essential: bool = False) -> None:
        """Call `subscriber` with every event of these types; without types, with every event.

        Essential subscribers come before all others: nobody hears of what the log did not take.
        """
        place = sum(entry[2] for entry in self._subscribers) if essential else len(self._subscribers)
        self._subscribers.insert(place, (kinds or (Event,), subscriber, essential))
        self._routes.clear()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers = [entry for entry in self._subscribers if entry[1] != subscriber]
        self._routes.clear()

    def publish(self, event: Event) -> None:
        kind = type(event)
        route = self._routes.get(kind)
        if route is None:
            route = self._routes[kind] = tuple(
                (subscriber, essential) for kinds, subscriber, essential in self._subscribers if issubclass(kind, kinds)
            )
        failures = None
        for subscriber, essential in route:
            if essential:
                subscriber(event)
                continue
            try:
                subscriber(event)
            except Exception as error:
                failures = [*(failures or ()), (subscriber, error)]
        for failed, failure in failures or ():  # only now, so that everybody sees this event before the reports
            self._report(failed, event, failure)

    def _report(self, subscriber: Subscriber, event: Event, error: Exception) -> None:
        name = getattr(subscriber, "__qualname__", repr(subscriber))
        _log.exception("subscriber %s failed on %s", name, type(event).__name__)
        if not isinstance(event, ErrorEvent):  # a subscriber that fails on errors must not make more of them
            self.publish(
                ErrorEvent(
                    error=type(error).__name__, message=str(error), where=f"subscriber {name} on {event.event_id}"
                )
            )
