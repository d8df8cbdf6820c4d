"""A keyring that lives in the test's own process, so that child processes share it and no file is written.

with KeyringStandIn() as keyring:
    process("keys", "list", cwd=…, env=keyring.env)
    assert keyring.held == {("pidgin", "OPENAI_API_KEY"): "…"}
"""

import json
import os
import socket
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

__all__ = ["Elsewhere", "KeyringStandIn", "Unusable"]


class Elsewhere(KeyringBackend):
    """The side of the child process."""

    priority = 9  # type: ignore[assignment]

    def get_password(self, service: str, username: str) -> str | None:
        found: str | None = _ask("get", service, username)
        return found

    def set_password(self, service: str, username: str, password: str) -> None:
        _ask("set", service, username, password)

    def delete_password(self, service: str, username: str) -> None:
        if not _ask("delete", service, username):
            raise PasswordDeleteError(username)


class Unusable(KeyringBackend):
    """One whose every operation fails with an error of its own, which quotes what it was given."""

    priority = 9  # type: ignore[assignment]

    def get_password(self, service: str, username: str) -> str | None:
        raise RuntimeError("the collection is locked")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise RuntimeError(f"cannot keep {password}")


def _ask(*words: str) -> Any:
    with socket.create_connection(("127.0.0.1", int(os.environ["KEYRING_STAND_IN"]))) as connection:
        connection.sendall(json.dumps(words).encode() + b"\n")
        with connection.makefile("rb") as answer:
            return json.loads(answer.readline())


class KeyringStandIn:
    """See the module."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}
        keyring = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(json.dumps(keyring._do(*json.loads(self.rfile.readline()))).encode() + b"\n")

        self._server = socketserver.TCPServer(("127.0.0.1", 0), Answer)

    def _do(self, what: str, *rest: str) -> Any:
        key = (rest[0], rest[1])
        match what:
            case "set":
                self.held[key] = rest[2]
                return True
            case "delete":
                return self.held.pop(key, None) is not None
        return self.held.get(key)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which this is the keyring."""
        return {
            "PYTHON_KEYRING_BACKEND": "keyring_stand_in.Elsewhere",
            "PYTHONPATH": str(Path(__file__).parent),
            "KEYRING_STAND_IN": str(self._server.server_address[1]),
        }

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
