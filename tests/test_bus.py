"""The bus: who hears what, in which order, and what a failing listener may do."""

import logging
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    ErrorEvent,
    Event,
    SystemPromptEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.eventlog.bus import EventBus


def turn(number: int) -> TurnStartEvent:
    return TurnStartEvent(turn_number=number, speakers=("a", "b"))


def named(number: int = 0) -> AgentNamedEvent:
    return AgentNamedEvent(agent_id="a", name=str(number), reply="")


class Heard(list[Event]):
    """A subscriber that keeps what it hears."""

    def __call__(self, event: Event) -> None:
        self.append(event)


def failing(event: Event) -> None:
    raise RuntimeError("no pen")


def test_every_subscriber_hears_every_event_in_order() -> None:
    """Without types a subscriber hears all events, in the order in which they were published."""
    bus, one, two = EventBus(), Heard(), Heard()
    bus.subscribe(one)
    bus.subscribe(two)
    published = [turn(1), named(), turn(2), TurnCompleteEvent(turn_number=1)]
    for event in published:
        bus.publish(event)
    assert one == two == published


def test_subscribers_are_called_in_the_order_they_came() -> None:
    """Several subscribers of one type are called in the order in which they subscribed."""
    bus = EventBus()
    called: list[str] = []
    for name in "abc":
        bus.subscribe(lambda _, name=name: called.append(name), TurnStartEvent)
    bus.publish(turn(1))
    bus.publish(named())
    bus.publish(turn(2))
    assert called == ["a", "b", "c", "a", "b", "c"]


def test_a_subscriber_hears_only_its_types() -> None:
    """One or several types can be named; `Event` means all; nobody hears an event twice."""
    bus, one, several, base = EventBus(), Heard(), Heard(), Heard()
    bus.subscribe(one, TurnStartEvent)
    bus.subscribe(several, TurnStartEvent, AgentNamedEvent, Event)
    bus.subscribe(base, Event)
    published = [turn(1), named(), SystemPromptEvent(agent_id="a")]
    for event in published:
        bus.publish(event)
    assert one == published[:1]
    assert several == base == published


def test_nobody_listening_is_fine() -> None:
    """Publishing without subscribers, or without one for the type, does nothing."""
    bus, heard = EventBus(), Heard()
    bus.publish(turn(1))
    bus.subscribe(heard, AgentNamedEvent)
    bus.publish(turn(1))
    assert heard == []


def test_subscribing_and_leaving_take_effect_at_once() -> None:
    """A new subscriber hears the next event, also of a type published before; one that left hears none."""
    bus, early, late = EventBus(), Heard(), Heard()
    bus.subscribe(early, TurnStartEvent)
    bus.publish(turn(1))
    bus.subscribe(late, TurnStartEvent)
    bus.publish(turn(2))
    bus.unsubscribe(early)
    bus.publish(turn(3))
    assert early == [turn(1), turn(2)]
    assert late == [turn(2), turn(3)]
    bus.unsubscribe(failing)  # one that never came


def test_a_bound_method_can_leave() -> None:
    """Methods are told apart by what they are bound to."""

    class Listener:
        def __init__(self) -> None:
            self.heard = 0

        def hear(self, event: Event) -> None:
            self.heard += 1

    bus, one, two = EventBus(), Listener(), Listener()
    bus.subscribe(one.hear)
    bus.subscribe(two.hear)
    bus.unsubscribe(one.hear)
    bus.publish(turn(1))
    assert (one.heard, two.heard) == (0, 1)


@pytest.mark.parametrize("log_first", [True, False])
def test_essential_subscribers_come_first(log_first: bool) -> None:
    """The log is called before the others, whenever it subscribed, and essential ones keep their own order."""
    bus = EventBus()
    called: list[str] = []
    entries: list[tuple[str, bool]] = [("log", True), ("second log", True), ("screen", False), ("manifest", False)]
    for name, essential in entries if log_first else entries[2:] + entries[:2]:
        bus.subscribe(lambda _, name=name: called.append(name), essential=essential)
    bus.publish(turn(1))
    assert called == ["log", "second log", "screen", "manifest"]


def test_what_the_log_refuses_has_not_happened() -> None:
    """The log's error reaches the publisher as it is, and nobody hears of the event, not even as an error."""
    bus, heard = EventBus(), Heard()
    refusing = [LogError("the disk is full"), None]

    def log(event: Event) -> None:
        if (error := refusing.pop(0)) is not None:
            raise error

    bus.subscribe(heard)
    bus.subscribe(log, essential=True)
    with pytest.raises(LogError, match="the disk is full"):
        bus.publish(turn(1))
    assert heard == []
    bus.publish(turn(2))
    assert [type(event) for event in heard] == [TurnStartEvent]


def test_a_failing_subscriber_never_stops_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody sees the event, then an ErrorEvent that names class, text, subscriber and event."""
    bus, before, after, log = EventBus(), Heard(), Heard(), Heard()
    bus.subscribe(log, essential=True)
    bus.subscribe(before)
    bus.subscribe(failing, TurnStartEvent)
    bus.subscribe(after)
    event = TurnStartEvent(turn_number=1, speakers=("a",), event_id="x-1:4")
    with caplog.at_level(logging.ERROR):
        bus.publish(event)
    report = ErrorEvent(error="RuntimeError", message="no pen", where="subscriber failing on x-1:4")
    assert list(log) == list(before) == list(after) == [event, report]
    (entry,) = caplog.records
    assert entry.exc_info is not None
    assert entry.exc_info[0] is RuntimeError  # the traceback is there for whoever looks into it


def test_several_failures_are_reported_each(caplog: pytest.LogCaptureFixture) -> None:
    """Two subscribers that fail on one event make two reports, after everybody saw the event."""
    bus, heard = EventBus(), Heard()

    def worse(event: Event) -> None:
        raise KeyError("x")

    bus.subscribe(failing, TurnStartEvent)
    bus.subscribe(worse, TurnStartEvent)
    bus.subscribe(heard)
    bus.publish(turn(1))
    assert [event.error for event in heard[1:] if isinstance(event, ErrorEvent)] == ["RuntimeError", "KeyError"]
    assert [type(event) for event in heard] == [TurnStartEvent, ErrorEvent, ErrorEvent]


def test_a_subscriber_that_fails_on_errors_makes_no_more_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises on everything is reported once per event and never in a circle."""
    bus, heard = EventBus(), Heard()
    bus.subscribe(failing)
    bus.subscribe(heard)
    bus.publish(turn(1))
    assert [type(event) for event in heard] == [TurnStartEvent, ErrorEvent]
    bus.publish(ErrorEvent(error="X", message="", where="elsewhere"))
    assert [type(event) for event in heard] == [TurnStartEvent, ErrorEvent, ErrorEvent]
    assert len(caplog.records) == 3  # on the turn, on its report, on the error from elsewhere


def test_the_log_may_refuse_the_report_too(caplog: pytest.LogCaptureFixture) -> None:
    """When the log does not take the ErrorEvent, its error reaches the publisher; the bus works on afterwards."""
    bus, heard = EventBus(), Heard()

    def log(event: Event) -> None:
        if isinstance(event, ErrorEvent):
            raise LogError("full")

    bus.subscribe(log, essential=True)
    bus.subscribe(failing, TurnStartEvent)
    bus.subscribe(heard)
    with pytest.raises(LogError, match="full"):
        bus.publish(turn(1))
    bus.publish(named(1))
    assert [type(event) for event in heard] == [TurnStartEvent, AgentNamedEvent]


def test_a_control_signal_is_not_swallowed() -> None:
    """What is no Exception, such as Ctrl-C, goes through; the bus works on afterwards."""
    bus, heard = EventBus(), Heard()

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    bus.subscribe(interrupted, TurnStartEvent)
    bus.subscribe(heard, AgentNamedEvent)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(turn(1))
    bus.publish(named())
    assert len(heard) == 1


def test_a_subscriber_may_publish() -> None:
    """What a subscriber publishes is in the log at once, and everybody hears both events in the log's order."""
    bus, log, early, late = EventBus(), Heard(), Heard(), Heard()

    def detector(event: Event) -> None:
        bus.publish(named(1))
        assert log[-1] == named(1)

    bus.subscribe(log, essential=True)
    bus.subscribe(early)
    bus.subscribe(detector, TurnStartEvent)
    bus.subscribe(late)
    bus.publish(turn(1))
    assert list(log) == list(early) == list(late) == [turn(1), named(1)]


def test_subscribers_may_come_and_go_while_an_event_is_on_its_way() -> None:
    """A subscriber that leaves or brings another during an event disturbs nobody's hearing of that event."""
    bus, heard = EventBus(), Heard()

    def once(event: Event) -> None:
        bus.unsubscribe(once)
        bus.subscribe(heard)

    last = Heard()
    bus.subscribe(once)
    bus.subscribe(last)
    bus.publish(turn(1))
    bus.publish(turn(2))
    assert list(last) == [turn(1), turn(2)]
    assert list(heard) == [turn(2)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_everybody_hears_what_is_in_the_log_in_its_order(data: st.DataObject) -> None:
    """With subscribers that listen, fail, or publish in their turn, in any order: all hear just what was logged."""
    bus, log, listeners = EventBus(), Heard(), list[Heard]()
    bus.subscribe(log, essential=True)
    numbers = count()

    def publisher(left: int) -> Callable[[Event], None]:
        def publish(event: Event) -> None:
            nonlocal left
            if left:
                left -= 1
                bus.publish(named(next(numbers)))

        return publish

    for kind in data.draw(st.lists(st.sampled_from(["listen", "fail", "publish"]), min_size=1, max_size=6)):
        if kind == "listen":
            listeners.append(Heard())
            bus.subscribe(listeners[-1])
        elif kind == "fail":
            bus.subscribe(failing)
        else:
            bus.subscribe(publisher(data.draw(st.integers(0, 3))))
    for number in range(data.draw(st.integers(1, 3))):
        bus.publish(turn(number))
    assert all(list(heard) == list(log) for heard in listeners)
