"""Chat with a model that takes back what it finds wrong: `backtracking-llm MODEL`, `python -m llmhalluc.run_chat`."""

import sys

from llmhalluc.extras.errors import exit_code


def main() -> int:
    def run() -> None:
        from llmhalluc.decoding.terminal import chat

        chat(sys.argv[1:])

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
