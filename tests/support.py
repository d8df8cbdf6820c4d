"""Whole conversations in a temporary folder, and what must hold for every record."""

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from pidgin_cli.conversation.conductor import Conductor, Live, Outcome
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    AttractorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConvergenceWarningEvent,
    ConversationBranchedEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    LimitChangedEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ModelLoadEvent,
    QuestionAbandonedEvent,
    QuestionEvent,
    RateLimitEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    TurnCompleteEvent,
    TurnStartEvent,
    WarningEvent,
)
from pidgin_cli.core.types import AgentSettings, Delta, ModelRequest, Role, Timeouts
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import ExperimentSpec, check, expand, resolve

__all__ = [
    "Run",
    "Scripted",
    "ScriptedPool",
    "bus_watch",
    "check_record",
    "conversation",
    "converse",
    "cut_copy",
    "elsewhere",
    "experiment",
    "go_on",
    "messages",
    "of_type",
    "requests_per_message",
    "story",
    "texts",
]

E = TypeVar("E", bound=Event)

QUICK = {"attempts": 6, "base_s": 0.001, "max_wait_s": 0.002}
"""Retries that do not hold a test up."""


# Making and running


def experiment(*models: str, agents: dict[str, dict[str, Any]] | None = None, **keys: Any) -> ExperimentSpec:
    """A resolved spec: one agent per model (`a`, `b`, …), settings of single agents in `agents`."""
    ids = "abcdefgh"[: len(models)]
    data: dict[str, Any] = {
        "agents": [
            {"id": i, "model": model, **(agents or {}).get(i, {})} for i, model in zip(ids, models, strict=True)
        ],
        "prompt": "Good morning.",
        "seed": 11,
        "max_turns": 3,
        "retries": QUICK,
        "durability": "none",
        "metrics": "off",
    }
    return resolve(check(data | keys), PROVIDERS).spec


def conversation(*models: str, **keys: Any) -> ConversationSpec:
    """The one conversation of such a spec."""
    return next(iter(expand(experiment(*models, **keys)).values()))


class Run(NamedTuple):
    """A conversation that has been run, with its record read back from the file."""

    root: OutputRoot
    folder: ExperimentFolder
    log: Path
    outcome: Outcome | None
    """None: it was complete already."""
    events: list[Event]


async def converse(
    where: Path,
    spec: ExperimentSpec,
    *,
    watch: Callable[[Conductor], None] | None = None,
    live: Live | None = None,
    pool: ProviderPool | None = None,
) -> Run:
    """Make an experiment of one conversation below `where` and run it."""
    root = OutputRoot(where)
    return await go_on(root, create_experiment(root, spec), watch=watch, live=live, pool=pool)


async def go_on(
    root: OutputRoot,
    folder: ExperimentFolder,
    *,
    watch: Callable[[Conductor], None] | None = None,
    live: Live | None = None,
    pool: ProviderPool | None = None,
) -> Run:
    """Run an experiment of one conversation from where it stands, with a runner of its own."""
    pool = pool or ProviderPool()
    try:
        outcomes = await Runner(root, folder, pool, on_conversation=watch, live=live).run()
    finally:
        await pool.aclose()
    name = f"{folder.experiment_id}-1"
    log = folder.log(name)
    return Run(root, folder, log, outcomes.get(name), read_record(log).events)


def cut_copy(run: Run, where: Path, size: int) -> tuple[OutputRoot, ExperimentFolder]:
    """The experiment as a process that died after `size` bytes of the conversation's log left it."""
    root = OutputRoot(where)
    root.prepare()
    path = root.experiments / run.folder.path.name
    shutil.copytree(run.folder.path, path)
    folder = ExperimentFolder(path)
    log = folder.log(f"{folder.experiment_id}-1")
    log.write_bytes(log.read_bytes()[:size])
    return root, folder


def bus_watch(kind: type[Event], act: Callable[[Conductor, Any], None]) -> Callable[[Conductor], None]:
    """For `converse(watch=…)`: call `act(conductor, event)` on every event of a type."""
    return lambda conductor: conductor.bus.subscribe(lambda event: act(conductor, event), kind)


def elsewhere(call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Make a call from another thread and wait until it has returned."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call(*args, **kwargs)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the call did not return at once"
    if failures:
        raise failures[0]


# A provider that does what a script says


class Scripted:
    """A provider whose replies are scripts: deltas, errors to raise, seconds to wait, and events to wait for."""

    def __init__(self, *scripts: Sequence[Delta | Exception | float | asyncio.Event]) -> None:
        """One script per request, in order; the last one serves all that come after."""
        self.scripts = scripts
        self.requests: list[ModelRequest] = []
        self.open = 0
        self.most_open = 0
        self.closed = False
        self.opened = asyncio.Event()
        """Set while requests begin."""

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(request)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.opened.set()
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, float | int):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        self.closed = True


class ScriptedPool(ProviderPool):
    """A pool in which scripted providers stand for the adapters of some models."""

    def __init__(self, **by_name: Provider) -> None:
        """`by_name`: the part of the model id after the colon to its provider."""
        super().__init__()
        self._by_name = by_name

    def adapter(self, model_id: str, timeouts: Timeouts, settings: AgentSettings | None = None) -> Provider:
        return self._by_name.get(model_id.partition(":")[2]) or super().adapter(model_id, timeouts, settings)


# Reading a record


def of_type(events: Iterable[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def messages(events: Iterable[Event]) -> list[MessageCompleteEvent]:
    return of_type(events, MessageCompleteEvent)


def texts(events: Iterable[Event]) -> list[str]:
    return [event.message.content for event in messages(events)]


def requests_per_message(events: Iterable[Event]) -> Counter[int]:
    """How often each message was asked for."""
    return Counter(event.message_index for event in of_type(events, MessageRequestEvent))


def story(events: Sequence[Event], *, totals: bool = True) -> list[tuple[Any, ...]]:
    """What must be equal in a resumed run: messages, complete turns and the last end; not ids, times and attempts."""
    told: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case MessageCompleteEvent():
                message = event.message
                place = (event.message_index, event.turn_number, event.agent_id, message.id, message.role)
                what = (message.content, event.finish_reason, event.usage, event.cost, event.model_served)
                told.append(("message", *place, *what))
            case TurnCompleteEvent():
                told.append(("turn", event.turn_number))
    end = of_type(events, ConversationEndEvent)[-1]
    told.append(("end", end.status, end.end_reason, end.invalid, end.notable, end.totals if totals else None))
    return told


def total(*parts: int | None) -> int | None:
    """Their sum; None as soon as one of them is not known."""
    return None if None in parts else sum(part for part in parts if part is not None)


def check_record(events: Sequence[Event], *, ended: bool = True) -> None:
    """Everything DESIGN 5.2 says about the events of one conversation and their order.

    With `ended`, the record must end with a `ConversationEndEvent`.
    """
    state = _Grammar(events)
    for place, event in enumerate(events):
        try:
            state.take(event)
        except AssertionError as error:
            around = "\n".join(f"  {e.seq} {type(e).__name__}" for e in events[max(0, place - 6) : place + 2])
            raise AssertionError(f"event {place} ({type(event).__name__}): {error}\n{around}") from error
    assert not ended or state.ended, "the record does not end with ConversationEndEvent"


class _Grammar:
    """A machine that accepts legal records."""

    def __init__(self, events: Sequence[Event]) -> None:
        assert events, "an empty record"
        start = events[0]
        assert isinstance(start, ConversationStartEvent), "the first line is no ConversationStartEvent"
        self.start = start
        self.ids = [agent.id for agent in start.agents]
        self.count = 0
        self.prompted: list[str] = []
        self.origin = start.branch_of
        """Where it branches off; None once that is told."""
        self.shared = (0, 0)
        """Turns and messages of other conversations before it."""
        self.named: list[str] = []
        self.muted_until: dict[str, int] = {}
        self.to_be_muted: set[str] = set()
        self.warned: set[tuple[str | None, str]] = set()
        self.turn = 0
        self.turn_open = False
        self.turns_complete = 0
        self.speakers: tuple[str, ...] = ()
        self.spoken: list[str] = []
        self.messages = 0
        self.asked: MessageRequestEvent | None = None
        self.lost = False
        """The request under way has failed for good or was dropped, so that it may be made again."""
        self.given_up = False
        """It has failed for good."""
        self.attempt = 1
        self.question: tuple[str, str] | None = None
        """Who is asked beside the conversation, and for what."""
        self.thinking = False
        self.uncounted: MessageCompleteEvent | None = None
        self.tokens: int | None = 0
        self.prompt: int | None = 0
        self.completion: int | None = 0
        self.cost: float | None = 0.0
        self.paused = False
        self.ended = False
        self.time = start.timestamp

    def take(self, event: Event) -> None:
        self._envelope(event)
        if self.ended:
            assert isinstance(event, ConversationResumedEvent), "after the end only a resume may follow"
        if self.uncounted is not None:
            assert isinstance(event, TokenUsageEvent), "the usage of a message stands just behind it"
        if self.thinking:
            allowed = (ThinkingCompleteEvent, MessageCompleteEvent, MessageAbandonedEvent)
            assert isinstance(event, allowed), "thinking belongs to the message that follows"
        if self.paused:
            allowed = (ConversationResumedEvent, ConversationEndEvent, ErrorEvent)
            assert isinstance(event, allowed), "nothing happens during a pause"
        if self.count > 1 and len(self.prompted) < len(self.ids):
            assert isinstance(event, SystemPromptEvent), "the system prompts come first"
        elif self.count > 1 and self.origin is not None:
            assert isinstance(event, ConversationBranchedEvent), "a branch says so at once"
        getattr(self, f"_{type(event).__name__}")(event)

    def _envelope(self, event: Event) -> None:
        assert event.seq == self.count, f"seq {event.seq} at place {self.count}"
        assert event.event_id == f"{self.start.conversation_id}:{event.seq}"
        assert event.conversation_id == self.start.conversation_id
        assert event.experiment_id == self.start.experiment_id
        assert event.timestamp >= self.time, "time runs backwards"
        self.time = event.timestamp
        self.count += 1

    def _next_speaker(self) -> str:
        return self.speakers[len(self.spoken)]

    def _belongs(self, event: Any) -> None:
        assert self.asked is not None, "nobody has been asked"
        assert (event.agent_id, event.turn_number, event.message_index) == (
            self.asked.agent_id,
            self.asked.turn_number,
            self.asked.message_index,
        ), "it belongs to another request"

    def _ConversationStartEvent(self, event: ConversationStartEvent) -> None:  # noqa: N802
        assert self.count == 1, "a second start"

    def _SystemPromptEvent(self, event: SystemPromptEvent) -> None:  # noqa: N802
        assert len(self.prompted) < len(self.ids), "a system prompt too many"
        assert event.agent_id == self.ids[len(self.prompted)]
        assert (event.text is None) == (event.placement is None)
        self.prompted.append(event.agent_id)

    def _ConversationBranchedEvent(self, event: ConversationBranchedEvent) -> None:  # noqa: N802
        assert self.origin is not None, "a second branching"
        place = (event.origin, event.turn_number, event.message_index)
        assert place == (self.origin["conversation_id"], self.origin["turn"], self.origin["message_index"])
        self.turn = self.turns_complete = event.turn_number
        self.messages = event.message_index
        self.shared = (self.turn, self.messages)
        self.origin = None

    def _AgentNamedEvent(self, event: AgentNamedEvent) -> None:  # noqa: N802
        assert self.turn == 0, "names are chosen before the first turn"
        assert event.agent_id == self.ids[len(self.named)], "names are chosen once and in order"
        self.named.append(event.agent_id)

    def _TurnStartEvent(self, event: TurnStartEvent) -> None:  # noqa: N802
        assert not self.turn_open, "the last turn is still open"
        assert event.turn_number == self.turns_complete + 1 == self.turn + 1
        mutes = [item for item in self.start.spec.get("interventions", ()) if item["kind"] == "mute"]
        silent = {
            agent_id
            for item in mutes
            if "when" not in item and item["turn"] <= event.turn_number < item["turn"] + item.get("turns", 1)
            for agent_id in item["agents"]
        }
        silent |= {agent_id for agent_id, last in self.muted_until.items() if event.turn_number <= last}
        missing = set(self.ids) - silent - set(event.speakers)
        assert len(set(event.speakers)) == len(event.speakers)
        assert set(event.speakers) <= set(self.ids) - silent
        assert missing <= {agent_id for item in mutes if "when" in item for agent_id in item["agents"]}
        self.to_be_muted = missing
        self.turn, self.turn_open, self.speakers, self.spoken = event.turn_number, True, event.speakers, []

    def _InterventionEvent(self, event: InterventionEvent) -> None:  # noqa: N802
        assert event.turn_number == self.turn, "an intervention of another turn"
        assert self.turn_open or self.turn == 0, "between two turns"
        assert self.asked is None or self.lost, "while a model is being asked"
        assert event.message_index == self.messages
        assert set(event.audience) <= set(self.ids)
        if event.source == "script":
            assert not self.spoken, "the script acts before anybody speaks"
        assert (event.kind == "inject") == (event.agent_id is None) == (event.text is not None)
        assert (event.kind == "edit") == (event.edited_index is not None)
        assert (event.kind == "mute") == (event.turns is not None)
        if event.kind == "mute":
            assert event.agent_id not in self.speakers, "silent and a speaker"
            if event.trigger is not None and event.agent_id is not None:
                self.muted_until[event.agent_id] = event.turn_number + (event.turns or 1) - 1
                self.to_be_muted.discard(event.agent_id)

    def _MessageRequestEvent(self, event: MessageRequestEvent) -> None:  # noqa: N802
        assert self.turn_open, "outside a turn"
        assert self.asked is None or self.lost, "the last request has not come to its end"
        assert event.agent_id == self._next_speaker(), "out of turn"
        assert not self.to_be_muted, "left out of the turn for nothing"
        assert (event.turn_number, event.message_index) == (self.turn, self.messages)
        assert event.view.end == self.messages
        assert event.view.start == event.view.omitted <= self.messages
        self.asked, self.lost, self.given_up, self.attempt = event, False, False, 1

    def _failed(self, attempt: int, *, final: bool) -> None:
        assert attempt == self.attempt, f"attempt {attempt} where {self.attempt} was under way"
        self.lost = self.given_up = final
        self.attempt += 1

    def _RateLimitEvent(self, event: RateLimitEvent) -> None:  # noqa: N802
        if self.asked is not None and not self.given_up:  # else it is about a name or a summary
            self._belongs(event)
            if event.reason == "refused":
                assert event.wait_s is not None
                self._failed(event.attempt, final=False)
            else:
                assert event.attempt == self.attempt, "it waits to make another attempt than the one that is due"
                assert not self.thinking, "it waits in the middle of a reply"

    def _APIErrorEvent(self, event: APIErrorEvent) -> None:  # noqa: N802
        if self.asked is not None and not self.given_up:
            self._belongs(event)
            self._failed(event.attempt, final=event.wait_s is None)
        assert event.retryable or event.wait_s is None, "what cannot be retried is not waited for"

    def _MessageAbandonedEvent(self, event: MessageAbandonedEvent) -> None:  # noqa: N802
        self._belongs(event)
        assert not self.lost, "abandoned twice"
        if event.attempt is not None:
            assert event.attempt == self.attempt
        self.thinking = False
        self.lost = True  # unless an error that is waited for follows

    def _ThinkingCompleteEvent(self, event: ThinkingCompleteEvent) -> None:  # noqa: N802
        self._belongs(event)
        assert not self.lost
        self.thinking = True

    def _MessageCompleteEvent(self, event: MessageCompleteEvent) -> None:  # noqa: N802
        self._belongs(event)
        assert not self.lost, "a reply to a request that had come to its end"
        assert event.message_index == self.messages, "an index twice or left out"
        assert event.attempt == self.attempt
        assert event.message.role is Role.ASSISTANT
        assert event.message.id == f"{event.conversation_id}:m{event.message_index}"
        assert not event.message.thinking, "thinking has events of its own"
        self.messages += 1
        self.spoken.append(event.agent_id)
        self.asked, self.thinking, self.uncounted = None, False, event

    def _TokenUsageEvent(self, event: TokenUsageEvent) -> None:  # noqa: N802
        usage = (event.prompt_tokens, event.completion_tokens, event.thinking_tokens, event.cached_tokens)
        if event.purpose == "message":
            said = self.uncounted
            assert said is not None, "usage without a message"
            assert (event.agent_id, f"{event.provider}:{event.model}") == (said.agent_id, said.model_requested)
            reported = said.usage
            assert usage == (
                reported.prompt_tokens,
                reported.completion_tokens,
                reported.thinking_tokens,
                reported.cached_tokens,
            )
            assert event.cost == said.cost
            self.uncounted = None
        elif event.purpose != "abandoned":
            assert self.question == (event.agent_id, event.purpose), "usage without a question"
            self.question = None
        self.tokens = total(self.tokens, event.prompt_tokens, event.completion_tokens)
        self.prompt = total(self.prompt, event.prompt_tokens)
        self.completion = total(self.completion, event.completion_tokens)
        self.cost = None if event.cost is None or self.cost is None else self.cost + event.cost
        assert event.total_tokens == self.tokens, "the running total is wrong"
        assert event.total_cost == (None if self.cost is None else pytest.approx(self.cost))

    def _TurnCompleteEvent(self, event: TurnCompleteEvent) -> None:  # noqa: N802
        assert self.turn_open
        assert event.turn_number == self.turn
        assert tuple(self.spoken) == self.speakers, "not everybody has spoken"
        self.turn_open, self.turns_complete = False, self.turn

    def _AttractorEvent(self, event: AttractorEvent) -> None:  # noqa: N802
        assert self.turn_open, "detectors speak after a message"
        assert event.message_index == self.messages - 1
        assert event.turn_number == self.turn

    def _ConvergenceWarningEvent(self, event: ConvergenceWarningEvent) -> None:  # noqa: N802
        assert not self.turn_open, "convergence is that of a whole turn"
        assert event.turn_number == self.turns_complete

    def _context(self, event: Any) -> None:
        assert self.turn_open
        assert event.agent_id == self._next_speaker()
        assert event.turn_number == self.turn
        assert self.asked is None or self.lost

    def _QuestionEvent(self, event: QuestionEvent) -> None:  # noqa: N802
        if event.purpose == "name":
            assert (event.turn_number, event.agent_id) == (0, self.ids[len(self.named)])
        else:
            assert event.purpose == "summary"
            self._context(event)
        self.question = (event.agent_id, event.purpose)

    def _QuestionAbandonedEvent(self, event: QuestionAbandonedEvent) -> None:  # noqa: N802
        assert self.question == (event.agent_id, event.purpose)

    def _ContextTruncationEvent(self, event: ContextTruncationEvent) -> None:  # noqa: N802
        self._context(event)
        assert event.view.start == event.view.omitted > 0

    def _HistoryCompactedEvent(self, event: HistoryCompactedEvent) -> None:  # noqa: N802
        self._context(event)
        assert event.view.start == event.view.omitted > 0
        assert event.summary.strip()

    def _ContextLimitEvent(self, event: ContextLimitEvent) -> None:  # noqa: N802
        self._context(event)

    def _ErrorEvent(self, event: ErrorEvent) -> None:  # noqa: N802
        """May stand anywhere."""

    def _LimitChangedEvent(self, event: LimitChangedEvent) -> None:  # noqa: N802
        """May stand anywhere: the limit is that of the whole process."""

    def _WarningEvent(self, event: WarningEvent) -> None:  # noqa: N802
        """May stand anywhere, but once about each setting."""
        about = (event.agent_id, event.what)
        assert event.agent_id is None or event.agent_id in self.ids
        assert about not in self.warned, f"a second warning about {about}"
        self.warned.add(about)

    def _ModelLoadEvent(self, event: ModelLoadEvent) -> None:  # noqa: N802
        """May stand anywhere: the server is that of the whole process."""

    def _ConversationPausedEvent(self, event: ConversationPausedEvent) -> None:  # noqa: N802
        assert not self.paused
        assert event.by
        assert self.asked is None, "a pause waits for the message under way"
        self.paused = True

    def _ConversationResumedEvent(self, event: ConversationResumedEvent) -> None:  # noqa: N802
        assert event.by
        assert (event.turn_number, event.message_index) == (self.turn, self.messages)
        assert self.asked is None or self.lost, "a lost request was not recorded as abandoned"
        self.asked = None
        self.paused = self.ended = False

    def _ConversationEndEvent(self, event: ConversationEndEvent) -> None:  # noqa: N802
        totals = event.totals
        assert (totals.turns, totals.messages) == (self.turns_complete - self.shared[0], self.messages - self.shared[1])
        assert (totals.prompt_tokens, totals.completion_tokens) == (self.prompt, self.completion)
        assert totals.cost_usd == (None if self.cost is None else pytest.approx(self.cost))
        assert not (self.turn_open and len(self.spoken) == len(self.speakers)), "a whole turn was not completed"
        self.ended = True
        self.asked = None
        self.paused = False
