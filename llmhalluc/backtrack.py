"""The one meaning of BACKTRACK: what it erases, what the model still sees, what the loss trains on.

Pure functions over token ids: no model, no tokenizer, no torch. A trace is `prompt_ids` + `completion_ids`; a
BACKTRACK in the completion erases the nearest surviving token of the completion, never one of the prompt, and
does nothing where nothing is left. docs/architecture.md draws the three contexts.
"""

from collections.abc import Sequence
from typing import NamedTuple

CONTEXTS = ("soft", "block", "rewind")
ERROR_LABELS = ("train", "mask", "redirect")
IGNORE = -100


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


def unoffered(
    completion_ids: Sequence[int], backtrack_id: int, ban_erased: bool, max_erasures: int, n_vocabulary: int
) -> list[list[int]]:
    """For each token of a completion, the ids that decoding did not offer in its place.

    These are BACKTRACK where nothing is left to erase or `max_erasures` are spent and, with `ban_erased`, what was
    erased at that very place while the prefix before it stands; bans that would leave none of `n_vocabulary` ids
    are lifted. `a BT b` -> `[[BT], [], [BT, a]]`.
    """
    surviving: list[int] = []
    bans: dict[int, dict[int, None]] = {}  # number of surviving tokens before a place -> ids erased there
    erased, found = 0, []
    for token in completion_ids:
        place = len(surviving)
        closed = not place or erased >= max_erasures
        banned = bans.get(place, ())
        found.append([backtrack_id] * closed + [*banned] * (len(banned) + closed < n_vocabulary))
        if token != backtrack_id:
            surviving.append(token)
        elif place:
            bans.pop(place, None)
            if ban_erased:
                bans.setdefault(place - 1, {})[surviving[-1]] = None
            surviving.pop()
            erased += 1
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
    """`layout`, one emitted token at a time, for a cache in which a token at position p lies in column p.

    `columns` holds the ids that the newest row sees, itself included, by position; `surviving` the completion ids
    that stand; `erased` counts them. Raises as `layout` does.
    """

    def __init__(self, prompt_ids: Sequence[int], backtrack_id: int | None, context: str):
        if context not in CONTEXTS:
            raise ValueError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
        self.backtrack_id, self.context = backtrack_id, context
        self.columns = list(prompt_ids)
        self.surviving: list[int] = []
        self.erased = 0
        self._n_prompt = len(prompt_ids)
        self._positions: list[int] = []  # of the surviving tokens

    def feed(self, token: int) -> tuple[int, int]:
        """Append `token`; answer the input id and the position of its row."""
        if token != self.backtrack_id:
            if self.context == "block":
                del self.columns[self._n_prompt + len(self.surviving) :]
            self._positions.append(len(self.columns))
            self.surviving.append(token)
            self.columns.append(token)
        elif self.context == "rewind":
            return self.erase(min(1, len(self.surviving)))
        else:
            if self.surviving:
                self.surviving.pop()
                self._positions.pop()
                self.erased += 1
            self.columns.append(token)
        return self.columns[-1], len(self.columns) - 1

    def erase(self, count: int) -> tuple[int, int]:
        """Unwrite the last `count` surviving tokens and every row since; answer the row that is then the newest."""
        if count:
            del self.columns[self._positions[-count] :], self._positions[-count:], self.surviving[-count:]
            self.erased += count
        if not self.columns:
            raise ValueError("rewind needs a token to feed again: the prompt is empty and so is the rest")
        return self.columns[-1], len(self.columns) - 1
