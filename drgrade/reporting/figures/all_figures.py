"""Figures of a report, drawn once and used by the page, Markdown and LaTeX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drgrade.reporting.figures.canvas import ReportFigure, numbered, parts
from drgrade.reporting.figures.curve import draw_curves
from drgrade.reporting.figures.details import draw_calibration, draw_confusion, draw_recall, draw_roc
from drgrade.reporting.figures.differences import draw_differences
from drgrade.reporting.schema import ResultRow, Study


@dataclass(frozen=True)
class Details:
    """Figures of one label fraction: a confusion matrix per method; others with up to six methods."""

    confusions: Sequence[ReportFigure]
    calibration: Sequence[ReportFigure]
    recall: Sequence[ReportFigure]
    roc: Sequence[ReportFigure]

    @property
    def all(self) -> list[ReportFigure]:
        """All figures."""
        return [*self.confusions, *self.calibration, *self.recall, *self.roc]


@dataclass(frozen=True)
class ReportFigures:
    """All figures of a report; ``details`` by label fraction."""

    curves: Sequence[ReportFigure]
    differences: Sequence[ReportFigure]
    details: Mapping[float, Details]

    @property
    def all(self) -> list[ReportFigure]:
        """All figures."""
        return [
            *self.curves,
            *self.differences,
            *(picture for details in self.details.values() for picture in details.all),
        ]


def draw_figures(study: Study) -> ReportFigures:
    """Draw all figures; call it inside :func:`drgrade.reporting.figures.canvas.style`."""
    details = {share: _details(study, share) for share in study.label_fractions}
    return ReportFigures(draw_curves(study), draw_differences(study), details)


def _details(study: Study, share: float) -> Details:
    names = study.labels
    rows = [row for row in study.rows if row.label_fraction == share]
    shared = parts(rows)
    endings = [numbered("", number, len(shared)) for number in range(len(shared))]

    def each(draw: Callable[[Study, Sequence[ResultRow], str], ReportFigure]) -> list[ReportFigure]:
        return [draw(study, part, ending) for part, ending in zip(shared, endings, strict=True)]

    confusions = [draw_confusion(row, names[row.method]) for row in rows]
    return Details(confusions, each(draw_calibration), each(draw_recall), each(draw_roc))
