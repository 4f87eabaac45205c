"""From the `data` section to traces: read records, encode them once, draw a trace at each access."""

import logging
import re
from array import array
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import datasets
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import labels, layout
from llmhalluc.data.backtrack import BacktrackConverter
from llmhalluc.data.base import DatasetConverter
from llmhalluc.data.collator import Draw
from llmhalluc.data.dpo import BacktrackDPOConverter, DPOConverter
from llmhalluc.data.gsm8k import GSM8KBacktrackConverter, GSM8KConverter
from llmhalluc.data.selfgen import SelfgenConverter
from llmhalluc.data.sft import SFTConverter
from llmhalluc.data.squad import SquadConverter
from llmhalluc.data.sudoku import SudokuBacktrackConverter, SudokuConverter
from llmhalluc.data.synthetic import sudoku_records
from llmhalluc.extras.constant import EVAL_SPLITS
from llmhalluc.extras.errors import UserError, did_you_mean, one_line
from llmhalluc.hparams.backtrack_args import BacktrackArguments
from llmhalluc.hparams.data_args import DataArguments, is_file_name

logger = logging.getLogger(__name__)
CONVERTERS: dict[str, type[DatasetConverter]] = {
    "sft": SFTConverter,
    "backtrack": BacktrackConverter,
    "dpo": DPOConverter,
    "backtrack_dpo": BacktrackDPOConverter,
    "gsm8k": GSM8KConverter,
    "gsm8k_backtrack": GSM8KBacktrackConverter,
    "squad": SquadConverter,
    "sudoku": SudokuConverter,
    "sudoku_backtrack": SudokuBacktrackConverter,
    "selfgen": SelfgenConverter,
}
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_BATCH = 1000  # records that are encoded at a time
_REDRAWS = 8  # of a trace longer than data.max_length, before the clean one is taken


class TraceDataset(Dataset):
    """Map-style data set of traces; a key is a `Draw`, or an int for epoch 0 and the end of a curriculum.

    A trace depends on the seed and its key alone. Items are dicts of lists of int, one entry a row of the layout:
    `input_ids`, `labels`, `position_ids`, `visible_until` (llmhalluc/backtrack.py).
    """

    def __init__(
        self,
        converter: DatasetConverter,
        encoded: Sequence[dict[str, Any]],
        seed: int,
        max_length: int | None = None,
    ):
        self.converter, self.seed, self.max_length = converter, seed, max_length
        fitting = [item for item in encoded if self._fits(item["prompt_ids"], item["completion_ids"])]
        self.encoded = [{name: _pack(value) for name, value in item.items()} for item in fitting]
        self.left_out = len(encoded) - len(fitting)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: Draw | int) -> dict[str, list[int]]:
        draw = key if isinstance(key, tuple) else Draw(0, key, 1.0)
        args, backtrack_id = self.converter.backtrack, self.converter.backtrack_id
        prompt_ids, completion_ids = self.trace(*draw)
        rows = layout(prompt_ids, completion_ids, backtrack_id, args.context)
        targets = labels(prompt_ids, completion_ids, backtrack_id, args.error_labels)
        return {
            "input_ids": rows.input_ids,
            "labels": targets,
            "position_ids": rows.position_ids,
            "visible_until": rows.visible_until,
        }

    def trace(self, epoch: int, index: int, progress: float) -> tuple[list[int], list[int]]:
        """Prompt and completion of one draw; one that stays too long after several tries is clean."""
        rng = Random(f"{self.seed}-{epoch}-{index}")
        encoded = {
            name: value.tolist() if isinstance(value, array) else value for name, value in self.encoded[index].items()
        }
        for _ in range(_REDRAWS):
            prompt_ids, completion_ids = self.converter.draw(encoded, rng, progress)
            if self._fits(prompt_ids, completion_ids):
                return prompt_ids, completion_ids
        return encoded["prompt_ids"], encoded["completion_ids"]

    def _fits(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> bool:
        return self.max_length is None or len(prompt_ids) + len(completion_ids) <= self.max_length

    def mean_length(self, n: int = 1000) -> float:
        """Mean tokens of a trace over n draws (at most one a record) spread evenly over the training."""
        n = min(n, len(self))
        return sum(sum(map(len, self.trace(0, i, i / n))) for i in range(n)) / n


def load_dataset(
    data: DataArguments,
    backtrack: BacktrackArguments,
    tokenizer: PreTrainedTokenizerBase,
    backtrack_id: int | None,
    seed: int,
) -> TraceDataset:
    """The training traces of the `data` section.

    Raises UserError for an evaluation split, for prompts that are also in the evaluation data (law 8), for a
    converter that finds nothing to do, and for what `load_records` refuses.
    """
    converter = _converter(data, backtrack, tokenizer, backtrack_id, training=True)
    traces = _traces(converter, load_records(data, data.split), seed)
    if traces.encoded and not any(item.get("steps", True) for item in traces.encoded):
        raise UserError(
            f"data.dataset {data.dataset} has no calculator marks (<<1+1=2>>), which data.converter "
            f"{data.converter} makes its errors from: name data that has, or data.converter=backtrack"
        )
    if held_out := load_eval_dataset(data, backtrack, tokenizer, backtrack_id, seed):
        prompts = {tuple(item["prompt_ids"]) for item in held_out.encoded}
        if shared := sum(tuple(item["prompt_ids"]) in prompts for item in traces.encoded):
            raise UserError(
                f"{shared} of {len(traces)} prompts of data.dataset {data.dataset} are also in the evaluation data "
                f"{data.eval_dataset or data.dataset}: take them out of one of the two"
            )
    return traces


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
    converter = _converter(held_out, backtrack, tokenizer, backtrack_id, training=False)
    return _traces(converter, load_records(held_out, held_out.split, "data.eval_dataset"), seed)


def load_records(data: DataArguments, split: str, key: str = "data.dataset") -> datasets.Dataset:
    """The first `data.max_samples` records of a split (`train`, `train[:100]`) of `data.dataset`.

    A local file is one split, by whatever name; local data need no network. Raises UserError, naming `key`, for
    a missing or unreadable file or split, and for an empty one.
    """
    name, base = data.dataset, re.match(r"\w*", split)[0] or "train"
    try:
        if name == "sudoku":
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


def _generated(data: DataArguments, split: str) -> datasets.Dataset:
    part = "test" if split in EVAL_SPLITS else split
    if part not in ("train", "test"):
        raise UserError(f"data.split is {split}, but the generator sudoku has train and test: name one of them")
    return datasets.Dataset.from_list(
        sudoku_records(
            data.sudoku_count, data.sudoku_size, data.sudoku_min_blanks, data.sudoku_max_blanks,
            part, data.sudoku_test_percent, data.sudoku_seed,
        )
    )  # fmt: skip


def _converter(data, backtrack, tokenizer, backtrack_id, training: bool) -> DatasetConverter:
    if data.converter not in CONVERTERS:
        meant = did_you_mean(data.converter, CONVERTERS)
        raise UserError(f"data.converter is {data.converter}, which is unknown{meant}")
    return CONVERTERS[data.converter](tokenizer, backtrack_id, data, backtrack, training)


def _traces(converter: DatasetConverter, records: datasets.Dataset, seed: int) -> TraceDataset:
    """Encode the records, in `data.num_proc` processes; log how many are longer than `data.max_length`."""
    data, starts = converter.data, range(0, len(records), _BATCH)
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


_worker: DatasetConverter  # of a process of the pool: sent once, not with each batch


def _set_worker(converter: DatasetConverter) -> None:
    global _worker
    _worker = converter


def _encode(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _worker.encode_batch(records)


def _pack(value: Any) -> Any:
    """Lists of ids as arrays of 4 bytes an id: Python's ints take ten times as much."""
    return array("i", value) if isinstance(value, list) and value and isinstance(value[0], int) else value
