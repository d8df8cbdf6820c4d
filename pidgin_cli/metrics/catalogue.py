"""Every metric by its name: what it is, how it is computed, where it is NULL, and who says so.

The rows of `catalogue.txt` are the only place where a metric is described; the reference page and the columns of the
database are made from them. A package adds its own under the entry-point group `pidgin.metrics`: see `LiveMetric`.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from pidgin_cli.core.errors import SpecError

from .reading import Reading

__all__ = [
    "METRICS",
    "METRICS_VERSION",
    "Kind",
    "Level",
    "LiveMetric",
    "Measure",
    "Metric",
    "Value",
    "When",
    "is_short",
    "load_plugins",
    "message_metrics",
]

METRICS_VERSION = "1"
"""Changes when any number would come out differently for the same text."""

Value = int | float | bool | str | None
"""None: it cannot be computed."""
Kind = Literal["int", "float", "bool", "text"]
Level = Literal["M", "P", "W", "C"]
"""M: of one message. P: against the partner's last message. W: over a window of messages. C: of the conversation."""
When = Literal["live", "end", "offline"]
"""live: at every message. end: when the conversation is over, from what the engine holds. offline: at import, from all
texts or from embeddings."""


class Metric(Struct, frozen=True, kw_only=False):
    """One row of the catalogue."""

    name: str
    level: Level
    kind: Kind
    unit: str
    formula: str
    range: str
    null: str = ""
    """When the value is NULL; empty: never."""
    language: Literal["U", "T", "S", "E", "model"] = "U"
    """U: any text. T: needs words. S: needs sentences. E: needs the word lists of the language. model: an embedding."""
    source: str = ""
    when: When = "live"
    per: Literal["", "agent", "pair", "direction", "state"] = ""
    """Of a value of the conversation, what there is one for; empty: one."""
    short_below: int = 0
    """Tokens below which the value says more about the length than about the text."""
    section: str = "From packages"
    version: int = 1


Measure = Callable[[Reading, Reading | None], Value]
"""Given a message and the partner's last one, the value."""


@runtime_checkable
class LiveMetric(Protocol):
    """A metric that a package adds, as an object or a class under the entry-point group `pidgin.metrics`.

    class Doubts:
        metric = Metric("doubts", "M", "int", "words", "how often hmm is said", "0…")

        def measure(self):
            return lambda message, partner: message.tokens.count("hmm")
    """

    metric: Metric
    """Its name must not be taken; level M, P or W."""

    def measure(self) -> Measure:
        """Called once for each conversation. What it returns is called for every message in order, and may remember."""
        ...


def is_short(name: str, tokens: int) -> bool:
    """Whether a message of so many tokens is too short for the value to compare with that of a longer one."""
    return tokens < METRICS[name].short_below


def _rows() -> Iterator[Metric]:
    section = ""
    for line in (files("pidgin_cli.metrics") / "catalogue.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line and not line.startswith("#"):
            cells = [cell.strip() for cell in f"{line} ".split(" | ")]
            row = {name: cell for name, cell in zip(Metric.__struct_fields__, cells, strict=False) if cell}
            yield msgspec.convert({"unit": "", **row, "section": section}, Metric, strict=False)


METRICS: dict[str, Metric] = {metric.name: metric for metric in _rows()}
"""Every metric by its name, in the order of the catalogue; those of packages last, once they are loaded."""

RATES = tuple(name for name, metric in METRICS.items() if metric.unit == "per 100 tokens" and metric.language == "E")
"""Metrics that are the rate of a list of cues of the same name."""

PLUGINS: dict[str, LiveMetric] = {}
"""What packages have added, by the name of the metric."""


_loaded: set[EntryPoint] = set()
_all_loaded = False


def message_metrics(*when: When) -> dict[str, Metric]:
    """The metrics that a message has a value of, all of them or those computed then."""
    return {
        name: metric for name, metric in METRICS.items() if metric.level != "C" and (not when or metric.when in when)
    }


def add_metric(plugin: LiveMetric, package: str) -> None:
    """Take a metric in.

    Raises:
        SpecError: it is not a `LiveMetric`, or its name is taken.
    """
    if not isinstance(getattr(plugin, "metric", None), Metric) or not callable(getattr(plugin, "measure", None)):
        raise SpecError(f"the package {package} gives no LiveMetric; update or remove it")
    name = plugin.metric.name
    if name in METRICS:
        raise SpecError(f"the package {package} brings a metric {name!r}, which is there already; remove the package")
    if plugin.metric.level == "C" or plugin.metric.when != "live":
        raise SpecError(
            f"the package {package} brings a metric {name!r} that is not computed live; update or remove it"
        )
    METRICS[name] = plugin.metric
    PLUGINS[name] = plugin


def load_plugins() -> dict[str, str]:
    """Add the metrics that installed packages offer under the entry-point group `pidgin.metrics`.

    Returns:
        The package that brings each metric, by the metric's name.

    Raises:
        SpecError: one of them cannot be loaded, is no `LiveMetric`, or its name is taken.
    """
    global _all_loaded
    brought: dict[str, str] = {}
    if _all_loaded:  # what is installed is looked for once: every conversation asks
        return brought
    for point in entry_points(group="pidgin.metrics"):
        if point in _loaded:
            continue
        package = point.dist.name if point.dist is not None else point.value
        try:
            found = point.load()
            plugin = found() if isinstance(found, type) else found
        except Exception as error:  # whatever code by others raises
            raise SpecError(
                f"the package {package} cannot be loaded ({type(error).__name__}: {error}); update or remove it"
            ) from None
        add_metric(plugin, package)
        _loaded.add(point)
        brought[plugin.metric.name] = package
    _all_loaded = True
    return brought
