"""Tokens of thinking that a server counts beside the reply, as xAI does, and not within it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback import LoopbackServer, Reply
from support import check_record, converse, experiment, of_type

from pidgin_cli.core.events import ConversationEndEvent, MessageCompleteEvent
from pidgin_cli.core.types import Usage
from pidgin_cli.spec.catalogue import use_settings
from pidgin_cli.spec.settings import ModelSettings, Settings

XAI = "xai:grok-4"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        monkeypatch.setenv("XAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("XAI_API_KEY", "xai-loopback")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        use_settings(Settings(models={XAI: ModelSettings(input_price=3, output_price=15)}))
        yield server
        use_settings(Settings())


def counting(prompt: int, completion: int, reasoning: int | None, total: int | None) -> Reply:
    """A reply of one word with these counts; None is left out."""
    said = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "grok-4"}
    usage: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if total is not None:
        usage["total_tokens"] = total
    chunks = (
        said | {"choices": [{"index": 0, "delta": {"content": "303"}, "finish_reason": None}]},
        said | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        said | {"choices": [], "usage": usage},
    )
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return Reply(body=body, headers={"Content-Type": "text/event-stream"})


@pytest.mark.parametrize(
    ("counts", "completion"),
    [
        ((32, 9, 100_000, 100_041), 100_009),
        ((32, 9, 5, 41), 9),
        ((32, 9, 9, 41), 9),
        ((32, 9, 0, 41), 9),
        ((32, 9, 5, None), 9),
        ((32, 9, None, 41), 9),
    ],
    ids=["beside", "within", "all of it within", "none", "no total", "not told"],
)
async def test_thinking_is_part_of_what_was_written(
    counts: tuple[int, int, int | None, int | None], completion: int, server: LoopbackServer, tmp_path: Path
) -> None:
    """Where the total counts thinking beside the completion, both together are the completion, and are paid for."""
    server.script(counting(*counts))
    run = await converse(tmp_path, experiment(XAI, "local:test", max_turns=1))
    check_record(run.events)
    told = next(event for event in of_type(run.events, MessageCompleteEvent) if event.agent_id == "a")
    assert told.usage == Usage(prompt_tokens=32, completion_tokens=completion, thinking_tokens=counts[2])
    spent = of_type(run.events, ConversationEndEvent)[-1].totals.cost_usd
    assert spent == pytest.approx((32 * 3 + completion * 15) / 1e6)
