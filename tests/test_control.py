"""Pausing, stopping and speaking into a conversation, and the delegates that watch and steer it."""

import asyncio
import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    Run,
    Scripted,
    ScriptedPool,
    bus_watch,
    check_record,
    converse,
    elsewhere,
    experiment,
    go_on,
    messages,
    of_type,
    texts,
)

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.conversation.control import Control, Pause, Stop
from pidgin_cli.conversation.delegates import CONTROLS, NOTIFICATIONS, AiLoopRequestPause, DelegateManager, TurnStarted
from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import EndReason, Finish, Status, TextDelta
from pidgin_cli.eventlog.state import run_state

STOPPED = (Status.STOPPED, EndReason.STOP_REQUEST, None)
COMPLETED = (Status.COMPLETED, EndReason.TURN_LIMIT, None)
WORDY = ("local:test?words=25",) * 2
TWO = ("local:test", "local:test")


def both(*watches: Callable[[Conductor], None]) -> Callable[[Conductor], None]:
    return lambda conductor: [watch(conductor) for watch in watches] and None


def place(run: Run, kind: type[Any]) -> list[tuple[int, int]]:
    return [(event.turn_number, event.message_index) for event in of_type(run.events, kind)]


# Pause and resume


async def test_a_pause_finishes_the_message_and_waits(tmp_path: Path) -> None:
    """Asked for while a model speaks, it begins after that message; after the resume all is as if nothing had been."""

    def pause(conductor: Conductor, event: MessageRequestEvent) -> None:
        if event.message_index == 2:
            elsewhere(conductor.control.pause, "the person at the door")

    def resume(conductor: Conductor, event: ConversationPausedEvent) -> None:
        assert run_state(read(conductor)).status is Status.PAUSED
        elsewhere(conductor.control.resume)

    watch = both(bus_watch(MessageRequestEvent, pause), bus_watch(ConversationPausedEvent, resume))
    run = await converse(tmp_path / "1", experiment(*TWO), watch=watch)
    plain = await converse(tmp_path / "2", experiment(*TWO))
    check_record(run.events)
    assert place(run, ConversationPausedEvent) == [(2, 3)]
    assert place(run, ConversationResumedEvent) == [(2, 3)]
    (paused,), (resumed,) = of_type(run.events, ConversationPausedEvent), of_type(run.events, ConversationResumedEvent)
    assert paused.by == "the person at the door"
    assert resumed.by == "person"
    assert texts(run.events) == texts(plain.events)
    assert run.outcome == COMPLETED


def read(conductor: Conductor) -> list[Any]:
    from pidgin_cli.eventlog.log import read_record

    conductor._log.flush()
    return read_record(conductor._log.path).events


async def test_a_pause_lasts_while_anybody_wants_it(tmp_path: Path) -> None:
    """Two parties pause; the conversation goes on when the last of them lets it, and the record names that one."""
    steps: list[str | None] = []

    def on_pause(conductor: Conductor, _event: ConversationPausedEvent) -> None:
        control = conductor.control
        elsewhere(control.resume, "one")
        steps.append(control.paused_by)
        asyncio.get_running_loop().call_soon(elsewhere, control.resume, "two")

    def begin(conductor: Conductor, _event: Any) -> None:
        conductor.control.pause("one")
        conductor.control.pause("two")
        conductor.control.pause("one")

    watch = both(bus_watch(ConversationPausedEvent, on_pause), bus_watch(ConversationStartEvent, begin))
    run = await converse(tmp_path, experiment(*TWO), watch=watch)
    check_record(run.events)
    assert steps == ["two"]
    assert [event.by for event in of_type(run.events, ConversationResumedEvent)] == ["two"]
    assert run.outcome == COMPLETED


async def test_paused_before_the_beginning(tmp_path: Path) -> None:
    """A pause asked for before anything ran holds back the first turn."""
    watch = both(
        lambda conductor: conductor.control.pause("early"),
        bus_watch(ConversationPausedEvent, lambda conductor, _: elsewhere(conductor.control.resume, "early")),
    )
    run = await converse(tmp_path, experiment(*TWO), watch=watch)
    check_record(run.events)
    assert place(run, ConversationPausedEvent) == [(0, 0)]
    assert run.outcome == COMPLETED


# Stop


@pytest.mark.parametrize("now", [False, True])
async def test_stopping_a_paused_conversation(tmp_path: Path, now: bool) -> None:
    """It ends at once, with its end event, whether the stop is graceful or not."""
    watch = both(
        bus_watch(TurnStartEvent, lambda conductor, _: conductor.control.pause()),
        bus_watch(ConversationPausedEvent, lambda conductor, _: elsewhere(conductor.control.stop, now=now)),
    )
    run = await converse(tmp_path, experiment(*TWO), watch=watch)
    check_record(run.events)
    assert run.outcome == STOPPED
    assert not messages(run.events)


async def test_a_graceful_stop_finishes_the_message(tmp_path: Path) -> None:
    """The message under way is kept whole, and nothing more is asked."""
    stop = bus_watch(
        MessageRequestEvent, lambda conductor, e: e.message_index == 1 and elsewhere(conductor.control.stop, "me")
    )
    run = await converse(tmp_path, experiment(*TWO), watch=stop)
    check_record(run.events)
    assert run.outcome == STOPPED
    assert len(messages(run.events)) == 2
    assert not of_type(run.events, MessageAbandonedEvent)


async def test_a_stop_now_keeps_the_partial_text_as_abandoned(tmp_path: Path) -> None:
    """The reply is dropped at once; what had arrived is recorded, as no part of any message."""
    got: list[str] = []
    held: list[Conductor] = []

    def live(agent_id: str, delta: Any) -> None:
        if isinstance(delta, TextDelta) and agent_id == "b":
            got.append(delta.text)
            asyncio.get_running_loop().call_soon(elsewhere, lambda: held[0].control.stop("me", now=True))

    spec = experiment("local:test", "local:test?words=30&chunk=3&fail=hang@1")
    run = await converse(tmp_path, spec, live=live, watch=held.append)
    check_record(run.events)
    assert run.outcome == STOPPED
    (abandoned,) = of_type(run.events, MessageAbandonedEvent)
    assert got
    assert abandoned.partial == "".join(got)
    assert (abandoned.agent_id, abandoned.attempt) == ("b", 1)
    assert len(messages(run.events)) == 1
    assert abandoned.partial not in str(texts(run.events))


async def test_the_abandoned_attempt_has_its_number(tmp_path: Path) -> None:
    """When earlier attempts failed, the one that was stopped is numbered after them."""
    held: list[Conductor] = []

    def live(agent_id: str, delta: Any) -> None:
        asyncio.get_running_loop().call_soon(elsewhere, lambda: held[0].control.stop(now=True))

    spec = experiment("local:test?chunk=3&fail=server_error@1x2,hang@1x3", "local:test")
    run = await converse(tmp_path, spec, live=live, watch=held.append)
    check_record(run.events)
    assert [event.attempt for event in of_type(run.events, MessageAbandonedEvent)] == [3]


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("fail", ["server_error@2x9", "disconnect@2x9"])
async def test_a_stop_during_a_back_off_returns_promptly(tmp_path: Path, fail: str, now: bool) -> None:
    """Waiting for the next attempt ends with the stop, however long it would have been."""
    spec = experiment(
        f"local:test?fail={fail}", "local:test", retries={"attempts": 9, "base_s": 3600.0, "max_wait_s": 3600.0}
    )
    watch = bus_watch(
        APIErrorEvent,
        lambda conductor, _: asyncio.get_running_loop().call_soon(elsewhere, lambda: conductor.control.stop(now=now)),
    )
    run = await asyncio.wait_for(converse(tmp_path, spec, watch=watch), 20)
    check_record(run.events)
    assert run.outcome == STOPPED
    assert len(messages(run.events)) == 2
    assert len(of_type(run.events, MessageAbandonedEvent)) == int("disconnect" in fail)


async def test_a_stop_during_the_choice_of_names(tmp_path: Path) -> None:
    """A model that never answers the question for its name can be stopped; the record is whole."""
    held: list[Conductor] = []
    mute = Scripted([3600.0])
    spec = experiment("openai:m1", "local:test", choose_names=True)

    def stop(conductor: Conductor, _event: Any) -> None:
        asyncio.get_running_loop().call_later(0.01, elsewhere, lambda: conductor.control.stop(now=True))

    run = await converse(
        tmp_path, spec, pool=ScriptedPool(m1=mute), watch=both(bus_watch(ConversationStartEvent, stop), held.append)
    )
    check_record(run.events)
    assert run.outcome == STOPPED
    assert mute.open == 0, "the request was given up"


async def test_stopped_twice_and_before_it_began(tmp_path: Path) -> None:
    """A stop before the first request leaves a whole, empty record; a second stop changes nothing."""

    def stop(conductor: Conductor) -> None:
        conductor.control.stop("first", EndReason.BUDGET, now=True)
        conductor.control.stop("second", now=True)

    run = await converse(tmp_path, experiment(*TWO, choose_names=True), watch=stop)
    check_record(run.events)
    assert run.outcome == (Status.STOPPED, EndReason.BUDGET, None)
    assert not messages(run.events)


async def test_a_stop_now_leaves_the_task_itself_unharmed(tmp_path: Path) -> None:
    """The cancellation behind it is taken back: whatever runs in the same task afterwards is not cancelled."""
    held: list[Conductor] = []
    live = lambda *_: asyncio.get_running_loop().call_soon(lambda: held[0].control.stop(now=True))  # noqa: E731
    await converse(tmp_path, experiment("local:test?chunk=3&fail=hang@1", "local:test"), live=live, watch=held.append)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with asyncio.timeout(5):
        await asyncio.sleep(0)


# Injections


async def test_an_injection_reaches_only_its_audience(tmp_path: Path) -> None:
    """Put in from another thread, it is recorded with its source and stands in the addressee's requests alone."""
    one, two = Scripted([TextDelta("Yes."), Finish()]), Scripted([TextDelta("No."), Finish()])

    def say(conductor: Conductor, event: MessageCompleteEvent) -> None:
        if event.message_index == 1:
            elsewhere(conductor.control.inject, "to b only", ("b",))
            elsewhere(conductor.control.inject, "to all", None, "script")
            elsewhere(conductor.control.inject, "to nobody", ())
            elsewhere(conductor.control.inject, "half \ud800", ("a",))

    run = await converse(
        tmp_path,
        experiment("openai:m1", "openai:m2"),
        pool=ScriptedPool(m1=one, m2=two),
        watch=bus_watch(MessageCompleteEvent, say),
    )
    check_record(run.events)
    assert run.outcome == COMPLETED
    put_in = of_type(run.events, InterventionEvent)
    assert [(e.text, e.audience, e.source, e.turn_number, e.message_index) for e in put_in] == [
        ("to b only", ("b",), "person", 2, 2),
        ("to all", ("a", "b"), "script", 2, 2),
        ("to nobody", (), "person", 2, 2),
        ("half �", ("a",), "person", 2, 2),
    ]
    assert one.requests[1].messages[-1].content == "No.\n\n[HUMAN]: to all\n\n[HUMAN]: half �"
    assert two.requests[1].messages[-1].content == "Yes.\n\n[HUMAN]: to b only\n\n[HUMAN]: to all"
    everything = str([request.messages for request in (*one.requests, *two.requests)])
    assert "nobody" not in everything
    assert "to b only" not in str([request.messages for request in one.requests])


async def test_control_takes_calls_from_many_threads(tmp_path: Path) -> None:
    """Whatever is put in from any number of threads at once arrives, once."""
    done = threading.Barrier(9)

    def say(conductor: Conductor, event: TurnStartEvent) -> None:
        if event.turn_number != 1:
            return

        def work(number: int) -> None:
            for item in range(20):
                conductor.control.inject(f"<{number}.{item}>")
                conductor.control.pause(f"thread {number}")
                conductor.control.resume(f"thread {number}")
            done.wait(10)

        for number in range(8):
            threading.Thread(target=work, args=(number,)).start()
        done.wait(10)

    run = await converse(tmp_path, experiment(*TWO), watch=bus_watch(TurnStartEvent, say))
    check_record(run.events)
    counts = Counter(event.text for event in of_type(run.events, InterventionEvent))
    assert counts == {f"<{number}.{item}>": 1 for number in range(8) for item in range(20)}
    assert run.outcome == COMPLETED


async def test_control_outlives_its_loop() -> None:
    """Calls before a conversation is attached and after it is over do nothing but be remembered."""
    control = Control()
    control.pause()
    control.stop(now=True)
    control.attach()
    control.detach()
    elsewhere(control.resume)
    elsewhere(control.inject, "late")
    await asyncio.sleep(0)
    assert [item.text for item in control.take_injected()] == ["late"]
    with pytest.raises(Stop):
        await control.sleep(3600)


# Delegates


async def delegated(tmp_path: Path, register: Callable[[DelegateManager], object], *models: str, **keys: Any) -> Run:
    def watch(conductor: Conductor) -> None:
        register(conductor.get_delegate_manager())

    run = await converse(tmp_path, experiment(*(models or TWO), **keys), watch=watch)
    check_record(run.events)
    return run


async def test_every_notification_is_sent_with_its_documented_payload(tmp_path: Path) -> None:
    """Each type of the catalogue occurs in real runs, and its keyword arguments are the fields of its dataclass."""
    seen: dict[str, list[dict[str, Any]]] = {}
    senders = set()

    def note(sender: Any, event_type: str, **payload: Any) -> None:
        senders.add(type(sender))
        seen.setdefault(event_type, []).append(payload)

    def fail(_sender: Any, event_type: str, **_payload: Any) -> None:
        if event_type == "turn_started":
            raise KeyError("delegate")

    def register(manager: DelegateManager) -> None:
        manager.register(note)
        manager.register(note, controls=CONTROLS)
        manager.register(fail)

    logging.disable(logging.CRITICAL)
    try:
        run = await delegated(
            tmp_path / "1", register, "local:test", "local:test?fail=auth@3&thinking=1", choose_names=True
        )
        context = {"policy": "window", "limit_tokens": 160, "reserve_tokens": 20}
        await delegated(tmp_path / "2", register, *WORDY, max_turns=6, context=context)
        context |= {"policy": "summarise", "limit_tokens": 300}
        await delegated(tmp_path / "3", register, *WORDY, max_turns=6, context=context)
    finally:
        logging.disable(logging.NOTSET)
    assert set(seen) == set(NOTIFICATIONS) | set(CONTROLS)
    assert senders == {Conductor}
    for name, payloads in seen.items():
        fields = {field.name for field in dataclasses.fields((NOTIFICATIONS | CONTROLS)[name])}
        assert all(set(payload) == fields for payload in payloads), name
    said = messages(run.events)
    answered = seen["ai_response_received"][: len(said)]
    assert [(p["message_index"], p["content"], p["cost"]) for p in answered] == [
        (e.message_index, e.message.content, 0.0) for e in said
    ]
    assert [p["completion_tokens"] for p in answered] == [e.usage.completion_tokens for e in said]
    prepared = seen["ai_request_prepared"][: len(said)]
    assert [p["digest"] for p in prepared] == [e.digest for e in of_type(run.events, MessageRequestEvent)][: len(said)]
    assert {p["step"] for p in seen["ai_processing_step"]} >= {"naming", "truncation", "summary"}
    assert seen["ai_loop_error_occurred"][0]["error"] == "AuthenticationFailed"
    assert seen["ai_loop_stopped"][0]["status"] == "failed"
    assert seen["delegate_execution_error"][0]["on"] == "turn_started"


async def test_notifications_come_in_the_order_of_the_loop(tmp_path: Path) -> None:
    """One turn of two agents, notification by notification; delegates are called in the order of registration."""
    seen: list[str] = []

    def register(manager: DelegateManager) -> None:
        manager.register(lambda _s, kind, **_: seen.append(f"1 {kind}"))
        manager.register(lambda _s, kind, **_: seen.append(f"2 {kind}"))

    await delegated(tmp_path, register, max_turns=1)
    speak = ["ai_processing_step", "ai_request_prepared", "ai_response_received", "message_completed"]
    order = ["ai_loop_started", "turn_started", *speak, *speak, "turn_completed", "ai_loop_stopped"]
    assert seen == [f"{number} {kind}" for kind in order for number in (1, 2)]


async def test_a_delegate_gets_only_what_it_asked_for(tmp_path: Path) -> None:
    """Filters hold; an unknown type and an asynchronous control are refused at registration."""
    seen: list[str] = []

    def note(_sender: Any, kind: str, **_payload: Any) -> None:
        seen.append(kind)

    def register(manager: DelegateManager) -> None:
        manager.register(note, events=["turn_completed"], controls=["ai_loop_request_stop"])
        for wrong in ({"events": ["turn_finished"]}, {"controls": ["ai_loop_started"]}):
            with pytest.raises(ValueError, match="no such type"):
                manager.register(note, **wrong)
        with pytest.raises(ValueError, match="asynchronous"):
            manager.register(note, controls=["ai_loop_request_stop"], asynchronous=True)

    await delegated(tmp_path, register, max_turns=2)
    assert Counter(seen)["turn_completed"] == 2
    assert set(seen) == {"turn_completed", "ai_loop_request_stop"}


async def test_a_delegate_that_raises_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and reported to the others by name; the conversation is what it would have been."""
    reports: list[dict[str, Any]] = []

    def broken(_sender: Any, kind: str, **_payload: Any) -> bool:
        raise RuntimeError(f"no {kind}")

    def register(manager: DelegateManager) -> None:
        manager.register(broken)
        manager.register(broken, controls=CONTROLS)
        manager.register(lambda _s, _k, **p: reports.append(p), events=["delegate_execution_error"])

    run = await delegated(tmp_path / "1", register)
    plain = await converse(tmp_path / "2", experiment(*TWO))
    assert texts(run.events) == texts(plain.events)
    assert run.outcome == COMPLETED
    assert "no turn_started" in caplog.text
    assert {report["on"] for report in reports} >= {"ai_loop_started", "ai_loop_request_pause", "ai_loop_stopped"}
    assert {report["error"] for report in reports} == {"RuntimeError"}
    assert all("broken" in report["delegate"] for report in reports)


@pytest.mark.parametrize(
    ("where", "asynchronous", "said"),
    [
        ("turn_completed", False, 2),
        ("ai_request_prepared", False, 1),
        ("ai_loop_started", False, 0),
        ("ai_loop_request_stop", False, 0),
        ("turn_completed", True, 2),
        ("message_completed", True, 1),
    ],
)
async def test_a_stop_raised_by_a_delegate_ends_the_conversation(
    tmp_path: Path, where: str, asynchronous: bool, said: int
) -> None:
    """`Stop` takes effect before the next request, also out of a control and out of an asynchronous delegate."""

    def stop(_sender: Any, _kind: str, **_payload: Any) -> None:
        raise Stop("guard")

    def wait(_sender: Any, _kind: str, **_payload: Any) -> None:
        raise Pause("wait for the other thread")

    def register(manager: DelegateManager) -> None:
        if where in CONTROLS:
            manager.register(stop, controls=[where])
        else:
            manager.register(stop, events=[where], asynchronous=asynchronous)
        if asynchronous:
            manager.register(wait, events=[where])

    run = await delegated(tmp_path, register)
    assert run.outcome == STOPPED
    assert len(messages(run.events)) == said


async def test_a_pause_raised_by_a_delegate_pauses(tmp_path: Path) -> None:
    """`Pause` holds the conversation before its next request until somebody resumes it; an end outranks it."""

    def pause(_sender: Any, _kind: str, turn_number: int, **_payload: Any) -> None:
        if turn_number == 1:
            raise Pause("guard")

    def watch(conductor: Conductor) -> None:
        conductor.get_delegate_manager().register(pause, events=["turn_completed"])
        resume = lambda conductor, _: elsewhere(conductor.control.resume, "guard")  # noqa: E731
        bus_watch(ConversationPausedEvent, resume)(conductor)

    run = await converse(tmp_path, experiment(*TWO), watch=watch)
    check_record(run.events)
    assert [(e.by, e.message_index) for e in of_type(run.events, ConversationPausedEvent)] == [("guard", 2)]
    assert [e.by for e in of_type(run.events, ConversationResumedEvent)] == ["guard"]
    assert run.outcome == COMPLETED


async def test_a_signal_out_of_an_error_report_takes_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A delegate may end the conversation because another one failed; everybody else is still told."""
    told: list[str] = []

    def broken(_sender: Any, _kind: str, **_payload: Any) -> None:
        raise RuntimeError("broken")

    def guard(_sender: Any, _kind: str, **_payload: Any) -> None:
        raise Stop("guard")

    def register(manager: DelegateManager) -> None:
        manager.register(broken, events=["turn_started"])
        manager.register(broken, controls=["ai_loop_request_pause"])
        manager.register(guard, events=["delegate_execution_error"])
        manager.register(lambda _s, kind, **_: told.append(kind), events=["turn_started"])

    run = await delegated(tmp_path, register)
    assert run.outcome == STOPPED
    assert len(messages(run.events)) == 0

    manager = DelegateManager()
    register(manager)
    with pytest.raises(Stop):
        manager.notify(None, TurnStarted(1, ("a",)))
    assert told[-1:] == ["turn_started"]


async def test_paused_while_any_delegate_says_so(tmp_path: Path) -> None:
    """The conversation waits as long as one of them answers True, and goes on when none does, whatever their names."""
    asked: Counter[str] = Counter()

    def make(name: str, until: int) -> Callable[..., bool]:
        def delegate(_sender: Any, _kind: str, message_index: int, **_payload: Any) -> bool:
            if message_index == 1:
                asked[name] += 1
            return message_index == 1 and asked[name] <= until

        return delegate

    def register(manager: DelegateManager) -> None:
        for name, until in (("one", 3), ("two", 0), ("three", 1)):
            manager.register(make(name, until), controls=["ai_loop_request_pause"])

    loop = asyncio.get_running_loop()
    began = loop.time()
    run = await delegated(tmp_path, register)
    took = loop.time() - began
    assert place(run, ConversationPausedEvent) == [(1, 1)]
    assert place(run, ConversationResumedEvent) == [(1, 1)]
    assert asked == {"one": 4, "two": 4, "three": 4}
    assert took > 0.1, "it is asked from time to time, not in a busy loop"
    assert run.outcome == COMPLETED


async def test_a_delegate_that_is_gone_holds_nobody_up(tmp_path: Path) -> None:
    """A conversation that a delegate holds goes on when that delegate is unregistered."""
    asked: list[int] = []

    def hold(sender: Any, _kind: str, **_payload: Any) -> bool:
        asked.append(1)
        if len(asked) == 3:
            sender.get_delegate_manager().unregister(hold)
        return True

    run = await delegated(tmp_path, lambda manager: manager.register(hold, controls=["ai_loop_request_pause"]))
    assert run.outcome == COMPLETED
    assert len(of_type(run.events, ConversationPausedEvent)) == 1
    assert len(of_type(run.events, ConversationResumedEvent)) == 1


async def test_a_delegate_asks_for_the_end(tmp_path: Path) -> None:
    """`ai_loop_request_stop` ends the conversation when any answers True, and only then: other truth is no answer."""

    def register(manager: DelegateManager) -> None:
        manager.register(lambda _s, _k, message_index, **_: message_index == 3, controls=["ai_loop_request_stop"])
        manager.register(lambda _s, _k, **_: "yes", controls=["ai_loop_request_stop"])

    run = await delegated(tmp_path, register)
    assert run.outcome == STOPPED
    assert len(messages(run.events)) == 3


async def test_asynchronous_delivery_is_complete_and_in_order(tmp_path: Path) -> None:
    """A slow observer does not hold the conversation up, and gets every notification in order, the last one too."""
    seen: list[tuple[str, int | None]] = []
    go, done = threading.Event(), threading.Event()

    def slow(_sender: Any, kind: str, **payload: Any) -> None:
        assert go.wait(10)
        seen.append((kind, payload.get("message_index")))
        if kind == "ai_loop_stopped":
            done.set()

    quick: list[tuple[str, int | None]] = []

    def register(manager: DelegateManager) -> None:
        manager.register(slow, asynchronous=True)
        manager.register(lambda _s, kind, **payload: quick.append((kind, payload.get("message_index"))))

    run = await delegated(tmp_path, register)
    assert seen == [], "the conversation did not wait"
    assert run.outcome == COMPLETED
    go.set()
    assert done.wait(10)
    assert seen == quick


async def test_an_asynchronous_delegate_that_raises_gets_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread survives its errors, and they are reported like anybody's."""
    seen: list[str] = []
    reports: list[str] = []
    done = threading.Event()

    def broken(_sender: Any, kind: str, **_payload: Any) -> None:
        seen.append(kind)
        if kind == "ai_loop_stopped":
            done.set()
        raise RuntimeError("broken")

    manager = DelegateManager()
    manager.register(broken, events=["turn_started", "ai_loop_stopped"], asynchronous=True)
    manager.register(lambda _s, _k, on, **_: reports.append(on), events=["delegate_execution_error"])
    from pidgin_cli.conversation.delegates import AiLoopStopped

    for number in range(3):
        manager.notify(None, TurnStarted(number, ("a",)))
    manager.notify(None, AiLoopStopped("c", "completed", "turn_limit", 3, 6))
    assert done.wait(10)
    assert seen == ["turn_started"] * 3 + ["ai_loop_stopped"]
    assert reports[:3] == ["turn_started"] * 3
    manager.close()


def test_registration_is_safe_during_calls_and_from_threads() -> None:
    """A call goes to those registered when it began; many threads may come and go meanwhile."""
    manager = DelegateManager()
    seen: list[str] = []

    def second(_sender: Any, _kind: str, **_payload: Any) -> None:
        seen.append("second")

    def first(_sender: Any, _kind: str, **_payload: Any) -> None:
        seen.append("first")
        manager.unregister(second)
        manager.register(third)

    def third(_sender: Any, _kind: str, **_payload: Any) -> None:
        seen.append("third")

    manager.register(first)
    manager.register(second)
    manager.notify(None, TurnStarted(1, ("a",)))
    assert seen == ["first", "second"]
    manager.unregister(first)
    manager.notify(None, TurnStarted(2, ("a",)))
    assert seen == ["first", "second", "third"]
    manager.close()
    assert not manager.watching

    start = threading.Barrier(5)
    failures: list[BaseException] = []

    def churn() -> None:
        def own(_sender: Any, _kind: str, **_payload: Any) -> bool:
            return False

        try:
            start.wait(10)
            for _ in range(200):
                manager.register(own)
                manager.register(own, controls=["ai_loop_request_pause"])
                manager.unregister(own)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(10)
    for _ in range(500):
        manager.notify(None, TurnStarted(1, ("a",)))
        assert all(answer is False for _, answer in manager.ask(None, AiLoopRequestPause(1, 0)))
    for thread in threads:
        thread.join(10)
    assert not failures
    assert not manager.watching


def test_the_catalogue_is_the_declared_one() -> None:
    """The names people register for are those of the issue, each documented by its dataclass."""
    assert {
        "ai_loop_started",
        "ai_loop_stopped",
        "ai_request_prepared",
        "ai_response_received",
        "ai_processing_step",
        "ai_loop_error_occurred",
        "delegate_execution_error",
        "turn_started",
        "turn_completed",
        "message_completed",
    } == set(NOTIFICATIONS)
    assert set(CONTROLS) == {"ai_loop_request_pause", "ai_loop_request_stop"}
    assert all(kind.__doc__ and dataclasses.is_dataclass(kind) for kind in (NOTIFICATIONS | CONTROLS).values())


async def test_words_put_in_just_before_a_stop_reach_the_agent_later(tmp_path: Path) -> None:
    """What a person said last is recorded although no turn is open, and is before its addressee's next reply."""

    def stop_after_first_turn(conductor: Conductor) -> None:
        def heard(_: Event) -> None:
            conductor.control.inject("one last thing", ("b",))
            conductor.control.stop()

        conductor.bus.subscribe(heard, TurnCompleteEvent)

    run = await converse(tmp_path, experiment(*TWO), watch=stop_after_first_turn)
    (said,) = of_type(run.events, InterventionEvent)
    assert (said.text, said.audience, said.turn_number) == ("one last thing", ("b",), 2)
    prompts: dict[str, list[str]] = {"a": [], "b": []}

    def look(conductor: Conductor) -> None:
        def asked(event: Event) -> None:
            assert isinstance(event, MessageRequestEvent)
            if event.turn_number == 2:
                prompts[event.agent_id] += [m.content for m in conductor.progress.views[event.agent_id].sent().messages]

        conductor.bus.subscribe(asked, MessageRequestEvent)

    again = await go_on(run.root, run.folder, watch=look)
    assert len(of_type(again.events, InterventionEvent)) == 1
    assert prompts["b"][-1].endswith("[HUMAN]: one last thing")
    assert not any("one last thing" in text for text in prompts["a"])


async def test_a_live_display_that_fails_is_reported_and_left_out(tmp_path: Path) -> None:
    """The talk goes on to its end without it."""
    calls: list[str] = []

    def broken(agent_id: str, _: object) -> None:
        calls.append(agent_id)
        raise RuntimeError("the screen is gone")

    run = await converse(tmp_path, experiment(*TWO), live=broken)
    assert run.outcome is not None
    assert run.outcome.status is Status.COMPLETED
    assert [event.where for event in of_type(run.events, ErrorEvent)] == ["live display"]
    assert calls == ["a"]


def test_a_delegate_can_leave_single_types() -> None:
    """Unregistering by event or control type keeps the rest; without any type the delegate is gone."""
    manager = DelegateManager()
    heard: list[str] = []

    def watch(_sender: Any, kind: str, **_payload: Any) -> bool:
        heard.append(kind)
        return True

    manager.register(watch, events=["turn_started", "turn_completed"], controls=["ai_loop_request_pause"])
    manager.unregister(watch, events=["turn_started"])
    manager.notify(None, TurnStarted(1, ("a",)))
    assert manager.ask(None, AiLoopRequestPause(1, 0))
    assert heard == ["ai_loop_request_pause"]
    manager.unregister(watch, controls=["ai_loop_request_pause"])
    assert manager.ask(None, AiLoopRequestPause(1, 0)) == []
    assert manager.watching
    manager.unregister(watch)
    assert not manager.watching
