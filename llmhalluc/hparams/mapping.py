"""A mapping of a YAML against the dataclass that says what it may hold: names, types, choices, bounds."""

import dataclasses
import types
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from llmhalluc.extras.errors import did_you_mean

Problem = tuple[str, str]  # the dotted name of a key, and the sentence about it


class Key(NamedTuple):
    """One key: a type expression that `accepts` understands, its default, its meaning, and what it may be."""

    type: Any
    default: Any
    help: str
    bounds: str | None = None
    choices: tuple[Any, ...] = ()


def keys_of(kind: type) -> dict[str, Key]:
    """Return the keys of a dataclass of `option`s; a field that the parser fills is none."""
    defaults = kind()
    fields = [field for field in dataclasses.fields(kind) if field.name != "trl"]
    return {f.name: Key(f.type, getattr(defaults, f.name), **f.metadata) for f in fields}


def check_mapping(path: str, mapping: Any, kind: type | dict[str, Key], others: Iterable[str] = ()) -> list[Problem]:
    """Return (dotted name, sentence) for each mistake of the mapping that stands at `path` of a YAML, as `data.task`.

    kind: the dataclass of `option`s that says what the mapping may hold, or its keys; `make` then makes an instance.
    others: dotted names of other sections, one of which may have been meant by an unknown key.
    """
    if not isinstance(mapping, dict):
        return [(path, f"{path} is {mapping!r}, expected a section of keys")]
    keys = keys_of(kind) if isinstance(kind, type) else kind
    dot = f"{path}." if path else ""
    known = [*(f"{dot}{name}" for name in keys), *others]
    problems = []
    for name, value in mapping.items():
        if name not in keys:
            problems.append((f"{dot}{name}", f"{dot}{name} is no key{did_you_mean(f'{dot}{name}', known)}"))
        elif sentence := key_problem(f"{dot}{name}", value, keys[name]):
            problems.append((f"{dot}{name}", sentence))
    return problems


def key_problem(name: str, value: Any, key: Key) -> str | None:
    """Return the sentence about one value, or None: its type, its choices, its bounds."""
    if value == "???":
        return f"{name} is ???, a placeholder: give it a value"
    if not accepts(key.type, convert(value, key.type)):
        return f"{name} is {value!r}, expected {describe(key.type)}"
    if key.choices and value is not None and value not in key.choices:
        return f"{name} is {value!r}, expected one of {', '.join(map(str, key.choices))}"
    if key.bounds and isinstance(value, (int, float)) and not _inside(value, key.bounds):
        return f"{name} is {value}, expected a number in {key.bounds}"
    return None


def make(kind: type, values: dict[str, Any]) -> Any:
    """Return the dataclass `kind` of values that `check_mapping` found no mistake in."""
    types_by_name = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(**{name: convert(value, types_by_name[name]) for name, value in values.items()})


def convert(value: Any, kind: Any) -> Any:
    """Return the value as its type wants it: a bare `no` of YAML (false) as the word, a whole number as a float."""
    members = (kind, *get_args(kind))
    if value is False and "no" in members:
        return "no"
    return float(value) if type(value) is int and float in members and int not in members else value


def accepts(kind: Any, value: Any) -> bool:
    """Whether a plain value (of YAML or JSON) has the type; an int is a float, a bool is neither."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(arg, value) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(accepts(arg, item) for arg in args for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and (not args or accepts(args[1], item)) for key, item in value.items()
        )
    if isinstance(value, bool):
        return origin is bool
    return isinstance(value, (int, float) if origin is float else origin)


def describe(kind: Any) -> str:
    """Return a type in words: `int or none`, `one of a, b`, `list of str`."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in sorted(args, key=lambda arg: arg is types.NoneType))
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin is list and args:
        return f"list of {describe(args[0])}"
    if origin is dict and args:
        return "dict" if args[1] is Any else f"dict of {describe(args[1])}"
    return {Any: "any", types.NoneType: "none"}.get(origin) or origin.__name__


def _inside(value: float, bounds: str) -> bool:
    low, high = map(float, bounds[1:-1].split(","))
    above = low <= value if bounds[0] == "[" else low < value
    return above and (value <= high if bounds[-1] == "]" else value < high)
