"""The raw config of an experiment in its normal form: every key nested, each arm's chain apart from its keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmhalluc.extras.keys import flat, with_keys
from llmhalluc.hparams import parser
from llmhalluc.hparams.sections import ExpArguments

ONLY_ARM = "model"  # the arm's name where none is given
CHAIN_KEYS = ("start", "rounds")  # of an arm; they are no keys of the config


@dataclass(frozen=True)
class Arm:
    """What an arm sets in the config, nested, and its chain.

    start: the arm whose model it starts from. rounds: how often errors of its own are generated and trained on. Both
    are as given; llmhalluc/exp/chain.py checks them.
    """

    name: str
    keys: dict[str, Any]
    start: Any = None
    rounds: Any = None

    @property
    def paths(self) -> list[str]:
        """The dotted keys that it sets."""
        return [path for path, _ in flat(self.keys)]


@dataclass(frozen=True)
class Experiment:
    """Arms × grid over `base`, the config without its `exp` section."""

    base: dict[str, Any]
    arms: dict[str, Arm]
    grid: dict[str, list[Any]]
    exp: ExpArguments


def read_experiment(raw: dict[str, Any]) -> Experiment:
    """Return the experiment of a raw config. Raises UserError for a wrong `exp` section."""
    exp = parser.build({"exp": raw.get("exp") or {}}).exp
    base = {key: value for key, value in raw.items() if key != "exp"}
    arms = {name: _arm(name, keys) for name, keys in (exp.arms or {ONLY_ARM: {}}).items()}
    return Experiment(base, arms, exp.grid, exp)


def clashes(experiment: Experiment) -> Iterator[str]:
    """Yield sentences about keys that the config, an arm and the grid fight over."""
    arms, grid, baseline = experiment.arms, experiment.grid, experiment.exp.baseline
    if baseline not in (None, *arms):
        yield f"exp.baseline is {baseline}, expected one of exp.arms: {', '.join(arms)}"
    for key, values in grid.items():
        if not values:
            yield f"exp.grid.{key} is empty: give it at least one value or take it out"
        if key.split(".")[0] == "exp":
            yield f"exp.grid varies {key}, but exp is one for all cells: take it out"
    if "seed" in grid and "train.seed" in dict(flat(experiment.base)):
        yield "exp.grid varies seed, but the config sets train.seed: take one out"
    for arm in arms.values():
        yield from _clashes_of_an_arm(f"exp.arms.{arm.name}", arm.paths, grid)


def _clashes_of_an_arm(where: str, paths: list[str], grid: dict[str, list[Any]]) -> Iterator[str]:
    if "seed" in grid and "train.seed" in paths:
        yield f"exp.grid varies seed, but {where} sets train.seed: take one out"
    for path in paths:
        if path.split(".")[0] == "exp":
            yield f"{where} sets {path}, but exp is one for all cells: set it outside exp.arms"
        for key in grid:
            if f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}."):
                yield f"{where} sets {path}, which exp.grid varies: take it out of one of the two"


def _arm(name: str, given: dict[str, Any]) -> Arm:
    chain = {key: given[key] for key in CHAIN_KEYS if key in given}
    keys = {key: value for key, value in given.items() if key not in CHAIN_KEYS}
    return Arm(name, with_keys({}, keys), **chain)
