import copy
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.exp.experiment import read_experiment
from llmhalluc.exp.grid import Cell, cell_name
from llmhalluc.exp.grid import cells as cells_of
from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.yaml_files import load_raw

BASE = {
    "model": {"from_config": {"model_type": "llama"}, "tokenizer": "sudoku4"},
    "data": {"converter": "sudoku"},
    "exp": {
        "arms": {
            "clean": {},
            "block": {"data.converter": "sudoku_backtrack", "backtrack": {"context": "block"}},
        },
        "grid": {"train.learning_rate": [1e-3, 1e-4], "seed": [1, 2]},
    },
}
values = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))


def cells(raw) -> list[Cell]:
    return cells_of(read_experiment(raw))


def changed(**exp):
    return copy.deepcopy(BASE) | {"exp": BASE["exp"] | exp}


def refused(raw):
    with pytest.raises(UserError) as caught:
        cells(raw)
    return caught.value.sentences


def test_every_arm_at_every_point():
    made = cells(BASE)
    assert [cell.name for cell in made] == [
        f"{arm}__learning_rate={rate}__seed={seed}"
        for arm in ("clean", "block")
        for rate in (0.001, 0.0001)
        for seed in (1, 2)
    ]
    last = made[-1]
    assert last.arm == "block" and last.point == {"train.learning_rate": 1e-4, "seed": 2}
    assert last.raw["data"] == {"converter": "sudoku_backtrack"} and last.raw["backtrack"] == {"context": "block"}
    assert last.raw["train"] == {"learning_rate": 1e-4} and last.raw["seed"] == 2
    assert "exp" not in last.raw and last.raw["model"] == BASE["model"]


def test_without_arms_there_is_one():
    assert [cell.name for cell in cells({"data": BASE["data"], "model": BASE["model"]})] == ["model"]


def test_cells_do_not_share_what_they_hold():
    first, second, *_ = cells(BASE)
    first.raw["model"]["from_config"]["model_type"] = "gpt2"
    assert second.raw["model"]["from_config"]["model_type"] == "llama"


def test_mistakes_of_all_cells_are_told_at_once():
    told = refused(changed(arms={"clean": {"data.convertor": "sudoku"}, "block": {"backtrack.context": "blok"}}))
    assert len(told) == 2
    assert told[0].startswith("cells clean__learning_rate=0.001__seed=1, ") and "and 1 more" in told[0]
    assert "data.convertor" in told[0] and "data.converter" in told[0]
    assert told[1].startswith("cells block__") and "backtrack.context" in told[1]


@pytest.mark.parametrize(
    ("exp", "words"),
    [
        ({"grid": {"seed": []}}, ["exp.grid.seed is empty"]),
        ({"grid": {"seed": [1, 1]}}, ["are both named clean__seed=1"]),
        ({"grid": {"exp.parallel": [1, 2]}}, ["exp.grid varies exp.parallel"]),
        ({"arms": {"a b": {}, "a-b": {}}, "grid": {}}, ["both named a-b"]),
        ({"arms": {"A": {}, "a": {}}, "grid": {}}, ["both named a"]),
        ({"arms": {"a": {"exp.parallel": 2}}}, ["exp.arms.a sets exp.parallel"]),
        (
            {"arms": {"a": {"train": {"learning_rate": 1e-5}}}},
            ["exp.arms.a sets train.learning_rate", "exp.grid"],
        ),
        ({"arms": {"a": {"train.seed": 3}}}, ["exp.grid varies seed", "exp.arms.a sets train.seed"]),
        (
            {"arms": {"a": {"backtrack": {"context": "soft"}}}, "grid": {"backtrack": [{}]}},
            ["backtrack.context"],
        ),
        ({"baseline": "clear"}, ["exp.baseline is clear"]),
        ({"parallel": 0}, ["exp.parallel is 0"]),
    ],
)
def test_a_wrong_experiment_is_refused(exp, words):
    told = " ".join(refused(changed(**exp)))
    assert all(word in told for word in words), told


def test_names_are_readable_and_safe_as_files():
    assert cell_name("soft", {"backtrack.context": "soft", "seed": 1}) == "soft__context=soft__seed=1"
    assert cell_name("a", {"gen.seed": 1, "seed": 2}) == "a__gen.seed=1__seed=2"
    assert cell_name("../etc", {"x": "a/b c"}) == "etc__x=a-b-c"
    assert cell_name("基线", {"seed": 1}) == "基线__seed=1" and cell_name("α β", {}) == "α-β"
    assert cell_name("!!!", {}) != cell_name("???", {})


@given(st.text(), st.dictionaries(st.text(), values, max_size=3))
def test_no_name_leaves_its_folder(arm, point):
    name = cell_name(arm, point)
    assert name and os.sep not in name and not name.startswith(".") and name.isprintable()


def test_the_demo_has_five_arms_of_one_budget():
    made = cells(load_raw(CONFIGS / "llmhalluc" / "e2e.yaml"))
    assert len(made) == 5
    assert {cell.raw["train"]["max_tokens"] for cell in made} == {2_100_000}
    assert {cell.raw["data"]["task"]["max_blanks"] for cell in made} == {11}
