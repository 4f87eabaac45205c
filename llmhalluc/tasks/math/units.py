"""The unit behind a number: `42 minutes` and `0.7 hours` are one amount, `7 dollars and 50 cents` is 7.5."""

import re
from fractions import Fraction
from typing import NamedTuple

from llmhalluc.tasks.math.expressions import Token
from llmhalluc.tasks.math.numerals import PARTS


class Amount(NamedTuple):
    """A number with its unit: its values, its size in the smallest unit of a family, was it computed, where it ends."""

    values: tuple[Fraction, ...]
    family: str
    size: Fraction
    computed: bool
    end: int

    def agrees(self, other: "Amount") -> bool:
        """Whether both are the same, be it in other units."""
        if self.family and self.family == other.family:
            return self.size == other.size
        return not set(self.values).isdisjoint(other.values)


_UNIT = re.compile(r"\s*[^\W\d_]+(?:/[^\W\d_]+)?")
_HALF = re.compile(r"\s+and\s+(a|an|one|three)\s+(half|third|quarter|quarters|fifth)(?!\w)")
_FURTHER = re.compile(r"\s*(?:,|and)?\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]+)")
_GLUED = re.compile(
    r"(?:[munpcdk]?m|[mk]?g|[mcd]?l|km/h|mph|kmh|[kMGT]B|h|hrs?|mins?|s|secs?|lbs?|oz|in|ft|yds?|mi|cents?|am|pm|years?|"
    r"days?|weeks?|months?|hours?|minutes?|seconds?|dollars?|pounds?|euros?|miles?|feet|inches|meters?|degrees|KG|Kg|CM|KM|"
    r"kW|W|V|Hz|C|F|p|ct|L|mL|AM|PM)(?![^\W\d_])"
)
_UNITS = {
    "money": {"cent": 1, "dollar": 100},
    "time": {"second": 1, "sec": 1, "minute": 60, "min": 60, "hour": 3600, "hr": 3600, "day": 86400, "week": 604800},
    "length": {"mm": 1, "millimeter": 1, "cm": 10, "centimeter": 10, "m": 1000, "meter": 1000, "km": 10**6,
               "kilometer": 10**6},
    "foot": {"inch": 1, "inche": 1, "foot": 12, "feet": 12, "yard": 36, "mile": 63360},
    "mass": {"mg": 1, "milligram": 1, "g": 1000, "gram": 1000, "kg": 10**6, "kilogram": 10**6},
    "pound": {"ounce": 1, "oz": 1, "pound": 16, "lb": 16},
    "volume": {"ml": 1, "milliliter": 1, "cl": 10, "l": 1000, "liter": 1000},
    "count": {"piece": 1, "month": 1, "year": 12},
}  # fmt: skip
_SIZES = {unit: (family, Fraction(size)) for family, units in _UNITS.items() for unit, size in units.items()}


def with_unit(text: str, value: Fraction, last: Token, computed: bool) -> Amount | None:
    """Return a number with what stands behind its `last` token: a unit, a percent sign, `and a half`.

    None where letters that are no unit stand at its end: `18x`, `18th`.
    """
    end = last.end
    if half := _HALF.match(text, end):
        value, end = value + (3 if half[1] == "three" else 1) * PARTS[half[2]], half.end()
    if last.kind == "percent":
        return Amount((value,) if computed else (value * 100, value), "", value, computed, end)
    unit, glued = _UNIT.match(text, end), _GLUED.match(text, end)
    if unit and not unit.group()[0].isspace() and not glued:
        return None
    unit = glued or unit
    name = unit.group().strip().lower() if unit else ""
    family, size = _SIZES.get(name) or _SIZES.get(name.removesuffix("s")) or ("", Fraction(1))
    if not unit or not family:
        return Amount((value,), "", value, computed, glued.end() if glued else end)
    further = _FURTHER.match(text, unit.end())
    smaller = _SIZES.get(further[2].lower().removesuffix("s")) if further else None
    if further and smaller and smaller[0] == family and smaller[1] < size:
        amount = value * size + Fraction(further[1]) * smaller[1]
        return Amount((amount / size, amount / smaller[1]), family, amount, computed, further.end())
    values = (value, value / 100) if name in ("cent", "cents") else (value,)
    return Amount(values, family, value * size, computed, unit.end())
