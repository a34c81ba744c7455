"""Figures of a report, drawn once with matplotlib and used by the page, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drgrade.report import words
from drgrade.report.contents import Study
from drgrade.report.figures.canvas import Picture, pdf, png, style, svg
from drgrade.report.figures.confusion import draw_confusion
from drgrade.report.figures.curve import draw_curve
from drgrade.report.figures.details import draw_calibration, draw_recall, draw_roc
from drgrade.report.figures.differences import draw_differences

__all__ = ["Details", "Figures", "Picture", "draw_figures", "pdf", "png", "style", "svg"]


@dataclass(frozen=True)
class Details:
    """Figures of all methods at one label fraction; ``confusions`` has one for each."""

    confusions: Sequence[Picture]
    calibration: Picture
    recall: Picture
    roc: Picture

    @property
    def all(self) -> list[Picture]:
        """All of them."""
        return [*self.confusions, self.calibration, self.recall, self.roc]


@dataclass(frozen=True)
class Figures:
    """All figures of a report; ``details`` by label fraction."""

    curve: Picture
    differences: Sequence[Picture]
    details: Mapping[float, Details]

    @property
    def all(self) -> list[Picture]:
        """All of them."""
        return [
            self.curve,
            *self.differences,
            *(picture for details in self.details.values() for picture in details.all),
        ]


def draw_figures(study: Study) -> Figures:
    """Draw all figures, inside :func:`style`.

    Args:
        study: What they show.
    """
    details = {share: _details(study, share) for share in words.fractions(study)}
    return Figures(draw_curve(study), draw_differences(study), details)


def _details(study: Study, share: float) -> Details:
    names = words.labels(study)
    rows = [row for row in study.rows if row.label_fraction == share]
    return Details(
        [draw_confusion(row, names[row.method]) for row in rows],
        draw_calibration(study, rows),
        draw_recall(study, rows),
        draw_roc(study, rows),
    )
