"""Continuous batching with erasures: rows erase on their own, finished rows leave, waiting prompts enter.

An erasure is one mechanism, whether the learned BACKTRACK asks for it or an operator (operators.py). What a token
means to the cache is `backtrack.Tape`'s to say; a token at position p lies in column p (cache.py), so that erasing
moves nothing. Shapes: B rows decoding, W columns that the longest of them fills, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.decoding.emit import Rules, check_prompts, end, new_row, trace_of, write
from llmhalluc.decoding.forward import Forward
from llmhalluc.decoding.operators import Operator
from llmhalluc.decoding.rows import Event, Row, Step, Trace
from llmhalluc.decoding.sampling import budget, choose
from llmhalluc.hparams.gen_args import GenArguments

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
    `options.max_erasures` lasts (none: half of the tokens that the row may emit); with `options.ban_erased` an erased
    token is not offered again at its place while its prefix stands. `operator` is asked after every
    `options.backtrack_every_n` emitted tokens and before a row ends, and has a budget of as many erasures again. A
    prompt samples from its own stream, named by its key (default: its index) and `options.seed`, whatever its batch.
    Raises ValueError for an empty prompt, UserError for a model whose layers keep more than keys and values, or that
    torch cannot compile where `options.compile` asks for it.
    """
    check_prompts(prompts, options, tokenizer)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT works in its layers
    rules = Rules(options, frozenset(eos_ids), backtrack_id, context, tokenizer)
    # llama.cpp takes one row at a time, whatever was asked for.
    forward = _forward(model, len(prompts), min(batch_size, getattr(model, "most_rows", batch_size)), options.compile)
    slots = forward.cache.slots
    keys = keys or [str(i) for i in range(len(prompts))]
    # Long prompts first: neighbours share their length, and a lack of memory shows at once.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    rows: list[Row] = []
    while waiting or rows:
        if waiting and (not rows or slots - len(rows) >= max(1, slots // 8)):
            new = [
                new_row(rules, i, prompts[i], keys[i], limits[i] if limits else options.max_new_tokens)
                for i in (waiting.popleft() for _ in range(min(slots - len(rows), len(waiting))))
            ]
            forward.prefill(len(rows), new)
            rows += new
        yield from _step(rules, operator, forward, rows)
        if any(row.finish_reason for row in rows):
            for row in rows:
                if row.finish_reason:
                    yield Event(row.index, "end", trace_of(row, tokenizer))
            kept = [i for i, row in enumerate(rows) if not row.finish_reason]
            forward.cache.select(kept)
            rows = [rows[i] for i in kept]


def _forward(model: PreTrainedModel, n_prompts: int, batch_size: int, compiled: bool) -> Forward:
    """The model and its cache of as many slots as can be used; compiled, of a power of two where it is fewer."""
    if not compiled:
        return Forward(model, min(batch_size, n_prompts))
    from llmhalluc.decoding.compiled import CompiledForward  # torch's compiler takes a while to import

    return CompiledForward(model, min(batch_size, 1 << (n_prompts - 1).bit_length()))


def _step(rules: Rules, operator: Operator | None, forward: Forward, rows: list[Row]) -> list[Event]:
    """One forward, and a token for every row; rows that go back to a place with kept logits sample again."""
    logits_BV, events = forward.step(rows), []
    rewinds = operator is not None or (rules.context == "rewind" and rules.erase_id is not None)
    for i, row in enumerate(rows) if rewinds else ():
        _keep(row, logits_BV[i])
    todo = rows
    while todo:
        if operator is not None and _leave_dead_ends(rules, todo, logits_BV.shape[1], events):
            todo = [row for row in todo if len(row.tape.columns) in row.kept]
            if not todo:
                break
            logits_BV = torch.stack([row.kept[len(row.tape.columns)] for row in todo])
        tokens, logprobs = choose(logits_BV, todo, rules.options, rules.erase_id, rules.backtrack_id)
        sampled = [not row.forced for row in todo]
        for row, token, logprob in zip(todo, tokens, logprobs, strict=True):
            write(rules, row, token, logprob, events)
            end(rules, row)
        if operator is not None:
            _ask(rules, operator, todo, sampled, logits_BV, events)
        todo = [row for row in todo if not row.finish_reason and len(row.tape.columns) in row.kept]
        if todo:
            logits_BV = torch.stack([row.kept[len(row.tape.columns)] for row in todo])
    return events


def _leave_dead_ends(rules: Rules, rows: list[Row], n_vocabulary: int, events: list[Event]) -> bool:
    """Where an operator has had every token of a place banned, erase one deeper; whether any row did."""
    left = False
    for row in rows:
        while (
            (place := len(row.surviving))
            and rules.erase_id is None  # else BACKTRACK is there to leave by
            and row.rewound < budget(rules.options, row.limit)
            and list(row.penalties.get(place, {}).values()).count(-math.inf)
            >= n_vocabulary - (rules.backtrack_id is not None)
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


def _ask(
    rules: Rules, operator: Operator, todo: list[Row], sampled: list[bool], logits_BV: torch.Tensor,
    events: list[Event],
) -> None:  # fmt: skip
    """Let the operator judge the tokens just sampled, and do what it wishes within the budget.

    A row that is about to end is shown in any case, so that nothing which an operator forbids slips through.
    """

    def due(row: Row, sampled: bool) -> bool:
        judged = sampled and row.completion_ids[-1] != rules.erase_id
        on_turn = judged and len(row.completion_ids) % rules.options.backtrack_every_n == 0
        return bool(row.surviving) and bool(on_turn or row.finish_reason)

    asked = [i for i, row in enumerate(todo) if due(row, sampled[i])]
    if not asked:
        return
    rows, logits_BV = [todo[i] for i in asked], logits_BV if len(asked) == len(todo) else logits_BV[asked]
    for i, wish in operator(Step(rows, logits_BV)).items():
        row, count = rows[i], min(wish.n, len(rows[i].surviving))
        writes = wish.write and row.finish_reason != "length"
        if count < 0:
            raise ValueError(f"operator {wish.source} wishes to erase {wish.n} tokens")
        if row.rewound + count <= budget(rules.options, row.limit) and (count or writes):
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
            # The text has another end now: look again.
            _ask(rules, operator, [row], [False], logits_BV[i : i + 1], events)
