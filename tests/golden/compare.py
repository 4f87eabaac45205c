"""Golden numbers in JSON beside this file: read, write, and what differs."""

import json
import math
from pathlib import Path
from typing import Any

# Float64 runs on a processor repeat to the last bit with the same libraries, and a refactor that adds up in another
# order moves a number by some 1e-15; what a changed draw, mask or label moves is above 1e-6. Another processor may
# add up in another order too, and fifty steps of training make more of it: 1e-9 lets that through. (Losses are logged
# in float32, where the next number is 1e-7 away: these have to be the very same.)
RELATIVE, ABSOLUTE = 1e-9, 1e-12
DIGITS = 12  # significant ones that are kept where a number is one of thousands


def path_of(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.json")


def read(name: str) -> dict[str, Any]:
    return json.loads(path_of(name).read_text(encoding="utf-8"))


def write(name: str, numbers: dict[str, Any]) -> None:
    """A line an entry, so that a change shows where it is."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in numbers.items()]
    path_of(name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """A sentence for each place where `found` is not what was kept; floats may differ by RELATIVE."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            gone, new = (sorted(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
            return [f"{where} lacks {gone} and has {new} besides"]
        pairs = [(f"{where}.{key}", expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{where} has {len(found)} entries, expected {len(expected)}"]
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(expected, found, strict=True))]
    else:
        return [] if same(expected, found) else [f"{where} is {found!r}, expected {expected!r}"]
    return [sentence for place, a, b in pairs for sentence in differences(a, b, place)]


def same(expected: Any, found: Any) -> bool:
    """Equal, and floats nearly so; a float is no whole number and a truth value neither."""
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float):
        return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return expected == found


def check(expected: Any, found: Any) -> None:
    """Fail with the first few differences. `found` is compared as JSON would give it back."""
    wrong = differences(expected, json.loads(json.dumps(found)))
    assert not wrong, "\n".join([f"{len(wrong)} numbers are not what they were:", *wrong[:10]])
