"""The locators on chains in which people marked the first wrong step, where the files are there."""

import importlib.util
import json

import pytest

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.selfgen.locate import arithmetic, departure
from tests.real import real_data

_SPEC = importlib.util.spec_from_file_location("locators", REPOSITORY / "benchmarks" / "locators.py")
assert _SPEC is not None and _SPEC.loader is not None
locators = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(locators)


def hits(task: str, locator) -> tuple[float, float]:
    """The share of chains whose marked step is named, and that of the best constant."""
    lines = real_data(f"bigbench_mistake/{task}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [one for one in map(json.loads, lines) if one["mistake_index"] is not None]
    truth = [one["mistake_index"] for one in records]
    found = locator([locators.chain_of(one, task) for one in records])
    constant = max(truth.count(at) for at in set(truth))
    return sum(a == b for a, b in zip(found, truth, strict=True)) / len(records), constant / len(records)


@pytest.mark.parametrize(
    ("task", "locator", "least"),
    [
        ("multistep_arithmetic", arithmetic, 0.95),
        ("multistep_arithmetic", departure, 0.95),
        ("dyck_languages", departure, 0.95),
        ("tracking_shuffled_objects", departure, 0.9),
        ("word_sorting", departure, 0.6),
    ],
)
def test_locators_find_what_people_found(task, locator, least):
    share, constant = hits(task, locator)
    assert share >= least > constant


def test_simulated_solutions_are_the_true_ones():
    swaps = {
        "input": "They play: Alice has a red ball, Bob has a blue ball, and Claire has a pink ball.\n"
        "First, Alice and Bob swap balls. Finally, Claire and Alice swap balls. At the end, Alice has the\nOptions:",
        "target": "(C)",
        "steps": ["Alice: red, Bob: blue, Claire: pink.", "Alice and Bob swap: Alice: blue, Bob: red.",
                  "Claire and Alice swap: Alice: pink, Claire: blue. So the answer is (C)"],
    }  # fmt: skip
    keys, right = locators.tracking_shuffled_objects(swaps)
    assert keys == right
    brackets = {"input": "( [ ]", "target": ")", "steps": ["( ; stack: (", "[ ; stack: ( [", "] ; stack: empty"]}
    keys, right = locators.dyck_languages(brackets)
    assert [a == b for a, b in zip(keys, right, strict=True)] == [True, True, False]
    assert locators.evaluate("((-9 - 5) * (2 + -3)) / 4", {}) == 3.5
    assert locators.evaluate("A - 2", {}) is None


def test_an_interval_is_wilsons():
    assert locators.rate(8, 10) == "80.0 [49.0, 94.3]"
    assert locators.rate(0, 0) == "-"
