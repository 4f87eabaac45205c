"""Errors that are the user's to mend: shown as sentences, exit code 2, no traceback."""

import logging
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

LISTED = 30  # valid names that a sentence lists at most


class UserError(Exception):
    """Bad input: each sentence names the key, the value and the remedy."""

    def __init__(self, *sentences: str):
        super().__init__("\n".join(sentences))
        self.sentences = sentences


def exit_code(main: Callable[[], int | None]) -> int:
    """Run `main`; print a UserError's sentences to stderr and return 2."""
    # On some processors it warns, at import, of a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main() or 0
    except UserError as error:
        for sentence in error.sentences:
            print(f"error: {sentence}", file=sys.stderr)
        return 2


def one_line(error: object, limit: int = 600) -> str:
    """Return the start of an error's text (or of any text) without its line breaks."""
    return " ".join(str(error).split())[:limit]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, None where none is near.

    Of dotted names it is one of the same section, or the same key where one other section alone has it.
    """
    section, _, leaf = name.rpartition(".")
    split = {other: other.rpartition(".") for other in known}
    beside = {parts[2]: other for other, parts in split.items() if parts[0] == section}
    elsewhere = [other for other, parts in split.items() if parts[2] == leaf]
    if near := get_close_matches(leaf, beside, n=1, cutoff=0.8 if elsewhere else 0.7):
        return beside[near[0]]
    return elsewhere[0] if len(elsewhere) == 1 else None


def did_you_mean(name: str, known: Iterable[str], listing: str = "") -> str:
    """Return the end of a sentence about an unknown name: `; did you mean gen.top_k?`, or the valid names.

    listing: a command that lists them, where they are too many for a sentence.
    """
    known = list(known)
    if near := nearest(name, known):
        return f"; did you mean {near}?"
    if listing:
        return f"; {listing} lists the valid names"
    section = name.rpartition(".")[0]
    valid = [other for other in known if other.rpartition(".")[0] == section]
    more = f" and {len(valid) - LISTED} more (see --help)" if len(valid) > LISTED else ""
    return f"; valid: {', '.join(valid[:LISTED])}{more}" if valid else ""
