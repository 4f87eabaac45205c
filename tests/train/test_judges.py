"""The stages verifier and prm: what they leave, that a resumed run leaves the same bytes, and what they refuse."""

import json
import shutil

import pytest

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.models.weights import fingerprint
from llmhalluc.train.executors import executor_of
from llmhalluc.train.finished import final_model
from llmhalluc.verify import head as heads
from llmhalluc.verify.use import load_judge

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip


def config(folder, stage, **judge):
    return build(
        {
            "model": {"from_config": {"model_type": "llama", **SIZES}, "tokenizer": "sudoku4", "dtype": "float32",
                      "device": "cpu"},
            "data": {"dataset": "sudoku", "converter": "sudoku", "task": {"count": 40}},
            "gen": {"max_new_tokens": 12},
            "train": {"stage": stage, "output_dir": str(folder), "report_to": "none", "resume": True,
                      "judge": {"samples": 2, "epochs": 2, "batch_size": 32} | judge},
        }
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["verifier", "prm"])
def test_a_judge_lies_beside_its_model_and_a_resumed_run_leaves_the_same(tmp_path, stage):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    record = executor_of(stage)(config(whole, stage)).run()
    assert record["judge"]["test"]["places"] > 0 and len(record["loss"]) == 2
    assert final_model(whole) == whole
    loaded = load(ModelArguments(name_or_path=str(whole), device="cpu"), None)
    judge = load_judge(stage, whole, loaded.model)
    assert judge.task == "sudoku" and judge.threshold == record["judge"]["test"]["threshold"]
    # Killed while it sampled, in the middle of a line.
    torn.mkdir()
    shutil.copy(whole / "run.json", torn)
    lines = (whole / "judged.jsonl").read_text().splitlines(keepends=True)
    (torn / "judged.jsonl").write_text("".join(lines[:30]) + lines[30][:20])
    assert executor_of(stage)(config(torn, stage)).run() == record
    file = heads.FILE if stage == "verifier" else "prm/model.safetensors"
    assert (torn / file).read_bytes() == (whole / file).read_bytes()
    assert json.loads((torn / "train.json").read_text()) == json.loads((whole / "train.json").read_text())


def test_a_head_is_for_the_weights_that_it_read(tmp_path):
    executor_of("verifier")(config(tmp_path / "run", "verifier", labels="consensus", rollouts=1)).run()
    loaded = load(ModelArguments(name_or_path=str(tmp_path / "run"), device="cpu"), None)
    head = heads.load(tmp_path / "run", loaded.model, fingerprint(loaded.model))
    assert head.about.layers == ("model.layers.0", "model.layers.1") and head.about.labels == "consensus"


def test_labels_that_are_all_alike_teach_nothing(tmp_path):
    made = config(tmp_path, "verifier")
    made.gen.max_new_tokens = 1  # no text is right, and no first move of this model either
    made.data.task["count"] = 5
    with pytest.raises(UserError, match="labelled prefixes are alike .*: sample more"):
        executor_of("verifier")(made).run()
