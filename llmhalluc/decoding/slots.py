"""A torch model and its cache of slots: a token at position p lies in column p of its slot, so erasing is overwriting.

Shapes: S slots, B of them in use (always the first), H key heads, C columns, D head size, T new tokens, V vocabulary,
W columns that the longest sequence fills.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from llmhalluc.decoding.sequence import Output
from llmhalluc.extras.errors import UserError
from llmhalluc.models.transformers_patches import attention_kernel

PREFILL_TOKENS = 4096  # most prompt tokens, padding included, of one forward
GROWTH = 64  # columns are added in steps of this, and of an eighth of what is there; a fixed cache doubles


class TorchSlots:
    """The cache of a TorchBackend's model."""

    def __init__(self, backend: Any, fixed: bool = False):
        self.backend, self.model, self.masks = backend, backend.model, mask_maker(backend.model)
        self.cache = SlotCache(fixed)

    def reserve(self, slots: int) -> None:
        self.cache.reserve(slots, 0)

    def copy(self, sources: list[int], targets: list[int], columns: int) -> None:
        for layer in self.cache.layers:
            for states in (layer.keys, layer.values):
                states[targets, :, :columns] = states[sources, :, :columns]

    def fill(self, first: int, start: int, ids: list[list[int]]) -> None:
        """Prompts are padded on the right, where causality hides the padding, and need neither a mask nor logits."""
        done = 0
        self.backend.forward_tokens += sum(map(len, ids))
        while done < len(ids):
            longest = len(ids[done])  # they come sorted, the longest first
            group = ids[done : done + max(1, PREFILL_TOKENS // max(1, longest))]
            for at in range(0, longest, PREFILL_TOKENS):
                pieces = [row[at : at + PREFILL_TOKENS] for row in group]
                ids_BT = torch.tensor([row + [0] * (len(pieces[0]) - len(row)) for row in pieces])
                self._forward(first + done, start + at, ids_BT.to(self.model.device))
            done += len(group)

    def _forward(self, first: int, start: int, ids_BT: torch.Tensor) -> None:
        self.cache.prefill(first, len(ids_BT), start, ids_BT.shape[1])
        positions = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        self.model.base_model(input_ids=ids_BT, position_ids=positions, past_key_values=self.cache, use_cache=True)

    def step(self, feeds: list[tuple[int, int]], layers: tuple[str, ...]) -> Output:
        self.backend.forward_tokens += len(feeds)
        if layers:
            from llmhalluc.decoding.hidden import hidden_states  # few ask

            with hidden_states(self.model, layers) as hidden_BTH:
                logits_BV = self.logits(feeds)
            hidden = {name: states_BTH[:, -1] for name, states_BTH in hidden_BTH.items()}
        else:
            logits_BV, hidden = self.logits(feeds), {}
        return Output(logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float(), hidden)

    def logits(self, feeds: list[tuple[int, int]]) -> torch.Tensor:
        """Return logits (B, V) of the next tokens after (input id, position) of each sequence."""
        ids_B, positions_B = torch.tensor(feeds, device=self.model.device).unbind(1)
        positions = [position for _, position in feeds]
        highest, lowest = max(positions), min(positions)
        self.cache.step(positions_B, highest + 1)
        return self.model(
            input_ids=ids_B[:, None], position_ids=positions_B[:, None],
            attention_mask=self.masks(positions_B, highest, highest == lowest), past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip


class SlotCache(Cache):
    """Each slot has its own length; it is fed anywhere up to its end, and what lies beyond is never looked at.

    `prefill` and `step` say where the next forward writes. In a `fixed` cache a step takes a token for every slot and
    reads every column, so that only growing changes what compiled code sees.
    """

    def __init__(self, fixed: bool = False):
        self.slots, self.columns, self.fixed = 0, 0, fixed
        self.start = 0  # first column of the next forward
        self.rows: slice | torch.Tensor = slice(0, 0)
        self.positions: torch.Tensor | None = None  # of a step: the column of each row
        self.every_B = torch.empty(0)
        super().__init__(layer_class_to_replicate=functools.partial(_SlotLayer, self))

    def prefill(self, first: int, count: int, start: int, length: int) -> None:
        """The next forward writes `length` tokens into columns from `start` on of slots `first`, …, contiguous."""
        self.rows, self.positions, self.start = slice(first, first + count), None, start
        self.reserve(first + count, start + length)

    def step(self, positions_B: torch.Tensor, width: int) -> None:
        """The next forward writes one token a row at `positions_B` (int64) and reads columns up to `width`."""
        if len(self.every_B) != len(positions_B):
            self.every_B = torch.arange(len(positions_B), device=positions_B.device)
        self.rows, self.positions = self.every_B, positions_B
        self.reserve(len(positions_B), width)
        self.width = self.columns if self.fixed else width
        self.start = self.width - 1

    def reserve(self, slots: int, columns: int) -> None:
        """Grow to hold so many, and some to spare where it has grown before."""
        if slots <= self.slots and columns <= self.columns:
            return
        if self.fixed:
            slots = max(self.slots, 1 << (slots - 1).bit_length())
            columns = max(self.columns, GROWTH << ((columns - 1) // GROWTH).bit_length() if columns else 0)
        else:
            slots = max(slots, self.slots + self.slots // 2) if slots > self.slots else self.slots
            more = self.columns + max(GROWTH, self.columns // 8)
            columns = max(columns, more) if columns > self.columns else self.columns
        self.slots, self.columns = slots, columns
        for layer in self.layers:
            layer.resize()


class _SlotLayer(DynamicLayer):
    """One layer's (S, H, C, D) keys and values."""

    def __init__(self, cache: SlotCache):
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in (key_states, value_states)
        )
        self.resize()
        self.is_initialized = True

    def resize(self) -> None:
        """The same states in front of slots and columns of zeros (what a masked key holds must be finite)."""
        for name in ("keys", "values"):
            old_SHCD = getattr(self, name)
            n_slots, n_heads, n_columns, size = old_SHCD.shape
            new_SHCD = old_SHCD.new_zeros(self.cache.slots, n_heads, self.cache.columns, size)
            new_SHCD[:n_slots, :, :n_columns] = old_SHCD
            if self.cache.fixed:  # for CUDA graphs: nothing is copied, and new ones are recorded after growing
                torch._dynamo.mark_static_address(new_SHCD, guard=False)
            setattr(self, name, new_SHCD)

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) states where the cache points, return (B, H, columns to read, D)."""
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


def mask_maker(model: PreTrainedModel) -> Callable[[torch.Tensor, int, bool], torch.Tensor | dict | None]:
    """Return a function (positions_B, highest position, all the same) -> the attention mask of a step.

    A row sees the columns up to its own position; in a layer with a sliding window only the newest of them. Raises
    UserError for a model whose layers keep more than keys and values.
    """
    config = model.config.get_text_config()
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ["full_attention"]))
    window = getattr(config, "sliding_window", None)
    if kinds == ["full_attention"] and window and not hasattr(config, "layer_types"):
        kinds = ["sliding_attention"]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"the model ({config.model_type}) has {', '.join(sorted(unknown))} layers, which keep more than keys and "
            "values: this decoding loop cannot erase in them; evaluate it with the harness's own model class hf"
        )
    kernel, dtype = attention_kernel(config), model.dtype
    if kernel not in ("sdpa", "eager"):
        raise UserError(f"model.attn_implementation is {kernel}, decoding takes sdpa or eager")
    lowest = torch.finfo(dtype).min

    def mask(positions_B, highest, same, kind):
        if same and (kind == "full_attention" or highest < window):
            return None
        columns_W = torch.arange(highest + 1, device=positions_B.device)
        seen_BW = columns_W <= positions_B[:, None]
        if kind == "sliding_attention":
            seen_BW &= columns_W > positions_B[:, None] - window
        seen = seen_BW[:, None, None]
        if kernel == "eager":
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest)
        return seen

    if len(kinds) == 1:
        return lambda positions_B, highest, same: mask(positions_B, highest, same, kinds[0])
    return lambda positions_B, highest, same: {kind: mask(positions_B, highest, same, kind) for kind in kinds}
