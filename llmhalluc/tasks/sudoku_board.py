"""The board of a Sudoku trace."""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from llmhalluc.prompts.sudoku import BOX, conflicts, fill
from llmhalluc.tasks.base import Board, Cell, Move


def board_of(record: dict[str, Any]) -> Callable[[dict[str, Any], Sequence[Move]], Board] | None:
    """What draws the boards of a record, None where its columns are not those of a Sudoku."""
    return board if {"puzzle", "solution"} <= record.keys() else None


def board(record: dict[str, Any], moves: Sequence[Move]) -> Board:
    """The grid after the standing moves; a word that is no move leaves it as it is."""
    puzzle, solution = record["puzzle"], record["solution"]
    size, grid = isqrt(len(puzzle)), puzzle
    for move in moves:
        if move.standing:
            grid = fill(grid, move.text) or grid
    clashes, cells = conflicts(grid), []
    for i, digit in enumerate(grid):
        marks = {"given": puzzle[i] != ".", "astray": digit not in (".", solution[i]), "clash": i in clashes}
        text = "" if digit == "." else digit
        cells.append(Cell(text, tuple(mark for mark, holds in marks.items() if holds)))
    return Board([cells[start : start + size] for start in range(0, size * size, size)], BOX[size])
