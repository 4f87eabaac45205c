"""A worked solution as the model shall write it: without calculator marks, with one form of the last line."""

import re
from fractions import Fraction

from llmhalluc.tasks.math.reading import read_statement

MARK = re.compile(r"<<([^<>]*)>>")  # a calculator mark: <<48/2=24>>
DIGITS = r"(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+)"
NUMBER = re.compile(DIGITS)


def numbers(text: str) -> list[Fraction]:
    """Return the exact values of the numbers in a text, in order, without signs."""
    return [Fraction(number.replace(",", "")) for number in NUMBER.findall(text)]


def clean_solution(answer: str) -> str:
    """Return the solution without its marks, the last line as `#### N` without commas or currency.

    An answer that is no whole number keeps its digits; one that is no number stays as it is.
    """
    body, hashes, last = MARK.sub("", answer.strip()).rpartition("####")
    values = read_statement(last.strip()).values if hashes else ()
    if len(values) != 1 or not re.fullmatch(r"[\s$€£]*-?[\s$€£]*[0-9,.]+[\s.]*", last):
        return body + hashes + last
    whole = values[0].denominator == 1
    return f"{body}#### {values[0].numerator if whole else last.strip().replace(',', '')}"
