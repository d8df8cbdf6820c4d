"""Two conversations side by side: in the terminal, and as a page of its own."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pidgin_cli.conversation.parting import Row, Said, parting

from .text import one_line, visible

__all__ = ["Compared", "print_diff", "render_html"]

SETTING_CELLS = 60
WIDEST = 160
"""Cells; two columns in wider lines are hard to read."""


class Compared(NamedTuple):
    """Two conversations and how they differ."""

    titles: tuple[str, str]
    settings: Mapping[str, tuple[Any, Any]]
    """By name, those that differ."""
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """What could not be compared, and why."""

    @property
    def where(self) -> str:
        """The first place where they part, in a sentence."""
        at = parting(self.rows)
        if at is None:
            return "They say the same from beginning to end."
        row = self.rows[at]
        if row.message_index is not None:
            return f"They part at message {row.message_index} (turn {row.turn_number})."
        return "They part at the opening." if at == 0 else "They say the same and end differently."

    def shown(self, *, everything: bool) -> Sequence[Row]:
        at = parting(self.rows)
        if everything:
            return self.rows
        return () if at is None else self.rows[at:]


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _heading(row: Row) -> str:
    if row.message_index is not None:
        return f"turn {row.turn_number} · message {row.message_index}"
    return "end" if any(said.kind == "end" for said in (*row.one, *row.other)) else "opening"


def _label(said: Said) -> str:
    match said.kind:
        case "opening":
            return ""
        case "name":
            return f"{said.who} is called"
        case "end":
            return said.who
    return said.who


# The terminal


def print_diff(console: Console, compared: Compared, *, everything: bool = False) -> None:
    """Print both conversations from where they part (`everything`: from the beginning), two columns side by side."""
    for note in compared.notes:
        console.print(Text(visible(note), "yellow"))
    if compared.settings:
        table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
        table.add_column("setting", overflow="fold")
        for title in compared.titles:
            table.add_column(visible(title), overflow="fold", ratio=1)
        for name, values in compared.settings.items():
            table.add_row(visible(name), *(one_line(_setting(value), SETTING_CELLS) for value in values))
        console.print(table)
        console.print()
    console.print(Text(compared.where, "bold"))
    shown = compared.shown(everything=everything)
    if not shown:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_lines=False)
    for title in compared.titles:
        table.add_column(visible(title), ratio=1, overflow="fold", vertical="top")
    for row in shown:
        style = "dim" if row.same else ""
        heading = Text(_heading(row) + (" (the same)" if row.same else ""), "dim")
        table.add_row(heading, Text(""))
        table.add_row(_cell(row.one, style), _cell(row.other, style))
        table.add_row("", "")
    console.print(table, width=min(console.width, WIDEST))


def _cell(told: Sequence[Said], style: str) -> Text:
    cell = Text(style=style)
    for number, said in enumerate(told):
        if number:
            cell.append("\n\n")
        if label := _label(said):
            cell.append(f"{visible(label)}: ", "bold")
        cell.append(visible(said.text), "italic" if said.kind == "intervention" else "")
    if not told:
        cell.append("(nothing)", "dim")
    return cell


# A page


def render_html(compared: Compared, *, everything: bool = False) -> str:
    """The same as one HTML page that needs nothing besides itself and runs no scripts."""
    titles = [_text(title) for title in compared.titles]
    parts = [f"<h1>{titles[0]} <small>and</small> {titles[1]}</h1>"]
    parts += [f'<p class="note">{_text(note)}</p>' for note in compared.notes]
    if compared.settings:
        parts.append(f"<table><tr><th>setting</th><th>{titles[0]}</th><th>{titles[1]}</th></tr>")
        for name, values in compared.settings.items():
            cells = "".join(f"<td>{_text(_setting(value))}</td>" for value in values)
            parts.append(f"<tr><td>{_text(name)}</td>{cells}</tr>")
        parts.append("</table>")
    parts.append(f"<p><strong>{_text(compared.where)}</strong></p>")
    for row in compared.shown(everything=everything):
        same = ' class="same"' if row.same else ""
        sides = "".join(f"<div>{_side(told)}</div>" for told in (row.one, row.other))
        parts.append(f"<section{same}><h2>{_text(_heading(row))}</h2><div>{sides}</div></section>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{titles[0]} and {titles[1]}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _side(told: Sequence[Said]) -> str:
    if not told:
        return '<p class="none">nothing</p>'
    return "".join(
        f'<p class="{said.kind}">{f"<b>{_text(label)}</b> " if (label := _label(said)) else ""}{_text(said.text)}</p>'
        for said in told
    )


def _text(text: str) -> str:
    return escape(visible(text))


_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --line: #d5d5da; --soft: #6a6a70; --put: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #18181b; --line: #3a3a40; --soft: #9a9aa2; --put: #f0b060; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 90rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.3rem; } h1 small, h2, .same, .none { color: var(--soft); }
h2 { font-size: .8rem; font-weight: normal; margin: 0; }
section { border-top: 1px solid var(--line); padding: .5rem 0; }
section > div { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }
.intervention { color: var(--put); font-style: italic; } .note { color: var(--put); }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left;
  vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { section > div { grid-template-columns: 1fr; } }
"""
