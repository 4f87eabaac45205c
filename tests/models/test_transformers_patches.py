"""Canaries of what we use of transformers' models in private: each fails when its patch is taken out."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTNeoForCausalLM, LlamaForCausalLM, MambaForCausalLM

from llmhalluc.models import transformers_patches
from tests import canaries
from tests.models.saved import saved_gguf, saved_model
from tests.tiny import tiny_model


def recurrent_models_say_so(folder, monkeypatch):
    assert transformers_patches.is_recurrent(MambaForCausalLM) is True
    assert transformers_patches.is_recurrent(LlamaForCausalLM) is False


def the_kernel_is_the_one_that_was_asked_for(folder, monkeypatch):
    model = tiny_model("llama")
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert transformers_patches.attention_kernel(model.config) == kernel


def models_say_whether_they_compile_whole(folder, monkeypatch):
    assert transformers_patches.compiles_whole(LlamaForCausalLM) is True
    assert transformers_patches.compiles_whole(GPTNeoForCausalLM) is False


def a_model_read_from_gguf_is_saved_plain(folder, monkeypatch):
    original = saved_gguf(folder / "tiny.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32)
    transformers_patches.forget_quantization(model)
    model.save_pretrained(folder / "plain")
    weights = AutoModelForCausalLM.from_pretrained(folder / "plain").state_dict()
    assert all(value.shape == weights[name].shape for name, value in original.state_dict().items())


def transposed_layers_are_known_in_4_bits(folder, monkeypatch):
    pytest.importorskip("bitsandbytes")
    for family, transposed in (("gpt2", True), ("llama", False)):
        name = saved_model(folder / family, family, dtype=torch.float32).name_or_path
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )
        assert transformers_patches.has_4bit_conv1d(model) is transposed


# Patch -> (its check, what stands in its place when it is taken out).
CANARIES = {
    "is_recurrent": (recurrent_models_say_so, lambda model_class: False),
    "attention_kernel": (the_kernel_is_the_one_that_was_asked_for, lambda config: "sdpa"),
    "compiles_whole": (models_say_whether_they_compile_whole, lambda model: True),
    "forget_quantization": (a_model_read_from_gguf_is_saved_plain, lambda model: None),
    "has_4bit_conv1d": (transposed_layers_are_known_in_4_bits, lambda model: False),
}


def test_every_patch_has_a_canary():
    assert canaries.patches(transformers_patches) == CANARIES.keys()


@pytest.mark.parametrize("name", CANARIES)
def test_canary(name, tmp_path, monkeypatch):
    canaries.sings(transformers_patches, name, CANARIES[name][0], tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CANARIES)
def test_canary_fails_without_its_patch(name, tmp_path, monkeypatch):
    check, instead = CANARIES[name]
    canaries.falls_silent(transformers_patches, name, instead, check, tmp_path, monkeypatch)
