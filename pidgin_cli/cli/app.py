"""The command tree. Imports click and nothing slow; every command loads what it needs when it runs."""

import difflib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from pidgin_cli.core.errors import PidginError

__all__ = ["cli", "run"]

INTERRUPTED = 130


def run(args: Sequence[str] | None = None) -> int:
    """Run a command line. Gives the exit status: 0 done, 1 something failed, 2 wrong use, 130 interrupted."""
    _prepare_streams()
    try:
        result = cli.main(args, prog_name="pidgin", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as leaving:  # click, when nobody reads the output any more or a shell asks for completions
        _drop_unread_output()
        return leaving.code if isinstance(leaving.code, int) else 1
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" See: {error.ctx.command_path} --help"
        _complain(f"{error.format_message()}{hint}")
        return error.exit_code
    except PidginError as error:
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        _drop_unread_output()
        return 1
    except Exception as error:
        if os.environ.get("PIDGIN_DEBUG"):
            raise
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            _complain(f"{where}{error.strerror}")
        else:
            _complain(f"{type(error).__name__}: {error} - this is a fault in pidgin; PIDGIN_DEBUG=1 shows where")
        _drop_unread_output()
        return 1
    return result if isinstance(result, int) else 0


def _prepare_streams() -> None:
    """Streams that can be written to, whatever the process was started with."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as `>&-` does
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for its whole life
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no dashes shall not end a conversation


def _drop_unread_output() -> None:
    """Where the output cannot be delivered, point it elsewhere, so that leaving does not complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    try:
        click.echo(f"Error: {_plain(text)}", err=True)
    except OSError:
        return  # nobody can be told


def _plain(text: str) -> str:
    """Text of any origin without characters that a terminal acts on."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "?", text)


_SECTIONS = {
    "Talk": ("chat", "ask", "branch"),
    "Run experiments": ("init", "spec", "run", "monitor", "attach", "logs", "pause", "resume", "stop"),
    "Read": ("list", "show", "diff", "transcript"),
    "Analyse": ("report", "notebook", "query", "words", "compare", "power", "export"),
    "Keep the record": ("import", "verify", "replay", "rebuild"),
    "Set up": ("models", "keys", "config", "cache", "doctor", "completion"),
}


class _Commands(click.Group):
    """Lists its commands by what they are for, and names the nearest when there is no such one."""

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for names in _SECTIONS.values() for name in names)
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                summaries = [self.commands[name].get_short_help_str(formatter.width - 6 - width) for name in names]
                formatter.write_dl([(name.ljust(width), text) for name, text in zip(names, summaries, strict=True)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx) from None


class _PerAgentOption(click.Option):
    """An option that exists once for every agent: `--temp-a`, `--temp-b`, `--temp-c`, …

    Declared under its first name; `_PerAgentCommand` rewrites `--temp-c 0.3` to `--temp-a c=0.3`.
    """

    def __init__(self, param_decls: Sequence[str], *, bare: bool = False, **attrs: Any) -> None:
        attrs["multiple"] = True
        super().__init__(param_decls, **attrs)
        self.bare = bare

    @property
    def family(self) -> str:
        return self.opts[0].removesuffix("a")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        shown = f"{self.family}ID" + ("" if self.bare else f" {self.metavar}")
        return record and (shown, record[1])


class _PerAgentCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        families = {param.family: param for param in self.params if isinstance(param, _PerAgentOption)}
        declared = {
            opt: isinstance(param, click.Option) and not param.is_flag
            for param in self.params
            if not isinstance(param, _PerAgentOption)
            for opt in param.opts
        }
        found: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                found += [arg, *rest]
                break
            if arg in declared:
                found.append(arg)
                if declared[arg] and rest:
                    found.append(rest.pop(0))  # its value, whatever that looks like
                continue
            match = re.fullmatch(r"(--[a-z-]+-)([a-z][a-z0-9]*)(?:=(.*))?", arg, re.DOTALL)
            if match is None or match[1] not in families or arg.partition("=")[0] in declared:
                found.append(arg)
                continue
            option = families[match[1]]
            value = match[3]
            if option.bare and value is not None:
                raise click.BadOptionUsage(arg, f"Option {match[1]}{match[2]} does not take a value.", ctx)
            if option.bare:
                value = "true"
            elif value is None:
                if not rest:
                    raise click.BadOptionUsage(arg, f"Option {arg!r} requires an argument.", ctx)
                value = rest.pop(0)
            found.append(f"{option.opts[0]}={match[2]}={value}")
        return super().parse_args(ctx, found)


class _Number(click.FloatRange):
    """A range in which `nan` and `inf` are no numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number in this range.", param, ctx)
        return number


def _per_agent(
    kind: click.ParamType[Any] | type, *, several: bool = False
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]:
    """A callback that turns `("a=0.3", …)` into values of a kind by agent; with `several` into tuples of them."""
    make = click.types.convert_type(kind)

    def convert(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for value in values:
            agent_id, _, text = value.partition("=")
            try:
                made = make.convert(text, param, ctx)
            except click.BadParameter as error:
                error.param_hint = f"{getattr(param, 'family', '')}{agent_id}"
                raise
            found[agent_id] = (*found.get(agent_id, ()), made) if several else made
        return found

    return convert


def _complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from pidgin_cli.spec.catalogue import aliases, known_models

    return [name for name in (*aliases(), *known_models()) if name.startswith(incomplete)]


def _complete_experiment(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from pidgin_cli.eventlog.folder import OutputRoot

    folders = OutputRoot(ctx.params.get("output")).folders()
    names = [name for folder in folders for name in (folder.experiment_id, folder.slug) if name]
    return [name for name in names if name.startswith(incomplete)]


def _output(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="ROOT",
        help="Folder that holds the records. [default: $PIDGIN_OUTPUT or ./pidgin_output]",
    )(command)


def _as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")(command)


def _display(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON."),
        click.option("--show-thinking", is_flag=True, help="Show what models think, dimmed; in tail, all of it."),
        click.option(
            "--show-system-prompts", is_flag=True, help="Show the system prompts first; in tail, all of them."
        ),
        click.option("--tail", is_flag=True, help="Short for --display tail."),
        click.option(
            "--display",
            type=click.Choice(["chat", "tail", "quiet"]),
            default="chat",
            show_default=True,
            help="chat: the talk; tail: one line per event; quiet: where the record is, nothing else.",
        ),
    ):
        command = option(command)
    return command


_VISIBLE = click.Choice(["own", "partner", "nobody"])


def _embeddings(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--embeddings",
        metavar="MODEL",
        help="What semantic metrics come from: openai:MODEL, google:MODEL, ollama:MODEL or an endpoint's, all of which "
        "are sent every message; wordllama (offline, an extra); or lexical_hash.  [default: the spec's, else none]",
    )(command)


def _post_processing(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--post-processing/--no-post-processing",
        default=True,
        envvar="PIDGIN_POST_PROCESSING",
        help="Make the pages when it is over, or leave them to pidgin report.  [default: make them]",
    )(command)


def agent_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say who talks and how each agent is asked; `agents.agents_of` reads them.

    The command has to be a `_PerAgentCommand`.
    """

    def one(name: str, flag: str, kind: click.ParamType[Any] | type, metavar: str, text: str, **how: Any) -> Any:
        return click.option(
            flag,
            name,
            cls=_PerAgentOption,
            callback=_per_agent(kind, several=how.pop("several", False)),
            metavar=metavar,
            help=text,
            **how,
        )

    for option in reversed(
        (
            click.option("-a", "--agent-a", metavar="MODEL", shell_complete=_complete_model, help="Model of agent a."),
            click.option("-b", "--agent-b", metavar="MODEL", shell_complete=_complete_model, help="Model of agent b."),
            click.option("--agent", "agents", multiple=True, metavar="ID=MODEL", help="One more agent, such as c=gpt."),
            click.option("--meditation", is_flag=True, help="Agent a faces a partner that only ever stays silent."),
            click.option(
                "-w",
                "--awareness",
                metavar="PRESET|FILE",
                help="none, basic, firm, research, backrooms, or a YAML file.",
            ),
            one("awareness_of", "--awareness-a", str, "PRESET|FILE", "The same for one agent."),
            click.option("--temperature", type=_Number(0, 2), help="Sampling temperature of all agents, 0 to 2."),
            one("temperature_of", "--temp-a", float, "T", "Of one agent."),
            click.option("--top-p", type=_Number(0, 1, min_open=True), help="Nucleus sampling of all agents, to 1."),
            one("top_p_of", "--top-p-a", _Number(0, 1, min_open=True), "P", "Of one agent."),
            click.option("--max-tokens", type=click.IntRange(min=1), help="Upper end of one reply."),
            one("max_tokens_of", "--max-tokens-a", click.IntRange(min=1), "N", "Of one agent's."),
            click.option(
                "--stop",
                multiple=True,
                metavar="TEXT",
                help="The provider ends a reply before this text; may be given again.",
            ),
            one("stop_of", "--stop-a", str, "TEXT", "The same for one agent, instead.", several=True),
            click.option("--think", is_flag=True, help="Ask all models to think first, and show it."),
            click.option(
                "--think-a",
                "think_of",
                cls=_PerAgentOption,
                bare=True,
                callback=_per_agent(str),
                help="Ask one agent's.",
            ),
            click.option(
                "--think-budget", type=click.IntRange(min=1), help="Thinking tokens at most; implies --think."
            ),
            one("think_budget_of", "--think-budget-a", click.IntRange(min=1), "N", "Of one agent."),
            click.option(
                "--effort", metavar="WORD", help="Reasoning effort, in the provider's words, such as low or high."
            ),
            one("effort_of", "--effort-a", str, "WORD", "Of one agent."),
            click.option(
                "--thinking-visible",
                type=_VISIBLE,
                default="nobody",
                show_default=True,
                help="Who is sent what an agent thought: itself, the others, or nobody.",
            ),
            one("thinking_visible_of", "--thinking-visible-a", _VISIBLE, "WHO", "The same for one agent."),
            click.option("--stop-phrase", metavar="TEXT", help="An agent that says this ends the conversation."),
            click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="ID.KEY=VALUE",
                help="Anything else that a spec says of an agent, in YAML: a.seed=7, b.extra.top_k=5.",
            ),
        )
    ):
        command = option(command)
    return command


def conversation_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how a conversation runs; `chat.spec_from_flags` reads them."""
    for option in reversed(
        (
            click.option(
                "-p", "--prompt", metavar="TEXT", help="Opening, given to every agent; @FILE or - for standard input."
            ),
            click.option("-t", "--turns", type=click.IntRange(min=1), default=10, show_default=True, help="Rounds."),
            click.option(
                "--lenient",
                is_flag=True,
                help="Leave out, with a recorded warning, settings that a model does not take.",
            ),
            click.option(
                "--cache", is_flag=True, help="Answer from the cache what this very conversation asked before."
            ),
            click.option("--choose-names", is_flag=True, help="Agents choose their names first."),
            click.option(
                "--prompt-tag", default="HUMAN", show_default=True, help='Stands before the opening; "" for nothing.'
            ),
            click.option(
                "--order",
                type=click.Choice(["alternate", "random"]),
                default="alternate",
                show_default=True,
                help="Who speaks when within a turn.",
            ),
            click.option(
                "--first", metavar="ID", help="Who opens: an agent's id, or random.  [default: the first agent]"
            ),
            click.option("--seed", type=int, help="All draws derive from it.  [default: drawn and recorded]"),
            click.option(
                "--context",
                type=click.Choice(["stop", "window", "summarise"]),
                default="stop",
                show_default=True,
                help="When the context window is full: end, drop the oldest turns, or summarise them.",
            ),
            click.option(
                "--convergence-threshold",
                type=_Number(0, 1),
                metavar="C",
                help="0 to 1: how alike the last messages may be before --convergence-action.",
            ),
            click.option(
                "--convergence-action",
                type=click.Choice(["notify", "pause", "stop"]),
                default="notify",
                show_default=True,
                help="What happens at the threshold.",
            ),
            click.option(
                "--convergence-profile",
                type=click.Choice(["balanced", "structural", "semantic", "strict"]),
                default="balanced",
                show_default=True,
                help="Which parts of the score count how much.",
            ),
            click.option(
                "--context-limit", type=click.IntRange(min=1), help="Tokens, instead of the models' own windows."
            ),
            click.option("--allow-truncation", is_flag=True, help="Short for --context window."),
            click.option(
                "--timeout-connect", type=_Number(0), metavar="S", help="Seconds; 0: no limit.  [default: 15]"
            ),
            click.option("--timeout-first-token", type=_Number(0), metavar="S", help="Seconds.  [default: 300]"),
            click.option("--timeout-gap", type=_Number(0), metavar="S", help="Between two pieces.  [default: 120]"),
            click.option("--timeout-total", type=_Number(0), metavar="S", help="Whole reply.  [default: no limit]"),
            click.option(
                "--retries", type=click.IntRange(0), help="Times a failed request is tried again.  [default: 5]"
            ),
            click.option(
                "--durability",
                type=click.Choice(["message", "strict", "none"]),
                default="message",
                show_default=True,
                help="When the record is on the disk: within 0.2 s, before the next request, or when the system likes.",
            ),
        )
    ):
        command = option(command)
    return command


def _refuse_contradictions(options: dict[str, Any]) -> None:
    """Raises UsageError where two flags that were given say different things."""
    ctx = click.get_current_context()

    def says_otherwise(name: str, value: str) -> bool:
        given = ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        return given and options[name] != value

    if options.get("allow_truncation") and says_otherwise("context", "window"):
        raise click.UsageError("--allow-truncation means --context window; leave one of them out.")
    if options["tail"] and says_otherwise("display", "tail"):
        raise click.UsageError("--tail means --display tail; leave one of them out.")
    if options["tail"] and options["as_json"]:
        raise click.UsageError("--json and --tail are two ways to show the same; leave one of them out.")
    if options["as_json"] or (options["display"] == "quiet" and not options["tail"]):
        silent = "--json" if options["as_json"] else "--display quiet"
        for name, what in (("show_thinking", "every thought"), ("show_system_prompts", "every system prompt")):
            if options[name]:
                why = f"prints {what} anyway" if options["as_json"] else "shows nothing"
                raise click.UsageError(f"{silent} {why}; leave --{name.replace('_', '-')} out.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "--version", package_name="pidgin-cli", prog_name="pidgin")
def cli() -> None:
    """A laboratory for conversations between language models.

    \b
    Example:
      pidgin chat -a local:test -b local:test -t 3
    """


@cli.command(cls=_PerAgentCommand)
@agent_flags
@conversation_flags
@click.option("-n", "--name", help="Name of the record.")
@_output
@click.option("-y", "--yes", is_flag=True, help="Download a missing Ollama model without asking.")
@_post_processing
@_display
def chat(**options: Any) -> int:
    """Hold one conversation, live.

    Models are named provider:model (anthropic:…, openai:…, ollama:…, local:test, replay:RECORD) or by a short name
    (claude, gpt, …). Options that end in ID exist for every agent: --temp-a, --temp-b, --temp-c.

    \b
    Example:
      pidgin chat -a claude -b gpt -t 20 -p "What is it like to be read?"
      pidgin chat -a ollama:qwen3:4b -b ollama:gemma3:4b --temp-b 0.2
      pidgin chat -a local:test -b local:test?words=20 -t 3
    """
    from .chat import chat as hold

    _refuse_contradictions(options)
    return hold(options)


def run_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how an experiment is run, not what it is."""
    for option in reversed(
        (
            click.option("--max-parallel", metavar="N|auto", callback=_parallel, help="Conversations at a time."),
            click.option("--budget", type=_Number(0, min_open=True), metavar="USD", help="Spend at most so much."),
            click.option(
                "--budget-tokens", type=click.IntRange(min=1), metavar="N", help="Use at most so many tokens."
            ),
            click.option("--budget-time", metavar="TIME", help="Run at most so long: seconds, or 90m, 2h, 1d."),
            click.option("--notify", is_flag=True, help="Say so on the desktop when it is over."),
            click.option("-d", "--detach", is_flag=True, help="Run in a process of its own and return at once."),
            click.option("-q", "--quiet", is_flag=True, help="The same, and print only where the record is."),
            click.option("-y", "--yes", is_flag=True, help="Download a missing Ollama model without asking."),
        )
    ):
        command = option(command)
    return command


def _parallel(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 on nor auto.")
    return int(value)


def _choice_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--filter",
                multiple=True,
                metavar="KEY=VALUE",
                help="Only such arms, as in a.temperature=0.2, seating=…, repetition=1; given again: and.",
            ),
            click.option("--limit", type=click.IntRange(min=1), help="Only the first so many of the order."),
            click.option("--shuffle-seed", type=int, help="Another order, as balanced as the first."),
        )
    ):
        command = option(command)
    return command


_RUN_DISPLAY = click.Choice(["progress", "tail", "quiet"])


@cli.command("run", cls=_PerAgentCommand)
@click.argument("spec", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("-n", "--name", help="Name of the experiment; with it the same command goes on with it later.")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), help="Conversations per arm.")
@run_flags
@_choice_flags
@click.option("--dry-run", is_flag=True, help="Show the plan, the number of calls and what it may cost.")
@click.option("--retry-failed", is_flag=True, help="Go on with conversations that failed, too.")
@_post_processing
@_output
@click.option("--json", "as_json", is_flag=True, help="Print the manifest at the end, or with --dry-run the plan.")
@click.option("--tail", is_flag=True, help="Short for --display tail.")
@click.option(
    "--display",
    type=_RUN_DISPLAY,
    default="progress",
    show_default=True,
    help="progress: bars; tail: one line per event; quiet: where the record is, nothing else.",
)
@agent_flags
@conversation_flags
def run_(spec: Path | None, **options: Any) -> int:
    """Run an experiment from a file, or from the flags of `chat`.

    With a name that exists and the same spec, what is missing is run and nothing else; more repetitions extend it.

    \b
    Example:
      pidgin run study.yaml --dry-run
      pidgin run study.yaml --max-parallel 8 --budget 5 -d
      pidgin run -a claude -b gpt -t 30 -r 20 -n first
    """
    from .run import run as run_experiment

    _refuse_two_sources(spec)
    _prepare_run(options)
    return run_experiment(spec, options)


_BESIDE_A_SPEC = {
    "spec", "name", "repetitions", "max_parallel", "budget", "budget_tokens", "budget_time", "notify", "detach",
    "quiet", "yes", "filter", "limit", "shuffle_seed", "dry_run", "retry_failed", "output", "as_json", "tail",
    "display", "seed", "cache", "post_processing",
}  # fmt: skip


def _refuse_two_sources(spec: Path | None) -> None:
    """A file says it all: what else is given beside it would have to contradict it."""
    ctx = click.get_current_context()
    given = [
        param
        for param in ctx.command.params
        if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
        and param.name not in _BESIDE_A_SPEC
    ]
    if spec is not None and given:
        raise click.UsageError(f"{given[0].opts[-1]} belongs into {spec}: a spec file says everything about the talks.")


def _prepare_run(options: dict[str, Any]) -> None:
    options["quiet"] = options.get("quiet", False)
    if options["quiet"]:
        options["detach"], options["display"] = True, "quiet"
    if options["tail"] and options["display"] == "quiet":
        raise click.UsageError("--tail and quiet are two ways to show the same; leave one of them out.")
    if options["tail"] and options["as_json"]:
        raise click.UsageError("--json and --tail are two ways to show the same; leave one of them out.")
    if options["detach"] and options["tail"]:
        raise click.UsageError("--tail shows a run in the foreground; with -d use pidgin attach.")


@cli.command("_runner", hidden=True)
@click.argument("experiment_id")
@_choice_flags
@click.option("--retry-failed", is_flag=True)
@_post_processing
@_output
def runner(experiment_id: str, **options: Any) -> int:
    """Run an experiment without a terminal; `pidgin run -d` starts this.

    \b
    Example:
      pidgin _runner k3v9x2ab
    """
    from .run import runner_process

    return runner_process(experiment_id, options)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="Everything that runs.")
@click.option("--now", is_flag=True, help="Drop the messages under way; their text so far is recorded as abandoned.")
@_output
def stop(target: str | None, now: bool, **options: Any) -> int:
    """Stop a running experiment.

    The messages under way are finished first; `pidgin resume` goes on.

    \b
    Example:
      pidgin stop k3v9x2ab
      pidgin stop --all --now
    """
    from pidgin_cli.experiments.registry import Wish

    from .run import control

    return control(target, options, Wish.STOP_NOW if now else Wish.STOP)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="Everything that runs.")
@_output
def pause(target: str | None, **options: Any) -> int:
    """Pause a running experiment.

    The messages under way are finished first; `pidgin resume` goes on.

    \b
    Example:
      pidgin pause k3v9x2ab
    """
    from pidgin_cli.experiments.registry import Wish

    from .run import control

    return control(target, options, Wish.PAUSE)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="Go on with everything that can go on.")
@click.option("--retry-failed", is_flag=True, default=None, help="Failed conversations, too, where others are left.")
@run_flags
@_choice_flags
@_post_processing
@_output
@_display
def resume(target: str | None, **options: Any) -> int:
    """Go on with what was stopped, paused, failed or killed.

    TARGET is an id, the beginning of one, or a name. Nothing that is recorded is asked again. A budget that is given
    takes the place of the one before.

    \b
    Example:
      pidgin resume k3v9x2ab
      pidgin resume study --budget 20 -d
    """
    from .chat import resume as go_on

    _refuse_contradictions(options)
    _prepare_run(options)
    return go_on(target, options)


@cli.command("list")
@_output
@_as_json
def list_(output: Path | None, as_json: bool) -> None:
    """List the records, newest first.

    \b
    Example:
      pidgin list
      pidgin list --json | jq -r '.[] | select(.status == "failed") | .experiment_id'
    """
    from .records import list_records

    list_records(output, as_json=as_json)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@_output
@_as_json
@click.option("--show-thinking", is_flag=True, help="Show what models thought, dimmed.")
@click.option("--show-system-prompts", is_flag=True, help="Show the system prompts first (chat display).")
@click.option("--tree", is_flag=True, help="Show what branches off it, and what it branches off.")
def show(target: str | None, output: Path | None, as_json: bool, tree: bool, **options: bool) -> None:
    """Show an experiment, or read a conversation.

    TARGET is an id, the beginning of one, a name, or the id of a conversation; --tree does without, too. --json gives
    the manifest, or the events of a conversation.

    \b
    Example:
      pidgin show k3v9x2ab
      pidgin show k3v9x2ab-1 --show-system-prompts
      pidgin show k3v9x2ab-1 --tree
    """
    if tree:
        if any(options.values()):
            raise click.UsageError("--tree shows no messages; leave the other --show flags out.")
        from .branch import show_tree

        show_tree(target, output, as_json=as_json)
        return
    if target is None:
        raise click.UsageError("Missing argument 'TARGET'; pidgin list says what there is.")
    from .records import show_record

    show_record(target, output, as_json=as_json, **options)


@cli.command(cls=_PerAgentCommand)
@click.argument("target", shell_complete=_complete_experiment)
@click.option("--turn", type=click.IntRange(min=0), required=True, help="Last turn that is shared; 0: the opening.")
@click.option("-a", "--agent-a", metavar="MODEL", shell_complete=_complete_model, help="Another model of agent a.")
@click.option("-b", "--agent-b", metavar="MODEL", shell_complete=_complete_model, help="Another model of agent b.")
@click.option("--agent", "agents", multiple=True, metavar="ID=MODEL", help="Another model of any agent.")
@click.option("-w", "--awareness", metavar="PRESET|FILE", help="Other awareness of all agents.")
@click.option(
    "--awareness-a",
    "awareness_of",
    cls=_PerAgentOption,
    callback=_per_agent(str),
    metavar="PRESET|FILE",
    help="The same for one agent.",
)
@click.option("--temperature", type=_Number(0, 2), help="Sampling temperature of all agents, 0 to 2.")
@click.option(
    "--temp-a",
    "temperature_of",
    cls=_PerAgentOption,
    callback=_per_agent(float),
    metavar="T",
    help="Of one agent.",
)
@click.option("--system-prompt", metavar="TEXT", help='Of all agents; @FILE reads a file, "" takes it away.')
@click.option(
    "--system-prompt-a",
    "system_prompt_of",
    cls=_PerAgentOption,
    callback=_per_agent(str),
    metavar="TEXT",
    help="Of one agent.",
)
@click.option("--inject", multiple=True, metavar="TEXT", help="Text that all agents are given at the fork.")
@click.option(
    "--inject-a",
    "inject_of",
    cls=_PerAgentOption,
    callback=_per_agent(str, several=True),
    metavar="TEXT",
    help="Text for one agent.",
)
@click.option(
    "--edit", multiple=True, metavar="[ID=]TEXT", help="How the last message, or an agent's last, reads from there on."
)
@click.option("-t", "--turns", type=click.IntRange(min=1), help="Rounds in all.  [default: as recorded]")
@click.option("--seed", type=int, help="All draws derive from it.  [default: drawn and recorded]")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=1, show_default=True, help="Branches.")
@click.option("-n", "--name", help="Name of the record.")
@click.option("--lenient", is_flag=True, help="Leave out settings that a model does not take.")
@click.option(
    "--save-spec", type=click.Path(path_type=Path), metavar="FILE", help="Write the spec (-: print it), run nothing."
)
@_output
@click.option("-y", "--yes", is_flag=True, help="Download a missing Ollama model without asking.")
@_post_processing
@_display
def branch(target: str, **options: Any) -> int:
    """Go on from a turn of a recorded talk with something changed.

    The branch shares what was said up to the end of that turn and stores only what is new. Whatever no flag changes is
    as it was recorded.

    \b
    Example:
      pidgin branch k3v9x2ab-1 --turn 10 -b gpt
      pidgin branch k3v9x2ab-1 --turn 10 --edit "I have changed my mind." -r 20
      pidgin branch k3v9x2ab-1 --turn 10 --inject "Speak of rivers." --save-spec rivers.yaml
    """
    from .branch import branch as fork

    _refuse_contradictions(options)
    return fork(target, options)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@_output
@_as_json
def replay(target: str, output: Path | None, as_json: bool) -> int:
    """Prove that a record holds what the models were sent.

    Rebuilds every recorded request of a conversation, offline, and says what would be sent otherwise today.

    Exit status 0: all as recorded; 1: something differs, or could not be rebuilt.

    \b
    Example:
      pidgin replay k3v9x2ab-1
    """
    from .branch import replay as rebuild_requests

    return rebuild_requests(target, output, as_json=as_json)


@cli.command()
@click.argument("one", metavar="A", shell_complete=_complete_experiment)
@click.argument("other", metavar="B", shell_complete=_complete_experiment)
@_output
@_as_json
@click.option("--all", "everything", is_flag=True, help="From the beginning, not from where they part.")
@click.option("--html", is_flag=True, help="As one HTML page that needs nothing else.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Write the page there.")
def diff(one: str, other: str, output: Path | None, **options: Any) -> int:
    """Set two conversations side by side from where they part.

    What differs in their settings comes first.

    \b
    Example:
      pidgin diff k3v9x2ab-1 p0q8r7st-1
      pidgin diff k3v9x2ab-1 p0q8r7st-1 --html --to diff.html
    """
    from .branch import diff as compare

    if options["html"] and options["as_json"]:
        raise click.UsageError("--html and --json are two ways to show the same; leave one of them out.")
    return compare((one, other), output, options)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--once", is_flag=True, help="Print it once and return.")
@_output
@_as_json
def monitor(target: str | None, output: Path | None, once: bool, as_json: bool) -> int:
    """Watch what runs and what ran lately.

    With TARGET, the conversations of that experiment.

    Keys: arrows or j k choose, Enter opens (an experiment, then a conversation), p pauses or goes on, s stops,
    f filters, o sorts, ? lists all keys, q quits. Leaving it leaves what runs alone.

    \b
    Example:
      pidgin monitor
      pidgin monitor --json | jq '.[] | select(.status == "running") | .messages_per_minute'
    """
    from .watch import monitor as watch

    return watch(target, output, once=once, as_json=as_json)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@click.option(
    "--display",
    type=click.Choice(["chat", "tail", "json"]),
    help="chat: the talk of one conversation; tail: one line per event; json: every event from the first on as a line "
    "of JSON.  [default: chat, without a terminal or for several conversations tail]",
)
@click.option("--show-thinking", is_flag=True, help="Show what models think, dimmed; in tail, all of it.")
@click.option("--show-system-prompts", is_flag=True, help="Show the system prompts first; in tail, all of them.")
@_output
def attach(target: str, output: Path | None, **options: Any) -> int:
    """Look at a run that goes on elsewhere.

    Shows its last turns, then what comes. q or Ctrl-C leaves, and leaves it alone.

    TARGET is an experiment or a conversation. Of an experiment with several conversations all are shown, a line for
    every event.

    \b
    Example:
      pidgin attach k3v9x2ab
      pidgin attach k3v9x2ab-17
    """
    from .watch import attach as look

    return look(target, output, **options)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@click.option("-f", "--follow", is_flag=True, help="Print what is added, until the runner has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Last entries shown.")
@click.option("--events", is_flag=True, help="Instead, what the records of the conversations say went wrong.")
@_output
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array; with -f, an object a line.")
def logs(target: str, output: Path | None, **options: Any) -> int:
    """Print what went wrong in a run.

    That is the log of an experiment's runner; where there is none, the errors and warnings in its records.

    \b
    Example:
      pidgin logs k3v9x2ab -f
      pidgin logs k3v9x2ab --events -n 5
    """
    from .watch import show_logs

    return show_logs(target, output, **options)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="All experiments.")
@_output
def rebuild(target: str | None, everything: bool, output: Path | None) -> None:
    """Make manifest.json again from the logs.

    \b
    Example:
      pidgin rebuild k3v9x2ab
    """
    from .records import rebuild_manifests

    rebuild_manifests(target, output, everything=everything)


@cli.command("import")
@click.argument("targets", nargs=-1, metavar="[EXPERIMENT|PATH]...", shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="All experiments.")
@click.option("--again", is_flag=True, help="Read also what has not changed since the last import.")
@click.option(
    "--metrics/--no-metrics",
    default=True,
    help="Compute the metrics that are for afterwards, or take the records only.  [default: compute them]",
)
@_embeddings
@_output
@_as_json
def import_(
    targets: tuple[str, ...],
    output: Path | None,
    everything: bool,
    again: bool,
    metrics: bool,
    embeddings: str | None,
    as_json: bool,
) -> int:
    """Take records, or files from elsewhere, into the database.

    From elsewhere come logs of the earlier Pidgin (.jsonl) and plain transcripts (.txt, with a line `Name 1:` or
    `### Name 1 ###` before each message). They become experiments of the output root first.

    \b
    Example:
      pidgin import k3v9x2ab
      pidgin import --all
      pidgin import ~/transcripts
      pidgin import k3v9x2ab --embeddings openai:text-embedding-3-small
    """
    from .database import import_records

    if embeddings is not None and not metrics:
        raise click.UsageError("--embeddings is for metrics, and --no-metrics is for none.")
    return import_records(
        targets, output, everything=everything, again=again, metrics=metrics, embeddings=embeddings, as_json=as_json
    )


@cli.command()
@click.argument("sql")
@_output
@_as_json
@click.option("--csv", "as_csv", is_flag=True, help='Print comma-separated values; NULL is empty, empty text "".')
@click.option("--parquet", "as_parquet", is_flag=True, help="Write a Parquet file; needs --to.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Write the answer there.")
def query(sql: str, output: Path | None, as_json: bool, as_csv: bool, as_parquet: bool, to: Path | None) -> None:
    """Ask the database in SQL.

    A query reads the tables and nothing else; - takes it from standard input.

    \b
    Example:
      pidgin query "FROM dashboard"
      pidgin query "SELECT agent_id, avg(length(content)) FROM messages GROUP BY ALL" --csv
    """
    from .database import ask_database

    if as_json + as_csv + as_parquet > 1:
        raise click.UsageError("--json, --csv and --parquet are three ways to give the same; choose one.")
    kind: Literal["table", "json", "csv", "parquet"] = "table"
    if as_json or as_csv or as_parquet:
        kind = "json" if as_json else "csv" if as_csv else "parquet"
    ask_database(sql, output, kind=kind, to=to)


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--metrics", is_flag=True, help="Compute metrics again, too; takes as long as it did at first.")
@_output
@_as_json
def verify(target: str | None, output: Path | None, metrics: bool, as_json: bool) -> int:
    """Compare records with the database, word by word.

    Without a name, all of them; by count and by digest, too. Also replays what the agents were sent against the digests
    in the record. Exit status 1: something differs.

    \b
    Example:
      pidgin verify k3v9x2ab
    """
    from .database import verify_records

    return verify_records(target, output, metrics=metrics, as_json=as_json)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@click.option("--emoji", is_flag=True, help="Emoji instead of words.")
@click.option("--by-arm", is_flag=True, help="A table for each arm.")
@click.option("-n", "--rows", type=click.IntRange(min=1), default=30, show_default=True, help="Rows of each table.")
@click.option(
    "--sort",
    type=click.Choice(["mean", "present", "median", "max"]),
    help="Column to sort by.  [default: mean; of emoji, present]",
)
@click.option("--stop-words", is_flag=True, help="Keep stop words in.")
@click.option("--all", "everything", is_flag=True, help="Count invalid and unfinished conversations, too.")
@_output
@_as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def words(target: str, output: Path | None, **options: Any) -> None:
    """Count words or emoji per transcript.

    Gives the mean, the share of transcripts that have any, the median and the most.

    \b
    Example:
      pidgin words k3v9x2ab
      pidgin words k3v9x2ab --emoji --by-arm -n 12
    """
    from .analysis import show_words

    if options["as_json"] and options["as_csv"]:
        raise click.UsageError("--json and --csv are two ways to give the same; choose one.")
    if options["emoji"] and options["stop_words"]:
        raise click.UsageError("--stop-words is for words; leave it or --emoji out.")
    show_words(target, output, options)


@cli.command()
@click.argument("one", metavar="A", shell_complete=_complete_experiment)
@click.argument("other", metavar="[B]", required=False, shell_complete=_complete_experiment)
@click.option("--metric", "metrics", multiple=True, metavar="NAME|all", help="Measure; may be given again.")
@click.option("--primary", metavar="NAME", help="The measure named in advance: it is left out of the family.")
@click.option("--by", metavar="KEY", help="Compare by this swept value: of A alone its values, else A and B at each.")
@click.option("--pair-by", metavar="KEY", help="Pair conversations that have the same value, such as repetition.")
@click.option(
    "--reduce",
    type=click.Choice(["mean", "first3", "last3", "delta", "slope", "auc", "peak", "peak_turn", "lag1_autocorr"]),
    default="mean",
    show_default=True,
    help="How the messages of a conversation become one number.",
)
@click.option("--mixed", is_flag=True, help="Also model measures turn by turn (needs the analysis extra).")
@click.option("--yekutieli", is_flag=True, help="Adjust p for tests that depend on each other in any way.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws.")
@click.option("--all", "everything", is_flag=True, help="Take in invalid and unfinished conversations, too.")
@_output
@_as_json
@click.option("--html", is_flag=True, help="As one HTML page that needs nothing else.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Write the page there.")
def compare(one: str, other: str | None, output: Path | None, **options: Any) -> int:
    """Compare experiments or arms: effects, intervals, p values.

    A and B are experiments, or a part of one: EXPERIMENT:KEY=VALUE, where KEY is a swept name, arm, seating,
    repetition, first_speaker, opening or seed. What is new in their records is imported first.

    \b
    Example:
      pidgin compare k3v9x2ab p0q8r7st
      pidgin compare k3v9x2ab --by a.temperature --metric words --metric convergence
      pidgin compare k3v9x2ab:a.temperature=0.2 k3v9x2ab:a.temperature=1 --pair-by repetition
      pidgin compare k3v9x2ab p0q8r7st --html --to effects.html
    """
    from .analysis import compare as show_effects

    if options["html"] and options["as_json"]:
        raise click.UsageError("--html and --json are two ways to show the same; leave one of them out.")
    return show_effects((one, other), output, options)


@cli.command()
@click.option("--effect", type=_Number(0, min_open=True), help="Difference of means, in --sd's units or else in sds.")
@click.option("--incidence", type=_Number(0, 1), nargs=2, metavar="P1 P2", help="Shares in the two arms, 0 to 1.")
@click.option("--hazard-ratio", type=_Number(0, min_open=True), help="Of a time to an event.")
@click.option("--sd", type=_Number(0, min_open=True), help="Of conversation values; with --icc, of turns.")
@click.option("--icc", type=_Number(0, 1), help="Intra-class correlation of turns within a conversation.")
@click.option("--turns", type=click.IntRange(min=1), help="Turns that a conversation value is the mean of.")
@click.option("--event-share", type=_Number(0, 1, min_open=True), help="Share of conversations that have the event.")
@click.option("--n", "n", type=click.IntRange(min=2), help="Conversations per arm.")
@click.option("--power", type=_Number(0, 1, min_open=True, max_open=True), help="To find it.  [default: 0.8]")
@click.option(
    "--alpha", type=_Number(0, 1, min_open=True, max_open=True), default=0.05, show_default=True, help="Level."
)
@_as_json
def power(**options: Any) -> None:
    """Say how many conversations an effect takes.

    Or, with --n, what a number of them can find.

    \b
    Example:
      pidgin power --effect 0.5
      pidgin power --effect 4 --sd 12 --icc 0.3 --turns 30 --power 0.9
      pidgin power --incidence 0.1 0.3
      pidgin power --n 20
    """
    from .analysis import plan_power

    plan_power(options)


_STEPS = ("import", "metrics", "transcripts", "readme", "notebook", "figures", "report")


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@click.option("--only", type=click.Choice(_STEPS), multiple=True, help="Only this step; may be given more than once.")
@_embeddings
@_output
@_as_json
def report(target: str, output: Path | None, only: tuple[str, ...], embeddings: str | None, as_json: bool) -> int:
    """Make the pages of an experiment: report.html and the rest.

    The steps are import, metrics, transcripts, README, notebook, figures and report.html. All of it can be made again
    at any time; what fails is told of and holds up nothing else (exit status 1).

    \b
    Example:
      pidgin report k3v9x2ab
      pidgin report k3v9x2ab --only figures --only report
    """
    from .reports import report as make

    return make(target, output, only=only, embeddings=embeddings, as_json=as_json)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@_output
@click.option("--to", type=click.Path(path_type=Path), metavar="PATH", help="A file; of an experiment, a folder.")
def transcript(target: str, output: Path | None, to: Path | None) -> int:
    """Print a conversation as Markdown.

    Of an experiment, writes a page for every conversation into transcripts/. What models wrote is escaped, so that it
    can be rendered anywhere. Made from the record alone.

    \b
    Example:
      pidgin transcript k3v9x2ab-1 --to talk.md
      pidgin transcript k3v9x2ab
    """
    from .reports import write_transcript

    return write_transcript(target, output, to)


@cli.command()
@click.argument("target", shell_complete=_complete_experiment)
@_output
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Put a copy there as well.")
def notebook(target: str, output: Path | None, to: Path | None) -> int:
    """Make a notebook that asks the database and draws.

    It looks for the database beside the experiment's folder, so a copy elsewhere has to be told where that is.

    \b
    Example:
      pidgin notebook k3v9x2ab
    """
    from .reports import write_notebook

    return write_notebook(target, output, to)


@cli.command()
@click.argument("targets", nargs=-1, metavar="[EXPERIMENT]...", shell_complete=_complete_experiment)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "csv", "jsonl", "hf", "inspect"]),
    default="parquet",
    show_default=True,
    help="Tables as files; hf: a Hugging Face dataset with its card; inspect: logs for Inspect's viewer.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A folder that is not there yet, or empty. [default: export_<id>_<format>]",
)
@click.option("--all", "everything", is_flag=True, help="All experiments.")
@click.option("--redact", is_flag=True, help="Put marks in the place of keys, e-mail addresses, home paths and hosts.")
@click.option("--force", is_flag=True, help="Replace an earlier export in that folder.")
@_output
def export(targets: tuple[str, ...], output: Path | None, to: Path | None, **options: Any) -> None:
    """Write Parquet, CSV, JSONL, Hugging Face or Inspect files.

    What the columns mean and the hash of every file stand beside them. What is new in the records is imported first.
    Invalid conversations are in it, marked as such and counted.

    \b
    Example:
      pidgin export k3v9x2ab --format csv
      pidgin export k3v9x2ab --format inspect --to logs && inspect view --log-dir logs
      pidgin export --all --format hf --redact --to dataset
    """
    from .export import export_records

    export_records(targets, output, to=to, **options)


@cli.command()
@click.argument("query", required=False)
@click.option("--provider", metavar="NAME", help="Of one provider only.")
@click.option("--all", "everything", is_flag=True, help="Everything that is listed, not only what has a short name.")
@click.option("--remote", is_flag=True, help="Ask the provider what it serves.")
@click.option("--loaded", is_flag=True, help="What Ollama holds in memory now.")
@_as_json
def models(query: str | None, **options: Any) -> None:
    """List models: window, prices, whether the key is there.

    Any PROVIDER:MODEL may be used, listed or not; `?` is not known. Prices are USD per million tokens.

    \b
    Example:
      pidgin models sonnet
      pidgin models --provider ollama --remote
    """
    from .models import list_models

    list_models(query, **options)


@cli.group()
def keys() -> None:
    """Keep API keys in the system's keyring.

    A key in the environment always wins.

    \b
    Example:
      pidgin keys set anthropic
    """


@keys.command("set")
@click.argument("provider")
def keys_set(provider: str) -> None:
    """Ask for a provider's key, or read it from a pipe.

    \b
    Example:
      pidgin keys set openai
    """
    from .models import set_key

    set_key(provider)


@keys.command("list")
@_as_json
def keys_list(as_json: bool) -> None:
    """Say which keys are there and where; never the keys.

    \b
    Example:
      pidgin keys list
    """
    from .models import list_keys

    list_keys(as_json=as_json)


@keys.command("remove")
@click.argument("provider")
def keys_remove(provider: str) -> None:
    """Forget a provider's key.

    \b
    Example:
      pidgin keys remove openai
    """
    from .models import remove_keys

    remove_keys(provider)


@cli.command()
@_as_json
def config(as_json: bool) -> None:
    """Show where the settings are (config.toml) and what they say.

    \b
    Example:
      pidgin config
    """
    from .models import show_config

    show_config(as_json=as_json)


@cli.group()
def cache() -> None:
    """Look at or empty what is kept: replies, and vectors of texts.

    \b
    Example:
      pidgin cache stats
    """


def _of_the_caches(command: Callable[..., Any]) -> Callable[..., Any]:
    kinds = click.Choice(["replies", "vectors"])
    return click.option("--only", type=kinds, help="Leave the other cache as it is.")(command)


@cache.command("stats")
@_as_json
def cache_stats(as_json: bool) -> None:
    """Say what is kept, where, and how large it is.

    \b
    Example:
      pidgin cache stats
    """
    from .ask import show_cache

    show_cache(as_json=as_json)


@cache.command("clear")
@_of_the_caches
def cache_clear(only: str | None) -> None:
    """Forget all replies and vectors.

    \b
    Example:
      pidgin cache clear
    """
    from .ask import clear_cache

    clear_cache(only)


@cache.command("prune")
@_of_the_caches
@click.option("--max-mb", type=_Number(0, min_open=True), help="Of each cache keep the newest, so many megabytes.")
@click.option("--older-than-days", type=_Number(0), help="Forget what is older.")
def cache_prune(only: str | None, max_mb: float | None, older_than_days: float | None) -> None:
    """Forget old replies and vectors.

    \b
    Example:
      pidgin cache prune --older-than-days 30
    """
    from .ask import prune_cache

    prune_cache(only, max_mb, older_than_days)


@cli.command()
@click.argument("prompt")
@click.option("-m", "--model", required=True, metavar="MODEL", shell_complete=_complete_model, help="Who is asked.")
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@click.option("--temperature", type=_Number(0, 2), help="Sampling temperature, 0 to 2.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Upper end of the reply.")
@click.option("--think", is_flag=True, help="Ask the model to think first; --json shows what it thought.")
@click.option("--show-thinking", is_flag=True, help="Show what it thinks before the answer, dimmed; piped, on stderr.")
@click.option("--cache/--no-cache", default=False, help="Answer from the cache what was asked before.")
@click.option("-y", "--yes", is_flag=True, help="Start Ollama and download a missing model without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON.")
def ask(prompt: str, **options: Any) -> int:
    """Ask one model one question. Piped, it prints the bare answer. PROMPT may be @FILE or - for standard input.

    \b
    Example:
      pidgin ask "Why is the sky blue?" -m claude
      git diff | pidgin ask - -m gpt -s "Review this change."
    """
    from .ask import ask as put

    return put(prompt, options)


@cli.command()
@_output
@_as_json
@click.option("--install-ollama", is_flag=True, help="Show Ollama's own install command, and run it after a yes.")
def doctor(output: Path | None, as_json: bool, install_ollama: bool) -> int:
    """Say what is installed and which keys are there.

    Also whether Ollama is up and the output can be written. Exit status 1: something is in the way.

    \b
    Example:
      pidgin doctor
    """
    from .doctor import examine, offer_ollama

    if install_ollama:
        return offer_ollama()
    return examine(output, as_json=as_json)


def _complete_template(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from .specs import template_names

    return [name for name in template_names() if name.startswith(incomplete)]


@cli.group()
def spec() -> None:
    """Look at specs before they run.

    \b
    Example:
      pidgin spec check study.yaml
    """


@spec.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@_output
def spec_check(files: tuple[Path, ...], output: Path | None) -> int:
    """Say everything that is wrong with a spec.

    Of one that is right, how many arms, conversations and calls it makes. What a branch leaves is looked up in the
    output root; where there is none, a note says so.

    \b
    Example:
      pidgin spec check study.yaml
    """
    from .specs import check_specs

    return check_specs(files, output)


@spec.command("schema")
def spec_schema() -> None:
    """Print the JSON Schema of a spec.

    Editors complete its keys from it.

    \b
    Example:
      pidgin spec schema > pidgin.schema.json
    """
    from .specs import print_schema

    print_schema()


@cli.command()
@click.argument("template", required=False, shell_complete=_complete_template)
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Where it goes.  [default: TEMPLATE.yaml]")
@click.option("--list", "listing", is_flag=True, help="List the templates.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@_as_json
def init(template: str | None, to: Path | None, listing: bool, force: bool, as_json: bool) -> None:
    """Write a spec to start from.

    Without a name that is a first experiment.

    \b
    Example:
      pidgin init --list
      pidgin init temperature-study --to study.yaml
    """
    from .specs import write_template

    if as_json and not listing:
        raise click.UsageError("--json goes with --list.")
    write_template(template, to, listing=listing, as_json=as_json, force=force)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      eval "$(pidgin completion bash)"
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None, "click knows these three"
    click.echo(maker(cli, {}, "pidgin", "_PIDGIN_COMPLETE").source())
