"""The bootstrap of groups inside folds.

Photographs of one patient, and copies, are not independent, so whole groups are drawn: in every fold as many
as there are, with replacement. All runs of a fold get the same draws, whatever their method, label fraction
or seed, so that their differences can be looked at resample by resample. The draws depend on the seed and on
the fold alone, not on the order of folders, rows or lines.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval);
Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8 (clusters).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrade.report.contents import Counts, Floats, Interval
from drgrade.report.kappa import aurocs, kappas

REFERABLE = 2
"""As in :mod:`drgrade.metrics.grading`."""

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
