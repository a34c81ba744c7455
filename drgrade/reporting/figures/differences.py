"""Forest plots of differences between methods."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes

from drgrade.reporting.figures.canvas import (
    INK,
    PAPER,
    SOFT,
    Look,
    ReportFigure,
    new_figure,
    numbered,
    point,
)
from drgrade.reporting.schema import MethodComparison, Study
from drgrade.stats.formatting import MINUS, fraction, interval, p_value, percent, plural, signed

_LINE = 0.19  # inches of a line of the figure
_MARGIN = 0.55
_LINES_PER_PAGE = 36
_TITLE_CHARACTERS = 44

_Pair = tuple[str, list[MethodComparison]]
"""Wrapped name of a pair of methods, and its comparisons."""


def draw_differences(study: Study) -> list[ReportFigure]:
    """Draw the difference of each pair at each label fraction, on several pages if needed."""
    names = study.labels
    pairs = [
        (_wrapped(comparisons[0], names), comparisons)
        for _, group in groupby(study.comparisons, key=lambda item: (item.first, item.second))
        if (comparisons := list(group))
    ]
    pages = list(_pages(pairs))
    return [_draw(page, numbered("differences", number, len(pages))) for number, page in enumerate(pages)]


def _wrapped(comparison: MethodComparison, names: Mapping[str, str]) -> str:
    """Return the name of a pair; a long one takes at least one line per method."""
    title = comparison.title(names)
    if len(title) <= _TITLE_CHARACTERS:
        return title
    parts = (f"{names[comparison.first]} {MINUS}", names[comparison.second])
    return "\n".join(textwrap.fill(part, _TITLE_CHARACTERS) for part in parts)


def _pages(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    page: list[_Pair] = []
    lines = 0
    for title, group in pairs:
        own = title.count("\n") + 1 + len(group)
        if page and lines + own > _LINES_PER_PAGE:
            yield page
            page, lines = [], 0
        page.append((title, group))
        lines += own
    if page:
        yield page


def _draw(pairs: Sequence[_Pair], name: str) -> ReportFigure:
    alt = f"Differences in QWK with 95 % intervals: {'; '.join(title for title, _ in pairs)}"
    lines = sum(title.count("\n") + 1 + len(group) for title, group in pairs)
    plot, axes = new_figure(name, " ".join(alt.split()), _MARGIN + _LINE * lines)
    ticks: dict[float, str] = {}
    line = 0
    for title, group in pairs:
        _title(axes, line, title)
        line += title.count("\n") + 1
        for comparison in group:
            ticks[line] = fraction(comparison.label_fraction)
            _line(plot, axes, line, comparison, " ".join(title.split()))
            line += 1
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(line - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=SOFT, linewidth=1, zorder=1)
    axes.set_xlabel("difference in QWK, first minus second")
    return plot


def _title(axes: Axes, line: int, title: str) -> None:
    """Write the name of a pair above its lines, on a background that hides the grid."""
    text = axes.text(
        0.005,
        line - 0.5,
        title,
        transform=axes.get_yaxis_transform(),
        va="top",
        weight="bold",
        bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1},
    )
    text.set_in_layout(False)


def _line(plot: ReportFigure, axes: Axes, line: int, comparison: MethodComparison, title: str) -> None:
    ends = comparison.difference.interval
    apart = ends.low > 0 or ends.high < 0
    look = Look(INK if apart else SOFT, "o")
    axes.plot([ends.low, ends.high], [line, line], color=look.colour, linewidth=1.4)
    artist = point(axes, comparison.difference.value, line, look, markerfacecolor=look.colour)
    plot.add_tip(
        artist,
        f"{title}, {fraction(comparison.label_fraction)} of the labels",
        f"{signed(comparison.difference.value)}, "
        + (f"95 % {interval(ends)}" if comparison.seeds > 1 else "no interval: one training seed"),
        f"better in {percent(comparison.won)} of {plural(comparison.folds, 'fold')}, "
        f"p {p_value(comparison.p_value)}",
    )
