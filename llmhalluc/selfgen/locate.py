"""Where a wrong solution first goes wrong: three locators with one signature.

A locator takes chains of steps and an estimate of the value of their prefixes, and answers the index of each chain's
first wrong step, None where it finds none.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from llmhalluc.reward.steps import equations
from llmhalluc.selfgen.steps import follow


class Chain(NamedTuple):
    """A solution known to be wrong: the text and the key of each step, and the keys of solutions that are right."""

    texts: Sequence[str]
    keys: Sequence[Hashable | None]
    right: Sequence[Sequence[Hashable | None]]


class Estimate(NamedTuple):
    """Values of prefixes: `value([(chain, steps), …])` is the share of completions from each that come out right.

    threshold: a prefix has fallen when its value is not above it. budget: most prefixes that may be asked for.
    """

    value: Callable[[list[tuple[int, int]]], list[float]]
    threshold: float = 0.0
    budget: int | None = None


Locator = Callable[[Sequence[Chain], Estimate | None], list[int | None]]


def arithmetic(chains: Sequence[Chain], estimate: Estimate | None = None) -> list[int | None]:
    """The first step that states a false equation."""
    return [
        next((i for i, text in enumerate(chain.texts) if not all(found.true for found in equations(text))), None)
        for chain in chains
    ]


def departure(chains: Sequence[Chain], estimate: Estimate | None = None) -> list[int | None]:
    """The first step with which no right solution agrees any more; None without a right solution."""

    def departs(chain: Chain, n: int) -> bool:
        return all(follow(chain.keys[:n], right) is None for right in chain.right)

    return [
        next((i for i in range(len(chain.keys)) if departs(chain, i + 1)), None) if chain.right else None
        for chain in chains
    ]


def value(chains: Sequence[Chain], estimate: Estimate | None) -> list[int | None]:
    """The step after which the value of the prefix has fallen, by binary search, all chains a round at a time.

    A prefix is good while some of its rollouts come out right: the hard estimate of Math-Shepherd (arXiv:2312.08935,
    section 3.3); the search for the first error by halves is OmegaPRM's (arXiv:2406.06592, section 3.2). It asks for
    1 + ceil(log2(steps)) prefixes a chain, and finds the very step where values only ever fall. None for a chain whose
    empty prefix has fallen (the model cannot solve the problem at all), and for those beyond the budget.
    """
    if estimate is None:
        raise ValueError("the locator value needs an estimate")
    bounds: dict[int, tuple[int, int]] = {}  # chain -> (steps of a good prefix, steps of a fallen one)
    left = estimate.budget
    for i, chain in enumerate(chains):
        cost = 1 + max(0, len(chain.texts) - 1).bit_length()
        if chain.texts and (left is None or cost <= left):
            bounds[i] = (0, len(chain.texts))
            left = None if left is None else left - cost

    def fallen(prefixes: list[tuple[int, int]]) -> list[bool]:
        return [share <= estimate.threshold for share in estimate.value(prefixes)] if prefixes else []

    for (i, _), fell in zip(starts := [(i, 0) for i in bounds], fallen(starts), strict=True):
        if fell:
            del bounds[i]
    while halves := [(i, (good + bad) // 2) for i, (good, bad) in bounds.items() if bad - good > 1]:
        for (i, half), fell in zip(halves, fallen(halves), strict=True):
            good, bad = bounds[i]
            bounds[i] = (good, half) if fell else (half, bad)
    return [bounds[i][0] if i in bounds else None for i in range(len(chains))]


LOCATORS: dict[str, Locator] = {"arithmetic": arithmetic, "departure": departure, "value": value}
