"""QWK against the label fraction.

With many methods, each line of methods has its own axes, which share the scale and show the curve of the
reference (small multiples: Tufte, The Visual Display of Quantitative Information, 1983).
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from drgrade.reporting.figures.canvas import (
    COLOURS,
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
    place,
    point,
)
from drgrade.reporting.schema import Method, PublishedRow, ResultRow, Study
from drgrade.stats.formatting import decimal, fraction, interval, listed, plural

_COLUMNS, _ROWS = 2, 4
"""Columns and rows of panels in a figure that fits on a printed page."""

_PANEL = 1.62  # inches
_MARGIN = 0.35
_SMALL = 7.5  # points
_TITLE_CHARACTERS = 30
_ROOM = 0.35


@dataclass(frozen=True)
class _Panel:
    """Content of one pair of axes: the methods of a line, one for each protocol, and published results."""

    name: str
    methods: Sequence[Method]
    papers: Sequence[PublishedRow]


def draw_panels(study: Study) -> list[ReportFigure]:
    """Draw each line of methods in its own axes, at most eight per figure."""
    panels = [
        _Panel(
            name,
            [method for method in study.methods if method.name == name],
            [row for row in study.published if row.beside == name],
        )
        for name in dict.fromkeys(method.name for method in study.methods)
    ]
    size = _COLUMNS * _ROWS
    pages = [panels[start : start + size] for start in range(0, len(panels), size)]
    limits = _limits(study)
    return [
        _page(study, page, numbered("curve", number, len(pages)), limits) for number, page in enumerate(pages)
    ]


def _limits(study: Study) -> tuple[float, float]:
    """Return the limits of the vertical axis, which all panels share."""
    shown = [row.mean.interval for row in study.rows]
    values = [value for each in shown for value in (each.low, each.high) if np.isfinite(value)]
    values += [row.mean.value for row in study.rows]
    values += [row.mean for row in study.published if row.beside]
    return min(values) - 0.04, max(values) + 0.04


def _page(study: Study, panels: Sequence[_Panel], name: str, limits: tuple[float, float]) -> ReportFigure:
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(
        figsize=(WIDTH, _PANEL * rows + _MARGIN), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    )
    names = listed([panel.name for panel in panels])
    alt = f"QWK on the test photographs against the label fraction, for {names}; values in table.csv"
    picture = ReportFigure(name, alt, figure)
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    protocols = list(dict.fromkeys(method.protocol for method in study.methods))
    looks = {
        protocol: Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, protocol in enumerate(protocols)
    }
    labels = list(dict.fromkeys(row.label for row in study.published if row.beside))
    papers = {label: Look(SOFT, MARKERS[::-1][number % len(MARKERS)]) for number, label in enumerate(labels)}
    for panel, own in zip(panels, axes.flat, strict=False):
        _draw(picture, own, study, panel, looks, papers)
    for own in axes.flat[len(panels) :]:
        own.set_visible(False)
    _axes(axes, sorted({row.label_fraction for row in study.rows}), limits, len(panels))
    add_legend(figure, _legend(panels, looks, papers))
    return picture


def _draw(
    picture: ReportFigure,
    axes: Axes,
    study: Study,
    panel: _Panel,
    looks: Mapping[str, Look],
    papers: Mapping[str, Look],
) -> None:
    for number, method in enumerate(panel.methods):
        look, aside = looks[method.protocol], dodge(number, len(panel.methods), _ROOM)
        reference = study.rows_of(method.reference)
        if reference:
            _line(axes, reference, look.colour, ":", 1.0)
        rows = study.rows_of(method.key)
        _line(axes, rows, look.colour, "-", 1.4, aside)
        _means(picture, axes, rows, method.label, look, aside, width=2.6, alpha=0.35, size=4.5)
    for label in dict.fromkeys(row.label for row in panel.papers):
        rows_of_paper = [row for row in panel.papers if row.label == label]
        _published(picture, axes, rows_of_paper, papers[label], 3.5, ranges=False)
    axes.set_title(textwrap.fill(panel.name, _TITLE_CHARACTERS), fontsize=_SMALL, pad=3)


def _means(
    picture: ReportFigure,
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
        picture.add_tip(
            artist,
            _where(label, row),
            f"mean {decimal(row.mean.value)}, 95 % {interval(ends)}",
            f"{plural(len(row.folds), 'fold')}: {decimal(row.minimum)} to {decimal(row.maximum)}",
        )


def _where(label: str, row: ResultRow | PublishedRow) -> str:
    return f"{label}, {fraction(row.label_fraction)} of the labels"


def _line(
    axes: Axes, rows: Sequence[ResultRow], colour: str, style: str, width: float, aside: float = 0.0
) -> None:
    places = [place(row.label_fraction) + aside for row in rows]
    axes.plot(places, [row.mean.value for row in rows], style, color=colour, linewidth=width, zorder=3)


def _axes(axes: np.ndarray, shares: Sequence[float], limits: tuple[float, float], count: int) -> None:
    ticks = [place(share) for share in shares]
    for number, own in enumerate(axes.flat):
        own.set_xticks(ticks, [f"{100 * share:.6g}" for share in shares])
        own.set(xlim=(ticks[0] - _ROOM, ticks[-1] + _ROOM), ylim=limits)
        own.tick_params(labelsize=_SMALL, pad=2)
        own.grid(visible=False, axis="x")
        if limits[0] < 0:
            own.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
        # The lowest panel of each column has tick labels.
        lowest = count - _COLUMNS <= number < count
        own.tick_params(labelbottom=lowest)
        if lowest:
            own.set_xlabel("% of the training labels", fontsize=_SMALL)
        if number % _COLUMNS == 0:
            own.set_ylabel("QWK", fontsize=_SMALL)


def _legend(
    panels: Sequence[_Panel], looks: Mapping[str, Look], papers: Mapping[str, Look]
) -> list[tuple[Line2D, str]]:
    shown = {method.protocol for panel in panels for method in panel.methods}
    entries = [(legend_entry(look), f"protocol {name}") for name, look in looks.items() if name in shown]
    if any(method.reference for panel in panels for method in panel.methods):
        dotted = Line2D([], [], color=SOFT, linestyle=":")
        entries.append((dotted, "random initialisation, same encoder and protocol"))
    published = {row.label for panel in panels for row in panel.papers}
    entries += [
        (legend_entry(look, "--"), f"published: {label}")
        for label, look in papers.items()
        if label in published
    ]
    return entries


_HEIGHT = 3.2
_CURVE_ROOM = 0.55  # of the distance between a fraction and twice that fraction
_BESIDE = 0.055  # distance of folds from their mean


def draw_curves(study: Study) -> list[ReportFigure]:
    """Draw QWK against the label fraction: in one pair of axes, or in panels if there are many methods."""
    return [draw_curve(study)] if len(study.methods) <= FEW else draw_panels(study)


def draw_curve(study: Study) -> ReportFigure:
    """Draw the means of each method with intervals and folds; published results are dashed."""
    picture, axes = new_figure("curve", _alt(study), _HEIGHT)
    names, style = study.labels, looks(study)
    legend = []
    for number, method in enumerate(study.methods):
        rows = study.rows_of(method.key)
        aside = dodge(number, len(study.methods), _CURVE_ROOM)
        _curve_method(picture, axes, rows, names[method.key], style[method.key], aside)
        legend.append((legend_entry(style[method.key]), method.label))
    for number, label in enumerate(dict.fromkeys(row.label for row in study.published)):
        look = Look(SOFT, MARKERS[number % len(MARKERS)])
        _published(
            picture, axes, [row for row in study.published if row.label == label], look, 4.0, ranges=True
        )
        legend.append((legend_entry(look, "--"), f"published: {label}"))
    _curve_axes(
        axes, [*(row.label_fraction for row in study.rows), *(r.label_fraction for r in study.published)]
    )
    add_legend(picture.figure, legend)
    return picture


def _alt(study: Study) -> str:
    names = listed([method.label for method in study.methods])
    return f"QWK on the test photographs against the label fraction, for {names}"


def _curve_method(
    picture: ReportFigure, axes: Axes, rows: list[ResultRow], label: str, look: Look, aside: float
) -> None:
    _line(axes, rows, look.colour, "-", 1.5, aside)
    for row in rows:
        for fold, value in row.folds.items():
            at, dot = place(row.label_fraction) + aside + _BESIDE, Look(look.colour, "o")
            artist = point(axes, at, value, dot, size=3.2, alpha=0.75, zorder=4)
            picture.add_tip(artist, _where(label, row), f"fold {fold}: {decimal(value)}")
    _means(picture, axes, rows, label, look, aside, width=3.2, alpha=0.4, size=6.0)


def _published(
    picture: ReportFigure, axes: Axes, rows: Sequence[PublishedRow], look: Look, size: float, ranges: bool
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
        picture.add_tip(artist, _where(f"published: {row.label}", row), text, row.source)


def _curve_axes(axes: Axes, shares: Iterable[float]) -> None:
    ticks = sorted(set(shares))
    axes.set_xticks([place(share) for share in ticks], [fraction(share) for share in ticks])
    if ticks:
        axes.set_xlim(place(ticks[0]) - _CURVE_ROOM, place(ticks[-1]) + _CURVE_ROOM)
    axes.grid(visible=False, axis="x")
    if axes.get_ylim()[0] < 0:
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
    axes.set_xlabel("label fraction")
    axes.set_ylabel("QWK on test photographs")
