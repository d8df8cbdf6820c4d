"""Records that Pidgin did not write: they become experiments of the output root, and are then like any other.

Two kinds are read. **The earlier Pidgin's logs**: JSON lines with `event_type`, two agents `agent_a` and `agent_b`, and
turns that count from 0; the fields of an event stand in the line itself or, in the first versions, in `data`.
**Plain transcripts**: a line such as `Name 1:` or `### Name 1 ###` before each message, as the Backrooms published
them; `marks` tells which lines are such.

What a record does not say stays absent: nothing is guessed about models, prompts, seeds, costs or why a talk ended.
Where it came from stands in the `source` of each conversation's spec.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count, groupby
from math import isfinite
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pidgin_cli.core.errors import LogError, SpecError
from pidgin_cli.core.events import (
    SCHEMA_VERSION,
    APIErrorEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    ExperimentCompleteEvent,
    ExperimentStartEvent,
    InterventionEvent,
    MessageCompleteEvent,
    SystemPromptEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
    Totals,
    TurnCompleteEvent,
    TurnStartEvent,
)
from pidgin_cli.core.types import (
    Agent,
    AgentSettings,
    EndReason,
    FinishReason,
    Message,
    Role,
    Status,
    Timing,
    Usage,
    clean_text,
)
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, slug
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest, rebuild
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.spec.conversation import spec_hash

from .marks import marks_of

__all__ = ["Adopted", "Adoption", "adopt"]

UNKNOWN_PROVIDER = "unknown"

_DATED = re.compile(r"(?P<stem>.+?)_(?P<date>\d{8}_\d{6})")
_MODEL = r"(?:claude|opus|sonnet|haiku|gpt|o\d|gemini|gemma|llama|mi[sx]tral|qwen|deepseek|grok)[^_]*"
_PAIR = re.compile(rf"(?P<one>{_MODEL})_(?P<other>{_MODEL})_(?P<scenario>.+)")
"""How the Backrooms named their files. Any other name says nothing about models."""

_API_ERROR = "[API error"
"""The earlier Pidgin let agents say its own errors."""

_END_REASONS = {
    "max_turns": EndReason.TURN_LIMIT,
    "max_turns_reached": EndReason.TURN_LIMIT,
    "high_convergence": EndReason.CONVERGENCE,
    "interrupted": EndReason.STOP_REQUEST,
    "context_limit_reached": EndReason.CONTEXT_LIMIT,
    "context_limit": EndReason.CONTEXT_LIMIT,
    "error": EndReason.PROVIDER_ERROR,
}


class Adopted(NamedTuple):
    """An experiment that holds foreign records."""

    folder: ExperimentFolder
    conversations: int
    """Of the files given."""
    new: int
    """Of them taken now for the first time."""
    changed: tuple[str, ...]
    """Files that have changed since they were taken; their conversations are replaced."""
    elsewhere: tuple[tuple[str, str], ...]
    """Files taken now that another experiment holds as well, and its id."""


class Adoption(NamedTuple):
    """What became of foreign records."""

    experiments: tuple[Adopted, ...]
    left_out: tuple[str, ...]
    """Files that could not be read as a conversation, or only in part, each with why."""
    torn: tuple[str, ...]
    """Files whose last line was cut short."""


class _Said(Struct):
    """One message of a foreign record."""

    agent_id: str
    text: str
    turn: int
    when: datetime | None = None
    usage: Usage = Usage()
    duration_ms: float | None = None
    model: str | None = None
    before: list[Event] = msgspec.field(default_factory=list)
    """What stands before it in the same turn: thinking, errors, interventions."""


class _Told(Struct):
    """A foreign conversation, as far as it says what it is."""

    sha256: str
    format: str
    agents: list[Agent]
    messages: list[_Said]
    after: list[Event] = msgspec.field(default_factory=list)
    """What stands behind the last message: what ended it, or was put in and not answered."""
    opening: str = ""
    arm: str = ""
    max_turns: int | None = None
    convergence: dict[int, float] = msgspec.field(default_factory=dict)
    ended: bool = True
    status: Status = Status.COMPLETED
    end_reason: EndReason = EndReason.UNKNOWN
    error: str | None = None
    started: datetime | None = None
    more: dict[str, Any] = msgspec.field(default_factory=dict)
    left_out: list[str] = msgspec.field(default_factory=list)
    torn: list[str] = msgspec.field(default_factory=list)
    """The last line, where it was cut short."""
    file: str = ""
    """Below the folder that it was taken from."""


def adopt(root: OutputRoot, path: Path) -> Adoption:
    """Make experiments of a file or of everything readable below a folder; each folder of logs is one experiment.

    Taking the same records again changes nothing. A folder or file that was taken before goes on with the experiment
    that it became: what is new is added, what has changed is replaced, and what is gone from it stays.

    Raises:
        SpecError: there is nothing at `path` that could be read, or the output root is not writable.
        LogError: another process writes to the experiment.
    """
    groups: dict[Path, list[Path]] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in (".jsonl", ".txt"):
                # The first versions gave each conversation a folder of its own.
                groups.setdefault(path if file.name == "events.jsonl" else file.parent, []).append(file)
    elif path.is_file():
        groups[path] = [path]
    read: dict[Path, list[_Told]] = {}
    left_out: list[str] = []
    torn: list[str] = []
    for place, files in groups.items():
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            try:
                one = _read(file)
            except LogError as error:
                left_out.append(f"{name}: {error}")
                continue
            one.file = file.relative_to(place).as_posix() if place.is_dir() else file.name
            read.setdefault(place, []).append(one)
            left_out += [f"{name}, {part}" for part in one.left_out]
            torn += [f"{name}, {part}" for part in one.torn]
    if not read:
        why = f": {left_out[0]}" if left_out else ": there is no .jsonl or .txt file in it"
        more = f"; and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise SpecError(f"nothing in {path} can be read as a conversation{why}{more}")
    with root.naming():
        adopted = {folder.experiment_id: (folder, _taken(folder)) for folder in root.folders()}
        found = [_write(root, place, told, adopted) for place, told in read.items()]
    return Adoption(tuple(found), tuple(left_out), tuple(torn))


def _read(file: Path) -> _Told:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LogError(error.strerror or str(error)) from None
    return (_earlier if file.suffix == ".jsonl" else _transcript)(file, data)


# The earlier Pidgin


def _earlier(_: Path, data: bytes) -> _Told:
    lines: list[tuple[int, dict[str, Any]]] = []
    damaged: list[str] = []
    torn: list[str] = []
    pieces = data.removeprefix(BOM_UTF8).split(b"\n")
    for number, line in enumerate(pieces, 1):
        if not line.strip():
            continue
        event = _object(line)
        if event is None:
            where, what = (torn, "torn") if number == len(pieces) else (damaged, "broken")
            where.append(f"line {number} is {what}")
            continue
        inner = event.get("data")
        lines.append((number, {**event, **inner} if isinstance(inner, dict) else event))
    if any("schema_version" in event for _, event in lines[:1]):
        raise LogError("this is a log of Pidgin itself; give the folder of the experiment")
    reader = _EarlierReader(hashlib.sha256(data).hexdigest())
    for number, event in lines:
        reader.take(number, event)
    told = reader.told(damaged)
    told.torn = torn
    return told


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            found = json.loads(line)  # Python writes NaN and halves of surrogate pairs, which are no JSON elsewhere
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


class _EarlierReader:
    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.prompts: dict[str, str] = {}
        self.messages: list[_Said] = []
        self.from_turns = 0
        """Messages of which only the turn tells."""
        self.convergence: dict[int, float] = {}
        self.waiting: list[Event] = []
        self.failure: str | None = None
        """What the last error said, while nothing was said after it."""
        self.turn = 1
        self.numbered = False
        """It says when turns begin or end."""
        self.begun_at = 0
        """Which message the turn begins with."""
        self.turns: dict[int, dict[str, str]] = {}
        """What was said in turns that are complete."""
        self.nameless: list[tuple[int, str]] = []
        """Line and words of messages of which only the turn may tell whose they are."""
        self.left_out: list[str] = []
        self.untold: Counter[str] = Counter()
        """Events of which nothing is taken."""
        self.zones = True
        """Its times say in which zone they are."""
        self._ids: dict[str, str] = {}

    def take(self, line: int, event: dict[str, Any]) -> None:
        when = self._when(event.get("timestamp"))
        match event.get("event_type"):
            case "ConversationStartEvent":
                self.start = self.start or {**event, "when": when}
            case "SystemPromptEvent":
                if agent_id := self._speaker(line, event, "a system prompt"):
                    self.prompts[agent_id] = _text(event.get("prompt"))
            case "TurnStartEvent":
                number = _whole(event.get("turn_number"), self.turn - 1) + 1
                if number != self.turn:
                    self.turn, self.begun_at = number, len(self.messages)
                self.numbered = True
            case "ThinkingCompleteEvent":
                if agent_id := self._speaker(line, event, "a thought"):
                    self.waiting.append(
                        ThinkingCompleteEvent(
                            agent_id=agent_id,
                            turn_number=self.turn,
                            message_index=0,
                            content=_text(event.get("thinking_content")),
                            tokens=_optional(event.get("thinking_tokens")),
                        )
                    )
            case "APIErrorEvent" | "ProviderTimeoutEvent":
                if agent_id := self._speaker(line, event, "an error"):
                    self._failed(agent_id, event)
            case "MessageCompleteEvent":
                self._message(line, event, when)
            case "TokenUsageEvent":
                self._usage(event)
            case "TurnCompleteEvent":
                self._turn(line, event, when)
            case "ConversationEndEvent":
                # A second one says no more than `completed`, unless the conversation was resumed.
                if self.end is None or event.get("reason") in _END_REASONS:
                    self.end = event
            case "MessageRequestEvent" | "MessageChunkEvent":
                pass  # pieces of what the messages say
            case kind:
                self.untold[_text(kind) or "without a type"] += 1

    def _speaker(self, number: int, event: dict[str, Any], what: str) -> str | None:
        found = self._agent_id(event.get("agent_id"))
        if found is None:
            self.left_out.append(f"line {number}: {what} without the agent it is of")
        return found

    def _agent_id(self, name: Any) -> str | None:
        """`a` of `agent_a`; ids of our form for any other name, each its own."""
        text = name.strip().lower() if isinstance(name, str) else ""
        if not text:
            return None
        if seat := re.fullmatch(r"(?:agent[\s_-]*)?([ab])", text):
            return seat[1]
        if text not in self._ids:
            plain = re.sub(r"[^a-z0-9]", "", text) or "x"
            taken = {"a", "b", *self._ids.values()}
            ids = (plain if place == 1 else f"{plain}{place}" for place in count(1))
            self._ids[text] = next(each for each in ids if each not in taken)
        return self._ids[text]

    def _failed(self, agent_id: str, event: dict[str, Any]) -> None:
        kind, said = _text(event.get("error_type")), _text(event.get("error_message"))
        self.failure = ": ".join(filter(None, (kind, said))) or None
        self.waiting.append(
            APIErrorEvent(
                agent_id=agent_id,
                turn_number=self.turn,
                message_index=0,
                error=kind,
                provider=_text(event.get("provider")),
                retryable=event.get("retryable") is True,
                attempt=_whole(event.get("retry_count"), 0) + 1,
                message=said,
            )
        )

    def _message(self, number: int, event: dict[str, Any], when: datetime | None) -> None:
        holder = event.get("message", event.get("content"))
        words, whole = _words(holder)
        if words is None:
            self.left_out.append(f"line {number}: a message that is no text")
            return
        if not whole:
            self.left_out.append(f"line {number}: parts of a message that are no text")
        agent_id = self._agent_id(event.get("agent_id") or (holder.get("agent_id") if isinstance(holder, dict) else ""))
        if agent_id is None:
            self.nameless.append((number, words))
            return
        if not self.numbered and any(said.agent_id == agent_id for said in self.messages[self.begun_at :]):
            self.turn, self.begun_at = self.turn + 1, len(self.messages)
        usage = Usage(
            prompt_tokens=_optional(event.get("prompt_tokens")),
            completion_tokens=_optional(event.get("completion_tokens")),
        )
        duration_ms = _number(event.get("duration_ms"))
        self.messages.append(_Said(agent_id, words, self.turn, when, usage, duration_ms, before=self.waiting))
        self.waiting = []
        self.failure = None

    def _usage(self, event: dict[str, Any]) -> None:
        """Of the message just said, where that one does not tell it itself."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.usage == Usage() and self._agent_id(event.get("agent_id")) == last.agent_id:
            last.usage = Usage(
                prompt_tokens=_optional(event.get("prompt_tokens")),
                completion_tokens=_optional(event.get("completion_tokens")),
            )

    def _turn(self, line: int, event: dict[str, Any], when: datetime | None) -> None:
        number = _whole(event.get("turn_number"), self.turn - 1) + 1
        self.numbered = True
        if (score := _number(event.get("convergence_score"))) is not None:
            self.convergence[number] = score
        turn = event.get("turn")
        holder = turn if isinstance(turn, dict) else event
        told: dict[str, str] = {}
        for agent_id in ("a", "b"):
            said = holder.get(f"agent_{agent_id}_message")
            words, whole = _words(said)
            if words is not None:
                told[agent_id] = words
            if said is not None and not whole:
                self.left_out.append(f"line {line}: parts of a message that are no text")
        if not told or self.turns.get(number) != told:
            self._complete(line, number, told, when)
        if isinstance(put_in := holder.get("intervention"), dict):
            self.waiting.append(
                InterventionEvent(
                    turn_number=number + 1,
                    source="person",
                    audience=(),
                    text=_text(put_in.get("content")),
                    placement="user",
                )
            )
        self.turns[number] = told
        self.turn, self.begun_at = number + 1, len(self.messages)

    def _complete(self, line: int, number: int, told: dict[str, str], when: datetime | None) -> None:
        """Add what stands in the turn and nowhere else."""
        there: dict[str, set[str]] = {}
        for said in self.messages[self.begun_at :]:
            there.setdefault(said.agent_id, set()).add(said.text)
        for agent_id, words in told.items():
            if agent_id in there:
                if words not in there[agent_id]:
                    self.left_out.append(f"line {line}: other words of agent {agent_id} than in its message")
                continue
            said = _Said(agent_id, words, number, when, before=self.waiting)
            self.waiting = []
            self.failure = None
            self.from_turns += 1
            self.messages.insert(self.begun_at if agent_id == "a" else len(self.messages), said)
            self.nameless = [each for each in self.nameless if each[1] != words]

    def _when(self, text: Any) -> datetime | None:
        try:
            when = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return None
        if when.tzinfo is None:
            self.zones = False
            return when.replace(tzinfo=UTC)
        return when.astimezone(UTC)

    def told(self, damaged: Sequence[str]) -> _Told:
        nameless = [f"line {number}: a message without the agent it is of" for number, _ in self.nameless]
        left_out = [*damaged, *self.left_out, *nameless]
        start, end = self.start, self.end or {}
        if not self.messages and (left_out or not start):
            shown = [*left_out[:3], f"and {len(left_out) - 3} more"] if len(left_out) > 3 else left_out
            raise LogError("; ".join(("it holds no message of the earlier Pidgin", *shown)))
        heard = {said.agent_id for said in self.messages} | {
            event.agent_id for event in self.waiting if isinstance(event, APIErrorEvent | ThinkingCompleteEvent)
        }
        ids = sorted(heard | {seat for seat in ("a", "b") if seat in self.prompts or start.get(f"agent_{seat}_model")})
        agents = [
            Agent(
                id=agent_id,
                model=_model(start.get(f"agent_{agent_id}_model")),
                name=_text(start.get(f"agent_{agent_id}_display_name")) or agent_id,
                system_prompt=self.prompts.get(agent_id),
                settings=AgentSettings(temperature=_number(start.get(f"temperature_{agent_id}"))),
            )
            for agent_id in ids
        ]
        for said in self.messages:
            said.model = next(agent.model for agent in agents if agent.id == said.agent_id)
        said_status = _text(end.get("status"))
        reason = _END_REASONS.get(_text(end.get("reason")), EndReason.UNKNOWN)
        interrupted = said_status == "interrupted" or reason is EndReason.STOP_REQUEST
        failed = said_status == "failed" or reason is EndReason.PROVIDER_ERROR
        more: dict[str, Any] = {
            name: _text(holder.get(name)) or None
            for holder, name in ((start, "conversation_id"), (end, "reason"), (end, "status"))
        }
        if not self.zones:
            more["zone"] = "not recorded; times are as written"
        if self.from_turns:
            more["messages_from"] = "TurnCompleteEvent"
            if self.from_turns < len(self.messages):
                more["messages_from"] += f": {self.from_turns} of them"
        if self.untold:
            more["events_not_taken"] = dict(sorted(self.untold.items()))
        return _Told(
            sha256=self.sha256,
            format="earlier pidgin",
            agents=agents,
            messages=self.messages,
            after=self.waiting,
            opening=_text(start.get("initial_prompt")),
            max_turns=_optional(start.get("max_turns")),
            convergence=self.convergence,
            ended=self.end is not None,
            status=Status.FAILED if failed else Status.STOPPED if interrupted else Status.COMPLETED,
            end_reason=reason,
            error=(_text(end.get("error")) or self.failure) if failed else None,
            started=start.get("when"),
            more={key: value for key, value in more.items() if value is not None},
            left_out=left_out,
        )


def _words(message: Any) -> tuple[str | None, bool]:
    """The words of a message, of one that is a text, or of one in blocks, and whether there is nothing else in it."""
    content = message.get("content") if isinstance(message, dict) else message
    if isinstance(content, list):
        texts = [
            block.get("text") if isinstance(block, dict) and block.get("type", "text") == "text" else block
            for block in content
        ]
        words = [text for text in texts if isinstance(text, str)]
        return ("".join(words) if words or not content else None), len(words) == len(content)
    return (content, True) if isinstance(content, str) else (None, content is None)


def _model(name: Any) -> str:
    text = _text(name) or UNKNOWN_PROVIDER
    return text if ":" in text else f"{UNKNOWN_PROVIDER}:{text}"


def _text(value: Any) -> str:
    return clean_text(value)[0] if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def _optional(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _whole(value: Any, default: int) -> int:
    found = _optional(value)
    return default if found is None else found


# Plain transcripts


def _transcript(path: Path, data: bytes) -> _Told:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LogError("it is not UTF-8 text") from None
    lines = text.replace("\r\n", "\n").split("\n")
    marks = marks_of(lines)
    ends = [*(mark.place for mark in marks[1:]), len(lines)]
    seats = sorted({mark.speaker: None for mark in marks}, key=lambda speaker: speaker.number or 0)
    if len(seats) > len(ascii_lowercase):
        raise LogError(f"{len(seats)} speak in it; {len(ascii_lowercase)} can")
    ids = dict(zip(seats, ascii_lowercase, strict=False))
    dated = _DATED.fullmatch(path.stem)
    arm = dated["stem"] if dated else ""
    pair = _PAIR.fullmatch(arm)
    models = (pair["one"], pair["other"]) if pair and len(seats) <= 2 else ()
    agents = [
        Agent(
            id=ids[speaker],
            model=f"{UNKNOWN_PROVIDER}:{models[seat] if models else speaker.label}",
            name=str(speaker),
        )
        for seat, speaker in enumerate(seats)
    ]
    more: dict[str, Any] = {}
    if dated:
        more["dated"] = dated["date"]
    if preface := "\n".join(lines[: marks[0].place]).strip():
        more["preface"] = preface
    said: list[_Said] = []
    turn, spoken = 1, set[str]()
    for mark, end in zip(marks, ends, strict=True):
        agent_id = ids[mark.speaker]
        if agent_id in spoken:
            turn, spoken = turn + 1, set()
        spoken.add(agent_id)
        block = [*([] if mark.words is None else [mark.words]), *lines[mark.place + 1 : end]]
        # The writer ends a message with a newline and begins the next mark with one; both are no part of the words.
        words = "\n".join(block[:-1] if block and not block[-1] else block)
        model = next(agent.model for agent in agents if agent.id == agent_id)
        said.append(_Said(agent_id, words, turn, model=model))
    return _Told(
        sha256=hashlib.sha256(data).hexdigest(),
        format="transcript",
        agents=agents,
        messages=said,
        arm=arm,
        more=more,
    )


# Writing


class _Source(Struct):
    file: str = ""
    sha256: str = ""
    place: str = ""


class _Spec(Struct):
    source: _Source | None = None


class _Taken(Struct):
    """The beginning of a log, as far as it tells what it was made of."""

    spec: _Spec
    arm: str = ""
    repetition: int = 0

    @property
    def source(self) -> _Source:
        return self.spec.source or _Source()


def _write(
    root: OutputRoot,
    place: Path,
    told: Sequence[_Told],
    adopted: dict[str, tuple[ExperimentFolder, dict[str, _Taken]]],
) -> Adopted:
    """Make an experiment of the files of a folder, or go on with the one that they are in.

    `adopted` has all experiments and what they were taken from, and is brought up to date.
    """
    name = slug(place.stem if place.is_file() else place.name)
    # Not the path itself: it would go wherever the record goes.
    where = hashlib.blake2b(os.fsencode(place.resolve()), digest_size=8).hexdigest()
    there = _home(adopted.values(), where, name, {one.sha256 for one in told})
    held = {} if there is None else adopted[there.experiment_id][1]
    new, changed = _compared(told, held)
    elsewhere = tuple(
        (one.file, experiment_id)
        for one in (*new, *changed.values())
        for experiment_id, (folder, takings) in adopted.items()
        if folder is not there and any(taking.source.sha256 == one.sha256 for taking in takings.values())
    )
    if there is None:
        there = _create(root, _free_id(told, adopted), name, where, told)
    else:
        asyncio.run(_extend(there, where, held, new, changed))
    adopted[there.experiment_id] = (there, _taken(there))
    return Adopted(there, len(told), len(new), tuple(one.file for one in changed.values()), elsewhere)


def _taken(folder: ExperimentFolder) -> dict[str, _Taken]:
    """What each conversation of an experiment was taken from; empty for one that was run."""
    if folder.spec.exists():
        return {}
    found = {}
    for conversation_id, log in folder.logs().items():
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError), log.open("rb") as file:
            found[conversation_id] = msgspec.json.decode(file.readline(), type=_Taken)
    return found if any(taking.spec.source is not None for taking in found.values()) else {}


def _home(
    adopted: Iterable[tuple[ExperimentFolder, Mapping[str, _Taken]]], where: str, name: str, given: Collection[str]
) -> ExperimentFolder | None:
    """The experiment that a folder became: by its place, else by what is in it, should it have been moved."""
    moved = None
    for folder, takings in adopted:
        if takings and takings[max(takings, key=_number_of)].source.place == where:  # where the last was taken from
            return folder
        held = {taking.source.sha256 for taking in takings.values()}
        if held and (held == given or (folder.slug == name and held <= set(given))):
            moved = moved or folder
    return moved


def _number_of(conversation_id: str) -> int:
    return int(conversation_id.rpartition("-")[2])


def _compared(told: Sequence[_Told], held: Mapping[str, _Taken]) -> tuple[list[_Told], dict[str, _Told]]:
    """Files that are new, and by conversation those that have changed. One under a new name is the same."""
    left = dict(held)
    others = []
    for one in told:
        same = next((name for name, taking in left.items() if taking.source.sha256 == one.sha256), None)
        if same is None:
            others.append(one)
        else:
            del left[same]
    new, changed = [], {}
    for one in others:
        was = next((name for name, taking in left.items() if taking.source.file == one.file), None)
        if was is None:
            new.append(one)
        else:
            del left[was]
            changed[was] = one
    return new, changed


def _free_id(told: Sequence[_Told], taken: Collection[str]) -> str:
    """Derived from what the files say."""
    digest = hashlib.sha256("\n".join(sorted(one.sha256 for one in told)).encode()).digest()
    while (experiment_id := _base36(int.from_bytes(digest, "big"))) in taken:
        digest = hashlib.sha256(digest).digest()
    return experiment_id


def _run(name: str | None, digests: Iterable[str], statuses: Iterable[Status]) -> list[Event]:
    """What stands in the log of an experiment whose conversations were taken in."""
    statuses = list(statuses)
    return [
        ExperimentStartEvent(
            name=name,
            spec_hash=spec_hash(sorted(digests)),
            conversations=len(statuses),
            pid=0,
            host=platform.node(),
            versions={"pidgin": _version()},
        ),
        ExperimentCompleteEvent(
            status=Status.COMPLETED, conversations=dict(Counter(status.value for status in statuses))
        ),
    ]


def _create(root: OutputRoot, experiment_id: str, name: str, where: str, told: Sequence[_Told]) -> ExperimentFolder:
    now = datetime.now(UTC)
    files: dict[str, bytes] = {}
    entries: dict[str, ConversationEntry] = {}
    draws: Counter[str] = Counter()
    for number, one in enumerate(told, 1):
        conversation_id = f"{experiment_id}-{number}"
        draws[one.arm] += 1
        events = _stamped(experiment_id, conversation_id, _events(conversation_id, one, where, draws[one.arm]), now)
        log = f"conv_{conversation_id}_events.jsonl"
        files[log] = _lines(event for event, _ in events)
        entries[conversation_id] = ConversationEntry.of(run_state(event for event, _ in events), log)
    run = _run(name or None, (one.sha256 for one in told), (entry.status for entry in entries.values()))
    start, _ = run
    assert isinstance(start, ExperimentStartEvent)
    stamped = _stamped(experiment_id, None, [(event, None) for event in run], now)
    files["experiment_events.jsonl"] = _lines(event for event, _ in stamped)
    manifest = Manifest(
        experiment_id=experiment_id,
        name=name or None,
        status=Status.COMPLETED,
        created_at=now,
        started_at=now,
        completed_at=now,
        versions=start.versions,
        spec_hash=start.spec_hash,
        conversations=entries,
    )
    manifest.add_up()
    files["manifest.json"] = manifest.encode()
    return root.create(experiment_id, name, now.astimezone().date(), files)


async def _extend(
    folder: ExperimentFolder,
    where: str,
    held: Mapping[str, _Taken],
    new: Sequence[_Told],
    changed: Mapping[str, _Told],
) -> None:
    """Add conversations to an experiment, and replace those whose files have changed."""
    syncer = Syncer()
    try:
        log, record = EventLog.resume(
            folder.events, experiment_id=folder.experiment_id, conversation_id=None, syncer=syncer
        )
        try:
            starts = [event for event in record.events if isinstance(event, ExperimentStartEvent)]
            # A process that was killed may have written conversations of which the experiment does not know yet.
            if not new and not changed and starts and starts[-1].conversations == len(held):
                return
            draws = Counter[str]()
            for taking in held.values():
                draws[taking.arm] = max(draws[taking.arm], taking.repetition)
            for conversation_id, one in changed.items():
                _replace_log(folder, conversation_id, one, where, held[conversation_id].repetition)
            last = max(map(_number_of, held))
            for number, one in enumerate(new, last + 1):
                draws[one.arm] += 1
                _replace_log(folder, f"{folder.experiment_id}-{number}", one, where, draws[one.arm])
            digests = [taking.source.sha256 for taking in _taken(folder).values()]
            statuses = [run_state(read_record(path).events).status for path in folder.logs().values()]
            for event in _run(starts[-1].name if starts else folder.slug or None, digests, statuses):
                log.append(event)
        finally:
            await log.aclose()
    finally:
        await syncer.aclose()
    rebuild(folder, write=True)


def _replace_log(folder: ExperimentFolder, conversation_id: str, told: _Told, where: str, repetition: int) -> None:
    events = _events(conversation_id, told, where, repetition)
    stamped = _stamped(folder.experiment_id, conversation_id, events, datetime.now(UTC))
    path = folder.log(conversation_id)
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.write_bytes(_lines(event for event, _ in stamped))
        making.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            making.unlink()
        raise LogError(f"{path} cannot be written: {error.strerror}") from error


def _version() -> str:
    from importlib.metadata import version

    return version("pidgin-cli")


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    found = ""
    for _ in range(8):
        number, rest = divmod(number, 36)
        found += digits[rest]
    return found


def _events(conversation_id: str, told: _Told, where: str, repetition: int) -> list[tuple[Event, datetime | None]]:
    source = {"format": told.format, "file": told.file, "sha256": told.sha256, "place": where, **told.more}
    spec: dict[str, Any] = {
        "agents": msgspec.to_builtins(told.agents),
        "opening": told.opening,
        "prompt_tag": "",
        "arm": told.arm,
        "repetition": repetition,
        "source": source,
    }
    if told.max_turns is not None:
        spec["max_turns"] = told.max_turns
    found: list[tuple[Event, datetime | None]] = [
        (
            ConversationStartEvent(
                schema_version=SCHEMA_VERSION,
                pidgin_version=_version(),
                spec=spec,
                spec_hash=spec_hash(spec),
                agents=tuple(told.agents),
                opening=told.opening,
                prompt_tag="",
                seed=0,
                arm=told.arm,
                repetition=repetition,
            ),
            told.started,
        )
    ]
    for agent in told.agents:
        placement = "not recorded" if agent.system_prompt is not None else None
        found.append((SystemPromptEvent(agent_id=agent.id, text=agent.system_prompt, placement=placement), None))
    everyone = tuple(agent.id for agent in told.agents)
    turns = [(number, list(said)) for number, said in groupby(told.messages, key=lambda said: said.turn)]
    index = turn = 0
    whole = True
    known: tuple[int | None, int | None] = (0, 0)
    for turn, (original, messages) in enumerate(turns, 1):
        spoken = tuple(dict.fromkeys(said.agent_id for said in messages))
        last = turn == len(turns)
        speakers = (*spoken, *(name for name in everyone if name not in spoken)) if last else spoken
        found.append((TurnStartEvent(turn_number=turn, speakers=speakers), messages[0].when))
        for said in messages:
            found += [(_placed(event, turn, index, everyone), said.when) for event in said.before]
            found += _message(conversation_id, said, turn, index, known)
            known = _sum(known, said.usage)
            index += 1
        whole = not last or set(spoken) == set(everyone)
        if whole:
            score = told.convergence.get(original)
            found.append((TurnCompleteEvent(turn_number=turn, convergence=score), messages[-1].when))
    if whole and not all(isinstance(event, InterventionEvent) for event in told.after):
        found.append((TurnStartEvent(turn_number=turn + 1, speakers=everyone), None))  # somebody was asked
    found += [(_placed(event, turn + whole, index, everyone), None) for event in told.after]
    if told.ended:
        texts = [said.text for said in told.messages]
        notable = {
            "empty": sum(not text.strip() for text in texts),
            "text_replaced": sum(clean_text(text)[1] for text in texts),
        }
        complete = sum(isinstance(event, TurnCompleteEvent) for event, _ in found)
        found.append(
            (
                ConversationEndEvent(
                    status=told.status,
                    end_reason=told.end_reason,
                    error=told.error,
                    totals=Totals(turns=complete, messages=index, prompt_tokens=known[0], completion_tokens=known[1]),
                    invalid=("harness_fault",) if any(text.startswith(_API_ERROR) for text in texts) else (),
                    notable={name: number for name, number in notable.items() if number},
                ),
                None,
            )
        )
    return found


def _placed(event: Event, turn: int, index: int, everyone: tuple[str, ...]) -> Event:
    if isinstance(event, InterventionEvent):
        return replace(event, turn_number=turn, message_index=index, audience=everyone)
    return replace(event, turn_number=turn, message_index=index)


def _message(
    conversation_id: str, said: _Said, turn: int, index: int, known: tuple[int | None, int | None]
) -> list[tuple[Event, datetime | None]]:
    model = said.model or f"{UNKNOWN_PROVIDER}:{UNKNOWN_PROVIDER}"
    provider, _, name = model.partition(":")
    prompt, completion = _sum(known, said.usage)
    text, replaced = clean_text(said.text)
    return [
        (
            MessageCompleteEvent(
                agent_id=said.agent_id,
                turn_number=turn,
                message_index=index,
                message=Message(Role.ASSISTANT, text, id=f"{conversation_id}:m{index}", text_replaced=replaced),
                finish_reason=FinishReason.UNKNOWN,
                usage=said.usage,
                timing=Timing(duration_ms=said.duration_ms),
                model_requested=model,
            ),
            said.when,
        ),
        (
            TokenUsageEvent(
                agent_id=said.agent_id,
                provider=provider,
                model=name,
                prompt_tokens=said.usage.prompt_tokens,
                completion_tokens=said.usage.completion_tokens,
                total_tokens=None if prompt is None or completion is None else prompt + completion,
            ),
            said.when,
        ),
    ]


def _sum(known: tuple[int | None, int | None], usage: Usage) -> tuple[int | None, int | None]:
    def add(so_far: int | None, more: int | None) -> int | None:
        return None if so_far is None or more is None else so_far + more

    return add(known[0], usage.prompt_tokens), add(known[1], usage.completion_tokens)


def _stamped(
    experiment_id: str,
    conversation_id: str | None,
    events: Sequence[tuple[Event, datetime | None]],
    now: datetime,
) -> list[tuple[Event, datetime]]:
    """The events as a log holds them. An event without a time of its own has that of the one before it."""
    times = [when for _, when in events if when is not None]
    latest = min(times) if times else now
    found = []
    for seq, (event, when) in enumerate(events):
        latest = max(latest, when or latest)
        whole = replace(
            event,
            event_id=f"{conversation_id or experiment_id}:{seq}",
            seq=seq,
            timestamp=latest,
            experiment_id=experiment_id,
            conversation_id=conversation_id,
        )
        found.append((whole, latest))
    return found


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(encode(event) + b"\n" for event in events)
