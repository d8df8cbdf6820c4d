"""`monitor`, `attach` and `logs`: looking at what runs, without touching it."""

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pidgin_cli.core.errors import LogError, NotFound, PidginError
from pidgin_cli.core.events import (
    APIErrorEvent,
    ConversationEndEvent,
    ErrorEvent,
    Event,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    QuestionAbandonedEvent,
    RateLimitEvent,
    WarningEvent,
)
from pidgin_cli.core.types import Status
from pidgin_cli.eventlog.codec import Skipped, encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.follow import Follower
from pidgin_cli.experiments.registry import Wish, ask_runner, living_runner
from pidgin_cli.experiments.watch import UNDER_WAY, UNFINISHED, Watch, Watched, moment_of
from pidgin_cli.monitor.chat import ChatDisplay, TailDisplay
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.dashboard import Ask, Dashboard, Open, Quit, static_view
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.text import count

from .records import existing_root, manifest_of, note_broken

__all__ = ["attach", "monitor", "show_logs"]

LOOK_EVERY_S = 0.5
"""How often the monitor looks at the disk; manifests are written no oftener."""
CATCH_UP_S = 0.05
"""The same while there is more in the logs than was read at once."""
POLL_S = 0.15
"""How often a log that is followed is looked at, and how soon a resized screen is drawn anew."""
CPU_SAMPLE_S = 0.25
RECALLED_TURNS = 2
RECALLED_LINES = 20
LAST_BYTES = 16_384
"""Of each log, where only its last lines are shown."""
LOGS_RECALLED = 16
"""Conversations whose last lines are shown at first."""


# Keys


_SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[C": "right",
    b"\x1bOC": "right",
    b"\x1b[D": "left",
    b"\x1bOD": "left",
    b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
}
_CONTROLS = {b"\r": "enter", b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace", b"\x1a": "suspend"}
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")
_UNFINISHED_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?")


def keys_in(data: bytes, *, more: bool) -> tuple[list[str], bytes]:
    """The keys that bytes from a terminal stand for, and what may be the beginning of one.

    `more`: more may come at once, so that an escape need not be the key of that name.
    """
    keys: list[str] = []
    while data:
        if match := _SEQUENCE.match(data):
            if (name := _SEQUENCES.get(match[0])) is not None:
                keys.append(name)
            data = data[match.end() :]
        elif more and _UNFINISHED_SEQUENCE.fullmatch(data):
            return keys, data
        elif data[:1] == b"\x1b":
            keys.append("escape")
            data = data[1:]
        elif (name := _CONTROLS.get(data[:1])) is not None:
            keys.append(name)
            data = data[1:]
        else:
            length = 1 if data[0] < 0xC0 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
            if more and len(data) < length:
                return keys, data
            text = data[:length].decode("utf-8", "ignore")
            if text.isprintable():
                keys += text
            data = data[length:]
    return keys, b""


class _Keyboard:
    """Keys as they are pressed. Where nobody sits at a keyboard there are none, ever."""

    SEQUENCE_S = 0.03
    """In which the rest of an escape sequence follows its beginning."""

    def __init__(self) -> None:
        self.present = sys.stdin.isatty() and sys.stdout.isatty() and _in_foreground()
        self._before: list[Any] = []
        self._held = b""

    def __enter__(self) -> Self:
        if self.present:
            fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(fd)
            tty.setcbreak(fd, termios.TCSANOW)
            mode = termios.tcgetattr(fd)
            mode[6][termios.VSUSP] = b"\0"  # Ctrl-Z comes as a key, so that the screen can be put in order first
            termios.tcsetattr(fd, termios.TCSANOW, mode)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.present:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    def keys(self, wait_s: float) -> list[str]:
        """What has been pressed; waits for it up to `wait_s`.

        Raises:
            EOFError: the terminal is gone.
        """
        if not self.present:
            time.sleep(wait_s)
            return []
        fd = sys.stdin.fileno()
        if not select.select([fd], [], [], self.SEQUENCE_S if self._held else wait_s)[0]:
            keys, self._held = keys_in(self._held, more=False)
            return keys
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        if not data:
            raise EOFError
        keys, self._held = keys_in(self._held + data, more=True)
        return keys

    def leaves(self, wait_s: float) -> bool:
        """Whether the person wants to leave, in a view that knows no other keys than q and Ctrl-Z."""
        keys = self.keys(wait_s)
        if "suspend" in keys:
            self.__exit__(None, None, None)
            signal.raise_signal(signal.SIGTSTP)
            self.__enter__()
        return "q" in keys


def _in_foreground() -> bool:
    """Whether this process may read from the terminal without being stopped for it."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def _leaving_in_order() -> Iterator[None]:
    """The end of the terminal or of the system ends the process as an exception does: the screen is put in order."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# monitor


def monitor(target: str | None, output: Path | None, *, once: bool, as_json: bool) -> int:
    """Show what runs and what ran lately, live; `once` and `as_json` print it and return. Gives the exit status."""
    root = existing_root(output)
    folder = None if target is None else root.find(target)
    if folder is not None:
        root = _root_of(folder)
    watch = Watch(root)
    console = make_console()
    keyboard = _Keyboard()
    if once or as_json or not keyboard.present or not console.is_terminal or console.is_dumb_terminal:
        _print_once(watch, folder, console, as_json=as_json)
        return 0
    dashboard = Dashboard(watch, opened=None if folder is None else folder.path.name, plain=_ascii_only(console))
    try:
        with _leaving_in_order():
            _run_screen(console, watch, dashboard, keyboard)
    except (KeyboardInterrupt, EOFError):
        pass  # as q: nothing was asked for that is cut off
    _note_broken(watch)
    return 0


def _note_broken(watch: Watch) -> None:
    for watched in watch.experiments:
        if watched.from_logs:
            note_broken(watched.folder)


def _root_of(folder: ExperimentFolder) -> OutputRoot:
    """Where an experiment lies, which may have been given as a path to anywhere."""
    return OutputRoot(folder.path.parent.parent)


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def _print_once(watch: Watch, folder: ExperimentFolder | None, console: Console, *, as_json: bool) -> None:
    only = None if folder is None else [folder.path.name]
    watch.refresh(only)
    opened = None if folder is None else watch.get(folder.path.name)
    now = datetime.now().astimezone()
    shown = watch.experiments
    if any(watched.runner is not None for watched in shown):
        watch.follow({watched.key: () for watched in shown})  # what a process uses shows between two looks
        time.sleep(CPU_SAMPLE_S)
        watch.refresh(only)
    logs = {watched.key: list(watched.entries()) if opened is not None else watched.active(now) for watched in shown}
    while watch.follow(logs):
        pass
    _note_broken(watch)
    if as_json:
        sights = []
        for watched in shown:
            sight = watched.experiment(now)
            sight.conversations = [watched.conversation(name, now) for name in watched.entries()]
            sights.append(sight)
        click.echo(msgspec.json.format(msgspec.json.encode(sights), indent=2))
        return
    for line in static_view(watch, opened, console.width, plain=_ascii_only(console)):
        console.print(line, soft_wrap=True)


def _run_screen(console: Console, watch: Watch, dashboard: Dashboard, keyboard: _Keyboard) -> None:
    while True:
        with keyboard, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            wanted = _watch(console, live, watch, dashboard, keyboard)
        if isinstance(wanted, Open):
            _read_transcript(console, watch.root, wanted, keyboard)
        elif wanted is None:
            signal.raise_signal(signal.SIGTSTP)
        else:
            return


def _watch(console: Console, live: Live, watch: Watch, dashboard: Dashboard, keyboard: _Keyboard) -> Quit | Open | None:
    """Draw and take keys until something is asked for that needs the whole terminal; None: Ctrl-Z."""
    next_look = 0.0
    size = None
    while True:
        looking = time.monotonic() >= next_look
        if looking:
            watch.refresh()
        if looking or console.size != size:
            size = console.size
            screen = dashboard.draw(size.width, size.height)
            behind = watch.follow(dashboard.looked_at())
            if looking:
                screen = dashboard.draw(size.width, size.height)
                next_look = time.monotonic() + (CATCH_UP_S if behind else LOOK_EVERY_S)
            live.update(screen, refresh=True)
        for key in keyboard.keys(max(0.0, min(POLL_S, next_look - time.monotonic()))):
            if key == "suspend":
                return None
            wanted = dashboard.press(key)
            if isinstance(wanted, Ask):
                _ask(watch.root, dashboard, wanted)
            elif wanted is not None:
                return wanted
            size = None


def _ask(root: OutputRoot, dashboard: Dashboard, wanted: Ask) -> None:
    told = {
        Wish.STOP: "stops after the messages under way",
        Wish.STOP_NOW: "stops now",
        Wish.PAUSE: "pauses after the messages under way",
        Wish.RESUME: "goes on",
    }
    try:
        ask_runner(root, wanted.experiment_id, wanted.wish)
    except PidginError as error:
        dashboard.notice(str(error))
    else:
        dashboard.notice(f"{wanted.experiment_id} {told[wanted.wish]}")


def _read_transcript(console: Console, root: OutputRoot, wanted: Open, keyboard: _Keyboard) -> None:
    console.print(Text(f"{wanted.conversation_id}; q goes back to the monitor", "dim"))
    with keyboard, contextlib.suppress(KeyboardInterrupt):
        try:
            ended = _Transcript(root, wanted.experiment.folder, wanted.conversation_id, console, "chat").follow(
                keyboard
            )
        except PidginError as error:
            console.print(Text(one_line(str(error), 2 * console.width), "red"))
            ended = True
        if ended:
            console.print(Text("any key goes back to the monitor", "dim"))
            while not keyboard.keys(POLL_S):
                pass


# attach


def attach(
    target: str, output: Path | None, *, display: str | None, show_thinking: bool, show_system_prompts: bool
) -> int:
    """Show what another process is doing, from its record, until that ends or the person leaves. Gives 0."""
    root = existing_root(output)
    folder = root.find(target)
    root = _root_of(folder)
    console = make_console()
    manifest = manifest_of(root, folder)
    conversation_id = None
    if re.fullmatch(r"[a-z0-9]{8}-\d+", target) and target.partition("-")[0] == folder.experiment_id:
        conversation_id = target
        if target not in manifest.conversations:
            raise NotFound(f"no conversation {target!r}; {folder.experiment_id} has {len(manifest.conversations):,}")
    elif len(manifest.conversations) == 1:
        conversation_id = next(iter(manifest.conversations))
    if display == "chat" and conversation_id is None:
        number = count(len(manifest.conversations), "conversation")
        first = ", ".join(list(manifest.conversations)[:3])
        raise click.UsageError(
            f"--display chat shows one of the {number} of {folder.experiment_id}: name it ({first} …)."
        )
    chosen = display or ("chat" if console.is_terminal and conversation_id is not None else "tail")
    flags = {"show_thinking": show_thinking, "show_system_prompts": show_system_prompts}
    shown: _Transcript | _Lines
    if conversation_id is None:
        shown = _Lines(root, folder, console, chosen, **flags)
    else:
        shown = _Transcript(root, folder, conversation_id, console, chosen, **flags)
    left = False
    with _leaving_in_order(), _Keyboard() as keyboard:
        try:
            left = not shown.follow(keyboard)
        except (KeyboardInterrupt, EOFError):
            left = True
    if left:
        click.echo(
            f"{folder.experiment_id} was left as it is; look again with: pidgin attach {visible(target)}", err=True
        )
    return 0


class _Transcript:
    """One conversation, read from its log while another process writes it."""

    def __init__(
        self,
        root: OutputRoot,
        folder: ExperimentFolder,
        conversation_id: str,
        console: Console,
        display: str,
        *,
        show_thinking: bool = False,
        show_system_prompts: bool = False,
    ) -> None:
        self._watch = Watch(root)
        self._key = folder.path.name
        self._conversation_id = conversation_id
        self._log = Follower(folder.log(conversation_id))
        self._display_kind = display
        self._console = console
        self._flags = {"show_thinking": show_thinking, "show_system_prompts": show_system_prompts}

    def follow(self, keyboard: _Keyboard) -> bool:
        """Show it to its end. False: the person left before.

        Raises:
            NotFound: it has not begun, and nobody runs it.
        """
        status = self._status()
        events = self._read()
        if not events and status not in UNFINISHED:
            raise NotFound(
                f"{self._conversation_id} has not begun, and nobody runs it; "
                f"begin with: pidgin resume {self._conversation_id.partition('-')[0]}"
            )
        under_way = status in UNFINISHED and not (events and isinstance(events[-1], ConversationEndEvent))
        display = self._display(under_way)
        try:
            if self._display_kind == "json" or not under_way:
                shown: Iterable[Event] = events
            else:
                shown = _last_turns(events)
            for event in shown:
                display.take(event)
            if not under_way:
                self._say_why(display, status, events)
                return True
            if not events:
                display.notice(f"{self._conversation_id} waits for its turn")
            return self._go_on(display, keyboard)
        finally:
            display.finish()

    def _go_on(self, display: "_Display", keyboard: _Keyboard) -> bool:
        while True:
            status = self._status()
            events = self._read()
            for event in events:
                display.take(event)
            if events and isinstance(events[-1], ConversationEndEvent):
                return True
            if not events and status not in UNFINISHED:
                self._say_why(display, status, events)
                return True
            if keyboard.leaves(POLL_S):
                return False

    def _say_why(self, display: "_Display", status: Status | None, events: list[Event]) -> None:
        """Where the record does not say it itself, why nothing more comes."""
        if events and isinstance(events[-1], ConversationEndEvent):
            return
        experiment_id = self._conversation_id.partition("-")[0]
        if status is None:
            display.notice("the record is gone")
        elif status is Status.INTERRUPTED:
            display.notice(f"interrupted: its process is gone; go on with: pidgin resume {experiment_id}")
        else:
            display.notice(f"{status.value}; go on with: pidgin resume {experiment_id}")

    def _status(self) -> Status | None:
        """Of the conversation, as far as something may still come: one that has not begun is as its experiment."""
        self._watch.refresh([self._key])
        watched = self._watch.get(self._key)
        entry = None if watched is None else watched.entries().get(self._conversation_id)
        if watched is None or entry is None:
            return None
        if entry.status in UNDER_WAY and not watched.under_way:
            return Status.INTERRUPTED  # nobody is there any more who could end it
        return watched.status if entry.status is Status.CREATED else entry.status

    def _read(self) -> list[Event]:
        return [event for event in self._log.read() if not isinstance(event, Skipped)]

    def _display(self, under_way: bool) -> "_Display":
        if self._display_kind == "json":
            return _JsonLines()
        if self._display_kind == "tail":
            return TailDisplay(self._console, **self._flags)
        return ChatDisplay(self._console, following=under_way, pieces=False, **self._flags)


def _last_turns(events: list[Event]) -> Iterator[Event]:
    """Who talks, and the last turns."""
    turns = [event.turn_number for event in events if isinstance(event, MessageCompleteEvent)]
    first = max(turns, default=0) - RECALLED_TURNS + 1
    turn = 0
    for event in events:
        turn = getattr(event, "turn_number", turn)
        if turn == 0 or turn >= first:
            yield event


class _Lines:
    """All conversations of an experiment, a line for every event."""

    def __init__(
        self,
        root: OutputRoot,
        folder: ExperimentFolder,
        console: Console,
        display: str,
        *,
        show_thinking: bool = False,
        show_system_prompts: bool = False,
    ) -> None:
        self._watch = Watch(root)
        self._folder = folder
        self._everything = display == "json"
        self._display: _Display = (
            _JsonLines()
            if self._everything
            else TailDisplay(
                console, conversations=True, show_thinking=show_thinking, show_system_prompts=show_system_prompts
            )
        )
        self._logs: dict[str, Follower] = {}
        self._over: set[str] = set()
        """Conversations of which nothing more is expected."""

    def follow(self, keyboard: _Keyboard) -> bool:
        """Show them until the experiment has ended. False: the person left before."""
        watched = self._look()
        if watched is None or watched.manifest is None:
            raise LogError(f"{self._folder.path} cannot be read")
        self._begin(watched)
        while True:
            watched = self._look()
            events = self._read(watched)
            for event in events:
                self._display.take(event)
            if not events and (watched is None or not watched.under_way):
                self._tell_end(watched)
                return True
            if keyboard.leaves(POLL_S):
                return False

    def _look(self) -> Watched | None:
        self._watch.refresh([self._folder.path.name])
        return self._watch.get(self._folder.path.name)

    def _begin(self, watched: Watched) -> None:
        last_bytes = None if self._everything else LAST_BYTES
        self._logs[""] = Follower(self._folder.events, last_bytes=last_bytes)
        entries = watched.entries()
        newest = sorted(
            (entry.updated_at.timestamp(), name) for name, entry in entries.items() if entry.updated_at is not None
        )[-LOGS_RECALLED:]
        recalled = {name for _, name in newest}
        found: list[Event] = []
        for name, entry in entries.items():
            if entry.status is Status.CREATED:
                continue
            over = entry.status not in UNFINISHED
            if over:
                self._over.add(name)
            if over and not self._everything and name not in recalled:
                continue
            log = self._logs[name] = Follower(self._folder.log(name), last_bytes=last_bytes)
            events = _events_of(log)
            if self._everything:
                for event in events:
                    self._display.take(event)
            else:
                found += events
        if not self._everything:
            found += _events_of(self._logs[""])
            for event in sorted(found, key=moment_of)[-RECALLED_LINES:]:
                self._display.take(event)

    def _read(self, watched: Watched | None) -> list[Event]:
        entries = {} if watched is None else watched.entries()
        for name, entry in entries.items():
            if entry.status in UNDER_WAY:
                self._over.discard(name)  # it may be gone on with
            if entry.status is not Status.CREATED and name not in self._over and name not in self._logs:
                self._logs[name] = Follower(self._folder.log(name))
        found: list[Event] = []
        for name, log in self._logs.items():
            if name in self._over:
                continue
            events = _events_of(log)
            found += events
            if not events and name in entries and entries[name].status not in UNDER_WAY:
                self._over.add(name)
        return sorted(found, key=moment_of)

    def _tell_end(self, watched: Watched | None) -> None:
        if watched is None or watched.manifest is None:
            self._display.notice("the record is gone")
            return
        totals = watched.manifest.totals
        done = f"{totals.completed:,} of {count(totals.conversations, 'conversation')} complete"
        self._display.notice(f"{watched.manifest.status.value}: {done}")


def _events_of(log: Follower) -> list[Event]:
    return [event for event in log.read() if not isinstance(event, Skipped)]


class _JsonLines:
    """Every event as the line that it is in the record."""

    def take(self, event: Event) -> None:
        sys.stdout.buffer.write(encode(event) + b"\n")
        sys.stdout.buffer.flush()

    def notice(self, text: str) -> None:
        click.echo(f"Note: {visible(text)}", err=True)

    def finish(self) -> None:
        """Nothing is left open."""


_Display = ChatDisplay | TailDisplay | _JsonLines


# logs


class _Entry(NamedTuple):
    """One entry of a log, as `--json` prints it."""

    time: str | None
    level: str | None
    where: str | None
    """The part of Pidgin that wrote it, or the conversation and the agent."""
    text: str


_ENTRY = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?P<level>[A-Z]+) (?P<where>[\w.]+): (?P<text>.*)", re.DOTALL
)


def show_logs(target: str, output: Path | None, *, follow: bool, lines: int, events: bool, as_json: bool) -> int:
    """Print the log of an experiment's runner, or what the records say went wrong. Gives the exit status."""
    root = existing_root(output)
    folder: ExperimentFolder | None = None
    try:
        folder = root.find(target)
    except NotFound:
        experiment_id = target.partition("-")[0]
        log = _log_of_runner(root, experiment_id)
        if events or not re.fullmatch(r"[a-z0-9]{8}(-\d+)?", target) or not log.is_file():
            raise
        click.echo(f"Note: the folder of {experiment_id} is gone; this is the log that its runner left", err=True)
    else:
        root = _root_of(folder)
        experiment_id = folder.experiment_id
        log = _log_of_runner(root, experiment_id)
    source: _RunLog | _Troubles
    source = _RunLog(log) if folder is None or (log.is_file() and not events) else _Troubles(folder)
    if isinstance(source, _Troubles) and not events:
        click.echo("Note: its runner has no log; this is what the records say went wrong", err=True)
    entries = source.read()
    entries = entries[-lines:] if lines else []
    if as_json and not follow:
        click.echo(msgspec.json.format(msgspec.json.encode([entry._asdict() for entry in entries]), indent=2))
        return 0
    print_entry = _print_json if as_json else _print_plain
    for entry in entries:
        print_entry(entry)
    if not follow:
        return 0
    watch = Watch(root)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            runs = _runs(watch, folder) if folder is not None else living_runner(root, experiment_id) is not None
            new = source.read()
            for entry in new:
                print_entry(entry)
            if not new and not runs:
                break
            time.sleep(POLL_S)
    return 0


def _log_of_runner(root: OutputRoot, experiment_id: str) -> Path:
    return root.run_logs / f"experiment_{experiment_id}.log"


def _runs(watch: Watch, folder: ExperimentFolder) -> bool:
    watch.refresh([folder.path.name])
    watched = watch.get(folder.path.name)
    return watched is not None and watched.under_way


def _print_plain(entry: _Entry) -> None:
    head = " ".join(part for part in (entry.time, entry.level, entry.where) if part)
    click.echo(visible(f"{head}: {entry.text}" if head else entry.text))


def _print_json(entry: _Entry) -> None:
    click.echo(msgspec.json.encode(entry._asdict()))


class _RunLog:
    """The text that a runner's logging leaves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> list[_Entry]:
        """The entries since the last time; a traceback belongs to the entry that it stands under."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._position:
                    self._position = 0
                file.seek(self._position)
                data = file.read()
        except OSError as error:
            raise LogError(f"{self._path} cannot be read: {error.strerror}") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        entries: list[_Entry] = []
        for line in whole.decode("utf-8", "replace").splitlines():
            if match := _ENTRY.fullmatch(line):
                entries.append(_Entry(match["time"], match["level"], match["where"], match["text"]))
            elif entries:
                entries[-1] = entries[-1]._replace(text=f"{entries[-1].text}\n{line}")
            else:
                entries.append(_Entry(None, None, None, line))
        return entries


class _Troubles:
    """Errors and warnings from the logs of the conversations."""

    def __init__(self, folder: ExperimentFolder) -> None:
        self._folder = folder
        self._logs: dict[str, Follower] = {}

    def read(self) -> list[_Entry]:
        """The entries since the last time, in the order of time."""
        found: list[tuple[datetime, _Entry]] = []
        for name, path in self._folder.logs().items():
            log = self._logs.setdefault(name, Follower(path))
            for event in log.read():
                if not isinstance(event, Skipped) and (told := _trouble(event)) is not None:
                    level, text = told
                    agent_id = getattr(event, "agent_id", None)
                    where = " ".join(part for part in (name, agent_id) if part)
                    moment = event.timestamp.astimezone()
                    time_text = f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d}"
                    found.append((moment_of(event), _Entry(time_text, level, where, text)))
        return [entry for _, entry in sorted(found, key=lambda item: item[0])]


def _trouble(event: Event) -> tuple[str, str] | None:
    """How bad it is and what it is, if it is something that went wrong."""
    match event:
        case APIErrorEvent():
            status = "" if event.status is None else f" ({event.status})"
            again = "" if event.wait_s is None else f"; attempt {event.attempt + 1} in {event.wait_s:.1f} s"
            level = "ERROR" if event.wait_s is None else "WARNING"
            return level, f"{event.provider} {event.error}{status}: {event.message}{again}"
        case RateLimitEvent():
            wait = "" if event.wait_s is None else f"; waits {event.wait_s:.1f} s"
            return "WARNING", f"{event.provider} rate limit: {event.message}{wait}"
        case MessageAbandonedEvent():
            return "WARNING", f"message {event.message_index} was given up: {event.why}"
        case QuestionAbandonedEvent():
            return "WARNING", f"a {event.purpose} was given up: {event.why}"
        case WarningEvent():
            return "WARNING", f"{event.what} left out: {event.reason}"
        case ErrorEvent():
            return "ERROR", f"{event.where}: {event.error}: {event.message}"
        case ConversationEndEvent(error=str() as error):
            return "ERROR", f"{event.status.value}: {error}"
    return None
