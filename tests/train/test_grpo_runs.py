"""Whole GRPO runs on Sudoku: what they record, resumed anywhere, in two processes, and what is refused."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build
from llmhalluc.train.grpo import CHOICES, KEYS_WITHOUT_EFFECT, GRPOExecutor
from llmhalluc.train.sft import SFTExecutor
from tests.train import tiny_run
from tests.train.test_grpo import trl_losses
from tests.train.test_processes import torchrun

GRPO = dict(
    train__stage="grpo", train__per_device_train_batch_size=8, train__num_generations=4, train__max_steps=4,
    train__max_completion_length=10, train__learning_rate=0.001, data__task={"count": 12}, train__save_strategy="no",
)  # fmt: skip


def executor(folder: Path, **dotted: Any) -> GRPOExecutor:
    raw = tiny_run.raw(folder, **{k: v for k, v in (GRPO | dotted).items() if not k.startswith("gen__")})
    gen = {name.removeprefix("gen__"): value for name, value in dotted.items() if name.startswith("gen__")}
    return GRPOExecutor(build(raw | {"gen": gen}))


def result(folder: Path) -> tuple:
    """What has to be the same: the record but for wall times, and the bytes of the weights."""
    record = json.loads((folder / "train.json").read_text())
    assert record.pop("seconds") > record.pop("rollout_seconds") > 0
    return record, next(folder.glob("*model.safetensors")).read_bytes()


def test_a_run_says_what_it_did(tmp_path):
    record = executor(tmp_path, data__eval_split="test[:4]", train__eval_strategy="steps", train__eval_steps=2).run()
    assert [entry["step"] for entry in record["loss"]] == [1, 2, 3, 4]
    assert record["examples"] == 32 and record["tokens"] == record["loss"][-1]["tokens"] > 32 * 5
    for name in ("reward", "reward/outcome", "entropy", "completions/mean_length", "erasures/mean", "grad_norm"):
        assert all(isinstance(entry[name], float) for entry in record["loss"]), name
    assert [entry["step"] for entry in record["eval_loss"]] == [2, 4]
    assert all({"loss", "reward", "erasures/mean"} <= entry.keys() for entry in record["eval_loss"])
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert not (tmp_path / "README.md").exists()
    assert json.loads((tmp_path / "run.json").read_text())["config"].keys() >= {"reward", "gen"}


MID_ROUND = dict(train__num_iterations=2, train__gradient_accumulation_steps=2, train__beta=0.1, train__logging_steps=2)


@pytest.mark.parametrize("options", [{}, MID_ROUND], ids=["plain", "mid-round"])
def test_resumed_from_any_checkpoint_it_ends_like_an_unbroken_run(tmp_path, options):
    # An epoch is of 6 rounds; with two iterations, odd steps end in the middle of a round.
    options = options | {"train__save_strategy": "steps", "train__save_steps": 1, "train__max_steps": 9}
    executor(tmp_path / "whole", **options).run()
    for step in (3, 6, 7, 9):
        folder = tmp_path / f"from-{step}"
        folder.mkdir()
        shutil.copy(tmp_path / "whole/run.json", folder)
        shutil.copytree(tmp_path / f"whole/checkpoint-{step}", folder / f"checkpoint-{step}")
        executor(folder, **options, train__resume=True).run()
        assert result(folder) == result(tmp_path / "whole"), step


def test_lora_and_its_reference_resume_as_exactly(tmp_path):
    SFTExecutor(build(tiny_run.raw(tmp_path / "base", train__max_steps=1))).run()
    options = dict(
        model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"),
        model__finetuning="lora", train__beta=0.1, train__save_strategy="steps", train__save_steps=2,
    )  # fmt: skip
    executor(tmp_path / "a", **options).run()
    assert (tmp_path / "a/merged/model.safetensors").is_file()
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/run.json", tmp_path / "b")
    shutil.copytree(tmp_path / "a/checkpoint-2", tmp_path / "b/checkpoint-2")
    executor(tmp_path / "b", **options, train__resume=True).run()
    assert result(tmp_path / "a") == result(tmp_path / "b")


@pytest.mark.slow
def test_two_processes_train_as_one_and_share_their_groups(tmp_path):
    options = dict(train__beta=0.1, train__num_iterations=2)
    alone = executor(tmp_path / "one", **options).run()
    config = tiny_run.raw(tmp_path / "two", **GRPO | options | {"train__per_device_train_batch_size": 4})
    config["train"]["num_generations"] = 8  # a group is spread over both
    config["train"] |= {"save_strategy": "steps", "save_steps": 3}
    with_groups = executor(tmp_path / "three", **options, train__num_generations=8).run()
    together = torchrun(tmp_path / "two", config)
    assert (together["tokens"], together["examples"]) == (with_groups["tokens"], with_groups["examples"])
    assert together["examples"] == alone["examples"] == 16
    for entry, expected in zip(together["loss"], with_groups["loss"], strict=True):
        for name in ("reward", "reward_std", "reward/process", "kl", "entropy", "erasures/mean", "grad_norm"):
            assert (name in entry) == (name in expected)  # the second step on a round has no reward
            if name in entry:
                assert entry[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-9), (entry["step"], name)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "two/run.json", tmp_path / "again")
    shutil.copytree(tmp_path / "two/checkpoint-3", tmp_path / "again/checkpoint-3")
    config["train"] |= {"output_dir": str(tmp_path / "again"), "resume": True}
    resumed = torchrun(tmp_path / "again", config)
    for entry, expected in zip(resumed["loss"], together["loss"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dotted, sentence", [
    (dict(train__max_tokens=100), "set train.max_steps"),
    (dict(train__num_generations=3), "a round has 8 rollouts"),
    (dict(data__task={"count": 1}), "a round needs 2"),
    (dict(train__use_vllm=True), "vllm is not installed"),
    (dict(train__reward_weights=[1.0]), "reward section"),
    (dict(train__resume=True, train__sync_ref_model=True), "no checkpoint holds"),
    (dict(data__converter="sft"), "answers cannot be checked"),
    (dict(train__eval_strategy="epoch"), "nothing to evaluate on"),
    (dict(train__scale_rewards="x"), "train.scale_rewards is x, expected one of group, batch, none"),
    (dict(train__loss_type="ppo"), "train.loss_type is ppo, expected one of .*grpo"),
    (dict(gen__operator="never"), "gen.operator"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_met_is_refused_in_a_sentence(tmp_path, dotted, sentence):
    with pytest.raises(UserError, match=sentence):
        executor(tmp_path, **dotted).run()


def test_vllm_hides_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="backtrack.context is block: set backtrack.context=soft"):
        executor(tmp_path, train__use_vllm=True)._check_vllm()
    executor(tmp_path, train__use_vllm=True, backtrack__context="soft")._check_vllm()


def test_the_losses_offered_are_those_of_trl():
    assert set(CHOICES["loss_type"]) == set(trl_losses())


def test_useless_keys_are_keys_of_trl():
    assert KEYS_WITHOUT_EFFECT.keys() <= {field.name for field in dataclasses.fields(GRPOConfig)}
