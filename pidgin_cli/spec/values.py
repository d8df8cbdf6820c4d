"""Single values of a spec, as they are written on a command line."""

from typing import Any

import yaml

from .errors import safe_load

__all__ = ["read_value"]


def read_value(text: str) -> Any:
    """What `text` would be in a spec's file.

    Raises:
        ValueError: it is not YAML. SpecError: a mapping in it has a key twice.
    """
    try:
        return safe_load(text, "value")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
