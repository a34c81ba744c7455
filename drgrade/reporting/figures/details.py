"""Figures of one label fraction: confusion matrices, recall, calibration, ROC."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from drgrade.reporting.figures.canvas import (
    HEAT,
    PAPER,
    SOFT,
    ReportFigure,
    add_legend,
    dodge,
    legend_entry,
    looks,
    new_figure,
    numbered,
    parts,
    point,
)
from drgrade.reporting.schema import MethodCurves, ResultRow, Study
from drgrade.stats.curves import ReliabilityCurve, RocCurve
from drgrade.stats.estimates import Floats
from drgrade.stats.formatting import (
    GRADE_NAMES,
    decimal,
    estimate,
    fraction,
    fraction_slug,
    interval,
    percent,
    plural,
)
from drgrade.stats.selective import COVERAGES

_SQUARE, _FLAT = 3.4, 2.6
_ROOM = 0.7  # of the distance between two grades
_ROC_POINTS = 11
_MATRIX_WIDTH, _MATRIX_HEIGHT = 2.6, 2.55
_TITLE_LINE, _TITLE_CHARACTERS = 0.17, 36

Labels = Mapping[str, str]
"""Display name of each method, by key."""


@dataclass(frozen=True)
class Details:
    """Figures of one label fraction: a confusion matrix per method; others with up to six methods."""

    confusions: list[ReportFigure]
    calibration: list[ReportFigure]
    recall: list[ReportFigure]
    roc: list[ReportFigure]
    selective: list[ReportFigure]

    @property
    def all(self) -> list[ReportFigure]:
        """All figures."""
        return [*self.confusions, *self.calibration, *self.recall, *self.roc, *self.selective]


def draw_details(study: Study, share: float) -> Details:
    """Draw the figures of a label fraction."""
    rows = [row for row in study.rows if row.label_fraction == share]
    groups = parts(rows)

    def each(draw: Callable[[Labels, Sequence[ResultRow], str], ReportFigure]) -> list[ReportFigure]:
        return [draw(study.labels, group, numbered("", n, len(groups))) for n, group in enumerate(groups)]

    confusions = [draw_confusion(row, study.labels[row.method]) for row in rows]
    return Details(
        confusions, each(draw_calibration), each(draw_recall), each(draw_roc), each(draw_selective)
    )


def draw_recall(names: Labels, rows: Sequence[ResultRow], part: str = "") -> ReportFigure:
    """Draw the recall of each grade with its interval; ``part`` is a suffix of the name, such as ``-2``."""
    plot, axes = _begin("recall", "Recall of each grade with 95 % intervals", rows, _FLAT, part)
    style = looks(names)
    for number, row in enumerate(rows):
        for grade, recall in enumerate(row.recall):
            if not np.isfinite(recall.value):
                continue
            x = grade + dodge(number, len(rows), _ROOM)
            ends, colour = recall.interval, style[row.method].colour
            axes.plot([x, x], [ends.low, ends.high], color=colour, linewidth=3.2, alpha=0.4)
            artist = point(axes, x, recall.value, style[row.method], size=5.0)
            plot.add_tip(
                artist,
                f"{names[row.method]}, grade {grade} ({GRADE_NAMES[grade]})",
                f"recall {decimal(recall.value)}, 95 % {interval(ends)}",
                f"{plural(int(row.confusion[grade].sum()), 'test photograph')}",
            )
    labels = [f"{grade}\n{name}" for grade, name in enumerate(GRADE_NAMES)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.02, 1.02), xlabel="true grade", ylabel="recall")
    axes.grid(visible=False, axis="x")
    add_legend(plot.figure, [(legend_entry(style[row.method]), names[row.method]) for row in rows])
    return plot


def draw_calibration(names: Labels, rows: Sequence[MethodCurves], part: str = "") -> ReportFigure:
    """Draw reliability diagrams of the raw and, if there are any, of the calibrated probabilities."""
    plot, axes = _begin("calibration", "Accuracy against confidence", rows, _SQUARE, part)
    style = looks(names)
    calibrated = [(row, row.calibrated.reliability) for row in rows if row.calibrated]
    if calibrated:
        plot.figure.set_figheight(2 * _SQUARE)
        axes.set(title="uncalibrated")
        axes.set_subplotspec(plot.figure.add_gridspec(2, 1)[0])
    _reliability(plot, axes, names, [(row, row.calibration) for row in rows])
    if calibrated:
        below = plot.figure.add_subplot(2, 1, 2, title="calibrated on validation photographs")
        _reliability(plot, below, names, calibrated)
    entries = [(legend_entry(style[row.method]), f"{names[row.method]} ({_ece(row)})") for row in rows]
    add_legend(plot.figure, entries)
    return plot


def _ece(row: MethodCurves) -> str:
    before = f"ECE {decimal(row.calibration.ece)}"
    return f"{before}, calibrated {decimal(row.calibrated.ece)}" if row.calibrated else before


def _reliability(
    plot: ReportFigure, axes: Axes, names: Labels, curves: Sequence[tuple[MethodCurves, ReliabilityCurve]]
) -> None:
    style = looks(names)
    _diagonal(axes)
    for row, curve in curves:
        look = style[row.method]
        axes.plot(curve.confidence, curve.accuracy, color=look.colour, linewidth=1.2)
        for confidence, accuracy, count in zip(curve.confidence, curve.accuracy, curve.count, strict=True):
            if not count:
                continue
            artist = point(axes, confidence, accuracy, look, size=5.0)
            plot.add_tip(
                artist,
                f"{names[row.method]}, {plural(int(count), 'photograph')}",
                f"mean confidence {decimal(confidence)}, accuracy {decimal(accuracy)}",
            )
    axes.set(xlabel="confidence (largest probability)", ylabel="accuracy")


def draw_roc(names: Labels, rows: Sequence[MethodCurves], part: str = "") -> ReportFigure:
    """Draw ROC curves for referable DR."""
    plot, axes = _begin("roc", "ROC curve for referable DR (grade >= 2)", rows, _SQUARE, part)
    style = looks(names)
    _diagonal(axes)
    for row in rows:
        axes.plot(row.roc.x, row.roc.y, color=style[row.method].colour, linewidth=1.4)
        for x, y in _spread(row.roc):
            artist = point(axes, x, y, style[row.method], size=4.0, markeredgewidth=0.5)
            plot.add_tip(
                artist,
                f"{names[row.method]}, AUROC {estimate(row.referable_auroc)}",
                f"sensitivity {decimal(y)} at specificity {decimal(1 - x)}",
            )
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity")
    entries = [
        (legend_entry(style[row.method]), f"{names[row.method]}: AUROC {estimate(row.referable_auroc)}")
        for row in rows
    ]
    add_legend(plot.figure, entries)
    return plot


def draw_selective(names: Labels, rows: Sequence[MethodCurves], part: str = "") -> ReportFigure:
    """Draw risk and QWK against coverage."""
    plot, above = _begin("risk-coverage", "Risk and QWK against coverage", rows, 2 * _SQUARE, part)
    above.set_subplotspec(plot.figure.add_gridspec(2, 1)[0])
    below = plot.figure.add_subplot(2, 1, 2)
    style = looks(names)
    for row in rows:
        curve, look = row.selective.curve, style[row.method]
        for axes, values, what in ((above, curve.risk, "wrong grades"), (below, curve.qwk, "QWK")):
            axes.plot(curve.coverage, values, color=look.colour, linewidth=1.4)
            for share in COVERAGES:
                place = int(np.abs(curve.coverage - share).argmin())
                artist = point(axes, share, values[place], look, size=4.0, markeredgewidth=0.5)
                texts = f"{what} {decimal(values[place])}", f"coverage {percent(share)}"
                plot.add_tip(artist, names[row.method], *texts)
    above.set(xlim=(0, 1.02), ylim=(0, None), ylabel="risk (share of wrong grades)")
    below.set(xlim=(0, 1.02), xlabel="coverage (share of photographs graded)", ylabel="QWK of the graded")
    entries = [
        (
            legend_entry(style[row.method]),
            f"{names[row.method]}: AURC {estimate(row.selective.metrics['aurc'])}",
        )
        for row in rows
    ]
    add_legend(plot.figure, entries)
    return plot


def _begin(
    name: str, alt: str, rows: Sequence[MethodCurves], height: float, part: str
) -> tuple[ReportFigure, Axes]:
    share = rows[0].label_fraction
    alt = f"{alt}, with {fraction(share)} of the labels; values in {name}.csv"
    return new_figure(f"{name}-{fraction_slug(share)}{part}", alt, height)


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def _spread(curve: RocCurve) -> list[tuple[float, float]]:
    """Return points spread evenly along a curve, which get tooltips."""
    if len(curve.x) < 2:
        return []
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))])
    places: Floats = np.linspace(0, length[-1], _ROC_POINTS + 2)[1:-1]
    chosen = sorted({int(np.abs(length - place).argmin()) for place in places})
    return [(float(curve.x[number]), float(curve.y[number])) for number in chosen]


def draw_confusion(row: MethodCurves, label: str) -> ReportFigure:
    """Draw the counts of a row; the colour shows the share of the true grade."""
    share_of_labels = fraction(row.label_fraction)
    title = textwrap.fill(label, _TITLE_CHARACTERS)
    plot, axes = new_figure(
        f"confusion-{fraction_slug(row.label_fraction)}-{row.method}",
        f"Confusion matrix of {label} with {share_of_labels} of the labels; values in confusion.csv",
        _MATRIX_HEIGHT + _TITLE_LINE * (title.count("\n") + 1),
        _MATRIX_WIDTH,
    )
    shares = row_shares(row)
    for true, predicted in np.ndindex(row.confusion.shape):
        _cell(plot, axes, row, shares, true, predicted)
    grades = range(len(row.confusion))
    axes.set(xlim=(-0.5, grades[-1] + 0.5), ylim=(grades[-1] + 0.5, -0.5), aspect="equal")
    axes.set(xticks=grades, yticks=grades, xlabel="predicted grade", ylabel="true grade", title=title)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return plot


def row_shares(row: MethodCurves) -> Floats:
    """Divide confusion counts (5, 5) by their row sums; NaN in rows of grades that do not occur."""
    totals = row.confusion.sum(axis=1, keepdims=True)
    nothing = np.full(row.confusion.shape, np.nan)
    return np.asarray(np.divide(row.confusion, totals, out=nothing, where=totals > 0))


def _cell(
    plot: ReportFigure, axes: Axes, row: MethodCurves, shares: Floats, true: int, predicted: int
) -> None:
    count, share = int(row.confusion[true, predicted]), float(shares[true, predicted])
    corner, inner = (predicted - 0.5, true - 0.5), (predicted - 0.47, true - 0.47)
    ground = axes.add_patch(Rectangle(corner, 1, 1, facecolor=PAPER, edgecolor="none", linewidth=0))
    alpha = np.nan_to_num(share) * 0.95 + 0.05
    axes.add_patch(Rectangle(inner, 0.94, 0.94, facecolor=HEAT, alpha=alpha, linewidth=0))
    text = f"{count}\n{percent(share)}"
    axes.text(predicted, true, text, ha="center", va="center", fontsize=6.8, linespacing=1.25)
    verdict = "correct" if true == predicted else f"predicted as grade {predicted}"
    plot.add_tip(
        ground,
        f"grade {true} ({GRADE_NAMES[true]}), {verdict}",
        f"{count} of {int(row.confusion[true].sum())}, {percent(share, 1)}",
    )
