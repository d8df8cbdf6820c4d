"""Metrics and attractor detectors beside a conversation.

They see what was said and change nothing of it; what their findings lead to is the conductor's to do. The same messages
give the same values whenever they are taken in, so that a resumed conversation goes on with what an uninterrupted one
would have, and an import of a record without metrics computes what a live run would have written.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import MessageCompleteEvent
from pidgin_cli.metrics.catalogue import METRICS, METRICS_VERSION, load_plugins
from pidgin_cli.metrics.convergence import PROFILES, Weights, custom
from pidgin_cli.metrics.detectors import DETECTORS, STATES, Action, Firing, Step, Thresholds, respond
from pidgin_cli.metrics.engine import Engine, Reply, wide
from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.errors import Fault, nearest

__all__ = ["Watcher", "check_watch", "thresholds_of", "watch_faults", "weights_of"]


def weights_of(spec: ConversationSpec) -> Weights:
    """Of the parts of the convergence score. Raises ValueError for a profile or a part that there is not."""
    policy = spec.convergence
    return custom(policy.weights) if policy.weights else PROFILES[policy.profile]


def thresholds_of(spec: ConversationSpec) -> Thresholds:
    """What the detectors go by. Raises ValueError for a threshold that there is not."""
    return _thresholds({name: policy.thresholds for name, policy in spec.detectors.items() if policy.thresholds})


def _thresholds(given: Mapping[str, Any]) -> Thresholds:
    try:
        return msgspec.convert(given, Thresholds, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def watch_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Detectors, thresholds, metrics and states in the data of a spec that there are not. Looks at nothing else."""
    load_plugins()
    detectors = data.get("detectors")
    for name, policy in detectors.items() if isinstance(detectors, Mapping) else ():
        if name not in DETECTORS:
            yield Fault(("detectors", str(name)), _missing("detector", name, DETECTORS))
        elif isinstance(policy, Mapping) and isinstance(given := policy.get("thresholds"), Mapping):
            try:
                _thresholds({name: given})
            except ValueError as error:
                yield Fault(("detectors", name, "thresholds"), str(error))
    interventions = data.get("interventions")
    for index, item in enumerate(interventions) if isinstance(interventions, list | tuple) else ():
        when = item.get("when") if isinstance(item, Mapping) else None
        for kind, wanted in when.items() if isinstance(when, Mapping) else ():
            if isinstance(wanted, str) and (fault := _unknown(kind, wanted)) is not None:
                yield Fault(("interventions", str(index), "when", kind), fault)


def _unknown(kind: str, wanted: str) -> str | None:
    """Why no trigger can wait for it, if none can."""
    if kind == "detector":
        return None if wanted in DETECTORS else _missing(kind, wanted, DETECTORS)
    if kind == "state":
        return None if wanted in STATES else _missing(kind, wanted, STATES)
    if kind != "metric":
        return None
    metric = METRICS.get(wanted)
    numbers = [name for name, one in METRICS.items() if one.when == "live" and one.level != "C"]
    if metric is None:
        return f"no metric {wanted!r}.{nearest(wanted, numbers)}"
    if metric.kind == "text":
        return f"{wanted} is a text; choose another metric"
    return None if wanted in numbers else f"{wanted} is not known while the conversation runs; choose another metric"


def _missing(kind: str, wanted: str, known: Iterable[str]) -> str:
    return f"no {kind} {wanted!r}; there are {', '.join(known)}.{nearest(wanted, known)}"


def check_watch(specs: Iterable[ConversationSpec]) -> None:
    """See that detectors, scores and the metrics of packages are there. Raises SpecError, a fault to a line."""
    faults: dict[str, None] = {}
    for spec in specs:
        waited_for = {item.when.detector for item in spec.interventions if item.when is not None}
        data = {
            "detectors": {
                name: {"thresholds": policy.thresholds}
                for name, policy in spec.detectors.items()
                if name in DETECTORS or name not in waited_for
            },
            "interventions": [{"when": item.when and msgspec.to_builtins(item.when)} for item in spec.interventions],
        }
        for fault in watch_faults(data):
            faults[f"{'when' if 'when' in fault.where else 'detectors'}: {fault.message}"] = None
        try:
            weights_of(spec)
        except (ValueError, KeyError) as error:
            faults[f"convergence: {error}"] = None
    if faults:
        raise SpecError("\n".join(faults))


class Watcher:
    """Takes every message of one conversation in, and tells what it measured at the end of a turn and of the whole."""

    def __init__(self, spec: ConversationSpec, names: Mapping[str, str], opening: str) -> None:
        """`names` maps agent ids to display names."""
        load_plugins()
        self._engine = Engine(names, opening=opening, weights=weights_of(spec), thresholds=thresholds_of(spec))
        self._of_turn: dict[str, dict[str, Any]] = {}
        self._turn = 0

    @property
    def step(self) -> Step | None:
        """What the detectors said at the last message."""
        return self._engine.step

    def take(self, event: MessageCompleteEvent) -> Step:
        """Measure the next message."""
        reply = Reply(
            usage=event.usage,
            timing=event.timing,
            finish_reason=event.finish_reason,
            cost_usd=event.cost,
            attempt=event.attempt,
        )
        values = self._engine.add(event.agent_id, event.message.content, reply=reply)
        if event.turn_number != self._turn:
            self._turn, self._of_turn = event.turn_number, {}
        self._of_turn[str(event.message_index)] = _known(values)
        assert self._engine.step is not None, "the engine has just taken a message"
        return self._engine.step

    def respond(self, spec: ConversationSpec) -> tuple[tuple[Firing, Action], ...]:
        """What fired at the last message, each with what the spec has done about it."""
        step = self._engine.step
        policy = {name: each.action for name, each in spec.detectors.items()}
        return () if step is None else respond(step.fired, policy).actions

    def turn_metrics(self, turn: int) -> dict[str, Any]:
        """Of the turn that ends now: versions, values of each message, and of the turn. What is not known is absent."""
        pairs = {f"convergence_{one}{other}": value for (one, other), value in self._pairs().items()}
        messages = self._of_turn if self._turn == turn else {}
        versions = {"version": METRICS_VERSION, "tokenizer": TOKENIZER_VERSION, "lexicon": LEXICON_VERSION}
        return {**versions, "messages": messages, "turn": _known(pairs)}

    def convergence(self) -> float | None:
        """Mean over all pairs of agents; None as soon as it cannot be computed for one."""
        values = list(self._pairs().values())
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def detectors(self) -> dict[str, Any]:
        """The state in which the conversation is, as the detectors see it."""
        step = self._engine.step
        if step is None:
            return {}
        return _known({"state": step.state, "period": step.period, "onset": step.onset}) | (
            {"active": list(step.active)} if step.active else {}
        )

    def conversation_metrics(self) -> dict[str, Any]:
        """Of the conversation as it stands, with agents as suffixes."""
        return _known(wide(self._engine.conversation()))

    def _pairs(self) -> dict[tuple[str, str], float | None]:
        return self._engine.turn_convergence()


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
