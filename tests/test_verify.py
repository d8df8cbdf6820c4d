"""`verify`: what was changed in the database behind Pidgin's back, and what computing the metrics again brings up."""

import asyncio
import json
from collections.abc import Iterator

import duckdb
import pytest
from commands import Pidgin, pidgin
from support import experiment

from pidgin_cli.cli.database import open_store
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.experiments.lineage import whole
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.reports.measuring import measure

__all__ = ["pidgin"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[OutputRoot, ExperimentFolder, bytes]:
    """Five conversations of one arm without live metrics, all of whose metrics were computed after the run."""
    root = OutputRoot(tmp_path_factory.mktemp("measured"))
    spec = experiment(
        "local:test?words=30", "local:test?words=30", repetitions=5, max_turns=2, metrics="off", name="A study"
    )

    async def run() -> None:
        pool = ProviderPool()
        await Runner(root, create_experiment(root, spec), pool).run()
        await pool.aclose()

    asyncio.run(run())
    (folder,) = root.folders()
    with open_store(root) as store:
        store.import_experiments([folder])
        measure(store, root, folder, lineage=whole, embeddings="lexical_hash")
    return root, folder, (root.experiments / "experiments.duckdb").read_bytes()


@pytest.fixture
def root(measured: tuple[OutputRoot, ExperimentFolder, bytes]) -> Iterator[OutputRoot]:
    root, folder, database = measured
    log = folder.events.read_bytes()
    yield root
    (root.experiments / "experiments.duckdb").write_bytes(database)
    folder.events.write_bytes(log)


def changed(root: OutputRoot, *changes: str) -> None:
    con = duckdb.connect(str(root.experiments / "experiments.duckdb"))
    for change in changes:
        con.execute(change)
    con.close()


def test_nothing_was_changed(pidgin: Pidgin, root: OutputRoot) -> None:
    """Without `--metrics` it says that metrics were not computed again; with it, they come out the same."""
    done = pidgin("verify", "-o", root.path)
    assert done.status == 0
    assert done.out.endswith("; metrics computed after the run not checked (--metrics computes them again)\n")
    done = pidgin("verify", "-o", root.path, "--metrics")
    assert (done.status, done.out.count("\n")) == (0, 1)
    assert done.out.endswith("; 20 of 20 parts of the metrics computed again\n")


def test_whatever_was_changed_is_found(pidgin: Pidgin, root: OutputRoot) -> None:
    """The experiment, its arms, its own log, rows that belong to nothing, and metrics that nothing accounts for."""
    (own,) = (folder.experiment_id for folder in root.folders())
    changed(
        root,
        "UPDATE experiments SET name = 'other', status = 'running', spec = 'x'",
        "UPDATE arms SET arm = 'zzz', variables = '{\"x\": 1}'",
        "DELETE FROM events WHERE conversation_id IS NULL AND line = 2",
        f"INSERT INTO messages SELECT * REPLACE ('{own}-77' AS conversation_id) FROM messages",
        *(
            f"DELETE FROM computed_metrics WHERE part = '{part}' AND conversation_id = '{own}-{number}'"
            for number, part in enumerate(("live", "texts", "others", "semantics"), 1)
        ),
        f"DELETE FROM message_metrics WHERE message_index = 3 AND conversation_id = '{own}-5'",
        f"INSERT INTO message_metrics FROM message_metrics WHERE conversation_id = '{own}-5'",
    )
    (told,) = json.loads(pidgin("verify", "-o", root.path, "--json").out)
    assert {(fault["where"], fault["what"]) for fault in told["faults"]} == {
        (own, "name, status, spec of the experiment differ from its record"),
        (own, "rows of arms differ from what its conversations give"),
        (own, "rows of events differ from what its own log gives"),
        (own, "rows of messages belong to no conversation"),
        *((f"{own}-{n}", "rows of message_metrics differ from what its log gives") for n in range(1, 6)),
        *((f"{own}-1", f"rows of {table} differ from what its log gives") for table in ("turns", "turn_metrics")),
        (f"{own}-5", "rows of message_metrics stand there more than once"),
    }


def test_metrics_computed_again_show_what_was_changed(pidgin: Pidgin, root: OutputRoot) -> None:
    """With `--metrics`, a changed value of any part is found, and the conversation that it belongs to is named."""
    (experiment_id,) = (folder.experiment_id for folder in root.folders())
    changes = {
        "1": ("UPDATE message_metrics SET convergence_index = 0.99", "message_metrics"),
        "2": ("UPDATE message_metrics SET vendi_w8 = 5", "message_metrics"),
        "3": ("UPDATE message_metrics SET sem_step_self = 0.5, ttr = 0.1", "message_metrics"),
        "4": ("UPDATE turns SET convergence = 0.123", "turns"),
        "5": ("UPDATE computed_metrics SET metrics = '{\"zipf_s\": 2}'", "computed_metrics"),
    }
    changed(root, *(f"{sql} WHERE conversation_id = '{experiment_id}-{n}'" for n, (sql, _) in changes.items()))
    assert pidgin("verify", "-o", root.path).status == 0
    (told,) = json.loads(pidgin("verify", "-o", root.path, "--metrics", "--json").out)
    assert {(fault["where"], fault["what"]) for fault in told["faults"]} == {
        (f"{experiment_id}-{n}", f"rows of {table} differ from what is computed from its log")
        for n, (_, table) in changes.items()
    }


def test_what_other_versions_made_is_not_compared_and_said_so(pidgin: Pidgin, root: OutputRoot) -> None:
    """Rows of another import, and metrics from something else than is there now, are notes."""
    changed(
        root,
        "UPDATE conversations SET imported_with = 'older' WHERE conversation_id LIKE '%-1'",
        "UPDATE computed_metrics SET computed_with = 'older' WHERE conversation_id LIKE '%-2' AND part = 'texts'",
    )
    (told,) = json.loads(pidgin("verify", "-o", root.path, "--metrics", "--json").out)
    assert (told["faults"], told["recomputed"]) == ([], 15)
    assert [note["what"].partition(";")[0] for note in told["notes"]] == [
        "conversations that another version imported, so that only their words were compared: 1",
        "conversations whose metrics (texts) come from something else than is there now: 1",
    ]


def test_an_experiments_own_log_may_have_grown_by_its_pages(
    pidgin: Pidgin, root: OutputRoot, measured: tuple[OutputRoot, ExperimentFolder, bytes]
) -> None:
    """Post-processing writes to it after the import, which is no fault; a changed or lost line is one."""
    _, folder, _ = measured
    assert pidgin("report", folder.experiment_id, "-o", root.path, "--only", "readme").status == 0
    assert b"PostProcessing" in folder.events.read_bytes()
    assert pidgin("verify", "-o", root.path).status == 0
    lines = folder.events.read_bytes().splitlines(keepends=True)
    folder.events.write_bytes(b"".join(lines[1:]))
    done = pidgin("verify", "-o", root.path)
    assert (done.status, "its own log has changed since it was imported" in done.out) == (1, True)
