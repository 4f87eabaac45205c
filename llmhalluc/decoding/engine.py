"""Continuous batching with erasures: rows erase on their own, finished rows leave, waiting prompts enter.

An erasure is one mechanism, whether the learned BACKTRACK asks for it or an operator (operators.py). What a token
means to the cache is `backtrack.Tape`'s to say; a token at position p lies in column p (cache.py), so that erasing
moves nothing. Shapes: B rows decoding, W columns that the longest of them fills, V vocabulary.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.backtrack import Tape
from llmhalluc.decoding.cache import SlotCache
from llmhalluc.decoding.masks import mask_maker
from llmhalluc.decoding.operators import Operator
from llmhalluc.decoding.rows import Erasure, Event, Row, Step, Trace
from llmhalluc.decoding.sampling import budget, choose
from llmhalluc.hparams.gen_args import GenArguments

PREFILL_TOKENS = 4096  # most prompt tokens, padding included, of one forward
KEPT_PLACES = 4  # places whose logits a row keeps, so that erasing back to them costs no forward


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
    operator: Operator | None = None,
    limits: Sequence[int] | None = None,
) -> list[Trace]:
    """Complete every prompt; the answers stand in the order of `prompts`. Arguments and errors as `stream`.

    on_finish(i, trace) is called as each prompt ends.
    """
    traces: list[Trace] = [None] * len(prompts)  # type: ignore[list-item]  # each is set when its row ends
    for index, kind, trace in stream(
        model, prompts, options, eos_ids=eos_ids, backtrack_id=backtrack_id, context=context, tokenizer=tokenizer,
        batch_size=batch_size, keys=keys, operator=operator, limits=limits,
    ):  # fmt: skip
        if kind == "end":
            traces[index] = trace
            if on_finish is not None:
                on_finish(index, trace)
    return traces


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    options: GenArguments,
    *,
    eos_ids: Sequence[int],
    backtrack_id: int | None,
    context: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
    keys: Sequence[str] | None = None,
    operator: Operator | None = None,
    limits: Sequence[int] | None = None,
) -> Iterator[Event]:
    """Complete the prompts, `batch_size` at a time, and tell each token added, each erasure and each end (a Trace).

    A row ends at an id of `eos_ids`, at a stop string in its surviving text (needs `tokenizer`), or after
    `options.max_new_tokens` emitted tokens (`limits`: a number for each prompt instead), those that an operator
    erased not counted. BACKTRACK is offered only where it has something to erase and the budget
    `options.max_erasures` lasts; with `options.ban_erased` an erased token is not offered again at its place while
    its prefix stands. `operator` is asked after every `options.backtrack_every_n` emitted tokens and before a row
    ends, and has a budget of as many erasures again. A prompt samples from its own stream, named by its key (default:
    its index) and `options.seed`, whatever its batch. Raises ValueError for an empty prompt, UserError for a model
    whose layers keep more than keys and values.
    """
    check_prompts(prompts, options, tokenizer)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT works in its layers
    run = _Run(
        model, options, set(eos_ids), backtrack_id if options.backtrack else None, backtrack_id, context, tokenizer,
        operator, mask_maker(model), SlotCache(min(batch_size, len(prompts))),
    )  # fmt: skip
    keys = keys or [str(i) for i in range(len(prompts))]
    # Long prompts first: neighbours share their length, and a lack of memory shows at once.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    rows: list[Row] = []
    while waiting or rows:
        if waiting and (not rows or run.cache.slots - len(rows) >= max(1, run.cache.slots // 8)):
            new = [
                Row(i, prompts[i], Tape(prompts[i], run.erase_id, context),
                    random.Random(f"{options.seed}-{keys[i]}"), (prompts[i][-1], len(prompts[i]) - 1),
                    limits[i] if limits else options.max_new_tokens)
                for i in (waiting.popleft() for _ in range(min(run.cache.slots - len(rows), len(waiting))))
            ]  # fmt: skip
            _prefill(run, len(rows), new)
            rows += new
        yield from _step(run, rows)
        if any(row.finish_reason for row in rows):
            for row in rows:
                if row.finish_reason:
                    yield Event(row.index, "end", _trace(row, tokenizer))
            kept = [i for i, row in enumerate(rows) if not row.finish_reason]
            run.cache.select(kept)
            rows = [rows[i] for i in kept]


def check_prompts(prompts: Sequence[list[int]], options: GenArguments, tokenizer) -> None:
    """Raise ValueError for an empty prompt, and for stop strings without a tokenizer."""
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not p)} is empty")
    if options.stop and tokenizer is None:
        raise ValueError("stop strings need a tokenizer")


@dataclass
class _Run:
    """What stays the same from step to step."""

    model: PreTrainedModel
    options: GenArguments
    eos_ids: set[int]
    erase_id: int | None  # BACKTRACK where it may be used
    backtrack_id: int | None
    context: str
    tokenizer: PreTrainedTokenizerBase | None
    operator: Operator | None
    masks: Callable
    cache: SlotCache

    @property
    def rewinds(self) -> bool:
        return self.operator is not None or (self.context == "rewind" and self.erase_id is not None)


def _prefill(run: _Run, first: int, rows: list[Row]) -> None:
    """Fill the slots from `first` on with all but the last token of each prompt, which the next step feeds.

    Prompts are padded on the right, where causality hides the padding, and need neither a mask nor logits.
    """
    device, done, prompts = run.model.device, 0, [row.prompt_ids for row in rows]
    for row in rows:
        row.forward_passes = -(-(len(row.prompt_ids) - 1) // PREFILL_TOKENS)
    while done < len(prompts):
        longest = len(prompts[done]) - 1  # they come sorted, the longest first
        count = max(1, min(len(prompts) - done, PREFILL_TOKENS // max(1, longest)))
        group = prompts[done : done + count]
        for start in range(0, longest, PREFILL_TOKENS):
            ids = [prompt[start : min(len(prompt) - 1, start + PREFILL_TOKENS)] for prompt in group]
            ids_BT = torch.tensor([row + [0] * (len(ids[0]) - len(row)) for row in ids], device=device)
            run.cache.prefill(first + done, count, start, ids_BT.shape[1])
            positions = torch.arange(start, start + ids_BT.shape[1], device=device).expand_as(ids_BT)
            run.model.base_model(input_ids=ids_BT, position_ids=positions, past_key_values=run.cache, use_cache=True)
        done += count


def _forward(run: _Run, rows: list[Row]) -> torch.Tensor:
    """Feed each row its next input: logits (B, V), float32 at least."""
    for row in rows:
        row.forward_passes += 1
    feeds = [row.feed for row in rows]
    ids_B, positions_B = torch.tensor(feeds, device=run.model.device).unbind(1)
    highest = max(position for _, position in feeds)
    same = all(position == highest for _, position in feeds)
    run.cache.step(positions_B, highest + 1)
    logits_BV = run.model(
        input_ids=ids_B[:, None], position_ids=positions_B[:, None],
        attention_mask=run.masks(positions_B, highest, same), past_key_values=run.cache, use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip
    return logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()


def _step(run: _Run, rows: list[Row]) -> list[Event]:
    """One forward, and a token for every row; rows that go back to a place with kept logits sample again."""
    logits_BV, events = _forward(run, rows), []
    for i, row in enumerate(rows) if run.rewinds else ():
        _keep(row, logits_BV[i])
    todo = rows
    while todo:
        if run.operator is not None and _leave_dead_ends(run, todo, logits_BV.shape[1], events):
            todo = [row for row in todo if len(row.tape.columns) in row.kept]
            if not todo:
                break
            logits_BV = torch.stack([row.kept[len(row.tape.columns)] for row in todo])
        tokens, logprobs = choose(logits_BV, todo, run.options, run.erase_id, run.backtrack_id)
        sampled = [not row.forced for row in todo]
        for row, token, logprob in zip(todo, tokens, logprobs, strict=True):
            _write(run, row, token, logprob, events)
            _end(run, row)
        if run.operator is not None:
            _ask(run, todo, sampled, logits_BV, events)
        todo = [row for row in todo if not row.finish_reason and len(row.tape.columns) in row.kept]
        if todo:
            logits_BV = torch.stack([row.kept[len(row.tape.columns)] for row in todo])
    return events


def _leave_dead_ends(run: _Run, rows: list[Row], n_vocabulary: int, events: list[Event]) -> bool:
    """Where an operator has had every token of a place banned, erase one deeper; whether any row did."""
    left = False
    for row in rows:
        while (
            (place := len(row.surviving))
            and run.erase_id is None  # else BACKTRACK is there to leave by
            and row.rewound < budget(run.options)
            and list(row.penalties.get(place, {}).values()).count(-math.inf)
            >= n_vocabulary - (run.backtrack_id is not None)
        ):
            row.erase(1, "dead end", -math.inf)
            events.append(Event(row.index, "erase", 1))
            left = True
    return left


def _keep(row: Row, logits_V: torch.Tensor) -> None:
    """Remember the logits of the row's place; only the newest places are."""
    here = len(row.tape.columns)
    for other in [p for p in row.kept if p > here or p <= here - KEPT_PLACES]:
        del row.kept[other]
    row.kept[here] = logits_V


def _write(run: _Run, row: Row, token: int, logprob: float, events: list[Event]) -> None:
    """Put a token on the row's tape; a BACKTRACK bans what it erases."""
    place, writer = len(row.surviving), ""
    if row.forced:
        token, writer = row.forced.popleft(), row.writer
    row.completion_ids.append(token)
    row.emitted_logprobs.append(logprob)
    if token != run.erase_id:
        row.logprobs.append(logprob)
        row.written.append(writer)
        events.append(Event(row.index, "add", token))
    elif place:
        erased = row.surviving[-1]
        row.forget(place - 1)
        if run.options.ban_erased:
            row.penalties.setdefault(place - 1, {})[erased] = -math.inf
        row.events.append(Erasure(len(row.completion_ids), 1, "BACKTRACK"))
        events.append(Event(row.index, "erase", 1))
    row.feed = row.tape.feed(token)
    if token != run.erase_id or run.context != "rewind":
        # The place after a new row is new: what was kept under its number belongs to another text.
        for stale in [n for n in row.kept if n >= len(row.tape.columns)]:
            del row.kept[stale]


def _ask(run: _Run, todo: list[Row], sampled: list[bool], logits_BV: torch.Tensor, events: list[Event]) -> None:
    """Let the operator judge the tokens just sampled, and do what it wishes within the budget.

    A row that is about to end is shown in any case, so that nothing which an operator forbids slips through.
    """

    def due(row: Row, sampled: bool) -> bool:
        judged = sampled and row.completion_ids[-1] != run.erase_id
        on_turn = judged and len(row.completion_ids) % run.options.backtrack_every_n == 0
        return bool(row.surviving) and bool(on_turn or row.finish_reason)

    asked = [i for i, row in enumerate(todo) if due(row, sampled[i])]
    if not asked:
        return
    rows, logits_BV = [todo[i] for i in asked], logits_BV if len(asked) == len(todo) else logits_BV[asked]
    assert run.operator is not None
    for i, wish in run.operator(Step(rows, logits_BV)).items():
        row, count = rows[i], min(wish.n, len(rows[i].surviving))
        if count < 0:
            raise ValueError(f"operator {wish.source} wishes to erase {wish.n} tokens")
        if row.rewound + count <= budget(run.options) and (count or (wish.write and row.finish_reason != "length")):
            row.finish_reason = ""
            if count:
                row.erase(count, wish.source, wish.penalty)
                events.append(Event(row.index, "erase", count))
            row.forced.extend(wish.write)
            row.writer = wish.source
        elif wish.must and count:
            row.erase(count, wish.source, 0.0)
            events.append(Event(row.index, "erase", count))
            row.finish_reason = "budget"
            _ask(run, [row], [False], logits_BV[i : i + 1], events)  # the text has another end now: look again


def _end(run: _Run, row: Row) -> None:
    """See whether the row ends, unless its operator objects; what is being written ends at the limit alone."""
    surviving, whole = row.surviving, not row.forced
    if whole and surviving and row.completion_ids[-1] in run.eos_ids and surviving[-1] in run.eos_ids:
        row.finish_reason = "eos"
    elif whole and surviving and run.options.stop and _stops(row, run.options.stop, run.tokenizer):
        row.finish_reason = "stop"
    elif len(row.completion_ids) - row.rewound >= row.limit:
        row.finish_reason = "length"


def _stops(row: Row, stops: list[str], tokenizer) -> bool:
    """Whether a stop string stands in the surviving text; `row.text` is then the text before it."""
    surviving = row.surviving
    # A stop string that is complete now ends within the last token, so it begins in this tail.
    tail = tokenizer.decode(surviving[-(max(map(len, stops)) + 8) :], skip_special_tokens=True)
    if not any(stop in tail for stop in stops):
        return False
    text = tokenizer.decode(surviving, skip_special_tokens=True)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    row.text = text[: min(ends, default=len(text))]
    return bool(ends)


def _trace(row: Row, tokenizer) -> Trace:
    if tokenizer is not None and row.finish_reason != "stop":
        row.text = tokenizer.decode(row.surviving, skip_special_tokens=True)
    return Trace(
        row.prompt_ids, row.completion_ids, row.surviving, row.tape.erased, row.finish_reason, row.text,
        row.emitted_logprobs, row.events, row.forward_passes,
    )  # fmt: skip
