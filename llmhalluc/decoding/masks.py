"""What a decoding step may look at: every column up to the row's own position, within a layer's window.

Shapes: B rows decoding, W columns that the longest of them fills.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from llmhalluc.extras.errors import UserError


def mask_maker(model: PreTrainedModel) -> Callable[[torch.Tensor, int, bool], torch.Tensor | dict | None]:
    """A function (positions_B, highest position, all the same) -> the attention mask of a step.

    A row sees the columns up to its own position; in a layer with a sliding window only the newest of them.
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
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(f"model.attn_implementation is {config._attn_implementation}, decoding takes sdpa or eager")
    eager, dtype = config._attn_implementation == "eager", model.dtype
    lowest = torch.finfo(dtype).min

    def mask(positions_B, highest, same, kind):
        if same and (kind == "full_attention" or highest < window):
            return None
        columns_W = torch.arange(highest + 1, device=positions_B.device)
        seen_BW = columns_W <= positions_B[:, None]
        if kind == "sliding_attention":
            seen_BW &= columns_W > positions_B[:, None] - window
        seen = seen_BW[:, None, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest) if eager else seen

    if len(kinds) == 1:
        return lambda positions_B, highest, same: mask(positions_B, highest, same, kinds[0])
    return lambda positions_B, highest, same: {kind: mask(positions_B, highest, same, kind) for kind in kinds}
