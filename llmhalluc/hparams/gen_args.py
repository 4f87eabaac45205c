"""The `gen` section: decoding."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.extras.option import Section, option


@dataclass
class GenArguments(Section):
    """How completions are decoded; the names are transformers' GenerationConfig's where it has them."""

    section: ClassVar[str] = "gen"
    max_new_tokens: int = option(256, "most tokens emitted, erased tokens and BACKTRACKs counted", bounds="[1, inf)")
    temperature: float = option(0.0, "0 is greedy", bounds="[0, inf)")
    top_k: int | None = option(None, "sample among the k most likely tokens", bounds="[1, inf)")
    top_p: float | None = option(None, "sample among the most likely tokens of so much probability", bounds="(0, 1]")
    min_p: float | None = option(None, "drop tokens less likely than so much of the most likely one", bounds="[0, 1]")
    repetition_penalty: float | None = option(None, "as transformers'; 1 is none", bounds="(0, inf)")
    stop: list[str] = option([], "stop strings, looked for in the surviving text")
    context: str | None = option(None, "soft, block or rewind; none: as the model was trained", choices=CONTEXTS)
    backtrack: bool = option(True, "false: BACKTRACK is never offered")
    ban_erased: bool = option(True, "an erased token is not offered again at its place while its prefix stands")
    max_erasures: int | None = option(
        None, "erasures a completion may make; none: half of max_new_tokens", bounds="[0, inf)"
    )
    backtrack_bias: float = option(0.0, "added to the logit of BACKTRACK")
    operator: str | None = option(None, "rule that erases, such as probability_threshold; none: BACKTRACK alone erases")
    operator_args: dict[str, Any] = option({}, "parameters of the operator that differ from its defaults")
    backtrack_every_n: int = option(1, "an operator is asked after every so many emitted tokens", bounds="[1, inf)")
    compile: bool = option(False, "static cache and a compiled forward: faster on a GPU after a warm-up")
    seed: int = option(0, "seed of the sampling; a prompt's draws do not depend on its batch")
