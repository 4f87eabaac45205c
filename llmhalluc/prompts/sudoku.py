"""Sudoku as text: one token a filled cell (`b3=4`), the given cells, `solve`, then the blanks row by row.

A board is a string of size² characters row by row, `.` for an empty cell; columns are letters, rows numbers.
"""

from functools import cache
from math import isqrt
from operator import eq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    moves, board = _moves(isqrt(len(puzzle))), list(puzzle)
    for word in completion.split():
        cell, digit = moves.get(word, (None, ""))
        if cell is None or board[cell] != ".":
            return None
        board[cell] = digit
    return "".join(board)


@cache
def _moves(size: int) -> dict[str, tuple[int, str]]:
    return {cell_token(size, i, d): (i, str(d)) for i in range(size * size) for d in range(1, size + 1)}


def check(puzzle: str, completion: str) -> bool:
    """Whether the surviving text `completion` fills every blank and no row, column or box holds a digit twice."""
    board = fill(puzzle, completion)
    return board is not None and "." not in board and not conflicts(board)


def conflicts(board: str) -> set[int]:
    """Cells whose digit stands a second time in their row, column or box."""
    units = peers(isqrt(len(board)))
    return {i for i, digit in enumerate(board) if digit != "." and any(board[j] == digit for j in units[i])}


@cache
def peers(size: int) -> tuple[tuple[int, ...], ...]:
    """For each cell, the other cells of its row, column and box."""
    units = [cell_units(size, cell) for cell in range(size * size)]
    return tuple(
        tuple(j for j, other in enumerate(units) if j != i and any(map(eq, mine, other)))
        for i, mine in enumerate(units)
    )


def cell_units(size: int, cell: int) -> tuple[int, int, int]:
    """Row, column and box of a cell, each 0..size-1: `cell_units(6, 9)` is `(1, 3, 1)`."""
    rows, columns = BOX[size]
    row, column = divmod(cell, size)
    return row, column, row // rows * rows + column // columns


def build_tokenizer(size: int) -> "PreTrainedTokenizerFast":
    """One token a move and `solve`; `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3; BACKTRACK is added by the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", SOLVE, *_moves(size)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
