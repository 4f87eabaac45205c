"""The traces of encoded records: one is drawn at each access, laid out as the model is to see it."""

from array import array
from collections.abc import Sequence
from random import Random
from typing import Any

from torch.utils.data import Dataset

from llmhalluc.backtrack import labels, layout
from llmhalluc.data.base import BacktrackDatasetConverter
from llmhalluc.data.collator import Draw

_REDRAWS = 8  # of a trace longer than data.max_length, before the clean one is taken


class TraceDataset(Dataset):
    """Map-style data set of traces; a key is a `Draw`, or an int for epoch 0 and the end of a curriculum.

    A trace depends on the seed and its key alone. Items are dicts of lists of int, one entry a row of the layout:
    `input_ids`, `labels`, `position_ids`, `visible_until` (llmhalluc/backtrack.py).
    """

    def __init__(
        self,
        converter: BacktrackDatasetConverter,
        encoded: Sequence[dict[str, Any]],
        seed: int,
        max_length: int | None = None,
    ):
        self.converter, self.seed, self.max_length = converter, seed, max_length
        fitting = [item for item in encoded if self._fits(item["prompt_ids"], item["completion_ids"])]
        self.encoded = [{name: pack(value) for name, value in item.items()} for item in fitting]
        self.left_out = len(encoded) - len(fitting)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: Draw | int) -> dict[str, list[int]]:
        draw = key if isinstance(key, tuple) else Draw(0, key, 1.0)
        args, backtrack_id = self.converter.backtrack, self.converter.backtrack_id
        prompt_ids, completion_ids = self.trace(*draw)
        rows = layout(prompt_ids, completion_ids, backtrack_id, args.context)
        return rows._asdict() | {"labels": labels(prompt_ids, completion_ids, backtrack_id, args.error_labels)}

    def trace(self, epoch: int, index: int, progress: float) -> tuple[list[int], list[int]]:
        """Prompt and completion of one draw; one that stays too long after several tries is clean."""
        rng = Random(f"{self.seed}-{epoch}-{index}")
        encoded = unpack(self.encoded[index])
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


def pack(value: Any) -> Any:
    """Lists of ids as arrays of 4 bytes an id: Python's ints take ten times as much."""
    return array("i", value) if isinstance(value, list) and value and isinstance(value[0], int) else value


def unpack(item: dict[str, Any]) -> dict[str, Any]:
    """A packed record with its ids as lists."""
    return {name: value.tolist() if isinstance(value, array) else value for name, value in item.items()}
