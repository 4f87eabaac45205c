"""Sudoku from grids that training never sees; text and verdict are those of llmhalluc/tasks/sudoku."""

from llmhalluc.eval.tasks import generated
from llmhalluc.tasks import TASKS


def puzzles(**metadata) -> dict:
    """The data set: columns `puzzle`, `solution` and `split`, all of the test part."""
    return generated("sudoku", **metadata)


def prompt(doc: dict) -> str:
    """The given cells."""
    return TASKS["sudoku"].prompt(doc)


def answer(doc: dict) -> str:
    """The blanks, row by row."""
    return TASKS["sudoku"].solution(doc)


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the surviving moves solve the puzzle."""
    return TASKS["sudoku"].metrics(results[0], doc)
