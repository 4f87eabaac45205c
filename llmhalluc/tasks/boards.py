"""What people look at: a board, and the moves that led to it."""

from typing import NamedTuple


class Move(NamedTuple):
    """A token that was emitted and is no BACKTRACK.

    parent: index of the move that it was written on, -1 for the prompt. standing: whether it survives now.
    """

    text: str
    parent: int
    standing: bool


class Cell(NamedTuple):
    """A cell of a board.

    marks: CSS classes, given, astray (not as in the solution), clash (breaks a rule), dead (given up), and indent-N,
    N steps to the right.
    """

    text: str
    marks: tuple[str, ...] = ()


class Board(NamedTuple):
    """A board row by row.

    box: rows and columns of the boxes that have a thick border, (0, 0) where the rows are lines of text instead.
    """

    rows: list[list[Cell]]
    box: tuple[int, int]
