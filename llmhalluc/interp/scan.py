"""ablation-scan: what each sublayer does for the token that takes something back, and what it does for any token.

An effect is the log-probability of a token with everything in place, less that with a component taken out: positive
where the component promotes the token. Layers are chosen on one part of the problems and tested on the other.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import write_json
from llmhalluc.interp.ablate import Ablations, Outputs, collect_references, random_sets, save_references
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.events import Point, Points, Sample, offered_rows
from llmhalluc.interp.importance import COLUMNS, Effects, choose_layers, importance, joint, split_off
from llmhalluc.interp.load import Model, model_of
from llmhalluc.interp.packed import Copy, Edit, forward, inputs_of, site_width
from llmhalluc.interp.run import Row, Run, Stage, write_csv
from llmhalluc.interp.sites import SUBLAYERS, Site


def effects(
    model: Model, samples: Sequence[Sample], points: Sequence[Point], edits: Callable[[int], Sequence[tuple[Edit, ...]]]
) -> Effects:
    """Return what each set of edits(number of the point) does at each point; those of a sample share their forwards."""
    found: list[tuple[np.ndarray, np.ndarray]] = [None] * len(points)  # type: ignore[list-item]  # each is set below
    for at in dict.fromkeys(point.at for point in points):
        numbers = [number for number, point in enumerate(points) if point.at == at]
        own = [[(), *edits(number)] for number in numbers]
        copies = [Copy(points[number].row, one) for number, sets in zip(numbers, own, strict=True) for one in sets]
        logprobs = forward(model.sites, model.rows(samples[at]), copies).logits.log_softmax(-1)
        ids = samples[at]["prompt_ids"] + samples[at]["completion_ids"]
        for number, here in zip(numbers, logprobs.split(len(own[0])), strict=True):
            tokens = (points[number].target, ids[points[number].row + 1])
            target, written = ((here[0, token] - here[1:, token]).cpu().numpy() for token in tokens)
            found[number] = (target, written)
    return Effects(*(np.array([one[side] for one in found]) for side in (0, 1)))


def ablation_scan(run: Run, variant: str) -> None:
    """Write ablation_importance.csv, selected_layers.json, references and effects of a variant.

    Raises UserError before detect-events and where it found no event.
    """
    config, scan = run.config, run.config.scan
    inputs = [run.path("generations", f"{variant}__baseline.jsonl")]
    settings = {
        key: config.plain()["scan"][key] for key in ("ablations", "scale", "layers", "random_sets", "test_share")
    }
    settings["seed"] = config.interp.seed
    named = ("ablation_importance.csv", "selected_layers.json")
    outputs = [run.path("analysis", name) for name in named]
    own = [
        run.path("analysis", f"references__{variant}.safetensors"),
        run.path("analysis", f"effects__{variant}.jsonl"),
    ]
    points = points_of(run, variant)
    problems, settings["points"] = points.problems, points.digest
    stage = Stage(f"ablation-scan {variant}", inputs, settings, own, outputs)
    if run.is_done(stage):
        return
    model, rng = model_of(run), Random(config.interp.seed)
    texts = [(model.rows(sample), offered_rows(sample)) for sample in points.samples if sample["completion_ids"]]
    references = collect_references(model.sites, texts, rng)
    components = model.sites.components
    each = [
        Ablations(method, [[site] for site in components], references, scan.scale, config.interp.seed)
        for method in scan.ablations
    ]
    test = split_off(problems, scan.test_share, config.interp.seed)
    at_events, at_others = _both(model, points, lambda number: [own for method in each for own in method(number)])
    guesses = attributions(model, points, references, scan.scale)
    rows, per_event = [], []
    for number, method in enumerate(scan.ablations):
        here = slice(number * len(components), (number + 1) * len(components))
        part = Effects(at_events.target[:, here], at_events.written[:, here])
        other = Effects(at_others.target[:, here], at_others.written[:, here])
        for split in ("all", "choose", "test"):
            inside = [split == "all" or (problem in test) == (split == "test") for problem in problems]
            found = importance(part, other, problems, inside)
            for k, (kind, layer) in enumerate(components):
                guess = guesses.get(method)
                more = {"attribution": float(guess[inside, k].mean()) if guess is not None and any(inside) else ""}
                place = {"variant": variant, "method": method, "kind": kind, "layer": layer, "split": split}
                rows.append(place | {name: column[k] for name, column in found.items()} | more)
        if number == 0:
            per_event = [{"event": point.event, "effects": np.round(one, 5).tolist()}
                         for point, one in zip(points.events, part.target, strict=True)]  # fmt: skip
    layers = choose_layers(rows, scan.ablations[0], scan.layers)
    rows += _heads(model, points, variant, layers)
    chosen = tested(run, model, points, layers, references, test)
    chosen["attribution_agreement"] = _agreement(rows)
    write_csv(outputs[0], rows, COLUMNS, variant=variant)
    before = json.loads(outputs[1].read_text(encoding="utf-8")) if outputs[1].exists() else {}
    write_json(outputs[1], before | {variant: chosen})
    save_references(run, variant, references)
    write_lines(own[1], per_event)
    run.mark_done(stage)


def _both(model: Model, points: Points, edits: Callable[[int], Sequence[tuple[Edit, ...]]]) -> tuple[Effects, Effects]:
    """The effects at events and at their controls, NaN where there is none."""
    at_events = effects(model, points.samples, points.events, edits)
    known = [number for number, point in enumerate(points.controls) if point is not None]
    at_others = Effects(*(np.full(at_events.target.shape, np.nan) for _ in range(2)))
    if known:
        found = effects(model, points.samples, [points.controls[number] for number in known], edits)
        at_others.target[known], at_others.written[known] = found
    return at_events, at_others


def _heads(model: Model, points: Points, variant: str, layers: Sequence[int]) -> list[Row]:
    """Rows of the heads of the chosen layers, each set to zero."""
    places = [(layer, head) for layer in layers for head in range(model.sites.heads)]
    both = _both(model, points, lambda _: [(head_edit(model, *place),) for place in places])
    found = importance(*both, points.problems, [True] * len(points.problems))
    return [
        {"variant": variant, "method": "zero", "kind": "head", "layer": layer, "head": head, "split": "all"}
        | {name: column[k] for name, column in found.items()}
        for k, (layer, head) in enumerate(places)
    ]


def head_edit(model: Model, layer: int, head: int) -> Edit:
    """Return what sets one attention head to zero."""
    width = site_width(model.sites, ("heads", layer))
    size = width // model.sites.heads
    scale = torch.ones(width)
    scale[head * size : (head + 1) * size] = 0.0
    return Edit(("heads", layer), scale)


def tested(
    run: Run, model: Model, points: Points, layers: Sequence[int], references: Outputs, test: set[str]
) -> dict[str, Any]:
    """The chosen layers together on the problems that did not choose them, beside random sets of as many sublayers."""
    scan, rng = run.config.scan, Random(run.config.interp.seed)
    chosen: list[Site] = [(kind, layer) for layer in layers for kind in SUBLAYERS]
    sets = [chosen, *random_sets(model.sites, chosen, scan.random_sets, rng)]
    edits = Ablations(scan.ablations[0], sets, references, scan.scale, run.config.interp.seed)
    inside = [number for number, problem in enumerate(points.problems) if problem in test]
    tested = points.only(inside)
    found: dict[str, Any] = {
        "layers": list(layers), "method": scan.ablations[0], "random_sets": len(sets) - 1, "test_events": len(inside),
        "test_problems": len(test), "choose_problems": len(set(points.problems) - test),
    }  # fmt: skip
    if not inside:
        return found | {"note": "the events are of one problem: nothing was left to test on"}
    return found | joint(*_both(model, tested, edits), tested.problems)


def attributions(model: Model, points: Points, references: Outputs, scale: float) -> dict[str, np.ndarray]:
    """Attribution patching (Nanda 2023): the first-order guess of every effect, from one backward an event."""
    components = model.sites.components
    zero, mean = (np.zeros((len(points.events), len(components))) for _ in range(2))
    for number, point in enumerate(points.events):
        inputs = inputs_of(model.sites, model.rows(points.samples[point.at]), [point.row])
        with torch.enable_grad(), model.sites.hooked({}, components) as kept:
            embeds = model.sites.decoder.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
            state = model.sites.decoder(inputs_embeds=embeds, **inputs).last_hidden_state[0, -1]
            logprob = model.sites.unembed(state).log_softmax(-1)[point.target]
            gradients = torch.autograd.grad(logprob, [kept[site] for site in components])
        for k, (site, gradient) in enumerate(zip(components, gradients, strict=True)):
            output = kept[site][0, -1].detach()
            zero[number, k] = float(gradient[0, -1] @ output)
            mean[number, k] = float(gradient[0, -1] @ (output - references[site].mean(0).to(output)))
    return {"zero": zero, "scale": (1 - scale) * zero, "mean": mean}


def _agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Spearman's correlation of guessed and exact mean effects over the components."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [
            row
            for row in rows
            if row["method"] == method and row["split"] == "all" and row.get("attribution", "") != ""
        ]
        if len(own) > 2:
            found[method] = float(spearmanr([row["effect"] for row in own], [row["attribution"] for row in own])[0])
    return found
