"""`replay:<record>`: serves what an agent said in a recorded conversation, in order.

    replay:CONVERSATION            the agent with the same id in that conversation
    replay:path/to/conv_….jsonl#b  agent b of that log

Nothing is made up: when the request differs from the recorded one by a character of text, or the record ends, the
reply is an error that names the turn.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from msgspec import Struct

from pidgin_cli.core.errors import RequestRejected
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    ModelRequest,
    Purpose,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Usage,
    UsageDelta,
)

__all__ = ["ReadRecording", "RecordedReply", "ReplayProvider"]


class RecordedReply(Struct, frozen=True):
    """One reply of one agent, as a log holds it."""

    purpose: Purpose
    turn_number: int
    text: str
    digest: str | None = None
    """Of the request it answered; None where the record does not have it."""
    thinking: tuple[ThinkingBlock, ...] = ()
    reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    model: str | None = None
    request_id: str | None = None
    fingerprint: str | None = None


ReadRecording = Callable[[str], Mapping[str, Sequence[RecordedReply]]]
"""Agent id to its replies in order, for a conversation id or the path of a log. Raises NotFound or LogError."""


class ReplayProvider:
    """Serves recorded replies."""

    def __init__(self, read: ReadRecording) -> None:
        self._read = read
        self._recordings: dict[str, Mapping[str, Sequence[RecordedReply]]] = {}

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        reply = self._reply(request)
        if reply.digest is not None and request.digest and reply.digest != request.digest:
            raise RequestRejected(
                f"replay: in turn {request.turn_number}, agent {request.agent_id} would be sent something else than in "
                f"the record {request.model}",
                provider="replay",
            )
        for block in reply.thinking:
            yield ThinkingDelta(block.text, block.signature, block.redacted)
        if reply.text:
            yield TextDelta(reply.text)
        yield UsageDelta(reply.usage)
        yield Finish(reply.reason, model=reply.model, request_id=reply.request_id, fingerprint=reply.fingerprint)

    def _reply(self, request: ModelRequest) -> RecordedReply:
        source, _, agent_id = request.model.partition("#")
        agent_id = agent_id or request.agent_id
        if source not in self._recordings:
            self._recordings[source] = self._read(source)
        replies = [reply for reply in self._recordings[source].get(agent_id, ()) if reply.purpose == request.purpose]
        wanted = request.own_number if request.purpose == "message" else 1
        if request.purpose == "summary":
            replies = [reply for reply in replies if reply.turn_number == request.turn_number]
        if len(replies) < wanted:
            raise RequestRejected(
                f"replay: {source} has no {request.purpose} {wanted} of agent {agent_id} "
                f"(turn {request.turn_number}); it ends after {len(replies)}",
                provider="replay",
            )
        return replies[wanted - 1]

    async def aclose(self) -> None:
        self._recordings.clear()
