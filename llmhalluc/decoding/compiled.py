"""The forward of a step, compiled by torch: always the same shapes, on a GPU replayed as a CUDA graph.

Every slot is fed a token, those without a sequence one that nobody looks at, and the cache has columns to spare, so
that a model is compiled once for each number of slots and of columns. Shapes: B sequences, S slots, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config, mark_static_address
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import PreTrainedModel

from llmhalluc.decoding.sequence import Output
from llmhalluc.decoding.slots import SlotCache, TorchSlots
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.models.transformers_patches import compiles_whole

MOST_SIZES = 64  # numbers of (slots, columns) that one process may compile a model for; torch's own limit is 8


class CompiledSlots(TorchSlots):
    """`TorchSlots` with a fixed cache; raises UserError for a model that torch cannot compile."""

    def __init__(self, backend: Any):
        super().__init__(backend, fixed=True)
        self.compiled = _compiled(self.model, self.masks)
        self.ids_S = self.positions_S = torch.zeros(0, dtype=torch.long)

    def reserve(self, slots: int) -> None:
        super().reserve(slots)
        if len(self.ids_S) < self.cache.slots:
            size, device = self.cache.slots, self.model.device
            self.ids_S, self.positions_S = (torch.zeros(size, dtype=torch.long, device=device) for _ in range(2))
            mark_static_address(self.ids_S, guard=False)
            mark_static_address(self.positions_S, guard=False)

    def step(self, feeds: list[tuple[int, int]], layers: tuple[str, ...]) -> Output:
        if layers:
            raise UserError("gen.compile is true, but hidden states are asked for, which need hooks: set it to false")
        return super().step(feeds, ())

    def logits(self, feeds: list[tuple[int, int]]) -> torch.Tensor:
        """As `TorchSlots.logits`; a slot without a sequence writes into column 0, which its next prompt overwrites."""
        if not self.cache.layers:  # prompts of one token each: nothing was prefilled, and the cache has no tensors yet
            self._forward(0, 0, torch.tensor([[feeds[0][0]]], device=self.model.device))
        feeds_2S = torch.tensor(feeds + [(0, 0)] * (self.cache.slots - len(feeds))).T
        self.ids_S.copy_(feeds_2S[0])
        self.positions_S.copy_(feeds_2S[1])
        self.cache.step(self.positions_S, max(position for _, position in feeds) + 1)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            with config.patch(recompile_limit=MOST_SIZES):
                logits_SV = self.compiled(self.ids_S, self.cache)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = one_line(error, 300)
            raise UserError(
                f"gen.compile is true, but torch cannot compile {type(self.model).__name__} ({reason}): set it to false"
            ) from error
        return logits_SV[: len(feeds)].clone()  # logits are kept, and the next replay of a CUDA graph overwrites them


def _compiled(model: PreTrainedModel, masks: Callable) -> Callable[[torch.Tensor, SlotCache], torch.Tensor]:
    """ids (S) and the cache -> logits (S, V). A model that transformers does not compile whole may break its graph."""

    def step(ids_S: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        return model(
            input_ids=ids_S[:, None], position_ids=cache.positions[:, None],
            attention_mask=masks(cache.positions, cache.width - 1, False), past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    mode = "reduce-overhead" if model.device.type == "cuda" else None
    return torch.compile(step, dynamic=False, fullgraph=compiles_whole(model), mode=mode)
