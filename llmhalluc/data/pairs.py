"""Preference pairs out of traces: an error stands in the prompt, chosen erases it, rejected goes on with it."""

from collections.abc import Sequence
from random import Random
from typing import Any

from llmhalluc.data.backtrack import BacktrackConverter, Decision, ErringConverter
from llmhalluc.data.base import BacktrackDatasetConverter, Ids
from llmhalluc.data.dpo import Pair
from llmhalluc.data.selfgen import COLUMNS, SelfgenConverter
from llmhalluc.data.task import TaskBacktrackConverter
from llmhalluc.extras.errors import UserError
from llmhalluc.tasks import task_of_record

OWN, TEXT = "own", "text"  # sources beside the tasks: what run_selfgen wrote, and text with random error runs


class BacktrackDPOConverter(BacktrackDatasetConverter):
    """Pairs from traces: chosen is the BACKTRACKs and the right continuation, rejected goes on with the error.

    The columns of the records say where errors come from: the model's own traces, a task, or data.prompt_column and
    data.completion_column. Which step errs is drawn anew each time, and the `backtrack` section says how much of the
    error stands before the decision (run_length, min_run, max_run, curriculum; nesting where the errors are not the
    model's own); in a search the board says it. `rate` does not count.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.arguments, self.sources = (args, kwargs), {}

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ids and details of the source's own converter, and the `source`.

        Raises UserError for evaluation data that would have to be corrupted (law 8), and as that converter does.
        """
        name = OWN if set(COLUMNS) <= records[0].keys() else task_of_record(records[0]) or TEXT
        if not self.training and name != OWN:
            raise UserError(
                "data.converter backtrack_dpo puts errors in, and evaluation data are never corrupted: take out "
                "data.eval_dataset and data.eval_split, or name ready pairs with data.converter=dpo"
            )
        return [item | {"source": name} for item in self.source(name).encode_batch(records)]

    def check(self, encoded: Sequence[dict[str, Any]]) -> None:
        if encoded:
            self.source(encoded[0]["source"]).check(encoded)

    def pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair | None:
        """One pair; None where nothing in the record can be made wrong, or this draw went nowhere."""
        return _pair(encoded, self.source(encoded["source"]).erase(encoded, rng, progress))

    def keep_pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair | None:
        """The other decision: nothing calls for a BACKTRACK, chosen goes on, rejected erases.

        Without such pairs every chosen side opens with a BACKTRACK, and erasing always is all there is to learn.
        """
        return _pair(encoded, self.source(encoded["source"]).keep(encoded, rng, progress))

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        """The trace of the chosen side, which SFT may train on; clean where there is no pair."""
        pair = self.pair(encoded, rng, progress)
        return encoded["completion_ids"] if pair is None else pair.shared_ids + pair.chosen_ids

    def source(self, name: str) -> ErringConverter:
        """The converter of a source; made when it is first needed, in whichever process needs it."""
        if name not in self.sources:
            args, kwargs = self.arguments
            if name in (OWN, TEXT):
                self.sources[name] = (SelfgenConverter if name == OWN else BacktrackConverter)(*args, **kwargs)
            else:
                self.sources[name] = TaskBacktrackConverter(*args, task=name, **kwargs)
        return self.sources[name]


def _pair(encoded: dict[str, Any], decision: Decision | None) -> Pair | None:
    return None if decision is None else Pair(encoded["prompt_ids"], *decision)
