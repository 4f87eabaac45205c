"""The three locators on chains made by hand, and the binary search beside a linear scan."""

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.selfgen.locate import LOCATORS, Estimate, WrongSolution, arithmetic, departure, value
from llmhalluc.tasks import TASKS


def chain(texts, keys=None, right=()):
    return WrongSolution(texts, texts if keys is None else keys, right, TASKS["math"].is_false)


class Values:
    """Values by a table, chain by chain; counts what it is asked."""

    def __init__(self, tables):
        self.tables, self.asked = tables, []

    def __call__(self, prefixes):
        self.asked += prefixes
        return [self.tables[i][n] for i, n in prefixes]


def linear(table, threshold):
    """The first step after which the value is not above the threshold; the whole chain has fallen anyway."""
    if table[0] <= threshold:
        return None
    return next(n for n in range(1, len(table)) if n == len(table) - 1 or table[n] <= threshold) - 1


def test_arithmetic_finds_the_first_false_equation():
    steps = ["There are 48/2 = 24 ducks.", "48+24 = 71 birds.", "So 71-1 = 71.", "#### 71"]
    assert arithmetic([chain(steps), chain(steps[:1]), chain([])]) == [1, None, None]


def test_departure_is_where_the_last_right_solution_is_left():
    right = ["abcd", "axyz"]
    wrong = ["abcx", "axbc", "abcd", "b", "abcde", "ax"]
    found = departure([chain(list(word), right=right) for word in wrong])
    assert found == [3, 2, None, 0, 4, None]
    assert departure([chain(["a"])]) == [None]  # nothing right is known


def test_departure_passes_over_steps_that_say_nothing_of_weight():
    keys = [None, "a", None, "b"]
    assert departure([chain(["w"] * 4, keys, ["ab"]), chain(["w"] * 4, keys, ["ac"])]) == [None, 3]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12), st.sampled_from([0.0, 0.2])), min_size=1, max_size=6))
def test_binary_search_is_the_linear_scan_where_values_only_fall(shapes):
    tables = [[0.5] * min(good, n) + [0.1] * (n + 1 - min(good, n)) for good, n, _ in shapes]
    threshold = shapes[0][2]
    values = Values(tables)
    found = value([chain(["step"] * (len(table) - 1)) for table in tables], Estimate(values, threshold))
    assert found == [linear(table, threshold) for table in tables]
    assert len(values.asked) == len({*values.asked}), "no prefix is asked for twice"
    assert all(
        sum(at == i for at, _ in values.asked) <= 1 + ceil(log2(len(table) - 1)) for i, table in enumerate(tables)
    )


@given(st.lists(st.lists(st.sampled_from([0.0, 0.3, 0.6]), min_size=2, max_size=14), min_size=1, max_size=4))
def test_what_is_found_is_a_step_after_which_the_value_falls(tables):
    chains = [chain(["step"] * (len(table) - 1)) for table in tables]
    found = value(chains, Estimate(Values(tables)))
    for table, at in zip(tables, found, strict=True):
        assert (at is None) == (table[0] == 0)
        if at is not None:
            assert table[at] > 0 and (at + 1 == len(table) - 1 or table[at + 1] == 0)
    alone = [value([one], Estimate(Values([table])))[0] for one, table in zip(chains, tables, strict=True)]
    assert found == alone


def test_a_budget_is_spent_on_whole_searches():
    tables = [[1.0] * 4 + [0.0] * 5] * 3
    values = Values(tables)
    assert value([chain(["step"] * 8)] * 3, Estimate(values, budget=9)) == [3, 3, None]
    assert len(values.asked) <= 9
    assert value([chain(["step"] * 8)], Estimate(values, budget=3)) == [None]


def test_a_round_of_all_searches_is_one_batch():
    sizes = []

    def batches(prefixes):
        sizes.append(len(prefixes))
        return [1.0] * len(prefixes)

    value([chain(["step"] * 8)] * 5, Estimate(batches))
    assert sizes == [5, 5, 5, 5]


def test_every_locator_takes_the_same():
    for locator in LOCATORS.values():
        assert locator([], Estimate(Values([]))) == []
    with pytest.raises(ValueError, match="needs an estimate"):
        value([chain(["a"])], None)
