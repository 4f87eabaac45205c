"""The one meaning of BACKTRACK: what it erases, what the model still sees, what the loss trains on.

Pure functions over token ids: no model, no tokenizer, no torch. A trace is `prompt_ids` + `completion_ids`; a
BACKTRACK in the completion erases the nearest surviving token of the completion, never one of the prompt, and
does nothing where nothing is left. docs/architecture.md draws the three contexts.
"""

import math
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

CONTEXTS = ("soft", "block", "rewind")
ERROR_LABELS = ("train", "mask", "redirect")
IGNORE = -100
BACKTRACK = "BACKTRACK"  # who erased, where no operator did


class Layout(NamedTuple):
    """What a transformer is fed for a trace of n tokens: three lists of length n, one row an emitted token.

    Key row j is visible to query row i when `j <= i < visible_until[j]`.
    """

    input_ids: list[int]
    position_ids: list[int]
    visible_until: list[int]


def replay(token_ids: Sequence[int], backtrack_id: int) -> list[int]:
    """Positions in `token_ids` that survive, ascending: `a b BT c` -> `[0, 3]`."""
    stack: list[int] = []
    for start, stop in _plain_runs(token_ids, backtrack_id):
        stack.extend(range(start, stop))
        if stop < len(token_ids) and stack:
            stack.pop()
    return stack


def tops(token_ids: Sequence[int], backtrack_id: int) -> list[int]:
    """For each token the position of the nearest survivor before it, -1 for none: `a b BT c` -> `[-1, 0, 1, 0]`.

    A plain token is written on it, a BACKTRACK erases it.
    """
    stack, found = [-1], []
    for i, token in enumerate(token_ids):
        found.append(stack[-1])
        if token != backtrack_id:
            stack.append(i)
        elif len(stack) > 1:
            stack.pop()
    return found


def apply_backtracking(token_ids: Sequence[int], backtrack_id: int) -> list[int]:
    """The ids that survive: `a b BT c` -> `a c`."""
    return [token_ids[i] for i in replay(token_ids, backtrack_id)]


def inject_error(completion_ids: Sequence[int], at: int, error_ids: Sequence[int], backtrack_id: int) -> list[int]:
    """The completion with `error_ids`, and as many BACKTRACKs as erase them, put in before position `at`.

    `error_ids` may hold an erased run of its own. Raises ValueError when `at` lies outside the completion, or
    when a BACKTRACK in `error_ids` would reach beyond them.
    """
    if not 0 <= at <= len(completion_ids):
        raise ValueError(f"at is {at}, the completion has positions 0 to {len(completion_ids)}")
    depth = 0
    for token in error_ids:
        depth += -1 if token == backtrack_id else 1
        if depth < 0:
            raise ValueError("error_ids hold a BACKTRACK that erases a token before the error")
    return [*completion_ids[:at], *error_ids, *[backtrack_id] * depth, *completion_ids[at:]]


def layout(prompt_ids: Sequence[int], completion_ids: Sequence[int], backtrack_id: int, context: str) -> Layout:
    """What a transformer must be fed so that it sees what `context` says.

    soft: every row stays visible, positions count rows.
    block: an erased token and its BACKTRACKs stay visible until the row of the first token after the run of
    BACKTRACKs; that token takes the position of the one it replaces.
    rewind: a BACKTRACK's row is the surviving top token fed again (its id, its position); the erased token and
    the older copy of the top are invisible from that row on.

    Raises ValueError for an unknown context, and for `rewind` with nothing at all left to feed again.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
    n_prompt, n = len(prompt_ids), len(prompt_ids) + len(completion_ids)
    input_ids, position_ids, visible_until = [*prompt_ids, *completion_ids], list(range(n)), [n] * n
    if context == "soft":
        return Layout(input_ids, position_ids, visible_until)
    stack = list(range(n_prompt))  # the row that stands for each surviving token
    hidden_next: list[int] = []  # block: rows that go out of sight when the run of BACKTRACKs ends
    for start, stop in _plain_runs(completion_ids, backtrack_id):
        start, stop = start + n_prompt, stop + n_prompt
        if start < stop:
            for row in hidden_next:
                visible_until[row] = start
            hidden_next.clear()
            position_ids[start:stop] = range(len(stack), len(stack) + stop - start)
            stack.extend(range(start, stop))
        if stop == n:
            break
        erased = stack.pop() if len(stack) > n_prompt else None
        if context == "block":
            hidden_next += (stop,) if erased is None else (erased, stop)
            position_ids[stop] = position_ids[stop - 1] + 1 if stop else 0
        else:
            if not stack:
                raise ValueError("rewind needs a token to feed again: the prompt is empty and so is the rest")
            if erased is not None:
                visible_until[erased] = stop
            top = stack[-1]
            visible_until[top] = stop
            input_ids[stop], position_ids[stop], stack[-1] = input_ids[top], position_ids[top], stop
    return Layout(input_ids, position_ids, visible_until)


def labels(prompt_ids: Sequence[int], completion_ids: Sequence[int], backtrack_id: int, error_labels: str) -> list[int]:
    """Unshifted targets (the Hugging Face convention: the model shifts), one a row, IGNORE on the prompt.

    train: every token of the completion. mask: IGNORE on every token that is erased. redirect: as mask, but an
    erased token before which only finally surviving tokens stand gets the token that finally follows them, if
    one does. BACKTRACKs are targets in all three. Raises ValueError for an unknown mode.
    """
    if error_labels not in ERROR_LABELS:
        raise ValueError(f"error_labels is {error_labels!r}, expected one of {', '.join(ERROR_LABELS)}")
    targets, n_prompt = list(completion_ids), len(prompt_ids)
    if error_labels != "train":
        stack: list[int] = []
        erasures: list[tuple[int, int]] = []  # (erased position, the one below it on the stack or -1)
        for start, stop in _plain_runs(completion_ids, backtrack_id):
            stack.extend(range(start, stop))
            if stop < len(targets) and stack:
                erased = stack.pop()
                erasures.append((erased, stack[-1] if stack else -1))
        # A survivor is followed by the next survivor; -1 stands for the prompt, the last one has no follower.
        follower = dict(zip([-1, *stack], stack, strict=False)) if error_labels == "redirect" else {}
        for erased, below in erasures:
            targets[erased] = completion_ids[follower[below]] if below in follower else IGNORE
    return [IGNORE] * n_prompt + targets


class Erased(NamedTuple):
    """The token at index `token` was erased when `at` tokens had been emitted, by "BACKTRACK" or an operator."""

    token: int
    at: int
    source: str


def erasures(
    token_ids: Sequence[int], backtrack_id: int | None, events: Sequence[tuple[int, int, str]] = ()
) -> list[Erased]:
    """Which BACKTRACK, or which operator, erased which token, in order: `a b BT c` -> `[(1, 3, "BACKTRACK")]`.

    `events` are those of a decoded trace: (tokens emitted by then, tokens erased, source). Those by BACKTRACK stand in
    the ids already and are passed over.
    """
    stack: list[int] = []
    found: list[Erased] = []
    wishes = [event for event in events if event[2] != BACKTRACK]
    for i, token in enumerate(token_ids):
        if token != backtrack_id:
            stack.append(i)
        elif stack:
            found.append(Erased(stack.pop(), i + 1, BACKTRACK))
        while wishes and wishes[0][0] == i + 1:
            _, n, source = wishes.pop(0)
            found += [Erased(stack.pop(), i + 1, source) for _ in range(n)]
    return found


def unoffered(
    completion_ids: Sequence[int], backtrack_id: int, ban_erased: bool, max_erasures: int, n_vocabulary: int
) -> list[list[int]]:
    """For each token of a completion, the ids that decoding did not offer in its place: what a `Tape` bans there.

    `a BT b` -> `[[BT], [], [BT, a]]`.
    """
    tape, found = Tape([], backtrack_id, "soft", ban_erased, max_erasures), []
    for token in completion_ids:
        found.append(list(tape.penalties_here(n_vocabulary)))
        tape.feed(token)
    return found


def _plain_runs(token_ids: Sequence[int], backtrack_id: int):
    """Yield `(start, stop)` of each stretch without BACKTRACK; one stands at `stop` unless that is the end."""
    start, n = 0, len(token_ids)
    for _ in range(token_ids.count(backtrack_id)):
        stop = token_ids.index(backtrack_id, start)
        yield start, stop
        start = stop + 1
    yield start, n


class Tape:
    """`layout` and the bans of decoding, one token at a time, for a cache with the token of position p in column p.

    columns: the ids that the newest row sees, itself included, by position. surviving: the completion ids that stand.
    erased: how many BACKTRACK has erased. penalties: for the number of surviving tokens before a place, what is added
    to the logits of ids there, for as long as these tokens stand; with `ban_erased` a BACKTRACK bans what it erases.
    Raises ValueError as `layout` does.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        backtrack_id: int | None,
        context: str,
        ban_erased: bool = False,
        max_erasures: float = math.inf,
    ):
        if context not in CONTEXTS:
            raise ValueError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
        self.backtrack_id, self.context = backtrack_id, context
        self.ban_erased, self.max_erasures = ban_erased, max_erasures
        self.columns = list(prompt_ids)
        self.surviving: list[int] = []
        self.erased = 0
        self.penalties: dict[int, dict[int, float]] = {}
        self._n_prompt = len(prompt_ids)
        self._positions: list[int] = []  # of the surviving tokens

    def copy(self) -> "Tape":
        """A tape that goes its own way from here."""
        twin = copy(self)
        twin.columns, twin.surviving, twin._positions = self.columns[:], self.surviving[:], self._positions[:]
        twin.penalties = {place: dict(ids) for place, ids in self.penalties.items()}
        return twin

    def feed(self, token: int) -> tuple[int, int]:
        """Append `token`; return the input id and the position of its row."""
        columns = self.columns
        if token != self.backtrack_id:
            if self.context == "block":
                del columns[self._n_prompt + len(self.surviving) :]
            position = len(columns)
            self._positions.append(position)
            self.surviving.append(token)
            columns.append(token)
            return token, position
        if self.surviving:
            self.erased += 1
            ban = -math.inf if self.ban_erased else None
            if self.context == "rewind":
                return self.erase(1, ban)
            self._forget(1, ban)
        elif self.context == "rewind":
            return self.erase(0)
        columns.append(token)
        return token, len(columns) - 1

    def erase(self, count: int, penalty: float | None = None) -> tuple[int, int]:
        """Unwrite the last `count` surviving tokens and every row since; return the row that is then the newest.

        `penalty`, if any, is added to the logit of the first of them at its place.
        """
        if count:
            del self.columns[self._positions[-count] :]
            self._forget(count, penalty)
        if not self.columns:
            raise ValueError("rewind needs a token to feed again: the prompt is empty and so is the rest")
        return self.columns[-1], len(self.columns) - 1

    def _forget(self, count: int, penalty: float | None) -> None:
        place = len(self.surviving) - count
        first = self.surviving[place]
        del self.surviving[place:], self._positions[place:]
        if self.penalties:
            for later in [other for other in self.penalties if other > place]:
                del self.penalties[later]
        if penalty is not None:
            here = self.penalties.setdefault(place, {})
            here[first] = here.get(first, 0.0) + penalty

    def nothing_to_add(self) -> bool:
        """Whether every token, BACKTRACK too, is on offer as it is: a quick look before `penalties_here`."""
        place = len(self.surviving)
        offered = self.backtrack_id is None or (place > 0 and self.erased < self.max_erasures)
        return offered and place not in self.penalties

    def penalties_here(self, n_vocabulary: float) -> dict[int, float]:
        """Ids and what is added to their logits at this place.

        BACKTRACK is banned where nothing is left to erase or `max_erasures` are spent. Other bans are lifted where,
        of `n_vocabulary` ids, none would be left: a text must end.
        """
        no_erasure = not self.surviving or self.erased >= self.max_erasures
        closed = {self.backtrack_id: -math.inf} if self.backtrack_id is not None and no_erasure else {}
        here = self.penalties.get(len(self.surviving), {})
        if list(here.values()).count(-math.inf) + len(closed) >= n_vocabulary:
            return closed
        return closed | here
