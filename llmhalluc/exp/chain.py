"""Chains: an arm that starts from the model of another one, and rounds of errors of the model's own."""

from collections.abc import Iterator
from typing import Any

from llmhalluc.exp.experiment import Arm
from llmhalluc.extras.errors import did_you_mean
from llmhalluc.hparams.mapping import accepts
from llmhalluc.hparams.sections import OWN_ERRORS
from llmhalluc.tasks import PROBLEM_CONVERTERS

# Keys of `model` that say where a model comes from; the folder that an arm starts from says all of it by itself.
ORIGIN = ("name_or_path", "from_config", "tokenizer", "gguf_file", "adapter", "revision")


def line_of(arm: str, arms: dict[str, Arm]) -> list[str]:
    """Return the arms that an arm builds on, the nearest first, as far as they are known and come up once: `[sft]`."""
    line: list[str] = []
    start = arms[arm].start
    while isinstance(start, str) and start in arms and start not in line:
        line.append(start)
        start = arms[start].start
    return line


def rounds_of(arm: Arm) -> int:
    """Return how often errors are generated and trained on; 0 without rounds, or where they are no such number."""
    return arm.rounds if accepts(int, arm.rounds) and arm.rounds > 0 else 0


def wrong_chains(arms: dict[str, Arm]) -> Iterator[str]:
    """Yield sentences about `start` and `rounds`."""
    in_circles: set[str] = set()
    for name, arm in arms.items():
        line = line_of(name, arms)
        if arm.start is not None and not (isinstance(arm.start, str) and arm.start in arms):
            meant = did_you_mean(str(arm.start), arms)
            yield f"exp.arms.{name}.start is {arm.start}, which is no arm{meant}"
        if name in line and name not in in_circles:
            circle = [name, *line[: line.index(name) + 1]]
            in_circles |= {*circle}
            yield f"exp.arms.{name} starts from itself ({' from '.join(circle)}): one of these must start from no arm"
        for path in arm.paths if arm.start is not None else ():
            if path == "model" or path.startswith(tuple(f"model.{key}" for key in ORIGIN)):
                yield f"exp.arms.{name} sets {path}, but starts from the model of {arm.start}: take one of the two out"
        if arm.rounds is not None and not rounds_of(arm):
            yield f"exp.arms.{name}.rounds is {arm.rounds!r}, expected a whole number from 1 on"


def wrong_rounds(arm: str, converter: str, problems: str, eval_strategy: Any) -> Iterator[str]:
    """Yield sentences about an arm with rounds.

    converter: the one that trains. problems: the one that names what errors are generated from.
    """
    if converter not in OWN_ERRORS:
        yield (
            f"exp.arms.{arm} has rounds, but data.converter is {converter}: set exp.arms.{arm}.data.converter to one "
            f"of {', '.join(OWN_ERRORS)}, which train on errors of the model's own"
        )
    if problems not in PROBLEM_CONVERTERS:
        yield (
            f"exp.arms.{arm} has rounds, but data.converter of the config outside exp.arms, which says what problems "
            f"errors are generated from, is {problems}: set it to one of {', '.join(PROBLEM_CONVERTERS)}"
        )
    if eval_strategy not in (None, False, "no"):
        yield (
            f"exp.arms.{arm} has rounds, whose traces have no held-out part, and train.eval_strategy is "
            f"{eval_strategy}: set exp.arms.{arm}.train.eval_strategy=no"
        )
