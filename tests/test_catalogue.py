"""What is known of models before they are asked: their names, windows, prices, and whether they think."""

from collections.abc import Iterator

import pytest

from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Usage
from pidgin_cli.providers.registry import PROVIDERS
from pidgin_cli.spec.catalogue import (
    LISTED,
    aliases,
    context_window,
    cost_usd,
    facts,
    known_models,
    price_source,
    resolve_model,
    thinks,
    use_settings,
)
from pidgin_cli.spec.settings import EndpointSettings, ModelSettings, Settings

SONNET = "anthropic:claude-sonnet-4-5"


@pytest.fixture(autouse=True)
def _no_settings() -> Iterator[None]:
    use_settings(Settings())
    yield
    use_settings(Settings())


# Names


@pytest.mark.parametrize("alias", aliases())
def test_an_alias_names_a_model_that_is_known(alias: str) -> None:
    """Every short name leads to a provider of ours, and to a model with a price."""
    model_id = resolve_model(alias, PROVIDERS)
    assert model_id.partition(":")[0] in PROVIDERS
    found = facts(model_id)
    assert found.input_price is not None
    assert found.output_price is not None
    if not model_id.startswith(("local:", "mistral:")):
        assert found.context is not None
        assert found.context >= 100_000
        assert found.input_price > 0


def test_known_models_carry_our_names() -> None:
    """Every listed provider has models, each under a provider that Pidgin can open, and no id stands there twice."""
    models = known_models()
    assert {model.partition(":")[0] for model in models} == {*LISTED, "local"}
    assert set(LISTED) <= PROVIDERS.keys()
    assert len(set(models)) == len(models)
    assert all(model.partition(":")[2] for model in models)


def test_an_id_is_taken_as_it_is() -> None:
    """Any model of a known provider may be named, listed or not, colons and slashes in it included."""
    for model_id in ("openai:not-listed-anywhere", "ollama:qwen3:4b", "openrouter:a/b:free", "local:test?words=5"):
        assert resolve_model(f" {model_id}\n", PROVIDERS) == model_id


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("sonet", "sonnet"),
        ("gemni", "gemini"),
        ("claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"),
        ("anthropc:claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"),
        ("opnai:gpt-4o", "openai:gpt-4o"),
        ("xai", "xai:grok"),
        ("nothing-like-any-of-them", "claude"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(wanted: str, near: str) -> None:
    """A wrong alias, a bare model name or a wrong provider is refused, with ids that were probably meant."""
    with pytest.raises(SpecError, match="the nearest are") as caught:
        resolve_model(wanted, PROVIDERS)
    assert near in str(caught.value).partition("the nearest are")[2].partition(" (or any")[0]
    assert repr(wanted) in str(caught.value)


def test_the_nearest_may_be_a_server_of_ones_own() -> None:
    """Where a provider has no listed models, as an endpoint of the settings, the name is offered under it."""
    for wanted, near in (("my-vlm:org/llama:8b", "my-vllm:org/llama:8b"), ("olama:qwen3:4b", "ollama:qwen3:4b")):
        with pytest.raises(SpecError, match=r"the nearest (is|are)") as caught:
            resolve_model(wanted, [*PROVIDERS, "my-vllm"])
        assert near in str(caught.value).partition("the nearest")[2].partition(" (or any")[0]


def test_no_name_at_all() -> None:
    """An empty name is not called an unknown one, and some that would do are shown."""
    with pytest.raises(SpecError, match="no model is named; write one such as claude"):
        resolve_model(" ", PROVIDERS)


def test_a_provider_alone_names_no_model() -> None:
    """`openai:` is refused with an example of what to write."""
    with pytest.raises(SpecError, match=r"names no model; write openai:MODEL, such as openai:\S+$"):
        resolve_model("openai:", PROVIDERS)


def test_own_aliases_outrank_ours() -> None:
    """A person's alias replaces ours, may lead over another one, and a circle of them is an unknown model."""
    use_settings(Settings(aliases={"claude": "local:test", "best": "opus", "one": "other", "other": "one"}))
    assert resolve_model("claude", PROVIDERS) == "local:test"
    assert resolve_model("best", PROVIDERS) == resolve_model("opus", PROVIDERS)
    with pytest.raises(SpecError, match="unknown model"):
        resolve_model("one", PROVIDERS)


# Facts


def test_facts_of_a_listed_model() -> None:
    """Window, prices and thinking of a listed model are known; cached input is cheaper than fresh."""
    found = facts(SONNET)
    assert (found.id, found.thinks) == (SONNET, True)
    assert found.context is not None
    assert found.input_price is not None
    assert found.output_price is not None
    assert found.cached_price is not None
    assert 0 < found.cached_price < found.input_price < found.output_price


@pytest.mark.parametrize("model_id", ["anthropic:never-heard-of", "vllm:llama", "gpu-box:llama", "no-colon"])
def test_nothing_is_made_up(model_id: str) -> None:
    """Of a model that nobody lists, every fact is None."""
    found = facts(model_id)
    assert (found.context, found.input_price, found.output_price, found.cached_price) == (None,) * 4
    assert context_window(model_id) is None


@pytest.mark.parametrize("model_id", ["local:test", "ollama:qwen3:4b", "replay:abc"])
def test_what_runs_here_is_free(model_id: str) -> None:
    """Models on the person's own machine cost 0, also when the usage is not known."""
    assert (facts(model_id).input_price, facts(model_id).output_price) == (0.0, 0.0)
    assert cost_usd(model_id, Usage()) == 0.0
    assert cost_usd(model_id, Usage(prompt_tokens=10, completion_tokens=10), at_home=False) == 0.0


def test_settings_outrank_the_list() -> None:
    """A person's window and prices replace the listed ones, each alone; the rest stays as listed."""
    listed = facts(SONNET)
    use_settings(Settings(models={SONNET: ModelSettings(context=1234)}))
    assert facts(SONNET).context == context_window(SONNET) == 1234
    assert facts(SONNET).input_price == listed.input_price
    use_settings(Settings(models={SONNET: ModelSettings(input_price=7, output_price=0)}))
    found = facts(SONNET)
    assert (found.context, found.input_price, found.output_price) == (listed.context, 7, 0)
    use_settings(Settings())
    assert context_window(SONNET) == listed.context


def test_an_endpoints_window_is_that_of_its_models() -> None:
    """A named endpoint may give one window for all its models; that of a single model outranks it."""
    use_settings(
        Settings(
            endpoints={"gpu": EndpointSettings(base_url="http://gpu/v1", context=8192)},
            models={"gpu:big": ModelSettings(context=65536)},
        )
    )
    assert [context_window(f"gpu:{name}") for name in ("small", "big", "other")] == [8192, 65536, 8192]
    assert context_window("vllm:small") is None


@pytest.mark.parametrize(
    ("model_id", "answer"),
    [
        ("anthropic:claude-3-5-sonnet-20241022", False),
        ("anthropic:claude-3-haiku-20240307", False),
        ("anthropic:claude-3-7-sonnet-latest", True),
        ("anthropic:claude-sonnet-4-5", True),
        ("openai:gpt-4o", False),
        ("openai:gpt-4.1-mini", False),
        ("openai:gpt-5-chat-latest", False),
        ("openai:gpt-5", True),
        ("openai:gpt-6.1-sol", True),
        ("openai:o1-mini", False),
        ("openai:o3", True),
        ("openai:ft:own", None),
        ("google:gemini-2.0-flash", False),
        ("google:gemini-1.5-pro", False),
        ("google:gemini-2.5-flash", True),
        ("xai:grok-2", False),
        ("xai:grok-3", False),
        ("xai:grok-3-mini", True),
        ("xai:grok-4-fast-non-reasoning", False),
        ("xai:grok-4", True),
        ("local:test", True),
        ("local:silent", False),
        ("ollama:qwen3:4b", None),
        ("deepseek:deepseek-reasoner", None),
        ("my-vllm:claude", None),
    ],
)
def test_whether_a_model_thinks(model_id: str, answer: bool | None) -> None:
    """Known families say yes or no; of others it is not known, and the endpoint decides."""
    assert thinks(model_id) is answer
    assert facts(model_id).thinks is answer


# Costs


def test_a_reply_costs_what_the_list_says() -> None:
    """Fresh input, cached input and output each have their listed price, so that cached tokens are cheaper."""
    found = facts(SONNET)
    assert found.input_price is not None
    assert found.output_price is not None
    assert found.cached_price is not None
    fresh = cost_usd(SONNET, Usage(prompt_tokens=1000, completion_tokens=100))
    cached = cost_usd(SONNET, Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=900))
    assert fresh == pytest.approx((1000 * found.input_price + 100 * found.output_price) / 1e6)
    assert cached == pytest.approx(
        (100 * found.input_price + 900 * found.cached_price + 100 * found.output_price) / 1e6
    )


@pytest.mark.parametrize(
    ("model_id", "usage"),
    [
        ("anthropic:never-heard-of", Usage(prompt_tokens=5, completion_tokens=5)),
        ("gpu-box:llama", Usage(prompt_tokens=5, completion_tokens=5)),
        (SONNET, Usage(prompt_tokens=5)),
        (SONNET, Usage(completion_tokens=5)),
        (SONNET, Usage()),
    ],
)
def test_a_cost_that_is_not_known_is_none(model_id: str, usage: Usage) -> None:
    """Without a price, or without the tokens, the cost is None and never 0."""
    assert cost_usd(model_id, usage) is None


def test_listed_prices_hold_at_home_only() -> None:
    """Through another server than the vendor's the listed price says nothing; the person's own holds anywhere."""
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=2_000_000)
    assert cost_usd(SONNET, usage, at_home=False) is None
    use_settings(Settings(models={SONNET: ModelSettings(input_price=1, output_price=10)}))
    assert cost_usd(SONNET, usage, at_home=False) == cost_usd(SONNET, usage) == pytest.approx(21)


def test_own_prices_of_cached_tokens() -> None:
    """Own prices count cached tokens at their own price, or as any input; also for a model that runs here."""
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=0, cached_tokens=500_000)
    use_settings(Settings(models={"gpu:m": ModelSettings(input_price=2, output_price=4)}))
    assert cost_usd("gpu:m", usage) == pytest.approx(2)
    use_settings(Settings(models={"ollama:m": ModelSettings(input_price=2, output_price=4, cached_price=0)}))
    assert cost_usd("ollama:m", usage) == pytest.approx(1)
    assert cost_usd("ollama:m", Usage()) is None
    assert cost_usd("ollama:other", usage) == 0


@pytest.mark.parametrize(
    ("model_id", "prices", "cost"),
    [
        (SONNET, {"cache_write_price": 7.0}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 7.0),
        (SONNET, {"cache_write_price": 0.0}, 0.2 * 4 + 0.5 * 0.4),
        (SONNET, {}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 4 * 1.25),
        ("anthropic:claude-3-haiku-20240307", {}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 4 * 1.2),
        ("anthropic:never-heard-of", {}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 4 * 1.25),
        ("gpu:m", {}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 4),
        ("gpu:m", {"cache_write_price": 5.0}, 0.2 * 4 + 0.5 * 0.4 + 0.3 * 5.0),
    ],
)
def test_own_prices_of_cache_writes(model_id: str, prices: dict[str, float], cost: float) -> None:
    """Tokens written to the cache cost what the person says, else so much more than others as listed or as usual."""
    own = ModelSettings(input_price=4, output_price=10, cached_price=0.4, **prices)
    use_settings(Settings(models={model_id: own}))
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=100_000, cached_tokens=500_000, cache_write_tokens=300_000)
    assert cost_usd(model_id, usage) == pytest.approx(cost + 1.0)
    assert cost_usd(model_id, Usage(prompt_tokens=1_000_000, completion_tokens=0)) == pytest.approx(4)


def test_prices_have_a_source() -> None:
    """Beside a cost stands which version of which package its price comes from."""
    name, _, version = price_source().partition(" ")
    assert name == "genai-prices"
    assert version[0].isdigit()
