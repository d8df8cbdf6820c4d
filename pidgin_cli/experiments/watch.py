"""Watching experiments from outside: what is on the disk, read again only where it has changed.

`Watch.refresh` asks the file system about every experiment and reads the manifests that were replaced. Logs are read
only of the conversations that somebody looks at, from where the last look ended.
"""

import heapq
import os
import platform
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psutil
from msgspec import Struct

from pidgin_cli.core.errors import PidginError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    APIErrorEvent,
    AttractorEvent,
    ConvergenceWarningEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    LimitChangedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
    TurnCompleteEvent,
)
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.codec import Skipped
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.follow import Follower
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest

from .registry import HEARTBEAT_S, Runner, current_manifest, living

__all__ = [
    "UNDER_WAY",
    "UNFINISHED",
    "ConversationSight",
    "ExperimentSight",
    "Fault",
    "Limit",
    "Wait",
    "Watch",
    "Watched",
    "moment_of",
]

RATE_OVER_S = 60.0
MIN_SPAN_S = 5.0
"""Manifests seen over a shorter time say nothing about the rate."""
MIN_CPU_SPAN_S = 0.2
"""The system counts in hundredths of a second."""
UNDER_WAY = (Status.RUNNING, Status.PAUSED)
UNFINISHED = (Status.CREATED, *UNDER_WAY)
ONE_LOOK_BYTES = 2_000_000
"""Of logs; takes some 25 ms."""
FOLLOWED_AT_MOST = 512
"""Logs that are read for one experiment because they are under way; the most recent ones."""


# What is seen. These are also the objects of `pidgin monitor --json`.


class Fault(Struct, frozen=True):
    """Something that went wrong."""

    conversation_id: str
    agent_id: str | None
    provider: str | None
    kind: str
    """The class of the error."""
    text: str
    status: int | None = None
    """HTTP status."""
    at: datetime | None = None


class Wait(Struct, frozen=True):
    """An agent that is held back."""

    conversation_id: str
    agent_id: str
    provider: str
    why: str
    until: datetime | None
    """None: it cannot be told."""


class Limit(Struct, frozen=True):
    """How much may be asked of a model at present."""

    provider: str
    model: str
    what: str
    limit: int


class ConversationSight(Struct):
    """A conversation as it stands. What only its log tells is None where the log has not been read."""

    conversation_id: str
    status: Status
    arm: str
    repetition: int
    turns: int
    """Whole ones, of its own."""
    max_turns: int | None
    messages: int
    speaker: str | None
    """Id of the agent that is being asked now, or has spoken last."""
    speaking: bool | None
    """Whether it is being asked now."""
    tokens: int | None
    cost_usd: float | None
    convergence: float | None
    detectors: dict[str, Any] | None
    """As the last turn recorded them."""
    alert: str | None
    """The last threshold that was crossed, or attractor that was found."""
    end_reason: EndReason | None
    errors: int | None
    last_error: Fault | None
    wait: Wait | None
    updated_at: datetime | None


class ExperimentSight(Struct, kw_only=True):
    """An experiment as it stands. Sums are over all its conversations, None as soon as one part is not known."""

    experiment_id: str
    name: str | None
    status: Status | None = None
    """None: there is nothing that can be read."""
    problem: str | None = None
    """Why there is nothing to be read."""
    folder: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    total: int | None = None
    ended: int | None = None
    """Conversations that have come to an end of any kind: complete, failed or stopped."""
    completed: int | None = None
    failed: int | None = None
    running: int | None = None
    turns: int | None = None
    messages: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None
    messages_per_minute: float | None = None
    eta_s: float | None = None
    with_errors: int | None = None
    """Conversations in which something failed, whether it was got over or not."""
    last_error: Fault | None = None
    waits: list[Wait] = []
    limits: list[Limit] = []
    pid: int | None = None
    """Of a living runner."""
    cpu_percent: float | None = None
    """100: one core."""
    memory_bytes: int | None = None
    conversations: list[ConversationSight] = []


# One conversation's log


def moment_of(event: Event) -> datetime:
    """When an event was recorded. In a log that was written by hand it may stand without its time zone."""
    return event.timestamp if event.timestamp.tzinfo is not None else event.timestamp.replace(tzinfo=UTC)


class _Log:
    """What a conversation's log tells beyond the manifest."""

    def __init__(self, conversation_id: str, follower: Follower) -> None:
        self._conversation_id = conversation_id
        self._follower = follower
        self._generation = 0
        self._forget()

    def _forget(self) -> None:
        self.agents = 0
        self.names: dict[str, str] = {}
        self.max_turns: int | None = None
        self.speaker: str | None = None
        self.speaking = False
        self.errors = 0
        self.last_error: Fault | None = None
        self.wait: Wait | None = None
        self.limits: dict[tuple[str, str, str], tuple[datetime, int]] = {}
        self.detectors: dict[str, Any] | None = None
        self.alert: str | None = None
        self.spoken: deque[datetime] = deque(maxlen=10_000)

    @property
    def unread(self) -> int:
        """Bytes, as far as it is known."""
        return self._follower.unread

    def read(self, most: int | None) -> int:
        """Take what is new. Gives the bytes that were read."""
        before = self._follower.position
        try:
            events = self._follower.read(most)
        except PidginError:
            return 0  # the row stays as it was; attaching says what is wrong
        if self._follower.generation != self._generation:
            self._generation = self._follower.generation
            before = 0
            self._forget()
        for event in events:
            if not isinstance(event, Skipped):
                self._take(event)
        return self._follower.position - before

    def _take(self, event: Event) -> None:
        match event:
            case MessageRequestEvent():
                self.speaker, self.speaking, self.wait = event.agent_id, True, None
            case MessageCompleteEvent():
                self.speaker, self.speaking, self.wait = event.agent_id, False, None
                self.spoken.append(moment_of(event))
            case TurnCompleteEvent():
                self.detectors = event.detectors or None
            case ConversationStartEvent():
                self.agents = len(event.agents)
                self.names = {agent.id: agent.name for agent in event.agents}
                planned = event.spec.get("max_turns")
                shared = (event.branch_of or {}).get("turn", 0)
                self.max_turns = max(0, planned - shared) if isinstance(planned, int) else None
            case AgentNamedEvent():
                self.names[event.agent_id] = event.name
            case RateLimitEvent():
                self._waits(event, "rate limit" if event.reason == "refused" else "limit")
            case APIErrorEvent():
                self.errors += 1
                self._fault(event.agent_id, event.provider, event.error, event.message, event.status, event)
                if event.wait_s is None:
                    self.wait = None
                else:
                    self._waits(event, event.error)
            case ErrorEvent():
                self.errors += 1
                self._fault(None, None, event.error, f"{event.where}: {event.message}", None, event)
            case LimitChangedEvent():
                self.limits[event.provider, event.model, event.what] = (moment_of(event), event.limit)
            case AttractorEvent():
                self.alert = event.detector
            case ConvergenceWarningEvent():
                self.alert = f"{event.score} over {event.threshold:g}"
            case ConversationPausedEvent() | ConversationResumedEvent() | ConversationEndEvent():
                self.speaking, self.wait = False, None

    def _waits(self, event: RateLimitEvent | APIErrorEvent, why: str) -> None:
        until = None if event.wait_s is None else moment_of(event) + timedelta(seconds=event.wait_s)
        self.wait = Wait(self._conversation_id, event.agent_id, event.provider, why, until)

    def _fault(
        self, agent_id: str | None, provider: str | None, kind: str, text: str, status: int | None, event: Event
    ) -> None:
        self.last_error = Fault(self._conversation_id, agent_id, provider, kind, text, status, moment_of(event))

    def waiting(self, now: datetime) -> Wait | None:
        """The wait that lasts still."""
        wait = self.wait
        return wait if wait is not None and (wait.until is None or wait.until > now) else None

    def spoken_since(self, when: datetime) -> int:
        return sum(1 for moment in self.spoken if moment >= when)


# One experiment


class _Stamp(NamedTuple):
    """What tells whether a file was replaced."""

    inode: int
    size: int
    modified_ns: int


def _stamp(path: str | os.PathLike[str]) -> _Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat takes three times as long
    except OSError:
        return None
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


class Watched:
    """One experiment under observation."""

    def __init__(self, folder: ExperimentFolder) -> None:
        self.folder = folder
        self.manifest: Manifest | None = None
        self.problem: str | None = None
        """Why there is no manifest."""
        self.from_logs = False
        """`manifest.json` is missing or damaged, so that the logs alone tell."""
        self.runner: Runner | None = None
        self.reads = 0
        """How often the manifest has been read."""
        self.ended = 0
        self.with_errors = 0
        self._manifest_path = str(folder.manifest)
        self._key: tuple[object, ...] | None = None
        self._foreign = False
        self._logs: dict[str, _Log] = {}
        self._samples: deque[tuple[float, int]] = deque()
        """Time and messages, for the rate."""
        self._process: psutil.Process | None = None
        self._cpu_mark: tuple[float, float] | None = None
        """Time and CPU seconds of the runner, when last measured."""
        self.cpu_percent: float | None = None
        self.memory_bytes: int | None = None

    @property
    def key(self) -> str:
        """Tells it from all others; ids are not unique where folders were copied."""
        return self.folder.path.name

    @property
    def status(self) -> Status | None:
        return None if self.manifest is None else self.manifest.status

    @property
    def under_way(self) -> bool:
        return self.status in UNFINISHED

    def look(self, root: OutputRoot, runner: Runner | None, heartbeat: _Stamp | None, now: float) -> None:
        """See to the manifest: read it if it, or whether its runner lives, is not what it was."""
        if runner != self.runner:
            self.runner, self._process, self._cpu_mark = runner, None, None
            self.cpu_percent = self.memory_bytes = None
        # Of a runner on another machine only the heartbeat can be seen, and that it stops is no change of a file.
        clock = int(now // HEARTBEAT_S) if self._foreign and heartbeat is not None else None
        key = (_stamp(self._manifest_path), runner, clock)
        if key != self._key:
            self._key = key
            self._read(root)
        if self.manifest is not None and self.under_way:
            self._sample(now, self.manifest.totals.messages)

    def _read(self, root: OutputRoot) -> None:
        self.reads += 1
        self.from_logs = False
        try:
            self.manifest, self.problem = current_manifest(root, self.folder, self._broken), None
        except PidginError as error:
            self.manifest, self.problem = None, str(error)
        except OSError as error:
            self.manifest, self.problem = None, f"{self.folder.path.name} cannot be read: {error.strerror}"
        entries = () if self.manifest is None else self.manifest.conversations.values()
        self.ended = sum(entry.status not in (*UNFINISHED, Status.INTERRUPTED) for entry in entries)
        self.with_errors = sum(entry.error is not None for entry in entries)
        unfinished = self.manifest is not None and self.manifest.status in (*UNFINISHED, Status.INTERRUPTED)
        self._foreign = unfinished and self.manifest is not None and self.manifest.host not in (None, platform.node())

    def _broken(self) -> None:
        self.from_logs = True

    def _sample(self, now: float, messages: int) -> None:
        samples = self._samples
        if samples and messages < samples[-1][1]:
            samples.clear()  # the record was put back by hand
        if not samples or now - samples[-1][0] >= 0.5:
            samples.append((now, messages))
        while len(samples) > 2 and now - samples[1][0] >= RATE_OVER_S:
            samples.popleft()

    def measure(self) -> None:
        """See what the runner takes of the machine, since the last time it was measured."""
        if self.runner is None:
            return
        now = time.monotonic()
        if self._cpu_mark is not None and now - self._cpu_mark[0] < MIN_CPU_SPAN_S:
            return
        try:
            if self._process is None:
                self._process = psutil.Process(self.runner.pid)
            with self._process.oneshot():
                times = self._process.cpu_times()
                self.memory_bytes = self._process.memory_info().rss
        except psutil.Error:
            self._process = self._cpu_mark = self.cpu_percent = self.memory_bytes = None
            return
        used = times.user + times.system
        if self._cpu_mark is not None:
            self.cpu_percent = 100 * (used - self._cpu_mark[1]) / (now - self._cpu_mark[0])
        self._cpu_mark = (now, used)

    # Logs

    def entries(self) -> Mapping[str, ConversationEntry]:
        return {} if self.manifest is None else self.manifest.conversations

    def active(self, now: datetime) -> list[str]:
        """The conversations that are under way or were a minute ago, and the one that failed last."""
        entries = self.entries()
        since = now - timedelta(seconds=RATE_OVER_S)
        never = datetime.min.replace(tzinfo=UTC)
        found = [
            (entry.updated_at or never, name)
            for name, entry in entries.items()
            if entry.status in UNDER_WAY
            or (self.under_way and entry.updated_at is not None and entry.updated_at > since)
        ]
        names = [name for _, name in heapq.nlargest(FOLLOWED_AT_MOST, found)]
        failed = self._last_failed()
        return names if failed is None or failed in names else [*names, failed]

    def _last_failed(self) -> str | None:
        never = datetime.min.replace(tzinfo=UTC)
        failed = [(entry.updated_at or never, name) for name, entry in self.entries().items() if entry.error]
        return max(failed)[1] if failed else None

    def read_logs(self, conversation_ids: Collection[str], most: int) -> tuple[int, bool]:
        """Read what is new in these logs, about `most` bytes together. Gives the bytes, and whether more is left."""
        entries = self.entries()
        used, behind = 0, False
        for name in conversation_ids:
            entry = entries.get(name)
            if entry is None or (entry.status is Status.CREATED and not self.under_way):
                continue
            if used >= most:
                return used, True
            log = self._logs.get(name)
            if log is None:
                log = self._logs[name] = _Log(name, Follower(self.folder.log(name)))
            used += log.read(most - used)
            behind = behind or log.unread > 0
        return used, behind

    # What is seen

    def name_of(self, conversation_id: str, agent_id: str) -> str:
        """An agent's name as far as it is known."""
        log = self._logs.get(conversation_id)
        return agent_id if log is None else log.names.get(agent_id, agent_id)

    def conversation(self, conversation_id: str, now: datetime) -> ConversationSight:
        """One conversation as it stands. Raises KeyError when there is none of this id."""
        entry = self.entries()[conversation_id]
        log = self._logs.get(conversation_id)
        running = entry.status in UNDER_WAY
        fault = None if log is None else log.last_error
        if fault is None and entry.error is not None:
            fault = _fault_of(conversation_id, entry)
        return ConversationSight(
            conversation_id=conversation_id,
            status=entry.status,
            arm=entry.arm,
            repetition=entry.repetition,
            turns=entry.turns,
            max_turns=None if log is None else log.max_turns,
            messages=entry.messages,
            speaker=None if log is None else log.speaker,
            speaking=None if log is None else log.speaking and running,
            tokens=entry.tokens,
            cost_usd=entry.cost_usd,
            convergence=entry.convergence,
            detectors=None if log is None else log.detectors,
            alert=None if log is None else log.alert,
            end_reason=entry.end_reason,
            errors=None if log is None or log.unread else log.errors,
            last_error=fault,
            wait=log.waiting(now) if log is not None and running else None,
            updated_at=entry.updated_at,
        )

    def experiment(self, now: datetime) -> ExperimentSight:
        """The experiment as it stands, without its conversations."""
        manifest = self.manifest
        if manifest is None:
            return ExperimentSight(
                experiment_id=self.folder.experiment_id,
                name=self.folder.slug or None,
                problem=self.problem,
                folder=str(self.folder.path),
            )
        totals = manifest.totals
        rate = self._rate(now)
        return ExperimentSight(
            experiment_id=self.folder.experiment_id,
            name=manifest.name,
            status=manifest.status,
            folder=str(self.folder.path),
            created_at=manifest.created_at,
            started_at=manifest.started_at,
            completed_at=manifest.completed_at,
            total=totals.conversations,
            ended=self.ended,
            completed=totals.completed,
            failed=totals.failed,
            running=totals.running,
            turns=totals.turns,
            messages=totals.messages,
            tokens=totals.tokens,
            cost_usd=totals.cost_usd,
            messages_per_minute=rate,
            eta_s=self._eta(rate),
            with_errors=self.with_errors,
            last_error=self._last_error(),
            waits=self._waits(now),
            limits=self._limits(),
            pid=None if self.runner is None else self.runner.pid,
            cpu_percent=self.cpu_percent,
            memory_bytes=self.memory_bytes,
        )

    def _rate(self, now: datetime) -> float | None:
        """Messages a minute, over the last minute as far as that can be known."""
        if self.manifest is None or not self.under_way:
            return None
        if self._samples and self._samples[-1][0] - self._samples[0][0] >= MIN_SPAN_S:
            (began, before), (end, after) = self._samples[0], self._samples[-1]
            return 60 * (after - before) / (end - began)
        if self.manifest.started_at is None or not self._logs:
            return None
        since = max(self.manifest.started_at, now - timedelta(seconds=RATE_OVER_S))
        span = (now - since).total_seconds()
        spoken = sum(log.spoken_since(since) for log in self._logs.values())
        return 60 * spoken / span if span >= 1 else None

    def _eta(self, rate: float | None) -> float | None:
        """Seconds that are left at this rate, if conversations that have not begun are as long as those that have."""
        if not rate:
            return None
        planned = {name: log.max_turns * log.agents for name, log in self._logs.items() if log.max_turns}
        if not planned:
            return None
        usual = sum(planned.values()) / len(planned)
        left = 0.0
        for name, entry in self.entries().items():
            if entry.status in UNFINISHED:
                left += max(0.0, planned.get(name, usual) - entry.messages)
        return 60 * left / rate

    def _last_error(self) -> Fault | None:
        found = [log.last_error for log in self._logs.values() if log.last_error is not None]
        if found:
            return max(found, key=lambda fault: fault.at or datetime.min.replace(tzinfo=UTC))
        failed = self._last_failed()
        return None if failed is None else _fault_of(failed, self.entries()[failed])

    def _waits(self, now: datetime) -> list[Wait]:
        entries = self.entries()
        found = []
        for name, log in self._logs.items():
            entry = entries.get(name)
            if entry is not None and entry.status in UNDER_WAY and (wait := log.waiting(now)) is not None:
                found.append(wait)
        return sorted(found, key=lambda wait: (len(wait.conversation_id), wait.conversation_id))

    def _limits(self) -> list[Limit]:
        if not self.under_way:
            return []
        newest: dict[tuple[str, str, str], tuple[datetime, int]] = {}
        for log in self._logs.values():
            for about, (when, limit) in log.limits.items():
                if about not in newest or newest[about][0] < when:
                    newest[about] = (when, limit)
        return [Limit(*about, limit) for about, (_, limit) in sorted(newest.items())]


def _fault_of(conversation_id: str, entry: ConversationEntry) -> Fault:
    """The error as the manifest has it, which is one text."""
    kind, colon, text = (entry.error or "").partition(": ")
    if not colon:
        kind, text = "", kind
    return Fault(conversation_id, None, None, kind, text, None, entry.updated_at)


class Watch:
    """All experiments below an output root."""

    def __init__(self, root: OutputRoot) -> None:
        self.root = root
        self._found: dict[str, Watched] = {}
        self._dead: dict[str, _Stamp] = {}
        """PID files whose process is known to be gone: a process does not come back."""

    @property
    def experiments(self) -> list[Watched]:
        """Those that run first, then the newest."""
        never = datetime.min.replace(tzinfo=UTC)

        def place(watched: Watched) -> tuple[bool, datetime]:
            manifest = watched.manifest
            return watched.under_way, never if manifest is None else manifest.created_at

        return sorted(self._found.values(), key=place, reverse=True)

    def get(self, key: str) -> Watched | None:
        return self._found.get(key)

    def refresh(self, only: Collection[str] | None = None) -> None:
        """See what there is now. `only`: keys of the experiments to look at, instead of all there are.

        Raises:
            OSError: the output root is there and cannot be read.
        """
        names = self._names() if only is None else only
        for gone in self._found.keys() - names:
            del self._found[gone]
        beating = self._pid_files()
        now = time.time()
        for name in names:
            watched = self._found.get(name)
            if watched is None:
                watched = self._found[name] = Watched(ExperimentFolder(self.root.experiments / name))
            heartbeat = beating.get(watched.folder.experiment_id)
            runner = None if heartbeat is None else self._living(watched.folder.experiment_id, heartbeat)
            watched.look(self.root, runner, heartbeat, now)
            if watched.problem is not None and not watched.folder.path.exists():
                del self._found[name]

    def _names(self) -> set[str]:
        names = set()
        try:
            with os.scandir(self.root.experiments) as entries:
                for entry in entries:
                    if not entry.name.startswith("experiment_") or not entry.is_dir():
                        continue
                    if entry.name in self._found:
                        names.add(entry.name)
                    else:
                        with suppress(PidginError):  # a folder of another kind
                            names.add(ExperimentFolder(self.root.experiments / entry.name).path.name)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return names

    def _pid_files(self) -> dict[str, _Stamp]:
        found = {}
        with suppress(OSError), os.scandir(self.root.active) as entries:
            for entry in entries:
                if entry.name.startswith("exp_") and entry.name.endswith(".pid"):
                    stamp = _stamp(entry.path)
                    if stamp is not None:
                        found[entry.name[len("exp_") : -len(".pid")]] = stamp
        return found

    def _living(self, experiment_id: str, stamp: _Stamp) -> Runner | None:
        if self._dead.get(experiment_id) == stamp:
            return None
        runner = living(self.root.pid_file(experiment_id))
        if runner is None:
            self._dead[experiment_id] = stamp
        return runner

    def follow(self, looked_at: Mapping[str, Collection[str]], most: int = ONE_LOOK_BYTES) -> bool:
        """Read on in the logs of these conversations, by key of the experiment, and measure the runners.

        Args:
            most: bytes to read at most, about, so that no look takes longer than a screen may stand still.

        Returns:
            Whether something was left for the next time.
        """
        left, behind = most, False
        for key, names in looked_at.items():
            watched = self._found.get(key)
            if watched is None:
                continue
            watched.measure()
            used, more = watched.read_logs(names, left)
            left, behind = left - used, behind or more
        return behind
