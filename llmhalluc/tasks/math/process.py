"""The calculations of a surviving text: which of them are true, and which of those carry the answer.

What could be stuffed in counts for nothing. A true calculation counts once, and only when it takes a number of the
question or of an earlier step, comes to a number that neither has, and leads to the answer; a false one always counts.
docs/reward.md lists the attacks.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from llmhalluc.prompts import math
from llmhalluc.tasks.math.answers import final_answer, gold_number, stated_answers
from llmhalluc.tasks.math.equations import Equation, equations

UNCHECKED = 0.2  # of an answer without a step that counts; an answer's absence leaves this share of what steps earn
_MOST_TRUE = 8  # steps that count as true: more of them do not make up for a false one
_NUMBER = re.compile(math.DIGITS)
_LAST_NUMBER = re.compile(r"[0-9][0-9,.]*\Z")
_WORDS = {"half": 2, "twice": 2, "double": 2, "triple": 3, "quarter": 4, "dozen": 12, "dozens": 12, "hour": 60,
          "hours": 60, "minutes": 60, "day": 24, "days": 24, "week": 7, "weeks": 7, "month": 12, "months": 12,
          "year": 12, "years": 12, "hundred": 100, "third": 3, "thirds": 3}  # fmt: skip
_WORDS |= {
    word: i for i, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}


def process_quality(text: str, question: str, gold: str) -> float:
    """Return `UNCHECKED + (1 - UNCHECKED) * true / (true + false)` for a text with an answer.

    Without one it is `UNCHECKED` times that share, so an empty text has 0 and no honest attempt has less.
    """
    found = equations(text)
    answer = final_answer(text, words=gold_number(gold) is None)
    stated = answer.value if answer else found[-1].result if found else None
    false = len({(step.left.strip(), step.right.strip()) for step in found if not step.true})
    true = min(_MOST_TRUE, _carrying(found, _question_numbers(question), stated))
    share = true / (true + false) if true else 0.0
    return UNCHECKED + (1 - UNCHECKED) * share if answer else UNCHECKED * share


def format_quality(text: str, gold: str) -> float:
    """Return 1 for one answer, stated once, at the end.

    It is halved by a line after the answer or a second number beside it, and divided by how often or how differently
    it is stated.
    """
    answers = stated_answers(text, words=gold_number(gold) is None)
    if not answers:
        return 0.0
    times = max(text.count("####"), text.count("\\boxed{"), text.lower().count("answer is"))
    different = len({answer.text if answer.value is None else answer.value for answer in answers})
    return (1 - (answers[-1].hedged or bool(answers[-1].after.strip())) / 2) / max(times, different)


def completes_falsehood(text: str) -> bool:
    """Return whether the last calculation of a text ends it, is false, and more digits could not make it true."""
    sign = text.rfind("=")
    found = equations(text[text.rfind("=", 0, max(sign, 0)) + 1 :]) if sign >= 0 else []
    if not found or found[-1].true or found[-1].end == 0 or text[sign + 1 :].find(found[-1].right) < 0:
        return False
    number = _LAST_NUMBER.search(text)
    if not number or not found[-1].right.endswith(number.group()):
        return False
    value = found[-1].value
    whole = str(value) if value.denominator == 1 else f"{float(value):.12f}"
    return not whole.lstrip("-").startswith(number.group().replace(",", ""))


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
