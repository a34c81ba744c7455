"""An evaluation as a page: one file for those who would rather look than read, without a script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from drgrade.evaluation.intervals import Decisions, Sampling
from drgrade.files import write_text
from drgrade.grades import REFERABLE
from drgrade.html.templates import fill_page, stylesheet
from drgrade.reporting.figures.canvas import ReportFigure, style, svg
from drgrade.reporting.figures.confusion import draw_confusion
from drgrade.reporting.figures.details import draw_calibration, draw_roc
from drgrade.reporting.figures.svg import inline
from drgrade.reporting.schema import Method, ResultRow, Study
from drgrade.reporting.statistics import reliability, roc
from drgrade.stats import formatting as words
from drgrade.stats.bootstrap import confusions
from drgrade.stats.estimates import Estimate, Interval

PAGE = "evaluation.html"

_NONE = Interval(float("nan"), float("nan"))
_PACKAGE = "drgrade.evaluation"


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows of one set.

    Attributes:
        metrics: ``metrics.json``.
        estimates: Figures of the set with intervals, by name in ``metrics.json``.
        name: Of the set: ``test`` or ``external/NAME``.
        sampling: How the intervals were made.
        raw: Read grades and the probabilities as the heads give them.
        calibrated: The same with calibrated probabilities; None where nothing was fitted.
    """

    metrics: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    name: str
    sampling: Sampling
    raw: Decisions
    calibrated: Decisions | None


def write_page(folder: Path, shown: Sequence[Shown], facts: Mapping[str, str], notes: Sequence[str]) -> None:
    """Write ``evaluation.html``: tables, confusion matrix, calibration, ROC.

    Args:
        folder: Where to.
        shown: A set, or several; the test set first.
        facts: What was tested on what, by what it is called.
        notes: Sentences that a reader of the figures has to know.
    """
    with style():
        sets = [_set(each) for each in shown]
    page = fill_page(
        _PACKAGE,
        css=stylesheet("drgrade.reporting", _PACKAGE),
        sets=sets,
        facts=facts,
        notes=notes,
        sampling=shown[0].sampling,
    )
    write_text(folder / PAGE, page)


def _set(shown: Shown) -> dict[str, Any]:
    prefix = f"{shown.name}/"
    rows = [
        {
            "name": name.removeprefix(prefix),
            "value": words.decimal(estimate.value),
            "interval": words.interval(estimate.interval),
        }
        for name, estimate in shown.estimates.items()
    ]
    return {
        "name": shown.name,
        "photographs": len(shown.sampling.fold.grades),
        "groups": shown.sampling.fold.num_groups,
        "rows": rows,
        "figures": [_drawn(picture, shown.name) for picture in _pictures(shown)],
    }


def _pictures(shown: Shown) -> list[ReportFigure]:
    raw = _row("raw", shown, shown.raw, "ece")
    rows = [raw] + (
        [_row("calibrated", shown, shown.calibrated, "ece_calibrated")] if shown.calibrated else []
    )
    study = _study(rows)
    drawn = [draw_confusion(raw, "counts"), draw_calibration(study, rows)]
    if len(raw.roc.x):
        drawn.append(draw_roc(study, rows[:1]))
    texts = (
        "Confusion matrix: counts, and the share of each true grade as the depth of the colour",
        "Accuracy against confidence, before and after calibration",
        "ROC of referable DR, grade 2 and above",
    )
    for picture, alt in zip(drawn, texts, strict=False):
        picture.alt = f"{alt}; the numbers are in predictions.csv"
    return drawn


def _drawn(picture: ReportFigure, name: str) -> Markup:
    """A figure as a part of the page; what it says of itself was escaped as it was written as XML."""
    return Markup(inline(svg(picture), f"{name.replace('/', '-')}-{picture.name}", picture.tips, picture.alt))


def _row(key: str, shown: Shown, said: Decisions, ece: str) -> ResultRow:
    """The figures that pictures are drawn of, as a report has them."""
    grades = shown.sampling.fold.grades
    scores = said.probabilities[:, REFERABLE:].sum(axis=1)
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
        confusion=confusions(said.predicted, grades),
        recall=(),
        calibration=reliability(said.probabilities, grades, float(shown.metrics[f"{shown.name}/{ece}"])),
        roc=roc(scores, grades >= REFERABLE),
        referable_auroc=shown.estimates[f"{shown.name}/referable_auroc"],
        labels=np.nan,
        seconds=np.nan,
        images_per_second=np.nan,
        peak_memory=None,
        complete=True,
    )


def _study(rows: Sequence[ResultRow]) -> Study:
    names = {"raw": "as the model is", "calibrated": "calibrated"}
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
