"""What a calibration is worth on a set of graded photographs, as figures with names.

The same names on every set: the test photographs of a run, an external set, whatever a run or an ensemble is
evaluated on later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drgrade.metrics import confusion_matrix, expected_calibration_error, quadratic_weighted_kappa
from drgrade.metrics.calibration import brier_score, hit_rates, negative_log_likelihood
from drgrade.metrics.grading import REFERABLE
from drgrade.models.calibration import Calibration, fit_calibration, referable

TARGETS = (0.8, 0.9, 0.95)
"""Sensitivities, wanted on the validation photographs, whose operating points are reported."""

PARTS = 5
"""Of the photographs, of which each in its turn is left out of a fit."""


def calibrated_metrics(
    probabilities: Tensor,
    grades: Tensor,
    calibration: Calibration,
    calibrated: Tensor | None = None,
    thresholds: Mapping[float, float] | None = None,
) -> dict[str, float]:
    """Computes the figures of a calibration on photographs that it was not fitted on.

    Args:
        probabilities: (N, G) as the head gives them, rows with sum 1.
        grades: (N,) int64, the truth.
        calibration: Of the run, or of the ensemble (:func:`drgrade.models.calibration.joint`).
        calibrated: (N, G) of an ensemble, whose members are calibrated one by one; None for what the
            calibration makes of ``probabilities``.
        thresholds: P(grade >= 2) from which on a photograph is referred, by the sensitivity that was wanted;
            None for the operating points of the calibration at :data:`TARGETS`, as far as it has any.

    Returns:
        ``nll`` and ``brier`` of the probabilities as they are. If something was fitted, also
        ``nll_calibrated``, ``brier_calibrated`` and ``ece_calibrated`` of the calibrated ones;
        ``qwk_thresholds``, the QWK of grades that are read by the fitted thresholds; and for each operating
        point, named by the sensitivity that it had to reach on the validation photographs, what it reaches
        here: ``sensitivity_at_0.9``, ``specificity_at_0.9``.
    """
    found = {
        "nll": negative_log_likelihood(probabilities, grades),
        "brier": brier_score(probabilities, grades),
    }
    if not calibration.photographs:
        return found
    if calibrated is None:
        calibrated = calibration.probabilities(probabilities.detach().double().cpu())
    if thresholds is None:
        thresholds = target_thresholds(calibration)
    return found | _figures(
        _decide(calibrated.detach().double().cpu(), calibration, thresholds), grades.cpu()
    )


def cross_fitted_metrics(probabilities: Tensor, grades: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """The same figures on the photographs that a calibration is fitted on, without judging it by them.

    The photographs are divided into :data:`PARTS` parts; each is calibrated and read with what was fitted on
    the others (Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B 36(2),
    1974). Photographs of a group stay together, and the grades are spread over the parts as evenly as groups
    allow. It says what fitting on four fifths of the photographs is worth.

    Args:
        probabilities: (N, G) as the head gives them.
        grades: (N,) int64, the truth.
        groups: (N,) group of each photograph.

    Returns:
        As :func:`calibrated_metrics`; ``nll`` and ``brier`` alone where a part leaves too few photographs
        to fit on, and no operating points where it leaves none with, or none without, referable DR.
    """
    found = {
        "nll": negative_log_likelihood(probabilities, grades),
        "brier": brier_score(probabilities, grades),
    }
    probabilities, grades = probabilities.detach().double().cpu(), grades.cpu()
    part = _parts(grades, groups)
    fitted = [fit_calibration(probabilities[part != k], grades[part != k]) for k in range(PARTS)]
    if not all(each.photographs for each in fitted):
        return found
    calibrated, read = torch.empty_like(probabilities), torch.empty_like(grades)
    targets = TARGETS if all(each.points for each in fitted) else ()
    referred = {target: torch.zeros(len(grades), dtype=torch.bool) for target in targets}
    for k, calibration in enumerate(fitted):
        here = part == k
        own = calibration.probabilities(probabilities[here])
        decided = _decide(own, calibration, target_thresholds(calibration) if targets else {})
        calibrated[here], read[here] = decided.calibrated, decided.read
        for target in targets:
            referred[target][here] = decided.referred[target]
    return found | _figures(_Decided(calibrated, read, referred), grades)


@dataclass(frozen=True, eq=False)
class _Decided:
    """What a calibration says of N photographs.

    Attributes:
        calibrated: (N, G) calibrated probabilities.
        read: (N,) int64 grades, read by fitted thresholds.
        referred: (N,) bool, by the sensitivity that was wanted.
    """

    calibrated: Tensor
    read: Tensor
    referred: Mapping[float, Tensor]


def target_thresholds(calibration: Calibration) -> dict[float, float]:
    """Thresholds of the operating points at :data:`TARGETS`.

    Args:
        calibration: Of a run.

    Returns:
        P(grade >= 2) from which on a photograph is referred, by the sensitivity that was wanted; empty if
        there are no operating points.
    """
    return {target: calibration.point(target).threshold for target in TARGETS if calibration.points}


def _decide(calibrated: Tensor, calibration: Calibration, thresholds: Mapping[float, float]) -> _Decided:
    scores, read = referable(calibrated), calibration.read_calibrated(calibrated)
    return _Decided(calibrated, read, {target: scores >= cut for target, cut in thresholds.items()})


def _figures(decided: _Decided, grades: Tensor) -> dict[str, float]:
    confusion = confusion_matrix(decided.read, grades, decided.calibrated.shape[1])
    found = {
        "nll_calibrated": negative_log_likelihood(decided.calibrated, grades),
        "brier_calibrated": brier_score(decided.calibrated, grades),
        "ece_calibrated": expected_calibration_error(decided.calibrated, grades),
        "qwk_thresholds": float(quadratic_weighted_kappa(confusion)),
    }
    for target, referred in decided.referred.items():
        sensitivity, specificity = hit_rates(referred, grades >= REFERABLE)
        found |= {f"sensitivity_at_{target:g}": sensitivity, f"specificity_at_{target:g}": specificity}
    return found


def _parts(grades: Tensor, groups: Sequence[str]) -> Tensor:
    """(N,) the part of each photograph: groups are dealt out in the order of their highest grade."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    highest = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(highest, place, grades.numpy())
    dealt = np.empty(len(names), dtype=np.int64)
    dealt[np.argsort(highest, kind="stable")] = np.arange(len(names)) % PARTS
    return torch.from_numpy(dealt[place])
