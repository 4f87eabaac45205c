"""Sample solutions, find errors of the model's own, write traces: `python -m llmhalluc.run_selfgen --config FILE`."""

import sys

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.command_line import parse

SECTIONS = ("model", "data", "gen", "selfgen")


def main() -> None:
    config = parse(sys.argv[1:], "run_selfgen", SECTIONS, default=CONFIGS / "llmhalluc" / "selfgen.yaml")
    from llmhalluc.selfgen.runner import generate  # after parsing: torch takes seconds to import

    about = generate(config)
    print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in about["counts"].items()))
    print(f"{config.selfgen.output_dir} holds traces.jsonl, selfgen.json, samples.jsonl and rejections.jsonl")


if __name__ == "__main__":
    sys.exit(exit_code(main))
