"""Metrics that are computed after the run: those that need whole conversations, others of the arm, or embeddings.

Everything comes from the database and goes back into it; what has been computed of the same texts stays. What has no
value says why in the table `computed_metrics`.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from pidgin_cli.conversation.setup import ensure_person_settings
from pidgin_cli.core.errors import PidginError, SpecError
from pidgin_cli.core.types import Usage
from pidgin_cli.database.computed import Computed, Part
from pidgin_cli.database.store import EventStore
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.metrics.catalogue import METRICS_VERSION, PLUGINS
from pidgin_cli.metrics.engine import wide
from pidgin_cli.metrics.lexicon import LEXICON_VERSION
from pidgin_cli.metrics.offline import offline, read, states, summarise
from pidgin_cli.metrics.others import LEAST_CONVERSATIONS, Profile, burrows_delta, convergence_index
from pidgin_cli.metrics.semantics import LEXICAL_HASH, hashed, semantics, topics
from pidgin_cli.metrics.tokens import TOKENIZER_VERSION
from pidgin_cli.providers.embeddings import OFFLINE, Spent, check_choice, open_model
from pidgin_cli.providers.registry import at_home, split_model
from pidgin_cli.spec.catalogue import cost_usd
from pidgin_cli.spec.experiment import load

from .conversation_metrics import RecordTask, TextMetrics, of_record, of_texts
from .text import count
from .transcript import Lineage
from .workers import Workers, workers

__all__ = ["NOT_CHOSEN", "Measured", "check_embeddings", "measure", "measure_again"]

NOT_CHOSEN = "no embedding model was chosen; run: pidgin import EXPERIMENT --embeddings MODEL"
"""Why there are no semantic metrics where nobody asked for them."""
INVALID = "the conversation is invalid"
INDICES = ("convergence_index", "convergence_index_pooled")

KEEP_EVERY_S = 10.0
"""What has been computed for so long goes into the database, so that a process that dies loses no more."""
KEEP_MESSAGES = 5_000
"""What has been computed of so many goes there, too, so that the values of a large study need no memory."""
SHARE_OF_KEEPING = 0.1
"""Of the time, at most: it takes a copy of the database."""
LEAST_FOR_PROCESSES = 1_000
"""Messages; fewer are done before a process has begun."""


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
    keeping = _without_vectors(store, study)
    found = Measured(len(keeping.conversations), keeping.live)
    if embeddings is None and not study.has_vectors():
        embeddings = _chosen(folder)
        if embeddings is None:
            store.keep_computed(study.without_vectors(NOT_CHOSEN))
    if embeddings is None:
        return found
    return study.with_vectors(embeddings, found, keeping.conversations)


def measure_again(
    store: EventStore,
    root: OutputRoot,
    folder: ExperimentFolder,
    *,
    lineage: Lineage,
    lexical: bool,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Compute what `measure` does, as far as nobody has to be asked for vectors; `lexical`: of `LEXICAL_HASH`, too."""
    study = _Texts(store, root, folder, lineage, progress)
    keeping = _without_vectors(store, study)
    if lexical:
        study.with_vectors(LEXICAL_HASH, Measured(), keeping.conversations)
    else:
        store.keep_computed(study.without_vectors(NOT_CHOSEN))


def _without_vectors(store: EventStore, study: "_Texts") -> "_Keeping":
    with _Keeping(store) as keeping:
        with workers(None if study.is_large() else 1) as pool:
            for computed in study.live(pool):
                keeping.add(computed)
            for computed in study.texts(pool):
                keeping.add(computed)
        for computed in study.others():
            keeping.add(computed)
    return keeping


class _Keeping:
    """Puts what has been computed into the database, now and then and at the end; also where something went wrong."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: list[Computed] = []
        self._messages = 0
        self._since = time.monotonic()
        self._took = 0.0
        self.conversations: set[str] = set()
        """Of which something was computed."""
        self.live = 0
        """Messages whose live metrics the record has not."""

    def __enter__(self) -> "_Keeping":
        return self

    def __exit__(self, *_: object) -> None:
        self._keep()

    def add(self, computed: Computed) -> None:
        self._waiting.append(computed)
        self.conversations.add(computed.conversation_id)
        self.live += len(computed.messages) if computed.part == "live" else 0
        self._messages += len(computed.messages)
        waited = time.monotonic() - self._since
        if waited >= max(KEEP_EVERY_S, self._took / SHARE_OF_KEEPING) or self._messages >= KEEP_MESSAGES:
            self._keep()

    def _keep(self) -> None:
        began = time.monotonic()
        waiting, self._waiting, self._messages = self._waiting, [], 0
        self._store.keep_computed(waiting)
        self._since = time.monotonic()
        self._took = self._since - began


class _Place(NamedTuple):
    """Where a message stands."""

    message_index: int
    turn_number: int
    own: bool
    """It is not another conversation's, which this one shares."""


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
        self._places: dict[str, list[_Place]] = {}
        self._all = sorted(
            (name, row["log_sha256"], row["arm"], row["invalid"], row["origin_conversation_id"])
            for name, row in self._rows.items()
        )

    def is_large(self) -> bool:
        """Whether it pays to compute it in several processes."""
        stale = self._stale_texts() if not self._are_others_stale() else self._rows
        messages: int = sum(self._rows[name]["messages"] for name in stale)
        return messages >= LEAST_FOR_PROCESSES

    def _said(self, name: str) -> list[dict[str, Any]]:
        """All messages of a conversation, those that a branch shares included."""
        rows = self._store.messages.of(name, shared=True)
        self._places[name] = [_Place(row["message_index"], row["turn_number"], row["own"]) for row in rows]
        return rows

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

    def _own(self, name: str, values: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
        """Values in the order of the messages, by the index of those that are the conversation's own."""
        places = zip(self._places[name], values, strict=True)
        return {place.message_index: each for place, each in places if place.own}

    # What the record has not

    def live(self, pool: Workers) -> Iterator[Computed]:
        """Live metrics of conversations that ran without them, came from elsewhere, or broke off within a turn."""
        recorded: dict[str, set[int]] = {}
        for row in self._store.metrics.by_message(self._id, ("computed", "state", "state_onset")):
            if not row["computed"]:
                recorded.setdefault(row["conversation_id"], set()).add(row["message_index"])
            self._states.setdefault(row["conversation_id"], {})[row["message_index"]] = (
                row["state"],
                row["state_onset"],
            )
        lacking = sorted(name for name, row in self._rows.items() if len(recorded.get(name, ())) < row["messages"])
        digests = {name: _digest(self._rows[name]["log_sha256"], sorted(PLUGINS)) for name in lacking}
        stale = [name for name in lacking if self._stale(name, "live", digests[name])]
        if not stale:
            return
        tasks = (
            RecordTask(
                self._root,
                self._folder.log(name),
                self._lineage,
                {agent_id: row["name"] or agent_id for agent_id, row in self._agents.get(name, {}).items()},
                self._rows[name]["opening"] or "",
                frozenset(recorded.get(name, ())),
            )
            for name in stale
        )
        # The metrics that a program brought along itself are in no other process.
        results = map(of_record, tasks) if PLUGINS else pool.map(of_record, tasks)
        for place, (name, found) in enumerate(zip(stale, results, strict=True), 1):
            self._progress(f"live metrics of {name}, {place} of {len(stale)}")
            self._states.setdefault(name, {}).update(
                (index, (values.get("state"), values.get("state_onset"))) for index, values in found.messages.items()
            )
            known = self._rows[name]["metrics"] not in (None, "{}")
            yield self._computed(
                name,
                "live",
                digests[name],
                messages=found.messages,
                conversation={} if known else found.conversation,
                turns=found.turns,
                attractors=found.attractors,
                missing=found.missing,
            )

    # Of one conversation

    def _text_digest(self, name: str) -> str:
        return _digest(self._rows[name]["log_sha256"], _has_vader())

    def _stale_texts(self) -> list[str]:
        return [name for name in self._rows if self._stale(name, "texts", self._text_digest(name))]

    def texts(self, pool: Workers) -> Iterator[Computed]:
        """What takes time by the square of something, and what became of the state.

        On the way the profiles are made, where conversations are to be held against others.
        """
        stale = self._stale_texts()
        wanted = list(self._rows) if self._are_others_stale() else stale
        if not wanted:
            return
        kinds = _error_kinds(self._store.events.errors(self._id)) if stale else {}
        new = set(stale)
        tasks = ((self._talk(name), name in new) for name in wanted)
        for place, (name, found) in enumerate(zip(wanted, pool.map(of_texts, tasks), strict=True), 1):
            self._progress(f"{place} of {len(wanted)} conversations")
            self._profiles[name] = found.profile
            if name in new:
                yield self._of_texts(name, found, kinds)

    def _talk(self, name: str) -> list[tuple[str, str]]:
        return [(row["agent_id"], row["content"]) for row in self._said(name)]

    def _of_texts(self, name: str, found: TextMetrics, kinds: Mapping[tuple[str, int], str]) -> Computed:
        places = self._places[name]
        values = [
            row | {"error_kind": kinds.get((name, place.message_index))}
            for row, place in zip(found.messages, places, strict=True)
        ]
        entered = [self._states.get(name, {}).get(place.message_index, (None, None)) for place in places]
        of_all = found.conversation | states([state for state, _ in entered], [onset for _, onset in entered])
        return self._computed(
            name, "texts", self._text_digest(name), messages=self._own(name, values), conversation=of_all
        )

    # Against other conversations

    def _are_others_stale(self) -> bool:
        digest = _digest(self._all)
        return any(self._stale(name, "others", digest) for name in self._rows)

    def others(self) -> list[Computed]:
        """What a conversation has beyond chance: against others of its arm, and of the experiment; after `texts`."""
        digest = _digest(self._all)
        if not self._are_others_stale():
            return []
        arms: dict[str | None, list[str]] = {}
        why: dict[str, str] = {}
        for name in sorted(self._rows):
            if self._rows[name]["invalid"]:
                why[name] = INVALID
            elif any(place.message_index != at for at, place in enumerate(self._places[name])):
                why[name] = "what it shares with the conversation that it branches off is not in the database"
            else:
                arms.setdefault(self._rows[name]["arm"], []).append(name)
        shared = {name: sum(not place.own for place in places) for name, places in self._places.items()}
        messages: dict[str, list[dict[str, Any]]] = {}
        for names in arms.values():
            corrected_of = convergence_index(
                {name: self._profiles[name] for name in names},
                shared=shared,
                progress=lambda done, of: self._progress(f"surrogates of {done} of {of} conversations"),
            )
            for name, corrected in corrected_of.items():
                messages[name] = [
                    {
                        "convergence_index": each.value,
                        "convergence_index_pooled": each.pooled,
                        "convergence_surrogates": each.surrogates,
                    }
                    for each in corrected
                ]
                if all(each.value is None for each in corrected):
                    have = count(len(names), "valid conversation")
                    few = f"the arm has {have}; convergence_index takes {LEAST_CONVERSATIONS}"
                    enough = len(names) >= LEAST_CONVERSATIONS
                    why[name] = "no reply has two surrogates of its partner's length" if enough else few
        compared = [name for name in sorted(self._rows) if name not in why or why[name] != INVALID]
        deltas = dict(
            zip(
                compared,
                burrows_delta([self._profiles[name] for name in compared], shared=[shared[name] for name in compared]),
                strict=True,
            )
        )
        empty: dict[str, Any] = dict.fromkeys((*INDICES, "convergence_surrogates"))
        found = []
        for name in self._rows:
            values = messages.get(name, [empty] * len(self._places[name]))
            of_all: dict[str, Any] = {
                f"burrows_delta_{one}{two}": value for (one, two), value in deltas.get(name, {}).items()
            }
            for index in INDICES:
                by_turn: dict[int, list[float]] = {}
                for place, each in zip(self._places[name], values, strict=True):
                    if place.own and each[index] is not None:
                        by_turn.setdefault(place.turn_number, []).append(each[index])
                if by_turn:
                    every = [value for each in by_turn.values() for value in each]
                    of_all[f"{index}_mean"] = sum(every) / len(every)
                    turns = range(min(by_turn), max(by_turn) + 1)
                    means = [sum(by_turn[t]) / len(by_turn[t]) if t in by_turn else None for t in turns]
                    of_all[f"{index}_slope"] = summarise(means)["slope"]
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

    def with_vectors(self, choice: str, found: Measured, before: Collection[str]) -> Measured:
        """Semantic metrics of the whole experiment by one model."""
        digest = _digest(choice, self._all)
        if not any(self._stale(name, "semantics", digest) for name in self._rows):
            return found._replace(model=choice)
        said = {name: self._said(name) for name in self._rows}
        openings = {name: row["opening"] or "" for name, row in self._rows.items()}
        prompts = {
            name: {agent: row["system_prompt"] or "" for agent, row in self._agents.get(name, {}).items()}
            for name in self._rows
        }
        texts = [
            *(row["content"] for rows in said.values() for row in rows),
            *openings.values(),
            *(text for each in prompts.values() for text in each.values()),
        ]
        try:
            by_text, model, spent, cost = _vectors(choice, list(dict.fromkeys(texts)), self._progress)
        except PidginError as error:
            why = f"{choice}: {error}"
            self._store.keep_computed(self.without_vectors(why))
            return found._replace(model=choice, failed=str(error))
        of_messages = {name: [by_text[row["content"]] for row in rows] for name, rows in said.items()}
        clusters, switches = topics(of_messages)
        computed = []
        for name, rows in said.items():
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
        return found._replace(conversations=len({*before, *self._rows}), model=model, spent=spent, cost_usd=cost)


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


@lru_cache(maxsize=1)
def _has_vader() -> bool:
    return bool(offline(read([("a", "good")]).readings)[0][0]["sentiment_vader"])
