"""Train, merge and evaluate every cell of a table: `python -m llmhalluc.run_exp --config FILE`."""

import sys

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.command_line import read
from llmhalluc.hparams.parser import build

SECTIONS = ("exp", "model", "data", "backtrack", "train", "reward", "gen", "selfgen", "eval")


def main() -> int:
    raw = read(sys.argv[1:], "run_exp", SECTIONS, default=CONFIGS / "llmhalluc" / "e2e.yaml")
    build(raw)  # reports mistakes before anything slow is imported
    from llmhalluc.exp.runner import run

    return run(raw)


if __name__ == "__main__":
    sys.exit(exit_code(main))
