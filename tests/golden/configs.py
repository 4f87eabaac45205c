"""The configurations that the golden numbers are of: nobody else writes their keys."""

from pathlib import Path
from typing import Any

Config = dict[str, Any]
TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
STEPS = 50


def puzzles(count: int, seed: int = 0, blanks: tuple[int, int] = (8, 11)) -> Config:
    """The keys of the data section that generate 4×4 Sudoku."""
    task = {"size": 4, "count": count, "min_blanks": blanks[0], "max_blanks": blanks[1], "seed": seed}
    return {"dataset": "sudoku", "task": task}


def fresh_model() -> Config:
    return {"from_config": dict(TINY), "tokenizer": "sudoku4", "device": "cpu", "dtype": "float64"}


def trained_model(folder: Path) -> Config:
    return {"name_or_path": str(folder), "device": "cpu", "dtype": "float64"}


def train(folder: Path, **more: Any) -> Config:
    return {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    } | more  # fmt: skip


def sft(folder: Path, context: str, error_labels: str, packing: bool) -> Config:
    return {
        "seed": 3,
        "model": fresh_model(),
        "data": puzzles(50) | {"converter": "sudoku_backtrack"},
        "backtrack": {"context": context, "error_labels": error_labels},
        "train": train(folder, packing=packing),
    }


def random_errors(folder: Path, start: Path, records: Path) -> Config:
    """SFT of a LoRA adapter, with dropout, on random error runs in a file of prompts and completions."""
    lora = {"finetuning": "lora", "lora_r": 2, "lora_dropout": 0.1}
    return {
        "seed": 4,
        "model": trained_model(start) | lora,
        "data": {"dataset": str(records), "converter": "backtrack"},
        "backtrack": {"context": "block", "error_labels": "mask", "rate": 0.2, "nesting": 0.3, "curriculum": "linear"},
        "train": train(folder),
    }


def dpo(folder: Path, start: Path) -> Config:
    return {
        "seed": 5,
        "model": trained_model(start),
        "data": puzzles(50, seed=1) | {"converter": "backtrack_dpo"},
        "backtrack": {"context": "block"},
        "train": train(
            folder, stage="dpo", loss="token", loss_decay=0.8, keep_share=0.3, beta=0.5, learning_rate=0.003
        ),
    }


def grpo(folder: Path, start: Path) -> Config:
    return {
        "seed": 6,
        "model": trained_model(start),
        "data": puzzles(50, seed=1) | {"converter": "sudoku_backtrack"},
        "backtrack": {"context": "block"},
        "train": train(
            folder, stage="grpo", per_device_train_batch_size=16, num_generations=8, max_completion_length=24, beta=0.1,
            learning_rate=0.003,
        ),
    }  # fmt: skip


def experiment(folder: Path) -> Config:
    """A chain of every stage from one SFT model, with two seeds: 300 steps of SFT, a few of each other."""
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "initializer_range": 0.1}
    stage = {"max_steps": 10, "learning_rate": 0.0005, "lr_scheduler_type": "constant", "warmup_steps": 0}
    return {
        "model": fresh_model() | {"from_config": TINY | model},
        "data": puzzles(3000, blanks=(4, 8)) | {"converter": "sudoku_backtrack"},
        "backtrack": {"context": "block", "error_labels": "redirect"},
        "train": {
            "max_steps": 300, "per_device_train_batch_size": 16, "learning_rate": 0.01, "lr_scheduler_type": "cosine",
            "warmup_steps": 20, "packing": True, "logging_steps": 50, "save_strategy": "no", "report_to": "none",
        },
        "gen": {"max_new_tokens": 24, "backtrack_bias": 2.0},
        "selfgen": {"samples": 2, "locator": "departure"},
        "eval": {
            "tasks": ["sudoku"], "task_options": {"sudoku": {"size": 4, "count": 40, "blanks": 4}}, "batch_size": 40,
            "variants": {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0}},
        },
        "exp": {
            "output_dir": str(folder), "baseline": "sft", "parallel": 2, "samples_in_report": 1,
            "grid": {"seed": [1, 2]},
            "arms": {
                "sft": {},
                "own": {
                    "start": "sft", "rounds": 1, "data": {"converter": "selfgen", "max_samples": 40}, "train": stage
                },
                "dpo": {
                    "start": "sft", "data": {"converter": "backtrack_dpo", "task": {"seed": 1}},
                    "model": {"finetuning": "lora", "lora_r": 4},
                    "train": stage | {"stage": "dpo", "loss": "token", "keep_share": 0.3},
                },
                "grpo": {
                    "start": "sft", "data.task.seed": 1, "gen.backtrack_bias": 0.0,
                    "train": stage | {"stage": "grpo", "num_generations": 8, "max_completion_length": 24},
                },
            },
        },
    }  # fmt: skip
