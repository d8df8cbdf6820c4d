"""`words`, `compare` and `power`: what experiments show, and how many conversations it takes to show it."""

import contextlib
import csv
import difflib
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import click
import msgspec
from rich.table import Table

from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.core.events import ConversationEndEvent, ConversationStartEvent, MessageCompleteEvent
from pidgin_cli.core.types import EndReason
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.experiments.registry import living_runner
from pidgin_cli.metrics.detectors import NORMAL, STATES
from pidgin_cli.metrics.formulas import median_slope, pearson
from pidgin_cli.metrics.passages import ATTRACTOR, entered, passage
from pidgin_cli.metrics.statistics import (
    MixedModel,
    Omnibus,
    Passage,
    Passages,
    TooLittle,
    benjamini_hochberg,
    benjamini_yekutieli,
    clopper_pearson,
    compare_groups,
    compare_pairs,
    compare_shares,
    compare_times,
    design_effect,
    detectable_effect,
    given,
    holm,
    kruskal_wallis,
    logrank,
    logrank_events,
    mixed_model,
    n_per_arm,
    permutation_f,
    power_of_hazards,
    power_of_means,
    power_of_rates,
    wilson,
)
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION, tokenize
from pidgin_cli.metrics.words import STOP_WORDS_VERSION, Order, WordUse, stop_words, word_table
from pidgin_cli.monitor.comparison import Contrast, Effects, Row, as_rows, print_effects, render_html
from pidgin_cli.monitor.console import make_console, print_prose
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.counted import why_left_out
from pidgin_cli.reports.measures import BASE, HEADLINE, TOTALS, series, totals
from pidgin_cli.reports.text import count

from .database import open_store
from .records import existing_root

__all__ = ["compare", "plan_power", "show_words"]

LABEL_CELLS = 100
WORD_CELLS = 40
NO_ARM = "(no values)"


def _print_json(rows: Sequence[Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def _note(text: str) -> None:
    click.echo(f"Note: {visible(text)}", err=True)


class _Validity:
    """Which conversations count, and what is said about those that do not."""

    def __init__(self, *, everything: bool) -> None:
        self._everything = everything
        self._counted = 0
        self._notable = 0
        self._outside: Counter[str] = Counter()

    def takes(self, *, status: str, invalid: Iterable[str], notable: bool) -> bool:
        """Whether a conversation counts; it is remembered either way."""
        why = why_left_out(status, invalid)
        if why is not None:
            self._outside[why] += 1
        if why is None or self._everything:
            self._counted += 1
            self._notable += notable
            return True
        return False

    def sentence(self, name: str) -> str:
        parts = [f"{name}: {count(self._counted, 'conversation')}"]
        outside = ", ".join(f"{number} {why}" for why, number in sorted(self._outside.items()))
        if outside:
            parts.append(f"taken in all the same: {outside}" if self._everything else f"left out: {outside}")
        if self._notable:
            parts.append(f"{self._notable} notable, kept")
        return "; ".join(parts)


# words


class _Transcripts(NamedTuple):
    by_arm: dict[str, list[list[str]]]
    said: str
    turns: list[int]
    """Of each transcript, those in which somebody spoke."""

    def size(self) -> str:
        """How long transcripts are, and what a turn is; without any, nothing."""
        if not self.turns:
            return ""
        messages = [len(texts) for transcripts in self.by_arm.values() for texts in transcripts]
        return (
            f" Transcripts have {_from_to(self.turns)} turns, {_from_to(messages)} messages; in a turn every scheduled "
            "agent speaks once."
        )


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {median(numbers):,g})"


def show_words(target: str, output: Path | None, options: Mapping[str, Any]) -> None:
    """Print how often words or emoji are used per transcript."""
    root = existing_root(output)
    folder = root.find(target)
    found = _transcripts(folder, everything=options["everything"])
    kind: Literal["word", "emoji"] = "emoji" if options["emoji"] else "word"
    order: Order = options["sort"] or ("present" if kind == "emoji" else "mean")
    filtered = kind == "word" and not options["stop_words"]
    leave_out = stop_words() if filtered else frozenset()
    groups = found.by_arm if options["by_arm"] else {"": [t for texts in found.by_arm.values() for t in texts]}
    tables = {
        arm: (len(texts), word_table(texts, kind, leave_out=leave_out, order=order)) for arm, texts in groups.items()
    }
    how = {
        "tokenizer": TOKENIZER_VERSION,
        "stop_words": STOP_WORDS_VERSION if filtered else None,
    }
    shown = options["rows"]
    if options["as_json"] or options["as_csv"]:
        rows = [
            {**({"arm": arm} if options["by_arm"] else {}), kind: row.word, **_word_numbers(row), "n": n, **how}
            for arm, (n, table) in tables.items()
            for row in table[:shown]
        ]
        _note(found.said)
        if options["as_json"]:
            _print_json(rows)
        else:
            _print_csv(rows, ["arm"] * options["by_arm"] + [kind, *WordUse._fields[1:], "n", *how])
        return
    console = make_console()
    console.print(visible(found.said), soft_wrap=True)
    for arm, (n, table) in tables.items():
        console.print()
        if options["by_arm"]:
            console.print(f"{one_line(arm, LABEL_CELLS) or NO_ARM} (n = {n})", style="bold", soft_wrap=True)
        console.print(_word_table(kind, table[:shown]) if table else f"no {kind}{'s' * (kind == 'word')}")
    console.print()
    for sentence in _how_counted(kind, order, found, filtered=filtered):
        print_prose(console, sentence, "dim")


def _transcripts(folder: ExperimentFolder, *, everything: bool) -> _Transcripts:
    by_arm: dict[str, list[list[str]]] = {}
    turns: list[int] = []
    validity = _Validity(everything=everything)
    for name, log in folder.logs().items():
        try:
            record = read_record(log)
        except LogError as error:
            _note(f"{name} is left out: {error}")
            continue
        for skipped in record.skipped:
            _note(f"{log.name}, {skipped}")
        state = run_state(record.events)
        end = next((e for e in reversed(record.events) if isinstance(e, ConversationEndEvent)), None)
        invalid, notable = (end.invalid, any(end.notable.values())) if end else ((), False)
        if not validity.takes(status=state.status.value, invalid=invalid, notable=notable):
            continue
        arm = next((e.arm for e in record.events if isinstance(e, ConversationStartEvent)), "")
        said = [e for e in record.events if isinstance(e, MessageCompleteEvent)]
        by_arm.setdefault(arm, []).append([e.message.content for e in said])
        turns.append(len({e.turn_number for e in said}))
    return _Transcripts(by_arm, validity.sentence(_title(folder)), turns)


def _title(folder: ExperimentFolder) -> str:
    return folder.slug or folder.experiment_id


def _word_numbers(row: WordUse) -> dict[str, float]:
    return {name: value for name, value in row._asdict().items() if name != "word"}


def _word_table(kind: str, rows: Sequence[WordUse]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column(kind, overflow="fold")
    for heading in ("mean uses / transcript", "% of transcripts", "median uses", "max uses"):
        table.add_column(heading, justify="right")
    for place, row in enumerate(rows, 1):
        numbers = (f"{row.mean:,.2f}", f"{100 * row.present:.1f} %", f"{row.median:,g}", f"{row.max:,}")
        table.add_row(str(place), one_line(row.word, WORD_CELLS), *numbers)
    return table


def _how_counted(kind: str, order: str, found: _Transcripts, *, filtered: bool) -> list[str]:
    orders = {"mean": "mean uses", "present": "share of transcripts", "median": "median uses", "max": "most uses"}
    what = (
        f"Words are tokens of {TOKENIZER_VERSION} in lower case, inflections apart, code included; "
        + (
            f"{len(stop_words())} stop words ({STOP_WORDS_VERSION}: English pronouns, articles, auxiliaries, "
            "prepositions, conjunctions) are left out."
            if filtered
            else "no stop words are left out."
        )
        if kind == "word"
        else f"Emoji are grapheme clusters shown as emoji ({TOKENIZER_VERSION}), skin tones folded."
    )
    return [
        what,
        "A transcript is all that the agents said in one conversation, without the opening, without thinking, and of a "
        f"branch without what it shares.{found.size()} By {orders[order]}.",
    ]


def _print_csv(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    click.echo(text.getvalue(), nl=False)


# compare

INCIDENCE = {f"incidence_{name}": name for name in (ATTRACTOR, *STATES) if name != NORMAL}
"""Shares of conversations that have entered a state."""
FIRST_PASSAGE = {f"first_passage_{name}": name for name in (ATTRACTOR, *STATES) if name != NORMAL}
"""Turns until they did."""
ENDED = {f"ended_{reason}": reason for reason in EndReason}
"""Shares of conversations that ended for a reason."""
OF_STATES = ("incidence_attractor", "first_passage_attractor")
"""What is compared of states when nothing is named."""

OF_CONVERSATION = ("arm", "seating", "repetition", "first_speaker", "opening", "seed")
"""Columns that conversations can be told apart by, beside the swept values."""

NAMED = (*BASE, *INCIDENCE, *FIRST_PASSAGE, *ENDED)
"""Measures that are no columns of stored metrics."""

FEW = 10
"""Conversations below which a bootstrap interval holds the truth clearly less often than it says."""

_Series = Sequence[float | None]


def _mean(values: _Series) -> float | None:
    found = given(values)
    return float(found.mean()) if len(found) else None


def _first3(values: _Series) -> float | None:
    return _mean(values[:3])


def _last3(values: _Series) -> float | None:
    return _mean(values[-3:])


def _delta(values: _Series) -> float | None:
    first, last = _first3(values), _last3(values)
    return None if first is None or last is None or len(values) < 6 else last - first


def _auc(values: _Series) -> float | None:
    """By the trapezium rule over the messages that have a value."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    return sum((after - at) * (one + other) / 2 for (at, one), (after, other) in itertools.pairwise(known))


def _slope(values: _Series) -> float | None:
    return median_slope([(place, value) for place, value in enumerate(values) if value is not None])


def _peak(values: _Series) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _peak_turn(values: _Series, turns: Sequence[int]) -> float | None:
    highest = _peak(values)
    return next((float(turn) for turn, value in zip(turns, values, strict=True) if value == highest is not None), None)


def _lag1(values: _Series) -> float | None:
    neighbours = [(one, other) for one, other in itertools.pairwise(values) if one is not None and other is not None]
    return pearson(*zip(*neighbours, strict=True)) if neighbours else None


REDUCTIONS: dict[str, tuple[Callable[[_Series, Sequence[int]], float | None], str]] = {
    "mean": (lambda values, _: _mean(values), "the mean over its messages"),
    "first3": (lambda values, _: _first3(values), "the mean of its first three messages"),
    "last3": (lambda values, _: _last3(values), "the mean of its last three messages"),
    "delta": (
        lambda values, _: _delta(values),
        "the mean of its last three messages less that of its first three",
    ),
    "slope": (lambda values, _: _slope(values), "the Theil-Sen slope by message"),
    "auc": (lambda values, _: _auc(values), "the area under its curve by message (trapezium rule)"),
    "peak": (lambda values, _: _peak(values), "the highest value of a message"),
    "peak_turn": (_peak_turn, "the turn of the first message with the highest value"),
    "lag1_autocorr": (lambda values, _: _lag1(values), "the correlation of each message's value with the next one's"),
}
"""How the values of its messages, with their turns, become one number."""


class _Said(NamedTuple):
    """One message's value of a measure."""

    turn: int
    agent_id: str
    value: float


class _Conversation(NamedTuple):
    row: Mapping[str, Any]
    """Of the table `conversations`."""
    measures: Mapping[str, float | None]
    series: Mapping[str, Sequence[_Said]]
    """Of the measures of messages, what they were reduced from."""
    last_turn: int
    entered: Mapping[str, int] | None
    """The turn at which each state was first entered; None: its states are not known."""

    def fact(self, measure: str) -> bool | None:
        """Whether it counts in a share of conversations; None: not known."""
        if measure in ENDED:
            return None if self.row["end_reason"] is None else self.row["end_reason"] == ENDED[measure]
        return None if self.entered is None else INCIDENCE[measure] in self.entered

    def passage(self, measure: str) -> Passage | None:
        """The turns until a state, or until nothing more was seen of it; None: not known."""
        return passage(self.entered, FIRST_PASSAGE[measure], self.last_turn, self.row["end_reason"])

    def value(self, key: str) -> str | None:
        """What it has under a swept name or column; None: it has no such, or its arm is not known."""
        variables = _variables(self.row)
        if key in variables:
            return _label(variables[key])
        if key not in OF_CONVERSATION or (key == "arm" and self.row["arm"] is None):
            return None
        return _label(self.row[key])


def _variables(row: Mapping[str, Any]) -> dict[str, Any]:
    variables = row["variables"]
    return json.loads(variables) if isinstance(variables, str) else dict(variables or {})


def _with_values(conversations: Sequence[_Conversation], key: str) -> list[tuple[str, _Conversation]]:
    """Those that have something under a swept name or column, with what it is.

    Raises:
        SpecError: none has.
    """
    found = [(value, each) for each in conversations if (value := each.value(key)) is not None]
    if conversations and not found:
        there = dict.fromkeys(name for each in conversations for name in (*_variables(each.row), *OF_CONVERSATION))
        name = conversations[0].row["experiment_id"]
        raise SpecError(f"{name} has no {key!r}; there are {', '.join(there)}")
    return found


def _without(name: str, conversations: Sequence[_Conversation], key: str) -> list[str]:
    """A sentence where some have nothing under a swept name or column."""
    number = sum(conversation.value(key) is None for conversation in conversations)
    return [f"{name}: {count(number, 'conversation')} without {key}, left out"] if number else []


def _label(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or NO_ARM
    return json.dumps(value, ensure_ascii=False)


class _Group(NamedTuple):
    name: str
    members: list[_Conversation]


def compare(targets: tuple[str, str | None], output: Path | None, options: Mapping[str, Any]) -> int:
    """Effects between groups of conversations. Gives the exit status."""
    root = existing_root(output)
    first, second = targets
    by = options["by"]
    if second is None and by is None:
        raise click.UsageError("Name two experiments, or one and --by KEY to compare its arms.")
    if options["to"] is not None and not options["html"]:
        raise click.UsageError("--to is for --html; leave it out, or give both.")
    wanted = [_parse(root, target) for target in (first, second) if target is not None]
    with open_store(root) as store:
        _import(store, root, [folder for folder, _ in wanted])
        names = _stored(store, options["metrics"])
        sides, said = [], []
        for folder, conditions in wanted:
            validity = _Validity(everything=options["everything"])
            read = _read(store, folder, names, options["reduce"])
            label = _title(folder) + (f" ({', '.join('='.join(c) for c in conditions)})" if conditions else "")
            said += [sentence for key, _ in conditions for sentence in _without(_title(folder), read, key)]
            chosen = [
                conversation
                for conversation in _filtered(read, conditions)
                if validity.takes(
                    status=conversation.row["status"],
                    invalid=_reasons(conversation.row),
                    notable=bool(conversation.row["notable"]),
                )
            ]
            sides.append(_Group(label, chosen))
            said.append(validity.sentence(label))
    if len(sides) == 2 and sides[0].name == sides[1].name:
        sides = [side._replace(name=folder.experiment_id) for side, (folder, _) in zip(sides, wanted, strict=True)]
    for side in sides:
        if not side.members:
            raise SpecError(f"{side.name} has no conversation to compare; --all takes in those that are left out")
    stray = [] if second is None else sorted(_ids(sides[0]) & _ids(sides[1]))
    if stray:
        raise SpecError(f"{count(len(stray), 'conversation')} would be in both groups, such as {stray[0]}")
    contrasts = _contrasts(sides, by, said)
    measures = _measures(options["metrics"], [c for side in sides for c in side.members])
    effects = _effects(contrasts, measures, said, options)
    if options["as_json"]:
        for sentence in said:
            _note(sentence)
        _print_json(as_rows(effects))
    elif options["html"]:
        page = render_html(effects)
        if options["to"] is None:
            click.echo(page, nl=False)
        else:
            _save(options["to"], page)
    else:
        print_effects(make_console(), effects)
    return 0


def _save(path: Path, text: str) -> None:
    if path.exists():
        raise SpecError(f"{path} exists already; choose another name")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"{visible(str(path))} written; open it in a browser")


def _ids(group: _Group) -> set[str]:
    return {member.row["conversation_id"] for member in group.members}


def _reasons(row: Mapping[str, Any]) -> list[str]:
    return list(row["invalid_reasons"] or ()) or (["invalid"] if row["invalid"] else [])


def _parse(root: OutputRoot, target: str) -> tuple[ExperimentFolder, list[tuple[str, str]]]:
    """The experiment, and the conditions after a colon: `EXP:KEY=VALUE,KEY=VALUE`."""
    name, colon, rest = target.partition(":")
    if not colon or "=" not in rest:
        return root.find(target), []
    conditions: list[tuple[str, str]] = []
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if equals:
            conditions.append((key.strip(), value))
        else:
            conditions[-1:] = [(conditions[-1][0], f"{conditions[-1][1]},{part}")] if conditions else []
    try:
        return root.find(name), conditions
    except NotFound as error:
        with contextlib.suppress(NotFound):  # a folder may have such a name
            return root.find(target), []
        raise error from None


def _import(store: EventStore, root: OutputRoot, folders: Sequence[ExperimentFolder]) -> None:
    """Take what is new in the records first, so that nobody compares yesterday's numbers."""
    unique = {folder.experiment_id: folder for folder in folders}
    for imported in store.import_experiments(
        list(unique.values()),
        is_live=lambda experiment_id: living_runner(root, experiment_id) is not None,
        waiting=lambda: _note("another import is under way; this one waits for it"),
    ):
        if imported.failed:
            raise LogError(f"{imported.experiment_id} could not be imported: {imported.failed}")
        for damage in imported.damage:
            _note(f"damaged: {damage}")


def _stored(store: EventStore, asked: Sequence[str]) -> list[str]:
    """The stored metrics to read."""
    there = store.metrics.names()
    if "all" in asked:
        return there
    if not asked:
        return [name for name in HEADLINE if name in there]
    for name in asked:
        if name not in there and name not in NAMED:
            near = difflib.get_close_matches(name, [*NAMED, *there], n=3) or list(BASE)
            raise SpecError(f"there is no measure {name!r}; near are {', '.join(near)}")
    return [name for name in asked if name in there]


def _read(store: EventStore, folder: ExperimentFolder, names: Sequence[str], reduce: str) -> list[_Conversation]:
    """Every conversation of an experiment with one number for each measure."""
    reduction = REDUCTIONS[reduce][0]
    stored: dict[str, dict[int, Mapping[str, Any]]] = {}
    of_states = [name for name in ("state", "state_onset") if name in store.metrics.names()]
    columns = list(dict.fromkeys((*names, *of_states)))
    for row in store.metrics.by_message(folder.experiment_id, columns) if columns else ():
        stored.setdefault(row["conversation_id"], {})[row["message_index"]] = row
    found = []
    for row in store.conversations.of(folder.experiment_id):
        messages = store.messages.of(row["conversation_id"])
        words = [len(tokenize(message["content"])) for message in messages]
        turns = [message["turn_number"] for message in messages]
        metrics = stored.get(row["conversation_id"], {})
        of_message = [metrics.get(message["message_index"], {}) for message in messages]
        of_messages = series(messages, words) | {
            name: [_as_number(values.get(name)) for values in of_message] for name in names if metrics
        }
        found.append(
            _Conversation(
                row,
                {name: reduction(x, turns) for name, x in of_messages.items()} | totals(row, words),
                {
                    name: [
                        _Said(message["turn_number"], message["agent_id"], value)
                        for message, value in zip(messages, values, strict=True)
                        if value is not None
                    ]
                    for name, values in of_messages.items()
                },
                max(turns, default=0),
                entered(
                    {message["message_index"]: turn for message, turn in zip(messages, turns, strict=True)},
                    [values.get("state") for values in of_message],
                    [values.get("state_onset") for values in of_message],
                ),
            )
        )
    return found


def _as_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _filtered(conversations: Sequence[_Conversation], conditions: Sequence[tuple[str, str]]) -> list[_Conversation]:
    chosen = list(conversations)
    for key, value in conditions:
        fitting = {id(each) for there, each in _with_values(conversations, key) if _same(there, value)}
        chosen = [each for each in chosen if id(each) in fitting]
    if conversations and not chosen:
        key, value = conditions[-1]
        there = sorted({value for value, _ in _with_values(conversations, key)})
        raise SpecError(f"no conversation has {key}={value}; there are {', '.join(there[:8])}")
    return chosen


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _contrasts(
    sides: Sequence[_Group], by: str | None, said: list[str]
) -> list[tuple[Contrast, _Group, _Group, list[_Group]]]:
    """The pairs of groups to compare, each with all the groups it was taken from."""
    if by is None:
        return [(Contrast(sides[0].name, sides[1].name), sides[0], sides[1], [])]
    said += [sentence for side in sides for sentence in _without(side.name, side.members, by)]
    split = [_split(side, by) for side in sides]
    if len(sides) == 1:
        groups = list(split[0].values())
        if len(groups) < 2:
            raise SpecError(f"all conversations of {sides[0].name} have the same {by}: {next(iter(split[0]))}")
        return [
            (Contrast(f"{by}={one.name}", f"{by}={other.name}"), one, other, groups if len(groups) > 2 else [])
            for one, other in itertools.combinations(groups, 2)
        ]
    common = [value for value in split[0] if value in split[1]]
    if not common:
        raise SpecError(f"{sides[0].name} and {sides[1].name} have no {by} in common")
    for side, values in zip(sides, split, strict=True):
        if alone := [value for value in values if value not in common]:
            said.append(f"{side.name} alone has {by}={', '.join(alone)}: not compared")
    return [
        (Contrast(sides[0].name, sides[1].name, f"{by}={value}"), split[0][value], split[1][value], [])
        for value in common
    ]


def _split(group: _Group, key: str) -> dict[str, _Group]:
    found: dict[str, _Group] = {}
    for value, member in _with_values(group.members, key):
        found.setdefault(value, _Group(value, [])).members.append(member)
    return dict(sorted(found.items(), key=_in_order))


def _in_order(item: tuple[str, Any]) -> tuple[float, str]:
    try:
        return float(item[0]), ""
    except ValueError:
        return math.inf, item[0]


def _measures(asked: Sequence[str], conversations: Sequence[_Conversation]) -> list[str]:
    """Those that some conversation has a value for, in a fixed order; named ones in the order they are named."""
    if asked and "all" not in asked:
        return list(dict.fromkeys(asked))
    there = dict.fromkeys(name for c in conversations for name, value in c.measures.items() if value is not None)
    found = [name for name in dict.fromkeys((*BASE, *there)) if name in there]
    if all(conversation.entered is None for conversation in conversations):
        of_states: list[str] = []
    elif asked:
        seen = {ATTRACTOR, *(state for c in conversations for state in c.entered or ())}
        of_states = [name for name, state in (INCIDENCE | FIRST_PASSAGE).items() if state in seen]
    else:
        of_states = list(OF_STATES)
    reasons = {conversation.row["end_reason"] for conversation in conversations}
    ends = [name for name, reason in ENDED.items() if reason in reasons] if asked and len(reasons) > 1 else []
    return [*found, *of_states, *ends]


def _effects(
    contrasts: Sequence[tuple[Contrast, _Group, _Group, list[_Group]]],
    measures: Sequence[str],
    said: Sequence[str],
    options: Mapping[str, Any],
) -> Effects:
    primary = options["primary"]
    if primary is not None and primary not in measures:
        raise SpecError(f"the primary measure {primary!r} is not compared; there are {', '.join(measures)}")
    rows: list[Row] = []
    omnibus: dict[str, Omnibus] = {}
    for contrast, a, b, groups in contrasts:
        for measure in measures:
            if groups and measure not in omnibus:
                omnibus[measure] = _of_all(measure, groups, options["seed"])
            row = _row(contrast, measure, a, b, options)
            model = _by_turn(measure, a, b) if options["mixed"] and row.kind == "mean" else None
            rows.append(row._replace(omnibus=omnibus.get(measure), turns=model))
    if options["mixed"] and not any(row.turns for row in rows):
        raise SpecError("no measure has enough values by message for a mixed model; leave --mixed out")
    several = bool(omnibus)
    adjust = holm if several else benjamini_yekutieli if options["yekutieli"] else benjamini_hochberg
    adjustment = "Holm" if several else "BY" if options["yekutieli"] else "BH"
    families = [[m] for m in measures] if several else [[m for m in measures if m != primary]]
    for family in families:
        places = [place for place, row in enumerate(rows) if row.measure in family]
        p = [rows[place].p if rows[place].varies else None for place in places]
        for place, value in zip(places, adjust(p), strict=True):
            rows[place] = rows[place]._replace(adjusted=value)
    title = " and ".join(dict.fromkeys(name for c, *_ in contrasts for name in (c.a, c.b)))
    method = _method(rows, adjustment, options)
    return Effects(f"Comparison: {title}", rows, said, method, adjustment, options["seed"], options["reduce"])


def _row(contrast: Contrast, measure: str, a: _Group, b: _Group, options: Mapping[str, Any]) -> Row:
    seed, pair_by, primary = options["seed"], options["pair_by"], measure == options["primary"]
    if measure in FIRST_PASSAGE:
        one, other = ([member.passage(measure) for member in group.members] for group in (a, b))
        return Row(contrast, measure, compare_times(one, other), None, None, primary)
    values = [[_one_number(member, measure) for member in group.members] for group in (a, b)]
    pairs = compare_pairs(_pairs(a, b, pair_by, measure), seed=seed) if pair_by else None
    if measure in INCIDENCE or measure in ENDED:
        so, also = ([member.fact(measure) for member in group.members] for group in (a, b))
        return Row(contrast, measure, compare_shares(so, also), pairs, None, primary)
    return Row(contrast, measure, compare_groups(*values, seed=seed), pairs, None, primary)


def _one_number(member: _Conversation, measure: str) -> float | None:
    if measure in INCIDENCE or measure in ENDED:
        fact = member.fact(measure)
        return None if fact is None else float(fact)
    return member.measures.get(measure)


def _of_all(measure: str, groups: Sequence[_Group], seed: int) -> Omnibus:
    if measure in FIRST_PASSAGE:
        known = [[p for member in group.members if (p := member.passage(measure)) is not None] for group in groups]
        return Omnibus(None, None, logrank(*(([p.time for p in x], [p.event for p in x]) for x in known if x)))
    each = [[_one_number(member, measure) for member in group.members] for group in groups]
    return Omnibus(permutation_f(*each, seed=seed), kruskal_wallis(*each))


def _by_turn(measure: str, a: _Group, b: _Group) -> MixedModel | None:
    """The measure by group and turn, from the middle turn on; None where there is too little for it."""
    said = [
        (mark, member.row["conversation_id"], each)
        for mark, group in (("a", a), ("b", b))
        for member in group.members
        for each in member.series.get(measure, ())
    ]
    if not said:
        return None
    turns = [each.turn for _, _, each in said]
    middle = (min(turns) + max(turns)) / 2
    agents = sorted({each.agent_id for _, _, each in said})
    if any({each.agent_id for mark, _, each in said if mark == side} != set(agents) for side in "ab"):
        agents = agents[:1]  # where they are not the same on both sides, they are part of what differs
    try:
        for random_slope in (True, False):
            model = mixed_model(
                [each.value for *_, each in said],
                [mark for mark, *_ in said],
                [turn - middle for turn in turns],
                [name for _, name, _ in said],
                # Each against the mean of all, so that the other effects are those of the mean agent.
                covariates={
                    f"agent={agent}": [(each.agent_id == agent) - 1 / len(agents) for *_, each in said]
                    for agent in agents[1:]
                },
                random_slope=random_slope,
            )
            if model.converged:
                break
    except TooLittle:
        return None
    return model


def _pairs(a: _Group, b: _Group, key: str, measure: str) -> list[tuple[float | None, float | None]]:
    """Means of the conversations that share a value of the key, on both sides."""
    one, other = _split(a, key), _split(b, key)
    common = [value for value in one if value in other]
    if not common:
        raise SpecError(f"{a.name} and {b.name} have no {key} in common, so that nothing can be paired")
    return [
        (
            _mean([_one_number(member, measure) for member in one[value].members]),
            _mean([_one_number(member, measure) for member in other[value].members]),
        )
        for value in common
    ]


def _method(rows: Sequence[Row], adjustment: str, options: Mapping[str, Any]) -> list[str]:
    exact = {row.permutation.exact for row in rows if row.permutation}
    way = (
        "every arrangement" if exact == {True} else "9,999 draws" if exact == {False} else "every arrangement or draws"
    )
    pair_by, measures = options["pair_by"], dict.fromkeys(row.measure for row in rows if row.adjusted is not None)
    what = REDUCTIONS[options["reduce"]][1]
    left_out = options["primary"] is not None and adjustment != "Holm"
    family = sum(row.adjusted is not None for row in rows)
    alike = dict.fromkeys(row.measure for row in rows if row.p is not None and not row.varies)
    kinds = {row.kind for row in rows}
    sentences = []
    if "mean" in kinds:
        sentences += [
            f"The unit is the conversation. Of a measure of messages each has one number: {what}; "
            f"{', '.join(TOTALS)} are totals.",
            "Differences are B less A, with a BCa bootstrap interval over "
            + (f"pairs of the same {pair_by}" if pair_by else "conversations")
            + f" (9,999 draws, seed {options['seed']}); p from a permutation test"
            + (f" of signs within pairs ({way})." if pair_by else f" of the means ({way})."),
        ]
    if "share" in kinds:
        sentences.append(
            "Shares of conversations: Wilson's intervals"
            + (
                f"; differences over pairs of the same {pair_by}, p from changes of sign within pairs."
                if pair_by
                else "; of a difference Newcombe's; p from Fisher's exact test."
            )
        )
    if "time" in kinds:
        sentences.append(
            "Turns to a state, dated back to its onset: Kaplan-Meier medians, means without the state up to the last "
            "turn at which each group was still seen (or had all entered it), p from a log-rank test"
            + (", not paired" if pair_by else "")
            + ". Conversations at their turn limit are censored"
            + _otherwise([row.found for row in rows])
        )
    if any(row.turns for row in rows):
        sentences.append(
            "Mixed model: linear, by REML, of group × turn with a random intercept and slope (where that does not "
            "converge, an intercept) per conversation, and the agent as a covariate; Wald tests, which are in no "
            "family and need about 20 conversations: with fewer go by the p of conversation values." + _unsound(rows)
        )
    sentences.append(
        {
            "BH": f"p (BH): Benjamini-Hochberg over the family of {count(family, 'test')}",
            "BY": f"p (BY): Benjamini-Yekutieli over the family of {count(family, 'test')}",
            "Holm": "p (Holm): over the pairs of groups within each measure, not over measures",
        }[adjustment]
        + (f" ({', '.join(measures)})." if measures else ".")
        + (f" Without any spread, so that no test could find anything: {', '.join(alike)}." if alike else "")
        + (f" {options['primary']} was named primary and is left out of it." if left_out else "")
        + " Bold: at most 0.05."
    )
    smallest = min(row.paired.n if row.paired else min(row.n) for row in rows)
    if smallest:
        half = _half_width(smallest)
        sentences.append(
            f"n = {smallest} in the smallest group supports claims of about ±{100 * half:.0f} points on a share."
            + (" Bootstrap intervals of so few are too narrow: go by p." if smallest < FEW else "")
        )
    if any(map(any, (row.missing for row in rows))):
        sentences.append("Conversations in which a measure cannot be computed are left out of that measure: see (n).")
    return sentences


def _otherwise(found: Iterable[object]) -> str:
    ended = max((sum(times.otherwise) for times in found if isinstance(times, Passages)), default=0)
    if not ended:
        return "."
    return (
        f"; so are, in means, medians and p, up to {ended:,} that ended otherwise before. "
        "The incidence takes these for another way to end (Aalen-Johansen)."
    )


def _unsound(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row.measure for row in rows if row.turns and not row.turns.converged)
    return f" The fit did not converge: {', '.join(names)}." if names else ""


def _half_width(n: int) -> float:
    interval = wilson(n // 2, n)
    assert interval is not None, "n is above 0"
    return (interval.high - interval.low) / 2


def _most_unseen(n: int) -> float:
    interval = clopper_pearson(0, n)
    assert interval is not None, "n is above 0"
    return interval.high


# power


def plan_power(options: Mapping[str, Any]) -> None:
    """Print how many conversations it takes, what a number of them can find, or how surely."""
    plan = _plan(options)
    if options["as_json"]:
        _print_json([plan])
        return
    console = make_console()
    print_prose(console, plan["answer"], "bold")
    for sentence in plan["assumptions"]:
        print_prose(console, sentence, "dim")


def _plan(options: Mapping[str, Any]) -> dict[str, Any]:
    effect, rates, hazard = options["effect"], options["incidence"], options["hazard_ratio"]
    n, power, alpha = options["n"], options["power"], options["alpha"]
    kinds = [
        name for name, v in (("--effect", effect), ("--incidence", rates), ("--hazard-ratio", hazard)) if v is not None
    ]
    if len(kinds) > 1:
        raise click.UsageError(f"{' and '.join(kinds)} are different plans; give one of them.")
    if kinds and n is not None and power is not None:
        raise click.UsageError("--n asks for the power, --power for the n; leave one of them out.")
    if not kinds and n is None:
        raise click.UsageError("Give --effect, --incidence or --hazard-ratio, or --n for the effect that it can find.")
    for name in ("sd", "icc", "turns"):
        if options[name] is not None and kinds not in ([], ["--effect"]):
            raise click.UsageError(f"--{name} is for differences of means (--effect).")
    if (options["icc"] is None) != (options["turns"] is None):
        raise click.UsageError("--icc and --turns belong together: how alike, and how many, the turns of one are.")
    if options["event_share"] is not None and hazard is None:
        raise click.UsageError("--event-share is for --hazard-ratio.")
    plan: dict[str, Any] = {"alpha": alpha, "n_per_arm": n, "power": power}
    if rates is not None and rates[0] == rates[1]:
        raise click.UsageError("--incidence needs two different shares.")
    if hazard == 1:
        raise click.UsageError("A --hazard-ratio of 1 is no effect.")
    if rates is not None:
        _solve(plan, lambda size: power_of_rates(rates, size, alpha))
        what = f"{100 * rates[0]:g} % against {100 * rates[1]:g} % of conversations"
        assumptions = ["Two independent arms of equal size; a share of conversations; arcsine approximation."]
        plan["incidence"] = list(rates)
    elif hazard is not None:
        share = options["event_share"] or 1.0
        _solve(plan, lambda size: power_of_hazards(hazard, 2 * size * share, alpha))
        what = f"a hazard ratio of {hazard:g}"
        plan |= {"hazard_ratio": hazard, "event_share": share}
        plan["events"] = logrank_events(hazard, power or 0.8, alpha) if n is None else 2 * n * share
        assumptions = [
            f"Log-rank test by Schoenfeld's formula, which counts events ({plan['events']:g} in all); "
            f"{100 * share:g} % of conversations have the event before they end"
            + (" (--event-share says otherwise)." if options["event_share"] is None else ".")
        ]
    else:
        what, assumptions = _plan_means(plan, options)
    plan["answer"] = _answer(plan, what)
    plan["assumptions"] = [
        *assumptions,
        f"Two-sided test at {alpha:g}, of one measure: a family of measures needs more.",
        "The conversation is the unit: more turns do not replace conversations.",
        f"n = {plan['n_per_arm']} supports claims of about ±{100 * _half_width(plan['n_per_arm']):.0f} points "
        "on a share (Wilson, 95 %, near one half). What none of them shows is in at most "
        f"{100 * _most_unseen(plan['n_per_arm']):.2g} % of conversations (Clopper-Pearson, 95 %).",
    ]
    return plan


def _plan_means(plan: dict[str, Any], options: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Fill in a plan for a difference of means; gives what it is about, and what it assumes."""
    sd, correlation, turns, alpha = options["sd"], options["icc"], options["turns"], options["alpha"]
    unit, assumptions = 1.0 if sd is None else sd, []
    if correlation is not None:
        inflation = design_effect(correlation, turns)
        unit *= math.sqrt(inflation / turns)
        assumptions.append(
            f"Each conversation is one mean of {turns} turns with an intra-class correlation of {correlation:g}: "
            f"design effect {inflation:.1f}, {turns / inflation:.1f} effective turns; its standard deviation is "
            f"{unit:.3g}{'' if sd is not None else ' of that of a turn'}."
        )
        scale = "standard deviations of a turn" if sd is None else "units of the measure"
    elif sd is not None:
        assumptions.append(f"Conversation values have a standard deviation of {sd:g} in both arms.")
        scale = "units of the measure"
    else:
        assumptions.append("The effect is in standard deviations of conversation values (d).")
        scale = "standard deviations"
    assumptions.insert(0, "Two independent arms of equal size; t test on one value per conversation, about normal.")
    effect = options["effect"]
    if effect is None:
        plan["power"] = plan["power"] or 0.8
        effect = detectable_effect(options["n"], plan["power"], alpha) * unit
        plan["detectable"] = effect
    else:
        _solve(plan, lambda size: power_of_means(effect / unit, size, alpha))
    plan |= {"effect": effect, "d": effect / unit}
    return f"a difference of {effect:.4g} {scale}", assumptions


def _solve(plan: dict[str, Any], power_at: Callable[[int], float]) -> None:
    """Fill in the power that `n_per_arm` gives, or the `n_per_arm` that the power needs."""
    if plan["n_per_arm"] is not None:
        plan["power"] = power_at(plan["n_per_arm"])
        return
    plan["power"] = plan["power"] or 0.8
    plan["n_per_arm"] = n_per_arm(power_at, plan["power"])
    if plan["n_per_arm"] is None:
        raise SpecError("no number of conversations that could be run is enough to find that")
    plan["solved"] = True


def _answer(plan: Mapping[str, Any], what: str) -> str:
    n, power = plan["n_per_arm"], f"{100 * plan['power']:.0f} %"
    if plan.get("solved"):
        return f"{n:,} conversations per arm ({2 * n:,} in two arms) find {what} with {power} power."
    if "detectable" in plan:
        return f"{n:,} conversations per arm find {what} with {power} power; smaller ones less surely."
    return f"{n:,} conversations per arm find {what} with {power} power."
