"""Error runs as the `backtrack` section says: where they stand, how long they are, which tokens they hold."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import log, log1p
from random import Random

from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import inject_error
from llmhalluc.hparams.sections import BacktrackArguments

# <unused12>, [PAD], <0x0A>, <|reserved|>: not text, whether or not the tokenizer calls them special.
_RESERVED = re.compile(r"<[^<>\s]+>|\[[A-Za-z]+\d*\]")
_NUMBER = re.compile(r"([Ġ▁ ]?)([0-9]+)")  # the marks of a leading space


def plain_ids(tokenizer: PreTrainedTokenizerBase, backtrack_id: int | None) -> list[int]:
    """Ids of the plain vocabulary, ascending: no special, added or reserved token, never BACKTRACK."""
    barred = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, backtrack_id}
    vocab = tokenizer.get_vocab()
    return sorted(i for token, i in vocab.items() if i not in barred and not _RESERVED.fullmatch(token))


def number_forms(tokenizer: PreTrainedTokenizerBase, plain: Sequence[int]) -> dict[int, list[int]]:
    """For each token that is a number, the tokens of its form: as many digits, a leading space or none."""
    forms: dict[tuple[str, int], list[int]] = {}
    for i, token in zip(plain, tokenizer.convert_ids_to_tokens(plain), strict=True):
        if match := _NUMBER.fullmatch(token):
            forms.setdefault((match[1], len(match[2])), []).append(i)
    return {i: same for same in forms.values() if len(same) > 1 for i in same}


class ErrorRuns:
    """Draws error runs; all randomness is the `rng` that is handed in."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, backtrack_id: int | None, backtrack: BacktrackArguments):
        self.args, self.backtrack_id = backtrack, backtrack_id
        self.plain = plain_ids(tokenizer, backtrack_id)
        self.is_plain = frozenset(self.plain)
        self.forms = number_forms(tokenizer, self.plain) if backtrack.source == "digits" else {}
        # Weights of the lengths min_run, min_run + 1, …, summed up: a shorter longest run cuts the tail off.
        ratio = 1 - 1 / backtrack.mean_run if backtrack.run_length == "geometric" else 1.0
        self.cumulative = list(accumulate(ratio**k for k in range(backtrack.max_run - backtrack.min_run + 1)))

    def longest(self, progress: float) -> int:
        """The longest run at this share of training, tokens."""
        low, high = self.args.min_run, self.args.max_run
        if self.args.curriculum == "none" or progress >= self.args.curriculum_end:
            return high
        return low + int((high - low) * progress / self.args.curriculum_end)

    def length(self, rng: Random, longest: int) -> int:
        """A run's length in tokens, min_run..longest."""
        last = longest - self.args.min_run
        more = bisect_right(self.cumulative, rng.random() * self.cumulative[last])
        return self.args.min_run + min(more, last)

    def places(self, eligible: Sequence[int], tokens: int, rng: Random) -> list[int]:
        """Those of the `eligible` positions before which a run begins: rate × tokens of them on average."""
        share = self.args.rate * tokens / len(eligible) if eligible else 0.0
        if share >= 1:
            return list(eligible)
        chosen: list[int] = []
        if share > 0:  # the gap to the next success of a coin is geometric
            scale = 1 / log1p(-share)
            i = int(log(1 - rng.random()) * scale)
            while i < len(eligible):
                chosen.append(eligible[i])
                i += 1 + int(log(1 - rng.random()) * scale)
        return chosen

    def eligible(self, completion_ids: Sequence[int]) -> Sequence[int]:
        """Positions of a completion before which a run of the source can stand."""
        if self.args.source == "digits":
            return [i for i, token in enumerate(completion_ids) if token in self.forms]
        return range(len(completion_ids))

    def run(self, ids: Sequence[int], at: int, longest: int, rng: Random) -> list[int]:
        """Error tokens to stand before `ids[at]`, the first another one; none where the source has none.

        With probability `nesting` they hold an erased run of their own.
        """
        error = self._tokens(ids, at, self.length(rng, longest), rng)
        return self.nest(error, longest, rng)

    def nest(self, error: list[int], longest: int, rng: Random) -> list[int]:
        """With probability `nesting` the error with an erased run of its own after one of its tokens."""
        if not error or rng.random() >= self.args.nesting:
            return error
        at = 1 + int(rng.random() * len(error))
        return inject_error(error, at, self.run(error, at, longest, rng), self.backtrack_id)

    def _tokens(self, ids: Sequence[int], at: int, length: int, rng: Random) -> list[int]:
        right = ids[at] if at < len(ids) else None
        if self.args.source == "digits":
            error = []
            for i in range(at, min(at + length, len(ids))):
                if ids[i] not in self.forms:
                    break
                error.append(_choose(self.forms[ids[i]], None if error else right, rng))
            return error
        shuffled = self.args.source == "shuffled"
        pool = [token for token in ids if token in self.is_plain] if shuffled else self.plain
        if all(token == right for token in pool):
            return []
        return [_choose(pool, right if i == 0 else None, rng) for i in range(length)]


def _choose(pool: Sequence[int], other_than: int | None, rng: Random) -> int:
    while True:
        token = pool[int(rng.random() * len(pool))]
        if token != other_than:
            return token
