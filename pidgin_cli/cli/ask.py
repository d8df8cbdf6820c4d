"""`ask` and `cache`: one question, and the replies and vectors that are kept."""

import asyncio
import sys
from dataclasses import asdict
from typing import Any

import click
import msgspec
from rich.text import Text

from pidgin_cli.conversation.dialogue import (
    CompleteEvent,
    Dialogue,
    ErrorEvent,
    RestartEvent,
    ThinkingEvent,
    TokenEvent,
    check_settings,
)
from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import APIErrorEvent, Event, RateLimitEvent
from pidgin_cli.core.types import AgentSettings, FinishReason, Timeouts
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.monitor.chat import cost_text
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import Wrapper, visible
from pidgin_cli.providers.cache import CacheFile, ResponseCache
from pidgin_cli.providers.embeddings import VectorCache
from pidgin_cli.providers.keys import key_fault
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, split_model
from pidgin_cli.spec.catalogue import resolve_model

from .chat import prepare_ollama, read_prompt

__all__ = ["ask", "clear_cache", "prune_cache", "show_cache"]

ENDED = {
    FinishReason.LENGTH: "cut at the token limit",
    FinishReason.REFUSAL: "refused by the model",
    FinishReason.CONTENT_FILTER: "stopped by the provider's filter",
    FinishReason.TOOL_CALLS: "ended with the call of a tool",
    FinishReason.UNKNOWN: "ended for an unknown reason",
}
"""What is said of an answer that the model did not end by itself."""


def ask(prompt: str, options: dict[str, Any]) -> int:
    """Ask one model one question and print the answer as it comes. Gives the exit status."""
    if options["show_thinking"] and options["as_json"]:
        raise click.UsageError("--json prints every thought anyway; leave --show-thinking out.")
    use_person_settings()
    model_id = resolve_model(options["model"], PROVIDERS)
    info, name = split_model(model_id)
    if (fault := key_fault(info)) is not None:
        raise SpecError(f"{model_id} {fault}")
    if info.name == "local":
        from pidgin_cli.providers.local import check_model

        check_model(name)
    settings = AgentSettings(
        temperature=options["temperature"], max_tokens=options["max_tokens"], think=True if options["think"] else None
    )
    check_settings(model_id, settings)
    return asyncio.run(_ask(read_prompt(prompt), model_id, settings, options))


async def _ask(prompt: str, model_id: str, settings: AgentSettings, options: dict[str, Any]) -> int:
    console = make_console()
    bare = options["as_json"] or not console.is_terminal
    aside = make_console(stderr=True)
    pool = ProviderPool()
    begun: Wrapper | None = None
    """What stands on the terminal's last line is its."""

    def wrapper(style: str) -> Wrapper:
        def write(piece: str) -> None:
            console.print(Text(piece, style), end="", soft_wrap=True)

        return Wrapper(write, min(console.width, 100))

    answer, thinking = wrapper(""), wrapper("dim")

    def show(text: str, on: Wrapper) -> None:
        nonlocal begun
        if begun is not on:
            end_line()
        on.feed(visible(text))
        begun = on

    def end_line() -> None:
        nonlocal begun
        if begun is not None:
            begun.close()
            console.print()
        begun = None

    def report(event: Event) -> None:
        if isinstance(event, RateLimitEvent) and event.reason == "limit":
            click.echo(f"waiting for {event.provider}: {visible(event.message)}", err=True)
        elif isinstance(event, RateLimitEvent | APIErrorEvent) and event.wait_s is not None:
            end_line()
            click.echo(f"{visible(event.message)}; trying again in {event.wait_s:.1f} s", err=True)

    status = 0
    dialogue = Dialogue(
        model_id, system=options["system"], settings=settings, cache=options["cache"], pool=pool, report=report
    )
    async with dialogue:
        await prepare_ollama(OutputRoot(None), pool, [model_id], Timeouts(), consent=options["yes"])
        async for event in dialogue.process_stream(prompt):
            if isinstance(event, CompleteEvent) and _withheld(event):
                status = 1
            if options["as_json"]:
                click.echo(msgspec.json.encode(asdict(event)))
            elif isinstance(event, TokenEvent):
                if not bare:  # in a pipe nothing could be taken back
                    show(event.text, answer)
            elif isinstance(event, ThinkingEvent):
                if options["show_thinking"] and not bare:
                    show(event.text, thinking)
            elif isinstance(event, RestartEvent):
                if not bare:
                    end_line()
                    console.print("the answer broke off and begins again:", style="dim")
            elif isinstance(event, CompleteEvent):
                if bare:
                    if options["show_thinking"] and event.thinking:
                        aside.print(Text(visible(event.thinking), "dim"), soft_wrap=True)
                    sys.stdout.write(event.response if event.response.endswith("\n") else f"{event.response}\n")
                else:
                    show("", answer)  # an empty answer is a line too
                    end_line()
                    console.print(_facts(event), style="dim")
                if (ended := ENDED.get(event.finish_reason)) is not None and (bare or status):
                    sys.stdout.flush()
                    click.echo(
                        f"Error: no answer: {ended}" if status else f"the answer is not whole: {ended}", err=True
                    )
            if isinstance(event, ErrorEvent):
                if not options["as_json"]:
                    end_line()
                    click.echo(f"Error: {event.error}: {visible(event.message)}", err=True)
                return 1
    return status


def _withheld(event: CompleteEvent) -> bool:
    """Whether there is no answer because model or provider would not give one."""
    return not event.response.strip() and event.finish_reason in (FinishReason.REFUSAL, FinishReason.CONTENT_FILTER)


def _facts(event: CompleteEvent) -> str:
    metrics = event.metrics
    facts = [] if metrics.tokens is None else [f"{metrics.tokens:,} tokens"]
    facts.append(cost_text(metrics.cost_usd))
    if metrics.ttft is not None:
        facts.append(f"first token {metrics.ttft:.2f} s")
    if event.from_cache:
        facts.append("from the cache")
    if (ended := ENDED.get(event.finish_reason)) is not None:
        facts.append(ended)
    return " · ".join(facts)


def show_cache(*, as_json: bool) -> None:
    """Print what the caches hold."""
    found = [cache.stats() for cache in _caches(None)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    for stats in found:
        click.echo(f"{stats.path}: {stats.entries:,} {stats.kept}, {stats.bytes / 1e6:.1f} MB")
        if stats.oldest is not None and stats.newest is not None:
            span = (f"{when.astimezone():%Y-%m-%d %H:%M}" for when in (stats.oldest, stats.newest))
            click.echo(f"from {next(span)} to {next(span)}")
        if stats.problem is not None:
            click.echo(f"it cannot be used: {visible(stats.problem)}; start a new one with: pidgin cache clear")


def clear_cache(only: str | None) -> None:
    """Forget all replies and vectors, or only one of the two."""
    _tell_forgotten({cache.kept: cache.clear() for cache in _caches(only)})


def prune_cache(only: str | None, max_mb: float | None, older_than_days: float | None) -> None:
    """Forget replies and vectors, or only one of the two, that are old or too many."""
    if max_mb is None and older_than_days is None:
        raise click.UsageError("Say what may go: --older-than-days N, --max-mb N, or both.")
    _tell_forgotten(
        {
            cache.kept: cache.prune(
                max_bytes=None if max_mb is None else int(max_mb * 1e6),
                older_than_s=None if older_than_days is None else older_than_days * 86400,
            )
            for cache in _caches(only)
        }
    )


def _caches(only: str | None) -> list[CacheFile]:
    return [cache for cache in (ResponseCache(), VectorCache()) if only in (None, cache.kept)]


def _tell_forgotten(gone: dict[str, int]) -> None:
    click.echo(f"forgot {' and '.join(f'{number:,} {kept}' for kept, number in gone.items())}")
