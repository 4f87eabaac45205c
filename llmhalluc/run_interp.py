"""Look inside models that take something back: `python -m llmhalluc.run_interp COMMAND --config configs/interp/…`."""

import sys

from llmhalluc.extras.errors import exit_code


def main() -> int:
    """0, 2 for bad input, 130 when it was stopped: the same command resumes."""
    return exit_code(_main)


def _main() -> int:
    from llmhalluc.interp.commands import app

    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
