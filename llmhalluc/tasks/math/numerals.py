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
    for i, word in enumerate(words):
        lower = word.lower()
        if lower in SMALL:
            part += SMALL[lower]
        elif lower in SCALES and lower != "k" and used:
            if SCALES[lower] == 100:
                part *= 100
            else:
                total, part = total + part * SCALES[lower], Fraction(0)
        elif lower == "and" and used and words[i + 1 : i + 2] and words[i + 1].lower() in SMALL:
            continue
        else:
            break
        used = i + 1
    if words[used : used + 1] and words[used].lower() in PARTS:  # three quarters
        return (total + part or 1) * PARTS[words[used].lower()], used + 1
    behind = [word.lower() for word in words[used : used + 3]]
    if behind[:2] in (["and", "a"], ["and", "one"]) and behind[2:] and behind[2] in PARTS:  # five and a half
        return total + part + PARTS[behind[2]], used + 3
    return (total + part, used) if used else None
