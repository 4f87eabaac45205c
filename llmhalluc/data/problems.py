"""Problems with a checkable answer, for what the model writes itself: rollouts of GRPO, samples of run_selfgen."""

from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.base import column, encode_prompts
from llmhalluc.data.manager import load_records
from llmhalluc.data.synthetic import grid_split
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.data_args import DataArguments, refuse_evaluation_split
from llmhalluc.prompts import math, sudoku


class Problem(NamedTuple):
    """One problem. task math: `question` is its text, `answer` a solution that ends in `#### N`, or the number.

    task sudoku: `question` is the puzzle's board, `answer` the solved one. `key` names the record.
    """

    key: str
    task: str
    prompt_ids: list[int]
    question: str
    answer: str


def load_problems(data: DataArguments, tokenizer: PreTrainedTokenizerBase, held_out: bool = False) -> list[Problem]:
    """The problems of the `data` section, those whose prompt is longer than `data.max_length` left out.

    held_out: of data.eval_dataset and data.eval_split instead. Raises UserError for an evaluation split where training
    data are wanted, for a grid of the test part, and for a converter whose answers cannot be checked.
    """
    name, split = data.dataset, data.split
    if held_out:
        name, split = data.eval_dataset or data.dataset, data.eval_split or "test"
    else:
        refuse_evaluation_split(name, split)
    read = TASKS.get(data.converter)
    if read is None:
        raise UserError(
            f"data.converter is {data.converter}, whose answers cannot be checked: name one of {', '.join(TASKS)}"
        )
    records = load_records(
        replace(data, dataset=name, split=split), split, "data.eval_dataset" if held_out else "data.dataset"
    )
    found = [read(record, data, held_out) for record in records]
    prompts = encode_prompts(tokenizer, [text for _, text, _, _ in found], data.apply_chat_template)
    return [
        Problem(f"{split}-{i}", task, ids, question, answer)
        for i, ((task, _, question, answer), ids) in enumerate(zip(found, prompts, strict=True))
        if data.max_length is None or len(ids) < data.max_length
    ]


def _math(record: dict[str, Any], data: DataArguments, held_out: bool) -> tuple[str, str, str, str]:
    """(task, prompt, question, answer) of a record with the columns `question` and `answer`."""
    question, answer = (column(record, name, f"data.converter {data.converter}") for name in ("question", "answer"))
    if math.extract_answer(answer) is None and math.normalise_number(answer) is None:
        raise UserError(f"data.dataset {data.dataset} has an answer without a number (#### N): {answer[-60:]!r}")
    return "math", math.prompt_text(question), question, answer


def _sudoku(record: dict[str, Any], data: DataArguments, held_out: bool) -> tuple[str, str, str, str]:
    """(task, prompt, puzzle, solution) of a record with the columns `puzzle` and `solution`."""
    puzzle, solution = (column(record, name, f"data.converter {data.converter}") for name in ("puzzle", "solution"))
    if not held_out and grid_split(solution, data.sudoku_test_percent) == "test":
        raise UserError(
            f"data.dataset {data.dataset} has the grid {solution}, one of the {data.sudoku_test_percent}% that are for "
            "evaluation alone: remove it from the training data (data.sudoku_test_percent)"
        )
    return "sudoku", sudoku.prompt_text(puzzle), puzzle, solution


TASKS = {
    "gsm8k": _math,
    "gsm8k_backtrack": _math,
    "sudoku": _sudoku,
    "sudoku_backtrack": _sudoku,
}
