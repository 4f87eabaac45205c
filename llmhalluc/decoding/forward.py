"""The model's side of the loop: prompts go into the cache, every row is fed its next input, its logits come out.

Shapes: B rows decoding, T new tokens, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from llmhalluc.decoding.cache import SlotCache
from llmhalluc.decoding.masks import mask_maker
from llmhalluc.decoding.rows import Row

PREFILL_TOKENS = 4096  # most prompt tokens, padding included, of one forward


class Forward:
    """A model and its cache, whose first slots hold the rows in their order."""

    def __init__(self, model: PreTrainedModel, slots: int, fixed: bool = False):
        self.model, self.masks = model, mask_maker(model)
        self.cache = SlotCache(slots, fixed)

    def prefill(self, first: int, rows: list[Row]) -> None:
        """Fill the slots from `first` on with all but the last token of each prompt, which the next step feeds.

        Prompts are padded on the right, where causality hides the padding, and need neither a mask nor logits.
        """
        done, prompts = 0, [row.prompt_ids for row in rows]
        for row in rows:
            row.forward_passes = -(-(len(row.prompt_ids) - 1) // PREFILL_TOKENS)
        while done < len(prompts):
            longest = len(prompts[done]) - 1  # they come sorted, the longest first
            count = max(1, min(len(prompts) - done, PREFILL_TOKENS // max(1, longest)))
            group = prompts[done : done + count]
            for start in range(0, longest, PREFILL_TOKENS):
                ids = [prompt[start : min(len(prompt) - 1, start + PREFILL_TOKENS)] for prompt in group]
                self.fill(first + done, start, [row + [0] * (len(ids[0]) - len(row)) for row in ids])
            done += count

    def fill(self, first: int, start: int, ids: list[list[int]]) -> None:
        """Feed tokens (B, T) at positions from `start` on, into the slots from `first` on."""
        ids_BT = torch.tensor(ids, device=self.model.device)
        self.cache.prefill(first, len(ids), start, ids_BT.shape[1])
        positions = torch.arange(start, start + ids_BT.shape[1], device=self.model.device).expand_as(ids_BT)
        self.model.base_model(input_ids=ids_BT, position_ids=positions, past_key_values=self.cache, use_cache=True)

    def step(self, rows: list[Row]) -> torch.Tensor:
        """Feed each row its next input: logits (B, V), float32 at least."""
        for row in rows:
            row.forward_passes += 1
        logits_BV = self.logits([row.feed for row in rows])
        return logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()

    def logits(self, feeds: list[tuple[int, int]]) -> torch.Tensor:
        """Logits (B, V) of the next tokens after (input id, position) of each row."""
        ids_B, positions_B = torch.tensor(feeds, device=self.model.device).unbind(1)
        highest = max(position for _, position in feeds)
        same = all(position == highest for _, position in feeds)
        self.cache.step(positions_B, highest + 1)
        return self.model(
            input_ids=ids_B[:, None], position_ids=positions_B[:, None],
            attention_mask=self.masks(positions_B, highest, same), past_key_values=self.cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
