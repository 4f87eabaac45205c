"""Cells of an experiment: every arm at every point of the grid, all checked before any of them runs."""

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmhalluc.exp.chain import BROUGHT, ROUNDS, START, line_of, own_keys, wrong_chains, wrong_rounds
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams import parser
from llmhalluc.hparams.data_args import DataArguments

ONLY_ARM = "model"  # the arm's name where none is given
# Sections whose files and folders must be there before the first cell runs.
INPUTS = ("model", "data", "eval")


@dataclass(frozen=True)
class Cell:
    """One training and evaluation: a file-safe name, its arm, its point of the grid, its whole raw config.

    line: the cells it builds on, the nearest first. rounds: how often errors are generated and trained on, with
    `problems` as the data.converter that says what they are generated from.
    """

    name: str
    arm: str
    point: dict[str, Any]
    raw: dict[str, Any]
    line: tuple[str, ...] = ()
    rounds: int = 0
    problems: str | None = None


def cells(raw: dict[str, Any]) -> list[Cell]:
    """The cells of `exp.arms` × `exp.grid` in the config's order; a cell's own config has no `exp` section.

    Raises UserError with the sentences of all cells at once, each with the names of the cells it is about.
    """
    exp = raw.get("exp") or {}
    parser.build({"exp": exp})
    arms, grid = exp.get("arms") or {ONLY_ARM: {}}, exp.get("grid") or {}
    wrong = list(_clashes(raw, arms, grid))
    made: dict[str, Cell] = {}
    sentences: dict[str, list[str]] = {}
    for arm, values in itertools.product(arms, itertools.product(*grid.values())):
        point = dict(zip(grid, values, strict=True))
        cell = _cell(raw, arms, arm, point)
        # Lower case: two such folders are one on the file systems of macOS and Windows.
        other = made.setdefault(cell.name.lower(), cell)
        if other is not cell:
            wrong.append(
                f"arm {other.arm!r} at {other.point} and arm {arm!r} at {point} are both named {cell.name}: "
                "rename an arm or drop a repeated value of exp.grid"
            )
        start = _cell(raw, arms, arms[arm][START], point) if cell.line else None
        for sentence in _mistakes(cell, start, own_keys(arms[arm])):
            sentences.setdefault(sentence, []).append(cell.name)
    wrong += [f"{_listed(names)}: {sentence}" for sentence, names in sentences.items()]
    if wrong:
        raise UserError(*wrong)
    return list(made.values())


def _cell(raw: dict[str, Any], arms: dict[str, dict], arm: str, point: dict[str, Any]) -> Cell:
    """The cell of an arm at a point: the config, the arm's keys on top, the grid's on top of these.

    A cell that starts from another leaves the model's origin behind; of `train`, `_left_behind`.
    """
    base, keys = {key: value for key, value in raw.items() if key != "exp"}, own_keys(arms[arm])
    made, rounds = with_keys(with_keys(base, keys), point), arms[arm].get(ROUNDS)
    if isinstance(train := made.get("train"), dict):
        left = _left_behind(base, made, dict([*flat(keys), *flat(point)]))
        made["train"] = {key: value for key, value in train.items() if key not in left}
    line = tuple(cell_name(other, point) for other in line_of(arm, arms))
    if line and isinstance(model := made.get("model"), dict):
        made["model"] = {key: value for key, value in model.items() if key not in BROUGHT}
    if not isinstance(rounds, int):
        return Cell(cell_name(arm, point), arm, point, made, line)
    return Cell(cell_name(arm, point), arm, point, made, line, rounds, _converter(with_keys(base, point)))


def _mistakes(cell: Cell, start: Cell | None, keys: dict[str, Any]) -> Iterator[str]:
    """Sentences about one cell's config, and about what it must have in common with the one it starts from."""
    try:
        parser.build(cell.raw, tuple(name for name in INPUTS if name != "model" or start is None))
    except UserError as error:
        yield from error.sentences
    if cell.rounds:
        eval_strategy = dict(flat(cell.raw)).get("train.eval_strategy")
        yield from wrong_rounds(cell.arm, _converter(cell.raw), str(cell.problems), eval_strategy)
    if start is not None and "backtrack.context" not in dict(flat(keys)):
        ours, theirs = (dict(flat(part.raw)).get("backtrack.context") or "soft" for part in (cell, start))
        if ours != theirs:
            yield (
                f"backtrack.context is {ours}, but exp.arms.{start.arm}, which exp.arms.{cell.arm} starts from, has "
                f"{theirs}: set it outside exp.arms, or in exp.arms.{cell.arm} too"
            )


def _left_behind(base: dict[str, Any], made: dict[str, Any], given: dict[str, Any]) -> set[str]:
    """The keys of `train` that a cell does not take over from a config of another stage; `given` are the cell's own.

    They are those that only the other stage knows, and those that the cell sets to null.
    """
    before, now = (parser.stage_of(with_keys({}, raw)) for raw in (base, made))
    if before == now:
        return set()
    foreign = parser.section_keys("train", before).keys() - parser.section_keys("train", now).keys()
    inherited = {key: f"train.{key}" for key in base.get("train") or {}}
    return {key for key, path in inherited.items() if (given[path] is None if path in given else key in foreign)}


def _converter(raw: dict[str, Any]) -> str:
    return dict(flat(raw)).get("data.converter") or DataArguments().converter


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
    set_by = {arm: [path for path, _ in flat(own_keys(keys))] for arm, keys in arms.items()}
    yield from wrong_chains(arms, set_by)
    everywhere = {"": [path for path, _ in flat(raw)], **{f"exp.arms.{arm}": set_by[arm] for arm in arms}}
    for where, paths in everywhere.items():
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
