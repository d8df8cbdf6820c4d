"""What the flags about agents mean: those of `app.agent_flags`, for every command that has them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import clean_text
from pidgin_cli.spec.errors import nearest
from pidgin_cli.spec.schema import AgentSpec
from pidgin_cli.spec.values import read_value

__all__ = ["agents_of", "checked_text"]

PER_AGENT = {
    "temperature_of": ("--temp-", "temperature"),
    "top_p_of": ("--top-p-", "top_p"),
    "max_tokens_of": ("--max-tokens-", "max_tokens"),
    "stop_of": ("--stop-", "stop"),
    "awareness_of": ("--awareness-", "awareness"),
    "think_of": ("--think-", "think"),
    "think_budget_of": ("--think-budget-", "think_budget"),
    "effort_of": ("--effort-", "effort"),
    "thinking_visible_of": ("--thinking-visible-", "thinking_visible"),
}
"""Parameter: how its flag begins, and the key of `AgentSpec` that it sets."""


def agents_of(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The agents that the flags describe, as a spec holds them.

    Raises:
        UsageError, BadParameter: they contradict each other or name an agent that there is not.
        SpecError: a text is empty or not UTF-8.
    """
    models = _models(options)
    more = _assignments(options["assignments"])
    flags = [(flag, key, options[name]) for name, (flag, key) in PER_AGENT.items()]
    given = [(f"{flag}{agent_id}", agent_id) for flag, _, values in flags for agent_id in values]
    given += [(f"--set {agent_id}.{key}", agent_id) for agent_id, keys in more.items() for key in keys]
    for flag, agent_id in given:
        if agent_id not in models:
            raise click.UsageError(f"{flag}: there is no agent {agent_id!r}, only {', '.join(models)}.")
        if agent_id == "b" and options["meditation"]:
            raise click.UsageError(f"{flag}: with --meditation agent b is silence, which takes no settings.")
    for flag, key, values in flags:
        for agent_id in values:
            if key in more.get(agent_id, ()):
                raise click.UsageError(f"{flag}{agent_id} and --set {agent_id}.{key} say the same; leave one out.")
    phrase = options["stop_phrase"]
    if phrase is not None:
        phrase = checked_text("--stop-phrase", phrase, least=1)
    agents: list[dict[str, Any]] = []
    for agent_id, model in models.items():
        if agent_id == "b" and options["meditation"]:
            agents.append({"id": agent_id, "model": model})
            continue
        agent = {
            "id": agent_id,
            "model": checked_text(f"the model of agent {agent_id}", model),
            "awareness": options["awareness"],
            "temperature": options["temperature"],
            "top_p": options["top_p"],
            "max_tokens": options["max_tokens"],
            "stop": list(options["stop"]) or None,
            "think": True if options["think"] else None,
            # With --think-ID given, a budget belongs to those agents only.
            "think_budget": None if options["think_of"] and not options["think"] else options["think_budget"],
            "effort": options["effort"],
            "thinking_visible": options["thinking_visible"],
            "stop_phrase": phrase,
        }
        if agent_id in options["think_of"]:
            agent |= {"think": True, "think_budget": options["think_budget"]}
        agent |= {key: values[agent_id] for _, key, values in flags if key != "think" and agent_id in values}
        temperature = agent["temperature"]
        if temperature is not None and not 0 <= temperature <= 2:
            raise click.BadParameter(f"{temperature:g} is not between 0 and 2.", param_hint=f"--temp-{agent_id}")
        agents.append(agent | more.get(agent_id, {}))
    return agents


def _models(options: Mapping[str, Any]) -> dict[str, str]:
    models: dict[str, str] = {"a": options["agent_a"], "b": options["agent_b"]}
    if options["meditation"]:
        if models["b"] is not None:
            raise click.UsageError("--meditation faces agent a with silence; leave -b out.")
        models["b"] = "local:silent"
    for text in options["agents"]:
        agent_id, equals, model = text.partition("=")
        if not equals or not model:
            raise click.BadParameter(f"{text!r} is not ID=MODEL, such as c=gpt.", param_hint="--agent")
        if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", agent_id):
            raise click.BadParameter(
                f"{agent_id!r} cannot be an id: a small letter, then small letters or digits, such as c=gpt.",
                param_hint="--agent",
            )
        if models.get(agent_id) is not None:
            raise click.BadParameter(f"there is an agent {agent_id!r} already.", param_hint="--agent")
        models[agent_id] = model
    for agent_id, flag in (("a", "-a"), ("b", "-b")):
        if models[agent_id] is None:
            hint = "" if agent_id == "a" else " For self-play, name the same model twice."
            raise click.UsageError(f"Who talks? Give {flag} MODEL, such as {flag} local:test or {flag} claude.{hint}")
    return models


def _assignments(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `--set ID.KEY=VALUE` gives each agent; `extra.NAME` goes into its `extra`."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        match = re.fullmatch(r"([a-z][a-z0-9]{0,15})\.([a-z_]+)((?:\.[^.=]+)*)=(.*)", text, re.DOTALL)
        if match is None:
            raise click.BadParameter(f"{text!r} is not ID.KEY=VALUE, such as a.seed=7.", param_hint="--set")
        agent_id, key, inner, value = match.groups()
        if key in ("id", "model"):
            raise click.BadParameter(f"{key} is said with -a, -b or --agent.", param_hint="--set")
        if key not in AgentSpec.model_fields:
            hint = nearest(key, AgentSpec.model_fields)
            raise click.BadParameter(f"agents have no {key!r}.{hint}", param_hint="--set")
        if inner and key != "extra":
            raise click.BadParameter(f"{key} has no parts; only extra has.", param_hint="--set")
        keys = found.setdefault(agent_id, {})
        path = [key, *inner.split(".")[1:]]
        for name in path[:-1]:
            keys = keys.setdefault(name, {})
            if not isinstance(keys, dict):
                raise click.BadParameter(f"{text!r} and another say different things.", param_hint="--set")
        if path[-1] in keys:
            raise click.BadParameter(f"{agent_id}.{'.'.join(path)} is given twice.", param_hint="--set")
        try:
            keys[path[-1]] = read_value(checked_text("--set", value))
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not YAML: {error}", param_hint="--set") from None
    return found


def checked_text(flag: str, text: str, *, least: int = 0, most: int | None = None) -> str:
    """The text of a flag. Raises SpecError where it is not UTF-8, or too short or too long."""
    if clean_text(text)[1]:
        raise SpecError(f"{flag} holds bytes that are not UTF-8; give it in UTF-8")
    if len(text) < least:
        raise SpecError(f"{flag} is empty; give it a text or leave it out")
    if most is not None and len(text) > most:
        raise SpecError(f"{flag} takes at most {most} characters, not {len(text)}; shorten it")
    return text
