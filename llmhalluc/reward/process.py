"""The steps of a surviving text: which of them are true, and which of those carry the answer.

What could be stuffed in counts for nothing. A true calculation counts once, and only when it takes a number of the
question or of an earlier step, comes to a number that neither has, and leads to the answer; a false one always counts.
docs/reward.md lists the attacks.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Any

from llmhalluc.prompts import math, sudoku
from llmhalluc.reward.answers import final_answer, gold_number
from llmhalluc.reward.steps import Equation, equations

UNCHECKED = 0.2  # of an answer without a step that counts; an answer's absence leaves this share of what steps earn
_MOST_TRUE = 8  # steps that count as true: more of them do not make up for a false one
_NUMBER = re.compile(math.DIGITS)
_WORDS = {"half": 2, "twice": 2, "double": 2, "triple": 3, "quarter": 4, "dozen": 12, "dozens": 12, "hour": 60,
          "hours": 60, "minutes": 60, "day": 24, "days": 24, "week": 7, "weeks": 7, "month": 12, "months": 12,
          "year": 12, "years": 12, "hundred": 100, "third": 3, "thirds": 3}  # fmt: skip
_WORDS |= {
    word: i for i, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}


def math_steps(text: str, problem: Any) -> float:
    """`UNCHECKED + (1 - UNCHECKED) * true / (true + false)`, of a text with an answer; `UNCHECKED` times that share
    without one, so an empty text has 0 and no honest attempt has less.
    """
    found = equations(text)
    answer = final_answer(text, words=gold_number(problem.answer) is None)
    stated = answer.value if answer else found[-1].result if found else None
    false = len({(step.left.strip(), step.right.strip()) for step in found if not step.true})
    true = min(_MOST_TRUE, _carrying(found, _question_numbers(problem.question), stated))
    share = true / (true + false) if true else 0.0
    return UNCHECKED + (1 - UNCHECKED) * share if answer else UNCHECKED * share


def _carrying(found: Sequence[Equation], given: frozenset[Fraction], stated: Fraction | None) -> int:
    """How many true steps lead from the numbers given to the answer stated, each to a number that was not there.

    Where a result stands in the question by chance it is followed but not counted, unless it is the answer.
    """
    results: set[Fraction] = set()
    fresh = []
    for step in found:
        grounded = any(number in given or number in results for number in step.operands)
        fresh.append(grounded and results.isdisjoint((step.value, step.result)) and step.result not in step.operands)
        results.add(step.result)
    needed, count = {stated}, 0
    for step, new in zip(reversed(found), reversed(fresh), strict=True):
        if step.result in needed and (new or not step.true or step.result in step.operands):
            count += new and step.true and (step.result == stated or step.result not in given)
            needed |= step.operands
    return count


@lru_cache(1024)
def _question_numbers(question: str) -> frozenset[Fraction]:
    """The numbers in a question, and hundredths of them: `20%` is used as 0.2."""
    values = {math.normalise_number(number) for number in _NUMBER.findall(question)} - {None}
    values |= {Fraction(_WORDS[word]) for word in re.findall("[a-z]+", question.lower()) if word in _WORDS}
    return frozenset(values | {value / 100 for value in values})


def sudoku_steps(text: str, problem: Any, legal: bool = False) -> float:
    """Right moves over blanks, or over words where there are more; a move counts once.

    legal: moves into a blank not filled before, right or not, in place of the right ones.
    """
    blanks, rights = moves_of(problem.question, problem.answer)
    words, filled, good = text.split(), set(), 0
    for word in words:
        cell = blanks.get(word)
        good += cell is not None and cell not in filled and (legal or word in rights)
        filled.add(cell)
    return good / max(1, len(rights), len(words))


@lru_cache(1024)
def moves_of(puzzle: str, solution: str) -> tuple[dict[str, int], frozenset[str]]:
    """Each move into a blank of the puzzle with its cell, and the right ones among them."""
    size = isqrt(len(puzzle))
    blanks = [cell for cell, digit in enumerate(puzzle) if digit == "."]
    moves = {sudoku.cell_token(size, cell, digit): cell for cell in blanks for digit in range(1, size + 1)}
    return moves, frozenset(sudoku.cell_token(size, cell, solution[cell]) for cell in blanks)
