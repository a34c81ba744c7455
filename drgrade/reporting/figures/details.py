"""Figures of all methods at one label fraction: recall of the grades, calibration, ROC."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from drgrade.reporting import method_labels
from drgrade.reporting.figures.canvas import (
    SOFT,
    Look,
    ReportFigure,
    add_legend,
    begin,
    dodge,
    legend_entry,
    looks,
    point,
)
from drgrade.reporting.schema import ReliabilityCurve, ResultRow, RocCurve, Study
from drgrade.stats import formatting as words
from drgrade.stats.estimates import Floats

_SQUARE, _FLAT = 3.4, 2.6
_ROOM = 0.7  # of the distance between two grades
_ROC_POINTS = 11


def draw_recall(study: Study, rows: Sequence[ResultRow], part: str = "") -> ReportFigure:
    """Draw the recall of each grade, with its interval.

    Args:
        study: The whole.
        rows: Methods at one label fraction.
        part: Which of several figures, as ``-2``.
    """
    picture, axes = _begin("recall", "Recall of each grade with 95 % intervals", rows, _FLAT, part)
    names, style = method_labels.labels(study), looks(study)
    for number, row in enumerate(rows):
        for grade, recall in enumerate(row.recall):
            if not np.isfinite(recall.value):
                continue
            x = grade + dodge(number, len(rows), _ROOM)
            ends, colour = recall.interval, style[row.method].colour
            axes.plot([x, x], [ends.low, ends.high], color=colour, linewidth=3.2, alpha=0.4)
            artist = point(axes, x, recall.value, style[row.method], size=5.0)
            picture.tell(
                artist,
                f"{names[row.method]}, grade {grade} ({words.GRADE_NAMES[grade]})",
                f"recall {words.decimal(recall.value)}, 95 % {words.interval(ends)}",
                f"{words.plural(int(row.confusion[grade].sum()), 'test photograph')}",
            )
    labels = [f"{grade}\n{name}" for grade, name in enumerate(words.GRADE_NAMES)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.02, 1.02), xlabel="true grade", ylabel="recall")
    axes.grid(visible=False, axis="x")
    add_legend(picture.figure, [(legend_entry(style[row.method]), names[row.method]) for row in rows])
    return picture


def draw_calibration(study: Study, rows: Sequence[ResultRow], part: str = "") -> ReportFigure:
    """Draw accuracy against confidence; a model whose probabilities can be believed lies on the diagonal.

    Calibrated ones are drawn below, in axes of their own, if there are any.

    Args:
        study: The whole.
        rows: Methods at one label fraction.
        part: Which of several figures, as ``-2``.
    """
    picture, axes = _begin("calibration", "Accuracy against confidence", rows, _SQUARE, part)
    names, style = method_labels.labels(study), looks(study)
    calibrated = [(row, row.calibrated.reliability) for row in rows if row.calibrated]
    if calibrated:
        picture.figure.set_figheight(2 * _SQUARE)
        axes.set(title="as the model is")
        axes.set_subplotspec(picture.figure.add_gridspec(2, 1)[0])
    _reliability(picture, axes, study, [(row, row.calibration) for row in rows])
    if calibrated:
        below = picture.figure.add_subplot(2, 1, 2, title="calibrated on the validation photographs")
        _reliability(picture, below, study, calibrated)
    entries = [(legend_entry(style[row.method]), f"{names[row.method]} ({_ece(row)})") for row in rows]
    add_legend(picture.figure, entries)
    return picture


def _ece(row: ResultRow) -> str:
    before = f"ECE {words.decimal(row.calibration.ece)}"
    return f"{before}, calibrated {words.decimal(row.calibrated.ece.after)}" if row.calibrated else before


def _reliability(
    picture: ReportFigure, axes: Axes, study: Study, curves: Sequence[tuple[ResultRow, ReliabilityCurve]]
) -> None:
    names, style = method_labels.labels(study), looks(study)
    _diagonal(axes)
    for row, found in curves:
        look = style[row.method]
        axes.plot(found.confidence, found.accuracy, color=look.colour, linewidth=1.2)
        for confidence, accuracy, count in zip(found.confidence, found.accuracy, found.count, strict=True):
            if not count:
                continue
            artist = point(axes, confidence, accuracy, look, size=5.0)
            picture.tell(
                artist,
                f"{names[row.method]}, {words.plural(int(count), 'photograph')}",
                f"mean confidence {words.decimal(confidence)}, accuracy {words.decimal(accuracy)}",
            )
    axes.set(xlabel="confidence (largest probability)", ylabel="accuracy")


def draw_roc(study: Study, rows: Sequence[ResultRow], part: str = "") -> ReportFigure:
    """Draw sensitivity against false positives for referable DR.

    Args:
        study: The whole.
        rows: Methods at one label fraction.
        part: Which of several figures, as ``-2``.
    """
    picture, axes = _begin("roc", "ROC of referable DR, grade 2 and above", rows, _SQUARE, part)
    names, style = method_labels.labels(study), looks(study)
    _diagonal(axes)
    for row in rows:
        axes.plot(row.roc.x, row.roc.y, color=style[row.method].colour, linewidth=1.4)
        for x, y in _spread(row.roc):
            small = Look(style[row.method].colour, style[row.method].marker)
            artist = point(axes, x, y, small, size=4.0, markeredgewidth=0.5)
            picture.tell(
                artist,
                f"{names[row.method]}, AUROC {words.estimate(row.referable_auroc)}",
                f"sensitivity {words.decimal(y)} at specificity {words.decimal(1 - x)}",
            )
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity")
    entries = [
        (
            legend_entry(style[row.method]),
            f"{names[row.method]}: AUROC {words.estimate(row.referable_auroc)}",
        )
        for row in rows
    ]
    add_legend(picture.figure, entries)
    return picture


def _begin(
    name: str, alt: str, rows: Sequence[ResultRow], height: float, part: str
) -> tuple[ReportFigure, Axes]:
    share = rows[0].label_fraction
    alt = f"{alt}, with {words.fraction(share)} of the labels; the numbers are in {name}.csv"
    return begin(f"{name}-{words.fraction_slug(share)}{part}", alt, height)


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def _spread(curve: RocCurve) -> list[tuple[float, float]]:
    """Points of a curve, spread along it, so that it can be read without a mark at each of its thousands."""
    if len(curve.x) < 2:
        return []
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))])
    wanted: Floats = np.linspace(0, length[-1], _ROC_POINTS + 2)[1:-1]
    chosen = sorted({int(np.abs(length - place).argmin()) for place in wanted})
    return [(float(curve.x[number]), float(curve.y[number])) for number in chosen]
