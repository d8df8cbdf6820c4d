"""Pidgin: a command-line laboratory for conversations between language models.

`Dialogue` asks a model a question; it and what it yields are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidgin_cli.conversation.dialogue import (
        CompleteEvent,
        Dialogue,
        ErrorEvent,
        RestartEvent,
        ThinkingEvent,
        TokenEvent,
    )

__all__ = ["CompleteEvent", "Dialogue", "ErrorEvent", "RestartEvent", "ThinkingEvent", "TokenEvent"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("pidgin_cli.conversation.dialogue"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
