"""The shipped chain with real programs and tiny sizes: each stage trains the model that the one before left."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llmhalluc.exp import runner
from llmhalluc.extras.constant import CONFIGS
from llmhalluc.hparams.yaml_files import load_raw

SIZES = {
    "data.task.count": 600, "train.logging_steps": 1, "selfgen.samples": 2, "eval.task_options.sudoku.count": 20,
    "exp.parallel": 2, "exp.samples_in_report": 1, "exp.grid.seed": [1],
    "train.max_tokens": 40_000,
}  # fmt: skip
ARMS = {
    "sft": {},
    "selfgen_sft": {"rounds": 2, "data": {"max_samples": 40}, "train": {"max_tokens": 8_000}},
    "dpo": {"data": {"max_samples": 40}, "train": {"max_tokens": 8_000}},
    "grpo": {"train": {"max_steps": 2, "per_device_train_batch_size": 32}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain") / "run"
    raw = load_raw(CONFIGS / "llmhalluc" / "chain.yaml", [f"{key}={value}" for key, value in SIZES.items()])
    arms = {arm: raw["exp"]["arms"][arm] for arm in ARMS}
    for arm, keys in ARMS.items():
        for key, value in keys.items():
            arms[arm][key] = arms[arm].get(key, {}) | value if isinstance(value, dict) else value
    raw["exp"] |= {"output_dir": str(folder), "arms": arms}
    assert runner.run(raw) == 0
    return folder / "cells"


def weights(folder):
    return load_file(folder / "train" / "model.safetensors")


@pytest.mark.slow
def test_every_stage_moves_the_weights_of_the_one_before(folder):
    chains = [("sft__seed=1", "selfgen_sft__seed=1/round_1"), ("selfgen_sft__seed=1/round_1", "selfgen_sft__seed=1"),
              ("sft__seed=1", "dpo__seed=1"), ("sft__seed=1", "grpo__seed=1")]  # fmt: skip
    for start, end in chains:
        before, after = weights(folder / start), weights(folder / end)
        assert before.keys() == after.keys()
        moved = [(after[name] - before[name]).norm() / before[name].norm() for name in before]
        assert 0 < torch.stack(moved).max() < 0.5, (start, end)


@pytest.mark.slow
def test_each_round_generates_from_the_model_of_the_round_before(folder):
    own = folder / "selfgen_sft__seed=1"
    about = [json.loads((own / f"round_{n}" / "selfgen" / "selfgen.json").read_text()) for n in (1, 2)]
    assert [part["model"] for part in about] == [str(folder / "sft__seed=1" / "train"), str(own / "round_1" / "train")]
    assert about[0]["weights"] != about[1]["weights"]
    assert all(part["problems"]["converter"] == "sudoku_backtrack" for part in about)
    traces = [(own / f"round_{n}" / "selfgen" / "traces.jsonl").read_text().count("\n") for n in (1, 2)]
    assert min(traces) > 10


@pytest.mark.slow
def test_the_table_has_every_arm_and_counts_its_chain(folder):
    rows = {row["arm"]: row for row in json.loads((folder.parent / "results.json").read_text())["rows"]}
    assert list(rows) == ["sft", "selfgen_sft", "dpo", "grpo"]
    for arm in ("selfgen_sft", "dpo", "grpo"):
        assert rows[arm]["chain_tokens"] == rows[arm]["train_tokens"] + rows["sft"]["train_tokens"]
        assert rows[arm]["train_tokens"] > 0 and rows[arm]["problems"] == 20
    contexts = [json.loads((folder / f"{arm}__seed=1" / "train" / "config.json").read_text()) for arm in rows]
    assert {config["backtrack"]["context"] for config in contexts} == {"block"}
