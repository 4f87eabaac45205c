"""A task's own options, `data.task` and `eval.task_options`: what they may hold is said by llmhalluc/tasks."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams.mapping import accepts, check_mapping, make
from llmhalluc.hparams.sections import OWN_ERRORS, DataArguments, EvalArguments
from llmhalluc.tasks import TASKS, task_of


def task_options(data: DataArguments, name: str) -> Any:
    """Return `data.task` as the options of the task `name`, None where it has none.

    Raises UserError for options that the task does not take.
    """
    kind = TASKS[name].options
    if wrong := list(_mistakes("data.task", data.task, kind, name)):
        raise UserError(*wrong)
    return make(kind, data.task) if kind else None


def test_options(settings: EvalArguments, data: DataArguments) -> dict[str, dict[str, Any]]:
    """Return the options of each task's test; one that is none is as in `data.task`, if that is of the same task."""
    found = {}
    for name, task in TASKS.items():
        if task.test_options is None:
            continue
        options = dataclasses.asdict(make(task.test_options, settings.task_options.get(name, {})))
        trained = data if task_of(data.dataset, data.converter) == name else DataArguments()
        shared = dataclasses.asdict(task_options(trained, name))
        found[name] = {key: shared.get(key) if value is None else value for key, value in options.items()}
    return found


def fill(data: DataArguments, settings: EvalArguments) -> None:
    """Write out in both mappings the defaults of the options that were not given."""
    name = task_of(data.dataset, data.converter)
    if name is not None and TASKS[name].options is not None:
        data.task = dataclasses.asdict(task_options(data, name))
    for task, given in settings.task_options.items():
        settings.task_options[task] = dataclasses.asdict(make(TASKS[task].test_options, given))


def data_mistakes(data: Any) -> Iterator[str]:
    """Sentences about `task` in a raw `data` section.

    Of a file of own errors or of pairs the records themselves say the task, and the options are looked at then.
    """
    if not isinstance(data, dict):
        return
    given = DataArguments()
    options, dataset, converter = (data.get(key, getattr(given, key)) for key in ("task", "dataset", "converter"))
    if not isinstance(options, dict) or not isinstance(dataset, str) or not isinstance(converter, str):
        return
    name = task_of(dataset, converter)
    if name is not None:
        yield from _mistakes("data.task", options, TASKS[name].options, name)
    elif options and converter not in OWN_ERRORS:
        yield (
            f"data.task is {options}, but data.dataset {dataset} generates no task and data.converter {converter} is "
            "of none: take it out"
        )


def test_mistakes(path: str, options: Any) -> Iterator[str]:
    """Sentences about a raw `task_options`, which stands at `path`."""
    if not accepts(dict[str, dict[str, Any]], options):
        return
    known = [name for name, task in TASKS.items() if task.test_options is not None]
    for name, given in options.items():
        if name in known:
            yield from _mistakes(f"{path}.{name}", given, TASKS[name].test_options, name)
        else:
            meant = did_you_mean(f"{path}.{name}", [f"{path}.{other}" for other in known])
            yield f"{path}.{name} is no task whose test is generated{meant}"


def _mistakes(path: str, options: dict[str, Any], kind: type | None, name: str) -> Iterator[str]:
    """Sentences about the options of a task, of single keys and then of those that do not fit each other."""
    if kind is None:
        if options:
            yield f"{path} is {options}, but the task {name} has no options: take it out"
        return
    wrong = [sentence for _, sentence in check_mapping(path, options, kind)]
    yield from wrong
    if not wrong and hasattr(kind, "problems"):
        yield from make(kind, options).problems(path)
