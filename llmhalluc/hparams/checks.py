"""What no key shows by itself: keys that do not fit each other."""

import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from llmhalluc import tasks
from llmhalluc.extras.constant import EVAL_SPLITS
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import RewardArguments

# Suffixes that make a name a local file, whether or not it is there.
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow")


def together(config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sentences about keys that do not fit each other, each with the dotted names it is about."""
    backtrack, data, test = config.backtrack, config.data, config.eval
    if backtrack.min_run > backtrack.max_run:
        yield (
            ("backtrack.min_run", "backtrack.max_run"),
            f"backtrack.min_run is {backtrack.min_run}, more than backtrack.max_run {backtrack.max_run}",
        )
    if config.train.resume and config.train.overwrite:
        yield ("train.resume", "train.overwrite"), "train.resume and train.overwrite are both true: keep one"
    if config.train.trl.get("hub_token") is not None:
        yield ("train.hub_token",), "train.hub_token would be saved beside the results: set HF_TOKEN instead"
    if config.reward != RewardArguments():
        from llmhalluc.hparams.law5 import law5_problems

        yield from law5_problems(config.reward)
    if config.techniques():
        from llmhalluc.hparams import techniques

        yield from techniques.problems(config)
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


def is_file_name(dataset: str) -> bool:
    """Whether a data set's name means a local file: a data file's suffix, `./`, `~`, `/`, or many folders."""
    return dataset.endswith(FILE_SUFFIXES) or dataset.startswith((".", "~", "/")) or dataset.count("/") > 1


def refuse_evaluation_split(dataset: str, split: str) -> None:
    """Raise UserError when training data names an evaluation split: `test[:10]`, `my_test.jsonl`.

    The words of the split's name and of a local file's stem count: `train+validation` is refused, `latest` is not. So
    does a file's folder, unless the stem says train. What a task bars is refused however it is spelt.
    """
    plain = re.sub(r"[-_ .]", "", dataset.lower())
    for name, reason in tasks.BARRED.items():
        if name in plain:
            raise UserError(f"data.dataset is {dataset}, {reason}: name data that is for training")
    words = {"data.split": re.findall("[a-z]+", split.lower()), "data.dataset": []}
    if is_file_name(dataset):
        path = PurePath(dataset.lower())
        words["data.dataset"] = re.findall("[a-z]+", path.name.split(".")[0])
        if "train" not in words["data.dataset"]:
            words["data.dataset"].append(path.parent.name)  # test/0000.parquet
    for (key, found), value in zip(words.items(), (split, dataset), strict=True):
        for word in found:
            if word in EVAL_SPLITS:
                raise UserError(f"{key} is {value}, and {word} is an evaluation split: name data that is for training")
