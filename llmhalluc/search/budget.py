"""What a search has spent, and the one place where it is told to stop.

A budget is per problem, in one of four units: `emitted` tokens; `forward` tokens, read and written, a prefix that is
shared by forks counted once; `flops` of these forwards; `seconds` of them, a batch's time shared by its sequences.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from llmhalluc.decoding.sequence import Cost

UNITS = ("emitted", "forward", "flops", "seconds")


class Flops(NamedTuple):
    """Floating-point operations of a forward: of each token, and of each earlier row that it looks at."""

    token: float
    row: float

    def of(self, tokens: int, rows: float) -> float:
        """Return those of some tokens that look at `rows` rows each, on average."""
        return tokens * (self.token + rows * self.row)


def flops_of(model: Any) -> Flops:
    """Return the operations of a causal LM: two a weight that is multiplied, four a layer, row and width of its heads.

    Kaplan et al. 2020, arXiv 2001.08361, table 1. The input embedding is looked up, not multiplied. A backend without
    a torch model has none.
    """
    inner = model if hasattr(model, "get_output_embeddings") else getattr(model, "model", None)
    if not hasattr(inner, "get_output_embeddings"):
        return Flops(0.0, 0.0)
    config = inner.config.get_text_config()
    embedded = inner.get_input_embeddings().weight
    weights = sum(p.numel() for p in inner.parameters())
    tied = inner.get_output_embeddings() is not None and inner.get_output_embeddings().weight is embedded
    multiplied = weights if tied else weights - embedded.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Flops(2.0 * multiplied, 4.0 * config.num_hidden_layers * width)


@dataclass
class Budget:
    """`amount` of a unit, None for no end."""

    unit: str = "emitted"
    amount: float | None = None

    def spent(self, cost: Cost) -> bool:
        """Return whether nothing is left."""
        return self.amount is not None and getattr(cost, self.unit) >= self.amount
