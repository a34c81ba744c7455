"""Calibration of a trained grader on validation photographs: temperature, thresholds, operating points.

Everything is computed from a distribution over the grades, so it is the same for every head, for an ensemble
and for an exported model. Formulae: docs/calibration.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drgrade.artefacts import is_number, parse_json
from drgrade.errors import ConfigError, DataError
from drgrade.grades import MIN_PROBABILITY, NUM_GRADES, REFERABLE
from drgrade.metrics.functional import (
    brier_score,
    confusion_matrix,
    expected_calibration_error,
    negative_log_likelihood,
    quadratic_weighted_kappa,
    sensitivity_specificity,
)
from drgrade.models.thresholds import best_thresholds
from drgrade.stats.estimates import Floats

TARGET_SENSITIVITIES = (0.8, 0.9, 0.95)
"""Sensitivities on the validation photographs whose operating points are reported."""

MIN_PHOTOGRAPHS = 10
"""Minimum number of validation photographs for a fit."""

NUM_PARTS = 5
"""Number of parts in cross-fitting."""

_MAX_LOG_TEMPERATURE = math.log(20)
_PRIOR_STD = 1.0
"""Standard deviation of the normal prior of the logarithm of the temperature."""


@dataclass(frozen=True)
class OperatingPoint:
    """A referral threshold and its performance on the validation photographs.

    Attributes:
        threshold: Refer if the calibrated P(grade >= 2) is at least this, in [0, 1].
        sensitivity: Share of the photographs with referable DR that are referred.
        specificity: Share of the others that are not referred.
    """

    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Calibration:
    """Parameters fitted on the validation photographs; the defaults change nothing.

    Attributes:
        temperature: T in softmax(log p / T); above 1 if the model was overconfident.
        thresholds: (4,) not falling: lower bounds of grades 1 to 4 of the expected grade, with the highest
            QWK on the validation photographs.
        points: Operating points for referable DR, by rising sensitivity; empty if none could be fitted.
        photographs: Number of validation photographs of the fit; 0 if nothing was fitted.
        note: Why something was not fitted; empty if everything was.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = (0.5, 1.5, 2.5, 3.5)
    points: tuple[OperatingPoint, ...] = ()
    photographs: int = 0
    note: str = "no validation photographs"

    def probabilities(self, probabilities: Tensor) -> Tensor:
        """Calibrate probabilities (B, G), rows with sum 1; their order within a row is kept."""
        return probabilities if self.temperature == 1 else apply_temperature(probabilities, self.temperature)

    def predict(self, calibrated: Tensor) -> Tensor:
        """Read grades (B,) int64 from calibrated probabilities (B, G) with the fitted thresholds."""
        expected = expected_grade(calibrated)
        return (expected[:, None] >= expected.new_tensor(self.thresholds)).sum(dim=1)

    def point(self, sensitivity: float) -> OperatingPoint:
        """Return the most specific operating point that reaches a sensitivity in (0, 1].

        Raises:
            ConfigError: If the sensitivity is out of range or there are no operating points.
        """
        if not 0 < sensitivity <= 1:
            raise ConfigError(f"sensitivity={sensitivity} is not above 0 and at most 1; 90 % is 0.9")
        if not self.points:
            raise ConfigError(
                f"sensitivity={sensitivity}: the run has no operating points ({self.note}); omit the setting"
            )
        return next(each for each in self.points if each.sensitivity >= sensitivity - 1e-12)

    def target_thresholds(self) -> dict[float, float]:
        """Return the referral thresholds of ``TARGET_SENSITIVITIES``; empty without operating points."""
        return {target: self.point(target).threshold for target in TARGET_SENSITIVITIES if self.points}

    def to_json(self) -> str:
        """Return the content of ``calibration.json``."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Parse the content of ``calibration.json``; raise a DataError if it is damaged."""
        content = parse_json(text, "the calibration", "train again")
        try:
            if not isinstance(content["note"], str):
                raise TypeError("the note is not text")
            points = tuple(OperatingPoint(**each) for each in content.pop("points"))
            parsed = cls(**{**content, "thresholds": tuple(content["thresholds"]), "points": points})
            fault = parsed._fault()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the calibration is damaged ({error})") from error
        if fault:
            raise DataError(f"the calibration is damaged: {fault}")
        return parsed

    def _fault(self) -> str:
        """Describe a value that no fit can have; empty if there is none."""
        if not is_number(self.temperature, 1e-9, 1e9):
            return "the temperature is not a finite number above 0"
        if len(self.thresholds) != NUM_GRADES - 1 or not all(map(is_number, self.thresholds)):
            return f"{NUM_GRADES - 1} thresholds are expected"
        if (
            isinstance(self.photographs, bool)
            or not isinstance(self.photographs, int)
            or self.photographs < 0
        ):
            return "the number of photographs is not a whole number of at least 0"
        if list(self.thresholds) != sorted(self.thresholds):
            return "the thresholds do not rise"
        if not all(is_number(rate, 0, 1) for point in self.points for rate in astuple(point)):
            return "an operating point is not between 0 and 1"
        if self.points and self.points[-1].sensitivity != 1:
            return "the last operating point does not have a sensitivity of 1"
        return ""


def fit_calibration(probabilities: Tensor, grades: Tensor) -> Calibration:
    """Fit temperature, thresholds and operating points on validation photographs.

    Args:
        probabilities: (N, G) from the head.
        grades: (N,) int64, the true grades.

    Returns:
        The calibration; one that changes nothing with fewer than ``MIN_PHOTOGRAPHS`` photographs or a single
        grade.
    """
    count = len(grades)
    if count < MIN_PHOTOGRAPHS or len(set(grades.tolist())) < 2:
        few = f"{count} validation photographs" + (" of one grade" if count >= MIN_PHOTOGRAPHS else "")
        return Calibration(note=f"{few} are too few to fit a calibration")
    probabilities, grades = probabilities.detach().double().cpu(), grades.cpu()
    temperature = fit_temperature(probabilities, grades)
    calibrated = apply_temperature(probabilities, temperature)
    thresholds = best_thresholds(expected_grade(calibrated).float(), grades, probabilities.shape[1])
    points = operating_points(referable_probability(calibrated), grades >= REFERABLE)
    missing = "" if points else "validation photographs with and without referable DR are needed"
    return Calibration(temperature, tuple(map(float, thresholds)), points, count, missing)


def ensemble_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Combine the calibrations of the members of an ensemble, each fitted on photographs of its own.

    Members are calibrated before their probabilities are averaged, so the temperature is 1. The thresholds
    are the means of the members'. There are no common validation photographs, hence no operating points.
    """
    if len(calibrations) == 1:
        return calibrations[0]
    means = np.mean([each.thresholds for each in calibrations], axis=0)
    return Calibration(
        thresholds=tuple(map(float, means)),
        photographs=min(each.photographs for each in calibrations),
        note="an ensemble has no validation photographs of its own; thresholds are means of its members'",
    )


def apply_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Scale distributions (B, G) by a temperature T above 0: softmax(log p / T).

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2, with log p in place of the
    logits. For a softmax head this is the same, as logits are log p plus a constant; it also applies to heads
    without a softmax.
    """
    return torch.softmax(probabilities.clamp(min=MIN_PROBABILITY).log() / temperature, dim=1)


def expected_grade(probabilities: Tensor) -> Tensor:
    """Return the mean grade (B,), in [0, G - 1], of distributions (B, G)."""
    grades = torch.arange(probabilities.shape[1], dtype=probabilities.dtype, device=probabilities.device)
    return probabilities @ grades


def referable_probability(probabilities: Tensor) -> Tensor:
    """Return the probability of referable DR (B,), P(grade >= 2), of distributions (B, G)."""
    return probabilities[:, REFERABLE:].sum(dim=1)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (B,) of distributions (B, G), divided by log G: 0 if certain, 1 if uniform."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return entropy / math.log(probabilities.shape[1])


def selective_uncertainty(probabilities: Tensor, calibration: Calibration) -> Floats:
    """Return the uncertainty (N,) by which selective prediction orders photographs.

    It is the ``uncertainty`` of ``drgrade predict``: the normalised entropy of the probabilities (N, G) from
    the head after ``calibration``, which changes nothing if it was not fitted.
    """
    calibrated = calibration.probabilities(probabilities.detach().double().cpu())
    return normalised_entropy(calibrated).numpy().astype(np.float64)


def fit_temperature(probabilities: Tensor, grades: Tensor) -> float:
    """Fit the temperature, in [1/20, 20], with a normal prior on its logarithm.

    It minimises -sum log p + (log T)^2 / 2. The prior has no influence with a hundred photographs, but keeps
    ten of them from a temperature of 0 or infinity. docs/calibration.md compares it with no prior and with
    rejecting a temperature that does not help on held-out photographs.

    Args:
        probabilities: (N, G) float64.
        grades: (N,) int64.
    """
    logits = probabilities.clamp(min=MIN_PROBABILITY).log()

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        likelihood = torch.nn.functional.cross_entropy(scaled, grades, reduction="sum")
        return float(likelihood) + (log_temperature / _PRIOR_STD) ** 2 / 2

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    optimum = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(math.exp(optimum.x))


def operating_points(scores: Tensor, positive: Tensor) -> tuple[OperatingPoint, ...]:
    """Find the corners of the ROC curve: each sensitivity at its highest specificity.

    Args:
        scores: (N,) P(grade >= 2).
        positive: (N,) bool, the truth.

    Returns:
        Points by rising sensitivity, up to 1; empty without positives or without negatives. Each threshold
        is the midpoint of the lowest referred score and the next lower one: rounding moves no photograph
        across it, and new photographs with DR may score slightly lower.
    """
    values, truth = scores.double().numpy(), positive.numpy()
    of_positive, of_negative = np.sort(values[truth])[::-1], np.sort(values[~truth])
    if not len(of_positive) or not len(of_negative):
        return ()
    # A candidate at each distinct score of a positive photograph, the highest first.
    candidates = np.unique(of_positive)[::-1]
    sensitivities = np.searchsorted(-of_positive, -candidates, side="right") / len(of_positive)
    specificities = np.searchsorted(of_negative, candidates, side="left") / len(of_negative)
    # A point is a corner unless the next one, of higher sensitivity, is as specific.
    corner = np.append(specificities[1:] < specificities[:-1], True)
    chosen, distinct = candidates[corner], np.unique(values)
    lower = np.append(0.0, distinct)[np.searchsorted(distinct, chosen)]  # the next lower score, or 0
    middle = (lower + chosen) / 2
    thresholds = np.where(middle > lower, middle, chosen)  # no float lies between neighbouring floats
    points = zip(thresholds, sensitivities[corner], specificities[corner], strict=True)
    return tuple(OperatingPoint(*map(float, point)) for point in points)


def calibrated_metrics(
    probabilities: Tensor,
    grades: Tensor,
    calibration: Calibration,
    calibrated: Tensor | None = None,
    thresholds: Mapping[float, float] | None = None,
) -> dict[str, float]:
    """Compute the metrics of a calibration on photographs that it was not fitted on.

    Args:
        probabilities: (N, G) from the head, rows with sum 1.
        grades: (N,) int64, the true grades.
        calibration: Calibration of the run or of the ensemble.
        calibrated: (N, G) of an ensemble, whose members are calibrated separately; None to calibrate
            ``probabilities``.
        thresholds: Target sensitivity: referral threshold on P(grade >= 2); None for those of the calibration
            at ``TARGET_SENSITIVITIES``.

    Returns:
        ``nll`` and ``brier`` of the uncalibrated probabilities. If a calibration was fitted, also
        ``nll_calibrated``, ``brier_calibrated`` and ``ece_calibrated``; ``qwk_thresholds``, the QWK with the
        fitted thresholds; and ``sensitivity_at_T`` and ``specificity_at_T`` for each target sensitivity T.
    """
    metrics = _uncalibrated_metrics(probabilities, grades)
    if not calibration.photographs:
        return metrics
    if calibrated is None:
        calibrated = calibration.probabilities(probabilities.detach().double().cpu())
    calibrated = calibrated.detach().double().cpu()
    cuts = calibration.target_thresholds() if thresholds is None else thresholds
    referred = _referrals(calibrated, cuts)
    return metrics | _decision_metrics(calibrated, calibration.predict(calibrated), referred, grades.cpu())


def cross_fitted_metrics(probabilities: Tensor, grades: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of a calibration by cross-fitting, on the photographs that it is fitted on.

    The photographs are divided into ``NUM_PARTS`` parts; each is evaluated with a calibration fitted on the
    others (Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B 36(2), 1974).
    Groups stay together, and the grades are spread over the parts as evenly as groups allow.

    Args:
        probabilities: (N, G) from the head.
        grades: (N,) int64, the true grades.
        groups: (N,) group of each photograph.

    Returns:
        As :func:`calibrated_metrics`; only ``nll`` and ``brier`` if a part leaves too few photographs for a
        fit, and no operating points if it leaves none with, or none without, referable DR.
    """
    metrics = _uncalibrated_metrics(probabilities, grades)
    probabilities, grades = probabilities.detach().double().cpu(), grades.cpu()
    part = _assign_parts(grades, groups)
    fitted = [fit_calibration(probabilities[part != k], grades[part != k]) for k in range(NUM_PARTS)]
    if not all(each.photographs for each in fitted):
        return metrics
    calibrated, predicted = torch.empty_like(probabilities), torch.empty_like(grades)
    targets = TARGET_SENSITIVITIES if all(each.points for each in fitted) else ()
    referred = {target: torch.zeros(len(grades), dtype=torch.bool) for target in targets}
    for k, calibration in enumerate(fitted):
        held_out = part == k
        own = calibration.probabilities(probabilities[held_out])
        calibrated[held_out], predicted[held_out] = own, calibration.predict(own)
        for target, decisions in _referrals(own, calibration.target_thresholds() if targets else {}).items():
            referred[target][held_out] = decisions
    return metrics | _decision_metrics(calibrated, predicted, referred, grades)


def _uncalibrated_metrics(probabilities: Tensor, grades: Tensor) -> dict[str, float]:
    return {
        "nll": negative_log_likelihood(probabilities, grades),
        "brier": brier_score(probabilities, grades),
    }


def _referrals(calibrated: Tensor, thresholds: Mapping[float, float]) -> dict[float, Tensor]:
    """Return target sensitivity: decisions (N,) bool."""
    scores = referable_probability(calibrated)
    return {target: scores >= threshold for target, threshold in thresholds.items()}


def _decision_metrics(
    calibrated: Tensor, predicted: Tensor, referred: Mapping[float, Tensor], grades: Tensor
) -> dict[str, float]:
    confusion = confusion_matrix(predicted, grades, calibrated.shape[1])
    metrics = {
        "nll_calibrated": negative_log_likelihood(calibrated, grades),
        "brier_calibrated": brier_score(calibrated, grades),
        "ece_calibrated": expected_calibration_error(calibrated, grades),
        "qwk_thresholds": float(quadratic_weighted_kappa(confusion)),
    }
    for target, decisions in referred.items():
        sensitivity, specificity = sensitivity_specificity(decisions, grades >= REFERABLE)
        metrics |= {f"sensitivity_at_{target:g}": sensitivity, f"specificity_at_{target:g}": specificity}
    return metrics


def _assign_parts(grades: Tensor, groups: Sequence[str]) -> Tensor:
    """Return the part (N,) of each photograph: groups are dealt out in the order of their highest grade."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    highest = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(highest, place, grades.numpy())
    parts = np.empty(len(names), dtype=np.int64)
    parts[np.argsort(highest, kind="stable")] = np.arange(len(names)) % NUM_PARTS
    return torch.from_numpy(parts[place])
