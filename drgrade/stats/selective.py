"""Selective prediction: a model grades the photographs it is certain of and refers the others to a grader.

Photographs are ordered by their uncertainty. Coverage is the share that the model grades, risk the share of
these that gets a wrong grade. Photographs of equal uncertainty have no order: every value here is the one
expected over a random order of such ties, so it does not depend on the order of the photographs.

El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 11, 2010 (risk and
coverage); Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
ICLR 2019 (AURC and excess AURC).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from drgrade.grades import NUM_GRADES
from drgrade.stats.bootstrap import TestFold, draws, kappas
from drgrade.stats.estimates import Counts, Floats

COVERAGES = (1.0, 0.9, 0.8, 0.7)
"""Shares of the photographs that a model grades."""

WANTED_QWK = (0.7, 0.8, 0.9)
"""QWK of the graded photographs for which an uncertainty limit is fitted."""

MIN_GRADED = 20
"""Least number of photographs below an uncertainty limit: with fewer, a high QWK is often luck."""

_LIMIT = "uncertainty_limit_for_qwk_"

REFER_ALL = -1.0
"""Uncertainty limit that refers every photograph."""

_DIGITS = 9
"""Decimals of an uncertainty: smaller differences come from rounding, and would break ties."""

_BLOCK = 256
"""Resamples computed at a time, so that their weights fit into the cache."""

_GRID: Floats = np.linspace(0.05, 1, 96)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Curves over the share of the photographs that a model grades.

    Attributes:
        coverage: (K,) ascending, from 0.05 to 1.
        risk: (K,) share of the graded photographs with a wrong grade.
        qwk: (K,) QWK of the graded photographs.
    """

    coverage: Floats
    risk: Floats
    qwk: Floats


class Selection:
    """The graded photographs at every coverage, for B weightings of N photographs.

    Args:
        uncertainty: (N,), higher means less certain.
        predicted: (N,) predicted grades.
        grades: (N,) true grades.
        weights: (N, B) whole numbers, how often each photograph occurs; None for once.

    Example:
        >>> chosen = Selection(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]), np.array([0, 1, 2]))
        >>> chosen.aurc().round(3), chosen.risk(0.5).round(3)
        (array([0.111]), array([0.]))
    """

    def __init__(
        self,
        uncertainty: Floats,
        predicted: Counts,
        grades: Counts,
        weights: Floats | None = None,
    ) -> None:
        """Sort the photographs and sum their weights in each level of uncertainty."""
        order, starts, level = _levels(uncertainty)
        self._weights = np.ones((len(order), 1)) if weights is None else weights[order]  # (N, B)
        self._level = level  # (N,) 0 to L - 1
        self._cells = _cells(predicted, grades)[order]  # (N, 25)
        wrong = (predicted != grades)[order, None]
        self._size = np.add.reduceat(self._weights, starts, axis=0)  # (L, B) photographs of each level
        self._errors = np.add.reduceat(self._weights * wrong, starts, axis=0)  # (L, B)
        self._before = np.cumsum(self._size, axis=0) - self._size  # (L, B) photographs of lower levels
        self.total: Floats = self._weights.sum(axis=0)  # (B,) number of photographs

    def aurc(self) -> Floats:
        """Compute the area under the risk-coverage curve: the mean risk of the k most certain, over all k.

        Returns:
            (B,) in [0, 1], lower is better; a random order gives the share of wrong grades.
        """
        harmonic = _harmonic(int(self.total.max()))
        errors_before = np.cumsum(self._errors, axis=0) - self._errors
        rate = self._errors / np.where(self._size > 0, self._size, 1)
        # Risk after k photographs of a level: (errors_before + (k - before) * rate) / k; sum over its k.
        first, last = (x.astype(np.int64) for x in (self._before, self._before + self._size))
        summed = self._errors + (errors_before - self._before * rate) * (harmonic[last] - harmonic[first])
        return np.asarray(summed.sum(axis=0) / self.total)

    def excess_aurc(self) -> Floats:
        """Subtract from AURC that of the best order, with all wrong grades last: (B,), at least 0."""
        harmonic = _harmonic(int(self.total.max()))
        wrong = self._errors.sum(axis=0)
        right = self.total - wrong
        last, first = (harmonic[x.astype(np.int64)] for x in (self.total, right))
        best = (wrong - right * (last - first)) / self.total
        return np.asarray(np.maximum(self.aurc() - best, 0))  # rounding errors can be below 0

    def confusion(self, coverage: float) -> Floats:
        """Return the expected confusion matrices of the graded photographs, (B, 5, 5); rows are true grades.

        The matrices sum to ``coverage`` times the number of photographs, also if that is not a whole number:
        photographs at the limit count with the probability that they are graded.
        """
        left = coverage * self.total - self._before
        graded = np.clip(left / np.where(self._size > 0, self._size, 1), 0, 1)  # (L, B)
        cells = (graded[self._level] * self._weights).T @ self._cells
        return np.asarray(cells.reshape(-1, NUM_GRADES, NUM_GRADES))

    def risk(self, coverage: float) -> Floats:
        """Return the share of wrong grades among the graded photographs: (B,)."""
        return _risks(self.confusion(coverage))

    def metrics(self) -> dict[str, Floats]:
        """Return (B,) values of each of :data:`SELECTIVE`."""
        values = {"aurc": self.aurc(), "excess_aurc": self.excess_aurc()}
        for coverage in COVERAGES:
            counts = self.confusion(coverage)
            values[at_coverage("qwk", coverage)] = kappas(counts)
            values[at_coverage("macro_f1", coverage)] = macro_f1s(counts)
        return values

    def curve(self) -> RiskCoverage:
        """Return the curves of the first weighting."""
        counts = np.concatenate([self.confusion(float(coverage))[:1] for coverage in _GRID])
        return RiskCoverage(_GRID, _risks(counts), kappas(counts))


def at_coverage(metric: str, coverage: float) -> str:
    """Return the name of a metric at a coverage; at full coverage it is that of the metric.

    Example:
        >>> at_coverage("qwk", 0.9), at_coverage("qwk", 1)
        ('qwk_at_coverage_0.9', 'qwk')
    """
    return metric if coverage == 1 else f"{metric}_at_coverage_{coverage:g}"


def macro_f1s(confusion: Floats) -> Floats:
    """Compute the F1 score of each confusion matrix, mean over the grades in truth or predictions.

    Args:
        confusion: (..., G, G) counts; rows are true grades.

    Returns:
        (...); 0 without photographs.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    totals = confusion.sum(axis=-1) + confusion.sum(axis=-2)  # 2 TP + FP + FN
    scores = np.where(totals > 0, 2 * hits / np.where(totals > 0, totals, 1), 0)
    return np.asarray(scores.sum(axis=-1) / np.maximum((totals > 0).sum(axis=-1), 1))


def _risks(confusion: Floats) -> Floats:
    """Return the share of wrong grades in each confusion matrix (B, G, G): (B,)."""
    return np.asarray(1 - np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def _cells(predicted: Counts, grades: Counts) -> Floats:
    """Mark the cell of each photograph in the confusion matrix: (N, 25)."""
    return np.asarray(np.eye(NUM_GRADES**2)[grades * NUM_GRADES + predicted])


def _levels(uncertainty: Floats) -> tuple[Counts, Counts, Counts]:
    """Return the order of the photographs, the start of each level in it, and the level of each in it."""
    values, level = np.unique(np.round(uncertainty, _DIGITS), return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(values)))
    return order.astype(np.int64), starts.astype(np.int64), level[order].astype(np.int64)


def _harmonic(last: int) -> Floats:
    """Return the harmonic numbers 0 to ``last``."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, last + 1))])


def uncertainty_limit(uncertainty: Floats, predicted: Counts, grades: Counts, wanted: float) -> float:
    """Fit the highest uncertainty up to which photographs are graded, so that these reach a QWK.

    Fit it on validation photographs: a limit that is chosen on test photographs looks too good on them.

    Args:
        uncertainty: (N,), in [0, 1].
        predicted: (N,) predicted grades.
        grades: (N,) true grades.
        wanted: QWK in (0, 1].

    Returns:
        The limit with the most graded photographs: the midpoint to the next higher uncertainty, or 1 to grade
        all. It is :data:`REFER_ALL` if no :data:`MIN_GRADED` photographs or more reach the QWK.
    """
    order, starts, _ = _levels(uncertainty)
    ends = np.append(starts[1:], len(order))  # (L,) number of photographs up to each level
    counts = np.cumsum(_cells(predicted, grades)[order], axis=0)[ends - 1]
    agreement = kappas(counts.reshape(-1, NUM_GRADES, NUM_GRADES))
    reached = ends[(ends >= MIN_GRADED) & (agreement >= wanted)]
    if not len(reached):
        return REFER_ALL
    end = int(reached[-1])
    if end == len(order):
        return 1.0
    return float((uncertainty[order[:end]].max() + uncertainty[order[end:]].min()) / 2)


def fit_limits(uncertainty: Floats, predicted: Counts, grades: Counts) -> dict[str, float]:
    """Fit :func:`uncertainty_limit` for each of :data:`WANTED_QWK`; returns entries of ``metrics.json``."""
    return {
        f"{_LIMIT}{wanted:g}": uncertainty_limit(uncertainty, predicted, grades, wanted)
        for wanted in WANTED_QWK
    }


def read_limits(record: Mapping[str, object]) -> dict[float, float]:
    """Return the uncertainty limits in ``metrics.json`` by wanted QWK; empty if none are recorded."""
    limits = {wanted: record.get(f"{_LIMIT}{wanted:g}") for wanted in WANTED_QWK}
    return {wanted: float(limit) for wanted, limit in limits.items() if isinstance(limit, int | float)}


def without_limits(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``metrics.json`` without its uncertainty limits."""
    return {name: value for name, value in record.items() if not name.startswith(_LIMIT)}


def selective_metrics(
    uncertainty: Floats,
    predicted: Counts,
    grades: Counts,
    limits: Mapping[float, float],
    weights: Floats | None = None,
) -> dict[str, Floats]:
    """Compute all metrics of selective prediction.

    Args:
        uncertainty: (N,), in [0, 1].
        predicted: (N,) predicted grades.
        grades: (N,) true grades.
        limits: Wanted QWK: highest uncertainty of a graded photograph (:func:`uncertainty_limit`).
        weights: (N, B) whole numbers, how often each photograph occurs; None for once (B is 1).

    Returns:
        (B,) values of each of :data:`SELECTIVE`; for each wanted QWK Q of ``limits`` also of
        ``referred_for_qwk_Q``, the share of the photographs above the limit, and ``qwk_after_referral_Q``,
        the QWK of the others; NaN if there are none.
    """
    values = Selection(uncertainty, predicted, grades, weights).metrics()
    weight = np.ones((len(grades), 1)) if weights is None else weights
    for wanted, limit in limits.items():
        graded = np.round(uncertainty, _DIGITS) <= limit
        cells = weight.T @ (_cells(predicted, grades) * graded[:, None])
        counts = cells.reshape(-1, NUM_GRADES, NUM_GRADES)
        count = counts.sum(axis=(1, 2))
        values[f"referred_for_qwk_{wanted:g}"] = 1 - count / weight.sum(axis=0)
        values[f"qwk_after_referral_{wanted:g}"] = np.where(count > 0, kappas(counts), np.nan)
    return values


def measure_selective(
    uncertainty: Floats, predicted: Counts, grades: Counts, record: Mapping[str, object]
) -> dict[str, float]:
    """Compute :func:`selective_metrics` once, with the limits of a run's ``metrics.json``.

    Returns:
        Entries of ``metrics.json`` without prefix. Metrics at full coverage, which a run has already, are
        left out, and the QWK after referral if every photograph is referred.
    """
    values = selective_metrics(uncertainty, predicted, grades, read_limits(record))
    known = ("qwk", "macro_f1")
    return {
        name: float(value[0])
        for name, value in values.items()
        if name not in known and not np.isnan(value[0])
    }


def resample_selective(
    fold: TestFold,
    uncertainty: Floats,
    predicted: Counts,
    limits: Mapping[float, float],
    resamples: int,
    seed: int,
) -> dict[str, Floats]:
    """Compute :func:`selective_metrics` in each resample, with the draws of the other metrics.

    Args:
        fold: N test photographs.
        uncertainty: (N,), in [0, 1].
        predicted: (N,) predicted grades.
        limits: As for :func:`selective_metrics`.
        resamples: Number B of resamples.
        seed: Random seed; use the same for all that is compared.
    """
    parts = [
        selective_metrics(uncertainty, predicted, fold.grades, limits, counts.T[fold.groups])
        for drawn in draws(fold, resamples, seed)
        for counts in np.array_split(drawn, -(-len(drawn) // _BLOCK))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
