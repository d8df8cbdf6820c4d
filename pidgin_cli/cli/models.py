"""`models`, `keys` and `config`: what can be asked, and with what."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import ProviderTimeout, SpecError
from pidgin_cli.core.types import Timeouts
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import visible
from pidgin_cli.providers.keys import fault_in, find_key, key_fault, remove_key, store_key
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, missing_key
from pidgin_cli.spec.catalogue import ModelFacts, aliases, facts, known_models, resolve_model
from pidgin_cli.spec.settings import Settings, config_folder, load_settings

__all__ = ["list_keys", "list_models", "remove_keys", "set_key", "show_config"]

ANSWER_S = 30.0
"""So long a server may take to say what it has."""


def list_models(
    query: str | None, provider: str | None, *, everything: bool, remote: bool, loaded: bool, as_json: bool
) -> None:
    """Print the models that fit, with what is known of each.

    Without a query: those with a short name. `remote` asks the provider what it serves; `loaded` asks Ollama what it
    holds in memory.
    """
    if loaded and (query is not None or everything or remote or provider not in (None, "ollama")):
        raise click.UsageError("--loaded tells what Ollama holds in memory, all of it; give only --json beside it.")
    use_person_settings()
    if provider is not None and provider not in PROVIDERS:
        raise SpecError(f"no provider {provider!r}; there are {', '.join(PROVIDERS)}")
    if loaded:
        _list_loaded(as_json=as_json)
        return
    by_model: dict[str, list[str]] = {}
    for alias in aliases():
        by_model.setdefault(resolve_model(alias, PROVIDERS), []).append(alias)
    if remote:
        ids = asyncio.run(_remote(provider))
    elif query is None and provider is None and not everything:
        ids = list(by_model)
    else:
        ids = list(dict.fromkeys([*by_model, *known_models()]))
    if provider is not None:
        ids = [model for model in ids if model.partition(":")[0] == provider]
    if query is not None:
        wanted = query.lower()
        ids = [m for m in ids if wanted in m.lower() or any(wanted in a for a in by_model.get(m, ()))]
    found = [facts(model) for model in ids]
    keys = {name: _has_key(name) for name in {_provider_of(fact) for fact in found}}
    if as_json:
        rows = [
            msgspec.to_builtins(fact) | {"aliases": by_model.get(fact.id, []), "key": keys[_provider_of(fact)]}
            for fact in found
        ]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    if not found:
        raise SpecError("no model fits; see all with: pidgin models --all (any PROVIDER:MODEL is taken as it is)")
    _print_models(found, by_model, keys)


def _has_key(provider: str) -> bool | None:
    """Whether a provider's key is there; None where none is needed."""
    info = PROVIDERS[provider]
    if find_key(info) is not None:
        return True
    return None if missing_key(info) is None else False


def _provider_of(fact: ModelFacts) -> str:
    return fact.id.partition(":")[0]


def _print_models(
    found: Iterable[ModelFacts], by_model: Mapping[str, list[str]], keys: Mapping[str, bool | None]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("short", no_wrap=True)
    for column in ("context", "$/M in", "$/M out"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("thinks", "key"):
        table.add_column(column, no_wrap=True)
    for fact in found:
        key = keys[_provider_of(fact)]
        table.add_row(
            visible(fact.id),
            ", ".join(by_model.get(fact.id, ())),
            "?" if fact.context is None else f"{fact.context:,}",
            *(_price(price) for price in (fact.input_price, fact.output_price)),
            {True: "yes", False: "no", None: "?"}[fact.thinks],
            {True: Text("✓", "green"), False: Text("missing", "yellow"), None: Text("-", "dim")}[key],
        )
    make_console().print(table)


def _price(price: float | None) -> str:
    return "?" if price is None else f"{price:g}"


async def _remote(provider: str | None) -> list[str]:
    if provider is None:
        raise SpecError("--remote asks one provider: name it with --provider")
    info = PROVIDERS[provider]
    if (fault := key_fault(info)) is not None:
        raise SpecError(f"{provider} {fault}")
    pool = ProviderPool()
    try:
        adapter: Any = pool.adapter(f"{provider}:any", Timeouts())
        if not hasattr(adapter, "served_models"):
            raise SpecError(f"{provider} cannot be asked what it serves")
        async with _in_time(provider):
            return [f"{info.name}:{name}" for name in await adapter.served_models()]
    finally:
        await pool.aclose()


@asynccontextmanager
async def _in_time(provider: str) -> AsyncIterator[None]:
    """Raises ProviderTimeout when the block takes longer than `ANSWER_S`."""
    try:
        async with asyncio.timeout(ANSWER_S):
            yield
    except TimeoutError:
        raise ProviderTimeout(f"{provider} did not answer within {ANSWER_S:g} s", provider=provider) from None


def _list_loaded(*, as_json: bool) -> None:
    from pidgin_cli.providers.residency import LoadedModel, loaded_models

    async def ask() -> list[LoadedModel]:
        async with _in_time("ollama"):
            return await loaded_models()

    found = asyncio.run(ask())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    if not found:
        click.echo("Ollama holds no model in memory")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "memory", "of it on the GPU", "until"):
        table.add_column(column, no_wrap=True)
    for model in found:
        share = "?" if model.vram_share is None else f"{model.vram_share:.0%}"
        size = f"{model.size_bytes / 1e9:.1f} GB"
        until = "?" if model.expires_at is None else f"{model.expires_at.astimezone():%H:%M:%S}"
        table.add_row(visible(model.name), size, share, until)
    make_console().print(table)


# Keys


def _variable(provider: str) -> str:
    use_person_settings()
    if provider not in PROVIDERS:
        with_keys = ", ".join(name for name, known in PROVIDERS.items() if known.key_env)
        raise SpecError(f"no provider {provider!r}; there are {with_keys}")
    info = PROVIDERS[provider]
    if not info.key_env:
        raise SpecError(f"{provider} needs no key")
    return info.key_env[0]


def set_key(provider: str) -> None:
    """Ask for a key (or read it from a pipe) and keep it in the keyring."""
    variable = _variable(provider)
    if sys.stdin.isatty():
        value = click.prompt(f"{variable}", hide_input=True, default="", show_default=False)
    else:
        value = sys.stdin.readline()
    value = value.strip()
    if not value:
        raise SpecError("no key was given; nothing has changed")
    if (fault := fault_in(value)) is not None:
        raise SpecError(f"this is no key: it has {fault}; nothing has changed")
    store_key(variable, value)
    click.echo(f"kept as {variable} in the keyring")


def list_keys(*, as_json: bool) -> None:
    """Print which keys are there, and where; never the keys."""
    use_person_settings()
    rows = []
    for info in PROVIDERS.values():
        if not info.key_env:
            continue
        found = find_key(info)
        variable, source = found or (info.key_env[0], None)
        rows.append({"provider": info.name, "variable": variable, "source": source})
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    for row in rows:
        click.echo(f"{row['provider']:<12} {row['variable']:<22} {row['source'] or '-'}")


def remove_keys(provider: str) -> None:
    """Forget a provider's key."""
    variable = _variable(provider)
    click.echo(f"removed {variable}" if remove_key(variable) else f"the keyring holds no {variable}")


# Settings


def show_config(*, as_json: bool) -> None:
    """Print where the settings are and what they say."""
    settings: Settings = load_settings()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([settings.model_dump(mode="json")]), indent=2))
        return
    path = config_folder() / "config.toml"
    click.echo(f"{path}{'' if path.exists() else ' (not there yet)'}")
    if path.exists():
        click.echo(path.read_text(encoding="utf-8").rstrip())
