"""What decoding hands around: a row that is being completed, what an operator sees and wishes, what comes out.

Shapes: B rows decoding, V vocabulary. `place`: the number of surviving tokens before a token.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmhalluc.backtrack import Tape

if TYPE_CHECKING:  # a configuration that names an operator is checked before torch is imported
    import torch


class Erasure(NamedTuple):
    """`n` surviving tokens erased when `at` tokens had been emitted, by `source`."""

    at: int
    n: int
    source: str


@dataclass
class Trace:
    """One decoded completion.

    completion_ids as emitted, surviving_ids of them, text: the surviving one up to a stop string. logprobs: of each
    emitted token under the full softmax at temperature 1. erasures counts erased tokens, events tells when and by
    whom. finish_reason: "eos", "stop", "length" or "budget". forward_passes: how often the model ran for this text, its
    prompt included, whoever else was in the batch.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    surviving_ids: list[int]
    erasures: int
    finish_reason: str
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    events: list[Erasure] = field(default_factory=list)
    forward_passes: int = 0


@dataclass
class Row:
    """A prompt being completed; operators read `surviving`, `logprobs`, `written`, `memo` and `finish_reason`.

    What an operator sees in finish_reason is why the row ends unless it erases.
    """

    index: int
    prompt_ids: list[int]
    tape: Tape
    draws: random.Random
    feed: tuple[int, int]  # input id and position of the next forward
    limit: int  # most emitted tokens, those that operators erased not counted
    completion_ids: list[int] = field(default_factory=list)
    emitted_logprobs: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the surviving tokens
    written: list[str] = field(default_factory=list)  # whose wish wrote each surviving token, "" for a sampled one
    memo: dict[Any, list] = field(default_factory=dict)  # an operator's own, one entry a surviving token, cut with them
    penalties: dict[int, dict[int, float]] = field(default_factory=dict)  # place -> id -> added to its logit
    kept: dict[int, "torch.Tensor"] = field(default_factory=dict)  # columns before a place -> its logits (V)
    forced: deque[int] = field(default_factory=deque)  # ids to write next, whatever the model says
    writer: str = ""  # whose wish they are
    events: list[Erasure] = field(default_factory=list)
    rewound: int = 0  # tokens that operators erased
    forward_passes: int = 0
    finish_reason: str = ""
    text: str = ""

    @property
    def surviving(self) -> list[int]:
        return self.tape.surviving

    def erase(self, count: int, source: str, penalty: float) -> None:
        """Take back the last `count` surviving tokens; the first of them gets `penalty` at its place."""
        place = len(self.surviving) - count
        self.forget(place)
        places = self.penalties.setdefault(place, {})
        token = self.surviving[place]
        places[token] = places.get(token, 0.0) + penalty
        self.feed = self.tape.erase(count)
        self.rewound += count
        self.events.append(Erasure(len(self.completion_ids), count, source))

    def forget(self, place: int) -> None:
        """Drop what hangs on surviving tokens from `place` on."""
        for later in [p for p in self.penalties if p > place]:
            del self.penalties[later]
        del self.logprobs[place:], self.written[place:]
        for entries in self.memo.values():
            del entries[place:]
        self.forced.clear()


class Step(NamedTuple):
    """What an operator sees: B tokens just sampled, already on their rows' tapes, not yet fed to the model.

    A row that is about to end (row.finish_reason) is there whatever its newest token, a written one for instance.
    """

    rows: list[Row]
    logits_BV: "torch.Tensor"  # of their places: the model's own, nothing scaled, cut or banned


class Erase(NamedTuple):
    """An operator's wish for one row: erase `n` surviving tokens, then write the ids `write` instead.

    penalty: added to the logit of the first erased token at its place, for as long as its prefix stands. must: a
    row whose budget does not allow it ends before these tokens, with finish reason "budget".
    """

    n: int = 1
    penalty: float = -math.inf
    write: Sequence[int] = ()
    must: bool = False
    source: str = "operator"


class Event(NamedTuple):
    """Of a stream, about prompt number `prompt`: kind "add" (a token), "erase" (how many) or "end" (the Trace)."""

    prompt: int
    kind: str
    value: Any
