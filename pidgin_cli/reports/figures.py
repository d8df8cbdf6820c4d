"""The figures of an experiment: what each shows, the numbers it is drawn from, and why one is not there.

The conversation is the unit: means go over conversations, intervals draw conversations. What is drawn is a selection
where there is too much to see; the tables are always whole.
"""

import contextlib
import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

import altair as alt
import numpy as np
from numpy.typing import NDArray

from pidgin_cli.conversation.setup import ensure_person_settings
from pidgin_cli.core.errors import SpecError
from pidgin_cli.metrics.detectors import lexical_hash
from pidgin_cli.metrics.multivariate import cluster_order, correlations, principal_components
from pidgin_cli.metrics.passages import ATTRACTOR, entered, passage
from pidgin_cli.metrics.semantics import LEXICAL_HASH
from pidgin_cli.metrics.statistics import (
    Passage,
    benjamini_hochberg,
    bootstrap,
    common_horizon,
    cumulative_incidence,
    given,
    hedges_g,
    kaplan_meier,
    logrank,
    permutation_test,
    restricted_mean,
    wilson,
)
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION
from pidgin_cli.metrics.words import STOP_WORDS_VERSION, stop_words, word_table
from pidgin_cli.providers.embeddings import cached_vectors

from . import drawing
from .measures import HEADLINE, series, totals
from .study import NO_ARM, Study, Talk
from .text import count, readable
from .transcript import money

__all__ = ["FIGURES", "Figure", "as_csv", "draw", "undrawn"]

SHOWN_WORDS = 20
DRAWN_LINES = 60
"""Conversations drawn as a thin line of their own."""
DRAWN_CELLS = 40
"""Conversations on a side of the similarity matrix."""
DRAWN_RASTER = 120
"""Rows of the state raster."""
LOOKED_AT = 24
"""Conversations among which the most recurrent one is looked for."""
LONGEST_PLOT = 150
"""Messages on a side of the recurrence plot."""
FACETS = 3
"""Arms that are drawn side by side; of more, all together."""
DRAWS = 2_000
SEED = 20260101
"""Of all resampling here, so that a report says the same when it is made again."""
WIDTH = 640
LOWEST_INDEX = -1.0
"""Of the corrected convergence in the drawing."""
MOST_TICKS = 12
"""On an axis that counts; of more, the library chooses some."""
BASELINE_TURNS = 3
"""The first ones, which later ones are held against."""
MOST_Z = 3.0
"""Beyond it all have the same colour."""
DRAWN_TURNS = 90
"""Columns of the heatmap, over all its panels."""
SIGNIFICANT = 0.05
DRAWN_CONTRASTS = 4
"""Arms that the effect forest holds against the first."""
MOST_G = 4.0
"""Standard deviations that the effect forest reaches to either side."""
DRAWN_PAIRS = 3
"""Pairs of models that are drawn side by side."""
DRAWN_PATHS = 6
"""Conversations whose semantic path is drawn."""
PATH_TURNS = 40
"""Turns of a semantic path; of more, so many evenly over all of them."""
_END_SHAPES = ("diamond", "square", "cross", "triangle-down", "triangle-left", "triangle-right")

Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


class Figure(NamedTuple):
    """One figure, drawn or not."""

    name: str
    """Of its files."""
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    """What it is drawn from."""
    svg: str | None
    """As `drawing.svg` gives it."""
    absent: str | None
    """Why there is none."""


class _Absent(Exception):
    """This figure cannot be drawn; says why."""


class _Drawn(NamedTuple):
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    chart: alt.TopLevelMixin
    data: Mapping[str, drawing.Rows]


def as_csv(figure: Figure) -> bytes:
    """The numbers of a figure; what is not known is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figure.columns)
    writer.writerows(figure.rows)
    return text.getvalue().encode()


def draw(study: Study, name: str) -> Figure:
    """One of `FIGURES`."""
    title, make = FIGURES[name]
    try:
        found = make(study)
    except _Absent as why:
        return undrawn(name, str(why))
    return Figure(name, title, found.caption, found.columns, found.rows, drawing.svg(found.chart, found.data), None)


def undrawn(name: str, why: str) -> Figure:
    """One of `FIGURES` that is not there."""
    return Figure(name, FIGURES[name][0], "", (), [], None, why)


def _dicts(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly over all of them."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _need(study: Study, talks: Sequence[Talk]) -> Sequence[Talk]:
    """These conversations. Raises _Absent where there are none."""
    if talks:
        return talks
    if not study.all:
        raise _Absent("no conversation has begun")
    raise _Absent("no conversation has a message" if study.valid else "all conversations are invalid")


def _counts(talks: Iterable[Talk]) -> Counter[str]:
    """Conversations of each arm."""
    return Counter(talk.arm for talk in talks)


# Words


def _words(study: Study, kind: Literal["word", "emoji"]) -> _Drawn:
    talks = _need(study, study.compared)
    groups = [(NO_ARM, list(talks))]
    if len(arms := _counts(talks)) > 1:
        groups += [(arm, study.of_arm(arm, talks)) for arm in study.arms if arm in arms]
    left_out = stop_words() if kind == "word" else frozenset()
    columns = ("arm", kind, "mean_uses", "percent_of_transcripts", "median_uses", "max_uses", "uses", "transcripts")
    rows: list[tuple[Any, ...]] = []
    for arm, found in groups:
        rows += [
            (arm, use.word, use.mean, 100 * use.present, use.median, use.max, use.uses, len(found))
            for use in word_table((talk.texts for talk in found), kind, leave_out=left_out)
        ]
    if not rows:
        raise _Absent(f"no {'emoji' if kind == 'emoji' else 'word'} is used in any message")
    shown_arms = [arm for arm, _ in groups[1:]] if 1 < len(groups) - 1 <= FACETS else [NO_ARM]
    order = [row[1] for row in rows if row[0] == shown_arms[0]][:SHOWN_WORDS]
    wanted = set(order)
    data = [row for row in _dicts(columns, rows) if row["arm"] in shown_arms and row[kind] in wanted]
    for row in data:
        row["label"] = f"{row['percent_of_transcripts']:.0f} %"
        row["least"] = min(row["mean_uses"], row["max_uses"])
    y = alt.Y(kind, type="nominal", sort=order, title=None)
    x_scale = alt.Scale(type="log", nice=True)
    base = alt.Chart(alt.NamedData(name="words")).encode(y=y)
    title = "uses per transcript (logarithmic)"
    chart = alt.layer(
        base.mark_rule(opacity=0.35).encode(
            x=alt.X("least", type="quantitative", scale=x_scale, title=title), x2="max_uses"
        ),
        base.mark_tick(thickness=2, opacity=0.7, color="currentColor").encode(x=alt.X("max_uses", type="quantitative")),
        base.mark_circle(size=75, opacity=1, color=drawing.COLOURS[0]).encode(
            x=alt.X("mean_uses", type="quantitative")
        ),
        base.mark_text(align="left", dx=8, fontSize=10).encode(
            x=alt.X("max_uses", type="quantitative"), text="label:N"
        ),
    ).properties(width=WIDTH // len(shown_arms), height=alt.Step(17))
    whole: alt.TopLevelMixin = chart
    if len(shown_arms) > 1:
        whole = chart.facet(column=alt.Column("arm", type="nominal", sort=shown_arms, title=None))
    caption = (
        f"{study.basis}. A transcript is all that was said in one conversation. Dot: mean uses per transcript, over "
        "all transcripts; tick: most uses in one transcript; label: % of transcripts in which it occurs at least once. "
    )
    if kind == "word":
        caption += (
            f"Words are tokens of {TOKENIZER_VERSION}, lower case, inflections counted apart; without the pronouns, "
            f"articles, auxiliary verbs, prepositions and conjunctions of {STOP_WORDS_VERSION}."
        )
    else:
        caption += "Emoji are grapheme clusters, skin tones folded together; runs count each emoji."
    return _Drawn(caption, columns, rows, whole, {"words": data})


# By turn and by message


def _lengths(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    columns = ("conversation_id", "arm", "message_index", "turn", "agent", "tokens", "characters", "empty")
    rows: list[tuple[Any, ...]] = []
    by_turn: dict[tuple[str, str, int], list[int]] = {}
    for talk in talks:
        for message, tokens in zip(talk.messages, talk.tokens, strict=True):
            index, turn, agent = message["message_index"], message["turn_number"], message["agent_id"]
            text = message["content"]
            rows.append((talk.id, talk.arm, index, turn, agent, len(tokens), len(text), not text.strip()))
            by_turn.setdefault((talk.arm, agent, turn), []).append(len(tokens))
    drawn = {talk.id for talk in _spread(talks, DRAWN_LINES)}
    thin = [row for row in _dicts(columns, rows) if row["conversation_id"] in drawn]
    thick: list[dict[str, Any]] = [
        {"arm": arm, "agent": agent, "turn": turn, "tokens": fmean(found)}
        for (arm, agent, turn), found in by_turn.items()
    ]
    x = _turns(row["turn"] for row in thick)
    y = alt.Y("tokens", type="quantitative", scale=alt.Scale(type="symlog"), title="words per message")
    agents = sorted({row["agent"] for row in thick})
    dash = alt.StrokeDash("agent", type="nominal", title="agent", legend=None if len(agents) < 2 else alt.Legend())
    by_arm = drawing.colour("arm", "arm", study.arms, _counts(talks))
    point = len({row["turn"] for row in thick}) == 1
    chart = alt.layer(
        alt.Chart(alt.NamedData(name="thin"))
        .mark_line(strokeWidth=0.7, opacity=0.3)
        .encode(x=x, y=y, detail="conversation_id:N", color=by_arm, strokeDash=dash),
        alt.Chart(alt.NamedData(name="thick"))
        .mark_line(strokeWidth=2.5, point=point)
        .encode(x=x, y=y, color=by_arm, strokeDash=dash),
    ).properties(width=WIDTH, height=300)
    caption = (
        f"{study.basis}. Thick: mean by arm and agent over those still running "
        f"at that turn; thin: conversations{_some(talks, DRAWN_LINES)}. A message at 0 is empty or holds no word, such "
        "as emoji alone."
    )
    return _Drawn(caption, columns, rows, chart, {"thin": thin, "thick": thick})


def _turns(turns: Iterable[int], *, labels: bool = True) -> alt.X:
    """The axis of turns, from the first to the last there is, a single one in its middle."""
    found = list(turns)
    low, high = min(found), max(found)
    room = 0.5 if low == high else 0.0
    scale = alt.Scale(domain=[low - room, high + room], nice=False, zero=False)
    return alt.X("turn", type="quantitative", title="turn", axis=_whole(low, high) if labels else None, scale=scale)


def _whole(low: int, high: int) -> alt.Axis:
    """Labels at whole numbers. A least step alone still sets ticks between them where there are few."""
    if high - low < MOST_TICKS:
        return alt.Axis(values=list(range(low, high + 1)), format="d")
    return alt.Axis(tickMinStep=1, format="d")


def _some(items: Sequence[Any], most: int) -> str:
    return f", {most} of them" if len(items) > most else ""


def _vocabulary(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    columns = ("conversation_id", "arm", "message_index", "tokens", "types")
    rows: list[tuple[Any, ...]] = []
    slopes: list[float] = []
    for talk in talks:
        seen: set[str] = set()
        total = 0
        points: list[tuple[int, int]] = []
        for message, tokens in zip(talk.messages, talk.tokens, strict=True):
            total += len(tokens)
            seen.update(tokens)
            if tokens:
                rows.append((talk.id, talk.arm, message["message_index"], total, len(seen)))
                points.append((total, len(seen)))
        if total >= 200 and len(points) >= 3:
            x, y = np.log(np.array(points, dtype=float)).T
            slopes.append(float(np.polyfit(x, y, 1)[0]))
    if not rows:
        raise _Absent("no message holds a word")
    drawn = {talk.id for talk in _spread(talks, DRAWN_LINES)}
    data = [row for row in _dicts(columns, rows) if row["conversation_id"] in drawn]
    log = alt.Scale(type="log", nice=False)
    chart = (
        alt.Chart(alt.NamedData(name="growth"))
        .mark_line(strokeWidth=1.2, strokeOpacity=0.6, point=alt.OverlayMarkDef(size=8, fillOpacity=0.6, opacity=1))
        .encode(
            x=alt.X("tokens", type="quantitative", scale=log, title="words so far"),
            y=alt.Y("types", type="quantitative", scale=log, title="different words so far"),
            detail="conversation_id:N",
            color=drawing.colour("arm", "arm", study.arms, _counts(talks)),
        )
        .properties(width=WIDTH, height=320)
    )
    slope = (
        f"Slope of the logarithms (Heaps) over messages: median {median(slopes):.2f} of {len(slopes)} conversations. "
        if slopes
        else "No slope: no conversation has 200 words in three messages. "
    )
    caption = (
        f"{study.basis}. A line for each{_some(talks, DRAWN_LINES)}, both agents together, a point after each message. "
        f"{slope}A tail that goes flat says nothing new."
    )
    return _Drawn(caption, columns, rows, chart, {"growth": data})


def _convergence(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    columns = ("arm", "turn", "n", "mean", "ci_low", "ci_high")
    values: dict[str, dict[str, dict[int, float]]] = {}
    corrected = "convergence_index_pooled" in study.columns and any(
        value is not None for talk in talks for value in talk.metric("convergence_index_pooled")
    )
    for talk in talks:
        found: dict[int, list[float]] = {}
        if corrected:
            for message, value in zip(talk.messages, talk.metric("convergence_index_pooled"), strict=True):
                if value is not None:
                    found.setdefault(int(message["turn_number"]), []).append(value)
        else:
            for row in talk.turns:
                if row["complete"] and row["convergence"] is not None:
                    found.setdefault(int(row["turn_number"]), []).append(row["convergence"])
        values.setdefault(talk.arm, {})[talk.id] = {turn: fmean(each) for turn, each in found.items()}
    rows: list[tuple[Any, ...]] = []
    for arm, conversations in values.items():
        for turn in sorted({turn for each in conversations.values() for turn in each}):
            at = [each[turn] for each in conversations.values() if turn in each]
            band = bootstrap(at, seed=SEED, method="percentile", draws=DRAWS)
            rows.append((arm, turn, len(at), fmean(at), band and band.low, band and band.high))
    if not rows:
        if any(_has_states(talk) for talk in talks):
            raise _Absent("no two agents have said what can be compared, such as words")
        raise _Absent("the record holds no convergence: it was made without live metrics")
    some = {talk.id for talk in _spread(talks, DRAWN_LINES)}
    thin = [
        {"conversation_id": name, "arm": arm, "turn": turn, "value": value}
        for arm, conversations in values.items()
        for name, each in conversations.items()
        if name in some
        for turn, value in each.items()
    ]
    x = _turns(row[1] for row in rows)
    title = "convergence beyond chance" if corrected else "convergence (live score, not corrected for chance)"
    by_arm = drawing.colour("arm", "arm", study.arms, _counts(talks))
    # Where only one part of it is known and strangers are alike in that, the index can go below -1.
    points = [value for each in values.values() for own in each.values() for value in own.values()]
    cut = sum(value < LOWEST_INDEX for value in points)
    scale = alt.Scale(domain=[max(LOWEST_INDEX, min([0.0, *points])), max([1.0, *points])] if corrected else [0, 1])
    means = alt.Chart(alt.NamedData(name="means"))
    layers = [
        alt.Chart(alt.NamedData(name="thin"))
        .mark_line(strokeWidth=0.7, opacity=0.3, clip=True)
        .encode(
            x=x,
            y=alt.Y("value", type="quantitative", title=title, scale=scale),
            detail="conversation_id:N",
            color=by_arm,
        ),
        means.mark_area(opacity=0.22, clip=True).encode(
            x=x, y=alt.Y("ci_low", type="quantitative"), y2="ci_high", color=by_arm
        ),
        means.mark_line(strokeWidth=2.5, point=True, clip=True).encode(
            x=x, y=alt.Y("mean", type="quantitative"), color=by_arm
        ),
    ]
    if corrected:
        layers.append(
            alt.Chart(alt.NamedData(name="zero")).mark_rule(strokeDash=[5, 4], opacity=0.7).encode(y="zero:Q")
        )
    curves = alt.layer(*layers).properties(width=WIDTH, height=280)
    running = (
        means.mark_text(fontSize=10)
        .encode(
            x=_turns((row[1] for row in rows), labels=False),
            y=alt.Y(
                "arm",
                type="nominal",
                sort=study.arms,
                title="n",
                axis=alt.Axis(domain=False, ticks=False, labelPadding=14),
            ),
            text="n:Q",
            color=by_arm,
        )
        .properties(width=WIDTH, height=alt.Step(16))
    )
    caption = (
        f"{study.basis}. Thick: mean by arm, band: 95 % interval from drawing conversations anew (no band below two); "
        f"thin: conversations{_some(talks, DRAWN_LINES)}. Below: conversations with a value at that turn. "
    )
    caption += (
        "Similarity beyond that of messages which did not answer each other; dashed: chance."
        if corrected
        else "Longer messages and a common topic alone raise this score; the corrected one needs at least five "
        "conversations and their metrics."
    )
    if corrected and cut:
        caption += f" {cut} of {len(points)} values below {LOWEST_INDEX:g} are cut off; the CSV has all means."
    data = {"means": _dicts(columns, rows), "thin": thin, "zero": [{"zero": 0}]}
    return _Drawn(caption, columns, rows, alt.vconcat(curves, running), data)


class _ByTurn(NamedTuple):
    """Metrics by conversation and turn, held against the first turns of the same conversation."""

    talks: list[Talk]
    """Those that have such turns."""
    names: list[str]
    of: NDArray[np.int64]
    """The place of its conversation among `talks`, for each row."""
    turns: NDArray[np.int64]
    values: NDArray[np.float64]
    """One column for each of `names`; NaN: none."""
    z: NDArray[np.float64]
    steady: list[str]
    """Metrics that have none, as they are always the same in those turns."""


def _by_turn(study: Study, talks: Sequence[Talk]) -> _ByTurn:
    """Raises _Absent where nothing can be held against anything."""
    kept = [talk for talk in talks if any(turn <= BASELINE_TURNS for turn in talk.by_turn)]
    rows = [(place, turn, means) for place, talk in enumerate(kept) for turn, means in sorted(talk.by_turn.items())]
    if not rows:
        raise _Absent("the database holds no metrics by turn: the conversations were run without live metrics")
    of, turns = (np.array([row[column] for row in rows], dtype=np.int64) for column in (0, 1))
    values = np.array([row[2] for row in rows])
    if int(turns.max()) <= BASELINE_TURNS:
        raise _Absent(f"no conversation goes on after the {BASELINE_TURNS} turns that others are held against")
    early = turns <= BASELINE_TURNS
    known = np.isfinite(values[early])
    count_of, sum_of = np.zeros((len(kept), values.shape[1])), np.zeros((len(kept), values.shape[1]))
    np.add.at(count_of, of[early], known)
    np.add.at(sum_of, of[early], np.where(known, values[early], 0.0))
    base = np.divide(sum_of, count_of, out=np.full_like(sum_of, np.nan), where=count_of > 0)
    about = values - base[of]
    squares = np.where(known, about[early] ** 2, 0.0).sum(axis=0)
    free = (count_of - 1).clip(min=0).sum(axis=0)
    sd = np.sqrt(np.divide(squares, free, out=np.full_like(squares, np.nan), where=free > 0))
    size = np.where(np.isfinite(values), np.abs(values), 0.0).max(axis=0)
    varies = sd > 1e-9 * size
    z = np.divide(about, sd, out=np.full_like(about, np.nan), where=varies)
    later = np.isfinite(z[~early]).any(axis=0)
    there = np.isfinite(about[~early]).any(axis=0)
    chosen = np.flatnonzero(later)
    if not len(chosen):
        raise _Absent(f"no metric varies within the first {BASELINE_TURNS} turns, which others are held against")
    order = chosen[cluster_order(correlations(z[:, chosen]))]
    steady = [name for name, is_there, has_z in zip(study.charted, there, later, strict=True) if is_there and not has_z]
    names = [study.charted[place] for place in order]
    return _ByTurn(kept, names, of, turns, values[:, order], z[:, order], steady)


def _metrics_by_turn(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    found = _by_turn(study, talks)
    columns = ("arm", "metric", "turn", "n", "mean", "z")
    arms = _counts(found.talks)
    groups = [(NO_ARM, np.ones(len(found.of), dtype=bool), len(found.talks))]
    if len(arms) > 1:
        arm_of = np.array([study.arms.index(talk.arm) for talk in found.talks])[found.of]
        groups += [(arm, arm_of == place, arms[arm]) for place, arm in enumerate(study.arms) if arm in arms]
    rows: list[tuple[Any, ...]] = []
    for arm, members, _ in groups:
        by_turn: dict[int, tuple[Any, ...]] = {}
        for turn in np.unique(found.turns[members]).tolist():
            at = members & (found.turns == turn)
            known = np.isfinite(found.z[at])
            n = known.sum(axis=0)
            sums = (np.where(known, each[at], 0.0).sum(axis=0) for each in (found.values, found.z))
            by_turn[turn] = n, *((total / n.clip(min=1)).tolist() for total in sums)
        rows += [
            (arm, name, turn, int(n[place]), means[place], z[place])
            for place, name in enumerate(found.names)
            for turn, (n, means, z) in by_turn.items()
            if n[place]
        ]
    shown = groups[1:] if 1 < len(groups) - 1 <= FACETS else groups[:1]
    panels = {arm: f"{arm} (n = {n})" for arm, _, n in shown}
    turns = sorted({row[2] for row in rows})
    drawn = set(_spread(turns, DRAWN_TURNS // len(shown)))
    data = [
        row | {"panel": panels[row["arm"]]}
        for row in _dicts(columns, rows)
        if row["arm"] in panels and row["turn"] in drawn
    ]
    chart: alt.TopLevelMixin = (
        alt.Chart(alt.NamedData(name="cells"))
        .mark_rect()
        .encode(
            x=alt.X("turn", type="ordinal", title="turn", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("metric", type="nominal", sort=found.names, title=None),
            color=alt.Color(
                "z",
                type="quantitative",
                scale=alt.Scale(domain=[-MOST_Z, 0, MOST_Z], range=drawing.DIVERGING, interpolate="rgb", clamp=True),
                legend=alt.Legend(title=f"z against turns 1 to {BASELINE_TURNS}", gradientLength=220, tickCount=7),
            ),
        )
        .properties(width=WIDTH // len(shown) - 8, height=alt.Step(15))
    )
    if len(shown) > 1:
        chart = chart.facet(  # type: ignore[attr-defined]
            column=alt.Column("panel", type="nominal", sort=list(panels.values()), title=None), spacing=12
        )
    caption = (
        f"{study.basis}. Colour: how far a metric is from the first {BASELINE_TURNS} turns of the same conversation, "
        "mean over conversations, in standard deviations within those turns (all conversations pooled); the same "
        f"colour beyond ±{MOST_Z:g}, blank where nothing is known. Rows that go together stand together (average "
        "linkage of 1 − r over conversations and turns)."
    )
    if (without := len(talks) - len(found.talks)) > 0:
        caption += f" {count(without, 'conversation')} without metrics in those turns left out."
    there = {turn: len(set(found.of[found.turns == turn].tolist())) for turn in (turns[0], turns[-1])}
    if there[turns[0]] != there[turns[-1]]:
        few = count(there[turns[-1]], "conversation")
        caption += f" {there[turns[0]]:,} at turn {turns[0]}, {few} at turn {turns[-1]}."
    if len(drawn) < len(turns):
        caption += f" Of {len(turns)} turns {len(drawn)} are drawn; the CSV has all."
    if found.steady:
        caption += f" Always the same in those turns, so that there is no z: {', '.join(found.steady)}."
    return _Drawn(caption, columns, rows, chart, {"cells": data})


# Influence


class _Pull(NamedTuple):
    """Who copies whom, in one conversation, of two models; A is the one whose name comes first."""

    talk: Talk
    models: tuple[str, str]
    to_b: list[float]
    """Of each message of B after one of A, the share that is copied from it."""
    to_a: list[float]


def _pulls(talk: Talk) -> list[_Pull]:
    """Those of each two models in a conversation that have copied, or not, in both directions."""
    models = {agent: row["model"] for agent, row in talk.agents.items()}
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    spoken: dict[str, str | None] = {}
    """The model of the last message of each agent, the last speaker last."""
    for message, share in zip(talk.messages, talk.metric("copied_span_share"), strict=True):
        agent = message["agent_id"]
        own = message["model_requested"] or models.get(agent)
        # A branch begins after messages that are not its own; of two agents the other one had the word before.
        before = spoken or {other: model for other, model in models.items() if len(models) == 2}
        source = next((model for other, model in reversed(before.items()) if other != agent), None)
        spoken.pop(agent, None)
        spoken[agent] = own
        if share is not None and own and source and own != source:
            pair = (min(own, source), max(own, source))
            found.setdefault(pair, ([], []))[own == pair[0]].append(share)
    return [_Pull(talk, pair, *shares) for pair, shares in found.items() if all(shares)]


def _influence(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    mixed = [talk for talk in talks if len(_models(talk)) > 1]
    if not mixed:
        raise _Absent("no conversation is between different models")
    pulls = [pull for talk in mixed for pull in _pulls(talk)]
    if not pulls:
        if any(_has_states(talk) for talk in mixed):
            raise _Absent("no two different models have answered each other in four words or more")
        raise _Absent("the database holds no copied spans: the conversations were run without live metrics")
    columns = (
        "conversation_id", "arm", "model_a", "model_b", "a_to_b", "b_to_a", "messages_of_b", "messages_of_a",
    )  # fmt: skip
    rows = [(p.talk.id, p.talk.arm, *p.models, fmean(p.to_b), fmean(p.to_a), len(p.to_b), len(p.to_a)) for p in pulls]
    pairs = [pair for pair, _ in Counter(pull.models for pull in pulls).most_common()]
    shown = pairs[:DRAWN_PAIRS]
    most = max([0.05, *(value for row in rows if row[2:4] in shown for value in row[4:6])]) * 1.04
    scale = alt.Scale(domain=[0, most], nice=False)
    side = 300 if len(shown) == 1 else 200
    by_arm = drawing.colour("arm", "arm", study.arms, _counts(pull.talk for pull in pulls if pull.models in shown))
    panels = []
    data: dict[str, drawing.Rows] = {"diagonal": [{"low": 0, "high": most}]}
    told = []
    for place, pair in enumerate(shown):
        points = [row for row in _dicts(columns, rows) if (row["model_a"], row["model_b"]) == pair]
        data[f"pair{place}"] = points
        a, b = (_shortened(name) for name in pair)
        axis = alt.Axis(format="%", tickCount=5, titleLimit=side + 40)
        panels.append(
            alt.layer(
                alt.Chart(alt.NamedData(name="diagonal"))
                .mark_rule(strokeDash=[5, 4], opacity=0.6)
                .encode(
                    x=alt.X("low", type="quantitative", scale=scale),
                    y=alt.Y("low", type="quantitative", scale=scale),
                    x2="high",
                    y2="high",
                ),
                alt.Chart(alt.NamedData(name=f"pair{place}"))
                .mark_circle(size=55, fillOpacity=0.75, opacity=1)
                .encode(
                    x=alt.X("a_to_b", type="quantitative", scale=scale, axis=axis, title=[f"A {a}", f"→ B {b}"]),
                    y=alt.Y("b_to_a", type="quantitative", scale=scale, axis=axis, title="B → A"),
                    color=by_arm,
                ),
            ).properties(width=side, height=side)
        )
        more = sum(row["a_to_b"] > row["b_to_a"] for row in points)
        less = sum(row["a_to_b"] < row["b_to_a"] for row in points)
        band = bootstrap([row["a_to_b"] - row["b_to_a"] for row in points], seed=SEED, method="percentile", draws=DRAWS)
        told.append(
            f"A {pair[0]}, B {pair[1]}: more from A to B in {more} of {len(points)}, more from B to A in {less}"
            + (f", mean difference {_points(band.low)} to {_points(band.high)} points (95 %)" if band else "")
        )
    chart = panels[0] if len(panels) == 1 else alt.hconcat(*panels, spacing=24)
    caption = (
        f"{study.basis}; {len(mixed)} between different models. A point for each conversation: of the words of B, the "
        "share in spans of four or more that the message before, by A, holds too (A → B), against the same from B to "
        f"A; dashed: as much either way. {'. '.join(told)}."
    )
    if len(pairs) > len(shown):
        caption += f" The {len(shown)} commonest of {len(pairs)} pairs of models; the CSV has all."
    if (without := len(mixed) - len({pull.talk.id for pull in pulls})) > 0:
        caption += f" {count(without, 'conversation')} without a value in both directions left out."
    return _Drawn(caption, columns, rows, chart, data)


def _models(talk: Talk) -> set[str]:
    """Those that spoke in it."""
    models = {agent: row["model"] for agent, row in talk.agents.items()}
    return {name for m in talk.messages if (name := m["model_requested"] or models.get(m["agent_id"]))}


def _shortened(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


# Likeness


def _shingles(tokens: Sequence[str]) -> frozenset[Any]:
    if len(tokens) < 6:
        return frozenset((*tokens, " ".join(tokens))) if tokens else frozenset()
    return frozenset(zip(tokens, tokens[1:], tokens[2:], strict=False))


def _recurrences(talk: Talk) -> NDArray[np.float64]:
    """Trigram Jaccard of every two messages; NaN where both hold no word."""
    sets = [_shingles(tokens) for tokens in talk.tokens[:LONGEST_PLOT]]
    found = np.full((len(sets), len(sets)), np.nan)
    for i, one in enumerate(sets):
        for j in range(i, len(sets)):
            other = sets[j]
            shared = len(one & other)
            either = len(one) + len(other) - shared
            if either:
                found[i, j] = found[j, i] = shared / either
    return found


def _recurrence(study: Study) -> _Drawn:
    talks = [talk for talk in study.valid if len(talk.messages) > 1]
    if not talks:
        raise _Absent("no conversation has two messages")
    looked_at = _spread(talks, LOOKED_AT)
    best: tuple[float, Talk, NDArray[np.float64]] | None = None
    for talk in looked_at:
        found = _recurrences(talk)
        others = found[np.triu_indices(len(found), 1)]
        share = float(np.nanmean(others)) if np.isfinite(others).any() else -1.0
        if best is None or share > best[0]:
            best = share, talk, found
    assert best is not None
    share, talk, found = best
    if share < 0:
        raise _Absent("no message holds a word")
    columns = ("conversation_id", "message", "other_message", "jaccard")
    rows = [
        (talk.id, talk.messages[i]["message_index"], talk.messages[j]["message_index"], float(found[i, j]))
        for i in range(len(found))
        for j in range(len(found))
        if np.isfinite(found[i, j])
    ]
    data = [row for row in _dicts(columns, rows) if row["jaccard"] >= 0.02]
    side = max(160, min(460, 12 * len(found)))
    labels = alt.Axis(labelOverlap=True, labelAngle=0)
    chart = (
        alt.Chart(alt.NamedData(name="pairs"))
        .mark_rect(color=drawing.COLOURS[0])
        .encode(
            x=alt.X("message", type="ordinal", title="message", axis=labels),
            y=alt.Y("other_message", type="ordinal", title="message", axis=labels),
            opacity=alt.Opacity(
                "jaccard",
                type="quantitative",
                scale=alt.Scale(domain=[0, 1], range=[0.03, 1]),
                title="shared trigrams (Jaccard)",
            ),
        )
        .properties(width=side, height=side)
    )
    caption = (
        f"Conversation {talk.id}, the most repetitive of {len(looked_at)} looked at, complete or not"
        + (f", its first {LONGEST_PLOT} messages" if len(talk.messages) > LONGEST_PLOT else "")
        + ". Each cell: how many word trigrams two messages share (below six words: words). A loop shows as lines "
        "beside the diagonal; their distance is its period. Cells below 0.02 are left blank."
    )
    return _Drawn(caption, columns, rows, chart, {"pairs": data})


def _similarity(study: Study) -> _Drawn:
    talks = [talk for talk in study.compared if any(talk.tokens)]
    if len(talks) < 2:
        raise _Absent("it takes two conversations with words to compare")
    bags = [Counter(word for tokens in _last_third(talk.tokens) for word in tokens) for talk in talks]
    kept = [(talk, bag) for talk, bag in zip(talks, bags, strict=True) if bag]
    if len(kept) < 2:
        raise _Absent("fewer than two conversations end with words")
    places = {word: place for place, word in enumerate(dict.fromkeys(word for _, bag in kept for word in bag))}
    vectors = np.zeros((len(kept), len(places)), dtype=np.float32)
    for row, (_, bag) in enumerate(kept):
        vectors[row, [places[word] for word in bag]] = list(bag.values())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.minimum(1.0, vectors @ vectors.T)
    order = sorted(
        range(len(kept)), key=lambda place: (study.arms.index(kept[place][0].arm), _outcome(kept[place][0]), place)
    )
    columns = ("conversation_id", "arm", "other_conversation_id", "other_arm", "cosine")
    rows = [
        (kept[i][0].id, kept[i][0].arm, kept[j][0].id, kept[j][0].arm, round(float(cosines[i, j]), 6))
        for i in order
        for j in order
        if i != j
    ]
    drawn = [kept[place][0].id for place in _spread(order, DRAWN_CELLS)]
    wanted = set(drawn)
    data = [row for row in _dicts(columns, rows) if {row["conversation_id"], row["other_conversation_id"]} <= wanted]
    side = max(160, min(460, 16 * len(drawn)))
    labels = alt.Axis(labelOverlap=True, labelFontSize=9)
    chart = (
        alt.Chart(alt.NamedData(name="pairs"))
        .mark_rect(color=drawing.COLOURS[0])
        .encode(
            x=alt.X("conversation_id", type="nominal", sort=drawn, title=None, axis=labels),
            y=alt.Y("other_conversation_id", type="nominal", sort=drawn, title=None, axis=labels),
            opacity=alt.Opacity(
                "cosine", type="quantitative", scale=alt.Scale(domain=[0, 1], range=[0.03, 1]), title="cosine"
            ),
        )
        .properties(width=side, height=side)
    )
    within = [row[4] for row in rows if row[1] == row[3]]
    between = [row[4] for row in rows if row[1] != row[3]]
    arms = _counts(talk for talk, _ in kept)
    by_arm = ", ".join(f"{arm} ({arms[arm]})" for arm in study.arms if arm in arms)
    means = f"Mean within an arm {fmean(within):.2f}" if within else ""
    means += f", between arms {fmean(between):.2f}" if between and within else ""
    caption = (
        f"{study.basis}. Cosine of word counts over the last third of the messages, all words counted, ordered by arm"
        f" and by the state at the end{_some(kept, DRAWN_CELLS)}. From the top: {by_arm}. "
        f"{means + '. ' if means else ''}Conversations about one topic share words anyway."
    )
    return _Drawn(caption, columns, rows, chart, {"pairs": data})


def _last_third(items: Sequence[Any]) -> Sequence[Any]:
    return items[len(items) - max(1, -(-len(items) // 3)) :]


# Semantics


def _paths(talks: Sequence[Talk]) -> list[Talk]:
    """Of each arm and outcome the first conversation, then the second of each, and so on, in turn over the arms."""
    arms: dict[str, dict[str, list[Talk]]] = {}
    for talk in talks:
        arms.setdefault(talk.arm, {}).setdefault(_outcome(talk), []).append(talk)
    by_arm = [list(_in_turn(list(outcomes.values()))) for outcomes in arms.values()]
    return list(itertools.islice(_in_turn(by_arm), DRAWN_PATHS))


def _in_turn(groups: Sequence[Sequence[Talk]]) -> Iterator[Talk]:
    """The first of each group, then the second of each that has one, and so on."""
    return (talk for row in itertools.zip_longest(*groups) for talk in row if talk is not None)


def _vectors(study: Study, said: Sequence[tuple[Talk, int]]) -> tuple[list[NDArray[np.float64] | None], str]:
    """The direction of each message, given by its place, and what it comes from, in words.

    A model is not asked for vectors here: they come from the cache.
    """
    models = Counter(model for talk in study.compared for model in talk.metric("embedding_model") if model is not None)
    model = max(models, key=lambda name: models[name], default=None)
    if model is None:
        why = "no embedding model was chosen"
    elif model == LEXICAL_HASH:
        why = "by choice"
    else:
        why = f"those of {model} are not in the cache any more"
        with contextlib.suppress(SpecError):  # it tells what is wrong where the model is asked
            ensure_person_settings()
            found = cached_vectors(model, [talk.messages[place]["content"] for talk, place in said])
            if any(vector is not None for vector in found):
                known = (None if vector is None else np.asarray(vector, dtype=np.float64) for vector in found)
                return [_direction(vector) for vector in known], f"embeddings by {model}"
    hashes = [_direction(lexical_hash(talk.tokens[place])) for talk, place in said]
    return hashes, f"{LEXICAL_HASH}, which stands for words and pairs of words, not for meaning ({why})"


def _direction(vector: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    length = 0.0 if vector is None else float(np.linalg.norm(vector))
    return vector / length if vector is not None and 0 < length < np.inf else None


def _speaks_twice(talk: Talk) -> bool:
    speakers = Counter(message["agent_id"] for message in talk.messages if message["content"].strip())
    return max(speakers.values(), default=0) > 1


def _semantic_path(study: Study) -> _Drawn:
    talks = _need(study, [talk for talk in study.compared if talk.messages])
    chosen = _paths([talk for talk in talks if _speaks_twice(talk)])
    if not chosen:
        raise _Absent("no agent has said two messages in a conversation")
    said: list[tuple[Talk, int]] = []
    longest = 0
    for talk in chosen:
        turns = sorted({message["turn_number"] for message in talk.messages})
        drawn = {*_spread(turns, PATH_TURNS), turns[-1]}
        longest = max(longest, len(turns))
        said += [(talk, place) for place, message in enumerate(talk.messages) if message["turn_number"] in drawn]
    vectors, source = _vectors(study, said)
    known = [(talk, place, vector) for (talk, place), vector in zip(said, vectors, strict=True) if vector is not None]
    found = principal_components(np.array([vector for *_, vector in known])) if known else None
    if found is None:
        raise _Absent("all vectors of messages are the same" if known else "no message holds a word")
    columns = ("conversation_id", "arm", "end", "message_index", "turn", "agent", "component_1", "component_2")
    ends = {talk.id: _outcome(talk) for talk in chosen}
    rows = [
        (talk.id, talk.arm, ends[talk.id], m["message_index"], m["turn_number"], m["agent_id"], *at)
        for (talk, place, _), at in zip(known, found.scores.round(6).tolist(), strict=True)
        for m in [talk.messages[place]]
    ]
    low, high = found.scores.min(axis=0), found.scores.max(axis=0)
    half = float((high - low).max()) * 0.54
    several = len(_counts(talks)) > 1
    titles = {talk.id: f"{talk.id}\n{_shortened(talk.arm)}" if several else talk.id for talk in chosen}
    paths: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _dicts(columns, rows):
        paths.setdefault((row["conversation_id"], row["agent"]), []).append(row)
    data = []
    for (talk_id, _), path in paths.items():
        marks = [*_steps(path), path[0] | {"kind": "first"}, path[-1] | {"kind": "last"}]
        data += [mark | {"panel": titles[talk_id]} for mark in marks]
    chart = _path_chart(
        agents=sorted({row[5] for row in rows}),
        states=list(dict.fromkeys(ends.values())),
        panels=list(titles.values()),
        middle=((low + high) / 2).tolist(),
        half=half,
        explained=found.explained,
    )
    caption = (
        f"{study.basis}; {len(chosen)} of them, of each arm and state at the end the first, then the second and so "
        f"on. Vectors of their messages: {source}; on the two components in which all of these differ most "
        "(PCA; in brackets the share of their variance). Arrows lead from each message of an agent to its next one; "
        "ring: its first; large mark: its last."
    )
    if longest > PATH_TURNS:
        caption += f" Of longer conversations {PATH_TURNS} turns, evenly over all."
    if without := len(said) - len(known):
        caption += f" {count(without, 'message')} without a vector, such as empty ones, left out."
    return _Drawn(caption, columns, rows, chart, {"paths": data})


def _path_chart(
    *,
    agents: Sequence[str],
    states: Sequence[str],
    panels: Sequence[str],
    middle: Sequence[float],
    half: float,
    explained: Sequence[float],
) -> alt.FacetChart:
    """Draws the table `paths`: a panel for each conversation, all with the same axes.

    Args:
        middle, half: of both axes, in units of the components.
        explained: the share of the variance that each component has.
    """
    x, y = (
        channel(
            f"component_{place + 1}",
            type="quantitative",
            # As wide as high, so that an arrow points where it seems to.
            scale=alt.Scale(domain=[float(centre) - half, float(centre) + half], nice=False, zero=False),
            axis=alt.Axis(labels=False, ticks=False, grid=False, domain=False),
            title=f"component {place + 1} ({explained[place]:.0%})",
        )
        for place, (channel, centre) in enumerate(zip((alt.X, alt.Y), middle, strict=True))
    )
    by_agent = alt.Color(
        "agent",
        type="nominal",
        scale=alt.Scale(domain=agents, range=[drawing.COLOURS[place % 7] for place in range(len(agents))]),
        legend=alt.Legend(title="agent", symbolType="stroke"),
    )
    by_end = alt.Shape(
        "end",
        type="nominal",
        scale=alt.Scale(domain=states, range=[_END_SHAPES[place % len(_END_SHAPES)] for place in range(len(states))]),
        legend=alt.Legend(title="state at the end", symbolFillColor="#8a8f98", symbolStrokeWidth=0),
    )
    across = min(3, len(panels))
    side = {1: 380, 2: 290}.get(across, 196)
    path_of = alt.Chart(alt.NamedData(name="paths"))
    steps = path_of.transform_filter("datum.kind == 'step'")
    layers = alt.layer(
        steps.mark_rule(strokeWidth=1.1, strokeOpacity=0.55).encode(x=x, y=y, x2="to_1", y2="to_2", color=by_agent),
        steps.transform_filter(f"datum.length > {0.05 * half}")
        .mark_point(shape="triangle", size=26, filled=True, opacity=1)
        .encode(
            x=alt.X("head_1", type="quantitative"),
            y=alt.Y("head_2", type="quantitative"),
            angle=alt.Angle("angle", type="quantitative", scale=None),
            color=by_agent,
        ),
        path_of.transform_filter("datum.kind == 'first'")
        .mark_point(shape="circle", size=45, filled=False, opacity=1, strokeWidth=1.6)
        .encode(x=x, y=y, color=by_agent),
        path_of.transform_filter("datum.kind == 'last'")
        .mark_point(size=110, filled=True, opacity=1, stroke="currentColor", strokeWidth=0.8)
        .encode(x=x, y=y, fill=by_agent, shape=by_end),
    ).properties(width=side, height=side, view=alt.ViewBackground(stroke="currentColor", strokeOpacity=0.15))
    header = alt.Header(labelExpr="split(datum.label, '\\n')", title=None, labelFontSize=11)
    return layers.facet(facet=alt.Facet("panel", type="nominal", sort=list(panels), header=header), columns=across)


def _steps(path: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """From each message of an agent to its next one, with the head of an arrow on the way."""
    for one, other in itertools.pairwise(path):
        ahead, up = other["component_1"] - one["component_1"], other["component_2"] - one["component_2"]
        yield dict(one) | {
            "kind": "step",
            "to_1": other["component_1"],
            "to_2": other["component_2"],
            "head_1": one["component_1"] + 0.6 * ahead,
            "head_2": one["component_2"] + 0.6 * up,
            "length": math.hypot(ahead, up),
            "angle": math.degrees(math.atan2(ahead, up)),  # clockwise from above, where the triangle points
        }


# Ends


def _shares(study: Study, label: str, told: Callable[[Talk], str], talks: Sequence[Talk], basis: str) -> _Drawn:
    columns = ("arm", label, "conversations", "of", "share", "ci_low", "ci_high")
    rows: list[tuple[Any, ...]] = []
    ends = [name for name, _ in Counter(told(talk) for talk in talks).most_common()]
    for arm in study.arms:
        found = Counter(told(talk) for talk in talks if talk.arm == arm)
        n = found.total()
        for end in ends:
            if n:
                interval = wilson(found[end], n)
                assert interval is not None, "there are trials"
                rows.append((arm, end, found[end], n, found[end] / n, interval.low, interval.high))
    data = _dicts(columns, rows)
    for row in data:
        row["counted"] = f"{row['conversations']} of {row['of']}"
    share = alt.X(
        "share",
        type="quantitative",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
        title="share of conversations",
    )
    y = alt.Y(label, type="nominal", sort=ends, title=None)
    arms = _counts(talks)
    offset = alt.YOffset("arm", type="nominal", sort=[arm for arm in study.arms if arm in arms])
    base = alt.Chart(alt.NamedData(name="shares")).encode(y=y, yOffset=offset)
    step = alt.Step(22 if len(arms) == 1 else 15, **{"for": "offset" if len(arms) > 1 else "position"})
    chart = alt.layer(
        base.mark_bar(opacity=0.75).encode(x=share, color=drawing.colour("arm", "arm", study.arms, arms)),
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("ci_low", type="quantitative"), x2="ci_high"),
        base.mark_text(align="left", dx=5, fontSize=10).encode(
            x=alt.X("ci_high", type="quantitative"), text="counted:N"
        ),
    ).properties(width=WIDTH - 120, height=step)
    caption = f"{basis}. Lines: 95 % intervals (Wilson)."
    return _Drawn(caption, columns, rows, chart, {"shares": data})


def _ending(talk: Talk) -> str:
    reason = talk.row["end_reason"]
    status = str(talk.row["status"])
    return status if reason is None else f"{status}: {str(reason).replace('_', ' ')}"


def _end_reasons(study: Study) -> _Drawn:
    talks = _need(study, study.valid)
    basis = f"n = {count(len(talks), 'conversation')} not marked invalid, complete or not"
    return _shares(study, "end", _ending, talks, basis)


def _has_states(talk: Talk) -> bool:
    return any(state is not None for state in talk.metric("state"))


def _with_states(study: Study, among: Sequence[Talk]) -> list[Talk]:
    """Those whose states are known. Raises _Absent where there are none."""
    talks = [talk for talk in _need(study, [each for each in among if each.messages]) if _has_states(talk)]
    if not talks:
        raise _Absent("the database holds no states: the conversations were run without live metrics")
    return talks


def _compared_with_states(study: Study) -> tuple[list[Talk], str]:
    """Those that are compared and whose states are known, and a sentence on which they are."""
    talks = _with_states(study, study.compared)
    unknown = len(study.compared) - len(talks)
    return talks, study.basis + (f"; of {unknown} no states are known" if unknown else "")


def _last_state(talk: Talk) -> str:
    return str([state for state in talk.metric("state") if state is not None][-1]).replace("_", " ")


def _outcome(talk: Talk) -> str:
    """The state of the last message, or how it ended where no states are known."""
    return _last_state(talk) if _has_states(talk) else _ending(talk)


def _end_states(study: Study) -> _Drawn:
    talks, basis = _compared_with_states(study)
    return _shares(study, "state", _last_state, talks, f"{basis}. The state is that of the last message")


def _first_passage(talk: Talk) -> Passage:
    """The turns until the first state outside `normal`, dated back to its onset. Of one of `_with_states`."""
    turns = {message["message_index"]: int(message["turn_number"]) for message in talk.messages}
    began = entered(turns, talk.metric("state"), talk.metric("state_onset"))
    found = passage(began, ATTRACTOR, max(turns.values()), talk.row["end_reason"])
    assert found is not None, "its states are known"
    return found


def _raster(study: Study) -> _Drawn:
    talks = sorted(_with_states(study, study.valid), key=lambda talk: (*_sort_key(talk), len(talk.id), talk.id))
    columns = ("conversation_id", "arm", "message_index", "turn", "state", "end")
    rows: list[tuple[Any, ...]] = []
    runs: list[dict[str, Any]] = []
    shown = _spread(talks, DRAWN_RASTER)
    drawn = {talk.id for talk in shown}
    for talk in talks:
        for message, state in zip(talk.messages, talk.metric("state"), strict=True):
            index = message["message_index"]
            rows.append((talk.id, talk.arm, index, message["turn_number"], state, _ending(talk)))
            name = "not known" if state is None else str(state).replace("_", " ")
            if talk.id not in drawn:
                continue
            if runs and runs[-1]["conversation_id"] == talk.id and runs[-1]["state"] == name:
                runs[-1]["end"] = index + 1
            else:
                runs.append({"conversation_id": talk.id, "state": name, "start": index, "end": index + 1})
    order = [talk.id for talk in shown]
    states = ["normal", *sorted({run["state"] for run in runs} - {"normal"})]
    palette = ["#8a8f9855", *(drawing.COLOURS[place % 7] for place in range(len(states) - 1))]
    y = alt.Y("conversation_id", type="nominal", sort=order, title=None, axis=alt.Axis(labelFontSize=9))
    furthest = max(run["end"] for run in runs)
    chart = alt.layer(
        alt.Chart(alt.NamedData(name="runs"))
        .mark_bar(cornerRadius=0)
        .encode(
            x=alt.X(
                "start",
                type="quantitative",
                title="message",
                axis=_whole(0, furthest),
                scale=alt.Scale(domain=[0, furthest], nice=False),
            ),
            x2="end",
            y=y,
            color=alt.Color(
                "state",
                type="nominal",
                scale=alt.Scale(domain=states, range=palette),
                legend=alt.Legend(title="state"),
            ),
        ),
        alt.Chart(alt.NamedData(name="ends"))
        .mark_text(align="left", dx=4, fontSize=9)
        .encode(x=alt.X("at", type="quantitative"), y=y, text="told:N"),
    ).properties(width=WIDTH - 160, height=alt.Step(max(6, min(16, 900 // len(order)))))
    ends = [{"conversation_id": talk.id, "at": furthest, "told": _ending(talk)} for talk in shown]
    caption = (
        f"n = {count(len(talks), 'conversation')} not marked invalid, complete or not; a row for each"
        f"{_some(talks, DRAWN_RASTER)}, sorted by the "
        "onset of the first state other than normal. A state is shown from the message that confirms it on. At the "
        "right: how it ended."
    )
    return _Drawn(caption, columns, rows, chart, {"runs": runs, "ends": ends})


def _sort_key(talk: Talk) -> tuple[int, float]:
    found = _first_passage(talk)
    return (0, found.time) if found.event else (1, -found.time)


def _survival(study: Study) -> _Drawn:
    talks, basis = _compared_with_states(study)
    columns = ("arm", "turn", "at_risk", "entered", "censored", "without_state", "ci_low", "ci_high")
    rows: list[tuple[Any, ...]] = []
    found = {arm: [_first_passage(talk) for talk in talks if talk.arm == arm] for arm in study.arms}
    passages = {arm: each for arm, each in found.items() if each}
    curves = {arm: kaplan_meier([p.time for p in each], [p.event for p in each]) for arm, each in passages.items()}
    horizon = common_horizon(list(curves.values()))
    assert horizon is not None, "there are conversations"
    until: list[str] = []
    for arm, curve in curves.items():
        if (mean := restricted_mean(curve, horizon)) is not None:
            until.append(f"{arm} {mean.value:.1f} ± {mean.se:.1f}")
        rows.append((arm, 0, len(passages[arm]), 0, 0, 1.0, None, None))
        for place, time in enumerate(curve.times):
            band = curve.intervals[place]
            counts = (curve.at_risk[place], curve.events[place], curve.censored[place])
            rows.append((arm, int(time), *counts, curve.survival[place], band and band.low, band and band.high))
    data = _dicts(columns, rows)
    x = _turns(row[1] for row in rows)
    y = alt.Y("without_state", type="quantitative", scale=alt.Scale(domain=[0, 1]), title="still in the normal state")
    by_arm = drawing.colour("arm", "arm", study.arms, _counts(talks))
    base = alt.Chart(alt.NamedData(name="curve"))
    chart = alt.layer(
        base.mark_area(opacity=0.15, interpolate="step-after").encode(
            x=x, y=alt.Y("ci_low", type="quantitative"), y2="ci_high", color=by_arm
        ),
        base.mark_line(interpolate="step-after", strokeWidth=2).encode(x=x, y=y, color=by_arm),
        base.transform_filter("datum.censored > 0")
        .mark_tick(orient="vertical", thickness=1.5, height=12)
        .encode(x=x, y=y, color=by_arm),
    ).properties(width=WIDTH, height=300)
    caption = (
        f"{basis}. Kaplan-Meier estimate; {sum(p.event for each in passages.values() for p in each)} left the normal "
        "state. Event: the turn in which "
        "the first other state began, dated back to its onset. Ticks: conversations that ended without one, for "
        "whatever reason, counted as censored. Bands: 95 %, log(-log)."
    )
    if until:
        caption += f" Mean turns without one, up to turn {horizon:g} (± its standard error): {', '.join(until)}."
    groups = [([p.time for p in each], [p.event for p in each]) for each in passages.values()]
    if (test := logrank(*groups)) is not None:
        caption += f" Log-rank test of the arms: p = {test.p:.2g}."
    if competing := _competing([p for each in passages.values() for p in each]):
        caption += f" {competing}"
    return _Drawn(caption, columns, rows, chart, {"curve": data})


def _competing(passages: Sequence[Passage]) -> str | None:
    """What the curve hides where conversations ended before they could enter a state."""
    early = sum(p.ended is not None for p in passages)
    if not early:
        return None
    causes = ["state" if p.event else None if p.ended is None else "end" for p in passages]
    found = cumulative_incidence([p.time for p in passages], causes)
    share = found["state"].incidence[-1] if "state" in found else 0.0
    return (
        f"{early} ended before the turn limit without one. Counted as such instead of as censored, {share:.0%} of "
        "all entered a state (cumulative incidence, all arms together)."
    )


# Effects


def _one_value_each(study: Study, talk: Talk) -> dict[str, float | None]:
    """The measures of a conversation: means over its messages, and totals."""
    words = [len(tokens) for tokens in talk.tokens]
    of_messages = series(talk.messages, words) | {name: talk.metric(name) for name in HEADLINE if name in study.columns}
    means = {name: found.mean() if len(found := given(values)) else None for name, values in of_messages.items()}
    return {name: None if mean is None else float(mean) for name, mean in means.items()} | totals(talk.row, words)


def _effects(study: Study) -> _Drawn:
    talks = _need(study, study.compared)
    arms = _counts(talks)
    if len(arms) < 2:
        raise _Absent("it takes two arms with conversations that count")
    first, *others = sorted(arms)  # as `compare` orders them
    by_arm: dict[str, list[dict[str, float | None]]] = {arm: [] for arm in (first, *others)}
    for talk in talks:
        by_arm[talk.arm].append(_one_value_each(study, talk))
    found: list[tuple[str, str, list[float | None], list[float | None], float | None]] = []
    for arm in others:
        for measure in by_arm[first][0]:
            a, b = ([each[measure] for each in by_arm[side]] for side in (first, arm))
            if len(given(a)) and len(given(b)):
                # Where nothing varies no test could find anything, and it is no part of the family.
                varies = len({value for value in (*a, *b) if value is not None}) > 1
                test = permutation_test(a, b, seed=SEED, draws=DRAWS) if varies else None
                found.append((measure, arm, a, b, test and test.p))
    adjusted = benjamini_hochberg([p for *_, p in found])
    columns = (
        "measure", "arm", "against", "n", "n_against", "mean", "mean_against", "g", "ci_low", "ci_high", "p", "p_bh",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for (measure, arm, a, b, p), p_bh in zip(found, adjusted, strict=True):
        g, known_a, known_b = hedges_g(a, b), given(a), given(b)
        low, high = (None, None) if g is None or g.interval is None else g.interval
        means = float(known_b.mean()), float(known_a.mean())
        rows.append((measure, arm, first, len(known_b), len(known_a), *means, g and g.value, low, high, p, p_bh))
    shown = [arm for arm in others if any(row[1] == arm and row[7] is not None for row in rows)][:DRAWN_CONTRASTS]
    data = [row for row in _dicts(columns, rows) if row["g"] is not None and row["arm"] in shown]
    if not data:
        raise _Absent("no measure has two values in two arms and varies within them")
    for row in data:
        row["stands"] = row["p_bh"] is not None and row["p_bh"] <= SIGNIFICANT
        row["at"] = max(-MOST_G, min(MOST_G, row["g"]))
        row["mark"] = "inside" if row["at"] == row["g"] else "above" if row["g"] > 0 else "below"
        row["from"], row["to"] = (max(-MOST_G, min(MOST_G, row[edge])) for edge in ("ci_low", "ci_high"))
    order = sorted({row["measure"] for row in data}, key=lambda name: (-_first_g(data, name), name))
    reach = max(0.5, *(abs(row[edge]) for row in data for edge in ("from", "to", "at")))
    x_axis = alt.X(
        "at",
        type="quantitative",
        scale=alt.Scale(domain=[-reach, reach], nice=False),
        axis=alt.Axis(tickCount=9),
        title=f"Hedges g: standard deviations above {_shortened(first)}",
    )
    colour = drawing.colour("arm", "arm", study.arms, Counter({arm: arms[arm] for arm in shown}))
    y = alt.Y("measure", type="nominal", sort=order, title=None)
    offset = alt.YOffset("arm", type="nominal", sort=shown) if len(shown) > 1 else alt.Undefined
    shape = alt.Shape(
        "mark",
        type="nominal",
        scale=alt.Scale(domain=["inside", "above", "below"], range=["circle", "triangle-right", "triangle-left"]),
        legend=None,
    )
    base = alt.Chart(alt.NamedData(name="effects")).encode(y=y, yOffset=offset)
    step = alt.Step(20 if len(shown) == 1 else 11, **{"for": "position" if len(shown) == 1 else "offset"})
    chart = alt.layer(
        alt.Chart(alt.NamedData(name="zero")).mark_rule(strokeDash=[5, 4], opacity=0.7).encode(x="zero:Q"),
        base.mark_rule(strokeWidth=1.4, strokeOpacity=0.8).encode(
            x=alt.X("from", type="quantitative"), x2="to", color=colour
        ),
        *(
            base.transform_filter(f"{'' if stands else '!'}datum.stands")
            .mark_point(filled=stands, size=60, opacity=1, strokeWidth=1.6)
            .encode(x=x_axis, color=colour, shape=shape)
            for stands in (True, False)
        ),
    ).properties(width=WIDTH - 120, height=step)
    tests = sum(p is not None for p in adjusted)
    caption = (
        f"{study.basis}. "
        + (f"{others[0]} (n = {arms[others[0]]})" if len(others) == 1 else "The other arms")
        + f" against {first} (n = {arms[first]}), one value for each conversation: the mean over its messages, or a "
        f"total. Lines: 95 % intervals. Filled: p ≤ {SIGNIFICANT:g} after Benjamini-Hochberg over all {tests} tests "
        f"(permutation tests, up to {DRAWS:,} draws); rings: not."
    )
    if len(others) > len(shown):
        caption += f" {len(shown)} of {len(others)} other arms are drawn; the CSV has all."
    if beyond := sum(row["mark"] != "inside" for row in data):
        caption += f" {beyond} beyond ±{MOST_G:g}, drawn as a triangle at the edge."
    if single := sum(min(arms[arm], arms[first]) < 2 for arm in others):
        caption += f" No standard deviation in {count(single, 'comparison')} with a single conversation."
    flat = dict.fromkeys(row[0] for row in rows if row[7] is None and min(arms[row[1]], arms[first]) > 1)
    if flat:
        caption += f" Not drawn for some or all arms, as it varies within neither or lacks values: {', '.join(flat)}."
    return _Drawn(caption, columns, rows, chart, {"effects": data, "zero": [{"zero": 0}]})


def _first_g(data: Sequence[Mapping[str, Any]], measure: str) -> float:
    return next(float(row["g"]) for row in data if row["measure"] == measure)


# Time and money


def _latency(study: Study) -> _Drawn:
    columns = ("conversation_id", "message_index", "model", "ttft_ms", "duration_ms", "queued_ms", "tokens_per_s")
    rows: list[tuple[Any, ...]] = []
    times: dict[tuple[str, str], list[float]] = {}
    for talk in study.valid:
        for message in talk.messages:
            if message["cached"]:
                continue  # nobody was asked
            model = message["model_requested"] or talk.agents.get(message["agent_id"], {}).get("model") or "not known"
            measured = [message[name] for name in columns[3:]]
            if any(value is not None for value in measured):
                rows.append((talk.id, message["message_index"], model, *measured))
            for what, value in (("first token", message["ttft_ms"]), ("whole reply", message["duration_ms"])):
                if value is not None:
                    times.setdefault((model, what), []).append(value)
    if not times:
        raise _Absent("no reply has a time in the record")
    data = [
        {"model": model, "what": what, "seconds": found[place] / 1000, "share": (place + 1) / len(found)}
        for (model, what), unsorted in times.items()
        for found in [sorted(unsorted)]
        for place in [*_spread(range(len(found)), 200), len(found) - 1]
    ]
    models = sorted({model for model, _ in times})
    least = min((row["seconds"] for row in data if row["seconds"] > 0), default=1.0)
    chart = (
        alt.Chart(alt.NamedData(name="times"))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X(
                "seconds", type="quantitative", scale=alt.Scale(type="symlog", constant=least), title="seconds (log)"
            ),
            y=alt.Y("share", type="quantitative", title="share of replies", axis=alt.Axis(format="%")),
            color=drawing.colour("model", "model", models),
            strokeDash=alt.StrokeDash("what", type="nominal", title=None, sort=["whole reply", "first token"]),
        )
        .properties(width=WIDTH, height=260)
    )
    middle = ", ".join(
        f"{model} {what} {readable(median(found) / 1000, 3)} s" for (model, what), found in sorted(times.items())[:8]
    )
    caption = (
        f"{len(rows):,} replies in conversations not marked invalid, without waiting under a limit, retries and cached "
        f"ones. Medians: {middle}."
    )
    return _Drawn(caption, columns, rows, chart, {"times": data})


def _cost(study: Study) -> _Drawn:
    columns = ("conversation_id", "arm", "cost_usd", "prompt_tokens", "completion_tokens")
    rows = [
        (talk.id, talk.arm, talk.row["cost_usd"], talk.row["prompt_tokens"], talk.row["completion_tokens"])
        for talk in study.all
    ]
    known = [row for row in _dicts(columns, rows) if row["cost_usd"] is not None]
    if not known:
        raise _Absent("no conversation has begun" if not rows else "the price of no conversation is known")
    chart = (
        alt.Chart(alt.NamedData(name="costs"))
        .mark_circle(size=60, opacity=0.55)
        .encode(
            x=alt.X("cost_usd", type="quantitative", title="USD per conversation"),
            y=alt.Y("arm", type="nominal", title=None),
            color=drawing.colour("arm", "arm", study.arms, Counter(row["arm"] for row in known)),
        )
        .properties(width=WIDTH, height=alt.Step(28))
    )
    costs = [row["cost_usd"] for row in known]
    caption = (
        f"In all {money(sum(costs))} for {len(costs)} conversations, invalid ones included; "
        f"median {money(median(costs))}."
    )
    if len(known) < len(rows):
        caption += f" Of {len(rows) - len(known)} the price is not known."
    return _Drawn(caption, columns, rows, chart, {"costs": known})


def _word_figure(study: Study) -> _Drawn:
    return _words(study, "word")


def _emoji_figure(study: Study) -> _Drawn:
    return _words(study, "emoji")


FIGURES: Mapping[str, tuple[str, Callable[[Study], _Drawn]]] = {
    "words": ("Words per transcript", _word_figure),
    "emoji": ("Emoji per transcript", _emoji_figure),
    "state_raster": ("States, message by message", _raster),
    "end_reasons": ("How conversations ended", _end_reasons),
    "end_states": ("In which state they ended", _end_states),
    "survival": ("Turns until the first attractor state", _survival),
    "effects": ("Effects between arms", _effects),
    "convergence": ("Convergence by turn", _convergence),
    "influence": ("Who copies whom", _influence),
    "metrics_by_turn": ("Metrics turn by turn", _metrics_by_turn),
    "message_lengths": ("Message lengths", _lengths),
    "vocabulary_growth": ("Vocabulary growth", _vocabulary),
    "self_recurrence": ("Recurrence within a conversation", _recurrence),
    "similarity": ("Likeness of conversations", _similarity),
    "semantic_path": ("Paths through what was said", _semantic_path),
    "latency": ("Latency", _latency),
    "cost": ("Cost", _cost),
}
"""By name, in the order of the report: the title and what makes it."""
