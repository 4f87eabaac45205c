"""A context applied inside a model's forward: rows that a BACKTRACK hides are left out of attention.

B batch, T rows (emitted tokens) of the longest trace, padding included.
"""

import inspect

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel

from llmhalluc.backtrack import layout
from llmhalluc.extras.errors import UserError
from llmhalluc.models.transformers_patches import attention_kernel, is_recurrent

# Layers whose attention takes our mask; the windows of the last two are checked against the text.
MASKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def apply_context(model: PreTrainedModel, context: str, backtrack_id: int | None) -> None:
    """Make every later forward of the causal LM (in PEFT or not) see what `context` shows.

    A batch with `visible_until` (B, T), and `position_ids` of the same layout, is masked by it. Any other
    batch of ids that holds a BACKTRACK is laid out here, unless it comes with a cache or with a 4D mask. The
    hook sits on the decoder, through which every loss, adapter and trainer goes. A second call replaces the
    first. Raises UserError as `check_context`.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_context(model, context)
    decoder = model.base_model
    if not hasattr(decoder, "backtrack_context"):
        decoder.register_forward_pre_hook(_feed_layout, with_kwargs=True)
    decoder.backtrack_context = (context, backtrack_id)


def check_context(model: PreTrainedModel, context: str, length: int | None = None) -> None:
    """Raise UserError, with the reason, when the model cannot hide rows of a text of `length` tokens."""
    check_architecture(type(model), model.config, context, length)


def check_architecture(
    model_class: type[PreTrainedModel] | None, config: PreTrainedConfig, context: str, length: int | None = None
) -> None:
    """`check_context` before there are weights; None is a class that only a model's own code knows."""
    if context == "soft":
        return
    config = config.get_text_config()
    window = attention_window(config)
    if others := sorted(_layer_types(config) - MASKABLE_LAYERS):
        reason = f"has {', '.join(others)} layers, which mix rows without a mask"
    elif model_class is not None and is_recurrent(model_class):
        reason = "carries a recurrent state, from which no row can be taken back"
    elif getattr(config, "alibi", False) or (model_class is not None and not takes_positions(model_class)):
        reason = "takes no position_ids, so that no token can take the place of an erased one"
    elif length is not None and window is not None and length > window:
        reason = f"attends to windows of {window} tokens, shorter than the text of {length}"
    else:
        return
    raise UserError(
        f"backtrack.context is {context!r}, but the model ({config.model_type}) {reason}: "
        "use soft, or a model with full attention"
    )


def attention_window(config: PreTrainedConfig) -> int | None:
    """The smallest attention window of the model's layers in tokens, None where all see everything."""
    layers = _layer_types(config)
    names = [] if layers else ["sliding_window", "attention_chunk_size", "window_size"]
    names += ["sliding_window"] if "sliding_attention" in layers else []
    names += ["attention_chunk_size"] if "chunked_attention" in layers else []
    windows = [getattr(config, name, None) for name in names]
    return min(filter(None, windows), default=None)


def visible_mask(visible_until: torch.Tensor) -> torch.Tensor:
    """(B, T) -> bool (B, 1, T, T): key j is seen by query i when `j <= i < visible_until[j]`."""
    rows = torch.arange(visible_until.shape[1], device=visible_until.device)
    return ((rows <= rows[:, None]) & (rows[:, None] < visible_until[:, None]))[:, None]


def visible_block_mask(visible_until: torch.Tensor) -> BlockMask:
    """The same for flex_attention: (B, T) -> BlockMask (B, 1, T, T)."""
    (n_batch, n_rows), device = visible_until.shape, visible_until.device

    def sees(b, h, q, k):
        return (k <= q) & (q < visible_until[b, k])

    # Compiled, the mask is never held in full, which long rows need.
    return create_block_mask(sees, n_batch, None, n_rows, n_rows, device=device, _compile=device.type == "cuda")


def takes_positions(model_class: type[PreTrainedModel]) -> bool:
    """Return whether a row's position can be said, rather than counted."""
    return "position_ids" in inspect.signature(model_class.forward).parameters


def _layer_types(config: PreTrainedConfig) -> set[str]:
    """The kinds of layers that the config names; empty for models whose layers are all of one kind."""
    return set(getattr(config, "layer_types", None) or ())


def _feed_layout(decoder: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """The forward pre-hook: puts mask, positions and ids of the layout in place of what the caller gave."""
    if args:  # named, so that they can be replaced
        kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    visible_until = kwargs.pop("visible_until", None)
    if visible_until is None:
        visible_until = _lay_out(kwargs, *decoder.backtrack_context)
        if visible_until is None:
            return None
    n_rows = visible_until.shape[1]
    plain = torch.arange(1, n_rows + 1, device=visible_until.device).maximum(visible_until[:, :1])
    if (visible_until == plain).all():
        # Nothing is hidden but padding on the right, and causality hides that: the plain kernel is faster.
        # Positions go too: those of padding would look like packed rows to transformers.
        return (), kwargs | {"attention_mask": None, "position_ids": None}
    config = decoder.config.get_text_config()
    window = attention_window(config)
    if window is not None and n_rows > window:
        raise UserError(
            f"the text has {n_rows} tokens, but {config.model_type} attends to windows of {window}: "
            "no row can be hidden; lower data.max_length, or use backtrack.context soft without packing"
        )
    return (), kwargs | {"attention_mask": _mask(decoder, visible_until)}


def _mask(decoder: PreTrainedModel, visible_until: torch.Tensor) -> torch.Tensor | BlockMask:
    """`visible_until` (B, T) in the form that the decoder's attention kernel takes."""
    kernel = attention_kernel(decoder.config.get_text_config())
    if kernel == "flex_attention":
        return visible_block_mask(visible_until)
    visible = visible_mask(visible_until)
    if kernel == "sdpa":
        return visible
    # eager adds the mask to the scores
    return torch.zeros_like(visible, dtype=decoder.dtype).masked_fill(~visible, torch.finfo(decoder.dtype).min)


def _lay_out(kwargs: dict, context: str, backtrack_id: int | None) -> torch.Tensor | None:
    """Put the layout of the ids in place of `input_ids` and `position_ids`; return `visible_until` (B, T).

    Rows that `attention_mask` (B, T) leaves out are padding, on either side: they see only themselves. None
    where no layout is due. Raises UserError for packed rows, whose documents cannot be separated by their ids.
    """
    ids_BT, mask, positions = (kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if context == "soft" or ids_BT is None or kwargs.get("past_key_values") is not None:
        return None
    has_own_mask = mask is not None and not (isinstance(mask, torch.Tensor) and mask.ndim == 2)
    if has_own_mask or not (ids_BT == backtrack_id).any():
        return None
    if mask is None and positions is not None and (positions.diff(dim=1) != 1).any():
        raise UserError(
            f"position_ids start anew within a row, as in packed batches; with backtrack.context {context!r} "
            "pack with llmhalluc.data.collator, which adds visible_until"
        )
    kept_BT = torch.ones_like(ids_BT) if mask is None else mask
    all_ids, all_positions, all_visible = [], [], []
    for ids, kept in zip(ids_BT.tolist(), kept_BT.tolist(), strict=True):
        real = [row for row, keep in enumerate(kept) if keep]
        ends = [*real, real[-1] + 1 if real else 0]
        places, visible = [0] * len(ids), list(range(1, len(ids) + 1))
        laid_out = layout([], [ids[row] for row in real], backtrack_id, context)
        for row, token, place, until in zip(real, *laid_out, strict=True):
            ids[row], places[row], visible[row] = token, place, ends[until]
        all_ids.append(ids)
        all_positions.append(places)
        all_visible.append(visible)
    kwargs["input_ids"], kwargs["position_ids"] = ids_BT.new_tensor(all_ids), ids_BT.new_tensor(all_positions)
    return ids_BT.new_tensor(all_visible)
