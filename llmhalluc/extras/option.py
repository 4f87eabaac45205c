"""`option`: a field of a configuration, with its default, a sentence for `--help`, and what it may be."""

import copy
from dataclasses import field
from typing import Any


def option(default: Any, help: str, *, bounds: str | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """Return a dataclass field; a list or dict default is copied for every instance.

    bounds: an interval, `[0, 1)`: a square bracket includes its end, a round one does not. choices: the values that
    it takes, where its type is wider than that.
    """
    metadata = {"help": help, "bounds": bounds, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
