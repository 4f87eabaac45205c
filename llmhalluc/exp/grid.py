"""Cells of an experiment: every arm at every point of the grid, all checked before any of them runs."""

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams import parser

ONLY_ARM = "model"  # the arm's name where none is given
# Sections whose files and folders must be there before the first cell runs.
INPUTS = ("model", "data", "eval")


@dataclass(frozen=True)
class Cell:
    """One training and evaluation: a file-safe name, its arm, its point of the grid, its whole raw config."""

    name: str
    arm: str
    point: dict[str, Any]
    raw: dict[str, Any]


def cells(raw: dict[str, Any]) -> list[Cell]:
    """The cells of `exp.arms` × `exp.grid` in the config's order; a cell's own config has no `exp` section.

    Raises UserError with the sentences of all cells at once, each with the names of the cells it is about.
    """
    exp = raw.get("exp") or {}
    parser.build({"exp": exp})
    arms, grid = exp.get("arms") or {ONLY_ARM: {}}, exp.get("grid") or {}
    wrong = list(_clashes(raw, arms, grid))
    base = {key: value for key, value in raw.items() if key != "exp"}
    made: dict[str, Cell] = {}
    sentences: dict[str, list[str]] = {}
    for (arm, keys), values in itertools.product(arms.items(), itertools.product(*grid.values())):
        point = dict(zip(grid, values, strict=True))
        cell = Cell(cell_name(arm, point), arm, point, with_keys(with_keys(base, keys), point))
        # Lower case: two such folders are one on the file systems of macOS and Windows.
        other = made.setdefault(cell.name.lower(), cell)
        if other is not cell:
            wrong.append(
                f"arm {other.arm!r} at {other.point} and arm {arm!r} at {point} are both named {cell.name}: "
                "rename an arm or drop a repeated value of exp.grid"
            )
        try:
            parser.build(cell.raw, INPUTS)
        except UserError as error:
            for sentence in error.sentences:
                sentences.setdefault(sentence, []).append(cell.name)
    wrong += [f"{_listed(names)}: {sentence}" for sentence, names in sentences.items()]
    if wrong:
        raise UserError(*wrong)
    return list(made.values())


def cell_name(arm: str, point: dict[str, Any]) -> str:
    """A readable folder name, `block__context=soft__seed=1`; a key is its last word unless two share that."""
    last = [key.rsplit(".", 1)[-1] for key in point]
    keys = last if len(set(last)) == len(last) else list(point)
    parts = [arm, *(f"{key}={value}" for key, value in zip(keys, point.values(), strict=True))]
    return "__".join(re.sub(r"[^\w.=+-]+", "-", part, flags=re.ASCII).strip(".-") for part in parts)


def with_keys(raw: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """A copy of `raw` with dotted keys and nested sections set: `{"a.b": 1}` is `{"a": {"b": 1}}`."""
    made = copy.deepcopy(raw)
    for path, value in flat(keys):
        *parents, last = path.split(".")
        inner = made
        for key in parents:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[last] = copy.deepcopy(value)
    return made


def flat(keys: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested and dotted keys; an empty section is a value."""
    for key, value in keys.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _clashes(raw: dict[str, Any], arms: dict[str, dict], grid: dict[str, list]) -> Iterator[str]:
    """Sentences about keys that the experiment, an arm and the grid fight over."""
    baseline = (raw.get("exp") or {}).get("baseline")
    if baseline not in (None, *arms):
        yield f"exp.baseline is {baseline}, expected one of exp.arms: {', '.join(arms)}"
    for key, values in grid.items():
        if not values:
            yield f"exp.grid.{key} is empty: give it at least one value or take it out"
        if key.split(".")[0] == "exp":
            yield f"exp.grid varies {key}, but exp is one for all cells: take it out"
    for where, keys in {"": raw, **{f"exp.arms.{arm}": keys for arm, keys in arms.items()}}.items():
        paths = [path for path, _ in flat(keys)]
        if "seed" in grid and "train.seed" in paths:
            yield f"exp.grid varies seed, but {where or 'the config'} sets train.seed: take one out"
        for path in paths if where else ():
            if path.split(".")[0] == "exp":
                yield f"{where} sets {path}, but exp is one for all cells: set it outside exp.arms"
            for key in grid:
                if f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}."):
                    yield f"{where} sets {path}, which exp.grid varies: take it out of one of the two"


def _listed(names: list[str]) -> str:
    """`cell a`, or `cells a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"cell{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
