"""Where a model writes to its residual stream, and hooks that change or keep what it writes there.

A site is (kind, layer). attn, mlp: what the sublayer adds to the stream. resid: the stream after the layer. heads: the
input of attention's last projection, the heads side by side. Shapes: R rows that are changed, T tokens, D width of a
site, H width of the stream, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from llmhalluc.extras.errors import UserError

Site = tuple[str, int]
SUBLAYERS = ("attn", "mlp")
# By model type: layers, then in a layer attention, MLP, attention's last projection; then the last norm. Gemma norms
# what a sublayer adds once more, so there the norm is the site.
_LLAMA = ("layers", "self_attn", "mlp", "self_attn.o_proj", "norm")
_GEMMA = ("layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj", "norm")
ARCHITECTURES = {
    "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma": _LLAMA, "gemma2": _GEMMA, "gemma3_text": _GEMMA,
    "gpt2": ("h", "attn", "mlp", "attn.c_proj", "ln_f"),
}  # fmt: skip


class Change(NamedTuple):
    """What becomes of a site's output at some rows: `scale * output + shift`; scale and shift broadcast over it."""

    index: Any  # of the rows, such as (0, rows) in a packed batch
    scale: torch.Tensor
    shift: torch.Tensor


class Sites:
    """A causal LM taken apart: the modules of its sites, its last norm and its head.

    Raises UserError for an architecture that is not known here.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = self.model.config.get_text_config()
        if config.model_type not in ARCHITECTURES:
            raise UserError(
                f"model.name_or_path is a {config.model_type} model, whose layers interp does not know: it knows "
                f"{', '.join(ARCHITECTURES)}"
            )
        layers, attention, mlp, projection, norm = ARCHITECTURES[config.model_type]
        self.decoder = self.model.base_model
        self.layers = len(getattr(self.decoder, layers))
        self.heads = config.num_attention_heads
        self.width = config.hidden_size
        self.norm, self.head = getattr(self.decoder, norm), self.model.get_output_embeddings()
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.modules: dict[Site, torch.nn.Module] = {}
        for i, block in enumerate(getattr(self.decoder, layers)):
            self.modules |= {
                ("attn", i): block.get_submodule(attention), ("mlp", i): block.get_submodule(mlp),
                ("heads", i): block.get_submodule(projection), ("resid", i): block,
            }  # fmt: skip

    @property
    def components(self) -> list[Site]:
        """The sublayers in the order of the forward."""
        return [(kind, layer) for layer in range(self.layers) for kind in SUBLAYERS]

    def unembed(self, normed: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of states after the last norm, float32 at least."""
        logits = self.head(normed)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if logits.dtype == torch.float64 else logits.float()

    @contextmanager
    def hooked(
        self, changes: Mapping[Site, Change], keep: Sequence[Site] = (), rows: Any = None
    ) -> Iterator[dict[Site, torch.Tensor]]:
        """Change sites in every forward inside the block; yield a dict that each forward fills with `keep`'s outputs.

        changes is read at each forward. rows indexes what is kept; None keeps the outputs themselves. The hooks are
        gone when the block ends; do not decode from a cache that was filled outside it.
        """
        kept: dict[Site, torch.Tensor] = {}
        with ExitStack() as hooks:
            for site in dict.fromkeys([*changes, *keep]):
                hook = partial(self._visit, site, changes, kept if site in keep else None, rows)
                module = self.modules[site]
                if site[0] == "heads":
                    before = partial(_before, hook)
                    hooks.callback(module.register_forward_pre_hook(before).remove)
                else:
                    hooks.callback(module.register_forward_hook(partial(_after, hook)).remove)
            yield kept

    @staticmethod
    def _visit(site: Site, changes: Mapping[Site, Change], kept: dict | None, rows: Any, output: torch.Tensor):
        change = changes.get(site)
        if change is not None:
            output = output.clone()
            output[change.index] = change.scale * output[change.index] + change.shift
        if kept is not None:
            kept[site] = output if rows is None else output[rows]
        return output


def _after(visit: Any, _module: torch.nn.Module, _inputs: tuple, output: Any) -> Any:
    """A forward hook: some modules return a tuple, whose first entry is the output."""
    if isinstance(output, tuple):
        return (visit(output[0]), *output[1:])
    return visit(output)


def _before(visit: Any, _module: torch.nn.Module, inputs: tuple) -> tuple:
    return (visit(inputs[0]), *inputs[1:])
