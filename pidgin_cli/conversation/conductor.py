"""The loop that holds a conversation."""

import asyncio
import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from pidgin_cli.core.errors import ContextLengthExceeded, LogError, ProviderError
from pidgin_cli.core.events import (
    SCHEMA_VERSION,
    AgentNamedEvent,
    AttractorEvent,
    ContextLimitEvent,
    ContextTruncationEvent,
    ConvergenceWarningEvent,
    ConversationBranchedEvent,
    ConversationEndEvent,
    ConversationPausedEvent,
    ConversationResumedEvent,
    ConversationStartEvent,
    ErrorEvent,
    Event,
    HistoryCompactedEvent,
    InterventionEvent,
    MessageAbandonedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    QuestionAbandonedEvent,
    QuestionEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TurnCompleteEvent,
    TurnStartEvent,
    View,
    WarningEvent,
)
from pidgin_cli.core.types import (
    Agent,
    AgentSettings,
    Delta,
    EndReason,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
    Purpose,
    ResponseFold,
    Role,
    Status,
    Timing,
    Usage,
    clean_text,
)
from pidgin_cli.eventlog.bus import EventBus
from pidgin_cli.eventlog.log import EventLog, Record
from pidgin_cli.providers.base import Provider
from pidgin_cli.providers.extra_rules import without
from pidgin_cli.providers.registry import (
    ProviderPool,
    at_home,
    effective_parameters,
    late_system,
    served_window,
    split_model,
    unsupported,
)
from pidgin_cli.providers.wrappers import RetryPolicy, close
from pidgin_cli.spec.catalogue import context_window, cost_usd, thinks
from pidgin_cli.spec.conversation import ConversationSpec, spec_hash

from .branch import differences
from .context import Room, first_turn_that_fits, room, summary_text
from .control import Amount, Control, Pause, Purse, Stop
from .delegates import (
    AiLoopErrorOccurred,
    AiLoopRequestPause,
    AiLoopRequestStop,
    AiLoopStarted,
    AiLoopStopped,
    AiProcessingStep,
    AiRequestPrepared,
    AiResponseReceived,
    DelegateManager,
    MessageCompleted,
    Payload,
    TurnCompleted,
    TurnStarted,
)
from .history import ConversationHistory, Sent
from .progress import SCRIPT, Progress
from .triggers import Due, Triggers

if TYPE_CHECKING:
    from .watching import Watcher

__all__ = ["Conductor", "Live", "Outcome"]

Live = Callable[[str, Delta | None], None]
"""Takes an agent's id and each piece of its reply as it arrives; None: what came so far is discarded."""

NAME_QUESTION = (
    "Before the conversation begins, choose a short name for yourself, one to three words. Answer with the name only."
)
SUMMARY_SYSTEM = "You condense conversations faithfully."
SUMMARY_QUESTION = (
    "Below is the earlier part of a conversation you take part in (your own lines are marked You). Summarise it in at "
    "most 200 words, in the second person, so that you can carry on from the summary alone: what was said by whom, "
    "what was agreed, and where it was heading."
)
SUMMARY_MAX_TOKENS = 1024
SUMMARY_MAX_TOKENS_ON_RETRY = 4096
"""For a summary that was cut: models that think write after it."""

_NAME_PHRASES = re.compile(
    r"^(?:(?:sure|okay|ok|certainly|of course|hello|hi)[,.!]*\s+)?"
    r"(?:(?:i(?:'ll|'d like to| will| would like to)?\s+(?:be called|be|go by|go with|choose|pick|call myself)"
    r"(?: the name)?|i(?:'m| am)(?: called)?|my (?:chosen )?name (?:is|will be)|(?:you can |please )?call me|name)"
    r"\s*:?\s+)?",
    re.IGNORECASE,
)
_NAME_MARKED = re.compile(r"""(?:\*\*|["“«`])([^*"“”«»`]+)(?:\*\*|["”»`])""")
_TERMINAL_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_FRAME_TOKENS = 32
"""More than any chat template puts around one message."""
_NOTHING = Amount(0, 0.0)

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How a conversation ended."""

    status: Status
    end_reason: EndReason
    error: str | None = None


class _Seat(NamedTuple):
    agent: Agent
    provider: Provider
    policy: RetryPolicy
    model: str
    parameters: dict[str, Any]
    window: int | None
    at_home: bool


class _Counted(NamedTuple):
    """A prompt whose tokens a provider has counted."""

    model: str
    size: int
    entries: int
    tokens: int


class Conductor:
    """Holds one conversation from where its record stands to its end.

    Every fact is published on `bus`, whose first subscriber is the log, before the next request goes out. The record
    alone decides what happens next: see `Progress`.
    """

    def __init__(
        self,
        spec: ConversationSpec,
        *,
        conversation_id: str,
        providers: ProviderPool,
        log: EventLog,
        bus: EventBus | None = None,
        control: Control | None = None,
        live: Live | None = None,
        record: Record | None = None,
        resumed_by: str = "resume",
        purse: Purse | None = None,
        prefix: Sequence[Event] = (),
    ) -> None:
        """
        Args:
            prefix: of a branch, what it shares with other conversations: see `experiments.lineage.prefix`.
            purse: what the conversation may use; None: whatever it needs.
            live: receives pieces of replies while they stream.
            record: what the log already holds; the conversation goes on from there.
            resumed_by: who asked for going on, for the record.
        """
        if prefix:  # a branch's own spec need not know how the conversation began
            began = next(event for event in prefix if isinstance(event, ConversationStartEvent))
            spec = replace(spec, opening=began.opening)
        self.spec = spec
        self.conversation_id = conversation_id
        self.bus = bus or EventBus()
        self.control = control or Control()
        self.progress = Progress(spec)
        self._log = log
        self._live = live
        self.record = record
        self._resumed_by = resumed_by
        if (spec.origin is None) != (not prefix):
            raise ValueError("a prefix belongs to a spec with an origin, and the other way round")
        self._prefix = prefix
        self._delegates = DelegateManager(self._obey)
        self._delegate_pause: str | None = None
        self._paused = False
        self._providers = providers
        self._purse = purse
        self._counted: dict[str, _Counted] = {}
        self._watcher: Watcher | None = None
        self._seats: dict[str, _Seat] = {}
        self._spec_hash = spec_hash(spec.to_json())
        self.bus.subscribe(log.append, essential=True)

    def get_delegate_manager(self) -> DelegateManager:
        """Where delegates are registered."""
        return self._delegates

    @property
    def history(self) -> ConversationHistory:
        return self.progress.history

    # The loop

    async def run(self) -> Outcome:
        """Talk until the end, and say how it ended.

        Raises:
            LogError: the record cannot be written; what was written stays and can be resumed.
            CancelledError: cancelled from outside; the record has no end and can be resumed.
        """
        self.control.attach()
        try:
            with self._providers.running(_models(self.spec)):
                outcome = await self._until_end()
        finally:
            self.control.detach()
            self._delegates.close()
        return outcome

    async def _until_end(self) -> Outcome:
        try:
            await self._begin()
            reason = await self._talk()
            outcome = Outcome(_status(reason), reason)
        except Stop as stop:
            outcome = Outcome(_status(stop.reason), stop.reason)
        except ProviderError as error:
            outcome = Outcome(Status.FAILED, EndReason.PROVIDER_ERROR, f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            stopped = self.control.stopped_now()
            if stopped is None:
                self._log.flush()
                raise
            outcome = Outcome(_status(stopped.reason), stopped.reason)
        except LogError:
            raise
        except Exception as error:
            _log.exception("conversation %s broke", self.conversation_id)
            self._publish(ErrorEvent(error=type(error).__name__, message=str(error), where="conductor"))
            outcome = Outcome(Status.FAILED, EndReason.HARNESS_ERROR, f"{type(error).__name__}: {error}")
        self.control.detach()  # from here on there is nothing left to stop
        if outcome.status is Status.STOPPED:
            self._inject_from_outside()  # what somebody said last is there when the conversation goes on
        self._finish(outcome)
        await self._log.commit()
        return outcome

    async def _talk(self) -> EndReason:
        progress = self.progress
        if (ending := self._ending()) is not None:  # and the process did not live to end it
            return ending
        while progress.turn_open or progress.turns_complete < self.spec.max_turns:
            if not progress.turn_open:
                await self._checkpoint()
                self._start_turn(progress.turn + 1)
            self._inject_awareness(progress.turn)
            if self.spec.interventions:
                await self._follow_script(progress.turn)
            for agent_id in progress.speakers:
                if agent_id in progress.spoken:
                    continue
                await self._checkpoint(others=bool(progress.spoken))
                self._inject_from_outside()
                await self._speak(self._seats[agent_id])
                if self._ending() is not None:
                    break
            if progress.everyone_spoke():
                self._complete_turn()
                self._notify(TurnCompleted, progress.turn)
            if (ending := self._ending()) is not None:
                return ending
        return EndReason.TURN_LIMIT

    async def _checkpoint(self, *, others: bool = True) -> None:
        """Wait while anybody wants a pause; raise `Stop` when anybody wants the end.

        Args:
            others: let them have their turn before; a model that never waits would keep signals, timers and all other
                conversations out.
        """
        control = self.control
        if others:
            await asyncio.sleep(0)
        while True:
            if self._delegates.watching or self._delegate_pause is not None:
                self._ask_delegates()
            if control.stopping is not None:
                raise control.stopping
            by = control.paused_by
            if by is None:
                break
            if not self._paused:
                self._paused = True
                self._publish(self._at(ConversationPausedEvent, by=by))
                self._notify(AiProcessingStep, "pause", None, self.progress.turn)
                self._log.flush()
            # Delegates cannot say when they change their mind, so they are asked again from time to time.
            asking = self._delegates.watching or self._delegate_pause is not None
            await self.control.changed(0.05 if asking else None)
        if self._paused:
            self._paused = False
            self._publish(self._at(ConversationResumedEvent, by=control.resumed_by))
            self._notify(AiProcessingStep, "resume", None, self.progress.turn)

    def _ask_delegates(self) -> None:
        where = (self.progress.turn, self.history.messages)
        for name in self._saying_yes(AiLoopRequestStop(*where)):
            self.control.stop(by=f"delegate {name}")
        pausing = self._saying_yes(AiLoopRequestPause(*where))
        if pausing and self._delegate_pause is None:
            self._delegate_pause = f"delegate {pausing[0]}"
        if pausing and self._delegate_pause is not None:
            self.control.pause(by=self._delegate_pause)
        elif self._delegate_pause is not None:
            self.control.resume(by=self._delegate_pause)
            self._delegate_pause = None

    def _saying_yes(self, payload: Payload) -> list[str]:
        """The delegates that answer True."""
        try:
            return [name for name, answer in self._delegates.ask(self, payload) if answer is True]
        except (Pause, Stop) as signal:
            self._obey(signal)
            return []

    # Beginning and end

    async def _begin(self) -> None:
        record = self.record
        if self._prefix:
            self.progress.share(self._prefix)
        if record is not None:
            self.progress.replay(record.events)
        resumed = self.progress.started
        if not resumed:
            self._publish(self._start_event())
        for agent in self.spec.agents:
            if agent.id not in self.progress.prompted:
                self._publish(
                    SystemPromptEvent(
                        agent_id=agent.id,
                        text=agent.system_prompt,
                        placement=split_model(agent.model)[0].system_placement if agent.system_prompt else None,
                    )
                )
        origin = self.spec.origin
        if origin is not None and not self.progress.branched:
            self._publish(
                ConversationBranchedEvent(
                    origin=origin.conversation_id,
                    turn_number=origin.turn,
                    message_index=self.progress.shared_messages,
                    changes=self._changes(),
                )
            )
        if resumed:
            if self.progress.turn:
                self._begin_watching()
            self._write_missing()
            torn = record.total_bytes - record.whole_bytes if record else 0
            self._publish(self._at(ConversationResumedEvent, by=self._resumed_by, torn_bytes=torn))
        for agent in self.progress.agents.values():
            self._seats[agent.id] = await self._seat(self._as_taken(agent))
        self._notify(AiLoopStarted, self.conversation_id, tuple(a.id for a in self.spec.agents), resumed)
        begins = self.progress.turn == 0 and origin is None  # a branch shares what was said with the opening
        if self.spec.choose_names and begins:
            for seat in self._seats.values():
                if seat.agent.id not in self.progress.named:
                    await self._checkpoint()
                    await self._choose_name(seat)
        if begins:
            self._inject_awareness(0)
        if self._watcher is None:
            self._begin_watching()
        await self._log.commit()

    def _as_taken(self, agent: Agent) -> Agent:
        """The agent without what its model does not take, where the spec is lenient about it."""
        agent, dropped = as_taken(self.spec, agent)
        for what, reason in dropped.items():
            if (agent.id, what) not in self.progress.warned:
                self._publish(WarningEvent(agent_id=agent.id, what=what, reason=reason))
        return agent

    def _start_event(self) -> ConversationStartEvent:
        spec = self.spec
        return ConversationStartEvent(
            schema_version=SCHEMA_VERSION,
            pidgin_version=_own_version(),
            spec=spec.to_json(),
            spec_hash=self._spec_hash,
            agents=spec.agents,
            opening=self.progress.opening,
            prompt_tag=spec.prompt_tag,
            seed=spec.seed,
            arm=spec.arm,
            repetition=spec.repetition,
            branch_of=None
            if spec.origin is None
            else {
                "conversation_id": spec.origin.conversation_id,
                "turn": spec.origin.turn,
                "message_index": self.progress.shared_messages,
                "digest": self.progress.shared,
            },
        )

    def _changes(self) -> dict[str, Any]:
        """The settings in which this branch differs from the conversation that it leaves."""
        before = [event.spec for event in self._prefix if isinstance(event, ConversationStartEvent)][-1]
        found = differences(before, self.spec.to_json())
        return {name: list(values) for name, values in found.items() if name != "opening"}  # which is shared

    def _write_missing(self) -> None:
        """Facts that follow from the record but that the process did not live to write."""
        progress = self.progress
        if progress.uncounted is not None:
            self._publish(progress.usage_event(progress.uncounted))
        if (asked := progress.asked) is not None and progress.in_flight:
            self._publish(
                MessageAbandonedEvent(
                    agent_id=asked.agent_id,
                    turn_number=asked.turn_number,
                    message_index=asked.message_index,
                    why="the process ended before the reply was whole",
                )
            )
        progress.asked = None
        if self._watcher is not None and progress.last_message is not None:
            self._heed(progress.last_message.turn_number)
        if progress.everyone_spoke() and progress.speakers:
            self._complete_turn()
        elif not progress.turn_open:
            self._warn_of_convergence()

    def _finish(self, outcome: Outcome) -> None:
        progress = self.progress
        invalid = []
        if any(not progress.history.spoken.get(agent.id) for agent in _scheduled(self.spec, progress.triggers)):
            invalid.append("speaker_never_called")
        if progress.wrong_model:
            invalid.append("wrong_model_served")
        if outcome.end_reason is EndReason.HARNESS_ERROR:
            invalid.append("harness_fault")
        self._publish(
            ConversationEndEvent(
                status=outcome.status,
                end_reason=outcome.end_reason,
                totals=progress.totals(),
                error=outcome.error,
                invalid=tuple(invalid),
                notable=dict(progress.notable),
                metrics={} if self._watcher is None else self._watcher.conversation_metrics(),
            )
        )
        if outcome.error is not None:
            self._notify(AiLoopErrorOccurred, *outcome.error.split(": ", 1))
        self._notify(
            AiLoopStopped,
            self.conversation_id,
            outcome.status.value,
            outcome.end_reason.value,
            progress.turns_complete,
            progress.history.messages,
        )

    # A turn

    def _start_turn(self, number: int) -> None:
        speakers = speaking_order(self.spec, number, self.progress.triggers.silent(number))
        self._publish(TurnStartEvent(turn_number=number, speakers=speakers))
        self._notify(TurnStarted, number, speakers)

    def _inject_awareness(self, turn: int) -> None:
        due: Counter[tuple[int, str, str]] = Counter()
        for item in self.spec.injections:
            if item.turn == turn:
                due[place := (turn, item.agent_id, item.source)] += 1
                if self.progress.injected[place] < due[place]:
                    self._intervene(item.text, (item.agent_id,), item.source, turn, item.placement)

    async def _follow_script(self, turn: int) -> None:
        """Do what the script has for the beginning of a turn, unless it is done already."""
        if self.progress.spoken:
            return
        done = self.progress.scripted[turn]
        due = [place for item in self.progress.triggers.due(turn) for place in self._concerned(item)]
        for item, agent_id in due[done:]:
            await self._do(item, agent_id, turn)

    def _concerned(self, due: Due) -> list[tuple[Due, str | None]]:
        """One entry for each event that an intervention makes: None for one that concerns all its agents together.

        It depends only on what was said before the turn, so that a resume counts as the first run did.
        """
        item = due.intervention
        if item.kind == "inject" and item.placement == "user":
            return [(due, None)]
        return [(due, agent_id) for agent_id in item.agents if item.kind != "edit" or self.history.spoken.get(agent_id)]

    async def _do(self, due: Due, agent_id: str | None, turn: int) -> None:
        item = due.intervention
        text = None if item.text is None else clean_text(item.text)[0]
        if agent_id is None or item.kind == "inject":
            audience = item.agents if agent_id is None else (agent_id,)
            self._intervene(text or "", audience, SCRIPT, turn, item.placement, due)
            return
        agent = self.progress.agents[agent_id]
        everyone = tuple(self.progress.agents)
        event = InterventionEvent(
            turn_number=turn,
            source=SCRIPT,
            kind=item.kind,
            agent_id=agent_id,
            audience=everyone if item.kind == "edit" else (agent_id,),
            trigger=due.trigger,
            value=due.value,
            message_index=self.history.messages,
        )
        match item.kind:
            case "edit":
                last = self.history.last_message_of(agent_id)
                assert last is not None, "others are not concerned"
                event = replace(event, before=last.content, after=text or "", edited_index=last.message_index)
            case "mute":
                event = replace(event, audience=(), turns=item.turns)
            case "swap_model":
                event = replace(event, before=agent.model, after=item.model)
            case "swap_system_prompt":
                placement = split_model(agent.model)[0].system_placement if text is not None else ""
                event = replace(event, before=agent.system_prompt, after=text, placement=placement)
        self._publish(event)
        self._counted.clear()  # what was counted is no longer how the next prompts begin
        self._notify(AiProcessingStep, "intervention", agent_id, turn)
        if item.kind in ("swap_model", "swap_system_prompt"):
            self._seats[agent_id] = await self._seat(self._as_taken(self.progress.agents[agent_id]))

    def _inject_from_outside(self) -> None:
        for item in self.control.take_injected():
            audience = tuple(agent.id for agent in self.spec.agents) if item.audience is None else item.audience
            turn = self.progress.turn if self.progress.turn_open else self.progress.turn + 1
            self._intervene(item.text, audience, item.source, turn)

    def _intervene(
        self,
        text: str,
        audience: tuple[str, ...],
        source: str,
        turn: int,
        placement: str = "user",
        due: Due | None = None,
    ) -> None:
        """Put text in. With the placement `system` it has one addressee, whose model decides about the place."""
        if placement == "system":
            placement = late_system(self.progress.agents[audience[0]].model)
        self._publish(
            InterventionEvent(
                turn_number=turn,
                source=source,
                audience=audience,
                text=clean_text(text)[0],
                trigger=None if due is None else due.trigger,
                value=None if due is None else due.value,
                placement=placement,
                message_index=self.history.messages,
            )
        )
        self._notify(AiProcessingStep, "intervention", audience[0] if len(audience) == 1 else None, turn)

    def _complete_turn(self) -> None:
        turn, watcher = self.progress.turn, self._watcher
        if watcher is None:
            self._publish(TurnCompleteEvent(turn_number=turn))
            return
        self._publish(
            TurnCompleteEvent(
                turn_number=turn,
                metrics=watcher.turn_metrics(turn),
                convergence=watcher.convergence(),
                detectors=watcher.detectors(),
            )
        )
        self._warn_of_convergence()

    # Metrics and detectors

    def _begin_watching(self) -> None:
        """Take in what was said so far."""
        if self.spec.metrics == "off":
            return
        from .watching import Watcher  # only now: word lists and numpy are for those who measure

        named = {agent.id: self.progress.names[agent.id] for agent in self.spec.agents}
        self._watcher = Watcher(self.spec, named, self.progress.opening)
        for event in (*self._prefix, *(self.record.events if self.record is not None else ())):
            if isinstance(event, MessageCompleteEvent):
                self._watcher.take(event)

    def _heed(self, turn: int) -> None:
        """Do what the policy asks for after the last message, as far as it is not done yet."""
        watcher, progress = self._watcher, self.progress
        if watcher is None or watcher.step is None or not watcher.step.fired:
            return
        for firing, action in watcher.respond(self.spec):
            source = f"detector:{firing.detector}"
            if (firing.message_index, firing.detector) not in progress.alarms:
                self._publish(
                    AttractorEvent(
                        turn_number=turn,
                        message_index=firing.message_index,
                        detector=firing.detector,
                        value=firing.value,
                        threshold=firing.threshold,
                        onset=firing.onset,
                        period=firing.period,
                        action=action,
                    )
                )
                if action == "pause":
                    self.control.pause(by=source)
            text = self.spec.detectors[firing.detector].text if action == "intervene" else None
            everyone = tuple(progress.agents)
            if text is not None and not progress.injected[turn, everyone[0], source]:
                self._intervene(text, everyone, source, turn)

    def _warn_of_convergence(self) -> None:
        """Where the score of the last whole turn has reached the threshold and that of the turn before had not."""
        policy, progress = self.spec.convergence, self.progress
        value, before, turn = progress.convergence, progress.convergence_before, progress.turns_complete
        if policy.threshold is None or value is None or progress.warned_turn == turn:
            return
        if value < policy.threshold or (before is not None and before >= policy.threshold):
            return
        self._publish(
            ConvergenceWarningEvent(
                turn_number=turn,
                score="custom" if policy.weights else policy.profile,
                value=value,
                threshold=policy.threshold,
                action=policy.action,
            )
        )
        if policy.action == "pause":
            self.control.pause(by="convergence")

    def _ending(self) -> EndReason | None:
        """Why the conversation is to end now, if it is."""
        return EndReason.STOP_PHRASE if self._stop_said() else self.progress.ending

    def _stop_said(self) -> bool:
        """Whether the last message ends the conversation."""
        last = self.progress.last_message
        phrase = None if last is None else self.spec.stop_phrases.get(last.agent_id)
        return last is not None and phrase is not None and phrase in last.message.content

    async def _speak(self, seat: _Seat) -> None:
        progress = self.progress
        index = self.history.messages
        response = await self._ask_for_message(seat, index)
        message = replace(response.message, id=f"{self.conversation_id}:m{index}", thinking=())
        finish = response.finish
        cost = 0.0 if finish.cached else self._cost(seat, seat.agent.model, response.usage)
        last = len(response.message.thinking) - 1
        for number, block in enumerate(response.message.thinking):
            self._publish(
                ThinkingCompleteEvent(
                    agent_id=seat.agent.id,
                    turn_number=progress.turn,
                    message_index=index,
                    content=block.text,
                    tokens=response.usage.thinking_tokens if number == last else None,
                    signature=block.signature,
                    redacted=block.redacted,
                )
            )
        event = MessageCompleteEvent(
            agent_id=seat.agent.id,
            turn_number=progress.turn,
            message_index=index,
            message=message,
            finish_reason=finish.reason,
            usage=response.usage,
            cost=cost,
            timing=finish.timing or Timing(),
            model_requested=seat.agent.model,
            model_served=finish.model,
            fingerprint=finish.fingerprint,
            request_id=finish.request_id,
            cached=finish.cached,
            attempt=finish.attempt,
        )
        self._publish(event)
        self._publish(progress.usage_event(event))
        if self._watcher is not None:
            self._watcher.take(event)
            self._heed(progress.turn)
        if self._delegates.watching:
            usage, timing = event.usage, event.timing
            where = (seat.agent.id, progress.turn, index, message.content)
            self._notify(
                AiResponseReceived, *where, usage.prompt_tokens, usage.completion_tokens, cost, timing.duration_ms
            )
            self._notify(MessageCompleted, *where)

    async def _ask_for_message(self, seat: _Seat, index: int) -> ModelResponse:
        refused: str | None = None
        while True:
            sent = await self._fit(seat, refused)
            request = self._request(seat, sent, "message", index)
            asking = MessageRequestEvent(
                agent_id=seat.agent.id,
                turn_number=self.progress.turn,
                message_index=index,
                view=sent.view,
                digest=sent.digest,
                parameters=seat.parameters,
                placeholders=sent.placeholders,
            )
            if self._delegates.watching:
                self._notify(AiProcessingStep, "request", seat.agent.id, self.progress.turn)
                self._notify(
                    AiRequestPrepared, seat.agent.id, self.progress.turn, index, len(sent.messages), sent.digest
                )
            try:
                return await self._ask(seat, request, asking)
            except ContextLengthExceeded as error:
                if self.spec.context.policy == "stop":
                    self._publish(self._context_limit(seat, reported=str(error)))
                    raise Stop("context", EndReason.CONTEXT_LIMIT) from None
                refused = str(error)

    # Asking a model

    async def _seat(self, agent: Agent) -> _Seat:
        spec = self.spec
        info, model = split_model(agent.model)
        policy = RetryPolicy(spec.retries, info.name, self._publish_and_flush, self.control.sleep)
        adapter = self._providers.adapter(agent.model, spec.timeouts, agent.settings)
        probe = ModelRequest(
            model=model,
            messages=(),
            system=agent.system_prompt,
            settings=agent.settings,
            context_window=spec.context.limit_tokens or context_window(agent.model),
            seed=spec.seed,
        )
        probe = replace(probe, context_window=await served_window(adapter, probe))
        provider = self._providers.provider(
            agent.model,
            spec.timeouts,
            policy,
            spec.concurrency,
            wait=self.control.until,
            settings=agent.settings,
            probe=probe if spec.cache != "off" else None,
            draw=(spec.draw(self.conversation_id),) if spec.cache == "on" else None,
        )
        return _Seat(
            agent=agent,
            provider=provider,
            policy=policy,
            model=model,
            parameters=effective_parameters(adapter, probe),
            window=probe.context_window,
            at_home=at_home(info),
        )

    def _request(self, seat: _Seat, sent: Sent, purpose: Purpose, index: int) -> ModelRequest:
        return ModelRequest(
            model=seat.model,
            messages=sent.messages,
            system=sent.system,
            settings=seat.agent.settings,
            context_window=seat.window,
            conversation_id=self.conversation_id,
            seed=self.spec.seed,
            agent_id=seat.agent.id,
            turn_number=self.progress.turn,
            message_index=index,
            own_number=self.history.spoken.get(seat.agent.id, 0) + 1,
            purpose=purpose,
            digest=sent.digest,
        )

    async def _ask(
        self, seat: _Seat, request: ModelRequest, asking: MessageRequestEvent | QuestionEvent
    ) -> ModelResponse:
        """The whole reply. Attempts that died half-way are recorded as abandoned and never joined.

        Args:
            asking: is published before the first attempt, once it may be made; a question also before each that
                follows a broken one.
        """
        live = self._live is not None and request.purpose == "message"
        seat.policy.attempt = request.attempt
        most: Amount | None = None

        async def set_aside_again(error: ProviderError) -> None:
            nonlocal most
            if error.may_be_billed and self._purse is not None and most is not None:
                spent, most = most, _NOTHING
                self._purse.settle(spent, spent)
                most = await self._reserve(self._purse, seat, request)

        seat.policy.on_unanswered = set_aside_again
        is_told = False
        while True:
            fold = ResponseFold()
            most = None if self._purse is None else await self._reserve(self._purse, seat, request)
            used = _NOTHING
            try:
                if not is_told or isinstance(asking, QuestionEvent):
                    self._publish(asking if most is None else replace(asking, reserved=most._asdict()))
                    is_told = True
                await self._log.commit()
                stream = seat.provider.stream_response(request)
                try:
                    async for delta in stream:
                        fold.add(delta)
                        if live:
                            self._show(seat.agent.id, delta)
                finally:
                    await close(stream)
                response = fold.response()
                if most is not None:
                    used = self._used(seat, request, response, most)
                return response
            except ProviderError as error:
                if not fold.started:
                    if most is not None and error.may_be_billed:
                        used = most
                    raise  # `Retrying` has done what it could
                if most is not None:
                    used = most  # nobody knows how far the model got
                self._abandon(seat, request, fold, str(error), error.attempt)
                await seat.policy.wait(error, replace(request, attempt=error.attempt))
                request = replace(request, attempt=error.attempt + 1)
            except asyncio.CancelledError:
                if most is not None:
                    used = most
                self._abandon(seat, request, fold, "stopped before the reply was whole", seat.policy.attempt)
                raise
            finally:
                if self._purse is not None and most is not None:
                    self._purse.settle(most, used)

    async def _reserve(self, purse: Purse, seat: _Seat, request: ModelRequest) -> Amount:
        """Set aside the most that a request can use."""
        prompt = self._prompt_tokens_at_most(request)
        reply = request.settings.max_tokens or seat.parameters.get("max_tokens")
        if reply is None:
            # Free models need no bound where only money counts; all others were refused before the start.
            reply = 0
        fresh = Usage(prompt_tokens=prompt, completion_tokens=reply)
        costs = [
            self._cost(seat, seat.agent.model, usage)
            for usage in (fresh, replace(fresh, cache_write_tokens=prompt))  # writing a cache may cost more
        ]
        most = Amount(prompt + reply, max(cost or 0.0 for cost in costs))
        await purse.reserve(most, self.control.until)
        return most

    def _prompt_tokens_at_most(self, request: ModelRequest) -> int:
        """No tokeniser makes more tokens than bytes. What a provider has counted already is not guessed again."""
        size, entries = _bytes_of(request), len(request.messages) + 1
        counted = self._counted.get(request.agent_id) if request.purpose == "message" else None
        if counted is not None and counted.model == request.model and size >= counted.size:
            return counted.tokens + size - counted.size + _FRAME_TOKENS * max(1, entries - counted.entries)
        return size + _FRAME_TOKENS * entries

    def _used(self, seat: _Seat, request: ModelRequest, response: ModelResponse, most: Amount) -> Amount:
        """What a reply used; where that was not reported, the most it can have used."""
        if response.finish.cached:
            return _NOTHING
        usage = response.usage
        cost = self._cost(seat, seat.agent.model, usage)
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return Amount(most.tokens, most.usd if cost is None else cost)
        if request.purpose == "message":
            self._counted[request.agent_id] = _Counted(
                request.model, _bytes_of(request), len(request.messages) + 1, usage.prompt_tokens
            )
        return Amount(usage.prompt_tokens + usage.completion_tokens, most.usd if cost is None else cost)

    def _abandon(self, seat: _Seat, request: ModelRequest, fold: ResponseFold, why: str, attempt: int) -> None:
        is_message = request.purpose == "message"
        what: dict[str, Any] = {"message_index": request.message_index} if is_message else {"purpose": request.purpose}
        self._publish_and_flush(
            (MessageAbandonedEvent if is_message else QuestionAbandonedEvent)(
                agent_id=request.agent_id,
                turn_number=request.turn_number,
                why=why,
                partial=fold.text,
                attempt=attempt,
                **what,
            )
        )
        if fold.usage != Usage():
            # It is paid for all the same.
            usage = Usage(
                prompt_tokens=fold.usage.prompt_tokens or 0,
                completion_tokens=fold.usage.completion_tokens or 0,
                thinking_tokens=fold.usage.thinking_tokens,
                cached_tokens=fold.usage.cached_tokens,
                cache_write_tokens=fold.usage.cache_write_tokens,
                estimated=True,
            )
            model_id = seat.agent.model
            cost = self._cost(seat, model_id, usage)
            self._publish_and_flush(self.progress.count(request.agent_id, model_id, usage, cost, "abandoned"))
        if is_message:
            self._show(request.agent_id, None)

    def _show(self, agent_id: str, delta: Delta | None) -> None:
        """Hand a piece to the live display. One that fails is reported and no longer used; the talk goes on."""
        if self._live is None:
            return
        try:
            self._live(agent_id, delta)
        except Exception as error:
            self._live = None
            _log.exception("the live display failed")
            self._publish(ErrorEvent(error=type(error).__name__, message=str(error), where="live display"))

    def _cost(self, seat: _Seat, model_id: str, usage: Usage) -> float | None:
        return cost_usd(model_id, usage, at_home=seat.at_home)

    # The context window

    async def _fit(self, seat: _Seat, refused: str | None) -> Sent:
        """What the agent is sent, after the context policy was applied as often as it had to be.

        Args:
            refused: the words in which the provider refused what seemed to fit.
        """
        progress, policy = self.progress, self.spec.context
        view = progress.views[seat.agent.id]
        while True:
            sent = view.sent()
            found = room(progress, seat.agent.id, sent, seat.window)
            if refused is None and (found is None or found.enough):
                return sent
            if found is None:
                found = room(progress, seat.agent.id, sent, int(sent.size * progress.tokens_per_byte[seat.agent.id]))
                assert found is not None
            first_turn = None
            if policy.policy != "stop":
                first_turn = first_turn_that_fits(progress, seat.agent.id, found, harder=refused is not None)
            if first_turn is None:
                self._publish(self._context_limit(seat, found.needed, found.limit, refused))
                raise Stop("context", EndReason.CONTEXT_LIMIT)
            await self._leave_out(seat, first_turn, sent, found)
            refused = None

    async def _leave_out(self, seat: _Seat, first_turn: int, sent: Sent, found: Room) -> None:
        """Take the turns before `first_turn` out of an agent's view, by window or by summary."""
        self._counted.pop(seat.agent.id, None)
        progress, policy = self.progress, self.spec.context
        start = self.history.first_message(first_turn)
        kept = View(start=start, end=self.history.messages, omitted=start, extra=sent.view.extra)
        if policy.policy == "window":
            self._notify(AiProcessingStep, "truncation", seat.agent.id, progress.turn)
            self._publish(
                ContextTruncationEvent(
                    agent_id=seat.agent.id,
                    turn_number=progress.turn,
                    policy=policy.policy,
                    view=kept,
                    estimated_tokens=found.needed,
                    limit_tokens=found.limit,
                )
            )
            return
        self._notify(AiProcessingStep, "summary", seat.agent.id, progress.turn)
        from_turn = progress.views[seat.agent.id].state.first_turn
        try:
            summary, model_id = await self._summarise(seat, from_turn, first_turn)
        except (ContextLengthExceeded, _NoSummary) as error:
            self._publish(self._context_limit(seat, found.needed, found.limit, str(error)))
            raise Stop("context", EndReason.CONTEXT_LIMIT) from None
        self._publish(
            HistoryCompactedEvent(
                agent_id=seat.agent.id,
                turn_number=progress.turn,
                policy=policy.policy,
                view=kept,
                summary=summary,
                model=model_id,
                estimated_tokens=found.needed,
                limit_tokens=found.limit,
            )
        )

    async def _summarise(self, seat: _Seat, from_turn: int, to_turn: int) -> tuple[str, str]:
        """The summary and the model that wrote it.

        Raises:
            _NoSummary: what it wrote is none. An agent that remembered a refusal, or half of a sentence, in the
                place of all that was said would go on with another conversation.
        """
        model_id = self.spec.context.model
        settings = AgentSettings(max_tokens=SUMMARY_MAX_TOKENS)
        writer = seat if model_id is None else await self._seat(replace(seat.agent, model=model_id, settings=settings))
        earlier = self.progress.views[seat.agent.id].state.summary
        parts = [SUMMARY_QUESTION, summary_text(self.progress, seat.agent.id, from_turn, to_turn)]
        if earlier is not None:
            parts.insert(1, f"Summary of what came before: {earlier}")
        text = "\n\n".join(parts)
        response = await self._side_question(writer, SUMMARY_SYSTEM, text, "summary", settings)
        if response.finish.reason is FinishReason.LENGTH:
            settings = AgentSettings(max_tokens=SUMMARY_MAX_TOKENS_ON_RETRY)
            response = await self._side_question(writer, SUMMARY_SYSTEM, text, "summary", settings)
        summary = response.message.content.strip()
        if not _is_whole(response):
            raise _NoSummary(f"{writer.agent.model} wrote no summary (finish reason: {response.finish.reason})")
        if not summary:
            raise _NoSummary(f"{writer.agent.model} wrote an empty summary")
        return summary, writer.agent.model

    def _context_limit(
        self, seat: _Seat, needed: int | None = None, limit: int | None = None, reported: str | None = None
    ) -> ContextLimitEvent:
        return ContextLimitEvent(
            agent_id=seat.agent.id,
            turn_number=self.progress.turn,
            policy=self.spec.context.policy,
            estimated_tokens=needed,
            limit_tokens=limit,
            reported=reported,
        )

    # Questions beside the conversation

    async def _side_question(
        self, seat: _Seat, system: str | None, text: str, purpose: Purpose, settings: AgentSettings
    ) -> ModelResponse:
        """Ask something that does not become part of the history; its cost is counted."""
        message = Message(role=Role.USER, content=text)
        sent = Sent(system, (message,), View(0, 0, 0, 1), spec_hash([system, text]), 0, len(text))
        request = replace(self._request(seat, sent, purpose, self.history.messages), settings=settings)
        asking = QuestionEvent(
            agent_id=request.agent_id,
            turn_number=request.turn_number,
            purpose=purpose,
            model=seat.agent.model,
            digest=sent.digest,
        )
        response = await self._ask(seat, request, asking)
        cost = 0.0 if response.finish.cached else self._cost(seat, seat.agent.model, response.usage)
        usage = self.progress.count(seat.agent.id, seat.agent.model, response.usage, cost, purpose)
        self._publish(replace(usage, cached=True) if response.finish.cached else usage)
        return response

    async def _choose_name(self, seat: _Seat) -> None:
        self._notify(AiProcessingStep, "naming", seat.agent.id, 0)
        text = self.spec.tagged(NAME_QUESTION).content
        response = await self._side_question(seat, seat.agent.system_prompt, text, "name", seat.agent.settings)
        reply = response.message.content
        name = parse_name(reply) if _is_whole(response) else None
        taken = {self.progress.names[agent_id] for agent_id in self.progress.named}
        wanted = unique = name or seat.agent.name
        number = 2
        while unique in taken:
            unique, number = f"{wanted} {number}", number + 1
        self._publish(AgentNamedEvent(agent_id=seat.agent.id, name=unique, reply=reply, chosen=name is not None))

    # Telling others

    def _publish(self, event: Event) -> None:
        self.bus.publish(event)
        self.progress.advance(event)

    def _publish_and_flush(self, event: Event) -> None:
        """For facts that somebody waits after."""
        self._publish(event)
        self._log.flush()

    def _at(self, kind: Callable[..., Event], **fields: Any) -> Event:
        return kind(turn_number=self.progress.turn, message_index=self.history.messages, **fields)

    def _notify(self, kind: Callable[..., Payload], *fields: Any) -> None:
        if not self._delegates.watching:
            return
        try:
            self._delegates.notify(self, kind(*fields))
        except (Pause, Stop) as signal:
            self._obey(signal)

    def _obey(self, signal: Pause | Stop) -> None:
        """What a delegate raised takes effect at the next checkpoint. Called from any thread."""
        if isinstance(signal, Stop):
            self.control.stop(signal.by, signal.reason)
        else:
            self.control.pause(signal.by)


class _NoSummary(Exception):
    """A model was asked for a summary and gave none."""


def _is_whole(response: ModelResponse) -> bool:
    """Whether a reply ended of its own accord, as far as its server tells."""
    return response.finish.reason in (FinishReason.STOP, FinishReason.UNKNOWN)


def _bytes_of(request: ModelRequest) -> int:
    """Of all that is sent as text."""
    thoughts = [block for message in request.messages for block in message.thinking]
    return (
        len((request.system or "").encode())
        + sum(len(message.content.encode()) for message in request.messages)
        + sum(len(block.text.encode()) + len(block.signature or "") for block in thoughts)
    )


@cache
def _own_version() -> str:
    return version("pidgin-cli")


def _status(reason: EndReason) -> Status:
    if reason in (EndReason.STOP_REQUEST, EndReason.BUDGET, EndReason.CONTEXT_LIMIT):
        return Status.STOPPED
    return Status.COMPLETED


def _models(spec: ConversationSpec) -> list[str]:
    """Every model that speaks in a conversation at some time."""
    swapped = [item.model for item in spec.interventions if item.model is not None]
    return list(dict.fromkeys([*(agent.model for agent in spec.agents), *swapped]))


def _scheduled(spec: ConversationSpec, triggers: Triggers) -> list[Agent]:
    """The agents that are to speak at all: a script may keep one silent throughout."""
    if not any(item.kind == "mute" for item in spec.interventions):
        return list(spec.agents)
    turns = range(1, spec.max_turns + 1)
    speakers = {agent_id for turn in turns for agent_id in speaking_order(spec, turn, triggers.silent(turn))}
    return [agent for agent in spec.agents if agent.id in speakers]


def as_taken(spec: ConversationSpec, agent: Agent) -> tuple[Agent, dict[str, str]]:
    """The agent as its model is asked, and the settings that a lenient spec leaves out of it, each with the reason."""
    if agent.settings.think is False and thinks(agent.model) is False:
        # It has nothing to switch off, and some of these refuse to be told so.
        agent = replace(agent, settings=replace(agent.settings, think=None))
    if not spec.lenient:
        return agent, {}
    dropped = unsupported(split_model(agent.model)[0], agent, thinks=thinks(agent.model))
    return replace(agent, settings=without(agent.settings, dropped)), dropped


def speaking_order(spec: ConversationSpec, turn_number: int, silenced: Collection[str] = ()) -> tuple[str, ...]:
    """Who speaks in a turn, in order. Depends on the spec alone, and on whom triggers silence.

    `alternate`: round-robin from the agent that opens. `random`: shuffled anew every turn by the conversation's seed,
    but that the agent named by `first` opens the conversation. Agents that the script keeps silent are left out.
    """
    order = _order(spec, turn_number)
    if not spec.interventions:
        return order
    silent = {
        agent_id
        for item in spec.interventions
        if item.kind == "mute" and item.when is None and item.turn <= turn_number < item.turn + item.turns
        for agent_id in item.agents
    }.union(silenced)
    return tuple(agent_id for agent_id in order if agent_id not in silent)


def _order(spec: ConversationSpec, turn_number: int) -> tuple[str, ...]:
    ids = [agent.id for agent in spec.agents]
    if spec.order == "random":
        random.Random(f"{spec.seed}:{turn_number}").shuffle(ids)
        if turn_number == 1:
            ids.remove(spec.first)
            ids.insert(0, spec.first)
        return tuple(ids)
    start = ids.index(spec.first)
    return tuple(ids[start:] + ids[:start])


def parse_name(reply: str) -> str | None:
    """The name in a model's answer: its first line without marks and phrases around it, or what it marks in that line.

    None if nothing is left that looks like a name.
    """
    plain = "".join(
        char
        for char in _TERMINAL_ESCAPES.sub("", reply)
        if char in "\n\t\u200d" or unicodedata.category(char) not in ("Cc", "Cf")
    )
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        del lines[0]
    if not lines or lines[0].endswith("?"):
        return None
    marked = _NAME_MARKED.findall(lines[0])
    line = (marked[0] if len(marked) == 1 else lines[0]).replace("’", "'")
    line = re.sub(r"[*_`#\"“”«»\[\]<>]", "", line).strip()
    line = _NAME_PHRASES.sub("", line).strip(" .,:;!?'\t")
    words = line.split()
    if not words or len(words) > 5 or len(line) > 40 or re.search(r"[!?]\s", line):
        return None
    return " ".join(words)
