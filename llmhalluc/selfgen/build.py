"""From samples to traces: verify, locate the first wrong step, and find how the right prefix goes on rightly."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.base import tokenise
from llmhalluc.data.problems import Problem
from llmhalluc.prompts import math, sudoku
from llmhalluc.selfgen.locate import LOCATORS, Chain, Estimate
from llmhalluc.selfgen.sample import Completion, Rollouts, is_right
from llmhalluc.selfgen.steps import Splitter, Step, follow

Record = dict[str, Any]  # a line of traces.jsonl


class Draft(NamedTuple):
    """A sample in steps; `at` is the number of the first wrong one, -1 while that is not known."""

    problem: Problem
    steps: list[Step]
    at: int = -1

    def ids(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The ids of some of its steps."""
        return [token for step in self.steps[start:stop] for token in step.ids]


class Judged(NamedTuple):
    """What the samples turned out to be, each text of a problem once; drafts by problem key where they are right."""

    right: dict[str, list[Draft]]
    wrong: list[Draft]
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
                judged.wrong.append(Draft(problem, split(problem, ids)))
            elif ended:
                judged.right.setdefault(problem.key, []).append(Draft(problem, split(problem, ids)))
    return judged


def locate(
    judged: Judged, references: dict[str, Draft | None], locator: str, rollouts: Rollouts, threshold: float,
    max_rollouts: int | None,
) -> list[Draft]:  # fmt: skip
    """The wrong drafts of which a first wrong step is found, with it; `locator` is one of LOCATORS."""
    chains = [
        Chain(
            [step.text for step in draft.steps],
            [step.key for step in draft.steps],
            [[step.key for step in other.steps] for other in solutions(draft, judged, references)],
        )
        for draft in judged.wrong
    ]

    def value(prefixes: list[tuple[int, int]]) -> list[float]:
        done = rollouts([(judged.wrong[i].problem, judged.wrong[i].ids(0, n)) for i, n in prefixes])
        return [sum(right for _, right in mine) / len(mine) for mine in done]

    estimate = Estimate(value, threshold, None if max_rollouts is None else max_rollouts // rollouts.count)
    found = LOCATORS[locator](chains, estimate)
    return [draft._replace(at=at) for draft, at in zip(judged.wrong, found, strict=True) if at is not None]


def traces(
    drafts: Sequence[Draft], judged: Judged, references: dict[str, Draft | None], rollouts: Rollouts
) -> list[Record]:
    """A trace for each located draft whose prefix can be gone on with rightly: verified, and without its wrong step.

    On goes a right solution that says what the prefix says (`continuations`); where there is none, the first right
    one of the rollouts from the prefix.
    """
    tokenizer = rollouts.sampler.loaded.tokenizer
    split = Splitter(tokenizer)

    def corrects(draft: Draft, kept: int, right_ids: list[int]) -> bool:
        own, key = draft.ids(kept, draft.at + 1), draft.steps[draft.at].key
        says_the_same = key is not None and [key] == [step.key for step in split(draft.problem, right_ids)[:1]]
        if says_the_same or right_ids[: len(own)] == own:
            return False
        return is_right(tokenizer, draft.problem, [*draft.ids(0, kept), *right_ids])

    def first_right(draft: Draft, candidates: Iterable[tuple[int, list[int]]]) -> Record | None:
        for kept, right_ids in candidates:
            if corrects(draft, kept, right_ids):
                own = [draft.ids(kept, draft.at + 1), *(step.ids for step in draft.steps[draft.at + 1 :])]
                return record(draft.problem, draft.ids(0, kept), own, right_ids, tokenizer)
        return None

    found = [
        first_right(draft, continuations(draft, solutions(draft, judged, references), tokenizer)) for draft in drafts
    ]
    open_ = [i for i, trace in enumerate(found) if trace is None]
    if open_:
        done = rollouts([(drafts[i].problem, drafts[i].ids(0, drafts[i].at)) for i in open_])
        for i, mine in zip(open_, done, strict=True):
            ended = ((drafts[i].at, completion.ids) for completion, right in mine if right and completion.ended)
            found[i] = first_right(drafts[i], ended)
    return [trace for trace in found if trace is not None]


def continuations(
    draft: Draft, others: Sequence[Draft], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, list[int]]]:
    """How many steps are kept and what may follow them: the rest of each other solution that agrees, in their order.

    A solution agrees when it begins with the prefix's ids, or when its first steps have the keys of the prefix's. By
    keys, the steps without one right before the wrong step are not vouched for, and are erased with it. The one
    solution of a Sudoku is written row by row, without the moves that the prefix has made already.
    """
    prefix = draft.steps[: draft.at]
    if draft.problem.task == "sudoku":
        if all(step.key for step in prefix):
            made = {step.text for step in prefix}
            moves = sudoku.answer_text(draft.problem.question, draft.problem.answer).split()
            yield draft.at, tokenizer.convert_tokens_to_ids([move for move in moves if move not in made])
        return
    prefix_ids = draft.ids(0, draft.at)
    kept = max((i + 1 for i, step in enumerate(prefix) if step.key is not None), default=0)
    for other in others:
        if (ids := other.ids())[: len(prefix_ids)] == prefix_ids:
            yield draft.at, ids[len(prefix_ids) :]
        elif (at := follow([step.key for step in prefix], [step.key for step in other.steps])) is not None:
            yield kept, other.ids(at)


def solutions(draft: Draft, judged: Judged, references: dict[str, Draft | None]) -> list[Draft]:
    """What is known to be right of the draft's problem: the model's own, the most alike first; then the reference."""
    ids, problem = draft.ids(), draft.problem.key

    def shared(other: Draft) -> int:
        return next((i for i, (one, two) in enumerate(zip(ids, other.ids(), strict=False)) if one != two), len(ids))

    own = sorted(judged.right.get(problem, []), key=shared, reverse=True)
    given = references.get(problem)
    return own if given is None else [*own, given]


def reference(problem: Problem, tokenizer: PreTrainedTokenizerBase, delimiter: str) -> Draft | None:
    """The data set's own solution; None where it has the mere answer. `delimiter` stands between it and the prompt."""
    if problem.task == "sudoku":
        moves = sudoku.answer_text(problem.question, problem.answer).split()
        ids = tokenizer.convert_tokens_to_ids(moves)
    elif math.extract_answer(problem.answer) is None:
        return None
    else:
        ids = tokenise(tokenizer, [delimiter + math.clean_solution(problem.answer)], special_tokens=False)[0][0]
    return Draft(problem, Splitter(tokenizer)(problem, ids))


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
