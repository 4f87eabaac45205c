"""Files, folders and packages that a program needs, looked for before anything slow begins."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmhalluc.hparams.checks import is_file_name


def missing(config: Any, sections: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield keys and a sentence about each thing that a program that uses these sections needs and does not find."""
    model, data, test = config.model, config.data, config.eval
    if "model" in sections:
        if (model.name_or_path is None) == (model.from_config is None):
            names = model.key("name_or_path"), model.key("from_config")
            given = "neither is" if model.name_or_path is None else "both are"
            yield names, f"exactly one of {names[0]} and {names[1]} must be given, {given}"
        for key in ("name_or_path", "adapter", "tokenizer"):
            name = getattr(model, key) or ""
            is_path = name.startswith(("package:", ".", "~", "/")) or name.endswith("/") or name.count("/") > 1
            if is_path:  # a hub's name is `name` or `org/name`
                yield from _absent_folder(model.key(key), name)
    if "data" in sections:
        for key in ("dataset", "eval_dataset"):
            name = getattr(data, key)
            if name and is_file_name(name):
                yield from _absent_file(data.key(key), name)
    if "eval" in sections:
        for table in ("data_files", "fewshot_files"):
            for task, file in getattr(test, table).items():
                yield from _absent_file(f"{test.key(table)}.{task}", file)
        for folder in test.include_path:
            yield from _absent_folder(test.key("include_path"), folder)


def _absent_file(key: str, file: str) -> Iterator[tuple[tuple[str, ...], str]]:
    if not Path(file).expanduser().exists():
        yield (key,), f"{key} is {file}, a file that does not exist: correct the path"


def _absent_folder(key: str, folder: str) -> Iterator[tuple[tuple[str, ...], str]]:
    package = folder.removeprefix("package:")
    if package == folder:
        if not Path(folder).expanduser().is_dir():
            yield (key,), f"{key} is {folder}, a folder that does not exist: correct the path"
    elif importlib.util.find_spec(package.partition(".")[0]) is None:
        yield (key,), f"{key} is {folder}, which is not installed: pip install {package.replace('_', '-')}"
