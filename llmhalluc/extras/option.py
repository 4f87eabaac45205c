"""`option` and `Section`: a field of a configuration, and what the fields of a section are called."""

import copy
from dataclasses import field
from typing import Any, ClassVar


def option(default: Any, help: str, *, bounds: str | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """Return a dataclass field; a list or dict default is copied for every instance.

    bounds: an interval, `[0, 1)`: a square bracket includes its end, a round one does not. choices: the values that
    it takes, where its type is wider than that.
    """
    metadata = {"help": help, "bounds": bounds, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """Base of the dataclass of a YAML's section: it names its keys as that YAML does."""

    section: ClassVar[str]

    @classmethod
    def key(cls, name: str) -> str:
        """Return the name of one of its keys in a message: `model.dtype`."""
        return f"{cls.section}.{name}"
