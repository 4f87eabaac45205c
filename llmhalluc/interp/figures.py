"""The figures of a run, each with the table of what it draws; drawn from the CSVs alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from llmhalluc.eval.stats import clustered
from llmhalluc.interp.ablate import selection
from llmhalluc.interp.importance import QUANTITIES, finite
from llmhalluc.interp.run import BASELINE, Run, number, read_csv
from llmhalluc.report.pictures import INK, PALETTE

EVENT, CONTROL, THIRD = PALETTE[1], PALETTE[0], PALETTE[2]
SIZE = (6.4, 3.6)
SWEEP = "formatting_summary.csv"  # the one table of all variants
Rows = list[dict[str, Any]]


class Drawn(NamedTuple):
    """A figure, what it shows, and the rows under it."""

    name: str
    caption: str
    figure: Figure
    rows: Rows


def draw(run: Run, variant: str) -> list[Drawn]:
    """Return the figures for which the run has numbers."""
    made = []
    for file, figure in FIGURES:
        rows = _rows_of(run, variant, file)
        drawn = figure(run, variant, rows) if rows else None
        if drawn is not None:
            made.append(drawn)
    return made


def _axis(x: str, y: str) -> tuple[Figure, Any]:
    figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    axis.set(xlabel=x, ylabel=y)
    return figure, axis


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _band(axis: Any, x: str, rows: Rows, columns: Sequence[str], look: tuple[str, str]) -> None:
    """A line over column `x` with its interval: columns (value, low, high); look: its label and color."""
    label, color = look
    at = [float(row[x]) for row in rows]
    values, low, high = (np.array([number(str(row[name])) for row in rows], dtype=float) for name in columns)
    axis.plot(at, values, "o-", color=color, label=label, markersize=4)
    axis.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)


def _points(axis: Any, at: Any, rows: Rows, columns: Sequence[str], look: tuple[str, str]) -> None:
    """Points with their intervals in percent; an end that is missing has no whisker."""
    values = [100 * float(row[columns[0]]) for row in rows]
    ends = [
        [abs(100 * float(row[name] or row[columns[0]]) - value) for row, value in zip(rows, values, strict=True)]
        for name in columns[1:]
    ]
    axis.errorbar(at, values, yerr=ends, fmt="o", label=look[0], color=look[1], capsize=3)


def _legend(axis: Any) -> None:
    """Every label once."""
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    axis.legend([*handles.values()], [*handles])


def _rows_of(run: Run, variant: str, file: str) -> Rows:
    """The rows of the variant; of all of them where a file compares them."""
    rows = read_csv(run.path("analysis", file))
    return [dict(row) for row in rows if file == SWEEP or row["variant"] == variant]


def _drawn(name: str, caption: str, figure: Figure, rows: Rows, columns: Sequence[str] = ()) -> Drawn:
    """With the columns that are named, or all but the variant."""
    kept = columns or [column for column in rows[0] if column != "variant"]
    return Drawn(name, caption, figure, [{column: row.get(column, "") for column in kept} for row in rows])


def _rate_by_variant(run: Run, variant: str, rows: Rows) -> Drawn | None:
    caption = "Completions that take something back, by the way of writing the prompt: strict opens a sentence."
    return _rates(rows, "variant", "backtracking_rate_by_variant", caption)


def _rate_by_condition(run: Run, variant: str, rows: Rows) -> Drawn | None:
    caption = "The same without an intervention, without the chosen layers, and without as many random sublayers."
    return _rates(rows, "condition", "backtracking_rate_by_condition", caption)


def _rates(rows: Rows, by: str, name: str, caption: str) -> Drawn:
    figure, axis = _axis("", "completions, %")
    at, rates = np.arange(len(rows)), ("has_backtracking_strict", "has_backtracking_relaxed")
    _points(axis, at - 0.08, rows, _ends(rates[0]), ("strict", EVENT))
    _points(axis, at + 0.08, rows, _ends(rates[1]), ("relaxed", CONTROL))
    axis.set_xticks(at, [row[by] for row in rows])
    axis.set_ylim(bottom=0)
    axis.legend()
    return _drawn(name, caption, figure, rows, [by, "samples", "problems", *_ends(rates[0]), *_ends(rates[1])])


def _rate_and_accuracy(run: Run, variant: str, rows: Rows) -> Drawn | None:
    others = read_csv(run.path("analysis", "condition_comparison.csv"))
    rows = [*rows, *(row for row in others if row["condition"] != BASELINE)]
    figure, axis = _axis("completions that take something back, %", "right answers, %")
    for i, row in enumerate(rows):
        label = row["variant"] if row["condition"] == BASELINE else f"{row['variant']}, {row['condition']}"
        x = 100 * float(row["has_backtracking_relaxed"])
        ends = [[abs(100 * float(row[f"has_backtracking_relaxed_{end}"]) - x)] for end in ("low", "high")]
        axis.errorbar(x, 100 * float(row["is_correct"]), xerr=ends, color=PALETTE[i % len(PALETTE)], capsize=3)
        _points(axis, [x], [row], _ends("is_correct"), (label, PALETTE[i % len(PALETTE)]))
    axis.legend()
    columns = ["variant", "condition", *_ends("has_backtracking_relaxed"), *_ends("is_correct")]
    caption = "How often something is taken back, and how often the answer is right; intervals over problems."
    return _drawn("backtracking_vs_accuracy", caption, figure, rows, columns)


def _formatting_effect(run: Run, variant: str, rows: Rows) -> Drawn | None:
    rows = [row for row in rows if row["is_correct_difference"]]
    if not rows:
        return None
    figure, axis = _axis("", "difference, points")
    at, columns = np.arange(len(rows)), ["variant"]
    for name, look, off in (
        ("has_backtracking_relaxed", ("takes something back", EVENT), -0.08),
        ("is_correct", ("right answer", THIRD), 0.08),
    ):
        _points(axis, at + off, rows, _ends(f"{name}_difference"), look)
        columns += [*_ends(f"{name}_difference"), f"{name}_p"]
    axis.axhline(0, color=INK, linewidth=1)
    axis.set_xticks(at, [row["variant"] for row in rows])
    axis.legend()
    caption = "Each way of writing the prompt against the first one, paired by problem."
    return _drawn("formatting_effect_on_backtracking", caption, figure, rows, columns)


def _lens(run: Run, variant: str, rows: Rows) -> Drawn | None:
    figure, axis = _axis("layer", "log-probability of the onset id, nats")
    table: Rows = []
    for kind, color in (("event", EVENT), ("control", CONTROL)):
        own = [row for row in rows if row["kind"] == kind]
        made = [_lens_row(own, layer) for layer in sorted({int(row["layer"]) for row in own})]
        _band(axis, "layer", made, _ends("logprob"), (f"{kind}s", color))
        table += made
    axis.legend()
    caption = f"What each layer would say ({rows[0]['lens']} lens) before something is taken back, and at controls."
    return _drawn("wait_logit_lens_bt_vs_control", caption, figure, table)


def _lens_row(rows: Rows, layer: int) -> dict[str, Any]:
    here = [row for row in rows if int(row["layer"]) == layer]
    names = ("logprob", "trigger_mass", "kl_to_final", "rank")
    found = clustered([[float(row[name]) for name in names] for row in here], [row["example_id"] for row in here])
    made = {"kind": here[0]["kind"], "layer": layer, "rows": len(here), "logprob": found[0].mean}
    made |= {"logprob_low": finite(found[0].low), "logprob_high": finite(found[0].high)}
    return made | {"trigger_mass": found[1].mean, "kl_to_final": found[2].mean, "mean_rank": found[3].mean}


def _ablation(run: Run, variant: str, rows: Rows) -> Drawn | None:
    chosen = selection(run, variant)
    rows = [row for row in rows if (row["split"], row["method"]) == ("all", chosen["method"]) and row["kind"] != "head"]
    figure, axis = _axis("layer", "effect on the onset id, nats")
    for kind, look in (("attn", ("attention", CONTROL)), ("mlp", ("MLP", EVENT))):
        _band(axis, "layer", [row for row in rows if row["kind"] == kind], _ends("effect"), look)
    for layer in chosen["layers"]:
        axis.axvspan(layer - 0.4, layer + 0.4, color=THIRD, alpha=0.12, linewidth=0)
    axis.axhline(0, color=INK, linewidth=1)
    axis.legend()
    columns = ["kind", "layer", "events", *_ends("effect"), "effect_significant", "control_effect", "token_effect"]
    columns += [*_ends("contrast"), *_ends("token_contrast"), "specific", "attribution"]
    caption = (
        f"What a sublayer adds to the log-probability of the onset id ({chosen['method']} ablation): above 0 it "
        "promotes, below 0 it suppresses. The chosen layers are shaded."
    )
    return _drawn("ablation_importance_by_layer", caption, figure, rows, columns)


def _null(run: Run, variant: str, rows: Rows) -> Drawn | None:
    found = selection(run, variant)
    if not found.get("contrast", {}).get("null"):
        return None
    figure, axis = _axis("effect at events less that at controls, nats", "random sets")
    axis.hist(found["contrast"]["null"], bins=20, color=CONTROL, alpha=0.7, label=f"{found['random_sets']} random sets")
    axis.axvline(found["contrast"]["mean"], color=EVENT, label="the chosen layers")
    axis.legend()
    rows = [
        {"what": name} | {key: found[name][key] for key in ("mean", "low", "high", "p")}
        | {"random sets": found["random_sets"], "largest of them": max(found[name]["null"])}
        for name in QUANTITIES if name in found
    ]  # fmt: skip
    caption = (
        f"The chosen layers {found['layers']} together, on {found['test_events']} events of the problems that did not "
        "choose them, beside random sets of as many other sublayers."
    )
    return _drawn("chosen_layers_and_null", caption, figure, rows)


def _probes(run: Run, variant: str, rows: Rows) -> Drawn | None:
    rows = [row for row in rows if row["auc"]]
    if not rows:
        return None
    figure, axis = _axis("layer", "area under the ROC curve")
    for target, look in (
        ("event", ("something is taken back next", EVENT)), ("error", ("the token just written is wrong", THIRD))
    ):  # fmt: skip
        own = [row for row in rows if row["target"] == target]
        if own:
            _band(axis, "layer", own, _ends("auc"), look)
            _band(axis, "layer", own, ("shuffled_auc", "shuffled_low", "shuffled_high"), ("labels shuffled", INK))
    _legend(axis)
    caption = "What a linear probe reads from the stream, on problems that it was not trained on."
    return _drawn("probes_by_layer", caption, figure, rows)


def _patching(run: Run, variant: str, rows: Rows) -> Drawn | None:
    figure, axis = _axis("layer", "change of the onset id, nats")
    for name, color in (("event_to_control", EVENT), ("control_to_event", CONTROL)):
        own = [row for row in rows if row["direction"] == name]
        _band(axis, "layer", own, ("effect", "low", "high"), (name.replace("_", " "), color))
    axis.axhline(0, color=INK, linewidth=1)
    axis.legend()
    caption = "The stream of one side put in the place of the other's, at one token and layer."
    return _drawn("patching_by_layer", caption, figure, rows)


def _doses(run: Run, variant: str, rows: Rows) -> Drawn | None:
    figure, axis = _axis("dose, multiples of the difference of means", "change of the onset id, nats")
    for at, color in (("control", CONTROL), ("event", EVENT)):
        own = [row for row in rows if row["at"] == at]
        _band(axis, "dose", own, ("effect", "low", "high"), (f"at {at}s", color))
        _band(axis, "dose", own, ("random_mean", "random_low", "random_high"), ("random directions", INK))
    axis.axhline(0, color=INK, linewidth=1)
    _legend(axis)
    caption = (
        f"Multiples of the direction added after layer {rows[0]['layer']}, beside random directions of the same norm; "
        "direction and layer are of other problems."
    )
    return _drawn("dose_response", caption, figure, rows)


def _attention(run: Run, variant: str, rows: Rows) -> Drawn | None:
    figure, axis = _axis("layer", "share of attention")
    _band(axis, "layer", rows, ("mass_on_erased", "low", "high"), (f"context {rows[0]['context']}", EVENT))
    axis.axhline(float(rows[0]["mass_if_even"]), color=INK, linestyle="--", label="if all tokens were alike")
    axis.legend()
    caption = "How much tokens written after an erasure look at what was erased and at its BACKTRACKs."
    return _drawn("attention_to_erased", caption, figure, rows)


def _models(run: Run, variant: str, rows: Rows) -> Drawn | None:
    figure, axis = _axis("layer", "log-probability of the onset id, nats")
    for name, color in (("tuned", EVENT), ("base", CONTROL)):
        values = [float(row[f"{name}_logprob"]) for row in rows]
        axis.plot([int(row["layer"]) for row in rows], values, "o-", color=color, label=name)
    axis.legend()
    caption = "The same events read by the logit lens in the tuned and in the untuned model."
    return _drawn("tuned_and_base", caption, figure, rows)


# The CSV that a figure draws, and the function (run, variant, its rows) that draws it; None where it shows nothing.
FIGURES: list[tuple[str, Callable[[Run, str, Rows], Drawn | None]]] = [
    (SWEEP, _rate_by_variant),
    (SWEEP, _formatting_effect),
    (SWEEP, _rate_and_accuracy),
    ("logit_lens.csv", _lens),
    ("ablation_importance.csv", _ablation),
    ("ablation_importance.csv", _null),
    ("condition_comparison.csv", _rate_by_condition),
    ("probes.csv", _probes),
    ("patching.csv", _patching),
    ("dose_response.csv", _doses),
    ("attention.csv", _attention),
    ("model_comparison.csv", _models),
]
