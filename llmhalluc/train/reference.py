"""The reference of DPO and GRPO: what the model was at the start, its BACKTRACK rows and its context hook included."""

import copy

from peft import PeftModel
from transformers import PreTrainedModel

REFERENCE = "ref"  # TRL's name of the adapter that keeps what the trained one was at the start


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference: the model as it is now, its context hook included. TRL would load it anew by its name."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Make one adapter the other's equal, the rows of single tokens included, which TRL passes by."""
    for name, value in model.named_parameters():
        if source in (parts := name.split(".")):
            copied = model.get_parameter(".".join(target if part == source else part for part in parts))
            copied.data = value.data.clone()
