"""Whether a prefix is good: by the task's solver, by roll-outs, by a search over them, or where two of these agree."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmhalluc.data.problems import Problem
from llmhalluc.extras.errors import UserError
from llmhalluc.tasks import TASKS
from llmhalluc.verify.places import Place, texts_of

SOURCES = ("solver", "rollouts", "search", "consensus")
Value = Callable[[Sequence[tuple[Problem, list[int]]]], list[float]]  # the share of completions that come out right


class Judged(NamedTuple):
    """The places of one trace of a problem, and whether its answer is right."""

    problem: Problem
    places: list[Place]
    right: bool


def label(source: str, traces: Sequence[Judged], decode: Callable[[Sequence[int]], str], value: Value) -> list[list]:
    """Return for each place of each trace whether what stands is good: 1.0, 0.0, a share, or None for no label.

    solver: a right solution can continue so. rollouts: the share of completions that come out right (Math-Shepherd,
    arXiv 2312.08935). search: good before the first wrong step, which halving finds (OmegaPRM, arXiv 2406.06592).
    consensus: rollouts and solver agree (arXiv 2501.07301). Raises UserError for a task without a solver.
    """
    if source in ("solver", "consensus") and traces:
        task = traces[0].problem.task
        if not TASKS[task].can("rest"):
            raise UserError(f"judge.labels is {source}, but the task {task} has no solver: take rollouts or search")
    if source == "search":
        return [_searched(trace, value) for trace in traces]
    by_solver = [_solved(trace, decode) for trace in traces] if source != "rollouts" else None
    if source == "solver":
        assert by_solver is not None
        return by_solver
    shares = _shares(traces, value)
    if by_solver is None:
        return shares
    return [
        [good if (share > 0) == (good > 0) else None for good, share in zip(goods, ours, strict=True)]
        for goods, ours in zip(by_solver, shares, strict=True)
    ]


def _solved(trace: Judged, decode: Callable[[Sequence[int]], str]) -> list[float]:
    task, record = TASKS[trace.problem.task], trace.problem.record
    return [
        float(trace.right if place.whole else task.rest(texts_of(place, decode), record) is not None)
        for place in trace.places
    ]


def _shares(traces: Sequence[Judged], value: Value) -> list[list[float]]:
    asked = [(trace.problem, list(place.standing)) for trace in traces for place in trace.places if not place.whole]
    found = iter(value(asked))
    return [[float(trace.right) if place.whole else next(found) for place in trace.places] for trace in traces]


def _searched(trace: Judged, value: Value) -> list[float | None]:
    """By halves over the places of the surviving solution; the places of what was erased later have no label."""
    if trace.right:
        return [_stays(trace, place) for place in trace.places]
    line = [at for at, place in enumerate(trace.places) if not place.whole and _stays(trace, place)]
    low, high = 0, len(line)  # good so far, fallen at the latest
    while low < high:
        middle = (low + high) // 2
        if value([(trace.problem, list(trace.places[line[middle]].standing))])[0] > 0:
            low = middle + 1
        else:
            high = middle
    found: list[float | None] = [None] * len(trace.places)
    for number, at in enumerate(line):
        found[at] = float(number < low)
    for at, place in enumerate(trace.places):
        if place.whole:
            found[at] = 0.0
    return found


def _stays(trace: Judged, place: Place) -> float | None:
    """1.0 for a prefix of what stands in the end."""
    end = trace.places[-1].standing
    return 1.0 if place.standing == end[: len(place.standing)] else None


def area(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Return the area under the ROC curve: how often a True one scores higher, ties half; nan with one class."""
    from scipy.stats import rankdata

    right = sum(labels)
    if right in (0, len(labels)):
        return math.nan
    ranks = rankdata(scores)
    total = sum(rank for rank, is_right in zip(ranks, labels, strict=True) if is_right)
    return float((total - right * (right + 1) / 2) / (right * (len(labels) - right)))


def kept(labels: Any) -> list[int]:
    """Return the numbers of those that have a label."""
    return [number for number, one in enumerate(labels) if one is not None]
