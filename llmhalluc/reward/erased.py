"""Which erased tokens were really wrong.

A token is judged by what stood before it when it was written, by itself, and by what survives in the end, and by
nothing else. So putting in an error and erasing it changes the judgement of no other token (law 5).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmhalluc.backtrack import replay, tops
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import Record, Written

_REACH = 64  # tokens before a token that its task may look at
_MOST_LOOKS = 256  # tokens of a completion before which a task may look


class Erased(NamedTuple):
    """How many erased tokens were wrong, were neither shown wrong nor right, and were right."""

    wrong: int = 0
    unknown: int = 0
    needless: int = 0


NOTHING = Erased()


def judge_erasures(
    completion_ids: Sequence[int], backtrack_id: int, piece: Callable[[int], str], task: str, record: Record
) -> Erased:
    """Count the erased tokens of a completion; `piece` is the text of a token.

    needless: written again as it was, and so was all before it; or right as the task's `is_wrong` says. wrong: what it
    calls wrong, and all that was written on that. unknown: the rest.
    """
    if backtrack_id not in completion_ids:
        return NOTHING
    below = tops(completion_ids, backtrack_id)
    survivors = replay(completion_ids, backtrack_id)
    standing = set(survivors)
    following = dict(zip([-1, *survivors], survivors, strict=False))
    twin = {-1: -1}  # the survivor that a token is, or that says again what the token and all before it said
    is_wrong, looks = TASKS[task].is_wrong, 0

    def before() -> str:
        nonlocal looks
        looks += 1
        return _text_before(completion_ids, below, i, piece) if looks <= _MOST_LOOKS else ""

    wrong = {-1: False}
    counts = [0, 0, 0]
    for i, token in enumerate(completion_ids):
        if token == backtrack_id:
            continue
        on = below[i]
        again = following.get(twin.get(on))
        if i in standing or (again is not None and completion_ids[again] == token):
            twin[i] = i if i in standing else again
        found = True if wrong[on] else is_wrong(Written(piece(token), before, i in twin), record)
        wrong[i] = found is True
        if i not in standing:
            counts[2 if i in twin or found is False else 0 if found else 1] += 1
    return Erased(*counts)


def _text_before(ids: Sequence[int], below: Sequence[int], at: int, piece: Callable[[int], str]) -> str:
    """The text that stood when the token at `at` was written, itself included, as far as is looked at."""
    pieces: list[str] = []
    while at >= 0 and len(pieces) < _REACH:
        pieces.append(piece(ids[at]))
        at = below[at]
    return "".join(reversed(pieces))
