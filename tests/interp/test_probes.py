"""Probes: a planted signal is found, none is where labels are shuffled; errors are labelled by the task."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from llmhalluc.interp.importance import split_off
from llmhalluc.interp.probes import Labelled, area, auc_by_layer, auc_interval, errors
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import Task
from tests.interp.models import BT, causal_lm, sample, taken_apart


def rows(seed: int, signal: float, problems: int = 60):
    """Two rows a problem, of 2 layers; the second carries the label along one direction."""
    rng = np.random.default_rng(seed)
    labels = [bool(number % 2) for number in range(2 * problems)]
    features = rng.normal(size=(2, 2 * problems, 16)).astype(np.float32)
    features[1, :, 3] += signal * np.array(labels)
    names = [f"p{number // 2}" for number in range(2 * problems)]
    labelled = [Labelled(number // 2, 1, label, number % 4 != 1) for number, label in enumerate(labels)]
    return features, labelled, names


def test_a_planted_signal_is_found_and_none_where_labels_are_shuffled():
    features, labelled, names = rows(0, 5.0)
    first, second = auc_by_layer(features, labelled, names, split_off(names, 0.5, 0), 0)
    assert second["auc"] >= 0.95 and second["auc_low"] > 0.9 and second["auc_not_acted"] >= 0.9
    assert first["auc_low"] < 0.5 < first["auc_high"]
    for one in (first, second):
        assert one["shuffled_low"] < 0.5 < one["shuffled_high"] and abs(one["shuffled_auc"] - 0.5) < 0.15
        assert (one["train_rows"], one["test_rows"], one["test_problems"]) == (60, 60, 30)


def test_the_area_is_sklearns():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(50) < 0.3, rng.integers(0, 9, 50)
    assert area(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_a_side_with_one_class_has_no_area():
    features, labelled, names = rows(1, 0.0, 4)
    same = [one._replace(label=True) for one in labelled]
    assert all("auc" not in one for one in auc_by_layer(features, same, names, split_off(names, 0.5, 0), 0))


def test_the_interval_of_an_area_covers_over_problems():
    rng, hits, count = np.random.default_rng(0), 0, 60
    for seed in range(count):
        labels = np.tile([True, False], 40)
        scores = rng.normal(size=80) + labels + np.repeat(rng.normal(size=40), 2)
        low, high = auc_interval(labels, scores, [str(number // 2) for number in range(80)], seed, 200)
        # Two normals a distance of 1 apart, each of variance 1 and a problem's of 1: P(x > y) = Φ(1/2).
        hits += low <= 0.6915 <= high
    assert hits >= 0.88 * count


class Spaced(Task):
    """A token is wrong where the text that stands before it has an odd number of words."""

    def is_wrong(self, token, record):
        return len(token.before().split()) % 2 == 1


def test_a_task_reads_the_text_with_the_spaces_that_its_tokenizer_leaves_out():
    tokenizer = TASKS["countdown"].tokenizer("countdown")
    model = taken_apart(causal_lm("llama"), "soft", BT)
    model.loaded = model.loaded._replace(tokenizer=tokenizer)
    ids = tokenizer("1 + 2 = 3", add_special_tokens=False).input_ids
    found = errors(model, [sample([7], ids[:2])], Spaced(), {"test-0": {}})
    assert [point.label for point in found] == [True]  # what stands on a wrong one is not judged


class Odd(Task):
    """A token is wrong where its text ends in an odd digit; of a letter nobody can say."""

    def is_wrong(self, token, record):
        assert token.before().endswith(token.text)
        return None if token.text.strip().isalpha() else int(token.text[-1]) % 2 == 1


def test_errors_are_labelled_where_nothing_wrong_stands_before_them():
    model = taken_apart(causal_lm("llama"), "soft", BT)
    words = model.tokenizer.convert_tokens_to_ids
    one, two, three, letter = (words(text) for text in ("1", "2", "3", "cat"))
    ids = [two, letter, three, BT, two, one, two, BT, BT, two]
    found = errors(model, [sample([7, 8], ids)], Odd(), {"test-0": {}})
    #       2: right, cat: unknown, 3: wrong and taken back, 2: right, 1: wrong and not at once, 2 on it: not judged, 2
    assert [(point.row, point.label, point.acted) for point in found] == [
        (2, False, False), (4, True, True), (6, False, False), (7, True, False), (11, False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_split_leaves_problems_on_both_sides(share):
    names = [f"p{number}" for number in range(3)]
    assert 0 < len(split_off(names, share, 0)) < 3
