"""What a task is: all that depends on the kind of problem that a model solves, as text, without a model.

A task is a subclass of Task, an instance of it named TASK in the same file, and a line in TASKS (tasks/__init__.py).
"""

from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmhalluc.tasks.boards import Board, Move
    from llmhalluc.tasks.token_errors import Runs, TokenErrors

Record = dict[str, Any]  # a problem, its `columns` by name
Piece = str | None  # the text of a move, or ERASE
ERASE: Piece = None  # in a search: the last move that stands is taken back


class CutOff(str):
    """A text that ended by its length: a statement at its end counts only where something completes it."""


class Verdict(NamedTuple):
    """What `check` found.

    stated: the answer as the text states it, None where it states none. cut: the text is cut off and its answer is not
    complete. timed_out: the check ran out of time, and `right` is False for want of it.
    """

    right: bool
    stated: str | None = None
    cut: bool = False
    timed_out: bool = False


class Written(NamedTuple):
    """A token that a model wrote: its text, the text that stood when it had been written, and whether it stays.

    `before()` includes the token, goes back a limited number of tokens, and is empty once too many were looked at. A
    token stays when it survives, or when it was written again as it was, and so was all before it.
    """

    text: str
    before: Callable[[], str]
    stays: bool


class Task:
    """One kind of problem. `columns`, `prompt`, `solution` and `check` are needed; the rest has a default."""

    columns: tuple[str, ...] = ()
    options: type | None = None  # dataclass of `data.task`, where `generate` makes records
    test_options: type | None = None  # dataclass of `eval.task_options.NAME`; None in a field: as in data.task
    one_token_moves = False  # whether a tokenizer must have a token for each move

    # What a model reads and writes.

    def prompt(self, record: Record) -> str:
        """Return what the model is asked; the solution follows, after a space or in a chat's turn."""
        raise NotImplementedError

    def solution(self, record: Record) -> str:
        """Return the right solution as the model shall write it."""
        raise NotImplementedError

    def moves(self, record: Record) -> list[str]:
        """Return the solution in pieces that are tokenised one by one; here it is one piece."""
        return [self.solution(record)]

    def search(self, record: Record, rng: Random) -> list[Piece]:
        """Return the moves as a search tries them, with an ERASE for each one that it takes back.

        The moves that stand in the end are `moves(record)`. A task without it errs by random runs of tokens.
        """
        raise NotImplementedError

    def next_moves(self, record: Record, standing: Sequence[str]) -> list[str]:
        """Return every right next move after `standing` moves of the solution, for `train.targets: set`."""
        raise NotImplementedError

    def wrong_moves(
        self, record: Record, standing: Sequence[str], rng: Random, instead_of: str | None = None
    ) -> list[str]:
        """Return moves with which a search continues wrongly where `standing` is a dead end; here as if it were none.

        instead_of: a move that was right and was erased all the same; the first of these moves is another one.
        """
        return self.moves(record)[len(standing) :]

    def token_errors(self, runs: "Runs", ids_of: Callable[[str], list[int]], delimiter: str) -> "TokenErrors":
        """Return what puts errors into ids, for a task whose errors must be exact about tokens.

        ids_of: the ids of a text in the middle of a completion. delimiter: what precedes the solution.
        """
        raise NotImplementedError

    def tokenizer(self, name: str) -> "PreTrainedTokenizerBase":
        """Return one of the tokenizers that TASKS lists for the task."""
        raise NotImplementedError

    # Where records come from, and which of them train.

    def read(self, record: Record) -> Record:
        """Return the columns of a record of a data set, which has them all."""
        return {name: record[name] for name in self.columns}

    def invalid(self, record: Record, options: Any) -> str | None:
        """Return what is wrong with a record (`the puzzle … : correct it`), None where it is one of the task."""
        return None

    def unsolvable(self, record: Record) -> str | None:
        """Return why `check` could not check answers to a record, None where it can."""
        return None

    def held_out(self, record: Record, options: Any) -> str | None:
        """Return why a record is for evaluation alone (law 8), None where it may train."""
        return None

    def generate(self, options: Any, split: str) -> list[Record]:
        """Return the records of `data.task` for the split train or test; no problem is in both."""
        raise NotImplementedError

    def generate_test(self, options: Any) -> list[Record]:
        """Return the records of `eval.task_options`; none of them could be in the split train."""
        raise NotImplementedError

    # What is right.

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether a surviving text solves the record; limit: seconds, where that must be computed."""
        raise NotImplementedError

    def promising(self, text: str, record: Record) -> bool:
        """Return whether a right solution can begin with a text, by the problem alone; for the guide of a search."""
        raise NotImplementedError

    def ballot(self, text: str, record: Record) -> Hashable | None:
        """Return what a text votes for among several; None: it abstains."""
        return self.check(text, record).stated

    def metrics(self, text: str, record: Record) -> dict[str, float]:
        """Return the scores that evaluation takes means of, 0 to 1."""
        return {"right": float(self.check(text, record).right)}

    def process(self, text: str, record: Record, right: bool | None = None) -> float:
        """Return how far a surviving text's steps are right, 0 to 1; right: what `check` found, where that is known."""
        return float(self.check(text, record).right if right is None else right)

    def format(self, text: str, record: Record) -> float:
        """Return how well a surviving text keeps to the form of an answer, 0 to 1, for the reward."""
        return float(self.check(text, record).stated is not None)

    def is_wrong(self, token: Written, record: Record) -> bool | None:
        """Return whether a token is wrong where all before it is not, for the reward; None: that does not show."""
        return None

    # What a wrong solution of the model's own is taken apart into.

    def step_ends(self, pieces: Sequence[str]) -> list[int]:
        """Return after how many tokens each step ends; `pieces` are the tokens' texts. Here a word is a step."""
        from llmhalluc.tasks.steps import WORD_END, ends_at

        return ends_at(pieces, WORD_END)

    def step_keys(self, steps: Sequence[str], record: Record) -> list[Hashable | None]:
        """Return what another solution's step must agree in with each step; None: it says nothing of weight."""
        return [step.strip() or None for step in steps]

    def rest(self, steps: Sequence[str], record: Record) -> list[str] | None:
        """Return the moves that complete some steps of a solution, None where the task cannot say."""
        return None

    def is_worked(self, record: Record) -> bool:
        """Return whether the solution has steps, not the mere answer."""
        return True

    def is_false(self, step: str) -> bool:
        """Return whether a step is false by itself, which the locator `arithmetic` looks for."""
        raise NotImplementedError

    # What people look at.

    def board(self, record: Record, moves: "Sequence[Move]") -> "Board":
        """Return what to draw of a trace after these tokens."""
        raise NotImplementedError

    def can(self, name: str) -> bool:
        """Return whether the task has a method of that name of its own."""
        return getattr(type(self), name) is not getattr(Task, name)


def word_tokenizer(words: Sequence[str]) -> "PreTrainedTokenizerBase":
    """Return a tokenizer with a token a word: `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3, then `words`.

    BACKTRACK is added by the model.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *words]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
