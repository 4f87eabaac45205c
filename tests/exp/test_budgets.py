"""Methods at equal budgets: pairing, Holm, and where one overtakes another."""

import json

import pytest

from llmhalluc.exp import budgets
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.results import Sheet


def sheets(folder, arm, variants, seeds=(1, 2, 3)):
    """variants: name -> (budget, share right of 40 problems)."""
    made, folders = [], {}
    for seed in seeds:
        cell = Cell(f"{arm}__seed={seed}", arm, {"seed": seed}, {})
        own = folders[cell.name] = folder / cell.name
        (own / "eval").mkdir(parents=True)
        decoding = {
            name: {"toy": {"search": "beam", "budget": budget, "budget_unit": "emitted"}}
            for name, (budget, _) in variants.items()
        } | {"plain": {"toy": {"search": None, "budget": None, "budget_unit": "emitted"}}}
        (own / "eval" / "results.json").write_text(json.dumps({"decoding": decoding}))
        for name, (budget, share) in [*variants.items(), ("plain", (1, 0.5))]:
            correct = {str(i): int((i * 7 + seed) % 40 < 40 * share) for i in range(40)}
            metrics = {f"search_{cost}": budget for cost in budgets.COSTS}
            made.append(Sheet(cell, name, "toy", correct, correct, metrics, {}))
    return made, folders


def test_methods_are_paired_at_their_budget_and_a_crossing_is_named(tmp_path):
    base, folders = sheets(tmp_path, "base", {"one-16": (16, 0.2), "one-64": (64, 0.9)})
    other, more = sheets(tmp_path, "other", {"two-16": (16, 0.8), "two-64": (64, 0.3)})
    rows = budgets.rows([*base, *other], folders | more, lambda cell: ("base", {}))
    assert [(row["method"], row["budget"], row["against"]) for row in rows] == [
        ("base one", 16, "base one"), ("base one", 64, "base one"), ("other two", 16, "base one"),
        ("other two", 64, "base one"),
    ]  # fmt: skip
    assert [row["difference"] for row in rows[:2]] == [None, None]
    assert rows[2]["difference"] == pytest.approx(0.6) and rows[3]["difference"] == pytest.approx(-0.6)
    assert [row["verdict"] for row in rows] == [None, None, "better", "worse"]
    assert rows[2]["paired_seeds"] == 3 and rows[2]["emitted"] == 16
    (crossing,) = budgets.crossings(rows)
    assert crossing["at"] == pytest.approx(32) and not crossing["overtakes"] and crossing["sure"]
    assert "toy: other two falls behind base one at about 32 emitted tokens" in budgets.table(rows)
    assert "80.0 +60.0 [" in budgets.table(rows)


def test_an_experiment_that_does_not_search_has_no_budgets(tmp_path):
    made, folders = sheets(tmp_path, "base", {})
    assert budgets.rows(made, folders, lambda cell: ("base", {})) == []
