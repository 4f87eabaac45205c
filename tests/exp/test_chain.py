import copy

import pytest

from llmhalluc.exp.chain import OWN_ERRORS, line_of
from llmhalluc.exp.experiment import Arm, read_experiment
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.grid import cells as cells_of
from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.yaml_files import load_raw

BASE = {
    "model": {"from_config": {"model_type": "llama"}, "tokenizer": "sudoku4", "device": "cpu"},
    "data": {"converter": "sudoku_backtrack"},
    "backtrack": {"context": "block"},
    "train": {"packing": True, "learning_rate": 1e-3},
    "exp": {
        "arms": {
            "own": {"start": "sft", "rounds": 2, "data.converter": "selfgen"},
            "grpo": {"start": "own", "train": {"stage": "grpo", "num_generations": 4}},
            "sft": {},
        },
        "grid": {"seed": [1, 2]},
    },
}


def cells(raw) -> list[Cell]:
    return cells_of(read_experiment(raw))


def changed(arms, **sections):
    raw = copy.deepcopy(BASE) | sections
    raw["exp"]["arms"] |= arms
    return raw


def refused(raw):
    with pytest.raises(UserError) as caught:
        cells(raw)
    return caught.value.sentences


def test_a_cell_knows_the_cells_it_builds_on():
    made = {cell.name: cell for cell in cells(BASE)}
    assert made["sft__seed=1"].line == () and made["sft__seed=1"].rounds == 0
    assert made["own__seed=2"].line == ("sft__seed=2",)
    assert made["grpo__seed=2"].line == ("own__seed=2", "sft__seed=2")


def test_a_start_brings_its_model_and_tokenizer_and_nothing_else():
    made = {cell.name: cell.raw["model"] for cell in cells(BASE)}
    assert made["sft__seed=1"] == BASE["model"]
    assert made["own__seed=1"] == made["grpo__seed=1"] == {"device": "cpu"}


def test_the_grid_may_vary_the_model_that_all_start_from():
    grid = {"model.from_config.model_type": ["llama", "gpt2"], "model.dtype": ["float32"]}
    raw = copy.deepcopy(BASE)
    raw["exp"]["grid"] = grid
    made = {cell.name: cell for cell in cells(raw)}
    cell = made["own__model_type=gpt2__dtype=float32"]
    assert cell.raw["model"] == {"device": "cpu", "dtype": "float32"}
    assert made[cell.line[0]].raw["model"]["from_config"] == {"model_type": "gpt2"}


def test_the_config_outside_the_arms_names_the_problems_and_the_arm_the_traces():
    own = next(cell for cell in cells(BASE) if cell.arm == "own")
    assert (own.rounds, own.problems, own.raw["data"]["converter"]) == (2, "sudoku_backtrack", "selfgen")


def test_what_one_stage_alone_knows_stays_behind():
    made = {cell.arm: cell.raw["train"] for cell in cells(BASE)}
    assert made["sft"] == made["own"] == {"packing": True, "learning_rate": 1e-3}
    assert made["grpo"] == {"learning_rate": 1e-3, "stage": "grpo", "num_generations": 4}


def test_null_takes_a_key_out_where_the_stage_is_another_one():
    inherited = {"learning_rate": 1, "max_tokens": 9, "logging_steps": 3}
    grpo = {"start": "own", "train": {"stage": "grpo", "max_tokens": None, "logging_steps": None}}
    made = {cell.arm: cell.raw["train"] for cell in cells(changed({"grpo": grpo}, train=inherited))}
    assert made["grpo"] == {"stage": "grpo", "learning_rate": 1} and made["sft"] == inherited
    own = {"start": "sft", "train.logging_steps": None}
    assert "train.logging_steps is None" in refused(changed({"own": own}, train=inherited))[0]


def test_what_an_arm_or_the_grid_says_itself_never_stays_behind():
    own_fault = changed({"grpo": {"start": "sft", "train": {"stage": "grpo", "packing": False}}})
    assert "train.packing is a key of train.stage sft alone" in " ".join(refused(own_fault))
    of_grid = copy.deepcopy(BASE)
    of_grid["exp"]["grid"]["train.packing"] = [True]
    assert "train.packing is a key of train.stage sft alone" in " ".join(refused(of_grid))


def test_a_key_that_no_stage_knows_is_told_of_every_arm():
    of_sft, of_grpo = refused(changed({}, train={"packng": True}))
    assert "own__seed=1, own__seed=2, sft__seed=1 and 1 more: train.packng is no key" in of_sft
    assert "cells grpo__seed=1, grpo__seed=2: train.packng is no key" in of_grpo


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"own": {"start": "stf"}}, "exp.arms.own.start is stf, which is no arm; valid: own, grpo, sft"),
        ({"own": {"start": 3}}, "exp.arms.own.start is 3, which is no arm"),
        ({"own": {"start": ["sft"]}}, "exp.arms.own.start is ['sft'], which is no arm"),
        ({"sft": {"start": "grpo"}}, "exp.arms.own starts from itself (own from sft from grpo from own)"),
        ({"sft": {"start": "sft"}}, "exp.arms.sft starts from itself (sft from sft)"),
        (
            {"own": {"start": "sft", "model.from_config.hidden_size": 8}},
            "exp.arms.own sets model.from_config.hidden_size, but starts from the model of sft",
        ),
        ({"own": {"start": "sft", "model": {"adapter": "x"}}}, "exp.arms.own sets model.adapter"),
        ({"own": {"rounds": 0, "data.converter": "selfgen"}}, "exp.arms.own.rounds is 0, expected a whole number"),
        ({"own": {"rounds": True, "data.converter": "selfgen"}}, "exp.arms.own.rounds is True, expected a whole"),
        ({"own": {"rounds": "2", "data.converter": "selfgen"}}, "exp.arms.own.rounds is '2', expected a whole number"),
        ({"own": {"start": "sft", "rounds": 1}}, "exp.arms.own has rounds, but data.converter is sudoku_backtrack"),
        (
            {"own": {"rounds": 1, "data.converter": "selfgen", "train.eval_strategy": "steps"}},
            "set exp.arms.own.train.eval_strategy=no",
        ),
    ],
)
def test_a_wrong_chain_is_refused(arms, words):
    told = refused(changed(arms))
    assert len([sentence for sentence in told if words in sentence]) == 1, told


def test_a_context_is_changed_by_the_arm_itself_or_not_at_all():
    assert refused(changed({"own": {"start": "sft", "backtrack.context": "soft"}})) == (
        "cells grpo__seed=1, grpo__seed=2: backtrack.context is block, but exp.arms.own, which exp.arms.grpo starts "
        "from, has soft: set it outside exp.arms, or in exp.arms.grpo too",
    )
    cells(changed({"grpo": {"start": "own", "train": {"stage": "grpo"}, "backtrack.context": "rewind"}}))


def test_problems_that_cannot_be_checked_are_refused():
    told = " ".join(refused(changed({}, data={"converter": "sft"})))
    assert "outside exp.arms" in told and "is sft: set it to one of gsm8k, " in told


def test_all_mistakes_are_told_at_once():
    told = refused(changed({"own": {"start": "stf", "rounds": 0}, "grpo": {"start": "grpo", "data.convrter": "x"}}))
    assert len(told) == 4


def test_a_line_ends_where_it_closes_or_leads_nowhere():
    starts = {"a": "b", "b": "a", "c": "a", "d": "nobody"}
    arms = {name: Arm(name, {}, start) for name, start in starts.items()}
    assert [line_of(arm, arms) for arm in arms] == [["b", "a"], ["a", "b"], ["a", "b"], []]


def test_converters_for_own_errors_can_be_named():
    for converter in OWN_ERRORS:
        stage = {"train.stage": "dpo"} if "dpo" in converter else {}
        cells(changed({"own": {"start": "sft", "rounds": 1, "data.converter": converter, **stage}, "grpo": {}}))


def test_the_shipped_chain_compares_what_it_says():
    made = {
        cell.arm: cell for cell in cells(load_raw(CONFIGS / "llmhalluc" / "chain.yaml")) if cell.point == {"seed": 1}
    }
    assert {arm: cell.line[:1] for arm, cell in made.items()} == {
        "sft": (), "more_sft": ("sft__seed=1",), "selfgen_sft": ("sft__seed=1",), "dpo": ("sft__seed=1",),
        "grpo": ("sft__seed=1",), "grpo_no_curriculum": ("sft__seed=1",), "selfgen_grpo": ("selfgen_sft__seed=1",),
        "own_dpo": ("sft__seed=1",),
    }  # fmt: skip
    assert made["more_sft"].raw["train"] == made["selfgen_sft"].raw["train"]
    alike = [made[arm].raw | {"reward": None} for arm in ("grpo", "grpo_no_curriculum")]
    assert alike[0] == alike[1] and made["grpo_no_curriculum"].raw["reward"] == {"curriculum": "none"}
