"""Referral of photographs for referable DR: operating points, and the rule that decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from drgrade.stats.formatting import percent

DEFAULT_SENSITIVITY = 0.9
"""Refer from the threshold of this sensitivity on the validation photographs, unless another is requested."""

DEFAULT_THRESHOLD = 0.5
"""P(grade >= 2) from which a photograph is referable if no operating point was fitted."""


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
class ReferralRule:
    """The referral decision of a model: refer from a threshold on the calibrated P(grade >= 2).

    Predictions, evaluations, model cards, published folders, exported files and the app all use the rule of
    :func:`drgrade.models.calibration.referral_rule`.

    Attributes:
        threshold: P(grade >= 2) from which a photograph is referable, in [0, 1].
        sensitivity: Sensitivity on the validation photographs that the threshold was chosen for; None if it
            is :data:`DEFAULT_THRESHOLD`, for lack of operating points.
        points: Operating point of each member of an ensemble, or of the single run; empty without them.
        photographs: Number of validation photographs of each member.
        reason: Why there are no operating points; empty if there are.

    Example:
        >>> ReferralRule(0.5, reason="no validation photographs").origin
        'default 0.5, no operating point (no validation photographs)'
    """

    threshold: float
    sensitivity: float | None = None
    points: Sequence[OperatingPoint] = ()
    photographs: Sequence[int] = ()
    reason: str = ""

    def refers(self, scores: Tensor) -> Tensor:
        """Decide for P(grade >= 2) of photographs, (B,): (B,) bool."""
        return scores >= self.threshold

    @property
    def origin(self) -> str:
        """Describe where the threshold comes from, without the rates that it reached in validation."""
        if self.sensitivity is None:
            return f"default {self.threshold:g}, no operating point ({self.reason})"
        counts = " and ".join(map(str, self.photographs))
        members = f"mean threshold of {len(self.points)} members, " if len(self.points) > 1 else ""
        return f"{members}{percent(self.sensitivity)} sensitivity on {counts} validation photographs"

    def describe(self) -> str:
        """Return the rule in one line, with what its points reached on the validation photographs.

        Example:
            >>> ReferralRule(0.5, reason="no validation photographs").describe()
            'refer from P(grade >= 2) = 0.5: default 0.5, no operating point (no validation photographs)'
        """
        reached = [
            f"reached {percent(each.sensitivity, 1)}, specificity {percent(each.specificity, 1)}"
            for each in self.points
        ]
        found = f" ({'; '.join(reached)})" if reached else ""
        return f"refer from P(grade >= 2) = {self.threshold:.4g}: {self.origin}{found}"


def describe_rule(rule: ReferralRule) -> dict[str, object]:
    """Return the entries that describe a rule in JSON files of exported and published models."""
    return {"threshold": rule.threshold, "sensitivity": rule.sensitivity, "rule": rule.describe()}


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
