"""Wrong intermediate results of worked solutions, carried on and then erased.

Calculator marks (`48/2 = <<48/2=24>>24 clips`) say which number is a result and how it came about. They are
not trained on; they let a wrong result change what is computed from it.
"""

import operator
import re
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from llmhalluc.backtrack import inject_error
from llmhalluc.tasks.math.solution import MARK, NUMBER
from llmhalluc.tasks.token_errors import Runs

if TYPE_CHECKING:
    from tokenizers import Encoding


_SYMBOL = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+|[-+*/()]")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}
_MOST_SYMBOLS = 100  # of an expression that is evaluated
_LARGEST = 1e12  # what is computed from a wrong number stays below this


class CarriedErrors:
    """A step's result is changed and carried on, then erased: `rate` × tokens such runs, at most one a step.

    A run is the wrong number and, after it, as many tokens as the `backtrack` section draws. It is spliced from
    the clean ids, exactly what survives; only the numbers that differ are tokenised, each once.
    """

    needs = "calculator marks (<<1+1=2>>)"

    def __init__(self, runs: Runs, ids_of: Callable[[str], list[int]], delimiter: str):
        self.runs, self.ids_of, self.delimiter = runs, ids_of, delimiter

    def details(self, record: dict[str, Any], answer: str, encoding: "Encoding") -> dict[str, Any]:
        """Return `numbers`, from the first result on: (first token, token after the last, these tokens' text before the
        number, the number, text after it). `steps`: (index into `numbers`, the expression it is the result of).
        """
        at, results = len(self.delimiter), {}
        for i, part in enumerate(MARK.split(record["answer"].strip())):
            if i % 2:  # an expression, between two texts
                results[at] = part.rpartition("=")[0]
            else:
                at += len(part)
        numbers: list[tuple[int, int, str, str, str]] = []
        steps: list[tuple[int, str]] = []
        for match in NUMBER.finditer(answer, min(results)) if results else ():
            start, end = match.span()
            first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
            if first is None or last is None:
                continue
            space, before = encoding.token_to_chars(first - 1) if first else (0, 0)
            if answer[space:start] == " ":  # a token of its own here, and part of another number's token
                first, before = first - 1, space
            if numbers and first < numbers[-1][1]:
                continue
            after = encoding.token_to_chars(last)[1]
            if start in results:
                steps.append((len(numbers), results[start]))
            numbers.append((first, last + 1, answer[before:start], match.group(), answer[end:after]))
        return {"numbers": numbers, "steps": steps}

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> list[int]:
        ids = trace = encoded["completion_ids"]
        longest = self.runs.longest(progress)
        for step in reversed(self.runs.places(range(len(encoded["steps"])), len(ids), rng)):
            at, error = self.error(encoded, step, self.runs.length(rng, longest), rng)
            trace = inject_error(trace, at, self.runs.nest(error, longest, rng), self.runs.backtrack_id)
        return trace

    def pair(self, encoded: dict[str, Any], longest: int, rng: Random) -> tuple[int, list[int], list[int]] | None:
        """Return a wrong result and as many tokens as the section draws, and how it is carried on to the last line.

        None where what follows from it makes no sense (a negative number of hens).
        """
        steps, numbers, ids = encoded["steps"], encoded["numbers"], encoded["completion_ids"]
        if not steps:
            return None
        step, length, seed = int(rng.random() * len(steps)), self.runs.length(rng, longest), rng.random()
        at, run = self.error(encoded, step, length, Random(seed))
        _, whole = self.error(encoded, step, 2 * len(ids), Random(seed))
        last = len(numbers) - 1
        if steps[step][0] < last:
            between = ids[
                numbers[last - 1][1] : numbers[last][0]
            ]  # "####" among them: there once, and there at the end
            if not any(whole[i : i + len(between)] == between for i in range(len(whole))):
                return None
        if not run or whole[: len(run)] != run:
            return None
        return at, self.runs.nest(run, longest, rng), [*whole[len(run) :], ids[-1]]

    def error(self, encoded: dict[str, Any], step: int, length: int, rng: Random) -> tuple[int, list[int]]:
        """Where the answer with a wrong result of `step` parts from the right one, and its ids from there on:
        the rest of the wrong number and `length` tokens more, fewer where the answer ends or makes no sense.
        """
        ids, numbers = encoded["completion_ids"], encoded["numbers"]
        index, expression = encoded["steps"][step]
        begin, done, before, right, after = numbers[index]
        wrong = wrong_number(right, symbols_of(expression), rng)
        error = list(self.ids_of(before + wrong + after))
        length += len(error)
        changed, results = {_value(right): _value(wrong)}, dict(encoded["steps"][step + 1 :])
        for i in range(index + 1, len(numbers)):
            start, stop, before, number, after = numbers[i]
            if len(error) + start - done >= length:
                break
            symbols = symbols_of(results.get(i, ""))
            carried = [str(changed.get(_value(symbol), symbol)) for symbol in symbols]
            if carried != symbols:
                value = evaluate(carried)
                if value is None:  # nobody could write on from here
                    length = len(error) + start - done
                    break
                changed[_value(number)] = _value(write_like(value, number))
            error += ids[done:start]
            if (value := changed.get(_value(number))) is None:
                error += ids[start:stop]
            else:
                error += self.ids_of(before + write_like(value, number) + after)
            done = stop
        error += ids[done : min(done + length - len(error), len(ids) - 1)]  # never the eos
        same = 0
        while same < len(error) and error[same] == ids[begin + same]:
            same += 1
        return begin + same, error[same:length]


def wrong_number(right: str, symbols: list[str], rng: Random) -> str:
    """Another number in the format of `right`: of a wrong operation, a little off, or with a wrong digit."""
    kind = rng.random()
    places = [i for i, symbol in enumerate(symbols) if symbol in _OPERATORS]
    value = None
    if kind < 0.4 and places:
        at = rng.choice(places)
        other = rng.choice([symbol for symbol in _OPERATORS if symbol != symbols[at]])
        value = evaluate([*symbols[:at], other, *symbols[at + 1 :]])
    elif kind < 0.7:
        value = _value(right) + rng.choice((-10, -2, -1, 1, 2, 10))
    if value is not None and value >= 0 and (value == int(value) or "." in right):
        wrong = write_like(value, right)
        if _value(wrong) != _value(right):
            return wrong
    digits = [i for i, character in enumerate(right) if character.isdigit()]
    at = rng.choice(digits)
    lowest = 1 if at == 0 and len(digits) > 1 else 0
    digit = rng.choice([d for d in range(lowest, 10) if d != int(right[at])])
    return f"{right[:at]}{digit}{right[at + 1 :]}"


def symbols_of(expression: str) -> list[str]:
    """Numbers, operators and brackets; empty for an expression that holds anything else, or too much."""
    symbols = _SYMBOL.findall(expression)
    complete = "".join(symbols) == expression.replace(" ", "") and len(symbols) <= _MOST_SYMBOLS
    return symbols if complete else []


def write_like(value: float, model: str) -> str:
    """A number in the format of another, `1,234` like `9,000`; up to two decimals where the other has none."""
    decimals = len(model.partition(".")[2])
    text = f"{value:,.{decimals or 2}f}"
    if not decimals:
        text = text.rstrip("0").rstrip(".")
    return text if "," in model else text.replace(",", "")


def evaluate(symbols: list[str]) -> float | None:
    """The value of an expression, 0..1e12; None where there is none: a division by zero, a lost bracket."""
    try:
        value, end = _evaluate(symbols, 0, 0)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return value if end == len(symbols) and 0 <= value <= _LARGEST else None


def _evaluate(symbols: list[str], at: int, binding: int) -> tuple[float, int]:
    """Precedence climbing from `at`: the value, and the first symbol that binds no tighter than `binding`."""
    symbol, at = symbols[at], at + 1
    if symbol == "(":
        value, at = _evaluate(symbols, at, 0)
        if symbols[at] != ")":
            raise ValueError("unbalanced brackets")
        at += 1
    elif symbol == "-":
        value, at = _evaluate(symbols, at, 2)
        value = -value
    else:
        value = float(symbol)
    while at < len(symbols) and _BINDING.get(symbols[at], 0) > binding:
        sign = symbols[at]
        right, at = _evaluate(symbols, at + 1, _BINDING[sign])
        value = _OPERATORS[sign](value, right)
    return value, at


def _value(symbol: str) -> float | None:
    return float(symbol.replace(",", "")) if symbol[-1].isdigit() or symbol[-1] == "." else None
