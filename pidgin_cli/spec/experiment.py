"""What a person writes, checked, and with everything written out that a name in it stands for."""

import json
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import clean_text

from . import flat, sweep
from .awareness import Seat, addressed, find_preset, load_awareness, preset_text
from .catalogue import resolve_model
from .conversation import spec_hash
from .errors import Fault, Place, faults_of, half_characters, parse, place_of, tell
from .openings import read_openings
from .plan import expand
from .schema import ALL, SPECIAL_OPENERS, AwarenessSpec, ContextSpec, ExperimentSpec, seat_ids
from .seats import seated, texts_for

__all__ = [
    "ExperimentSpec",
    "Judge",
    "Resolved",
    "check",
    "expand",
    "experiment_hash",
    "json_schema",
    "load",
    "located",
    "models_of",
    "resolve",
    "to_yaml",
    "too_late",
]

NOT_IN_HASH = frozenset({"name", "repetitions", "max_parallel", "budget", "notify", "notify_command", "embeddings"})
"""Keys that may change while an experiment stays the same one."""


class Resolved(NamedTuple):
    """A spec in which aliases, presets, files and the seed are written out, and what was noticed on the way."""

    spec: ExperimentSpec
    notices: list[str]


Judge = Callable[[Mapping[str, Any]], Iterable[Fault]]
"""Finds faults in the data of a spec, in its full form, which need not be right otherwise."""


# Checking


def check(
    data: Mapping[str, Any],
    source: str = "spec",
    text: str = "",
    providers: Collection[str] = (),
    judge: Judge | None = None,
) -> ExperimentSpec:
    """The spec in `data`, in its full or its flat form.

    Args:
        text: the YAML that `data` comes from, for the lines of faults.
        providers: where they are given, models, presets and files are looked up as well, as `resolve` does.
        judge: finds faults of its own in the data, for what specs do not know, such as the names of metrics.

    Raises:
        SpecError: names every fault, one to a line.
    """
    return _checked(data, source, text, providers, [], judge)


def load(path: Path, providers: Collection[str] = (), judge: Judge | None = None) -> ExperimentSpec:
    """The spec in a YAML file. Files that it names are looked for beside it first, then in the current folder.

    Args:
        providers: as for `check`.
        judge: as for `check`.

    Raises:
        SpecError: names every fault with its line; with `providers`, also unknown models, presets and files.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data, repeated = parse(text)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path} is not a spec: it should hold keys such as agents and prompt")
    return _checked(data, str(path), text, providers, repeated, judge, beside=path.parent)


def located(faults: Iterable[Fault], path: Path) -> str:
    """Faults found in a spec after it was loaded, one to a line, in the keys and lines of its file."""
    text = path.read_text(encoding="utf-8-sig")
    return tell(faults, str(path), text, flat.translate(parse(text)[0]).written)


def _checked(
    data: Mapping[str, Any],
    source: str,
    text: str,
    providers: Collection[str],
    faults: list[Fault],
    judge: Judge | None = None,
    beside: Path | None = None,
) -> ExperimentSpec:
    full = flat.translate(data)
    if beside is not None:
        _find_files(full.data, beside)
    spec, found = _validated(full)
    faults = [*faults, *full.faults, *found]
    if spec is not None and not _ends(full.data):
        raise SpecError(f"{source}: a value holds itself, or is nested too deeply")
    if spec is not None:
        faults += [*half_characters(spec.model_dump()), *sweep.faults(_with_openings(spec))]
    if providers:
        faults += _lookup_faults(full.data, providers)
    if judge is not None:
        faults += judge(full.data)
    if faults or spec is None:
        # In the flat form a missing agent has been told in its own words.
        short = {fault.where for fault in full.faults}
        kept = [f for f in faults if not (f.where == ("agents",) and full.written.get(("agents",)) in short)]
        raise SpecError(tell(kept, source, text, full.written))
    return spec


def _ends(data: object) -> bool:
    try:
        json.dumps(data, default=str)
    except (ValueError, RecursionError):
        return False
    except TypeError:  # a key that is no text, which is told elsewhere
        pass
    return True


def _with_openings(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with openings from files in it, so that arms can be counted; without them if there are none."""
    if not isinstance(spec.openings, str):
        return spec
    try:
        return spec.model_copy(update={"openings": read_openings(Path(spec.openings))})
    except SpecError:  # told where names are looked up
        return spec.model_copy(update={"exclude": ()})


def _validated(full: flat.Translated) -> tuple[ExperimentSpec | None, list[Fault]]:
    """The spec, and what is wrong with it key by key; with faults, what is left of the spec without them."""
    faults: list[Fault] = []
    data: dict[Any, Any] | None = full.data
    while data is not None:
        try:
            return ExperimentSpec.model_validate(data), faults
        except ValidationError as error:
            faults += faults_of(error, ExperimentSpec, full.known)
            data = _without(data, error)
    return None, faults


def _without(data: Mapping[Any, Any], error: ValidationError) -> dict[Any, Any] | None:
    """A spec without its faulty keys, so that what they do not concern can be judged; None if that is not possible."""
    rest = {str(key): value for key, value in data.items()}
    found = error.errors(include_url=False)
    faulty_agents = any(fault["loc"][:1] == ("agents",) and len(fault["loc"]) > 1 for fault in found)
    for fault in found:
        top, *inner = place_of(fault["loc"]) or [""]
        if fault["loc"] == ("agents",) and faulty_agents:
            continue  # too short of right ones
        if not top:
            return None
        if top in _SOME_PAIRS:
            rest[top] = _SOME_PAIRS[top]
            rest.pop("exclude", None)
            continue
        if top == "interventions" and inner and isinstance(rest[top], list):
            rest[top] = [_HARMLESS if str(n) == inner[0] else one for n, one in enumerate(rest[top])]
            continue
        if top != "agents" or top not in rest:
            for key in (top, *_DEPENDENT.get(top, ())):
                rest.pop(key, None)
            continue
        agents = list(rest["agents"]) if isinstance(rest["agents"], list) else []
        index = int(inner[0]) if inner else 0
        if not inner and (renamed := _with_ids_that_differ(agents)) != agents:
            rest["agents"] = renamed
            continue
        if not inner or not isinstance(agents[index], dict) or inner[1:2] == ["id"]:
            return None  # whoever names an agent without an id would be told that it is not there
        if len(inner) == 1:
            agents[index] = {key: value for key, value in agents[index].items() if key in ("id", "model")}
        else:
            left = {key: value for key, value in agents[index].items() if str(key) != inner[1]}
            agents[index] = left | ({"model": _SOME_MODEL} if inner[1] == "model" else {})
        rest["agents"] = agents
    return rest if rest != data else None


def _with_ids_that_differ(agents: Sequence[Any]) -> list[Any]:
    """What was probably meant where an id stands twice or is reserved: the next letter."""
    taken: set[str] = {"both", ALL, *SPECIAL_OPENERS}
    renamed = []
    for agent in agents:
        if isinstance(agent, dict) and agent.get("id") in taken:
            used = taken | {str(other.get("id")) for other in agents if isinstance(other, dict)}
            agent = agent | {"id": next(letter for letter in _LETTERS if letter not in used)}
        if isinstance(agent, dict):
            taken.add(str(agent.get("id")))
        renamed.append(agent)
    return renamed


NOT_ASKED = ("lexical_hash", "wordllama")
"""What gives vectors without a server."""
WITHOUT_EMBEDDINGS = frozenset({"anthropic", "local", "replay"})
"""Providers whose APIs have no vectors."""

_LETTERS = [*string.ascii_lowercase, *(f"agent-{number}" for number in range(1000))]
_SOME_PAIRS: dict[str, Any] = {"pairs": "all", "models": ["local:test", "local:silent"]}
"""Stand where what is given cannot be any."""
_SOME_MODEL = "local:test"
"""Stands where the model that is given cannot be one."""
_HARMLESS = {"turn": 1, "inject": "nothing"}
"""Stands for an intervention that is faulty, so that the others keep their places."""
_DEPENDENT = {
    "interventions": ("twins",),
    "sweep": ("exclude",),
    "zip": ("exclude",),
    "openings": ("exclude",),
}
"""Keys that would seem wrong only because another one is."""


# What names stand for


class _Name(NamedTuple):
    """Something in a spec that stands for something else."""

    where: Place
    kind: str
    """`model`, `awareness` or `openings`."""
    value: Any
    serves: str | None = None
    """The one agent that an awareness file speaks to."""


def _names(data: Mapping[str, Any]) -> Iterator[_Name]:
    """All names in a spec that need not be right otherwise."""
    agents = [agent for agent in _items(data.get("agents")) if isinstance(agent[1], Mapping)]
    told = [agent.get("awareness") for _, agent in agents]
    for index, agent in agents:
        if isinstance(agent.get("model"), str) and agent["model"]:
            yield _Name(("agents", index, "model"), "model", agent["model"])
        alone = any(other != agent.get("awareness") for other in told)
        yield _Name(
            ("agents", index, "awareness"), "awareness", agent.get("awareness"), agent.get("id") if alone else None
        )
    for key, model in _items(data.get("models")):
        yield _Name(("models", key), "model", model)
    for table in ("sweep", "zip"):
        for path, values in _items(data.get(table)):
            head, _, name = path.rpartition(".")
            for key, value in _items(values):
                serves = None if head == "all" else head
                kind = "awareness" if name == "awareness" else "model" if name == "model" else None
                if kind is not None:
                    yield _Name((table, path, key), kind, value, serves)
                elif path == "context" and isinstance(value, Mapping):
                    yield _Name((table, path, key, "model"), "model", value.get("model"))
    for key, intervention in _items(data.get("interventions")):
        if isinstance(intervention, Mapping):
            yield _Name(("interventions", key, "swap_model"), "model", intervention.get("swap_model"))
    if isinstance(context := data.get("context"), Mapping):
        yield _Name(("context", "model"), "model", context.get("model"))
    yield _Name(("openings",), "openings", data.get("openings"))


def _items(some: object) -> list[tuple[str, Any]]:
    if isinstance(some, Mapping):
        return [(str(key), value) for key, value in some.items()]
    return [(str(index), value) for index, value in enumerate(some)] if isinstance(some, list | tuple) else []


def _lookup_faults(data: Mapping[str, Any], providers: Collection[str]) -> list[Fault]:
    """Models, presets and files that are not there, or not right."""
    ids = [str(agent.get("id")) for _, agent in _items(data.get("agents")) if isinstance(agent, Mapping)] or ["a", "b"]
    found = []
    models: dict[str, str] = {}
    for name in _names(data):
        try:
            if name.kind == "model" and isinstance(name.value, str):
                model = resolve_model(name.value, providers)
                if name.where[0] == "models" and models.setdefault(model, name.value) != name.value:
                    found.append(Fault(name.where, f"{models[model]} and {name.value} are the same model"))
            elif name.kind == "awareness" and isinstance(name.value, str | Mapping):
                _aware(name.value, ids, name.serves)
            elif name.kind == "openings" and isinstance(name.value, str):
                read_openings(Path(name.value))
        except SpecError as error:
            found += [Fault(name.where, line) for line in str(error).splitlines()]
    embeddings = data.get("embeddings")
    if isinstance(embeddings, str) and embeddings and providers and embeddings not in NOT_ASKED:
        provider, colon, model = embeddings.partition(":")
        if not colon or not model or provider not in providers:
            what = f"{embeddings!r} is no embedding model; write {', '.join(NOT_ASKED)} or PROVIDER:MODEL"
            found.append(Fault(("embeddings",), what))
        elif provider in WITHOUT_EMBEDDINGS:
            found.append(Fault(("embeddings",), f"{provider} has no embedding models"))
    return found


def _aware(
    value: str | Mapping[str, Any] | AwarenessSpec, ids: Sequence[str], serves: str | None
) -> tuple[AwarenessSpec, list[str]]:
    if isinstance(value, str):
        found, notices = load_awareness(value, [Seat(agent_id, "", "") for agent_id in ids], serves=serves)
        return AwarenessSpec(
            name=found.name,
            base=found.base,
            prompts=_for_whom(found.prompts, serves),
            placement=found.placement,
        ), notices
    try:
        awareness = AwarenessSpec.model_validate(value)
    except ValidationError:  # that is told already
        return AwarenessSpec(name=""), []
    faults = []
    if find_preset(awareness.base) is None:
        faults.append(f"base: no preset {awareness.base!r}")
    texts = {
        turn: {serves or "all": text} if isinstance(text, str) else text for turn, text in awareness.prompts.items()
    }
    prompts, notices, wrong = addressed(texts, ids, serves, f"awareness {awareness.name}")
    if faults := faults + wrong:
        raise SpecError("\n".join(faults))
    base = find_preset(awareness.base)
    return awareness.model_copy(update={"base": base, "prompts": _for_whom(prompts, serves)}), notices


def _for_whom(prompts: Mapping[int, Mapping[str, str]], serves: str | None) -> dict[int, str | dict[str, str]]:
    by_turn = sorted(prompts.items())
    return {turn: dict(texts) if serves is None else texts[serves] for turn, texts in by_turn}


def _find_files(data: dict[Any, Any], beside: Path) -> None:
    """Point names of files at those that lie beside the spec, where there are such."""

    def found(value: Any, *, preset: bool = True) -> Any:
        if not isinstance(value, str) or not value or (preset and find_preset(value)) or "\n" in value:
            return value
        try:
            return str(beside / value) if (beside / value).exists() else value
        except (OSError, ValueError):  # too long, or no name at all
            return value

    def each(values: Any) -> Any:
        if isinstance(values, list):
            return [found(value) for value in values]
        return {key: found(value) for key, value in values.items()} if isinstance(values, dict) else values

    data["openings"] = found(data.get("openings"), preset=False)
    if data["openings"] is None:
        del data["openings"]
    if isinstance(agents := data.get("agents"), list):
        data["agents"] = [
            {**agent, "awareness": found(agent["awareness"])}
            if isinstance(agent, dict) and "awareness" in agent
            else agent
            for agent in agents
        ]
    for table in ("sweep", "zip"):
        if isinstance(paths := data.get(table), dict):
            data[table] = {
                path: each(values) if str(path).endswith(".awareness") else values for path, values in paths.items()
            }


# Resolving


def resolve(spec: ExperimentSpec, providers: Collection[str]) -> Resolved:
    """Write out everything that a name stands for, so that the spec runs the same anywhere and later.

    What depends on who sits together (names, and the words of a preset) is written out where all conversations have
    the same models, settings and openings; where arms differ, it follows from the texts that are written out.

    Raises:
        SpecError: names every unknown model, preset and file, one to a line.
    """
    if faults := _lookup_faults(spec.model_dump(), providers):
        raise SpecError("\n".join(dict.fromkeys(fault.message for fault in faults)))
    ids = seat_ids(spec)
    swept = sweep.has_factors(spec)
    notices: dict[str, None] = {}
    last_turn = _last_turn(spec)

    def model(wanted: str) -> str:
        return resolve_model(wanted, providers)

    def aware(value: Any, serves: str | None, *, whole: bool) -> AwarenessSpec | None:
        if value is None:
            return None
        found, said = _aware(value, ids, serves)
        notices.update(dict.fromkeys([*said, *_never_reached(found, last_turn)]))
        if whole and found.system_prompt is None and (text := preset_text(found.base)):
            found = found.model_copy(update={"system_prompt": text})
        return found

    def table(paths: Mapping[str, Any]) -> dict[str, Any]:
        return {path: values(path, some) for path, some in paths.items()}

    def values(path: str, some: Any) -> Any:
        if sweep.typed(some):
            return some
        head, _, key = path.rpartition(".")
        plain = list(some.values()) if isinstance(some, Mapping) else list(some)
        labels = sweep.labels_of(some, path)
        if key == "model":
            plain = [model(value) for value in plain]
        elif key == "awareness":
            plain = [_dumped(aware(value, None if head == "all" else head, whole=True)) for value in plain]
        elif path == "context":
            plain = [
                value | {"model": model(value["model"])} if isinstance(value, dict) and value.get("model") else value
                for value in plain
            ]
        return list(some) if plain == labels else dict(zip(labels, plain, strict=True))

    agents = []
    for agent in spec.agents:
        # A file that is given for everybody speaks to everybody.
        alone = any(other.awareness != agent.awareness for other in spec.agents)
        awareness = aware(agent.awareness, agent.id if alone else None, whole=swept and agent.system_prompt is None)
        if awareness is not None:
            awareness = awareness.model_copy(update={"prompts": texts_for(awareness, agent.id)})
        agents.append(
            agent.model_copy(update={"model": model(agent.model) if agent.model else "", "awareness": awareness})
        )
    context = ContextSpec(policy=spec.context) if isinstance(spec.context, str) else spec.context
    if context.model is not None:
        context = context.model_copy(update={"model": model(context.model)})
    update = {
        "agents": tuple(agents) if swept else seated(agents),
        "context": context,
        "seed": spec.seed if spec.seed is not None else secrets.randbits(31),
        "sweep": table(spec.sweep),
        "zip": table(spec.zip),
        "exclude": tuple(_excluded(spec, wanted) for wanted in spec.exclude),
        "interventions": tuple(
            one.model_copy(update={"swap_model": model(one.swap_model)}) if one.swap_model is not None else one
            for one in spec.interventions
        ),
    }
    if spec.models is not None:
        named = zip(sweep.labels_of(spec.models), sweep.values_of(spec.models), strict=True)
        update["models"] = {label: model(wanted) for label, wanted in named}
    if spec.openings is not None:
        update["openings"] = _openings(spec.openings)
    return Resolved(spec.model_copy(update=update), list(notices))


def _dumped(awareness: AwarenessSpec | None) -> dict[str, Any] | None:
    return None if awareness is None else awareness.model_dump(exclude_defaults=True)


def _openings(given: str | list[str] | dict[str, str]) -> dict[str, str]:
    if isinstance(given, str):
        return read_openings(Path(given))
    return given if isinstance(given, dict) else {str(number): text for number, text in enumerate(given, 1)}


def _excluded(spec: ExperimentSpec, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same arms by the labels that they keep."""
    found: dict[str, Any] = {}
    for key, one in wanted.items():
        some = one if isinstance(one, list) else [one]
        labels = [sweep.label_meant(spec, key, value) for value in some]
        found[key] = labels if isinstance(one, list) else labels[0]
    return found


def _never_reached(awareness: AwarenessSpec, turns: int) -> list[str]:
    has = f"the conversation has {turns} turn{'s' if turns > 1 else ''}"
    late = sorted(turn for turn in awareness.prompts if turn > turns)
    return [f"awareness {awareness.name}: text at turn {turn} is never reached: {has}" for turn in late]


def too_late(spec: ExperimentSpec, said: Collection[tuple[int, str, str]] | None) -> tuple[list[Fault], list[str]]:
    """Awareness of a resolved spec for turns before its branch begins, which is never said.

    Args:
        said: turn, agent and text of what the conversation that is left was told up to there, which is not missed;
            None: that is not known.

    Returns:
        Faults, of awareness that comes too late altogether; notices about single texts.
    """
    if spec.branch is None:
        return [], []
    fork = spec.branch.turn
    last_turn = _last_turn(spec)
    faults: list[Fault] = []
    notices: dict[str, None] = {}
    for where, ids, awareness in _awareness_of(spec):
        texts = [
            (turn, agent_id, clean_text(text)[0])
            for agent_id in ids
            for turn, text in texts_for(awareness, agent_id).items()
        ]
        missed = sorted(
            {turn for turn, agent_id, text in texts if turn <= fork and (turn, agent_id, text) not in (said or ())}
        )
        told = (
            awareness.system_prompt or preset_text(awareness.base) or any(fork < text[0] <= last_turn for text in texts)
        )
        if said is not None and len(missed) == len({text[0] for text in texts}) > 0 and not told:
            turns = f"turn{'s' if len(missed) > 1 else ''} {', '.join(map(str, missed))}"
            what = f"nothing of it is ever said: its texts are for {turns}, and the branch begins after turn {fork}"
            faults.append(Fault(where, f"awareness {awareness.name}: {what}"))
            continue
        unless = "" if said is not None else f", unless {spec.branch.of} was told it"
        for turn in missed:
            what = f"text at turn {turn} is not said{unless}: the branch begins after turn {fork}"
            notices[f"awareness {awareness.name}: {what}"] = None
    return faults, list(notices)


def _awareness_of(spec: ExperimentSpec) -> Iterator[tuple[Place, Sequence[str], AwarenessSpec]]:
    """Where a resolved spec gives awareness, and whom it is for."""
    swept = {path for table in (spec.sweep, spec.zip) for path in table}
    for index, agent in enumerate(spec.agents):
        if isinstance(agent.awareness, AwarenessSpec) and not swept & {"all.awareness", f"{agent.id}.awareness"}:
            yield ("agents", str(index), "awareness"), [agent.id], agent.awareness
    for table in ("sweep", "zip"):
        for path, values in getattr(spec, table).items():
            head, _, key = path.rpartition(".")
            for value in sweep.values_of(values) if key == "awareness" else ():
                if isinstance(value, Mapping):
                    yield (table, path), seat_ids(spec) if head == ALL else [head], AwarenessSpec.model_validate(value)


def _last_turn(spec: ExperimentSpec) -> int:
    turns: list[int] = [cell.values.get("max_turns", spec.max_turns) for cell in sweep.arms(spec)]
    return max(turns)


def models_of(spec: ExperimentSpec) -> list[str]:
    """Every model that the conversations of a resolved spec may ask, once."""
    found: dict[str, None] = {}
    for cell in sweep.arms(spec):
        for name in _names(sweep.one_arm(spec, cell).model_dump()):
            if name.kind == "model" and isinstance(name.value, str):
                found[name.value] = None
    return list(found)


# Writing


def experiment_hash(spec: ExperimentSpec) -> str:
    """What makes two resolved specs the same experiment: all but how often, how fast, for how much, and under what
    name it runs."""
    data = spec.model_dump(mode="json", exclude=set(NOT_IN_HASH), exclude_defaults=True)
    for key in ("sweep", "zip", "models"):
        if isinstance(data.get(key), dict):  # labels follow the order in which these are written
            data[key] = list(data[key].items())
    return spec_hash(data)


def to_yaml(spec: ExperimentSpec) -> str:
    """The spec as a file that runs as it stands; defaults are left out."""
    data = spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Keeps every text as it is: unquoted, YAML takes some characters for plain line breaks."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, '"' if set(text) & set("\x85\u2028\u2029") else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a spec's file in both forms, for editors and other programs."""
    schema = ExperimentSpec.model_json_schema()
    agent = schema["$defs"]["AgentSpec"]["properties"]
    ids = "[a-z][a-z0-9]{0,15}"
    ours = schema["properties"]
    for key in flat.SHARED_KEYS:
        ours[key] = agent[key] | {"description": f"Of every agent (flat form): {agent[key]['description']}"}
    ours["allow_truncation"] = {"type": "boolean", "description": "Flat form of `context: window`"}
    for seat in ("a", "b"):
        ours[f"agent_{seat}"] = agent["model"] | {"description": f"Model of agent {seat} (flat form)"}
        for key in flat.AGENT_KEYS:
            said = f"Of agent {seat} (flat form): {agent[key]['description']}"
            ours[f"{key}_{seat}"] = agent[key] | {"description": said}
    taken = (*ours, *flat.SHARED_KEYS)
    schema["patternProperties"] = {f"^agent_{ids}$": {"type": "string"}}
    for key in flat.AGENT_KEYS:
        others = "|".join(other.removeprefix(f"{key}_") for other in taken if other.startswith(f"{key}_"))
        schema["patternProperties"][f"^{key}_(?!({others})$){ids}$"] = agent[key]
    schema["anyOf"] = [{"required": ["agents"]}, {"required": ["agent_a"]}, {"required": ["pairs", "models"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Pidgin experiment"}
