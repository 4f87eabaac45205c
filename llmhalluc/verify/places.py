"""Where a trace ends a step: the places that a judge learns from and is asked at."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from llmhalluc.tasks.steps import ends_step


class Place(NamedTuple):
    """After the emitted token `at` a step has ended; `standing`: the surviving ids, `steps`: how many end where.

    emitted: which tokens the surviving ones are. whole: the token ends the text.
    """

    at: int
    standing: tuple[int, ...]
    steps: tuple[int, ...]
    emitted: tuple[int, ...]
    whole: bool = False

    @property
    def length(self) -> int:
        """How many tokens the step has that ends here."""
        starts = [0, *self.steps]
        return len(self.standing) - (starts[-1] if starts[-1] < len(self.standing) else starts[-2])


def places(
    ids: Sequence[int], backtrack_id: int | None, eos_ids: Sequence[int], task: Any, piece: Callable[[int], str]
) -> list[Place]:
    """Return the places of a trace's emitted ids, in order; none where an erasure has just gone back to one."""
    found: list[Place] = []
    standing: list[int] = []
    emitted: list[int] = []
    marks = [0]
    for at, token in enumerate(ids):
        if token == backtrack_id:
            standing, emitted = standing[:-1], emitted[:-1]
            while marks[-1] > len(standing):
                marks.pop()
            continue
        standing.append(token)
        emitted.append(at)
        if token in eos_ids:
            found.append(Place(at, tuple(standing), tuple(marks[1:]), tuple(emitted), whole=True))
        elif ends_step(task, [piece(one) for one in standing[marks[-1] :]]):
            marks.append(len(standing))
            found.append(Place(at, tuple(standing), tuple(marks[1:]), tuple(emitted)))
    return found


def texts_of(place: Place, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the texts of a place's steps."""
    bounds = [0, *place.steps]
    whole = [decode(place.standing[:end]) for end in bounds]
    return [now[len(before) :] for before, now in pairwise(whole)]
