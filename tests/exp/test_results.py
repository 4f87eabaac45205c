import json

import pytest

from llmhalluc.eval import stats
from llmhalluc.exp import results, table
from llmhalluc.exp.grid import Cell
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.sections import ExpArguments

TRAINING = {"tokens": 2_100_000, "steps": 800, "seconds": 60.0, "chain_tokens": 2_100_000, "chain_seconds": 60.0}


def sheet(arm, correct, variant="greedy", task="sudoku", doc="p", precision=None, **point):
    cell = Cell(f"{arm}-{point}", arm, point, {})
    named = {f"{doc}{i}": float(value) for i, value in enumerate(correct)}
    metrics = {"n": len(correct), "backtrack_precision": precision}
    return results.Sheet(cell, variant, task, named, dict.fromkeys(named, 12.0), metrics, TRAINING)


def rows(*sheets, **exp):
    baseline = results.baseline_of([sheet.cell for sheet in sheets], ExpArguments(**exp))
    return results.rows(list(sheets), baseline)


def test_an_arm_pools_its_seeds_and_is_paired_with_the_baseline():
    clean, other = [[1, 0, 0, 1], [0, 0, 0, 1]], [[1, 1, 0, 1], [1, 1, 1, 1]]
    made = rows(
        *(sheet("clean", c, seed=i) for i, c in enumerate(clean)),
        *(sheet("bt", o, seed=i) for i, o in enumerate(other)),
    )
    arm = made[1]
    assert (arm["level"], arm["arm"], arm["seeds"], arm["problems"], arm["point"]) == ("arm", "bt", 2, 4, {})
    low, high = arm["accuracy_low"], arm["accuracy_high"]
    assert (arm["accuracy"], low, high) == stats.mean(other)[:3]
    expected = stats.difference(other, clean)
    assert (arm["difference"], arm["difference_low"], arm["difference_high"], arm["difference_p"]) == expected
    assert (arm["paired_seeds"], arm["paired_problems"]) == (2, 4)
    assert made[0]["difference"] is None and made[0]["paired_seeds"] is None
    cell = made[5]
    assert (cell["level"], cell["point"], cell["accuracy"], cell["difference"]) == ("cell", {"seed": 1}, 1.0, 0.75)


def test_a_seed_that_failed_is_left_out_of_the_pairs_only():
    made = rows(sheet("clean", [0, 0], seed=1), sheet("bt", [1, 0], seed=1), sheet("bt", [1, 1], seed=2))
    assert (made[1]["accuracy"], made[1]["difference"]) == (0.75, 0.5)
    assert (made[1]["seeds"], made[1]["paired_seeds"]) == (2, 1)


def test_other_problems_are_not_compared():
    made = rows(sheet("clean", [0, 0]), sheet("bt", [1, 1], doc="q"))
    assert made[1]["accuracy"] == 1 and made[1]["difference"] is None


def test_variants_and_tasks_are_compared_with_their_own():
    made = rows(
        sheet("clean", [0, 0]), sheet("clean", [1, 0], "sampled"), sheet("bt", [1, 1]), sheet("bt", [1, 1], "sampled")
    )
    assert [row["difference"] for row in made[:4]] == [None, None, 1.0, 0.5]


def test_the_baseline_is_the_one_named_at_the_same_point():
    made = rows(
        sheet("a", [0, 0], context="soft"), sheet("a", [1, 0], context="block"),
        sheet("b", [1, 1], context="soft"), sheet("b", [1, 1], context="block"), arms={"a": {}, "b": {}}, baseline="b",
    )  # fmt: skip
    assert [row["difference"] for row in made[:4]] == [-1.0, -0.5, None, None]


def test_one_arm_is_compared_with_its_first_point():
    made = rows(sheet("model", [0, 0], rate=1), sheet("model", [1, 0], rate=2))
    assert [row["difference"] for row in made[:2]] == [None, 0.5]


def test_law12_better_is_said_after_holm_for_all_arms():
    right = [1] * 12 + [0] * 8
    one = rows(sheet("a", [0] * 20), sheet("b", [1] * 6 + [0] * 14))
    assert 0.01 < one[1]["difference_p"] < 0.05 and one[1]["verdict"] == "better"
    many = rows(sheet("a", [0] * 20), *(sheet(name, [1] * 6 + [0] * 14) for name in "bcdef"), sheet("g", right))
    assert [row["verdict"] for row in many[:7]] == [None] * 6 + ["better"]
    assert rows(sheet("a", right), sheet("b", [0] * 20))[1]["verdict"] == "worse"


def test_means_leave_out_what_a_seed_cannot_tell():
    made = rows(sheet("a", [1], seed=1, precision=0.5), sheet("a", [1], seed=2), sheet("b", [1], seed=1))
    assert [row["backtrack_precision"] for row in made[:2]] == [0.5, None]


def shown(*sheets, failed=()):
    made = rows(*sheets)
    return {"name": "title", "baseline": sheets[0].cell.arm, "failed": list(failed), "rows": made}


def test_the_table_is_aligned_and_says_what_it_shows():
    text = table.table(shown(sheet("clean", [0, 1], precision=0.5), sheet("bt", [1, 1]), failed=["x"]))
    lines = text.split("\n")
    assert lines[:5] == [
        "title",
        "1 seed, 2 problems of sudoku; 95% intervals (docs/statistics.md); differences against clean are paired.",
        "Every arm was trained on 2.1M tokens, to within 1%.",
        "With one seed a row is about that one trained model, not about how another seed would come out.",
        "Without the cells that failed: x.",
    ]
    head, ruler, first, second = lines[-4:]
    assert set(ruler) == {"─"} and len(first) <= len(ruler)
    assert head.index("clean") < len(head) and first.startswith("clean  greedy") and second.startswith("bt     greedy")
    assert "100.0 [34.2, 100.0]  +50.0 [-56.3, +100.0]" in second and first.split()[-1] == "0.50"


def test_a_table_from_before_there_were_other_scores_is_shown():
    for path in (REPOSITORY / "docs" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert found["name"] in table.table(found) and "accuracy" in table.markdown(found)
        assert "95% intervals by a bootstrap" in table.table(found), "its intervals are those of then"


def test_rows_of_a_variant_stand_together():
    results_ = shown(sheet("a", [0]), sheet("a", [0], "sampled"), sheet("b", [0]), sheet("b", [0], "sampled"))
    assert [row["variant"] for row in table.in_order(results_, "arm")] == ["greedy"] * 2 + ["sampled"] * 2


def test_unequal_budgets_get_a_column():
    less = sheet("b", [1])._replace(training=TRAINING | {"tokens": 1_000_000, "chain_tokens": 1_000_000})
    text = table.table(shown(sheet("a", [1]), less))
    assert "training" in text and "1M" in text and "Every arm was trained" not in text


def test_a_table_without_rows_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError):
        results.sheets(Cell("a", "a", {}, {}), tmp_path)
