"""Draws to batches: the order in which traces are drawn, and how they are padded or packed.

Shapes: B rows of a batch, T positions of a row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from llmhalluc.backtrack import IGNORE

FIELDS = ("input_ids", "labels", "position_ids", "visible_until")


class Draw(NamedTuple):
    """A key of TraceDataset: which record, in which epoch, after which share of training (0..1)."""

    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    progress: float


class DrawSampler(Sampler[Draw]):
    """Every record once an epoch, in an order of (seed, epoch); `total` counts the draws of all the training.

    It keeps no state but the epoch, so that skipping what was drawn resumes it exactly.
    """

    def __init__(self, size: int, seed: int, total: int):
        self.size, self.seed, self.total, self.epoch = size, seed, total, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Draw]:
        first, epoch = self.epoch * self.size, self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        for i, index in enumerate(order.tolist()):
            yield Draw(epoch, index, min(1.0, (first + i) / self.total))


class TraceCollator:
    """Traces to the tensors of FIELDS, (B, T) int64 each.

    Padded, a trace is a row: `[a b], [c d e]` -> `a b 0 / c d e`. Packed, a row of `max_length` (or of the
    longest trace) holds several, none of which sees another: `visible_until` ends with its own trace, and
    `position_ids` start anew. Padding has label IGNORE, and each position of it sees itself only.
    """

    def __init__(self, pad_id: int, packing: bool = False, max_length: int | None = None):
        self.pad_id, self.packing, self.max_length = pad_id, packing, max_length

    def __call__(self, traces: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(trace["input_ids"]) for trace in traces]
        if self.packing:
            rows = first_fit_decreasing(lengths, max([*lengths, self.max_length or 0]))
        else:
            rows = [[i] for i in range(len(traces))]
        width = max(sum(lengths[i] for i in row) for row in rows)
        batch = []
        for row in rows:
            columns: dict[str, list[int]] = {name: [] for name in FIELDS}
            for i in row:
                start = len(columns["input_ids"])
                for name in FIELDS[:3]:
                    columns[name] += traces[i][name]
                until = traces[i]["visible_until"]
                columns["visible_until"] += [start + end for end in until] if start else until
            used = len(columns["input_ids"])
            columns["input_ids"] += [self.pad_id] * (width - used)
            columns["labels"] += [IGNORE] * (width - used)
            columns["position_ids"] += [0] * (width - used)
            columns["visible_until"] += range(used + 1, width + 1)
            batch.append(columns)
        return {name: torch.tensor([columns[name] for columns in batch]) for name in FIELDS}


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of each row: the longest first, each into the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((row for row, left in enumerate(room) if left >= lengths[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(capacity)
        rows[at].append(i)
        room[at] -= lengths[i]
    return rows
