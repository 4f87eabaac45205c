"""Answers ready to be read: problems with the answers that were compared, each as text in pieces."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from llmhalluc.backtrack import BACKTRACK, erasures

Decode = Callable[[list[int]], str]
Piece = tuple[str, str, str]  # kind (kept, erased or back), text, who erased it
CUTS = {"length": "… cut off", "budget": "… out of budget"}  # finish_reason -> what is said behind the text


class Shown(NamedTuple):
    """A sample as run_eval writes it, and how its ids become text; `decode` is None where the model is gone."""

    sample: dict[str, Any]
    decode: Decode | None
    backtrack_id: int | None


class Answer(NamedTuple):
    """One answer to a problem, by the name of the arm or way of decoding that gave it."""

    name: str
    correct: bool
    counts: str
    pieces: list[Piece]
    cut: str


class Problem(NamedTuple):
    """What was asked, what is right, and the answers to it."""

    heading: str
    prompt: str
    target: str
    answers: list[Answer]


def problem(heading: str, shown: dict[str, Shown]) -> Problem:
    """The samples of one problem by name, ready for the macro `problem`."""
    sample, decode, _ = next(iter(shown.values()))
    prompt = decode(sample["prompt_ids"]) if decode and sample["prompt_ids"] else ""
    return Problem(heading, prompt, str(sample["target"]), [_answer(name, one) for name, one in shown.items()])


def _answer(name: str, shown: Shown) -> Answer:
    sample, decode, backtrack_id = shown
    if sample["completion_ids"] is None:
        return Answer(name, sample["correct"], "scored, not generated", [], "")
    erasers = dict.fromkeys(source for _, _, source in sample["events"])
    erased = f"{sample['erasures']} erased" + (f" by {' and '.join(erasers)}" if erasers else "")
    counts = f"{sample['emitted']} tokens, {erased}, {sample['forward_passes']} forward passes"
    text = [("kept", sample["text"], "")]
    if decode:
        text = pieces(sample["completion_ids"], backtrack_id, decode, sample["events"])
    return Answer(name, sample["correct"], counts, text, CUTS.get(sample["finish_reason"], ""))


def pieces(
    ids: Sequence[int], backtrack_id: int | None, decode: Decode, events: Sequence[Any] = ()
) -> list[Piece]:  # fmt: skip
    """(kind, text, who) of each stretch of the trace, kind one of kept, erased, back: `a b BT c` gives four.

    `events` are a Trace's Erasures. Who erased it is BACKTRACK or an operator's name, and empty for what is kept; only
    a BACKTRACK has a piece of its own, for an operator emits nothing.
    """
    by = {one.token: one.source for one in erasures(ids, backtrack_id, events)}
    kinds = []
    for who, i in steps(ids, backtrack_id, events):
        if who:
            kinds.append(("back", who, i))
        else:
            kinds.append(("erased", by[i], i) if i in by else ("kept", "", i))
    made, written, before = [], [], ""
    for (kind, who), stretch in groupby(kinds, lambda step: step[:2]):
        indices = [i for _, _, i in stretch]
        if kind == "back":
            made += [("back", "", who)] * (len(indices) if who == BACKTRACK else 0)
            continue
        # What a stretch adds to the text before it: spaces and split characters come out as in one decoding.
        written += [ids[i] for i in indices]
        after = decode(written)
        made.append((kind, after[len(before) :], who))
        before = after
    return made


def steps(ids: Sequence[int], backtrack_id: int | None, events: Sequence[Any]) -> Iterator[tuple[str | None, Any]]:
    """(None, i) where token i is written, (who, i) where it is erased, (BACKTRACK, None) with nothing to erase."""
    later = deque(erasures(ids, backtrack_id, events))
    for i, token in enumerate(ids):
        erases = bool(later) and later[0].at == i + 1
        if token != backtrack_id:
            yield None, i
        elif not erases:
            yield BACKTRACK, None
        while later and later[0].at == i + 1:
            one = later.popleft()
            yield one.source, one.token
