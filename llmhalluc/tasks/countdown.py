"""Countdown: reach a target from 3 or 4 numbers, each used once, by a depth-first search whose dead ends are erased.

A move takes two numbers that are there and puts their sum, difference, product or quotient in their place:
`3 + 4 = 7`. Numbers and results are whole and lie in 1..LIMIT.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.option import option
from llmhalluc.tasks.base import ERASE, Piece, Record, Task, Verdict, Written, word_tokenizer
from llmhalluc.tasks.boards import Board, Cell, Move
from llmhalluc.tasks.steps import ends_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMIT = 100  # the largest number
TRIES = 2  # moves that a search tries at a place, the right one among them where there is one
WORDS = 5  # of a move
_MOVE_END = re.compile(r"=\s*[0-9]+(?=\s)")
_MOST_DRAWS = 1000  # for each record, before there are too few

Numbers = tuple[int, ...]  # in ascending order


class Step(NamedTuple):
    """A move: `left sign right = result`, and the numbers that are there after it."""

    left: int
    sign: str
    right: int
    result: int
    after: Numbers

    @property
    def text(self) -> str:
        return f" {self.left} {self.sign} {self.right} = {self.result}"


@dataclass
class CountdownOptions:
    """`data.task` of Countdown."""

    numbers: Literal[3, 4] = option(3, "numbers of a problem")
    count: int = option(20000, "problems to generate", bounds="[1, inf)")
    largest: int = option(20, "largest of the numbers", bounds="[3, 100]")
    test_percent: int = option(20, "share of problems, by hash, that only evaluation may see", bounds="[1, 99]")
    seed: int = option(0, "seed of the generator")


@dataclass
class CountdownTestOptions:
    """`eval.task_options.countdown`."""

    numbers: Literal[3, 4] = option(3, "numbers of a problem")
    count: int = option(400, "problems to generate", bounds="[1, inf)")
    largest: int = option(20, "largest of the numbers", bounds="[3, 100]")
    seed: int = option(1, "seed of the generator")
    test_percent: int | None = option(
        None, "share of problems, by hash, that the test is drawn from; none: as in data.task", bounds="[1, 99]"
    )


class Countdown(Task):
    """Columns `numbers` (list of int), `target` (int) and `solution` (moves as text, in order)."""

    columns = ("numbers", "target", "solution")
    options, test_options = CountdownOptions, CountdownTestOptions

    def prompt(self, record: Record) -> str:
        return f"{' '.join(map(str, record['numbers']))} target {record['target']} solve"

    def solution(self, record: Record) -> str:
        return "".join(self.moves(record)).strip()

    def moves(self, record: Record) -> list[str]:
        return [f" {move}" for move in record["solution"]]

    def search(self, record: Record, rng: Random) -> list[Piece]:
        """Return a depth-first search over at most TRIES moves a place.

        Of the moves from which the target can be reached the solution's comes first, so the others are never tried.
        """
        pieces: list[Piece] = []
        numbers, target = _sorted(record["numbers"]), record["target"]
        for right in _steps_of(record["solution"], numbers):
            others = [step for step in options_of(numbers) if not reaches(step.after, target)]
            for wrong in rng.sample(others, min(len(others), rng.randrange(TRIES))):
                pieces += [wrong.text, *_dead_end(wrong.after, rng), ERASE]
            pieces.append(f" {right.text.strip()}")
            numbers = right.after
        return pieces

    def next_moves(self, record: Record, standing: Sequence[str]) -> list[str]:
        """Return the moves, the larger number first, after which the target can be reached."""
        steps = options_of(_state(standing, record) or ())
        return [step.text for step in steps if reaches(step.after, record["target"])]

    def wrong_moves(
        self, record: Record, standing: Sequence[str], rng: Random, instead_of: str | None = None
    ) -> list[str]:
        numbers, moves = _state(standing, record), []
        while numbers and (steps := options_of(numbers)):
            others = [step for step in steps if moves or instead_of is None or step.text != instead_of]
            step = rng.choice(others or list(steps))
            moves.append(step.text)
            numbers = step.after
        return moves

    def tokenizer(self, name: str) -> "PreTrainedTokenizerBase":
        return word_tokenizer([*map(str, range(1, LIMIT + 1)), *"+-*/=", "target", "solve"])

    def read(self, record: Record) -> Record:
        return {
            "numbers": [int(number) for number in record["numbers"]],
            "target": int(record["target"]),
            "solution": [" ".join(str(move).split()) for move in record["solution"]],
        }

    def invalid(self, record: Record, options: CountdownOptions) -> str | None:
        if self.check(self.solution(record), record).right:
            return None
        return (
            f"the numbers {record['numbers']} with the target {record['target']} and the solution "
            f"{record['solution']}, which does not reach it: correct it"
        )

    def held_out(self, record: Record, options: CountdownOptions) -> str | None:
        if part_of(record["numbers"], record["target"], options.test_percent) == "train":
            return None
        return (
            f"the numbers {record['numbers']} with the target {record['target']}, one of the {options.test_percent}% "
            "that are for evaluation alone: remove it from the training data (data.task.test_percent)"
        )

    def generate(self, options: CountdownOptions, split: str) -> list[Record]:
        """Return distinct problems of a split. Raises UserError where there are too few."""
        rng, found = Random(f"{options.seed}-{split}"), {}
        for _ in range(options.count * _MOST_DRAWS):
            numbers = _sorted(rng.randint(1, options.largest) for _ in range(options.numbers))
            steps, left = [], numbers
            while len(left) > 1:
                steps.append(rng.choice(options_of(left)))
                left = steps[-1].after
            key = (numbers, left[0])
            if key not in found and part_of(*key, options.test_percent) == split:
                found[key] = [step.text.strip() for step in steps]
            if len(found) == options.count:
                columns = [(list(numbers), target, moves) for (numbers, target), moves in found.items()]
                return [dict(zip(self.columns, row, strict=True)) for row in columns]
        raise UserError(
            f"only {len(found)} problems of {options.numbers} numbers up to {options.largest} were found for {split}, "
            f"{options.count} are wanted: lower count, or raise largest"
        )

    def generate_test(self, options: CountdownTestOptions) -> list[Record]:
        percent = CountdownOptions().test_percent if options.test_percent is None else options.test_percent
        asked = CountdownOptions(options.numbers, options.count, options.largest, percent, options.seed)
        return self.generate(asked, "test")

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether the moves are true, use each number once, and end with the target; any way will do."""
        words = text.split()
        left = _state([text], record)
        return Verdict(left == (record["target"],), words[-1] if words else None)

    def promising(self, text: str, record: Record) -> bool:
        """Return whether the target can be reached after the whole moves of a text."""
        words = text.split()
        whole = " ".join(words[: len(words) - len(words) % WORDS])
        return reaches(_state([whole], record), record["target"])

    def ballot(self, text: str, record: Record) -> Hashable | None:
        """Return the moves: that they end with the target says little."""
        return " ".join(text.split()) or None

    def metrics(self, text: str, record: Record) -> dict[str, float]:
        return {"solved": float(self.check(text, record).right)}

    def process(self, text: str, record: Record, right: bool | None = None) -> float:
        """Return the share of moves, of those that are needed or written, after which the target can be reached."""
        moves = _moves_in(text)
        good = sum(key is True for key in self.step_keys(moves, record))
        return good / max(len(record["numbers"]) - 1, len(moves))

    def format(self, text: str, record: Record) -> float:
        """Return the share of moves, of those that are needed or written, that have the form of one."""
        moves = _moves_in(text)
        good = sum(bool(re.fullmatch(r"[0-9]+ [-+*/] [0-9]+ = [0-9]+", move)) for move in moves)
        return good / max(len(record["numbers"]) - 1, len(moves))

    def is_wrong(self, token: Written, record: Record) -> bool | None:
        """Return whether a token completes a move after which the target is out of reach; None within a move."""
        before = token.before()
        if not before or len(before.split()) % WORDS:
            return None
        return not reaches(_state([before], record), record["target"])

    def step_ends(self, pieces: Sequence[str]) -> list[int]:
        """Return the ends of the moves."""
        return ends_at(pieces, _MOVE_END)

    def step_keys(self, steps: Sequence[str], record: Record) -> list[Hashable | None]:
        """Return for each move whether the target can be reached after it."""
        reached = [reaches(_state(steps[: i + 1], record), record["target"]) for i in range(len(steps))]
        return list(reached)

    def rest(self, steps: Sequence[str], record: Record) -> list[str] | None:
        """Return moves that lead on to the target; None where they do not exist."""
        numbers, target, moves = _state(steps, record), record["target"], []
        if not reaches(numbers, target):
            return None
        while len(numbers) > 1:
            step = next(step for step in options_of(numbers) if reaches(step.after, target))
            moves.append(step.text)
            numbers = step.after
        return moves

    def board(self, record: Record, moves: Sequence[Move]) -> Board:
        """Return the search as a tree: a line a move, indented by its depth, what was given up struck out."""
        problem = f"{' '.join(map(str, record['numbers']))} → {record['target']}"
        lines: list[list[Move]] = []
        line_of: list[int] = []  # of each token
        depths: list[int] = []
        for move in moves:
            depths.append(depths[move.parent] + 1 if move.parent >= 0 else 0)
            if depths[-1] % WORDS == 0:
                lines.append([])
            line_of.append(len(lines) - 1 if depths[-1] % WORDS == 0 else line_of[move.parent])
            lines[line_of[-1]].append(move)
        rows, first = [[Cell(problem, ("given",))]], {line: i for i, line in reversed(list(enumerate(line_of)))}
        for number, line in enumerate(lines):
            marks = (f"indent-{depths[first[number]] // WORDS + 1}",)
            text = " ".join(move.text.strip() for move in line)
            rows.append([Cell(text, marks if line[-1].standing else (*marks, "dead"))])
        return Board(rows, (0, 0))


def part_of(numbers: Sequence[int], target: int, percent: int) -> str:
    """Return the part that a problem belongs to, `train` or `test`, by SHA-256 of its sorted numbers and target."""
    name = f"{' '.join(map(str, sorted(numbers)))} {target}"
    return "test" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < percent else "train"


@lru_cache(1 << 16)
def options_of(numbers: Numbers) -> tuple[Step, ...]:
    """Return the moves that some numbers allow, the larger number first in each."""
    found: dict[str, Step] = {}
    for i in range(len(numbers)):
        for j in range(i):
            small, large = numbers[j], numbers[i]
            rest = numbers[:j] + numbers[j + 1 : i] + numbers[i + 1 :]
            for sign, result in _results(large, small):
                step = Step(large, sign, small, result, _sorted((*rest, result)))
                found.setdefault(step.text, step)
    return tuple(found.values())


@lru_cache(1 << 18)
def reaches(numbers: Numbers | None, target: int) -> bool:
    """Return whether all of some numbers together make the target; None are the numbers after an invalid move."""
    if numbers is None or len(numbers) == 1:
        return numbers == (target,)
    return any(reaches(step.after, target) for step in options_of(numbers))


def _results(large: int, small: int) -> Iterator[tuple[str, int]]:
    if large + small <= LIMIT:
        yield "+", large + small
    if large > small:
        yield "-", large - small
    if large * small <= LIMIT:
        yield "*", large * small
    if large % small == 0:
        yield "/", large // small


def _dead_end(numbers: Numbers, rng: Random) -> list[Piece]:
    """The search below a move from which the target cannot be reached."""
    steps, pieces = options_of(numbers), []
    for step in rng.sample(steps, min(TRIES, len(steps))):
        pieces += [step.text, *_dead_end(step.after, rng), ERASE]
    return pieces


def _moves_in(text: str) -> list[str]:
    """The words of a text, five to a move; the last one may be cut short."""
    words = text.split()
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]


def _steps_of(moves: Sequence[str], numbers: Numbers) -> list[Step]:
    """The steps that some moves are. Raises KeyError for a move that the numbers do not allow."""
    found = []
    for move in moves:
        known = {step.text.strip(): step for step in options_of(numbers)}
        known |= {_turned(step): step for step in known.values() if step.sign in "+*"}
        found.append(known[move.strip()])
        numbers = found[-1].after
    return found


def _turned(step: Step) -> str:
    return f"{step.right} {step.sign} {step.left} = {step.result}"


def _state(texts: Sequence[str], record: Record) -> Numbers | None:
    """The numbers that are there after the moves of some texts, None after one that is false or not allowed."""
    numbers = _sorted(record["numbers"])
    try:
        steps = _steps_of(_moves_in(" ".join(texts)), numbers)
    except KeyError:
        return None
    return steps[-1].after if steps else numbers


def _sorted(numbers: Iterable[int]) -> Numbers:
    return tuple(sorted(numbers))


TASK = Countdown()
