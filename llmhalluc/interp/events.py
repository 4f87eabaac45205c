"""Events: where a completion takes something back, as token positions; and controls matched to them.

Texts are never tokenised again: a phrase found in the text is traced to the token in which its first letter stands.
"""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from llmhalluc.backtrack import erasures
from llmhalluc.interp.run import digest

Sample = dict[str, Any]  # a line of generations/
_BOUNDARY = re.compile(r"(?:\A|[\n.!?:;)\]>*\"”]|\.\.\.|…)[ \t*\"“]*\Z")


class Event(NamedTuple):
    """One onset. `char` counts in the completion's text, `token` in the completion; strict: it opens a sentence.

    burst: the tokens of the event, as many BACKTRACKs as follow on each other, or those of the phrase.
    """

    phrase: str
    char: int
    token: int
    strict: bool
    burst: int


class Point(NamedTuple):
    """A row to look at: sample `at` of the generations, `row` predicts `target` (an event's onset id)."""

    at: int
    row: int
    target: int
    event: int  # number of the event; a control has its event's


class Points(NamedTuple):
    """The samples of a variant, the events that are measured, and their controls: None where no row was to be had."""

    samples: list[Sample]
    events: list[Point]
    controls: list[Point | None]

    @property
    def problems(self) -> list[str]:
        """The problem of each event."""
        return [self.samples[point.at]["example_id"] for point in self.events]

    @property
    def digest(self) -> str:
        """A hash of which events and controls these are."""
        return digest(repr(self[1:]))

    def only(self, numbers: Sequence[int]) -> "Points":
        """Return those of some events."""
        return Points(self.samples, *([part[number] for number in numbers] for part in self[1:]))

    def paired(self) -> "Points":
        """Return those that have a control."""
        return self.only([number for number, point in enumerate(self.controls) if point is not None])


def find_phrases(ids: Sequence[int], decode: Callable[[list[int]], str], triggers: Sequence[str]) -> list[Event]:
    """Return where trigger phrases begin, in any letter case and as whole words.

    strict: with the trigger's own first letter, at the beginning of the text, a line or a sentence.
    """
    starts = token_starts(ids, decode)
    text = decode(list(ids))
    words = "|".join(re.escape(trigger) for trigger in sorted(triggers, key=len, reverse=True))
    spelt = {trigger.casefold(): trigger for trigger in triggers}
    found = []
    for match in re.finditer(rf"(?<![^\W_])(?:{words})(?![^\W_])", text, re.IGNORECASE):
        phrase = spelt.get(match.group().casefold(), match.group())
        same_case = match.group()[0] == phrase[0]
        strict = same_case and _BOUNDARY.search(text[: match.start()]) is not None
        token = token_at(starts, match.start())
        burst = token_at(starts, match.end() - 1) - token + 1
        found.append(Event(phrase, match.start(), token, strict, burst))
    return found


def find_erasures(ids: Sequence[int], backtrack_id: int, decode: Callable[[list[int]], str]) -> list[Event]:
    """Return the first BACKTRACK of each run; strict: it erases something."""
    starts = token_starts(ids, decode)
    erasing = {one.at - 1 for one in erasures(ids, backtrack_id)}
    found, at = [], 0
    while at < len(ids):
        stop = at
        while stop < len(ids) and ids[stop] == backtrack_id:
            stop += 1
        if stop > at:
            found.append(Event("BACKTRACK", starts[at], at, at in erasing, stop - at))
        at = max(stop, at + 1)
    return found


def token_starts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[int]:
    """Return at which character of the decoded text each token begins.

    A character that several tokens spell together belongs to the first of them.
    """
    starts, text = [], ""
    for n in range(len(ids)):
        starts.append(len(text))
        whole = decode(list(ids[: n + 1]))
        if not whole.endswith("\ufffd"):
            text = whole
    return starts


def pieces(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return the text that each token adds to those before it."""
    starts, text = token_starts(ids, decode), decode(list(ids))
    return [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]


def offered_rows(sample: Sample) -> range:
    """Return the rows of a sample that predict a token of its completion."""
    n_prompt = len(sample["prompt_ids"])
    return range(n_prompt - 1, n_prompt + len(sample["completion_ids"]) - 1)


def token_at(starts: Sequence[int], char: int) -> int:
    """Return the token in which a character stands."""
    return max((i for i, start in enumerate(starts) if start <= char), default=0)


def controls(samples: Sequence[Sample], events: Sequence[tuple[int, Event]], rng: Random) -> list[Point | None]:
    """Return for each event (number of its sample, event) a row where nothing is taken back, with the event's onset id.

    Matched: a row at the same distance from the prompt, or the nearest one, in another sample. A sample without events
    is preferred, then one of another problem, then a near row. None where no sample offers a row.
    """
    taken: dict[int, set[int]] = {}
    for at, event in events:
        taken.setdefault(at, set()).update(range(event.token - 1, event.token + event.burst))
    found: list[Point | None] = []
    for number, (at, event) in enumerate(events):
        best: tuple | None = None
        order = list(range(len(samples)))
        rng.shuffle(order)
        for other in order:
            if other == at:
                continue
            token = _nearest_free(event.token, len(samples[other]["completion_ids"]), taken.get(other, set()))
            if token is None:
                continue
            same_problem = samples[other]["example_id"] == samples[at]["example_id"]
            rank = (abs(token - event.token) > 3, other in taken, same_problem, abs(token - event.token))
            if best is None or rank < best[0]:
                best = (rank, other, token)
        if best is None:
            found.append(None)
        else:
            row = len(samples[best[1]]["prompt_ids"]) + best[2] - 1
            target = samples[at]["completion_ids"][event.token]
            found.append(Point(best[1], row, target, number))
    return found


def _nearest_free(token: int, length: int, taken: set[int]) -> int | None:
    """The token nearest to `token` that neither is part of an event nor is followed by one."""
    free = [at for at in range(length) if at not in taken]
    return min(free, key=lambda at: (abs(at - token), at), default=None)


def spread(events: Sequence[tuple[int, Event]], problem_of: Callable[[int], str], most: int, rng: Random) -> list[int]:
    """Return the numbers of up to `most` events, drawn in turn from each problem, in their order."""
    by_problem: dict[str, list[int]] = {}
    for number, (at, _) in enumerate(events):
        by_problem.setdefault(problem_of(at), []).append(number)
    for numbers in by_problem.values():
        rng.shuffle(numbers)
    chosen: list[int] = []
    while len(chosen) < most and any(by_problem.values()):
        for numbers in by_problem.values():
            if numbers and len(chosen) < most:
                chosen.append(numbers.pop())
    return sorted(chosen)
