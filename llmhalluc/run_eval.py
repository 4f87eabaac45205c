"""Evaluate a model on lm-eval tasks: `python -m llmhalluc.run_eval model.name_or_path=outputs/train`."""

import sys
from typing import Any

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.command_line import parse

SECTIONS = ("model", "gen", "eval")
COLUMNS = ("n", "accuracy", "accuracy_low", "accuracy_high", "erasures_per_sample", "samples_with_erasure",
           "emitted_per_kept", "cut_off", "backtrack_precision", "backtrack_recall")  # fmt: skip


def main() -> None:
    config = parse(sys.argv[1:], "run_eval", SECTIONS, default=CONFIGS / "lm_eval" / "eval.yaml")
    from llmhalluc.eval.runner import evaluate  # after parsing: torch and lm-eval take seconds to import

    print(table(evaluate(config)["results"]))
    print(f"\n{config.eval.output_dir} holds results.json, with every metric, and the samples")


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """`{variant: {task: {metric: value}}}` as a line a task and variant; a dash where there is no value.

    The last column has the metrics of a task that has no accuracy, as lm-eval calls them.
    """
    rows = [("variant", "task", *(column.replace("_", " ") for column in COLUMNS), "other scores")]
    for variant, tasks in results.items():
        for task, metrics in tasks.items():
            values = (metrics.get(column) for column in COLUMNS)
            shown = ["-" if value is None else f"{round(value, 4):g}" for value in values]
            rows.append((variant, task, *shown, "" if metrics.get("accuracy") is not None else _other_scores(metrics)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _other_scores(metrics: dict[str, Any]) -> str:
    """The metrics that are the task's own."""
    ours = ("n", "truncated_prompts", "emitted_per_sample", *COLUMNS)
    own = [(name, value) for name, value in metrics.items() if name not in ours and not name.endswith("_stderr")]
    return ", ".join(f"{name} {value:.4g}" for name, value in own if value is not None)


if __name__ == "__main__":
    sys.exit(exit_code(main))
