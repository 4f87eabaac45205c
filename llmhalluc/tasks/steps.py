"""Where the steps of a solution end, in tokens."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NEXT = " x"  # what may follow a step
WORD_END = re.compile(r"(?<=\S)(?=\s)")


def ends_at(pieces: Sequence[str], boundary: re.Pattern[str]) -> list[int]:
    """Return after how many tokens a boundary of their text is reached, all of them at last.

    A boundary within a token counts behind it; what lies between two holds more than white space.
    """
    text, found, at = "".join(pieces), [], 0
    cuts = [match.end() for match in boundary.finditer(text)]
    written, last = 0, 0  # characters so far, characters at the last boundary
    for i, piece in enumerate(pieces):
        written += len(piece)
        reached = False
        while at < len(cuts) and cuts[at] <= written:
            reached, at = True, at + 1
        if reached and text[last:written].strip() and text[written:].strip():
            found.append(i + 1)
            last = written
    return [*found, len(pieces)] if pieces else []


def ends_step(task: Any, pieces: Sequence[str]) -> bool:
    """Return whether the tokens of a step, by their texts, end it, whatever follows."""
    return len(pieces) in task.step_ends([*pieces, NEXT])[:-1]


def pieces_of(tokenizer: "PreTrainedTokenizerBase") -> Callable[[int], str]:
    """Return a function from a token to its text in the middle of others."""
    before = tokenizer("x", add_special_tokens=False).input_ids
    lead, known = tokenizer.decode(before), dict[int, str]()

    def piece(token: int) -> str:
        if token not in known:
            known[token] = tokenizer.decode([*before, token]).removeprefix(lead)
        return known[token]

    return piece
