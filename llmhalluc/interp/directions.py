"""patch and steer: whether the state at an event carries the decision, and along which direction.

patch: the stream after a layer at a control is replaced by that at its event, and the other way round. steer: multiples
of the difference of means are added to the stream, beside random directions of the same norm. Both chosen on one part
of the problems (the layers, the direction) and measured on the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from llmhalluc.eval.stats import clustered, holm
from llmhalluc.extras.errors import UserError
from llmhalluc.interp.ablate import selection
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.events import Point, Points, Sample
from llmhalluc.interp.importance import finite, split_off
from llmhalluc.interp.load import Model, model_of
from llmhalluc.interp.packed import Copy, Edit, forward
from llmhalluc.interp.run import Row, Run, Stage, write_csv

PATCH_COLUMNS = (
    "variant",
    "direction",
    "layer",
    "pairs",
    "problems",
    "effect",
    "low",
    "high",
    "p",
    "significant",
    "recovered",
)
RESPONSE = ("dose", "points", "problems", "effect", "low", "high", "p_null", "random_mean", "random_low", "random_high",
            "random_directions")  # fmt: skip
DOSE_COLUMNS = ("variant", "layer", "at", *RESPONSE)


class Direction(NamedTuple):
    """A vector (H) that is added to the stream after a layer."""

    layer: int
    vector: torch.Tensor


def steer(run: Run, variant: str) -> None:
    """Write patching.csv and dose_response.csv of a variant. Raises UserError before ablation-scan."""
    config, scan = run.config, run.config.scan
    layer = selection(run, variant)["layers"][0]
    names = ("doses", "random_directions", "test_share")
    settings = {name: config.plain()["scan"][name] for name in names} | {"seed": config.interp.seed, "layer": layer}
    inputs = [run.path("generations", f"{variant}__baseline.jsonl")]
    outputs = [run.path("analysis", name) for name in ("patching.csv", "dose_response.csv")]
    mark = run.path("analysis", f"direction__{variant}.safetensors")
    points = points_of(run, variant).paired()
    settings["points"] = points.digest
    stage = Stage(f"steer {variant}", inputs, settings, [mark], outputs)
    if run.is_done(stage):
        return
    model = model_of(run)
    if not points.events:
        raise UserError(f"no event of variant {variant} has a control: generate more (interp.samples)")
    test = split_off(points.problems, scan.test_share, config.interp.seed)
    at_events, at_others = (model.states(points.samples, own) for own in (points.events, points.controls))
    rows = patching(model, points, at_events, at_others)
    write_csv(outputs[0], [{"variant": variant} | row for row in rows], PATCH_COLUMNS, variant=variant)
    chosen = torch.tensor([problem not in test for problem in points.problems])
    direction = (at_events[:, chosen] - at_others[:, chosen]).mean(1)  # (L, H)
    tested = points.only([number for number, problem in enumerate(points.problems) if problem in test])
    made: list[Row] = []
    for at, own in (("control", tested.controls), ("event", tested.events)):
        found = dose_response(run, model, tested, own, Direction(layer, direction[layer])) if own else []
        made += [{"variant": variant, "layer": layer, "at": at} | row for row in found]
    write_csv(outputs[1], made, DOSE_COLUMNS, variant=variant)
    save_file({"direction": direction.contiguous().cpu()}, mark)
    run.mark_done(stage)


def patching(model: Model, points: Points, at_events: torch.Tensor, at_others: torch.Tensor) -> list[Row]:
    """Return what the other side's state does to the log-probability of the onset id, by layer and direction.

    recovered: the share of the difference between event and control that the patched state brings.
    """
    rows, problems, samples = [], points.problems, points.samples
    sides = (points.events, points.controls)
    base = [[_logprobs(model, samples, point, [()])[0] for point in side] for side in sides]
    gap = np.mean(base[0]) - np.mean(base[1])
    for name, side, source in (("event_to_control", 1, at_events), ("control_to_event", 0, at_others)):
        values = []
        for number, point in enumerate(sides[side]):
            edits = [(Edit(("resid", layer), 0.0, source[layer, number]),) for layer in range(model.sites.layers)]
            values.append(np.array(_logprobs(model, samples, point, edits)) - base[side][number])
        estimates = clustered(values, problems)
        fallen = holm([one.p for one in estimates])
        for layer, (one, is_fallen) in enumerate(zip(estimates, fallen, strict=True)):
            share = one.mean / gap * (1 if side else -1) if gap else ""
            place = {"direction": name, "layer": layer, "pairs": len(problems), "problems": len(set(problems))}
            spread = {"effect": one.mean, "low": finite(one.low), "high": finite(one.high), "p": one.p}
            rows.append(place | spread | {"significant": int(is_fallen), "recovered": share})
    return rows


def dose_response(
    run: Run, model: Model, points: Points, own: Sequence[Point], direction: Direction
) -> list[Row]:  # fmt: skip
    """Return the change of the onset id's log-probability for each dose of the direction, and of random ones.

    p_null: the share of random directions, the direction itself counted, whose effect is at least as large in size.
    """
    scan, (layer, vector) = run.config.scan, direction
    generator = torch.Generator().manual_seed(run.config.interp.seed)
    random = torch.randn(scan.random_directions, len(vector), generator=generator, dtype=torch.float64)
    random = (random / random.norm(dim=1, keepdim=True)).to(vector) * vector.norm()
    vectors = [vector, *random]
    edits = [(Edit(("resid", layer), 1.0, dose * one),) for dose in scan.doses for one in vectors]
    values = []
    for point in own:
        base, *after = _logprobs(model, points.samples, point, [(), *edits])
        values.append(np.array(after) - base)
    estimates, rows = clustered(values, points.problems), []
    for number, dose in enumerate(scan.doses):
        one, *null = estimates[number * len(vectors) : (number + 1) * len(vectors)]
        means = sorted(other.mean for other in null)
        low, high = np.quantile(means, [0.025, 0.975])
        p = (1 + sum(abs(mean) >= abs(one.mean) for mean in means)) / len(vectors)
        place = {"dose": dose, "points": len(own), "problems": len(set(points.problems))}
        spread = {"effect": one.mean, "low": finite(one.low), "high": finite(one.high), "p_null": p}
        chance = {"random_mean": float(np.mean(means)), "random_low": float(low), "random_high": float(high)}
        rows.append(place | spread | chance | {"random_directions": len(null)})
    return rows


def _logprobs(model: Model, samples: Sequence[Sample], point: Point, edits: Sequence[tuple[Edit, ...]]) -> list[float]:
    """The log-probability of the point's target under each set of edits."""
    copies = [Copy(point.row, own) for own in edits]
    logits = forward(model.sites, model.rows(samples[point.at]), copies).logits
    return logits.log_softmax(-1)[:, point.target].tolist()
