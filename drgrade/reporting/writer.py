"""Writing a report's folder."""

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
    """Write all files of a report, each of them whole or not at all.

    Figures and tables that an earlier report left there and this one has not are removed; nothing else is
    touched.

    Args:
        study: What the report says.
        folder: Where.

    Returns:
        The page.

    Raises:
        DataError: If it cannot be written.
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
            pictures = _pictures(figures)
        earlier = _earlier(folder)
        for name, data in pictures.items():
            write_bytes(folder / name, data)
        for name, text in texts.items():
            write_text(folder / name, text)
        written = {*texts, *pictures, RECORD}
        write_text(folder / RECORD, render_json(study, sorted(written)))
        for name in earlier - written:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write the report to {folder}: {error.strerror or error}. Choose another folder with "
            "out=DIR"
        ) from error
    return folder / PAGE


def _pictures(figures: ReportFigures) -> dict[str, bytes]:
    """All figures as files: PNG for Markdown, PDF for LaTeX."""
    return {
        f"{FIGURES}/{picture.name}.{ending}": write(picture)
        for picture in figures.all
        for ending, write in (("png", png), ("pdf", pdf))
    }


def _earlier(folder: Path) -> set[str]:
    """Names of the figures and tables of an earlier report in a folder."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # no report, or a file of that name that is none
        return set()
    names = record.get("files") if isinstance(record, dict) else None
    return {name for name in names or () if isinstance(name, str) and _OURS.fullmatch(name)}
