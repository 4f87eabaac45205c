"""lm-eval's own command line, with our model class as `--model backtrack` and our tasks in its index."""

import sys

from llmhalluc.extras.constant import TASKS
from llmhalluc.extras.errors import exit_code


def main() -> None:
    """Run the harness on sys.argv; folders of --include_path or of --config come beside ours."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging

    from llmhalluc.eval.model import BacktrackLM  # noqa: F401  registers itself

    setup_logging()
    cli = HarnessCLI()
    arguments = cli.parse_args()
    if hasattr(arguments, "include_path"):
        theirs = arguments.include_path
        if theirs is None and getattr(arguments, "config", None):
            theirs = EvaluatorConfig.load_yaml_config(arguments.config).get("include_path")
        arguments.include_path = [str(TASKS), *([theirs] if isinstance(theirs, str) else theirs or [])]
    cli.execute(arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))
