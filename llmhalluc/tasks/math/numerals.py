"""Numbers in English words: `forty-two`, `three thousand and five`, `7 and a half`, `5 dozen`."""

from collections.abc import Sequence
from fractions import Fraction

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_ONES += "seventeen eighteen nineteen".split()
SMALL = {word: i for i, word in enumerate(_ONES)}
SMALL |= {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
SCALES = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
          "dozen": 12, "score": 20}  # fmt: skip
PARTS = {"half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3), "thirds": Fraction(1, 3),
         "quarter": Fraction(1, 4), "quarters": Fraction(1, 4), "fifth": Fraction(1, 5), "fifths": Fraction(1, 5),
         "tenth": Fraction(1, 10), "tenths": Fraction(1, 10)}  # fmt: skip


def number_in_words(words: Sequence[str]) -> tuple[Fraction, int] | None:
    """Return the number that the first words name and how many words it has; None where they name none."""
    total, part, used = Fraction(0), Fraction(0), 0
    lower = [word.lower() for word in words]
    for i, word in enumerate(lower):
        scale = SCALES.get(word.removesuffix("s")) if used else None
        if word in SMALL:
            part += SMALL[word]
        elif scale == 100:
            part *= 100
        elif scale:
            total, part = total + part * scale, Fraction(0)
        elif word == "and" and used and lower[i + 1 : i + 2] and lower[i + 1] in SMALL | {"a": 1}:
            if lower[i + 2 : i + 3] and lower[i + 2] in PARTS:  # five and a half
                return total + part + SMALL.get(lower[i + 1], 1) * PARTS[lower[i + 2]], i + 3
            continue
        else:
            break
        used = i + 1
    if lower[used : used + 1] and lower[used] in PARTS:  # three quarters
        return (total + part or 1) * PARTS[lower[used]], used + 1
    return (total + part, used) if used else None
