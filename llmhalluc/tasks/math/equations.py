"""The calculations that a text states, checked exactly: `48/2 = 24`, `(3 + 4) * 2 = 7 * 2 = 14`, `20% of 50 = $10`.

Only what is certain is judged. A side with a letter for a number, a lost bracket or an operator without its operand is
no calculation, and neither is `1 hour = 60 minutes`, in which nothing is computed. All work is bounded by the places
that are looked at and by the characters about each of them, so any text takes linear time.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from llmhalluc.tasks.math.expressions import Side, Token, evaluate
from llmhalluc.tasks.math.solution import DIGITS

_REACH = 200  # characters of a side
_MOST_SIGNS = 5000  # equals signs of a text that are looked at
_MOST_CHARACTERS = 200_000  # that are looked at about them
_SIGN = re.compile(r"(?<![=!<>:~≠≤≥])=(?![=>])")
_TOKEN = re.compile(
    rf"""(?P<space>[^\S\n]+)
    |(?P<number>(?:(?<![\w.,])(?<!\d:)|(?<=[\d)\]%\s][xX]))(?:\\?[$€£][ ]?)?{DIGITS}(?:\.\.\.|…)?(?![.,:]?[0-9]))
    |(?P<per>/[ ]?[^\W\d_]{{2,}}(?!\w))
    |(?P<operator>\*\*|[-+*/^×·÷\u2212\u2013]|\\times|\\cdot|\\div|[xX](?=[^\S\n]*[$€£(\[.\d]))
    |(?P<open>[(\[])|(?P<close>[)\]])|(?P<percent>\\?%)
    |(?P<word>[^\W\d_]+(?!\w)(?:/[^\W\d_]+(?!\w))?)
    |(?P<stop>[\n,.;:!?"'<>{{|~#`&…“”‘’•—])|(?P<bad>\w+|.)""",
    re.VERBOSE,
)
_OPERATORS = {"×": "*", "·": "*", "x": "*", "X": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/",
              "\u2212": "-", "\u2013": "-", "**": "^", "times": "*", "plus": "+", "minus": "-"}  # fmt: skip
# Words that never name what is counted: `5 and -3 + 4 = 1` is not `5 - 3 + 4`.
_NO_UNIT = frozenset(
    "and or is are was were of to the then so if at in for by from which that with than a an we he she it".split()
)
_LINKS = ("of", "for", "in")
_NAMED = re.compile(r" ([^\W\d_]{2,})(?!\w)")


class Equation(NamedTuple):
    """`text[start:end]` is `left = right`, with a calculation on one side at least.

    `value` is the left side's, `result` the right side's; `operands` are all numbers of it but a lone result.
    """

    start: int
    end: int
    left: str
    right: str
    value: Fraction
    result: Fraction
    operands: frozenset[Fraction]
    true: bool


def equations(text: str) -> list[Equation]:
    """The calculations that `text` states, in their order; a chain `a = b = c` is two of them."""
    found: list[Equation] = []
    looked_at = 0
    signs = [match.start() for match, _ in zip(_SIGN.finditer(text), range(_MOST_SIGNS + 1), strict=False)]
    for i, at in enumerate(signs[:_MOST_SIGNS]):
        low = max(signs[i - 1] + 1 if i else 0, text.rfind("\n", max(0, at - _REACH), at) + 1, at - _REACH)
        high = min(len(text), at + 1 + _REACH, *signs[i + 1 : i + 2])
        looked_at += high - low
        if looked_at > _MOST_CHARACTERS:
            break
        if (left := _left(text, low, at)) is None or (right := _right(text, at + 1, high)) is None:
            continue
        if left.lone and (right.lone or left.unit or left.named):  # nothing is computed, or `2 hours = 2 * 60`
            continue
        first, stated = text[left.start : left.end], text[right.start : right.end]
        if "cent" in first + stated and "$" in first + stated:
            continue
        operands = frozenset(left.numbers if right.lone else left.numbers + right.numbers)
        found.append(
            Equation(left.start, right.end, first, stated, left.value, right.value, operands,
                     _agree(left.value, right, stated))
        )  # fmt: skip
    return found


def _agree(value: Fraction, right: Side, stated: str) -> bool:
    """Whether the sides are equal as exact fractions; `20%` alone is a fifth or twenty.

    A lone result with two decimals or more may be rounded or cut off: `10/3 = 3.33`, `2/3 = 0.67`.
    """
    decimals = re.search(r"\.([0-9]{2,})", stated) if right.lone else None
    unit = Fraction(bool(decimals and right.value), 10 ** len(decimals[1]) if decimals else 1)
    if not (right.lone and right.percent):
        return value == right.value or abs(value - right.value) < unit
    return any(value == right.value * n or abs(value - right.value * n) < unit * n / 100 for n in (1, 100))


def _left(text: str, low: int, at: int) -> Side | None:
    """The expression that ends before the sign at `at`, read backwards as far as it goes; None: there is none."""
    tokens, opened = _tokens(text, low, at), 0
    unmatched = _unmatched(tokens)
    first = len(tokens)
    while first and tokens[first - 1].kind in ("number", "operator", "percent", "unit", "open", "close"):
        token = tokens[first - 1]
        if first - 1 in unmatched:
            break
        opened += (token.kind == "close") - (token.kind == "open")
        if first < len(tokens) and _stand_alone(token, tokens[first]):
            if token.kind == "unit":
                break
            return None
        first -= 1
    before = tokens[first - 1] if first else None
    expression = tokens[first:]
    if not expression or opened or (not before and expression[0].start == low == at - _REACH and low):
        return None
    head = expression[0]
    if head.kind == "operator" and len(expression) > 1:
        glued = head.end == expression[1].start
        loose = before is None or before.kind in ("stop", "open", "operator")
        if (before is None and not glued and head.text in "-*+") or (head.text in ("*", "^") and glued and loose):
            expression = expression[1:]  # a bullet, or bold print
        elif head.text != "-" or not glued or not (loose or (before.kind == "word" and len(before.text) > 1)):
            return None
    if before and (before.kind == "bad" or (before.kind in ("word", "unit") and before.end == expression[0].start)):
        return None
    if before and before.text == "and":  # 1 and 1/4
        return None
    if before and before.kind == "word" and first > 1 and tokens[first - 2].kind == "operator":  # 25 + his 1 teacher
        return None
    side = evaluate(expression)
    return side and side._replace(named=bool(before and before.kind == "word"))


def _right(text: str, start: int, stop: int) -> Side | None:
    """The expression that begins after the sign before `start`, read as far as it goes; None: there is none."""
    tokens, opened = _tokens(text, start, stop), 0
    unmatched = _unmatched(tokens)
    last = 0
    while last < len(tokens) and tokens[last].kind in ("number", "operator", "percent", "unit", "open", "close"):
        token = tokens[last]
        if last in unmatched:
            break
        if last and _stand_alone(tokens[last - 1], token):
            if not opened and (tokens[last - 1].kind == "unit" or token.kind == "open"):
                break
            return None
        opened += (token.kind == "open") - (token.kind == "close")
        last += 1
    after = tokens[last] if last < len(tokens) else None
    expression = tokens[:last]
    if expression and expression[-1].kind == "operator":
        glued = last > 1 and tokens[last - 2].end == expression[-1].start
        if not glued or expression[-1].text not in ("*", "^") or (after and after.kind == "bad"):
            return None
        expression = expression[:-1]  # bold print
    if not expression or opened or (expression[-1].end == stop == start + _REACH):
        return None
    if after and after.kind in ("bad", "word") and after.start == expression[-1].end:
        return None  # 5x, 5²
    return None if after and after.text == "and" and tokens[last + 1 :][:1] else evaluate(expression)


def _tokens(text: str, start: int, stop: int) -> list[Token]:
    """The tokens of a stretch without its spaces, operators in one spelling, units told from other words."""
    tokens: list[Token] = []
    units = 0
    for match in _TOKEN.finditer(text, start, stop):
        kind, word = match.lastgroup, match.group()
        if kind == "space":
            continue
        last = tokens[-1].kind if tokens else ""
        if kind == "word":
            lower = word.lower()
            if last in ("number", "percent", "unit", "close") and lower in _OPERATORS and len(lower) > 1:
                kind, word = "operator", _OPERATORS[lower]
            elif lower == "of" and (last == "percent" or (last == "number" and tokens[-2:][0].text == "/")):
                kind, word = "operator", "*"
            elif last in ("number", "percent", "unit") and len(word) > 1 and units < 5 and lower not in _NO_UNIT:
                kind, units = "unit", units + 1
            elif last == "unit" and lower in _LINKS and (named := _NAMED.match(text, match.end())):
                kind = "unit" if named[1].lower() not in _NO_UNIT else "word"  # 16 bottles of bleach
        elif kind == "per":
            kind = "unit" if last in ("number", "unit") else "bad"
        elif kind == "operator":
            word = _OPERATORS.get(word, word)
        units = units if kind == "unit" else 0
        if tokens and tokens[-1].kind == "operator" and kind not in ("number", "open", "operator"):
            tokens[-1] = _as_word(text, tokens[-1])
        tokens.append(Token(kind, word, match.start(), match.end()))
    if tokens and stop == len(text):
        tokens[-1] = _as_word(text, tokens[-1])
    return tokens


def _as_word(text: str, token: Token) -> Token:
    """An operator in words without an operand is none: `7 times the third`, `60% of the class`."""
    spelt = text[token.start : token.end]
    is_word = token.kind == "operator" and spelt.isalpha() and len(spelt) > 1
    return token._replace(kind="word" if spelt.lower() == "of" else "unit", text=spelt) if is_word else token


def _unmatched(tokens: list[Token]) -> set[int]:
    """Indices of the brackets that have no partner."""
    found: set[int] = set()
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token.kind == "open":
            opened.append(i)
        elif token.kind == "close":
            if opened:
                opened.pop()
            else:
                found.add(i)
    return found | set(opened)


def _stand_alone(token: Token, following: Token) -> bool:
    """Whether two neighbours are no expression: an operand ends and another begins, `2(3)` apart."""
    if token.kind not in ("number", "percent", "unit", "close") or following.kind not in ("number", "open"):
        return False
    product = token.kind in ("number", "close") and following.kind == "open" and token.end == following.start
    return not product
