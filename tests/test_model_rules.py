"""What vendors document that their models refuse, and the version of Anthropic's API that takes sampling."""

import os
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer

from pidgin_cli.conversation.dialogue import Dialogue
from pidgin_cli.core.types import Agent, AgentSettings
from pidgin_cli.providers.model_rules import claude_version
from pidgin_cli.providers.registry import ProviderPool, split_model, unsupported
from pidgin_cli.spec.catalogue import thinks


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every provider is at its vendor's own address."""
    for variable in list(os.environ):
        if variable.endswith("_BASE_URL"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path / "no settings"))


def reasons(model: str, visible: Any = "nobody", **settings: Any) -> dict[str, str]:
    agent = Agent(id="a", name="A", model=model, settings=AgentSettings(**settings), thinking_visible=visible)
    return unsupported(split_model(model)[0], agent, thinks=thinks(model))


OLD, NEW = "anthropic:claude-sonnet-4-5", "anthropic:claude-opus-4-7"


@pytest.mark.parametrize(
    ("model", "settings", "refused"),
    [
        # Claude, up to 4.6
        (OLD, {"temperature": 1.0, "top_p": 0.5}, {}),
        (OLD, {"temperature": 1.01}, {"temperature": "at most 1, not 1.01"}),
        (OLD, {"temperature": 0.5, "think": True}, {"temperature": "but 1 while it thinks"}),
        (OLD, {"temperature": 0.5, "think": False}, {}),
        (OLD, {"temperature": 1.0, "top_p": 0.95, "think": True}, {}),
        (OLD, {"top_p": 0.94, "think_budget": 2000}, {"top_p": "below 0.95 while it thinks"}),
        (OLD, {"think_budget": 1023}, {"think_budget": "from 1024 on"}),
        (OLD, {"think_budget": 1024}, {}),
        (OLD, {"think_budget": 2000, "max_tokens": 2000}, {"think_budget": "below max_tokens, which is 2000"}),
        (OLD, {"think_budget": 2000, "max_tokens": 2001}, {}),
        (OLD, {"think_budget": 64_000}, {"think_budget": "below max_tokens, which is 64000"}),
        (OLD, {"think": True, "max_tokens": 1024}, {"think": "needs max_tokens above 1024, not 1024"}),
        (OLD, {"think": True, "max_tokens": 1025}, {}),
        ("anthropic:claude-opus-4-6", {"think": True, "max_tokens": 500}, {}),  # it decides how much
        ("anthropic:my-own", {"temperature": 2.0, "think_budget": 1}, {}),  # whatever that is
        # Claude, later
        (NEW, {"temperature": 1.0}, {}),
        (NEW, {"temperature": 0.0}, {"temperature": "takes no temperature but 1"}),
        (NEW, {"top_p": 0.5}, {"top_p": "takes no top_p but 0.99"}),
        (NEW, {"temperature": 1.0, "top_p": 0.99}, {"top_p": "beside a temperature"}),
        (NEW, {"think_budget": 4000}, {"think_budget": "guided by effort"}),
        (NEW, {"think": True, "effort": "high"}, {}),
        (NEW, {"think": False}, {}),
        ("anthropic:claude-sonnet-5-5", {"think": False}, {}),
        ("anthropic:claude-opus-5", {"think": False}, {}),
        ("anthropic:claude-opus-5-5", {"think": False}, {"think": "cannot be told not to think; effort says"}),
        ("anthropic:claude-fable-5-2", {"think": False}, {"think": "cannot be told not to think; effort says"}),
        # OpenAI
        ("openai:gpt-5-mini", {"temperature": 1.0}, {}),
        ("openai:gpt-5-mini", {"temperature": 0.7, "top_p": 0.7}, {"temperature": "but 1", "top_p": "but 1"}),
        ("openai:o3-2025-04-16", {"temperature": 0.0, "stop": ("x",)}, {"temperature": "but 1", "stop": "no stop"}),
        ("openai:gpt-5.1", {"temperature": 0.7, "effort": "none"}, {}),
        ("openai:gpt-5.1", {"temperature": 0.7, "effort": "low"}, {"temperature": "while it thinks"}),
        ("openai:gpt-5-chat-latest", {"temperature": 0.7}, {}),
        ("openai:gpt-5.2-chat-latest", {"temperature": 0.7}, {}),  # nowhere documented: the endpoint decides
        ("openai:gpt-5-nano", {"think": False}, {"think": "cannot be told not to think"}),
        ("openai:o3", {"effort": "none"}, {"effort": "takes no effort of none"}),
        ("openai:gpt-5.1", {"think": False}, {}),
        ("openai:gpt-4o", {"temperature": 0.7, "stop": ("a", "b", "c", "d")}, {}),
        ("openai:gpt-4o", {"stop": ("a", "b", "c", "d", "e")}, {"stop": "at most 4 texts in stop, not 5"}),
        ("openai:o3-pro", {"stop": ("x",), "seed": 1}, {"stop": "take no stop", "seed": "take no seed"}),
        # xAI
        ("xai:grok-4", {"effort": "low"}, {"effort": "cannot be told how much to think"}),
        ("xai:grok-4-1-fast-reasoning", {"think": True}, {"think": "cannot be told how much to think"}),
        ("xai:grok-3-mini", {"effort": "low"}, {}),
        ("xai:grok-4.7", {"effort": "low"}, {}),
        ("xai:grok-4.20-0309-reasoning", {"effort": "low"}, {"effort": "cannot be told how much to think"}),
        ("xai:grok-4", {"stop": ("x",)}, {"stop": "no stop, because it thinks"}),
        ("xai:grok-2", {"stop": ("x",)}, {}),
        # Google
        ("google:gemini-3-pro", {"think_budget": 200, "effort": "low"}, {"think_budget": "not both"}),
        ("google:gemini-2.5-pro", {"think": False}, {"think": "cannot be told not to think"}),
        ("google:gemini-2.5-flash", {"think": False}, {}),
        ("google:gemini-3.8-flash", {"think": False}, {"think": "cannot be told not to think"}),
        ("google:gemini-3.8-flash", {"temperature": 0.0}, {"temperature": "ignores temperature"}),
        ("google:gemini-3.5-flash-lite", {"top_p": 0.5}, {"top_p": "ignores top_p"}),
        ("google:gemini-4-argon", {"temperature": 1.0, "top_p": 0.95}, {}),  # what it does anyway
        ("google:gemini-3.5-flash", {"temperature": 0.0}, {}),
        ("google:gemini-2.5-pro", {"temperature": 0.0, "think_budget": 128}, {}),
        ("google:gemini-pro-latest", {"think": True}, {}),
        ("google:gemini-pro-vision", {"think": True}, {"think": "does not think"}),
        ("google:gemini-2.5-pro", {"think_budget": 127}, {"think_budget": "from 128 to 32768"}),
        ("google:gemini-2.5-flash-lite", {"think_budget": 24_577}, {"think_budget": "from 512 to 24576"}),
        ("google:gemini-2.5-flash", {"think_budget": 24_576}, {}),
        # Names that nobody knows, and providers without rules
        ("openai:next-year", {"temperature": 0.3, "stop": tuple("abcde"), "effort": "odd"}, {}),
        ("vllm:gpt-5", {"temperature": 0.3, "stop": tuple("abcde")}, {}),
    ],
)
def test_what_a_model_refuses(model: str, settings: dict[str, Any], refused: dict[str, str]) -> None:
    """Exactly the settings that the vendor says are errors, or have no effect, are listed, with the reason."""
    found = reasons(model, **settings)
    assert found.keys() == refused.keys()
    for name, words in refused.items():
        assert words in found[name]


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("anthropic:claude-opus-5", {}, "only when asked to think: set think"),
        ("anthropic:claude-opus-5", {"think": True}, None),
        ("anthropic:claude-2", {"think": False}, "does not think"),
        ("google:gemini-3-pro", {"effort": "low"}, "only when asked to think: set think"),
        ("google:gemini-3-pro", {"think_budget": 200}, None),
        ("openai:gpt-5.4", {}, "only when asked to think: set think or effort"),
        ("openai:gpt-5.4", {"effort": "low"}, None),
        ("openai:gpt-5.4", {"think": True, "seed": 3}, "beside stop or seed"),
        ("openai:gpt-4o", {}, "does not think"),
        ("xai:grok-4", {}, "keeps what it thinks to itself"),
        ("xai:grok-3-mini", {}, None),
        ("xai:grok-4-fast-reasoning", {}, "keeps what it thinks to itself"),
        ("xai:grok-4.20-0309-reasoning", {}, None),
        ("xai:grok-code-fast-1", {}, None),
        ("local:silent", {}, "does not think"),
        ("local:test", {}, None),
        ("vllm:some-model", {}, None),
    ],
)
def test_thinking_that_nobody_could_see(model: str, settings: dict[str, Any], told: str | None) -> None:
    """A partner is promised thoughts only where the model thinks and the vendor's API returns them."""
    found = reasons(model, "partner", **settings).get("thinking_visible")
    assert (found is None) if told is None else (found is not None and told in found)
    assert "thinking_visible" not in reasons(model, **settings)


def test_elsewhere_thinking_may_be_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether another server at the same provider's name returns thinking is not known, so it is not refused."""
    assert reasons("openai:gpt-5.4", "partner")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert reasons("openai:gpt-5.4", "partner") == {}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("claude-opus-4-6", (4, 6)),
        ("claude-4-6-opus", (4, 6)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-haiku-5-5", (5, 5)),
        ("claude-mythos-preview", None),
        ("gpt-5", None),
    ],
)
def test_versions_of_claude(name: str, version: tuple[int, int] | None) -> None:
    """The version is read out of the name, and a date is none."""
    assert claude_version(name) == version


@pytest.mark.parametrize("name", ["temperature", "top_p", "extra"])
async def test_sampling_goes_to_the_version_that_takes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sampling parameters Claude is asked in the API's version that has them; without, in the SDK's own."""
    value: Any = {"top_k": 5} if name == "extra" else 0.5
    async with LoopbackServer() as server:
        for variable, address in server.env.items():
            monkeypatch.setenv(variable, address)
        for settings in (AgentSettings(), AgentSettings(**{name: value})):
            async with Dialogue("anthropic:claude-sonnet-4-6", settings=settings, pool=ProviderPool()) as dialogue:
                await dialogue.process("Hello")
    plain, sampled = (request.headers["anthropic-version"] for request in server.chats)
    assert sampled == "2023-06-01"
    assert plain > sampled
