"""Errors that are the user's to mend: shown as sentences, exit code 2, no traceback."""

import logging
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: each sentence names the key, the value and the remedy."""

    def __init__(self, *sentences: str):
        super().__init__("\n".join(sentences))
        self.sentences = sentences


def exit_code(main: Callable[[], int | None]) -> int:
    """Run `main`; print a UserError's sentences to stderr and answer 2."""
    # On some processors it tells, at import, of a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main() or 0
    except UserError as error:
        for sentence in error.sentences:
            print(f"error: {sentence}", file=sys.stderr)
        return 2
