"""Word problems with worked solutions, as in GSM8K: a number at the end, and calculations on the way to it."""

import re
from collections.abc import Callable, Hashable, Sequence

from llmhalluc.prompts import math
from llmhalluc.tasks.base import CutOff, Record, Task, Verdict, Written
from llmhalluc.tasks.math import process
from llmhalluc.tasks.math.answers import Answer, final_answer, gold_reading
from llmhalluc.tasks.math.equations import equations
from llmhalluc.tasks.math.solution import clean_solution, numbers
from llmhalluc.tasks.math.verify import Verifier, require_math_verify
from llmhalluc.tasks.steps import ends_at
from llmhalluc.tasks.token_errors import Runs, TokenErrors

# A line's end, with empty lines after it; or a sentence's, where white space follows.
_STEP_END = re.compile(r"\n(?:[^\S\n]*\n)*|(?<=[.!?])(?=\s)|(?<=[.!?][\"')\]])(?=\s)")


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
        return clean_solution(record["answer"])

    def token_errors(self, runs: Runs, ids_of: Callable[[str], list[int]], delimiter: str) -> TokenErrors:
        from llmhalluc.tasks.math.errors import CarriedErrors

        return CarriedErrors(runs, ids_of, delimiter)

    def unsolvable(self, record: Record) -> str | None:
        answer = record["answer"]
        wanted = gold_reading(answer)
        if wanted.symbolic:
            require_math_verify()
        if wanted.is_empty:
            return f"an answer that is neither a number nor a formula (#### N): {answer[-60:]!r}"
        return None

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether the marked final answer is right; of several the last one counts, `18 or 20` is wrong.

        Numbers are compared exactly, other answers by math-verify in a process, which is killed after `limit` seconds.
        """
        return self._judge(text, final_answer(text), record, limit)

    def _judge(self, text: str, answer: Answer | None, record: Record, limit: float) -> Verdict:
        """The verdict on the answer that was read in a text."""
        if answer is None or (isinstance(text, CutOff) and not answer.complete):
            return Verdict(False, answer and answer.text, cut=isinstance(text, CutOff))
        same = self.same(answer, record["answer"], limit)
        return Verdict(bool(same), answer.text, timed_out=same is None)

    def same(self, answer: Answer, gold: str, limit: float = 5.0) -> bool | None:
        """Return whether a stated answer equals a problem's; None where that takes longer than `limit` seconds."""
        wanted, stated = gold_reading(gold), answer.reading
        if wanted.values and stated.values:
            return not set(wanted.values).isdisjoint(stated.values)
        if wanted.is_empty or stated.is_empty or wanted.literal or stated.literal:
            return bool(wanted.literal) and wanted.literal == stated.literal
        if wanted.values and not stated.is_numeric:  # `42x`, `43 = 42`
            return False
        return self.verifier.verify(wanted.formula, stated.formula, limit)

    def metrics(self, text: str, record: Record) -> dict[str, float]:
        """Return 0 or 1: strict_match as `check` says, flexible_match of the last number where nothing is marked."""
        strict = self.check(text, record).right
        flexible = strict or self._judge(text, final_answer(text, flexible=True), record, limit=5.0).right
        return {"strict_match": float(strict), "flexible_match": float(flexible)}

    def process(self, text: str, record: Record, right: bool | None = None) -> float:
        right = self.check(text, record).right if right is None else right
        return process.process_quality(text, record["question"], record["answer"], right)

    def format(self, text: str, record: Record) -> float:
        return process.format_quality(text)

    def is_wrong(self, token: Written, record: Record) -> bool | None:
        """Return True for a token that completes a false calculation, which no further digit could make true.

        Return False for one that completes a true calculation.
        """
        true = process.judge_calculation(token.before()) if any(map(str.isdigit, token.text)) else None
        return None if true is None else not true

    def step_ends(self, pieces: Sequence[str]) -> list[int]:
        """Return the ends of lines and of sentences."""
        return ends_at(pieces, _STEP_END)

    def step_keys(self, steps: Sequence[str], record: Record) -> list[Hashable | None]:
        """Return the exact values of each step's numbers, in order; None where it has none."""
        return [tuple(numbers(step)) or None for step in steps]

    def is_worked(self, record: Record) -> bool:
        return final_answer(record["answer"]) is not None

    def is_false(self, step: str) -> bool:
        """Return whether a step states a false equation."""
        return not all(found.true for found in equations(step))


TASK = Math()
