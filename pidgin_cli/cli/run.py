"""`run`, `stop`, `pause` and going on with experiments of many conversations."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.live import Live

from pidgin_cli.conversation.conductor import Conductor
from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.conversation.watching import watch_faults
from pidgin_cli.core.errors import LogError, NotFound, PidginError, SpecError
from pidgin_cli.core.events import ConversationEndEvent, Event
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.manifest import Manifest, read_manifest
from pidgin_cli.experiments.budget import caps_of, check_caps
from pidgin_cli.experiments.daemon import detach, starting
from pidgin_cli.experiments.library import save_spec, settle
from pidgin_cli.experiments.notify import notify_command, notify_desktop
from pidgin_cli.experiments.preflight import check_models, check_origin, recording
from pidgin_cli.experiments.registry import Wish, ask_runner, current_manifest, living_runner
from pidgin_cli.experiments.runner import Runner, create_experiment, spare_collector
from pidgin_cli.monitor.chat import TailDisplay, cost_text
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.progress import LISTENS_TO, RunProgress
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool
from pidgin_cli.reports.text import count
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import ExperimentSpec, check, expand, load

from .chat import (
    EXIT_INTERRUPTED,
    budget_hint,
    command_line,
    logged,
    note,
    note_namesakes,
    prepare_ollama,
    spec_from_flags,
)
from .plan import cost_range, show_plan
from .records import existing_root, short_path

__all__ = ["control", "run", "run_again", "runner_process"]

REDRAW_S = 0.25
LEAVE_LOOK_S = 0.1


def run(spec_file: Path | None, options: dict[str, Any]) -> int:
    """Run the experiment that a file or flags describe, or go on with it. Gives the exit status."""
    use_person_settings()
    root = OutputRoot(options["output"])
    wanted = _wanted(spec_file, options)
    folder, spec, notices = settle(root, wanted, PROVIDERS)
    for notice in notices:
        note(notice)
    conversations = expand(spec, "" if folder is None else folder.experiment_id)
    chosen = _chosen(conversations, options, tell=True)
    chosen_specs = [conversations[name] for name in (conversations if chosen is None else chosen)]
    if folder is None:  # of those that have begun the record says where they come from
        for notice in check_origin(root, spec, spec_file or "spec"):
            note(notice)
    keyless = check_models(chosen_specs, root, keys=not options["dry_run"])
    for missing in keyless:
        note(missing)
    if not keyless:  # what a request can use at most is asked of SDKs, which want a key
        asyncio.run(_check_budget(root, spec, chosen_specs, options))
    elif spec.budget is not None:
        note("whether the budget can be kept is checked once the keys are there")
    if options["dry_run"]:
        return show_plan(spec, conversations, chosen, as_json=options["as_json"])
    with root.naming():
        made = folder is None
        if folder is None:  # what was looked for may be there by now
            folder, found, _ = settle(root, wanted, PROVIDERS)
            made = folder is None
            spec = spec if folder is None else found
        if folder is None:
            note_namesakes(root, spec.name)
            folder = create_experiment(root, spec)
    return _start(root, folder, None if made else spec, options)


def run_again(root: OutputRoot, folder: ExperimentFolder, options: dict[str, Any]) -> int:
    """Go on with an experiment from its folder. Gives the exit status."""
    spec = load(folder.spec)
    written = spec.model_dump(mode="json", exclude_unset=True)
    if changes := _changes(options, written.get("budget")):
        spec = check(written | changes, "flags")
    conversations = expand(spec, folder.experiment_id)
    check_models(conversations.values(), root)
    asyncio.run(_check_budget(root, spec, conversations.values(), options))
    return _start(root, folder, spec if changes else None, options)


def _start(root: OutputRoot, folder: ExperimentFolder, spec: ExperimentSpec | None, options: dict[str, Any]) -> int:
    """Run an experiment, as `spec` says from now on if one is given, unless it is being run. Gives the exit status."""
    with contextlib.ExitStack() as held:
        held.enter_context(starting(folder))
        if (runner := living_runner(root, folder.experiment_id)) is not None:
            raise LogError(
                f"{folder.experiment_id} is being run by process {runner.pid}; watch it with: "
                f"{command_line('attach', folder.experiment_id, options)}"
            )
        if spec is not None:
            save_spec(folder, spec)
        return launch(root, folder, options, begun=held.close)


def _wanted(spec_file: Path | None, options: dict[str, Any]) -> ExperimentSpec:
    """The spec of the file, or of the flags, with what the flags say of running it."""
    spec = None if spec_file is None else load(spec_file, PROVIDERS, watch_faults)
    written = {} if spec is None else spec.model_dump(mode="json", exclude_unset=True)
    changes = _changes(options, written.get("budget"))
    if options["name"] is not None:
        changes["name"] = options["name"]
    if spec is None:
        if options["agent_a"] is None and not options["agents"]:
            raise click.UsageError("What is run? Give a spec (`pidgin init` writes one), or -a MODEL -b MODEL.")
        return spec_from_flags(options, changes)
    if options["seed"] is not None:
        changes["seed"] = options["seed"]
    if options["cache"]:
        changes["cache"] = "on"
    if not changes:
        return spec
    return check(written | changes, str(spec_file))


def _changes(options: dict[str, Any], kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keys of the spec that say how an experiment is run, not what it is.

    Args:
        kept: the budget so far, of which the flags replace single caps.
    """
    changes: dict[str, Any] = {}
    for name in ("repetitions", "max_parallel", "notify"):
        if options.get(name) not in (None, False):
            changes[name] = options[name]
    budget = {
        key: options[flag]
        for key, flag in (("usd", "budget"), ("tokens", "budget_tokens"), ("wall_time", "budget_time"))
        if options.get(flag) is not None
    }
    if budget:
        changes["budget"] = (kept or {}) | budget
    return changes


def _chosen(
    conversations: dict[str, ConversationSpec], options: dict[str, Any], *, tell: bool = False
) -> list[str] | None:
    """The conversations to run now, in order; None: all, in their own order.

    A twin takes the one along that it branches from; with `tell` a note says so.
    """
    filters, limit, shuffle_seed = options.get("filter") or (), options.get("limit"), options.get("shuffle_seed")
    if not filters and limit is None and shuffle_seed is None:
        return None
    from pidgin_cli.spec.plan import plan_order

    chosen = plan_order(conversations, filters=filters, limit=limit, shuffle_seed=shuffle_seed)
    if not chosen:
        raise SpecError("no conversation of the plan fits --filter; see the arms with --dry-run")
    whole: dict[str, None] = {}
    for name in chosen:
        origin = conversations[name].origin
        if origin is not None and origin.conversation_id in conversations:
            whole[origin.conversation_id] = None
        whole[name] = None
    if tell and (more := len(whole) - len(chosen)):
        note(f"{count(more, 'conversation')} more {'is' if more == 1 else 'are'} run, which chosen twins branch from")
    return list(whole)


async def _check_budget(
    root: OutputRoot, spec: ExperimentSpec, conversations: Iterable[ConversationSpec], options: dict[str, Any]
) -> None:
    """Warm up what is needed, and see that nothing is known to fail. Raises SpecError that names every fault."""
    conversations = list(conversations)
    models = _models(conversations)
    pool = ProviderPool(lambda source: recording(root, source))
    try:
        faults = check_caps(*caps_of(spec), conversations, pool)
        if faults:
            raise SpecError("\n".join(faults))
        if not options.get("dry_run"):
            await prepare_ollama(root, pool, models, conversations[0].timeouts, consent=options["yes"])
    finally:
        await pool.aclose()


def _models(conversations: Iterable[ConversationSpec]) -> list[str]:
    models: dict[str, None] = {}
    for spec in conversations:
        models.update(dict.fromkeys(agent.model for agent in spec.agents))
        models.update(dict.fromkeys(change.model for change in spec.interventions if change.model is not None))
        if spec.context.model is not None:
            models[spec.context.model] = None
    return list(models)


# Running it here or in a process of its own


def launch(
    root: OutputRoot, folder: ExperimentFolder, options: dict[str, Any], *, begun: Callable[[], None] = lambda: None
) -> int:
    """Run what is left of an experiment. Gives the exit status.

    Args:
        begun: called when this process has claimed the experiment; not where another is to run it.
    """
    left = _left(folder, options)
    if options["retry_failed"] is None:  # `resume`, of an experiment in which nothing else is left
        options = options | {"retry_failed": not left.waiting}
    if not left.waiting and not (left.failed and options["retry_failed"]):
        return _nothing_to_do(root, folder, left, options)
    if not options["detach"]:
        return _here(root, folder, options, begun)
    pid = detach(root, folder, _runner_arguments(options))
    name = folder.experiment_id
    if options["display"] == "quiet":
        click.echo(visible(str(folder.path)))
        return 0
    click.echo(f"{name} runs in process {pid}: {visible(str(folder.path))}")
    for verb, what in (
        ("attach", "watch it"),
        ("monitor", "watch all"),
        ("stop", "end it"),
        ("logs", "what went wrong"),
    ):
        line = command_line(verb, None if verb == "monitor" else name, options)
        click.echo(f"  {what + ':':<16} {line}")
    return 0


def _runner_arguments(options: dict[str, Any]) -> list[str]:
    arguments = []
    for text in options.get("filter") or ():
        arguments += ["--filter", text]
    for name in ("limit", "shuffle_seed"):
        if options.get(name) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(options[name])]
    if options.get("retry_failed"):
        arguments.append("--retry-failed")
    if not options["post_processing"]:
        arguments.append("--no-post-processing")
    return arguments


def runner_process(experiment_id: str, options: dict[str, Any]) -> int:
    """What a detached process does: run an experiment without a screen. Gives the exit status."""
    use_person_settings()
    root = OutputRoot(options["output"])
    folder = root.find(experiment_id)
    check_models(expand(load(folder.spec), folder.experiment_id).values(), root)  # keys come from the keyring again
    nothing_shown = {"display": "none", "as_json": False, "tail": False}
    return _here(root, folder, options | nothing_shown)


def _here(
    root: OutputRoot, folder: ExperimentFolder, options: dict[str, Any], begun: Callable[[], None] = lambda: None
) -> int:
    """Run an experiment in this process, and then make its pages. Gives the exit status."""
    screen = _Screen(options)
    runner = asyncio.run(_run(root, folder, options, screen, begun))
    read_by_people = screen.kind in ("progress", "tail")
    if read_by_people:  # they need not wait for the pages
        screen.tell_end(folder, read_manifest(folder), runner, options)
    made = 0
    if options["post_processing"] and not runner.stopping_now:
        from .reports import make_pages

        made = make_pages(root, folder, options, shown=read_by_people)
    manifest = read_manifest(folder)
    if not read_by_people:
        screen.tell_end(folder, manifest, runner, options)
    return _exit_status(manifest, runner) or made


async def _run(
    root: OutputRoot,
    folder: ExperimentFolder,
    options: dict[str, Any],
    screen: "_Screen",
    begun: Callable[[], None],
) -> Runner:
    spec = load(folder.spec)
    conversations = expand(spec, folder.experiment_id)
    chosen = _chosen(conversations, options)
    pool = ProviderPool(lambda source: recording(root, source))
    runner = Runner(
        root,
        folder,
        pool,
        on_conversation=screen.listen,
        on_start=begun,
        resumed_by="pidgin resume",
        only=chosen,
        retry_failed=options["retry_failed"],
    )
    try:
        with logged(root, folder, screen.notice), _signals(runner, screen):
            await pool.warm_up(_models(conversations.values()))
            spare_collector()
            drawing = asyncio.create_task(screen.draw(runner, conversations, chosen))
            try:
                await runner.run()
                _notify(spec, folder, read_manifest(folder), screen)
            finally:
                drawing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await drawing
                screen.close()
    except PidginError:
        click.echo(f"The record so far: {visible(str(folder.path))}", err=True)
        raise
    finally:
        await pool.aclose()
    return runner


class _Left(NamedTuple):
    """Conversations that can be run now."""

    waiting: int
    """Not begun, or begun and not ended."""
    failed: int


def _left(folder: ExperimentFolder, options: dict[str, Any]) -> _Left:
    conversations = expand(load(folder.spec), folder.experiment_id)
    entries = read_manifest(folder).conversations
    waiting = failed = 0
    for name in _chosen(conversations, options) or conversations:
        entry = entries.get(name)
        if entry is None:
            waiting += 1
        elif entry.status is Status.FAILED:
            failed += 1
        elif entry.status is not Status.COMPLETED and entry.end_reason is not EndReason.CONTEXT_LIMIT:
            waiting += 1
    return _Left(waiting, failed)


def _nothing_to_do(root: OutputRoot, folder: ExperimentFolder, left: _Left, options: dict[str, Any]) -> int:
    from .reports import make_missing

    if options["display"] == "quiet":
        click.echo(visible(str(folder.path)))
    elif not options["as_json"]:
        name = folder.experiment_id
        failed = f"; {count(left.failed, 'conversation')} failed" if left.failed else ""
        whole = _left(folder, options | {"filter": (), "limit": None, "shuffle_seed": None})
        if more := whole.waiting - left.waiting:
            conversations = expand(load(folder.spec), name)
            chosen = count(len(_chosen(conversations, options) or conversations), "conversation")
            others = f"{more:,} more {'is' if more == 1 else 'are'} left"
            click.echo(f"{name} has nothing left to run among the {chosen} that were chosen; {others}{failed}")
        else:
            click.echo(f"{name} has nothing left to run{failed}")
        if failed:
            click.echo(f"Try again with: {command_line('resume', name, options)} --retry-failed")
    made = make_missing(root, folder, options)
    return 1 if left.failed else made


@contextlib.contextmanager
def _signals(runner: Runner, screen: "_Screen") -> Iterator[None]:
    """Take from the terminal and from other processes what a runner can be asked for."""
    asked = 0

    def stop(by: str) -> Callable[[], None]:
        def handle() -> None:
            nonlocal asked
            asked += 1
            runner.stop(by, now=asked > 1)
            screen.notice(
                "stopping now" if asked > 1 else "finishing the messages under way, then stopping; once more stops now"
            )

        return handle

    loop = asyncio.get_running_loop()
    handlers = {
        signal.SIGINT: stop("person"),
        signal.SIGTERM: stop("signal"),
        signal.SIGHUP: stop("signal"),
        signal.SIGQUIT: lambda: runner.stop("signal", now=True),
        signal.SIGUSR1: lambda: runner.pause("signal"),
        signal.SIGUSR2: lambda: runner.resume(),
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
            if number in (signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)  # one that comes too late ends nothing


def _notify(spec: ExperimentSpec, folder: ExperimentFolder, manifest: Manifest, screen: "_Screen") -> None:
    if spec.notify_command:
        notify_command(spec.notify_command, manifest, str(folder.path))
    if spec.notify and not notify_desktop(manifest):
        screen.ring()


def _exit_status(manifest: Manifest, runner: Runner) -> int:
    if runner.refused or any(outcome.status is Status.FAILED for outcome in runner.outcomes.values()):
        return 1
    if any(outcome.end_reason is EndReason.STOP_REQUEST for outcome in runner.outcomes.values()) or (
        runner.stopping and manifest.status is Status.STOPPED and not runner.budget.exhausted
    ):
        return EXIT_INTERRUPTED
    return 0


class _Screen:
    """What a run shows: bars at a terminal, a line per conversation elsewhere, or nothing."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.console = make_console()
        kind = "json" if options["as_json"] else "tail" if options["tail"] else options["display"]
        self.kind = "progress" if kind == "chat" else kind  # many talks at once are no chat
        self._tail = TailDisplay(self.console)
        self._progress: RunProgress | None = None
        self._live: Live | None = None
        self._done = 0
        self._planned = 0
        self._began = time.monotonic()

    def listen(self, conductor: Conductor) -> None:
        if self.kind == "tail":
            conductor.bus.subscribe(self._tail.take)
        elif self._progress is not None:
            conductor.bus.subscribe(self._progress.take, *LISTENS_TO)
            if self._live is None:
                conductor.bus.subscribe(self._ended, ConversationEndEvent)

    async def draw(self, runner: Runner, conversations: dict[str, ConversationSpec], chosen: list[str] | None) -> None:
        """Redraw until cancelled."""
        planned = [conversations[name] for name in chosen] if chosen is not None else list(conversations.values())
        self._planned = len(planned)
        if self.kind != "progress":
            return
        self._progress = RunProgress(
            lambda: runner.manifest,
            turns=sum(spec.max_turns - (spec.origin.turn if spec.origin else 0) for spec in planned),
            conversations=len(planned),
            budget=lambda: runner.budget,
            paused=lambda: runner.paused_by,
        )
        if not self.console.is_terminal:
            return
        with Live(self._progress, console=self.console, auto_refresh=False, transient=True) as self._live:
            while True:
                self._live.refresh()
                await asyncio.sleep(REDRAW_S)

    def _ended(self, event: Event) -> None:
        """Without a terminal: a line for every conversation."""
        assert isinstance(event, ConversationEndEvent)
        self._done += 1
        what = event.status.value if event.error is None else f"{event.status.value}: {one_line(event.error, 300)}"
        click.echo(
            f"{self._done}/{self._planned} {event.conversation_id} {what}, {count(event.totals.messages, 'message')}, "
            f"{cost_text(event.totals.cost_usd)}"
        )

    def notice(self, text: str) -> None:
        if self.kind in ("progress", "tail"):
            self.console.print(visible(text), style="yellow", markup=False)
        elif self.kind != "none":  # a detached process has its log for that
            note(text)

    def ring(self) -> None:
        if self.console.is_terminal:
            self.console.bell()

    def close(self) -> None:
        self._live = None

    def tell_end(self, folder: ExperimentFolder, manifest: Manifest, runner: Runner, options: dict[str, Any]) -> None:
        if self.kind == "none":
            return
        if self.kind == "quiet":
            path = folder.path
            click.echo(os.fsencode(str(path)) if not sys.stdout.isatty() else visible(str(path)))
        elif self.kind == "json":
            click.echo(manifest.encode())
        else:
            totals = manifest.totals
            self.console.print(
                f"{manifest.experiment_id}  {manifest.status.value}: {totals.completed} of "
                f"{count(totals.conversations, 'conversation')} complete"
                + (f", {totals.failed} failed" if totals.failed else "")
                + f" · {count(totals.messages, 'message')} · {cost_text(totals.cost_usd)}",
                soft_wrap=True,
                highlight=False,
            )
            expected = runner.estimate
            if expected.cost_usd not in (None, (0.0, 0.0)) and manifest.status is Status.COMPLETED:
                self.console.print(f"expected before it began: {cost_range(expected.cost_usd)}", highlight=False)
            self.console.print(f"record: {visible(short_path(folder.path))}", soft_wrap=True, highlight=False)
            if (hint := budget_hint(runner, folder, options)) is not None:
                self.console.print(hint, soft_wrap=True, highlight=False, markup=False)
            elif manifest.status is not Status.COMPLETED:
                more = " --retry-failed" if manifest.status is Status.FAILED else ""
                self.console.print(
                    f"go on: {command_line('resume', folder.experiment_id, options)}{more}",
                    soft_wrap=True,
                    highlight=False,
                )
        for name, why in runner.refused.items():
            click.echo(f"Error: {name}: {one_line(why, 1000)}", err=True)


# Control from another process


def control(target: str | None, options: dict[str, Any], wish: Wish) -> int:
    """Stop or pause one running experiment, or all. Gives the exit status."""
    root = existing_root(options["output"])
    if (target is None) == (not options["everything"]):
        raise click.UsageError(f"Name what to {wish.value.partition('_')[0]}, or give --all.")
    if target is not None:
        folders = [root.find(target)]
        if living_runner(root, folders[0].experiment_id) is None:
            manifest = current_manifest(root, folders[0])
            raise NotFound(f"{folders[0].experiment_id} is not running; it is {manifest.status.value}")
    else:
        folders = [folder for folder in root.folders() if living_runner(root, folder.experiment_id) is not None]
        if not folders:
            click.echo(f"Nothing under {visible(str(root.experiments))} is running", err=True)
    for folder in folders:
        with contextlib.suppress(NotFound):  # it ended meanwhile
            ask_runner(root, folder.experiment_id, wish)
    for folder in folders:
        _await(root, folder, wish)
        status = current_manifest(root, folder).status.value
        click.echo(f"{folder.experiment_id} {'is finishing its messages' if status == 'running' else 'is ' + status}")
    return 0


def _await(root: OutputRoot, folder: ExperimentFolder, wish: Wish) -> None:
    """Wait until it is so. Ctrl-C ends the waiting alone."""
    told = time.monotonic() + 2
    while living_runner(root, folder.experiment_id) is not None:
        if wish is Wish.PAUSE and read_manifest(folder).status is Status.PAUSED:
            return
        if wish is Wish.RESUME and read_manifest(folder).status is Status.RUNNING:
            return
        if time.monotonic() > told:
            told = float("inf")
            click.echo(f"{folder.experiment_id} is finishing the messages under way …", err=True)
        time.sleep(LEAVE_LOOK_S)
