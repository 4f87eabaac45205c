"""The commands of a cell: the config of each is written when its turn comes, and beside it what the command leaves.

A cell's folder holds config.yaml (what the cell is), train.yaml and train/ (its model), eval.yaml and eval/. With
rounds it holds round_1/{selfgen.yaml, selfgen/} and so on, each round but the last with a train.yaml and a train/ of
its own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmhalluc.exp.chain import ORIGIN
from llmhalluc.exp.grid import Cell
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.keys import flat
from llmhalluc.extras.run_folder import NOT_IDENTITY, write_text
from llmhalluc.hparams import yaml_files
from llmhalluc.hparams.sections import ExpArguments
from llmhalluc.train.base import RECORD
from llmhalluc.train.finished import final_model

# The program of each section, as the interpreter is called with it; the path of its YAML follows.
PROGRAMS = {
    "selfgen": ["-m", "llmhalluc.run_selfgen", "--config"],
    "train": ["-m", "llmhalluc.run_train", "--config"],
    "eval": ["-m", "llmhalluc.run_eval", "--config"],
}
TRACES, GENERATED = "traces.jsonl", "selfgen.json"  # of run_selfgen; the latter is written last
# Where a trained model is loaded from is the cell's business; how, is the config's.
LOADING = ("dtype", "attn_implementation", "device", "trust_remote_code")
# `data` of a round's training: it trains on all of its traces, and they have no held-out part.
ALL_TRACES = {"split": "train", "subset": None, "max_samples": None, "eval_dataset": None, "eval_split": None}
Command = tuple[str, list[str]]  # the section whose program it is, and its words


def write_configs(todo: list[Cell], folders: dict[str, Path]) -> list[str]:
    """Write what each cell is; return a sentence for each that is evaluated again because its evaluation has changed.

    Keys that decide nothing about a training do not bind it (law 13): an evaluation of other values moves aside, and
    the training stays. Raises UserError where a cell of that name was begun with other values of its training.
    """
    wrong, again, made = [], dict[Path, list[str]](), {}
    for cell in todo:
        path = folders[cell.name] / "config.yaml"
        chain = {"line": list(cell.line), "rounds": cell.rounds, "problems": cell.problems}
        made[path] = cell.raw | ({"chain": chain} if cell.line or cell.rounds else {})
        now = dict(flat(made[path]))
        before = dict(flat(yaml_files.load_raw(path))) if path.exists() else now
        keys = [key for key in sorted(before | now) if before.get(key, ...) != now.get(key, ...)]
        if binding := [key for key in keys if binds_training(cell, key)]:
            wrong.append(
                f"{path.parent} was begun with other values of {', '.join(binding)}: choose another exp.output_dir, or "
                "set exp.overwrite=true, which deletes what was trained there"
            )
        elif changed := [key for key in keys if key not in NOT_IDENTITY]:
            again[path.parent] = changed
    if wrong:
        raise UserError(*wrong)
    for path, config in made.items():
        _write(path, config)
    return [_move_evaluation(folder, keys) for folder, keys in again.items() if (folder / "eval").exists()]


def binds_training(cell: Cell, key: str) -> bool:
    """Whether a key may change how the training of a cell comes out; `gen` does where a training samples."""
    section = key.partition(".")[0]
    samples = cell.stage == "grpo" or cell.rounds > 0
    return key not in NOT_IDENTITY and section != "eval" and (section != "gen" or samples)


def _move_evaluation(folder: Path, keys: list[str]) -> str:
    """Move the evaluation of a cell aside; return the sentence that says so."""
    number = 1
    while (aside := folder / f"eval_before_{number}").exists():
        number += 1
    (folder / "eval").rename(aside)
    return f"{folder.name} is evaluated again, with other values of {', '.join(keys)}; its old evaluation is in {aside}"


def trained(folder: Path) -> bool:
    """Whether a cell, or a round of one, has its model."""
    return (folder / "train" / RECORD).exists()


def finished(folder: Path) -> bool:
    """Whether a cell has been trained and evaluated."""
    return (folder / "eval" / "results.json").exists()


def commands(cell: Cell, folders: dict[str, Path], exp: ExpArguments) -> Iterator[Command]:
    """Yield what is left of a cell; a command is made when the one before it has ended.

    Raises UserError where a command ended well and left nothing.
    """
    folder = folders[cell.name]
    if not trained(folder):
        yield from _trainings(cell, folder, final_model(folders[cell.line[0]] / "train") if cell.line else None)
    sections = {key: value for key, value in cell.raw.items() if key != "train"}
    model = _loaded(cell, final_model(folder / "train"))
    yield _command("eval", folder, sections | {"model": model}, exp.python)
    if not finished(folder):
        raise UserError(f"the evaluation left no results.json in {folder / 'eval'}")


def _trainings(cell: Cell, folder: Path, start: Path | None) -> Iterator[Command]:
    """The rounds of a cell, and its last training: each from the model of the one before, at first from `start`."""
    traces = None
    for number in range(1, cell.rounds + 1):
        part = folder / f"round_{number}"
        generated = part / "selfgen" / GENERATED
        traces = part / "selfgen" / TRACES
        if not generated.exists():
            yield _command("selfgen", part, _generation(cell, start))
            if not generated.exists():
                raise UserError(f"the generation left no {GENERATED} in {generated.parent}")
        if number < cell.rounds:
            if not trained(part):
                yield _command("train", part, _training(cell, start, traces))
            start = final_model(part / "train")
    yield _command("train", folder, _training(cell, start, traces))


def _generation(cell: Cell, start: Path | None) -> dict[str, Any]:
    """The config that generates errors: the cell's, with the problems in the place of their traces."""
    model = cell.raw.get("model") if start is None else _loaded(cell, start)
    sections = {key: value for key, value in cell.raw.items() if key not in ("train", "eval")}
    return sections | {"model": model, "data": (cell.raw.get("data") or {}) | {"converter": cell.problems}}


def _training(cell: Cell, start: Path | None, traces: Path | None) -> dict[str, Any]:
    """The config that trains: from the folder `start`, on the file `traces`, where there are such."""
    config = dict(cell.raw)
    if start is not None:
        kept = {key: value for key, value in (config.get("model") or {}).items() if key not in ORIGIN}
        config["model"] = kept | {"name_or_path": str(start)}
    if traces is not None:
        config["data"] = (config.get("data") or {}) | ALL_TRACES | {"dataset": str(traces)}
    return config


def _loaded(cell: Cell, folder: Path) -> dict[str, Any]:
    """The model section that loads a folder, not to train it."""
    model = {key: value for key, value in (cell.raw.get("model") or {}).items() if key in LOADING}
    return model | {"name_or_path": str(folder)}


def _command(section: str, folder: Path, config: dict[str, Any], python: str | None = None) -> Command:
    """Write `folder/section.yaml`, whose output goes to `folder/section`, and return the command that reads it."""
    output: dict[str, Any] = {"output_dir": str(folder / section), "overwrite": False}
    if section == "train":
        output["resume"] = True
    path = folder / f"{section}.yaml"
    _write(path, config | {section: (config.get(section) or {}) | output})
    return section, [python or sys.executable, *PROGRAMS[section], str(path)]


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml_files.to_yaml(config))
