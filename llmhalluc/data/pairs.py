"""Preference pairs out of traces: an error stands in the prompt, chosen erases it, rejected continues with it."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from llmhalluc.backtrack import inject_error
from llmhalluc.data.backtrack import BacktrackConverter
from llmhalluc.data.base import BacktrackDatasetConverter, ErringConverter, Ids
from llmhalluc.data.dpo import Pair
from llmhalluc.data.selfgen import COLUMNS, SelfgenConverter
from llmhalluc.data.task import TaskBacktrackConverter, joined
from llmhalluc.extras.errors import UserError
from llmhalluc.tasks import task_of_record
from llmhalluc.tasks.base import ERASE, Piece

OWN, TEXT = "own", "text"  # sources beside the tasks: what run_selfgen wrote, and text with random error runs


class Decision(NamedTuple):
    """Ids of a completion up to a decision, and how it continues when that is right and when it is wrong."""

    shared: Ids
    chosen: Ids
    rejected: Ids


class PairSource(ErringConverter):
    """Stands before an erring converter in the bases: it draws the decisions of pairs, None where there is none."""

    def erase(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return an error run, which chosen erases; in rejected the clean answer continues as if nothing were wrong."""
        ids = encoded["completion_ids"]
        places = self.errors.eligible(ids)
        if not places:
            return None
        at = places[int(rng.random() * len(places))]
        run = self.errors.run(ids, at, self.errors.longest(progress), rng)
        return self.at_error(ids, at, run, ids[at:]) if run else None

    def keep(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return a text that is right so far: chosen continues, rejected erases a run and writes it again."""
        ids = encoded["completion_ids"]
        if len(ids) < 2:
            return None
        at = 1 + int(rng.random() * (len(ids) - 1))
        count = min(at, self.errors.length(rng, self.errors.longest(progress)))
        return Decision(ids[:at], ids[at:], [self.backtrack_id] * count + ids[at - count :])

    def at_error(self, ids: Ids, at: int, run: Sequence[int], carried_on: Ids) -> Decision:
        """Return clean ids with an error run before position `at`, cut where the erasing begins."""
        trace, cut = inject_error(ids, at, run, self.backtrack_id), at + len(run)
        return Decision(trace[:cut], trace[cut:], carried_on)


class TextPairs(PairSource, BacktrackConverter):
    """Text with random error runs."""


class OwnPairs(PairSource, SelfgenConverter):
    """What run_selfgen wrote."""

    def erase(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return the own steps from the first wrong one on; a run is counted in steps, rejected is the rest of them."""
        ids = encoded["completion_ids"]
        without_end = [[token for token in step if token != ids[-1]] for step in encoded["own"]]
        steps = [step for step in without_end if step]
        if not steps:
            return None
        count = min(self.errors.length(rng, self.errors.longest(progress)), len(steps))
        return self.at_error(ids, encoded["at"], joined(steps[:count]), [*joined(steps[count:]), ids[-1]])


class TaskPairs(PairSource, TaskBacktrackConverter):
    """A task's errors and searches."""

    def erase(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return an error of the task's, or a dead end: chosen turns back, rejected makes wrong moves."""
        if self.token_errors is not None:
            found = self.token_errors.pair(encoded, self.errors.longest(progress), rng)
            return found and self.at_error(encoded["completion_ids"], *found)
        if not self.task.can("search"):
            return super().erase(encoded, rng, progress)
        pieces = self.task.search(encoded["record"], rng)
        turns = [k for k in range(1, len(pieces)) if pieces[k] is ERASE and pieces[k - 1] is not ERASE]
        if not turns:
            return None
        k = turns[int(rng.random() * len(turns))]
        standing = _standing(pieces[:k])
        wrong = self.task.wrong_moves(encoded["record"], standing, rng)
        return self._decision(encoded, pieces, k, self.tokens.of_moves(wrong, len(standing)))

    def keep(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return a place of a search where a move is left: chosen makes it, rejected erases the last one."""
        if not self.task.can("search"):
            return super().keep(encoded, rng, progress)
        pieces, places, depth = self.task.search(encoded["record"], rng), [], 0
        for k, piece in enumerate(pieces):
            if piece is not ERASE and depth:
                places.append(k)
            depth += -1 if piece is ERASE else 1
        if not places:
            return None
        k = places[int(rng.random() * len(places))]
        *before, last = _standing(pieces[:k])
        wrong = self.task.wrong_moves(encoded["record"], before, rng, instead_of=last)
        erasing = [self.backtrack_id] * len(self.tokens.of(last, first=not before))
        return self._decision(encoded, pieces, k, [erasing, *self.tokens.of_moves(wrong, len(before))])

    def _decision(self, encoded: dict[str, Any], pieces: Sequence[Piece], k: int, wrong: Iterable[Ids]) -> Decision:
        """Return a search that is cut before piece `k`, its rest, and the ids of the wrong continuation."""
        runs, end = self.search_ids(pieces), encoded["completion_ids"][-1:]
        return Decision(joined(runs[:k]), joined(runs[k:]) + end, joined(wrong) + end)


def _standing(pieces: Sequence[Piece]) -> list[str]:
    """Return the moves that stand after some pieces of a search."""
    found: list[str] = []
    for piece in pieces:
        if piece is ERASE:
            found.pop()
        else:
            found.append(piece)
    return found


class BacktrackDPOConverter(BacktrackDatasetConverter):
    """Pairs from traces: chosen is the BACKTRACKs and the right continuation, rejected continues with the error.

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
        decision = self.source(encoded["source"]).erase(encoded, rng, progress)
        return decision and Pair(encoded["prompt_ids"], *decision)

    def keep_pair(self, encoded: dict[str, Any], rng: Random, progress: float) -> Pair | None:
        """The other decision: nothing calls for a BACKTRACK, chosen continues, rejected erases.

        Without such pairs every chosen side opens with a BACKTRACK, and erasing always is all there is to learn.
        """
        decision = self.source(encoded["source"]).keep(encoded, rng, progress)
        return decision and Pair(encoded["prompt_ids"], *decision)

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        """The trace of the chosen side, which SFT may train on; clean where there is no pair."""
        pair = self.pair(encoded, rng, progress)
        return encoded["completion_ids"] if pair is None else pair.shared_ids + pair.chosen_ids

    def source(self, name: str) -> PairSource:
        """The converter of a source; made when it is first needed, in whichever process needs it."""
        if name not in self.sources:
            args, kwargs = self.arguments
            if name in (OWN, TEXT):
                self.sources[name] = (OwnPairs if name == OWN else TextPairs)(*args, **kwargs)
            else:
                self.sources[name] = TaskPairs(*args, task=name, **kwargs)
        return self.sources[name]
