"""`chat` and `resume`: from flags to a running conversation on the screen."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from pidgin_cli.conversation.conductor import Conductor, Outcome

from pidgin_cli.core.errors import NotFound, PidginError, SpecError
from pidgin_cli.core.events import ConversationEndEvent, ConversationPausedEvent, Event, MessageCompleteEvent
from pidgin_cli.core.types import Status, Timeouts, clean_text
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.experiments.registry import current_manifest, living_runner
from pidgin_cli.experiments.runner import Runner, create_experiment, find_log
from pidgin_cli.monitor.chat import ChatDisplay, TailDisplay
from pidgin_cli.monitor.text import visible
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, missing_key, split_model
from pidgin_cli.spec.experiment import ExperimentSpec, check, load, resolve

__all__ = ["chat", "resume"]

FINISHED = (Status.COMPLETED,)
EXIT_INTERRUPTED = 130
RECALLED_TURNS = 2
"""Turns that `resume` shows again before it goes on."""


def chat(options: dict[str, Any]) -> int:
    """Hold the conversation that the flags describe. Gives the exit status."""
    root = OutputRoot(options["output"])
    spec = _spec(options)
    pool = _pool(root)
    resolved, notices = resolve(spec, PROVIDERS)
    for notice in notices:
        click.echo(f"Note: {notice}", err=True)
    _check_models(resolved)
    root.prepare()
    return asyncio.run(_converse(root, pool, resolved, None, options))


def resume(target: str | None, options: dict[str, Any]) -> int:
    """Go on with one record, or with all that can go on. Gives the exit status."""
    root = OutputRoot(options["output"])
    if (target is None) == (not options["everything"]):
        raise click.UsageError("Name what to go on with, or give --all.")
    folders = list(root.folders()) if target is None else [root.find(target)]
    worst = 0
    for folder in folders:
        if (runner := living_runner(root, folder.experiment_id)) is not None:
            click.echo(f"{folder.experiment_id} is being run by process {runner.pid}", err=True)
            worst = max(worst, 0 if target is None else 1)
            continue
        manifest = current_manifest(root, folder)
        if manifest.status in FINISHED:
            if target is not None and not options["as_json"]:
                click.echo(f"{folder.experiment_id} is complete; read it with: pidgin show {folder.experiment_id}")
            continue
        spec = load(folder.spec)
        _check_models(spec)
        worst = max(worst, asyncio.run(_converse(root, _pool(root), spec, folder, options)))
    return worst


# What the flags mean


def _spec(options: dict[str, Any]) -> ExperimentSpec:
    agents = _agents(options)
    if options["allow_truncation"] and options["context"] == "summarise":
        raise click.UsageError("--allow-truncation means --context window; leave one of them out.")
    policy = "window" if options["allow_truncation"] else options["context"]
    data: dict[str, Any] = {
        "agents": agents,
        "prompt_tag": _clean(options["prompt_tag"]),
        "max_turns": options["turns"],
        "order": options["order"],
        "first": options["first"],
        "seed": options["seed"],
        "choose_names": options["choose_names"],
        "durability": options["durability"],
        "context": {"policy": policy, "limit_tokens": options["context_limit"]},
    }
    if options["name"] is not None:
        data["name"] = _clean(options["name"])
    if options["prompt"] is not None:
        data["prompt"] = _prompt(options["prompt"])
    timeouts = {
        f"{name}_s": value or None
        for name in ("connect", "first_token", "gap", "total")
        if (value := options[f"timeout_{name}"]) is not None
    }
    if timeouts:
        data["timeouts"] = timeouts
    if options["retries"] is not None:
        data["retries"] = {"attempts": options["retries"] + 1}
    return check(data, "chat")


def _agents(options: dict[str, Any]) -> list[dict[str, Any]]:
    models = {"a": options["agent_a"], "b": options["agent_b"]}
    if options["meditation"]:
        if models["b"] is not None:
            raise click.UsageError("--meditation faces agent a with silence; leave -b out.")
        models["b"] = "local:silent"
    for text in options["agents"]:
        agent_id, equals, model = text.partition("=")
        if not equals or not model:
            raise click.BadParameter(f"{text!r} is not ID=MODEL, such as c=gpt.", param_hint="--agent")
        if models.get(agent_id) is not None:
            raise click.BadParameter(f"there is an agent {agent_id!r} already.", param_hint="--agent")
        models[agent_id] = model
    for agent_id, flag in (("a", "-a"), ("b", "-b")):
        if models[agent_id] is None:
            hint = "" if agent_id == "a" else " For self-play, name the same model twice."
            raise click.UsageError(f"Who talks? Give {flag} MODEL, such as {flag} local:test or {flag} claude.{hint}")
    for family, given in (
        ("--temp-", options["temperature_of"]),
        ("--awareness-", options["awareness_of"]),
        ("--think-", options["think_of"]),
    ):
        for agent_id in given:
            if agent_id not in models:
                raise click.UsageError(f"{family}{agent_id}: there is no agent {agent_id!r}, only {', '.join(models)}.")
    agents = []
    for agent_id, model in models.items():
        temperature = options["temperature_of"].get(agent_id, options["temperature"])
        if temperature is not None and not 0 <= temperature <= 2:
            raise click.BadParameter(f"{temperature:g} is not between 0 and 2.", param_hint=f"--temp-{agent_id}")
        think = True if options["think"] or agent_id in options["think_of"] else None
        budget = options["think_budget"]
        # With --think-ID given, a budget belongs to those agents only.
        if budget is not None and options["think_of"] and not think:
            budget = None
        agents.append(
            {
                "id": agent_id,
                "model": _clean(model),
                "awareness": options["awareness_of"].get(agent_id, options["awareness"]),
                "temperature": temperature,
                "max_tokens": options["max_tokens"],
                "think": think,
                "think_budget": budget,
                "stop_phrase": None if options["stop_phrase"] is None else _clean(options["stop_phrase"]),
            }
        )
    return agents


def _clean(text: str) -> str:
    return clean_text(text)[0]


def _prompt(text: str) -> str:
    try:
        if text == "-":
            return _clean(sys.stdin.buffer.read().decode("utf-8", "replace")).removesuffix("\n")
        if text.startswith("@"):
            return Path(text[1:]).read_bytes().decode("utf-8", "replace").removesuffix("\n")
    except OSError as error:
        raise SpecError(f"-p {text}: {error.strerror}") from None
    return _clean(text)


def _check_models(spec: ExperimentSpec) -> None:
    """Everything that can be known to be wrong before anything starts."""
    faults = []
    models = [(f"agent {agent.id}", agent.model) for agent in spec.agents]
    context = spec.context
    if not isinstance(context, str) and context.model is not None:
        models.append(("the summaries", context.model))
    for who, model_id in models:
        info, model = split_model(model_id)
        if (variable := missing_key(info)) is not None:
            faults.append(f"{who} ({model_id}) needs a key: export {variable}=…")
        elif info.name == "local":
            from pidgin_cli.providers.local import check_model

            check_model(model)
    if faults:
        raise SpecError("\n".join(faults))


# Running


def _pool(root: OutputRoot) -> ProviderPool:
    def read(source: str) -> Any:
        from pidgin_cli.conversation.recording import read_recording

        return read_recording(find_log(root, source))

    return ProviderPool(read)


class _Screen:
    """What one run shows, and what the person may say meanwhile."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.kind = "json" if options["as_json"] else "tail" if options["tail"] else options["display"]
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.interactive = self.kind in ("chat", "tail") and sys.stdin.isatty() and sys.stdout.isatty()
        self.interrupts = 0
        self.conductor: Conductor | None = None
        self._menu: asyncio.Task[None] | None = None
        thinks = options.get("think") or options.get("think_of") or options.get("think_budget")
        self._chat = ChatDisplay(
            self.console,
            show_thinking=bool(options["show_thinking"] or thinks),
            show_system_prompts=options["show_system_prompts"],
        )
        self._tail = TailDisplay(self.console)

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
            conductor.bus.subscribe(lambda event: self._guard(take, event))
            if self.kind != "json" and conductor.record is not None:
                self._recall(conductor, take)
        if self.interactive:
            conductor.bus.subscribe(self._paused, ConversationPausedEvent)

    def _recall(self, conductor: Conductor, take: Callable[[Event], None]) -> None:
        """Show who talks and the last turns of a conversation that goes on."""
        assert conductor.record is not None
        events = conductor.record.events
        turns = [event.turn_number for event in events if isinstance(event, MessageCompleteEvent)]
        first = max(turns, default=0) - RECALLED_TURNS + 1
        for event in events:
            turn = getattr(event, "turn_number", 0)
            if not isinstance(event, ConversationEndEvent) and (turn == 0 or turn >= first):
                self._guard(take, event)

    def _print_json(self, event: Event) -> None:
        sys.stdout.buffer.write(encode(event) + b"\n")
        sys.stdout.buffer.flush()

    def _guard(self, show: Callable[..., None], *args: Any) -> None:
        """Nobody reads on: end as if asked to, and keep the record."""
        try:
            show(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.kind = "quiet"
            if self.conductor is not None:
                self.conductor.control.stop(by="closed output")

    def finish(self) -> None:
        if self.kind == "chat":
            self._chat.finish()

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
            if self.kind == "chat":
                self._chat.notice("finishing this message; Ctrl-C again stops now")
        else:
            control.stop(by="person")

    def terminate(self) -> None:
        """The system wants the process to end: finish the message and stop."""
        self.interrupts += 1
        if self.conductor is not None:
            self.conductor.control.stop(by="signal", now=self.interrupts > 1)

    def _paused(self, _: Event) -> None:
        self._menu = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        assert self.conductor is not None
        control = self.conductor.control
        agents = {agent.id: self.conductor.progress.names[agent.id] for agent in self.conductor.spec.agents}
        who = ", ".join(f"[{agent_id}] {visible(name)}" for agent_id, name in agents.items())
        while control.stopping is None:
            menu = f"  [r]esume · say something to {who} or [e]veryone · [s]top and save: "
            self.console.print(menu, end="", style="bold")
            sys.stdout.flush()
            answer = await _read_line()
            choice = (answer or "s").strip().lower() or "r"
            if choice == "r":
                self.interrupts = 0
                control.resume()
                return
            if choice == "s":
                control.stop(by="person")
                control.resume()
                return
            if choice == "e" or choice in agents:
                self.console.print("  say: ", end="", style="bold")
                sys.stdout.flush()
                text = await _read_line()
                if text and text.strip():
                    control.inject(_clean(text.rstrip("\n")), None if choice == "e" else (choice,))
                    self.console.print("  will be said before the next reply", style="dim")
            else:
                self.console.print(f"  {visible(choice)!r} is none of these", style="dim")

    def cancel_menu(self) -> None:
        if self._menu is not None:
            self._menu.cancel()


async def _read_line() -> str | None:
    """A line from the terminal, or None at its end. Leaves no thread behind when it is cancelled."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()

    def ready() -> None:
        data = os.read(sys.stdin.fileno(), 1 << 16)
        if not line.done():
            line.set_result(data.decode("utf-8", "replace") if data else None)

    loop.add_reader(sys.stdin.fileno(), ready)
    try:
        return await line
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def _converse(
    root: OutputRoot,
    pool: ProviderPool,
    spec: ExperimentSpec,
    folder: ExperimentFolder | None,
    options: dict[str, Any],
) -> int:
    models = [agent.model for agent in spec.agents]
    warm = asyncio.create_task(pool.warm_up(models))
    try:
        await warm
        timeouts = Timeouts(**spec.timeouts.model_dump())
        for model_id in models:
            pool.adapter(model_id, timeouts)  # a bad base URL or key shows here, before anything starts
        await _prepare_ollama(pool, models, timeouts, consent=options["yes"])
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
    runner = Runner(
        root,
        folder,
        pool,
        live=screen.live,
        on_conversation=screen.listen,
        resumed_by="pidgin resume",
    )
    try:
        outcomes = await runner.run()
    except PidginError:
        screen.finish()
        click.echo(f"The record so far: {folder.path}", err=True)
        raise
    finally:
        screen.cancel_menu()
        screen.finish()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    _tell_where(screen, folder, outcomes)
    return _exit_status(outcomes, screen.interrupts)


def _tell_where(screen: _Screen, folder: ExperimentFolder, outcomes: dict[str, Outcome]) -> None:
    path = _short(folder.path)
    if screen.kind == "quiet":
        click.echo(path)
    elif screen.kind != "json":
        screen.console.print(f"record: {path}", soft_wrap=True)
        finished = all(outcome.status in FINISHED for outcome in outcomes.values())
        then = "read it again: pidgin show" if finished else "go on: pidgin resume"
        screen.console.print(f"{then} {folder.experiment_id}", soft_wrap=True)
    failures = [outcome.error for outcome in outcomes.values() if outcome.error]
    if screen.kind in ("quiet", "json"):
        for failure in failures:
            click.echo(f"Error: {visible(failure)}", err=True)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _exit_status(outcomes: dict[str, Outcome], interrupts: int) -> int:
    statuses = {outcome.status for outcome in outcomes.values()}
    if Status.FAILED in statuses:
        return 1
    if interrupts and Status.STOPPED in statuses:
        return EXIT_INTERRUPTED
    return 0


# Ollama


async def _prepare_ollama(pool: ProviderPool, models: Sequence[str], timeouts: Timeouts, *, consent: bool) -> None:
    """See that Ollama is up and has the models; download one only after a yes."""
    wanted = list(dict.fromkeys(split_model(model)[1] for model in models if model.startswith("ollama:")))
    if not wanted:
        return
    from pidgin_cli.providers.ollama import OllamaProvider

    ollama = pool.adapter(f"ollama:{wanted[0]}", timeouts)
    assert isinstance(ollama, OllamaProvider)
    installed = await ollama.installed_models()
    for model in wanted:
        if model in installed or f"{model}:latest" in installed:
            continue
        if not consent:
            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                raise NotFound(f"Ollama does not have {model}; get it with: ollama pull {model} (or give --yes)")
            if not click.confirm(f"Ollama does not have {model}. Download it now?", default=False, err=True):
                raise NotFound(f"Ollama does not have {model}; get it with: ollama pull {model}")
        await _pull(ollama, model)


async def _pull(ollama: Any, model: str) -> None:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"pulling {visible(model)}", total=None)
        async for step in ollama.pull(model):
            progress.update(task, total=step.total, completed=step.completed or 0)
    console.print(f"Ollama has {visible(model)} now", markup=False)
