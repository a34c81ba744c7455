"""Calibration of a trained grader on validation photographs: probabilities, thresholds, referral.

Everything is computed from a distribution over the grades, so it is the same for every head, for an ensemble
and for an exported model. Formulae: docs/calibration.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
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
    referable_probability,
    sensitivity_specificity,
)
from drgrade.models.heads import differences
from drgrade.models.thresholds import (
    DEFAULT_SENSITIVITY,
    DEFAULT_THRESHOLD,
    OperatingPoint,
    ReferralRule,
    best_thresholds,
    operating_points,
)
from drgrade.stats import formatting
from drgrade.stats.estimates import Floats, Interval

TARGET_SENSITIVITIES = (0.8, 0.9, 0.95)
"""Sensitivities on the validation photographs whose operating points are reported."""

MIN_PHOTOGRAPHS = 10
"""Minimum number of validation photographs for a fit."""

FEW_PHOTOGRAPHS = 100
"""Number of validation photographs below which a fit is reported with a warning."""

FORMER_NOTE = (
    "its calibration has the form of an earlier version of drgrade, which changed the order of the "
    "photographs, so it is not used: train or publish again"
)
"""Note of a calibration in the former form (temperature of the logarithms of the probabilities)."""

_FORMER_FIELDS = {"temperature", "thresholds", "points", "photographs", "note"}

_SHRINK = 1e-4
"""P(grade >= k) is moved into [1e-4, 1 - 1e-4] before its logit is taken, which is infinite at 0 and 1."""

_TEMPERATURES = (0.5, 20.0)
"""Range of the temperature. Below 0.5 different probabilities near 0 or 1 could round to the same number."""

_MAX_WEIGHT = 0.95
_PRIOR_STD = 1.0
"""Standard deviation of the normal prior of the logarithm of the temperature."""
_PRIOR_BETA = (2.0, 10.0)
"""Parameters of the beta prior of the weight of the grade frequencies."""


@dataclass(frozen=True)
class Calibration:
    """Parameters fitted on the validation photographs; the defaults change nothing.

    Attributes:
        temperature: T that divides the logit of P(grade >= k), in [0.5, 20]; above 1 if the model was
            overconfident.
        weight: Weight w of ``frequencies`` in the calibrated distribution, in [0, 0.95].
        frequencies: (5,) smoothed grade frequencies of the validation photographs.
        thresholds: (4,) not falling: lower bounds of grades 1 to 4 of the expected grade, with the highest
            QWK on the validation photographs.
        points: Operating points for referable DR, by rising sensitivity; empty if none could be fitted.
        photographs: Number of validation photographs of the fit; 0 if nothing was fitted.
        nll_change: Change of NLL by the calibration in cross-fitting on the validation photographs, and the
            ends of its 95 % interval from a bootstrap of groups; None if there was no cross-fit.
        note: Why something was not fitted; empty if everything was.
    """

    temperature: float = 1.0
    weight: float = 0.0
    frequencies: tuple[float, ...] = (1 / NUM_GRADES,) * NUM_GRADES
    thresholds: tuple[float, ...] = (0.5, 1.5, 2.5, 3.5)
    points: tuple[OperatingPoint, ...] = ()
    photographs: int = 0
    nll_change: tuple[float, float, float] | None = None
    note: str = "no validation photographs"

    def probabilities(self, probabilities: Tensor) -> Tensor:
        """Calibrate probabilities (B, G), rows with sum 1; see :func:`calibrate_probabilities`."""
        if self.temperature == 1 and self.weight == 0:
            return probabilities
        return calibrate_probabilities(probabilities, self.temperature, self.weight, self.frequencies)

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

    def worth(self) -> str:
        """Say in one clause what the fit is worth: its size, and the cross-fitted change of NLL.

        Example:
            >>> Calibration(photographs=16, nll_change=(-0.12, -0.31, 0.06)).worth()
            'fitted on 16 validation photographs, which are few (below 100); cross-fitted on them it changes \
NLL by −0.120 (95 % −0.310 to 0.060), so it is not shown to help'
        """
        if not self.photographs:
            return f"not calibrated: {self.note}"
        few = f", which are few (below {FEW_PHOTOGRAPHS})" if self.photographs < FEW_PHOTOGRAPHS else ""
        fitted = f"fitted on {self.photographs} validation photographs{few}"
        if self.nll_change is None:
            return f"{fitted}; its effect on other photographs was not measured"
        change, low, high = self.nll_change
        verdict = (
            "so it helps there"
            if high < 0
            else "so it harms there"
            if low > 0
            else "so it is not shown to help"
        )
        ends = formatting.interval(Interval(low, high))
        found = f"it changes NLL by {formatting.signed(change)} (95 % {ends}), {verdict}"
        return f"{fitted}; cross-fitted on them {found}"

    def to_json(self) -> str:
        """Return the content of ``calibration.json``."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Parse the content of ``calibration.json``.

        The identity with :data:`FORMER_NOTE` is returned for the form of earlier versions.

        Raises:
            DataError: If the content is damaged.
        """
        content = parse_json(text, "the calibration", "train again")
        try:
            if not isinstance(content["note"], str):
                raise TypeError("the note is not text")
            if content.keys() == _FORMER_FIELDS:
                return cls(note=FORMER_NOTE)
            content["points"] = [OperatingPoint(**each) for each in content["points"]]
            for name in ("points", "frequencies", "thresholds", "nll_change"):
                if content[name] is not None:
                    content[name] = tuple(content[name])
            parsed = cls(**content)
            fault = parsed._fault()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the calibration is damaged ({error})") from error
        if fault:
            raise DataError(f"the calibration is damaged: {fault}")
        return parsed

    def _fault(self) -> str:
        """Describe a value that no fit can have; empty if there is none."""
        if not is_number(self.temperature, *_TEMPERATURES):
            return f"the temperature is not a number in {list(_TEMPERATURES)}"
        if not is_number(self.weight, 0, _MAX_WEIGHT):
            return f"the weight is not a number in [0, {_MAX_WEIGHT}]"
        shares = self.frequencies
        if (
            len(shares) != NUM_GRADES
            or not all(is_number(each, 0, 1) for each in shares)
            or abs(sum(shares) - 1) > 1e-6
        ):
            return f"{NUM_GRADES} frequencies with sum 1 are expected"
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
        if self.points and not self.photographs:
            return "it has operating points, but was fitted on no photographs"
        if self.points and self.points[-1].sensitivity != 1:
            return "the last operating point does not have a sensitivity of 1"
        if self.nll_change is not None and not (
            len(self.nll_change) == 3 and all(map(is_number, self.nll_change))
        ):
            return "the change of NLL is not three numbers"
        return ""


def referral_rule(calibrations: Sequence[Calibration], sensitivity: float | None = None) -> ReferralRule:
    """Return the referral decision of a run, or of an ensemble of runs.

    Args:
        calibrations: Calibration of the run, or of each member. The threshold of an ensemble is the mean over
            the members, which have different validation photographs.
        sensitivity: Required sensitivity on the validation photographs, in (0, 1]; None for
            :data:`~drgrade.models.thresholds.DEFAULT_SENSITIVITY` if every member has operating points, else
            for :data:`~drgrade.models.thresholds.DEFAULT_THRESHOLD`.

    Raises:
        ConfigError: If a requested sensitivity is out of range, or a member has no operating points.
    """
    missing = [each.note for each in calibrations if not each.points]
    if sensitivity is None and missing:
        return ReferralRule(DEFAULT_THRESHOLD, reason=missing[0])
    target = DEFAULT_SENSITIVITY if sensitivity is None else sensitivity
    points = [each.point(target) for each in calibrations]
    threshold = float(np.mean([each.threshold for each in points]))
    return ReferralRule(threshold, target, points, [each.photographs for each in calibrations])


def fit_calibration(probabilities: Tensor, grades: Tensor) -> Calibration:
    """Fit probabilities, thresholds and operating points on validation photographs.

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
    fitted = fit_probabilities(probabilities, grades)
    calibrated = fitted.probabilities(probabilities)
    thresholds = best_thresholds(expected_grade(calibrated).float(), grades, probabilities.shape[1])
    points = operating_points(referable_probability(calibrated), grades >= REFERABLE)
    return replace(
        fitted,
        thresholds=tuple(map(float, thresholds)),
        points=points,
        photographs=count,
        note="" if points else "validation photographs with and without referable DR are needed",
    )


def ensemble_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Combine the calibrations of the members of an ensemble, each fitted on photographs of its own.

    Members are calibrated before their probabilities are averaged, so the combination changes none. The
    thresholds are the means of the members'. There are no common validation photographs, hence no operating
    points.
    """
    if len(calibrations) == 1:
        return calibrations[0]
    means = np.mean([each.thresholds for each in calibrations], axis=0)
    return Calibration(
        thresholds=tuple(map(float, means)),
        photographs=min(each.photographs for each in calibrations),
        note="an ensemble has no validation photographs of its own; thresholds are means of its members'",
    )


def calibrate_probabilities(
    probabilities: Tensor, temperature: float, weight: float, frequencies: Sequence[float]
) -> Tensor:
    """Calibrate distributions (B, G): scale the logit of P(grade >= k), then mix with grade frequencies.

    With the logit u of P(grade >= k), moved into [1e-4, 1 - 1e-4], the calibrated P(grade >= k) is
    (1 - w) sigmoid(u / T) + w F(grade >= k): one strictly rising function of P(grade >= k) for each k. So the
    order of photographs by P(grade >= k), and every ROC curve, is kept. For the cumulative head u is its own
    logit (the lowest so far). The mixture keeps the probability of a grade above 0 where the head outputs
    exactly 0: Zhang, Kailkhura and Han, "Mix-n-Match: ensemble and compositional methods for uncertainty
    calibration in deep learning", ICML 2020, with grade frequencies in place of the uniform distribution.

    Args:
        probabilities: (B, G), rows with sum 1.
        temperature: T, above 0.
        weight: w, in [0, 1).
        frequencies: (G,) F, with sum 1.

    Example:
        >>> calibrate_probabilities(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]), 2.0, 0.5, [0.2] * 5)
        tensor([[0.1049, 0.1000, 0.1000, 0.1000, 0.5951]])
    """
    at_least = probabilities.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # (B, G - 1): P(grade >= k)
    # A function of P(grade >= k) alone, so that photographs with equal ones stay equal.
    shrunk = _SHRINK + (1 - 2 * _SHRINK) * at_least
    odds = torch.log(shrunk) - torch.log(1 - shrunk)
    scaled = differences(torch.sigmoid(odds / temperature)).clamp(min=0)
    return (1 - weight) * scaled + weight * scaled.new_tensor(frequencies)


def expected_grade(probabilities: Tensor) -> Tensor:
    """Return the mean grade (B,), in [0, G - 1], of distributions (B, G)."""
    grades = torch.arange(probabilities.shape[1], dtype=probabilities.dtype, device=probabilities.device)
    return probabilities @ grades


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


def fit_probabilities(probabilities: Tensor, grades: Tensor) -> Calibration:
    """Fit temperature and weight of :func:`calibrate_probabilities` by their posterior mode.

    They minimise the sum of -log q(true grade), plus (log T)^2 / 2 of a normal prior on log T, minus the
    logarithm of a beta(2, 10) density of the weight. The priors count as much as about a dozen photographs:
    they keep ten photographs from an extreme fit and have little influence with some hundreds. The
    frequencies are (n_k + 1) / (N + G). docs/calibration.md compares the fit with others.

    Args:
        probabilities: (N, G) float64.
        grades: (N,) int64.

    Returns:
        A calibration of the probabilities alone.
    """
    counts = torch.bincount(grades, minlength=probabilities.shape[1]) + 1.0
    frequencies = tuple((counts.double() / counts.sum()).tolist())

    def loss(x: Floats) -> float:
        temperature, weight = float(np.exp(x[0])), _MAX_WEIGHT * float(x[1])
        calibrated = calibrate_probabilities(probabilities, temperature, weight, frequencies)
        of_truth = calibrated.gather(1, grades[:, None]).clamp(min=MIN_PROBABILITY)
        prior = (x[0] / _PRIOR_STD) ** 2 / 2
        prior -= (_PRIOR_BETA[0] - 1) * np.log(x[1]) + (_PRIOR_BETA[1] - 1) * np.log(1 - x[1])
        return float(-of_truth.log().sum() + prior)

    low, high = np.log(_TEMPERATURES)
    # A weak model can be flattened by either parameter, so the loss may have two minima.
    fits = [
        minimize(loss, start, method="L-BFGS-B", bounds=[(low, high), (1e-6, 1 - 1e-6)])
        for start in ((0.0, 0.1), (1.0, 0.7))
    ]
    best = min(fits, key=lambda fit: float(fit.fun))
    temperature = float(np.clip(np.exp(best.x[0]), *_TEMPERATURES))
    return Calibration(temperature, _MAX_WEIGHT * float(best.x[1]), frequencies)


def calibrated_metrics(
    probabilities: Tensor,
    grades: Tensor,
    calibration: Calibration,
    calibrated: Tensor | None = None,
    thresholds: Mapping[float, float] | None = None,
    rule: ReferralRule | None = None,
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
        rule: The referral decision; None for that of the calibration.

    Returns:
        ``referral_threshold``, ``referral_sensitivity`` and ``referral_specificity`` of the referral
        decision. If a calibration was fitted, also ``nll_calibrated``, ``brier_calibrated`` and
        ``ece_calibrated``; ``qwk_thresholds``, the QWK with the fitted thresholds; and ``sensitivity_at_T``
        and ``specificity_at_T`` for each target sensitivity T.
    """
    if calibrated is None:
        calibrated = calibration.probabilities(probabilities.detach().double().cpu())
    calibrated, grades = calibrated.detach().double().cpu(), grades.cpu()
    rule = referral_rule([calibration]) if rule is None else rule
    referred = rule.refers(referable_probability(calibrated))
    sensitivity, specificity = sensitivity_specificity(referred, grades >= REFERABLE)
    metrics = {
        "referral_threshold": rule.threshold,
        "referral_sensitivity": sensitivity,
        "referral_specificity": specificity,
    }
    if not calibration.photographs:
        return metrics
    cuts = calibration.target_thresholds() if thresholds is None else thresholds
    decisions = referrals(calibrated, cuts)
    return metrics | decision_metrics(calibrated, calibration.predict(calibrated), decisions, grades)


def referrals(calibrated: Tensor, thresholds: Mapping[float, float]) -> dict[float, Tensor]:
    """Return target sensitivity: decisions (N,) bool."""
    scores = referable_probability(calibrated)
    return {target: scores >= threshold for target, threshold in thresholds.items()}


def decision_metrics(
    calibrated: Tensor, predicted: Tensor, referred: Mapping[float, Tensor], grades: Tensor
) -> dict[str, float]:
    """Compute the metrics of calibrated probabilities (N, G), fitted grades (N,) and referrals (N,)."""
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
