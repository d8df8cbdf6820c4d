"""Experiments by name: which one a spec belongs to, and what may change about it."""

import os
from collections.abc import Collection
from typing import Any

from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, same_name
from pidgin_cli.spec.experiment import NOT_IN_HASH, ExperimentSpec, Resolved, experiment_hash, load, resolve, to_yaml

__all__ = ["namesakes", "save_spec", "settle"]


def settle(
    root: OutputRoot, spec: ExperimentSpec, providers: Collection[str]
) -> tuple[ExperimentFolder | None, ExperimentSpec, list[str]]:
    """Find the experiment that a spec goes on with, if its name is in use.

    Gives its folder (None: the spec is a new experiment), the resolved spec, and what was noticed. Repetitions never
    become fewer; budget, parallelism and notification are as the new spec says where it says anything.

    Raises:
        SpecError: the name is in use by an experiment with another spec, or the spec is wrong.
        NotFound: several experiments have the name.
    """
    folders = [] if spec.name is None else namesakes(root, spec.name)
    if not folders:
        resolved = resolve(spec, providers)
        return None, resolved.spec, resolved.notices
    if len(folders) > 1:
        listed = ", ".join(folder.experiment_id for folder in folders)
        raise NotFound(f"{len(folders)} experiments are named {spec.name!r}: {listed}; resume one by its id, or use -n")
    folder = folders[0]
    old = load(folder.spec)
    same_seed = spec if spec.seed is not None else spec.model_copy(update={"seed": old.seed})
    resolved = resolve(same_seed, providers)
    if experiment_hash(resolved.spec) != experiment_hash(old):
        raise SpecError(
            f"the name {spec.name!r} is in use by experiment {folder.experiment_id} (spec {experiment_hash(old)}), and "
            f"this spec ({experiment_hash(resolved.spec)}) is another: {_differences(old, resolved)}; choose another "
            f"name"
        )
    kept: dict[str, Any] = {
        name: getattr(old, name) for name in NOT_IN_HASH if name not in spec.model_fields_set and name != "repetitions"
    }
    kept["repetitions"] = max(old.repetitions, resolved.spec.repetitions)
    return folder, resolved.spec.model_copy(update=kept), resolved.notices


def namesakes(root: OutputRoot, name: str) -> list[ExperimentFolder]:
    """The experiments that have this very name, newest first."""
    return [folder for folder in root.named(name) if same_name(folder.name(), name)]


def _differences(old: ExperimentSpec, new: Resolved) -> str:
    before, after = (_flat(spec.model_dump(mode="json", exclude=set(NOT_IN_HASH))) for spec in (old, new.spec))
    differing = [key for key in (before | after) if before.get(key) != after.get(key)]
    return ", ".join(differing[:5]) + (
        " and more differ" if len(differing) > 5 else " differs" if len(differing) == 1 else " differ"
    )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [
            (str(item.get("id", number)) if isinstance(item, dict) else str(number), item)
            for number, item in enumerate(value)
        ]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _flat(item, f"{path}.{key}" if path else key)
    return found


def save_spec(folder: ExperimentFolder, spec: ExperimentSpec) -> None:
    """Replace an experiment's `spec.yaml`. Raises LogError when the disk does not take it."""
    text = to_yaml(spec)
    making = folder.spec.with_name(f".spec.yaml.{os.getpid()}")
    try:
        if folder.spec.read_text(encoding="utf-8") == text:
            return
        making.write_text(text, encoding="utf-8")
        making.replace(folder.spec)
    except OSError as error:
        raise LogError(f"{folder.spec} cannot be written: {error.strerror}") from error
