"""What the report shows of a token that is clicked: lens, probe, attention and ablation at its row."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file

from llmhalluc.backtrack import erasures
from llmhalluc.interp import lens as lenses
from llmhalluc.interp.ablate import Ablations, load_references, selection
from llmhalluc.interp.events import Points, Sample, offered_rows, pieces
from llmhalluc.interp.load import Model
from llmhalluc.interp.packed import Copy, forward
from llmhalluc.interp.run import BASELINE, Run, read_csv

WINDOW = 8  # tokens on each side of an event for which every sublayer is taken out
LOOKED_AT = 5  # earlier tokens that are named


def traces(run: Run, model: Model, points: Points, variant: str) -> list[dict[str, Any]]:
    """Return scan.traces samples with events, those of different problems first, ready for the page's script."""
    lens = lenses.load(run.path("analysis", f"lens__{variant}.safetensors"), model.sites)
    probe = load_file(run.path("analysis", f"probe__{variant}.safetensors"))
    marks = _marks(run, variant)
    by_problem: dict[str, list[int]] = {}
    for at in dict.fromkeys(point.at for point in points.events):
        by_problem.setdefault(points.samples[at]["example_id"], []).append(at)
    order = sorted((place, at) for ats in by_problem.values() for place, at in enumerate(ats))
    chosen = [at for _, at in order[: run.config.scan.traces]]
    return [_trace(run, model, variant, points, at, (lens, probe), marks) for at in chosen]


def _trace(
    run: Run, model: Model, variant: str, points: Points, at: int, readers: tuple, marks: dict
) -> dict[str, Any]:  # fmt: skip
    """One trace; readers are the lens and the probe."""
    sample, (lens, probe) = points.samples[at], readers
    ids = sample["completion_ids"]
    rows, offered = model.rows(sample), list(offered_rows(sample))
    triggers = sorted({point.target for point in points.events})
    own = [point for point in points.events if point.at == at]
    target = own[0].target
    states = lenses.states(model.sites, rows, offered)
    readings = lenses.read(model.sites, lens, states, [target] * len(offered), triggers)
    scores = torch.einsum("lph,lh->pl", states.float().cpu(), probe["weight"]) + probe["bias"]
    looks = _looks(model, rows, offered)
    near = [row for row in offered if any(abs(row - point.row) <= WINDOW for point in own)]
    effects = _effects(run, model, variant, (sample, near, target))
    gone = {one.token for one in erasures(ids, model.loaded.backtrack_id)}
    texts, tokens = pieces(ids, model.decode), []
    for i, (token, row) in enumerate(zip(ids, offered, strict=True)):
        mark = marks.get((sample["example_id"], str(sample["sample_id"]), i), "")
        one = {"text": texts[i], "kind": _kind(model, i, token, gone), "event": mark}
        one |= {"lens": [round(reading.logprob, 2) for reading in readings[i]], "mass": round(readings[i][-1].mass, 4)}
        one |= {"probe": [round(p, 3) for p in scores[i].sigmoid().tolist()], "looks": looks[i]}
        tokens.append(one | {"effects": effects.get(row)})
    heading = f"{sample['example_id']}, sample {sample['sample_id']}"
    prompt = pieces(sample["prompt_ids"], model.decode)
    return {"heading": heading, "target": model.decode([target]), "prompt": prompt, "tokens": tokens}


def _marks(run: Run, variant: str) -> dict[tuple[str, str, int], str]:
    """(problem, sample, token) of each onset -> strict or relaxed."""
    marks = {}
    for row in read_csv(run.path("analysis", "onsets.csv")):
        if (row["variant"], row["condition"]) == (variant, BASELINE):
            place = (row["example_id"], row["sample_id"], int(row["onset_token_in_completion"]))
            marks[place] = "strict" if row["strict"] == "1" else "relaxed"
    return marks


def _kind(model: Model, at: int, token: int, gone: Any) -> str:
    if token == model.loaded.backtrack_id:
        return "back"
    return "erased" if at in gone else "kept"


def _effects(run: Run, model: Model, variant: str, where: tuple[Sample, Sequence[int], int]) -> dict[int, list[float]]:
    """Row -> what each sublayer does for the log-probability of the target there, as in ablation-scan."""
    sample, near, target = where
    method, references = selection(run, variant)["method"], load_references(run, variant)
    sets = [[site] for site in model.sites.components]
    edits = Ablations(method, sets, references, run.config.scan.scale, run.config.interp.seed)
    copies = [Copy(row, own) for row in near for own in [(), *edits(row)]]
    logprobs = forward(model.sites, model.rows(sample), copies).logits.log_softmax(-1)[:, target]
    found = {}
    for row, here in zip(near, logprobs.split(1 + len(sets)), strict=True):
        found[row] = [round(effect, 3) for effect in (here[0] - here[1:]).tolist()]
    return found


def _looks(model: Model, rows: Any, offered: Sequence[int]) -> list[list[tuple[int, float]]]:
    """For each row the earlier rows that it looks at most, with their share, over all layers and heads."""
    layers = model.attentions(rows, offered[-1])
    mean_QK = torch.stack([layer.float().mean(0) for layer in layers]).mean(0)
    found = []
    for row in offered:
        shares, at = mean_QK[row, : row + 1].topk(min(LOOKED_AT, row + 1))
        found.append([(int(key), round(float(share), 3)) for key, share in zip(at, shares, strict=True)])
    return found
