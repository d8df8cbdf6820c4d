"""Events to lines and back: one encoder, one decoder."""

from typing import Any, NamedTuple, Union

import msgspec

from pidgin_cli.core.events import EVENT_TYPES, Event
from pidgin_cli.core.types import clean_text

__all__ = ["Skipped", "decode", "encode", "encode_into"]

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Union[EVENT_TYPES])  # noqa: UP007 - a dynamic union
_names = frozenset(kind.__name__ for kind in EVENT_TYPES)


class Skipped(NamedTuple):
    """A line that is not an event this version knows. Readers report it and go on."""

    line: int
    """Counted from 1; 0 where the reader does not know."""
    why: str
    """`torn`: the last line, cut short. `broken`: not an event. `unknown`: an event type of another version."""
    raw: bytes

    def __str__(self) -> str:
        shown = self.raw[:60].decode("utf-8", "replace")
        return f"line {self.line}: {self.why}: {shown!r}"


def _cleaned(event: Event) -> Event:
    replaced = event.text_replaced

    def clean(value: Any) -> Any:
        nonlocal replaced
        if isinstance(value, str):
            text, lost = clean_text(value)
            replaced = replaced or lost
            return text
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return value

    fields = clean(msgspec.to_builtins(event))
    fields["text_replaced"] = replaced
    return msgspec.convert(fields, type(event))


def encode(event: Event) -> bytes:
    """The event's line without the newline. Lone surrogates become U+FFFD and the event says so."""
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:
        return _encoder.encode(_cleaned(event))


def encode_into(event: Event, buffer: bytearray) -> None:
    """Append the event's whole line to `buffer`, or raise and leave it as it was."""
    length = len(buffer)
    try:
        _encoder.encode_into(event, buffer, -1)
    except UnicodeEncodeError:
        del buffer[length:]
        buffer += _encoder.encode(_cleaned(event))
    except BaseException:
        del buffer[length:]
        raise
    buffer += b"\n"


def decode(line: bytes, number: int = 0) -> Event | Skipped:
    """The event in one line, or why there is none. Never raises."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        kind = msgspec.json.decode(line, type=dict[str, Any]).get("event_type")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = None
    unknown = isinstance(kind, str) and kind not in _names
    return Skipped(number, "unknown" if unknown else "broken", line)
