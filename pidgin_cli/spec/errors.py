"""Faults of a spec in words: what is wrong, where, and what was probably meant."""

import difflib
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

__all__ = ["explain", "nearest"]


def nearest(wanted: str, known: Iterable[str]) -> str:
    """` Did you mean x?` or nothing."""
    near = difflib.get_close_matches(wanted, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def explain(error: ValidationError, source: str, text: str = "", model: type[BaseModel] | None = None) -> str:
    """All faults, one to a line, each with its key and, where the YAML text is given, its line."""
    lines = _line_numbers(text) if text else {}
    keys = sorted(model.model_fields) if model else []
    said = []
    for fault in error.errors(include_url=False):
        where = fault["loc"]
        line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
        place = f"{source}, line {line}" if line else source
        key = ".".join(str(part) for part in where)
        if fault["type"] == "extra_forbidden":
            said.append(f"{place}: unknown key {key!r}.{nearest(str(where[-1]), keys)}")
        else:
            said.append(f"{place}: {key}: {fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(said)


def _line_numbers(text: str) -> dict[tuple[Any, ...], int]:
    found: dict[tuple[Any, ...], int] = {}

    def walk(node: yaml.Node | None, path: tuple[Any, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found[(*path, index)] = value.start_mark.line + 1
                walk(value, (*path, index))

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found
