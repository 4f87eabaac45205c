"""Train a model from one YAML: `python -m llmhalluc.run_train --config configs/llmhalluc/sft.yaml`."""

import sys

from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.command_line import parse

SECTIONS = ("model", "data", "backtrack", "train", "reward", "gen")


def main() -> None:
    config = parse(sys.argv[1:], "run_train", SECTIONS)
    from llmhalluc.train.executors import executor_of  # after parsing: torch and trl take seconds to import

    executor_of(config.train.stage, config.techniques())(config).run()


if __name__ == "__main__":
    sys.exit(exit_code(main))
