"""Bootstrap of groups inside folds: resampled metrics, percentile intervals.

Photographs of one patient and near-duplicates are not independent, so whole groups are drawn with
replacement: in every fold as many as it has. All runs of a fold share the same draws, so their differences
are paired. The draws depend only on the seed and the name of the fold.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval);
Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8 (clusters).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrade.grades import MIN_PROBABILITY, REFERABLE
from drgrade.stats.estimates import UNKNOWN, Booleans, Counts, Floats, Interval

_CHUNK = 4_000_000
"""Approximate number of values held in memory at a time (32 MB)."""


def confusions(predicted: Counts, grades: Counts, num_grades: int = 5) -> Counts:
    """Count confusion matrices.

    Args:
        predicted: (..., N) predicted grades.
        grades: (N,) true grades.
        num_grades: Number of grades G.

    Returns:
        (..., G, G); rows are true grades.

    Example:
        >>> confusions(np.array([0, 1, 1]), np.array([0, 0, 1]), num_grades=2)
        array([[1, 1],
               [0, 1]])
    """
    cells = grades * num_grades + predicted
    counted: Counts = (cells[..., None] == np.arange(num_grades**2)).sum(axis=-2, dtype=np.int64)
    return counted.reshape(*predicted.shape[:-1], num_grades, num_grades)


def kappas(confusion: Counts | Floats) -> Floats:
    """Compute the quadratic weighted kappa of each confusion matrix.

    Args:
        confusion: (..., G, G) counts.

    Returns:
        (...); 0 if truth and predictions contain a single grade, as in
        :func:`drgrade.metrics.functional.quadratic_weighted_kappa`.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    places = np.arange(counts.shape[-1])
    weights = np.square(places[:, None] - places[None, :])
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    observed = (weights * counts).sum(axis=(-2, -1)) * true.sum(axis=-1)
    expected = ((true @ weights) * predicted).sum(axis=-1)
    agreement: Floats = 1 - observed / np.where(expected == 0, 1, expected)
    return np.where(expected == 0, 0.0, agreement)


def aurocs(scores: Floats, positive: Booleans, weights: Floats) -> Floats:
    """Compute the area under the ROC curve for each weighting; a tie counts half.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).
        weights: (N, B) number of times each photograph occurs. Photographs come first because gathering rows
            is faster than gathering columns.

    Returns:
        (B,); 0.5 if there are no positives or no negatives, as in :func:`drgrade.metrics.functional.auroc`.
    """
    yes, no = np.flatnonzero(positive), np.flatnonzero(~positive)
    no = no[np.argsort(scores[no], kind="stable")]
    up_to = np.zeros((len(no) + 1, weights.shape[1]))  # negatives among the lowest k
    np.cumsum(weights[no], axis=0, out=up_to[1:])
    below, not_above = (np.searchsorted(scores[no], scores[yes], side=side) for side in ("left", "right"))
    weight = weights[yes]
    doubled = np.einsum("nb,nb->b", weight, up_to[below]) + np.einsum("nb,nb->b", weight, up_to[not_above])
    pairs = weight.sum(axis=0) * up_to[-1]
    return np.where(pairs == 0, 0.5, doubled / np.where(pairs == 0, 1, 2 * pairs))


@dataclass(frozen=True, eq=False)
class TestFold:
    """Test photographs of a fold.

    Attributes:
        name: Name of the fold.
        image_ids: (N,) sorted.
        groups: (N,) group numbers, 0 to the number of groups - 1, in the order of the group names.
        grades: (N,).
    """

    __test__ = False  # keeps pytest from collecting it

    name: str
    image_ids: npt.NDArray[np.str_]
    groups: Counts
    grades: Counts

    @classmethod
    def with_groups(
        cls, name: str, image_ids: npt.NDArray[np.str_], groups: npt.NDArray[np.str_], grades: Counts
    ) -> "TestFold":
        """Number the groups of photographs, (N,) names."""
        _, numbers = np.unique(groups, return_inverse=True)
        return cls(name, image_ids, numbers.astype(np.int64), grades)

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1


@dataclass(frozen=True, eq=False)
class Resampled:
    """Metrics of R runs of a fold in each of B resamples.

    Attributes:
        qwk: (R, B).
        auroc: (R, B) of referable DR.
        hits: (R, B, 5) correctly graded photographs of each grade.
        totals: (B, 5) photographs of each grade.
    """

    qwk: Floats
    auroc: Floats
    hits: Floats
    totals: Floats


def draws(fold: TestFold, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw groups with replacement, B times in total.

    Yields:
        (b, groups) number of times each group is drawn; each row sums to ``groups``, and the b sum to B.
    """
    name = int.from_bytes(hashlib.sha256(fold.name.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, name])
    groups = fold.num_groups
    step = max(1, _CHUNK // len(fold.image_ids))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        counted = np.bincount(drawn.ravel(), minlength=size * groups)
        yield counted.reshape(size, groups).astype(np.float64)


def resample(
    fold: TestFold, predicted: Counts, probabilities: Floats, resamples: int, seed: int
) -> Resampled:
    """Compute the metrics of all runs of a fold in the same resamples.

    Args:
        fold: N test photographs.
        predicted: (R, N) predicted grades of each run.
        probabilities: (R, N, 5).
        resamples: Number B of resamples.
        seed: Random seed.
    """
    runs, grades = len(predicted), probabilities.shape[-1]
    cells = cells_by_group(fold, predicted, grades)  # (groups, R * 25)
    scores = referable_scores(probabilities)
    referable = fold.grades >= REFERABLE
    of_grade = cells_by_group(fold, fold.grades[None], grades)[:, :: grades + 1]  # (groups, 5): the diagonal
    qwk, auroc = np.empty((2, runs, resamples))
    hits, totals = np.empty((runs, resamples, grades)), np.empty((resamples, grades))
    start = 0
    for counts in draws(fold, resamples, seed):
        part = slice(start, start + len(counts))
        start = part.stop
        weights = counts.T[fold.groups]  # (N, b)
        totals[part] = counts @ of_grade
        for run in range(runs):
            confusion = counts @ cells[:, run * grades**2 : (run + 1) * grades**2]
            confusion = confusion.reshape(-1, grades, grades)
            qwk[run, part] = kappas(confusion)
            auroc[run, part] = aurocs(scores[run], referable, weights)
            hits[run, part] = np.diagonal(confusion, axis1=1, axis2=2)
    return Resampled(qwk, auroc, hits, totals)


def cells_by_group(fold: TestFold, predicted: Counts, grades: int) -> Floats:
    """Count the confusion matrices of each group: (R, N) predicted grades to (groups, R * G * G)."""
    runs = len(predicted)
    width = runs * grades**2
    column = np.arange(runs)[:, None] * grades**2 + fold.grades * grades + predicted  # (R, N)
    place = fold.groups * width + column
    return np.bincount(place.ravel(), minlength=fold.num_groups * width).reshape(-1, width).astype(np.float64)


def interval_if_spread(samples: Floats) -> Interval:
    """Return the percentile interval, or NaN if all resamples are equal.

    The bootstrap cannot estimate the uncertainty of, for example, a recall of 0.
    """
    ends = interval(samples)
    return ends if ends.low < ends.high else UNKNOWN


def interval(samples: Floats, tail: float = 0.025) -> Interval:
    """Return the percentile interval, by default from the 2.5th to the 97.5th percentile.

    Args:
        samples: (B,) value in each resample; NaN values are left out.
        tail: Share of the resamples below the interval, and above it.

    Returns:
        The interval; NaN if all samples are NaN.

    Example:
        >>> interval(np.arange(101.0))
        Interval(low=2.5, high=97.5)
    """
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return UNKNOWN
    low, high = np.percentile(defined, [100 * tail, 100 * (1 - tail)])
    return Interval(float(low), float(high))


METRICS = (
    "qwk",
    "accuracy",
    "mae",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    "nll",
    "brier",
)
"""Metrics of :func:`resample_metrics`. The calibration error is none of them: photographs that are drawn
twice bias it, and its interval would not contain the estimate."""


def resample_metrics(
    fold: TestFold, predicted: Counts, probabilities: Floats, resamples: int, seed: int
) -> Mapping[str, Floats]:
    """Compute all metrics of one set of predictions in each resample.

    Args:
        fold: N test photographs.
        predicted: (N,) predicted grades.
        probabilities: (N, G), rows sum to 1.
        resamples: Number B of resamples.
        seed: Random seed; use the same for all that is compared.

    Returns:
        (B,) values of each of :data:`METRICS` and of ``recall_0`` ... . NaN where a resample does not define
        the metric: it has no photograph of the grade, a single grade, or photographs on one side of the
        referable threshold only.
    """
    grades = probabilities.shape[1]
    cells = cells_by_group(fold, predicted[None], grades)  # (groups, G * G)
    scores = {
        "nll": negative_log_likelihoods(probabilities, fold.grades),
        "brier": brier_scores(probabilities, fold.grades),
    }
    sums = {name: np.bincount(fold.groups, weights=score) for name, score in scores.items()}  # (groups,)
    parts: list[dict[str, Floats]] = []
    for counts in draws(fold, resamples, seed):
        confusion = (counts @ cells).reshape(-1, grades, grades)
        total = confusion.sum(axis=(1, 2))
        parts.append(
            {
                **_from_confusion(confusion),
                **_discrimination(fold, probabilities, counts.T[fold.groups], confusion.sum(axis=2)),
                **{name: counts @ of_group / total for name, of_group in sums.items()},
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Compute the metrics that depend on the confusion matrices (B, G, G) alone."""
    places = np.arange(confusion.shape[-1])
    distance = np.abs(places[:, None] - places[None, :])
    total = confusion.sum(axis=(1, 2))
    referred = confusion[:, :, REFERABLE:].sum(axis=2)  # (B, G) by true grade
    true, hits = confusion.sum(axis=2), np.diagonal(confusion, axis1=1, axis2=2)
    return {
        "qwk": kappas(confusion),
        "accuracy": hits.sum(axis=1) / total,
        "mae": (confusion * distance).sum(axis=(1, 2)) / total,
        "referable_sensitivity": _ratio(referred[:, REFERABLE:], true[:, REFERABLE:]),
        "referable_specificity": _ratio((true - referred)[:, :REFERABLE], true[:, :REFERABLE]),
        **{f"recall_{k}": _ratio(hits[:, [k]], true[:, [k]]) for k in places.tolist()},
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide sums over the last axis; NaN where the denominator is 0."""
    total = whole.sum(axis=-1)
    return np.where(total > 0, part.sum(axis=-1) / np.maximum(total, 1), np.nan)


def _discrimination(
    fold: TestFold, probabilities: Floats, weights: Floats, true: Floats
) -> dict[str, Floats]:
    """Compute AUROCs for the weights (N, B); ``true`` (B, G) counts the photographs of each grade."""
    total, occurs = true.sum(axis=1), true > 0
    single = np.stack(
        [aurocs(probabilities[:, k], fold.grades == k, weights) for k in range(probabilities.shape[1])],
        axis=1,
    )
    several = occurs.sum(axis=1) > 1
    mean = np.where(several, (single * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1), np.nan)
    positive = true[:, REFERABLE:].sum(axis=1)
    scores = referable_scores(probabilities)
    referable = aurocs(scores, fold.grades >= REFERABLE, weights)
    both = (positive > 0) & (positive < total)
    return {"auroc": mean, "referable_auroc": np.where(both, referable, np.nan)}


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Returns:
        Corrected p-values in the same order, at most 1.

    Example:
        >>> holm_correction([0.01, 0.5])
        [0.02, 0.5]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return [float(value) for value in corrected]


def referable_scores(probabilities: Floats) -> Floats:
    """Return P(grade >= 2) of distributions (..., G), with 12 decimals as in the metrics of a run."""
    return np.asarray(probabilities[..., REFERABLE:].sum(axis=-1).round(12))


def brier_scores(probabilities: Floats, grades: Counts) -> Floats:
    """Return the squared error of each distribution, summed over the grades, (N,)."""
    truth = np.eye(probabilities.shape[1])[grades]
    return np.asarray(np.square(probabilities - truth).sum(axis=1))


def negative_log_likelihoods(probabilities: Floats, grades: Counts) -> Floats:
    """Return -log of the probability of each true grade, (N,); see :data:`drgrade.grades.MIN_PROBABILITY`."""
    likelihoods: Floats = probabilities[np.arange(len(grades)), grades]
    return np.asarray(-np.log(np.maximum(likelihoods, MIN_PROBABILITY)))
