"""A completion in steps: a move of Sudoku, a line or a sentence of a worked solution. Ids are cut, never made anew."""

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.problems import Problem
from llmhalluc.prompts import math, sudoku

_CUT_CHARACTER = "\ufffd"  # what bytes of an unfinished character decode to
# A line's end, with empty lines after it; or a sentence's, where white space follows.
_STEP_END = re.compile(r"\n(?:[^\S\n]*\n)*|(?<=[.!?])(?=\s)|(?<=[.!?][\"')\]])(?=\s)")
_NUMBER = re.compile(math.DIGITS)


class Step(NamedTuple):
    """Some ids of a completion, their text, and what another step must agree in; None where it says nothing of weight.

    Key of math: the numbers of the step, in order; words may differ. Of Sudoku: whether the move is right and new.
    """

    ids: list[int]
    text: str
    key: Hashable | None


class Splitter:
    """Cuts completions of one tokenizer's ids into steps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        def decode(ids: tuple[int, ...]) -> str:
            return tokenizer.decode(list(ids), skip_special_tokens=True)

        self._decode = lru_cache(1 << 16)(decode)  # of a few neighbours: the same come again and again

    def __call__(self, problem: Problem, ids: Sequence[int]) -> list[Step]:
        """The steps of a completion; joined, their ids are `ids`."""
        if problem.task == "sudoku":
            open_moves = set(sudoku.answer_text(problem.question, problem.answer).split())
            steps = []
            for token in ids:
                text = self._decode((token,))
                steps.append(Step([token], text, text in open_moves))
                open_moves.discard(text)
            return steps
        pieces, steps, start = self.pieces(ids), [], 0
        for end in step_ends(pieces):
            text = "".join(pieces[start:end])
            steps.append(Step(list(ids[start:end]), text, numbers(text)))
            start = end
        return steps

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


def step_ends(pieces: Sequence[str]) -> list[int]:
    """Numbers of tokens after which a step ends, the last token among them; a step holds more than white space."""
    text, ends, at = "".join(pieces), [], 0
    cuts = [match.end() for match in _STEP_END.finditer(text)]
    written, last = 0, 0  # characters so far, characters at the last step's end
    for i, piece in enumerate(pieces):
        written += len(piece)
        reached = False
        while at < len(cuts) and cuts[at] <= written:
            reached, at = True, at + 1
        if reached and text[last:written].strip() and text[written:].strip():
            ends.append(i + 1)
            last = written
    return [*ends, len(pieces)] if pieces else []


def numbers(text: str) -> Hashable | None:
    """The exact values of the numbers in a step, in order; None where it has none."""
    return tuple(math.normalise_number(number) for number in _NUMBER.findall(text)) or None


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
