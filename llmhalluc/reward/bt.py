"""The reward of GRPO: small components of a completion, each 0..1, mixed by a curriculum (docs/reward.md).

Every component reads the surviving text, and what was erased can only lower it; so no error-and-erasure raises a
score. The outcome weighs more than all the rest together; so no wrong answer comes near a right one (law 5).
"""

from collections.abc import Callable, Sequence
from math import cos, pi
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.hparams.checks import COMPONENTS
from llmhalluc.hparams.sections import RewardArguments
from llmhalluc.reward.erased import NOTHING, Erased, judge_erasures
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import Record, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sample(NamedTuple):
    """One completion: its surviving text, its problem, how many ids were written and survive, and what was erased."""

    text: str
    task: str
    record: Record
    emitted: int
    surviving: int
    erased: Erased
    scale: float
    verdict: Verdict


def process_quality(text: str, task: str, record: Record, erased: Erased = NOTHING, scale: float = 32.0) -> float:
    """How far the steps that stand are true, times what is left after erasures that were not really wrong.

    The task says what its steps are; see erased.py for the erasures.
    """
    return TASKS[task].process(text, record) * scale / (scale + erased.needless + erased.unknown / 2)


def backtrack_efficiency(emitted: int, surviving: int, scale: float = 32.0) -> float:
    """`scale / (scale + emitted - surviving)`: 1 where all that was written stands, and 0 where nothing stands.

    A difference and not a ratio, so that padding makes no erasure cheaper.
    """
    return scale / (scale + emitted - surviving) if surviving else 0.0


def format_quality(text: str, task: str, record: Record) -> float:
    """How well the text keeps to the form of an answer, as the task says."""
    return TASKS[task].format(text, record)


# A component is a function of a Sample and a line here; its weights are keys of the reward section.
SCORES: dict[str, Callable[[Sample], float]] = {
    "outcome": lambda sample: float(sample.verdict.right),
    "process": lambda sample: process_quality(sample.text, sample.task, sample.record, sample.erased, sample.scale),
    "efficiency": lambda sample: backtrack_efficiency(sample.emitted, sample.surviving, sample.scale),
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
    stops the run.
    """

    __name__ = "backtrack_reward"

    def __init__(self, args: RewardArguments, tokenizer: "PreTrainedTokenizerBase", backtrack_id: int):
        self.args, self.tokenizer, self.backtrack_id = args, tokenizer, backtrack_id
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
        rows = zip(completion_ids, task, record, strict=True)
        samples = [self.sample(*row) for row in rows]
        parts = [{name: float(score(sample)) for name, score in SCORES.items()} for sample in samples]
        scores = [mix(part, weights) for part in parts]
        if log_metric:
            for name, weight in weights.items():
                log_metric(f"reward/{name}", fmean(part[name] for part in parts))
                log_metric(f"reward/weight_{name}", weight)
            erased = [sample.erased for sample in samples]
            log_metric("reward/erasures", fmean(map(sum, erased)))
            log_metric(
                "reward/tokens_per_kept", sum(s.emitted for s in samples) / max(1, sum(s.surviving for s in samples))
            )
            if any(map(sum, erased)):
                log_metric("reward/erasure_precision", sum(e.wrong for e in erased) / sum(map(sum, erased)))
            log_metric("reward/verify_timeouts", sum(s.verdict.cut for s in samples))
        if log_extra:
            log_extra("surviving", [sample.text for sample in samples])
            for name in weights:
                log_extra(name, [part[name] for part in parts])
        return scores

    def sample(self, completion_ids: Sequence[int], task: str, record: Record) -> Sample:
        """A completion's surviving text, counts and erasures, and whether it is right.

        Raises ValueError for an unknown task.
        """
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
        surviving = apply_backtracking(completion_ids, self.backtrack_id)
        text = self.tokenizer.decode(surviving, skip_special_tokens=True)
        erased = judge_erasures(completion_ids, self.backtrack_id, self.piece, task, record)
        verdict = TASKS[task].check(text, record, self.args.verify_timeout)
        counts = len(completion_ids), len(surviving)
        return Sample(text, task, record, *counts, erased, self.args.erasure_scale, verdict)

    def piece(self, token: int) -> str:
        """The text that a token adds after another one; empty for a special token."""
        if token not in self._pieces:
            before = self.tokenizer.decode(self._anchor, skip_special_tokens=True)
            after = self.tokenizer.decode([*self._anchor, token], skip_special_tokens=True)
            self._pieces[token] = after[len(before) :]
        return self._pieces[token]
