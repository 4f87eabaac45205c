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
    executor_of("verifier")(config(tmp_path / "run", "verifier", width=0)).run()
    loaded = load(ModelArguments(name_or_path=str(tmp_path / "run"), device="cpu"), None)
    head = heads.load(tmp_path / "run", loaded.model, fingerprint(loaded.model))
    assert (
        head.about.layers == ("model.layers.0", "model.layers.1")
        and head.about.labels == "solver"
        and head.first is None
    )


def test_labels_that_are_all_alike_teach_nothing(tmp_path):
    made = config(tmp_path, "verifier", labels="consensus", rollouts=1)  # this model's roll-outs never come out right
    with pytest.raises(UserError, match="labelled prefixes are alike .*: sample more"):
        executor_of("verifier")(made).run()


def test_an_evaluation_uses_the_judge_and_knows_another_one(tmp_path):
    from llmhalluc.eval.model import BacktrackLM
    from llmhalluc.eval.runner import evaluate
    from llmhalluc.hparams.sections import GenArguments

    folder = tmp_path / "run"
    executor_of("verifier")(config(folder, "verifier")).run()
    sampled = {"search": "best_of_n", "temperature": 1.0, "budget": 40}
    variants = {
        "operator": sampled | {"operator": "verifier", "operator_args": {"threshold": 0.3, "retries": 2}},
        "guide": sampled | {"search": "beam", "search_args": {"guide": "verifier", "width": 1}},
    }
    evaluation = {
        "model": {"name_or_path": str(folder), "device": "cpu"},
        "gen": {"max_new_tokens": 12},
        "eval": {"tasks": ["sudoku"], "task_options": {"sudoku": {"count": 6}}, "output_dir": str(tmp_path / "eval"),
                 "variants": variants},
    }  # fmt: skip
    results = evaluate(build(evaluation))["results"]
    assert all(results[name]["sudoku"]["search_emitted"] >= 40 for name in variants)
    assert results["operator"]["sudoku"]["erasures_per_sample"] > 0
    samples = [json.loads(line) for line in (tmp_path / "eval" / "samples_guide_sudoku.jsonl").open()]
    assert all(sample["cost"]["forward"] > sample["cost"]["emitted"] > 0 for sample in samples)
    lm, options = BacktrackLM(ModelArguments(name_or_path=str(folder), device="cpu")), GenArguments(operator="verifier")
    key = lm._journal_key("doc", options)
    head = heads.load(folder, lm.model)
    head.last.bias.data += 1.0
    heads.save(head, folder)
    lm = BacktrackLM(ModelArguments(name_or_path=str(folder), device="cpu"))
    assert lm._journal_key("doc", options) != key
    evaluation["eval"]["variants"] = {"one": {"operator": "verifier", "operator_args": {"treshold": 0.3}}}
    with pytest.raises(UserError, match=r"operator verifier has no parameter 'treshold'; did you mean threshold\?"):
        evaluate(build(evaluation))
