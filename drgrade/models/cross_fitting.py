"""Cross-fitting: the metrics of a calibration on the photographs that it is fitted on, without optimism."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drgrade.models.calibration import (
    TARGET_SENSITIVITIES,
    Calibration,
    decision_metrics,
    fit_calibration,
    referrals,
)
from drgrade.stats.bootstrap import TestFold, draws, interval, negative_log_likelihoods

NUM_PARTS = 5
"""Number of parts in cross-fitting."""

_RESAMPLES = 2000
"""Bootstrap resamples of the interval of :attr:`Calibration.nll_change`."""


@dataclass(frozen=True, eq=False)
class _CrossFit:
    """Calibrated predictions of N photographs, each by a calibration fitted on others.

    Attributes:
        calibrated: (N, G) probabilities.
        predicted: (N,) grades by the fitted thresholds.
        referred: Target sensitivity: decisions (N,) bool; empty if a part has no operating points.
    """

    calibrated: Tensor
    predicted: Tensor
    referred: Mapping[float, Tensor]


def fit_and_cross_fit(
    probabilities: Tensor, grades: Tensor, groups: Sequence[str]
) -> tuple[Calibration, dict[str, float]]:
    """Fit a calibration to validation photographs, and measure by cross-fitting what it is worth.

    For the metrics the photographs are divided into ``NUM_PARTS`` parts; each is evaluated with a calibration
    fitted on the others (Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B
    36(2), 1974). Groups stay together, and the grades are spread over the parts as evenly as groups allow.

    Args:
        probabilities: (N, G) from the head.
        grades: (N,) int64, the true grades.
        groups: (N,) group of each photograph.

    Returns:
        The calibration with its cross-fitted change of NLL, and metrics as those of
        :func:`drgrade.models.calibration.calibrated_metrics` without the referral decision, which is one of
        the whole fit. The metrics are empty if a part leaves too few photographs for a fit, and without
        operating points if it leaves none with, or none without, referable DR.
    """
    calibration = fit_calibration(probabilities, grades)
    fit = _cross_fit(probabilities, grades, groups)
    if fit is None:
        return calibration, {}
    change = _nll_change(fit.calibrated, probabilities, grades, groups)
    metrics = decision_metrics(fit.calibrated, fit.predicted, fit.referred, grades.cpu())
    return replace(calibration, nll_change=change), metrics


def _cross_fit(probabilities: Tensor, grades: Tensor, groups: Sequence[str]) -> _CrossFit | None:
    probabilities, grades = probabilities.detach().double().cpu(), grades.cpu()
    part = _assign_parts(grades, groups)
    fitted = [fit_calibration(probabilities[part != k], grades[part != k]) for k in range(NUM_PARTS)]
    if not all(each.photographs for each in fitted):
        return None
    calibrated, predicted = torch.empty_like(probabilities), torch.empty_like(grades)
    targets = TARGET_SENSITIVITIES if all(each.points for each in fitted) else ()
    referred = {target: torch.zeros(len(grades), dtype=torch.bool) for target in targets}
    for k, calibration in enumerate(fitted):
        held_out = part == k
        own = calibration.probabilities(probabilities[held_out])
        calibrated[held_out], predicted[held_out] = own, calibration.predict(own)
        for target, decisions in referrals(own, calibration.target_thresholds() if targets else {}).items():
            referred[target][held_out] = decisions
    return _CrossFit(calibrated, predicted, referred)


def _nll_change(
    calibrated: Tensor, probabilities: Tensor, grades: Tensor, groups: Sequence[str]
) -> tuple[float, float, float]:
    """Return the change of NLL and its 95 % interval from a bootstrap of groups."""
    truth = grades.cpu().numpy()
    after, before = (
        negative_log_likelihoods(each.detach().double().cpu().numpy(), truth)
        for each in (calibrated, probabilities)
    )
    fold = TestFold.with_groups("validation", np.arange(len(truth)).astype(str), np.asarray(groups), truth)
    sums, sizes = np.bincount(fold.groups, weights=after - before), np.bincount(fold.groups)
    samples = np.concatenate([counts @ sums / (counts @ sizes) for counts in draws(fold, _RESAMPLES, seed=0)])
    ends = interval(samples)
    return float(sums.sum() / len(truth)), ends.low, ends.high


def _assign_parts(grades: Tensor, groups: Sequence[str]) -> Tensor:
    """Return the part (N,) of each photograph: groups are dealt out in the order of their highest grade."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    highest = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(highest, place, grades.numpy())
    parts = np.empty(len(names), dtype=np.int64)
    parts[np.argsort(highest, kind="stable")] = np.arange(len(names)) % NUM_PARTS
    return torch.from_numpy(parts[place])
