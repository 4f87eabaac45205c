"""`option`: a dataclass field with a default and a sentence for `--help`."""

import copy
from dataclasses import field
from typing import Any


def option(default: Any, help: str) -> Any:
    """A field; a list or dict default is copied for every instance."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})
