"""The reward of GRPO: small components of a completion, each 0..1, mixed by a curriculum (docs/reward.md).

Every component reads the surviving text, and what was erased can only lower it; so no error-and-erasure raises a
score. The outcome weighs more than all the rest together; so no wrong answer comes near a right one (law 5).
"""

from collections.abc import Callable, Sequence
from math import cos, pi
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.hparams.reward_args import COMPONENTS, RewardArguments
from llmhalluc.prompts import sudoku
from llmhalluc.reward.answers import final_answer, gold_number, stated_answers
from llmhalluc.reward.erased import NOTHING, Erased, judge_erasures
from llmhalluc.reward.process import math_steps, sudoku_steps
from llmhalluc.reward.verify import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERIFIER = Verifier()  # its process starts with the first answer that is no plain number


class Asked(Protocol):
    """What a reward reads of a Problem (data/problems.py); `answer` is a worked solution, an answer, a solved board."""

    @property
    def task(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...


class Task(NamedTuple):
    """The columns of a data set that make an Asked."""

    task: str
    question: str
    answer: str


class Sample(NamedTuple):
    """One completion: its surviving text, how many ids were written and survive, and what was erased."""

    text: str
    problem: Asked
    emitted: int
    kept: int
    erased: Erased
    scale: float


def outcome_accuracy(text: str, problem: Asked, verifier: Verifier = _VERIFIER) -> int:
    """1 when the surviving text's final answer is right, else 0; nothing between.

    Numbers are compared exactly, other answers by math-verify in a process with a time limit. Of several answers the
    last one counts; one that offers two numbers (`18 or 20`) is wrong. Raises ValueError for an unknown task.
    """
    if problem.task == "sudoku":
        return int(sudoku.check(problem.question, text))
    if problem.task != "math":
        raise ValueError(f"task is {problem.task!r}, expected math or sudoku")
    gold = gold_number(problem.answer)
    answer = final_answer(text, words=gold is None)
    if answer is None or answer.hedged:
        return 0
    if gold is not None and (answer.value is not None or not answer.latex):
        return int(answer.value == gold)
    stated = final_answer(problem.answer, words=True)
    target = str(gold) if gold is not None else stated.text if stated else problem.answer
    return int(verifier.verify(target, answer.text))


def process_quality(text: str, problem: Asked, erased: Erased = NOTHING, scale: float = 32.0) -> float:
    """How far the steps that stand are true, times what is left after erasures that were not really wrong.

    See process.py for the steps, erased.py for the erasures.
    """
    steps = sudoku_steps if problem.task == "sudoku" else math_steps
    return steps(text, problem) * scale / (scale + erased.needless + erased.unknown / 2)


def backtrack_efficiency(emitted: int, kept: int, scale: float = 32.0) -> float:
    """`scale / (scale + emitted - kept)`: 1 where all that was written stands, and 0 where nothing stands.

    A difference and not a ratio, so that padding makes no erasure cheaper.
    """
    return scale / (scale + emitted - kept) if kept else 0.0


def format_quality(text: str, problem: Asked) -> float:
    """1 for one answer, stated once, at the end; math: halved by a line after it or a second number beside it, and
    divided by how often or how differently it is stated. Sudoku: share of words that fill a blank for the first time.
    """
    if problem.task == "sudoku":
        return sudoku_steps(text, problem, legal=True)
    answers = stated_answers(text, words=gold_number(problem.answer) is None)
    if not answers:
        return 0.0
    times = max(text.count("####"), text.count("\\boxed{"), text.lower().count("answer is"))
    different = len({answer.text if answer.value is None else answer.value for answer in answers})
    return (1 - (answers[-1].hedged or bool(answers[-1].after.strip())) / 2) / max(times, different)


# A component is a function of a Sample and a line here; its weights are keys of the reward section.
SCORES: dict[str, Callable[[Sample], float]] = {
    "outcome": lambda sample: outcome_accuracy(sample.text, sample.problem),
    "process": lambda sample: process_quality(sample.text, sample.problem, sample.erased, sample.scale),
    "efficiency": lambda sample: backtrack_efficiency(sample.emitted, sample.kept, sample.scale),
    "format": lambda sample: format_quality(sample.text, sample.problem),
}


def curriculum_weights(progress: float, args: RewardArguments) -> dict[str, float]:
    """The weight of each component at a share of training, 0..1: from the first to the last ones, which then stay."""
    x = 1.0 if args.curriculum == "none" else min(max(progress / args.curriculum_end, 0.0), 1.0)
    if args.curriculum == "cosine":
        x = (1 - cos(pi * x)) / 2
    return {name: (1 - x) * getattr(args, f"{name}_start") + x * getattr(args, f"{name}_end") for name in COMPONENTS}


def mix(parts: dict[str, float], weights: dict[str, float]) -> float:
    """The score: the weighted sum of the components."""
    return sum(weights[name] * parts[name] for name in weights)


class BacktrackRewardFunction:
    """A reward function for TRL's GRPOTrainer, of the emitted ids: TRL's decoded completions have lost the BACKTRACKs.

    The data set has the columns `task`, `question` and `answer` (data/problems.py). Nothing is caught: what a component
    raises stops the run.
    """

    __name__ = "backtrack_reward"

    def __init__(self, args: RewardArguments, tokenizer: "PreTrainedTokenizerBase", backtrack_id: int):
        self.args, self.tokenizer, self.backtrack_id = args, tokenizer, backtrack_id
        self._pieces: dict[int, str] = {}
        anchors = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = list(anchors[-1:])
        _VERIFIER.limit = args.verify_timeout

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]],
        task: Sequence[str], question: Sequence[str], answer: Sequence[str], trainer_state: Any,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None, **columns: Any,
    ) -> list[float]:  # fmt: skip
        """One score a completion; each component's mean is logged as `reward/<name>`."""
        if trainer_state.max_steps <= 0:
            raise ValueError(f"the trainer's max_steps is {trainer_state.max_steps}: the curriculum needs an end")
        weights = curriculum_weights(trainer_state.global_step / trainer_state.max_steps, self.args)
        timeouts = _VERIFIER.timeouts
        rows = zip(completion_ids, task, question, answer, strict=True)
        samples = [self.sample(ids, Task(*columns)) for ids, *columns in rows]
        parts = [{name: float(score(sample)) for name, score in SCORES.items()} for sample in samples]
        scores = [mix(part, weights) for part in parts]
        if log_metric:
            for name, weight in weights.items():
                log_metric(f"reward/{name}", fmean(part[name] for part in parts))
                log_metric(f"reward/weight_{name}", weight)
            erased = [sample.erased for sample in samples]
            log_metric("reward/erasures", fmean(map(sum, erased)))
            log_metric("reward/tokens_per_kept", sum(s.emitted for s in samples) / max(1, sum(s.kept for s in samples)))
            if any(map(sum, erased)):
                log_metric("reward/erasure_precision", sum(e.wrong for e in erased) / sum(map(sum, erased)))
            log_metric("reward/verify_timeouts", _VERIFIER.timeouts - timeouts)
        if log_extra:
            log_extra("surviving", [sample.text for sample in samples])
            for name in weights:
                log_extra(name, [part[name] for part in parts])
        return scores

    def sample(self, completion_ids: Sequence[int], problem: Asked) -> Sample:
        """A completion's surviving text, counts and erasures."""
        kept = apply_backtracking(completion_ids, self.backtrack_id)
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        erased = judge_erasures(completion_ids, self.backtrack_id, self.piece, problem)
        return Sample(text, problem, len(completion_ids), len(kept), erased, self.args.erasure_scale)

    def piece(self, token: int) -> str:
        """The text that a token adds after another one; empty for a special token."""
        if token not in self._pieces:
            before = self.tokenizer.decode(self._anchor, skip_special_tokens=True)
            after = self.tokenizer.decode([*self._anchor, token], skip_special_tokens=True)
            self._pieces[token] = after[len(before) :]
        return self._pieces[token]
