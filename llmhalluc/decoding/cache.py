"""A KV cache of slots: a token at position p lies in column p of its row, so erasing is overwriting.

Shapes: S slots, B of them in use (always the first), H key heads, C columns, D head size, T new tokens.
"""

import functools

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 64  # columns are added in steps of this, and of an eighth of what is there; a fixed cache doubles


class SlotCache(Cache):
    """Each row has its own length; a row is fed anywhere up to its end, and what lies beyond is never looked at.

    `prefill` and `step` say where the next forward writes; `select` keeps, orders and frees slots. In a `fixed` cache
    a step takes a token for every slot and reads every column, so that only growing changes what compiled code sees.
    """

    def __init__(self, slots: int, fixed: bool = False):
        self.slots, self.columns, self.fixed = slots, 0, fixed
        self.start = 0  # first column of the next forward
        self.rows: slice | torch.Tensor = slice(0, 0)
        self.positions: torch.Tensor | None = None  # of a step: the column of each row
        self.every_B = torch.empty(0)
        super().__init__(layer_class_to_replicate=functools.partial(_SlotLayer, self))

    def prefill(self, first: int, count: int, start: int, length: int) -> None:
        """The next forward writes `length` tokens into columns from `start` on of slots `first`, …, contiguous."""
        self.rows, self.positions, self.start = slice(first, first + count), None, start
        self._reserve(start + length)

    def step(self, positions_B: torch.Tensor, width: int) -> None:
        """The next forward writes one token a row at `positions_B` (int64) and reads columns up to `width`."""
        if len(self.every_B) != len(positions_B):
            self.every_B = torch.arange(len(positions_B), device=positions_B.device)
        self.rows, self.positions = self.every_B, positions_B
        self._reserve(width)
        self.width = self.columns if self.fixed else width
        self.start = self.width - 1

    def select(self, kept: list[int]) -> None:
        """Move the slots `kept` to the front, in order."""
        for to, source in enumerate(kept):
            if to != source:
                for layer in self.layers:
                    layer.keys[to], layer.values[to] = layer.keys[source], layer.values[source]

    def _reserve(self, width: int) -> None:
        if width <= self.columns:
            return
        if self.fixed:
            self.columns = GROWTH << ((width - 1) // GROWTH).bit_length()
        else:
            self.columns = max(width, self.columns + max(GROWTH, self.columns // 8))
        for layer in self.layers:
            layer.widen(self.columns)

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
        self.keys, self.values = (
            states.new_zeros(self.cache.slots, states.shape[1], 0, states.shape[3])
            for states in (key_states, value_states)
        )
        self.widen(self.cache.columns)
        self.is_initialized = True

    def widen(self, columns: int) -> None:
        """The same states in front of columns of zeros (what a masked key holds must be finite)."""
        for name in ("keys", "values"):
            old_SHCD = getattr(self, name)
            new_SHCD = old_SHCD.new_zeros(*old_SHCD.shape[:2], columns, old_SHCD.shape[3])
            new_SHCD[:, :, : old_SHCD.shape[2]] = old_SHCD
            if self.cache.fixed:  # for CUDA graphs: nothing is copied, and new ones are recorded after growing
                torch._dynamo.mark_static_address(new_SHCD, guard=False)
            setattr(self, name, new_SHCD)

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) states where the cache points, answer (B, H, columns to read, D)."""
        cache = self.cache
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
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
