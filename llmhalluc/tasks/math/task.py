"""Word problems with worked solutions, as in GSM8K: a number at the end, and calculations on the way to it."""

import re
from collections.abc import Callable, Hashable, Sequence

from llmhalluc.prompts import math
from llmhalluc.tasks.base import Record, Task, Verdict, Written
from llmhalluc.tasks.math import process
from llmhalluc.tasks.math.answers import final_answer, gold_number, is_correct
from llmhalluc.tasks.math.equations import equations
from llmhalluc.tasks.math.verify import Verifier
from llmhalluc.tasks.steps import ends_at
from llmhalluc.tasks.token_errors import Runs, TokenErrors

# A line's end, with empty lines after it; or a sentence's, where white space follows.
_STEP_END = re.compile(r"\n(?:[^\S\n]*\n)*|(?<=[.!?])(?=\s)|(?<=[.!?][\"')\]])(?=\s)")
_NUMBER = re.compile(math.DIGITS)


class Math(Task):
    """Columns `question` and `answer`: a solution that ends in `#### N`, with calculator marks or not, or its number.

    verifier: compares answers that are no plain numbers; its process starts with the first of them.
    """

    columns = ("question", "answer")

    def __init__(self, verifier: Verifier | None = None):
        self.verifier = verifier or Verifier()

    def prompt(self, record: Record) -> str:
        return math.prompt_text(record["question"])

    def solution(self, record: Record) -> str:
        """Return the solution without its marks, the last line normalised to `#### N`."""
        return math.clean_solution(record["answer"])

    def token_errors(self, runs: Runs, ids_of: Callable[[str], list[int]], delimiter: str) -> TokenErrors:
        from llmhalluc.tasks.math.errors import CarriedErrors

        return CarriedErrors(runs, ids_of, delimiter)

    def unsolvable(self, record: Record) -> str | None:
        answer = record["answer"]
        return None if gold_number(answer) is not None else f"an answer without a number (#### N): {answer[-60:]!r}"

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether the final answer is right; of several the last one counts, `18 or 20` is wrong.

        Numbers are compared exactly, other answers by math-verify in a process, which is killed after `limit` seconds.
        """
        gold = gold_number(record["answer"])
        answer = final_answer(text, words=gold is None)
        if answer is None or answer.hedged:
            return Verdict(False, answer and answer.text)
        if gold is not None and (answer.value is not None or not answer.latex):
            return Verdict(answer.value == gold, answer.text)
        stated = final_answer(record["answer"], words=True)
        target = str(gold) if gold is not None else stated.text if stated else record["answer"]
        same = self.verifier.verify(target, answer.text, limit)
        return Verdict(bool(same), answer.text, cut=same is None)

    def metrics(self, text: str, record: Record) -> dict[str, float]:
        """Return 0 or 1 for the number after the last `####` or "answer is", and, failing these, for the last one."""
        return {
            "strict_match": float(is_correct(text, record["answer"])),
            "flexible_match": float(is_correct(text, record["answer"], flexible=True)),
        }

    def process(self, text: str, record: Record) -> float:
        return process.process_quality(text, record["question"], record["answer"])

    def format(self, text: str, record: Record) -> float:
        return process.format_quality(text, record["answer"])

    def is_wrong(self, token: Written, record: Record) -> bool | None:
        """Return True for a token that completes a false calculation, which no further digit could make true."""
        if token.stays or not any(map(str.isdigit, token.text)):
            return None
        return process.completes_falsehood(token.before()) or None

    def step_ends(self, pieces: Sequence[str]) -> list[int]:
        """Return the ends of lines and of sentences."""
        return ends_at(pieces, _STEP_END)

    def step_keys(self, steps: Sequence[str], record: Record) -> list[Hashable | None]:
        """Return the exact values of each step's numbers, in order; None where it has none."""
        return [numbers(step) for step in steps]

    def is_worked(self, record: Record) -> bool:
        return math.extract_answer(record["answer"]) is not None

    def is_false(self, step: str) -> bool:
        """Return whether a step states a false equation."""
        return not all(found.true for found in equations(step))


def numbers(text: str) -> Hashable | None:
    """Return the exact values of the numbers in a text, in order; None where it has none."""
    return tuple(math.normalise_number(number) for number in _NUMBER.findall(text)) or None


TASK = Math()
