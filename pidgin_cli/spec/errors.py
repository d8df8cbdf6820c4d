"""Faults of a spec in words: what is wrong, where, and what was probably meant."""

import difflib
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import clean_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "Fault",
    "Place",
    "explain",
    "faults_of",
    "half_characters",
    "nearest",
    "parse",
    "refuse_half_characters",
    "safe_load",
    "tell",
]


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Place = tuple[str, ...]
"""Keys and positions that lead to a value."""

_NOT_YET = "is not there yet; leave it out for now"
LATER = {"safety": _NOT_YET, "tools": _NOT_YET}
"""Keys that people write in good faith and that nothing could obey yet."""


class Fault(NamedTuple):
    """One thing that is wrong."""

    where: Place
    message: str
    unknown: bool = False
    """The key itself is the fault; the message is the hint at another."""
    line: int | None = None
    """Where `where` cannot say it; counted from 1."""


def safe_load(text: str, source: str) -> Any:
    """YAML as data, by the parser in C where there is one: a prompt of a megabyte takes a second without.

    Raises:
        SpecError: a mapping has a key twice, of which one would be lost.
    """
    data, repeated = parse(text)
    if repeated:
        raise SpecError(tell(repeated, source))
    return data


def parse(text: str) -> tuple[Any, list[Fault]]:
    """YAML as data, and the keys that stand twice in a mapping, of which only the last is in the data."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        repeated = _repeated_keys(loader, node)  # before merged keys are made the mapping's own
        return loader.construct_document(node), repeated
    finally:
        loader.dispose()


def _repeated_keys(loader: Any, root: yaml.Node) -> list[Fault]:
    said: list[tuple[int, str]] = []
    walked: set[int] = set()
    ahead: list[tuple[yaml.Node, tuple[str, ...]]] = [(root, ())]
    while ahead:  # a stack of its own: a file may nest deeper than Python calls
        node, path = ahead.pop()
        if id(node) in walked:  # an alias
            continue
        walked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            ahead += [(value, (*path[-9:], str(index))) for index, value in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    ahead.append((value, path))
                    continue
                name = str(loader.construct_object(key))  # 1 and "1" are one turn
                line = key.start_mark.line + 1
                place = (*path[-9:], name)
                if name in lines:
                    said.append((line, f"the key {'.'.join(place)!r} stands in line {lines[name]} already"))
                lines.setdefault(name, line)
                ahead.append((value, place))
    return [Fault((), fault, line=line) for line, fault in sorted(said)]


def nearest(wanted: str, known: Iterable[str]) -> str:
    """` Did you mean x?` or nothing."""
    near = difflib.get_close_matches(wanted, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def explain(error: ValidationError, source: str, text: str = "", model: type[BaseModel] | None = None) -> str:
    """All faults, one to a line, each with its key and, where the YAML text is given, its line."""
    return tell(faults_of(error, model), source, text)


def faults_of(error: ValidationError, model: type[BaseModel] | None = None, more: Collection[str] = ()) -> list[Fault]:
    """What pydantic found, in words.

    Args:
        more: keys that may stand at the top beside those of `model`.
    """
    found = []
    for said in _meant(error.errors(include_url=False)):
        where = place_of(said["loc"])
        if said["type"] == "extra_forbidden":
            if where[-1] in LATER:
                found.append(Fault(where, LATER[where[-1]]))
                continue
            known = [*_keys_at(model, where[:-1]), *(more if len(where) == 1 else ())]
            found.append(Fault(where, nearest(where[-1], known), unknown=True))
        elif said["type"] == "too_short" and (context := said.get("ctx")):
            found.append(Fault(where, f"{context['actual_length']} given, at least {context['min_length']} needed"))
        else:
            found.append(Fault(where, said["msg"].removeprefix("Value error, ")))
    return found


def place_of(loc: Iterable[object]) -> Place:
    """A place without what pydantic adds to tell the branches of a union apart."""
    return tuple(str(part) for part in loc if not _BRANCH.fullmatch(str(part)))


def tell(faults: Iterable[Fault], source: str, text: str = "", written: Mapping[Place, Place] | None = None) -> str:
    """All faults, one to a line and in the order of the lines they are in.

    Args:
        text: the YAML that they stand in, if there is one.
        written: where a person wrote what stands at a place now, if it stood elsewhere.
    """
    lines = _line_numbers(text) if text else {}
    said: dict[str, int] = {}
    for fault in faults:
        where = as_written(fault.where, written or {})
        line = fault.line or next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
        place = f"{source}, line {line}" if line else source
        key = ".".join(where)
        if fault.unknown:
            words = f"{place}: unknown key {key!r}.{fault.message}"
        else:
            words = f"{place}: {key}: {fault.message}" if key else f"{place}: {fault.message}"
        said.setdefault(words, line or sys.maxsize)
    return "\n".join(sorted(said, key=said.__getitem__))


def as_written(where: Place, written: Mapping[Place, Place]) -> Place:
    """The place in the words of the person, of whose place the longest beginning is known."""
    for length in range(len(where), 0, -1):
        if where[:length] in written:
            return (*written[where[:length]], *where[length:])
    return where


def refuse_half_characters(data: object, source: str) -> None:
    """Raise SpecError when a text in `data` is not Unicode, as bytes of another encoding in an argument make it."""
    if faults := half_characters(data):
        raise SpecError(tell(faults, source))


def half_characters(data: object, where: Place = ()) -> list[Fault]:
    """Texts in `data` that are not Unicode."""
    if isinstance(data, str):
        return [Fault(where, "the text is not valid Unicode; write it in UTF-8")] if clean_text(data)[1] else []
    if isinstance(data, Mapping):
        return [fault for key, value in data.items() for fault in half_characters(value, (*where, str(key)))]
    if isinstance(data, list | tuple):
        return [fault for index, value in enumerate(data) for fault in half_characters(value, (*where, str(index)))]
    return []


_BRANCH = re.compile(r"str|int|bool|constrained-\w+|(literal|list|tuple|dict|function-\w+)\[.*\]|[A-Z]\w*Spec")
"""What pydantic adds to a place to tell the branches of a union apart."""


def _meant(faults: "list[ErrorDetails]") -> "list[ErrorDetails]":
    """Without complaints about the branches of a union that were not meant: a mapping is not taken for a wrong word."""
    meant: dict[tuple[object, ...], ErrorDetails] = {}
    places = [fault["loc"] for fault in faults]
    unions: dict[Place, list[ErrorDetails]] = {}
    for fault in faults:
        unions.setdefault(place_of(fault["loc"]), []).append(fault)
    for fault in faults:
        where = fault["loc"]
        if fault["type"] == "too_short" and any(place[: len(where)] == where and place != where for place in places):
            continue  # it is short of what is wrong with its items
        if where and _BRANCH.fullmatch(str(where[-1])) and fault["type"] in _OTHER_TYPE:
            union = where[:-1]
            fitting = [
                other
                for other in faults
                if other["loc"][: len(union)] == union
                and len(other["loc"]) > len(union)
                and (other["type"] not in _OTHER_TYPE or len(other["loc"]) > len(where))
            ]
            if fitting:
                continue
            # None fits: the one that reads best stands for all.
            alike = sorted(unions[place_of(where)], key=lambda other: other["type"] == "model_type")
            if fault is not alike[0]:
                continue
        meant[(*where, fault["type"])] = fault
    return list(meant.values())


_OTHER_TYPE = frozenset(
    f"{kind}_type" for kind in ("string", "int", "float", "bool", "list", "tuple", "dict", "model")
) | {"literal_error", "int_parsing", "int_from_float"}
"""Faults that say that something else was expected altogether."""


def _keys_at(model: type[BaseModel] | None, where: tuple[str, ...]) -> list[str]:
    """The keys that are valid at a place of a spec."""
    models = [model] if model else []
    at_name = False
    for part in where:
        if at_name or part.isdigit():  # a name of the person's own in a table of tables, or a place in a list
            at_name = False
            continue
        kinds = [outer.model_fields[part].annotation for outer in models if part in outer.model_fields]
        models = [inner for kind in kinds for inner in _models_in(kind)]
        at_name = any(get_origin(kind) is dict for kind in kinds)
    return sorted({key for found in models for key in found.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    walked: set[int] = set()

    def walk(node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if id(node) in walked:  # an alias
            return
        walked.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, str(key.value))
                found[place] = key.start_mark.line + 1
                walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                place = (*path, str(index))
                found[place] = value.start_mark.line + 1
                walk(value, place)

    walk(yaml.compose(text, Loader=_Loader), ())
    return found
