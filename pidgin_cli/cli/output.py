"""What a notebook or a script begins with: an experiment to run, an output folder to open."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pidgin_cli.conversation.setup import ensure_person_settings
from pidgin_cli.conversation.watching import watch_faults
from pidgin_cli.core.errors import NotFound, SpecError
from pidgin_cli.database.frames import Output
from pidgin_cli.eventlog.manifest import Manifest, read_manifest
from pidgin_cli.experiments.budget import caps_of, check_caps
from pidgin_cli.experiments.library import save_spec, settle
from pidgin_cli.experiments.preflight import check_models, check_origin, recording
from pidgin_cli.experiments.registry import living_runner
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.spec.experiment import check, expand, load

from .database import open_store
from .records import existing_root

__all__ = ["open_output", "run_experiment"]


async def run_experiment(
    spec: Mapping[str, Any] | str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Manifest:
    """Run an experiment to its end, as `pidgin run` does, without a screen and without pages.

    Cancelled, it drops the messages under way and leaves a record that the same call goes on with, if it has a name.

    Args:
        spec: the keys of a spec, or the path of a file. With the name of an experiment that is there, it goes on.
        output: the folder; None: `$PIDGIN_OUTPUT`, or `./pidgin_output`.

    Returns:
        The manifest: `experiment_id`, `status`, `totals`, and an entry for every conversation.

    Raises:
        SpecError: the spec, or what it names, is wrong; or a cap could not be kept. Nothing has been asked then.
        LogError: the record could not be written, or another process is running the experiment.
    """
    ensure_person_settings()
    root = existing_root(None if output is None else Path(output))
    if isinstance(spec, Mapping):
        wanted = check(spec, providers=PROVIDERS, judge=watch_faults)
    else:
        wanted = load(Path(spec), PROVIDERS, watch_faults)
    with root.naming():
        folder, resolved, _ = settle(root, wanted, PROVIDERS)
        if folder is None:  # of those that have begun the record says where they come from
            check_origin(root, resolved, "spec" if isinstance(spec, Mapping) else Path(spec))
        conversations = list(expand(resolved, "" if folder is None else folder.experiment_id).values())
        check_models(conversations, root)
        pool = ProviderPool(lambda source: recording(root, source))
        try:
            if faults := check_caps(*caps_of(resolved), conversations, pool):
                raise SpecError("\n".join(faults))
            if folder is None:
                folder = create_experiment(root, resolved)
            else:
                save_spec(folder, resolved)
        except BaseException:
            await pool.aclose()
            raise
    try:
        await Runner(root, folder, pool, resumed_by="run_experiment").run()
    finally:
        await pool.aclose()
    return read_manifest(folder)


def open_output(path: str | os.PathLike[str] | None = None, *, refresh: bool = True) -> Output:
    """Open an output folder, for its experiments, conversations, messages and metrics as data frames.

    Args:
        path: the folder; None: `$PIDGIN_OUTPUT`, or `./pidgin_output`.
        refresh: take what is new in the records into the database first. Without it the answers are as of the last
            import.

    Raises:
        NotFound: there is no such folder, or nothing in it.
        StoreError: its database cannot be read, or there is none and none can be made.
    """
    root = existing_root(None if path is None else Path(path))
    if not root.experiments.is_dir():
        raise NotFound(f"there are no experiments in {root.path}")
    output = Output(
        root, open_store(root), is_live=lambda experiment_id: living_runner(root, experiment_id) is not None
    )
    if refresh:
        output.refresh()
    return output
