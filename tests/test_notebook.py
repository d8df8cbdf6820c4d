"""The notebook of an experiment, executed."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from commands import Pidgin, pidgin
from pages import CASES, folder_of_look, look, made, talk
from support import converse, experiment
from terminal import ENVIRONMENT

from pidgin_cli.cli.database import open_store
from pidgin_cli.cli.reports import post_process
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot

__all__ = ["look", "pidgin"]


async def test_the_notebook_runs_as_it_is(tmp_path: Path) -> None:
    """A fresh kernel executes every cell, draws figures, and takes means over what is complete and valid alone."""
    spec = experiment(
        "local:test",
        "local:test",
        sweep={"a.model": ["local:test?fail=auth@2", "local:test?words=20", "local:test?words=40"]},
        repetitions=2,
        metrics="live",
    )
    spec = spec.model_copy(update={"name": "x $y$ {z}"})
    run = await converse(tmp_path, spec)
    await asyncio.to_thread(post_process, run.root, run.folder, only=("import", "metrics", "notebook"))
    outputs = await asyncio.to_thread(_executed, run.folder)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    texts = [output.get("text", "") for output in outputs]
    assert any(next(iter(run.folder.logs())) in text for text in texts)
    assert any("n = 4 of 6 conversations; 2 left out" in text for text in texts)
    (words,) = (text for text in texts if "percent_of_transcripts" in text and "double" in text and "every" in text)
    assert {line.split("│")[2].strip() for line in words.splitlines() if "every" in line} == {"4"}
    assert any("words=40 (n = 2) less a.model=local:test?words=20 (n = 2)" in text for text in texts)


@pytest.mark.parametrize("case", ["never run", "failed at once"])
def test_the_notebook_runs_where_there_is_nothing_to_show(case: str, tmp_path: Path) -> None:
    """Without a message the notebook still goes through."""
    root, folder = CASES[case](tmp_path)
    post_process(root, folder, only=("import", "notebook"))
    _executed(folder)


def test_the_notebook_runs_where_an_arm_is_not_known(tmp_path: Path) -> None:
    """A conversation whose arm is NULL in the database is one of the arm without values."""
    root, folder = made(tmp_path, talk("One.", "Two."), talk("Three.", "Four."))
    post_process(root, folder, only=("import", "notebook"))
    with open_store(root) as store:
        path = store.path
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE conversations SET arm = NULL WHERE conversation_id = ?", [f"{folder.experiment_id}-1"])
    texts = [output.get("text", "") for output in _executed(folder)]
    assert any("n = 2 of 2 conversations; 0 left out" in text for text in texts)
    assert any("no two arms" in text for text in texts)


def _executed(folder: ExperimentFolder) -> list[dict[str, Any]]:
    """The outputs of a notebook that a process of its own has executed: the kernel's sockets stay out of this one."""
    program = (
        "import json, sys, nbformat; from nbclient import NotebookClient\n"
        "book = nbformat.read('notebook.ipynb', 4)\n"
        "NotebookClient(book, timeout=90, kernel_name='python3').execute()\n"
        "json.dump([output for cell in book.cells for output in cell.get('outputs', [])], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.path,
        env=ENVIRONMENT | {"HOME": str(folder.path)},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_notebook_makes_the_notebook_and_what_it_reads(look: tuple[Pidgin, str]) -> None:
    """`notebook` imports the experiment and prints where the notebook is; `--to` gives a copy."""
    pidgin, name = look
    made = pidgin("notebook", name)
    assert (made.status, Path(made.out.strip())) == (0, folder_of_look().absolute() / "notebook.ipynb")
    with open_store(OutputRoot(Path("pidgin_output"))) as store:
        assert store.experiments.get(name)["name"] == "look"
    assert pidgin("notebook", name, "--to", "copy.ipynb").status == 0
    assert Path("copy.ipynb").read_bytes() == (folder_of_look() / "notebook.ipynb").read_bytes()
