"""What effects of ablations say: of each component with its interval, and of chosen layers beside random sets."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np

from llmhalluc.eval.stats import Estimate, clustered, holm
from llmhalluc.interp.run import Row

QUANTITIES = ("effect", "contrast", "token_contrast")
COLUMNS = (
    "variant", "method", "kind", "layer", "head", "split", "events", "problems",
    *(f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high", "_p")), "effect_significant",
    "control_effect", "token_effect", "specific_p", "specific", "attribution",
)  # fmt: skip


class Effects(NamedTuple):
    """Effects of K edits (points, K) on a point's target, and on the token that was written there; NaN: no point."""

    target: np.ndarray
    written: np.ndarray


def quantities(at_events: Effects, at_others: Effects) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the values (events, K) and the events that have them.

    effect: on the onset id at the event. contrast: less that on the same id at the control: is it about this place?
    token_contrast: less that on the token that was written at the control: is it about this token, or about any?
    """
    paired = ~np.isnan(at_others.target).any(1)
    yield "effect", at_events.target, np.ones(len(paired), dtype=bool)
    yield "contrast", at_events.target - at_others.target, paired
    yield "token_contrast", at_events.target - at_others.written, paired


def importance(
    at_events: Effects, at_others: Effects, problems: Sequence[str], inside: Sequence[bool]
) -> dict[str, Any]:
    """Return the columns of ablation_importance.csv for the events `inside`, a value a component.

    effect_significant: what Holm leaves of all components at 5%. specific: the same for both contrasts together, of
    one sign: their larger p value is that of a component's being about taking back (an intersection-union test).
    """
    inside, count = np.asarray(inside), at_events.target.shape[1]
    own = [problem for problem, is_in in zip(problems, inside, strict=True) if is_in]
    columns: dict[str, Any] = {"events": [len(own)] * count, "problems": [len(set(own))] * count}
    estimates: dict[str, list[Estimate]] = {}
    for name, values, has in quantities(at_events, at_others):
        rows = inside & has
        if rows.any():
            clusters = [problem for problem, is_in in zip(problems, rows, strict=True) if is_in]
            estimates[name] = found = clustered(values[rows], clusters)
            columns |= {f"{name}_{end}": [finite(getattr(one, end)) for one in found] for end in ("low", "high", "p")}
            columns[name] = [one.mean for one in found]
    if "effect" in estimates:
        columns["effect_significant"] = [int(fallen) for fallen in holm([one.p for one in estimates["effect"]])]
    if "contrast" in estimates:
        both = zip(estimates["contrast"], estimates["token_contrast"], strict=True)
        columns["specific_p"] = [max(one.p, other.p) if one.mean * other.mean > 0 else 1.0 for one, other in both]
        columns["specific"] = [int(fallen) for fallen in holm(columns["specific_p"])]
        paired = inside & ~np.isnan(at_others.target).any(1)
        columns["control_effect"] = at_others.target[paired].mean(0).tolist()
        columns["token_effect"] = at_others.written[paired].mean(0).tolist()
    return columns


def choose_layers(rows: Sequence[Row], method: str, count: int) -> list[int]:
    """Return the layers of the largest contrast on the problems that choose.

    A layer's is the sum of its sublayers' smaller contrasts; without controls it is the sum of their effects.
    """
    score: dict[int, float] = {}
    for row in rows:
        if (row["method"], row["split"]) == (method, "choose") and row["kind"] != "head":
            named = [row[name] for name in ("contrast", "token_contrast") if row.get(name, "") != ""]
            score[row["layer"]] = score.get(row["layer"], 0.0) + min(named, default=row.get("effect") or 0.0)
    return sorted(score, key=lambda layer: -score[layer])[:count]


def joint(at_events: Effects, at_others: Effects, problems: Sequence[str]) -> dict[str, Any]:
    """Return of each quantity the first edit's mean with its interval, and its place among those of the other edits.

    p: the share of sets, itself counted, whose mean is at least as large.
    """
    found: dict[str, Any] = {}
    for name, values, rows in quantities(at_events, at_others):
        if not rows.any():
            continue
        means = clustered(values[rows], [problem for problem, is_in in zip(problems, rows, strict=True) if is_in])
        null = sorted(one.mean for one in means[1:])
        found[name] = {"mean": means[0].mean, "low": finite(means[0].low), "high": finite(means[0].high)}
        found[name] |= {"p": (1 + sum(one >= means[0].mean for one in null)) / len(means), "null": null}
    return found


def split_off(problems: Sequence[str], share: float, seed: int) -> set[str]:
    """Return the problems for the test of what the others chose: `share` of them, at least one where there are two."""
    names = sorted(set(problems))
    Random(seed).shuffle(names)
    count = min(max(1, round(share * len(names))), len(names) - 1) if len(names) > 1 else 0
    return set(names[:count])


def finite(value: float) -> float | str:
    """Return the value, empty for an infinite one, as a CSV holds it."""
    return value if abs(value) != float("inf") else ""
