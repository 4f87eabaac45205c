"""Preference pairs: an error stands in the prompt, chosen erases and corrects it, rejected goes on with it."""

import logging
from array import array
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Dataset

from llmhalluc.backtrack import inject_error
from llmhalluc.data.backtrack import BacktrackConverter
from llmhalluc.data.base import DatasetConverter, Ids, column
from llmhalluc.data.collator import Draw
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.data.gsm8k import GSM8KBacktrackConverter
from llmhalluc.data.selfgen import COLUMNS, SelfgenConverter
from llmhalluc.data.sft import SFTConverter
from llmhalluc.data.sudoku import SudokuConverter
from llmhalluc.extras.errors import UserError
from llmhalluc.prompts.sudoku import peers

if TYPE_CHECKING:
    from llmhalluc.data.manager import TraceDataset

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

    def __init__(self, traces: "TraceDataset", keep_share: float = 0.0):
        self.converter: Any = traces.converter
        self.seed, self.max_length, self.keep_share = traces.seed, traces.max_length, keep_share
        self.encoded = [item for item in traces.encoded if self._first(_plain(item)) is not None]
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
        encoded, rng = _plain(self.encoded[index]), Random(f"{self.seed}-{epoch}-{index}")
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


class BacktrackDPOConverter(DatasetConverter):
    """Pairs from traces: chosen is the BACKTRACKs and the right continuation, rejected goes on with the error.

    The columns of the records say where errors come from (`SOURCES`). Which step errs is drawn anew each time, and the
    `backtrack` section says how much of the error stands before the decision (run_length, min_run, max_run, curriculum;
    nesting where the errors are not the model's own); `rate` does not count: a pair has one error.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.arguments, self.sources = (args, kwargs), {}
        self.errors = ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ids and details of the source's own converter, and the `source`.

        Raises UserError for evaluation data that would have to be corrupted (law 8), and as that converter does.
        """
        name = next(name for name, source in SOURCES.items() if source.columns <= records[0].keys())
        if not self.training and name != "own":
            raise UserError(
                "data.converter backtrack_dpo puts errors in, and evaluation data are never corrupted: take out "
                "data.eval_dataset and data.eval_split, or name ready pairs with data.converter=dpo"
            )
        return [item | {"source": name} for item in self._of(name).encode_batch(records)]

    def pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair | None:
        """One pair; None where nothing in the record can be made wrong, or this draw went nowhere."""
        name, ids = encoded["source"], encoded["completion_ids"]
        longest = self.errors.longest(progress)
        error = SOURCES[name].error(self._of(name), self.errors, encoded, longest, rng)
        if error is None:
            return None
        at, run, carried_on = error
        trace, cut = inject_error(ids, at, run, self.backtrack_id), at + len(run)
        return Pair(encoded["prompt_ids"], trace[:cut], trace[cut:], carried_on)

    def keep_pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair:
        """The other decision: the text is right so far, chosen goes on, rejected erases it and writes it again.

        Without such pairs every chosen side opens with a BACKTRACK, and erasing always is all there is to learn.
        """
        ids = encoded["completion_ids"]
        at = 1 + int(rng.random() * (len(ids) - 1))
        count = min(at, self.errors.length(rng, self.errors.longest(progress)))
        return Pair(encoded["prompt_ids"], ids[:at], ids[at:], [self.backtrack_id] * count + ids[at - count :])

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        """The trace of the chosen side, which SFT may train on; clean where there is no pair."""
        pair = self.pair(encoded, rng, progress)
        return encoded["completion_ids"] if pair is None else pair.shared_ids + pair.chosen_ids

    def _of(self, name: str) -> Any:
        """The source's converter; made when it is first needed, in whichever process needs it."""
        if name not in self.sources:
            args, kwargs = self.arguments
            self.sources[name] = SOURCES[name].converter(*args, **kwargs)
        return self.sources[name]


# Where an error stands in the clean completion, its ids up to the decision, and the completion that goes on with it.
Error = tuple[int, Ids, Ids]


def own_error(_: Any, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random) -> Error | None:
    """The model's own steps from the first wrong one on; a run is counted in steps, the rest of them follows it."""
    eos = encoded["completion_ids"][-1]
    steps = [step for step in ([i for i in own if i != eos] for own in encoded["own"]) if step]
    if not steps:
        return None
    count = min(errors.length(rng, longest), len(steps))
    error, rest = ([i for step in part for i in step] for part in (steps[:count], steps[count:]))
    return encoded["at"], error, [*rest, eos]


def sudoku_error(
    converter: SudokuConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Error | None:
    """A wrong move that row, column and box allow, and random allowed moves after it, until a cell allows none.

    From such a cell on the moves are the solution's: the board gets full, and stays wrong.
    """
    answer, ids, move_ids = encoded["answer"], encoded["completion_ids"], converter.move_ids
    board = list(encoded["puzzle"])
    neighbours = peers(converter.data.sudoku_size)
    blanks = [cell for cell, digit in enumerate(board) if not digit]

    def allowed(cell: int) -> list[int]:
        taken = {board[other] for other in neighbours[cell]}
        return [digit for digit in range(1, converter.data.sudoku_size + 1) if digit not in taken]

    wrong: list[tuple[int, int]] = []
    for at, cell in enumerate(blanks):
        wrong += [(at, digit) for digit in allowed(cell) if digit != answer[at]]
        board[cell] = answer[at]
    if not wrong:
        return None
    at, digit = wrong[int(rng.random() * len(wrong))]
    for cell in blanks[at:]:
        board[cell] = 0
    moves: Ids = []
    for cell in blanks[at:]:
        choices = allowed(cell) if moves else [digit]
        if not choices:
            break
        board[cell] = choices[int(rng.random() * len(choices))]
        moves.append(move_ids[cell][board[cell] - 1])
    cut = min(errors.length(rng, longest), len(moves))
    return at, moves[:cut], moves[cut:] + ids[at + len(moves) :]


def gsm8k_error(
    converter: GSM8KBacktrackConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Error | None:
    """A wrong result and as many tokens as the section draws; the solution that carries it on to its last line.

    None where what follows from it makes no sense (a negative number of hens).
    """
    steps, numbers, ids = encoded["steps"], encoded["numbers"], encoded["completion_ids"]
    if not steps:
        return None
    step, length, seed = int(rng.random() * len(steps)), errors.length(rng, longest), rng.random()
    at, run = converter._error(encoded, step, length, Random(seed))
    _, whole = converter._error(encoded, step, 2 * len(ids), Random(seed))
    last = len(numbers) - 1
    if steps[step][0] < last:
        between = ids[numbers[last - 1][1] : numbers[last][0]]  # "####" among them: there once, and there at the end
        if not any(whole[i : i + len(between)] == between for i in range(len(whole))):
            return None
    if not run or whole[: len(run)] != run:
        return None
    return at, errors.nest(run, longest, rng), [*whole[len(run) :], ids[-1]]


def text_error(
    converter: BacktrackConverter, errors: ErrorRuns, encoded: dict[str, Any], longest: int, rng: Random
) -> Error | None:
    """An error run of the `backtrack` section's source, after which the clean answer goes on as if nothing were."""
    ids = encoded["completion_ids"]
    places = errors.eligible(ids)
    if not places:
        return None
    at = places[int(rng.random() * len(places))]
    run = errors.run(ids, at, longest, rng)
    return (at, run, ids[at:]) if run else None


class Source(NamedTuple):
    """Records with these columns, the converter that reads them, and the function that draws an error."""

    columns: set[str]
    converter: type[DatasetConverter]
    error: Callable[..., Error | None]


SOURCES = {  # the first whose columns are there; the last reads data.prompt_column and data.completion_column
    "own": Source(set(COLUMNS), SelfgenConverter, own_error),
    "sudoku": Source({"puzzle", "solution"}, SudokuConverter, sudoku_error),
    "gsm8k": Source({"question", "answer"}, GSM8KBacktrackConverter, gsm8k_error),
    "text": Source(set(), BacktrackConverter, text_error),
}


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """A packed record with its ids as lists."""
    return {name: value.tolist() if isinstance(value, array) else value for name, value in item.items()}
