"""What decoding hands around: a sequence that is being completed, what an operator sees and wishes, what comes out.

Shapes: B sequences decoding, V vocabulary, H width of a layer. `place`: the number of surviving tokens before a token.
"""

import copy
import math
import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmhalluc.backtrack import BACKTRACK, Tape
from llmhalluc.hparams.sections import GenArguments

if TYPE_CHECKING:  # a configuration that names an operator is checked before torch is imported
    import torch


class Erasure(NamedTuple):
    """`n` surviving tokens erased when `at` tokens had been emitted, by `source`."""

    at: int
    n: int
    source: str


@dataclass(frozen=True)
class Cost:
    """What a completion took: emitted tokens, tokens read and written, floating-point operations, seconds.

    leaves: whole texts, of a search. A prefix that forks share counts once; a search's cost is that of all its texts.
    """

    emitted: int = 0
    forward: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    leaves: int = 0

    def plus(self, emitted: int, forward: int, flops: float, seconds: float) -> "Cost":
        """Return the cost with more."""
        return Cost(
            self.emitted + emitted, self.forward + forward, self.flops + flops, self.seconds + seconds, self.leaves
        )


@dataclass
class Trace:
    """One decoded completion.

    completion_ids as emitted, surviving_ids of them, text: the surviving one up to a stop string. logprobs: of each
    emitted token under the full softmax at temperature 1. erasures counts erased tokens, events says when and by
    whom. finish_reason: "eos", "stop", "length" or "budget". forward_passes: how often the model runs for this text
    alone, its prompt included, whoever else was in the batch and whatever was copied. cost: of the search that chose
    it, None without one.
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
    cost: Cost | None = None


@dataclass(frozen=True)
class Spec:
    """How sequences are decoded: the `gen` section and what the model and its caller add.

    operator: asked about every token sampled, or a rule of operators.py. sampler: chooses the ids in the place of
    `sampling.sample`. layers: names of modules whose hidden states operators and scorers want to see. intervene: told
    the sequences, a row each, that the next forward feeds; as it may change the model for each, no prefix is shared.
    """

    options: GenArguments
    eos_ids: Collection[int]
    backtrack_id: int | None
    context: str
    tokenizer: Any = None
    operator: "Callable[[Step], dict[int, Erase]] | None" = None
    sampler: "Callable[[torch.Tensor, list[Sequence], Spec], list[int]] | None" = None
    layers: tuple[str, ...] = ()
    intervene: "Callable[[list[Sequence]], None] | None" = None

    @property
    def erase_id(self) -> int | None:
        """BACKTRACK where it may be used."""
        return self.backtrack_id if self.options.backtrack else None

    def budget(self, limit: int) -> int:
        """Return how many erasures BACKTRACK may make within `limit` tokens, and the operator as many again."""
        return limit // 2 if self.options.max_erasures is None else self.options.max_erasures


def check_prompts(prompts: list[list[int]], spec: Spec) -> None:
    """Raise ValueError for an empty prompt, and for stop strings without a tokenizer."""
    for i, prompt_ids in enumerate(prompts):
        if not prompt_ids:
            raise ValueError(f"prompt {i} is empty")
    if spec.options.stop and spec.tokenizer is None:
        raise ValueError("stop strings need a tokenizer")


class Output(NamedTuple):
    """What a forward gave for B sequences: logits (B, V), and the newest rows' (B, H) of each layer asked for."""

    logits_BV: "torch.Tensor"
    hidden: "dict[str, torch.Tensor]"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt being completed; operators read `surviving`, `logprobs`, `written_by`, `finish_reason` and `tape`.

    What an operator sees in finish_reason is why the sequence ends unless it erases. `operator_state` is an operator's
    own: under its key a list with one entry a surviving token, which is cut as they are erased.
    """

    index: int  # in the order in which the engine was given them
    key: str
    prompt_ids: list[int]
    tape: Tape
    draws: random.Random
    limit: int  # most emitted tokens, those that operators erased not counted
    feed: tuple[int, int]  # input id and position of the next forward
    surviving: list[int] = field(init=False)  # the tape's own
    completion_ids: list[int] = field(default_factory=list)
    emitted_logprobs: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the surviving tokens
    written_by: list[str] = field(default_factory=list)  # whose wish wrote each surviving token, "" for a sampled one
    operator_state: dict[Any, list] = field(default_factory=dict)
    outputs: dict[int, tuple[Output, int]] = field(default_factory=dict)  # columns before a place -> its logits' row
    hidden: "dict[str, torch.Tensor]" = field(default_factory=dict)  # (H) of the row that the newest token came after
    replacement_ids: deque[int] = field(default_factory=deque)  # an operator's, to be written next
    replaced_by: str = ""  # the operator
    events: list[Erasure] = field(default_factory=list)
    operator_erased: int = 0  # tokens that operators erased
    forward_passes: int = 0
    fed: int = 0  # tokens that the model read for it, copies not counted
    finish_reason: str = ""
    text: str = ""

    def __post_init__(self):
        self.surviving = self.tape.surviving

    @classmethod
    def begin(cls, spec: Spec, index: int, prompt_ids: list[int], key: str | None, limit: int) -> "Sequence":
        """Return one that has emitted nothing; it draws from its own stream, named by the seed and `key`."""
        key = str(index) if key is None else key
        tape = Tape(prompt_ids, spec.erase_id, spec.context, spec.options.ban_erased, spec.budget(limit))
        feed = (prompt_ids[-1], len(prompt_ids) - 1)
        return cls(index, key, prompt_ids, tape, _stream(spec, key), limit, feed)

    def fork(self, spec: Spec, index: int, key: str | None) -> "Sequence":
        """Return a twin that goes its own way from here, and draws from the beginning of the stream named by `key`."""
        twin, key = copy.copy(self), str(index) if key is None else key
        twin.index, twin.key, twin.draws, twin.tape = index, key, _stream(spec, key), self.tape.copy()
        twin.surviving, twin.fed = twin.tape.surviving, 0
        for name in ("completion_ids", "emitted_logprobs", "logprobs", "written_by", "outputs", "events"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        twin.replacement_ids = self.replacement_ids.copy()
        # Entries may share something of theirs (NGramOverlap's do), so they are copied together; operators never are.
        twin.operator_state = {operator: copy.deepcopy(entries) for operator, entries in self.operator_state.items()}
        return twin

    def append(self, token: int, logprob: float, backtrack_id: int | None) -> int:
        """Write a token; return how many it erases. A BACKTRACK bans what it erases, as the tape says."""
        source = ""
        if self.replacement_ids:
            self.replacement_ids.popleft()
            source = self.replaced_by
        self.completion_ids.append(token)
        self.emitted_logprobs.append(logprob)
        erases = 0
        if token != backtrack_id:
            self.logprobs.append(logprob)
            self.written_by.append(source)
        elif self.surviving:
            erases = 1
            self._forget(len(self.surviving) - 1)
            self.events.append(Erasure(len(self.completion_ids), 1, BACKTRACK))
        self.feed = self.tape.feed(token)
        if self.outputs and (token != backtrack_id or self.tape.context != "rewind"):
            # The place after a new row is new: what was kept under its number belongs to another text.
            for stale in [n for n in self.outputs if n >= len(self.tape.columns)]:
                del self.outputs[stale]
        return erases

    def erase(self, count: int, source: str, penalty: float) -> None:
        """Take back the last `count` surviving tokens; the first of them gets `penalty` at its place."""
        self._forget(len(self.surviving) - count)
        self.feed = self.tape.erase(count, penalty)
        self.operator_erased += count
        self.events.append(Erasure(len(self.completion_ids), count, source))

    def _forget(self, place: int) -> None:
        """Drop what hangs on surviving tokens from `place` on."""
        del self.logprobs[place:], self.written_by[place:]
        for entries in self.operator_state.values():
            del entries[place:]
        self.replacement_ids.clear()

    def end(self, spec: Spec) -> None:
        """Set why the sequence ends, if it does; replacements that are being written end at the limit alone."""
        token, whole = self.completion_ids[-1], not self.replacement_ids
        if whole and token in spec.eos_ids and self.surviving and self.surviving[-1] in spec.eos_ids:
            self.finish_reason = "eos"
        elif whole and spec.options.stop and self.surviving and self._stops(spec.options.stop, spec.tokenizer):
            self.finish_reason = "stop"
        elif len(self.completion_ids) - self.operator_erased >= self.limit:
            self.finish_reason = "length"

    def _stops(self, stops: list[str], tokenizer: Any) -> bool:
        """Whether a stop string stands in the surviving text; `text` is then the text before it."""
        # A stop string that is complete now ends within the last token, so it begins in this tail.
        longest = max(map(len, stops)) + 8
        tail = tokenizer.decode(self.surviving[-longest:], skip_special_tokens=True)
        if not any(stop in tail for stop in stops):
            return False
        text = tokenizer.decode(self.surviving, skip_special_tokens=True)
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        self.text = text[: min(ends, default=len(text))]
        return bool(ends)

    def trace(self, tokenizer: Any) -> Trace:
        """Return what is known of it, as a rule when it has ended."""
        text = self.text
        if tokenizer is not None and self.finish_reason != "stop":
            text = tokenizer.decode(self.surviving, skip_special_tokens=True)
        return Trace(
            self.prompt_ids, self.completion_ids, self.surviving, self.tape.erased + self.operator_erased,
            self.finish_reason, text, self.emitted_logprobs, self.events, self.forward_passes,
        )  # fmt: skip


def _stream(spec: Spec, key: str) -> random.Random:
    return random.Random(f"{spec.options.seed}-{key}")


class Step(NamedTuple):
    """What an operator sees: B tokens just sampled, already on their sequences' tapes, not yet fed to the model.

    A sequence that is about to end (its finish_reason says why) is there whatever its newest token, a written one for
    instance. logits_BV are of their places: the model's own, nothing scaled, cut or banned. hidden: for each layer of
    `Spec.layers` the states (B, H) of the rows that gave these logits.
    """

    sequences: list[Sequence]
    logits_BV: "torch.Tensor"
    hidden: "dict[str, torch.Tensor]" = {}  # noqa: RUF012  # never written to


class Erase(NamedTuple):
    """An operator's wish for one sequence: erase `n` surviving tokens, then write the ids `write` instead.

    penalty: added to the logit of the first erased token at its place, for as long as its prefix stands. must: a
    sequence whose budget does not allow it ends before these tokens, with finish reason "budget".
    """

    n: int = 1
    penalty: float = -math.inf
    write: Collection[int] = ()
    must: bool = False
    source: str = "operator"


class Event(NamedTuple):
    """About one sequence: kind "add" (value: a token), "erase" (how many) or "end" (the Trace)."""

    sequence: Sequence
    kind: str
    value: Any
