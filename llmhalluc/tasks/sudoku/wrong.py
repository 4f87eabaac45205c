"""Digits with which a search of a Sudoku continues wrongly, for preference pairs."""

from collections.abc import Sequence
from math import isqrt
from random import Random

from llmhalluc.tasks.sudoku.text import peers


def guess(puzzle: Sequence[int], standing: Sequence[int], rng: Random, instead_of: int = 0) -> list[int]:
    """Digits that fill the blanks after `standing`, each allowed where one is; the first is not `instead_of`.

    Without `instead_of` the first breaks a rule: that of a dead end, whose allowed digits have all been tried.
    """
    size, board = isqrt(len(puzzle)), list(puzzle)
    blanks = [cell for cell, digit in enumerate(board) if not digit]
    for cell, digit in zip(blanks, standing, strict=False):
        board[cell] = digit
    digits_written: list[int] = []
    for cell in blanks[len(standing) :]:
        taken = {board[peer] for peer in peers(size)[cell]}
        digits = [digit for digit in range(1, size + 1) if digit != instead_of or digits_written]
        allowed = [digit for digit in digits if digit not in taken]
        if not digits_written and not instead_of:
            allowed = [digit for digit in digits if digit in taken]
        choices = allowed or digits
        board[cell] = choices[int(rng.random() * len(choices))]
        digits_written.append(board[cell])
    return digits_written
