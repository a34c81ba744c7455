"""What the calibrations of runs are worth on their test photographs, before against after.

The figures are those of :func:`drgrade.models.calibration.calibrated_metrics`, computed for all resamples of
the bootstrap at once: each is made of sums over photographs, so the sums of a group are counted as often
as it is drawn. The tests hold one against the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drgrade.grades import MIN_PROBABILITY, NUM_BINS, NUM_GRADES, REFERABLE
from drgrade.models.calibration import TARGET_SENSITIVITIES
from drgrade.runs.reader import Run
from drgrade.stats.bootstrap import TestFold, draws, kappas
from drgrade.stats.estimates import Counts, Floats


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Figures of a calibration in each of B resamples.

    Attributes:
        nll: (B, 2) negative log-likelihood before and after.
        ece: (B, 2) expected calibration error before and after.
        qwk: (B,) of grades that are read by the fitted thresholds.
        hits: (B, 2, T) photographs with referable DR that each of T operating points refers, and photographs
            without that it does not; T is 0 where none was fitted.
        totals: (B, 2) photographs with referable DR and without.
    """

    nll: Floats
    ece: Floats
    qwk: Floats
    hits: Floats
    totals: Floats


@dataclass(frozen=True, eq=False)
class CalibratedRun:
    """A run whose calibration was fitted.

    Attributes:
        probabilities: (N, 5) calibrated, of its test photographs.
        found: On the photographs themselves (B is 1).
        samples: In each resample.
    """

    probabilities: Floats
    found: CalibrationScores
    samples: CalibrationScores


def resample_calibrated(
    fold: TestFold, runs: Sequence[Run], resamples: int, seed: int
) -> list[CalibratedRun | None]:
    """Compute the figures of the calibrations of a fold's runs.

    Args:
        fold: Its N test photographs.
        runs: Of the fold.
        resamples: B.
        seed: Of the bootstrap; the draws are those of :func:`drgrade.stats.bootstrap.resample`.

    Returns:
        One for each run; None where nothing was fitted.
    """
    fitted = [run for run in runs if run.calibration.photographs]
    if not fitted:
        return [None] * len(runs)
    after = {id(run): _calibrated(run) for run in fitted}
    sums = [_sums_by_group(fold, run, after[id(run)]) for run in fitted]
    parts: list[list[CalibrationScores]] = [[] for _ in fitted]
    for counts in draws(fold, resamples, seed):
        for own, of_run in zip(sums, parts, strict=True):
            of_run.append(_figures(counts @ own))
    made = {
        id(run): CalibratedRun(
            after[id(run)], _figures(own.sum(axis=0, keepdims=True)), _concatenated(of_run)
        )
        for run, own, of_run in zip(fitted, sums, parts, strict=True)
    }
    return [made.get(id(run)) for run in runs]


def _calibrated(run: Run) -> Floats:
    found: Floats = run.calibration.probabilities(torch.from_numpy(run.probabilities)).numpy()
    return found


def _sums_by_group(fold: TestFold, run: Run, calibrated: Floats) -> Floats:
    """What the figures are made of, summed over each group: (groups, K)."""
    truth = fold.grades
    referable = truth >= REFERABLE
    expected = calibrated @ np.arange(NUM_GRADES)
    read = (expected[:, None] >= np.asarray(run.calibration.thresholds)).sum(axis=1)
    scores = calibrated[:, REFERABLE:].sum(axis=1)
    targets = TARGET_SENSITIVITIES if run.calibration.points else ()
    cuts = np.array([run.calibration.point(target).threshold for target in targets])
    referred = scores[:, None] >= cuts  # (N, T)
    columns = [
        _loss(run.probabilities, truth)[:, None],
        _loss(calibrated, truth)[:, None],
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


def _loss(probabilities: Floats, truth: Counts) -> Floats:
    """(N,) -log of the probability that the true grade was given."""
    given = probabilities[np.arange(len(truth)), truth]
    loss: Floats = -np.log(np.maximum(given, MIN_PROBABILITY))
    return loss


def _gaps(probabilities: Floats, truth: Counts) -> Floats:
    """(N, bins): confidence less rightness of a photograph, in the bin of its confidence."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence, side="left")
    gaps: Floats = np.eye(NUM_BINS)[place] * (confidence - right)[:, None]
    return gaps


def _figures(sums: Floats) -> CalibrationScores:
    """From (B, K) sums, in the order of their columns."""
    ends = np.cumsum([2, NUM_BINS, NUM_BINS, NUM_GRADES**2, 2])
    loss, before, after, cells, totals, hits = np.split(sums, ends, axis=1)
    count = totals.sum(axis=1)
    ece = np.stack([np.abs(before).sum(axis=1), np.abs(after).sum(axis=1)], axis=1) / count[:, None]
    qwk = kappas(cells.reshape(-1, NUM_GRADES, NUM_GRADES))
    return CalibrationScores(loss / count[:, None], ece, qwk, hits.reshape(len(sums), 2, -1), totals)


def _concatenated(parts: Sequence[CalibrationScores]) -> CalibrationScores:
    def joined(name: str) -> Floats:
        return np.concatenate([getattr(part, name) for part in parts])

    return CalibrationScores(*map(joined, ("nll", "ece", "qwk", "hits", "totals")))
