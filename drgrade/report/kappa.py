"""QWK and AUROC of many confusion matrices or many weightings at once: what a bootstrap needs.

:mod:`drgrade.metrics` computes the same of a single set; the tests hold one against the other.
"""

import numpy as np
import numpy.typing as npt

from drgrade.report.contents import Counts, Floats

Booleans = npt.NDArray[np.bool_]


def confusions(predicted: Counts, grades: Counts, num_grades: int = 5) -> Counts:
    """Confusion matrices.

    Args:
        predicted: (..., N) grades.
        grades: (N,) the truth.
        num_grades: G.

    Returns:
        (..., G, G); rows are the truth.
    """
    cells = grades * num_grades + predicted
    counted: Counts = (cells[..., None] == np.arange(num_grades**2)).sum(axis=-2, dtype=np.int64)
    return counted.reshape(*predicted.shape[:-1], num_grades, num_grades)


def kappas(confusion: Counts | Floats) -> Floats:
    """Quadratic weighted kappa of each matrix.

    Args:
        confusion: (..., G, G) counts.

    Returns:
        (...); 0 where a single grade occurs in truth and predictions, as in
        :func:`drgrade.metrics.quadratic_weighted_kappa`.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    places = np.arange(counts.shape[-1])
    weights = np.square(places[:, None] - places[None, :])
    truth, calls = counts.sum(axis=-1), counts.sum(axis=-2)
    observed = (weights * counts).sum(axis=(-2, -1)) * truth.sum(axis=-1)
    expected = ((truth @ weights) * calls).sum(axis=-1)
    agreement: Floats = 1 - observed / np.where(expected == 0, 1, expected)
    return np.where(expected == 0, 0.0, agreement)


def aurocs(scores: Floats, positive: Booleans, weights: Floats) -> Floats:
    """Area under the ROC curve under each weighting: a tie counts half.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).
        weights: (B, N) whole numbers: how often each photograph occurs.

    Returns:
        (B,); 0.5 where positives or negatives are missing, as in :func:`drgrade.metrics.auroc`.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # where the next higher score begins
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)  # (B, levels)
    negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = negatives.cumsum(axis=1) - negatives
    doubled = (positives * (2 * below + negatives)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.where(pairs == 0, 0.5, doubled / np.where(pairs == 0, 1, 2 * pairs))
