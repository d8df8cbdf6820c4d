"""Where displays write to."""

import os

from rich.console import Console

__all__ = ["PIPED_WIDTH", "make_console", "print_prose"]

PIPED_WIDTH = 400
"""Of a line that goes to a file or another program: nothing is cut or wrapped there."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Called while the error is handled. What it means is left to the caller; Rich would end the process."""
        raise


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: no markup, no emoji names, and where `NO_COLOR` is set no escape codes."""
    console = _Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def print_prose(console: Console, text: str, style: str = "") -> None:
    """Print sentences: wrapped between words on a terminal, in one line elsewhere."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)
