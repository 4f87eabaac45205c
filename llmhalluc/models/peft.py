"""Adapters: LoRA and QLoRA in which the BACKTRACK rows train too, how they are saved, loaded and merged."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import write_json
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.helper import dtype_of, ship_generate
from llmhalluc.models.transformers_patches import has_4bit_conv1d

# Beside the adapter: what config.backtrack says, and whether the weights below the adapter are in 4 bits.
RECORD = "backtrack.json"


class BacktrackPeftModel(PeftModelForCausalLM):
    """Stock PEFT, but every save is small and says which token is the BACKTRACK."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as PEFT does, but no whole embedding matrices (the adapter has the rows that train), no reference."""
        fixed = {"save_embedding_layers": False, "selected_adapters": ["default"]}
        super().save_pretrained(str(save_directory), **kwargs | fixed)
        if kwargs.get("is_main_process", True):
            in_4bit = getattr(self.get_base_model(), "is_loaded_in_4bit", False)
            write_json(Path(save_directory) / RECORD, {**self.config.backtrack, "in_4bit": in_4bit})


def add_adapter(
    model: PreTrainedModel, args: ModelArguments, backtrack_id: int
) -> PreTrainedModel | BacktrackPeftModel:
    """The model with the adapter of `args.finetuning` on it; as it is when that is full, or already there.

    The BACKTRACK rows train beside it: the input row, and the output row where that is another (peft ties the
    two where they are one). Raises UserError for a model whose rows peft would not save as they were trained.
    """
    if args.finetuning == "full" or isinstance(model, BacktrackPeftModel):
        return model
    if args.from_config is not None:
        raise UserError(
            f"model.finetuning is {args.finetuning!r}, but model.from_config makes fresh weights, which an "
            "adapter would leave random: use full"
        )
    if has_4bit_conv1d(model):
        raise UserError(
            f"model.finetuning is 'qlora', but {model.config.model_type} has transposed weights (Conv1D), "
            "which cannot be merged from 4 bits: use lora"
        )
    matrices, output = [model.get_input_embeddings()], model.get_output_embeddings()
    if output.weight is not matrices[0].weight:
        if getattr(output, "bias", None) is not None:
            raise UserError(
                f"model.finetuning is {args.finetuning!r}, but the output layer of {model.config.model_type} "
                "has a bias, which peft drops where single rows train: use full"
            )
        matrices.append(output)
    names = [name for name, module in model.named_modules() if any(module is matrix for matrix in matrices)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        trainable_token_indices={name: [backtrack_id] for name in names},
    )
    return BacktrackPeftModel(model, config)


@contextmanager
def rows_in_place(model: torch.nn.Module) -> Iterator[None]:
    """While it lasts the matrices with the rows that train are made once, and not in each forward.

    PEFT otherwise copies a whole matrix, as large as the vocabulary, each time. Nothing may train meanwhile, and the
    weights must lie whole on this device.
    """
    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    made: dict[tuple[int, int], torch.Tensor] = {}  # tied layers share theirs
    try:
        for layer in layers:
            key = id(layer.base_layer.weight), id(layer.trainable_tokens_delta)
            if key not in made:
                made[key] = layer.get_merged_weights(layer.active_adapters).detach()
            layer.get_merged_weights = lambda active_adapters, weights=made[key]: weights
        yield
    finally:
        for layer in layers:
            vars(layer).pop("get_merged_weights", None)


def load_adapter(model: PreTrainedModel, args: ModelArguments, trainable: bool) -> PreTrainedModel | BacktrackPeftModel:
    """Return the model with the adapter `args.adapter` on it; merged into its weights where it is not `trainable`.

    An adapter that trained over 4-bit weights is merged into those, made full width again: the logits stay. Raises
    UserError for a folder without one.
    """
    key, folder = args.key("adapter"), str(args.adapter)
    if not Path(folder, "adapter_model.safetensors").is_file():
        raise UserError(f"{key} is {folder}, which holds no adapter_model.safetensors: name the folder of one")
    if not trainable and getattr(model, "is_loaded_in_4bit", False):
        model = model.dequantize()
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not trainable
    model = BacktrackPeftModel(model, config)
    model.load_adapter(folder, "default", is_trainable=trainable)
    # Full fine-tuning may follow a merge, and PEFT has frozen the weights.
    return model if trainable else model.merge_and_unload().requires_grad_(True)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What `BacktrackPeftModel` wrote beside the adapter, None beside a stock one."""
    path = Path(folder) / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def merge(model: BacktrackPeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Merge the adapter into the weights and save a stock model with its tokenizer; `model` is used up.

    4-bit weights are first made full width again: merged in 4 bits they would be rounded a second time.
    """
    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        config = model.peft_config["default"]
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        model = BacktrackPeftModel(model.unload().dequantize(), config)
        set_peft_model_state_dict(model, state)
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ship_generate(folder)


def quantization(args: ModelArguments, auto: torch.dtype) -> BitsAndBytesConfig:
    """Return QLoRA's 4-bit weights (arXiv:2305.14314), multiplied in `args.dtype`, or `auto` where that is auto.

    Raises UserError without bitsandbytes.
    """
    dtype, key = dtype_of(args, auto), args.key("finetuning")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{key} is 'qlora', which needs bitsandbytes: pip install bitsandbytes, or use lora")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
