"""The `backtrack` section: the token, its context, its labels, and the errors that are put in."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmhalluc.extras.option import Section, option


@dataclass
class BacktrackArguments(Section):
    """What a BACKTRACK means to the model and how the training errors are drawn."""

    section: ClassVar[str] = "backtrack"
    token: str | None = option(None, "the special token; none: the one of the model's family")
    context: Literal["soft", "block", "rewind"] = option("soft", "what the model still sees after an erasure")
    error_labels: Literal["train", "mask", "redirect"] = option("mask", "what the loss does with erased tokens")
    source: Literal["random", "shuffled", "digits"] = option(
        "random", "errors: random plain tokens, tokens of the same answer, or other digits of a number"
    )
    rate: float = option(0.05, "expected error runs per token of the answer", bounds="[0, inf)")
    run_length: Literal["uniform", "geometric"] = option("geometric", "distribution of the length of an error run")
    min_run: int = option(1, "shortest error run, tokens", bounds="[1, inf)")
    max_run: int = option(5, "longest error run, tokens", bounds="[1, inf)")
    mean_run: float = option(2.0, "mean of the geometric distribution before truncation", bounds="[1, inf)")
    nesting: float = option(0.0, "probability that an error run holds an erased run of its own", bounds="[0, 1)")
    curriculum: Literal["none", "linear"] = option("none", "linear: the longest run grows from min_run to max_run")
    curriculum_end: float = option(0.5, "share of training after which the longest run is max_run", bounds="(0, 1]")
