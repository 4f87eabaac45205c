"""Which erased tokens were really wrong.

A token is judged by what stood before it when it was written, by itself, and by what survives in the end, and by
nothing else. So putting in an error and erasing it changes the judgement of no other token (law 5).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmhalluc.backtrack import replay, tops
from llmhalluc.reward.process import moves_of
from llmhalluc.reward.steps import equations

_REACH = 64  # tokens before an erased one that are looked at
_MOST_LOOKS = 256  # erased tokens that are looked at; later ones are unknown at best
_LAST_NUMBER = re.compile(r"[0-9][0-9,.]*\Z")


class Erased(NamedTuple):
    """How many erased tokens were wrong, were neither shown wrong nor right, and were right."""

    wrong: int = 0
    unknown: int = 0
    needless: int = 0


NOTHING = Erased()


def judge_erasures(
    completion_ids: Sequence[int], backtrack_id: int, piece: Callable[[int], str], problem: Any
) -> Erased:
    """Count the erased tokens of a completion; `piece` is the text of a token.

    needless: written again as it was, and so was all before it. wrong: of math, a token that completes a false
    calculation (no further digit could make it true), and what was written on it; of Sudoku, a move that differs from
    the solution or stands on one that does; a right move is needless. unknown: the rest.
    """
    if backtrack_id not in completion_ids:
        return NOTHING
    below = tops(completion_ids, backtrack_id)
    survivors = replay(completion_ids, backtrack_id)
    standing = set(survivors)
    following = dict(zip([-1, *survivors], survivors, strict=False))
    twin = {-1: -1}  # the survivor that a token is, or that says again what the token and all before it said
    rights = moves_of(problem.question, problem.answer)[1] if problem.task == "sudoku" else frozenset()
    wrong = {-1: False}
    counts, looks = [0, 0, 0], 0
    for i, token in enumerate(completion_ids):
        if token == backtrack_id:
            continue
        on = below[i]
        wrong[i] = wrong[on]
        again = following.get(twin.get(on))
        if i in standing or (again is not None and completion_ids[again] == token):
            twin[i] = i if i in standing else again
        if problem.task == "sudoku":
            wrong[i] = wrong[on] or piece(token).strip() not in rights
        if i in standing:
            continue
        same = i in twin
        if problem.task != "sudoku" and not wrong[i] and not same and any(map(str.isdigit, piece(token))):
            looks += 1
            wrong[i] = looks <= _MOST_LOOKS and _completes_falsehood(_text_before(completion_ids, below, i, piece))
        right = same or problem.task == "sudoku"
        counts[0 if wrong[i] and not same else 2 if right else 1] += 1
    return Erased(*counts)


def _text_before(ids: Sequence[int], below: Sequence[int], at: int, piece: Callable[[int], str]) -> str:
    """The text that stood when the token at `at` was written, itself included, as far as is looked at."""
    pieces: list[str] = []
    while at >= 0 and len(pieces) < _REACH:
        pieces.append(piece(ids[at]))
        at = below[at]
    return "".join(reversed(pieces))


def _completes_falsehood(text: str) -> bool:
    """Whether the last calculation of a text ends it, is false, and more digits could not make it true."""
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
