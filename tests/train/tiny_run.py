"""A training run of a second or two: 4×4 Sudoku traces, a fresh Llama of one layer."""

import copy
from pathlib import Path
from typing import Any

from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import Config

TINY: dict[str, Any] = {
    "seed": 3,
    "model": {
        "from_config": {
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
        },
        "tokenizer": "sudoku4",
        "device": "cpu",
        "dtype": "float64",
    },
    "data": {"dataset": "sudoku", "converter": "sudoku_backtrack", "task": {"count": 50}},
    "backtrack": {"context": "block", "error_labels": "redirect"},
    "train": {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
        "save_strategy": "no", "disable_tqdm": True,
    },
}  # fmt: skip


def raw(output_dir: Path, **dotted: Any) -> dict[str, Any]:
    """TINY with `section__key=value` changed; None takes a key out."""
    config = copy.deepcopy(TINY)
    config["train"]["output_dir"] = str(output_dir)
    for name, value in dotted.items():
        section, key = name.split("__")
        config[section][key] = value
        if value is None:
            del config[section][key]
    return config


def config(output_dir: Path, **dotted: Any) -> Config:
    return build(raw(output_dir, **dotted))
