"""Traces with what the techniques of SFT look at (docs/sft.md): corrections, right first tokens, errors that are kept.

Shapes: B rows of a batch, T positions of a row.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from llmhalluc.backtrack import labels, layout, replay, tops
from llmhalluc.data.collator import Draw
from llmhalluc.data.task import MoveTokens
from llmhalluc.data.traces import TraceDataset, unpack
from llmhalluc.tasks.base import Record

Choices = dict[int, list[int]]  # position -> the ids of which any is right there
NONE = -1  # no correction; no id


class AnnotatedTraces(TraceDataset):
    """The traces of another TraceDataset, whose items also have `after` and, with `sets`, `choices`.

    replaced_only: as in `since_backtracks`. kept: numbers of the records that keep the errors of their first draw, the
    others are clean; None: each draw has errors of its own.
    """

    def __init__(self, traces: TraceDataset, replaced_only: bool = False, sets: bool = False):
        self.__dict__ |= traces.__dict__
        self.replaced_only, self.sets = replaced_only, sets
        self.kept: Collection[int] | None = None

    def __getitem__(self, key: Draw | int) -> dict[str, Any]:
        draw = key if isinstance(key, tuple) else Draw(0, key, 1.0)
        args, backtrack_id = self.converter.backtrack, self.converter.backtrack_id
        prompt_ids, completion_ids = self.trace(*draw)
        targets = labels(prompt_ids, completion_ids, backtrack_id, args.error_labels)
        item: dict[str, Any] = layout(prompt_ids, completion_ids, backtrack_id, args.context)._asdict()
        after = since_backtracks(completion_ids, backtrack_id, self.replaced_only)
        item |= {"labels": targets, "after": [NONE] * len(prompt_ids) + after, "choices": {}}
        if self.sets:
            converter: Any = self.converter  # of a task: hparams/techniques.py refuses others
            start = first_ids(converter.task, converter.tokens, self.encoded[draw.index]["record"])
            found = choices(completion_ids, targets[len(prompt_ids) :], backtrack_id, start)
            item["choices"] = {len(prompt_ids) + position: ids for position, ids in found}
        return item

    def trace(self, epoch: int, index: int, progress: float) -> tuple[list[int], list[int]]:
        """Prompt and completion of one draw."""
        if self.kept is None:
            return super().trace(epoch, index, progress)
        return super().trace(0, index, 1.0) if index in self.kept else self.clean(index)

    def clean(self, index: int) -> tuple[list[int], list[int]]:
        """Prompt and completion of a record without errors."""
        encoded = unpack(self.encoded[index])
        return encoded["prompt_ids"], encoded["completion_ids"]


def since_backtracks(completion_ids: Sequence[int], backtrack_id: int, replaced_only: bool = False) -> list[int]:
    """For each token how many stand between it and the run of BACKTRACKs before it: `a b BT c d` -> `- - - 0 1`.

    NONE (`-`) where there is no such run, on BACKTRACKs, and on tokens that are erased later. replaced_only: of the
    tokens after a run only as many as it has BACKTRACKs: `- - - 0 -`.
    """
    found: list[int] = []
    run = since = 0
    standing = frozenset(replay(completion_ids, backtrack_id))
    for i, token in enumerate(completion_ids):
        if token == backtrack_id:
            run, since = run + 1 if since == 0 else 1, 0
            found.append(NONE)
            continue
        corrects = run > 0 and i in standing and (since < run or not replaced_only)
        found.append(since if corrects else NONE)
        since += 1
    return found


def first_ids(task: Any, tokens: MoveTokens, record: Record) -> Choices:
    """Of the clean completion, the positions where a move begins and what any right move begins with there."""
    moves, at, found = task.moves(record), 0, {}
    for n, move in enumerate(moves):
        ids = tokens.of(move, first=n == 0)
        others = [tokens.of(other, first=n == 0)[0] for other in task.next_moves(record, moves[:n])]
        found[at] = sorted({ids[0], *others})
        at += len(ids)
    return {position: ids for position, ids in found.items() if len(ids) > 1}


def choices(
    completion_ids: Sequence[int], targets: Sequence[int], backtrack_id: int, start: Choices
) -> Iterator[tuple[int, list[int]]]:
    """Yield the positions of a trace whose target is the clean token where a move begins, and the right ids there.

    These are the surviving token and, with error labels redirect, errors in the place of which it is the target.
    """
    survivors = replay(completion_ids, backtrack_id)
    follower = dict(zip([-1, *survivors], range(len(survivors)), strict=False))  # survivor -> clean position after it
    for position, top in enumerate(tops(completion_ids, backtrack_id)):
        at = follower.get(top, NONE)
        if at in start and targets[position] == completion_ids[survivors[at]]:
            yield position, start[at]


class AnnotatedCollator:
    """The batches of `collator`, with what the rows of AnnotatedTraces have beside; others as they are.

    after: (B, T), NONE on padding. choices: (·, 2 + K), row and position in the batch, then ids, filled up with NONE.
    """

    def __init__(self, collator: Callable[[list[dict]], dict[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator(rows)
        if "after" not in rows[0]:
            return batch
        # Numbers of the tokens of all rows, laid out as the collator lays out positions; padding is 0.
        starts, numbered, start = [], [], 1
        for row in rows:
            n = len(row["input_ids"])
            starts.append(start)
            numbered.append(row | {"position_ids": list(range(start, start + n))})
            start += n
        number_BT = self.collator(numbered)["position_ids"]
        after = torch.tensor([NONE, *(value for row in rows for value in row["after"])])
        places = torch.empty(start, 2, dtype=torch.long)
        places[number_BT[number_BT > 0]] = number_BT.nonzero()
        listed = [
            (first + p, ids) for row, first in zip(rows, starts, strict=True) for p, ids in row["choices"].items()
        ]
        width = max((len(ids) for _, ids in listed), default=0)
        filled = torch.tensor([[*ids, *[NONE] * (width - len(ids))] for _, ids in listed], dtype=torch.long)
        at = places[torch.tensor([number for number, _ in listed], dtype=torch.long)]
        return batch | {"after": after[number_BT], "choices": torch.cat([at, filled.view(len(listed), width)], 1)}
