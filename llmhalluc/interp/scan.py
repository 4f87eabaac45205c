"""ablation-scan: what each sublayer does for the token that takes something back, and what it does for any token.

An effect is the log-probability of a token with everything in place, less that with a component taken out: positive
where the component promotes the token. Layers are chosen on one part of the problems and tested on the other.
"""

import json
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from llmhalluc.eval.stats import clustered, holm
from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import write_json
from llmhalluc.interp.ablate import Outputs, ablation, collect_references, random_sets, save_references
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.events import Point, Points, Sample
from llmhalluc.interp.load import Model, model_of
from llmhalluc.interp.packed import Copy, Edit, forward, inputs_of
from llmhalluc.interp.run import Row, Run, read_csv, write_csv
from llmhalluc.interp.sites import SUBLAYERS, Site

IMPORTANCE_COLUMNS = (
    "variant", "method", "kind", "layer", "head", "split", "events", "problems", "effect", "effect_low", "effect_high",
    "effect_p", "effect_significant", "control_effect", "token_effect", "contrast", "contrast_low", "contrast_high",
    "contrast_p", "contrast_significant", "attribution",
)  # fmt: skip


class Effects(NamedTuple):
    """Effects of K edits (points, K) on a point's target, and on the token that was written there."""

    target: np.ndarray
    written: np.ndarray


def effects(
    model: Model, samples: Sequence[Sample], points: Sequence[Point], edits: Sequence[tuple[Edit, ...]]
) -> Effects:
    """Return what each set of edits does at each point; the points of a sample share their forwards."""
    target, written = np.zeros((len(points), len(edits))), np.zeros((len(points), len(edits)))
    copies_of = [(), *edits]
    for at in dict.fromkeys(point.at for point in points):
        numbers = [number for number, point in enumerate(points) if point.at == at]
        copies = [Copy(points[number].row, own) for number in numbers for own in copies_of]
        logprobs = forward(model.sites, model.rows(samples[at]), copies).logits.log_softmax(-1)
        ids = samples[at]["prompt_ids"] + samples[at]["completion_ids"]
        for number, found in zip(numbers, logprobs.split(len(copies_of)), strict=True):
            for result, token in ((target, points[number].target), (written, ids[points[number].row + 1])):
                result[number] = (found[0, token] - found[1:, token]).cpu().numpy()
    return Effects(target, written)


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
    if all(path.exists() for path in outputs) and run.is_done(f"ablation-scan {variant}", inputs, settings, own):
        return
    model, rng = model_of(run), Random(config.interp.seed)
    texts = [(model.rows(sample), offered_rows(sample)) for sample in points.samples if sample["completion_ids"]]
    references = collect_references(model.sites, texts, rng)
    components = model.sites.components
    sets = {method: [(ablation(method, site, references, scan.scale, rng),) for site in components]
            for method in scan.ablations}  # fmt: skip
    test = test_problems(problems, scan.test_share, config.interp.seed)
    everywhere = [edit for method in sets for edit in sets[method]]
    at_events, at_others = _both(model, points, everywhere)
    guesses = _attributions(model, points, references, scan.scale)
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
    chosen = _tested(run, model, points, layers, references, test)
    chosen["attribution_agreement"] = _agreement(rows)
    write_csv(outputs[0], rows, IMPORTANCE_COLUMNS, variant=variant)
    before = json.loads(outputs[1].read_text(encoding="utf-8")) if outputs[1].exists() else {}
    write_json(outputs[1], before | {variant: chosen})
    save_references(run, variant, references)
    write_lines(own[1], per_event)
    run.mark_done(f"ablation-scan {variant}", inputs, settings, own)


def offered_rows(sample: Sample) -> range:
    """Return the rows of a sample that predict a token of its completion."""
    n_prompt = len(sample["prompt_ids"])
    return range(n_prompt - 1, n_prompt + len(sample["completion_ids"]) - 1)


def test_problems(problems: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the problems for the test of what the others chose: `share` of them, at least one where there are two."""
    names = sorted(set(problems))
    Random(seed).shuffle(names)
    count = min(max(1, round(share * len(names))), len(names) - 1) if len(names) > 1 else 0
    return set(names[:count])


def importance(
    at_events: Effects, at_others: Effects, problems: Sequence[str], inside: Sequence[bool]
) -> dict[str, Any]:
    """Return the columns of ablation_importance.csv for the events `inside`; NaN in `at_others` is no control.

    control_effect: on the event's onset id at the control. token_effect: on the token that was written at the control.
    contrast: effect less token_effect. Significant is what Holm leaves of all components at 5%.
    """
    inside = np.asarray(inside)
    count = at_events.target.shape[1]
    columns: dict[str, Any] = {"events": [int(inside.sum())] * count}
    names = [problem for problem, is_in in zip(problems, inside, strict=True) if is_in]
    columns["problems"] = [len(set(names))] * count
    paired = inside & ~np.isnan(at_others.target).any(1)
    paired_names = [problem for problem, is_in in zip(problems, paired, strict=True) if is_in]
    contrast = at_events.target - at_others.written
    for name, values, rows, clusters in (
        ("effect", at_events.target, inside, names),
        ("contrast", contrast, paired, paired_names),
    ):
        if not clusters:
            columns |= {
                column: [""] * count
                for column in (name, *(f"{name}_{end}" for end in ("low", "high", "p", "significant")))
            }
            continue
        found = clustered(values[rows], clusters)
        columns[name] = [one.mean for one in found]
        columns |= {f"{name}_{end}": [_finite(getattr(one, end)) for one in found] for end in ("low", "high", "p")}
        columns[f"{name}_significant"] = [int(fallen) for fallen in holm([one.p for one in found])]
    for name, values in (("control_effect", at_others.target), ("token_effect", at_others.written)):
        columns[name] = values[paired].mean(0).tolist() if paired_names else [""] * count
    return columns


def choose_layers(rows: Sequence[Row], method: str, count: int) -> list[int]:
    """Return the layers of the largest contrast (effect, where there are no controls) on the problems that choose."""
    score: dict[int, float] = {}
    own = [row for row in rows if row["method"] == method and row["split"] == "choose"]
    name = "contrast" if all(row["contrast"] != "" for row in own) else "effect"
    for row in own:
        score[row["layer"]] = score.get(row["layer"], 0.0) + float(row[name] or 0.0)
    return sorted(score, key=lambda layer: -score[layer])[:count]


def _both(model: Model, points: Points, edits: Sequence[tuple[Edit, ...]]) -> tuple[Effects, Effects]:
    """The effects at events and at their controls, NaN where there is none."""
    at_events = effects(model, points.samples, points.events, edits)
    others = points.controls
    known = [number for number, point in enumerate(others) if point is not None]
    found = effects(model, points.samples, [others[number] for number in known], edits)
    empty = np.full((len(others), len(edits)), np.nan)
    at_others = Effects(empty.copy(), empty.copy())
    at_others.target[known], at_others.written[known] = found
    return at_events, at_others


def _heads(model: Model, points: Points, variant: str, layers: Sequence[int]) -> list[Row]:
    """Rows of the heads of the chosen layers, each set to zero."""
    places = [(layer, head) for layer in layers for head in range(model.sites.heads)]
    both = _both(model, points, [(head_edit(model, *place),) for place in places])
    found = importance(*both, points.problems, [True] * len(points.problems))
    return [
        {"variant": variant, "method": "zero", "kind": "head", "layer": layer, "head": head, "split": "all"}
        | {name: column[k] for name, column in found.items()}
        for k, (layer, head) in enumerate(places)
    ]


def head_edit(model: Model, layer: int, head: int) -> Edit:
    """Return what sets one attention head to zero."""
    from llmhalluc.interp.packed import site_width

    width = site_width(model.sites, ("heads", layer))
    size = width // model.sites.heads
    scale = torch.ones(width)
    scale[head * size : (head + 1) * size] = 0.0
    return Edit(("heads", layer), scale)


def _tested(
    run: Run, model: Model, points: Points, layers: Sequence[int], references: Outputs, test: set[str]
) -> dict[str, Any]:
    """The chosen layers together on the problems that did not choose them, beside random sets of as many sublayers."""
    scan, rng = run.config.scan, Random(run.config.interp.seed)
    chosen: list[Site] = [(kind, layer) for layer in layers for kind in SUBLAYERS]
    sets = [chosen, *random_sets(model.sites, chosen, scan.random_sets, rng)]
    edits = [tuple(ablation(scan.ablations[0], site, references, scan.scale, rng) for site in one) for one in sets]
    inside = [number for number, problem in enumerate(points.problems) if problem in test]
    tested = points.only(inside)
    found: dict[str, Any] = {
        "layers": list(layers), "method": scan.ablations[0], "random_sets": len(sets) - 1, "test_events": len(inside),
        "test_problems": len(test), "choose_problems": len(set(points.problems) - test),
    }  # fmt: skip
    if not inside:
        return found | {"note": "the events are of one problem: nothing was left to test on"}
    at_events, at_others = _both(model, tested, edits)
    clusters = tested.problems
    paired = ~np.isnan(at_others.target).any(1)
    for name, values, rows in (
        ("effect", at_events.target, np.ones(len(inside), bool)),
        ("contrast", at_events.target - at_others.written, paired),
    ):
        if not rows.any():
            continue
        means = clustered(values[rows], [one for one, is_in in zip(clusters, rows, strict=True) if is_in])
        null = sorted(one.mean for one in means[1:])
        found[name] = {"mean": means[0].mean, "low": _finite(means[0].low), "high": _finite(means[0].high)}
        found[name] |= {"p": (1 + sum(one >= means[0].mean for one in null)) / len(means), "null": null}
    return found


def _attributions(model: Model, points: Points, references: Outputs, scale: float) -> dict[str, np.ndarray]:
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


def _finite(value: float) -> float | str:
    return value if abs(value) != float("inf") else ""


def importance_of(run: Run, variant: str) -> list[dict[str, str]]:
    """Return the rows of ablation_importance.csv of a variant. Raises UserError before ablation-scan."""
    path = run.need(run.path("analysis", "ablation_importance.csv"), f"ablation-scan --variant {variant}")
    return [row for row in read_csv(path) if row["variant"] == variant]
