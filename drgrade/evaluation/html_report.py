"""HTML page of an evaluation: one file without scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from drgrade.evaluation.intervals import GroupBootstrap, MetricSource
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

_NONE = Interval(float("nan"), float("nan"))
_PACKAGE = "drgrade.evaluation"


@dataclass(frozen=True, eq=False)
class ReportedSet:
    """Results of one set.

    Attributes:
        metrics: Content of ``metrics.json``.
        estimates: Metrics of the set with intervals, by name in ``metrics.json``.
        name: ``test`` or ``external/NAME``.
        bootstrap: Bootstrap of the intervals.
        raw: Predictions with the uncalibrated probabilities of the heads.
        calibrated: Predictions with calibrated probabilities; None without a calibration.
    """

    metrics: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    name: str
    bootstrap: GroupBootstrap
    raw: MetricSource
    calibrated: MetricSource | None


def write_page(
    folder: Path, sets: Sequence[ReportedSet], facts: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Write ``evaluation.html``: tables, confusion matrix, calibration curve and ROC.

    Args:
        folder: Output folder.
        sets: One set or several, the test set first.
        facts: Titles and values that describe the model and the data.
        notes: Caveats shown on the page.
    """
    with style():
        shown = [_set(each) for each in sets]
    page = fill_page(
        _PACKAGE,
        css=stylesheet("drgrade.reporting", _PACKAGE),
        sets=shown,
        facts=facts,
        notes=notes,
        sampling=sets[0].bootstrap,
    )
    write_text(folder / PAGE, page)


def _set(shown: ReportedSet) -> dict[str, Any]:
    prefix = f"{shown.name}/"
    rows = [
        {
            "name": name.removeprefix(prefix),
            "value": formatting.decimal(estimate.value),
            "interval": formatting.interval(estimate.interval),
        }
        for name, estimate in shown.estimates.items()
    ]
    return {
        "name": shown.name,
        "photographs": len(shown.bootstrap.fold.grades),
        "groups": shown.bootstrap.fold.num_groups,
        "rows": rows,
        "figures": [_drawn(picture, shown.name) for picture in _pictures(shown)],
    }


def _pictures(shown: ReportedSet) -> list[ReportFigure]:
    raw = _row("raw", shown, shown.raw, "ece")
    rows = [raw] + (
        [_row("calibrated", shown, shown.calibrated, "ece_calibrated")] if shown.calibrated else []
    )
    study = _study(rows)
    drawn = [draw_confusion(raw, "counts"), draw_calibration(study, rows)]
    if len(raw.roc.x):
        drawn.append(draw_roc(study, rows[:1]))
    texts = (
        "Confusion matrix: counts; the colour shows the share of each true grade",
        "Accuracy against confidence, before and after calibration",
        "ROC of referable DR, grade 2 and above",
    )
    for picture, alt in zip(drawn, texts, strict=False):
        picture.alt = f"{alt}; the numbers are in predictions.csv"
    return drawn


def _drawn(picture: ReportFigure, name: str) -> Markup:
    """Return a figure for the page; its text is escaped when it is written as XML."""
    return Markup(inline(svg(picture), f"{name.replace('/', '-')}-{picture.name}", picture.tips, picture.alt))


def _row(key: str, shown: ReportedSet, source: MetricSource, ece: str) -> ResultRow:
    """Return the report row that holds the data of the figures."""
    grades = shown.bootstrap.fold.grades
    scores = source.probabilities[:, REFERABLE:].sum(axis=1)
    nothing = Estimate(float("nan"), _NONE)
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
            source.probabilities, grades, float(shown.metrics[f"{shown.name}/{ece}"])
        ),
        roc=roc_curve(scores, grades >= REFERABLE),
        referable_auroc=shown.estimates[f"{shown.name}/referable_auroc"],
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
