"""Which providers there are, and how to open one without importing the others' SDKs."""

import asyncio
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import ModelRequest, Timeouts

from .base import Provider
from .replay import ReadRecording, ReplayProvider
from .wrappers import Limited, Limiter, Retrying, RetryPolicy, Timed

__all__ = ["PROVIDERS", "ProviderInfo", "ProviderPool", "at_home", "effective_parameters", "missing_key", "split_model"]


class ProviderInfo(NamedTuple):
    """What is known about a provider before its adapter is loaded."""

    name: str
    adapter: str
    """`module:class`, loaded on first use."""
    system_placement: str
    """How a system prompt reaches the model."""
    sdk: str | None = None
    """The distribution that the adapter needs."""
    key_env: tuple[str, ...] = ()
    """Environment variables of which one has to be set; the first is the one to recommend."""
    base_url_env: str | None = None
    home: str | None = None
    """Host of the vendor's own API; elsewhere a key may be left out."""
    thinks: bool = True


PROVIDERS: dict[str, ProviderInfo] = {
    info.name: info
    for info in (
        ProviderInfo(
            "anthropic",
            "pidgin_cli.providers.anthropic:AnthropicProvider",
            "system parameter",
            sdk="anthropic",
            key_env=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
            base_url_env="ANTHROPIC_BASE_URL",
            home="api.anthropic.com",
        ),
        ProviderInfo(
            "openai",
            "pidgin_cli.providers.openai:OpenAIProvider",
            "system message",
            sdk="openai",
            key_env=("OPENAI_API_KEY",),
            base_url_env="OPENAI_BASE_URL",
            home="api.openai.com",
        ),
        ProviderInfo(
            "ollama",
            "pidgin_cli.providers.ollama:OllamaProvider",
            "system message",
            sdk="ollama",
            base_url_env="OLLAMA_HOST",
        ),
        ProviderInfo("local", "pidgin_cli.providers.local:LocalProvider", "request field"),
        ProviderInfo("replay", "pidgin_cli.providers.replay:ReplayProvider", "request field"),
    )
}


def split_model(model_id: str) -> tuple[ProviderInfo, str]:
    """The provider of `provider:model`, and the model's own name. Raises SpecError for an unknown provider."""
    provider, colon, model = model_id.partition(":")
    if not colon or not model or provider not in PROVIDERS:
        raise SpecError(f"{model_id!r} is not provider:model with a provider out of {', '.join(PROVIDERS)}")
    return PROVIDERS[provider], model


def missing_key(info: ProviderInfo) -> str | None:
    """The environment variable that has to be set before this provider can be asked, or None when all is there.

    A base URL that leads away from the vendor needs no key: local servers rarely have one.
    """
    if not info.key_env or any(os.environ.get(name) for name in info.key_env):
        return None
    return info.key_env[0] if at_home(info) else None


class ProviderPool:
    """The providers of one process: one adapter and one limit for each, shared by all its conversations."""

    def __init__(self, read_recording: ReadRecording | None = None) -> None:
        """`read_recording` serves `replay:` models."""
        self._read_recording = read_recording
        self._adapters: dict[tuple[str, Timeouts], Provider] = {}
        self._limiters: dict[str, Limiter] = {}

    async def warm_up(self, models: Iterable[str]) -> None:
        """Import the SDKs that these models need, in a thread, so that the first request does not wait for them."""
        modules = {split_model(model)[0].adapter.partition(":")[0] for model in models}
        await asyncio.gather(*(asyncio.to_thread(importlib.import_module, module) for module in sorted(modules)))

    def adapter(self, model_id: str, timeouts: Timeouts) -> Provider:
        """The bare adapter for a model."""
        info, _ = split_model(model_id)
        key = (info.name, timeouts)
        if key not in self._adapters:
            self._adapters[key] = self._open(info, timeouts)
        return self._adapters[key]

    def _open(self, info: ProviderInfo, timeouts: Timeouts) -> Provider:
        if info.name == "replay":
            if self._read_recording is None:
                raise SpecError("replay: models need an output folder to read from")
            return ReplayProvider(self._read_recording)
        module, _, name = info.adapter.partition(":")
        make = cast("Callable[[Timeouts], Provider]", getattr(importlib.import_module(module), name))
        return make(timeouts)

    def provider(
        self, model_id: str, timeouts: Timeouts, policy: RetryPolicy, concurrency: int | None = None
    ) -> Provider:
        """The adapter for a model within its wrappers."""
        info, _ = split_model(model_id)
        found: Provider = Timed(self.adapter(model_id, timeouts), timeouts, info.name)
        if concurrency is not None:
            limiter = self._limiters.get(info.name)
            if limiter is None:
                limiter = self._limiters[info.name] = Limiter(concurrency)
            found = Limited(found, limiter)
        return Retrying(found, policy)

    async def aclose(self) -> None:
        """Close every connection."""
        adapters, self._adapters = self._adapters, {}
        for adapter in adapters.values():
            await adapter.aclose()


def effective_parameters(adapter: Provider, request: ModelRequest) -> dict[str, Any]:
    """What is really sent besides the text. Adapters that add or change something say so themselves."""
    own = getattr(adapter, "effective_parameters", None)
    if own is not None:
        found: dict[str, Any] = own(request)
        return found
    settings: dict[str, Any] = msgspec.to_builtins(request.settings)
    return settings


def at_home(info: ProviderInfo) -> bool:
    """Whether requests go to the vendor's own API, so that its prices hold."""
    base_url = os.environ.get(info.base_url_env or "")
    if not base_url or info.home is None:
        return True
    try:
        return urlsplit(base_url).hostname == info.home
    except ValueError:  # not a URL at all; the adapter says so
        return False
