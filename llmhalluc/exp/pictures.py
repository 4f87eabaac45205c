"""The pictures of an experiment: accuracy against tokens and budgets, loss curves; PNG files and inline SVG."""

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmhalluc.exp.table import is_accuracy, label
from llmhalluc.report.pictures import INK, PALETTE, STYLE, inline_svg, label_log_scale

# What is drawn of a stage's training: the value in train.json, the label and the scale of its axis.
CURVES = {
    "sft": ("loss", "training loss", "log"),
    "dpo": ("loss", "DPO loss", "linear"),
    "ftpo": ("loss", "FTPO loss", "linear"),
    "grpo": ("reward", "mean reward of a rollout", "linear"),
}
MARKERS, LINES = "osD^vPX*", ("-", "--", ":", "-.")
PANEL = (7.2, 4.4)  # inches
Row = dict[str, Any]


def draw(results: dict[str, Any], folders: dict[str, Path], stages: dict[str, str], folder: Path) -> dict[str, str]:
    """Write accuracy, loss and budgets as .png and .pdf to `folder`; return them as SVG text for a page, by name.

    folders, stages: of each cell by its name, the stage that of its last training.
    """
    curves = {name: json.loads((cell / "train" / "train.json").read_text())["loss"] for name, cell in folders.items()}
    drawn = {}
    with plt.rc_context(STYLE):
        figures = {"accuracy": accuracy(results["rows"]), "loss": loss(results["rows"], curves, stages)}
        if results.get("budgets"):
            figures["budgets"] = spent(results["budgets"])
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", bbox_inches="tight")
            figure.savefig(folder / f"{name}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
            drawn[name] = inline_svg(figure)
            plt.close(figure)
    return drawn


def accuracy(rows: list[Row]) -> Figure:
    """A panel a task; a point an arm and variant, with the 95% intervals of both axes, and a dot each trained model."""
    arms = [row for row in rows if row["level"] == "arm"]
    names, tasks, variants = _names(arms), _each(arms, "task"), _each(arms, "variant")
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        here = [row for row in rows if row["task"] == task]
        scale, what = (100, "accuracy, %") if is_accuracy(here[0]) else (1, here[0]["score"])
        for row in here:
            color = _color(names.index(_name(row)))
            x, left, right = _around(row, "emitted_per_sample", 1)
            y, down, up = _around(row, "accuracy", scale)
            if row["level"] == "cell":
                axis.plot(x, y, marker=".", color=color, alpha=0.6, markersize=5)
                continue
            axis.errorbar(
                x, y, xerr=[[left], [right]], yerr=[[down], [up]], color=color,
                marker=_marker(variants.index(row["variant"])), markersize=8, markeredgecolor="white",
                elinewidth=1.4, linestyle="none",
            )  # fmt: skip
        axis.set(title=task if len(tasks) > 1 else "", xlabel="tokens emitted per sample, erased ones counted")
        axis.set_ylabel(what)
        axis.margins(0.12)
    colors = [plt.Line2D([], [], color=_color(i), linewidth=5) for i in range(len(names))]
    shapes = [plt.Line2D([], [], color=INK, marker=_marker(i), linestyle="none") for i in range(len(variants))]
    figure.legend([*colors, *shapes], [*names, *variants], loc="outside lower center", ncols=3)
    return figure


def loss(rows: list[Row], curves: dict[str, list[dict[str, float]]], stages: dict[str, str]) -> Figure:
    """A panel a stage, in it a line a cell against tokens seen; cells of one arm and point in one colour.

    A stage that is not in CURVES gets its loss drawn under its own name.
    """
    rows = [row for row in rows if row["level"] == "cell"]
    names, panels = _names(rows), _in_order(stages)
    figure, axes = _panels(len(panels))
    for axis, stage in zip(axes, panels, strict=True):
        value, what, scale = CURVES.get(stage, ("loss", f"{stage} loss", "linear"))
        for cell, name in {row["cell"]: _name(row) for row in rows if stages[row["cell"]] == stage}.items():
            points = [(entry["tokens"] / 1e6, entry[value]) for entry in curves[cell] if value in entry]
            marker = "." if len(points) == 1 else ""
            axis.plot(*zip(*points, strict=True), **_line(names.index(name)), linewidth=1.6, alpha=0.85, marker=marker)
        axis.set(xlabel="tokens seen, millions", ylabel=what, yscale=scale)
        if scale == "log":
            label_log_scale(axis.yaxis)
    lines = [plt.Line2D([], [], **_line(i)) for i in range(len(names))]
    figure.legend(lines, names, loc="outside lower center", ncols=3)
    return figure


def spent(rows: list[Row]) -> Figure:
    """A panel a task and unit: accuracy against the budget, a line a method, the baseline's with its interval."""
    panels = list(dict.fromkeys((row["task"], row["unit"]) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = _panels(len(panels))
    for axis, (task, unit) in zip(axes, panels, strict=True):
        here = [row for row in rows if (row["task"], row["unit"]) == (task, unit)]
        for name in dict.fromkeys(row["method"] for row in here):
            own = [row for row in here if row["method"] == name]
            at, style = [row["budget"] for row in own], _line(names.index(name))
            axis.plot(at, [100 * row["accuracy"] for row in own], marker="o", markersize=4, **style)
            if name == own[0]["against"]:
                low, high = ([100 * row[f"accuracy_{end}"] for row in own] for end in ("low", "high"))
                axis.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set(title=task if len(panels) > 1 else "", xscale="log", xlabel=f"budget a problem, {unit}")
        axis.set_ylabel("accuracy, %")
        label_log_scale(axis.xaxis)
    lines = [plt.Line2D([], [], **_line(i)) for i in range(len(names))]
    figure.legend(lines, names, loc="outside lower center", ncols=3)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most three."""
    columns = min(count, 3)
    lines = -(-count // columns)
    size = (PANEL[0] * columns, PANEL[1] * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def _in_order(stages: dict[str, str]) -> list[str]:
    """The stages in the order of CURVES, then those it does not know."""
    known = [stage for stage in CURVES if stage in stages.values()]
    return list(dict.fromkeys([*known, *stages.values()]))


def _around(row: Row, name: str, scale: float) -> tuple[float, float, float]:
    """A mean, and how far its interval reaches below and above it."""
    mean, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return mean, mean - low, high - mean


def _each(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(map(_name, rows)))


def _name(row: Row) -> str:
    return label(row["arm"], row["point"])


def _line(i: int) -> dict[str, Any]:
    """Colour and stroke of the i-th name: with more names than colours the stroke changes."""
    return {"color": _color(i), "linestyle": LINES[i // len(PALETTE) % len(LINES)]}


def _color(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]
