"""QWK against the label fraction.

With many methods, each line of methods has its own axes, which share the scale and show the curve of the
reference (small multiples: Tufte, The Visual Display of Quantitative Information, 1983).
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from drgrade.reporting.figures.canvas import (
    FEW,
    MARKERS,
    SOFT,
    WIDTH,
    Look,
    ReportFigure,
    add_legend,
    dodge,
    legend_entry,
    looks,
    new_figure,
    numbered,
    parts,
    place,
    point,
)
from drgrade.reporting.schema import PublishedRow, ResultRow, Study
from drgrade.stats.estimates import Range
from drgrade.stats.formatting import count, decimal, fraction, interval, listed, plural, span

_BELOW = "below: labels of a run, validation included"

_COLUMNS, _ROWS = 2, 4
"""Columns and rows of panels in a figure that fits on a printed page."""

_PANEL = 1.62  # inches
_MARGIN = 0.35
_SMALL = 7.5  # points
_TITLE_CHARACTERS = 30
_ROOM = 0.35
_HEIGHT = 3.2
_CURVE_ROOM = 0.55  # of the distance between a fraction and twice that fraction
_BESIDE = 0.055  # distance of folds from their mean


def draw_curves(study: Study) -> list[ReportFigure]:
    """Draw QWK against the label fraction: in one pair of axes, or in panels if there are many methods."""
    return [draw_curve(study)] if len(study.methods) <= FEW else draw_panels(study)


def draw_panels(study: Study) -> list[ReportFigure]:
    """Draw each line of methods in its own axes, at most eight per figure."""
    lines = list(dict.fromkeys(method.name for method in study.methods))
    pages = parts(lines, _COLUMNS * _ROWS)
    return [_page(study, page, numbered("curve", number, len(pages))) for number, page in enumerate(pages)]


def _limits(study: Study) -> tuple[float, float]:
    """Return the limits of the vertical axis, which all panels share."""
    intervals = [row.mean.interval for row in study.rows]
    values = [end for each in intervals for end in (each.low, each.high) if np.isfinite(end)]
    values += [row.mean.value for row in study.rows]
    values += [row.mean for row in study.published if row.beside]
    return min(values) - 0.04, max(values) + 0.04


def _page(study: Study, lines: Sequence[str], name: str) -> ReportFigure:
    """Draw the panels of several lines of methods (:attr:`Method.name`)."""
    rows = -(-len(lines) // _COLUMNS)
    figure = Figure(
        figsize=(WIDTH, _PANEL * rows + _MARGIN), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    )
    alt = f"QWK on the test photographs against the label fraction, for {listed(lines)}; values in table.csv"
    plot = ReportFigure(name, alt, figure)
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    styles = looks(dict.fromkeys(method.protocol for method in study.methods))
    papers = _paper_looks(dict.fromkeys(row.label for row in study.published if row.beside), MARKERS[::-1])
    for line, own in zip(lines, axes.flat, strict=False):
        _draw(plot, own, study, line, styles, papers)
    for own in axes.flat[len(lines) :]:
        own.set_visible(False)
    _axes(axes, study, len(lines))
    add_legend(figure, _legend(study, lines, styles, papers))
    return plot


def _paper_looks(labels: Iterable[str], markers: Sequence[str]) -> dict[str, Look]:
    return {label: Look(SOFT, markers[number % len(markers)]) for number, label in enumerate(labels)}


def _draw(
    plot: ReportFigure,
    axes: Axes,
    study: Study,
    line: str,
    styles: Mapping[str, Look],
    papers: Mapping[str, Look],
) -> None:
    methods = [method for method in study.methods if method.name == line]
    for number, method in enumerate(methods):
        look, aside = styles[method.protocol], dodge(number, len(methods), _ROOM)
        reference = study.rows_of(method.reference)
        if reference:
            _line(axes, reference, look.colour, ":", 1.0)
        rows = study.rows_of(method.key)
        _line(axes, rows, look.colour, "-", 1.4, aside)
        _means(plot, axes, rows, method.label, look, aside, width=2.6, alpha=0.35, size=4.5)
    for label, look in papers.items():
        published = [row for row in study.published if row.beside == line and row.label == label]
        if published:
            _published(plot, axes, published, look, 3.5, ranges=False)
    axes.set_title(textwrap.fill(line, _TITLE_CHARACTERS), fontsize=_SMALL, pad=3)


def _means(
    plot: ReportFigure,
    axes: Axes,
    rows: Sequence[ResultRow],
    label: str,
    look: Look,
    aside: float,
    width: float,
    alpha: float,
    size: float,
) -> None:
    """Draw means with intervals and tooltips."""
    for row in rows:
        at, ends = place(row.label_fraction) + aside, row.mean.interval
        axes.plot([at, at], [ends.low, ends.high], color=look.colour, linewidth=width, alpha=alpha, zorder=2)
        artist = point(axes, at, row.mean.value, look, size=size, zorder=5)
        plot.add_tip(
            artist,
            _where(label, row),
            f"mean {decimal(row.mean.value)}, 95 % {interval(ends)}",
            f"{plural(len(row.folds), 'fold')}: {decimal(row.minimum)} to {decimal(row.maximum)}",
            f"{count(row.labels)} training labels, {count(row.labels_used)} with validation",
        )


def _where(label: str, row: ResultRow | PublishedRow) -> str:
    return f"{label}, {fraction(row.label_fraction)} of the labels"


def _line(
    axes: Axes, rows: Sequence[ResultRow], colour: str, style: str, width: float, aside: float = 0.0
) -> None:
    places = [place(row.label_fraction) + aside for row in rows]
    axes.plot(places, [row.mean.value for row in rows], style, color=colour, linewidth=width, zorder=3)


def _labels_used(study: Study, share: float) -> str:
    """Return the number of training and validation labels at a fraction, over the rows of the report."""
    return span(Range.of(row.labels_used for row in study.rows if row.label_fraction == share), count)


def _axes(axes: np.ndarray, study: Study, panels: int) -> None:
    shares, limits = study.label_fractions, _limits(study)
    ticks = [place(share) for share in shares]
    for number, own in enumerate(axes.flat):
        own.set_xticks(ticks, [f"{100 * share:.6g}\n{_labels_used(study, share)}" for share in shares])
        own.set(xlim=(ticks[0] - _ROOM, ticks[-1] + _ROOM), ylim=limits)
        own.tick_params(labelsize=_SMALL, pad=2)
        own.grid(visible=False, axis="x")
        if limits[0] < 0:
            own.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
        # The lowest panel of each column has tick labels.
        lowest = panels - _COLUMNS <= number < panels
        own.tick_params(labelbottom=lowest)
        if lowest:
            own.set_xlabel(f"% of the training labels\n{_BELOW}", fontsize=_SMALL)
        if number % _COLUMNS == 0:
            own.set_ylabel("QWK", fontsize=_SMALL)


def _legend(
    study: Study, lines: Sequence[str], styles: Mapping[str, Look], papers: Mapping[str, Look]
) -> list[tuple[Line2D, str]]:
    methods = [method for method in study.methods if method.name in lines]
    protocols = {method.protocol for method in methods}
    entries = [(legend_entry(look), f"protocol {name}") for name, look in styles.items() if name in protocols]
    if any(method.reference for method in methods):
        dotted = Line2D([], [], color=SOFT, linestyle=":")
        entries.append((dotted, "random initialisation, same encoder and protocol"))
    shown = {row.label for row in study.published if row.beside in lines}
    entries += [
        (legend_entry(look, "--"), f"published: {name}") for name, look in papers.items() if name in shown
    ]
    return entries


def draw_curve(study: Study) -> ReportFigure:
    """Draw means, intervals and folds of each method; published results are dashed.

    Of many published results, only those of methods in the report are drawn.
    """
    names = listed([method.label for method in study.methods])
    alt = f"QWK on the test photographs against the label fraction, for {names}"
    plot, axes = new_figure("curve", alt, _HEIGHT)
    styles = looks(study.labels)
    legend = []
    for number, method in enumerate(study.methods):
        aside = dodge(number, len(study.methods), _CURVE_ROOM)
        _curve_method(plot, axes, study.rows_of(method.key), method.label, styles[method.key], aside)
        legend.append((legend_entry(styles[method.key]), method.label))
    papers = study.published
    if len({row.label for row in papers}) > FEW:
        papers = [row for row in papers if row.beside]
    for label, look in _paper_looks(dict.fromkeys(row.label for row in papers), MARKERS).items():
        rows = [row for row in papers if row.label == label]
        _published(plot, axes, rows, look, 4.0, ranges=True)
        legend.append((legend_entry(look, "--"), f"published: {label}"))
    _curve_axes(axes, study)
    add_legend(plot.figure, legend)
    return plot


def _curve_method(
    plot: ReportFigure, axes: Axes, rows: list[ResultRow], label: str, look: Look, aside: float
) -> None:
    _line(axes, rows, look.colour, "-", 1.5, aside)
    for row in rows:
        for fold, value in row.folds.items():
            at, dot = place(row.label_fraction) + aside + _BESIDE, Look(look.colour, "o")
            artist = point(axes, at, value, dot, size=3.2, alpha=0.75, zorder=4)
            plot.add_tip(artist, _where(label, row), f"fold {fold}: {decimal(value)}")
    _means(plot, axes, rows, label, look, aside, width=3.2, alpha=0.4, size=6.0)


def _published(
    plot: ReportFigure, axes: Axes, rows: Sequence[PublishedRow], look: Look, size: float, ranges: bool
) -> None:
    rows = sorted(rows, key=lambda row: row.label_fraction)
    places = [place(row.label_fraction) for row in rows]
    means = [row.mean for row in rows]
    axes.plot(places, means, "--", color=look.colour, linewidth=0.9, alpha=0.65, zorder=1.5)
    for at, row in zip(places, rows, strict=True):
        text = f"mean {decimal(row.mean)}"
        if ranges and row.minimum is not None and row.maximum is not None:
            axes.plot([at, at], [row.minimum, row.maximum], ":", color=look.colour, linewidth=1, zorder=1.5)
            text += f", folds {decimal(row.minimum)} to {decimal(row.maximum)}"
        artist = point(axes, at, row.mean, look, size=size, zorder=1.8)
        plot.add_tip(artist, _where(f"published: {row.label}", row), text, row.source)


def _curve_axes(axes: Axes, study: Study) -> None:
    ticks = sorted({*study.label_fractions, *(row.label_fraction for row in study.published)})
    names = [f"{fraction(share)}\n{_labels_used(study, share)}" for share in ticks]
    axes.set_xticks([place(share) for share in ticks], names)
    if ticks:
        axes.set_xlim(place(ticks[0]) - _CURVE_ROOM, place(ticks[-1]) + _CURVE_ROOM)
    axes.grid(visible=False, axis="x")
    if axes.get_ylim()[0] < 0:
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
    axes.set_xlabel(f"label fraction\n{_BELOW}")
    axes.set_ylabel("QWK on test photographs")
