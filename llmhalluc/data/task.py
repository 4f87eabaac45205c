"""The converters of a task (llmhalluc/tasks): its clean solutions, and its errors or searches with what is erased."""

from collections.abc import Iterable, Sequence
from itertools import chain
from random import Random
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from llmhalluc.data.base import BacktrackDatasetConverter, ErringConverter, Ids, column, tokenise
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.task_args import task_options
from llmhalluc.tasks import CONVERTERS, TASKS
from llmhalluc.tasks.base import ERASE, Piece, Record

_ANCHOR = "\n"  # stands before a text that is tokenised alone


class MoveTokens:
    """The ids of a task's moves and solutions; `delimiter` precedes the first move in the place of white space.

    Raises UserError for a tokenizer that has not a token for each move, where the task needs that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, delimiter: str, task: str):
        self.tokenizer, self.delimiter, self.task = tokenizer, delimiter, task
        self.known: dict[str, Ids] = {}
        ((self.anchor,), _) = tokenise(tokenizer, [_ANCHOR], special_tokens=False)

    def of(self, text: str, first: bool = False) -> Ids:
        """Return the ids of a text in the middle of a completion, or of its first move: the same ones come often."""
        text = self.delimiter + text.lstrip() if first else text
        if text in self.known:
            return self.known[text]
        (ids,), _ = tokenise(self.tokenizer, [_ANCHOR + text], special_tokens=False)
        n = len(self.anchor)
        ids = ids[n:] if ids[:n] == self.anchor else ids
        task = TASKS[self.task]
        if task.one_token_moves and (len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id):
            raise UserError(
                f"the task {self.task} needs a tokenizer with a token for each move such as {text.strip()}: set "
                f"model.tokenizer to {' or '.join(task.tokenizers)}"
            )
        self.known[text] = ids
        return ids

    def of_moves(self, moves: Iterable[str], n_before: int = 0) -> list[Ids]:
        """Return the ids of each move; `n_before` moves stand before the first."""
        return [self.of(move, first=i == 0) for i, move in enumerate(moves, n_before)]

    def of_solution(self, record: Record) -> Ids:
        """Return the ids of the clean solution, without eos."""
        if TASKS[self.task].can("moves"):
            return joined(self.of_moves(TASKS[self.task].moves(record)))
        text = self.delimiter + TASKS[self.task].solution(record)
        return tokenise(self.tokenizer, [text], special_tokens=False)[0][0]


class TaskConverter(BacktrackDatasetConverter):
    """The task's prompt and clean solution; `task` is the name of one in TASKS, else `data.converter` says it.

    Raises UserError for a record that is none of the task's, or that is for evaluation alone (law 8).
    """

    def __init__(self, *args, task: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.task_name = task or CONVERTERS[self.data.converter]
        self.options = task_options(self.data, self.task_name)
        self.tokens = MoveTokens(self.tokenizer, self.delimiter, self.task_name)

    @property
    def task(self) -> Any:
        """The task; a converter that is sent to another process holds its name alone."""
        return TASKS[self.task_name]

    def read(self, record: dict[str, Any]) -> Record:
        """Return the columns of the task."""
        for name in self.task.columns:
            column(record, name, f"data.converter {self.data.converter}")
        found = self.task.read(record)
        wrong = self.task.invalid(found, self.options)
        if wrong is None and self.training:
            wrong = self.task.held_out(found, self.options)
        if wrong is not None:
            raise UserError(f"data.dataset {self.data.dataset} has {wrong}")
        return found

    def texts(self, record: dict[str, Any]) -> tuple[str, str]:
        return self.task.prompt(record), self.delimiter + self.task.solution(record)

    def details(self, record: Record, answer: str, encoding: Encoding | None) -> dict[str, Any]:
        return {"record": record} if self.task.can("next_moves") else {}

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return super().encode_batch([self.read(record) for record in records])

    def answer_ids(
        self, records: Sequence[Record], answers: Sequence[str]
    ) -> tuple[list[Ids], Sequence[Encoding | None]]:
        if not self.task.can("moves"):
            return super().answer_ids(records, answers)
        return [self.tokens.of_solution(record) for record in records], [None] * len(records)


class TaskBacktrackConverter(ErringConverter, TaskConverter):
    """The task's errors, erased: dead ends of its search, errors that it puts into ids, or else random error runs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.token_errors = None
        if self.task.can("token_errors"):
            if not self.tokenizer.is_fast:
                raise UserError(f"data.converter {self.data.converter} needs a fast tokenizer: set model.tokenizer")
            self.token_errors = self.task.token_errors(self.errors, self.tokens.of, self.delimiter)
        self.offsets = self.token_errors is not None

    def details(self, record: Record, answer: str, encoding: Encoding | None) -> dict[str, Any]:
        if self.token_errors is not None:
            return super().details(record, answer, encoding) | self.token_errors.details(record, answer, encoding)
        return {"record": record} if self.task.can("search") else super().details(record, answer, encoding)

    def check(self, encoded: Sequence[dict[str, Any]]) -> None:
        if self.token_errors is not None and encoded and not any(item["steps"] for item in encoded):
            raise UserError(
                f"data.dataset {self.data.dataset} has no {self.token_errors.needs}, which data.converter "
                f"{self.data.converter} makes its errors from: name data that has, or data.converter=backtrack"
            )

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        if self.token_errors is not None:
            return self.token_errors.corrupt(encoded, rng, progress)
        if self.task.can("search"):
            runs = self.search_ids(self.task.search(encoded["record"], rng))
            return joined(runs) + encoded["completion_ids"][-1:]
        return super().corrupt(encoded, rng, progress)

    def search_ids(self, pieces: Sequence[Piece]) -> list[Ids]:
        """Return the ids of each piece: a move's own, and as many BACKTRACKs for the ERASE that takes it back."""
        runs: list[Ids] = []
        standing: list[int] = []  # tokens of each move that stands
        for piece in pieces:
            if piece is ERASE:
                runs.append([self.backtrack_id] * standing.pop())
            else:
                runs.append(self.tokens.of(piece, first=not standing))
                standing.append(len(runs[-1]))
        return runs


def joined(runs: Iterable[Ids]) -> Ids:
    """Return the ids of some runs, one after the other."""
    return list(chain.from_iterable(runs))
