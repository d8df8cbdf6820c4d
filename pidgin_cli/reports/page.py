"""`report.html`: an experiment's figures, tables and transcripts in one file that needs nothing else."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from pidgin_cli.core.events import (
    AgentNamedEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    InterventionEvent,
    MessageCompleteEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
)
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import Manifest

from .drawing import for_page
from .figures import Figure, as_csv
from .readme import environment
from .text import count, readable
from .transcript import Lineage, money

__all__ = ["page"]

SHOWN_ROWS = 100
SPEAKERS = 6
"""Colours for agents; of more than that, two have the same."""
_OPEN = ("words", "emoji")
"""Figures whose table is the point."""


class _Item(NamedTuple):
    style: str
    who: str
    words: str


class _Talk(NamedTuple):
    id: str
    told: str
    items: list[_Item]


def page(
    root: OutputRoot,
    folder: ExperimentFolder,
    manifest: Manifest,
    figures: Sequence[Figure],
    lineage: Lineage,
    *,
    why_none: str | None,
    progress: Callable[[str], None],
) -> str:
    """The page. `why_none`: why there are no figures at all."""
    talks = []
    invalid = notable = 0
    problems = [] if why_none is None else [f"There are no figures: {why_none}"]
    logs = folder.logs()
    for place, (conversation_id, log) in enumerate(logs.items(), 1):
        progress(f"{place} of {len(logs)}")
        record = read_record(log)
        ends = [event for event in record.events if isinstance(event, ConversationEndEvent)]
        invalid += bool(ends and ends[-1].invalid)
        notable += bool(ends and ends[-1].notable)
        if record.skipped:
            problems.append(f"{conversation_id}: {len(record.skipped)} lines of its log could not be read")
        whole, missing = lineage(root, record.events)
        if missing is not None:
            problems.append(f"{conversation_id}: what it shares with others could not be read: {missing}")
        shared = len(whole) - len(record.events)
        talks.append(_Talk(conversation_id, _told(manifest, conversation_id), list(_items(whole, shared))))
    resources = files("pidgin_cli.reports").joinpath("templates")
    style, script = (resources.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values: dict[str, Any] = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        "name": manifest.name or f"Experiment {manifest.experiment_id}",
        "manifest": manifest,
        "facts": _facts(manifest),
        "validity": f"Invalid, left out of statistics: {count(invalid, 'conversation')}; notable, kept: {notable:,}.",
        "problems": problems,
        "figures": [_figure(figure) for figure in figures],
        "talks": talks,
        # Of our own making; everything else is escaped.
        "style": Markup(style),  # noqa: S704
        "script": Markup(script),  # noqa: S704
    }
    return environment(html=True).get_template("report.html.j2").render(values)


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    totals = manifest.totals
    return [
        ("conversations", f"{totals.conversations:,}"),
        ("complete", f"{totals.completed:,}"),
        ("failed", f"{totals.failed:,}"),
        ("messages", f"{totals.messages:,}"),
        ("tokens", "not known" if totals.tokens is None else f"{totals.tokens:,}"),
        ("cost", money(totals.cost_usd)),
    ]


def _told(manifest: Manifest, conversation_id: str) -> str:
    entry = manifest.conversations.get(conversation_id)
    if entry is None:
        return ""
    parts = [entry.arm, entry.status.value, f"{entry.messages:,} message{'' if entry.messages == 1 else 's'}"]
    if entry.end_reason is not None:
        parts.append(entry.end_reason.value.replace("_", " "))
    return " · ".join(part for part in parts if part)


def _figure(figure: Figure) -> dict[str, Any]:
    drawing = Markup("")
    if figure.svg is not None:
        # Drawn by the library, which escapes the text in it; the description is escaped there.
        drawn = for_page(figure.svg, figure.name, f"{figure.title}. {figure.caption}")
        drawing = Markup(drawn)  # noqa: S704
    rows = figure.rows[:SHOWN_ROWS]
    texts = {place for place in range(len(figure.columns)) if any(isinstance(row[place], str) for row in rows)}
    data = base64.b64encode(as_csv(figure)).decode()
    return figure._asdict() | {
        "columns": [column.replace("_", " ") for column in figure.columns],
        "drawing": drawing,
        "rows": [[_cell(value) for value in row] for row in rows],
        "count": len(figure.rows),
        "texts": texts,
        "data": f"data:text/csv;charset=utf-8;base64,{data}",
        "open": figure.name in _OPEN,
    }


def _cell(value: object) -> object:
    if value is None:
        return ""
    return readable(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _items(events: Sequence[Event], shared: int) -> Iterator[_Item]:
    names: dict[str, str] = {}
    seats: dict[str, int] = {}
    for place, event in enumerate(events):
        mark = " · shared" if place < shared else ""
        also = " shared" if place < shared else ""
        match event:
            case ConversationStartEvent():
                names = {agent.id: agent.name for agent in event.agents}
                seats = {agent.id: seat % SPEAKERS for seat, agent in enumerate(event.agents)}
                if shared == 0 or place == 0:
                    yield _Item(f"aside{also}", f"opening{mark}", event.opening)
            case SystemPromptEvent(text=str(text)):
                yield _Item(f"aside{also}", f"system prompt of {names.get(event.agent_id, event.agent_id)}", text)
            case AgentNamedEvent():
                names[event.agent_id] = event.name
            case ThinkingCompleteEvent():
                who = f"{names.get(event.agent_id, '')} ({event.agent_id}) thinks, not part of the message{mark}"
                yield _Item(f"aside speaker-{seats.get(event.agent_id, 0)}{also}", who, event.content)
            case MessageCompleteEvent():
                name = f"{names.get(event.agent_id, '')} ({event.agent_id})"
                who = f"{event.message_index} · {name} · turn {event.turn_number}"
                style = f"speaker-{seats.get(event.agent_id, 0)}{also}"
                yield _Item(style, who + mark, event.message.content)
            case InterventionEvent():
                yield _Item(f"aside{also}", f"{_intervention(event)}{mark}", event.text or event.after or "")


def _intervention(event: InterventionEvent) -> str:
    why = "" if event.trigger is None else f" ({event.trigger})"
    by = f"by {event.source}{why}, turn {event.turn_number}"
    match event.kind:
        case "inject":
            return f"put in {by}, seen by {', '.join(event.audience) or 'nobody'}"
        case "edit":
            return f"message {event.edited_index} reads from here on, {by}"
        case "mute":
            return f"{event.agent_id} is silent for {count(event.turns or 1, 'turn')}, {by}"
        case "swap_model":
            return f"{event.agent_id} has another model from here on, {by}"
        case "swap_system_prompt":
            return f"{event.agent_id} has another system prompt from here on, {by}"
