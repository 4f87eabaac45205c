"""The keys of `train.judge`: what a verifier head or a process reward model learns from, and how."""

from dataclasses import dataclass
from typing import Any, Literal

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.option import option
from llmhalluc.hparams.mapping import check_mapping, make


@dataclass
class JudgeOptions:
    """`train.judge`."""

    labels: Literal["solver", "rollouts", "search", "consensus"] = option(
        "solver", "what says whether a prefix is good: the task, roll-outs, halving over these, or both alike"
    )
    samples: int = option(4, "texts sampled for each problem", bounds="[1, inf)")
    temperature: float = option(1.0, "of these texts and of the roll-outs", bounds="(0, inf)")
    rollouts: int = option(8, "completions that value a prefix", bounds="[1, inf)")
    layers: list[str] = option([], "verifier: modules whose states it reads, such as model.layers.1; none: all layers")
    width: int = option(64, "verifier: hidden units; 0 is a linear probe", bounds="[0, inf)")
    dev_share: float = option(0.2, "share of the problems for the threshold, and again for the test", bounds="(0, 0.5)")
    epochs: int = option(20, "passes over the labelled places", bounds="[1, inf)")
    batch_size: int = option(256, "verifier: places, prm: texts a step", bounds="[1, inf)")
    learning_rate: float = option(1e-3, "of AdamW", bounds="(0, inf)")


def judge_options(given: dict[str, Any]) -> JudgeOptions:
    """Return the options. Raises UserError with a sentence for each mistake."""
    if problems := [sentence for _, sentence in check_mapping("train.judge", given, JudgeOptions)]:
        raise UserError(*problems)
    return make(JudgeOptions, given)
