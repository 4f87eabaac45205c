"""Chat with a model that takes back what it finds wrong: `backtracking-llm MODEL`, `python -m llmhalluc.run_chat`."""

import os
import sys

from llmhalluc.extras.errors import exit_code


def main() -> int:
    """The program `backtracking-llm`: 0, 2 for bad input, 130 when Ctrl-C ends it."""
    try:
        return exit_code(_main)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the answers has enough (`| head -1`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main() -> None:
    from llmhalluc.chat.terminal import chat

    chat(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
