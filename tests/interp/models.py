"""Tiny models taken apart, and samples as `generate` writes them."""

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.interp.load import Model
from llmhalluc.interp.sites import Sites
from llmhalluc.models.context import apply_context
from llmhalluc.models.loader import Loaded
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

BT, EOS = 5, 2
ARCHITECTURES = (*FAMILIES, "qwen2", "gemma", "gemma2", "gemma3_text")


def causal_lm(architecture: str, layers: int = 3, dtype=torch.float64, seed: int = 0):
    """A tiny model of the architecture; Gemma's windows are shorter than the texts of the tests."""
    if architecture in FAMILIES:
        name = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
        return tiny_model(architecture, dtype=dtype, seed=seed, **{name: layers})
    config = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, initializer_range=0.3, vocab_size=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=EOS,
    )  # fmt: skip
    if architecture in ("gemma2", "gemma3_text"):
        config["sliding_window"] = 8
    torch.manual_seed(seed)
    # Gemma 2 caps the logits of its attention, which sdpa cannot.
    kernel = "eager" if architecture == "gemma2" else "sdpa"
    made = AutoConfig.for_model(architecture, **config)
    return AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation=kernel).eval()


def taken_apart(model, context: str = "soft", backtrack_id: int | None = None) -> Model:
    """A Model as `load_model` gives it, with the context in its forward."""
    apply_context(model, context, backtrack_id)
    return Model(Loaded(model, tiny_tokenizer(), backtrack_id, context), Sites(model), context)


def sample(prompt_ids: list[int], completion_ids: list[int], example: str = "test-0", number: int = 0) -> dict:
    """A line of generations/ with what the measurements read."""
    return {"example_id": example, "sample_id": number, "prompt_ids": prompt_ids, "completion_ids": completion_ids}


def some_ids(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(6, 64) for _ in range(count)]
