"""Metrics that are computed after the run: those that need whole conversations, others of the arm, or embeddings.

Everything comes from the database and goes back into it; what has been computed of the same texts stays. What has no
value says why in the table `computed_metrics`.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from pidgin_cli.conversation.setup import ensure_person_settings
from pidgin_cli.conversation.watching import Watcher
from pidgin_cli.core.errors import LogError, PidginError, SpecError
from pidgin_cli.core.events import ConversationStartEvent, MessageCompleteEvent, TurnCompleteEvent
from pidgin_cli.core.types import Usage
from pidgin_cli.database.computed import Computed, Part
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.metrics.catalogue import METRICS_VERSION, PLUGINS, message_metrics
from pidgin_cli.metrics.engine import wide
from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.offline import offline, read, states, summarise
from pidgin_cli.metrics.others import LEAST_CONVERSATIONS, Profile, burrows_delta, convergence_index, profile
from pidgin_cli.metrics.semantics import LEXICAL_HASH, hashed, semantics, topics
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION
from pidgin_cli.providers.embeddings import OFFLINE, Spent, check_choice, open_model
from pidgin_cli.providers.registry import at_home, split_model
from pidgin_cli.spec.catalogue import cost_usd
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import load

from .transcript import Lineage

__all__ = ["NOT_CHOSEN", "Measured", "check_embeddings", "measure"]

NOT_CHOSEN = "no embedding model was chosen; run: pidgin import EXPERIMENT --embeddings MODEL"
"""Why there are no semantic metrics where nobody asked for them."""
INVALID = "the conversation is invalid"


class Measured(NamedTuple):
    """What was computed of one experiment."""

    conversations: int = 0
    """Of which something was computed."""
    live: int = 0
    """Messages whose live metrics the record has not."""
    model: str | None = None
    """The embedding model that was asked."""
    spent: Spent | None = None
    """What its vectors took."""
    cost_usd: float | None = None
    """What they cost; None: not known, or nothing was asked."""
    failed: str | None = None
    """Why the chosen model gave no vectors; what had been computed before is still there."""

    def told(self) -> list[str]:
        """What there is to say of it, in a few words each."""
        found = []
        if self.live:
            found.append(f"live metrics of {self.live} messages were not in the record")
        if self.failed is not None:
            found.append(f"no semantic metrics by {self.model}: {self.failed}")
        elif self.model is not None:
            found.append(f"semantic metrics by {self.model}{'' if self.spent is None else f' ({self._took()})'}")
        return found

    def _took(self) -> str:
        assert self.spent is not None
        sent, cached, tokens, _ = self.spent
        found = [f"{sent} texts", f"{cached} from the cache"]
        if sent:
            found.append("tokens not reported" if tokens is None else f"{tokens} tokens")
            found.append("cost not known" if self.cost_usd is None else f"${self.cost_usd:.4f}")
        return ", ".join(found)


def check_embeddings(choice: str) -> None:
    """See that a choice names something that gives vectors. Raises SpecError."""
    if choice != LEXICAL_HASH:
        ensure_person_settings()
        check_choice(choice)


def _chosen(folder: ExperimentFolder) -> str | None:
    """The embedding model that the spec of an experiment names."""
    try:
        return load(folder.path / "spec.yaml").embeddings
    except (SpecError, OSError):  # there is none, or it is older than what checks it
        return None


def measure(
    store: EventStore,
    root: OutputRoot,
    folder: ExperimentFolder,
    *,
    lineage: Lineage,
    embeddings: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Compute what an imported experiment has not yet. Call it where no event loop is running.

    Args:
        lineage: what a branch shares, in front of what is its own.
        embeddings: what vectors come from; None: what there is stays, and where a conversation has none, the model
            that the spec names is asked for all of them.

    Raises:
        SpecError: there is no such embedding model. StoreError: the database cannot be read or written.
    """
    if embeddings is not None:
        check_embeddings(embeddings)
    study = _Texts(store, root, folder, lineage, progress)
    done = study.live() + study.texts() + study.others()
    live = sum(len(each.messages) for each in done if each.part == "live")
    store.keep_computed(done)
    found = Measured(len({each.conversation_id for each in done}), live)
    if embeddings is None and not study.has_vectors():
        embeddings = _chosen(folder)
        if embeddings is None:
            store.keep_computed(study.without_vectors(NOT_CHOSEN))
    if embeddings is None:
        return found
    return study.with_vectors(embeddings, found, {each.conversation_id for each in done})


def _digest(*parts: object) -> str:
    told = json.dumps([METRICS_VERSION, TOKENIZER_VERSION, LEXICON_VERSION, *parts], default=str, sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


class _Texts:
    """An experiment as the database has it."""

    def __init__(
        self,
        store: EventStore,
        root: OutputRoot,
        folder: ExperimentFolder,
        lineage: Lineage,
        progress: Callable[[str], None],
    ) -> None:
        self._store = store
        self._root = root
        self._folder = folder
        self._lineage = lineage
        self._progress = progress
        self._id = folder.experiment_id
        self._rows: dict[str, dict[str, Any]] = {
            row["conversation_id"]: row for row in store.conversations.of(self._id) if row["messages"]
        }
        self._there = {(row["conversation_id"], row["part"]): row for row in store.metrics.computed(self._id)}
        self._states: dict[str, dict[int, tuple[str | None, int | None]]] = {}
        self._profiles: dict[str, Profile] = {}
        self._all = sorted(
            (name, row["log_sha256"], row["arm"], row["invalid"], row["origin_conversation_id"])
            for name, row in self._rows.items()
        )

    @cached_property
    def _said(self) -> dict[str, list[dict[str, Any]]]:
        """All messages of each conversation, those that a branch shares included."""
        return {name: self._store.messages.of(name, shared=True) for name in self._rows}

    @cached_property
    def _agents(self) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._store.conversations.agents(self._id):
            found.setdefault(row["conversation_id"], {})[row["agent_id"]] = row
        return found

    def _stale(self, name: str, part: Part, digest: str) -> bool:
        there = self._there.get((name, part))
        return there is None or there["computed_with"] != digest

    def _computed(self, name: str, part: Part, digest: str, **values: Any) -> Computed:
        return Computed(name, part, self._rows[name]["log_sha256"], digest, METRICS_VERSION, **values)

    def _talk(self, name: str) -> list[tuple[str, str]]:
        return [(row["agent_id"], row["content"]) for row in self._said[name]]

    def _profile(self, name: str) -> Profile:
        if name not in self._profiles:
            self._profiles[name] = profile(read(self._talk(name)))
        return self._profiles[name]

    def _own(self, name: str, values: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
        """Values in the order of the messages, by the index of those that are the conversation's own."""
        rows = zip(self._said[name], values, strict=True)
        return {row["message_index"]: each for row, each in rows if row["own"]}

    # What the record has not

    def live(self) -> list[Computed]:
        """Live metrics of conversations that ran without them, came from elsewhere, or broke off within a turn."""
        recorded: dict[str, set[int]] = {}
        for row in self._store.metrics.by_message(self._id, ("computed", "state", "state_onset")):
            if not row["computed"]:
                recorded.setdefault(row["conversation_id"], set()).add(row["message_index"])
            self._states.setdefault(row["conversation_id"], {})[row["message_index"]] = (
                row["state"],
                row["state_onset"],
            )
        lacking = {name for name, row in self._rows.items() if len(recorded.get(name, ())) < row["messages"]}
        found = []
        for place, name in enumerate(sorted(lacking), 1):
            digest = _digest(self._rows[name]["log_sha256"], sorted(PLUGINS))
            if self._stale(name, "live", digest):
                self._progress(f"live metrics of {name}, {place} of {len(lacking)}")
                found.append(self._live_of(name, recorded.get(name, set()), digest))
        return found

    def _live_of(self, name: str, recorded: set[int], digest: str) -> Computed:
        names = dict.fromkeys(message_metrics("live"))
        try:
            events = read_record(self._folder.logs()[name]).events
            whole, missing = self._lineage(self._root, events)
            if missing is not None:
                return self._computed(name, "live", digest, missing=missing)
            start = next(event for event in whole if isinstance(event, ConversationStartEvent))
            spec = ConversationSpec.from_json(start.spec)
            called = {agent_id: row["name"] or agent_id for agent_id, row in self._agents[name].items()}
            watcher = Watcher(spec, called, self._rows[name]["opening"] or "")
        except (LogError, SpecError, ValueError, KeyError, StopIteration, msgspec.MsgspecError) as error:
            return self._computed(name, "live", digest, missing=f"the record cannot be taken in again: {error}")
        own = {row["message_index"] for row in self._said[name] if row["own"]}
        messages: dict[int, Mapping[str, Any]] = {}
        turns: dict[int, Mapping[str, Any]] = {}
        states_of = self._states.setdefault(name, {})
        for event in whole:
            if isinstance(event, MessageCompleteEvent):
                watcher.take(event)
                index = event.message_index
                if index in own and index not in recorded:
                    values = watcher.turn_metrics(event.turn_number)["messages"][str(index)]
                    messages[index] = names | values
                    states_of[index] = (values.get("state"), values.get("state_onset"))
            elif isinstance(event, TurnCompleteEvent) and not event.metrics and event.convergence is None:
                told = watcher.turn_metrics(event.turn_number)["turn"]
                turns[event.turn_number] = {
                    "convergence": watcher.convergence(),
                    "detectors": watcher.detectors(),
                    "pairs": told,
                }
        known = self._rows[name]["metrics"] not in (None, "{}")
        conversation = {} if known else watcher.conversation_metrics()
        return self._computed(name, "live", digest, messages=messages, conversation=conversation, turns=turns)

    # Of one conversation

    def texts(self) -> list[Computed]:
        """What takes time by the square of something, and what became of the state."""
        digests = {name: _digest(row["log_sha256"], _has_vader()) for name, row in self._rows.items()}
        stale = [name for name, digest in digests.items() if self._stale(name, "texts", digest)]
        if not stale:
            return []
        kinds = _error_kinds(self._store.events.errors(self._id))
        found = []
        for place, name in enumerate(stale, 1):
            self._progress(f"{place} of {len(stale)} conversations")
            texts = read(self._talk(name))
            self._profiles[name] = profile(texts)
            rows, summaries = offline(texts.readings)
            values = [
                row | {"error_kind": kinds.get((name, message["message_index"]))}
                for row, message in zip(rows, self._said[name], strict=True)
            ]
            entered = [self._states.get(name, {}).get(row["message_index"], (None, None)) for row in self._said[name]]
            of_all = wide(summaries) | states([state for state, _ in entered], [onset for _, onset in entered])
            found.append(
                self._computed(name, "texts", digests[name], messages=self._own(name, values), conversation=of_all)
            )
        return found

    # Against other conversations

    def others(self) -> list[Computed]:
        """What a conversation has beyond chance: against others of its arm, and of the experiment."""
        digest = _digest(self._all)
        if not any(self._stale(name, "others", digest) for name in self._rows):
            return []
        arms: dict[str | None, list[str]] = {}
        why: dict[str, str] = {}
        for name in sorted(self._rows):
            if self._rows[name]["invalid"]:
                why[name] = INVALID
            elif any(row["message_index"] != place for place, row in enumerate(self._said[name])):
                why[name] = "what it shares with the conversation that it branches off is not in the database"
            else:
                arms.setdefault(self._rows[name]["arm"], []).append(name)
        shared = {name: sum(not row["own"] for row in rows) for name, rows in self._said.items()}
        messages: dict[str, list[dict[str, Any]]] = {}
        for names in arms.values():
            index = convergence_index(
                {name: self._profile(name) for name in names},
                shared=shared,
                progress=lambda done, of: self._progress(f"surrogates of {done} of {of} conversations"),
            )
            for name, corrected in index.items():
                messages[name] = [
                    {"convergence_index": each.value, "convergence_surrogates": each.surrogates} for each in corrected
                ]
                if all(each.value is None for each in corrected):
                    few = f"the arm has {len(names)} valid conversations; convergence_index takes {LEAST_CONVERSATIONS}"
                    enough = len(names) >= LEAST_CONVERSATIONS
                    why[name] = "no reply has two surrogates of its partner's length" if enough else few
        compared = [name for name in sorted(self._rows) if name not in why or why[name] != INVALID]
        deltas = dict(
            zip(
                compared,
                burrows_delta([self._profile(name) for name in compared], shared=[shared[name] for name in compared]),
                strict=True,
            )
        )
        empty: dict[str, Any] = {"convergence_index": None, "convergence_surrogates": None}
        found = []
        for name in self._rows:
            values = messages.get(name, [empty] * len(self._said[name]))
            of_all: dict[str, Any] = {
                f"burrows_delta_{one}{two}": value for (one, two), value in deltas.get(name, {}).items()
            }
            by_turn: dict[int, list[float]] = {}
            for row, each in zip(self._said[name], values, strict=True):
                if row["own"] and each["convergence_index"] is not None:
                    by_turn.setdefault(row["turn_number"], []).append(each["convergence_index"])
            if by_turn:
                every = [value for each in by_turn.values() for value in each]
                of_all["convergence_index_mean"] = sum(every) / len(every)
                turns = range(min(by_turn), max(by_turn) + 1)
                means = [sum(by_turn[t]) / len(by_turn[t]) if t in by_turn else None for t in turns]
                of_all["convergence_index_slope"] = summarise(means)["slope"]
            found.append(
                self._computed(
                    name,
                    "others",
                    digest,
                    messages=self._own(name, values),
                    conversation=of_all,
                    missing=why.get(name),
                )
            )
        return found

    # Of embeddings

    def has_vectors(self) -> bool:
        """Whether every conversation has semantic metrics of its present log."""
        return all((self._there.get((name, "semantics")) or {"model": None})["model"] for name in self._rows)

    def without_vectors(self, why: str) -> list[Computed]:
        """Say why there are no semantic metrics, where there are none."""
        digest = _digest(why)
        return [
            self._computed(name, "semantics", digest, missing=why)
            for name in self._rows
            if self._stale(name, "semantics", digest)
            and not (self._there.get((name, "semantics")) or {"model": None})["model"]
        ]

    def with_vectors(self, choice: str, found: Measured, before: set[str]) -> Measured:
        """Semantic metrics of the whole experiment by one model."""
        digest = _digest(choice, self._all)
        if not any(self._stale(name, "semantics", digest) for name in self._rows):
            return found._replace(model=choice)
        openings = {name: row["opening"] or "" for name, row in self._rows.items()}
        prompts = {
            name: {agent: row["system_prompt"] or "" for agent, row in self._agents.get(name, {}).items()}
            for name in self._rows
        }
        texts = [
            *(row["content"] for rows in self._said.values() for row in rows),
            *openings.values(),
            *(text for each in prompts.values() for text in each.values()),
        ]
        try:
            by_text, model, spent, cost = _vectors(choice, list(dict.fromkeys(texts)), self._progress)
        except PidginError as error:
            why = f"{choice}: {error}"
            self._store.keep_computed(self.without_vectors(why))
            return found._replace(model=choice, failed=str(error))
        of_messages = {name: [by_text[row["content"]] for row in rows] for name, rows in self._said.items()}
        clusters, switches = topics(of_messages)
        computed = []
        for name, rows in self._said.items():
            values, summaries = semantics(
                [(row["agent_id"], vector) for row, vector in zip(rows, of_messages[name], strict=True)],
                by_text[openings[name]],
                {agent: vector for agent, text in prompts[name].items() if (vector := by_text[text]) is not None},
            )
            values = [row | {"topic_id": topic} for row, topic in zip(values, clusters[name], strict=True)]
            long = sum(
                vector is None and bool(row["content"].strip())
                for row, vector in zip(rows, of_messages[name], strict=True)
            )
            computed.append(
                self._computed(
                    name,
                    "semantics",
                    digest,
                    messages=self._own(name, values),
                    conversation=wide(summaries) | {"topic_switches": switches[name]},
                    model=model,
                    missing=f"{model} takes no text as long as {long} of the messages" if long else None,
                )
            )
        self._store.keep_computed(computed)
        return found._replace(conversations=len(before | set(self._rows)), model=model, spent=spent, cost_usd=cost)


def _vectors(
    choice: str, texts: Sequence[str], progress: Callable[[str], None]
) -> tuple[dict[str, Any], str, Spent | None, float | None]:
    """The vector of each text, the model they come from, and what they took."""
    if choice == LEXICAL_HASH:
        return {text: hashed(text) for text in texts}, choice, None, 0.0
    ensure_person_settings()
    model = open_model(choice)

    async def ask() -> list[Any]:
        try:
            return await model.vectors(texts, lambda done, of: progress(f"{choice}: {done} of {of} texts"))
        finally:
            await model.aclose()

    found = asyncio.run(ask())
    cost: float | None = 0.0
    if choice != OFFLINE and model.spent.sent:
        usage = Usage(prompt_tokens=model.spent.tokens, completion_tokens=0)
        cost = cost_usd(choice, usage, at_home=at_home(split_model(choice)[0]))
    return dict(zip(texts, found, strict=True)), model.model_id, model.spent, cost


def _error_kinds(errors: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """The class of the last error before each message, by conversation and message index."""
    found: dict[tuple[str, int], str] = {}
    for row in sorted(errors, key=lambda row: (row["conversation_id"] or "", row["seq"])):
        if row["message_index"] is None:
            continue
        if row["event_type"] == "APIErrorEvent":
            found[row["conversation_id"], row["message_index"]] = row["error"]
        elif row["event_type"] == "RateLimitEvent" and row["error"] == "refused":
            found[row["conversation_id"], row["message_index"]] = "RateLimited"
    return found


def _has_vader() -> bool:
    return bool(offline(read([("a", "good")]).readings)[0][0]["sentiment_vader"])
