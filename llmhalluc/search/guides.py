"""What a prefix is worth: the model's own likelihood, the task's own check, or a trained judge."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from llmhalluc.extras.errors import UserError
from llmhalluc.search.tree import Branch, Problem, likelihood


class Judged(NamedTuple):
    """A branch and the problem that it is of."""

    branch: Branch
    problem: Problem


class Guide(Protocol):
    """Values branches, the higher the better; layers: hidden states that it wants of the engine.

    by_step: it is asked at the end of each step of a text, also where the search looks at whole texts alone.
    """

    layers: tuple[str, ...]
    by_step: bool

    def __call__(self, judged: Sequence[Judged]) -> list[tuple[float, int, float]]:
        """Return (score, forward tokens, flops) of each."""


class Likelihood:
    """The geometric mean of the probabilities of the surviving tokens."""

    layers: tuple[str, ...] = ()
    by_step = False

    def __call__(self, judged: Sequence[Judged]) -> list[tuple[float, int, float]]:
        return [(likelihood(one.branch), 0, 0.0) for one in judged]


class Check:
    """1.0 where the task says that a right solution can begin so, else 0.0."""

    layers: tuple[str, ...] = ()
    by_step = False

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, judged: Sequence[Judged]) -> list[tuple[float, int, float]]:
        found = []
        for branch, problem in judged:
            text = self.tokenizer.decode(branch.sequence.surviving, skip_special_tokens=True)
            if branch.trace is not None:
                good = problem.task.check(text, problem.record).right
            else:
                good = problem.task.promising(text, problem.record)
            found.append((float(good), 0, 0.0))
        return found


def check_guide(name: str, task: Any) -> None:
    """Raise UserError for a guide that needs what a task does not have."""
    if name == "check" and (task is None or not task.can("promising")):
        raise UserError(
            "gen.search_args.guide is check, but the task cannot judge a partial answer by its problem alone: take "
            "likelihood, verifier or prm"
        )
