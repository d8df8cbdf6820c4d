"""`branch`, `replay`, `diff` and `show --tree`: going on differently, and comparing."""

import asyncio
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.tree import Tree

from pidgin_cli.conversation.branch import differences
from pidgin_cli.conversation.parting import parting, rows
from pidgin_cli.conversation.replay import Difference, Rebuilt, rebuild_requests
from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import LogError, NotFound, SpecError
from pidgin_cli.core.events import ConversationStartEvent, Event, InterventionEvent, MessageCompleteEvent
from pidgin_cli.core.types import Agent, ModelRequest, clean_text
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import Record, read_record
from pidgin_cli.experiments.library import settle
from pidgin_cli.experiments.lineage import Branch, Fork, branches, fork, prefix, whole
from pidgin_cli.experiments.preflight import check_models, check_origin, recording
from pidgin_cli.experiments.runner import create_experiment, find_log, spec_of
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.diff import Compared, print_diff, render_html
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, effective_parameters, missing_key, split_model
from pidgin_cli.reports.text import count
from pidgin_cli.spec.catalogue import context_window
from pidgin_cli.spec.conversation import ConversationSpec, DetectorPolicy, Intervention, Origin
from pidgin_cli.spec.experiment import ExperimentSpec, check, expand, resolve, to_yaml

from .agents import checked_text
from .chat import converse, note, note_namesakes, read_prompt
from .records import existing_root

__all__ = ["branch", "diff", "replay", "show_tree"]

SHOWN_DIFFERENCES = 20
NO_KEY = "none-needed"
VALUE_CELLS = 60
_LIKE_AN_ID = re.compile(r"[a-z][a-z0-9]{0,15}")


# branch


def branch(target: str, options: dict[str, Any]) -> int:
    """Fork a recorded conversation and run what comes of it, or save its spec. Gives the exit status."""
    use_person_settings()
    root = existing_root(options["output"])
    start = _start(read_record(find_log(root, target)), target)
    origin = Origin(start.conversation_id or "", options["turn"])
    found = fork(root, origin)
    wanted = check(_branch_data(found, origin, options), "branch")
    spec, notices = resolve(wanted, PROVIDERS)
    for notice in [*notices, *check_origin(root, spec, "branch")]:
        note(notice)
    if (path := options["save_spec"]) is not None:
        if path == Path("-"):
            click.echo(to_yaml(spec), nl=False)
        else:
            _save(path, to_yaml(spec), f"run it with: pidgin run {path}")
        return 0
    _refuse_taken(root, wanted)
    check_models(_expanded(spec), root)
    root.prepare()
    note_namesakes(root, spec.name)
    if spec.repetitions > 1:
        from .run import launch

        with root.naming():
            _refuse_taken(root, wanted)
            folder = create_experiment(root, spec)
        return launch(root, folder, options | {"detach": False, "retry_failed": False})
    return asyncio.run(converse(root, spec, None, options))


def _refuse_taken(root: OutputRoot, spec: ExperimentSpec) -> None:
    """Raises SpecError or NotFound where the name of a branch is another experiment's."""
    folder, _, _ = settle(root, spec, PROVIDERS)
    if folder is not None:
        raise SpecError(
            f"the name {spec.name!r} is in use by experiment {folder.experiment_id}, which is this very branch; go on "
            f"with it: pidgin resume {folder.experiment_id}; or choose another name"
        )


def _expanded(spec: ExperimentSpec) -> list[ConversationSpec]:
    return list(expand(spec, "").values())


def _start(record: Record, name: str) -> ConversationStartEvent:
    start = next((event for event in record.events if isinstance(event, ConversationStartEvent)), None)
    if start is None:
        raise LogError(f"the record of {name} does not begin with the start of the conversation")
    return start


def _branch_data(found: Fork, origin: Origin, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the recorded conversation was, as a spec holds it, with what the flags change."""
    old, turn = found.spec, origin.turn
    ids = list(found.agents)
    turns = options["turns"] or old.max_turns
    if turns <= turn:
        raise click.UsageError(
            f"{origin.conversation_id} has {old.max_turns} turns in all, and the branch leaves it after turn {turn}; "
            f"give -t {turn + 1} or more."
        )
    interventions = [*_at_fork(found, origin, options), *_still_to_come(found, turn, turns)]
    data: dict[str, Any] = {
        "branch": {"of": origin.conversation_id, "turn": turn},
        "agents": _agents(found, options),
        "prompt_tag": old.prompt_tag,
        "max_turns": turns,
        "repetitions": options["repetitions"],
        "order": old.order,
        "first": old.first,
        "choose_names": old.choose_names,
        "interventions": interventions,
        "context": {name: value for name, value in msgspec.structs.asdict(old.context).items() if value},
        "timeouts": msgspec.structs.asdict(old.timeouts),
        "retries": msgspec.structs.asdict(old.retries),
        "concurrency": old.concurrency,
        "durability": old.durability,
        "lenient": old.lenient or options["lenient"],
        "cache": old.cache,
        "metrics": old.metrics,
        "convergence": msgspec.structs.asdict(old.convergence),
        "detectors": {name: _policy(name, policy, interventions) for name, policy in old.detectors.items()},
    }
    if options["seed"] is not None:
        data["seed"] = options["seed"]
    if options["name"] is not None:
        data["name"] = checked_text("-n", options["name"], least=1, most=300)
    for family in ("temperature_of", "awareness_of", "system_prompt_of", "inject_of"):
        for agent_id in options[family]:
            _known(agent_id, ids, f"--{family.removesuffix('_of').replace('_', '-').replace('erature', '')}-{agent_id}")
    return data


def _known(agent_id: str, ids: list[str], flag: str) -> str:
    if agent_id not in ids:
        raise click.UsageError(f"{flag}: there is no agent {agent_id!r}, only {', '.join(ids)}.")
    return agent_id


def _agents(found: Fork, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = {agent_id: options[f"agent_{agent_id}"] for agent_id in "ab" if options[f"agent_{agent_id}"] is not None}
    for agent_id in models:
        _known(agent_id, list(found.agents), f"-{agent_id}")
    for text in options["agents"]:
        agent_id, equals, model = text.partition("=")
        if not equals or not model:
            raise click.BadParameter(f"{text!r} is not ID=MODEL, such as c=gpt.", param_hint="--agent")
        models[_known(agent_id, list(found.agents), "--agent")] = model
    return [_agent(agent, found.spec, models.get(agent.id), options) for agent in found.agents.values()]


def _agent(agent: Agent, spec: ConversationSpec, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": agent.id,
        "model": agent.model if model is None else checked_text(f"the model of agent {agent.id}", model),
        "name": agent.name,
        "system_prompt": agent.system_prompt,
        "awareness": _awareness(agent, spec),
        "thinking_visible": agent.thinking_visible,
        "stop_phrase": spec.stop_phrases.get(agent.id),
        **{name: value for name, value in msgspec.structs.asdict(agent.settings).items() if value is not None},
    }
    before = spec.agent(agent.id)
    if model is not None and agent.name == before.name and _named_after_model(before):
        del data["name"]
    temperature = options["temperature_of"].get(agent.id, options["temperature"])
    if temperature is not None:
        if not 0 <= temperature <= 2:
            raise click.BadParameter(f"{temperature:g} is not between 0 and 2.", param_hint=f"--temp-{agent.id}")
        data["temperature"] = temperature
    awareness = options["awareness_of"].get(agent.id, options["awareness"])
    if awareness is not None:
        data |= {"awareness": awareness, "system_prompt": None}
    prompt = options["system_prompt_of"].get(agent.id, options["system_prompt"])
    if prompt is not None:
        # An empty one takes the prompt away.
        data["system_prompt"] = read_prompt(prompt, "--system-prompt") if prompt else ""
    return data


def _awareness(agent: Agent, spec: ConversationSpec) -> dict[str, Any] | None:
    """The texts that the agent is given by turn, as they stand in the record; not looked up anew."""
    own = [item for item in spec.injections if item.agent_id == agent.id]
    if agent.awareness is None and not own:
        return None
    name = agent.awareness or own[0].source.removeprefix("awareness:")
    found: dict[str, Any] = {"name": name, "base": "none", "prompts": {item.turn: item.text for item in own}}
    if any(item.placement == "system" for item in own):
        found["placement"] = "system"
    return found


def _named_after_model(agent: Agent) -> bool:
    plain = agent.model.partition(":")[2].partition("?")[0].rpartition("/")[2][:40]
    return agent.name in (plain, f"{plain}-{agent.id}")


def _at_fork(found: Fork, origin: Origin, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What `--edit` and `--inject` do before the branch's first message."""
    turn, ids = origin.turn + 1, list(found.agents)
    said = [event for event in found.events if isinstance(event, MessageCompleteEvent)]
    for text in options["edit"]:
        if not said:
            raise click.UsageError("--edit: before turn 1 there is no message to edit; use --turn 1 or later.")
        agent_id, equals, words = text.partition("=")
        if not equals or agent_id not in ids:
            last = said[-1].agent_id
            if equals and _LIKE_AN_ID.fullmatch(agent_id):
                literally = f"--edit {last}={shlex.quote(one_line(text, VALUE_CELLS))}"
                raise click.UsageError(
                    f"--edit: there is no agent {agent_id!r}, only {', '.join(ids)}; if that is a part of the text, "
                    f"name the agent before it: {literally}"
                )
            agent_id, words = last, text
        if not any(event.agent_id == agent_id for event in said):
            raise click.UsageError(f"--edit: agent {agent_id!r} has said nothing before turn {turn}.")
        yield {"turn": turn, "edit": checked_text("--edit", words), "agent": agent_id}
    for text in options["inject"]:
        yield {"turn": turn, "inject": read_prompt(text, "--inject"), "to": ids}
    for agent_id, texts in options["inject_of"].items():
        for text in texts:
            yield {"turn": turn, "inject": read_prompt(text, f"--inject-{agent_id}"), "to": [agent_id]}


def _policy(name: str, policy: DetectorPolicy, interventions: list[dict[str, Any]]) -> dict[str, Any]:
    """What a detector leads to. One whose interventions are all done is recorded again."""
    data = msgspec.structs.asdict(policy)
    tied = any(one.get("when", {}).get("detector") == name for one in interventions)
    return data if policy.action != "intervene" or policy.text or tied else data | {"action": "record"}


def _still_to_come(found: Fork, turn: int, turns: int) -> Iterator[dict[str, Any]]:
    """The script after the fork. Who is silent beyond it stays silent, and what has been done counts."""
    starts = [number for number, event in enumerate(found.events) if isinstance(event, ConversationStartEvent)]
    own = found.events[starts[-1] :]  # what ancestors did is left out of this one's spec already
    done = [event for event in own if isinstance(event, InterventionEvent) and event.trigger is not None]
    for event in done:
        if event.kind == "mute" and (lasts := event.turn_number + (event.turns or 1) - 1 - turn) > 0 and turn < turns:
            yield {"turn": turn + 1, "mute": event.agent_id, "turns": lasts}
    for item in found.spec.interventions:
        begins, lasts = item.turn, item.turns
        if item.when is not None:
            times = len({event.turn_number for event in done if _did(item, event)})
            if times < item.times and turns > turn:
                when = {key: value for key, value in msgspec.structs.asdict(item.when).items() if value is not None}
                for one in _written(item, 0, lasts):
                    del one["turn"]
                    yield one | {"when": when, "times": item.times - times}
            continue
        if item.kind == "mute" and begins <= turn < begins + lasts - 1:
            lasts -= turn + 1 - begins
            begins = turn + 1
        if turn < begins <= turns:
            yield from _written(item, begins, lasts)


def _did(item: Intervention, event: InterventionEvent) -> bool:
    """Whether an event is what a triggered intervention did."""
    alike = {"inject": event.text, "edit": event.after, "swap_system_prompt": event.after}
    words = event.kind not in alike or alike[event.kind] == (None if item.text is None else clean_text(item.text)[0])
    model = event.kind != "swap_model" or event.after == item.model
    return event.kind == item.kind and event.trigger == str(item.when) and words and model


def _written(item: Intervention, turn: int, turns: int) -> Iterator[dict[str, Any]]:
    match item.kind:
        case "inject":
            found: dict[str, Any] = {"turn": turn, "inject": item.text, "to": list(item.agents)}
            yield found | ({} if item.placement == "user" else {"placement": item.placement})
        case "mute":
            yield {"turn": turn, "mute": list(item.agents), "turns": turns}
        case "edit" | "swap_system_prompt":
            yield from ({"turn": turn, item.kind: item.text, "agent": agent_id} for agent_id in item.agents)
        case "swap_model":
            yield from ({"turn": turn, item.kind: item.model, "agent": agent_id} for agent_id in item.agents)


def _save(path: Path, text: str, then: str) -> None:
    if path.exists():
        raise SpecError(f"{path} exists already; choose another name")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"{visible(str(path))} written; {visible(then)}")


# replay


def replay(target: str, output: Path | None, *, as_json: bool) -> int:
    """Rebuild every recorded request, and say where today's code would send something else. Gives the exit status."""
    use_person_settings()
    root = existing_root(output)
    log = find_log(root, target)
    record = read_record(log)
    for skipped in record.skipped:
        note(f"{log.name}, {skipped}")
    _start(record, target)
    spec = spec_of(record)
    assert spec is not None, "there is a start"
    shared: list[Event] = []
    if spec.origin is not None:
        try:
            shared = prefix(root, spec.origin)
        except (LogError, NotFound) as error:
            raise LogError(
                f"what {target} shares with its origin is not there, so nothing can be rebuilt: {error}"
            ) from (None)
    with _keys_not_needed():
        rebuilt = asyncio.run(_rebuild(root, spec, shared, record))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_plain(each) for each in rebuilt.differences]), indent=2))
        _tell_unchecked(rebuilt, err=True)
    else:
        _tell_replay(rebuilt)
    return 1 if rebuilt.differences or rebuilt.unchecked else 0


async def _rebuild(root: OutputRoot, spec: ConversationSpec, shared: list[Event], record: Record) -> Rebuilt:
    pool = ProviderPool(lambda source: recording(root, source))

    def parameters(agent: Agent, recorded: dict[str, Any]) -> dict[str, Any] | None:
        try:
            _, model = split_model(agent.model)
            adapter = pool.adapter(agent.model, spec.timeouts, agent.settings)
        except (SpecError, ImportError):
            return None
        # A server that is told its window may have said itself what it can do: that is a fact of then.
        told = (recorded.get("options") or {}).get("num_ctx")
        probe = ModelRequest(
            model=model,
            messages=(),
            system=agent.system_prompt,
            settings=agent.settings,
            context_window=told or spec.context.limit_tokens or context_window(agent.model),
            seed=spec.seed,
        )
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(effective_parameters(adapter, probe)))
        return found

    try:
        return rebuild_requests(spec, shared, record.events, parameters)
    finally:
        await pool.aclose()


@contextmanager
def _keys_not_needed() -> Iterator[None]:
    """SDKs want a key to begin with; nothing is sent here, so that any word will do."""
    given = [info.key_env[0] for info in PROVIDERS.values() if info.key_env and missing_key(info) is not None]
    os.environ.update(dict.fromkeys(given, NO_KEY))
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)


def _plain(difference: Difference) -> dict[str, Any]:
    return difference._asdict()


def _tell_replay(rebuilt: Rebuilt) -> None:
    found = rebuilt.differences
    for each in found[:SHOWN_DIFFERENCES]:
        where = f"turn {each.turn_number}"
        if each.message_index is not None:
            where += f", message {each.message_index} ({each.agent_id})"
        values = (one_line(msgspec.json.encode(value).decode(), VALUE_CELLS) for value in (each.recorded, each.rebuilt))
        click.echo(f"{where}: {visible(each.field)} was {next(values)}, would be {next(values)}")
    if len(found) > SHOWN_DIFFERENCES:
        click.echo(f"… and {count(len(found) - SHOWN_DIFFERENCES, 'difference')} more; all of them with --json")
    _tell_unchecked(rebuilt, err=False)
    told = count(rebuilt.requests, "request")
    click.echo(f"{told} rebuilt: {count(len(found), 'difference') if found else 'all as recorded'}")


def _tell_unchecked(rebuilt: Rebuilt, *, err: bool) -> None:
    if rebuilt.why is not None:
        left = f"; {count(rebuilt.unchecked, 'request')} could not be checked" if rebuilt.unchecked else ""
        click.echo(f"{visible(rebuilt.why)}{left}", err=err)
    for agent_id in rebuilt.parameters_unknown:
        click.echo(f"the parameters of agent {agent_id} could not be checked: its provider cannot be opened", err=err)


# diff


def diff(targets: tuple[str, str], output: Path | None, options: Mapping[str, Any]) -> int:
    """Show two conversations side by side from where they part. Gives the exit status."""
    if options["to"] is not None and not options["html"]:
        raise click.UsageError("--to is for --html; leave it out, or give both.")
    compared = compare(existing_root(output), targets)
    if options["as_json"]:
        _print_rows(compared, everything=options["everything"])
    elif options["html"]:
        page = render_html(compared, everything=options["everything"])
        if options["to"] is None:
            click.echo(page, nl=False)
        else:
            _save(options["to"], page, "open it in a browser")
    else:
        print_diff(make_console(), compared, everything=options["everything"])
    return 0


def compare(root: OutputRoot, targets: tuple[str, str]) -> Compared:
    """Two conversations with their settings and words. Raises NotFound or LogError."""
    specs, told, notes = [], [], []
    for target in targets:
        log = find_log(root, target)
        record = read_record(log)
        start = _start(record, target)
        events, missing = whole(root, record.events)
        if missing is not None:
            notes.append(f"{target}: what it shares with its origin is not there: {missing}")
        notes += [f"{log.name}, {skipped}" for skipped in record.skipped]
        specs.append(start)
        told.append(events)
    return Compared(
        (specs[0].conversation_id or targets[0], specs[1].conversation_id or targets[1]),
        differences(specs[0].spec, specs[1].spec),
        rows(*told),
        notes,
    )


def _print_rows(compared: Compared, *, everything: bool) -> None:
    found: list[dict[str, Any]] = [
        {"kind": "setting", "name": name, "a": values[0], "b": values[1]} for name, values in compared.settings.items()
    ]
    at = parting(compared.rows)
    for number, row in enumerate(compared.rows):
        if everything or (at is not None and number >= at):
            a, b = ([said._asdict() for said in side] for side in (row.one, row.other))
            place = {"turn_number": row.turn_number, "message_index": row.message_index}
            found.append({"kind": "row", **place, "same": row.same, "a": a, "b": b})
    for each in compared.notes:
        note(each)
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))


# The tree


def show_tree(target: str | None, output: Path | None, *, as_json: bool) -> None:
    """Print the trees of branches that a conversation, or any of an experiment, belongs to; without a target, all."""
    root = existing_root(output)
    trees = branches(root)
    wanted: set[str] = set()
    if target is not None:
        logs = root.find(target).logs()
        wanted = {target} if target in logs else set(logs)
        trees = [tree for tree in trees if wanted & set(_names(tree))]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_nested(tree) for tree in trees]), indent=2))
        return
    console = make_console()
    if not trees and target is None:
        console.print(f"There are no branches in {visible(str(root.experiments))}")
    elif not trees:
        console.print(f"{visible(target or '')} branches off nothing, and nothing branches off it")
    for tree in trees:
        console.print(_drawn(tree, wanted, Tree(_line(tree, wanted))))


def _names(tree: Branch) -> Iterator[str]:
    yield tree.conversation_id
    for child in tree.children:
        yield from _names(child)


def _nested(tree: Branch) -> dict[str, Any]:
    return tree._asdict() | {"children": [_nested(child) for child in tree.children]}


def _drawn(tree: Branch, wanted: set[str], into: Tree) -> Tree:
    for child in tree.children:
        _drawn(child, wanted, into.add(_line(child, wanted)))
    return into


def _line(tree: Branch, wanted: set[str]) -> str:
    where = "" if tree.turn is None else f"after turn {tree.turn}: "
    mark = " ←" if tree.conversation_id in wanted and len(wanted) == 1 else ""
    label = one_line(tree.label, VALUE_CELLS) if tree.there else "(its record is gone)"
    return f"{where}{visible(tree.conversation_id)}  {label}{mark}"
