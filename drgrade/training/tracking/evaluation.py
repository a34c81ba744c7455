"""Results on one evaluated set and their figures: confusion matrix, curves per grade, worst photographs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drgrade.training.tracking.tracker import Evaluation, GradeCurve, Mistake, caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_MAX_POINTS = 200
"""Points of a curve; W&B draws at most 10,000 rows of a table."""

_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
"""Colours of the grades 0 to 4, safe for colour-blind readers (Okabe and Ito)."""

_COLUMNS = 4


def draw_evaluation(evaluation: Evaluation, worst: int = 0) -> dict[str, "Figure"]:
    """Draw the figures of an evaluation.

    Args:
        evaluation: Results on one set.
        worst: Number of the worst photographs to show; not for validation.

    Returns:
        Figures by name: ``confusion``, ``roc``, ``precision_recall`` and, if requested, ``worst``.
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
    """Draw counts; the colour shows the share of the true grade."""
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


def _curves(curves: Sequence[GradeCurve], x: str, y: str, title: str) -> "Figure":
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
