"""Preference pairs: an error stands in the prompt, chosen erases and corrects it, rejected continues with it."""

import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from llmhalluc.data.backtrack import SFTConverter
from llmhalluc.data.base import Ids, column
from llmhalluc.data.collator import Draw
from llmhalluc.data.traces import TraceDataset, unpack
from llmhalluc.extras.errors import UserError

logger = logging.getLogger(__name__)
_TRIES = 8  # draws of a record before its first pair is taken


class Pair(NamedTuple):
    """Ids of one pair: both completions follow `prompt_ids` + `shared_ids`, whose end is the error.

    A BACKTRACK in `chosen_ids` erases what it finds in `shared_ids`; `prompt_ids` are out of its reach.
    """

    prompt_ids: Ids
    shared_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids


class PairDataset(Dataset):
    """The pairs of the records of `traces`, whose converter has a `pair`; keys as of TraceDataset.

    A pair depends on the seed and its key alone. Items are dicts of lists of int, as TRL's collator for preferences
    takes them: `prompt_ids` (the shared part too), `chosen_ids`, `rejected_ids`. Records of which no pair can be made,
    or none of at most `max_length` tokens (prompt and longer completion), are left out and counted.

    keep_share: how many of the pairs are the converter's `keep_pair`, in which nothing is wrong yet.
    """

    def __init__(self, traces: TraceDataset, keep_share: float = 0.0):
        self.converter: Any = traces.converter
        self.seed, self.max_length, self.keep_share = traces.seed, traces.max_length, keep_share
        self.encoded = [item for item in traces.encoded if self._first(unpack(item)) is not None]
        if left_out := len(traces) - len(self):
            logger.warning(
                "%d of %d records of %s make no pair (data.max_length is %s) and are left out",
                left_out, len(traces), self.converter.data.dataset, self.max_length,
            )  # fmt: skip
        self.left_out = traces.left_out + left_out

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: Draw | int) -> dict[str, Ids]:
        pair = self.pair(*(key if isinstance(key, tuple) else Draw(0, key, 1.0)))
        return {
            "prompt_ids": pair.prompt_ids + pair.shared_ids,
            "chosen_ids": pair.chosen_ids,
            "rejected_ids": pair.rejected_ids,
        }

    def pair(self, epoch: int, index: int, progress: float) -> Pair:
        """One draw; where several tries make none that is short enough, the pair that kept the record."""
        encoded, rng = unpack(self.encoded[index]), Random(f"{self.seed}-{epoch}-{index}")
        keep = self.keep_share and rng.random() < self.keep_share
        make = self.converter.keep_pair if keep else self.converter.pair
        pair = self._draw(make, encoded, rng, progress) or self._first(encoded)
        assert pair is not None
        return pair

    def mean_length(self, n: int = 1000) -> float:
        """Mean tokens of a pair, both its traces, over n draws (at most one a record) spread over the training."""
        n = min(n, len(self))
        pairs = (self.pair(0, i, i / n) for i in range(n))
        return sum(2 * len(p.prompt_ids + p.shared_ids) + len(p.chosen_ids + p.rejected_ids) for p in pairs) / n

    def _first(self, encoded: dict[str, Any]) -> Pair | None:
        return self._draw(self.converter.pair, encoded, Random(self.seed), 0.0)

    def _draw(
        self, make: Callable[..., Pair | None], encoded: dict[str, Any], rng: Random, progress: float
    ) -> Pair | None:
        for _ in range(_TRIES):
            pair = make(encoded, rng, progress)
            if pair is not None and self._fits(pair):
                return pair
        return None

    def _fits(self, pair: Pair) -> bool:
        longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
        return self.max_length is None or len(pair.prompt_ids) + len(pair.shared_ids) + longest <= self.max_length


class DPOConverter(SFTConverter):
    """Ready pairs: `data.prompt_column`, `chosen` and `rejected`, all text, or all lists of ids taken as they are.

    Text goes the way of `sft` and gets its eos; text that spells out BACKTRACK is refused, because it cannot say how
    many tokens that erases: pairs that erase come as ids, the eos included.
    """

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`prompt_ids`, `completion_ids` (the chosen ones) and `rejected_ids`."""
        asks = f"data.converter {self.data.converter}"
        names = {self.data.prompt_column: "data.prompt_column", "chosen": asks, "rejected": asks}
        values = [[column(record, name, key) for name, key in names.items()] for record in records]
        if all(isinstance(value, str) for row in values for value in row):
            chosen, rejected = (
                super(DPOConverter, self).encode_batch(
                    [record | {self.data.completion_column: record[side]} for record in records]
                )
                for side in ("chosen", "rejected")
            )
            sides = zip(chosen, rejected, strict=True)
            return [of | {"rejected_ids": other["completion_ids"]} for of, other in sides]
        if all(isinstance(value, list) and {type(i) for i in value} <= {int} for row in values for value in row):
            for prompt, *completions in values:
                self._check(prompt, completions)
            return [dict(zip(("prompt_ids", "completion_ids", "rejected_ids"), row, strict=True)) for row in values]
        raise UserError(
            f"data.dataset {self.data.dataset} has pairs whose {', '.join(names)} are neither all text nor all lists "
            "of token ids: write them in one of the two ways"
        )

    def pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair | None:
        """The pair as it is; None where nothing is preferred, or to nothing."""
        prompt, chosen, rejected = (encoded[f"{name}_ids"] for name in ("prompt", "completion", "rejected"))
        return Pair(prompt, [], chosen, rejected) if chosen and rejected and chosen != rejected else None

    def _check(self, prompt: Ids, completions: Sequence[Ids]) -> None:
        """Raise UserError for ids that are none of the tokenizer's, no prompt, or BACKTRACKs with nothing to erase."""
        if not prompt:
            raise UserError(f"data.dataset {self.data.dataset} has a pair without a prompt: remove it")
        for completion in completions:
            depth = 0
            for token in (*prompt, *completion):
                depth += -1 if token == self.backtrack_id else 1
                if not 0 <= token < len(self.tokenizer):
                    problem = f"the id {token}, and the tokenizer has {len(self.tokenizer)} tokens"
                elif depth < 0:
                    problem = f"a BACKTRACK (id {token}) with nothing left to erase"
                else:
                    continue
                raise UserError(f"data.dataset {self.data.dataset} has a pair with {problem}: was another one used?")
