"""Faults of a spec in words: what is wrong, where, and what was probably meant."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import clean_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["explain", "nearest", "refuse_half_characters", "safe_load"]


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def safe_load(text: str, source: str) -> Any:
    """YAML as data, by the parser in C where there is one: a prompt of a megabyte takes a second without.

    Raises:
        SpecError: a mapping has a key twice, of which one would be lost.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if said := _repeated_keys(loader, node):
            raise SpecError("\n".join(f"{source}, {fault}" for fault in said))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _repeated_keys(loader: Any, root: yaml.Node) -> list[str]:
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
    return [f"line {line}: {fault}" for line, fault in sorted(said)]


def nearest(wanted: str, known: Iterable[str]) -> str:
    """` Did you mean x?` or nothing."""
    near = difflib.get_close_matches(wanted, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def explain(error: ValidationError, source: str, text: str = "", model: type[BaseModel] | None = None) -> str:
    """All faults, one to a line, each with its key and, where the YAML text is given, its line."""
    lines = _line_numbers(text) if text else {}
    said = []
    for fault in _meant(error.errors(include_url=False)):
        where = tuple(str(part) for part in fault["loc"] if not _BRANCH.fullmatch(str(part)))
        line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
        place = f"{source}, line {line}" if line else source
        key = ".".join(where)
        if fault["type"] == "extra_forbidden":
            said.append(f"{place}: unknown key {key!r}.{nearest(where[-1], _keys_at(model, where[:-1]))}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            said.append(f"{place}: {key}: {message}" if key else f"{place}: {message}")
    return "\n".join(said)


def refuse_half_characters(data: object, source: str, where: tuple[str, ...] = ()) -> None:
    """Raise SpecError when a text in `data` is not Unicode, as bytes of another encoding in an argument make it."""
    if isinstance(data, str):
        if clean_text(data)[1]:
            raise SpecError(f"{source}: {'.'.join(where)}: the text is not valid Unicode; write it in UTF-8")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            refuse_half_characters(value, source, (*where, str(key)))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            refuse_half_characters(value, source, (*where, str(index)))


_BRANCH = re.compile(r"str|int|bool|literal\[.*\]|function-after\[.*\]|[A-Z]\w*Spec")
"""What pydantic adds to a place to tell the branches of a union apart."""


def _meant(faults: "list[ErrorDetails]") -> "list[ErrorDetails]":
    """Without complaints about the branches of a union that were not meant: a mapping is not taken for a wrong word."""
    places = [fault["loc"] for fault in faults]
    meant = []
    for fault in faults:
        where = fault["loc"]
        union = where[:-1]
        others = sum(place[: len(union)] == union for place in places) > 1
        if fault["type"] == "too_short" and any(place[: len(where)] == where and place != where for place in places):
            continue  # it is short of what is wrong with its items
        if where and _BRANCH.fullmatch(str(where[-1])) and others:
            wrong = ("string_type", "literal_error") if isinstance(fault["input"], dict) else ("model_type",)
            if fault["type"] in wrong:
                continue
        meant.append(fault)
    return meant


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
