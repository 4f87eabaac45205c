"""The final answer that a text states: which one counts, whether it is only one, what follows it."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from llmhalluc.prompts import math

_LONGEST = 1000  # characters of an answer
_MOST_MARKS = 16  # of a kind; who writes more states no answer
_BOXED = "\\boxed{"
_NUMBER = re.compile(math.DIGITS)
_FIRST = re.compile(rf"\A[^0-9]*{math.DIGITS}(?:/[0-9]+)?")
# `18 or 20`, `18, 20`, `18/20 apples`: a second number that is offered as well.
_OFFERED = re.compile(rf"(?:\b(?:or|and)\b|[,;/|&])\s*(?:[A-Za-z]+\s+)?[-\u2212$€£]*{math.DIGITS}")
_SENTENCE = re.compile(r"[.!?](?=\s|\Z)|\n|####")


class Answer(NamedTuple):
    """A stated answer: its `text`, its `value` where that is one plain number, and `after`, what follows its line.

    `hedged`: a second number is offered. `latex`: it is written in LaTeX.
    """

    text: str
    value: Fraction | None
    hedged: bool
    latex: bool
    after: str


@lru_cache(4096)
def gold_number(answer: str) -> Fraction | None:
    """The number that a problem's answer is, or ends in; None where it is no number."""
    number = math.normalise_number(answer)
    return math.extract_answer(answer) if number is None else number


def is_correct(text: str, target: str, flexible: bool = False) -> bool:
    """Return whether the answer that evaluation reads equals the target: a number, or a solution that ends in one."""
    gold = gold_number(target)
    return gold is not None and math.extract_answer(text, flexible) == gold


def final_answer(text: str, words: bool = False) -> Answer | None:
    """The answer that counts: after the last `####`, else in the last `\\boxed{}`, else after the last "answer is".

    words: where none of them holds a number or LaTeX, one in words will do.
    """
    stated = stated_answers(text, words)
    return stated[-1] if stated else None


def stated_answers(text: str, words: bool = False) -> list[Answer]:
    """The answers of each kind, the one that counts last; of more than 16 of a kind the last 16."""
    kinds = [_after_hashes(text), _in_boxes(text), _after_words(text)]
    read = [[answer for answer in kind if answer.value is not None or answer.latex] for kind in kinds]
    kinds = kinds if words and not any(read) else read
    first = next((i for i, found in enumerate(kinds) if found), 0)
    return [answer for i, found in enumerate(kinds) if i != first for answer in found] + kinds[first]


def _after_hashes(text: str) -> list[Answer]:
    pieces = text.rsplit("####", _MOST_MARKS)
    found = []
    for i, piece in enumerate(pieces[1:], 1):
        line, _, rest = piece.partition("\n")
        line = line.strip()[:_LONGEST]
        value = math.extract_answer(f"#### {line}")
        if line:
            others = _NUMBER.findall(_FIRST.sub("", line, count=1)) if value is not None else []
            hedged = any(math.normalise_number(number) != abs(value) for number in others)
            found.append(Answer(line, value, hedged, "\\" in line, rest if i == len(pieces) - 1 else "next"))
    return found


def _in_boxes(text: str) -> list[Answer]:
    pieces = text.rsplit(_BOXED, _MOST_MARKS)
    found = []
    for i, piece in enumerate(pieces[1:], 1):
        depth, end = 1, None
        for match in re.finditer(r"[{}]", piece[:_LONGEST]):
            depth += 1 if match.group() == "{" else -1
            if not depth:
                end = match.start()
                break
        if end:
            inner = piece[:end].strip()
            value = math.normalise_number(inner.replace("\\$", "$").replace("\\%", "%"))
            rest = piece[end:].partition("\n")[2]
            found.append(Answer(inner, value, False, True, rest if i == len(pieces) - 1 else "next"))
    return found


def _after_words(text: str) -> list[Answer]:
    pieces = re.split("answer is", text, flags=re.IGNORECASE)
    found = []
    for i, piece in enumerate(pieces[1:][-_MOST_MARKS:], max(1, len(pieces) - _MOST_MARKS)):
        near = piece[:_LONGEST].lstrip(" \t\n:=*")
        sentence = near[: match.start()] if (match := _SENTENCE.search(near)) else near
        value = math.extract_answer(f"answer is {sentence}")
        if sentence.strip():
            rest = piece.lstrip().partition("\n")[2]
            hedged = value is not None and bool(_OFFERED.search(_FIRST.sub("", sentence, count=1)))
            found.append(Answer(sentence, value, hedged, "\\" in sentence, rest if i == len(pieces) - 1 else "next"))
    return found
