"""Every metric of one set of graded photographs in each resample of the bootstrap of groups.

The figures are those of :func:`drgrade.metrics.grading_metrics`, computed for all resamples at once; the
tests hold one against the other. :mod:`drgrade.report.bootstrap` draws.
"""

from collections.abc import Mapping

import numpy as np

from drgrade.metrics.calibration import LEAST
from drgrade.report.bootstrap import REFERABLE, TestFold, cells_by_group, draws
from drgrade.report.contents import Counts, Floats
from drgrade.report.kappa import aurocs, kappas

BINS = 15
"""Of the expected calibration error, as in :mod:`drgrade.metrics.calibration`."""

METRICS = (
    "qwk",
    "accuracy",
    "mae",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    "ece",
    "nll",
)
"""What is resampled."""


def resample_metrics(
    fold: TestFold, predicted: Counts, probabilities: Floats, resamples: int, seed: int
) -> Mapping[str, Floats]:
    """Compute the metrics of each resample.

    Args:
        fold: The photographs, N of them.
        predicted: (N,) grades.
        probabilities: (N, G), rows with sum 1.
        resamples: B.
        seed: Of the bootstrap; the same for all that is to be compared.

    Returns:
        By :data:`METRICS`: (B,) each. NaN where a resample does not define it: it has no photograph, or only
        photographs, of referable DR, or a single grade.
    """
    grades = probabilities.shape[1]
    called = cells_by_group(fold, predicted[None], grades)  # (groups, G * G)
    gaps, likelihood = _gaps_by_group(fold, probabilities), _likelihood_by_group(fold, probabilities)
    parts: list[dict[str, Floats]] = []
    for counts in draws(fold, resamples, seed):
        confusion = (counts @ called).reshape(-1, grades, grades)
        total = confusion.sum(axis=(1, 2))
        parts.append(
            {
                **_from_confusion(confusion),
                **_discrimination(fold, probabilities, counts.T[fold.groups], confusion.sum(axis=2)),
                "ece": np.abs(counts @ gaps).sum(axis=1) / total,
                "nll": counts @ likelihood / total,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _gaps_by_group(fold: TestFold, probabilities: Floats) -> Floats:
    """Sum of confidence minus rightness of each group in each bin: (groups, bins)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == fold.grades
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence, side="left")
    cells = np.bincount(
        fold.groups * BINS + place, weights=confidence - right, minlength=fold.num_groups * BINS
    )
    return cells.astype(np.float64).reshape(-1, BINS)


def _likelihood_by_group(fold: TestFold, probabilities: Floats) -> Floats:
    """Sum of -log of the probability of the true grade, of each group: (groups,)."""
    given = probabilities[np.arange(len(probabilities)), fold.grades]
    loss: Floats = -np.log(np.maximum(given, LEAST))
    return np.bincount(fold.groups, weights=loss, minlength=fold.num_groups).astype(np.float64)


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Metrics that the confusion matrices (B, G, G) hold."""
    places = np.arange(confusion.shape[-1])
    distance = np.abs(places[:, None] - places[None, :])
    total = confusion.sum(axis=(1, 2))
    referred = confusion[:, :, REFERABLE:].sum(axis=2)  # (B, G) by true grade
    true = confusion.sum(axis=2)
    return {
        "qwk": kappas(confusion),
        "accuracy": np.diagonal(confusion, axis1=1, axis2=2).sum(axis=1) / total,
        "mae": (confusion * distance).sum(axis=(1, 2)) / total,
        "referable_sensitivity": _ratio(referred[:, REFERABLE:], true[:, REFERABLE:]),
        "referable_specificity": _ratio((true - referred)[:, :REFERABLE], true[:, :REFERABLE]),
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Of the sums over the last axis; NaN where the whole is nothing."""
    total = whole.sum(axis=-1)
    return np.where(total > 0, part.sum(axis=-1) / np.maximum(total, 1), np.nan)


def _discrimination(
    fold: TestFold, probabilities: Floats, weights: Floats, true: Floats
) -> dict[str, Floats]:
    """AUROCs under the weights (N, B), with ``true`` (B, G) photographs of each grade."""
    total, occurs = true.sum(axis=1), true > 0
    single = np.stack(
        [aurocs(probabilities[:, k], fold.grades == k, weights) for k in range(probabilities.shape[1])],
        axis=1,
    )
    several = occurs.sum(axis=1) > 1
    mean = np.where(several, (single * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1), np.nan)
    positive = true[:, REFERABLE:].sum(axis=1)
    scores = probabilities[:, REFERABLE:].sum(axis=1)
    referable = aurocs(scores, fold.grades >= REFERABLE, weights)
    both = (positive > 0) & (positive < total)
    return {"auroc": mean, "referable_auroc": np.where(both, referable, np.nan)}
