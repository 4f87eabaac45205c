"""What we use of transformers' models that is not their public interface: a named function each, with its reason.

tests/models/test_transformers_patches.py has a canary for each: it fails, with the reason given here, when the library
moves.
"""

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


def is_recurrent(model_class: type[PreTrainedModel]) -> bool:
    """Whether the model carries a state from which no token can be taken back: no public attribute says so."""
    return model_class._is_stateful


def attention_kernel(config: PreTrainedConfig) -> str:
    """`sdpa`, `eager`, `flex_attention`, …: what was asked for as attn_implementation has no public name afterwards."""
    return config._attn_implementation


def compiles_whole(model: PreTrainedModel) -> bool:
    """Whether the forward compiles without a graph break: `generate` asks the same private attribute."""
    return model._can_compile_fullgraph


def forget_quantization(model: PreTrainedModel) -> None:
    """Let a model that was read from GGUF be saved: its weights are plain, yet save_pretrained refuses them."""
    del model.config.quantization_config
    model.hf_quantizer = None


def has_4bit_conv1d(model: PreTrainedModel) -> bool:
    """Whether transposed weights (GPT-2's Conv1D) lie in 4 bits; only a mark on the new layers says what they were."""
    return any(getattr(module, "source_cls", None) is Conv1D for module in model.modules())
