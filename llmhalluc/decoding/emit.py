"""What an emitted token does to its row, whoever computed the logits: it is written, it erases, it ends the row."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import Tape
from llmhalluc.decoding.rows import Erasure, Event, Row, Trace
from llmhalluc.hparams.gen_args import GenArguments


@dataclass(frozen=True)
class Rules:
    """What holds for every row of a run."""

    options: GenArguments
    eos_ids: frozenset[int]
    backtrack_id: int | None
    context: str
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def erase_id(self) -> int | None:
        """BACKTRACK where it may be used."""
        return self.backtrack_id if self.options.backtrack else None


def check_prompts(prompts: Sequence[list[int]], options: GenArguments, tokenizer) -> None:
    """Raise ValueError for an empty prompt, and for stop strings without a tokenizer."""
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not p)} is empty")
    if options.stop and tokenizer is None:
        raise ValueError("stop strings need a tokenizer")


def new_row(rules: Rules, index: int, prompt: list[int], key: str, limit: int) -> Row:
    """A row that has emitted nothing; it draws from its own stream, named by the seed and `key`."""
    return Row(
        index, prompt, Tape(prompt, rules.erase_id, rules.context), random.Random(f"{rules.options.seed}-{key}"),
        (prompt[-1], len(prompt) - 1), limit,
    )  # fmt: skip


def write(rules: Rules, row: Row, token: int, logprob: float, events: list[Event]) -> None:
    """Put a token on the row's tape; a BACKTRACK bans what it erases."""
    place, writer = len(row.surviving), ""
    if row.forced:
        token, writer = row.forced.popleft(), row.writer
    row.completion_ids.append(token)
    row.emitted_logprobs.append(logprob)
    if token != rules.erase_id:
        row.logprobs.append(logprob)
        row.written.append(writer)
        events.append(Event(row.index, "add", token))
    elif place:
        erased = row.surviving[-1]
        row.forget(place - 1)
        if rules.options.ban_erased:
            row.penalties.setdefault(place - 1, {})[erased] = -math.inf
        row.events.append(Erasure(len(row.completion_ids), 1, "BACKTRACK"))
        events.append(Event(row.index, "erase", 1))
    row.feed = row.tape.feed(token)
    if token != rules.erase_id or rules.context != "rewind":
        # The place after a new row is new: what was kept under its number belongs to another text.
        for stale in [n for n in row.kept if n >= len(row.tape.columns)]:
            del row.kept[stale]


def end(rules: Rules, row: Row) -> None:
    """See whether the row ends, unless its operator objects; what is being written ends at the limit alone."""
    surviving, whole = row.surviving, not row.forced
    if whole and surviving and row.completion_ids[-1] in rules.eos_ids and surviving[-1] in rules.eos_ids:
        row.finish_reason = "eos"
    elif whole and surviving and rules.options.stop and _stops(row, rules.options.stop, rules.tokenizer):
        row.finish_reason = "stop"
    elif len(row.completion_ids) - row.rewound >= row.limit:
        row.finish_reason = "length"


def trace_of(row: Row, tokenizer) -> Trace:
    """What is told of a row that has ended."""
    if tokenizer is not None and row.finish_reason != "stop":
        row.text = tokenizer.decode(row.surviving, skip_special_tokens=True)
    return Trace(
        row.prompt_ids, row.completion_ids, row.surviving, row.tape.erased, row.finish_reason, row.text,
        row.emitted_logprobs, row.events, row.forward_passes,
    )  # fmt: skip


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
