"""Markdown version of a report."""

from collections.abc import Mapping

from tabulate import tabulate

from drgrade.reporting import summary_text, tables
from drgrade.reporting.figures.all_figures import ReportFigures
from drgrade.reporting.figures.canvas import ReportFigure
from drgrade.reporting.overview import overview_table
from drgrade.reporting.schema import Missing, Study
from drgrade.reporting.table import ReportTable
from drgrade.stats.formatting import escape_markdown, fraction

_MISSING_SHOWN = 50


def render_markdown(study: Study, figures: ReportFigures) -> str:
    """Render a report as Markdown; it refers to PNG files of the figures in ``figures/``."""
    overview = overview_table(study)
    parts = [
        f"# {escape_markdown(study.title)}",
        escape_markdown(summary_text.summary(study)),
        *_warnings(study),
        "## QWK",
        *([_table(overview)] if overview else []),
        *(_image(picture) for picture in figures.curves),
        _table(tables.main_table(study)),
        *_comparisons(study, figures),
        *_details(study, figures),
        *_calibration(study),
        *_budget(study),
        "## Cost",
        _table(tables.costs_table(study)),
        *([_table(tables.pretraining_table(study))] if study.pretrainings else []),
        *_provenance(study),
        "## How the numbers are computed",
        "\n".join(f"- **{name}.** {escape_markdown(text)}" for name, text in summary_text.COMPUTED.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(study: Study) -> list[str]:
    parts = []
    if study.missing:
        parts.append(f"> **{escape_markdown(summary_text.unfinished(study))}**")
        shown = "\n".join(_missing(run) for run in study.missing[:_MISSING_SHOWN])
        left = len(study.missing) - _MISSING_SHOWN
        parts.append(shown + (f"\n- and {left} more: study.json" if left > 0 else ""))
    if study.notes:
        parts.append("\n".join(f"> - {escape_markdown(note)}" for note in study.notes))
    return parts


def _missing(run: Missing) -> str:
    reason = f", {escape_markdown(run.reason)}" if run.reason else ""
    return f"- {escape_markdown(run.name)}: {escape_markdown(run.status)}{reason}"


def _comparisons(study: Study, figures: ReportFigures) -> list[str]:
    if not study.comparisons:
        return []
    table = _table(tables.comparisons_table(study))
    return ["## Comparisons", table, *(_image(picture) for picture in figures.differences)]


def _details(study: Study, figures: ReportFigures) -> list[str]:
    parts = ["## Other metrics", _table(tables.metrics_table(study)), _table(tables.recall_table(study))]
    for share, details in figures.details.items():
        parts.append(f"## With {fraction(share)} of the labels")
        parts.append("\n".join(_image(picture) for picture in details.confusions))
        shared = (*details.calibration, *details.recall, *details.roc)
        parts.append("\n".join(map(_image, shared)))
    return parts


def _calibration(study: Study) -> list[str]:
    head = ["## Calibration", *filter(None, [escape_markdown(summary_text.calibration(study))])]
    made = (tables.calibration_table, tables.thresholds_table, tables.operating_points_table)
    return [*head, *(_table(table) for table in (make(study) for make in made) if table.groups)]


def _budget(study: Study) -> list[str]:
    if not study.budgets:
        return []
    sentences = "\n".join(f"- {escape_markdown(sentence)}" for sentence in study.equality)
    return ["## Budget", *filter(None, [sentences]), _table(tables.budget_table(study))]


def _provenance(study: Study) -> list[str]:
    parts = ["## Provenance", _facts({**study.data, **study.provenance})]
    return [*parts, _table(tables.splits_table(study))] if study.splits else parts


def _facts(facts: Mapping[str, str]) -> str:
    cells = {
        escape_markdown(name): "<br>".join(map(escape_markdown, text.splitlines()))
        for name, text in facts.items()
    }
    return tabulate(cells.items(), ["", ""], tablefmt="pipe", disable_numparse=True)


def _image(picture: ReportFigure) -> str:
    return f"![{escape_markdown(picture.alt)}](figures/{picture.name}.png)"


def _table(table: ReportTable) -> str:
    """Format a table with its caption above and its remarks below."""
    grid = table.text("pipe", escape_markdown, strong="**{}**", paper="*{}*")
    below = [escape_markdown(remark) for remark in table.all_remarks]
    return "\n\n".join([f"{escape_markdown(table.caption)}.", grid, *below])
