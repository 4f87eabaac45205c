"""The calculations of a surviving text: which are true, and which of those come to what the worked solution comes to.

What could be stuffed in counts for nothing: a step counts by its result, and that must be one of the worked solution's;
where the answer is right without them, by leading to it. docs/reward.md lists the attacks.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from llmhalluc.tasks.math.answers import final_answer, gold_reading, stated_answers
from llmhalluc.tasks.math.equations import Equation, equations
from llmhalluc.tasks.math.numerals import SMALL
from llmhalluc.tasks.math.solution import MARK, clean_solution, numbers

UNCHECKED = 0.2  # of an answer without a step that counts; an answer's absence leaves this share of what steps earn
_LAST_NUMBER = re.compile(r"[0-9][0-9,.]*\Z")
_WORDS = {"half": 2, "twice": 2, "double": 2, "triple": 3, "quarter": 4, "dozen": 12, "dozens": 12, "hour": 60,
          "hours": 60, "minutes": 60, "day": 24, "days": 24, "week": 7, "weeks": 7, "month": 12, "months": 12,
          "year": 12, "years": 12, "hundred": 100, "third": 3, "thirds": 3}  # fmt: skip
_WORDS |= {word: number for word, number in SMALL.items() if 1 <= number <= 12}


class _Worked(NamedTuple):
    """results: what the worked solution's calculations come to. said: such results whose calculation is not read.

    slips: its own false calculations, which are no fault of who repeats them. unread: it has a text, and none of these.
    """

    results: frozenset[Fraction]
    said: frozenset[Fraction]
    slips: frozenset[tuple[str, str]]
    unread: bool


def process_quality(text: str, question: str, gold: str, right: bool) -> float:
    """Return `UNCHECKED + (1 - UNCHECKED) * share` for a text with an answer, `UNCHECKED * share` for one without.

    share: of the worked solution's results, those that true calculations come to; of a right answer to which a true
    calculation leads, 1, less those whose calculation cannot be read and which are not said. Each false calculation
    divides it: by 2, by 3, and so on.
    """
    found, worked = equations(text), _worked(gold, question)
    answer = final_answer(text)
    share = _coverage(text, found, worked)
    if right and (worked.unread or _leads_to_answer(found, question, gold)):
        missing = len(worked.said - set(numbers(text)))
        share = 1 - missing / max(1, len(worked.results | worked.said))
    share /= 1 + len(_false(found) - worked.slips)
    return UNCHECKED + (1 - UNCHECKED) * share if answer else UNCHECKED * share


def format_quality(text: str) -> float:
    """Return 1 for one answer, stated once, at the end.

    It is halved by anything behind the answer or a second number beside it, and divided by how often or how differently
    it is stated.
    """
    answers = stated_answers(text)
    if not answers:
        return 0.0
    times = max(text.count("####"), text.count("\\boxed{"), text.lower().count("answer is"))
    different = len({answer.reading.values or answer.text for answer in answers})
    return (1 - (answers[-1].reading.is_empty or bool(answers[-1].after.strip())) / 2) / max(times, different)


def judge_calculation(text: str) -> bool | None:
    """Return whether a text ends in a calculation that is true; None: in none, or in one that more digits make true."""
    start = text.rfind("=", 0, max(text.rfind("="), 0)) + 1
    found = equations(text[start:])
    number = _LAST_NUMBER.search(text)
    if not found or not number or start + found[-1].end != len(text):
        return None
    if found[-1].true:
        return True
    if "%" in found[-1].left:  # a percent sign may follow
        return None
    value = found[-1].value
    whole = str(value) if value.denominator == 1 else f"{float(value):.12f}"
    return None if whole.lstrip("-").startswith(number.group().replace(",", "")) else False


def _coverage(text: str, found: Sequence[Equation], worked: _Worked) -> float:
    """The share of the worked solution's results that a text comes to; one that tries many numbers has less of it."""
    wanted = worked.results | worked.said
    if not wanted:
        return 0.0
    reached = {step.result for step in found if step.true and not _is_idle(step)}
    hits = reached & worked.results
    tried = len(reached)
    if worked.said:
        said = set(numbers(text))
        hits |= said & worked.said
        tried = max(tried, len(said) // 4)
    return len(hits) / max(len(wanted), tried // 2)


def _is_idle(step: Equation) -> bool:
    """Whether nothing is computed: `54 * 1 = 54`, `54 + 0 = 54`."""
    return step.result in step.operands and step.operands <= {step.result, 0, 1}


@lru_cache(1024)
def _worked(gold: str, question: str) -> _Worked:
    """What the steps of a problem's own solution come to."""
    text = clean_solution(gold)
    steps = equations(text)
    read = {step.result for step in steps if step.true and not _is_idle(step)}
    marked = {number for mark in MARK.findall(gold) for number in numbers(mark.rpartition("=")[2])}
    answer = gold_reading(gold).values
    said = frozenset(marked - read - _question_numbers(question) - set(answer))
    unread = not read and not said and bool(text.rpartition("####")[0].strip())
    return _Worked(frozenset(read), said, _false(steps), unread)


def _false(found: Sequence[Equation]) -> frozenset[tuple[str, str]]:
    """The false calculations, each once."""
    return frozenset((step.left.strip(), step.right.strip()) for step in found if not step.true)


def _leads_to_answer(found: Sequence[Equation], question: str, gold: str) -> bool:
    """Whether a true step, of a number of the question or of an earlier result, comes to the answer."""
    known, answers = set(_question_numbers(question)), gold_reading(gold).values
    for step in found:
        grounded = not known.isdisjoint(step.operands)
        if step.true and grounded and not _is_idle(step) and step.result in answers:
            return True
        known.add(step.result)
    return False


@lru_cache(1024)
def _question_numbers(question: str) -> frozenset[Fraction]:
    """The numbers in a question, and hundredths of them: `20%` is used as 0.2."""
    values = set(numbers(question))
    values |= {Fraction(_WORDS[word]) for word in re.findall("[a-z]+", question.lower()) if word in _WORDS}
    return frozenset(values | {value / 100 for value in values})
