"""In the warm-up the BACKTRACK rows alone train; after it the rest trains as if the run had begun there."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from llmhalluc.backtrack import IGNORE
from llmhalluc.data.collator import DrawSampler
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build
from llmhalluc.train.sft import SFTExecutor
from llmhalluc.train.techniques import TechniqueExecutor
from llmhalluc.train.warmup import backtrack_rows, warm_up
from tests.train.tiny_run import raw

UNTIED = raw(".")["model"]["from_config"] | {"tie_word_embeddings": False}
TIED = UNTIED | {"tie_word_embeddings": True}
STEPS = {
    "train__max_steps": 5, "train__warmup_embeddings": 3, "train__weight_decay": 0.1, "train__save_strategy": "steps",
    "train__save_steps": 1, "train__gradient_accumulation_steps": 2, "train__max_grad_norm": 0.01,
    "train__lr_scheduler_type": "constant",
}  # fmt: skip


def executor(folder, **dotted) -> TechniqueExecutor:
    return TechniqueExecutor(build(raw(folder, **dotted)))


def changed(before: dict, after: dict) -> dict[str, list[int] | None]:
    """Names of the weights that differ, with the rows of matrices that do."""
    return {
        name: (before[name] != after[name]).reshape(len(before[name]), -1).any(1).nonzero().flatten().tolist()
        for name in before
        if not torch.equal(before[name], after[name])
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_the_backtrack_rows_change_and_then_everything(tmp_path, tied):
    run = executor(tmp_path, **STEPS, model__from_config=TIED if tied else UNTIED)
    run.load_model()
    start = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.run()
    rows = {"model.embed_tokens.weight": [run.backtrack_id]} | ({} if tied else {"lm_head.weight": [run.backtrack_id]})
    for step in (1, 2, 3):
        saved = load_file(tmp_path / f"checkpoint-{step}/model.safetensors")
        assert changed({name: start[name] for name in saved}, saved) == rows
        optimizer = torch.load(tmp_path / f"checkpoint-{step}/optimizer.pt")
        assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0, 0.1}
        assert len(optimizer["state"]) == len(rows)  # no memory is spent on frozen weights
    saved = load_file(tmp_path / "checkpoint-4/model.safetensors")
    assert changed({name: start[name] for name in saved}, saved).keys() == saved.keys()


def test_warm_up_equals_two_loops_written_by_hand(tmp_path):
    run = executor(tmp_path, **STEPS | {"train__save_strategy": "no"}, model__from_config=UNTIED)
    run.load_model()
    run.load_data()
    run.make_trainer()
    twin = type(run.model)(run.model.config).double()
    twin.load_state_dict(run.model.state_dict())
    matrices = [twin.get_input_embeddings().weight, twin.get_output_embeddings().weight]
    rows = [matrix.detach()[run.backtrack_id].clone().requires_grad_() for matrix in matrices]
    draws = list(DrawSampler(len(run.dataset), run.data_seed, 5 * 8))
    optimizer = torch.optim.AdamW(rows, lr=0.01, weight_decay=0.0)
    for step in range(5):
        if step == 3:
            decay = [p for name, p in twin.named_parameters() if "norm" not in name]
            rest = [p for name, p in twin.named_parameters() if "norm" in name]
            groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=0.01)
        traces = [run.dataset[draw] for draw in draws[8 * step : 8 * step + 8]]
        n_labels = sum(target != IGNORE for trace in traces for target in trace["labels"][1:])
        twin.zero_grad()
        for trace in traces:
            n, until = len(trace["input_ids"]), trace["visible_until"]
            mask = torch.tensor([[[[j <= i < until[j] for j in range(n)] for i in range(n)]]])
            ids, positions = (torch.tensor([trace[name]]) for name in ("input_ids", "position_ids"))
            logits = twin(input_ids=ids, position_ids=positions, attention_mask=mask).logits[0, :-1]
            target = torch.tensor(trace["labels"][1:])
            (functional.cross_entropy(logits, target, reduction="sum") / n_labels).backward()
        if step < 3:
            for row, matrix in zip(rows, matrices, strict=True):
                row.grad = matrix.grad[run.backtrack_id].clone()
        trained = rows if step < 3 else list(twin.parameters())
        torch.nn.utils.clip_grad_norm_(trained, 0.01)
        optimizer.step()
        if step < 3:
            with torch.no_grad():
                for row, matrix in zip(rows, matrices, strict=True):
                    matrix[run.backtrack_id] = row
    run.fit()
    for name, weight in run.model.state_dict().items():
        torch.testing.assert_close(weight, twin.state_dict()[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumed_in_the_warm_up_at_its_end_and_after_it(tmp_path, step):
    executor(tmp_path / "a", **STEPS).run()
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/run.json", tmp_path / "b")
    shutil.copytree(tmp_path / f"a/checkpoint-{step}", tmp_path / f"b/checkpoint-{step}")
    executor(tmp_path / "b", **STEPS, train__resume=True).run()
    records = [json.loads((tmp_path / name / "train.json").read_text()) | {"seconds": 0} for name in "ab"]
    assert records[0] == records[1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_of_an_adapter_the_rows_beside_it_train_first(tmp_path, tied):
    base = raw(tmp_path / "base", train__max_steps=1, model__from_config=TIED if tied else UNTIED)
    SFTExecutor(build(base)).run()
    lora = dict(
        model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"),
        model__finetuning="lora", model__lora_r=2,
    )  # fmt: skip
    run = executor(tmp_path / "lora", **STEPS, **lora)
    run.load_model()
    rows = backtrack_rows(run.model, run.backtrack_id)
    assert len(rows) == (1 if tied else 2) and set(rows.values()) == {None}
    start = {name: weight.clone() for name, weight in run.model.named_parameters()}
    run.load_data()
    run.make_trainer()
    run.trainer.args.max_steps = 3
    run.trainer.train()
    names = changed(start, dict(run.model.named_parameters()))
    assert len(names) == len(rows) and all("trainable_tokens" in name for name in names)


@pytest.mark.parametrize("sharding", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_sharded_gradients_are_refused(sharding):
    run = SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=False)
    setattr(run, sharding, True)
    with pytest.raises(UserError, match="^train.warmup_embeddings is 2, but this launcher shards gradients"):
        warm_up(run, 1, 2)
