"""Bootstrap of calibration metrics on test photographs, before and after calibration.

The metrics are those of :func:`drgrade.models.calibration.calibrated_metrics`. Each is a function of sums
over photographs, so all resamples are computed at once from the sums of each group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drgrade.grades import NUM_BINS, NUM_GRADES, REFERABLE
from drgrade.models.calibration import TARGET_SENSITIVITIES
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold, draws, kappas
from drgrade.stats.curves import confidence_bins, negative_log_likelihoods
from drgrade.stats.estimates import Counts, Floats


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Metrics of a calibration in each of B resamples.

    Attributes:
        nll: (B, 2) negative log-likelihood before and after.
        ece: (B, 2) expected calibration error before and after.
        qwk: (B,) of the grades from the fitted thresholds.
        hits: (B, 2, T) true positives and true negatives for referable DR at each of T operating points; T is
            0 if none was fitted.
        totals: (B, 2) photographs with and without referable DR.
    """

    nll: Floats
    ece: Floats
    qwk: Floats
    hits: Floats
    totals: Floats


@dataclass(frozen=True, eq=False)
class CalibratedRun:
    """Calibrated predictions of a run and their metrics.

    Attributes:
        probabilities: (N, 5) calibrated probabilities of its test photographs.
        found: Metrics of all test photographs (B is 1).
        samples: Metrics of each resample.
    """

    probabilities: Floats
    found: CalibrationScores
    samples: CalibrationScores


def resample_calibrated(
    fold: TestFold, runs: Sequence[Run], resamples: int, seed: int
) -> list[CalibratedRun | None]:
    """Compute the calibration metrics of all runs of a fold.

    Args:
        fold: N test photographs.
        runs: Runs of the fold.
        resamples: B.
        seed: Random seed; the draws are those of :func:`drgrade.stats.bootstrap.resample`.

    Returns:
        One entry for each run; None if its calibration was not fitted.
    """
    return [
        _resample_run(fold, run, resamples, seed) if run.calibration.photographs else None for run in runs
    ]


def _resample_run(fold: TestFold, run: Run, resamples: int, seed: int) -> CalibratedRun:
    probabilities = run.calibration.probabilities(torch.from_numpy(run.probabilities)).numpy()
    sums = _sums_by_group(fold, run, probabilities)
    samples = [_figures(counts @ sums) for counts in draws(fold, resamples, seed)]
    return CalibratedRun(probabilities, _figures(sums.sum(axis=0, keepdims=True)), _concatenate(samples))


def _sums_by_group(fold: TestFold, run: Run, calibrated: Floats) -> Floats:
    """Sum the terms of the metrics over each group: (groups, K)."""
    truth = fold.grades
    referable = truth >= REFERABLE
    expected = calibrated @ np.arange(NUM_GRADES)
    read = (expected[:, None] >= np.asarray(run.calibration.thresholds)).sum(axis=1)
    scores = calibrated[:, REFERABLE:].sum(axis=1)
    targets = TARGET_SENSITIVITIES if run.calibration.points else ()
    cuts = np.array([run.calibration.point(target).threshold for target in targets])
    referred = scores[:, None] >= cuts  # (N, T)
    columns = [
        negative_log_likelihoods(run.probabilities, truth)[:, None],
        negative_log_likelihoods(calibrated, truth)[:, None],
        _gaps(run.probabilities, truth),
        _gaps(calibrated, truth),
        np.eye(NUM_GRADES**2)[truth * NUM_GRADES + read],
        referable[:, None],
        ~referable[:, None],
        referred & referable[:, None],
        ~referred & ~referable[:, None],
    ]
    of_photograph = np.concatenate([column.astype(np.float64) for column in columns], axis=1)
    sums = np.zeros((fold.num_groups, of_photograph.shape[1]))
    np.add.at(sums, fold.groups, of_photograph)
    return sums


def _gaps(probabilities: Floats, truth: Counts) -> Floats:
    """Return confidence minus correctness of each photograph in the column of its bin: (N, bins)."""
    bins, confidence, correct = confidence_bins(probabilities, truth)
    gaps: Floats = np.eye(NUM_BINS)[bins] * (confidence - correct)[:, None]
    return gaps


def _figures(sums: Floats) -> CalibrationScores:
    """Compute the metrics from (B, K) sums."""
    ends = np.cumsum([2, NUM_BINS, NUM_BINS, NUM_GRADES**2, 2])
    loss, before, after, cells, totals, hits = np.split(sums, ends, axis=1)
    count = totals.sum(axis=1)
    ece = np.stack([np.abs(before).sum(axis=1), np.abs(after).sum(axis=1)], axis=1) / count[:, None]
    qwk = kappas(cells.reshape(-1, NUM_GRADES, NUM_GRADES))
    return CalibrationScores(loss / count[:, None], ece, qwk, hits.reshape(len(sums), 2, -1), totals)


def _concatenate(parts: Sequence[CalibrationScores]) -> CalibrationScores:
    names = ("nll", "ece", "qwk", "hits", "totals")
    return CalibrationScores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
