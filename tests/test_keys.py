"""API keys: kept where the person wants them, found when they are needed, and never written anywhere else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import Said, error_of, process, read, until
from keyring_stand_in import KeyringStandIn
from loopback import LoopbackServer, Reply, loopback_in_thread
from terminal import DEADLINE_S, ENVIRONMENT, Terminal

PLANTED = "sk-planted-Zq8vT3wXk5Rm2Nd7"
HELD = ("pidgin", "OPENAI_API_KEY")


@pytest.fixture
def keyring() -> Iterator[KeyringStandIn]:
    with KeyringStandIn() as found:
        yield found


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with loopback_in_thread() as found:
        yield found


def with_input(text: bytes, *argv: str, cwd: Path, env: dict[str, str]) -> Said:
    done = subprocess.run(
        [sys.executable, "-m", "pidgin_cli", *argv],
        cwd=cwd,
        env=ENVIRONMENT | env,
        input=text,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


# The keyring


def test_a_key_is_kept_listed_and_removed(keyring: KeyringStandIn, tmp_path: Path) -> None:
    """`keys set` reads it from a pipe, `keys list` tells that it is there and not what it is, `keys remove` forgets."""
    said = with_input(f"{PLANTED}\r\n".encode(), "keys", "set", "openai", cwd=tmp_path, env=keyring.env)
    assert said == (0, "kept as OPENAI_API_KEY in the keyring\n", "")
    assert keyring.held == {HELD: PLANTED}
    env = keyring.env | {"ANTHROPIC_AUTH_TOKEN": PLANTED}
    rows = json.loads(process("keys", "list", "--json", cwd=tmp_path, env=env).out)
    by_provider = {row["provider"]: (row["variable"], row["source"]) for row in rows}
    assert by_provider["openai"] == ("OPENAI_API_KEY", "keyring")
    assert by_provider["anthropic"] == ("ANTHROPIC_AUTH_TOKEN", "environment")
    assert by_provider["google"] == ("GEMINI_API_KEY", None)
    assert PLANTED not in json.dumps(rows)
    assert process("keys", "remove", "openai", cwd=tmp_path, env=keyring.env).out == "removed OPENAI_API_KEY\n"
    assert keyring.held == {}
    said = process("keys", "remove", "openai", cwd=tmp_path, env=keyring.env)
    assert (said.status, said.out) == (0, "the keyring holds no OPENAI_API_KEY\n")
    assert list(tmp_path.iterdir()) == []


def test_a_key_typed_at_a_terminal_does_not_show(keyring: KeyringStandIn, tmp_path: Path) -> None:
    """At a terminal the key is asked for, and not on the screen while it is typed."""
    with Terminal("keys", "set", "openai", cwd=tmp_path, env=keyring.env) as terminal:
        terminal.expect("OPENAI_API_KEY: ")
        terminal.type(f"{PLANTED}\n")
        assert terminal.wait() == 0
        assert "kept as OPENAI_API_KEY" in terminal.text
        assert PLANTED not in terminal.text
    assert keyring.held == {HELD: PLANTED}


def test_nothing_typed_changes_nothing(keyring: KeyringStandIn, tmp_path: Path) -> None:
    """An empty line keeps the key that was there."""
    keyring.held[HELD] = PLANTED
    said = with_input(b" \n", "keys", "set", "openai", cwd=tmp_path, env=keyring.env)
    assert error_of(said) == "Error: no key was given; nothing has changed\n"
    assert keyring.held == {HELD: PLANTED}


@pytest.mark.parametrize(
    ("typed", "fault"),
    [
        ("sk-planted Zq8vT3", "a blank in it"),
        ("sk-plantéd", "a letter that is not ASCII"),
        ("sk-\x07planted", "a character that cannot be printed"),
        ("sk-\tplanted", "a character that cannot be printed"),
    ],
)
def test_what_is_no_key_is_not_kept(keyring: KeyringStandIn, tmp_path: Path, typed: str, fault: str) -> None:
    """What cannot go into a header of a request is refused at once, with the reason and without the text."""
    said = with_input(f"{typed}\n".encode(), "keys", "set", "openai", cwd=tmp_path, env=keyring.env)
    assert error_of(said) == f"Error: this is no key: it has {fault}; nothing has changed\n"
    assert keyring.held == {}


def test_a_conversation_uses_the_key_of_the_keyring(
    keyring: KeyringStandIn, server: LoopbackServer, tmp_path: Path
) -> None:
    """Without a key in the environment that of the keyring is sent; with one, the environment's."""
    keyring.held[HELD] = PLANTED
    env = keyring.env | {"OPENAI_BASE_URL": f"{server.url}/v1", "NO_PROXY": "127.0.0.1"}
    talk = ("chat", "-a", "openai:gpt-x", "-b", "local:test", "-t", "1", "--display", "quiet")
    assert process(*talk, cwd=tmp_path, env=env).status == 0
    assert process("ask", "Hello", "-m", "openai:gpt-x", cwd=tmp_path, env=env).status == 0
    own = env | {"OPENAI_API_KEY": "sk-of-the-environment"}
    assert process("ask", "Hello", "-m", "openai:gpt-x", cwd=tmp_path, env=own).status == 0
    sent = [request.headers["authorization"] for request in server.chats]
    assert sent == [f"Bearer {PLANTED}"] * 2 + ["Bearer sk-of-the-environment"]


def test_a_missing_key_can_be_kept(keyring: KeyringStandIn, tmp_path: Path) -> None:
    """Where there is a keyring, the fault of a missing key names both ways to give it, in every command."""
    ways = "needs a key: export OPENAI_API_KEY=…, or keep it with: pidgin keys set openai\n"
    for argv, who in (
        (("ask", "Hello", "-m", "openai:gpt-x"), "openai:gpt-x"),
        (("chat", "-a", "openai:gpt-x", "-b", "local:test"), "agent a (openai:gpt-x)"),
        (("models", "--remote", "--provider", "openai"), "openai"),
    ):
        assert error_of(process(*argv, cwd=tmp_path, env=keyring.env)) == f"Error: {who} {ways}"


def test_models_and_doctor_see_the_keyring(keyring: KeyringStandIn, tmp_path: Path) -> None:
    """A key in the keyring counts as there, in the list of models and for doctor."""
    keyring.held[HELD] = PLANTED
    rows = json.loads(process("models", "--json", cwd=tmp_path, env=keyring.env).out)
    by_id = {row["id"].partition(":")[0]: row["key"] for row in rows}
    assert (by_id["openai"], by_id["anthropic"], by_id["local"]) == (True, False, None)
    env = keyring.env | {"OLLAMA_HOST": "http://127.0.0.1:9"}
    findings = json.loads(process("doctor", "--json", cwd=tmp_path, env=env).out)
    (found,) = (finding for finding in findings if finding["check"] == "openai key")
    assert (found["status"], found["detail"]) == ("ok", "OPENAI_API_KEY is in the keyring")


@pytest.mark.parametrize(
    ("backend", "status", "told"),
    [
        ("keyring.backends.null.Keyring", 2, "this system has no keyring to keep keys in; export them in"),
        ("keyring.backends.fail.Keyring", 2, "this system has no keyring to keep keys in; export them in"),
        ("no_such_module.Keyring", 2, "the keyring cannot be opened (ModuleNotFoundError); export keys in"),
        ("keyring_stand_in.Unusable", 1, "the keyring refused: RuntimeError; unlock it and try again"),
    ],
)
def test_without_a_usable_keyring(tmp_path: Path, backend: str, status: int, told: str) -> None:
    """Where keys cannot be kept one line says so, without the key; all else works as if there were no keyring."""
    env = {"PYTHON_KEYRING_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parent)}
    said = with_input(PLANTED.encode(), "keys", "set", "openai", cwd=tmp_path, env=env)
    assert told in error_of(said, status)
    assert PLANTED not in said.err
    listed = process("keys", "list", cwd=tmp_path, env=env)
    assert (listed.status, listed.err) == (0, "")
    asked = process("ask", "Hello", "-m", "openai:gpt-x", cwd=tmp_path, env=env)
    assert error_of(asked) == "Error: openai:gpt-x needs a key: export OPENAI_API_KEY=…\n"


def test_who_has_no_key(tmp_path: Path) -> None:
    """A provider that needs no key, or does not exist, is refused before anything is asked for."""
    for provider, told in (("ollama", "ollama needs no key"), ("opnai", "no provider 'opnai'; there are anthropic, ")):
        for verb in ("set", "remove"):
            assert told in error_of(process("keys", verb, provider, cwd=tmp_path))


# Nowhere else


@pytest.mark.parametrize("place", ["environment", "keyring"])
def test_a_planted_key_is_nowhere(keyring: KeyringStandIn, server: LoopbackServer, tmp_path: Path, place: str) -> None:
    """Whatever is done with it, the key is in no file, on no screen and in no log; only the server gets it."""
    places = {name: str(tmp_path / name) for name in ("PIDGIN_CACHE_DIR", "PIDGIN_CONFIG_DIR", "HOME")}
    env = keyring.env | places | {"OPENAI_BASE_URL": f"{server.url}/v1", "NO_PROXY": "127.0.0.1"}
    if place == "keyring":
        keyring.held[HELD] = PLANTED
    else:
        env["OPENAI_API_KEY"] = PLANTED
    (tmp_path / "PIDGIN_CONFIG_DIR").mkdir()
    (tmp_path / "PIDGIN_CONFIG_DIR" / "config.toml").write_text("[providers.openai]\nmax_concurrency = 2\n")
    quoting = Reply(status=401, body={"error": {"message": f"Incorrect API key provided: {PLANTED}", "type": "auth"}})
    talk = ("chat", "-a", "openai:gpt-x", "-b", "local:test", "-t", "1", "--cache", "--retries", "0")
    screens = []
    for replies, argv in (
        ((), talk),
        ((quoting,), (*talk, "--display", "tail", "-p", "Another")),
        ((), (*talk, "--json")),
        ((), ("resume", "--all", "--json")),
        ((quoting,), ("ask", "Hello", "-m", "openai:gpt-x", "--json")),
        ((), ("ask", "Hello", "-m", "openai:gpt-x", "--cache")),
        ((), ("models", "--provider", "openai", "--remote", "--json")),
        ((), ("keys", "list")),
        ((), ("doctor", "--json")),
        ((), ("config", "--json")),
    ):
        server.script(*replies)
        said = process(*argv, cwd=tmp_path, env=env | {"PIDGIN_DEBUG": "1", "OLLAMA_HOST": "http://127.0.0.1:9"})
        screens.append(said.out + said.err)
    assert sum("AuthenticationFailed" in screen for screen in screens) == 2
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {PLANTED}"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"responses.db", "config.toml", "spec.yaml", "manifest.json"} <= {path.name for path in written}
    assert any(path.suffix == ".log" for path in written)
    for path in written:
        assert PLANTED.encode() not in path.read_bytes(), path.name
    assert PLANTED not in "".join(screens)


def test_a_planted_key_is_not_in_the_process_list(
    keyring: KeyringStandIn, server: LoopbackServer, tmp_path: Path
) -> None:
    """While a reply is awaited, the key of the keyring is in neither the arguments nor the environment of a process."""
    keyring.held[HELD] = PLANTED
    server.script(Reply(hang=2))
    env = ENVIRONMENT | keyring.env | {"OPENAI_BASE_URL": f"{server.url}/v1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "pidgin_cli", "chat", "-a", "openai:gpt-x", "-b", "local:test"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            until(lambda: server.chats)
            seen = psutil.Process(child.pid)
            for each in (seen, *seen.children(recursive=True)):
                assert PLANTED not in " ".join(each.cmdline())
                assert PLANTED not in json.dumps(each.environ())
        finally:
            child.kill()
    assert server.chats[0].headers["authorization"] == f"Bearer {PLANTED}"
    (log,) = tmp_path.glob("**/conv_*.jsonl")
    assert PLANTED not in json.dumps(read(log).events)


_BROKEN = """
import sys
import pidgin_cli.providers.openai as openai
from pidgin_cli.cli.app import run

def broken(self, request):
    headers = {"authorization": self._client.api_key}
    raise RuntimeError("a fault of our own")

openai.OpenAIProvider.stream_response = broken
openai.OpenAIProvider.served_models = lambda self: broken(self, None)
sys.exit(run(sys.argv[1:]))
"""


def test_a_planted_key_is_in_no_traceback(server: LoopbackServer, tmp_path: Path) -> None:
    """A fault of Pidgin's own, where the key is at hand, is told, shown with PIDGIN_DEBUG=1, and logged without it."""
    env = ENVIRONMENT | server.env | {"OPENAI_API_KEY": PLANTED, "PIDGIN_DEBUG": "1"}
    talk = ("chat", "-a", "openai:gpt-x", "-b", "local:test", "-t", "1")
    for argv in (("models", "--provider", "openai", "--remote"), talk, ("ask", "Hello", "-m", "openai:gpt-x")):
        done = subprocess.run(
            [sys.executable, "-c", _BROKEN, *argv], cwd=tmp_path, env=env, capture_output=True, timeout=DEADLINE_S
        )
        assert done.returncode == 1
        assert b"a fault of our own" in done.stdout + done.stderr
        assert PLANTED.encode() not in done.stdout + done.stderr
    (log,) = tmp_path.glob("**/experiment_*.log")
    assert "a fault of our own" in log.read_text()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or PLANTED.encode() not in path.read_bytes()
