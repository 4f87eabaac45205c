"""The `model` section: where the weights come from and which of them train."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmhalluc.extras.option import Section, option
from llmhalluc.tasks import TOKENIZERS


@dataclass
class ModelArguments(Section):
    """Which model, which tokenizer, how the BACKTRACK row starts, what trains."""

    section: ClassVar[str] = "model"
    name_or_path: str | None = option(None, "hub name, local folder, or package:NAME (an installed Python package)")
    gguf_file: str | None = option(None, "GGUF file inside name_or_path; converted once to safetensors and cached")
    from_config: dict[str, Any] | None = option(
        None, "a fresh model: model_type (llama, qwen3, gpt2) and any key of its transformers config"
    )
    tokenizer: str | None = option(
        None, f"tokenizer when it is not the model's own: hub name, local folder, or {', '.join(TOKENIZERS)}"
    )
    adapter: str | None = option(None, "folder of a PEFT adapter to put on the model")
    revision: str = option("main", "hub revision")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = option("auto", "dtype of the weights")
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = option(
        "sdpa", "attention kernel; flex_attention is for long rows on a GPU"
    )
    device: str | None = option(None, "cpu, cuda, cuda:0, mps; none: the best one there is")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    token_init: Literal["mean", "description", "semantic", "combined", "random"] = option(
        "semantic", "start value of the BACKTRACK rows"
    )
    token_init_words: list[str] = option(
        ["delete", "undo", "erase", "remove", "backspace"], "words whose embeddings semantic averages"
    )
    token_init_description: str = option(
        "a special token that erases the token before it",
        "sentence whose token embeddings description averages",
    )
    token_init_noise: float = option(
        0.01, "standard deviation of the noise, relative to the row's norm", bounds="[0, inf)"
    )
    finetuning: Literal["full", "lora", "qlora"] = option("full", "which weights train")
    lora_r: int = option(16, "LoRA rank", bounds="[1, inf)")
    lora_alpha: int = option(32, "LoRA alpha", bounds="[1, inf)")
    lora_dropout: float = option(0.0, "LoRA dropout", bounds="[0, 1)")
    lora_target_modules: str | list[str] = option("all-linear", "modules that get a LoRA adapter (peft's syntax)")
