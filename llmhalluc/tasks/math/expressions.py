"""The exact value of an arithmetic expression, by operator precedence on a stack; what is too large has none."""

from fractions import Fraction
from typing import NamedTuple

_MOST_DIGITS = 30  # of a number
_MOST_BITS = 512  # of a numerator or denominator
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "pos": 3, "^": 4, "(": 0}


class Side(NamedTuple):
    """An expression: where it stands, its value and numbers; has it a unit, a percent sign, a name before it?"""

    start: int
    end: int
    value: Fraction
    numbers: tuple[Fraction, ...]
    unit: bool
    percent: bool
    named: bool = False

    @property
    def lone(self) -> bool:
        """Whether it is one number and no calculation."""
        return len(self.numbers) == 1


class Token(NamedTuple):
    """A piece of an expression: number, operator (one of `+-*/^`), percent, unit, open or close."""

    kind: str
    text: str
    start: int
    end: int


def evaluate(tokens: list[Token]) -> Side | None:
    """The value of an expression; None where there is none: `1/0`, `2^0.5`, `9^9^9`, a lost bracket."""
    values: list[Fraction] = []
    waiting: list[str] = []
    numbers: list[Fraction] = []
    last = ""
    if any(_is_fraction_below(tokens[i : i + 4]) for i in range(len(tokens) - 3)):
        return None
    try:
        for token in tokens:
            operand_ended = last in ("number", "percent", "close", "unit")
            if token.kind == "number":
                digits = token.text.strip("\\$€£ .…" if token.text.endswith(("...", "…")) else "\\$€£ ").replace(
                    ",", ""
                )
                if len(digits) > _MOST_DIGITS:
                    return None
                values.append(Fraction(digits))
                numbers.append(values[-1])
            elif token.kind == "percent":
                if last != "number":
                    return None
                values[-1] /= 100
                numbers[-1] = values[-1]
            elif token.kind == "open":
                if operand_ended:
                    _reduce(values, waiting, "*")
                waiting.append("(")
            elif token.kind == "close":
                if not operand_ended:
                    return None
                _reduce(values, waiting, "(")
                waiting.pop()
            elif token.kind == "operator" and operand_ended:
                _reduce(values, waiting, token.text)
            elif token.kind == "operator":
                if token.text not in "-+":
                    return None
                waiting.append("neg" if token.text == "-" else "pos")
            last = token.kind
        if last == "operator":
            return None
        while waiting:
            _apply(values, waiting.pop())
    except (ArithmeticError, IndexError):  # a division by zero, a power that is none, too large a number
        return None
    [value] = values
    kinds = {token.kind for token in tokens}
    return Side(tokens[0].start, tokens[-1].end, value, tuple(numbers), "unit" in kinds, "percent" in kinds)


def _is_fraction_below(four: list[Token]) -> bool:
    """Whether the tokens are `/ 3/4`, which a reader may take for three quarters below the line."""
    over, top, inner, bottom = four
    return over.text == inner.text == "/" and over.end < top.start and top.end == inner.start == bottom.start - 1


def _reduce(values: list[Fraction], waiting: list[str], operator: str) -> None:
    """Apply what binds at least as tightly as `operator`, which then waits for its right operand."""
    if operator == "(":
        while waiting[-1] != "(":
            _apply(values, waiting.pop())
        return
    # A power is grouped from the right: 2^3^2 is 2^9.
    while waiting and _BINDING[waiting[-1]] + (operator != "^") > _BINDING[operator]:
        _apply(values, waiting.pop())
    waiting.append(operator)


def _apply(values: list[Fraction], operator: str) -> None:
    """Replace the operands on top of `values` by the result; raises ArithmeticError where there is none to hold."""
    right = values.pop()
    if operator in ("neg", "pos"):
        values.append(-right if operator == "neg" else right)
        return
    left = values.pop()
    if operator == "^":
        size = max(left.numerator.bit_length(), left.denominator.bit_length())
        if right.denominator != 1 or abs(right) * size > _MOST_BITS:
            raise ArithmeticError("a root, or a power too large")
        value = left ** int(right)
    else:
        value = {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[operator](right)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise ArithmeticError("too large")
    values.append(value)
