"""lm-eval's own command line, with our model class as `--model backtrack` and our tasks in its index."""

import sys

from llmhalluc.eval.lm_eval_patches import run_command_line
from llmhalluc.extras.constant import LM_EVAL_TASKS
from llmhalluc.extras.errors import exit_code


def main() -> None:
    """Run the harness on sys.argv; folders of --include_path or of --config come beside ours."""
    from llmhalluc.eval.model import BacktrackLM  # noqa: F401  registers itself

    run_command_line(LM_EVAL_TASKS)


if __name__ == "__main__":
    sys.exit(exit_code(main))
