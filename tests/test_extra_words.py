"""`extra` says what Pidgin has no word for, and nothing that would make the record wrong about what was sent."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, error_of, pidgin
from loopback import LoopbackServer
from support import check_record, converse, experiment, of_type

from pidgin_cli.conversation.dialogue import Dialogue
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.events import WarningEvent
from pidgin_cli.core.types import Agent, AgentSettings
from pidgin_cli.providers.registry import split_model, unsupported

__all__ = ["pidgin"]

CHAT, RESPONSES, CLAUDE = "openai:gpt-4o", "openai:gpt-5-pro", "anthropic:claude-sonnet-4-5"
GEMINI, OLLAMA = "google:gemini-2.5-flash", "ollama:llama3.2"
EVERYWHERE = (CHAT, "xai:grok-3", "vllm:m", RESPONSES, CLAUDE, GEMINI, OLLAMA)


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "OPENAI_", "OLLAMA_", "GOOGLE_", "GEMINI_", "XAI_", "VLLM_")):
            monkeypatch.delenv(variable)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackServer]:
    async with LoopbackServer() as server:
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        yield server


def refused(model: str, extra: dict[str, Any], **settings: Any) -> dict[str, str]:
    agent = Agent(id="a", name="A", model=model, settings=AgentSettings(extra=extra, **settings))
    found = unsupported(split_model(model)[0], agent, thinks=None)
    return {name: reason for name, reason in found.items() if name.startswith("extra")}


@pytest.mark.parametrize(
    ("word", "key"),
    [
        *((word, None) for word in ("messages", "contents", "input", "prompt", "stream", "stream_options")),
        ("model", "model"),
        *((word, "system_prompt") for word in ("system", "systemInstruction", "system_instruction", "instructions")),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
    ],
)
def test_what_pidgin_sends_itself(word: str, key: str | None) -> None:
    """What is sent with every request, and sampling, is refused with every adapter; a key for it is named."""
    for model in EVERYWHERE:
        ((where, reason),) = refused(model, {word: None, "top_k": 5}).items()
        assert (where, reason.startswith(f"extra cannot say {word}")) == (f"extra.{word}", True), model
        assert (f"; the key {key} does" in reason) == (key is not None), model


@pytest.mark.parametrize(
    ("model", "extra", "where", "key"),
    [
        (CHAT, {"max_tokens": 5}, "max_tokens", "max_tokens"),
        (CHAT, {"stop": ["."]}, "stop", "stop"),
        (CHAT, {"seed": 1}, "seed", "seed"),
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort", "effort"),
        (RESPONSES, {"max_output_tokens": 5}, "max_output_tokens", "max_tokens"),
        (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning.effort", "effort"),
        (CLAUDE, {"max_tokens": 5}, "max_tokens", "max_tokens"),
        (CLAUDE, {"stop_sequences": ["."]}, "stop_sequences", "stop"),
        (CLAUDE, {"output_config": {"effort": "low"}}, "output_config.effort", "effort"),
        (CLAUDE, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens", "think_budget"),
        (GEMINI, {"generationConfig": {"topP": 1, "topK": 5}}, "generationConfig.topP", "top_p"),
        (GEMINI, {"generation_config": {"max_output_tokens": 5}}, "generation_config.max_output_tokens", "max_tokens"),
        (GEMINI, {"generationConfig": {"stopSequences": ["."]}}, "generationConfig.stopSequences", "stop"),
        (
            GEMINI,
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 9}}},
            "generationConfig.thinkingConfig.thinkingBudget",
            "think_budget",
        ),
        (OLLAMA, {"num_predict": 5}, "num_predict", "max_tokens"),
        (OLLAMA, {"options": {"seed": 5, "top_k": 5}}, "options.seed", "seed"),
    ],
)
def test_settings_in_the_words_of_a_provider(model: str, extra: dict[str, Any], where: str, key: str) -> None:
    """An adapter's own word for a setting is refused wherever it stands, and the setting's key is named."""
    assert refused(model, extra) == {f"extra.{where}": f"extra cannot say {where}; the key {key} does"}


@pytest.mark.parametrize(
    ("model", "extra", "settings", "key"),
    [
        ("vllm:m", {"max_completion_tokens": 5}, {"max_tokens": 6}, "max_tokens"),
        ("mistral:m", {"random_seed": 5}, {"seed": 6}, "seed"),
        ("deepseek:m", {"thinking": {"type": "disabled"}}, {"think": True}, "think"),
        ("openrouter:m", {"reasoning": {"max_tokens": 9}}, {"effort": "low"}, "effort"),
        (RESPONSES, {"reasoning": {"summary": "detailed"}}, {"think": True}, "think"),
        (CLAUDE, {"thinking": {"type": "adaptive"}}, {"think_budget": 2000}, "think_budget"),
        (CLAUDE, {"output_config": {"format": {}}}, {"effort": "low"}, "effort"),
        (OLLAMA, {"think": False}, {"think": True}, "think"),
    ],
)
def test_another_word_beside_a_setting(model: str, extra: dict[str, Any], settings: dict[str, Any], key: str) -> None:
    """Another word for a setting, or a mapping in which it stands, is taken alone and refused beside the setting."""
    (word,) = extra
    assert refused(model, extra) == {}
    assert refused(model, extra, **settings) == {f"extra.{word}": f"extra cannot say {word} beside the key {key}"}


def test_one_reply_to_a_request() -> None:
    """More replies than one are refused; one is what is asked for anyway."""
    for model, word in ((CHAT, "n"), ("vllm:m", "best_of"), (GEMINI, "candidateCount")):
        for value in (2, 0, "1", None, True):
            assert "a request is for one reply" in refused(model, {word: value})[f"extra.{word}"]
        assert refused(model, {word: 1}) == {}
    nested = refused(GEMINI, {"generationConfig": {"candidateCount": 3}})
    assert list(nested) == ["extra.generationConfig.candidateCount"]


def test_what_brings_in_words_from_elsewhere() -> None:
    """Text that a provider keeps and puts before the messages is not in the record, and is refused."""
    assert refused(GEMINI, {"cachedContent": "cachedContents/x"})
    for word in ("store", "background", "previous_response_id", "conversation"):
        assert refused(RESPONSES, {word: "x"})
    assert refused(CHAT, {"store": True}) == {}


def test_mappings_have_to_be_mappings() -> None:
    """What an adapter takes apart and cannot would be lost without a word."""
    assert refused(OLLAMA, {"options": 5}) == {"extra.options": "extra.options has to be a mapping"}
    assert refused(GEMINI, {"generationConfig": []}).keys() == {"extra.generationConfig"}


def test_everything_else_is_taken() -> None:
    """Words that Pidgin does not have are taken, and so is anything by what has no request over HTTP."""
    fine = {"top_k": 5, "min_p": 0.1, "metadata": {"model": "x", "n": 3}, "num_ctx": 5000, "logprobs": True}
    assert [refused(model, fine) for model in EVERYWHERE] == [{}] * len(EVERYWHERE)
    for model in ("local:test", "replay:x"):
        assert refused(model, {"messages": [], "temperature": 1}) == {}


# Before a run


@pytest.mark.parametrize(
    ("model", "said", "told"),
    [
        (CHAT, "messages=[]", "agent a: extra cannot say messages, which Pidgin sends itself; leave it out, or give"),
        (GEMINI, "contents=[]", "agent a: extra cannot say contents, which Pidgin sends itself; leave it out, or give"),
        (CHAT, "temperature=0.9", "agent a: extra cannot say temperature; the key temperature does; leave it out, or"),
    ],
)
def test_a_run_is_refused(pidgin: Pidgin, model: str, said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command refuses in one line before anything is sent or written."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    found = error_of(pidgin("chat", "-a", model, "-b", "local:test", "--temp-a", "0.1", "--set", f"a.extra.{said}"))
    assert told in found
    assert list(Path().iterdir()) == []


async def test_a_question_is_refused(server: LoopbackServer) -> None:
    """`Dialogue` refuses as well, and asks nothing."""
    async with Dialogue(CHAT, settings=AgentSettings(extra={"messages": []})) as dialogue:
        with pytest.raises(SpecError, match="extra cannot say messages"):
            await dialogue.process("Why?")
    assert server.requests == []


async def test_lenient_leaves_out_these_words_alone(server: LoopbackServer, tmp_path: Path) -> None:
    """A lenient run sends the rest of `extra` and the settings, and a warning for each word stands in the record."""
    extra = {
        "contents": [],
        "labels": {"a": "b"},
        "generationConfig": {"temperature": 0.9, "topK": 7},
        "generation_config": {"topP": 0.9},
    }
    agents = {"a": {"temperature": 0.1, "extra": extra}}
    run = await converse(tmp_path, experiment(GEMINI, "local:test", max_turns=1, agents=agents, lenient=True))
    check_record(run.events)
    (request,) = server.chats
    assert request.messages
    assert request.body["generationConfig"] == {"temperature": 0.1, "topK": 7}
    assert request.body["labels"] == {"a": "b"}
    assert "generation_config" not in request.body
    assert [event.what for event in of_type(run.events, WarningEvent)] == [
        "extra.contents",
        "extra.generationConfig.temperature",
        "extra.generation_config.topP",
    ]
