"""A completion in steps, as its task cuts it: a move, a line, a sentence. Ids are cut, never made anew."""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.problems import Problem
from llmhalluc.tasks import TASKS

_CUT_CHARACTER = "\ufffd"  # what bytes of an unfinished character decode to


class SolutionStep(NamedTuple):
    """Some ids of a completion, their text, and the key that another step must agree in (`step_keys` of the task)."""

    ids: list[int]
    text: str
    key: Hashable | None


class Splitter:
    """Cuts completions of one tokenizer's ids into steps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        def decode(ids: tuple[int, ...]) -> str:
            return tokenizer.decode(list(ids), skip_special_tokens=True)

        self._decode = lru_cache(1 << 16)(decode)  # of a few neighbours: the same come again and again

    def __call__(self, problem: Problem, ids: Sequence[int]) -> list[SolutionStep]:
        """The steps of a completion; joined, their ids are `ids`."""
        task, pieces = TASKS[problem.task], self.pieces(ids)
        ends = task.step_ends(pieces)
        spans = list(zip([0, *ends], ends, strict=False))
        texts = ["".join(pieces[start:end]) for start, end in spans]
        keys = task.step_keys(texts, problem.record)
        return [
            SolutionStep(list(ids[start:end]), text, key)
            for (start, end), text, key in zip(spans, texts, keys, strict=True)
        ]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds; a character of several tokens comes with its last one."""
        found, lead, read = [], 0, 0
        for i in range(len(ids)):
            before, now = self._decode(tuple(ids[lead:read])), self._decode(tuple(ids[lead : i + 1]))
            if len(now) <= len(before) or now.endswith(_CUT_CHARACTER):
                found.append("")
            else:
                found.append(now[len(before) :])
                lead, read = read, i + 1
        return found


def follow(prefix: Sequence[Hashable | None], solution: Sequence[Hashable | None]) -> int | None:
    """How many steps of a solution say what the steps of `prefix` say, by their keys; None where the two differ."""
    at = 0
    for key in prefix:
        if key is not None:
            while at < len(solution) and solution[at] is None:
                at += 1
            if at == len(solution) or solution[at] != key:
                return None
            at += 1
    return at
