"""How often the 95% intervals of llmhalluc/eval/stats.py hold, and how wide they are, by simulation.

A problem has a difficulty (standard deviation 1.5 in the logit), a training seed an effect (its `spread` likewise),
an answer is right with the probability of their sum; the arm that is compared is 0.4 better in the logit. With one
seed the truth is that of the model that was trained, with more it is that of the way of training. Prints the lowest
coverage over the accuracies and the mean width at 50%, by number of problems, seeds and spread.
Usage: python benchmarks/coverage.py [--runs 2000] [--seed 0] [--write]    (into docs/statistics.md)
"""

import argparse
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from llmhalluc.eval.stats import difference, mean
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.report.tables import put_into

DIFFICULTY, GAIN = 1.5, 0.4
GRID = {
    "n": (10, 20, 50, 100, 400, 1000),
    "share": (0.03, 0.1, 0.5, 0.9, 0.97),
    "seeds": (1, 2, 3, 5, 10),
    "spread": (0.0, 0.3, 0.6),
}
DOCUMENT = REPOSITORY / "docs" / "statistics.md"
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Covered(NamedTuple):
    """Shares of runs whose interval holds the truth, and mean widths, of an accuracy and of a difference."""

    accuracy: float
    difference: float
    accuracy_width: float
    difference_width: float


def expected(logit, deviation: float):
    """Mean accuracy where the logit varies normally about `logit`, by Gauss-Hermite quadrature."""
    return (WEIGHTS / (1 + np.exp(-(np.asarray(logit)[..., None] + deviation * NODES)))).sum(-1)


@lru_cache
def logit_of(share: float, deviation: float) -> float:
    """The logit about which the mean accuracy is `share`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle, deviation) < share else (low, middle)
    return low


@lru_cache(None)
def cover(n: int, share: float, seeds: int, spread: float, runs: int, seed: int) -> Covered:
    """Simulate `runs` experiments of two arms with `n` problems and `seeds` seeds at a mean accuracy of `share`."""
    rng = np.random.default_rng(seed)
    base = logit_of(share, float(np.hypot(DIFFICULTY, spread)))
    found = np.empty((runs, 4))
    for run in range(runs):
        hard = rng.normal(0, DIFFICULTY, n)
        arms, truths = [], []
        for level in (base + GAIN, base):
            effects = rng.normal(0, spread, seeds)
            chance = 1 / (1 + np.exp(-(level + effects[:, None] + hard)))
            arms.append((rng.random((seeds, n)) < chance).astype(float))
            one = seeds == 1
            mean_logit = level + effects[0] if one else level
            truths.append(float(expected(mean_logit, DIFFICULTY if one else float(np.hypot(DIFFICULTY, spread)))))
        own, gap = mean(arms[1]), difference(*arms)
        found[run] = (
            own.low <= truths[1] <= own.high, gap.low <= truths[0] - truths[1] <= gap.high,
            own.high - own.low, gap.high - gap.low,
        )  # fmt: skip
    return Covered(*found.mean(0))


def table(runs: int, seed: int) -> str:
    """The grid in Markdown: the lowest coverage over the accuracies, and the mean width in points, at 50%."""
    lines = [
        f"`python benchmarks/coverage.py --runs {runs} --seed {seed}`: lowest coverage over accuracies of "
        f"{', '.join(f'{share:.0%}' for share in GRID['share'])}, and the mean width at 50%, in points.", "",
        "| seeds | spread | " + " | ".join(f"n = {n}" for n in GRID["n"]) + " |",
        "| --- " * (2 + len(GRID["n"])) + "|",
    ]  # fmt: skip
    for name, at, width in (("accuracy", 0, 2), ("difference", 1, 3)):
        lines.append(f"| **{name}** |" + " |" * (1 + len(GRID["n"])))
        for seeds, spread in product(GRID["seeds"], GRID["spread"]):
            fields = []
            for n in GRID["n"]:
                found = {share: cover(n, share, seeds, spread, runs, seed) for share in GRID["share"]}
                lowest = min(one[at] for one in found.values())
                fields.append(f"{lowest:.3f}, {100 * found[0.5][width]:.0f}")
            lines.append(f"| {seeds} | {spread} | " + " | ".join(fields) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    text = table(given.runs, given.seed)
    if given.write:
        put_into(DOCUMENT, "benchmarks/coverage.py", text)


if __name__ == "__main__":
    main()
