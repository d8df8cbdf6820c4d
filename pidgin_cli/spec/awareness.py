"""System prompts by preset, and awareness files that put text into a conversation at given turns."""

import difflib
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pidgin_cli.core.errors import SpecError

from .errors import explain, refuse_half_characters, safe_load

__all__ = [
    "PRESETS",
    "Awareness",
    "Seat",
    "addressed",
    "filled",
    "find_preset",
    "load_awareness",
    "preset_text",
    "system_prompt",
    "templates_folder",
]

PRESETS = ("none", "basic", "firm", "research", "backrooms")
ALIASES = {"full": "firm"}


def templates_folder() -> Path:
    """The folder of text templates: inside an installed package, at the top level of a checkout."""
    inside = Path(__file__).parent.parent / "templates"
    return inside if inside.is_dir() else inside.parent.parent / "templates"


class Seat(NamedTuple):
    """What a preset may say about one agent."""

    agent_id: str
    model: str
    name: str


class Awareness(NamedTuple):
    """What one agent is told about its situation."""

    name: str
    """Of the preset or the file, as it is recorded."""
    base: str
    """The preset that the system prompt comes from."""
    prompts: dict[int, dict[str, str]]
    """Turn (0: with the opening) to agent id to text."""
    placement: Literal["user", "system"] = "user"
    """How the texts are sent: as tagged user text, or as the provider's family places system text."""


class _AwarenessFile(BaseModel):
    """An awareness YAML."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    base: str = Field("none", description="Preset that the system prompt comes from")
    prompts: dict[int, dict[str, str]] = Field(default_factory=dict, description="Texts by turn and agent")
    placement: Literal["user", "system"] = Field("user", description="How the texts are sent")


def preset_text(preset: str) -> str:
    """The text of a preset as it stands in its file, with `$` fields not yet filled in."""
    return (templates_folder() / "awareness" / f"{preset}.txt").read_text(encoding="utf-8").strip()


def load_awareness(value: str, agents: Sequence[Seat], *, serves: str | None = None) -> tuple[Awareness, list[str]]:
    """A preset or an awareness file, checked against the agents there are, and notices about what it passes over.

    Args:
        value: name of a preset, or path of a YAML file.
        serves: the one agent that a file given as `--awareness-<id>` speaks to; None: all of them.

    Raises:
        SpecError: no such preset or file, a bad file, or an agent id that nobody has.
    """
    preset = find_preset(value)
    if preset is not None:
        return Awareness(value, preset, {}), []
    path = Path(value)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        near = difflib.get_close_matches(value, [*PRESETS, *ALIASES], n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise SpecError(f"no awareness preset {value!r}{hint} Presets: {', '.join(PRESETS)}; or give a YAML file")
    text, data = _read(path)
    try:
        file = _AwarenessFile.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, str(path), text, _AwarenessFile)) from None
    refuse_half_characters(file.model_dump(), str(path))
    faults = []
    base = find_preset(file.base)
    if base is None:
        faults.append(f"{path}: base: no preset {file.base!r}; presets: {', '.join(PRESETS)}")
    prompts, notices, wrong = addressed(file.prompts, [seat.agent_id for seat in agents], serves, path.name)
    faults += [f"{path}: {fault}" for fault in wrong]
    if faults:
        raise SpecError("\n".join(faults))
    assert base is not None, "or it is a fault"
    return Awareness(file.name or path.stem, base, prompts, file.placement), notices


def addressed(
    prompts: Mapping[int, Mapping[str, str]], ids: Sequence[str], serves: str | None, source: str
) -> tuple[dict[int, dict[str, str]], list[str], list[str]]:
    """Texts by turn and the ids of those they are for, out of texts for `both`, `all`, `b` or `agent_b`.

    Args:
        serves: the one agent whose texts count; None: all.
        source: what notices call the place that the texts are from.

    Returns:
        The texts; notices about those that are passed over; faults.
    """
    found: dict[int, dict[str, str]] = {}
    notices = []
    faults = []
    for turn, texts in prompts.items():
        if turn < 0:
            faults.append(f"prompts: turn {turn} is below 0 (0 is the opening, turns count from 1)")
        for key, text in texts.items():
            who = key.removeprefix("agent_") if key.removeprefix("agent_") in ids else key
            if who not in ("both", "all", *ids):
                faults.append(f"prompts: turn {turn}: no agent {key!r}; there are both, {', '.join(ids)}")
                continue
            if serves is not None and who in ids and who != serves:
                notices.append(f"{source} serves agent {serves} only: its text for {who} at turn {turn} is not used")
                continue
            for agent_id in ids if who in ("both", "all") else [who]:
                if serves in (None, agent_id):
                    said = found.setdefault(turn, {})
                    said[agent_id] = f"{said[agent_id]}\n\n{text}" if agent_id in said else text
    return found, notices, faults


def find_preset(name: str) -> str | None:
    """The preset of this name or alias; None when there is none."""
    preset = ALIASES.get(name, name)
    return preset if preset in PRESETS else None


def _read(path: Path) -> tuple[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = safe_load(text, f"awareness file {path}")
        return text, {} if data is None else data
    except OSError as error:
        raise SpecError(f"awareness file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"awareness file {path} is not valid YAML: {' '.join(str(error).split())}") from None


def system_prompt(preset: str, seat: Seat, agents: Sequence[Seat]) -> str | None:
    """The system prompt that a preset gives to one agent; None where it gives none."""
    return filled(preset_text(preset), seat, agents)


def filled(text: str, seat: Seat, agents: Sequence[Seat]) -> str | None:
    """A text with `$model`, `$partner_models` and the like filled in for one agent; None for no text.

    Other words after a `$` stay as they are.
    """
    if not text:
        return None
    partners = [other for other in agents if other.agent_id != seat.agent_id]
    many = len(partners) > 1
    return string.Template(text).safe_substitute(
        model=_plain(seat.model),
        partners_short="other AIs" if many else "another AI",
        partners_are="Your conversation partners are AIs as well"
        if many
        else "Your conversation partner is an AI as well",
        a_human="humans" if many else "a human",
        partner_models=_join([_plain(other.model) for other in partners]),
    )


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plain(model_id: str) -> str:
    return model_id.partition(":")[2].partition("?")[0] or model_id
