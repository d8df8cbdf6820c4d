"""The types of `core.events` as DuckDB's JSON reader knows them: one `from_json` with a STRUCT per line."""

import json
from collections.abc import Iterator, Mapping

from msgspec import inspect as look

from pidgin_cli.core.events import Event

from .schema import quoted

__all__ = ["ENVELOPE", "out_of_range", "own_fields", "required_paths", "structure"]

ENVELOPE = {"event_type": "VARCHAR", "seq": "BIGINT", "timestamp": "TIMESTAMP"}
"""What is read of every line, whatever it is."""

_ENVELOPE_FIELDS = frozenset(Event.__struct_fields__)


def _type(kind: look.Type) -> str:
    match kind:
        case look.StrType() | look.EnumType() | look.LiteralType():
            return "VARCHAR"
        case look.IntType():
            return "HUGEINT"  # whatever JSON from msgspec can hold; a NULL would look like an absent field
        case look.FloatType():
            return "DOUBLE"
        case look.BoolType():
            return "BOOLEAN"
        case look.DateTimeType():
            return "TIMESTAMP"
        case look.AnyType():
            return "JSON"
        case look.DictType(value_type=look.AnyType()):
            return "JSON"
        case look.DictType():
            return f"MAP(VARCHAR, {_type(kind.value_type)})"
        case look.VarTupleType():
            return f"{_type(kind.item_type)}[]"
        case look.UnionType():
            types = {_type(member) for member in kind.types if not isinstance(member, look.NoneType)}
            return types.pop() if len(types) == 1 else "JSON"
        case look.StructType():
            return f"STRUCT({', '.join(f'{quoted(f.encode_name)} {_type(f.type)}' for f in kind.fields)})"
    raise TypeError(f"say how DuckDB reads a {kind!r}")


def own_fields(kind: type[Event]) -> dict[str, look.Field]:
    """The fields of an event besides its envelope, by their name in a line."""
    seen = look.type_info(kind)
    assert isinstance(seen, look.StructType)
    return {field.encode_name: field for field in seen.fields if field.name not in _ENVELOPE_FIELDS - {"text_replaced"}}


def structure(kind: type[Event], special: Mapping[str, str] | None = None) -> str:
    """The structure that `from_json` reads an event with; `special`: types of fields that are known better here."""
    types = {name: _type(field.type) for name, field in own_fields(kind).items()}
    return json.dumps(types | dict(special or {}))


def required_paths(kind: type[Event]) -> list[str]:
    """SQL expressions that are NULL where a line lacks what its event cannot be without."""
    return [path for name, field in own_fields(kind).items() for path in _required(quoted(name), field)]


def out_of_range(kind: type[Event]) -> list[str]:
    """SQL expressions that are true where a whole number of an event is larger than any column can hold."""
    return [test for name, field in own_fields(kind).items() for test in _too_large(quoted(name), field.type)]


def _too_large(path: str, kind: look.Type) -> Iterator[str]:
    match kind:
        case look.IntType():
            yield f"abs({path}) > {2**63 - 1}"
        case look.DictType(value_type=look.IntType()):
            yield f"list_max(list_transform(map_values({path}), lambda x: abs(x))) > {2**63 - 1}"
        case look.UnionType():
            for member in kind.types:
                yield from _too_large(path, member)
        case look.StructType():
            for field in kind.fields:
                yield from _too_large(f"{path}.{quoted(field.encode_name)}", field.type)


def _required(path: str, field: look.Field) -> Iterator[str]:
    if field.required:
        yield path
        if isinstance(field.type, look.StructType):
            for inner in field.type.fields:
                yield from _required(f"{path}.{quoted(inner.encode_name)}", inner)
