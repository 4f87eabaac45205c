"""What the pictures of an experiment draw."""

from matplotlib import pyplot as plt

from llmhalluc.exp.pictures import loss


def row(cell, arm):
    return {"level": "cell", "cell": cell, "arm": arm, "point": {"seed": 1}}


def test_a_stage_that_is_not_known_is_drawn_by_its_loss():
    curve = [{"step": i, "tokens": 1e6 * i, "loss": 1 / i} for i in (1, 2, 3)]
    rows = [row("a1", "a"), row("b1", "b"), row("c1", "c")]
    stages = {"a1": "verifier", "b1": "sft", "c1": "prm"}
    figure = loss(rows, {"a1": curve, "b1": curve, "c1": [{"step": 1}]}, stages)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["training loss", "verifier loss", "prm loss"]
    drawn = figure.axes[1].lines[0]
    assert list(drawn.get_xdata()) == [1, 2, 3] and list(drawn.get_ydata()) == [1, 1 / 2, 1 / 3]
    assert not figure.axes[2].lines or not len(figure.axes[2].lines[0].get_xdata())
    plt.close(figure)
