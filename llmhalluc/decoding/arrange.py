"""Where sequences stand in the cache: from one order of slots to another."""

from typing import Any

from llmhalluc.decoding.sequence import Sequence


def rearrange(slots: Any, before: list[Sequence], after: list[Sequence | None]) -> None:
    """Copy each sequence of `after` from its slot in `before` to its new one; None is a slot that is left free.

    Those of `before` that are missing lose their slot. All move at once, through spare slots where one moves to where
    another has not left yet.
    """
    now = {sequence: slot for slot, sequence in enumerate(before)}
    moves = {now[one]: slot for slot, one in enumerate(after) if one is not None and now[one] != slot}
    if not moves:
        return
    sources, targets = list(moves), list(moves.values())
    columns = max(len(before[slot].tape.columns) for slot in sources)
    if moves.keys() & set(targets):
        first = max(len(before), len(after))
        spare = list(range(first, first + len(moves)))
        slots.reserve(first + len(moves))
        slots.copy(sources, spare, columns)
        sources = spare
    slots.copy(sources, targets, columns)
