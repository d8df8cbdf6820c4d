"""Effects between groups of conversations: in the terminal, as a page of its own, and as plain rows."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pidgin_cli.metrics.statistics import Comparison, Effect, Interval, Omnibus, Paired, Permutation

from .text import one_line, visible

__all__ = ["Contrast", "Effects", "Row", "as_rows", "print_effects", "render_html"]

LABEL_CELLS = 48
SIGNIFICANT = 0.05
WIDE = 130
"""Cells from which a terminal shows all columns."""
SECOND = (6, 7)
"""Columns that a narrower one does without: the interval of g, and Cliff's delta."""


class Contrast(NamedTuple):
    """Two groups that are compared."""

    a: str
    b: str
    within: str | None = None
    """What both have in common, where groups are compared once for each of several values."""


class Row(NamedTuple):
    """One measure of one contrast."""

    contrast: Contrast
    measure: str
    independent: Comparison
    paired: Paired | None
    """Where conversations belong together: what the difference, the interval and p are then taken from."""
    adjusted: float | None
    primary: bool
    """Named before anybody looked, and no part of the family."""
    omnibus: Omnibus | None = None
    """Of all groups, where there are more than these two."""

    @property
    def difference(self) -> float | None:
        return self.paired.mean if self.paired else self.independent.difference

    @property
    def interval(self) -> Interval | None:
        return self.paired.interval if self.paired else self.independent.interval

    @property
    def g(self) -> Effect | None:
        if self.paired:
            return None if self.paired.g is None else Effect(self.paired.g, None)
        return self.independent.g

    @property
    def permutation(self) -> Permutation | None:
        return self.paired.permutation if self.paired else self.independent.permutation

    @property
    def stands(self) -> bool:
        """It is told from 0 after all adjustment."""
        p = self.adjusted
        if p is None and self.primary and self.permutation is not None:
            p = self.permutation.p
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.3g}, {interval.high:.3g}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _cells(row: Row) -> list[str]:
    one = row.independent
    g = row.g
    return [
        f"{row.measure}{' (primary)' if row.primary else ''}",
        f"{_number(one.a.mean)} ({one.a.n})",
        f"{_number(one.b.mean)} ({one.b.n})",
        _number(row.difference) + (f" ({row.paired.n})" if row.paired else ""),
        _within(row.interval),
        _number(None if g is None else g.value),
        _within(None if g is None else g.interval),
        _number(None if one.delta is None else one.delta.value),
        _p(row.permutation.p if row.permutation else None),
        _p(row.adjusted),
    ]


def _headings(effects: Effects) -> list[str]:
    paired = any(row.paired for row in effects.rows)
    return [
        "measure",
        "mean A (n)",
        "mean B (n)",
        "B − A (pairs)" if paired else "B − A",
        "95 % interval",
        "g (paired)" if paired else "Hedges g",
        "95 % of g",
        "Cliff's δ",
        "p",
        f"p ({effects.adjustment})",
    ]


def _contrasts(effects: Effects) -> list[tuple[Contrast, list[Row]]]:
    found: dict[Contrast, list[Row]] = {}
    for row in effects.rows:
        found.setdefault(row.contrast, []).append(row)
    return list(found.items())


def _omnibus(rows: Sequence[Row]) -> list[tuple[str, Omnibus]]:
    return list({row.measure: row.omnibus for row in rows if row.omnibus is not None}.items())


# The terminal


def print_effects(console: Console, effects: Effects) -> None:
    """Print a table for each contrast, then how the numbers were made."""
    for sentence in effects.groups:
        console.print(visible(sentence), soft_wrap=True)
    for contrast, rows in _contrasts(effects):
        console.print()
        head = Text("A ", "dim").append(one_line(contrast.a, LABEL_CELLS), "bold")
        head.append("   B ", "dim").append(one_line(contrast.b, LABEL_CELLS), "bold")
        if contrast.within is not None:
            head.append(f"   within {one_line(contrast.within, LABEL_CELLS)}", "dim")
        console.print(head, soft_wrap=True)
        headings = _headings(effects)
        shown = [place for place in range(len(headings)) if console.width >= WIDE or place not in SECOND]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place in shown:
            table.add_column(headings[place], justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            cells = _cells(row)
            table.add_row(*(visible(cells[place]) for place in shown), style="bold" if row.stands else "")
        console.print(table)
    omnibus = _omnibus(effects.rows)
    if omnibus:
        console.print()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("all groups", "F", "p (permutation)", "H", "p (Kruskal-Wallis)"):
            table.add_column(heading, justify="left" if heading == "all groups" else "right")
        for measure, tested in omnibus:
            table.add_row(visible(measure), *_omnibus_cells(tested))
        console.print(table)
    console.print()
    for sentence in effects.method:
        console.print(visible(sentence), style="dim", soft_wrap=True)


def _omnibus_cells(tested: Omnibus) -> list[str]:
    f, h = tested
    return [
        _number(f.statistic if f else None),
        _p(f.p if f else None),
        _number(h.statistic if h else None),
        _p(h.p if h else None),
    ]


# A page


def render_html(effects: Effects) -> str:
    """The same as one HTML page that needs nothing besides itself and runs no scripts."""
    parts = [f"<h1>{_text(effects.title)}</h1>"]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in effects.groups]
    for contrast, rows in _contrasts(effects):
        within = "" if contrast.within is None else f" <small>within {_text(contrast.within)}</small>"
        parts.append(f"<h2><small>A</small> {_text(contrast.a)} <small>B</small> {_text(contrast.b)}{within}</h2>")
        head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in _headings(effects))
        parts.append(f'<div class="wide"><table><thead><tr>{head}<th scope="col">g</th></tr></thead><tbody>')
        reach = max((abs(edge) for row in rows for edge in _span(row)), default=0.0) or 1.0
        for row in rows:
            name, *numbers = _cells(row)
            cells = "".join(f"<td>{_text(cell)}</td>" for cell in numbers)
            stands = ' class="stands"' if row.stands else ""
            parts.append(f'<tr{stands}><th scope="row">{_text(name)}</th>{cells}<td>{_forest(row, reach)}</td></tr>')
        parts.append("</tbody></table></div>")
    if omnibus := _omnibus(effects.rows):
        parts.append(
            "<h2>All groups</h2><table><thead><tr><th>measure</th><th>F</th><th>p (permutation)</th>"
            "<th>H</th><th>p (Kruskal-Wallis)</th></tr></thead><tbody>"
        )
        for measure, tested in omnibus:
            cells = "".join(f"<td>{_text(cell)}</td>" for cell in _omnibus_cells(tested))
            parts.append(f'<tr><th scope="row">{_text(measure)}</th>{cells}</tr>')
        parts.append("</tbody></table>")
    parts += ['<section class="method">', *(f"<p>{_text(sentence)}</p>" for sentence in effects.method), "</section>"]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(effects.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


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
p { overflow-wrap: anywhere; margin: .3rem 0; } .wide { overflow-x: auto; }
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
    one, tested = row.independent, row.permutation
    found: dict[str, Any] = {**row.contrast._asdict(), "measure": row.measure}
    for mark, side in (("a", one.a), ("b", one.b)):
        found |= {
            f"n_{mark}": side.n,
            f"missing_{mark}": side.missing,
            f"mean_{mark}": side.mean,
            f"sd_{mark}": side.sd,
            f"median_{mark}": side.median,
        }
    found |= {"pairs": row.paired.n if row.paired else None, "difference": row.difference}
    found |= _edges("difference", row.interval)
    for name, effect in (("g", row.g), ("cliffs_delta", one.delta)):
        found |= {name: None if effect is None else effect.value}
        found |= _edges(name, None if effect is None else effect.interval)
    found |= {
        "p": tested.p if tested else None,
        "p_exact": tested.exact if tested else None,
        "arrangements": tested.arrangements if tested else None,
        "p_welch": one.welch.p if one.welch else None,
        "p_adjusted": row.adjusted,
        "adjustment": effects.adjustment,
        "family": family,
        "primary": row.primary,
        "p_all_groups": row.omnibus.f.p if row.omnibus and row.omnibus.f else None,
        "reduce": effects.reduce,
        "seed": effects.seed,
    }
    return found


def _edges(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval if interval is not None else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
