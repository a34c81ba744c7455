"""Style, axes, legends and file formats of figures."""

import io
import logging
import math
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

_T = TypeVar("_T")

INK, SOFT, LINE, PAPER, HEAT = "#1c232b", "#5b6672", "#dde2e8", "#ffffff", "#7fb2ea"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#7a5c00", "#4d5661")
"""Colour-blind safe palette after Okabe and Ito; two colours that are too pale on white are replaced."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Seven markers and six colours distinguish 42 methods."""

WIDTH = 4.0
"""Inches; narrow enough for a phone."""

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
    "lines.solid_capstyle": "butt",  # lines end at the limits of the interval
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
    """Colour and marker of a method."""

    colour: str
    marker: str


@dataclass
class ReportFigure:
    """A figure with tooltips.

    Attributes:
        name: File name without the suffix.
        alt: Alternative text.
        figure: The matplotlib figure.
        tips: Tooltip by ``gid`` of an artist.
    """

    name: str
    alt: str
    figure: Figure
    tips: dict[str, str] = field(default_factory=dict)

    def add_tip(self, artist: Artist, *lines: str) -> None:
        """Give an artist a tooltip."""
        gid = f"{_HIT}{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid] = "\n".join(lines)


def style() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and written."""
    return mpl.rc_context(_RC)  # type: ignore[arg-type]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return a colour and a marker for each name, such as the keys of methods."""
    return {
        name: Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, name in enumerate(names)
    }


FEW = len(COLOURS)
"""Maximum number of methods in one figure, so that each has its own colour."""


def parts(items: Sequence[_T], size: int = FEW) -> list[Sequence[_T]]:
    """Split methods or rows into those of each figure."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def numbered(name: str, number: int, count: int) -> str:
    """Return ``name-2`` for the second of several figures; ``name`` if there is only one."""
    return name if count == 1 else f"{name}-{number + 1}"


def new_figure(name: str, alt: str, height: float, width: float = WIDTH) -> tuple[ReportFigure, Axes]:
    """Create a figure with one pair of axes; height and width in inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    return ReportFigure(name, alt, figure), figure.add_subplot()


def point(axes: Axes, x: float, y: float, look: Look, size: float = 6.0, **more: object) -> Line2D:
    """Draw one point as a separate artist, so that it can have a tooltip."""
    (line,) = axes.plot([x], [y], look.marker, color=look.colour, markersize=size, **more)  # type: ignore[arg-type]
    return line


def add_legend(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> None:
    """Add a legend below the axes, one line per entry, and enlarge the figure accordingly."""
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
    """Return the legend handle of a method."""
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=linestyle, markersize=6)


def place(label_fraction: float) -> float:
    """Return the horizontal position of a label fraction on a log2 axis."""
    return math.log2(label_fraction)


def dodge(number: int, count: int, room: float) -> float:
    """Return the horizontal offset of one of ``count`` methods, so that points do not overlap.

    ``room`` is the total width in axis units.
    """
    step = min(room / max(count, 1), room / 4)
    return (number - (count - 1) / 2) * step


def svg(figure: ReportFigure) -> str:
    """Render a figure as SVG."""
    return _save(figure, format="svg", transparent=True, metadata={"Date": None}).decode("utf-8")


def png(figure: ReportFigure) -> bytes:
    """Render a figure as PNG on white."""
    return _save(figure, format="png", dpi=_RESOLUTION, facecolor=PAPER)


def pdf(figure: ReportFigure) -> bytes:
    """Render a figure as PDF without a date, so that equal figures give equal bytes."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs each glyph
    return _save(figure, format="pdf", facecolor=PAPER, metadata={"CreationDate": None})


def _save(figure: ReportFigure, **options: Any) -> bytes:
    data = io.BytesIO()
    figure.figure.savefig(data, **options)
    return data.getvalue()
