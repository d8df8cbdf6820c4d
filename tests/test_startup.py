"""What the command line loads before it knows what to do."""

import json
import subprocess
import sys

import pytest

SLOW = (
    "aiofiles",
    "anthropic",
    "asyncio",
    "duckdb",
    "filelock",
    "genai_prices",
    "google.genai",
    "httpcore",
    "httpx",
    "httpx2",
    "jinja2",
    "keyring",
    "markdown_it",
    "matplotlib",
    "msgspec",
    "nbformat",
    "numpy",
    "ollama",
    "openai",
    "pandas",
    "psutil",
    "pydantic",
    "pygments",
    "rich",
    "scipy",
    "sqlite3",
    "ssl",
    "yaml",
)

PROBE = """
import json, sys
from pidgin_cli.cli.app import run
status = run(sys.argv[1:])
json.dump([status, sorted(sys.modules)], sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["chat", "--help"], ["list", "--help"]], ids=" ".join)
def test_help_loads_nothing_slow(arguments: list[str]) -> None:
    """Help and version come without any SDK, event loop, database, screen library or parser being imported."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    status, loaded = json.loads(done.stderr)
    assert status == 0
    assert sorted(set(SLOW) & set(loaded)) == []
