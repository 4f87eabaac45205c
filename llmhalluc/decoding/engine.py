"""Continuous batching with erasures: rows erase on their own, finished rows leave, waiting prompts enter.

Shapes: B rows decoding, W columns that the longest of them fills, V vocabulary. What a token means to the cache
is `backtrack.Tape`'s to say; because a token at position p lies in column p (cache.py), erasing moves nothing.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.backtrack import Tape
from llmhalluc.decoding.cache import SlotCache
from llmhalluc.decoding.sampling import choose
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.gen_args import GenArguments

PREFILL_TOKENS = 4096  # most prompt tokens, padding included, of one forward


@dataclass
class Trace:
    """One decoded completion: ids as emitted, ids that survive, and the surviving text up to a stop string."""

    prompt_ids: list[int]
    completion_ids: list[int]
    surviving_ids: list[int]
    erasures: int
    finish_reason: str  # "eos", "stop" or "length"
    text: str = ""


@dataclass
class Row:
    """A prompt being completed."""

    index: int
    prompt_ids: list[int]
    tape: Tape
    draws: random.Random
    feed: tuple[int, int]  # input id and position of the next forward
    completion_ids: list[int] = field(default_factory=list)
    banned: dict[int, set[int]] = field(default_factory=dict)  # place (surviving tokens before it) -> ids
    finish_reason: str = ""
    text: str = ""


def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    options: GenArguments,
    *,
    eos_ids: Sequence[int],
    backtrack_id: int | None,
    context: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
    on_finish: Callable[[int, Trace], None] | None = None,
    keys: Sequence[str] | None = None,
) -> list[Trace]:
    """Complete every prompt; the answers stand in the order of `prompts`.

    A row ends at an id of `eos_ids`, at a stop string in its surviving text (needs `tokenizer`), or after
    `options.max_new_tokens` emitted tokens. BACKTRACK is offered only where it has something to erase and the
    budget `options.max_erasures` lasts; with `options.ban_erased` an erased token is not offered again at its
    place while its prefix stands. A prompt samples from its own stream, named by its key (default: its index)
    and `options.seed`, whatever its batch. Raises ValueError for an empty prompt, UserError for a model whose
    layers keep more than keys and values.
    """
    traces: list[Trace] = [None] * len(prompts)  # type: ignore[list-item]  # each is set when its row ends
    erase_id = backtrack_id if options.backtrack else None
    for row in _finished_rows(
        model, prompts, options, set(eos_ids), erase_id, backtrack_id, context, tokenizer, batch_size, keys
    ):
        if tokenizer is not None and row.finish_reason != "stop":
            row.text = tokenizer.decode(row.tape.surviving, skip_special_tokens=True)
        tape = row.tape
        traces[row.index] = Trace(
            row.prompt_ids, row.completion_ids, tape.surviving, tape.erased, row.finish_reason, row.text
        )
        if on_finish is not None:
            on_finish(row.index, traces[row.index])
    return traces


@torch.inference_mode()
def _finished_rows(
    model, prompts, options, eos_ids, erase_id, backtrack_id, context, tokenizer, batch_size, keys
) -> Iterator[Row]:
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not p)} is empty")
    if options.stop and tokenizer is None:
        raise ValueError("stop strings need a tokenizer")
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT works in its layers
    masks = _mask_maker(model)
    keys = keys or [str(i) for i in range(len(prompts))]
    # Long prompts first: neighbours share their length, and a lack of memory shows at once.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    slots = min(batch_size, len(prompts))
    cache, rows = SlotCache(slots), []
    while waiting or rows:
        if waiting and (not rows or slots - len(rows) >= max(1, slots // 8)):
            new = [
                Row(i, prompts[i], Tape(prompts[i], erase_id, context), random.Random(f"{options.seed}-{keys[i]}"),
                    (prompts[i][-1], len(prompts[i]) - 1))
                for i in (waiting.popleft() for _ in range(min(slots - len(rows), len(waiting))))
            ]  # fmt: skip
            _prefill(model, cache, len(rows), [row.prompt_ids for row in new])
            rows += new
        logits_BV = _forward(model, cache, [row.feed for row in rows], masks)
        tokens = choose(logits_BV, rows, options, erase_id, backtrack_id)
        for row, token in zip(rows, tokens, strict=True):
            _emit(row, token, options, eos_ids, erase_id, tokenizer)
        if any(row.finish_reason for row in rows):
            yield from (row for row in rows if row.finish_reason)
            kept = [i for i, row in enumerate(rows) if not row.finish_reason]
            cache.select(kept)
            rows = [rows[i] for i in kept]


def _prefill(model: PreTrainedModel, cache: SlotCache, first: int, prompts: list[list[int]]) -> None:
    """Fill the slots from `first` on with all but the last token of each prompt, which the next step feeds.

    Prompts are padded on the right, where causality hides the padding, and need neither a mask nor logits.
    """
    done = 0
    while done < len(prompts):
        longest = len(prompts[done]) - 1  # they come sorted, the longest first
        count = max(1, min(len(prompts) - done, PREFILL_TOKENS // max(1, longest)))
        group = prompts[done : done + count]
        for start in range(0, longest, PREFILL_TOKENS):
            ids = [prompt[start : min(len(prompt) - 1, start + PREFILL_TOKENS)] for prompt in group]
            ids_BT = torch.tensor([row + [0] * (len(ids[0]) - len(row)) for row in ids], device=model.device)
            cache.prefill(first + done, count, start, ids_BT.shape[1])
            positions = torch.arange(start, start + ids_BT.shape[1], device=model.device)
            model.base_model(
                input_ids=ids_BT,
                position_ids=positions.expand_as(ids_BT),
                past_key_values=cache,
                use_cache=True,
            )
        done += count


def _forward(model: PreTrainedModel, cache: SlotCache, feeds: list[tuple[int, int]], masks) -> torch.Tensor:
    """Feed each row one (input id, position): logits (B, V)."""
    ids_B, positions_B = torch.tensor(feeds, device=model.device).unbind(1)
    highest = max(position for _, position in feeds)
    same = all(position == highest for _, position in feeds)
    cache.step(positions_B, highest + 1)
    return model(
        input_ids=ids_B[:, None], position_ids=positions_B[:, None], attention_mask=masks(positions_B, highest, same),
        past_key_values=cache, use_cache=True, logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip


def _mask_maker(model: PreTrainedModel) -> Callable[[torch.Tensor, int, bool], torch.Tensor | dict | None]:
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
        raise UserError(
            f"model.attn_implementation is {config._attn_implementation}, decoding takes sdpa or eager"
        )
    eager, lowest = config._attn_implementation == "eager", torch.finfo(model.dtype).min

    def mask(positions_B, highest, same, kind):
        if same and (kind == "full_attention" or highest < window):
            return None
        columns_W = torch.arange(highest + 1, device=positions_B.device)
        seen_BW = columns_W <= positions_B[:, None]
        if kind == "sliding_attention":
            seen_BW &= columns_W > positions_B[:, None] - window
        seen = seen_BW[:, None, None]
        return (
            torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, lowest)
            if eager
            else seen
        )

    if len(kinds) == 1:
        return lambda positions_B, highest, same: mask(positions_B, highest, same, kinds[0])
    return lambda positions_B, highest, same: {kind: mask(positions_B, highest, same, kind) for kind in kinds}


def _emit(
    row: Row, token: int, options: GenArguments, eos_ids: set[int], erase_id: int | None, tokenizer
) -> None:
    """Write `token` on the row's tape, ban what it erases, and see whether the row ends."""
    tape, place = row.tape, len(row.tape.surviving)
    row.completion_ids.append(token)
    if token == erase_id and place and options.ban_erased:
        row.banned.pop(place, None)  # what was banned after the erased token stood on it
        row.banned.setdefault(place - 1, set()).add(tape.surviving[-1])
    row.feed = tape.feed(token)
    if token in eos_ids:
        row.finish_reason = "eos"
    elif options.stop and tape.surviving and _stops(row, options.stop, tokenizer):
        row.finish_reason = "stop"
    elif len(row.completion_ids) == options.max_new_tokens:
        row.finish_reason = "length"


def _stops(row: Row, stops: list[str], tokenizer) -> bool:
    """Whether a stop string stands in the surviving text; `row.text` is then the text before it."""
    surviving = row.tape.surviving
    # A stop string that is complete now ends within the last token, so it begins in this tail.
    tail = tokenizer.decode(surviving[-(max(map(len, stops)) + 8) :], skip_special_tokens=True)
    if not any(stop in tail for stop in stops):
        return False
    text = tokenizer.decode(surviving, skip_special_tokens=True)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    row.text = text[: min(ends, default=len(text))]
    return bool(ends)
