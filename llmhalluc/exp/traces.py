"""A trace made ready to be looked at: text in pieces (kept, erased, BACKTRACK), boards of a Sudoku trace."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from llmhalluc.backtrack import replay
from llmhalluc.prompts.sudoku import conflicts, fill

Decode = Callable[[list[int]], str]


def pieces(ids: Sequence[int], backtrack_id: int | None, decode: Decode) -> list[tuple[str, str]]:
    """(kind, text) of each stretch of the trace, kind one of kept, erased, back: `a b BT c` gives four."""
    survivors = set(_replay(ids, backtrack_id))
    kinds = ["back" if token == backtrack_id else "kept" if i in survivors else "erased" for i, token in enumerate(ids)]
    made, start, before = [], 0, ""
    for kind, stretch in groupby(kinds):
        length = len(list(stretch))
        if kind == "back":
            made += [("back", "")] * length
        # What a stretch adds to the text before it: spaces and split characters come out as in one decoding.
        after = decode(list(ids[: start + length]))
        if kind != "back":
            made.append((kind, after[len(before) :]))
        start, before = start + length, after
    return made


def frames(puzzle: str, ids: Sequence[int], backtrack_id: int | None, decode: Decode) -> list[dict[str, Any]]:
    """One dict a token: the board after it and what it did.

    token: its text. board: the digits that stand, `.` where none does. cell: where it wrote or erased, None
    for neither. kind: write, erase or other (the end, and whatever is no digit). conflicts: cells that
    break a rule. erased_at: index of the BACKTRACK that erases this token, None if none does.
    """
    words = [decode([token]) for token in ids]

    @cache
    def board(survivors: tuple[int, ...]) -> str:
        if not survivors:
            return puzzle
        before = board(survivors[:-1])
        return fill(before, words[survivors[-1]]) or before

    made: list[dict[str, Any]] = []
    before: tuple[int, ...] = ()
    for i, token in enumerate(ids):
        after = tuple(_replay(ids[: i + 1], backtrack_id))
        changed = [c for c, (old, new) in enumerate(zip(board(before), board(after), strict=True)) if old != new]
        kind = "erase" if token == backtrack_id else "write" if changed else "other"
        made.append({
            "token": "⌫" if token == backtrack_id else words[i] or "end", "kind": kind, "board": board(after),
            "cell": changed[0] if changed else None, "conflicts": sorted(conflicts(board(after))),
            "erased_at": None,
        })  # fmt: skip
        for gone in set(before) - set(after):
            made[gone]["erased_at"] = i
        before = after
    return made


def _replay(ids: Sequence[int], backtrack_id: int | None) -> list[int]:
    return list(range(len(ids))) if backtrack_id is None else replay(ids, backtrack_id)
