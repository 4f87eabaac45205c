"""Sudoku: puzzles with one solution, a split by grids, traces of a depth-first search."""

from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.extras.errors import UserError
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.sudoku import generate as synthetic
from llmhalluc.tasks.sudoku import text as sudoku
from llmhalluc.tasks.sudoku.generate import grid_split, grids_4, solutions, sudoku_records
from llmhalluc.tasks.sudoku.search import search_trace
from tests.data.toy import SUDOKU, converter

PINNED = ["1324423134122143", "3142241343211234", "3421213412434312", "4123324123141432", "4213312413422431",
          "4321213434121243"]  # fmt: skip


def brute_force(puzzle: str) -> list[str]:
    """Solutions of a 4×4 puzzle: every way to fill the blanks, one check a board."""
    found = []
    for digits in product("1234", repeat=puzzle.count(".")):
        rest = iter(digits)
        board = "".join(next(rest) if given == "." else given for given in puzzle)
        if not sudoku.conflicts(board):
            found.append(board)
    return found


def test_there_are_288_grids():
    assert len(set(grids_4())) == 288
    assert all(not sudoku.conflicts(grid) for grid in grids_4())


@settings(max_examples=25, deadline=None)
@given(grid=st.sampled_from(grids_4()), empty=st.sets(st.integers(0, 15), max_size=6))
def test_the_solver_finds_every_solution(grid, empty):
    puzzle = "".join("." if i in empty else digit for i, digit in enumerate(grid))
    assert sorted(solutions(puzzle, 4, most=100)) == brute_force(puzzle)
    assert solutions(puzzle, 4, most=1)[0] in brute_force(puzzle)


def test_a_puzzle_that_contradicts_itself_has_no_solution():
    assert solutions("11" + "." * 14, 4) == []
    assert solutions("12..34" + "." * 10, 4)
    assert solutions("123....4........", 4) == []


@pytest.mark.parametrize(("size", "low", "high"), [(4, 8, 11), (4, 12, 12), (6, 8, 16)])
def test_puzzles_have_one_solution_and_the_blanks_asked_for(size, low, high):
    records = sudoku_records(60, size, low, high, "train", 20, seed=3)
    assert len({record["puzzle"] for record in records}) == 60
    assert {record["puzzle"].count(".") for record in records} == set(range(low, high + 1))
    for record in records:
        assert solutions(record["puzzle"], size, most=2) == [record["solution"]]
        assert TASKS["sudoku"].check(TASKS["sudoku"].solution(record), record).right


@pytest.mark.parametrize("size", [4, 6])
def test_law8_training_and_test_share_no_grid(size):
    count = 3000 if size == 4 else 150
    grids = {
        split: {record["solution"] for record in sudoku_records(count, size, 8, 11, split, 20, seed)}
        for seed, split in enumerate(("train", "test"))
    }
    assert not grids["train"] & grids["test"]
    assert all(grid_split(grid, 20) == split for split in grids for grid in grids[split])
    if size == 4:  # every grid is used, a fifth of them for the test
        assert len(grids["train"] | grids["test"]) == 288
        assert len(grids["test"]) == 59


def test_the_split_is_the_same_on_every_machine():
    assert [grid for grid in grids_4() if grid_split(grid, 2) == "test"] == PINNED
    assert {grid_split(grid, 0) for grid in grids_4()} == {"train"}
    assert {grid_split(grid, 100) for grid in grids_4()} == {"test"}
    for percent in range(0, 100, 10):  # a larger test part holds the smaller one
        smaller, larger = ({g for g in grids_4() if grid_split(g, p) == "test"} for p in (percent, percent + 10))
        assert smaller <= larger


def test_puzzles_depend_on_the_seed_alone(monkeypatch):
    few = sudoku_records(40, 6, 8, 12, "train", 20, seed=1)
    monkeypatch.setattr(synthetic, "_PARALLEL", 1)
    assert sudoku_records(40, 6, 8, 12, "train", 20, seed=1) == few
    assert sudoku_records(40, 6, 8, 12, "train", 20, seed=2) != few
    assert sudoku_records(40, 4, 8, 11, "train", 20, 1) == sudoku_records(40, 4, 8, 11, "train", 20, 1)
    assert sudoku_records(40, 4, 8, 11, "train", 20, 1) != sudoku_records(40, 4, 8, 11, "train", 20, 2)


def test_too_much_asked_for_is_refused():
    with pytest.raises(UserError, match=r"only 0 distinct 4×4 puzzles with 13 blanks .* lower data.task.max_blanks"):
        sudoku_records(1, 4, 13, 13, "train", 20, seed=0)
    with pytest.raises(UserError, match="change it"):
        sudoku_records(1, 4, 8, 8, "test", 0, seed=0)


def slow_trace(puzzle: str, rng: Random) -> list[int]:
    """The same search on a board of text, one look at all peers a step."""
    size = int(len(puzzle) ** 0.5)
    board, trace, blanks = list(puzzle), [], [i for i, digit in enumerate(puzzle) if digit == "."]
    untried: list[list[int]] = []
    at = 0
    while at < len(blanks):
        if at == len(untried):
            held = {board[j] for j in sudoku.peers(size)[blanks[at]]}
            untried.append([d for d in range(1, size + 1) if str(d) not in held])
        if untried[at]:
            digit = untried[at].pop(int(rng.random() * len(untried[at])))
            board[blanks[at]] = str(digit)
            trace.append(digit)
            at += 1
        else:
            untried.pop()
            at -= 1
            board[blanks[at]] = "."
            trace.append(0)
    return trace


@pytest.mark.parametrize(("size", "blanks"), [(4, 11), (6, 18)])
def test_a_trace_is_the_depth_first_search(size, blanks):
    erasures = 0
    for record in sudoku_records(60, size, 8, blanks, "train", 20, seed=0):
        puzzle = [int(digit) for digit in record["puzzle"].replace(".", "0")]
        answer = [int(s) for s, given in zip(record["solution"], record["puzzle"], strict=True) if given == "."]
        for seed in range(3):
            trace = search_trace(puzzle, answer, Random(seed))
            assert trace == slow_trace(record["puzzle"], Random(seed))
            erasures += trace.count(0)
    assert erasures > 100


def test_another_solution_is_a_dead_end_too():
    answer = grids_4()[200]
    trace = search_trace([0] * 16, [int(digit) for digit in answer], Random(0))
    written: list[int] = []
    for digit in trace:
        written.append(digit) if digit else written.pop()
    assert "".join(map(str, written)) == answer


@pytest.mark.parametrize("name", ["sudoku", "sudoku_backtrack"])
def test_law8_a_grid_of_the_test_part_does_not_train(name):
    (record,) = sudoku_records(1, 4, 8, 11, "test", 20, seed=0)
    with pytest.raises(UserError, match="evaluation alone"):
        converter(name).encode(record)
    assert converter(name, training=False).encode(record)["completion_ids"]


@pytest.mark.parametrize("name", ["sudoku", "sudoku_backtrack"])
def test_prompt_and_answer_are_the_ids_of_their_text(name):
    made, record = converter(name), SUDOKU[0]
    encoded, ids = made.encode(record), made.tokenizer
    assert encoded["prompt_ids"] == ids(sudoku.prompt_text(record["puzzle"]))["input_ids"]
    answer = sudoku.answer_text(record["puzzle"], record["solution"])
    assert encoded["completion_ids"] == [*ids(answer)["input_ids"], ids.eos_token_id]


def test_a_trace_erases_moves_that_were_possible_when_they_were_made():
    made = converter("sudoku_backtrack")
    encoded, board, moved = made.encode(SUDOKU[0]), list(SUDOKU[0]["puzzle"]), []
    for seed in range(20):
        _, ids = made.draw(encoded, Random(seed), 0.5)
        for token in ids[:-1]:
            if token == made.backtrack_id:
                board[moved.pop()] = "."
            else:
                filled = sudoku.fill("".join(board), made.tokenizer.decode([token]))
                assert filled is not None
                assert not sudoku.conflicts(filled)
                moved.append(next(i for i, digit in enumerate(filled) if digit != board[i]))
                board = list(filled)
        assert "".join(board) == SUDOKU[0]["solution"]
        board, moved = list(SUDOKU[0]["puzzle"]), []


@pytest.mark.parametrize(
    "record",
    [
        {"puzzle": "4..", "solution": "423"},
        {"puzzle": "3...1......42.1.", "solution": "4231134231242413"},
        {"puzzle": "4...1......42.1.", "solution": "4231134231242431"},
    ],
)
def test_a_record_that_is_no_puzzle_is_refused(record):
    with pytest.raises(UserError, match="not one of size 4"):
        converter("sudoku").encode(record)
