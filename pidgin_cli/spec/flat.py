"""The flat form of a spec, in which agents have no blocks of their own: `agent_a: claude`, `temperature_a: 0.2`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import Fault, Place
from .schema import AgentSpec, ExperimentSpec

__all__ = ["AGENT_KEYS", "SHARED_KEYS", "Translated", "known_keys", "translate"]

AGENT_KEYS = tuple(name for name in AgentSpec.model_fields if name not in ("id", "model"))
"""May be written with the id of an agent behind: `temperature_a`."""
SHARED_KEYS = tuple(name for name in AGENT_KEYS if name not in ExperimentSpec.model_fields)
"""May be written as they are, for every agent. `name` and `seed` are the experiment's own."""
_AGENT = re.compile(r"agent_([a-z][a-z0-9]{0,15})")
_OF_ONE = re.compile(rf"({'|'.join(AGENT_KEYS)})_([a-z][a-z0-9]{{0,15}})")
_SEATS = ("a", "b")
_CONVERGENCE = ("threshold", "action", "profile", "weights")


class Translated(NamedTuple):
    """A spec in its full form."""

    data: dict[Any, Any]
    written: dict[Place, Place]
    """Where a person wrote what stands at a place of `data`."""
    faults: list[Fault]
    """In the person's own keys."""
    known: tuple[str, ...]
    """Keys that may stand at the top beside those of the full form."""


def translate(data: Mapping[Any, Any]) -> Translated:
    """The full form of a spec that may be flat. Agents sit in the order of their ids."""
    full = dict(data)
    written: dict[Place, Place] = {}
    faults = _truncation(full, written)
    _convergence(full, written)
    models = {match[1]: full.pop(key) for key in data if (match := _AGENT.fullmatch(str(key)))}
    shared = {key: full.pop(key) for key in data if key in SHARED_KEYS}
    single = {
        key: (match[1], match[2], full.pop(key))
        for key in data
        if key not in SHARED_KEYS and key not in ExperimentSpec.model_fields and (match := _OF_ONE.fullmatch(str(key)))
    }
    ids = sorted(models) or list(_SEATS if "pairs" in full else ())
    known = known_keys(ids or _SEATS)
    if "agents" in full:
        faults += [
            Fault((key,), "agents gives the agents in full; leave this out, or write all of them in the flat form")
            for key in (*(f"agent_{agent_id}" for agent_id in models), *shared, *single)
        ]
        return Translated(full, written, faults, known)
    for key in [key for key in full if (match := re.fullmatch(r"model_([a-z][a-z0-9]{0,15})", str(key)))]:
        del full[key]
        faults.append(Fault((key,), f"the model of an agent is agent_{key.removeprefix('model_')}"))
    if models and len(models) < len(_SEATS):
        wanted = next(agent_id for agent_id in _SEATS if agent_id not in models)
        faults.append(Fault((f"agent_{ids[0]}",), f"a conversation needs two agents; give agent_{wanted} as well"))
    for key, (_, agent_id, _value) in single.items():
        if ids and agent_id not in ids:
            faults.append(Fault((key,), f"there is no agent_{agent_id}"))
    if models or (ids and (shared or single)):
        full["agents"] = [
            _agent(agent_id, index, models, shared, single, written) for index, agent_id in enumerate(ids)
        ]
        if models:
            written["agents",] = (f"agent_{ids[0]}",)
    return Translated(full, written, faults, known)


def _convergence(full: dict[Any, Any], written: dict[Place, Place]) -> None:
    """`convergence_threshold` and its like are keys of `convergence`."""
    given = {key: full.pop(key) for key in [f"convergence_{name}" for name in _CONVERGENCE] if key in full}
    if given and isinstance(full.get("convergence", {}), Mapping):
        full["convergence"] = dict(full.get("convergence", {})) | {
            key.removeprefix("convergence_"): value for key, value in given.items()
        }
        for key in given:
            written["convergence", key.removeprefix("convergence_")] = (key,)


def _agent(
    agent_id: str,
    index: int,
    models: Mapping[str, Any],
    shared: Mapping[str, Any],
    single: Mapping[str, tuple[str, str, Any]],
    written: dict[Place, Place],
) -> dict[str, Any]:
    place = ("agents", str(index))
    agent: dict[str, Any] = {"id": agent_id}
    if agent_id in models:
        agent["model"] = models[agent_id]
        written[place] = written[*place, "id"] = written[*place, "model"] = (f"agent_{agent_id}",)
    for key, value in shared.items():
        agent[key] = value
        written[*place, key] = (key,)
    for key, (name, wanted, value) in single.items():
        if wanted == agent_id:
            agent[name] = value
            written[*place, name] = (key,)
    return agent


def _truncation(full: dict[Any, Any], written: dict[Place, Place]) -> list[Fault]:
    if "allow_truncation" not in full:
        return []
    allowed = full.pop("allow_truncation")
    place = ("allow_truncation",)
    if not isinstance(allowed, bool):
        return [Fault(place, "Input should be true or false")]
    if "context" in full:
        return [Fault(place, "context says what happens when the window is full; leave one of them out")]
    if allowed:
        full["context"] = "window"
        written["context",] = place
    return []


def known_keys(ids: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The keys of the flat form that the full form does not have, for agents of these ids."""
    of_one = [f"{key}_{agent_id}" for key in ("agent", *AGENT_KEYS) for agent_id in ids]
    return (*SHARED_KEYS, *of_one, "allow_truncation", *(f"convergence_{name}" for name in _CONVERGENCE))
