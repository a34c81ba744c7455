"""Thresholds that are fitted to validation photographs: between grades, and for referral."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.stats.formatting import percent

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def rounding_thresholds(num_grades: int) -> Tensor:
    """Return the thresholds that round to the nearest grade: (G - 1,) float32, 0.5, 1.5, ..."""
    return torch.arange(num_grades - 1, dtype=torch.float32) + 0.5


def best_thresholds(values: Tensor, grades: Tensor, num_grades: int) -> Tensor:
    """Find the thresholds with the highest QWK.

    With N photographs, o the sum of squared errors and e_j = sum over i of (i - j)^2 times the number of
    photographs of grade i, kappa is 1 - N o / (sum of e_predicted): a ratio of two sums over photographs. By
    Dinkelbach ("On nonlinear fractional programming", Management Science 13(7), 1967) it is maximal where
    the best value of a weighted difference of the two sums is 0; the best assignment for a difference is
    found by dynamic programming over the sorted values. All arithmetic is in integers, so the result is exact
    and reproducible. Of several optimal assignments the one that moves the fewest photographs away from the
    nearest grade is taken.

    Args:
        values: (N,) float32, finite.
        grades: (N,) int64, the true grades.
        num_grades: Number of grades G.

    Returns:
        (G - 1,) float32, not falling; the grade of a value is the number of thresholds that it reaches. A
        threshold is its rounding threshold if that lies between the same neighbouring values, else their
        midpoint. If fewer than two grades occur, kappa is 0 for all thresholds and the rounding
        thresholds are returned.

    Example:
        >>> best_thresholds(torch.tensor([0.0, 0.2, 0.4, 1.0, 1.2]), torch.arange(5), 5)
        tensor([0.1000, 0.3000, 0.7000, 1.1000])
    """
    start = rounding_thresholds(num_grades)
    truth = np.bincount(grades.numpy(), minlength=num_grades)
    if np.count_nonzero(truth) < 2:
        return start
    distinct, place = np.unique(values.numpy(), return_inverse=True)  # (M,) rising, (N,)
    table = np.zeros((len(distinct), num_grades), dtype=np.int64)  # photographs by value and grade
    np.add.at(table, (place, grades.numpy()), 1)
    rounded = (distinct[:, None] >= start.numpy()).sum(axis=1)  # (M,)
    return torch.from_numpy(_place_thresholds(distinct, _best_cuts(table, rounded), start.numpy()))


def _best_cuts(table: Ints, rounded: Ints) -> Ints:
    """Return, for each threshold of the best assignment, the number of distinct values below it: (G - 1,).

    ``table`` (M, G) counts photographs by value and grade; ``rounded`` (M,) is the initial assignment.
    """
    grades = np.arange(table.shape[1])
    distance = (grades[:, None] - grades[None, :]) ** 2  # (G, G)
    # Python integers: the products below exceed 64 bits from some 10,000 photographs on.
    errors = (table @ distance).astype(object)  # (M, G) squared errors if a value is assigned to a grade
    expected = (np.outer(table.sum(axis=1), table.sum(axis=0) @ distance)).astype(object)  # (M, G)
    moved = (table.sum(axis=1)[:, None] * (rounded[:, None] != grades)).astype(object)
    rows, assigned = np.arange(len(table)), rounded
    while True:
        ratio = errors[rows, assigned].sum(), expected[rows, assigned].sum()
        gain = ratio[1] * errors - ratio[0] * expected
        # The number of moved photographs breaks ties: in total it adds less than 1.
        cuts = _cheapest_cuts(gain * (int(table.sum()) + 1) + moved)
        assigned = np.searchsorted(cuts, rows, side="right")
        if gain[rows, assigned].sum() >= 0:
            return cuts


def _cheapest_cuts(cost: npt.NDArray[np.object_]) -> Ints:
    """Divide M sorted values among G grades at the lowest total of ``cost`` (M, G).

    Returns:
        (G - 1,) number of values with a grade of at most 0, 1, ...
    """
    zero = np.zeros((1, cost.shape[1]), dtype=object)
    total = np.concatenate((zero, cost.cumsum(axis=0)))  # (M + 1, G): cost of the first m values in one grade
    best, origins = total[:, 0], []
    for grade in range(1, cost.shape[1]):
        # The first m values with grades up to this one: the first s of them have lower grades.
        base = best - total[:, grade]
        lowest = np.minimum.accumulate(base)
        improves = np.concatenate(([True], base[1:] < lowest[:-1]))  # where a new s becomes the best
        origins.append(np.maximum.accumulate(np.where(improves, np.arange(len(best)), 0)))
        best = lowest + total[:, grade]
    cuts, end = [], len(cost)
    for origin in reversed(origins):
        end = int(origin[end])
        cuts.append(end)
    return np.array(cuts[::-1], dtype=np.int64)


def _place_thresholds(values: Floats, cuts: Ints, start: Floats) -> Floats:
    """Return thresholds (G - 1,) that divide the sorted values (M,) at the cuts (G - 1,).

    A threshold keeps its value of ``start`` if that divides the values in the same way.
    """
    thresholds = start.copy()
    for cut in np.unique(cuts):
        here = np.flatnonzero(cuts == cut)
        below = values[cut - 1] if cut > 0 else -np.inf
        above = values[cut] if cut < len(values) else np.inf
        if all(below < start[k] <= above for k in here):
            continue
        share = np.arange(1, len(here) + 1) / (len(here) + 1)
        low = float(below) if cut > 0 else float(above) - 1
        high = float(above) if cut < len(values) else float(below) + 1
        placed = (low + share * (high - low)).astype(np.float32)
        # No float lies between neighbouring floats; the threshold is then the upper one.
        thresholds[here] = np.where(placed > below, placed, np.float32(above))
    return thresholds


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
