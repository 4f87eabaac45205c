"""Where the pairs of `backtrack_dpo` come from: the decision, its right side and its wrong one, by kind of record."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from llmhalluc.backtrack import inject_error
from llmhalluc.data.backtrack import BacktrackConverter
from llmhalluc.data.base import DatasetConverter, Ids
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.data.gsm8k import GSM8KBacktrackConverter
from llmhalluc.data.selfgen import COLUMNS, SelfgenConverter
from llmhalluc.data.sudoku import SudokuConverter, search_trace
from llmhalluc.prompts.sudoku import peers

Parts = tuple[Ids, Ids, Ids]  # what both sides share of the completion, chosen, rejected


def own_error(_: Any, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random) -> Parts | None:
    """The model's own steps from the first wrong one on; a run is counted in steps, rejected is the rest of them."""
    ids = encoded["completion_ids"]
    steps = [step for step in ([i for i in own if i != ids[-1]] for own in encoded["own"]) if step]
    if not steps:
        return None
    count = min(errors.length(rng, longest), len(steps))
    error, rest = ([i for step in part for i in step] for part in (steps[:count], steps[count:]))
    return _at_error(errors, ids, encoded["at"], error, [*rest, ids[-1]])


def gsm8k_error(
    converter: GSM8KBacktrackConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Parts | None:
    """A wrong result and as many tokens as the section draws; rejected carries it on to the last line.

    None where what follows from it makes no sense (a negative number of hens).
    """
    steps, numbers, ids = encoded["steps"], encoded["numbers"], encoded["completion_ids"]
    if not steps:
        return None
    step, length, seed = int(rng.random() * len(steps)), errors.length(rng, longest), rng.random()
    at, run = converter.error(encoded, step, length, Random(seed))
    _, whole = converter.error(encoded, step, 2 * len(ids), Random(seed))
    last = len(numbers) - 1
    if steps[step][0] < last:
        between = ids[numbers[last - 1][1] : numbers[last][0]]  # "####" among them: there once, and there at the end
        if not any(whole[i : i + len(between)] == between for i in range(len(whole))):
            return None
    if not run or whole[: len(run)] != run:
        return None
    return _at_error(errors, ids, at, errors.nest(run, longest, rng), [*whole[len(run) :], ids[-1]])


def text_error(
    converter: BacktrackConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Parts | None:
    """An error run of the `backtrack` section's source, after which the clean answer goes on as if nothing were."""
    ids = encoded["completion_ids"]
    places = errors.eligible(ids)
    if not places:
        return None
    at = places[int(rng.random() * len(places))]
    run = errors.run(ids, at, longest, rng)
    return _at_error(errors, ids, at, run, ids[at:]) if run else None


def needless_erasure(_: Any, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random) -> Parts | None:
    """A text that is right so far: chosen goes on, rejected erases a run and writes it again."""
    ids = encoded["completion_ids"]
    if len(ids) < 2:
        return None
    at = 1 + int(rng.random() * (len(ids) - 1))
    count = min(at, errors.length(rng, longest))
    return ids[:at], ids[at:], [errors.backtrack_id] * count + ids[at - count :]


def dead_end(
    converter: SudokuConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Parts | None:
    """A place of a search where the next cell allows no digit: chosen turns back, rejected breaks a rule."""
    trace, boards = _searched(converter, errors, encoded, rng)
    turns = [k for k in range(1, len(trace)) if trace[k] == errors.backtrack_id != trace[k - 1]]
    if not turns:
        return None
    k = turns[int(rng.random() * len(turns))]
    return trace[:k], trace[k:], [*_filled(converter, encoded, boards[k], rng), trace[-1]]


def open_path(
    converter: SudokuConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Parts | None:
    """A place of a search where a move is left: chosen makes it, rejected erases the last one and guesses."""
    trace, boards = _searched(converter, errors, encoded, rng)
    places = [k for k in range(1, len(trace) - 1) if boards[k] and trace[k] != errors.backtrack_id]
    if not places:
        return None
    k = places[int(rng.random() * len(places))]
    *before, last = boards[k]
    guesses = _filled(converter, encoded, before, rng, other_than=last)
    return trace[:k], trace[k:], [errors.backtrack_id, *guesses, trace[-1]]


def _at_error(errors: ErrorRuns, ids: Ids, at: int, run: Ids, carried_on: Ids) -> Parts:
    """Clean ids with an error run before position `at`, cut where the erasing begins, and what goes on instead."""
    trace, cut = inject_error(ids, at, run, errors.backtrack_id), at + len(run)
    return trace[:cut], trace[cut:], carried_on


def _searched(
    converter: SudokuConverter, errors: ErrorRuns, encoded: dict[str, Any], rng: Random
) -> tuple[Ids, list[list[int]]]:
    """A search as SFT learns it (data/sudoku.py), and before each of its tokens the digits that stand."""
    blanks = [cell for cell, digit in enumerate(encoded["puzzle"]) if not digit]
    trace: Ids = []
    boards: list[list[int]] = []
    standing: list[int] = []
    for digit in search_trace(encoded["puzzle"], encoded["answer"], rng):
        boards.append(list(standing))
        trace.append(converter.move_ids[blanks[len(standing)]][digit - 1] if digit else errors.backtrack_id)
        standing = [*standing, digit] if digit else standing[:-1]
    return [*trace, encoded["completion_ids"][-1]], [*boards, standing]


def _filled(
    converter: SudokuConverter, encoded: dict[str, Any], standing: Sequence[int], rng: Random, other_than: int = 0
) -> Ids:
    """Moves that fill the rest of the board, each allowed where one is; the first is no `other_than`.

    Without `other_than` the first breaks a rule: that of a dead end, whose allowed digits have all been tried.
    """
    size, board = converter.data.sudoku_size, list(encoded["puzzle"])
    blanks = [cell for cell, digit in enumerate(board) if not digit]
    for cell, digit in zip(blanks, standing, strict=False):
        board[cell] = digit
    moves: Ids = []
    for cell in blanks[len(standing) :]:
        taken = {board[peer] for peer in peers(size)[cell]}
        digits = [digit for digit in range(1, size + 1) if digit != other_than or moves]
        allowed = [digit for digit in digits if digit not in taken]
        if not moves and not other_than:
            allowed = [digit for digit in digits if digit in taken]
        choices = allowed or digits
        board[cell] = choices[int(rng.random() * len(choices))]
        moves.append(converter.move_ids[cell][board[cell] - 1])
    return moves


class Source(NamedTuple):
    """Records with these columns, the converter that reads them, and who draws the two kinds of pairs."""

    columns: set[str]
    converter: type[DatasetConverter]
    erase: Callable[..., Parts | None]
    keep: Callable[..., Parts | None] = needless_erasure


SOURCES = {  # the first whose columns are there; the last reads data.prompt_column and data.completion_column
    "own": Source(set(COLUMNS), SelfgenConverter, own_error),
    "sudoku": Source({"puzzle", "solution"}, SudokuConverter, dead_end, open_path),
    "gsm8k": Source({"question", "answer"}, GSM8KBacktrackConverter, gsm8k_error),
    "text": Source(set(), BacktrackConverter, text_error),
}
