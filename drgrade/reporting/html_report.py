"""The page: one file that needs nothing else, for a screen, a phone and paper."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from drgrade.html.templates import fill_page, resource
from drgrade.reporting import summary_text as prose
from drgrade.reporting import tables
from drgrade.reporting.figures.all_figures import ReportFigures
from drgrade.reporting.figures.canvas import FEW, ReportFigure, svg
from drgrade.reporting.figures.svg import inline
from drgrade.reporting.schema import Study
from drgrade.reporting.table import ReportTable
from drgrade.stats import formatting as words

_PACKAGE = "drgrade.reporting"
_LONG = 45  # lines of a table that are shown without a click, if there is another table that says the most
_MISSING_OPEN = 8  # so many unfinished runs are listed without a click


def render_page(study: Study, figures: ReportFigures) -> str:
    """Make the page, inside :func:`drgrade.reporting.figures.canvas.style`.

    Args:
        study: What it says.
        figures: Drawn of it.

    Returns:
        HTML. It loads nothing; its one script is named by its hash, so that no other can run.
    """
    script = resource(_PACKAGE, "templates/page.js")
    return fill_page(
        _PACKAGE,
        study=study,
        script=Markup(script),
        script_hash=_hash(script),
        summary=prose.summary(study),
        unfinished=prose.unfinished(study),
        missing_open=len(study.missing) <= _MISSING_OPEN,
        tables=_tables(study),
        computed=prose.COMPUTED,
        uncalibrated=prose.calibration(study),
        curves=[_drawn(picture) for picture in figures.curves],
        panels=len(study.methods) > FEW,
        long=_LONG,
        differences=[_drawn(picture) for picture in figures.differences],
        details=_details(figures),
        facts={**study.data, **study.provenance},
    )


def _tables(study: Study) -> Mapping[str, ReportTable]:
    made = (*tables.all_tables(study), tables.splits_table(study))
    return {table.name: table for table in made if table.groups}


def _details(figures: ReportFigures) -> list[dict[str, Any]]:
    return [
        {
            "share": words.fraction(share),
            "slug": words.fraction_slug(share),
            "confusions": [_drawn(picture) for picture in details.confusions],
            "calibration": [_drawn(picture) for picture in details.calibration],
            "recall": [_drawn(picture) for picture in details.recall],
            "roc": [_drawn(picture) for picture in details.roc],
        }
        for share, details in figures.details.items()
    ]


def _drawn(picture: ReportFigure) -> Markup:
    """A figure as a part of the page; what it says of itself was escaped as it was written as XML."""
    return Markup(inline(svg(picture), picture.name, picture.tips, picture.alt))


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
