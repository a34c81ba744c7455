"""Figures of a tested run with 95 % intervals: the bootstrap of a report and of an evaluation."""

from collections.abc import Mapping

import numpy as np

from drgrade.grades import NUM_GRADES
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import Resampled, interval_if_spread, resample, resample_metrics
from drgrade.stats.estimates import Estimate, Floats

RESAMPLES = 2000
"""Of a card. A report takes 10,000; the ends of an interval then differ by a few thousandths."""

TITLES: Mapping[str, str] = {
    "qwk": "quadratic weighted kappa (QWK)",
    "accuracy": "accuracy",
    "mae": "mean absolute error, in grades",
    "auroc": "AUROC, mean over the grades (one against the rest)",
    "referable_auroc": "AUROC of referable DR",
    "referable_sensitivity": "sensitivity to referable DR",
    "referable_specificity": "specificity for referable DR",
    "ece": "expected calibration error, before calibration",
}
"""What a card calls the metrics that it gives an interval for, by their names in ``metrics.json``."""


def estimates(run: Run, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Metrics on the test photographs with 95 % intervals.

    Groups are drawn with replacement, as in :mod:`drgrade.stats.bootstrap`: the interval says how far a
    figure may move with other test photographs, not with another training.

    Args:
        run: With its predictions.
        resamples: B.
        seed: Of the bootstrap.

    Returns:
        By name: those of :data:`TITLES`, and ``recall_0`` to ``recall_4``, as ``metrics.json`` has them. The
        interval is NaN where no resample defines the figure, and where all agree: no resample of misses has
        a hit, but other photographs may.
    """
    fold = run.test_fold()
    samples = dict(resample_metrics(fold, run.predicted, run.probabilities, resamples, seed))
    samples |= _recalls(resample(fold, run.predicted[None], run.probabilities[None], resamples, seed))
    names = [*TITLES, *(f"recall_{grade}" for grade in range(NUM_GRADES))]
    return {
        name: Estimate(float(run.record[f"test/{name}"]), interval_if_spread(samples[name])) for name in names
    }


def _recalls(resampled: Resampled) -> dict[str, Floats]:
    """(B,) of each grade; NaN where a resample has no photograph of it."""
    hits, totals = resampled.hits[0], resampled.totals
    shares = np.where(totals == 0, np.nan, hits / np.maximum(totals, 1))
    return {f"recall_{grade}": shares[:, grade] for grade in range(NUM_GRADES)}
