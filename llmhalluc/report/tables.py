"""Tables as plain data, for a page or a terminal; what is HTML stands in `macros.html.j2`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A heading, a text a line, and whether what stands under it is text rather than numbers."""

    heading: tuple[str, ...]
    left: bool = False


class Span(NamedTuple):
    """Where a value, its interval and zero lie on a scale, in percent of it; a value of None has no interval."""

    zero: float
    low: float
    width: float
    value: float | None


class Field(NamedTuple):
    """What stands in one place: a text (of a tone: ok, no), a softer one behind it, a picture of an interval.

    width: the number of columns it takes.
    """

    text: str
    soft: str = ""
    tone: str = ""
    width: int = 1
    span: Span | None = None


class Row(NamedTuple):
    """The fields of a row; `mark` is base for what others are compared with, new where another group begins."""

    fields: list[Field]
    mark: str = ""


class Table(NamedTuple):
    """Columns and the rows under them."""

    columns: list[Column]
    rows: list[Row]


def span(interval: tuple[float, float, float] | None, low: float, high: float) -> Span:
    """(value, low, high) of an interval on the scale from `low` to `high`, all in one unit."""
    value, start, end = (_place(number, low, high) for number in interval or (0.0, 0.0, 0.0))
    return Span(_place(0.0, low, high), start, round(end - start, 1), value if interval else None)


# What a difference says (better, worse, or neither), as a tone and as a verb.
VERDICTS = {
    "better": ("up", "is better than"),
    "worse": ("down", "is worse than"),
    None: ("", "is not clearly apart from"),
}


def verdict(low: float, high: float) -> tuple[str, str]:
    """What the interval of the one difference that is shown says, as a tone and as a verb."""
    return VERDICTS["better" if low > 0 else "worse" if high < 0 else None]


def put_into(document: Path, source: str, text: str) -> None:
    """Replace what a document holds between `<!-- source -->` and `<!-- end -->`; ValueError where they are missing."""
    mark = f"<!-- {source} -->"
    held = document.read_text(encoding="utf-8")
    start = held.index(mark) + len(mark)
    end = held.index("<!-- end -->", start)
    document.write_text(f"{held[:start]}\n{text}\n{held[end:]}", encoding="utf-8")


def plain(value: Any) -> str:
    """A value of a config as a reader writes it: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of texts as columns of equal width, the first `left` ones flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths, left)) for line in lines]


def _padded(line: Sequence[str], widths: list[int], left: int) -> list[str]:
    begin = [text.ljust(width) for text, width in zip(line[:left], widths, strict=False)]
    return begin + [text.rjust(width) for text, width in zip(line[left:], widths[left:], strict=True)]


def _place(number: float, low: float, high: float) -> float:
    return round(100 * (number - low) / (high - low or 1), 1)
