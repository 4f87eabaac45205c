"""Tune an operator and measure it: `python -m llmhalluc.run_benchmark --config configs/benchmark/smollm2.yaml`."""

import sys

from llmhalluc.benchmark.config import VERBOSE, parse
from llmhalluc.extras.errors import exit_code


def main() -> int:
    """The program `backtracking-llm-benchmark`: 0, 2 for bad input, 130 when it was stopped."""
    return exit_code(_main)


def _main() -> int:
    benchmark = parse(sys.argv[1:])
    from llmhalluc.benchmark.runner import run
    from llmhalluc.benchmark.table import text

    try:
        results = run(benchmark, verbose=any(word in VERBOSE for word in sys.argv))
    except KeyboardInterrupt:
        but = " without evaluation.overwrite=true" if benchmark.config.eval.overwrite else ""
        print(f"stopped: run the same command again{but} to resume, finished trials are kept")
        return 130
    print(f"\n{text(results)}\n\n{benchmark.config.eval.output_dir} holds report.html, results.json and results.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
