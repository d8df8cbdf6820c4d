"""A provider for Pidgin: `echo:again` says again what it was told last, `echo:loud` in capitals."""

from collections.abc import AsyncIterator, Callable

from pidgin_cli.core.errors import RequestRejected
from pidgin_cli.core.types import Delta, Finish, ModelRequest, TextDelta, Timeouts, Usage, UsageDelta
from pidgin_cli.providers.registry import ProviderInfo

INFO = ProviderInfo(name="echo", adapter="pidgin_echo:EchoProvider", system_placement="not sent")
"""What the entry point gives: enough to list the provider. The adapter is imported when a model is first asked."""

MODELS: dict[str, Callable[[str], str]] = {"again": str, "loud": str.upper}


class EchoProvider:
    """One adapter serves all conversations of a process, many at once, and keeps nothing between requests."""

    def __init__(self, timeouts: Timeouts, info: ProviderInfo) -> None:
        self._timeouts = timeouts  # `connect_s` is for adapters that connect; Pidgin watches over the others
        self._name = info.name

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """Yield the pieces of a reply as they arrive, and `Finish` last.

        A failure is one of the `ProviderError`s of `pidgin_cli.core.errors`; its class decides whether Pidgin tries
        again. Waiting, time-outs, retries, limits and the record are Pidgin's own business.
        """
        change = MODELS.get(request.model)
        if change is None:
            raise RequestRejected(f"no model {request.model!r}; there are {', '.join(MODELS)}", provider=self._name)
        words = change(request.messages[-1].content).split()
        for number, word in enumerate(words):
            yield TextDelta(f" {word}" if number else word)
        read = sum(len(message.content.split()) for message in request.messages)
        yield UsageDelta(Usage(prompt_tokens=read, completion_tokens=len(words)))
        yield Finish(model=request.model)

    async def aclose(self) -> None:
        """Close connections, where there are any."""
