"""Specification of a split, and the draw of test folds, validation sets, label fractions and shots.

Groups are put in an order whose prefixes contain every grade in proportion, to within about one image. A
grade of few images in groups of several can then be missing from a part (a test fold, or validation), so
groups are moved between parts, as few as possible, until no grade is missing that could be present.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.artefacts import shortened
from drgrade.errors import ConfigError
from drgrade.files import is_path

SUBSETS = ("train", "unlabelled", "val", "test", "external", "excluded")
"""Subsets of a split.

``unlabelled``: on the training side, grade not used. ``external``: of a data set for testing only.
``excluded``: not used, because its group is in the test or validation set."""

ROLES = ("labelled", "unlabelled", "external")
"""Use of a data set: to be split, for pre-training only, or for testing only."""

PUBLISHED: Literal["published"] = "published"

Disagreeing = Literal["drop", "keep_one", "majority"]


@dataclass(frozen=True)
class SplitSpec:
    """Specification of a split.

    Attributes:
        fold: Test fold, 0 to ``folds - 1``, or "published" for the published test set. With a ``file`` of
            folds, the number of the test fold in the file.
        folds: Number of test folds, at least 2.
        label_fraction: Share of the training labels that may be used, in (0, 1].
        val_fraction: Share of the labels of the training side used for validation, in [0, 1).
        val_within_fraction: Take validation labels from the label fraction instead of before it.
        shots: Number of labelled training photographs per grade (few-shot), instead of ``label_fraction``.
        seed: Seed of test fold, validation and labels, independent of the training seed.
        label_seed: Further seed of the drawn labels alone; 0 is the draw of ``seed``.
        disagreeing: Treatment of copies of a photograph with different grades: "drop" all grades, "keep_one"
            (the first by image_id), or the strict "majority" for all.
        file: CSV file with the split, instead of ``fold``; see :mod:`drgrade.data.splits.files`.
    """

    fold: int | Literal["published"] = 0
    folds: int = 5
    label_fraction: float = 1.0
    val_fraction: float = 0.05
    val_within_fraction: bool = False
    shots: int | None = None
    seed: int = 0
    label_seed: int = 0
    disagreeing: Disagreeing = "drop"
    file: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} is not in (0, 1]; 10 % is label_fraction=0.1"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"protocol.val_fraction={self.val_fraction} is not in [0, 1)")
        if self.shots is not None:
            self._check_shots(self.shots)
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds}: cross validation needs at least 2 folds")
        for name in ("seed", "label_seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"split.{name}={value!r} is not a whole number of at least 0")
        if self.file is not None and not (isinstance(self.file, str | Path) and is_path(str(self.file))):
            raise ConfigError(f"split.file={shortened(self.file)} is not a path")
        if self.disagreeing not in get_args(Disagreeing):
            raise ConfigError(
                f"split.disagreeing={self.disagreeing!r} is not one of {', '.join(get_args(Disagreeing))}"
            )
        self._check_fold()

    def _check_shots(self, shots: int) -> None:
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
            raise ConfigError(
                f"protocol.shots={shots} is not a whole number of at least 1; use null for label_fraction"
            )
        if self.label_fraction != 1:
            raise ConfigError(
                f"label_fraction={self.label_fraction} and protocol.shots={shots} exclude each other: leave "
                "label_fraction at 1.0, or set protocol.shots=null"
            )
        if self.val_within_fraction:
            raise ConfigError(
                f"protocol.val_within_fraction=true cannot be used with protocol.shots={shots}, as all shots "
                "are trained on; protocol.val_fraction=0 uses no other label"
            )

    def _check_fold(self) -> None:
        if isinstance(self.fold, str):
            if self.fold != PUBLISHED:
                raise ConfigError(f"fold={self.fold!r} is neither a number nor 'published'")
        elif self.file is None and self.fold not in range(self.folds):
            raise ConfigError(
                f"fold={self.fold} is not in 0..{self.folds - 1}: folds are counted from 0 "
                f"(folds={self.folds})"
            )


Times = dict[str, float]
Counts = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Move = tuple[int, int, int]
"""Move of one group of a kind between parts: (kind, source, target)."""

STEPS = 4000
"""Resolution of a fraction, a multiple of the denominators of 5, 10, 25 and 50 %."""

_KIND_WEIGHT = 0.1
"""Weight of the proportion of each kind; without it all single images would be taken before the pairs."""

MAX_STATES = 10_000
"""Largest number of assignments that one search examines, in a few tenths of a second.

Small cases are searched completely; in large ones a single move is nearly always enough."""

_TRAIN_FIRST = 10
"""Worth of a grade in training relative to validation: more than that of all five grades there."""


@dataclass(frozen=True)
class Kinds:
    """Groups collected by kind, that is by their number of images of each grade.

    Attributes:
        members: Groups of each kind in random order.
        shape: (kinds, columns) number of images of each grade in a group of each kind. With several data
            sets, further columns count each grade of each data set.
        grades: Grade of each of the first columns of ``shape``.
    """

    members: list[list[str]]
    shape: Counts
    grades: list[int]

    @property
    def holds(self) -> Whole:
        """(kinds, grades) 1 if a group of the kind has an image of the grade, else 0."""
        return (self.shape[:, : len(self.grades)] > 0).astype(np.int64)

    @property
    def sizes(self) -> Whole:
        """(kinds,) number of groups of each kind."""
        return np.array([len(groups) for groups in self.members], np.int64)

    @property
    def groups(self) -> Whole:
        """(grades,) number of groups that contain each grade."""
        return np.asarray(self.sizes @ self.holds)


def proportional_order(
    groups: Iterable[tuple[str, int]], seed: Sequence[int], *, cover: bool = False, until: float = 1.0
) -> Times:
    """Order groups so that every prefix contains every grade in proportion.

    Each group gets a time in [0, 1]; the prefix at ``t`` is all groups with time <= ``t``. As time
    increases, a group is taken whenever that reduces the squared deviation of the counts of the grades from
    ``t * total``. Counts of groups of one image stay within half an image of their share at every ``t``,
    those of groups of several images with different grades within about one.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        seed: Seed of the order among groups of a kind.
        cover: Take one image of every grade at time 0, so that small fractions contain rare grades. Counts
            are still within one image of their share.
        until: Time to stop at, in [0, 1]; later groups are omitted.
    """
    return sweep(collect_kinds(((group, grade, "") for group, grade in groups), seed), cover, until)


def collect_kinds(photographs: Iterable[tuple[str, int, str]], seed: Sequence[int]) -> Kinds:
    """Collect the groups of photographs (group, grade, data set) by kind, in a random order of each kind."""
    contents: defaultdict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for group, grade, dataset in photographs:
        contents[group][dataset, grade] += 1
    by_kind: defaultdict[tuple[tuple[tuple[str, int], int], ...], list[str]] = defaultdict(list)
    for group in sorted(contents):
        by_kind[tuple(sorted(contents[group].items()))].append(group)
    rng = np.random.default_rng(list(seed))
    kinds = sorted(by_kind)
    members = [[by_kind[kind][i] for i in rng.permutation(len(by_kind[kind]))] for kind in kinds]
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
    """Order collected groups; see :func:`proportional_order`."""
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
    """State of the sweep: the number of groups taken of each kind, and the next kind to take."""

    def __init__(self, kinds: Kinds) -> None:
        self.shape, self.columns = kinds.shape, len(kinds.grades)
        self.size = kinds.sizes.astype(float)
        self.total = self.size @ self.shape
        self.taken = np.zeros(len(self.size))
        self.count = np.zeros(self.shape.shape[1])
        self._twice, self._squares = 2 * self.shape, (self.shape**2).sum(axis=1)

    def take(self, kind: int) -> None:
        self.taken[kind] += 1
        self.count += self.shape[kind]

    def best(self, t: float, cover: bool) -> int | None:
        """Return the kind that reduces the cost most; None if no kind does (at t = 1: if none is left)."""
        if cover and t == 0:
            gain = self._new_grades()
        else:
            # Change of the sum of squares when kind k adds shape[k] to the gaps of the grades and 1 to its
            # own.
            change = self._twice @ (self.count - t * self.total) + self._squares
            gain = -change - _KIND_WEIGHT * (2 * (self.taken - t * self.size) + 1)
        gain = np.where(self.taken < self.size, gain, -np.inf)
        best = int(gain.argmax())
        return best if gain[best] > (-np.inf if t == 1 else 1e-9) else None

    def _new_grades(self) -> Counts:
        # By new grades, not by deviation: a grade that occurs only in pairs would be taken too late.
        grades = self.shape[:, : self.columns]
        return np.asarray(((grades > 0) & (self.count[: self.columns] == 0)).sum(axis=1) / grades.sum(axis=1))


def steps_in(fraction: float) -> int:
    """Return the number of whole time steps in a fraction."""
    return floor((fraction + 1e-9) * STEPS)


def prefix(times: Times, fraction: float) -> set[str]:
    """Return the groups taken up to a fraction."""
    return {group for group, time in times.items() if time <= fraction + 1e-9}


@dataclass(frozen=True)
class Requirement:
    """Required content of the parts.

    Attributes:
        worth: (grades, parts) worth of the presence of a grade in a part.
        goal: (grades,) sum of worths that is sufficient for a grade.
        share: (parts,) share of all images that a part should have.
    """

    worth: Whole
    goal: Whole
    share: Counts


def fold_requirement(kinds: Kinds, folds: int) -> Requirement:
    """Require each grade in every fold, or in as many folds as it has groups."""
    worth = np.ones((len(kinds.grades), folds), np.int64)
    return Requirement(worth, np.minimum(kinds.groups, folds), np.full(folds, 1 / folds))


def validation_requirement(kinds: Kinds, fraction: float) -> Requirement:
    """Require every grade in part 0 (the rest), and grades of enough groups also in part 1 (validation).

    A grade is required in validation if it has two groups or more and its share of the groups there exceeds
    one half.
    """
    validates = (kinds.groups >= 2) & (fraction * kinds.groups > 0.5 + 1e-9)
    worth = np.stack([np.full(len(validates), _TRAIN_FIRST), validates.astype(np.int64)], axis=1)
    return Requirement(worth, worth.sum(axis=1), np.array([1 - fraction, fraction]))


def keep_rare_grades(parts: dict[str, int], kinds: Kinds, required: Requirement) -> dict[str, int]:
    """Move groups between parts until the requirement is met or no improvement is found.

    It is always met if each group has one grade. With groups of several grades the result is the best that
    searches of :data:`MAX_STATES` assignments find. ``parts`` maps each group to its part.
    """
    counts = np.zeros((len(kinds.members), len(required.share)), np.int64)
    for kind, members in enumerate(kinds.members):
        np.add.at(counts[kind], [parts[group] for group in members], 1)
    search, moved = _Search(kinds, required), dict(parts)
    while chain := search.improvement(counts):
        for kind, source, target in chain:
            counts[kind, source] -= 1
            counts[kind, target] += 1
            # The last one taken; groups of a kind are interchangeable.
            group = next(name for name in reversed(kinds.members[kind]) if moved[name] == source)
            moved[group] = target
    return moved


class _Search:
    """Search for the shortest chain of moves that improves the parts."""

    def __init__(self, kinds: Kinds, required: Requirement) -> None:
        self._holds, self._shape, self._required = kinds.holds, kinds.shape, required
        self._target = np.outer(required.share, kinds.sizes @ kinds.shape)
        self._budget = 0

    def improvement(self, counts: Whole) -> list[Move]:
        """Search breadth-first from ``counts`` (kinds, parts); return [] if there is no improvement.

        Each step moves a group with a grade that is missing somewhere, which suffices to reach any better
        assignment.
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
            following.sort(key=lambda candidate: candidate[0])
            if following and following[0][0][0] < start:
                return following[0][2]
            level = [(state, chain) for _, state, chain in following]
        return []

    def _moves(self, state: Whole, seen: set[bytes]) -> Iterator[tuple[Move, Whole]]:
        """Yield moves of groups with a missing grade that lead to new assignments."""
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
        """Return the missing worth of each grade, (grades,)."""
        covered = (self._holds.T @ counts) > 0
        missing: Whole = np.maximum(self._required.goal - (covered * self._required.worth).sum(axis=1), 0)
        return missing

    def _cost(self, counts: Whole) -> tuple[int, float]:
        gap = counts.T @ self._shape - self._target
        return int(self._missing(counts).sum()), float((gap**2).sum())


def shot_groups(groups: Iterable[tuple[str, int]], shots: int, seed: list[int]) -> set[str]:
    """Choose groups until every grade has its shots or no group is left.

    The wanted number rises from 1 to ``shots`` and groups are added as needed, so the choice for a smaller
    number is a subset of that for a larger one. Of the groups with a wanted grade the one with the fewest
    surplus photographs is taken; ties are broken by a seeded shuffle. If each photograph is its own group,
    every grade gets exactly its shots, or all its photographs.

    Args:
        groups: One pair (group, grade) for each graded photograph.
        shots: Number of photographs of each grade, at least 1.
        seed: Seed of the shuffle.
    """
    names, contents = _contents(groups, seed)
    total = contents.sum(axis=0)
    taken, have = np.zeros(len(names), bool), np.zeros_like(total)
    for wanted in range(1, min(shots, int(total.max(initial=0))) + 1):
        goal = np.minimum(wanted, total)
        for grade in range(len(total)):
            while have[grade] < goal[grade]:
                able = np.flatnonzero(~taken & (contents[:, grade] > 0))
                surplus = np.maximum(have + contents[able] - goal, 0).sum(axis=1)
                best = able[surplus.argmin()]
                taken[best] = True
                have += contents[best]
    return set(names[taken])


def _contents(groups: Iterable[tuple[str, int]], seed: list[int]) -> tuple[npt.NDArray[np.object_], Whole]:
    """Return groups in a random order and their number of photographs of each grade, (groups, grades)."""
    table = pd.DataFrame(groups, columns=["group", "grade"])
    counts = pd.crosstab(table["group"], table["grade"])
    order = np.random.default_rng(seed).permutation(len(counts))
    return counts.index.to_numpy(dtype=object)[order], counts.to_numpy(np.int64)[order]


def draw_test_fold(graded: pd.DataFrame, spec: SplitSpec) -> set[str]:
    """Draw the groups of the test fold from graded, labelled photographs (columns group, grade, dataset)."""
    kinds = _kinds(graded, spec.seed, 0)
    times = sweep(kinds)
    ends = np.arange(1, spec.folds + 1) / spec.folds
    folds = {group: int(np.searchsorted(ends, time)) for group, time in times.items()}
    folds = keep_rare_grades(folds, kinds, fold_requirement(kinds, spec.folds))
    return {group for group, fold in folds.items() if fold == spec.fold}


def _validation_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    if not spec.val_fraction:
        return set()
    kinds = _kinds(side, spec.seed, 1)
    chosen = prefix(sweep(kinds, until=spec.val_fraction), spec.val_fraction)
    parts = {group: int(group in chosen) for group in side["group"].unique()}
    whole = steps_in(spec.val_fraction) / STEPS
    parts = keep_rare_grades(parts, kinds, validation_requirement(kinds, whole))
    return {group for group, part in parts.items() if part}


def _labelled_groups(side: pd.DataFrame, spec: SplitSpec) -> set[str]:
    draw = [spec.label_seed] if spec.label_seed else []  # without it, the draws of earlier versions
    if spec.shots is not None:
        pairs = zip(side["group"], side["grade"].astype(int), strict=True)
        return shot_groups(pairs, spec.shots, [spec.seed, 4, *draw])
    if spec.label_fraction == 1:
        return set(side["group"])
    times = sweep(_kinds(side, spec.seed, 2, *draw), cover=True, until=spec.label_fraction)
    return prefix(times, spec.label_fraction)


def _kinds(photographs: pd.DataFrame, *seed: int) -> Kinds:
    columns = (photographs["group"], photographs["grade"].astype(int), photographs["dataset"])
    return collect_kinds(zip(*columns, strict=True), seed)


def draw_validation_and_training(side: pd.DataFrame, spec: SplitSpec) -> tuple[set[str], set[str]]:
    """Draw validation groups and labelled training groups from the graded photographs of a training side."""
    if spec.val_within_fraction:
        side = side[side["group"].isin(_labelled_groups(side, spec))]
        val = _validation_groups(side, spec)
        return val, set(side["group"]) - val
    val = _validation_groups(side, spec)
    return val, _labelled_groups(side[~side["group"].isin(val)], spec)


@dataclass(frozen=True)
class SplitFile:
    """Split file matched with photographs.

    Attributes:
        path: The file.
        subsets: Subset of each photograph in the file. In a file of folds, "test" for the test fold and
            "train" for the others.
        grades: Values of the column ``grade``; None without that column.
        unknown: Names in the file that no photograph has.
        folds: Folds in the file; empty if it names subsets.
    """

    path: Path
    subsets: dict[str, str]
    grades: dict[str, int] | None
    unknown: tuple[str, ...]
    folds: tuple[int, ...] = ()

    @property
    def validates(self) -> bool:
        """True if the file names validation photographs."""
        return "val" in self.subsets.values()
