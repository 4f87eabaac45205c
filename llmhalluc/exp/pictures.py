"""The pictures of an experiment: accuracy against tokens emitted, loss curves; PNG files and inline SVG."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from llmhalluc.exp.results import label

# Okabe & Ito's palette, told apart with any colour vision, without black and yellow, which would vanish on some page;
# and three more for those who compare many arms.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#8C4F2B", "#6A5ACD", "#A8B400")
# What is drawn of a stage's training: the value in train.json, the label and the scale of its axis.
CURVES = {
    "sft": ("loss", "training loss", "log"),
    "dpo": ("loss", "DPO loss", "linear"),
    "grpo": ("reward", "mean reward of a rollout", "linear"),
}
MARKERS, LINES = "osD^vPX*", ("-", "--", ":", "-.")
INK = "#707172"  # readable on white and on black; in the page it gives way to the text's colour
STYLE = {
    "svg.fonttype": "path", "svg.hashsalt": "llmhalluc", "font.size": 11, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def draw(results: dict[str, Any], folders: dict[str, Path], stages: dict[str, str], folder: Path) -> dict[str, str]:
    """Write accuracy.png and loss.png to `folder`; return both as SVG text for a page, by name.

    folders, stages: of each cell by its name, the stage that of its last training.
    """
    curves = {name: json.loads((cell / "train" / "train.json").read_text())["loss"] for name, cell in folders.items()}
    drawn = {}
    with plt.rc_context(STYLE):
        for name, figure in (
            ("accuracy", accuracy(results["rows"])),
            ("loss", loss(results["rows"], curves, stages)),
        ):
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", bbox_inches="tight")
            drawn[name] = inline_svg(figure)
            plt.close(figure)
    return drawn


def accuracy(rows: list[dict[str, Any]]) -> Figure:
    """A panel a task; a point an arm and variant, with the 95% intervals of both axes."""
    rows = [row for row in rows if row["level"] == "arm"]
    tasks, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "variant"))
    names = list(dict.fromkeys(map(_name, rows)))
    figure, axes = plt.subplots(1, len(tasks), figsize=(7.2 * len(tasks), 4.4), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            x, y = (
                [scale * row[key] for key in (name, f"{name}_low", f"{name}_high")]
                for name, scale in (("emitted_per_sample", 1), ("accuracy", 100))
            )
            axis.errorbar(
                x[0], y[0], xerr=[[x[0] - x[1]], [x[2] - x[0]]], yerr=[[y[0] - y[1]], [y[2] - y[0]]],
                color=_color(names.index(_name(row))), marker=_marker(variants.index(row["variant"])),
                markersize=8, markeredgecolor="white", elinewidth=1.4, linestyle="none",
            )  # fmt: skip
        axis.set(title=task if len(tasks) > 1 else "", xlabel="tokens emitted per sample, erased ones counted")
        axis.set_ylabel("accuracy, %")
        axis.margins(0.12)
    colors = [plt.Line2D([], [], color=_color(i), linewidth=5) for i in range(len(names))]
    shapes = [plt.Line2D([], [], color=INK, marker=_marker(i), linestyle="none") for i in range(len(variants))]
    figure.legend([*colors, *shapes], [*names, *variants], loc="outside lower center", ncols=3)
    return figure


def loss(rows: list[dict[str, Any]], curves: dict[str, list[dict[str, float]]], stages: dict[str, str]) -> Figure:
    """A panel a stage, in it a line a cell against tokens seen; cells of one arm and point in one colour."""
    rows = [row for row in rows if row["level"] == "cell"]
    names = list(dict.fromkeys(_name(row) for row in rows))
    panels = [stage for stage in CURVES if stage in stages.values()]
    figure, axes = plt.subplots(1, len(panels), figsize=(7.2 * len(panels), 4.4), squeeze=False, layout="constrained")
    for axis, stage in zip(axes[0], panels, strict=True):
        value, what, scale = CURVES[stage]
        for cell, name in {row["cell"]: _name(row) for row in rows if stages[row["cell"]] == stage}.items():
            i, points = names.index(name), [entry for entry in curves[cell] if value in entry]
            axis.plot(
                [entry["tokens"] / 1e6 for entry in points], [entry[value] for entry in points],
                color=_color(i), linestyle=LINES[i // len(PALETTE) % len(LINES)], linewidth=1.6, alpha=0.85,
                marker="." if len(points) == 1 else "",
            )  # fmt: skip
        axis.set(xlabel="tokens seen, millions", ylabel=what, yscale=scale)
        if scale == "log":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
    lines = [
        plt.Line2D([], [], color=_color(i), linestyle=LINES[i // len(PALETTE) % len(LINES)]) for i in range(len(names))
    ]
    figure.legend(lines, names, loc="outside lower center", ncols=3)
    return figure


def inline_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element: no prologue, as wide as there is room, in the page's text colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
    return re.sub(INK, "currentColor", text, flags=re.IGNORECASE)


def _name(row: dict[str, Any]) -> str:
    return label(row["arm"], row["point"])


def _color(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]
