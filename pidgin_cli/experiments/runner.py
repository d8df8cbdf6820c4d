"""Runs the conversations of one experiment in this process."""

import asyncio
import logging
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from pidgin_cli.conversation.conductor import Conductor, Live, Outcome
from pidgin_cli.conversation.control import Control
from pidgin_cli.core.errors import LogError, NotFound
from pidgin_cli.core.events import ConversationStartEvent, ExperimentCompleteEvent, ExperimentStartEvent
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.bus import EventBus
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, new_id
from pidgin_cli.eventlog.log import EventLog, Record, Syncer
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest, ManifestWriter, rebuild
from pidgin_cli.eventlog.state import RunState, run_state
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, split_model
from pidgin_cli.spec.catalogue import price_source
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import ExperimentSpec, expand, experiment_hash, load, to_yaml

from .registry import HEARTBEAT_S, PidFile

__all__ = ["Runner", "create_experiment"]

_log = logging.getLogger(__name__)


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
            f"{experiment_id}-{number}": ConversationEntry.of(
                RunState(arm=conversation.arm, repetition=conversation.repetition),
                f"conv_{experiment_id}-{number}_events.jsonl",
            )
            for number, conversation in enumerate(expand(spec), 1)
        },
    )
    manifest.add_up()
    files = {"spec.yaml": to_yaml(spec).encode(), "manifest.json": manifest.encode()}
    return root.create(experiment_id, spec.name, now.astimezone().date(), files)


def versions(spec: ExperimentSpec) -> dict[str, str]:
    """What the results may depend on: Pidgin, Python, the SDKs in use, and where prices come from."""
    found = {"pidgin": version("pidgin-cli"), "python": platform.python_version(), "prices": price_source()}
    for agent in spec.agents:
        sdk = split_model(agent.model)[0].sdk if agent.model.partition(":")[0] in PROVIDERS else None
        if sdk is not None:
            try:
                found[sdk] = version(sdk)
            except PackageNotFoundError:
                continue
    return found


class Runner:
    """Runs an experiment's conversations one after the other, from wherever each of them stands."""

    def __init__(
        self,
        root: OutputRoot,
        folder: ExperimentFolder,
        providers: ProviderPool,
        *,
        live: Live | None = None,
        on_conversation: Callable[[Conductor], None] | None = None,
        resumed_by: str = "resume",
    ) -> None:
        """
        Args:
            live: receives pieces of replies while they stream.
            on_conversation: called with every conductor before it starts, to listen or to control.
        """
        self.root = root
        self.folder = folder
        self._providers = providers
        self._live = live
        self._on_conversation = on_conversation or (lambda _: None)
        self._resumed_by = resumed_by
        self._warned = False

    async def run(self) -> dict[str, Outcome]:
        """Run what is not completed yet. Gives the outcome of every conversation that was run.

        Raises:
            LogError: the record cannot be written, or another process runs this experiment.
            SpecError: `spec.yaml` does not fit any more.
        """
        spec = load(self.folder.spec)
        conversations = {
            f"{self.folder.experiment_id}-{number}": conversation for number, conversation in enumerate(expand(spec), 1)
        }
        pid_file = PidFile(self.root.pid_file(self.folder.experiment_id))
        pid_file.write()
        heart = asyncio.create_task(_beat(pid_file))
        syncer = Syncer()
        try:
            return await self._run(spec, conversations, syncer)
        finally:
            heart.cancel()
            await syncer.aclose()
            pid_file.remove()

    async def _run(
        self, spec: ExperimentSpec, conversations: Mapping[str, ConversationSpec], syncer: Syncer
    ) -> dict[str, Outcome]:
        experiment_id = self.folder.experiment_id
        log, record = EventLog.resume(
            self.folder.events, experiment_id=experiment_id, conversation_id=None, syncer=syncer
        )
        manifest = rebuild(self.folder)
        for conversation_id, conversation in conversations.items():
            fresh = RunState(arm=conversation.arm, repetition=conversation.repetition)
            entry = ConversationEntry.of(fresh, self.folder.log(conversation_id).name)
            manifest.conversations.setdefault(conversation_id, entry)
        manifest.conversations = {name: manifest.conversations[name] for name in conversations}
        writer = ManifestWriter(self.folder.manifest, manifest, self._manifest_failed)
        outcomes: dict[str, Outcome] = {}
        try:
            start = self._start(spec, len(conversations), resumed=bool(record.events))
            log.append(start)
            log.flush()
            manifest.name, manifest.spec_hash, manifest.versions = spec.name, start.spec_hash, start.versions
            manifest.created_at = manifest.started_at = manifest.started_at or start.timestamp
            manifest.status, manifest.completed_at = Status.RUNNING, None
            manifest.pid, manifest.host = start.pid, start.host
            writer.touch()
            for conversation_id, conversation in conversations.items():
                if manifest.conversations[conversation_id].status is Status.COMPLETED:
                    continue
                outcome = await self._converse(conversation_id, conversation, syncer, writer)
                outcomes[conversation_id] = outcome
                if outcome.end_reason in (EndReason.STOP_REQUEST, EndReason.BUDGET):
                    break  # a full context window, on the other hand, ends no conversation but its own
            writer.catch_up()
            counts = Counter(entry.status.value for entry in manifest.conversations.values())
            end = ExperimentCompleteEvent(status=_experiment_status(counts), conversations=dict(counts))
            log.append(end)
            log.flush()
            manifest.status, manifest.completed_at = end.status, end.timestamp
        finally:
            try:
                await log.aclose()
            finally:
                try:
                    writer.close()
                except LogError as error:
                    self._manifest_failed(error)
        return outcomes

    async def _converse(
        self, conversation_id: str, spec: ConversationSpec, syncer: Syncer, writer: ManifestWriter
    ) -> Outcome:
        log, record = EventLog.resume(
            self.folder.log(conversation_id),
            experiment_id=self.folder.experiment_id,
            conversation_id=conversation_id,
            syncer=syncer,
            durability=spec.durability,
        )
        try:
            bus = EventBus()
            writer.seed(conversation_id, run_state(record.events))
            bus.subscribe(writer.take)
            conductor = Conductor(
                spec_of(record) or spec,
                conversation_id=conversation_id,
                providers=self._providers,
                log=log,
                bus=bus,
                control=Control(),
                live=self._live,
                record=record,
                resumed_by=self._resumed_by,
            )
            self._on_conversation(conductor)
            return await conductor.run()
        finally:
            await log.aclose()

    def _start(self, spec: ExperimentSpec, conversations: int, *, resumed: bool) -> ExperimentStartEvent:
        return ExperimentStartEvent(
            name=spec.name,
            spec_hash=experiment_hash(spec),
            conversations=conversations,
            pid=os.getpid(),
            host=platform.node(),
            versions=versions(spec),
            resumed=resumed,
        )

    def _manifest_failed(self, error: LogError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s; `pidgin rebuild %s` makes it again from the logs", error, self.folder.experiment_id)


def spec_of(record: Record) -> ConversationSpec | None:
    """The spec that a conversation was started with, as its log holds it."""
    start = next((event for event in record.events if isinstance(event, ConversationStartEvent)), None)
    if start is None:
        return None
    try:
        return ConversationSpec.from_json(start.spec)
    except msgspec.ValidationError as error:
        raise LogError(f"the record was made by another version of Pidgin: {error}") from None


def _experiment_status(counts: Counter[str]) -> Status:
    for status in (Status.FAILED, Status.STOPPED, Status.INTERRUPTED, Status.CREATED):
        if counts[status.value]:
            return Status.STOPPED if status is Status.CREATED else status
    return Status.COMPLETED


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
    if wanted != folder.experiment_id and re.fullmatch(r"[a-z0-9]{8}-\d+", wanted):
        raise NotFound(f"{folder.experiment_id} has no conversation {wanted!r} that has begun")
    if len(logs) == 1:
        return next(iter(logs.values()))
    if not logs:
        raise NotFound(f"{wanted!r} has no conversation yet")
    raise NotFound(f"{wanted!r} has {len(logs)} conversations; name one of {', '.join(list(logs)[:5])}")
