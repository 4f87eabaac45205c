"""Evaluate a model on lm-eval tasks: `python -m llmhalluc.run_eval model.name_or_path=outputs/train`."""

import sys
from typing import Any

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.command_line import parse

SECTIONS = ("model", "gen", "eval")
COLUMNS = ("n", "accuracy", "accuracy_low", "accuracy_high", "erasures_per_sample", "samples_with_erasure",
           "emitted_per_kept", "backtrack_precision", "backtrack_recall")  # fmt: skip


def main() -> None:
    config = parse(sys.argv[1:], "run_eval", SECTIONS, default=CONFIGS / "lm_eval" / "eval.yaml")
    from llmhalluc.eval.runner import evaluate  # after parsing: torch and lm-eval take seconds to import

    print(table(evaluate(config)["results"]))
    print(f"\n{config.eval.output_dir} holds results.json, with every metric, and the samples")


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """`{variant: {task: {metric: value}}}` as a line a task and variant; a dash where there is no value."""
    rows = [("variant", "task", *(column.replace("_", " ") for column in COLUMNS))]
    for variant, tasks in results.items():
        for task, metrics in tasks.items():
            values = (metrics.get(column) for column in COLUMNS)
            rows.append((variant, task, *("-" if value is None else f"{round(value, 4):g}" for value in values)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(exit_code(main))
