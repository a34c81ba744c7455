"""Pictures of an evaluation, for loggers that show pictures. Drawn without pyplot: no window, no state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from drgrade.training.tracking.evaluation import Curve, Evaluation, Mistake

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
"""Of the grades 0 to 4 (Okabe and Ito: told apart by the colour-blind too)."""

_COLUMNS = 4


def figures(evaluation: Evaluation, worst: int = 0) -> dict[str, "Figure"]:
    """Draw everything that there is to see.

    Args:
        evaluation: Of one set.
        worst: How many of the worst photographs to show; only of a test.

    Returns:
        Name: figure. ``confusion``, ``roc``, ``precision_recall``, and ``worst`` if it was asked for.
    """
    drawn = {
        "confusion": _confusion(evaluation),
        "roc": _curves(evaluation.roc, "false positive rate", "true positive rate", evaluation.name),
        "precision_recall": _curves(evaluation.precision_recall, "recall", "precision", evaluation.name),
    }
    mistakes = evaluation.worst(worst) if evaluation.name != "val" else []
    return {**drawn, "worst": _photographs(mistakes)} if mistakes else drawn


def _begin(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _confusion(evaluation: Evaluation) -> "Figure":
    """Counts, and the share of each true grade as the depth of the colour."""
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _begin(4, 4)
    axes = figure.add_subplot(
        xlabel="predicted grade", ylabel="true grade", title=evaluation.name, xticks=range(5), yticks=range(5)
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        ink = "white" if shares[true, predicted] > 0.6 else "black"
        axes.text(predicted, true, str(count), ha="center", va="center", color=ink)
    return figure


def _curves(curves: Sequence[Curve], x: str, y: str, title: str) -> "Figure":
    figure = _begin(4.5, 4)
    axes = figure.add_subplot(xlabel=x, ylabel=y, title=title, xlim=(0, 1), ylim=(0, 1.02))
    for curve in curves:
        axes.plot(curve.x, curve.y, color=_COLOURS[curve.grade], label=f"grade {curve.grade}")
    if curves:
        axes.legend(loc="lower right", frameon=False)
    return figure


def _photographs(mistakes: Sequence[Mistake]) -> "Figure":
    rows = -(-len(mistakes) // _COLUMNS)
    figure = _begin(2.2 * _COLUMNS, 2.6 * rows)
    for number, mistake in enumerate(mistakes, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        axes.imshow(mistake.image)
        axes.set_title(f"{mistake.image_id}\n{caption(mistake)}", fontsize=8)
        axes.set_axis_off()
    return figure


def caption(mistake: Mistake) -> str:
    """What is wrong with a photograph's grade, in a line."""
    probability = mistake.probabilities[mistake.grade]
    return f"grade {mistake.grade} (p = {probability:.2f}), predicted {mistake.predicted}"
