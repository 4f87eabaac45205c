"""The `gen` section: decoding."""

from dataclasses import dataclass
from typing import Any

from llmhalluc.hparams.field import option


@dataclass
class GenArguments:
    """How completions are decoded; the names are transformers' GenerationConfig's where it has them."""

    max_new_tokens: int = option(256, "most tokens emitted, erased tokens and BACKTRACKs counted")
    temperature: float = option(0.0, "0 is greedy")
    top_k: int | None = option(None, "sample among the k most likely tokens")
    top_p: float | None = option(None, "sample among the most likely tokens that hold so much probability")
    min_p: float | None = option(None, "drop tokens less likely than so much of the most likely one")
    repetition_penalty: float | None = option(None, "as transformers'; 1 is none")
    stop: list[str] = option([], "stop strings, looked for in the surviving text")
    context: str | None = option(None, "soft, block or rewind; none: the one the model was trained with")
    backtrack: bool = option(True, "false: BACKTRACK is never offered")
    ban_erased: bool = option(True, "an erased token is not offered again at its place while its prefix stands")
    max_erasures: int | None = option(None, "erasures a completion may make; none: half of max_new_tokens")
    backtrack_bias: float = option(0.0, "added to the logit of BACKTRACK")
    operator: str | None = option(None, "rule that erases, such as probability_threshold; none: BACKTRACK alone erases")
    operator_args: dict[str, Any] = option({}, "parameters of the operator that differ from its defaults")
    backtrack_every_n: int = option(1, "an operator is asked after every so many emitted tokens")
    compile: bool = option(False, "static cache and a compiled forward: faster on a GPU after a warm-up")
    seed: int = option(0, "seed of the sampling; a prompt's draws do not depend on its batch")
