"""The search for one problem: branches of text, what they are worth, and what they have cost."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.sequence import Cost, Sequence, Trace
from llmhalluc.search.budget import Budget
from llmhalluc.search.options import SearchOptions
from llmhalluc.tasks.steps import ends_step


@dataclass(eq=False)
class Problem:
    """What is searched for: a prompt, the name of its streams, and the task and record that judge its texts."""

    prompt_ids: list[int]
    key: str
    task: Any = None
    record: dict[str, Any] | None = None


@dataclass(eq=False)
class Branch:
    """A prefix, or a whole text where `trace` is set; score: what the guide says of it, the higher the better."""

    sequence: Sequence
    whole: bool = False  # it runs to its end, not to that of a step
    score: float = 0.0
    trace: Trace | None = None
    marks: list[int] = field(default_factory=lambda: [0])  # surviving tokens at the ends of steps
    goods: list[float] = field(default_factory=list)  # what a judge said of each of these steps
    counted: tuple[int, int] = (0, 0)  # tokens emitted and fed that are in the tree's cost already

    @property
    def step_length(self) -> int:
        """How many surviving tokens the newest step has."""
        standing, marks = len(self.sequence.surviving), self.marks
        return standing - (marks[-2] if marks[-1] == standing and len(marks) > 1 else marks[-1])

    @property
    def complete(self) -> bool:
        """Whether it is a text that came to its own end."""
        return self.trace is not None and self.trace.finish_reason in ("eos", "stop")


def likelihood(branch: Branch) -> float:
    """Return the geometric mean of the probabilities of a branch's surviving tokens, 0 without any."""
    return math.exp(fmean(branch.sequence.logprobs or [-math.inf]))


class Tree:
    """The branches of one problem; a method (methods.py) starts, forks and drops them."""

    def __init__(self, engine: Engine, problem: Problem, options: SearchOptions, budget: Budget):
        self.engine, self.problem, self.options, self.budget = engine, problem, options, budget
        self.live: list[Branch] = []  # in the engine, running or held
        self.running: list[Branch] = []
        self.leaves: list[Branch] = []  # whole texts, in the order of their ends
        self.cost = Cost()
        self.count = 0
        # It waits behind the prompt, which no text has to compute again.
        self.root = engine.add(problem.prompt_ids, problem.key, held=True)

    @property
    def spent(self) -> bool:
        """Whether the budget is, or as many whole texts as asked for are there."""
        enough = self.options.n is not None and len(self.leaves) >= self.options.n
        return enough or self.budget.spent(self.cost)

    def start(self, count: int, whole: bool = False) -> list[Branch]:
        """Begin texts from the prompt, which is computed once; they run from the next `yield` of the method on."""
        return self._run(self.root, [Branch(self.root, whole) for _ in range(count)])

    def fork(self, branch: Branch, count: int) -> list[Branch]:
        """Continue a held prefix in `count` ways; it stays as it is."""
        return self._run(
            branch.sequence, [replace(branch, marks=branch.marks[:], goods=branch.goods[:]) for _ in range(count)]
        )

    def _run(self, source: Sequence, made: list[Branch]) -> list[Branch]:
        """Give each branch a fork of its own, which runs."""
        twins = self.engine.branch(source, [self._key() for _ in made])
        for branch, twin in zip(made, twins, strict=True):
            branch.sequence, branch.counted = twin, (len(twin.completion_ids), 0)
        self.live += made
        self.running += made
        return made

    def ballot(self, leaf: Branch) -> Any:
        """Return what a whole text votes for, None for nothing; without a task, its words."""
        text = leaf.trace.text if leaf.trace is not None else ""
        task = self.problem.task
        return (text.strip() or None) if task is None else task.ballot(text, self.problem.record)

    def close(self) -> None:
        """Leave the engine."""
        self.drop(list(self.live))
        self.engine.drop(self.root)

    def drop(self, branches: Iterable[Branch]) -> None:
        """Forget prefixes; whole texts are out of the engine already."""
        for branch in branches:
            if branch in self.live:
                self.live.remove(branch)
                self.engine.drop(branch.sequence)

    def account(self, branch: Branch, flops: Callable[[int, float], float], seconds: float) -> None:
        """Add what a branch has cost since the last time."""
        sequence, (emitted, fed) = branch.sequence, branch.counted
        branch.counted = (len(sequence.completion_ids), sequence.fed)
        new, rows = sequence.fed - fed, len(sequence.tape.columns)
        self.cost = self.cost.plus(len(sequence.completion_ids) - emitted, new, flops(new, rows), seconds)

    def at_boundary(self, branch: Branch, piece: Callable[[int], str]) -> bool:
        """Return whether a text has just ended a step, and note that."""
        standing, marks = branch.sequence.surviving, branch.marks
        while marks[-1] > len(standing):
            marks.pop()
        new = standing[marks[-1] :]
        if not new or branch.sequence.completion_ids[-1] != standing[-1]:
            return False
        if self.options.step_tokens is not None:
            ends = len(new) >= self.options.step_tokens
        else:
            ends = self.problem.task is not None and ends_step(self.problem.task, [piece(token) for token in new])
        if ends:
            marks.append(len(standing))
        return ends

    def _key(self) -> str:
        self.count += 1
        return self.problem.key if self.count == 1 else f"{self.problem.key}/{self.count - 1}"
