"""What an arm of a chain says beside its keys: the arm it starts from, and rounds of errors of its own."""

from collections.abc import Iterator
from typing import Any

from llmhalluc.extras.errors import did_you_mean
from llmhalluc.hparams.mapping import accepts

START, ROUNDS = "start", "rounds"
RESERVED = (START, ROUNDS)
# Keys of `model` that say what a start's folder says by itself.
BROUGHT = ("name_or_path", "from_config", "tokenizer", "gguf_file", "adapter", "revision")
# Converters that train on what run_selfgen writes, and those that name the kind of problems it can read.
OWN_ERRORS = ("selfgen", "backtrack_dpo")
PROBLEMS = ("gsm8k", "gsm8k_backtrack", "sudoku", "sudoku_backtrack")


def own_keys(keys: dict[str, Any]) -> dict[str, Any]:
    """An arm's keys without the reserved ones: what it sets in the config."""
    return {key: value for key, value in keys.items() if key not in RESERVED}


def line_of(arm: str, arms: dict[str, dict[str, Any]]) -> list[str]:
    """The arms that an arm builds on, the nearest first, as far as they are known and come up once: `[sft]`."""
    line: list[str] = []
    start = arms[arm].get(START)
    while isinstance(start, str) and start in arms and start not in line:
        line.append(start)
        start = arms[start].get(START)
    return line


def wrong_chains(arms: dict[str, dict[str, Any]], paths: dict[str, list[str]]) -> Iterator[str]:
    """Sentences about `start` and `rounds`; `paths` are the dotted keys that each arm sets."""
    told: set[str] = set()
    for arm, keys in arms.items():
        start, rounds = keys.get(START), keys.get(ROUNDS)
        if start is not None and start not in arms:
            yield f"exp.arms.{arm}.start is {start}, which is no arm{did_you_mean(str(start), arms)}"
        line = line_of(arm, arms)
        if arm in line and arm not in told:
            circle = [arm, *line[: line.index(arm) + 1]]
            told |= {*circle}
            yield f"exp.arms.{arm} starts from itself ({' from '.join(circle)}): one of these must start from no arm"
        for path in paths[arm] if start is not None else ():
            if path == "model" or path.startswith(tuple(f"model.{key}" for key in BROUGHT)):
                yield f"exp.arms.{arm} sets {path}, but starts from the model of {start}: take one of the two out"
        if rounds is not None and (not accepts(int, rounds) or rounds < 1):
            yield f"exp.arms.{arm}.rounds is {rounds!r}, expected a whole number from 1 on"


def wrong_rounds(arm: str, converter: str, problems: str, eval_strategy: Any) -> Iterator[str]:
    """Sentences about an arm with rounds: the converter that trains, the one that names the problems, and the rest."""
    if converter not in OWN_ERRORS:
        yield (
            f"exp.arms.{arm} has rounds, but data.converter is {converter}: set exp.arms.{arm}.data.converter to one "
            f"of {', '.join(OWN_ERRORS)}, which train on errors of the model's own"
        )
    if problems not in PROBLEMS:
        yield (
            f"exp.arms.{arm} has rounds, but data.converter of the config outside exp.arms, which says what problems "
            f"errors are generated from, is {problems}: set it to one of {', '.join(PROBLEMS)}"
        )
    if eval_strategy not in (None, False, "no"):
        yield (
            f"exp.arms.{arm} has rounds, whose traces have no held-out part, and train.eval_strategy is "
            f"{eval_strategy}: set exp.arms.{arm}.train.eval_strategy=no"
        )
