"""What the vendors say their models refuse or ignore, so that it is told before a run and not by its first request.

Only what a vendor's own pages document is here, as they stood in November 2026. Where they give a rule for a family of
versions (Claude from 4.7 on, Grok's models that think), later versions are taken to follow it. A name that no rule
knows is taken with every setting: the endpoint decides. The rules go by names, and so hold wherever a model of that
name is served.
"""

import re

from pidgin_cli.core.types import Agent, AgentSettings

__all__ = [
    "claude_version",
    "default_max_tokens",
    "hides_thinking",
    "refused",
    "thinks_adaptively",
    "without_thinking",
]

MIN_THINK_BUDGET = 1024
"""Tokens: the least that Claude takes."""
MIN_THINKING_TOP_P = 0.95
"""The least that Claude takes while it thinks."""
CLAUDE_DEFAULTS = {"temperature": 1.0, "top_p": 0.99}
"""The only values that Claude takes from 4.7 on."""
MAX_STOPS = 4
"""Texts in `stop` that OpenAI takes."""
GEMINI_BUDGETS = {
    r"^gemini-2\.5-pro": (128, 32_768),
    r"^gemini-2\.5-flash-lite": (512, 24_576),
    r"^gemini-2\.5-flash": (0, 24_576),
}
"""Thinking tokens, least and most."""
GEMINI_DEFAULTS = {"temperature": 1.0, "top_p": 0.95}
"""What Gemini does from 3.6, and Flash-Lite from 3.5 on, whatever it is told."""

_GPT_FIXED = re.compile(r"^(?:o1|o3|o3-mini|o4-mini|gpt-5(?:-mini|-nano)?)(?:-\d{4}-\d\d-\d\d)?$")
"""OpenAI's models that always think."""
_GPT_SWITCHED = re.compile(r"^gpt-5\.[12](?:-\d{4}-\d\d-\d\d)?$")
"""Those that can be told how to sample unless they think."""
_GPT_NO_STOP = re.compile(r"^(?:o3|o4-mini)(?:-\d{4}-\d\d-\d\d)?$")
_GROK_UNGUIDED = re.compile(
    r"^(?:grok-3(?!-mini)|grok-4(?:-\d{4}|-fast|-1-fast)?(?:-(?:non-)?reasoning)?$|grok-4\.20-(?!multi-agent)|grok-code-fast-1)"
)
"""Those of xAI's that think as they see fit, or not at all."""
_GROK_HIDDEN = re.compile(r"^grok-(?:3(?!-mini)|4(?:-\d{4}|-fast|-1-fast)?(?:-(?:non-)?reasoning)?$)")
"""Those that keep it to themselves."""
_CLAUDE_ALWAYS = re.compile(r"claude-(?:fable|mythos)-[5-9]")
"""Claude's families that always think; so does Opus from 5.5 on."""


def refused(provider: str, model: str, agent: Agent, *, thinks: bool | None) -> dict[str, str]:
    """Settings of an agent that this model's API answers with an error or ignores, each with the reason.

    Args:
        provider: its name in the registry.
        model: the provider's own name of the model.
        thinks: whether it is known to think; None: not known.
    """
    match provider:
        case "anthropic" if "claude" in model:
            return _claude(model, agent.settings)
        case "openai":
            return _gpt(model, agent.settings)
        case "xai":
            return _grok(model, agent, thinks=thinks)
        case "google":
            return _gemini(model, agent.settings)
    return {}


def hides_thinking(provider: str, settings: AgentSettings) -> str | None:
    """Why a vendor's own API does not return what a model thinks under these settings; None: as far as known, it does.

    Without the text there is nothing to show to a partner.
    """
    asked = settings.think or settings.think_budget is not None
    match provider:
        case "anthropic" | "google" if not asked:
            return f"{provider} models show what they think only when asked to think: set think"
        case "openai" if not (asked or settings.effort is not None):
            return "openai models show what they think only when asked to think: set think or effort"
        case "openai" if settings.stop is not None or settings.seed is not None:
            return "openai models do not show what they think beside stop or seed"
    return None


# Claude


def claude_version(model: str) -> tuple[int, int] | None:
    """(4, 6) of `claude-opus-4-6` or `claude-4-6-opus`; a date is not a version."""
    found = re.search(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)", model)
    return (int(found[1]), int(found[2] or 0)) if found else None


def thinks_adaptively(model: str) -> bool:
    """Whether the model takes `adaptive`: Claude from 4.6 on; later ones refuse a budget. Without a number: new."""
    version = claude_version(model)
    return "claude" in model if version is None else version >= (4, 6)


def without_thinking(model: str) -> str | None:
    """The type of `thinking` that tells a model of Claude's not to think; None: it always thinks."""
    version = claude_version(model) or (0, 0)
    if _CLAUDE_ALWAYS.search(model) or ("opus" in model and version >= (5, 5)):
        return None
    # It still notes down what it does between two calls of tools, but no thoughts before it answers.
    return "between_tools" if "sonnet" in model and version >= (5, 5) else "disabled"


def default_max_tokens(model: str) -> int:
    """The most that `model` may write, or less where that is not sure: the API wants a limit, but none too high."""
    version = claude_version(model)
    if version is None:
        return 64_000 if "claude" in model else 8192
    if version >= (5, 0) or ("opus" in model and version >= (4, 6)):
        return 128_000
    if version < (3, 7):
        return 4096 if version < (3, 5) else 8192
    return 32_000 if version < (4, 5) and "opus" in model else 64_000


def _refuses_sampling(model: str) -> bool:
    """Whether the model samples in its own way only: Claude from 4.7 on."""
    return (claude_version(model) or (0, 0)) >= (4, 7)


def _claude(model: str, settings: AgentSettings) -> dict[str, str]:
    found = {}
    thinking = settings.think or settings.think_budget is not None
    if settings.think is False and without_thinking(model) is None:
        found["think"] = f"{model} cannot be told not to think; effort says how much"
    if _refuses_sampling(model):
        for name, only in CLAUDE_DEFAULTS.items():
            if getattr(settings, name) not in (None, only):
                found[name] = f"{model} takes no {name} but {only:g}"
        if settings.temperature is not None and settings.top_p is not None:
            found["top_p"] = f"{model} takes no top_p beside a temperature"
        if settings.think_budget is not None:
            found["think_budget"] = f"{model} decides itself how much it thinks, guided by effort"
        return found
    if settings.temperature is not None and settings.temperature > 1:
        found["temperature"] = f"anthropic models take a temperature of at most 1, not {settings.temperature:g}"
    elif settings.temperature not in (None, 1) and thinking:
        found["temperature"] = f"{model} takes no temperature but 1 while it thinks"
    if settings.top_p is not None and settings.top_p < MIN_THINKING_TOP_P and thinking:
        found["top_p"] = f"{model} takes no top_p below {MIN_THINKING_TOP_P} while it thinks"
    limit = settings.max_tokens if settings.max_tokens is not None else default_max_tokens(model)
    if settings.think_budget is not None:
        if settings.think_budget < MIN_THINK_BUDGET:
            found["think_budget"] = f"anthropic models take a think_budget from {MIN_THINK_BUDGET} on"
        elif settings.think_budget >= limit:
            found["think_budget"] = f"think_budget has to be below max_tokens, which is {limit}"
    if thinking and limit <= MIN_THINK_BUDGET and not thinks_adaptively(model):
        found["think"] = f"to think, {model} needs max_tokens above {MIN_THINK_BUDGET}, not {limit}"
    return found


# The others


def _gpt(model: str, settings: AgentSettings) -> dict[str, str]:
    found = {}
    thinking = settings.think or settings.effort not in (None, "none")
    if _GPT_FIXED.match(model):
        if settings.think is False:
            found["think"] = f"{model} cannot be told not to think"
        if settings.effort == "none":
            found["effort"] = f"{model} takes no effort of none"
    for name in ("temperature", "top_p"):
        if getattr(settings, name) in (None, 1):
            continue
        if _GPT_FIXED.match(model):
            found[name] = f"{model} takes no {name} but 1"
        elif _GPT_SWITCHED.match(model) and thinking:
            found[name] = f"{model} takes no {name} while it thinks"
    if settings.stop is not None and model.startswith(("gpt-", "o1", "o3", "o4", "chatgpt")):
        if _GPT_NO_STOP.match(model):
            found["stop"] = f"{model} takes no stop"
        elif len(settings.stop) > MAX_STOPS and not model.startswith("gpt-oss"):
            found["stop"] = f"openai models take at most {MAX_STOPS} texts in stop, not {len(settings.stop)}"
    return found


def _grok(model: str, agent: Agent, *, thinks: bool | None) -> dict[str, str]:
    found = {}
    settings = agent.settings
    if _GROK_UNGUIDED.match(model):
        for name in ("think", "effort"):
            if getattr(settings, name) is not None:
                found[name] = f"{model} cannot be told how much to think"
    if agent.thinking_visible == "partner" and _GROK_HIDDEN.match(model):
        found["thinking_visible"] = f"{model} keeps what it thinks to itself"
    if settings.stop is not None and thinks:
        found["stop"] = f"{model} takes no stop, because it thinks"
    return found


def _gemini(model: str, settings: AgentSettings) -> dict[str, str]:
    found = {}
    named = re.match(r"^gemini-(\d+)(?:\.(\d+))?", model)
    version = (int(named[1]), int(named[2] or 0)) if named else (0, 0)
    if version >= (3, 6) or (version >= (3, 5) and "flash-lite" in model):
        # Worse than an error: whoever compares temperatures would compare nothing.
        for name, only in GEMINI_DEFAULTS.items():
            if getattr(settings, name) not in (None, only):
                found[name] = f"{model} ignores {name}"
    if settings.think is False and (version >= (3, 0) or model.startswith("gemini-2.5-pro")):
        found["think"] = f"{model} cannot be told not to think"
    budget = settings.think_budget
    if budget is None:
        return found
    if settings.effort is not None:
        found["think_budget"] = "google models take effort or think_budget, not both"
        return found
    for pattern, (least, most) in GEMINI_BUDGETS.items():
        if re.match(pattern, model):
            if not least <= budget <= most:
                found["think_budget"] = f"{model} takes a think_budget from {least} to {most}"
            break
    return found
