"""Which model a word means, what it costs and how much it reads.

Prices and context windows come from `genai-prices`, which carries its data with it; only aliases are our own.
"""

import difflib
from collections.abc import Collection
from functools import cache
from importlib.metadata import version
from pathlib import Path

import yaml

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Usage

__all__ = ["aliases", "context_window", "cost_usd", "known_models", "price_source", "resolve_model"]

FREE = frozenset({"local", "ollama", "replay"})
"""Providers whose models run on the person's own machine."""


@cache
def aliases() -> dict[str, str]:
    """Short names of models."""
    text = (Path(__file__).parent / "aliases.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(text)
    return found


def resolve_model(wanted: str, providers: Collection[str]) -> str:
    """`provider:model` for an alias or an id. Any model name of a known provider is taken.

    Raises:
        SpecError: an unknown alias or provider; the text shows the nearest known ids.
    """
    wanted = wanted.strip()
    if wanted in aliases():
        return aliases()[wanted]
    provider, colon, model = wanted.partition(":")
    if colon and provider in providers:
        if model:
            return wanted
        raise SpecError(f"{wanted!r} names no model; write {provider}:MODEL, such as {_nearest(wanted, providers)[0]}")
    near = _nearest(wanted, providers)
    what = f"unknown provider {provider!r} in {wanted!r}" if colon else f"unknown model {wanted!r}"
    raise SpecError(f"{what}; the nearest are {', '.join(near)} (or any PROVIDER:MODEL with {', '.join(providers)})")


def _nearest(wanted: str, providers: Collection[str]) -> list[str]:
    ids = [*aliases(), *(model for model in known_models() if model.partition(":")[0] in providers)]
    by_name = {model.partition(":")[2] or model: model for model in reversed(ids)}
    near = difflib.get_close_matches(wanted.rpartition(":")[2], by_name, n=4, cutoff=0.5)
    found = [by_name[name] for name in near]
    provider = difflib.get_close_matches(wanted.partition(":")[0], providers, n=1)
    if provider:
        fitting = [model for model in ids if model.startswith(f"{provider[0]}:")]
        found = [*difflib.get_close_matches(wanted, fitting, n=2, cutoff=0.3), *found] or fitting[:2]
    return list(dict.fromkeys(found))[:4] or list(aliases())[:4]


@cache
def known_models() -> tuple[str, ...]:
    """The ids that genai-prices knows, with our provider names, and the local ones."""
    from genai_prices.data_snapshot import get_snapshot

    found = [
        f"{provider.id}:{model.id}"
        for provider in get_snapshot().providers
        if provider.id in ("anthropic", "openai")
        for model in provider.models
        if not getattr(model, "deprecated", None)
    ]
    return ("local:test", "local:silent", *found)


def cost_usd(model_id: str, usage: Usage) -> float | None:
    """What a reply cost in USD; None when the price or the usage is not known. Local models cost nothing."""
    provider, _, model = model_id.partition(":")
    if provider in FREE:
        return 0.0
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        price = calc_price(
            PricedUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                cache_read_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
            ),
            model,
            provider_id=provider,
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


@cache
def context_window(model_id: str) -> int | None:
    """Tokens a model reads, prompt and reply together; None when not known."""
    provider, _, model = model_id.partition(":")
    if provider in FREE:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return found.context_window


def price_source() -> str:
    """The package and version that prices come from, to stand beside every cost."""
    return f"genai-prices {version('genai-prices')}"
