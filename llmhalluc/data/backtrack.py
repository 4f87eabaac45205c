"""Converters that put errors in, and the plain one: random error runs in the answers of `sft` records."""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from llmhalluc.backtrack import inject_error
from llmhalluc.data.base import BacktrackDatasetConverter, Ids
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.data.sft import SFTConverter


class Decision(NamedTuple):
    """Ids of a completion up to a decision, and how it goes on when that is right and when it is wrong."""

    shared: Ids
    chosen: Ids
    rejected: Ids


class ErringConverter(BacktrackDatasetConverter):
    """A converter whose traces hold error runs, each followed by the BACKTRACKs that erase it; drawn anew each time.

    `erase` and `keep` draw the decisions of preference pairs, None where there is none to draw.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        ids = trace = encoded["completion_ids"]
        longest = self.errors.longest(progress)
        for at in reversed(self.errors.places(self.errors.eligible(ids), len(ids), rng)):
            trace = inject_error(trace, at, self.errors.run(ids, at, longest, rng), self.backtrack_id)
        return trace

    def erase(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return an error run, which chosen erases; in rejected the clean answer goes on as if nothing were."""
        ids = encoded["completion_ids"]
        places = self.errors.eligible(ids)
        if not places:
            return None
        at = places[int(rng.random() * len(places))]
        run = self.errors.run(ids, at, self.errors.longest(progress), rng)
        return self.at_error(ids, at, run, ids[at:]) if run else None

    def keep(self, encoded: dict[str, Any], rng: Random, progress: float) -> Decision | None:
        """Return a text that is right so far: chosen goes on, rejected erases a run and writes it again."""
        ids = encoded["completion_ids"]
        if len(ids) < 2:
            return None
        at = 1 + int(rng.random() * (len(ids) - 1))
        count = min(at, self.errors.length(rng, self.errors.longest(progress)))
        return Decision(ids[:at], ids[at:], [self.errors.backtrack_id] * count + ids[at - count :])

    def at_error(self, ids: Ids, at: int, run: Sequence[int], carried_on: Ids) -> Decision:
        """Return clean ids with an error run before position `at`, cut where the erasing begins."""
        trace, cut = inject_error(ids, at, run, self.errors.backtrack_id), at + len(run)
        return Decision(trace[:cut], trace[cut:], carried_on)


class BacktrackConverter(ErringConverter, SFTConverter):
    """The answer with random error runs, as the `backtrack` section says."""
