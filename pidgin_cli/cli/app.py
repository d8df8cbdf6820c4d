"""The command tree. Imports click and nothing slow; every command loads what it needs when it runs."""

import difflib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


class _Commands(click.Group):
    """Names the nearest command when there is no such one."""

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


def _per_agent(
    _ctx: click.Context, param: click.Parameter, values: tuple[str, ...], convert: Callable[[str], Any] = str
) -> dict[str, Any]:
    found = {}
    for value in values:
        agent_id, _, text = value.partition("=")
        try:
            found[agent_id] = convert(text)
        except ValueError:
            name = f"{getattr(param, 'family', '')}{agent_id}"
            raise click.BadParameter(f"{text!r} is not a number.", param_hint=name) from None
    return found


def _per_agent_number(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    return _per_agent(ctx, param, values, float)


class _Number(click.FloatRange):
    """A range in which `nan` and `inf` are no numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number in this range.", param, ctx)
        return number


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
        click.option("--show-thinking", is_flag=True, help="Show what models think, dimmed (chat display)."),
        click.option("--show-system-prompts", is_flag=True, help="Show the system prompts first (chat display)."),
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "--version", package_name="pidgin-cli", prog_name="pidgin")
def cli() -> None:
    """A laboratory for conversations between language models.

    \b
    Example:
      pidgin chat -a local:test -b local:test -t 3
    """


@cli.command(cls=_PerAgentCommand)
@click.option("-a", "--agent-a", metavar="MODEL", shell_complete=_complete_model, help="Model of agent a.")
@click.option("-b", "--agent-b", metavar="MODEL", shell_complete=_complete_model, help="Model of agent b.")
@click.option("--agent", "agents", multiple=True, metavar="ID=MODEL", help="One more agent, such as c=gpt.")
@click.option("-p", "--prompt", metavar="TEXT", help="Opening, given to every agent; @FILE or - for standard input.")
@click.option("-t", "--turns", type=click.IntRange(min=1), default=10, show_default=True, help="Rounds.")
@click.option("-n", "--name", help="Name of the record.")
@_output
@click.option(
    "-w", "--awareness", metavar="PRESET|FILE", help="none, basic, firm, research, backrooms, or a YAML file."
)
@click.option(
    "--awareness-a",
    "awareness_of",
    cls=_PerAgentOption,
    callback=_per_agent,
    metavar="PRESET|FILE",
    help="The same for one agent.",
)
@click.option("--temperature", type=_Number(0, 2), help="Sampling temperature of all agents, 0 to 2.")
@click.option(
    "--temp-a", "temperature_of", cls=_PerAgentOption, callback=_per_agent_number, metavar="T", help="Of one agent."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Upper end of one reply.")
@click.option("--think", is_flag=True, help="Ask all models to think first, and show it.")
@click.option("--think-a", "think_of", cls=_PerAgentOption, bare=True, callback=_per_agent, help="Ask one agent's.")
@click.option("--think-budget", type=click.IntRange(min=1), help="Thinking tokens at most; implies --think.")
@click.option("--effort", metavar="WORD", help="Reasoning effort, in the provider's words, such as low or high.")
@click.option(
    "--thinking-visible",
    type=click.Choice(["own", "partner", "nobody"]),
    default="nobody",
    show_default=True,
    help="Who is sent what an agent thought: itself, the others, or nobody.",
)
@click.option(
    "--lenient", is_flag=True, help="Leave out, with a recorded warning, settings that a model does not take."
)
@click.option("--cache", is_flag=True, help="Answer from the cache what this very conversation asked before.")
@click.option("--choose-names", is_flag=True, help="Agents choose their names first.")
@click.option("--prompt-tag", default="HUMAN", show_default=True, help='Stands before the opening; "" for nothing.')
@click.option(
    "--order",
    type=click.Choice(["alternate", "random"]),
    default="alternate",
    show_default=True,
    help="Who speaks when within a turn.",
)
@click.option("--first", metavar="ID", help="Who opens: an agent's id, or random.  [default: the first agent]")
@click.option("--stop-phrase", metavar="TEXT", help="An agent that says this ends the conversation.")
@click.option("--seed", type=int, help="All draws derive from it.  [default: drawn and recorded]")
@click.option(
    "--context",
    type=click.Choice(["stop", "window", "summarise"]),
    default="stop",
    show_default=True,
    help="When the context window is full: end, drop the oldest turns, or summarise them.",
)
@click.option("--context-limit", type=click.IntRange(min=1), help="Tokens, instead of the models' own windows.")
@click.option("--allow-truncation", is_flag=True, help="Short for --context window.")
@click.option("--meditation", is_flag=True, help="Agent a faces a partner that only ever stays silent.")
@click.option("--timeout-connect", type=_Number(0), metavar="S", help="Seconds; 0: no limit.  [default: 15]")
@click.option("--timeout-first-token", type=_Number(0), metavar="S", help="Seconds.  [default: 300]")
@click.option("--timeout-gap", type=_Number(0), metavar="S", help="Between two pieces.  [default: 120]")
@click.option("--timeout-total", type=_Number(0), metavar="S", help="Whole reply.  [default: no limit]")
@click.option("--retries", type=click.IntRange(0), help="Times a failed request is tried again.  [default: 5]")
@click.option(
    "--durability",
    type=click.Choice(["message", "strict", "none"]),
    default="message",
    show_default=True,
    help="When the record is on the disk: within 0.2 s, before the next request, or when the system likes.",
)
@click.option("-y", "--yes", is_flag=True, help="Download a missing Ollama model without asking.")
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


@cli.command()
@click.argument("target", required=False, shell_complete=_complete_experiment)
@click.option("--all", "everything", is_flag=True, help="Go on with everything that can go on.")
@click.option("-y", "--yes", is_flag=True, help="Download a missing Ollama model without asking.")
@_output
@_display
def resume(target: str | None, **options: Any) -> int:
    """Go on with a conversation that was stopped, failed, or whose process died.

    TARGET is an id, the beginning of one, or a name. Nothing that is recorded is asked again.

    \b
    Example:
      pidgin resume k3v9x2ab
    """
    from .chat import resume as go_on

    _refuse_contradictions(options)
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
@click.argument("target", shell_complete=_complete_experiment)
@_output
@_as_json
@click.option("--show-thinking", is_flag=True, help="Show what models thought, dimmed.")
@click.option("--show-system-prompts", is_flag=True, help="Show the system prompts first (chat display).")
def show(target: str, output: Path | None, as_json: bool, **options: bool) -> None:
    """Show an experiment, or read a conversation.

    TARGET is an id, the beginning of one, a name, or the id of a conversation. --json gives the manifest, or the
    events of a conversation.

    \b
    Example:
      pidgin show k3v9x2ab
      pidgin show k3v9x2ab-1 --show-system-prompts
    """
    from .records import show_record

    show_record(target, output, as_json=as_json, **options)


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


@cli.command()
@click.argument("query", required=False)
@click.option("--provider", metavar="NAME", help="Of one provider only.")
@click.option("--all", "everything", is_flag=True, help="Everything that is listed, not only what has a short name.")
@click.option("--remote", is_flag=True, help="Ask the provider what it serves.")
@click.option("--loaded", is_flag=True, help="What Ollama holds in memory now.")
@_as_json
def models(query: str | None, **options: Any) -> None:
    """List models with what is known of them: window, prices, whether they think, whether the key is there.

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
    """Keep API keys in the system's keyring (the environment always wins).

    \b
    Example:
      pidgin keys set anthropic
    """


@keys.command("set")
@click.argument("provider")
def keys_set(provider: str) -> None:
    """Ask for a provider's key, or read it from a pipe, and keep it.

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
    """Look at or empty the response cache.

    \b
    Example:
      pidgin cache stats
    """


@cache.command("stats")
@_as_json
def cache_stats(as_json: bool) -> None:
    """Say how many replies are kept, where, and how large the file is.

    \b
    Example:
      pidgin cache stats
    """
    from .ask import show_cache

    show_cache(as_json=as_json)


@cache.command("clear")
def cache_clear() -> None:
    """Forget all replies.

    \b
    Example:
      pidgin cache clear
    """
    from .ask import clear_cache

    clear_cache()


@cache.command("prune")
@click.option("--max-mb", type=_Number(0, min_open=True), help="Keep the newest, at most so many megabytes.")
@click.option("--older-than-days", type=_Number(0), help="Forget what is older.")
def cache_prune(max_mb: float | None, older_than_days: float | None) -> None:
    """Forget old replies.

    \b
    Example:
      pidgin cache prune --older-than-days 30
    """
    from .ask import prune_cache

    prune_cache(max_mb, older_than_days)


@cli.command()
@click.argument("prompt")
@click.option("-m", "--model", required=True, metavar="MODEL", shell_complete=_complete_model, help="Who is asked.")
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@click.option("--temperature", type=_Number(0, 2), help="Sampling temperature, 0 to 2.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Upper end of the reply.")
@click.option("--think", is_flag=True, help="Ask the model to think first; --json shows what it thought.")
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
    """Say what is installed, which keys are there, whether Ollama is up and the output can be written.

    \b
    Example:
      pidgin doctor
    """
    from .doctor import examine, offer_ollama

    if install_ollama:
        return offer_ollama()
    return examine(output, as_json=as_json)


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
