"""What a config may say: types, choices, ranges, keys that belong together, inputs that must be there."""

import difflib
import importlib.util
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.data_args import is_file_name, refuse_evaluation_split
from llmhalluc.hparams.reward_args import COMPONENTS, law5_problems

# Intervals: a square bracket includes its end, a round one does not.
RANGES = {
    "seed": "[0, 4294967295]",
    "model.token_init_noise": "[0, inf)",
    "model.lora_r": "[1, inf)",
    "model.lora_alpha": "[1, inf)",
    "model.lora_dropout": "[0, 1)",
    "data.max_samples": "[1, inf)",
    "data.max_length": "[1, inf)",
    "data.num_proc": "[1, inf)",
    "data.sudoku_count": "[1, inf)",
    "data.sudoku_min_blanks": "[1, 36]",
    "data.sudoku_max_blanks": "[1, 36]",
    "data.sudoku_test_percent": "[1, 99]",
    "backtrack.rate": "[0, inf)",
    "backtrack.min_run": "[1, inf)",
    "backtrack.max_run": "[1, inf)",
    "backtrack.mean_run": "[1, inf)",
    "backtrack.nesting": "[0, 1)",
    "backtrack.curriculum_end": "(0, 1]",
    "train.max_tokens": "[1, inf)",
    "train.learning_rate": "[0, inf)",
    "train.num_train_epochs": "(0, inf)",
    "train.per_device_train_batch_size": "[1, inf)",
    "train.per_device_eval_batch_size": "[1, inf)",
    "train.gradient_accumulation_steps": "[1, inf)",
    "train.max_length": "[1, inf)",
    "train.beta": "[0, inf)",
    "train.loss_decay": "(0, 1]",
    "train.keep_share": "[0, 1)",
    "train.num_generations": "[2, inf)",
    "train.max_completion_length": "[1, inf)",
    "train.rollout_batch_size": "[1, inf)",
    "train.temperature": "(0, inf)",
    "reward.curriculum_end": "(0, 1]",
    "reward.erasure_scale": "(0, inf)",
    "reward.verify_timeout": "(0, inf)",
    "selfgen.samples": "[1, inf)",
    "selfgen.temperature": "[0, inf)",
    "selfgen.batch_size": "[1, inf)",
    "selfgen.rollouts": "[1, inf)",
    "selfgen.value_threshold": "[0, 1)",
    "selfgen.max_rollouts": "[0, inf)",
    "selfgen.clean_share": "[0, 1)",
    "gen.max_new_tokens": "[1, inf)",
    "gen.temperature": "[0, inf)",
    "gen.top_k": "[1, inf)",
    "gen.top_p": "(0, 1]",
    "gen.min_p": "[0, 1]",
    "gen.repetition_penalty": "(0, inf)",
    "gen.max_erasures": "[0, inf)",
    "gen.backtrack_every_n": "[1, inf)",
    "eval.num_fewshot": "[0, inf)",
    "eval.limit": "[1, inf)",
    "eval.batch_size": "[1, inf)",
    "eval.sudoku_count": "[1, inf)",
    "eval.sudoku_blanks": "[1, 36]",
    "exp.parallel": "[1, inf)",
    "exp.bootstrap": "[1, inf)",
    "exp.samples_in_report": "[0, inf)",
    "hpo.n_trials": "[1, inf)",
    "hpo.startup_trials": "[1, inf)",
    "hpo.tune_share": "(0, 1)",
    "hpo.parts": "[1, inf)",
    "hpo.seed": "[0, 4294967295]",
}
# Choices of keys whose type is wider than what they take.
CHOICES = {
    "data.converter": (
        "sft",
        "backtrack",
        "dpo",
        "backtrack_dpo",
        "gsm8k",
        "gsm8k_backtrack",
        "squad",
        "sudoku",
        "sudoku_backtrack",
        "selfgen",
    ),
    "eval.sudoku_size": (4, 6),
    "gen.context": CONTEXTS,
}
# The sections of a benchmark's YAML (benchmark_args.py) that hold the keys of another section.
ALIASES = {"model_kwargs": "model", "generation": "gen", "evaluation": "eval"}
RANGES |= {f"reward.{name}_{stage}": "[0, inf)" for name in COMPONENTS for stage in ("start", "end")}
for _table in (RANGES, CHOICES):
    for _alias, _section in ALIASES.items():
        _mine = [name for name in _table if name.startswith(f"{_section}.")]
        _table |= {_alias + name.removeprefix(_section): _table[name] for name in _mine}


def key_problem(name: str, value: Any, kind: Any, table_name: str) -> str | None:
    """The sentence about one value, or None: its type, its choices, its interval."""
    if value == "???":
        return f"{name} is ???, a placeholder: give it a value"
    if not accepts(kind, value):
        return f"{name} is {value!r}, expected {describe(kind)}"
    if table_name in CHOICES and value is not None and value not in CHOICES[table_name]:
        return f"{name} is {value!r}, expected one of {', '.join(map(str, CHOICES[table_name]))}"
    if table_name in RANGES and isinstance(value, (int, float)) and not _inside(value, RANGES[table_name]):
        return f"{name} is {value}, expected a number in {RANGES[table_name]}"
    return None


def accepts(kind: Any, value: Any) -> bool:
    """Whether a plain value (of YAML or JSON) has the type; an int is a float, a bool is neither."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(arg, value) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(accepts(arg, item) for arg in args for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and (not args or accepts(args[1], item)) for key, item in value.items()
        )
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin)


def describe(kind: Any) -> str:
    """A type in words: `int or none`, `one of a, b`, `list of str`."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in sorted(args, key=lambda arg: arg is types.NoneType))
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin is list and args:
        return f"list of {describe(args[0])}"
    if origin is dict and args:
        return "dict" if args[1] is Any else f"dict of {describe(args[1])}"
    return {Any: "any", types.NoneType: "none"}.get(origin) or origin.__name__


def nearest(name: str, known: list[str]) -> str:
    """The dotted name that was meant: one much alike, the same key in another section, or the nearest."""
    section, _, leaf = name.rpartition(".")
    matcher = difflib.SequenceMatcher(b=leaf)

    def similarity(other: str) -> float:
        matcher.set_seq1(other.rpartition(".")[2])
        return matcher.ratio()

    best = max([other for other in known if other.rpartition(".")[0] == section] or known, key=similarity)
    same_key = [other for other in known if other.rpartition(".")[2] == leaf]
    return same_key[0] if same_key and similarity(best) < 0.8 else best


def together(config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sentences about keys that do not fit each other, each with the dotted names it is about."""
    backtrack, data, test = config.backtrack, config.data, config.eval
    if backtrack.min_run > backtrack.max_run:
        yield (
            ("backtrack.min_run", "backtrack.max_run"),
            f"backtrack.min_run is {backtrack.min_run}, more than backtrack.max_run {backtrack.max_run}",
        )
    if not data.sudoku_min_blanks <= data.sudoku_max_blanks <= data.sudoku_size**2:
        yield (
            ("data.sudoku_min_blanks", "data.sudoku_max_blanks", "data.sudoku_size"),
            f"data.sudoku_min_blanks is {data.sudoku_min_blanks} and data.sudoku_max_blanks is "
            f"{data.sudoku_max_blanks}, expected min <= max <= {data.sudoku_size**2}, the cells of the grid",
        )
    if test.sudoku_blanks > test.sudoku_size**2:
        yield (
            ("eval.sudoku_blanks", "eval.sudoku_size"),
            f"eval.sudoku_blanks is {test.sudoku_blanks}, more than the grid's {test.sudoku_size**2} cells",
        )
    if config.train.resume and config.train.overwrite:
        yield ("train.resume", "train.overwrite"), "train.resume and train.overwrite are both true: keep one"
    if config.train.trl.get("hub_token") is not None:
        yield ("train.hub_token",), "train.hub_token would be saved beside the results: set HF_TOKEN instead"
    yield from law5_problems(config.reward)
    try:
        refuse_evaluation_split(data.dataset, data.split)
    except UserError as error:
        yield ("data.dataset", "data.split"), str(error)
    for task, file in test.data_files.items():
        if is_file_name(data.dataset) and os.path.realpath(file) == os.path.realpath(data.dataset):
            yield (
                ("data.dataset", "eval.data_files"),
                f"data.dataset is {file}, which eval.data_files.{task} evaluates on: train on other data",
            )


def inputs(config: Any, sections: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sentences about what a program that uses these sections needs and does not find."""
    model, data, test = config.model, config.data, config.eval
    files: list[tuple[str, str]] = []
    folders: list[tuple[str, str]] = []
    if "model" in sections:
        if (model.name_or_path is None) == (model.from_config is None):
            given = "neither is" if model.name_or_path is None else "both are"
            yield (
                ("model.name_or_path", "model.from_config"),
                f"exactly one of model.name_or_path and model.from_config must be given, {given}",
            )
        names = [(f"model.{key}", getattr(model, key)) for key in ("name_or_path", "adapter", "tokenizer")]
        folders += [(key, name) for key, name in names if name and _is_folder_name(name)]
    if "data" in sections:
        names = [(f"data.{key}", getattr(data, key)) for key in ("dataset", "eval_dataset")]
        files += [(key, name) for key, name in names if name and is_file_name(name)]
    if "eval" in sections:
        for table in ("data_files", "fewshot_files"):
            files += [(f"eval.{table}.{task}", file) for task, file in getattr(test, table).items()]
        folders += [("eval.include_path", folder) for folder in test.include_path]
    for key, file in files:
        if not Path(file).expanduser().exists():
            yield (key,), f"{key} is {file}, a file that does not exist: correct the path"
    for key, folder in folders:
        if folder.startswith("package:"):
            package = folder.removeprefix("package:")
            if importlib.util.find_spec(package.partition(".")[0]) is None:
                pip_name = package.replace("_", "-")
                yield (key,), f"{key} is {folder}, which is not installed: pip install {pip_name}"
        elif not Path(folder).expanduser().is_dir():
            yield (key,), f"{key} is {folder}, a folder that does not exist: correct the path"


def _is_folder_name(name: str) -> bool:
    """Whether a model's name cannot be a hub's: `package:x`, or a path other than `name` and `org/name`."""
    return name.startswith(("package:", ".", "~", "/")) or name.endswith("/") or name.count("/") > 1


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)
