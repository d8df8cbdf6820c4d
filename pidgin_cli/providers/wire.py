"""What the adapters of models behind HTTP share: address and key from the environment, and errors as one clear line."""

import asyncio
import json
import math
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any, Literal
from urllib.parse import urlsplit

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
    SpecError,
)
from pidgin_cli.core.types import RateLimit

from .registry import ProviderInfo, address, missing_key

__all__ = [
    "CUT_OFF",
    "ReplyId",
    "address_source",
    "api_key",
    "arguments_of",
    "bad_address",
    "base_url",
    "begun_again",
    "error_class",
    "message_in",
    "one_line",
    "rate_limits",
    "read_out",
    "retry_after_s",
    "unfinished",
    "what_came",
]

CUT_OFF = "the stream ended before the reply was whole"
PLACEHOLDER_KEY = "none-needed"
"""For servers that want no key; the SDKs refuse to start without one."""
READ_OUT_S = 0.5
"""How long a server may take to close a stream that says it is at its end."""
MESSAGE_LIMIT = 500
LONGEST_WAIT_S = 86_400.0
"""More than this a provider did not mean, or nobody would wait for: it counts as not told."""

_What = Literal["requests", "tokens", "input tokens", "output tokens"]
_Field = Literal["limit", "remaining", "reset"]

_STYLE = re.compile(r"<(script|style|head|title)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_KEY = re.compile(r"\b(?:sk|gsk|xai|pk|rk)-[\w*.-]{4,}|\b[\w-]+\*{3,}[\w*-]*")


def base_url(info: ProviderInfo) -> str:
    """Where requests go. Raises SpecError for an address that is none."""
    url = address(info) or ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise bad_address(info, "http://host:port/v1")
    return url


def bad_address(info: ProviderInfo, example: str) -> SpecError:
    """The error for an address that is none, which names where it was set."""
    # The address is not quoted: people put passwords into them.
    return SpecError(f"{address_source(info)} is not an address like {example}; correct or unset it")


def address_source(info: ProviderInfo) -> str:
    """What says where a provider's server is: the variable where it is set, else the settings."""
    return str(info.base_url_env) if os.environ.get(info.base_url_env or "") else f"base_url of {info.name}"


def api_key(info: ProviderInfo) -> str:
    """The key, or a placeholder where none is needed. Raises SpecError when it is missing or cannot be sent."""
    if (missing := missing_key(info)) is not None:
        raise SpecError(f"{missing} is not set; export it with your {info.name} API key")
    name = next((name for name in info.key_env if os.environ.get(name)), "")
    key = os.environ.get(name) or PLACEHOLDER_KEY
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        # HTTP libraries quote such a value in their error text.
        raise SpecError(f"{name} holds a blank, a line end or a letter that no key has; set it again")
    return key


def one_line(text: str, *secrets: str) -> str:
    """A provider's text as one short line, without markup and without keys."""
    if text.lstrip().startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE)
        text = unescape(_TAG.sub(" ", f"{title[1] if title else ''} {_STYLE.sub(' ', text)}"))
    for secret in secrets:
        if secret and secret != PLACEHOLDER_KEY:
            text = text.replace(secret, "[key]")
    # Some vendors quote the wrong key back, half masked.
    text = " ".join(_KEY.sub("[key]", text).split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def message_in(body: object) -> str:
    """The human part of an error body in any of the shapes that servers send; empty when there is none."""
    if isinstance(body, Mapping):
        for name in ("error", "message", "detail"):
            if text := message_in(body.get(name)):
                return text
        return ""
    if isinstance(body, list):
        return json.dumps(body)
    return body if isinstance(body, str) else ""


def what_came(exc: Exception) -> str:
    """What a server sent so that the SDK raised `exc`, if it was text in the place of JSON; else what `exc` says."""
    # The SDKs go on with a page as if it were an answer; the exception alone knows what it was.
    page = getattr(exc, "obj", None) if isinstance(exc, AttributeError) else getattr(exc, "doc", None)
    if isinstance(page, str) and (isinstance(exc, AttributeError) or page.lstrip().startswith("<")):
        return one_line(page) or "nothing"
    return str(exc)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the provider asks: `retry-after-ms`, or `retry-after` in seconds or as a date.

    Without either: until the last of the limits resets of which the rate-limit headers say that nothing remains. More
    than `LONGEST_WAIT_S` counts as not told.
    """
    asked = _retry_after(headers)
    return asked if asked is not None else _until_reset(headers)


_LIMITS: dict[str, tuple[_What, _Field]] = {
    f"x-ratelimit-{field}-{what}": (what, field)
    for what in ("requests", "tokens")
    for field in ("limit", "remaining", "reset")
} | {
    f"anthropic-ratelimit-{what.replace(' ', '-')}-{field}": (what, field)
    for what in ("requests", "tokens", "input tokens", "output tokens")
    for field in ("limit", "remaining", "reset")
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_YEAR_S = 366 * 86400.0


def rate_limits(headers: Mapping[str, str]) -> tuple[RateLimit, ...]:
    """What the headers of a reply, of an error as well, say of the account's limits per minute.

    OpenAI and those who follow it have `x-ratelimit-limit-requests`, `-remaining-` and `-reset-`, and the same for
    tokens; Anthropic has `anthropic-ratelimit-requests-limit` and so on, with tokens also by input and output. Some
    limits are per day, which nothing in the headers tells: taken as per minute they hold nobody back until nothing
    remains, and then until the reset. What cannot be read, resets further off than `LONGEST_WAIT_S`, and limits of 0
    or less, are left out.
    """
    found: dict[_What, dict[_Field, str]] = {}
    for name, value in headers.items():
        if (known := _LIMITS.get(name.lower())) is not None:
            found.setdefault(known[0], {})[known[1]] = value
    limits = []
    for what, fields in found.items():
        limit, remaining = _count(fields.get("limit")), _count(fields.get("remaining"))
        if (limit is not None and limit <= 0) or (limit is None and remaining is None):
            continue
        reset = fields.get("reset")
        reset_s = None if reset is None else _sensible(_span(reset, headers.get("date")))
        limits.append(RateLimit(what, limit, None if remaining is None else max(0, remaining), reset_s))
    return tuple(limits)


def _count(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _until_reset(headers: Mapping[str, str]) -> float | None:
    spent = (limit.reset_s for limit in rate_limits(headers) if limit.remaining == 0 and limit.reset_s is not None)
    return max(spent, default=None)


def _sensible(wait_s: float | None) -> float | None:
    """A wait in seconds, from 0 on; None where it is none, or too long to be meant."""
    if wait_s is None or not math.isfinite(wait_s) or wait_s > LONGEST_WAIT_S:
        return None
    return max(0.0, wait_s)


def _span(text: str, date: str | None) -> float | None:
    """Seconds in `6m0s`, `120ms` or `7`, or until a moment such as `2026-11-21T09:00:00Z` or `1795251600`.

    Moments are compared with the server's own clock where it tells it.
    """
    text = text.strip()
    parts = _SPAN.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
        if not math.isfinite(seconds) or seconds < _YEAR_S:
            return seconds if math.isfinite(seconds) else None
        when = datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
    except (ValueError, OverflowError, OSError):
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return None
    if when.tzinfo is None:
        return None
    return (when - (_date(date) or datetime.now(UTC))).total_seconds()


def _date(text: str | None) -> datetime | None:
    try:
        when = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)  # "-0000": UTC, source zone unknown


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / per_second
        except ValueError:
            continue
        if (wait := _sensible(seconds)) is not None:
            return wait
    when = _date(headers.get("retry-after"))
    return None if when is None else _sensible((when - datetime.now(UTC)).total_seconds())


def error_class(status: int) -> type[ProviderError]:
    """What an HTTP status means where the SDK has no class of its own for it."""
    match status:
        case 401 | 402 | 403:
            return AuthenticationFailed
        case 408:
            return ProviderTimeout
        case 413:
            return ContextLengthExceeded
        case 429:
            return RateLimited
        case 409:
            return Overloaded
        case 501:
            return RequestRejected
    return Overloaded if status >= 500 else RequestRejected


def unfinished(headers: Mapping[str, str], provider: str) -> ProviderUnavailable:
    """The error for a stream that came to its end while the reply did not; a proxy's page is told by its type."""
    kind = headers.get("content-type", "nothing known")
    text = CUT_OFF if kind.startswith("text/event-stream") else f"{CUT_OFF}: the server answered with {kind}"
    return ProviderUnavailable(text, provider=provider)


def begun_again(provider: str) -> ProviderUnavailable:
    """The error for a stream in which another reply follows a part of one, as gateways do that ask once more."""
    return ProviderUnavailable("the server began the reply again before it was whole", provider=provider)


class ReplyId:
    """The id that the chunks of a reply have in common, for servers that give it one."""

    def __init__(self) -> None:
        self._id: object = None
        self._shared = False

    def is_another(self, chunk_id: object) -> bool:
        """Whether a chunk has an id other than the one that those before it shared."""
        if not chunk_id:
            return False
        if chunk_id == self._id:
            self._shared = True
            return False
        was_shared, self._id, self._shared = self._shared, chunk_id, False
        return was_shared


async def read_out(events: AsyncIterator[object]) -> None:
    """Read what comes after the end of a reply, which lets the connection be used again; it is no part of the reply."""
    with suppress(Exception):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in events:
                pass


def arguments_of(text: str) -> dict[str, Any]:
    """A tool call's arguments as the object that some APIs demand; what is not an object comes back as `text`."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"text": text}
