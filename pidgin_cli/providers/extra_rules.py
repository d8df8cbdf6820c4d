"""What an agent's `extra` may not say, because the record would be wrong about what was sent.

`extra` goes to the provider beside everything else and wins over it. So it may say what Pidgin has no word for, but
neither what Pidgin sends itself nor what a setting says. The rules hold for the adapters that come with Pidgin; what
`extra` means to another one is for that one to say. Words count whatever their case and underscores: some APIs take
`topP` and `top_p` alike.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from pidgin_cli.core.types import AgentSettings

__all__ = ["refused_words", "without"]

_OWN: dict[str, str | None] = {
    "model": "model",
    "system": "system_prompt",
    "systeminstruction": "system_prompt",
    "instructions": "system_prompt",
    "messages": None,
    "contents": None,
    "input": None,
    "prompt": None,
    "stream": None,
    "streamoptions": None,
}
"""Words that are sent with every request, in one API or another, and the key of an agent for them, if there is one."""

_DRAWS = frozenset({"n", "bestof", "candidatecount"})
"""How many replies a request is for."""

_LENGTH, _THINKING = ("max_tokens",), ("think", "think_budget", "effort")
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "topp": ("top_p",),
    "maxtokens": _LENGTH,
    "maxcompletiontokens": _LENGTH,
    "maxoutputtokens": _LENGTH,
    "maxnewtokens": _LENGTH,
    "numpredict": _LENGTH,
    "stop": ("stop",),
    "stopsequences": ("stop",),
    "seed": ("seed",),
    "randomseed": ("seed",),
    "think": _THINKING,
    "thinking": _THINKING,
    "enablethinking": _THINKING,
    "thinkingconfig": _THINKING,
    "thinkingbudget": _THINKING,
    "reasoning": _THINKING,
    "reasoningeffort": _THINKING,
    "outputconfig": ("effort",),
}
"""Words that some server has for a setting: not beside that setting."""


class _Api(NamedTuple):
    """What one adapter sends."""

    settings: Mapping[str, str]
    """Its own words for settings: never in `extra`."""
    own: frozenset[str] = frozenset()
    """More that it sends itself, or that would bring in words that the record does not have."""
    inside: Mapping[str, Mapping[str, str]] = {}
    """Its mappings within the request, with the words for settings in them."""
    merged: frozenset[str] = frozenset()
    """Those that it takes apart, and which therefore have to be mappings."""


_SAMPLING = {"temperature": "temperature", "topp": "top_p"}
_GEMINI = _SAMPLING | {"maxoutputtokens": "max_tokens", "stopsequences": "stop", "seed": "seed"}
_OLLAMA = _SAMPLING | {"numpredict": "max_tokens", "stop": "stop", "seed": "seed"}
_GEMINI_THINKING = {"thinkingbudget": "think_budget", "thinkinglevel": "effort"}

_APIS: dict[str, _Api] = {
    "openai": _Api(
        _SAMPLING | {"maxtokens": "max_tokens", "stop": "stop", "seed": "seed", "reasoningeffort": "effort"}
    ),
    "responses": _Api(
        _SAMPLING | {"maxoutputtokens": "max_tokens"},
        frozenset({"store", "background", "previousresponseid", "conversation"}),
        {"reasoning": {"effort": "effort"}},
    ),
    "anthropic": _Api(
        _SAMPLING | {"maxtokens": "max_tokens", "stopsequences": "stop"},
        inside={"outputconfig": {"effort": "effort"}, "thinking": {"budgettokens": "think_budget"}},
    ),
    "google": _Api(
        _GEMINI,
        frozenset({"cachedcontent"}),
        {"generationconfig": _GEMINI, "thinkingconfig": _GEMINI_THINKING},
        frozenset({"generationconfig"}),
    ),
    "ollama": _Api(_OLLAMA, inside={"options": _OLLAMA}, merged=frozenset({"options"})),
}
"""By the module of the adapter, in this package."""


def refused_words(adapter: str, settings: AgentSettings) -> dict[str, str]:
    """The words of `extra` that may not stand there, as `extra.word` or `extra.word.word`, each with the reason.

    Args:
        adapter: `module:class` of the one that sends them.
    """
    package, _, module = adapter.partition(":")[0].rpartition(".")
    api = _APIS.get(module) if package == __package__ else None
    if api is None or not settings.extra:
        return {}
    given = {name for name in AgentSettings.__struct_fields__ if getattr(settings, name) is not None}
    return {f"extra.{path}": reason for path, reason in _refused(api, settings.extra, given, api.settings)}


def _refused(
    api: _Api, words: Mapping[str, Any], given: Collection[str], settings: Mapping[str, str], path: str = ""
) -> Iterator[tuple[str, str]]:
    """`words` and what stands inside them; `path` ends in a dot and leads there."""
    for word, value in words.items():
        plain = str(word).replace("_", "").lower()
        where = f"{path}{word}"
        if (key := settings.get(plain)) is not None:
            yield where, f"extra cannot say {where}; the key {key} does"
        elif not path and (plain in _OWN or plain in api.own):
            key = _OWN.get(plain)
            yield (
                where,
                f"extra cannot say {where}, which Pidgin sends itself" + (f"; the key {key} does" if key else ""),
            )
        elif plain in _DRAWS:
            if type(value) is not int or value != 1:
                yield where, f"extra cannot say {where}, because a request is for one reply"
        elif taken := [name for name in _SPELLINGS.get(plain, ()) if name in given]:
            yield where, f"extra cannot say {where} beside the key {taken[0]}"
        elif (inside := api.inside.get(plain)) is not None:
            if isinstance(value, Mapping):
                yield from _refused(api, value, given, inside, f"{where}.")
            elif plain in api.merged:
                yield where, f"extra.{where} has to be a mapping"


def without(settings: AgentSettings, names: Collection[str]) -> AgentSettings:
    """The settings without those of these names; `extra.word.word` is a word within `extra`."""
    whole = {name: None for name in names if name in AgentSettings.__struct_fields__}
    paths = [tuple(name.split(".")[1:]) for name in names if name.startswith("extra.")]
    if paths and "extra" not in whole:
        return replace(settings, **whole, extra=_without(settings.extra or {}, paths) or None)
    return replace(settings, **whole)


def _without(words: Mapping[str, Any], paths: Collection[tuple[str, ...]]) -> dict[str, Any]:
    kept = {}
    for word, value in words.items():
        inner = [path[1:] for path in paths if path[0] == str(word)]
        if not inner:
            kept[word] = value
        elif () not in inner and (rest := _without(value, inner)):
            kept[word] = rest
    return kept
