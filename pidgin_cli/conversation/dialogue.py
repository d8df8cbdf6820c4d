"""One model, one prompt: the small public face of everything that asks models.

dialogue = Dialogue("claude", cache=True)
async for event in dialogue.process_stream("Why is the sky blue?"):
    match event:
        case TokenEvent(text=text): print(text, end="")
        case ThinkingEvent(text=text): print(f"({text})")
        case RestartEvent(why=why): print(f"\\n[begins again: {why}]")
        case CompleteEvent(metrics=metrics): print(metrics.tokens)
        case ErrorEvent(message=message): print(message)
await dialogue.aclose()
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from msgspec.structs import replace

from pidgin_cli.core.errors import ProviderError, ProviderUnavailable, SpecError
from pidgin_cli.core.events import Event
from pidgin_cli.core.types import (
    Agent,
    AgentSettings,
    FinishReason,
    Message,
    ModelRequest,
    ResponseFold,
    Retries,
    Role,
    TextDelta,
    ThinkingDelta,
    Timeouts,
)
from pidgin_cli.providers.base import Provider, Report
from pidgin_cli.providers.cache import Cached, ResponseCache
from pidgin_cli.providers.keys import fetch_key
from pidgin_cli.providers.registry import (
    PROVIDERS,
    ProviderPool,
    address,
    at_home,
    effective_parameters,
    served_window,
    split_model,
    unsupported,
)
from pidgin_cli.providers.wrappers import RetryPolicy
from pidgin_cli.spec.catalogue import context_window, cost_usd, resolve_model, thinks

from .setup import ensure_person_settings

__all__ = [
    "CompleteEvent",
    "Dialogue",
    "DialogueEvent",
    "DialogueMetrics",
    "ErrorEvent",
    "RestartEvent",
    "ThinkingEvent",
    "TokenEvent",
    "check_settings",
]


@dataclass(frozen=True)
class DialogueMetrics:
    """Of one reply. Times in seconds; None: not known."""

    ttft: float | None
    """Request to first piece."""
    total_time: float
    """Request to last byte, retries included."""
    tokens: int | None
    """Of the reply, as the provider counted them."""
    tokens_per_second: float | None
    cost_usd: float | None


@dataclass(frozen=True)
class TokenEvent:
    """A piece of the reply, as it arrives."""

    text: str
    type: Literal["token"] = "token"


@dataclass(frozen=True)
class ThinkingEvent:
    """A piece of what the model thinks, as it arrives; the whole is in `CompleteEvent.thinking`."""

    text: str
    type: Literal["thinking"] = "thinking"


@dataclass(frozen=True)
class RestartEvent:
    """The reply broke off and is asked for again: the tokens and thoughts so far are void."""

    why: str
    type: Literal["restart"] = "restart"


@dataclass(frozen=True)
class CompleteEvent:
    """The reply as far as it goes. The last event, unless an error is."""

    response: str
    from_cache: bool
    metrics: DialogueMetrics
    thinking: str = ""
    finish_reason: FinishReason = FinishReason.STOP
    """Why the model stopped: `stop` is a whole reply, `length` one that was cut; refused and filtered ones may be
    empty."""
    type: Literal["complete"] = "complete"


@dataclass(frozen=True)
class ErrorEvent:
    """There will be no reply; `error` is the class of `core.errors`. Tokens that came before are void."""

    error: str
    message: str
    type: Literal["error"] = "error"


DialogueEvent = TokenEvent | ThinkingEvent | RestartEvent | CompleteEvent | ErrorEvent


def check_settings(model_id: str, settings: AgentSettings) -> None:
    """Raise SpecError that names, one to a line, the settings that cannot have their effect with this model."""
    agent = Agent(id="a", model=model_id, name="a", settings=settings)
    reasons = unsupported(split_model(model_id)[0], agent, thinks=thinks(model_id)).values()
    if reasons:
        raise SpecError("\n".join(f"{reason}; leave it out" for reason in reasons))


class Dialogue:
    """Asks models single questions, with retries, time-outs and, if wanted, the response cache.

    It may be used in one event loop after another, as with several `asyncio.run`; each opens connections of its own.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        system: str | None = None,
        settings: AgentSettings | None = None,
        cache: bool | ResponseCache = False,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        pool: ProviderPool | None = None,
        report: Report | None = None,
    ) -> None:
        """
        Args:
            model: an alias or `provider:model`; may also be given with each prompt.
            cache: answer equal requests from the cache, which all processes of this user share.
            pool: providers that are set up already; None: those of this process, with the person's `config.toml`,
                plug-ins and keyring, which are read with the first question.
            report: is given each failed request as an event, before the wait for the next attempt.
        """
        self._model = model
        self._system = system
        self._settings = settings or AgentSettings()
        self._cache = cache if isinstance(cache, ResponseCache) else ResponseCache() if cache else None
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._pool = pool or ProviderPool()
        self._set_up = pool is not None
        self._report = report or _unrecorded

    async def process_stream(self, prompt: str, model: str | None = None) -> AsyncIterator[DialogueEvent]:
        """Ask, and yield tokens, then one `CompleteEvent` or `ErrorEvent`.

        A reply that breaks off is asked for again; a `RestartEvent` stands between the attempts.

        Raises:
            SpecError: no model, an unknown one, or a setting that it does not take; or, without a pool, the person's
                settings or a plug-in are wrong.
        """
        await self._pool.move_here()
        if not self._set_up:
            await asyncio.to_thread(ensure_person_settings)
        model_id = resolve_model(model or self._model or "", PROVIDERS)
        check_settings(model_id, self._settings)
        if not self._set_up:
            await asyncio.to_thread(fetch_key, split_model(model_id)[0])
        await self._pool.warm_up([model_id])
        request = ModelRequest(
            model=split_model(model_id)[1],
            messages=(Message(role=Role.USER, content=prompt),),
            system=self._system,
            settings=self._settings,
            context_window=context_window(model_id),
            agent_id="a",
        )
        adapter = self._pool.adapter(model_id, self._timeouts, self._settings)
        request = replace(request, context_window=await served_window(adapter, request))
        policy = RetryPolicy(self._retries, split_model(model_id)[0].name, self._report, asyncio.sleep)
        provider = self._provider(model_id, request, policy)
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            fold = ResponseFold()
            try:
                async with aclosing(provider.stream_response(request)) as deltas:  # type: ignore[type-var]
                    async for delta in deltas:
                        fold.add(delta)
                        if isinstance(delta, TextDelta):
                            yield TokenEvent(delta.text)
                        elif isinstance(delta, ThinkingDelta) and delta.text:
                            yield ThinkingEvent(delta.text)
                if fold.finish is None:
                    raise ProviderUnavailable("the stream ended before the reply was whole", attempt=request.attempt)
                break
            except ProviderError as error:
                broken = error
            try:
                if not fold.started:
                    raise broken  # `Retrying` has done what it could
                await policy.wait(broken, replace(request, attempt=broken.attempt))
            except ProviderError as error:
                yield ErrorEvent(type(error).__name__, str(error))
                return
            yield RestartEvent(str(broken))
            request = replace(request, attempt=broken.attempt + 1)
        yield self._complete(model_id, fold, clock() - began)

    def _provider(self, model_id: str, request: ModelRequest, policy: RetryPolicy) -> Provider:
        info, _ = split_model(model_id)
        provider = self._pool.provider(model_id, self._timeouts, policy, settings=self._settings)
        if self._cache is None:
            return provider
        adapter = self._pool.adapter(model_id, self._timeouts, self._settings)
        return Cached(
            provider,
            self._cache,
            provider=info.name,
            base_url=address(info) or "",
            parameters=effective_parameters(adapter, request),
            draw=None,
        )

    def _complete(self, model_id: str, fold: ResponseFold, took_s: float) -> CompleteEvent:
        response = fold.response()
        timing = response.finish.timing
        cached = response.finish.cached
        home = at_home(split_model(model_id)[0])
        return CompleteEvent(
            response=response.message.content,
            from_cache=cached,
            metrics=DialogueMetrics(
                ttft=None if timing is None or timing.ttft_ms is None else timing.ttft_ms / 1000,
                total_time=took_s,
                tokens=response.usage.completion_tokens,
                tokens_per_second=None if timing is None else timing.tokens_per_s,
                cost_usd=0.0 if cached else cost_usd(model_id, response.usage, at_home=home),
            ),
            thinking="\n\n".join(block.text for block in response.message.thinking if block.text),
            finish_reason=response.finish.reason,
        )

    async def process(self, prompt: str, model: str | None = None) -> CompleteEvent:
        """Ask, and return the reply; `finish_reason` says whether it is whole.

        Raises:
            SpecError: no model, an unknown one, or a setting that it does not take.
            ProviderError: the model could not be asked, or did not answer whole.
        """
        async with aclosing(self.process_stream(prompt, model)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, CompleteEvent):
                    return event
                if isinstance(event, ErrorEvent):
                    raise _error(event)
        raise AssertionError("unreachable: every stream ends with one of the two")

    def cache_stats(self) -> Mapping[str, Any]:
        """What the cache holds and what came from it; empty without a cache."""
        if self._cache is None:
            return {}
        stats = self._cache.stats()
        return {name: getattr(stats, name) for name in stats.__struct_fields__}

    def memory_stats(self) -> Mapping[str, int]:
        """Memory in bytes: of this process, and free on this machine."""
        from pidgin_cli.providers.machine import memory

        used, available = memory()
        return {"process_bytes": used, "available_bytes": available}

    async def aclose(self) -> None:
        """Close connections and cache."""
        await self._pool.aclose()
        if self._cache is not None:
            self._cache.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _unrecorded(_: Event) -> None:
    """A single question has no record to report to."""


def _error(event: ErrorEvent) -> ProviderError:
    from pidgin_cli.core import errors

    kind = getattr(errors, event.error, ProviderError)
    return kind(event.message) if issubclass(kind, ProviderError) else ProviderError(event.message)
