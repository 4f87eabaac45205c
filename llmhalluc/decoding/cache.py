"""A KV cache of slots: a token at position p lies in column p of its row, so erasing is overwriting.

Shapes: S slots, B of them in use (always the first), H key heads, C columns, D head size, T new tokens.
"""

import functools

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 64  # columns are added in steps of this, and of an eighth of what is there


class SlotCache(Cache):
    """Each row has its own length; a row is fed anywhere up to its end, and what lies beyond is never looked at.

    `prefill` and `step` say where the next forward writes; `select` keeps, orders and frees slots.
    """

    def __init__(self, slots: int):
        self.slots, self.columns = slots, 0
        self.start = 0  # first column of the next forward
        self.rows: slice | torch.Tensor = slice(0, 0)
        self.positions: torch.Tensor | None = None  # of a step: the column of each row
        super().__init__(layer_class_to_replicate=functools.partial(_SlotLayer, self))

    def prefill(self, first: int, count: int, start: int, length: int) -> None:
        """The next forward writes `length` tokens into columns from `start` on of slots `first`, …, contiguous."""
        self.rows, self.positions, self.start = slice(first, first + count), None, start
        self._reserve(start + length)

    def step(self, positions_B: torch.Tensor, width: int) -> None:
        """The next forward writes one token a row at `positions_B` (int64) and reads columns up to `width`."""
        self.rows, self.positions = torch.arange(len(positions_B), device=positions_B.device), positions_B
        self.start, self.width = width - 1, width
        self._reserve(width)

    def select(self, kept: list[int]) -> None:
        """Move the slots `kept` to the front, in order."""
        for to, source in enumerate(kept):
            if to != source:
                for layer in self.layers:
                    layer.keys[to], layer.values[to] = layer.keys[source], layer.values[source]

    def _reserve(self, width: int) -> None:
        if width > self.columns:
            self.columns = max(width, self.columns + max(GROWTH, self.columns // 8))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.start + query_length, 0


class _SlotLayer(CacheLayerMixin):
    """One layer's (S, H, C, D) keys and values."""

    is_sliding = False

    def __init__(self, cache: SlotCache):
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_zeros(self.cache.slots, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(self.cache.slots, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) states where the cache points, answer (B, H, columns to read, D)."""
        cache = self.cache
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[2] < cache.columns:
            self.keys, self.values = _widened(self.keys, cache.columns), _widened(self.values, cache.columns)
        if cache.positions is None:
            end = cache.start + key_states.shape[2]
            self.keys[cache.rows, :, cache.start : end] = key_states
            self.values[cache.rows, :, cache.start : end] = value_states
            return self.keys[cache.rows, :, :end], self.values[cache.rows, :, :end]
        self.keys[cache.rows, :, cache.positions] = key_states[:, :, 0]
        self.values[cache.rows, :, cache.positions] = value_states[:, :, 0]
        n = len(cache.positions)
        return self.keys[:n, :, : cache.width], self.values[:n, :, : cache.width]

    def get_seq_length(self) -> int:
        return self.cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.start + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _widened(states_SHCD: torch.Tensor, columns: int) -> torch.Tensor:
    """The same states in front of columns of zeros (what a masked key holds must be finite)."""
    wider = states_SHCD.new_zeros(*states_SHCD.shape[:2], columns, states_SHCD.shape[3])
    wider[:, :, : states_SHCD.shape[2]] = states_SHCD
    return wider
