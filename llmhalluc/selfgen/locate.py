"""Where a wrong solution first goes wrong: three locators with one signature.

A locator takes wrong solutions and an estimate of the value of their prefixes, and returns the index of each one's
first wrong step, None where it finds none.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from llmhalluc.selfgen.split import follow


class WrongSolution(NamedTuple):
    """A solution known to be wrong: the text and the key of each step, and the keys of solutions that are right.

    is_false: whether a step's text is false by itself.
    """

    texts: Sequence[str]
    keys: Sequence[Hashable | None]
    right: Sequence[Sequence[Hashable | None]]
    is_false: Callable[[str], bool]


class Estimate(NamedTuple):
    """Values of prefixes: `value([(solution, steps), …])` is the share of completions from each that come out right.

    threshold: a prefix has fallen when its value is not above it. budget: most prefixes that may be asked for.
    """

    value: Callable[[list[tuple[int, int]]], list[float]]
    threshold: float = 0.0
    budget: int | None = None


Locator = Callable[[Sequence[WrongSolution], Estimate | None], list[int | None]]


def arithmetic(solutions: Sequence[WrongSolution], estimate: Estimate | None = None) -> list[int | None]:
    """The first step that is false by itself, such as a false equation."""
    return [next((i for i, text in enumerate(one.texts) if one.is_false(text)), None) for one in solutions]


def departure(solutions: Sequence[WrongSolution], estimate: Estimate | None = None) -> list[int | None]:
    """The first step with which no right solution agrees any more; None without a right solution."""

    def departure_of(one: WrongSolution) -> int | None:
        for i in range(len(one.keys) if one.right else 0):
            if all(follow(one.keys[: i + 1], right) is None for right in one.right):
                return i
        return None

    return [departure_of(one) for one in solutions]


def value(solutions: Sequence[WrongSolution], estimate: Estimate | None) -> list[int | None]:
    """The step after which the value of the prefix has fallen, by binary search, all solutions a round at a time.

    A prefix is good while some of its rollouts come out right: the hard estimate of Math-Shepherd (arXiv:2312.08935,
    section 3.3); the search for the first error by halves is OmegaPRM's (arXiv:2406.06592, section 3.2). It asks for
    1 + ceil(log2(steps)) prefixes a solution, and finds the very step where values only ever fall. None for one whose
    empty prefix has fallen (the model cannot solve the problem at all), and for those beyond the budget.
    """
    if estimate is None:
        raise ValueError("the locator value needs an estimate")
    bounds: dict[int, tuple[int, int]] = {}  # solution -> (steps of a good prefix, steps of a fallen one)
    left = estimate.budget
    for i, one in enumerate(solutions):
        cost = 1 + max(0, len(one.texts) - 1).bit_length()
        if one.texts and (left is None or cost <= left):
            bounds[i] = (0, len(one.texts))
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
    return [bounds[i][0] if i in bounds else None for i in range(len(solutions))]


LOCATORS: dict[str, Locator] = {"arithmetic": arithmetic, "departure": departure, "value": value}
