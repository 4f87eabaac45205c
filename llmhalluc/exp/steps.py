"""The steps of a cell: the config of each is written when its turn comes, and beside it what the step leaves.

A cell's folder holds config.yaml (what the cell is), train.yaml and train/ (its model), eval.yaml and eval/. With
rounds it holds round_1/{selfgen.yaml, selfgen/} and so on, each round but the last with a train.yaml and a train/ of
its own.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmhalluc.exp.chain import BROUGHT
from llmhalluc.exp.grid import Cell, flat
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams import parser
from llmhalluc.hparams.exp_args import ExpArguments
from llmhalluc.train.base import RECORD, final_model

# What the interpreter of a step is called with; the path of its YAML follows.
COMMANDS = {
    "selfgen": ["-m", "llmhalluc.run_selfgen", "--config"],
    "train": ["-m", "llmhalluc.run_train", "--config"],
    "eval": ["-m", "llmhalluc.run_eval", "--config"],
}
TRACES, GENERATED = "traces.jsonl", "selfgen.json"  # of run_selfgen; the latter is written last
# Where a trained model is loaded from is the cell's business; how, is the config's.
LOADING = ("dtype", "attn_implementation", "device", "trust_remote_code")
# A round trains on all of its traces, and they have no held-out part.
OF_ITS_OWN = {"split": "train", "subset": None, "max_samples": None, "eval_dataset": None, "eval_split": None}


def write_configs(todo: list[Cell], folders: dict[str, Path]) -> None:
    """Write what each cell is; UserError where one of that name was begun with another config."""
    wrong, made = [], {}
    for cell in todo:
        path = folders[cell.name] / "config.yaml"
        chain = {"line": list(cell.line), "rounds": cell.rounds, "problems": cell.problems}
        made[path] = cell.raw | ({"chain": chain} if cell.line or cell.rounds else {})
        now = dict(flat(made[path]))
        before = dict(flat(parser.load_raw(path))) if path.exists() else now
        if keys := [key for key in sorted(before | now) if before.get(key, ...) != now.get(key, ...)]:
            wrong.append(
                f"{path.parent} was begun with other values of {', '.join(keys)}: "
                "choose another exp.output_dir or set exp.overwrite=true"
            )
    if wrong:
        raise UserError(*wrong)
    for path, config in made.items():
        _write(path, config)


def trained(folder: Path) -> bool:
    """Whether a cell, or a round of one, has its model."""
    return (folder / "train" / RECORD).exists()


def finished(folder: Path) -> bool:
    """Whether a cell has been trained and evaluated."""
    return (folder / "eval" / "results.json").exists()


def steps(cell: Cell, folders: dict[str, Path], exp: ExpArguments) -> Iterator[tuple[str, list[str]]]:
    """Name and command of what is left to do for a cell; the next is asked for when the last one succeeded.

    Raises UserError when a step left nothing behind.
    """
    folder = folders[cell.name]
    if not trained(folder):
        start = final_model(folders[cell.line[0]] / "train") if cell.line else None
        for number in range(1, cell.rounds + 1):
            part = folder / f"round_{number}"
            if not (part / "selfgen" / GENERATED).exists():
                yield _step("selfgen", part, _generation(cell, start))
                if not (part / "selfgen" / GENERATED).exists():
                    raise UserError(f"the generation left no {GENERATED} in {part / 'gen'}")
            if number < cell.rounds:
                if not trained(part):
                    yield _step("train", part, _training(cell, start, part / "selfgen" / TRACES))
                start = final_model(part / "train")
        traces = folder / f"round_{cell.rounds}" / "selfgen" / TRACES if cell.rounds else None
        yield _step("train", folder, _training(cell, start, traces))
    sections = {key: value for key, value in cell.raw.items() if key != "train"}
    model = _loaded(cell, final_model(folder / "train"))
    yield _step("eval", folder, sections | {"model": model}, exp.python)
    if not finished(folder):
        raise UserError(f"the evaluation left no results.json in {folder / 'eval'}")


def _generation(cell: Cell, start: Path | None) -> dict[str, Any]:
    """The config that generates errors: the cell's, with the problems in the place of their traces."""
    model = cell.raw.get("model") if start is None else _loaded(cell, start)
    sections = {key: value for key, value in cell.raw.items() if key not in ("train", "eval")}
    return sections | {"model": model, "data": (cell.raw.get("data") or {}) | {"converter": cell.problems}}


def _training(cell: Cell, start: Path | None, traces: Path | None) -> dict[str, Any]:
    """The config that trains: from the folder `start`, on the file `traces`, where there are such."""
    config = dict(cell.raw)
    if start is not None:
        kept = {key: value for key, value in (config.get("model") or {}).items() if key not in BROUGHT}
        config["model"] = kept | {"name_or_path": str(start)}
    if traces is not None:
        config["data"] = (config.get("data") or {}) | OF_ITS_OWN | {"dataset": str(traces)}
    return config


def _loaded(cell: Cell, folder: Path) -> dict[str, Any]:
    """The model section that loads a folder, not to train it."""
    model = {key: value for key, value in (cell.raw.get("model") or {}).items() if key in LOADING}
    return model | {"name_or_path": str(folder)}


def _step(name: str, folder: Path, config: dict[str, Any], python: str | None = None) -> tuple[str, list[str]]:
    """Write `folder/name.yaml`, whose section of that name sends its output to `folder/name`; its name and command."""
    output: dict[str, Any] = {"output_dir": str(folder / name), "overwrite": False}
    if name == "train":
        output["resume"] = True
    path = folder / f"{name}.yaml"
    _write(path, config | {name: (config.get(name) or {}) | output})
    return name, [python or sys.executable, *COMMANDS[name], str(path)]


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(parser.to_yaml(config), encoding="utf-8")
    os.replace(temporary, path)
