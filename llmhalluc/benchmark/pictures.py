"""Optuna's pictures of a study, and what each setting costs, as inline SVG in the colours of the page."""

from typing import Any

import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from llmhalluc.benchmark.study import finished, winner
from llmhalluc.report.pictures import INK, PALETTE, STYLE, inline_svg, label_log_scale

OURS, BEST, PLAIN = PALETTE[0], PALETTE[1], PALETTE[2]
SIZE = (6.4, 3.9)


def draw(study: optuna.Study, baseline: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Pictures as SVG, each with what it shows; `baseline` is the summary of plain decoding on the tuning split."""
    trials, best = finished(study), winner(study)
    known = [trial for trial in trials if trial.state != TrialState.FAIL]
    with plt.rc_context(STYLE):
        made = [_history(trials, best, baseline), _cost(known, best, baseline)]
        made += [_slice(known, name, best, baseline) for name in best.params]
        if max(len(trial.intermediate_values) for trial in known) > 1:
            made.append(_parts(trials, best))
        if importances := _importances(study):
            made.append(_bars(importances))
        drawn = [(inline_svg(figure), caption) for figure, caption in made]
        plt.close("all")
    return drawn


def _history(trials: list[FrozenTrial], best: FrozenTrial, baseline: dict | None) -> tuple[Figure, str]:
    figure, axis = _axis("trial", "accuracy, %")
    so_far, leading = [], None
    for i, trial in enumerate(trials):
        if trial.state == TrialState.COMPLETE:
            leading = max(100 * trial.value, leading or 0.0)
        so_far.append(leading)
        if trial.state == TrialState.FAIL:
            axis.plot(i + 1, 0.0, "x", color=PALETTE[6], markersize=8, label="failed, not scored")
        else:
            _point(axis, i + 1, trial, best)
    known = [(i + 1, value) for i, value in enumerate(so_far) if value is not None]
    axis.step(*zip(*known, strict=True), where="post", color=BEST, alpha=0.6, label="best so far")
    _plain(axis, baseline)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axis)
    return figure, "The search: accuracy on the tuning documents, trial by trial."


def _slice(trials: list[FrozenTrial], name: str, best: FrozenTrial, baseline: dict | None) -> tuple[Figure, str]:
    figure, axis = _axis(name, "accuracy, %")
    distribution: Any = best.distributions[name]
    choices = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else None
    for trial in trials:
        value = trial.params[name]
        _point(axis, choices.index(value) if choices else value, trial, best)
    if choices:
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
    elif distribution.log:
        axis.set_xscale("log")
        label_log_scale(axis.xaxis)
    elif all(isinstance(trial.params[name], int) for trial in trials):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _plain(axis, baseline)
    _legend(figure, axis)
    return figure, f"Accuracy on the tuning documents against {name}; other parameters differ from point to point."


def _cost(trials: list[FrozenTrial], best: FrozenTrial, baseline: dict | None) -> tuple[Figure, str]:
    figure, axis = _axis("forward passes a sample", "accuracy, %")
    for trial in trials:
        _point(axis, trial.user_attrs["forward_passes_per_sample"], trial, best)
    if baseline is not None:
        axis.plot(
            baseline["forward_passes_per_sample"], 100 * baseline["accuracy"], "D", color=PLAIN, markersize=8,
            linestyle="none", label="plain decoding",
        )  # fmt: skip
    _legend(figure, axis)
    return figure, "What the tuning documents cost and what that bought: up and to the left is better."


def _parts(trials: list[FrozenTrial], best: FrozenTrial) -> tuple[Figure, str]:
    figure, axis = _axis("parts of the tuning documents decoded", "accuracy so far, %")
    for i, trial in enumerate(trials):
        look = {"color": OURS, "alpha": 0.4, "zorder": 2, "label": "others"}
        if trial.number == best.number:
            look = {"color": BEST, "zorder": 3, "label": f"best (trial {i + 1})"}
        points = [(at, 100 * value) for at, value in sorted(trial.intermediate_values.items())]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axis)
    return figure, "Accuracy while a trial runs; a line that ends early was pruned."


def _importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what moved the accuracy; empty where there is too little to tell."""
    scored = [trial for trial in finished(study) if trial.state == TrialState.COMPLETE]
    if len(scored) < 4 or len(scored[0].params) < 2 or len({trial.value for trial in scored}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _bars(importances: dict[str, float]) -> tuple[Figure, str]:
    figure, axis = _axis("share of the differences, %", "")
    names = list(importances)[::-1]
    bars = axis.barh(names, [100 * importances[name] for name in names], color=OURS, height=0.55)
    axis.bar_label(bars, fmt="%.0f", padding=3, color=INK)
    axis.grid(axis="y", visible=False)
    return figure, "Which parameter moved the accuracy (PED-ANOVA). With few trials this is a hint, no more."


def _axis(x: str, y: str) -> tuple[Figure, Any]:
    figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    axis.set(xlabel=x, ylabel=y)
    axis.margins(0.08)
    return figure, axis


def _point(axis: Any, x: float, trial: FrozenTrial, best: FrozenTrial) -> None:
    """Filled: scored, its colour says whether it won; hollow: pruned, at the accuracy that it had."""
    accuracy = 100 * trial.user_attrs["accuracy"]
    if trial.number == best.number:
        axis.plot(x, accuracy, "o", color=BEST, markersize=11, label="winner", zorder=4)
    elif trial.state == TrialState.COMPLETE:
        axis.plot(x, accuracy, "o", color=OURS, markersize=8, alpha=0.75, label="trial", zorder=3)
    else:
        axis.plot(x, accuracy, "o", color=OURS, markersize=8, markerfacecolor="none", label="pruned", zorder=3)


def _plain(axis: Any, baseline: dict | None) -> None:
    if baseline is not None:
        axis.axhline(100 * baseline["accuracy"], color=PLAIN, linestyle="--", label="plain decoding", zorder=1)


def _legend(figure: Figure, axis: Any) -> None:
    """Every label once, below the picture; accuracies that hardly differ get a scale on which that is seen."""
    low, high = axis.get_ylim()
    if high - low < 10:
        axis.set_ylim((low + high) / 2 - 6, (low + high) / 2 + 6)
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=4)
