"""The bootstrap of groups inside folds.

Photographs of one patient, and copies, are not independent, so whole groups are drawn: in every fold as many
as there are, with replacement. All runs of a fold get the same draws, whatever their method, label fraction
or seed, so that their differences can be looked at resample by resample. The draws depend on the seed and on
the fold alone, not on the order of folders, rows or lines.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval);
Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8 (clusters).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrade.grades import MIN_PROBABILITY, NUM_BINS, REFERABLE
from drgrade.stats.estimates import Counts, Floats, Interval

Booleans = npt.NDArray[np.bool_]


def confusions(predicted: Counts, grades: Counts, num_grades: int = 5) -> Counts:
    """Confusion matrices.

    Args:
        predicted: (..., N) grades.
        grades: (N,) the truth.
        num_grades: G.

    Returns:
        (..., G, G); rows are the truth.
    """
    cells = grades * num_grades + predicted
    counted: Counts = (cells[..., None] == np.arange(num_grades**2)).sum(axis=-2, dtype=np.int64)
    return counted.reshape(*predicted.shape[:-1], num_grades, num_grades)


def kappas(confusion: Counts | Floats) -> Floats:
    """Quadratic weighted kappa of each matrix.

    Args:
        confusion: (..., G, G) counts.

    Returns:
        (...); 0 where a single grade occurs in truth and predictions, as in
        :func:`drgrade.metrics.functional.quadratic_weighted_kappa`.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    places = np.arange(counts.shape[-1])
    weights = np.square(places[:, None] - places[None, :])
    truth, calls = counts.sum(axis=-1), counts.sum(axis=-2)
    observed = (weights * counts).sum(axis=(-2, -1)) * truth.sum(axis=-1)
    expected = ((truth @ weights) * calls).sum(axis=-1)
    agreement: Floats = 1 - observed / np.where(expected == 0, 1, expected)
    return np.where(expected == 0, 0.0, agreement)


def aurocs(scores: Floats, positive: Booleans, weights: Floats) -> Floats:
    """Area under the ROC curve under each weighting: a tie counts half.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).
        weights: (N, B) whole numbers: how often each photograph occurs. In this order because whole rows are
            gathered, which is much faster than columns.

    Returns:
        (B,); 0.5 where positives or negatives are missing, as in :func:`drgrade.metrics.functional.auroc`.
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


_CHUNK = 4_000_000
"""Numbers held at a time, about: 32 MB."""


@dataclass(frozen=True, eq=False)
class TestFold:
    """The test photographs of a fold.

    Attributes:
        name: Of the fold.
        image_ids: (N,) sorted.
        groups: (N,) 0 to the number of groups - 1, in the order of the groups' names.
        grades: (N,).
    """

    __test__ = False  # no test case, though pytest would think so

    name: str
    image_ids: npt.NDArray[np.str_]
    groups: Counts
    grades: Counts

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1


@dataclass(frozen=True, eq=False)
class Resampled:
    """Figures of R runs of a fold in each of B resamples.

    Attributes:
        qwk: (R, B).
        auroc: (R, B) of referable DR.
        hits: (R, B, 5) photographs of each grade that were called right.
        totals: (B, 5) photographs of each grade.
    """

    qwk: Floats
    auroc: Floats
    hits: Floats
    totals: Floats


def draws(fold: TestFold, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each group is drawn.

    Args:
        fold: The fold.
        resamples: B.
        seed: Of the bootstrap.

    Yields:
        (b, groups) whole numbers, each row with the sum ``groups``; b adds up to B.
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
    """Resample the test photographs of a fold, for all its runs alike.

    Args:
        fold: The fold, with N photographs.
        predicted: (R, N) of each run.
        probabilities: (R, N, 5).
        resamples: B.
        seed: Of the bootstrap.

    Returns:
        Figures of each run in each resample.
    """
    runs, grades = len(predicted), probabilities.shape[-1]
    called = cells_by_group(fold, predicted, grades)  # (groups, R * 25)
    scores = probabilities[:, :, REFERABLE:].sum(axis=2)
    referable = fold.grades >= REFERABLE
    of_grade = cells_by_group(fold, fold.grades[None], grades)[:, :: grades + 1]  # (groups, 5): the diagonal
    parts: list[Resampled] = []
    for counts in draws(fold, resamples, seed):
        weights = counts.T[fold.groups]  # (N, b)
        auroc = np.stack([aurocs(scores[run], referable, weights) for run in range(runs)])
        qwk, hits = np.empty((runs, len(counts))), np.empty((runs, len(counts), grades))
        for run in range(runs):
            confusion = counts @ called[:, run * grades**2 : (run + 1) * grades**2]
            confusion = confusion.reshape(-1, grades, grades)
            qwk[run], hits[run] = kappas(confusion), np.diagonal(confusion, axis1=1, axis2=2)
        totals = counts @ of_grade
        parts.append(Resampled(qwk, auroc, hits, totals))
    return Resampled(
        np.concatenate([part.qwk for part in parts], axis=1),
        np.concatenate([part.auroc for part in parts], axis=1),
        np.concatenate([part.hits for part in parts], axis=1),
        np.concatenate([part.totals for part in parts], axis=0),
    )


def cells_by_group(fold: TestFold, predicted: Counts, grades: int) -> Floats:
    """Confusion counts of each group and run.

    Args:
        fold: The fold, with N photographs.
        predicted: (R, N) of each run.
        grades: G.

    Returns:
        (groups, R * G * G).
    """
    runs = len(predicted)
    width = runs * grades**2
    column = np.arange(runs)[:, None] * grades**2 + fold.grades * grades + predicted  # (R, N)
    place = fold.groups * width + column
    return np.bincount(place.ravel(), minlength=fold.num_groups * width).reshape(-1, width).astype(np.float64)


def interval_if_spread(samples: Floats) -> Interval:
    """Percentile interval of a figure that moves.

    Args:
        samples: (B,) as for :func:`interval`.

    Returns:
        NaN also where all resamples agree: no resample of misses has a hit, but other photographs may.
    """
    ends = interval(samples)
    return ends if ends.low < ends.high else Interval(float("nan"), float("nan"))


def interval(samples: Floats) -> Interval:
    """Percentile interval.

    Args:
        samples: (B,) the figure in each resample; NaN where a resample does not define it.

    Returns:
        From the 2.5th to the 97.5th percentile; NaN if no resample defines it.
    """
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high))


METRICS = (
    "qwk",
    "accuracy",
    "mae",
    "auroc",
    "referable_auroc",
    "referable_sensitivity",
    "referable_specificity",
    "ece",
    "nll",
)
"""What is resampled."""


def resample_metrics(
    fold: TestFold, predicted: Counts, probabilities: Floats, resamples: int, seed: int
) -> Mapping[str, Floats]:
    """Compute the metrics of each resample.

    Args:
        fold: The photographs, N of them.
        predicted: (N,) grades.
        probabilities: (N, G), rows with sum 1.
        resamples: B.
        seed: Of the bootstrap; the same for all that is to be compared.

    Returns:
        By :data:`METRICS`: (B,) each. NaN where a resample does not define it: it has no photograph, or only
        photographs, of referable DR, or a single grade.
    """
    grades = probabilities.shape[1]
    called = cells_by_group(fold, predicted[None], grades)  # (groups, G * G)
    gaps, likelihood = _gaps_by_group(fold, probabilities), _likelihood_by_group(fold, probabilities)
    parts: list[dict[str, Floats]] = []
    for counts in draws(fold, resamples, seed):
        confusion = (counts @ called).reshape(-1, grades, grades)
        total = confusion.sum(axis=(1, 2))
        parts.append(
            {
                **_from_confusion(confusion),
                **_discrimination(fold, probabilities, counts.T[fold.groups], confusion.sum(axis=2)),
                "ece": np.abs(counts @ gaps).sum(axis=1) / total,
                "nll": counts @ likelihood / total,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _gaps_by_group(fold: TestFold, probabilities: Floats) -> Floats:
    """Sum of confidence minus rightness of each group in each bin: (groups, bins)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == fold.grades
    place = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence, side="left")
    cells = np.bincount(
        fold.groups * NUM_BINS + place, weights=confidence - right, minlength=fold.num_groups * NUM_BINS
    )
    return cells.astype(np.float64).reshape(-1, NUM_BINS)


def _likelihood_by_group(fold: TestFold, probabilities: Floats) -> Floats:
    """Sum of -log of the probability of the true grade, of each group: (groups,)."""
    given = probabilities[np.arange(len(probabilities)), fold.grades]
    loss: Floats = -np.log(np.maximum(given, MIN_PROBABILITY))
    return np.bincount(fold.groups, weights=loss, minlength=fold.num_groups).astype(np.float64)


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Metrics that the confusion matrices (B, G, G) hold."""
    places = np.arange(confusion.shape[-1])
    distance = np.abs(places[:, None] - places[None, :])
    total = confusion.sum(axis=(1, 2))
    referred = confusion[:, :, REFERABLE:].sum(axis=2)  # (B, G) by true grade
    true = confusion.sum(axis=2)
    return {
        "qwk": kappas(confusion),
        "accuracy": np.diagonal(confusion, axis1=1, axis2=2).sum(axis=1) / total,
        "mae": (confusion * distance).sum(axis=(1, 2)) / total,
        "referable_sensitivity": _ratio(referred[:, REFERABLE:], true[:, REFERABLE:]),
        "referable_specificity": _ratio((true - referred)[:, :REFERABLE], true[:, :REFERABLE]),
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Of the sums over the last axis; NaN where the whole is nothing."""
    total = whole.sum(axis=-1)
    return np.where(total > 0, part.sum(axis=-1) / np.maximum(total, 1), np.nan)


def _discrimination(
    fold: TestFold, probabilities: Floats, weights: Floats, true: Floats
) -> dict[str, Floats]:
    """AUROCs under the weights (N, B), with ``true`` (B, G) photographs of each grade."""
    total, occurs = true.sum(axis=1), true > 0
    single = np.stack(
        [aurocs(probabilities[:, k], fold.grades == k, weights) for k in range(probabilities.shape[1])],
        axis=1,
    )
    several = occurs.sum(axis=1) > 1
    mean = np.where(several, (single * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1), np.nan)
    positive = true[:, REFERABLE:].sum(axis=1)
    scores = probabilities[:, REFERABLE:].sum(axis=1)
    referable = aurocs(scores, fold.grades >= REFERABLE, weights)
    both = (positive > 0) & (positive < total)
    return {"auroc": mean, "referable_auroc": np.where(both, referable, np.nan)}
