"""What all figures share: size, colours, markers, and the values that a point shows."""

import io
import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from drgrade.reporting.schema import Study

_T = TypeVar("_T")

INK, SOFT, LINE, PAPER, HEAT = "#1c232b", "#5b6672", "#dde2e8", "#ffffff", "#7fb2ea"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#7a5c00", "#4d5661")
"""After Okabe and Ito, told apart by the colour-blind, too; the two that are pale on white are replaced."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Seven: with the six colours they make 42 methods that differ."""

WIDTH = 4.0
"""Inches. Narrow, so that a phone need not shrink the text."""

_LEGEND_LINE = 0.165  # inches of one line of the legend
_LEGEND_CHARACTERS = 47
_RESOLUTION = 200  # dots per inch of the PNG
_HIT = "hit-"

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markeredgecolor": PAPER,
    "lines.markeredgewidth": 0.7,
    "lines.solid_capstyle": "butt",  # an interval ends where it ends
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "drgrade",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in all figures alike."""

    colour: str
    marker: str


@dataclass
class ReportFigure:
    """A figure, and what its parts say when they are pointed at.

    Attributes:
        name: Of its files, without the ending.
        alt: What it shows, for those who do not see it.
        figure: Drawn with matplotlib.
        tips: Lines of text by the ``gid`` of an artist.
    """

    name: str
    alt: str
    figure: Figure
    tips: dict[str, str] = field(default_factory=dict)

    def tell(self, artist: Artist, *lines: str) -> None:
        """Let a part of the figure show its values.

        Args:
            artist: A point, bar or cell.
            lines: What it shows.
        """
        gid = f"{_HIT}{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid] = "\n".join(lines)


def style() -> AbstractContextManager[None]:
    """The look of all figures; they are drawn and written inside it."""
    return mpl.rc_context(_RC)  # type: ignore[arg-type]


def looks(study: Study) -> Mapping[str, Look]:
    """Colour and marker of each method, by key."""
    return {
        method.key: Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, method in enumerate(study.methods)
    }


FEW = len(COLOURS)
"""Methods in one figure at most, so that each has a colour of its own; more take several figures."""


def parts(methods: Sequence[_T]) -> list[Sequence[_T]]:
    """Divide what is shown in one figure each; neighbours stay together.

    Args:
        methods: Or rows, in the order in which they are shown.

    Returns:
        Parts of at most :data:`FEW`.
    """
    return [methods[start : start + FEW] for start in range(0, len(methods), FEW)]


def numbered(name: str, number: int, count: int) -> str:
    """Name of one of several figures: ``roc-2``; without a number if it is the only one.

    Args:
        name: Of them all.
        number: Of this one, from 0.
        count: Of figures.
    """
    return name if count == 1 else f"{name}-{number + 1}"


def begin(name: str, alt: str, height: float, width: float = WIDTH) -> tuple[ReportFigure, Axes]:
    """Begin a figure with one pair of axes.

    Args:
        name: Of its files.
        alt: What it shows.
        height: Inches.
        width: Inches.
    """
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    return ReportFigure(name, alt, figure), figure.add_subplot()


def point(axes: Axes, x: float, y: float, look: Look, size: float = 6.0, **more: object) -> Line2D:
    """Draw one point as an artist of its own, so that it can show its own values."""
    (line,) = axes.plot([x], [y], look.marker, color=look.colour, markersize=size, **more)  # type: ignore[arg-type]
    return line


def add_legend(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> None:
    """Put a legend below the axes, a line for each entry, and make the figure higher by it."""
    wrapped = [textwrap.fill(text, _LEGEND_CHARACTERS) for _, text in entries]
    lines = sum(text.count("\n") + 1 for text in wrapped)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * lines + 0.1)
    figure.legend(
        [handle for handle, _ in entries],
        wrapped,
        loc="outside lower left",
        ncols=1,
        labelspacing=0.25,
        handlelength=2.8,
    )


def legend_entry(look: Look, linestyle: Literal["-", "--"] = "-") -> Line2D:
    """What stands for a method in a legend."""
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=linestyle, markersize=6)


def place(label_fraction: float) -> float:
    """Place on the horizontal axis: a doubling of the labels is one step.

    Args:
        label_fraction: In (0, 1].
    """
    return math.log2(label_fraction)


def dodge(number: int, count: int, room: float) -> float:
    """How far the points of one method of several are moved aside, so that they do not hide each other.

    Args:
        number: Of the method, from 0.
        count: Of methods.
        room: For all of them together, in units of the axis.
    """
    step = min(room / max(count, 1), room / 4)
    return (number - (count - 1) / 2) * step


def svg(picture: ReportFigure) -> str:
    """Write a figure as SVG, as matplotlib does."""
    text = io.StringIO()
    picture.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def png(picture: ReportFigure) -> bytes:
    """Write a figure as PNG, on white."""
    data = io.BytesIO()
    picture.figure.savefig(data, format="png", dpi=_RESOLUTION, facecolor=PAPER)
    return data.getvalue()


def pdf(picture: ReportFigure) -> bytes:
    """Write a figure as PDF, without a date: the same figures give the same bytes."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph that it leaves out
    data = io.BytesIO()
    picture.figure.savefig(data, format="pdf", facecolor=PAPER, metadata={"CreationDate": None})
    return data.getvalue()
