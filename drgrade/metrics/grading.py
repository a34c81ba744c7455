"""Everything that is reported about one set of graded photographs."""

import torch
from torch import Tensor

from drgrade.errors import DrgradeError
from drgrade.metrics.auroc import auroc
from drgrade.metrics.calibration import expected_calibration_error
from drgrade.metrics.kappa import confusion_matrix, quadratic_weighted_kappa
from drgrade.metrics.undefined import undefined

# Moderate non-proliferative retinopathy and worse goes to an ophthalmologist.
REFERABLE = 2


def grading_metrics(probabilities: Tensor, predicted: Tensor, grades: Tensor) -> dict[str, float]:
    """Computes all metrics over a whole set at once, in float64 on the CPU.

    No value is ever NaN; where the data do not define a metric, its value is 0.5 for an AUROC and 0
    otherwise, and the log says so once.

    Args:
        probabilities: (N, G), rows with sum 1.
        predicted: (N,) int64 grades, as the head reads them (not always the most probable ones).
        grades: (N,) int64, the truth.

    Returns:
        `qwk`, `accuracy`, `macro_f1` (mean over the grades that occur in truth or predictions), `mae` in
        grades, `recall_0` ... (share of a grade's photographs that were called it), `auroc_0` ... (one grade
        against the rest), `auroc` (their mean over the grades that occur),
        `referable_auroc` (score: the probability of grade 2 or more), `referable_sensitivity` and
        `referable_specificity` (predicted grade 2 or more), `ece` (see `expected_calibration_error`).

    Raises:
        ValueError: the shapes do not fit, or a value is not a grade.
        DrgradeError: a probability is not a finite number.
    """
    probabilities, predicted, grades = (x.detach().cpu() for x in (probabilities, predicted, grades))
    if probabilities.ndim != 2 or len(probabilities) != len(grades):
        raise ValueError(f"probabilities {tuple(probabilities.shape)} do not fit {len(grades)} grades")
    if not bool(torch.isfinite(probabilities).all()):
        raise DrgradeError(
            "the model gives probabilities that are not numbers: training has diverged; try a lower learning "
            "rate or trainer.precision=32-true"
        )
    probabilities = probabilities.double()
    confusion = confusion_matrix(predicted, grades, num_grades=probabilities.shape[1])
    return {
        "qwk": float(quadratic_weighted_kappa(confusion)),
        **_from_confusion(confusion),
        **_discrimination(probabilities, grades),
        "ece": expected_calibration_error(probabilities, grades),
    }


def _from_confusion(confusion: Tensor) -> dict[str, float]:
    """The metrics that the confusion matrix (G, G) holds, apart from QWK."""
    places = torch.arange(len(confusion))
    distance = (places[:, None] - places[None, :]).abs()
    total = int(confusion.sum())
    called = confusion[:, REFERABLE:].sum(dim=1)  # (G,) predicted referable, by true grade
    true = confusion.sum(dim=1)  # (G,)
    return {
        "accuracy": _ratio("accuracy", int(confusion.trace()), total),
        "macro_f1": _macro_f1(confusion),
        "mae": _ratio("mae", int((distance * confusion).sum()), total),
        **{f"recall_{k}": _ratio(f"recall_{k}", int(confusion[k, k]), int(true[k])) for k in places.tolist()},
        "referable_sensitivity": _ratio(
            "referable_sensitivity", int(called[REFERABLE:].sum()), int(true[REFERABLE:].sum())
        ),
        "referable_specificity": _ratio(
            "referable_specificity", int((true - called)[:REFERABLE].sum()), int(true[:REFERABLE].sum())
        ),
    }


def _macro_f1(confusion: Tensor) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the grades that occur in truth or predictions."""
    hits = confusion.diagonal().tolist()
    calls = (confusion.sum(dim=0) + confusion.sum(dim=1)).tolist()  # 2 TP + FP + FN
    scores = [2 * hit / both for hit, both in zip(hits, calls, strict=True) if both]
    return sum(scores) / len(scores) if scores else undefined("macro_f1", 0.0, "there are no photographs")


def _discrimination(probabilities: Tensor, grades: Tensor) -> dict[str, float]:
    """The AUROCs of `probabilities` (N, G) for `grades` (N,)."""
    single = {
        f"auroc_{k}": auroc(probabilities[:, k], grades == k, name=f"auroc_{k}")
        for k in range(probabilities.shape[1])
    }
    present = [single[f"auroc_{k}"] for k in sorted(set(grades.tolist()))]
    mean = (
        sum(present) / len(present)
        if len(present) > 1
        else undefined("auroc", 0.5, "it needs photographs of two grades")
    )
    referable = auroc(probabilities[:, REFERABLE:].sum(dim=1), grades >= REFERABLE, name="referable_auroc")
    return {"auroc": mean, **single, "referable_auroc": referable}


def _ratio(name: str, part: int, whole: int) -> float:
    return part / whole if whole else undefined(name, 0.0, "there are no photographs that it counts")
