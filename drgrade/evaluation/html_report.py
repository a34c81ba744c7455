"""HTML page of an evaluation: one file without scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drgrade.data.photographs import Photographs
from drgrade.evaluation.intervals import MetricSource, SetEstimates, SetPredictions
from drgrade.files import write_text
from drgrade.grades import REFERABLE
from drgrade.html.templates import fill_page, stylesheet
from drgrade.reporting.figures.canvas import ReportFigure, style
from drgrade.reporting.figures.details import draw_calibration, draw_confusion, draw_roc, draw_selective
from drgrade.reporting.figures.svg import embed
from drgrade.reporting.schema import MethodCurves, Selective
from drgrade.reporting.selective import SELECTIVE
from drgrade.stats import formatting
from drgrade.stats.bootstrap import confusions, referable_scores
from drgrade.stats.curves import reliability_curve, roc_curve

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


def collect_notes(
    photographs: Photographs, sets: Mapping[str, SetPredictions], metrics: Mapping[str, Any], warning: str
) -> list[str]:
    """Return the caveats that the page shows, most important first.

    Args:
        photographs: Photographs with the split that marks the tested ones.
        sets: Predictions by the name of the set.
        metrics: Content of ``metrics.json``.
        warning: Warning that applies to all results of the models on real photographs; empty for none.
    """
    tested = [
        source for source, role in photographs.roles if role == "external" or source is photographs.source
    ]
    real = [source for source in tested if not (source.about and source.about.drawn)]
    notes = [warning] if warning and real else []
    notes += filter(None, (_one_grade(name, each) for name, each in sets.items()))
    if metrics.get("overlap", 0) and not metrics["overlap_dropped"]:
        notes.append(
            f"A run was trained or validated on {metrics['overlap']} of {metrics['photographs']} "
            "photographs: these metrics do not apply to new photographs (force=true)."
        )
    if "overlap" in metrics and metrics["overlap"] is None:
        notes.append("It is unknown if a run was trained on these photographs (force=true).")
    if metrics.get("pretraining_saw_test"):
        notes.append("Pre-training used tested photographs, without their grades.")
    about = photographs.source.about
    if about is not None and about.drawn:
        notes.append("These photographs are synthetic: the results do not apply to patients.")
    return notes


def _one_grade(name: str, tested: SetPredictions) -> str:
    """Return a caveat if all photographs of a set got the same grade, else an empty text."""
    predicted = sorted({*tested.predictions.predicted.tolist()})
    count = len(tested.predictions.predicted)
    if len(predicted) > 1 or count < 2:
        return ""
    return (
        f"{name}: every one of the {count} photographs was graded {predicted[0]}. The model does not "
        "distinguish grades here, and QWK and accuracy are those of a constant."
    )


def _set_content(tested: SetEstimates) -> dict[str, Any]:
    rows = [
        {
            "name": name.removeprefix(f"{tested.name}/"),
            "value": formatting.decimal(estimate.value),
            "interval": formatting.interval(estimate.interval),
        }
        for name, estimate in tested.estimates.items()
    ]
    prefix = f"{tested.name.replace('/', '-')}-"
    return {
        "name": tested.name,
        "photographs": len(tested.fold.grades),
        "groups": tested.fold.num_groups,
        "referral": tested.rule.describe(),
        "rows": rows,
        "figures": [embed(figure, prefix) for figure in _figures(tested)],
    }


def _figures(tested: SetEstimates) -> list[ReportFigure]:
    raw = _curves("raw", tested, tested.raw, "ece")
    curves = [raw]
    if tested.calibrated:
        curves.append(_curves("calibrated", tested, tested.calibrated, "ece_calibrated"))
    names = {"raw": "uncalibrated", "calibrated": "calibrated"}
    names = {each.method: names[each.method] for each in curves}
    figures = [draw_confusion(raw, "counts"), draw_calibration(names, curves)]
    if len(raw.roc.x):
        figures.append(draw_roc({"raw": "referral score"}, [raw]))
    figures.append(draw_selective({"raw": "test photographs"}, [raw]))
    texts = {
        "confusion": "Confusion matrix: counts; the colour shows the share of each true grade",
        "calibration": "Accuracy against confidence, before and after calibration",
        "roc": "ROC of referable DR, grade 2 and above",
        "risk": "Risk (share of wrong grades) and QWK against coverage, the most certain photographs first",
    }
    for figure in figures:
        alt = texts[figure.name.split("-")[0]]
        figure.alt = f"{alt}; the numbers are in predictions.csv"
    return figures


def _curves(key: str, tested: SetEstimates, source: MetricSource, ece: str) -> MethodCurves:
    grades = tested.fold.grades
    scores = referable_scores((tested.calibrated or source).probabilities)
    return MethodCurves(
        method=key,
        label_fraction=1.0,
        confusion=confusions(source.predicted, grades),
        calibration=reliability_curve(
            source.probabilities, grades, tested.estimates[f"{tested.name}/{ece}"].value
        ),
        roc=roc_curve(scores, grades >= REFERABLE),
        referable_auroc=tested.estimates[f"{tested.name}/referable_auroc"],
        selective=Selective(
            {name: tested.estimates[f"{tested.name}/{name}"] for name in SELECTIVE}, tested.selective
        ),
    )
