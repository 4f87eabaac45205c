"""Continuous batching with erasures: sequences erase on their own, finished ones leave, others enter at any time.

An erasure is one mechanism, whether the learned BACKTRACK asks for it or an operator (operators.py). What a token
means to the cache is `backtrack.Tape`'s to say; the cache is a backend's (backend.py).
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, groupby
from typing import TYPE_CHECKING, Any

import torch

from llmhalluc.decoding.arrange import Places
from llmhalluc.decoding.backend import Backend, backend_of
from llmhalluc.decoding.prefix import Filling, plan
from llmhalluc.decoding.sampling import logprobs_of, sample
from llmhalluc.decoding.sequence import Event, Output, Sequence, Spec, Trace, check_prompts
from llmhalluc.decoding.slots import PREFILL_TOKENS
from llmhalluc.decoding.wishes import grant_wishes, leave_dead_ends
from llmhalluc.extras.errors import UserError

if TYPE_CHECKING:
    from llmhalluc.decoding.hidden import Scorer

REVISITED = 4  # places whose logits a sequence keeps, so that erasing back to them costs no forward


class Engine:
    """Decodes any number of sequences at once; one engine, one cache.

    What a sequence samples depends on its key and the seed, not on its neighbours: in 16-bit arithmetic as far as
    the matrix product does not either. Raises UserError for a model that cannot decode so.
    """

    def __init__(self, backend: Backend, spec: Spec):
        self.backend, self.spec = backend, spec
        self.slots = backend.open(spec.options.compile)
        self.places = Places(self.slots)
        self.waiting: list[Sequence] = []  # not in the cache yet
        self._to_hold: set[Sequence] = set()  # of these, those that wait once they are
        self._sampler = spec.sampler or sample
        rewinds = spec.context == "rewind" and spec.erase_id is not None
        self._keeps_outputs = spec.operator is not None or rewinds
        self._numbers = count()

    @property
    def running(self) -> list[Sequence]:
        """The sequences of the next step, each in the slot of its number."""
        return self.places.running

    @property
    def held(self) -> list[Sequence]:
        """The sequences that keep what they have and wait."""
        return self.places.held

    def add(
        self, prompt_ids: list[int], key: str | None = None, limit: int | None = None, held: bool = False
    ) -> Sequence:
        """Return a new sequence, of at most `limit` emitted tokens; it runs from the next step on, or is held then.

        It draws from the stream that `key` (default: its number) and the seed name. Of its prompt the next step
        computes what does not stand in the cache. Raises ValueError for an empty prompt or stop strings without a
        tokenizer, UserError for a text that may outgrow what the backend can feed.
        """
        check_prompts([prompt_ids], self.spec)
        limit = self.spec.options.max_new_tokens if limit is None else limit
        window = self.backend.window
        if self.backend.hard_window and len(prompt_ids) + limit > window:
            raise UserError(
                f"a prompt of {len(prompt_ids)} tokens and gen.max_new_tokens {limit} do not fit into the window of "
                f"{window} tokens: shorten it, or load the model with a larger n_ctx if it has one"
            )
        sequence = Sequence.begin(self.spec, next(self._numbers), prompt_ids, key, limit)
        self.waiting.append(sequence)
        if held:
            self._to_hold.add(sequence)
        return sequence

    @torch.inference_mode()
    def fork(self, sequence: Sequence, key: str | None = None) -> Sequence:
        """Return a twin with a copy of all that the sequence has: cache, kept logits, bans, operators' state, text.

        It computes nothing, and draws from the beginning of the stream that its own key names: as a sequence of that
        key would after the same prompt with the same text dictated. The twin of a held sequence is held. Raises
        ValueError for a sequence that has ended.
        """
        (twin,) = self.branch(sequence, [key])
        if sequence in self.places.behind:
            self.places.hold([twin])
        return twin

    @torch.inference_mode()
    def branch(self, sequence: Sequence, keys: list[Any]) -> list[Sequence]:
        """Return a twin for each key that runs from the next step on, also of a sequence that is held; see `fork`."""
        twins = [sequence.fork(self.spec, next(self._numbers), key) for key in keys]
        if sequence in self.waiting:
            self.waiting += twins
            return twins
        self.places.slot(sequence)  # raises where it is not there
        first = len(self.running)
        self.slots.reserve(first + len(self.places.behind) + len(twins))
        self.places.make_room(len(twins))
        self.places.run(twins)
        source, targets = self.places.slot(sequence), list(range(first, first + len(twins)))
        self.slots.copy([source] * len(targets), targets, len(sequence.tape.columns))
        return twins

    @torch.inference_mode()
    def hold(self, sequences: list[Sequence]) -> None:
        """Let running sequences wait: they keep cache and state, and no step feeds them until `resume`.

        Raises ValueError for one that does not run, UserError with gen.compile, which feeds every slot.
        """
        if self.spec.options.compile:
            raise UserError("gen.compile is true, but a search lets sequences wait: set it to false")
        if not set(sequences) <= set(self.running):
            raise ValueError("only running sequences can be held")
        self.places.hold(sequences)

    @torch.inference_mode()
    def resume(self, sequences: list[Sequence]) -> None:
        """Let held sequences run on from the next step. Raises ValueError for one that is not held."""
        if not set(sequences) <= set(self.held):
            raise ValueError("only held sequences can resume")
        self.places.resume(sequences)

    @torch.inference_mode()
    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence that has not ended. Raises ValueError for one that has."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self._to_hold.discard(sequence)
        else:
            self.places.slot(sequence)
            self.places.leave([sequence])

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run one forward, sample a token for every sequence, and return what was added, erased and ended.

        A sequence ends at an id of `eos_ids`, at a stop string in its surviving text, or after `limit` emitted tokens,
        those that an operator erased not counted. BACKTRACK is offered only where it has something to erase and the
        budget `options.max_erasures` lasts (none: half of the limit); with `options.ban_erased` an erased token is not
        offered again at its place while its prefix stands. The operator is asked after every
        `options.backtrack_every_n` emitted tokens and before a sequence ends, and has a budget of as many erasures
        again. Sequences that go back to a place with kept logits sample again at once.
        """
        if self.waiting:
            self._fill()
        events: list[Event] = []
        todo = self.running
        if not todo:
            return events
        if self.spec.intervene is not None:
            self.spec.intervene(todo)
        output = self.slots.step([sequence.feed for sequence in todo], self.spec.layers)
        for i, sequence in enumerate(todo):
            sequence.forward_passes += 1
            sequence.fed += 1
            if self._keeps_outputs:
                _remember(sequence, output, i)
        while todo:
            if self.spec.operator is not None and leave_dead_ends(self.spec, todo, output.logits_BV.shape[1], events):
                todo, output = _back_at_kept_places(todo)
                continue
            self._write(todo, output, events)
            todo, output = _back_at_kept_places(todo) if self._keeps_outputs else ([], output)
        ended = [i for i, sequence in enumerate(self.running) if sequence.finish_reason]
        if ended:
            over = [self.running[i] for i in ended]
            events += [Event(sequence, "end", sequence.trace(self.spec.tokenizer)) for sequence in over]
            self.places.leave(over)
        return events

    def score(self, scorer: "Scorer", sequences: list[Sequence] | None = None) -> Any:
        """Return what the scorer says of sequences that have run (default: those that run now).

        It sees what an operator sees: the hidden states that the newest token of each was sampled from.
        """
        judged = self.running if sequences is None else sequences
        hidden = {name: torch.stack([sequence.hidden[name] for sequence in judged]) for name in self.spec.layers}
        return scorer(judged, hidden)

    def _write(self, sequences: list[Sequence], output: Output, events: list[Event]) -> None:
        """Sample a token for each sequence, or take an operator's, and let the operator judge it."""
        spec, erase_id = self.spec, self.spec.erase_id
        tokens = self._sampler(output.logits_BV, sequences, spec)
        sampled = [not sequence.replacement_ids for sequence in sequences]
        if not all(sampled):
            tokens = [
                token if is_sampled else sequence.replacement_ids[0]
                for sequence, token, is_sampled in zip(sequences, tokens, sampled, strict=True)
            ]
        logprobs = logprobs_of(output.logits_BV, tokens)
        for i, (sequence, token, logprob) in enumerate(zip(sequences, tokens, logprobs, strict=True)):
            if output.hidden:
                sequence.hidden = {name: states_BH[i] for name, states_BH in output.hidden.items()}
            if sequence.append(token, logprob, erase_id):
                events.append(Event(sequence, "erase", 1))
            elif token != erase_id:
                events.append(Event(sequence, "add", token))
            sequence.end(spec)
        if spec.operator is not None:
            grant_wishes(spec, sequences, sampled, output, events)

    def _fill(self) -> None:
        """Put the waiting sequences into the cache: what stands there is copied, the rest is computed."""
        intervene = self.spec.intervene
        there = [*self.running, *self.held]
        fillings = plan(self.waiting, there) if intervene is None else [Filling(s) for s in self.waiting]
        self.slots.reserve(len(self.running) + len(self.places.behind) + len(fillings))
        self.places.make_room(len(fillings))
        self.waiting, new = [], [filling.sequence for filling in fillings]
        for filling in fillings:
            filling.sequence.forward_passes += -(-len(filling.ids) // PREFILL_TOKENS)
            filling.sequence.fed += len(filling.ids) - filling.start
        self.places.run(new)
        slots = {one: slot for slot, one in enumerate([*self.running, *self.places.behind]) if one is not None}
        if intervene is not None:
            for filling in fillings:  # one by one: what is changed in a text holds for no other
                intervene([filling.sequence])
                self.slots.fill(slots[filling.sequence], 0, [list(filling.ids)])
            fillings = []
        for (_, start), group in groupby(fillings, key=lambda filling: (filling.round, filling.start)):
            together = list(group)
            targets = [slots[filling.sequence] for filling in together]
            if start:
                self.slots.copy([slots[filling.source] for filling in together], targets, start)
            self.slots.fill(targets[0], start, [list(filling.ids[start:]) for filling in together])
        if self._to_hold:
            self.hold([sequence for sequence in new if sequence in self._to_hold])
            self._to_hold.clear()


def decode(
    model_or_backend: Any,
    prompts: list[list[int]],
    spec: Spec,
    *,
    keys: list[str] | None = None,
    limits: list[int] | None = None,
    batch_size: int = 64,
    on_finish: Callable[[int, Trace], None] | None = None,
) -> list[Trace]:
    """Complete every prompt; the traces stand in the order of `prompts`. Arguments and errors as `stream`.

    on_finish(i, trace) is called as each prompt ends.
    """
    traces: list[Trace] = [None] * len(prompts)  # type: ignore[list-item]  # each is set when its sequence ends
    for number, kind, trace in stream(model_or_backend, prompts, spec, keys=keys, limits=limits, batch_size=batch_size):
        if kind == "end":
            traces[number] = trace
            if on_finish is not None:
                on_finish(number, trace)
    return traces


def stream(
    model_or_backend: Any,
    prompts: list[list[int]],
    spec: Spec,
    *,
    keys: list[str] | None = None,
    limits: list[int] | None = None,
    batch_size: int = 64,
) -> Iterator[tuple[int, str, Any]]:
    """Complete the prompts, `batch_size` at a time: (number of the prompt, kind, value) of each event of a step.

    A prompt draws from the stream named by its key (default: its number) and `options.seed`, whatever its batch;
    `limits`: most tokens for each in the place of `options.max_new_tokens`. Raises as `Engine` and `Engine.add`.
    """
    check_prompts(prompts, spec)
    if spec.options.search is not None:
        raise UserError(f"gen.search is {spec.options.search}, and this command does not search: take it out")
    backend = backend_of(model_or_backend)
    engine = Engine(backend, spec)
    most = min(batch_size, backend.most_slots or batch_size)
    # Long prompts first: neighbours share their length, and a lack of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    waiting = deque(order)
    while waiting or engine.running:
        free = most - len(engine.running)
        if free == most or free >= max(1, most // 8):
            for i in (waiting.popleft() for _ in range(min(free, len(waiting)))):
                engine.add(prompts[i], keys[i] if keys else str(i), limits[i] if limits else None)
        for sequence, kind, value in engine.step():
            yield order[sequence.index], kind, value


def _remember(sequence: Sequence, output: Output, row: int) -> None:
    """Remember the output of the place that the sequence is at; only that of the newest places is."""
    here, outputs = len(sequence.tape.columns), sequence.outputs
    for other in [place for place in outputs if place > here or place <= here - REVISITED]:
        del outputs[other]
    outputs[here] = (output, row)


def _back_at_kept_places(sequences: list[Sequence]) -> tuple[list[Sequence], Output]:
    """Those that have gone back to a place whose output is kept, and these outputs."""
    back = [s for s in sequences if not s.finish_reason and len(s.tape.columns) in s.outputs]
    found = [sequence.outputs[len(sequence.tape.columns)] for sequence in back]
    if not found:
        return [], Output(torch.empty(0), {})
    logits_BV = torch.stack([output.logits_BV[row] for output, row in found])
    hidden = {name: torch.stack([output.hidden[name][row] for output, row in found]) for name in found[0][0].hidden}
    return back, Output(logits_BV, hidden)
