"""What providers say of when to come back."""

from datetime import UTC, datetime, timedelta

import pytest

from pidgin_cli.core.types import AgentSettings, Timeouts
from pidgin_cli.providers.registry import ProviderPool
from pidgin_cli.providers.wire import retry_after_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60s"}, 7.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        (
            {
                "x-ratelimit-remaining-requests": "3",
                "x-ratelimit-reset-requests": "60s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "120ms",
            },
            0.12,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "60s"}, None),
        ({}, None),
        ({"retry-after": "86400"}, 86_400.0),
        ({"retry-after": "86401"}, None),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after-ms": "9" * 30, "retry-after": "4"}, 4.0),
        ({"retry-after": "Mon, 20 Nov 1995 19:12:08 +99999999999999"}, None),
        ({"retry-after": "Mon, 20 Nov 1995 19:12:08 +2359"}, 0.0),
        ({"retry-after": "Mon, 20 Nov 9995 19:12:08 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 400 + "s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 400}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "24h"}, 86_400.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1d1ms"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9999-12-31T23:59:59Z"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2026-11-21T09:00:07Z",
                "date": "Sat, 21 Nov 2026 09:00:00 +99999999999999",
            },
            0.0,
        ),
    ],
)
def test_rate_limit_headers_are_obeyed(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After first, else the reset of the limit that is used up, else nothing; what nobody means is not told."""
    assert retry_after_s(headers) == seconds


def test_a_reset_may_be_a_date() -> None:
    """Anthropic names the moment; the longest of the used-up limits counts."""
    now = datetime.now(UTC)
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": (now + timedelta(seconds=20)).isoformat(),
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": (now + timedelta(seconds=40)).isoformat(),
    }
    wait = retry_after_s(headers)
    assert wait is not None
    assert 35 < wait <= 40


@pytest.mark.parametrize(
    ("model", "settings", "adapter"),
    [
        ("openai:gpt-5", AgentSettings(), "OpenAIProvider"),
        ("openai:gpt-5", AgentSettings(think=True), "ResponsesProvider"),
        ("openai:gpt-5", AgentSettings(effort="low"), "ResponsesProvider"),
        ("openai:gpt-5", AgentSettings(think=True, seed=1), "OpenAIProvider"),
        ("openai:gpt-5-pro", AgentSettings(), "ResponsesProvider"),
        ("xai:grok-4", AgentSettings(think=True), "OpenAIProvider"),
    ],
)
async def test_openai_is_asked_where_it_shows_its_thinking(
    model: str, settings: AgentSettings, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Responses API where a model needs it or is to think, unless a setting exists in chat completions only."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("XAI_API_KEY", "none")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    pool = ProviderPool()
    try:
        assert type(pool.adapter(model, Timeouts(), settings)).__name__ == adapter
    finally:
        await pool.aclose()
