"""Problems with a checkable answer, for what the model writes itself: rollouts of GRPO, samples of run_selfgen."""

from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.data.base import column, encode_prompts
from llmhalluc.data.manager import load_records
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.checks import refuse_evaluation_split
from llmhalluc.hparams.sections import DataArguments
from llmhalluc.hparams.task_args import task_options
from llmhalluc.tasks import CONVERTERS, PROBLEM_CONVERTERS, TASKS
from llmhalluc.tasks.base import Record


class Problem(NamedTuple):
    """One problem: `key` names the record, `record` holds the columns of its task."""

    key: str
    task: str
    prompt_ids: list[int]
    record: Record


def load_problems(data: DataArguments, tokenizer: PreTrainedTokenizerBase, held_out: bool = False) -> list[Problem]:
    """The problems of the `data` section, those whose prompt is longer than `data.max_length` left out.

    held_out: of data.eval_dataset and data.eval_split instead. Raises UserError for an evaluation split where training
    data are wanted, for a record that is for evaluation alone, and for answers that cannot be checked.
    """
    name, split = data.dataset, data.split
    if held_out:
        name, split = data.eval_dataset or data.dataset, data.eval_split or "test"
    else:
        refuse_evaluation_split(name, split)
    if data.converter not in PROBLEM_CONVERTERS:
        raise UserError(
            f"data.converter is {data.converter}, whose answers cannot be checked: name one of "
            f"{', '.join(PROBLEM_CONVERTERS)}"
        )
    task = CONVERTERS[data.converter]
    options, key = task_options(data, task), "data.eval_dataset" if held_out else "data.dataset"
    records = []
    for record in load_records(replace(data, dataset=name, split=split), split, key):
        for wanted in TASKS[task].columns:
            column(record, wanted, f"data.converter {data.converter}")
        records.append(TASKS[task].read(record))
        wrong = TASKS[task].unsolvable(records[-1])
        if wrong is None and not held_out:
            wrong = TASKS[task].held_out(records[-1], options)
        if wrong is not None:
            raise UserError(f"data.dataset {data.dataset} has {wrong}")
    prompts = encode_prompts(tokenizer, [TASKS[task].prompt(record) for record in records], data.apply_chat_template)
    return [
        Problem(f"{split}-{i}", task, ids, record)
        for i, (record, ids) in enumerate(zip(records, prompts, strict=True))
        if data.max_length is None or len(ids) < data.max_length
    ]
