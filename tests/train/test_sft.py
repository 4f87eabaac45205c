"""SFT against a loop written by hand, exact counts, what is saved, and what is refused."""

import importlib.util
import json
import os
from typing import get_args, get_type_hints

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmhalluc.backtrack import IGNORE, replay
from llmhalluc.data.collator import DrawSampler, TraceCollator
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import ModelArguments, TrainArguments
from llmhalluc.models.loader import load
from llmhalluc.train.base import final_model
from llmhalluc.train.executors import EXECUTORS
from llmhalluc.train.sft import RecordCollator, RecordDataset, SFTExecutor
from llmhalluc.train.trackers import use_trackers
from tests.train.tiny_run import config


def prepared(output_dir, **dotted) -> SFTExecutor:
    """An executor with everything but the training done."""
    executor = SFTExecutor(config(output_dir, **dotted))
    executor.load_model()
    executor.load_data()
    executor.make_trainer()
    return executor


def reference(executor: SFTExecutor, steps: int, batch: int, learning_rate: float):
    """Losses and final weights of plain torch: one trace at a time, the mask spelled out, AdamW."""
    model = AutoModelForCausalLM.from_config(executor.model.config, dtype=torch.float64)
    model.load_state_dict(executor.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, steps * batch))
    losses = []
    for step in range(steps):
        traces = [executor.dataset[draw] for draw in draws[step * batch : (step + 1) * batch]]
        n_labels = sum(target != IGNORE for trace in traces for target in trace["labels"][1:])
        total = 0.0
        for trace in traces:
            n, until = len(trace["input_ids"]), trace["visible_until"]
            mask = torch.tensor([[[[j <= i < until[j] for j in range(n)] for i in range(n)]]])
            logits = model(
                input_ids=torch.tensor([trace["input_ids"]]),
                position_ids=torch.tensor([trace["position_ids"]]),
                attention_mask=mask,
            ).logits[0]
            loss = functional.cross_entropy(logits[:-1], torch.tensor(trace["labels"][1:]), reduction="sum") / n_labels
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, model.state_dict()


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("context", ["soft", "block", "rewind"])
def test_training_equals_a_loop_written_by_hand(tmp_path, context, packing):
    steps, learning_rate = 4, 0.01
    executor = prepared(
        tmp_path, train__packing=packing, train__gradient_accumulation_steps=2, train__max_steps=steps,
        train__learning_rate=learning_rate, train__lr_scheduler_type="constant", backtrack__context=context,
    )  # fmt: skip
    losses, weights = reference(executor, steps, batch=8, learning_rate=learning_rate)
    executor.fit()
    logged = [entry["loss"] for entry in executor.record()["loss"]]
    assert logged == pytest.approx(losses, rel=1e-6)  # the Trainer adds up in float32
    for name, weight in executor.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-9, atol=1e-11)


def test_tokens_and_examples_are_counted_exactly(tmp_path):
    executor = prepared(tmp_path, train__packing=True, train__gradient_accumulation_steps=2, train__logging_steps=3)
    executor.fit()
    draws = list(DrawSampler(50, executor.data_seed, 4 * 8))[: 4 * 8]
    lengths = [len(executor.dataset[draw]["input_ids"]) for draw in draws]
    record = executor.record()
    assert (record["tokens"], record["examples"], record["steps"]) == (sum(lengths), 32, 4)
    assert [(entry["step"], entry["tokens"]) for entry in record["loss"]] == [(3, sum(lengths[:24])), (4, sum(lengths))]


@pytest.mark.parametrize("error_labels", ["train", "mask", "redirect"])
def test_trap3_no_label_mode_trains_on_the_prompt(tmp_path, error_labels):
    executor = prepared(tmp_path, backtrack__error_labels=error_labels)
    trainer, backtrack_id = executor.trainer, executor.backtrack_id
    batch = next(iter(trainer.get_train_dataloader()))
    draws = list(DrawSampler(50, executor.data_seed, 16))[: len(batch["records"])]
    completions = [executor.dataset.trace(*draw)[1] for draw in draws]
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    n_labels, n_tokens = int(trainer.sums["train"][2]), sum(map(len, completions))
    gone = n_tokens - sum(len(replay(ids, backtrack_id)) for ids in completions)  # erased tokens and BACKTRACKs
    n_erased = gone - sum(ids.count(backtrack_id) for ids in completions)
    assert n_erased > 0
    if error_labels == "redirect":
        assert n_tokens - n_erased < n_labels < n_tokens
    else:
        assert n_labels == n_tokens - (n_erased if error_labels == "mask" else 0)


def test_packed_loss_equals_padded_even_for_an_empty_prompt(tmp_path):
    trainer = prepared(tmp_path).trainer
    traces = [
        {"input_ids": ids, "labels": list(ids), "position_ids": list(range(n)), "visible_until": [n] * n}
        for ids in ([3, 4, 5], [6, 7, 8, 9, 4], [5, 5])
        for n in (len(ids),)
    ]
    rows = [RecordDataset(traces)[i] for i in range(3)]
    losses = [
        trainer.compute_loss(trainer.model, RecordCollator(TraceCollator(0, packing, max_length=9))(rows)).item()
        for packing in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert trainer.sums["eval"][2] == 2 * (2 + 4 + 1)


def test_evaluation_loss_is_a_mean_over_labels_however_rows_are_batched(tmp_path):
    losses = []
    for packing, batch in ((False, 7), (True, 3)):
        executor = prepared(
            tmp_path / str(packing), train__packing=packing, train__per_device_eval_batch_size=batch,
            train__eval_strategy="steps", train__eval_steps=2, data__eval_split="test[:20]",
        )  # fmt: skip
        losses.append(executor.trainer.evaluate()["eval_loss"])
        executor.fit()
        assert [entry["step"] for entry in executor.record()["eval_loss"]] == [2, 4]
    traces = [executor.eval_dataset[i] for i in range(len(executor.eval_dataset))]
    model, total, n_labels = prepared(tmp_path / "fresh").model, 0.0, 0
    for trace in traces:
        assert executor.backtrack_id not in trace["input_ids"]
        logits = model(input_ids=torch.tensor([trace["input_ids"]])).logits[0, :-1]
        target = torch.tensor(trace["labels"][1:])
        total += functional.cross_entropy(logits, target, reduction="sum").item()
        n_labels += int((target != IGNORE).sum())
    assert losses == pytest.approx([total / n_labels] * 2, rel=1e-12)


def test_max_tokens_sets_the_steps(tmp_path):
    executor = prepared(tmp_path, train__max_steps=None, train__max_tokens=12_000, data__task={"count": 300})
    executor.fit()
    record = executor.record()
    assert record["tokens"] == pytest.approx(12_000, rel=0.03)
    assert record["loss"][-1]["tokens"] == record["tokens"]
    assert executor.trainer.args.max_steps == record["steps"]


def test_a_full_run_leaves_a_model_that_loads_and_nothing_pickled(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **told: pytest.fail("it called the hub"))
    with pytest.raises(UserError, match="no finished training run"):
        final_model(tmp_path)
    executor = SFTExecutor(config(tmp_path, train__report_to="tensorboard"))
    record = executor.run()
    assert record == json.loads((tmp_path / "train.json").read_text())
    assert record["seconds"] > 0 and record["trainable_parameters"] == executor.model.num_parameters()
    assert {path.name for path in tmp_path.iterdir() if path.suffix not in (".safetensors", ".json")} == {
        ".lock", "custom_generate", "loss.png", "runs",
    }  # fmt: skip
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    loaded = load(ModelArguments(name_or_path=str(final_model(tmp_path)), device="cpu"), None)
    assert (loaded.backtrack_id, loaded.context) == (executor.backtrack_id, "block")
    assert loaded.model.config.use_cache
    for name, weight in executor.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    with pytest.raises(UserError, match="resume=true"):
        SFTExecutor(config(tmp_path, train__report_to="tensorboard")).run()
    assert SFTExecutor(config(tmp_path, train__resume=True, train__report_to="tensorboard")).run() == record


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_trap1_law7_lora_trains_the_backtrack_rows_and_saves_what_it_trained(tmp_path, tied):
    base = SFTExecutor(config(tmp_path / "base", train__max_steps=1, train__learning_rate=0.0))
    base.config.model.from_config["tie_word_embeddings"] = tied
    base.run()
    lora = dict(model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"))
    run = SFTExecutor(config(tmp_path / "lora", **lora, model__finetuning="lora", model__lora_r=2, train__max_steps=8))
    run.run()
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    merged = AutoModelForCausalLM.from_pretrained(final_model(tmp_path / "lora"), dtype=torch.float64)
    adapted = PeftModel.from_pretrained(start, tmp_path / "lora")
    prompt = AutoTokenizer.from_pretrained(tmp_path / "lora")("1..42.3..3.2.1..=", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(adapted(**prompt).logits, merged(**prompt).logits, rtol=1e-9, atol=1e-9)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        changed = (getattr(merged, name)().weight != getattr(fresh, name)().weight).any(1)
        assert changed.nonzero().flatten().tolist() == [run.backtrack_id]


def test_a_loss_that_is_not_finite_names_step_and_records_and_saves_nothing(tmp_path):
    executor = SFTExecutor(config(tmp_path, train__learning_rate=1e308, train__max_grad_norm=0.0))
    with pytest.raises(UserError, match=r"at step 2, on the records \[\d+, \d+, \d+, \d+\]"):
        executor.run()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}
    with pytest.raises(UserError, match="no finished training run"):
        final_model(tmp_path)


@pytest.mark.parametrize(
    ("dotted", "sentence"),
    [
        ({"train__padding_free": True}, "train.padding_free has no effect here"),
        ({"train__max_length": 64}, "train.max_length is 64"),
        ({"train__max_tokens": 1000}, "train.max_tokens and train.max_steps are both set"),
        ({"train__eval_strategy": "epoch"}, "train.eval_strategy is epoch"),
        ({"train__load_best_model_at_end": True, "train__eval_strategy": "steps"}, "load_best_model_at_end is True"),
        ({"data__max_length": 5}, "data.max_length"),
        ({"train__resume": True, "train__overwrite": True}, "train.resume and train.overwrite"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, dotted, sentence):
    with pytest.raises(UserError) as caught:
        SFTExecutor(config(tmp_path, **dotted)).run()
    (told,) = caught.value.sentences
    assert sentence in told


def test_trackers_must_be_there_and_wandb_stays_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else name)
    for key in ("MODE", "SILENT", "ERROR_REPORTING", "DIR"):
        monkeypatch.delenv(f"WANDB_{key}", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "false")
    use_trackers(["wandb", "tensorboard"], tmp_path)
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_SILENT"]) == ("offline", "false")
    with pytest.raises(UserError, match="train.report_to is trackio"):
        use_trackers("trackio", tmp_path)


def test_every_stage_of_the_configuration_has_an_executor():
    assert tuple(EXECUTORS) == get_args(get_type_hints(TrainArguments)["stage"])
