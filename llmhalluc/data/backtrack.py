"""Random error runs in the answers of `sft` records."""

from random import Random
from typing import Any

from llmhalluc.backtrack import inject_error
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.data.sft import SFTConverter


class BacktrackConverter(SFTConverter):
    """The answer with error runs, each followed by the BACKTRACKs that erase it; drawn anew each time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> list[int]:
        ids = trace = encoded["completion_ids"]
        longest = self.errors.longest(progress)
        for at in reversed(self.errors.places(self.errors.eligible(ids), len(ids), rng)):
            trace = inject_error(trace, at, self.errors.run(ids, at, longest, rng), self.backtrack_id)
        return trace
