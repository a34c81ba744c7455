"""Confusion matrices."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from drgrade.reporting.figures.canvas import HEAT, PAPER, ReportFigure, begin
from drgrade.reporting.schema import ResultRow
from drgrade.stats import formatting as words
from drgrade.stats.estimates import Floats

_WIDTH, _HEIGHT = 2.6, 2.55
_TITLE_LINE, _TITLE_CHARACTERS = 0.17, 36


def draw_confusion(row: ResultRow, label: str) -> ReportFigure:
    """Draw counts, and the share of each true grade as the depth of the colour.

    Args:
        row: Its matrix is drawn.
        label: Of its method.
    """
    share_of_labels = words.fraction(row.label_fraction)
    title = textwrap.fill(label, _TITLE_CHARACTERS)
    picture, axes = begin(
        f"confusion-{words.fraction_slug(row.label_fraction)}-{row.method}",
        f"Confusion matrix of {label} with {share_of_labels} of the labels; the numbers are in confusion.csv",
        _HEIGHT + _TITLE_LINE * (title.count("\n") + 1),
        _WIDTH,
    )
    shares = row_shares(row)
    for true, predicted in np.ndindex(row.confusion.shape):
        _cell(picture, axes, row, shares, true, predicted)
    grades = range(len(row.confusion))
    axes.set(xlim=(-0.5, grades[-1] + 0.5), ylim=(grades[-1] + 0.5, -0.5), aspect="equal")
    axes.set(xticks=grades, yticks=grades, xlabel="predicted grade", ylabel="true grade", title=title)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return picture


def row_shares(row: ResultRow) -> Floats:
    """Share of each true grade that was given each grade.

    Args:
        row: With ``confusion``, (5, 5).

    Returns:
        (5, 5); NaN in the rows of grades that do not occur.
    """
    totals = row.confusion.sum(axis=1, keepdims=True)
    nothing = np.full(row.confusion.shape, np.nan)
    return np.asarray(np.divide(row.confusion, totals, out=nothing, where=totals > 0))


def _cell(
    picture: ReportFigure, axes: Axes, row: ResultRow, shares: Floats, true: int, predicted: int
) -> None:
    count, share = int(row.confusion[true, predicted]), float(shares[true, predicted])
    ground = axes.add_patch(
        Rectangle((predicted - 0.5, true - 0.5), 1, 1, facecolor=PAPER, edgecolor="none", linewidth=0)
    )
    axes.add_patch(
        Rectangle(
            (predicted - 0.47, true - 0.47),
            0.94,
            0.94,
            facecolor=HEAT,
            alpha=np.nan_to_num(share) * 0.95 + 0.05,
            linewidth=0,
        )
    )
    text = f"{count}\n{words.percent(share)}"
    axes.text(predicted, true, text, ha="center", va="center", fontsize=6.8, linespacing=1.25)
    verdict = "right" if true == predicted else f"taken for grade {predicted}"
    picture.tell(
        ground,
        f"grade {true} ({words.GRADE_NAMES[true]}), {verdict}",
        f"{count} of {int(row.confusion[true].sum())}, {words.percent(share, 1)}",
    )
