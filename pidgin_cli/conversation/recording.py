"""What `replay:` models say, read from the record of a conversation."""

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from pidgin_cli.core.errors import LogError
from pidgin_cli.core.events import (
    AgentNamedEvent,
    Event,
    HistoryCompactedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ThinkingCompleteEvent,
    TokenUsageEvent,
)
from pidgin_cli.core.types import ThinkingBlock, Usage
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.providers.replay import RecordedReply

__all__ = ["read_recording"]


def read_recording(path: Path, shared: Sequence[Event] = ()) -> dict[str, list[RecordedReply]]:
    """The replies of every agent in order: messages, names and summaries.

    Args:
        path: a log.
        shared: of a branch, what it shares with other conversations; its agents count those messages as theirs.

    Raises:
        LogError: the log cannot be read, or a line of it is broken: a reply may be missing.
    """
    record = read_record(path)
    if broken := next((skipped for skipped in record.skipped if skipped.why == "broken"), None):
        raise LogError(f"{path.name} cannot be replayed: line {broken.line} is broken, so that a reply may be missing")
    found: dict[str, list[RecordedReply]] = {}
    digests: dict[str, str] = {}
    thinking: list[ThinkingBlock] = []
    asides: dict[tuple[str, str], Usage] = {}
    for event in (*shared, *record.events):
        match event:
            case MessageRequestEvent():
                digests[event.agent_id] = event.digest
                thinking = []
            case ThinkingCompleteEvent():
                thinking.append(ThinkingBlock(event.content, event.signature, event.redacted))
            case MessageCompleteEvent():
                reply = RecordedReply(
                    purpose="message",
                    turn_number=event.turn_number,
                    text=event.message.content,
                    digest=digests.get(event.agent_id),
                    thinking=tuple(thinking),
                    reason=event.finish_reason,
                    usage=event.usage,
                    model=event.model_served,
                    request_id=event.request_id,
                    fingerprint=event.fingerprint,
                )
                found.setdefault(event.agent_id, []).append(reply)
                thinking = []
            case TokenUsageEvent(purpose="name" | "summary"):
                asides[event.agent_id, event.purpose] = Usage(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    thinking_tokens=event.thinking_tokens,
                    cached_tokens=event.cached_tokens,
                    estimated=event.estimated,
                )
            case AgentNamedEvent():
                reply = RecordedReply(purpose="name", turn_number=0, text=event.reply)
                usage = asides.pop((event.agent_id, "name"), Usage())
                found.setdefault(event.agent_id, []).append(replace(reply, usage=usage))
            case HistoryCompactedEvent():
                reply = RecordedReply(purpose="summary", turn_number=event.turn_number, text=event.summary)
                usage = asides.pop((event.agent_id, "summary"), Usage())
                found.setdefault(event.agent_id, []).append(replace(reply, usage=usage))
    return found
