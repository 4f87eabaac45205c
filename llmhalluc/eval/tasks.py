"""From the names in the `eval` section to lm-eval task objects, with local files in the place of hub data."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from llmhalluc.data.manager import READERS
from llmhalluc.eval.lm_eval_patches import task_config
from llmhalluc.extras.constant import LM_EVAL_TASKS
from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams.sections import EvalArguments
from llmhalluc.tasks import TASKS


def load_tasks(settings: EvalArguments, options: dict[str, dict[str, Any]]) -> tuple[TaskManager, list[Task | Group]]:
    """The tasks of `settings.tasks`, built once for all variants, and the index that knows them.

    `options` are those of our tasks whose test is generated (hparams/task_args.py). Raises UserError for an unknown
    task or none, an unreadable data file, or few-shot examples from nowhere.
    """
    if not settings.tasks:
        raise UserError(f"{settings.key('tasks')} is empty: name at least one task")
    for table in ("data_files", "fewshot_files"):
        for name in getattr(settings, table).keys() - set(settings.tasks):
            among = f"{settings.key('tasks')}: {', '.join(settings.tasks)}"
            raise UserError(f"{settings.key(table)} names {name}, which is not among {among}")
    metadata = {f"{name}_{key}": value for name, given in options.items() for key, value in given.items()}
    manager = _manager(settings, metadata)
    built = []
    for name in settings.tasks:
        replaced = name in settings.data_files or name in settings.fewshot_files
        tasks = manager.load([_with_local_files(manager, name, settings) if replaced else name])
        groups = [group for group in tasks.get("groups", {}).values() if group.name == name]
        built += groups or tasks["tasks"].values()
    return manager, built


def generated(name: str, **metadata: Any) -> dict[str, Dataset]:
    """The test of a task of ours, generated: a data set for `custom_dataset` of its YAML.

    Its options stand in the metadata as `NAME_count` and so on; those that are missing have their defaults.
    """
    kind = TASKS[name].test_options
    given = {
        field.name: metadata[f"{name}_{field.name}"] for field in fields(kind) if f"{name}_{field.name}" in metadata
    }
    return {"test": Dataset.from_list(TASKS[name].generate_test(kind(**given)))}


def require_columns(records: Dataset, task: str, *columns: str) -> Dataset:
    """`records`, if it has these columns; else UserError. For the process_docs of a task."""
    for column in columns:
        if column not in records.column_names:
            raise UserError(
                f"the records of task {task} have no column {column} (they have {', '.join(records.column_names)}): "
                "name a file that has it in eval.data_files"
            )
    return records


def _manager(settings: EvalArguments, metadata: dict[str, Any]) -> TaskManager:
    """A task index that knows every task of `settings`; the harness's own tasks are read (8 s) only if needed."""
    paths: list[str | Path] = [LM_EVAL_TASKS, *settings.include_path]
    for defaults in (False, True):
        manager = TaskManager(include_path=paths, include_defaults=defaults, metadata=metadata)
        unknown = [name for name in settings.tasks if name not in manager.task_index and not Path(name).is_file()]
        if not unknown:
            return manager
    meant = {name: did_you_mean(name, manager.all_tasks, "`python -m llmhalluc.eval ls tasks`") for name in unknown}
    raise UserError(*(f"{settings.key('tasks')} names {name}, which is unknown{meant[name]}" for name in unknown))


def _with_local_files(manager: TaskManager, name: str, settings: EvalArguments) -> dict[str, Any]:
    """The task's own configuration with its data set, its few-shot examples, or both read from local files."""
    entry = manager.task_index.get(name)
    path = entry.yaml_path if entry else Path(name)
    task = task_config(path)
    if "task" not in task or not isinstance(task["task"], str) or "class" in task:
        raise UserError(
            f"{settings.key('tasks')} names {name}, a group or a Python class: local files replace the data of one task"
        )
    fewshot = {**(task.get("fewshot_config") or {})}
    if name in settings.data_files:
        file = _data_file(f"{settings.key('data_files')}.{name}", settings.data_files[name])
        split = task.get("test_split") or task["validation_split"]
        task |= {
            "dataset_path": READERS[file.suffix], "dataset_name": None, "custom_dataset": None,
            "dataset_kwargs": {"data_files": {split: str(file)}}, "training_split": None, "fewshot_split": None,
        }  # fmt: skip
        fewshot["split"] = None
    if name in settings.fewshot_files:
        file = _data_file(f"{settings.key('fewshot_files')}.{name}", settings.fewshot_files[name])
        records = load_dataset(READERS[file.suffix], data_files=str(file), split="train")
        process = task.get("process_docs")
        fewshot |= {"split": None, "samples": list(process(records) if process else records)}
        if len(fewshot["samples"]) < (settings.num_fewshot or 0):
            raise UserError(
                f"{settings.key('num_fewshot')} is {settings.num_fewshot}, but {settings.key('fewshot_files')}.{name} "
                f"({file}) has only {len(fewshot['samples'])} records: lower it or name a longer file"
            )
    shots = settings.num_fewshot if settings.num_fewshot is not None else task.get("num_fewshot") or 0
    if shots and not fewshot.get("samples") and not (fewshot.get("split") or task.get("fewshot_split")):
        raise UserError(
            f"task {name} wants {shots} few-shot examples and {settings.key('data_files')} replaces the data set they "
            f"come from: name a file for them in {settings.key('fewshot_files')}.{name}, or set "
            f"{settings.key('num_fewshot')}=0"
        )
    return task | {"fewshot_config": fewshot or None}


def _data_file(key: str, name: str) -> Path:
    file = Path(name).expanduser()
    if file.suffix not in READERS or not file.is_file():
        what = "does not exist" if file.suffix in READERS else "is of an unknown kind"
        raise UserError(f"{key} is {name}, which {what}: name a {', '.join(READERS)} file")
    return file
