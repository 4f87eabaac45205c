"""Batched decoding with erasures over one KV cache that only grows: an erased row is hidden, never moved.

Shapes: B rows still decoding, L cache columns, V vocabulary. A prompt is left-padded, so row r of a trace lies
in column r + its padding for good. What a token means to the cache is `backtrack.Tape`'s to say.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmhalluc.backtrack import Tape
from llmhalluc.hparams.gen_args import GenArguments

COMPACT_AT = 0.75  # share of a batch's rows that still decode, below which the finished ones leave the cache


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
class _Row:
    index: int
    prompt_ids: list[int]
    tape: Tape
    draws: random.Random
    completion_ids: list[int] = field(default_factory=list)
    banned: dict[int, set[int]] = field(default_factory=dict)  # place (surviving tokens before it) -> ids
    finish_reason: str = ""
    text: str = ""


@torch.inference_mode()
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
    and `options.seed`, whatever its batch. Raises ValueError for an empty prompt.
    """
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not p)} is empty")
    if options.stop and tokenizer is None:
        raise ValueError("stop strings need a tokenizer")
    keys = keys or [str(i) for i in range(len(prompts))]
    erase_id = backtrack_id if options.backtrack else None
    traces: list[Trace] = [None] * len(prompts)  # type: ignore[list-item]  # each is set when its row ends

    def finish(row: _Row) -> None:
        tape = row.tape
        trace = Trace(row.prompt_ids, row.completion_ids, tape.surviving, tape.erased, row.finish_reason, row.text)
        if tokenizer is not None and row.finish_reason != "stop":
            trace.text = tokenizer.decode(tape.surviving, skip_special_tokens=True)
        traces[row.index] = trace
        if on_finish is not None:
            on_finish(row.index, trace)

    # Long prompts first: neighbours in a batch share their length, and a lack of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = [
            _Row(i, prompts[i], Tape(prompts[i], erase_id, context), random.Random(f"{options.seed}-{keys[i]}"))
            for i in order[start : start + batch_size]
        ]
        _decode_batch(model, rows, options, set(eos_ids), erase_id, backtrack_id, tokenizer, finish)
    return traces


def _decode_batch(model, rows, options, eos_ids, erase_id, backtrack_id, tokenizer, finish) -> None:
    device, width = model.device, max(len(row.prompt_ids) for row in rows)
    warpers, cache = _warpers(options), DynamicCache(config=model.config)
    padding = [width - len(row.prompt_ids) for row in rows]
    input_ids = torch.tensor([[0] * pad + row.prompt_ids for pad, row in zip(padding, rows, strict=True)])
    visible_BL = torch.ones(len(rows), width + options.max_new_tokens, dtype=torch.bool, device=device)
    for i, pad in enumerate(padding):
        visible_BL[i, :pad] = False
    positions = (torch.arange(width) - torch.tensor(padding)[:, None]).clamp(min=0)
    all_visible, four_d = not any(padding), model.config._attn_implementation == "sdpa"
    mask = None if all_visible else visible_BL[:, :width]
    for length in range(width, width + options.max_new_tokens):
        logits_BV = model(
            input_ids=input_ids.to(device), position_ids=positions.to(device), attention_mask=mask,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        tokens = choose(logits_BV, rows, options, warpers, erase_id, backtrack_id)
        fed, hidden_rows, hidden_columns, ended = [], [], [], 0
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.finish_reason:
                fed.append((0, 0))
                ended += 1
                continue
            input_id, position, hidden = _emit(row, token, options, erase_id)
            fed.append((input_id, position))
            if hidden:
                hidden_rows += [i] * len(hidden)
                hidden_columns += [column + width - len(row.prompt_ids) for column in hidden]
            if _ends(row, token, options, eos_ids, tokenizer):
                ended += 1
                finish(row)
        if ended == len(rows):
            return
        if hidden_rows:
            visible_BL[hidden_rows, hidden_columns] = False
            all_visible = False
        if len(rows) - ended < COMPACT_AT * len(rows):
            keep = [i for i, row in enumerate(rows) if not row.finish_reason]
            rows, fed, kept = [rows[i] for i in keep], [fed[i] for i in keep], torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            visible_BL = visible_BL[kept]
        fed_2B = torch.tensor(fed).T
        input_ids, positions = fed_2B[0, :, None], fed_2B[1, :, None]
        # A 4D mask spares transformers from building one from the 2D mask at every step.
        mask = None if all_visible else visible_BL[:, : length + 1]
        mask = mask[:, None, None] if four_d and mask is not None else mask


def _emit(row: _Row, token: int, options: GenArguments, erase_id: int | None) -> tuple[int, int, list[int]]:
    """Write `token` on the row's tape, and ban it there if it erases."""
    tape, place = row.tape, len(row.tape.surviving)
    row.completion_ids.append(token)
    if token == erase_id and place and options.ban_erased:
        row.banned.pop(place, None)  # what was banned after the erased token stood on it
        row.banned.setdefault(place - 1, set()).add(tape.surviving[-1])
    return tape.feed(token)


def _ends(row: _Row, token: int, options: GenArguments, eos_ids: set[int], tokenizer) -> bool:
    surviving = row.tape.surviving
    if token in eos_ids:
        row.finish_reason = "eos"
    elif options.stop and surviving:
        # A stop string that is complete now ends within the last token, so it begins in this tail.
        tail = surviving[-(max(map(len, options.stop)) + 8) :]
        text = tokenizer.decode(tail, skip_special_tokens=True)
        if any(stop in text for stop in options.stop):
            text = tokenizer.decode(surviving, skip_special_tokens=True)
            ends = [at for stop in options.stop if (at := text.find(stop)) >= 0]
            if ends:
                row.finish_reason, row.text = "stop", text[: min(ends)]
    if not row.finish_reason and len(row.completion_ids) == options.max_new_tokens:
        row.finish_reason = "length"
    return bool(row.finish_reason)


def choose(
    logits_BV: torch.Tensor,
    rows: list[_Row],
    options: GenArguments,
    warpers: LogitsProcessorList,
    erase_id: int | None,
    backtrack_id: int | None,
) -> list[int]:
    """The next token of every row: argmax at temperature 0, else drawn from the row's own stream."""
    budget = options.max_new_tokens // 2 if options.max_erasures is None else options.max_erasures
    logits_BV = logits_BV.float() if logits_BV.dtype != torch.float64 else logits_BV.clone()
    if erase_id is not None and options.backtrack_bias:
        logits_BV[:, erase_id] += options.backtrack_bias
    forbidden: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        place = len(row.tape.surviving)
        no_erasure = erase_id is None or not place or row.tape.erased >= budget
        if backtrack_id is not None and no_erasure:
            forbidden.append((i, backtrack_id))
        banned = row.banned.get(place)
        # Where every token is banned and nothing may be erased, the bans are lifted: a prompt must end.
        if banned and len(banned) + no_erasure < logits_BV.shape[1]:
            forbidden += [(i, token) for token in banned]
    if forbidden:
        at = torch.tensor(forbidden, device=logits_BV.device).T
        logits_BV[at[0], at[1]] = -torch.inf
    if warpers:
        logits_BV = warpers(_surviving_ids(rows, logits_BV.device), logits_BV)
    if options.temperature == 0:
        return logits_BV.argmax(-1).tolist()
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    uniform_B = torch.tensor([row.draws.random() for row in rows], dtype=torch.float64, device=logits_BV.device)
    uniform_B = uniform_B * cumulative_BV[:, -1]
    return torch.searchsorted(cumulative_BV, uniform_B[:, None], right=True)[:, 0].tolist()


def _warpers(options: GenArguments) -> LogitsProcessorList:
    """transformers' own processors, in the order of its `generate`."""
    warpers = LogitsProcessorList()
    if options.repetition_penalty not in (None, 1.0):
        warpers.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature > 0:
        if options.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k is not None:
            warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p is not None and options.top_p < 1:
            warpers.append(TopPLogitsWarper(options.top_p))
        if options.min_p is not None:
            warpers.append(MinPLogitsWarper(options.min_p))
    return warpers


def _surviving_ids(rows: list[_Row], device) -> torch.Tensor:
    """(B, T) prompt and surviving ids, each row filled up with its own last id: the penalty counts an id once."""
    texts = [row.prompt_ids + row.tape.surviving for row in rows]
    longest = max(map(len, texts))
    return torch.tensor([text + [text[-1]] * (longest - len(text)) for text in texts], device=device)
