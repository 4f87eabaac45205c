"""What new sequences need not compute: prefixes that stand in the cache already, or will when another is filled."""

from bisect import bisect_left
from dataclasses import dataclass, field

from llmhalluc.decoding.sequence import Sequence

PIECE = 16  # prefixes are copied in pieces of so many columns, so that sequences that share much are filled together


@dataclass(eq=False)
class Filling:
    """A new sequence, the ids that its slot must hold, and whose slot the first `start` of them are copied from."""

    sequence: Sequence
    source: Sequence | None = None
    start: int = 0
    round: int = 0  # in an earlier one its source is filled
    ids: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        self.ids = tuple(self.sequence.tape.columns[:-1])

    def copy_from(self, ids: tuple[int, ...], source: Sequence | None, round: int) -> bool:
        """Take over what the slot of `source` shares with this one, if that is more than was found before."""
        shorter = min(len(ids), len(self.ids))
        shared = bisect_left(range(1, shorter + 1), True, key=lambda n: ids[:n] != self.ids[:n])
        start = shared if shared == len(self.ids) else shared - shared % PIECE
        better = source is not None and start > self.start
        if better:
            self.source, self.start, self.round = source, start, round
        return better


def plan(new: list[Sequence], running: list[Sequence]) -> list[Filling]:
    """Return how to fill each new sequence, sources first and those that are filled together side by side.

    A text that another new one has as well is copied whole. Otherwise the longest prefix that a running one has is
    copied, or what is shared with the first of the new ones that begin alike.
    """
    first_of: dict[tuple[int, ...], Filling] = {}
    twins = []
    for sequence in new:
        filling = Filling(sequence)
        first = first_of.setdefault(filling.ids, filling)
        if first is not filling:
            filling.source, filling.start, filling.round = first.sequence, len(filling.ids), 2
            twins.append(filling)
    # Among sorted texts the neighbours share the longest prefixes.
    texts = sorted([*first_of, *(tuple(sequence.tape.columns[:-1]) for sequence in running)])
    runs = {tuple(sequence.tape.columns[:-1]): sequence for sequence in running}
    for way in (texts, texts[::-1]):
        nearest: tuple[int, ...] = ()
        for ids in way:
            if ids in first_of:
                first_of[ids].copy_from(nearest, runs.get(nearest), 0)
            if ids in runs:
                nearest = ids
    head = None
    for ids in sorted(first_of):
        if head is None or not first_of[ids].copy_from(head.ids, head.sequence, 1):
            head = first_of[ids]
    fillings = [*first_of.values(), *twins]
    return sorted(fillings, key=lambda filling: (filling.round, filling.start, -len(filling.ids)))
