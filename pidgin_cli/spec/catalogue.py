"""Which model a word means, what it costs, how much it reads, and whether it thinks.

Prices and context windows come from `genai-prices`, which carries its data with it. Our own are only the aliases and
what that package does not say (`models.yaml`); the person's settings outrank both.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Usage

from .settings import ModelSettings, Settings

__all__ = [
    "FREE",
    "ModelFacts",
    "aliases",
    "context_window",
    "cost_usd",
    "facts",
    "known_models",
    "price_source",
    "resolve_model",
    "same_model",
    "use_settings",
]

FREE = frozenset({"local", "ollama", "replay"})
"""Providers whose models run on the person's own machine."""
CACHE_WRITES = {"anthropic": 1.25}
"""What input tokens cost that are written to a provider's cache, as a multiple of others, where nothing says better."""
PRICED_AS = {"xai": "x-ai"}
"""Our names of providers where genai-prices has another."""
LISTED = ("anthropic", "openai", "google", "xai", "openrouter", "groq", "together", "deepseek", "mistral")
"""Providers of which genai-prices knows models."""

_settings = Settings()


class ModelFacts(Struct, frozen=True):
    """What is known about a model before it is asked. None: not known. Prices in USD per million tokens."""

    id: str
    context: int | None = None
    input_price: float | None = None
    output_price: float | None = None
    cached_price: float | None = None
    thinks: bool | None = None


def use_settings(settings: Settings) -> None:
    """Let a person's aliases, windows and prices count from now on."""
    global _settings
    _settings = settings
    context_window.cache_clear()


@cache
def _own() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))
    return found


def aliases() -> dict[str, str]:
    """Short names of models: ours, then the person's own."""
    found: dict[str, str] = _own()["aliases"]
    return found | _settings.aliases


def resolve_model(wanted: str, providers: Collection[str]) -> str:
    """`provider:model` for an alias or an id. Any model name of a known provider is taken.

    Raises:
        SpecError: an unknown alias or provider; the text shows the nearest known ids.
    """
    wanted = wanted.strip()
    if not wanted:
        raise SpecError(f"no model is named; write one such as {', '.join(list(aliases())[:4])}, or PROVIDER:MODEL")
    seen = set()
    while wanted in aliases() and wanted not in seen:  # a person's alias may name another one
        seen.add(wanted)
        wanted = aliases()[wanted].strip()
    provider, colon, model = wanted.partition(":")
    if colon and provider in providers:
        if model:
            return wanted
        raise SpecError(f"{wanted!r} names no model; write {provider}:MODEL, such as {_nearest(wanted, providers)[0]}")
    what = f"unknown provider {provider!r} in {wanted!r}" if colon else f"unknown model {wanted!r}"
    if colon and not difflib.get_close_matches(provider, providers, n=1):
        raise SpecError(f"{what}; the providers are {', '.join(providers)}")
    near = _nearest(wanted, providers)
    verb = "are" if len(near) > 1 else "is"
    raise SpecError(f"{what}; the nearest {verb} {', '.join(near)} (or any PROVIDER:MODEL with {', '.join(providers)})")


def _nearest(wanted: str, providers: Collection[str]) -> list[str]:
    ids = [*aliases(), *(model for model in known_models() if model.partition(":")[0] in providers)]
    by_name = {model.partition(":")[2] or model: model for model in reversed(ids)}
    near = difflib.get_close_matches(wanted.rpartition(":")[2], by_name, n=4, cutoff=0.5)
    found = [by_name[name] for name in near]
    provider = difflib.get_close_matches(wanted.partition(":")[0], providers, n=1)
    if provider:
        fitting = [model for model in ids if model.startswith(f"{provider[0]}:")]
        if not fitting and (name := wanted.partition(":")[2]):
            fitting = [f"{provider[0]}:{name}"]  # of a server of the person's own nothing is listed
        found = [*difflib.get_close_matches(wanted, fitting, n=2, cutoff=0.3), *found] or fitting[:2]
    return list(dict.fromkeys(found))[:4] or list(aliases())[:4]


@cache
def known_models() -> tuple[str, ...]:
    """The ids of the models that are listed somewhere, deprecated ones aside."""
    from genai_prices.data_snapshot import get_snapshot

    ours = {PRICED_AS.get(name, name): name for name in LISTED}
    found = [
        f"{ours[provider.id]}:{model.id}"
        for provider in get_snapshot().providers
        if provider.id in ours
        for model in provider.models
        if not getattr(model, "deprecated", None)
    ]
    return ("local:test", "local:silent", *found)


def _listed(model_id: str) -> Any:
    """The entry in genai-prices, or None."""
    from genai_prices.data_snapshot import get_snapshot

    provider, _, model = model_id.partition(":")
    if provider not in LISTED:
        return None
    try:
        return get_snapshot().find_provider_model(model, None, PRICED_AS.get(provider, provider), None)[1]
    except LookupError:
        return None


def _override(model_id: str) -> ModelSettings:
    """What the person's settings say of a model; a named endpoint may give its window for all its models."""
    found = _settings.models.get(model_id, ModelSettings())
    endpoint = _settings.endpoints.get(model_id.partition(":")[0])
    if found.context is None and endpoint is not None:
        found = found.model_copy(update={"context": endpoint.context})
    return found


def _base_price(value: object) -> float | None:
    """A price per million tokens; of tiered prices the first tier."""
    if value is None:
        return None
    return float(getattr(value, "base", value))  # type: ignore[arg-type]


def facts(model_id: str) -> ModelFacts:
    """What is known of a model, the person's own settings first."""
    own = _override(model_id)
    listed = _listed(model_id)
    prices = None if listed is None else listed.get_prices(datetime.now(UTC))
    free = model_id.partition(":")[0] in FREE

    def price(mine: float | None, name: str) -> float | None:
        if mine is not None:
            return mine
        return 0.0 if free else _base_price(getattr(prices, name, None))

    return ModelFacts(
        id=model_id,
        context=own.context if own.context is not None else getattr(listed, "context_window", None),
        input_price=price(own.input_price, "input_mtok"),
        output_price=price(own.output_price, "output_mtok"),
        cached_price=price(own.cached_price, "cache_read_mtok"),
        thinks=thinks(model_id),
    )


def thinks(model_id: str) -> bool | None:
    """Whether a model can be asked to think; None: not known, the endpoint decides."""
    provider, _, model = model_id.partition(":")
    rules: Mapping[str, Mapping[str, str]] = _own()["thinking"]
    for answer, pattern in rules.get(provider, {}).items():
        if re.search(pattern, model):
            return str(answer) == "yes"
    return None


_DATE = re.compile(r"[-_.:@ ](?:(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|[01]\d-(?:20)?\d\d)(?!\d)")
_SNAPSHOT = re.compile(r"v?\d{3,6}|preview|exp|beta|free|latest")
_FILE_PARTS = re.compile(
    r"[-_.:@ ](?:gguf|ggml|safetensors|mlx|awq|gptq|fp8|b?f16|f32|int[48]|[48]bit|i?q\d\w*)(?![^-_.:@ ])"
)


@lru_cache(maxsize=1024)  # servers may call themselves anything
def same_model(requested: str, served: str | None) -> bool:
    """Whether the model that served may be the one that was asked for.

    Vendors answer an alias with a dated name (`gpt-x` with `gpt-x-2026-05-01`), gateways turn the words around, local
    servers send a path and how the file is made. So what counts are the words and version numbers of the plain names,
    or that both stand for one entry of the catalogue; what stands for `…-latest` has a number of its own. Another size
    of the family (`gpt-x-mini`) or another number (`gpt-x.1`) is another model.

    Args:
        requested: the id, provider first.
        served: as the provider said; None or empty: it did not.
    """
    provider, _, model = requested.partition(":")
    if not served or provider in ("local", "replay"):
        return True
    one, other = (_words(name) for name in (model, served))
    if model.endswith("-latest"):
        one, other = ([word for word in words if not word.isdecimal()] for words in (one, other))
    if one == other:
        return True
    listed = _listed(requested)
    return listed is not None and listed is _listed(f"{provider}:{served}")


def _words(name: str) -> list[str]:
    """The words and version numbers of a model's name, in the order of the alphabet."""
    words = re.split(r"[-_.:@ ]", _DATE.sub("", _FILE_PARTS.sub("", Path(name).name.lower())))
    return sorted(word for word in words if word and not _SNAPSHOT.fullmatch(word))


def cost_usd(model_id: str, usage: Usage, *, at_home: bool = True) -> float | None:
    """What a reply cost in USD; None when the price or the usage is not known.

    Args:
        at_home: the request went to the vendor's own API, so that the listed prices hold. The person's own prices
            hold anywhere.
    """
    own = _override(model_id)
    if own.input_price is None and model_id.partition(":")[0] in FREE:
        return 0.0
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    if own.input_price is not None and own.output_price is not None:
        cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        cached_price = own.cached_price if own.cached_price is not None else own.input_price
        write_price = own.cache_write_price
        if write_price is None:
            write_price = own.input_price * _cache_write_ratio(model_id) if written else 0.0
        read_cost = (usage.prompt_tokens - cached - written) * own.input_price + cached * cached_price
        return (read_cost + written * write_price + usage.completion_tokens * own.output_price) / 1e6
    return _listed_cost(model_id, usage) if at_home else None


def _cache_write_ratio(model_id: str) -> float:
    """How much more input costs that is written to the cache: as listed, else as the vendor usually has it, else 1."""
    prices = None if (listed := _listed(model_id)) is None else listed.get_prices(datetime.now(UTC))
    fresh, written = (_base_price(getattr(prices, name, None)) for name in ("input_mtok", "cache_write_mtok"))
    if fresh and written is not None:
        return written / fresh
    return CACHE_WRITES.get(model_id.partition(":")[0], 1.0)


def _listed_cost(model_id: str, usage: Usage) -> float | None:
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    provider, _, model = model_id.partition(":")
    try:
        price = calc_price(
            PricedUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                cache_read_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
            ),
            model,
            provider_id=PRICED_AS.get(provider, provider),
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


@cache
def context_window(model_id: str) -> int | None:
    """Tokens a model reads, prompt and reply together; None when not known."""
    return facts(model_id).context


def price_source() -> str:
    """The package and version that prices come from, to stand beside every cost."""
    return f"genai-prices {version('genai-prices')}"
