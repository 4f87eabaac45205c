"""samples.html: every sample, what flipped against the baseline, and nothing that a model wrote as markup."""

import json
import re

import pytest

from llmhalluc.exp import browse, results
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.table import latex, markdown

NAMES = ("clean", "other")


@pytest.fixture
def page(tmp_path):
    cells = [Cell(name, name, {}, {}) for name in NAMES]
    folders = {name: tmp_path / name for name in NAMES}
    for name, right in zip(NAMES, ([1, 0, 0], [0, 1, 0]), strict=True):
        lines = [
            {"doc_id": i, "doc": {"q": i}, "target": "5", "text": f"<b>{name}</b> {i} </script>", "correct": value,
             "emitted": 4, "kept": 2, "erasures": i, "cut": i == 2, "metrics": {"f1": value / 2}}
            for i, value in enumerate(right)
        ]  # fmt: skip
        (folders[name] / "eval").mkdir(parents=True)
        path = folders[name] / "eval" / "samples_greedy_toy.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {"name": "toy", "baseline": "clean", "rows": [{"task": "toy", "variant": "greedy"}], "config": {},
             "environment": {"time": "2026-01-01T00:00:00+00:00", "commit": None}}  # fmt: skip
    browse.write(found, cells, folders, lambda cell: ("clean", {}), tmp_path)
    return (tmp_path / "samples.html").read_text()


def test_all_samples_are_there_with_what_flipped(page):
    samples = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [(one["arm"], one["problem"], one["correct"], one["flipped"], one["cut"]) for one in samples] == [
        ("clean", 0, 1, "", False), ("clean", 1, 0, "", False), ("clean", 2, 0, "", True),
        ("other", 0, 0, "lost", False), ("other", 1, 1, "won", False), ("other", 2, 0, "", True),
    ]  # fmt: skip
    assert samples[3]["text"] == "<b>other</b> 0 </script>" and "<b>other" not in page


def sheet(arm, values, score=results.ACCURACY):
    named = {str(i): float(value) for i, value in enumerate(values)}
    training = dict.fromkeys((*results.TRAINING, *results.CHAIN), 1.0)
    numbers = {str(i): i for i in range(len(values))}
    return results.Sheet(Cell(arm, arm, {}, {}), "greedy", "toy", named, named, {}, training, score, numbers)


def test_two_arms_are_compared_with_the_problems_won_and_lost():
    made = [sheet("a", [1, 0, 0, 1]), sheet("b", [0, 1, 1, 1]), sheet("c", [1, 0, 0, 1])]
    found = results.pairs(made)
    assert [(row["arm"], row["against"], row["won"], row["lost"]) for row in found] == [
        ("a", "b", [0], [1, 2]), ("a", "c", [], []), ("b", "c", [1, 2], [0])
    ]  # fmt: skip
    assert {row["verdict"] for row in found} == {None}


def test_a_task_without_right_and_wrong_has_its_own_score(tmp_path):
    made = [sheet("a", [0.5, 0.25], "f1"), sheet("b & co_1", [0.75, 0.5], "f1")]
    rows = results.rows(made, lambda cell: ("a", {}))
    assert (rows[0]["score"], rows[0]["accuracy"], rows[1]["difference"]) == ("f1", 0.375, 0.25)
    shown = {"name": "toy", "baseline": "a", "rows": rows, "failed": []}
    assert "| f1 0.375 [" in markdown(shown) and "accuracy" not in markdown(shown)
    assert r"b-co\_1" in latex(shown) and r"\begin{tabular}" in latex(shown)


@pytest.mark.parametrize(
    ("scores", "metrics", "expected"),
    [
        ([{"f1": 0.5}, {"f1": 1.0}], {}, ("f1", {"x": 0.5, "y": 1.0})),
        ([{"word_perplexity": [1, 2]}] * 2, {"word_perplexity": 12.5}, ("word_perplexity", {"all": 12.5})),
    ],
)
def test_what_a_task_is_scored_by(scores, metrics, expected):
    samples = {key: {"correct": None, "metrics": one} for key, one in zip("xy", scores, strict=True)}
    assert results._scores(samples, metrics) == expected
