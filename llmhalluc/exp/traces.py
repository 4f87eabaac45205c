"""A trace made ready to be looked at: text in pieces (kept, erased, BACKTRACK), boards of a Sudoku trace."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from llmhalluc.backtrack import replay
from llmhalluc.eval.metrics import ERASE, spelled_out
from llmhalluc.prompts.sudoku import conflicts, fill

Decode = Callable[[list[int]], str]


def pieces(
    ids: Sequence[int], backtrack_id: int | None, decode: Decode, events: Sequence[Any] = ()
) -> list[tuple[str, str, str]]:
    """(kind, text, who) of each stretch of the trace, kind one of kept, erased, back: `a b BT c` gives four.

    `events` are a Trace's Erasures. Who erased it is BACKTRACK or an operator's name, and empty for what is kept; only
    a BACKTRACK has a piece of its own, for an operator emits nothing.
    """
    spelled, names = spelled_out(ids, backtrack_id, events)
    gone = _erased_at(spelled)
    steps = [
        ("back" if name else "erased" if i in gone else "kept", name or (names[gone[i]] if i in gone else ""))
        for i, name in enumerate(names)
    ]
    made, end, before = [], 0, ""
    for (kind, who), stretch in groupby(steps):
        length = len(list(stretch))
        end += length
        if kind == "back":
            made += [("back", "", who)] * (length if who == "BACKTRACK" else 0)
            continue
        # What a stretch adds to the text before it: spaces and split characters come out as in one decoding.
        after = decode([token for token in spelled[:end] if token != ERASE])
        made.append((kind, after[len(before) :], who))
        before = after
    return made


def frames(
    puzzle: str, ids: Sequence[int], backtrack_id: int | None, decode: Decode, events: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """One dict a token, and one for each that an operator erased: the board after it and what it did.

    token: its text. board: the digits that stand, `.` where none does. cell: where it wrote or erased, None
    for neither. kind: write, erase or other (the end, and whatever is no digit). conflicts: cells that
    break a rule. erased_at: index of the step that erases this token, None if none does. who: of a step that erases,
    BACKTRACK or the operator's name.
    """
    spelled, names = spelled_out(ids, backtrack_id, events)
    gone, words = _erased_at(spelled), ["" if token == ERASE else decode([token]) for token in spelled]

    @cache
    def board(survivors: tuple[int, ...]) -> str:
        if not survivors:
            return puzzle
        before = board(survivors[:-1])
        return fill(before, words[survivors[-1]]) or before

    made: list[dict[str, Any]] = []
    old = puzzle
    for i, who in enumerate(names):
        new = board(tuple(replay(spelled[: i + 1], ERASE)))
        changed = [c for c, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
        made.append({
            "token": "⌫" if who else words[i] or "end", "kind": "erase" if who else "write" if changed else "other",
            "board": new, "cell": changed[0] if changed else None, "conflicts": sorted(conflicts(new)),
            "erased_at": gone.get(i), "who": who,
        })  # fmt: skip
        old = new
    return made


def _erased_at(spelled: Sequence[int]) -> dict[int, int]:
    """Index of each erased token -> index of the ERASE that erases it."""
    return {stack[-1]: i for i, token in enumerate(spelled) if token == ERASE and (stack := replay(spelled[:i], ERASE))}
