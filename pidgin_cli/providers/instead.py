"""The JSON with which a server answers in place of a stream, under a status that says that all is well.

The SDKs read such a body as a stream in which nothing happens. What they read is kept here, so that the provider's own
words are not lost; the type alone does not tell, for some gateways call everything JSON, streams as well.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

__all__ = ["keep_json", "kept_json"]

MOST_BYTES = 64 * 1024
"""As they come over the line. An error is shorter than that."""


class _Kept(httpx2.AsyncByteStream):
    """Hands on what it reads, and keeps it unless it is too long."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner
        self.body = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            if len(self.body) <= MOST_BYTES:
                self.body += part
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def keep_json(response: httpx2.Response) -> None:
    """Keep the body of `response` while it is read, if its headers call it JSON. To be called before it is read."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if is_json and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Kept(response.stream)


def kept_json(response: httpx2.Response) -> Mapping[str, Any]:
    """The JSON object that has been read; empty when it was none, was longer than `MOST_BYTES`, or none was kept."""
    if not isinstance(response.stream, _Kept) or len(response.stream.body) > MOST_BYTES:
        return {}
    try:
        # With its headers, for it may be compressed.
        found = json.loads(httpx2.Response(200, headers=response.headers, content=response.stream.body).content)
    except (ValueError, RecursionError, httpx2.DecodingError):
        return {}
    return found if isinstance(found, dict) else {}
