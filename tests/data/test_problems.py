"""Problems: keys, prompts and answers of each task, and what is refused (law 8)."""

import json

import pytest

from llmhalluc.data.problems import Problem, load_problems
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import CONVERTERS, DataArguments
from llmhalluc.prompts import math
from llmhalluc.tasks import PROBLEM_CONVERTERS, TASKS
from llmhalluc.tasks.sudoku import text as sudoku
from llmhalluc.tasks.sudoku.generate import grid_split
from tests.tiny import tiny_tokenizer

SOLVED = "1234341221434321"
WORKED = "3 * 4 = <<3*4=12>>12.\n#### 1,012"


def math_data(tmp_path, *answers: str, name: str = "train.jsonl", **options) -> DataArguments:
    """A file of one question for each answer."""
    lines = [json.dumps({"question": f"cat {i} ? ", "answer": answer}) for i, answer in enumerate(answers)]
    (tmp_path / name).write_text("\n".join(lines))
    return DataArguments(dataset=str(tmp_path / name), converter="gsm8k", **options)


def test_a_math_problem_is_question_prompt_and_solution(tmp_path):
    tokenizer = tiny_tokenizer()
    found = load_problems(math_data(tmp_path, WORKED, "12.50"), tokenizer)
    assert [problem.key for problem in found] == ["train-0", "train-1"]
    assert [(problem.task, problem.record) for problem in found] == [
        ("math", {"question": "cat 0 ? ", "answer": WORKED}), ("math", {"question": "cat 1 ? ", "answer": "12.50"})
    ]  # fmt: skip
    assert found[0].prompt_ids == tokenizer(math.prompt_text("cat 0 ?")).input_ids
    for problem in found:
        text = "so #### 1012" if problem.record["answer"] == WORKED else "#### 12.5"
        assert TASKS["math"].check(text, problem.record).right


def test_a_sudoku_problem_is_puzzle_and_solution():
    tokenizer = sudoku.build_tokenizer(4)
    data = DataArguments(converter="sudoku", task={"count": 20})
    for problem in load_problems(data, tokenizer):
        assert problem.task == "sudoku" and grid_split(problem.record["solution"], 20) == "train"
        assert tokenizer.decode(problem.prompt_ids) == sudoku.prompt_text(problem.record["puzzle"])
        assert TASKS["sudoku"].check(TASKS["sudoku"].solution(problem.record), problem.record).right


def test_law8_held_out_problems_are_of_other_grids():
    tokenizer = sudoku.build_tokenizer(4)
    data = DataArguments(converter="sudoku_backtrack", task={"count": 20}, eval_split="test[:5]")
    held_out = load_problems(data, tokenizer, held_out=True)
    assert [problem.key for problem in held_out] == [f"test[:5]-{i}" for i in range(5)]
    assert all(grid_split(problem.record["solution"], 20) == "test" for problem in held_out)


def test_a_prompt_as_long_as_the_limit_leaves_no_room_for_an_answer(tmp_path):
    data = math_data(tmp_path, WORKED, "12")
    whole = load_problems(data, tiny_tokenizer())
    assert len({len(problem.prompt_ids) for problem in whole}) == 1
    for length, n in ((len(whole[0].prompt_ids), 0), (len(whole[0].prompt_ids) + 1, 2)):
        data.max_length = length
        assert len(load_problems(data, tiny_tokenizer())) == n


def test_converters_without_a_checkable_answer_are_refused(tmp_path):
    assert set(PROBLEM_CONVERTERS) <= set(CONVERTERS)
    data = math_data(tmp_path, WORKED)
    data.converter = "squad"
    with pytest.raises(UserError, match="data.converter is squad, whose answers cannot be checked"):
        load_problems(data, tiny_tokenizer())


def test_an_answer_without_a_number_is_refused(tmp_path):
    with pytest.raises(UserError, match="an answer that is neither a number nor a formula"):
        load_problems(math_data(tmp_path, "I do not know."), tiny_tokenizer())


def test_law8_evaluation_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="evaluation split"):
        load_problems(math_data(tmp_path, WORKED, name="test.jsonl"), tiny_tokenizer())
    with pytest.raises(UserError, match="evaluation split"):
        load_problems(DataArguments(converter="sudoku", split="test"), sudoku.build_tokenizer(4))
    grids = (line for line in open_grids() if grid_split(line, 20) == "test")
    solution = next(grids)
    record = {"puzzle": "." * 8 + solution[8:], "solution": solution}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    data = DataArguments(dataset=str(tmp_path / "mine.jsonl"), converter="sudoku")
    with pytest.raises(UserError, match="evaluation alone"):
        load_problems(data, sudoku.build_tokenizer(4))


def open_grids():
    """Solved grids: the digits of one renamed in every way."""
    from itertools import permutations

    return ("".join("1234"[order.index(digit)] for digit in SOLVED) for order in permutations("1234"))


def test_the_columns_are_those_of_the_reward():
    assert Problem._fields == ("key", "task", "prompt_ids", "record")
