"""Files of a report: HTML page, Markdown, LaTeX, CSV, JSON and figures."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from drgrade.artefacts import read_json
from drgrade.errors import DataError
from drgrade.files import write_bytes, write_text
from drgrade.html.templates import environment, fill_page, resource
from drgrade.reporting import notes
from drgrade.reporting.csv_writer import csv_files, render_json
from drgrade.reporting.figures.canvas import FEW, ReportFigure, pdf, png, style
from drgrade.reporting.figures.curve import draw_curves
from drgrade.reporting.figures.details import Details, draw_details
from drgrade.reporting.figures.differences import draw_differences
from drgrade.reporting.figures.svg import embed
from drgrade.reporting.latex import render_latex
from drgrade.reporting.schema import Study
from drgrade.reporting.tables import all_tables, splits_table
from drgrade.stats.formatting import escape_markdown, fraction, fraction_slug

PAGE, MARKDOWN, LATEX, RECORD = "report.html", "report.md", "tables.tex", "study.json"

LONG_TABLE = 45
"""Number of lines above which the page folds a table."""

_PACKAGE = "drgrade.reporting"
_KINDS = ("confusions", "calibration", "recall", "roc", "selective")
_MISSING_OPEN = 8  # longer lists of missing runs are folded
_OURS = re.compile(r"(figures/)?[\w.-]+\.(png|pdf|csv)")


@dataclass(frozen=True)
class ReportFigures:
    """All figures of a report; ``details`` by label fraction."""

    curves: Sequence[ReportFigure]
    differences: Sequence[ReportFigure]
    details: Mapping[float, Details]

    @property
    def all(self) -> list[ReportFigure]:
        """All figures."""
        details = [figure for each in self.details.values() for figure in each.all]
        return [*self.curves, *self.differences, *details]


def write_report(study: Study, folder: Path) -> Path:
    """Write all files of a report atomically.

    Figures and tables of an earlier report in the folder that this report does not have are removed; other
    files are not touched.

    Returns:
        Path of the HTML page.

    Raises:
        DataError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(study, folder)
    except OSError as error:
        raise DataError(
            f"cannot write the report to {folder}: {error.strerror or error}. Set another folder with out=DIR"
        ) from error
    return folder / PAGE


def _write(study: Study, folder: Path) -> None:
    with style():
        figures = draw_figures(study)
        texts = {
            PAGE: render_page(study, figures),
            MARKDOWN: render_markdown(study, figures),
            LATEX: render_latex(study),
            **csv_files(study),
        }
        images = {
            f"figures/{figure.name}.{suffix}": render(figure)
            for figure in figures.all
            for suffix, render in (("png", png), ("pdf", pdf))
        }
    earlier = _earlier_files(folder)
    for name, data in images.items():
        write_bytes(folder / name, data)
    for name, text in texts.items():
        write_text(folder / name, text)
    written = {*texts, *images, RECORD}
    write_text(folder / RECORD, render_json(study, sorted(written)))
    for name in earlier - written:
        (folder / name).unlink(missing_ok=True)


def _earlier_files(folder: Path) -> set[str]:
    """Return the names of the figures and tables of an earlier report in a folder."""
    try:
        record = read_json(folder / RECORD, "")
    except DataError:  # no earlier report
        return set()
    names = record.get("files") if isinstance(record, dict) else None
    listed = names if isinstance(names, list) else ()
    return {name for name in listed if isinstance(name, str) and _OURS.fullmatch(name)}


def draw_figures(study: Study) -> ReportFigures:
    """Draw all figures; call it inside :func:`drgrade.reporting.figures.canvas.style`."""
    details = {share: draw_details(study, share) for share in study.label_fractions}
    return ReportFigures(draw_curves(study), draw_differences(study), details)


def render_page(study: Study, figures: ReportFigures) -> str:
    """Render the HTML page, one file without external resources.

    Call it inside :func:`drgrade.reporting.figures.canvas.style`. The content security policy of the page
    allows only its own script, by hash.
    """
    script = resource(_PACKAGE, "templates/page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return fill_page(
        _PACKAGE,
        **_content(study),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        missing_open=len(study.missing) <= _MISSING_OPEN,
        curves=list(map(embed, figures.curves)),
        panels=len(study.methods) > FEW,
        long=LONG_TABLE,
        differences=list(map(embed, figures.differences)),
        details=[
            {
                "share": fraction(share),
                "slug": fraction_slug(share),
                **{kind: list(map(embed, getattr(details, kind))) for kind in _KINDS},
            }
            for share, details in figures.details.items()
        ],
    )


def render_markdown(study: Study, figures: ReportFigures) -> str:
    """Render the report as Markdown; it refers to PNG files of the figures in ``figures/``."""
    template = environment().overlay(finalize=_as_markdown)
    text = template.from_string(resource(_PACKAGE, "templates/report.md.j2")).render(
        **_content(study), figures=figures, fraction=fraction, escape=escape_markdown
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _content(study: Study) -> dict[str, Any]:
    tables = (*all_tables(study), splits_table(study))
    return {
        "study": study,
        "tables": {table.name: table for table in tables if table.groups},
        "summary": notes.summary(study),
        "unfinished": notes.unfinished_note(study),
        "uncalibrated": notes.uncalibrated_note(study),
        "facts": {**study.data, **study.provenance},
        "definitions": yaml.safe_load(resource(_PACKAGE, "definitions.yaml")),
    }


def _as_markdown(value: object) -> Markup:
    """Escape the value of an expression in a Markdown template, unless it is marked as safe."""
    return value if isinstance(value, Markup) else Markup(escape_markdown(str(value)))
