"""Many interventions at one position in one forward, exactly: the text once, and a copy of a row for each of them.

What is changed at a row never reaches earlier keys and values. So a copy of the row, with its id and position, that
sees the rows before it and itself is all that an intervention there needs (docs/interp.md). Shapes: T rows of text, C
copies, L layers, H width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmhalluc.backtrack import Layout, layout
from llmhalluc.interp.sites import Change, Site, Sites
from llmhalluc.models.context import attention_window
from llmhalluc.models.transformers_patches import attention_kernel

MOST_COPIES = 1024  # of one forward: what they need of memory grows with the square


class Edit(NamedTuple):
    """An intervention at one site of one copy: `scale * output + shift`; None of shift is zero.

    scale: a number, or a tensor as wide as the site; shift: a tensor as wide as the site.
    """

    site: Site
    scale: float | torch.Tensor = 0.0
    shift: torch.Tensor | None = None


class Copy(NamedTuple):
    """A copy of a row of the text, and what is changed there."""

    row: int
    edits: tuple[Edit, ...] = ()


class Result(NamedTuple):
    """logits (C, V) of what follows each copy, float32 at least; kept: (C, width) of each site asked for."""

    logits: torch.Tensor
    kept: dict[Site, torch.Tensor]


def rows_of(prompt_ids: Sequence[int], completion_ids: Sequence[int], backtrack_id: int | None, context: str) -> Layout:
    """Return the rows that a model was fed for a trace: `layout`, also for a model without BACKTRACK."""
    return layout(prompt_ids, completion_ids, -1 if backtrack_id is None else backtrack_id, context)


def forward(sites: Sites, rows: Layout, copies: Sequence[Copy], keep: Sequence[Site] = ()) -> Result:
    """Return what follows each copy under its edits; `forward_tokens` says how many tokens that takes."""
    results = [_forward(sites, rows, copies[at : at + MOST_COPIES], keep) for at in range(0, len(copies), MOST_COPIES)]
    if len(results) == 1:
        return results[0]
    kept = {site: torch.cat([result.kept[site] for result in results]) for site in keep}
    return Result(torch.cat([result.logits for result in results]), kept)


def forward_tokens(copies: Sequence[Copy]) -> int:
    """Return how many tokens `forward` feeds."""
    groups = [copies[at : at + MOST_COPIES] for at in range(0, len(copies), MOST_COPIES)]
    return sum(max(copy.row for copy in group) + len(group) for group in groups)


def inputs_of(sites: Sites, rows: Layout, copied: Sequence[int]) -> dict:
    """Return the decoder's inputs: the rows before the last of `copied`, then a copy of each of `copied`."""
    device, n = sites.model.device, max(copied)
    order = torch.tensor([*range(n), *copied], device=device)
    all_ids, all_positions, until = (torch.tensor(part, device=device) for part in rows)
    positions = all_positions[order]
    keys, queries = order[None, :n], order[:, None]
    seen = (keys <= queries) & (queries < until[keys])
    seen[n:] &= keys < queries[n:]  # a copy stands in the place of its row
    itself = torch.eye(len(order), dtype=torch.bool, device=device)[:, n:]
    return {
        "input_ids": all_ids[order][None],
        "position_ids": positions[None],
        "attention_mask": _mask(sites, torch.cat([seen, itself], 1), positions),
        "use_cache": False,
    }


@torch.inference_mode()
def _forward(sites: Sites, rows: Layout, copies: Sequence[Copy], keep: Sequence[Site]) -> Result:
    n = max(copy.row for copy in copies)
    newest = (0, slice(n, None))
    with sites.hooked(_changes(sites, copies, n), keep, newest) as kept:
        states = sites.decoder(**inputs_of(sites, rows, [copy.row for copy in copies])).last_hidden_state
    return Result(sites.unembed(states[newest]), kept)


def _changes(sites: Sites, copies: Sequence[Copy], n: int) -> dict[Site, Change]:
    """The edits of all copies by site; copy c is row n + c of the batch."""
    rows: dict[Site, list[int]] = {}
    edits: dict[Site, list[Edit]] = {}
    for at, copy in enumerate(copies):
        for edit in copy.edits:
            rows.setdefault(edit.site, []).append(n + at)
            edits.setdefault(edit.site, []).append(edit)
    return {site: change_at((0, rows[site]), edits[site], sites, ()) for site in rows}


def change_at(index: tuple, edits: Sequence[Edit], sites: Sites, more: tuple[int, ...]) -> Change:
    """Return the Change of edits of one site, one a row; `more` are dimensions between rows and width."""
    device, dtype = sites.model.device, sites.model.dtype
    width = site_width(sites, edits[0].site)

    def spread(value) -> torch.Tensor:
        value = torch.as_tensor(0.0 if value is None else value, dtype=dtype, device=device)
        return value.expand(width).reshape(*more, width)

    scale = torch.stack([spread(edit.scale) for edit in edits])
    shift = torch.stack([spread(edit.shift) for edit in edits])
    return Change(index, scale, shift)


def site_width(sites: Sites, site: Site) -> int:
    """Return the width of a site's output."""
    if site[0] != "heads":
        return sites.width
    module = sites.modules[site]
    return module.in_features if hasattr(module, "in_features") else module.weight.shape[0]  # GPT-2's Conv1D


def _mask(sites: Sites, seen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """A boolean mask (Q, K) as the model takes it; where its layers differ, one for each kind of them."""
    config = sites.decoder.config.get_text_config()
    window = attention_window(config)
    near = seen if window is None else seen & (positions[:, None] - positions[None, :] < window)
    masks = {"full_attention": seen, "sliding_attention": near}
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or ["full_attention"])
    eager, lowest = attention_kernel(config) == "eager", torch.finfo(sites.model.dtype).min
    made = {}
    for kind in kinds:
        mask = masks[kind][None, None]
        hidden = torch.zeros(mask.shape, dtype=sites.model.dtype, device=mask.device)
        made[kind] = hidden.masked_fill(~mask, lowest) if eager else mask
    return made if len(made) > 1 else next(iter(made.values()))
