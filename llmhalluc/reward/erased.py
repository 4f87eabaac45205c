"""Which erased tokens were really wrong.

A token is judged by what stood before it when it was written, by itself, by what survives in the end, and by whether
its step was brought to a right end. So putting in an error and erasing it makes no judgement of another token milder
(law 5): an error ends no step rightly, and what does only adds to what was needless.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from llmhalluc.backtrack import replay, tops
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import Record, Written

_REACH = 64  # tokens before a token that its task may look at
_MOST_LOOKS = 256  # erased tokens of a completion before which a task may look


class Erased(NamedTuple):
    """How many erased tokens were wrong, were neither shown wrong nor right, and were right."""

    wrong: int = 0
    unknown: int = 0
    needless: int = 0

    @property
    def cost(self) -> float:
        """Tokens that they count for: a needless one and its BACKTRACK in full, an unknown one 1/4, a wrong one 1/8."""
        return 2 * self.needless + self.unknown / 4 + self.wrong / 8


NOTHING = Erased()


def judge_erasures(
    completion_ids: Sequence[int], backtrack_id: int, piece: Callable[[int], str], task: str, record: Record
) -> Erased:
    """Count the erased tokens of a completion; `piece` is the text of a token.

    wrong: what the task's `is_wrong` says is, and what was written on that, unless it is right by itself. needless:
    right as `is_wrong` says; or written again as it was, and so was all before it, and its step had come to a right
    end: with a token that is right, or with a line that stands again as it was. unknown: the rest, such as a right
    beginning of a line that went wrong.
    """
    if backtrack_id not in completion_ids:
        return NOTHING
    below = tops(completion_ids, backtrack_id)
    survivors = replay(completion_ids, backtrack_id)
    standing = set(survivors)
    following = dict(zip([-1, *survivors], survivors, strict=False))
    twin = {-1: -1}  # the survivor that a token is, or that says again what the token and all before it said
    is_wrong, looks = TASKS[task].is_wrong, 0
    wrong = {-1: False}
    found: dict[int, bool | None] = {}
    ended_rightly: set[int] = set()
    for i, token in enumerate(completion_ids):
        if token == backtrack_id:
            continue
        on = below[i]
        again = following.get(twin.get(on))
        if i in standing or (again is not None and completion_ids[again] == token):
            twin[i] = i if i in standing else again
        text = piece(token)
        found[i] = None
        if i not in standing:
            looks += 1
            if looks > _MOST_LOOKS:  # no telling: what stands again counts as needless
                found[i] = False if i in twin else None
            else:
                before = partial(_text_before, completion_ids, below, i, piece)
                written = Written(text, before, i in twin)
                found[i] = is_wrong(written, record)
        wrong[i] = wrong[on] or found[i] is True
        if not wrong[i] and (found[i] is False or ("\n" in text and i in twin)):
            at = i
            while at >= 0 and at not in ended_rightly and (at == i or "\n" not in piece(completion_ids[at])):
                ended_rightly.add(at)
                at = below[at]
    counts = [0, 0, 0]
    for i, judged in found.items():
        if i not in standing:
            needless = not wrong[i] and (judged is False or (i in twin and i in ended_rightly))
            counts[2 if needless else 0 if wrong[i] and judged is not False else 1] += 1
    return Erased(*counts)


def _text_before(ids: Sequence[int], below: Sequence[int], at: int, piece: Callable[[int], str]) -> str:
    """The text that stood when the token at `at` was written, itself included, as far as is looked at."""
    pieces: list[str] = []
    while at >= 0 and len(pieces) < _REACH:
        pieces.append(piece(ids[at]))
        at = below[at]
    return "".join(reversed(pieces))
