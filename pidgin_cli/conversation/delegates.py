"""Callables that watch a conversation, or have a say in it.

    def watch(sender, event_type, **payload): ...
    def decide(sender, control_type, **payload) -> bool: ...

    conductor.get_delegate_manager().register(watch, events=["ai_response_received"])
    conductor.get_delegate_manager().register(decide, controls=["ai_loop_request_pause"])
    runner.get_delegate_manager().register(watch, events=["task_execution_completed"])

`sender` is the conductor, or, for what concerns a whole experiment, the runner. The payload of each type is the fields
of the dataclass of that type below. A delegate that raises is logged and reported as `delegate_execution_error`; the
conversation goes on. Only `Pause` and `Stop` have an effect: they pause or end the conversation, or the experiment,
before its next request.
"""

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .control import Pause, Stop

__all__ = [
    "CONTROLS",
    "ENGINE_CONTROLS",
    "ENGINE_NOTIFICATIONS",
    "NOTIFICATIONS",
    "AiLoopErrorOccurred",
    "AiLoopRequestPause",
    "AiLoopRequestStop",
    "AiLoopStarted",
    "AiLoopStopped",
    "AiProcessingStep",
    "AiRequestPrepared",
    "AiResponseReceived",
    "Delegate",
    "DelegateExecutionError",
    "DelegateManager",
    "EngineErrorOccurred",
    "EngineRequestPause",
    "EngineRequestStop",
    "EngineStarted",
    "EngineStopped",
    "MessageCompleted",
    "Payload",
    "TaskExecutionCompleted",
    "TaskExecutionStarted",
    "TurnCompleted",
    "TurnStarted",
]

Delegate = Callable[..., Any]

_log = logging.getLogger(__name__)


class Payload:
    """What comes with a notification or a control."""

    type: ClassVar[str]


@dataclass(frozen=True)
class AiLoopStarted(Payload):
    """The conversation begins or goes on."""

    type: ClassVar[str] = "ai_loop_started"
    conversation_id: str
    agents: tuple[str, ...]
    resumed: bool


@dataclass(frozen=True)
class AiLoopStopped(Payload):
    """The conversation is over."""

    type: ClassVar[str] = "ai_loop_stopped"
    conversation_id: str
    status: str
    end_reason: str
    turns: int
    messages: int


@dataclass(frozen=True)
class AiRequestPrepared(Payload):
    """A request is about to go out."""

    type: ClassVar[str] = "ai_request_prepared"
    agent_id: str
    turn_number: int
    message_index: int
    message_count: int
    """Entries in the list that is sent."""
    digest: str


@dataclass(frozen=True)
class AiResponseReceived(Payload):
    """A whole reply has arrived. Tokens are None where the provider did not report them; cost in USD or None."""

    type: ClassVar[str] = "ai_response_received"
    agent_id: str
    turn_number: int
    message_index: int
    content: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    duration_ms: float | None


@dataclass(frozen=True)
class AiProcessingStep(Payload):
    """What is being done: `naming`, `request`, `truncation`, `summary`, `pause`, `resume`, `intervention`."""

    type: ClassVar[str] = "ai_processing_step"
    step: str
    agent_id: str | None
    turn_number: int


@dataclass(frozen=True)
class AiLoopErrorOccurred(Payload):
    """An error ended the conversation."""

    type: ClassVar[str] = "ai_loop_error_occurred"
    error: str
    message: str


@dataclass(frozen=True)
class TurnStarted(Payload):
    """A round begins."""

    type: ClassVar[str] = "turn_started"
    turn_number: int
    speakers: tuple[str, ...]


@dataclass(frozen=True)
class TurnCompleted(Payload):
    """Every scheduled agent has spoken."""

    type: ClassVar[str] = "turn_completed"
    turn_number: int


@dataclass(frozen=True)
class MessageCompleted(Payload):
    """A message stands in the history and the record."""

    type: ClassVar[str] = "message_completed"
    agent_id: str
    turn_number: int
    message_index: int
    content: str


@dataclass(frozen=True)
class DelegateExecutionError(Payload):
    """A delegate raised."""

    type: ClassVar[str] = "delegate_execution_error"
    delegate: str
    on: str
    """The notification or control it was called with."""
    error: str
    message: str


@dataclass(frozen=True)
class AiLoopRequestPause(Payload):
    """Asked before every request: the conversation is paused while any delegate returns True."""

    type: ClassVar[str] = "ai_loop_request_pause"
    turn_number: int
    message_index: int


@dataclass(frozen=True)
class AiLoopRequestStop(Payload):
    """Asked before every request: the conversation ends when any delegate returns True."""

    type: ClassVar[str] = "ai_loop_request_stop"
    turn_number: int
    message_index: int


@dataclass(frozen=True)
class EngineStarted(Payload):
    """A runner begins or goes on with an experiment."""

    type: ClassVar[str] = "engine_started"
    experiment_id: str
    conversations: int
    """How many are to be run now."""
    resumed: bool


@dataclass(frozen=True)
class EngineStopped(Payload):
    """The runner is done with the experiment, for now or for good."""

    type: ClassVar[str] = "engine_stopped"
    experiment_id: str
    status: str
    conversations: dict[str, int]
    """Number of conversations by status."""


@dataclass(frozen=True)
class TaskExecutionStarted(Payload):
    """A conversation of the experiment begins or goes on."""

    type: ClassVar[str] = "task_execution_started"
    conversation_id: str
    arm: str
    repetition: int


@dataclass(frozen=True)
class TaskExecutionCompleted(Payload):
    """A conversation of the experiment is over."""

    type: ClassVar[str] = "task_execution_completed"
    conversation_id: str
    status: str
    end_reason: str


@dataclass(frozen=True)
class EngineErrorOccurred(Payload):
    """A conversation could not be run, or the whole experiment could not."""

    type: ClassVar[str] = "engine_error_occurred"
    conversation_id: str | None
    error: str
    message: str


@dataclass(frozen=True)
class EngineRequestPause(Payload):
    """Asked before every conversation: the experiment is paused while any delegate returns True."""

    type: ClassVar[str] = "engine_request_pause"
    experiment_id: str


@dataclass(frozen=True)
class EngineRequestStop(Payload):
    """Asked before every conversation: the experiment ends when any delegate returns True."""

    type: ClassVar[str] = "engine_request_stop"
    experiment_id: str


NOTIFICATIONS: dict[str, type[Payload]] = {
    kind.type: kind
    for kind in (
        AiLoopStarted,
        AiLoopStopped,
        AiRequestPrepared,
        AiResponseReceived,
        AiProcessingStep,
        AiLoopErrorOccurred,
        TurnStarted,
        TurnCompleted,
        MessageCompleted,
        DelegateExecutionError,
    )
}
"""What a conversation tells."""
CONTROLS: dict[str, type[Payload]] = {kind.type: kind for kind in (AiLoopRequestPause, AiLoopRequestStop)}
"""What a conversation asks."""
ENGINE_NOTIFICATIONS: dict[str, type[Payload]] = {
    kind.type: kind
    for kind in (
        EngineStarted,
        EngineStopped,
        TaskExecutionStarted,
        TaskExecutionCompleted,
        EngineErrorOccurred,
        DelegateExecutionError,
    )
}
"""What a runner tells."""
ENGINE_CONTROLS: dict[str, type[Payload]] = {kind.type: kind for kind in (EngineRequestPause, EngineRequestStop)}
"""What a runner asks."""


@dataclass(frozen=True)
class _Registration:
    delegate: Delegate
    types: frozenset[str]
    queue: "queue.SimpleQueue[tuple[Any, Payload] | None] | None" = None

    @property
    def name(self) -> str:
        return getattr(self.delegate, "__qualname__", None) or repr(self.delegate)


class DelegateManager:
    """Registers delegates and calls them. Thread-safe; calls go to a copy of the list."""

    def __init__(
        self,
        obey: Callable[[Pause | Stop], None] | None = None,
        notifications: Mapping[str, type[Payload]] = NOTIFICATIONS,
        controls: Mapping[str, type[Payload]] = CONTROLS,
    ) -> None:
        """
        Args:
            obey: takes what asynchronous delegates raise, in their thread.
            notifications: the types that its owner tells.
            controls: the types that its owner asks.
        """
        self._notifications = notifications
        self._controls = controls
        self._obey = obey or (lambda _: None)
        self._lock = threading.Lock()
        self._registered: tuple[_Registration, ...] = ()

    def register(
        self,
        delegate: Delegate,
        *,
        events: Iterable[str] | None = None,
        controls: Iterable[str] = (),
        asynchronous: bool = False,
    ) -> None:
        """Call `delegate` from now on.

        Args:
            events: notification types; None without `controls`: all notifications.
            controls: control types it answers.
            asynchronous: deliver notifications in order from a thread of its own, so that a slow observer does not
                hold up the conversation. Controls need an answer and cannot be asynchronous.

        Raises:
            ValueError: an unknown type, or an asynchronous control.
        """
        controls = frozenset(controls)
        if events is None:
            events = frozenset() if controls else self._notifications.keys()
        types = frozenset(events) | controls
        if unknown := (frozenset(events) - self._notifications.keys()) | (controls - self._controls.keys()):
            raise ValueError(f"no such type: {', '.join(sorted(unknown))}")
        if asynchronous and controls:
            raise ValueError("a control needs an answer: register it without asynchronous")
        entry = _Registration(delegate, types, queue.SimpleQueue() if asynchronous else None)
        if entry.queue is not None:
            threading.Thread(
                target=self._deliver, args=(entry, entry.queue), daemon=True, name="pidgin-delegate"
            ).start()
        with self._lock:
            self._registered = (*self._registered, entry)

    def unregister(
        self, delegate: Delegate, *, events: Iterable[str] | None = None, controls: Iterable[str] | None = None
    ) -> None:
        """Stop calling `delegate`, for these notifications and controls or, without any named, at all.

        Unknown delegates and types are passed over.
        """
        named = events is not None or controls is not None
        dropped = frozenset(events or ()) | frozenset(controls or ())
        kept: list[_Registration] = []
        gone: list[_Registration] = []
        with self._lock:
            for entry in self._registered:
                left = entry.types - dropped if named else frozenset[str]()
                if entry.delegate != delegate:
                    kept.append(entry)
                elif left:
                    kept.append(dataclasses.replace(entry, types=left))
                else:
                    gone.append(entry)
            self._registered = tuple(kept)
        for entry in gone:
            if entry.queue is not None:
                entry.queue.put(None)

    def close(self) -> None:
        """Unregister all; asynchronous ones still receive what was sent before."""
        for entry in self._registered:
            self.unregister(entry.delegate)

    @property
    def watching(self) -> bool:
        """Whether anybody is registered; saves building payloads when nobody is."""
        return bool(self._registered)

    def notify(self, sender: Any, payload: Payload) -> None:
        """Tell everyone who asked for it. Raises only `Pause` and `Stop`, after all have been told."""
        if (signal := self._tell(sender, payload)) is not None:
            raise signal

    def _tell(self, sender: Any, payload: Payload) -> Pause | Stop | None:
        signal: Pause | Stop | None = None
        for entry in self._registered:
            if payload.type not in entry.types:
                continue
            if entry.queue is not None:
                entry.queue.put((sender, payload))
                continue
            try:
                entry.delegate(sender, payload.type, **_fields(payload))
            except (Pause, Stop) as raised:
                signal = _stronger(signal, raised)
            except Exception as error:
                signal = _stronger(signal, self._report(sender, entry, payload, error))
        return signal

    def ask(self, sender: Any, payload: Payload) -> list[tuple[str, Any]]:
        """Delegate name and answer of everyone who answers this control; one that raises gives no answer.

        Raises only `Pause` and `Stop`, after all have been asked.
        """
        answers = []
        signal: Pause | Stop | None = None
        for entry in self._registered:
            if payload.type not in entry.types:
                continue
            try:
                answers.append((entry.name, entry.delegate(sender, payload.type, **_fields(payload))))
            except (Pause, Stop) as raised:
                signal = _stronger(signal, raised)
            except Exception as error:
                signal = _stronger(signal, self._report(sender, entry, payload, error))
        if signal is not None:
            raise signal
        return answers

    def _deliver(self, entry: _Registration, waiting: "queue.SimpleQueue[tuple[Any, Payload] | None]") -> None:
        while (item := waiting.get()) is not None:
            sender, payload = item
            try:
                entry.delegate(sender, payload.type, **_fields(payload))
            except (Pause, Stop) as raised:
                self._obey(raised)
            except Exception as error:
                if (signal := self._report(sender, entry, payload, error)) is not None:
                    self._obey(signal)

    def _report(self, sender: Any, entry: _Registration, payload: Payload, error: Exception) -> Pause | Stop | None:
        _log.error("delegate %s failed on %s", entry.name, payload.type, exc_info=error)
        if isinstance(payload, DelegateExecutionError):  # a delegate that fails on errors must not make more of them
            return None
        return self._tell(sender, DelegateExecutionError(entry.name, payload.type, type(error).__name__, str(error)))


def _stronger(one: Pause | Stop | None, other: Pause | Stop | None) -> Pause | Stop | None:
    """The first of two signals, but that an end outranks a pause."""
    return other if one is None or (isinstance(other, Stop) and isinstance(one, Pause)) else one


def _fields(payload: Payload) -> dict[str, Any]:
    return {field.name: getattr(payload, field.name) for field in dataclasses.fields(payload)}  # type: ignore[arg-type]
