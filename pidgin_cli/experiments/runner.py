"""Runs the conversations of one experiment, many at a time, in this process."""

import asyncio
import contextlib
import gc
import logging
import os
import platform
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec.structs import replace

from pidgin_cli.conversation.conductor import Conductor, Live, Outcome
from pidgin_cli.conversation.control import Control, Pause, Stop
from pidgin_cli.conversation.delegates import (
    ENGINE_CONTROLS,
    ENGINE_NOTIFICATIONS,
    DelegateManager,
    EngineErrorOccurred,
    EngineRequestPause,
    EngineRequestStop,
    EngineStarted,
    EngineStopped,
    Payload,
    TaskExecutionCompleted,
    TaskExecutionStarted,
)
from pidgin_cli.core.errors import LogError, NotFound, PidginError
from pidgin_cli.core.events import (
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    MessageCompleteEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.bus import EventBus
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, new_id
from pidgin_cli.eventlog.log import EventLog, Record, Syncer, read_record
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest, ManifestWriter, rebuild
from pidgin_cli.eventlog.state import RunState, run_state
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, split_model
from pidgin_cli.spec.catalogue import price_source
from pidgin_cli.spec.conversation import ConversationSpec, Origin
from pidgin_cli.spec.experiment import ExperimentSpec, experiment_hash, load, models_of, to_yaml
from pidgin_cli.spec.plan import expand

from .budget import Budget, Caps, Spent, caps_of, run_time, spent_so_far
from .estimate import Estimate, estimate
from .lineage import prefix, twin_fork
from .registry import HEARTBEAT_S, PidFile

__all__ = ["Runner", "create_experiment", "spare_collector"]

_DELEGATE = "delegate "
_ASK_AGAIN_S = 0.05

_log = logging.getLogger(__name__)


def spare_collector() -> None:
    """Let Python look for cycles seldom, in a process that is there to run conversations.

    What is imported by now stays, and what a conversation makes hardly ever forms a cycle: looking through it all after
    every few hundred objects takes a sixth of the time of fast conversations.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def create_experiment(root: OutputRoot, spec: ExperimentSpec) -> ExperimentFolder:
    """Make the folder of a new experiment from a resolved spec.

    Raises:
        SpecError: the output root is not writable.
    """
    experiment_id = new_id()
    now = datetime.now(UTC)
    manifest = Manifest(
        experiment_id=experiment_id,
        name=spec.name,
        created_at=now,
        host=platform.node(),
        versions=versions(spec),
        spec_hash=experiment_hash(spec),
        conversations={
            conversation_id: ConversationEntry.of(
                RunState(arm=conversation.arm, repetition=conversation.repetition),
                f"conv_{conversation_id}_events.jsonl",
            )
            for conversation_id, conversation in expand(spec, experiment_id).items()
        },
    )
    manifest.add_up()
    files = {"spec.yaml": to_yaml(spec).encode(), "manifest.json": manifest.encode()}
    return root.create(experiment_id, spec.name, now.astimezone().date(), files)


def versions(spec: ExperimentSpec) -> dict[str, str]:
    """What the results may depend on: Pidgin, Python, the SDKs in use, and where prices come from."""
    found = {"pidgin": version("pidgin-cli"), "python": platform.python_version(), "prices": price_source()}
    for model_id in models_of(spec):
        sdk = split_model(model_id)[0].sdk if model_id.partition(":")[0] in PROVIDERS else None
        if sdk is not None:
            try:
                found[sdk] = version(sdk)
            except PackageNotFoundError:
                continue
    return found


class Runner:
    """Runs an experiment's conversations, up to `max_parallel` at a time, from wherever each of them stands.

    All its conversations share one thread and one event loop, one `Syncer`, one manifest, one budget and the limits of
    the provider pool. What goes wrong in one conversation stays there; only a disk that takes nothing more ends all.
    """

    AUTO_PARALLEL = 100
    """Conversations at a time under `max_parallel: auto`; the limits of the providers hold them back as needed."""
    AUTO_OLLAMA = 4
    """The same where every model is one that Ollama serves, which works on few requests at once."""

    def __init__(
        self,
        root: OutputRoot,
        folder: ExperimentFolder,
        providers: ProviderPool,
        *,
        live: Live | None = None,
        on_conversation: Callable[[Conductor], None] | None = None,
        on_start: Callable[[], None] | None = None,
        resumed_by: str = "resume",
        only: Collection[str] | None = None,
        retry_failed: bool = True,
        max_parallel: int | None = None,
    ) -> None:
        """
        Args:
            live: receives pieces of replies while they stream.
            on_conversation: called with every conductor before it starts, to listen or to control.
            on_start: called when the experiment is claimed and before the first conversation starts.
            only: ids of the conversations to run now, in this order; None: all.
            retry_failed: go on with conversations that have failed, too.
            max_parallel: instead of what the spec says.
        """
        self.root = root
        self.folder = folder
        self.budget = Budget(Caps(), Caps(), Spent())
        self.estimate = Estimate(0, 0, (0, 0), (0.0, 0.0), [])
        """What the conversations to run were expected to take."""
        self.outcomes: dict[str, Outcome] = {}
        """How the conversations ended that were run."""
        self.refused: dict[str, str] = {}
        """Conversations that could not be run or written, with the reason."""
        self.running: dict[str, Conductor] = {}
        """The conversations under way."""
        self._providers = providers
        self._live = live
        self._on_conversation = on_conversation or (lambda _: None)
        self._on_start = on_start or (lambda: None)
        self._resumed_by = resumed_by
        self._only = only
        self._retry_failed = retry_failed
        self._max_parallel = max_parallel
        self._warned = False
        self._writer: ManifestWriter | None = None
        self._delegates = DelegateManager(self._obey, ENGINE_NOTIFICATIONS, ENGINE_CONTROLS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._pausers: list[str] = []
        self._held: set[str] = set()
        """Conversations that a detector, a score or a delegate has paused, each by itself; they take no place."""
        self._is_held = False
        """All that are under way are, and no other can begin."""
        self._stopping: Stop | None = None
        self._now = False
        self._broken: LogError | None = None
        """Why nothing can be recorded any more."""
        self._written: dict[str, int] = {}
        """By conversation that others branch from: the turns known to be in its log; -1: not even the opening."""
        self._hopeless: set[str] = set()
        """Twins of conversations that stopped before it was told where the two part."""

    def get_delegate_manager(self) -> DelegateManager:
        """Where delegates are registered that watch the experiment as a whole."""
        return self._delegates

    @property
    def manifest(self) -> Manifest | None:
        """The state of the experiment as of now; None before the start."""
        if self._writer is None:
            return None
        self._writer.catch_up()
        return self._writer.manifest

    @property
    def manifest_writes(self) -> int:
        """How often `manifest.json` was replaced in this run."""
        return 0 if self._writer is None else self._writer.writes

    # Control, from signals, commands and delegates

    def pause(self, by: str = "person") -> None:
        """Begin nothing more until `resume`; messages under way are finished."""
        if by not in self._pausers:
            self._pausers.append(by)
        for conductor in list(self.running.values()):
            conductor.control.pause(by, everybody=True)
        self._status_changed()

    def resume(self, by: str | None = None) -> None:
        """Go on. With `by`, only that party's pause ends."""
        self._pausers = [name for name in self._pausers if by is not None and name != by]
        for conductor in list(self.running.values()):
            conductor.control.resume(by)
        self._status_changed()

    def stop(self, by: str = "person", reason: EndReason = EndReason.STOP_REQUEST, *, now: bool = False) -> None:
        """End after the messages under way; with `now`, drop those (their text so far is recorded)."""
        self._stopping = self._stopping or Stop(by, reason)
        self._now = self._now or now
        for conductor in list(self.running.values()):
            conductor.control.stop(by, reason, now=now)
        self._changed.set()

    @property
    def paused_by(self) -> str | None:
        return self._pausers[0] if self._pausers else None

    @property
    def stopping(self) -> bool:
        return self._stopping is not None

    @property
    def stopping_now(self) -> bool:
        """Whether somebody did not even want to wait for the messages under way."""
        return self._stopping is not None and self._now

    def _status_changed(self) -> None:
        self._changed.set()
        self._show_status()

    def _show_status(self) -> None:
        if self._writer is not None:
            self._writer.manifest.status = Status.PAUSED if self._pausers or self._is_held else Status.RUNNING
            self._writer.touch()

    def _obey(self, signal: Pause | Stop) -> None:
        """What a delegate raised. Called from any thread."""
        assert self._loop is not None, "delegates are told of nothing before the start"
        if isinstance(signal, Stop):
            self._loop.call_soon_threadsafe(self.stop, signal.by, signal.reason)
        else:
            self._loop.call_soon_threadsafe(self.pause, signal.by)

    def _notify(self, payload: Payload) -> None:
        try:
            self._delegates.notify(self, payload)
        except (Pause, Stop) as signal:
            self._obey(signal)

    def _ask_delegates(self) -> None:
        experiment_id = self.folder.experiment_id
        try:
            stopping = self._saying_yes(EngineRequestStop(experiment_id))
            pausing = self._saying_yes(EngineRequestPause(experiment_id))
        except (Pause, Stop) as signal:
            self._obey(signal)
            return
        if stopping:
            self.stop(f"delegate {stopping[0]}")
        mine = next((name for name in self._pausers if name.startswith(_DELEGATE)), None)
        if pausing and mine is None:
            self.pause(_DELEGATE + pausing[0])
        elif mine is not None and not pausing:
            self.resume(mine)

    def _saying_yes(self, payload: Payload) -> list[str]:
        return [name for name, answer in self._delegates.ask(self, payload) if answer is True]

    # Running

    async def run(self) -> dict[str, Outcome]:
        """Run what is not completed yet. Gives the outcome of every conversation that was run.

        Raises:
            LogError: the record cannot be written, another process runs this experiment, or none of its conversations
                could go on.
            SpecError: `spec.yaml` does not fit any more.
        """
        spec = load(self.folder.spec)
        conversations = expand(spec, self.folder.experiment_id)
        self._shared_turns = {name: each.origin.turn for name, each in conversations.items() if each.origin is not None}
        self._loop = asyncio.get_running_loop()
        pid_file = PidFile(self.root.pid_file(self.folder.experiment_id))
        pid_file.refuse_others()
        syncer = Syncer()
        try:
            # The lock on the log decides between two that begin at once; only who has it touches the PID file.
            log, record = EventLog.resume(
                self.folder.events, experiment_id=self.folder.experiment_id, conversation_id=None, syncer=syncer
            )
            try:
                pid_file.write()
                _log.info("process %d runs %s", os.getpid(), self.folder.path.name)
                heart = asyncio.create_task(_beat(pid_file))
                try:
                    await self._run(spec, conversations, syncer, log, record)
                finally:
                    heart.cancel()
                    pid_file.remove()
                    _log.info("process %d leaves %s", os.getpid(), self.folder.path.name)
            finally:
                await log.aclose()
        finally:
            await syncer.aclose()
            self._delegates.close()
        if self._broken is not None:
            raise self._broken
        if self.refused and not self.outcomes:
            raise LogError(next(iter(self.refused.values())))
        return self.outcomes

    async def _run(
        self,
        spec: ExperimentSpec,
        conversations: Mapping[str, ConversationSpec],
        syncer: Syncer,
        log: EventLog,
        record: Record,
    ) -> None:
        experiment_id = self.folder.experiment_id
        timer: asyncio.TimerHandle | None = None
        manifest = rebuild(self.folder)
        for conversation_id, conversation in conversations.items():
            if conversation_id not in manifest.conversations or not manifest.conversations[conversation_id].repetition:
                fresh = RunState(arm=conversation.arm, repetition=conversation.repetition)
                entry = ConversationEntry.of(fresh, self.folder.log(conversation_id).name)
                manifest.conversations[conversation_id] = entry
        manifest.conversations = {name: manifest.conversations[name] for name in conversations}
        self._writer = writer = ManifestWriter(self.folder.manifest, manifest, self._manifest_failed)
        try:
            todo = self._todo(manifest, conversations)
            self.budget, ran_s = self._budget(spec, record.events, conversations)
            specs = [conversations[name] for name in todo]
            at_once = self._at_once(spec, specs)
            self.estimate = estimate(specs)
            start = self._start(spec, len(conversations), len(todo), at_once, resumed=bool(record.events))
            log.append(start)
            log.flush()
            manifest.name, manifest.spec_hash, manifest.versions = spec.name, start.spec_hash, start.versions
            manifest.created_at = manifest.started_at = manifest.started_at or start.timestamp
            manifest.status, manifest.completed_at, manifest.post_processing = Status.RUNNING, None, None
            manifest.pid, manifest.host = start.pid, start.host
            writer.touch()
            self._on_start()
            if self.budget.caps.seconds is not None:
                left = self.budget.caps.seconds - ran_s
                if left <= 0:
                    self._out_of_time()
                else:
                    timer = asyncio.get_running_loop().call_later(left, self._out_of_time)
            self._notify(EngineStarted(experiment_id, len(todo), start.resumed))
            await self._run_all({name: conversations[name] for name in todo}, at_once, syncer, log)
            writer.catch_up()
            for entry in manifest.conversations.values():
                if entry.status in (Status.RUNNING, Status.PAUSED):
                    entry.status = Status.INTERRUPTED  # it could not be gone on with
            counts = Counter(entry.status.value for entry in manifest.conversations.values())
            end = ExperimentCompleteEvent(
                status=_experiment_status(manifest.conversations.values()), conversations=dict(counts)
            )
            log.append(end)
            log.flush()
            manifest.status, manifest.completed_at = end.status, end.timestamp
            self._notify(EngineStopped(experiment_id, end.status.value, dict(counts)))
        finally:
            if timer is not None:
                timer.cancel()
            try:
                await log.aclose()
            finally:
                try:
                    writer.close()
                except LogError as error:
                    self._manifest_failed(error)

    def _out_of_time(self) -> None:
        self.budget.exhaust("wall_time")
        self.stop("budget", EndReason.BUDGET)

    def _todo(self, manifest: Manifest, conversations: Mapping[str, ConversationSpec]) -> list[str]:
        """The conversations to run now, in order."""
        left = []
        for conversation_id in conversations if self._only is None else self._only:
            entry = manifest.conversations[conversation_id]
            finished = entry.status is Status.COMPLETED or entry.end_reason is EndReason.CONTEXT_LIMIT
            if not finished and (entry.status is not Status.FAILED or self._retry_failed):
                left.append(conversation_id)
        return left

    def _budget(
        self, spec: ExperimentSpec, events: Iterable[Event], conversations: Iterable[str]
    ) -> tuple[Budget, float]:
        """What may still be used, and the seconds that earlier runs took."""
        caps, each = caps_of(spec)
        spent = Spent()
        seen: list[datetime] = []
        if caps != Caps():
            for conversation_id in conversations:
                if (log := self.folder.log(conversation_id)).exists():
                    recorded = read_record(log).events
                    found = spent_so_far(recorded)
                    spent = Spent(spent.usd + found.usd, spent.tokens + found.tokens)
                    if caps.seconds is not None:
                        seen += [event.timestamp for event in recorded]
        return Budget(caps, each, spent), run_time(events, seen)

    async def _run_all(self, todo: Mapping[str, ConversationSpec], at_once: int, syncer: Syncer, log: EventLog) -> None:
        waiting = deque(todo)
        tasks: dict[asyncio.Task[None], str] = {}
        parents = {conversation.origin.conversation_id for conversation in todo.values() if conversation.origin}
        self._written = {name: self._turns_of(name) for name in parents}
        try:
            while waiting or tasks:
                self._changed.clear()
                for task in [task for task in tasks if task.done()]:
                    ended = tasks.pop(task)
                    task.result()
                    if ended in self._written:
                        self._written[ended] = self._turns_of(ended)
                if self._delegates.watching and waiting:
                    self._ask_delegates()
                if self._stopping is not None or self.budget.exhausted:
                    waiting.clear()
                while (
                    len(tasks) - len(self._held) < at_once
                    and not self._pausers
                    and (name := self._next(waiting, todo)) is not None
                ):
                    task = asyncio.create_task(self._guarded(name, todo[name], syncer, log))
                    task.add_done_callback(lambda _: self._changed.set())
                    tasks[task] = name
                if not tasks and not (waiting and self._pausers):
                    for name in waiting:
                        self.refused[name] = "the conversation that it branches from did not get that far"
                    break
                if self._is_held != (is_held := len(self._held) == len(tasks) > 0):
                    self._is_held = is_held
                    self._show_status()
                with contextlib.suppress(TimeoutError):
                    # Delegates cannot say when they change their mind, so they are asked again from time to time.
                    async with asyncio.timeout(_ASK_AGAIN_S if self._delegates.watching and waiting else None):
                        await self._changed.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _next(self, waiting: deque[str], todo: Mapping[str, ConversationSpec]) -> str | None:
        """Take the first conversation that can begin: one that branches waits until its parent is beyond that point."""
        for place, name in enumerate(waiting):
            origin = todo[name].origin
            if origin is None or (
                self._written[origin.conversation_id] >= origin.turn
                and not (origin.until_intervention and self._undecided(name, origin, todo))
            ):
                del waiting[place]
                return name
        return None

    def _undecided(self, name: str, origin: Origin, todo: Collection[str]) -> bool:
        """Whether it is still open where a twin leaves its origin, or will not be told any more in this run."""
        parent = origin.conversation_id
        if (parent in todo and parent not in self.outcomes) or name in self._hopeless:
            return True
        if twin_fork(read_record(self.folder.log(parent)).events) is None:
            self._hopeless.add(name)
            return True
        return False

    def _turns_of(self, conversation_id: str) -> int:
        assert self._writer is not None
        self._writer.catch_up()
        entry = self._writer.manifest.conversations.get(conversation_id)
        if entry is None:
            return sys.maxsize  # another experiment's: to be checked when it is read
        return -1 if entry.status is Status.CREATED else entry.turns + self._shared_turns.get(conversation_id, 0)

    def _at_once(self, spec: ExperimentSpec, conversations: Iterable[ConversationSpec]) -> int:
        wanted = self._max_parallel or spec.max_parallel
        if wanted != "auto":
            return int(wanted)
        models = {agent.model for conversation in conversations for agent in conversation.agents}
        return self.AUTO_OLLAMA if all(model.startswith("ollama:") for model in models) else self.AUTO_PARALLEL

    async def _guarded(self, conversation_id: str, spec: ConversationSpec, syncer: Syncer, log: EventLog) -> None:
        """Run one conversation; whatever happens to it stays with it."""
        self._notify(TaskExecutionStarted(conversation_id, spec.arm, spec.repetition))
        try:
            outcome = self.outcomes[conversation_id] = await self._converse(conversation_id, spec, syncer)
        except Exception as error:
            self.refused[conversation_id] = str(error)
            _log.error("%s: %s", conversation_id, error, exc_info=None if isinstance(error, PidginError) else error)
            if isinstance(error.__cause__, OSError) or syncer.error is not None:
                self._broken = self._broken or (error if isinstance(error, LogError) else LogError(str(error)))
                self.stop("disk")
            else:
                log.append(
                    ErrorEvent(error=type(error).__name__, message=str(error), where=f"conversation {conversation_id}")
                )
            self._notify(EngineErrorOccurred(conversation_id, type(error).__name__, str(error)))
        else:
            if outcome.error is not None:
                _log.info("%s failed: %s", conversation_id, outcome.error)
                self._notify(EngineErrorOccurred(conversation_id, *outcome.error.split(": ", 1)))
            self._notify(TaskExecutionCompleted(conversation_id, outcome.status.value, outcome.end_reason.value))

    async def _converse(self, conversation_id: str, spec: ConversationSpec, syncer: Syncer) -> Outcome:
        assert self._writer is not None
        log, record = EventLog.resume(
            self.folder.log(conversation_id),
            experiment_id=self.folder.experiment_id,
            conversation_id=conversation_id,
            syncer=syncer,
            durability=spec.durability,
        )
        deadline: _Deadline | None = None
        try:
            bus = EventBus()
            self._writer.seed(conversation_id, run_state(record.events))
            bus.subscribe(self._writer.take)
            bus.subscribe(self._hold, ConversationPausedEvent, ConversationResumedEvent)
            if conversation_id in self._written:
                bus.subscribe(self._passed, MessageCompleteEvent)
            spent = spent_so_far(record.events)
            spec = spec_of(record) or self._forked(spec)
            conductor = Conductor(
                spec,
                conversation_id=conversation_id,
                providers=self._providers,
                log=log,
                bus=bus,
                control=Control(),
                live=self._live,
                record=record,
                resumed_by=self._resumed_by,
                purse=None if self._unlimited() else self.budget.purse(spent),
                prefix=() if spec.origin is None else prefix(self.root, spec.origin),
            )
            if (limit_s := self.budget.per_conversation.seconds) is not None:
                deadline = _Deadline(limit_s - spent.seconds, conductor.control)
                bus.subscribe(deadline.begin, ConversationStartEvent, ConversationResumedEvent)
            for name in self._pausers:
                conductor.control.pause(name, everybody=True)
            self._on_conversation(conductor)
            self.running[conversation_id] = conductor
            return await conductor.run()
        finally:
            if deadline is not None:
                deadline.cancel()
            self.running.pop(conversation_id, None)
            self._held.discard(conversation_id)
            await log.aclose()

    def _hold(self, event: Event) -> None:
        assert event.conversation_id is not None
        if isinstance(event, ConversationResumedEvent):
            self._held.discard(event.conversation_id)
        elif not self._pausers:
            self._held.add(event.conversation_id)
        self._changed.set()

    def _forked(self, spec: ConversationSpec) -> ConversationSpec:
        """A twin with the turn after which it is left alone; it ends there where nothing was done to its origin."""
        origin = spec.origin
        if origin is None or not origin.until_intervention:
            return spec
        found = twin_fork(read_record(self.folder.log(origin.conversation_id)).events)
        assert found is not None, "or it would not have begun"
        turn, acted = found
        left_at = Origin(origin.conversation_id, turn)
        return replace(spec, origin=left_at, max_turns=spec.max_turns if acted else turn)

    def _unlimited(self) -> bool:
        return all(
            caps.usd is None and caps.tokens is None for caps in (self.budget.caps, self.budget.per_conversation)
        )

    def _passed(self, event: Event) -> None:
        assert isinstance(event, MessageCompleteEvent)
        assert event.conversation_id is not None
        # A message is asked for only when everything before its turn is in the file.
        if event.turn_number - 1 > self._written[event.conversation_id]:
            self._written[event.conversation_id] = event.turn_number - 1
            self._changed.set()

    def _start(
        self, spec: ExperimentSpec, conversations: int, todo: int, at_once: int, *, resumed: bool
    ) -> ExperimentStartEvent:
        caps, each, expected = self.budget.caps, self.budget.per_conversation, self.estimate
        return ExperimentStartEvent(
            name=spec.name,
            spec_hash=experiment_hash(spec),
            conversations=conversations,
            pid=os.getpid(),
            host=platform.node(),
            versions=versions(spec),
            resumed=resumed,
            todo=todo,
            max_parallel=at_once,
            budget=None
            if self._unlimited() and caps.seconds is None and each.seconds is None
            else caps._asdict() | {f"each_{name}": cap for name, cap in each._asdict().items()},
            estimate={"calls": expected.calls, "tokens": expected.tokens, "cost_usd": expected.cost_usd},
        )

    def _manifest_failed(self, error: LogError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s; `pidgin rebuild %s` makes it again from the logs", error, self.folder.experiment_id)


class _Deadline:
    """Ends a conversation when its time is up.

    The time counts from the event from which the record counts it, too, so that none is left once this has struck.
    """

    def __init__(self, left_s: float, control: Control) -> None:
        self._left_s = left_s
        self._control = control
        self._timer: asyncio.TimerHandle | None = None
        if left_s <= 0:
            self._strike()

    def begin(self, _: Event) -> None:
        """The conversation starts or goes on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._left_s), self._strike)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _strike(self) -> None:
        self._control.stop("budget", EndReason.BUDGET)


def spec_of(record: Record) -> ConversationSpec | None:
    """The spec that a conversation was started with, as its log holds it."""
    start = next((event for event in record.events if isinstance(event, ConversationStartEvent)), None)
    if start is None:
        return None
    try:
        return ConversationSpec.from_json(start.spec)
    except msgspec.ValidationError as error:
        raise LogError(f"the record was made by another version of Pidgin: {error}") from None


def _experiment_status(entries: Iterable[ConversationEntry]) -> Status:
    """Stopped while anything is left to do; else failed if anything failed."""
    found = {entry.status for entry in entries if entry.end_reason is not EndReason.CONTEXT_LIMIT}
    if found & {Status.CREATED, Status.STOPPED, Status.INTERRUPTED, Status.RUNNING, Status.PAUSED}:
        return Status.STOPPED
    return Status.FAILED if Status.FAILED in found else Status.COMPLETED


async def _beat(pid_file: PidFile) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        pid_file.beat()


def find_log(root: OutputRoot, wanted: str) -> Path:
    """The log of a conversation: by its id, by the experiment it is alone in, or by path.

    Raises:
        NotFound: nothing fits, or the experiment has several conversations.
    """
    path = Path(wanted)
    if path.suffix == ".jsonl" and path.is_file():
        return path
    folder = root.find(wanted)
    logs = folder.logs()
    if wanted in logs:
        return logs[wanted]
    if re.fullmatch(rf"{folder.experiment_id}-\d+", wanted):
        raise NotFound(f"{folder.experiment_id} has no conversation {wanted!r} that has begun")
    if len(logs) == 1:
        return next(iter(logs.values()))
    if not logs:
        raise NotFound(f"{wanted!r} has no conversation yet")
    raise NotFound(f"{wanted!r} has {len(logs)} conversations; name one of {', '.join(list(logs)[:5])}")
