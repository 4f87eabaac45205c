"""Where steps end in a trace with erasures, and what is a good prefix."""

import pytest

from llmhalluc.data.problems import Problem
from llmhalluc.extras.errors import UserError
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.steps import pieces_of
from llmhalluc.verify.labels import Judged, area, label
from llmhalluc.verify.places import Place, places, texts_of
from tests.verify.planted import COUNTDOWN, EOS, RECORD, TOKENIZER, ids_of

BT = len(TOKENIZER)


def decode(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=True)


def found(*parts):
    ids = [id_ for part in parts for id_ in ([part] if isinstance(part, int) else ids_of(part))]
    return ids, places(ids, BT, [EOS], COUNTDOWN, pieces_of(TOKENIZER))


def test_a_place_is_the_end_of_a_step_that_stands_then():
    ids, where = found("4 - 3 = 1", BT, BT, BT, BT, BT, "2 + 3 = 5", "5 + 4", BT, "4 = 9", EOS)
    assert [(one.at, one.steps, one.whole) for one in where] == [
        (4, (5,), False), (14, (5,), False), (len(ids) - 2, (5, 10), False), (len(ids) - 1, (5, 10), True)
    ]  # fmt: skip
    assert texts_of(where[2], decode) == ["2 + 3 = 5", " 5 + 4 = 9"]
    assert [ids[i] for i in where[2].emitted] == list(where[2].standing)
    assert [one.length for one in where] == [5, 5, 5, 1]


def trace(*parts, right=False):
    return Judged(Problem("one", "countdown", [], RECORD), found(*parts)[1], right)


def test_the_solver_says_what_can_still_come_out_right():
    traces = [trace("2 + 3 = 5", "5 + 4 = 9", EOS, right=True), trace("4 - 3 = 1", "2 + 1 = 3", EOS)]
    assert label("solver", traces, decode, None) == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_rollouts_search_and_consensus_follow_the_values():
    asked = []

    def value(prefixes):
        asked.append(len(prefixes))
        return [0.75 if len(ids) < 10 else 0.0 for _, ids in prefixes]

    wrong = trace("2 + 3 = 5", "5 - 4 = 1", EOS)
    assert label("rollouts", [wrong], decode, value) == [[0.75, 0.0, 0.0]]
    assert label("consensus", [wrong], decode, value) == [[1.0, 0.0, 0.0]]
    assert label("search", [wrong], decode, value) == [[1.0, 0.0, 0.0]]
    # A roll-out that came out right from a dead end by luck is no label.
    assert label("consensus", [trace("4 - 3 = 1", EOS)], decode, lambda some: [0.5] * len(some)) == [[None, 0.0]]
    right = trace("4 - 3 = 1", BT, BT, BT, BT, BT, "2 + 3 = 5", "5 + 4 = 9", EOS, right=True)
    assert label("search", [right], decode, None) == [[None, 1.0, 1.0, 1.0]]


def test_halving_asks_for_few_prefixes_and_finds_each_first_error():
    steps = 16
    for first in range(steps + 1):
        ends = [Place(i, tuple(range(i + 1)), tuple(range(1, i + 2)), tuple(range(i + 1))) for i in range(steps)]
        judged, asked = Judged(Problem("one", "countdown", [], RECORD), ends, False), []

        def value(prefixes, first=first, asked=asked):
            asked.append(1)
            return [float(len(ids) <= first) for _, ids in prefixes]

        (found_,) = label("search", [judged], decode, value)
        assert found_ == [float(i < first) for i in range(steps)] and len(asked) <= 5


def test_a_task_without_a_solver_needs_another_source():
    judged = Judged(Problem("one", "math", [], {}), [], False)
    assert not TASKS["math"].can("rest")
    with pytest.raises(UserError, match="judge.labels is solver, but the task math has no solver: take rollouts"):
        label("solver", [judged], decode, None)


def test_the_area_counts_ties_half():
    assert area([True, False], [0.5, 0.5]) == 0.5 and area([True, False, True], [3, 1, 2]) == 1.0
    assert area([True], [1.0]) != area([True], [1.0])  # nan
