"""HTML page of an evaluation: one file without scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from drgrade.evaluation.intervals import MetricSource, SetEstimates
from drgrade.files import write_text
from drgrade.grades import REFERABLE
from drgrade.html.templates import fill_page, stylesheet
from drgrade.reporting.figures.canvas import ReportFigure, style, svg
from drgrade.reporting.figures.details import draw_calibration, draw_confusion, draw_roc
from drgrade.reporting.figures.svg import inline
from drgrade.reporting.schema import Method, ResultRow, Study
from drgrade.stats import formatting
from drgrade.stats.bootstrap import confusions
from drgrade.stats.curves import reliability_curve, roc_curve
from drgrade.stats.estimates import Estimate, Interval

PAGE = "evaluation.html"

_PACKAGE = "drgrade.evaluation"


def write_page(
    folder: Path,
    sets: Sequence[SetEstimates],
    facts: Mapping[str, str],
    notes: Sequence[str],
    resamples: int,
    seed: int,
) -> None:
    """Write ``evaluation.html``: tables, confusion matrix, calibration curve and ROC.

    Args:
        folder: Output folder.
        sets: One set or several, the test set first.
        facts: Titles and values that describe the model and the data.
        notes: Caveats shown on the page.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    with style():
        shown = [_set_content(each) for each in sets]
    page = fill_page(
        _PACKAGE,
        css=stylesheet("drgrade.reporting", _PACKAGE),
        sets=shown,
        facts=facts,
        notes=notes,
        resamples=resamples,
        seed=seed,
    )
    write_text(folder / PAGE, page)


def _set_content(tested: SetEstimates) -> dict[str, Any]:
    rows = [
        {
            "name": name.removeprefix(f"{tested.name}/"),
            "value": formatting.decimal(estimate.value),
            "interval": formatting.interval(estimate.interval),
        }
        for name, estimate in tested.estimates.items()
    ]
    return {
        "name": tested.name,
        "photographs": len(tested.fold.grades),
        "groups": tested.fold.num_groups,
        "rows": rows,
        "figures": [_embed(figure, tested.name) for figure in _figures(tested)],
    }


def _figures(tested: SetEstimates) -> list[ReportFigure]:
    raw = _row("raw", tested, tested.raw, "ece")
    rows = [raw]
    if tested.calibrated:
        rows.append(_row("calibrated", tested, tested.calibrated, "ece_calibrated"))
    study = _study(rows)
    figures = [draw_confusion(raw, "counts"), draw_calibration(study, rows)]
    if len(raw.roc.x):
        figures.append(draw_roc(study, rows[:1]))
    texts = (
        "Confusion matrix: counts; the colour shows the share of each true grade",
        "Accuracy against confidence, before and after calibration",
        "ROC of referable DR, grade 2 and above",
    )
    for figure, alt in zip(figures, texts, strict=False):
        figure.alt = f"{alt}; the numbers are in predictions.csv"
    return figures


def _embed(figure: ReportFigure, name: str) -> Markup:
    """Return a figure for the page; its text is escaped when it is written as XML."""
    return Markup(inline(svg(figure), f"{name.replace('/', '-')}-{figure.name}", figure.tips, figure.alt))


def _row(key: str, tested: SetEstimates, source: MetricSource, ece: str) -> ResultRow:
    """Return the report row that holds the data of the figures."""
    grades = tested.fold.grades
    scores = source.probabilities[:, REFERABLE:].sum(axis=1)
    nothing = Estimate(np.nan, Interval(np.nan, np.nan))
    return ResultRow(
        method=key,
        label_fraction=1.0,
        folds={},
        seeds=(),
        minimum=np.nan,
        mean=nothing,
        maximum=np.nan,
        sd=np.nan,
        metrics={},
        confusion=confusions(source.predicted, grades),
        recall=(),
        calibration=reliability_curve(
            source.probabilities, grades, tested.estimates[f"{tested.name}/{ece}"].value
        ),
        roc=roc_curve(scores, grades >= REFERABLE),
        referable_auroc=tested.estimates[f"{tested.name}/referable_auroc"],
        labels=np.nan,
        seconds=np.nan,
        images_per_second=np.nan,
        peak_memory=None,
        complete=True,
    )


def _study(rows: Sequence[ResultRow]) -> Study:
    names = {"raw": "uncalibrated", "calibrated": "calibrated"}
    methods = [Method(row.method, names[row.method], "", "", {}, None) for row in rows]
    return Study(
        title="",
        runs=(),
        missing=(),
        data={},
        provenance={},
        splits={},
        grades=np.zeros(0, np.int64),
        methods=methods,
        rows=rows,
        comparisons=(),
        published=(),
        pretrainings=(),
    )
