"""Cells of an experiment: every arm at every point of the grid, all checked before any of them runs."""

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmhalluc.exp.chain import ORIGIN, line_of, rounds_of, wrong_chains, wrong_rounds
from llmhalluc.exp.experiment import Arm, Experiment, clashes
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.keys import value_at, with_keys
from llmhalluc.hparams import parser
from llmhalluc.hparams.sections import DataArguments

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

    @property
    def stage(self) -> str:
        """The stage of its last training."""
        return parser.stage_of(self.raw)


def cells(experiment: Experiment) -> list[Cell]:
    """Return the cells of `exp.arms` × `exp.grid` in the config's order; a cell's config has no `exp` section.

    Raises UserError with the sentences of all cells at once, each with the names of the cells it is about.
    """
    wrong = [*clashes(experiment), *wrong_chains(experiment.arms)]
    made: dict[str, Cell] = {}
    about: dict[str, list[str]] = {}  # sentence -> names of cells
    for arm, values in itertools.product(experiment.arms.values(), itertools.product(*experiment.grid.values())):
        point = dict(zip(experiment.grid, values, strict=True))
        cell = _cell(experiment, arm, point)
        # Lower case: two such folders are one on the file systems of macOS and Windows.
        other = made.setdefault(cell.name.lower(), cell)
        if other is not cell:
            wrong.append(
                f"arm {other.arm!r} at {other.point} and arm {arm.name!r} at {point} are both named {cell.name}: "
                "rename an arm or drop a repeated value of exp.grid"
            )
        start = _cell(experiment, experiment.arms[arm.start], point) if cell.line else None
        for sentence in _mistakes(cell, start, arm):
            about.setdefault(sentence, []).append(cell.name)
    wrong += [f"{_listed(names)}: {sentence}" for sentence, names in about.items()]
    if wrong:
        raise UserError(*wrong)
    return list(made.values())


def cell_name(arm: str, point: dict[str, Any]) -> str:
    """Return a readable folder name, `block__context=soft__seed=1`; a key is its last word unless two share that."""
    last = [key.rsplit(".", 1)[-1] for key in point]
    keys = last if len(set(last)) == len(last) else list(point)
    parts = [arm, *(f"{key}={value}" for key, value in zip(keys, point.values(), strict=True))]
    return "__".join(_file_safe(part) for part in parts)


def _file_safe(part: str) -> str:
    """Letters and digits of any script, the rest as hyphens; a number of its own where nothing is left."""
    safe = re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", part)).strip(".-")
    return safe or f"arm-{zlib.crc32(part.encode('utf-8', 'replace')):08x}"


def _cell(experiment: Experiment, arm: Arm, point: dict[str, Any]) -> Cell:
    """The cell of an arm at a point: the config, the arm's keys on top, the grid's on top of these.

    A cell that starts from another leaves the model's origin behind; of `train`, `_not_inherited`.
    """
    base, own = experiment.base, with_keys(arm.keys, point)
    raw = with_keys(base, own)
    if isinstance(raw.get("train"), dict):
        left = _not_inherited(base, raw, own.get("train") or {})
        raw["train"] = {key: value for key, value in raw["train"].items() if key not in left}
    line = tuple(cell_name(name, point) for name in line_of(arm.name, experiment.arms))
    if line and isinstance(raw.get("model"), dict):
        raw["model"] = {key: value for key, value in raw["model"].items() if key not in ORIGIN}
    rounds = rounds_of(arm)
    problems = _converter(with_keys(base, point)) if rounds else None
    return Cell(cell_name(arm.name, point), arm.name, point, raw, line, rounds, problems)


def _not_inherited(base: dict[str, Any], raw: dict[str, Any], own: dict[str, Any]) -> set[str]:
    """The keys of `train` that a cell does not take over from a config of another stage; `own` are its own.

    They are those that only the other stage knows, and those that the cell sets to null.
    """
    before, now = parser.stage_of(base), parser.stage_of(raw)
    if before == now:
        return set()
    foreign = parser.section_keys("train", before).keys() - parser.section_keys("train", now).keys()
    inherited = base["train"] if isinstance(base.get("train"), dict) else {}
    return {key for key in inherited if (own[key] is None if key in own else key in foreign)}


def _mistakes(cell: Cell, start: Cell | None, arm: Arm) -> Iterator[str]:
    """Sentences about one cell's config, and about what it must have in common with the one it starts from."""
    try:
        parser.build(cell.raw, tuple(name for name in INPUTS if name != "model" or start is None))
    except UserError as error:
        yield from error.sentences
    if cell.rounds:
        eval_strategy = value_at(cell.raw, "train.eval_strategy")
        yield from wrong_rounds(cell.arm, _converter(cell.raw), str(cell.problems), eval_strategy)
    if start is not None and value_at(arm.keys, "backtrack.context") is None:
        ours, theirs = (value_at(part.raw, "backtrack.context") or "soft" for part in (cell, start))
        if ours != theirs:
            yield (
                f"backtrack.context is {ours}, but exp.arms.{start.arm}, which exp.arms.{cell.arm} starts from, has "
                f"{theirs}: set it outside exp.arms, or in exp.arms.{cell.arm} too"
            )


def _converter(raw: dict[str, Any]) -> str:
    return value_at(raw, "data.converter") or DataArguments().converter


def _listed(names: list[str]) -> str:
    """`cell a`, or `cells a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"cell{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
