"""What a calibration is worth on a set of graded photographs, as figures with names.

The same names on every set: the test photographs of a run, an external set, whatever a run or an ensemble is
evaluated on later.
"""

from collections.abc import Mapping

from torch import Tensor

from drgrade.metrics import confusion_matrix, expected_calibration_error, quadratic_weighted_kappa
from drgrade.metrics.calibration import brier_score, hit_rates, negative_log_likelihood
from drgrade.models.calibration import REFERABLE, Calibration, expected_grade, referable

TARGETS = (0.8, 0.9, 0.95)
"""Sensitivities, wanted on the validation photographs, whose operating points are reported."""


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
        points = calibration.points
        thresholds = {target: calibration.point(target).threshold for target in TARGETS} if points else {}
    calibrated = calibrated.detach().double().cpu()
    read = (expected_grade(calibrated)[:, None] >= calibrated.new_tensor(calibration.thresholds)).sum(dim=1)
    scores = referable(calibrated)
    referred = {target: scores >= threshold for target, threshold in thresholds.items()}
    return found | figures(calibrated, read, referred, grades.cpu())


def figures(
    calibrated: Tensor, read: Tensor, referred: Mapping[float, Tensor], grades: Tensor
) -> dict[str, float]:
    """The figures of decisions that have been made, whoever made them.

    Args:
        calibrated: (N, G) calibrated probabilities.
        read: (N,) int64 grades, read by fitted thresholds.
        referred: (N,) bool, by the sensitivity that was wanted.
        grades: (N,) int64, the truth.

    Returns:
        As :func:`calibrated_metrics`, without ``nll`` and ``brier``.
    """
    confusion = confusion_matrix(read, grades, calibrated.shape[1])
    found = {
        "nll_calibrated": negative_log_likelihood(calibrated, grades),
        "brier_calibrated": brier_score(calibrated, grades),
        "ece_calibrated": expected_calibration_error(calibrated, grades),
        "qwk_thresholds": float(quadratic_weighted_kappa(confusion)),
    }
    for target, decision in referred.items():
        sensitivity, specificity = hit_rates(decision, grades >= REFERABLE)
        found |= {f"sensitivity_at_{target:g}": sensitivity, f"specificity_at_{target:g}": specificity}
    return found
