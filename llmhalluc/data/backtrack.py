"""Converters that put errors in, and the plain one: random error runs in the answers of `sft` records."""

from random import Random
from typing import Any

from llmhalluc.backtrack import inject_error
from llmhalluc.data.base import BacktrackDatasetConverter, Ids
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.data.sft import SFTConverter


class ErringConverter(BacktrackDatasetConverter):
    """A converter whose traces hold error runs, each followed by the BACKTRACKs that erase it; drawn anew each time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        ids = trace = encoded["completion_ids"]
        longest = self.errors.longest(progress)
        for at in reversed(self.errors.places(self.errors.eligible(ids), len(ids), rng)):
            trace = inject_error(trace, at, self.errors.run(ids, at, longest, rng), self.backtrack_id)
        return trace


class BacktrackConverter(ErringConverter, SFTConverter):
    """The answer with random error runs, as the `backtrack` section says."""
