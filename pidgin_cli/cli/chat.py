"""`chat` and `resume`: from flags to a running conversation on the screen."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from pidgin_cli.conversation.conductor import Conductor, Outcome
from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import LogError, NotFound, PidginError, ProviderError, SpecError
from pidgin_cli.core.events import ConversationEndEvent, ConversationPausedEvent, Event, MessageCompleteEvent
from pidgin_cli.core.types import EndReason, Status, Timeouts, clean_text
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import UNFINISHED, Manifest
from pidgin_cli.experiments.library import namesakes
from pidgin_cli.experiments.preflight import check_models, recording
from pidgin_cli.experiments.registry import Wish, ask_runner, current_manifest, living_runner
from pidgin_cli.experiments.runner import Runner, create_experiment
from pidgin_cli.monitor.chat import ChatDisplay, TailDisplay
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, split_model
from pidgin_cli.reports.text import count
from pidgin_cli.spec.experiment import ExperimentSpec, check, expand, load, resolve

from .agents import agents_of, checked_text
from .records import existing_root, manifest_of, short_path

__all__ = [
    "budget_hint",
    "chat",
    "command_line",
    "logged",
    "note",
    "prepare_ollama",
    "read_line",
    "read_prompt",
    "resume",
    "spec_from_flags",
]

FINISHED = (Status.COMPLETED,)
_BUDGET_FLAGS = {"usd": "--budget", "tokens": "--budget-tokens", "wall_time": "--budget-time"}
EXIT_INTERRUPTED = 130
RUNS_LIKE_MANY = ("max_parallel", "budget", "budget_tokens", "budget_time", "notify", "detach")
"""Flags of `resume` that are about running an experiment, even one of a single conversation."""
RECALLED_TURNS = 2
"""Turns that `resume` shows again before it goes on."""
MIN_KEY_LENGTH = 8
OLLAMA_ANSWER_S = 20.0
"""How long a server may take to say which models it has."""

_log = logging.getLogger(__name__)


def chat(options: dict[str, Any]) -> int:
    """Hold the conversation that the flags describe. Gives the exit status."""
    use_person_settings()
    root = OutputRoot(options["output"])
    spec = spec_from_flags(options)
    resolved, notices = resolve(spec, PROVIDERS)
    for notice in notices:
        note(notice)
    check_models(expand(resolved).values(), root)
    root.prepare()
    note_namesakes(root, resolved.name)
    if options["cache"] and options["seed"] is None:
        note(f"the cache finds these replies again with --seed {resolved.seed} only")
    return asyncio.run(converse(root, resolved, None, options))


def resume(target: str | None, options: dict[str, Any]) -> int:
    """Go on with one record, or with all that can go on. Gives the exit status."""
    use_person_settings()
    root = existing_root(options["output"])
    if (target is None) == (not options["everything"]):
        raise click.UsageError("Name what to go on with, or give --all.")
    if target is not None:
        return _resume(root, root.find(target), options)
    worst = 0
    waiting = [folder for folder in root.folders() if _can_go_on(root, folder)]
    if not waiting:
        click.echo(f"Nothing under {visible(str(root.experiments))} is waiting to go on", err=True)
    for folder in waiting:
        try:
            status = _resume(root, folder, options)
        except PidginError as error:
            click.echo(f"Error: {folder.experiment_id}: {visible(str(error))}", err=True)
            status = error.exit_code
        worst = max(worst, status)
        if status == EXIT_INTERRUPTED:
            break
    return worst


def _can_go_on(root: OutputRoot, folder: ExperimentFolder) -> bool:
    try:
        manifest = current_manifest(root, folder)
        if living_runner(root, folder.experiment_id) is not None:
            return _is_paused(manifest)
        return manifest.status not in FINISHED or UNFINISHED in (manifest.post_processing or {}).values()
    except PidginError:
        return True  # going on says what is wrong


def _is_paused(manifest: Manifest) -> bool:
    """Whether somebody paused it, or a detector some of its conversations."""
    return Status.PAUSED in (manifest.status, *(entry.status for entry in manifest.conversations.values()))


def _resume(root: OutputRoot, folder: ExperimentFolder, options: dict[str, Any]) -> int:
    name = folder.experiment_id
    manifest = manifest_of(root, folder)
    if (runner := living_runner(root, name)) is not None:
        if _is_paused(manifest):
            ask_runner(root, name, Wish.RESUME)
            click.echo(
                f"{name} goes on in process {runner.pid}; watch it with: {command_line('attach', name, options)}"
            )
            return 0
        raise LogError(
            f"{name} is being run by process {runner.pid}; end it with: {command_line('stop', name, options)}"
        )
    if manifest.status in FINISHED:
        if not options["as_json"]:
            click.echo(f"{name} is complete; read it with: {command_line('show', name, options)}")
        return _make_pages(root, folder, manifest, options)
    if len(manifest.conversations) > 1 or any(options[flag] for flag in RUNS_LIKE_MANY):
        from .run import run_again

        return run_again(root, folder, options)
    spec = load(folder.spec)
    check_models(expand(spec).values(), root)
    return asyncio.run(converse(root, spec, folder, options))


def _make_pages(root: OutputRoot, folder: ExperimentFolder, manifest: Manifest, options: dict[str, Any]) -> int:
    """What is missing of the pages of an experiment that is complete. Gives 1 where that failed."""
    from .reports import PAGES_OF_A_CHAT, STEPS, make_missing

    return make_missing(root, folder, options, PAGES_OF_A_CHAT if len(manifest.conversations) == 1 else STEPS)


def note(text: str) -> None:
    click.echo(f"Note: {visible(text)}", err=True)


def note_namesakes(root: OutputRoot, name: str | None) -> None:
    """Say which experiments will have a name in common with a new one."""
    if name is not None and (others := namesakes(root, name)):
        ids = [folder.experiment_id for folder in others]
        answer = "answers" if len(ids) == 1 else "answer"
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        note(f"{shown} {answer} to the name {name!r}, too; tell them apart by their ids")


def command_line(verb: str, name: str | None, options: dict[str, Any]) -> str:
    """What to type next."""
    where = [] if options["output"] is None else ["-o", visible(str(options["output"]))]
    return shlex.join(["pidgin", verb, *([] if name is None else [name]), *where])


# What the flags mean


def spec_from_flags(options: dict[str, Any], more: Mapping[str, Any] | None = None) -> ExperimentSpec:
    """The spec that the flags of `chat` and `run` describe, with the keys of `more` beside them."""
    agents = agents_of(options)
    policy = "window" if options["allow_truncation"] else options["context"]
    data: dict[str, Any] = {
        "agents": agents,
        "prompt_tag": checked_text("--prompt-tag", options["prompt_tag"], most=60),
        "max_turns": options["turns"],
        "order": options["order"],
        "first": options["first"],
        "seed": options["seed"],
        "choose_names": options["choose_names"],
        "durability": options["durability"],
        "context": {"policy": policy, "limit_tokens": options["context_limit"]},
        "lenient": options["lenient"],
        "convergence": {
            "threshold": options["convergence_threshold"],
            "action": options["convergence_action"],
            "profile": options["convergence_profile"],
        },
        "cache": "on" if options["cache"] else "off",
    }
    ids = [agent["id"] for agent in agents]
    if options["first"] not in (None, "random", *ids):
        raise click.BadParameter(
            f"there is no agent {options['first']!r}, only {', '.join(ids)}; or random.", param_hint="--first"
        )
    if options["name"] is not None:
        data["name"] = checked_text("-n", options["name"], least=1, most=300)
    if options["prompt"] is not None:
        data["prompt"] = read_prompt(options["prompt"], "-p")
    timeouts = {
        f"{name}_s": value or None
        for name in ("connect", "first_token", "gap", "total")
        if (value := options[f"timeout_{name}"]) is not None
    }
    if timeouts:
        data["timeouts"] = timeouts
    if options["retries"] is not None:
        data["retries"] = {"attempts": options["retries"] + 1}
    return check(data | dict(more or {}), "flags")


def read_prompt(text: str, flag: str = "PROMPT") -> str:
    """The text itself, what is in @FILE, or for - standard input. Raises SpecError."""
    where = f"{flag} {text}"
    try:
        if text == "-":
            if sys.stdin.isatty():
                click.echo("Type the text; Ctrl-D on a line of its own ends it.", err=True)
            said = sys.stdin.buffer.read().decode("utf-8-sig")
        elif text.startswith("@"):
            said = Path(text[1:]).read_bytes().decode("utf-8-sig")
        else:
            where, said = flag, checked_text(flag, text)
    except OSError as error:
        raise SpecError(f"{where}: {error.strerror}; @FILE reads a file, - standard input") from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{where}: not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}); "
            f"save it as UTF-8, for example with iconv"
        ) from None
    if text == "-" or text.startswith("@"):
        said = re.sub(r"\r?\n\Z", "", said)  # the end of the last line, not a part of the opening
    if not said.strip():
        hint = ", or leave -p out for the usual one" if flag == "-p" else ""
        raise SpecError(f"{where}: the text is empty; give some{hint}")
    return said


# Running


class _Screen:
    """What one run shows, and what the person may say meanwhile."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.kind = "json" if options["as_json"] else "tail" if options["tail"] else options["display"]
        self.console = make_console()
        self.interactive = self.kind in ("chat", "tail") and sys.stdin.isatty() and sys.stdout.isatty()
        self.interrupts = 0
        self.conductor: Conductor | None = None
        self.runner: Runner | None = None
        self.unwritable: OSError | None = None
        """Why nothing can be shown any more, unless whoever read it has left."""
        self._menu: asyncio.Task[None] | None = None
        thinks = any(options.get(name) for name in ("think", "think_of", "think_budget", "think_budget_of"))
        self._chat = ChatDisplay(
            self.console,
            show_thinking=bool(options["show_thinking"] or thinks),
            show_system_prompts=options["show_system_prompts"],
        )
        self._tail = TailDisplay(
            self.console, show_thinking=options["show_thinking"], show_system_prompts=options["show_system_prompts"]
        )

    def live(self, agent_id: str, delta: Any) -> None:
        if self.kind == "chat":
            self._guard(self._chat.live, agent_id, delta)

    def listen(self, conductor: Conductor) -> None:
        self.conductor = conductor
        take: Callable[[Event], None] | None = {
            "json": self._print_json,
            "tail": self._tail.take,
            "chat": self._chat.take,
        }.get(self.kind)
        if take is not None:
            kind = self.kind
            conductor.bus.subscribe(lambda event: self._guard(take, event) if self.kind == kind else None)
            if self.kind != "json" and conductor.record is not None:
                self._recall(conductor, take)
        if self.interactive:
            conductor.bus.subscribe(self._paused, ConversationPausedEvent)
        if self.interrupts:  # before there was anything to interrupt
            conductor.control.stop(by="person")

    def _recall(self, conductor: Conductor, take: Callable[[Event], None]) -> None:
        """Show who talks and the last turns of a conversation that goes on."""
        assert conductor.record is not None
        events = conductor.record.events
        turns = [event.turn_number for event in events if isinstance(event, MessageCompleteEvent)]
        first = max(turns, default=0) - RECALLED_TURNS + 1
        turn = 0
        for event in events:
            turn = getattr(event, "turn_number", turn)
            if not isinstance(event, ConversationEndEvent) and (turn == 0 or turn >= first):
                self._guard(take, event)

    def _print_json(self, event: Event) -> None:
        sys.stdout.buffer.write(encode(event) + b"\n")
        sys.stdout.buffer.flush()

    def _guard(self, show: Callable[..., None], *args: Any) -> None:
        """Show something. Where it cannot be shown the conversation ends as if asked to: nobody follows it."""
        try:
            show(*args)
        except OSError as error:
            self._nobody_reads(error)
        except Exception:  # the record is worth more than its display
            _log.exception("the display broke; the conversation goes on without it")
            self.kind = "quiet"

    def _nobody_reads(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self.kind = "quiet"
        self.interactive = False
        self.interrupts += 1
        if error.errno not in (errno.EPIPE, errno.EIO):
            self.unwritable = error
        if self.conductor is not None:
            self.conductor.control.stop(by="closed output")
        self._guard(self._chat.finish)

    def notice(self, text: str) -> None:
        """Something to the person beside the conversation."""
        if self.kind == "chat":
            self._guard(self._chat.notice, text)
        elif self.kind == "tail":
            self._guard(self._tail.notice, text)
        else:
            note(text)

    def finish(self) -> None:
        if self._menu is not None:
            self._menu.cancel()
        if self.kind == "chat":
            self._guard(self._chat.finish)

    # Ctrl-C

    def interrupt(self) -> None:
        """First: finish the message, then ask (or, where nobody can be asked, stop). Second: stop now."""
        self.interrupts += 1
        if self.conductor is None:
            return
        control = self.conductor.control
        if self.interrupts > 1:
            control.stop(by="person", now=True)
        elif self.interactive:
            control.pause(by="person")
            self.notice("finishing this message; Ctrl-C again stops now")
        else:
            self._stop_softly("person")

    def terminate(self) -> None:
        """The system wants the process to end: finish the message and stop."""
        self.interrupts += 1
        if self.conductor is None:
            return
        if self.interrupts > 1:
            self.conductor.control.stop(by="signal", now=True)
        else:
            self._stop_softly("signal")

    def stop_now(self) -> None:
        self.interrupts += 2
        if self.conductor is not None:
            self.conductor.control.stop(by="signal", now=True)

    def pause(self) -> None:
        """Somebody asked for it from another process."""
        if self.runner is not None:
            self.runner.pause("signal")

    def go_on(self) -> None:
        if self.runner is not None:
            self.runner.resume("signal")

    def _stop_softly(self, by: str) -> None:
        assert self.conductor is not None
        self.conductor.control.stop(by=by)
        self.notice("stopping after this message; once more stops now")

    def _paused(self, _: Event) -> None:
        if self.interactive:
            self._menu = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        assert self.conductor is not None
        control = self.conductor.control
        names = self.conductor.progress.names
        agents = {agent.id: visible(names[agent.id]) for agent in self.conductor.spec.agents}
        # A word whose letter is an agent's id is written out.
        go, everyone, stop = (word if word[0] in agents else word[0] for word in ("resume", "everyone", "stop"))
        choices = [f"[{go}]{'resume'[len(go) :]}", f"[{stop}]{'stop'[len(stop) :]} and save", "or say something to"]
        partners = [f"[{agent_id}] {name}" for agent_id, name in agents.items()]
        partners.append(f"[{everyone}]{'everyone'[len(everyone) :]}")
        try:
            while control.stopping is None:
                for line in (choices, partners):
                    self.console.print(f"  {' · '.join(line)}", style="bold")
                self._ask_for("  > ")
                answer = await read_line()
                choice = stop if answer is None else answer.strip().lower() or go
                if choice == go:
                    self.interrupts = 0
                    control.resume()
                    return
                if choice == stop:
                    control.stop(by="person")
                    return
                if choice == everyone or choice in agents:
                    self._ask_for("  say: ")
                    text = await read_line()
                    if text and text.strip():
                        said = clean_text(text.rstrip("\r\n"))[0]
                        control.inject(said, None if choice == everyone else (choice,))
                        self.console.print("  will be said before the next reply", style="dim")
                else:
                    self.console.print(f"  {one_line(choice, 40)!r} is none of these", style="dim")
        except OSError as error:
            self._nobody_reads(error)

    def _ask_for(self, text: str) -> None:
        self.console.print(text, end="", style="bold")
        self.console.file.flush()


async def read_line() -> str | None:
    """A line from the terminal, or None at its end. Leaves no thread behind when it is cancelled."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()

    def ready() -> None:
        try:
            data = os.read(sys.stdin.fileno(), 1 << 16)
        except OSError:  # the terminal is gone
            data = b""
        if not line.done():
            line.set_result(data.decode("utf-8", "replace") if data else None)

    loop.add_reader(sys.stdin.fileno(), ready)
    try:
        return await line
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def converse(
    root: OutputRoot, spec: ExperimentSpec, folder: ExperimentFolder | None, options: dict[str, Any]
) -> int:
    models = [agent.model for agent in spec.agents]
    if not isinstance(spec.context, str) and spec.context.model is not None:
        models.append(spec.context.model)
    pool = ProviderPool(lambda source: recording(root, source))
    try:
        await pool.warm_up(models)
        timeouts = Timeouts(**spec.timeouts.model_dump())
        for model_id in models:
            pool.adapter(model_id, timeouts)  # a bad base URL or key shows here, before anything starts
        await prepare_ollama(root, pool, models, timeouts, consent=options["yes"])
        made = folder or create_experiment(root, spec)
        return await _run(root, made, pool, options)
    finally:
        await pool.aclose()


async def _run(root: OutputRoot, folder: ExperimentFolder, pool: ProviderPool, options: dict[str, Any]) -> int:
    screen = _Screen(options)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, screen.interrupt)
    loop.add_signal_handler(signal.SIGTERM, screen.terminate)
    loop.add_signal_handler(signal.SIGHUP, screen.terminate)
    loop.add_signal_handler(signal.SIGQUIT, screen.stop_now)
    loop.add_signal_handler(signal.SIGUSR1, screen.pause)
    loop.add_signal_handler(signal.SIGUSR2, screen.go_on)
    runner = Runner(
        root,
        folder,
        pool,
        live=screen.live,
        on_conversation=screen.listen,
        resumed_by="pidgin resume",
    )
    screen.runner = runner
    try:
        with logged(root, folder, screen.notice):
            outcomes = await runner.run()
    except PidginError:
        screen.finish()
        click.echo(f"The record so far: {visible(str(folder.path))}", err=True)
        raise
    finally:
        screen.finish()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            loop.remove_signal_handler(number)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # one that comes too late ends nothing
    _tell_where(screen, runner, folder, outcomes, options)
    made = 0
    if options["post_processing"]:
        from .reports import PAGES_OF_A_CHAT, make_pages

        # The prompt is to be back at once: what takes longer waits until somebody asks for it.
        made = await asyncio.to_thread(make_pages, root, folder, options, PAGES_OF_A_CHAT, shown=False)
    return _exit_status(outcomes, screen) or made


def budget_hint(runner: Runner, folder: ExperimentFolder, options: dict[str, Any]) -> str | None:
    """How to go on where a cap ended conversations of this run; None: none did."""
    go_on = command_line("resume", folder.experiment_id, options)
    if (cap := runner.budget.ended_by) is not None:
        return f"the budget is used up; go on with: {go_on} {_BUDGET_FLAGS[cap]} …"
    ended = sum(outcome.end_reason is EndReason.BUDGET for outcome in runner.outcomes.values())
    if not ended:
        return None
    each = runner.budget.per_conversation
    named = {"usd": each.usd, "tokens": each.tokens, "wall_time": each.seconds}
    caps = " or ".join(f"budget.per_conversation.{name}" for name, value in named.items() if value is not None)
    where = visible(short_path(folder.spec))
    return f"{count(ended, 'conversation')} reached {caps}; allow more in {where}, then: {go_on}"


def _tell_where(
    screen: _Screen, runner: Runner, folder: ExperimentFolder, outcomes: dict[str, Outcome], options: dict[str, Any]
) -> None:
    path = short_path(folder.path)
    finished = all(outcome.status in FINISHED for outcome in outcomes.values())
    then = command_line("show" if finished else "resume", folder.experiment_id, options)
    if screen.kind == "quiet":
        click.echo(os.fsencode(path) if not sys.stdout.isatty() else visible(path))
    elif screen.kind != "json":
        screen.console.print(f"record: {visible(path)}", soft_wrap=True)
        hint = budget_hint(runner, folder, options) or f"{'read it again' if finished else 'go on'}: {then}"
        screen.console.print(hint, soft_wrap=True)
    failures = [outcome.error for outcome in outcomes.values() if outcome.error]
    if screen.unwritable is not None:
        failures.append(f"the output cannot be written: {screen.unwritable.strerror}")
    if screen.kind in ("quiet", "json") or not screen.console.is_terminal:  # on a terminal the talk ends with it
        for failure in failures:
            click.echo(f"Error: {one_line(failure, 1000)}; go on with: {then}", err=True)


def _exit_status(outcomes: dict[str, Outcome], screen: _Screen) -> int:
    if any(outcome.status is Status.FAILED for outcome in outcomes.values()):
        return 1
    if any(outcome.end_reason is EndReason.STOP_REQUEST for outcome in outcomes.values()):
        return EXIT_INTERRUPTED if screen.unwritable is None else 1
    return 0


# What goes wrong beside the conversation


@contextlib.contextmanager
def logged(root: OutputRoot, folder: ExperimentFolder, notice: Callable[[str], None]) -> Iterator[None]:
    """Keep the log of a run in `logs/`; warnings reach the person as well, in a line, never as a traceback."""
    ours, everybody = logging.getLogger("pidgin_cli"), logging.getLogger()
    level = ours.level
    handlers: list[tuple[logging.Logger, logging.Handler]] = [
        (everybody, _LogFile(root.run_logs / f"experiment_{folder.experiment_id}.log")),
        (ours, _ToPerson(notice)),
    ]
    for logger, handler in handlers:
        logger.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        for logger, handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _LogFile(logging.FileHandler):
    """A log without keys in it. That it cannot be written is no reason to complain: the record matters."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        names = [name for info in PROVIDERS.values() for name in info.key_env]
        self._keys = [key for name in names if len(key := os.environ.get(name, "")) >= MIN_KEY_LENGTH]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for key in self._keys:
            text = text.replace(key, "…")
        return text

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is the base class's
        """Nothing: see the class."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _ToPerson(logging.Handler):
    """One line on the screen."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._notice = notice

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != __name__ and not record.exc_info:  # what has a traceback is an event on the screen already
            self._notice(one_line(record.getMessage(), 1000))


# Ollama


async def prepare_ollama(
    root: OutputRoot, pool: ProviderPool, models: Sequence[str], timeouts: Timeouts, *, consent: bool
) -> None:
    """See that Ollama is up and has the models; download one only after a yes."""
    wanted = list(dict.fromkeys(split_model(model)[1] for model in models if model.startswith("ollama:")))
    if not wanted:
        return
    from pidgin_cli.providers.ollama import OllamaProvider
    from pidgin_cli.providers.ollama_setup import (
        ensure_running,
        found_instead,
        install_command,
        is_here,
        is_installed,
        is_running,
        place,
    )

    if is_here() and (instead := await found_instead()) is not None:
        raise SpecError(instead)
    try:
        if is_here() and is_installed() and not await is_running():
            may_start = consent or await _yes("Ollama is installed but not running. Start it now?")
            if await ensure_running(root.run_logs / "ollama.log", lambda: may_start) is not None:
                click.echo("Ollama is running now, and stays so", err=True)
    except ProviderError as error:
        raise SpecError(str(error)) from None
    if is_here() and not is_installed() and not await is_running():
        command = install_command()
        how = f"; its own install command is: {command}" if command else ""
        raise SpecError(
            f"Ollama does not answer at {place().netloc} and is not installed{how} "
            f"(see also: pidgin doctor --install-ollama); "
            f"then start it with: ollama serve"
        )
    ollama = pool.adapter(f"ollama:{wanted[0]}", timeouts)
    assert isinstance(ollama, OllamaProvider)
    try:
        async with asyncio.timeout(OLLAMA_ANSWER_S):
            installed = await ollama.installed_models()
        for model in wanted:
            if model not in installed and f"{model}:latest" not in installed:
                await _offer(ollama, model, consent=consent)
    except TimeoutError:
        where = place().netloc
        raise SpecError(f"Ollama does not answer within {OLLAMA_ANSWER_S:g} s at {where}; is that right?") from None
    except ProviderError as error:  # nothing has begun yet
        raise SpecError(str(error)) from None


async def _offer(ollama: Any, model: str, *, consent: bool) -> None:
    if not consent and not await _yes(f"Ollama does not have {visible(model)}. Download it now?"):
        hint = "" if _at_terminal() else " (or give --yes)"
        raise NotFound(f"Ollama does not have {model}; get it with: ollama pull {model}{hint}")
    await _pull(ollama, model)


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


async def _yes(question: str) -> bool:
    """Whether the person says yes; no where there is nobody to ask."""
    if not _at_terminal():
        return False
    click.echo(f"{question} [y/N]: ", nl=False, err=True)
    return (await read_line() or "").strip().lower() in ("y", "yes")


async def _pull(ollama: Any, model: str) -> None:
    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=console.color_system is None) as progress:
        task = progress.add_task(f"pulling {visible(model)}", total=None)
        async for step in ollama.pull(model):
            progress.update(task, total=step.total, completed=step.completed or 0)
    console.print(f"Ollama has {visible(model)} now")
