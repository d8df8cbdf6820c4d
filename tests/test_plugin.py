"""A package by others brings a provider: the example in `docs/plugins`, installed and talked to."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import error_of, process, record

SOURCE = Path(__file__).parent.parent / "docs" / "plugins" / "pidgin-echo"

Pidgin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pidgin(tmp_path_factory: pytest.TempPathFactory) -> Pidgin:
    """Runs command lines in a process of their own that has the package on its path."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, work / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    target = ["--target", str(work / "packages"), str(work / "source")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *target], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(work / "packages"), "PIDGIN_CONFIG_DIR": str(work / "settings")}

    def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "pidgin_cli", *map(str, args)]
        return subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=100)

    return call


def test_a_conversation_with_a_provider_by_others(pidgin: Pidgin, tmp_path: Path):
    """`echo:…` is a model like any other: it talks, and its words, usage and name are in the record."""
    done = pidgin("chat", "-a", "echo:again", "-b", "echo:loud", "-t", "1", "-p", "Good morning.", "-o", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = record(tmp_path).of("MessageComplete")
    assert first["message"]["content"] == "[HUMAN]: Good morning."
    assert second["message"]["content"] == "[HUMAN]: GOOD MORNING. [HUMAN]: GOOD MORNING."
    assert (first["model_requested"], first["model_served"]) == ("echo:again", "again")
    assert first["usage"] == {"prompt_tokens": 3, "completion_tokens": 3}


def test_its_errors_are_typed(pidgin: Pidgin, tmp_path: Path):
    """What the adapter refuses ends the conversation like a refusal of any vendor."""
    done = pidgin("chat", "-a", "echo:backwards", "-b", "local:silent", "-t", "1", "-o", tmp_path)
    assert done.returncode == 1
    [error] = record(tmp_path).of("APIError")
    assert error["error"] == "RequestRejected"
    assert error["provider"] == "echo"
    assert error["message"] == "no model 'backwards'; there are again, loud"


def test_it_is_listed(pidgin: Pidgin):
    """An unknown provider's error names the one that the package brought."""
    done = pidgin("chat", "-a", "ecko:again", "-b", "local:silent", "-t", "1")
    assert done.returncode == 2
    assert "echo" in done.stderr


def brought(folder: Path, name: str, *, package: str = "pidgin-impostor") -> dict[str, str]:
    """An environment in which one more package offers a provider of that name."""
    module = package.replace("-", "_")
    info = folder / f"{module}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[pidgin.providers]\nit = {module}:INFO\n")
    (folder / f"{module}.py").write_text(
        "from pidgin_cli.providers.registry import PROVIDERS\n"
        f"INFO = PROVIDERS.get({name!r}, PROVIDERS['local'])._replace(name={name!r})\n"
    )
    return {"PYTHONPATH": str(folder)}


def refusal(*argv: str, cwd: Path, env: dict[str, str]) -> str:
    return error_of(process(*argv, cwd=cwd, env=env))


def test_a_name_that_is_taken(tmp_path: Path):
    """A package may not bring a provider that Pidgin has, not even with its adapter, nor one that another brings."""
    env = brought(tmp_path / "one", "openai")
    told = refusal("ask", "Hi", "-m", "local:test", cwd=tmp_path, env=env)
    assert told == (
        "Error: the package pidgin-impostor brings a provider 'openai', which Pidgin itself has already; "
        "remove the package\n"
    )
    brought(tmp_path / "two", "twin", package="pidgin-first")
    env = brought(tmp_path / "two", "twin", package="pidgin-second")
    told = refusal("ask", "Hi", "-m", "local:test", cwd=tmp_path, env=env)
    assert "brings a provider 'twin', which pidgin-" in told
    assert "has already; remove the package" in told


def test_a_name_of_an_endpoint(tmp_path: Path):
    """A named endpoint does not take the place of a package's provider, nor the other way round."""
    (tmp_path / "config.toml").write_text('[endpoints.twin]\nbase_url = "http://127.0.0.1:1/v1"\n')
    env = brought(tmp_path / "packages", "twin") | {"PIDGIN_CONFIG_DIR": str(tmp_path)}
    told = refusal("ask", "Hi", "-m", "local:test", cwd=tmp_path, env=env)
    assert "endpoints.twin: the package pidgin-impostor brings a provider 'twin'; choose another name" in told


def test_a_package_that_is_broken(tmp_path: Path):
    """What its import raises is one line that names the package."""
    env = brought(tmp_path / "packages", "twin")
    (tmp_path / "packages" / "pidgin_impostor.py").write_text("import no_such_module\n")
    told = refusal("ask", "Hi", "-m", "local:test", cwd=tmp_path, env=env)
    assert (
        "the package pidgin-impostor cannot be loaded (ModuleNotFoundError: No module named 'no_such_module')" in told
    )


def test_the_example_is_as_short_as_it_says():
    """An adapter takes about forty lines."""
    code = (SOURCE / "pidgin_echo.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) < 50
