"""Getting Ollama onto a machine and running. Each step is a function of its own, and none is taken unasked."""

import asyncio
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from pidgin_cli.core.errors import ProviderUnavailable

from .registry import PROVIDERS, ProviderInfo, address
from .wire import address_source, bad_address, one_line

if TYPE_CHECKING:
    import httpx

__all__ = [
    "DOWNLOAD_PAGE",
    "Place",
    "StartedServer",
    "ensure_running",
    "found_instead",
    "install_command",
    "is_here",
    "is_installed",
    "is_running",
    "place",
    "run_install",
    "start_server",
]

EXAMPLE = "127.0.0.1:11434"
"""Of an address, as Ollama writes it."""
DOWNLOAD_PAGE = "https://ollama.com/download"

_INSTALL = {
    "Linux": ("curl -fsSL https://ollama.com/install.sh | sh", ("sh", "-c")),
    "Darwin": ("curl -fsSL https://ollama.com/install.sh | sh", ("sh", "-c")),
    "Windows": ("irm https://ollama.com/install.ps1 | iex", ("powershell", "-NoProfile", "-Command")),
}
"""By `platform.system()`: what the vendor's README says to type, and in which shell."""

POLL_S = 0.05
STOP_S = 10.0
"""Seconds a server has to end by itself."""
LOG_TAIL = 2000


def is_installed() -> bool:
    return shutil.which("ollama") is not None


def install_command(system: str | None = None) -> str | None:
    """What the vendor says to type on this platform (a name as of `platform.system()`); None: see `DOWNLOAD_PAGE`."""
    found = _INSTALL.get(system or platform.system())
    return None if found is None else found[0]


def run_install(agree: Callable[[str], bool]) -> bool:
    """Show the vendor's command for this platform and run it if the person at the terminal says yes.

    Args:
        agree: asks the person, who is shown the command; True only for an explicit yes.

    Returns:
        Whether Ollama is installed now. False without a terminal, a command, or a yes.
    """
    found = _INSTALL.get(platform.system())
    if found is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    command, shell = found
    if agree(command) is not True:
        return False
    done = subprocess.run([*shell, command], check=False)  # noqa: S603  a constant of ours, word for word
    return done.returncode == 0 and is_installed()


class StartedServer:
    """An Ollama server that this process started. It lives on when nobody stops it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log
        self.pid = process.pid
        # Its end is noticed at once, so that it never stays behind as a zombie.
        self._reaper = threading.Thread(target=process.wait, name="ollama serve", daemon=True)
        self._reaper.start()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.returncode

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End it and what it started: politely, then by force after `timeout_s` seconds. Harmless once it ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.status is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            self._reaper.join(timeout_s)


async def ensure_running(
    log: Path,
    may_start: Callable[[], bool],
    *,
    info: ProviderInfo = PROVIDERS["ollama"],
    deadline_s: float = 30.0,
) -> StartedServer | None:
    """See that Ollama answers; start it when it is installed here and `may_start()` is True.

    Returns:
        The server that was started; None when one was running.

    Raises:
        ProviderUnavailable: it does not run and was not, or could not be, started, or something else has its address.
            The text says what to type.
    """
    if await is_running(info):
        return None
    at = place(info)
    if (instead := await found_instead(info)) is not None:
        raise ProviderUnavailable(instead, provider=info.name)
    if not is_here(info):
        raise ProviderUnavailable(f"Ollama does not answer at {at.netloc}", provider=info.name)
    if not is_installed():
        command = install_command()
        how = f"get it with: {command}" if command else f"get it from {DOWNLOAD_PAGE}"
        raise ProviderUnavailable(f"Ollama is not installed; {how}", provider=info.name)
    if may_start() is not True:
        raise ProviderUnavailable(
            f"Ollama does not answer at {at.netloc}; start it with: ollama serve", provider=info.name
        )
    return await start_server(log, info=info, deadline_s=deadline_s)


async def start_server(
    log: Path, *, info: ProviderInfo = PROVIDERS["ollama"], deadline_s: float = 30.0
) -> StartedServer:
    """Start `ollama serve` in a session of its own, its output appended to `log`, and wait until it answers.

    Raises:
        ProviderUnavailable: it is not installed, ended by itself, or did not answer within `deadline_s` seconds.
    """
    program = shutil.which("ollama")
    if program is None:
        raise ProviderUnavailable(f"Ollama is not installed; get it from {DOWNLOAD_PAGE}", provider=info.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220,S603  it outlives the loop; the words are ours
            [program, "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(info),
            start_new_session=True,
        )
    server = StartedServer(process, log)
    try:
        async with asyncio.timeout(deadline_s):
            while not await is_running(info):
                if server.status is not None:
                    raise ProviderUnavailable(
                        f"ollama serve ended with status {server.status}: {_last_line(log)} (see {log})",
                        provider=info.name,
                    )
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        await asyncio.to_thread(server.stop)
        raise ProviderUnavailable(
            f"ollama serve did not answer within {deadline_s:g} s (see {log})", provider=info.name
        ) from None
    except BaseException:
        server.stop()
        raise
    return server


async def is_running(info: ProviderInfo = PROVIDERS["ollama"], timeout_s: float = 5.0) -> bool:
    """Whether an Ollama server answers at its address."""
    answer = await _ask(info, timeout_s)
    return answer is not None and _is_ollamas(answer)


async def found_instead(info: ProviderInfo = PROVIDERS["ollama"], timeout_s: float = 5.0) -> str | None:
    """What answers at Ollama's address in its place, such as the page of a proxy; None: Ollama does, or nobody."""
    answer = await _ask(info, timeout_s)
    if answer is None or _is_ollamas(answer):
        return None
    said = one_line("".join(c if c.isprintable() else " " for c in answer.text))
    what = f"(status {answer.status_code}){f': {said}' if said else ''}"
    return f"what answers at {place(info).netloc} is not Ollama {what}; {address_source(info)} says where Ollama is"


async def _ask(info: ProviderInfo, timeout_s: float) -> "httpx.Response | None":
    """What the server says of its version; None where there is no HTTP server."""
    import httpx

    at = place(info)
    try:
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=not is_here(info)) as client:
            return await client.get(f"{at.url}/api/version")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError):
        return None


def _is_ollamas(answer: "httpx.Response") -> bool:
    try:
        return answer.is_success and "version" in answer.json()
    except (ValueError, TypeError, RecursionError):
        return False


def is_here(info: ProviderInfo = PROVIDERS["ollama"]) -> bool:
    """Whether the server's address is this machine's."""
    host = place(info).host
    return host in ("localhost", "::1", "::", "0.0.0.0") or host.startswith("127.")  # noqa: S104


class Place(NamedTuple):
    """The address of an Ollama server."""

    host: str
    netloc: str
    """Without user and password."""
    url: str


def place(info: ProviderInfo = PROVIDERS["ollama"]) -> Place:
    """Where the server is, read as the vendor reads OLLAMA_HOST: scheme and port may be left out.

    Raises:
        SpecError: the environment or the settings name what is no address.
    """
    text = address(info) or ""
    scheme, _, rest = text.rpartition("://")
    try:
        parts = urlsplit(f"{scheme or 'http'}://{rest}")
        host = parts.hostname or "127.0.0.1"
        port = parts.port or {"http": 80, "https": 443}.get(scheme, 11434)
    except ValueError:
        raise bad_address(info, EXAMPLE) from None
    if (
        scheme not in ("", "http", "https")
        or (scheme and not parts.netloc)
        or parts.netloc.endswith(":")
        or re.search(r"\s", text.strip())
    ):
        raise bad_address(info, EXAMPLE)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # A server that listens everywhere is asked on the loopback.
    reached = {"0.0.0.0": f"127.0.0.1:{port}", "::": f"[::1]:{port}"}.get(host, netloc)  # noqa: S104
    return Place(host, netloc, f"{parts.scheme}://{reached}{parts.path.rstrip('/')}")


def _environment(info: ProviderInfo) -> dict[str, str]:
    """Ours without the keys of other providers, which are none of its business."""
    keys = {name for each in PROVIDERS.values() for name in each.key_env if each.name != info.name}
    found = {name: value for name, value in os.environ.items() if name not in keys}
    if (host := address(info)) is not None:
        found["OLLAMA_HOST"] = host
    return found


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return one_line(next((line for line in reversed(lines) if line.strip()), "it said nothing"))
