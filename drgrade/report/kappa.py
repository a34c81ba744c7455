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
        weights: (N, B) whole numbers: how often each photograph occurs. In this order because whole rows are
            gathered, which is much faster than columns.

    Returns:
        (B,); 0.5 where positives or negatives are missing, as in :func:`drgrade.metrics.auroc`.
    """
    yes, no = np.flatnonzero(positive), np.flatnonzero(~positive)
    no = no[np.argsort(scores[no], kind="stable")]
    up_to = np.zeros((len(no) + 1, weights.shape[1]))  # negatives among the lowest k
    np.cumsum(weights[no], axis=0, out=up_to[1:])
    below, not_above = (np.searchsorted(scores[no], scores[yes], side=side) for side in ("left", "right"))
    weight = weights[yes]
    doubled = np.einsum("nb,nb->b", weight, up_to[below]) + np.einsum("nb,nb->b", weight, up_to[not_above])
    pairs = weight.sum(axis=0) * up_to[-1]
    return np.where(pairs == 0, 0.5, doubled / np.where(pairs == 0, 1, 2 * pairs))
