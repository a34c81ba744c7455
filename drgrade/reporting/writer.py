"""Files of a report."""

import json
import re
from pathlib import Path

from drgrade.errors import DataError
from drgrade.files import write_bytes, write_text
from drgrade.reporting.csv_writer import csv_files, render_json
from drgrade.reporting.figures.all_figures import ReportFigures, draw_figures
from drgrade.reporting.figures.canvas import pdf, png, style
from drgrade.reporting.html_report import render_page
from drgrade.reporting.latex import render_latex
from drgrade.reporting.markdown import render_markdown
from drgrade.reporting.schema import Study

PAGE, MARKDOWN, LATEX, RECORD, FIGURES = "report.html", "report.md", "tables.tex", "study.json", "figures"

_OURS = re.compile(r"(figures/)?[\w.-]+\.(png|pdf|csv)")


def write_report(study: Study, folder: Path) -> Path:
    """Write all files of a report atomically.

    Figures and tables of an earlier report in the folder that this report does not have are removed; other
    files are not touched.

    Args:
        study: Content of the report.
        folder: Target folder.

    Returns:
        Path of the HTML page.

    Raises:
        DataError: If a file cannot be written.
    """
    try:
        with style():
            figures = draw_figures(study)
            texts = {
                PAGE: render_page(study, figures),
                MARKDOWN: render_markdown(study, figures),
                LATEX: render_latex(study),
                **csv_files(study),
            }
            images = _render_figures(figures)
        earlier = _earlier_files(folder)
        for name, data in images.items():
            write_bytes(folder / name, data)
        for name, text in texts.items():
            write_text(folder / name, text)
        written = {*texts, *images, RECORD}
        write_text(folder / RECORD, render_json(study, sorted(written)))
        for name in earlier - written:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write the report to {folder}: {error.strerror or error}. Set another folder with out=DIR"
        ) from error
    return folder / PAGE


def _render_figures(figures: ReportFigures) -> dict[str, bytes]:
    """Render all figures as PNG for Markdown and PDF for LaTeX."""
    return {
        f"{FIGURES}/{picture.name}.{ending}": write(picture)
        for picture in figures.all
        for ending, write in (("png", png), ("pdf", pdf))
    }


def _earlier_files(folder: Path) -> set[str]:
    """Return the names of the figures and tables of an earlier report in a folder."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # no earlier report
        return set()
    names = record.get("files") if isinstance(record, dict) else None
    return {name for name in names or () if isinstance(name, str) and _OURS.fullmatch(name)}
