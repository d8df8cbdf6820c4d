"""Hypothesis strategies for the values of `core`, built from the types themselves.

A new event, or a new field in one, is covered as soon as it is declared. A field of a kind that is not listed here
raises TypeError, so that nobody forgets to say how to make one.
"""

from datetime import UTC
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as look

from pidgin_cli.core.events import Event

__all__ = ["ENVELOPE", "STAMPED", "TEXT", "WILD_TEXT", "events", "filled", "of_type"]

ENVELOPE = tuple(field.name for field in msgspec.structs.fields(Event))
"""The fields every event has."""
STAMPED = ("event_id", "seq", "timestamp", "experiment_id", "conversation_id")
"""Those that the log sets; `text_replaced` is set by the codec. No strategy touches any of them."""

_CURIOUS = [
    "\x00",
    "\u2028\u2029\x85",
    '"\\\n\r\t\b',
    "\x1b[31m\x1b]0;title\x07",
    "\ufeff\ufffe\uffff\U0010ffff",
    "\u202eoverride\u202c \u200b\u200d",
    "ᾳ̂́ 👩🏽‍🚀 🇦🇶",
    '{"event_type":"MessageCompleteEvent"}\n',
]

TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(st.sampled_from(_CURIOUS), max_size=3).map("".join)
"""Any text that UTF-8 can carry."""
WILD_TEXT = st.lists(
    st.characters(codec="utf-8") | st.characters(categories=["Cs"]) | st.sampled_from("\ud83d\ude00"), max_size=20
).map("".join)  # `st.text` leaves the surrogates of such an alphabet out
"""Text in which halves of surrogate pairs stand about, alone and joined."""

_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_WHOLE = st.integers(-(2**63), 2**64 - 1)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _WHOLE | _FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def of_type(kind: look.Type, *, full: bool = False) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec sees it. `full`: nothing is left absent or empty."""
    match kind:
        case look.StrType():
            return TEXT.filter(bool) if full else TEXT
        case look.BoolType():
            return st.booleans()
        case look.IntType():
            return _WHOLE
        case look.FloatType():
            return _FINITE
        case look.NoneType():
            return st.none()
        case look.AnyType():
            return _JSON
        case look.DateTimeType():
            return st.datetimes(timezones=st.just(UTC))
        case look.EnumType():
            return st.sampled_from(list(kind.cls))
        case look.LiteralType():
            return st.sampled_from(list(kind.values))
        case look.VarTupleType():
            return st.lists(of_type(kind.item_type, full=full), min_size=full, max_size=3).map(tuple)
        case look.DictType():
            inner = of_type(kind.value_type, full=full)
            return st.dictionaries(of_type(kind.key_type), inner, min_size=full, max_size=3)
        case look.UnionType():
            members = [of_type(t, full=full) for t in kind.types if not (full and isinstance(t, look.NoneType))]
            return st.one_of(members)
        case look.StructType():
            return _struct(kind, full=full)
    raise TypeError(f"tests/strategies.py cannot make a {kind!r} yet: say how")


def _struct(kind: look.StructType, *, full: bool, without: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    required, optional = {}, {}
    for field in kind.fields:
        if field.name not in without:
            into = required if field.required or full else optional
            into[field.name] = of_type(field.type, full=full)
    return st.fixed_dictionaries(required, optional=optional).map(lambda values: kind.cls(**values))


def _members(kind: type[Event], *, full: bool) -> st.SearchStrategy[Any]:
    seen = look.type_info(kind)
    assert isinstance(seen, look.StructType)
    return _struct(seen, full=full, without=ENVELOPE)


def events(kind: type[Event]) -> st.SearchStrategy[Any]:
    """Events of one type as the code reports them: not yet stamped by a log."""
    return _members(kind, full=False)


def filled(kind: type[Event]) -> st.SearchStrategy[Any]:
    """The same with every optional field set and every collection holding something."""
    return _members(kind, full=True)
