"""Differences of two methods, with their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes

from drgrade.report import words
from drgrade.report.contents import Comparison, Study
from drgrade.report.figures.canvas import INK, PAPER, SOFT, Look, Picture, begin, point

_LINE = 0.19  # inches of a line of the figure
_MARGIN = 0.55
_AT_MOST = 36  # lines of one figure: what fits on half a printed page


def draw_differences(study: Study) -> list[Picture]:
    """Draw each pair of methods at each fraction, with its interval; many pairs take several figures."""
    names = words.labels(study)
    pairs = [
        list(group) for _, group in groupby(study.comparisons, key=lambda item: (item.first, item.second))
    ]
    pages = list(_pages(pairs))
    return [
        _draw(page, names, "differences" if len(pages) == 1 else f"differences-{number}")
        for number, page in enumerate(pages, start=1)
    ]


def _pages(pairs: Sequence[list[Comparison]]) -> Iterator[list[list[Comparison]]]:
    page: list[list[Comparison]] = []
    for group in pairs:
        if page and sum(len(other) + 1 for other in page) + len(group) + 1 > _AT_MOST:
            yield page
            page = []
        page.append(group)
    if page:
        yield page


def _draw(pairs: list[list[Comparison]], names: Mapping[str, str], name: str) -> Picture:
    titles = [words.pair(group[0], names) for group in pairs]
    lines = sum(len(group) + 1 for group in pairs)
    alt = f"Differences of QWK with 95 % intervals: {'; '.join(titles)}"
    picture, axes = begin(name, alt, _MARGIN + _LINE * lines)
    ticks: dict[float, str] = {}
    line = 0.0
    for title, group in zip(titles, pairs, strict=True):
        axes.text(
            0.005,
            line,
            title,
            transform=axes.get_yaxis_transform(),
            va="center",
            weight="bold",
            bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1},
        )
        for comparison in group:
            line += 1
            ticks[line] = words.fraction(comparison.label_fraction)
            _line(picture, axes, line, comparison, title)
        line += 1
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(line - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=SOFT, linewidth=1, zorder=1)
    axes.set_xlabel("difference of QWK, first minus second")
    return picture


def _line(picture: Picture, axes: Axes, line: float, comparison: Comparison, title: str) -> None:
    ends = comparison.difference.interval
    apart = ends.low > 0 or ends.high < 0
    look = Look(INK if apart else SOFT, "o")
    axes.plot([ends.low, ends.high], [line, line], color=look.colour, linewidth=1.4)
    artist = point(axes, comparison.difference.value, line, look, markerfacecolor=look.colour)
    picture.tell(
        artist,
        f"{title}, {words.fraction(comparison.label_fraction)} of the labels",
        f"{words.signed(comparison.difference.value)}, 95 % {words.interval(ends)}",
        f"better in {words.percent(comparison.won)} of {words.plural(comparison.folds, 'fold')}, "
        f"p {words.p_value(comparison.p_value)}",
    )
