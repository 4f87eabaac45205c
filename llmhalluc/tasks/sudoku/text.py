"""Sudoku as text: one token a filled cell (`b3=4`), the given cells, `solve`, then the blanks row by row.

A board is a string of size² characters row by row, `.` for an empty cell; columns are letters, rows numbers.
"""

from functools import cache
from math import isqrt
from typing import TYPE_CHECKING

from llmhalluc.tasks.base import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOX = {4: (2, 2), 6: (2, 3)}  # size: rows and columns of a box
SOLVE = "solve"


def cell_token(size: int, cell: int, digit: int | str) -> str:
    """The token that fills `cell`, counted row by row from 0: `cell_token(4, 5, 3)` is `b2=3`."""
    row, column = divmod(cell, size)
    return f"{'abcdef'[column]}{row + 1}={digit}"


def prompt_text(puzzle: str) -> str:
    """The given cells: `a1=3 d2=1 solve`."""
    size = isqrt(len(puzzle))
    return " ".join([*(cell_token(size, i, digit) for i, digit in enumerate(puzzle) if digit != "."), SOLVE])


def answer_text(puzzle: str, solution: str) -> str:
    """The blanks of `puzzle` filled from `solution`, row by row: `b1=2 c1=4`."""
    size = isqrt(len(puzzle))
    return " ".join(cell_token(size, i, solution[i]) for i, digit in enumerate(puzzle) if digit == ".")


def fill(puzzle: str, completion: str) -> str | None:
    """The board after the moves of `completion`; None where a word is no move or its cell is taken."""
    moves, board = all_moves(isqrt(len(puzzle))), list(puzzle)
    for word in completion.split():
        cell, digit = moves.get(word, (None, ""))
        if cell is None or board[cell] != ".":
            return None
        board[cell] = digit
    return "".join(board)


@cache
def all_moves(size: int) -> dict[str, tuple[int, str]]:
    """Every move of a board with its cell and its digit."""
    return {cell_token(size, i, d): (i, str(d)) for i in range(size * size) for d in range(1, size + 1)}


@cache
def move_texts(size: int) -> tuple[tuple[str, ...], ...]:
    """The moves by cell and digit, a space before each: `move_texts(4)[5][3]` is ` b2=3`."""
    return tuple(tuple(f" {cell_token(size, i, d)}" for d in range(size + 1)) for i in range(size * size))


def conflicts(board: str) -> set[int]:
    """Cells whose digit stands a second time in their row, column or box."""
    units = peers(isqrt(len(board)))
    return {i for i, digit in enumerate(board) if digit != "." and any(board[j] == digit for j in units[i])}


@cache
def peers(size: int) -> tuple[tuple[int, ...], ...]:
    """For each cell, the other cells of its row, column and box."""
    units = cell_units(size)
    return tuple(
        tuple(j for j, other in enumerate(units) if j != i and set(mine) & set(other)) for i, mine in enumerate(units)
    )


@cache
def cell_units(size: int) -> tuple[tuple[int, int, int], ...]:
    """Row, column and box of each cell as indices into one list of 3 × size."""
    rows, columns = BOX[size]
    units = []
    for cell in range(size * size):
        row, column = divmod(cell, size)
        units.append((row, size + column, 2 * size + row // rows * rows + column // columns))
    return tuple(units)


def build_tokenizer(size: int) -> "PreTrainedTokenizerBase":
    """One token a move and `solve`."""
    return word_tokenizer([SOLVE, *all_moves(size)])
