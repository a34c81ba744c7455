"""QWK against the label fraction."""

from collections.abc import Iterable

from matplotlib.axes import Axes

from drgrade.report import words
from drgrade.report.contents import PublishedRow, Row, Study
from drgrade.report.figures.canvas import (
    FEW,
    MARKERS,
    SOFT,
    Look,
    Picture,
    add_legend,
    begin,
    dodge,
    legend_entry,
    looks,
    place,
    point,
)
from drgrade.report.figures.panels import draw_panels

_HEIGHT = 3.2
_ROOM = 0.55  # of the distance between a fraction and its double
_BESIDE = 0.055  # folds stand beside their mean


def draw_curves(study: Study) -> list[Picture]:
    """Draw QWK against the label fraction: all methods in one pair of axes, or each in its own if many."""
    return [draw_curve(study)] if len(study.methods) <= FEW else draw_panels(study)


def draw_curve(study: Study) -> Picture:
    """Draw a line through the means of each method, with intervals and folds; published ones are dashed."""
    picture, axes = begin("curve", _alt(study), _HEIGHT)
    names, style = words.labels(study), looks(study)
    legend = []
    for number, method in enumerate(study.methods):
        rows = sorted(
            (row for row in study.rows if row.method == method.key), key=lambda row: row.label_fraction
        )
        aside = dodge(number, len(study.methods), _ROOM)
        _method(picture, axes, rows, names[method.key], style[method.key], aside)
        legend.append((legend_entry(style[method.key]), method.label))
    for number, label in enumerate(dict.fromkeys(row.label for row in study.published)):
        look = Look(SOFT, MARKERS[number % len(MARKERS)])
        _published(picture, axes, [row for row in study.published if row.label == label], look)
        legend.append((legend_entry(look, "--"), f"published: {label}"))
    _axes(axes, [*(row.label_fraction for row in study.rows), *(r.label_fraction for r in study.published)])
    add_legend(picture.figure, legend)
    return picture


def _alt(study: Study) -> str:
    names = words.listed([method.label for method in study.methods])
    return f"QWK on the test photographs against the share of labels, for {names}"


def _method(picture: Picture, axes: Axes, rows: list[Row], label: str, look: Look, aside: float) -> None:
    places = [place(row.label_fraction) + aside for row in rows]
    axes.plot(places, [row.mean.value for row in rows], color=look.colour, zorder=3)
    dot = Look(look.colour, "o")
    for at, row in zip(places, rows, strict=True):
        where = f"{label}, {words.fraction(row.label_fraction)} of the labels"
        ends = row.mean.interval
        axes.plot([at, at], [ends.low, ends.high], color=look.colour, linewidth=3.2, alpha=0.4, zorder=2)
        for fold, value in row.folds.items():
            artist = point(axes, at + _BESIDE, value, dot, size=3.2, alpha=0.75, zorder=4)
            picture.tell(artist, where, f"fold {fold}: {words.decimal(value)}")
        artist = point(axes, at, row.mean.value, look, zorder=5)
        picture.tell(
            artist,
            where,
            f"mean {words.decimal(row.mean.value)}, 95 % {words.interval(ends)}",
            f"{words.plural(len(row.folds), 'fold')}: "
            f"{words.decimal(row.minimum)} to {words.decimal(row.maximum)}",
        )


def _published(picture: Picture, axes: Axes, rows: list[PublishedRow], look: Look) -> None:
    rows = sorted(rows, key=lambda row: row.label_fraction)
    places = [place(row.label_fraction) for row in rows]
    axes.plot(
        places, [row.mean for row in rows], "--", color=look.colour, linewidth=0.9, alpha=0.6, zorder=1.5
    )
    for at, row in zip(places, rows, strict=True):
        lines = [f"published: {row.label}, {words.fraction(row.label_fraction)} of the labels"]
        lines.append(f"mean {words.decimal(row.mean)}")
        if row.minimum is not None and row.maximum is not None:
            axes.plot([at, at], [row.minimum, row.maximum], ":", color=look.colour, linewidth=1, zorder=1.5)
            lines[-1] += f", folds {words.decimal(row.minimum)} to {words.decimal(row.maximum)}"
        artist = point(axes, at, row.mean, look, size=4.0, zorder=1.8)
        picture.tell(artist, *lines, row.source)


def _axes(axes: Axes, shares: Iterable[float]) -> None:
    ticks = sorted(set(shares))
    axes.set_xticks([place(share) for share in ticks], [words.fraction(share) for share in ticks])
    if ticks:
        axes.set_xlim(place(ticks[0]) - _ROOM, place(ticks[-1]) + _ROOM)
    axes.grid(visible=False, axis="x")
    if axes.get_ylim()[0] < 0:
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
    axes.set_xlabel("share of the training labels")
    axes.set_ylabel("QWK on test photographs")
