"""HTML page of a report: one file without external resources."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from drgrade.html.templates import fill_page, resource
from drgrade.reporting import summary_text, tables
from drgrade.reporting.figures.all_figures import ReportFigures
from drgrade.reporting.figures.canvas import FEW, ReportFigure, svg
from drgrade.reporting.figures.svg import inline
from drgrade.reporting.schema import Study
from drgrade.reporting.table import ReportTable
from drgrade.stats.formatting import fraction, fraction_slug

_PACKAGE = "drgrade.reporting"
_KINDS = ("confusions", "calibration", "recall", "roc")
_LONG = 45  # lines; longer tables are folded
_MISSING_OPEN = 8  # longer lists of missing runs are folded


def render_page(study: Study, figures: ReportFigures) -> str:
    """Render the page. Call it inside :func:`drgrade.reporting.figures.canvas.style`.

    The content security policy of the page allows only its own script, by hash.
    """
    script = resource(_PACKAGE, "templates/page.js")
    return fill_page(
        _PACKAGE,
        study=study,
        script=Markup(script),
        script_hash=_script_hash(script),
        summary=summary_text.summary(study),
        unfinished=summary_text.unfinished(study),
        missing_open=len(study.missing) <= _MISSING_OPEN,
        tables=_tables(study),
        computed=summary_text.COMPUTED,
        uncalibrated=summary_text.calibration(study),
        curves=[_embed(picture) for picture in figures.curves],
        panels=len(study.methods) > FEW,
        long=_LONG,
        differences=[_embed(picture) for picture in figures.differences],
        details=_details(figures),
        facts={**study.data, **study.provenance},
    )


def _tables(study: Study) -> Mapping[str, ReportTable]:
    made = (*tables.all_tables(study), tables.splits_table(study))
    return {table.name: table for table in made if table.groups}


def _details(figures: ReportFigures) -> list[dict[str, Any]]:
    return [
        {
            "share": fraction(share),
            "slug": fraction_slug(share),
            **{kind: list(map(_embed, getattr(details, kind))) for kind in _KINDS},
        }
        for share, details in figures.details.items()
    ]


def _embed(picture: ReportFigure) -> Markup:
    """Return a figure for the page; its text is escaped when it is written as XML."""
    return Markup(inline(svg(picture), picture.name, picture.tips, picture.alt))


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
