"""A depth-first search over the blanks of a Sudoku: every digit that it writes and takes back."""

from collections.abc import Sequence
from math import isqrt
from random import Random

from llmhalluc.tasks.sudoku.text import cell_units, peers


def search_trace(puzzle: Sequence[int], answer: Sequence[int], rng: Random) -> list[int]:
    """The digits that a search writes until it holds `answer`, 0 where it erases its last one.

    Blanks (0 in `puzzle`) are filled row by row, each with a random one of the digits that its row, column and
    box still allow; where there is none, the search goes back to the last blank with a digit untried.
    """
    size = isqrt(len(puzzle))
    units, taken = cell_units(size), [0] * (3 * size)  # bit d: the row, column or box holds d
    blanks = [units[cell] for cell, digit in enumerate(puzzle) if not digit]
    for cell, digit in enumerate(puzzle):
        if digit:
            for unit in units[cell]:
                taken[unit] |= 1 << digit
    trace: list[int] = []
    written: list[int] = []
    untried: list[list[int]] = []  # of each blank up to the one that is being filled
    while True:
        depth = len(written)
        if depth < len(blanks):
            if depth == len(untried):
                row, column, box = blanks[depth]
                barred = taken[row] | taken[column] | taken[box]
                untried.append([digit for digit in range(1, size + 1) if not barred >> digit & 1])
            if options := untried[depth]:
                digit = options.pop(int(rng.random() * len(options)))
                for unit in blanks[depth]:
                    taken[unit] |= 1 << digit
                written.append(digit)
                trace.append(digit)
                continue
            untried.pop()
        elif written == answer:
            return trace
        digit = written.pop()
        for unit in blanks[len(written)]:
            taken[unit] ^= 1 << digit
        trace.append(0)


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
