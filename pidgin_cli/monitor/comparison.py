"""Effects between groups of conversations: in the terminal, as a page of its own, and as plain rows."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pidgin_cli.metrics.statistics import (
    Comparison,
    Effect,
    FixedEffect,
    Interval,
    MixedModel,
    Omnibus,
    Paired,
    Passages,
    Permutation,
    Shares,
)

from .console import print_prose
from .text import one_line, visible

__all__ = ["Contrast", "Effects", "Row", "as_rows", "print_effects", "render_html"]

LABEL_CELLS = 48
SIGNIFICANT = 0.05
GAP = 2
"""Cells between two columns."""


class Contrast(NamedTuple):
    """Two groups that are compared."""

    a: str
    b: str
    within: str | None = None
    """What both have in common, where groups are compared once for each of several values."""


Kind = Literal["mean", "share", "time"]


class Row(NamedTuple):
    """One measure of one contrast."""

    contrast: Contrast
    measure: str
    found: Comparison | Shares | Passages
    """Of values, of what is so or not, or of times to an event."""
    paired: Paired | None
    """Where conversations belong together: what the difference, the interval and p are then taken from."""
    adjusted: float | None
    primary: bool
    """Named before anybody looked, and no part of the family."""
    omnibus: Omnibus | None = None
    """Of all groups, where there are more than these two."""
    turns: MixedModel | None = None
    """The measure turn by turn, where that was asked for and the data allow it."""

    @property
    def kind(self) -> Kind:
        if isinstance(self.found, Comparison):
            return "mean"
        return "share" if isinstance(self.found, Shares) else "time"

    @property
    def n(self) -> tuple[int, int]:
        """Conversations that it is known of."""
        return (self.found.a.n, self.found.b.n) if isinstance(self.found, Comparison) else self.found.n

    @property
    def missing(self) -> tuple[int, int]:
        return (
            (self.found.a.missing, self.found.b.missing) if isinstance(self.found, Comparison) else self.found.missing
        )

    @property
    def difference(self) -> float | None:
        return self.paired.mean if self.paired else self.found.difference

    @property
    def interval(self) -> Interval | None:
        return self.paired.interval if self.paired else self.found.interval

    @property
    def g(self) -> Effect | None:
        if not isinstance(self.found, Comparison):
            return None
        if self.paired:
            return None if self.paired.g is None else Effect(self.paired.g, None)
        return self.found.g

    @property
    def permutation(self) -> Permutation | None:
        if self.paired:
            return self.paired.permutation
        return self.found.permutation if isinstance(self.found, Comparison) else None

    @property
    def test(self) -> str:
        if self.paired:
            return "sign flip"
        return {"mean": "permutation", "share": "Fisher", "time": "log-rank"}[self.kind]

    @property
    def p(self) -> float | None:
        if isinstance(self.found, Shares) and not self.paired:
            return self.found.p
        if isinstance(self.found, Passages):
            return self.found.test.p if self.found.test else None
        return self.permutation.p if self.permutation else None

    @property
    def varies(self) -> bool:
        """Some arrangement of its values would have told the groups apart; else no test of it can find anything."""
        if isinstance(self.found, Comparison):
            a, b = self.found.a, self.found.b
            return (a.low, a.high) != (b.low, b.high) or a.low != a.high
        return isinstance(self.found, Passages) or 0 < sum(self.found.events) < sum(self.found.n)

    @property
    def stands(self) -> bool:
        """It is told from 0 after all adjustment."""
        p = self.p if self.primary and self.adjusted is None else self.adjusted
        return p is not None and p <= SIGNIFICANT


class Effects(NamedTuple):
    """What was compared, how, and what came out."""

    title: str
    rows: Sequence[Row]
    groups: Sequence[str]
    """A sentence for each: its conversations, and those that are left out."""
    method: Sequence[str]
    """Sentences that say how every number was made."""
    adjustment: str
    seed: int
    reduce: str


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e15 else f"{value:.{digits}g}"


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f"[{_number(interval.low, 3)}, {_number(interval.high, 3)}]"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points_within(interval: Interval | None) -> str:
    return "" if interval is None else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]
    spare: int = 0
    """A terminal that is too narrow does without the highest first; 0: it never does."""


def _of_means(rows: Sequence[Row], adjustment: str) -> list[_Column]:
    paired = any(row.paired for row in rows)

    def found(row: Row) -> Comparison:
        assert isinstance(row.found, Comparison), "the table of means has means alone"
        return row.found

    return [
        _Column("mean A (n)", lambda row: f"{_number(found(row).a.mean)} ({found(row).a.n})", 2),
        _Column("mean B (n)", lambda row: f"{_number(found(row).b.mean)} ({found(row).b.n})", 2),
        _Column("B − A (pairs)" if paired else "B − A", _difference),
        _Column("95 % interval", lambda row: _within(row.interval)),
        _Column("g (paired)" if paired else "Hedges g", lambda row: _number(row.g.value if row.g else None), 3),
        _Column("95 % of g", lambda row: _within(row.g.interval if row.g else None), 5),
        _Column("Cliff's δ", lambda row: _number(delta.value if (delta := found(row).delta) else None), 4),
        *_of_tests(adjustment),
    ]


def _difference(row: Row) -> str:
    return _number(row.difference) + (f" ({row.paired.n})" if row.paired else "")


def _of_shares(adjustment: str) -> list[_Column]:
    def found(row: Row) -> Shares:
        assert isinstance(row.found, Shares), "the table of shares has shares alone"
        return row.found

    def share(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: f"{_points(found(row).share(side))} % ({found(row).events[side]}/{found(row).n[side]})"

    def reach(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: _points_within(found(row).intervals[side])

    return [
        _Column("A", share(0)),
        _Column("95 % of A", reach(0), 4),
        _Column("B", share(1)),
        _Column("95 % of B", reach(1), 4),
        _Column("B − A, points", lambda row: _points(row.difference), 2),
        _Column("95 % interval", lambda row: _points_within(row.interval), 1),
        *_of_tests(adjustment),
    ]


def _of_times(adjustment: str) -> list[_Column]:
    def found(row: Row) -> Passages:
        assert isinstance(row.found, Passages), "the table of times has times alone"
        return row.found

    def had(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: f"{found(row).events[side]}/{found(row).n[side]}"

    def median(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: _number(found(row).medians[side])

    def mean(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: _number(one.value if (one := found(row).means[side]) else None)

    def incidence(side: Literal[0, 1]) -> Callable[[Row], str]:
        return lambda row: "–" if (one := found(row).incidence[side]) is None else f"{_points(one)} %"

    return [
        _Column("A", had(0)),
        _Column("B", had(1)),
        _Column("up to turn", lambda row: _number(found(row).horizon), 2),
        _Column("incidence A", incidence(0), 5),
        _Column("incidence B", incidence(1), 5),
        _Column("median A", median(0), 4),
        _Column("median B", median(1), 4),
        _Column("mean A", mean(0), 3),
        _Column("mean B", mean(1), 3),
        _Column("B − A", lambda row: _number(row.difference)),
        _Column("95 % interval", lambda row: _within(row.interval), 1),
        *_of_tests(adjustment),
    ]


def _of_tests(adjustment: str) -> list[_Column]:
    return [_Column("p", lambda row: _p(row.p)), _Column(f"p ({adjustment})", lambda row: _p(row.adjusted))]


def _of_turns() -> list[_Column]:
    def three(heading: str, name: str, spare: int) -> list[_Column]:
        def cell(shown: Callable[[FixedEffect], str]) -> Callable[[Row], str]:
            return lambda row: "–" if row.turns is None else shown(row.turns.effects[name])

        return [
            _Column(heading, cell(lambda found: _number(found.estimate)), spare),
            _Column("95 %", cell(lambda found: _within(found.interval)), spare),
            _Column("p (Wald)", cell(lambda found: _p(found.p)), spare),
        ]

    return [
        *three("B − A, mid-way", "condition=b", 0),
        *three("A, by turn", "turn", 3),
        *three("B − A, by turn", "condition=b:turn", 1),
        _Column("ICC", lambda row: "–" if row.turns is None else f"{row.turns.icc:.2f}", 2),
        _Column("values", lambda row: "–" if row.turns is None else f"{row.turns.n:,}", 4),
    ]


class _Part(NamedTuple):
    """A table of a contrast."""

    heading: str
    rows: list[Row]
    columns: list[_Column]
    tested: bool = True
    """It has the p that a row stands by."""


def _parts(effects: Effects, rows: Sequence[Row]) -> list[_Part]:
    of: dict[Kind, list[Row]] = {"mean": [], "share": [], "time": []}
    for row in rows:
        of[row.kind].append(row)
    modelled = [row for row in rows if row.turns is not None]
    tables = [
        _Part("measure", of["mean"], _of_means(of["mean"], effects.adjustment)),
        _Part("share of conversations", of["share"], _of_shares(effects.adjustment)),
        _Part("turns to", of["time"], _of_times(effects.adjustment)),
        _Part("turn by turn (mixed model)", modelled, _of_turns(), tested=False),
    ]
    return [table for table in tables if table.rows]


def _name(row: Row) -> str:
    return f"{row.measure}{' (primary)' if row.primary else ''}"


def _contrasts(effects: Effects) -> list[tuple[Contrast, list[Row]]]:
    found: dict[Contrast, list[Row]] = {}
    for row in effects.rows:
        found.setdefault(row.contrast, []).append(row)
    return list(found.items())


def _omnibus(rows: Sequence[Row]) -> list[list[str]]:
    """The tests of all groups as a table, headings first; without any it is empty."""
    of = {row.measure: row.omnibus for row in rows if row.omnibus is not None}
    if not of:
        return []
    headings = (("F", "p (permutation)"), ("H", "p (Kruskal-Wallis)"), ("χ²", "p (log-rank)"))
    used = [place for place in range(len(headings)) if any(tested[place] for tested in of.values())]
    table = [["all groups", *(heading for place in used for heading in headings[place])]]
    for measure, tested in of.items():
        pairs = [(one.statistic, one.p) if (one := tested[place]) else (None, None) for place in used]
        table.append([measure, *(cell for statistic, p in pairs for cell in (_number(statistic), _p(p)))])
    return table


# The terminal


def print_effects(console: Console, effects: Effects) -> None:
    """Print a table for each contrast, then how the numbers were made."""
    for sentence in effects.groups:
        console.print(visible(sentence), soft_wrap=True)
    without = 0
    for contrast, rows in _contrasts(effects):
        console.print()
        head = Text("A ", "dim").append(one_line(contrast.a, LABEL_CELLS), "bold")
        head.append("   B ", "dim").append(one_line(contrast.b, LABEL_CELLS), "bold")
        if contrast.within is not None:
            head.append(f"   within {one_line(contrast.within, LABEL_CELLS)}", "dim")
        console.print(head, soft_wrap=True)
        for place, part in enumerate(_parts(effects, rows)):
            if place:
                console.print()
            shown, left_out = _fitting(part, console.width)
            without = max(without, left_out)
            table = Table(box=None, pad_edge=False, header_style="dim")
            table.add_column(part.heading, overflow="fold")
            for column in shown:
                table.add_column(column.heading, justify="right", no_wrap=True, min_width=_cells_of(column, part.rows))
            for row in part.rows:
                numbers = (visible(column.cell(row)) for column in shown)
                table.add_row(visible(_name(row)), *numbers, style="bold" if part.tested and row.stands else "")
            console.print(table)
    if omnibus := _omnibus(effects.rows):
        console.print()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place, heading in enumerate(omnibus[0]):
            table.add_column(heading, justify="right" if place else "left")
        for cells in omnibus[1:]:
            table.add_row(*map(visible, cells))
        console.print(table)
    console.print()
    for sentence in effects.method:
        print_prose(console, visible(sentence), "dim")
    if without:
        print_prose(console, "There is no room for all columns here; --html and --json have them.", "dim")


def _cells_of(column: _Column, rows: Iterable[Row]) -> int:
    return max(cell_len(text) for text in (column.heading, *(column.cell(row) for row in rows)))


def _fitting(part: _Part, width: int) -> tuple[list[_Column], int]:
    """The columns that there is room for, and how many others there are."""
    room = width - max(cell_len(text) for text in (part.heading, *map(_name, part.rows)))
    shown = list(part.columns)
    while (most := max(column.spare for column in shown)) and (
        sum(_cells_of(column, part.rows) + GAP for column in shown) > room
    ):
        shown = [column for column in shown if column.spare != most]
    return shown, len(part.columns) - len(shown)


# A page


def render_html(effects: Effects) -> str:
    """The same as one HTML page that needs nothing besides itself and runs no scripts."""
    parts = [f"<h1>{_text(effects.title)}</h1>"]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in effects.groups]
    for contrast, rows in _contrasts(effects):
        within = "" if contrast.within is None else f" <small>within {_text(contrast.within)}</small>"
        parts.append(f"<h2><small>A</small> {_text(contrast.a)} <small>B</small> {_text(contrast.b)}{within}</h2>")
        parts += [_table(part) for part in _parts(effects, rows)]
    if omnibus := _omnibus(effects.rows):
        head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in omnibus[0])
        parts.append(f'<h2>All groups</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>')
        for measure, *cells in omnibus[1:]:
            line = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
            parts.append(f'<tr><th scope="row">{_text(measure)}</th>{line}</tr>')
        parts.append("</tbody></table></div>")
    parts += ['<section class="method">', *(f"<p>{_text(sentence)}</p>" for sentence in effects.method), "</section>"]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(effects.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(part: _Part) -> str:
    forest = any(row.g for row in part.rows) and part.heading == "measure"
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in (part.heading, *(c.heading for c in part.columns)))
    reach = max((abs(edge) for row in part.rows for edge in _span(row)), default=0.0) or 1.0
    last = '<th scope="col">g</th>' if forest else ""
    found = [f'<div class="wide"><table><thead><tr>{head}{last}</tr></thead><tbody>']
    for row in part.rows:
        cells = "".join(f"<td>{_text(column.cell(row))}</td>" for column in part.columns)
        drawn = f"<td>{_forest(row, reach)}</td>" if forest else ""
        stands = ' class="stands"' if part.tested and row.stands else ""
        found.append(f'<tr{stands}><th scope="row">{_text(_name(row))}</th>{cells}{drawn}</tr>')
    return "".join(found) + "</tbody></table></div>"


def _span(row: Row) -> tuple[float, ...]:
    g = row.g
    return () if g is None else (g.value, *(g.interval or ()))


def _forest(row: Row, reach: float) -> str:
    """The standardised difference as a dot with its interval on a line around 0."""
    g = row.g
    if g is None:
        return ""

    def at(value: float) -> str:
        return f"{60 + 55 * value / reach:.1f}"

    line = ""
    if g.interval is not None:
        line = f'<line class="bar" x1="{at(g.interval.low)}" x2="{at(g.interval.high)}" y1="8" y2="8"/>'
    said = _text(f"g = {g.value:.2f} {_within(g.interval)}")
    return (
        f'<svg viewBox="0 0 120 16" width="120" height="16" role="img" aria-label="{said}">'
        f'<line class="zero" x1="60" x2="60" y1="0" y2="16"/>{line}<circle cx="{at(g.value)}" cy="8" r="3.5"/></svg>'
    )


def _text(text: str) -> str:
    return escape(visible(text))


_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --line: #d5d5da; --soft: #6a6a70; --mark: #0b62b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #18181b; --line: #3a3a40; --soft: #9a9aa2; --mark: #7ab8f5; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 90rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 1.6rem; overflow-wrap: anywhere; }
small, .method { color: var(--soft); } .method { margin-top: 1.6rem; font-size: .9rem; }
p { overflow-wrap: anywhere; margin: .3rem 0; } .wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: normal; } tbody th, thead th:first-child { text-align: left; }
tbody th { font-weight: normal; } .stands td, .stands th { font-weight: 600; }
svg { stroke: var(--soft); fill: var(--paper); vertical-align: middle; } .bar { stroke-width: 2; }
.zero { stroke: var(--line); } .stands svg { stroke: var(--mark); fill: var(--mark); }
"""


# Plain rows


def as_rows(effects: Effects) -> list[dict[str, Any]]:
    """One object per contrast and measure; what could not be computed is null."""
    family = sum(row.adjusted is not None for row in effects.rows)
    return [_plain(row, effects, family) for row in effects.rows]


def _plain(row: Row, effects: Effects, family: int) -> dict[str, Any]:
    tested = row.permutation
    found: dict[str, Any] = {**row.contrast._asdict(), "measure": row.measure, "kind": row.kind}
    for place, mark in ((0, "a"), (1, "b")):
        values, interval = _side(row, place)
        found |= {f"{name}_{mark}": value for name, value in values.items()} | _edges(f"mean_{mark}", interval)
    found |= {"pairs": row.paired.n if row.paired else None, "difference": row.difference}
    found |= _edges("difference", row.interval)
    delta = row.found.delta if isinstance(row.found, Comparison) else None
    for name, effect in (("g", row.g), ("cliffs_delta", delta)):
        found |= {name: None if effect is None else effect.value}
        found |= _edges(name, None if effect is None else effect.interval)
    welch = row.found.welch if isinstance(row.found, Comparison) else None
    f, h, logrank = row.omnibus or (None, None, None)
    of_all = f or logrank or h
    found |= {
        "horizon": row.found.horizon if isinstance(row.found, Passages) else None,
        "test": row.test,
        "p": row.p,
        "p_exact": row.test == "Fisher" if row.kind != "mean" and not row.paired else tested.exact if tested else None,
        "arrangements": tested.arrangements if tested else None,
        "p_welch": welch.p if welch else None,
        "p_adjusted": row.adjusted,
        "adjustment": effects.adjustment,
        "family": family,
        "primary": row.primary,
        "p_all_groups": of_all.p if of_all else None,
        "reduce": effects.reduce,
        "seed": effects.seed,
        "mixed_model": _model(row.turns),
    }
    return found


def _side(row: Row, place: int) -> tuple[dict[str, Any], Interval | None]:
    """What one group shows, with the interval of its mean or share; every kind of row has the same keys."""
    found: dict[str, Any] = {"n": row.n[place], "missing": row.missing[place]}
    mean: float | None = None
    sd = median = interval = events = otherwise = incidence = None
    if isinstance(row.found, Comparison):
        summary = row.found.b if place else row.found.a
        mean, sd, median, interval = summary.mean, summary.sd, summary.median, summary.interval
    elif isinstance(row.found, Shares):
        events, interval = row.found.events[place], row.found.intervals[place]
        mean = events / found["n"] if found["n"] else None
    else:
        events, otherwise, median = row.found.events[place], row.found.otherwise[place], row.found.medians[place]
        incidence = row.found.incidence[place]
        if (restricted := row.found.means[place]) is not None:
            mean = restricted.value
    found |= {"mean": mean, "sd": sd, "median": median}
    return found | {"events": events, "ended_otherwise": otherwise, "incidence": incidence}, interval


def _model(model: MixedModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "n": model.n,
        "conversations": model.conversations,
        "icc": model.icc,
        "converged": model.converged,
        "effects": {
            name: {"estimate": one.estimate, "low": one.interval.low, "high": one.interval.high, "p": one.p}
            for name, one in model.effects.items()
        },
    }


def _edges(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval if interval is not None else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
