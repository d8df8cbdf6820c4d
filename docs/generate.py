"""Writes the reference pages from the code, or with --check says which of them no longer fit it."""

import ast
import dataclasses
import datetime
import enum
import inspect
import itertools
import json
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from pidgin_cli.cli.app import cli
from pidgin_cli.conversation import delegates
from pidgin_cli.core import errors, events
from pidgin_cli.core.types import Retries, Timeouts
from pidgin_cli.metrics import catalogue, convergence, detectors, lexicon, tokens
from pidgin_cli.providers import local, replay
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec import awareness, experiment
from pidgin_cli.spec.catalogue import aliases
from pidgin_cli.spec.sweep import SWEPT_KEYS

DOCS = Path(__file__).parent
MARK = "<!-- Written by `make docs` from the code. Change the code, not this page. -->"


# Markdown


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", MARK, *(part.strip() for part in parts if part.strip())]) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _code(text: str, language: str = "") -> str:
    return f"```{language}\n{text.strip()}\n```"


def _anchor(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _doc(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _field_docs(kind: type) -> dict[str, str]:
    """What stands in a string below each field or member of a class."""
    return _docs_in(sys.modules[kind.__module__]).get(kind.__name__, {})


@cache
def _docs_in(module: types.ModuleType) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found[node.name] = {}
        for before, after in itertools.pairwise(node.body):
            target = before.target if isinstance(before, ast.AnnAssign) else None
            if isinstance(before, ast.Assign) and isinstance(before.targets[0], ast.Name):
                target = before.targets[0]
            if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[target.id] = inspect.cleandoc(str(after.value.value))
    return found


# Commands


COMMANDS_INTRO = """
`pidgin` and `python -m pidgin_cli` are the same. `-h` or `--help` after any command says what stands here.

Exit status: 0 done; 1 it ran and something failed; 2 the command, or a name in it, was wrong; 130 interrupted.
"""


def commands() -> str:
    parts = [COMMANDS_INTRO, _help_text(cli.help or "")]
    for command, context in _walk(cli, click.Context(cli, info_name="pidgin")):
        parts += [f"## {context.command_path}", _command(command, context)]
    return _page("Commands", *parts)


def _walk(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _walk(command, inner)
        else:
            yield command, inner


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [
        record
        for param in command.get_params(context)
        if "--help" not in param.opts and (record := param.get_help_record(context)) is not None and record[1]
    ]
    options = _table(["option", "meaning"], [(f"`{names}`", text) for names, text in records]) if records else ""
    return "\n\n".join(part for part in (_code(usage), _help_text(command.help or ""), options) if part)


def _help_text(text: str) -> str:
    """Help as click has it: paragraphs, and after `\\b` lines that stay as they are."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b"):
            parts.append(" ".join(paragraph.split()))
            continue
        title, _, lines = paragraph.removeprefix("\b\n").partition("\n")
        parts += [title, _code(inspect.cleandoc(lines), "sh")]
    return "\n\n".join(parts)


# Events


EVENTS_INTRO = """
A record is a folder; each conversation in it is a file `conv_<id>_events.jsonl` with one JSON object per line, in
UTF-8. `experiment_events.jsonl` beside it holds the events of the experiment itself. These always work:

```sh
tail -f conv_*_events.jsonl
grep RateLimitEvent conv_*_events.jsonl
jq -r 'select(.event_type=="MessageCompleteEvent") | "\\(.agent_id): \\(.message.content)"' conv_*_events.jsonl
```

Every line begins with the envelope. `seq` counts from 0 without gaps in each file. Fields that have nothing to say are
left out; the last column says what their absence means. Read on past fields and events you do not know: later versions
add some, and never give one a second meaning. A last line without its end was being written when the process died.

A conversation begins with `ConversationStartEvent`, always line 1, and one `SystemPromptEvent` per agent. A turn is
`TurnStartEvent`, then for each speaker `MessageRequestEvent`, any trouble on the way, `ThinkingCompleteEvent` if the
model thought, `MessageCompleteEvent` and `TokenUsageEvent`; then `TurnCompleteEvent`, once all have spoken. The last
`ConversationEndEvent` counts: a resumed conversation has more than one. Messages count from 0 over the whole
conversation, turns from 1.
"""


def event_lines() -> str:
    members = sorted(events.EVENT_TYPES, key=_line_in_source)
    used = _used_in(members)
    envelope = {field.name for field in msgspec.structs.fields(events.Event)}
    parts = [
        EVENTS_INTRO,
        f"The schema is version {events.SCHEMA_VERSION}.",
        "## Envelope",
        _doc(events.Event),
        _struct_table(events.Event, first=[("event_type", "string", "One of the names below.", "—")]),
    ]
    for kind in members:
        parts += [f"## {kind.__name__}", _doc(kind), _struct_table(kind, without=envelope)]
    parts.append("## Values within events")
    for value in sorted(used, key=lambda kind: issubclass(kind, enum.Enum)):
        table = _enum_list(value) if issubclass(value, enum.Enum) else _struct_table(value)
        parts += [f"### {value.__name__}", _doc(value), table]
    return _page("Event lines", *parts)


def _enum_list(kind: type[enum.Enum]) -> str:
    said = _field_docs(kind)
    return "\n".join(f"- `{each.value}`{': ' + said[each.name] if each.name in said else ''}" for each in kind)


def _line_in_source(kind: type) -> int:
    return inspect.getsourcelines(kind)[1]


def _used_in(kinds: Iterable[type[msgspec.Struct]]) -> list[type[msgspec.Struct] | type[enum.Enum]]:
    """The structs and enums that stand in the fields of `kinds`, and in theirs."""
    found: dict[type[msgspec.Struct] | type[enum.Enum], None] = {}

    def walk(hint: Any) -> None:
        for part in typing.get_args(hint):
            walk(part)
        if isinstance(hint, type) and hint not in found and issubclass(hint, msgspec.Struct | enum.Enum):
            found[hint] = None
            if issubclass(hint, msgspec.Struct):
                fields(hint)

    def fields(kind: type[msgspec.Struct]) -> None:
        for hint in typing.get_type_hints(kind).values():
            walk(hint)

    for kind in kinds:
        fields(kind)
    return list(found)


def _struct_table(
    kind: type[msgspec.Struct],
    *,
    without: Iterable[str] = (),
    first: Sequence[tuple[str, str, str, str]] = (),
) -> str:
    hints, docs = typing.get_type_hints(kind), _COMMON | _field_docs(kind)
    rows = [(f"`{name}`", *rest) for name, *rest in first]
    rows += [
        (
            f"`{field.encode_name}`",
            _json_type(hints[field.name]),
            docs.get(field.name, ""),
            _absent(kind, field),
        )
        for field in msgspec.structs.fields(kind)
        if field.name not in without
    ]
    return _table(["field", "type", "meaning", "absent means"], rows) if rows else "It has no fields of its own."


def _absent(kind: type[msgspec.Struct], field: "msgspec.structs.FieldInfo") -> str:
    if field.required or not kind.__struct_config__.omit_defaults or field.name in _STAMPED:
        return "—"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "nothing known"
    return "all its defaults" if isinstance(default, msgspec.Struct) else f"`{json.dumps(default)}`"


_COMMON = {
    "agent_id": "Whom it is about.",
    "turn_number": "Counts from 1; 0: before the first turn.",
    "message_index": "Counts from 0 over the whole conversation.",
}
"""Said once for the many events that have them."""

_STAMPED = frozenset({"event_id", "seq", "timestamp", "experiment_id"})
"""Have defaults in the code, because the log fills them in; in a file they are always there."""

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", datetime.datetime: "string (ISO 8601)"}


def _json_type(hint: Any) -> str:
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_json_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"array of {_json_type(arguments[0])}"
    if origin is dict:
        inner = arguments[1]
        return "object" if inner is Any else f"object of {_json_type(inner)}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct | enum.Enum):
        return _anchor(hint.__name__)
    return _NAMES[hint]


# Spec

SPEC_EXAMPLE = """
name: two openings
agents:
  - id: a
    model: claude
    think: true
    awareness: basic
  - id: b
    model: local:test?words=40
    system_prompt: You answer in one sentence.
openings:
  find: What would you like to find out?
  free: You are free to talk about whatever you like.
sweep:
  b.model: [gpt, "local:test?words=40"]
max_turns: 20
repetitions: 10
seed: 7
context: window
budget: {usd: 5, wall_time: 2h}
"""

FLAT_EXAMPLE = """
agent_a: openai:gpt-4.1
agent_b: mistral
temperature: 0.7
temperature_b: 0.2
awareness_a: basic
prompt: What would you like to find out?
max_turns: 20
repetitions: 10
max_parallel: 2
allow_truncation: true
"""

SPEC_FLAT = """
A spec may also be flat. `agent_a`, `agent_b` and so on are the models, in the order of these ids. A key of an agent
stands alone, for all of them, or with `_a`, `_b`, … behind, for one of them, which outranks the other. `name` and
`seed` alone are those of the experiment. `allow_truncation: true` is `context: window`. All other keys are the same.
Agents are given in one form or the other, not in both.
"""

SPEC_ARMS = """
`sweep`, `zip`, `pairs` and `openings` are multiplied with each other; each combination is an arm, and its label names
the values: `a.temperature=0.2, pair=claude+gpt, opening=find`. A path is `<agent>.<key of an agent>`, `all.<key>` or
one of {swept}. Values are a list, or a mapping that gives them labels of your own; a long value gets a short label.
`exclude` leaves arms out: `{{pair: claude+gpt, opening: find}}` every arm that is both, `{{a.temperature: [0, 1]}}`
those with either.

The order goes by repetition: every arm once, shuffled, then the next repetition. Whenever a run stops, each arm has
been run as often as any other, give or take one, and more `repetitions` later only append. Arms, order and seeds follow
from the spec alone: the same spec with the same `seed` is the same plan.

With `pairs`, who sits where is no part of the arm. Over any even number of repetitions each of two models sits equally
often in each seat; the agent in the first seat opens. With `first: balanced` agents take turns with opening within each
arm; with `pairs` as well, over any four repetitions each model opens equally often from each seat. Within one
repetition the arms of a pair (its openings, say) sit and open each way equally often, give or take one.

How often, how fast, for how much and under what name an experiment runs (`repetitions`, `max_parallel`, `budget`,
`notify`, `notify_command`, `name`) may change while it stays the same experiment.
"""

SPEC_INTRO = """
A spec is YAML; `pidgin init` writes one to start from, `pidgin spec check` says what it makes and all that is wrong
with it, and `pidgin spec schema` prints its JSON Schema for editors. Files that it names are looked for beside it
first. Every record holds the one it was made from as `spec.yaml`, with aliases, presets, files and the seed written
out, so that it runs the same anywhere and later. A key that does not exist is an error that names the line and the
nearest key that does. A key that is left out has its default; what has no default is not sent to the model.
"""


def spec() -> str:
    import yaml

    for example in (SPEC_EXAMPLE, FLAT_EXAMPLE):
        experiment.resolve(experiment.check(yaml.safe_load(example)), PROVIDERS)
    schema = experiment.ExperimentSpec.model_json_schema()
    swept = ", ".join(f"`{key}`" for key in SWEPT_KEYS)
    parts = [SPEC_INTRO, _code(SPEC_EXAMPLE, "yaml"), "## The flat form", _code(FLAT_EXAMPLE, "yaml"), SPEC_FLAT]
    parts += ["## Arms", SPEC_ARMS.format(swept=swept), "## The experiment", _schema_table(schema)]
    for name, definition in _in_order(schema):
        parts += [f"## {name}", definition["description"], _schema_table(definition)]
    return _page("Spec", *parts)


def _in_order(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The definitions in the order in which the experiment refers to them."""
    found: dict[str, dict[str, Any]] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                name = node["$ref"].rpartition("/")[2]
                if name not in found:
                    found[name] = schema["$defs"][name]
                    walk(found[name])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema["properties"])
    return list(found.items())


def _schema_table(definition: dict[str, Any]) -> str:
    required = definition.get("required", [])
    rows = [
        (f"`{key}`", _spec_type(node), _spec_default(key, node, required), node.get("description", ""))
        for key, node in definition["properties"].items()
    ]
    return _table(["key", "value", "default", "meaning"], rows)


def _spec_default(key: str, node: dict[str, Any], required: list[str]) -> str:
    if key in required:
        return "must be given"
    default = node.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict):
        references = [part["$ref"].rpartition("/")[2] for part in [node, *node.get("anyOf", [])] if "$ref" in part]
        return f"see {_anchor(references[0])}" if references else "empty"
    return "empty" if default in ("", [], {}) else f"`{json.dumps(default, ensure_ascii=False)}`"


_SPEC_NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "matches `{}`",
}


def _spec_type(node: dict[str, Any]) -> str:
    if "$ref" in node:
        return _anchor(node["$ref"].rpartition("/")[2])
    if "anyOf" in node:
        return " or ".join(_spec_type(part) for part in node["anyOf"] if part.get("type") != "null")
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    limits = [
        text.format(node[name])
        for name, text in _LIMITS.items()
        if name in node and (name, node[name]) != ("minLength", 1)
    ]
    kind = node.get("type", "")
    if kind == "array":
        items = node.get("items") or {}
        base = f"list of {_spec_type(items)}" if items else "list"
    elif kind == "object":
        inner = node.get("additionalProperties")
        base = f"mapping to {_spec_type(inner)}" if isinstance(inner, dict) and inner else "mapping"
    else:
        base = _SPEC_NAMES.get(kind, "any value")
    return ", ".join([base, *limits])


# Models

MODELS_INTRO = """
A model is named `provider:model`, or by a short name. Any model name of a known provider is taken: the provider itself
decides. Prices and context windows come from the package genai-prices, which carries its data with it; for models it
does not know, cost is absent and no context limit is watched.
"""


PROVIDERS_NOTE = """
The key and the address are environment variables. Where the address leads away from the vendor, the key may be left
out: servers of one's own rarely want one.
"""


def models() -> str:
    providers = [
        (
            f"`{info.name}`",
            " or ".join(f"`{name}`" for name in info.key_env) or "none",
            (f"`{info.base_url_env}`" if info.base_url_env else "—")
            + (f", `{info.base_url}`" if info.base_url else ""),
            f"`{info.sdk}`" if info.sdk else "—",
            info.system_placement,
        )
        for info in PROVIDERS.values()
    ]
    return _page(
        "Models",
        MODELS_INTRO,
        "## Providers",
        _table(["provider", "key", "address, where it leads unless set", "SDK", "system prompt as"], providers),
        PROVIDERS_NOTE,
        "## Short names",
        _table(["name", "stands for"], [(f"`{name}`", f"`{model}`") for name, model in aliases().items()]),
        "## Local models",
        inspect.getdoc(local) or "",
        "## Recorded models",
        inspect.getdoc(replay) or "",
    )


# Delegates


def delegate_page() -> str:
    parts = [inspect.getdoc(delegates) or "", "`register` takes:"]
    parts.append(_code(inspect.getdoc(delegates.DelegateManager.register) or ""))
    for title, kinds in (
        ("Notifications of a conversation", delegates.NOTIFICATIONS),
        ("Controls of a conversation", delegates.CONTROLS),
        ("Notifications of a runner", delegates.ENGINE_NOTIFICATIONS),
        ("Controls of a runner", delegates.ENGINE_CONTROLS),
    ):
        parts.append(f"## {title}")
        for name, kind in kinds.items():
            hints = typing.get_type_hints(kind)
            rows = [
                (f"`{field.name}`", f"`{_annotation(hints[field.name])}`", _field_docs(kind).get(field.name, ""))
                for field in dataclasses.fields(kind)  # type: ignore[arg-type]
            ]
            parts += [f"### {name}", _doc(kind), _table(["payload", "type", "meaning"], rows)]
    return _page("Delegates", *parts)


def _annotation(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


# Awareness

AWARENESS_EXAMPLE = """
name: slow reveal
base: basic
prompts:
  0:
    both: Take your time.
  3:
    agent_a: Your partner has just learned that this is an experiment.
  6:
    both: Four turns are left.
"""

AWARENESS_INTRO = """
What an agent is told about its situation. `-w` (`--awareness`) gives all agents the same, `--awareness-a` one of them;
in a spec it is the key `awareness` of an agent. The value is a preset or a YAML file. What an agent is told, nobody
else sees.
"""

AWARENESS_PRESETS = """
A preset is a system prompt. The words after `$` are filled in for each agent: its own model, its partners' models, and
singular or plural. Below each is the text that agent a reads in a conversation of `claude-x` with `gpt-y`.
"""

AWARENESS_FILE = """
A file puts texts into the conversation at given turns. `base` is the preset that the system prompt comes from (`none`
without it). `prompts` maps a turn to who is told what: `both` or `all` for every agent, or one agent by its id (`b` or
`agent_b`). Turns count from 1; 0 is with the opening. `name` stands in the record; without it the file's name does.
`placement: system` sends the file's texts as the provider's family places system text, instead of as tagged user text.
"""

AWARENESS_RULES = """
Each text stands before the agent's next words, from the start of that turn on and for good, as text from outside with
the prompt tag (`[HUMAN]: …` unless changed), in the same way for every provider, so that arms can be compared. It is an
`InterventionEvent` in the record, with the source `awareness:<name>`.

A file given with `--awareness-a` serves agent a only: its texts for others are passed over, and a notice says so. An id
that no agent has, a missing file and a bad one are errors before anything starts.
"""


def awareness_page() -> str:
    seats = [awareness.Seat("a", "anthropic:claude-x", "claude-x"), awareness.Seat("b", "openai:gpt-y", "gpt-y")]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "slow.yaml"
        path.write_text(AWARENESS_EXAMPLE, encoding="utf-8")
        awareness.load_awareness(str(path), seats)
    parts = [AWARENESS_INTRO, "## Presets", AWARENESS_PRESETS]
    for preset in awareness.PRESETS:
        names = [f"`{name}`" for name, target in awareness.ALIASES.items() if target == preset]
        also = f" (also {', '.join(names)})" if names else ""
        text = awareness.preset_text(preset)
        parts += [f"### {preset}{also}"]
        if not text:
            parts.append("No system prompt.")
            continue
        parts.append(_code(text, "text"))
        read = awareness.system_prompt(preset, seats[0], seats)
        if read != text:
            parts.append(f"> {read}")
    parts += ["## Files", AWARENESS_FILE, _code(AWARENESS_EXAMPLE, "yaml"), AWARENESS_RULES]
    return _page("Awareness", *parts)


# Failures

FAILURES_INTRO = """
What can go wrong when a model is asked, what Pidgin makes of it, and what becomes of the conversation. An error is an
event in the record, never something that an agent said.
"""

RETRY_POLICY = """
What may pass by itself is tried again: {attempts} attempts at one message, the first included. The wait is as long as
the provider asks for (`Retry-After`, `retry-after-ms`, Google's `retryDelay`); where it asks for nothing, or for more
than a day, which counts as nothing, it is drawn from between 0 and {base:g} s, with the upper end doubled at every
attempt up to {longest:g} s. Every wait is an event, a `RateLimitEvent` or an `APIErrorEvent` with `wait_s`, and shows
in the display. The keys `retries` and `timeouts` of a [spec](spec.md) change these numbers. The SDKs' own retries are
switched off.

A reply that died half-way is never continued and never joined: what had come is recorded as a
`MessageAbandonedEvent`, and the next attempt begins anew. After the last attempt, or at once where trying again is no
use, the conversation ends as `failed` with `provider_error`; `pidgin resume` continues it with the message that is
missing.
"""

WAIT_RETRIED = "as long as the provider asks, else the back-off below"
LIMIT_EFFECTS = {
    "RateLimited": "fewer requests at once for all conversations with the model; none until the time asked for",
    "Overloaded": "no growth of the requests at once for a while; none until the time asked for",
    "ProviderTimeout": "no growth of the requests at once for a while",
    "ProviderUnavailable": "no growth of the requests at once for a while",
}
CONVERSATION_EFFECTS = {
    "ContextLengthExceeded": "what the key `context` says: it ends as `stopped` with `context_limit`, or older turns "
    "are left out or summarised and the message is asked for again",
}

TIMEOUTS_INTRO = """
No request hangs for ever: connecting takes at most {connect_s:g} s, the first piece of a reply {first_token_s:g} s, and
every further piece {gap_s:g} s, counted anew. There is no limit on a whole reply unless `total_s` sets one.
"""

CHAOS_INTRO = """
Each fault was brought about by a server that speaks the provider's own wire format, in the middle of a whole
conversation with the real SDK, once and for good. `make test` does so again and fails when anything differs. Providers
that speak OpenAI's chat completions (OpenRouter, Groq, Together, DeepSeek, Mistral, vLLM, llama.cpp, LM Studio, named
endpoints) behave as `openai`. “Retried” conversations go on as if nothing had happened once the fault is gone; an empty
cell means that this provider has no such fault.
"""


def failures() -> str:
    retries, timeouts = Retries(), Timeouts()
    kinds: list[type[errors.ProviderError]] = [
        kind for name in errors.__all__ if _is_provider_error(kind := getattr(errors, name))
    ]
    rows = [
        (
            f"`{kind.__name__}`",
            _doc(kind),
            f"yes; {WAIT_RETRIED}" if kind.retryable else "no",
            CONVERSATION_EFFECTS.get(kind.__name__, "goes on, or fails after the last attempt")
            if kind.retryable or kind.__name__ in CONVERSATION_EFFECTS
            else "fails at once",
            LIMIT_EFFECTS.get(kind.__name__, "none"),
        )
        for kind in kinds
    ]
    found = json.loads((Path(__file__).parent / "reference" / "chaos.json").read_text(encoding="utf-8"))
    providers = list(next(iter(found.values())))
    matrix = [(fault, *(_fate(by_provider[name]) for name in providers)) for fault, by_provider in found.items()]
    return _page(
        "Failures",
        FAILURES_INTRO,
        "## Classes of errors",
        _table(["error", "meaning", "retried, and after how long", "the conversation", "limits"], rows),
        RETRY_POLICY.format(attempts=retries.attempts, base=retries.base_s, longest=retries.max_wait_s),
        TIMEOUTS_INTRO.format(connect_s=timeouts.connect_s, first_token_s=timeouts.first_token_s, gap_s=timeouts.gap_s),
        "## Fault by provider",
        CHAOS_INTRO,
        _table(["fault", *providers], matrix),
        "## What the record says",
        "The message of the error in the words that the record has, and how the conversation ends if the fault stays.",
        _table(["fault", "provider", "message", "end"], _what_the_record_says(found)),
    )


def _is_provider_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.ProviderError) and kind is not errors.ProviderError


def _fate(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "error" not in found:
        notable = found["always"].partition("; ")[2]
        return "a reply" + (f", {notable}" if notable else f" of {found['characters']:,} characters")
    how = ["retried"] if found["retried"] else ["not retried"]
    how += ["waits as told"] * ("waits" in found) + ["partial text kept as abandoned"] * ("partial" in found)
    return f"`{found['error']}`: {', '.join(how)}"


def _what_the_record_says(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for fault, by_provider in found.items():
        same: dict[tuple[str, str], list[str]] = {}
        for name, one in by_provider.items():
            if one is not None and "error" in one:
                status = f" (status {one['status']})" if "status" in one else ""
                same.setdefault((one["message"] + status, one["always"]), []).append(name)
        for (message, end), names in same.items():
            yield fault, "all" if len(names) == len(by_provider) else ", ".join(names), message, end


# Detectors

DETECTORS_INTRO = """
Detectors look for attractors while a conversation runs: loops, collapses and rituals. Each takes one message after the
other, looks back only, and costs the same at message 5,000 as at message 40. What it said about a message never changes
when others follow, so a live run and a later import agree.

A detector *fires* when its sign has been confirmed, which the table's rule includes, stays *active* while the sign
holds, and lets go after {clear_after} messages without it (`clear_after`). The *state* of the conversation is that of
the first active detector in the order of this table, or `{normal}`; detectors without a state only fire. A `cycle` of
period 1 is the state `{echo}`.
"""

DETECTORS_DATING = """
Each firing says where it began, not only where it could first be told:

- cycles and near-cycles: the first message of the loop, its first copy included;
- collapses and rituals: the first message of the kind among the last {window};
- `stationary`: the earliest of the speaker's last {speaker_window} messages that is as like the newest as the threshold
  asks;
- the two that smooth: the minimum of the cumulative sum of (threshold − value), the last message up to which there was
  no evidence of a fall. The first copy of a loop is new text, so they begin one period later than the cycle does;
- the others: the message itself.
"""

DETECTORS_LIMITS = """
- Words are compared, not meanings. A paraphrase that shares no words is seen by `stationary` on embeddings, or by a
  reader; `length_collapse` at most sees that it is short.
- Farewells, thanks and talk about the conversation are told by English word lists. Messages of which more than a fifth
  of the letters are not Latin do not count, and the shares are NULL where none of the last {window} could be judged.
- Cues inside code do not count; repetition inside code does.
- Messages longer than {compared:,} tokens are compared with others by their first {compared:,}.
- Periods up to {lags} messages are found, whoever speaks.
- A conversation that loops from its first message has no baseline, so `compression_collapse` and `stationary` are
  silent; `cycle` is not.
- Thresholds were measured on 2,400 artificial conversations without an attractor (no alarm) and on planted ones
  (`tests/pseudo_talk.py`). Real prose with stock phrases is harder: look at what fires before you let it stop anything.
"""


def detector_page() -> str:
    defaults = detectors.Thresholds()
    rows, limits = [], []
    for name, kind in detectors.DETECTORS.items():
        chosen = getattr(defaults, name)
        rows.append((f"`{name}`", kind.label, f"`{kind.state}`" if kind.state else "", _doc(kind)))
        limits += [
            (f"`{name}.{field}`", _threshold(getattr(chosen, field)), text)
            for field, text in _field_docs(type(chosen)).items()
        ]
    clear = _field_docs(detectors.Thresholds).get("clear_after", "")
    limits.append(("`clear_after`", _threshold(defaults.clear_after), clear))
    numbers = {
        "window": detectors.WINDOW,
        "speaker_window": detectors.SPEAKER_WINDOW,
        "compared": detectors.COMPARED_TOKENS,
        "lags": detectors.LAGS,
    }
    return _page(
        "Detectors",
        DETECTORS_INTRO.format(clear_after=defaults.clear_after, normal=detectors.NORMAL, echo=detectors.ECHO),
        _table(["detector", "no.", "state", "what it finds"], rows),
        "## Thresholds",
        _table(["threshold", "default", "meaning"], limits),
        "## Onset",
        DETECTORS_DATING.format(**numbers),
        "## Actions",
        "What is done when a detector fires. The default is `record`: stopping on detection cuts off the very data "
        "that tell how long a state lasts. If one of the firings of a message stops the conversation, none of them "
        "pauses it or talks to it.",
        _table(
            ["action", "effect"],
            [(f"`{action}`", text) for action, text in detectors.ACTIONS.items()],
        ),
        "## Signals",
        "What is measured at each message, whether or not anything fires.",
        _table(
            ["signal", "meaning"],
            [(f"`{name}`", text) for name, text in _field_docs(detectors.Signals).items()],
        ),
        "## Limits",
        DETECTORS_LIMITS.format(**numbers),
    )


def _threshold(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


# Metrics


METRICS_INTRO = """
What is computed for each message, each pair of messages and each conversation. Live and at import it is the same code
over the same text, so the numbers are the same. A value that cannot be computed is NULL, never 0.

Versions stand beside every number: metrics `{metrics}`, tokeniser `{tokenizer}`, word lists `{lexicon}`. Numbers of
different versions do not compare.

- **Level**. M: of one message. P: against the partner's last message; the partner is whoever else spoke last, so this
  works for any number of agents. W: over a window of messages. C: of the conversation.
- **Language**. U: any text. T: needs words. S: needs sentences. E: needs the word lists of the language, which are
  English; NULL when more than 20 % of the letters of the prose are not Latin. model: needs an embedding.
- **When**. live: at every message. end: when the conversation is over. offline: after the run, from all texts or from
  embeddings.
- **Short below**: tokens below which the value says more about the length than about the text.
- Values of a conversation are one for each agent (`floor_share_a`), pair (`lsm_cum_ab`), direction
  (`adoption_rate_ab`: b takes over from a) or state (`first_passage_echo`).

Code is cut out before words, sentences, readability and cues are counted (`code_char_share` says how much it was);
repetition, sequence comparison and compression look at the whole text. N is the number of tokens, V that of types, V₁
and V₂ those that occur once and twice, f the frequency of a type.
"""

METRICS_AFTER = """
## After the run

`pidgin import` and the step `metrics` of the post-processing compute what is marked offline, and live metrics that the
record has not (`metrics: off`, records from elsewhere, a turn that broke off; `message_metrics.computed` is then true),
and what the detectors find in them (the view `attractors`, likewise).
What has been computed of the same texts stays. The table `computed_metrics` has a row for each conversation and part of
the metrics, and says in `missing` why values are NULL. `pidgin import --no-metrics` takes the records only.

`convergence_index` holds each reply against up to 20 surrogate partners from other valid conversations of the same arm;
`convergence_surrogates` says how many there were. Who they are is drawn by conversation and message, so that neither
the order of the conversations nor a second computation changes anything.

In `convergence_index` each part has the same weight, also where strangers are nearly alike in it, as messages of plain
prose are in structure: there a message of another shape can get −10, and unrelated conversations are below 0 on
average. `convergence_index_pooled` counts the parts by what chance leaves open in them (1 − s), so that unrelated
messages are at 0 on average, and identical ones still at 1. The report draws the pooled one.

### Embeddings

Semantic metrics need vectors, and those come only from a model that somebody named: `--embeddings MODEL` of `pidgin
import` and `pidgin report`, or `embeddings: MODEL` in the spec. A flag wins; without one, what there is stays.

| MODEL | where the text goes |
| --- | --- |
| `openai:text-embedding-3-small`, or another model of OpenAI | to OpenAI, or where `OPENAI_BASE_URL` leads |
| `NAME:MODEL` | to an endpoint of `config.toml` that speaks OpenAI's protocol |
| `google:gemini-embedding-001` | to Google; some models cut what is too long for them |
| `ollama:nomic-embed-text` | to the Ollama server |
| `wordllama` | nowhere: the weights come with the extra, `pip install 'pidgin-cli[embeddings]'` |
| `lexical_hash` | nowhere: 512 signed hashes of words and bigrams (CRC-32). They know words, not meaning |

All messages, openings and system prompts are embedded, blank ones aside. Vectors are kept in `embeddings.db` in the
cache folder (`PIDGIN_CACHE_DIR`) by provider, address, model and digest of the text, so that no text is sent twice; the
file holds no text; `pidgin cache` tells its size and empties it. Tokens and cost are told.
`message_metrics.embedding_model` names the model of every value: all conversations of an experiment have the same one,
until one of them grows. Never compare values of two models. When the model cannot be asked, the other metrics are there
all the same, and older semantic values stay.
"""

METRICS_OTHERS = """
Where libraries disagree, the variant is named in the formula. These reference values are not met, on purpose:

| reference | difference | here |
| --- | --- | --- |
| `mattr_50`, `msttr_50` of lexicalrichness | raises below 50 tokens | the type-token ratio of the text |
| `mtld` of lexicalrichness and taaled | up to 59 % apart | the published form, as in lexical-diversity |
| `mtld`, `hdd_42` of short texts: 0 | 0 reads as no diversity | NULL |
| `maas_a2` of lexical-diversity | 2.3026 times larger | natural logarithms, not decimal ones |
| `jsd` of scipy | its square root | the divergence |
| `rouge_l_partner` of rouge-score | cuts words at apostrophes | one tokeniser |
| `bleu4_partner`, `self_bleu4_w8` of sacrebleu | about a factor of two near 0 | smoothing method 1 |
| `flesch_ease`, `fk_grade` of textstat | within 3 points and 1.5 grades on prose | no dictionary is used |
| `coleman_liau` of textstat | up to 0.3 grades on prose | 0.0588, as published |
| `sentiment` of vaderSentiment | another scale | word lists; its score is `sentiment_vader` |
| sentence counts of spaCy and textstat | wordless lines count, short ones do not | a sentence holds a token |
| unique emoji of the package emoji | one more for each skin tone | `emoji_types` folds skin tones |
| `emoji_count` of the package emoji | counts © ❤ ☀ without U+FE0F | those are symbols |
| `lsm` of wekeypedia | proportions, 0.001 | percent, 0.0001, as published |
| zlib sizes with other builds of zlib | up to 2 % | the library at hand compresses |
| `flesch_ease`, `fk_grade` of textdescriptives | 9 to 14 points from textstat on one text | as textstat, estimated |
| `mtld_ma` of lexical-diversity | counts a direction of 0 | not computed; `mtld` |
| `bleu4` of nltk without smoothing | 1e-155 instead of nearly 0 | smoothing method 1 |
| `indel` by difflib | another measure, and it gives up at 200 characters | `indel_partner` on tokens, as rapidfuzz |
| compression ratio of diversity | compresses twice, and original by compressed | `zlib_ratio`: compressed by original |

The reference file also has values of measures that are not in the catalogue, as variants of others or of no use to
compare conversations: Carroll's corrected TTR, Summer's S, Dugast's U, Yule's I, Herdan's Vm, Brunet's W, voc-D, MATTR
and MSTTR with windows of 10 and 25, distinct-4; Dice, chrF, ROUGE-1 and -2, Levenshtein and Jaro-Winkler similarity;
Gunning fog, SMOG, ARI, Dale-Chall, Linsear, LIX, RIX; gzip, bz2, lzma, zstandard and lz4 sizes.
"""

METRICS_OWN = """
## A metric of your own

A package offers an object, or a class without arguments, under the entry-point group `pidgin.metrics`. Its values are
live, stored and exported like the others. If it raises, its values are NULL from there on, and the conversation goes
on.
"""


def metrics_page() -> str:
    kinds = ["level", "type", "unit", "formula", "range", "NULL when", "language", "when", "short below", "source"]
    parts = [
        METRICS_INTRO.format(
            metrics=catalogue.METRICS_VERSION, tokenizer=tokens.TOKENIZER_VERSION, lexicon=lexicon.LEXICON_VERSION
        )
    ]
    for section, rows in itertools.groupby(catalogue.METRICS.values(), key=lambda metric: metric.section):
        table = [
            [
                f"`{metric.name}`" + (f" ({metric.per})" if metric.per else ""),
                *(metric.level, metric.kind, metric.unit, metric.formula, metric.range, metric.null or "never"),
                *(metric.language, metric.when, str(metric.short_below or ""), metric.source),
            ]
            for metric in rows
        ]
        parts += [f"## {section}", _table(["name", *kinds], table)]
    profiles = [
        [f"`{name}`", *(f"{weight:.2f}" for weight in weights)] for name, weights in convergence.PROFILES.items()
    ]
    parts += ["## Profiles of `convergence`", _table(["profile", *convergence.Weights._fields], profiles)]
    parts += [METRICS_AFTER, "## Differences from other libraries", METRICS_OTHERS, METRICS_OWN]
    parts.append(_code(inspect.getsource(catalogue.LiveMetric), "python"))
    return _page("Metrics", *parts)


# Database


DATABASE_INTRO = """
`pidgin import` reads records into `experiments/experiments.duckdb` below the output root, `pidgin query` asks it in
SQL, `pidgin verify` compares it with the records. It holds nothing that the records do not: it can be deleted and
imported again. Any program that reads DuckDB files can read it; open it read-only, for while another program has it
open for writing, Pidgin cannot use it.

```sh
pidgin import --all
pidgin query "FROM dashboard"
pidgin query "SELECT arm, n, mean, ci_low, ci_high FROM arm_statistics WHERE measure = 'messages'" --csv
pidgin query "FROM conversation_messages WHERE conversation_id = 'k3v9x2ab-1' ORDER BY message_index" --json
```

Times are UTC. NULL is what a record does not say or what could not be computed, never 0. An import works on a copy and
puts it in the place of the file when it is done, so that readers are not disturbed; a second import waits for the
first. Conversations whose logs have not changed are left as they are. What cannot be read is told with its line and
stands in `damaged_lines`; everything else is taken.

`message_metrics` and `turn_metrics` have a column for every [metric](metrics.md), besides those listed here.
"""

DATABASE_FOREIGN = """
`pidgin import` also takes files and folders that Pidgin did not write. They become experiments of the output root, in
the same format as all others, once, however often they are imported, and go on with it when the folder has grown;
`source` in `conversations` says where they came from.

- **Logs of the earlier Pidgin** (`.jsonl`): lines with an `event_type`, for two agents `agent_a` and `agent_b`, with
  turns counted from 0; the fields stand in the line itself or, in its first versions, in `data`. Messages are taken
  from `MessageCompleteEvent`, and those that stand nowhere else from `turn` in `TurnCompleteEvent`. Times without a
  zone are taken as they are written. `tokens_used` is left out, because it does not say which tokens. A conversation in
  which an agent was made to say `[API error: …]` is invalid.
- **Plain transcripts** (any other file; in a folder, `.txt`): UTF-8, with a line `Name 1:` or `### Name 1 ###` before
  each message, or `Name 1: words`. [How it is told who speaks](../database.md#records-from-elsewhere); where it cannot
  be told, the file is not taken. A name such as `opus_gpt4o_cli_20241018_213842.txt` gives the models and the arm.

A model that is not told, or whose provider is not, has the provider `unknown`. Whatever else a record does not say,
such as a seed, a price, or why the conversation ended, is NULL or `unknown`.
"""


def database_page() -> str:
    import duckdb

    from pidgin_cli.database.schema import described, set_up

    con = duckdb.connect()
    set_up(con)
    tables = [table for table in described(con) if table.name != "migrations"]
    con.close()
    parts = [DATABASE_INTRO]
    for table in tables:
        parts += [f"## {table.name}", ("A view. " if table.view else "") + table.meaning]
        if table.view:
            parts.append("Columns: " + ", ".join(f"`{name}`" for name, _, _ in table.columns) + ".")
        else:
            rows = [(f"`{name}`", kind, meaning) for name, kind, meaning in table.columns]
            parts.append(_table(["column", "type", "meaning"], rows))
    return _page("Database", *parts, "## Records from elsewhere", DATABASE_FOREIGN)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/events.md": event_lines,
    "reference/spec.md": spec,
    "reference/models.md": models,
    "reference/delegates.md": delegate_page,
    "reference/failures.md": failures,
    "reference/metrics.md": metrics_page,
    "reference/detectors.md": detector_page,
    "reference/database.md": database_page,
    "awareness.md": awareness_page,
}


def stale() -> list[str]:
    """The pages that are not what the code says, and those in `reference/` that nothing writes any more."""
    found = []
    for name, write in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != write():
            found.append(name)
    orphans = {f"reference/{path.name}" for path in (DOCS / "reference").glob("*.md")} - PAGES.keys()
    return found + sorted(orphans)


def main(args: Sequence[str]) -> int:
    """Write all pages, or check them. Gives the exit status."""
    if args == ["--check"]:
        if pages := stale():
            print(f"not in step with the code: {', '.join(pages)}; run `make docs`")
        return 1 if pages else 0
    if args:
        print("usage: docs/generate.py [--check]", file=sys.stderr)
        return 2
    for name, write in PAGES.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(write(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
