"""Metrics and attractor detectors beside a conversation.

They see what was said and change nothing of it; what their findings lead to is the conductor's to do. The same messages
give the same values whenever they are taken in, so that a resumed conversation goes on with what an uninterrupted one
would have, and an import of a record without metrics computes what a live run would have written.
"""

from collections.abc import Iterable, Mapping
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
from pidgin_cli.spec.errors import nearest

__all__ = ["Watcher", "check_watch", "thresholds_of", "weights_of"]


def weights_of(spec: ConversationSpec) -> Weights:
    """Of the parts of the convergence score. Raises ValueError for a profile or a part that there is not."""
    policy = spec.convergence
    return custom(policy.weights) if policy.weights else PROFILES[policy.profile]


def thresholds_of(spec: ConversationSpec) -> Thresholds:
    """What the detectors go by. Raises ValueError for a detector or a threshold that there is not."""
    for name in spec.detectors:
        if name not in DETECTORS:
            raise ValueError(f"no detector {name!r}; there are {', '.join(DETECTORS)}.{nearest(name, DETECTORS)}")
    given = {name: policy.thresholds for name, policy in spec.detectors.items() if policy.thresholds}
    try:
        return msgspec.convert(given, Thresholds, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def check_triggers(spec: ConversationSpec) -> None:
    """Raises ValueError for a metric, a detector or a state that no trigger can wait for."""
    for item in spec.interventions:
        if (when := item.when) is None:
            continue
        if when.metric is not None:
            metric = METRICS.get(when.metric)
            numbers = [name for name, one in METRICS.items() if one.when == "live" and one.level != "C"]
            if metric is None:
                raise ValueError(f"when: no metric {when.metric!r}.{nearest(when.metric, numbers)}")
            if when.metric not in numbers or metric.kind == "text":
                why = "is a text" if metric.kind == "text" else "is not known while the conversation runs"
                raise ValueError(f"when: {when.metric} {why}; choose another metric")
        for kind, wanted, known in (("detector", when.detector, DETECTORS), ("state", when.state, STATES)):
            if wanted is not None and wanted not in known:
                raise ValueError(f"when: no {kind} {wanted!r}; there are {', '.join(known)}.{nearest(wanted, known)}")


def check_watch(specs: Iterable[ConversationSpec]) -> None:
    """See that detectors, scores and the metrics of packages are there. Raises SpecError, a fault to a line."""
    load_plugins()
    faults: dict[str, None] = {}
    for spec in specs:
        checks = (("detectors", thresholds_of), ("convergence", weights_of), ("interventions", check_triggers))
        for key, check in checks:
            try:
                check(spec)
            except (ValueError, KeyError) as error:
                faults[f"{key}: {error}"] = None
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
