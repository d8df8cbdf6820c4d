"""The arms of an experiment: what is swept, which combinations there are, and what each is called."""

import copy
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from .errors import Fault, Place, faults_of, nearest
from .schema import ALL, PAIRED, AgentSpec, ExperimentSpec, seat_ids

__all__ = [
    "FACTORS",
    "Cell",
    "Level",
    "arms",
    "factors",
    "faults",
    "has_factors",
    "label_meant",
    "label_of",
    "labels_of",
    "one_arm",
    "typed",
    "values_of",
]

FACTORS = ("sweep", "zip", "models", "pairs", "openings", "exclude")
"""Keys that make arms."""
SWEPT_KEYS = ("prompt", "prompt_tag", "max_turns", "order", "first", "choose_names", "context")
"""Keys of the experiment that arms may differ in."""
AGENT_KEYS = tuple(name for name in AgentSpec.model_fields if name != "id")
LABEL_LENGTH = 40
SHORT_LENGTH = 24
MOST_ARMS = 100_000


class Level(NamedTuple):
    """One value of a factor; of several that are walked together, or of a pair, one of each."""

    values: dict[str, Any]
    """By path, what is set."""
    labels: dict[str, str]
    variables: dict[str, Any]
    """As they are recorded: numbers as they are, everything else as its label."""
    written: dict[str, Any]
    """As the person wrote them."""
    models: tuple[str, str] | None = None
    """The labels of a pair's models, in the order of the seats."""


class Cell(NamedTuple):
    """One arm."""

    arm: str
    values: dict[str, Any]
    variables: dict[str, Any]
    models: tuple[str, str] | None = None


def has_factors(spec: ExperimentSpec) -> bool:
    """Whether anything in the spec makes arms."""
    return bool(spec.sweep or spec.zip or spec.pairs or spec.openings is not None)


# Labels


def label_of(value: object, path: str = "") -> str:
    """A value in at most 40 characters, on one line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, str):
        if path.endswith("awareness") and value.endswith((".yaml", ".yml")):
            value = Path(value).stem
        plain = value == value.strip() and ", " not in value and value.isprintable()
        if value and plain and len(value) <= LABEL_LENGTH:
            return value
        words = " ".join("".join(c if c.isprintable() else " " for c in value).replace(",", "").split())
        return f"{words[:SHORT_LENGTH].rstrip()}…" if words else '""'
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return label_of(value["name"])
    if isinstance(value, int):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text if len(text) <= LABEL_LENGTH and ", " not in text else f"{text[:SHORT_LENGTH].replace(', ', ',')}…"


def labels_of(values: Sequence[Any] | Mapping[str, Any], path: str = "") -> list[str]:
    """A label for each value, the same for the same value and different for different ones."""
    if isinstance(values, Mapping):
        return list(values)
    taken: dict[str, str] = {}  # by label, the value that has it
    found = []
    for value in values:
        base = label_of(value, path)
        number = isinstance(value, int | float) and not isinstance(value, bool)  # 1 and 1.0 are the same
        same = base if number else json.dumps(value, sort_keys=True, default=str)
        numbered = (base if n == 1 else f"{base}~{n}" for n in itertools.count(1))
        found.append(next(label for label in numbered if taken.setdefault(label, same) == same))
    return found


def typed(values: Sequence[Any] | Mapping[str, Any]) -> bool:
    """Whether the values are recorded as they are: numbers, truth values and null."""
    return not isinstance(values, Mapping) and all(isinstance(v, int | float | None) for v in values)


# Factors


def factors(spec: ExperimentSpec) -> list[list[Level]]:
    """What is combined, in the order written: each path of `sweep`, then `zip` as one, then pairs, then openings."""
    found = [_column(path, values) for path, values in spec.sweep.items()]
    if spec.zip:
        columns = [_column(path, values) for path, values in spec.zip.items()]
        found.append([_joined(levels) for levels in zip(*columns, strict=True)])
    if spec.pairs is not None:
        found.append(_pairs(spec))
    if spec.openings is not None and not isinstance(spec.openings, str):
        found.append(_openings(spec.openings))
    return found


def _column(path: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Level]:
    labels = labels_of(values, path)
    plain = list(values.values()) if isinstance(values, Mapping) else list(values)
    as_they_are = typed(values)
    return [
        Level({path: value}, {path: label}, {path: value if as_they_are else label}, {path: value})
        for value, label in zip(plain, labels, strict=True)
    ]


def _joined(levels: Iterable[Level]) -> Level:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    variables: dict[str, Any] = {}
    written: dict[str, Any] = {}
    models = None
    for level in levels:
        values |= level.values
        labels |= level.labels
        variables |= level.variables
        written |= level.written
        models = level.models or models
    return Level(values, labels, variables, written, models)


def _pairs(spec: ExperimentSpec) -> list[Level]:
    assert spec.models is not None, "or it is a fault"
    named = dict(zip(labels_of(spec.models), values_of(spec.models), strict=True))
    seats = seat_ids(spec)
    different = [(one, two) for one, two in itertools.combinations(named, PAIRED) if spec.pairs != "self"]
    alone = [(label, label) for label in named] if spec.pairs in ("self", "all") else []
    found = []
    for pair in [*different, *alone]:
        label = "+".join(pair)
        values = {f"{seat}.model": named[model] for seat, model in zip(seats, pair, strict=True)}
        found.append(Level(values, {"pair": label}, {"pair": label}, {"pair": "+".join(reversed(pair))}, pair))
    return found


def _openings(openings: list[str] | dict[str, str]) -> list[Level]:
    texts = values_of(openings)
    labels = list(openings) if isinstance(openings, dict) else [str(n) for n in range(1, len(texts) + 1)]
    if len(texts) == 1:
        return [Level({"prompt": texts[0]}, {}, {}, {})]
    return [
        Level({"prompt": text}, {"opening": label}, {"opening": label}, {"opening": text})
        for text, label in zip(texts, labels, strict=True)
    ]


def label_meant(spec: ExperimentSpec, key: str, value: object) -> str:
    """The label of the value of a factor that a person means by `value`."""
    levels = (level for levels in factors(spec) for level in levels if key in level.labels)
    return next((level.labels[key] for level in levels if _is(level, key, value)), label_of(value, key))


def values_of(some: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """The values of a list, or of a mapping from labels."""
    return list(some.values()) if isinstance(some, Mapping) else list(some)


# Arms


def arms(spec: ExperimentSpec) -> list[Cell]:
    """Every arm once, those that are excluded left out. Without anything that makes arms it is one, without a label."""
    return [_cell(level) for level in _combinations(spec) if not any(_meets(level, one) for one in spec.exclude)]


def _combinations(spec: ExperimentSpec) -> Iterator[Level]:
    return (_joined(levels) for levels in itertools.product(*factors(spec)))


def _cell(level: Level) -> Cell:
    arm = ", ".join(f"{key}={label}" for key, label in level.labels.items())
    return Cell(arm, level.values, level.variables, level.models)


def _meets(level: Level, wanted: Mapping[str, Any]) -> bool:
    return bool(wanted) and all(
        key in level.labels and any(_is(level, key, value) for value in (one if isinstance(one, list) else [one]))
        for key, one in wanted.items()
    )


def _is(level: Level, key: str, value: object) -> bool:
    if label_of(value, key) == level.labels[key] and (not isinstance(value, str) or len(value) <= LABEL_LENGTH):
        return True
    return isinstance(value, str | dict) and value == level.written[key]


def one_arm(spec: ExperimentSpec, cell: Cell, *, swapped: bool = False) -> ExperimentSpec:
    """The spec of one arm alone, with nothing left that makes arms.

    Args:
        swapped: the two models of a pair sit the other way round.
    """
    if not has_factors(spec):
        return spec
    return ExperimentSpec.model_validate(_data_of_arm(spec, cell.values, swapped=swapped))


def _data_of_arm(spec: ExperimentSpec, values: Mapping[str, Any], *, swapped: bool = False) -> dict[str, Any]:
    data = _base(spec)
    ids = seat_ids(spec)
    for path, value in values.items():
        for target in _targets(path, ids):
            _put(data, target, copy.deepcopy(value))
    if swapped:
        one, two = data["agents"]
        one["model"], two["model"] = two["model"], one["model"]
    return data


def _base(spec: ExperimentSpec) -> dict[str, Any]:
    data = spec.model_dump(exclude_unset=True, exclude=set(FACTORS))
    agents = data.get("agents") or [{"id": agent_id} for agent_id in seat_ids(spec)]
    return data | {"agents": [dict(agent) for agent in agents]}


def _targets(path: str, ids: Sequence[str]) -> list[Place]:
    """The places in the data that a path means; none for a path that means nothing."""
    head, dot, key = path.partition(".")
    if not dot:
        return [(path,)] if path in SWEPT_KEYS else []
    if key not in AGENT_KEYS:
        return []
    return [("agents", str(index), key) for index, agent_id in enumerate(ids) if head in (ALL, agent_id)]


def _put(data: dict[str, Any], target: Place, value: Any) -> None:
    inner = data if len(target) == 1 else data["agents"][int(target[1])]
    inner[target[-1]] = value


# Faults


def faults(spec: ExperimentSpec) -> list[Fault]:
    """Everything that is wrong with what makes arms, and with any arm."""
    found = [*_wrong_pairs(spec), *_wrong_openings(spec), *_wrong_paths(spec)]
    found += _wrong_values(spec)
    if found:
        return [*found, *_wrong_anyway(spec)]
    count = math.prod(len(levels) for levels in factors(spec))
    if count > MOST_ARMS:
        return [Fault((), f"these are {count:,} arms; the most there can be is {MOST_ARMS:,}")]
    found = list(_wrong_excludes(spec))
    return found or list(_wrong_arms(spec))


def _wrong_pairs(spec: ExperimentSpec) -> Iterator[Fault]:
    if spec.models is not None and spec.pairs is None:
        yield Fault(("models",), "models are for pairs; give pairs (all, unordered, ordered or self) as well")
    if spec.pairs is None:
        return
    if spec.models is None:
        yield Fault(("pairs",), "pairs of what? Give models, a list")
    elif len(spec.models) < (1 if spec.pairs in ("self", "all") else PAIRED):
        yield Fault(("models",), f"too few models for pairs: {spec.pairs}")
    elif len(set(values_of(spec.models))) < len(spec.models):
        twice = next(model for model in values_of(spec.models) if values_of(spec.models).count(model) > 1)
        yield Fault(("models",), f"{twice} stands twice")
    if spec.agents and len(spec.agents) != PAIRED:
        yield Fault(("agents",), f"a pair sits in two seats; there are {len(spec.agents)} agents")
    for index, agent in enumerate(spec.agents):
        if agent.model:
            yield Fault(("agents", str(index), "model"), "pairs says which model sits here; leave it out")


def _wrong_openings(spec: ExperimentSpec) -> Iterator[Fault]:
    if spec.openings is None:
        return
    if not spec.openings:
        yield Fault(("openings",), "there are none")
    if "prompt" in spec.model_fields_set:
        yield Fault(("prompt",), "openings says how conversations begin; leave one of them out")
    if spec.branch is not None:
        yield Fault(("openings",), f"a branch begins with the opening of {spec.branch.of}; leave this out")


def _wrong_paths(spec: ExperimentSpec) -> Iterator[Fault]:
    ids = seat_ids(spec)
    taken: dict[Place, str] = {("prompt",): "openings"} if spec.openings is not None else {}
    if spec.pairs is not None:
        taken |= {("agents", str(index), "model"): "pairs" for index in range(len(ids))}
    lengths = {len(values) for values in spec.zip.values()}
    if len(lengths) > 1:
        said = ", ".join(f"{path} {len(values)}" for path, values in spec.zip.items())
        yield Fault(("zip",), f"the lists are walked together, but differ in length: {said}")
    for table in ("sweep", "zip"):
        for path, values in getattr(spec, table).items():
            place = (table, path)
            targets = _targets(path, ids)
            if not targets:
                yield Fault(place, _no_path(path, ids))
                continue
            if not values:
                yield Fault(place, "there are no values")
            if spec.branch is not None and path == "prompt":
                yield Fault(place, f"a branch begins with the opening of {spec.branch.of}")
            if spec.branch is not None and path == "choose_names":
                yield Fault(place, f"a branch takes over the names of {spec.branch.of}")
            for target in targets:
                if target in taken:
                    yield Fault(place, f"{taken[target]} says that already")
                    break
                taken[target] = path
            labels = labels_of(values, path)
            if table == "sweep" and len(set(labels)) < len(labels):
                twice = next(label for label in labels if labels.count(label) > 1)
                yield Fault(place, f"{twice} stands twice")
    if spec.zip and len(lengths) == 1:
        rows = list(zip(*(labels_of(values, path) for path, values in spec.zip.items()), strict=True))
        for row in sorted({row for row in rows if rows.count(row) > 1}):
            yield Fault(("zip",), f"{', '.join(row)} stands twice")


def _no_path(path: str, ids: Sequence[str]) -> str:
    head, dot, _ = path.partition(".")
    if not dot and path in AGENT_KEYS and path not in ExperimentSpec.model_fields:
        return f"whose? Write {ALL}.{path}, or {ids[0] if ids else 'a'}.{path}"
    if not dot and path in ExperimentSpec.model_fields:
        return f"arms cannot differ in this; they can in {', '.join(SWEPT_KEYS)} and what agents have"
    flat_key, underscore, agent_id = path.rpartition("_")
    if underscore and flat_key in AGENT_KEYS and agent_id in ids:
        return f"write {agent_id}.{flat_key}"
    if dot and head not in (ALL, *ids):
        return f"no agent {head!r}; there are {', '.join(ids)}, or {ALL}"
    known = [f"{head}.{name}" for name in AGENT_KEYS] if dot else [*SWEPT_KEYS, *(f"{ALL}.{key}" for key in AGENT_KEYS)]
    return f"nothing of this name can be swept.{nearest(path, known)}"


def _wrong_values(spec: ExperimentSpec) -> Iterator[Fault]:
    ids = seat_ids(spec)
    for table in ("sweep", "zip"):
        for path, values in getattr(spec, table).items():
            keys = list(values) if isinstance(values, Mapping) else [str(n) for n in range(len(values))]
            for key, value in zip(keys, values_of(values), strict=True):
                for fault in _refused(_data_of_arm(spec, {path: value})):
                    target = next((t for t in _targets(path, ids) if fault.where[: len(t)] == t), None)
                    if target is not None:
                        yield fault._replace(where=(table, path, key, *fault.where[len(target) :]))


def _wrong_anyway(spec: ExperimentSpec) -> Iterator[Fault]:
    """Contradictions of a spec of which it is not known what its arms are: those that no arm could take back."""
    swept = {path.rpartition(".")[2] for path in (*spec.sweep, *spec.zip)}
    for fault in spec.contradictions():
        if not swept & {"model", "max_turns", *fault.where}:
            yield fault


def _refused(data: dict[str, Any]) -> list[Fault]:
    try:
        ExperimentSpec.model_validate(data)
    except ValidationError as error:
        return faults_of(error, ExperimentSpec)
    return []


def _wrong_excludes(spec: ExperimentSpec) -> Iterator[Fault]:
    if not spec.exclude:
        return
    levels = list(_combinations(spec))
    known = list(dict.fromkeys(key for level in levels for key in level.labels))
    for index, wanted in enumerate(spec.exclude):
        place = ("exclude", str(index))
        strange = [key for key in wanted if key not in known]
        for key in strange:
            said = f"arms differ in {', '.join(known)}" if known else "there is nothing that arms differ in"
            yield Fault((*place, key), f"{said}.{nearest(key, known)}")
        if not strange and not any(_meets(level, wanted) for level in levels):
            yield Fault(place, "no arm is like this")
    if levels and all(any(_meets(level, wanted) for wanted in spec.exclude) for level in levels):
        yield Fault(("exclude",), "nothing is left")


def _wrong_arms(spec: ExperimentSpec) -> Iterator[Fault]:
    cells = arms(spec)
    named = Counter(cell.arm for cell in cells)
    for label in [label for label, count in named.items() if count > 1]:
        yield Fault((), f"two arms would be called {label!r}; give the values labels of their own")
    found: dict[tuple[Place, str], list[str]] = {}
    for cell in cells:
        if not has_factors(spec):
            said = list(spec.contradictions())
        else:
            data = _data_of_arm(spec, cell.values)
            said = _refused(data) or list(ExperimentSpec.model_validate(data).contradictions())
        for fault in said:
            found.setdefault((fault.where, fault.message), []).append(cell.arm)
    for (where, message), labels in found.items():
        some = len(labels) < len(cells)
        yield Fault(where, f"{message} (in the arm {labels[0]})" if some else message)
