"""ROC and reliability curves, and the bins of confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drgrade.grades import NUM_BINS
from drgrade.stats.estimates import Booleans, Counts, Floats


@dataclass(frozen=True)
class RocCurve:
    """True positive rate ``y`` (N,) against false positive rate ``x`` (N,); empty if undefined."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy against confidence in bins of equal width.

    Attributes:
        confidence: (bins,) mean of the largest probability; NaN in an empty bin.
        accuracy: (bins,) share of photographs whose most probable grade is correct; NaN in an empty bin.
        count: (bins,) number of photographs.
        ece: Debiased calibration error, mean over the folds.
    """

    confidence: Floats
    accuracy: Floats
    count: Counts
    ece: float


def confidence_bins(probabilities: Floats, grades: Counts) -> tuple[Counts, Floats, Booleans]:
    """Assign photographs to equal-width bins of their largest probability; a bin includes its upper edge.

    Args:
        probabilities: (N, G).
        grades: (N,) true grades.

    Returns:
        Bin, confidence and correctness of each photograph, (N,) each.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == grades
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence, side="left")
    return bins, confidence, correct


def reliability_curve(probabilities: Floats, grades: Counts, ece: float) -> ReliabilityCurve:
    """Compute mean confidence and accuracy in each bin; ``ece`` is the error reported with the curve."""
    bins, confidence, correct = confidence_bins(probabilities, grades)
    count = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0: the bin is empty
        mean_confidence = np.bincount(bins, weights=confidence, minlength=NUM_BINS) / count
        accuracy = np.bincount(bins, weights=correct, minlength=NUM_BINS) / count
    return ReliabilityCurve(mean_confidence, accuracy, count.astype(np.int64), ece)


def roc_curve(scores: Floats, positive: Booleans) -> RocCurve:
    """Compute the ROC curve from (0, 0) to (1, 1) without points on a straight line between others.

    Unlike :func:`sklearn.metrics.roc_curve`, it removes all collinear points, not only equidistant ones.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).

    Returns:
        The curve; empty if there are no positives or no negatives.

    Example:
        >>> roc_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])).y
        array([0. , 0.5, 0.5, 1. , 1. ])
    """
    if positive.all() or not positive.any():
        return RocCurve(np.zeros(0), np.zeros(0))
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # last photograph of each threshold
    true = np.r_[0, np.cumsum(positive[order])[last]]
    false = np.r_[0, np.cumsum(~positive[order])[last]]
    rise, run = np.diff(true), np.diff(false)
    bends = np.r_[True, rise[1:] * run[:-1] != rise[:-1] * run[1:], True]
    return RocCurve(false[bends] / false[-1], true[bends] / true[-1])


def average_roc(curves: Sequence[RocCurve], weights: Sequence[float]) -> RocCurve:
    """Average the true positive rates of several curves at each false positive rate.

    Vertical averaging (Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), 2006,
    section 8.1) at every corner of a curve, so the area under the average is the average of the areas. To
    pool the scores of different models instead would assume that they share one scale.

    Args:
        curves: Curves of single models; empty ones are left out.
        weights: Weight of each curve, above 0.

    Returns:
        The average; empty if all curves are.

    Example:
        >>> perfect = RocCurve(np.array([0.0, 0, 1]), np.array([0.0, 1, 1]))
        >>> useless = RocCurve(np.array([0.0, 1]), np.array([0.0, 1]))
        >>> average_roc([perfect, useless], [1, 1]).y
        array([0. , 0.5, 1. ])
    """
    defined = [(curve, weight) for curve, weight in zip(curves, weights, strict=True) if len(curve.x)]
    if not defined:
        return RocCurve(np.zeros(0), np.zeros(0))
    grid = np.unique(np.concatenate([curve.x for curve, _ in defined]))
    sides = np.stack([_limits(curve, grid) for curve, _ in defined])  # (curves, 2, N)
    mean = np.average(sides, axis=0, weights=[weight for _, weight in defined])
    x, y = np.repeat(grid, 2), mean.T.ravel()  # lower and upper end of a vertical part
    distinct = np.r_[True, (np.diff(x) != 0) | (np.diff(y) != 0)]
    return RocCurve(x[distinct], y[distinct])


def _limits(curve: RocCurve, grid: Floats) -> Floats:
    """Return the limits of a curve from the left and from the right at false positive rates: (2, N)."""
    x, y = curve.x, curve.y
    sides = []
    for side in ("left", "right"):
        after = np.clip(np.searchsorted(x, grid, side=side), 1, len(x) - 1)
        run = x[after] - x[after - 1]
        share = np.where(run > 0, (grid - x[after - 1]) / np.where(run > 0, run, 1), 0)
        sides.append(y[after - 1] + share * (y[after] - y[after - 1]))
    left, right = sides
    left[grid == x[0]], right[grid == x[-1]] = y[0], y[-1]
    return np.stack([left, right])
