"""Features of labelled traces, and the training of a head on them; what it is worth on problems of its own.

Shapes: P places, F features, H width, B traces, T rows.
"""

import copy
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from llmhalluc.backtrack import IGNORE, layout
from llmhalluc.data.collator import TraceCollator
from llmhalluc.decoding.hidden import hidden_states
from llmhalluc.verify.head import Head, features, likelihoods
from llmhalluc.verify.labels import area
from llmhalluc.verify.options import JudgeOptions
from llmhalluc.verify.traces import Labelled

ROWS = 8192  # rows of one forward
REPAIRED = 0.5  # share of the errors found that an operator is taken to repair


class Places(NamedTuple):
    """Features (P, F) of places; good (P): of what stands there; right (P): of the answer; owner (P): the trace.

    first (P): nothing wrong stands before the step that ends there, so that an error would be its own.
    """

    features: torch.Tensor
    good: torch.Tensor
    right: torch.Tensor
    first: torch.Tensor
    owner: list[int]


def labels_of(traces: Sequence[Labelled]) -> list[list[tuple[int, float, bool]]]:
    """Return (token, good, first) of the labelled places of each trace."""
    found = []
    for trace in traces:
        known = [(place, good) for place, good in zip(trace.judged.places, trace.good, strict=True) if good is not None]
        goods = {place.standing: good for place, good in known}
        own = []
        for place, good in known:
            ends = [end for end in place.steps if end < len(place.standing)]
            before = goods.get(place.standing[: ends[-1]], 1.0) if ends else 1.0
            own.append((place.at, good, before > 0.5))
        found.append(own)
    return found


def as_places(features: torch.Tensor, traces: Sequence[Labelled]) -> Places:
    """Return features, trace by trace and place by place, with what is known of the places."""
    flat = [(number, *one) for number, own in enumerate(labels_of(traces)) for one in own]
    return Places(
        features,
        torch.tensor([good for _, _, good, _ in flat]),
        torch.tensor([float(traces[number].judged.right) for number, *_ in flat]),
        torch.tensor([first for *_, first in flat]),
        [number for number, *_ in flat],
    )


def rows_of(trace: Labelled, backtrack_id: int | None, context: str) -> dict[str, list[int]]:
    """Return a trace as the model is fed it, for a TraceCollator; no row has a label."""
    rows = layout(trace.prompt_ids, trace.completion_ids, -1 if backtrack_id is None else backtrack_id, context)
    return rows._asdict() | {"labels": [IGNORE] * len(rows.input_ids)}


def batches(traces: Sequence[Labelled]) -> list[list[int]]:
    """Return numbers of traces of like length, so many that a batch has at most ROWS rows."""
    lengths = [len(trace.prompt_ids) + len(trace.completion_ids) for trace in traces]
    made: list[list[int]] = [[]]
    for number in sorted(range(len(traces)), key=lambda one: lengths[one]):
        if made[-1] and (len(made[-1]) + 1) * lengths[number] > ROWS:
            made.append([])
        made[-1].append(number)
    return made


@torch.inference_mode()
def places_of(loaded: Any, traces: Sequence[Labelled], layers: Sequence[str], pad_id: int) -> Places:
    """Return the labelled places of traces, read by one forward a batch."""
    model, _, backtrack_id, context = loaded
    embed, collate = model.get_input_embeddings(), TraceCollator(pad_id)
    parts: dict[int, torch.Tensor] = {}
    for numbers in batches(traces):
        batch = collate([rows_of(traces[number], backtrack_id, context) for number in numbers])
        inputs = {key: part.to(model.device) for key, part in batch.items() if key != "labels"}
        with hidden_states(model, layers) as hidden:
            model.base_model(**inputs, use_cache=False)
        for row, number in enumerate(numbers):
            trace, n_prompt = traces[number], len(traces[number].prompt_ids)
            own = [place for place, good in zip(trace.judged.places, trace.good, strict=True) if good is not None]
            if not own:
                continue
            ats = [place.at for place in own]
            likely = [likelihoods([trace.logprobs[i] for i in place.emitted], place.length) for place in own]
            before = [n_prompt + at - 1 for at in ats]  # the rows that these tokens were sampled from
            states = {name: hidden[name][row, before] for name in layers}
            tokens = torch.tensor([trace.completion_ids[at] for at in ats], device=model.device)
            seen = features(states, layers, embed(tokens), likely)
            parts[number] = seen.cpu()
    return as_places(torch.cat([parts[number] for number in sorted(parts)]), traces)


def train(head: Head, rows: Places, dev: Places, options: JudgeOptions, seed: int) -> list[dict[str, float]]:
    """Train a head, and leave it as it was after the epoch with the lowest loss on `dev`; return the curve.

    "An erasure is due" is learned where nothing wrong stood before, and both of its classes weigh alike.
    """
    head.fit_scale(rows.features)
    targets, weights = _targets(rows)
    wanted, weighed = _targets(dev)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), options.learning_rate, weight_decay=0.01)
    best, state, curve = math.inf, copy.deepcopy(head.state_dict()), []
    for epoch in range(options.epochs):
        losses = []
        for some in torch.randperm(len(targets), generator=generator).split(options.batch_size):
            loss = binary_cross_entropy_with_logits(head(rows.features[some]), targets[some], weights[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            held = binary_cross_entropy_with_logits(head(dev.features), wanted, weighed).item()
        curve.append({"step": epoch + 1, "tokens": (epoch + 1) * len(targets), "loss": fmean(losses), "dev_loss": held})
        if held < best:
            best, state = held, copy.deepcopy(head.state_dict())
    head.load_state_dict(state)
    return curve


def _targets(rows: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights (P, 2): an erasure is due, the answer is right."""
    due, first = 1 - rows.good, rows.first.float()
    share = float((due * first).sum() / first.sum().clamp(min=1))
    share = min(max(share, 1e-3), 1 - 1e-3)
    balanced = first * (due * 0.5 / share + (1 - due) * 0.5 / (1 - share))
    return torch.stack([due, rows.right], 1), torch.stack([balanced, torch.ones_like(due)], 1)


def threshold_of(due: Sequence[float], rows: Places) -> float:
    """Return the threshold that an operator gains most with; among many, a hundred are tried.

    An error that is found counts REPAIRED, as the step that comes instead may be wrong again; a right text in which a
    step is erased counts -1.
    """

    def gain(threshold: float) -> float:
        found = first_step(due, rows, threshold)
        clean = found["traces"] - found["faulty"]
        return REPAIRED * found["faulty"] * (found["first_step_found"] or 0) - clean * (1 - (found["clean_left"] or 0))

    tried = sorted(due)[:: max(1, len(due) // 100)]
    return max([*tried, 1.0], key=gain)


def best_first_step(due: Sequence[float], rows: Places) -> float:
    """Return the threshold of the best `first_step_f1`."""
    tried = sorted(due)[:: max(1, len(due) // 100)]
    return max(tried, key=lambda threshold: first_step(due, rows, threshold)["first_step_f1"] or 0.0)


def first_step(due: Sequence[float], rows: Places, threshold: float) -> dict[str, Any]:
    """Return how well the first wrong step of a trace is found: `first_step_f1` and its parts.

    As ProcessBench (arXiv 2412.06559): the harmonic mean of the share of faulty traces whose first wrong step is the
    first one judged so, and of the share of right traces in which none is.
    """
    truth: dict[int, int] = {}
    guess: dict[int, int] = {}
    for number, (owner, good, score) in enumerate(zip(rows.owner, rows.good.tolist(), due, strict=True)):
        if good <= 0.5:
            truth.setdefault(owner, number)
        if score >= threshold:
            guess.setdefault(owner, number)
    owners = dict.fromkeys(rows.owner)
    faulty = [float(guess.get(owner) == truth[owner]) for owner in owners if owner in truth]
    clean = [float(owner not in guess) for owner in owners if owner not in truth]
    found, left = (fmean(part) if part else math.nan for part in (faulty, clean))
    both = 2 * found * left / (found + left) if found + left > 0 else 0.0
    return {
        "traces": len(owners), "faulty": len(faulty), "first_step_found": _finite(found), "clean_left": _finite(left),
        "first_step_f1": _finite(both),
    }  # fmt: skip


def report(due: Sequence[float], right: Sequence[float] | None, rows: Places, threshold: float) -> dict[str, Any]:
    """Return what a judge is worth: areas under the ROC curve, calibration, and how the first wrong step is found.

    auc: at the steps before which nothing is wrong; auc_prefix: at all of them.
    """
    bad = [good <= 0.5 for good in rows.good.tolist()]
    first = [number for number, is_first in enumerate(rows.first.tolist()) if is_first]
    own_due, own_bad = [due[number] for number in first], [bad[number] for number in first]
    made: dict[str, Any] = {
        "places": len(first), "share_bad": fmean(own_bad), "auc": _finite(area(own_bad, own_due)),
        "auc_prefix": _finite(area(bad, due)), "threshold": threshold, "calibration": calibration(own_due, own_bad),
    }  # fmt: skip
    if right is not None:
        made["auc_answer"] = _finite(area([one > 0.5 for one in rows.right.tolist()], right))
    return made | first_step(due, rows, threshold)


def calibration(scores: Sequence[float], labels: Sequence[bool], bins: int = 10) -> list[dict[str, float]]:
    """Return the curve: of each tenth of [0, 1] with scores their number, their mean, and the share that is True."""
    found = []
    for number in range(bins):
        own = [at for at, score in enumerate(scores) if min(int(score * bins), bins - 1) == number]
        if own:
            means = {"score": fmean(scores[at] for at in own), "share": fmean(labels[at] for at in own)}
            found.append({"rows": len(own)} | means)
    return found


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
