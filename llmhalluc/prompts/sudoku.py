"""Sudoku as text: the grid row by row with `.` for an empty cell, then `=`; the answer is the blanks' digits in order.

A board is a string of size² characters, row by row. Correctness has one definition, `check`.
"""

from functools import cache
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOX = {4: (2, 2), 6: (2, 3)}  # size: rows and columns of a box


def prompt_text(puzzle: str) -> str:
    """`1..42.3..3.2.1..` -> `1..42.3..3.2.1..=`."""
    return f"{puzzle}="


def answer_text(puzzle: str, solution: str) -> str:
    """The digits of `solution` at the blanks of `puzzle`, row by row."""
    return "".join(right for given, right in zip(puzzle, solution, strict=True) if given == ".")


def fill(puzzle: str, completion: str) -> str | None:
    """The board with the first blanks filled from `completion`, white space ignored.

    None where a character is no digit of the board, or when there are more of them than blanks.
    """
    digits = "".join(completion.split())
    allowed = "123456789"[: isqrt(len(puzzle))]
    if len(digits) > puzzle.count(".") or any(digit not in allowed for digit in digits):
        return None
    rest = iter(digits)
    return "".join(next(rest, ".") if given == "." else given for given in puzzle)


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
        tuple(j for j, other in enumerate(units) if j != i and any(a == b for a, b in zip(mine, other, strict=True)))
        for i, mine in enumerate(units)
    )


def cell_units(size: int, cell: int) -> tuple[int, int, int]:
    """Row, column and box of a cell, each 0..size-1: `cell_units(6, 9)` is `(1, 3, 1)`."""
    rows, columns = BOX[size]
    row, column = divmod(cell, size)
    return row, column, row // rows * rows + column // columns


def build_tokenizer(size: int) -> "PreTrainedTokenizerFast":
    """One token a character; `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3, then `.`, `=` and the digits 1..size."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", ".", "=", *"123456789"[:size]]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
