"""The `data` section: records, columns, converter; and the refusal of evaluation splits (law 8)."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from llmhalluc import tasks
from llmhalluc.extras.constant import EVAL_SPLITS
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.option import Section, option

# Converters that know no task; of these, the ones that train on the errors that run_selfgen found.
GENERIC_CONVERTERS = ("sft", "backtrack", "dpo", "backtrack_dpo", "selfgen")
OWN_ERRORS = ("selfgen", "backtrack_dpo")
CONVERTERS = (*GENERIC_CONVERTERS, *tasks.CONVERTERS)
# Suffixes that make a name a local file, whether or not it is there.
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow")


@dataclass
class DataArguments(Section):
    """Which records train, and which converter turns them into traces."""

    section: ClassVar[str] = "data"
    dataset: str = option(
        tasks.DEFAULT_DATASET,
        f"hub name, local .json/.jsonl/.csv/.parquet file, or a generator: {', '.join(tasks.GENERATORS)}",
    )
    task: dict[str, Any] = option({}, "options of the task that dataset generates, or else that converter is of")
    subset: str | None = option(None, "configuration of a hub data set, such as main")
    split: str = option("train", "split that trains; the name of an evaluation split is refused")
    eval_dataset: str | None = option(None, "records for the evaluation loss during training; never corrupted")
    eval_split: str | None = option(None, "split of eval_dataset (or of dataset) for the evaluation loss")
    converter: str = option("sft", "what turns records into traces (docs/data.md)", choices=CONVERTERS)
    prompt_column: str = option("prompt", "column of the prompt (sft, backtrack)")
    completion_column: str = option("completion", "column of the answer (sft, backtrack)")
    template: Literal["none", "math", "qa"] = option("none", "prompt template of llmhalluc/prompts")
    apply_chat_template: bool = option(False, "wrap the prompt with the tokenizer's chat template")
    max_samples: int | None = option(None, "use the first so many records", bounds="[1, inf)")
    max_length: int | None = option(
        None, "longest trace in tokens; longer ones are left out and counted", bounds="[1, inf)"
    )
    num_proc: int | None = option(None, "processes that tokenise", bounds="[1, inf)")


def is_file_name(dataset: str) -> bool:
    """Whether a data set's name means a local file: a data file's suffix, `./`, `~`, `/`, or many folders."""
    return dataset.endswith(FILE_SUFFIXES) or dataset.startswith((".", "~", "/")) or dataset.count("/") > 1


def refuse_evaluation_split(dataset: str, split: str) -> None:
    """Raise UserError when training data names an evaluation split: `test[:10]`, `my_test.jsonl`.

    The words of the split's name and of a local file's stem count: `train+validation` is refused, `latest` is
    not. So does a file's folder, unless the stem says train. What a task bars is refused however it is
    spelt.
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
