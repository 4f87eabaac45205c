"""The tasks by name; a task's module is loaded when something of it is first used."""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from llmhalluc.tasks.base import Record, Task


@dataclass(frozen=True)
class Entry:
    """A task by its module, whose TASK has the attributes and methods of `Task`; the rest is known without loading it.

    converters: names of `data.converter`, the clean one first (the task's name, and that with `_backtrack`, where none
    are given). tokenizers: names of `model.tokenizer`. evaluations: lm-eval tasks (the task's name). generates: whether
    the task's name is a `data.dataset`. checks: whether answers can be checked, which GRPO and own errors need. barred:
    data sets that never train, in lower case without `-`, `_`, `.` and spaces, and why.
    """

    module: str
    converters: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()
    generates: bool = False
    checks: bool = True
    barred: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # nothing that copying or pickling asks for
            raise AttributeError(name)
        return getattr(_load(self.module), name)


@cache
def _load(module: str) -> Task:
    return import_module(f"llmhalluc.tasks.{module}").TASK


TASKS = {
    "math": Entry(
        "math.task",
        converters=("gsm8k", "gsm8k_backtrack"),
        evaluations=("gsm8k_simple", "gsm8k_cot_simple", "svamp"),
        barred={"gsmsymbolic": "made from GSM8K's test templates"},
    ),
    "sudoku": Entry("sudoku.task", tokenizers=("sudoku4", "sudoku6"), generates=True),
    "countdown": Entry("countdown", tokenizers=("countdown",), generates=True),
    "qa": Entry("qa", converters=("squad",), checks=False),
}

# What a config is about that names neither data nor an evaluation.
DEFAULT_DATASET, DEFAULT_EVALUATION = "sudoku", "gsm8k_simple"

GENERATORS = tuple(name for name, task in TASKS.items() if task.generates)
# Names of converters, of tokenizers and of lm-eval tasks -> the task they are of.
CONVERTERS: dict[str, str] = {}
TOKENIZERS: dict[str, str] = {}
EVALUATIONS: dict[str, str] = {}
ERRING_CONVERTERS: tuple[str, ...] = ()  # those that put errors in
for _name, _task in TASKS.items():
    _clean, *_erring = _task.converters or (_name, f"{_name}_backtrack")
    CONVERTERS |= dict.fromkeys((_clean, *_erring), _name)
    ERRING_CONVERTERS += tuple(_erring)
    TOKENIZERS |= dict.fromkeys(_task.tokenizers, _name)
    EVALUATIONS |= dict.fromkeys(_task.evaluations or (_name,), _name)
BARRED = {name: reason for task in TASKS.values() for name, reason in task.barred.items()}
# Converters whose records are problems with answers that can be checked.
PROBLEM_CONVERTERS = tuple(converter for converter, name in CONVERTERS.items() if TASKS[name].checks)


def task_of(dataset: str, converter: str) -> str | None:
    """Return the task that generates `data.dataset`, else the one of `data.converter`, else None."""
    return dataset if dataset in GENERATORS else CONVERTERS.get(converter)


def board_of(record: Record) -> Any:
    """Return what draws the boards of a record, `board` of the first task that has one and whose columns it has."""
    for task in TASKS.values():
        if task.can("board") and set(task.columns) <= record.keys():
            return task.board
    return None


def task_of_record(record: Record) -> str | None:
    """Return the first task that puts errors in and whose columns a record has, None where there is none."""
    for name, task in TASKS.items():
        if (task.can("search") or task.can("token_errors")) and set(task.columns) <= record.keys():
            return name
    return None
