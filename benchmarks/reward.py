"""What policies earn under the reward of GRPO, at the start, in the middle and at the end of its curriculum.

Each policy writes one completion a problem of GSM8K; ids are those of a tokenizer of words and digits. Prints the mean
score, and how often taking an error back beats leaving it and beats rewriting what was right. No model runs.
Usage: python benchmarks/reward.py [--problems 1000] [--seed 0] [--write]    --write puts the tables into docs/reward.md
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import fmean

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.sections import RewardArguments
from llmhalluc.report.tables import put_into
from llmhalluc.reward.bt import SCORES, BacktrackRewardFunction, curriculum_weights, mix
from llmhalluc.tasks.math.solution import clean_solution

GSM8K = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "gsm8k/test.jsonl"
DOCUMENT = REPOSITORY / "docs" / "reward.md"
BACKTRACK, EOS = 0, 1
PROGRESS = {"start": 0.0, "middle": 0.25, "end": 1.0}  # shares of training; the curriculum ends at 0.5


class Words:
    """A tokenizer of single digits, words with the space before them, and other characters."""

    def __init__(self) -> None:
        self.pieces = ["", ""]
        self.ids: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        found = []
        for piece in re.findall(r" ?[^\W\d_]+|[0-9]| ?[^\w\s]|\s|.", text):
            if piece not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
            found.append(self.ids[piece])
        return found

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.pieces[i] for i in ids)


class Problem:
    """A problem and what can be written about it: the solution, a wrong result in one line, a wrong last step."""

    def __init__(self, record: dict[str, str], rng: Random):
        self.record = record
        self.lines = clean_solution(record["answer"]).split("\n")
        marked = record["answer"].strip().split("\n")[:-1]
        places = [(i, match) for i, line in enumerate(marked) for match in re.finditer(r">>([0-9]+)", line)]
        self.at, match = rng.choice(places)
        before = re.sub("<<[^<>]*>>", "", marked[self.at][: match.start() + 2])
        wrong = str(int(match[1]) + rng.choice([1, 2, 10]))
        line = self.lines[self.at]
        self.right_start, self.wrong_number = before, wrong
        self.wrong_line = before + wrong + line[len(before) + len(match[1]) :]
        answer = self.lines[-1].removeprefix("#### ")
        slip = str(int(answer) + rng.choice([1, 2, 10])) if re.fullmatch("-?[0-9]+", answer) else "0"
        self.slipped = [*self.lines[:-2], slip.join(self.lines[-2].rsplit(answer, 1)), f"#### {slip}"]
        numbers = re.findall(r"[0-9]+", record["question"]) or ["7"]
        self.degenerate = f"{numbers[0]} * 2 = {2 * int(numbers[0])}\n#### {2 * int(numbers[0])}"


Policy = Callable[[Problem, Words, Random], list[int]]


def written(words: Words, *parts: str | int) -> list[int]:
    """The ids of texts, with as many BACKTRACKs as a number between them says, and the end token."""
    found: list[int] = []
    for part in parts:
        found += [BACKTRACK] * part if isinstance(part, int) else words.encode(part)
    return [*found, EOS]


def honest(share: float) -> Policy:
    """Right with that probability; otherwise the last step slips."""
    return lambda problem, words, rng: written(
        words, "\n".join(problem.lines if rng.random() < share else problem.slipped)
    )


def line_again(problem: Problem, words: Words, line: str) -> list[int]:
    """A line is written, erased and written as it should be."""
    before = "".join(f"{line}\n" for line in problem.lines[: problem.at])
    return written(words, before, f"{line}\n", len(words.encode(f"{line}\n")), "\n".join(problem.lines[problem.at :]))


def token_again(problem: Problem, words: Words, rng: Random) -> list[int]:
    """The wrong number alone is erased."""
    text, start = "\n".join(problem.lines), sum(len(line) + 1 for line in problem.lines[: problem.at])
    at = start + len(problem.right_start)
    return written(words, text[:at], problem.wrong_number, len(words.encode(problem.wrong_number)), text[at:])


def left_standing(problem: Problem, words: Words, rng: Random) -> list[int]:
    """The wrong number stays, and the rest is right all the same."""
    lines = [*problem.lines[: problem.at], problem.wrong_line, *problem.lines[problem.at + 1 :]]
    return written(words, "\n".join(lines))


POLICIES: dict[str, Policy] = {
    "honest, always right": honest(1.0),
    "honest, 50% right": honest(0.5),
    "honest, 20% right": honest(0.2),
    "honest, 5% right": honest(0.05),
    "honest, 0% right": honest(0.0),
    "degenerate: one true, senseless equation, its result as the answer": lambda problem, words, rng: written(
        words, problem.degenerate
    ),
    "bare guess": lambda problem, words, rng: written(words, problem.slipped[-1]),
    "ends at once": lambda problem, words, rng: [EOS],
    "writes the solution and erases all": lambda problem, words, rng: written(
        words, "\n".join(problem.lines), len(words.encode("\n".join(problem.lines)))
    ),
    "right; a wrong number taken back": token_again,
    "right; a wrong line taken back": lambda problem, words, rng: line_again(problem, words, problem.wrong_line),
    "right; a wrong number left standing": left_standing,
    "right; a right line erased and written again": lambda problem, words, rng: line_again(
        problem, words, problem.lines[problem.at]
    ),
}
TAKEN_BACK, LEFT, AGAIN = list(POLICIES)[-3:]


def scores(problems: list[Problem], seed: int) -> dict[str, dict[str, list[float]]]:
    """The score of each problem by policy and stage of the curriculum."""
    args, words = RewardArguments(), Words()
    function = BacktrackRewardFunction(args, words, BACKTRACK)  # type: ignore[arg-type]
    found: dict[str, dict[str, list[float]]] = {}
    for name, policy in POLICIES.items():
        rng, parts = Random(f"{seed}-{name}"), []
        for problem in problems:
            sample = function.sample(policy(problem, words, rng), "math", problem.record)
            parts.append({part: float(score(sample)) for part, score in SCORES.items()})
        found[name] = {}
        for stage, progress in PROGRESS.items():
            weights = curriculum_weights(progress, args)
            found[name][stage] = [mix(part, weights) for part in parts]
    return found


def break_even(found: dict[str, dict[str, list[float]]], stage: str) -> float:
    """How often an honest policy must be right to earn what the degenerate one earns, in percent; 0 where never."""
    names = list(POLICIES)
    right, wrong, degenerate = (fmean(found[names[i]][stage]) for i in (0, 4, 5))
    return max(0.0, 100 * (degenerate - wrong) / (right - wrong))


def report(found: dict[str, dict[str, list[float]]], n: int) -> str:
    """The tables in Markdown."""
    lines = [f"Means over {n} problems of GSM8K's test split (`python benchmarks/reward.py --write`):", ""]
    lines += ["| policy | start | middle | end |", "| --- | --- | --- | --- |"]
    for name, stages in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{fmean(stages[stage]):.3f}" for stage in PROGRESS) + " |")
    lines += ["", "| share of problems, or of right answers | start | middle | end |", "| --- | --- | --- | --- |"]
    for said, other in (("leaving it", LEFT), ("rewriting a right line", AGAIN)):
        wins = [fmean(a > b for a, b in zip(found[TAKEN_BACK][s], found[other][s], strict=True)) for s in PROGRESS]
        lines.append(f"| taking a wrong line back beats {said} | " + " | ".join(f"{win:.1%}" for win in wins) + " |")
    even = [break_even(found, stage) for stage in PROGRESS]
    lines.append(
        "| break-even of an honest policy with the degenerate one | " + " | ".join(f"{x:.1f}%" for x in even) + " |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rng = Random(given.seed)
    with GSM8K.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    usable = [record for record in records if re.search(r">>[0-9]+", record["answer"].rpartition("####")[0])]
    problems = [Problem(record, rng) for record in usable[: given.problems]]
    text = report(scores(problems, given.seed), len(problems))
    print(text)
    if given.write:
        put_into(DOCUMENT, "benchmarks/reward.py", text)


if __name__ == "__main__":
    main()
