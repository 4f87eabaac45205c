"""Dotted keys: `{"a.b": 1}` and `{"a": {"b": 1}}` set the same key of a config."""

import copy
from collections.abc import Iterator
from typing import Any


def flat(nested: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested and dotted keys; an empty section is a value."""
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def with_keys(nested: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `nested` with `keys` set, be they dotted or nested."""
    made = copy.deepcopy(nested)
    for path, value in flat(keys):
        *parents, last = path.split(".")
        inner = made
        for key in parents:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[last] = copy.deepcopy(value)
    return made


def value_at(nested: Any, path: str) -> Any:
    """Return the value at a dotted path of a nested config, None where there is none."""
    for key in path.split("."):
        nested = nested.get(key) if isinstance(nested, dict) else None
    return nested
