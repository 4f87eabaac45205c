"""Which errors help: those after which, once erased, the start model finds the rest no harder than without them.

An idea of Toolformer's (arXiv:2302.04761), which keeps a call where its result lowers the loss of what follows.
Shapes: B rows of a batch, T positions, N labelled ones.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.backtrack import IGNORE, layout, replay
from llmhalluc.data.annotated import AnnotatedTraces
from llmhalluc.data.collator import TraceCollator

logger = logging.getLogger(__name__)
_AT_A_TIME = 32  # batches whose traces are sorted by length together
Ids = Sequence[int]


def keep_helpful(
    model: PreTrainedModel, traces: AnnotatedTraces, tokenizer: PreTrainedTokenizerBase, args: Any
) -> dict[str, int]:
    """Set `traces.kept`; return how many records have errors (`drawn`), and how many keep them (`kept`).

    Every process compares its share of the records, `args.train_batch_size` traces at a time.
    """
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    mine = range(args.process_index, len(traces), args.world_size)
    found = compare(model, traces, mine, TraceCollator(pad_id), args.train_batch_size)
    if args.world_size > 1:
        found = gather_object(found)
    traces.kept = frozenset(index for index, with_error, without in found if with_error <= without)
    counts = {"drawn": len(found), "kept": len(traces.kept)}
    logger.warning(
        "backtrack.keep_if_helps keeps the errors of %d of %d records, the rest is trained clean",
        counts["kept"], counts["drawn"],
    )  # fmt: skip
    return counts


def compare(
    model: PreTrainedModel, traces: AnnotatedTraces, indices: Sequence[int], collator: TraceCollator, batch_size: int
) -> list[tuple[int, float, float]]:
    """For each record whose first draw errs: its number, and the losses of `pair_of` with the errors and without."""
    found: list[tuple[int, float, float]] = []
    for start in range(0, len(indices), batch_size * _AT_A_TIME):
        some = indices[start : start + batch_size * _AT_A_TIME]
        pairs = {index: pair for index in some if (pair := pair_of(traces, index))}
        losses = summed_losses(model, [item for pair in pairs.values() for item in pair], collator, batch_size)
        found += [(index, losses[2 * i], losses[2 * i + 1]) for i, index in enumerate(pairs)]
    return found


def pair_of(traces: AnnotatedTraces, index: int) -> tuple[dict[str, list[int]], dict[str, list[int]]] | None:
    """A record with the errors of its first draw and without, labelled on the tokens that the errors can change.

    In soft these are all that survive after the first BACKTRACK; in block those right after a BACKTRACK, for later ones
    see the clean text (law 4). None for a draw without errors.
    """
    converter = traces.converter
    context, backtrack_id = converter.backtrack.context, converter.backtrack_id
    prompt_ids, completion_ids = traces.trace(0, index, 1.0)
    if backtrack_id is None or backtrack_id not in completion_ids:
        return None
    first, survivors = completion_ids.index(backtrack_id), replay(completion_ids, backtrack_id)
    changed = [
        clean
        for clean, position in enumerate(survivors)
        if (position > first if context == "soft" else completion_ids[position - 1] == backtrack_id)
    ]
    clean_ids = [completion_ids[position] for position in survivors]
    with_errors = _labelled(prompt_ids, completion_ids, [survivors[i] for i in changed], backtrack_id, context)
    return with_errors, _labelled(prompt_ids, clean_ids, changed, backtrack_id, context)


def _labelled(
    prompt_ids: Ids, completion_ids: Ids, positions: Ids, backtrack_id: int, context: str
) -> dict[str, list[int]]:
    """A trace laid out, with labels on some positions of the completion."""
    targets = [IGNORE] * (len(prompt_ids) + len(completion_ids))
    for position in positions:
        targets[len(prompt_ids) + position] = completion_ids[position]
    return layout(prompt_ids, completion_ids, backtrack_id, context)._asdict() | {"labels": targets}


@torch.no_grad()
def summed_losses(
    model: PreTrainedModel, items: Sequence[dict[str, list[int]]], collator: TraceCollator, batch_size: int
) -> list[float]:
    """The sum of the cross-entropies at the labels of each trace, in batches of traces of like length."""
    training, found = model.training, [0.0] * len(items)
    model.eval()
    order = sorted(range(len(items)), key=lambda i: len(items[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = {name: x.to(model.device) for name, x in collator([items[i] for i in numbers]).items()}
        targets_BT = functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORE)
        scored_BT = targets_BT != IGNORE
        logits = model(**batch, logits_to_keep=scored_BT, use_cache=False).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses_N = functional.cross_entropy(logits, targets_BT[scored_BT], reduction="none")
        sums_B = losses_N.new_zeros(len(numbers)).index_add(0, scored_BT.nonzero()[:, 0], losses_N)
        for number, loss in zip(numbers, sums_B.tolist(), strict=True):
            found[number] = loss
    model.train(training)
    return found
