"""From samples to traces: verify, locate the first wrong step, and find how the right prefix goes on rightly."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.problems import Problem
from llmhalluc.data.task import MoveTokens
from llmhalluc.selfgen.locate import LOCATORS, Estimate, WrongSolution
from llmhalluc.selfgen.sample import Completion, Rollouts, is_right
from llmhalluc.selfgen.split import SolutionStep, Splitter, follow
from llmhalluc.tasks import TASKS

Record = dict[str, Any]  # a line of traces.jsonl


class Attempt(NamedTuple):
    """A sample in steps; `at` is the number of the first wrong one, -1 while that is not known."""

    problem: Problem
    steps: list[SolutionStep]
    at: int = -1

    def ids(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The ids of some of its steps."""
        return [token for step in self.steps[start:stop] for token in step.ids]


class Judged(NamedTuple):
    """What the samples turned out to be, each text of a problem once; attempts by problem key where they are right."""

    right: dict[str, list[Attempt]]
    wrong: list[Attempt]
    counts: Counter[str]


def judge(
    problems: Sequence[Problem], samples: Sequence[Sequence[Completion]], tokenizer: PreTrainedTokenizerBase
) -> Judged:
    """Verify the samples of each problem. One that is right but found no end is of no use."""
    counts = Counter(dict.fromkeys(("right", "right_without_an_end", "wrong", "repeated"), 0))
    split, judged = Splitter(tokenizer), Judged({}, [], counts)
    for problem, mine in zip(problems, samples, strict=True):
        verdicts: dict[tuple[int, ...], bool] = {}
        for ids, ended in mine:
            known, text = tuple(ids) in verdicts, tuple(ids)
            right = verdicts.setdefault(text, is_right(tokenizer, problem, ids))
            judged.counts["right" if right and ended else "right_without_an_end" if right else "wrong"] += 1
            if known:
                judged.counts["repeated"] += 1
            elif not right:
                judged.wrong.append(Attempt(problem, split(problem, ids)))
            elif ended:
                judged.right.setdefault(problem.key, []).append(Attempt(problem, split(problem, ids)))
    return judged


def locate(
    judged: Judged, references: dict[str, Attempt | None], locator: str, rollouts: Rollouts, threshold: float,
    max_rollouts: int | None,
) -> list[Attempt]:  # fmt: skip
    """The wrong attempts of which a first wrong step is found, with it; `locator` is one of LOCATORS."""
    wrong = []
    for attempt in judged.wrong:
        texts, keys = [step.text for step in attempt.steps], [step.key for step in attempt.steps]
        right = [[step.key for step in other.steps] for other in solutions(attempt, judged, references)]
        wrong.append(WrongSolution(texts, keys, right, TASKS[attempt.problem.task].is_false))

    def value(prefixes: list[tuple[int, int]]) -> list[float]:
        done = rollouts([(judged.wrong[i].problem, judged.wrong[i].ids(0, n)) for i, n in prefixes])
        return [sum(right for _, right in mine) / len(mine) for mine in done]

    estimate = Estimate(value, threshold, None if max_rollouts is None else max_rollouts // rollouts.count)
    found = LOCATORS[locator](wrong, estimate)
    return [attempt._replace(at=at) for attempt, at in zip(judged.wrong, found, strict=True) if at is not None]


def traces(
    attempts: Sequence[Attempt], judged: Judged, references: dict[str, Attempt | None], rollouts: Rollouts,
    delimiter: str = " ",
) -> list[Record]:  # fmt: skip
    """A trace for each located attempt whose prefix has a right continuation: verified, and without its wrong step.

    That is the rest of a right solution that says what the prefix says (`continuations`); where there is none, the
    first right one of the rollouts from the prefix.
    """
    tokenizer = rollouts.sampler.loaded.tokenizer
    split = Splitter(tokenizer)

    def corrects(attempt: Attempt, kept: int, right_ids: list[int]) -> bool:
        own, key = attempt.ids(kept, attempt.at + 1), attempt.steps[attempt.at].key
        says_the_same = key is not None and [key] == [step.key for step in split(attempt.problem, right_ids)[:1]]
        if says_the_same or right_ids[: len(own)] == own:
            return False
        return is_right(tokenizer, attempt.problem, [*attempt.ids(0, kept), *right_ids])

    def first_right(attempt: Attempt, candidates: Iterable[tuple[int, list[int]]]) -> Record | None:
        for kept, right_ids in candidates:
            if corrects(attempt, kept, right_ids):
                own = [attempt.ids(kept, attempt.at + 1), *(step.ids for step in attempt.steps[attempt.at + 1 :])]
                return record(attempt.problem, attempt.ids(0, kept), own, right_ids, tokenizer)
        return None

    found = []
    for attempt in attempts:
        tokens = MoveTokens(tokenizer, delimiter, attempt.problem.task)
        known = solutions(attempt, judged, references)
        found.append(first_right(attempt, continuations(attempt, known, tokens)))
    open_ = [i for i, trace in enumerate(found) if trace is None]
    if open_:
        done = rollouts([(attempts[i].problem, attempts[i].ids(0, attempts[i].at)) for i in open_])
        for i, mine in zip(open_, done, strict=True):
            ended = ((attempts[i].at, completion.ids) for completion, right in mine if right and completion.ended)
            found[i] = first_right(attempts[i], ended)
    return [trace for trace in found if trace is not None]


def continuations(attempt: Attempt, others: Sequence[Attempt], tokens: MoveTokens) -> Iterator[tuple[int, list[int]]]:
    """How many steps are kept and what may follow them: the rest of each other solution that agrees, in their order.

    Where the task itself can complete the prefix, that is all there is. A solution agrees when it begins with the
    prefix's ids, or when its first steps have the keys of the prefix's. By keys, the steps without one right before the
    wrong step are not vouched for, and are erased with it.
    """
    prefix = attempt.steps[: attempt.at]
    moves = TASKS[attempt.problem.task].rest([step.text for step in prefix], attempt.problem.record)
    if moves is not None:
        yield attempt.at, [token for ids in tokens.of_moves(moves, len(prefix)) for token in ids]
        return
    prefix_ids = attempt.ids(0, attempt.at)
    kept = max((i + 1 for i, step in enumerate(prefix) if step.key is not None), default=0)
    for other in others:
        if (ids := other.ids())[: len(prefix_ids)] == prefix_ids:
            yield attempt.at, ids[len(prefix_ids) :]
        elif (at := follow([step.key for step in prefix], [step.key for step in other.steps])) is not None:
            yield kept, other.ids(at)


def solutions(attempt: Attempt, judged: Judged, references: dict[str, Attempt | None]) -> list[Attempt]:
    """What is known to be right of the attempt's problem: the model's own, the most alike first; then the reference."""
    ids, problem = attempt.ids(), attempt.problem.key

    def shared(other: Attempt) -> int:
        return next((i for i, (one, two) in enumerate(zip(ids, other.ids(), strict=False)) if one != two), len(ids))

    own = sorted(judged.right.get(problem, []), key=shared, reverse=True)
    given = references.get(problem)
    return own if given is None else [*own, given]


def reference(problem: Problem, tokenizer: PreTrainedTokenizerBase, delimiter: str) -> Attempt | None:
    """The data set's own solution; None where it has the mere answer. `delimiter` stands between it and the prompt."""
    if not TASKS[problem.task].is_worked(problem.record):
        return None
    ids = MoveTokens(tokenizer, delimiter, problem.task).of_solution(problem.record)
    return Attempt(problem, Splitter(tokenizer)(problem, ids))


def record(
    problem: Problem, prefix_ids: list[int], own_steps: list[list[int]], right_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> Record:  # fmt: skip
    """A line of traces.jsonl."""
    return {
        "problem": problem.key,
        "prompt_ids": problem.prompt_ids,
        "prefix_ids": prefix_ids,
        "own_steps": own_steps,
        "right_ids": [*right_ids, tokenizer.eos_token_id],
    }
