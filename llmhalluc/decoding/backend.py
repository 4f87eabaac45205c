"""A model's side of decoding: logits for (slot, id, position), and where asked hidden states of named layers.

Shapes: B sequences, V vocabulary.
"""

from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from llmhalluc.decoding.sequence import Output
from llmhalluc.decoding.slots import TorchSlots


class Slots(Protocol):
    """The cache of one engine: slot i is that of its i-th sequence."""

    def reserve(self, slots: int) -> None:
        """Make room for so many sequences."""

    def copy(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Copy the first columns of the slots `sources` to `targets`, of which none is a source."""

    def fill(self, first: int, start: int, ids: list[list[int]]) -> None:
        """Feed ids, none or more a slot, at positions from `start` on, into the slots from `first` on."""

    def step(self, feeds: list[tuple[int, int]], layers: tuple[str, ...]) -> Output:
        """Feed (id, position) of each slot: logits (B, V), float32 at least, and hidden states of `layers`."""


class Backend(Protocol):
    """A model that decodes, and the few facts about it that its callers need.

    window: most positions it takes, None where it does not say; hard_window: a longer text cannot be fed. most_slots:
    how many sequences are decoded at once, None for any number. backtrack: the model's record of its BACKTRACK.
    forward_tokens counts the tokens fed so far, padding and copies not counted.
    """

    name: str
    window: int | None
    hard_window: bool
    most_slots: int | None
    eos_ids: list[int]
    backtrack: dict[str, Any] | None
    forward_tokens: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def open(self, compiled: bool) -> Slots:
        """Return an empty cache. Raises UserError for a model that cannot decode so."""


class TorchBackend:
    """A causal LM of transformers; PEFT works in its layers."""

    hard_window = False
    most_slots: int | None = None

    def __init__(self, model: PreTrainedModel):
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.forward_tokens = 0
        self.name = self.model.config.model_type
        self.window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.backtrack = getattr(self.model.config, "backtrack", None)
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        self.eos_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def open(self, compiled: bool) -> TorchSlots:
        if not compiled:
            return TorchSlots(self)
        from llmhalluc.decoding.compiled import CompiledSlots  # torch's compiler takes a while to import

        return CompiledSlots(self)


def backend_of(model: Any) -> Backend:
    """Return the backend of a model of transformers; a backend is its own."""
    return TorchBackend(model) if isinstance(model, torch.nn.Module) else model
