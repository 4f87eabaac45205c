"""Sudoku puzzles with one solution each: 4×4 from the 288 grids by matrix products, 6×6 by a bitmask solver.

A grid belongs to training or to evaluation by a hash of its digits, so that no test puzzle's solution is ever
trained on. A puzzle depends on the seed and its own number alone, not on how many processes generate.
"""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from random import Random

import numpy as np

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import cores
from llmhalluc.tasks.sudoku.text import cell_units

_CHUNK = 4096  # masks that are tried at a time, 4×4
_TRIES = 300  # rejected puzzles, on average for each one kept, after which there are too few
_PARALLEL = 2000  # 6×6 puzzles from which on several processes pay


def sudoku_records(
    count: int, size: int, min_blanks: int, max_blanks: int, split: str, percent: int, seed: int
) -> list[dict[str, str]]:
    """`{"puzzle", "solution", "split"}` of `count` puzzles with `min_blanks` to `max_blanks` empty cells.

    `split` is train or test, `percent` the share of grids in test. Puzzles of 4×4 are distinct. Raises
    UserError when there are too few of them.
    """
    if size == 4:
        rng = np.random.default_rng([seed, percent, split == "test"])
        pairs = _puzzles_4(count, min_blanks, max_blanks, split, percent, rng)
    else:
        make = partial(_puzzle_6, min_blanks, max_blanks, split, percent, seed)
        if count < _PARALLEL:
            pairs = [make(i) for i in range(count)]
        else:
            with ProcessPoolExecutor(cores()) as pool:
                pairs = list(pool.map(make, range(count), chunksize=250))
    return [{"puzzle": puzzle, "solution": solution, "split": split} for puzzle, solution in pairs]


def grid_split(solution: str, percent: int) -> str:
    """The part a solved grid belongs to, `train` or `test`, by SHA-256 of its digits."""
    return "test" if int(hashlib.sha256(solution.encode()).hexdigest(), 16) % 100 < percent else "train"


def solutions(puzzle: str, size: int, most: int = 2, rng: Random | None = None) -> list[str]:
    """Up to `most` solutions, the cell with the fewest candidates first; with `rng` in random order."""
    board, free, units = [0] * size**2, [(1 << size) - 1] * (3 * size), cell_units(size)
    for cell, digit in enumerate(puzzle):
        if digit != ".":
            bit = 1 << int(digit) - 1
            if any(not free[unit] & bit for unit in units[cell]):
                return []
            _flip(free, units[cell], bit)
            board[cell] = bit
    found: list[str] = []
    _search(board, [i for i, bit in enumerate(board) if not bit], free, units, most, rng, found)
    return found


def _search(board, blanks, free, units, most, rng, found) -> None:
    """Depth-first search; bit d - 1 of `free[unit]` says that digit d is not in that row, column or box."""
    if not blanks:
        found.append("".join(str(bit.bit_length()) for bit in board))
        return
    fewest, at = 99, 0
    for i, cell in enumerate(blanks):
        row, column, box = units[cell]
        n = (free[row] & free[column] & free[box]).bit_count()
        if n < fewest:
            fewest, at = n, i
            if n < 2:
                break
    cell = blanks[at]
    row, column, box = units[cell]
    candidates = free[row] & free[column] & free[box]
    bits = [1 << i for i in range(candidates.bit_length()) if candidates >> i & 1]
    if rng is not None:
        rng.shuffle(bits)
    rest = blanks[:at] + blanks[at + 1 :]
    for bit in bits:
        board[cell] = bit
        _flip(free, units[cell], bit)
        _search(board, rest, free, units, most, rng, found)
        _flip(free, units[cell], bit)
        if len(found) >= most:
            return


def _flip(free: list[int], units: tuple[int, int, int], bit: int) -> None:
    for unit in units:
        free[unit] ^= bit


@cache
def grids_4() -> tuple[str, ...]:
    """All 288 solved grids of 4×4."""
    return tuple(sorted(solutions("." * 16, 4, most=1000)))


def _puzzles_4(count, min_blanks, max_blanks, split, percent, rng) -> list[tuple[str, str]]:
    grids = np.array([list(map(int, grid)) for grid in grids_4()])  # (288, 16)
    ours = np.array([i for i, grid in enumerate(grids_4()) if grid_split(grid, percent) == split])
    if not len(ours):
        raise UserError(f"data.task.test_percent is {percent} and leaves no 4×4 grid to {split}: change it")
    one_hot = np.eye(4, dtype=np.float32)[grids - 1]  # (288, 16, 4)
    wanted = np.bincount(rng.integers(min_blanks, max_blanks + 1, count), minlength=17)
    puzzles: list[tuple[str, str]] = []
    for blanks in np.flatnonzero(wanted):
        kept: dict[str, str] = {}
        for _ in range(1 + int(wanted[blanks]) * _TRIES // _CHUNK):
            solved = rng.choice(ours, _CHUNK)
            empty = rng.random((_CHUNK, 16)).argsort(axis=1) < blanks  # a random set of so many cells
            given = one_hot[solved] * ~empty[:, :, None]
            # Solutions are the grids that agree with every given cell.
            agreeing = given.reshape(_CHUNK, 64) @ one_hot.reshape(-1, 64).T
            unique = (agreeing == 16 - blanks).sum(axis=1) == 1
            characters = np.where(empty, ord("."), grids[solved] + ord("0"))[unique].astype(np.uint8)
            for row, grid in zip(characters, solved[unique], strict=True):
                kept.setdefault(row.tobytes().decode(), grids_4()[grid])
            if len(kept) >= wanted[blanks]:
                break
        else:
            raise UserError(
                f"only {len(kept)} distinct 4×4 puzzles with {blanks} blanks and one solution were found for "
                f"{split}, {wanted[blanks]} are wanted: lower data.task.max_blanks or data.task.count"
            )
        puzzles += list(kept.items())[: wanted[blanks]]
    return [puzzles[i] for i in rng.permutation(count)]


def _puzzle_6(min_blanks, max_blanks, split, percent, seed, number) -> tuple[str, str]:
    rng = Random(f"{seed}-{percent}-{split}-{number}")
    blanks = rng.randint(min_blanks, max_blanks)
    for _ in range(_TRIES * 10):
        (grid,) = solutions("." * 36, 6, most=1, rng=rng)
        empty = set(rng.sample(range(36), blanks))
        puzzle = "".join("." if i in empty else digit for i, digit in enumerate(grid))
        if grid_split(grid, percent) == split and len(solutions(puzzle, 6)) == 1:
            return puzzle, grid
    raise UserError(f"no 6×6 puzzle with {blanks} blanks and one solution was found: lower data.task.max_blanks to 24")
