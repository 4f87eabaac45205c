"""The reward of GRPO: small components of a completion, each 0..1, mixed by a curriculum (docs/reward.md).

Every component reads the surviving text, and what was erased can only lower it; so no error-and-erasure raises a
score. The outcome weighs more than all the rest together; so no wrong answer comes near a right one (law 5).
"""

import time
from collections.abc import Callable, Sequence
from math import cos, pi
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.hparams.law5 import COMPONENTS
from llmhalluc.hparams.sections import RewardArguments
from llmhalluc.reward.erased import NOTHING, Erased, judge_erasures
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import CutOff, Record, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_LIMITS = 4  # times reward.verify_timeout that the answers of one batch may take together


class Sample(NamedTuple):
    """One completion: its surviving text, its problem, what was erased, how many BACKTRACKs erased nothing."""

    text: str
    task: str
    record: Record
    erased: Erased
    idle: int
    scale: float
    verdict: Verdict


def process_quality(
    text: str, task: str, record: Record, erased: Erased = NOTHING, scale: float = 32.0, right: bool | None = None
) -> float:
    """How far the steps that stand are true, times what is left after needless erasures.

    The task says what its steps are; see erased.py for the erasures. right: whether the answer is, if that is known.
    """
    return TASKS[task].process(text, record, right) * (scale / (scale + erased.needless))


def backtrack_efficiency(text: str, erased: Erased, idle: int = 0, scale: float = 32.0) -> float:
    """`scale / (scale + cost)`: 1 where all that was written stands, and 0 where no text stands.

    cost: that of the erased tokens (`Erased.cost`) and of BACKTRACKs that erased nothing. A number of tokens and not a
    share of them, so that padding makes no erasure cheaper.
    """
    return scale / (scale + (erased.cost + idle)) if text.strip() else 0.0


def format_quality(text: str, task: str, record: Record) -> float:
    """How well the text keeps to the form of an answer, as the task says."""
    return TASKS[task].format(text, record)


# A component is a function of a Sample and a line here; its weights are keys of the reward section.
SCORES: dict[str, Callable[[Sample], float]] = {
    "outcome": lambda sample: float(sample.verdict.right),
    "process": lambda sample: process_quality(*sample[:4], sample.scale, sample.verdict.right),
    "efficiency": lambda sample: backtrack_efficiency(sample.text, sample.erased, sample.idle, sample.scale),
    "format": lambda sample: format_quality(sample.text, sample.task, sample.record),
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

    The data set has the columns `task` and `record` (data/problems.py). Nothing is caught: what a component raises
    stops the run. max_tokens: a completion of so many ids without an end token is cut off.
    """

    __name__ = "backtrack_reward"

    def __init__(
        self, args: RewardArguments, tokenizer: "PreTrainedTokenizerBase", backtrack_id: int,
        max_tokens: int | None = None,
    ):  # fmt: skip
        self.args, self.tokenizer, self.backtrack_id, self.max_tokens = args, tokenizer, backtrack_id, max_tokens
        self._pieces: dict[int, str] = {}
        anchors = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = list(anchors[-1:])

    def __call__(
        self, completion_ids: Sequence[Sequence[int]], task: Sequence[str], record: Sequence[Record],
        trainer_state: Any, log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None, **columns: Any,
    ) -> list[float]:  # fmt: skip
        """One score a completion; each component's mean is logged as `reward/<name>`."""
        if trainer_state.max_steps <= 0:
            raise ValueError(f"the trainer's max_steps is {trainer_state.max_steps}: the curriculum needs an end")
        weights = curriculum_weights(trainer_state.global_step / trainer_state.max_steps, self.args)
        samples, left = [], _BATCH_LIMITS * self.args.verify_timeout  # seconds for all answers of the batch
        for row in zip(completion_ids, task, record, strict=True):
            started = time.monotonic()
            samples.append(self.sample(*row, limit=min(self.args.verify_timeout, left)))
            left = max(0.0, left - (time.monotonic() - started))
        parts = [{name: float(score(sample)) for name, score in SCORES.items()} for sample in samples]
        scores = [mix(part, weights) for part in parts]
        if log_metric:
            for name, weight in weights.items():
                log_metric(f"reward/{name}", fmean(part[name] for part in parts))
                log_metric(f"reward/weight_{name}", weight)
            erased = [sample.erased for sample in samples]
            log_metric("reward/erasures", fmean(map(sum, erased)))
            emitted = sum(map(len, completion_ids))
            kept = emitted - 2 * sum(map(sum, erased)) - sum(sample.idle for sample in samples)
            log_metric("reward/tokens_per_kept", emitted / max(1, kept))
            if any(map(sum, erased)):
                log_metric("reward/erasure_precision", sum(e.wrong for e in erased) / sum(map(sum, erased)))
            log_metric("reward/verify_timeouts", sum(sample.verdict.timed_out for sample in samples))
            log_metric("reward/cut_off", fmean(sample.verdict.cut for sample in samples))
        if log_extra:
            log_extra("surviving", [sample.text for sample in samples])
            for name in weights:
                log_extra(name, [part[name] for part in parts])
        return scores

    def sample(self, completion_ids: Sequence[int], task: str, record: Record, limit: float | None = None) -> Sample:
        """A completion's surviving text and erasures, and whether it is right; limit: seconds for the answer.

        Raises ValueError for an unknown task.
        """
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
        surviving = apply_backtracking(completion_ids, self.backtrack_id)
        text = self.tokenizer.decode(surviving, skip_special_tokens=True)
        if self.max_tokens and len(completion_ids) >= self.max_tokens:
            ended = completion_ids[-1] != self.backtrack_id and not self.piece(completion_ids[-1])
            text = text if ended else CutOff(text)
        erased = judge_erasures(completion_ids, self.backtrack_id, self.piece, task, record)
        idle = len(completion_ids) - len(surviving) - 2 * sum(erased)
        verdict = TASKS[task].check(text, record, self.args.verify_timeout if limit is None else limit)
        return Sample(text, task, record, erased, idle, self.args.erasure_scale, verdict)

    def piece(self, token: int) -> str:
        """The text that a token adds after another one; empty for a special token."""
        if token not in self._pieces:
            before = self.tokenizer.decode(self._anchor, skip_special_tokens=True)
            after = self.tokenizer.decode([*self._anchor, token], skip_special_tokens=True)
            self._pieces[token] = after[len(before) :]
        return self._pieces[token]
