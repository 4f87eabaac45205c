"""Grade-school mathematics: the prompt, the solution as the model shall write it, and the answer read back.

Numbers are compared as exact fractions: `42`, `42.`, `42.00` and `$42` are one answer. Every pattern runs in
linear time, whatever the model wrote.
"""

import re
from fractions import Fraction

MARK = re.compile(r"<<([^<>]*)>>")  # a calculator mark: <<48/2=24>>
DIGITS = r"(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+)"
_VALUE = rf"({DIGITS}(?:/[0-9]+)?)"
# A hyphen after a word or a bracket is an operator, not a sign; U+2212 is the minus sign.
_NUMBER = rf"((?:(?<![\w)])[-\u2212][$€£]?|[$€£][-\u2212]?)?){_VALUE}"
_ANYWHERE = re.compile(_NUMBER)
_AFTER_HASHES = re.compile(rf"####[ \t]*{_NUMBER}")
_AFTER_WORDS = re.compile(rf"answer is[\s:=*]*{_NUMBER}", re.IGNORECASE)
_ALONE = re.compile(rf"[\s*]*{_NUMBER}[\s*.,%]*")
_LONGEST = 200  # characters; a longer text is no number


def prompt_text(question: str) -> str:
    """The question and the cue to answer it; the solution follows after a space."""
    return f"Question: {question.strip()}\nAnswer:"


def clean_solution(answer: str) -> str:
    """A worked solution without its calculator marks, the last line as `#### N` without commas or currency."""
    body, hashes, last = MARK.sub("", answer.strip()).rpartition("####")
    number = normalise_number(last) if hashes else None
    if number is None:
        return body + hashes + last
    whole = number.denominator == 1
    return f"{body}#### {number.numerator if whole else last.strip().replace(',', '')}"


def normalise_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else: `$1,234.50.` -> 2469/2; else None."""
    match = _ALONE.fullmatch(text) if len(text) <= _LONGEST else None
    return _value(*match.groups()) if match else None


def extract_answer(text: str, flexible: bool = False) -> Fraction | None:
    """The number after the last `####`, else after the last "answer is"; flexible: else the last number."""
    found = _AFTER_HASHES.findall(text) or _AFTER_WORDS.findall(text)
    if flexible and not found:
        found = _ANYWHERE.findall(text)
    return _value(*found[-1]) if found else None


def _value(sign: str, digits: str) -> Fraction | None:
    numerator, _, denominator = digits.replace(",", "").partition("/")
    if len(digits) > _LONGEST or (denominator and not int(denominator)):
        return None
    value = Fraction(numerator) / int(denominator or 1)
    return -value if sign.strip("$€£") else value
