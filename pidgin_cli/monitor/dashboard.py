"""The screen of `pidgin monitor`: what it shows, what is selected on it, and what its keys mean.

It draws lines and takes names of keys; terminals, signals and the clock are the caller's.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.manifest import ConversationEntry
from pidgin_cli.experiments.registry import Wish
from pidgin_cli.experiments.watch import UNDER_WAY, ConversationSight, ExperimentSight, Fault, Wait, Watch, Watched
from pidgin_cli.reports.text import count

from .chat import DIM, cost_text, status_style
from .progress import duration_text
from .text import Wrapper, one_line, visible

__all__ = ["Ask", "Dashboard", "Open", "Quit", "static_view"]

UNKNOWN = "–"
BAR_CELLS = 10
RECENT = 20
"""Experiments that are over and still in a static view."""
MOST_TEXT = 600
"""Of any one text; there is no room for more anywhere."""
DETAIL_LINES = 5
DETAILS_FROM = 14
"""Lines of a screen from which there is room for details."""

_R = TypeVar("_R")


# What the keys ask for


class Quit(NamedTuple):
    """Leave."""


class Open(NamedTuple):
    """Show a conversation's transcript."""

    experiment: Watched
    conversation_id: str


class Ask(NamedTuple):
    """Ask the runner of an experiment for something."""

    experiment_id: str
    wish: Wish


# Cells


class Cell(NamedTuple):
    text: str
    """On one line, and nothing in it that a terminal acts on."""
    style: str = ""


def _cell(text: str, style: str = "") -> Cell:
    """Text of any origin."""
    return Cell(" ".join(visible(text[:MOST_TEXT]).split()), style)


class Column(NamedTuple):
    """One column of a table. Which ones there is room for goes by `rank`; 0: always there."""

    title: str
    rank: int
    right: bool = False
    flexible: int = 0
    """Cells that it takes at least; then it gets the room that is left, and is cut where there is none."""


_EXPERIMENTS = (
    Column("id", 0),
    Column("name", 0, flexible=14),
    Column("status", 0),
    Column("", 4),
    Column("done", 1, right=True),
    Column("turns", 9, right=True),
    Column("messages", 5, right=True),
    Column("tokens", 8, right=True),
    Column("cost", 2, right=True),
    Column("msg/min", 6, right=True),
    Column("left", 7, right=True),
    Column("errors", 3, right=True),
    Column("cpu", 10, right=True),
    Column("memory", 11, right=True),
)
_CONVERSATIONS = (
    Column("conversation", 0),
    Column("arm", 7, flexible=10),
    Column("turn", 0, right=True),
    Column("speaker", 1),
    Column("status", 0),
    Column("end", 4),
    Column("tokens", 3, right=True),
    Column("cost", 2, right=True),
    Column("conv.", 6, right=True),
    Column("detectors", 8),
    Column("errors", 5, right=True),
    Column("wait or last error", 1, flexible=12),
)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _tokens(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _cost(cost: float | None, messages: int | None) -> str:
    return UNKNOWN if cost is None and not messages else cost_text(cost)


def _memory(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value / 1e6:,.0f} MB"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %"


def _status(status: Status | None) -> Cell:
    return Cell("unreadable", "red") if status is None else Cell(status.value, status_style(status))


def _words(value: object) -> str:
    return str(value).replace("_", " ")


def _bar(done: int | None, total: int | None, *, plain: bool) -> str:
    if not total or done is None:
        return ""
    full = min(BAR_CELLS, done * BAR_CELLS // total)
    return ("#" if plain else "█") * full + ("-" if plain else "░") * (BAR_CELLS - full)


def _detectors(sight: ConversationSight) -> str:
    parts = []
    for name, state in (sight.detectors or {}).items():
        inner = (
            next((state[key] for key in ("state", "value") if key in state), "") if isinstance(state, dict) else state
        )
        shown = f"{inner:.2f}" if isinstance(inner, float) else _words(inner)
        parts.append(f"{_words(name)} {shown}".rstrip())
    if sight.alert:
        parts.insert(0, f"! {_words(sight.alert)}")
    return ", ".join(parts) or UNKNOWN


def _wait_text(wait: Wait, now: datetime) -> str:
    still = "" if wait.until is None else f" {max(0.0, (wait.until - now).total_seconds()):.0f} s"
    return f"{wait.agent_id} waits{still}: {wait.provider} {wait.why}"


def _fault_text(fault: Fault) -> str:
    about = " ".join(part for part in (fault.agent_id, fault.provider, fault.kind) if part)
    status = "" if fault.status is None else f" ({fault.status})"
    return f"{about}{status}: {fault.text}" if about else fault.text


def _experiment_cells(sight: ExperimentSight, *, plain: bool) -> tuple[Cell, ...]:
    done = "" if sight.total is None else f"{sight.completed:,}/{sight.total:,}"
    return (
        _cell(sight.experiment_id),
        _cell(sight.name or "" if sight.problem is None else f"{sight.name or ''} {sight.problem}"),
        _status(sight.status),
        _cell(_bar(sight.completed, sight.total, plain=plain), "cyan"),
        _cell(done),
        _cell(_number(sight.turns)),
        _cell(_number(sight.messages)),
        _cell(UNKNOWN if sight.status is None else _tokens(sight.tokens)),
        _cell(_cost(sight.cost_usd, sight.messages)),
        _cell(_number(sight.messages_per_minute)),
        _cell(UNKNOWN if sight.eta_s is None else duration_text(sight.eta_s)),
        _cell(_number(sight.with_errors), "red" if sight.with_errors else ""),
        _cell(_percent(sight.cpu_percent)),
        _cell(_memory(sight.memory_bytes)),
    )


def _conversation_cells(sight: ConversationSight, watched: Watched, now: datetime) -> tuple[Cell, ...]:
    speaker = UNKNOWN if sight.speaker is None else watched.name_of(sight.conversation_id, sight.speaker)
    note = _cell("")
    if sight.wait is not None:
        note = _cell(_wait_text(sight.wait, now), "yellow")
    elif sight.last_error is not None:
        note = _cell(_fault_text(sight.last_error), "red" if sight.status is Status.FAILED else "")
    return (
        _cell(sight.conversation_id),
        _cell(sight.arm),
        _cell(f"{sight.turns:,}/{UNKNOWN if sight.max_turns is None else f'{sight.max_turns:,}'}"),
        _cell(
            f"> {one_line(speaker, 14)}" if sight.speaking else one_line(speaker, 16), "bold" if sight.speaking else ""
        ),
        _cell(sight.status.value, status_style(sight.status)),
        _cell(_words(sight.end_reason or "")),
        _cell(_tokens(sight.tokens)),
        _cell(_cost(sight.cost_usd, sight.messages)),
        _cell(UNKNOWN if sight.convergence is None else f"{sight.convergence:.2f}"),
        _cell(one_line(_detectors(sight), 30), "yellow" if sight.alert else ""),
        _cell(_number(sight.errors), "red" if sight.errors else ""),
        note,
    )


# Tables


class _Widths:
    """Room for each column: never less than it once needed, so that columns stand still while figures grow."""

    MOST = 34

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._needed = [cell_len(column.title) for column in columns]
        self._used = [column.rank == 0 for column in columns]
        """Whether there has been anything in the column."""

    def fit(self, rows: Iterable[Sequence[Cell]], width: int) -> dict[int, int]:
        """Cells for every column that there is room for, by its place."""
        for row in rows:
            for place, cell in enumerate(row):
                self._used[place] = self._used[place] or bool(cell.text)
                if not self.columns[place].flexible:
                    self._needed[place] = max(self._needed[place], min(cell_len(cell.text), self.MOST))
        least = [column.flexible or need for column, need in zip(self.columns, self._needed, strict=True)]
        chosen: set[int] = set()
        used = 0
        for place in sorted(range(len(self.columns)), key=lambda place: self.columns[place].rank):
            fits = self._used[place] and used + least[place] + 1 <= width
            if self.columns[place].rank == 0 or fits:
                chosen.add(place)
                used += least[place] + 1
        widths = {place: least[place] for place in sorted(chosen)}
        flexible = [place for place in widths if self.columns[place].flexible]
        for number, place in enumerate(flexible):
            widths[place] += max(0, (width - used) // (len(flexible) - number))
            used += widths[place] - least[place]
        return widths


def _shown(cells: Sequence[tuple[Cell, int, bool]]) -> Text:
    line = Text(no_wrap=True)
    for number, (cell, width, right) in enumerate(cells):
        text = one_line(cell.text, width)
        room = max(0, width - cell_len(text))
        line.append(" " * (number > 0) + " " * (room if right else 0))
        line.append(text, cell.style)
        line.append(" " * (0 if right else room))
    return line


def _table_row(widths: Mapping[int, int], columns: Sequence[Column], row: Sequence[Cell], mark: str) -> Text:
    line = Text(mark, no_wrap=True)
    return line.append_text(_shown([(row[place], width, columns[place].right) for place, width in widths.items()]))


def _titles(widths: Mapping[int, int], columns: Sequence[Column]) -> Text:
    cells = [Cell(column.title, "dim") for column in columns]
    return _table_row(widths, columns, cells, "  ")


def _flow(parts: Iterable[Cell], width: int) -> list[Text]:
    """The parts one after the other, on as many lines as they take; none is divided."""
    lines: list[Text] = []
    for part in parts:
        text = one_line(part.text, max(1, width - 2))
        if lines and lines[-1].cell_len + cell_len(text) + 3 <= width:
            lines[-1].append(" · ", DIM)
        else:
            lines.append(Text("  "))
        lines[-1].append(text, part.style)
    return lines


def _paragraph(text: str, style: str, width: int) -> list[Text]:
    """A text on two lines at most."""
    pieces: list[str] = []
    wrapper = Wrapper(pieces.append, width, "  ")
    wrapper.feed(one_line(text[:MOST_TEXT], 2 * max(1, width - 6)))
    wrapper.close()
    return [Text(line, style) for line in "".join(pieces).split("\n")[:2]]


def _experiment_details(sight: ExperimentSight, now: datetime, width: int) -> list[Text]:
    """What the row has no room for."""
    if sight.problem is not None:
        return _paragraph(sight.problem, "red", width)
    facts = [
        _cell(f"{sight.experiment_id} {sight.name or ''}".rstrip(), "bold"),
        _cell(f"{sight.completed or 0:,} of {count(sight.total or 0, 'conversation')} complete"),
        *([_cell(f"{sight.failed:,} failed", "red")] if sight.failed else []),
        _cell(count(sight.turns or 0, "turn")),
        _cell(count(sight.messages or 0, "message")),
        _cell(f"{_tokens(sight.tokens)} tokens"),
        _cell(_cost(sight.cost_usd, sight.messages)),
    ]
    if sight.messages_per_minute is not None:
        facts.append(_cell(f"{sight.messages_per_minute:,.0f} messages/min"))
    if sight.eta_s is not None:
        facts.append(_cell(f"about {duration_text(sight.eta_s)} left"))
    if sight.pid is not None:
        runner = f"process {sight.pid}: {_percent(sight.cpu_percent)} CPU, {_memory(sight.memory_bytes)}"
        facts.append(_cell(runner, "dim"))
    lines = _flow(facts, width)
    if sight.last_error is not None:
        fault = sight.last_error
        text = f"{count(sight.with_errors or 0, 'conversation')} with errors; last: {fault.conversation_id}"
        lines += _paragraph(f"{text} {_fault_text(fault)}", "red", width)
    if sight.waits:
        wait = sight.waits[0]
        text = f"{len(sight.waits):,} waiting: {wait.conversation_id} {_wait_text(wait, now)}"
        lines += _flow([_cell(text, "yellow")], width)
    if sight.limits:
        limits = [f"{limit.provider} {limit.model} {limit.limit:,} {limit.what}" for limit in sight.limits]
        lines += _flow([_cell(f"limits: {'; '.join(limits)}", "dim")], width)
    return lines


def _conversation_details(sight: ConversationSight, now: datetime, width: int) -> list[Text]:
    facts = [
        _cell(sight.conversation_id, "bold"),
        _cell(f"arm {sight.arm}" if sight.arm else "no arm"),
        _cell(f"repetition {sight.repetition}"),
        _cell(count(sight.turns, "turn") + ("" if sight.max_turns is None else f" of {sight.max_turns:,}")),
        _cell(count(sight.messages, "message")),
        _cell(f"{_tokens(sight.tokens)} tokens"),
        _cell(_cost(sight.cost_usd, sight.messages)),
        _cell(f"convergence {UNKNOWN if sight.convergence is None else f'{sight.convergence:.3f}'}"),
        _cell(f"detectors {_detectors(sight)}"),
    ]
    lines = _flow(facts, width)
    if sight.last_error is not None:
        errors = "" if sight.errors is None else f"{count(sight.errors, 'error')}; last: "
        lines += _paragraph(f"{errors}{_fault_text(sight.last_error)}", "red", width)
    if sight.wait is not None:
        lines += _flow([_cell(_wait_text(sight.wait, now), "yellow")], width)
    return lines


# Order and choice


def _known_first(value: float | None) -> float:
    """For a sort from large to small: what is not known comes last."""
    return float("-inf") if value is None else value


def _newest(watched: Watched) -> datetime:
    return datetime.min.replace(tzinfo=UTC) if watched.manifest is None else watched.manifest.created_at


def _total(watched: Watched, name: str) -> float:
    return _known_first(None if watched.manifest is None else getattr(watched.manifest.totals, name))


def _name(watched: Watched) -> str:
    return ((watched.manifest and watched.manifest.name) or watched.folder.slug or "").casefold()


Sort = tuple[str, Callable[[Any], Any], bool]
"""What it is called, the key, and whether large ones come first."""

_EXPERIMENT_SORTS: tuple[Sort, ...] = (
    ("running first", lambda watched: (watched.under_way, _newest(watched)), True),
    ("newest", _newest, True),
    ("name", lambda watched: (not _name(watched), _name(watched)), False),
    ("status", lambda watched: watched.status or "", False),
    ("messages", lambda watched: _total(watched, "messages"), True),
    ("cost", lambda watched: _total(watched, "cost_usd"), True),
    ("errors", lambda watched: watched.with_errors, True),
)
_Row = tuple[str, ConversationEntry]
_CONVERSATION_SORTS: tuple[Sort, ...] = (
    ("running first", lambda row: row[1].status in UNDER_WAY, True),
    ("number", lambda _: 0, False),
    ("status", lambda row: row[1].status, False),
    ("arm", lambda row: row[1].arm, False),
    ("turns", lambda row: row[1].turns, True),
    ("tokens", lambda row: _known_first(row[1].tokens), True),
    ("cost", lambda row: _known_first(row[1].cost_usd), True),
    ("convergence", lambda row: _known_first(row[1].convergence), True),
    ("errors", lambda row: row[1].error is not None, True),
)


def _fits(words: Sequence[str], *texts: str | None) -> bool:
    together = "\n".join(text for text in texts if text).casefold()
    return all(word in together for word in words)


class _List:
    """Rows to choose from: which one is chosen, which are on the screen, their order and what they are filtered by."""

    def __init__(self, columns: Sequence[Column], sorts: Sequence[Sort]) -> None:
        self.columns = columns
        self.sorts = sorts
        self.sort = 0
        self.filter = ""
        self.chosen: str | None = None
        self.widths = _Widths(columns)
        self._keys: list[str] = []
        self._top = 0
        self._page = 1

    @property
    def words(self) -> list[str]:
        return self.filter.casefold().split()

    def arrange(self, rows: Iterable[_R]) -> list[_R]:
        _, key, reverse = self.sorts[self.sort]
        return sorted(rows, key=key, reverse=reverse)

    def show(self, keys: list[str], page: int) -> slice:
        """Which of these rows are on the screen; the chosen one always is."""
        place = self._place()
        self._keys, self._page = keys, max(1, page)
        if self.chosen not in keys:
            self.chosen = keys[min(place, len(keys) - 1)] if keys else None
        place = self._place()
        self._top = max(min(self._top, place, max(0, len(keys) - self._page)), place - self._page + 1, 0)
        return slice(self._top, self._top + self._page)

    def _place(self) -> int:
        return self._keys.index(self.chosen) if self.chosen in self._keys else 0

    def move(self, key: str) -> bool:
        """Choose another row. False: the key does not say so."""
        step = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -self._page, "pagedown": self._page}.get(key)
        if key in ("home", "g"):
            step = -len(self._keys)
        elif key in ("end", "G"):
            step = len(self._keys)
        if step is None:
            return False
        if self._keys:
            self.chosen = self._keys[max(0, min(len(self._keys) - 1, self._place() + step))]
        return True


HELP = (
    ("↑ ↓  j k", "choose"),
    ("PgUp PgDn g G", "a page on, to the beginning, to the end"),
    ("Enter", "open the experiment, or the transcript of the conversation"),
    ("Esc", "back"),
    ("p", "pause the experiment, or let it go on"),
    ("s", "stop the experiment after the messages under way (see: resume)"),
    ("f", "filter by words of name, id, arm, status, error"),
    ("", "(Enter keeps the filter, Esc drops it)"),
    ("o", "sort by something else"),
    ("?", "this help"),
    ("q", "quit; what runs goes on"),
)


class Dashboard:
    """The experiments, and the conversations of one of them."""

    def __init__(self, watch: Watch, *, opened: str | None = None, plain: bool = False) -> None:
        """
        Args:
            opened: key of the experiment whose conversations are shown first.
            plain: the terminal shows ASCII only.
        """
        self._watch = watch
        self._plain = plain
        self._opened = opened
        self._experiments = _List(_EXPERIMENTS, _EXPERIMENT_SORTS)
        self._conversations = _List(_CONVERSATIONS, _CONVERSATION_SORTS)
        self._experiments.chosen = opened
        self._filtering = False
        self._helping = False
        self._stopping: Watched | None = None
        """The experiment that is about to be stopped, if the answer is yes."""
        self._notice = ""
        self._on_screen: dict[str, list[str]] = {}

    @property
    def _list(self) -> _List:
        return self._experiments if self._opened is None else self._conversations

    def notice(self, text: str) -> None:
        """Say something until the next key is pressed."""
        self._notice = text

    def _current(self) -> Watched | None:
        key = self._opened or self._experiments.chosen
        return None if key is None else self._watch.get(key)

    # Keys

    def press(self, key: str) -> Quit | Open | Ask | None:
        """A key, by its name (`up`, `enter`, `escape`, `backspace`, …) or its character. Gives what is to be done."""
        self._notice = ""
        if self._helping:
            self._helping = False
            return None
        if self._stopping is not None:
            stopping, self._stopping = self._stopping, None
            return Ask(stopping.folder.experiment_id, Wish.STOP) if key in ("y", "Y") else None
        if self._filtering:
            self._type(key)
            return None
        if self._list.move(key):
            return None
        return self._command(key)

    def _type(self, key: str) -> None:
        rows = self._list
        if key == "enter":
            self._filtering = False
        elif key == "escape":
            self._filtering, rows.filter = False, ""
        elif key == "backspace":
            rows.filter = rows.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            rows.filter += key
        elif key in ("up", "down", "pageup", "pagedown"):
            rows.move(key)

    def _command(self, key: str) -> Quit | Open | Ask | None:
        current = self._current()
        match key:
            case "q":
                return Quit()
            case "?":
                self._helping = True
            case "f" | "/":
                self._filtering = True
            case "o":
                rows = self._list
                rows.sort = (rows.sort + 1) % len(rows.sorts)
                self._notice = f"sorted by {rows.sorts[rows.sort][0]}"
            case "escape" | "left" | "backspace" | "h":
                if self._list.filter:
                    self._list.filter = ""
                else:
                    self._opened = None
            case "enter" | "right" | "l" if current is not None:
                return self._open(current)
            case "p" | "s" if current is not None:
                return self._steer(current, key)
        return None

    def _open(self, current: Watched) -> Open | None:
        if self._opened is None:
            self._opened = current.key
            self._conversations = _List(_CONVERSATIONS, _CONVERSATION_SORTS)
        elif self._conversations.chosen is not None:
            return Open(current, self._conversations.chosen)
        return None

    def _steer(self, current: Watched, key: str) -> Ask | None:
        if current.runner is None:
            self._notice = f"{current.folder.experiment_id} is not running here"
        elif key == "s":
            self._stopping = current
        else:
            paused = current.status is Status.PAUSED or _all_paused(current)
            return Ask(current.folder.experiment_id, Wish.RESUME if paused else Wish.PAUSE)
        return None

    # The screen

    def looked_at(self) -> Mapping[str, Collection[str]]:
        """The conversations whose logs the screen tells of, by key of the experiment; as it was drawn last."""
        return self._on_screen

    def draw(self, width: int, height: int, now: datetime | None = None) -> Text:
        """The whole screen: `height` lines, none of more than `width` cells."""
        now = now or datetime.now(UTC)
        opened = None if self._opened is None else self._watch.get(self._opened)
        if self._opened is not None and opened is None:
            self._notice = self._notice or "the experiment is gone"
            self._opened = None
        details = DETAIL_LINES if height >= DETAILS_FROM else 0
        room = height - 3 - (details + 1 if details else 0)
        if opened is None:
            head, lines, below = self._draw_experiments(width, room, now)
        else:
            head, lines, below = self._draw_conversations(opened, width, room, now)
        if self._helping:
            lines = [Text.assemble("  ", (f"{keys:<15}", "bold"), what) for keys, what in HELP]
        screen = [head, *_padded(lines, room + 1)]
        if details:
            screen += [Text("─" * width if not self._plain else "-" * width, DIM), *_padded(below, details)]
        screen.append(self._foot(width))
        for line in screen:
            line.truncate(width)
        return Text("\n", no_wrap=True).join(screen[:height])

    def _draw_experiments(self, width: int, room: int, now: datetime) -> tuple[Text, list[Text], list[Text]]:
        rows = self._experiments
        everything = self._watch.experiments
        words = rows.words
        found = [
            watched
            for watched in everything
            if not words
            or _fits(
                words, watched.folder.experiment_id, _name(watched), "unreadable" if watched.problem else watched.status
            )
        ]
        found = rows.arrange(found)
        part = rows.show([watched.key for watched in found], room)
        visible_ones = found[part]
        self._on_screen = {watched.key: watched.active(now) for watched in visible_ones}
        sights = [watched.experiment(now) for watched in visible_ones]
        cells = [_experiment_cells(sight, plain=self._plain) for sight in sights]
        lines = _table(rows, [watched.key for watched in visible_ones], cells, width)
        running = sum(watched.under_way for watched in everything)
        head = Text("pidgin monitor", "bold")
        head.append(f"  {running:,} running of {count(len(everything), 'experiment')}", DIM)
        self._tell_choice(head, len(found), len(everything), now, width)
        below: list[Text] = []
        for watched, sight in zip(visible_ones, sights, strict=True):
            if watched.key == rows.chosen:
                below = _experiment_details(sight, now, width)
        if not everything:
            lines = [Text(f"  Nothing in {visible(str(self._watch.root.experiments))} yet", DIM)]
        return head, lines, below

    def _draw_conversations(
        self, watched: Watched, width: int, room: int, now: datetime
    ) -> tuple[Text, list[Text], list[Text]]:
        rows = self._conversations
        words = rows.words
        entries = watched.entries()
        found = rows.arrange(
            (name, entry)
            for name, entry in entries.items()
            if not words
            or _fits(words, name, entry.arm, entry.status, entry.end_reason and _words(entry.end_reason), entry.error)
        )
        part = rows.show([name for name, _ in found], room)
        names = [name for name, _ in found[part]]
        # Those on the screen come first: of the others only what waits and what is told of the whole experiment counts.
        self._on_screen = {watched.key: list(dict.fromkeys([*names, *watched.active(now)]))}
        sights = [watched.conversation(name, now) for name in names]
        cells = [_conversation_cells(sight, watched, now) for sight in sights]
        lines = _table(rows, names, cells, width)
        whole = watched.experiment(now)
        head = Text(one_line(f"{whole.experiment_id} {whole.name or ''}".rstrip(), max(12, width // 3)), "bold")
        status = _status(whole.status)
        head.append("  ").append(status.text, status.style)
        if whole.total is not None:
            head.append(f"  {whole.completed:,}/{whole.total:,}")
        if whole.failed:
            head.append(f"  {whole.failed:,} failed", "red")
        if whole.messages_per_minute is not None:
            head.append(f"  {whole.messages_per_minute:,.0f} msg/min", DIM)
        if whole.eta_s is not None:
            head.append(f"  {duration_text(whole.eta_s)} left", DIM)
        if whole.waits:
            head.append(f"  {len(whole.waits):,} waiting", "yellow")
        self._tell_choice(head, len(found), len(entries), now, width)
        below: list[Text] = []
        for sight in sights:
            if sight.conversation_id == rows.chosen:
                below = _conversation_details(sight, now, width)
        if whole.problem is not None:
            lines, below = [], _experiment_details(whole, now, width)
        return head, lines, below

    def _tell_choice(self, head: Text, found: int, of: int, now: datetime, width: int) -> None:
        rows = self._list
        if rows.filter:
            head.append(f"  {found:,} of {of:,} fit: {one_line(rows.filter, 20)}", "yellow")
        if rows.sort:
            head.append(f"  by {rows.sorts[rows.sort][0]}", DIM)
        clock = f"{now.astimezone():%H:%M:%S}"
        if (room := width - head.cell_len - len(clock)) > 1:
            head.append(" " * room).append(clock, DIM)

    def _foot(self, width: int) -> Text:
        if self._stopping is not None:
            ask = f"Stop {self._stopping.folder.experiment_id} after the messages under way? y: yes, any other key: no"
            return Text(one_line(ask, width), "bold yellow")
        if self._filtering:
            return Text(one_line(f"filter: {self._list.filter}", width - 1), "bold").append("_", "bold")
        if self._notice:
            return Text(one_line(self._notice, width), "yellow")
        if self._helping:
            return Text("any key: back", DIM)
        back = "" if self._opened is None else "Esc back  "
        enter = "open" if self._opened is None else "read"
        return Text(f"Enter {enter}  {back}p pause  s stop  f filter  o sort  ? help  q quit", DIM)


def _all_paused(watched: Watched) -> bool:
    under_way = {entry.status for entry in watched.entries().values()} & set(UNDER_WAY)
    return under_way == {Status.PAUSED}


def _table(rows: _List, keys: Sequence[str], cells: Sequence[Sequence[Cell]], width: int) -> list[Text]:
    widths = rows.widths.fit(cells, max(1, width - 2))
    lines = [_titles(widths, rows.columns)]
    for key, row in zip(keys, cells, strict=True):
        line = _table_row(widths, rows.columns, row, "> " if key == rows.chosen else "  ")
        if key == rows.chosen:
            line.plain = set_cell_size(line.plain, width)
            line.stylize(Style(reverse=True))
        lines.append(line)
    return lines


def _padded(lines: Sequence[Text], height: int) -> list[Text]:
    kept = list(lines[: max(0, height)])
    return kept + [Text() for _ in range(height - len(kept))]


# Without a screen


def static_view(watch: Watch, opened: Watched | None, width: int, *, plain: bool = False) -> Iterable[Text]:
    """The same as lines to print: the experiments, or one with all its conversations."""
    now = datetime.now(UTC)
    if opened is not None:
        yield from _experiment_details(opened.experiment(now), now, width)
        rows = [_conversation_cells(opened.conversation(name, now), opened, now) for name in opened.entries()]
        yield from _static_table(_CONVERSATIONS, rows, width)
        return
    everything = watch.experiments
    if not everything:
        yield Text(f"Nothing in {visible(str(watch.root.experiments))} yet")
        return
    running = [watched for watched in everything if watched.under_way]
    over = [watched for watched in everything if not watched.under_way]
    sights = [watched.experiment(now) for watched in [*running, *over[:RECENT]]]
    yield from _static_table(_EXPERIMENTS, [_experiment_cells(sight, plain=plain) for sight in sights], width)
    if len(over) > RECENT:
        yield Text(f"  … and {len(over) - RECENT:,} older ones: pidgin list", DIM)
    for sight in sights[: len(running)]:
        yield Text()
        yield from _experiment_details(sight, now, width)


def _static_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> Iterable[Text]:
    widths = _Widths(columns).fit(rows, max(1, width - 2))
    for place in widths:
        if columns[place].flexible:
            longest = max((cell_len(one_line(row[place].text, width)) for row in rows), default=0)
            widths[place] = min(widths[place], max(longest, cell_len(columns[place].title)))
    yield _titles(widths, columns)
    for row in rows:
        line = _table_row(widths, columns, row, "  ")
        line.rstrip()
        yield line
