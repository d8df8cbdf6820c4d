"""The provider seam.

An adapter translates one API and nothing else. Retries, limits and timing are wrappers around it (`wrappers`).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from pidgin_cli.core.events import Event
from pidgin_cli.core.types import Delta, ModelRequest, Timeouts

__all__ = ["Embedded", "Embeds", "Provider", "Report", "Timeouts"]

Report = Callable[[Event], None]
"""Takes a fact to the record of the conversation it belongs to."""


class Provider(Protocol):
    """Something that can be asked for a reply.

    `stream_response` yields the reply in pieces as they arrive and ends with exactly one `Finish`, unless it raises.
    It raises only subclasses of `core.errors.ProviderError`, and stops the request when it is closed or cancelled.
    An adapter serves any number of requests at once and keeps nothing between them but its connections.
    """

    def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]: ...

    async def aclose(self) -> None:
        """Close the connections. The provider is not used afterwards."""


class Embedded(NamedTuple):
    """What an embedding model made of some texts."""

    vectors: Sequence[Sequence[float]]
    """One for each text, in their order."""
    tokens: int | None = None
    """Input tokens as the provider counts them; None: not reported."""


@runtime_checkable
class Embeds(Protocol):
    """What an adapter has besides, whose API has embedding models."""

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """One vector for each of `texts`, none of which is blank, in one request.

        Raises only subclasses of `core.errors.ProviderError`. A text that is too long is an error, never cut.
        """
