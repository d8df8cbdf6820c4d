"""The machine that Pidgin runs on."""

from typing import NamedTuple

import psutil

__all__ = ["MemoryUse", "memory"]


class MemoryUse(NamedTuple):
    """In bytes."""

    process: int
    """Of this process."""
    available: int
    """What programs could still have on this machine."""


def memory() -> MemoryUse:
    """Memory as it is now."""
    return MemoryUse(psutil.Process().memory_info().rss, psutil.virtual_memory().available)
