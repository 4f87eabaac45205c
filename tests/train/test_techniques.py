"""Weighted corrections and sets of targets against loops written by hand; batches may be split as one likes."""

import json

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmhalluc.backtrack import IGNORE, erasures
from llmhalluc.data.collator import DrawSampler
from llmhalluc.hparams.parser import build
from llmhalluc.train.executors import executor_of
from llmhalluc.train.sft import SFTExecutor
from llmhalluc.train.techniques import TechniqueExecutor, with_choices
from tests.train.tiny_run import raw

COUNTDOWN = {
    "model__tokenizer": "countdown", "data__dataset": "countdown", "data__converter": "countdown_backtrack",
    "data__task": {"count": 30},
}  # fmt: skip
POSITION = {"train__weighting": "position", "train__correction_weight": 3.0, "train__loss_decay": 0.6}
TECHNIQUES = {
    "position": POSITION,
    "confidence": {"train__weighting": "confidence"},
    "set": {"train__targets": "set"},
    "set and confidence": {"train__targets": "set", "train__weighting": "confidence"},
}


def prepared(output_dir, **dotted) -> TechniqueExecutor:
    """An executor with everything but the training done."""
    built = build(raw(output_dir, **dotted))
    executor = executor_of("sft", built.techniques())(built)
    executor.load_model()
    executor.load_data()
    executor.make_trainer()
    return executor


def weight_of(config, distance: int, run: int, p: float) -> float:
    if config.weighting == "position":
        return 1 + (config.correction_weight - 1) * config.loss_decay**distance
    return 1 - p if config.weighting == "confidence" and distance < run else 1.0


def by_hand(executor: TechniqueExecutor, model, draws) -> tuple[float, torch.Tensor]:
    """The loss of a step: one trace and one label at a time, divided by the sum of the weights."""
    config, backtrack_id, total, weights = executor.config.train, executor.backtrack_id, 0.0, 0.0
    for draw in draws:
        trace, (prompt, ids) = executor.dataset[draw], executor.dataset.trace(*draw)
        n, until = len(trace["input_ids"]), trace["visible_until"]
        mask = torch.tensor([[[[j <= i < until[j] for j in range(n)] for i in range(n)]]])
        logits = model(
            input_ids=torch.tensor([trace["input_ids"]]), position_ids=torch.tensor([trace["position_ids"]]),
            attention_mask=mask,
        ).logits[0]  # fmt: skip
        erased = {event.token for event in erasures(ids, backtrack_id)}
        distance = run = 0
        for at, token in enumerate(ids):
            row = len(prompt) + at
            is_backtrack = token == backtrack_id
            if is_backtrack:
                run = run + 1 if at and ids[at - 1] == backtrack_id else 1
                distance = -1
            if trace["labels"][row] != IGNORE:
                right = trace["choices"].get(row, [trace["labels"][row]])
                probability = logits[row - 1].softmax(-1)[right].sum()
                corrects = run and not is_backtrack and at not in erased
                weight = weight_of(config, distance, run, probability.item()) if corrects else 1.0
                total = total - weight * probability.log()
                weights += weight
            distance += 1
    return total / weights


@pytest.mark.parametrize("name", TECHNIQUES)
def test_losses_and_weights_are_those_of_a_loop_written_by_hand(tmp_path, name):
    steps, batch = 3, 8
    executor = prepared(
        tmp_path, **COUNTDOWN, **TECHNIQUES[name], train__gradient_accumulation_steps=2, train__max_steps=steps,
        train__lr_scheduler_type="constant", train__max_grad_norm=0.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(executor.model.config, dtype=torch.float64)
    model.load_state_dict(executor.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, steps * batch))
    losses = []
    for step in range(steps):
        loss = by_hand(executor, model, draws[step * batch : (step + 1) * batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    executor.fit()
    assert [entry["loss"] for entry in executor.record()["loss"]] == pytest.approx(losses, rel=1e-6)
    for key, weight in executor.model.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("error_labels", ["train", "redirect"])
def test_trap24_a_step_does_not_depend_on_how_its_batch_is_split(tmp_path, name, error_labels):
    weights = []
    for size, parts, packing in ((8, 1, False), (4, 2, False), (2, 4, True)):
        executor = prepared(
            tmp_path / str(size), **COUNTDOWN, **TECHNIQUES[name], train__per_device_train_batch_size=size,
            train__gradient_accumulation_steps=parts, train__packing=packing, train__max_steps=3,
            backtrack__error_labels=error_labels,
        )  # fmt: skip
        executor.fit()
        weights.append(executor.model.state_dict())
    for other in weights[1:]:
        for key, weight in weights[0].items():
            torch.testing.assert_close(weight, other[key], rtol=1e-9, atol=1e-11)


def test_the_mean_weight_is_one_and_weights_differ(tmp_path):
    executor = prepared(tmp_path, **POSITION, train__gradient_accumulation_steps=2)
    batches, total = executor.trainer.get_batch_samples(iter(executor.trainer.get_train_dataloader()), 2, "cpu")
    labels = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
    weights = torch.cat([batch["weights"] for batch in batches])
    assert len(weights) == labels and weights.sum().item() == pytest.approx(total.item())
    assert (weights * labels / total).mean().item() == pytest.approx(1.0)
    assert weights.min() == 1.0 and weights.max() == 3.0


def test_weights_of_one_change_nothing(tmp_path):
    plain, weighted = (
        prepared(tmp_path / name, **keys)
        for name, keys in (("plain", {}), ("one", POSITION | {"train__correction_weight": 1.0}))
    )
    assert type(plain) is SFTExecutor and type(weighted) is TechniqueExecutor
    for executor in (plain, weighted):
        executor.fit()
    for key, weight in plain.model.state_dict().items():
        torch.testing.assert_close(weight, weighted.model.state_dict()[key], rtol=1e-12, atol=1e-14)


def test_the_evaluation_loss_is_as_without_techniques(tmp_path):
    losses = [
        prepared(tmp_path / str(len(keys)), **COUNTDOWN, **keys, data__eval_split="test[:8]").trainer.evaluate()[
            "eval_loss"
        ]
        for keys in ({}, TECHNIQUES["set and confidence"])
    ]
    assert losses[0] == losses[1]


def test_a_set_of_targets_is_the_log_of_summed_probabilities():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    losses = functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3]), reduction="none")
    found = with_choices(losses, logits, torch.tensor([[1, 1, 4, -1], [3, 0, 3, 5]]))
    probabilities = logits.softmax(-1)
    expected = [-probabilities[0, 0].log(), -probabilities[1, [1, 4]].sum().log(), -probabilities[2, 2].log(),
                -probabilities[3, [0, 3, 5]].sum().log()]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(expected))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_a_run_resumes_with_weights_and_sets(tmp_path):
    keys = COUNTDOWN | TECHNIQUES["set and confidence"] | {"train__save_strategy": "steps", "train__save_steps": 2}
    whole = executor_of("sft", True)(build(raw(tmp_path / "a", **keys))).run()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/run.json").rename(tmp_path / "b/run.json")
    (tmp_path / "a/checkpoint-2").rename(tmp_path / "b/checkpoint-2")
    again = executor_of("sft", True)(build(raw(tmp_path / "b", **keys, train__resume=True))).run()
    assert whole | {"seconds": 0} == again | {"seconds": 0}
    assert json.loads((tmp_path / "b/train.json").read_text())["loss"] == whole["loss"]
    bytes_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert bytes_of[0] == bytes_of[1]
