"""Our decoding here over that of another checkout, both measured in turn: a process each, one piece of work at a time.

Prints for each line the ratio of medians (above 1 this checkout is faster) and of single rounds. The work is that of
each checkout's own benchmarks/decoding.py or benchmarks/grpo.py, whose interface has been the same since 809d677.
Usage: python benchmarks/against.py decoding|grpo CHECKOUT [--rounds 5] [--size N] [--only PART …]
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
MARK = "work:"  # before a line that is a worker's reply


class Worker:
    """A process that runs the named work of one checkout when it is asked to."""

    def __init__(self, kind: str, checkout: Path, more: list[str]):
        command = [sys.executable, __file__, kind, str(checkout), "--serve", *more]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )
        self.names = self.reply().split("\t")

    def reply(self) -> str:
        for line in self.process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).rstrip("\n")
        raise SystemExit("a worker ended before its work was done")

    def ask(self, name: str, number: int) -> float:
        """The rate of this work in round `number`."""
        self.process.stdin.write(f"{name}\t{number}\n")
        self.process.stdin.flush()
        return float(self.reply())


def serve(works: dict[str, Callable[[int], float]]) -> None:
    """Run what is asked for until nobody asks any more."""
    print(MARK + "\t".join(works), flush=True)
    for line in sys.stdin:
        name, number = line.rstrip("\n").split("\t")
        print(f"{MARK}{works[name](int(number))}", flush=True)


def decoding_works(bench: Any, only: list[str], size: int | None) -> dict[str, Callable[[int], float]]:
    """Kept tokens a second of the lines of benchmarks/decoding.py, ours alone."""
    found = {}

    class Recorder(bench.Bench):
        def compare(self, what, first, second):
            call = second if "/ one row" in what or "/ one sequence" in what else first
            found[what.replace("decode / generate", "decode")] = lambda _: bench.rate(call)

    recorder = Recorder(1, size or 64)
    for part in only or ("plain", "ragged", "operator", "phrases", "single"):
        getattr(recorder, part)()
    return found


def grpo_works(bench: Any, only: list[str], size: int | None) -> dict[str, Callable[[int], float]]:
    """Rollouts a second for the models of benchmarks/grpo.py."""
    configs = {"sudoku": (bench.SUDOKU, 512), "smollm2": (bench.SMOLLM2, 16)}
    return {name: rollouts(bench, *configs[name], size) for name in only or configs}


def rollouts(bench: Any, config: dict[str, Any], usual: int, size: int | None) -> Callable[[int], float]:
    config = config | {"train": config["train"] | {"per_device_train_batch_size": size or usual}}
    folder = tempfile.mkdtemp()
    run = (
        bench.Rollouts(config, folder, 1).run
        if hasattr(bench, "Rollouts")
        else bench.executor(config, folder, 1).trainer
    )
    chosen = list(run.problems)[: run.args.per_device_train_batch_size // 8]
    prompts = [prompt for prompt in chosen for _ in range(8)]
    run.model.train()

    def work(number: int) -> float:
        run._step = number
        start = time.perf_counter()
        run.rollout_func(prompts, run)
        return len(prompts) / (time.perf_counter() - start)

    return work


WORKS = {"decoding": decoding_works, "grpo": grpo_works}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=WORKS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, help="new tokens (decoding, 64), rollouts a round (grpo)")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        spec = importlib.util.spec_from_file_location("bench", arguments.checkout / f"benchmarks/{arguments.kind}.py")
        bench = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(bench)
        return serve(WORKS[arguments.kind](bench, arguments.only, arguments.size))
    more = ["--size", str(arguments.size)] if arguments.size else []
    more += ["--only", *arguments.only] if arguments.only else []
    ours, theirs = (Worker(arguments.kind, path, more) for path in (HERE, arguments.checkout.resolve()))
    for name, other in zip(ours.names, theirs.names, strict=True):
        pairs = []
        for number in range(arguments.rounds + 1):  # the first one warms up
            pairs.append((ours.ask(name, number), theirs.ask(other, number)))
        rates = [statistics.median(side) for side in zip(*pairs[1:], strict=True)]
        single = sorted(a / b for a, b in pairs[1:])
        print(
            f"{name}: {rates[0] / rates[1]:.2f}x (rounds {single[0]:.2f} to {single[-1]:.2f}); "
            f"{rates[0]:.1f} and {rates[1]:.1f} a second", flush=True,
        )  # fmt: skip
    for worker in (ours, theirs):
        worker.process.stdin.close()
        worker.process.wait()


if __name__ == "__main__":
    main()
