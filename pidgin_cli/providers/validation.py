"""What the pieces of a reply, and vectors, have to be made of, before anything counts, shows or records them.

The SDKs build their values unchecked: where a server sends a number in place of a text, a number comes out.
"""

import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pidgin_cli.core.errors import ProviderUnavailable
from pidgin_cli.core.types import Delta, Finish, TextDelta, ThinkingDelta, ToolCallDelta, UsageDelta

__all__ = ["MOST_TOKENS", "Vector", "checked", "checked_vectors", "token_count"]

if TYPE_CHECKING:
    Vector = array[float]
else:
    Vector = array  # which takes no parameter before Python 3.12
"""In single precision, which is what the APIs compute in: vectors from the cache equal those that were sent."""

MOST_TOKENS = 2**63 - 1
"""The largest count that the database can hold."""

_COUNTS = {
    "prompt_tokens": "the count of prompt tokens",
    "completion_tokens": "the count of completion tokens",
    "thinking_tokens": "the count of thinking tokens",
    "cached_tokens": "the count of cached tokens",
    "cache_write_tokens": "the count of tokens written to the cache",
}


def checked(delta: Delta, provider: str) -> Delta:
    """`delta`, with counts that are whole numbers written with a point (`5.0`) as integers, and a number of the reply
    as a text.

    Raises:
        ProviderUnavailable: a field is of another type, a count is negative or above `MOST_TOKENS`, or a name or a
            signature cannot be written as UTF-8. Text and thinking may hold half a surrogate pair; the next piece may
            bring the other half.
    """
    match delta:
        case TextDelta(text=text):
            _check_text(text, "the text", provider)
        case ThinkingDelta(text=text, signature=signature):
            _check_text(text, "the thinking", provider)
            _check_name(signature, "the signature", provider)
        case ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments):
            if type(index) is not int:
                raise _sent(_kind(index), "the number of a tool call", provider)
            _check_name(call_id, "the id of a tool call", provider)
            _check_name(name, "the name of a tool", provider)
            _check_text(arguments, "the arguments of a tool call", provider)
        case UsageDelta(usage=usage):
            found = {name: token_count(getattr(usage, name), what, provider) for name, what in _COUNTS.items()}
            changed = {name: count for name, count in found.items() if count is not getattr(usage, name)}
            return UsageDelta(replace(usage, **changed)) if changed else delta
        case Finish(model=model, request_id=request_id, fingerprint=fingerprint):
            _check_name(model, "the name of the model", provider)
            _check_name(fingerprint, "the fingerprint", provider)
            number: object = request_id
            if type(number) is int and abs(number) <= MOST_TOKENS:
                return replace(delta, request_id=str(number))  # it says no less for that
            _check_name(request_id, "the id of the reply", provider)
    return delta


def token_count(value: object, what: str, provider: str) -> int | None:
    """`value` as a count of tokens; None: not reported. Raises ProviderUnavailable as `checked` does."""
    if value is None or (type(value) is int and 0 <= value <= MOST_TOKENS):
        return value
    if isinstance(value, float) and value.is_integer() and 0 <= value <= MOST_TOKENS:
        return int(value)
    is_short = isinstance(value, float) or (type(value) is int and abs(value) < 10**20)
    raise _sent(str(value) if is_short else _kind(value), what, provider)


def checked_vectors(vectors: object, count: int, model_id: str) -> list[Vector]:
    """`vectors` as one vector for each of `count` texts.

    Raises:
        ProviderUnavailable: they are others in number, or one is no list of finite numbers of the others' length.
    """
    provider = model_id.partition(":")[0]
    if isinstance(vectors, str | bytes) or not isinstance(vectors, Sequence):
        raise _sent(_kind(vectors), "the list of vectors", provider)
    if len(vectors) != count:
        what = f"{model_id} gave {len(vectors)} vectors for {count} texts; it may be no embedding model"
        raise ProviderUnavailable(what, provider=provider)
    found = [_vector(each, provider) for each in vectors]
    if len(sizes := {len(vector) for vector in found}) > 1:
        what = f"{model_id} gave vectors of different lengths: {sorted(sizes)}"
        raise ProviderUnavailable(what, provider=provider)
    return found


def _vector(numbers: object, provider: str) -> Vector:
    if isinstance(numbers, str | bytes) or not isinstance(numbers, Sequence) or not numbers:
        raise _sent("an empty list" if isinstance(numbers, list) else _kind(numbers), "a vector", provider)
    for each in numbers:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise _sent(_kind(each), "a number of a vector", provider)
    try:
        vector = array("f", numbers)
    except OverflowError:
        raise _sent("a very large number", "a number of a vector", provider) from None
    for each, kept in zip(numbers, vector, strict=True):
        if not math.isfinite(kept):
            raise _sent("a very large number" if math.isfinite(each) else str(each), "a number of a vector", provider)
    return vector


def _check_text(value: object, what: str, provider: str) -> None:
    if not isinstance(value, str):
        raise _sent(_kind(value), what, provider)


def _check_name(value: object, what: str, provider: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise _sent(_kind(value), what, provider)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _sent("half a surrogate pair", what, provider) from None


def _kind(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return "a number" if abs(value) < 10**20 else "a very large number"
        case str():
            return "a text"
        case list():
            return "a list"
        case None:
            return "nothing"
    return "an object"


def _sent(found: str, what: str, provider: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"the server sent {found} as {what}", provider=provider)
