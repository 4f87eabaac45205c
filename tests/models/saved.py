"""A tiny model and its tokenizer in a folder or a GGUF file, for tests of loading, training and saving."""

from pathlib import Path

import gguf
import torch

from llmhalluc.hparams.sections import ModelArguments
from tests.tiny import tiny_model, tiny_tokenizer

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def saved_model(folder: Path, family: str = "llama", **config) -> ModelArguments:
    """Save one and answer the arguments that load it; `config` as for `tiny_model`."""
    tokenizer = tiny_tokenizer()
    tiny_model(family, **{"vocab_size": len(tokenizer)} | config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelArguments(name_or_path=str(folder), device="cpu")


def train(model, ids: torch.Tensor, steps: int = 3) -> None:
    """A few optimizer steps of ordinary language modelling, enough to move every row that trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def saved_gguf(path: Path, seed: int = 0):
    """Write a tiny Llama with a small BPE tokenizer as a GGUF file; answer the model."""
    merges = "i n,t h,e r,a n,r e,o n,a t,e n,n d".split(",")
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", *(pair.replace(" ", "") for pair in merges)]
    model = tiny_model("llama", len(tokens), torch.float32, seed, num_key_value_heads=4)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        layer, _, name = name.removeprefix("model.layers.").partition(".") if ".layers." in name else ("", "", name)
        name = name.removesuffix(".weight")
        if name.endswith(("q_proj", "k_proj")):  # GGUF interleaves the two halves of the rotary dimensions
            weight = weight.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
        prefix = f"blk.{layer}." if layer else ""
        writer.add_tensor(f"{prefix}{GGUF_NAMES[name]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
