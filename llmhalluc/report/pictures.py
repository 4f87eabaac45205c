"""The look of the reports' pictures, and a figure as SVG inside a page."""

import io
import re

import matplotlib

matplotlib.use("Agg")
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

# Okabe & Ito's palette, told apart with any colour vision, without black and yellow, which would vanish on some page;
# and three more for those who compare many arms.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#8C4F2B", "#6A5ACD", "#A8B400")
INK = "#707172"  # readable on white and on black; in the page it gives way to the text's colour
STYLE = {
    "svg.fonttype": "path", "svg.hashsalt": "llmhalluc", "font.size": 11, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def inline_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element: no prologue, as wide as there is room, in the page's text colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    _, _, text = buffer.getvalue().partition("<svg")
    head, close, body = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return re.sub(INK, "currentColor", f"<svg{head}{close}{body}", flags=re.IGNORECASE)


def label_log_scale(axis: Axis) -> None:
    """Write 1, 2 and 5 of each power of ten at a logarithmic axis as plain numbers, and nothing between them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
