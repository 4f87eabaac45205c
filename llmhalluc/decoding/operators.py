"""Rules that look at the token just sampled and say how many to erase; docs/decoding.md shows how to write one.

Every probability is of the model's own distribution: the full softmax at temperature 1, before anything is scaled, cut
or banned. An operator is any function from a `Step` to `{index of row: Erase}`; what it must remember of a text it
derives from `row.surviving`, `row.logprobs` and `row.memo`, which are cut when the row erases. B rows, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch

from llmhalluc.decoding.rows import Erase, Step
from llmhalluc.extras.errors import UserError

Operator = Callable[[Step], dict[int, Erase]]


@dataclass(frozen=True)
class Never:
    """Erases nothing: plain decoding."""

    def __call__(self, step: Step) -> dict[int, Erase]:
        return {}


@dataclass(frozen=True)
class ProbabilityThreshold:
    """Erases a token less likely than `minimum`."""

    minimum: float = 0.05
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        lowest = math.log(self.minimum) if self.minimum > 0 else -math.inf
        return _erase(self, (i for i, row in enumerate(step.rows) if row.logprobs[-1] < lowest))


@dataclass(frozen=True)
class EntropyThreshold:
    """Erases where the distribution that the token came from had more than `maximum` nats."""

    maximum: float = 0.2
    erase: int = 2
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        logprobs_BV = step.logits_BV.log_softmax(-1)
        entropy_B = -(logprobs_BV.exp() * logprobs_BV).nan_to_num(0.0).sum(-1)  # 0 · -inf is 0
        return _erase(self, _true(entropy_B > self.maximum))


@dataclass(frozen=True)
class ProbabilityMargin:
    """Erases where the likeliest token led the second one by less than `minimum`."""

    minimum: float = 0.05
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        first_two_B2 = (step.logits_BV.topk(2).values - step.logits_BV.logsumexp(-1, keepdim=True)).exp()
        return _erase(self, _true(first_two_B2[:, 0] - first_two_B2[:, 1] < self.minimum))


@dataclass(frozen=True)
class ProbabilityDrop:
    """Erases a token whose probability lies more than the share `maximum` below the previous surviving token's."""

    maximum: float = 0.8
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        least = math.log1p(-self.maximum) if self.maximum < 1 else -math.inf
        return _erase(
            self,
            (i for i, row in enumerate(step.rows)
             if len(row.logprobs) > 1 and row.logprobs[-1] - row.logprobs[-2] < least),
        )  # fmt: skip


@dataclass(frozen=True)
class ProbabilityTrend:
    """Erases a token less likely than `share` of the mean over the `window` surviving tokens before it."""

    window: int = 10
    share: float = 0.5
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        def falls(logprobs: list[float]) -> bool:
            before = logprobs[-1 - self.window : -1]
            mean = sum(map(math.exp, before)) / self.window
            return len(before) == self.window and math.exp(logprobs[-1]) < self.share * mean

        return _erase(self, (i for i, row in enumerate(step.rows) if falls(row.logprobs)))


@dataclass(frozen=True)
class Repetition:
    """Erases a token that stands more than `maximum` times in a row."""

    maximum: int = 3
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        def repeats(ids: list[int]) -> bool:
            return len(ids) > self.maximum and ids[-1 - self.maximum :].count(ids[-1]) > self.maximum

        return _erase(self, (i for i, row in enumerate(step.rows) if repeats(row.surviving)))


@dataclass(frozen=True)
class NGramOverlap:
    """Erases the token that completes `n` tokens which the surviving completion already holds."""

    n: int = 4
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        return _erase(self, [i for i, row in enumerate(step.rows) if self._seen(row)])

    def _seen(self, row) -> bool:
        """Whether the newest n-gram stands earlier; remembers, by token, the ends of the n-grams (for speed)."""
        ids, n = row.surviving, self.n
        grams = row.memo.setdefault(self, [])
        for end in range(len(grams) + 1, len(ids) + 1):
            grams.append(tuple(ids[max(0, end - n) : end]))
        return len(ids) > n and grams[-1] in grams[n - 1 : -1]


@dataclass(frozen=True)
class LogitThreshold:
    """Erases a token whose logit lies below `minimum`."""

    minimum: float = -20.0
    erase: int = 1
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        ids_B = torch.tensor([row.surviving[-1] for row in step.rows], device=step.logits_BV.device)
        return _erase(self, _true(step.logits_BV.gather(1, ids_B[:, None])[:, 0] < self.minimum))


@dataclass(frozen=True)
class BacktrackToken:
    """Treats the token `token_id` as a backspace that leaves no row behind: it goes, and the token before it.

    For models whose vocabulary has such a token without a context they were trained in; models of ours need no
    operator for theirs.
    """

    token_id: int
    penalty: float = -math.inf

    def __call__(self, step: Step) -> dict[int, Erase]:
        return {
            i: Erase(min(2, len(row.surviving)), self.penalty, source="backtrack_token")
            for i, row in enumerate(step.rows)
            if row.surviving[-1] == self.token_id
        }


class Chain:
    """Asks several operators; of a row's wishes the one that erases most is granted, the first among equals."""

    def __init__(self, *operators: Operator):
        self.operators = operators

    def __call__(self, step: Step) -> dict[int, Erase]:
        wishes: dict[int, Erase] = {}
        for operator in self.operators:
            for i, wish in operator(step).items():
                if i not in wishes or wish.n > wishes[i].n:
                    wishes[i] = wish
        return wishes


OPERATORS = {
    "never": Never,
    "probability_threshold": ProbabilityThreshold,
    "entropy_threshold": EntropyThreshold,
    "probability_margin": ProbabilityMargin,
    "probability_drop": ProbabilityDrop,
    "probability_trend": ProbabilityTrend,
    "repetition": Repetition,
    "ngram_overlap": NGramOverlap,
    "logit_threshold": LogitThreshold,
    "backtrack_token": BacktrackToken,
}
# The least and the greatest value of each parameter.
LIMITS = {
    "erase": (1, math.inf), "penalty": (-math.inf, 0.0), "window": (1, math.inf), "n": (1, math.inf),
    "share": (0.0, 1.0), "token_id": (0, math.inf),
}  # fmt: skip


def make_operator(name: str, **parameters: Any) -> Operator:
    """The operator of this name. Raises UserError, one sentence each, for unknown names and values out of range."""
    if name not in OPERATORS:
        near = get_close_matches(name, OPERATORS, n=1, cutoff=0.0)[0]
        raise UserError(f"operator {name!r} is unknown; the nearest is {near} (there are {', '.join(OPERATORS)})")
    known, errors = {field.name: field.type for field in fields(OPERATORS[name])}, []
    for key, value in parameters.items():
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)
            errors.append(f"operator {name} has no parameter {key!r}" + (f"; the nearest is {near[0]}" if near else ""))
            continue
        low, high = LIMITS.get(key, (-math.inf, math.inf))
        whole = known[key] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            errors.append(f"{key} of operator {name} is {value!r}, expected {kind} from {low:g} to {high:g}")
    if errors:
        raise UserError(*errors)
    return OPERATORS[name](**parameters)


def _erase(operator: Any, indices) -> dict[int, Erase]:
    source = next(name for name, kind in OPERATORS.items() if type(operator) is kind)
    return {i: Erase(operator.erase, operator.penalty, source=source) for i in indices}


def _true(flags_B: torch.Tensor) -> list[int]:
    return flags_B.nonzero()[:, 0].tolist()
