"""Lenses: what the state after each layer would say if it were the last one.

A lens carries a state h of layer l into the basis of the last layer and reads it with the model's own norm and head.
logit: h as it is. tuned: an affine map for each layer, trained to predict the model's output (Belrose et al. 2023,
arXiv 2303.08112). jacobian: the mean Jacobian of the last layer's state by h (Gurnee et al. 2026, "Verbalizable
Representations Form a Global Workspace in Language Models"; here of one position, which that paper's code calls as
good). Shapes: L layers, P rows, H width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from llmhalluc.backtrack import Layout
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.interp.packed import Copy, forward, inputs_of
from llmhalluc.interp.sites import Sites

LENSES = ("logit", "tuned", "jacobian")


class Reading(NamedTuple):
    """What a lens says at one layer of a row: of the target its logit, log-probability and rank (0 is the first).

    mass: the probability of all trigger ids. kl: of the model's own output to this, in nats.
    """

    logit: float
    logprob: float
    rank: int
    mass: float
    kl: float


@dataclass
class Lens:
    """maps: layer -> (H, H) and (H), or absent for the identity; the last layer has none."""

    kind: str
    maps: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def logits(self, sites: Sites, layer: int, states_PH: torch.Tensor) -> torch.Tensor:
        """Return logits (P, V) of states after a layer; of the last layer they are the model's own."""
        if layer in self.maps:
            matrix, bias = self.maps[layer]
            states_PH = states_PH @ matrix.to(states_PH).T + bias.to(states_PH)
        return sites.unembed(sites.norm(states_PH))


@torch.inference_mode()
def read(
    sites: Sites, lens: Lens, states_LPH: torch.Tensor, targets: Sequence[int], triggers: Sequence[int]
) -> list[list[Reading]]:
    """Return for each row what the lens says at each layer."""
    logits_PV = sites.unembed(sites.norm(states_LPH[-1]))
    final_PV = logits_PV.log_softmax(-1)
    target_P1 = torch.tensor(targets, device=final_PV.device)[:, None]
    by_layer = []
    for layer, states_PH in enumerate(states_LPH):
        logits_PV = lens.logits(sites, layer, states_PH)
        logprobs_PV = logits_PV.log_softmax(-1)
        chosen_P1 = logits_PV.gather(1, target_P1)
        columns = (
            chosen_P1[:, 0], logprobs_PV.gather(1, target_P1)[:, 0], (logits_PV > chosen_P1).sum(1),
            logprobs_PV[:, list(triggers)].exp().sum(1), (final_PV.exp() * (final_PV - logprobs_PV)).sum(1),
        )  # fmt: skip
        by_layer.append([Reading(*row) for row in zip(*(column.tolist() for column in columns), strict=True)])
    return [list(layers) for layers in zip(*by_layer, strict=True)]


def states(sites: Sites, rows: Layout, at: Sequence[int]) -> torch.Tensor:
    """Return the states (L, P, H) after each layer at some rows."""
    keep = [("resid", layer) for layer in range(sites.layers)]
    kept = forward(sites, rows, [Copy(row) for row in at], keep).kept
    return torch.stack([kept[site] for site in keep])


def fit(kind: str, sites: Sites, texts: Sequence[tuple[Layout, Sequence[int]]], steps: int = 100) -> Lens:
    """Return a lens fitted on rows of texts: (rows as fed, which of them)."""
    if kind == "logit":
        return Lens(kind)
    if kind == "jacobian":
        return Lens(kind, _mean_jacobians(sites, texts))
    states_LPH = torch.cat([states(sites, rows, at) for rows, at in texts], 1)
    return Lens(kind, {layer: _translator(sites, states_LPH[layer], states_LPH[-1], steps)
                       for layer in range(sites.layers - 1)})  # fmt: skip


def _mean_jacobians(sites: Sites, texts: Sequence[tuple[Layout, Sequence[int]]]) -> dict[int, Any]:
    """J_l = E[d h_last / d h_l] at one position: copy i of a row gives row i of every J_l in a single backward."""
    total = {layer: torch.zeros(sites.width, sites.width, dtype=torch.float64) for layer in range(sites.layers - 1)}
    count = 0
    resid = [("resid", layer) for layer in range(sites.layers)]
    for rows, at in texts:
        for row in at:
            inputs = inputs_of(sites, rows, [row] * sites.width)
            with torch.enable_grad(), sites.hooked({}, resid) as kept:
                embeds = sites.decoder.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
                sites.decoder(inputs_embeds=embeds, **inputs)
                outputs = kept[resid[-1]][0, row:].diagonal().sum()
                found = torch.autograd.grad(outputs, [kept[site] for site in resid[:-1]])
            for layer, gradient in enumerate(found):
                total[layer] += gradient[0, row:].double().cpu()
            count += 1
    zero = torch.zeros(sites.width)
    return {layer: ((matrix / count).to(sites.model.dtype), zero) for layer, matrix in total.items()}


def _translator(sites: Sites, states_PH: torch.Tensor, last_PH: torch.Tensor, steps: int) -> tuple:
    """The affine map of one layer: from the identity, by Adam on the KL divergence to the model's own output."""
    with torch.inference_mode():
        final_PV = sites.unembed(sites.norm(last_PH)).log_softmax(-1)
    states_PH, final_PV = states_PH.clone(), final_PV.clone()
    matrix = torch.zeros(sites.width, sites.width, dtype=states_PH.dtype, device=states_PH.device, requires_grad=True)
    bias = torch.zeros(sites.width, dtype=states_PH.dtype, device=states_PH.device, requires_grad=True)
    optimizer = torch.optim.Adam([matrix, bias], lr=1e-3)
    best, kept = float("inf"), (matrix.detach().clone(), bias.detach().clone())
    for _ in range(steps + 1):
        logprobs_PV = sites.unembed(sites.norm(states_PH + states_PH @ matrix.T + bias)).log_softmax(-1)
        loss = functional.kl_div(logprobs_PV, final_PV, log_target=True, reduction="batchmean")
        if float(loss) < best:
            best, kept = float(loss), (matrix.detach().clone(), bias.detach().clone())
        optimizer.zero_grad()
        loss.backward(inputs=[matrix, bias])
        optimizer.step()
    return kept[0] + torch.eye(sites.width, dtype=matrix.dtype, device=matrix.device), kept[1]


def save(lens: Lens, path: Path) -> None:
    """Write a lens as safetensors: `matrix.LAYER`, `bias.LAYER`, its kind in the metadata."""
    tensors = {f"matrix.{layer}": matrix.contiguous().cpu() for layer, (matrix, _) in lens.maps.items()}
    tensors |= {f"bias.{layer}": bias.clone().cpu() for layer, (_, bias) in lens.maps.items()}
    save_file(tensors, path, {"kind": lens.kind})


def load(path: Path, sites: Sites) -> Lens:
    """Read a lens of ours (.safetensors) or one of the jlens library (.pt). Raises UserError where it does not fit."""
    try:
        if path.suffix == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
            zero = torch.zeros(int(found["d_model"]))
            lens = Lens("jacobian", {int(layer): (matrix.float(), zero) for layer, matrix in found["J"].items()})
        else:
            with safe_open(path, "pt") as file:
                names = [name.partition(".")[2] for name in file.keys() if name.startswith("matrix.")]  # noqa: SIM118
                maps = {int(n): (file.get_tensor(f"matrix.{n}"), file.get_tensor(f"bias.{n}")) for n in names}
                lens = Lens(file.metadata()["kind"], maps)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"scan.lens_file is {path}, which is no fitted lens: {one_line(error, 200)}") from None
    sizes = {tuple(matrix.shape) for matrix, _ in lens.maps.values()}
    if sizes - {(sites.width, sites.width)} or any(layer >= sites.layers for layer in lens.maps):
        raise UserError(
            f"scan.lens_file {path} is of another model ({len(lens.maps)} maps of {sorted(sizes)}), this one has "
            f"{sites.layers} layers of width {sites.width}"
        )
    return lens
