"""Conversations held by a conductor alone, without a runner, from wherever their logs stand."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from pidgin_cli.conversation.conductor import Conductor, Outcome
from pidgin_cli.core.events import Event
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.experiments.lineage import prefix
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.spec.conversation import ConversationSpec

__all__ = ["Held", "hold", "hold_in", "new_folder"]


class Held(NamedTuple):
    """A conversation that has come to its end, with its record read back from the file."""

    log: Path
    outcome: Outcome
    events: list[Event]
    heard: list[Event]
    """What was published meanwhile."""


async def hold(
    log: Path,
    spec: ConversationSpec,
    pool: ProviderPool | None = None,
    *,
    conversation_id: str = "abcdefgh-1",
    shared: Sequence[Event] = (),
) -> Held:
    """Hold a conversation, from wherever its log stands, to its end."""
    pool = pool or ProviderPool()
    syncer = Syncer()
    writer, record = EventLog.resume(
        log,
        experiment_id=conversation_id.partition("-")[0],
        conversation_id=conversation_id,
        syncer=syncer,
        durability="none",
    )
    heard: list[Event] = []
    try:
        conductor = Conductor(
            spec, conversation_id=conversation_id, providers=pool, log=writer, record=record, prefix=shared
        )
        conductor.bus.subscribe(heard.append)
        outcome = await conductor.run()
    finally:
        await writer.aclose()
        await syncer.aclose()
        await pool.aclose()
    return Held(log, outcome, read_record(log).events, heard)


def new_folder(root: OutputRoot, experiment_id: str) -> ExperimentFolder:
    """An experiment's folder without an experiment."""
    return root.create(experiment_id, None, date(2026, 1, 1), {})


async def hold_in(
    root: OutputRoot, conversation_id: str, spec: ConversationSpec, pool: ProviderPool | None = None
) -> Held:
    """Hold a conversation below an output root, a branch with what it shares."""
    experiment_id = conversation_id.partition("-")[0]
    found = [folder for folder in root.folders() if folder.experiment_id == experiment_id]
    folder = found[0] if found else new_folder(root, experiment_id)
    shared = [] if spec.origin is None else prefix(root, spec.origin)
    return await hold(folder.log(conversation_id), spec, pool, conversation_id=conversation_id, shared=shared)
