"""Canaries of what we use of TRL and of transformers' Trainer in private: each fails when its patch is taken out."""

import contextlib
import inspect
import types

import pytest
import torch
from transformers import TrainerCallback
from trl import DPOTrainer, GRPOTrainer
from trl.trainer import base_trainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from llmhalluc.data.collator import DrawSampler
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.peft import add_adapter
from llmhalluc.train import grpo, trl_patches
from llmhalluc.train.dpo import DPOExecutor
from llmhalluc.train.scoring import score_through_model
from llmhalluc.train.sft import RecordDataset, SFTExecutor
from tests import canaries
from tests.tiny import tiny_model
from tests.train.test_grpo import trainer as grpo_run
from tests.train.tiny_run import config

STEPS = dict(train__save_strategy="steps", train__save_steps=1, train__max_steps=1)


def prepared(executor_class, folder, **dotted):
    """An executor with everything but the training done."""
    executor = executor_class(config(folder, **dotted))
    executor.load_model()
    executor.load_data()
    executor.make_trainer()
    return executor


def dpo(folder):
    return prepared(DPOExecutor, folder, train__stage="dpo", data__converter="backtrack_dpo")


class At(TrainerCallback):
    """Calls `do` at an event of the first step."""

    def __init__(self, event, do):
        self.done = False
        setattr(self, event, lambda *args, **kwargs: self.once(do))

    def once(self, do):
        if not self.done:
            self.done = True
            do()


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def draws_come_from_our_sampler(folder, monkeypatch):
    executor = prepared(SFTExecutor, folder)
    batch = next(iter(executor.trainer.get_train_dataloader()))
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, 16))[:4]
    assert batch["records"][:, 0].tolist() == [draw.index for draw in draws]


def progress_is_the_first_file_of_a_checkpoint(folder, monkeypatch):
    prepared(SFTExecutor, folder, **STEPS).trainer.train()
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoint-1").iterdir()}
    assert made.pop("progress_0.json") <= min(made.values())
    assert "trainer_state.json" in made


def weights_come_with_the_decoding_loop(folder, monkeypatch):
    trainer = prepared(SFTExecutor, folder, **STEPS).trainer
    trainer.train()
    trainer.save_model(str(folder / "final"))
    for name in ("checkpoint-1", "final"):
        assert (folder / name / "custom_generate" / "generate.py").is_file()


def nothing_is_sent(folder, monkeypatch):
    sent = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: sent.append(args))
    monkeypatch.delenv("CI", raising=False)
    prepared(SFTExecutor, folder)
    assert not sent


def pairs_stay_as_they_are(folder, monkeypatch):
    executor = dpo(folder)
    executor.eval_dataset = executor.dataset
    executor.make_trainer()
    assert executor.trainer.eval_dataset is executor.dataset


def an_epochs_order_depends_on_its_number_alone(folder, monkeypatch):
    run = grpo_run(folder)
    run.sampler.set_epoch(0)
    first = list(run.sampler)
    assert first == list(GRPOTrainer._get_train_sampler(run))  # TRL's own in the first epoch
    run.sampler.set_epoch(1)
    assert list(run.sampler) != first
    run.sampler.set_epoch(0)
    assert list(run.sampler) == first


def a_trainer_is_made_from_one_row(folder, monkeypatch):
    for executor in (prepared(SFTExecutor, folder / "sft"), dpo(folder / "dpo")):
        trained_on = executor.trainer.train_dataset
        trained_on = trained_on.traces if isinstance(trained_on, RecordDataset) else trained_on
        assert trained_on is executor.dataset


def losses_since_the_last_log_are_read(folder, monkeypatch):
    every = prepared(SFTExecutor, folder / "every", train__max_steps=2).trainer
    every.train()
    trainer, seen = prepared(SFTExecutor, folder / "second", train__max_steps=2, train__logging_steps=2).trainer, []
    trainer.add_callback(At("on_step_end", lambda: seen.append(trl_patches.unlogged_loss(trainer))))
    trainer.train()
    assert seen == [{"loss": pytest.approx(losses(every)[0], rel=1e-12), "last_log": 0}]


def losses_before_a_resume_are_logged(folder, monkeypatch):
    logged = []
    for name, saved in (("plain", {"loss": 0.0, "last_log": 0}), ("resumed", {"loss": 1.0, "last_log": -2})):
        trainer = prepared(SFTExecutor, folder / name, train__max_steps=2, train__logging_steps=2).trainer
        restore = At("on_train_begin", lambda t=trainer, s=saved: trl_patches.restore_unlogged_loss(t, s))
        trainer.add_callback(restore)
        trainer.train()
        logged += losses(trainer)
    assert logged[1] == pytest.approx((2 * logged[0] + 1.0) / 4, rel=1e-12)


def metrics_wait_for_the_next_log(folder, monkeypatch):
    trainer = dpo(folder).trainer
    trainer.model.train()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    waiting = trl_patches.unlogged_metrics(trainer)
    waiting["rewards/chosen"].append(waiting["rewards/chosen"][0] + 2.0)
    expected = waiting["rewards/chosen"][0] + 1.0
    trainer.log({"loss": 0.0})
    assert trainer.state.log_history[-1]["rewards/chosen"] == pytest.approx(expected)


def saved_weights_are_loaded(folder, monkeypatch):
    trainer = prepared(SFTExecutor, folder).trainer
    trainer.save_model(str(folder / "saved"))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 1.0
    trl_patches.load_weights(trainer, folder / "saved")
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def the_models_own_head_answers_trl(folder, monkeypatch):
    for trainer_class in (DPOTrainer, GRPOTrainer):
        assert "fused_lm_head=True" in inspect.getsource(trainer_class)
    model = add_adapter(tiny_model("llama"), ModelArguments(name_or_path="x", finetuning="lora", lora_r=2), 63)
    add_fused_lm_head(model.get_base_model())
    score_through_model(model.get_base_model())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head" in name and parameter.requires_grad:  # the row of a token that PEFT trains
                parameter += 1.0
    ids = torch.tensor([[5, 6, 63, 7]])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
    expected = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    assert isinstance(found, FusedCausalLMOutput)
    torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-12)


def the_reference_adapter_has_the_rows_of_tokens(folder, monkeypatch):
    model = grpo_run(folder, lora=True, beta=0.1).model
    trained = {name: value for name, value in model.named_parameters() if "default" in name.split(".")}
    assert any("trainable_tokens" in name for name in trained)
    for name, value in trained.items():
        twin = ".".join(trl_patches.REFERENCE if part == "default" else part for part in name.split("."))
        assert torch.equal(model.get_parameter(twin), value), name


def the_reference_is_a_frozen_copy_with_its_context(folder, monkeypatch):
    run = grpo_run(folder, beta=0.1)
    assert run.ref_model is not run.model and run.ref_model.base_model.backtrack_context == ("block", 23)
    weights = run.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.ref_model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in run.ref_model.parameters())


def rollouts_of_two_steps(folder):
    """A run whose rollouts two steps take up, and what `rollout_state` says after the first of them."""
    run, seen = grpo_run(folder, num_iterations=2), []
    run.add_callback(At("on_step_end", lambda: seen.append(trl_patches.rollout_state(run))))
    run.train()
    return seen[0]


def the_rollouts_of_later_steps_are_read(folder, monkeypatch):
    state = rollouts_of_two_steps(folder)
    assert state["step"] == 1 and len(state["batches"]) == 1
    assert state["batches"][0]["completion_ids"].shape[0] == 12


def restored_rollouts_are_taken_up(folder, monkeypatch):
    state, calls = rollouts_of_two_steps(folder / "first"), []
    rollout = grpo.rollout
    monkeypatch.setattr(grpo, "rollout", lambda *args: calls.append(args) or rollout(*args))
    run = grpo_run(folder / "second", num_iterations=2, max_steps=1)
    run.add_callback(At("on_train_begin", lambda: trl_patches.restore_rollout_state(run, state)))
    run.train()
    assert losses(run) and not calls


def rounds_are_counted(folder, monkeypatch):
    run = grpo_run(folder, num_iterations=2, max_steps=4)
    run.train()
    assert trl_patches.grpo_round(run) == 2


def sharded_weights_are_gathered(folder, monkeypatch):
    run, gathered = grpo_run(folder), []
    assert callable(run._dist.summon_full_params)
    run._dist = types.SimpleNamespace(
        summon_full_params=lambda model, recurse: gathered.append(model) or contextlib.nullcontext()
    )
    grpo.rollout(run, run.settings, [*run.problems][:1])
    assert gathered == [run.model_wrapped]


def vllm_is_asked_as_trl_asks_it(folder, monkeypatch):
    names = [*inspect.signature(GRPOTrainer._generate_single_turn).parameters][:5]
    assert names == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]
    run = types.SimpleNamespace(_generate_single_turn=lambda *args: ([[9]], args))
    assert trl_patches.vllm_completions(run, [[1, 2]], 4) == ([[9]], ([[1, 2]], None, {}, 4))


def a_metric_of_rollouts_is_logged(folder, monkeypatch):
    run = grpo_run(folder, max_steps=1)
    run.train()
    assert any("erasures/mean" in entry for entry in run.state.log_history)


def nothing(*args, **kwargs):
    """In the place of a function that does something."""


# Patch -> (its check, what stands in its place when it is taken out; a method is the library's own then).
CANARIES = {
    "PatchedTrainer._get_train_sampler": (draws_come_from_our_sampler, None),
    "PatchedTrainer._save_checkpoint": (progress_is_the_first_file_of_a_checkpoint, None),
    "PatchedTrainer._save": (weights_come_with_the_decoding_loop, None),
    "PatchedTrainer._send_telemetry": (nothing_is_sent, None),
    "ReadyPairs._prepare_dataset": (pairs_stay_as_they_are, None),
    "GroupSampler.set_epoch": (an_epochs_order_depends_on_its_number_alone, None),
    "stand_in": (a_trainer_is_made_from_one_row, lambda *columns: []),
    "unlogged_loss": (losses_since_the_last_log_are_read, lambda trainer: {"loss": 0.0, "last_log": 0}),
    "restore_unlogged_loss": (losses_before_a_resume_are_logged, nothing),
    "unlogged_metrics": (metrics_wait_for_the_next_log, lambda trainer: {}),
    "load_weights": (saved_weights_are_loaded, nothing),
    "answer_fused_head": (the_models_own_head_answers_trl, nothing),
    "copy_to_reference": (the_reference_adapter_has_the_rows_of_tokens, nothing),
    "frozen_copy": (the_reference_is_a_frozen_copy_with_its_context, lambda model: model),
    "grpo_reference": (the_reference_is_a_frozen_copy_with_its_context, contextlib.nullcontext),
    "rollout_state": (the_rollouts_of_later_steps_are_read, lambda run: {"step": 0, "batches": None}),
    "restore_rollout_state": (restored_rollouts_are_taken_up, nothing),
    "grpo_round": (rounds_are_counted, lambda run: 0),
    "whole_weights": (sharded_weights_are_gathered, lambda run: contextlib.nullcontext()),
    "vllm_completions": (vllm_is_asked_as_trl_asks_it, lambda *args: ([], None)),
    "log_metric": (a_metric_of_rollouts_is_logged, nothing),
}
HOOKS = {"PatchedTrainer.before_checkpoint", "PatchedTrainer.after_weights"}  # ours, for a subclass


def test_every_patch_has_a_canary():
    assert canaries.patches(trl_patches) == CANARIES.keys() | HOOKS


@pytest.mark.parametrize("name", CANARIES)
def test_canary(name, tmp_path, monkeypatch):
    canaries.sings(trl_patches, name, CANARIES[name][0], tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CANARIES)
def test_canary_fails_without_its_patch(name, tmp_path, monkeypatch):
    check, instead = CANARIES[name]
    canaries.falls_silent(trl_patches, name, instead, check, tmp_path, monkeypatch)
