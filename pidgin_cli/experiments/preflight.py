"""What can be known to be wrong about models, and about where branches begin, before anything starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec.structs import replace

from pidgin_cli.conversation.recording import read_recording
from pidgin_cli.conversation.watching import check_watch
from pidgin_cli.core.errors import PidginError, SpecError
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.providers.keys import key_fault
from pidgin_cli.providers.registry import PROVIDERS, ProviderInfo, split_model, unsupported
from pidgin_cli.providers.replay import RecordedReply
from pidgin_cli.spec.catalogue import thinks
from pidgin_cli.spec.conversation import ConversationSpec, Origin
from pidgin_cli.spec.errors import tell
from pidgin_cli.spec.experiment import ExperimentSpec, located

from .lineage import fork, shared_by, unfit
from .runner import find_log

__all__ = ["check_models", "check_origin", "recording"]


def recording(root: OutputRoot, source: str) -> Mapping[str, Sequence[RecordedReply]]:
    """What `replay:<source>` says, by agent.

    Args:
        source: a conversation or experiment below `root`, or the path of a log.

    Raises:
        NotFound: there is no such record, or it is of a branch and what it comes from is not there.
        LogError: it cannot be read.
    """
    log = find_log(root, source)
    return read_recording(log, shared_by(root, log))


def check_origin(root: OutputRoot, spec: ExperimentSpec, source: Path | str) -> list[str]:
    """See that what a new experiment branches off is recorded that far, and fits it.

    Args:
        spec: resolved.
        source: its file, for the lines of faults; or what to call it.

    Returns:
        What is to be noticed: texts that the branches come too late for.

    Raises:
        NotFound: there is no such conversation, or it has not got as far as that turn.
        LogError: its record is damaged.
        SpecError: names are to be chosen that nobody chose in it, or awareness comes too late altogether.
    """
    if spec.branch is None:
        return []
    find_log(root, spec.branch.of)  # shows what there is instead
    faults, notices = unfit(spec, fork(root, Origin(spec.branch.of, spec.branch.turn)))
    if faults:
        raise SpecError(located(faults, source) if isinstance(source, Path) else tell(faults, source))
    return notices


def check_models(conversations: Iterable[ConversationSpec], root: OutputRoot, *, keys: bool = True) -> list[str]:
    """See that every model can be asked what the specs want of it. Keys come out of the keyring on the way.

    Args:
        keys: False where nothing will be asked: a missing key is then no fault, and is given back.

    Raises:
        SpecError: names every fault of every model, one to a line: a missing key, a wrong address or name, a record
            that cannot be replayed, and, unless a spec is lenient, settings that a model does not take.
    """

    conversations = list(conversations)
    check_watch(conversations)

    @cache
    def faults_of_provider(name: str) -> list[str]:
        return list(_unreachable(PROVIDERS[name]))

    @cache
    def faults_of_model(model_id: str, agent_id: str) -> list[str]:
        info, model = split_model(model_id)
        missing = key_fault_of(info.name)
        if missing is not None and keys:
            return [f"({model_id}) {missing}"]
        return [f"({model_id}): {fault}" for fault in _unservable(info, model, agent_id, root)]

    @cache
    def key_fault_of(name: str) -> str | None:
        return key_fault(PROVIDERS[name])

    found: dict[str, None] = {}  # a set that keeps its order
    keyless: dict[str, None] = {}
    for spec in conversations:
        models = [(f"agent {agent.id}", agent.id, agent.model) for agent in spec.agents]
        for change in spec.interventions:
            if change.model is not None:
                since = f"from turn {change.turn} on" if change.when is None else f"once {change.when}"
                models += [(f"agent {name}, {since},", name, change.model) for name in change.agents]
        if spec.context.model is not None:
            models.append(("the summaries", "", spec.context.model))
        for who, agent_id, model_id in models:
            if not keys and (missing := key_fault_of(split_model(model_id)[0].name)) is not None:
                keyless[f"{who} ({model_id}) {missing}"] = None
            found.update(dict.fromkeys(f"{who} {fault}" for fault in faults_of_model(model_id, agent_id)))
            found.update(dict.fromkeys(faults_of_provider(split_model(model_id)[0].name)))
        if spec.lenient:
            continue
        swapped = [
            replace(spec.agent(name), model=change.model)
            for change in spec.interventions
            if change.model is not None
            for name in change.agents
        ]
        for agent in (*spec.agents, *swapped):
            reasons = unsupported(split_model(agent.model)[0], agent, thinks=thinks(agent.model))
            hint = "leave it out, or give --lenient"
            found.update(dict.fromkeys(f"agent {agent.id}: {reason}; {hint}" for reason in reasons.values()))
    if found:
        raise SpecError("\n".join(found))
    return list(keyless)


def _unreachable(info: ProviderInfo) -> Iterator[str]:
    """What is wrong with a provider's address."""
    try:
        if info.adapter == PROVIDERS["ollama"].adapter:
            from pidgin_cli.providers.ollama_setup import place

            place(info)
        elif info.sdk is not None:
            from pidgin_cli.providers.wire import base_url

            base_url(info)
    except SpecError as error:
        yield str(error)


def _unservable(info: ProviderInfo, model: str, agent_id: str, root: OutputRoot) -> Iterator[str]:
    """What is wrong with the name of a model that runs in this process."""
    if info.name == "local":
        from pidgin_cli.providers.local import check_model

        try:
            check_model(model)
        except SpecError as error:
            yield str(error)
    elif info.name == "replay":
        source, _, wanted = model.partition("#")
        try:
            recorded = recording(root, source)
        except PidginError as error:
            yield str(error)
            return
        if (wanted or agent_id) not in recorded and agent_id:
            yield (
                f"nothing of agent {wanted or agent_id} is recorded there, only of {', '.join(recorded)}; "
                f"write replay:{source}#AGENT"
            )
