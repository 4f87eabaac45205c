"""Log-probabilities of traces for TRL's preference and policy losses, by the model's own forward.

The model runs its head on the labelled positions alone, and the context hook (models/context.py) lays the emitted ids
out, so that policy, old policy and reference see what decoding sees (law 3).

Shapes: B traces, T positions, N labelled ones, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from llmhalluc.backtrack import IGNORE
from llmhalluc.models.context import takes_positions
from llmhalluc.train.trl_patches import answer_fused_head

# (input_ids (B, T), labels (B, T)) -> (row, position of the label, id) of tokens that could not be sampled there
Unoffered = Callable[[torch.Tensor, torch.Tensor], list[tuple[int, int, int]]]
Weights = Callable[..., torch.Tensor]  # labels (B, T), dtype=… -> what log-probabilities (B, T - 1) are multiplied with
PARTS, ROWS = 4, 16  # a batch is scored in so many parts of rows of like length, of so many rows at least
CHUNK = 1 << 24  # logits that are measured at a time: what that takes beside them does not grow with the batch


def score_through_model(
    model: PreTrainedModel, temperature: float = 1.0, unoffered: Unoffered | None = None, weights: Weights | None = None
) -> None:
    """Make `model(input_ids=…, attention_mask=…, labels=…, fused_lm_head=True)` return what TRL's losses read.

    Call it on the base model of PEFT, after TRL has put its own head on. `log_probs`, `entropy`, `log_sum_sq_probs`,
    `mean_logits` (float32 at least) and `is_top1` are (B, T - 1), position t about label t + 1, 0 where that is IGNORE.
    They are of softmax(logits / temperature) over the tokens that were offered; `mean_logits` of the logits themselves.
    """
    with_positions = takes_positions(type(model))

    def score(
        forward: Callable, labels: torch.Tensor, *, input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None, **inputs: Any,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with_aux = inputs.get("output_router_logits", False)  # a loss of the batch, not of its rows
        numbers_BT = torch.arange(labels[:, 1:].numel(), device=labels.device).view_as(labels[:, 1:])
        numbers_N, values, aux_loss = [], [], None
        for rows, columns in _parts(mask_BT, 1 if with_aux else min(PARTS, len(input_ids) // ROWS)):
            ids, mask, targets = (x[rows, columns] for x in (input_ids, mask_BT, labels))
            scored = targets[:, 1:] != IGNORE
            part = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            part["logits_to_keep"] = torch.nn.functional.pad(scored, (0, 1), value=False)
            if with_positions:  # padding on the left takes none
                part["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
            outputs = forward(**inputs | part)
            barred = _numbered(unoffered(ids, targets) if unoffered else [], scored)
            values.append(_measured(outputs.logits.flatten(0, -2), targets[:, 1:][scored], barred, temperature))
            numbers_N.append(numbers_BT[rows, columns.start : columns.stop - 1][scored])
            aux_loss = outputs.aux_loss if with_aux else None
        made = {}
        for name in values[0]:
            flat = torch.cat([part[name] for part in values])
            empty = flat.new_zeros(labels[:, 1:].numel())
            made[name] = empty.index_put((torch.cat(numbers_N),), flat).view_as(numbers_BT)
        scored_BT = labels[:, 1:] != IGNORE
        loss = -made["log_probs"].sum() / scored_BT.sum().clamp(min=1)
        if weights is not None:
            made["log_probs"] = made["log_probs"] * weights(labels, dtype=made["log_probs"].dtype)
        return made | {"loss": loss, "label_mask": scored_BT, "aux_loss": aux_loss}

    answer_fused_head(model, score)


def _parts(mask_BT: torch.Tensor, count: int) -> Iterator[tuple[torch.Tensor, slice]]:
    """Rows of like length, and the columns that one of them fills: padding costs as much as tokens do.

    Their number does not depend on the lengths, which differ from one process to the next.
    """
    for rows in mask_BT.sum(1).argsort().tensor_split(max(1, count)):
        filled = mask_BT[rows].any(0).nonzero()[:, 0].tolist() or [0]
        yield rows, slice(filled[0], filled[-1] + 1)


def _measured(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, barred: torch.Tensor, temperature: float
) -> dict[str, torch.Tensor]:
    """`_measure`, CHUNK logits at a time where they are more; what it needs is then computed again for the gradient."""
    size = max(1, CHUNK // logits_NV.shape[1])
    if len(logits_NV) <= size:
        return _measure(logits_NV, targets_N, barred, temperature)
    parts = []
    for start in range(0, len(logits_NV), size):
        here = barred[(barred[:, 0] >= start) & (barred[:, 0] < start + size)] - barred.new_tensor([start, 0])
        chunk = (logits_NV[start : start + size], targets_N[start : start + size], here, temperature)
        parts.append(checkpoint(_measure, *chunk, use_reentrant=False))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _measure(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, barred: torch.Tensor, temperature: float
) -> dict[str, torch.Tensor]:
    """(N) each, of the distribution without the (row, id) pairs `barred` (·, 2); float32 at least."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    offered_NV = logits_NV if temperature == 1 else logits_NV / temperature
    if len(barred):
        offered_NV = offered_NV.index_put(tuple(barred.unbind(1)), offered_NV.new_tensor(-torch.inf))
    logprobs_NV = offered_NV.log_softmax(-1)
    # p log p is 0 for a token that was not offered, and its gradient too.
    finite_NV = logprobs_NV.masked_fill(logprobs_NV == -torch.inf, 0.0) if len(barred) else logprobs_NV
    with torch.no_grad():
        others = {
            "log_sum_sq_probs": (2 * logprobs_NV).logsumexp(-1),
            "mean_logits": logits_NV.mean(-1),
            "is_top1": logprobs_NV.argmax(-1) == targets_N,
        }
    log_probs_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    return {"log_probs": log_probs_N, "entropy": -(logprobs_NV.exp() * finite_NV).sum(-1), **others}


def _numbered(barred: list[tuple[int, int, int]], scored_BT: torch.Tensor) -> torch.Tensor:
    """(number of the labelled position, id) pairs (·, 2); places without a label are passed over."""
    if not barred:
        return torch.empty(0, 2, dtype=torch.long, device=scored_BT.device)
    rows, positions, ids = torch.tensor(barred, device=scored_BT.device).unbind(1)
    number_BT = scored_BT.flatten().cumsum(0).view_as(scored_BT) - 1
    labelled = (positions > 0) & scored_BT[rows, positions - 1]
    return torch.stack([number_BT[rows, positions - 1], ids], 1)[labelled]
