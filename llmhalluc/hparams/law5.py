"""Which weights of the reward could let a wrong answer come near a right one (law 5)."""

from llmhalluc.hparams.sections import RewardArguments

COMPONENTS = ("outcome", "process", "efficiency", "format")
MARGIN = 0.1  # by which the reward of the lowest right answer stays above that of the highest wrong one


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
