"""What a person writes into `config.toml`, and that it has its effect."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, Record, error_of, pidgin, record
from loopback import LoopbackServer, Reply, loopback_in_thread

from pidgin_cli.conversation.setup import use_person_settings
from pidgin_cli.core.errors import SpecError
from pidgin_cli.core.types import Retries, Timeouts
from pidgin_cli.providers.limits import Limiter
from pidgin_cli.providers.registry import PROVIDERS, ProviderPool, address, split_model
from pidgin_cli.providers.wrappers import RetryPolicy
from pidgin_cli.spec.catalogue import context_window, use_settings
from pidgin_cli.spec.settings import Settings, config_folder, load_settings

__all__ = ["pidgin"]

Config = Callable[[str], Path]
KEY = "sk-of-my-own-machine"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Writes `config.toml`, in this process or for others; afterwards all is as before."""
    folder = tmp_path / "settings of mine"
    folder.mkdir()
    before = dict(PROVIDERS)

    def write(text: str) -> Path:
        monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(folder))
        path = folder / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    PROVIDERS.clear()
    PROVIDERS.update(before)
    use_settings(Settings())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    with loopback_in_thread() as found:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


def talk(pidgin: Pidgin, *args: str) -> Record:
    """A conversation of one turn that has to go well."""
    said = pidgin("chat", *args, "-t", "1", "--display", "quiet")
    assert (said.status, said.err) == (0, "")
    return record()


# Effects


def test_a_named_endpoint_is_reached(
    pidgin: Pidgin, config: Config, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`my-vllm:model` goes to the endpoint's base_url, with the key that api_key_env names, and is recorded so."""
    config(f'[endpoints.my-vllm]\nbase_url = "{server.url}/v1"\napi_key_env = "MY_VLLM_KEY"\ncontext = 4096\n')
    monkeypatch.setenv("MY_VLLM_KEY", KEY)
    found = talk(pidgin, "-a", "my-vllm:org/model:tag", "-b", "local:test")
    (request,) = server.chats
    assert (request.path, request.model) == ("/v1/chat/completions", "org/model:tag")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert found.texts[0] == "Hello from the loopback."
    assert found.start["agents"][0]["model"] == "my-vllm:org/model:tag"
    assert context_window("my-vllm:org/model:tag") == 4096
    assert KEY not in json.dumps(found.events)


def test_an_endpoint_needs_the_key_that_it_names(pidgin: Pidgin, config: Config, server: LoopbackServer) -> None:
    """With api_key_env and no such variable nothing is asked; without api_key_env no key is needed."""
    config(f'[endpoints.my-vllm]\nbase_url = "{server.url}/v1"\napi_key_env = "MY_VLLM_KEY"\n')
    said = pidgin("chat", "-a", "my-vllm:m", "-b", "local:test")
    assert error_of(said) == "Error: agent a (my-vllm:m) needs a key: export MY_VLLM_KEY=…\n"
    assert server.requests == []
    config(f'[endpoints.my-vllm]\nbase_url = "{server.url}/v1"\n')
    talk(pidgin, "-a", "my-vllm:m", "-b", "local:test")
    assert len(server.chats) == 1


def test_a_providers_address(
    pidgin: Pidgin, config: Config, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """base_url of a provider is where it is asked, without a key; its environment variable wins."""
    config(
        f'[providers.openai]\nbase_url = "{server.url}/elsewhere/v1"\n[providers.vllm]\nbase_url = "{server.url}/v1"'
    )
    found = talk(pidgin, "-a", "vllm:llama", "-b", "local:test")
    assert [request.path for request in server.requests] == ["/v1/chat/completions"]
    assert found.texts[0] == "Hello from the loopback."
    assert address(PROVIDERS["openai"]) == f"{server.url}/elsewhere/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    said = pidgin("ask", "Hello", "-m", "openai:gpt-x")
    assert (said.status, said.out, said.err) == (0, "Hello from the loopback.\n", "")
    assert server.requests[-1].path == "/v1/chat/completions"


def test_an_address_that_is_none(pidgin: Pidgin, config: Config) -> None:
    """A base_url that is no address is one line that names its provider, before anything starts."""
    config('[endpoints.gpu]\nbase_url = "gpu:8000"\n')
    assert "base_url of gpu is not an address like http://host:port/v1" in error_of(
        pidgin("chat", "-a", "gpu:m", "-b", "local:test")
    )
    assert not list(Path().glob("**/experiment_*"))


def test_aliases_and_prices(pidgin: Pidgin, config: Config, server: LoopbackServer) -> None:
    """A person's alias can be spoken to, and what it costs follows the person's prices."""
    config(
        f"""
        aliases = {{ home = "gpu:llama", best = "home" }}
        [endpoints.gpu]
        base_url = "{server.url}/v1"
        [models."gpu:llama"]
        input_price = 1_000_000
        output_price = 2e6
        """
    )
    found = talk(pidgin, "-a", "home", "-b", "best")
    assert [agent["model"] for agent in found.start["agents"]] == ["gpu:llama"] * 2
    assert [event["cost"] for event in found.of("TokenUsage")] == [30, 30]  # 20 tokens in, 5 out


async def test_limits_reach_the_limiter(config: Config) -> None:
    """Limits of an endpoint or a provider hold for its models: at most so many at once, and so many a minute."""
    config(
        """
        [endpoints.gpu]
        base_url = "http://127.0.0.1:9/v1"
        max_concurrency = 3
        [providers.openai]
        requests_per_minute = 1
        [providers.ollama]
        tokens_per_minute = 100
        """
    )
    use_person_settings()
    pool = ProviderPool()
    gpu, openai, ollama = (limiter(pool, model) for model in ("gpu:m", "openai:m", "ollama:m"))
    assert (gpu.concurrency, gpu.max_concurrency) == (3, 3)
    assert limiter(pool, "gpu:m", 2) is gpu  # one account, one limit
    for found, tokens in ((openai, 0), (ollama, 60)):
        place = await found.acquire(tokens)
        waiting = asyncio.create_task(found.acquire(tokens))
        await asyncio.sleep(0)
        assert (found.in_flight, found.waiting) == (1, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        found.release(place)
    assert pool.provider("gpu:m", Timeouts(), RetryPolicy(Retries(), "gpu", lambda _: None, asyncio.sleep))
    await pool.aclose()


def limiter(pool: ProviderPool, model_id: str, concurrency: int | None = None) -> Limiter:
    found = pool._limiter(*split_model(model_id), concurrency)
    assert found is not None
    return found


def test_config_command(pidgin: Pidgin, config: Config) -> None:
    """`config` says where the file is and what is in it, with --json as data; without a file all is default."""
    said = pidgin("config")
    assert said.out == f"{config_folder() / 'config.toml'} (not there yet)\n"
    path = config('aliases = { x = "local:test" }\n')
    assert pidgin("config").out == f'{path}\naliases = {{ x = "local:test" }}\n'
    (data,) = json.loads(pidgin("config", "--json").out)
    assert data == {"aliases": {"x": "local:test"}, "endpoints": {}, "providers": {}, "models": {}}


def test_where_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIDGIN_CONFIG_DIR is the folder; without it, it is the system's own. No file is no fault."""
    monkeypatch.setenv("PIDGIN_CONFIG_DIR", str(tmp_path))
    assert config_folder() == tmp_path
    assert load_settings() == Settings()
    monkeypatch.delenv("PIDGIN_CONFIG_DIR")
    assert config_folder().name == "pidgin"


def test_a_byte_order_mark_is_no_fault(config: Config) -> None:
    """A file as Windows editors save it reads like any other."""
    config('\ufeffaliases = { x = "local:test" }\n')
    assert load_settings().aliases == {"x": "local:test"}


# Faults


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[endpoint.gpu]\nbase_url = 'http://gpu'", ["unknown key 'endpoint'. Did you mean endpoints?"]),
        (
            "[endpoints.gpu]\nbase_ulr = 'http://gpu'",
            ["endpoints.gpu.base_url: Field required", "unknown key 'endpoints.gpu.base_ulr'. Did you mean base_url?"],
        ),
        (
            "[providers.openai]\nmax_concurency = 3",
            ["unknown key 'providers.openai.max_concurency'. Did you mean max_concurrency?"],
        ),
        (
            "[models.'openai:gpt-x']\ncontext = 0\ninput = 3",
            [
                "models.openai:gpt-x.context: Input should be greater than or equal to 1",
                "unknown key 'models.openai:gpt-x.input'. Did you mean input_price?",
            ],
        ),
        ("[models.sonnet]\ncontext = 9", ["models: 'sonnet' is no id; write [models.\"PROVIDER:MODEL\"]"]),
        (
            "[models.'a:b']\ninput_price = 9",
            ["models.a:b: input_price and output_price go together; give both or neither"],
        ),
        (
            "[models.'a:b']\ncached_price = 9",
            ["models.a:b: cached_price needs input_price and output_price beside it"],
        ),
        (
            "[models.'a:b']\ncache_write_price = 9",
            ["models.a:b: cache_write_price needs input_price and output_price beside it"],
        ),
        ("[models.'a:b']\ninput_price = -1\noutput_price = 0", ["models.a:b.input_price: Input should be greater"]),
        ("aliases = 3", ["aliases: Input should be a valid dictionary"]),
        ("[aliases]\nx = 3", ["aliases.x: Input should be a valid string"]),
        ("[aliases]\nx = 'sonet'", ["aliases.x: unknown model 'sonet'; the nearest are sonnet"]),
        ("[aliases]\nx = 'y'\ny = 'x'", ["aliases.x: unknown model", "aliases.y: unknown model"]),
        ("[endpoints.openai]\nbase_url = 'http://gpu'", ["endpoints.openai: Pidgin has a provider 'openai'; choose"]),
        ("[endpoints.local]\nbase_url = 'http://gpu'", ["endpoints.local: Pidgin has a provider 'local'; choose"]),
        ("[endpoints.My_GPU]\nbase_url = 'http://gpu'", ["endpoints.My_GPU: 'My_GPU' cannot name a provider: lower-"]),
        ("[endpoints.'a:b']\nbase_url = 'http://gpu'", ["endpoints.a:b: 'a:b' cannot name a provider"]),
        (
            "[providers.opnai]\nmax_concurrency = 1",
            ["providers.opnai: there is no such provider", "Did you mean openai?"],
        ),
        ("[providers.local]\nbase_url = 'http://gpu'", ["providers.local.base_url: local models run in Pidgin itself"]),
        ("[endpoints", ["config.toml is not valid TOML: "]),
        ("x = 1\nx = 2", ["config.toml is not valid TOML: "]),
    ],
)
def test_every_fault_is_named(config: Config, text: str, faults: list[str]) -> None:
    """Each fault is told with the file, the key, and, for a key that does not exist, the nearest one."""
    path = config(text)
    with pytest.raises(SpecError) as caught:
        use_person_settings()
    told = str(caught.value)
    assert all(line.startswith(str(path)) for line in told.splitlines())
    for fault in faults:
        assert fault in told


def test_all_faults_at_once(pidgin: Pidgin, config: Config) -> None:
    """Several faults are told together, whichever command meets them, and nothing is run; doctor calls it a problem."""
    path = config("[endpoints.openai]\nbase_url = 'http://gpu'\n[providers.no]\n[aliases]\nx = 'no'\n")
    for command in (("chat", "-a", "test", "-b", "test"), ("ask", "Hi", "-m", "test"), ("models",), ("keys", "list")):
        said = pidgin(*command)
        assert (said.status, said.out) == (2, "")
        assert said.err.count(str(path)) == 3
    assert not list(Path().glob("**/experiment_*"))
    said = pidgin("doctor", "--json")
    assert said.status == 1
    findings: list[dict[str, Any]] = json.loads(said.out)
    assert [found["status"] for found in findings if found["check"] == "settings"] == ["problem"] * 3


def test_a_file_that_cannot_be_read(config: Config) -> None:
    """A folder in its place, or bytes that are not UTF-8, are told as such."""
    path = config("")
    path.write_bytes(b"x = '\xff'")
    with pytest.raises(SpecError, match=r"config\.toml is not valid TOML: .*utf-8"):
        load_settings()
    path.unlink()
    path.mkdir()
    with pytest.raises(SpecError, match=r"config\.toml: Is a directory"):
        load_settings()


def test_a_reply_that_fails_names_the_endpoint(pidgin: Pidgin, config: Config, server: LoopbackServer) -> None:
    """An error of a named endpoint is told under its own name."""
    config(f'[endpoints.gpu]\nbase_url = "{server.url}/v1"\n')
    server.script(Reply(status=401, body={"error": {"message": "no such key"}}))
    said = pidgin("ask", "Hello", "-m", "gpu:m")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("Error: AuthenticationFailed: ")
    assert "no such key" in said.err
