"""Tiny offline models and a tokenizer for tests: made from a config, seeded, float64 unless told otherwise."""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FAMILIES = ("llama", "qwen3", "gpt2")
_SIZES = {
    "llama": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=256),
    "qwen3": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=8, max_position_embeddings=256),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}  # fmt: skip
WORDS = "delete undo erase remove backspace a special token that erases the before it the cat sat on mat".split()


def tiny_model(family: str, vocab_size: int = 64, dtype=torch.float64, seed: int = 0, **config):
    """A 2-layer causal LM of the family; `config` overrides its keys (tie_word_embeddings=False, …)."""
    torch.manual_seed(seed)
    config = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3} | config
    made = AutoConfig.for_model(family, vocab_size=vocab_size, **_SIZES[family] | config)
    return AutoModelForCausalLM.from_config(made, dtype=dtype).eval()


def tiny_tokenizer(vocab: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of a few words, the digits and punctuation; pad 0, bos 1, eos 2, unk 3."""
    plain = vocab or sorted(set(WORDS)) + list("0123456789+-*/=.,$#? \n")
    ids = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *dict.fromkeys(plain)])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
