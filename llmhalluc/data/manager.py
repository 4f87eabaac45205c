"""From the `data` section to traces: read records, encode them once, draw a trace at each access."""

import logging
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmhalluc.data.base import BacktrackDatasetConverter
from llmhalluc.data.traces import TraceDataset
from llmhalluc.extras.constant import EVAL_SPLITS
from llmhalluc.extras.errors import UserError, did_you_mean, one_line
from llmhalluc.hparams.checks import is_file_name
from llmhalluc.hparams.sections import CONVERTERS, BacktrackArguments, DataArguments
from llmhalluc.hparams.task_args import task_options
from llmhalluc.tasks import ERRING_CONVERTERS, GENERATORS, TASKS

logger = logging.getLogger(__name__)
# The converters that know no task, by module and class: a run imports the one that it uses.
GENERIC = {
    "sft": ("backtrack", "SFTConverter"),
    "backtrack": ("backtrack", "BacktrackConverter"),
    "dpo": ("dpo", "DPOConverter"),
    "backtrack_dpo": ("pairs", "BacktrackDPOConverter"),
    "selfgen": ("selfgen", "SelfgenConverter"),
    "rejections": ("rejections", "RejectionConverter"),
}
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_BATCH = 1000  # records that are encoded at a time


def load_datasets(
    data: DataArguments,
    backtrack: BacktrackArguments,
    tokenizer: PreTrainedTokenizerBase,
    backtrack_id: int | None,
    seed: int,
) -> tuple[TraceDataset, TraceDataset | None]:
    """Return the training traces of the `data` section, and those for the evaluation loss where there are such.

    Raises UserError for an evaluation split, for prompts that are also in the evaluation data (law 8), for a
    converter that finds nothing to do, and for what `load_records` refuses.
    """
    traces = _traces(data, backtrack, tokenizer, backtrack_id, seed, training=True)
    traces.converter.check(traces.encoded)
    held_out = load_eval_dataset(data, backtrack, tokenizer, backtrack_id, seed)
    if held_out is not None:
        prompts = {tuple(item["prompt_ids"]) for item in held_out.encoded}
        if shared := sum(tuple(item["prompt_ids"]) in prompts for item in traces.encoded):
            raise UserError(
                f"{shared} of {len(traces)} prompts of data.dataset {data.dataset} are also in the evaluation data "
                f"{data.eval_dataset or data.dataset}: take them out of one of the two"
            )
    return traces, held_out


def load_eval_dataset(
    data: DataArguments,
    backtrack: BacktrackArguments,
    tokenizer: PreTrainedTokenizerBase,
    backtrack_id: int | None,
    seed: int,
) -> TraceDataset | None:
    """The clean traces for the evaluation loss; None without `data.eval_dataset` and `data.eval_split`."""
    if data.eval_dataset is None and data.eval_split is None:
        return None
    held_out = replace(data, dataset=data.eval_dataset or data.dataset, split=data.eval_split or "test")
    return _traces(held_out, backtrack, tokenizer, backtrack_id, seed, training=False)


def load_records(data: DataArguments, split: str, key: str = "data.dataset") -> datasets.Dataset:
    """The first `data.max_samples` records of a split (`train`, `train[:100]`) of `data.dataset`.

    A local file is one split, by whatever name; local data need no network. Raises UserError, naming `key`, for
    a missing or unreadable file or split, and for an empty one.
    """
    name, base = data.dataset, re.match(r"\w*", split)[0] or "train"
    try:
        if name in GENERATORS:
            records = _generated(data, base)
            (piece,) = datasets.ReadInstruction.from_spec(split).to_absolute({base: len(records)})
            records = records.select(range(piece.from_ or 0, len(records) if piece.to is None else piece.to))
        elif is_file_name(name) and not (path := Path(name).expanduser()).is_dir():
            if path.suffix not in READERS or not path.is_file():
                what = f"is none of {', '.join(READERS)}" if path.is_file() else "does not exist"
                raise UserError(f"{key} is the file {name}, which {what}: correct the path")
            files = {base: str(path)}
            records = datasets.load_dataset(READERS[path.suffix], data_files=files, split=split)
        else:
            records = datasets.load_dataset(str(Path(name).expanduser()), data.subset, split=split)
    except (StopIteration, ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        if not isinstance(error, StopIteration) and "no data" not in str(error):  # how an empty file shows
            reason = one_line(error.__cause__ or error)
            raise UserError(f"{key} is {name}, whose split {split} cannot be read: {reason}") from error
        records = []
    if not len(records):
        raise UserError(f"{key} is {name}, whose split {split} holds no records: name one that does")
    return records.select(range(min(len(records), data.max_samples or len(records))))


def converter_class(name: str) -> type[BacktrackDatasetConverter]:
    """Return the class of a `data.converter`; a converter of a task finds its task by that name."""
    if name in GENERIC:
        module, kind = GENERIC[name]
    else:
        module, kind = "task", "TaskBacktrackConverter" if name in ERRING_CONVERTERS else "TaskConverter"
    return getattr(import_module(f"llmhalluc.data.{module}"), kind)


def _generated(data: DataArguments, split: str) -> datasets.Dataset:
    part = "test" if split in EVAL_SPLITS else split
    if part not in ("train", "test"):
        raise UserError(f"data.split is {split}, but the generator {data.dataset} has train and test: name one of them")
    options = task_options(data, data.dataset)
    return datasets.Dataset.from_list(TASKS[data.dataset].generate(options, part))


def _traces(data: DataArguments, backtrack, tokenizer, backtrack_id, seed: int, training: bool) -> TraceDataset:
    """Encode the records, in `data.num_proc` processes; log how many are longer than `data.max_length`."""
    if data.converter not in CONVERTERS:
        meant = did_you_mean(data.converter, CONVERTERS)
        raise UserError(f"data.converter is {data.converter}, which is unknown{meant}")
    converter = converter_class(data.converter)(tokenizer, backtrack_id, data, backtrack, training)
    records = load_records(data, data.split, "data.dataset" if training else "data.eval_dataset")
    starts = range(0, len(records), _BATCH)
    batches = (records.select(range(i, min(i + _BATCH, len(records)))).to_list() for i in starts)
    bar = partial(tqdm, total=len(starts), desc="Encoding", disable=None)
    if (data.num_proc or 1) > 1:
        with ProcessPoolExecutor(data.num_proc, initializer=_set_worker, initargs=(converter,)) as pool:
            encoded = [item for batch in bar(pool.map(_encode, batches)) for item in batch]
    else:
        encoded = [item for batch in bar(map(converter.encode_batch, batches)) for item in batch]
    traces = TraceDataset(converter, encoded, seed, data.max_length)
    if traces.left_out:
        logger.warning(
            "%d of %d records of %s are longer than data.max_length=%d tokens and are left out",
            traces.left_out, len(records), data.dataset, data.max_length,
        )  # fmt: skip
    return traces


_worker: BacktrackDatasetConverter  # of a process of the pool: sent once, not with each batch


def _set_worker(converter: BacktrackDatasetConverter) -> None:
    global _worker
    _worker = converter


def _encode(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _worker.encode_batch(records)
