"""GSM8K: worked solutions, clean or with wrong intermediate results that are carried on and then erased.

Calculator marks (`48/2 = <<48/2=24>>24 clips`) say which number is a result and how it came about. They are
not trained on; they let a wrong result change what is computed from it.
"""

import operator
import re
from random import Random
from typing import Any

from tokenizers import Encoding

from llmhalluc.backtrack import inject_error
from llmhalluc.data.base import DatasetConverter, column
from llmhalluc.data.errors import ErrorRuns
from llmhalluc.extras.errors import UserError
from llmhalluc.prompts import math

_NUMBER = re.compile(math.DIGITS)
_SYMBOL = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+|[-+*/()]")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}
_MOST_SYMBOLS = 100  # of an expression that is evaluated
_LARGEST = 1e12  # what is computed from a wrong number stays below this
_ANCHOR = "\n"  # stands before a number that is tokenised alone


class GSM8KConverter(DatasetConverter):
    """Columns `question` and `answer`; marks removed, the last line normalised to `#### N`."""

    def texts(self, record: dict[str, Any]) -> tuple[str, str]:
        question = column(record, "question", f"data.converter {self.data.converter}")
        answer = column(record, "answer", f"data.converter {self.data.converter}")
        return math.prompt_text(question), self.delimiter + math.clean_solution(answer)


class GSM8KBacktrackConverter(GSM8KConverter):
    """A step's result is changed and carried on, then erased: `rate` × tokens such runs, at most one a step.

    A run is the wrong number and, after it, as many tokens as the `backtrack` section draws. It is spliced from
    the clean ids, exactly what survives; only the numbers that differ are tokenised, each once.
    """

    offsets = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)
        if not self.tokenizer.is_fast:
            raise UserError("data.converter gsm8k_backtrack needs a fast tokenizer: set model.tokenizer")
        self.number_ids: dict[str, list[int]] = {}
        self.anchor = self.tokenizer.backend_tokenizer.encode(_ANCHOR, add_special_tokens=False).ids

    def details(self, record: dict[str, Any], answer: str, encoding: Encoding) -> dict[str, Any]:
        """`numbers`, from the first result on: (first token, token after the last, these tokens' text before the
        number, the number, text after it). `steps`: (index into `numbers`, the expression it is the result of).
        """
        at, results = len(self.delimiter), {}
        for i, part in enumerate(math.MARK.split(record["answer"].strip())):
            if i % 2:  # an expression, between two texts
                results[at] = part.rpartition("=")[0]
            else:
                at += len(part)
        numbers: list[tuple[int, int, str, str, str]] = []
        steps: list[tuple[int, str]] = []
        for match in _NUMBER.finditer(answer, min(results)) if results else ():
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
        longest = self.errors.longest(progress)
        for step in reversed(self.errors.places(range(len(encoded["steps"])), len(ids), rng)):
            at, error = self.error(encoded, step, self.errors.length(rng, longest), rng)
            trace = inject_error(trace, at, self.errors.nest(error, longest, rng), self.backtrack_id)
        return trace

    def error(self, encoded: dict[str, Any], step: int, length: int, rng: Random) -> tuple[int, list[int]]:
        """Where the answer with a wrong result of `step` parts from the right one, and its ids from there on:
        the rest of the wrong number and `length` tokens more, fewer where the answer ends or makes no sense.
        """
        ids, numbers = encoded["completion_ids"], encoded["numbers"]
        index, expression = encoded["steps"][step]
        begin, done, before, right, after = numbers[index]
        wrong = wrong_number(right, symbols_of(expression), rng)
        error = list(self._number_ids(before + wrong + after))
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
                error += self._number_ids(before + write_like(value, number) + after)
            done = stop
        error += ids[done : min(done + length - len(error), len(ids) - 1)]  # never the eos
        same = 0
        while same < len(error) and error[same] == ids[begin + same]:
            same += 1
        return begin + same, error[same:length]

    def _number_ids(self, text: str) -> list[int]:
        """Ids of a number in the middle of a text, remembered: the same ones come again and again."""
        if text not in self.number_ids:
            ids = self.tokenizer.backend_tokenizer.encode(_ANCHOR + text, add_special_tokens=False).ids
            self.number_ids[text] = ids[len(self.anchor) :] if ids[: len(self.anchor)] == self.anchor else ids
        return self.number_ids[text]


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
