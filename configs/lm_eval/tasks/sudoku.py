"""Sudoku from grids that training never sees; text and verdict are those of llmhalluc/prompts/sudoku.py."""

import datasets

from llmhalluc.data.synthetic import sudoku_records
from llmhalluc.prompts.sudoku import answer_text, check, prompt_text


def puzzles(
    sudoku_count: int = 400, sudoku_size: int = 4, sudoku_blanks: int = 11, sudoku_seed: int = 1,
    sudoku_test_percent: int = 20, **_metadata,
) -> dict[str, datasets.Dataset]:  # fmt: skip
    """The data set: columns `puzzle`, `solution` and `split`, all of the test part."""
    records = sudoku_records(
        sudoku_count, sudoku_size, sudoku_blanks, sudoku_blanks, "test", sudoku_test_percent, sudoku_seed
    )
    return {"test": datasets.Dataset.from_list(records)}


def prompt(doc: dict) -> str:
    """The given cells."""
    return prompt_text(doc["puzzle"])


def answer(doc: dict) -> str:
    """The blanks, row by row."""
    return answer_text(doc["puzzle"], doc["solution"])


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the surviving moves solve the puzzle."""
    return {"solved": float(check(doc["puzzle"], results[0]))}
