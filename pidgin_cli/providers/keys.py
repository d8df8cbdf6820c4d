"""API keys: from the environment, or from the system's keyring. Never in a file of ours."""

import importlib
import os
from typing import Any, Literal, NamedTuple, cast

from pidgin_cli.core.errors import PidginError, SpecError

from .registry import ProviderInfo, missing_key

__all__ = ["FoundKey", "fault_in", "fetch_key", "find_key", "key_fault", "remove_key", "store_key", "stored_key"]

SERVICE = "pidgin"


def _keyring() -> Any:
    """The keyring library. Raises SpecError where it is not installed or has nothing to keep keys in."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        raise SpecError("keeping keys needs the keyring extra: pip install 'pidgin-cli[keyring]'") from None
    try:
        usable = keyring.get_keyring().priority > 0
    except Exception as error:  # whatever a back end that cannot be loaded raises
        raise SpecError(
            f"the keyring cannot be opened ({type(error).__name__}); export keys in the environment instead"
        ) from None
    if not usable:
        raise SpecError("this system has no keyring to keep keys in; export them in the environment instead")
    return keyring


def _call(name: str, *args: str) -> Any:
    keyring = _keyring()
    try:
        return getattr(keyring, name)(SERVICE, *args)
    except Exception as error:  # back ends raise errors of their own as well; their text may hold the key
        raise PidginError(f"the keyring refused: {type(error).__name__}; unlock it and try again") from None


def fault_in(value: str) -> str | None:
    """What no key has, if `value` has it: keys go into a header of the request, and never hold a blank."""
    if not value.isascii():
        return "a letter that is not ASCII"
    if not value.isprintable():
        return "a character that cannot be printed"
    return "a blank in it" if " " in value else None


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


class FoundKey(NamedTuple):
    """Where a provider's key is."""

    variable: str
    source: Literal["environment", "keyring"]


def find_key(info: ProviderInfo) -> FoundKey | None:
    """Where a provider's key is, the environment first; None where there is none, or no keyring."""
    for name in info.key_env:
        if os.environ.get(name):
            return FoundKey(name, "environment")
    try:
        return next((FoundKey(name, "keyring") for name in info.key_env if stored_key(name)), None)
    except PidginError:
        return None


def fetch_key(info: ProviderInfo) -> None:
    """Put a provider's key from the keyring into this process's environment, where the environment has none.

    Does nothing where there is no keyring: the missing key is then reported as such.
    """
    found = find_key(info)
    if found is not None and found.source == "keyring":
        os.environ[found.variable] = stored_key(found.variable) or ""


def key_fault(info: ProviderInfo) -> str | None:
    """What to do about a provider's missing key, or None when it is there or none is needed.

    A key from the keyring is put into the environment on the way.
    """
    fetch_key(info)
    variable = missing_key(info)
    if variable is None:
        return None
    try:
        stored_key(variable)
    except PidginError:  # there is none, or it is locked
        return f"needs a key: export {variable}=…"
    return f"needs a key: export {variable}=…, or keep it with: pidgin keys set {info.name}"
