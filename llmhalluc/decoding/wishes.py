"""What an operator wishes, and what of it is done: budgets, hard wishes, places where all is banned."""

import math

from llmhalluc.decoding.sequence import Erase, Event, Output, Sequence, Spec, Step


def grant_wishes(
    spec: Spec, sequences: list[Sequence], sampled: list[bool], output: Output, events: list[Event]
) -> None:
    """Let the operator judge the tokens just written (`sampled`, or an operator's), and do what its budget allows.

    A sequence that is about to end is shown in any case, so that nothing which an operator forbids slips through.
    Raises ValueError for an operator that wishes to erase less than nothing.
    """
    shown = [i for i, sequence in enumerate(sequences) if _is_due(spec, sequence, sampled[i])]
    if not shown:
        return
    if len(shown) < len(sequences):
        hidden = {name: states_BH[shown] for name, states_BH in output.hidden.items()}
        sequences, output = [sequences[i] for i in shown], Output(output.logits_BV[shown], hidden)
    for i, wish in spec.operator(Step(sequences, *output)).items():
        sequence = sequences[i]
        if wish.n < 0:
            raise ValueError(f"operator {wish.source} wishes to erase {wish.n} tokens")
        if _denied(spec, sequence, wish, events):
            # The text has another end now: look again.
            rest = Output(output.logits_BV[i : i + 1], {name: one[i : i + 1] for name, one in output.hidden.items()})
            grant_wishes(spec, [sequence], [False], rest, events)


def leave_dead_ends(spec: Spec, sequences: list[Sequence], n_vocabulary: int, events: list[Event]) -> bool:
    """Where an operator has had every token of a place banned, erase one deeper; whether any sequence did."""
    if spec.erase_id is not None:  # BACKTRACK is there to leave by
        return False
    left, most = False, n_vocabulary - (spec.backtrack_id is not None)
    for sequence in sequences:
        while (
            (place := len(sequence.surviving))
            and sequence.operator_erased < spec.budget(sequence.limit)
            and list(sequence.tape.penalties.get(place, {}).values()).count(-math.inf) >= most
        ):
            _erase(sequence, 1, "dead end", -math.inf, events)
            left = True
    return left


def _is_due(spec: Spec, sequence: Sequence, sampled: bool) -> bool:
    """Whether the operator is asked about the newest token."""
    if not sequence.surviving:
        return False
    judged = sampled and sequence.completion_ids[-1] != spec.erase_id
    on_turn = judged and len(sequence.completion_ids) % spec.options.backtrack_every_n == 0
    return on_turn or bool(sequence.finish_reason)


def _denied(spec: Spec, sequence: Sequence, wish: Erase, events: list[Event]) -> bool:
    """Do what is wished within the budget; whether a hard wish went beyond it, and has ended the sequence."""
    count = min(wish.n, len(sequence.surviving))
    writes = wish.write and sequence.finish_reason != "length"
    if sequence.operator_erased + count <= spec.budget(sequence.limit):
        if count or writes:
            sequence.finish_reason = ""
            _erase(sequence, count, wish.source, wish.penalty, events)
            sequence.replacement_ids.extend(wish.write)
            sequence.replaced_by = wish.source
        return False
    if not (wish.must and count):
        return False
    _erase(sequence, count, wish.source, 0.0, events)
    sequence.finish_reason = "budget"
    return True


def _erase(sequence: Sequence, count: int, source: str, penalty: float, events: list[Event]) -> None:
    if count:
        sequence.erase(count, source, penalty)
        events.append(Event(sequence, "erase", count))
