"""lm-eval's own command line, with our model class as `--model backtrack`, our tasks and the metrics of traces."""

import sys

from llmhalluc.eval.lm_eval_patches import metrics_beside_results, run_command_line
from llmhalluc.extras.constant import LM_EVAL_TASKS
from llmhalluc.extras.errors import exit_code


def main() -> None:
    """Run the harness on sys.argv; folders of --include_path or of --config come beside ours."""
    from llmhalluc.eval import model  # noqa: F401  registers itself
    from llmhalluc.eval.runner import metrics_of_traces

    with metrics_beside_results(metrics_of_traces):
        run_command_line(LM_EVAL_TASKS)


if __name__ == "__main__":
    sys.exit(exit_code(main))
