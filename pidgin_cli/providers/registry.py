"""Which providers there are, and how to open one without importing the others' SDKs."""

import asyncio
import importlib
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Agent, AgentSettings, ModelRequest, Timeouts

from .base import Provider
from .extra_rules import refused_words
from .limits import Limited, Limiter, Wait
from .model_rules import hides_thinking, refused
from .replay import ReadRecording, ReplayProvider
from .wrappers import Retrying, RetryPolicy, Timed

if TYPE_CHECKING:
    from .cache import ResponseCache
    from .residency import Residency

__all__ = [
    "BUILT_IN",
    "INSIDE",
    "PROVIDERS",
    "ProviderInfo",
    "ProviderPool",
    "add_provider",
    "address",
    "at_home",
    "effective_parameters",
    "endpoint",
    "late_system",
    "load_plugins",
    "missing_key",
    "needs_responses",
    "served_window",
    "split_model",
    "unsupported",
]


SETTINGS = frozenset(AgentSettings.__struct_fields__)


class ProviderInfo(NamedTuple):
    """What is known about a provider before its adapter is loaded."""

    name: str
    adapter: str
    """`module:class`, loaded on first use."""
    system_placement: str
    """How a system prompt reaches the model."""
    sdk: str | None = None
    """The distribution that the adapter needs."""
    base_url: str | None = None
    """Where requests go unless `base_url_env` says otherwise."""
    base_url_env: str | None = None
    key_env: tuple[str, ...] = ()
    """Environment variables of which one has to be set; the first is the one to recommend."""
    home: str | None = None
    """Host of the vendor's own API, where its prices hold and a key is needed; None: a server of the person's own."""
    takes: frozenset[str] = SETTINGS
    """Names of the settings that its API has something for."""
    seed_name: str = "seed"
    """What chat completions call the seed here."""
    asked_for_usage: bool = True
    """Whether chat completions count tokens only when a request says so. False: they always do, and refuse the word."""
    keeps_thinking: bool = False
    """Whether a model can be given back what it thought in earlier turns."""
    late_system: Literal["message", "parameter", "user"] = "parameter"
    """The strongest place that its API has for instructions in the middle of a conversation. `message`: a system
    message right there. `parameter`: only behind the system prompt, from then on. `user`: none but user text."""
    prompt_cache_s: float | None = None
    """So long its cache keeps the beginning of a prompt that is not asked for again; None: none, or not known."""
    max_concurrency: int | None = None
    """Requests under way at once; this and the next two from the person's settings. None: found out while running."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def _compatible(
    name: str, base_url: str, *, hosted: bool = True, late_system: Literal["message", "parameter"] = "parameter"
) -> ProviderInfo:
    """A server that speaks OpenAI's chat completions."""
    prefix = name.upper()
    return ProviderInfo(
        name,
        "pidgin_cli.providers.openai:OpenAIProvider",
        "system message",
        sdk="openai",
        base_url=base_url,
        base_url_env=f"{prefix}_BASE_URL",
        key_env=(f"{prefix}_API_KEY",),
        home=urlsplit(base_url).hostname if hosted else None,
        takes=SETTINGS - {"think_budget"},
        late_system=late_system,
    )


PROVIDERS: dict[str, ProviderInfo] = {
    info.name: info
    for info in (
        ProviderInfo(
            "anthropic",
            "pidgin_cli.providers.anthropic:AnthropicProvider",
            "system parameter",
            sdk="anthropic",
            base_url="https://api.anthropic.com",
            base_url_env="ANTHROPIC_BASE_URL",
            key_env=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
            home="api.anthropic.com",
            takes=SETTINGS - {"seed"},
            keeps_thinking=True,
            prompt_cache_s=300.0,
        ),
        # Elsewhere a model's own chat template decides, and many refuse a system message that is not the first.
        _compatible("openai", "https://api.openai.com/v1", late_system="message")._replace(prompt_cache_s=300.0),
        ProviderInfo(
            "google",
            "pidgin_cli.providers.google:GoogleProvider",
            "system parameter",
            sdk="google-genai",
            base_url="https://generativelanguage.googleapis.com",
            base_url_env="GOOGLE_GEMINI_BASE_URL",
            key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            home="generativelanguage.googleapis.com",
            keeps_thinking=True,
        ),
        _compatible("xai", "https://api.x.ai/v1", late_system="message"),
        ProviderInfo(
            "ollama",
            "pidgin_cli.providers.ollama:OllamaProvider",
            "system message",
            sdk="ollama",
            base_url="http://127.0.0.1:11434",
            base_url_env="OLLAMA_HOST",
            takes=SETTINGS - {"think_budget"},
            keeps_thinking=True,
        ),
        _compatible("openrouter", "https://openrouter.ai/api/v1"),
        _compatible("groq", "https://api.groq.com/openai/v1"),
        _compatible("together", "https://api.together.xyz/v1"),
        _compatible("deepseek", "https://api.deepseek.com"),
        _compatible("mistral", "https://api.mistral.ai/v1")._replace(seed_name="random_seed", asked_for_usage=False),
        _compatible("vllm", "http://127.0.0.1:8000/v1", hosted=False),
        _compatible("llamacpp", "http://127.0.0.1:8080/v1", hosted=False),
        _compatible("lmstudio", "http://127.0.0.1:1234/v1", hosted=False),
        ProviderInfo("local", "pidgin_cli.providers.local:LocalProvider", "request field"),
        ProviderInfo("replay", "pidgin_cli.providers.replay:ReplayProvider", "request field"),
    )
}
"""Every provider by name. Endpoints of the person's settings and third-party providers join it: see `add_provider`."""

BUILT_IN = frozenset(PROVIDERS)
"""Those that come with Pidgin, whose names nothing else may take."""
INSIDE = frozenset({"local", "replay"})
"""Providers in this very process, which take every setting."""


RESPONSES = "pidgin_cli.providers.responses:ResponsesProvider"

_RESPONSES_ONLY = re.compile(
    r"(?:gpt|o\d)\b.*-(?:pro|codex|deep-research|cyber|rosalind|daybreak|astra-law)\b|codex-mini|computer-use"
)


def add_provider(info: ProviderInfo) -> None:
    """Make a provider known, or change where a known one is reached.

    Raises:
        SpecError: the name cannot stand in a model id, or it would replace a built-in adapter.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", info.name):
        raise SpecError(f"{info.name!r} cannot name a provider: lower-case letters, digits and hyphens, at most 40")
    if info.name in BUILT_IN and info.adapter != PROVIDERS[info.name].adapter:
        raise SpecError(f"there is a provider {info.name!r} already; choose another name")
    PROVIDERS[info.name] = info


def endpoint(name: str, base_url: str, api_key_env: str | None = None) -> ProviderInfo:
    """A server that speaks OpenAI's chat completions, under a name of the person's own."""
    return ProviderInfo(
        name,
        "pidgin_cli.providers.openai:OpenAIProvider",
        "system message",
        sdk="openai",
        base_url=base_url,
        key_env=(api_key_env,) if api_key_env else (),
        takes=SETTINGS - {"think_budget"},
    )


def load_plugins() -> dict[str, str]:
    """Add the providers that installed packages offer under the entry-point group `pidgin.providers`.

    Returns:
        The package that brings each provider, by the provider's name.

    Raises:
        SpecError: one of them cannot be loaded, is not a `ProviderInfo`, or its name is taken.
    """
    brought: dict[str, str] = {}
    for point in entry_points(group="pidgin.providers"):
        package = point.dist.name if point.dist is not None else point.value
        try:
            info = point.load()
        except Exception as error:  # whatever code by others raises
            raise SpecError(
                f"the package {package} cannot be loaded ({type(error).__name__}: {error}); update or remove it"
            ) from None
        if not isinstance(info, ProviderInfo):
            raise SpecError(f"the package {package} gives no ProviderInfo as {point.name!r}; update or remove it")
        other = "Pidgin itself" if info.name in BUILT_IN else brought.get(info.name)
        if other is not None:
            raise SpecError(
                f"the package {package} brings a provider {info.name!r}, which {other} has already; remove the package"
            )
        add_provider(info)
        brought[info.name] = package
    return brought


def address(info: ProviderInfo) -> str | None:
    """Where requests go: the environment, else the settings, else the vendor."""
    return os.environ.get(info.base_url_env or "") or info.base_url


def split_model(model_id: str) -> tuple[ProviderInfo, str]:
    """The provider of `provider:model`, and the model's own name. Raises SpecError for an unknown provider."""
    provider, colon, model = model_id.partition(":")
    if not colon or not model or provider not in PROVIDERS:
        raise SpecError(f"{model_id!r} is not provider:model with a provider out of {', '.join(PROVIDERS)}")
    return PROVIDERS[provider], model


def late_system(model_id: str) -> Literal["message", "parameter", "user"]:
    """Where a model can be given instructions in the middle of a conversation; see `ProviderInfo.late_system`."""
    info = PROVIDERS.get(model_id.partition(":")[0])
    return "parameter" if info is None else info.late_system


def unsupported(info: ProviderInfo, agent: Agent, *, thinks: bool | None) -> dict[str, str]:
    """Settings of an agent that cannot have their effect, each with the reason.

    Words of `extra` that may not stand there are `extra.word`; see `extra_rules`.

    Args:
        thinks: whether the model is known to think; None: not known, the endpoint decides.
    """
    found = {}
    takes = info.takes
    if _adapter(info, split_model(agent.model)[1]) != info.adapter:
        takes -= {"stop", "seed"}  # the Responses API has neither
    for name in sorted(SETTINGS - takes):
        if getattr(agent.settings, name) is not None:
            found[name] = f"{info.name} models take no {name.replace('_', ' ')}"
    if thinks is False:
        for name in ("think", "think_budget", "effort"):
            if getattr(agent.settings, name):
                found[name] = f"{agent.model} does not think"
    hidden: str | None = None
    if agent.thinking_visible == "own" and not info.keeps_thinking and info.name not in INSIDE:
        hidden = f"{info.name} models cannot be given back what they thought"
    elif agent.thinking_visible != "nobody" and thinks is False:
        hidden = f"{agent.model} does not think"
    elif agent.thinking_visible == "partner" and at_home(info):
        hidden = hides_thinking(info.name, agent.settings)
    if hidden is not None:
        found["thinking_visible"] = hidden
    model = split_model(agent.model)[1]
    words = refused_words(_adapter(info, model, agent.settings), agent.settings)
    return refused(info.name, model, agent, thinks=thinks) | found | words


def missing_key(info: ProviderInfo) -> str | None:
    """The environment variable that has to be set before this provider can be asked, or None when all is there.

    A base URL that leads away from the vendor needs no key: local servers rarely have one. A named endpoint whose
    settings name a variable needs that one.
    """
    if not info.key_env or any(os.environ.get(name) for name in info.key_env):
        return None
    needs = at_home(info) if info.name in BUILT_IN else True
    return info.key_env[0] if needs else None


class ProviderPool:
    """The providers of one process: adapters, limits, cache and local servers, shared by all its conversations."""

    def __init__(self, read_recording: ReadRecording | None = None, cache: "ResponseCache | None" = None) -> None:
        """
        Args:
            read_recording: serves `replay:` models.
            cache: for conversations that want one; None: the one of this user, opened when it is first wanted.
        """
        self._read_recording = read_recording
        self._cache = cache
        self._adapters: dict[tuple[str, Timeouts], Provider] = {}
        self._limiters: dict[tuple[str, str | None, str], Limiter] = {}
        self._residencies: dict[str, Residency] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_end: AsyncGenerator[None] | None = None

    async def move_here(self) -> None:
        """Let go of what belongs to another event loop, and of all that is opened from now on when this one ends."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        left = self._let_go()
        self._limiters = {}
        self._loop, self._loop_end = loop, self._closing_with(loop)
        await anext(self._loop_end)
        await _close(left, in_order=False)

    async def _closing_with(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        """Stays suspended; `asyncio.run` closes every generator that is, when it ends its loop."""
        try:
            yield
        finally:
            if self._loop is loop:
                await _close(self._let_go(), in_order=True)

    async def warm_up(self, models: Iterable[str]) -> None:
        """Import the SDKs that these models need, in a thread, so that the first request does not wait for them."""
        modules = {_adapter(*split_model(model)).partition(":")[0] for model in models}
        await asyncio.gather(*(asyncio.to_thread(_warm_up, module) for module in sorted(modules)))

    @contextmanager
    def running(self, models: Iterable[str]) -> Iterator[None]:
        """While the block runs, a conversation needs these models: local servers unload others before them."""
        by_provider: dict[str, list[str]] = {}
        for model_id in models:
            info, model = split_model(model_id)
            if info.adapter == PROVIDERS["ollama"].adapter:
                by_provider.setdefault(info.name, []).append(model)
        with ExitStack() as stack:
            for name, wanted in by_provider.items():
                stack.enter_context(self.residency(PROVIDERS[name]).running(wanted))
            yield

    def adapter(self, model_id: str, timeouts: Timeouts, settings: AgentSettings | None = None) -> Provider:
        """The bare adapter for a model, asked with these settings."""
        info, model = split_model(model_id)
        path = _adapter(info, model, settings)
        key = (f"{info.name} {path}", timeouts)
        if key not in self._adapters:
            self._adapters[key] = self._open(info, path, timeouts)
        return self._adapters[key]

    def _open(self, info: ProviderInfo, path: str, timeouts: Timeouts) -> Provider:
        if info.name == "replay":
            if self._read_recording is None:
                raise SpecError("replay: models need an output folder to read from")
            return ReplayProvider(self._read_recording)
        module, _, name = path.partition(":")
        make = cast("Callable[[Timeouts, ProviderInfo], Provider]", getattr(importlib.import_module(module), name))
        return make(timeouts, info)

    def provider(
        self,
        model_id: str,
        timeouts: Timeouts,
        policy: RetryPolicy,
        concurrency: int | None = None,
        *,
        wait: Wait | None = None,
        settings: AgentSettings | None = None,
        probe: ModelRequest | None = None,
        draw: tuple[object, ...] | None = None,
    ) -> Provider:
        """The adapter for a model within its wrappers.

        Args:
            concurrency: requests at one time, besides what the person's settings say.
            wait: how a conversation waits for its place under a limit.
            settings: those of the agent, where they decide how its model is asked.
            probe: a request with the settings that count; given, replies are cached.
            draw: what tells this conversation's draws from all others; None: they share their replies.
        """
        info, model = split_model(model_id)
        adapter = self.adapter(model_id, timeouts, settings)
        found: Provider = Timed(adapter, timeouts, info.name)
        if info.adapter == PROVIDERS["ollama"].adapter:
            from .residency import Resident

            found = Resident(found, self.residency(info), policy.report, getattr(adapter, "effective_parameters", None))
        if (limiter := self._limiter(info, model, concurrency)) is not None:
            found = Limited(found, limiter, policy.report, wait)
        found = Retrying(found, policy)
        if probe is not None and info.name != "replay":
            from .cache import Cached

            # What the embedded model says depends on the seed, so its replies are never another seed's.
            seed = (probe.seed,) if info.name == "local" else ()
            found = Cached(
                found,
                self.cache,
                provider=info.name,
                base_url=address(info) or "",
                parameters=effective_parameters(adapter, probe),
                draw=(*seed, *(draw or ())) if seed or draw is not None else None,
            )
        return found

    def _limiter(self, info: ProviderInfo, model: str, concurrency: int | None) -> Limiter | None:
        """The limit of a provider's account and model. Models in this process have one only when it is asked for."""
        caps = [cap for cap in (concurrency, info.max_concurrency) if cap is not None]
        cap = min(caps) if caps else None
        inside = info.base_url is None
        per_minute = (info.requests_per_minute, info.tokens_per_minute)
        if inside and cap is None and per_minute == (None, None):
            return None
        key = (info.name, address(info), "" if inside else model)
        if key not in self._limiters:
            self._limiters[key] = Limiter(
                cap,
                provider=info.name,
                model=model,
                requests_per_minute=info.requests_per_minute,
                tokens_per_minute=info.tokens_per_minute,
                prompt_cache_s=info.prompt_cache_s,
                **({"start": cap} if inside and cap is not None else {}),
            )
        return self._limiters[key]

    @property
    def cache(self) -> "ResponseCache":
        """The response cache; its file is opened on first use."""
        if self._cache is None:
            from .cache import ResponseCache

            self._cache = ResponseCache()
        return self._cache

    def residency(self, info: ProviderInfo) -> "Residency":
        """What a local server holds in memory, as this process manages it."""
        from .residency import Residency

        if info.name not in self._residencies:
            self._residencies[info.name] = Residency(info)
        return self._residencies[info.name]

    async def aclose(self) -> None:
        """Close every connection and the cache."""
        await _close(self._let_go(), in_order=self._loop in (None, asyncio.get_running_loop()))
        if self._loop_end is not None:
            await self._loop_end.aclose()
            self._loop = self._loop_end = None
        if self._cache is not None:
            self._cache.close()

    def _let_go(self) -> "list[Provider | Residency]":
        """All that holds connections; from now on it is opened anew."""
        opened: list[Provider | Residency] = [*self._adapters.values(), *self._residencies.values()]
        self._adapters, self._residencies = {}, {}
        return opened


async def _close(opened: "Iterable[Provider | Residency]", *, in_order: bool) -> None:
    """Close connections. `in_order`: they belong to the running loop; of another one there is nothing to wait for."""
    for each in opened:
        try:
            await each.aclose()
        except RuntimeError:
            if in_order:
                raise


def _warm_up(module: str) -> None:
    """Import an adapter, and let it load what its first request would otherwise wait for."""
    getattr(importlib.import_module(module), "warm_up", lambda: None)()


def _adapter(info: ProviderInfo, model: str, settings: AgentSettings | None = None) -> str:
    """`module:class` of the adapter for one model.

    Some of OpenAI's models are served in the Responses API only, and only there do any of them show what they think.
    It takes no `stop` and no `seed`, so that with those an agent is asked in chat completions all the same.
    """
    if info.name != "openai" or not at_home(info):
        return info.adapter
    settings = settings or AgentSettings()
    shows = (settings.think or settings.effort is not None) and settings.stop is None and settings.seed is None
    return RESPONSES if needs_responses(model) or shows else info.adapter


def needs_responses(model: str) -> bool:
    """Whether OpenAI serves `model` in its Responses API only, going by the families that the name belongs to."""
    return _RESPONSES_ONLY.match(model) is not None


def effective_parameters(adapter: Provider, request: ModelRequest) -> dict[str, Any]:
    """What is really sent besides the text. Adapters that add or change something say so themselves."""
    own = getattr(adapter, "effective_parameters", None)
    if own is not None:
        found: dict[str, Any] = own(request)
        return found
    settings: dict[str, Any] = msgspec.to_builtins(request.settings)
    return settings


async def served_window(adapter: Provider, request: ModelRequest) -> int | None:
    """Tokens of context that `request` will really be given; None: not known.

    That is what it asks for, unless the adapter says otherwise: of some servers the window is part of the request.
    """
    own = getattr(adapter, "served_window", None)
    if own is None:
        return request.context_window
    found: int | None = await own(request)
    return found


def at_home(info: ProviderInfo) -> bool:
    """Whether requests go to the vendor's own API, so that its prices hold."""
    try:
        return info.home is not None and urlsplit(address(info) or "").hostname == info.home
    except ValueError:  # not a URL at all; the adapter says so
        return False
