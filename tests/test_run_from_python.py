"""Experiments that a script or a notebook runs."""

import asyncio
from pathlib import Path

import pytest

import pidgin_cli
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import MessageAbandonedEvent, MessageCompleteEvent
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record

SPEC = {
    "name": "from python",
    "agent_a": "local:test?words=5",
    "agent_b": "local:test?words=5",
    "max_turns": 2,
    "seed": 3,
    "prompt": "Hello.",
}


async def test_a_spec_becomes_a_record_and_frames(tmp_path: Path) -> None:
    """What `run_experiment` ran is what `open_output` reads, word for word."""
    manifest = await pidgin_cli.run_experiment(SPEC, tmp_path)
    assert manifest.status is Status.COMPLETED
    folder = OutputRoot(tmp_path).find("from python")
    (log,) = folder.logs().values()
    said = [e.message.content for e in read_record(log).events if isinstance(e, MessageCompleteEvent)]
    rows = pidgin_cli.open_output(tmp_path).messages().rows()
    assert [row["content"] for row in rows] == said
    assert len(said) == manifest.totals.messages == 4


async def test_the_same_name_goes_on(tmp_path: Path) -> None:
    """More repetitions of a named experiment extend it; another spec of its name is refused, as is a wrong one."""
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in SPEC.items()), encoding="utf-8")
    first = await pidgin_cli.run_experiment(path, tmp_path / "out")
    longer = await pidgin_cli.run_experiment(SPEC | {"repetitions": 3}, tmp_path / "out")
    assert longer.experiment_id == first.experiment_id
    assert longer.totals.completed == 3
    with pytest.raises(SpecError, match="is in use by experiment"):
        await pidgin_cli.run_experiment(SPEC | {"max_turns": 7}, tmp_path / "out")
    with pytest.raises(SpecError, match="Did you mean prompt"):
        await pidgin_cli.run_experiment({"agent_a": "test", "agent_b": "test", "promt": "x"}, tmp_path / "out")
    with pytest.raises(SpecError, match="max_tokens"):
        await pidgin_cli.run_experiment(
            {"agent_a": "test", "agent_b": "test", "prompt": "x", "budget": {"tokens": 10}}, tmp_path / "out"
        )


async def test_cancelled_and_called_again(tmp_path: Path) -> None:
    """Cancelled in the middle of a reply, the record keeps what was said; the same call then ends it."""
    slow = SPEC | {"agent_b": "local:test?words=40&chunk_ms=20"}
    task = asyncio.create_task(pidgin_cli.run_experiment(slow, tmp_path))

    def events() -> list[object]:
        found = list(tmp_path.glob("experiments/experiment_*/conv_*.jsonl"))
        return list(read_record(found[0]).events) if found else []

    async with asyncio.timeout(20):
        while not any(isinstance(event, MessageCompleteEvent) for event in events()):  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    manifest = await pidgin_cli.run_experiment(slow, tmp_path)
    assert manifest.status is Status.COMPLETED
    assert sum(isinstance(event, MessageCompleteEvent) for event in events()) == 4
    assert sum(isinstance(event, MessageAbandonedEvent) for event in events()) <= 1
