"""What the pieces of a reply have to be made of, before anything counts, shows or records them.

The SDKs build their values unchecked: where a server sends a number in place of a text, a number comes out.
"""

from msgspec.structs import replace

from pidgin_cli.core.errors import ProviderUnavailable
from pidgin_cli.core.types import Delta, Finish, TextDelta, ThinkingDelta, ToolCallDelta, UsageDelta

__all__ = ["MOST_TOKENS", "checked", "token_count"]

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
