"""Calibration of a trained grader on validation photographs: a temperature, thresholds, operating points.

All of it works on a distribution over the grades, so that it is the same for every head, for an ensemble and
for an exported model. Formulae: docs/calibration.md.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drgrade.errors import ConfigError, DataError
from drgrade.metrics.calibration import LEAST
from drgrade.metrics.grading import REFERABLE
from drgrade.models.heads import NUM_GRADES
from drgrade.models.heads.thresholds import best_thresholds

FEWEST = 10
"""Of fewer validation photographs nothing is fitted."""

_MOST = math.log(20)
"""Bound of the logarithm of the temperature, either way."""

_SPREAD = 1.0
"""Standard deviation of the logarithm of the temperature before any photograph has been seen."""


@dataclass(frozen=True)
class OperatingPoint:
    """Refer a photograph from a probability of referable DR on; what that does on the validation photographs.

    Attributes:
        threshold: Refer where the calibrated P(grade >= 2) is at least this, in [0, 1].
        sensitivity: Share of the photographs with referable DR that are referred.
        specificity: Share of the others that are not.
    """

    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Calibration:
    """What was fitted on the validation photographs; as it is without arguments, it changes nothing.

    Attributes:
        temperature: T in softmax(log p / T); above 1 the model was too sure of itself.
        thresholds: (4,) not falling: where grade 1, 2, 3 and 4 begin on the line of the expected grade; those
            with the highest QWK on the validation photographs.
        points: Operating points for referable DR, the sensitivity rising; empty where none could be fitted.
        photographs: Validation photographs that it was fitted on; 0: none, and nothing is calibrated.
        note: Why something was not fitted; empty if all was.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = (0.5, 1.5, 2.5, 3.5)
    points: tuple[OperatingPoint, ...] = ()
    photographs: int = 0
    note: str = "no validation photographs"

    def probabilities(self, probabilities: Tensor) -> Tensor:
        """Calibrated probabilities.

        Args:
            probabilities: (B, G) as the head gives them, rows with sum 1.

        Returns:
            (B, G) in the same type, rows with sum 1; the order of the grades' probabilities stays.
        """
        return probabilities if self.temperature == 1 else tempered(probabilities, self.temperature)

    def read(self, probabilities: Tensor) -> Tensor:
        """Reads grades with the fitted thresholds.

        Args:
            probabilities: (B, G) as the head gives them.

        Returns:
            (B,) int64.
        """
        return self.read_calibrated(self.probabilities(probabilities))

    def read_calibrated(self, calibrated: Tensor) -> Tensor:
        """Reads grades with the fitted thresholds, from probabilities that are calibrated already.

        Args:
            calibrated: (B, G).

        Returns:
            (B,) int64.
        """
        expected = expected_grade(calibrated)
        return (expected[:, None] >= expected.new_tensor(self.thresholds)).sum(dim=1)

    def point(self, sensitivity: float) -> OperatingPoint:
        """The operating point with the highest specificity among those that reach a sensitivity.

        Args:
            sensitivity: Wanted on the validation photographs, in (0, 1].

        Returns:
            The point.

        Raises:
            ConfigError: If the sensitivity is out of range, or no operating point could be fitted.
        """
        if not 0 < sensitivity <= 1:
            raise ConfigError(f"sensitivity={sensitivity} is not above 0 and at most 1; 90 % is 0.9")
        if not self.points:
            raise ConfigError(
                f"sensitivity={sensitivity}: the run has no operating points ({self.note}); leave it out"
            )
        return next(each for each in self.points if each.sensitivity >= sensitivity - 1e-12)

    def to_json(self) -> str:
        """As ``calibration.json`` holds it."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read back :meth:`to_json`.

        Raises:
            DataError: If it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            points = tuple(OperatingPoint(**each) for each in found.pop("points"))
            read = cls(**{**found, "thresholds": tuple(found["thresholds"]), "points": points})
            damage = read._damage()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the calibration is damaged ({error})") from error
        if damage:
            raise DataError(f"the calibration is damaged: {damage}")
        return read

    def _damage(self) -> str:
        """What cannot have been fitted; empty if nothing."""
        if not 0 < self.temperature < math.inf:
            return "its temperature is no number above 0"
        if len(self.thresholds) != NUM_GRADES - 1 or not all(map(math.isfinite, self.thresholds)):
            return f"{NUM_GRADES - 1} thresholds are expected"
        if list(self.thresholds) != sorted(self.thresholds):
            return "its thresholds fall"
        rates = [
            rate for each in self.points for rate in (each.threshold, each.sensitivity, each.specificity)
        ]
        if not all(0 <= rate <= 1 for rate in rates):
            return "an operating point is not between 0 and 1"
        if self.points and self.points[-1].sensitivity != 1:
            return "its operating points do not end at a sensitivity of 1"
        return ""


def fit_calibration(probabilities: Tensor, grades: Tensor) -> Calibration:
    """Fits everything on validation photographs.

    Args:
        probabilities: (N, G) as the head gives them.
        grades: (N,) int64, the truth.

    Returns:
        The calibration; with fewer than :data:`FEWEST` photographs, or of one grade only, that which changes
        nothing.
    """
    count = len(grades)
    if count < FEWEST or len(set(grades.tolist())) < 2:
        few = f"{count} validation photographs" + (" of one grade" if count >= FEWEST else "")
        return Calibration(note=f"{few} are too few to fit a calibration")
    probabilities, grades = probabilities.detach().double().cpu(), grades.cpu()
    temperature = fit_temperature(probabilities, grades)
    calibrated = tempered(probabilities, temperature)
    thresholds = best_thresholds(expected_grade(calibrated).float(), grades, probabilities.shape[1])
    points = operating_points(referable(calibrated), grades >= REFERABLE)
    missing = "" if points else "validation photographs with and without referable DR are needed"
    return Calibration(temperature, tuple(map(float, thresholds)), points, count, missing)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T): temperature scaling of a distribution.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2, with log p in place of the
    logits: for a softmax head that is the same, as logits are log p but for a constant, and heads without a
    softmax have log p too.

    Args:
        probabilities: (B, G), rows with sum 1.
        temperature: T, above 0.

    Returns:
        (B, G), rows with sum 1.
    """
    return torch.softmax(probabilities.clamp(min=LEAST).log() / temperature, dim=1)


def expected_grade(probabilities: Tensor) -> Tensor:
    """The mean of a distribution over the grades.

    Args:
        probabilities: (B, G).

    Returns:
        (B,) in [0, G - 1].
    """
    grades = torch.arange(probabilities.shape[1], dtype=probabilities.dtype, device=probabilities.device)
    return probabilities @ grades


def referable(probabilities: Tensor) -> Tensor:
    """Probability of referable DR.

    Args:
        probabilities: (B, G).

    Returns:
        (B,) P(grade >= 2).
    """
    return probabilities[:, REFERABLE:].sum(dim=1)


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of a distribution over the grades, as a share of the highest there is.

    Args:
        probabilities: (B, G).

    Returns:
        (B,) in [0, 1]: 0 where one grade has it all, 1 where all are alike.
    """
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return entropy / math.log(probabilities.shape[1])


def fit_temperature(probabilities: Tensor, grades: Tensor) -> float:
    """The most probable temperature, if its logarithm is normal around 0 before any photograph is seen.

    That is the one with the least -sum log p + (log T)^2 / 2. Of a hundred photographs the second term
    decides nothing; ten of them may ask for a temperature of infinity or 0, and it keeps them from that. What
    it is worth beside no such term, and beside giving up a temperature that does not help on photographs left
    out of the fit, is measured in docs/calibration.md.

    Args:
        probabilities: (N, G) float64.
        grades: (N,) int64.

    Returns:
        T in [1/20, 20].
    """
    logits = probabilities.clamp(min=LEAST).log()

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        likelihood = torch.nn.functional.cross_entropy(scaled, grades, reduction="sum")
        return float(likelihood) + (log_temperature / _SPREAD) ** 2 / 2

    found = minimize_scalar(loss, bounds=(-_MOST, _MOST), method="bounded", options={"xatol": 1e-8})
    return float(math.exp(found.x))


def operating_points(scores: Tensor, positive: Tensor) -> tuple[OperatingPoint, ...]:
    """The corners of the ROC curve: each sensitivity at its highest specificity.

    Args:
        scores: (N,) P(referable).
        positive: (N,) bool, the truth.

    Returns:
        The sensitivity rising, to 1; none unless there are photographs of both kinds. Each threshold stands
        midway between the score that it lets pass and the next lower one: rounding moves no photograph across
        it, and the next photograph with DR need not score as high as the lowest of these.
    """
    values, truth = scores.double().numpy(), positive.numpy()
    of_positive, of_negative = np.sort(values[truth])[::-1], np.sort(values[~truth])
    if not len(of_positive) or not len(of_negative):
        return ()
    # The threshold at each distinct score of a positive photograph, the highest first.
    thresholds = np.unique(of_positive)[::-1]
    sensitivities = np.searchsorted(-of_positive, -thresholds, side="right") / len(of_positive)
    specificities = np.searchsorted(of_negative, thresholds, side="left") / len(of_negative)
    # A point is a corner unless the next one, of higher sensitivity, is as specific.
    corner = np.append(specificities[1:] < specificities[:-1], True)
    placed = _below(np.unique(values), thresholds[corner])
    found = zip(placed, sensitivities[corner], specificities[corner], strict=True)
    return tuple(OperatingPoint(*map(float, each)) for each in found)


def _below(distinct: npt.NDArray[np.float64], chosen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Midway between chosen ones of distinct rising values and the next lower ones; 0 is below the lowest."""
    lower = np.append(0.0, distinct)[np.searchsorted(distinct, chosen)]
    middle = (lower + chosen) / 2
    return np.where(middle > lower, middle, chosen)  # between neighbouring floats there is nothing


def joint(calibrations: Sequence[Calibration]) -> Calibration:
    """The calibration of an ensemble, whose members have each been calibrated on photographs of their own.

    Members are calibrated before their probabilities are averaged, so no temperature is left to apply. The
    thresholds are the means of the members'. There are no common validation photographs, so there are no
    operating points.

    Args:
        calibrations: At least one.

    Returns:
        The member's own if there is one, else as said.
    """
    if len(calibrations) == 1:
        return calibrations[0]
    means = np.mean([each.thresholds for each in calibrations], axis=0)
    return Calibration(
        thresholds=tuple(map(float, means)),
        photographs=min(each.photographs for each in calibrations),
        note="an ensemble has no validation photographs of its own: thresholds are means of its members'",
    )
