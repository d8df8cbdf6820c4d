"""API keys: from the environment, or from the system's keyring. Never in a file of ours."""

import importlib
import os
from typing import Any, cast

from pidgin_cli.core.errors import PidginError, SpecError

from .registry import ProviderInfo

__all__ = ["fetch_key", "remove_key", "store_key", "stored_key"]

SERVICE = "pidgin"


def _keyring() -> Any:
    """The keyring library. Raises SpecError where it is not installed or has nothing to keep keys in."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        raise SpecError("keeping keys needs the keyring extra: pip install 'pidgin-cli[keyring]'") from None
    if keyring.get_keyring().priority <= 0:
        raise SpecError("this system has no keyring to keep keys in; export them in the environment instead")
    return keyring


def _call(name: str, *args: str) -> Any:
    keyring = _keyring()
    try:
        return getattr(keyring, name)(SERVICE, *args)
    except keyring.errors.KeyringError as error:
        raise PidginError(f"the keyring refused: {type(error).__name__}; unlock it and try again") from None


def store_key(variable: str, value: str) -> None:
    """Keep a key under the name of its environment variable.

    Raises:
        SpecError: there is no keyring. PidginError: the keyring refused.
    """
    _call("set_password", variable, value)


def remove_key(variable: str) -> bool:
    """Forget a key; False when there was none."""
    if stored_key(variable) is None:
        return False
    _call("delete_password", variable)
    return True


def stored_key(variable: str) -> str | None:
    """The key that the keyring holds for an environment variable."""
    return cast("str | None", _call("get_password", variable))


def fetch_key(info: ProviderInfo) -> None:
    """Put a provider's key from the keyring into this process's environment, where the environment has none.

    Does nothing where there is no keyring: the missing key is then reported as such.
    """
    if not info.key_env or any(os.environ.get(name) for name in info.key_env):
        return
    for name in info.key_env:
        try:
            value = stored_key(name)
        except PidginError:
            return
        if value:
            os.environ[name] = value
            return
