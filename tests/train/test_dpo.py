"""DPO against log-probabilities and a loss written by hand, the reference, resume, what is saved and refused."""

import inspect
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from llmhalluc.backtrack import CONTEXTS, IGNORE, layout
from llmhalluc.data.collator import DrawSampler
from llmhalluc.data.dpo import Pair
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.train.dpo import LOSS_TYPES, METRICS, DPOExecutor, decision_weights
from llmhalluc.train.finished import final_model
from llmhalluc.train.sft import SFTExecutor
from tests.train.tiny_run import config

MODELS = {
    "llama": None,
    "qwen3": dict(
        model_type="qwen3", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, initializer_range=0.2,
    ),
    "gpt2": dict(
        model_type="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.1, initializer_range=0.2
    ),
}  # fmt: skip
DPO = dict(train__stage="dpo", data__converter="backtrack_dpo", train__beta=0.5)


def dpo_config(output_dir, **dotted):
    return config(output_dir, **DPO | dotted)


def prepared(output_dir, **dotted) -> DPOExecutor:
    """An executor with everything but the training done."""
    executor = DPOExecutor(dpo_config(output_dir, **dotted))
    executor.load_model()
    executor.load_data()
    executor.make_trainer()
    return executor


def family(name: str) -> dict:
    return {} if MODELS[name] is None else {"model__from_config": MODELS[name]}


def plain_copy(model):
    """Stock weights without a hook, a patched forward or a context."""
    copied = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64).eval()
    copied.load_state_dict(model.state_dict())
    return copied


def token_logps(model, pair: Pair, side: str, backtrack_id: int, context: str) -> torch.Tensor:
    """The layout of prompt and emitted ids, its mask spelled out, one trace at a time: log-probs of the completion."""
    completion = pair.shared_ids + getattr(pair, f"{side}_ids")
    rows, n = layout(pair.prompt_ids, completion, backtrack_id, context), len(pair.prompt_ids) + len(completion)
    mask = torch.tensor([[[[j <= i < rows.visible_until[j] for j in range(n)] for i in range(n)]]])
    logits = model(
        input_ids=torch.tensor([rows.input_ids]), position_ids=torch.tensor([rows.position_ids]), attention_mask=mask
    ).logits[0]
    emitted = torch.tensor(pair.prompt_ids + completion)
    start = n - len(getattr(pair, f"{side}_ids"))
    return logits.log_softmax(-1)[range(start - 1, n - 1), emitted[start:]]


def slow_weights(ids: list[int], backtrack_id: int, decay: float) -> list[float]:
    opening = next((i for i, token in enumerate(ids) if token != backtrack_id), len(ids))
    raw = [decay ** max(0, t - opening) for t in range(len(ids))]
    return [len(ids) * weight / sum(raw) for weight in raw]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["sequence", "token"])
def test_law3_loss_and_logps_are_those_of_the_layout_scored_directly(tmp_path, name, context, loss):
    executor = prepared(
        tmp_path, **family(name), backtrack__context=context, backtrack__max_run=9, train__loss=loss,
        train__loss_decay=0.8, train__per_device_train_batch_size=8,
    )  # fmt: skip
    trainer, backtrack_id = executor.trainer, executor.backtrack_id
    reference = plain_copy(executor.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in executor.model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    policy = plain_copy(executor.model)
    executor.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any()
    found = trainer.compute_loss(trainer.model, dict(batch)).item()
    total, sums = 0.0, {}
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, 32))[:8]
    for draw in draws:
        pair = executor.dataset.pair(*draw)
        ratios = {}
        for side in ("chosen", "rejected"):
            decay = 0.8 if loss == "token" else 1.0
            weights = torch.tensor(slow_weights(getattr(pair, f"{side}_ids"), backtrack_id, decay), dtype=torch.float64)
            of = {m: token_logps(m, pair, side, backtrack_id, context) @ weights for m in (policy, reference)}
            ratios[side] = of[policy] - of[reference]
            sums[side] = sums.get(side, 0.0) + of[policy].item() / len(draws)
            sums[f"rewards/{side}"] = sums.get(f"rewards/{side}", 0.0) + 0.5 * ratios[side].item() / len(draws)
        total -= functional.logsigmoid(0.5 * (ratios["chosen"] - ratios["rejected"])).item() / len(draws)
    assert found == pytest.approx(total, rel=1e-9)
    metrics = trainer._metrics["train"]
    for side in ("chosen", "rejected"):
        assert metrics[f"logps/{side}"] == pytest.approx([sums[side]], rel=1e-9)
        assert metrics[f"rewards/{side}"] == pytest.approx([sums[f"rewards/{side}"]], rel=1e-9, abs=1e-9)
    assert abs(found - math.log(2)) > 1e-4


@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(5, 9), max_size=12)), min_size=1, max_size=4),
    decay=st.floats(0.05, 1.0),
)
def test_decision_weights_equal_a_slow_reference(rows, decay):
    backtrack_id = 7
    width = max(n_prompt + len(ids) for n_prompt, ids in rows) + 1
    labels = torch.tensor([[IGNORE] * n + ids + [IGNORE] * (width - n - len(ids)) for n, ids in rows])
    found = decision_weights(labels, backtrack_id, decay)
    for row, (n_prompt, ids) in zip(found, rows, strict=True):
        expected = [0.0] * width
        expected[n_prompt : n_prompt + len(ids)] = slow_weights(ids, backtrack_id, decay)
        assert row.tolist() == pytest.approx(expected[1:], rel=1e-4, abs=1e-6)
        assert row.sum().item() == pytest.approx(len(ids), rel=1e-4)
        assert (row[n_prompt - 1 : n_prompt - 1 + len(ids)].diff() <= 0).all()  # what is decided first weighs most


def test_weights_of_a_pair_worked_by_hand():
    """⌫ ⌫ a b c with γ = 1/2: 1 1 1 1/2 1/4, five tokens; d e: 1 1/2, two tokens."""
    labels = torch.tensor([[IGNORE, IGNORE, 7, 7, 1, 2, 3], [IGNORE, IGNORE, 4, 5, IGNORE, IGNORE, IGNORE]])
    scale, other = 5 / 3.75, 2 / 1.5
    expected = [[0, scale, scale, scale, scale / 2, scale / 4], [0, other, other / 2, 0, 0, 0]]
    torch.testing.assert_close(decision_weights(labels, 7, 0.5), torch.tensor(expected))
    assert (decision_weights(labels, 7, 1.0) == (labels[:, 1:] != IGNORE)).all()


def score(executor: DPOExecutor, of: str) -> torch.Tensor:
    """Log-probabilities of the first batch by the policy or the reference, through TRL's own calls."""
    trainer = executor.trainer
    rows = [executor.dataset[draw] for draw in list(DrawSampler(len(executor.dataset), 5, 99))[:6]]
    batch = trainer.data_collator(rows)
    if of == "reference":
        return torch.cat(trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch))
    with torch.no_grad():
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE)
        kwargs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return trainer.model(**kwargs, labels=labels, fused_lm_head=True).log_probs.sum(1)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["full", "lora", "lora_continued"])
def test_law3_law7_the_reference_is_the_model_at_the_start_and_stays_it(tmp_path, kind, tied):
    start = SFTExecutor(config(tmp_path / "base", train__max_steps=8))
    start.config.model.from_config["tie_word_embeddings"] = tied
    start.run()
    given = dict(model__from_config=None, model__tokenizer=None)
    lora = dict(model__finetuning="lora", model__lora_r=2)
    folder = tmp_path / "base"
    if kind == "lora_continued":
        first = dict(model__name_or_path=str(folder), train__max_steps=20, train__merge=False)
        SFTExecutor(config(tmp_path / "adapter", **given, **lora, **first)).run()
        folder = tmp_path / "adapter"
    options = given | (lora if kind != "full" else {}) | {"model__name_or_path": str(folder)}
    executor = prepared(tmp_path / "dpo", **options, train__max_steps=12, backtrack__max_run=9)
    trainable = sum(p.numel() for p in executor.model.parameters() if p.requires_grad)

    before = score(executor, "policy")
    torch.testing.assert_close(score(executor, "reference"), before, rtol=1e-12, atol=1e-12)
    stock = load(ModelArguments(name_or_path=str(folder), device="cpu", dtype="float64"), executor.config.backtrack)
    rows = [executor.dataset.pair(*draw) for draw in list(DrawSampler(len(executor.dataset), 5, 99))[:6]]
    slow = [
        token_logps(plain_copy(stock.model), pair, side, executor.backtrack_id, "block").sum()
        for side in ("chosen", "rejected")
        for pair in rows
    ]
    torch.testing.assert_close(before, torch.stack(slow), rtol=1e-9, atol=1e-9)

    executor.fit()
    torch.testing.assert_close(score(executor, "reference"), before, rtol=1e-12, atol=1e-12)
    after = score(executor, "policy")
    assert (after - before).abs().max() > 0.01
    record = executor.save()
    assert record["loss"][0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert record["trainable_parameters"] == trainable
    assert not [path for path in tmp_path.rglob("ref*") if path.is_dir()]
    trained = load(
        ModelArguments(name_or_path=str(final_model(tmp_path / "dpo")), device="cpu", dtype="float64"), None
    ).model
    slow = [
        token_logps(plain_copy(trained), pair, side, executor.backtrack_id, "block").sum()
        for side in ("chosen", "rejected")
        for pair in rows
    ]
    torch.testing.assert_close(torch.stack(slow), after, rtol=1e-9, atol=1e-9)


def test_reference_and_policy_are_scored_in_the_same_precision(tmp_path):
    executor = prepared(tmp_path, model__dtype="float32", train__bf16=True, train__learning_rate=0.0)
    executor.fit()
    for entry in executor.record()["loss"]:
        assert entry["loss"] == pytest.approx(math.log(2), rel=1e-6)
        assert entry["rewards/margins"] == 0.0


@pytest.mark.parametrize("loss", ["sequence", "token"])
def test_training_lowers_the_loss_and_raises_the_accuracy_of_the_rewards(tmp_path, loss):
    executor = DPOExecutor(
        dpo_config(
            tmp_path, train__loss=loss, train__max_steps=40, train__logging_steps=10, data__task={"count": 200},
            train__per_device_train_batch_size=8, train__learning_rate=0.003,
        )
    )  # fmt: skip
    record = executor.run()
    first, last = record["loss"][0], record["loss"][-1]
    assert first["loss"] > last["loss"] < 0.5
    assert first["rewards/accuracies"] < last["rewards/accuracies"] > 0.8
    assert set(METRICS) | {"step", "tokens", "accuracy"} < set(last)
    assert record == json.loads((tmp_path / "train.json").read_text())
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["sft"], ["sigmoid"]])
def test_trap24_the_loss_does_not_depend_on_how_a_batch_is_split(tmp_path, loss):
    found = []
    for size, steps in ((8, 1), (4, 2), (1, 8)):
        executor = prepared(
            tmp_path / str(size), train__loss_type=loss, train__max_steps=2, train__logging_steps=1,
            train__per_device_train_batch_size=size, train__gradient_accumulation_steps=steps, data__task={"count": 32},
        )  # fmt: skip
        executor.trainer.train()
        found.append([entry["loss"] for entry in executor.trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], abs=2e-6) and found[2] == pytest.approx(found[0], abs=2e-6)


def test_tokens_and_pairs_are_counted_exactly_over_every_draw_once(tmp_path):
    executor = prepared(tmp_path, train__gradient_accumulation_steps=2, train__logging_steps=3)
    executor.fit()
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, 32))[:32]
    items = [executor.dataset[draw] for draw in draws]
    tokens = [2 * len(i["prompt_ids"]) + len(i["chosen_ids"]) + len(i["rejected_ids"]) for i in items]
    record = executor.record()
    assert (record["tokens"], record["examples"], record["steps"]) == (sum(tokens), 32, 4)
    assert [(e["step"], e["tokens"]) for e in record["loss"]] == [(3, sum(tokens[:24])), (4, sum(tokens))]


def test_max_tokens_sets_the_steps(tmp_path):
    executor = prepared(tmp_path, train__max_steps=None, train__max_tokens=12_000, data__task={"count": 300})
    executor.fit()
    assert executor.record()["tokens"] == pytest.approx(12_000, rel=0.03)


def result(folder: Path) -> tuple:
    record = json.loads((folder / "train.json").read_text())
    assert record.pop("seconds") > 0
    return record, next(folder.glob("*model.safetensors")).read_bytes()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resumed_from_a_checkpoint_it_ends_like_an_unbroken_run(tmp_path, kind):
    options = dict(
        train__max_steps=19, train__save_strategy="steps", train__save_steps=5, train__logging_steps=4,
        train__gradient_accumulation_steps=2, data__task={"count": 40}, train__loss="token",
    )  # fmt: skip
    if kind == "lora":
        SFTExecutor(config(tmp_path / "base", train__max_steps=1)).run()
        options |= dict(
            model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"),
            model__finetuning="lora", train__disable_dropout=False, model__lora_dropout=0.2,
        )  # fmt: skip
    DPOExecutor(dpo_config(tmp_path / "a", **options)).run()
    for step in (5, 15) if kind == "full" else (15,):
        folder = tmp_path / f"b{step}"
        folder.mkdir()
        shutil.copy(tmp_path / "a/run.json", folder)
        shutil.copytree(tmp_path / f"a/checkpoint-{step}", folder / f"checkpoint-{step}")
        DPOExecutor(dpo_config(folder, **options, train__resume=True)).run()
        assert result(folder) == result(tmp_path / "a")


def test_ready_pairs_are_evaluated_and_any_loss_of_trl_runs(tmp_path):
    rows = [{"prompt": [4, 5 + i], "chosen": [8 + i, 69, 9, 2], "rejected": [10 + i, 2]} for i in range(12)]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = dict(
        data__task={}, data__dataset=str(tmp_path / "train.jsonl"), data__eval_dataset=str(tmp_path / "test.jsonl")
    )
    executor = prepared(
        tmp_path / "run", **data, data__converter="dpo", train__loss_type=["sigmoid", "sft"], train__max_steps=4,
        train__eval_strategy="steps", train__eval_steps=2, train__label_smoothing=0.1,
    )  # fmt: skip
    executor.fit()
    record, trainer = executor.record(), executor.trainer
    assert [entry["step"] for entry in record["eval_loss"]] == [2, 4]
    assert all(set(METRICS) < set(entry) for entry in record["eval_loss"])
    batch = trainer.data_collator([executor.dataset[i] for i in range(4)])
    trainer.loss_weights, losses = [1.0], {}
    for kind in LOSS_TYPES:
        trainer.loss_types = [kind]
        losses[kind] = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert all(map(math.isfinite, losses.values())) and len(set(losses.values())) > 10


def test_trl_still_is_what_the_private_hooks_assume():
    """A new TRL that names these otherwise must fail here, not train on something else."""
    source = inspect.getsource(DPOTrainer)
    prepare = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert prepare == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert "train_dataset = self._prepare_dataset(train_dataset," in source
    assert "eval_dataset = self._prepare_dataset(eval_dataset," in source
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in source
    assert 'model.add_adapter("ref", default_config)' in source and '"ref" in unwrapped_model.peft_config' in source
    assert re.findall(r'loss_type == "(\w+)"', source) == list(LOSS_TYPES)


def test_batches_hold_the_ids_of_the_draws(tmp_path):
    executor = prepared(tmp_path)
    batch = next(iter(executor.trainer.get_train_dataloader()))
    draws = list(DrawSampler(len(executor.dataset), executor.data_seed, 16))[:4]
    for i, item in enumerate(executor.dataset[draw] for draw in draws):
        for row, side in ((i, "chosen_ids"), (4 + i, "rejected_ids")):
            real = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][real].tolist() == item["prompt_ids"] + item[side]
            scored = batch["completion_mask"][row].bool()
            assert batch["input_ids"][row][scored].tolist() == item[side]


def test_a_loss_that_is_not_finite_names_the_step_and_saves_nothing(tmp_path):
    executor = DPOExecutor(dpo_config(tmp_path, train__learning_rate=1e308, train__max_grad_norm=0.0))
    with pytest.raises(UserError, match=r"the loss is nan at step 2: lower train.learning_rate"):
        executor.run()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}


@pytest.mark.parametrize(
    ("dotted", "sentence"),
    [
        ({"data__converter": "sudoku_backtrack"}, "data.converter is sudoku_backtrack, which makes no pairs for dpo"),
        ({"train__precompute_ref_log_probs": True}, "train.precompute_ref_log_probs has no effect here"),
        ({"train__max_length": 64}, "train.max_length has no effect here"),
        ({"train__padding_free": True}, "train.padding_free has no effect here"),
        ({"train__loss_type": ["sigmod"]}, "train.loss_type is sigmod"),
        ({"train__loss_type": ["exo_pair"]}, "Label smoothing must be greater than 0.0"),
        ({"train__loss": "token", "train__use_weighting": True}, "train.use_weighting weights tokens in its own way"),
        ({"train__loss": "token", "train__ld_alpha": 0.5}, "train.ld_alpha weights tokens in its own way"),
        ({"train__keep_share": 0.5, "data__converter": "dpo"}, "train.keep_share is 0.5, but data.converter dpo has"),
        ({"train__sync_ref_model": True, "train__resume": True}, "a checkpoint has no reference"),
        ({"train__eval_strategy": "epoch"}, "train.eval_strategy is epoch"),
        ({"train__max_tokens": 1000}, "train.max_tokens and train.max_steps are both set"),
        ({"data__max_length": 18}, "data.dataset sudoku makes no pair"),
        ({"data__eval_split": "test"}, "evaluation data are never corrupted"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, dotted, sentence):
    with pytest.raises(UserError) as caught:
        DPOExecutor(dpo_config(tmp_path, **dotted)).run()
    (told,) = caught.value.sentences
    assert sentence in told
