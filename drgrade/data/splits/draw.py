"""Rare grades: exchange groups until no grade is missing from a part that it could be in.

A proportional order is within about one image of proportional, which for a grade of a few images in groups of
several can be none. Parts (test folds; validation and the rest) say which grades they want; where one is
missing, groups are moved between parts, as few as possible.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.data.splits import draw as order
from drgrade.data.splits.spec import SplitSpec

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


Whole = npt.NDArray[np.int64]

MAX_STATES = 10_000
"""Assignments that a search for a chain of moves looks at, a few tenths of a second. Small cases are searched
completely by that; in large ones a single move is nearly always enough."""

_TRAIN_FIRST = 10
"""What a grade in training is worth, against 1 in validation: more than all five grades there."""


@dataclass(frozen=True)
class Wish:
    """What the parts should hold.

    Attributes:
        worth: (grades, parts) worth of a grade's being in a part.
        goal: (grades,) sum of worths that satisfies a grade; more is not better.
        share: (parts,) share of all images that a part should have.
    """

    worth: Whole
    goal: Whole
    share: Counts


def wish_for_folds(kinds: Kinds, folds: int) -> Wish:
    """Each grade in every fold, or, of a grade in fewer groups than folds, no two groups in one fold."""
    groups = _groups_of_grades(kinds)
    worth = np.ones((len(groups), folds), np.int64)
    return Wish(worth, np.minimum(groups, folds), np.full(folds, 1 / folds))


def wish_for_validation(kinds: Kinds, fraction: float) -> Wish:
    """Parts 0 (the rest) and 1 (validation).

    Every grade in the rest, before anything else; a grade of two groups or more in validation too if its
    share of the groups there is over one half.
    """
    groups = _groups_of_grades(kinds)
    validates = (groups >= 2) & (fraction * groups > 0.5 + 1e-9)
    worth = np.stack([np.full(len(groups), _TRAIN_FIRST), validates.astype(np.int64)], axis=1)
    return Wish(worth, worth.sum(axis=1), np.array([1 - fraction, fraction]))


def keep_rare_grades(parts: dict[str, int], kinds: Kinds, wish: Wish) -> dict[str, int]:
    """Move groups between parts until the wish is fulfilled, or no way to do better is found.

    Always fulfilled where groups have one grade each (of a grade that a fold misses another fold has two
    groups, of which one can move without loss). Where groups of several grades stand in each other's way, the
    best that searches of :data:`MAX_STATES` assignments each find.

    Args:
        parts: Part of each group.
        kinds: What is in the groups.
        wish: What the parts should hold.

    Returns:
        Part of each group; the same where nothing was missing.
    """
    counts = np.zeros((len(kinds.members), len(wish.share)), np.int64)
    for kind, members in enumerate(kinds.members):
        np.add.at(counts[kind], [parts[group] for group in members], 1)
    search, moved = _Search(kinds, wish), dict(parts)
    while chain := search.improvement(counts):
        for kind, source, target in chain:
            counts[kind, source] -= 1
            counts[kind, target] += 1
            # The last one taken: of a kind all are alike.
            group = next(name for name in reversed(kinds.members[kind]) if moved[name] == source)
            moved[group] = target
    return moved


Move = tuple[int, int, int]
"""A group of a kind goes from one part to another: (kind, source, target)."""


class _Search:
    """Looks for the shortest chain of moves that brings the parts nearer to the wish."""

    def __init__(self, kinds: Kinds, wish: Wish) -> None:
        self._holds, self._shape, self._wish = kinds.holds.astype(np.int64), kinds.shape, wish
        sizes = np.array([len(members) for members in kinds.members], dtype=float)
        self._target = np.outer(wish.share, sizes @ kinds.shape)
        self._budget = 0

    def improvement(self, counts: Whole) -> list[Move]:
        """Breadth first from ``counts`` (kinds, parts); empty if nothing is missing or nothing better found.

        Each step moves a group of a grade that is missing somewhere. That is enough to reach any better
        assignment: of a grade that it serves better, at least one group is not yet where it is there.
        """
        self._budget, start = MAX_STATES, int(self._missing(counts).sum())
        level: list[tuple[Whole, list[Move]]] = [(counts, [])] if start else []
        seen = {counts.tobytes()}
        while level and self._budget > 0:
            following = []
            for state, chain in level:
                for move, moved in self._moves(state, seen):
                    following.append((self._cost(moved), moved, [*chain, move]))
                if self._budget <= 0:
                    break
            following.sort(key=lambda found: found[0])
            if following and following[0][0][0] < start:
                return following[0][2]
            level = [(state, chain) for _, state, chain in following]
        return []

    def _moves(self, state: Whole, seen: set[bytes]) -> Iterator[tuple[Move, Whole]]:
        """All moves of a group with a grade that is missing somewhere, to assignments not seen before."""
        missing = self._missing(state) > 0
        for kind in np.flatnonzero(self._holds[:, missing].any(axis=1)):
            for source in np.flatnonzero(state[kind]):
                for target in range(state.shape[1]):
                    moved = state.copy()
                    moved[kind, source] -= 1
                    moved[kind, target] += 1
                    if (key := moved.tobytes()) not in seen:
                        seen.add(key)
                        self._budget -= 1
                        yield (int(kind), int(source), target), moved

    def _missing(self, counts: Whole) -> Whole:
        """(grades,) worth that is missing."""
        covered = (self._holds.T @ counts) > 0
        missing: Whole = np.maximum(self._wish.goal - (covered * self._wish.worth).sum(axis=1), 0)
        return missing

    def _cost(self, counts: Whole) -> tuple[int, float]:
        gap = counts.T @ self._shape - self._target
        return int(self._missing(counts).sum()), float((gap**2).sum())


def _groups_of_grades(kinds: Kinds) -> Whole:
    """(grades,) number of groups that hold each grade."""
    sizes = np.array([len(members) for members in kinds.members], np.int64)
    groups: Whole = sizes @ kinds.holds.astype(np.int64)
    return groups


CountsShots = npt.NDArray[np.int64]


def shot_groups(groups: Iterable[tuple[str, int]], shots: int, seed: list[int]) -> set[str]:
    """Choose groups until every grade has its shots, or has no group left.

    The number wanted of every grade rises from 1 to ``shots``, and groups are taken as they are needed: so
    the choice for a smaller number is inside that for a larger one. Of the groups that have a grade which is
    wanted, one is taken that adds least beyond what is wanted; among equal ones a seeded shuffle decides.
    With photographs that are their own groups every grade gets exactly its shots, or all that there are.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        shots: Photographs wanted of each grade, at least 1.
        seed: Seeds the shuffle.

    Returns:
        The groups taken.
    """
    names, contents = _contents(groups, seed)
    total = contents.sum(axis=0)
    taken, have = np.zeros(len(names), bool), np.zeros_like(total)
    for wanted in range(1, min(shots, int(total.max(initial=0))) + 1):
        goal = np.minimum(wanted, total)
        for grade in range(len(total)):
            while have[grade] < goal[grade]:
                able = np.flatnonzero(~taken & (contents[:, grade] > 0))
                beyond = np.maximum(have + contents[able] - goal, 0).sum(axis=1)
                best = able[beyond.argmin()]
                taken[best] = True
                have += contents[best]
    return {name for name, chosen in zip(names, taken, strict=True) if chosen}


def _contents(groups: Iterable[tuple[str, int]], seed: list[int]) -> tuple[list[str], CountsShots]:
    """Groups in a random order that does not depend on the input's, and (groups, grades) photographs."""
    found = sorted(groups)
    names = sorted({group for group, _ in found})
    grades = sorted({grade for _, grade in found})
    contents = np.zeros((len(names), len(grades)), np.int64)
    rows, columns = ({each: place for place, each in enumerate(known)} for known in (names, grades))
    for group, grade in found:
        contents[rows[group], columns[grade]] += 1
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[place] for place in order], contents[order]


def draw_test_fold(graded: pd.DataFrame, spec: SplitSpec) -> set[str]:
    """Groups of the test fold.

    Args:
        graded: Columns group, grade, dataset of all photographs that can be tested.
        spec: ``fold`` is a number.
    """
    kinds = _kinds(graded, spec.seed, 0)
    times = order.sweep(kinds)
    ends = np.arange(1, spec.folds + 1) / spec.folds
    folds = {group: int(np.searchsorted(ends, time)) for group, time in times.items()}
    folds = keep_rare_grades(folds, kinds, wish_for_folds(kinds, spec.folds))
    return {group for group, fold in folds.items() if fold == spec.fold}


def _validation_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    if not spec.val_fraction:
        return set()
    kinds = _kinds(side, spec.seed, 1)
    chosen = order.prefix(order.sweep(kinds, until=spec.val_fraction), spec.val_fraction)
    parts = {group: int(group in chosen) for group in side["group"].unique()}
    whole = order.steps_in(spec.val_fraction) / order.STEPS
    parts = keep_rare_grades(parts, kinds, wish_for_validation(kinds, whole))
    return {group for group, part in parts.items() if part}


def _labelled_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    if spec.shots is not None:
        pairs = zip(side["group"], side["grade"].astype(int), strict=True)
        return shot_groups(pairs, spec.shots, [spec.seed, 4])
    if spec.label_fraction == 1:
        return set(side["group"])
    times = order.sweep(_kinds(side, spec.seed, 2), cover=True, until=spec.label_fraction)
    return order.prefix(times, spec.label_fraction)


def _kinds(photographs: pd.DataFrame, *seed: int) -> order.Kinds:
    columns = (photographs["group"], photographs["grade"].astype(int), photographs["dataset"])
    return order.collect_kinds(zip(*columns, strict=True), seed)


def draw_validation_and_training(side: pd.DataFrame, spec: SplitSpec) -> tuple[set[str], set[str]]:
    """Groups of the training side that validate, and those whose labels train.

    Args:
        side: Columns group, grade, dataset of its graded photographs.
        spec: How to draw.
    """
    if spec.val_within_fraction:
        side = side[side["group"].isin(_labelled_groups(side, spec))]
        val = _validation_groups(side, spec)
        return val, set(side["group"]) - val
    val = _validation_groups(side, spec)
    return val, _labelled_groups(side[~side["group"].isin(val)], spec)
