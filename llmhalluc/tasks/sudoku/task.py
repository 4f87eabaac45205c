"""Sudoku of 4×4 and 6×6: generated puzzles, solved by a depth-first search whose dead ends are erased."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from random import Random
from typing import TYPE_CHECKING, Literal

from llmhalluc.extras.option import option
from llmhalluc.tasks.base import ERASE, Piece, Record, Task, Verdict, Written
from llmhalluc.tasks.sudoku import text as sudoku
from llmhalluc.tasks.sudoku.search import search_trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmhalluc.tasks.boards import Board, Move


@dataclass
class SudokuOptions:
    """`data.task` of Sudoku."""

    size: Literal[4, 6] = option(4, "side of the generated grids")
    count: int = option(20000, "puzzles to generate", bounds="[1, inf)")
    min_blanks: int = option(8, "fewest empty cells", bounds="[1, 36]")
    max_blanks: int = option(11, "most empty cells", bounds="[1, 36]")
    test_percent: int = option(20, "share of solution grids, by hash, that only evaluation may see", bounds="[1, 99]")
    seed: int = option(0, "seed of the generator")

    def problems(self, path: str) -> Iterator[str]:
        """Sentences about options that do not fit each other; `path` is where they stand."""
        if not self.min_blanks <= self.max_blanks <= self.size**2:
            yield (
                f"{path}.min_blanks is {self.min_blanks} and {path}.max_blanks is {self.max_blanks}, expected "
                f"min <= max <= {self.size**2}, the cells of the grid"
            )


@dataclass
class SudokuTestOptions:
    """`eval.task_options.sudoku`."""

    count: int = option(400, "puzzles to generate", bounds="[1, inf)")
    size: Literal[4, 6] = option(4, "side of the grids")
    blanks: int = option(11, "empty cells", bounds="[1, 36]")
    seed: int = option(1, "seed of the generator")
    test_percent: int | None = option(
        None, "share of solution grids, by hash, that the puzzles are of; none: as in data.task", bounds="[1, 99]"
    )

    def problems(self, path: str) -> Iterator[str]:
        """Sentences about options that do not fit each other; `path` is where they stand."""
        if self.blanks > self.size**2:
            yield f"{path}.blanks is {self.blanks}, more than the grid's {self.size**2} cells"


class Sudoku(Task):
    """Columns `puzzle` and `solution`, whole boards row by row, `.` for an empty cell."""

    columns = ("puzzle", "solution")
    options, test_options = SudokuOptions, SudokuTestOptions
    one_token_moves = True

    def prompt(self, record: Record) -> str:
        return sudoku.prompt_text(record["puzzle"])

    def solution(self, record: Record) -> str:
        return sudoku.answer_text(record["puzzle"], record["solution"])

    def moves(self, record: Record) -> list[str]:
        puzzle, solution = record["puzzle"], record["solution"]
        texts = sudoku.move_texts(isqrt(len(puzzle)))
        return [texts[cell][int(solution[cell])] for cell, digit in enumerate(puzzle) if digit == "."]

    def search(self, record: Record, rng: Random) -> list[Piece]:
        texts, puzzle = sudoku.move_texts(isqrt(len(record["puzzle"]))), _digits(record["puzzle"])
        blanks = [cell for cell, digit in enumerate(puzzle) if not digit]
        pieces: list[Piece] = []
        depth = 0
        for digit in search_trace(puzzle, [int(record["solution"][cell]) for cell in blanks], rng):
            pieces.append(texts[blanks[depth]][digit] if digit else ERASE)
            depth += 1 if digit else -1
        return pieces

    def wrong_moves(
        self, record: Record, standing: Sequence[str], rng: Random, instead_of: str | None = None
    ) -> list[str]:
        from llmhalluc.tasks.sudoku.wrong import guess

        texts, puzzle = sudoku.move_texts(isqrt(len(record["puzzle"]))), _digits(record["puzzle"])
        rest = [cell for cell, digit in enumerate(puzzle) if not digit][len(standing) :]
        written = guess(puzzle, [int(move[-1]) for move in standing], rng, int(instead_of[-1]) if instead_of else 0)
        return [texts[cell][digit] for cell, digit in zip(rest, written, strict=True)]

    def tokenizer(self, name: str) -> "PreTrainedTokenizerBase":
        return sudoku.build_tokenizer(int(name[-1]))

    def read(self, record: Record) -> Record:
        return {name: str(record[name]) for name in self.columns}

    def invalid(self, record: Record, options: SudokuOptions) -> str | None:
        puzzle, solution, size = record["puzzle"], record["solution"], options.size
        fits = len(puzzle) == len(solution) == size * size and _is_solved(solution, size)
        if fits and all(given in (".", right) for given, right in zip(puzzle, solution, strict=True)):
            return None
        return (
            f"the puzzle {puzzle} with the solution {solution}, which is not one of size {size}: correct it, or "
            "data.task.size"
        )

    def held_out(self, record: Record, options: SudokuOptions) -> str | None:
        from llmhalluc.tasks.sudoku.generate import grid_split

        if grid_split(record["solution"], options.test_percent) == "train":
            return None
        return (
            f"the grid {record['solution']}, one of the {options.test_percent}% that are for evaluation alone: remove "
            "it from the training data (data.task.test_percent)"
        )

    def generate(self, options: SudokuOptions, split: str) -> list[Record]:
        from llmhalluc.tasks.sudoku.generate import sudoku_records  # numpy

        asked = (options.count, options.size, options.min_blanks, options.max_blanks)
        return sudoku_records(*asked, split, options.test_percent, options.seed)

    def generate_test(self, options: SudokuTestOptions) -> list[Record]:
        percent = SudokuOptions().test_percent if options.test_percent is None else options.test_percent
        asked = SudokuOptions(options.size, options.count, options.blanks, options.blanks, percent, options.seed)
        return self.generate(asked, "test")

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether the moves fill every blank and no row, column or box holds a digit twice."""
        board = sudoku.fill(record["puzzle"], text)
        return Verdict(board is not None and "." not in board and not sudoku.conflicts(board), board)

    def promising(self, text: str, record: Record) -> bool:
        """Return whether each word fills a cell, and no row, column or box holds a digit twice so far."""
        board = sudoku.fill(record["puzzle"], text)
        return board is not None and not sudoku.conflicts(board)

    def metrics(self, text: str, record: Record) -> dict[str, float]:
        return {"solved": float(self.check(text, record).right)}

    def process(self, text: str, record: Record, right: bool | None = None) -> float:
        """Return the right moves over the blanks, or over the words where there are more; a move counts once."""
        return _share_of_moves(text, record, legal=False)

    def format(self, text: str, record: Record) -> float:
        """Return the same of the moves into a blank that was not filled before, right or not."""
        return _share_of_moves(text, record, legal=True)

    def is_wrong(self, token: Written, record: Record) -> bool:
        """Return whether a token is no move of the solution."""
        return token.text.strip() not in _moves_of(record["puzzle"], record["solution"])[1]

    def step_ends(self, pieces: Sequence[str]) -> list[int]:
        """Return that every token is a step."""
        return list(range(1, len(pieces) + 1))

    def step_keys(self, steps: Sequence[str], record: Record) -> list[Hashable | None]:
        """Return for each move whether it is right and new."""
        left = set(_moves_of(record["puzzle"], record["solution"])[1])
        keys: list[Hashable | None] = []
        for step in steps:
            keys.append(step.strip() in left)
            left.discard(step.strip())
        return keys

    def rest(self, steps: Sequence[str], record: Record) -> list[str] | None:
        """Return the moves that are not made yet, row by row; None where one of the steps is wrong or is repeated."""
        if not all(self.step_keys(steps, record)):
            return None
        made = {step.strip() for step in steps}
        return [move for move in self.moves(record) if move.strip() not in made]

    def board(self, record: Record, moves: "Sequence[Move]") -> "Board":
        """Return the grid after the standing moves, with what is given, astray and in conflict marked."""
        from llmhalluc.tasks.sudoku.board import draw

        return draw(record["puzzle"], record["solution"], [move.text for move in moves if move.standing])


def _share_of_moves(text: str, record: Record, legal: bool) -> float:
    blanks, rights = _moves_of(record["puzzle"], record["solution"])
    words, filled, good = text.split(), set(), 0
    for word in words:
        cell = blanks.get(word)
        good += cell is not None and cell not in filled and (legal or word in rights)
        filled.add(cell)
    return good / max(1, len(rights), len(words))


@lru_cache(1024)
def _moves_of(puzzle: str, solution: str) -> tuple[dict[str, int], frozenset[str]]:
    """Each move into a blank of the puzzle with its cell, and the right ones among them."""
    size = isqrt(len(puzzle))
    blanks = [cell for cell, digit in enumerate(puzzle) if digit == "."]
    moves = {sudoku.cell_token(size, cell, digit): cell for cell in blanks for digit in range(1, size + 1)}
    return moves, frozenset(sudoku.cell_token(size, cell, solution[cell]) for cell in blanks)


@lru_cache(4096)
def _is_solved(solution: str, size: int) -> bool:
    return set(solution) == set("123456"[:size]) and not sudoku.conflicts(solution)


def _digits(board: str) -> list[int]:
    """The digits of a board, 0 for an empty cell."""
    return [int(digit) for digit in board.replace(".", "0")]


TASK = Sudoku()
