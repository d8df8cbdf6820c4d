"""Charts as SVG and PNG, drawn by Altair without a browser.

What is drawn takes its colours for text and lines from the page around it (`currentColor`), so that one drawing is
right on a light and on a dark page. As a file of its own it is dark on white.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import msgspec
import vl_convert

__all__ = ["COLOURS", "DIVERGING", "Rows", "colour", "for_file", "for_page", "palette", "png", "svg"]

Rows = Sequence[Mapping[str, Any]]

COLOURS = ["#3a86c8", "#d9660f", "#189a74", "#c4679f", "#b58900", "#56a5d8", "#8a6fd1", "#8a8f98"]
"""Told apart by colour-blind people, and legible on white and on near-black."""

SHADES = (("#000000", 0.0), ("#000000", 0.38), ("#ffffff", 0.5))
"""What a colour is mixed with, and how much of it, where there are more values than colours."""

DIVERGING = ["#1f78c8", "#8a8f982e", "#d9660f"]
"""Below, at and above what values are held against; in the middle whatever is behind shines through."""

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFont": _FONT, "titleFont": _FONT}
_CONFIG: dict[str, Any] = {
    "background": None,
    "aria": False,
    "font": _FONT,
    "view": {"stroke": None},
    "axis": _TEXT
    | {
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "gridOpacity": 0.12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
    },
    "legend": _TEXT
    | {
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2,
        "titleFontWeight": "normal",
        "labelLimit": 260,
        "orient": "bottom",
        "columns": 3,
    },
    "header": _TEXT | {"titleFontWeight": "normal", "labelLimit": 300},
    "title": {"color": "currentColor", "font": _FONT, "fontWeight": "normal", "anchor": "start"},
    "text": {"color": "currentColor", "font": _FONT},
    "rule": {"color": "currentColor"},
    "range": {"category": COLOURS},
}


def colour(field: str, title: str, values: Sequence[str], counts: Mapping[str, int] | None = None) -> alt.Color:
    """Colour by a field; without a legend where there is only one value.

    Args:
        values: all that the field can have, drawn here or not: each has its colour by its place among them.
        counts: how many there are of each that is drawn, to be told in the legend; None: all are drawn.
    """
    # Names go into the expression as string literals of JSON, which nothing in them can end.
    shown = list(values) if counts is None else [value for value in values if value in counts]
    named = {value: f"{value} (n = {counts[value]})" for value in shown} if counts else {}
    label = f"{msgspec.json.encode(named).decode()}[datum.label]" if named else alt.Undefined
    legend = None if len(values) < 2 else alt.Legend(title=title, symbolLimit=60, labelExpr=label, values=shown)
    scale = alt.Scale(domain=list(values), range=palette(len(values)))
    return alt.Color(field, type="nominal", title=title, scale=scale, legend=legend)


def palette(number: int) -> list[str]:
    """So many colours, no two alike up to three times as many as `COLOURS`; then they come again."""
    return [
        _mixed(COLOURS[place % len(COLOURS)], *SHADES[place // len(COLOURS) % len(SHADES)]) for place in range(number)
    ]


def _mixed(colour: str, other: str, share: float) -> str:
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(one + (two - one) * share) for one, two in pairs).hex()


def svg(chart: alt.TopLevelMixin, tables: Mapping[str, Rows]) -> str:
    """Draw a chart whose data are `alt.NamedData`, found in `tables`."""
    spec = chart.to_dict(validate=False)
    spec["config"] = _CONFIG
    # Handed over behind Altair's back, which would look at every number of them.
    spec["datasets"] = {name: list(rows) for name, rows in tables.items()}
    spec["usermeta"] = {"embedOptions": {}}
    drawn = str(vl_convert.vegalite_to_svg(msgspec.json.encode(spec).decode(), allowed_base_urls=[]))
    # The library counts ids over the life of the process; the same chart is to be the same drawing.
    own = {
        name: f"id{place}"
        for place, name in enumerate(dict.fromkeys(m["own"] for m in _ID.finditer(drawn) if m["own"]))
    }
    return _with_ids(drawn, lambda name: own.get(name, name))


def _with_ids(drawn: str, called: Callable[[str], str]) -> str:
    """The drawing with other ids."""

    def renamed(found: re.Match[str]) -> str:
        if found["own"] is not None:
            return f'id="{called(found["own"])}"'
        return f"url(#{called(found['url'])})" if found["url"] is not None else f'href="#{called(found["href"])}"'

    return _ID.sub(renamed, drawn)


_OPENING = re.compile(r"<svg\b[^>]*>")
_ID = re.compile(r'\bid="(?P<own>[^"]*)"|url\(#(?P<url>[^)]*)\)|href="#(?P<href>[^"]*)"')


def for_file(drawn: str) -> str:
    """The drawing as a file: dark on white."""
    opening = _OPENING.match(drawn)
    assert opening is not None, "a drawing begins with its opening tag"
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return drawn[: opening.end()] + white + drawn[opening.end() :].replace('"currentColor"', '"#22272e"')


def for_page(drawn: str, name: str, description: str) -> str:
    """The drawing as a part of a page: its ids are its own, and it is told to those who do not see it."""
    opening = _OPENING.match(drawn)
    box = re.search(r'viewBox="([\d. -]+)"', drawn)
    assert opening is not None
    assert box is not None, "a drawing has a box"
    width = box[1].split()[2]
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="{box[1]}" '
        f'width="{width}" style="max-width:100%;min-width:min({width}px,30rem);height:auto" stroke-miterlimit="10">'
    )
    return head + _with_ids(drawn[opening.end() :], lambda own: f"{name}-{own}")


def png(drawn: str) -> bytes:
    """The drawing as pixels, two for each of its units."""
    return bytes(vl_convert.svg_to_png(for_file(drawn), scale=2))
