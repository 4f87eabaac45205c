"""What number a statement states: the whole of it is read (law 9), from the words before it to the words behind it.

`18 - 2 = 16` is 16, `18 thousand` is 18,000, `18 or 19` and `more than 18` are none. A statement that is mathematics
but no number, `3\\sqrt{2}` or `x + 1`, is kept for math-verify. All patterns take linear time.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from llmhalluc.tasks.math.expressions import Token, evaluate
from llmhalluc.tasks.math.numerals import SCALES, SMALL, number_in_words
from llmhalluc.tasks.math.plain import CLOSED, OPENED, plain
from llmhalluc.tasks.math.units import Amount, with_unit

LONGEST = 300  # characters of a statement


class Reading(NamedTuple):
    """values: the number stated, in each way it can be meant: `50%` is 50 and 1/2, `750 cents` 750 and 7.5.

    symbolic: a statement that is mathematics and no number. literal: the plain text of one such as `10:30`. Of a
    statement that is hedged, bounded or unreadable all three are empty.
    """

    values: tuple[Fraction, ...] = ()
    symbolic: str = ""
    literal: str = ""

    @property
    def formula(self) -> str:
        """What math-verify compares."""
        return self.symbolic or str(self.values[0])

    @property
    def is_numeric(self) -> bool:
        """Whether a formula may be a number: it has a LaTeX command, and no letter or equals sign beside."""
        return "\\" in self.symbolic and not re.search(r"[A-Za-z=]", _COMMAND.sub("", self.symbolic))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read."""
        return not (self.values or self.symbolic or self.literal)


NOTHING = Reading()

_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:[ '][0-9]{3})+(?![0-9'])|[0-9]+"
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<mixed>(?:[0-9]{{1,9}}\s*)?{OPENED}[0-9]{{1,9}}/[0-9]{{1,9}}{CLOSED}
        |[0-9]{{1,9}}\s+[0-9]{{1,9}}/[0-9]{{1,9}}(?![0-9/.]))
    |(?P<number>(?:(?:{_GROUPED})(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?!\w))?(?![.,:']?[0-9]))
    |(?P<operator>[-+*/^])
    |(?P<open>[(\[])|(?P<close>[)\]])|(?P<percent>%)
    |(?P<word>[^\W\d_]+)|(?P<other>.)""",
    re.VERBOSE,
)
_WORD_OPERATORS = {"times": "*", "x": "*", "plus": "+", "minus": "-", "divided": "/", "multiplied": "*"}
_UNARY = {"minus": "-", "negative": "-", "plus": "+"}
_START = re.compile(rf"[0-9{OPENED}]|\.[0-9]")
_OPERAND = re.compile(rf"[ (-]*(?:by)?\s*(?:[0-9{OPENED}]|\.[0-9])", re.IGNORECASE)
# What may stand before a number and leave it as it is; `_TURNING` before it changes it.
_LEAD = re.compile(r"[\w\s:,.;='≈\u2014*#/-]*")
_TURNING = frozenset(
    "not no never none nothing neither nor nobody anything less more fewer greater least most under over below "
    "above up between either dozen half twice double triple quarter third step part question problem case option "
    "choice chapter section figure exercise example item square cube root sqrt factorial from until except "
    "halves thirds quarters fifths tenths "
    "without almost nearly maximum minimum unknown page day year before after every if than".split()
)
_LOSS = re.compile(r"\b(?:loss|deficit|debt) of\s*\Z")
_NAME = re.compile(r"[A-Za-z](?:_?[A-Za-z0-9])?|[^\W\d_]{2,}(?:['\s-]+[^\W\d_]+)*")
_AGAIN = re.compile(
    r"""\s*[,;(]?\s*(?:=|≈|\bequals\b|\bis\ equal\ to\b|\bwhich\ (?:is|equals|makes|means|gives)\b
    |\b(?:that\ is|that's|i\.e\.|ie)(?!\w)|\bor\b)[\s,:]*
    (?:(?:about|approximately|roughly|exactly|equal\ to|equivalently|also|just|simply|only|the\ same\ as
    |a\ total\ of)\s+)*""",
    re.VERBOSE,
)
# A second number close behind the first; a bound or something else that changes it; a change of mind anywhere.
_OFFERED = re.compile(
    r"""\s*(?:[^\W\d_]+\s+){0,3}?(?:(?:or|and|to|through|until|and/or|versus|vs)\b|[,;|&/:]|\.\.+|-)\s*
    (?:(?:a|an|the|about|maybe|perhaps|possibly|even|approximately|roughly|another|also)\s+)*
    (?:[A-Za-z]\s*=\s*)?[-+(]*[0-9⟨]""",
    re.IGNORECASE | re.VERBOSE,
)
_CHANGING = re.compile(
    r"""\s*(?:[^\W\d_]+\s+){0,3}?(?:
        (?:or|and)\s+(?:more|less|fewer|greater|higher|lower|above|below|up|over|under|a\ half|half|something)\b
        |(?:more|less|fewer|greater|higher|lower|older|younger|longer|shorter)\s+than\b|at\ (?:least|most)\b
        |(?:plus|minus|squared|cubed|factorial|if|unless|to\ the\ power|short\ of|times\ as|remainder|below)\b
        |(?:by|over)\s+[0-9]|(?:divided|multiplied|times\s+the|dozen|hundred|thousand|million|billion|trillion)\b
        |R\s*[0-9]|[+±])
    |\s*\(\s*[x*/^+-]|\s*[<>≤≥≠√!\\]|\s*[-+*/^=]\s*(?:[A-Za-z](?![A-Za-z])|\\|\()|\s*[*^+]\s*[A-Za-z√]|[\w\\]|\s*[0-9^_]|[.,:][0-9]""",
    re.IGNORECASE | re.VERBOSE,
)
_CHANGED = re.compile(
    r"""[?]|\b(?:no|wait|actually|rather|sorry|correction|oops|mistake|instead|wrong|mean|maybe|perhaps|guess)\b[^()]*[0-9]
    |\b(?:is|was)\ (?:wrong|incorrect)\b|[^\W\d_]\s*=\s*[$€£(-]*[0-9]""",
    re.IGNORECASE | re.VERBOSE,
)
_TRAILING_UNIT = re.compile(
    r"\s+(?:(?:square|cubic)\s+)?(?:units?|[mcdk]?m|in|ft|yd|feet|inches|meters)(?:\^?[23])?\.?\s*\Z"
)
_COMMANDS = {"π": "\\pi ", "×": "\\times ", "·": "\\cdot ", "\u2212": "-", "²": "^2", "³": "^3", "∞": "\\infty "}
_COMMAND = re.compile(r"\\[A-Za-z]+")


@lru_cache(4096)
def read_statement(statement: str) -> Reading:
    """Return what a statement states, all of it considered."""
    if len(statement) > LONGEST or re.search(r"[^\W0-9A-Za-z_](?<=\d)", statement):  # digits of another script
        return NOTHING
    text = plain(statement)
    if re.fullmatch(r"[0-9]{1,4}(?:\s*:\s*[0-9]{1,4})+(?:\s*[AaPp]\.?[Mm]\.?)?", text.rstrip(" .")):
        return Reading(literal=re.sub(r"\s", "", text.rstrip(" .")).lower().replace(".", ""))
    values = _values(text)
    if values:
        return Reading(values)
    return Reading(symbolic=_symbolic(statement, text))


def _values(text: str) -> tuple[Fraction, ...]:
    """The number of a plain text in each way it can be meant; empty where there is none."""
    start = _start_of_number(text)
    if start is None:
        return _in_words(text)
    lead = text[:start]
    words = re.findall(r"[^\W\d_]+", lead.lower())
    if not _LEAD.fullmatch(lead) or not _TURNING.isdisjoint(words):
        return ()
    if re.search(r"(?<![^\W_])[^\W\d_]\s*\Z", lead) and text[start:].lstrip()[0] in "-+(":  # x + 42
        return ()
    if re.search(r"[^\W\d_]\s*\Z", lead) and re.match(r"\s*[-+] ", text[start:]):
        return ()
    if "=" in lead and not all(_NAME.fullmatch(name.strip(" :*")) for name in lead.split("=")[:-1] if name.strip()):
        return ()
    side = _side(text, start)
    if side is None:
        return ()
    sides = [side]
    while again := _AGAIN.match(text, sides[-1].end):
        following = _side(text, again.end()) or _side_in_words(text, again.end())
        if following is None or following.end == again.end():
            break
        if _CHANGING.match(text, following.end) and "=" not in again.group():
            break
        is_result = sides[-1].computed and not following.computed and "or" not in again.group().split()
        if not is_result and not sides[-1].agrees(following):
            return ()
        sides.append(following)
    tail = re.sub(r"\((?!\s*[x*/^+-])[^()]*\)", " ", text[sides[-1].end :])
    if _OFFERED.match(tail) or _CHANGING.match(tail) or _CHANGED.search(tail):
        return ()
    agreeing = [one for one in sides if one.agrees(sides[-1])]
    values = dict.fromkeys(value for one in reversed(agreeing) for value in one.values)
    if _LOSS.search(lead):
        return (*(-value for value in values), *values)
    return tuple(values)


def _start_of_number(text: str) -> int | None:
    """Where the first expression begins, its signs and brackets and a unary word included."""
    first = _START.search(text)
    if first is None:
        return None
    start = first.start()
    if re.match(r"[^\W_]", text[start - 1 : start]):  # A42
        return None
    while start and text[start - 1] in "-+([ \t":
        start -= 1
    if word := re.search(r"(?<![^\W_])(?:minus|negative|plus)\s*\Z", text[:start], re.IGNORECASE):
        start = word.start()
    return start


def _side(text: str, start: int) -> Amount | None:
    """The expression at `start` with its unit; None where there is none or it cannot be computed."""
    tokens: list[Token] = []
    depth, scaled = 0, False
    for match in _TOKEN.finditer(text, start):
        kind, piece = match.lastgroup, match.group()
        ended = bool(tokens) and tokens[-1].kind in ("number", "close", "percent")
        if kind == "space":
            continue
        if kind == "word":
            operator = _WORD_OPERATORS.get(piece.lower()) if ended else _UNARY.get(piece.lower())
            if piece.lower() in ("by", "of") and tokens and tokens[-1].text in ("/", "*", "%"):
                if piece.lower() == "by":
                    continue
                operator = "*"
            if piece.lower() in ("percent", "percentage") and ended:
                kind, piece = "percent", "%"
            elif operator and (piece.lower() != "x" or _START.match(text[match.end() :].lstrip(" ("))):
                if ended and not _OPERAND.match(text, match.end()):
                    break
                kind, piece = "operator", operator
            elif ended and piece.lower() in SCALES and tokens[-1].kind == "number":
                scale = Token("number", str(SCALES[piece.lower()]), match.start(), match.end())
                tokens += [Token("operator", "*", match.start(), match.start()), scale]
                scaled = True
                continue
            else:
                break
        if kind in ("number", "mixed"):
            value = _number(piece)
            if ended or value is None:
                return None
            kind, piece = "number", str(value)
        if kind == "open":
            if ended and match.start() != tokens[-1].end:
                break
            depth += 1
        if kind == "close":
            depth -= 1
            if depth < 0:
                break
        if kind == "other" or (
            kind == "operator" and match.lastgroup == "operator" and not _continues(text, match.end(), ended)
        ):
            break
        tokens.append(Token(kind, piece, match.start(), match.end()))
    if not tokens or depth > 0 or not any(token.kind == "number" for token in tokens):
        return None
    value = evaluate(tokens)
    if value is None:
        return None
    numbers = sum(token.kind == "number" for token in tokens)
    return with_unit(text, value.value, tokens[-1], computed=numbers > 1 and not (scaled and numbers == 2))


def _continues(text: str, at: int, ended: bool) -> bool:
    """Whether an expression goes on after an operator."""
    rest = text[at : at + 20].lstrip(" -+([")
    return bool(_START.match(rest)) or (not ended and rest[:5].lower() in ("minus", "negat"))


def _number(piece: str) -> Fraction | None:
    """The value of a number or of a whole number with a fraction beside it."""
    whole, opened, fraction = piece.partition(OPENED)
    if not opened and "/" in piece:
        whole, _, fraction = piece.partition(" ")
    if fraction:
        above, _, below = fraction.strip(f" {CLOSED}").partition("/")
        if not int(below) or (whole.strip() and int(above) >= int(below)):
            return None
        return Fraction(int(whole or 0)) + Fraction(int(above), int(below))
    digits = re.sub(r"[ ',]", "", piece)
    return Fraction(digits) if len(digits) <= 30 else None


def _in_words(text: str) -> tuple[Fraction, ...]:
    """The number of a statement without digits."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    at = 1 if words[:1] in (["minus"], ["negative"]) else 0
    found = number_in_words(words[at:])
    behind = words[at + found[1] :] if found else []
    if not found or _CHANGED.search(text) or not SMALL.keys().isdisjoint(behind):
        return ()
    if not {"or", "of", "to", "and", "than", *SCALES}.isdisjoint(behind):
        return ()
    value = -found[0] if at else found[0]
    return (value, value / 100) if behind[:1] == ["percent"] else (value,)


def _side_in_words(text: str, start: int) -> Amount | None:
    """A number in words at `start`."""
    words = list(re.finditer(r"[^\W\d_]+", text[start : start + 80]))
    found = number_in_words([word.group() for word in words])
    if not found or words[0].start():
        return None
    return Amount((found[0],), "", found[0], False, start + words[found[1] - 1].end())


def _symbolic(statement: str, text: str) -> str:
    """The statement where it is mathematics that math-verify can judge; empty where words or a hedge are in it."""
    body = re.sub(r"\\text\s*\{[^{}]*\}", "", statement)
    if marked := re.fullmatch(r"\$([^$]+)\$[\sA-Za-z.^0-9]*", body.strip()):  # $3\sqrt{2}$ cm
        body = marked[1]
    body = _TRAILING_UNIT.sub("", body)
    body = re.sub(r"(?:√|(?<![\\\w])sqrt)\s*(?:\(([^()]*)\)|([0-9]+|[a-z]))", r"\\sqrt{\1\2}", body)
    for sign, command in _COMMANDS.items():
        body = body.replace(sign, command)
    bare = _COMMAND.sub(" ", body)
    if re.search(r"[^\W\d_]{3,}", bare) or _CHANGED.search(text) or not re.search(r"[0-9A-Za-z]", bare):
        return ""
    is_math = bool(_COMMAND.search(body)) or "\\{" in body or bool(re.search(r"[-+*/^=()]", body))
    letters = re.fullmatch(r"\s*\$?[A-Za-z]\$?\s*", body)
    return body.strip(" .*$") if is_math or letters or re.fullmatch(r"\$?[0-9]+[a-z]\$?", body.strip()) else ""
