"""Counts of a trace against its gold, their averages, intervals, overlap of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.eval.metrics import Counts, count, text_overlap, trace_metrics
from llmhalluc.eval.stats import accuracy

BT = 9
traces = st.lists(st.sampled_from([1, 2, 3, BT]), max_size=14)
golds = st.lists(st.sampled_from([1, 2, 3]), max_size=8)


def slow_count(completion: list[int], gold: list[int]) -> Counts:
    """A stack machine with a flag a token: written out, and independent of backtrack.py."""
    stack: list[bool] = []
    wrong = wrong_erased = erasures = 0
    prefix: list[int] = []
    for token in completion:
        if token == BT:
            if stack:
                erasures += 1
                wrong_erased += not stack.pop()
                prefix.pop()
            continue
        prefix.append(token)
        stack.append(prefix == gold[: len(prefix)])
        wrong += not stack[-1]
    return Counts(len(completion), len(stack), erasures, wrong, wrong_erased)


@given(traces, golds)
def test_law6_counts_read_the_trace(completion, gold):
    assert count(completion, BT, gold) == slow_count(completion, gold)
    without_gold = slow_count(completion, gold)._replace(wrong=None, wrong_erased=None)
    assert count(completion, BT) == without_gold


def test_a_token_after_a_wrong_one_is_wrong_even_where_it_equals_the_gold():
    assert count([1, 7, 3], BT, [1, 2, 3]) == Counts(3, 3, 0, wrong=2, wrong_erased=0)
    assert count([1, 7, 3, BT, BT, 2, 3], BT, [1, 2, 3]) == Counts(7, 3, 2, wrong=2, wrong_erased=2)
    assert count([1, BT, 1, 2, 3, 4], BT, [1, 2, 3]) == Counts(6, 4, 1, wrong=1, wrong_erased=0)


def test_a_model_without_backtrack_never_erases():
    assert count([1, BT, 2], None, [1, 2]) == Counts(3, 3, 0, wrong=2, wrong_erased=0)


def test_averages_pool_tokens_and_are_none_where_nothing_tells():
    found = trace_metrics(
        [Counts(10, 4, 3, wrong=4, wrong_erased=2, cut=True), Counts(4, 4, 0, wrong=0, wrong_erased=0)]
    )
    assert found == {
        "erasures_per_sample": 1.5, "samples_with_erasure": 0.5, "emitted_per_sample": 7.0, "emitted_per_kept": 14 / 8,
        "cut_off": 0.5, "backtrack_precision": 2 / 3, "backtrack_recall": 0.5,
    }  # fmt: skip
    no_gold = trace_metrics([Counts(10, 4, 3)])
    assert no_gold["backtrack_precision"] is None and no_gold["backtrack_recall"] is None
    assert set(trace_metrics([]).values()) == {None} and trace_metrics([]).keys() == found.keys()
    assert trace_metrics([Counts(2, 0, 1)])["emitted_per_kept"] is None


@pytest.mark.parametrize(
    "right, n, low, high",  # R: prop.test(right, n, correct = FALSE)
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (296, 400, 0.6949, 0.7806), (1, 3, 0.0615, 0.7923)],
)
def test_wilson_interval(right, n, low, high):
    found = accuracy([1] * right + [0] * (n - right))
    assert found["accuracy"] == right / n
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((low, high), abs=1e-4)


def test_standard_error_is_the_sample_one():
    assert accuracy([1, 0])["accuracy_stderr"] == pytest.approx(0.5)
    assert accuracy([1])["accuracy_stderr"] is None
    assert set(accuracy([]).values()) == {None}


def test_overlap_is_one_for_the_same_text_and_zero_for_another():
    assert text_overlap("one two three four", "one two three four") == pytest.approx({"rougeL": 1.0, "bleu": 1.0})
    assert text_overlap("five six", "one two three four")["rougeL"] == 0.0
    assert text_overlap("", "one two")["bleu"] == 0.0
