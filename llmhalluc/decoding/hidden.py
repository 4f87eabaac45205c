"""Hidden states of named layers of any torch model, through hooks that are there only while they are wanted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from llmhalluc.decoding import sequence
from llmhalluc.extras.errors import UserError

# What judges the text so far from the newest rows' (B, H) hidden states of each layer: a verifier, a process reward.
Scorer = Callable[[list[sequence.Sequence], dict[str, torch.Tensor]], Any]


@contextmanager
def hidden_states(model: torch.nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a dict that each forward fills with what the modules of these names (`model.layers.3`) put out.

    A layer that returns a tuple gives its first entry. Raises UserError for a name that no module has.
    """
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: torch.nn.Module, _inputs: tuple, output: Any) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for name in layers:
            try:
                module = model.get_submodule(name)
            except AttributeError:
                numbered = [known for known, _ in model.named_modules() if known.rpartition(".")[2].isdigit()]
                raise UserError(
                    f"layers holds {name!r}, and the model has no such module: its layers are {', '.join(numbered)}"
                ) from None
            hooks.callback(module.register_forward_hook(partial(keep, name)).remove)
        yield found
