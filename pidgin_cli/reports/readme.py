"""The README of an experiment: what was asked, what happened, what to think of it, and how to go on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from pidgin_cli.core.events import (
    ConversationEndEvent,
    ConversationStartEvent,
    ExperimentStartEvent,
    MessageCompleteEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.folder import ExperimentFolder
from pidgin_cli.eventlog.log import Record, read_record
from pidgin_cli.eventlog.manifest import Manifest
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.metrics.statistics import summarise, wilson
from pidgin_cli.metrics.tokens import tokenize

from .counted import Standing, counted
from .text import Markdown, count, fenced, inline, quoted, readable, table, visible
from .transcript import money, said

__all__ = ["environment", "readme"]

SHOWN_ARMS = 6
SHOWN_OPENINGS = 3
SHOWN_PROBLEMS = 8


@cache
def environment(*, html: bool) -> jinja2.Environment:
    """Where templates run. What they are given is escaped on its way out, and none of it ever becomes a template."""
    return ImmutableSandboxedEnvironment(
        loader=jinja2.PackageLoader("pidgin_cli.reports"),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        finalize=_as_html if html else _as_markdown,
        keep_trailing_newline=True,
    )


def _as_markdown(value: object) -> str:
    return value if isinstance(value, Markdown) else inline(str(value))


def _as_html(value: object) -> object:
    return value if isinstance(value, Markup) else visible(str(value))


class _Told(NamedTuple):
    """What the README needs of one conversation."""

    conversation_id: str
    start: ConversationStartEvent | None
    end: ConversationEndEvent | None
    skipped: int
    lengths: list[int]
    """Words of each message."""
    status: str

    @property
    def invalid(self) -> bool:
        return self.end is not None and bool(self.end.invalid)

    @property
    def standing(self) -> Standing:
        return Standing(self.status, () if self.end is None else self.end.invalid, bool(self.lengths))


def _told(conversation_id: str, record: Record) -> _Told:
    starts = [event for event in record.events if isinstance(event, ConversationStartEvent)]
    ends = [event for event in record.events if isinstance(event, ConversationEndEvent)]
    lengths = [
        len(tokenize(event.message.content)) for event in record.events if isinstance(event, MessageCompleteEvent)
    ]
    return _Told(
        conversation_id,
        starts[0] if starts else None,
        ends[-1] if ends else None,
        len(record.skipped),
        lengths,
        run_state(record.events).status.value,
    )


def readme(folder: ExperimentFolder, manifest: Manifest, progress: Callable[[str], None]) -> str:
    """The README as Markdown, from the record alone."""
    told = []
    logs = folder.logs()
    for place, (conversation_id, log) in enumerate(logs.items(), 1):
        progress(f"{place} of {len(logs)}")
        told.append(_told(conversation_id, read_record(log)))
    asked = list(_asked(told))
    values: dict[str, Any] = {
        "manifest": manifest,
        "name": manifest.name or f"Experiment {manifest.experiment_id}",
        "asked": asked[:SHOWN_ARMS],
        "more_arms": max(0, len(asked) - SHOWN_ARMS),
        "plan": _plan(folder, manifest, told),
        "spec": _spec(folder),
        "happened": _happened(manifest, _origin(manifest, told)),
        "ends": _ends(manifest),
        "problems": list(_problems(manifest, told)),
        "validity": _validity(told),
        "invalid": _invalid(told),
        "notable": _notable(told),
        "headline": _headline(manifest, told),
        "files": _files(folder, manifest),
        "commands": [Markdown(line) for line in _commands(manifest)],
    }
    return environment(html=False).get_template("README.md.j2").render(values)


class _Asking(NamedTuple):
    arm: str
    agents: Markdown
    openings: list[Markdown]
    more_openings: int


def _asked(told: Sequence[_Told]) -> Iterator[_Asking]:
    arms: dict[str, list[ConversationStartEvent]] = {}
    for each in told:
        if each.start is not None:
            arms.setdefault(each.start.arm, []).append(each.start)
    for arm, starts in arms.items():
        rows = dict.fromkeys(
            (
                agent.id,
                agent.name,
                agent.model,
                agent.awareness or ("own system prompt" if agent.system_prompt else None),
                agent.settings.temperature,
            )
            for start in starts
            for agent in start.agents
        )
        agents = table(("agent", "name", "model", "system prompt", "temperature"), rows, left=4)
        openings = list(dict.fromkeys(start.opening for start in starts))
        shown = [quoted(said(text)) for text in openings[:SHOWN_OPENINGS]]
        yield _Asking(arm, agents, shown, max(0, len(openings) - SHOWN_OPENINGS))


def _plan(folder: ExperimentFolder, manifest: Manifest, told: Sequence[_Told]) -> Markdown:
    entries = manifest.conversations.values()
    arms = len({entry.arm for entry in entries})
    repetitions = max((entry.repetition for entry in entries), default=0)
    turns = sorted({each.start.spec.get("max_turns", 0) for each in told if each.start is not None})
    conversations = count(len(manifest.conversations), "conversation")
    parts = [f"{conversations}: {count(arms, 'arm')}, up to {count(repetitions, 'repetition')} of each"]
    if any(turns):  # a record from elsewhere has no plan
        parts.append(count(turns[0], "turn") if len(turns) == 1 else f"{turns[0]} to {turns[-1]} turns")
    starts = (
        [event for event in read_record(folder.events).events if isinstance(event, ExperimentStartEvent)]
        if folder.events.exists()
        else []
    )
    if starts:
        parts.append(f"{starts[-1].max_parallel} at a time")
        if budget := {name: cap for name, cap in (starts[-1].budget or {}).items() if cap is not None}:
            parts.append("budget " + ", ".join(f"{name} {readable(cap)}" for name, cap in budget.items()))
    return inline("; ".join(parts) + ".")


def _spec(folder: ExperimentFolder) -> Markdown:
    try:
        return fenced(folder.spec.read_text(encoding="utf-8", errors="replace").rstrip("\n"), "yaml")
    except OSError:
        return Markdown("There is none.")


def _origin(manifest: Manifest, told: Sequence[_Told]) -> str | None:
    """Of a record from elsewhere: when it was taken in, and when it was held; of any other None."""
    sources = [each.start.spec.get("source") for each in told if each.start is not None]
    if not any(isinstance(source, dict) for source in sources):
        return None
    # Events without a time of their own have that at which they were taken in.
    times = sorted(
        event.timestamp
        for each in told
        for event in (each.start, each.end)
        if event is not None and event.timestamp < manifest.created_at
    )
    text = f"Taken in from elsewhere {manifest.created_at:%Y-%m-%d %H:%M} UTC; "
    if not times:
        return f"{text}when they were held is not known."
    first, last = (f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" for time in (times[0], times[-1]))
    return f"{text}held {first} UTC." if first == last else f"{text}held from {first} to {last} UTC."


def _happened(manifest: Manifest, origin: str | None) -> Markdown:
    totals = manifest.totals
    tokens = "tokens not known" if totals.tokens is None else f"{totals.tokens:,} tokens"
    text = (
        f"{totals.completed:,} of {count(totals.conversations, 'conversation')} complete, {totals.failed:,} failed. "
        f"{count(totals.turns, 'turn')}, {count(totals.messages, 'message')}, {tokens}, cost {money(totals.cost_usd)}."
    )
    if origin is not None:
        text += f" {origin}"
    elif manifest.started_at is not None:
        text += f" Begun {manifest.started_at:%Y-%m-%d %H:%M} UTC"
        text += f", ended {manifest.completed_at:%Y-%m-%d %H:%M} UTC." if manifest.completed_at is not None else "."
    if manifest.versions:
        text += " With " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) + "."
    return inline(text)


def _ends(manifest: Manifest) -> Markdown | None:
    ends = Counter(
        (entry.status.value, entry.end_reason.value.replace("_", " ") if entry.end_reason is not None else None)
        for entry in manifest.conversations.values()
    )
    rows = [(status, reason, number) for (status, reason), number in ends.most_common()]
    return table(("status", "ended by", "conversations"), rows, left=2) if rows else None


def _problems(manifest: Manifest, told: Sequence[_Told]) -> Iterator[Markdown]:
    errors = Counter(entry.error for entry in manifest.conversations.values() if entry.error)
    for error, number in errors.most_common(SHOWN_PROBLEMS):
        yield inline(f"{number} × {error}")
    if len(errors) > SHOWN_PROBLEMS:
        yield inline(f"… and {len(errors) - SHOWN_PROBLEMS} other errors")
    for each in told:
        if each.skipped:
            yield inline(f"damaged: {each.skipped} lines of the log of {each.conversation_id} could not be read")


def _validity(told: Sequence[_Told]) -> Markdown:
    ended = [each for each in told if each.end is not None]
    invalid = sum(each.invalid for each in ended)
    notable = sum(bool(each.end and each.end.notable) for each in ended)
    return Markdown(
        f"Of {count(len(ended), 'conversation')} that ended, **{invalid:,} are invalid** (left out of statistics) and "
        f"**{notable:,} are notable** (kept, because silence and role loss are findings)."
    )


def _invalid(told: Sequence[_Told]) -> Markdown | None:
    rows = [(each.conversation_id, ", ".join(each.end.invalid)) for each in told if each.end and each.end.invalid]
    return table(("invalid", "why"), rows, left=2) if rows else None


def _notable(told: Sequence[_Told]) -> Markdown | None:
    messages: Counter[str] = Counter()
    conversations: Counter[str] = Counter()
    for each in told:
        if each.end is not None:
            messages.update(each.end.notable)
            conversations.update(each.end.notable.keys())
    rows = [(kind.replace("_", " "), number, conversations[kind]) for kind, number in messages.most_common()]
    return table(("notable", "messages", "conversations"), rows) if rows else None


def _headline(manifest: Manifest, told: Sequence[_Told]) -> Markdown | None:
    found = counted((each, each.standing) for each in told)
    kept = [each for each in found.conversations if each.lengths]
    if not kept:
        return None
    entries = [
        manifest.conversations[each.conversation_id] for each in kept if each.conversation_id in manifest.conversations
    ]
    rows = [
        _row("turns", [entry.turns for entry in entries]),
        _row("messages", [len(each.lengths) for each in kept]),
        _row("words per message", [sum(each.lengths) / len(each.lengths) for each in kept]),
        _row("words in the last third of the messages", [_last_third(each.lengths) for each in kept]),
        _row("tokens", [entry.tokens for entry in entries]),
        _row("cost in USD", [entry.cost_usd for entry in entries], ",.6f"),
    ]
    if any(entry.convergence is not None for entry in entries):
        rows.append(_row("last live convergence", [entry.convergence for entry in entries], ".3f"))
    lines = [
        table(("per conversation", "n", "mean", "median", "95 % interval of the mean"), rows),
        inline(f"The conversation is the unit of means and intervals: {found.basis}."),
    ]
    complete = sum(each.status == Status.COMPLETED for each in told)
    interval = wilson(complete, len(told))
    if interval is not None:
        share = f"{complete / len(told):.0%} (95 % interval {interval.low:.0%} to {interval.high:.0%})"
        lines.append(inline(f"Complete: {complete} of {len(told)}, {share}."))
    return Markdown("\n\n".join(lines))


def _last_third(lengths: Sequence[int]) -> float:
    part = lengths[len(lengths) - max(1, -(-len(lengths) // 3)) :]
    return sum(part) / len(part)


def _row(name: str, values: Iterable[float | None], form: str = ",.1f") -> tuple[object, ...]:
    known = [value for value in values if value is not None]
    if not known:
        return name, 0, None, None, None
    found = summarise(known)
    interval = found.interval
    shown = f"{format(interval.low, form)} to {format(interval.high, form)}" if interval is not None else None
    return name, len(known), format(sum(known) / len(known), form), format(median(known), form), shown


def _files(folder: ExperimentFolder, manifest: Manifest) -> Markdown:
    rows = [
        ("[report.html](report.html)", "figures, tables and transcripts in one page"),
        ("[notebook.ipynb](notebook.ipynb)", "the same questions asked of the database, to change and go on with"),
        ("[transcripts](transcripts/summary.md)", "every conversation as a page"),
        ("[figures](figures/)", "every figure as SVG, PNG and CSV"),
        *([("[spec.yaml](spec.yaml)", "what was asked, runnable as it stands")] if folder.spec.is_file() else []),
        (f"conv\\_{manifest.experiment_id}-\\*\\_events.jsonl", "the record itself, one line per event"),
        ("[post_processing.log](post_processing.log)", "how these pages were made"),
    ]
    return Markdown("\n".join(f"- {name}: {what}" for name, what in rows))


def _commands(manifest: Manifest) -> Iterator[str]:
    name = manifest.experiment_id
    if manifest.status not in (Status.COMPLETED, Status.RUNNING):
        retry = " --retry-failed" if manifest.totals.failed else ""
        yield f"pidgin resume {name}{retry}"
    yield f"pidgin show {name}"
    yield f"pidgin words {name}"
    yield f"pidgin query \"FROM conversations WHERE experiment_id = '{name}'\""
    yield f"pidgin report {name}"
    if len({entry.arm for entry in manifest.conversations.values()}) > 1:
        yield f"pidgin compare {name} --by arm"
    yield f"pidgin verify {name}"
