"""The primitive that draws: an order of the groups in which every prefix holds each grade in proportion."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import numpy.typing as npt

Times = dict[str, float]
Counts = npt.NDArray[np.float64]

STEPS = 4000
"""Resolution of a fraction: one part in 4000. It divides 5, 10, 25 and 50 %."""

_KIND_WEIGHT = 0.1
"""Without it single images, which correct best, would all be taken first and leave the pairs to the end."""


@dataclass(frozen=True)
class Kinds:
    """Groups, collected by what is in them.

    Attributes:
        members: Groups of each kind, in a random order.
        shape: (kinds, columns) images of each grade in one group of each kind; with several data sets also of
            each grade of each data set.
        grades: The grade of each of the first columns of ``shape``.
    """

    members: list[list[str]]
    shape: Counts
    grades: list[int]

    @property
    def holds(self) -> npt.NDArray[np.bool_]:
        """(kinds, grades) whether a group of this kind has an image of that grade."""
        found: npt.NDArray[np.bool_] = self.shape[:, : len(self.grades)] > 0
        return found


def proportional_order(
    groups: Iterable[tuple[str, int]], seed: Sequence[int], *, cover: bool = False, until: float = 1.0
) -> Times:
    """Order groups so that every prefix holds every grade in proportion.

    Each group gets a time in [0, 1]; the prefix at ``t`` is all groups with time <= ``t``. Time runs from 0
    to 1, and a group is taken whenever that brings the grades' counts nearer (in squares) to their share
    ``t * total``. Groups of one image then stay within half an image of it at every ``t``; groups of several
    images with different grades within about one.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        seed: Seeds the order among groups with the same grades.
        cover: Take one image of every grade at time 0, so that a rare grade is not lost at a small fraction.
            It is still within one image of proportional.
        until: Time to stop at, in [0, 1]; groups that would come later are left out.

    Returns:
        Time of each group, in the order in which they are taken.
    """
    return sweep(collect_kinds(((group, grade, "") for group, grade in groups), seed), cover, until)


def collect_kinds(photographs: Iterable[tuple[str, int, str]], seed: Sequence[int]) -> Kinds:
    """Collect groups with the same grades, in a random order that does not depend on the input's.

    Args:
        photographs: Group, grade and data set of each graded photograph.
        seed: Seeds the order among groups of a kind.
    """
    contents: defaultdict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for group, grade, dataset in photographs:
        contents[group][dataset, grade] += 1
    found: defaultdict[tuple[tuple[tuple[str, int], int], ...], list[str]] = defaultdict(list)
    for group in sorted(contents):
        found[tuple(sorted(contents[group].items()))].append(group)
    rng = np.random.default_rng(list(seed))
    kinds = sorted(found)
    members = [[found[kind][i] for i in rng.permutation(len(found[kind]))] for kind in kinds]
    strata = sorted({stratum for kind in kinds for stratum, _ in kind})
    grades = sorted({grade for _, grade in strata})
    several = len({dataset for dataset, _ in strata}) > 1
    shape = np.zeros((len(kinds), len(grades) + (len(strata) if several else 0)))
    for row, kind in zip(shape, kinds, strict=True):
        for stratum, count in kind:
            row[grades.index(stratum[1])] += count
            if several:
                row[len(grades) + strata.index(stratum)] += count
    return Kinds(members, shape, grades)


def sweep(kinds: Kinds, cover: bool = False, until: float = 1.0) -> Times:
    """Let time run and take groups while that lowers the squared deviation; see :func:`proportional_order`.

    Args:
        kinds: What there is to take.
        cover: Take one image of every grade at time 0.
        until: Time to stop at.
    """
    times: Times = {}
    if not kinds.members:
        return times
    state = _Sweep(kinds)
    for step in range(steps_in(until) + 1):
        t = step / STEPS
        while (kind := state.best(t, cover)) is not None:
            times[kinds.members[kind][int(state.taken[kind])]] = t
            state.take(kind)
    return times


class _Sweep:
    """How many groups of each kind are taken, and which to take next."""

    def __init__(self, kinds: Kinds) -> None:
        self.shape, self.columns = kinds.shape, len(kinds.grades)
        self.size = np.array([len(groups) for groups in kinds.members], dtype=float)
        self.total = self.size @ self.shape
        self.taken = np.zeros(len(self.size))
        self.count = np.zeros(self.shape.shape[1])
        self._twice, self._squares = 2 * self.shape, (self.shape**2).sum(axis=1)

    def take(self, kind: int) -> None:
        self.taken[kind] += 1
        self.count += self.shape[kind]

    def best(self, t: float, cover: bool) -> int | None:
        """Kind of group whose taking lowers the cost most; None if none does (at t = 1: if none is left)."""
        if cover and t == 0:
            gain = self._new_grades()
        else:
            # Taking kind k adds shape[k] to the grades' gaps and 1 to its own: the change of the sum of
            # squares, written out.
            change = self._twice @ (self.count - t * self.total) + self._squares
            gain = -change - _KIND_WEIGHT * (2 * (self.taken - t * self.size) + 1)
        gain = np.where(self.taken < self.size, gain, -np.inf)
        best = int(gain.argmax())
        return best if gain[best] > (-np.inf if t == 1 else 1e-9) else None

    def _new_grades(self) -> Counts:
        # By grades that are new, not by deviation: a grade that comes only in pairs would wait for its half.
        grades = self.shape[:, : self.columns]
        gain: Counts = ((grades > 0) & (self.count[: self.columns] == 0)).sum(axis=1) / grades.sum(axis=1)
        return gain


def steps_in(fraction: float) -> int:
    """Whole steps of time in a fraction."""
    return floor((fraction + 1e-9) * STEPS)


def prefix(times: Times, fraction: float) -> set[str]:
    """Groups that are taken up to a fraction."""
    return {group for group, time in times.items() if time <= fraction + 1e-9}
