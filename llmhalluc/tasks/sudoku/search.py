"""A depth-first search over the blanks of a Sudoku: every digit that it writes and takes back."""

from collections.abc import Sequence
from math import isqrt
from random import Random

from llmhalluc.tasks.sudoku.text import cell_units


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
