"""The grid of a Sudoku as people look at it."""

from collections.abc import Sequence
from math import isqrt

from llmhalluc.tasks.boards import Board, Cell
from llmhalluc.tasks.sudoku.text import BOX, conflicts, fill


def draw(puzzle: str, solution: str, standing: Sequence[str]) -> Board:
    """Return the grid after the `standing` moves, with what is given, astray and in conflict marked."""
    size, grid = isqrt(len(puzzle)), puzzle
    for move in standing:
        grid = fill(grid, move) or grid
    clashes, cells = conflicts(grid), []
    for i, digit in enumerate(grid):
        marks = {"given": puzzle[i] != ".", "astray": digit not in (".", solution[i]), "clash": i in clashes}
        text = "" if digit == "." else digit
        cells.append(Cell(text, tuple(mark for mark, holds in marks.items() if holds)))
    return Board([cells[start : start + size] for start in range(0, size * size, size)], BOX[size])
