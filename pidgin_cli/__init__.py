"""Pidgin: a command-line laboratory for conversations between language models.

`run_experiment` holds conversations, `open_output` gives an output folder as data frames, `Dialogue` asks a model one
question. They and what they yield are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidgin_cli.cli.output import open_output, run_experiment
    from pidgin_cli.conversation.dialogue import (
        CompleteEvent,
        Dialogue,
        ErrorEvent,
        RestartEvent,
        ThinkingEvent,
        TokenEvent,
    )
    from pidgin_cli.database.frames import Frame, Output

__all__ = [
    "CompleteEvent",
    "Dialogue",
    "ErrorEvent",
    "Frame",
    "Output",
    "RestartEvent",
    "ThinkingEvent",
    "TokenEvent",
    "open_output",
    "run_experiment",
]

_FROM = {
    "Frame": "pidgin_cli.database.frames",
    "Output": "pidgin_cli.database.frames",
    "open_output": "pidgin_cli.cli.output",
    "run_experiment": "pidgin_cli.cli.output",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_FROM.get(name, "pidgin_cli.conversation.dialogue")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
