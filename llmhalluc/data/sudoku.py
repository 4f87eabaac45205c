"""Sudoku records as traces: the clean solution, or a depth-first search whose dead ends are erased."""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from random import Random
from typing import Any

from llmhalluc.data.base import DatasetConverter, column, encode_prompts
from llmhalluc.data.synthetic import cell_indices, grid_split
from llmhalluc.extras.errors import UserError
from llmhalluc.prompts import sudoku


class SudokuConverter(DatasetConverter):
    """Columns `puzzle` and `solution`, whole boards; a grid of the test part does not train (UserError)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        size = self.data.sudoku_size
        self.solve_id = self.tokenizer.convert_tokens_to_ids(sudoku.SOLVE)
        tokens = [[sudoku.cell_token(size, cell, digit + 1) for digit in range(size)] for cell in range(size * size)]
        self.move_ids = [self.tokenizer.convert_tokens_to_ids(of_cell) for of_cell in tokens]  # [cell][digit - 1]
        self.start = encode_prompts(self.tokenizer, [""])[0]  # bos, where the tokenizer puts one
        last = f"{tokens[-1][-1]} {sudoku.SOLVE} {tokens[0][0]}"
        wanted = [self.move_ids[-1][-1], self.solve_id, self.move_ids[0][0]]
        found = self.tokenizer(last, add_special_tokens=False)["input_ids"]
        if found != wanted or any(self.tokenizer.unk_token_id in ids for ids in (wanted, *self.move_ids)):
            raise UserError(
                f"data.converter {self.data.converter} needs a tokenizer with a token for each move such as "
                f"{tokens[0][0]}: set model.tokenizer to sudoku{size}"
            )

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A move is a token, so ids come from a table; `puzzle` (0 for a blank) and `answer` are digits."""
        encoded = []
        for record in records:
            puzzle, solution = (
                str(column(record, name, f"data.converter {self.data.converter}")) for name in ("puzzle", "solution")
            )
            self._check(puzzle, solution)
            given = [self.move_ids[i][int(digit) - 1] for i, digit in enumerate(puzzle) if digit != "."]
            blanks = [i for i, digit in enumerate(puzzle) if digit == "."]
            moves = [self.move_ids[i][int(solution[i]) - 1] for i in blanks]
            encoded.append(
                {
                    "prompt_ids": [*self.start, *given, self.solve_id],
                    "completion_ids": [*moves, self.tokenizer.eos_token_id],
                    "puzzle": [int(digit) for digit in puzzle.replace(".", "0")],
                    "answer": [int(solution[i]) for i in blanks],
                }
            )
        return encoded

    def _check(self, puzzle: str, solution: str) -> None:
        size, percent = self.data.sudoku_size, self.data.sudoku_test_percent
        fits = len(puzzle) == len(solution) == size * size and _is_solved(solution, size)
        if not fits or any(given not in (".", right) for given, right in zip(puzzle, solution, strict=True)):
            raise UserError(
                f"data.dataset {self.data.dataset} has the puzzle {puzzle} with the solution {solution}, which is "
                f"not one of size {size}: correct it, or data.sudoku_size"
            )
        if self.training and grid_split(solution, percent) == "test":
            raise UserError(
                f"data.dataset {self.data.dataset} has the grid {solution}, one of the {percent}% that are for "
                "evaluation alone: remove it from the training data (data.sudoku_test_percent)"
            )


class SudokuBacktrackConverter(SudokuConverter):
    """The moves as a depth-first search tries them, each dead end erased with BACKTRACKs."""

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> list[int]:
        puzzle, move_ids = encoded["puzzle"], self.move_ids
        blanks = [cell for cell, digit in enumerate(puzzle) if not digit]
        trace, depth = [], 0
        for digit in search_trace(puzzle, encoded["answer"], rng):
            trace.append(move_ids[blanks[depth]][digit - 1] if digit else self.backtrack_id)
            depth += 1 if digit else -1
        return [*trace, encoded["completion_ids"][-1]]


def search_trace(puzzle: Sequence[int], answer: Sequence[int], rng: Random) -> list[int]:
    """The digits that a search writes until it holds `answer`, 0 where it erases its last one.

    Blanks (0 in `puzzle`) are filled row by row, each with a random one of the digits that its row, column and
    box still allow; where there is none, the search goes back to the last blank with a digit untried.
    """
    size = isqrt(len(puzzle))
    units, taken = cell_indices(size), [0] * (3 * size)  # bit d: the row, column or box holds d
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
            row, column, box = blanks[depth]
            if depth == len(untried):
                barred = taken[row] | taken[column] | taken[box]
                untried.append([digit for digit in range(1, size + 1) if not barred >> digit & 1])
            if options := untried[depth]:
                digit = options.pop(int(rng.random() * len(options)))
                bit = 1 << digit
                taken[row] |= bit
                taken[column] |= bit
                taken[box] |= bit
                written.append(digit)
                trace.append(digit)
                continue
            untried.pop()
        elif written == answer:
            return trace
        bit = 1 << written.pop()
        row, column, box = blanks[len(written)]
        taken[row] ^= bit
        taken[column] ^= bit
        taken[box] ^= bit
        trace.append(0)


@lru_cache(maxsize=4096)
def _is_solved(solution: str, size: int) -> bool:
    return set(solution) == set("123456"[:size]) and not sudoku.conflicts(solution)
