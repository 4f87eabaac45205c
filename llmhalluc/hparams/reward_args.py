"""The `reward` section: what GRPO rewards, and how the weights move from the process to the outcome."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmhalluc.extras.option import Section, option

COMPONENTS = ("outcome", "process", "efficiency", "format")
MARGIN = 0.1  # by which the lowest right answer stays above the highest wrong one


@dataclass
class RewardArguments(Section):
    """Weights of the components of llmhalluc/reward/bt.py, at the start of training and from curriculum_end on."""

    section: ClassVar[str] = "reward"
    curriculum: Literal["none", "linear", "cosine"] = option(
        "linear", "how the weights move from start to end; none: the last ones from the first step on"
    )
    curriculum_end: float = option(0.5, "share of training after which the weights are the last ones", bounds="(0, 1]")
    outcome_start: float = option(0.6, "first weight of the verified answer, 0 or 1", bounds="[0, inf)")
    outcome_end: float = option(0.85, "last weight of the verified answer", bounds="[0, inf)")
    process_start: float = option(
        0.3, "first weight of the steps: true calculations, right moves, no right ones erased", bounds="[0, inf)"
    )
    process_end: float = option(0.05, "last weight of the steps", bounds="[0, inf)")
    efficiency_start: float = option(0.05, "first weight of writing few tokens that do not survive", bounds="[0, inf)")
    efficiency_end: float = option(0.05, "last weight of writing few tokens that do not survive", bounds="[0, inf)")
    format_start: float = option(0.05, "first weight of one answer, stated once, at the end", bounds="[0, inf)")
    format_end: float = option(0.05, "last weight of one answer, stated once, at the end", bounds="[0, inf)")
    erasure_scale: float = option(
        32.0,
        "tokens of needless writing that halve the process, and of any that halve the efficiency",
        bounds="[1, 10000]",
    )
    verify_timeout: float = option(
        5.0, "seconds for one answer that is no plain number (math-verify, a process apart)", bounds="(0, inf)"
    )


def law5_problems(args: RewardArguments) -> list[tuple[tuple[str, ...], str]]:
    """What is wrong with weights under which a wrong answer could come near a right one; keys and a sentence each.

    A right answer scores at least the weight of the outcome, a wrong one at most all other weights together, and
    between two stages that keep their distance so does every mixture of them (docs/reward.md).
    """
    found = []
    for stage in ("start", "end"):
        outcome, *rest = (getattr(args, f"{name}_{stage}") for name in COMPONENTS)
        if outcome < sum(rest) + MARGIN - 1e-9:
            keys = tuple(f"reward.{name}_{stage}" for name in COMPONENTS)
            found.append(
                (keys, f"reward.outcome_{stage} is {outcome:g}, and a wrong answer could win: raise it to at least "
                       f"{sum(rest) + MARGIN:g}, {MARGIN:g} above {', '.join(keys[1:])} together")
            )  # fmt: skip
    return found
