"""How a component is taken out, what it wrote elsewhere, and random sets of components as a null."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llmhalluc.extras.errors import UserError
from llmhalluc.interp.packed import Copy, Edit, forward
from llmhalluc.interp.run import Run
from llmhalluc.interp.sites import SUBLAYERS, Site, Sites

REFERENCES = 64  # rows of the run's texts whose outputs stand for a component's mean, and of which resample draws
Outputs = dict[Site, torch.Tensor]  # of each component, (rows, width)


def ablation(method: str, site: Site, references: Outputs, scale: float, rng: Random) -> Edit:
    """Return what takes a component out.

    zero: it writes nothing. scale: `scale` of what it wrote. mean: the mean of what it writes at reference rows.
    resample: what it wrote at one of them.
    """
    if method == "zero":
        return Edit(site)
    if method == "scale":
        return Edit(site, scale)
    outputs = references[site]
    return Edit(site, 0.0, outputs.mean(0) if method == "mean" else outputs[rng.randrange(len(outputs))])


@dataclass
class Ablations:
    """How sets of components are taken out; what resample draws differs from number to number (a point, a sample)."""

    method: str
    sets: Sequence[Sequence[Site]]
    references: Outputs
    scale: float = 0.5
    seed: int = 0

    def __call__(self, number: int) -> list[tuple[Edit, ...]]:
        """Return a tuple of edits for each set."""
        rng = Random(f"{self.seed}-{number}")
        return [
            tuple(ablation(self.method, site, self.references, self.scale, rng) for site in one) for one in self.sets
        ]


def collect_references(sites: Sites, texts: Sequence[tuple[Any, Sequence[int]]], rng: Random) -> Outputs:
    """Return what every component writes at REFERENCES rows of the texts: (rows as fed, rows to draw from)."""
    found: dict[Site, list[torch.Tensor]] = {site: [] for site in sites.components}
    share = -(-REFERENCES // len(texts))
    for rows, offered in texts:
        copies = [Copy(row) for row in rng.sample(list(offered), min(share, len(offered)))]
        kept = forward(sites, rows, copies, sites.components).kept
        for site in found:
            found[site].append(kept[site])
    return {site: torch.cat(outputs)[:REFERENCES] for site, outputs in found.items()}


def save_references(run: Run, variant: str, references: Outputs) -> None:
    """Write analysis/references__VARIANT.safetensors."""
    tensors = {f"{kind}.{layer}": outputs.contiguous() for (kind, layer), outputs in references.items()}
    save_file(tensors, run.path("analysis", f"references__{variant}.safetensors"))


def load_references(run: Run, variant: str) -> Outputs:
    """Read them back. Raises UserError before ablation-scan."""
    path = run.path("analysis", f"references__{variant}.safetensors")
    run.need(path, f"ablation-scan --variant {variant}")
    return {(name.split(".")[0], int(name.split(".")[1])): outputs for name, outputs in load_file(path).items()}


def selection(run: Run, variant: str) -> dict[str, Any]:
    """Return what ablation-scan chose. Raises UserError before that."""
    command = f"ablation-scan --variant {variant}"
    path = run.need(run.path("analysis", "selected_layers.json"), command)
    found = json.loads(path.read_text(encoding="utf-8"))
    if variant not in found:
        raise UserError(f"{path} knows nothing of {variant}: run {command} first (--run-id {run.folder.name})")
    return found[variant]


def random_sets(sites: Sites, chosen: Sequence[Site], count: int, rng: Random) -> list[list[Site]]:
    """Return up to `count` different sets with as many sublayers of each kind as `chosen`, and none of its own.

    Where there are no more than that, all of them; none where too few layers are left.
    """
    pools = {kind: [layer for layer in range(sites.layers) if (kind, layer) not in chosen] for kind in SUBLAYERS}
    sizes = {kind: sum(one == kind for one, _ in chosen) for kind in SUBLAYERS}
    if prod(comb(len(pools[kind]), sizes[kind]) for kind in SUBLAYERS) <= count:
        parts = [list(combinations([(kind, layer) for layer in pools[kind]], sizes[kind])) for kind in SUBLAYERS]
        return [[*one, *other] for one, other in product(*parts)]
    found: dict[frozenset[Site], list[Site]] = {}
    while len(found) < count:
        drawn = [(kind, layer) for kind in SUBLAYERS for layer in sorted(rng.sample(pools[kind], sizes[kind]))]
        found.setdefault(frozenset(drawn), drawn)
    return list(found.values())
