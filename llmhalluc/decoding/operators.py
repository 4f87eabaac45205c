"""Rules that look at the token just sampled and say how many to erase; docs/decoding.md shows how to write one.

Every probability is of the model's own distribution: the full softmax at temperature 1, before anything is scaled, cut
or banned. An operator is any function from a `Step` to `{index of sequence: Erase}`; what it must remember of a text it
derives from the sequence's `surviving`, `logprobs` and `operator_state`, which are cut as it erases, copied as it forks
and new with each prompt. B sequences, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from llmhalluc.decoding.sequence import Erase, Sequence, Step
from llmhalluc.extras.errors import UserError, did_you_mean

Operator = Callable[[Step], dict[int, Erase]]


def _between(low: float, high: float, default: Any = MISSING, **options: Any) -> Any:
    """A dataclass field whose value lies from `low` to `high`."""
    return field(default=default, metadata={"between": (low, high)}, **options)


@dataclass(frozen=True)
class Rule:
    """What the rules share: how many tokens they erase and what is added to the logit of the first of them.

    Raises UserError, one sentence each, for values out of range.
    """

    erase: int = _between(1, math.inf, 1, kw_only=True)
    penalty: float = _between(-math.inf, 0.0, -math.inf, kw_only=True)

    def __post_init__(self):
        if errors := _wrong(type(self), vars(self)):
            raise UserError(*errors)

    def errs(self, sequence: Sequence) -> bool:
        """Whether the newest token of a sequence is to be erased; a rule that reads logits judges whole steps."""
        raise NotImplementedError

    def __call__(self, step: Step) -> dict[int, Erase]:
        return self.wishes(i for i, sequence in enumerate(step.sequences) if self.errs(sequence))

    def wishes(self, indices: Iterable[int], n: int | None = None) -> dict[int, Erase]:
        """Erase in the sequences of these indices."""
        source = _NAMES.get(type(self), type(self).__name__)
        return {i: Erase(n or self.erase, self.penalty, source=source) for i in indices}


@dataclass(frozen=True)
class Never:
    """Erases nothing: plain decoding."""

    def __call__(self, step: Step) -> dict[int, Erase]:
        return {}


@dataclass(frozen=True)
class ProbabilityThreshold(Rule):
    """Erases a token less likely than `minimum`."""

    minimum: float = _between(0.0, 1.0, 0.05)

    def errs(self, sequence: Sequence) -> bool:
        return self.minimum > 0 and sequence.logprobs[-1] < math.log(self.minimum)


@dataclass(frozen=True)
class EntropyThreshold(Rule):
    """Erases where the distribution that the token came from had more than `maximum` nats."""

    maximum: float = _between(0.0, math.inf, 0.2)
    erase: int = _between(1, math.inf, 2, kw_only=True)

    def __call__(self, step: Step) -> dict[int, Erase]:
        import torch  # not at the top: a configuration that names an operator is checked without it

        lowest = torch.finfo(step.logits_BV.dtype).min  # not -inf: times 0 that is no number
        logprobs_BV = step.logits_BV.log_softmax(-1).clamp(min=lowest)
        return self.wishes(_true(-torch.linalg.vecdot(logprobs_BV.exp(), logprobs_BV) > self.maximum))


@dataclass(frozen=True)
class ProbabilityMargin(Rule):
    """Erases where the likeliest token led the second one by less than `minimum`."""

    minimum: float = _between(0.0, 1.0, 0.05)

    def __call__(self, step: Step) -> dict[int, Erase]:
        first_two_B2 = (step.logits_BV.topk(2).values - step.logits_BV.logsumexp(-1, keepdim=True)).exp()
        return self.wishes(_true(first_two_B2[:, 0] - first_two_B2[:, 1] < self.minimum))


@dataclass(frozen=True)
class ProbabilityDrop(Rule):
    """Erases a token whose probability lies more than the share `maximum` below the previous surviving token's."""

    maximum: float = _between(0.0, 1.0, 0.8)

    def errs(self, sequence: Sequence) -> bool:
        logprobs = sequence.logprobs
        return len(logprobs) > 1 and math.exp(logprobs[-1]) < (1 - self.maximum) * math.exp(logprobs[-2])


@dataclass(frozen=True)
class ProbabilityTrend(Rule):
    """Erases a token less likely than `share` of the mean over the `window` surviving tokens before it."""

    window: int = _between(1, math.inf, 10)
    share: float = _between(0.0, 1.0, 0.5)

    def errs(self, sequence: Sequence) -> bool:
        before = sequence.logprobs[-1 - self.window : -1]
        mean = sum(map(math.exp, before)) / self.window
        return len(before) == self.window and math.exp(sequence.logprobs[-1]) < self.share * mean


@dataclass(frozen=True)
class Repetition(Rule):
    """Erases a token that stands more than `maximum` times in a row."""

    maximum: int = _between(1, math.inf, 3)

    def errs(self, sequence: Sequence) -> bool:
        ids = sequence.surviving
        return ids[-1 - self.maximum :].count(ids[-1]) > self.maximum


@dataclass(frozen=True)
class NGramOverlap(Rule):
    """Erases the token that completes `n` tokens which the surviving completion already holds."""

    n: int = _between(1, math.inf, 4)

    def errs(self, sequence: Sequence) -> bool:
        """Whether the newest n-gram stands earlier; remembers, a token each, its n-gram and where each stands first.

        All entries share the one dict of first places; what an erasure has made stale in it is seen by comparing.
        """
        ids, grams = sequence.surviving, sequence.operator_state.setdefault(self, [])
        firsts: dict[tuple[int, ...], int] = grams[-1][1] if grams else {}
        for end in range(len(grams) + 1, len(ids) + 1):
            gram = tuple(ids[max(0, end - self.n) : end])
            first = firsts.get(gram, end)
            if first >= len(grams) or grams[first][0] != gram:
                firsts[gram] = len(grams)
            grams.append((gram, firsts))
        return len(ids) > self.n and firsts[grams[-1][0]] < len(grams) - 1


@dataclass(frozen=True)
class LogitThreshold(Rule):
    """Erases a token whose logit lies below `minimum`."""

    minimum: float = _between(-math.inf, math.inf, -20.0)

    def __call__(self, step: Step) -> dict[int, Erase]:
        newest = [sequence.surviving[-1] for sequence in step.sequences]
        return self.wishes(_true(step.logits_BV[range(len(newest)), newest] < self.minimum))


@dataclass(frozen=True)
class BacktrackToken(Rule):
    """Takes the token `token_id` for a backspace that leaves no row behind: it goes, and `erase` tokens before it.

    For models whose vocabulary has such a token without a context they were trained in; our models need no
    operator for theirs.
    """

    token_id: int = _between(0, math.inf)

    def __call__(self, step: Step) -> dict[int, Erase]:
        found = (i for i, sequence in enumerate(step.sequences) if sequence.surviving[-1] == self.token_id)
        return self.wishes(found, 1 + self.erase)


class Chain:
    """Asks several operators and grants each sequence one wish: a hard ban's first, then the one that erases most.

    The first operator comes first among equals.
    """

    def __init__(self, *operators: Operator):
        self.operators = operators

    def __call__(self, step: Step) -> dict[int, Erase]:
        wishes: dict[int, Erase] = {}
        for operator in self.operators:
            for i, wish in operator(step).items():
                if i not in wishes or (wish.must, wish.n) > (wishes[i].must, wishes[i].n):
                    wishes[i] = wish
        return wishes


OPERATORS: dict[str, Any] = {
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
_NAMES = {kind: name for name, kind in OPERATORS.items()}


def make_operator(name: str, **parameters: Any) -> Operator:
    """Return the operator of this name. Raises UserError, a sentence each, for unknown names and invalid values."""
    if name not in OPERATORS:
        raise UserError(f"operator {name!r} is unknown{did_you_mean(name, OPERATORS)}")
    kind = OPERATORS[name]
    known = {field.name: field.default for field in fields(kind)}
    errors = [
        f"operator {name} has no parameter {key!r}{did_you_mean(key, known)}" for key in parameters if key not in known
    ]
    missing = [key for key, default in known.items() if default is MISSING and key not in parameters]
    errors += [f"operator {name} needs {key}" for key in missing]
    errors += _wrong(kind, parameters)
    if errors:
        raise UserError(*errors)
    return kind(**parameters)


def _wrong(kind: type, values: dict[str, Any]) -> list[str]:
    """A sentence for each value that its field does not take."""
    errors = []
    for known in fields(kind):
        if known.name not in values or "between" not in known.metadata:
            continue
        value, (low, high), whole = values[known.name], known.metadata["between"], known.type is int
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            name = _NAMES.get(kind, kind.__name__)
            errors.append(f"{known.name} of operator {name} is {value!r}, expected {what} from {low:g} to {high:g}")
    return errors


def _true(flags_B: Any) -> list[int]:
    return flags_B.nonzero()[:, 0].tolist()
