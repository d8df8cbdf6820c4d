"""Records that Pidgin did not write: they become experiments of the output root, and are then like any other.

Two kinds are read. **The earlier Pidgin's logs**: JSON lines with `event_type`, two agents `agent_a` and `agent_b`, and
turns that count from 0; the fields of an event stand in the line itself or, in the first versions, in `data`.
**Plain transcripts**: a line `Name 1:` or `### Name 1 ###` before each message, as the Backrooms published them.

What a record does not say stays absent: nothing is guessed about models, prompts, seeds, costs or why a talk ended.
Where it came from stands in the `source` of each conversation's spec.
"""

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
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
)
from pidgin_cli.eventlog.codec import encode
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot, slug
from pidgin_cli.eventlog.manifest import ConversationEntry, Manifest
from pidgin_cli.eventlog.state import run_state
from pidgin_cli.spec.conversation import spec_hash

from .marks import marks_of

__all__ = ["Adopted", "adopt"]

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
    """What became of foreign records."""

    folder: ExperimentFolder
    conversations: int
    new: bool
    """False: the very same records were taken before."""
    left_out: tuple[str, ...]
    """Files that could not be read as a conversation, or only in part, each with why."""


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

    path: Path
    sha256: str
    format: str
    agents: list[Agent]
    messages: list[_Said]
    opening: str = ""
    arm: str = ""
    max_turns: int | None = None
    convergence: dict[int, float] = msgspec.field(default_factory=dict)
    ended: bool = True
    status: Status = Status.COMPLETED
    end_reason: EndReason = EndReason.UNKNOWN
    started: datetime | None = None
    more: dict[str, Any] = msgspec.field(default_factory=dict)
    left_out: list[str] = msgspec.field(default_factory=list)


def adopt(root: OutputRoot, path: Path) -> list[Adopted]:
    """Make experiments of a file or of everything readable below a folder; each folder of logs is one experiment.

    Taking the same records again changes nothing and makes no second copy: the id derives from what they say.

    Raises:
        SpecError: there is nothing at `path` that could be read, or the output root is not writable.
    """
    groups: dict[Path, list[Path]] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in (".jsonl", ".txt"):
                # The first versions gave each conversation a folder of its own.
                groups.setdefault(path if file.name == "events.jsonl" else file.parent, []).append(file)
    elif path.is_file():
        groups[path] = [path]
    found = []
    left_out: list[str] = []
    for place, files in groups.items():
        told, unread = _read_all(files)
        left_out += unread
        if told:
            found.append(_write(root, slug(place.stem if place.is_file() else place.name), told, unread))
    if not found:
        why = f": {left_out[0]}" if left_out else ": there is no .jsonl or .txt file in it"
        raise SpecError(f"nothing in {path} can be read as a conversation{why}")
    return found


def _read_all(files: Iterable[Path]) -> tuple[list[_Told], list[str]]:
    told: list[_Told] = []
    left_out: list[str] = []
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            left_out.append(f"{file.name}: {error.strerror}")
            continue
        try:
            one = (_earlier if file.suffix == ".jsonl" else _transcript)(file, data)
        except LogError as error:
            left_out.append(f"{file.name}: {error}")
            continue
        told.append(one)
        left_out += [f"{file.name}, {part}" for part in one.left_out]
    return told, left_out


# The earlier Pidgin


def _earlier(path: Path, data: bytes) -> _Told:
    lines: list[dict[str, Any]] = []
    damaged: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            damaged.append(f"line {number} is broken")
            continue
        inner = event.get("data")
        lines.append({**event, **inner} if isinstance(inner, dict) else event)
    if any("schema_version" in event for event in lines[:1]):
        raise LogError("this is a log of Pidgin itself; give the folder of the experiment")
    reader = _EarlierReader(path, hashlib.sha256(data).hexdigest())
    for event in lines:
        reader.take(event)
    return reader.told(damaged)


class _EarlierReader:
    def __init__(self, path: Path, sha256: str) -> None:
        self.path = path
        self.sha256 = sha256
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.prompts: dict[str, str] = {}
        self.messages: list[_Said] = []
        self.from_turns: list[_Said] = []
        self.convergence: dict[int, float] = {}
        self.waiting: list[Event] = []
        self.turn = 1
        self.zones = True
        """Its times say in which zone they are."""

    def take(self, event: dict[str, Any]) -> None:
        when = self._when(event.get("timestamp"))
        match event.get("event_type"):
            case "ConversationStartEvent":
                self.start = self.start or {**event, "when": when}
            case "SystemPromptEvent":
                self.prompts[_agent_id(event.get("agent_id"))] = _text(event.get("prompt"))
            case "TurnStartEvent":
                self.turn = _whole(event.get("turn_number"), self.turn - 1) + 1
            case "ThinkingCompleteEvent":
                self.waiting.append(
                    ThinkingCompleteEvent(
                        agent_id=_agent_id(event.get("agent_id")),
                        turn_number=self.turn,
                        message_index=0,
                        content=_text(event.get("thinking_content")),
                        tokens=_optional(event.get("thinking_tokens")),
                    )
                )
            case "APIErrorEvent":
                self.waiting.append(
                    APIErrorEvent(
                        agent_id=_agent_id(event.get("agent_id")),
                        turn_number=self.turn,
                        message_index=0,
                        error=_text(event.get("error_type")),
                        provider=_text(event.get("provider")),
                        retryable=event.get("retryable") is True,
                        attempt=_whole(event.get("retry_count"), 0) + 1,
                        message=_text(event.get("error_message")),
                    )
                )
            case "MessageCompleteEvent" if isinstance(event.get("message"), dict):
                self.messages.append(
                    _Said(
                        agent_id=_agent_id(event.get("agent_id") or event["message"].get("agent_id")),
                        text=_text(event["message"].get("content")),
                        turn=self.turn,
                        when=when,
                        usage=Usage(
                            prompt_tokens=_optional(event.get("prompt_tokens")),
                            completion_tokens=_optional(event.get("completion_tokens")),
                        ),
                        duration_ms=_number(event.get("duration_ms")),
                        before=self.waiting,
                    )
                )
                self.waiting = []
            case "TurnCompleteEvent":
                self._turn(event, when)
            case "ConversationEndEvent":
                self.end = event

    def _turn(self, event: dict[str, Any], when: datetime | None) -> None:
        number = _whole(event.get("turn_number"), self.turn - 1) + 1
        if (score := _number(event.get("convergence_score"))) is not None:
            self.convergence[number] = score
        turn = event.get("turn")
        holder = turn if isinstance(turn, dict) else event
        for name in ("agent_a_message", "agent_b_message"):
            if isinstance(message := holder.get(name), dict):
                agent_id = _agent_id(name.removesuffix("_message"))
                self.from_turns.append(_Said(agent_id, _text(message.get("content")), number, when))
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
        self.turn = number + 1

    def _when(self, text: Any) -> datetime | None:
        try:
            when = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return None
        if when.tzinfo is None:
            self.zones = False
            return when.replace(tzinfo=UTC)
        return when.astimezone(UTC)

    def told(self, damaged: list[str]) -> _Told:
        messages = self.messages or self.from_turns
        if not messages:
            raise LogError("it holds no message of the earlier Pidgin")
        ids = sorted({said.agent_id for said in messages} | {"a", "b"} & set(self.prompts))
        start, end = self.start, self.end or {}
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
        for said in messages:
            said.model = next(agent.model for agent in agents if agent.id == said.agent_id)
        said_status = _text(end.get("status"))
        reason = _END_REASONS.get(_text(end.get("reason")), EndReason.UNKNOWN)
        interrupted = said_status == "interrupted" or reason is EndReason.STOP_REQUEST
        more = {
            "conversation_id": start.get("conversation_id"),
            "reason": end.get("reason"),
            "status": end.get("status"),
        }
        if not self.zones:
            more["zone"] = "not recorded; times are as written"
        if not self.messages:
            more["messages_from"] = "TurnCompleteEvent"
        return _Told(
            path=self.path,
            sha256=self.sha256,
            format="earlier pidgin",
            agents=agents,
            messages=messages,
            opening=_text(start.get("initial_prompt")),
            max_turns=_optional(start.get("max_turns")),
            convergence=self.convergence,
            ended=self.end is not None,
            status=Status.FAILED
            if said_status == "failed" or reason is EndReason.PROVIDER_ERROR
            else Status.STOPPED
            if interrupted
            else Status.COMPLETED,
            end_reason=reason,
            started=start.get("when"),
            more={key: value for key, value in more.items() if value is not None},
            left_out=damaged,
        )


def _agent_id(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name or "").removeprefix("agent_").lower()) or "a"


def _model(name: Any) -> str:
    text = str(name) if name else UNKNOWN_PROVIDER
    return text if ":" in text else f"{UNKNOWN_PROVIDER}:{text}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _optional(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(value: Any, default: int) -> int:
    found = _optional(value)
    return default if found is None or found < 0 else found


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
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        format="transcript",
        agents=agents,
        messages=said,
        arm=arm,
        more=more,
    )


# Writing


def _write(root: OutputRoot, name: str, told: Sequence[_Told], left_out: Sequence[str]) -> Adopted:
    digest = hashlib.sha256("\n".join(sorted(one.sha256 for one in told)).encode()).digest()
    experiment_id = _base36(int.from_bytes(digest, "big"))
    there = next((folder for folder in root.folders() if folder.experiment_id == experiment_id), None)
    if there is not None:
        return Adopted(there, len(told), False, tuple(left_out))
    now = datetime.now(UTC)
    files: dict[str, bytes] = {}
    entries: dict[str, ConversationEntry] = {}
    draws: Counter[str] = Counter()
    for number, one in enumerate(told, 1):
        conversation_id = f"{experiment_id}-{number}"
        draws[one.arm] += 1
        events = _stamped(experiment_id, conversation_id, _events(conversation_id, one, draws[one.arm]), now)
        log = f"conv_{conversation_id}_events.jsonl"
        files[log] = _lines(event for event, _ in events)
        entries[conversation_id] = ConversationEntry.of(run_state(event for event, _ in events), log)
    source_hash = spec_hash(sorted(one.sha256 for one in told))
    versions = {"pidgin": _version()}
    plan: list[tuple[Event, datetime | None]] = [
        (
            ExperimentStartEvent(
                name=name or None,
                spec_hash=source_hash,
                conversations=len(told),
                pid=0,
                host=platform.node(),
                versions=versions,
            ),
            None,
        ),
        (
            ExperimentCompleteEvent(
                status=Status.COMPLETED, conversations=dict(Counter(entry.status.value for entry in entries.values()))
            ),
            None,
        ),
    ]
    stamped = _stamped(experiment_id, None, plan, now)
    files["experiment_events.jsonl"] = _lines(event for event, _ in stamped)
    manifest = Manifest(
        experiment_id=experiment_id,
        name=name or None,
        status=Status.COMPLETED,
        created_at=now,
        started_at=now,
        completed_at=now,
        versions=versions,
        spec_hash=source_hash,
        conversations=entries,
    )
    manifest.add_up()
    files["manifest.json"] = manifest.encode()
    return Adopted(root.create(experiment_id, name, now.astimezone().date(), files), len(told), True, tuple(left_out))


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


def _events(conversation_id: str, told: _Told, repetition: int) -> list[tuple[Event, datetime | None]]:
    source = {"format": told.format, "file": told.path.name, "sha256": told.sha256, **told.more}
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
    by_turn: dict[int, list[_Said]] = {}
    for said in told.messages:
        by_turn.setdefault(said.turn, []).append(said)
    index = 0
    known: tuple[int | None, int | None] = (0, 0)
    for turn, (original, messages) in enumerate(by_turn.items(), 1):
        spoken = tuple(dict.fromkeys(said.agent_id for said in messages))
        last = turn == len(by_turn)
        speakers = (*spoken, *(name for name in everyone if name not in spoken)) if last else spoken
        found.append((TurnStartEvent(turn_number=turn, speakers=speakers), messages[0].when))
        for said in messages:
            found += [(_placed(event, turn, index, everyone), said.when) for event in said.before]
            found += _message(conversation_id, said, turn, index, known)
            usage = found[-1][0]
            assert isinstance(usage, TokenUsageEvent)
            known = _sum(known, said.usage)
            index += 1
        if not last or set(spoken) == set(everyone):
            score = told.convergence.get(original)
            found.append((TurnCompleteEvent(turn_number=turn, convergence=score), messages[-1].when))
    if told.ended:
        texts = [said.text for said in told.messages]
        empty = sum(not text.strip() for text in texts)
        complete = sum(isinstance(event, TurnCompleteEvent) for event, _ in found)
        found.append(
            (
                ConversationEndEvent(
                    status=told.status,
                    end_reason=told.end_reason,
                    totals=Totals(turns=complete, messages=index, prompt_tokens=known[0], completion_tokens=known[1]),
                    invalid=("harness_fault",) if any(text.startswith(_API_ERROR) for text in texts) else (),
                    notable={"empty": empty} if empty else {},
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
    return [
        (
            MessageCompleteEvent(
                agent_id=said.agent_id,
                turn_number=turn,
                message_index=index,
                message=Message(Role.ASSISTANT, said.text, id=f"{conversation_id}:m{index}"),
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
